//! Connections older than the agent.

use siskin_tests::{
    agent::Agent,
    cgroup::Cgroup,
    metrics::Metrics,
    tcp::{Load, flow, open, opened},
};

fn load(cgroup: &Cgroup) -> Load {
    Load::start(cgroup.command(env!("CARGO_BIN_EXE_load")))
}

fn late(metrics: &Metrics) -> f64 {
    metrics.one("siskin_lost_total", &[("probe", "tcp"), ("reason", "late_attach")])
}

/// Starts an agent that has only been late for connections still open, and reads it: one that ended meanwhile is in no
/// gauge any more. Only connections that the agent saw begin have a lifetime.
fn start() -> (Agent, Metrics) {
    let mut seen = Vec::new();
    for _ in 0..10 {
        let agent = Agent::start(&[]);
        let metrics = agent.scrape();
        let all = |name| metrics.sum(name, &[]);
        let older = all("siskin_tcp_connections_open") - all("siskin_tcp_connections_opened_total")
            + all("siskin_tcp_connection_lifetime_seconds_count");
        if late(&metrics) == older {
            return (agent, metrics);
        }
        seen.push((late(&metrics), older));
    }
    panic!("late and still open: {seen:?}");
}

#[test]
fn older_connections_count_from_the_agents_start() {
    const COUNT: f64 = 7.0;
    let (here, there, inside) = (Cgroup::new("client"), Cgroup::new("server"), Cgroup::new("netns"));
    let (mut client, mut server, mut netns) = (load(&here), load(&there), load(&inside));
    let port = server.ask("listen 127.0.0.1:0");
    // The client in there has the port that the server out here listens on.
    netns.ask("netns");
    netns.ask(format!("sysctl ip_local_port_range {port}\t{port}"));
    let inner = if port == 7000 { 7001 } else { 7000 };
    netns.ask(format!("listen 127.0.0.1:{inner}"));
    let mut pairs = Vec::new();
    for index in 0..COUNT as u64 {
        let end = client.ask(format!("connect 127.0.0.1:{port}"));
        let other = server.ask(format!("accept {port}"));
        client.ask(format!("send {end} 1000"));
        server.ask(format!("receive {other} 1000"));
        // Some are half closed already: what was a FIN before stays none.
        if index < 3 {
            client.ask(format!("finish {end}"));
            server.ask(format!("end {other}"));
        }
        pairs.push((index, end, other));
    }
    // Two descriptors are one connection.
    let twin = client.ask(format!("twin {}", pairs[0].1));
    let end = netns.ask(format!("connect 127.0.0.1:{inner}"));
    let other = netns.ask(format!("accept {inner}"));
    netns.ask(format!("send {end} 1000"));

    let (agent, metrics) = start();
    assert!(late(&metrics) >= 2.0 * COUNT + 2.0, "{}", late(&metrics));
    assert_eq!(open(&metrics, &here), [COUNT, 0.0]);
    assert_eq!(open(&metrics, &there), [0.0, COUNT]);
    assert_eq!(open(&metrics, &inside), [1.0, 1.0]);
    for cgroup in [&here, &there, &inside] {
        assert_eq!(opened(&metrics, cgroup), [0.0; 2]);
        assert_eq!(metrics.sum("siskin_flow_sent_bytes_total", &cgroup.labels()), 0.0);
        assert_eq!(metrics.sum("siskin_flow_received_bytes_total", &cgroup.labels()), 0.0);
    }

    let (mut up, mut down) = (0.0, 0.0);
    for (index, end, other) in &pairs {
        if *index >= 3 {
            client.ask(format!("send {end} 200"));
            server.ask(format!("receive {other} 200"));
            up += 200.0;
        }
        server.ask(format!("send {other} 30"));
        client.ask(format!("receive {end} 30"));
        down += 30.0;
    }
    netns.ask(format!("send {end} 4"));
    netns.ask(format!("receive {other} 1004"));
    netns.ask(format!("send {other} 50000"));
    netns.ask(format!("receive {end} 50000"));
    let bytes = |metrics: &Metrics| {
        // Not new connections of their flows.
        assert_eq!(flow(metrics, &here, "client", "127.0.0.1", port), [up, down, 0.0]);
        assert_eq!(flow(metrics, &there, "server", "127.0.0.1", port), [down, up, 0.0]);
        assert_eq!(flow(metrics, &inside, "client", "127.0.0.1", inner), [4.0, 50000.0, 0.0]);
        assert_eq!(flow(metrics, &inside, "server", "127.0.0.1", inner), [50000.0, 4.0, 0.0]);
        for cgroup in [&here, &there, &inside] {
            assert_eq!(opened(metrics, cgroup), [0.0; 2]);
        }
    };
    bytes(&agent.scrape());

    client.ask(format!("close {twin}"));
    for (index, end, other) in pairs {
        client.ask(format!("close {end}"));
        if index >= 3 {
            server.ask(format!("end {other}"));
        }
        server.ask(format!("close {other}"));
    }
    netns.ask(format!("close {end}"));
    netns.ask(format!("close {other}"));
    let left = |m: &Metrics| [&here, &there, &inside].map(|cgroup| open(m, cgroup));
    let metrics = agent.scrape_until(|m| left(m) == [[0.0; 2]; 3]);
    assert_eq!(left(&metrics), [[0.0; 2]; 3]);
    bytes(&metrics);
}

#[test]
fn an_older_listener_takes_new_connections() {
    let (here, there) = (Cgroup::new("client"), Cgroup::new("server"));
    let (mut client, mut server) = (load(&here), load(&there));
    let port = server.ask("listen 127.0.0.1:0");
    let agent = Agent::start(&[]);
    server.tell(format!("serve {port} 5 10 20"));
    client.ask(format!("exchange 127.0.0.1:{port} 5 10 20"));
    server.answer();
    let metrics = agent.scrape_until(|m| opened(m, &there) == [0.0, 5.0] && open(m, &there) == [0.0; 2]);
    assert_eq!(opened(&metrics, &here), [5.0, 0.0]);
    assert_eq!(opened(&metrics, &there), [0.0, 5.0]);
    assert_eq!(flow(&metrics, &here, "client", "127.0.0.1", port), [50.0, 100.0, 5.0]);
    assert_eq!(flow(&metrics, &there, "server", "127.0.0.1", port), [100.0, 50.0, 5.0]);
}
