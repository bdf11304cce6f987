//! The CPU budget: what Siskin costs, and what it sheds so that it stays within the budget.

use std::{collections::HashMap, io, time::Instant};

use siskin_ebpf::{Probe, Program, Rate, Slots, Words as _};

use crate::{
    kernel::control::Control,
    metrics::{self, Exposition, NANOS},
};

pub mod controller;
pub mod cores;
pub mod meter;
pub mod windows;

use controller::{Controller, Cost, Load, Setting, TARGET};
use meter::{FULL_RUN_NS, Meter, RUN_NS, process_seconds};

/// Probes whose events are sampled, with their programs.
const HOT: [(Probe, &[Program]); 2] =
    [(Probe::Disk, &[Program::DiskComplete]), (Probe::Udp, &[Program::UdpSend, Program::UdpReceive])];

/// Programs that count every event.
const EXACT: [Program; 8] = [
    Program::CgroupMkdir,
    Program::CgroupRelease,
    Program::ProcessExec,
    Program::ProcessFork,
    Program::ProcessExit,
    Program::TcpState,
    Program::TcpResetSent,
    Program::TcpResetReceived,
];

/// Programs of hot probes.
const HOT_PROGRAMS: f64 = 3.0;
/// What a full run is taken to cost before one was measured.
const FULL_RUN_SECONDS: f64 = 500e-9;
/// How much of the process's highest cost is still planned for a tick later: scrapes come every few ticks, and what one
/// costs is not free in between.
const PROCESS_MEMORY: f64 = 0.95;
/// A CPU may always take this many events per tick before it doubles its period.
const LEAST_ALLOWANCE: f64 = 64.0;

/// Meter, controller, and what they remember of the last tick.
#[derive(Debug)]
pub struct Budget {
    meter: Meter,
    controller: Option<Controller>,
    running: Vec<Probe>,
    cpus: f64,
    tick: u64,
    at: Instant,
    slots: Slots,
    process_seconds: f64,
    process_cores: f64,
    full_run_seconds: HashMap<usize, f64>,
    burst_ratios: HashMap<usize, f64>,
    attached_seconds: HashMap<usize, f64>,
    attached_since: HashMap<usize, Instant>,
}

impl Budget {
    /// A budget of so many cores over the running ones of the hot probes; `None` when sampling is fixed by hand.
    pub fn new(meter: Meter, cores: Option<f64>, running: &[Probe], cpus: usize) -> Self {
        let hot: Vec<_> =
            HOT.iter().map(|(probe, _)| *probe).filter(|probe| running.contains(probe)).collect();
        let now = Instant::now();
        Self {
            meter,
            controller: cores.map(|cores| Controller::new(cores, &hot)),
            running: running.to_vec(),
            cpus: cpus as f64,
            tick: 0,
            at: now,
            slots: Slots::zero(),
            process_seconds: process_seconds(),
            process_cores: 0.0,
            full_run_seconds: HashMap::new(),
            burst_ratios: HashMap::new(),
            attached_seconds: HashMap::new(),
            attached_since: hot.iter().map(|probe| (*probe as usize, now)).collect(),
        }
    }

    /// Changes the budget; nothing when sampling is fixed by hand.
    pub fn set_cores(&mut self, cores: f64) {
        if let Some(controller) = &mut self.controller {
            controller.set_budget(cores);
        }
    }

    /// How each running probe is to be attached now; empty when sampling is fixed by hand. Probes that count every event are
    /// detached only when there is no budget at all.
    pub fn settings(&self) -> Vec<Setting> {
        let Some(controller) = &self.controller else { return Vec::new() };
        let hot = controller.settings();
        let detached = controller.budget_cores() <= 0.0;
        let exact = self.running.iter().filter(|probe| hot.iter().all(|setting| setting.probe != **probe));
        let exact = exact.map(|probe| Setting { probe: *probe, period_log2: 0, duty_log2: 0, detached });
        hot.iter().copied().chain(exact).collect()
    }

    /// Share of a probe's events that was taken: what its period says, or what became of it in the last tick when CPUs had
    /// spent their allowance.
    pub fn ratio(&self, probe: Probe, period_log2: u64) -> f64 {
        self.burst_ratios.get(&(probe as usize)).copied().unwrap_or(share(period_log2))
    }

    /// A hot probe was attached or detached.
    pub fn attached(&mut self, probe: Probe, attached: bool) {
        let index = probe as usize;
        if attached {
            self.attached_since.entry(index).or_insert_with(Instant::now);
        } else if let Some(since) = self.attached_since.remove(&index) {
            *self.attached_seconds.entry(index).or_default() += since.elapsed().as_secs_f64();
        }
    }

    /// Takes a reading of the meter.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn read(&mut self) -> io::Result<()> {
        self.meter.read()
    }

    /// Ends a tick: looks at what it cost and decides how the next one samples. Says in one line what changed.
    ///
    /// # Errors
    /// When the meter cannot be read.
    pub fn tick(&mut self, control: &Control) -> io::Result<Option<String>> {
        self.meter.read()?;
        let cost = self.cost();
        self.tick += 1;
        let Some(controller) = &mut self.controller else { return Ok(None) };
        let before = controller.settings().to_vec();
        let changed = controller.step(&cost);
        let budget = controller.budget_cores();
        let rest = (budget * TARGET - cost.fixed_cores).max(0.0);
        for setting in controller.settings() {
            let event = cost.loads.iter().find(|load| load.probe == setting.probe);
            let event_seconds = event.map_or(FULL_RUN_SECONDS, |load| load.event_seconds);
            // Each CPU and each hot program has its own.
            let shares = self.cpus * HOT_PROGRAMS;
            let allowance = (rest / event_seconds / shares).max(LEAST_ALLOWANCE);
            // 0 is no limit.
            let allowance = if allowance.is_finite() { allowance as u64 } else { 0 };
            let rate = Rate {
                period_log2: setting.period_log2,
                // Changes when the probe is attached for its next window.
                duty_log2: control.rate(setting.probe).duty_log2,
                tick: self.tick,
                allowance,
            };
            control.set_rate(setting.probe, &rate);
        }
        Ok(changed.then(|| explain(&before, controller.settings(), budget, &cost)))
    }

    /// What the tick that ends now cost.
    fn cost(&mut self) -> Cost {
        let seconds = self.at.elapsed().as_secs_f64().max(1e-3);
        self.at = Instant::now();
        let slots = *self.meter.slots();
        let last = std::mem::replace(&mut self.slots, slots);
        let mut delta = slots.since(&last);
        for word in delta.words_mut() {
            // Before 6.1 a program may interrupt itself and a word step back; states such as `random` are no counts.
            *word = if *word > u64::MAX / 2 { 0 } else { *word };
        }
        let process = process_seconds();
        let process_cores = (process - self.process_seconds) / seconds;
        self.process_seconds = process;
        self.process_cores = process_cores.max(self.process_cores * PROCESS_MEMORY);

        let exact_ns: u64 = EXACT.iter().map(|program| meter::cost_ns(&delta.of[*program as usize])).sum();
        let loads = HOT.iter().filter_map(|(probe, programs)| {
            let index = *probe as usize;
            let running = self.attached_since.get_mut(&index).map_or(0.0, |since| {
                let seconds = since.elapsed().as_secs_f64();
                *since = self.at;
                seconds
            });
            let attached = self.attached_seconds.remove(&index).unwrap_or(0.0) + running;
            if attached <= 0.0 {
                return None;
            }
            let of = |value: fn(&siskin_ebpf::Slot) -> u64| {
                programs.iter().map(|program| value(&delta.of[*program as usize])).sum::<u64>() as f64
            };
            let doubled = programs.iter().any(|program| slots.of[*program as usize].sampler.doublings > 0);
            let events = of(|slot| slot.sampler.events);
            if doubled && events > 0.0 {
                self.burst_ratios.insert(index, of(|slot| slot.sampler.taken) / events);
            } else {
                self.burst_ratios.remove(&index);
            }
            let (full_runs, busy_ns) = (of(|slot| slot.full_runs), of(|slot| slot.busy_ns));
            let event_seconds = self.full_run_seconds.entry(index).or_insert(FULL_RUN_SECONDS);
            if full_runs >= 16.0 {
                *event_seconds = (busy_ns / full_runs + FULL_RUN_NS as f64) / NANOS;
            }
            Some(Load {
                probe: *probe,
                runs: of(|slot| slot.runs) / attached,
                events: events / attached,
                event_seconds: *event_seconds,
            })
        });
        let loads = loads.collect();
        Cost {
            fixed_cores: self.process_cores + exact_ns as f64 / NANOS / seconds,
            run_seconds: RUN_NS as f64 / NANOS,
            loads,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_in_the_budget_once() {
        let hot = HOT.iter().flat_map(|(_, programs)| *programs);
        for program in Program::ALL {
            assert_eq!(
                hot.clone().chain(&EXACT).filter(|other| **other == program).count(),
                1,
                "{program:?}"
            );
        }
        assert_eq!(hot.count() as f64, HOT_PROGRAMS);
    }
}
