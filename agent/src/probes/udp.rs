//! The UDP probe: datagrams and bytes by flow. Sampled; exact at ratio 1.

use std::io;

use siskin_ebpf::{
    FlowKey, Loss, Probe, Program, Role, Slots, Table, UdpBank, UdpRow, Words as _, map, program,
};

use super::{Limits, Reader, bank_rows, describe_losses};
use crate::{
    estimate::{Clusters, Draws, Variances, Watch, variance},
    flows::{FlowTable, Protocol},
    kernel::{
        control::Control,
        hook::{Group, Hook, Needs, Point, Way},
        loader::{Kernel, possible_cpus},
        memory::{Kind, Plan},
        rows::{Bank, Rows},
    },
    metrics::{self, Exposition, Metric},
    workload::{Hierarchy, Workloads},
};

/// The probe's programs. Tracepoints and returns of functions tell the same number; the tracepoints are one for both address families.
/// Kprobes tell it of what is received.
pub const GROUPS: &[Group] = &[
    Group {
        ways: &[
            tracepoint("sock_send_length", &[hook(program::UDP_SEND, SEND, "Linux 6.3")]),
            exits(
                SENDMSG[0],
                &[
                    Hook { loses: Some(HANDED_TO_IP), ..exit(SENDMSG[0]) },
                    Hook { loses: Some(HANDED_TO_IP), ..exit(SENDMSG[1]) },
                ],
            ),
            Way::any(&[entry(program::UDP_TO_IP[0]), entry(program::UDP_TO_IP[1])]),
        ],
    },
    Group {
        ways: &[
            tracepoint("sock_recv_length", &[hook(program::UDP_RECEIVE, RECEIVE, "Linux 6.3")]),
            exits(RECVMSG[0], &[exit(RECVMSG[0]), exit(RECVMSG[1])]),
            Way::any(&[entry(program::UDP_CONSUME)]),
        ],
    },
];

const SEND: Point = Point::Tracepoint("sock_send_length");
const RECEIVE: Point = Point::Tracepoint("sock_recv_length");
const SENDMSG: [&str; 2] = program::UDP_SENDMSG;
const RECVMSG: [&str; 2] = program::UDP_RECVMSG;
const HANDED_TO_IP: &str =
    "datagrams that IP refuses count as sent, and calls that make one datagram together (MSG_MORE) as one";

const fn tracepoint(name: &'static str, hooks: &'static [Hook]) -> Way {
    Way { needs: Needs::Tracepoint(name), ..Way::any(hooks) }
}

const fn exits(function: &'static str, hooks: &'static [Hook]) -> Way {
    Way { needs: Needs::Exit(function), ..Way::any(hooks) }
}

/// The functions have the names of the programs.
const fn exit(program: &'static str) -> Hook {
    const REMEDY: &str =
        "Linux 6.3, or CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y (x86_64: 5.5, aarch64: 6.4)";
    hook(program, Point::Exit(program), REMEDY)
}

/// Likewise. A kprobe takes CAP_PERFMON to attach, which is given up, so it stays.
const fn entry(program: &'static str) -> Hook {
    const REMEDY: &str = "Linux 6.3, or CONFIG_KPROBE_EVENTS=y";
    Hook { stays: true, ..hook(program, Point::Entry(program), REMEDY) }
}

const fn hook(program: &'static str, point: Point, remedy: &'static str) -> Hook {
    Hook { probe: Probe::Udp, program, point, remedy, loses: None, stays: false }
}

/// Rows in the kernel's table of flows. Who has a series is decided among those that have a row here between two readings: room
/// for many more than have one.
const fn flow_rows(limits: &Limits) -> u32 {
    limits.flows.saturating_mul(4)
}

/// The probe's maps.
pub fn plans(limits: &Limits) -> Vec<Plan> {
    let [a, b] = map::UDP_ROWS;
    let (key_bytes, value_bytes) = (size_of::<FlowKey>() as u64, size_of::<UdpRow>() as u64);
    let rows = |name| Plan { name, kind: Kind::Hash, key_bytes, value_bytes, entries: flow_rows(limits) };
    let bank = Plan {
        name: map::UDP_BANK,
        kind: Kind::PerCpuArray,
        key_bytes: 4,
        value_bytes: size_of::<UdpBank>() as u64,
        entries: 1,
    };
    vec![bank, rows(a), rows(b)]
}

/// The unit of the variance of bytes.
const BYTES_UNIT: f64 = 16.0;

/// The running probe.
pub struct Udp {
    bank: Bank,
    rows: Rows<FlowKey, UdpRow>,
    last: UdpBank,
    clusters: Clusters<3>,
    /// Of datagrams and their bytes, sent and received.
    variances: [Variances<1>; 2],
}

impl Udp {
    /// Takes the probe's maps.
    ///
    /// # Errors
    /// When a map is not there.
    pub fn new(kernel: &Kernel, limits: &Limits) -> anyhow::Result<Self> {
        let [a, b] = map::UDP_ROWS;
        Ok(Self {
            bank: Bank::new(kernel.map(map::UDP_BANK)?, size_of::<UdpBank>(), possible_cpus()?),
            rows: Rows::new(Table::Udp, [kernel.map(a)?, kernel.map(b)?], flow_rows(limits)),
            last: UdpBank::zero(),
            clusters: Clusters::default(),
            variances: Default::default(),
        })
    }
}

impl Reader for Udp {
    fn probe(&self) -> Probe {
        Probe::Udp
    }

    fn read(
        &mut self,
        control: &Control,
        workloads: &mut Workloads,
        flows: &mut FlowTable,
    ) -> io::Result<()> {
        self.rows.read(control, |key, row| {
            let workload = workloads.resolve(Hierarchy::CGROUP2, key.cgroup);
            flows.add(&key, workload, &row);
        })?;
        let bank: UdpBank = self.bank.read()?;
        for role in Role::ALL {
            let delta = bank.other[role as usize].since(&self.last.other[role as usize]);
            flows.add_other(Protocol::Udp, role, &delta);
        }
        self.last = bank;
        Ok(())
    }

    fn tick(&mut self, slots: &Slots, watch: &Watch, _: &Control) -> io::Result<()> {
        let UdpBank { total, variance, .. } = self.bank.read()?;
        (self.last.total, self.last.variance) = (total, variance);
        self.draws(slots, watch);
        Ok(())
    }

    fn draws(&mut self, slots: &Slots, watch: &Watch) {
        let UdpRow { bytes: [sent, received], datagrams: [sends, receives] } = self.last.total;
        // Both directions share a window, so their sum is one total.
        self.clusters.read([sent, received, sends.wrapping_add(receives)], watch);
        for (direction, program) in [Program::UdpSend, Program::UdpReceive].into_iter().enumerate() {
            self.variances[direction].read(Draws {
                spread: slots.of[program as usize].sampler.spread,
                count: self.last.variance.datagrams[direction],
                values: [self.last.variance.bytes[direction]],
            });
        }
    }

    fn variances(&self) -> Vec<(&'static Metric, f64)> {
        let [sent, received] = &self.variances;
        let clusters = |n| self.clusters.variance(n);
        vec![
            (&metrics::FLOW_SENT, variance(sent.sum(0), BYTES_UNIT, clusters(0))),
            (&metrics::FLOW_RECEIVED, variance(received.sum(0), BYTES_UNIT, clusters(1))),
            (&metrics::FLOW_DATAGRAMS, variance(sent.count() + received.count(), 1.0, clusters(2))),
        ]
    }

    fn fills_up(&self, control: &Control) -> bool {
        self.rows.fills_up(control)
    }

    fn map_entries(&self, control: &Control) -> Vec<(&'static str, u64)> {
        bank_rows(control, Table::Udp, map::UDP_ROWS).to_vec()
    }

    fn describe(&self, _: &Workloads, out: &mut Exposition) {
        describe_losses(Probe::Udp, &self.last.lost, &[Loss::MapFull], out);
    }
}

const _: () = assert!(size_of::<UdpBank>() <= 32 * 1024, "a bank fits the kernel's per-CPU unit");
