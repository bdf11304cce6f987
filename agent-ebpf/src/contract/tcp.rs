//! The TCP probe's keys and values.

use super::{LOSSES, Latency, Lifetime, words::made_of_words};

made_of_words!(TcpRow, TcpBank, TcpEvents, FlowRow);

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
    /// Connections that sweeps found alive, by [`Role`]: each sweep adds how many there are.
    pub alive: [u64; 2],
    /// Connections that ended in an error, by [`Failure`].
    pub failed: [u64; 4],
    /// Segments retransmitted.
    pub retransmits: u64,
    /// The part of `opened` that stands for more than was seen, by the weights of the events.
    pub opened_sampled: [u64; 2],
    /// The variance that sampling adds to the connections established, over both roles.
    pub opened_variance: u64,
    /// The variance that sampling adds to the connections that ended in an error, over all reasons.
    pub failed_variance: u64,
}

/// Beginnings or ends of connections that are not followed, which are sampled one by one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectionCount {
    /// The sum of D over all of them: what the sum of weights would be if all were sampled.
    pub passed: u64,
    /// The sum of the weights of those that were sampled.
    pub estimated: u64,
}

/// Totals of what connections' beginnings and ends add, without what sweeps add, or their
/// variances.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpEvents {
    /// Connections established.
    pub opened: u64,
    /// Connections that ended in an error.
    pub failed: u64,
    /// Connections of flows.
    pub connections: u64,
    /// Payload bytes sent; variances in units of 16 bytes squared.
    pub sent_bytes: u64,
    /// Payload bytes received; variances in units of 16 bytes squared.
    pub received_bytes: u64,
    /// Segments retransmitted.
    pub retransmits: u64,
}

/// The TCP probe's bank, of each shard.
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
    /// Followed sockets that sweeps visited: each sweep adds how many there are.
    pub swept: u64,
    /// What was added for events, by their weights.
    pub events: TcpEvents,
    /// The variance that sampling adds to that.
    pub variance: TcpEvents,
    /// Beginnings of connections that are not followed.
    pub opened: ConnectionCount,
    /// Ends of connections that are not followed.
    pub ended: ConnectionCount,
    /// Losses by [`Loss`](crate::Loss).
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

/// What a socket moved.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketCounters {
    /// Payload bytes sent, each byte once.
    pub sent_bytes: u64,
    /// Payload bytes received, each byte once.
    pub received_bytes: u64,
    /// Connections established.
    pub connections: u64,
    /// Segments retransmitted.
    pub retransmits: u64,
}

/// What one flow moved.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct FlowRow {
    /// What its sockets moved.
    pub moved: SocketCounters,
    /// The part of that which stands for more than was seen, by the weights of the events.
    pub sampled: SocketCounters,
    /// The variance that sampling adds; bytes in units of 16 bytes squared.
    pub variance: SocketCounters,
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
    pub counted: SocketCounters,
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
