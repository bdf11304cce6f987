//! The sampling code of the programs and the estimates made of it, on simulated streams: are the totals unbiased, and do their
//! errors hold?
//!
//! Each case runs 1,000 windows. In each, every event of a known stream goes through the sampler; the taken ones make an
//! estimate of the total, and what the sampler notes makes its error, as in the agent. The mean error over the windows must be within four of its own standard
//! errors of zero, and 95% of the windows inside 1.96 standard errors, but for what 1,000 windows and a finite number of
//! taken events leave open. Random numbers are seeded: a run gives the same result every time.

use siskin::estimate::{Draws, Variances};
use siskin_ebpf::{Rate, Sampler, variance};

const WINDOWS: u64 = 1000;

/// Numbers for the streams; another generator than the sampler's own.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

/// What the windows of a case came to.
#[derive(Debug)]
struct Result {
    /// Mean of (estimate - truth) in units of its standard error over the windows.
    bias: f64,
    /// Share of windows whose truth was inside 1.96 of the window's own standard error.
    inside: f64,
}

/// Runs a case: `value` gives the n-th event's value, `rate` what the sampler is told before it.
fn run(
    seed: u64,
    events: u64,
    mut value: impl FnMut(&mut SplitMix, u64) -> u64,
    rate: impl Fn(u64) -> Rate,
) -> Result {
    let mut stream = SplitMix(seed);
    let mut sampler = Sampler::default();
    let (mut sum, mut square, mut inside) = (0.0, 0.0, 0.0);
    let (mut variances, mut words) = (Variances::default(), Draws { spread: 0, count: 0, values: [0] });
    for _ in 0..WINDOWS {
        let (mut truth, mut estimate) = (0u64, 0u64);
        let before = variances.sum(0);
        for n in 0..events {
            let value = value(&mut stream, n);
            truth += value;
            if let Some(weight_log2) = sampler.take(&rate(n), || seed) {
                estimate += value << weight_log2;
                words.count = words.count.wrapping_add(variance(weight_log2, 1));
                words.values[0] = words.values[0].wrapping_add(variance(weight_log2, value));
            }
            // Read every so often, as ticks and scrapes do.
            if n % (events / 4) == events / 4 - 1 || n == events - 1 {
                words.spread = sampler.spread;
                variances.read(words);
            }
        }
        let error = estimate as f64 - truth as f64;
        sum += error;
        square += error * error;
        inside += f64::from(error.abs() <= 1.96 * (variances.sum(0) - before).sqrt());
    }
    let windows = WINDOWS as f64;
    let mean = sum / windows;
    let spread = ((square / windows - mean * mean) / windows).sqrt();
    Result { bias: mean / spread, inside: inside / windows }
}

fn fixed(period_log2: u64) -> impl Fn(u64) -> Rate {
    move |_| Rate { period_log2, ..Rate::default() }
}

#[track_caller]
fn assert_holds(name: &str, result: &Result) {
    println!("{name}: bias {:+.2} standard errors, {:.1}% inside", result.bias, result.inside * 100.0);
    assert!(result.bias.abs() < 4.0, "{name}: {result:?}");
    // 95% of 1,000 has a standard error of 0.7 points; a window with 150 taken events is not quite normal.
    assert!((0.925..=0.975).contains(&result.inside), "{name}: {result:?}");
}

#[test]
fn counts_are_unbiased_and_their_errors_hold_at_periods_2_to_4096() {
    for period_log2 in 1..=12 {
        let events = 150 << period_log2;
        let result = run(period_log2 + 7, events, |_, _| 1, fixed(period_log2));
        assert_holds(&format!("count, period {}", 1 << period_log2), &result);
    }
}

#[test]
fn sums_of_skewed_values_are_unbiased_and_their_errors_hold() {
    for period_log2 in [1, 4, 7, 10] {
        // Exponential with mean 1,000: a tenth of the events bring a third of the sum.
        let value = |stream: &mut SplitMix, _| (-stream.unit().ln() * 1000.0) as u64;
        let result = run(period_log2 + 31, 400 << period_log2, value, fixed(period_log2));
        assert_holds(&format!("exponential sum, period {}", 1 << period_log2), &result);
    }
    // Log-normal with sigma 1.5, as latencies are: the mean is three times the median.
    let value = |stream: &mut SplitMix, _| {
        let normal = (-2.0 * stream.unit().ln()).sqrt() * (std::f64::consts::TAU * stream.unit()).cos();
        (200.0 * (1.5 * normal).exp()) as u64
    };
    assert_holds("log-normal sum, period 16", &run(5, 8000 << 4, value, fixed(4)));
}

#[test]
fn a_period_that_changes_inside_the_window_adds_no_bias() {
    let rate = |n| Rate { period_log2: [3, 9, 0, 6][(n / 7_001 % 4) as usize], ..Rate::default() };
    assert_holds("count, changing period", &run(11, 100_000, |_, _| 1, rate));
    let value = |stream: &mut SplitMix, n: u64| if n / 7_001 % 4 == 1 { 40 } else { 1 + stream.next() % 9 };
    assert_holds("sum, changing period", &run(12, 200_000, value, rate));
}

#[test]
fn periodic_arrivals_do_not_alias() {
    // Every 64th event is a hundred times larger: a fixed stride of 64 would see all of them or none.
    let value = |_: &mut SplitMix, n: u64| if n.is_multiple_of(64) { 100 } else { 1 };
    assert_holds("periodic sum, period 64", &run(13, 64 * 4000, value, fixed(6)));
    // In and out of phase with every power of two.
    for stride in [2, 16, 128] {
        let value = move |_: &mut SplitMix, n: u64| if n.is_multiple_of(stride) { 10 } else { 1 };
        assert_holds(&format!("every {stride}th, period 16"), &run(stride, 16 * 1000, value, fixed(4)));
    }
}

#[test]
fn an_allowance_bounds_a_burst_and_adds_no_bias() {
    let allowance = 500;
    let rate = move |n: u64| Rate { period_log2: 2, tick: n / 50_000, allowance, ..Rate::default() };
    assert_holds("count, with an allowance", &run(17, 150_000, |_, _| 1, rate));

    let mut sampler = Sampler::default();
    for burst_log2 in [14u64, 18, 22] {
        let before = sampler.taken;
        for _ in 0..1u64 << burst_log2 {
            sampler.take(&Rate { period_log2: 2, tick: burst_log2, allowance, ..Rate::default() }, || 99);
        }
        let (taken, doublings) = (sampler.taken - before, burst_log2 - 2);
        assert!(taken <= allowance * doublings, "{taken} taken of a burst of 2^{burst_log2}");
    }
}

#[test]
fn every_event_is_counted_and_at_period_one_every_event_is_taken() {
    let mut sampler = Sampler::default();
    for n in 0..10_000 {
        let taken = sampler.take(&fixed(0)(n), || 1);
        assert_eq!(taken, Some(0));
    }
    assert_eq!((sampler.events, sampler.taken), (10_000, 10_000));
}
