//! What happens by itself: the tick that ends every half second, and each probe's being attached for its share of the time.

use std::{
    future::pending,
    pin::pin,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use siskin_ebpf::Probe;
use tokio::{
    io::unix::AsyncFd,
    select,
    sync::watch,
    time::{self, MissedTickBehavior, interval_at, sleep_until},
};

use crate::{
    budget::{
        controller::Setting,
        meter::thread_seconds,
        windows::{Plan, TICK, Windows, cycle},
    },
    collect::Collector,
    http::Site,
    kernel::{attachment::Attachment, control::Control},
};

/// Ends a tick every half second: empties tables that fill up, lets the budget decide, and says how each probe is to be attached. An alarm ends it
/// early, when programs ran so often that what was planned for all of it is spent: a load that rises is met when it has cost as much.
pub async fn tick(
    site: Arc<Site>,
    mut alarm: AsyncFd<RingBuf<MapData>>,
    settings: watch::Sender<Vec<Setting>>,
) {
    // The first tick ends a whole tick from now.
    let mut ticks = interval_at(time::Instant::now() + TICK, TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = select! {
            _ = ticks.tick() => {
                blocking(&site, |collector| {
                    collector.relieve();
                    collector.tick()
                })
                .await
            }
            tick = rung(&mut alarm) => {
                let next = blocking(&site, move |collector| collector.alarm(tick)).await.flatten();
                if next.is_some() {
                    ticks.reset();
                }
                next
            }
        };
        if let Some(next) = next {
            settings.send_replace(next);
        }
    }
}

/// Waits until the alarm is rung; says in which tick.
async fn rung(alarm: &mut AsyncFd<RingBuf<MapData>>) -> u64 {
    loop {
        let Ok(mut ready) = alarm.readable_mut().await else {
            // The runtime ends, and this task with it.
            return pending().await;
        };
        let mut newest = None;
        while let Some(tick) = ready.get_inner_mut().next() {
            newest = newest.max(tick.first_chunk().copied().map(u64::from_ne_bytes));
        }
        ready.clear_ready();
        if let Some(tick) = newest {
            return tick;
        }
    }
}

/// Keeps a probe attached for the share of every cycle that the budget gives it. Each probe has its own such task, because attaching
/// may wait: neither the other probes nor who reads then waits with it.
pub async fn keep_attached(
    site: Arc<Site>,
    control: Arc<Control>,
    mut attachment: Attachment,
    mut settings: watch::Receiver<Vec<Setting>>,
) {
    let probe = attachment.probe;
    let mut windows = Windows::default();
    loop {
        let setting = settings.borrow_and_update().iter().find(|setting| setting.probe == probe).copied();
        let plan = setting.map(|setting| (setting, windows.plan(&setting, Instant::now())));
        attachment = match plan {
            Some((_, Plan::Always)) => switch(&site, &control, attachment, Some(0)).await,
            Some((_, Plan::Never)) => switch(&site, &control, attachment, None).await,
            Some((setting, plan @ (Plan::Rest | Plan::Window { .. }))) => {
                let begin = time::Instant::now();
                let mut shed_more = pin!(shed_more(settings.clone(), setting));
                attachment = switch(&site, &control, attachment, None).await;
                if let Plan::Window { delay, length } = plan {
                    // What more costs too much in this cycle ends it: what was drawn for it is forgotten before it is known.
                    select! {
                        () = &mut shed_more => continue,
                        () = sleep_until(begin + delay) => {}
                    }
                    let (end, ended) = mpsc::channel();
                    let mut window =
                        pin!(watch(&site, &control, attachment, setting.duty_log2, length, ended));
                    let (watched, is_cut);
                    ((attachment, watched), is_cut) = select! {
                        () = &mut shed_more => {
                            // When it ended by itself meanwhile, nobody listens.
                            let _ = end.send(());
                            (window.await, true)
                        }
                        done = &mut window => (done, false),
                    };
                    windows.watched(watched);
                    if is_cut {
                        continue;
                    }
                }
                select! {
                    () = &mut shed_more => {}
                    () = sleep_until(begin + cycle(setting.duty_log2)) => {}
                }
                continue;
            }
            // Sampling is fixed by hand.
            None => attachment,
        };
        if settings.changed().await.is_err() {
            return;
        }
    }
}

/// Waits until a probe is to be attached for less of the time than by `setting`.
async fn shed_more(mut settings: watch::Receiver<Vec<Setting>>, setting: Setting) {
    let less = |other: &Setting| {
        other.probe == setting.probe && (other.detached || other.duty_log2 > setting.duty_log2)
    };
    if settings.wait_for(|settings| settings.iter().any(less)).await.is_err() {
        // The agent ends, and this task with it.
        pending().await
    }
}

/// Attaches a probe all of the time or for 1 in 2^`duty_log2` of it, or detaches it with `None`.
async fn switch(
    site: &Arc<Site>,
    control: &Arc<Control>,
    mut attachment: Attachment,
    duty_log2: Option<u64>,
) -> Attachment {
    if attachment.is_attached() == duty_log2.is_some() {
        return attachment;
    }
    let (site, control) = (Arc::clone(site), Arc::clone(control));
    aside(move || {
        switch_now(&site, &control, &mut attachment, duty_log2);
        attachment
    })
    .await
}

/// Attaches a probe for so long or until it is told to end, and says for how long it was. The thread that attaches is the one that waits and detaches: on a busy
/// machine each thread that must be woken comes some milliseconds late.
async fn watch(
    site: &Arc<Site>,
    control: &Arc<Control>,
    mut attachment: Attachment,
    duty_log2: u64,
    length: Duration,
    ended: mpsc::Receiver<()>,
) -> (Attachment, Duration) {
    let (site, control) = (Arc::clone(site), Arc::clone(control));
    aside(move || {
        let since = switch_now(&site, &control, &mut attachment, Some(duty_log2));
        if !attachment.is_attached() {
            return (attachment, Duration::ZERO);
        }
        // Told or not, the window is over.
        let _ = ended.recv_timeout(length);
        let until = switch_now(&site, &control, &mut attachment, None);
        (attachment, until - since)
    })
    .await
}

/// Attaches or detaches a probe; says when that was done.
fn switch_now(
    site: &Site,
    control: &Control,
    attachment: &mut Attachment,
    duty_log2: Option<u64>,
) -> Instant {
    let (probe, begin, cpu_seconds) = (attachment.probe, Instant::now(), thread_seconds());
    if let Some(duty_log2) = duty_log2 {
        control.set_duty(probe, duty_log2);
        if let Err(error) = attachment.attach() {
            // It is tried again at the next tick.
            tracing::warn!("probe {}: {error:#}", probe.name());
            return Instant::now();
        }
        control.set_paused(probe, false);
    } else {
        if probe == Probe::Tcp {
            // Connections that come and go now are not followed.
            control.set_tcp_shed(true);
        }
        control.set_paused(probe, true);
        attachment.detach();
    }
    let (at, cpu_seconds) = (Instant::now(), thread_seconds() - cpu_seconds);
    tracing::debug!(
        "probe {} is {} after {:.1} ms, of which {:.2} ms of CPU",
        probe.name(),
        if attachment.is_attached() { "attached" } else { "detached" },
        (at - begin).as_secs_f64() * 1e3,
        cpu_seconds * 1e3,
    );
    site.collector.attached(probe, duty_log2, at, cpu_seconds);
    at
}

/// Runs work that waits on a thread of its own.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    // The work does not panic, and the runtime only stops at the end.
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Runs work that takes the collector's lock away from the thread that serves.
pub async fn blocking<T: Send + 'static>(
    site: &Arc<Site>,
    work: impl FnOnce(&Collector) -> T + Send + 'static,
) -> Option<T> {
    let site = Arc::clone(site);
    let done = tokio::task::spawn_blocking(move || work(&site.collector)).await;
    done.inspect_err(|error| tracing::error!("a reading failed: {error}")).ok()
}
