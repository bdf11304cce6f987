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
    estimate::{Added, Calibration, ENOUGH_SAMPLES, Errors, Ratio, Scale},
    metrics::{self, Exposition},
    probes::describe_losses,
    workload::{Id, Totals, Workloads},
};

/// The name of the row for devices without one of their own.
const OTHER: &str = "other";

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

/// Everything counted so far.
#[derive(Debug)]
pub struct DiskTotals {
    /// Counters by device and operation.
    pub devices: HashMap<(String, DiskOp), Device>,
    max_devices: usize,
    /// Counters of devices beyond the limit, by operation: numbers are used again under other
    /// names.
    pub other: [Device; OPS],
    /// Counters by workload, one for each operation.
    pub workloads: [Totals<DiskWorkloadRow>; OPS],
    /// The bank as last read: it only grows.
    pub bank: DiskBank,
    /// Variances of requests and bytes that only the programs count.
    pub uncounted_variance: [f64; 2],
    /// Whether the kernel's statistics could be read.
    has_statistics: bool,
    sampler: Sampler,
    /// By device and operation: of its latencies to the kernel's number of requests. With what
    /// rounding cut off of device latencies.
    calibrations: HashMap<(String, DiskOp), (Calibration, f64)>,
    /// By operation: of workloads' requests and bytes to those of all devices.
    workload_calibrations: [[Calibration; 2]; OPS],
    io_stats: IoStats,
}

impl DiskTotals {
    /// Nothing counted; so many device and operation pairs have counters of their own.
    pub fn new(max_devices: usize) -> Self {
        Self {
            devices: HashMap::new(),
            max_devices,
            other: Default::default(),
            workloads: Default::default(),
            bank: DiskBank::zero(),
            uncounted_variance: [0.0; 2],
            has_statistics: false,
            sampler: Sampler::default(),
            calibrations: HashMap::new(),
            workload_calibrations: Default::default(),
            io_stats: IoStats::default(),
        }
    }

    /// Whether a device and operation has counters of its own, or can have.
    fn has_room(&self, device: &str, op: DiskOp) -> bool {
        self.calibrations.len() < self.max_devices || self.calibrations.contains_key(&(device.to_owned(), op))
    }

    /// Adds to a device.
    pub fn add_device(&mut self, device: &str, op: DiskOp, added: &Device) {
        let key = (device.to_owned(), op);
        if self.devices.len() >= self.max_devices && !self.devices.contains_key(&key) {
            return self.other[op as usize].add(added);
        }
        self.devices.entry(key).or_default().add(added);
    }

    /// Forgets workloads that are gone.
    pub fn forget(&mut self, gone: &HashSet<Id>) {
        for totals in &mut self.workloads {
            totals.forget(gone);
        }
        self.io_stats.forget(gone);
    }

    /// The variances of requests and bytes over all workloads: what they differ by from those of
    /// all devices is known.
    pub fn workloads_owed(&self) -> [f64; 2] {
        let of = |n: usize| self.workload_calibrations.iter().map(|both| both[n].owed().powi(2)).sum();
        [of(0), of(1)]
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
            let mut rows = self.workloads[op as usize].clone();
            rows.add(Id::UNKNOWN, &self.bank.workload_other[op as usize]);
            for (id, row) in rows.iter() {
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
        describe_losses(Probe::Disk, &self.bank.lost, &reasons, out);
    }
}

/// What one reading adds.
pub struct Interval<'a> {
    totals: &'a mut DiskTotals,
    /// What the sampler did since the last reading.
    events: Sampler,
    /// By device and operation, as the program estimates it.
    devices: BTreeMap<(String, DiskOp), DiskRow>,
    /// By operation over all devices: what the kernel counted and only the programs count, and what
    /// the program estimates.
    exact: [[f64; 2]; OPS],
    estimated: [[f64; 2]; OPS],
    workloads: Vec<(Id, DiskOp, DiskWorkloadRow)>,
}

impl<'a> Interval<'a> {
    /// A reading begins, with the sampler as it is now.
    pub fn new(sampler: &Sampler, totals: &'a mut DiskTotals) -> Self {
        let events = sampler.since(&std::mem::replace(&mut totals.sampler, *sampler));
        Self {
            totals,
            events,
            devices: BTreeMap::new(),
            exact: [[0.0; 2]; OPS],
            estimated: [[0.0; 2]; OPS],
            workloads: Vec::new(),
        }
    }

    /// Adds what the program estimates of a device.
    pub fn add_device(&mut self, device: String, op: DiskOp, row: &DiskRow) {
        self.devices.entry((device, op)).or_insert_with(DiskRow::zero).add(row);
    }

    /// All devices were added; the kernel's statistics, when they could be read.
    pub fn end_devices(&mut self, kernel: Option<&Reading<'_>>) {
        self.totals.has_statistics = kernel.is_some();
        let devices = std::mem::take(&mut self.devices);
        for ((device, op), row) in &devices {
            let counted = kernel.filter(|kernel| kernel.covers(device, *op));
            let counted =
                counted.map(|kernel| kernel.added.get(&(device.clone(), *op)).copied().unwrap_or_default());
            self.end_device(device, *op, row, counted);
        }
        let Some(kernel) = kernel else { return };
        for ((device, op), Counted { ios, bytes }) in &kernel.added {
            let key = (device.clone(), *op);
            if devices.contains_key(&key) || (*ios, *bytes) == (0, 0) {
                continue;
            }
            let added = Device { requests: *ios, bytes: *bytes, ..Device::default() };
            self.totals.add_device(device, *op, &added);
            // One that the program sees, of which it sampled nothing now: that is settled with
            // later samples.
            if let Some((calibration, _)) = self.totals.calibrations.get_mut(&key)
                && !self.events.is_exact()
            {
                let scale = calibration.read(*ios as f64, 0.0, 0);
                calibration.settle(scale);
                self.exact[*op as usize][0] += *ios as f64;
                self.exact[*op as usize][1] += *bytes as f64;
            }
        }
    }

    fn end_device(&mut self, device: &str, op: DiskOp, row: &DiskRow, counted: Option<Counted>) {
        let DiskUncounted { ios, bytes, ios_variance, bytes_variance } = row.uncounted;
        let [requests, moved] = match counted {
            Some(counted) => [counted.ios + ios, counted.bytes + bytes],
            None => [row.ios, row.bytes],
        };
        let scale = match counted {
            Some(counted) if !self.events.is_exact() && self.totals.has_room(device, op) => {
                let estimated = row.ios.saturating_sub(ios) as f64;
                let samples = self.events.sampled as f64 * estimated / self.events.estimated.max(1) as f64;
                let calibration = self.totals.calibrations.entry((device.to_owned(), op)).or_default();
                calibration.0.read(counted.ios as f64, estimated, samples as u64)
            }
            _ => Scale::ONE,
        };
        let (mut total, mut device_latency) = (row.total, row.device);
        if let Some((calibration, carry)) = self.totals.calibrations.get_mut(&(device.to_owned(), op)) {
            let mut scale = scale;
            total = scale.histogram(&row.total);
            scale.again(carry, |scale| device_latency = scale.histogram(&row.device));
            calibration.settle(scale);
        }
        let added = Device { requests, bytes: moved, errors: row.errors, total, device: device_latency };
        self.totals.add_device(device, op, &added);
        self.totals.uncounted_variance[0] += ios_variance as f64;
        self.totals.uncounted_variance[1] += bytes_variance as f64 * BYTES_UNIT * BYTES_UNIT;
        for (n, (exact, estimated)) in [(requests, row.ios), (moved, row.bytes)].into_iter().enumerate() {
            self.exact[op as usize][n] += exact as f64;
            self.estimated[op as usize][n] += estimated as f64;
        }
    }

    /// Adds what the program estimates of a workload.
    pub fn add_workload(&mut self, id: Id, op: DiskOp, row: &DiskWorkloadRow) {
        self.workloads.push((id, op, *row));
    }

    /// All workloads were added: their requests and bytes are scaled to those of all devices, and
    /// bytes replaced by what their cgroups' io.stat says. `windows` is what windows added to the
    /// variances of requests and bytes.
    pub fn finish(
        mut self,
        kernel: Option<&Reading<'_>>,
        workloads: &mut Workloads,
        errors: &mut Errors,
        windows: [[f64; 2]; 2],
    ) {
        let is_exact = self.events.is_exact();
        let mut scales = [[Scale::ONE; 2]; OPS];
        for (op, scales) in scales.iter_mut().enumerate().filter(|_| !is_exact) {
            let share = self.estimated[op][0] / self.events.estimated.max(1) as f64;
            let samples = (self.events.sampled as f64 * share) as u64;
            for (n, scale) in scales.iter_mut().enumerate() {
                let calibration = &mut self.totals.workload_calibrations[op][n];
                *scale = calibration.read(self.exact[op][n], self.estimated[op][n], samples);
            }
        }
        let mut added: [Added; 2] = Default::default();
        let mut bytes_added: Vec<(Id, DiskOp, u64)> = Vec::new();
        for (id, op, row) in std::mem::take(&mut self.workloads) {
            let [ios_scale, bytes_scale] = &mut scales[op as usize];
            let (ios, bytes) = (ios_scale.count(row.ios), bytes_scale.count(row.bytes));
            self.totals.workloads[op as usize].add(id, &DiskWorkloadRow { ios, bytes: 0, ..row });
            added[0].add(id, ios as f64, row.ios_variance as f64);
            added[1].add(id, bytes as f64, row.bytes_variance as f64 * BYTES_UNIT * BYTES_UNIT);
            bytes_added.push((id, op, bytes));
        }
        if !is_exact {
            for (op, scales) in scales.into_iter().enumerate() {
                for (n, scale) in scales.into_iter().enumerate() {
                    self.totals.workload_calibrations[op][n].settle(scale);
                }
            }
        }
        let ratio = match self.events.sampled {
            ENOUGH_SAMPLES.. => {
                Ratio { estimated: added[0].total(), variance: self.events.sampled_variance as f64 }
            }
            _ => Ratio::default(),
        };
        let totals = self.totals;
        let counts = |major, minor| kernel.is_none_or(|kernel| kernel.counts(major, minor));
        for (id, op, bytes) in totals.io_stats.read(workloads, bytes_added, counts) {
            totals.workloads[op as usize].add(id, &DiskWorkloadRow { bytes, ..DiskWorkloadRow::zero() });
        }
        let [ios, mut bytes] = added;
        bytes.known(|id| totals.io_stats.is_exact(id));
        ios.finish_known(errors, &metrics::WORKLOAD_DISK_IOS, ratio, windows[0]);
        bytes.finish_known(errors, &metrics::WORKLOAD_DISK_BYTES, ratio, windows[1]);
    }
}
