//! The only place that knows metric names: every metric Siskin exports, and how long its labels may be.

use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

pub use crate::exposition::Exposition;
use crate::flows::peer::Peers;

/// What kind of metric it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
}

/// How accurate a metric's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accuracy {
    /// Counted by the kernel itself; estimated only where it keeps no count.
    Kernel,
    /// Exact until the CPU budget cannot pay for that, then an estimate with an error.
    Budget,
    /// As the metrics of class [`Self::Budget`], but for the error: what is rare is not sampled,
    /// and scaled while attached for a share of the time.
    Attached,
    /// Exact until the CPU budget cannot pay for that; then of what is followed, or scaled up,
    /// without an error of its own.
    Followed,
    /// A sampled estimate with an error; exact while nothing is skipped.
    Sampled,
    /// About the agent itself.
    Agent,
}

impl Accuracy {
    /// In a word or two.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "exact (kernel)",
            Self::Budget => "exact until the budget asks for an estimate",
            Self::Attached => "exact while attached",
            Self::Followed => "exact until the budget asks for less",
            Self::Sampled => "sampled",
            Self::Agent => "agent",
        }
    }
}

/// A metric.
#[derive(Debug)]
pub struct Metric {
    /// Its place in [`ALL`].
    pub number: usize,
    /// Its name, with unit and suffix.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its labels, in the order in which their values are given.
    pub labels: &'static [&'static str],
    /// How accurate it is.
    pub accuracy: Accuracy,
    /// What it says, without [`Accuracy`].
    pub text: &'static str,
}

impl Metric {
    /// The HELP line: what it says, and how accurate it is.
    pub fn help(&self) -> String {
        let accuracy = match self.accuracy {
            Accuracy::Kernel => {
                " Exact: the kernel's own statistics; where it keeps none, an estimate with its error in \
                 siskin_estimate_standard_error."
            }
            Accuracy::Budget => {
                " Exact while siskin_sampling_ratio and siskin_budget_duty_ratio of the probe are 1 (always with \
                 --budget.exact), else an estimate; errors are in siskin_estimate_standard_error and, by workload, in \
                 siskin_workload_estimate_variance_total."
            }
            Accuracy::Attached => {
                " Exact while siskin_budget_duty_ratio of the probe is 1, else scaled up by that share of the time."
            }
            Accuracy::Followed => {
                " Exact while siskin_sampling_ratio and siskin_budget_duty_ratio of the probe are 1 (always with \
                 --budget.exact), else of the connections that are followed, or scaled up, without an error of its own."
            }
            Accuracy::Sampled => {
                " Sampled estimate, exact while siskin_sampling_ratio and siskin_budget_duty_ratio of the probe are 1; errors \
                 are in siskin_estimate_standard_error and, by workload, in siskin_workload_estimate_variance_total."
            }
            Accuracy::Agent => "",
        };
        format!("{}{accuracy}", self.text)
    }
}

macro_rules! metrics {
    ($($id:ident = $kind:ident $accuracy:ident $name:literal [$($label:literal),*] $text:literal;)+) => {
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "the metrics' own names, to number them")]
        enum Number { $($id),+ }
        $(
            #[doc = concat!("`", $name, "`: ", $text)]
            pub static $id: Metric = Metric {
                number: Number::$id as usize,
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                accuracy: Accuracy::$accuracy,
                text: $text,
            };
        )+
        /// Every metric.
        pub static ALL: &[&Metric] = &[$(&$id),+];
    };
}

metrics! {
    PROCESS_EXECS = Counter Budget "siskin_process_execs_total" ["namespace", "pod", "container"]
        "Programs started (successful execve calls).";
    PROCESS_FORKS = Counter Budget "siskin_process_forks_total" ["namespace", "pod", "container"]
        "Processes created, without threads.";
    PROCESS_EXITS = Counter Budget "siskin_process_exits_total" ["namespace", "pod", "container", "outcome"]
        "Processes that ended, without threads, by exit status 0, other status, or signal.";
    PROCESS_LIFETIME = Histogram Budget "siskin_process_lifetime_seconds" []
        "Time from a process's start to its end.";
    PROCESS_COMM_EXECS = Counter Budget "siskin_process_comm_execs_total" ["comm"]
        "Programs started by command name; names beyond the limit are in comm=\"other\".";
    PROCESS_OOM_KILLS = Counter Attached "siskin_process_oom_kills_total" ["namespace", "pod", "container"]
        "Processes that ended after the OOM killer chose them.";

    TCP_OPENED = Counter Budget "siskin_tcp_connections_opened_total" ["namespace", "pod", "container", "role"]
        "TCP connections established.";
    TCP_FAILED = Counter Budget "siskin_tcp_connections_failed_total" ["namespace", "pod", "container", "reason"]
        "TCP connections that ended in an error: never established, or cut by the peer or by a timeout.";
    TCP_OPEN = Gauge Followed "siskin_tcp_connections_open" ["namespace", "pod", "container", "role"]
        "TCP connections established now, also those older than the agent, as found by the reading; without those that the budget \
         kept from being followed (siskin_lost_total).";
    TCP_RETRANSMITS = Counter Followed "siskin_tcp_retransmits_total" ["namespace", "pod", "container"]
        "TCP segments retransmitted.";
    TCP_RESETS = Counter Followed "siskin_tcp_resets_total" ["direction"]
        "TCP resets sent and received. Before Linux 6.10, resets that answer segments of no connection are not among those sent.";
    TCP_CONNECT = Histogram Followed "siskin_tcp_connect_seconds" []
        "Time from the first SYN to established, of connections opened from here.";
    TCP_RTT = Histogram Followed "siskin_tcp_rtt_seconds" []
        "Smoothed round-trip time: one observation per live connection and reading, and one at its end.";
    TCP_LIFETIME = Histogram Followed "siskin_tcp_connection_lifetime_seconds" ["role"]
        "Time from established to closed, of connections whose beginning the agent saw.";

    FLOW_SENT = Counter Budget "siskin_flow_sent_bytes_total"
        ["namespace", "pod", "container", "protocol", "role", "peer", "port"]
        "Payload bytes sent, without retransmits.";
    FLOW_RECEIVED = Counter Budget "siskin_flow_received_bytes_total"
        ["namespace", "pod", "container", "protocol", "role", "peer", "port"]
        "Payload bytes received.";
    FLOW_CONNECTIONS = Counter Budget "siskin_flow_connections_total"
        ["namespace", "pod", "container", "protocol", "role", "peer", "port"]
        "TCP connections established.";
    FLOW_RETRANSMITS = Counter Budget "siskin_flow_retransmits_total"
        ["namespace", "pod", "container", "protocol", "role", "peer", "port"]
        "TCP segments retransmitted on established connections.";

    FLOW_DATAGRAMS = Counter Sampled "siskin_flow_datagrams_total"
        ["namespace", "pod", "container", "protocol", "role", "peer", "port", "direction"]
        "UDP datagrams: calls that sent or received one.";

    DISK_IO = Histogram Sampled "siskin_disk_io_seconds" ["device", "op"]
        "Time from queueing a block request to its completion.";
    DISK_DEVICE = Histogram Sampled "siskin_disk_device_seconds" ["device", "op"]
        "Time from issuing a block request to the device to its completion, where the kernel keeps it.";
    DISK_BYTES = Counter Kernel "siskin_disk_bytes_total" ["device", "op"]
        "Bytes that completed block requests moved.";
    DISK_REQUESTS = Counter Kernel "siskin_disk_requests_total" ["device", "op"]
        "Block requests completed.";
    DISK_ERRORS = Counter Attached "siskin_disk_errors_total" ["device", "op"]
        "Block requests that completed with an error.";
    WORKLOAD_DISK_BYTES = Counter Sampled "siskin_workload_disk_bytes_total" ["namespace", "pod", "container", "op"]
        "Bytes that block requests moved, by the workload that asked for them: exact where the cgroup has an io.stat, else split as sampled.";
    WORKLOAD_DISK_IOS = Counter Sampled "siskin_workload_disk_ios_total" ["namespace", "pod", "container", "op"]
        "Block requests completed, by the workload that asked for them.";

    BUILD_INFO = Gauge Agent "siskin_build_info" ["version", "revision", "rustc"] "The running build.";
    KERNEL_INFO = Gauge Agent "siskin_kernel_info" ["release", "machine"] "The running kernel.";
    PROBE_UP = Gauge Agent "siskin_probe_up" ["probe"] "1 when every hook of the probe could be attached; siskin_budget_duty_ratio says for how much of the time it is.";
    PROBE_HOOK_INFO = Gauge Agent "siskin_probe_hook_info" ["probe", "hook", "state", "reason"]
        "What became of each hook, and why.";
    CPU_SECONDS = Counter Agent "siskin_cpu_seconds_total" ["side"]
        "CPU time that Siskin took: user is its process, kernel its programs, measured by themselves.";
    PROGRAM_RUN_SECONDS = Counter Agent "siskin_program_run_seconds_total" ["program"]
        "Time each program ran, with its dispatch, measured by itself.";
    PROGRAM_RUNS = Counter Agent "siskin_program_runs_total" ["program"]
        "Runs of each program.";
    PROGRAM_COST = Gauge Agent "siskin_program_cost_seconds" ["program", "part"]
        "What a program costs as it measured itself: run is a run that skips its event, with the hook's dispatch, event is what the work on a sampled event adds.";
    PROBE_ATTACH = Gauge Agent "siskin_probe_attach_seconds" ["probe"]
        "CPU time that attaching and detaching a probe for one window takes, with that of the other CPUs.";
    BUDGET_CPU = Gauge Agent "siskin_budget_cpu_cores" [] "The CPU that Siskin may take, its programs and its process together.";
    BUDGET_BUCKET = Gauge Agent "siskin_budget_bucket_seconds" [] "CPU time that may still be spent at once: what the budget gives in a second, less what was spent.";
    BUDGET_DEBT = Gauge Agent "siskin_budget_debt_seconds" [] "CPU time that was spent before the budget gave it, and is repaid before anything else is bought.";
    BUDGET_LARGEST_ITEM = Gauge Agent "siskin_budget_largest_item_seconds" ["item"]
        "CPU time of the dearest thing so far that cannot be divided: over any T seconds the cost is at most the budget times T + 1 s, plus this.";
    BUDGET_DUTY = Gauge Agent "siskin_budget_duty_ratio" ["probe"]
        "Share of the time for which a probe is attached, because of the budget.";
    BUDGET_MEMORY = Gauge Agent "siskin_budget_memory_bytes" [] "The most kernel memory that maps may take.";
    MAPS_MEMORY = Gauge Agent "siskin_maps_memory_bytes" []
        "The most kernel memory that the maps can take, computed before they were made.";
    KERNEL_STATISTICS_RUN_SECONDS = Counter Agent "siskin_kernel_statistics_run_seconds_total" ["program"]
        "Time each program ran by the kernel's own statistics, while they are on (--debug.program-stats or kernel.bpf_stats_enabled).";
    KERNEL_STATISTICS_RUNS = Counter Agent "siskin_kernel_statistics_runs_total" ["program"]
        "Runs of each program by the kernel's own statistics, while they are on.";
    SAMPLING_RATIO = Gauge Agent "siskin_sampling_ratio" ["probe"] "The part of a probe's events that is sampled while it is attached.";
    STANDARD_ERROR = Gauge Agent "siskin_estimate_standard_error" ["metric"]
        "Standard error of an estimated metric's total over all labels, in its unit; 0 where the total is known.";
    WORKLOAD_VARIANCE = Counter Agent "siskin_workload_estimate_variance_total" ["metric", "namespace", "pod", "container"]
        "Variance that was added to a workload's value of a metric, in its unit squared: the square root of an increase is the standard error of the value's increase over that time.";
    MAP_ENTRIES = Gauge Agent "siskin_map_entries" ["map"] "Elements in a map.";
    MAP_CAPACITY = Gauge Agent "siskin_map_capacity" ["map"] "Most elements that a map holds.";
    LOST = Counter Agent "siskin_lost_total" ["probe", "reason"]
        "What could not be counted where it belongs, by reason.";
    FLOW_SERIES = Gauge Agent "siskin_flow_series" [] "Rows in the flow table, with the rows for the rest.";
    FLOW_SERIES_LIMIT = Gauge Agent "siskin_flow_series_limit" [] "Most rows in the flow table, without the rows for the rest.";
    FLOW_DEPARTURES = Counter Agent "siskin_flow_departures_total" [] "Rows that left the flow table.";
    SERIES_LIMIT = Gauge Agent "siskin_series_limit" [] "Most series that one scrape can bring, by the flags (docs/cardinality.md).";
    SCRAPE_LIMIT = Gauge Agent "siskin_scrape_limit_bytes" [] "Most bytes that one scrape can bring, by the flags (docs/cardinality.md).";
    WORKLOAD_LOOKUPS = Counter Agent "siskin_workload_lookups_total" ["outcome"]
        "Cgroups that did something and were looked up, by what they turned out to be. One that is nowhere is looked for again, after 1 s, 2 s, 4 s and so on.";
    WORKLOAD_SERIES = Gauge Agent "siskin_workload_series" [] "Workloads that have series of their own.";
    WORKLOAD_SERIES_LIMIT = Gauge Agent "siskin_workload_series_limit" [] "Most workloads that may have series of their own; what the others do is in container=\"unknown\".";
    WORKLOAD_CGROUPS = Gauge Agent "siskin_workload_cgroups" [] "Cgroups that are known by name, also dead ones until their last value was read.";
    COLLECT_SECONDS = Gauge Agent "siskin_collect_seconds" ["probe"] "Time the last reading of the probe took.";
    COLLECT_SUCCESS = Gauge Agent "siskin_collect_success" ["probe"] "1 when the last reading of the probe succeeded.";
    COLLECT_TIMESTAMP = Gauge Agent "siskin_collect_timestamp_seconds" ["probe"]
        "Unix time until which all that the probe saw is in its numbers: how old they are when the CPU budget could not pay for reading them again.";
    HEARTBEAT = Gauge Agent "siskin_heartbeat_timestamp_seconds" []
        "Unix time until which all that the running probes saw is in their numbers.";
}

/// Bounds of latency histograms as powers of two in nanoseconds: 16 µs to 8.6 s.
pub const LATENCY_BOUNDS: std::ops::RangeInclusive<u32> = 14..=33;
/// Bounds of lifetime histograms as powers of two in nanoseconds: 1 ms to 13 days.
pub const LIFETIME_BOUNDS: std::ops::RangeInclusive<u32> = 20..=50;

/// Most bytes of the label `namespace`, as written: what Kubernetes allows.
pub const NAMESPACE_BYTES: usize = 63;
/// Most bytes of the label `pod`, as written: what Kubernetes allows.
pub const POD_BYTES: usize = 253;
/// Most bytes of the label `container`, as written: the longest name of a directory, not of a path.
pub const CONTAINER_BYTES: usize = 255;
/// Most bytes of the label `comm`, as written: fifteen, of which each that is no text becomes three.
pub const COMM_BYTES: usize = 45;
/// Most bytes of the label `device`, as written: twice the kernel's `DISK_NAME_LEN`.
pub const DEVICE_BYTES: usize = 64;
/// Most bytes of the label `reason`, as written.
pub const REASON_BYTES: usize = 512;

/// Most bytes of a label's value, as written.
pub fn label_bytes(label: &str, peers: &Peers) -> usize {
    match label {
        "namespace" => NAMESPACE_BYTES,
        "pod" => POD_BYTES,
        "container" => CONTAINER_BYTES,
        "comm" => COMM_BYTES,
        "device" => DEVICE_BYTES,
        "reason" => REASON_BYTES,
        "peer" => peers.longest_label(),
        // Numbers, words of this code, and names that the kernel or this code bounds: of hooks, metrics, programs and maps.
        _ => 64,
    }
}

/// Bytes of a label's value as it is written: some characters take two.
pub fn written_bytes(value: &str) -> usize {
    value.len() + value.bytes().filter(|byte| matches!(byte, b'\\' | b'"' | b'\n')).count()
}

/// A label's value in at most so many bytes as written. Of one that is longer the end stays, behind a hash of the whole, so that
/// different values stay different. `most` is larger than the hash.
pub fn fit(value: &str, most: usize) -> Cow<'_, str> {
    if written_bytes(value) <= most {
        return value.into();
    }
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    let mut room = most - HASH_BYTES;
    let mut start = value.len();
    for (at, character) in value.char_indices().rev() {
        let bytes = written_bytes(&value[at..at + character.len_utf8()]);
        if bytes > room {
            break;
        }
        room -= bytes;
        start = at;
    }
    format!("{:016x}~{}", hasher.finish(), &value[start..]).into()
}

/// Sixteen digits and a mark.
const HASH_BYTES: usize = 17;

/// Nanoseconds in a second.
pub const NANOS: f64 = 1e9;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        let mut names: Vec<_> = ALL.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            assert!(metric.name.starts_with("siskin_"), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(metric.text.ends_with('.'), "{}", metric.name);
            assert!(std::ptr::eq(ALL[metric.number], *metric), "{}", metric.name);
            assert!(!metric.help().contains(['\\', '\n']), "{}: HELP is written as it is", metric.name);
        }
    }

    proptest! {
        #[test]
        fn a_value_that_fits_stays_and_one_that_does_not_is_cut_and_stays_different(
            value in "[a-c/\\\\\"\n\u{e9}]{0,80}",
            most in 20usize..60,
        ) {
            let fitted = fit(&value, most);
            prop_assert!(written_bytes(&fitted) <= most, "{fitted}");
            prop_assert_eq!(written_bytes(&value) <= most, *fitted == *value);
            let other = format!("x{value}");
            prop_assert!(fit(&other, most) != fitted);
        }
    }
}
