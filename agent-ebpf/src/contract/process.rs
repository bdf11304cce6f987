//! The process probe's keys and values.

use super::{LOSSES, Lifetime, words::made_of_words};

made_of_words!(ProcessRow, ProcessBank, CommRow);

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
    /// The variance that sampling adds to execs, forks and exits.
    pub variance: [u64; 3],
}

/// Execs under one command name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CommRow {
    /// Successful `execve` calls.
    pub execs: u64,
}

/// The process probe's bank, of each shard.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ProcessBank {
    /// Nanoseconds from a process's start to its end.
    pub lifetime: Lifetime,
    /// The variance that sampling adds to the sum of lifetimes, in units of 2^16 ns squared.
    pub lifetime_variance: u64,
    /// What did not fit the table of processes by cgroup.
    pub other: ProcessRow,
    /// What did not fit the table of command names.
    pub comm_other: CommRow,
    /// Losses by [`Loss`](crate::Loss).
    pub lost: [u64; LOSSES],
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
