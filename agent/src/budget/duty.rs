//! When a probe is attached that is attached for a share of the time only. Pure, but for the random
//! phase.
//!
//! A duty period is cut into D windows of the same length, and the probe is attached in one of
//! them: every moment is seen with probability 1/D. Phases are uniform, but consecutive windows are
//! at least 1 s apart, so that one second has one window of a probe: the first phase is chosen
//! among all, each next one among those near the one before (`reflected`). More windows would see a
//! load that changes more evenly, but attaching and detaching one program takes about a quarter of
//! a millisecond of CPU (the kernel rewrites its own code and interrupts every CPU for it), which
//! is a budget's worth of a great many events.
//!
//! Attaching waits for others at times (the kernel lets every CPU pass through a quiet state
//! first), so a window may begin late or last too long, and a period may take longer than it
//! should. So what a window saw stands for the time that it stands for, by the time that it really
//! lasted ([`Window`]).

use std::time::{Duration, Instant};

use siskin_ebpf::MAX_PERIOD;

use super::allocation::{DUTY_PERIOD, Demand, MAX_DUTY, Setting};

/// The part of a period by which the phase of a window may differ from that of the one before:
/// their beginnings are a second apart at least (the longest windows': nearly a second).
const DRIFT: f64 = 0.2;

/// One part in this of the time is what the programs of a probe in windows take it to be attached
/// for: D M.
pub fn programs_duty(setting: &Setting) -> u64 {
    setting.duty * setting.periods
}

/// Length of a window of one part in `duty`.
pub fn window(duty: u64) -> Duration {
    DUTY_PERIOD.div_f64(duty as f64)
}

/// The setting with windows as short as can be paid for at once with `most_seconds` of CPU. What a
/// sampled event stands for stays the same where that can be.
pub fn payable(setting: Setting, demand: &Demand, most_seconds: f64) -> Setting {
    let most_cores = most_seconds / DUTY_PERIOD.as_secs_f64();
    let cores = (demand.skip_cores + demand.sample_cores / setting.period as f64) / setting.duty as f64;
    if setting.duty <= 1 || cores <= most_cores {
        return setting;
    }
    // Half of it at most for sampled events.
    let least_weight = (2.0 * demand.sample_cores / most_cores).ceil() as u64;
    let most_weight = MAX_PERIOD / setting.periods;
    let weight = (setting.period * setting.duty).max(least_weight).min(most_weight);
    let left = most_cores - demand.sample_cores / weight as f64;
    let duty = ((demand.skip_cores / left).ceil() as u64).clamp(setting.duty, MAX_DUTY);
    Setting { period: weight.div_ceil(duty).min(most_weight / duty), duty, ..setting }
}

/// By how many phases a window may lie before or after the one before: by one at least, or it would
/// never move.
fn reach(phases: u32) -> u32 {
    ((f64::from(phases) * DRIFT) as u32).max(1)
}

/// The phase among `phases` that a walk reaches which goes on to `phase`, and may be outside of the
/// period. The walk is reflected at both ends, so the uniform distribution is stationary.
fn reflected(phase: i64, phases: u32) -> u32 {
    let last = i64::from(phases) - 1;
    let inside = if phase < 0 {
        -1 - phase
    } else if phase > last {
        2 * last + 1 - phase
    } else {
        phase
    };
    inside.clamp(0, last) as u32
}

/// What a probe does until it is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// It is attached all the time.
    Always,
    /// It is not attached.
    Never,
    /// It is attached `delay` from now for a [`window`], and then not again in this period.
    Window {
        /// Time until it is attached.
        delay: Duration,
    },
}

/// A window that is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// The programs took it to be one part in this of the time.
    pub duty: u64,
    /// Seconds that it lasted.
    pub seconds: f64,
    /// Seconds that it stands for.
    pub stands_for_seconds: f64,
    /// The part of the time of the CPUs where its programs ran that they took: a load that fills
    /// those CPUs was so much slower in the window than outside of it.
    pub slowdown: f64,
}

/// The factor of a window is no more than this: one that is short after a long time without any
/// says little.
const MOST_FACTOR: f64 = 100.0;

impl Window {
    /// What the programs counted by `duty` times this is what it stands for.
    pub fn factor(&self) -> f64 {
        let factor = self.stands_for_seconds / (self.seconds.max(1e-6) * self.duty as f64);
        factor.clamp(0.0, MOST_FACTOR)
    }
}

/// The duty cycle of a probe.
#[derive(Clone, Copy, Debug, Default)]
pub struct Duty {
    /// How many phases there are, and which was the last.
    phase: Option<(u32, u32)>,
    /// Until when what was seen stands for the time.
    counted_until: Option<Instant>,
}

impl Duty {
    /// Plans what begins now: a period, or as many as have one window, when the probe has a share
    /// of the time, the time until the setting changes otherwise.
    pub fn plan(&mut self, setting: &Setting) -> Plan {
        if setting.detached || setting.duty <= 1 {
            self.phase = None;
            if setting.detached {
                self.counted_until = None;
                return Plan::Never;
            }
            return Plan::Always;
        }
        let (duty, phases) = (setting.duty, programs_duty(setting) as u32);
        let phase = match self.phase {
            Some((same, phase)) if same == phases => {
                let reach = i64::from(reach(phases));
                reflected(i64::from(phase) + fastrand::i64(-reach..=reach), phases)
            }
            Some((other, phase)) => {
                // Near where it was.
                let near = (f64::from(phase) + fastrand::f64()) / f64::from(other) * f64::from(phases);
                let reach = f64::from(reach(phases));
                reflected((near + (2.0 * fastrand::f64() - 1.0) * reach).floor() as i64, phases)
            }
            None => fastrand::u32(0..phases),
        };
        self.phase = Some((phases, phase));
        Plan::Window { delay: window(duty) * phase }
    }

    /// Until when what was seen stands for the time; `None` when the probe is attached all the time
    /// or not at all, and nothing lacks.
    pub fn counted_until(&self) -> Option<Instant> {
        self.counted_until
    }

    /// The probe was detached `at` this moment; all until then was seen, if nothing else is known.
    pub fn detached(&mut self, at: Instant) {
        self.counted_until.get_or_insert(at);
    }

    /// The probe is attached all the time again, and has been since `from`. What it saw until `to`
    /// stands for the time before that no window stood for, too; `None` when there is no such time.
    pub fn closed(&mut self, [from, to]: [Instant; 2]) -> Option<Window> {
        let since = self.counted_until.take()?;
        Some(Window {
            duty: 1,
            seconds: to.saturating_duration_since(from).as_secs_f64(),
            stands_for_seconds: to.saturating_duration_since(since).as_secs_f64(),
            slowdown: 0.0,
        })
    }

    /// The window of the period that began then is over: it stands for the time since the last one
    /// ended. That is as good as to stand for its own period, and what a reading lacks differs less
    /// from one reading to the next. One that was cut, because it saw so much, stands for its own
    /// part of the time alone, and the next window for the rest.
    pub fn seen(
        &mut self,
        began: Instant,
        setting: &Setting,
        [from, to]: [Instant; 2],
        is_cut: bool,
    ) -> Window {
        let since = self.counted_until.unwrap_or(began);
        let until = match is_cut {
            true => to.min(since + to.saturating_duration_since(from).mul_f64(setting.parts())),
            false => to,
        };
        self.counted_until = Some(until);
        Window {
            duty: programs_duty(setting),
            seconds: to.saturating_duration_since(from).as_secs_f64(),
            stands_for_seconds: until.saturating_duration_since(since).as_secs_f64(),
            slowdown: 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use siskin_ebpf::Probe;

    use super::*;

    fn setting(duty: u64) -> Setting {
        Setting { duty, ..Setting::exact(Probe::Udp) }
    }

    /// Runs periods of a load of one event per millisecond, of which every n-th attach takes `late`
    /// and all windows last `longer`. Returns what is estimated to what there was.
    fn estimated(periods: u32, duty: u64, every: u32, late: Duration, longer: Duration) -> f64 {
        let (mut plans, begin) = (Duty::default(), Instant::now());
        plans.detached(begin);
        let (mut now, mut sum) = (begin, 0.0);
        for number in 0..periods {
            let Plan::Window { delay } = plans.plan(&setting(duty)) else { panic!("no window") };
            let length = window(duty);
            assert!(delay + length <= DUTY_PERIOD + Duration::from_micros(1));
            let late = if number % every == 0 { late } else { Duration::ZERO };
            // Timers fire late on a loaded machine.
            let [from, to] = [now + delay + late, now + delay + late + length + longer];
            let window = plans.seen(now, &setting(duty), [from, to], false);
            sum += window.seconds * 1e3 * duty as f64 * window.factor();
            now = to.max(now + DUTY_PERIOD);
        }
        let counted = plans.counted_until().expect("a window") - begin;
        assert!(now - begin - counted <= DUTY_PERIOD);
        sum / (counted.as_secs_f64() * 1e3)
    }

    #[test]
    fn the_walk_leaves_the_uniform_distribution_as_it_is() {
        for phases in [4, 5, 8, 16, 33, 64, 128, 256] {
            let reach = i64::from(reach(phases));
            let mut ways = vec![0; phases as usize];
            for phase in 0..i64::from(phases) {
                (-reach..=reach).for_each(|by| ways[reflected(phase + by, phases) as usize] += 1);
            }
            assert!(ways.iter().all(|ways| *ways == 2 * reach + 1), "{ways:?}");
        }
    }

    #[test]
    fn two_windows_never_begin_within_the_same_second() {
        for duty in [7, 8, 16, 50, 64, 128, 256] {
            let (mut plans, begin) = (Duty::default(), Instant::now());
            let (mut now, mut last, mut places) = (begin, None, std::collections::HashSet::new());
            for _ in 0..1000 {
                let Plan::Window { delay } = plans.plan(&setting(duty)) else { panic!("no window") };
                let gap = last.map_or(Duration::MAX, |last| now + delay - last);
                assert!(gap >= Duration::from_secs(1), "{gap:?} at {duty}");
                places.insert(delay);
                (now, last) = (now + DUTY_PERIOD, Some(now + delay));
            }
            assert!(places.len() >= duty as usize / 2, "{} places", places.len());
        }
    }

    #[test]
    fn in_the_mean_a_window_stands_for_what_the_programs_take_it_to() {
        let rare = Setting { periods: 4, ..setting(16) };
        let (begin, mut now) = (Instant::now(), Instant::now());
        let (mut plans, mut factors, mut seconds) = (Duty::default(), 0.0, 0.0);
        plans.detached(begin);
        for _ in 0..2000 {
            let Plan::Window { delay } = plans.plan(&rare) else { panic!("no window") };
            let window = plans.seen(now, &rare, [now + delay, now + delay + window(16)], false);
            assert_eq!(window.duty, 64);
            factors += window.factor() / 2000.0;
            seconds += window.seconds * window.duty as f64 * window.factor();
            now += 4 * DUTY_PERIOD;
        }
        assert!((factors - 1.0).abs() < 0.01, "{factors}");
        let counted = plans.counted_until().expect("a window") - begin;
        assert!((seconds / counted.as_secs_f64() - 1.0).abs() < 1e-6, "{seconds}");
    }

    #[test]
    fn a_window_in_one_of_several_periods_is_at_a_random_place_of_them_all() {
        let (mut plans, rare) = (Duty::default(), Setting { periods: 4, ..setting(16) });
        let mut places = std::collections::HashSet::new();
        for _ in 0..2000 {
            let Plan::Window { delay } = plans.plan(&rare) else { panic!("no window") };
            assert!(delay + window(16) <= 4 * DUTY_PERIOD + Duration::from_micros(1));
            places.insert(delay);
        }
        assert_eq!(places.len(), 64);
        let now = Instant::now();
        plans.detached(now);
        let [from, to] = [now + DUTY_PERIOD, now + DUTY_PERIOD + Duration::from_millis(10)];
        let window = plans.seen(now, &rare, [from, to], true);
        assert!((window.stands_for_seconds - 0.64).abs() < 1e-6, "{window:?}");
    }

    #[test]
    fn a_window_is_as_short_as_can_be_paid_for_at_once() {
        let demand = Demand {
            probe: Probe::Udp,
            events_per_second: 5e5,
            skip_cores: 0.1,
            sample_cores: 0.2,
            attach_seconds: 5e-4,
            window_variance: 0.1,
            periods: 1,
            worth: 1.0,
        };
        let cost = |setting: &Setting| {
            (demand.skip_cores + demand.sample_cores / setting.period as f64)
                * window(setting.duty).as_secs_f64()
        };
        let wide = Setting { period: 20, ..setting(6) };
        assert!(cost(&wide) > 0.02);
        for most in [0.001, 0.003, 0.006] {
            let payable = payable(wide, &demand, most);
            assert!(cost(&payable) <= most && cost(&payable) > most * 0.8, "{payable:?} at {most}");
            assert!(payable.period * payable.duty >= 120, "{payable:?}");
        }
        assert_eq!(payable(wide, &demand, 1.0), wide);
        assert_eq!(payable(setting(1), &demand, 0.0), setting(1));
    }

    #[test]
    fn phases_are_uniform_also_while_the_share_changes() {
        let (mut plans, mut now) = (Duty::default(), Instant::now());
        let (mut late, mut all) = (0, 0);
        for number in 0..30_000 {
            let duty = [8, 12, 20][number / 3 % 3];
            if let Plan::Window { delay } = plans.plan(&setting(duty)) {
                late += i32::from(delay >= DUTY_PERIOD / 2);
                all += 1;
            }
            now += DUTY_PERIOD;
        }
        let share = f64::from(late) / f64::from(all);
        assert!((0.45..0.55).contains(&share), "{share} in the later half");
    }

    #[test]
    fn windows_stand_for_all_of_the_time_also_when_they_come_late_or_last_too_long() {
        for (duty, every, late_ms, longer_us) in
            [(8, 1, 0, 300), (8, 1, 5, 300), (8, 3, 1100, 300), (64, 1, 700, 20_000), (256, 1, 0, 20_000)]
        {
            let [late, longer] = [Duration::from_millis(late_ms), Duration::from_micros(longer_us)];
            let share = estimated(400, duty, every, late, longer);
            assert!((share - 1.0).abs() < 0.01, "{share} of the truth at {duty}, {late_ms} ms late");
        }
    }

    #[test]
    fn a_window_stands_for_what_was_not_counted_before_it() {
        let (mut plans, now) = (Duty::default(), Instant::now());
        let at = |ms| now + Duration::from_millis(ms);
        plans.detached(at(0));
        // A period that was given up without a window, then one that has its window.
        let window = plans.seen(at(500), &setting(10), [at(600), at(725)], false);
        assert_eq!((window.seconds, window.stands_for_seconds), (0.125, 0.725));
        assert!((window.factor() - 0.58).abs() < 1e-9);
        let window = plans.seen(at(1750), &setting(10), [at(1850), at(1975)], false);
        assert_eq!((window.stands_for_seconds, plans.counted_until()), (1.25, Some(at(1975))));
        // One that was cut after a fifth of its time stands for a fifth of a period,
        let window = plans.seen(at(3000), &setting(10), [at(3300), at(3325)], true);
        assert_eq!((window.factor(), plans.counted_until()), (1.0, Some(at(2225))));
        // the next for the rest.
        let window = plans.seen(at(4250), &setting(10), [at(4300), at(4425)], false);
        assert_eq!((window.stands_for_seconds, plans.counted_until()), (2.2, Some(at(4425))));
    }

    #[test]
    fn what_no_window_stood_for_is_stood_for_by_what_is_seen_when_it_is_attached_again() {
        let (mut plans, now) = (Duty::default(), Instant::now());
        let at = |ms| now + Duration::from_millis(ms);
        assert_eq!(plans.closed([at(0), at(250)]), None, "it was always attached");
        plans.detached(at(0));
        assert_eq!(plans.plan(&setting(1)), Plan::Always);
        let window = plans.closed([at(750), at(1000)]).expect("a window");
        assert_eq!((window.factor(), plans.counted_until()), (4.0, None));
        plans.seen(at(1000), &setting(10), [at(1000), at(1125)], false);
        let window = plans.closed([at(1250), at(1500)]).expect("a window");
        assert_eq!((window.factor(), plans.counted_until()), (1.5, None));
    }

    #[test]
    fn all_of_the_time_and_none_of_it_need_no_window() {
        let mut plans = Duty::default();
        assert_eq!(plans.plan(&setting(1)), Plan::Always);
        let detached = Setting { detached: true, ..setting(8) };
        assert_eq!(plans.plan(&detached), Plan::Never);
    }
}
