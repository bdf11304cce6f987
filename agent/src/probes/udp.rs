//! The UDP probe: datagrams and bytes by flow. Sampled; exact at ratio 1.

use std::io;

use siskin_ebpf::{
    FlowKey, Loss, Probe, Role, Table, UdpBank, UdpRow, UdpVariance, Words as _, map, program,
};

use super::{Limits, Reader, bank_rows, describe_losses};
use crate::{
    estimate::{Clusters, Variances, standard_error},
    flows::{FlowId, FlowTable, Protocol},
    kernel::{
        control::Control,
        hook::{Group, Hook, Needs, Point},
        loader::{Kernel, possible_cpus},
        memory::{Kind, Plan},
        rows::{Bank, Rows},
    },
    metrics::{self, Exposition},
    workload::{Hierarchy, Workloads},
};

/// The probe's programs. Both places tell the same number; the tracepoints are one for both address families.
pub const GROUPS: &[Group] = &[
    group("sock_send_length", &[tracepoint(program::UDP_SEND, "sock_send_length")], &SENDMSG),
    group("sock_recv_length", &[tracepoint(program::UDP_RECEIVE, "sock_recv_length")], &RECVMSG),
];

const SENDMSG: [Hook; 2] = exits(program::UDP_SENDMSG);
const RECVMSG: [Hook; 2] = exits(program::UDP_RECVMSG);

const fn group(needs: &'static str, hooks: &'static [Hook], instead: &'static [Hook]) -> Group {
    Group { needs: Needs::Tracepoint(needs), hooks, instead, maps: [&[], &[]] }
}

const fn tracepoint(program: &'static str, name: &'static str) -> Hook {
    hook(program, Point::Tracepoint(name), "Linux 6.3")
}

/// The functions have the names of the programs.
const fn exits([v4, v6]: [&'static str; 2]) -> [Hook; 2] {
    const REMEDY: &str =
        "Linux 6.3, or CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y (x86_64: 5.5, aarch64: 6.4)";
    [hook(v4, Point::Exit(v4), REMEDY), hook(v6, Point::Exit(v6), REMEDY)]
}

const fn hook(program: &'static str, point: Point, remedy: &'static str) -> Hook {
    Hook { probe: Probe::Udp, program, point, remedy, loses: None }
}

/// Rows in the kernel's table of flows: room for new ones between two readings beside all that have a series.
const fn flow_rows(limits: &Limits) -> u32 {
    limits.flows.saturating_mul(2)
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
    variances: Variances<3>,
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
            variances: Variances::default(),
        })
    }
}

/// The bank's variances: of bytes sent, of bytes received, of datagrams.
fn variances(bank: &UdpBank) -> [u64; 3] {
    let UdpVariance { bytes: [sent, received], datagrams: [sends, receives] } = bank.variance;
    [sent, received, sends.wrapping_add(receives)]
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
            flows.add(FlowId::of(&key, workload), &row);
        })?;
        let bank: UdpBank = self.bank.read()?;
        for role in Role::ALL {
            let delta = bank.other[role as usize].since(&self.last.other[role as usize]);
            flows.add_other(Protocol::Udp, role, &delta);
        }
        self.variances.read(variances(&bank));
        self.last = bank;
        Ok(())
    }

    fn tick(&mut self, duty_log2: u64) -> io::Result<()> {
        let bank: UdpBank = self.bank.read()?;
        let UdpRow { bytes: [sent, received], datagrams: [sends, receives] } = bank.total;
        // Both directions share a window, so their sum is one total.
        self.clusters.tick([sent, received, sends.wrapping_add(receives)], duty_log2);
        self.variances.read(variances(&bank));
        Ok(())
    }

    fn fills_up(&self, control: &Control) -> bool {
        self.rows.fills_up(control)
    }

    fn map_entries(&self, control: &Control) -> Vec<(&'static str, u64)> {
        bank_rows(control, Table::Udp, map::UDP_ROWS).to_vec()
    }

    fn describe(&self, _: &Workloads, out: &mut Exposition) {
        let metrics = [
            (&metrics::FLOW_SENT, BYTES_UNIT),
            (&metrics::FLOW_RECEIVED, BYTES_UNIT),
            (&metrics::FLOW_DATAGRAMS, 1.0),
        ];
        for (n, (metric, unit)) in metrics.into_iter().enumerate() {
            let (variance, clusters) = (self.variances.of(n), self.clusters.variance(n));
            out.gauge(&metrics::STANDARD_ERROR, &[metric.name], standard_error(variance, unit, clusters));
        }
        describe_losses(Probe::Udp, &self.last.lost, &[Loss::MapFull], out);
    }
}

const _: () = assert!(size_of::<UdpBank>() <= 32 * 1024, "a bank fits the kernel's per-CPU unit");
