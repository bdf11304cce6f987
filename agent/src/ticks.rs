//! What happens by itself: the tick that ends every half second, or later when nothing happens, and
//! each probe's duty cycle.

use std::{
    future::pending,
    pin::pin,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use siskin_ebpf::{NOTED, Probe};
use tokio::{
    io::unix::AsyncFd,
    runtime::Handle,
    select,
    sync::watch,
    time::{self, MissedTickBehavior, interval_at, sleep_until},
};

use crate::{
    budget::{
        AttachCost, TICK,
        allocation::{DUTY_PERIOD, Setting},
        duty::{self, Duty, Plan},
        meter::thread_seconds,
    },
    collect::Collector,
    http::Site,
    kernel::{attachment::Attachment, control::Control, sys::wait_for_programs},
};

/// What a probe sees for so long when it is attached all the time again stands for the time that no
/// window stood for, too.
const CLOSING: Duration = Duration::from_millis(250);

/// Ends a tick every half second while anything happens: drains tables that fill up, lets the
/// budget decide, and says how each probe is to be attached. An overload ends it early, when
/// programs ran so often that it costs what may be spent: a load that rises is met when it has cost
/// as much.
pub async fn tick(
    site: Arc<Site>,
    mut overload: AsyncFd<RingBuf<MapData>>,
    settings: watch::Sender<Vec<Setting>>,
) {
    // The first tick ends a whole tick from now.
    let mut ticks = interval_at(time::Instant::now() + TICK, TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = select! {
            // On this thread, unless it may take long: waking another costs more than the tick.
            _ = ticks.tick() => {
                let ended = match site.collector.try_tick() {
                    Some(ended) => Some(ended),
                    None => {
                        let tick = |collector: &Collector| {
                            collector.drain();
                            collector.tick()
                        };
                        blocking(&site, tick).await
                    }
                };
                ended.map(|(settings, length)| {
                    ticks.reset_after(length);
                    settings
                })
            }
            tick = notified(&mut overload) => {
                if tick == NOTED {
                    // What is short-lived keeps its name no longer than a tick usually is.
                    ticks.reset_after(TICK);
                    continue;
                }
                // On this thread, too: on a busy machine each that must be woken comes some
                // milliseconds late.
                let ended = match site.collector.try_overload(tick) {
                    Some(ended) => ended,
                    None => blocking(&site, move |collector| collector.overload(tick)).await.flatten(),
                };
                if ended.as_ref().is_some_and(|ended| ended.is_planned) {
                    ticks.reset();
                }
                ended.map(|ended| ended.settings)
            }
        };
        if let Some(next) = next {
            settings.send_replace(next);
        }
    }
}

/// Waits until a program notifies an overload; says in which tick.
async fn notified(overload: &mut AsyncFd<RingBuf<MapData>>) -> u64 {
    loop {
        let Ok(mut ready) = overload.readable_mut().await else {
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

/// Keeps a probe attached for the share of every duty period that the budget gives it. Each probe
/// has its own such task, because attaching may wait: neither the other probes nor who reads then
/// waits with it.
pub async fn keep_attached(
    site: Arc<Site>,
    control: Arc<Control>,
    mut attachment: Attachment,
    mut settings: watch::Receiver<Vec<Setting>>,
) {
    let probe = attachment.probe;
    let mut duty = Duty::default();
    loop {
        let setting = settings.borrow_and_update().iter().find(|setting| setting.probe == probe).copied();
        let plan = setting.map(|setting| (setting, duty.plan(&setting)));
        attachment = match plan {
            Some((_, Plan::Never)) => {
                let attachment = switch(&site, &control, attachment, None).await;
                site.collector.set_counted_until(probe, None);
                attachment
            }
            Some((setting, Plan::Always)) => {
                let attachment = switch(&site, &control, attachment, Some(1)).await;
                if let Some(until) = duty.counted_until().filter(|_| attachment.is_attached()) {
                    // No window stood for the time since the last one.
                    let from = Instant::now();
                    let closing = sleep_until((from.max(until) + CLOSING).into());
                    select! {
                        () = sheds_more(settings.clone(), setting) => {}
                        () = closing => {}
                    }
                    if let Some(window) = duty.closed([from, Instant::now()]) {
                        site.collector.window(probe, &window, None);
                    }
                }
                attachment
            }
            Some((_, Plan::Window { delay })) => {
                attachment = has_window(&site, &control, attachment, &settings, &mut duty, delay).await;
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

/// Attaches a probe for one window, `delay` from now, and waits until its duty periods are over.
async fn has_window(
    site: &Arc<Site>,
    control: &Arc<Control>,
    mut attachment: Attachment,
    settings: &watch::Receiver<Vec<Setting>>,
    duty: &mut Duty,
    delay: Duration,
) -> Attachment {
    let (probe, begin) = (attachment.probe, time::Instant::now());
    if attachment.is_attached() {
        attachment = switch(site, control, attachment, None).await;
    }
    duty.detached(begin.into_std());
    site.collector.set_counted_until(probe, duty.counted_until());
    // The place of the window stays what it was, however often the setting changes until then: who
    // throws again and again would never see anything.
    select! {
        () = is_over(settings.clone(), probe, None) => return attachment,
        () = sleep_until(begin + delay) => {}
    }
    let Some(setting) = windows(settings, probe) else { return attachment };
    let mut sheds_more = pin!(sheds_more(settings.clone(), setting));
    let (end, ended) = mpsc::channel();
    let length = duty::window(setting.duty);
    let programs_duty = duty::programs_duty(&setting);
    let mut window = pin!(window(site, control, attachment, programs_duty, length, ended));
    let ((attachment, times), is_cut) = select! {
        () = &mut sheds_more => {
            // When it ended by itself meanwhile, nobody listens.
            let _ = end.send(());
            (window.await, true)
        }
        done = &mut window => (done, false),
    };
    if let Some(times) = times {
        let window = duty.seen(begin.into_std(), &setting, times, is_cut);
        site.collector.window(probe, &window, duty.counted_until());
    }
    // Where windows come more often meanwhile, two are a duty period apart at least.
    let is_past = delay >= DUTY_PERIOD * windows(settings, probe).map_or(1, |of| of.periods) as u32;
    let began = if is_past { begin + delay } else { begin };
    is_over(settings.clone(), probe, Some(began)).await;
    attachment
}

/// How a probe is attached in windows; `None` when it is attached all the time, or not at all.
fn windows(settings: &watch::Receiver<Vec<Setting>>, probe: Probe) -> Option<Setting> {
    let setting = settings.borrow().iter().find(|of| of.probe == probe).copied();
    setting.filter(|setting| setting.duty > 1 && !setting.detached)
}

/// Waits until a probe has windows no more, or until the duty periods that began then are over, of
/// which one had a window: fewer when windows shall come more often.
async fn is_over(mut settings: watch::Receiver<Vec<Setting>>, probe: Probe, began: Option<time::Instant>) {
    loop {
        settings.mark_unchanged();
        let Some(setting) = windows(&settings, probe) else { return };
        let end = async {
            match began {
                Some(began) => sleep_until(began + DUTY_PERIOD * setting.periods as u32).await,
                None => pending().await,
            }
        };
        select! {
            () = end => return,
            changed = settings.changed() => if changed.is_err() {
                // The agent ends, and this task with it.
                return pending().await;
            },
        }
    }
}

/// Waits until a probe is to be attached for less of the time than by `setting`.
async fn sheds_more(mut settings: watch::Receiver<Vec<Setting>>, setting: Setting) {
    let less =
        |other: &Setting| other.probe == setting.probe && (other.detached || other.duty > setting.duty);
    if settings.wait_for(|settings| settings.iter().any(less)).await.is_err() {
        // The agent ends, and this task with it.
        pending().await
    }
}

/// Attaches a probe for one part in `duty` of the time, or detaches it with `None`.
async fn switch(
    site: &Arc<Site>,
    control: &Arc<Control>,
    mut attachment: Attachment,
    duty: Option<u64>,
) -> Attachment {
    if attachment.is_attached() == duty.is_some() {
        return attachment;
    }
    let (site, control) = (Arc::clone(site), Arc::clone(control));
    aside(move || {
        switch_now(&site, &control, &mut attachment, duty);
        attachment
    })
    .await
}

/// Attaches a probe for so long or until it is told to end, and says from when to when it was. The
/// thread that attaches is the one that waits and detaches: on a busy machine each thread that must
/// be woken comes some milliseconds late.
async fn window(
    site: &Arc<Site>,
    control: &Arc<Control>,
    mut attachment: Attachment,
    duty: u64,
    length: Duration,
    ended: mpsc::Receiver<()>,
) -> (Attachment, Option<[Instant; 2]>) {
    let (site, control) = (Arc::clone(site), Arc::clone(control));
    aside(move || {
        let since = switch_now(&site, &control, &mut attachment, Some(duty));
        if !attachment.is_attached() {
            return (attachment, None);
        }
        // Told or not, the window is over. It began when the programs were attached, and the books
        // are kept since.
        let _ = ended.recv_timeout(length.saturating_sub(since.elapsed()));
        let until = switch_now(&site, &control, &mut attachment, None);
        (attachment, Some([since, until]))
    })
    .await
}

/// Attaches or detaches a probe; says since when it counts or does not.
fn switch_now(site: &Site, control: &Control, attachment: &mut Attachment, duty: Option<u64>) -> Instant {
    let (probe, begin, process_seconds) = (attachment.probe, Instant::now(), thread_seconds());
    let mut at = None;
    if let Some(duty) = duty {
        control.set_duty(probe, duty);
        if let Err(error) = attachment.attach() {
            // It is tried again when the setting changes, or in the next period.
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
        let paused = Instant::now();
        site.collector.paused(probe, paused);
        attachment.detach();
        at = attachment.looks_whether_paused().then_some(paused);
        // Attaching waits until no CPU can run what was detached: that time begins now, and not
        // when somebody attaches.
        Handle::current().spawn_blocking(wait_for_programs);
    }
    let (done, process_seconds) = (Instant::now(), thread_seconds() - process_seconds);
    let at = at.unwrap_or(done);
    let interrupt_seconds = attachment.interrupt_seconds();
    tracing::debug!(
        "probe {} is {} after {:.1} ms, of which {:.2} ms of CPU, and {:.3} ms of the other CPUs",
        probe.name(),
        if attachment.is_attached() { "attached" } else { "detached" },
        (done - begin).as_secs_f64() * 1e3,
        process_seconds * 1e3,
        interrupt_seconds * 1e3,
    );
    site.collector.attached(probe, duty, at, AttachCost { process_seconds, interrupt_seconds });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn windows_of(duty: u64, periods: u64) -> Vec<Setting> {
        vec![Setting { duty, periods, ..Setting::exact(Probe::Udp) }]
    }

    /// Seconds until `wait` is over, in paused time, with other settings after so many seconds.
    fn seconds<F: Future<Output = ()>>(
        before: Vec<Setting>,
        later: Vec<(f64, Vec<Setting>)>,
        wait: impl FnOnce(watch::Receiver<Vec<Setting>>) -> F,
    ) -> f64 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let (sender, receiver) = watch::channel(before);
            let begin = time::Instant::now();
            let changes = async {
                for (at, settings) in later {
                    sleep_until(begin + Duration::from_secs_f64(at)).await;
                    sender.send_replace(settings);
                }
                pending().await
            };
            select! {
                () = wait(receiver) => {}
                () = changes => {}
            }
            begin.elapsed().as_secs_f64()
        })
    }

    fn period_seconds(before: Vec<Setting>, later: Vec<(f64, Vec<Setting>)>) -> f64 {
        seconds(before, later, |settings| is_over(settings, Probe::Udp, Some(time::Instant::now())))
    }

    #[test]
    fn a_window_has_its_duty_periods_to_itself() {
        let near = |seconds: f64, expected: f64| assert!((seconds - expected).abs() < 0.01, "{seconds}");
        near(period_seconds(windows_of(8, 1), vec![]), 1.25);
        near(period_seconds(windows_of(8, 4), vec![]), 5.0);
        // Windows shall come more often, and less often.
        near(period_seconds(windows_of(8, 4), vec![(0.5, windows_of(8, 2))]), 2.5);
        near(period_seconds(windows_of(8, 4), vec![(3.0, windows_of(8, 1))]), 3.0);
        near(period_seconds(windows_of(8, 1), vec![(1.0, windows_of(8, 2))]), 2.5);
        // Another duty changes nothing, and the end of windows all.
        near(period_seconds(windows_of(8, 1), vec![(0.5, windows_of(64, 1)), (0.7, windows_of(4, 1))]), 1.25);
        near(period_seconds(windows_of(8, 4), vec![(0.5, windows_of(1, 1))]), 0.5);
        near(period_seconds(windows_of(1, 1), vec![]), 0.0);
        let detached = vec![Setting { detached: true, ..Setting::exact(Probe::Udp) }];
        near(period_seconds(windows_of(8, 1), vec![(0.25, detached)]), 0.25);
    }

    #[test]
    fn a_window_is_awaited_for_as_long_as_there_are_windows() {
        let wait = |settings| is_over(settings, Probe::Udp, None);
        let waited =
            seconds(windows_of(8, 1), vec![(1.0, windows_of(256, 4)), (7.0, windows_of(1, 1))], wait);
        assert!((waited - 7.0).abs() < 0.01, "{waited}");
    }

    #[test]
    fn only_a_shorter_window_cuts_one_that_is_open() {
        let setting = windows_of(8, 1)[0];
        let later = vec![(1.0, windows_of(4, 1)), (2.0, windows_of(8, 4)), (3.0, windows_of(9, 1))];
        let waited = seconds(windows_of(8, 1), later, |settings| sheds_more(settings, setting));
        assert!((waited - 3.0).abs() < 0.01, "{waited}");
    }
}
