//! The UDP probe: datagrams and bytes by flow. Sampled; exact at ratio 1.

use std::io;

use siskin_ebpf::{
    AllStats, FlowKey, Loss, Probe, Program, Role, Sampler, Table, UdpBank, UdpRow, Words as _, map, program,
};

use super::{Context, Limits, Reader, Tick, bank_rows, describe_losses};
use crate::{
    budget::duty::Window,
    estimate::{Added, DutyCycle, Ratio, Residual, Sampled, SamplerCalibration},
    flows::Protocol,
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

/// The probe's programs. Returns of functions and tracepoints tell the same number; the tracepoints
/// run for every message of TCP and UNIX sockets, too. Kprobes tell it of what is received.
pub const GROUPS: &[Group] = &[
    Group {
        ways: &[
            exits(&SENDMSG, &[exit(SENDMSG[0]), exit(SENDMSG[1])]),
            tracepoint(
                "sock_send_length",
                &[Hook { limitation: Some(HANDED_TO_IP), ..hook(program::UDP_SEND, SEND, "Linux 6.3") }],
            ),
            Way::any(&[entry(program::UDP_TO_IP[0]), entry(program::UDP_TO_IP[1])]),
        ],
    },
    Group {
        ways: &[
            exits(&RECVMSG, &[exit(RECVMSG[0]), exit(RECVMSG[1])]),
            tracepoint("sock_recv_length", &[hook(program::UDP_RECEIVE, RECEIVE, "Linux 6.3")]),
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

/// IPv6 may be a module, whose functions the kernel's BTF does not know.
const fn exits(functions: &'static [&'static str], hooks: &'static [Hook]) -> Way {
    Way { needs: Needs::Exits(functions), ..Way::any(hooks) }
}

/// The functions have the names of the programs.
const fn exit(program: &'static str) -> Hook {
    const REQUIRES: &str = "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y (x86_64: 5.5, aarch64: 6.4)";
    hook(program, Point::Exit(program), REQUIRES)
}

/// Likewise. A kprobe takes CAP_PERFMON to attach, which is given up, so it stays.
const fn entry(program: &'static str) -> Hook {
    const REQUIRES: &str = "Linux 6.3, or CONFIG_KPROBE_EVENTS=y";
    Hook { always_attached: true, ..hook(program, Point::Entry(program), REQUIRES) }
}

const fn hook(program: &'static str, point: Point, requires: &'static str) -> Hook {
    Hook { probe: Probe::Udp, program, point, requires, limitation: None, always_attached: false }
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
const BYTES_UNIT: f64 = 4.0;

/// Both directions, sent and received.
const DIRECTIONS: [Program; 2] = [Program::UdpSend, Program::UdpReceive];

/// The running probe.
pub struct Udp {
    bank: Bank,
    rows: Rows<FlowKey, UdpRow>,
    last: UdpBank,
    /// Of datagrams sent and received.
    calibrations: [SamplerCalibration; 2],
    /// Bytes sent and received, and datagrams both ways: the directions share their windows.
    duty: DutyCycle<3>,
    /// Of bytes, sent and received.
    bytes: [Residual<1>; 2],
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
            calibrations: Default::default(),
            duty: DutyCycle::default(),
            bytes: Default::default(),
        })
    }

    /// What windows are compared by.
    fn duty_totals(&self, stats: &AllStats) -> [f64; 3] {
        let [sent, received] = self.last.total.bytes.map(|bytes| bytes as f64);
        let datagrams = DIRECTIONS.map(|program| sampler(stats, program).passed as f64);
        [sent, received, datagrams.iter().sum()]
    }
}

fn sampler(stats: &AllStats, program: Program) -> &Sampler {
    &stats.programs[program as usize].sampler
}

impl Reader for Udp {
    fn probe(&self) -> Probe {
        Probe::Udp
    }

    fn read(&mut self, context: &mut Context<'_>) -> io::Result<f64> {
        let Context { control, stats, workloads, flows, errors, lacking_seconds, now_seconds, .. } = context;
        let Self { bank, rows, last, calibrations, duty, bytes } = self;
        let [(mut sends, of_sends), (mut receives, of_receives)] =
            std::array::from_fn(|n| calibrations[n].read(sampler(stats, DIRECTIONS[n])));
        let mut added: [Added; 3] = Default::default();
        let result = rows.read(control, |key, row: UdpRow| {
            let workload = workloads.resolve(Hierarchy::CGROUP2, key.cgroup);
            let row = UdpRow {
                bytes: [sends.value(row.bytes[0]), receives.value(row.bytes[1])],
                datagrams: [sends.count(row.datagrams[0]), receives.count(row.datagrams[1])],
                ..row
            };
            flows.add(&key, workload, &row);
            for (direction, added) in added[..2].iter_mut().enumerate() {
                let variance = row.bytes_variance[direction] as f64 * BYTES_UNIT * BYTES_UNIT;
                added.add(workload, row.bytes[direction] as f64, variance);
            }
            let variance: u64 = row.datagrams_variance.iter().sum();
            added[2].add(workload, row.datagrams.iter().sum::<u64>() as f64, variance as f64);
        });
        for (calibration, scale) in calibrations.iter_mut().zip([sends, receives]) {
            calibration.settle(scale);
        }
        let both = Ratio {
            estimated: of_sends.estimated + of_receives.estimated,
            variance: of_sends.variance + of_receives.variance,
        };
        let metrics = [&metrics::FLOW_SENT, &metrics::FLOW_RECEIVED, &metrics::FLOW_DATAGRAMS];
        let windows = duty.grown(*lacking_seconds);
        for (n, (added, ratio)) in added.into_iter().zip([of_sends, of_receives, both]).enumerate() {
            added.finish(errors, metrics[n], ratio, windows[n]);
        }
        result?;
        let bank: UdpBank = bank.read()?;
        for role in Role::ALL {
            let delta = bank.other[role as usize].since(&last.other[role as usize]);
            flows.add_other(Protocol::Udp, role, &delta);
        }
        *last = bank;
        for (direction, residual) in bytes.iter_mut().enumerate() {
            let sampler = sampler(stats, DIRECTIONS[direction]);
            let sampled = Sampled {
                count_variance: sampler.count_variance,
                sampled_variance: sampler.sampled_variance,
                estimated: sampler.estimated,
                sums: [last.total.bytes[direction] as f64 / BYTES_UNIT],
                squares: [last.total.bytes_variance[direction]],
            };
            residual.read(&sampled, true);
        }
        Ok(*now_seconds)
    }

    fn tick(&mut self, tick: &Tick<'_>) -> io::Result<()> {
        if let Some(seconds) = tick.attached_seconds {
            self.last.total = self.bank.read::<UdpBank>()?.total;
            self.duty.attached(self.duty_totals(tick.stats), seconds);
            for (calibration, program) in self.calibrations.iter_mut().zip(DIRECTIONS) {
                calibration.attached(sampler(tick.stats, program));
            }
        }
        Ok(())
    }

    fn window(&mut self, stats: &AllStats, window: &Window) -> io::Result<()> {
        self.last.total = self.bank.read::<UdpBank>()?.total;
        self.duty.window(self.duty_totals(stats), window);
        for (calibration, program) in self.calibrations.iter_mut().zip(DIRECTIONS) {
            calibration.window(sampler(stats, program), window.factor());
        }
        Ok(())
    }

    fn variances(&self, lacking_seconds: f64) -> Vec<(&'static Metric, f64)> {
        let bytes = |n: usize| {
            self.bytes[n].variance(0) * BYTES_UNIT * BYTES_UNIT + self.duty.variance(n, lacking_seconds)
        };
        let datagrams: f64 = self.calibrations.iter().map(SamplerCalibration::variance).sum();
        vec![
            (&metrics::FLOW_SENT, bytes(0)),
            (&metrics::FLOW_RECEIVED, bytes(1)),
            (&metrics::FLOW_DATAGRAMS, datagrams + self.duty.variance(2, lacking_seconds)),
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
