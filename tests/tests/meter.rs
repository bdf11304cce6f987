//! What the programs note about themselves against what the kernel notes about them.

use std::{
    collections::BTreeMap,
    net::{TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use siskin_tests::{
    agent::Agent,
    cgroup::Cgroup,
    disk::LoopDevice,
    guest::is_guest,
    metrics::{Metrics, Sample},
    udp::{in_network, pair, pass, receive},
};

/// Programs that are several to the kernel where they sit on functions.
const PARTS: [(&str, &[&str]); 2] = [
    ("udp_send", &["udp_sendmsg", "udpv6_sendmsg", "ip_send_skb", "ip6_send_skb"]),
    ("udp_receive", &["udp_recvmsg", "udpv6_recvmsg", "skb_consume_udp"]),
];

/// By program: what it noted, and what the kernel did.
fn both(metrics: &Metrics, own: &str, kernel: &str) -> BTreeMap<String, (f64, f64)> {
    let of = |sample: &Sample| {
        let program = sample.labels[0].1.clone();
        let parts = PARTS.iter().find(|(whole, _)| *whole == program).map_or(&[][..], |(_, parts)| *parts);
        let is_part = |of: &&Sample| of.labels[0].1 == program || parts.contains(&of.labels[0].1.as_str());
        let by_kernel: Vec<_> = metrics.find(kernel, &[]).filter(is_part).map(|of| of.value).collect();
        assert!(!by_kernel.is_empty(), "the kernel knows no {program}");
        let value = (sample.value, by_kernel.iter().sum());
        (program, value)
    };
    metrics.find(own, &[]).map(of).collect()
}

fn runs(metrics: &Metrics) -> BTreeMap<String, (f64, f64)> {
    both(metrics, "siskin_program_runs_total", "siskin_kernel_statistics_runs_total")
}

fn seconds(metrics: &Metrics) -> BTreeMap<String, (f64, f64)> {
    both(metrics, "siskin_program_run_seconds_total", "siskin_kernel_statistics_run_seconds_total")
}

/// Two scrapes in a row: all programs that came to rest had none of their runs between the two.
struct Settled {
    last: Metrics,
    now: Metrics,
}

/// Scrapes until no program ran between two scrapes, or for as long as others make some run all the time.
fn settled(agent: &Agent) -> Settled {
    let begin = Instant::now();
    let mut last = agent.scrape();
    loop {
        let now = agent.scrape();
        let (runs_before, runs_now) = (runs(&last), runs(&now));
        if runs_before == runs_now || begin.elapsed() > Duration::from_millis(1500) {
            return Settled { last, now };
        }
        last = now;
    }
}

/// Checks that each program counted as many runs as the kernel did. A scrape reads the programs' own counts just before the kernel's, so the
/// number of a program that never rests lies between those of the kernel in the scrape before and in its own.
fn assert_same_runs(before: &Settled, after: &Settled) {
    let (first, second) = (runs(&before.last), runs(&before.now));
    let (third, fourth) = (runs(&after.last), runs(&after.now));
    for (program, (own, kernel)) in &fourth {
        let ran = own - second[program].0;
        let (least, most) = (third[program].1 - second[program].1, kernel - first[program].1);
        if least < most {
            println!("{program} never rests: {ran} runs by itself, {least} to {most} by the kernel");
        }
        assert!(
            (least..=most).contains(&ran),
            "{program}: {ran} runs by itself, {least} to {most} by the kernel"
        );
    }
}

#[test]
fn every_program_counts_the_runs_that_the_kernel_counts_and_about_the_time() {
    let (agent, device) = (Agent::start(&["--debug.program-stats"]), LoopDevice::new(1 << 20));
    let before = settled(&agent);
    // First: the kernel lets go of them in its own time.
    drop((0..150).map(|number| Cgroup::new(&format!("meter-{number}"))).collect::<Vec<_>>());
    in_network(|| {
        let (client, server) = pair("127.0.0.1:4001");
        pass(&client, &server, [100; 3000]);
        for _ in 0..500 {
            client.send(&[0; 10]).expect("a datagram is sent");
            receive(&server, 10, libc::MSG_PEEK).expect("it is there");
            receive(&server, 10, 0).expect("it is there");
        }
        client.set_nonblocking(true).expect("a mode");
        (0..100).for_each(|_| drop(client.recv(&mut [0; 10]).expect_err("nothing is there")));
        let listener = TcpListener::bind("127.0.0.1:4001").expect("the port is free");
        for _ in 0..100 {
            let client = TcpStream::connect("127.0.0.1:4001").expect("a connection");
            drop((client, listener.accept().expect("a connection")));
        }
        drop(listener);
        for _ in 0..30 {
            // Nobody listens: the kernel sends a reset, and receives it.
            TcpStream::connect("127.0.0.1:4001").expect_err("nobody is there");
        }
    });
    for _ in 0..30 {
        assert!(Command::new("true").status().expect("true runs").success());
    }
    (0..500).for_each(|number| device.write(number % 64 * 4096, 4096).expect("a write"));
    let after = settled(&agent);
    assert_same_runs(&before, &after);

    let (runs_before, seconds_before) = (runs(&before.now), seconds(&before.now));
    let ran: BTreeMap<_, _> = seconds(&after.now)
        .into_iter()
        .map(|(program, (own, kernel))| {
            let (own_before, kernel_before) = seconds_before[&program];
            let count = runs(&after.now)[&program].0 - runs_before[&program].0;
            (program, (count, own - own_before, kernel - kernel_before))
        })
        .collect();
    for (program, (count, own, kernel)) in &ran {
        let ns = |seconds: &f64| seconds * 1e9 / count;
        println!("{program}: {count} runs, {:.0} ns by itself, {:.0} ns by the kernel", ns(own), ns(kernel));
    }
    for (program, least) in [
        ("cgroup_mkdir", 150.0),
        ("cgroup_release", 150.0),
        ("udp_send", 3500.0),
        ("udp_receive", 4100.0),
        ("process_exec", 30.0),
        ("process_fork", 30.0),
        ("process_exit", 30.0),
        ("tcp_state", 600.0),
        ("tcp_reset_sent", 30.0),
        ("tcp_reset_recv", 30.0),
        ("disk_complete", 500.0),
    ] {
        let (count, own, kernel) = ran[program];
        assert!(count >= least, "{program}: {count} runs, at least {least}");
        // Reading the clock costs both about as much as a short program does.
        let ratio = own / kernel;
        // An emulated CPU may stop anywhere between the two.
        let near = (0.2..6.0).contains(&ratio) || is_guest();
        assert!(near, "{program}: {own} s by itself, {kernel} s by the kernel");
    }
    assert_eq!(ran.len(), 11, "a program without a load here");
}

#[test]
fn runs_of_sampled_programs_are_all_counted_also_those_that_are_passed_over() {
    let agent = Agent::start(&["--debug.program-stats", "--debug.sampling-period=4096"]);
    let before = settled(&agent);
    // First: the kernel lets go of them in its own time.
    drop((0..150).map(|number| Cgroup::new(&format!("meter-{number}"))).collect::<Vec<_>>());
    in_network(|| {
        let (client, server) = pair("127.0.0.1:4001");
        pass(&client, &server, [100; 3000]);
    });
    let after = settled(&agent);
    assert_same_runs(&before, &after);
    for program in ["udp_send", "udp_receive"] {
        let count = runs(&after.now)[program].0 - runs(&before.now)[program].0;
        assert!(count >= 3000.0, "{program}: {count} runs");
    }
}
