//! The TCP probe's bytes and connections against load whose truth the test makes, to the byte.

use std::{thread, time::Duration};

use siskin_tests::{
    agent::Agent,
    cgroup::Cgroup,
    metrics::Metrics,
    tcp::{Load, flow, open, opened},
};

fn load(cgroup: &Cgroup) -> Load {
    Load::start(cgroup.command(env!("CARGO_BIN_EXE_load")))
}

/// Makes `count` connections between two cgroups and checks every number; each end sees the other as `peer`.
fn exchange(listen: &str, connect: &str, peer: &str) {
    const COUNT: f64 = 40.0;
    let (here, there) = (Cgroup::new("client"), Cgroup::new("server"));
    let agent = Agent::start(&[]);
    let (mut client, mut server) = (load(&here), load(&there));
    let port = server.ask(format!("listen {listen}:0"));
    server.tell(format!("serve {port} {COUNT} 12345 678"));
    client.ask(format!("exchange {connect}:{port} {COUNT} 12345 678"));
    server.answer();
    let over =
        |m: &_| opened(m, &there)[1] == COUNT && [open(m, &here), open(m, &there)].concat() == [0.0; 4];
    let metrics = agent.scrape_until(over);
    assert_eq!(opened(&metrics, &here), [COUNT, 0.0]);
    assert_eq!(opened(&metrics, &there), [0.0, COUNT]);
    assert_eq!(open(&metrics, &here), [0.0; 2]);
    assert_eq!(open(&metrics, &there), [0.0; 2]);
    let (up, down) = (COUNT * 12345.0, COUNT * 678.0);
    assert_eq!(flow(&metrics, &here, "client", peer, port), [up, down, COUNT]);
    assert_eq!(flow(&metrics, &there, "server", peer, port), [down, up, COUNT]);
    for cgroup in [&here, &there] {
        let w = cgroup.labels();
        // No other flow.
        assert_eq!(metrics.find("siskin_flow_sent_bytes_total", &w).count(), 1);
        assert_eq!(metrics.sum("siskin_tcp_connections_failed_total", &w), 0.0);
    }
}

#[test]
fn connections_and_bytes_belong_to_the_cgroup_of_each_end() {
    exchange("127.0.0.1", "127.0.0.1", "127.0.0.1");
}

#[test]
fn ipv6_connections_and_bytes_belong_to_the_cgroup_of_each_end() {
    exchange("[::1]", "[::1]", "::1");
}

#[test]
fn ipv4_mapped_ipv6_sockets_have_a_plain_ipv4_peer() {
    exchange("[::]", "[::ffff:127.0.0.1]", "127.0.0.1");
}

#[test]
fn an_ipv6_listener_shows_an_ipv4_client_as_ipv4() {
    exchange("[::]", "127.0.0.1", "127.0.0.1");
}

#[test]
fn a_socket_stays_with_the_cgroup_that_made_it_when_its_process_moves() {
    let (first, second) = (Cgroup::new("first"), Cgroup::new("second"));
    let agent = Agent::start(&[]);
    let mut maker = load(&first);
    let port = maker.ask("listen 127.0.0.1:0");
    let old = maker.ask(format!("connect 127.0.0.1:{port}"));
    maker.ask(format!("accept {port}"));
    maker.move_to(&second);
    maker.ask(format!("send {old} 1000"));
    let new = maker.ask(format!("connect 127.0.0.1:{port}"));
    maker.ask(format!("accept {port}"));
    maker.ask(format!("send {new} 10"));
    let metrics = agent.scrape_until(|m| opened(m, &first)[1] == 2.0);
    // Accepted sockets are the listener's.
    assert_eq!(opened(&metrics, &first), [1.0, 2.0]);
    assert_eq!(opened(&metrics, &second), [1.0, 0.0]);
    assert_eq!(flow(&metrics, &first, "client", "127.0.0.1", port), [1000.0, 0.0, 1.0]);
    assert_eq!(flow(&metrics, &second, "client", "127.0.0.1", port), [10.0, 0.0, 1.0]);
    assert_eq!(flow(&metrics, &first, "server", "127.0.0.1", port), [0.0, 1010.0, 2.0]);
}

#[test]
fn every_network_namespace_is_counted() {
    let cgroups = [Cgroup::new("netns-a"), Cgroup::new("netns-b")];
    let agent = Agent::start(&[]);
    let mut loads = [load(&cgroups[0]), load(&cgroups[1])];
    // The same address and port in both.
    for (load, count) in loads.iter_mut().zip([20, 30]) {
        load.ask("netns");
        assert_eq!(load.ask("listen 127.0.0.1:7000"), 7000);
        for _ in 0..count {
            let client = load.ask("connect 127.0.0.1:7000");
            let server = load.ask("accept 7000");
            load.ask(format!("send {client} {count}"));
            load.ask(format!("receive {server} {count}"));
            load.ask(format!("send {server} 5"));
            load.ask(format!("receive {client} 5"));
            load.ask(format!("close {client}"));
            load.ask(format!("close {server}"));
        }
    }
    for (cgroup, count) in cgroups.iter().zip([20.0, 30.0]) {
        let metrics = agent.scrape_until(|m| opened(m, cgroup) == [count; 2] && open(m, cgroup) == [0.0; 2]);
        assert_eq!(opened(&metrics, cgroup), [count; 2]);
        assert_eq!(open(&metrics, cgroup), [0.0; 2]);
        let (up, down) = (count * count, count * 5.0);
        assert_eq!(flow(&metrics, cgroup, "client", "127.0.0.1", 7000), [up, down, count]);
        assert_eq!(flow(&metrics, cgroup, "server", "127.0.0.1", 7000), [down, up, count]);
    }
}

#[test]
fn connections_between_two_network_namespaces_are_counted_at_both_ends() {
    const COUNT: f64 = 30.0;
    let (here, there) = (Cgroup::new("near"), Cgroup::new("far"));
    let agent = Agent::start(&[]);
    let (mut client, mut server) = (load(&here), load(&there));
    client.ask("netns");
    server.ask("netns");
    client.ask(format!("cable siskin {}", server.pid()));
    client.ask("address siskin 192.0.2.1");
    server.ask("address siskin 192.0.2.2");
    server.ask("listen 192.0.2.2:7000");
    server.tell(format!("serve 7000 {COUNT} 12345 678"));
    client.ask(format!("exchange 192.0.2.2:7000 {COUNT} 12345 678"));
    server.answer();
    let over = |m: &_| [open(m, &here), open(m, &there)].concat() == [0.0; 4];
    let metrics = agent.scrape_until(over);
    assert!(over(&metrics));
    assert_eq!(opened(&metrics, &here), [COUNT, 0.0]);
    assert_eq!(opened(&metrics, &there), [0.0, COUNT]);
    let (up, down) = (COUNT * 12345.0, COUNT * 678.0);
    assert_eq!(flow(&metrics, &here, "client", "192.0.2.2", 7000), [up, down, COUNT]);
    assert_eq!(flow(&metrics, &there, "server", "192.0.2.1", 7000), [down, up, COUNT]);
}

#[test]
fn live_connections_are_exact_at_every_scrape() {
    let (here, there) = (Cgroup::new("client"), Cgroup::new("server"));
    let agent = Agent::start(&[]);
    let (mut client, mut server) = (load(&here), load(&there));
    let port = server.ask("listen 127.0.0.1:0");
    let mut pairs = Vec::new();
    for _ in 0..10 {
        let end = client.ask(format!("connect 127.0.0.1:{port}"));
        pairs.push((end, server.ask(format!("accept {port}"))));
    }
    let (mut up, mut down) = (0.0, 0.0);
    for round in 1..=3 {
        for (end, other) in &pairs {
            client.ask(format!("send {end} {}", round * 1111));
            server.ask(format!("receive {other} {}", round * 1111));
            server.ask(format!("send {other} {round}"));
            client.ask(format!("receive {end} {round}"));
        }
        up += 10.0 * 1111.0 * f64::from(round);
        down += 10.0 * f64::from(round);
        // Once is enough: both ends have what was sent.
        let metrics = agent.scrape();
        assert_eq!(flow(&metrics, &here, "client", "127.0.0.1", port), [up, down, 10.0], "{round}");
        assert_eq!(flow(&metrics, &there, "server", "127.0.0.1", port), [down, up, 10.0], "{round}");
        assert_eq!(open(&metrics, &here), [10.0, 0.0]);
        assert_eq!(open(&metrics, &there), [0.0, 10.0]);
    }
    for (end, other) in pairs {
        client.ask(format!("close {end}"));
        server.ask(format!("end {other}"));
        server.ask(format!("close {other}"));
    }
    let over = |m: &_| [open(m, &here), open(m, &there)].concat() == [0.0; 4];
    let metrics = agent.scrape_until(over);
    assert!(over(&metrics));
    assert_eq!(opened(&metrics, &here), [10.0, 0.0]);
    assert_eq!(opened(&metrics, &there), [0.0, 10.0]);
    assert_eq!(flow(&metrics, &here, "client", "127.0.0.1", port), [up, down, 10.0]);
    assert_eq!(flow(&metrics, &there, "server", "127.0.0.1", port), [down, up, 10.0]);
}

#[test]
fn a_fin_is_not_a_byte_while_half_closed_nor_after() {
    let cgroup = Cgroup::new("fin");
    let agent = Agent::start(&[]);
    let mut both = load(&cgroup);
    let port = both.ask("listen 127.0.0.1:0");
    let client = both.ask(format!("connect 127.0.0.1:{port}"));
    let server = both.ask(format!("accept {port}"));
    both.ask(format!("send {client} 100"));
    both.ask(format!("finish {client}"));
    both.ask(format!("receive {server} 100"));
    both.ask(format!("end {server}"));
    let (mut sent, peer) = (0.0, "127.0.0.1");
    for bytes in [70_000.0, 1.0] {
        both.ask(format!("send {server} {bytes}"));
        both.ask(format!("receive {client} {bytes}"));
        sent += bytes;
        let metrics = agent.scrape();
        assert_eq!(open(&metrics, &cgroup), [1.0; 2]);
        assert_eq!(flow(&metrics, &cgroup, "client", peer, port), [100.0, sent, 1.0]);
        assert_eq!(flow(&metrics, &cgroup, "server", peer, port), [sent, 100.0, 1.0]);
    }
    // The second FIN ends both ends.
    both.ask(format!("close {server}"));
    both.ask(format!("end {client}"));
    both.ask(format!("close {client}"));
    let metrics = agent.scrape_until(|m| open(m, &cgroup) == [0.0; 2]);
    assert_eq!(open(&metrics, &cgroup), [0.0; 2]);
    assert_eq!(flow(&metrics, &cgroup, "client", peer, port), [100.0, sent, 1.0]);
    assert_eq!(flow(&metrics, &cgroup, "server", peer, port), [sent, 100.0, 1.0]);
}

#[test]
fn a_byte_sent_again_is_counted_once_and_its_segment_is_a_retransmit() {
    let (here, there) = (Cgroup::new("client"), Cgroup::new("server"));
    let agent = Agent::start(&[]);
    let (mut client, mut server) = (load(&here), load(&there));
    let port = server.ask("listen 127.0.0.1:0");
    let end = client.ask(format!("connect 127.0.0.1:{port}"));
    let other = server.ask(format!("accept {port}"));
    server.ask(format!("deaf {other}"));
    client.ask(format!("send {end} 1000"));
    let flow_of = |m: &_| flow(m, &here, "client", "127.0.0.1", port);
    // Exact also while the segment is lost and sent again.
    let again = |m: &Metrics| m.one("siskin_tcp_retransmits_total", &here.labels());
    let metrics = agent.scrape_until(|m| again(m) >= 2.0);
    assert!(again(&metrics) >= 2.0);
    assert_eq!(flow_of(&metrics), [1000.0, 0.0, 1.0]);
    assert_eq!(flow(&metrics, &there, "server", "127.0.0.1", port), [0.0, 0.0, 1.0]);
    server.ask(format!("hear {other}"));
    server.ask(format!("receive {other} 1000"));
    let acknowledged = (0..5000).any(|_| {
        thread::sleep(Duration::from_millis(1));
        client.ask(format!("unacknowledged {end}")) == 0
    });
    assert!(acknowledged);
    let truth = client.ask(format!("retransmits {end}")) as f64;
    client.ask(format!("close {end}"));
    server.ask(format!("end {other}"));
    server.ask(format!("close {other}"));
    let metrics = agent.scrape_until(|m| open(m, &here) == [0.0; 2] && open(m, &there) == [0.0; 2]);
    assert_eq!(again(&metrics), truth);
    assert_eq!(metrics.sum("siskin_flow_retransmits_total", &here.labels()), truth);
    assert_eq!(metrics.sum("siskin_flow_retransmits_total", &there.labels()), 0.0);
    assert_eq!(flow_of(&metrics), [1000.0, 0.0, 1.0]);
    assert_eq!(flow(&metrics, &there, "server", "127.0.0.1", port), [0.0, 1000.0, 1.0]);
}
