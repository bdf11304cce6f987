//! Counts the programs' runs and times a few of them, so that user space knows what Siskin costs
//! without CAP_SYS_ADMIN.

use aya_ebpf::{
    bindings::BPF_RB_FORCE_WAKEUP,
    helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns},
};
use siskin_ebpf::{Program, ProgramStats, Rate};

use crate::{
    atomic::{get, set},
    facts::after,
    maps::{CONTROL, OVERLOAD, PROGRAM_STATS},
};

/// One run in so many is timed until its event is skipped.
const RUN_GAP: u64 = 1000;
/// One in so many runs that do the whole work is timed from where the work begins.
const SAMPLED_GAP: u64 = 64;

/// A run of a program. What is being timed stands in its statistics and not here: the verifier
/// would look at everything between twice, once for a run that is timed and once for one that is
/// not.
pub struct Run {
    /// The program's statistics on this CPU.
    pub stats: *mut ProgramStats,
}

/// Runs `work` as a run of the program. As [`run_event`].
#[inline(always)]
pub fn run(program: Program, work: impl FnOnce(&mut Run)) -> i32 {
    run_event(program, false, work)
}

/// Runs `work` as a run of the program, unless it is an event that is skipped. Not for code that
/// several programs share: the compiler would make a function of the closure, and call it.
#[inline(always)]
pub fn run_event(program: Program, may_be_skipped: bool, work: impl FnOnce(&mut Run)) -> i32 {
    if let Some(mut run) = begin_event(program, may_be_skipped, false) {
        work(&mut run);
        run.end();
    }
    0
}

/// Counts the run, and notifies user space when there were too many in this tick. Ends with
/// [`Run::end`].
#[inline(always)]
pub fn begin(program: Program) -> Option<Run> {
    begin_event(program, false, false)
}

/// The same for a run that is an event which `may_be_skipped`: nothing more is to be done when it
/// is, as most are while few are sampled. So what those do lies close together, and comes first. A
/// program that `stays_attached` does nothing while its probe is paused.
#[inline(always)]
pub fn begin_event(program: Program, may_be_skipped: bool, stays_attached: bool) -> Option<Run> {
    let all = PROGRAM_STATS.get_ptr_mut(0)?;
    // SAFETY: a map value; the index is a constant where this is inlined.
    let stats = unsafe { (&raw mut (*all).programs).cast::<ProgramStats>().add(program as usize) };
    let control = CONTROL.get_ptr(0)?;
    // SAFETY: map values; there is a rate for each probe; the statistics are written by this
    // program alone. Before 6.1 it may interrupt itself, which can lose a count and no more.
    unsafe {
        if stays_attached
            && get((&raw const (*control).paused).cast::<u64>().add(program.probe() as usize)) != 0
        {
            return None;
        }
        let rate = (&raw const (*control).rates).cast::<Rate>().add(program.probe() as usize);
        let generation = get(&raw const (*rate).generation);
        if may_be_skipped && (*stats).skips(generation) {
            return None;
        }
        if (*stats).run(generation) {
            look(stats, rate, generation);
        }
        Some(Run { stats })
    }
}

/// Reads a rate of which the generation was read before.
///
/// # Safety
/// A map value.
#[inline(always)]
unsafe fn rate_of(rate: *const Rate, generation: u64) -> Rate {
    let rate: *const Rate = after(rate.cast(), generation).cast();
    // SAFETY: as the caller promises.
    unsafe {
        Rate {
            period: get(&raw const (*rate).period),
            duty: get(&raw const (*rate).duty),
            tick: get(&raw const (*rate).tick),
            allowance: get(&raw const (*rate).allowance),
            overload_runs: get(&raw const (*rate).overload_runs),
            generation,
        }
    }
}

/// Does what a run does besides being counted: takes another rate, notifies, begins to be timed.
///
/// # Safety
/// The statistics are as in `begin`, and the rate is a map value.
#[inline(always)]
unsafe fn look(stats: *mut ProgramStats, rate: *const Rate, generation: u64) {
    // SAFETY: as the caller promises.
    unsafe {
        let rate = &rate_of(rate, generation);
        if (*stats).look(rate) {
            // When there is no room, a notification waits that nobody has read yet.
            let _ = OVERLOAD.output((*stats).tick, BPF_RB_FORCE_WAKEUP.into());
        }
        if (*stats).run_time.is_due((*stats).runs, RUN_GAP, random) {
            let first_ns = bpf_ktime_get_ns();
            let began_ns = bpf_ktime_get_ns();
            (*stats).clock_time.add(began_ns - first_ns);
            set(&raw mut (*stats).run_began_ns, began_ns);
        }
        (*stats).set_stop(rate);
    }
}

/// Ends a run that is being timed.
///
/// # Safety
/// The statistics are as in `begin`.
#[inline(always)]
unsafe fn end_timed(stats: *mut ProgramStats) {
    // SAFETY: as the caller promises; the helper has no preconditions.
    unsafe {
        let began_ns = get(&raw const (*stats).run_began_ns);
        set(&raw mut (*stats).run_began_ns, 0);
        (*stats).run_time.add(bpf_ktime_get_ns() - began_ns);
    }
}

impl Run {
    /// Ends the run, if its timing did not end where the work on an event began.
    #[inline(always)]
    pub fn end(&mut self) {
        // SAFETY: the statistics are as in `begin`.
        unsafe {
            if get(&raw const (*self.stats).run_began_ns) != 0 {
                end_timed(self.stats);
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
