//! What being attached for a share of the time adds to the error of a total.
//!
//! Time is cut into periods, and one window of each, at a random place, is seen: stratified
//! sampling with one unit in each stratum. A window's total, times D, is an estimate X of its
//! period's. With one unit in a stratum its variance cannot be seen inside of the stratum; it is
//! taken from neighbours: half of the square of what two estimates in a row differ by (successive
//! differences, collapsed strata; Wolter, Introduction to Variance Estimation, ch. 8; Cochran,
//! Sampling Techniques, 5A.12), times 1 - 1/D, averaged over the last periods. A steady load has
//! narrow errors, a bursty one wide ones.
//!
//! A window stands for the time since the last one ended. A reading lacks what came after the last
//! window, so what one reading adds to another is off by the difference of what they lack, however
//! even the load is: both are uniform between nothing and a period. The variance of that, a sixth
//! of the square of a period's total, is spread over the periods of the time that errors are for
//! ([`HORIZON`]): too little for shorter times and too much for longer ones.
//!
//! A load that fills its CPUs is slower while programs run there, and windows see only that. One
//! that does not is not, and which it is cannot be known; so the estimate stays what it is, and the
//! part of the CPUs that the programs took is claimed as an error of all windows together.

use crate::budget::{
    allocation::{DUTY_PERIOD, HORIZON, PRIOR_WINDOW_VARIANCE},
    duty::Window,
};

/// Periods over which the variance is averaged.
const POOLED: f64 = 8.0;
/// A square this many times the average is a load that changed, as is what the first window differs
/// by from the time before: it counts at once and whole, and says nothing of what follows.
const JUMP: f64 = 50.0;
/// Periods' worth of the variance that is assumed before any was seen.
const PRIOR: f64 = 2.0;

/// What readings lack, as a part of the square of a period's total, for each period.
const LACKING: f64 = 1.0 / PERIODS / 6.0;

/// Periods of the time that errors are for.
const PERIODS: f64 = HORIZON.as_millis() as f64 / DUTY_PERIOD.as_millis() as f64;
/// The part of what is usual that a time without the end of a window adds, so that the end adds
/// something too.
const OPEN: f64 = 0.5;

/// Variances of N totals of a probe that is attached for a share of the time.
#[derive(Clone, Copy, Debug)]
pub struct DutyCycle<const N: usize> {
    counted: [f64; N],
    /// The estimate of the last period.
    last: [f64; N],
    pooled: [f64; N],
    /// What a period is expected to add to the variance.
    usual: [Parts; N],
    /// For how many periods the last window stood, one at least: a reading lacks no more than that
    /// as long as windows come in time.
    usual_periods: f64,
    windows: f64,
    /// The variance of the periods that are over.
    closed: [Parts; N],
    /// What was told of it by [`Self::grown`].
    told: [Parts; N],
}

/// A variance, by what adds to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    /// What was seen is not like what was not.
    pub uneven: f64,
    /// Readings lack what came after the last window.
    pub lacked: f64,
}

impl Parts {
    /// The whole variance.
    pub fn sum(self) -> f64 {
        self.uneven + self.lacked
    }
}

impl<const N: usize> Default for DutyCycle<N> {
    fn default() -> Self {
        Self {
            counted: [0.0; N],
            last: [0.0; N],
            pooled: [0.0; N],
            usual: [Parts::default(); N],
            usual_periods: 1.0,
            windows: 0.0,
            closed: [Parts::default(); N],
            told: [Parts::default(); N],
        }
    }
}

impl<const N: usize> DutyCycle<N> {
    /// The probe was attached for all of the last `seconds`; the totals as they stand.
    pub fn attached(&mut self, totals: [f64; N], seconds: f64) {
        let periods = seconds.max(1e-3) / DUTY_PERIOD.as_secs_f64();
        self.last = self.added(totals).map(|added| added / periods);
        self.pooled = self.last.map(|last| PRIOR_WINDOW_VARIANCE * last * last);
        self.usual = self
            .last
            .map(|last| Parts { uneven: PRIOR_WINDOW_VARIANCE * last * last, lacked: LACKING * last * last });
        (self.counted, self.windows) = (totals, 0.0);
    }

    /// A window is over; the totals as they stand, which the programs made by its `duty`.
    pub fn window(&mut self, totals: [f64; N], window: &Window) {
        self.windows += 1.0;
        let period = DUTY_PERIOD.as_secs_f64();
        let stands_for = window.stands_for_seconds / period;
        self.usual_periods = stands_for.max(1.0);
        let share = (window.seconds / window.stands_for_seconds.max(1e-6)).min(1.0);
        for (n, added) in self.added(totals).into_iter().enumerate() {
            let estimate = added / window.duty as f64 / window.seconds.max(1e-6) * period;
            let half = (estimate - self.last[n]).powi(2) / 2.0;
            let is_jump = half > JUMP * self.pooled[n] && self.pooled[n] > 0.0;
            let uneven = if is_jump || self.windows == 1.0 {
                half
            } else {
                self.pooled[n] += (half - self.pooled[n]) / (self.windows + PRIOR).min(POOLED);
                self.pooled[n]
            };
            let slower = PERIODS * (window.slowdown * estimate).powi(2) * stands_for;
            let uneven = (1.0 - share) * (uneven * stands_for * stands_for + slower);
            let lacked = LACKING * estimate * estimate;
            self.usual[n] = Parts {
                uneven: (1.0 - share) * self.pooled[n] * stands_for,
                lacked: lacked * stands_for * stands_for,
            };
            self.closed[n].uneven += uneven;
            // The square of a longer period's total, and as many of them fewer.
            self.closed[n].lacked += lacked * stands_for.powi(3);
            self.last[n] = estimate;
        }
        self.counted = totals;
    }

    /// The variance of the n-th total so far, which lacks so many seconds until now: what periods
    /// usually add grows with the time, so that no time is taken to be exact in which no window
    /// ended. What lacks for longer than windows take to come is an error as large as it is.
    pub fn variance(&self, n: usize, lacking_seconds: f64) -> f64 {
        self.parts(n, lacking_seconds).sum()
    }

    /// What the variances grew by since the last call. They may fall when a window was over, and
    /// are then told again when they are higher than before.
    pub fn grown(&mut self, lacking_seconds: f64) -> [Parts; N] {
        std::array::from_fn(|n| {
            let (now, told) = (self.parts(n, lacking_seconds), self.told[n]);
            self.told[n] = Parts { uneven: now.uneven.max(told.uneven), lacked: now.lacked.max(told.lacked) };
            Parts { uneven: self.told[n].uneven - told.uneven, lacked: self.told[n].lacked - told.lacked }
        })
    }

    fn parts(&self, n: usize, lacking_seconds: f64) -> Parts {
        let lacking = lacking_seconds / DUTY_PERIOD.as_secs_f64();
        let periods = OPEN * lacking.min(self.usual_periods);
        let late = self.last[n] * (lacking - self.usual_periods).max(0.0);
        Parts {
            uneven: self.closed[n].uneven + self.usual[n].uneven * periods,
            lacked: self.closed[n].lacked + self.usual[n].lacked * periods + late * late,
        }
    }

    fn added(&self, totals: [f64; N]) -> [f64; N] {
        std::array::from_fn(|n| totals[n] - self.counted[n])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A window of an eighth of a period, which stands for so many periods.
    fn eighth(stands_for: f64) -> Window {
        let period = DUTY_PERIOD.as_secs_f64();
        Window { duty: 8, seconds: period / 8.0, stands_for_seconds: period * stands_for, slowdown: 0.0 }
    }

    /// Runs periods of a load: `rate` events in each 1/64 of a period; a window of 1/8 at a random
    /// place of each. Returns the sums of squared errors and of variances over spans of the
    /// horizon, and how many spans were inside 1.96 standard errors.
    fn simulate(seed: u64, mut rate: impl FnMut(&mut fastrand::Rng) -> u64) -> (f64, f64, f64) {
        const PLACES: usize = 64;
        let mut random = fastrand::Rng::with_seed(seed);
        let mut duty = DutyCycle::default();
        let (mut truth, mut counted, mut total, mut counted_until) = (0u64, 0u64, 0.0, 0.0);
        let (mut squares, mut variances, mut inside, mut spans) = (0.0, 0.0, 0.0, 0.0);
        let mut begin = (0, 0.0, 0.0);
        for period in 0..4000 {
            let load: Vec<_> = (0..PLACES).map(|_| rate(&mut random)).collect();
            let place = random.usize(0..8);
            truth += load.iter().sum::<u64>();
            let seen = 8 * load[place * 8..][..8].iter().sum::<u64>();
            counted += seen;
            let until = f64::from(period) + (place + 1) as f64 / 8.0;
            let window = eighth(until - std::mem::replace(&mut counted_until, until));
            total += seen as f64 * window.factor();
            duty.window([counted as f64], &window);
            if period % 8 == 7 {
                let off = (total - begin.1) - (truth - begin.0) as f64;
                let variance = duty.variance(0, 0.0) - begin.2;
                begin = (truth, total, duty.variance(0, 0.0));
                // The first learn how the load varies.
                if period > 50 {
                    squares += off * off;
                    variances += variance;
                    inside += f64::from(off.abs() <= 1.96 * variance.sqrt());
                    spans += 1.0;
                }
            }
        }
        (squares, variances, inside / spans)
    }

    #[test]
    fn errors_are_neither_too_wide_nor_too_narrow() {
        let even = |random: &mut fastrand::Rng| random.u64(90..110);
        let bursts = |random: &mut fastrand::Rng| if random.f64() < 0.05 { 2000 } else { 10 };
        let slices = {
            let (mut left, mut is_on) = (0, false);
            move |random: &mut fastrand::Rng| {
                if left == 0 {
                    (left, is_on) = (random.u32(2..20), !is_on);
                }
                left -= 1;
                if is_on { 300 } else { 5 }
            }
        };
        let results =
            [("even", simulate(1, even)), ("bursts", simulate(2, bursts)), ("slices", simulate(3, slices))];
        for (name, (squares, variances, inside)) in results {
            let ratio = squares / variances;
            println!("{name}: squared errors to variances {ratio:.2}, {:.1}% inside", inside * 100.0);
            assert!((0.5..=2.0).contains(&ratio), "{name}: {ratio}");
            assert!((0.9..=0.99).contains(&inside), "{name}: {inside}");
        }
    }

    #[test]
    fn what_is_missing_since_the_last_window_is_an_error() {
        let mut duty = DutyCycle::default();
        duty.attached([1000.0], DUTY_PERIOD.as_secs_f64());
        assert_eq!(duty.variance(0, 0.0), 0.0, "all of the time is no window");
        // As many again in a window that stands for a period.
        duty.window([2000.0], &eighth(1.0));
        let closed = duty.variance(0, 0.0);
        let open = |periods| duty.variance(0, periods * DUTY_PERIOD.as_secs_f64()) - closed;
        assert_eq!(open(0.0), 0.0);
        let usual = OPEN * LACKING * 1e6;
        assert!((0.49..0.51).contains(&(open(0.5) / open(1.0))), "{} of {}", open(0.5), open(1.0));
        assert!((usual..2.0 * usual + 1e5).contains(&open(1.0)), "{} of {usual}", open(1.0));
        assert!((open(5.0) - open(1.0) - 16e6).abs() < 1e-3, "{}", open(5.0));
    }

    #[test]
    fn a_load_that_windows_slow_down_is_so_far_off() {
        let mut duty = DutyCycle::default();
        duty.attached([1000.0], DUTY_PERIOD.as_secs_f64());
        let [mut even, mut slower] = [duty; 2];
        for period in 1..=PERIODS as u32 {
            let totals = [1000.0 + 1000.0 * f64::from(period)];
            even.window(totals, &eighth(1.0));
            slower.window(totals, &Window { slowdown: 0.1, ..eighth(1.0) });
        }
        let more = slower.variance(0, 0.0) - even.variance(0, 0.0);
        let total = 1000.0 * PERIODS;
        assert!((more.sqrt() / total / 0.1 - 1.0).abs() < 0.07, "{more}");
    }

    #[test]
    fn what_grew_is_told_once_and_adds_up() {
        let mut duty = DutyCycle::default();
        duty.attached([1000.0], DUTY_PERIOD.as_secs_f64());
        let (mut told, mut without_window) = (0.0, 0.0);
        for period in 2..20 {
            let open = duty.grown(DUTY_PERIOD.as_secs_f64() / 2.0)[0].sum();
            duty.window([1000.0 * f64::from(period)], &eighth(1.0));
            told += open + duty.grown(0.0)[0].sum();
            without_window += open;
            assert_eq!(duty.grown(0.0)[0].sum(), 0.0);
        }
        assert!((told / duty.variance(0, 0.0) - 1.0).abs() < 0.1, "{told}");
        assert!(
            without_window > 0.15 * told,
            "a time in which no window ended has an error: {without_window}"
        );
    }

    #[test]
    fn a_load_that_comes_while_attached_is_no_jump_of_the_first_window() {
        let mut duty = DutyCycle::default();
        duty.attached([1000.0], 3600.0);
        duty.attached([1500.0], 0.5);
        duty.window([2750.0], &eighth(1.0));
        let relative = duty.variance(0, 0.0).sqrt() / 1250.0;
        assert!(relative < 0.35, "{relative}");
    }
}
