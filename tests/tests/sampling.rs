//! Estimates of sampled events against the truth. Numbers of events are exact, because every event
//! is counted, sampled or not; what is split or summed up must lie within the error that is
//! exported with it, and that error must be what theory says: a total of N values v of which one in
//! P is sampled, scaled to the known N, has the variance (P - 1) (Σ v² - (Σ v)²/N).
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
const VARIANCE: &str = "siskin_workload_estimate_variance_total";

/// The exported error of what a metric's total grew by between two scrapes: variances add up.
fn error(before: &Metrics, after: &Metrics, metric: &str) -> f64 {
    let variance = |metrics: &Metrics| metrics.one(ERROR, &[("metric", metric)]).powi(2);
    (variance(after) - variance(before)).sqrt()
}

/// The exported error of what a workload's value of a metric grew by since the start.
fn error_of(metrics: &Metrics, metric: &str, workload: &[(&str, &str)]) -> f64 {
    metrics.sum(VARIANCE, &[&[("metric", metric)], workload].concat()).sqrt()
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
    let (n, bytes) = (truth.datagrams as f64, truth.bytes as f64);
    // Of all datagrams the number is known; only who they belong to is an estimate. A reading
    // rounds to whole datagrams.
    let of_datagrams = error_of(&after, "siskin_flow_datagrams_total", &cgroup.labels()) + 1.0;
    // But for the last few, of which none was sampled yet. Without the known number it would be
    // some hundreds.
    let of_total = after.one(ERROR, &[("metric", "siskin_flow_datagrams_total")]);
    assert!(of_total < 50.0, "the total is known, and its error {of_total}");
    for (direction, moved) in [("sent", seen.sent), ("received", seen.received)] {
        let metric = format!("siskin_flow_{direction}_bytes_total");
        let of_bytes = error_of(&after, &metric, &cgroup.labels());
        // The sockets of other tests talk, too: the more they do, the less the number of all
        // datagrams says of these.
        let by_theory = |squares: f64| (f64::from(period - 1) * squares).sqrt();
        assert_error(&metric, of_bytes, by_theory(squares - bytes * bytes / n), by_theory(squares));
        assert_near(&metric, moved.bytes as f64, bytes, of_bytes);
        assert_near(&format!("datagrams {direction}"), moved.datagrams as f64, n, of_datagrams);
    }
    // What is skipped is counted all the same.
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
fn datagrams_and_bytes_sampled_one_in_16_are_within_their_error_and_the_error_is_that_of_theory() {
    datagrams(16, 40_000, |number| number * 7 % 1400);
}

#[test]
fn datagrams_and_bytes_sampled_one_in_100_are_within_their_error_and_the_error_is_that_of_theory() {
    datagrams(100, 40_000, |number| number * 7 % 1400);
}

#[test]
fn bytes_of_the_smallest_and_the_largest_datagrams_have_the_error_of_theory_too() {
    datagrams(15, 20_000, |number| 1 + number % 12);
    datagrams(16, 4000, |number| 60_000 + number);
}

/// Milliseconds that the kernel says the device's writes took.
fn write_ms(device: &LoopDevice) -> f64 {
    let stat = fs::read_to_string(format!("/sys/block/{}/stat", device.name)).expect("statistics");
    stat.split_whitespace().nth(7).and_then(|field| field.parse().ok()).expect("a number")
}

#[test]
fn writes_to_a_loop_device_sampled_one_in_7_are_what_the_kernel_counts_and_their_split_is_within_its_error() {
    const WRITES: u64 = 8000;
    let (agent, device) = (Agent::start(&["--debug.sampling-period=7"]), LoopDevice::new(4 * MIB));
    let before = agent.scrape();
    let (by_kernel, ms) = (Done::by_kernel(&device.name), write_ms(&device));
    let mut expected = Requests::default();
    let mut time_squares = 0.0;
    for number in 0..WRITES {
        let bytes = 512 * (1 + number as usize * 5 % 32);
        let begin = Instant::now();
        device.write(number % 128 * 16_384, bytes).expect("a write");
        // The request took no longer than its call.
        time_squares += begin.elapsed().as_secs_f64().powi(2);
        expected = Requests { ios: expected.ios + 1, bytes: expected.bytes + bytes as u64 };
    }
    let expected = Done { write: expected, ..Done::default() };
    assert_eq!(device.kernel_since(by_kernel, expected), expected, "the kernel's statistics");
    let kernel_seconds = (write_ms(&device) - ms) / 1e3;
    let after = agent.scrape();
    let write = expected.write;

    let labels = [("device", device.name.as_str()), ("op", "write")];
    let seen = Requests::seen(&after, &device.name, "write") - Requests::seen(&before, &device.name, "write");
    assert_eq!(seen, write, "the kernel's own");
    for metric in ["siskin_disk_bytes_total", "siskin_disk_requests_total"] {
        assert_eq!(after.one(ERROR, &[("metric", metric)]), 0.0, "{metric}");
    }
    let total = "siskin_disk_io_seconds";
    let of = |metrics: &Metrics, part| metrics.sum(&format!("{total}_{part}"), &labels);
    // Latencies are scaled to the number of requests.
    let count = of(&after, "count") - of(&before, "count");
    assert!((count - write.ios as f64).abs() <= 1.0, "{count} latencies of {} writes", write.ios);
    let seconds = of(&after, "sum") - of(&before, "sum");

    // A few requests may take far longer than the rest: whether one of them was sampled says little
    // about the error, so the time that each call took bounds it. The kernel stops its clock a
    // little later than the program.
    let (of_seconds, most) = (error(&before, &after, total), (6.0 * time_squares).sqrt());
    println!("{seconds} s, by the kernel {kernel_seconds} s; error {of_seconds} s, at most {most} s");
    assert!(seconds <= kernel_seconds + 5.0 * most, "{seconds} s, by the kernel {kernel_seconds} s");
    assert!(seconds >= kernel_seconds / 2.0 - 5.0 * most, "{seconds} s, by the kernel {kernel_seconds} s");
    assert!(of_seconds > 0.0, "latencies differ, so their sum has an error");
}

#[test]
fn failed_writes_to_a_loop_device_are_all_counted_when_one_request_in_128_is_sampled() {
    let (agent, device) = (Agent::start(&["--debug.sampling-period=128"]), LoopDevice::new(4 * MIB));
    device.cut_off(MIB);
    for number in 0..150 {
        device.write(number * 4096, 4096).expect("a write");
        device.write(2 * MIB + number * 4096, 4096).expect_err("a write past the end");
    }
    let metrics = agent.scrape();
    let labels = [("device", device.name.as_str()), ("op", "write")];
    assert_eq!(metrics.one("siskin_disk_errors_total", &labels), 150.0);
    assert_eq!(metrics.one("siskin_disk_requests_total", &labels), 300.0);
    // Few samples or none: never more than there were.
    let ios = metrics.one("siskin_disk_io_seconds_count", &labels);
    assert!(ios <= 300.0, "{ios}");
}
