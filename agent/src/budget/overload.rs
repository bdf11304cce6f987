//! What the programs are told for a tick: how they sample, and what bounds a burst until the tick
//! is over. Pure.

use siskin_ebpf::Rate;

use super::{
    TICK,
    allocation::{Demand, Setting},
    duty::window,
};

/// What the work on an event is taken to cost before it was measured, run included.
const FULL_RUN_SECONDS: f64 = 600e-9;
/// A CPU may always sample this many events of a program per tick before its period becomes longer.
const LEAST_ALLOWANCE: f64 = 32.0;
/// A load that grew by no more than this since the last tick was planned for.
const GROWTH: f64 = 1.25;
/// Programs on every CPU that may spend their share at the same time: two of a probe usually do. As
/// much again is left for the time until somebody comes who was notified.
const SPENDERS: f64 = 4.0;
/// What may be spent is cut into no more shares: a notification costs something by itself, and of
/// many CPUs few are busy with a probe.
const MOST_SHARES: f64 = 16.0;
/// The part of its share at which a program notifies. Its allowance is the whole share, so on a
/// machine that is not too busy the share is renewed before anything is skipped.
const NOTIFIED: f64 = 0.7;

/// What a probe was asked to do, scaled to a probe that is attached all the time.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// As the allocation wants it.
    pub demand: Demand,
    /// Runs of its programs per second.
    pub runs: f64,
    /// Runs per second of the one of them that ran most.
    pub most_runs: f64,
}

/// How a probe samples in a tick in which `available_seconds` of CPU may be spent. `is_planned`
/// when the setting was chosen for that load: as much of it is no overload then.
pub fn rate(
    setting: &Setting,
    load: Option<&Load>,
    is_planned: bool,
    available_seconds: f64,
    cpus: f64,
) -> Rate {
    let share_seconds = available_seconds / (cpus * SPENDERS).min(MOST_SHARES);
    let period = setting.period as f64;
    // Of the events on one CPU, if the busiest program has them all there.
    let attached_seconds = TICK.min(window(setting.duty)).as_secs_f64();
    let (expected_runs, expected_events) = load.filter(|_| is_planned).map_or((0.0, 0.0), |load| {
        let runs = load.most_runs * attached_seconds * GROWTH;
        (runs, load.demand.events_per_second * attached_seconds * GROWTH / period)
    });
    let run_seconds = load.filter(|load| load.runs > 0.0).map_or(FULL_RUN_SECONDS / period, |load| {
        (load.demand.skip_cores + load.demand.sample_cores / period) / load.runs
    });
    let event_seconds = load
        .filter(|load| load.demand.events_per_second > 0.0)
        .map_or(FULL_RUN_SECONDS, |load| load.demand.sample_cores / load.demand.events_per_second);
    Rate {
        period: setting.period,
        allowance: whole((share_seconds / event_seconds).max(expected_events).max(LEAST_ALLOWANCE)),
        overload_runs: whole((NOTIFIED * share_seconds / run_seconds).max(expected_runs)),
        ..Rate::default()
    }
}

/// A limit as the programs take it: 0 is none.
fn whole(limit: f64) -> u64 {
    if limit.is_finite() { limit as u64 + 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use siskin_ebpf::Probe;

    use super::*;

    fn load(runs: f64) -> Load {
        let demand = Demand {
            probe: Probe::Udp,
            events_per_second: runs,
            skip_cores: 2.0 * runs * 100e-9,
            sample_cores: 2.0 * runs * 300e-9,
            attach_seconds: 5e-4,
            window_variance: 0.1,
            periods: 1,
            worth: 1.0,
        };
        Load { demand, runs: 2.0 * runs, most_runs: runs }
    }

    #[test]
    fn a_load_that_stays_notifies_nobody_and_one_that_comes_does() {
        let setting = Setting::exact(Probe::Udp);
        let runs = |load: &Load| rate(&setting, Some(load), true, 8e-3, 2.0).overload_runs;
        // A millisecond for each of four programs on two CPUs is 2,500 runs.
        assert_eq!(runs(&load(10.0)), 1751);
        assert_eq!(rate(&setting, Some(&load(20_000.0)), false, 8e-3, 2.0).overload_runs, 1751);
        // 10,000 runs in half a second may all have been on one CPU.
        assert_eq!(runs(&load(20_000.0)), 12_501);
        assert_eq!(rate(&setting, None, true, f64::INFINITY, 2.0).overload_runs, 0, "without a budget");
        // A window of a 64th of a period.
        let windows = Setting { duty: 64, ..setting };
        let runs = 10_000.0 / window(64).as_secs_f64();
        assert_eq!(rate(&windows, Some(&load(runs)), true, 0.0, 2.0).overload_runs, 12_501);
    }

    #[test]
    fn an_allowance_is_never_below_what_was_planned() {
        let setting = Setting { period: 3, ..Setting::exact(Probe::Udp) };
        let allowance = rate(&setting, Some(&load(60_000.0)), true, 0.0, 2.0).allowance;
        assert!(allowance >= 12_500, "{allowance}");
        assert_eq!(rate(&setting, None, true, 0.0, 2.0).allowance, LEAST_ALLOWANCE as u64 + 1);
    }
}
