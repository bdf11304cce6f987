//! The image in a container that has exactly what the manifest gives its pod, beside a container that it has to trace; then the
//! same with one thing taken away at a time. Needs root, podman and runc; `cargo xtask container` builds and starts it.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use k8s_newest::api::core::v1::PodSpec;
use serde_json::{Value, json};
use siskin_deploy_tests::{
    command::output,
    http,
    manifest::{self, container},
    neighbour::{BLOCK, CONNECTIONS, EXECS, PORT, RECEIVED, SENT, WRITES},
    wait::wait,
};
use siskin_tests::metrics::Metrics;

#[derive(Parser)]
struct Options {
    /// The image of the workload to trace
    #[arg(long)]
    neighbour: String,
    /// A folder on a disk for it to write in
    #[arg(long)]
    folder: PathBuf,
}

/// Rounds of the workload that is traced to the last byte.
const ROUNDS: u64 = 20;
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("container: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let pod = manifest::pod(&manifest::text("daemonset.yaml"));
    fs::create_dir_all(&options.folder).context("cannot make the folder to write in")?;
    let profile = options.folder.join("seccomp.json");
    fs::write(&profile, runtime_default()?.to_string()).context("cannot write the seccomp profile")?;
    whole(options, &pod, &profile)?;
    println!("\ntaken away                      what then");
    for variant in VARIANTS {
        let mut less = pod.clone();
        (variant.take)(&mut less);
        let said = (variant.outcome)(options, &less, &profile).with_context(|| variant.name.to_owned())?;
        println!("{:<32}{said}", variant.name);
    }
    println!(
        "\nthe container traces its neighbour with what the manifest gives it; above is what becomes of it with less"
    );
    Ok(())
}

/// With everything: ready, confined, and exact about its neighbour.
fn whole(options: &Options, pod: &PodSpec, profile: &Path) -> Result<()> {
    let neighbour = Running::neighbour(options, &["--rounds", &ROUNDS.to_string(), "--pause-ms=0"], false)?;
    let begin = Instant::now();
    let agent = Running::agent(pod, profile)?;
    let ready = agent.ready()?;
    println!(
        "ready {:.0} ms after `podman run`, with {}",
        begin.elapsed().as_secs_f64() * 1e3,
        agent.flags.join(" ")
    );
    ensure!(ready.starts_with("ready\n"), "{ready}");
    agent.is_confined()?;
    neighbour.start()?;
    let done = || neighbour.logs().map(|log| log.contains("done"));
    wait(PATIENCE, "the neighbour to do its rounds", || Ok(done()?.then_some(())))?;
    let metrics = agent.scrape()?;
    let of = |name: &str, labels: &[(&str, &str)]| neighbour.sum(&metrics, name, labels);
    let port = PORT.to_string();
    let [client, server] = ["client", "server"].map(|role| [("role", role), ("port", port.as_str())]);
    // It started itself first, and has one connection besides those of its rounds.
    let connections = ROUNDS * CONNECTIONS;
    for (what, seen, truth) in [
        (
            "execs",
            metrics.sum("siskin_process_comm_execs_total", &[("comm", "neighbour")]),
            ROUNDS * EXECS + 1,
        ),
        (
            "connections opened",
            of("siskin_tcp_connections_opened_total", &[("role", "client")]),
            connections + 1,
        ),
        ("bytes sent", of("siskin_flow_sent_bytes_total", &client), connections * SENT),
        ("bytes received", of("siskin_flow_received_bytes_total", &client), connections * RECEIVED),
        ("bytes served", of("siskin_flow_sent_bytes_total", &server), connections * RECEIVED),
        (
            "bytes written",
            of("siskin_workload_disk_bytes_total", &[("op", "write")]),
            ROUNDS * WRITES * BLOCK as u64,
        ),
    ] {
        println!("{what:<20} seen {seen:>10}   done {truth:>10}");
        ensure!(seen == truth as f64, "{what}: {seen} instead of {truth}");
    }
    // The runtime may run itself once or twice in the container before it becomes what is to run there.
    let (its, truth) = (of("siskin_process_execs_total", &[]), (ROUNDS * EXECS + 1) as f64);
    ensure!((truth..=truth + 2.0).contains(&its), "execs under its name: {its} instead of {truth}");
    Ok(())
}

/// One thing taken away, and what has to come of it.
struct Variant {
    name: &'static str,
    take: fn(&mut PodSpec),
    outcome: fn(&Options, &PodSpec, &Path) -> Result<String>,
}

const VARIANTS: [Variant; 8] = [
    Variant { name: "capability BPF", take: |pod| keep(pod, &["PERFMON"]), outcome: refuses::<BPF> },
    Variant { name: "capability PERFMON", take: |pod| keep(pod, &["BPF"]), outcome: refuses::<PERFMON> },
    Variant {
        name: "PERFMON, misspelt",
        take: |pod| keep(pod, &["BPF", "PERF_MON"]),
        outcome: refuses_by_runtime_or_agent,
    },
    Variant {
        name: "user 0 (65534 instead)",
        take: |pod| security(pod).run_as_user = Some(65534),
        outcome: runs_as_anybody,
    },
    Variant {
        name: "seccomp's leave for bpf(2)",
        take: |pod| pod.security_context = None,
        outcome: refuses::<ANY>,
    },
    Variant { name: "hostPID", take: |pod| pod.host_pid = None, outcome: without_host_pid },
    Variant { name: "hostNetwork", take: |pod| pod.host_network = None, outcome: without_host_network },
    Variant { name: "mount of the host's cgroups", take: without_cgroup, outcome: unnamed },
];

const BPF: usize = 0;
const PERFMON: usize = 1;
const ANY: usize = 2;
/// What the agent says when it may not start.
const REFUSALS: [&str; 3] = ["CAP_BPF", "CAP_PERFMON", "cannot"];

fn security(pod: &mut PodSpec) -> &mut k8s_newest::api::core::v1::SecurityContext {
    pod.containers[0].security_context.get_or_insert_default()
}

fn keep(pod: &mut PodSpec, capabilities: &[&str]) {
    let names = capabilities.iter().map(|name| (*name).to_owned()).collect();
    security(pod).capabilities.get_or_insert_default().add = Some(names);
}

fn without_cgroup(pod: &mut PodSpec) {
    let own = "--path.cgroup=/sys/fs/cgroup".to_owned();
    let args = pod.containers[0].args.get_or_insert_default();
    args.iter_mut().filter(|word| word.starts_with("--path.cgroup=")).for_each(|word| word.clone_from(&own));
    pod.containers[0].volume_mounts.get_or_insert_default().retain(|mount| mount.name != "cgroup");
}

fn refuses<const WHAT: usize>(_: &Options, pod: &PodSpec, profile: &Path) -> Result<String> {
    let agent = Running::agent(pod, profile)?;
    let (status, log) = agent.end()?;
    ensure!(status != 0 && log.contains(REFUSALS[WHAT]), "it ended with {status}: {log}");
    Ok(format!("ends with status {status}: {}", log.trim()))
}

fn refuses_by_runtime_or_agent(options: &Options, pod: &PodSpec, profile: &Path) -> Result<String> {
    match refuses::<PERFMON>(options, pod, profile) {
        // podman knows the names; containerd leaves out what it does not know, and then the agent says so.
        Err(error) if format!("{error:#}").contains("unknown capability") => {
            Ok("refused by the runtime: unknown capability".to_owned())
        }
        other => other,
    }
}

fn runs_as_anybody(_: &Options, pod: &PodSpec, profile: &Path) -> Result<String> {
    let agent = Running::agent(pod, profile)?;
    let ready = agent.ready()?;
    ensure!(ready.starts_with("ready\n"), "{ready}");
    Ok("ready all the same: podman makes added capabilities ambient, which Kubernetes does not".to_owned())
}

/// The connection that the neighbour has had since before the agent started.
fn old_connections(options: &Options, pod: &PodSpec, profile: &Path) -> Result<f64> {
    let neighbour = Running::neighbour(options, &["--rounds=0"], true)?;
    wait(PATIENCE, "the neighbour's first connection", || {
        Ok(neighbour.logs()?.contains("done").then_some(()))
    })?;
    let agent = Running::agent(pod, profile)?;
    agent.ready()?;
    Ok(neighbour.sum(&agent.scrape()?, "siskin_tcp_connections_open", &[]))
}

fn without_host_pid(options: &Options, pod: &PodSpec, profile: &Path) -> Result<String> {
    let mut whole = pod.clone();
    whole.host_pid = Some(true);
    let (with, without) =
        (old_connections(options, &whole, profile)?, old_connections(options, pod, profile)?);
    ensure!(with == 2.0 && without == 0.0, "open: {with} with it, {without} without");
    Ok(format!("ends of an older connection that are followed: {without} instead of {with}"))
}

fn without_host_network(_: &Options, pod: &PodSpec, profile: &Path) -> Result<String> {
    let agent = Running::agent(pod, profile)?;
    agent.serves()?;
    match http::get(agent.address, "/healthz") {
        Ok((status, _)) => bail!("it answers on the host's address with {status}"),
        Err(error) => Ok(format!("nobody answers on the node's address: {error}")),
    }
}

fn unnamed(options: &Options, pod: &PodSpec, profile: &Path) -> Result<String> {
    // Older than the agent: of new cgroups the kernel tells the names.
    let neighbour = Running::neighbour(options, &[], true)?;
    wait(PATIENCE, "the neighbour to start", || Ok(neighbour.logs()?.contains("ready").then_some(())))?;
    let agent = Running::agent(pod, profile)?;
    agent.ready()?;
    let metrics = wait(PATIENCE, "the neighbour's execs", || {
        let metrics = agent.scrape()?;
        let enough = metrics.sum("siskin_process_comm_execs_total", &[("comm", "neighbour")]) >= EXECS as f64;
        Ok(enough.then_some(metrics))
    })?;
    let named = neighbour.sum(&metrics, "siskin_process_execs_total", &[]);
    let unknown = metrics.sum("siskin_process_execs_total", &[("container", "unknown")]);
    ensure!(named == 0.0 && unknown >= EXECS as f64, "{named} execs under its name, {unknown} under none");
    Ok(format!("a container older than the agent has no name: its execs are among {unknown} of \"unknown\""))
}

/// A container, removed with the value.
struct Running {
    id: String,
    address: SocketAddr,
    flags: Vec<String>,
}

impl Running {
    /// The agent, with what a pod gives its container.
    fn agent(pod: &PodSpec, profile: &Path) -> Result<Self> {
        let container = container(pod);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, manifest::port(container)));
        let flags = podman_flags(pod, profile)?;
        let mut podman = Command::new("podman");
        podman.args(["run", "--detach"]).args(&flags).arg(container.image.as_ref().context("no image")?);
        for word in container.args.iter().flatten() {
            // Without a budget every block request is counted, and truth can be asked for to the byte.
            let is_budget = word.starts_with("--budget.cpu=");
            let word = if is_budget { "--budget.cpu=unlimited" } else { word };
            podman.arg(word.replace("$(NODE_IP)", &address.ip().to_string()));
        }
        Ok(Self { id: output(&mut podman)?.trim().to_owned(), address, flags })
    }

    /// The workload, in a network namespace of its own.
    fn neighbour(options: &Options, words: &[&str], start: bool) -> Result<Self> {
        let mut podman = Command::new("podman");
        podman.args([if start { "run" } else { "create" }, "--network=none", "--volume"]);
        podman.arg(format!("{}:/disk", options.folder.display()));
        if start {
            podman.arg("--detach");
        }
        podman.arg(&options.neighbour).args(words).arg("--folder=/disk");
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Ok(Self { id: output(&mut podman)?.trim().to_owned(), address, flags: Vec::new() })
    }

    fn start(&self) -> Result<()> {
        output(Command::new("podman").args(["start", &self.id])).map(drop)
    }

    fn logs(&self) -> Result<String> {
        // Its messages are on stderr.
        let ran = Command::new("podman").args(["logs", &self.id]).output().context("cannot start podman")?;
        Ok(String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr))
    }

    fn inspect(&self, what: &str) -> Result<String> {
        let said = output(Command::new("podman").args(["inspect", "--format", what, &self.id]))?;
        Ok(said.trim().to_owned())
    }

    /// Waits until it ended. Its status and what it said.
    fn end(&self) -> Result<(i32, String)> {
        wait(PATIENCE, "the container to end", || {
            Ok((self.inspect("{{.State.Status}}")? == "exited").then_some(()))
        })?;
        Ok((self.inspect("{{.State.ExitCode}}")?.parse()?, self.logs()?))
    }

    fn serves(&self) -> Result<()> {
        wait(PATIENCE, "the agent to serve", || Ok(self.logs()?.contains("serving on").then_some(())))
    }

    /// What `/readyz` says, once it answers.
    fn ready(&self) -> Result<String> {
        let page = wait(PATIENCE, "the agent to answer", || Ok(http::get(self.address, "/readyz").ok()));
        Ok(page.with_context(|| self.logs().unwrap_or_default())?.1)
    }

    fn scrape(&self) -> Result<Metrics> {
        // A reading that is younger than --collect.min-interval would be served again.
        thread::sleep(Duration::from_millis(1100));
        let (status, text) = http::get(self.address, "/metrics")?;
        ensure!(status == 200, "/metrics answers {status}: {text}");
        Ok(Metrics::parse(&text))
    }

    /// The sum over the series of this container, however it is named: its id is in the name.
    fn sum(&self, metrics: &Metrics, name: &str, labels: &[(&str, &str)]) -> f64 {
        let short = &self.id[..12];
        let its = |labels: &[(String, String)]| labels.iter().any(|(_, value)| value.contains(short));
        metrics
            .find(name, labels)
            .filter(|sample| its(&sample.labels))
            .map(|sample| sample.value)
            .fold(0.0, |sum, value| sum + value)
    }

    /// It has no capability left, cannot get one, and writes nowhere.
    fn is_confined(&self) -> Result<()> {
        let pid = self.inspect("{{.State.Pid}}")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        for (field, value) in [("CapEff", 0), ("CapPrm", 0), ("CapInh", 0), ("CapAmb", 0)] {
            let line = line_of(&status, field)?;
            ensure!(u64::from_str_radix(line, 16)? == value, "{field} is {line}");
        }
        for (field, value) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
            ensure!(line_of(&status, field)? == value, "{field}: {}", line_of(&status, field)?);
        }
        let mounts = fs::read_to_string(format!("/proc/{pid}/mounts"))?;
        let of = |target: &str| mounts.lines().find(|line| line.split(' ').nth(1) == Some(target));
        for target in ["/", "/host/cgroup", "/host/pod-logs", "/host/container-logs"] {
            let options = of(target).and_then(|line| line.split(' ').nth(3)).context("not mounted")?;
            ensure!(options.split(',').any(|option| option == "ro"), "{target} is mounted {options}");
        }
        println!(
            "no capability left (bounding set {}), NoNewPrivs 1, Seccomp 2, root and mounts read-only, {} of memory",
            line_of(&status, "CapBnd")?,
            line_of(&status, "VmRSS")?
        );
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only what this made, by its id.
        let _ = output(Command::new("podman").args(["rm", "--force", "--time=1", &self.id]));
    }
}

fn line_of<'a>(status: &'a str, field: &str) -> Result<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {field}"))?.trim())
}

/// The flags by which podman makes a container as the kubelet would for this pod.
fn podman_flags(pod: &PodSpec, profile: &Path) -> Result<Vec<String>> {
    let container = container(pod);
    let security = container.security_context.as_ref().context("no security context")?;
    let mut flags = Vec::new();
    if pod.host_pid == Some(true) {
        flags.push("--pid=host".to_owned());
    }
    flags.push(format!("--network={}", if pod.host_network == Some(true) { "host" } else { "none" }));
    let capabilities = security.capabilities.as_ref().context("no capabilities")?;
    flags.extend(capabilities.drop.iter().flatten().map(|name| format!("--cap-drop={name}")));
    flags.extend(capabilities.add.iter().flatten().map(|name| format!("--cap-add={name}")));
    flags.push(format!(
        "--user={}:{}",
        security.run_as_user.unwrap_or(0),
        security.run_as_group.unwrap_or(0)
    ));
    if security.allow_privilege_escalation == Some(false) {
        flags.push("--security-opt=no-new-privileges".to_owned());
    }
    if pod.security_context.is_some() {
        flags.push(format!("--security-opt=seccomp={}", profile.display()));
    }
    if security.read_only_root_filesystem == Some(true) {
        flags.extend(["--read-only", "--read-only-tmpfs=false"].map(str::to_owned));
    }
    for mount in container.volume_mounts.iter().flatten() {
        let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mount.name);
        let path = &volume.and_then(|volume| volume.host_path.as_ref()).context("no such volume")?.path;
        // DirectoryOrCreate
        fs::create_dir_all(path).with_context(|| format!("cannot make {path}"))?;
        let access = if mount.read_only == Some(true) { "ro" } else { "rw" };
        flags.push(format!("--volume={path}:{}:{access}", mount.mount_path));
    }
    let limits =
        container.resources.as_ref().and_then(|resources| resources.limits.as_ref()).context("no limits")?;
    flags.push(format!("--memory={}", limits["memory"].0.replace("Mi", "m")));
    let milli: u64 = limits["cpu"].0.trim_end_matches('m').parse().context("limits.cpu")?;
    flags.push(format!("--cpus={:.3}", milli as f64 / 1e3));
    Ok(flags)
}

/// podman's default profile with what containerd's has besides (contrib/seccomp/seccomp_default.go, 1.6): bpf(2) for those who have
/// CAP_BPF, perf_event_open(2) for those who have CAP_PERFMON.
fn runtime_default() -> Result<Value> {
    const DEFAULT: &str = "/usr/share/containers/seccomp.json";
    let text = fs::read_to_string(DEFAULT)
        .with_context(|| format!("cannot read {DEFAULT}, which comes with podman"))?;
    let mut profile: Value = serde_json::from_str(&text).context("the seccomp profile is not JSON")?;
    let rules = profile["syscalls"].as_array_mut().context("the seccomp profile has no rules")?;
    // The first rule that fits counts: those that refuse without CAP_SYS_ADMIN would come first.
    for rule in rules.iter_mut() {
        if let Some(names) = rule["names"].as_array_mut() {
            names.retain(|name| name != "bpf" && name != "perf_event_open");
        }
    }
    for (name, capability) in [("bpf", "CAP_BPF"), ("perf_event_open", "CAP_PERFMON")] {
        rules.push(json!({"names": [name], "action": "SCMP_ACT_ALLOW", "includes": {"caps": [capability]}}));
    }
    Ok(profile)
}
