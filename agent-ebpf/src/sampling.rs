//! The one place that decides whether a hot event is sampled, and what it weighs.

use siskin_ebpf::{Probe, Rate, Weight};

use crate::{
    atomic::{add, get, set},
    maps::CONTROL,
    meter::{Run, random},
};

/// Adds to the variance of a total of `value` what sampling adds to it, in units of 2^(2
/// `unit_log2`).
#[inline(always)]
pub fn add_variance(word: *mut u64, weight: Weight, value: u64, unit_log2: u32) {
    if weight.is_sampled() {
        add(word, weight.variance(value, unit_log2));
    }
}

/// How the probe is sampled now.
#[inline(always)]
fn rate(probe: Probe) -> Option<Rate> {
    let control = CONTROL.get_ptr(0)?;
    // SAFETY: a map value with a rate for each probe.
    unsafe {
        let rate = (&raw const (*control).rates).cast::<Rate>().add(probe as usize);
        Some(Rate {
            period: get(&raw const (*rate).period),
            duty: get(&raw const (*rate).duty),
            tick: get(&raw const (*rate).tick),
            allowance: get(&raw const (*rate).allowance),
            // The meter's business.
            overload_runs: 0,
        })
    }
}

/// Whether the probe is to count nothing now. Only programs that are always attached need to ask.
#[inline(always)]
pub fn paused(probe: Probe) -> bool {
    // SAFETY: a map value with a word for each probe.
    CONTROL.get_ptr(0).is_some_and(
        |control| unsafe { get((&raw const (*control).paused).cast::<u64>().add(probe as usize)) } != 0,
    )
}

/// Samples the event or skips it: [`Weight::NOTHING`].
///
/// The weight goes through the program's statistics: the verifier forgets there what it knows of
/// it, and does not look at all that follows once for each kind of weight.
#[inline(always)]
pub fn sample(run: &Run, probe: Probe) -> Weight {
    let Some(rate) = rate(probe) else { return Weight::NOTHING };
    // SAFETY: a map value that only this program writes, and it does not interrupt itself.
    unsafe {
        let words = (&raw mut (*run.stats).weight).cast::<u64>();
        let [total, period] = (*run.stats).sampler.sample(&rate, seed).words();
        set(words, total);
        set(words.add(1), period);
        Weight::of_words([get(words), get(words.add(1))])
    }
}

/// Whether the next event stands for itself alone.
#[inline(always)]
pub fn samples_all(run: &Run, probe: Probe) -> bool {
    // SAFETY: as in `sample`.
    rate(probe).is_some_and(|rate| rate.duty() == 1 && unsafe { (*run.stats).sampler.period(&rate) } == 1)
}

/// The weight of an event that is never skipped while the probe is attached.
#[inline(always)]
pub fn whenever_attached(probe: Probe) -> Weight {
    Weight::new(1, rate(probe).map_or(1, |rate| rate.duty()))
}

/// A seed for a CPU's random numbers.
#[inline(always)]
fn seed() -> u64 {
    (u64::from(random()) << 32) | u64::from(random())
}
