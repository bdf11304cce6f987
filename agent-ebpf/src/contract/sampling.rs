//! Weighted sampling: which events are sampled, and what a sampled event stands for. The programs
//! run this on their own statistics per CPU; statistical tests run the same code on simulated
//! streams.
//!
//! Every event is sampled independently with probability 1/N, for any integer N. No random number
//! is asked for that at each event: how many are skipped until the next one is chosen at once, from
//! the geometric distribution ([`gap`]), so skipping costs a comparison. A program that is attached
//! for 1/D of the time sees each event with probability 1/D. N and D depend only on what happened
//! before the event, so the weight N x D makes every total unbiased whatever N and D did meanwhile;
//! when N changes it is chosen anew, which changes nothing: what was skipped says nothing of
//! what comes. The sum of (D v)² N(N-1) over sampled events estimates the variance that sampling
//! adds to a total of v (Horvitz and Thompson's estimator for independent draws). What being
//! attached for a share of the time adds is estimated in user space, from one window to the next.

use core::num::NonZeroU64;

/// Largest weight N x D: one event in a million is sampled.
pub const MAX_PERIOD: u64 = 1 << 20;

/// Largest D.
pub const MAX_DUTY: u64 = 1024;

/// Bits behind the point of the means in [`mean_gap`].
const MEAN_BITS: u32 = 18;
/// Bits behind the point while a logarithm is computed, and of the result.
const LOG_BITS: u32 = 30;
const RESULT_BITS: u32 = 20;

/// 1 / -ln(1 - 1/N) for a period N below their number, with [`MEAN_BITS`] behind the point.
static MEANS: [u64; 16] = [
    0, 0, 378_194, 646_527, 911_228, 1_174_777, 1_437_811, 1_700_570, 1_963_164, 2_225_652, 2_488_067,
    2_750_430, 3_012_755, 3_275_052, 3_537_325, 3_799_581,
];

/// The mean of the exponential distribution whose whole part is how many events are skipped: 1 /
/// -ln(1 - 1/N) = N - 1/2 - 1/(12 N) - 1/(24 N²) - ..., with [`MEAN_BITS`] behind the point.
#[inline(always)]
fn mean_gap(period: u64) -> u64 {
    match MEANS.get(period as usize) {
        Some(mean) => *mean,
        None => {
            let one: u64 = 1 << MEAN_BITS;
            period * one - one / 2 - divide(one, 12 * period) - divide(one, 24 * period * period)
        }
    }
}

/// How many events are skipped until the next one is sampled, of which one in `period` is: k with
/// probability (1 - 1/N)^k / N, to a part in a million. `random` is uniform over its 2^32 values.
///
/// The whole part of an exponential variable is geometric (Devroye, Non-Uniform Random Variate
/// Generation, X.2). With u = x / 2^33 and n the bits of x, -ln u = (33 - n) ln 2 + 2 artanh((2^n -
/// x) / (2^n + x)), whose argument is at most a third.
#[inline(always)]
pub fn gap(period: u64, random: u32) -> u64 {
    /// ln 2.
    const LN_2: u64 = 744_261_118;
    const ONE: u64 = 1 << LOG_BITS;
    let x = (u64::from(random) << 1) | 1;
    let bits = bit_length(x);
    let power = 1u64 << bits;
    let s = divide((power - x) << LOG_BITS, power + x);
    let square = (s * s) >> LOG_BITS;
    let mut series = ONE / 13;
    for odd in [11, 9, 7, 5, 3, 1] {
        series = ONE / odd + ((series * square) >> LOG_BITS);
    }
    let log = (33 - u64::from(bits)) * LN_2 + ((2 * s * series) >> LOG_BITS);
    // Below 2^25 and 2^38.
    ((log >> (LOG_BITS - RESULT_BITS)) * mean_gap(period)) >> (RESULT_BITS + MEAN_BITS)
}

/// A division that may fail is code for a panic, which a program has no place for.
#[inline(always)]
fn divide(dividend: u64, divisor: u64) -> u64 {
    dividend.checked_div(divisor).unwrap_or(0)
}

/// The number of bits of a number below 2^33. The BPF target has no instruction for it, and what
/// the compiler makes of one is longer.
#[inline(always)]
fn bit_length(mut x: u64) -> u32 {
    let mut bits = 0;
    for step in [32, 16, 8, 4, 2, 1] {
        if x >> step != 0 {
            x >>= step;
            bits += step;
        }
    }
    bits + 1
}

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
    /// Raised when the others have changed.
    pub generation: u64,
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
///
/// User space copies it word by word from the first on while the program may change it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sampler {
    /// The tick that `spent` and `stretches` are about.
    tick: u64,
    /// The allowance of that tick.
    allowance: u64,
    /// How often the period became four times as long within the tick because the allowance was
    /// spent.
    pub stretches: u64,
    /// The same as `count_variance`, estimated from the sampled events alone: the sum of D² N(N-1).
    /// Beside the same sum of (D v)² N(N-1) it gives the mean square of v.
    pub sampled_variance: u64,
    /// Events sampled since the period last changed within the tick.
    spent: u64,
    /// The sum of the weights of the sampled events.
    pub estimated: u64,
    /// N x D.
    total: u64,
    /// How often what follows changed, until `changing`.
    changes: u64,
    /// Events that `passed` and `count_variance` contain.
    counted: u64,
    /// The sum of D over all events seen: what the sum of weights would be if all were sampled.
    pub passed: u64,
    /// The variance that sampling adds to `estimated`: the sum of D²(N-1) over all events seen,
    /// sampled or not. It is known and not estimated, so it is right also when nothing was sampled.
    pub count_variance: u64,
    /// D of the next event.
    duty: u64,
    /// N of the next event; 0 before the first.
    period: u64,
    /// Events seen while attached, sampled or not.
    pub events: u64,
    /// Events sampled: read after those that were seen, so that none seems to be skipped.
    pub sampled: u64,
    /// How often what is between began to change.
    changing: u64,
    /// The number of the event that is sampled next; 0 while it is not chosen.
    next: u64,
}

impl Sampler {
    /// What was counted since `last`, an earlier state.
    pub fn since(&self, last: &Self) -> Self {
        Self {
            events: self.events.wrapping_sub(last.events),
            sampled: self.sampled.wrapping_sub(last.sampled),
            passed: self.passed.wrapping_sub(last.passed),
            estimated: self.estimated.wrapping_sub(last.estimated),
            count_variance: self.count_variance.wrapping_sub(last.count_variance),
            sampled_variance: self.sampled_variance.wrapping_sub(last.sampled_variance),
            ..Self::default()
        }
    }

    /// Whether every event was sampled and stands for itself alone.
    pub fn is_exact(&self) -> bool {
        self.sampled == self.events && self.passed == self.events
    }

    /// Whether a copy was made while the program did not change what has to fit together.
    pub fn is_whole(&self) -> bool {
        self.changes == self.changing
    }

    /// N of the next event.
    #[inline(always)]
    pub fn period(&self) -> u64 {
        self.period
    }

    /// D of the next event.
    #[inline(always)]
    pub fn duty(&self) -> u64 {
        self.duty
    }

    /// Brings `passed` and `count_variance` up to the last event: the programs do that only when N
    /// or D change.
    #[inline(always)]
    pub fn settle(&mut self) {
        let events = self.events.wrapping_sub(self.counted);
        let weighted = events.wrapping_mul(self.duty);
        let variance = weighted.wrapping_mul(self.duty).wrapping_mul(self.period.wrapping_sub(1));
        let sums = [self.passed.wrapping_add(weighted), self.count_variance.wrapping_add(variance)];
        let events = self.events;
        put(&mut self.counted, events);
        put(&mut self.passed, sums[0]);
        put(&mut self.count_variance, sums[1]);
    }

    /// The next event is sampled by another rate.
    #[inline(always)]
    pub fn change(&mut self, rate: &Rate) {
        if self.tick != rate.tick {
            self.tick = rate.tick;
            self.spent = 0;
            self.stretches = 0;
        }
        self.allowance = rate.allowance;
        let period = if rate.period == 0 { 1 } else { rate.period };
        let stretches = if self.stretches < 10 { self.stretches } else { 10 };
        self.set(period << (2 * stretches), rate.duty());
    }

    #[inline(always)]
    fn set(&mut self, period: u64, duty: u64) {
        let most = if duty == 1 { MAX_PERIOD } else { MAX_PERIOD / MAX_DUTY };
        let period = if period < most { period } else { most };
        if period != self.period || duty != self.duty {
            let change = self.changing + 1;
            put(&mut self.changing, change);
            self.settle();
            put(&mut self.period, period);
            put(&mut self.duty, duty);
            put(&mut self.changes, change);
            self.total = period * duty;
            self.next = 0;
        }
    }

    /// Whether the next event is skipped, as far as that was chosen.
    #[inline(always)]
    pub fn skips_next(&self) -> bool {
        self.events + 1 < self.next
    }

    /// Counts an event; says whether it is skipped.
    #[inline(always)]
    pub fn skips(&mut self, random: impl FnOnce() -> u32) -> bool {
        self.events += 1;
        if self.events < self.next {
            return true;
        }
        if self.next == 0 && self.period > 1 {
            let gap = gap(self.period, random());
            self.next = self.events + gap;
            return gap != 0;
        }
        false
    }

    /// The event that was counted last is sampled: what it weighs.
    ///
    /// A burst inside a tick is bounded: each time a CPU has used up its allowance its period
    /// becomes four times as long, so the events sampled in a tick grow with the logarithm of the
    /// burst only.
    #[inline(always)]
    pub fn take(&mut self) -> Weight {
        let weight = Weight::of_words([self.total, self.period]);
        self.next = 0;
        self.sampled += 1;
        self.estimated += self.total;
        self.spent += 1;
        if self.period > 1 {
            let variance = (self.period - 1) * self.period * self.duty * self.duty;
            self.sampled_variance = self.sampled_variance.wrapping_add(variance);
        }
        if self.allowance != 0 && self.spent >= self.allowance {
            self.spent = 0;
            self.stretches += 1;
            self.set(self.period << 2, self.duty);
        }
        weight
    }
}

/// Writes a word where the compiler may not move it: user space may copy the words meanwhile.
#[inline(always)]
fn put(word: &mut u64, value: u64) {
    // SAFETY: a reference is writable.
    unsafe { core::ptr::from_mut(word).write_volatile(value) };
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
        let mut sampler = Sampler::default();
        sampler.change(&Rate { period: 3, allowance: 1, ..Rate::default() });
        (0..100).for_each(|_| assert!(!sampler.take().is_nothing()));
        assert_eq!(sampler.period(), MAX_PERIOD);
        assert_eq!(sampler.duty(), 1);
        sampler.change(&Rate { period: 3, allowance: 7, ..Rate::default() });
        assert_eq!(sampler.period(), MAX_PERIOD, "of the same tick");
        sampler.change(&Rate { period: 3, tick: 7, ..Rate::default() });
        assert_eq!(sampler.period(), 3, "of another tick");
    }

    #[test]
    fn means_of_gaps_are_those_of_the_formula() {
        for period in 2..=MAX_PERIOD {
            let exact = -1.0 / (-1.0 / period as f64).ln_1p();
            let mean = mean_gap(period) as f64 / f64::from(1 << MEAN_BITS);
            assert!((mean / exact - 1.0).abs() < 2e-6, "{mean} for {exact} at {period}");
        }
    }

    /// Against the quantiles of the distribution in floating point.
    #[test]
    fn gaps_are_geometric() {
        let mut random = 1u32;
        for period in [2, 3, 5, 16, 17, 1000, MAX_PERIOD] {
            let log = (-1.0 / period as f64).ln_1p();
            let mut wrong = 0;
            for n in 0..200_000u32 {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let value = match n {
                    0 => 0,
                    1 => u32::MAX,
                    _ => random,
                };
                let uniform = (f64::from(value) + 0.5) / 2f64.powi(32);
                let exact = uniform.ln() / log;
                let gap = gap(period, value) as f64;
                assert!((gap - exact.floor()).abs() <= 1.0 + exact * 1e-5, "{gap} for {exact}");
                wrong += u32::from((gap - exact.floor()).abs() > exact * 1e-5);
            }
            // Near a whole number it may be the other one, by what a logarithm is off.
            let most = 200_000.0 * 2e-6 * period as f64;
            assert!(f64::from(wrong) <= 4.0 + most, "{wrong} at {period}");
        }
    }

    #[test]
    fn what_passed_is_counted_by_the_share_of_the_time_at_that_moment() {
        let mut sampler = Sampler::default();
        let mut see = |rate: Rate, events: u32| {
            sampler.change(&rate);
            let skipped = (0..events).filter(|_| sampler.skips(|| 1)).count();
            assert!(skipped == 0 || rate.period > 1);
            let mut copy = sampler;
            copy.settle();
            assert!(copy.is_whole());
            (copy.events, copy.passed, copy.count_variance)
        };
        assert_eq!(see(Rate::default(), 10), (10, 10, 0));
        assert_eq!(see(Rate { period: 3, duty: 4, ..Rate::default() }, 5), (15, 30, 5 * 2 * 16));
        assert_eq!(see(Rate { period: 3, ..Rate::default() }, 7), (22, 37, 174));
    }
}
