//! Counts the programs' runs and times a few of them, so that user space knows what Siskin costs
//! without CAP_SYS_ADMIN.

use aya_ebpf::{
    bindings::BPF_RB_FORCE_WAKEUP,
    helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns},
};
use siskin_ebpf::{Program, ProgramStats, Rate};

use crate::{
    atomic::{get, set},
    maps::{CONTROL, OVERLOAD, PROGRAM_STATS},
};

/// One run in so many is timed until its event is skipped.
const RUN_GAP: u64 = 1000;
/// One in so many runs that do the whole work is timed from where the work begins.
const SAMPLED_GAP: u64 = 16;

/// A run of a program. What is being timed stands in its statistics and not here: the verifier
/// would look at everything between twice, once for a run that is timed and once for one that is
/// not.
pub struct Run {
    /// The program's statistics on this CPU.
    pub stats: *mut ProgramStats,
}

/// Runs `work` as a run of the program. Not for code that several programs share: the compiler
/// would make a function of the closure, and call it.
#[inline(always)]
pub fn run(program: Program, work: impl FnOnce(&mut Run)) -> i32 {
    if let Some(mut run) = begin(program) {
        work(&mut run);
        run.end();
    }
    0
}

/// Counts the run, and notifies user space when there were too many in this tick. Ends with
/// [`Run::end`].
#[inline(always)]
pub fn begin(program: Program) -> Option<Run> {
    let all = PROGRAM_STATS.get_ptr_mut(0)?;
    // SAFETY: a map value; the index is a constant where this is inlined.
    let stats = unsafe { (&raw mut (*all).programs).cast::<ProgramStats>().add(program as usize) };
    let control = CONTROL.get_ptr(0)?;
    // SAFETY: map values; there is a rate for each probe; the statistics are written by this
    // program alone. Before 6.1 it may interrupt itself, which can lose a count and no more.
    unsafe {
        let rate = (&raw const (*control).rates).cast::<Rate>().add(program.probe() as usize);
        if (*stats).run(get(&raw const (*rate).tick), get(&raw const (*rate).overload_runs)) {
            // When there is no room, a notification waits that nobody has read yet.
            let _ = OVERLOAD.output((*stats).tick, BPF_RB_FORCE_WAKEUP.into());
        }
        if (*stats).run_time.is_due((*stats).runs, RUN_GAP, random) {
            let first_ns = bpf_ktime_get_ns();
            let began_ns = bpf_ktime_get_ns();
            (*stats).clock_time.add(began_ns - first_ns);
            set(&raw mut (*stats).run_began_ns, began_ns);
        }
        Some(Run { stats })
    }
}

impl Run {
    /// Ends the run, if its timing did not end where the work on an event began.
    #[inline(always)]
    pub fn end(&mut self) {
        // SAFETY: the helper has no preconditions; the statistics are as in `begin`.
        unsafe {
            let began_ns = get(&raw const (*self.stats).run_began_ns);
            if began_ns != 0 {
                set(&raw mut (*self.stats).run_began_ns, 0);
                (*self.stats).run_time.add(bpf_ktime_get_ns() - began_ns);
            }
        }
    }

    /// Begins the work on an event. It ends with [`Self::end_work`].
    #[inline(always)]
    pub fn begin_work(&mut self) {
        if self.is_work_due() {
            // SAFETY: the helper has no preconditions; the statistics are as in `begin`.
            unsafe { set(&raw mut (*self.stats).work_began_ns, bpf_ktime_get_ns()) };
        }
    }

    /// The same for work that needs to know the time: nanoseconds since boot.
    #[inline(always)]
    pub fn begin_work_at(&mut self) -> u64 {
        let is_due = self.is_work_due();
        // SAFETY: the helper has no preconditions; the statistics are as in `begin`.
        unsafe {
            let now_ns = bpf_ktime_get_ns();
            if is_due {
                set(&raw mut (*self.stats).work_began_ns, now_ns);
            }
            now_ns
        }
    }

    /// Ends the work on an event.
    #[inline(always)]
    pub fn end_work(&mut self) {
        // SAFETY: the helper has no preconditions; the statistics are as in `begin`.
        unsafe {
            let began_ns = get(&raw const (*self.stats).work_began_ns);
            if began_ns != 0 {
                set(&raw mut (*self.stats).work_began_ns, 0);
                (*self.stats).sampled_time.add(bpf_ktime_get_ns() - began_ns);
            }
        }
    }

    /// Counts the work; says whether it is to be timed.
    #[inline(always)]
    fn is_work_due(&mut self) -> bool {
        self.end();
        // SAFETY: the statistics are as in `begin`.
        unsafe {
            (*self.stats).sampled_runs += 1;
            (*self.stats).sampled_time.is_due((*self.stats).sampled_runs, SAMPLED_GAP, random)
        }
    }
}

/// A random number of the kernel's.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_prandom_u32() }
}
