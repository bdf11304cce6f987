//! The most series that Siskin serves, and the longest text, from its flags. Pure.
//!
//! Every series is in one [`Part`]: so many rows, each with so many series. Tables bound the rows, [`metrics`] bounds the labels.

use std::{collections::BTreeSet, fmt::Write as _};

use siskin_ebpf::{DiskOp, LOSSES, Probe, Program, Role};

use crate::{
    estimate::errors,
    exposition,
    flows::peer::Peers,
    kernel::hook::Group,
    metrics::{self, Accuracy, Kind, Metric},
    probes::{self, Limits},
};

/// Series and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// Series: lines that are no comments.
    pub series: u64,
    /// Bytes of the text with its comments.
    pub bytes: u64,
}

/// Series that come in rows.
#[derive(Debug)]
pub struct Part {
    /// What the rows are.
    pub name: &'static str,
    /// How many there are, in words.
    pub formula: &'static str,
    /// How many there are.
    pub rows: u64,
    /// The metrics of a row, each with how many samples of it a row has.
    pub metrics: Vec<(&'static Metric, u64)>,
}

/// Longest value: twenty digits, or seventeen with a sign, a point and zeros before them.
const VALUE_BYTES: u64 = 32;
/// Longest bound of a bucket with its label: `,le="0.000016384"` and longer ones.
const BOUND_BYTES: u64 = 32;
/// Series of the process itself, and the longest of them with its comments.
const PROCESS: Bound = Bound { series: 7, bytes: 7 * 256 };

/// The parts of the text when these probes are enabled. What does not depend on a flag is one part with one row.
pub fn parts(limits: &Limits, enabled: &[Probe]) -> Vec<Part> {
    let ops = DiskOp::ALL.len() as u64;
    let runs = |probe| enabled.contains(&probe);
    let workloads = u64::from(limits.workloads) + 1;
    let flow_groups =
        [Probe::Tcp, Probe::Udp].into_iter().filter(|probe| runs(*probe)).count() * Role::ALL.len();
    let mut parts = Vec::new();
    let mut part = |name, formula, rows, metrics| parts.push(Part { name, formula, rows, metrics });
    if runs(Probe::Process) {
        part(
            "workloads: processes",
            "`--workloads.max-series` + 1",
            workloads,
            vec![
                (&metrics::PROCESS_EXECS, 1),
                (&metrics::PROCESS_FORKS, 1),
                (&metrics::PROCESS_EXITS, 3),
                (&metrics::PROCESS_OOM_KILLS, 1),
            ],
        );
        let comms = u64::from(limits.comms) + 2;
        part("command names", "`--process.max-comms` + 2", comms, vec![(&metrics::PROCESS_COMM_EXECS, 1)]);
    }
    if runs(Probe::Tcp) {
        part(
            "workloads: TCP",
            "`--workloads.max-series` + 1",
            workloads,
            vec![
                (&metrics::TCP_OPENED, 2),
                (&metrics::TCP_OPEN, 2),
                (&metrics::TCP_FAILED, 4),
                (&metrics::TCP_RETRANSMITS, 1),
            ],
        );
    }
    if runs(Probe::Disk) {
        part(
            "workloads: disk, by operation",
            "(`--workloads.max-series` + 1) × 5",
            workloads * ops,
            vec![(&metrics::WORKLOAD_DISK_BYTES, 1), (&metrics::WORKLOAD_DISK_IOS, 1)],
        );
        part(
            "devices, by operation",
            "(`--disk.max-devices` + 1) × 5",
            (u64::from(limits.devices) + 1) * ops,
            vec![
                (&metrics::DISK_IO, 1),
                (&metrics::DISK_DEVICE, 1),
                (&metrics::DISK_BYTES, 1),
                (&metrics::DISK_REQUESTS, 1),
                (&metrics::DISK_ERRORS, 1),
            ],
        );
    }
    // Several probes may estimate a metric, which then has one variance.
    let estimated: BTreeSet<_> =
        enabled.iter().flat_map(|probe| errors::estimated(*probe)).map(|metric| metric.number).collect();
    part(
        "workloads: variances of estimates",
        "`--workloads.max-series` + 1",
        workloads,
        vec![(&metrics::WORKLOAD_VARIANCE, estimated.len() as u64)],
    );
    if flow_groups > 0 {
        // A flow is one protocol's: a row has either of the two last pairs.
        let last = if runs(Probe::Udp) {
            vec![(&metrics::FLOW_DATAGRAMS, 2)]
        } else {
            vec![(&metrics::FLOW_CONNECTIONS, 1), (&metrics::FLOW_RETRANSMITS, 1)]
        };
        part(
            "flows",
            "`--flows.max-series` + 4 for each of TCP and UDP",
            u64::from(limits.flows) + 2 * flow_groups as u64,
            [vec![(&metrics::FLOW_SENT, 1), (&metrics::FLOW_RECEIVED, 1)], last].concat(),
        );
    }
    part("all else", "1", 1, fixed(limits, &runs));
    parts
}

/// What does not come in rows.
fn fixed(limits: &Limits, runs: &impl Fn(Probe) -> bool) -> Vec<(&'static Metric, u64)> {
    let probes = Probe::ALL.len() as u64;
    let hooks = probes::groups().iter().flat_map(Group::hooks).count() as u64;
    let programs = Program::ALL.len() as u64;
    let maps = probes::plans(limits).len() as u64;
    let estimates = metrics::ALL.iter().filter(|metric| metric.accuracy != Accuracy::Agent);
    let mut fixed = vec![
        (&metrics::BUILD_INFO, 1),
        (&metrics::KERNEL_INFO, 1),
        (&metrics::PROBE_UP, probes),
        (&metrics::PROBE_HOOK_INFO, hooks),
        (&metrics::CPU_SECONDS, 2),
        (&metrics::PROGRAM_RUN_SECONDS, programs),
        (&metrics::PROGRAM_RUNS, programs),
        (&metrics::PROGRAM_COST, 2 * programs),
        (&metrics::PROBE_ATTACH, probes),
        (&metrics::BUDGET_CPU, 1),
        (&metrics::BUDGET_BUCKET, 1),
        (&metrics::BUDGET_DEBT, 1),
        (&metrics::BUDGET_LARGEST_ITEM, 2),
        (&metrics::BUDGET_DUTY, probes),
        (&metrics::BUDGET_MEMORY, 1),
        (&metrics::MAPS_MEMORY, 1),
        (&metrics::KERNEL_STATISTICS_RUN_SECONDS, hooks),
        (&metrics::KERNEL_STATISTICS_RUNS, hooks),
        (&metrics::SAMPLING_RATIO, probes),
        (&metrics::STANDARD_ERROR, estimates.count() as u64),
        (&metrics::MAP_ENTRIES, maps),
        (&metrics::MAP_CAPACITY, maps),
        (&metrics::LOST, probes * (LOSSES as u64 + 1)),
        (&metrics::FLOW_SERIES, 1),
        (&metrics::FLOW_SERIES_LIMIT, 1),
        (&metrics::FLOW_DEPARTURES, 1),
        (&metrics::SERIES_LIMIT, 1),
        (&metrics::SCRAPE_LIMIT, 1),
        (&metrics::WORKLOAD_LOOKUPS, 3),
        (&metrics::WORKLOAD_SERIES, 1),
        (&metrics::WORKLOAD_SERIES_LIMIT, 1),
        (&metrics::WORKLOAD_CGROUPS, 1),
        (&metrics::COLLECT_SECONDS, probes),
        (&metrics::COLLECT_SUCCESS, probes),
        (&metrics::COLLECT_TIMESTAMP, probes),
        (&metrics::HEARTBEAT, 1),
    ];
    if runs(Probe::Process) {
        fixed.push((&metrics::PROCESS_LIFETIME, 1));
    }
    if runs(Probe::Tcp) {
        fixed.extend([
            (&metrics::TCP_RESETS, 2),
            (&metrics::TCP_CONNECT, 1),
            (&metrics::TCP_RTT, 1),
            (&metrics::TCP_LIFETIME, 2),
        ]);
    }
    fixed
}

impl Part {
    /// Series of one row.
    pub fn series_per_row(&self) -> u64 {
        self.metrics.iter().map(|(metric, samples)| samples * series(metric)).sum()
    }

    /// The most that all its rows take, without comments.
    pub fn bound(&self, peers: &Peers) -> Bound {
        let bytes: u64 =
            self.metrics.iter().map(|(metric, samples)| samples * sample_bytes(metric, peers)).sum();
        Bound { series: self.rows * self.series_per_row(), bytes: self.rows * bytes }
    }
}

/// Buckets of a histogram with the one that has no end.
fn buckets(metric: &Metric) -> u64 {
    let bounds =
        if metric.name.contains("lifetime") { metrics::LIFETIME_BOUNDS } else { metrics::LATENCY_BOUNDS };
    bounds.count() as u64 + 1
}

/// Series of one sample.
fn series(metric: &Metric) -> u64 {
    match metric.kind {
        Kind::Counter | Kind::Gauge => 1,
        Kind::Histogram => buckets(metric) + 2,
    }
}

/// Longest text of one sample.
fn sample_bytes(metric: &Metric, peers: &Peers) -> u64 {
    let label = |label: &&str| (label.len() + metrics::label_bytes(label, peers) + "=\"\",".len()) as u64;
    let labels: u64 = metric.labels.iter().map(label).sum();
    let line = metric.name.len() as u64 + labels + "{} \n".len() as u64 + VALUE_BYTES;
    match metric.kind {
        Kind::Counter | Kind::Gauge => line,
        Kind::Histogram => series(metric) * (line + "_bucket".len() as u64) + buckets(metric) * BOUND_BYTES,
    }
}

/// Bytes of all comments.
fn comment_bytes() -> u64 {
    metrics::ALL.iter().map(|metric| exposition::head_bytes(metric) as u64).sum()
}

/// The most that one scrape can bring.
pub fn bound(limits: &Limits, peers: &Peers, enabled: &[Probe]) -> Bound {
    let start = Bound { series: PROCESS.series, bytes: PROCESS.bytes + comment_bytes() };
    parts(limits, enabled).iter().fold(start, |sum, part| {
        let Bound { series, bytes } = part.bound(peers);
        Bound { series: sum.series + series, bytes: sum.bytes + bytes }
    })
}

/// The page docs/cardinality.md.
pub fn page(generated: &str, defaults: &Limits) -> String {
    let mut page = format!("{generated}\n# Cardinality\n\n");
    page.push_str(
        "How many series one agent serves at most, and how long the text is at most. Both follow from its flags; the agent says them when \
         it starts, and exports them as `siskin_series_limit` and `siskin_scrape_limit_bytes`. The code that counts is \
         `agent/src/cardinality.rs`, which made this page; tests drive an agent to its limits and compare.\n\n\
         Every series is in one of these parts, for each of which the number of series is rows × series of a row:\n\n\
         | Part | Rows | Series of a row | Metrics |\n|---|---|---:|---|\n",
    );
    let all = Probe::ALL.to_vec();
    let parts_of = parts(defaults, &all);
    for part in &parts_of {
        let names: Vec<_> = part.metrics.iter().map(|(metric, _)| format!("`{}`", metric.name)).collect();
        let names = if part.rows == 1 { "the rest, and `process_*`".to_owned() } else { names.join(", ") };
        let series = part.series_per_row() + if part.rows == 1 { PROCESS.series } else { 0 };
        // Writing to a String cannot fail.
        let _ = writeln!(page, "| {} | {} | {series} | {names} |", part.name, part.formula);
    }
    let _ = write!(
        page,
        "\nA flow is TCP or UDP, so of the datagrams' two series and those of connections and retransmits it has two. The rows beside the flags' \
         are `container=\"unknown\"`, `device=\"other\"`, `comm=\"other\"` and `comm=\"departed-NUMBER\"`, and for each protocol and role \
         `peer=\"other\"` and `peer=\"departed-NUMBER\"`. A probe that is turned off takes its parts with it. A histogram is its buckets, its \
         sum and its count: {} series for a latency, {} for a lifetime.\n\n\
         The rows of workloads that were not busy with disks, sockets or processes are not made, so these are the most, not the usual.\n\n\
         ## Bytes\n\n\
         A line is its metric's name, its labels and a value of at most {VALUE_BYTES} bytes. Values of labels are bounded, escaped as they \
         are written: `namespace` {} bytes, `pod` {}, `container` {} (longer names are cut at the front, with a hash of the whole in its \
         place), `comm` {}, `device` {}, `reason` {}, `peer` what --flows.peer and the longest name of a range say.\n\n\
         | `--workloads.max-series` | `--flows.max-series` | `--process.max-comms` | `--disk.max-devices` | series at most | MB at most |\n\
         |---:|---:|---:|---:|---:|---:|\n",
        series(&metrics::DISK_IO),
        series(&metrics::PROCESS_LIFETIME),
        metrics::NAMESPACE_BYTES,
        metrics::POD_BYTES,
        metrics::CONTAINER_BYTES,
        metrics::COMM_BYTES,
        metrics::DEVICE_BYTES,
        metrics::REASON_BYTES,
    );
    let small = Limits { workloads: 64, flows: 100, comms: 32, devices: 4, ..*defaults };
    let middle = Limits { workloads: 256, flows: 500, comms: 64, devices: 16, ..*defaults };
    for limits in [&small, &middle, defaults] {
        let Bound { series, bytes } = bound(limits, &Peers::addresses(), &all);
        let Limits { workloads, flows, comms, devices, .. } = limits;
        let megabytes = bytes as f64 / 1e6;
        let _ = writeln!(page, "| {workloads} | {flows} | {comms} | {devices} | {series} | {megabytes:.1} |");
    }
    page.push_str(
        "\nThe last line is the defaults. Series come close to the bound: a test fills small tables to more than nine tenths of it. Bytes do \
         not, because no node has only names as long as allowed: docs/overhead.md (\"Many cgroups\") has what real ones take.\n\n\
         ## Over time\n\n\
         Prometheus keeps series that are gone. A table adds at most as many series between two scrapes as it has rows, and only rows that \
         make room for busier ones, or were idle for --series.max-idle, are followed by others. `departed-NUMBER` is a new series whenever \
         such rows left or returned: at most one for each protocol and role and scrape.\n",
    );
    page
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, time::Duration};

    use prometheus::core::Collector as _;

    use super::*;

    const LIMITS: Limits = Limits {
        workloads: 8,
        flows: 20,
        devices: 2,
        shards: 1,
        sockets: 10,
        comms: 4,
        min_idle: Duration::ZERO,
        max_idle: Duration::ZERO,
        started: 0,
    };

    #[test]
    fn every_metric_is_in_one_part() {
        let mut seen = HashSet::new();
        for part in parts(&LIMITS, &Probe::ALL) {
            for (metric, samples) in part.metrics {
                assert!(samples > 0 && seen.insert(metric.name), "{}", metric.name);
            }
        }
        // A flow has these in place of the datagrams.
        seen.extend([metrics::FLOW_CONNECTIONS.name, metrics::FLOW_RETRANSMITS.name]);
        let all: HashSet<_> = metrics::ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(seen, all);
        let bytes = |metric| sample_bytes(metric, &Peers::addresses());
        assert!(
            2 * bytes(&metrics::FLOW_DATAGRAMS)
                >= bytes(&metrics::FLOW_CONNECTIONS) + bytes(&metrics::FLOW_RETRANSMITS)
        );
    }

    #[test]
    fn the_process_itself_is_no_more_than_said() {
        let families = prometheus::process_collector::ProcessCollector::for_self().collect();
        let text = prometheus::TextEncoder::new().encode_to_string(&families).unwrap();
        let series = text.lines().filter(|line| !line.starts_with('#')).count() as u64;
        assert!(series <= PROCESS.series && text.len() as u64 <= PROCESS.bytes, "{text}");
    }

    #[test]
    fn a_probe_that_is_off_takes_its_series_with_it() {
        let all = bound(&LIMITS, &Peers::addresses(), &Probe::ALL);
        for (probe, series) in [
            // A variance for each metric by workload; bytes of flows are estimated by two probes.
            (Probe::Process, 9 * (6 + 3) + 6 + 34),
            (Probe::Tcp, 9 * (9 + 4) + 4 * 4 + 2 + 2 * 23 + 2 * 34),
            (Probe::Disk, 9 * (5 * 2 + 2) + 3 * 5 * 49),
            (Probe::Udp, 9 + 4 * 4),
        ] {
            let enabled: Vec<_> = Probe::ALL.into_iter().filter(|other| *other != probe).collect();
            let without = bound(&LIMITS, &Peers::addresses(), &enabled);
            assert_eq!(all.series - without.series, series, "{}", probe.name());
            assert!(without.bytes < all.bytes);
        }
    }
}
