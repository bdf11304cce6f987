//! Who is charged: the owner, not who runs. Two cgroups work against each other.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use siskin_tests::{
    agent::Agent,
    cgroup::{Cgroup, unified},
    disk::{IoCgroup, LoopDevice, Requests},
    metrics::Metrics,
    tcp::{Load, flow, opened},
};

fn load(cgroup: &Cgroup) -> Load {
    Load::start(cgroup.command(env!("CARGO_BIN_EXE_load")))
}

fn signal(load: &Load, signal: i32) {
    // SAFETY: a signal to our own child, which lives as long as the value.
    assert_eq!(unsafe { libc::kill(load.pid() as i32, signal) }, 0);
}

/// Waits until a process is stopped.
fn wait_until_stopped(load: &Load) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let stat = fs::read_to_string(format!("/proc/{}/stat", load.pid())).expect("the process");
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        if fields.trim_start().starts_with('T') {
            return;
        }
        assert!(Instant::now() < deadline, "{stat}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_server_that_does_not_run_is_charged_for_what_the_softirq_does_on_its_sockets() {
    let (a, b) = (Cgroup::new("server"), Cgroup::new("client"));
    let agent = Agent::start(&[]);
    let (mut server, mut client) = (load(&a), load(&b));
    let port = server.ask("listen 127.0.0.1:0");
    // From now on only the client runs: handshakes, segments and their acknowledgements, both ends of it, happen in the
    // softirq on its time.
    signal(&server, libc::SIGSTOP);
    wait_until_stopped(&server);
    for _ in 0..5 {
        let socket = client.ask(format!("connect 127.0.0.1:{port}"));
        client.ask(format!("send {socket} 3000"));
    }
    let over = |m: &Metrics| flow(m, &a, "server", "127.0.0.1", port)[1] == 15_000.0;
    let metrics = agent.scrape_until(over);
    signal(&server, libc::SIGCONT);
    assert_eq!(opened(&metrics, &a), [0.0, 5.0]);
    assert_eq!(opened(&metrics, &b), [5.0, 0.0]);
    assert_eq!(flow(&metrics, &a, "server", "127.0.0.1", port), [0.0, 15_000.0, 5.0]);
    assert_eq!(flow(&metrics, &b, "client", "127.0.0.1", port), [15_000.0, 0.0, 5.0]);
}

#[test]
fn a_socket_whose_cgroup_was_removed_is_still_charged_to_it() {
    let (a, b) = (Cgroup::new("removed"), Cgroup::new("heir"));
    let agent = Agent::start(&[]);
    let mut maker = load(&a);
    let port = maker.ask("listen 127.0.0.1:0");
    let socket = maker.ask(format!("connect 127.0.0.1:{port}"));
    let other = maker.ask(format!("accept {port}"));
    maker.move_to(&b);
    fs::remove_dir(a.path()).expect("nobody is in it");
    agent.scrape();
    // Longer than a tick: the agent has heard of the end of the cgroup by now, if it was to.
    thread::sleep(Duration::from_millis(1200));
    agent.scrape();
    maker.ask(format!("send {socket} 777"));
    maker.ask(format!("receive {other} 777"));
    let metrics = agent.scrape();
    assert_eq!(flow(&metrics, &a, "client", "127.0.0.1", port), [777.0, 0.0, 1.0]);
    assert_eq!(flow(&metrics, &a, "server", "127.0.0.1", port), [0.0, 777.0, 1.0]);
    assert_eq!(opened(&metrics, &b), [0.0, 0.0]);
}

/// `struct clone_args`, include/uapi/linux/sched.h, 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Makes a child in another cgroup that ends at once with a status.
fn clone_into(cgroup: &File, status: i32) {
    let arguments = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: as fork: no stack is given, and the child calls nothing but `_exit`.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArgs>()) } as i32;
    if pid == 0 {
        // SAFETY: ends the child.
        unsafe { libc::_exit(status) };
    }
    assert!(pid > 0, "{}", io::Error::last_os_error());
    let mut wait = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut wait, 0) }, pid);
}

#[test]
fn a_child_that_is_made_in_another_cgroup_is_charged_to_that_one() {
    let (a, b) = (Cgroup::new("parent"), Cgroup::new("child"));
    let agent = Agent::start(&[]);
    a.enter();
    let target = File::open(b.path()).expect("a directory");
    for number in 0..20 {
        clone_into(&target, number % 2);
    }
    // And some at home.
    let home = File::open(a.path()).expect("a directory");
    for _ in 0..3 {
        clone_into(&home, 0);
    }
    siskin_tests::cgroup::leave();
    let metrics = agent.scrape();
    let of = |cgroup: &Cgroup, name, labels: &[(&'static str, &'static str)]| {
        metrics.sum(name, &[&cgroup.labels()[..], labels].concat())
    };
    let forks = "siskin_process_forks_total";
    let exits = "siskin_process_exits_total";
    assert_eq!([of(&a, forks, &[]), of(&b, forks, &[])], [3.0, 20.0]);
    assert_eq!([of(&a, exits, &[]), of(&b, exits, &[])], [3.0, 20.0]);
    assert_eq!(of(&b, exits, &[("outcome", "success")]), 10.0);
    assert_eq!(of(&b, exits, &[("outcome", "failure")]), 10.0);
}

/// Bytes that the kernel charged to a cgroup for writes to a device: `io.stat` of cgroup2, or the file of the v1 controller that
/// counts every request.
fn charged_by_kernel(cgroup: &Cgroup, device: &str) -> u64 {
    let numbers = fs::read_to_string(format!("/sys/block/{device}/dev")).expect("the device's numbers");
    let read = |name: &str| fs::read_to_string(cgroup.path().join(name));
    let text = read("io.stat").or_else(|_| read("blkio.throttle.io_service_bytes")).expect("statistics");
    let lines = text.lines().filter_map(|line| line.strip_prefix(numbers.trim()));
    let words = lines.flat_map(|line| match line.trim().strip_prefix("Write ") {
        Some(bytes) => vec![bytes],
        None => line.split(' ').filter_map(|word| word.strip_prefix("wbytes=")).collect(),
    });
    words.map(|bytes| bytes.parse::<u64>().expect("a number")).sum()
}

/// Lets a v1 kernel keep those statistics: it does for devices that have a limit.
fn let_kernel_count(cgroup: &Cgroup, device: &str) {
    let numbers = fs::read_to_string(format!("/sys/block/{device}/dev")).expect("the device's numbers");
    let limit = cgroup.path().join("blkio.throttle.write_bps_device");
    if limit.exists() {
        fs::write(limit, format!("{} 99999999999", numbers.trim())).expect("a limit that is none");
    }
}

/// A file on the device, through the page cache.
fn buffered(device: &str) -> File {
    OpenOptions::new().write(true).open(format!("/dev/{device}")).expect("the device opens")
}

#[test]
fn pages_of_two_cgroups_that_each_sync_what_the_other_wrote_are_charged_as_the_kernel_charges_them() {
    const BYTES: [usize; 2] = [512 << 10, 768 << 10];
    let agent = Agent::start(&[]);
    let devices = BYTES.map(|_| LoopDevice::new(4 << 20));
    let groups = ["even", "odd"].map(IoCgroup::new);
    for device in &devices {
        groups.iter().for_each(|group| let_kernel_count(&group.cgroup, &device.name));
    }
    let seen = |metrics: &Metrics, group: &IoCgroup| {
        let labels = [&group.cgroup.labels()[..], &[("op", "write")]].concat();
        metrics.sum("siskin_workload_disk_bytes_total", &labels) as usize
    };
    let totals = |metrics: &Metrics| {
        let total = |device: &LoopDevice| Requests::seen(metrics, &device.name, "write").bytes as usize;
        [total(&devices[0]), total(&devices[1])]
    };
    let before = totals(&agent.scrape());
    for ((group, device), bytes) in groups.iter().zip(&devices).zip(BYTES) {
        group.run(|| buffered(&device.name).write_all(&vec![1; bytes]).expect("a write"));
    }
    for (group, device) in groups.iter().zip(devices.iter().rev()) {
        group.run(|| buffered(&device.name).sync_all().expect("the device syncs"));
    }
    let grown = |metrics: &Metrics| {
        let now = totals(metrics);
        [now[0] - before[0], now[1] - before[1]]
    };
    let metrics = agent.scrape_until(|metrics| grown(metrics) == BYTES);
    // All of it was written once, whoever wrote it.
    assert_eq!(grown(&metrics), BYTES);
    let own = [seen(&metrics, &groups[0]), seen(&metrics, &groups[1])];
    let kernel = [&groups[0], &groups[1]].map(|group| {
        devices.iter().map(|device| charged_by_kernel(&group.cgroup, &device.name)).sum::<u64>() as usize
    });
    let knows = groups[0].knows_who_wrote();
    assert_eq!(knows, groups[0].cgroup.path().starts_with(unified()), "cgroup2 with its controllers does");
    println!(
        "wrote {BYTES:?}: {own:?} by the agent, {kernel:?} by the kernel, which knows who wrote: {knows}"
    );
    assert_eq!(own, kernel);
    let [a, b] = BYTES;
    assert_eq!(own, if knows { [a, b] } else { [b, a] });
}

#[test]
fn direct_writes_of_two_cgroups_at_once_are_charged_to_each() {
    let (agent, device) = (Agent::start(&[]), LoopDevice::new(1 << 20));
    let groups = [IoCgroup::new("even"), IoCgroup::new("odd")];
    for group in &groups {
        let_kernel_count(&group.cgroup, &device.name);
    }
    for round in 0..40 {
        let group = &groups[round % 2];
        group.run(|| device.write(0, 4096 * (1 + round % 2)).expect("a write"));
    }
    let metrics = agent.scrape();
    for (group, bytes) in groups.iter().zip([20 * 4096, 20 * 8192]) {
        let labels = [&group.cgroup.labels()[..], &[("op", "write")]].concat();
        assert_eq!(metrics.sum("siskin_workload_disk_bytes_total", &labels), f64::from(bytes));
        assert_eq!(charged_by_kernel(&group.cgroup, &device.name), bytes as u64);
    }
}
