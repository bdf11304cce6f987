//! Variances by metric and workload, which are exported as counters: the square root of what one
//! grows by is the standard error of what the value grows by.

use std::collections::{HashMap, HashSet};

use siskin_ebpf::Probe;

use super::duty_cycle::Parts;
use crate::{
    metrics::{self, Exposition, Metric},
    workload::{Id, Workloads},
};

/// Those of TCP, in the order of the words of `siskin_ebpf::TcpEvents`.
pub const TCP: [&Metric; 6] = [
    &metrics::TCP_OPENED,
    &metrics::TCP_FAILED,
    &metrics::FLOW_CONNECTIONS,
    &metrics::FLOW_SENT,
    &metrics::FLOW_RECEIVED,
    &metrics::FLOW_RETRANSMITS,
];

/// The metrics of a probe whose values by workload may be estimates.
pub fn estimated(probe: Probe) -> Vec<&'static Metric> {
    match probe {
        Probe::Cgroup => vec![],
        Probe::Process => vec![&metrics::PROCESS_EXECS, &metrics::PROCESS_FORKS, &metrics::PROCESS_EXITS],
        Probe::Tcp => TCP.to_vec(),
        Probe::Disk => vec![&metrics::WORKLOAD_DISK_BYTES, &metrics::WORKLOAD_DISK_IOS],
        Probe::Udp => vec![&metrics::FLOW_SENT, &metrics::FLOW_RECEIVED, &metrics::FLOW_DATAGRAMS],
    }
}

/// Variances that were added to workloads' values so far.
#[derive(Debug, Default)]
pub struct Errors {
    by_metric: HashMap<usize, Of>,
}

/// Those of one metric.
#[derive(Debug)]
struct Of {
    metric: &'static Metric,
    variances: HashMap<Id, f64>,
    /// What workloads did lately, and all of them together.
    lately: HashMap<Id, f64>,
    lately_total: f64,
}

/// How much of what workloads did before counts beside what they do now. Readings may be a second
/// apart and windows five: what none ended in is shared out by what was seen before.
const MEMORY: f64 = 0.5;

impl Errors {
    fn of(&mut self, metric: &'static Metric) -> &mut Of {
        debug_assert!(
            Probe::ALL.iter().any(|probe| estimated(*probe).iter().any(|of| of.number == metric.number)),
            "{} has no variance by workload",
            metric.name
        );
        self.by_metric.entry(metric.number).or_insert_with(|| Of {
            metric,
            variances: HashMap::new(),
            lately: HashMap::new(),
            lately_total: 0.0,
        })
    }

    /// Adds to the variance of a workload's value of a metric, in its unit squared.
    pub fn add(&mut self, metric: &'static Metric, workload: Id, variance: f64) {
        if variance > 0.0 {
            *self.of(metric).variances.entry(workload).or_default() += variance;
        }
    }

    /// Forgets workloads that are gone.
    pub fn forget(&mut self, gone: &HashSet<Id>) {
        for of in self.by_metric.values_mut() {
            of.variances.retain(|id, _| !gone.contains(id));
            of.lately.retain(|id, _| !gone.contains(id));
        }
    }

    /// Describes them as metrics: only what is not 0.
    pub fn describe(&self, workloads: &Workloads, out: &mut Exposition) {
        for Of { metric, variances, .. } in self.by_metric.values() {
            for (id, variance) in variances {
                let w = workloads.labels(*id);
                let labels = [metric.name, &w.namespace, &w.pod, &w.container];
                out.counter(&metrics::WORKLOAD_VARIANCE, &labels, *variance);
            }
        }
    }
}

/// What one reading adds to a metric, by workload.
#[derive(Debug, Default)]
pub struct Added {
    by_workload: HashMap<Id, Sum>,
    total: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    value: f64,
    variance: f64,
}

/// What the sampled events of a reading were, to which values are scaled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ratio {
    /// The sum of their weights, scaled as the values are; 0 when they are not.
    pub estimated: f64,
    /// The sum of D²N(N-1).
    pub variance: f64,
}

impl Added {
    /// Adds a value, and the variance that sampling adds to it.
    pub fn add(&mut self, workload: Id, value: f64, variance: f64) {
        let sum = self.by_workload.entry(workload).or_default();
        sum.value += value;
        sum.variance += variance;
        self.total += value;
    }

    /// The values of workloads for which `is_known` says so have no error.
    pub fn known(&mut self, is_known: impl Fn(Id) -> bool) {
        self.by_workload.retain(|id, _| !is_known(*id));
    }

    /// Adds up the errors: of sampling, less what scaling to the known number of events takes away
    /// (the residual of the ratio estimator), and what the metric's total got from windows, shared
    /// out by what workloads did lately.
    pub fn finish(self, errors: &mut Errors, metric: &'static Metric, ratio: Ratio, windows: Parts) {
        self.add_to(errors, metric, ratio, |share| windows.sum() * share);
    }

    /// The same where the total is known in spite of windows: only how it is shared out has an
    /// error of them.
    pub fn finish_known(self, errors: &mut Errors, metric: &'static Metric, windows: Parts) {
        self.add_to(errors, metric, Ratio::default(), |share| windows.uneven * share * (1.0 - share));
    }

    fn add_to(
        self,
        errors: &mut Errors,
        metric: &'static Metric,
        ratio: Ratio,
        windows: impl Fn(f64) -> f64,
    ) {
        let Of { variances, lately, lately_total, .. } = errors.of(metric);
        if self.total > 0.0 {
            lately.values_mut().for_each(|value| *value *= MEMORY);
            lately.retain(|_, value| *value > f64::EPSILON);
            *lately_total = *lately_total * MEMORY + self.total;
        }
        let mut add = |id, variance: f64| {
            if variance > 0.0 {
                *variances.entry(id).or_default() += variance;
            }
        };
        for (id, Sum { value, variance }) in self.by_workload {
            let mean = if ratio.estimated > 0.0 { value / ratio.estimated } else { 0.0 };
            add(id, variance - mean * mean * ratio.variance);
            *lately.entry(id).or_default() += value;
        }
        for (id, value) in lately {
            add(*id, windows(*value / lately_total.max(1.0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variance(errors: &Errors, id: Id) -> f64 {
        errors.by_metric.values().map(|of| of.variances.get(&id).copied().unwrap_or_default()).sum()
    }

    #[test]
    fn a_workload_that_did_everything_has_no_error_of_sampling() {
        let (mut errors, mut added) = (Errors::default(), Added::default());
        // 25 of 100 events sampled, each with weight 4.
        added.add(Id::UNKNOWN, 100.0, 25.0 * 12.0);
        added.finish(
            &mut errors,
            &metrics::PROCESS_EXECS,
            Ratio { estimated: 100.0, variance: 300.0 },
            Parts::default(),
        );
        assert_eq!(variance(&errors, Id::UNKNOWN), 0.0);
    }

    #[test]
    fn without_a_known_number_all_of_the_sampling_error_counts_and_windows_by_share() {
        let (mut errors, mut added) = (Errors::default(), Added::default());
        added.add(Id::UNKNOWN, 100.0, 300.0);
        let windows = Parts { uneven: 30.0, lacked: 20.0 };
        added.finish(&mut errors, &metrics::PROCESS_EXECS, Ratio::default(), windows);
        assert_eq!(variance(&errors, Id::UNKNOWN), 350.0);
        // No window ended since: what it lacks is shared out by what was seen before.
        Added::default().finish(&mut errors, &metrics::PROCESS_EXECS, Ratio::default(), windows);
        assert_eq!(variance(&errors, Id::UNKNOWN), 400.0);
        errors.forget(&HashSet::from([Id::UNKNOWN]));
        assert_eq!(variance(&errors, Id::UNKNOWN), 0.0);
    }
}
