//! What the kernel itself counted of each whole disk: exact at any budget.
//!
//! **Which devices.** Partitions are listed too, and left out. So are device mapper and md devices
//! that pass bios on: the kernel counts their bytes again on the disks below, and the programs see
//! requests only. A stacked device that has requests of its own (multipath of device mapper)
//! counts, as it does in the programs.
//!
//! **NVMe multipath.** A namespace with several paths has a disk for users, the head, and a hidden
//! disk for each path; both are listed. Requests belong to the paths on every kernel. The head
//! counts them too in 6.12, and not in 6.1 (nvme_mpath_start_request,
//! drivers/nvme/host/multipath.c), but takes flushes for reads and misses writes that are nothing
//! but a flush (seen on 6.12 and 6.18). So the sum of the paths counts, under the head's name.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use siskin_ebpf::DiskOp;

pub use super::diskstats::Added;
use super::diskstats::{self, Counters, Line, OPS};

/// Major number of disks whose driver has none of its own: `BLOCK_EXT_MAJOR`
/// (include/uapi/linux/major.h, 6.18).
const EXTENDED_MAJOR: u32 = 259;

/// The numbers of a disk that is listed without.
const UNNUMBERED: (u32, u32) = (0, 0);

/// Readings for which a device that is not listed is remembered.
const REMEMBERED: u64 = 10;

/// How the kernel counts a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It has requests, which the programs see.
    Requests,
    /// It has bios only, and no disk below: zram, pmem.
    Bios,
    /// Its bytes are counted elsewhere: a partition, or a stacked device.
    Elsewhere,
}

/// A device or partition that was listed.
#[derive(Debug)]
struct Disk {
    numbers: (u32, u32),
    label: String,
    /// Whether it is a hidden path to a head, which `label` is.
    is_path: bool,
    counters: Counters,
    /// The last reading that listed it.
    listed: u64,
    /// What it did up to that reading since the one before; `None` when that is not known.
    added: Option<Counters>,
    /// Looked up when it does something for the first time: most loop devices never do, and what is
    /// below a stacked device is known by then.
    kind: Option<Kind>,
}

/// The kernel's statistics of all disks, and how far they were read.
#[derive(Debug)]
pub struct Statistics {
    diskstats: PathBuf,
    block: PathBuf,
    block_class: PathBuf,
    /// By their names as listed.
    disks: HashMap<String, Disk>,
    /// Names as listed by number.
    names: HashMap<(u32, u32), String>,
    /// The only head whose paths are listed without a number.
    unnumbered: Option<String>,
    has_flushes: bool,
    /// Readings so far; `None` while there is nothing to compare with.
    reading: Option<u64>,
}

impl Statistics {
    /// Takes what was counted so far as the baseline: it was done before the agent came. `procfs`
    /// is usually `/proc`, `sysfs` `/sys`. Where statistics cannot be read now, the first reading
    /// that succeeds is the baseline.
    pub fn new(procfs: &Path, sysfs: &Path) -> Self {
        let mut statistics = Self {
            diskstats: procfs.join("diskstats"),
            block: sysfs.join("block"),
            block_class: sysfs.join("class/block"),
            disks: HashMap::new(),
            names: HashMap::new(),
            unnumbered: None,
            has_flushes: false,
            reading: None,
        };
        // Twice, because one listing can pass over a device: see `take`. It would be new to the
        // next reading.
        if let Err(error) = statistics.read().map(drop).and_then(|()| statistics.read().map(drop)) {
            tracing::warn!("cannot read the kernel's disk statistics: {error}");
        }
        statistics
    }

    /// Reads what each disk did since the last reading.
    ///
    /// # Errors
    /// When `diskstats` cannot be read. The next reading is a baseline then, and covers nothing.
    pub fn read(&mut self) -> io::Result<Reading<'_>> {
        let text = fs::read(&self.diskstats).inspect_err(|_| {
            self.disks.clear();
            self.reading = None;
        })?;
        Ok(self.take(&String::from_utf8_lossy(&text)))
    }

    fn take(&mut self, text: &str) -> Reading<'_> {
        let reading = self.reading.map_or(0, |last| last + 1);
        let mut is_changed = false;
        for line in diskstats::parse(text) {
            self.has_flushes = line.has_flushes;
            is_changed |= self.list(&line, reading);
        }
        let before = self.disks.len();
        // A listing that takes several reads can pass over a device while another one leaves
        // (disk_seqf_start, block/genhd.c, 6.12). It would be new to the next, with all that was
        // ever counted of it.
        self.disks.retain(|_, disk| disk.listed + REMEMBERED >= reading);
        is_changed |= before != self.disks.len() || self.disks.values().any(|disk| disk.listed != reading);
        if is_changed {
            self.name(reading);
        }
        self.reading = Some(reading);
        self.sum(reading)
    }

    /// Compares a line with the one before, and says whether it is of another device than that.
    fn list(&mut self, line: &Line, reading: u64) -> bool {
        let is_baseline = self.reading.is_none();
        let Some(disk) = self.disks.get_mut(line.name) else {
            let added = (!is_baseline).then_some(line.counters);
            let Line { numbers, name, counters, .. } = *line;
            let head = head(name);
            let (is_path, label) = (head.is_some(), head.unwrap_or_else(|| in_sysfs(name)));
            let disk = Disk { numbers, label, is_path, counters, listed: reading, added, kind: None };
            self.disks.insert(name.to_owned(), disk);
            return true;
        };
        if disk.listed == reading {
            // Listed twice while another device left.
            return false;
        }
        let is_missed = disk.listed + 1 != reading;
        let is_same = disk.numbers == line.numbers;
        let since = since(&line.counters, &disk.counters).filter(|_| is_same);
        disk.added = match since {
            Some(_) if is_missed => None,
            // It came since the reading that missed its predecessor.
            None if is_missed => Some(line.counters),
            // zram counts from 0 again when it is reset, and no program sees what it does.
            None if disk.kind == Some(Kind::Bios) => Some(line.counters),
            since => since,
        };
        if since.is_none() {
            disk.kind = None;
        }
        (disk.numbers, disk.counters, disk.listed) = (line.numbers, line.counters, reading);
        !is_same || is_missed
    }

    /// Which numbers have which names.
    fn name(&mut self, reading: u64) {
        let listed = || self.disks.iter().filter(|(_, disk)| disk.listed == reading);
        self.names = listed().map(|(name, disk)| (disk.numbers, name.clone())).collect();
        self.names.remove(&UNNUMBERED);
        // Before 6.1 hidden disks are listed as 0:0, and no file has the number of their requests
        // (device_add_disk, block/genhd.c). While they are all paths to one head, it is clear whose
        // an unlisted number is.
        let mut heads = listed().filter(|(_, disk)| disk.is_unnumbered_path()).map(|(_, disk)| &disk.label);
        let first = heads.next();
        self.unnumbered = first.filter(|first| heads.all(|head| head == *first)).cloned();
    }

    /// Adds up what was listed, by label.
    fn sum(&mut self, reading: u64) -> Reading<'_> {
        let Self { disks, block, block_class, unnumbered, .. } = &mut *self;
        let is_recent = |disk: &Disk| disk.listed + 1 >= reading;
        let paths = disks.values().filter(|disk| disk.is_path && is_recent(disk));
        let heads: HashSet<_> = paths.map(|disk| disk.label.clone()).collect();
        let (mut added, mut lacking) = (HashMap::new(), HashSet::new());
        for (name, disk) in disks.iter_mut().filter(|(name, disk)| is_recent(disk) && !heads.contains(*name))
        {
            let is_known = !disk.is_unnumbered_path() || unnumbered.as_ref() == Some(&disk.label);
            let Some(counters) = disk.added.filter(|_| is_known && disk.listed == reading) else {
                lacking.insert(disk.label.clone());
                continue;
            };
            if counters == Counters::default() {
                continue;
            }
            disk.kind = disk.kind.or_else(|| kind(block, block_class, name));
            match disk.kind {
                Some(Kind::Elsewhere) => {}
                Some(Kind::Requests | Kind::Bios) => {
                    for (op, counters) in
                        OPS.into_iter().zip(counters).filter(|(_, added)| *added != Added::default())
                    {
                        added.entry((disk.label.clone(), op)).or_insert_with(Added::default).add(counters);
                    }
                }
                None => {
                    lacking.insert(disk.label.clone());
                }
            }
        }
        added.retain(|(device, _), _| !lacking.contains(device));
        Reading { added, lacking, statistics: self }
    }
}

impl Disk {
    fn is_unnumbered_path(&self) -> bool {
        self.is_path && self.numbers == UNNUMBERED
    }
}

/// What the disks did between two readings.
#[derive(Debug)]
pub struct Reading<'a> {
    /// What was added, by the device's label and the operation as the kernel groups it: see
    /// [`OPS`].
    pub added: HashMap<(String, DiskOp), Added>,
    /// Labels of devices of which something was not listed in both readings, or fell.
    lacking: HashSet<String>,
    statistics: &'a Statistics,
}

impl Reading<'_> {
    /// The label of the device with these numbers, which a request has; for a path to a head the
    /// head's. `None` for one that is not listed, or a path that is listed without its number while
    /// there are several heads.
    pub fn name(&self, major: u32, minor: u32) -> Option<&str> {
        let hidden = || self.statistics.unnumbered.as_deref().filter(|_| major == EXTENDED_MAJOR);
        self.disk(major, minor).map(|disk| disk.label.as_str()).or_else(hidden)
    }

    /// Whether the kernel's statistics say all that the device with this label did between the
    /// readings. They do not for one that went or whose counters fell, nor for operations that the
    /// kernel does not count.
    pub fn covers(&self, device: &str, op: DiskOp) -> bool {
        let Statistics { disks, reading, has_flushes, .. } = self.statistics;
        let is_counted = OPS.contains(&op) && (op != DiskOp::Flush || *has_flushes);
        let is_listed = |disk: &Disk| disk.label == device && Some(disk.listed) == *reading;
        is_counted
            && !self.lacking.contains(device)
            && (disks.get(device).is_some_and(is_listed) || disks.values().any(is_listed))
    }

    /// Whether what a device with these numbers did is in [`Self::added`]: not when the disks below
    /// have it. Also true for one that is not listed, or did nothing since the agent came.
    pub fn counts(&self, major: u32, minor: u32) -> bool {
        self.disk(major, minor).is_none_or(|disk| disk.kind != Some(Kind::Elsewhere))
    }

    fn disk(&self, major: u32, minor: u32) -> Option<&Disk> {
        self.statistics.disks.get(self.statistics.names.get(&(major, minor))?)
    }
}

/// What was added to each counter since `before`; `None` when any fell.
fn since(now: &Counters, before: &Counters) -> Option<Counters> {
    let mut added = Counters::default();
    for (added, (now, before)) in added.iter_mut().zip(now.iter().zip(before)) {
        *added = now.since(*before)?;
    }
    Some(added)
}

/// The head of a hidden path: `nvme0n1` of `nvme0c3n1` (nvme_alloc_ns, drivers/nvme/host/core.c,
/// 6.12). Other disks of NVMe have no `c` in their names.
fn head(name: &str) -> Option<String> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (subsystem, rest) = name.strip_prefix("nvme")?.split_once('c')?;
    let (controller, namespace) = rest.split_once('n')?;
    let is_path = [subsystem, controller, namespace].into_iter().all(is_number);
    is_path.then(|| format!("nvme{subsystem}n{namespace}"))
}

/// A device's name in sysfs, where a `!` is in place of a slash.
fn in_sysfs(name: &str) -> String {
    name.replace('/', "!")
}

/// How a device is counted, from sysfs; `None` when it is not there.
fn kind(block: &Path, block_class: &Path, name: &str) -> Option<Kind> {
    let name = in_sysfs(name);
    let disk = block.join(&name);
    if !disk.exists() {
        return block_class.join(&name).join("partition").exists().then_some(Kind::Elsewhere);
    }
    if disk.join("mq").exists() {
        return Some(Kind::Requests);
    }
    let is_stacked = fs::read_dir(disk.join("slaves")).is_ok_and(|mut slaves| slaves.next().is_some());
    Some(if is_stacked || disk.join("dm").exists() { Kind::Elsewhere } else { Kind::Bios })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use proptest::prelude::*;

    /// A procfs and a sysfs in a temporary directory.
    struct Host(PathBuf);

    impl Host {
        fn new() -> Self {
            static NUMBER: AtomicUsize = AtomicUsize::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("siskin-statistics-{}-{number}", std::process::id());
            let host = Self(std::env::temp_dir().join(name));
            fs::create_dir_all(host.0.join("block")).unwrap();
            host
        }

        /// A disk with requests.
        fn disk(&self, name: &str) {
            fs::create_dir_all(self.0.join("block").join(name).join("mq")).unwrap();
            fs::create_dir_all(self.0.join("block").join(name).join("slaves")).unwrap();
        }

        /// A device that has bios only.
        fn bios(&self, name: &str, below: Option<&str>) {
            let slaves = self.0.join("block").join(name).join("slaves");
            fs::create_dir_all(&slaves).unwrap();
            if let Some(below) = below {
                std::os::unix::fs::symlink(format!("../../{below}"), slaves.join(below)).unwrap();
            }
        }

        fn partition(&self, name: &str) {
            let partition = self.0.join("class/block").join(name);
            fs::create_dir_all(&partition).unwrap();
            fs::write(partition.join("partition"), "1\n").unwrap();
        }

        fn list(&self, lines: &[String]) {
            fs::write(self.0.join("diskstats"), lines.concat()).unwrap();
        }

        fn statistics(&self, lines: &[String]) -> Statistics {
            self.list(lines);
            Statistics::new(&self.0, &self.0)
        }
    }

    impl Drop for Host {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A line of 5.5 or newer: reads, sectors read, writes, sectors written, discards, sectors
    /// discarded, flushes.
    fn line(numbers: (u32, u32), name: &str, counted: [u64; 7]) -> String {
        let ((major, minor), [r, rs, w, ws, d, ds, f]) = (numbers, counted);
        format!("{major:4} {minor:7} {name} {r} 0 {rs} 9 {w} 0 {ws} 9 0 9 9 {d} 0 {ds} 9 {f} 9\n")
    }

    /// What was added, in order: device, operation, requests, bytes.
    fn added(reading: &Reading<'_>) -> Vec<(String, DiskOp, u64, u64)> {
        let mut added: Vec<_> = reading
            .added
            .iter()
            .map(|((device, op), added)| (device.clone(), *op, added.ios, added.bytes))
            .collect();
        added.sort();
        added
    }

    fn row(device: &str, op: DiskOp, ios: u64, bytes: u64) -> (String, DiskOp, u64, u64) {
        (device.to_owned(), op, ios, bytes)
    }

    use DiskOp::{Discard, Flush, Other, Read, Write};

    #[test]
    fn what_was_done_since_is_added_by_operation() {
        let host = Host::new();
        host.disk("sda");
        let sda = |counted| [line((8, 0), "sda", counted)];
        let mut statistics = host.statistics(&sda([100, 800, 50, 400, 1, 8, 5]));
        assert_eq!(added(&statistics.read().unwrap()), [], "what was done before is not ours");
        host.list(&sda([101, 808, 52, 416, 2, 2056, 8]));
        let reading = statistics.read().unwrap();
        let expected = [
            row("sda", Read, 1, 4096),
            row("sda", Write, 2, 8192),
            row("sda", Flush, 3, 0),
            row("sda", Discard, 1, 1 << 20),
        ];
        assert_eq!(added(&reading), expected);
        assert_eq!(
            [Read, Write, Flush, Discard, Other].map(|op| reading.covers("sda", op)),
            [true, true, true, true, false]
        );
        assert_eq!((reading.name(8, 0), reading.name(8, 16)), (Some("sda"), None));
        assert!(!reading.covers("sdb", Read));
    }

    #[test]
    fn partitions_and_stacked_devices_are_counted_by_their_disks() {
        let host = Host::new();
        for disk in ["sda", "cciss!c0d0", "dm-1"] {
            host.disk(disk);
        }
        host.partition("sda1");
        host.bios("dm-0", Some("sda"));
        host.bios("md127", Some("sda1"));
        host.bios("zram0", None);
        // Device mapper's multipath has requests of its own, which the programs see too.
        std::os::unix::fs::symlink("../../sda", host.0.join("block/dm-1/slaves/sda")).unwrap();
        let names = [
            ((8, 0), "sda"),
            ((8, 1), "sda1"),
            ((253, 0), "dm-0"),
            ((253, 1), "dm-1"),
            ((9, 127), "md127"),
            ((252, 0), "zram0"),
            ((104, 0), "cciss/c0d0"),
            ((7, 0), "gone"),
        ];
        let lines = |n| names.map(|(numbers, name)| line(numbers, name, [n, n, 0, 0, 0, 0, 0]));
        let mut statistics = host.statistics(&lines(0));
        host.list(&lines(8));
        let reading = statistics.read().unwrap();
        let expected = ["cciss!c0d0", "dm-1", "sda", "zram0"].map(|name| row(name, Read, 8, 4096));
        assert_eq!(added(&reading), expected);
        assert_eq!(reading.name(104, 0), Some("cciss!c0d0"));
        assert!(reading.covers("cciss!c0d0", Read));
        assert!(!reading.covers("gone", Read), "not in sysfs: what it is is not known");
        let counts = names.map(|((major, minor), _)| reading.counts(major, minor));
        assert_eq!(counts, [true, false, false, true, false, true, true, true]);
        assert!(reading.counts(8, 128), "one that is not listed");
    }

    #[test]
    fn sysfs_is_looked_at_once_and_only_for_what_did_something() {
        let host = Host::new();
        let lines =
            |n| [line((7, 0), "loop0", [n, n, 0, 0, 0, 0, 0]), line((7, 1), "loop1", [9, 9, 0, 0, 0, 0, 0])];
        let mut statistics = host.statistics(&lines(0));
        host.disk("loop0");
        host.list(&lines(1));
        assert_eq!(added(&statistics.read().unwrap()), [row("loop0", Read, 1, 512)]);
        assert_eq!(statistics.disks["loop1"].kind, None);
        fs::remove_dir_all(host.0.join("block/loop0")).unwrap();
        host.list(&lines(2));
        let reading = statistics.read().unwrap();
        assert_eq!(added(&reading), [row("loop0", Read, 1, 512)]);
        assert!(reading.covers("loop1", Read), "it did nothing");
    }

    #[test]
    fn a_new_device_counts_from_zero_and_one_that_went_is_not_covered() {
        let host = Host::new();
        host.disk("sda");
        host.disk("sdb");
        let sda = line((8, 0), "sda", [5, 5, 0, 0, 0, 0, 0]);
        let sdb = |n| line((8, 16), "sdb", [n, n, 0, 0, 0, 0, 0]);
        let mut statistics = host.statistics(std::slice::from_ref(&sda));
        host.list(&[sda.clone(), sdb(7)]);
        let reading = statistics.read().unwrap();
        assert_eq!(added(&reading), [row("sdb", Read, 7, 7 * 512)]);
        assert!(reading.covers("sdb", Read));
        host.list(std::slice::from_ref(&sda));
        let reading = statistics.read().unwrap();
        assert_eq!(
            (added(&reading), reading.covers("sdb", Read), reading.covers("sda", Read)),
            (vec![], false, true)
        );
        assert_eq!(reading.name(8, 16), None);
        // Again, and it may be another one.
        host.list(&[sda.clone(), sdb(6)]);
        assert_eq!(added(&statistics.read().unwrap()), [row("sdb", Read, 6, 6 * 512)]);
        host.list(std::slice::from_ref(&sda));
        for _ in 0..=REMEMBERED {
            statistics.read().unwrap();
        }
        assert_eq!(statistics.disks.len(), 1);
        host.list(&[sda.clone(), sdb(9)]);
        assert_eq!(added(&statistics.read().unwrap()), [row("sdb", Read, 9, 9 * 512)]);
        // Its place is taken by another device, or by one under another name.
        host.list(&[sda.clone(), sdb(3)]);
        let reading = statistics.read().unwrap();
        assert_eq!((added(&reading), reading.covers("sdb", Read)), (vec![], false));
        host.list(&[sda.clone(), sdb(4)]);
        let reading = statistics.read().unwrap();
        assert_eq!((added(&reading), reading.covers("sdb", Read)), (vec![row("sdb", Read, 1, 512)], true));
        host.disk("sdc");
        host.list(&[sda, line((8, 16), "sdc", [2, 2, 0, 0, 0, 0, 0])]);
        let reading = statistics.read().unwrap();
        assert_eq!((added(&reading), reading.name(8, 16)), (vec![row("sdc", Read, 2, 1024)], Some("sdc")));
    }

    #[test]
    fn a_device_that_one_listing_passed_over_is_not_counted_again() {
        let host = Host::new();
        host.disk("sda");
        let sda = |n| [line((8, 0), "sda", [n, n, 0, 0, 0, 0, 0])];
        let mut statistics = host.statistics(&sda(1_000_000));
        host.list(&[]);
        assert!(!statistics.read().unwrap().covers("sda", Read));
        host.list(&sda(1_000_010));
        let reading = statistics.read().unwrap();
        assert_eq!((added(&reading), reading.covers("sda", Read)), (vec![], false));
        host.list(&sda(1_000_011));
        let reading = statistics.read().unwrap();
        assert_eq!((added(&reading), reading.covers("sda", Read)), (vec![row("sda", Read, 1, 512)], true));
    }

    #[test]
    fn a_device_without_requests_counts_from_zero_when_it_is_reset() {
        let host = Host::new();
        host.bios("zram0", None);
        let zram = |n| [line((252, 0), "zram0", [0, 0, n, n, 0, 0, 0])];
        let mut statistics = host.statistics(&zram(0));
        let mut write = |n| {
            host.list(&zram(n));
            let reading = statistics.read().unwrap();
            (added(&reading), reading.covers("zram0", Write))
        };
        assert_eq!(write(80), (vec![row("zram0", Write, 80, 80 * 512)], true));
        assert_eq!(write(16), (vec![row("zram0", Write, 16, 16 * 512)], true));
        assert_eq!(write(17), (vec![row("zram0", Write, 1, 512)], true));
    }

    #[test]
    fn the_paths_of_a_head_count_once_under_its_name() {
        let host = Host::new();
        host.bios("nvme0n1", None);
        host.disk("nvme0c0n1");
        host.disk("nvme0c1n1");
        // 6.12: the head counts too, flushes as reads. 6.1: it does not.
        for head_counts in [0, 1] {
            let lines = |n: u64| {
                let head = [3 * n, 16 * n, n, 8 * n, 0, 0, 0].map(|counted| head_counts * counted);
                [
                    line((259, 1), "nvme0n1", head),
                    line((259, 0), "nvme0c0n1", [n, 8 * n, n, 8 * n, 0, 0, n]),
                    line((259, 2), "nvme0c1n1", [n, 8 * n, 0, 0, 0, 0, 0]),
                ]
            };
            let mut statistics = host.statistics(&lines(1));
            host.list(&lines(2));
            let reading = statistics.read().unwrap();
            let expected =
                [row("nvme0n1", Read, 2, 8192), row("nvme0n1", Write, 1, 4096), row("nvme0n1", Flush, 1, 0)];
            assert_eq!(added(&reading), expected);
            assert_eq!(
                [0, 1, 2, 3].map(|minor| reading.name(259, minor)),
                [Some("nvme0n1"), Some("nvme0n1"), Some("nvme0n1"), None]
            );
            assert!(reading.covers("nvme0n1", Read) && !reading.covers("nvme0c0n1", Read));
            assert!(reading.counts(259, 1));
            // A path goes: what it did last is not known, so the sum is not.
            host.list(&lines(3)[..2]);
            let reading = statistics.read().unwrap();
            assert_eq!((added(&reading), reading.covers("nvme0n1", Read)), (vec![], false));
            host.list(&[&lines(4)[..2], &[line((259, 3), "nvme0c2n1", [5, 40, 0, 0, 0, 0, 0])]].concat());
            host.disk("nvme0c2n1");
            let reading = statistics.read().unwrap();
            assert_eq!(added(&reading)[0], row("nvme0n1", Read, 6, 24576));
            assert!(reading.covers("nvme0n1", Read));
        }
    }

    #[test]
    fn paths_that_are_listed_without_numbers_are_known_while_there_is_one_head() {
        let host = Host::new();
        for name in ["nvme0c0n1", "nvme0c1n1", "nvme1c0n1", "sda"] {
            host.disk(name);
        }
        host.bios("nvme0n1", None);
        let path = |name, n| line((0, 0), name, [n, n, 0, 0, 0, 0, 0]);
        let head = || line((259, 1), "nvme0n1", [0; 7]);
        let lines = |n| {
            vec![
                head(),
                path("nvme0c0n1", n),
                path("nvme0c1n1", n),
                line((8, 0), "sda", [n, n, 0, 0, 0, 0, 0]),
            ]
        };
        let mut statistics = host.statistics(&lines(0));
        host.list(&lines(1));
        let reading = statistics.read().unwrap();
        assert_eq!(added(&reading), [row("nvme0n1", Read, 2, 1024), row("sda", Read, 1, 512)]);
        let names = [(259, 0), (259, 7), (0, 0), (8, 16)].map(|(major, minor)| reading.name(major, minor));
        assert_eq!(names, [Some("nvme0n1"), Some("nvme0n1"), None, None]);
        // A second head: whose an unlisted number is cannot be told, so what the programs count
        // stands for both.
        host.list(&[lines(2), vec![path("nvme1c0n1", 1)]].concat());
        let reading = statistics.read().unwrap();
        assert_eq!(added(&reading), [row("sda", Read, 1, 512)]);
        assert_eq!((reading.name(259, 0), reading.covers("nvme0n1", Read)), (None, false));
    }

    #[test]
    fn without_a_baseline_nothing_is_added() {
        let host = Host::new();
        host.disk("sda");
        let sda = |n| [line((8, 0), "sda", [n, n, 0, 0, 0, 0, 0])];
        let mut statistics = Statistics::new(&host.0, &host.0);
        assert!(statistics.read().is_err());
        for _ in 0..2 {
            host.list(&sda(5));
            let reading = statistics.read().unwrap();
            assert_eq!((added(&reading), reading.covers("sda", Read)), (vec![], false));
            host.list(&sda(6));
            let reading = statistics.read().unwrap();
            assert_eq!(
                (added(&reading), reading.covers("sda", Read)),
                (vec![row("sda", Read, 1, 512)], true)
            );
            fs::remove_file(host.0.join("diskstats")).unwrap();
            assert!(statistics.read().is_err());
        }
    }

    #[test]
    fn flushes_are_not_covered_where_the_kernel_does_not_count_them() {
        let host = Host::new();
        host.disk("sda");
        let mut statistics = host.statistics(&["8 0 sda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15\n".to_owned()]);
        let reading = statistics.read().unwrap();
        assert_eq!([Read, Discard, Flush].map(|op| reading.covers("sda", op)), [true, true, false]);
    }

    #[test]
    fn only_a_hidden_path_has_a_head() {
        assert_eq!(head("nvme12c3n45").as_deref(), Some("nvme12n45"));
        for name in [
            "nvme0n1",
            "nvme0n1p1",
            "nvme0c0n1p1",
            "nvmec0n1",
            "nvme0cn1",
            "nvme0c0n",
            "sda",
            "nvme0c0",
            "xnvme0c0n1",
        ] {
            assert_eq!(head(name), None, "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Whatever comes, goes, is replaced or skipped: what is covered is exact, and nothing
        /// else is added.
        #[test]
        fn what_is_covered_is_exact(steps in prop::collection::vec(prop::collection::vec((0u8..8, 0u64..50), 4), 1..30)) {
            let host = Host::new();
            // Two disks, and two paths to one head.
            let names = ["sda", "sdb", "nvme0c0n1", "nvme0c1n1"];
            names.iter().for_each(|name| host.disk(name));
            let mut counted: [Option<u64>; 4] = [Some(7), None, Some(3), Some(4)];
            let list = |counted: &[Option<u64>; 4], passed_over: &[bool; 4]| -> String {
                let is_listed = |at: &usize| !passed_over[*at];
                let lines = (0..4).filter(is_listed).filter_map(|at| {
                    let n = counted[at]?;
                    Some(line((8, at as u32 * 16), names[at], [n, 8 * n, 0, 0, 0, 0, 0]))
                });
                lines.collect()
            };
            let mut statistics = host.statistics(&[list(&counted, &[false; 4])]);
            let (mut calm, mut passed_over) = ([0; 3], [false; 4]);
            for step in steps {
                let was_passed_over = std::mem::take(&mut passed_over);
                let (mut grown, mut is_calm) = ([0; 4], [true; 4]);
                for (at, (action, n)) in step.into_iter().enumerate() {
                    match (action, counted[at]) {
                        (0, Some(_)) => (counted[at], is_calm[at]) = (None, false),
                        (1, Some(_)) => (passed_over[at], is_calm[at]) = (true, false),
                        // Another device, which did less than the one before.
                        (2, Some(before)) if before > 0 && !was_passed_over[at] => {
                            (counted[at], is_calm[at]) = (Some(n.min(before - 1)), false);
                        }
                        (3..5, None) => (counted[at], grown[at], is_calm[at]) = (Some(n), n, false),
                        (_, Some(before)) => (counted[at], grown[at]) = (Some(before + n), n),
                        (_, None) => {}
                    }
                }
                let text = list(&counted, &passed_over);
                let reading = statistics.take(&text);
                let labels = [("sda", vec![0]), ("sdb", vec![1]), ("nvme0n1", vec![2, 3])];
                for (number, (label, parts)) in labels.into_iter().enumerate() {
                    let growth: u64 = parts.iter().map(|at| grown[*at]).sum();
                    let added = reading.added.get(&(label.to_owned(), Read)).copied().unwrap_or_default();
                    if reading.covers(label, Read) {
                        prop_assert_eq!(added, Added { ios: growth, bytes: growth * 4096 }, "{}", label);
                    } else {
                        prop_assert_eq!(added, Added::default());
                    }
                    calm[number] = if parts.iter().all(|at| is_calm[*at]) { calm[number] + 1 } else { 0 };
                    let is_there = parts.iter().any(|at| counted[*at].is_some());
                    prop_assert!(calm[number] < 2 || !is_there || reading.covers(label, Read), "{}", label);
                }
            }
        }
    }
}
