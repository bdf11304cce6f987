//! What a load is made of, and what is counted of it.

use std::{
    ops::{Add, AddAssign},
    path::PathBuf,
    time::Duration,
};

/// What a load generator counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Datagrams sent, and datagrams received.
    Datagrams,
    /// Their payload.
    DatagramBytes,
    /// The squares of their payloads: how much the sizes differ.
    DatagramSquares,
    /// Disk requests.
    Requests,
    /// Their bytes.
    DiskBytes,
    /// The squares of their sizes.
    DiskSquares,
    /// Programs run from start to end.
    Execs,
    /// TCP connections established; both ends are here.
    Connections,
    /// TCP requests with their responses.
    Exchanges,
    /// Payload of TCP, at both ends, sent and received.
    TcpBytes,
}

/// Kinds of [`Count`].
pub const COUNTS: usize = 10;

/// How many of each [`Count`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub [u64; COUNTS]);

impl Counts {
    /// How many of one kind.
    pub fn of(&self, count: Count) -> f64 {
        self.0[count as usize] as f64
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|index| self.0[index] + other.0[index]))
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// What a load generator does again and again.
#[derive(Clone, Debug)]
pub enum Work {
    /// Sends a datagram to itself and receives it.
    Udp {
        /// How long they are.
        sizes: Sizes,
    },
    /// Sends a datagram to another thread and receives its answer.
    UdpPingPong,
    /// Reads or writes past the page cache.
    Disk {
        /// The device.
        path: PathBuf,
        /// How much: 4 KiB written and read in turn, or writes of mixed size.
        sizes: Sizes,
    },
    /// Starts a program and waits for its end.
    Exec {
        /// The program.
        path: PathBuf,
    },
    /// Opens a TCP connection and closes it.
    Connect,
    /// A request and a response of 64 bytes on one TCP connection.
    Exchange,
    /// What a compiler driver does for one file: a burst of programs, reads and writes of mixed
    /// size, memory and CPU.
    Compile {
        /// The program that stands for the compiler's parts.
        program: PathBuf,
        /// The device.
        device: PathBuf,
    },
}

/// How large datagrams and requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All alike.
    Same,
    /// From small to large, small ones most often.
    Mixed,
}

/// When the work is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As often as it goes.
    Full,
    /// So many times a second.
    PerSecond(f64),
    /// As often as it goes, in one of so many slices of time that take turns.
    Slice {
        /// Which, from 0.
        index: u64,
        /// Of how many.
        slices: u64,
    },
}

/// How long a slice of [`Pace::Slice`] is.
pub const SLICE: Duration = Duration::from_secs(2);

/// The two workloads that loads are divided between, where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// The one that estimates by workload are compared with.
    First,
    /// Another one, so that a share has to be estimated.
    Second,
}

/// What one load generator does, when, and as part of which workload.
#[derive(Clone, Debug)]
pub struct Job {
    /// What.
    pub work: Work,
    /// When.
    pub pace: Pace,
    /// Part of which workload.
    pub workload: Workload,
}

impl Job {
    /// Work that is done as often as it goes.
    pub fn full(work: Work) -> Self {
        Self { work, pace: Pace::Full, workload: Workload::First }
    }

    /// The same at another pace.
    pub fn paced(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// The same as part of the second workload.
    pub fn second(self) -> Self {
        Self { workload: Workload::Second, ..self }
    }
}

/// Pseudo-random numbers of a fixed seed: every run makes the same load.
#[derive(Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// One of the choices.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        // xorshift64 (Marsaglia, 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        choices[(self.0 >> 32) as usize % choices.len()]
    }
}
