//! The sampling code of the programs and the estimates made of it, on simulated streams: are the totals unbiased, and do their
//! errors hold?
//!
//! Each case runs 1,000 windows. In each, every event of a known stream goes through the sampler;
//! the sampled ones make an estimate of the total, and what the sampler notes makes its error, as
//! in the agent. The mean error over the windows must be within four of its own standard errors of
//! zero, and 95% of the windows inside 1.96 standard errors, but for what 1,000 windows and a
//! finite number of sampled events leave open. Random numbers are seeded: a run gives the same
//! result every time.

use siskin::estimate::{Residual, Sampled};
use siskin_ebpf::{Rate, Sampler, Weight};

const WINDOWS: u64 = 1000;

/// Numbers for the streams, and for the sampler instead of the kernel's.
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

/// A sampler that is told the rate before each event.
#[derive(Clone, Copy, Default)]
struct Told {
    sampler: Sampler,
    rate: Option<[u64; 4]>,
}

impl Told {
    fn sample(&mut self, rate: &Rate, random: &mut SplitMix) -> Weight {
        let words = [rate.period, rate.duty, rate.tick, rate.allowance];
        if self.rate.replace(words) != Some(words) {
            self.sampler.change(rate);
        }
        if self.sampler.skips(|| random.next() as u32) { Weight::NOTHING } else { self.sampler.take() }
    }

    /// As user space reads it.
    fn read(&self) -> Sampler {
        let mut sampler = self.sampler;
        sampler.settle();
        sampler
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

/// How the estimate of a window is made.
#[derive(Clone, Copy, PartialEq)]
enum Estimate {
    /// The sum over the sampled events, each by its weight.
    Plain,
    /// That, scaled to the number of events that passed.
    Scaled,
}

/// Runs a case: `value` gives the n-th event's value, `rate` what the sampler is told before it.
fn run(
    seed: u64,
    events: u64,
    mut value: impl FnMut(&mut SplitMix, u64) -> u64,
    rate: impl Fn(u64) -> Rate,
    kind: Estimate,
) -> Result {
    let is_scaled = kind == Estimate::Scaled;
    let (mut stream, mut random) = (SplitMix(seed), SplitMix(seed ^ 0x5851_f42d_4c95_7f2d));
    let mut told = Told::default();
    let (mut sum, mut square, mut inside) = (0.0, 0.0, 0.0);
    let (mut residual, mut sums, mut squares) = (Residual::default(), 0.0, 0u64);
    for _ in 0..WINDOWS {
        let (mut truth, mut estimate) = (0u64, 0u64);
        let begin = told.read();
        let before = residual.variance(0);
        for n in 0..events {
            let value = value(&mut stream, n);
            truth += value;
            let weight = told.sample(&rate(n), &mut random);
            if !weight.is_nothing() {
                estimate += weight.of(value);
                sums += weight.of(value) as f64;
                squares = squares.wrapping_add(weight.variance(value, 0));
            }
            // Read every so often, as ticks and scrapes do.
            if n % (events / 4) == events / 4 - 1 || n == events - 1 {
                let Sampler { count_variance, sampled_variance, estimated, .. } = told.read();
                let sampled =
                    Sampled { count_variance, sampled_variance, estimated, sums: [sums], squares: [squares] };
                residual.read(&sampled, is_scaled);
            }
        }
        let sampler = told.read();
        let (passed, estimated) = (sampler.passed - begin.passed, sampler.estimated - begin.estimated);
        let factor = if is_scaled { passed as f64 / estimated as f64 } else { 1.0 };
        let error = estimate as f64 * factor - truth as f64;
        sum += error;
        square += error * error;
        inside += f64::from(error.abs() <= 1.96 * (residual.variance(0) - before).sqrt());
    }
    let windows = WINDOWS as f64;
    let mean = sum / windows;
    let spread = ((square / windows - mean * mean) / windows).sqrt();
    Result { bias: mean / spread, inside: inside / windows }
}

fn fixed(period: u64) -> impl Fn(u64) -> Rate {
    move |_| Rate { period, ..Rate::default() }
}

#[track_caller]
fn assert_holds(name: &str, result: &Result) {
    println!("{name}: bias {:+.2} standard errors, {:.1}% inside", result.bias, result.inside * 100.0);
    assert!(result.bias.abs() < 4.0, "{name}: {result:?}");
    // 95% of 1,000 has a standard error of 0.7 points; a window with 150 sampled events is not
    // quite normal.
    assert!((0.925..=0.975).contains(&result.inside), "{name}: {result:?}");
}

/// Exponential with mean 1,000: a tenth of the events bring a third of the sum.
fn exponential(stream: &mut SplitMix, _: u64) -> u64 {
    (-stream.unit().ln() * 1000.0) as u64
}

#[test]
fn counts_are_unbiased_and_their_errors_hold_at_any_period() {
    for period in [2, 3, 4, 5, 7, 10, 16, 23, 64, 100, 255, 777, 1024, 4096] {
        let result = run(period + 7, 150 * period, |_, _| 1, fixed(period), Estimate::Plain);
        assert_holds(&format!("count, period {period}"), &result);
    }
}

#[test]
fn sums_of_skewed_values_are_unbiased_and_their_errors_hold() {
    for period in [2, 3, 16, 100, 1024] {
        for kind in [Estimate::Plain, Estimate::Scaled] {
            let result = run(period + 31, 400 * period, exponential, fixed(period), kind);
            let kind = if kind == Estimate::Scaled { ", scaled" } else { "" };
            assert_holds(&format!("exponential sum, period {period}{kind}"), &result);
        }
    }
    // Log-normal with sigma 1.5, as latencies are: the mean is three times the median.
    let value = |stream: &mut SplitMix, _| {
        let normal = (-2.0 * stream.unit().ln()).sqrt() * (std::f64::consts::TAU * stream.unit()).cos();
        (200.0 * (1.5 * normal).exp()) as u64
    };
    assert_holds("log-normal sum, period 16", &run(5, 8000 << 4, value, fixed(16), Estimate::Plain));
}

#[test]
fn a_sum_that_is_scaled_has_only_the_error_of_what_its_values_differ_by() {
    // Around 1,000: without the known number of events the error would be ten times as large.
    let value = |stream: &mut SplitMix, _| 900 + stream.next() % 200;
    assert_holds("narrow sum, scaled", &run(7, 6400, value, fixed(16), Estimate::Scaled));
    assert_holds("narrow sum", &run(7, 6400, value, fixed(16), Estimate::Plain));
}

#[test]
fn a_period_that_changes_inside_the_window_adds_no_bias() {
    let rate = |n| Rate { period: [8, 500, 1, 61][(n / 7_001 % 4) as usize], ..Rate::default() };
    assert_holds("count, changing period", &run(11, 100_000, |_, _| 1, rate, Estimate::Plain));
    let value = |stream: &mut SplitMix, n: u64| if n / 7_001 % 4 == 1 { 40 } else { 1 + stream.next() % 9 };
    assert_holds("sum, changing period", &run(12, 200_000, value, rate, Estimate::Plain));
}

#[test]
fn periodic_arrivals_do_not_alias() {
    // Every 64th event is a hundred times larger: a fixed stride of 64 would see all of them or none.
    let value = |_: &mut SplitMix, n: u64| if n.is_multiple_of(64) { 100 } else { 1 };
    assert_holds("periodic sum, period 64", &run(13, 64 * 4000, value, fixed(64), Estimate::Plain));
    // In and out of phase with every power of two.
    for stride in [2, 16, 128] {
        let value = move |_: &mut SplitMix, n: u64| if n.is_multiple_of(stride) { 10 } else { 1 };
        let result = run(stride, 16 * 1000, value, fixed(16), Estimate::Plain);
        assert_holds(&format!("every {stride}th, period 16"), &result);
    }
}

#[test]
fn an_allowance_bounds_a_burst_and_adds_no_bias() {
    let allowance = 500;
    let rate = move |n: u64| Rate { period: 3, tick: n / 50_000, allowance, ..Rate::default() };
    assert_holds("count, with an allowance", &run(17, 150_000, |_, _| 1, rate, Estimate::Plain));

    let (mut told, mut random) = (Told::default(), SplitMix(99));
    for burst_log2 in [14u64, 18, 22] {
        let before = told.sampler.sampled;
        for _ in 0..1u64 << burst_log2 {
            told.sample(&Rate { period: 4, tick: burst_log2, allowance, ..Rate::default() }, &mut random);
        }
        let (sampled, stretches) = (told.sampler.sampled - before, burst_log2 / 2);
        assert!(sampled <= allowance * stretches, "{sampled} sampled of a burst of 2^{burst_log2}");
    }
}

#[test]
fn every_event_is_counted_and_at_period_one_every_event_is_sampled() {
    let (mut told, mut random) = (Told::default(), SplitMix(1));
    for n in 0..10_000 {
        assert_eq!(told.sample(&fixed(1)(n), &mut random), Weight::ONE);
    }
    let Sampler { events, sampled, passed, estimated, count_variance, .. } = told.read();
    assert_eq!([events, sampled, passed, estimated, count_variance], [10_000, 10_000, 10_000, 10_000, 0]);
}
