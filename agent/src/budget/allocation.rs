//! Allocation: how each probe samples, so that all estimates are best for what they cost. Pure.
//!
//! A probe is **exact**, **sampled** (attached all the time; one event in N is sampled) or
//! **duty-cycled** (attached for one window of C/D in each duty period C, or in one of M of them;
//! one event in N of a window is sampled). Let e be its events per second, R the cores for skipping them all, E the
//! cores that sampling them all adds, and S the CPU seconds of attaching and detaching. It costs
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

use siskin_ebpf::{MAX_PERIOD, Probe};

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
/// Share of the budget below which a probe stays exact: shedding it saves next to nothing.
pub const PROTECTED_SHARE: f64 = 0.02;
/// Share of the budget that shedding a probe further must save: a longer period that saves less
/// only makes its estimates worse.
pub const LEAST_SAVING_SHARE: f64 = 1e-3;
/// Settings are kept while their objective is at most this many times that of the wanted ones.
pub const KEPT_OBJECTIVE: f64 = 1.15;
/// Most duty periods of which one has a window: with five seconds between two windows an estimate
/// over ten has nearly no ground left.
pub const MAX_PERIODS: u64 = 4;
/// The part of what probes may cost that attaching may take, with windows in every duty period:
/// else there is nothing left to see something with, and no debt is ever repaid.
const ATTACH_SHARE: f64 = 0.5;
/// The same while windows are rarer already.
const KEPT_ATTACH_SHARE: f64 = 0.4;
/// Ratio of two duties, or of two weights N D, from which it is worth starting a new duty cycle.
pub const DUTY_STEP: f64 = 1.2;

const HORIZON_SECONDS: f64 = HORIZON.as_millis() as f64 / 1e3;
const DUTY_PERIOD_SECONDS: f64 = DUTY_PERIOD.as_millis() as f64 / 1e3;
/// Time slice of the scheduler, as a share of the duty period: W/C.
const SLICE: f64 = 0.01 / DUTY_PERIOD_SECONDS;

/// Prices are 2^(step/4): from one to the next a period grows by 9%.
const STEPS_PER_DOUBLING: f64 = 4.0;
/// From a price at which every period is as short as can be to one at which it is as long.
const PRICE_STEPS: (i32, i32) = (-160, 320);
/// Steps that are tried below and above the lowest price at which everything fits.
const NEAR_STEPS: (i32, i32) = (6, 12);

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

    /// k of the formulas.
    fn window_factor(&self) -> f64 {
        self.window_variance * self.periods as f64 * DUTY_PERIOD_SECONDS / HORIZON_SECONDS
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
    draws + demand.window_factor() * (1.0 - 1.0 / setting.parts()) * (1.0 + SLICE * setting.duty as f64)
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

/// Returns how each probe samples, in the order of `demands`: the settings with the least objective
/// that cost at most `spend_cores`, or the cheapest if none fit. A probe that costs less than
/// [`PROTECTED_SHARE`] of `budget_cores`, the whole budget, is never shed.
pub fn allocate(demands: &[Demand], spend_cores: f64, budget_cores: f64) -> Vec<Setting> {
    let mut settings: Vec<_> = demands.iter().map(|demand| Setting::exact(demand.probe)).collect();
    if budget_cores <= 0.0 {
        settings.iter_mut().for_each(|setting| setting.detached = true);
        return settings;
    }
    if total_cores(demands, &settings) <= spend_cores {
        return settings;
    }
    let mut searched = Vec::new();
    for (index, demand) in demands.iter().enumerate() {
        if cost_cores(demand, &settings[index]) >= PROTECTED_SHARE * budget_cores {
            settings[index] = cheapest(demand, LEAST_SAVING_SHARE * budget_cores);
            if demand.effective_worth() > 0.0 {
                searched.push((index, MODES[0]));
            }
        }
    }
    if total_cores(demands, &settings) > spend_cores {
        return settings;
    }
    let least = objective(demands, &settings);
    let mut search = Search { demands, spend_cores, modes: searched, least, settings };
    for combination in 0..MODES.len().pow(search.modes.len() as u32) {
        let mut rest = combination;
        for (_, mode) in &mut search.modes {
            *mode = MODES[rest % MODES.len()];
            rest /= MODES.len();
        }
        search.try_modes();
    }
    search.settings
}

/// The cheapest setting of a probe, without what saves less than `least_saving` cores.
fn cheapest(demand: &Demand, least_saving: f64) -> Setting {
    let exact = Setting::exact(demand.probe);
    let sampled = Setting { period: MAX_PERIOD, ..exact };
    let period = MAX_PERIOD / MAX_DUTY;
    let duty_cycled = Setting { period, duty: MAX_DUTY, periods: demand.periods, ..exact };
    let cheapest = [sampled, duty_cycled].into_iter().fold(exact, |cheapest, setting| {
        let saving = cost_cores(demand, &cheapest) - cost_cores(demand, &setting);
        if saving > least_saving { setting } else { cheapest }
    });
    let cores = cost_cores(demand, &cheapest) + least_saving;
    with_period(demand, &cheapest, cores).unwrap_or(cheapest)
}

/// A way to sample, as its best setting at a price per core.
type Mode = fn(&Demand, f64) -> Setting;

const MODES: [Mode; 3] = [exact, sampled, duty_cycled];

/// The search for the best settings.
struct Search<'a> {
    demands: &'a [Demand],
    spend_cores: f64,
    /// Indexes of the probes whose settings are searched, and the modes to try next.
    modes: Vec<(usize, Mode)>,
    /// The best settings so far.
    settings: Vec<Setting>,
    /// Their objective.
    least: f64,
}

impl Search<'_> {
    /// Tries the settings near the best price for these modes.
    fn try_modes(&mut self) {
        let mut settings = self.settings.clone();
        let (mut low, mut high) = PRICE_STEPS;
        self.set_price(low, &mut settings);
        if objective(self.demands, &settings) >= self.least {
            return;
        }
        self.set_price(high, &mut settings);
        if total_cores(self.demands, &settings) > self.spend_cores {
            return;
        }
        while high - low > 1 {
            let middle = (low + high) / 2;
            self.set_price(middle, &mut settings);
            let fits = total_cores(self.demands, &settings) <= self.spend_cores;
            if fits { high = middle } else { low = middle }
        }
        for step in high - NEAR_STEPS.0..=high + NEAR_STEPS.1 {
            self.set_price(step, &mut settings);
            self.offer(&settings);
            self.spend_rest(&mut settings);
        }
    }

    /// Gives each probe its best setting at a price.
    fn set_price(&self, step: i32, settings: &mut [Setting]) {
        let price = (f64::from(step) / STEPS_PER_DOUBLING).exp2();
        for (index, mode) in &self.modes {
            settings[*index] = mode(&self.demands[*index], price);
        }
    }

    /// Has each probe in turn spend what the others leave, by its period or by its duty.
    fn spend_rest(&mut self, settings: &mut [Setting]) {
        let total = total_cores(self.demands, settings);
        let objective = objective(self.demands, settings);
        for number in 0..self.modes.len() {
            let index = self.modes[number].0;
            let (demand, own) = (&self.demands[index], settings[index]);
            if objective - demand.loss(&own) >= self.least {
                continue;
            }
            let cores = self.spend_cores - (total - cost_cores(demand, &own));
            let spent = [with_period(demand, &own, cores), with_duty(demand, &own, cores)];
            for setting in spent.into_iter().flatten() {
                settings[index] = setting;
                self.offer(settings);
            }
            settings[index] = own;
        }
    }

    /// Keeps settings that fit and are better than the best so far.
    fn offer(&mut self, settings: &[Setting]) {
        let objective = objective(self.demands, settings);
        if objective < self.least && total_cores(self.demands, settings) <= self.spend_cores {
            self.least = objective;
            self.settings.copy_from_slice(settings);
        }
    }
}

fn exact(demand: &Demand, _price: f64) -> Setting {
    Setting::exact(demand.probe)
}

/// The best setting of a sampled probe at a price per core.
fn sampled(demand: &Demand, price: f64) -> Setting {
    let weight = best_weight(demand, price);
    Setting { period: nearest(weight, 2, MAX_PERIOD), ..Setting::exact(demand.probe) }
}

/// The best setting of a duty-cycled probe at a price per core.
fn duty_cycled(demand: &Demand, price: f64) -> Setting {
    let worth = demand.effective_worth();
    let window_loss = worth * demand.window_factor();
    let best_parts = |cores: f64, loss: f64| ((price * cores - window_loss) / loss).max(0.0).sqrt();
    let weight = best_weight(demand, price);
    let periods = demand.periods as f64;
    let slice_loss = window_loss * SLICE / periods;
    let mut parts = best_parts(demand.skip_cores, slice_loss);
    if parts > weight {
        let loss = worth / demand.events() + slice_loss;
        parts = best_parts(demand.skip_cores + demand.sample_cores, loss);
    }
    let duty = nearest(parts / periods, MIN_DUTY, MAX_DUTY);
    let period = nearest(weight / (duty as f64 * periods), 1, MAX_PERIOD / duty);
    Setting { period, duty, periods: demand.periods, ..Setting::exact(demand.probe) }
}

/// The best N D M at a price per core.
fn best_weight(demand: &Demand, price: f64) -> f64 {
    (price * demand.sample_cores * demand.events() / demand.effective_worth()).sqrt()
}

fn nearest(value: f64, least: u64, most: u64) -> u64 {
    ((value + 0.5) as u64).clamp(least, most)
}

/// The setting with the shortest period that costs at most `cores`.
fn with_period(demand: &Demand, setting: &Setting, cores: f64) -> Option<Setting> {
    let attached_cores = (cores - attach_cores(demand, setting)) * setting.parts();
    let sample_cores = attached_cores - demand.skip_cores;
    let period = (demand.sample_cores / sample_cores).ceil().max(1.0);
    let allowed = sample_cores > 0.0 && period <= (MAX_PERIOD / setting.duty) as f64;
    allowed.then_some(Setting { period: period as u64, ..*setting })
}

/// The setting with the least duty that costs at most `cores`.
fn with_duty(demand: &Demand, setting: &Setting, cores: f64) -> Option<Setting> {
    let attached = demand.skip_cores + demand.sample_cores / setting.period as f64;
    let window_cores = cores - attach_cores(demand, setting);
    let duty = (attached / window_cores / setting.periods as f64).ceil().max(MIN_DUTY as f64);
    let most = MAX_DUTY.min(MAX_PERIOD / setting.period);
    let allowed = setting.duty > 1 && window_cores > 0.0 && duty <= most as f64;
    allowed.then_some(Setting { duty: duty as u64, ..*setting })
}

/// Returns the settings to use next: the current ones while they fit and are about as good as the
/// wanted ones, so that they keep still while the measured load wobbles; else the wanted ones, at
/// once. Allocate `wanted` for a tenth less than `spend_cores`: what just fits would not fit at the
/// next tick.
pub fn settle(
    current: &[Setting],
    mut wanted: Vec<Setting>,
    demands: &[Demand],
    spend_cores: f64,
) -> Vec<Setting> {
    let same = |(a, b): (&Setting, &Setting)| {
        let is_rarer = a.duty > 1 && b.duty > 1 && a.periods != b.periods;
        a.probe == b.probe && a.detached == b.detached && !is_rarer
    };
    if current.len() != wanted.len() || !current.iter().zip(&wanted).all(same) {
        return wanted;
    }
    // What is changed for one probe alone leaves half of the room that the wanted settings leave.
    let limit = (total_cores(demands, &wanted) + spend_cores) / 2.0;
    let room = |settings: &[Setting], index: usize| {
        limit - (total_cores(demands, settings) - cost_cores(&demands[index], &settings[index]))
    };
    let mut kept = current.to_vec();
    for (index, setting) in wanted.iter().enumerate() {
        if setting.is_exact() && cost_cores(&demands[index], setting) <= room(&kept, index) {
            kept[index] = *setting;
        }
    }
    if total_cores(demands, &kept) <= spend_cores
        && objective(demands, &kept) <= KEPT_OBJECTIVE * objective(demands, &wanted)
    {
        return kept;
    }
    // A change of duty starts a new duty cycle. Instead of a small one the period changes, or,
    // where that does not fit, the duty by more.
    for (index, before) in current.iter().enumerate() {
        let after = wanted[index];
        let (duty, other) = (before.duty as f64, after.duty as f64);
        if before.duty > 1 && duty != other && duty.max(other) < DUTY_STEP * duty.min(other) {
            let room = room(&wanted, index);
            let setting = [before.duty, MAX_DUTY.min((DUTY_STEP * duty).ceil() as u64)]
                .into_iter()
                .filter_map(|duty| with_period(&demands[index], &Setting { duty, ..after }, room))
                .find(|setting| setting.weight() <= DUTY_STEP * after.weight());
            wanted[index] = setting.unwrap_or(after);
        }
    }
    wanted
}
