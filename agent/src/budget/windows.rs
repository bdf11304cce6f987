//! When in a tick a probe is attached that may be attached for a share of the time only. Pure, but for the draw.
//!
//! A tick is cut into D windows of the same length, and one of them is drawn: every moment is watched with probability 1/D.
//! Attaching and detaching take time of their own, so a window is as long as it turned out; what it was too long or too
//! short is made up for by the next one.

use std::{collections::HashMap, time::Duration};

use siskin_ebpf::Probe;
use tokio::time::Instant;

use super::controller::Setting;

/// Length of a tick: half a second, so that a load that rises is met before its first second is over.
pub const TICK: Duration = Duration::from_millis(500);

/// Something to attach or to detach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// When.
    pub at: Instant,
    /// What.
    pub probe: Probe,
    /// The share of the time for which it is attached from then on, as a negative power of two; `None` to detach.
    pub duty_log2: Option<u64>,
    /// How long it then stays attached; for ever without.
    window: Option<Duration>,
}

/// What is attached, and what is to change.
#[derive(Debug, Default)]
pub struct Windows {
    switches: Vec<Switch>,
    detached: Vec<Probe>,
    opened: HashMap<usize, Instant>,
    /// Seconds by which a probe was watched too long; less than zero when too short.
    owed_seconds: HashMap<usize, f64>,
}

impl Windows {
    /// Plans a probe's tick.
    pub fn plan(&mut self, setting: &Setting, now: Instant) {
        let Setting { probe, duty_log2, detached, .. } = *setting;
        let is_detached = self.detached.contains(&probe);
        let mut push = |at, duty_log2, window| self.switches.push(Switch { at, probe, duty_log2, window });
        if detached || duty_log2 > 0 {
            if !is_detached {
                push(now, None, None);
            }
        } else if is_detached {
            push(now, Some(0), None);
        }
        if !detached && duty_log2 > 0 {
            let length = TICK / (1 << duty_log2);
            let begin = now + length * fastrand::u32(0..1 << duty_log2);
            push(begin, Some(duty_log2), Some(length));
        }
    }

    /// Takes the next switch out.
    pub fn take_next(&mut self) -> Option<Switch> {
        let (index, _) = self.switches.iter().enumerate().min_by_key(|(_, switch)| switch.at)?;
        Some(self.switches.swap_remove(index))
    }

    /// A switch was made at `now`, or was not. A window's end is planned when it has begun.
    pub fn done(&mut self, switch: &Switch, worked: bool, now: Instant) {
        let index = switch.probe as usize;
        if !worked {
            return;
        }
        if switch.duty_log2.is_none() {
            self.detached.push(switch.probe);
            if let (Some(opened), Some(length)) = (self.opened.remove(&index), switch.window) {
                let too_long = (now - opened).as_secs_f64() - length.as_secs_f64();
                self.owed_seconds.insert(index, too_long.clamp(-1.0, 1.0));
            }
            return;
        }
        self.detached.retain(|probe| *probe != switch.probe);
        if let Some(length) = switch.window {
            self.opened.insert(index, now);
            let owed = self.owed_seconds.remove(&index).unwrap_or(0.0);
            let length = Duration::from_secs_f64((length.as_secs_f64() - owed).max(0.0));
            let end = Switch { at: now + length, probe: switch.probe, duty_log2: None, window: Some(length) };
            self.switches.push(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(duty_log2: u64) -> Setting {
        Setting { probe: Probe::Udp, period_log2: 0, duty_log2, detached: false }
    }

    /// Runs ticks in which every switch takes `late`, and returns the seconds attached.
    fn attached(ticks: u32, duty_log2: u64, late: Duration) -> f64 {
        let (mut windows, begin) = (Windows::default(), Instant::now());
        let (mut since, mut seconds) = (None, 0.0);
        for tick in 0..ticks {
            windows.plan(&setting(duty_log2), begin + TICK * tick);
            while let Some(switch) = windows.take_next() {
                let now = switch.at + late;
                match (switch.duty_log2, since) {
                    (Some(_), None) => since = Some(now),
                    (None, Some(opened)) => {
                        seconds += (now - opened).as_secs_f64();
                        since = None;
                    }
                    _ => {}
                }
                windows.done(&switch, true, now);
            }
        }
        seconds
    }

    #[test]
    fn a_share_of_the_time_is_that_share_also_when_switching_is_slow() {
        for late in [Duration::ZERO, Duration::from_millis(5)] {
            let seconds = attached(200, 3, late);
            let share = TICK.as_secs_f64() * 200.0 / 8.0;
            assert!((seconds - share).abs() < 0.05, "{seconds} of {share} s, {late:?} late");
        }
    }

    #[test]
    fn all_of_the_time_needs_no_switch_and_none_of_it_one() {
        let mut windows = Windows::default();
        windows.plan(&setting(0), Instant::now());
        assert_eq!(windows.take_next(), None);
        windows.plan(&Setting { detached: true, ..setting(0) }, Instant::now());
        let switch = windows.take_next().expect("it is detached");
        assert_eq!(switch.duty_log2, None);
        windows.done(&switch, false, Instant::now());
        windows.plan(&Setting { detached: true, ..setting(0) }, Instant::now());
        assert!(windows.take_next().is_some(), "what did not work is tried again");
    }
}
