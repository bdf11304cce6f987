//! The TCP probe: connections by workload, flows, latencies, resets. Bytes of live connections come from a sweep over
//! their sockets before each reading; connections older than the agent are adopted once at start.

use std::{collections::HashSet, io};

use siskin_ebpf::{
    Failure, FlowKey, FlowRow, Loss, Probe, Program, Role, Slots, Socket, Table, TcpBank, TcpEvents, TcpRow,
    Words as _, map, program,
};

use super::{Limits, Reader, bank_rows, describe_losses};
use crate::{
    estimate::{Clusters, Draws, Variances, Watch, variance},
    flows::{FlowTable, Protocol},
    kernel::{
        control::Control,
        hook::{Group, Hook, Needs, Point, Way},
        iter::Iter,
        loader::{Kernel, possible_cpus},
        memory::{Kind, Plan},
        rows::{Bank, Rows},
    },
    metrics::{self, Exposition, Metric},
    workload::{Hierarchy, Id, Totals, Workloads},
};

/// The probe's programs. The one that follows states comes first: what it sees is not adopted again.
pub const GROUPS: &[Group] = &[
    Group {
        ways: &[
            Way {
                needs: Needs::FetchingAtomics,
                hooks: &[
                    hook(program::TCP_STATE, STATE, INET),
                    Hook {
                        loses: Some(
                            "in other network namespaces bytes are counted when a connection ends, and none are known to be open",
                        ),
                        ..hook(
                            program::TCP_SWEEP,
                            Point::MapIterator("bpf_sk_storage_map", map::TCP_SOCKETS),
                            "Linux 5.12",
                        )
                    },
                    hook(program::TCP_LISTEN, Point::Iterator("task_file"), "Linux 5.11"),
                    Hook {
                        loses: Some(
                            "connections in other network namespaces that are older than Siskin are not counted",
                        ),
                        ..hook(program::TCP_ADOPT, Point::Iterator("task_file"), "Linux 5.11")
                    },
                ],
                maps: &[map::TCP_SOCKETS],
            },
            Way {
                hooks: &[
                    // What it remembers of a socket has to go with the socket.
                    Hook { stays: true, ..hook(program::TCP_STATE_BY_ADDRESS, STATE, INET) },
                    hook(program::TCP_WALK, Point::Iterator("tcp"), "Linux 5.9"),
                ],
                maps: &[map::TCP_BY_ADDRESS],
                needs: Needs::Nothing,
            },
        ],
    },
    Group {
        ways: &[Way::any(&[
            hook(program::TCP_RESET_SENT, Point::Tracepoint("tcp_send_reset"), INET),
            hook(program::TCP_RESET_RECEIVED, Point::Tracepoint("tcp_receive_reset"), INET),
        ])],
    },
];

const STATE: Point = Point::Tracepoint("inet_sock_set_state");
const INET: &str = "CONFIG_INET=y";

const fn hook(program: &'static str, point: Point, remedy: &'static str) -> Hook {
    Hook { probe: Probe::Tcp, program, point, remedy, loses: None, stays: false }
}

/// Listening ports remembered while sockets are adopted.
const LISTENERS: u32 = 4096;

/// Rows in the kernel's table of flows. Who has a series is decided among those that have a row here between two readings: room
/// for many more than have one.
const fn flow_rows(limits: &Limits) -> u32 {
    limits.flows.saturating_mul(4)
}

/// The probe's maps.
pub fn plans(limits: &Limits) -> Vec<Plan> {
    let plan = |name, kind, key_bytes, value_bytes: usize, entries| Plan {
        name,
        kind,
        key_bytes,
        value_bytes: value_bytes as u64,
        entries,
    };
    let [rows_a, rows_b] = map::TCP_ROWS;
    let [flows_a, flows_b] = map::FLOW_ROWS;
    let flow_key = size_of::<FlowKey>() as u64;
    vec![
        plan(map::TCP_BANK, Kind::PerCpuArray, 4, size_of::<TcpBank>(), 1),
        plan(rows_a, Kind::Hash, 8, size_of::<TcpRow>(), limits.workloads),
        plan(rows_b, Kind::Hash, 8, size_of::<TcpRow>(), limits.workloads),
        plan(flows_a, Kind::Hash, flow_key, size_of::<FlowRow>(), flow_rows(limits)),
        plan(flows_b, Kind::Hash, flow_key, size_of::<FlowRow>(), flow_rows(limits)),
        plan(map::TCP_SOCKETS, Kind::SocketStorage, 4, size_of::<Socket>(), limits.sockets),
        plan(map::TCP_BY_ADDRESS, Kind::Hash, 8, size_of::<Socket>(), limits.sockets),
        plan(map::TCP_LISTENERS, Kind::Hash, 8, 8, LISTENERS),
    ]
}

/// Everything counted so far. Pure.
#[derive(Debug)]
pub struct TcpTotals {
    /// Counters by workload.
    pub workloads: Totals<TcpRow>,
    /// The bank as last read.
    pub bank: TcpBank,
    /// Connections that the last sweep found alive and that fit no row of their own.
    pub alive_other: [u64; 2],
}

impl Default for TcpTotals {
    fn default() -> Self {
        Self { workloads: Totals::default(), bank: TcpBank::zero(), alive_other: [0; 2] }
    }
}

impl TcpTotals {
    /// Takes a newer reading of the bank; what did not fit the kernel's table of flows goes to `flows`.
    pub fn set_bank(&mut self, bank: TcpBank, flows: &mut FlowTable) {
        for role in Role::ALL {
            let index = role as usize;
            let delta = bank.flow_other[index].since(&self.bank.flow_other[index]);
            flows.add_other(Protocol::Tcp, role, &delta);
            self.alive_other[index] = bank.other.alive[index].wrapping_sub(self.bank.other.alive[index]);
        }
        self.bank = bank;
    }

    /// Forgets how many connections are open, before a sweep counts them anew.
    pub fn recount(&mut self) {
        for row in self.workloads.rows_mut() {
            row.alive = [0; 2];
        }
    }

    /// Describes the totals as metrics.
    pub fn describe(&self, workloads: &Workloads, out: &mut Exposition) {
        let mut rows = self.workloads.clone();
        rows.add(Id::UNKNOWN, &TcpRow { alive: self.alive_other, ..self.bank.other });
        for (id, row) in rows.iter() {
            let w = workloads.labels(id);
            let labels = |last| [w.namespace.as_str(), w.pod.as_str(), w.container.as_str(), last];
            for role in Role::ALL {
                let index = role as usize;
                out.counter(&metrics::TCP_OPENED, &labels(role.name()), row.opened[index] as f64);
                out.gauge(&metrics::TCP_OPEN, &labels(role.name()), row.alive[index] as f64);
            }
            for reason in Failure::ALL {
                out.counter(&metrics::TCP_FAILED, &labels(reason.name()), row.failed[reason as usize] as f64);
            }
            out.counter(&metrics::TCP_RETRANSMITS, &labels("")[..3], row.retransmits as f64);
        }
        for (index, direction) in ["sent", "received"].into_iter().enumerate() {
            out.counter(&metrics::TCP_RESETS, &[direction], self.bank.resets[index] as f64);
        }
        out.histogram(&metrics::TCP_CONNECT, &[], &self.bank.connect, metrics::LATENCY_BOUNDS);
        out.histogram(&metrics::TCP_RTT, &[], &self.bank.rtt, metrics::LATENCY_BOUNDS);
        for role in Role::ALL {
            let lifetime = &self.bank.lifetime[role as usize];
            out.histogram(&metrics::TCP_LIFETIME, &[role.name()], lifetime, metrics::LIFETIME_BOUNDS);
        }
        let reasons = [Loss::MapFull, Loss::LateAttach, Loss::SocketStorage, Loss::Budget];
        describe_losses(Probe::Tcp, &self.bank.lost, &reasons, out);
    }
}

/// The running probe.
pub struct Tcp {
    sweep: Option<Iter>,
    /// The map that remembers sockets.
    sockets: &'static str,
    /// Those that adopt open connections, by name.
    adopt: Vec<(&'static str, Iter)>,
    /// When connections were last left out, in seconds since the agent began.
    shed_seconds: f64,
    /// The variance of what was passed over until the last tick.
    spread: u64,
    bank: Bank,
    rows: Rows<u64, TcpRow>,
    flows: Rows<FlowKey, FlowRow>,
    totals: TcpTotals,
    variances: Variances<6>,
    clusters: Clusters<6>,
}

/// Seconds without a connection left out after which those that were left out before are adopted.
const ADOPT_AFTER_SECONDS: f64 = 10.0;

/// The unit of the variance of bytes.
const BYTES_UNIT: f64 = 16.0;

impl Tcp {
    /// Takes the probe's maps and adopts the connections that are open already.
    ///
    /// # Errors
    /// When a map is not there.
    pub fn new(kernel: &mut Kernel, limits: &Limits) -> anyhow::Result<Self> {
        // Without them connections older than the agent are counted as lost when they end.
        let adopt = [program::TCP_LISTEN, program::TCP_ADOPT].into_iter();
        let adopt = adopt.filter_map(|name| Some((name, kernel.take_iterator(name)?))).collect();
        let walk = kernel.take_iterator(program::TCP_WALK);
        let sockets = if walk.is_some() { map::TCP_BY_ADDRESS } else { map::TCP_SOCKETS };
        // A walk adopts, too.
        let sweep = kernel.take_iterator(program::TCP_SWEEP).or(walk);
        let both = |[a, b]: [&str; 2]| Ok::<_, anyhow::Error>([kernel.map(a)?, kernel.map(b)?]);
        let tcp = Self {
            sweep,
            sockets,
            adopt,
            shed_seconds: 0.0,
            spread: 0,
            bank: Bank::new(kernel.map(map::TCP_BANK)?, size_of::<TcpBank>(), possible_cpus()?),
            rows: Rows::new(Table::Tcp, both(map::TCP_ROWS)?, limits.workloads),
            flows: Rows::new(Table::Flow, both(map::FLOW_ROWS)?, flow_rows(limits)),
            totals: TcpTotals::default(),
            variances: Variances::default(),
            clusters: Clusters::default(),
        };
        tcp.adopt();
        Ok(tcp)
    }

    /// Follows the connections that are open and not followed.
    fn adopt(&self) {
        let walk = self.sweep.as_ref().filter(|_| self.sockets == map::TCP_BY_ADDRESS);
        let adopt = self.adopt.iter().map(|(name, iter)| (*name, iter));
        for (name, iter) in adopt.chain(walk.map(|walk| (program::TCP_WALK, walk))) {
            if let Err(error) = iter.run() {
                tracing::warn!("cannot adopt open connections: iterator `{name}`: {error}");
            }
        }
    }
}

fn words(events: &TcpEvents) -> [u64; 6] {
    let TcpEvents { opened, failed, connections, sent_bytes, received_bytes, retransmits } = *events;
    [opened, failed, connections, sent_bytes, received_bytes, retransmits]
}

impl Reader for Tcp {
    fn probe(&self) -> Probe {
        Probe::Tcp
    }

    fn read(
        &mut self,
        control: &Control,
        workloads: &mut Workloads,
        flows: &mut FlowTable,
    ) -> io::Result<()> {
        if let Some(sweep) = &self.sweep {
            sweep.run()?;
        }
        let totals = &mut self.totals;
        totals.recount();
        self.rows.read(control, |cgroup, row| {
            totals.workloads.add(workloads.resolve(Hierarchy::CGROUP2, cgroup), &row);
        })?;
        self.flows.read(control, |key, row| {
            let workload = workloads.resolve(Hierarchy::CGROUP2, key.cgroup);
            flows.add(&key, workload, &row);
        })?;
        let swept = totals.bank.swept;
        totals.set_bank(self.bank.read()?, flows);
        if control.tcp_shed() {
            // Ends that nobody saw left the count too high.
            control.set_sockets(totals.bank.swept.wrapping_sub(swept));
        }
        Ok(())
    }

    fn forget(&mut self, gone: &HashSet<Id>) {
        self.totals.workloads.forget(gone);
    }

    fn tick(&mut self, slots: &Slots, watch: &Watch, control: &Control) -> io::Result<()> {
        let TcpBank { events, variance, .. } = self.bank.read()?;
        (self.totals.bank.events, self.totals.bank.variance) = (events, variance);
        let rate = control.rate(Probe::Tcp);
        let spread = slots.of[Program::TcpState as usize].sampler.spread;
        // CPUs that had spent their allowance drew by themselves.
        let is_calm = rate.period_log2 == 0 && rate.duty_log2 == 0 && spread == self.spread;
        self.spread = spread;
        self.draws(slots, watch);
        if !is_calm {
            self.shed_seconds = watch.now_seconds;
        }
        if control.tcp_shed() && watch.now_seconds - self.shed_seconds >= ADOPT_AFTER_SECONDS {
            self.adopt();
            control.set_tcp_shed(false);
        }
        Ok(())
    }

    fn draws(&mut self, slots: &Slots, watch: &Watch) {
        self.clusters.read(words(&self.totals.bank.events), watch);
        let variance = self.totals.bank.variance;
        self.variances.read(Draws {
            spread: slots.of[Program::TcpState as usize].sampler.spread,
            // One sampler draws both kinds of event: a connection's establishment, and its end.
            count: variance.opened.wrapping_add(variance.connections),
            values: words(&variance),
        });
    }

    fn variances(&self) -> Vec<(&'static Metric, f64)> {
        let of = |n, unit| variance(self.variances.sum(n), unit, self.clusters.variance(n));
        vec![
            (&metrics::TCP_OPENED, of(0, 1.0)),
            (&metrics::TCP_FAILED, of(1, 1.0)),
            (&metrics::FLOW_CONNECTIONS, of(2, 1.0)),
            (&metrics::FLOW_SENT, of(3, BYTES_UNIT)),
            (&metrics::FLOW_RECEIVED, of(4, BYTES_UNIT)),
            (&metrics::FLOW_RETRANSMITS, of(5, 1.0)),
        ]
    }

    fn fills_up(&self, control: &Control) -> bool {
        self.rows.fills_up(control) || self.flows.fills_up(control)
    }

    fn map_entries(&self, control: &Control) -> Vec<(&'static str, u64)> {
        let mut entries =
            [bank_rows(control, Table::Tcp, map::TCP_ROWS), bank_rows(control, Table::Flow, map::FLOW_ROWS)]
                .concat();
        entries.push((self.sockets, control.sockets()));
        entries
    }

    fn describe(&self, workloads: &Workloads, out: &mut Exposition) {
        self.totals.describe(workloads, out);
    }
}

const _: () = assert!(size_of::<TcpBank>() <= 32 * 1024, "a bank fits the kernel's per-CPU unit");
