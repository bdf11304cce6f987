//! The one place that decides whether a hot event is sampled, and what it weighs.

use siskin_ebpf::{Probe, Weight};

use crate::{
    atomic::{add, get},
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
/// The weight comes out of the program's statistics: the verifier knows nothing of it there, and
/// does not look at all that follows once for each kind of weight.
#[inline(always)]
pub fn sample(run: &Run) -> Weight {
    // SAFETY: a map value that only this program writes, and it does not interrupt itself.
    unsafe {
        let sampler = &raw mut (*run.stats).sampler;
        if (*sampler).skips(random) { Weight::NOTHING } else { (*sampler).take() }
    }
}

/// Whether the next event stands for itself alone.
#[inline(always)]
pub fn samples_all(run: &Run) -> bool {
    // SAFETY: as in `sample`.
    unsafe { (*run.stats).sampler.duty() == 1 && (*run.stats).sampler.period() == 1 }
}

/// The weight of an event that is never skipped while the probe is attached.
#[inline(always)]
pub fn whenever_attached(run: &Run) -> Weight {
    // SAFETY: as in `sample`.
    Weight::new(1, unsafe { (*run.stats).sampler.duty() })
}
