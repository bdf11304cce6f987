//! Exact bytes by workload: the `io.stat` of its cgroups, where the io controller is on.
//!
//! A line is `MAJOR:MINOR KEY=VALUE...`. Bytes are charged when a bio is submitted, once for each
//! device that it passes: one that is split or sent to another path is not charged again, but what
//! device mapper and md submit to the disks below is a bio of its own (`BIO_CGROUP_ACCT`,
//! blk_cgroup_bio_start, block/blk-cgroup.c, 5.10 to 7.3). So only those devices are added up that
//! count among the disks. Lines include all cgroups below, also those that are gone; the root's are
//! the disks' own.
//!
//! Few files are read in a reading: first those of the workloads of which most was estimated since.
//! What is estimated for the others is corrected when it is their turn.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use siskin_ebpf::DiskOp;

mod balance;

use crate::workload::{Id, Workloads, directories::Directory};
use balance::{Balance, Growth};

/// Most files that are read in a reading.
const MAX_FILES: usize = 32;
/// A workload with more directories is left to the estimate; most of them are those of cgroups that
/// are gone.
const MAX_DIRECTORIES: usize = 256;
/// How often it is looked whether the controller is on, and at workloads of which nothing was
/// estimated.
const RARELY: Duration = Duration::from_secs(60);

/// The operations whose bytes the kernel charges, each with its key.
const OPS: [(DiskOp, &str); 3] =
    [(DiskOp::Read, "rbytes"), (DiskOp::Write, "wbytes"), (DiskOp::Discard, "dbytes")];

/// Bytes by [`OPS`].
type Bytes = [u64; OPS.len()];
/// A cgroup's bytes by device number.
type Counters = HashMap<(u32, u32), Bytes>;

/// The lines of an `io.stat`. Devices without a number, such as hidden disks, are left out.
pub fn parse(text: &str) -> impl Iterator<Item = ((u32, u32), Bytes)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        let mut bytes = Bytes::default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            if let Some(at) = OPS.iter().position(|(_, name)| *name == key) {
                bytes[at] = value.parse().ok()?;
            }
        }
        Some((device, bytes))
    })
}

/// What is known of a workload.
#[derive(Debug, Default)]
struct State {
    balances: [Balance; OPS.len()],
    /// By cgroup: whether it is the workload's own, and what its file said.
    files: HashMap<u64, (bool, Counters)>,
    /// When its files were last read.
    read_at: Option<Instant>,
    /// Whether all that it did up to then since it was read before is known.
    is_complete: bool,
}

impl State {
    fn estimated(&self) -> u64 {
        self.balances.iter().fold(0, |sum, balance| sum.saturating_add(balance.estimated()))
    }
}

/// The workloads' bytes as their cgroups have them.
#[derive(Debug)]
pub struct IoStats {
    max_files: usize,
    /// Where cgroup2 is, when some cgroup has an `io.stat`.
    mount: Option<PathBuf>,
    next_check: Option<Instant>,
    directories: HashMap<Id, Vec<Directory>>,
    generation: Option<u64>,
    workloads: HashMap<Id, State>,
    /// Whether a cgroup's file was there when it was looked for, lately.
    is_there: HashMap<u64, bool>,
    /// Cgroups that were a workload's own: what they did before is in its counters.
    attributed: HashSet<u64>,
}

impl Default for IoStats {
    fn default() -> Self {
        Self {
            max_files: MAX_FILES,
            mount: None,
            next_check: None,
            directories: HashMap::new(),
            generation: None,
            workloads: HashMap::new(),
            is_there: HashMap::new(),
            attributed: HashSet::new(),
        }
    }
}

impl IoStats {
    /// Takes what was estimated since the last reading, in bytes by workload and operation, and
    /// returns what their counters are to grow by. `counts` says whether a device's bytes count:
    /// those of a stacked device are those of the disks below.
    pub fn read(
        &mut self,
        workloads: &mut Workloads,
        estimated: Vec<(Id, DiskOp, u64)>,
        counts: impl Fn(u32, u32) -> bool,
    ) -> Vec<(Id, DiskOp, u64)> {
        let now = Instant::now();
        if self.next_check.is_none_or(|next| next <= now) {
            self.next_check = Some(now + RARELY);
            self.is_there.clear();
            self.mount = workloads.cgroup2().filter(|mount| is_on(mount));
        }
        match &self.mount {
            Some(mount) if self.generation != Some(workloads.generation()) => {
                self.generation = Some(workloads.generation());
                let directories = workloads.directories(mount);
                self.replace(directories);
            }
            Some(_) => {}
            None => {
                self.generation = None;
                self.directories.clear();
            }
        }
        self.settle(now, estimated, &Mounted { counts })
    }

    fn replace(&mut self, directories: HashMap<Id, Vec<Directory>>) {
        self.directories = directories;
        let living: HashSet<_> =
            self.directories.values().flatten().map(|directory| directory.cgroup).collect();
        self.is_there.retain(|cgroup, _| living.contains(cgroup));
        self.attributed.retain(|cgroup| living.contains(cgroup));
    }

    /// What counters are to grow by, with files from `source`.
    fn settle(
        &mut self,
        now: Instant,
        estimated: Vec<(Id, DiskOp, u64)>,
        source: &impl Source,
    ) -> Vec<(Id, DiskOp, u64)> {
        let mut added = Vec::with_capacity(estimated.len());
        for (id, op, bytes) in estimated {
            let at = OPS.iter().position(|(of, _)| *of == op);
            let is_tracked = self.workloads.contains_key(&id) || self.directories.contains_key(&id);
            match at {
                Some(at) if is_tracked => {
                    self.workloads.entry(id).or_default().balances[at].estimate(bytes);
                }
                _ => added.push((id, op, bytes)),
            }
        }
        let mut turns: Vec<_> = self
            .workloads
            .iter()
            .filter(|(id, _)| self.directories.contains_key(id))
            .map(|(id, state)| (state.estimated(), state.read_at, *id))
            .filter(|(estimated, read_at, _)| {
                *estimated > 0 || read_at.is_none_or(|at| now.duration_since(at) >= RARELY)
            })
            .collect();
        turns.sort_unstable_by_key(|(estimated, read_at, id)| (std::cmp::Reverse(*estimated), *read_at, *id));
        let mut files = Files { read: HashMap::new(), left: self.max_files, source };
        for (_, _, id) in turns {
            if files.left == 0 {
                break;
            }
            if let Some(grown) = self.grown(id, &mut files)
                && let Some(state) = self.workloads.get_mut(&id)
            {
                state.read_at = Some(now);
                state.is_complete = grown.iter().all(|grown| !grown.or_more && !grown.or_less);
                for ((balance, grown), (op, _)) in state.balances.iter_mut().zip(grown).zip(OPS) {
                    added.push((id, op, balance.settle(grown)));
                }
            }
        }
        for (id, state) in &mut self.workloads {
            for (balance, (op, _)) in state.balances.iter_mut().zip(OPS) {
                added.push((*id, op, balance.give()));
            }
        }
        added.retain(|(_, _, bytes)| *bytes > 0);
        added
    }

    /// What a workload did since its files were read before; `None` when it has none, or more than
    /// may still be read.
    fn grown(&mut self, id: Id, files: &mut Files<'_, impl Source>) -> Option<[Growth; OPS.len()]> {
        let directories = self.directories.get(&id).filter(|all| all.len() <= MAX_DIRECTORIES)?;
        let state = self.workloads.get_mut(&id)?;
        let mut there = Vec::new();
        for directory in directories {
            // A cgroup without processes may live on for long without its directory.
            if *self.is_there.entry(directory.cgroup).or_insert_with(|| files.source.is_there(directory)) {
                there.push(directory);
            }
        }
        if there.iter().filter(|directory| !files.read.contains_key(&directory.cgroup)).count() > files.left {
            return None;
        }
        let mut grown = [Growth::default(); OPS.len()];
        let mut not_known = |is_own: bool| {
            for grown in &mut grown {
                grown.or_more |= is_own;
                grown.or_less |= !is_own;
            }
        };
        let (mut before, mut parts) = (std::mem::take(&mut state.files), Vec::new());
        for directory in there {
            let Directory { cgroup, is_own, is_new, .. } = *directory;
            let Some(now) = files.read(directory) else {
                self.is_there.insert(cgroup, false);
                continue;
            };
            let is_first = is_new && !(is_own && self.attributed.contains(&cgroup));
            match before.remove(&cgroup).filter(|(was_own, _)| *was_own == is_own) {
                Some((_, before)) => {
                    let (bytes, is_whole) = since(now, &before);
                    parts.push((is_own, bytes));
                    if !is_whole {
                        not_known(is_own);
                    }
                }
                None if is_first => parts.push((is_own, since(now, &Counters::new()).0)),
                None => not_known(is_own),
            }
            if is_own {
                self.attributed.insert(cgroup);
            }
            state.files.insert(cgroup, (is_own, now.clone()));
        }
        // Cgroups that are gone did something since.
        before.into_values().for_each(|(is_own, _)| not_known(is_own));
        for (is_own, bytes) in parts {
            for (grown, bytes) in grown.iter_mut().zip(bytes) {
                grown.bytes += if is_own { i128::from(bytes) } else { -i128::from(bytes) };
            }
        }
        state.is_complete = false;
        (!state.files.is_empty()).then_some(grown)
    }

    /// Whether the bytes of a workload were known at the last reading, with nothing estimated
    /// since.
    pub fn is_exact(&self, id: Id) -> bool {
        self.workloads
            .get(&id)
            .is_some_and(|state| state.is_complete && state.balances.iter().all(Balance::is_settled))
    }

    /// Forgets workloads that are gone.
    pub fn forget(&mut self, gone: &HashSet<Id>) {
        self.workloads.retain(|id, _| !gone.contains(id));
    }
}

/// Where files are read.
trait Source {
    /// Whether a directory is still that of its cgroup, and has an `io.stat`.
    fn is_there(&self, directory: &Directory) -> bool;

    /// What a directory's file says, of devices that count.
    fn read(&self, directory: &Directory) -> Option<Counters>;
}

/// The mounted cgroup2.
struct Mounted<F> {
    counts: F,
}

const FILE: &str = "io.stat";

impl<F: Fn(u32, u32) -> bool> Source for Mounted<F> {
    fn is_there(&self, directory: &Directory) -> bool {
        is_of(directory) && directory.path.join(FILE).exists()
    }

    fn read(&self, directory: &Directory) -> Option<Counters> {
        let text = is_of(directory).then(|| fs::read_to_string(directory.path.join(FILE)).ok())??;
        let mut counters = Counters::new();
        for ((major, minor), bytes) in
            parse(&text).filter(|((major, minor), _)| (self.counts)(*major, *minor))
        {
            let device = counters.entry((major, minor)).or_default();
            for (sum, bytes) in device.iter_mut().zip(bytes) {
                *sum = sum.saturating_add(bytes);
            }
        }
        Some(counters)
    }
}

/// Whether no other cgroup has come with the path.
fn is_of(directory: &Directory) -> bool {
    fs::metadata(&directory.path).is_ok_and(|metadata| metadata.ino() == directory.cgroup)
}

/// Whether some cgroup below `mount` has an `io.stat`: those right below have one when the root
/// hands the controller on, and no other has without.
fn is_on(mount: &Path) -> bool {
    let controllers = fs::read_to_string(mount.join("cgroup.subtree_control"));
    controllers.is_ok_and(|text| text.split_ascii_whitespace().any(|controller| controller == "io"))
}

/// The files that were read in this reading.
struct Files<'a, S> {
    read: HashMap<u64, Option<Counters>>,
    /// How many more may be.
    left: usize,
    source: &'a S,
}

impl<S: Source> Files<'_, S> {
    fn read(&mut self, directory: &Directory) -> Option<&Counters> {
        let Self { read, left, source } = self;
        let counters = read.entry(directory.cgroup).or_insert_with(|| {
            *left = left.saturating_sub(1);
            source.read(directory)
        });
        counters.as_ref()
    }
}

/// What was added since `before`, over all devices, and whether that is all: not when a device is
/// gone.
fn since(now: &Counters, before: &Counters) -> (Bytes, bool) {
    let mut added = Bytes::default();
    for (device, now) in now {
        let before = before.get(device).copied().unwrap_or_default();
        // Another device with its number, or the controller was off meanwhile: it counts from 0
        // again.
        let is_restarted = now.iter().zip(before).any(|(now, before)| *now < before);
        for (added, (now, before)) in added.iter_mut().zip(now.iter().zip(before)) {
            *added = added.saturating_add(if is_restarted { *now } else { now - before });
        }
    }
    (added, before.keys().all(|device| now.contains_key(device)))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::workload::{Hierarchy, Labels, Roots};
    use DiskOp::{Discard, Flush, Other, Read, Write};
    use proptest::prelude::*;

    #[test]
    fn lines_of_every_kernel_are_read() {
        let text = "\
            8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n\
            8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=50331648 dios=3021 use_delay=0 delay_nsec=0 cost.usage=7\n\
            253:0 \n\
            254:0 rbytes=5 depth=max avg_lat=3 win=100\n\
            (unknown) rbytes=0 wbytes=0 rios=4 wios=0 dbytes=0 dios=0\n\
            \n\
            8:x rbytes=1\n\
            8:32 rbytes=x\n\
            8:48 wbytes\n";
        let read: Vec<_> = parse(text).collect();
        let expected = [
            ((8, 16), [1_459_200, 314_773_504, 0]),
            ((8, 0), [90_430_464, 299_008_000, 50_331_648]),
            ((253, 0), [0; 3]),
            ((254, 0), [5, 0, 0]),
            ((8, 48), [0; 3]),
        ];
        assert_eq!(read, expected);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_left_out(text in "[ 0-9a-z:=\n]{0,200}|\\PC{0,80}") {
            prop_assert!(parse(&text).count() <= text.lines().count());
        }
    }

    const SDA: (u32, u32) = (8, 0);

    /// Files by cgroup; what has none is gone.
    #[derive(Debug, Default)]
    struct Memory(HashMap<u64, Counters>);

    impl Memory {
        fn write(&mut self, cgroup: u64, bytes: u64) {
            self.0.entry(cgroup).or_default().entry(SDA).or_default()[1] += bytes;
        }
    }

    impl Source for Memory {
        fn is_there(&self, directory: &Directory) -> bool {
            self.0.contains_key(&directory.cgroup)
        }

        fn read(&self, directory: &Directory) -> Option<Counters> {
            self.0.get(&directory.cgroup).cloned()
        }
    }

    fn ids<const N: usize>() -> [Id; N] {
        let mut workloads = Workloads::new(Roots::default(), N);
        std::array::from_fn(|n| workloads.intern(&Labels { pod: n.to_string(), ..Labels::default() }))
    }

    fn own(cgroup: u64, is_new: bool) -> Directory {
        Directory { cgroup, path: PathBuf::new(), is_own: true, is_new }
    }

    fn anothers(cgroup: u64) -> Directory {
        Directory { is_own: false, ..own(cgroup, true) }
    }

    fn of(added: &[(Id, DiskOp, u64)], id: Id) -> u64 {
        added.iter().filter(|(of, op, _)| (*of, *op) == (id, Write)).map(|(_, _, bytes)| bytes).sum()
    }

    /// The workloads' files, in memory, and the time.
    struct Bench {
        io_stats: IoStats,
        memory: Memory,
        now: Instant,
    }

    impl Bench {
        fn new(directories: impl IntoIterator<Item = (Id, Vec<Directory>)>) -> Self {
            let mut io_stats = IoStats::default();
            io_stats.replace(directories.into_iter().collect());
            Self { io_stats, memory: Memory::default(), now: Instant::now() }
        }

        /// A reading with estimates of written bytes.
        fn read(&mut self, estimated: &[(Id, u64)]) -> Vec<(Id, DiskOp, u64)> {
            self.now += Duration::from_secs(1);
            let estimated = estimated.iter().map(|(id, bytes)| (*id, Write, *bytes)).collect();
            self.io_stats.settle(self.now, estimated, &self.memory)
        }
    }

    #[test]
    fn what_a_file_says_takes_the_place_of_the_estimate_once_there_is_a_baseline() {
        let [a, b] = ids();
        let mut bench = Bench::new([(a, vec![own(1, false)]), (b, vec![own(2, true)])]);
        bench.memory.write(1, 1_000_000);
        bench.memory.write(2, 50);
        let added = bench.read(&[(a, 100), (b, 100)]);
        assert_eq!(
            (of(&added, a), bench.io_stats.is_exact(a)),
            (100, false),
            "what it did before is not ours"
        );
        assert_eq!((of(&added, b), bench.io_stats.is_exact(b)), (50, true), "seen since it was made");
        bench.memory.write(1, 30);
        let added = bench.read(&[(a, 90), (b, 7)]);
        assert_eq!((of(&added, a), bench.io_stats.is_exact(a)), (30, true));
        assert_eq!((of(&added, b), bench.io_stats.is_exact(b)), (0, true), "it did nothing");
    }

    #[test]
    fn operations_and_workloads_without_a_file_keep_the_estimate() {
        let [a, b] = ids();
        let mut bench = Bench::new([(a, vec![own(1, true)])]);
        bench.memory.0.insert(1, HashMap::from([(SDA, [10, 20, 30]), ((8, 16), [1, 2, 3])]));
        let estimated = vec![
            (a, Read, 1),
            (a, Write, 1),
            (a, Write, 1),
            (a, Flush, 0),
            (a, Other, 7),
            (b, Write, 5),
            (Id::UNKNOWN, Read, 6),
        ];
        let mut added = bench.io_stats.settle(bench.now, estimated, &bench.memory);
        added.sort_unstable();
        let mut expected = [
            (a, Read, 11),
            (a, Write, 22),
            (a, Discard, 33),
            (a, Other, 7),
            (b, Write, 5),
            (Id::UNKNOWN, Read, 6),
        ];
        expected.sort_unstable();
        assert_eq!(added, expected);
        assert!(!bench.io_stats.is_exact(b) && !bench.io_stats.is_exact(Id::UNKNOWN));
    }

    #[test]
    fn what_is_anothers_inside_is_subtracted() {
        let [a, b] = ids();
        let mut bench = Bench::new([(a, vec![own(1, true), anothers(2)]), (b, vec![own(2, true)])]);
        bench.memory.write(1, 100);
        bench.memory.write(2, 60);
        let added = bench.read(&[(a, 1), (b, 1)]);
        assert_eq!((of(&added, a), of(&added, b)), (40, 60));
        assert!(bench.io_stats.is_exact(a) && bench.io_stats.is_exact(b));
        // Its directory is gone, and what it did last is not known: at most all of it.
        bench.memory.write(1, 30);
        bench.memory.0.remove(&2);
        assert_eq!(of(&bench.read(&[(a, 50)]), a), 30);
        assert!(!bench.io_stats.is_exact(a));
        bench.memory.write(1, 5);
        assert_eq!(of(&bench.read(&[(a, 1)]), a), 5);
        assert!(bench.io_stats.is_exact(a));
    }

    #[test]
    fn what_a_cgroup_did_before_it_went_is_left_to_the_estimate() {
        let [a] = ids();
        let mut bench = Bench::new([(a, vec![own(1, true), own(2, true)])]);
        bench.memory.write(1, 10);
        bench.memory.write(2, 10);
        assert_eq!(of(&bench.read(&[(a, 1)]), a), 20);
        bench.memory.0.remove(&2);
        bench.memory.write(1, 10);
        assert_eq!((of(&bench.read(&[(a, 25)]), a), bench.io_stats.is_exact(a)), (25, false));
        bench.memory.write(1, 10);
        assert_eq!((of(&bench.read(&[(a, 25)]), a), bench.io_stats.is_exact(a)), (10, true));
        // A new one, seen since it was made.
        bench.io_stats.replace(HashMap::from([(a, vec![own(1, true), own(3, true)])]));
        bench.memory.write(3, 7);
        assert_eq!((of(&bench.read(&[(a, 1)]), a), bench.io_stats.is_exact(a)), (7, true));
        // All are gone.
        bench.memory.0.clear();
        assert_eq!((of(&bench.read(&[(a, 4)]), a), bench.io_stats.is_exact(a)), (4, false));
    }

    #[test]
    fn what_a_cgroup_did_under_another_name_does_not_count_again() {
        let [a, b] = ids();
        let mut bench = Bench::new([(a, vec![own(1, true)])]);
        bench.memory.write(1, 1000);
        assert_eq!(of(&bench.read(&[(a, 1)]), a), 1000);
        bench.io_stats.replace(HashMap::from([(b, vec![own(1, true)])]));
        bench.memory.write(1, 10);
        assert_eq!((of(&bench.read(&[(b, 9)]), b), bench.io_stats.is_exact(b)), (9, false));
        bench.memory.write(1, 10);
        assert_eq!((of(&bench.read(&[(b, 9)]), b), bench.io_stats.is_exact(b)), (10, true));
    }

    #[test]
    fn a_device_may_come_go_and_count_again() {
        let before = HashMap::from([(SDA, [10, 10, 10])]);
        assert_eq!(since(&HashMap::from([(SDA, [11, 12, 13])]), &before), ([1, 2, 3], true));
        assert_eq!(since(&HashMap::from([(SDA, [11, 2, 10])]), &before), ([11, 2, 10], true));
        let both = HashMap::from([(SDA, [10, 10, 11]), ((8, 16), [5, 0, 0])]);
        assert_eq!(since(&both, &before), ([5, 0, 1], true));
        assert_eq!(since(&HashMap::new(), &before), ([0; 3], false));
    }

    #[test]
    fn the_busiest_come_first_and_everyone_has_a_turn() {
        let ids: [Id; 40] = ids();
        let mut bench = Bench::new(ids.iter().enumerate().map(|(n, id)| (*id, vec![own(n as u64, true)])));
        (0..40).for_each(|n| bench.memory.write(n, 7));
        let estimated: Vec<_> = ids.iter().enumerate().map(|(n, id)| (*id, 10 + n as u64)).collect();
        let added = bench.read(&estimated);
        let exact =
            |bench: &Bench| -> Vec<usize> { (0..40).filter(|n| bench.io_stats.is_exact(ids[*n])).collect() };
        assert_eq!(exact(&bench), Vec::from_iter(8..40), "of those with the least nothing was read");
        assert_eq!((of(&added, ids[0]), of(&added, ids[39])), (10, 7));
        // Those that were not read have the most to correct now.
        bench.read(&[(ids[39], 1)]);
        assert_eq!(exact(&bench), Vec::from_iter(8..40), "3 bytes too much each");
        assert!((0..8).all(|n| bench.io_stats.workloads[&ids[n]].is_complete));
        (0..8).for_each(|n| bench.memory.write(n, 100));
        let added = bench.read(&estimated[..8]);
        assert_eq!((of(&added, ids[0]), exact(&bench).len()), (97, 40));
        // Nothing was seen of them for long.
        (0..40).for_each(|n| bench.memory.write(n, 1));
        assert!(bench.read(&[]).is_empty());
        bench.now += RARELY;
        assert_eq!((bench.read(&[]).len(), bench.read(&[]).len()), (32, 8));
    }

    #[test]
    fn cgroups_without_a_directory_take_no_turn() {
        let [a, b] = ids();
        let dead = (100..140).map(|cgroup| own(cgroup, true));
        let many = (200..240).map(|cgroup| own(cgroup, true));
        let mut bench = Bench::new([(a, dead.chain([own(1, true)]).collect()), (b, many.collect())]);
        bench.memory.write(1, 3);
        (200..240).for_each(|cgroup| bench.memory.write(cgroup, 3));
        let added = bench.read(&[(a, 5), (b, 500)]);
        assert_eq!((of(&added, a), bench.io_stats.is_exact(a)), (3, true));
        assert_eq!((of(&added, b), bench.io_stats.is_exact(b)), (500, false), "more than a reading may take");
    }

    #[test]
    fn workloads_that_are_gone_are_forgotten() {
        let [a] = ids();
        let mut bench = Bench::new([(a, vec![own(1, true)])]);
        bench.memory.write(1, 3);
        bench.read(&[(a, 5)]);
        bench.io_stats.replace(HashMap::new());
        bench.io_stats.forget(&HashSet::from([a]));
        let IoStats { workloads, is_there, attributed, .. } = &bench.io_stats;
        assert!(workloads.is_empty() && is_there.is_empty() && attributed.is_empty());
    }

    #[test]
    fn files_are_read_where_cgroup2_is_mounted() -> io::Result<()> {
        let root = std::env::temp_dir().join(format!("siskin-io-stat-{}", std::process::id()));
        let (mount, service) = (root.join("unified"), root.join("unified/a.service"));
        fs::create_dir_all(&service)?;
        fs::write(mount.join("cgroup.controllers"), "io\n")?;
        let mut workloads = Workloads::new(Roots { cgroup: root.clone(), ..Roots::default() }, 10);
        workloads.begin();
        let id = workloads.resolve(Hierarchy::CGROUP2, fs::metadata(&service)?.ino());
        let mut io_stats = IoStats::default();
        let mut read = |io_stats: &mut IoStats, bytes| {
            io_stats.read(&mut workloads, vec![(id, Write, bytes)], |major, _| major == 8)
        };
        let file = service.join(FILE);
        fs::write(&file, "8:0 wbytes=100\n253:0 wbytes=100\n")?;
        // The controller is not handed on.
        assert_eq!(read(&mut io_stats, 5), [(id, Write, 5)]);
        fs::write(mount.join("cgroup.subtree_control"), "cpu io memory\n")?;
        assert_eq!(read(&mut io_stats, 5), [(id, Write, 5)]);
        assert!(io_stats.workloads.is_empty(), "it is not looked again for a minute");
        io_stats.next_check = None;
        assert_eq!(read(&mut io_stats, 5), [(id, Write, 5)]);
        fs::write(&file, "8:0 wbytes=150\n253:0 wbytes=150\n8:16 rbytes=9 wbytes=1\n")?;
        assert_eq!(read(&mut io_stats, 5), [(id, Read, 9), (id, Write, 51)]);
        assert!(io_stats.is_exact(id));
        // Another cgroup has its place.
        fs::rename(&service, root.join("aside"))?;
        fs::create_dir(&service)?;
        fs::write(&file, "8:0 wbytes=1000000\n")?;
        assert_eq!(read(&mut io_stats, 5), [(id, Write, 5)]);
        assert!(!io_stats.is_exact(id));
        fs::write(mount.join("cgroup.subtree_control"), "")?;
        io_stats.next_check = None;
        assert_eq!(read(&mut io_stats, 5), [(id, Write, 5)]);
        assert!(io_stats.directories.is_empty());
        fs::remove_dir_all(root)
    }

    proptest! {
        /// Three workloads, one of them inside another, and fewer files than they have: counters
        /// are exact when their files were read and nothing is withheld, and wrong by no more than
        /// was estimated since.
        #[test]
        fn counters_follow_the_files(
            steps in prop::collection::vec(
                (prop::collection::vec((0u64..1000, 0u64..1000), 3), 0u8..6, 1u64..40), 1..60),
            max_files in 1usize..6,
        ) {
            let [a, b, c] = ids();
            let directories = |a2: u64| HashMap::from([
                (a, vec![own(1, true), own(a2, true), anothers(10)]),
                (b, vec![own(10, true)]),
                (c, vec![own(20, true)]),
            ]);
            let mut bench = Bench::new(directories(2));
            bench.io_stats.max_files = max_files;
            let (mut a2, mut counters, mut truth) = (2, [0u64; 3], [0u64; 3]);
            // The counter and the truth when the files were last read, and whether both were exact
            // then.
            let mut known = [(0u64, 0u64, true); 3];
            let (mut most, mut is_churned) = ([0u64; 3], [false; 3]);
            [1, 2, 10, 20].into_iter().for_each(|cgroup| bench.memory.write(cgroup, 0));
            for (work, action, seconds) in steps {
                let mut estimated = Vec::new();
                for (n, (id, (bytes, estimate))) in [a, b, c].into_iter().zip(work).enumerate() {
                    truth[n] += bytes;
                    match n {
                        0 => bench.memory.write(if bytes % 2 == 0 { 1 } else { a2 }, bytes),
                        1 => [1, 10].into_iter().for_each(|cgroup| bench.memory.write(cgroup, bytes)),
                        _ => bench.memory.write(20, bytes),
                    }
                    if estimate % 4 != 0 {
                        estimated.push((id, estimate));
                    }
                }
                if action == 0 {
                    // One of the first workload's cgroups goes, and another one comes.
                    bench.memory.0.remove(&a2);
                    a2 += 100;
                    bench.memory.write(a2, 0);
                    bench.io_stats.replace(directories(a2));
                    is_churned[0] = true;
                }
                bench.now += Duration::from_secs(seconds);
                let added = bench.read(&estimated);
                for (n, id) in [a, b, c].into_iter().enumerate() {
                    let estimate = estimated.iter().find(|(of, _)| *of == id).map_or(0, |(_, bytes)| *bytes);
                    most[n] += estimate;
                    counters[n] += of(&added, id);
                    let Some(state) = bench.io_stats.workloads.get(&id) else { continue };
                    let (counter_then, truth_then, was_exact) = known[n];
                    if state.read_at != Some(bench.now) {
                        // Between: at most what was estimated since comes on top.
                        prop_assert!(counters[n] >= counter_then);
                        prop_assert!(counters[n] - counter_then <= most[n]);
                        continue;
                    }
                    let is_exact = bench.io_stats.is_exact(id);
                    prop_assert!(!is_churned[n] || !is_exact || !was_exact || state.is_complete);
                    if state.is_complete && was_exact && !is_churned[n] {
                        // Nothing is ever missing; what is too much is withheld.
                        prop_assert!(counters[n] - counter_then >= truth[n] - truth_then);
                        prop_assert_eq!(is_exact, counters[n] - counter_then == truth[n] - truth_then);
                    }
                    if n > 0 {
                        // Without gone cgroups, from the beginning.
                        prop_assert!(state.is_complete && counters[n] >= truth[n]);
                        prop_assert_eq!(is_exact, counters[n] == truth[n]);
                        let withheld = state.balances.iter().map(|balance| balance.ahead()).sum::<u64>();
                        prop_assert_eq!(counters[n] - truth[n], withheld);
                    }
                    known[n] = (counters[n], truth[n], is_exact);
                    (most[n], is_churned[n]) = (0, false);
                }
            }
        }
    }
}
