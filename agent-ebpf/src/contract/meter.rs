//! What the programs note about themselves: how often they ran, how long, and the state of their sampling.

use super::{Probe, Rate, Sampler, words::made_of_words};

made_of_words!(AllStats);

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

    /// Whether it reads the clock for each event that it does the whole work on.
    pub const fn reads_clock(self) -> bool {
        matches!(self, Self::ProcessExit | Self::TcpState | Self::DiskComplete)
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

/// Runs of one program on one CPU, a few of which are timed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Timed {
    /// Runs that were timed.
    pub runs: u64,
    /// Nanoseconds that they took, each at most so many times the mean.
    pub ns: u64,
    /// Which run is the next to be timed.
    next: u64,
}

/// A timed run counts for at most so many times the mean of those before: an interrupt inside one
/// of them is not what the program costs.
const TRIM: u64 = 8;
/// The mean before anything was timed, in nanoseconds.
const PRIOR_NS: u64 = 500;

impl Timed {
    /// Whether run `number` is to be timed: one in `gap` at random, and more often at first.
    /// `random` is asked when it is.
    #[inline(always)]
    pub fn is_due(&mut self, number: u64, gap: u64, random: impl FnOnce() -> u32) -> bool {
        if number < self.next {
            return false;
        }
        let early = number / 16 + 1;
        let gap = if early < gap { early } else { gap };
        // From 1 to 2 gap - 1, `gap` in the mean.
        self.next = number + 1 + ((u64::from(random()) * (2 * gap - 1)) >> 32);
        true
    }

    /// Adds a timed run.
    #[inline(always)]
    pub fn add(&mut self, ns: u64) {
        // A division that may fail is code for a panic, which a program has no place for.
        let most = (TRIM * (self.ns + PRIOR_NS)).checked_div(self.runs + 1).unwrap_or(ns);
        self.ns += if ns < most { ns } else { most };
        self.runs += 1;
    }
}

/// One program on one CPU. Only that program writes it. Before 6.1 it may interrupt itself, which can lose a count and no more.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ProgramStats {
    /// The tick in which it ran last.
    pub tick: u64,
    /// Times it had run before that tick.
    runs_before: u64,
    /// Some of its runs, each until the event is skipped or the work on it begins.
    pub run_time: Timed,
    /// The clock alone, read twice before each of those.
    pub clock_time: Timed,
    /// Runs that did the whole work: of a sampled program those whose event was sampled, else all.
    pub sampled_runs: u64,
    /// Some of those, from where the work on the event begins.
    pub sampled_time: Timed,
    /// When the work began that is being timed, in nanoseconds since boot; else 0.
    pub work_began_ns: u64,
    /// Its sampling. At its end begins what every run needs, close together.
    pub sampler: Sampler,
    /// Times it ran.
    pub runs: u64,
    /// The run in which something is to be done besides counting it.
    stop: u64,
    /// The generation of the rate that it goes by.
    generation: u64,
    /// When the run began that is being timed, in nanoseconds since boot; else 0.
    pub run_began_ns: u64,
}

impl ProgramStats {
    /// Counts a run. Says whether there is something to do besides: see [`Self::look`].
    #[inline(always)]
    pub fn run(&mut self, generation: u64) -> bool {
        self.runs += 1;
        self.runs >= self.stop || self.generation != generation
    }

    /// Counts a run and an event if the event is skipped and nothing else is to be done; says
    /// whether that was so.
    #[inline(always)]
    pub fn skips(&mut self, generation: u64) -> bool {
        if self.runs + 1 >= self.stop || self.generation != generation || !self.sampler.skips_next() {
            return false;
        }
        self.runs += 1;
        self.sampler.events += 1;
        true
    }

    /// Looks at the rate, which may have changed. Says whether this run is the one that notifies
    /// user space: so many within a tick cost more than may be spent in it.
    #[inline(always)]
    pub fn look(&mut self, rate: &Rate) -> bool {
        // A map that nobody wrote yet is zero, and so is its first generation.
        if self.generation != rate.generation || self.sampler.period() == 0 {
            self.generation = rate.generation;
            if self.tick != rate.tick {
                self.tick = rate.tick;
                self.runs_before = self.runs - 1;
            }
            self.sampler.change(rate);
        }
        self.runs - self.runs_before == rate.overload_runs
    }

    /// Sets when to stop next, after the run was timed or not.
    #[inline(always)]
    pub fn set_stop(&mut self, rate: &Rate) {
        let notified = self.runs_before + rate.overload_runs;
        let timed = self.run_time.next;
        self.stop = if self.runs < notified && notified < timed { notified } else { timed };
    }
}

/// Every program on one CPU: the element of the `program_stats` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct AllStats {
    /// By [`Program`].
    pub programs: [ProgramStats; PROGRAMS],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overload_is_notified_once_a_tick_and_only_by_too_many_runs() {
        let mut stats = ProgramStats::default();
        let mut notified = |tick, overload_runs, runs| {
            let rate = Rate { tick, overload_runs, generation: tick, ..Rate::default() };
            let mut run = || {
                if !stats.run(rate.generation) {
                    return false;
                }
                let is_notified = stats.look(&rate);
                stats.run_time.is_due(stats.runs, 1000, || 1 << 31);
                stats.set_stop(&rate);
                is_notified
            };
            (0..runs).filter(|_| run()).count()
        };
        assert_eq!(notified(1, 10, 9), 0);
        assert_eq!(notified(2, 10, 9), 0);
        assert_eq!(notified(2, 10, 100), 1);
        assert_eq!(notified(3, 10, 10), 1);
        assert_eq!(notified(4, 0, 100), 0, "no limit");
        assert_eq!(notified(5, 30_000, 70_000), 1);
        assert_eq!(stats.runs, 9 + 9 + 100 + 10 + 100 + 70_000);
    }

    #[test]
    fn most_runs_are_only_counted() {
        let mut stats = ProgramStats::default();
        let rate = Rate { generation: 1, ..Rate::default() };
        let mut stops = 0;
        for _ in 0..100_000 {
            if stats.run(1) {
                stops += 1;
                stats.look(&rate);
                stats.run_time.is_due(stats.runs, 1000, || 1 << 31);
                stats.set_stop(&rate);
            }
        }
        assert!(stops < 400, "{stops}");
    }

    /// Numbers as the kernel's helper gives them, from a generator of 64 bits.
    fn random(state: &mut u64) -> u32 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (*state >> 32) as u32
    }

    #[test]
    fn one_run_in_a_thousand_is_timed_in_the_long_run_and_many_at_first() {
        let (mut timed, mut state) = (Timed::default(), 1);
        let mut due =
            |from, to| (from..to).filter(|run| timed.is_due(*run, 1000, || random(&mut state))).count();
        assert!((8..=64).contains(&due(0, 64)));
        due(64, 20_000);
        let late = due(20_000, 2_020_000);
        assert!((1850..=2150).contains(&late), "{late}");
    }

    #[test]
    fn an_interrupt_inside_a_timed_run_hardly_changes_the_mean() {
        let mut timed = Timed::default();
        for run in 0..10_000 {
            timed.add(if run % 1000 == 500 { 100_000 } else { 80 });
        }
        let mean = timed.ns as f64 / timed.runs as f64;
        assert!((80.0..82.0).contains(&mean), "{mean}");
    }

    #[test]
    fn a_program_that_is_always_slow_is_believed_soon() {
        let mut timed = Timed::default();
        (0..200).for_each(|_| timed.add(50_000));
        let mean = timed.ns as f64 / timed.runs as f64;
        assert!(mean > 45_000.0, "{mean}");
    }
}
