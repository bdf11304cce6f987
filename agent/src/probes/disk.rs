//! The disk probe: block requests by device and operation, and by workload. Sampled; exact at ratio 1.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::PathBuf,
};

use siskin_ebpf::{
    DiskBank, DiskKey, DiskOp, DiskRow, DiskTotal, DiskVariance, DiskWorkloadKey, DiskWorkloadRow, Loss,
    Probe, Program, Slots, Table, Words as _, map, program,
};

use super::{Limits, Reader, bank_rows, describe_losses};
use crate::{
    estimate::{Clusters, Draws, Variances, Watch, variance},
    flows::FlowTable,
    kernel::{
        control::Control,
        hook::{Group, Hook, Point, Way},
        loader::{Kernel, possible_cpus},
        memory::{Kind, Plan},
        rows::{Bank, Deltas, Keyed, Rows},
    },
    metrics::{self, Exposition, Metric, NANOS},
    workload::{Hierarchy, Id, Totals, Workloads},
};

/// The probe's programs.
pub const GROUPS: &[Group] = &[Group {
    ways: &[Way::any(&[Hook {
        probe: Probe::Disk,
        program: program::DISK_COMPLETE,
        point: Point::Tracepoint("block_rq_complete"),
        remedy: "CONFIG_BLOCK=y",
        loses: None,
        stays: false,
    }])],
}];

/// Rows in the kernel's table of devices: one per operation.
const fn device_rows(limits: &Limits) -> u32 {
    limits.devices.saturating_mul(DiskOp::ALL.len() as u32)
}

/// Rows in the kernel's table of workloads: most read and write only.
const fn workload_rows(limits: &Limits) -> u32 {
    limits.workloads.saturating_mul(2)
}

/// The probe's maps.
pub fn plans(limits: &Limits) -> Vec<Plan> {
    let plan = |name, kind, key_bytes: usize, value_bytes: usize, entries| Plan {
        name,
        kind,
        key_bytes: key_bytes as u64,
        value_bytes: value_bytes as u64,
        entries,
    };
    let [a, b] = map::DISK_WORKLOAD_ROWS;
    let key = size_of::<DiskWorkloadKey>();
    let value = size_of::<DiskWorkloadRow>();
    vec![
        plan(map::DISK_BANK, Kind::PerCpuArray, 4, size_of::<DiskBank>(), 1),
        plan(
            map::DISK_ROWS,
            Kind::PerCpuHash,
            size_of::<DiskKey>(),
            size_of::<DiskRow>(),
            device_rows(limits),
        ),
        plan(a, Kind::Hash, key, value, workload_rows(limits)),
        plan(b, Kind::Hash, key, value, workload_rows(limits)),
    ]
}

/// Everything counted so far. Pure.
#[derive(Debug)]
pub struct DiskTotals {
    /// Counters by device and operation.
    pub devices: HashMap<(String, DiskOp), DiskRow>,
    /// Most device and operation pairs with counters of their own.
    pub max_devices: usize,
    /// Counters of devices beyond the limit, by operation: numbers are used again under other names.
    pub other: [DiskRow; 5],
    /// Counters by workload, one for each operation.
    pub workloads: [Totals<DiskWorkloadRow>; 5],
    /// The bank as last read: it only grows.
    pub bank: DiskBank,
    /// Variances from being attached for a share of the time.
    pub clusters: Clusters<4>,
    /// Variances of independent draws: of requests, and of their bytes, total and device time.
    pub variances: Variances<3>,
}

impl Default for DiskTotals {
    fn default() -> Self {
        Self {
            devices: HashMap::new(),
            other: [DiskRow::zero(); 5],
            max_devices: usize::MAX,
            workloads: Default::default(),
            bank: DiskBank::zero(),
            clusters: Clusters::default(),
            variances: Variances::default(),
        }
    }
}

impl DiskTotals {
    /// Adds requests of a device.
    pub fn add_device(&mut self, device: String, op: DiskOp, row: &DiskRow) {
        let key = (device, op);
        if self.devices.len() >= self.max_devices && !self.devices.contains_key(&key) {
            return self.other[op as usize].add(row);
        }
        self.devices.entry(key).or_insert_with(DiskRow::zero).add(row);
    }

    /// Describes the totals as metrics.
    pub fn describe(&self, workloads: &Workloads, out: &mut Exposition) {
        let seen = self.devices.iter().map(|((device, op), row)| (device.as_str(), *op, row));
        let mut others = self.bank.other;
        others.iter_mut().zip(&self.other).for_each(|(all, other)| all.add(other));
        let other = DiskOp::ALL.into_iter().map(|op| (OTHER, op, &others[op as usize]));
        for (device, op, row) in seen.chain(other.filter(|(_, _, row)| !row.is_zero())) {
            let labels = [device, op.name()];
            out.histogram(&metrics::DISK_IO, &labels, &row.total, metrics::LATENCY_BOUNDS);
            out.histogram(&metrics::DISK_DEVICE, &labels, &row.device, metrics::LATENCY_BOUNDS);
            out.counter(&metrics::DISK_BYTES, &labels, row.bytes as f64);
            out.counter(&metrics::DISK_ERRORS, &labels, row.errors as f64);
        }
        for op in DiskOp::ALL {
            let mut rows = self.workloads[op as usize].clone();
            rows.add(Id::UNKNOWN, &self.bank.workload_other[op as usize]);
            for (id, row) in rows.iter() {
                if id == Id::UNKNOWN && row.is_zero() {
                    continue;
                }
                let w = workloads.labels(id);
                let labels = [w.namespace.as_str(), w.pod.as_str(), w.container.as_str(), op.name()];
                out.counter(&metrics::WORKLOAD_DISK_BYTES, &labels, row.bytes as f64);
                out.counter(&metrics::WORKLOAD_DISK_IOS, &labels, row.ios as f64);
            }
        }
        let reasons = [Loss::MapFull, Loss::NoTimestamp, Loss::NoDeviceTime];
        describe_losses(Probe::Disk, &self.bank.lost, &reasons, out);
    }
}

/// The unit of the variance of bytes.
const BYTES_UNIT: f64 = 512.0;
/// The unit of the variances of latencies, in nanoseconds.
const NS_UNIT: f64 = 256.0;

/// The name of the row for devices without one of their own.
const OTHER: &str = "other";

/// The running probe.
pub struct Disk {
    sys_dev_block: PathBuf,
    bank: Bank,
    devices: Keyed,
    device_deltas: Deltas<DiskKey, DiskRow>,
    workloads: Rows<DiskWorkloadKey, DiskWorkloadRow>,
    totals: DiskTotals,
}

impl Disk {
    /// Takes the probe's maps.
    ///
    /// # Errors
    /// When a map is not there.
    pub fn new(kernel: &Kernel, limits: &Limits) -> anyhow::Result<Self> {
        let cpus = possible_cpus()?;
        let [a, b] = map::DISK_WORKLOAD_ROWS;
        Ok(Self {
            sys_dev_block: kernel.sysfs().join("dev/block"),
            bank: Bank::new(kernel.map(map::DISK_BANK)?, size_of::<DiskBank>(), cpus),
            devices: Keyed::new(kernel.map(map::DISK_ROWS)?, cpus),
            device_deltas: Deltas::default(),
            workloads: Rows::new(
                Table::DiskWorkload,
                [kernel.map(a)?, kernel.map(b)?],
                workload_rows(limits),
            ),
            totals: DiskTotals { max_devices: device_rows(limits) as usize, ..DiskTotals::default() },
        })
    }
}

impl Reader for Disk {
    fn probe(&self) -> Probe {
        Probe::Disk
    }

    fn read(&mut self, control: &Control, workloads: &mut Workloads, _: &mut FlowTable) -> io::Result<()> {
        let Self { sys_dev_block, bank, devices, device_deltas, workloads: rows, totals } = self;
        devices.each(|key: DiskKey, now: DiskRow| {
            if let (Some(op), Some(row)) = (op_of(key.op), device_deltas.take(key, now)) {
                totals.add_device(device_name(sys_dev_block, &key), op, &row);
            }
        })?;
        rows.read(control, |key, row| {
            if let Some(op) = op_of(key.op) {
                let workload = workloads.resolve(Hierarchy(key.hierarchy), key.cgroup);
                totals.workloads[op as usize].add(workload, &row);
            }
        })?;
        totals.bank = bank.read()?;
        Ok(())
    }

    fn tick(&mut self, slots: &Slots, watch: &Watch, _: &Control) -> io::Result<()> {
        self.totals.bank = self.bank.read()?;
        self.draws(slots, watch);
        Ok(())
    }

    fn forget(&mut self, gone: &HashSet<Id>) {
        for totals in &mut self.totals.workloads {
            totals.forget(gone);
        }
    }

    fn draws(&mut self, slots: &Slots, watch: &Watch) {
        let DiskTotal { ios, bytes, total_ns, device_ns } = self.totals.bank.total;
        self.totals.clusters.read([ios, bytes, total_ns, device_ns], watch);
        let DiskVariance { ios, bytes, total, device } = self.totals.bank.variance;
        let spread = slots.of[Program::DiskComplete as usize].sampler.spread;
        self.totals.variances.read(Draws { spread, count: ios, values: [bytes, total, device] });
    }

    fn variances(&self) -> Vec<(&'static Metric, f64)> {
        let DiskTotals { variances, clusters, .. } = &self.totals;
        let bytes = variance(variances.sum(0), BYTES_UNIT, clusters.variance(1));
        // Both are of nanoseconds, and the metrics of seconds.
        let seconds = |n| variance(variances.sum(n), NS_UNIT, clusters.variance(n + 1)) / (NANOS * NANOS);
        vec![
            (&metrics::WORKLOAD_DISK_IOS, variance(variances.count(), 1.0, clusters.variance(0))),
            (&metrics::DISK_BYTES, bytes),
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

    fn describe(&self, workloads: &Workloads, out: &mut Exposition) {
        self.totals.describe(workloads, out);
    }
}

fn op_of(number: u32) -> Option<DiskOp> {
    DiskOp::ALL.get(number as usize).copied()
}

/// The device's name in `/dev`: where `/sys/dev/block/MAJOR:MINOR` points to. Looked up whenever it did something, because
/// numbers are used again for other devices. A device that is gone keeps its numbers for a name.
fn device_name(sys_dev_block: &std::path::Path, key: &DiskKey) -> String {
    let numbers = format!("{}:{}", key.major, key.minor);
    fs::read_link(sys_dev_block.join(&numbers))
        .ok()
        .and_then(|target| Some(target.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or(numbers)
}

const _: () = assert!(size_of::<DiskBank>() <= 32 * 1024, "a bank fits the kernel's per-CPU unit");
