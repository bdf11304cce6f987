//! The maps, and the only ways in which the programs write to them.
//!
//! Sizes given here are placeholders where user space sets the real ones before loading.

use core::hint::black_box;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage},
    helpers::generated::bpf_get_smp_processor_id,
    macros::btf_map,
};
use siskin_ebpf::{
    AllStats, CgroupBank, CgroupKey, CgroupNote, CommRow, Control, DiskBank, DiskKey, DiskRow,
    DiskWorkloadKey, DiskWorkloadRow, Exited, FlowKey, FlowRow, Histogram, Listener, Loss, ProcessBank,
    ProcessRow, SHARDS, Socket, Table, TcpBank, TcpRow, UdpBank, UdpRow, Weight,
};

use crate::atomic::{add, get, set};

/// Rows of a keyed table, until user space says how many.
const ROWS: usize = 1024;

#[btf_map(name = "control")]
pub static CONTROL: Array<Control, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map(name = "program_stats")]
pub static PROGRAM_STATS: PerCpuArray<AllStats, 1> = PerCpuArray::new();

#[btf_map(name = "overload")]
pub static OVERLOAD: RingBuf<u64, 4096> = RingBuf::new();

#[btf_map(name = "cgroup_bank")]
pub static CGROUP_BANK: PerCpuArray<CgroupBank, 1> = PerCpuArray::new();
#[btf_map(name = "cgroup_notes")]
pub static CGROUP_NOTES: HashMap<CgroupKey, CgroupNote, ROWS> = HashMap::new();
#[btf_map(name = "cgroup_draft")]
pub static CGROUP_DRAFT: PerCpuArray<CgroupNote, 1> = PerCpuArray::new();

#[btf_map(name = "process_bank")]
pub static PROCESS_BANK: Array<ProcessBank, { SHARDS as usize }> = Array::new();
#[btf_map(name = "process_rows_a")]
pub static PROCESS_ROWS_A: HashMap<u64, ProcessRow, ROWS> = HashMap::new();
#[btf_map(name = "process_rows_b")]
pub static PROCESS_ROWS_B: HashMap<u64, ProcessRow, ROWS> = HashMap::new();
#[btf_map(name = "comm_rows_a")]
pub static COMM_ROWS_A: HashMap<[u8; 16], CommRow, ROWS> = HashMap::new();
#[btf_map(name = "comm_rows_b")]
pub static COMM_ROWS_B: HashMap<[u8; 16], CommRow, ROWS> = HashMap::new();
#[btf_map(name = "exited")]
pub static EXITED: LruHashMap<Exited, u64, ROWS> = LruHashMap::new();

#[btf_map(name = "tcp_bank")]
pub static TCP_BANK: Array<TcpBank, { SHARDS as usize }> = Array::new();
#[btf_map(name = "tcp_rows_a")]
pub static TCP_ROWS_A: HashMap<u64, TcpRow, ROWS> = HashMap::new();
#[btf_map(name = "tcp_rows_b")]
pub static TCP_ROWS_B: HashMap<u64, TcpRow, ROWS> = HashMap::new();
#[btf_map(name = "flow_rows_a")]
pub static FLOW_ROWS_A: HashMap<FlowKey, FlowRow, ROWS> = HashMap::new();
#[btf_map(name = "flow_rows_b")]
pub static FLOW_ROWS_B: HashMap<FlowKey, FlowRow, ROWS> = HashMap::new();
#[btf_map(name = "tcp_sockets")]
pub static TCP_SOCKETS: SkStorage<Socket> = SkStorage::new();
#[btf_map(name = "tcp_by_address")]
pub static TCP_BY_ADDRESS: HashMap<u64, Socket, ROWS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map(name = "tcp_listeners")]
pub static TCP_LISTENERS: HashMap<Listener, u64, ROWS> = HashMap::new();

#[btf_map(name = "disk_bank")]
pub static DISK_BANK: Array<DiskBank, { SHARDS as usize }> = Array::new();
#[btf_map(name = "disk_rows")]
pub static DISK_ROWS: HashMap<DiskKey, DiskRow, ROWS> = HashMap::new();
#[btf_map(name = "disk_work_a")]
pub static DISK_WORKLOAD_ROWS_A: HashMap<DiskWorkloadKey, DiskWorkloadRow, ROWS> = HashMap::new();
#[btf_map(name = "disk_work_b")]
pub static DISK_WORKLOAD_ROWS_B: HashMap<DiskWorkloadKey, DiskWorkloadRow, ROWS> = HashMap::new();

#[btf_map(name = "udp_bank")]
pub static UDP_BANK: PerCpuArray<UdpBank, 1> = PerCpuArray::new();
#[btf_map(name = "udp_rows_a")]
pub static UDP_ROWS_A: HashMap<FlowKey, UdpRow, ROWS> = HashMap::new();
#[btf_map(name = "udp_rows_b")]
pub static UDP_ROWS_B: HashMap<FlowKey, UdpRow, ROWS> = HashMap::new();

/// The shard of this CPU: the index of its banks that are too large to be there for every CPU.
#[inline(always)]
pub fn shard() -> u32 {
    // SAFETY: a map value.
    let log2 = CONTROL.get_ptr(0).map_or(0, |of| unsafe { get(&raw const (*of).cpus_per_shard_log2) });
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    (cpu >> (log2 as u32 & 31)) & (SHARDS - 1)
}

/// Adds one observation of `value` with its weight.
#[inline(always)]
pub fn observe<const MIN_EXP: u32, const N: usize>(
    histogram: *mut Histogram<MIN_EXP, N>,
    value: u64,
    weight: Weight,
) {
    let index = Histogram::<MIN_EXP, N>::index(value);
    // The bound is written out where the verifier sees it: `index` is computed with shifts that it does not follow.
    if index < N {
        // SAFETY: inside the array, by the check above.
        unsafe {
            add((&raw mut (*histogram).buckets).cast::<u64>().add(index), weight.of(1));
            add(&raw mut (*histogram).sum, weight.of(value));
        }
    }
}

/// The word or row at `index` of an array in a map value. The compiler knows that an enum is in range and drops the
/// comparison; the verifier does not know it, so the number passes through a box that the compiler cannot see into.
#[inline(always)]
pub fn element<T, const N: usize>(array: *mut [T; N], index: usize) -> *mut T {
    let index = black_box(index);
    let index = if index < N { index } else { 0 };
    // SAFETY: inside the array.
    unsafe { array.cast::<T>().add(index) }
}

/// Counts a loss in a bank's `lost`.
#[inline(always)]
pub fn lose<const N: usize>(lost: *mut [u64; N], loss: Loss) {
    // SAFETY: every `lost` has a word for each `Loss`.
    add(unsafe { lost.cast::<u64>().add(loss as usize) }, 1);
}

/// The row of `key` in the bank that is written to now, made if it is not there. `None` when there is no room; the
/// caller then adds to its `other` row.
#[inline(always)]
pub fn row<K, V, const N: usize>(
    table: Table,
    a: &HashMap<K, V, N>,
    b: &HashMap<K, V, N>,
    key: &K,
    zero: &V,
) -> Option<*mut V> {
    let control = CONTROL.get_ptr_mut(0)?;
    // SAFETY: `control` points to the one element, and `table` indexes arrays of `TABLES`.
    let (active, full, rows) = unsafe {
        let table = table as usize;
        let active = get((&raw const (*control).active).cast::<u64>().add(table)) & 1;
        let rows = (&raw mut (*control).rows).cast::<u64>().add(table * 2 + active as usize);
        (active, (&raw mut (*control).full).cast::<u64>().add(table), rows)
    };
    let bank = if active == 0 { a } else { b };
    if let Some(row) = bank.get_ptr_mut(key) {
        return Some(row);
    }
    // Before 6.0 inserting into a full preallocated hash searches every CPU's free list, so it is tried once.
    if get(full) != 0 {
        return None;
    }
    match bank.insert(key, zero, BPF_NOEXIST.into()) {
        Ok(()) => add(rows, 1),
        Err(EEXIST) => {}
        Err(E2BIG) => {
            set(full, 1);
            return None;
        }
        Err(_) => return None,
    }
    bank.get_ptr_mut(key)
}

/// Another CPU made the row first.
pub const EEXIST: i32 = -17;
/// The map is full.
const E2BIG: i32 = -7;
