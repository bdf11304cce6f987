//! Who does it: from a cgroup's id to the labels of its workload.

use std::{collections::HashMap, path::PathBuf};

use siskin_ebpf::Words;

pub mod cgroup;
pub mod name;

use cgroup::Tree;

/// A cgroup hierarchy: 0 is cgroup2, others are the kernel's numbers of cgroup v1 hierarchies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hierarchy(pub u32);

impl Hierarchy {
    /// The unified hierarchy.
    pub const CGROUP2: Self = Self(0);
}

/// A workload's number, for as long as the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(u32);

impl Id {
    /// What could not be attributed.
    pub const UNKNOWN: Self = Self(0);
}

/// The labels of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels {
    /// Kubernetes namespace; empty for a host service.
    pub namespace: String,
    /// Pod; empty for a host service.
    pub pod: String,
    /// Container, systemd unit or cgroup path.
    pub container: String,
}

/// How cgroup ids were resolved. One that is nowhere is looked for, and counted, at every reading in which it did something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookups {
    /// To a pod's container.
    pub pod: u64,
    /// To a systemd unit or a cgroup path.
    pub unit: u64,
    /// Not at all.
    pub unknown: u64,
}

/// All workloads seen.
#[derive(Debug)]
pub struct Workloads {
    tree: Tree,
    max: usize,
    labels: Vec<Labels>,
    by_labels: HashMap<Labels, Id>,
    by_cgroup: HashMap<(Hierarchy, u64), Id>,
    scanned: bool,
    /// How lookups ended.
    pub lookups: Lookups,
}

impl Workloads {
    /// At most `max` workloads with labels of their own, found under the mount `cgroup`; `procfs` says which v1
    /// hierarchy has which number.
    pub fn new(cgroup: PathBuf, procfs: PathBuf, max: usize) -> Self {
        let unknown = Labels { container: "unknown".into(), ..Labels::default() };
        Self {
            tree: Tree::new(cgroup, procfs),
            max,
            by_labels: HashMap::from([(unknown.clone(), Id::UNKNOWN)]),
            labels: vec![unknown],
            by_cgroup: HashMap::new(),
            scanned: false,
            lookups: Lookups::default(),
        }
    }

    /// Begins a reading: the tree may be scanned once more for ids that are not known yet.
    pub fn begin(&mut self) {
        self.scanned = false;
    }

    /// The workload of a cgroup.
    pub fn resolve(&mut self, hierarchy: Hierarchy, cgroup: u64) -> Id {
        if let Some(id) = self.by_cgroup.get(&(hierarchy, cgroup)) {
            return *id;
        }
        // 0 is no cgroup at all: a request without an owner.
        if cgroup == 0 {
            return Id::UNKNOWN;
        }
        if !self.scanned {
            self.scanned = true;
            self.tree.scan();
        }
        let Some(path) = self.tree.path(hierarchy, cgroup) else {
            self.lookups.unknown += 1;
            return Id::UNKNOWN;
        };
        let labels = Labels { container: name::of(path), ..Labels::default() };
        self.lookups.unit += 1;
        let id = self.intern(labels);
        // Ids of cgroups that are gone add up; those that still matter are looked up again.
        if self.by_cgroup.len() >= self.max * 4 {
            self.by_cgroup.clear();
        }
        self.by_cgroup.insert((hierarchy, cgroup), id);
        id
    }

    /// The number of the workload with these labels; [`Id::UNKNOWN`] when there are too many.
    pub fn intern(&mut self, labels: Labels) -> Id {
        if let Some(id) = self.by_labels.get(&labels) {
            return *id;
        }
        if self.labels.len() >= self.max {
            return Id::UNKNOWN;
        }
        let id = Id(self.labels.len() as u32);
        self.labels.push(labels.clone());
        self.by_labels.insert(labels, id);
        id
    }

    /// The labels of a workload.
    pub fn labels(&self, id: Id) -> &Labels {
        &self.labels[id.0 as usize]
    }
}

/// Counters by workload, since the agent began.
#[derive(Clone, Debug)]
pub struct Totals<V> {
    rows: HashMap<Id, V>,
}

impl<V: Words> Default for Totals<V> {
    /// The unattributed row exists from the start.
    fn default() -> Self {
        Self { rows: HashMap::from([(Id::UNKNOWN, V::zero())]) }
    }
}

impl<V: Words> Totals<V> {
    /// Adds to a workload.
    pub fn add(&mut self, id: Id, delta: &V) {
        self.rows.entry(id).or_insert_with(V::zero).add(delta);
    }

    /// Every workload with its counters.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &V)> {
        self.rows.iter().map(|(id, row)| (*id, row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_labels_are_one_workload_and_too_many_are_unknown() {
        let mut workloads = Workloads::new("/nowhere".into(), "/nowhere".into(), 2);
        let labels = |name: &str| Labels { container: name.into(), ..Labels::default() };
        let a = workloads.intern(labels("a"));
        assert_eq!(workloads.intern(labels("a")), a);
        assert_ne!(a, Id::UNKNOWN);
        assert_eq!(workloads.intern(labels("b")), Id::UNKNOWN);
        assert_eq!(workloads.labels(Id::UNKNOWN).container, "unknown");
    }

    #[test]
    fn an_id_that_is_nowhere_is_unknown_and_counted() {
        let mut workloads = Workloads::new("/nowhere".into(), "/nowhere".into(), 2);
        assert_eq!(workloads.resolve(Hierarchy::CGROUP2, 7), Id::UNKNOWN);
        assert_eq!(workloads.lookups.unknown, 1);
    }
}
