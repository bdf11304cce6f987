//! The probes: one file each says what it attaches, which maps it has, how they are read, and what they mean.

use std::{collections::HashSet, io, path::Path, time::Duration};

use siskin_ebpf::{AllStats, LOSSES, Loss, Probe, Table};

use crate::{
    bounded,
    budget::{duty::Window, purse::Purse},
    estimate::Errors,
    flows::FlowTable,
    kernel::{control::Control, hook::Group, loader::Kernel, memory::Plan},
    metrics::{self, Exposition, Metric},
    workload::{Id, Workloads},
};

pub mod cgroup;
pub mod disk;
pub mod process;
pub mod tcp;
pub mod udp;

/// How large the tables are; from flags.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Workload rows, also the most workloads with series of their own.
    pub workloads: u32,
    /// Flow series.
    pub flows: u32,
    /// Block devices.
    pub devices: u32,
    /// Shards of a device's row.
    pub shards: u32,
    /// Sockets followed.
    pub sockets: u32,
    /// Command names with series of their own.
    pub comms: u32,
    /// How long a row that makes room for a busier one is served unchanged before it goes.
    pub min_idle: Duration,
    /// How long a row to which nothing is added stays while nobody needs its place.
    pub max_idle: Duration,
    /// Unix seconds at the start: numbers of what departed follow it.
    pub started: u64,
}

impl Limits {
    /// The limits of a table of the busiest with so many rows.
    pub const fn bounded(&self, rows: u32) -> bounded::Limits {
        let Self { min_idle, max_idle, started, .. } = *self;
        bounded::Limits { rows: rows as usize, min_idle, max_idle, first_departure: started }
    }
}

/// What a reading reads with, and what it adds to.
pub struct Context<'a> {
    /// The map that is shared with the programs.
    pub control: &'a Control,
    /// The last reading of the programs' statistics.
    pub stats: &'a AllStats,
    /// Who did it.
    pub workloads: &'a mut Workloads,
    /// With whom.
    pub flows: &'a mut FlowTable,
    /// How far off it may be.
    pub errors: &'a mut Errors,
    /// Seconds until now that no window of the probe stood for yet.
    pub lacking_seconds: f64,
    /// CPU seconds that may be spent: what can be divided goes on later.
    pub purse: Purse,
    /// CPU seconds that were spent on that.
    pub divided_seconds: &'a mut f64,
    /// Unix time.
    pub now_seconds: f64,
}

/// A tick of the budget that ends.
pub struct Tick<'a> {
    /// The last reading of the programs' statistics.
    pub stats: &'a AllStats,
    /// How long the tick was, when the probe was attached for all of it.
    pub attached_seconds: Option<f64>,
    /// Seconds since the agent began.
    pub now_seconds: f64,
    /// CPU seconds that it may spend on what goes on from tick to tick.
    pub may_seconds: f64,
    /// The map that is shared with the programs.
    pub control: &'a Control,
}

/// A running probe.
pub trait Reader: Send {
    /// Which probe it is.
    fn probe(&self) -> Probe;

    /// Adds what the programs counted since the last reading to the totals. Returns the Unix time
    /// until which all that happened is in them.
    ///
    /// # Errors
    /// When the kernel refuses; the totals then miss nothing that a later reading will not bring.
    fn read(&mut self, context: &mut Context<'_>) -> io::Result<f64>;

    /// What it costs about to go on with what the last reading left for later, in CPU seconds.
    fn unfinished_seconds(&self) -> Option<f64> {
        None
    }

    /// Goes on with what it left, for about so many CPU seconds; the next reading adds it.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn go_on(&mut self, _seconds: f64) -> io::Result<()> {
        Ok(())
    }

    /// Ends a tick in which the programs ran: how much that was is remembered for the errors of
    /// windows.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn tick(&mut self, _tick: &Tick<'_>) -> io::Result<()> {
        Ok(())
    }

    /// Ends a window of a duty period.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn window(&mut self, _stats: &AllStats, _window: &Window) -> io::Result<()> {
        Ok(())
    }

    /// The variances of metrics that may be estimates, each of the total over all labels, in the
    /// metric's unit squared. No window stood for the last `lacking_seconds` yet.
    fn variances(&self, _lacking_seconds: f64) -> Vec<(&'static Metric, f64)> {
        Vec::new()
    }

    /// Lets go of workloads that are gone.
    fn forget(&mut self, _gone: &HashSet<Id>) {}

    /// What was described last was scraped at `now`, and nothing was read since.
    fn scraped(&mut self, _now: Duration) {}

    /// Whether a table fills up and should be read before the next scrape.
    fn fills_up(&self, control: &Control) -> bool;

    /// How many elements the probe's larger maps hold, by name.
    fn map_entries(&self, control: &Control) -> Vec<(&'static str, u64)>;

    /// Describes the totals as metrics.
    fn describe(&self, workloads: &Workloads, out: &mut Exposition);
}

/// Every hook of every probe.
pub fn groups() -> Vec<Group> {
    [cgroup::GROUPS, process::GROUPS, tcp::GROUPS, disk::GROUPS, udp::GROUPS].concat()
}

/// Every map of every probe.
pub fn plans(limits: &Limits) -> Vec<(Probe, Plan)> {
    let of = |probe, plans: Vec<Plan>| plans.into_iter().map(move |plan| (probe, plan));
    of(Probe::Cgroup, cgroup::plans())
        .chain(of(Probe::Process, process::plans(limits)))
        .chain(of(Probe::Tcp, tcp::plans(limits)))
        .chain(of(Probe::Disk, disk::plans(limits)))
        .chain(of(Probe::Udp, udp::plans(limits)))
        .collect()
}

/// A reader for `probe`, which is loaded; the host's procfs is at `procfs`.
///
/// # Errors
/// When a map or iterator is not there.
pub fn reader(
    probe: Probe,
    kernel: &mut Kernel,
    limits: &Limits,
    procfs: &Path,
) -> anyhow::Result<Box<dyn Reader>> {
    Ok(match probe {
        Probe::Cgroup => Box::new(cgroup::Cgroup::new(kernel)?),
        Probe::Process => Box::new(process::Process::new(kernel, limits)?),
        Probe::Tcp => Box::new(tcp::Tcp::new(kernel, limits)?),
        Probe::Disk => Box::new(disk::Disk::new(kernel, limits, procfs)?),
        Probe::Udp => Box::new(udp::Udp::new(kernel, limits)?),
    })
}

/// How many rows both banks of a table hold.
fn bank_rows(control: &Control, table: Table, maps: [&'static str; 2]) -> [(&'static str, u64); 2] {
    [(maps[0], control.rows(table, 0)), (maps[1], control.rows(table, 1))]
}

/// The losses that a probe's programs may count.
fn describe_losses(probe: Probe, lost: &[u64; LOSSES], reasons: &[Loss], out: &mut Exposition) {
    for loss in reasons {
        out.counter(&metrics::LOST, &[probe.name(), loss.reason()], lost[*loss as usize] as f64);
    }
}
