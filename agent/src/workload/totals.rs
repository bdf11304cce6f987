//! Counters by workload.

use std::collections::{HashMap, HashSet};

use siskin_ebpf::Words;

use super::Id;

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

    /// Lets go of workloads that are gone, with their counters.
    pub fn forget(&mut self, gone: &HashSet<Id>) {
        self.rows.retain(|id, _| !gone.contains(id));
    }

    /// The counters of every workload, to change.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.rows.values_mut()
    }

    /// Every workload with its counters.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &V)> {
        self.rows.iter().map(|(id, row)| (*id, row))
    }
}
