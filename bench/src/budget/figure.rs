//! What the agent says that can be compared with what the load generators counted.

use siskin_tests::metrics::{Metrics, Sample};

use crate::load::{
    generators::{FIRST_PORT, LAST_PORT},
    job::{Count, Counts},
    process::TINY,
};

/// The probes whose events the loads make, in the order of [`Figure::probe`].
pub const PROBES: [&str; 4] = ["udp", "disk", "process", "tcp"];

/// Which series of a metric belong to the loads.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Series {
    /// Those with a port of the loads.
    Ports,
    /// Those of the disk that the loads use.
    Device,
    /// Those of the program that the loads start.
    Program,
    /// Those of the first workload.
    Container,
}

/// A number that the agent serves and that the load generators count too.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// What it is called in reports.
    pub name: &'static str,
    /// Of the first workload alone; else of all.
    pub is_workload: bool,
    /// The metric.
    metric: &'static str,
    /// The metric under whose name its error is served. That of a histogram is of its sum, in
    /// seconds.
    error_metric: &'static str,
    series: Series,
    /// What it counts, and how many the agent counts for each: it may count at both ends.
    pub counts: &'static [(Count, f64)],
    /// The probe whose sampling makes its error: an index of [`PROBES`].
    pub probe: usize,
    /// Whether its total is the kernel's own, not the programs'.
    pub is_kernels: bool,
}

const BYTES: &[(Count, f64)] = &[(Count::DatagramBytes, 0.5), (Count::TcpBytes, 0.5)];
const CONNECTIONS: &[(Count, f64)] = &[(Count::Connections, 2.0)];
const DATAGRAMS: &[(Count, f64)] = &[(Count::Datagrams, 1.0)];
const DISK_BYTES: &[(Count, f64)] = &[(Count::DiskBytes, 1.0)];
const EXECS: &[(Count, f64)] = &[(Count::Execs, 1.0)];
const REQUESTS: &[(Count, f64)] = &[(Count::Requests, 1.0)];

const fn total(
    name: &'static str,
    metric: &'static str,
    series: Series,
    counts: &'static [(Count, f64)],
    probe: usize,
) -> Figure {
    Figure {
        name,
        is_workload: false,
        metric,
        error_metric: metric,
        series,
        counts,
        probe,
        is_kernels: false,
    }
}

impl Figure {
    const fn of_workload(self) -> Self {
        Self { is_workload: true, ..self }
    }

    const fn of_kernel(self) -> Self {
        Self { is_kernels: true, ..self }
    }

    const fn with_error_of(self, error_metric: &'static str) -> Self {
        Self { error_metric, ..self }
    }
}

/// Number of [`FIGURES`].
pub const FIGURE_COUNT: usize = 15;

/// All of them.
pub const FIGURES: [Figure; FIGURE_COUNT] = {
    use Series::{Container, Device, Ports, Program};
    let datagrams = total("datagrams", "siskin_flow_datagrams_total", Ports, DATAGRAMS, 0);
    let sent = total("bytes sent", "siskin_flow_sent_bytes_total", Ports, BYTES, 0);
    let received = total("bytes received", "siskin_flow_received_bytes_total", Ports, BYTES, 0);
    let connections = total("connections", "siskin_flow_connections_total", Ports, CONNECTIONS, 3);
    [
        datagrams,
        sent,
        received,
        total("requests", "siskin_disk_requests_total", Device, REQUESTS, 1).of_kernel(),
        total("requests, histogram", "siskin_disk_io_seconds_count", Device, REQUESTS, 1)
            .with_error_of("siskin_workload_disk_ios_total"),
        total("disk bytes", "siskin_disk_bytes_total", Device, DISK_BYTES, 1).of_kernel(),
        total("execs", "siskin_process_comm_execs_total", Program, EXECS, 2),
        connections,
        datagrams.of_workload(),
        sent.of_workload(),
        received.of_workload(),
        total("requests", "siskin_workload_disk_ios_total", Container, REQUESTS, 1).of_workload(),
        total("disk bytes", "siskin_workload_disk_bytes_total", Container, DISK_BYTES, 1).of_workload(),
        total("execs", "siskin_process_execs_total", Container, EXECS, 2).of_workload(),
        connections.of_workload(),
    ]
};

/// An estimated total and its variance.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The total.
    pub total: f64,
    /// Its variance, as far as the agent says.
    pub variance: f64,
}

impl Figure {
    /// Its name with its scope.
    pub fn label(&self) -> String {
        format!("{}{}", self.name, if self.is_workload { ", workload" } else { "" })
    }

    /// What the agent says; `None` while it has no series of the loads. `device` is the disk of the
    /// loads, `container` the first workload.
    pub fn estimate(&self, metrics: &Metrics, device: &str, container: &str) -> Option<Estimate> {
        let has = |sample: &Sample, label: &str, value: &str| {
            sample.labels.iter().any(|(other, its)| other == label && its == value)
        };
        let is_ours = |sample: &Sample| match self.series {
            Series::Ports => {
                let port = sample.labels.iter().find(|(label, _)| label == "port");
                let port = port.and_then(|(_, port)| port.parse::<u16>().ok());
                port.is_some_and(|port| (FIRST_PORT..=LAST_PORT).contains(&port))
            }
            Series::Device => has(sample, "device", device),
            Series::Program => has(sample, "comm", TINY),
            Series::Container => true,
        };
        let is_in = |sample: &Sample| !self.is_workload || has(sample, "container", container);
        let mut values =
            metrics.find(self.metric, &[]).filter(|sample| is_ours(sample) && is_in(sample)).peekable();
        values.peek()?;
        let total = values.map(|sample| sample.value).sum();
        let variance = if self.is_workload {
            let labels = [("metric", self.error_metric), ("container", container)];
            metrics.sum("siskin_workload_estimate_variance_total", &labels)
        } else {
            metrics.sum("siskin_estimate_standard_error", &[("metric", self.error_metric)]).powi(2)
        };
        // The sum of nothing is -0.
        Some(Estimate { total, variance: variance.abs() })
    }

    /// What the load generators counted: by all, and by those of the first workload.
    pub fn truth(&self, counts: &[Counts; 2]) -> f64 {
        let counts = &counts[usize::from(self.is_workload)];
        self.counts.iter().map(|(count, each)| counts.of(*count) * each).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_take_their_own_series_and_errors() {
        let metrics = Metrics::parse(
            "siskin_flow_sent_bytes_total{container=\"/b/first\",protocol=\"udp\",port=\"7001\"} 5\n\
             siskin_flow_sent_bytes_total{container=\"/b/second\",protocol=\"tcp\",port=\"7002\"} 7\n\
             siskin_flow_sent_bytes_total{container=\"/\",protocol=\"tcp\",port=\"53\"} 11\n\
             siskin_estimate_standard_error{metric=\"siskin_flow_sent_bytes_total\"} 3\n\
             siskin_workload_estimate_variance_total{metric=\"siskin_flow_sent_bytes_total\",container=\"/b/first\"} 4\n",
        );
        let of = |index: usize| FIGURES[index].estimate(&metrics, "loop0", "/b/first");
        assert_eq!(of(1), Some(Estimate { total: 12.0, variance: 9.0 }));
        assert_eq!(of(9), Some(Estimate { total: 5.0, variance: 4.0 }));
        assert_eq!(of(3), None);
    }
}
