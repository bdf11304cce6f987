//! When a probe is attached that may be attached for a share of the time only. Pure, but for the draw.
//!
//! A cycle of a second and more is cut into D windows of the same length, and one of them is drawn: every moment is watched with probability 1/D.
//! The first is drawn among all, each next one among those near the place of the one before (`reflected`): all are as likely as before, but two windows
//! of a probe do not come within the same second, whose budget could not bear that.
//! More windows would see a load that changes more evenly, but attaching and detaching one program takes about a quarter of a millisecond
//! of CPU (the kernel rewrites its own code and interrupts every CPU for it), which is a budget's worth of a great many events.
//! Attaching waits for others at times (the kernel lets every CPU pass through a quiet state first), so a window may come late or
//! last too long, and a cycle may take longer than it should. What was watched too little or too long is made up for by the next
//! window: over time a probe is watched for its share of the time that passed.

use std::time::{Duration, Instant};

use super::controller::Setting;

/// Length of a tick: half a second, so that a load that rises is met before its first second is over.
pub const TICK: Duration = Duration::from_millis(500);
/// Length of a cycle, in which a probe has one window. Budgets are held in every second, so it is little longer than that as long as the
/// window is what costs.
const CYCLE: Duration = Duration::from_millis(1250);
/// Share of a cycle by which the place of a window may differ from that of the one before: a second lies between their beginnings at least (but
/// for the longest windows: nearly a second).
const DRIFT: f64 = 0.2;
/// Share of a cycle below which windows are not made shorter but rarer: attaching costs more than they do.
const LEAST_SHARE_LOG2: u64 = 7;
/// The greatest smaller share of the time that is worth a window: one that is half of the time saves as much as attaching takes.
pub const MIN_DUTY_LOG2: u64 = 2;

/// Length of the cycle of a probe that is attached for 1/2^`duty_log2` of the time.
pub fn cycle(duty_log2: u64) -> Duration {
    CYCLE * (1 << duty_log2.saturating_sub(LEAST_SHARE_LOG2))
}

/// Least time between the beginnings of two windows of such a probe.
pub fn least_gap(duty_log2: u64) -> Duration {
    cycle(duty_log2).mul_f64(1.0 - DRIFT)
}

/// By how many places a window may lie before or after the one before: by one at least, or it would never move.
fn reach(places: u32) -> u32 {
    ((f64::from(places) * DRIFT) as u32).max(1)
}

/// The place of a window among `places` that would lie at `place`, which may be outside: then it is reflected. As many ways lead to a place as
/// from it, so that all are equally likely for ever if they were for the first window.
fn reflected(place: i64, places: u32) -> u32 {
    let last = i64::from(places) - 1;
    let inside = if place < 0 {
        -1 - place
    } else if place > last {
        2 * last + 1 - place
    } else {
        place
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
    /// It is attached `delay` from now, for `length`, and then not again in this cycle.
    Window {
        /// Time until it is attached.
        delay: Duration,
        /// Time for which it is.
        length: Duration,
    },
    /// It is not attached in this cycle: it was for too long in those before.
    Rest,
}

/// How long a probe was watched, against how long it should have been.
#[derive(Clone, Copy, Debug, Default)]
pub struct Windows {
    /// When the last window was planned.
    planned: Option<Instant>,
    /// For which share of the time, as a negative power of two, and its place in the cycle.
    place: Option<(u64, u32)>,
    /// Seconds that it was watched too little; less than zero when too long.
    owed_seconds: f64,
}

impl Windows {
    /// Plans what begins `now`: a cycle when the probe has a share of the time, the time until the setting changes otherwise.
    pub fn plan(&mut self, setting: &Setting, now: Instant) -> Plan {
        let planned = self.planned.take();
        if setting.detached || setting.duty_log2 == 0 {
            *self = Self::default();
            return if setting.detached { Plan::Never } else { Plan::Always };
        }
        let (cycle, share) = (cycle(setting.duty_log2), (-(setting.duty_log2 as f64)).exp2());
        let places = 1 << setting.duty_log2;
        let place = match self.place {
            Some((duty_log2, place)) if duty_log2 == setting.duty_log2 => {
                let reach = i64::from(reach(places));
                reflected(i64::from(place) + fastrand::i64(-reach..=reach), places)
            }
            Some((duty_log2, _)) => {
                // What is owed is owed for a time that is to be watched for another share now.
                self.owed_seconds *= share * (duty_log2 as f64).exp2();
                fastrand::u32(0..places)
            }
            None => fastrand::u32(0..places),
        };
        self.place = Some((setting.duty_log2, place));
        // The first window is for the cycle to come, each next one for the time since the last was planned.
        let passed = planned.map_or(cycle, |planned| now - planned);
        self.planned = Some(now);
        let most = cycle.as_secs_f64();
        self.owed_seconds = (self.owed_seconds + passed.as_secs_f64() * share).clamp(-most, most);
        // Half a window costs as much to attach for as a whole one.
        if self.owed_seconds < most * share / 2.0 {
            return Plan::Rest;
        }
        let length = Duration::from_secs_f64(self.owed_seconds);
        let delay = cycle / places * place;
        Plan::Window { delay: delay.min(cycle - length), length }
    }

    /// The probe was attached for so long in the cycle that was planned last.
    pub fn watched(&mut self, length: Duration) {
        self.owed_seconds -= length.as_secs_f64();
    }
}

#[cfg(test)]
mod tests {
    use siskin_ebpf::Probe;

    use super::*;

    fn setting(duty_log2: u64) -> Setting {
        Setting { probe: Probe::Udp, period_log2: 0, duty_log2, detached: false }
    }

    /// Runs cycles of which every n-th attach takes `late` and that all last `longer`, and returns the share of the time that was watched.
    fn watched(cycles: u32, duty_log2: u64, every: u32, late: Duration, longer: Duration) -> f64 {
        let (mut windows, begin) = (Windows::default(), Instant::now());
        let (mut now, mut watched) = (begin, Duration::ZERO);
        for number in 0..cycles {
            let (delay, length) = match windows.plan(&setting(duty_log2), now) {
                Plan::Window { delay, length } => (delay, length),
                Plan::Rest => {
                    now += cycle(duty_log2);
                    continue;
                }
                plan => panic!("a share of the time is not {plan:?}"),
            };
            assert!(delay + length <= cycle(duty_log2));
            let late = if number % every == 0 { late } else { Duration::ZERO };
            // Whoever sleeps wakes a little later.
            let length = length + longer;
            windows.watched(length);
            watched += length;
            now += cycle(duty_log2).max(delay + late + length);
        }
        watched.as_secs_f64() / (now - begin).as_secs_f64()
    }

    #[test]
    fn a_place_near_the_last_one_is_as_likely_as_any_other() {
        for places in [4, 8, 16, 64, 128] {
            let reach = i64::from(reach(places));
            let mut ways = vec![0; places as usize];
            for place in 0..i64::from(places) {
                (-reach..=reach).for_each(|by| ways[reflected(place + by, places) as usize] += 1);
            }
            assert!(ways.iter().all(|ways| *ways == 2 * reach + 1), "{ways:?}");
        }
    }

    #[test]
    fn two_windows_never_begin_within_the_same_second() {
        for duty_log2 in 3..=7 {
            let (mut windows, begin) = (Windows::default(), Instant::now());
            let (mut now, mut last, mut places) = (begin, None, std::collections::HashSet::new());
            for _ in 0..1000 {
                let Plan::Window { delay, length } = windows.plan(&setting(duty_log2), now) else {
                    panic!("no window")
                };
                windows.watched(length);
                let gap = last.map_or(Duration::MAX, |last| now + delay - last);
                assert!(gap >= Duration::from_secs(1) && gap >= least_gap(duty_log2), "{gap:?}");
                places.insert(delay);
                (now, last) = (now + cycle(duty_log2), Some(now + delay));
            }
            assert!(places.len() >= 1 << (duty_log2 - 1), "{} places", places.len());
        }
    }

    #[test]
    fn what_a_window_that_was_cut_is_owed_becomes_as_short_as_the_next_ones() {
        let (mut windows, now) = (Windows::default(), Instant::now());
        let Plan::Window { length, .. } = windows.plan(&setting(4), now) else { panic!("no window") };
        // An alarm ends it at once, and the cycle with it.
        windows.watched(length / 8);
        let Plan::Window { length: next, .. } = windows.plan(&setting(7), now + length) else {
            panic!("no window")
        };
        let cycles = next.as_secs_f64() / (cycle(7).as_secs_f64() / 128.0);
        assert!((0.8..1.1).contains(&cycles), "{cycles} cycles' worth");
    }

    #[test]
    fn a_share_of_the_time_is_that_share_also_when_attaching_is_slow() {
        for (every, late) in [(1, 0), (1, 5), (3, 1100), (1, 700)] {
            let share = watched(400, 3, every, Duration::from_millis(late), Duration::from_micros(300));
            assert!((share * 8.0 - 1.0).abs() < 0.02, "{share} instead of 0.125, {late} ms late");
        }
    }

    #[test]
    fn a_window_that_always_ends_late_comes_less_often() {
        for duty_log2 in [6, 8] {
            let share = watched(4000, duty_log2, 1, Duration::ZERO, Duration::from_millis(20));
            let times = share * (duty_log2 as f64).exp2();
            assert!((times - 1.0).abs() < 0.02, "{times} times what it should be");
        }
    }

    #[test]
    fn all_of_the_time_and_none_of_it_need_no_window() {
        let mut windows = Windows::default();
        assert_eq!(windows.plan(&setting(0), Instant::now()), Plan::Always);
        let detached = Setting { detached: true, ..setting(3) };
        assert_eq!(windows.plan(&detached, Instant::now()), Plan::Never);
    }
}
