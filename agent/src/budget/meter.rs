//! What Siskin costs: its programs in the kernel, by their own clock, and its process.
//!
//! The kernel's own statistics of programs need CAP_SYS_ADMIN and leave out what a hook costs
//! before the program begins. Here every program counts its runs and times a random few of them:
//! until its event is skipped or the work on it begins, and the work. Each program's cost is so
//! measured where it arises; only the hook's dispatch, which is over before the program begins, is
//! a constant.

use std::io;

use siskin_ebpf::{AllStats, PROBES, PROGRAMS, Probe, Program, Words as _};

use crate::{
    kernel::rows::Bank,
    metrics::{self, Exposition, NANOS},
};

/// What a run costs that its own clock does not see, in nanoseconds: the hook's dispatch, and what
/// the program does before it reads the clock first and after it read it last. So that the meter
/// says of a loop of UDP datagrams what it takes longer by the wall clock, skipped and sampled, on
/// 6.18, one x86_64 machine (`cargo xtask bench probes`, docs/overhead.md): 17 ns for an empty
/// program, and half as much again. The others by what their dispatch takes longer.
pub mod dispatch {
    /// A BTF tracepoint.
    pub const TRACEPOINT_NS: f64 = 25.0;
    /// The return of a function: the trampoline calls the function, too.
    pub const EXIT_NS: f64 = 30.0;
    /// A kprobe, by an exception or a jump.
    pub const ENTRY_NS: f64 = 125.0;
}

/// Timed runs after which older ones count half: a program that runs often finds its data in the
/// caches, and costs less than one that seldom does.
const RECENT: f64 = 256.0;

/// Nanoseconds of a few timed runs, the newer ones more.
#[derive(Clone, Copy, Debug)]
struct Mean {
    runs: f64,
    ns: f64,
}

impl Mean {
    /// What is assumed before anything was timed weighs as much as four runs.
    const fn assumed(ns: f64) -> Self {
        Self { runs: 4.0, ns: 4.0 * ns }
    }

    fn add(&mut self, runs: u64, ns: u64) {
        if self.runs > RECENT {
            (self.runs, self.ns) = (self.runs / 2.0, self.ns / 2.0);
        }
        (self.runs, self.ns) = (self.runs + runs as f64, self.ns + ns as f64);
    }

    fn ns(&self) -> f64 {
        self.ns / self.runs
    }
}

/// What one program costs. A run is not the same work while every event is sampled as while some
/// are skipped: UDP draws random numbers then, and TCP finds no connection that it follows.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// A run while every event is sampled.
    run: Mean,
    /// A run while events are skipped; until some were, what is said of the other.
    skipping_run: Option<Mean>,
    work: Mean,
    clock: Mean,
    dispatch_ns: f64,
    reads_clock: bool,
    /// Nanoseconds that it took so far.
    total_ns: f64,
}

/// Reads what the programs keep about themselves.
#[derive(Debug)]
pub struct Meter {
    bank: Bank,
    stats: AllStats,
    costs: [Cost; PROGRAMS],
    /// Runs of each probe's programs on each CPU so far.
    runs_by_cpu: Vec<[u64; PROBES]>,
    busy_cpus: [f64; PROBES],
}

/// Times that the statistics are read again because a program was changing them: it takes
/// nanoseconds, a few times a second.
const MOST_TRIES: u32 = 10;

/// Runs since the last reading from which it is said how they are spread over the CPUs.
const SPREAD_RUNS: f64 = 100.0;

impl Meter {
    /// A meter over the `program_stats` map; `dispatch_ns` by program.
    pub fn new(bank: Bank, dispatch_ns: [f64; PROGRAMS]) -> Self {
        let cost = |program: Program| Cost {
            run: Mean::assumed(100.0),
            skipping_run: None,
            work: Mean::assumed(500.0),
            clock: Mean::assumed(25.0),
            dispatch_ns: dispatch_ns[program as usize],
            reads_clock: program.reads_clock(),
            total_ns: 0.0,
        };
        Self {
            bank,
            stats: AllStats::zero(),
            costs: Program::ALL.map(cost),
            runs_by_cpu: Vec::new(),
            busy_cpus: [1.0; PROBES],
        }
    }

    /// Takes a reading. Returns what was added since the last one.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn read(&mut self) -> io::Result<AllStats> {
        let stats = self.read_whole()?;
        self.spread();
        let mut added = stats.since(&self.stats);
        for word in added.words_mut() {
            // Before 6.1 a program may interrupt itself and a word step back; states such as
            // `random` are no counts.
            *word = if *word > u64::MAX / 2 { 0 } else { *word };
        }
        self.stats = stats;
        for (cost, stats) in self.costs.iter_mut().zip(&added.programs) {
            cost.clock.add(stats.clock_time.runs, stats.clock_time.ns);
            cost.work.add(stats.sampled_time.runs, stats.sampled_time.ns);
            let skips = stats.sampler.sampled < stats.sampler.events;
            let run = if skips { cost.skipping_run.get_or_insert(cost.run) } else { &mut cost.run };
            run.add(stats.run_time.runs, stats.run_time.ns);
            let run_ns = cost.run_ns(skips);
            // What is timed reads the clock once more, or three times.
            let readings = stats.run_time.runs * 3 + stats.sampled_time.runs;
            cost.total_ns += stats.runs as f64 * run_ns
                + stats.sampled_runs as f64 * cost.work_ns()
                + readings as f64 * cost.clock.ns();
        }
        Ok(added)
    }

    /// Reads what the programs keep, up to the last event. What one of them was changing meanwhile
    /// is read again.
    fn read_whole(&mut self) -> io::Result<AllStats> {
        let mut tries = 0;
        loop {
            let (stats, is_whole) = self.bank.read_each(|stats: &mut AllStats| {
                stats.programs.iter_mut().fold(true, |all, of| {
                    let is_whole = of.sampler.is_whole();
                    of.sampler.settle();
                    all && is_whole
                })
            })?;
            tries += 1;
            if is_whole || tries == MOST_TRIES {
                return Ok(stats);
            }
        }
    }

    /// Finds how the runs since the last reading are spread.
    fn spread(&mut self) {
        let (mut sums, mut squares) = ([0.0; PROBES], [0.0; PROBES]);
        for (cpu, stats) in self.bank.by_cpu::<AllStats>().enumerate() {
            let mut runs = [0; PROBES];
            for program in Program::ALL {
                runs[program.probe() as usize] += stats.programs[program as usize].runs;
            }
            if cpu == self.runs_by_cpu.len() {
                self.runs_by_cpu.push(runs);
            }
            for (probe, (now, last)) in runs.iter().zip(&mut self.runs_by_cpu[cpu]).enumerate() {
                let added = now.saturating_sub(std::mem::replace(last, *now)) as f64;
                sums[probe] += added;
                squares[probe] += added * added;
            }
        }
        for probe in (0..PROBES).filter(|probe| sums[*probe] >= SPREAD_RUNS) {
            self.busy_cpus[probe] = sums[probe] * sums[probe] / squares[probe];
        }
    }

    /// On about how many CPUs a probe's programs run.
    pub fn busy_cpus(&self, probe: Probe) -> f64 {
        self.busy_cpus[probe as usize]
    }

    /// The last reading, summed over the CPUs.
    pub fn stats(&self) -> &AllStats {
        &self.stats
    }

    /// Seconds that every run of a program costs, with its hook's dispatch, while every event is
    /// sampled or while it `skips` some.
    pub fn run_seconds(&self, program: Program, skips: bool) -> f64 {
        self.costs[program as usize].run_ns(skips) / NANOS
    }

    /// Seconds that the work on an event adds to that.
    pub fn event_seconds(&self, program: Program) -> f64 {
        self.costs[program as usize].work_ns() / NANOS
    }

    /// CPU seconds that a program took so far.
    pub fn total_seconds(&self, program: Program) -> f64 {
        self.costs[program as usize].total_ns / NANOS
    }

    /// Describes the cost as metrics.
    pub fn describe(&self, out: &mut Exposition) {
        for program in Program::ALL {
            let name = program.name();
            out.counter(&metrics::PROGRAM_RUN_SECONDS, &[name], self.total_seconds(program));
            out.counter(&metrics::PROGRAM_RUNS, &[name], self.stats.programs[program as usize].runs as f64);
            out.gauge(&metrics::PROGRAM_COST, &[name, "run"], self.run_seconds(program, true));
            out.gauge(&metrics::PROGRAM_COST, &[name, "event"], self.event_seconds(program));
        }
        let kernel: f64 = Program::ALL.into_iter().map(|program| self.total_seconds(program)).sum();
        out.counter(&metrics::CPU_SECONDS, &["kernel"], kernel);
        out.counter(&metrics::CPU_SECONDS, &["user"], process_seconds());
    }
}

impl Cost {
    fn run_ns(&self, skips: bool) -> f64 {
        let run = self.skipping_run.filter(|_| skips).unwrap_or(self.run);
        (run.ns() - self.clock.ns()).max(0.0) + self.dispatch_ns
    }

    /// Between the two readings of the clock lies about one of them. A program that reads it for
    /// each event pays for that one.
    fn work_ns(&self) -> f64 {
        let clock_ns = if self.reads_clock { 0.0 } else { self.clock.ns() };
        (self.work.ns() - clock_ns).max(0.0)
    }
}

/// CPU seconds that the calling thread took so far.
pub fn thread_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / NANOS
}

/// CPU seconds that this process took, in user mode and in system calls; the iterators run in the latter.
pub fn process_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / NANOS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_timed_lately_counts_more() {
        let mut mean = Mean::assumed(100.0);
        (0..100).for_each(|_| mean.add(100, 100 * 60));
        assert!((60.0..61.0).contains(&mean.ns()), "{}", mean.ns());
        (0..200).for_each(|_| mean.add(100, 100 * 200));
        assert!(mean.ns() > 190.0, "{}", mean.ns());
    }
}
