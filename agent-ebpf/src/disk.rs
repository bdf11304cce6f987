//! The disk probe: one program on completion, because a request carries its own time stamps. Errors are exact, the
//! rest is sampled.

use core::ffi::c_void;

use aya_ebpf::{bindings::BPF_NOEXIST, macros::btf_tracepoint, programs::BtfTracePointContext};
use siskin_ebpf::{
    DiskBank, DiskKey, DiskOp, DiskRow, DiskWorkloadKey, DiskWorkloadRow, Latency, Loss, Program, Table,
    Weight,
};

use crate::{
    atomic::add,
    facts::{self, load, present},
    log::trace,
    maps::{self, DISK_BANK, DISK_ROWS},
    meter::{self, Run},
    sampling,
};

/// The low byte of `cmd_flags` is the operation (`REQ_OP_MASK`, include/linux/blk_types.h, 6.18).
const REQ_OP_MASK: u32 = 0xff;

/// Variances of bytes are kept in units of 512 bytes.
const BYTES_UNIT_LOG2: u32 = 9;
/// Variances of latencies are kept in units of 256 ns.
const NS_UNIT_LOG2: u32 = 8;

/// A row of zeros in the read-only section: too large for the stack of 512 bytes.
static ZERO_ROW: [u64; size_of::<DiskRow>() / 8] = [0; size_of::<DiskRow>() / 8];

/// `block_rq_complete(rq, error, nr_bytes)`: a request or a part of it is done.
#[btf_tracepoint(function = "block_rq_complete")]
pub fn disk_complete(ctx: BtfTracePointContext) -> i32 {
    // An `int` before 5.16, a `blk_status_t` of one byte since; zero is success in both.
    let failed = ctx.arg::<u32>(1) & 0xff != 0;
    meter::run_event(Program::DiskComplete, !failed, |run| {
        let weight = sampling::sample(run);
        if !weight.is_nothing() || failed {
            let now_ns = run.begin_work_at();
            completed(&ctx, failed, weight, now_ns, run);
            run.end_work();
        }
    })
}

/// Counts a completion: its error exactly, the rest with its weight when it was sampled.
#[inline(always)]
fn completed(ctx: &BtfTracePointContext, failed: bool, weight: Weight, now_ns: u64, run: &Run) {
    let rq: *const c_void = ctx.arg(0);
    let bytes: u32 = ctx.arg(2);
    let Some(bank) = DISK_BANK.get_ptr_mut(maps::shard()) else { return };
    trace!(ctx, "request complete, failed {}, {} bytes", u8::from(failed), bytes);
    // SAFETY: `rq` is a `request` by the tracepoint's BTF.
    let (left, flags, part): (u32, u32, *const c_void) =
        unsafe { (load(rq, &facts::RQ_DATA_LEN), load(rq, &facts::RQ_FLAGS), load(rq, &facts::RQ_PART)) };
    let flag = |bit| (flags >> facts::value(bit)) & 1 != 0;
    let in_flush = flag(&facts::RQF_FLUSH_SEQ);
    let has_part = !part.is_null();
    // SAFETY: as above.
    let op = unsafe { operation(rq, in_flush, has_part) };
    // A write that needs a flush before or after it completes twice: its data inside the flush sequence, and then, without
    // bytes, the write itself (block/blk-flush.c, 6.18). The kernel's own statistics count the write then, also one that
    // was nothing but a flush; and the flush that the sequence sends to the device is a request of its own.
    let data_only = in_flush && op != DiskOp::Flush;
    let key = device(rq, op);
    let row = disk_row(&key).unwrap_or_else(|| {
        // SAFETY: a map value.
        unsafe {
            maps::lose(&raw mut (*bank).lost, Loss::MapFull);
            other_row(bank, op)
        }
    });
    // SAFETY: rows are map values.
    unsafe {
        if failed && !data_only {
            add(&raw mut (*row).errors, sampling::whenever_attached(run).of(1));
        }
        if weight.is_nothing() {
            return;
        }
        let is_done = bytes >= left;
        let ios = u64::from(is_done && !data_only);
        let mut counted = Counted { ios, bytes: bytes.into(), device_ns: 0, total_ns: 0 };
        if is_done {
            let keeps_statistics = in_flush || flag(&facts::RQF_IO_STAT);
            // The device is done with a write when its data is, not when the flushes after it are.
            if op != DiskOp::Write || bytes != 0 {
                // The queue takes the time only while somebody asks for it, such as writeback
                // throttling (blk_mq_start_request, block/blk-mq.c, 6.18).
                let loss = if keeps_statistics { Some(Loss::NoDeviceTime) } else { None };
                let issued_ns = load(rq, &facts::RQ_IO_START);
                counted.device_ns = observed(issued_ns, now_ns, &raw mut (*row).device, loss, bank, weight);
            }
            if !data_only {
                // Without the flag the time is zero or, since 6.13, what an earlier request left
                // there. Flushes do not have the flag, and always the time (blk_rq_init,
                // block/blk-mq.c, 6.18). No time: the queue keeps no statistics (queue/iostats is
                // 0), or not of such requests.
                let queued_ns = if keeps_statistics { load(rq, &facts::RQ_START) } else { 0 };
                let loss = Some(Loss::NoTimestamp);
                counted.total_ns = observed(queued_ns, now_ns, &raw mut (*row).total, loss, bank, weight);
            }
        }
        let Counted { ios, bytes, .. } = counted;
        add(&raw mut (*row).ios, weight.of(ios));
        add(&raw mut (*row).bytes, weight.of(bytes));
        // What the kernel's own statistics count has a part (blk_account_io_start, block/blk-mq.c,
        // 5.10 to 7.3). A flush is always in them (blk_account_io_flush, block/blk-flush.c, 5.5 to
        // 7.3). The rest is only in what the program counts.
        if op != DiskOp::Flush && !has_part {
            let uncounted = &raw mut (*row).uncounted;
            add(&raw mut (*uncounted).ios, weight.of(ios));
            add(&raw mut (*uncounted).bytes, weight.of(bytes));
            add(&raw mut (*uncounted).ios_variance, weight.variance(ios, 0));
            add(&raw mut (*uncounted).bytes_variance, weight.variance(bytes, BYTES_UNIT_LOG2));
        }
        // The row of the workload is looked for when the row of the device is done with: the
        // verifier looks at what follows once for each place where a row may be.
        count(workload_row(rq, op, bank), bank, weight, &counted);
    }
}

/// What a completion adds to the totals.
struct Counted {
    ios: u64,
    bytes: u64,
    /// 0 when it is not known.
    device_ns: u64,
    /// 0 when it is not known.
    total_ns: u64,
}

/// Adds how long it took since then to a histogram. 0 is no time: that is a loss, if it is one, and
/// takes no time.
///
/// # Safety
/// Both pointers are into map values.
#[inline(always)]
unsafe fn observed(
    since_ns: u64,
    now_ns: u64,
    histogram: *mut Latency,
    loss: Option<Loss>,
    bank: *mut DiskBank,
    weight: Weight,
) -> u64 {
    if since_ns != 0 {
        let ns = now_ns.saturating_sub(since_ns);
        maps::observe(histogram, ns, weight);
        return ns;
    }
    if let Some(loss) = loss {
        // SAFETY: as the caller promises; every `lost` has a word for each `Loss`.
        add(unsafe { (&raw mut (*bank).lost).cast::<u64>().add(loss as usize) }, weight.of(1));
    }
    0
}

/// Adds a completion to its workload's row and to the totals of all.
///
/// # Safety
/// `work` and `bank` are map values.
#[inline(always)]
unsafe fn count(work: *mut DiskWorkloadRow, bank: *mut DiskBank, weight: Weight, counted: &Counted) {
    let Counted { ios, bytes, device_ns, total_ns } = *counted;
    // SAFETY: as the caller promises.
    unsafe {
        let total = &raw mut (*bank).total;
        add(&raw mut (*work).ios, weight.of(ios));
        add(&raw mut (*work).bytes, weight.of(bytes));
        add(&raw mut (*total).ios, weight.of(ios));
        add(&raw mut (*total).bytes, weight.of(bytes));
        add(&raw mut (*total).device_ns, weight.of(device_ns));
        add(&raw mut (*total).total_ns, weight.of(total_ns));
        if weight.is_sampled() {
            let bytes_variance = weight.variance(bytes, BYTES_UNIT_LOG2);
            add(&raw mut (*work).ios_variance, weight.variance(ios, 0));
            add(&raw mut (*work).bytes_variance, bytes_variance);
            add(&raw mut (*total).bytes_variance, bytes_variance);
            add(&raw mut (*total).device_variance, weight.variance(device_ns, NS_UNIT_LOG2));
            add(&raw mut (*total).total_variance, weight.variance(total_ns, NS_UNIT_LOG2));
        }
    }
}

/// What the request does.
///
/// # Safety
/// `rq` is a `request` by BTF.
#[inline(always)]
unsafe fn operation(rq: *const c_void, in_flush: bool, has_part: bool) -> DiskOp {
    // SAFETY: as the caller promises.
    let op = unsafe { load::<u32>(rq, &facts::RQ_CMD_FLAGS) } & REQ_OP_MASK;
    // Grouped as the kernel's own statistics are (`op_stat_group`, include/linux/blk_types.h, 5.10
    // to 7.3): of the others odd numbers write, also zone appends, secure erases, write zeroes and
    // zone management. From 32 on they are passthrough commands (enum req_op), which some kernels
    // count. A flush outside of a flush sequence is a clone of device mapper's.
    match op {
        2 if in_flush => DiskOp::Flush,
        3 => DiskOp::Discard,
        32.. if !has_part => DiskOp::Other,
        op if op & 1 != 0 => DiskOp::Write,
        _ => DiskOp::Read,
    }
}

/// The whole disk that the request is for; 0:0 for a queue without one.
#[inline(always)]
fn device(rq: *const c_void, op: DiskOp) -> DiskKey {
    // SAFETY: `rq` is a `request` by BTF, and each next pointer is what the field before points to.
    let (major, minor) = unsafe {
        let disk: *const c_void = if present(&facts::RQ_DISK) {
            load(rq, &facts::RQ_DISK)
        } else {
            let queue: *const c_void = load(rq, &facts::RQ_QUEUE);
            load(queue, &facts::QUEUE_DISK)
        };
        (load(disk, &facts::DISK_MAJOR), load(disk, &facts::DISK_MINOR))
    };
    DiskKey { major, minor, op: op as u32, shard: maps::shard() }
}

/// The row of a device and operation, of the shard in the key.
#[inline(always)]
fn disk_row(key: &DiskKey) -> Option<*mut DiskRow> {
    if let Some(row) = DISK_ROWS.get_ptr_mut(key) {
        return Some(row);
    }
    // SAFETY: a row is made of u64 words, and the static is as long as a row.
    let zero = unsafe { &*(&raw const ZERO_ROW).cast::<DiskRow>() };
    // Whatever stopped it, the second look says whether there is a row now.
    let _ = DISK_ROWS.insert(key, zero, BPF_NOEXIST.into());
    DISK_ROWS.get_ptr_mut(key)
}

/// The bank's row for what did not fit the table of devices.
#[inline(always)]
fn other_row(bank: *mut DiskBank, op: DiskOp) -> *mut DiskRow {
    // SAFETY: a map value.
    maps::element(unsafe { &raw mut (*bank).other }, op as usize)
}

/// The row of the cgroup that asked for the request, or the bank's row for what did not fit.
#[inline(always)]
fn workload_row(rq: *const c_void, op: DiskOp, bank: *mut DiskBank) -> *mut DiskWorkloadRow {
    let (mut cgroup_id, mut hierarchy) = (0u64, 0u32);
    if present(&facts::BIO_BLKG) && present(&facts::BLKG_BLKCG) && present(&facts::BLKCG_CGROUP) {
        // SAFETY: `rq` is a `request` by BTF, and each next pointer is what the field before points to. A request without
        // a bio, such as a flush, reads as zero: nobody's.
        unsafe {
            let bio: *const c_void = load(rq, &facts::RQ_BIO);
            let group: *const c_void = load(bio, &facts::BIO_BLKG);
            let blkcg: *const c_void = load(group, &facts::BLKG_BLKCG);
            let cgroup: *const c_void = load(blkcg, &facts::BLKCG_CGROUP);
            let node: *const c_void = load(cgroup, &facts::CGROUP_KN);
            let root: *const c_void = load(cgroup, &facts::CGROUP_ROOT);
            cgroup_id = load(node, &facts::KN_ID);
            hierarchy = load(root, &facts::ROOT_HIERARCHY);
        }
    }
    let key = DiskWorkloadKey { cgroup: cgroup_id, hierarchy, op: op as u32 };
    let zero = DiskWorkloadRow { ios: 0, bytes: 0, ios_variance: 0, bytes_variance: 0 };
    let (a, b) = (&maps::DISK_WORKLOAD_ROWS_A, &maps::DISK_WORKLOAD_ROWS_B);
    maps::row(Table::DiskWorkload, a, b, &key, &zero).unwrap_or_else(|| {
        // SAFETY: a map value.
        unsafe {
            maps::lose(&raw mut (*bank).lost, Loss::MapFull);
            maps::element(&raw mut (*bank).workload_other, op as usize)
        }
    })
}
