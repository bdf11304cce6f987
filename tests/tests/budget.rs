//! The CPU budget as an operator meets it. How much is shed is timing and not asserted here; `cargo xtask bench budget` measures
//! it.

use std::{
    fs,
    net::UdpSocket,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use siskin_tests::{
    agent::Agent,
    cgroup,
    cgroup::Cgroup,
    metrics::Metrics,
    tcp::{Load, flow, open, opened},
};

/// Sends and receives datagrams of 100 bytes on loopback for so long; returns how many.
fn flood(length: Duration) -> u64 {
    let server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    client.connect(server.local_addr().expect("an address")).expect("a connection");
    let begin = Instant::now();
    let mut datagrams = 0;
    while begin.elapsed() < length {
        for _ in 0..100 {
            client.send(&[0; 100]).expect("a datagram goes");
            server.recv(&mut [0; 100]).expect("a datagram comes");
            datagrams += 1;
        }
    }
    datagrams
}

fn sent(metrics: &Metrics, cgroup: &Cgroup) -> f64 {
    let labels = [&cgroup.labels()[..], &[("protocol", "udp"), ("direction", "sent")]].concat();
    metrics.sum("siskin_flow_datagrams_total", &labels)
}

fn duty(metrics: &Metrics, probe: &str) -> f64 {
    metrics.one("siskin_budget_duty_ratio", &[("probe", probe)])
}

#[test]
fn without_a_budget_probes_stay_detached_and_the_agent_serves() {
    let cgroup = Cgroup::new("no-budget");
    let agent = Agent::start(&["--budget.cpu=0"]);
    let metrics = agent.scrape_until(|metrics| metrics.sum("siskin_budget_duty_ratio", &[]) == 0.0);
    assert_eq!(metrics.one("siskin_budget_cpu_cores", &[]), 0.0);
    for probe in ["process", "tcp", "disk", "udp"] {
        assert_eq!(duty(&metrics, probe), 0.0, "{probe}");
    }
    // The first thing that the agent does is to detach, which takes some kernels seconds. From then on nothing runs.
    let runs = || agent.scrape().sum("siskin_program_runs_total", &[]);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let before = runs();
        assert!(Command::new("true").status().expect("true runs").success());
        if runs() == before {
            break;
        }
        assert!(Instant::now() < deadline, "programs still run");
    }
    cgroup.command("/bin/true").status().expect("true runs");
    let metrics = agent.scrape();
    assert_eq!(metrics.sum("siskin_process_execs_total", &cgroup.labels()), 0.0);
    assert_eq!(agent.get("/healthz").0, 200);
}

#[test]
fn a_load_that_rises_within_a_tick_is_met_before_the_tick_is_over() {
    let agent = Agent::start(&["--budget.cpu=5m", "--log.level=debug"]);
    // The line that says so at the level info.
    let is_shed = |line: &str| line.contains("budget 5.0m") && line.contains("udp at ");
    let begin = Instant::now();
    while !agent.log().lines().any(is_shed) && begin.elapsed() < Duration::from_secs(10) {
        flood(Duration::from_millis(100));
    }
    let log = agent.log();
    let lines: Vec<_> = log.lines().collect();
    let first = lines.iter().position(|line| is_shed(line));
    let first = first.unwrap_or_else(|| panic!("the flood is not shed:\n{log}"));
    let tick = lines[..first].iter().rev().find(|line| line.contains("tick of "));
    assert!(
        tick.is_some_and(|line| line.contains("ended by Overload")),
        "no overload before it was shed:\n{log}"
    );
}

#[test]
fn a_budget_can_be_changed_by_a_file_and_sighup() {
    let file = std::env::temp_dir().join(format!("siskin-budget-{}", std::process::id()));
    fs::write(&file, "50m\n").expect("a file");
    let agent = Agent::start(&[&format!("--budget.cpu-file={}", file.display())]);
    assert_eq!(agent.scrape().one("siskin_budget_cpu_cores", &[]), 0.05);
    let change = |text: &str| {
        fs::write(&file, text).expect("a file");
        // SAFETY: a signal to the agent, which handles it.
        assert_eq!(unsafe { libc::kill(agent.pid() as i32, libc::SIGHUP) }, 0);
    };
    change("2%");
    let metrics = agent.scrape_until(|metrics| metrics.one("siskin_budget_cpu_cores", &[]) == 0.02);
    assert_eq!(metrics.one("siskin_budget_cpu_cores", &[]), 0.02);
    change("0");
    let metrics = agent.scrape_until(|metrics| metrics.sum("siskin_budget_duty_ratio", &[]) == 0.0);
    assert_eq!(duty(&metrics, "process"), 0.0);
    change("many");
    thread::sleep(Duration::from_millis(200));
    assert!(agent.log().contains("the CPU budget stays as it is"), "{}", agent.log());
    change("50m");
    agent.scrape_until(|metrics| duty(metrics, "process") == 1.0);
    // Attached again at the next tick: what runs now is counted.
    let cgroup = Cgroup::new("sighup");
    let metrics = agent.scrape_until(|metrics| {
        cgroup.command("/bin/true").status().expect("true runs");
        metrics.sum("siskin_process_execs_total", &cgroup.labels()) > 0.0
    });
    assert!(metrics.sum("siskin_process_execs_total", &cgroup.labels()) > 0.0);
    cgroup.enter();
    let metrics = agent.scrape_until(|metrics| {
        flood(Duration::from_millis(1));
        sent(metrics, &cgroup) > 0.0
    });
    cgroup::leave();
    assert!(sent(&metrics, &cgroup) > 0.0, "no datagram was counted again\n{}", agent.log());
    fs::remove_file(file).expect("the file goes");
}

#[test]
fn connections_that_end_without_a_budget_are_not_taken_for_later_ones() {
    const COUNT: f64 = 30.0;
    let file = std::env::temp_dir().join(format!("siskin-pause-{}", std::process::id()));
    fs::write(&file, "1\n").expect("a file");
    let (here, there, other) = (Cgroup::new("client"), Cgroup::new("server"), Cgroup::new("other"));
    let agent = Agent::start(&[&format!("--budget.cpu-file={}", file.display())]);
    let change = |text: &str| {
        fs::write(&file, text).expect("a file");
        // SAFETY: a signal to the agent, which handles it.
        assert_eq!(unsafe { libc::kill(agent.pid() as i32, libc::SIGHUP) }, 0);
    };
    let load = |cgroup: &Cgroup| Load::start(cgroup.command(env!("CARGO_BIN_EXE_load")));
    let (mut client, mut server, mut outsider) = (load(&here), load(&there), load(&other));
    let port = server.ask("listen 127.0.0.1:0");
    let connect = |client: &mut Load, server: &mut Load, bytes: u32| {
        let end = client.ask(format!("connect 127.0.0.1:{port}"));
        let peer = server.ask(format!("accept {port}"));
        client.ask(format!("send {end} {bytes}"));
        server.ask(format!("receive {peer} {bytes}"));
        (end, peer)
    };
    let close = |client: &mut Load, server: &mut Load, pairs: Vec<(u64, u64)>| {
        for (end, peer) in pairs {
            client.ask(format!("close {end}"));
            server.ask(format!("end {peer}"));
            server.ask(format!("close {peer}"));
        }
    };
    // Whether the agent sees a connection that others make now.
    let mut is_seen = || {
        let port = outsider.ask("listen 127.0.0.1:0");
        let before = opened(&agent.scrape(), &other)[0];
        let end = outsider.ask(format!("connect 127.0.0.1:{port}"));
        outsider.ask(format!("close {end}"));
        outsider.ask(format!("unlisten {port}"));
        opened(&agent.scrape(), &other)[0] > before
    };
    // One of the two maps remembers sockets, and has series.
    let remembered = |metrics: &Metrics| {
        let entries = |map| metrics.sum("siskin_map_entries", &[("map", map)]);
        entries("tcp_sockets") + entries("tcp_by_address")
    };
    let before = remembered(&agent.scrape());
    let early: Vec<_> = (0..COUNT as u32).map(|_| connect(&mut client, &mut server, 100)).collect();
    let metrics = agent.scrape_until(|metrics| open(metrics, &there)[1] == COUNT);
    assert_eq!([open(&metrics, &here)[0], open(&metrics, &there)[1]], [COUNT; 2]);

    change("0");
    let deadline = Instant::now() + Duration::from_secs(20);
    while is_seen() {
        assert!(Instant::now() < deadline, "the probe still counts");
    }
    close(&mut client, &mut server, early);
    // These may get the memory of those.
    let late: Vec<_> = (0..COUNT as u32).map(|_| connect(&mut client, &mut server, 7)).collect();

    change("1");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_seen() {
        assert!(Instant::now() < deadline, "the probe does not count again\n{}", agent.log());
    }
    close(&mut client, &mut server, late);
    drop(outsider);
    let over = |metrics: &Metrics| {
        let ended = flow(metrics, &there, "server", "127.0.0.1", port)[2] == 2.0 * COUNT;
        ended && remembered(metrics) < before + COUNT / 2.0
    };
    let metrics = agent.scrape_until(over);
    assert_eq!([opened(&metrics, &here)[0], opened(&metrics, &there)[1]], [COUNT; 2]);
    assert_eq!([open(&metrics, &here), open(&metrics, &there)], [[0.0; 2]; 2]);
    // What the early ones moved was counted by the scrape that found them open, the late ones are whole.
    let moved = COUNT * 107.0;
    assert_eq!(flow(&metrics, &here, "client", "127.0.0.1", port), [moved, 0.0, 2.0 * COUNT]);
    assert_eq!(flow(&metrics, &there, "server", "127.0.0.1", port), [0.0, moved, 2.0 * COUNT]);
    assert!(remembered(&metrics) < before + COUNT / 2.0, "{} of {before}", remembered(&metrics));
    fs::remove_file(file).expect("the file goes");
}

#[test]
fn under_a_load_that_the_budget_cannot_afford_estimates_stay_inside_their_errors() {
    let cgroup = Cgroup::new("flood");
    let agent = Agent::start(&["--budget.cpu=5m"]);
    cgroup.enter();
    let truth = flood(Duration::from_secs(8)) as f64;
    cgroup::leave();
    let metrics = agent.scrape();
    let ratio = metrics.one("siskin_sampling_ratio", &[("probe", "udp")]);
    assert!(
        ratio < 1.0 || duty(&metrics, "udp") < 1.0,
        "nothing was shed: {truth} datagrams\n{}",
        agent.log()
    );
    let error = metrics.one("siskin_estimate_standard_error", &[("metric", "siskin_flow_datagrams_total")]);
    let estimate = sent(&metrics, &cgroup);
    assert!(
        (estimate - truth).abs() <= 5.0 * error,
        "{estimate} for {truth}, error {error}\n{}",
        agent.log()
    );
    assert!(agent.log().contains("budget 5.0m"), "{}", agent.log());
}
