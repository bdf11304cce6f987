//! Counts and times the programs' runs, so that user space knows what Siskin costs without CAP_SYS_ADMIN.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use siskin_ebpf::{Program, Slot};

use crate::maps::SLOTS;

/// This program's slot on this CPU, with the run counted.
#[inline(always)]
pub fn begin(program: Program) -> Option<*mut Slot> {
    let slots = SLOTS.get_ptr_mut(0)?;
    // SAFETY: a map value; the index is a constant where this is inlined.
    let slot = unsafe { (&raw mut (*slots).of).cast::<Slot>().add(program as usize) };
    // SAFETY: a map value that only this program writes, and it does not interrupt itself.
    unsafe { (*slot).runs += 1 };
    Some(slot)
}

/// Runs `body` and notes how long it took.
#[inline(always)]
pub fn time(slot: *mut Slot, body: impl FnOnce()) {
    // SAFETY: the helper has no preconditions; the slot is as in `begin`.
    unsafe {
        let begin_ns = bpf_ktime_get_ns();
        body();
        (*slot).full_runs += 1;
        (*slot).busy_ns += bpf_ktime_get_ns() - begin_ns;
    }
}

/// Counts, runs and times a program that is not sampled.
#[inline(always)]
pub fn run(program: Program, body: impl FnOnce()) -> i32 {
    if let Some(slot) = begin(program) {
        time(slot, body);
    }
    0
}
