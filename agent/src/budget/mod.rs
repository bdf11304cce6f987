//! The CPU budget: what Siskin costs, and what it sheds so that it stays within the budget.

use std::{collections::HashMap, io, time::Instant};

use siskin_ebpf::{Probe, Program, Rate, Slots, Words as _};

use crate::{
    estimate::{Tick, Watch},
    kernel::control::Control,
    metrics::{self, Exposition, NANOS},
};

pub mod calibration;
pub mod controller;
pub mod cores;
pub mod meter;
pub mod rates;
pub mod windows;

use controller::{Controller, Cost, Load, Setting};
use meter::{FULL_RUN_NS, Meter, process_seconds};
use rates::{FULL_RUN_SECONDS, SPENDERS};
use windows::{TICK, cycle};

/// Probes whose events are sampled in any case; those of others only when the budget is strict.
const HOT: [Probe; 2] = [Probe::Disk, Probe::Udp];

/// What a probe's information is worth beside that of a hot one: counting execs and connections one by one is given up last.
const EXACT_WORTH: f64 = 100.0;
/// What attaching and detaching a program is taken to cost before it was measured, in seconds of CPU.
const SWITCH_SECONDS: f64 = 250e-6;
/// Runs of a probe's programs in a tick below which nobody thinks of shedding.
const BUSY_RUNS: u64 = 64;
/// How much of the process's highest cost in a second is still planned for a tick later: scrapes come every few seconds, and what
/// one costs is not free in between.
const PROCESS_MEMORY: f64 = 0.975;
/// Ticks that make the second over which the process's cost is taken.
const SECOND: usize = 2;
/// What ends a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is as long as a tick is.
    Time,
    /// Programs ran more often than was planned for all of it.
    Alarm,
}

/// When and how a probe was last attached and detached.
#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    /// Share of the time for which it is attached while it is, as a negative power of two.
    duty_log2: u64,
    /// Windows that ended.
    windows: u64,
    /// When it was attached last.
    began: Option<Instant>,
    /// When it was detached last.
    ended: Option<Instant>,
    /// Runs of its programs until the last tick that was looked at.
    runs: u64,
}

impl Watched {
    /// Seconds that the last window stands for.
    fn window_seconds(&self) -> f64 {
        let length = self.began.zip(self.ended).map(|(began, ended)| ended.saturating_duration_since(began));
        length.unwrap_or_default().as_secs_f64() / share(self.duty_log2)
    }
}

/// Meter, controller, and what they remember of the last tick.
#[derive(Debug)]
pub struct Budget {
    meter: Meter,
    controller: Option<Controller>,
    running: Vec<Probe>,
    may_shed: Vec<Probe>,
    /// Probes that detaching saves nothing of.
    stay: Vec<Probe>,
    cpus: f64,
    tick: u64,
    began: Instant,
    at: Instant,
    slots: Slots,
    process_seconds: f64,
    process_at: Instant,
    process_ticks: [f64; SECOND],
    process_cores: f64,
    /// Cores that the programs took in the last whole tick which count every event.
    exact_cores: f64,
    event_seconds: HashMap<usize, f64>,
    burst_ratios: HashMap<usize, f64>,
    attached_seconds: HashMap<usize, f64>,
    attached_since: HashMap<usize, Instant>,
    /// The windows of probes that had any, by probe.
    watched: HashMap<usize, Watched>,
    /// CPU seconds that attaching and detaching took in this tick.
    switching_seconds: f64,
    /// CPU seconds that a probe's last attaching took, by probe.
    attach_seconds: HashMap<usize, f64>,
    /// CPU seconds that a probe's last window took, by probe.
    switch_seconds: HashMap<usize, f64>,
    /// What each probe was asked to do when it was last attached.
    loads: HashMap<usize, Load>,
}

impl Budget {
    /// A budget of so many cores over the running probes, `None` when sampling is fixed by hand. A strict one may also draw
    /// events that are otherwise counted one by one.
    pub fn new(meter: Meter, cores: Option<f64>, strict: bool, running: &[Probe], cpus: usize) -> Self {
        let may_shed: Vec<_> = running
            .iter()
            .copied()
            .filter(|probe| HOT.contains(probe) || strict && *probe != Probe::Cgroup)
            .collect();
        let now = Instant::now();
        Self {
            meter,
            controller: cores.map(|cores| Controller::new(cores, &may_shed)),
            running: running.to_vec(),
            attached_since: may_shed.iter().map(|probe| (*probe as usize, now)).collect(),
            may_shed,
            stay: Vec::new(),
            cpus: cpus as f64,
            // Programs that ran before were in the tick before.
            tick: 1,
            began: now,
            at: now,
            slots: Slots::zero(),
            process_seconds: process_seconds(),
            process_at: now,
            process_ticks: [0.0; SECOND],
            process_cores: 0.0,
            exact_cores: 0.0,
            event_seconds: HashMap::new(),
            burst_ratios: HashMap::new(),
            attached_seconds: HashMap::new(),
            watched: HashMap::new(),
            switching_seconds: 0.0,
            attach_seconds: HashMap::new(),
            switch_seconds: HashMap::new(),
            loads: HashMap::new(),
        }
    }

    /// Says which probes have programs that stay attached when the probe is detached: detaching them for most of the time would save
    /// little, and lose as much.
    pub fn stay_attached(&mut self, probes: Vec<Probe>) {
        self.stay = probes;
    }

    /// Changes the budget; nothing when sampling is fixed by hand.
    pub fn set_cores(&mut self, cores: f64) {
        if let Some(controller) = &mut self.controller {
            controller.set_budget(cores);
        }
    }

    /// Whether a probe's numbers may be estimates.
    pub fn may_shed(&self, probe: Probe) -> bool {
        self.may_shed.contains(&probe)
    }

    /// How each running probe is to be attached now; empty when sampling is fixed by hand. Probes that count every event are
    /// detached only when there is no budget at all.
    pub fn settings(&self) -> Vec<Setting> {
        let Some(controller) = &self.controller else { return Vec::new() };
        let detached = controller.budget_cores() <= 0.0;
        let exact = self.running.iter().filter(|probe| !self.may_shed(**probe));
        let exact = exact.map(|probe| Setting { probe: *probe, period_log2: 0, duty_log2: 0, detached });
        controller.settings().iter().copied().chain(exact).collect()
    }

    /// Share of a probe's events that was taken: what its period says, or what became of it in the last tick when CPUs had
    /// spent their allowance.
    pub fn ratio(&self, probe: Probe, period_log2: u64) -> f64 {
        self.burst_ratios.get(&(probe as usize)).copied().unwrap_or(share(period_log2))
    }

    /// A probe was attached for 1 in 2^`duty_log2` of the time, or detached with `None`, which took so many seconds of CPU.
    pub fn attached(&mut self, probe: Probe, duty_log2: Option<u64>, at: Instant, cpu_seconds: f64) {
        let index = probe as usize;
        self.switching_seconds += cpu_seconds;
        let watched = self.watched.entry(index).or_default();
        if let Some(duty_log2) = duty_log2 {
            (watched.duty_log2, watched.began) = (duty_log2, Some(at));
        } else {
            watched.windows += u64::from(watched.duty_log2 > 0);
            watched.ended = Some(at);
        }
        if duty_log2.is_some() {
            self.attach_seconds.insert(index, cpu_seconds);
            self.attached_since.entry(index).or_insert(at);
        } else if let Some(since) = self.attached_since.remove(&index) {
            *self.attached_seconds.entry(index).or_default() +=
                at.saturating_duration_since(since).as_secs_f64();
            // The first time it was attached at the start, and not by a window.
            let attaching = self.attach_seconds.get(&index).unwrap_or(&cpu_seconds);
            self.switch_seconds.insert(index, attaching + cpu_seconds);
        }
    }

    /// Takes a reading of the meter.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn read(&mut self) -> io::Result<()> {
        self.meter.read()
    }

    /// The last reading of the meter.
    pub fn slots(&self) -> &Slots {
        self.meter.slots()
    }

    /// Whether not every event of the probe was certain to be taken since the last tick, by the last reading.
    fn drew(&self, probe: Probe) -> bool {
        let spread = |slots: &Slots| {
            programs(probe).map(|program| slots.of[program as usize].sampler.spread).collect::<Vec<_>>()
        };
        spread(self.meter.slots()) != spread(&self.slots)
    }

    /// Begins the first tick: the programs are told what they may cost.
    pub fn begin(&self, control: &Control) {
        self.set_rates(control, &Cost { run_seconds: self.run_seconds(), ..Cost::default() });
    }

    /// What a run costs besides what it measures of itself.
    fn run_seconds(&self) -> f64 {
        self.meter.run_ns() as f64 / NANOS
    }

    /// How a probe that may shed is being watched, at the end of a tick.
    pub fn watch_tick(&mut self, probe: Probe) -> Watch {
        let (runs, before) = (runs(probe, self.meter.slots()), runs(probe, &self.slots));
        let looked = std::mem::replace(&mut self.watched.entry(probe as usize).or_default().runs, runs);
        let since = runs.saturating_sub(looked).max(1);
        let tick = Tick {
            seconds: self.at.elapsed().as_secs_f64(),
            share: (runs.saturating_sub(before) as f64 / since as f64).min(1.0),
        };
        Watch { tick: Some(tick), ..self.watch(probe) }
    }

    /// How a probe that may shed is being watched, in the middle of a tick.
    pub fn watch(&self, probe: Probe) -> Watch {
        let index = probe as usize;
        let watched = self.watched.get(&index).copied().unwrap_or_default();
        let is_open = self.attached_since.contains_key(&index);
        // One that is to be attached all the time again is so when its cycle is over.
        let duty_log2 = match self.setting(probe) {
            Some(setting) if !is_open => setting.duty_log2.max(watched.duty_log2),
            _ => watched.duty_log2,
        };
        Watch {
            duty_log2,
            is_open,
            windows: watched.windows,
            age_seconds: watched.ended.map_or(0.0, |ended| ended.elapsed().as_secs_f64()),
            cycle_seconds: cycle(duty_log2).as_secs_f64(),
            window_seconds: watched.window_seconds(),
            now_seconds: self.began.elapsed().as_secs_f64(),
            tick: None,
        }
    }

    /// Whether totals of the probe may be estimates since the last tick, or soon: by the last reading not every event was certain to be taken, it
    /// is or was attached for a share of the time, or it has so much to do that this may come.
    pub fn sheds(&self, probe: Probe) -> bool {
        let index = probe as usize;
        let has_windows = self.setting(probe).is_some_and(|setting| setting.duty_log2 > 0);
        let is_busy = runs(probe, self.meter.slots()).saturating_sub(runs(probe, &self.slots)) >= BUSY_RUNS;
        self.may_shed(probe)
            && (has_windows || is_busy || self.attached_seconds.contains_key(&index) || self.drew(probe))
    }

    fn setting(&self, probe: Probe) -> Option<&Setting> {
        self.controller.as_ref()?.settings().iter().find(|setting| setting.probe == probe)
    }

    /// Ends a tick: looks at what it cost by the last reading and decides how the next one samples. Says in one line what changed.
    ///
    /// An alarm ends it early. When there is nothing to shed over a short time, no other alarm is heard before the next tick ends by itself; over a longer
    /// one the load may have begun just now, and the next alarm tells.
    pub fn tick(&mut self, control: &Control, end: End) -> Option<String> {
        let (cost, seconds) = self.cost(end);
        tracing::debug!("tick of {:.0} ms, ended by {end:?}: {cost:?}", seconds * 1e3);
        let controller = self.controller.as_mut()?;
        let before = controller.settings().to_vec();
        let changed = match end {
            End::Time => controller.step(&cost),
            End::Alarm => controller.relieve(&cost),
        };
        if end == End::Alarm && !changed && seconds < TICK.as_secs_f64() / self.cpus / SPENDERS {
            controller.settings().iter().for_each(|setting| control.silence(setting.probe));
            return None;
        }
        self.tick += 1;
        self.set_rates(control, &cost);
        let controller = self.controller.as_ref()?;
        changed.then(|| explain(&before, controller.settings(), controller.budget_cores(), &cost))
    }

    /// Whether a tick is the one that runs now.
    pub fn is_now(&self, tick: u64) -> bool {
        tick == self.tick
    }

    /// Tells the programs how the tick that begins now samples, when the last one cost so much.
    fn set_rates(&self, control: &Control, cost: &Cost) {
        let Some(controller) = &self.controller else { return };
        for setting in controller.settings() {
            let rate = rates::rate(setting, cost, controller.budget_cores(), self.cpus);
            control.set_rate(setting.probe, &Rate { tick: self.tick, ..rate });
        }
    }

    /// What the tick that ends now cost, and how many seconds it took. One that an alarm ends is too short to tell what cannot be shed.
    fn cost(&mut self, end: End) -> (Cost, f64) {
        let seconds = self.at.elapsed().as_secs_f64().max(1e-3);
        self.at = Instant::now();
        let slots = *self.meter.slots();
        let last = std::mem::replace(&mut self.slots, slots);
        let mut delta = slots.since(&last);
        for word in delta.words_mut() {
            // Before 6.1 a program may interrupt itself and a word step back; states such as `random` are no counts.
            *word = if *word > u64::MAX / 2 { 0 } else { *word };
        }
        if end == End::Time {
            let process = process_seconds();
            let switching = std::mem::take(&mut self.switching_seconds);
            let cores = (process - self.process_seconds - switching).max(0.0)
                / self.process_at.elapsed().as_secs_f64().max(1e-3);
            (self.process_seconds, self.process_at) = (process, self.at);
            self.process_ticks.rotate_left(1);
            self.process_ticks[SECOND - 1] = cores;
            let second = self.process_ticks.iter().sum::<f64>() / SECOND as f64;
            self.process_cores = second.max(self.process_cores * PROCESS_MEMORY);
            let exact = Program::ALL.into_iter().filter(|program| !self.may_shed.contains(&program.probe()));
            let exact_ns: u64 = exact.map(|program| self.meter.cost_ns(&delta.of[program as usize])).sum();
            self.exact_cores = exact_ns as f64 / NANOS / seconds;
        }

        let loads =
            self.may_shed.clone().into_iter().filter_map(|probe| self.load(probe, &delta, &slots)).collect();
        // As a share of a second: seconds are what the budget is held in.
        let spent_cores = match end {
            End::Time => 0.0,
            End::Alarm => {
                let hot = self.may_shed.iter().flat_map(|probe| programs(*probe));
                hot.map(|program| self.meter.cost_ns(&delta.of[program as usize])).sum::<u64>() as f64 / NANOS
            }
        };
        let cost = Cost {
            fixed_cores: self.process_cores + self.exact_cores,
            spent_cores,
            run_seconds: self.run_seconds(),
            loads,
        };
        (cost, seconds)
    }

    /// What a probe was asked to do in the tick, or in the last one in which it was attached; `None` when it never was.
    fn load(&mut self, probe: Probe, delta: &Slots, slots: &Slots) -> Option<Load> {
        let index = probe as usize;
        let running = self.attached_since.get_mut(&index).map_or(0.0, |since| {
            let seconds = since.elapsed().as_secs_f64();
            *since = self.at;
            seconds
        });
        let attached = self.attached_seconds.remove(&index).unwrap_or(0.0) + running;
        if attached <= 0.0 {
            return self.loads.get(&index).copied();
        }
        let of = |value: fn(&siskin_ebpf::Slot) -> u64| {
            programs(probe).map(|program| value(&delta.of[program as usize])).sum::<u64>() as f64
        };
        let doubled = programs(probe).any(|program| slots.of[program as usize].sampler.doublings > 0);
        let (events, taken) = (of(|slot| slot.sampler.events), of(|slot| slot.sampler.taken));
        if doubled && events > 0.0 {
            self.burst_ratios.insert(index, taken / events);
        } else {
            self.burst_ratios.remove(&index);
        }
        let full_runs = of(|slot| slot.full_runs);
        let event_seconds = self.event_seconds.entry(index).or_insert(FULL_RUN_SECONDS);
        if full_runs >= 16.0 {
            *event_seconds = (of(|slot| slot.busy_ns) / full_runs + FULL_RUN_NS as f64) / NANOS;
        }
        let switch_seconds = self
            .switch_seconds
            .get(&index)
            .copied()
            .unwrap_or(programs(probe).count() as f64 * SWITCH_SECONDS);
        let load = Load {
            probe,
            runs: of(|slot| slot.runs) / attached,
            most_runs: programs(probe).map(|program| delta.of[program as usize].runs).max().unwrap_or(0)
                as f64
                / attached,
            // While connections are followed, most of what is done for them is drawn for only once.
            events: events.max(full_runs) / attached,
            event_seconds: *event_seconds,
            // No budget is enough to have those detached that stay.
            switch_seconds: if self.stay.contains(&probe) { f64::INFINITY } else { switch_seconds },
            worth: if HOT.contains(&probe) { 1.0 } else { EXACT_WORTH },
        };
        self.loads.insert(index, load);
        Some(load)
    }

    /// Describes cost and settings as metrics.
    pub fn describe(&self, out: &mut Exposition) {
        self.meter.describe(out);
        if let Some(controller) = &self.controller {
            if controller.budget_cores().is_finite() {
                out.gauge(&metrics::BUDGET_CPU, &[], controller.budget_cores());
            }
            for setting in self.settings() {
                let duty = if setting.detached { 0.0 } else { share(setting.duty_log2) };
                out.gauge(&metrics::BUDGET_DUTY, &[setting.probe.name()], duty);
            }
        }
    }
}

/// A probe's programs.
fn programs(probe: Probe) -> impl Iterator<Item = Program> {
    Program::ALL.into_iter().filter(move |program| program.probe() == probe)
}

/// How often a probe's programs ran.
fn runs(probe: Probe, slots: &Slots) -> u64 {
    programs(probe).map(|program| slots.of[program as usize].runs).sum()
}

/// 1 in 2^log2.
fn share(log2: u64) -> f64 {
    (-(log2 as f64)).exp2()
}

/// One line about a change.
fn explain(before: &[Setting], after: &[Setting], budget: f64, cost: &Cost) -> String {
    let mut line = format!("budget {:.1}m, fixed cost {:.2}m:", budget * 1e3, cost.fixed_cores * 1e3);
    for (before, after) in before.iter().zip(after).filter(|(before, after)| before != after) {
        let load = cost.loads.iter().find(|load| load.probe == after.probe);
        let events = load.map_or(0.0, |load| load.events);
        line.push_str(&format!(
            " {} at {:.0} events/s takes 1 in {} (was {})",
            after.probe.name(),
            events,
            1u64 << after.period_log2,
            1u64 << before.period_log2,
        ));
        if after.duty_log2 != before.duty_log2 {
            line.push_str(&format!(" for {:.1}% of the time", share(after.duty_log2) * 100.0));
        }
    }
    line
}
