//! What the budget keeps of one probe: what it was asked to do, and what it costs. Pure.

use std::time::Instant;

use siskin_ebpf::{AllStats, Probe, Program, ProgramStats};

use super::{
    AttachCost,
    allocation::{self, Demand, PRIOR_WINDOW_VARIANCE, Setting},
    meter::Meter,
    overload::Load,
    programs,
};

/// What attaching and detaching a program is taken to cost before it was measured, in seconds of
/// CPU.
const PRIOR_ATTACH_SECONDS: f64 = 250e-6;
/// How much of a load is still planned for when a tick had less: one that swings is met by its
/// peaks.
const MEMORY: f64 = 0.7;
/// Weight of a window beside those before: each sees little, but a load that is over is to be
/// counted whole again soon.
const WINDOW_WEIGHT: f64 = 0.6;
/// A window that saw less than this part of the load before says that it is over.
const GONE: f64 = 0.25;
/// Weight of what attaching once cost beside what it cost before.
const ATTACH_WEIGHT: f64 = 0.2;
/// The part of the work on events that sampling them all adds at least, should skipping them cost
/// more than it does otherwise.
const LEAST_WORK: f64 = 0.5;
/// Seconds attached below which a load is not measured.
const LEAST_SECONDS: f64 = 1e-3;

/// One probe that may be sampled.
#[derive(Debug)]
pub struct ProbeBudget {
    /// Which one.
    pub probe: Probe,
    /// How it samples now.
    pub setting: Setting,
    /// Whether detaching it saves nothing.
    pub is_always_attached: bool,
    /// What it was last asked to do while it was attached; `None` before that.
    pub load: Option<Load>,
    /// The part of the events that was sampled in the last tick, when CPUs had used up their
    /// allowance.
    pub burst_ratio: Option<f64>,
    attached_since: Option<Instant>,
    attached_seconds: f64,
    /// CPU seconds that attaching took, and that a whole window took.
    attaching_seconds: f64,
    window_seconds: Option<f64>,
    /// In a duty cycle: until when what was seen stands for the time.
    counted_until: Option<Instant>,
}

impl ProbeBudget {
    /// A probe that is attached since the start.
    pub fn new(probe: Probe, now: Instant) -> Self {
        Self {
            probe,
            setting: Setting::exact(probe),
            is_always_attached: false,
            load: None,
            burst_ratio: None,
            attached_since: Some(now),
            attached_seconds: 0.0,
            attaching_seconds: 0.0,
            window_seconds: None,
            counted_until: None,
        }
    }

    /// What was seen stands for the time until then; `None` when it is attached all the time or not
    /// at all.
    pub fn set_counted_until(&mut self, until: Option<Instant>) {
        self.counted_until = until;
    }

    /// Seconds until now that no window stood for yet.
    pub fn lacking_seconds(&self, now: Instant) -> f64 {
        self.counted_until.map_or(0.0, |until| now.saturating_duration_since(until).as_secs_f64())
    }

    /// Whether it is attached, and not in a window.
    pub fn is_attached_all_the_time(&self) -> bool {
        self.attached_since.is_some() && self.counted_until.is_none()
    }

    /// It was attached or, with `None`, detached.
    pub fn attached(&mut self, duty: Option<u64>, at: Instant, cost: AttachCost) {
        let seconds = cost.process_seconds + cost.interrupt_seconds;
        if duty.is_some() {
            self.attaching_seconds = seconds;
            self.attached_since.get_or_insert(at);
            return;
        }
        let window = self.attaching_seconds.max(seconds) + seconds;
        let mean = self.window_seconds.get_or_insert(window);
        *mean += (window - *mean) * ATTACH_WEIGHT;
    }

    /// It counts no more `at` this moment. Detaching it may take long, and that is no time in which
    /// it was asked to do little.
    pub fn paused(&mut self, at: Instant) {
        if let Some(since) = self.attached_since.take() {
            self.attached_seconds += at.saturating_duration_since(since).as_secs_f64();
        }
    }

    /// CPU seconds that attaching and detaching it for a window takes, of all CPUs.
    pub fn attach_cost_seconds(&self) -> f64 {
        self.window_seconds.unwrap_or(programs(self.probe).count() as f64 * PRIOR_ATTACH_SECONDS)
    }

    /// What the allocation is asked to serve.
    pub fn demand(&self) -> Demand {
        let nothing = Demand {
            probe: self.probe,
            events_per_second: 0.0,
            skip_cores: 0.0,
            sample_cores: 0.0,
            attach_seconds: 0.0,
            window_variance: PRIOR_WINDOW_VARIANCE,
            periods: 1,
            worth: 1.0,
        };
        let attach_seconds = if self.is_always_attached { f64::INFINITY } else { self.attach_cost_seconds() };
        Demand { attach_seconds, ..self.load.map_or(nothing, |load| load.demand) }
    }

    /// Measures what it was asked to do in the tick that ends `now`, by what was added to its
    /// programs' statistics. A load that is gone is forgotten at once when the bucket can pay for
    /// its return, by the part of it that is `filled`: all of it, or half of it after a window
    /// that saw next to nothing.
    pub fn measure(&mut self, added: &AllStats, stats: &AllStats, meter: &Meter, now: Instant, filled: f64) {
        if let Some(since) = &mut self.attached_since {
            self.attached_seconds += now.saturating_duration_since(*since).as_secs_f64();
            *since = now;
        }
        let seconds = std::mem::take(&mut self.attached_seconds);
        if seconds < LEAST_SECONDS {
            return;
        }
        let sum = |value: &dyn Fn(Program, &ProgramStats) -> f64| -> f64 {
            programs(self.probe).map(|program| value(program, &added.programs[program as usize])).sum()
        };
        let most = |value: &dyn Fn(&ProgramStats) -> f64| {
            programs(self.probe).map(|program| value(&added.programs[program as usize])).fold(0.0, f64::max)
        };
        let is_stretched =
            programs(self.probe).any(|program| stats.programs[program as usize].sampler.stretches > 0);
        let (events, sampled) =
            (sum(&|_, of| of.sampler.events as f64), sum(&|_, of| of.sampler.sampled as f64));
        let planned = events / self.setting.period as f64;
        self.burst_ratio =
            (is_stretched && planned >= 100.0 && sampled < 0.9 * planned).then(|| sampled / events);
        let runs = |skips: bool| sum(&|program, of| of.runs as f64 * meter.run_seconds(program, skips));
        let work = sum(&|program, of| works(of) * meter.event_seconds(program));
        // What sampling every event adds to skipping them all.
        let sample = (work + runs(false) - runs(true)).max(LEAST_WORK * work);
        let demand = Demand {
            events_per_second: most(&works) / seconds,
            skip_cores: runs(true) / seconds,
            sample_cores: sample / seconds,
            ..self.demand()
        };
        let load = Load {
            demand,
            runs: sum(&|_, of| of.runs as f64) / seconds,
            most_runs: most(&|of| of.runs as f64) / seconds,
        };
        let is_window = self.counted_until.is_some();
        self.load = Some(match &self.load {
            Some(last) if is_window && (filled < 0.5 || !is_gone(last, &load)) => mixed(last, &load),
            Some(last) if !is_window && filled < 1.0 => not_below(last, &load),
            _ => load,
        });
    }

    /// How it samples by a setting, in words.
    pub fn explain(&self, setting: &Setting) -> String {
        let events = self.load.map_or(0.0, |load| load.demand.events_per_second);
        let cost = allocation::cost_cores(&self.demand(), &Setting::exact(self.probe));
        let mut line =
            format!("{} at {events:.0} events/s ({:.1}m to count them all)", self.probe.name(), cost * 1e3);
        line.push_str(&match setting.period {
            1 => " counts every one".to_owned(),
            period => format!(" samples 1 in {period}"),
        });
        if setting.duty > 1 {
            line.push_str(&format!(" for {:.1}% of the time", 100.0 / setting.parts()));
        }
        line
    }
}

/// Events of a program that the whole work is done on when every event is sampled. While
/// connections are followed, most of that work is not sampled.
fn works(stats: &ProgramStats) -> f64 {
    stats.sampler.events.max(stats.sampled_runs) as f64
}

/// Both loads, word by word.
fn combine(last: &Load, load: &Load, of: impl Fn(f64, f64) -> f64) -> Load {
    let demand = Demand {
        events_per_second: of(last.demand.events_per_second, load.demand.events_per_second),
        skip_cores: of(last.demand.skip_cores, load.demand.skip_cores),
        sample_cores: of(last.demand.sample_cores, load.demand.sample_cores),
        ..load.demand
    };
    Load { demand, runs: of(last.runs, load.runs), most_runs: of(last.most_runs, load.most_runs) }
}

/// The load, or most of what the last one was.
fn not_below(last: &Load, load: &Load) -> Load {
    combine(last, load, |last, load| load.max(last * MEMORY))
}

/// Whether a window saw so little that the load before is over, and not only uneven.
fn is_gone(last: &Load, load: &Load) -> bool {
    let cores = |of: &Load| of.demand.skip_cores + of.demand.sample_cores;
    cores(load) < GONE * cores(last)
}

/// The mean of windows, the last one more.
fn mixed(last: &Load, load: &Load) -> Load {
    combine(last, load, |last, load| last + (load - last) * WINDOW_WEIGHT)
}
