//! Estimates of sampled events against the truth: totals must lie within the error that is exported with them, and that
//! error must be what theory says: a total of N values v of which one in P is taken has the variance (P - 1) Σ v².
//!
//! Bounds are at five standard errors or more: a correct agent fails once in a million runs.

use std::{fs, time::Instant};

use siskin_tests::{
    agent::Agent,
    cgroup::Cgroup,
    disk::{Done, LoopDevice, Requests},
    metrics::Metrics,
    udp::{Traffic, in_network, owned_by, pair, pass},
};

const MIB: u64 = 1 << 20;
const ERROR: &str = "siskin_estimate_standard_error";

/// The exported error of what a metric grew by between two scrapes: variances add up.
fn error(before: &Metrics, after: &Metrics, metric: &str) -> f64 {
    let variance = |metrics: &Metrics| metrics.one(ERROR, &[("metric", metric)]).powi(2);
    (variance(after) - variance(before)).sqrt()
}

/// Asserts that an estimate lies within five errors of the truth.
fn assert_near(what: &str, estimate: f64, truth: f64, error: f64) {
    let off = (estimate - truth) / error;
    println!("{what}: {estimate} for {truth}, {off:.2} standard errors of {error:.0}");
    assert!(off.abs() <= 5.0, "{what}: {estimate} for {truth}, standard error {error}");
}

/// Asserts that an exported error is within 30% of theory, where others may have added some: `least` is without them.
fn assert_error(what: &str, error: f64, least: f64, most: f64) {
    println!("error of {what}: {error:.0}, by theory {least:.0} to {most:.0}");
    assert!((0.7 * least..=1.3 * most).contains(&error), "{what}: {error} for {least} to {most}");
}

/// Sends so many datagrams at this sampling period, and checks totals, errors and counts.
fn datagrams(period: u32, count: usize, size: impl Fn(usize) -> usize + Send) {
    let agent = Agent::start(&[&format!("--debug.sampling-period={period}")]);
    let cgroup = Cgroup::new("sampling");
    let before = agent.scrape();
    let squares: f64 = (0..count).map(|number| (size(number) as f64).powi(2)).sum();
    let truth = in_network(|| {
        let (client, server) = owned_by(&cgroup, || pair("127.0.0.1:4001"));
        pass(&client, &server, (0..count).map(size))
    });
    let after = agent.scrape();
    assert_eq!(truth.datagrams, count as u64);
    let seen = Traffic::seen(&after, &cgroup.labels());
    let n = truth.datagrams as f64;
    // Errors are of the whole machine, whose other sockets may talk too, in datagrams of at most 64 KiB.
    let others = Traffic::seen(&after, &[]) - Traffic::seen(&before, &[]) - seen;
    let by_theory = |squares: f64| (f64::from(period - 1) * squares).sqrt();
    // Of the total over both directions.
    let of_datagrams = error(&before, &after, "siskin_flow_datagrams_total");
    let other_datagrams = (others.sent.datagrams + others.received.datagrams) as f64;
    assert_error("datagrams", of_datagrams, by_theory(2.0 * n), by_theory(2.0 * n + other_datagrams));
    let directions = [("sent", seen.sent, others.sent), ("received", seen.received, others.received)];
    for (direction, moved, others) in directions {
        let of_bytes = error(&before, &after, &format!("siskin_flow_{direction}_bytes_total"));
        let most = by_theory(squares + others.bytes as f64 * 65_536.0);
        assert_error(&format!("bytes {direction}"), of_bytes, by_theory(squares), most);
        assert_near(&format!("bytes {direction}"), moved.bytes as f64, truth.bytes as f64, of_bytes);
        assert_near(&format!("datagrams {direction}"), moved.datagrams as f64, n, of_datagrams);
    }
    let both = (seen.sent.datagrams + seen.received.datagrams) as f64;
    assert_near("datagrams both ways", both, 2.0 * n, of_datagrams);
    // What is passed over is counted all the same.
    for program in ["udp_send", "udp_receive"] {
        let runs = |metrics: &Metrics| metrics.one("siskin_program_runs_total", &[("program", program)]);
        let runs = runs(&after) - runs(&before);
        println!("{program}: {runs} runs");
        assert!(runs >= n, "{program}: {runs} runs for {n} datagrams");
    }
    assert_eq!(after.one("siskin_sampling_ratio", &[("probe", "udp")]), 1.0 / f64::from(period));
    assert_eq!(after.one("siskin_sampling_ratio", &[("probe", "disk")]), 1.0 / f64::from(period));
}

#[test]
fn datagrams_and_bytes_taken_one_in_16_are_within_their_error_and_the_error_is_that_of_theory() {
    datagrams(16, 40_000, |number| number * 7 % 1400);
}

#[test]
fn datagrams_and_bytes_taken_one_in_128_are_within_their_error_and_the_error_is_that_of_theory() {
    datagrams(128, 40_000, |number| number * 7 % 1400);
}

#[test]
fn bytes_of_the_smallest_and_the_largest_datagrams_have_the_error_of_theory_too() {
    datagrams(16, 20_000, |number| 1 + number % 12);
    datagrams(16, 4000, |number| 60_000 + number);
}

/// Whole disks of the machine: what they did, and the milliseconds that they took for it.
fn machine() -> Done {
    let mut total = Done::default();
    for entry in fs::read_dir("/sys/block").expect("the machine's disks") {
        let done = Done::by_kernel(&entry.expect("a disk").file_name().to_string_lossy());
        let sums = [
            (&mut total.read, done.read),
            (&mut total.write, done.write),
            (&mut total.discard, done.discard),
            (&mut total.flush, done.flush),
        ];
        for (sum, of) in sums {
            *sum = Requests { ios: sum.ios + of.ios, bytes: sum.bytes + of.bytes };
        }
    }
    total
}

/// Milliseconds that the kernel says the device's writes took.
fn write_ms(device: &LoopDevice) -> f64 {
    let stat = fs::read_to_string(format!("/sys/block/{}/stat", device.name)).expect("statistics");
    stat.split_whitespace().nth(7).and_then(|field| field.parse().ok()).expect("a number")
}

#[test]
fn writes_to_a_loop_device_taken_one_in_8_are_within_their_error_of_what_the_kernel_counts() {
    const WRITES: u64 = 8000;
    let (agent, device) = (Agent::start(&["--debug.sampling-period=8"]), LoopDevice::new(4 * MIB));
    let (machine_before, before) = (machine(), agent.scrape());
    let (by_kernel, ms) = (Done::by_kernel(&device.name), write_ms(&device));
    let mut expected = Requests::default();
    let (mut size_squares, mut time_squares) = (0.0, 0.0);
    for number in 0..WRITES {
        let bytes = 512 * (1 + number as usize * 5 % 32);
        let begin = Instant::now();
        device.write(number % 128 * 16_384, bytes).expect("a write");
        // The request took no longer than its call.
        time_squares += begin.elapsed().as_secs_f64().powi(2);
        size_squares += (bytes as f64).powi(2);
        expected = Requests { ios: expected.ios + 1, bytes: expected.bytes + bytes as u64 };
    }
    let expected = Done { write: expected, ..Done::default() };
    assert_eq!(device.kernel_since(by_kernel, expected), expected, "the kernel's statistics");
    let kernel_seconds = (write_ms(&device) - ms) / 1e3;
    let (after, others) = (agent.scrape(), machine());
    let write = expected.write;

    let labels = [("device", device.name.as_str()), ("op", "write")];
    let seen = Requests::seen(&after, &device.name, "write") - Requests::seen(&before, &device.name, "write");
    let total = "siskin_disk_io_seconds";
    let sum = |metrics: &Metrics| metrics.sum(&format!("{total}_sum"), &labels);
    let seconds = sum(&after) - sum(&before);

    // Errors are of the whole machine, whose other disks have work too; a request of theirs is below 4 MiB.
    let done = others - machine_before;
    let requests = [done.read, done.write, done.discard, done.flush];
    let all_ios = requests.iter().map(|of| of.ios).sum::<u64>() as f64;
    let other_bytes = (requests.iter().map(|of| of.bytes).sum::<u64>() - write.bytes) as f64;
    let of_ios = error(&before, &after, "siskin_workload_disk_ios_total");
    assert_error("ios", of_ios, (7.0 * write.ios as f64).sqrt(), (7.0 * all_ios).sqrt());
    for metric in ["siskin_disk_bytes_total", "siskin_workload_disk_bytes_total"] {
        let of_bytes = error(&before, &after, metric);
        let most = (7.0 * (size_squares + other_bytes * 4.0 * MIB as f64)).sqrt();
        assert_error(metric, of_bytes, (7.0 * size_squares).sqrt(), most);
        assert_near(metric, seen.bytes as f64, write.bytes as f64, of_bytes);
    }
    assert_near("ios", seen.ios as f64, write.ios as f64, of_ios);

    // A few requests may take far longer than the rest: whether one of them was taken says little about the error, so
    // the time that each call took bounds it. The kernel stops its clock a little later than the program.
    let (of_seconds, most) = (error(&before, &after, total), (7.0 * time_squares).sqrt());
    println!("{seconds} s, by the kernel {kernel_seconds} s; error {of_seconds} s, at most {most} s");
    assert!(seconds <= kernel_seconds + 5.0 * most, "{seconds} s, by the kernel {kernel_seconds} s");
    assert!(seconds >= kernel_seconds / 2.0 - 5.0 * most, "{seconds} s, by the kernel {kernel_seconds} s");
    // Σ v² over the taken events is at least what it would be if all were alike; latencies are rounded down to 256 ns.
    let least = (7.0 * seconds.powi(2) / seen.ios as f64).sqrt();
    assert!(of_seconds >= 0.9 * least, "error {of_seconds} s, at least {least} s");
}

#[test]
fn failed_writes_to_a_loop_device_are_all_counted_when_one_request_in_128_is_taken() {
    let (agent, device) = (Agent::start(&["--debug.sampling-period=128"]), LoopDevice::new(4 * MIB));
    device.cut_off(MIB);
    for number in 0..150 {
        device.write(number * 4096, 4096).expect("a write");
        device.write(2 * MIB + number * 4096, 4096).expect_err("a write past the end");
    }
    let metrics = agent.scrape();
    let labels = [("device", device.name.as_str()), ("op", "write")];
    assert_eq!(metrics.one("siskin_disk_errors_total", &labels), 150.0);
    // An estimate of 300 that were not all taken: a multiple of 128.
    let ios = metrics.one("siskin_disk_io_seconds_count", &labels);
    assert_eq!(ios % 128.0, 0.0, "{ios}");
}
