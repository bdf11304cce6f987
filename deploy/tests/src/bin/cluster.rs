//! The manifest on a cluster, from `kubectl apply` to `kubectl delete`, with a transcript of what happened when. `cargo xtask e2e`
//! builds and starts it. The cluster is the one that KUBECONFIG names; its nodes must have both images, and their addresses must
//! answer from here.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use serde_json::{Value, json};
use siskin_deploy_tests::{
    http,
    kubectl::{self, apply, kubectl, kubectl_json},
    manifest,
    neighbour::{CONNECTIONS, EXECS, PORT, RECEIVED, SENT},
    policy,
    wait::wait,
};
use siskin_ebpf::Probe;
use siskin_tests::metrics::Metrics;

#[derive(Parser)]
struct Options {
    /// The image of the workload
    #[arg(long)]
    neighbour: String,
    /// The manifest
    #[arg(long, default_value_os_t = manifest::path("daemonset.yaml"))]
    manifest: PathBuf,
}

/// The namespace of all that the test adds beside the agent.
const NAMESPACE: &str = "siskin-e2e";
const PATIENCE: Duration = Duration::from_secs(120);
/// A reading is served again for as long as `--collect.min-interval` says: ten seconds in the overlay `edge`.
const FRESH: Duration = Duration::from_secs(11);
/// Rounds of the workload: enough for several scrapes to see it at work.
const ROUNDS: u64 = 50;

fn main() -> ExitCode {
    let test = match Test::new(Options::parse()) {
        Ok(test) => test,
        Err(error) => {
            eprintln!("cluster: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let result = test.run();
    // Also after a failure, and as far as it goes.
    let cleared = test.clear();
    match result.and(cleared) {
        Ok(()) => {
            test.say("passed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            test.say(&format!("FAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// One run.
struct Test {
    begin: Instant,
    neighbour: String,
    manifest: PathBuf,
    /// The DaemonSet's name and namespace, and the port of its pods.
    name: String,
    namespace: String,
    port: u16,
}

impl Test {
    fn new(Options { neighbour, manifest }: Options) -> Result<Self> {
        ensure!(
            std::env::var_os("KUBECONFIG").is_some(),
            "set KUBECONFIG to the cluster that may be used for this"
        );
        let yaml = std::fs::read_to_string(&manifest)
            .with_context(|| format!("cannot read {}", manifest.display()))?;
        let set: Value = manifest::object(&yaml, "DaemonSet");
        let text =
            |field: &str| set["metadata"][field].as_str().map(str::to_owned).context("an unnamed DaemonSet");
        let port = manifest::port(manifest::container(&manifest::pod(&yaml)));
        let (name, namespace) = (text("name")?, text("namespace")?);
        Ok(Self { begin: Instant::now(), neighbour, manifest, name, namespace, port })
    }

    /// A line of the transcript.
    fn say(&self, line: &str) {
        println!("{:7.2} s  {line}", self.begin.elapsed().as_secs_f64());
    }

    fn run(&self) -> Result<()> {
        let version = kubectl_json(&["version", "--output=json"])?;
        self.say(&format!("the cluster is Kubernetes {}", shown(&version["serverVersion"]["gitVersion"])));
        ensure!(
            kubectl(&["get", "namespace", &self.namespace]).is_err(),
            "{} is there already",
            self.namespace
        );
        self.prepare()?;
        let nodes = self.install()?;
        self.hold_to_policies()?;
        for node in &nodes {
            let before = node.programs(self)?;
            ensure!(before > 0, "no program on {}", node.name);
            self.say(&format!("{}: {before} programs in the kernel", node.name));
        }
        self.trace(&nodes[0])?;
        self.kill(&nodes[0])?;
        self.roll(&nodes, "rolling update", &["set", "env", &self.set(), "SISKIN_E2E=1"])?;
        self.roll(&nodes, "rollback", &["rollout", "undo", &self.set()])?;
        self.uninstall(&nodes)
    }

    fn set(&self) -> String {
        format!("daemonset/{}", self.name)
    }

    /// A namespace in which the test may look at nodes.
    fn prepare(&self) -> Result<()> {
        apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "privileged"},
        }}))?;
        wait(PATIENCE, "the namespace's service account", || {
            Ok(kubectl(&["--namespace", NAMESPACE, "get", "serviceaccount", "default"]).ok())
        })
        .map(drop)
    }

    /// Applies the manifest and waits until every node has a pod that is Ready. Returns the nodes.
    fn install(&self) -> Result<Vec<Node>> {
        let begin = Instant::now();
        kubectl(&["apply", "--filename", &self.manifest.display().to_string()])?;
        self.say("applied the manifest");
        let count = wait(PATIENCE, "every pod to be Ready", || {
            let status =
                kubectl_json(&["--namespace", &self.namespace, "get", &self.set(), "--output=json"])?;
            let number = |field: &str| status["status"][field].as_u64().unwrap_or(0);
            let wanted = number("desiredNumberScheduled");
            Ok((wanted > 0 && number("numberReady") == wanted).then_some(wanted))
        })?;
        self.say(&format!(
            "{count} of {count} pods Ready, {:.1} s after apply",
            begin.elapsed().as_secs_f64()
        ));
        let nodes = self.nodes()?;
        for node in &nodes {
            let (status, page) = http::get(node.address, "/readyz")?;
            ensure!(
                status == 200 && page.starts_with("ready\n"),
                "{}: /readyz says {status} {page}",
                node.name
            );
            // What a kernel lacks is no fault, and worth a line.
            for line in page.lines().filter(|line| line.starts_with("  ")) {
                self.say(&format!("{}: {}", node.name, line.trim()));
            }
            let metrics = node.scrape()?;
            self.say(&format!(
                "{}: http://{}/metrics has {} samples, {:.1} MB resident, container started to Ready {} s",
                node.name,
                node.address,
                metrics.samples.len(),
                metrics.one("process_resident_memory_bytes", &[]) / 1e6,
                node.start_seconds,
            ));
        }
        Ok(nodes)
    }

    /// The admission policies, evaluated on pods as this API server completes them: the DaemonSet's are let in, and the same pods with a
    /// liberty more are not.
    fn hold_to_policies(&self) -> Result<()> {
        let pods = self.pods()?;
        for pod in &pods {
            for (policy, said) in [("CEL", policy::admission(pod)), ("Rego", policy::gatekeeper(pod))] {
                // The test's image may have another name than the one that is released.
                let said: Vec<_> =
                    said.iter().filter(|against| !against.starts_with("only the image")).collect();
                ensure!(
                    said.is_empty(),
                    "{}: {policy} turns it away: {said:?}",
                    shown(&pod["metadata"]["name"])
                );
            }
        }
        self.say(&format!(
            "{} pods as the API server completed them pass both admission policies",
            pods.len()
        ));
        let set: Value = manifest::object(&std::fs::read_to_string(&self.manifest)?, "DaemonSet");
        for (what, field, value) in [
            ("that is privileged", "privileged", json!(true)),
            (
                "with SYS_ADMIN",
                "capabilities",
                json!({"drop": ["ALL"], "add": ["BPF", "PERFMON", "SYS_ADMIN"]}),
            ),
        ] {
            let mut planted = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "planted", "namespace": self.namespace},
                "spec": set["spec"]["template"]["spec"],
            });
            planted["spec"]["containers"][0]["securityContext"][field] = value;
            // Kubernetes refuses the two together.
            if field == "privileged" {
                planted["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = json!(true);
            }
            let completed =
                kubectl::given(&["create", "--dry-run=server", "--output=json", "--filename=-"], &planted)?;
            let completed: Value = serde_json::from_str(&completed).context("kubectl printed no JSON")?;
            let said = policy::admission(&completed);
            let against = said.iter().find(|against| against.starts_with("containers"));
            let against = against.with_context(|| format!("a pod {what} is let in: {said:?}"))?;
            ensure!(policy::gatekeeper(&completed).contains(against), "Rego lets in a pod {what}");
            self.say(&format!("a pod {what} is turned away: {against}"));
        }
        Ok(())
    }

    /// The nodes that have a pod of the DaemonSet.
    fn nodes(&self) -> Result<Vec<Node>> {
        let pods = self.pods()?;
        let mut nodes = Vec::new();
        for pod in &pods {
            let node = shown(&pod["spec"]["nodeName"]);
            let ip = shown(&pod["status"]["hostIP"]);
            let address = SocketAddr::new(
                ip.parse().with_context(|| format!("{node} has the address {ip}"))?,
                self.port,
            );
            let started = seconds(&pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"])?;
            let conditions = pod["status"]["conditions"].as_array().context("a pod without conditions")?;
            let ready =
                conditions.iter().find(|condition| condition["type"] == "Ready").context("never Ready")?;
            let start_seconds = seconds(&ready["lastTransitionTime"])? - started;
            nodes.push(Node { name: node, address, start_seconds });
        }
        ensure!(!nodes.is_empty(), "no node has a pod");
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(nodes)
    }

    fn pods(&self) -> Result<Vec<Value>> {
        let label = format!("app.kubernetes.io/name={}", self.name);
        let list = kubectl_json(&[
            "--namespace",
            &self.namespace,
            "get",
            "pods",
            "--selector",
            &label,
            "--output=json",
        ])?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// A workload pod beside the agent: its series have its names, and what it did is counted to the last byte.
    fn trace(&self, node: &Node) -> Result<()> {
        let [pod, container] = ["neighbour", "load"];
        apply(&pod_on(
            &node.name,
            pod,
            container,
            &self.neighbour,
            &["--rounds".into(), ROUNDS.to_string()],
            false,
        ))?;
        let begin = Instant::now();
        let labels = [("namespace", NAMESPACE), ("pod", pod), ("container", container)];
        wait(PATIENCE, "a series with the pod's names", || {
            Ok((node.scrape()?.sum("siskin_process_execs_total", &labels) > 0.0).then_some(()))
        })?;
        let applied = begin.elapsed().as_secs_f64();
        let started = kubectl_json(&["--namespace", NAMESPACE, "get", "pod", pod, "--output=json"])?;
        let started = seconds(&started["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]);
        let since = started.map_or("before the kubelet said that it runs".into(), |at| {
            format!("started {} s before", now() - at)
        });
        self.say(&format!(
            "first series of {NAMESPACE}/{pod} {applied:.1} s after its apply, container {since}"
        ));
        let log = || kubectl(&["--namespace", NAMESPACE, "logs", pod]);
        wait(PATIENCE, "the workload to do its rounds", || Ok(log()?.contains("done").then_some(())))?;
        thread::sleep(FRESH);
        let metrics = node.scrape()?;
        let of = |name: &str, more: &[(&'static str, &str)]| {
            let all: Vec<_> = labels.iter().chain(more).copied().collect();
            metrics.sum(name, &all)
        };
        let (port, connections) = (PORT.to_string(), ROUNDS * CONNECTIONS);
        let client = [("role", "client"), ("port", port.as_str())];
        for (what, seen, truth, slack) in [
            // The runtime may run itself once or twice in the container before it becomes what is to run there.
            ("execs", of("siskin_process_execs_total", &[]), ROUNDS * EXECS + 1, 2.0),
            (
                "connections",
                of("siskin_tcp_connections_opened_total", &[("role", "client")]),
                connections + 1,
                0.0,
            ),
            ("bytes sent", of("siskin_flow_sent_bytes_total", &client), connections * SENT, 0.0),
            ("bytes received", of("siskin_flow_received_bytes_total", &client), connections * RECEIVED, 0.0),
        ] {
            self.say(&format!("  {what}: seen {seen}, done {truth}"));
            ensure!((0.0..=slack).contains(&(seen - truth as f64)), "{what}: {seen} instead of {truth}");
        }
        Ok(())
    }

    /// A killed agent comes back by itself.
    fn kill(&self, node: &Node) -> Result<()> {
        let pods = self.pods()?;
        let pod = pods.iter().find(|pod| shown(&pod["spec"]["nodeName"]) == node.name).context("no pod")?;
        let status = &pod["status"]["containerStatuses"][0];
        let id = shown(&status["containerID"]);
        let id = id.rsplit('/').next().context("a container without an id")?;
        let restarts = status["restartCount"].as_u64();
        let scraper = Scraper::start(node);
        node.run(self, &["--kill".to_owned(), id.to_owned()])?;
        let name = shown(&pod["metadata"]["name"]);
        wait(PATIENCE, "the killed agent to be Ready again", || {
            let pod = kubectl_json(&["--namespace", &self.namespace, "get", "pod", &name, "--output=json"])?;
            let status = &pod["status"]["containerStatuses"][0];
            Ok((status["restartCount"].as_u64() > restarts && status["ready"] == true).then_some(()))
        })?;
        self.say(&format!("killed the agent on {}: it came back, {}", node.name, scraper.stop()?));
        Ok(())
    }

    /// Something that replaces every pod, and how long each node went without an answer.
    fn roll(&self, nodes: &[Node], what: &str, change: &[&str]) -> Result<()> {
        let begin = Instant::now();
        let scrapers: Vec<_> = nodes.iter().map(Scraper::start).collect();
        let before = self.names()?;
        kubectl(&[&["--namespace", &self.namespace], change].concat())?;
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        kubectl(&["--namespace", &self.namespace, "rollout", "status", &self.set(), &timeout])?;
        let after = self.names()?;
        ensure!(after.iter().all(|name| !before.contains(name)), "{before:?} became {after:?}");
        self.say(&format!("{what}: {} pods replaced in {:.1} s", after.len(), begin.elapsed().as_secs_f64()));
        for (node, scraper) in nodes.iter().zip(scrapers) {
            self.say(&format!("  {}: {}", node.name, scraper.stop()?));
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>> {
        Ok(self.pods()?.iter().map(|pod| shown(&pod["metadata"]["name"])).collect())
    }

    /// Deletes what was applied: nothing answers any more, and nothing is left in any kernel.
    fn uninstall(&self, nodes: &[Node]) -> Result<()> {
        let begin = Instant::now();
        kubectl(&["delete", "--wait", "--filename", &self.manifest.display().to_string()])?;
        self.say(&format!("deleted the manifest's objects in {:.1} s", begin.elapsed().as_secs_f64()));
        for node in nodes {
            ensure!(http::get(node.address, "/healthz").is_err(), "{} still answers", node.name);
            // The kernel frees them in its own time, after the process has ended.
            wait(PATIENCE, &format!("the programs on {} to go", node.name), || {
                let left = node.programs(self)?;
                if left > 0 {
                    self.say(&format!("{}: {left} programs not yet freed", node.name));
                }
                Ok((left == 0).then_some(()))
            })?;
            self.say(&format!("{}: nobody answers, 0 programs left in the kernel", node.name));
        }
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        let file = self.manifest.display().to_string();
        kubectl(&["delete", "--wait", "--ignore-not-found", "--filename", &file])?;
        kubectl(&["delete", "--wait", "--ignore-not-found", "namespace", NAMESPACE]).map(drop)
    }
}

/// A node with an agent.
struct Node {
    name: String,
    address: SocketAddr,
    start_seconds: i64,
}

impl Node {
    fn scrape(&self) -> Result<Metrics> {
        let (status, text) =
            http::get(self.address, "/metrics").with_context(|| format!("cannot scrape {}", self.name))?;
        ensure!(status == 200, "{}: /metrics answers {status}: {text}", self.name);
        Ok(Metrics::parse(&text))
    }

    /// How many of our programs the node's kernel has.
    fn programs(&self, test: &Test) -> Result<usize> {
        let ours = |name: &str| {
            Probe::ALL
                .iter()
                .any(|probe| name.strip_prefix(probe.name()).is_some_and(|rest| rest.starts_with('_')))
        };
        Ok(self.run(test, &["--programs".to_owned()])?.lines().filter(|name| ours(name)).count())
    }

    /// Runs the neighbour's program once, privileged, and returns what it printed.
    fn run(&self, test: &Test, arguments: &[String]) -> Result<String> {
        let pod = "eye";
        apply(&pod_on(&self.name, pod, pod, &test.neighbour, arguments, true))?;
        let phase = wait(PATIENCE, "a look at the node", || {
            let pod = kubectl_json(&["--namespace", NAMESPACE, "get", "pod", pod, "--output=json"])?;
            let phase = shown(&pod["status"]["phase"]);
            Ok(["Succeeded", "Failed"].contains(&phase.as_str()).then_some(phase))
        })?;
        let log = kubectl(&["--namespace", NAMESPACE, "logs", pod])?;
        kubectl(&["--namespace", NAMESPACE, "delete", "--wait", "pod", pod])?;
        match phase.as_str() {
            "Succeeded" => Ok(log),
            _ => bail!("{arguments:?} on {}: {log}", self.name),
        }
    }
}

/// Asks a node for its metrics ten times a second.
struct Scraper {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Duration, u32, u32)>,
}

impl Scraper {
    fn start(node: &Node) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, address) = (Arc::clone(&stop), node.address);
        let thread = thread::spawn(move || {
            let (mut gap, mut answers, mut failures) = (Duration::ZERO, 0, 0);
            let mut last = Instant::now();
            // Until an answer came after the end, so that a gap that is still open counts whole.
            loop {
                let ending = stopped.load(Ordering::Relaxed);
                match http::get(address, "/metrics") {
                    Ok((200, _)) => {
                        gap = gap.max(last.elapsed());
                        last = Instant::now();
                        answers += 1;
                        if ending {
                            return (gap, answers, failures);
                        }
                    }
                    _ => failures += 1,
                }
                if last.elapsed() > PATIENCE {
                    return (last.elapsed(), answers, failures);
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
        Self { stop, thread }
    }

    /// What it saw, in words.
    fn stop(self) -> Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok((gap, answers, failures)) = self.thread.join() else { bail!("the scraper broke") };
        ensure!(gap < PATIENCE, "no scrape was answered for {gap:?}");
        Ok(format!(
            "longest time without a scrape {:.1} s ({answers} answered, {failures} not)",
            gap.as_secs_f64()
        ))
    }
}

/// A pod of the test on a node. With `privileged` it sees and may do what root on the node does, and ends; else it is a workload
/// like any.
fn pod_on(
    node: &str,
    name: &str,
    container: &str,
    image: &str,
    arguments: &[String],
    privileged: bool,
) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodeName": node,
            "hostPID": privileged,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": container,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "args": arguments,
                "securityContext": {"privileged": privileged},
            }],
        },
    })
}

fn shown(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A time of the API server, in seconds since 1970.
fn seconds(time: &Value) -> Result<i64> {
    let text = time.as_str().context("no time")?;
    let time: k8s_newest::apimachinery::pkg::apis::meta::v1::Time =
        serde_json::from_value(json!(text)).with_context(|| format!("{text} is no time"))?;
    Ok(time.0.as_second())
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}
