//! The UDP probe against traffic that the tests make, every event taken: each datagram and each byte must be there once.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixDatagram,
    thread,
    time::{Duration, Instant},
};

use siskin_tests::{
    agent::Agent,
    cgroup::Cgroup,
    guest::is_guest,
    metrics::{Metrics, Sample},
    udp::{
        Moved, Traffic, client, in_network, keep_errors, owned_by, pair, pass, pass_at_once, receive, server,
        wait_for_error,
    },
};

const NOTHING: Moved = moved(0, 0);

const fn moved(datagrams: u64, bytes: u64) -> Moved {
    Moved { datagrams, bytes }
}

const fn traffic(sent: Moved, received: Moved) -> Traffic {
    Traffic { sent, received }
}

/// All that sockets of a cgroup moved, whichever flow it was in.
fn in_all(metrics: &Metrics, cgroup: &Cgroup) -> Traffic {
    Traffic::seen(metrics, &cgroup.labels())
}

/// A client and a server that talk both ways; what each moved must be in the flow of its end.
fn both_ends(address: &str, client_peer: &str, server_peer: &str) {
    let (agent, cgroup) = (Agent::start(&["--debug.sampling-period=1"]), Cgroup::new("udp"));
    let (asked, answered) = in_network(|| {
        let (client, server) = owned_by(&cgroup, || pair(address));
        (pass(&client, &server, (1..=400).map(|n| n * 3)), pass(&server, &client, (1..=250).map(|n| n * 31)))
    });
    assert_eq!((asked, answered), (moved(400, 240_600), moved(250, 972_625)));
    let metrics = agent.scrape();
    let of = |role, peer| Traffic::of_flow(&metrics, &cgroup, role, peer, 4001);
    assert_eq!(of("client", client_peer), traffic(asked, answered));
    assert_eq!(of("server", server_peer), traffic(answered, asked));
    let total = moved(650, 1_213_225);
    assert_eq!(in_all(&metrics, &cgroup), traffic(total, total), "there are no other flows");
    assert_eq!(metrics.one("siskin_sampling_ratio", &[("probe", "udp")]), 1.0);
    for metric in ["siskin_flow_datagrams_total", "siskin_flow_sent_bytes_total"] {
        assert_eq!(metrics.one("siskin_estimate_standard_error", &[("metric", metric)]), 0.0, "{metric}");
    }
}

#[test]
fn every_datagram_and_byte_is_in_the_flow_of_both_ends() {
    both_ends("127.0.0.2:4001", "127.0.0.2", "127.0.0.1");
}

#[test]
fn every_datagram_and_byte_over_ipv6_is_in_the_flow_of_both_ends() {
    both_ends("[::1]:4001", "::1", "::1");
}

#[test]
fn a_peer_that_is_ipv4_inside_ipv6_is_shown_as_ipv4_in_one_flow_with_it() {
    let (agent, cgroup) = (Agent::start(&[]), Cgroup::new("mapped"));
    in_network(|| {
        owned_by(&cgroup, || {
            let server = server("127.0.0.2:4001");
            let plain = client(server.local_addr().expect("an address"));
            let mapped = client("[::ffff:127.0.0.2]:4001".parse().expect("an address"));
            pass(&plain, &server, [100; 7]);
            pass(&mapped, &server, [1000; 5]);
        });
    });
    let metrics = agent.scrape();
    let of = |role, peer| Traffic::of_flow(&metrics, &cgroup, role, peer, 4001);
    assert_eq!(of("client", "127.0.0.2"), traffic(moved(12, 5700), NOTHING));
    assert_eq!(of("server", "unknown"), traffic(NOTHING, moved(12, 5700)));
    let total = moved(12, 5700);
    assert_eq!(in_all(&metrics, &cgroup), traffic(total, total), "there are no other flows");
}

#[test]
fn each_end_is_charged_to_the_cgroup_that_made_its_socket_whoever_uses_it() {
    let agent = Agent::start(&[]);
    let [asks, answers, uses] = ["asks", "answers", "uses"].map(Cgroup::new);
    let (asked, answered) = in_network(|| {
        let server = owned_by(&answers, || server("127.0.0.1:4001"));
        let client = owned_by(&asks, || client(server.local_addr().expect("an address")));
        server.connect(client.local_addr().expect("an address")).expect("a way to the client");
        owned_by(&uses, || (pass(&client, &server, [10; 60]), pass(&server, &client, [2000; 20])))
    });
    let metrics = agent.scrape();
    let client = Traffic::of_flow(&metrics, &asks, "client", "127.0.0.1", 4001);
    let server = Traffic::of_flow(&metrics, &answers, "server", "127.0.0.1", 4001);
    assert_eq!((client, in_all(&metrics, &asks)), (traffic(asked, answered), traffic(asked, answered)));
    assert_eq!((server, in_all(&metrics, &answers)), (traffic(answered, asked), traffic(answered, asked)));
    assert_eq!(in_all(&metrics, &uses), Traffic::default());
}

#[test]
fn sockets_that_are_not_connected_have_an_unknown_peer_and_clients_among_them_no_port() {
    let (agent, cgroup) = (Agent::start(&[]), Cgroup::new("unconnected"));
    in_network(|| {
        owned_by(&cgroup, || {
            let servers = [server("127.0.0.1:4001"), server("127.0.0.1:4002")];
            // The kernel chooses the port at the first datagram, or at a bind to port 0.
            let clients = [any_port(), UdpSocket::bind("127.0.0.1:0").expect("a port")];
            let mut buffer = [0; 100];
            for client in &clients {
                for (server, size) in servers.iter().zip([30, 70]) {
                    let to = server.local_addr().expect("an address");
                    assert_eq!(client.send_to(&buffer[..size], to).expect("a datagram is sent"), size);
                    let (got, from) = server.recv_from(&mut buffer).expect("a datagram comes");
                    assert_eq!(got, size);
                    assert_eq!(server.send_to(&buffer[..1], from).expect("an answer is sent"), 1);
                    assert_eq!(client.recv(&mut buffer).expect("an answer comes"), 1);
                }
            }
        });
    });
    let metrics = agent.scrape();
    let of = |role, port| Traffic::of_flow(&metrics, &cgroup, role, "unknown", port);
    assert_eq!(of("client", 0), traffic(moved(4, 200), moved(4, 4)));
    assert_eq!(of("server", 4001), traffic(moved(2, 2), moved(2, 60)));
    assert_eq!(of("server", 4002), traffic(moved(2, 2), moved(2, 140)));
    let total = moved(8, 204);
    assert_eq!(in_all(&metrics, &cgroup), traffic(total, total), "there are no other flows");
}

/// A socket without an address.
fn any_port() -> UdpSocket {
    use std::os::fd::FromRawFd as _;
    // SAFETY: a new descriptor, which is ours.
    unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        UdpSocket::from_raw_fd(fd)
    }
}

#[test]
fn each_datagram_of_a_call_that_moves_many_is_counted() {
    let (agent, cgroup) = (Agent::start(&[]), Cgroup::new("mmsg"));
    let sizes: Vec<_> = (1..=16).map(|n| n * 50).collect();
    in_network(|| {
        let (client, server) = owned_by(&cgroup, || pair("127.0.0.1:4001"));
        (0..20).for_each(|_| pass_at_once(&client, &server, &sizes));
    });
    let metrics = agent.scrape();
    let all = moved(320, 20 * 136 * 50);
    let of = |role| Traffic::of_flow(&metrics, &cgroup, role, "127.0.0.1", 4001);
    assert_eq!(of("client"), traffic(all, NOTHING));
    assert_eq!(of("server"), traffic(NOTHING, all));
}

#[test]
fn an_empty_datagram_is_a_datagram_without_bytes_and_the_largest_has_all_its_bytes() {
    let (agent, cgroup) = (Agent::start(&[]), Cgroup::new("sizes"));
    in_network(|| {
        let (client, server) = owned_by(&cgroup, || pair("127.0.0.1:4001"));
        pass(&client, &server, [0; 35]);
        pass(&server, &client, [0, 65_507, 1]);
    });
    let metrics = agent.scrape();
    let of = |role| Traffic::of_flow(&metrics, &cgroup, role, "127.0.0.1", 4001);
    assert_eq!(of("client"), traffic(moved(35, 0), moved(3, 65_508)));
    assert_eq!(of("server"), traffic(moved(3, 65_508), moved(35, 0)));
}

#[test]
fn a_datagram_that_is_looked_at_first_is_received_once_with_the_bytes_that_were_wanted() {
    let (agent, cgroup) = (Agent::start(&[]), Cgroup::new("peek"));
    in_network(|| {
        let (client, server) = owned_by(&cgroup, || pair("127.0.0.1:4001"));
        for _ in 0..25 {
            client.send(&[0; 500]).expect("a datagram is sent");
            assert_eq!(server.peek(&mut [0; 500]).expect("a datagram came"), 500);
            assert_eq!(receive(&server, 10, libc::MSG_PEEK | libc::MSG_TRUNC).expect("it is there"), 500);
            // The rest of it is thrown away.
            assert_eq!(receive(&server, 200, 0).expect("it is there"), 200);
        }
    });
    let metrics = agent.scrape();
    let of = |role| Traffic::of_flow(&metrics, &cgroup, role, "127.0.0.1", 4001);
    assert_eq!(of("client"), traffic(moved(25, 12_500), NOTHING));
    assert_eq!(of("server"), traffic(NOTHING, moved(25, 5000)));
}

#[test]
fn calls_that_fail_are_not_counted_and_neither_is_what_comes_back_of_a_datagram() {
    let (agent, cgroup) = (Agent::start(&[]), Cgroup::new("fail"));
    let (sent, refused) = in_network(|| {
        let (client, silent) = owned_by(&cgroup, || {
            let silent = client("127.0.0.1:4001".parse().expect("an address"));
            (client("127.0.0.1:4002".parse().expect("an address")), silent)
        });
        let (mut sent, mut refused) = (0, 0);
        for _ in 0..40 {
            // Nobody is there: every other call is told so, by the answer to the datagram before it.
            match client.send(&[0; 100]) {
                Ok(100) => {
                    sent += 1;
                    wait_for_error(&client);
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => refused += 1,
                result => panic!("{result:?}"),
            }
        }
        assert_eq!(client.send(&[0; 70_000]).expect_err("too long").raw_os_error(), Some(libc::EMSGSIZE));
        // What was sent to nobody can be had back, with its payload.
        keep_errors(&silent);
        silent.send(&[0; 300]).expect("a datagram is sent");
        assert!(wait_for_error(&silent), "nothing came back");
        assert_eq!(receive(&silent, 1000, libc::MSG_ERRQUEUE).expect("it comes back"), 300);
        silent.set_nonblocking(true).expect("a mode");
        let _ = silent.take_error();
        assert_eq!(silent.recv(&mut [0; 10]).expect_err("nothing").kind(), ErrorKind::WouldBlock);
        (sent, refused)
    });
    println!("{sent} sent, {refused} refused");
    assert!(sent > 0 && refused > 0);
    let metrics = agent.scrape();
    let of = |port| Traffic::of_flow(&metrics, &cgroup, "client", "127.0.0.1", port);
    assert_eq!(of(4002), traffic(moved(sent, sent * 100), NOTHING));
    assert_eq!(of(4001), traffic(moved(1, 300), NOTHING));
}

#[test]
fn tcp_unix_and_raw_sockets_are_no_udp_traffic() {
    let (agent, cgroup) = (Agent::start(&[]), Cgroup::new("not-udp"));
    in_network(|| {
        owned_by(&cgroup, || {
            let listener = TcpListener::bind("127.0.0.1:4001").expect("the port is free");
            let mut client = TcpStream::connect("127.0.0.1:4001").expect("a connection");
            let (mut server, _) = listener.accept().expect("a connection");
            let (one, other) = UnixDatagram::pair().expect("a pair");
            for _ in 0..50 {
                client.write_all(&[0; 100]).expect("bytes are sent");
                server.read_exact(&mut [0; 100]).expect("bytes come");
                one.send(&[0; 100]).expect("a datagram is sent");
                other.recv(&mut [0; 100]).expect("a datagram comes");
            }
            send_raw([127, 0, 0, 1], 50);
        });
    });
    let metrics = agent.scrape();
    assert_eq!(in_all(&metrics, &cgroup), Traffic::default());
    // The sockets were seen.
    let labels = [&cgroup.labels()[..], &[("protocol", "tcp")]].concat();
    assert_eq!(metrics.sum("siskin_flow_sent_bytes_total", &labels), 5000.0);
}

#[test]
fn a_tcp_request_and_its_answer_run_no_program_where_udp_sits_on_functions() {
    const EXCHANGES: usize = 2000;
    let agent = Agent::start(&["--debug.program-stats"]);
    let on_functions = [("hook", "fexit/udp_sendmsg"), ("state", "attached")];
    let runs = |metrics: &Metrics, beginnings: &[&str]| {
        let is_of = |sample: &&Sample| {
            let program = sample.labels.iter().find(|(label, _)| label == "program");
            program.is_some_and(|(_, name)| beginnings.iter().any(|of| name.starts_with(of)))
        };
        let runs = metrics.find("siskin_kernel_statistics_runs_total", &[]).filter(is_of);
        runs.map(|sample| sample.value).sum::<f64>()
    };
    let before = agent.scrape();
    in_network(|| {
        let listener = TcpListener::bind("127.0.0.1:4001").expect("the port is free");
        let mut client = TcpStream::connect("127.0.0.1:4001").expect("a connection");
        let (mut server, _) = listener.accept().expect("a connection");
        for _ in 0..EXCHANGES {
            client.write_all(&[0; 100]).expect("a request is sent");
            server.read_exact(&mut [0; 100]).expect("it comes");
            server.write_all(&[0; 100]).expect("an answer is sent");
            client.read_exact(&mut [0; 100]).expect("it comes");
        }
    });
    let after = agent.scrape();
    let ran = |beginnings: &[&str]| runs(&after, beginnings) - runs(&before, beginnings);
    let (udp, tcp) = (ran(&["udp", "ip"]), ran(&["tcp_state", "tcp_reset"]));
    println!("{udp} runs of UDP's programs and {tcp} of TCP's, for {EXCHANGES} requests with answers");
    // Others on this machine may talk, too.
    let most = if is_guest() { 0.0 } else { EXCHANGES as f64 / 10.0 };
    // This connection and the scrapes begin and end.
    assert!(tcp <= most + 100.0, "{tcp} runs of TCP's programs");
    if before.find("siskin_probe_hook_info", &on_functions).next().is_some() {
        assert!(udp <= most, "{udp} runs of UDP's programs, and not one datagram");
    } else {
        assert!(udp >= 4.0 * EXCHANGES as f64, "{udp} runs: what this costs here is not told");
    }
}

/// Sends so many UDP datagrams, made by hand, through a raw socket.
fn send_raw(address: [u8; 4], datagrams: usize) {
    // SAFETY: takes no addresses.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_UDP) };
    assert!(socket >= 0, "a raw socket");
    // SAFETY: a struct of integers.
    let mut to: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    to.sin_family = libc::AF_INET as u16;
    to.sin_addr.s_addr = u32::from_ne_bytes(address);
    // Ports 4009 to 4009, 8 bytes of header without payload and without a checksum.
    let header: [u8; 8] = [0x0f, 0xa9, 0x0f, 0xa9, 0, 8, 0, 0];
    for _ in 0..datagrams {
        // SAFETY: both buffers outlive the call and are as long as said.
        let sent = unsafe {
            let (to, length) = ((&raw const to).cast(), size_of_val(&to) as u32);
            libc::sendto(socket, header.as_ptr().cast(), header.len(), 0, to, length)
        };
        assert_eq!(sent, 8, "a datagram is sent");
    }
    // SAFETY: our own descriptor.
    unsafe { libc::close(socket) };
}

#[test]
fn flows_beyond_the_table_are_added_up_in_other_and_the_sums_stay_exact() {
    // Three rows in the agent and six in the kernel, for 24 flows. The kernel's table fills up again and again while the
    // agent empties it.
    let no = ["--no-collector.tcp", "--no-collector.disk", "--no-collector.process"];
    let agent = Agent::start(&[&["--flows.max-series=3"], &no[..]].concat());
    let since = |before: &Metrics, after: &Metrics, labels: &[(&str, &str)]| {
        Traffic::seen(after, labels) - Traffic::seen(before, labels)
    };
    // What others of this machine send meanwhile is in the sums too, so it may take more than one try.
    for _ in 0..4 {
        let before = agent.scrape();
        let expected = in_network(|| {
            let pairs: Vec<_> = (4001..4013).map(|port| pair(&format!("127.0.0.1:{port}"))).collect();
            let (begin, mut total) = (Instant::now(), NOTHING);
            while begin.elapsed() < Duration::from_millis(1300) {
                for (number, (client, server)) in pairs.iter().enumerate() {
                    total += pass(client, server, [number * 100, 7]);
                    total += pass(server, client, [number]);
                }
                thread::sleep(Duration::from_millis(1));
            }
            total
        });
        let after = agent.scrape();
        let all = since(&before, &after, &[]);
        let other = since(&before, &after, &[("peer", "other"), ("port", "0"), ("container", "")]);
        println!("{all:?}, of that in other {other:?}");
        for (seen, truth) in [(all.sent, expected), (all.received, expected)] {
            assert!(seen.datagrams >= truth.datagrams && seen.bytes >= truth.bytes, "{seen:?} of {truth:?}");
        }
        assert!(other.sent.datagrams > 0 && other.received.datagrams > 0, "{other:?}");
        assert!(after.one("siskin_lost_total", &[("probe", "udp"), ("reason", "map_full")]) > 0.0);
        let rows = after.find("siskin_flow_sent_bytes_total", &[("protocol", "udp")]);
        let named = rows.filter(|row| !row.labels.contains(&("peer".to_owned(), "other".to_owned()))).count();
        assert_eq!(named, 3);
        assert_eq!(after.one("siskin_flow_series_limit", &[]), 3.0);
        if all == traffic(expected, expected) {
            return;
        }
    }
    let before = agent.scrape();
    thread::sleep(Duration::from_millis(500));
    let others = since(&before, &agent.scrape(), &[]);
    assert_ne!(others, Traffic::default(), "the sums are never exact, and nobody else talks");
    println!(
        "others of this machine never rest, {others:?} in half a second: the sums are at least what was sent"
    );
}

#[test]
fn every_flow_over_ipv4_and_ipv6_stays_exact_while_the_kernels_table_is_emptied() {
    // Each of 36 ports is two flows here and eight rows in the kernel: six peers of clients, which are one class, and servers
    // without a peer in IPv4 and in IPv6. The kernel's table holds 320 and is emptied when it holds 240: every second, and
    // when it is read.
    let agent = Agent::start(&["--flows.max-series=80", "--flows.peer=class", "--no-collector.tcp"]);
    let cgroup = Cgroup::new("emptied");
    let addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5", "[::1]"];
    let ports = 4001..=4036u16;
    let (clients, servers) = in_network(|| {
        owned_by(&cgroup, || {
            let clients = ["0.0.0.0:0", "[::]:0"].map(server);
            let at = |port| addresses.map(|address| server(&format!("{address}:{port}")));
            (clients, ports.clone().map(|port| (port, at(port))).collect::<Vec<_>>())
        })
    });
    let mut expected = HashMap::new();
    let mut round = |servers: &[(u16, [UdpSocket; 6])]| {
        for (number, (port, all)) in servers.iter().enumerate() {
            for server in all {
                let to = server.local_addr().expect("an address");
                let client = &clients[usize::from(to.is_ipv6())];
                client.connect(to).expect("a way to the server");
                assert_eq!(client.send(&[0; 100][..number]).expect("a datagram is sent"), number);
                assert_eq!(server.recv(&mut [0; 100]).expect("a datagram comes"), number);
                *expected.entry(*port).or_insert(NOTHING) += moved(1, number as u64);
            }
        }
    };
    round(&servers);
    agent.scrape();
    round(&servers[..10]);
    let rows = agent.scrape();
    let rows = ["udp_rows_a", "udp_rows_b"].map(|map| rows.one("siskin_map_entries", &[("map", map)]));
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(1300) {
        round(&servers);
        thread::sleep(Duration::from_millis(1));
    }
    // Others of this machine may have a row too, and a tick may have come in between.
    println!("after the first emptying: {rows:?} rows");
    assert!(rows[1] >= 80.0, "{rows:?} rows: the second bank was written to");
    let metrics = agent.scrape();
    for port in ports {
        let of_server = Traffic::of_flow(&metrics, &cgroup, "server", "unknown", port);
        assert_eq!(of_server, traffic(NOTHING, expected[&port]), "{port}");
        let of_client = Traffic::of_flow(&metrics, &cgroup, "client", "loopback", port);
        assert_eq!(of_client, traffic(expected[&port], NOTHING), "{port}");
    }
    assert_eq!(metrics.one("siskin_lost_total", &[("probe", "udp"), ("reason", "map_full")]), 0.0);
}
