//! The CPU budget: what Siskin costs, and how its probes sample so that the cost keeps the contract
//! of [`bucket`].
//!
//! docs/design/budget.md has the contract, the allocation and the estimators in plain words.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use siskin_ebpf::{AllStats, Probe, Program, Rate, Words as _};

use crate::kernel::control::Control;

pub mod allocation;
pub mod bucket;
pub mod cores;
pub mod duty;
pub mod meter;
pub mod overload;
pub mod probe;
pub mod purse;
mod report;

use allocation::{Setting, allocate, rare_enough, settle};
use bucket::Bucket;
use duty::payable;
use meter::{Meter, process_seconds};
use overload::rate;
use probe::ProbeBudget;
use purse::Purse;

/// Length of a tick, after which the budget is looked at.
pub const TICK: Duration = Duration::from_millis(500);
/// Length of a tick after one in which nothing much happened: waking costs more than all else then,
/// and a load that rises ends it by itself.
const QUIET_TICK: Duration = Duration::from_secs(2);
/// Budgets above this many cores have no quiet ticks: they can pay for being woken, and a load that
/// they can pay for fills tables before it notifies anybody.
const MOST_QUIET_CORES: f64 = 0.05;
/// Seconds over which the cost of the process is averaged: scrapes come every few seconds.
const PROCESS_AVERAGE_SECONDS: f64 = 10.0;

/// The part of what may be spent that is allocated, so that settings still fit when the same load
/// is measured a little higher.
const ALLOCATED: f64 = 0.9;

/// The part of what can be spared that a tick may spend on what goes on from tick to tick.
const TICK_SHARE: f64 = 0.5;

/// What ends a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is as long as a tick is.
    Time,
    /// Programs ran so often that it costs what may be spent.
    Overload,
}

/// What the operator allows.
#[derive(Clone, Debug)]
pub struct Allowed {
    /// CPU for the programs and the process, in cores; infinite is no limit, `None` is sampling
    /// that is fixed by hand.
    pub cores: Option<f64>,
    /// Probes that are never sampled, whatever they cost; they stand outside of the budget.
    pub exact: Vec<Probe>,
}

/// Meter, bucket, and how each probe samples.
#[derive(Debug)]
pub struct Budget {
    meter: Meter,
    bucket: Option<Bucket>,
    /// Probes that may be sampled.
    probes: Vec<ProbeBudget>,
    /// Probes that run and are never sampled.
    unsampled: Vec<Probe>,
    exact: Vec<Probe>,
    cpus: usize,
    tick: u64,
    at: Instant,
    stats: AllStats,
    process_seconds: f64,
    program_seconds: f64,
    /// Cores that cannot be shed: the process without what windows take, and the programs that are
    /// never sampled.
    fixed_cores: f64,
    /// CPU seconds that attaching and detaching took in this tick: of the process, and of the other
    /// CPUs.
    attach_seconds: f64,
    interrupt_seconds: f64,
    /// CPU seconds of what was asked for and not paid yet.
    owed_seconds: f64,
    /// Whether the settings were chosen at the end of the last tick.
    is_planned: bool,
    /// Whether nothing much happened in it.
    is_quiet: bool,
    /// CPU seconds of the dearest reading and of the dearest end of a tick so far, which cannot be
    /// divided.
    largest_item_seconds: BTreeMap<&'static str, f64>,
}

impl Budget {
    /// A budget over the running probes on so many CPUs. The first tick has begun when this
    /// returns.
    pub fn new(meter: Meter, allowed: Allowed, running: &[Probe], cpus: usize) -> Self {
        let Allowed { cores, exact } = allowed;
        let is_sampled = |probe: &Probe| *probe != Probe::Cgroup && !exact.contains(probe);
        let (sampled, unsampled) = running.iter().copied().partition::<Vec<_>, _>(is_sampled);
        let now = Instant::now();
        Self {
            bucket: cores.map(Bucket::new),
            probes: sampled.into_iter().map(|probe| ProbeBudget::new(probe, now)).collect(),
            unsampled,
            exact,
            cpus,
            // Programs that ran before were in the tick before.
            tick: 1,
            at: now,
            stats: *meter.stats(),
            process_seconds: process_seconds(),
            program_seconds: 0.0,
            fixed_cores: 0.0,
            attach_seconds: 0.0,
            interrupt_seconds: 0.0,
            owed_seconds: 0.0,
            is_planned: true,
            is_quiet: false,
            largest_item_seconds: BTreeMap::new(),
            meter,
        }
    }

    /// Says which probes have programs that are always attached: detaching such a probe would save
    /// little, and lose as much.
    pub fn set_always_attached(&mut self, probes: &[Probe]) {
        for of in &mut self.probes {
            of.is_always_attached = probes.contains(&of.probe);
        }
    }

    /// Changes the budget; nothing when sampling is fixed by hand.
    pub fn set_cores(&mut self, cores: f64) {
        self.is_quiet = false;
        if let Some(bucket) = &mut self.bucket {
            bucket.set_budget(cores);
            for of in &mut self.probes {
                of.setting.detached = cores <= 0.0;
            }
        }
    }

    /// Whether a probe's numbers may be estimates.
    pub fn may_sample(&self, probe: Probe) -> bool {
        self.probes.iter().any(|of| of.probe == probe)
    }

    /// How each running probe is to be attached now; empty when sampling is fixed by hand. Probes
    /// that are never sampled are detached only when there is no budget at all.
    pub fn settings(&self) -> Vec<Setting> {
        let Some(bucket) = &self.bucket else { return Vec::new() };
        let detached = bucket.budget_cores() <= 0.0;
        let unsampled = self.unsampled.iter().map(|probe| Setting {
            detached: detached && !self.exact.contains(probe),
            ..Setting::exact(*probe)
        });
        self.probes.iter().map(|of| of.setting).chain(unsampled).collect()
    }

    /// The part of a probe's events that is sampled while it is attached: what its period says, or
    /// what became of it in the last tick when CPUs had used up their allowance.
    pub fn ratio(&self, probe: Probe, period: u64) -> f64 {
        self.of(probe).and_then(|of| of.burst_ratio).unwrap_or(1.0 / period.max(1) as f64)
    }

    fn of(&self, probe: Probe) -> Option<&ProbeBudget> {
        self.probes.iter().find(|of| of.probe == probe)
    }

    fn of_mut(&mut self, probe: Probe) -> Option<&mut ProbeBudget> {
        self.probes.iter_mut().find(|of| of.probe == probe)
    }

    /// In a duty cycle what was seen of a probe stands for all of the time until then.
    pub fn set_counted_until(&mut self, probe: Probe, until: Option<Instant>) {
        if let Some(of) = self.of_mut(probe) {
            of.set_counted_until(until);
        }
    }

    /// Seconds until now that no window of a probe stood for yet.
    pub fn lacking_seconds(&self, probe: Probe) -> f64 {
        self.of(probe).map_or(0.0, |of| of.lacking_seconds(Instant::now()))
    }

    /// The part of the time of the CPUs where a probe's programs run that they take while it is
    /// attached.
    pub fn slowdown(&self, probe: Probe) -> f64 {
        let load = self.of(probe).and_then(|of| Some((of.setting.period as f64, of.load?.demand)));
        load.map_or(0.0, |(period, demand)| {
            (demand.skip_cores + demand.sample_cores / period) / self.meter.busy_cpus(probe)
        })
    }

    /// A probe was attached for one part in `duty` of the time, or detached with `None`. That took
    /// so many CPU seconds of the process, and so many of all other CPUs together.
    pub fn attached(&mut self, probe: Probe, duty: Option<u64>, at: Instant, cost: AttachCost) {
        self.attach_seconds += cost.process_seconds;
        self.interrupt_seconds += cost.interrupt_seconds;
        if let Some(of) = self.of_mut(probe) {
            of.attached(duty, at, cost);
        }
    }

    /// A probe counts no more `at` this moment.
    pub fn paused(&mut self, probe: Probe, at: Instant) {
        if let Some(of) = self.of_mut(probe) {
            of.paused(at);
        }
    }

    /// Takes a reading of the meter.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn read(&mut self) -> io::Result<()> {
        self.meter.read().map(drop)
    }

    /// The last reading of the meter.
    pub fn stats(&self) -> &AllStats {
        self.meter.stats()
    }

    /// Something that cannot be divided took so many CPU seconds.
    pub fn item_took(&mut self, item: &'static str, seconds: f64) {
        let largest = self.largest_item_seconds.entry(item).or_default();
        *largest = largest.max(seconds);
    }

    /// Begins the first tick: the programs are told what they may cost.
    pub fn begin(&mut self, control: &Control) {
        (self.at, self.process_seconds) = (Instant::now(), process_seconds());
        self.set_rates(control, true);
    }

    /// What may be spent on reading now, by the last reading of the meter.
    pub fn purse(&self) -> Purse {
        let Some(bucket) = &self.bucket else { return Purse::UNLIMITED };
        let process = process_seconds() - self.process_seconds;
        let programs = self.metered_seconds() - self.program_seconds;
        bucket.purse(self.tick_seconds(), process + programs + self.interrupt_seconds)
    }

    /// A scrape asked for readings of so many CPU seconds that could not be paid: probes are left
    /// that much less in the next second, so that they can.
    pub fn set_owed(&mut self, seconds: f64) {
        self.owed_seconds = seconds;
    }

    /// CPU seconds that a tick may spend on what has to go on: a part of what can be spared, and
    /// what does not stop all else, unless there is a debt.
    pub fn tick_may_seconds(&self) -> f64 {
        let least = self.bucket.as_ref().map_or(0.0, |bucket| bucket.tick_least_seconds());
        let least = if self.purse().seconds() > 0.0 { least } else { 0.0 };
        least.max(TICK_SHARE * self.spare_seconds())
    }

    /// CPU seconds that can be spared now for what can wait: it leaves a reserve, and what a scrape
    /// asked for.
    pub fn spare_seconds(&self) -> f64 {
        let kept = self.bucket.as_ref().map_or(0.0, Bucket::reserve_seconds) + self.owed_seconds;
        (self.purse().seconds() - kept).max(0.0)
    }

    /// CPU seconds that the programs inside of the budget took so far.
    fn metered_seconds(&self) -> f64 {
        let sampled = self.probes.iter().map(|of| of.probe);
        let in_budget = sampled.chain(self.unsampled.iter().copied().filter(|of| !self.exact.contains(of)));
        in_budget.flat_map(programs).map(|program| self.meter.total_seconds(program)).sum()
    }

    /// Seconds since the last tick ended.
    pub fn tick_seconds(&self) -> f64 {
        self.at.elapsed().as_secs_f64()
    }

    /// Whether the programs of a probe ran since the last tick, by the last reading.
    pub fn ran(&self, probe: Probe) -> bool {
        let runs = |stats: &AllStats| -> u64 {
            programs(probe).map(|program| stats.programs[program as usize].runs).sum()
        };
        runs(self.meter.stats()) != runs(&self.stats)
    }

    /// Whether a probe is attached all the time.
    pub fn is_attached(&self, probe: Probe) -> bool {
        self.of(probe).is_some_and(ProbeBudget::is_attached_all_the_time)
    }

    /// Ends a tick: looks at what it cost by the last reading and decides how the next one samples. Says in one line what changed.
    ///
    /// An overload ends it early. While the bucket is ample it pays for the load, and only what may
    /// be spent is said anew. When nothing more can be shed, no other notification is heard before
    /// the next tick ends by itself.
    pub fn tick(&mut self, control: &Control, end: End) -> Option<String> {
        let seconds = self.tick_seconds().max(1e-3);
        self.at = Instant::now();
        let stats = *self.meter.stats();
        let last = std::mem::replace(&mut self.stats, stats);
        self.spend(seconds);
        let mut added = stats.since(&last);
        for word in added.words_mut() {
            // Before 6.1 a program may interrupt itself and a word step back; states such as
            // `random` are no counts.
            *word = if *word > u64::MAX / 2 { 0 } else { *word };
        }
        let filled = self.bucket.as_ref().map_or(1.0, Bucket::filled);
        for of in &mut self.probes {
            of.measure(&added, &stats, &self.meter, self.at, filled);
        }
        let bucket = self.bucket.as_ref()?;
        let before: Vec<_> = self.probes.iter().map(|of| of.setting).collect();
        let is_exact = |of: &ProbeBudget| of.setting == Setting::exact(of.probe);
        self.is_quiet = bucket.budget_cores() <= MOST_QUIET_CORES
            && bucket.is_quiet(seconds)
            && self.probes.iter().all(is_exact);
        let is_planned = end == End::Time || !bucket.is_ample(seconds);
        self.is_planned = is_planned;
        if is_planned {
            let has_windows = before.iter().any(|setting| setting.duty > 1);
            let cores = bucket.probe_cores(self.fixed_cores + self.owed_seconds, has_windows);
            let decided = self.decide(cores, end);
            self.probes.iter_mut().zip(decided).for_each(|(of, setting)| of.setting = setting);
        }
        let after: Vec<_> = self.probes.iter().map(|of| of.setting).collect();
        let describe = || self.probes.iter().map(|of| of.explain(&of.setting)).collect::<Vec<_>>().join("; ");
        tracing::debug!(
            "tick of {:.0} ms, ended by {end:?}: process {:.2}m, bucket {:.2} ms, debt {:.2} ms; {}",
            seconds * 1e3,
            self.fixed_cores * 1e3,
            bucket.level_seconds() * 1e3,
            bucket.debt_seconds() * 1e3,
            describe(),
        );
        if end == End::Overload && before == after && is_planned {
            self.probes.iter().for_each(|of| control.mute(of.probe));
            return None;
        }
        self.tick += 1;
        self.set_rates(control, is_planned);
        self.explain(&before, &after)
    }

    /// The settings for a load as it was measured. After an overload the time was too short to
    /// sample more by.
    fn decide(&self, cores: f64, end: End) -> Vec<Setting> {
        let current: Vec<_> = self.probes.iter().map(|of| of.setting).collect();
        let Some(bucket) = &self.bucket else { return current };
        let mut demands: Vec<_> = self.probes.iter().map(ProbeBudget::demand).collect();
        let mut wanted = Vec::new();
        let before = current.iter().map(|setting| setting.periods).max().unwrap_or(1);
        let room_cores = bucket.budget_cores() - self.fixed_cores;
        rare_enough(before, room_cores, |periods| {
            demands.iter_mut().for_each(|demand| demand.periods = periods);
            wanted = allocate(&demands, cores * ALLOCATED, bucket.budget_cores());
            demands.iter().copied().zip(wanted.iter().copied()).collect()
        });
        let payable = |settings: Vec<Setting>| -> Vec<_> {
            let pairs = settings.into_iter().zip(&demands);
            let most_seconds = match end {
                End::Time => bucket.window_seconds(),
                End::Overload => bucket.next_window_seconds(),
            };
            pairs.map(|(setting, demand)| payable(setting, demand, most_seconds)).collect()
        };
        if end == End::Time {
            return payable(settle(&current, wanted, &demands, cores));
        }
        let cost = |(setting, demand): (&Setting, _)| allocation::cost_cores(demand, setting);
        let cheaper = current.iter().zip(payable(wanted)).zip(&demands);
        let cheaper =
            cheaper.map(
                |((current, wanted), demand)| {
                    if cost((&wanted, demand)) < cost((current, demand)) { wanted } else { *current }
                },
            );
        cheaper.collect()
    }

    /// Takes what the tick cost out of the bucket.
    fn spend(&mut self, seconds: f64) {
        let process = process_seconds();
        let process_spent = (process - self.process_seconds).max(0.0);
        self.process_seconds = process;
        let total = self.metered_seconds();
        let programs_spent = total - std::mem::replace(&mut self.program_seconds, total);
        let attach = std::mem::take(&mut self.attach_seconds);
        let interrupts = std::mem::take(&mut self.interrupt_seconds);
        if let Some(bucket) = &mut self.bucket {
            bucket.pass(seconds, process_spent + programs_spent + interrupts);
        }
        let unsampled = self.unsampled.iter().filter(|probe| !self.exact.contains(probe)).copied();
        let unsampled: f64 = unsampled.flat_map(programs).map(|program| self.added_cost(program)).sum();
        let fixed = (process_spent - attach).max(0.0) + unsampled;
        let weight = 1.0 - (-seconds / PROCESS_AVERAGE_SECONDS).exp();
        self.fixed_cores += (fixed / seconds - self.fixed_cores) * weight;
    }

    /// About what a program that is never sampled cost in the tick that ends.
    fn added_cost(&self, program: Program) -> f64 {
        let runs = |stats: &AllStats| stats.programs[program as usize].runs;
        let added = runs(self.meter.stats()).saturating_sub(runs(&self.stats));
        added as f64 * (self.meter.run_seconds(program, false) + self.meter.event_seconds(program))
    }

    /// How long the tick that begins now is.
    pub fn tick_length(&self) -> Duration {
        if self.is_quiet { QUIET_TICK } else { TICK }
    }

    /// Whether the settings were chosen at the end of the last tick.
    pub fn is_planned(&self) -> bool {
        self.is_planned
    }

    /// Whether a tick is the one that runs now.
    pub fn is_now(&self, tick: u64) -> bool {
        tick == self.tick
    }

    /// Tells the programs how the tick that begins now samples.
    fn set_rates(&self, control: &Control, is_planned: bool) {
        let Some(bucket) = &self.bucket else { return };
        let available = bucket.level_seconds() + bucket.budget_cores() * TICK.as_secs_f64();
        for of in &self.probes {
            let rate = rate(&of.setting, of.load.as_ref(), is_planned, available, self.cpus as f64);
            control.set_rate(of.probe, &Rate { tick: self.tick, ..rate });
        }
    }
}

/// What attaching or detaching a probe once cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttachCost {
    /// CPU seconds of the process.
    pub process_seconds: f64,
    /// CPU seconds of the other CPUs, which the kernel interrupts meanwhile.
    pub interrupt_seconds: f64,
}

/// A probe's programs.
fn programs(probe: Probe) -> impl Iterator<Item = Program> {
    Program::ALL.into_iter().filter(move |program| program.probe() == probe)
}
