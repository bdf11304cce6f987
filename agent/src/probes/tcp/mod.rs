//! The TCP probe: connections by workload, flows, latencies, resets. Bytes of live connections come from a sweep over
//! their sockets before each reading; connections older than the agent are adopted once at start.

use std::{collections::HashSet, io, sync::Arc};

use siskin_ebpf::{
    AllStats, ConnectionCount, FlowKey, FlowRow, Probe, Program, Sampler, Socket, SocketCounters, Table,
    TcpBank, TcpEvents, TcpRow, Words as _, map, program,
};

use super::{Context, Limits, Reader, Tick, bank_rows};
use crate::{
    budget::duty::Window,
    estimate::{
        Added, Calibration, DutyCycle, ENOUGH_SAMPLES, Ratio, Residual, Sampled, Scale,
        errors::TCP as METRICS,
    },
    kernel::{
        control::Control,
        hook::{Group, Hook, Needs, Point, Way},
        loader::Kernel,
        memory::{Kind, Plan},
        rows::{Bank, Rows},
    },
    metrics::{Exposition, Metric},
    workload::{Hierarchy, Id, Workloads},
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
                        limitation: Some(
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
                        limitation: Some(
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
                    Hook { always_attached: true, ..hook(program::TCP_STATE_BY_ADDRESS, STATE, INET) },
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

const fn hook(program: &'static str, point: Point, requires: &'static str) -> Hook {
    Hook { probe: Probe::Tcp, program, point, requires, limitation: None, always_attached: false }
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
    let [rows_a, rows_b] = map::TCP_ROWS;
    let [flows_a, flows_b] = map::FLOW_ROWS;
    let flow_key = size_of::<FlowKey>();
    vec![
        Plan::new(map::TCP_BANK, Kind::Array, 4, size_of::<TcpBank>(), limits.shards),
        Plan::new(rows_a, Kind::Hash, 8, size_of::<TcpRow>(), limits.workloads),
        Plan::new(rows_b, Kind::Hash, 8, size_of::<TcpRow>(), limits.workloads),
        Plan::new(flows_a, Kind::Hash, flow_key, size_of::<FlowRow>(), flow_rows(limits)),
        Plan::new(flows_b, Kind::Hash, flow_key, size_of::<FlowRow>(), flow_rows(limits)),
        Plan::new(map::TCP_SOCKETS, Kind::SocketStorage, 4, size_of::<Socket>(), limits.sockets),
        Plan::new(map::TCP_BY_ADDRESS, Kind::Hash, 8, size_of::<Socket>(), limits.sockets),
        Plan::new(map::TCP_LISTENERS, Kind::Hash, 8, 8, LISTENERS),
    ]
}

mod adoption;
mod sweep;
mod totals;

use adoption::Adoption;
use sweep::Sweep;
pub use totals::TcpTotals;

/// The running probe.
pub struct Tcp {
    sweep: Option<Sweep>,
    /// Unix time until which all that happened is in the totals.
    until_seconds: f64,
    /// The map that remembers sockets.
    sockets: &'static str,
    adoption: Adoption,
    /// When connections were last left out, in seconds since the agent began.
    shed_seconds: f64,
    /// Whether the next reading counts the sockets that are followed.
    recounts: bool,
    /// The variance of what was skipped until the last tick.
    count_variance: u64,
    bank: Bank,
    rows: Rows<u64, TcpRow>,
    flows: Rows<FlowKey, FlowRow>,
    totals: TcpTotals,
    /// Of beginnings and of ends of connections that are not followed.
    calibrations: [Calibration; 2],
    /// What both were at the last reading, and the sampler.
    counted: [ConnectionCount; 2],
    /// How many of both had passed when the last window was over.
    window_passed: [u64; 2],
    sampler: Sampler,
    /// Of connections that ended in an error.
    failed: Residual<1>,
    /// Of bytes sent and received, and of retransmits: they are scaled as ends are.
    ends: Residual<3>,
    duty: DutyCycle<6>,
}

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
        let sweep = kernel.take_iterator(program::TCP_SWEEP);
        let both = |[a, b]: [&str; 2]| Ok::<_, anyhow::Error>([kernel.map(a)?, kernel.map(b)?]);
        if let Some(walk) = &walk
            && let Err(error) = walk.run()
        {
            tracing::warn!("cannot adopt open connections: {error}");
        }
        let mut tcp = Self {
            // A walk adopts, too, whenever it sweeps.
            sweep: sweep.or(walk).map(|iter| Sweep::new(iter, Arc::clone(&kernel.control))),
            until_seconds: 0.0,
            sockets,
            adoption: Adoption::new(adopt),
            shed_seconds: 0.0,
            recounts: false,
            count_variance: 0,
            bank: Bank::sharded(kernel.map(map::TCP_BANK)?, size_of::<TcpBank>(), limits.shards),
            rows: Rows::new(Table::Tcp, both(map::TCP_ROWS)?, limits.workloads),
            flows: Rows::new(Table::Flow, both(map::FLOW_ROWS)?, flow_rows(limits)),
            totals: TcpTotals::default(),
            calibrations: Default::default(),
            counted: Default::default(),
            window_passed: [0; 2],
            sampler: Sampler::default(),
            failed: Residual::default(),
            ends: Residual::default(),
            duty: DutyCycle::default(),
        };
        tcp.adoption.run();
        Ok(tcp)
    }

    fn read_all(&mut self, context: &mut Context<'_>) -> io::Result<f64> {
        let Context { control, stats, workloads, flows, errors, lacking_seconds, purse, now_seconds, .. } =
            context;
        // What was swept between two readings is read before the next sweep begins.
        let mut swept = self.sweep.as_mut().and_then(Sweep::take);
        let is_before = swept.is_some();
        match &mut self.sweep {
            Some(sweep) if !is_before => {
                sweep.read(*now_seconds, *purse)?;
                swept = sweep.take();
            }
            Some(_) => {}
            // None are known to be open.
            None => swept = Some(*now_seconds),
        }
        let totals = &mut self.totals;
        let bank: TcpBank = self.bank.read()?;
        let sampler = stats.programs[Program::TcpState as usize].sampler;
        let events = sampler.since(&std::mem::replace(&mut self.sampler, sampler));
        let samples = events.sampled;
        let variances = bank.variance.since(&totals.bank.variance);
        let now = [bank.opened, bank.ended];
        let since: [_; 2] = std::array::from_fn(|n| {
            let (now, last) = (now[n], std::mem::replace(&mut self.counted[n], now[n]));
            (now.passed.wrapping_sub(last.passed) as f64, now.estimated.wrapping_sub(last.estimated) as f64)
        });
        let [mut opened, mut ended] = std::array::from_fn(|n| {
            let (passed, estimated) = since[n];
            if events.is_exact() {
                return self.calibrations[n].exact();
            }
            // Both are sampled by one sampler.
            let share = estimated / (since[0].1 + since[1].1).max(1.0);
            self.calibrations[n].read(passed, estimated, (samples as f64 * share) as u64)
        });
        let mut added: [Added; 6] = Default::default();
        let mut add = |n: usize, id, value: u64, variance: u64| {
            added[n].add(id, value as f64, variance as f64 * UNITS[n] * UNITS[n]);
        };
        let rows = self.rows.read(control, |cgroup, row: TcpRow| {
            let id = workloads.resolve(Hierarchy::CGROUP2, cgroup);
            // Those that are followed are exact.
            let scaled = std::array::from_fn(|role| {
                let sampled = row.opened_sampled[role].min(row.opened[role]);
                row.opened[role] - sampled + opened.count(sampled)
            });
            let row = TcpRow { opened: scaled, ..row };
            totals.add(id, &row);
            // What was seen for itself alone has no error.
            let sampled = row.opened_sampled.iter().map(|count| opened.value(*count)).sum();
            add(0, id, sampled, row.opened_variance);
            add(1, id, row.failed.iter().sum(), row.failed_variance);
        });
        let result = rows.and_then(|()| {
            self.flows.read(control, |key, row: FlowRow| {
                let id = workloads.resolve(Hierarchy::CGROUP2, key.cgroup);
                let moved = scaled(&row.moved, &row.sampled, &mut ended);
                let row = FlowRow { moved, ..row };
                flows.add(&key, id, &row);
                let SocketCounters { sent_bytes, received_bytes, connections, retransmits } = row.sampled;
                add(2, id, ended.value(connections), row.variance.connections);
                add(3, id, ended.value(sent_bytes), row.variance.sent_bytes);
                add(4, id, ended.value(received_bytes), row.variance.received_bytes);
                add(5, id, ended.value(retransmits), row.variance.retransmits);
            })
        });
        let factors = [opened.factor(), ended.factor()];
        for (calibration, scale) in self.calibrations.iter_mut().zip([opened, ended]) {
            calibration.settle(scale);
        }
        let ratio = |n: usize, variance: u64| match samples {
            ENOUGH_SAMPLES.. => Ratio { estimated: since[n].1 * factors[n], variance: variance as f64 },
            _ => Ratio::default(),
        };
        let windows = self.duty.grown(*lacking_seconds);
        for (n, added) in added.into_iter().enumerate() {
            let ratio = match n {
                0 => ratio(0, variances.opened),
                1 => Ratio::default(),
                _ => ratio(1, variances.connections),
            };
            added.finish(errors, METRICS[n], ratio, windows[n]);
        }
        totals.set_bank(bank, flows);
        if let Some(since_seconds) = swept {
            let visited = totals.swept();
            if control.tcp_shed() || std::mem::take(&mut self.recounts) {
                // Ends that nobody saw left the count too high.
                control.set_sockets(visited);
            }
            self.until_seconds = since_seconds;
        }
        if let (Some(sweep), true) = (&mut self.sweep, is_before) {
            sweep.read(*now_seconds, *purse)?;
        }
        self.residuals();
        result.map(|()| self.until_seconds)
    }

    /// Where only a walk adopts, walks; says whether all are adopted, as they are elsewhere.
    fn walked(&mut self) -> io::Result<bool> {
        match &mut self.sweep {
            Some(sweep) if self.sockets == map::TCP_BY_ADDRESS => sweep.whole(),
            _ => Ok(true),
        }
    }

    /// Reads the errors of what beginnings and ends add.
    fn residuals(&mut self) {
        let TcpBank { events, variance, ended, .. } = &self.totals.bank;
        let Sampler { count_variance, sampled_variance, estimated, .. } = self.sampler;
        let failed = Sampled {
            count_variance,
            sampled_variance,
            estimated,
            sums: [events.failed as f64],
            squares: [variance.failed],
        };
        self.failed.read(&failed, false);
        // Beginnings and ends have one sampler: of ends alone the variance is known as far as they
        // were sampled.
        let ends = Sampled {
            count_variance: variance.connections,
            sampled_variance: variance.connections,
            estimated: ended.estimated,
            sums: [
                events.sent_bytes as f64 / BYTES_UNIT,
                events.received_bytes as f64 / BYTES_UNIT,
                events.retransmits as f64,
            ],
            squares: [variance.sent_bytes, variance.received_bytes, variance.retransmits],
        };
        // Not as a ratio: what followed connections moved is among the sums.
        self.ends.read(&ends, false);
    }
}

/// What a flow's sockets moved, of which a part was sampled: that part is scaled as the ends of
/// connections are.
fn scaled(moved: &SocketCounters, sampled: &SocketCounters, ends: &mut Scale) -> SocketCounters {
    let exact = |all: u64, sampled: u64| all.saturating_sub(sampled);
    let value = |all, sampled| exact(all, sampled) + ends.value(sampled);
    SocketCounters {
        sent_bytes: value(moved.sent_bytes, sampled.sent_bytes),
        received_bytes: value(moved.received_bytes, sampled.received_bytes),
        retransmits: value(moved.retransmits, sampled.retransmits),
        connections: exact(moved.connections, sampled.connections) + ends.count(sampled.connections),
    }
}

/// The units of their variances.
const UNITS: [f64; 6] = [1.0, 1.0, 1.0, BYTES_UNIT, BYTES_UNIT, 1.0];

fn words(events: &TcpEvents) -> [u64; 6] {
    let TcpEvents { opened, failed, connections, sent_bytes, received_bytes, retransmits } = *events;
    [opened, failed, connections, sent_bytes, received_bytes, retransmits]
}

impl Reader for Tcp {
    fn probe(&self) -> Probe {
        Probe::Tcp
    }

    fn read(&mut self, context: &mut Context<'_>) -> io::Result<f64> {
        let spent = |sweep: &Option<Sweep>| sweep.as_ref().map_or(0.0, Sweep::spent_seconds);
        let before = spent(&self.sweep);
        let result = self.read_all(context);
        *context.divided_seconds += spent(&self.sweep) - before;
        result
    }

    fn unfinished_seconds(&self) -> Option<f64> {
        self.sweep.as_ref().and_then(Sweep::next_seconds)
    }

    fn forget(&mut self, gone: &HashSet<Id>) {
        self.totals.workloads.forget(gone);
    }

    fn go_on(&mut self, seconds: f64) -> io::Result<()> {
        self.sweep.as_mut().map_or(Ok(()), |sweep| sweep.go_on(seconds))
    }

    fn tick(&mut self, tick: &Tick<'_>) -> io::Result<()> {
        let bank: TcpBank = self.bank.read()?;
        let events = bank.events;
        if let Some(seconds) = tick.attached_seconds {
            self.window_passed = [bank.opened.passed, bank.ended.passed];
            self.duty.attached(words(&events).map(|word| word as f64), seconds);
        }
        let rate = tick.control.rate(Probe::Tcp);
        let count_variance = tick.stats.programs[Program::TcpState as usize].sampler.count_variance;
        // CPUs that had used up their allowance sampled by themselves.
        let is_calm = tick.attached_seconds.is_some()
            && rate.period == 1
            && rate.duty == 1
            && count_variance == self.count_variance;
        self.count_variance = count_variance;
        if !is_calm {
            self.shed_seconds = tick.now_seconds;
        }
        let calm_seconds = tick.now_seconds - self.shed_seconds;
        if tick.control.tcp_shed()
            && let Some(are_all) = self.adoption.tick(tick.now_seconds, calm_seconds, tick.may_seconds)
        {
            self.recounts = true;
            if are_all && self.walked()? {
                tick.control.set_tcp_shed(false);
            }
        }
        Ok(())
    }

    fn window(&mut self, _: &AllStats, window: &Window) -> io::Result<()> {
        let bank: TcpBank = self.bank.read()?;
        let now = [bank.opened.passed, bank.ended.passed];
        let last = std::mem::replace(&mut self.window_passed, now);
        for (calibration, (now, last)) in self.calibrations.iter_mut().zip(now.into_iter().zip(last)) {
            calibration.correct(now.wrapping_sub(last) as f64 * (window.factor() - 1.0));
        }
        self.duty.window(words(&bank.events).map(|word| word as f64), window);
        Ok(())
    }

    fn variances(&self, lacking_seconds: f64) -> Vec<(&'static Metric, f64)> {
        let sampling = |n: usize| match n {
            0 => self.calibrations[0].owed().powi(2),
            1 => self.failed.variance(0),
            2 => self.calibrations[1].owed().powi(2),
            _ => self.ends.variance(n - 3) * UNITS[n] * UNITS[n],
        };
        let variance = |n: usize| sampling(n) + self.duty.variance(n, lacking_seconds);
        METRICS.into_iter().enumerate().map(|(n, metric)| (metric, variance(n))).collect()
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
