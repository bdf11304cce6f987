//! Counts and times the programs' runs, so that user space knows what Siskin costs without CAP_SYS_ADMIN.

use aya_ebpf::{bindings::BPF_RB_FORCE_WAKEUP, helpers::bpf_ktime_get_ns};
use siskin_ebpf::{Program, Rate, Slot};

use crate::{
    atomic::get,
    maps::{ALARM, CONTROL, SLOTS},
};

/// This program's slot on this CPU, with the run counted. Rings the alarm when there were too many in this tick.
#[inline(always)]
pub fn begin(program: Program) -> Option<*mut Slot> {
    let slots = SLOTS.get_ptr_mut(0)?;
    // SAFETY: a map value; the index is a constant where this is inlined.
    let slot = unsafe { (&raw mut (*slots).of).cast::<Slot>().add(program as usize) };
    let control = CONTROL.get_ptr(0)?;
    // SAFETY: map values; there is a rate for each probe; the slot is written by this program alone. Before 6.1 it may interrupt itself, which
    // can lose a count and no more.
    unsafe {
        let rate = (&raw const (*control).rates).cast::<Rate>().add(program.probe() as usize);
        if (*slot).run(get(&raw const (*rate).tick), get(&raw const (*rate).alarm_runs)) {
            // When there is no room, the alarm has been rung and nobody came yet.
            let _ = ALARM.output((*slot).tick, BPF_RB_FORCE_WAKEUP.into());
        }
    }
    Some(slot)
}

/// Runs `body`, which is given the time in nanoseconds since boot, and notes how long it took.
#[inline(always)]
pub fn time(slot: *mut Slot, body: impl FnOnce(u64)) {
    // SAFETY: the helper has no preconditions; the slot is as in `begin`.
    unsafe {
        let begin_ns = bpf_ktime_get_ns();
        body(begin_ns);
        (*slot).full_runs += 1;
        (*slot).busy_ns += bpf_ktime_get_ns() - begin_ns;
    }
}

/// Counts, runs and times a program that is not sampled.
#[inline(always)]
pub fn run(program: Program, body: impl FnOnce(u64)) -> i32 {
    if let Some(slot) = begin(program) {
        time(slot, body);
    }
    0
}
