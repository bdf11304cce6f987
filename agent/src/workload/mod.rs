//! Who does it: from a cgroup's id to the labels of its workload.
//!
//! Cgroups are learned from the programs' notes ([`notes`]) and, where those are missing, from the trees ([`cgroup`]). A path says
//! what runs there ([`path`]), log directories name it ([`logs`]), and a bounded table gives it series ([`series`]).

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::metrics::{self, Exposition};

pub mod cgroup;
pub mod directories;
pub mod labels;
pub mod logs;
pub mod notes;
pub mod path;
pub mod series;
pub mod totals;

use cgroup::Trees;
use directories::{Cgroup, Directory};
pub use labels::{Hierarchy, Id, Labels};
use logs::Logs;
use notes::{Note, Notes};
use path::{Place, Uid};
use series::Series;
pub use totals::Totals;

/// How cgroup ids were resolved.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookups {
    /// To a pod's container.
    pub pod: u64,
    /// To a systemd unit, a container outside Kubernetes, or a cgroup path.
    pub unit: u64,
    /// Not at all.
    pub unknown: u64,
}

/// Where the host's directories are.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    /// Cgroup mounts, usually in `/sys/fs/cgroup`.
    pub cgroup: PathBuf,
    /// Usually `/proc`.
    pub procfs: PathBuf,
    /// Usually `/var/log/pods`.
    pub pod_logs: PathBuf,
    /// Usually `/var/log/containers`.
    pub container_logs: PathBuf,
}

/// A cgroup, by its hierarchy and id.
type Key = (Hierarchy, u64);

/// A cgroup that was learned and not forgotten.
#[derive(Debug)]
struct Known {
    path: Box<str>,
    place: Place,
    /// Whether a scan found it, and not a note.
    by_scan: bool,
    /// Its labels, once looked up, and the state of the logs' names then; `None` when they will not get better.
    labels: Option<(Labels, Option<u64>)>,
    /// Its workload, once it did something.
    workload: Option<Id>,
    /// The last reading in which it did something.
    used: u64,
    /// The reading after which nothing more will be counted under its id, and when it may be forgotten then.
    gone: Option<(u64, Instant)>,
}

/// A cgroup that is nowhere.
#[derive(Debug)]
struct Missing {
    next: Instant,
    wait: Duration,
}

/// A scan of the trees may take one part in so many of the time.
const SCAN_SHARE: u32 = 500;
/// Shortest and longest time after which a cgroup that was nowhere is looked for again.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Cgroups that are nowhere and remembered as such.
const MAX_MISSING: usize = 4096;
/// Cgroups known at once; beyond, those that did nothing for longest are forgotten and learned again.
const MAX_KNOWN: usize = 16_384;
/// How long a cgroup that a scan did not find is kept, where no note says when its last socket is closed.
const LINGERS: Duration = Duration::from_secs(120);

/// All workloads seen.
#[derive(Debug)]
pub struct Workloads {
    trees: Trees,
    logs: Logs,
    notes: Option<Notes>,
    series: Series,
    known: HashMap<Key, Known>,
    /// The oldest container of each pod.
    oldest: HashMap<(Hierarchy, Uid), u64>,
    missing: HashMap<Key, Missing>,
    /// Cgroups may have come or gone without a note.
    distrusted: bool,
    next_scan: Instant,
    reading: u64,
    now: Instant,
    /// Grows whenever [`Self::directories`] may have changed.
    generation: u64,
    /// How lookups ended.
    pub lookups: Lookups,
}

impl Workloads {
    /// At most `max` workloads with labels of their own. Nothing is read yet.
    pub fn new(roots: Roots, max: usize) -> Self {
        let now = Instant::now();
        Self {
            trees: Trees { mount: roots.cgroup, procfs: roots.procfs },
            logs: Logs::new(roots.pod_logs, roots.container_logs),
            notes: None,
            series: Series::new(max),
            known: HashMap::new(),
            oldest: HashMap::new(),
            missing: HashMap::new(),
            distrusted: true,
            next_scan: now,
            reading: 0,
            now,
            generation: 0,
            lookups: Lookups::default(),
        }
    }

    /// Learns of new cgroups from the programs' notes from now on.
    pub fn watch(&mut self, notes: Notes) {
        self.notes = Some(notes);
    }

    /// Notes may be missing: the trees are looked at once more.
    pub fn distrust(&mut self) {
        self.distrusted = true;
    }

    /// Begins a reading. Returns its number.
    pub fn begin(&mut self) -> u64 {
        self.begin_at(Instant::now());
        self.reading
    }

    fn begin_at(&mut self, now: Instant) {
        self.reading += 1;
        self.now = now;
        self.series.begin(self.reading, now);
        self.logs.refresh();
        if self.distrusted && now >= self.next_scan {
            self.scan();
        }
    }

    /// Learns what the programs noted since the last call.
    ///
    /// # Errors
    /// When the kernel refuses to give the notes; then the trees are looked at.
    pub fn learn(&mut self) -> io::Result<()> {
        let Some(notes) = &self.notes else { return Ok(()) };
        let notes = notes.take().inspect_err(|_| self.distrusted = true)?;
        for note in notes {
            self.take(note);
        }
        Ok(())
    }

    fn take(&mut self, note: Note) {
        let key = (note.hierarchy, note.id);
        if let Some(path) = note.path {
            // An id is not used again; if it were, the dead one's name would not be.
            self.forget(key);
            self.insert(key, &path, false);
            // Names of a short-lived pod may be gone when it is time to read what it did.
            self.name(key);
        }
        if note.is_released
            && let Some(known) = self.known.get_mut(&key)
        {
            known.gone = Some((self.reading, self.now));
            self.generation += 1;
        }
    }

    fn insert(&mut self, key: Key, path: &str, by_scan: bool) {
        let place = path::place(path);
        if let Place::Container { pod: Some(pod), .. } = place {
            let (hierarchy, id) = key;
            let oldest = self.oldest.entry((hierarchy, pod)).or_insert(id);
            // A pod whose sandbox ended gets a new one before it gets new containers.
            let former = self.known.get_mut(&(hierarchy, *oldest));
            if former.as_ref().is_some_and(|known| known.gone.is_some()) {
                *oldest = id;
            } else if id < *oldest {
                *oldest = id;
                // It was taken for the sandbox.
                former.into_iter().for_each(|known| known.labels = None);
            }
        }
        self.missing.remove(&key);
        self.generation += 1;
        let (path, used) = (path.into(), self.reading);
        let known = Known { path, place, by_scan, labels: None, workload: None, used, gone: None };
        self.known.insert(key, known);
    }

    /// Looks up the labels of a cgroup, unless the ones that it has are as good as they get.
    fn name(&mut self, key: Key) -> Option<&Labels> {
        let known = self.known.get_mut(&key)?;
        let stale = match &known.labels {
            None => true,
            Some((_, at)) => at.is_some_and(|at| at != self.logs.generation),
        };
        if stale {
            let (labels, is_final) = match &known.place {
                Place::Container { pod, id } => {
                    let is_oldest =
                        pod.is_some_and(|pod| self.oldest.get(&(key.0, pod)).is_some_and(|id| *id == key.1));
                    self.logs.container(*pod, id, is_oldest)
                }
                Place::Pod(pod) => self.logs.pod(*pod),
                Place::Host(name) => (Labels { container: name.to_string(), ..Labels::default() }, true),
            };
            known.labels = Some((labels.fit(), (!is_final).then_some(self.logs.generation)));
        }
        known.labels.as_ref().map(|(labels, _)| labels)
    }

    /// The workload of a cgroup that did something.
    pub fn resolve(&mut self, hierarchy: Hierarchy, cgroup: u64) -> Id {
        // 0 is no cgroup at all: a request without an owner.
        if cgroup == 0 {
            return Id::UNKNOWN;
        }
        let key = (hierarchy, cgroup);
        if !self.known.contains_key(&key) && !self.search(key) {
            return Id::UNKNOWN;
        }
        let Some(labels) = self.name(key).cloned() else { return Id::UNKNOWN };
        let id = self.series.intern(&labels);
        let Some(known) = self.known.get_mut(&key) else { return Id::UNKNOWN };
        known.used = self.reading;
        let before = known.workload.replace(id);
        if before != Some(id) {
            self.generation += 1;
            self.series.hold(id);
            match before {
                Some(before) => self.series.release(before),
                None if labels.pod.is_empty() => self.lookups.unit += 1,
                None => self.lookups.pod += 1,
            }
        }
        id
    }

    /// Looks for a cgroup that is not known, and says whether it is now. One that was nowhere is not looked for at once again.
    fn search(&mut self, key: Key) -> bool {
        if self.missing.get(&key).is_some_and(|missing| self.now < missing.next) {
            return false;
        }
        // It may have been made after the notes were read, and before what it did was.
        if let Err(error) = self.learn() {
            tracing::warn!("cannot read the notes of cgroups: {error}");
        }
        if !self.known.contains_key(&key) && self.now >= self.next_scan {
            self.scan();
        }
        if self.known.contains_key(&key) {
            return true;
        }
        self.lookups.unknown += 1;
        let wait = self.missing.get(&key).map_or(SHORTEST_WAIT, |missing| missing.wait * 2).min(LONGEST_WAIT);
        if self.missing.len() >= MAX_MISSING {
            self.missing.clear();
        }
        self.missing.insert(key, Missing { next: self.now + wait, wait });
        false
    }

    /// Looks at the trees, and not again for a while that is long against the time this took.
    fn scan(&mut self) {
        let begin = Instant::now();
        let Self { trees, known, .. } = &*self;
        let (mut seen, mut new) = (HashSet::new(), Vec::new());
        trees.scan(|hierarchy, id, path| {
            let key = (hierarchy, id);
            // One that was gone is another one, and so is one that is elsewhere. A note's path may begin further up than
            // the mount that was scanned.
            let is_known = known.get(&key).is_some_and(|known| {
                known.gone.is_none() && (!known.by_scan || known.place == path::place(path))
            });
            if !is_known {
                new.push((key, path.to_owned()));
            }
            seen.insert(key);
        });
        for (key, path) in new {
            self.forget(key);
            self.insert(key, &path, true);
        }
        // A cgroup may be removed long before its last socket is closed; a note would say when that was.
        let is_note_missed = self.notes.is_none() || self.distrusted;
        let gone = (self.reading, self.now + LINGERS);
        for (key, known) in &mut self.known {
            if !seen.contains(key) && known.gone.is_none() && is_note_missed {
                known.gone = Some(gone);
                self.generation += 1;
            }
        }
        self.distrusted = false;
        self.next_scan = self.now + SHORTEST_WAIT.max(begin.elapsed() * SCAN_SHARE);
    }

    /// Forgets cgroups that will not count again: those that were gone before this reading began,
    /// since which everything that was counted was read.
    pub fn forget_gone(&mut self, reading: u64) {
        let now = self.now;
        let is_over = |(since, at): (u64, Instant)| since < reading && at <= now;
        let over: Vec<Key> = self
            .known
            .iter()
            .filter(|(_, known)| known.gone.is_some_and(is_over))
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            self.forget(key);
        }
        if self.known.len() > MAX_KNOWN {
            let mut used: Vec<_> = self.known.iter().map(|(key, known)| (known.used, *key)).collect();
            used.sort_unstable_by_key(|(used, (_, id))| (*used, *id));
            for (_, key) in &used[..used.len() - MAX_KNOWN / 2] {
                self.forget(*key);
            }
        }
    }

    fn forget(&mut self, key: Key) {
        let Some(known) = self.known.remove(&key) else { return };
        self.generation += 1;
        if let Some(id) = known.workload {
            self.series.release(id);
        }
        let (hierarchy, id) = key;
        if let Place::Container { pod: Some(pod), .. } = known.place
            && self.oldest.get(&(hierarchy, pod)) == Some(&id)
        {
            self.oldest.remove(&(hierarchy, pod));
        }
    }

    /// Whether so many cgroups came and went since everything was read that it is time to read everything.
    pub fn is_crowded(&self) -> bool {
        self.known.len() > MAX_KNOWN / 2
            && self.known.values().filter(|known| known.gone.is_some()).count() > MAX_KNOWN / 4
    }

    /// All that was read so far was served.
    pub fn described(&mut self) {
        self.series.described();
    }

    /// Whether no cgroup is this workload any more.
    pub fn is_over(&self, id: Id) -> bool {
        self.series.is_over(id)
    }

    /// Lets workloads leave that are gone, but for those in `used`: now those that are gone long enough, and others until the next
    /// call when their place is needed.
    pub fn retire(&mut self, used: &HashSet<Id>) {
        self.series.retire(used);
    }

    /// The workloads that left since the last call: their counters are to leave too.
    pub fn retired(&mut self) -> HashSet<Id> {
        self.series.retired()
    }

    /// The number of the workload with these labels; [`Id::UNKNOWN`] when there are too many.
    pub fn intern(&mut self, labels: &Labels) -> Id {
        self.series.intern(labels)
    }

    /// The labels of a workload.
    pub fn labels(&self, id: Id) -> &Labels {
        self.series.labels(id)
    }

    /// Where cgroup2 is mounted, if it is.
    pub fn cgroup2(&self) -> Option<PathBuf> {
        let found = cgroup::hierarchies(&self.trees.mount, &self.trees.procfs);
        found.into_iter().find(|(hierarchy, _)| *hierarchy == Hierarchy::CGROUP2).map(|(_, root)| root)
    }

    /// Grows whenever [`Self::directories`] may have changed.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The directories whose counters add up to those of each workload, with `mount` being that of
    /// cgroup2: see [`directories`].
    pub fn directories(&mut self, mount: &Path) -> HashMap<Id, Vec<Directory>> {
        let living = self
            .known
            .iter()
            .filter(|((hierarchy, _), known)| *hierarchy == Hierarchy::CGROUP2 && known.gone.is_none());
        let cgroups = living.map(|((_, id), known)| {
            let Known { path, by_scan, workload, .. } = known;
            let workload = workload.filter(|workload| *workload != Id::UNKNOWN);
            Cgroup { id: *id, path: path.clone(), is_new: !by_scan, workload }
        });
        let cgroups = cgroups.collect();
        directories::directories(mount, cgroups, |id| {
            let labels = self.name((Hierarchy::CGROUP2, id))?.clone();
            self.series.find(&labels)
        })
    }

    /// Describes what is known of cgroups as metrics.
    pub fn describe(&self, out: &mut Exposition) {
        let Lookups { pod, unit, unknown } = self.lookups;
        for (outcome, count) in [("pod", pod), ("unit", unit), ("unknown", unknown)] {
            out.counter(&metrics::WORKLOAD_LOOKUPS, &[outcome], count as f64);
        }
        out.gauge(&metrics::WORKLOAD_SERIES, &[], self.series.len() as f64);
        out.gauge(&metrics::WORKLOAD_SERIES_LIMIT, &[], self.series.max() as f64);
        out.gauge(&metrics::WORKLOAD_CGROUPS, &[], self.known.len() as f64);
        out.counter(
            &metrics::LOST,
            &[siskin_ebpf::Probe::Cgroup.name(), "workload_limit"],
            self.series.refused as f64,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UID: &str = "4f8c0b1e-2d3a-4c5b-8e9f-0a1b2c3d4e5f";

    fn made(id: u64, path: &str) -> Note {
        Note { hierarchy: Hierarchy::CGROUP2, id, path: Some(path.to_owned()), is_released: false }
    }

    fn released(id: u64) -> Note {
        Note { hierarchy: Hierarchy::CGROUP2, id, path: None, is_released: true }
    }

    fn nowhere() -> Workloads {
        Workloads::new(Roots::default(), 100)
    }

    fn container(workloads: &mut Workloads, cgroup: u64) -> String {
        let id = workloads.resolve(Hierarchy::CGROUP2, cgroup);
        workloads.labels(id).container.clone()
    }

    #[test]
    fn a_cgroup_is_what_its_note_said_until_everything_was_read_after_its_end() {
        let mut workloads = nowhere();
        workloads.begin();
        workloads.take(made(7, "/a.service"));
        workloads.take(released(7));
        assert_eq!(container(&mut workloads, 7), "a.service");
        workloads.forget_gone(workloads.reading);
        // The note came while this reading was under way: some of what it counted may not have been read.
        assert_eq!(container(&mut workloads, 7), "a.service");
        workloads.begin();
        assert_eq!(container(&mut workloads, 7), "a.service");
        workloads.forget_gone(workloads.reading);
        assert_eq!(container(&mut workloads, 7), "unknown");
        assert_eq!(workloads.known.len(), 0);
    }

    #[test]
    fn an_id_that_came_again_has_its_own_name() {
        let mut workloads = nowhere();
        workloads.begin();
        workloads.take(made(7, "/a.service"));
        assert_eq!(container(&mut workloads, 7), "a.service");
        workloads.take(made(7, "/b.service"));
        assert_eq!(container(&mut workloads, 7), "b.service");
    }

    #[test]
    fn an_id_that_a_scan_finds_elsewhere_has_the_name_of_what_is_there_now() -> io::Result<()> {
        let root = std::env::temp_dir().join(format!("siskin-reused-{}", std::process::id()));
        std::fs::create_dir_all(root.join("a.service"))?;
        std::fs::write(root.join("cgroup.controllers"), "")?;
        let mut workloads = Workloads::new(Roots { cgroup: root.clone(), ..Roots::default() }, 100);
        let mut now = Instant::now();
        let mut scan = |workloads: &mut Workloads| {
            now += Duration::from_secs(10);
            workloads.distrust();
            workloads.begin_at(now);
        };
        let id = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(root.join("a.service"))?);
        scan(&mut workloads);
        assert_eq!(container(&mut workloads, id), "a.service");
        // The same id under another name, as if it had been used again between two scans.
        std::fs::rename(root.join("a.service"), root.join("b.service"))?;
        scan(&mut workloads);
        assert_eq!(container(&mut workloads, id), "b.service");
        // Used again after a scan that saw it gone, while the dead one is still remembered.
        let aside = root.with_extension("aside");
        std::fs::rename(root.join("b.service"), &aside)?;
        scan(&mut workloads);
        assert_eq!(container(&mut workloads, id), "b.service", "what it did before is still its own");
        std::fs::rename(&aside, root.join("c.service"))?;
        scan(&mut workloads);
        assert_eq!(container(&mut workloads, id), "c.service");
        // It lives, and is not forgotten in the dead one's place.
        workloads.begin_at(now + LINGERS + LINGERS);
        workloads.forget_gone(workloads.reading);
        assert_eq!(container(&mut workloads, id), "c.service");
        std::fs::remove_dir_all(root)
    }

    #[test]
    fn an_id_that_is_nowhere_is_looked_for_less_and_less_often() {
        let mut workloads = nowhere();
        let start = Instant::now();
        for second in 0..3600 {
            workloads.begin_at(start + Duration::from_secs(second));
            assert_eq!(container(&mut workloads, 7), "unknown");
        }
        // At once, after 1, 2, 4, … 512 seconds, and then every ten minutes.
        assert_eq!(workloads.lookups.unknown, 15);
    }

    #[test]
    fn the_oldest_container_of_a_pod_is_its_sandbox_also_after_it_got_a_new_one() {
        let mut workloads = nowhere();
        workloads.begin();
        let path = |digit: &str| format!("/kubepods/pod{UID}/{}", digit.repeat(64));
        for (id, digit) in [(12, "c"), (10, "a"), (11, "b")] {
            workloads.take(made(id, &path(digit)));
        }
        let names = |workloads: &mut Workloads, ids: [u64; 3]| ids.map(|id| container(workloads, id));
        assert_eq!(names(&mut workloads, [10, 11, 12]), ["pause", "bbbbbbbbbbbb", "cccccccccccc"]);
        workloads.take(released(10));
        for (id, digit) in [(20, "d"), (21, "e")] {
            workloads.take(made(id, &path(digit)));
        }
        assert_eq!(names(&mut workloads, [20, 21, 11]), ["pause", "eeeeeeeeeeee", "bbbbbbbbbbbb"]);
        workloads.begin();
        workloads.forget_gone(workloads.reading);
        assert_eq!(names(&mut workloads, [20, 21, 11]), ["pause", "eeeeeeeeeeee", "bbbbbbbbbbbb"]);
        let id = workloads.resolve(Hierarchy::CGROUP2, 20);
        let labels = workloads.labels(id);
        assert_eq!((labels.namespace.as_str(), labels.pod.as_str()), ("", UID));
    }

    #[test]
    fn what_is_learned_does_not_grow_without_end() {
        let mut workloads = nowhere();
        for round in 0..40 {
            workloads.begin();
            for id in round * 1000..(round + 1) * 1000 {
                workloads.take(made(id + 1, &format!("/batch/{id}")));
                workloads.resolve(Hierarchy::CGROUP2, id + 1);
                // Every second one stays, or its end was never noted.
                if id % 2 == 0 {
                    workloads.take(released(id + 1));
                }
            }
            workloads.forget_gone(workloads.reading);
            workloads.described();
            workloads.retire(&HashSet::new());
            assert!(workloads.known.len() <= MAX_KNOWN + 1000);
            assert!(workloads.series.len() <= 100);
        }
        assert!(workloads.oldest.is_empty() && workloads.missing.len() <= MAX_MISSING);
        assert!(workloads.series.refused > 0);
    }

    #[test]
    fn directories_are_of_living_cgroups_and_say_which_were_seen_being_made() -> io::Result<()> {
        let root = std::env::temp_dir().join(format!("siskin-directories-{}", std::process::id()));
        std::fs::create_dir_all(root.join("a.service"))?;
        std::fs::write(root.join("cgroup.controllers"), "io")?;
        let mut workloads = Workloads::new(Roots { cgroup: root.clone(), ..Roots::default() }, 100);
        workloads.begin();
        assert_eq!(workloads.cgroup2().as_deref(), Some(&*root));
        let scanned = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(root.join("a.service"))?);
        workloads.take(made(1, "/b.service"));
        workloads.take(made(2, "/b.service/inner"));
        workloads.take(made(3, "/b.service/c.service"));
        let before = workloads.generation();
        let [a, b] = [scanned, 1].map(|id| workloads.resolve(Hierarchy::CGROUP2, id));
        assert_ne!(workloads.generation(), before);
        let (before, found) = (workloads.generation(), workloads.directories(&root));
        assert_eq!((workloads.generation(), found.len()), (before, 2));
        let directory = |cgroup, path: &str, is_own, is_new| {
            vec![Directory { cgroup, path: root.join(path), is_own, is_new }]
        };
        assert_eq!(found[&a], directory(scanned, "a.service", true, false));
        let other = directory(3, "b.service/c.service", false, true);
        assert_eq!(found[&b], [directory(1, "b.service", true, true), other].concat());
        workloads.take(released(3));
        assert_ne!(workloads.generation(), before);
        assert_eq!(workloads.directories(&root)[&b], directory(1, "b.service", true, true));
        std::fs::remove_dir_all(root)
    }

    proptest! {
        /// Whatever is noted in whatever order: nothing panics, and what is forgotten is held by nothing.
        #[test]
        fn any_history_of_cgroups_leaves_nothing_behind(
            steps in prop::collection::vec((0u8..5, 1u64..12, 0u8..4), 0..200)
        ) {
            let mut workloads = nowhere();
            for (action, id, place) in steps {
                match action {
                    0 => drop(workloads.begin()),
                    1 => workloads.forget_gone(workloads.reading),
                    2 => workloads.take(released(id)),
                    3 => {
                        workloads.resolve(Hierarchy::CGROUP2, id);
                    }
                    _ => workloads.take(made(id, &match place {
                        0 => format!("/kubepods/pod{UID}/{id:064x}"),
                        1 => format!("/kubepods/pod{UID}"),
                        2 => format!("/docker/{id:064x}"),
                        _ => format!("/{id}.service"),
                    })),
                }
            }
            for id in 1..12 {
                workloads.take(released(id));
            }
            workloads.begin();
            workloads.forget_gone(workloads.reading);
            prop_assert!(workloads.known.is_empty() && workloads.oldest.is_empty());
            workloads.described();
            workloads.begin_at(Instant::now() + Duration::from_secs(3600));
            workloads.retire(&HashSet::new());
            prop_assert!(workloads.series.is_empty());
        }
    }
}
