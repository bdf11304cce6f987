//! Allocation: how each probe samples, so that all estimates are best for what they cost. Pure.
//!
//! A probe is **exact**, **sampled** (attached all the time; one event in N is sampled) or
//! **duty-cycled** (attached for one window of C/D in each duty period C, or in one of M of them;
//! one event in N of a window is sampled). Let e be its events per second, R the cores for skipping
//! them all, E the cores that sampling them all adds, and S the CPU seconds of attaching and detaching. It costs
//!
//! ```text
//! c = (R + E/N) / (D M)  +  S/(M C)                       (the latter only if D > 1)
//! ```
//!
//! cores, and its total over the horizon T has the relative variance
//!
//! ```text
//! v = (N D M - 1) / (e T)  +  k (1 - 1/(D M)) (1 + W D/C),    k = window variance x M C/T
//! ```
//!
//! The first term is the variance of independent draws. The second is that of one window per
//! stratum of length C (Cochran, Sampling Techniques, ch. 5); a window that is not much longer than
//! W, a time slice of the scheduler, varies more.
//!
//! The sum of w v, with w for worth, is minimised while the sum of c is at most what the probes may
//! cost: optimum allocation (Cochran, 5.5), with a price p per core as the Lagrange multiplier. At
//! a given price each probe minimises w v + p c on its own. Where the derivatives are zero,
//!
//! ```text
//! N D M = sqrt(p E e T / w),    D M = sqrt((p R - w k) / (w k W/(M C)))
//! ```
//!
//! or, where that makes N less than 1: N = 1,
//! D M = sqrt((p (R + E) - w k) / (w / (e T) + w k W/(M C))).
//!
//! Three modes for n probes make 3^n combinations, few enough to try all. Each is a convex problem:
//! bisection finds the lowest price at which everything fits. N and D are whole numbers, so much is
//! left unspent where they are small. Therefore, at each price near that one, each probe in turn
//! spends what the others leave. Prices are those of a fixed scale: the candidates depend on the
//! demands alone, and the best that fits does not get worse when there is more to spend.

use std::time::Duration;

use siskin_ebpf::Probe;

mod search;
mod settle;

pub use search::{LEAST_SAVING_SHARE, PROTECTED_SHARE, allocate};
pub use settle::{DUTY_STEP, KEPT_OBJECTIVE, settle};

/// Time over which the error of a total counts.
pub const HORIZON: Duration = Duration::from_secs(10);
/// Duty period: a duty-cycled probe is attached for one window in each.
pub const DUTY_PERIOD: Duration = Duration::from_millis(1250);
/// Least duty of a duty-cycled probe: attaching costs about what a longer window would save.
pub const MIN_DUTY: u64 = 4;
/// Greatest duty: 1/D of a duty period is a window of 5 ms.
pub const MAX_DUTY: u64 = 256;
/// Relative variance of a window's estimate of its duty period, until it is measured.
pub const PRIOR_WINDOW_VARIANCE: f64 = 0.1;
/// Most duty periods of which one has a window: with five seconds between two windows an estimate
/// over ten has nearly no ground left.
pub const MAX_PERIODS: u64 = 4;
/// The part of what probes may cost that attaching may take, with windows in every duty period:
/// else there is nothing left to see something with, and no debt is ever repaid.
const ATTACH_SHARE: f64 = 0.5;
/// The same while windows are rarer already.
const KEPT_ATTACH_SHARE: f64 = 0.4;
const HORIZON_SECONDS: f64 = HORIZON.as_millis() as f64 / 1e3;
const DUTY_PERIOD_SECONDS: f64 = DUTY_PERIOD.as_millis() as f64 / 1e3;
/// Time slice of the scheduler, as a share of the duty period: W/C.
const SLICE: f64 = 0.01 / DUTY_PERIOD_SECONDS;

/// What a probe was asked to do, scaled to a probe that is attached all the time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Demand {
    /// The probe.
    pub probe: Probe,
    /// Events per second of the program that has most: what the estimate is about.
    pub events_per_second: f64,
    /// Cores that running its programs costs when every event is skipped.
    pub skip_cores: f64,
    /// Cores that sampling every event adds to that.
    pub sample_cores: f64,
    /// CPU seconds of attaching and detaching for one window; infinite if it cannot be detached.
    pub attach_seconds: f64,
    /// Relative variance of a window's estimate of its duty period.
    pub window_variance: f64,
    /// M: a window would open in one of so many duty periods.
    pub periods: u64,
    /// Worth of its estimates beside those of other probes.
    pub worth: f64,
}

impl Demand {
    /// Worth of its estimates at this load. Programs may run for other things than the probe's
    /// events; without events there is nothing to estimate, and nothing to take from other probes.
    fn effective_worth(&self) -> f64 {
        self.worth * self.events_per_second / (self.events_per_second + 1.0)
    }

    /// Events within the horizon, e T. At least one, so that errors relative to next to nothing do
    /// not outweigh the others.
    fn events(&self) -> f64 {
        (self.events_per_second * HORIZON_SECONDS).max(1.0)
    }

    /// k of the formulas, with a window in one of so many duty periods.
    fn window_factor(&self, periods: u64) -> f64 {
        self.window_variance * periods as f64 * DUTY_PERIOD_SECONDS / HORIZON_SECONDS
    }

    /// Its part of the objective.
    fn loss(&self, setting: &Setting) -> f64 {
        let worth = self.effective_worth();
        if worth > 0.0 { worth * relative_variance(self, setting) } else { 0.0 }
    }
}

/// How a probe samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The probe.
    pub probe: Probe,
    /// Sampling period N: one event in N is sampled. At least 1.
    pub period: u64,
    /// Duty D: the probe is attached for 1/D of a duty period. 1 is all of the time.
    pub duty: u64,
    /// M: a window opens in one of so many duty periods.
    pub periods: u64,
    /// Whether it is detached because there is no budget at all.
    pub detached: bool,
}

impl Setting {
    /// Every event is sampled.
    pub const fn exact(probe: Probe) -> Self {
        Self { probe, period: 1, duty: 1, periods: 1, detached: false }
    }

    fn is_exact(&self) -> bool {
        *self == Self::exact(self.probe)
    }

    /// Events that a sampled one stands for.
    fn weight(&self) -> f64 {
        self.period as f64 * self.parts()
    }

    /// D M: it is attached for one part in so many of the time.
    pub fn parts(&self) -> f64 {
        (self.duty * self.periods) as f64
    }
}

/// Cores that a probe costs with a setting.
pub fn cost_cores(demand: &Demand, setting: &Setting) -> f64 {
    if setting.detached {
        return 0.0;
    }
    let attached = demand.skip_cores + demand.sample_cores / setting.period as f64;
    attached / setting.parts() + attach_cores(demand, setting)
}

/// Cores that attaching and detaching costs.
fn attach_cores(demand: &Demand, setting: &Setting) -> f64 {
    let seconds = setting.periods as f64 * DUTY_PERIOD_SECONDS;
    if setting.duty > 1 { demand.attach_seconds / seconds } else { 0.0 }
}

/// Relative variance of a probe's totals over [`HORIZON`]; infinite if it is detached.
pub fn relative_variance(demand: &Demand, setting: &Setting) -> f64 {
    if setting.detached {
        return f64::INFINITY;
    }
    let draws = (setting.weight() - 1.0) / demand.events();
    draws
        + demand.window_factor(setting.periods)
            * (1.0 - 1.0 / setting.parts())
            * (1.0 + SLICE * setting.duty as f64)
}

/// In how many duty periods a window opens, of the settings that `allocate` gives for each number:
/// attaching takes no more than a part of what may be spent then, `room_cores`. It stays as it is
/// while that is nearly enough.
pub fn rare_enough(
    current: u64,
    room_cores: f64,
    mut allocate: impl FnMut(u64) -> Vec<(Demand, Setting)>,
) -> u64 {
    let mut periods = 1;
    loop {
        let attach: f64 =
            allocate(periods).iter().map(|(demand, setting)| attach_cores(demand, setting)).sum();
        let share = if periods < current { KEPT_ATTACH_SHARE } else { ATTACH_SHARE };
        if attach <= share * room_cores || periods >= MAX_PERIODS {
            return periods;
        }
        periods *= 2;
    }
}

/// Sum of effective worth x relative variance: what allocation minimises.
pub fn objective(demands: &[Demand], settings: &[Setting]) -> f64 {
    demands.iter().zip(settings).map(|(demand, setting)| demand.loss(setting)).sum()
}

fn total_cores(demands: &[Demand], settings: &[Setting]) -> f64 {
    demands.iter().zip(settings).map(|(demand, setting)| cost_cores(demand, setting)).sum()
}
