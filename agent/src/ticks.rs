//! What happens by itself: the tick that ends every half second, and each probe's being attached for its share of the time.

use std::{sync::Arc, time::Instant};

use siskin_ebpf::Probe;
use tokio::{
    sync::watch,
    time::{self, MissedTickBehavior, interval_at, sleep_until},
};

use crate::{
    budget::{
        controller::Setting,
        meter::thread_seconds,
        windows::{CYCLE, Plan, TICK, Windows},
    },
    collect::Collector,
    http::Site,
    kernel::{attachment::Attachment, control::Control},
};

/// Ends a tick every half second: empties tables that fill up, lets the budget decide, and says how each probe is to be attached.
pub async fn tick(site: Arc<Site>, settings: watch::Sender<Vec<Setting>>) {
    // The first tick ends a whole tick from now.
    let mut ticks = interval_at(time::Instant::now() + TICK, TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let next = blocking(&site, |collector| {
            collector.relieve();
            collector.tick()
        });
        if let Some(next) = next.await {
            settings.send_replace(next);
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
            Some((_, Plan::Always)) => switch(&site, &control, attachment, Some(0)).await.0,
            Some((_, Plan::Never)) => switch(&site, &control, attachment, None).await.0,
            Some((setting, Plan::Window { delay, length })) => {
                let begin = time::Instant::now();
                let (detached, _) = switch(&site, &control, attachment, None).await;
                sleep_until(begin + delay).await;
                let (attached, since) = switch(&site, &control, detached, Some(setting.duty_log2)).await;
                let is_attached = attached.is_attached();
                sleep_until(time::Instant::from_std(since) + length).await;
                let (detached, until) = switch(&site, &control, attached, None).await;
                if is_attached {
                    windows.watched(until - since);
                }
                // A tick that ends meanwhile changes the next cycle.
                sleep_until(begin + CYCLE).await;
                detached
            }
            // Sampling is fixed by hand.
            None => attachment,
        };
        if settings.changed().await.is_err() {
            return;
        }
    }
}

/// Attaches a probe for 1 in 2^`duty_log2` of the time, or detaches it with `None`; says when that was done. Nothing happens when
/// it is so already.
async fn switch(
    site: &Arc<Site>,
    control: &Arc<Control>,
    mut attachment: Attachment,
    duty_log2: Option<u64>,
) -> (Attachment, Instant) {
    if attachment.is_attached() == duty_log2.is_some() {
        return (attachment, Instant::now());
    }
    let (site, control) = (Arc::clone(site), Arc::clone(control));
    let switched = move || {
        let (probe, cpu_seconds) = (attachment.probe, thread_seconds());
        if let Some(duty_log2) = duty_log2 {
            control.set_duty(probe, duty_log2);
            if let Err(error) = attachment.attach() {
                // It is tried again at the next tick.
                tracing::warn!("probe {}: {error:#}", probe.name());
                return (attachment, Instant::now());
            }
        } else {
            if probe == Probe::Tcp {
                // Connections that come and go now are not followed.
                control.set_tcp_shed(true);
            }
            attachment.detach();
        }
        let at = Instant::now();
        site.collector.attached(probe, duty_log2.is_some(), at, thread_seconds() - cpu_seconds);
        (attachment, at)
    };
    // The work does not panic, and the runtime only stops at the end.
    tokio::task::spawn_blocking(switched)
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
