//! Variances by metric and workload, which are exported as counters: the square root of what one
//! grows by is the standard error of what the value grows by.

use std::collections::{HashMap, HashSet};

use siskin_ebpf::Probe;

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
    by_metric: HashMap<usize, (&'static Metric, HashMap<Id, f64>)>,
}

impl Errors {
    /// Adds to the variance of a workload's value of a metric, in its unit squared.
    pub fn add(&mut self, metric: &'static Metric, workload: Id, variance: f64) {
        debug_assert!(
            Probe::ALL.iter().any(|probe| estimated(*probe).iter().any(|of| of.number == metric.number)),
            "{} has no variance by workload",
            metric.name
        );
        if variance > 0.0 {
            let (_, by_workload) = self.by_metric.entry(metric.number).or_insert((metric, HashMap::new()));
            *by_workload.entry(workload).or_default() += variance;
        }
    }

    /// Forgets workloads that are gone.
    pub fn forget(&mut self, gone: &HashSet<Id>) {
        for (_, by_workload) in self.by_metric.values_mut() {
            by_workload.retain(|id, _| !gone.contains(id));
        }
    }

    /// Describes them as metrics: only what is not 0.
    pub fn describe(&self, workloads: &Workloads, out: &mut Exposition) {
        for (metric, by_workload) in self.by_metric.values() {
            for (id, variance) in by_workload {
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

    /// The sum of all values.
    pub fn total(&self) -> f64 {
        self.total
    }

    /// The values of workloads for which `is_known` says so have no error.
    pub fn known(&mut self, is_known: impl Fn(Id) -> bool) {
        self.by_workload.retain(|id, _| !is_known(*id));
    }

    /// Adds up the errors: of sampling, less what scaling to the known number of events takes away
    /// (the residual of the ratio estimator), and what the metric's total got from windows, shared
    /// out as the values are.
    pub fn finish(self, errors: &mut Errors, metric: &'static Metric, ratio: Ratio, windows: f64) {
        self.add_to(errors, metric, ratio, |share| windows * share);
    }

    /// The same where the total is known in spite of windows: they add to the error of how it is
    /// shared out, and it is shared out late, when there was a window. `windows` is the variance of
    /// both, and `lacked` that of the latter.
    pub fn finish_known(
        self,
        errors: &mut Errors,
        metric: &'static Metric,
        ratio: Ratio,
        [windows, lacked]: [f64; 2],
    ) {
        self.add_to(errors, metric, ratio, |share| {
            (windows - lacked) * share * (1.0 - share) + lacked * share
        });
    }

    fn add_to(
        self,
        errors: &mut Errors,
        metric: &'static Metric,
        ratio: Ratio,
        windows: impl Fn(f64) -> f64,
    ) {
        for (id, Sum { value, variance }) in self.by_workload {
            let mean = if ratio.estimated > 0.0 { value / ratio.estimated } else { 0.0 };
            let sampling = (variance - mean * mean * ratio.variance).max(0.0);
            let share = if self.total > 0.0 { value / self.total } else { 0.0 };
            errors.add(metric, id, sampling + windows(share));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variance(errors: &Errors, id: Id) -> f64 {
        errors.by_metric.values().map(|(_, by)| by.get(&id).copied().unwrap_or_default()).sum()
    }

    #[test]
    fn a_workload_that_did_everything_has_no_error_of_sampling() {
        let (mut errors, mut added) = (Errors::default(), Added::default());
        // 25 of 100 events sampled, each with weight 4.
        added.add(Id::UNKNOWN, 100.0, 25.0 * 12.0);
        added.finish(&mut errors, &metrics::PROCESS_EXECS, Ratio { estimated: 100.0, variance: 300.0 }, 0.0);
        assert_eq!(variance(&errors, Id::UNKNOWN), 0.0);
    }

    #[test]
    fn without_a_known_number_all_of_the_sampling_error_counts_and_windows_by_share() {
        let (mut errors, mut added) = (Errors::default(), Added::default());
        added.add(Id::UNKNOWN, 100.0, 300.0);
        added.finish(&mut errors, &metrics::PROCESS_EXECS, Ratio::default(), 50.0);
        assert_eq!(variance(&errors, Id::UNKNOWN), 350.0);
        errors.forget(&HashSet::from([Id::UNKNOWN]));
        assert_eq!(variance(&errors, Id::UNKNOWN), 0.0);
    }
}
