//! The flow table against more flows than it has rows, and what it makes of peers.

use std::{
    collections::{HashMap, HashSet},
    net::UdpSocket,
    os::unix::fs::symlink,
    process::Stdio,
    thread,
    time::Duration,
};

use siskin_tests::{
    agent::Agent,
    cgroup::Cgroup,
    metrics::{Metrics, Sample},
    pair::{Pair, SUMS, minus, moved, plus},
    tcp::{Load, flow},
    udp::{Traffic, client, in_network, owned_by, pass, server},
};

fn load(cgroup: &Cgroup) -> Load {
    Load::start(cgroup.command(env!("CARGO_BIN_EXE_load")))
}

fn label<'a>(sample: &'a Sample, name: &str) -> &'a str {
    sample.labels.iter().find(|(label, _)| label == name).map_or("", |(_, value)| value)
}

/// A name and its labels.
type Series<'a> = (&'a str, &'a [(String, String)]);

/// The series of flows, all but what departed.
fn rows(metrics: &Metrics) -> HashMap<Series<'_>, f64> {
    let flows = metrics.samples.iter().filter(|sample| {
        sample.name.starts_with("siskin_flow_")
            && !sample.labels.is_empty()
            && !label(sample, "peer").starts_with("departed-")
    });
    flows.map(|sample| ((sample.name.as_str(), sample.labels.as_slice()), sample.value)).collect()
}

/// The flows that have rows of their own: role and port.
fn ports(metrics: &Metrics) -> HashSet<(String, u64)> {
    let own = metrics.find(SUMS[0], &[]).filter(|sample| label(sample, "port") != "0");
    own.map(|sample| (label(sample, "role").to_owned(), label(sample, "port").parse().expect("a port")))
        .collect()
}

/// What a scraper saw over time: asserts with each scrape that nothing fell.
#[derive(Default)]
struct Scraper {
    last: Metrics,
    /// Series that went between two scrapes.
    gone: usize,
}

impl Scraper {
    fn sees(&mut self, metrics: Metrics) {
        let (before, after) = (rows(&self.last), rows(&metrics));
        for (series, value) in &before {
            match after.get(series) {
                Some(now) => assert!(now >= value, "{series:?} fell from {value} to {now}"),
                None => self.gone += 1,
            }
        }
        drop((before, after));
        self.last = metrics;
    }
}

#[test]
fn the_sum_over_ten_times_more_flows_than_rows_is_exact_while_the_busiest_change() {
    const ROWS: usize = 100;
    const PORTS: usize = 500;
    let (here, there) = (Cgroup::new("client"), Cgroup::new("server"));
    let mut pair = Pair::start(&["--flows.max-series=100", "--series.min-idle=0s"], [&here, &there]);
    let (mut client, mut server) = (load(&here), load(&there));
    let ports_of: Vec<_> = (0..PORTS).map(|_| server.ask("listen 127.0.0.1:0")).collect();
    let mut exchange = |port: u64, up: u64, down: u64| {
        server.tell(format!("serve {port} 1 {up} {down}"));
        client.ask(format!("exchange 127.0.0.1:{port} 1 {up} {down}"));
        server.answer();
        moved(up, down, 1)
    };
    let mut scraper = Scraper::default();
    let (base, metrics) = pair.read();
    scraper.sees(metrics);
    let mut expected = [0.0; 6];
    for (round, busy) in ports_of.chunks(30).take(5).enumerate() {
        // Both ends of these are far busier than all else, in turn; everything else talks too.
        for step in 0..3 {
            for port in busy {
                expected = plus(expected, exchange(*port, 200_000 << round, 1000 + step));
            }
            let (total, metrics) = pair.read();
            assert_eq!(minus(total, base), expected, "round {round}, step {step}");
            scraper.sees(metrics);
        }
        for (index, port) in ports_of.iter().enumerate() {
            expected = plus(expected, exchange(*port, index as u64 % 7, 100 + index as u64));
        }
        let (total, metrics) = pair.read();
        assert_eq!(minus(total, base), expected, "round {round}");
        let with_rows = ports(&metrics);
        for port in busy {
            for role in ["client", "server"] {
                assert!(
                    with_rows.contains(&(role.to_owned(), *port)),
                    "round {round}: {role} {port} has no row"
                );
            }
        }
        assert!(with_rows.len() <= ROWS, "{}", with_rows.len());
        // Four more hold the rest, and four more what departed.
        assert!(metrics.one("siskin_flow_series", &[]) <= ROWS as f64 + 8.0);
        scraper.sees(metrics);
    }
    let departures = scraper.last.one("siskin_flow_departures_total", &[]);
    println!(
        "{} flows, {ROWS} rows, {departures} departures, {} series went: sums {:?}",
        2 * PORTS,
        scraper.gone,
        expected
    );
    assert!(departures >= 60.0 && scraper.gone >= 60 * 4, "the busiest changed");
    let departed: Vec<_> =
        scraper.last.find(SUMS[0], &[]).filter(|row| label(row, "peer").starts_with("departed-")).collect();
    assert!((1..=4).contains(&departed.len()), "{departed:#?}");
}

#[test]
fn an_idle_flow_leaves_after_its_last_value_was_served_and_continues_when_it_returns() {
    let (here, there) = (Cgroup::new("client"), Cgroup::new("server"));
    let mut pair = Pair::start(&["--series.max-idle=3s"], [&here, &there]);
    let (mut client, mut server) = (load(&here), load(&there));
    let port = server.ask("listen 127.0.0.1:0");
    let mut exchange = || {
        server.tell(format!("serve {port} 1 500 20"));
        client.ask(format!("exchange 127.0.0.1:{port} 1 500 20"));
        server.answer();
    };
    let ends = |metrics: &Metrics| {
        let of = |cgroup, role| flow(metrics, cgroup, role, "127.0.0.1", port);
        [of(&here, "client"), of(&there, "server")]
    };
    let (base, _) = pair.read();
    exchange();
    // Nobody scrapes for longer than a row may be idle: it has to be served all the same.
    thread::sleep(Duration::from_millis(3500));
    let (total, metrics) = pair.read();
    assert_eq!(minus(total, base), moved(500, 20, 1));
    assert_eq!(ends(&metrics), [[500.0, 20.0, 1.0], [20.0, 500.0, 1.0]]);
    thread::sleep(Duration::from_millis(3500));
    // Served once more, and then gone.
    pair.read();
    let (total, metrics) = pair.read();
    assert_eq!(minus(total, base), moved(500, 20, 1));
    assert_eq!(ends(&metrics), [[0.0; 3]; 2]);
    let departed = |metrics: &Metrics| {
        let rows = metrics.find(SUMS[0], &[]).filter(|row| label(row, "peer").starts_with("departed-"));
        rows.map(|row| row.value).sum::<f64>()
    };
    assert!(departed(&metrics) >= 520.0);
    exchange();
    let (total, metrics) = pair.read();
    assert_eq!(minus(total, base), moved(1000, 40, 2));
    assert_eq!(ends(&metrics), [[1000.0, 40.0, 2.0], [40.0, 1000.0, 2.0]]);
}

#[test]
fn the_sum_over_ten_times_more_udp_flows_than_rows_is_exact_at_ratio_1() {
    let cgroup = Cgroup::new("udp-overflow");
    let flags = ["--flows.max-series=20", "--series.min-idle=0s", "--no-collector.tcp"];
    let small = Agent::start(&flags);
    let large = Agent::start(&["--flows.max-series=2000", "--no-collector.tcp"]);
    // Others on this machine may talk too: what the large agent saw of them is in the small one's sums.
    let all = |agent: &Agent| {
        let metrics = agent.scrape();
        (Traffic::seen(&metrics, &[]), Traffic::seen(&metrics, &cgroup.labels()), metrics)
    };
    let pairs = in_network(|| {
        let pair = |port| {
            let server = owned_by(&cgroup, || server(&format!("127.0.0.1:{port}")));
            let client = owned_by(&cgroup, || client(server.local_addr().expect("an address")));
            server.connect(client.local_addr().expect("an address")).expect("a way to the client");
            (client, server)
        };
        (4000..4100).map(pair).collect::<Vec<(UdpSocket, UdpSocket)>>()
    });
    let mut scraper = Scraper::default();
    let mut expected = Traffic::default();
    for round in 0..5 {
        for (index, (client, server)) in pairs.iter().enumerate() {
            let busy = index / 4 == round;
            let sizes = vec![if busy { 20_000 } else { 10 + index }; if busy { 40 } else { 1 }];
            let moved = pass(client, server, sizes);
            expected.sent += moved;
            expected.received += moved;
        }
        for attempt in 0.. {
            let (foreign, ours, _) = all(&large);
            let (total, _, metrics) = all(&small);
            let (again, _, _) = all(&large);
            assert_eq!(ours, expected, "the large table holds all flows of the test");
            if foreign == again {
                assert_eq!(total - (foreign - ours), expected, "round {round}");
                scraper.sees(metrics);
                break;
            }
            assert!(attempt < 100, "this machine is never quiet");
        }
    }
    let departures = scraper.last.one("siskin_flow_departures_total", &[]);
    println!("200 flows, 20 rows, {departures} departures: {expected:?}");
    assert!(departures >= 4.0, "the busiest changed");
    assert!(scraper.last.one("siskin_flow_series", &[]) <= 24.0);
}

/// Bytes that the client's end sent, by `peer`, after three exchanges with servers at other addresses.
fn peers(flags: &[&str], expected: &[(&str, f64)]) {
    let (here, there) = (Cgroup::new("client"), Cgroup::new("server"));
    let agent = Agent::start(flags);
    let (mut client, mut server) = (load(&here), load(&there));
    let mut ports = Vec::new();
    for (address, bytes) in [("127.0.1.7:0", 1000), ("127.0.2.9:0", 200), ("[::1]:0", 30)] {
        let port = server.ask(format!("listen {address}"));
        let to = address.replace(":0", &format!(":{port}"));
        server.tell(format!("serve {port} 1 {bytes} 4"));
        client.ask(format!("exchange {to} 1 {bytes} 4"));
        server.answer();
        ports.push(port);
    }
    let metrics = agent.scrape();
    for (peer, bytes) in expected {
        let labels = [&here.labels()[..], &[("peer", *peer), ("role", "client")]].concat();
        assert_eq!(metrics.sum(SUMS[0], &labels), *bytes, "{peer}");
    }
    let total: f64 = expected.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(metrics.sum(SUMS[0], &here.labels()), total, "there are no other peers");
    // The service port is the same at both ends, whatever is shown of the peer.
    for (port, bytes) in ports.iter().zip([1000.0, 200.0, 30.0]).filter(|_| total > 0.0) {
        let port = port.to_string();
        let sent =
            metrics.sum(SUMS[0], &[&here.labels()[..], &[("role", "client"), ("port", &port)]].concat());
        let received =
            metrics.sum(SUMS[1], &[&there.labels()[..], &[("role", "server"), ("port", &port)]].concat());
        assert_eq!((sent, received), (bytes, bytes));
    }
}

#[test]
fn a_peer_is_shown_as_the_flags_say() {
    peers(&[], &[("127.0.1.7", 1000.0), ("127.0.2.9", 200.0), ("::1", 30.0)]);
    let prefix = ["--flows.peer=prefix", "--flows.peer-prefix-v6=48"];
    peers(&prefix, &[("127.0.1.0/24", 1000.0), ("127.0.2.0/24", 200.0), ("::/48", 30.0)]);
    peers(
        &["--flows.peer=prefix", "--flows.peer-prefix-v4=16"],
        &[("127.0.0.0/16", 1200.0), ("::/64", 30.0)],
    );
    peers(&["--flows.peer=class"], &[("loopback", 1230.0)]);
    peers(&["--flows.peer=none"], &[("", 1230.0)]);
    let ranges =
        ["--flows.peer=none", "--flows.peer-range=lab=127.0.0.0/16", "--flows.peer-range=desk=127.0.2.9/32"];
    peers(&ranges, &[("lab", 1000.0), ("desk", 200.0), ("", 30.0)]);
}

#[test]
fn without_loopback_its_bytes_are_in_the_other_row() {
    peers(&["--no-flows.loopback"], &[]);
    let (here, there) = (Cgroup::new("client"), Cgroup::new("server"));
    let mut pair = Pair::start(&["--no-flows.loopback"], [&here, &there]);
    let (mut client, mut server) = (load(&here), load(&there));
    let port = server.ask("listen 127.0.0.1:0");
    let (base, _) = pair.read();
    server.tell(format!("serve {port} 20 1000 50"));
    client.ask(format!("exchange 127.0.0.1:{port} 20 1000 50"));
    server.answer();
    let (total, metrics) = pair.read();
    assert_eq!(minus(total, base), moved(20_000, 1000, 20));
    assert_eq!(flow(&metrics, &here, "client", "127.0.0.1", port), [0.0; 3]);
}

#[test]
fn command_names_make_room_for_busier_ones_and_their_sum_is_exact() {
    let cgroup = Cgroup::new("comm");
    let flags = ["--process.max-comms=4", "--series.min-idle=0s"];
    let small = Agent::start(&flags);
    let large = Agent::start(&["--process.max-comms=2000"]);
    let directory = std::env::temp_dir().join(format!("siskin-comm-{}", std::process::id()));
    std::fs::create_dir(&directory).expect("a directory of our own");
    let run = |name: &str, times: u32| {
        let path = directory.join(name);
        // It ends with its input. A shell that is also `true` would not be that by another name.
        if !path.exists() {
            symlink(env!("CARGO_BIN_EXE_load"), &path).expect("another name of the load maker");
        }
        for _ in 0..times {
            let mut command = cgroup.command(path.to_str().expect("a path"));
            let status = command.stdin(Stdio::null()).status().expect("it runs");
            assert!(status.success());
        }
    };
    let name = "siskin_process_comm_execs_total";
    // Both at once, while nobody else starts anything.
    let both = || {
        for _ in 0..100 {
            let before = large.scrape();
            let metrics = small.scrape();
            let all = large.scrape().sum(name, &[]);
            if before.sum(name, &[]) == all {
                return (metrics.sum(name, &[]), all, metrics);
            }
        }
        panic!("this machine is never quiet");
    };
    let (small_base, large_base, mut last) = both();
    for round in 0..4 {
        // Forty names, each of them once; two of them, others in every round, more often than any before.
        for index in 0..40 {
            run(&format!("sk-{round}-{index}"), if index < 2 { 30 * (round + 1) } else { 1 });
        }
        let (sum, all, metrics) = both();
        assert_eq!(sum - small_base, all - large_base, "round {round}");
        assert!(sum - small_base >= f64::from(98 * (round + 1)), "{sum}");
        assert!(metrics.find(name, &[]).count() <= 6);
        last = metrics;
        run(&format!("sk-{round}-0"), 1);
        let metrics = small.scrape();
        assert!(metrics.one(name, &[("comm", &format!("sk-{round}-0"))]) >= 1.0, "the busiest have rows");
    }
    std::fs::remove_dir_all(&directory).expect("our own directory");
    let departed = last.find(name, &[]).filter(|row| label(row, "comm").starts_with("departed-")).count();
    assert_eq!(departed, 1);
}
