//! The contract, as a token bucket: over any T seconds the cost is at most the budget times (T + 1
//! s), plus the largest item that cannot be divided. Pure.
//!
//! The bucket holds what the budget gives in one second, and is filled as time passes. What Siskin
//! cost is taken out as it is measured. A burst of events is counted exactly from what was not
//! spent before, and a scrape is paid for in the same way. What cannot be divided, such as a
//! reading, may leave a debt, which is repaid before anything else is bought.

use super::purse::Purse;

/// What the bucket holds at most, in seconds of the budget.
const CAPACITY_SECONDS: f64 = 1.0;
/// The part of the bucket that is kept for what comes unplanned: scrapes, windows, a load that
/// rises.
const RESERVE: f64 = 0.4;
/// Seconds over which the plan spends what the bucket holds more than the reserve, or saves what it
/// holds less.
const HORIZON_SECONDS: f64 = 1.0;
/// The same while probes have windows, which empty the bucket at once and leave it to fill: the
/// plan goes by the mean level.
const WINDOWS_HORIZON_SECONDS: f64 = 4.0;
/// Seconds over which the level is averaged.
const MEAN_SECONDS: f64 = 1.25;
/// The part of the budget that probes may cost also while a debt is repaid: less would save next to
/// nothing, and see nothing.
const LEAST: f64 = 0.05;
/// The part of the bucket that a tick may spend on what has to go on.
const TICK_LEAST: f64 = 0.2;
/// The part of the bucket that one window may cost: two of different probes may come together, and
/// a scrape besides.
const WINDOW: f64 = 0.8;
/// The debt is remembered up to so many times what the bucket can hold: a process that alone costs
/// more than the budget is to be seen, and not to blind the probes for hours after.
const MOST_DEBT: f64 = 10.0;
/// The part of the budget that is next to nothing.
const QUIET: f64 = 0.2;
/// While the bucket holds this part of what it can, a load that rises is paid from it,
const AMPLE: f64 = 0.35;
/// if it also lasts for so long: on a busy machine nobody comes much sooner.
const NOTICE_SECONDS: f64 = 0.02;

/// CPU seconds that may still be spent.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    budget_cores: f64,
    level_seconds: f64,
    mean_seconds: f64,
    /// CPU seconds that were spent last.
    spent_seconds: f64,
}

impl Bucket {
    /// A full bucket for a budget, which may be infinite.
    pub fn new(budget_cores: f64) -> Self {
        let level_seconds = budget_cores * CAPACITY_SECONDS;
        Self { budget_cores, level_seconds, mean_seconds: level_seconds, spent_seconds: 0.0 }
    }

    /// Changes the budget. What was spent stays spent, but for a debt.
    pub fn set_budget(&mut self, budget_cores: f64) {
        let spent = self.capacity() - self.level_seconds;
        self.budget_cores = budget_cores;
        let spent = if spent.is_finite() { spent } else { 0.0 };
        self.level_seconds = self.capacity() - spent.min(self.capacity());
        self.mean_seconds = self.level_seconds;
    }

    /// The budget in cores.
    pub fn budget_cores(&self) -> f64 {
        self.budget_cores
    }

    fn capacity(&self) -> f64 {
        self.budget_cores * CAPACITY_SECONDS
    }

    /// So many seconds passed, in which so many CPU seconds were spent.
    pub fn pass(&mut self, seconds: f64, spent_seconds: f64) {
        let filled = self.level_seconds + self.budget_cores * seconds - spent_seconds;
        self.level_seconds = filled.min(self.capacity()).max(-MOST_DEBT * self.capacity());
        self.spent_seconds = spent_seconds;
        if self.level_seconds.is_finite() {
            let weight = 1.0 - (-seconds / MEAN_SECONDS).exp();
            self.mean_seconds += (self.level_seconds - self.mean_seconds) * weight;
        }
    }

    /// What may be spent so many seconds after the last pass, when so much was spent since. No
    /// budget at all detaches the probes, and nothing is saved up for a reading.
    pub fn purse(&self, seconds: f64, spent_seconds: f64) -> Purse {
        if self.budget_cores <= 0.0 || self.budget_cores.is_infinite() {
            return Purse::UNLIMITED;
        }
        let level = (self.level_seconds + self.budget_cores * seconds - spent_seconds).min(self.capacity());
        Purse::new(level, self.capacity())
    }

    /// CPU seconds that a tick may always spend on what has to go on.
    pub fn tick_least_seconds(&self) -> f64 {
        if self.budget_cores.is_infinite() { f64::INFINITY } else { TICK_LEAST * self.capacity() }
    }

    /// CPU seconds that are kept for what comes unplanned.
    pub fn reserve_seconds(&self) -> f64 {
        if self.budget_cores.is_infinite() { 0.0 } else { RESERVE * self.capacity() }
    }

    /// CPU seconds that may be spent at once; 0 while there is a debt.
    pub fn level_seconds(&self) -> f64 {
        self.level_seconds.max(0.0)
    }

    /// The part of it that is filled; 0 while there is a debt.
    pub fn filled(&self) -> f64 {
        if self.level_seconds < self.capacity() { self.level_seconds.max(0.0) / self.capacity() } else { 1.0 }
    }

    /// CPU seconds that were spent before they were there.
    pub fn debt_seconds(&self) -> f64 {
        (-self.level_seconds).max(0.0)
    }

    /// Whether the bucket is full, and next to nothing was spent in the last `seconds`.
    pub fn is_quiet(&self, seconds: f64) -> bool {
        self.filled() >= 1.0 && self.spent_seconds <= QUIET * self.budget_cores * seconds
    }

    /// Whether so much is left that a load which rises is paid from it: one that took what was
    /// spent last in `seconds`.
    pub fn is_ample(&self, seconds: f64) -> bool {
        let cores = self.spent_seconds / seconds.max(1e-3);
        self.level_seconds >= (self.capacity() * AMPLE).max(cores * NOTICE_SECONDS)
    }

    /// CPU seconds that one window may cost, which come all at once.
    pub fn window_seconds(&self) -> f64 {
        self.capacity() * WINDOW
    }

    /// The same for a window that may come at once, after a load that took from the bucket already.
    pub fn next_window_seconds(&self) -> f64 {
        WINDOW * self.level_seconds.max(self.capacity() * LEAST)
    }

    /// Cores that probes may cost from now on, beside what `fixed_cores` takes in any case: what
    /// the budget leaves, and what the bucket holds more than its reserve.
    pub fn probe_cores(&self, fixed_cores: f64, has_windows: bool) -> f64 {
        if self.budget_cores.is_infinite() {
            return f64::INFINITY;
        }
        let reserve = self.reserve_seconds();
        let surplus = if has_windows && self.level_seconds >= 0.0 {
            (self.mean_seconds - reserve) / WINDOWS_HORIZON_SECONDS
        } else {
            (self.level_seconds - reserve) / HORIZON_SECONDS
        };
        (self.budget_cores + surplus - fixed_cores).max(self.budget_cores * LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_is_paid_from_what_was_not_spent_and_a_debt_is_repaid_first() {
        let mut bucket = Bucket::new(0.01);
        assert_eq!(bucket.level_seconds(), 0.01);
        bucket.pass(0.1, 0.009);
        assert!((bucket.level_seconds() - 0.002).abs() < 1e-9);
        bucket.pass(0.0, 0.025);
        assert!((bucket.debt_seconds() - 0.023).abs() < 1e-9 && bucket.level_seconds() == 0.0);
        assert_eq!(bucket.probe_cores(0.0, false), 0.01 * LEAST, "nothing else is bought");
        bucket.pass(10.0, 0.0);
        assert_eq!(bucket.level_seconds(), 0.01, "it holds no more than a second's worth");
    }

    #[test]
    fn without_a_budget_and_without_a_limit() {
        let mut bucket = Bucket::new(f64::INFINITY);
        bucket.pass(1.0, 100.0);
        assert!(
            bucket.probe_cores(5.0, false).is_infinite()
                && bucket.is_ample(1.0)
                && bucket.debt_seconds() == 0.0
        );
        bucket.set_budget(0.01);
        assert_eq!(bucket.level_seconds(), 0.01);
        bucket.set_budget(0.0);
        assert_eq!(bucket.probe_cores(0.0, false), 0.0);
        bucket.set_budget(0.05);
        assert!(bucket.level_seconds() <= 0.05);
    }

    proptest! {
        #[test]
        fn who_spends_what_is_allowed_keeps_the_contract_over_any_time(
            items in prop::collection::vec((0.0f64..0.004, 0.1f64..2.0), 10..100),
            budget in 0.002f64..0.1,
        ) {
            // In each tick an item that cannot be divided, unless a debt is repaid, and probes that
            // take all that they may, or up to twice of it.
            const TICK: f64 = 0.5;
            let mut bucket = Bucket::new(budget);
            let (mut costs, mut largest) = (Vec::new(), 0.0f64);
            for (item, eager) in &items {
                let item = if bucket.debt_seconds() > 0.0 { 0.0 } else { *item };
                let planned = bucket.probe_cores(0.0, false) * TICK * eager;
                let probes = planned.min(bucket.level_seconds() + budget * TICK);
                bucket.pass(TICK, item + probes);
                costs.push(item + probes);
                largest = largest.max(item);
            }
            for from in 0..costs.len() {
                let mut sum = 0.0;
                for (to, cost) in costs.iter().enumerate().skip(from) {
                    sum += cost;
                    let seconds = (to - from + 1) as f64 * TICK;
                    let over = sum - budget * (seconds + 1.0) - largest;
                    let floor = budget * LEAST * seconds;
                    prop_assert!(over <= floor + 1e-9, "{over} over in {seconds} s");
                }
            }
        }
    }
}
