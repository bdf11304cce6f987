//! The layout of every map's keys and values.

use crate::{Latency, Lifetime};

/// A value made of `u64` words only, without padding, so that it can be summed and subtracted word by word.
///
/// # Safety
/// The type is `repr(C)`, consists of `u64` words alone, and is valid for every bit pattern.
pub unsafe trait Words: Copy + 'static {
    /// All words zero.
    fn zero() -> Self {
        // SAFETY: every bit pattern is valid.
        unsafe { core::mem::zeroed() }
    }

    /// The value as its words.
    fn words(&self) -> &[u64] {
        // SAFETY: the type consists of u64 words alone, so it is aligned and initialised as such.
        unsafe { core::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>() / 8) }
    }

    /// The value as its words, to change.
    fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as in `words`, and every bit pattern is valid.
        unsafe { core::slice::from_raw_parts_mut((&raw mut *self).cast(), size_of::<Self>() / 8) }
    }

    /// Adds every word of `other`, modulo 2^64.
    fn add(&mut self, other: &Self) {
        for (word, other) in self.words_mut().iter_mut().zip(other.words()) {
            *word = word.wrapping_add(*other);
        }
    }

    /// Every word less that of `before`, modulo 2^64.
    fn since(&self, before: &Self) -> Self {
        let mut delta = *self;
        for (word, before) in delta.words_mut().iter_mut().zip(before.words()) {
            *word = word.wrapping_sub(*before);
        }
        delta
    }

    /// Whether all words are zero.
    fn is_zero(&self) -> bool {
        self.words().iter().all(|word| *word == 0)
    }
}

macro_rules! words {
    ($($type:ty),+ $(,)?) => { $(
        // SAFETY: repr(C), and every member is a u64, an array of u64, or another such type.
        unsafe impl Words for $type {}
    )+ };
}

words!(ProcessRow, ProcessBank, CommRow, TcpRow, TcpBank, FlowRow, DiskRow, DiskBank, DiskWorkloadRow);

/// A probe: the unit that runs or does not run on a kernel, and that is sampled as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Probe {
    /// Process starts and ends.
    Process,
    /// TCP connections and their flows.
    Tcp,
    /// Block requests.
    Disk,
}

impl Probe {
    /// Every probe, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Process, Self::Tcp, Self::Disk];

    /// The probe's name in flags, labels and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Tcp => "tcp",
            Self::Disk => "disk",
        }
    }
}

/// A table of keyed rows that is kept in two banks; its number indexes [`Control`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Table {
    /// [`ProcessRow`] by cgroup.
    Process,
    /// [`CommRow`] by command name.
    Comm,
    /// [`TcpRow`] by cgroup.
    Tcp,
    /// [`FlowRow`] by [`FlowKey`].
    Flow,
    /// [`DiskWorkloadRow`] by [`DiskWorkloadKey`].
    DiskWorkload,
}

/// Number of [`Table`]s.
pub const TABLES: usize = 5;

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
    /// Sockets that carry a [`Socket`] now.
    pub sockets: u64,
    /// Sockets that may carry one. Written by user space.
    pub sockets_limit: u64,
}

/// Why something was not counted where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Loss {
    /// A keyed table had no room: the event is in the `other` or `unknown` row.
    MapFull,
    /// A connection whose beginning the agent did not see: some of its facts are unknown.
    LateAttach,
    /// A connection that is not followed, because the socket limit is reached or the kernel had no memory for it.
    SocketStorage,
    /// A disk request without a time stamp: counted, but in no latency histogram.
    NoTimestamp,
}

impl Loss {
    /// Every loss a program counts, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::MapFull, Self::LateAttach, Self::SocketStorage, Self::NoTimestamp];

    /// The value of the label `reason`.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::MapFull => "map_full",
            Self::LateAttach => "late_attach",
            Self::SocketStorage => "socket_storage",
            Self::NoTimestamp => "no_timestamp",
        }
    }
}

/// Number of [`Loss`]es.
pub const LOSSES: usize = Loss::ALL.len();

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Outcome {
    /// Exit status 0.
    Success,
    /// Any other exit status.
    Failure,
    /// Ended by a signal.
    Signal,
}

impl Outcome {
    /// Every outcome, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Success, Self::Failure, Self::Signal];

    /// The value of the label `outcome`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Signal => "signal",
        }
    }

    /// What a wait status says: the signal in the low seven bits, else the exit status above the low byte
    /// (kernel/exit.c, 6.18).
    #[inline(always)]
    pub const fn of_status(status: u32) -> Self {
        if status & 0x7f != 0 {
            Self::Signal
        } else if status & 0xff00 != 0 {
            Self::Failure
        } else {
            Self::Success
        }
    }
}

/// Process counters of one cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessRow {
    /// Successful `execve` calls.
    pub execs: u64,
    /// New processes, not threads.
    pub forks: u64,
    /// Processes that ended, by [`Outcome`].
    pub exits: [u64; 3],
    /// Processes that ended after the OOM killer chose them.
    pub oom_kills: u64,
}

/// Execs under one command name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CommRow {
    /// Successful `execve` calls.
    pub execs: u64,
}

/// The process probe's per-CPU bank.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ProcessBank {
    /// Nanoseconds from a process's start to its end.
    pub lifetime: Lifetime,
    /// What did not fit the table of processes by cgroup.
    pub other: ProcessRow,
    /// What did not fit the table of command names.
    pub comm_other: CommRow,
    /// Losses by [`Loss`].
    pub lost: [u64; LOSSES],
}

/// Which end of a connection the socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub enum Role {
    /// It connected.
    Client,
    /// It accepted.
    Server,
}

impl Role {
    /// Both roles, in the order of their numbers.
    pub const ALL: [Self; 2] = [Self::Client, Self::Server];

    /// The value of the label `role`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Why a connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Failure {
    /// The peer answered the first segment with a reset (`ECONNREFUSED`).
    Refused,
    /// No answer in time (`ETIMEDOUT`).
    Timeout,
    /// The peer reset a connection that was established (`ECONNRESET`, `EPIPE`).
    Reset,
    /// Anything else, such as an unreachable network or a `connect` given up by the program.
    Other,
}

impl Failure {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Refused, Self::Timeout, Self::Reset, Self::Other];

    /// The value of the label `reason`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Other => "other",
        }
    }

    /// What the socket's error says (include/uapi/asm-generic/errno.h; the same on x86_64 and arm64).
    #[inline(always)]
    pub const fn of_errno(errno: u32) -> Self {
        match errno {
            111 => Self::Refused,
            110 => Self::Timeout,
            104 | 32 => Self::Reset,
            _ => Self::Other,
        }
    }
}

/// TCP counters of one cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpRow {
    /// Connections established, by [`Role`].
    pub opened: [u64; 2],
    /// Connections older than the agent, by [`Role`].
    pub adopted: [u64; 2],
    /// Established or adopted connections that ended, by [`Role`].
    pub closed: [u64; 2],
    /// Connections that ended in an error, by [`Failure`].
    pub failed: [u64; 4],
    /// Segments retransmitted.
    pub retransmits: u64,
}

/// The TCP probe's per-CPU bank.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TcpBank {
    /// Nanoseconds from the first SYN to established, of connections opened from here.
    pub connect: Latency,
    /// Smoothed round-trip time in nanoseconds, one observation per connection and sweep and one at its end.
    pub rtt: Latency,
    /// Nanoseconds from established to closed, by [`Role`].
    pub lifetime: [Lifetime; 2],
    /// Resets sent and received.
    pub resets: [u64; 2],
    /// What did not fit the table of TCP counters by cgroup.
    pub other: TcpRow,
    /// What did not fit the table of flows, by [`Role`].
    pub flow_other: [FlowRow; 2],
    /// Losses by [`Loss`].
    pub lost: [u64; LOSSES],
}

/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;

/// What tells one flow from another.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// The socket's cgroup.
    pub cgroup: u64,
    /// The remote address; IPv4 as IPv4-mapped IPv6.
    pub peer: [u8; 16],
    /// The service port: the local one for a server, the remote one for a client. Host byte order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// A [`Role`]'s number.
    pub role: u8,
    /// Zero.
    pub padding: u32,
}

/// What one flow moved.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FlowRow {
    /// Payload bytes sent, each byte once.
    pub sent_bytes: u64,
    /// Payload bytes received, each byte once.
    pub received_bytes: u64,
    /// Connections established.
    pub connections: u64,
    /// Segments retransmitted.
    pub retransmits: u64,
}

/// What the TCP probe keeps in each socket it follows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Socket {
    /// The flow it belongs to, fixed when it is first seen: the kernel clears ports before it says that a socket closed.
    pub flow: FlowKey,
    /// Monotonic nanoseconds of the last state that counts: SYN sent, then established. 0 when not known.
    pub since_ns: u64,
    /// 1 once established.
    pub established: u64,
    /// What was added to the flow's row already.
    pub counted: FlowRow,
}

/// A listening port.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    /// The network namespace's inode.
    pub netns: u32,
    /// The local port in host byte order.
    pub port: u32,
}

/// A process that ended, by the two facts that no other process shares.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Exited {
    /// Monotonic nanoseconds of its start.
    pub start_ns: u64,
    /// Its process id.
    pub tgid: u64,
}

/// What a block request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub enum DiskOp {
    /// Reads.
    Read,
    /// Writes, also zone appends.
    Write,
    /// Flushes of the device's cache.
    Flush,
    /// Discards and secure erases.
    Discard,
    /// Everything else: write zeroes, zone management, passthrough commands.
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
    /// Zero.
    pub padding: u32,
}

/// Block requests of one device and operation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DiskRow {
    /// Requests completed.
    pub ios: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Requests that failed; never sampled.
    pub errors: u64,
    /// Nanoseconds from queueing to completion.
    pub total: Latency,
    /// Nanoseconds from issue to the device to completion.
    pub device: Latency,
}

/// The disk probe's per-CPU bank.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DiskBank {
    /// What did not fit the table of devices, by [`DiskOp`].
    pub other: [DiskRow; 5],
    /// What did not fit the table of workloads, by [`DiskOp`].
    pub workload_other: [DiskWorkloadRow; 5],
    /// Losses by [`Loss`].
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
}
