//! Estimates scaled to a total that is known exactly (ratio estimator; Cochran, Sampling
//! Techniques, ch. 6).
//!
//! Every event is counted, sampled or not, so the estimate of the number of events needs no error:
//! what was estimated for single rows is scaled so that all rows together are what was counted.
//! Block requests are scaled to the kernel's own statistics.
//!
//! A row that was served cannot be scaled again, because no counter may fall. So it is the
//! additions that are scaled, and what their sum still lacks of the total, or has too much, is
//! settled with later ones. Up, an addition is scaled once it has enough samples of its own; or once
//! enough were pooled, to twice of it at most: what one sample stands for says little. Down, at
//! once: no sum is ever more than the total. Where every event is sampled nothing is scaled. The
//! ratio is nearly unbiased: its bias is about one over the number of samples.

use siskin_ebpf::{Histogram, Sampler};

use super::{ENOUGH_SAMPLES, errors::Ratio};

/// An addition of enough samples is scaled by no more than this: windows may be far apart, and see
/// little of what was in between.
const MOST: f64 = 100.0;
/// One of fewer.
const MOST_POOLED: f64 = 2.0;

/// What a total lacks beside one that is known, and how additions to it are scaled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calibration {
    /// What the exact total has more than what was added so far; less than zero when it has less.
    owed: f64,
    /// Samples since something was last settled.
    samples: u64,
    /// What rounding kept back of the addition before, below one.
    carry: f64,
}

/// How the rows of one reading are scaled.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    factor: f64,
    carry: f64,
    settled: f64,
}

impl Calibration {
    /// Since the last reading the exact total grew by `exact`, and what was estimated by
    /// `estimated` from so many samples. Returns how the rows that make up the estimate are scaled.
    pub fn read(&mut self, exact: f64, estimated: f64, samples: u64) -> Scale {
        self.owed += exact - estimated;
        self.samples += samples;
        let most = match (samples, self.samples) {
            (ENOUGH_SAMPLES.., _) => MOST,
            (_, ENOUGH_SAMPLES..) => MOST_POOLED,
            _ => 1.0,
        };
        let factor = if estimated > 0.0 { (1.0 + self.owed / estimated).clamp(0.0, most) } else { 1.0 };
        Scale { factor, carry: self.carry, settled: 0.0 }
    }

    /// Everything was sampled since the last reading: nothing is scaled, and what is owed is
    /// settled later.
    pub fn exact(&self) -> Scale {
        Scale { factor: 1.0, carry: self.carry, settled: 0.0 }
    }

    /// What the exact total was taken to grow by is so much more, or less.
    pub fn correct(&mut self, more: f64) {
        self.owed += more;
    }

    /// All rows were scaled.
    pub fn settle(&mut self, scale: Scale) {
        if scale.factor != 1.0 {
            self.samples = 0;
        }
        self.owed -= scale.settled;
        self.carry = scale.carry;
    }

    /// By how much the sum of the rows differs from the exact total: a known error.
    pub fn owed(&self) -> f64 {
        self.owed
    }
}

impl Scale {
    /// Leaves everything as it is.
    pub const ONE: Self = Self { factor: 1.0, carry: 0.0, settled: 0.0 };

    /// Scales a count that is part of the estimate, to a whole number: what is cut off goes to the
    /// next row.
    pub fn count(&mut self, value: u64) -> u64 {
        if self.factor == 1.0 || value == 0 {
            return value;
        }
        let scaled = value as f64 * self.factor + self.carry;
        let whole = scaled.floor().max(0.0);
        self.carry = scaled - whole;
        self.settled += whole - value as f64;
        whole as u64
    }

    /// Scales a value that belongs to such events: bytes, nanoseconds.
    pub fn value(&self, value: u64) -> u64 {
        if self.factor == 1.0 { value } else { (value as f64 * self.factor).round() as u64 }
    }

    /// The factor.
    pub fn factor(&self) -> f64 {
        self.factor
    }

    /// Scales a histogram of such events.
    pub fn histogram<const MIN_EXP: u32, const N: usize>(
        &mut self,
        histogram: &Histogram<MIN_EXP, N>,
    ) -> Histogram<MIN_EXP, N> {
        let mut scaled = *histogram;
        for bucket in &mut scaled.buckets {
            *bucket = self.count(*bucket);
        }
        scaled.sum = self.value(scaled.sum);
        scaled
    }

    /// The same scale for another split of the same events, which keeps what rounding cuts off of
    /// it by itself.
    pub fn again<T>(&self, carry: &mut f64, split: impl FnOnce(&mut Self) -> T) -> T {
        let mut scale = Self { carry: *carry, settled: 0.0, ..*self };
        let result = split(&mut scale);
        *carry = scale.carry;
        result
    }
}

/// The calibration of what a program's sampler estimates to the events that it counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct SamplerCalibration {
    calibration: Calibration,
    last: Sampler,
    /// Events that had passed when the last window was over.
    window_passed: u64,
}

impl SamplerCalibration {
    /// Reads the sampler again. Returns how rows are scaled, and the sampled events that they are
    /// shares of.
    pub fn read(&mut self, sampler: &Sampler) -> (Scale, Ratio) {
        let since = sampler.since(&std::mem::replace(&mut self.last, *sampler));
        if since.is_exact() {
            return (self.calibration.exact(), Ratio::default());
        }
        let Sampler { passed, estimated, sampled: samples, sampled_variance: variance, .. } = since;
        let scale = self.calibration.read(passed as f64, estimated as f64, samples);
        let ratio = match samples {
            ENOUGH_SAMPLES.. => {
                Ratio { estimated: estimated as f64 * scale.factor, variance: variance as f64 }
            }
            _ => Ratio::default(),
        };
        (scale, ratio)
    }

    /// All rows were scaled.
    pub fn settle(&mut self, scale: Scale) {
        self.calibration.settle(scale);
    }

    /// The probe was attached all the time until now.
    pub fn attached(&mut self, sampler: &Sampler) {
        self.window_passed = sampler.passed;
    }

    /// A window is over, whose events stand for `factor` times what the programs took them to stand
    /// for.
    pub fn window(&mut self, sampler: &Sampler, factor: f64) {
        let passed = sampler.passed.wrapping_sub(std::mem::replace(&mut self.window_passed, sampler.passed));
        self.calibration.correct(passed as f64 * (factor - 1.0));
    }

    /// The variance of the sum of all rows: what it differs by from what was counted is known.
    pub fn variance(&self) -> f64 {
        self.calibration.owed().powi(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Rows of one reading through a calibration; returns what they became.
    fn read(calibration: &mut Calibration, exact: u64, rows: &[u64], samples: u64) -> Vec<u64> {
        let mut scale = calibration.read(exact as f64, rows.iter().sum::<u64>() as f64, samples);
        let scaled = rows.iter().map(|row| scale.count(*row)).collect();
        calibration.settle(scale);
        scaled
    }

    #[test]
    fn where_everything_is_sampled_nothing_is_scaled() {
        let mut calibration = Calibration::default();
        assert_eq!(read(&mut calibration, 100, &[70, 30], 100), [70, 30]);
        assert_eq!(calibration.owed(), 0.0);
    }

    #[test]
    fn rows_add_up_to_the_exact_total() {
        let mut calibration = Calibration::default();
        let rows = read(&mut calibration, 1000, &[300, 500, 3], 50);
        assert!((998..=1000).contains(&rows.iter().sum::<u64>()), "{rows:?}");
        assert!(rows[1].abs_diff(rows[0] * 5 / 3) <= 2, "shares stay: {rows:?}");
    }

    #[test]
    fn few_samples_are_pooled_and_settled_later() {
        let mut calibration = Calibration::default();
        assert_eq!(read(&mut calibration, 160, &[100], 10), [100], "ten samples say little");
        assert_eq!(calibration.owed(), 60.0);
        assert_eq!(read(&mut calibration, 1000, &[1000], 60), [1060]);
        assert_eq!(calibration.owed(), 0.0);
    }

    #[test]
    fn what_was_not_seen_is_settled_by_an_addition_of_enough_samples() {
        let mut calibration = Calibration::default();
        assert!(read(&mut calibration, 10_000, &[], 0).is_empty());
        assert_eq!(read(&mut calibration, 1000, &[600], 29), [600], "too few");
        assert_eq!(read(&mut calibration, 1000, &[600], 29), [1200], "pooled");
        assert_eq!(read(&mut calibration, 200, &[300, 100], 30), [7800, 2600]);
        assert_eq!(calibration.owed(), 0.0);
    }

    #[test]
    fn no_sum_is_more_than_the_total_and_nothing_falls() {
        let mut calibration = Calibration::default();
        assert_eq!(read(&mut calibration, 10, &[5000], 1), [10]);
        // A window stood for less than it was taken to: what was added then is kept back.
        calibration.correct(-50.0);
        assert_eq!(read(&mut calibration, 20, &[20], 20), [0]);
        assert_eq!(read(&mut calibration, 100, &[100], 100), [70]);
    }

    proptest! {
        #[test]
        fn the_sum_of_all_rows_and_what_is_owed_is_the_exact_total(
            readings in prop::collection::vec((0u64..10_000, prop::collection::vec(0u64..3000, 0..20), 0u64..100), 1..50),
        ) {
            let (mut calibration, mut exact, mut sum) = (Calibration::default(), 0, 0);
            for (added, rows, samples) in readings {
                exact += added;
                sum += read(&mut calibration, added, &rows, samples).iter().sum::<u64>();
                let off = exact as f64 - sum as f64 - calibration.owed();
                prop_assert!(off.abs() < 1e-3, "{off}");
                // What rounding kept back of one reading may come with the next.
                prop_assert!(sum <= exact + 1, "{sum} of {exact}");
            }
        }
    }
}
