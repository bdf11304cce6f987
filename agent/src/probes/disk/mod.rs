//! The disk probe: block requests by device and operation, and by workload.
//!
//! Requests and bytes of a device are the kernel's own ([`statistics`]), those of a workload too
//! where its cgroup has an io.stat ([`io_stat`]). Latencies, the split by workload elsewhere, and
//! what the kernel keeps no statistics of come from the program, sampled; they are scaled to what
//! the kernel counted.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use siskin_ebpf::{
    AllStats, DiskBank, DiskKey, DiskOp, DiskRow, DiskTotal, DiskWorkloadKey, DiskWorkloadRow, Probe,
    Program, Table, Words as _, map, program,
};

use super::{Context, Limits, Reader, Tick, bank_rows};
use crate::{
    budget::duty::Window,
    estimate::{DutyCycle, Residual, Sampled},
    kernel::{
        control::Control,
        hook::{Group, Hook, Point, Way},
        loader::Kernel,
        memory::{Kind, Plan},
        rows::{Bank, Deltas, Keyed, Rows},
    },
    metrics::{self, Metric, NANOS},
    workload::{Hierarchy, Workloads},
};

pub mod diskstats;
pub mod io_stat;
pub mod statistics;
pub mod totals;

use statistics::Statistics;
pub use totals::DiskTotals;
use totals::Interval;

/// The probe's programs.
pub const GROUPS: &[Group] = &[Group {
    ways: &[Way::any(&[Hook {
        probe: Probe::Disk,
        program: program::DISK_COMPLETE,
        point: Point::Tracepoint("block_rq_complete"),
        requires: "CONFIG_BLOCK=y",
        limitation: None,
        always_attached: false,
    }])],
}];

/// Devices and operations on them that may have counters; the kernel's table has a row for each
/// shard of them.
const fn device_rows(limits: &Limits) -> u32 {
    limits.devices.saturating_mul(DiskOp::ALL.len() as u32)
}

/// Rows in the kernel's table of workloads: most read and write only.
const fn workload_rows(limits: &Limits) -> u32 {
    limits.workloads.saturating_mul(2)
}

/// The probe's maps.
pub fn plans(limits: &Limits) -> Vec<Plan> {
    let [a, b] = map::DISK_WORKLOAD_ROWS;
    let key = size_of::<DiskWorkloadKey>();
    let value = size_of::<DiskWorkloadRow>();
    vec![
        Plan::new(map::DISK_BANK, Kind::Array, 4, size_of::<DiskBank>(), limits.shards),
        Plan::new(
            map::DISK_ROWS,
            Kind::Hash,
            size_of::<DiskKey>(),
            size_of::<DiskRow>(),
            device_rows(limits).saturating_mul(limits.shards),
        ),
        Plan::new(a, Kind::Hash, key, value, workload_rows(limits)),
        Plan::new(b, Kind::Hash, key, value, workload_rows(limits)),
    ]
}

/// The unit of the variance of bytes.
const BYTES_UNIT: f64 = 512.0;
/// The unit of the variances of latencies, in nanoseconds.
const NS_UNIT: f64 = 256.0;

/// The running probe.
pub struct Disk {
    sys_dev_block: PathBuf,
    statistics: Statistics,
    bank: Bank,
    devices: Keyed,
    device_deltas: Deltas<DiskKey, DiskRow>,
    workloads: Rows<DiskWorkloadKey, DiskWorkloadRow>,
    totals: DiskTotals,
    /// Bytes, and total and device time in nanoseconds: their errors beside the number of requests.
    residual: Residual<3>,
    duty: DutyCycle<4>,
    /// Total and device time that windows had more than requests of mean latency would have.
    excess_ns: [f64; 2],
    window_total: DiskTotal,
}

impl Disk {
    /// Takes the probe's maps.
    ///
    /// # Errors
    /// When a map is not there.
    pub fn new(kernel: &Kernel, limits: &Limits, procfs: &Path) -> anyhow::Result<Self> {
        let [a, b] = map::DISK_WORKLOAD_ROWS;
        Ok(Self {
            sys_dev_block: kernel.sysfs().join("dev/block"),
            statistics: Statistics::new(procfs, kernel.sysfs()),
            bank: Bank::sharded(kernel.map(map::DISK_BANK)?, size_of::<DiskBank>(), limits.shards),
            devices: Keyed::new(kernel.map(map::DISK_ROWS)?, 1),
            device_deltas: Deltas::default(),
            workloads: Rows::new(
                Table::DiskWorkload,
                [kernel.map(a)?, kernel.map(b)?],
                workload_rows(limits),
            ),
            totals: DiskTotals::new(device_rows(limits) as usize),
            residual: Residual::default(),
            duty: DutyCycle::default(),
            excess_ns: [0.0; 2],
            window_total: DiskBank::zero().total,
        })
    }

    /// What windows are compared by. Latencies are scaled to the number of requests, so only what
    /// they differ by from the mean is an error.
    fn duty_totals(&mut self, now: &DiskTotal) -> [f64; 4] {
        let last = std::mem::replace(&mut self.window_total, *now);
        let ios = now.ios.wrapping_sub(last.ios) as f64;
        let times = [(now.total_ns, last.total_ns), (now.device_ns, last.device_ns)];
        for (excess, (now_ns, last_ns)) in self.excess_ns.iter_mut().zip(times) {
            let mean_ns = if now.ios > 0 { now_ns as f64 / now.ios as f64 } else { 0.0 };
            *excess += now_ns.wrapping_sub(last_ns) as f64 - mean_ns * ios;
        }
        [now.ios as f64, now.bytes as f64, self.excess_ns[0], self.excess_ns[1]]
    }
}

impl Reader for Disk {
    fn probe(&self) -> Probe {
        Probe::Disk
    }

    fn read(&mut self, context: &mut Context<'_>) -> io::Result<f64> {
        let Context { control, stats, workloads, errors, lacking_seconds, now_seconds, .. } = context;
        let sampler = stats.programs[Program::DiskComplete as usize].sampler;
        let Self { sys_dev_block, statistics, devices, device_deltas, workloads: rows, totals, .. } = self;
        let bank: DiskBank = self.bank.read()?;
        let kernel = statistics.read().inspect_err(|error| {
            tracing::warn!("cannot read the kernel's disk statistics, estimates stand in: {error}");
        });
        let kernel = kernel.ok();
        let mut interval = Interval::new(&sampler, bank, *lacking_seconds == 0.0, totals);
        devices.each(|key: DiskKey, now: DiskRow| {
            if let (Some(op), Some(row)) = (op_of(key.op), device_deltas.take(key, now)) {
                let name = kernel.as_ref().and_then(|kernel| kernel.name(key.major, key.minor));
                let name = name.map_or_else(|| device_name(sys_dev_block, &key), str::to_owned);
                interval.add_device(name, op, &row);
            }
        })?;
        interval.end_devices(kernel.as_ref());
        let result = rows.read(control, |key, row| {
            if let Some(op) = op_of(key.op) {
                let workload = workloads.resolve(Hierarchy(key.hierarchy), key.cgroup);
                interval.add_workload(workload, op, &row);
            }
        });
        let [requests, bytes, ..] = self.duty.grown(*lacking_seconds);
        interval.finish(kernel.as_ref(), workloads, errors, [requests, bytes]);
        let total = totals.bank.total;
        let sampled = Sampled {
            count_variance: sampler.count_variance,
            sampled_variance: sampler.sampled_variance,
            estimated: sampler.estimated,
            sums: [
                total.bytes as f64 / BYTES_UNIT,
                total.total_ns as f64 / NS_UNIT,
                total.device_ns as f64 / NS_UNIT,
            ],
            squares: [total.bytes_variance, total.total_variance, total.device_variance],
        };
        self.residual.read(&sampled, true);
        result.map(|()| *now_seconds)
    }

    fn tick(&mut self, tick: &Tick<'_>) -> io::Result<()> {
        if let Some(seconds) = tick.attached_seconds {
            let total = self.bank.read::<DiskBank>()?.total;
            let totals = self.duty_totals(&total);
            self.duty.attached(totals, seconds);
        }
        Ok(())
    }

    fn window(&mut self, _: &AllStats, window: &Window) -> io::Result<()> {
        let total = self.bank.read::<DiskBank>()?.total;
        let totals = self.duty_totals(&total);
        self.duty.window(totals, window);
        Ok(())
    }

    fn forget(&mut self, gone: &HashSet<crate::workload::Id>) {
        self.totals.forget(gone);
    }

    fn variances(&self, lacking_seconds: f64) -> Vec<(&'static Metric, f64)> {
        // Latencies have errors of their own in any case; numbers and bytes where the kernel keeps
        // none.
        let seconds = |n: usize| {
            let sampling = self.residual.variance(n) * NS_UNIT * NS_UNIT;
            (sampling + self.duty.variance(n + 1, lacking_seconds)) / (NANOS * NANOS)
        };
        let [requests, bytes] = self.totals.uncounted_variance;
        vec![
            (&metrics::DISK_REQUESTS, requests),
            (&metrics::DISK_BYTES, bytes),
            (&metrics::WORKLOAD_DISK_IOS, requests),
            (&metrics::WORKLOAD_DISK_BYTES, bytes),
            (&metrics::DISK_IO, seconds(1)),
            (&metrics::DISK_DEVICE, seconds(2)),
        ]
    }

    fn fills_up(&self, control: &Control) -> bool {
        self.workloads.fills_up(control)
    }

    fn map_entries(&self, control: &Control) -> Vec<(&'static str, u64)> {
        let mut entries = bank_rows(control, Table::DiskWorkload, map::DISK_WORKLOAD_ROWS).to_vec();
        entries.push((map::DISK_ROWS, self.device_deltas.len() as u64));
        entries
    }

    fn describe(&self, workloads: &Workloads, out: &mut metrics::Exposition) {
        self.totals.describe(workloads, out);
    }
}

fn op_of(number: u32) -> Option<DiskOp> {
    DiskOp::ALL.get(number as usize).copied()
}

/// The device's name in `/dev`: where `/sys/dev/block/MAJOR:MINOR` points to. Looked up whenever it
/// did something, because numbers are used again for other devices. A device that is gone keeps its
/// numbers for a name.
fn device_name(sys_dev_block: &Path, key: &DiskKey) -> String {
    let numbers = format!("{}:{}", key.major, key.minor);
    fs::read_link(sys_dev_block.join(&numbers))
        .ok()
        .and_then(|target| Some(target.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or(numbers)
}
