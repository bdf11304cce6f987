//! Names of workloads: pods and containers from files alone, also of those that are gone before anybody looks.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, path::Path, thread, time::Duration};

use siskin_tests::{
    agent::Agent,
    cgroup::{Cgroup, unified},
    disk::{IoCgroup, LoopDevice},
    kubelet::{Driver, Kubelet},
    metrics::Metrics,
    mounts,
    tcp::{Load, flow},
};

fn start(node: &Kubelet, flags: &[&str]) -> Agent {
    let [pods, containers] = node.flags();
    Agent::start(&[&[pods.as_str(), containers.as_str()], flags].concat())
}

fn load(cgroup: &Cgroup) -> Load {
    Load::start(cgroup.command(env!("CARGO_BIN_EXE_load")))
}

/// Runs a program in the cgroup that does nothing.
fn touch(cgroup: &Cgroup) {
    assert!(cgroup.command("true").status().expect("true runs").success());
}

fn execs(metrics: &Metrics, cgroup: &Cgroup) -> f64 {
    metrics.sum("siskin_process_execs_total", &cgroup.labels())
}

fn unknown(metrics: &Metrics) -> f64 {
    metrics.one("siskin_process_execs_total", &[("container", "unknown")])
}

/// Shows the lines with a word in them, to be read under `--nocapture`.
fn show(metrics: &Metrics, name: &str, word: &str) {
    for line in metrics.text.lines().filter(|line| line.starts_with(name) && line.contains(word)) {
        println!("{line}");
    }
}

/// Two pods exchange known bytes with each other and with a service of the host.
fn exchange(driver: Driver) {
    let node = Kubelet::new("exchange", driver);
    let (shop, bank) = (node.pod("shop", "cart-7d9f4"), node.pod("bank", "ledger-0"));
    let (cart, ledger) = (shop.container("cart"), bank.container("ledger"));
    // A second container, so that a name is not the only one that it could be.
    let sidecar = shop.container("sidecar");
    let unit = format!("siskin-test-{}-{driver:?}.service", std::process::id()).to_lowercase();
    let host = Cgroup::of_pod(unified().join(&unit), ["", "", &unit]);
    let agent = start(&node, &[]);
    let (mut client, mut server, mut service) = (load(&cart), load(&ledger), load(&host));
    touch(&sidecar);
    let port = server.ask("listen 127.0.0.1:0");
    server.tell(format!("serve {port} 30 1111 22222"));
    client.ask(format!("exchange 127.0.0.1:{port} 30 1111 22222"));
    server.answer();
    let host_port = service.ask("listen 127.0.0.1:0");
    service.tell(format!("serve {host_port} 7 5000 1"));
    server.ask(format!("exchange 127.0.0.1:{host_port} 7 5000 1"));
    service.answer();
    let of = |metrics: &Metrics, cgroup, role, port| flow(metrics, cgroup, role, "127.0.0.1", port);
    let metrics = agent.scrape_until(|m| of(m, &host, "server", host_port)[1] == 35_000.0);
    for peer in ["cart", "ledger", &unit] {
        show(&metrics, "siskin_flow_", peer);
    }
    assert_eq!(of(&metrics, &cart, "client", port), [33_330.0, 666_660.0, 30.0]);
    assert_eq!(of(&metrics, &ledger, "server", port), [666_660.0, 33_330.0, 30.0]);
    assert_eq!(of(&metrics, &ledger, "client", host_port), [35_000.0, 7.0, 7.0]);
    assert_eq!(of(&metrics, &host, "server", host_port), [7.0, 35_000.0, 7.0]);
    assert_eq!(execs(&metrics, &sidecar), 1.0);
    for cgroup in [&cart, &ledger, &host] {
        assert_eq!(execs(&metrics, cgroup), 1.0);
    }
    assert!(metrics.one("siskin_workload_lookups_total", &[("outcome", "pod")]) >= 3.0);
}

#[test]
fn two_pods_and_a_host_service_have_their_names_and_their_bytes_under_cgroupfs() {
    exchange(Driver::Cgroupfs);
}

#[test]
fn two_pods_and_a_host_service_have_their_names_and_their_bytes_under_systemd() {
    exchange(Driver::Systemd);
}

#[test]
fn containers_that_live_for_50_ms_have_their_names() {
    const COUNT: usize = 60;
    let node = Kubelet::new("short", Driver::Systemd);
    let agent = start(&node, &[]);
    let before = agent.scrape();
    let mut expected = BTreeSet::new();
    for number in 0..COUNT {
        // Every third pod has several containers: only the link says which one this is.
        let pod = node.pod("batch", &format!("job-{number}"));
        if number % 3 == 0 {
            drop(pod.container("setup"));
        }
        let container = pod.container("work");
        let status = container.command("sleep").arg("0.05").status().expect("sleep runs");
        assert!(status.success());
        expected.insert(format!("job-{number}"));
        drop(container);
        // Some pods are deleted soon, with their logs, but not within the tick that learns of them.
        if number % 15 == 0 {
            thread::sleep(Duration::from_millis(1100));
            pod.remove();
        }
    }
    let after = agent.scrape();
    let named = [("namespace", "batch"), ("container", "work")];
    let pods = after.find("siskin_process_execs_total", &named).map(|sample| {
        assert_eq!(sample.value, 1.0, "{sample:?}");
        sample.labels.iter().find(|(label, _)| label == "pod").expect("a pod").1.clone()
    });
    assert_eq!(pods.collect::<BTreeSet<_>>(), expected);
    assert_eq!(unknown(&after), unknown(&before));
    println!("{COUNT} containers of 50 ms between two scrapes: {COUNT} named, {} unknown", unknown(&after));
}

#[test]
fn a_container_gets_its_name_when_the_kubelet_has_written_it_down() {
    let node = Kubelet::new("late", Driver::Cgroupfs);
    let agent = start(&node, &[]);
    let pod = node.pod("shop", "cart");
    drop(pod.container("setup"));
    let id = "5".repeat(64);
    let cgroup = pod.container_without_link("web", &id);
    touch(&cgroup);
    let by_id = [("namespace", "shop"), ("pod", "cart"), ("container", "555555555555")];
    assert_eq!(agent.scrape().one("siskin_process_execs_total", &by_id), 1.0);
    pod.link("web", &id);
    touch(&cgroup);
    let metrics = agent.scrape();
    assert_eq!(execs(&metrics, &cgroup), 1.0);
    // What was counted under the first name stays there: nothing goes back.
    assert_eq!(metrics.one("siskin_process_execs_total", &by_id), 1.0);
}

#[test]
fn without_log_directories_a_pod_is_its_uid_and_a_container_its_id() {
    let node = Kubelet::new("nameless", Driver::Systemd);
    let pod = node.pod("shop", "cart");
    let cgroup = pod.container_without_link("web", &"7".repeat(64));
    let agent = Agent::start(&["--path.pod-logs=/nowhere", "--path.container-logs=/nowhere"]);
    touch(&cgroup);
    let metrics = agent.scrape();
    let labels = [("namespace", ""), ("container", "777777777777")];
    let found: Vec<_> = metrics.find("siskin_process_execs_total", &labels).collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].labels[1].1.len(), 36, "{:?}", found[0]);
}

#[test]
fn an_agent_that_has_the_hosts_directories_elsewhere_names_what_was_there_before_it() {
    let node = Kubelet::new("elsewhere", Driver::Systemd);
    let pod = node.pod("shop", "cart");
    let (container, io, device) =
        (pod.container("web"), IoCgroup::new("elsewhere"), LoopDevice::new(1 << 20));
    let host = std::env::temp_dir().join(format!("siskin-test-host-{}", std::process::id()));
    let (nothing, empty) = (host.join("nothing"), host.join("empty"));
    fs::create_dir_all(&nothing).expect("a directory of our own");
    fs::write(&empty, "").expect("a file of our own");
    let start_apart = |flags: &[&str]| {
        mounts::apart(|| {
            mounts::show(Path::new("/sys/fs/cgroup"), &host.join("cgroup"));
            mounts::show(Path::new("/proc"), &host.join("proc"));
            mounts::cover(&nothing, Path::new("/sys/fs/cgroup"));
            mounts::cover(&empty, Path::new("/proc/cgroups"));
            start(&node, flags)
        })
    };
    let [cgroup, procfs] = ["cgroup", "proc"].map(|name| host.join(name).display().to_string());
    let [cgroup, procfs] = [format!("--path.cgroup={cgroup}"), format!("--path.procfs={procfs}")];
    let agents = [&[cgroup.as_str(), procfs.as_str()][..], &[&cgroup], &[]].map(start_apart);
    touch(&container);
    io.run(|| device.write(0, 4096).expect("a write"));
    let seen = agents.map(|agent| {
        let metrics = agent.scrape();
        let written = metrics.sum("siskin_workload_disk_bytes_total", &io.cgroup.labels());
        (execs(&metrics, &container), written)
    });
    // One by one: were something mounted here after all, it would stay.
    fs::remove_file(&empty).expect("our own file");
    for directory in ["cgroup", "proc", "nothing", ""] {
        fs::remove_dir(host.join(directory)).expect("our own directory, empty");
    }
    // Only where there is a v1 hierarchy has its number to be looked up in procfs.
    let without_procfs = if io.cgroup.path().starts_with("/sys/fs/cgroup/blkio") { 0.0 } else { 4096.0 };
    assert_eq!(seen, [(1.0, 4096.0), (1.0, without_procfs), (0.0, 0.0)]);
}

#[test]
fn what_is_nested_in_a_container_is_the_containers() {
    let node = Kubelet::new("nested", Driver::Systemd);
    let agent = start(&node, &[]);
    let pod = node.pod("shop", "cart");
    let container = pod.container("web");
    let inner = ["init.scope", "system.slice", "system.slice/nginx.service"];
    let inner = inner.map(|name| {
        let path = container.path().join(name);
        Cgroup::of_pod(path, ["shop", "cart", "web"])
    });
    inner.iter().for_each(touch);
    assert_eq!(execs(&agent.scrape(), &container), 3.0);
    // Innermost first.
    let [init, slice, unit] = inner;
    drop((init, unit, slice));
}

#[test]
fn a_cgroup_made_after_another_never_has_the_dead_ones_name() {
    let agent = Agent::start(&[]);
    let mut ids = BTreeSet::new();
    for round in 0..300 {
        let cgroup = Cgroup::new(&format!("mortal-{round}"));
        ids.insert(fs::metadata(cgroup.path()).expect("a directory").ino());
        if round % 10 == 0 {
            touch(&cgroup);
            assert_eq!(execs(&agent.scrape(), &cgroup), 1.0);
        }
    }
    // The kernel's part of it: an id is an inode with its generation.
    assert_eq!(ids.len(), 300);
    // The same name again is the same workload.
    let labels = {
        let cgroup = Cgroup::new("again");
        touch(&cgroup);
        agent.scrape();
        cgroup.container.clone()
    };
    let cgroup = Cgroup::under(&unified(), &labels);
    touch(&cgroup);
    assert_eq!(execs(&agent.scrape(), &cgroup), 2.0);
}

#[test]
fn without_the_probe_cgroups_are_found_in_the_tree_and_that_is_reported() {
    let agent = Agent::start(&["--no-collector.cgroup"]);
    let before = agent.scrape();
    let hook = [("probe", "cgroup"), ("state", "disabled")];
    assert_eq!(before.find("siskin_probe_hook_info", &hook).count(), 2);
    assert_eq!(before.one("siskin_probe_up", &[("probe", "cgroup")]), 0.0);
    let cgroup = Cgroup::new("scanned");
    // A scan is not repeated at once.
    let found = agent.scrape_until(|metrics| {
        touch(&cgroup);
        execs(metrics, &cgroup) > 0.0
    });
    assert!(execs(&found, &cgroup) > 0.0, "{}", found.text);
    let gone = Cgroup::new("vanished");
    touch(&gone);
    drop(gone);
    let after = agent.scrape();
    assert_eq!(after.find("siskin_process_execs_total", &[("container", "vanished")]).count(), 0);
    // What it did is not lost, only nameless.
    assert!(unknown(&after) > 0.0);
    assert!(after.one("siskin_workload_lookups_total", &[("outcome", "unknown")]) > 0.0);
}

#[test]
fn the_dead_give_up_their_place_and_what_finds_none_is_unknown_and_counted() {
    let agent = Agent::start(&["--workloads.max-series=16"]);
    let before = agent.scrape();
    let limit = [("probe", "cgroup"), ("reason", "workload_limit")];
    // More of the living than there are places.
    let living: Vec<_> = (0..24).map(|number| Cgroup::new(&format!("living-{number}"))).collect();
    // One after the other: the kernel's own table has no more places.
    let mut full = before.clone();
    for cgroup in &living {
        touch(cgroup);
        full = agent.scrape();
    }
    let named = |metrics: &Metrics| living.iter().map(|cgroup| execs(metrics, cgroup)).sum::<f64>();
    let gained = |after: &Metrics, before: &Metrics| unknown(after) - unknown(before);
    assert!(full.one("siskin_workload_series", &[]) <= 16.0);
    assert!(named(&full) >= 8.0);
    assert_eq!(named(&full) + gained(&full, &before), 24.0, "{}", full.text);
    assert!(full.one("siskin_lost_total", &limit) >= 24.0 - named(&full));
    // Their places are free once they are gone and were served.
    let known = full.one("siskin_workload_cgroups", &[]);
    drop(living);
    let gone = agent.scrape_until(|metrics| metrics.one("siskin_workload_cgroups", &[]) <= known - 24.0);
    let next: Vec<_> = (0..10).map(|number| Cgroup::new(&format!("next-{number}"))).collect();
    next.iter().for_each(touch);
    let after = agent.scrape();
    assert_eq!(next.iter().map(|cgroup| execs(&after, cgroup)).sum::<f64>(), 10.0, "{}", after.text);
    assert_eq!(after.one("siskin_lost_total", &limit), gone.one("siskin_lost_total", &limit));
    for sample in after.find("siskin_process_execs_total", &[]) {
        let labels: Vec<_> =
            sample.labels.iter().map(|(label, value)| (label.as_str(), value.as_str())).collect();
        assert!(sample.value >= full.sum("siskin_process_execs_total", &labels), "{sample:?} went back");
    }
}

#[test]
fn a_storm_of_cgroups_is_noted_or_counted_as_lost_and_the_living_are_found() {
    let agent = Agent::start(&[]);
    let before = agent.scrape();
    let known = before.one("siskin_workload_cgroups", &[]);
    // More at once than the kernel's table holds.
    let cgroups: Vec<_> = (0..2500).map(|number| Cgroup::new(&format!("storm-{number}"))).collect();
    let lost = [("probe", "cgroup"), ("reason", "map_full")];
    let last = cgroups.last().expect("a cgroup");
    touch(last);
    let found = agent.scrape_until(|metrics| {
        touch(last);
        execs(metrics, last) > 0.0 && metrics.one("siskin_workload_cgroups", &[]) >= known + 2500.0
    });
    println!("2,500 cgroups at once: {} notes lost", found.one("siskin_lost_total", &lost));
    assert!(execs(&found, last) > 0.0);
    assert!(found.one("siskin_workload_cgroups", &[]) >= known + 2500.0);
    // Slowly enough for the table: then the end of each is noted, and the agent forgets it.
    for portion in cgroups.chunks(500) {
        portion.iter().for_each(|cgroup| fs::remove_dir(cgroup.path()).expect("an empty cgroup"));
        thread::sleep(Duration::from_millis(1100));
    }
    let after = agent.scrape_until(|metrics| metrics.one("siskin_workload_cgroups", &[]) <= known);
    println!("{} cgroups known before, {} after", known, after.one("siskin_workload_cgroups", &[]));
    assert!(after.one("siskin_workload_cgroups", &[]) <= known);
}
