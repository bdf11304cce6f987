//! An agent with small tables, driven past every one of them: no more series and bytes than docs/cardinality.md says, and as
//! many as it says where a table is full.

use std::{fs, os::unix::fs::symlink, path::PathBuf, process::Stdio};

use siskin_tests::{
    agent::Agent,
    cgroup::{Cgroup, unified},
    disk::{IoCgroup, LoopDevice},
    metrics::Metrics,
    tcp::Load,
    udp::{client, in_network, owned_by, pass, server},
};

const FLOWS: usize = 20;
const WORKLOADS: usize = 6;
const COMMS: usize = 4;
const DEVICES: usize = 2;
/// More than fit any table.
const OWNERS: usize = 12;

/// A workload of the test: its disk I/O is charged to a cgroup of the same path, where that is another hierarchy.
struct Owner {
    io: IoCgroup,
    rest: Option<Cgroup>,
}

impl Owner {
    /// One whose path is longer than the label `container` may be.
    fn new(number: usize) -> Self {
        let io = IoCgroup::new(&format!("limit-{number}-{}", "\"".repeat(200)));
        let rest = (!io.cgroup.path().starts_with(unified()))
            .then(|| Cgroup::under(&unified(), &io.cgroup.container));
        Self { io, rest }
    }

    fn cgroup(&self) -> &Cgroup {
        self.rest.as_ref().unwrap_or(&self.io.cgroup)
    }
}

/// A directory of the test's own.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a program of fifteen characters that each take two bytes where they are written.
fn exec(cgroup: &Cgroup, directory: &Directory, number: usize) {
    let path = directory.0.join(format!("{}{number:03}", "\"".repeat(12)));
    if !path.exists() {
        // It ends with its input. A shell that is also `true` would not be that by another name.
        symlink(env!("CARGO_BIN_EXE_load"), &path).expect("another name of the load maker");
    }
    let mut command = cgroup.command(path.to_str().expect("a path"));
    assert!(command.stdin(Stdio::null()).status().expect("it runs").success());
}

/// Connects to a port of its own and sends: two flows.
fn connect(cgroup: &Cgroup, bytes: u64) {
    let mut load = Load::start(cgroup.command(env!("CARGO_BIN_EXE_load")));
    let port = load.ask("listen 127.0.0.1:0");
    let (end, other) = (load.ask(format!("connect 127.0.0.1:{port}")), load.ask(format!("accept {port}")));
    load.ask(format!("send {end} {bytes}"));
    load.ask(format!("receive {other} {bytes}"));
}

/// Sends to ports that are other ones in each round, and twice as busy, so that the rows of the last make room.
fn datagrams(round: usize) {
    for number in 0..2 * FLOWS {
        let server = server(&format!("127.0.0.1:{}", 4000 + 100 * round + number));
        let client = client(server.local_addr().expect("an address"));
        pass(&client, &server, [4000 << round]);
    }
}

/// Does on a device all that one can.
fn work(device: &LoopDevice) {
    device.write(0, 4096).expect("a write");
    device.read(0, 4096).expect("a read");
    device.flush();
    device.discard(0, 4096);
    device.write_zeroes(0, 4096);
}

fn count(metrics: &Metrics, names: &[&str]) -> usize {
    metrics.samples.iter().filter(|sample| names.contains(&sample.name.as_str())).count()
}

#[test]
fn an_agent_driven_past_all_its_tables_serves_no_more_than_the_formula_says() {
    let owners: Vec<_> = (0..OWNERS).map(Owner::new).collect();
    let devices: Vec<_> = (0..DEVICES + 2).map(|_| LoopDevice::new(1 << 20)).collect();
    let directory = Directory(std::env::temp_dir().join(format!("siskin-limits-{}", std::process::id())));
    fs::create_dir(&directory.0).expect("a directory of our own");
    let agent = Agent::start(&[
        &format!("--flows.max-series={FLOWS}"),
        &format!("--workloads.max-series={WORKLOADS}"),
        &format!("--process.max-comms={COMMS}"),
        &format!("--disk.max-devices={DEVICES}"),
        "--series.min-idle=0s",
    ]);
    let mut metrics = agent.scrape();
    let limits = ["siskin_series_limit", "siskin_scrape_limit_bytes"].map(|name| metrics.one(name, &[]));
    let [series_limit, bytes_limit] = limits;
    let said = format!("a scrape brings at most {series_limit} series in {bytes_limit} bytes");
    assert!(agent.log().contains(&said), "{}", agent.log());
    let mut most = [0; 2];
    for round in 0..4 {
        for (number, owner) in owners.iter().enumerate() {
            // Busier than those of the last round, which make room.
            for _ in 0..1 << round {
                exec(owner.cgroup(), &directory, round * OWNERS + number);
            }
            connect(owner.cgroup(), 1000 << round);
        }
        for owner in &owners {
            owner.io.run(|| devices.iter().for_each(work));
        }
        // After the first the new ones have rows, to which the second adds.
        for _ in 0..2 {
            in_network(|| owned_by(owners[0].cgroup(), || datagrams(round)));
            metrics = agent.scrape();
            let now = [metrics.samples.len(), metrics.text.len()];
            assert!(now[0] as f64 <= series_limit && now[1] as f64 <= bytes_limit, "{now:?} of {limits:?}");
            most = [most[0].max(now[0]), most[1].max(now[1])];
        }
    }
    println!("at most {} of {series_limit} series, {} of {bytes_limit} bytes", most[0], most[1]);

    // Workloads have variances only where the budget asked for estimates, of 11 metrics; and nobody
    // here sends commands to devices, whose operation is "other": a row of devices and one of each
    // workload.
    let unusual = (WORKLOADS + 1) * 11 + 49 + (WORKLOADS + 1) * 2;
    let usual_limit = series_limit - unusual as f64;
    assert!(most[0] as f64 >= 0.9 * usual_limit, "the formula says many more than there can be");
    // Tables that are full have as many series as the formula says.
    let flows = [
        "siskin_flow_sent_bytes_total",
        "siskin_flow_received_bytes_total",
        "siskin_flow_connections_total",
        "siskin_flow_retransmits_total",
        "siskin_flow_datagrams_total",
    ];
    for (names, series) in [
        (&flows[..], (FLOWS + 8) * 4),
        (&["siskin_process_comm_execs_total"], COMMS + 2),
        (&["siskin_process_execs_total"], WORKLOADS + 1),
        (&["siskin_tcp_connections_failed_total"], (WORKLOADS + 1) * 4),
        (&["siskin_disk_bytes_total"], DEVICES * 5 + 4),
    ] {
        assert_eq!(count(&metrics, names), series, "{names:?} in\n{}", metrics.text);
    }
    assert_eq!(metrics.one("siskin_flow_series", &[]), (FLOWS + 8) as f64);
    let containers = metrics.samples.iter().flat_map(|sample| &sample.labels);
    let longest = containers.filter(|(label, _)| label == "container").map(|(_, value)| value.len()).max();
    assert!(longest.is_some_and(|bytes| (130..=255).contains(&bytes)), "a long name is cut: {longest:?}");
}
