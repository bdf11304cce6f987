//! The one place that decides whether a hot event is taken, and what it weighs.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use siskin_ebpf::{Probe, Rate, Slot};

use crate::{
    atomic::{add, get},
    maps::CONTROL,
};

/// How many events a taken event stands for: N from the draw, and D from being attached for 1 in D of the time.
#[derive(Clone, Copy)]
pub struct Weight {
    /// N times D as a power of two.
    log2: u64,
    /// N as a power of two.
    period_log2: u64,
}

impl Weight {
    /// The event stands for itself alone.
    pub const ONE: Self = Self { log2: 0, period_log2: 0 };

    /// Whether the event stands for itself alone.
    #[inline(always)]
    pub fn is_one(self) -> bool {
        self.log2 == 0
    }

    /// What a taken event adds to a total of `value`.
    #[inline(always)]
    pub fn of(self, value: u64) -> u64 {
        value << self.log2
    }

    /// Adds to the variance of a total of `value` what the draw brings, in units of 2^`unit_log2`.
    #[inline(always)]
    pub fn spread(self, word: *mut u64, value: u64, unit_log2: u32) {
        // Nothing is added where nothing is drawn; adding a constant 0 would become another instruction, which 5.10 lacks.
        if self.period_log2 != 0 {
            add(word, self.variance(value, unit_log2.into()));
        }
    }

    /// D² N(N-1) v² in units of 2^(2 `unit_log2`); at most 2^62. The unit is taken off the weight and not off the value, so that
    /// values below the unit count too.
    #[inline(always)]
    fn variance(self, value: u64, unit_log2: u64) -> u64 {
        const MOST: u64 = 1 << 62;
        let value = if value < 1 << 31 { value } else { (1 << 31) - 1 };
        let square = value * value;
        let scaled = if self.log2 < unit_log2 {
            square >> (2 * (unit_log2 - self.log2))
        } else {
            let shift = 2 * (self.log2 - unit_log2);
            if square > MOST >> shift { MOST } else { square << shift }
        };
        scaled - (scaled >> self.period_log2)
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
            period_log2: get(&raw const (*rate).period_log2),
            duty_log2: get(&raw const (*rate).duty_log2),
            tick: get(&raw const (*rate).tick),
            allowance: get(&raw const (*rate).allowance),
            // The meter's business.
            alarm_runs: 0,
        })
    }
}

/// Whether the probe is to count nothing now. Only programs that stay attached meanwhile need to ask.
#[inline(always)]
pub fn paused(probe: Probe) -> bool {
    // SAFETY: a map value with a word for each probe.
    CONTROL.get_ptr(0).is_some_and(
        |control| unsafe { get((&raw const (*control).paused).cast::<u64>().add(probe as usize)) } != 0,
    )
}

/// Takes the event or passes it over.
#[inline(always)]
pub fn take(slot: *mut Slot, probe: Probe) -> Option<Weight> {
    let rate = rate(probe)?;
    // SAFETY: a map value that only this program writes, and it does not interrupt itself.
    let log2 = unsafe { (*slot).sampler.take(&rate, seed) }?;
    Some(Weight { log2, period_log2: log2 - rate.duty_log2 })
}

/// Whether the next event stands for itself alone.
#[inline(always)]
pub fn takes_all(slot: *const Slot, probe: Probe) -> bool {
    // SAFETY: as in `take`.
    rate(probe).is_some_and(|rate| rate.duty_log2 == 0 && unsafe { (*slot).sampler.period_log2(&rate) } == 0)
}

/// The weight of an event that is never passed over while the probe is attached.
#[inline(always)]
pub fn whenever_attached(probe: Probe) -> Weight {
    let log2 = rate(probe).map_or(0, |rate| rate.duty_log2);
    Weight { log2, period_log2: 0 }
}

/// A seed for a CPU's random numbers.
#[inline(always)]
fn seed() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { (u64::from(bpf_get_prandom_u32()) << 32) | u64::from(bpf_get_prandom_u32()) }
}
