//! Every expression of every rule and dashboard, on a real Prometheus that scrapes a real agent under a small load.
//!
//! An expression must have a number for its value. An alert's must not while all is well, so both sides of each of its comparisons must. Every
//! series it reads must be there by name. Series of kube-state-metrics come from a file that models a cluster of two nodes.

use std::{
    fmt,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use siskin_tests::{agent::Agent, disk::LoopDevice, udp};

use crate::{
    dashboards::queries,
    files::{self, RULE_FILES, SCRAPE},
    prometheus::{self, Prometheus},
    promql,
    rules::{Rule, RuleFile},
};

const KUBE_STATE_METRICS: &str = "deploy/monitoring/tests/kube-state-metrics.prom";
/// Longer than any window that an expression needs to have two samples in.
const PATIENCE: Duration = Duration::from_secs(90);

/// How many expressions had data.
pub struct Report {
    dashboards: usize,
    panels: usize,
    recordings: usize,
    alerts: usize,
    seconds: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dashboards, panels, recordings, alerts, seconds } = self;
        let all = panels + recordings + alerts;
        write!(
            f,
            "{all} expressions have data: {panels} of {dashboards} dashboards, {recordings} recorded series, {alerts} operands of \
             alerts ({seconds:.0} s)"
        )
    }
}

/// Runs every expression until each has data, or fails with those that have none.
///
/// # Errors
/// Those, and when something does not start.
pub fn run(binary: &Path) -> Result<Report> {
    let begin = Instant::now();
    // Without a budget there are no series about it, and with one that pays for everything none
    // about errors.
    let agent = Agent::start(&["--budget.cpu=5m"]);
    let cluster = files::read(KUBE_STATE_METRICS)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let cluster = cluster.replace("JOINED", &(now - 120).to_string());
    let config = config(agent.address, prometheus::serve(cluster)?)?;
    let server = Prometheus::start(binary, &config)?;
    let load = Load::start();
    let wanted = wanted()?;
    let judged = judge_until_all_have_data(&server, &wanted);
    load.stop();
    judged?;
    check_targets(&server)?;
    check_rules(&server)?;
    check_that_it_can_fail(&server)?;
    let count = |kind| wanted.iter().filter(|wanted| wanted.kind == kind).count();
    Ok(Report {
        dashboards: files::list(files::DASHBOARDS, ".json")?.len(),
        panels: count(Kind::Panel),
        recordings: count(Kind::Recording),
        alerts: count(Kind::Alert),
        seconds: begin.elapsed().as_secs_f64(),
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Panel,
    Recording,
    Alert,
}

/// An expression that must have data.
struct Wanted {
    kind: Kind,
    place: String,
    expr: String,
}

fn wanted() -> Result<Vec<Wanted>> {
    let mut all = Vec::new();
    for file in files::list(files::DASHBOARDS, ".json")? {
        let dashboard: Value = serde_json::from_str(&files::read(&file)?).with_context(|| file.clone())?;
        for (panel, expr) in queries(&dashboard) {
            let place = format!("{file}, {panel}");
            all.push(Wanted { kind: Kind::Panel, place, expr: promql::substitute(&expr)? });
        }
    }
    for file in RULE_FILES {
        for rule in RuleFile::parse(&files::read(file)?)?.rules() {
            let place = format!("{file}, {}", rule.name());
            match rule {
                Rule::Recording(rule) => {
                    all.push(Wanted { kind: Kind::Recording, place, expr: rule.record.clone() });
                }
                Rule::Alerting(alert) => {
                    for operand in promql::operands(&promql::parse(&alert.expr)?) {
                        let (place, expr) = (place.clone(), operand.to_string());
                        all.push(Wanted { kind: Kind::Alert, place, expr });
                    }
                }
            }
        }
    }
    Ok(all)
}

fn judge_until_all_have_data(server: &Prometheus, wanted: &[Wanted]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut left: Vec<_> = wanted.iter().collect();
    loop {
        thread::sleep(Duration::from_secs(2));
        let mut faults = Vec::new();
        left.retain(|wanted| match judge(server, &wanted.expr) {
            Ok(()) => false,
            Err(error) => {
                faults.push(format!("{}: {error:#}\n    {}", wanted.place, wanted.expr.trim()));
                true
            }
        });
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{} of {} expressions:\n{}", left.len(), wanted.len(), faults.join("\n"));
        }
    }
}

fn judge(server: &Prometheus, expr: &str) -> Result<()> {
    let known = server.names()?;
    if let Some(name) = promql::names(&promql::parse(expr)?).iter().find(|name| !known.contains(*name)) {
        bail!("nothing exports {name}");
    }
    if !server.query(expr)?.iter().any(|value| value.is_finite()) {
        bail!("no data");
    }
    Ok(())
}

/// A test that cannot fail is none.
fn check_that_it_can_fail(server: &Prometheus) -> Result<()> {
    for (expr, error) in [
        ("rate(siskin_no_such_total[1m])", "nothing exports siskin_no_such_total"),
        ("siskin_probe_up{probe=\"no_such\"}", "no data"),
        ("siskin_probe_up * NaN", "no data"),
    ] {
        match judge(server, expr) {
            Err(fault) if fault.to_string() == error => {}
            other => bail!("`{expr}` should fail with `{error}`, and is {other:?}"),
        }
    }
    Ok(())
}

/// Of the pods that are found, one is the agent, and its series have no labels of its pod.
fn check_targets(server: &Prometheus) -> Result<()> {
    let targets = server.api("targets?state=any")?;
    let labels = |target: &Value| target["labels"].clone();
    let active = targets["activeTargets"].as_array().context("no targets")?;
    let agents: Vec<_> =
        active.iter().filter(|target| target["scrapePool"] == "siskin").map(labels).collect();
    let [agent] = agents.as_slice() else { bail!("not one agent is scraped, but {agents:?}") };
    let names: Vec<_> = agent.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    if names != ["instance", "job", "node"] {
        bail!("the agent's target has the labels {names:?}");
    }
    let dropped = targets["droppedTargets"].as_array().map_or(0, Vec::len);
    if dropped != STRANGERS.len() {
        bail!("{dropped} of {} pods that are no running agents are left out", STRANGERS.len());
    }
    Ok(())
}

fn check_rules(server: &Prometheus) -> Result<()> {
    let rules = server.api("rules")?;
    for group in rules["groups"].as_array().context("no rules")? {
        for rule in group["rules"].as_array().context("a group without rules")? {
            if rule["health"] != "ok" {
                bail!("{}: {}", rule["name"], rule["lastError"]);
            }
        }
    }
    Ok(())
}

/// Pods that service discovery finds besides the agent: what differs, in Prometheus's own labels.
const STRANGERS: [(&str, &str); 3] = [
    ("__meta_kubernetes_pod_phase", "Succeeded"),
    ("__meta_kubernetes_pod_container_port_name", "debug"),
    ("__meta_kubernetes_pod_label_app_kubernetes_io_name", "shop"),
];

/// The shipped scrape configuration and rules. What the API server would say stands in the configuration: this Prometheus has no
/// service discovery for Kubernetes.
fn config(agent: SocketAddr, cluster: SocketAddr) -> Result<String> {
    let mut config: Value = serde_yaml_ng::from_str(&files::read(SCRAPE)?)?;
    let rule_files: Vec<_> = RULE_FILES.map(files::path).into();
    config["global"] = json!({"scrape_interval": "1s", "evaluation_interval": "1s"});
    config["rule_files"] = json!(rule_files);
    let jobs = config["scrape_configs"].as_array_mut().context("a scrape configuration without jobs")?;
    for job in jobs.iter_mut() {
        let job = job.as_object_mut().context("a job that is none")?;
        job.remove("kubernetes_sd_configs").context("a job that does not look for pods")?;
        let pod = json!({
            "__meta_kubernetes_namespace": "siskin",
            "__meta_kubernetes_pod_label_app_kubernetes_io_name": "siskin",
            "__meta_kubernetes_pod_container_port_name": "metrics",
            "__meta_kubernetes_pod_phase": "Running",
            "__meta_kubernetes_pod_node_name": "node-a",
            // As the operator would put them.
            "namespace": "siskin", "pod": "siskin-7x2lq", "container": "siskin", "endpoint": "metrics",
        });
        let strangers = STRANGERS.iter().map(|(label, value)| {
            let mut stranger = pod.clone();
            stranger[*label] = json!(value);
            stranger
        });
        let pods = [pod.clone()].into_iter().chain(strangers);
        let targets: Vec<_> =
            pods.map(|labels| json!({"targets": [agent.to_string()], "labels": labels})).collect();
        job.insert("static_configs".to_owned(), json!(targets));
        job.insert("scrape_interval".to_owned(), json!("1s"));
        job.insert("scrape_timeout".to_owned(), json!("1s"));
    }
    jobs.push(json!({
        "job_name": "kube-state-metrics", "honor_labels": true,
        "static_configs": [{"targets": [cluster.to_string()]}],
    }));
    // JSON is YAML.
    Ok(config.to_string())
}

/// A small load of every kind that a probe counts, and more datagrams than the budget can count.
struct Load {
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Load {
    fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let device = LoopDevice::new(4 << 20);
            let (client, server) = udp::pair("127.0.0.1:0");
            while !stop.load(Relaxed) {
                for script in ["exit 0", "exit 1", "kill -9 $$"] {
                    // How it ends is what is counted.
                    let _ = Command::new("sh").args(["-c", script]).stderr(Stdio::null()).status();
                }
                connections().expect("loopback works");
                udp::pass(&client, &server, [100; 3000]);
                device.write_through(0, 4096).expect("the device works");
                device.read(0, 4096).expect("the device works");
                thread::sleep(Duration::from_millis(50));
            }
        });
        Self { over, thread }
    }

    fn stop(self) {
        self.over.store(true, Relaxed);
        // A load that failed left expressions without data, and these are reported.
        let _ = self.thread.join();
    }
}

/// One connection that carries bytes, and one that is refused.
fn connections() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut client = TcpStream::connect(address)?;
    let (mut server, _) = listener.accept()?;
    std::io::Write::write_all(&mut client, &[7; 1000])?;
    std::io::Read::read_exact(&mut server, &mut [0; 1000])?;
    drop(listener);
    // Nobody listens there any more.
    let _ = TcpStream::connect(address);
    Ok(())
}
