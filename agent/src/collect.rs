//! Reading all probes when asked, at most so often, and describing what they counted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use prometheus::{TextEncoder, core::Collector as _, process_collector::ProcessCollector};
use siskin_ebpf::Probe;

use crate::{
    budget::{AttachCost, Budget, End, allocation::Setting, duty::Window, meter::thread_seconds},
    cardinality::Bound,
    estimate::Errors,
    flows::{FlowTable, Protocol},
    kernel::{hook::State as Became, loader::Kernel, memory::Plan},
    metrics::{self, Exposition, NANOS},
    probes::{Context, Reader, Tick},
    readiness::Readiness,
    workload::Workloads,
};

/// What became of the last reading of a probe.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    seconds: f64,
    success: bool,
}

/// What one reading brought.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// All metrics in the text format: shared by all who are served them.
    pub text: Bytes,
    /// How every probe fares.
    pub readiness: Readiness,
}

/// A tick that an overload ended.
#[derive(Debug)]
pub struct Overload {
    /// How each running probe is to be attached now.
    pub settings: Vec<Setting>,
    /// Whether the load was planned for anew; else the bucket pays for it, and the time until the
    /// next plan goes on.
    pub is_planned: bool,
}

/// Everything that is read, behind one lock: readings never overlap, and those who wait for one share it.
pub struct Collector {
    min_interval: Duration,
    state: Mutex<State>,
}

/// What the operator asked for.
#[derive(Debug)]
pub struct Wanted {
    /// The maps and their sizes.
    pub plans: Vec<Plan>,
    /// `--budget.memory`.
    pub memory_limit_bytes: u64,
    /// The probes that are to run.
    pub enabled: Vec<Probe>,
    /// The most that one scrape can bring.
    pub bound: Bound,
}

/// The running agent's parts that a reading needs.
pub struct State {
    /// The loaded object.
    pub kernel: Kernel,
    /// The running probes.
    pub readers: Vec<Box<dyn Reader>>,
    /// Who does it.
    pub workloads: Workloads,
    /// With whom.
    pub flows: FlowTable,
    /// What Siskin costs, and how its probes sample.
    pub budget: Budget,
    errors: Errors,
    /// What the operator asked for.
    pub wanted: Wanted,
    readings: HashMap<&'static str, Reading>,
    heartbeat: f64,
    last: Option<(Instant, Arc<Snapshot>)>,
    /// Nothing was read since the last snapshot, so what it shows is what there is.
    is_shown: bool,
    began: Instant,
    process: ProcessCollector,
}

impl State {
    /// The parts of an agent that has not read anything yet.
    pub fn new(
        kernel: Kernel,
        readers: Vec<Box<dyn Reader>>,
        workloads: Workloads,
        flows: FlowTable,
        budget: Budget,
        wanted: Wanted,
    ) -> Self {
        Self {
            kernel,
            readers,
            workloads,
            flows,
            budget,
            errors: Errors::default(),
            wanted,
            readings: HashMap::new(),
            heartbeat: 0.0,
            last: None,
            is_shown: false,
            began: Instant::now(),
            process: ProcessCollector::for_self(),
        }
    }
}

impl Collector {
    /// Readings at most every `min_interval`.
    pub fn new(state: State, min_interval: Duration) -> Self {
        Self { min_interval, state: Mutex::new(state) }
    }

    /// The newest reading, or the last one if that is newer than the shortest interval. Waits for a reading that is under
    /// way, and shares it.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let mut state = self.lock();
        if let Some((at, snapshot)) = &state.last
            && at.elapsed() < self.min_interval
        {
            return Arc::clone(snapshot);
        }
        let began = thread_seconds();
        state.read(|_| true);
        // Not beside the new one: with many series each takes megabytes.
        state.last = None;
        let snapshot = Arc::new(state.describe());
        state.workloads.described();
        state.is_shown = true;
        state.last = Some((Instant::now(), Arc::clone(&snapshot)));
        state.budget.item_took("reading", thread_seconds() - began);
        snapshot
    }

    /// Says that this snapshot was served as metrics. Series whose last value was in it may leave; not when the kernel was
    /// read again meanwhile, because the snapshot then lacks what that brought.
    pub fn scraped(&self, snapshot: &Arc<Snapshot>) {
        let mut state = self.lock();
        let State { flows, readers, is_shown, last, began, .. } = &mut *state;
        if *is_shown && last.as_ref().is_some_and(|(_, last)| Arc::ptr_eq(last, snapshot)) {
            let now = began.elapsed();
            flows.table.scraped(now);
            for reader in readers {
                reader.scraped(now);
            }
        }
    }

    /// Reads the probes whose tables fill up, so that no row is refused. Costs next to nothing when none does.
    pub fn drain(&self) {
        let mut state = self.lock();
        let all = state.workloads.is_crowded();
        let control = &state.kernel.control;
        if all || state.readers.iter().any(|reader| reader.fills_up(control)) {
            let began = thread_seconds();
            state.read(|fills_up| fills_up || all);
            state.budget.item_took("reading", thread_seconds() - began);
        }
    }

    /// Ends a tick of the budget because it is over. Returns how each probe is to be attached in the next.
    pub fn tick(&self) -> Vec<Setting> {
        Self::end_tick(&mut self.lock(), End::Time)
    }

    /// Ends a tick of the budget because of an overload in it. `None` when that was in an earlier
    /// one, which is over.
    pub fn overload(&self, tick: u64) -> Option<Overload> {
        Self::end_overloaded(&mut self.lock(), tick)
    }

    /// The same, unless a reading is under way: then `None`.
    pub fn try_overload(&self, tick: u64) -> Option<Option<Overload>> {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Self::end_overloaded(&mut state, tick))
    }

    fn end_overloaded(state: &mut State, tick: u64) -> Option<Overload> {
        state.budget.is_now(tick).then(|| {
            let settings = Self::end_tick(state, End::Overload);
            Overload { settings, is_planned: state.budget.is_planned() }
        })
    }

    fn end_tick(state: &mut State, end: End) -> Vec<Setting> {
        let cpu_began = thread_seconds();
        let State { budget, kernel, readers, began, .. } = state;
        if let Err(error) = budget.read() {
            tracing::warn!("cannot read what the programs cost: {error}");
            return budget.settings();
        }
        for reader in readers.iter_mut() {
            let probe = reader.probe();
            if !(budget.ran(probe) || probe == Probe::Tcp && kernel.control.tcp_shed()) {
                continue;
            }
            let tick = Tick {
                stats: budget.stats(),
                attached_seconds: budget.is_attached(probe).then(|| budget.tick_seconds()),
                now_seconds: began.elapsed().as_secs_f64(),
                level_seconds: budget.level_seconds(),
                control: &kernel.control,
            };
            if let Err(error) = reader.tick(&tick) {
                tracing::warn!("cannot read probe {}: {error}", probe.name());
            }
        }
        // Now and then open connections are adopted in it.
        budget.item_took("tick", thread_seconds() - cpu_began);
        if let Some(line) = budget.tick(&kernel.control, end) {
            tracing::info!("{line}");
        }
        budget.settings()
    }

    /// How each running probe is to be attached now.
    pub fn settings(&self) -> Vec<Setting> {
        self.lock().budget.settings()
    }

    /// In a duty cycle what was seen of a probe stands for the time until then; `None` when it is
    /// attached all the time or not at all.
    pub fn set_counted_until(&self, probe: Probe, until: Option<Instant>) {
        self.lock().budget.set_counted_until(probe, until);
    }

    /// A window of a probe is over, and what was seen stands for the time until then.
    pub fn window(&self, probe: Probe, window: &Window, until: Option<Instant>) {
        let mut state = self.lock();
        let State { budget, readers, .. } = &mut *state;
        budget.set_counted_until(probe, until);
        let window = &Window { slowdown: budget.slowdown(probe), ..*window };
        let Some(reader) = readers.iter_mut().find(|reader| reader.probe() == probe) else { return };
        let result = budget.read().and_then(|()| reader.window(budget.stats(), window));
        if let Err(error) = result {
            tracing::warn!("cannot read probe {}: {error}", probe.name());
        }
    }

    /// A probe counts no more `at` this moment: it will be detached.
    pub fn paused(&self, probe: Probe, at: Instant) {
        self.lock().budget.paused(probe, at);
    }

    /// A probe was attached for one part in `duty` of the time, or detached with `None`, which cost
    /// as given.
    pub fn attached(&self, probe: Probe, duty: Option<u64>, at: Instant, cost: AttachCost) {
        self.lock().budget.attached(probe, duty, at, cost);
    }

    /// Changes the CPU budget.
    pub fn set_budget(&self, cores: f64) {
        self.lock().budget.set_cores(cores);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A reading that panicked left totals that are whole: each row is added at once.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Reads the probes for which `wanted` says so, told whether their tables fill up.
    fn read(&mut self, wanted: impl Fn(bool) -> bool) {
        let mut all = !self.readers.is_empty();
        if let Err(error) = self.budget.read() {
            tracing::warn!("cannot read what the programs cost: {error}");
        }
        self.workloads.begin();
        let (flows, workloads) = (&mut self.flows, &mut self.workloads);
        flows.retire(|id| workloads.is_over(id));
        workloads.retire(&flows.workloads());
        for reader in &mut self.readers {
            if !wanted(reader.fills_up(&self.kernel.control)) {
                all = false;
                continue;
            }
            self.is_shown = false;
            let begin = Instant::now();
            let result = reader.read(&mut Context {
                control: &self.kernel.control,
                stats: self.budget.stats(),
                workloads: &mut self.workloads,
                flows: &mut self.flows,
                errors: &mut self.errors,
                lacking_seconds: self.budget.lacking_seconds(reader.probe()),
            });
            let reading = Reading { seconds: begin.elapsed().as_secs_f64(), success: result.is_ok() };
            let name = reader.probe().name();
            if let Err(error) = result {
                all = false;
                tracing::warn!("cannot read probe {name}: {error}");
            }
            self.readings.insert(name, reading);
        }
        let gone = self.workloads.retired();
        if !gone.is_empty() {
            self.readers.iter_mut().for_each(|reader| reader.forget(&gone));
            self.flows.forget(&gone);
            self.errors.forget(&gone);
        }
        if all {
            self.workloads.forget_gone();
            self.heartbeat =
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |now| now.as_secs_f64());
        }
    }

    fn describe(&self) -> Snapshot {
        let mut out = Exposition::default();
        for reader in &self.readers {
            reader.describe(&self.workloads, &mut out);
        }
        let runs = |probe| self.readers.iter().any(|reader| reader.probe() == probe);
        let protocols: Vec<_> = [(Probe::Tcp, Protocol::Tcp), (Probe::Udp, Protocol::Udp)]
            .into_iter()
            .filter_map(|(probe, protocol)| runs(probe).then_some(protocol))
            .collect();
        if !protocols.is_empty() {
            self.flows.describe(&protocols, &self.workloads, &mut out);
        }
        self.describe_errors(&mut out);
        self.describe_build(&mut out);
        self.describe_probes(&mut out);
        self.describe_programs(&mut out);
        self.describe_maps(&mut out);
        let mut text = out.into_text();
        // Fails for a family without samples, which this one does not have.
        if let Err(error) = TextEncoder::new().encode_utf8(&self.process.collect(), &mut text) {
            tracing::warn!("cannot describe the process: {error}");
        }
        let is_read = |probe: Probe| self.readings.get(probe.name()).is_none_or(|reading| reading.success);
        Snapshot { text: text.into(), readiness: Readiness::of(&self.kernel.hooks, is_read) }
    }

    /// The errors of what may be estimated. Several probes may add to a metric; their events are
    /// sampled independently.
    fn describe_errors(&self, out: &mut Exposition) {
        let mut variances: BTreeMap<&str, f64> = BTreeMap::new();
        for reader in self.readers.iter().filter(|reader| self.budget.may_sample(reader.probe())) {
            for (metric, variance) in reader.variances(self.budget.lacking_seconds(reader.probe())) {
                *variances.entry(metric.name).or_default() += variance;
            }
        }
        for (metric, variance) in variances {
            out.gauge(&metrics::STANDARD_ERROR, &[metric], variance.sqrt());
        }
        self.errors.describe(&self.workloads, out);
    }

    fn describe_build(&self, out: &mut Exposition) {
        let build = [env!("CARGO_PKG_VERSION"), env!("SISKIN_REVISION"), env!("SISKIN_RUSTC")];
        out.gauge(&metrics::BUILD_INFO, &build, 1.0);
        let uname = rustix::system::uname();
        let kernel = [&*uname.release().to_string_lossy(), &*uname.machine().to_string_lossy()];
        out.gauge(&metrics::KERNEL_INFO, &kernel, 1.0);
    }

    fn describe_probes(&self, out: &mut Exposition) {
        for probe in Probe::ALL {
            let up = self.wanted.enabled.contains(&probe) && self.kernel.is_up(probe);
            out.gauge(&metrics::PROBE_UP, &[probe.name()], f64::from(up));
        }
        // Two programs of a probe may sit on one hook; if they fare alike they are one series.
        let hooks =
            self.kernel.hooks.iter().filter(|of| !matches!(of.state, Became::Replaced(_))).map(|of| {
                let reason = metrics::fit(of.state.reason(), metrics::REASON_BYTES);
                (of.hook.probe.name(), of.hook.point.name(), of.state.name(), reason)
            });
        for (probe, hook, state, reason) in hooks.collect::<BTreeSet<_>>() {
            out.gauge(&metrics::PROBE_HOOK_INFO, &[probe, &hook, state, &reason], 1.0);
        }
        for (probe, reading) in &self.readings {
            out.gauge(&metrics::COLLECT_SECONDS, &[probe], reading.seconds);
            out.gauge(&metrics::COLLECT_SUCCESS, &[probe], f64::from(reading.success));
        }
        out.gauge(&metrics::HEARTBEAT, &[], self.heartbeat);
        self.workloads.describe(out);
        let Bound { series, bytes } = self.wanted.bound;
        out.gauge(&metrics::SERIES_LIMIT, &[], series as f64);
        out.gauge(&metrics::SCRAPE_LIMIT, &[], bytes as f64);
        for reader in &self.readers {
            let period = self.kernel.control.rate(reader.probe()).period;
            let ratio = self.budget.ratio(reader.probe(), period);
            out.gauge(&metrics::SAMPLING_RATIO, &[reader.probe().name()], ratio);
        }
    }

    fn describe_programs(&self, out: &mut Exposition) {
        let mut missed: HashMap<&str, u64> = HashMap::new();
        for program in &self.kernel.programs {
            let Ok(counted) = program.counted() else { continue };
            let seconds = counted.run_time_ns as f64 / NANOS;
            out.counter(&metrics::KERNEL_STATISTICS_RUN_SECONDS, &[program.name], seconds);
            out.counter(&metrics::KERNEL_STATISTICS_RUNS, &[program.name], counted.runs as f64);
            *missed.entry(program.probe.name()).or_default() += counted.recursion_misses;
        }
        for (probe, misses) in missed {
            out.counter(&metrics::LOST, &[probe, "recursion"], misses as f64);
        }
        self.budget.describe(out);
    }

    fn describe_maps(&self, out: &mut Exposition) {
        out.gauge(&metrics::BUDGET_MEMORY, &[], self.wanted.memory_limit_bytes as f64);
        out.gauge(&metrics::MAPS_MEMORY, &[], self.kernel.maps_bytes as f64);
        for reader in &self.readers {
            for (map, entries) in reader.map_entries(&self.kernel.control) {
                out.gauge(&metrics::MAP_ENTRIES, &[map], entries as f64);
                if let Some(plan) = self.wanted.plans.iter().find(|plan| plan.name == map) {
                    out.gauge(&metrics::MAP_CAPACITY, &[map], plan.entries.into());
                }
            }
        }
    }
}
