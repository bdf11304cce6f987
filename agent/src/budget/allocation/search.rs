//! The search for the settings with the least objective that fit, as the formulas of
//! [`allocation`](super) say.

use siskin_ebpf::MAX_PERIOD;

use super::{Demand, MAX_DUTY, MIN_DUTY, SLICE, Setting, attach_cores, cost_cores, objective, total_cores};

/// Share of the budget below which a probe stays exact: shedding it saves next to nothing.
pub const PROTECTED_SHARE: f64 = 0.02;
/// Share of the budget that shedding a probe further must save: a longer period that saves less
/// only makes its estimates worse.
pub const LEAST_SAVING_SHARE: f64 = 1e-3;
/// Prices are 2^(step/4): from one to the next a period grows by 9%.
const STEPS_PER_DOUBLING: f64 = 4.0;
/// From a price at which every period is as short as can be to one at which it is as long.
const PRICE_STEPS: (i32, i32) = (-160, 320);
/// Steps that are tried below and above the lowest price at which everything fits.
const NEAR_STEPS: (i32, i32) = (6, 12);

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
    let period = MAX_PERIOD / (MAX_DUTY * demand.periods);
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
    let window_loss = worth * demand.window_factor(demand.periods);
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
    let period = nearest(weight / (duty as f64 * periods), 1, MAX_PERIOD / (duty * demand.periods));
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
pub fn with_period(demand: &Demand, setting: &Setting, cores: f64) -> Option<Setting> {
    let attached_cores = (cores - attach_cores(demand, setting)) * setting.parts();
    let sample_cores = attached_cores - demand.skip_cores;
    let period = (demand.sample_cores / sample_cores).ceil().max(1.0);
    let allowed = sample_cores > 0.0 && period <= (MAX_PERIOD / (setting.duty * setting.periods)) as f64;
    allowed.then_some(Setting { period: period as u64, ..*setting })
}

/// The setting with the least duty that costs at most `cores`.
fn with_duty(demand: &Demand, setting: &Setting, cores: f64) -> Option<Setting> {
    let attached = demand.skip_cores + demand.sample_cores / setting.period as f64;
    let window_cores = cores - attach_cores(demand, setting);
    let duty = (attached / window_cores / setting.periods as f64).ceil().max(MIN_DUTY as f64);
    let most = MAX_DUTY.min(MAX_PERIOD / (setting.period * setting.periods));
    let allowed = setting.duty > 1 && window_cores > 0.0 && duty <= most as f64;
    allowed.then_some(Setting { duty: duty as u64, ..*setting })
}
