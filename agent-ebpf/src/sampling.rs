//! The one place that decides whether a hot event is taken, and what it weighs.

use siskin_ebpf::Probe;

/// How many events a taken event stands for: what it adds to a count, and how often it adds its value to a sum.
#[derive(Clone, Copy)]
pub struct Weight(pub u64);

/// Takes the event or passes it over. Every event is taken while no budget drives the sampling.
#[inline(always)]
pub fn take(_probe: Probe) -> Option<Weight> {
    Some(Weight(1))
}
