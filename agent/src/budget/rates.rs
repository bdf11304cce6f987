//! What the programs are told for a tick: how they sample, and what bounds a burst until the tick is over. Pure.

use siskin_ebpf::Rate;

use super::{
    controller::{Cost, LEAST_HOT, Load, Setting, TARGET},
    share,
    windows::{TICK, cycle},
};

/// What a full run is taken to cost before one was measured.
pub const FULL_RUN_SECONDS: f64 = 500e-9;
/// A CPU may always take this many events of a program per tick before it doubles its period.
const LEAST_ALLOWANCE: f64 = 32.0;
/// A load that grew by no more than this since the last tick was planned for.
const GROWTH: f64 = 1.0 / TARGET;
/// What is left of the budget is enough for so many programs on every CPU that spend all of it within a tick: they rarely all do.
pub const SPENDERS: f64 = 2.0;

/// How a probe samples in a tick that is like the last one, which cost as given.
pub fn rate(setting: &Setting, cost: &Cost, budget_cores: f64, cpus: f64) -> Rate {
    let load = cost.loads.iter().find(|load| load.probe == setting.probe);
    let rest_seconds = (budget_cores * TARGET - cost.fixed_cores).max(0.0) * TICK.as_secs_f64();
    let event_seconds = load.map_or(FULL_RUN_SECONDS, |load| load.event_seconds);
    let allowance = (rest_seconds / event_seconds / cpus / SPENDERS).max(LEAST_ALLOWANCE);
    let least_seconds = budget_cores * LEAST_HOT * TICK.as_secs_f64();
    let alarm_seconds = rest_seconds.max(least_seconds) / cpus / SPENDERS;
    Rate {
        period_log2: setting.period_log2,
        // 0 is no limit.
        allowance: if allowance.is_finite() { allowance as u64 } else { 0 },
        alarm_runs: alarm_runs(setting, load, cost.run_seconds, alarm_seconds),
        ..Rate::default()
    }
}

/// How often a program of a probe may run on one CPU within a tick: as often as costs `seconds`, or more often than the busiest one did in the
/// last, whatever CPU that was on; of a probe with windows, in one of them. 0 is no limit.
fn alarm_runs(setting: &Setting, load: Option<&Load>, run_seconds: f64, seconds: f64) -> u64 {
    let window = cycle(setting.duty_log2).as_secs_f64() * share(setting.duty_log2);
    let attached_seconds = TICK.as_secs_f64().min(window);
    let share = share(setting.period_log2);
    let (runs, of_run) =
        load.filter(|load| load.runs > 0.0).map_or((0.0, FULL_RUN_SECONDS * share), |load| {
            (load.most_runs * attached_seconds, load.events / load.runs * share * load.event_seconds)
        });
    let runs = (seconds / (run_seconds + of_run)).max(runs * GROWTH);
    if runs.is_finite() { runs as u64 + 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use siskin_ebpf::Probe;

    use super::*;

    #[test]
    fn a_load_that_stays_rings_no_alarm_and_one_that_comes_does() {
        let setting = Setting { probe: Probe::Udp, period_log2: 0, duty_log2: 0, detached: false };
        let load = |runs| Load {
            probe: Probe::Udp,
            runs: 2.0 * runs,
            most_runs: runs,
            events: 2.0 * runs,
            event_seconds: 300e-9,
            worth: 1.0,
            switch_seconds: 5e-4,
        };
        let runs = |load: &Load| alarm_runs(&setting, Some(load), 100e-9, 1e-3);
        // A millisecond is 2,500 runs that are taken.
        assert_eq!(runs(&load(10.0)), 2501);
        // 10,000 runs in half a second may all have been on one CPU.
        assert_eq!(runs(&load(20_000.0)), 12_501);
        assert_eq!(alarm_runs(&setting, None, 100e-9, f64::INFINITY), 0, "without a budget");
        // A window of a 64th of a cycle.
        let windows = Setting { duty_log2: 6, ..setting };
        let runs = 10_000.0 / cycle(6).as_secs_f64() * 64.0;
        assert_eq!(alarm_runs(&windows, Some(&load(runs)), 100e-9, 0.0), 12_501);
    }
}
