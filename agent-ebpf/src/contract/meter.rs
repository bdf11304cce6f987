//! What the programs note about themselves: how often they ran, how long, and the state of their sampling.

use super::{Sampler, words::made_of_words};

made_of_words!(Slots);

/// A program that runs on events. Iterators are not among them: they run inside the agent's own system calls and are
/// part of its process's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Program {
    /// `cgroup_mkdir`.
    CgroupMkdir,
    /// `cgroup_release`.
    CgroupRelease,
    /// `process_exec`.
    ProcessExec,
    /// `process_fork`.
    ProcessFork,
    /// `process_exit`.
    ProcessExit,
    /// `tcp_state`.
    TcpState,
    /// `tcp_reset_sent`.
    TcpResetSent,
    /// `tcp_reset_recv`.
    TcpResetReceived,
    /// `disk_complete`.
    DiskComplete,
    /// `udp_send`.
    UdpSend,
    /// `udp_receive`.
    UdpReceive,
}

/// Number of [`Program`]s.
pub const PROGRAMS: usize = 11;

impl Program {
    /// Every program, in the order of their numbers.
    pub const ALL: [Self; PROGRAMS] = [
        Self::CgroupMkdir,
        Self::CgroupRelease,
        Self::ProcessExec,
        Self::ProcessFork,
        Self::ProcessExit,
        Self::TcpState,
        Self::TcpResetSent,
        Self::TcpResetReceived,
        Self::DiskComplete,
        Self::UdpSend,
        Self::UdpReceive,
    ];

    /// The program's name in the kernel.
    pub const fn name(self) -> &'static str {
        use super::program;
        match self {
            Self::CgroupMkdir => program::CGROUP_MKDIR,
            Self::CgroupRelease => program::CGROUP_RELEASE,
            Self::ProcessExec => program::PROCESS_EXEC,
            Self::ProcessFork => program::PROCESS_FORK,
            Self::ProcessExit => program::PROCESS_EXIT,
            Self::TcpState => program::TCP_STATE,
            Self::TcpResetSent => program::TCP_RESET_SENT,
            Self::TcpResetReceived => program::TCP_RESET_RECEIVED,
            Self::DiskComplete => program::DISK_COMPLETE,
            Self::UdpSend => program::UDP_SEND,
            Self::UdpReceive => program::UDP_RECEIVE,
        }
    }
}

/// One program on one CPU. Only that program writes it, and a program does not interrupt itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    /// Times it ran.
    pub runs: u64,
    /// Runs that went all the way: for a sampled program those whose event was taken, else all.
    pub full_runs: u64,
    /// Nanoseconds that full runs took, from the first clock reading to the last.
    pub busy_ns: u64,
    /// Its sampling.
    pub sampler: Sampler,
}

/// Every program on one CPU: the element of the `slots` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Slots {
    /// By [`Program`].
    pub of: [Slot; PROGRAMS],
}
