//! Probes, tables, losses, and the element of the `control` map.

use super::Rate;

/// A probe: the unit that runs or does not run on a kernel, and that is sampled as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Probe {
    /// Cgroups that come and go: names for what the others count.
    Cgroup,
    /// Process starts and ends.
    Process,
    /// TCP connections and their flows.
    Tcp,
    /// Block requests.
    Disk,
    /// UDP datagrams and their flows.
    Udp,
}

impl Probe {
    /// Every probe, in the order of their numbers.
    pub const ALL: [Self; PROBES] = [Self::Cgroup, Self::Process, Self::Tcp, Self::Disk, Self::Udp];

    /// The probe's name in flags, labels and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Process => "process",
            Self::Tcp => "tcp",
            Self::Disk => "disk",
            Self::Udp => "udp",
        }
    }
}

/// Number of [`Probe`]s.
pub const PROBES: usize = 5;

/// What is notified instead of a tick when the first cgroup is noted since the notes were taken.
pub const NOTED: u64 = 0;

/// A table of keyed rows that is kept in two banks; its number indexes [`Control`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Table {
    /// [`ProcessRow`](crate::ProcessRow) by cgroup.
    Process,
    /// [`CommRow`](crate::CommRow) by command name.
    Comm,
    /// [`TcpRow`](crate::TcpRow) by cgroup.
    Tcp,
    /// [`FlowRow`](crate::FlowRow) by [`FlowKey`](crate::FlowKey).
    Flow,
    /// [`DiskWorkloadRow`](crate::DiskWorkloadRow) by [`DiskWorkloadKey`](crate::DiskWorkloadKey).
    DiskWorkload,
    /// [`UdpRow`](crate::UdpRow) by [`FlowKey`](crate::FlowKey).
    Udp,
    /// [`CgroupNote`](crate::CgroupNote) by [`CgroupKey`](crate::CgroupKey). Has one bank: user space takes notes out as it reads
    /// them.
    Cgroup,
}

/// Number of [`Table`]s.
pub const TABLES: usize = 7;

/// What both sides share at run time: one element of a memory-mapped array.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// Which bank of each table the programs write to, 0 or 1. Written by user space.
    pub active: [u64; TABLES],
    /// 1 when the active bank of a table took no more rows. Set by the programs, cleared by user space.
    pub full: [u64; TABLES],
    /// Rows inserted into each bank since it was last emptied. Raised by the programs, cleared by user space.
    pub rows: [[u64; 2]; TABLES],
    /// Sockets that carry a [`Socket`](crate::Socket) now.
    pub sockets: u64,
    /// Sockets that may carry one. Written by user space.
    pub sockets_limit: u64,
    /// 1 once connections passed that were not followed because of the CPU budget, until those
    /// still alive are adopted. Set by both sides, cleared by user space.
    pub tcp_shed: u64,
    /// [`crate::cpus_per_shard_log2`] of the machine. Written by user space.
    pub cpus_per_shard_log2: u64,
    /// The number of the socket at which a sweep stops, for user space to go on later. Written by
    /// user space.
    pub sweep_stop: u64,
    /// How each probe's events are sampled. Written by user space.
    pub rates: [Rate; PROBES],
    /// 1 while a probe is to count nothing: for those of its programs that stay attached nevertheless. Written by user space.
    pub paused: [u64; PROBES],
}

/// The most shards of what is hot and too large to be there for every CPU: each CPU adds to that of
/// its neighbours and itself, so that nothing is copied for every CPU of a large machine.
pub const SHARDS: u32 = 8;

/// How many neighbouring CPUs share a shard, as a power of two, on a machine with so many possible
/// CPUs.
pub const fn cpus_per_shard_log2(cpus: u32) -> u32 {
    cpus.div_ceil(SHARDS).next_power_of_two().trailing_zeros()
}

/// How many shards there are then.
pub const fn shards(cpus: u32) -> u32 {
    cpus.div_ceil(1 << cpus_per_shard_log2(cpus))
}

/// Why something was not counted where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Loss {
    /// A keyed table had no room: the event is in the `other` or `unknown` row.
    MapFull,
    /// A connection whose beginning the agent did not see: some of its facts are unknown. The end of one that was never
    /// followed looks the same, so a [`Self::SocketStorage`] is counted here as well when it ends.
    LateAttach,
    /// A connection that is not followed, because the socket limit is reached or the kernel had no memory for it.
    SocketStorage,
    /// A disk request without a time stamp: counted, but in no histogram of whole latencies.
    NoTimestamp,
    /// A cgroup whose path is longer than what the programs keep: its name waits for the next look at the tree.
    LongPath,
    /// A connection that is estimated and not followed, because of the CPU budget: it is in no histogram, nor among those open.
    Budget,
    /// A disk request of which the kernel did not keep when the device got it: not in the histogram of device latencies.
    NoDeviceTime,
}

impl Loss {
    /// Every loss a program counts, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::MapFull,
        Self::LateAttach,
        Self::SocketStorage,
        Self::NoTimestamp,
        Self::LongPath,
        Self::Budget,
        Self::NoDeviceTime,
    ];

    /// The value of the label `reason`.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::MapFull => "map_full",
            Self::LateAttach => "late_attach",
            Self::SocketStorage => "socket_storage",
            Self::NoTimestamp => "no_timestamp",
            Self::LongPath => "long_path",
            Self::Budget => "budget",
            Self::NoDeviceTime => "no_device_time",
        }
    }
}

/// Number of [`Loss`]es.
pub const LOSSES: usize = Loss::ALL.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cpu_has_a_shard_and_there_are_few() {
        for cpus in 1..=4096 {
            let (log2, count) = (cpus_per_shard_log2(cpus), shards(cpus));
            assert!((1..=SHARDS).contains(&count), "{cpus}");
            assert_eq!((cpus - 1) >> log2, count - 1, "{cpus}");
        }
        assert_eq!([1, 2, 8, 9, 64, 1024].map(shards), [1, 2, 8, 5, 8, 8]);
    }
}
