//! Many connections at once, and tables too small for them.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use siskin_tests::{
    agent::Agent,
    cgroup::{self, Cgroup},
    guest::is_guest,
    metrics::Metrics,
    pair::{Pair, SUMS, minus, moved, plus},
    sweep::Sweep,
    tcp::{Load, failed, flow, open, opened},
};

fn load(cgroup: &Cgroup) -> Load {
    Load::start(cgroup.command(env!("CARGO_BIN_EXE_load")))
}

fn lost(metrics: &Metrics, reason: &str) -> f64 {
    metrics.one("siskin_lost_total", &[("probe", "tcp"), ("reason", reason)])
}

#[test]
fn what_overflows_both_flow_tables_is_in_the_other_row_to_the_byte() {
    let (here, there) = (Cgroup::new("client"), Cgroup::new("server"));
    // Five rows in the agent's table, and four times as many in each of the kernel's.
    let mut pair = Pair::start(&["--flows.max-series=5"], [&here, &there]);
    let (mut client, mut server) = (load(&here), load(&there));
    let services: Vec<_> = (1..=50).map(|index| (index, server.ask("listen 127.0.0.1:0"))).collect();
    let (base, before) = pair.read();
    let mut expected = [0.0; 6];
    let mut connect = |(index, port): (u64, u64)| {
        server.tell(format!("serve {port} 1 {} 7", 1000 + index));
        client.ask(format!("exchange 127.0.0.1:{port} 1 {} 7", 1000 + index));
        server.answer();
        moved(1000 + index, 7, 1)
    };
    for service in &services {
        expected = plus(expected, connect(*service));
    }
    let (total, mut last) = pair.read();
    assert_eq!(minus(total, base), expected);
    // A hundred flows came before the agent could empty the kernel's table more than a few times.
    assert!(lost(&last, "map_full") - lost(&before, "map_full") >= 10.0);
    assert!(last.find(SUMS[0], &[]).count() <= 9);
    assert!(last.one("siskin_flow_series", &[]) <= 9.0);
    assert_eq!(last.one("siskin_flow_series_limit", &[]), 5.0);
    for role in ["client", "server"] {
        let w = [("protocol", "tcp"), ("namespace", ""), ("pod", ""), ("container", "")];
        let labels = [&w[..], &[("role", role), ("peer", "other"), ("port", "0")]].concat();
        for name in SUMS {
            assert!(last.one(name, &labels) > 0.0, "{name} {role}");
        }
    }

    // Now that the table was emptied, it takes rows again.
    for round in 1.. {
        assert!(round <= 50, "the kernel's table takes no rows any more:\n{}", last.text);
        expected = plus(expected, connect(services[0]));
        let (total, metrics) = pair.read();
        assert_eq!(minus(total, base), expected);
        assert_eq!(opened(&metrics, &here), [50.0 + f64::from(round), 0.0]);
        assert_eq!(opened(&metrics, &there), [0.0, 50.0 + f64::from(round)]);
        // Others on this machine may fill it meanwhile.
        if lost(&metrics, "map_full") == lost(&last, "map_full") {
            break;
        }
        last = metrics;
    }
}

/// Asserts that every counter of `before` is still there and has not fallen.
fn assert_no_counter_fell(before: &Metrics, after: &Metrics) {
    let counter = |name: &str| ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end));
    let now: HashMap<_, _> =
        after.samples.iter().map(|sample| ((&sample.name, &sample.labels), sample.value)).collect();
    for sample in before.samples.iter().filter(|sample| counter(&sample.name)) {
        let value = now.get(&(&sample.name, &sample.labels)).copied();
        assert!(value >= Some(sample.value), "{sample:?} became {value:?}");
    }
}

#[test]
fn three_thousand_short_connections_are_exact_while_scraped() {
    const COUNT: f64 = 3000.0;
    let (here, there) = (Cgroup::new("client"), Cgroup::new("server"));
    let agent = Agent::start(&[]);
    let (mut client, mut server) = (load(&here), load(&there));
    let port = server.ask("listen 127.0.0.1:0");
    let over = AtomicBool::new(false);
    let (scrapes, before) = thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            let (mut count, mut last) = (1, agent.scrape());
            while !over.load(Relaxed) {
                thread::sleep(Duration::from_millis(20));
                let metrics = agent.scrape();
                assert_no_counter_fell(&last, &metrics);
                (count, last) = (count + 1, metrics);
            }
            (count, last)
        });
        server.tell(format!("serve {port} {COUNT} 1000 0"));
        client.tell(format!("exchange 127.0.0.1:{port} {COUNT} 1000 0"));
        client.answer();
        server.answer();
        over.store(true, Relaxed);
        scraper.join().expect("no counter fell")
    });
    assert!(scrapes >= 3, "{scrapes}");
    let done = |m: &_| opened(m, &there)[1] == COUNT && [open(m, &here), open(m, &there)] == [[0.0; 2]; 2];
    let last = agent.scrape_until(done);
    assert_no_counter_fell(&before, &last);
    for reason in ["map_full", "socket_storage"] {
        assert_eq!(lost(&last, reason), 0.0, "{reason}");
    }
    // The kernel passes a program over that is interrupted by itself. An emulated CPU is slow enough for that to happen.
    let missed = lost(&last, "recursion");
    assert!(missed == 0.0 || is_guest(), "{missed}");
    let [up, down] =
        [flow(&last, &here, "client", "127.0.0.1", port), flow(&last, &there, "server", "127.0.0.1", port)];
    let counts =
        [opened(&last, &here)[0], opened(&last, &there)[1], up[2], down[2], up[0] / 1000.0, down[1] / 1000.0];
    println!("{counts:?}, passed over {missed}, late {}", lost(&last, "late_attach"));
    // Whatever is missing was counted as lost.
    assert!(
        counts.iter().all(|count| (COUNT - missed..=COUNT).contains(count)),
        "{counts:?}, passed over {missed}"
    );
    assert_eq!([opened(&last, &here)[1], opened(&last, &there)[0], up[1], down[0]], [0.0; 4]);
    for open in [open(&last, &here), open(&last, &there)].concat() {
        assert!(open.abs() <= missed, "{open}, passed over {missed}");
    }
}

/// The kernel takes a FIN for a received byte, for less than a microsecond, before it says that it was none. What a sweep then counts is looked at
/// while the connections are half closed: their ends would put it right.
#[test]
fn a_fin_is_no_byte_however_often_connections_are_swept() {
    const ROUNDS: u32 = 40;
    const COUNT: u32 = 50;
    const BYTES: f64 = 1000.0;
    let (here, there) = (Cgroup::new("client"), Cgroup::new("server"));
    let agent = Agent::start(&[]);
    let (mut client, mut server) = (load(&here), load(&there));
    let port = server.ask("listen 127.0.0.1:0");
    let over = AtomicBool::new(false);
    let sweeps = thread::scope(|scope| {
        let sweeper = scope.spawn(|| {
            let (sweep, mut count) = (Sweep::of(&agent), 0);
            while !over.load(Relaxed) {
                sweep.run();
                count += 1;
            }
            count
        });
        let mut wrong = Vec::new();
        for round in 1..=ROUNDS {
            let pairs: Vec<_> = (0..COUNT)
                .map(|_| {
                    let end = client.ask(format!("connect 127.0.0.1:{port}"));
                    (end, server.ask(format!("accept {port}")))
                })
                .collect();
            for (end, _) in &pairs {
                client.tell(format!("last {end} {BYTES}"));
            }
            for (_, other) in &pairs {
                client.answer();
                server.ask(format!("receive {other} {BYTES}"));
                server.ask(format!("end {other}"));
            }
            let metrics = agent.scrape();
            let received = [(&here, "client"), (&there, "server")]
                .map(|(cgroup, role)| flow(&metrics, cgroup, role, "127.0.0.1", port)[1]);
            let sent = f64::from(round * COUNT) * BYTES;
            if received != [0.0, sent] {
                wrong.push((round, received[0], received[1] - sent));
            }
            for (end, other) in &pairs {
                client.ask(format!("close {end}"));
                server.ask(format!("close {other}"));
            }
        }
        over.store(true, Relaxed);
        let sweeps = sweeper.join().expect("sweeps");
        assert_eq!(wrong, [], "in {sweeps} sweeps");
        sweeps
    });
    println!("{sweeps} sweeps");
    let last = agent.scrape_until(|m| [open(m, &here), open(m, &there)] == [[0.0; 2]; 2]);
    let connections = f64::from(ROUNDS * COUNT);
    let sent = connections * BYTES;
    assert_eq!(flow(&last, &here, "client", "127.0.0.1", port), [sent, 0.0, connections]);
    assert_eq!(flow(&last, &there, "server", "127.0.0.1", port), [0.0, sent, connections]);
}

#[test]
fn connections_beyond_the_socket_limit_are_lost_and_said_so() {
    const COUNT: f64 = 400.0;
    const LIMIT: f64 = 300.0;
    let (here, there) = (Cgroup::new("client"), Cgroup::new("server"));
    let agent = Agent::start(&["--tcp.max-sockets=300"]);
    let before = agent.scrape();
    let (mut client, mut server) = (load(&here), load(&there));
    let port = server.ask("listen 127.0.0.1:0");
    let mut pairs = Vec::new();
    for _ in 0..COUNT as u32 {
        let end = client.ask(format!("connect 127.0.0.1:{port}"));
        pairs.push((end, server.ask(format!("accept {port}"))));
    }
    let full = agent.scrape_until(|m| opened(m, &there)[1] == COUNT);
    // All were opened, but no more than the limit can be followed.
    assert_eq!(opened(&full, &here), [COUNT, 0.0]);
    assert_eq!(opened(&full, &there), [0.0, COUNT]);
    let followed = |m: &Metrics| open(m, &here)[0] + open(m, &there)[1];
    assert!((1.0..=LIMIT).contains(&followed(&full)), "{}", followed(&full));
    assert_eq!(
        flow(&full, &here, "client", "127.0.0.1", port)[2]
            + flow(&full, &there, "server", "127.0.0.1", port)[2],
        followed(&full)
    );
    // One of the two maps remembers sockets, and has series.
    let capacity = |map| full.sum("siskin_map_capacity", &[("map", map)]);
    assert_eq!(capacity("tcp_sockets") + capacity("tcp_by_address"), LIMIT);
    // Each once; scrapes are lost too while there is no room.
    let unfollowed = 2.0 * COUNT - followed(&full);
    let said = lost(&full, "socket_storage") - lost(&before, "socket_storage");
    assert!((unfollowed..unfollowed + 50.0).contains(&said), "{said} of {unfollowed}");

    // The last ones are among those not followed: that they fail is counted all the same.
    for (end, other) in pairs.split_off(COUNT as usize - 10) {
        server.ask(format!("abort {other}"));
        client.ask(format!("broken {end}"));
        client.ask(format!("close {end}"));
    }
    for (end, other) in pairs {
        client.ask(format!("close {end}"));
        server.ask(format!("end {other}"));
        server.ask(format!("close {other}"));
    }
    let closed = agent.scrape_until(|m| followed(m) == 0.0);
    assert_eq!(open(&closed, &here), [0.0; 2]);
    assert_eq!(open(&closed, &there), [0.0; 2]);
    // There is room again, and new ones are exact again.
    server.tell(format!("serve {port} 20 100 10"));
    client.ask(format!("exchange 127.0.0.1:{port} 20 100 10"));
    server.answer();
    let after = agent.scrape_until(|m| opened(m, &there)[1] == COUNT + 20.0 && followed(m) == 0.0);
    assert_eq!(open(&after, &here), [0.0; 2]);
    assert_eq!(open(&after, &there), [0.0; 2]);
    assert_eq!(opened(&after, &here), [COUNT + 20.0, 0.0]);
    assert_eq!(failed(&after, &here), [0.0, 0.0, 10.0, 0.0]);
    assert_eq!(failed(&after, &there), [0.0; 4]);
    let name = "siskin_flow_sent_bytes_total";
    assert_eq!(after.sum(name, &here.labels()), 2000.0);
    assert_eq!(after.sum(name, &there.labels()), 200.0);
    assert_eq!(lost(&after, "socket_storage"), lost(&closed, "socket_storage"));
}

#[test]
fn a_sweep_in_several_slices_finds_every_connection_and_byte() {
    // More sockets than a slice has.
    const COUNT: usize = 2200;
    const BYTES: usize = 10;
    allow_files(3 * COUNT as u64);
    let cgroup = Cgroup::new("slices");
    cgroup.enter();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    let connect = |_| {
        let client = TcpStream::connect(address).expect("a connection");
        (client, listener.accept().expect("a connection").0)
    };
    let mut pairs: Vec<_> = (0..COUNT).map(connect).collect();
    cgroup::leave();
    // The kernel remembers those that end otherwise for a minute, and has room for few.
    pairs.iter().for_each(|(client, server)| {
        abort_at_close(client);
        abort_at_close(server);
    });
    let agent = Agent::start(&[]);
    // A scrape's own connection may come or go between two slices, and move the others by one.
    let are_found =
        |metrics: &Metrics| open(metrics, &cgroup).iter().all(|found| (found - COUNT as f64).abs() <= 10.0);
    let metrics = agent.scrape();
    assert!(are_found(&metrics), "{:?}\n{}", open(&metrics, &cgroup), agent.log());
    for (client, server) in &mut pairs {
        client.write_all(&[1; BYTES]).expect("bytes go");
        server.read_exact(&mut [0; BYTES]).expect("bytes come");
    }
    let moved = |metrics: &Metrics| {
        let flow = |role| flow(metrics, &cgroup, role, "127.0.0.1", address.port().into());
        [flow("client")[0], flow("server")[1]]
    };
    let all = [(COUNT * BYTES) as f64; 2];
    // One that a sweep missed is counted by the next.
    let metrics = agent.scrape_until(|metrics| moved(metrics) == all);
    assert_eq!(moved(&metrics), all, "{}", agent.log());
    assert!(are_found(&metrics), "{:?}", open(&metrics, &cgroup));
}

/// Has the connection reset when this end closes it.
fn abort_at_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the option reads such a struct.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size,
        )
    };
    assert_eq!(result, 0, "the option is set");
}

/// Lets this process have so many open files.
fn allow_files(count: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the calls fill and read the struct.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_max = limit.rlim_max.max(count);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0, "{count} open files");
    }
}
