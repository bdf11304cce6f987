//! What the programs note about themselves: how often they ran, how long, and the state of their sampling.

use super::{Probe, Sampler, words::made_of_words};

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

    /// The probe that it belongs to.
    pub const fn probe(self) -> Probe {
        match self {
            Self::CgroupMkdir | Self::CgroupRelease => Probe::Cgroup,
            Self::ProcessExec | Self::ProcessFork | Self::ProcessExit => Probe::Process,
            Self::TcpState | Self::TcpResetSent | Self::TcpResetReceived => Probe::Tcp,
            Self::DiskComplete => Probe::Disk,
            Self::UdpSend | Self::UdpReceive => Probe::Udp,
        }
    }

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

impl Slot {
    /// Counts a run; says whether it is the one that rings the alarm: so many within a tick cost more than was planned for all of it.
    #[inline(always)]
    pub fn run(&mut self, tick: u64, alarm_runs: u64) -> bool {
        if self.tick != tick {
            self.tick = tick;
            self.runs_before = self.runs;
        }
        self.runs += 1;
        self.runs - self.runs_before == alarm_runs
    }
}

/// One program on one CPU. Only that program writes it. Before 6.1 it may interrupt itself, which can lose a count and no more.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    /// Times it ran.
    pub runs: u64,
    /// The tick in which it ran last.
    pub tick: u64,
    /// Times it had run before that tick.
    pub runs_before: u64,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alarm_is_rung_once_a_tick_and_only_by_too_many_runs() {
        let mut slot = Slot::default();
        let mut rung = |tick, runs| (0..runs).filter(|_| slot.run(tick, 10)).count();
        assert_eq!(rung(1, 9), 0);
        assert_eq!(rung(2, 9), 0);
        assert_eq!(rung(2, 100), 1);
        assert_eq!(rung(3, 10), 1);
        assert_eq!((0..100).filter(|_| slot.run(4, 0)).count(), 0, "no limit");
        assert_eq!(slot.runs, 9 + 9 + 100 + 10 + 100);
    }
}
