//! Reading all probes when asked, at most so often, and describing what they counted.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use prometheus::process_collector::ProcessCollector;
use siskin_ebpf::Probe;

use crate::{
    budget::{
        AttachCost, Budget, End, allocation::Setting, duty::Window, meter::thread_seconds, purse::Purse,
    },
    cardinality::Bound,
    estimate::Errors,
    flows::FlowTable,
    kernel::{loader::Kernel, memory::Plan},
    probes::{Reader, Tick},
    readiness::Readiness,
    workload::Workloads,
};

mod describe;
mod reading;

use reading::{OLD_SECONDS, Reading, Wanted};

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

/// Everything that is read, behind one lock: readings never overlap, and those who wait for one
/// share it.
pub struct Collector {
    min_interval: Duration,
    state: Mutex<State>,
}

/// What the operator asked for.
#[derive(Debug)]
pub struct Asked {
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
    pub asked: Asked,
    readings: HashMap<&'static str, Reading>,
    describe_seconds: f64,
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
        asked: Asked,
    ) -> Self {
        Self {
            kernel,
            readers,
            workloads,
            flows,
            budget,
            errors: Errors::default(),
            asked,
            readings: HashMap::new(),
            describe_seconds: 0.0,
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

    /// The newest reading, or the last one if that is newer than the shortest interval. Waits for a
    /// reading that is under way, and shares it.
    ///
    /// A reading is paid from the budget, probe by probe. What it cannot pay now is as it was when
    /// it was last read: who asks more often than the budget allows gets older numbers, and their
    /// time with them.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let mut state = self.lock();
        if let Some((at, snapshot)) = &state.last
            && at.elapsed() < self.min_interval
        {
            return Arc::clone(snapshot);
        }
        let mut purse = state.budget.purse();
        if let Some((at, snapshot)) = &state.last {
            let is_old = at.elapsed().as_secs_f64() >= OLD_SECONDS;
            let snapshot = Arc::clone(snapshot);
            let describe_seconds = state.describe_seconds;
            if !is_old && !purse.can_pay(describe_seconds) {
                state.budget.set_owed(describe_seconds);
                return snapshot;
            }
            purse.reserve(describe_seconds);
            let (is_read, owed_seconds) = state.read(Wanted::Payable(purse));
            state.budget.set_owed(owed_seconds);
            if !is_read {
                return snapshot;
            }
        } else {
            // The first is due.
            state.read(Wanted::All(purse));
        }
        // Not beside the new one: with many series each takes megabytes.
        state.last = None;
        let began = thread_seconds();
        let snapshot = Arc::new(state.describe());
        state.describe_seconds = thread_seconds() - began;
        let describe_seconds = state.describe_seconds;
        state.budget.item_took("describing", describe_seconds);
        state.workloads.described();
        state.is_shown = true;
        state.last = Some((Instant::now(), Arc::clone(&snapshot)));
        snapshot
    }

    /// Says that this snapshot was served as metrics. Series whose last value was in it may leave;
    /// not when the kernel was read again meanwhile, because the snapshot then lacks what that
    /// brought.
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

    /// Reads the probes whose tables fill up, so that no row is refused, and goes on with what a
    /// reading left undone when the budget has enough. Costs next to nothing when there is neither.
    pub fn drain(&self) {
        let mut state = self.lock();
        let control = &state.kernel.control;
        if state.workloads.is_crowded() {
            state.read(Wanted::All(Purse::UNLIMITED));
        } else if state.readers.iter().any(|reader| reader.fills_up(control)) {
            state.read(Wanted::FillingUp);
        }
        let State { budget, readers, .. } = &mut *state;
        for reader in readers.iter_mut() {
            let Some(next_seconds) = reader.unfinished_seconds() else { continue };
            let seconds = budget.spare_seconds();
            // What never can be spared goes on when nothing else is bought.
            if seconds < next_seconds && !budget.purse().can_pay(f64::INFINITY) {
                continue;
            }
            let began = thread_seconds();
            if let Err(error) = reader.go_on(seconds) {
                tracing::warn!("cannot read probe {}: {error}", reader.probe().name());
            }
            budget.item_took("reading", thread_seconds() - began);
        }
    }

    /// Ends a tick of the budget because it is over. Returns how each probe is to be attached in
    /// the next, and how long it is.
    pub fn tick(&self) -> (Vec<Setting>, Duration) {
        let mut state = self.lock();
        let settings = Self::end_tick(&mut state, End::Time);
        (settings, state.budget.tick_length())
    }

    /// The same, unless that may take long because a reading is under way, tables fill up or
    /// something was left undone: then
    /// `None`.
    pub fn try_tick(&self) -> Option<(Vec<Setting>, Duration)> {
        let mut state = self.try_lock()?;
        let State { readers, kernel, workloads, .. } = &*state;
        let control = &kernel.control;
        let mut readers = readers.iter();
        let is_long = workloads.is_crowded()
            || control.tcp_shed()
            || readers.any(|reader| reader.fills_up(control) || reader.unfinished_seconds().is_some());
        (!is_long).then(|| {
            let settings = Self::end_tick(&mut state, End::Time);
            (settings, state.budget.tick_length())
        })
    }

    /// Ends a tick of the budget because of an overload in it. `None` when that was in an earlier
    /// one, which is over.
    pub fn overload(&self, tick: u64) -> Option<Overload> {
        Self::end_overloaded(&mut self.lock(), tick)
    }

    /// The same, unless a reading is under way: then `None`.
    pub fn try_overload(&self, tick: u64) -> Option<Option<Overload>> {
        let mut state = self.try_lock()?;
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
                may_seconds: budget.tick_may_seconds(),
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

    fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A reading that panicked left totals that are whole: each row is added at once.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
