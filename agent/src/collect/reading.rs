//! Which parts of a reading are read now.

use std::time::Instant;

use siskin_ebpf::Probe;

use super::State;
use crate::{
    budget::{meter::thread_seconds, purse::Purse},
    clock::unix_seconds,
    probes::Context,
};

/// What became of the last reading of a probe.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// How long it took.
    pub seconds: f64,
    /// Whether it succeeded.
    pub success: bool,
    /// What it cost that cannot be divided, in CPU seconds.
    pub cost_seconds: f64,
    /// Unix time until which all that happened is in the totals; of the last that succeeded.
    pub until_seconds: f64,
    /// Unix time at which it began.
    pub at_seconds: f64,
    /// The number of the last that succeeded.
    pub number: u64,
}

/// Seconds after which what cannot be paid is read all the same: a budget that is less than what
/// the process costs alone still shows something.
pub const OLD_SECONDS: f64 = 30.0;

impl Reading {
    fn is_old(&self, now_seconds: f64) -> bool {
        now_seconds - self.at_seconds >= OLD_SECONDS
    }
}

/// Which probes are to be read.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// Those that the purse can pay, the one that was not read for longest first.
    Payable(Purse),
    /// Those whose tables fill up, whatever it costs: rows would be lost.
    FillingUp,
    /// All, whatever it costs; what can be divided as the purse can pay.
    All(Purse),
}

impl State {
    /// Reads probes. Returns whether any was read, and what those cost that could not be paid, in
    /// CPU seconds.
    pub(super) fn read(&mut self, wanted: Wanted) -> (bool, f64) {
        if let Err(error) = self.budget.read() {
            tracing::warn!("cannot read what the programs cost: {error}");
        }
        let number = self.workloads.begin();
        let (flows, workloads) = (&mut self.flows, &mut self.workloads);
        flows.retire(|id| workloads.is_over(id));
        workloads.retire(&flows.workloads());
        let mut purse = match wanted {
            Wanted::Payable(purse) | Wanted::All(purse) => purse,
            Wanted::FillingUp => Purse::UNLIMITED,
        };
        let (mut is_read, mut owed_seconds) = (false, 0.0);
        for index in self.oldest_first() {
            let reader = &self.readers[index];
            let last = self.readings.get(reader.probe().name()).copied().unwrap_or_default();
            let is_wanted = match wanted {
                // What costs less could always be paid. It waits, so that this one is some time.
                Wanted::Payable(_)
                    if !last.is_old(unix_seconds())
                        && (owed_seconds > 0.0 || !purse.can_pay(last.cost_seconds)) =>
                {
                    owed_seconds += last.cost_seconds;
                    false
                }
                Wanted::FillingUp => reader.fills_up(&self.kernel.control),
                Wanted::Payable(_) | Wanted::All(_) => true,
            };
            if is_wanted {
                is_read = true;
                let began = thread_seconds();
                self.read_one(index, number, purse, last);
                purse.pay(thread_seconds() - began);
            }
        }
        let gone = self.workloads.retired();
        if !gone.is_empty() {
            self.readers.iter_mut().for_each(|reader| reader.forget(&gone));
            self.flows.forget(&gone);
            self.errors.forget(&gone);
        }
        let numbers = self.readers.iter().map(|reader| self.readings.get(reader.probe().name()));
        let numbers: Option<Vec<_>> = numbers.map(|reading| reading.map(|reading| reading.number)).collect();
        if let Some(oldest) = numbers.unwrap_or_default().into_iter().min() {
            self.workloads.forget_gone(oldest);
        }
        (is_read, owed_seconds)
    }

    /// The readers, the one that was not read for longest first; before all the one that learns
    /// the names of what the others saw.
    fn oldest_first(&self) -> Vec<usize> {
        let number = |index: &usize| {
            let probe = self.readers[*index].probe();
            let reading = self.readings.get(probe.name());
            (probe != Probe::Cgroup, reading.map_or(0, |reading| reading.number))
        };
        let mut order: Vec<_> = (0..self.readers.len()).collect();
        order.sort_by_key(number);
        order
    }

    fn read_one(&mut self, index: usize, number: u64, purse: Purse, last: Reading) {
        self.is_shown = false;
        let (begin, cpu_began, now_seconds) = (Instant::now(), thread_seconds(), unix_seconds());
        let reader = &mut self.readers[index];
        let probe = reader.probe();
        let mut divided_seconds = 0.0;
        let result = reader.read(&mut Context {
            control: &self.kernel.control,
            stats: self.budget.stats(),
            workloads: &mut self.workloads,
            flows: &mut self.flows,
            errors: &mut self.errors,
            lacking_seconds: self.budget.lacking_seconds(probe),
            purse,
            divided_seconds: &mut divided_seconds,
            now_seconds,
        });
        let cost_seconds = thread_seconds() - cpu_began - divided_seconds;
        self.budget.item_took("reading", cost_seconds);
        let reading = Reading {
            seconds: begin.elapsed().as_secs_f64(),
            success: result.is_ok(),
            cost_seconds,
            at_seconds: now_seconds,
            ..last
        };
        let reading = match result {
            Ok(until_seconds) => Reading { until_seconds, number, ..reading },
            Err(error) => {
                tracing::warn!("cannot read probe {}: {error}", probe.name());
                reading
            }
        };
        self.readings.insert(probe.name(), reading);
    }

    /// Unix time until which all that happened is in the totals of every probe; 0 when one was
    /// never read.
    pub(super) fn until_seconds(&self) -> f64 {
        let readings = self.readers.iter().map(|reader| self.readings.get(reader.probe().name()));
        let until = readings.map(|reading| reading.map_or(0.0, |reading| reading.until_seconds));
        until.reduce(f64::min).unwrap_or_default()
    }
}
