//! What many cgroups cost: those that come and go, and those that are there.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use siskin_tests::{
    agent::Agent,
    cgroup::Cgroup,
    kubelet::{Driver, Kubelet},
    metrics::Metrics,
};

use crate::{machine, progress, reading::Reading, table::Table};

/// How to measure cgroups.
#[derive(Args)]
pub struct Options {
    /// Seconds for which cgroups come and go
    #[arg(long, default_value_t = 60.0)]
    pub seconds: f64,
    /// Cgroups that come and go in a minute
    #[arg(long, default_value_t = 10_000)]
    pub per_minute: u32,
    /// Containers that are there at once
    #[arg(long, default_value_t = 2000)]
    pub workloads: usize,
    /// TCP connections that are there at once: each is two flows
    #[arg(long, default_value_t = 500)]
    pub connections: usize,
}

/// `--budget.cpu` as it is without the flag.
const BUDGET: &str = "--budget.cpu=10m";
/// As often as many a Prometheus scrapes.
const SCRAPE: Duration = Duration::from_secs(15);
/// Time for the agent to come to rest.
const REST: Duration = Duration::from_secs(3);
/// Longest time until those that are gone have left.
const FAREWELL: Duration = Duration::from_secs(400);
/// Scrapes of the many that are there.
const SCRAPES: usize = 20;

/// Measures and reports.
pub fn run(options: &Options) -> Result<String> {
    let machine = machine::describe();
    progress("cgroups that come and go");
    let coming = churn(options)?;
    progress("cgroups that are there");
    let there = many(options)?;
    Ok(format!(
        "## Many cgroups (`cargo xtask bench cgroups`)\n\n{machine}\n### That come and go\n\n{coming}\n### That are there\n\n{there}"
    ))
}

/// What the agent says of itself in a moment.
struct State {
    reading: Reading,
    rss_bytes: f64,
}

impl State {
    fn take(agent: &Agent) -> Result<Self> {
        let reading = Reading::take(agent)?;
        let rss_bytes = reading.metrics.one("process_resident_memory_bytes", &[]);
        Ok(Self { reading, rss_bytes })
    }

    fn one(&self, name: &str) -> f64 {
        self.reading.metrics.one(name, &[])
    }

    /// Millicores since an earlier moment: process and programs.
    fn cost(&self, before: &Self) -> [f64; 2] {
        let seconds = (self.reading.at - before.reading.at).as_secs_f64();
        let process = self.reading.process_seconds - before.reading.process_seconds;
        let programs = self.reading.meter().1 - before.reading.meter().1;
        [process, programs].map(|cost| cost / seconds * 1e3)
    }
}

fn churn(options: &Options) -> Result<String> {
    let agent = Agent::start(&[BUDGET, "--debug.program-stats"]);
    thread::sleep(REST);
    let idle = State::take(&agent)?;
    thread::sleep(SCRAPE);
    let before = State::take(&agent)?;
    let gap = Duration::from_secs_f64(60.0 / f64::from(options.per_minute));
    let (begin, mut made) = (Instant::now(), 0u32);
    let (mut scraped, mut rss_bytes) = (begin, Vec::new());
    while begin.elapsed().as_secs_f64() < options.seconds {
        let cgroup = Cgroup::new("churn");
        ensure!(cgroup.command("true").status().context("true does not run")?.success(), "true failed");
        drop(cgroup);
        made += 1;
        if scraped.elapsed() >= SCRAPE {
            scraped = Instant::now();
            rss_bytes.push(State::take(&agent)?.rss_bytes);
        }
        thread::sleep((begin + gap * made).saturating_duration_since(Instant::now()));
    }
    let during = State::take(&agent)?;
    rss_bytes.push(during.rss_bytes);
    progress("waiting until they have left");
    let (end, series) = (Instant::now(), "siskin_workload_series");
    let mut after = State::take(&agent)?;
    while after.one(series) > before.one(series) && end.elapsed() < FAREWELL {
        thread::sleep(SCRAPE);
        after = State::take(&agent)?;
    }
    let left = end.elapsed();

    let mut table = Table::new(&["", "before", "while they come and go", "when they have left"]);
    let [process, programs] = before.cost(&idle);
    let [process_during, programs_during] = during.cost(&before);
    table.row([
        "process, millicores".into(),
        format!("{process:.2}"),
        format!("{process_during:.2}"),
        String::new(),
    ]);
    table.row([
        "programs, millicores".into(),
        format!("{programs:.2}"),
        format!("{programs_during:.2}"),
        String::new(),
    ]);
    let mib = |bytes: f64| format!("{:.2}", bytes / f64::from(1 << 20));
    table.row([
        "resident memory, MiB".into(),
        mib(before.rss_bytes),
        quarters(&rss_bytes).map(mib).join(", "),
        mib(after.rss_bytes),
    ]);
    for (what, name) in
        [("cgroups known", "siskin_workload_cgroups"), ("workloads with series", "siskin_workload_series")]
    {
        let of = |state: &State| format!("{:.0}", state.one(name));
        table.row([what.into(), of(&before), of(&during), of(&after)]);
    }
    let map = |state: &State| {
        format!("{:.0}", state.reading.metrics.one("siskin_map_entries", &[("map", "cgroup_notes")]))
    };
    table.row(["notes in the kernel's table of 1024".into(), map(&before), map(&during), map(&after)]);
    let lost = |reason| {
        let of = |state: &State| {
            let labels = [("probe", "cgroup"), ("reason", reason)];
            state.reading.metrics.sum("siskin_lost_total", &labels)
        };
        of(&after) - of(&before)
    };
    let unknown = |metrics: &Metrics| metrics.sum("siskin_process_execs_total", &[("container", "unknown")]);
    let per_run = |program| {
        let (now, before) = (after.reading.by_kernel(program), before.reading.by_kernel(program));
        (now.ns - before.ns) / (now.runs - before.runs).max(1.0)
    };
    Ok(format!(
        "{made} cgroups in {:.0} s ({:.0} a minute) ran a program each and were removed, each with a name of its own; {BUDGET}, a scrape \
         every {} s. Memory after each quarter of that time. {:.0} s after the last one {:.0} workloads have series, {:.0} before. \
         Notes lost: {:.0}. More names between two scrapes than the {:.0} places: {:.0} found none and are in `unknown`, \
         where {:.0} programs were counted. A note of a new cgroup takes {:.0} ns, of one that ended \
         {:.0} ns, by the kernel's statistics, without the path that the kernel writes for it.\n\n{table}",
        options.seconds,
        f64::from(made) / options.seconds * 60.0,
        SCRAPE.as_secs(),
        left.as_secs_f64(),
        after.one(series),
        before.one(series),
        lost("map_full") + lost("long_path"),
        after.one("siskin_workload_series_limit"),
        lost("workload_limit"),
        unknown(&after.reading.metrics) - unknown(&before.reading.metrics),
        per_run("cgroup_mkdir"),
        per_run("cgroup_release"),
    ))
}

/// What was measured last in each quarter.
fn quarters(values: &[f64]) -> [f64; 4] {
    std::array::from_fn(|quarter| values[(values.len() * (quarter + 1) / 4).max(1) - 1])
}

fn many(options: &Options) -> Result<String> {
    let node = Kubelet::new("many", Driver::Systemd);
    // Four to a pod, besides its sandbox.
    let pods: Vec<_> =
        (0..options.workloads / 4).map(|number| node.pod("bench", &format!("pod-{number}"))).collect();
    let containers: Vec<_> =
        pods.iter().flat_map(|pod| ["a", "b", "c", "d"].map(|name| pod.container(name))).collect();
    let [pod_logs, container_logs] = node.flags();
    let begin = Instant::now();
    let agent = Agent::start(&[BUDGET, &pod_logs, &container_logs]);
    let start = begin.elapsed();
    thread::sleep(REST);
    let before = State::take(&agent)?;
    for container in &containers {
        ensure!(container.command("true").status().context("true does not run")?.success(), "true failed");
    }
    let connections: Vec<_> = (0..options.connections).map(|_| connection()).collect::<Result<_>>()?;
    let mut times = Vec::new();
    let mut bytes = 0;
    for scrape in 0..=SCRAPES {
        // Everybody does something between two scrapes, as far as one can.
        let begin = Instant::now();
        let (_, text) = agent.get("/metrics");
        let ms = begin.elapsed().as_secs_f64() * 1e3;
        bytes = text.len();
        if scrape > 0 {
            times.push(ms);
        } else {
            progress(&format!("first scrape: {ms:.1} ms"));
        }
    }
    times.sort_by(f64::total_cmp);
    let after = State::take(&agent)?;
    let fds = fs::read_dir(format!("/proc/{}/fd", agent.pid())).map_or(0, Iterator::count);
    let begin = Instant::now();
    let metrics = agent.scrape();
    let parsed = begin.elapsed();
    let cpu = cpu_of_scrapes(&agent)?;
    drop(connections);
    let mut table = Table::new(&["", ""]);
    let mib = |bytes: f64| format!("{:.2} MiB", bytes / f64::from(1 << 20));
    table.row([
        "start to serving, with a look at all cgroups".into(),
        format!("{:.0} ms", start.as_secs_f64() * 1e3),
    ]);
    table.row([
        "a scrape, median (slowest) as the scraper waits".into(),
        format!("{:.1} ({:.1}) ms", times[times.len() / 2], times[times.len() - 1]),
    ]);
    table.row(["CPU of the process for one scrape".into(), format!("{:.1} ms", cpu * 1e3)]);
    table.row([
        "size of the answer".into(),
        format!("{:.0} KiB, {} series", bytes as f64 / 1024.0, metrics.samples.len()),
    ]);
    table.row([
        "resident memory before, after".into(),
        format!("{}, {}", mib(before.rss_bytes), mib(after.rss_bytes)),
    ]);
    progress(&format!("{fds} descriptors, a scrape parsed in {parsed:?}"));
    Ok(format!(
        "{:.0} workloads with series ({:.0} cgroups known), {:.0} flow rows, {} open connections; {BUDGET}.\n\n{table}",
        metrics.one("siskin_workload_series", &[]),
        metrics.one("siskin_workload_cgroups", &[]),
        metrics.one("siskin_flow_series", &[]),
        options.connections,
    ))
}

/// CPU seconds of the process for one scrape, when nothing else happens.
fn cpu_of_scrapes(agent: &Agent) -> Result<f64> {
    let before = Reading::take(agent)?;
    for _ in 0..SCRAPES {
        agent.get("/metrics");
    }
    let after = Reading::take(agent)?;
    Ok((after.process_seconds - before.process_seconds) / (SCRAPES + 1) as f64)
}

/// Both ends of a connection to a port of its own, with something sent.
fn connection() -> Result<[TcpStream; 2]> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    std::io::Write::write_all(&mut &client, b"hello")?;
    Ok([client, server])
}
