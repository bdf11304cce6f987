//! The disk probe's keys and values.

use super::{LOSSES, Latency, words::made_of_words};

made_of_words!(DiskRow, DiskUncounted, DiskBank, DiskWorkloadRow);

/// What a block request does, in the groups of the kernel's own statistics (`op_stat_group`,
/// include/linux/blk_types.h, 6.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub enum DiskOp {
    /// Reads.
    Read,
    /// Writes, also zone appends, write zeroes and secure erases.
    Write,
    /// Flushes of the device's cache.
    Flush,
    /// Discards.
    Discard,
    /// Passthrough commands.
    Other,
}

impl DiskOp {
    /// Every operation, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Flush, Self::Discard, Self::Other];

    /// The value of the label `op`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::Other => "other",
        }
    }
}

/// A device and an operation on it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskKey {
    /// Major number of the whole disk.
    pub major: u32,
    /// Minor number of the whole disk.
    pub minor: u32,
    /// A [`DiskOp`]'s number.
    pub op: u32,
    /// The number of its shard.
    pub shard: u32,
}

/// Requests that are not in the kernel's own statistics of the device: its queue keeps none
/// (queue/iostats is 0), or not of such requests.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskUncounted {
    /// Requests completed.
    pub ios: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// The variance that sampling adds to the requests.
    pub ios_variance: u64,
    /// The variance that sampling adds to the bytes, in units of 512 bytes squared.
    pub bytes_variance: u64,
}

/// Block requests of one device and operation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DiskRow {
    /// Requests completed.
    pub ios: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Those of them that only the programs count.
    pub uncounted: DiskUncounted,
    /// Requests that failed; never sampled.
    pub errors: u64,
    /// Nanoseconds from queueing to completion.
    pub total: Latency,
    /// Nanoseconds from issue to the device to completion.
    pub device: Latency,
}

/// Totals over all devices and operations, which are the totals over all workloads too, with the
/// variances that sampling adds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskTotal {
    /// Requests.
    pub ios: u64,
    /// Bytes.
    pub bytes: u64,
    /// Nanoseconds of total latencies.
    pub total_ns: u64,
    /// Nanoseconds of device latencies.
    pub device_ns: u64,
    /// Variance of bytes, in units of 512 bytes squared.
    pub bytes_variance: u64,
    /// Variance of the sum of total latencies, in units of 256 ns squared.
    pub total_variance: u64,
    /// Variance of the sum of device latencies, in units of 256 ns squared.
    pub device_variance: u64,
}

/// The disk probe's bank, of each shard.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DiskBank {
    /// What did not fit the table of devices, by [`DiskOp`].
    pub other: [DiskRow; 5],
    /// What did not fit the table of workloads, by [`DiskOp`].
    pub workload_other: [DiskWorkloadRow; 5],
    /// Totals over all devices and operations.
    pub total: DiskTotal,
    /// Losses by [`Loss`](crate::Loss).
    pub lost: [u64; LOSSES],
}

/// A cgroup and an operation it asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskWorkloadKey {
    /// The cgroup's inode in its hierarchy; 0 when the request has none.
    pub cgroup: u64,
    /// The hierarchy: 0 for cgroup2, else the number of the cgroup v1 hierarchy that has `blkio`.
    pub hierarchy: u32,
    /// A [`DiskOp`]'s number.
    pub op: u32,
}

/// Block requests of one cgroup and operation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskWorkloadRow {
    /// Requests completed.
    pub ios: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// The variance that sampling adds to the requests.
    pub ios_variance: u64,
    /// The variance that sampling adds to the bytes, in units of 512 bytes squared.
    pub bytes_variance: u64,
}
