//! The disk probe against the kernel's own statistics, on loop devices that the tests make. What a request is, and which
//! kind it is of, is the kernel's word: the agent's counts must be those of `/sys/block/*/stat`.

use std::{fs, iter, time::Instant};

use siskin_tests::{
    agent::Agent,
    disk::{Done, IoCgroup, LoopDevice, MAX_BYTES, Requests},
    guest::until_whole,
    metrics::Metrics,
};

const MIB: u64 = 1 << 20;

const fn requests(ios: u64, bytes: u64) -> Requests {
    Requests { ios, bytes }
}

/// What a device did while `work` ran: what the agent counted and what the kernel did. Waits for the kernel to count what
/// was `expected`.
fn compare(agent: &Agent, device: &LoopDevice, expected: Done, work: impl FnOnce()) -> (Done, Done) {
    let (before, by_kernel) = (agent.scrape(), Done::by_kernel(&device.name));
    work();
    let by_kernel = device.kernel_since(by_kernel, expected);
    (Done::seen(&agent.scrape(), &device.name) - Done::seen(&before, &device.name), by_kernel)
}

/// The difference of one device's series between two scrapes.
fn added(before: &Metrics, after: &Metrics, name: &str, device: &LoopDevice, op: &str) -> f64 {
    let labels = [("device", device.name.as_str()), ("op", op)];
    after.sum(name, &labels) - before.sum(name, &labels)
}

#[test]
fn reads_and_writes_of_a_loop_device_are_what_was_asked_and_what_the_kernel_counts() {
    let (agent, device) = (Agent::start(&[]), LoopDevice::new(4 * MIB));
    let sizes = [512, 4096, 12 << 10, 64 << 10, MAX_BYTES];
    let (mut write, mut read) = (Requests::default(), Requests::default());
    for (round, bytes) in sizes.into_iter().enumerate() {
        write = requests(write.ios + 20 + round as u64, write.bytes + (20 + round as u64) * bytes as u64);
        read = requests(read.ios + 30 - round as u64, read.bytes + (30 - round as u64) * bytes as u64);
    }
    let expected = Done { write, read, ..Done::default() };
    let (seen, by_kernel) = compare(&agent, &device, expected, || {
        for (round, bytes) in sizes.into_iter().enumerate() {
            for number in 0..20 + round as u64 {
                device.write(number * bytes as u64 % MIB, bytes).expect("a write");
            }
            for number in 0..30 - round as u64 {
                device.read(number * bytes as u64 % MIB, bytes).expect("a read");
            }
        }
    });
    assert_eq!(by_kernel, expected, "the kernel's statistics");
    assert_eq!(seen, expected, "the agent's metrics");
}

#[test]
fn a_flush_of_a_loop_device_is_a_flush_and_a_write_without_bytes_as_the_kernel_counts_it() {
    let (agent, device) = (Agent::start(&[]), LoopDevice::new(MIB));
    let expected = Done { write: requests(25, 0), flush: requests(25, 0), ..Done::default() };
    let (seen, by_kernel) = compare(&agent, &device, expected, || (0..25).for_each(|_| device.flush()));
    assert_eq!(by_kernel, expected, "the kernel's statistics");
    assert_eq!(seen, expected, "the agent's metrics");
}

#[test]
fn a_write_through_the_cache_of_a_loop_device_counts_once_and_its_flushes_as_the_kernel_counts_them() {
    let (agent, device) = (Agent::start(&[]), LoopDevice::new(MIB));
    // Each is marked FUA, which loop devices do by a flush after the data, and followed by a flush of its own.
    let native = fs::read_to_string(device.setting("fua")).is_ok_and(|fua| fua.trim() == "1");
    let flushes = if native { 30 } else { 60 };
    let expected = Done { write: requests(60, 30 * 4096), flush: requests(flushes, 0), ..Done::default() };
    let (seen, by_kernel) = compare(&agent, &device, expected, || {
        for number in 0..30 {
            device.write_through(number * 4096, 4096).expect("a write");
        }
    });
    assert_eq!(by_kernel, expected, "the kernel's statistics");
    assert_eq!(seen, expected, "the agent's metrics");
}

#[test]
fn discards_of_a_loop_device_are_what_was_asked_and_what_the_kernel_counts() {
    let (agent, device) = (Agent::start(&[]), LoopDevice::new(4 * MIB));
    let expected = Done { discard: requests(12, 12 * 65_536), ..Done::default() };
    let (seen, by_kernel) = compare(&agent, &device, expected, || {
        (0..12).for_each(|number| device.discard(number * 65_536, 65_536));
    });
    assert_eq!(by_kernel, expected, "the kernel's statistics");
    assert_eq!(seen, expected, "the agent's metrics");
}

#[test]
fn zeroes_written_to_a_loop_device_are_writes_as_the_kernel_counts_them() {
    let (agent, device) = (Agent::start(&[]), LoopDevice::new(4 * MIB));
    let (before, by_kernel) = (agent.scrape(), Done::by_kernel(&device.name));
    device.write_zeroes(0, 65_536);
    // A file in memory cannot be zeroed in place: the kernel tries that once, and then sends zeroes as data.
    let expected = Done { write: requests(2, 2 * 65_536), ..Done::default() };
    let by_kernel = device.kernel_since(by_kernel, expected);
    let after = agent.scrape();
    let seen = Done::seen(&after, &device.name) - Done::seen(&before, &device.name);
    assert_eq!(seen, by_kernel);
}

#[test]
fn requests_of_a_queue_that_keeps_no_statistics_are_counted_by_the_program() {
    let (agent, device) = (Agent::start(&[]), LoopDevice::new(4 * MIB));
    let iostats = format!("/sys/block/{}/queue/iostats", device.name);
    let before = agent.scrape();
    let by_kernel = Done::by_kernel(&device.name);
    // On, off and on again between two readings: each request is counted once, by one of both.
    for (turn, keeps) in [true, false, true].into_iter().enumerate() {
        fs::write(&iostats, if keeps { "1" } else { "0" }).expect("a queue that can be told");
        (0..10 + turn as u64).for_each(|number| device.write(number * 4096, 4096).expect("a write"));
    }
    let counted = Done { write: requests(22, 22 * 4096), ..Done::default() };
    assert_eq!(device.kernel_since(by_kernel, counted), counted, "the kernel's statistics");
    let after = agent.scrape();
    let seen = Requests::seen(&after, &device.name, "write") - Requests::seen(&before, &device.name, "write");
    assert_eq!(seen, requests(33, 33 * 4096));
}

#[test]
fn latencies_of_a_loop_device_are_the_kernels_own() {
    let (agent, device) = (Agent::start(&[]), LoopDevice::new(MIB));
    // Milliseconds that the kernel says reads, writes and flushes took; each is rounded down.
    let kernel_ms = || {
        let stat = fs::read_to_string(format!("/sys/block/{}/stat", device.name)).expect("statistics");
        let fields: Vec<f64> =
            stat.split_whitespace().map(|field| field.parse().expect("a number")).collect();
        [("read", fields[3]), ("write", fields[7]), ("flush", fields[16])]
    };
    let bytes = 500 * MAX_BYTES as u64;
    let expected = Done {
        read: requests(500, bytes),
        write: requests(1000, bytes),
        flush: requests(500, 0),
        ..Done::default()
    };
    let measure = || {
        let (before, ms_before, begin) = (agent.scrape(), kernel_ms(), Instant::now());
        let by_kernel = Done::by_kernel(&device.name);
        for number in 0..500 {
            device.write(number % 8 * MAX_BYTES as u64, MAX_BYTES).expect("a write");
            device.read(number % 8 * MAX_BYTES as u64, MAX_BYTES).expect("a read");
        }
        (0..500).for_each(|_| device.flush());
        let wall = begin.elapsed().as_secs_f64();
        assert_eq!(device.kernel_since(by_kernel, expected), expected);
        (before, agent.scrape(), ms_before, kernel_ms(), wall)
    };
    let seen = |before: &Metrics, after: &Metrics| {
        let of = |op| added(before, after, "siskin_disk_io_seconds_count", &device, op);
        ["read", "write", "flush"].map(of)
    };
    let is_whole = |before: &Metrics, after: &Metrics| seen(before, after) == [500.0, 1000.0, 500.0];
    let measured = until_whole(measure, |(before, after, ..)| is_whole(before, after));
    let (before, after, ms_before, ms_after, wall) = measured;
    // The queue takes the time of issue for those who ask, such as writeback throttling.
    let keeps = fs::read(device.setting("wbt_lat_usec")).is_ok();
    for ((op, ms), (_, ms_before)) in iter::zip(ms_after, ms_before) {
        let of = |name: &str| added(&before, &after, name, &device, op);
        let (total, by_device) = (of("siskin_disk_io_seconds_sum"), of("siskin_disk_device_seconds_sum"));
        let kernel = (ms - ms_before) / 1e3;
        println!("{op}: {total} s, on the device {by_device} s, by the kernel {kernel} s, in all {wall} s");
        // A flush is carried by a write without bytes, which the device does not get: 500 of 1000 writes are its.
        let on_device = of("siskin_disk_device_seconds_count");
        assert!(on_device == 500.0 || on_device == 0.0 && !keeps, "{op}: {on_device}");
        let lost = [("probe", "disk"), ("reason", "no_device_time")];
        let lost = after.one("siskin_lost_total", &lost) - before.one("siskin_lost_total", &lost);
        assert!(on_device == 500.0 || lost >= 500.0, "{op}: {lost} lost");
        assert!(by_device <= total + 1e-9, "{op}: {by_device} of {total}");
        assert!(total < wall, "{op}: {total} of {wall}");
        // The kernel stops its clock a little later than the program, and may be interrupted in between.
        assert!(total <= kernel + 1e-3, "{op}: {total} of {kernel}");
        assert!(total >= kernel / 4.0 - 1e-3, "{op}: {total} of {kernel}");
    }
}

#[test]
fn time_that_a_loop_device_flushes_is_not_in_the_time_of_the_write_before() {
    let (agent, device) = (Agent::start(&[]), LoopDevice::new(MIB));
    let before = agent.scrape();
    for number in 0..200 {
        device.write_through(number * 4096, 4096).expect("a write");
    }
    let after = agent.scrape();
    let of = |name: &str, op| added(&before, &after, name, &device, op);
    let (total, by_device) =
        (of("siskin_disk_io_seconds_sum", "write"), of("siskin_disk_device_seconds_sum", "write"));
    let flushes = of("siskin_disk_io_seconds_sum", "flush");
    println!("writes {total} s, of that data {by_device} s and flushes {flushes} s");
    // A write ends when its flush does: first the data and then the flush lie within it, and do not overlap.
    assert!(by_device + flushes <= total, "{by_device} + {flushes} of {total}");
}

#[test]
fn every_failed_request_of_a_loop_device_is_one_error() {
    let (agent, device) = (Agent::start(&[]), LoopDevice::new(4 * MIB));
    device.cut_off(MIB);
    let before = agent.scrape();
    for number in 0..7 {
        device.write(number * 4096, 4096).expect("a write");
        device.write(2 * MIB + number * 4096, 4096).expect_err("a write past the end");
    }
    // Fails inside the flush sequence, and then as a whole.
    for number in 0..5 {
        device.write_through(2 * MIB + number * 4096, 4096).expect_err("a write past the end");
    }
    let mut failed_reads = 0.0;
    for number in 0..6 {
        device.read(number * 4096, 4096).expect("a read");
        // The first half is there, and completes before the rest fails. A loop device that does not pass the page cache
        // by gives zeroes instead.
        failed_reads += f64::from(device.read(MIB - 8192, 16_384).is_err());
    }
    let after = agent.scrape();
    let errors = |op| added(&before, &after, "siskin_disk_errors_total", &device, op);
    assert_eq!([errors("write"), errors("read"), errors("flush")], [12.0, failed_reads, 0.0]);
    // A request that completes in parts is one, with all its bytes.
    let read = Requests::seen(&after, &device.name, "read") - Requests::seen(&before, &device.name, "read");
    assert_eq!(read, requests(12, 6 * 4096 + 6 * 16_384));
}

#[test]
fn direct_io_to_a_loop_device_is_charged_to_the_cgroup_that_asked() {
    let (agent, device, group) = (Agent::start(&[]), LoopDevice::new(MIB), IoCgroup::new("io"));
    let work = || {
        (0..40).for_each(|number| device.write(number * 4096, 4096).expect("a write"));
        (0..24).for_each(|number| device.read(number * 8192, 8192).expect("a read"));
        (0..6).for_each(|_| device.flush());
        (0..5).for_each(|number| device.discard(number * 65_536, 65_536));
    };
    // Not charged to the cgroup; also brings in what this process would read from its own file.
    work();
    group.run(work);
    let metrics = agent.scrape();
    let labels = group.cgroup.labels();
    let seen = |op| {
        let labels = [&labels[..], &[("op", op)]].concat();
        let of = |name| metrics.sum(name, &labels) as u64;
        requests(of("siskin_workload_disk_ios_total"), of("siskin_workload_disk_bytes_total"))
    };
    assert_eq!(seen("read"), requests(24, 24 * 8192));
    // The writes without bytes that carry a flush are the asker's, the flushes to the device are nobody's.
    assert_eq!(seen("write"), requests(46, 40 * 4096));
    assert_eq!(seen("discard"), requests(5, 5 * 65_536));
    assert_eq!(seen("flush"), requests(0, 0));
}

#[test]
fn loop_devices_beyond_the_table_are_added_up_in_other() {
    // Five rows, for a device and an operation each; three devices want nine, and those of the machine come on top.
    let agent = Agent::start(&["--disk.max-devices=1"]);
    let devices: Vec<_> = (0..3).map(|_| LoopDevice::new(MIB)).collect();
    let group = IoCgroup::new("overflow");
    let work = || {
        for device in &devices {
            (0..16).for_each(|number| device.write(number * 4096, 4096).expect("a write"));
            (0..16).for_each(|number| device.read(number * 4096, 4096).expect("a read"));
            (0..4).for_each(|number| device.discard(number * 65_536, 65_536));
        }
    };
    work();
    let (machine_before, before) = (machine(), agent.scrape());
    group.run(work);
    let (after, machine_after) = (agent.scrape(), machine());
    let lost = [("probe", "disk"), ("reason", "map_full")];
    assert!(after.one("siskin_lost_total", &lost) > before.one("siskin_lost_total", &lost));
    let named = |metrics: &Metrics, device: &str, op: &str| {
        metrics.find("siskin_disk_bytes_total", &[("device", device), ("op", op)]).next().is_some()
    };
    for (op, ios, bytes) in [("read", 48, 48 * 4096), ("write", 48, 48 * 4096), ("discard", 12, 12 * 65_536)]
    {
        let with_row: Vec<_> = devices.iter().filter(|device| named(&after, &device.name, op)).collect();
        let mut seen = Requests::seen(&after, "other", op) - Requests::seen(&before, "other", op);
        for device in &with_row {
            let own = Requests::seen(&after, &device.name, op) - Requests::seen(&before, &device.name, op);
            seen = requests(seen.ios + own.ios, seen.bytes + own.bytes);
        }
        // Other devices of the machine that have no row for this may be in there too.
        let most = machine_after
            .iter()
            .filter(|(device, _)| {
                !named(&after, device, op) && !devices.iter().any(|own| own.name == *device)
            })
            .filter_map(|(device, now)| {
                let (_, before) = machine_before.iter().find(|(other, _)| other == device)?;
                let done = *now - *before;
                Some(match op {
                    "read" => done.read,
                    "write" => done.write,
                    _ => done.discard,
                })
            })
            .fold(requests(ios, bytes), |sum, of| requests(sum.ios + of.ios, sum.bytes + of.bytes));
        println!("{op}: {} devices of 3 have a row; {seen:?} of {ios} to {most:?}", with_row.len());
        assert!((ios..=most.ios).contains(&seen.ios), "{op}: {seen:?}, at most {most:?}");
        assert!((bytes..=most.bytes).contains(&seen.bytes), "{op}: {seen:?}, at most {most:?}");
        // The table of cgroups is another one, and has room.
        let labels = [&group.cgroup.labels()[..], &[("op", op)]].concat();
        assert_eq!(after.one("siskin_workload_disk_bytes_total", &labels), bytes as f64, "{op}");
        assert_eq!(after.one("siskin_workload_disk_ios_total", &labels), ios as f64, "{op}");
    }
}

/// What every whole disk of the machine did.
fn machine() -> Vec<(String, Done)> {
    fs::read_dir("/sys/block")
        .expect("the machine's disks")
        .map(|entry| {
            let name = entry.expect("a disk").file_name().to_string_lossy().into_owned();
            let done = Done::by_kernel(&name);
            (name, done)
        })
        .collect()
}

#[test]
fn a_loop_device_without_statistics_has_no_latencies_and_says_so() {
    let (agent, device) = (Agent::start(&[]), LoopDevice::new(MIB));
    let write = |number: u64| device.write(number % 64 * 4096, 4096).expect("a write");
    // Each leaves a time in its request; requests are used again.
    (0..300).for_each(write);
    let setting = device.setting("iostats");
    fs::write(&setting, "0").expect("statistics are turned off");
    let before = agent.scrape();
    (0..300).for_each(write);
    let after = agent.scrape();
    fs::write(&setting, "1").expect("statistics are turned on again");
    assert_eq!(added(&before, &after, "siskin_disk_bytes_total", &device, "write"), 300.0 * 4096.0);
    assert_eq!(added(&before, &after, "siskin_disk_io_seconds_count", &device, "write"), 0.0);
    assert_eq!(added(&before, &after, "siskin_disk_io_seconds_sum", &device, "write"), 0.0);
    let lost = [("probe", "disk"), ("reason", "no_timestamp")];
    assert!(after.one("siskin_lost_total", &lost) - before.one("siskin_lost_total", &lost) >= 300.0);
}
