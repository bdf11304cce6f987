//! The process probe: execs, forks, exits by outcome, lifetimes and OOM kills. All are counted one
//! by one until the CPU budget cannot pay for it, then sampled; OOM kills are never sampled.

use core::{ffi::c_void, hint::black_box};

use aya_ebpf::{
    bindings::BPF_NOEXIST, helpers::bpf_get_current_comm, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use siskin_ebpf::{CommRow, Exited, Loss, Outcome, ProcessBank, ProcessRow, Program, Table, Weight};

use crate::{
    atomic::add,
    facts::{self, load},
    log::trace,
    maps,
    meter::{self, Run},
    sampling::{self, add_variance},
};

/// `SIGNAL_GROUP_EXIT`: the whole process is ending with one status (include/linux/sched/signal.h, 5.10 to 6.18).
const SIGNAL_GROUP_EXIT: u32 = 4;

/// `sched_process_exec(task, old_pid, bprm)`, in the task itself after its name changed.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn process_exec(ctx: BtfTracePointContext) -> i32 {
    meter::run_event(Program::ProcessExec, true, |run| {
        let weight = sampling::sample(run);
        if !weight.is_nothing() {
            run.begin_work();
            executed(&ctx, weight);
            run.end_work();
        }
    })
}

#[inline(always)]
fn executed(ctx: &BtfTracePointContext, weight: Weight) {
    let task: *const c_void = ctx.arg(0);
    let Some(bank) = maps::PROCESS_BANK.get_ptr_mut(maps::shard()) else { return };
    trace!(ctx, "exec");
    let row = row_of(task, bank);
    let comm_row = match bpf_get_current_comm() {
        Ok(comm) => {
            maps::row(Table::Comm, &maps::COMM_ROWS_A, &maps::COMM_ROWS_B, &comm, &CommRow::default())
        }
        Err(_) => None,
    };
    // SAFETY: rows and banks are map values; the programs access them only through atomic adds.
    unsafe {
        add(&raw mut (*row).execs, weight.of(1));
        add_variance(&raw mut (*row).variance[0], weight, 1, 0);
        let comm_row = comm_row.unwrap_or_else(|| {
            maps::lose(&raw mut (*bank).lost, Loss::MapFull);
            &raw mut (*bank).comm_other
        });
        add(&raw mut (*comm_row).execs, weight.of(1));
    }
}

/// `sched_process_fork(parent, child)`, in the parent, also for threads. The child is charged to its own cgroup,
/// which `CLONE_INTO_CGROUP` makes another one than the parent's.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn process_fork(ctx: BtfTracePointContext) -> i32 {
    meter::run(Program::ProcessFork, |run| {
        let child: *const c_void = ctx.arg(1);
        // SAFETY: `child` is a `task_struct` by the tracepoint's BTF, and so for every load below.
        let (pid, tgid): (u32, u32) =
            unsafe { (load(child, &facts::TASK_PID), load(child, &facts::TASK_TGID)) };
        if pid != tgid {
            return;
        }
        let weight = sampling::sample(run);
        if !weight.is_nothing() {
            run.begin_work();
            forked(child, weight);
            run.end_work();
        }
    })
}

#[inline(always)]
fn forked(child: *const c_void, weight: Weight) {
    let Some(bank) = maps::PROCESS_BANK.get_ptr_mut(maps::shard()) else { return };
    let row = row_of(child, bank);
    // SAFETY: map values.
    unsafe {
        add(&raw mut (*row).forks, weight.of(1));
        add_variance(&raw mut (*row).variance[1], weight, 1, 0);
    }
}

/// `sched_process_exit(task[, group_dead])`, in the task itself, for every thread.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(ctx: BtfTracePointContext) -> i32 {
    meter::run(Program::ProcessExit, |run| {
        let task: *const c_void = ctx.arg(0);
        // SAFETY: by the tracepoint's BTF `task` is a `task_struct`; the others are what its fields
        // point to.
        let (leader, signal): (*const c_void, *const c_void) =
            unsafe { (load(task, &facts::TASK_LEADER), load(task, &facts::TASK_SIGNAL)) };
        // SAFETY: as above.
        let start_ns: u64 = unsafe { load(leader, &facts::TASK_START) };
        let last = if facts::value(&facts::EXIT_SAYS_LAST) == 1 {
            ctx.arg::<u64>(1) & 0xff != 0
        } else {
            last_thread(task, signal, start_ns)
        };
        if !last {
            return;
        }
        // Set once for every process that the OOM killer chose (mark_oom_victim, mm/oom_kill.c, 4.9
        // and later): the same events as the tracepoint `mark_victim`, which on older kernels does
        // not say whose process it was. SAFETY: as above.
        let has_oom_mm = unsafe { load::<u64>(signal, &facts::SIGNAL_OOM_MM) } != 0;
        // In a box: the compiler would combine the pointer with another condition, which the
        // verifier does not take.
        let oom_killed = black_box(has_oom_mm);
        let weight = sampling::sample(run);
        if !weight.is_nothing() || oom_killed {
            let now_ns = run.begin_work_at();
            ended(task, [leader, signal], [start_ns, now_ns], oom_killed, weight, run);
            run.end_work();
        }
    })
}

/// Counts the end of a process: an OOM kill in any case, the rest when it was sampled.
#[inline(always)]
fn ended(
    task: *const c_void,
    [leader, signal]: [*const c_void; 2],
    times_ns: [u64; 2],
    oom_killed: bool,
    weight: Weight,
    run: &Run,
) {
    let Some(bank) = maps::PROCESS_BANK.get_ptr_mut(maps::shard()) else { return };
    let row = row_of(task, bank);
    if oom_killed {
        let weight = sampling::whenever_attached(run);
        // SAFETY: a map value.
        add(unsafe { &raw mut (*row).oom_kills }, weight.of(1));
    }
    if !weight.is_nothing() {
        exited(leader, signal, times_ns, row, bank, weight);
    }
}

/// The variance of lifetimes is kept in units of 2^16 ns.
const LIFETIME_UNIT_LOG2: u32 = 16;

#[inline(always)]
fn exited(
    leader: *const c_void,
    signal: *const c_void,
    [start_ns, now_ns]: [u64; 2],
    row: *mut ProcessRow,
    bank: *mut ProcessBank,
    weight: Weight,
) {
    // SAFETY: a `task_struct` and its `signal_struct`; rows and banks are map values.
    unsafe {
        // The status that the parent will see (wait_task_zombie, kernel/exit.c, 6.18).
        // Both are loaded, one is used: the compiler would make one load of two places, and 5.10 does not see which is whose.
        let (of_group, own): (u32, u32) =
            (load(signal, &facts::SIGNAL_EXIT_CODE), load(leader, &facts::TASK_EXIT_CODE));
        let is_group = load::<u32>(signal, &facts::SIGNAL_FLAGS) & SIGNAL_GROUP_EXIT != 0;
        let status = if is_group { of_group } else { own };
        match Outcome::of_status(status) {
            Outcome::Success => add(&raw mut (*row).exits[0], weight.of(1)),
            Outcome::Failure => add(&raw mut (*row).exits[1], weight.of(1)),
            Outcome::Signal => add(&raw mut (*row).exits[2], weight.of(1)),
        }
        let lifetime_ns = now_ns.saturating_sub(start_ns);
        maps::observe(&raw mut (*bank).lifetime, lifetime_ns, weight);
        if weight.is_sampled() {
            add(&raw mut (*row).variance[2], weight.variance(1, 0));
            add(&raw mut (*bank).lifetime_variance, weight.variance(lifetime_ns, LIFETIME_UNIT_LOG2));
        }
    }
}

/// Whether `task` is the thread whose end is the process's end, where the tracepoint does not say so. Several threads
/// may see no living thread when they end at once; the first of them to leave a mark is it.
#[inline(always)]
fn last_thread(task: *const c_void, signal: *const c_void, start_ns: u64) -> bool {
    // SAFETY: a `task_struct` and its `signal_struct`.
    let (live, tgid): (u32, u32) =
        unsafe { (load(signal, &facts::SIGNAL_LIVE), load(task, &facts::TASK_TGID)) };
    let process = Exited { start_ns, tgid: tgid.into() };
    // Any other failure to leave a mark is no reason to count nobody.
    live == 0 && maps::EXITED.insert(process, 1, BPF_NOEXIST.into()) != Err(maps::EEXIST)
}

/// The row of the task's cgroup, or the bank's `other` row.
#[inline(always)]
fn row_of(task: *const c_void, bank: *mut ProcessBank) -> *mut ProcessRow {
    // SAFETY: `task` is a `task_struct`, and each next pointer is what the field before points to.
    let cgroup: u64 = unsafe {
        let css_set: *const c_void = load(task, &facts::TASK_CGROUPS);
        let cgroup: *const c_void = load(css_set, &facts::CSS_SET_CGROUP);
        let node: *const c_void = load(cgroup, &facts::CGROUP_KN);
        load(node, &facts::KN_ID)
    };
    let zero = ProcessRow { execs: 0, forks: 0, exits: [0; 3], oom_kills: 0, variance: [0; 3] };
    maps::row(Table::Process, &maps::PROCESS_ROWS_A, &maps::PROCESS_ROWS_B, &cgroup, &zero).unwrap_or_else(
        || {
            // SAFETY: a map value.
            unsafe {
                maps::lose(&raw mut (*bank).lost, Loss::MapFull);
                &raw mut (*bank).other
            }
        },
    )
}
