//! Flags as data. Names follow the official Prometheus exporters.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytesize::ByteSize;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use siskin_ebpf::{MAX_PERIOD, Probe, shards};

use crate::{
    budget::cores,
    flows::peer::{PeerMode, Peers, Range},
    probes::Limits,
    workload::Roots,
};

/// eBPF host telemetry: network flows, processes and disk I/O, served to Prometheus.
#[derive(Debug, Parser)]
#[command(name = "siskin", version = VERSION, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Version and revision of this build.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("SISKIN_REVISION"), ")");

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load the programs and serve metrics until SIGTERM or Ctrl-C
    Run(Box<Run>),
    /// Say what this kernel and these privileges allow: attach every probe for a moment, serve nothing. Exit code 1 when
    /// an enabled probe cannot run
    Check(Check),
    /// Print a generated document
    #[command(hide = true)]
    Docs {
        /// Which one
        document: Document,
    },
}

/// A document that is made from the code.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Document {
    /// Every metric
    Metrics,
    /// Every flag
    Help,
    /// The most series
    Cardinality,
}

/// Flags of `siskin run`.
#[derive(Args, Debug)]
pub struct Run {
    /// Address to serve on; a port alone (":19100") is every address
    #[arg(long = "web.listen-address", value_name = "ADDRESS", default_value = "127.0.0.1:19100", value_parser = address)]
    pub listen_address: SocketAddr,

    /// Path of the metrics
    #[arg(long = "web.telemetry-path", value_name = "PATH", default_value = "/metrics", value_parser = path)]
    pub telemetry_path: String,

    /// Serve scrapes that come faster than this from the last reading
    #[arg(long = "collect.min-interval", value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub min_interval: Duration,

    /// CPU that Siskin may take, its programs and its process together: millicores (10m), cores
    /// (0.01), a percentage of one core (1%), or unlimited. Over any T seconds it takes at most
    /// this times T + 1 s, plus the reading of one probe. Events that cannot be paid for are
    /// sampled, and a scrape that cannot is answered with older numbers. The start, and probes
    /// named in --budget.exact, are not counted
    #[arg(long = "budget.cpu", value_name = "CPU", default_value = "10m", value_parser = cores::parse)]
    pub cpu: f64,

    /// A file with the value of --budget.cpu, which it replaces; read again on SIGHUP
    #[arg(long = "budget.cpu-file", value_name = "FILE")]
    pub cpu_file: Option<PathBuf>,

    /// Probes that are never sampled, whatever they cost, separated by commas: they stand outside
    /// of --budget.cpu
    #[arg(long = "budget.exact", value_name = "PROBE", value_delimiter = ',', value_parser = probe)]
    pub exact: Vec<Probe>,

    /// Which probes run
    #[command(flatten)]
    pub collectors: Collectors,

    /// How large the tables are
    #[command(flatten)]
    pub sizes: Sizes,

    /// How the remote ends of flows are shown
    #[command(flatten)]
    pub peers: PeerFlags,

    /// Where the host's file systems are
    #[command(flatten)]
    pub paths: Paths,

    /// Turn on the kernel's run-time statistics of programs (needs CAP_SYS_ADMIN; costs a little on every run of every program)
    #[arg(long = "debug.program-stats")]
    pub program_stats: bool,

    /// Sample one disk request and one datagram in this many, whatever it costs
    #[arg(long = "debug.sampling-period", value_name = "EVENTS", value_parser = period, conflicts_with_all = ["cpu", "cpu_file", "exact"])]
    pub sampling_period: Option<u64>,

    /// Attach nothing to the return of functions, as where the kernel cannot
    #[arg(long = "debug.no-function-returns")]
    pub no_function_returns: bool,

    /// Least severe messages to log
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info")]
    pub log_level: LogLevel,

    /// Form of log lines
    #[arg(long = "log.format", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Flags of `siskin check`: what is checked is what `siskin run` would do with the same flags.
#[derive(Args, Debug)]
pub struct Check {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Which probes are to run
    #[command(flatten)]
    pub collectors: Collectors,

    /// How large the tables are
    #[command(flatten)]
    pub sizes: Sizes,

    /// Where the host's file systems are
    #[command(flatten)]
    pub paths: Paths,
}

/// A pair of flags for each probe; the last one given counts.
#[derive(Args, Debug)]
pub struct Collectors {
    /// Run the cgroup probe (default): names of short-lived containers
    #[arg(long = "collector.cgroup", action = ArgAction::SetTrue, overrides_with = "no_cgroup")]
    cgroup: bool,
    /// Do not run the cgroup probe; cgroups are then looked for when they did something
    #[arg(long = "no-collector.cgroup", action = ArgAction::SetTrue, overrides_with = "cgroup")]
    no_cgroup: bool,
    /// Run the process probe (default)
    #[arg(long = "collector.process", action = ArgAction::SetTrue, overrides_with = "no_process")]
    process: bool,
    /// Do not run the process probe
    #[arg(long = "no-collector.process", action = ArgAction::SetTrue)]
    no_process: bool,
    /// Run the TCP probe (default)
    #[arg(long = "collector.tcp", action = ArgAction::SetTrue, overrides_with = "no_tcp")]
    tcp: bool,
    /// Do not run the TCP probe
    #[arg(long = "no-collector.tcp", action = ArgAction::SetTrue, overrides_with = "tcp")]
    no_tcp: bool,
    /// Run the disk probe (default)
    #[arg(long = "collector.disk", action = ArgAction::SetTrue, overrides_with = "no_disk")]
    disk: bool,
    /// Do not run the disk probe
    #[arg(long = "no-collector.disk", action = ArgAction::SetTrue, overrides_with = "disk")]
    no_disk: bool,
    /// Run the UDP probe (default)
    #[arg(long = "collector.udp", action = ArgAction::SetTrue, overrides_with = "no_udp")]
    udp: bool,
    /// Do not run the UDP probe
    #[arg(long = "no-collector.udp", action = ArgAction::SetTrue, overrides_with = "udp")]
    no_udp: bool,
    /// Do not start when anything of an enabled probe is lacking on this kernel, also where something else stands in for it
    /// that tells less
    #[arg(long = "collector.strict")]
    pub strict: bool,
}

impl Collectors {
    /// The probes to run.
    pub fn enabled(&self) -> Vec<Probe> {
        let off = |probe| match probe {
            Probe::Cgroup => self.no_cgroup,
            Probe::Process => self.no_process,
            Probe::Tcp => self.no_tcp,
            Probe::Disk => self.no_disk,
            Probe::Udp => self.no_udp,
        };
        Probe::ALL.into_iter().filter(|probe| !off(*probe)).collect()
    }
}

/// Sizes of tables.
#[derive(Args, Debug)]
pub struct Sizes {
    /// Most kernel memory that maps may take, in bytes or with a unit (MiB is 2^20, MB is 10^6)
    #[arg(long = "budget.memory", value_name = "BYTES", default_value = "64MiB", value_parser = bytes)]
    pub memory: u64,

    /// Most flows with series of their own, the busiest; the rest is added up in peer="other"
    #[arg(long = "flows.max-series", value_name = "ROWS", default_value_t = 1000, value_parser = rows())]
    pub flows: u32,

    /// Most workloads with series of their own; the rest is added up in container="unknown"
    #[arg(long = "workloads.max-series", value_name = "ROWS", default_value_t = 2048, value_parser = rows())]
    pub workloads: u32,

    /// Most command names with series of their own, the busiest; the rest is added up in comm="other"
    #[arg(long = "process.max-comms", value_name = "ROWS", default_value_t = 128, value_parser = rows())]
    pub comms: u32,

    /// Most block devices with series of their own; the rest is added up in device="other"
    #[arg(long = "disk.max-devices", value_name = "DEVICES", default_value_t = 32, value_parser = rows())]
    pub devices: u32,

    /// Most TCP sockets followed at once; more are counted as lost
    #[arg(long = "tcp.max-sockets", value_name = "SOCKETS", default_value_t = 65536, value_parser = rows())]
    pub sockets: u32,

    /// How long series of flows and command names that make room for busier ones are served unchanged before they go: longer
    /// than any scraper's interval
    #[arg(long = "series.min-idle", value_name = "DURATION", default_value = "2m", value_parser = duration)]
    pub min_idle: Duration,

    /// How long series of flows and command names stay to which nothing is added
    #[arg(long = "series.max-idle", value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub max_idle: Duration,
}

impl Default for Sizes {
    fn default() -> Self {
        #[derive(Parser)]
        struct Alone {
            #[command(flatten)]
            sizes: Sizes,
        }
        Alone::parse_from(["siskin"]).sizes
    }
}

impl Sizes {
    /// The sizes as the probes take them on a machine with so many possible CPUs, from now on.
    pub fn limits(&self, cpus: usize) -> Limits {
        let Self { memory: _, flows, workloads, comms, devices, sockets, min_idle, max_idle } = *self;
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let shards = shards(cpus as u32);
        Limits { workloads, flows, devices, shards, sockets, comms, min_idle, max_idle, started }
    }
}

/// How the remote ends of flows are shown.
#[derive(Args, Debug)]
pub struct PeerFlags {
    /// How much of a remote address is shown
    #[arg(long = "flows.peer", value_name = "MODE", default_value = "address")]
    mode: PeerMode,

    /// Bits of an IPv4 address that --flows.peer=prefix shows
    #[arg(long = "flows.peer-prefix-v4", value_name = "BITS", default_value_t = 24, value_parser = clap::value_parser!(u8).range(0..=32))]
    prefix_v4: u8,

    /// Bits of an IPv6 address that --flows.peer=prefix shows
    #[arg(long = "flows.peer-prefix-v6", value_name = "BITS", default_value_t = 64, value_parser = clap::value_parser!(u8).range(0..=128))]
    prefix_v6: u8,

    /// A name that is shown, in every mode, for the addresses of a network, such as office=192.0.2.0/24; may be given several
    /// times, the longest prefix counts
    #[arg(long = "flows.peer-range", value_name = "NAME=NETWORK")]
    ranges: Vec<Range>,

    /// Give flows with this host itself (127.0.0.0/8, ::1) series of their own (default)
    #[arg(long = "flows.loopback", action = ArgAction::SetTrue, overrides_with = "no_loopback")]
    loopback: bool,
    /// Add flows with this host itself to peer="other"
    #[arg(long = "no-flows.loopback", action = ArgAction::SetTrue, overrides_with = "loopback")]
    no_loopback: bool,
}

impl PeerFlags {
    /// The names of peers.
    ///
    /// # Errors
    /// When two ranges are the same network.
    pub fn peers(&self) -> Result<Peers, String> {
        let Self { mode, prefix_v4, prefix_v6, ranges, loopback: _, no_loopback } = self;
        Peers::new(*mode, [*prefix_v4, *prefix_v6], ranges.clone(), !no_loopback)
    }
}

/// Mount points, for an agent in a container that has the host's elsewhere.
#[derive(Args, Clone, Debug)]
pub struct Paths {
    /// Where the host's cgroups are mounted
    #[arg(long = "path.cgroup", value_name = "DIRECTORY", default_value = "/sys/fs/cgroup")]
    pub cgroup_mount: PathBuf,

    /// Where the host's procfs is mounted
    #[arg(long = "path.procfs", value_name = "DIRECTORY", default_value = "/proc")]
    pub procfs: PathBuf,

    /// Where the host's sysfs is mounted
    #[arg(long = "path.sysfs", value_name = "DIRECTORY", default_value = "/sys")]
    pub sysfs: PathBuf,

    /// Where the kubelet keeps the logs of pods, whose directories name them; need not be there
    #[arg(long = "path.pod-logs", value_name = "DIRECTORY", default_value = "/var/log/pods")]
    pub pod_logs: PathBuf,

    /// Where the kubelet links the logs of containers, by links that name them; need not be there
    #[arg(long = "path.container-logs", value_name = "DIRECTORY", default_value = "/var/log/containers")]
    pub container_logs: PathBuf,
}

impl Paths {
    /// The directories that name workloads.
    pub fn roots(&self) -> Roots {
        let Self { cgroup_mount, procfs, sysfs: _, pod_logs, container_logs } = self.clone();
        Roots { cgroup: cgroup_mount, procfs, pod_logs, container_logs }
    }
}

/// Severity of log messages.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogLevel {
    /// Only what stops the agent
    Error,
    /// And what makes its numbers worse
    Warn,
    /// And what it does
    Info,
    /// And why
    Debug,
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
        }
    }
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

fn rows() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1 << 20)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    full.parse()
        .map_err(|_| "give it as ADDRESS:PORT, such as 127.0.0.1:19100, [::1]:19100 or :19100".to_owned())
}

fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.len() > 1 && !RESERVED.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("give a path that begins with / and is none of {}", RESERVED.join(" ")))
    }
}

/// Paths that serve something else.
const RESERVED: [&str; 3] = ["/", "/healthz", "/readyz"];

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; give it as 500ms, 1s or 1m"))
}

fn period(text: &str) -> Result<u64, String> {
    let period = text.parse().ok().filter(|period| (1..=MAX_PERIOD).contains(period));
    period.ok_or_else(|| format!("give a whole number from 1 to {MAX_PERIOD}"))
}

fn probe(text: &str) -> Result<Probe, String> {
    let names = Probe::ALL.map(Probe::name).join(", ");
    let probe = Probe::ALL.into_iter().find(|probe| probe.name() == text);
    probe.ok_or_else(|| format!("there is no such probe; give some of {names}"))
}

fn bytes(text: &str) -> Result<u64, String> {
    let size: ByteSize =
        text.parse().map_err(|_| "give a number of bytes, such as 67108864, 64MiB or 64MB")?;
    Ok(size.as_u64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn run(flags: &[&str]) -> Run {
        let Command::Run(run) = Cli::try_parse_from(["siskin", "run"].iter().chain(flags)).unwrap().command
        else {
            panic!("not run");
        };
        *run
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_probe_has_both_flags_and_the_last_one_counts() {
        for probe in Probe::ALL {
            let (on, off) =
                (format!("--collector.{}", probe.name()), format!("--no-collector.{}", probe.name()));
            assert!(run(&[]).collectors.enabled().contains(&probe));
            assert!(!run(&[&off]).collectors.enabled().contains(&probe));
            assert!(run(&[&off, &on]).collectors.enabled().contains(&probe));
            assert!(!run(&[&on, &off]).collectors.enabled().contains(&probe));
        }
    }

    #[test]
    fn values_are_checked() {
        assert_eq!(run(&["--web.listen-address=:80"]).listen_address.to_string(), "[::]:80");
        assert_eq!(run(&["--budget.memory=2MiB"]).sizes.memory, 2 << 20);
        assert_eq!(run(&["--budget.memory=3kB"]).sizes.memory, 3000);
        assert_eq!(run(&["--budget.memory=77"]).sizes.memory, 77);
        assert_eq!(run(&["--budget.exact=tcp,disk"]).exact, [Probe::Tcp, Probe::Disk]);
        assert_eq!(run(&["--debug.sampling-period=3"]).sampling_period, Some(3));
        for wrong in [
            "--web.listen-address=localhost",
            "--web.telemetry-path=metrics",
            "--web.telemetry-path=/healthz",
            "--collect.min-interval=soon",
            "--budget.memory=",
            "--budget.memory=much",
            "--flows.max-series=0",
            "--flows.peer=name",
            "--flows.peer-prefix-v4=33",
            "--flows.peer-prefix-v6=129",
            "--flows.peer-range=192.0.2.0/24",
            "--flows.peer-range=a=192.0.2.1/24",
            "--series.min-idle=long",
            "--log.level=loud",
            "--budget.exact=dns",
            "--budget.exact=",
            "--budget.strict",
            "--debug.sampling-period=0",
            "--debug.sampling-period=1048577",
        ] {
            assert!(Cli::try_parse_from(["siskin", "run", wrong]).is_err(), "{wrong}");
        }
    }
}
