//! The `bpf(2)` calls that aya has no wrapper for, and attaching without aya's keeping of links. Layouts from include/uapi/linux/bpf.h, 6.18.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use aya_obj::generated::{
    PERF_EVENT_IOC_SET_BPF, PERF_FLAG_FD_CLOEXEC, bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_info,
    bpf_prog_type, perf_event_attr,
};

/// Calls `bpf(2)`.
///
/// # Safety
/// `attr` is filled in for `command`, and every address in it is valid for what the command does with it.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: as the caller promises.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut *attr, size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An attribute of zeros: what the kernel takes for "not given".
fn attr() -> bpf_attr {
    // SAFETY: a union of integers, valid for every bit pattern.
    unsafe { std::mem::zeroed() }
}

/// Takes a new file descriptor from a call's result.
fn owned(result: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel just made this descriptor for us. Descriptors fit an int.
    unsafe { OwnedFd::from_raw_fd(result as i32) }
}

/// Reads one element; a per-CPU map fills one value per possible CPU, each rounded up to eight bytes.
///
/// # Errors
/// `ENOENT` when the key is not there, `EPERM` without the privilege, `EINVAL` when `value` has the wrong size.
pub fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u64]) -> io::Result<()> {
    let mut attr = attr();
    // SAFETY: a union: the member that BPF_MAP_LOOKUP_ELEM reads.
    let element = unsafe { &mut attr.__bindgen_anon_2 };
    element.map_fd = map.as_raw_fd() as u32;
    element.key = key.as_ptr() as u64;
    element.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    // SAFETY: both slices outlive the call; callers size them for the map.
    unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) }.map(drop)
}

/// What one batch call did.
pub struct Batch {
    /// Elements copied.
    pub count: u32,
    /// Whether the map has no more.
    pub done: bool,
}

/// Where a batch walk stands: opaque to us, at most eight bytes for hash maps.
pub type Cursor = u64;

/// Copies elements of a hash map from `cursor` on into `keys` and `values`, as many as `count`.
///
/// # Errors
/// `ENOSPC` when a bucket holds more than `count` elements, `EINVAL` where the kernel has no batch calls (before 5.6).
pub fn lookup_batch(
    map: BorrowedFd<'_>,
    cursor: &mut Option<Cursor>,
    keys: &mut [u8],
    values: &mut [u64],
    count: u32,
) -> io::Result<Batch> {
    batch(bpf_cmd::BPF_MAP_LOOKUP_BATCH, map, cursor, keys, values, count)
}

/// As [`lookup_batch`], and removes what it copies, each element in one step.
///
/// # Errors
/// As [`lookup_batch`].
pub fn take_batch(
    map: BorrowedFd<'_>,
    cursor: &mut Option<Cursor>,
    keys: &mut [u8],
    values: &mut [u64],
    count: u32,
) -> io::Result<Batch> {
    batch(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_BATCH, map, cursor, keys, values, count)
}

fn batch(
    command: bpf_cmd,
    map: BorrowedFd<'_>,
    cursor: &mut Option<Cursor>,
    keys: &mut [u8],
    values: &mut [u64],
    count: u32,
) -> io::Result<Batch> {
    let mut next: Cursor = 0;
    let mut attr = attr();
    attr.batch.map_fd = map.as_raw_fd() as u32;
    attr.batch.in_batch = cursor.as_ref().map_or(0, |cursor| (&raw const *cursor) as u64);
    attr.batch.out_batch = (&raw mut next) as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = count;
    // SAFETY: cursors and slices outlive the call; callers size the slices for `count` elements.
    let result = unsafe { bpf(command, &mut attr) };
    // SAFETY: the kernel writes the count back, also with ENOENT.
    let count = unsafe { attr.batch.count };
    let done = match result {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    *cursor = Some(next);
    Ok(Batch { count, done })
}

/// Removes one element; not being there is fine.
///
/// # Errors
/// `EPERM` without the privilege.
pub fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr = attr();
    // SAFETY: a union: the member that BPF_MAP_DELETE_ELEM reads.
    let element = unsafe { &mut attr.__bindgen_anon_2 };
    element.map_fd = map.as_raw_fd() as u32;
    element.key = key.as_ptr() as u64;
    // SAFETY: the key outlives the call.
    match unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) } {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Attaches a loaded tracing program to the event that it was loaded for. It stays attached as long as the link is open.
///
/// # Errors
/// `EPERM` without the privilege, `ENOTSUPP` where the kernel cannot attach programs to functions.
pub fn attach(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = attr();
    // Without a name: the program knows its event.
    attr.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    // SAFETY: the descriptor is open during the call.
    unsafe { bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr) }.map(owned)
}

/// Whether a loaded program can be attached once more after it was detached: to functions not before 5.13
/// (bpf_tracing_prog_attach, kernel/bpf/syscall.c, forgets where the program belongs). Leaves it detached; where it cannot, for good.
///
/// # Errors
/// When it cannot be attached at all, as [`attach`] says.
pub fn attaches_again(program: BorrowedFd<'_>) -> io::Result<bool> {
    drop(attach(program)?);
    match attach(program) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether programs can be attached to the return of the function whose type has this number: attaches one that does nothing, and lets
/// it go.
pub fn attaches_exits(function: u32) -> bool {
    let program = [instruction(0xb7, 0x00, 0, 0), EXIT];
    let mut attr = attr();
    // SAFETY: a union: the members that BPF_PROG_LOAD reads.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
    load.expected_attach_type = bpf_attach_type::BPF_TRACE_FEXIT as u32;
    load.attach_btf_id = function;
    load.insns = program.as_ptr() as u64;
    load.insn_cnt = program.len() as u32;
    load.license = c"GPL".as_ptr() as u64;
    // SAFETY: instructions and licence outlive the call.
    let loaded = unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) }.map(owned);
    loaded.and_then(|program| attach(program.as_fd())).is_ok()
}

/// Attaches a loaded kprobe program to the entry of a function. It stays attached as long as the event is open. `kprobes` is what
/// `perf_event_open(2)` calls kprobes.
///
/// # Errors
/// `ENOENT` when the kernel has no such function, `EACCES` without CAP_PERFMON.
pub fn attach_entry(program: BorrowedFd<'_>, function: &str, kprobes: u32) -> io::Result<OwnedFd> {
    let function = CString::new(function)?;
    // SAFETY: a struct of integers, valid for every bit pattern.
    let mut event: perf_event_attr = unsafe { std::mem::zeroed() };
    event.size = size_of::<perf_event_attr>() as u32;
    event.type_ = kprobes;
    event.__bindgen_anon_3.kprobe_func = function.as_ptr() as u64;
    // Programs run on every CPU, whichever the event is on (kprobe_perf_func, kernel/trace/trace_kprobe.c, 6.1).
    let (any_task, cpu, no_group) = (-1, 0, -1);
    // SAFETY: the attributes and the name outlive the call, which copies them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const event,
            any_task,
            cpu,
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let event = owned(result);
    // SAFETY: two descriptors that are open during the call.
    match unsafe { libc::ioctl(event.as_raw_fd(), PERF_EVENT_IOC_SET_BPF.into(), program.as_raw_fd()) } {
        0 => Ok(event),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Links a loaded iterator program, to the elements of `map` where it visits a map's elements.
///
/// # Errors
/// `EINVAL` when the kernel does not know this iterator.
pub fn link_iter(program: BorrowedFd<'_>, map: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    // `union bpf_iter_link_info { struct { __u32 map_fd; } map; … }`; later members are longer and zero.
    let info = [map.map_or(0, |map| map.as_raw_fd() as u32), 0, 0, 0];
    let mut attr = attr();
    // SAFETY: a union: the members that BPF_LINK_CREATE reads for an iterator.
    let link = unsafe { &mut attr.link_create };
    link.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    link.attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
    if map.is_some() {
        // SAFETY: as above.
        let iter = unsafe { &mut link.__bindgen_anon_3.__bindgen_anon_1 };
        iter.iter_info = info.as_ptr() as u64;
        // The kernel accepts a longer union only when the rest is zero; the first member is enough.
        iter.iter_info_len = size_of_val(&info) as u32;
    }
    // SAFETY: `info` outlives the call.
    unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }.map(owned)
}

/// Starts one walk of a linked iterator; reading the descriptor to its end runs it.
///
/// # Errors
/// `EPERM` without the privilege, on kernels before 5.19.
pub fn create_iter(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = attr();
    attr.iter_create.link_fd = link.as_raw_fd() as u32;
    // SAFETY: nothing but a descriptor.
    unsafe { bpf(bpf_cmd::BPF_ITER_CREATE, &mut attr) }.map(owned)
}

/// What the kernel knows of a loaded program: run time and count while statistics are on, missed recursions,
/// verified instructions.
///
/// # Errors
/// Only for a descriptor that is no program.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: a struct of integers, valid for every bit pattern.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attr = attr();
    attr.info.bpf_fd = program.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    attr.info.info = (&raw mut info) as u64;
    // SAFETY: `info` outlives the call and is as long as said.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Opcode; destination (low) and source register; offset; immediate. include/uapi/linux/bpf.h, struct bpf_insn, 6.18.
const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> u64 {
    code as u64 | (registers as u64) << 8 | (offset as u16 as u64) << 16 | (immediate as u32 as u64) << 32
}

const EXIT: u64 = instruction(0x95, 0x00, 0, 0);

/// Whether the verifier takes atomic instructions that return what was there: loads a program with one, and lets it go.
pub fn atomics_fetch() -> bool {
    const BPF_XCHG: i32 = 0xe1;
    let program = [
        instruction(0xb7, 0x00, 0, 0),         // r0 = 0
        instruction(0x7b, 0x0a, -8, 0),        // *(u64 *)(r10 - 8) = r0
        instruction(0xdb, 0x0a, -8, BPF_XCHG), // r0 = xchg((u64 *)(r10 - 8), r0)
        instruction(0xb7, 0x00, 0, 0),         // r0 = 0
        EXIT,
    ];
    let mut attr = attr();
    // SAFETY: a union: the members that BPF_PROG_LOAD reads.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_SOCKET_FILTER as u32;
    load.insns = program.as_ptr() as u64;
    load.insn_cnt = program.len() as u32;
    load.license = c"GPL".as_ptr() as u64;
    // SAFETY: instructions and licence outlive the call.
    unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) }.map(owned).is_ok()
}

/// Turns on the kernel's run-time statistics of programs for as long as the descriptor lives (5.8).
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub fn enable_stats() -> io::Result<OwnedFd> {
    // BPF_STATS_RUN_TIME is 0.
    let mut attr = attr();
    // SAFETY: nothing but the type of statistics.
    unsafe { bpf(bpf_cmd::BPF_ENABLE_STATS, &mut attr) }.map(owned)
}

/// Waits until every program that was running when this was called has ended.
///
/// `MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu()`, and tracing programs run inside an RCU read-side section
/// (kernel/sched/membarrier.c and kernel/trace/bpf_trace.c, 6.18). Kernels with `nohz_full` refuse it; there the second that
/// is slept instead is far longer than any program runs.
pub fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes no addresses.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
