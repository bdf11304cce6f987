//! The process probe: execs, forks, exits, lifetimes and OOM kills by workload, and execs by command name.

use std::{collections::HashSet, io, time::Duration};

use siskin_ebpf::{
    AllStats, CommRow, Lifetime, Loss, Outcome, Probe, ProcessBank, ProcessRow, Program, Sampler, Table,
    Words as _, map, program,
};

use super::{Context, Limits, Reader, Tick, bank_rows, describe_losses};
use crate::{
    bounded::{self, Bounded},
    budget::duty::Window,
    estimate::{Added, DutyCycle, Residual, Sampled, SamplerCalibration},
    kernel::{
        control::Control,
        hook::{Group, Hook, Point, Way},
        loader::Kernel,
        memory::{Kind, Plan},
        rows::{Bank, Rows},
    },
    metrics::{self, Exposition, Metric, NANOS},
    workload::{Hierarchy, Id, Totals, Workloads},
};

/// The probe's programs.
pub const GROUPS: &[Group] = &[Group {
    ways: &[Way::any(&[
        hook(program::PROCESS_EXEC, "sched_process_exec"),
        hook(program::PROCESS_FORK, "sched_process_fork"),
        hook(program::PROCESS_EXIT, "sched_process_exit"),
    ])],
}];

const fn hook(program: &'static str, tracepoint: &'static str) -> Hook {
    let point = Point::Tracepoint(tracepoint);
    Hook {
        probe: Probe::Process,
        program,
        point,
        requires: "CONFIG_BPF_EVENTS=y",
        limitation: None,
        always_attached: false,
    }
}

/// Processes whose end is remembered, on kernels that do not name the last thread: more than can end at one moment.
const EXITED: u32 = 1024;

/// Rows in the kernel's table of command names. Who has a series is decided among those that have a row here between two
/// readings: room for many more than have one.
const fn comm_rows(limits: &Limits) -> u32 {
    limits.comms.saturating_mul(4)
}

/// The probe's maps.
pub fn plans(limits: &Limits) -> Vec<Plan> {
    let rows = |name, key_bytes, value_bytes: usize, entries| Plan {
        name,
        kind: Kind::Hash,
        key_bytes,
        value_bytes: value_bytes as u64,
        entries,
    };
    let [workloads_a, workloads_b] = map::PROCESS_ROWS;
    let [comms_a, comms_b] = map::COMM_ROWS;
    vec![
        Plan {
            name: map::PROCESS_BANK,
            kind: Kind::Array,
            key_bytes: 4,
            value_bytes: size_of::<ProcessBank>() as u64,
            entries: limits.shards,
        },
        rows(workloads_a, 8, size_of::<ProcessRow>(), limits.workloads),
        rows(workloads_b, 8, size_of::<ProcessRow>(), limits.workloads),
        rows(comms_a, 16, size_of::<CommRow>(), comm_rows(limits)),
        rows(comms_b, 16, size_of::<CommRow>(), comm_rows(limits)),
        rows(map::EXITED, 16, 8, EXITED),
    ]
}

/// Everything counted so far. Pure.
#[derive(Debug)]
pub struct ProcessTotals {
    /// Counters by workload.
    pub workloads: Totals<ProcessRow>,
    /// Execs by command name.
    pub comms: Bounded<Comm, 1>,
    /// Lifetimes, scaled to the number of exits.
    pub lifetime: Lifetime,
    /// The bank as last read: it only grows.
    pub bank: ProcessBank,
}

/// A command name, as its label shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Comm(String);

impl bounded::Key for Comm {
    const GROUPS: usize = 1;

    fn group(&self) -> usize {
        0
    }
}

impl ProcessTotals {
    /// Nothing counted; names get so many series.
    pub fn new(comms: bounded::Limits) -> Self {
        let bank = ProcessBank::zero();
        Self { workloads: Totals::default(), comms: Bounded::new(comms), lifetime: bank.lifetime, bank }
    }

    /// Adds execs of one command.
    pub fn add_comm(&mut self, comm: [u8; 16], execs: u64) {
        let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
        let name = String::from_utf8_lossy(&comm[..end]);
        // What would look like a row for the rest is added to it.
        if name == OTHER || name.starts_with(DEPARTED) {
            self.comms.add_other(0, &[execs]);
        } else {
            self.comms.add(Comm(name.into_owned()), &[execs]);
        }
    }

    /// Describes the totals as metrics.
    pub fn describe(&self, workloads: &Workloads, out: &mut Exposition) {
        let mut rows = self.workloads.clone();
        rows.add(Id::UNKNOWN, &self.bank.other);
        for (id, row) in rows.iter() {
            let w = workloads.labels(id);
            let labels = |last| [w.namespace.as_str(), w.pod.as_str(), w.container.as_str(), last];
            out.counter(&metrics::PROCESS_EXECS, &labels("")[..3], row.execs as f64);
            out.counter(&metrics::PROCESS_FORKS, &labels("")[..3], row.forks as f64);
            for outcome in Outcome::ALL {
                let exits = row.exits[outcome as usize];
                out.counter(&metrics::PROCESS_EXITS, &labels(outcome.name()), exits as f64);
            }
            out.counter(&metrics::PROCESS_OOM_KILLS, &labels("")[..3], row.oom_kills as f64);
        }
        out.histogram(&metrics::PROCESS_LIFETIME, &[], &self.lifetime, metrics::LIFETIME_BOUNDS);
        for (Comm(comm), [execs]) in self.comms.rows() {
            out.counter(&metrics::PROCESS_COMM_EXECS, &[comm], *execs as f64);
        }
        let [other] = self.comms.other(0);
        let other = other + self.bank.comm_other.execs;
        out.counter(&metrics::PROCESS_COMM_EXECS, &[OTHER], other as f64);
        if let Some((number, [execs])) = self.comms.departed(0) {
            out.counter(&metrics::PROCESS_COMM_EXECS, &[&format!("{DEPARTED}{number}")], *execs as f64);
        }
        describe_losses(Probe::Process, &self.bank.lost, &[Loss::MapFull], out);
    }
}

/// The name of the row for everything without one of its own.
const OTHER: &str = "other";
/// How the name begins of what rows held that left.
const DEPARTED: &str = "departed-";

/// The unit of the variance of lifetimes, in nanoseconds.
const LIFETIME_UNIT: f64 = 65_536.0;

/// The programs, and the metrics that count their events by workload.
const COUNTED: [(Program, &Metric); 3] = [
    (Program::ProcessExec, &metrics::PROCESS_EXECS),
    (Program::ProcessFork, &metrics::PROCESS_FORKS),
    (Program::ProcessExit, &metrics::PROCESS_EXITS),
];

/// The running probe.
pub struct Process {
    bank: Bank,
    rows: Rows<u64, ProcessRow>,
    comms: Rows<[u8; 16], CommRow>,
    totals: ProcessTotals,
    /// Of execs, forks and exits.
    calibrations: [SamplerCalibration; 3],
    /// What rounding cut off of execs by name, and of lifetimes.
    carries: [f64; 2],
    /// Execs, forks, exits, and their lifetimes in nanoseconds.
    duty: DutyCycle<4>,
    lifetimes: Residual<1>,
}

impl Process {
    /// Takes the probe's maps.
    ///
    /// # Errors
    /// When a map is not there.
    pub fn new(kernel: &Kernel, limits: &Limits) -> anyhow::Result<Self> {
        let both = |[a, b]: [&str; 2]| Ok::<_, anyhow::Error>([kernel.map(a)?, kernel.map(b)?]);
        Ok(Self {
            bank: Bank::sharded(kernel.map(map::PROCESS_BANK)?, size_of::<ProcessBank>(), limits.shards),
            rows: Rows::new(Table::Process, both(map::PROCESS_ROWS)?, limits.workloads),
            comms: Rows::new(Table::Comm, both(map::COMM_ROWS)?, comm_rows(limits)),
            totals: ProcessTotals::new(limits.bounded(limits.comms)),
            calibrations: Default::default(),
            carries: [0.0; 2],
            duty: DutyCycle::default(),
            lifetimes: Residual::default(),
        })
    }

    /// What windows are compared by.
    fn duty_totals(&mut self, stats: &AllStats) -> io::Result<[f64; 4]> {
        let [execs, forks, exits] = COUNTED.map(|(program, _)| sampler(stats, program).passed as f64);
        Ok([execs, forks, exits, self.bank.read::<ProcessBank>()?.lifetime.sum as f64])
    }
}

fn sampler(stats: &AllStats, program: Program) -> &Sampler {
    &stats.programs[program as usize].sampler
}

impl Reader for Process {
    fn probe(&self) -> Probe {
        Probe::Process
    }

    fn read(&mut self, context: &mut Context<'_>) -> io::Result<f64> {
        let Context { control, stats, workloads, errors, lacking_seconds, now_seconds, .. } = context;
        let Self { bank, rows, comms, totals, calibrations, carries, duty, lifetimes } = self;
        let [(mut execs, of_execs), (mut forks, of_forks), (mut exits, of_exits)] =
            std::array::from_fn(|n| calibrations[n].read(sampler(stats, COUNTED[n].0)));
        let mut added: [Added; 3] = Default::default();
        let result = rows.read(control, |cgroup, row: ProcessRow| {
            let id = workloads.resolve(Hierarchy::CGROUP2, cgroup);
            let row = ProcessRow {
                execs: execs.count(row.execs),
                forks: forks.count(row.forks),
                exits: row.exits.map(|count| exits.count(count)),
                ..row
            };
            totals.workloads.add(id, &row);
            for (added, (value, variance)) in added
                .iter_mut()
                .zip([row.execs, row.forks, row.exits.iter().sum()].into_iter().zip(row.variance))
            {
                added.add(id, value as f64, variance as f64);
            }
        });
        for (calibration, scale) in calibrations.iter_mut().zip([execs, forks, exits]) {
            calibration.settle(scale);
        }
        let windows = duty.grown(*lacking_seconds);
        for (n, (added, ratio)) in added.into_iter().zip([of_execs, of_forks, of_exits]).enumerate() {
            added.finish(errors, COUNTED[n].1, ratio, windows[n]);
        }
        result?;
        execs.again(&mut carries[0], |scale| {
            comms.read(control, |comm, row: CommRow| totals.add_comm(comm, scale.count(row.execs)))
        })?;
        let last = std::mem::replace(&mut totals.bank, bank.read()?);
        let lifetime = totals.bank.lifetime.since(&last.lifetime);
        exits.again(&mut carries[1], |scale| totals.lifetime.add(&scale.histogram(&lifetime)));
        let sampler = sampler(stats, Program::ProcessExit);
        let sampled = Sampled {
            count_variance: sampler.count_variance,
            sampled_variance: sampler.sampled_variance,
            estimated: sampler.estimated,
            sums: [totals.bank.lifetime.sum as f64 / LIFETIME_UNIT],
            squares: [totals.bank.lifetime_variance],
        };
        lifetimes.read(&sampled, true);
        Ok(*now_seconds)
    }

    fn tick(&mut self, tick: &Tick<'_>) -> io::Result<()> {
        if let Some(seconds) = tick.attached_seconds {
            let totals = self.duty_totals(tick.stats)?;
            self.duty.attached(totals, seconds);
            for (calibration, (program, _)) in self.calibrations.iter_mut().zip(COUNTED) {
                calibration.attached(sampler(tick.stats, program));
            }
        }
        Ok(())
    }

    fn window(&mut self, stats: &AllStats, window: &Window) -> io::Result<()> {
        let totals = self.duty_totals(stats)?;
        self.duty.window(totals, window);
        for (calibration, (program, _)) in self.calibrations.iter_mut().zip(COUNTED) {
            calibration.window(sampler(stats, program), window.factor());
        }
        Ok(())
    }

    fn forget(&mut self, gone: &HashSet<Id>) {
        self.totals.workloads.forget(gone);
    }

    fn variances(&self, lacking_seconds: f64) -> Vec<(&'static Metric, f64)> {
        let count = |n: usize| self.calibrations[n].variance() + self.duty.variance(n, lacking_seconds);
        let lifetimes = self.lifetimes.variance(0) * LIFETIME_UNIT * LIFETIME_UNIT;
        let seconds = (lifetimes + self.duty.variance(3, lacking_seconds)) / (NANOS * NANOS);
        vec![
            (&metrics::PROCESS_EXECS, count(0)),
            (&metrics::PROCESS_COMM_EXECS, count(0)),
            (&metrics::PROCESS_FORKS, count(1)),
            (&metrics::PROCESS_EXITS, count(2)),
            (&metrics::PROCESS_LIFETIME, seconds),
        ]
    }

    fn scraped(&mut self, now: Duration) {
        self.totals.comms.scraped(now);
    }

    fn fills_up(&self, control: &Control) -> bool {
        self.rows.fills_up(control) || self.comms.fills_up(control)
    }

    fn map_entries(&self, control: &Control) -> Vec<(&'static str, u64)> {
        [
            bank_rows(control, Table::Process, map::PROCESS_ROWS),
            bank_rows(control, Table::Comm, map::COMM_ROWS),
        ]
        .concat()
    }

    fn describe(&self, workloads: &Workloads, out: &mut Exposition) {
        self.totals.describe(workloads, out);
    }
}

const _: () = assert!(size_of::<ProcessBank>() <= 32 * 1024, "a bank fits the kernel's per-CPU unit");
