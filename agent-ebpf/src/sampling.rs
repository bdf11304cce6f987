//! The one place that decides whether a hot event is taken, and what it weighs.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use siskin_ebpf::{Probe, Rate, Slot};

use crate::{
    atomic::{add, get},
    maps::CONTROL,
};

/// How many events a taken event stands for, as a power of two.
#[derive(Clone, Copy)]
pub struct Weight {
    log2: u64,
}

impl Weight {
    /// The event stands for itself alone.
    pub const ONE: Self = Self { log2: 0 };

    /// What a taken event adds to a total of `value`.
    #[inline(always)]
    pub fn of(self, value: u64) -> u64 {
        value << self.log2
    }

    /// Adds to the variance of a total of `value`, in units of 2^`unit_log2`.
    #[inline(always)]
    pub fn spread(self, word: *mut u64, value: u64, unit_log2: u32) {
        if self.log2 != 0 {
            add(word, variance(self.log2, value, unit_log2.into()));
        }
    }
}

/// What [`siskin_ebpf::variance`] says, N(N-1) v², in units of 2^(2 `unit_log2`); at most 2^62. The unit is taken off the
/// weight and not off the value, so that values below the unit count too.
#[inline(always)]
fn variance(weight_log2: u64, value: u64, unit_log2: u64) -> u64 {
    const MOST: u64 = 1 << 62;
    let value = if value < 1 << 31 { value } else { (1 << 31) - 1 };
    let square = value * value;
    let scaled = if weight_log2 < unit_log2 {
        square >> (2 * (unit_log2 - weight_log2))
    } else {
        let shift = 2 * (weight_log2 - unit_log2);
        if square > MOST >> shift {
            return MOST;
        }
        square << shift
    };
    scaled - (scaled >> weight_log2)
}

/// Takes the event or passes it over.
#[inline(always)]
pub fn take(slot: *mut Slot, probe: Probe) -> Option<Weight> {
    let control = CONTROL.get_ptr(0)?;
    // SAFETY: map values; only this program writes its slot, and it does not interrupt itself.
    unsafe {
        let rate = (&raw const (*control).rates).cast::<Rate>().add(probe as usize);
        let rate = Rate {
            period_log2: get(&raw const (*rate).period_log2),
            duty_log2: get(&raw const (*rate).duty_log2),
            tick: get(&raw const (*rate).tick),
            allowance: get(&raw const (*rate).allowance),
        };
        let log2 = (*slot).sampler.take(&rate, seed)?;
        Some(Weight { log2 })
    }
}

/// A seed for a CPU's random numbers.
#[inline(always)]
fn seed() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { (u64::from(bpf_get_prandom_u32()) << 32) | u64::from(bpf_get_prandom_u32()) }
}
