//! Weighted sampling: which events are sampled, and what a sampled event stands for. The programs
//! run this on their own statistics per CPU; statistical tests run the same code on simulated
//! streams.
//!
//! Every event is sampled independently with probability 1/N, for any integer N. A program that is
//! attached for 1/D of the time sees each event with probability 1/D. N and D depend only on what
//! happened before the event, so the weight N x D makes every total unbiased whatever N and D did
//! meanwhile. The sum of (D v)² N(N-1) over sampled events estimates the variance that sampling
//! adds to a total of v (Horvitz and Thompson's estimator for independent draws). What being
//! attached for a share of the time adds is estimated in user space, from one window to the next.

use core::num::NonZeroU64;

/// Largest weight N x D: one event in a million is sampled.
pub const MAX_PERIOD: u64 = 1 << 20;

/// Largest D.
pub const MAX_DUTY: u64 = 1024;

/// Bits of a random number that are compared: with a period of at most 2^20 the product fits a
/// word.
const RANDOM_BITS: u32 = 44;

/// How the events of a probe are sampled; the same for all CPUs. Words of zero are those of a map
/// that nobody wrote yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// The period N: one event in N is sampled. 0 is 1.
    pub period: u64,
    /// The program is attached for one part in this of the time. 0 is 1.
    pub duty: u64,
    /// Number of the budget's tick. A CPU's allowance begins anew with each.
    pub tick: u64,
    /// Events that one CPU samples per tick before its own period becomes four times as long; 0 is
    /// no limit.
    pub allowance: u64,
    /// Runs of a program on one CPU within a tick at which it notifies user space of the overload;
    /// 0 is never.
    pub overload_runs: u64,
}

impl Rate {
    /// The part of the time for which the program is attached, as one in this many.
    #[inline(always)]
    pub fn duty(&self) -> u64 {
        if self.duty == 0 { 1 } else { self.duty }
    }
}

/// What a sampled event stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// N times D.
    total: u64,
    /// N.
    period: NonZeroU64,
}

impl Weight {
    /// The event stands for itself alone.
    pub const ONE: Self = Self { total: 1, period: NonZeroU64::MIN };

    /// The event is skipped. Not an `Option`: what is in one that is none is undefined, and the
    /// compiler may copy it, which the verifier of older kernels does not take.
    pub const NOTHING: Self = Self { total: 0, period: NonZeroU64::MIN };

    /// One event in `period`, of a program that is attached for one part in `duty` of the time.
    #[inline(always)]
    pub const fn new(period: u64, duty: u64) -> Self {
        let period = match NonZeroU64::new(period) {
            Some(period) => period,
            None => NonZeroU64::MIN,
        };
        Self { total: period.get() * duty, period }
    }

    /// N x D and N.
    #[inline(always)]
    pub const fn words(self) -> [u64; 2] {
        [self.total, self.period.get()]
    }

    /// The weight of these [words](Self::words).
    #[inline(always)]
    pub const fn of_words([total, period]: [u64; 2]) -> Self {
        Self { total, ..Self::new(period, 1) }
    }

    /// Whether the event is skipped.
    #[inline(always)]
    pub const fn is_nothing(self) -> bool {
        self.total == 0
    }

    /// Whether the event stands for itself alone.
    #[inline(always)]
    pub const fn is_one(self) -> bool {
        self.total == 1
    }

    /// Whether other events were skipped for this one.
    #[inline(always)]
    pub const fn is_sampled(self) -> bool {
        self.period.get() > 1
    }

    /// What the event adds to a total of `value`.
    #[inline(always)]
    pub const fn of(self, value: u64) -> u64 {
        value * self.total
    }

    /// What sampling adds to the variance of a total of `value`: (D v)² N(N-1), in units of 2^(2
    /// `unit_log2`); below 2^63. Without a branch: the verifier would look at all that follows once
    /// for each way.
    #[inline(always)]
    pub fn variance(self, value: u64, unit_log2: u32) -> u64 {
        // At most 2^63.
        let weighted = at_most(value, 1 << 43) * self.total;
        let units = at_most(weighted >> unit_log2, (1 << 31) - 1);
        // What is less than a unit counts too, or small values would not.
        let rest = weighted & ((1 << unit_log2) - 1);
        let square = units * units + ((2 * units * rest) >> unit_log2) + ((rest * rest) >> (2 * unit_log2));
        square - square / self.period
    }
}

/// The smaller one of two numbers below 2^63, without a branch.
#[inline(always)]
fn at_most(value: u64, most: u64) -> u64 {
    let over = value.wrapping_sub(most);
    // All ones where `value` is less.
    let less = ((over as i64) >> 63) as u64;
    most.wrapping_add(over & less)
}

/// The sampling of one program on one CPU. Only that program writes it, and a program does not
/// interrupt itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sampler {
    /// State of the random numbers; 0 before the first that is needed.
    pub random: u64,
    /// Events seen while attached, sampled or not.
    pub events: u64,
    /// Events sampled.
    pub sampled: u64,
    /// The sum of D over all events seen: what the sum of weights would be if all were sampled.
    pub passed: u64,
    /// The sum of the weights of the sampled events.
    pub estimated: u64,
    /// The variance that sampling adds to `estimated`: the sum of D²(N-1) over all events seen,
    /// sampled or not. It is known and not estimated, so it is right also when nothing was sampled.
    pub count_variance: u64,
    /// The same, estimated from the sampled events alone: the sum of D² N(N-1). Beside the same sum
    /// of (D v)² N(N-1) it gives the mean square of v.
    pub sampled_variance: u64,
    /// The tick that `spent` and `stretches` are about.
    pub tick: u64,
    /// Events sampled since the period last changed within the tick.
    pub spent: u64,
    /// How often the period became four times as long within the tick because the allowance was
    /// spent.
    pub stretches: u64,
}

impl Sampler {
    /// What was counted since `last`, an earlier state.
    pub fn since(&self, last: &Self) -> Self {
        Self {
            random: 0,
            events: self.events.wrapping_sub(last.events),
            sampled: self.sampled.wrapping_sub(last.sampled),
            passed: self.passed.wrapping_sub(last.passed),
            estimated: self.estimated.wrapping_sub(last.estimated),
            count_variance: self.count_variance.wrapping_sub(last.count_variance),
            sampled_variance: self.sampled_variance.wrapping_sub(last.sampled_variance),
            tick: 0,
            spent: 0,
            stretches: 0,
        }
    }

    /// Whether every event was sampled and stands for itself alone.
    pub fn is_exact(&self) -> bool {
        self.sampled == self.events && self.passed == self.events
    }

    /// The period of the next event on this CPU.
    #[inline(always)]
    pub fn period(&self, rate: &Rate) -> u64 {
        let period = if rate.period == 0 { 1 } else { rate.period };
        if self.tick != rate.tick {
            return period;
        }
        let stretches = if self.stretches < 10 { self.stretches } else { 10 };
        let period = period << (2 * stretches);
        let most = if rate.duty() == 1 { MAX_PERIOD } else { MAX_PERIOD / MAX_DUTY };
        if period < most { period } else { most }
    }

    /// Samples the event or skips it: what it weighs, [`Weight::NOTHING`] when it is skipped.
    /// `seed` is asked once.
    ///
    /// A burst inside a tick is bounded: each time a CPU has used up its allowance its period
    /// becomes four times as long, so the events sampled in a tick grow with the logarithm of the
    /// burst only.
    #[inline(always)]
    pub fn sample(&mut self, rate: &Rate, seed: impl FnOnce() -> u64) -> Weight {
        let (period, duty) = (self.period(rate), rate.duty());
        self.events += 1;
        self.passed += duty;
        if self.tick != rate.tick {
            self.tick = rate.tick;
            self.spent = 0;
            self.stretches = 0;
        }
        let weight = Weight::new(period, duty);
        if period > 1 {
            self.count_variance = self.count_variance.wrapping_add((period - 1) * duty * duty);
            // xorshift64 (Marsaglia 2003) with a multiplication to mix the low bits into the high
            // ones (Vigna 2016).
            let mut random = if self.random == 0 { seed() | 1 } else { self.random };
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            self.random = random;
            let random = random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> (64 - RANDOM_BITS);
            if (random * period) >> RANDOM_BITS != 0 {
                return Weight::NOTHING;
            }
            self.sampled_variance = self.sampled_variance.wrapping_add((period - 1) * period * duty * duty);
        }
        self.sampled += 1;
        self.estimated += weight.total;
        self.spent += 1;
        if rate.allowance != 0 && self.spent >= rate.allowance {
            self.spent = 0;
            self.stretches += 1;
        }
        weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_variance_is_that_of_its_formula(
            period in 1u64..=1024, duty in 1u64..=256, value in 0u64..1 << 20, unit_log2 in 0u32..10,
        ) {
            let unit = f64::from(1 << unit_log2);
            let exact = (duty as f64 * value as f64 / unit).powi(2) * period as f64 * (period - 1) as f64;
            let variance = Weight::new(period, duty).variance(value, unit_log2) as f64;
            let most = 2f64.powi(62);
            let off = (variance - exact.min(most)).abs();
            prop_assert!(off <= 3.0 + exact * 1e-6 || exact > most / 4.0, "{variance} for {exact}");
        }
    }

    #[test]
    fn stretches_end_at_the_largest_period() {
        let rate = Rate { period: 3, allowance: 1, ..Rate::default() };
        let mut sampler = Sampler { stretches: 100, ..Sampler::default() };
        assert_eq!(sampler.period(&rate), MAX_PERIOD);
        assert_eq!(Rate::default().duty(), 1);
        sampler.tick = 7;
        assert_eq!(sampler.period(&rate), 3, "of another tick");
    }
}
