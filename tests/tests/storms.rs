//! Storms of events that are counted one by one until the budget cannot pay for it: they are
//! sampled then, and what is said of them is an estimate with an error. How much that saves is
//! timing and not asserted here; `cargo xtask bench budget` measures it.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use siskin_tests::{
    agent::Agent,
    cgroup::{self, Cgroup},
    metrics::Metrics,
    tcp::{flow, open, opened},
};

/// How long a load runs: long enough for several ticks of the budget.
const LENGTH: Duration = Duration::from_secs(6);
/// Standard errors that an estimate may be off: one run in two million would be.
const ERRORS: f64 = 5.0;

fn error(metrics: &Metrics, metric: &str) -> f64 {
    metrics.one("siskin_estimate_standard_error", &[("metric", metric)])
}

/// The error of a workload's value of a metric.
fn error_of(metrics: &Metrics, metric: &str, cgroup: &Cgroup) -> f64 {
    let labels = [&cgroup.labels()[..], &[("metric", metric)]].concat();
    metrics.sum("siskin_workload_estimate_variance_total", &labels).sqrt()
}

fn shed(metrics: &Metrics, probe: &str) -> bool {
    metrics.one("siskin_sampling_ratio", &[("probe", probe)]) < 1.0
        || metrics.one("siskin_budget_duty_ratio", &[("probe", probe)]) < 1.0
}

/// Asserts that an estimate is near the truth. Each of the scrapes may have rounded it.
#[track_caller]
fn assert_near(what: &str, estimate: f64, truth: f64, error: f64) {
    let error = error + 1.0;
    println!("{what}: estimate {estimate}, truth {truth}, standard error {error:.0}");
    assert!((estimate - truth).abs() <= ERRORS * error, "{what}: {estimate} for {truth}, error {error}");
}

/// Starts programs for [`LENGTH`]; returns how many, and whether the probe was seen to be sampled
/// meanwhile.
fn storm_of_execs(agent: &Agent, cgroup: &Cgroup) -> (f64, bool) {
    let (begin, mut execs, mut was_shed) = (Instant::now(), 0u32, false);
    while begin.elapsed() < LENGTH {
        for _ in 0..200 {
            assert!(cgroup.command("/bin/true").status().expect("true runs").success());
            execs += 1;
        }
        was_shed |= shed(&agent.scrape_once(), "process");
    }
    // So small a budget may have paid for no reading meanwhile.
    was_shed |= agent.log().lines().any(|line| line.contains(": process at") && line.contains(" 1 in "));
    // A window that is missing comes within two periods.
    thread::sleep(Duration::from_millis(2500));
    (execs.into(), was_shed)
}

#[test]
fn a_storm_of_execs_is_sampled_and_its_estimates_stay_inside_their_errors() {
    let cgroup = Cgroup::new("storm-exec");
    let agent = Agent::start(&["--budget.cpu=2m"]);
    let (execs, was_shed) = storm_of_execs(&agent, &cgroup);
    let metrics = agent.scrape();
    assert!(was_shed, "nothing was sampled in {execs} execs\n{}", agent.log());
    let count = |name| metrics.sum(name, &cgroup.labels());
    for name in ["siskin_process_execs_total", "siskin_process_exits_total"] {
        // The total's own error too: what windows have seen late is in it.
        let error = error_of(&metrics, name, &cgroup).hypot(error(&metrics, name));
        assert_near(name, count(name), execs, error);
    }
}

#[test]
fn a_probe_that_is_named_exact_is_never_sampled() {
    let cgroup = Cgroup::new("storm-exact");
    let agent = Agent::start(&["--budget.cpu=2m", "--budget.exact=process"]);
    let (execs, was_shed) = storm_of_execs(&agent, &cgroup);
    let metrics = agent.scrape();
    assert!(!was_shed, "{}", agent.log());
    assert_eq!(metrics.sum("siskin_process_execs_total", &cgroup.labels()), execs);
    assert!(
        agent.log().contains("never sampled, and not counted to the CPU budget: process"),
        "{}",
        agent.log()
    );
}

#[test]
fn a_storm_of_connections_is_sampled_and_the_living_are_adopted_after_it() {
    /// What each connection sends, and what comes back.
    const UP: usize = 700;
    const DOWN: usize = 300;
    let cgroup = Cgroup::new("storm-connect");
    let agent = Agent::start(&["--budget.cpu=10m"]);
    cgroup.enter();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    let port: u64 = address.port().into();
    let connect = || {
        let client = TcpStream::connect(address).expect("a connection");
        (client, listener.accept().expect("a connection").0)
    };
    let before = (0..5).map(|_| connect()).collect::<Vec<_>>();
    let (mut connections, mut scrapes, mut was_shed, mut during) = (0u32, 1, false, Vec::new());
    let begin = Instant::now();
    while begin.elapsed() < LENGTH {
        for _ in 0..500 {
            let (mut client, mut server) = connect();
            client.write_all(&[1; UP]).expect("bytes go");
            server.read_exact(&mut [0; UP]).expect("bytes come");
            server.write_all(&[2; DOWN]).expect("bytes go");
            client.read_exact(&mut [0; DOWN]).expect("bytes come");
            connections += 1;
        }
        // Not too often: scrapes are paid for out of the same budget.
        if begin.elapsed().as_secs() >= scrapes {
            scrapes += 1;
            was_shed |= shed(&agent.scrape_once(), "tcp");
            if during.len() < 3 && was_shed {
                during.push(connect());
            }
        }
    }
    cgroup::leave();
    thread::sleep(Duration::from_millis(2500));
    let metrics = agent.scrape();
    assert!(was_shed, "nothing was shed in {connections} connections\n{}", agent.log());
    let all = f64::from(connections) + (before.len() + during.len()) as f64;
    let lost =
        |metrics: &Metrics| metrics.one("siskin_lost_total", &[("probe", "tcp"), ("reason", "budget")]);
    assert!(lost(&metrics) > 0.0, "what is not followed is a loss\n{}", agent.log());
    // Both ends of every connection are ours, and an error is that of both together.
    let clients_and_servers: f64 = opened(&metrics, &cgroup).iter().sum();
    let of = |metric| error_of(&metrics, metric, &cgroup).hypot(error(&metrics, metric));
    let opened_error = of("siskin_tcp_connections_opened_total");
    assert_near("connections opened", clients_and_servers, 2.0 * all, opened_error);
    let [sent, received, flows] = flow(&metrics, &cgroup, "client", "127.0.0.1", port);
    let truth = f64::from(connections);
    assert_near("bytes sent", sent, truth * UP as f64, of("siskin_flow_sent_bytes_total"));
    assert_near("bytes received", received, truth * DOWN as f64, of("siskin_flow_received_bytes_total"));
    assert_near("connections of the flow", flows, truth, of("siskin_flow_connections_total"));

    // When the storm is over for a while, all that is open is followed again and exact.
    let alive = (before.len() + during.len()) as f64;
    let begin = Instant::now();
    let after = loop {
        let metrics = agent.scrape();
        if open(&metrics, &cgroup) == [alive; 2] {
            break metrics;
        }
        let open = open(&metrics, &cgroup);
        assert!(begin.elapsed() < Duration::from_secs(60), "{open:?} of {alive} are open\n{}", agent.log());
        thread::sleep(Duration::from_secs(1));
    };
    let bytes = |metrics: &Metrics| flow(metrics, &cgroup, "client", "127.0.0.1", port)[0];
    let (mut client, mut server) = during.pop().expect("some were opened");
    client.write_all(&[1; 12_345]).expect("bytes go");
    server.read_exact(&mut [0; 12_345]).expect("bytes come");
    let now = agent.scrape_until(|metrics| bytes(metrics) - bytes(&after) >= 12_345.0);
    assert_eq!(bytes(&now) - bytes(&after), 12_345.0);
}
