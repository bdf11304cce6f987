//! The CPU budget as an operator meets it. How much is shed is timing and not asserted here; `cargo xtask bench budget` measures
//! it.

use std::{
    fs,
    net::UdpSocket,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use siskin_tests::{agent::Agent, cgroup, cgroup::Cgroup, metrics::Metrics};

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
    assert!((estimate - truth).abs() < 5.0 * error, "{estimate} for {truth}, error {error}\n{}", agent.log());
    assert!(agent.log().contains("budget 5.0m"), "{}", agent.log());
}
