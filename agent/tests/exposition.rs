//! The exposition's text, whole, from totals made here: no kernel takes part.
//!
//! When a change is meant, run with `SISKIN_UPDATE_GOLDEN=1` and read the difference.

use std::{fs, net::IpAddr, path::Path, time::Duration};

use siskin::{
    bounded,
    estimate::Errors,
    exposition::Exposition,
    flows::{FlowTable, Protocol, peer::Peers},
    metrics,
    probes::{
        disk::{DiskTotals, totals::Device},
        process::ProcessTotals,
        tcp::TcpTotals,
    },
    workload::{Id, Labels, Roots, Workloads},
};
use siskin_ebpf::{
    DiskOp, DiskWorkloadRow, FlowKey, FlowRow, Latency, Lifetime, Loss, PROTOCOL_TCP, ProcessRow, Role,
    SocketCounters, TcpRow, UdpRow,
};

/// Tables of two rows, which leave as soon as they were served.
const LIMITS: bounded::Limits = bounded::Limits {
    rows: 2,
    min_idle: Duration::ZERO,
    max_idle: Duration::from_secs(3600),
    first_departure: 1_700_000_000,
};

fn workloads() -> (Workloads, Id, Id) {
    let mut workloads = Workloads::new(Roots::default(), 10);
    let unit = workloads.intern(&Labels { container: "nginx.service".into(), ..Labels::default() });
    let pod = workloads.intern(&Labels {
        namespace: "shop".into(),
        pod: "cart-7d9\"\\\n".into(),
        container: "cart".into(),
    });
    (workloads, unit, pod)
}

fn process(unit: Id, pod: Id) -> ProcessTotals {
    let mut totals = ProcessTotals::new(LIMITS);
    totals
        .workloads
        .add(unit, &ProcessRow { execs: 12, forks: 20, exits: [9, 2, 1], ..ProcessRow::default() });
    totals.workloads.add(
        pod,
        &ProcessRow { execs: 1, forks: 0, exits: [0, 0, 3], oom_kills: 1, ..ProcessRow::default() },
    );
    for (comm, execs) in [("sh", 7), ("a \"b\"", 3), ("late", 2), ("sh", 1)] {
        let mut name = [0; 16];
        name[..comm.len()].copy_from_slice(comm.as_bytes());
        totals.add_comm(name, execs);
    }
    for lifetime_ns in [1_500_000, 1 << 30, 3_600_000_000_000] {
        totals.lifetime.buckets[Lifetime::index(lifetime_ns)] += 1;
        totals.lifetime.sum += lifetime_ns;
    }
    totals.bank.lost[Loss::MapFull as usize] = 4;
    totals.bank.other.execs = 4;
    totals
}

fn tcp(unit: Id, pod: Id) -> (TcpTotals, FlowTable) {
    let (mut totals, mut flows) = (TcpTotals::default(), FlowTable::new(LIMITS, Peers::addresses()));
    totals.workloads.add(
        unit,
        &TcpRow {
            opened: [5, 30],
            alive: [2, 2],
            failed: [2, 1, 3, 0],
            retransmits: 17,
            ..TcpRow::default()
        },
    );
    let key = |role, peer: &str, port| {
        let peer = match peer.parse().expect("an address") {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        FlowKey { cgroup: 1, peer, port, protocol: PROTOCOL_TCP, role: role as u8, padding: 0 }
    };
    let row = |sent_bytes, received_bytes| FlowRow {
        moved: SocketCounters { sent_bytes, received_bytes, connections: 2, retransmits: 1 },
        ..FlowRow::default()
    };
    flows.add(&key(Role::Server, "198.51.100.1", 22), pod, &row(31, 41));
    flows.add(&key(Role::Server, "192.0.2.7", 443), unit, &row(1000, 200));
    flows.add(&key(Role::Client, "2001:db8::5", 5432), pod, &row(70, 90_000));
    flows.add(&key(Role::Client, "192.0.2.9", 80), pod, &row(1, 2));
    flows.table.scraped(Duration::from_secs(15));
    flows.add(&key(Role::Client, "2001:db8::5", 5432), pod, &row(5, 6));
    let datagrams = UdpRow { bytes: [640, 0], datagrams: [10, 0], ..UdpRow::default() };
    flows.add_other(Protocol::Udp, Role::Client, &datagrams);
    let mut bank = totals.bank;
    bank.flow_other[Role::Server as usize].moved.sent_bytes = 55;
    bank.resets = [3, 8];
    bank.connect.buckets[Latency::index(300_000)] = 5;
    bank.connect.sum = 1_500_000;
    bank.lifetime[1].buckets[Lifetime::index(2_000_000_000)] = 28;
    bank.lifetime[1].sum = 56_000_000_000;
    bank.lost[Loss::LateAttach as usize] = 1;
    totals.set_bank(bank, &mut flows);
    (totals, flows)
}

fn disk(unit: Id) -> DiskTotals {
    let mut totals = DiskTotals::new(10);
    let mut device = Device { requests: 3, bytes: 12_288, errors: 1, ..Device::default() };
    for latency_ns in [90_000, 120_000, 4_000_000] {
        device.total.buckets[Latency::index(latency_ns)] += 1;
        device.total.sum += latency_ns;
    }
    totals.add_device("nvme0n1", DiskOp::Write, &device);
    totals.add_device("nvme0n1", DiskOp::Write, &device);
    totals.bank.other[DiskOp::Read as usize].bytes = 512;
    let row = DiskWorkloadRow { ios: 6, bytes: 24_576, ..DiskWorkloadRow::default() };
    totals.workloads[DiskOp::Write as usize].add(unit, &row);
    totals
}

fn errors(unit: Id, pod: Id) -> Errors {
    let mut errors = Errors::default();
    errors.add(&metrics::PROCESS_EXECS, unit, 12.25);
    errors.add(&metrics::FLOW_SENT, pod, 1e12);
    errors.add(&metrics::FLOW_SENT, unit, 0.0);
    errors
}

#[test]
fn the_text_is_as_agreed() {
    let (workloads, unit, pod) = workloads();
    let mut out = Exposition::default();
    process(unit, pod).describe(&workloads, &mut out);
    let (totals, flows) = tcp(unit, pod);
    totals.describe(&workloads, &mut out);
    flows.describe(&[Protocol::Tcp, Protocol::Udp], &workloads, &mut out);
    disk(unit).describe(&workloads, &mut out);
    errors(unit, pod).describe(&workloads, &mut out);
    workloads.describe(&mut out);
    let text = out.into_text();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/exposition.txt");
    if std::env::var_os("SISKIN_UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &text).unwrap();
    }
    let expected = fs::read_to_string(&golden).unwrap();
    for (line, (is, should)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(is, should, "line {}", line + 1);
    }
    assert_eq!(text.len(), expected.len());
}
