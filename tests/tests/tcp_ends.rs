//! How connections begin and end: failures by reason, resets, and how long things took.

use std::{thread, time::Duration};

use siskin_tests::{
    agent::Agent,
    cgroup::Cgroup,
    metrics::Metrics,
    tcp::{Load, failed, flow, open, opened},
};

fn load(cgroup: &Cgroup) -> Load {
    Load::start(cgroup.command(env!("CARGO_BIN_EXE_load")))
}

fn resets(metrics: &Metrics) -> [f64; 2] {
    ["sent", "received"].map(|direction| metrics.one("siskin_tcp_resets_total", &[("direction", direction)]))
}

/// Asserts that each value grew by at least so much.
fn assert_grew<const N: usize>(before: [f64; N], after: [f64; N], by: [f64; N]) {
    let grew = before.iter().zip(after).zip(by).all(|((before, after), by)| after - before >= by);
    assert!(grew, "{before:?} to {after:?}, not by {by:?}");
}

/// So many connections to where nobody listens.
fn refused(cgroup: &Cgroup, count: f64) {
    let mut client = load(cgroup);
    // In a namespace where nobody else may take the port.
    client.ask("netns");
    for _ in 0..count as u32 {
        let socket = client.ask("begin 127.0.0.1:7000");
        assert_eq!(client.ask(format!("fate {socket}")), libc::ECONNREFUSED as u64);
        client.ask(format!("close {socket}"));
    }
}

#[test]
fn resets_that_answer_segments_of_no_connection_are_sent() {
    const COUNT: f64 = 12.0;
    let agent = Agent::start(&[]);
    let before = agent.scrape();
    refused(&Cgroup::new("refused"), COUNT);
    assert_grew(resets(&before), resets(&agent.scrape()), [COUNT; 2]);
}

#[test]
fn refused_connections_are_failures_and_received_resets() {
    const COUNT: f64 = 12.0;
    let cgroup = Cgroup::new("refused");
    let agent = Agent::start(&[]);
    let before = agent.scrape();
    refused(&cgroup, COUNT);
    let after = agent.scrape_until(|m| failed(m, &cgroup)[0] == COUNT);
    assert_eq!(failed(&after, &cgroup), [COUNT, 0.0, 0.0, 0.0]);
    assert_eq!(opened(&after, &cgroup), [0.0; 2]);
    assert_eq!(open(&after, &cgroup), [0.0; 2]);
    assert_eq!(after.find("siskin_flow_connections_total", &cgroup.labels()).count(), 0);
    assert_grew(resets(&before), resets(&after), [0.0, COUNT]);
}

#[test]
fn timed_out_and_abandoned_connections_are_failures_with_their_retransmits() {
    const COUNT: f64 = 6.0;
    let (here, there) = (Cgroup::new("timeout"), Cgroup::new("full"));
    let agent = Agent::start(&[]);
    // Both ends share a namespace, where a SYN is sent once again after a second and given up two seconds later.
    let mut both = load(&here);
    both.ask("netns");
    both.ask("sysctl tcp_syn_retries 1");
    both.ask("sysctl tcp_syn_linear_timeouts 0");
    both.move_to(&there);
    both.ask("listen 127.0.0.1:7000");
    both.ask("backlog 7000 0");
    let filler = both.ask("connect 127.0.0.1:7000");
    both.ask("queued 7000");
    both.move_to(&here);
    let begin = |both: &mut Load| both.ask("begin 127.0.0.1:7000");
    let sockets: Vec<_> = (0..COUNT as u32).map(|_| begin(&mut both)).collect();
    let abandoned: Vec<_> = (0..3).map(|_| begin(&mut both)).collect();
    for socket in abandoned {
        both.ask(format!("close {socket}"));
    }
    let metrics = agent.scrape_until(|m| failed(m, &here)[3] == 3.0);
    assert_eq!(failed(&metrics, &here), [0.0, 0.0, 0.0, 3.0]);
    for socket in sockets {
        assert_eq!(both.ask(format!("fate {socket}")), libc::ETIMEDOUT as u64);
    }
    let metrics = agent.scrape_until(|m| failed(m, &here)[1] == COUNT);
    assert_eq!(failed(&metrics, &here), [0.0, COUNT, 0.0, 3.0]);
    assert_eq!(metrics.one("siskin_tcp_retransmits_total", &here.labels()), COUNT);
    assert_eq!(opened(&metrics, &here), [0.0; 2]);
    assert_eq!(open(&metrics, &here), [0.0; 2]);
    // The one that waits is open at both ends; the end of its listener resets it.
    assert_eq!(open(&metrics, &there), [1.0; 2]);
    both.ask("unlisten 7000");
    both.ask(format!("broken {filler}"));
    let metrics = agent.scrape_until(|m| open(m, &there) == [0.0; 2]);
    assert_eq!(open(&metrics, &there), [0.0; 2]);
    assert_eq!(opened(&metrics, &there), [1.0; 2]);
    assert_eq!(failed(&metrics, &there), [0.0, 0.0, 1.0, 0.0]);
}

#[test]
fn a_reset_is_a_failure_of_the_end_that_receives_it() {
    let (here, there) = (Cgroup::new("reset"), Cgroup::new("aborts"));
    let agent = Agent::start(&[]);
    let before = agent.scrape();
    let (mut client, mut server) = (load(&here), load(&there));
    let port = server.ask("listen 127.0.0.1:0");
    // Half of them after the server's FIN, where the error is another one.
    for half_closed in [false, true].repeat(5) {
        let end = client.ask(format!("connect 127.0.0.1:{port}"));
        let other = server.ask(format!("accept {port}"));
        client.ask(format!("send {end} 100"));
        server.ask(format!("receive {other} 100"));
        server.ask(format!("send {other} 9"));
        client.ask(format!("receive {end} 9"));
        if half_closed {
            server.ask(format!("finish {other}"));
            client.ask(format!("end {end}"));
        }
        server.ask(format!("abort {other}"));
        if !half_closed {
            client.ask(format!("broken {end}"));
        }
        client.ask(format!("close {end}"));
    }
    let over = |m: &_| [open(m, &here), open(m, &there)].concat() == [0.0; 4];
    let after = agent.scrape_until(|m| over(m) && opened(m, &here)[0] == 10.0);
    assert!(over(&after));
    assert_eq!(opened(&after, &here), [10.0, 0.0]);
    assert_eq!(failed(&after, &here), [0.0, 0.0, 10.0, 0.0]);
    assert_eq!(failed(&after, &there), [0.0; 4]);
    assert_eq!(flow(&after, &here, "client", "127.0.0.1", port), [1000.0, 90.0, 10.0]);
    assert_eq!(flow(&after, &there, "server", "127.0.0.1", port), [90.0, 1000.0, 10.0]);
    assert_grew(resets(&before), resets(&after), [10.0; 2]);
}

#[test]
fn connecting_living_and_round_trips_are_measured() {
    const COUNT: f64 = 20.0;
    const HELD: Duration = Duration::from_millis(500);
    let cgroup = Cgroup::new("times");
    let agent = Agent::start(&[]);
    let before = agent.scrape();
    let mut both = load(&cgroup);
    let port = both.ask("listen 127.0.0.1:0");
    let mut sockets = Vec::new();
    for _ in 0..COUNT as u32 {
        sockets.push(both.ask(format!("connect 127.0.0.1:{port}")));
        sockets.push(both.ask(format!("accept {port}")));
    }
    let connect = |m: &Metrics| [m.one("siskin_tcp_connect_seconds_count", &[])];
    let live = agent.scrape_until(|m| open(m, &cgroup) == [COUNT; 2]);
    assert_eq!(open(&live, &cgroup), [COUNT; 2]);
    assert_grew(connect(&before), connect(&live), [COUNT]);
    let sum = "siskin_tcp_connect_seconds_sum";
    assert!(live.one(sum, &[]) > before.one(sum, &[]));

    // One observation per connection and sweep.
    let rtt = |m: &Metrics| [m.one("siskin_tcp_rtt_seconds_count", &[])];
    let again = agent.scrape();
    assert_grew(rtt(&live), rtt(&again), [2.0 * COUNT]);
    let sum = "siskin_tcp_rtt_seconds_sum";
    assert!(again.one(sum, &[]) > live.one(sum, &[]));

    thread::sleep(HELD);
    for socket in sockets {
        both.ask(format!("close {socket}"));
    }
    let after = agent.scrape_until(|m| open(m, &cgroup) == [0.0; 2]);
    assert_eq!(open(&after, &cgroup), [0.0; 2]);
    for role in ["client", "server"] {
        let lifetimes = |m: &Metrics| {
            ["count", "sum"].map(|part| {
                m.one(&format!("siskin_tcp_connection_lifetime_seconds_{part}"), &[("role", role)])
            })
        };
        assert_grew(lifetimes(&live), lifetimes(&after), [COUNT, COUNT * HELD.as_secs_f64()]);
    }
}
