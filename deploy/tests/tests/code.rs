//! The manifests, held to what the code says: flags, port, paths, capabilities, budgets.

use std::{collections::BTreeMap, fs, process::Command, str::FromStr as _};

use bytesize::ByteSize;
use clap::Parser as _;
use k8s_newest::{
    api::core::v1::PodSpec,
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use siskin::{
    budget::cores,
    cli::{self, Cli},
    kernel::privileges,
};
use siskin_deploy_tests::{
    command::output,
    manifest::{self, container},
};

/// What the process takes besides its maps while it reads BTF, the most it ever does (docs/overhead.md), and a third more.
const PROCESS_BYTES: u64 = 52 << 20;
/// The address that stands in for the node's.
const NODE: &str = "192.0.2.7";
const OVERLAYS: [&str; 3] = ["overlays/canary", "overlays/edge", "overlays/control-plane"];

/// The command line as the program reads it.
fn flags(words: &[String]) -> cli::Run {
    let words = words.iter().map(|word| word.replace("$(NODE_IP)", NODE));
    let parsed = Cli::try_parse_from(["siskin".to_owned()].into_iter().chain(words));
    match parsed.unwrap_or_else(|error| panic!("{error}")).command {
        cli::Command::Run(run) => *run,
        other => panic!("not run: {other:?}"),
    }
}

fn defaults() -> cli::Run {
    flags(&["run".to_owned()])
}

fn bytes(resources: &BTreeMap<String, Quantity>) -> u64 {
    // Kubernetes writes Mi where everybody else writes MiB.
    ByteSize::from_str(&format!("{}B", resources["memory"].0)).expect("a size").as_u64()
}

fn cpu(resources: &BTreeMap<String, Quantity>) -> f64 {
    cores::parse(&resources["cpu"].0).expect("cores")
}

/// Everything in a pod that the code knows too.
fn check(pod: &PodSpec) {
    let container = container(pod);
    let run = flags(container.args.as_deref().expect("arguments"));
    let defaults = defaults();

    let port = manifest::port(container);
    assert_eq!(port, defaults.listen_address.port());
    assert_eq!(run.listen_address.to_string(), format!("{NODE}:{port}"));
    let named = &container.ports.as_ref().expect("ports")[0];
    assert_eq!((named.name.as_deref(), named.host_port), (Some("metrics"), Some(port.into())));

    for probe in [&container.startup_probe, &container.liveness_probe, &container.readiness_probe] {
        let get = probe.as_ref().and_then(|probe| probe.http_get.as_ref()).expect("an HTTP probe");
        assert_eq!(get.port, IntOrString::String("metrics".into()));
        let path = get.path.clone().expect("a path");
        // The flag refuses exactly the paths that serve something else.
        let taken = ["siskin", "run", &format!("--web.telemetry-path={path}")].map(str::to_owned);
        assert!(path != "/" && Cli::try_parse_from(taken).is_err(), "no page {path}");
    }

    let security = container.security_context.as_ref().expect("a security context");
    let capabilities = security.capabilities.as_ref().expect("capabilities");
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    let added = capabilities.add.as_ref().expect("capabilities").iter().map(|name| format!("CAP_{name}"));
    assert_eq!(added.collect::<Vec<_>>(), privileges::NEEDED.map(|capability| capability.to_string()));

    let resources = container.resources.as_ref().expect("resources");
    let (requests, limits) =
        (resources.requests.as_ref().expect("requests"), resources.limits.as_ref().expect("limits"));
    assert_eq!(cpu(requests), run.cpu, "requests.cpu is the budget");
    assert!(cpu(limits) >= 5.0 * run.cpu, "limits.cpu throttles starts and scrapes");
    assert!(
        bytes(limits) >= run.sizes.memory + PROCESS_BYTES,
        "limits.memory does not hold the maps and the process"
    );
    assert!(bytes(requests) <= bytes(limits));

    // Each directory that a flag names is a volume of the host, where the host has what the flag is for.
    let host = |inside: &std::path::Path| {
        let mounts = container.volume_mounts.as_deref().unwrap_or_default();
        let mount = mounts.iter().find(|mount| std::path::Path::new(&mount.mount_path) == inside);
        let mount = mount.unwrap_or_else(|| panic!("{} is not mounted", inside.display()));
        assert_eq!(mount.read_only, Some(true));
        let volumes = pod.volumes.as_deref().unwrap_or_default();
        let volume = volumes.iter().find(|volume| volume.name == mount.name).expect("a volume");
        volume.host_path.as_ref().expect("a path of the host").path.clone()
    };
    for (inside, outside) in [
        (&run.paths.cgroup_mount, &defaults.paths.cgroup_mount),
        (&run.paths.pod_logs, &defaults.paths.pod_logs),
        (&run.paths.container_logs, &defaults.paths.container_logs),
    ] {
        assert_eq!(std::path::Path::new(&host(inside)), outside);
    }
    assert_eq!(pod.volumes.as_ref().map(Vec::len), Some(3));
    // With hostPID the container's own procfs is the host's, and sysfs is the same everywhere.
    assert_eq!((&run.paths.procfs, &run.paths.sysfs), (&defaults.paths.procfs, &defaults.paths.sysfs));
    assert_eq!((pod.host_pid, pod.host_network), (Some(true), Some(true)));
}

#[test]
fn the_daemonset_is_what_the_code_expects() {
    check(&manifest::pod(&manifest::text("daemonset.yaml")));
}

#[test]
fn kustomize_overlays_are_what_the_code_expects() {
    for overlay in OVERLAYS {
        check(&manifest::pod(&manifest::rendered(overlay)));
    }
}

#[test]
fn kustomize_base_is_the_daemonset() {
    let (file, base) = (manifest::text("daemonset.yaml"), manifest::text("kustomize/base/daemonset.yaml"));
    assert!(file == base, "run: cp deploy/daemonset.yaml deploy/kustomize/base/");
    let rendered = manifest::objects(&manifest::rendered("base"));
    for object in manifest::objects(&file) {
        assert!(rendered.contains(&object), "kustomize changes {}", object["kind"]);
    }
}

#[test]
fn kustomize_canary_and_main_share_no_node_and_no_pod() {
    let of = |yaml: &str| {
        let objects = manifest::objects(yaml);
        let set = objects.into_iter().find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
        let terms = "/spec/template/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution\
            /nodeSelectorTerms/0/matchExpressions/0";
        let node = set.pointer(terms).expect("which nodes").clone();
        (set["metadata"]["name"].clone(), set["spec"]["selector"]["matchLabels"].clone(), node)
    };
    let (main, canary) = (of(&manifest::rendered("base")), of(&manifest::rendered("overlays/canary")));
    assert_ne!(main.0, canary.0);
    assert_ne!(main.1["app.kubernetes.io/instance"], canary.1["app.kubernetes.io/instance"]);
    assert_eq!((&main.2["key"], &main.2["values"]), (&canary.2["key"], &canary.2["values"]));
    assert_eq!((main.2["operator"].as_str(), canary.2["operator"].as_str()), (Some("NotIn"), Some("In")));
}

/// The values of a setting in the systemd unit.
fn settings(name: &str) -> Vec<String> {
    let unit = manifest::text("systemd/siskin.service");
    let values = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

#[test]
fn the_unit_is_what_the_code_expects() {
    let needed = privileges::NEEDED.map(|capability| capability.to_string()).join(" ");
    assert_eq!(settings("AmbientCapabilities"), [needed.as_str()]);
    assert_eq!(settings("CapabilityBoundingSet"), [needed.as_str()]);
    let start = settings("ExecStart").remove(0).replace(" $SISKIN_FLAGS", "");
    let words: Vec<_> = start.split(' ').skip(1).map(str::to_owned).collect();
    let run = flags(&words);
    let most: ByteSize = format!("{}B", settings("MemoryMax")[0].replace('M', "Mi")).parse().expect("a size");
    assert!(most.as_u64() >= run.sizes.memory + PROCESS_BYTES);
}

#[test]
fn systemd_takes_the_unit() {
    // It looks for the program too, which is not installed here.
    let unit = manifest::text("systemd/siskin.service").replace("/usr/local/bin/siskin", "/bin/true");
    let file = std::env::temp_dir().join(format!("siskin-test-{}.service", std::process::id()));
    fs::write(&file, unit).expect("a file");
    let verified = output(Command::new("systemd-analyze").arg("verify").arg(&file));
    fs::remove_file(&file).expect("the file");
    assert_eq!(verified.unwrap_or_else(|error| panic!("{error:#}")), "");
}
