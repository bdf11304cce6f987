//! Everything counted of disks so far, and how a reading adds to it. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use siskin_ebpf::{
    DiskBank, DiskOp, DiskRow, DiskUncounted, DiskWorkloadRow, Latency, Loss, Probe, Sampler, Words as _,
};

use super::{
    BYTES_UNIT,
    io_stat::IoStats,
    statistics::{Added as Counted, Reading},
};
use crate::{
    estimate::{
        Added, Errors,
        duty_cycle::Parts,
        pool::{HistogramPool, Pool, Row},
    },
    metrics::{self, Exposition},
    probes::describe_losses,
    workload::{Id, Totals, Workloads},
};

/// The name of the row for devices without one of their own.
const OTHER: &str = "other";

/// Those of [`Latency`].
const LATENCY_EXP: u32 = 12;
const LATENCY_BUCKETS: usize = 50;

/// Numbers of [`DiskOp`]s.
const OPS: usize = DiskOp::ALL.len();

/// Counters of a device and operation.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Requests completed.
    pub requests: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Nanoseconds from queueing to completion.
    pub total: Latency,
    /// Nanoseconds from issue to the device to completion.
    pub device: Latency,
}

impl Default for Device {
    fn default() -> Self {
        Self { requests: 0, bytes: 0, errors: 0, total: Latency::zero(), device: Latency::zero() }
    }
}

impl Device {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.total.add(&other.total);
        self.device.add(&other.device);
    }
}

/// What lately was sampled of a device and operation: how its requests split by latency.
#[derive(Debug, Default)]
struct Sampled {
    total: HistogramPool<LATENCY_EXP, LATENCY_BUCKETS>,
    device: HistogramPool<LATENCY_EXP, LATENCY_BUCKETS>,
    /// Requests and bytes that the kernel counted while nothing was sampled.
    owed: [u64; 2],
}

/// Everything counted so far.
#[derive(Debug)]
pub struct DiskTotals {
    /// Counters by device and operation.
    pub devices: HashMap<(String, DiskOp), Device>,
    max_devices: usize,
    /// Counters of devices beyond the limit, by operation: numbers are used again under other
    /// names.
    pub other: [Device; OPS],
    /// Requests of those: the kernel's table may have had room for them in some shards.
    unlisted: u64,
    /// Counters by workload, one for each operation.
    pub workloads: [Totals<DiskWorkloadRow>; OPS],
    /// The bank as last read: it only grows.
    pub bank: DiskBank,
    /// Variances of requests and bytes that only the programs count.
    pub uncounted_variance: [f64; 2],
    /// Whether the kernel's statistics could be read.
    has_statistics: bool,
    sampler: Sampler,
    /// By device and operation.
    sampled: HashMap<(String, DiskOp), Sampled>,
    /// By operation: requests and bytes of workloads.
    sampled_workloads: [Pool<Id, 2>; OPS],
    io_stats: IoStats,
}

impl DiskTotals {
    /// Nothing counted; so many device and operation pairs have counters of their own.
    pub fn new(max_devices: usize) -> Self {
        Self {
            devices: HashMap::new(),
            max_devices,
            other: Default::default(),
            unlisted: 0,
            workloads: Default::default(),
            bank: DiskBank::zero(),
            uncounted_variance: [0.0; 2],
            has_statistics: false,
            sampler: Sampler::default(),
            sampled: HashMap::new(),
            sampled_workloads: Default::default(),
            io_stats: IoStats::default(),
        }
    }

    /// Adds to a device.
    pub fn add_device(&mut self, device: &str, op: DiskOp, added: &Device) {
        let key = (device.to_owned(), op);
        if self.devices.len() >= self.max_devices && !self.devices.contains_key(&key) {
            self.unlisted += added.requests;
            return self.other[op as usize].add(added);
        }
        self.devices.entry(key).or_default().add(added);
    }

    /// Forgets workloads that are gone.
    pub fn forget(&mut self, gone: &HashSet<Id>) {
        for totals in &mut self.workloads {
            totals.forget(gone);
        }
        for pool in &mut self.sampled_workloads {
            pool.forget(|id| gone.contains(id));
        }
        self.io_stats.forget(gone);
    }

    /// Describes the totals as metrics.
    pub fn describe(&self, workloads: &Workloads, out: &mut Exposition) {
        let seen = self.devices.iter().map(|((device, op), row)| (device.as_str(), *op, *row));
        let other = DiskOp::ALL.into_iter().map(|op| {
            let mut other = self.other[op as usize];
            let DiskRow { ios, bytes, uncounted, errors, total, device } = self.bank.other[op as usize];
            // The kernel's numbers of these devices are in the other row already.
            let (requests, bytes) =
                if self.has_statistics { (uncounted.ios, uncounted.bytes) } else { (ios, bytes) };
            other.add(&Device { requests, bytes, errors, total, device });
            (OTHER, op, other)
        });
        let is_empty = |row: &Device| row.requests == 0 && row.bytes == 0 && row.errors == 0;
        for (device, op, row) in seen.chain(other.filter(|(_, _, row)| !is_empty(row))) {
            let labels = [device, op.name()];
            out.histogram(&metrics::DISK_IO, &labels, &row.total, metrics::LATENCY_BOUNDS);
            out.histogram(&metrics::DISK_DEVICE, &labels, &row.device, metrics::LATENCY_BOUNDS);
            out.counter(&metrics::DISK_BYTES, &labels, row.bytes as f64);
            out.counter(&metrics::DISK_REQUESTS, &labels, row.requests as f64);
            out.counter(&metrics::DISK_ERRORS, &labels, row.errors as f64);
        }
        for op in DiskOp::ALL {
            for (id, row) in self.workloads[op as usize].iter() {
                if id == Id::UNKNOWN && row.ios == 0 && row.bytes == 0 {
                    continue;
                }
                let w = workloads.labels(id);
                let labels = [w.namespace.as_str(), w.pod.as_str(), w.container.as_str(), op.name()];
                out.counter(&metrics::WORKLOAD_DISK_BYTES, &labels, row.bytes as f64);
                out.counter(&metrics::WORKLOAD_DISK_IOS, &labels, row.ios as f64);
            }
        }
        let reasons = [Loss::MapFull, Loss::NoTimestamp, Loss::NoDeviceTime];
        let mut lost = self.bank.lost;
        lost[Loss::MapFull as usize] += self.unlisted;
        describe_losses(Probe::Disk, &lost, &reasons, out);
    }
}

/// What one reading adds.
pub struct Interval<'a> {
    totals: &'a mut DiskTotals,
    /// What the sampler did since the last reading.
    events: Sampler,
    is_exact: bool,
    /// By device and operation, as the program estimates it.
    devices: BTreeMap<(String, DiskOp), DiskRow>,
    /// By operation over all devices: requests and bytes, of the kernel where it counts them.
    exact: [[f64; 2]; OPS],
    workloads: [Vec<(Id, DiskWorkloadRow)>; OPS],
}

impl<'a> Interval<'a> {
    /// A reading begins, with the sampler and the bank as they are now. It may be exact when the
    /// probe `is_attached`.
    pub fn new(sampler: &Sampler, bank: DiskBank, is_attached: bool, totals: &'a mut DiskTotals) -> Self {
        let events = sampler.since(&std::mem::replace(&mut totals.sampler, *sampler));
        let added = bank.since(&std::mem::replace(&mut totals.bank, bank));
        let exact = added.other.map(|row| [row.ios as f64, row.bytes as f64]);
        let workloads = added.workload_other.map(|row| vec![(Id::UNKNOWN, row)]);
        let is_exact = is_attached && events.is_exact();
        Self { totals, events, is_exact, devices: BTreeMap::new(), exact, workloads }
    }

    /// Adds what the program estimates of a device.
    pub fn add_device(&mut self, device: String, op: DiskOp, row: &DiskRow) {
        self.devices.entry((device, op)).or_insert_with(DiskRow::zero).add(row);
    }

    /// All devices were added; the kernel's statistics, when they could be read.
    pub fn end_devices(&mut self, kernel: Option<&Reading<'_>>) {
        self.totals.has_statistics = kernel.is_some();
        let mut devices = std::mem::take(&mut self.devices);
        for key in kernel.iter().flat_map(|kernel| kernel.added.keys()) {
            devices.entry(key.clone()).or_insert_with(DiskRow::zero);
        }
        for (key, row) in devices {
            let counted = kernel.filter(|kernel| kernel.covers(&key.0, key.1));
            let counted = counted.map(|kernel| kernel.added.get(&key).copied().unwrap_or_default());
            self.end_device(key, &row, counted);
        }
    }

    fn end_device(&mut self, key: (String, DiskOp), row: &DiskRow, counted: Option<Counted>) {
        let DiskUncounted { ios, bytes, ios_variance, bytes_variance } = row.uncounted;
        let moved = match counted {
            Some(counted) => [counted.ios + ios, counted.bytes + bytes],
            None => [row.ios, row.bytes],
        };
        let [total, device] = self.latencies(&key, row, moved);
        let [requests, bytes] = moved;
        let added = Device { requests, bytes, errors: row.errors, total, device };
        self.totals.add_device(&key.0, key.1, &added);
        self.totals.uncounted_variance[0] += ios_variance as f64;
        self.totals.uncounted_variance[1] += bytes_variance as f64 * BYTES_UNIT * BYTES_UNIT;
    }

    /// The latencies of requests, of which so many bytes were moved: as they are when all were
    /// sampled, else as those split that were sampled lately. They are shared out among workloads
    /// as soon as any was sampled: a device without requests, such as zram, is seen by no program.
    fn latencies(&mut self, key: &(String, DiskOp), row: &DiskRow, moved: [u64; 2]) -> [Latency; 2] {
        let exact = &mut self.exact[key.1 as usize];
        let mut share_out = |moved: [u64; 2]| {
            exact.iter_mut().zip(moved).for_each(|(exact, moved)| *exact += moved as f64);
        };
        let has_room = self.totals.sampled.len() < self.totals.max_devices;
        if !has_room && !self.totals.sampled.contains_key(key) {
            share_out(moved);
            return [row.total, row.device];
        }
        let sampled = self.totals.sampled.entry(key.clone()).or_default();
        if row.ios > 0 {
            let samples = samples(&self.events, row.ios);
            sampled.total.add(&row.total, row.ios, samples);
            sampled.device.add(&row.device, row.ios, samples);
        }
        if self.is_exact {
            sampled.owed = [0; 2];
            return [row.total, row.device];
        }
        for (owed, moved) in sampled.owed.iter_mut().zip(moved) {
            *owed += moved;
        }
        if sampled.total.is_empty() {
            return [Latency::zero(); 2];
        }
        let due = std::mem::take(&mut sampled.owed);
        share_out(due);
        [sampled.total.split(due[0] as f64), sampled.device.split(due[0] as f64)]
    }

    /// Adds what the program estimates of a workload.
    pub fn add_workload(&mut self, id: Id, op: DiskOp, row: &DiskWorkloadRow) {
        self.workloads[op as usize].push((id, *row));
    }

    /// All workloads were added: requests and bytes of all devices are shared out among them, and
    /// bytes replaced by what their cgroups' io.stat says. `windows` is what windows added to the
    /// variances of requests and bytes.
    pub fn finish(
        self,
        kernel: Option<&Reading<'_>>,
        workloads: &mut Workloads,
        errors: &mut Errors,
        windows: [Parts; 2],
    ) {
        let Self { totals, events, is_exact, exact, workloads: rows, .. } = self;
        let mut added: [Added; 2] = Default::default();
        let mut bytes_added: Vec<(Id, DiskOp, u64)> = Vec::new();
        for (op, (rows, exact)) in DiskOp::ALL.into_iter().zip(rows.into_iter().zip(exact)) {
            let pool = &mut totals.sampled_workloads[op as usize];
            let ios: u64 = rows.iter().map(|(_, row)| row.ios).sum();
            pool.add(rows.iter().map(|(id, row)| (*id, pooled(row))), samples(&events, ios));
            let parts = if is_exact {
                pool.settle();
                rows.iter().map(|(id, row)| (*id, [row.ios, row.bytes], [0.0; 2])).collect()
            } else {
                pool.split(exact)
            };
            for (id, [ios, bytes], variances) in parts {
                totals.workloads[op as usize].add(id, &DiskWorkloadRow { ios, ..DiskWorkloadRow::zero() });
                added[0].add(id, ios as f64, variances[0]);
                added[1].add(id, bytes as f64, variances[1]);
                bytes_added.push((id, op, bytes));
            }
        }
        let counts = |major, minor| kernel.is_none_or(|kernel| kernel.counts(major, minor));
        for (id, op, bytes) in totals.io_stats.read(workloads, bytes_added, counts) {
            totals.workloads[op as usize].add(id, &DiskWorkloadRow { bytes, ..DiskWorkloadRow::zero() });
        }
        let [ios, mut bytes] = added;
        bytes.known(|id| totals.io_stats.is_exact(id));
        ios.finish_known(errors, &metrics::WORKLOAD_DISK_IOS, windows[0]);
        bytes.finish_known(errors, &metrics::WORKLOAD_DISK_BYTES, windows[1]);
    }
}

/// About how many of the sampled events are behind requests that were estimated.
fn samples(events: &Sampler, ios: u64) -> u64 {
    (events.sampled as f64 * ios as f64 / events.estimated.max(1) as f64) as u64
}

fn pooled(row: &DiskWorkloadRow) -> Row<2> {
    let DiskWorkloadRow { ios, bytes, ios_variance, bytes_variance } = *row;
    Row {
        values: [ios as f64, bytes as f64],
        variances: [ios_variance as f64, bytes_variance as f64 * BYTES_UNIT * BYTES_UNIT],
    }
}
