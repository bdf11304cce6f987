//! The workloads that have series of their own: at most so many. Pure.
//!
//! A workload is gone when no cgroup has its labels any more. It leaves some time after its last value was served, or sooner when
//! another needs its place, and its counters leave with it: a row for the rest that grew by all it ever counted would read as a
//! burst. One that lives keeps its place, so no series goes back; what finds none is unknown, and counted as lost.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use super::{Id, Labels};

/// How long a workload that is gone is remembered: Prometheus looks back as far.
const REMEMBERED: Duration = Duration::from_secs(300);

/// A workload.
#[derive(Debug)]
struct Workload {
    labels: Labels,
    /// Cgroups that are it.
    cgroups: usize,
    /// The last reading in which it did something, and when that was.
    active: u64,
    active_at: Instant,
}

/// All workloads with series.
#[derive(Debug)]
pub struct Series {
    max: usize,
    next: u64,
    of: HashMap<Id, Workload>,
    by_labels: HashMap<Labels, Id>,
    unknown: Labels,
    reading: u64,
    now: Instant,
    described: u64,
    /// Those that may leave when a place is needed, the one that did nothing for longest first.
    may_go: VecDeque<Id>,
    retired: HashSet<Id>,
    /// Times that a workload found no place.
    pub refused: u64,
}

impl Series {
    /// At most `max` workloads, the unknown one not counted.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            next: Id::UNKNOWN.0 + 1,
            of: HashMap::new(),
            by_labels: HashMap::new(),
            unknown: Labels { container: "unknown".into(), ..Labels::default() },
            reading: 0,
            now: Instant::now(),
            described: 0,
            may_go: VecDeque::new(),
            retired: HashSet::new(),
            refused: 0,
        }
    }

    /// Begins a reading.
    pub fn begin(&mut self, reading: u64, now: Instant) {
        (self.reading, self.now) = (reading, now);
    }

    /// All that was read so far was served.
    pub fn described(&mut self) {
        self.described = self.reading;
    }

    /// Workloads that have a place.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether no workload has a place.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// Most workloads that may have a place.
    pub fn max(&self) -> usize {
        self.max
    }

    /// The workload with these labels, which does something now; [`Id::UNKNOWN`] when there is no place for it.
    pub fn intern(&mut self, labels: &Labels) -> Id {
        let id = match self.by_labels.get(labels).copied() {
            Some(id) => id,
            None if *labels == self.unknown => Id::UNKNOWN,
            None if self.make_room() => self.insert(labels),
            None => {
                self.refused += 1;
                Id::UNKNOWN
            }
        };
        self.touch(id);
        id
    }

    /// The workload with these labels, if it has a place.
    pub fn find(&self, labels: &Labels) -> Option<Id> {
        self.by_labels.get(labels).copied()
    }

    fn insert(&mut self, labels: &Labels) -> Id {
        let id = Id(self.next);
        self.next += 1;
        self.by_labels.insert(labels.clone(), id);
        let (active, active_at) = (self.reading, self.now);
        self.of.insert(id, Workload { labels: labels.clone(), cgroups: 0, active, active_at });
        id
    }

    /// A workload does something now.
    pub fn touch(&mut self, id: Id) {
        if let Some(workload) = self.of.get_mut(&id) {
            (workload.active, workload.active_at) = (self.reading, self.now);
        }
    }

    /// One more cgroup is this workload.
    pub fn hold(&mut self, id: Id) {
        if let Some(workload) = self.of.get_mut(&id) {
            workload.cgroups += 1;
        }
    }

    /// One cgroup less is this workload.
    pub fn release(&mut self, id: Id) {
        if let Some(workload) = self.of.get_mut(&id) {
            workload.cgroups -= 1;
        }
    }

    /// Whether no cgroup is this workload any more.
    pub fn is_over(&self, id: Id) -> bool {
        self.of.get(&id).is_some_and(|workload| workload.cgroups == 0)
    }

    /// The labels of a workload.
    pub fn labels(&self, id: Id) -> &Labels {
        self.of.get(&id).map_or(&self.unknown, |workload| &workload.labels)
    }

    /// Lets go of workloads that are gone long enough, and notes which others may go when their place is needed: those that are
    /// gone and to which nothing was added since they were last served, but for those in `used`.
    pub fn retire(&mut self, used: &HashSet<Id>) {
        let mut gone: Vec<_> = self
            .of
            .iter()
            .filter(|(id, workload)| self.is_gone(workload) && !used.contains(*id))
            .map(|(id, workload)| (workload.active_at, *id))
            .collect();
        gone.sort_unstable_by_key(|(at, id)| (*at, id.0));
        let is_old = |at: Instant| self.now.saturating_duration_since(at) >= REMEMBERED;
        let old = gone.partition_point(|(at, _)| is_old(*at));
        self.may_go = gone.split_off(old).into_iter().map(|(_, id)| id).collect();
        gone.into_iter().for_each(|(_, id)| self.remove(id));
    }

    /// Whether nothing is this workload any more and all that it did was served.
    fn is_gone(&self, workload: &Workload) -> bool {
        workload.cgroups == 0 && workload.active <= self.described
    }

    fn remove(&mut self, id: Id) {
        if let Some(workload) = self.of.remove(&id) {
            self.by_labels.remove(&workload.labels);
            self.retired.insert(id);
        }
    }

    /// Makes room for one more, and says whether there is.
    fn make_room(&mut self) -> bool {
        while self.of.len() >= self.max {
            let Some(id) = self.may_go.pop_front() else { return false };
            if self.of.get(&id).is_some_and(|workload| self.is_gone(workload)) {
                self.remove(id);
            }
        }
        true
    }

    /// The workloads that left since the last call.
    pub fn retired(&mut self) -> HashSet<Id> {
        std::mem::take(&mut self.retired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(name: &str) -> Labels {
        Labels { container: name.into(), ..Labels::default() }
    }

    /// Those that leave at the beginning of a reading.
    fn leave(series: &mut Series, used: &[Id]) -> HashSet<Id> {
        series.retire(&used.iter().copied().collect());
        series.retired()
    }

    #[test]
    fn equal_labels_are_one_workload_and_too_many_are_unknown_and_counted() {
        let mut series = Series::new(1);
        let a = series.intern(&labels("a"));
        assert_eq!(series.intern(&labels("a")), a);
        assert_ne!(a, Id::UNKNOWN);
        assert_eq!(series.intern(&labels("b")), Id::UNKNOWN);
        assert_eq!(series.refused, 1);
        assert_eq!(series.intern(&labels("unknown")), Id::UNKNOWN);
        assert_eq!(series.refused, 1);
        assert_eq!(
            (series.labels(a).container.as_str(), series.labels(Id::UNKNOWN).container.as_str()),
            ("a", "unknown")
        );
    }

    #[test]
    fn a_workload_that_is_gone_leaves_after_its_last_value_was_served_and_when_it_is_old() {
        let (mut series, start) = (Series::new(100), Instant::now());
        series.begin(1, start);
        let a = series.intern(&labels("a"));
        series.hold(a);
        let later = start + REMEMBERED;
        series.begin(2, later);
        series.described();
        assert!(leave(&mut series, &[]).is_empty(), "it lives");
        series.release(a);
        assert!(leave(&mut series, &[a]).is_empty(), "something refers to it");
        assert_eq!(leave(&mut series, &[]), HashSet::from([a]));
        // Comes again, and is served late.
        let again = series.intern(&labels("a"));
        assert_ne!(again, a);
        series.begin(3, later + REMEMBERED);
        series.touch(again);
        series.begin(4, later + REMEMBERED * 2);
        assert!(leave(&mut series, &[]).is_empty(), "its last value was not served");
        series.described();
        assert_eq!(leave(&mut series, &[]), HashSet::from([again]));
        assert_eq!(series.len(), 0);
    }

    #[test]
    fn when_a_place_is_needed_the_one_leaves_that_did_nothing_for_longest() {
        let (mut series, start) = (Series::new(4), Instant::now());
        let mut ids = Vec::new();
        for number in 0..4 {
            series.begin(number, start + Duration::from_secs(number));
            ids.push(series.intern(&labels(&number.to_string())));
        }
        series.hold(ids[0]);
        series.begin(4, start + Duration::from_secs(4));
        series.touch(ids[1]);
        assert!(leave(&mut series, &[]).is_empty());
        assert_eq!(series.intern(&labels("new")), Id::UNKNOWN, "nothing was served");
        series.described();
        series.begin(5, start + Duration::from_secs(5));
        series.retire(&HashSet::from([ids[3]]));
        // It does something after all.
        series.touch(ids[1]);
        assert_ne!(series.intern(&labels("new")), Id::UNKNOWN);
        assert_eq!(series.retired(), HashSet::from([ids[2]]));
        assert_eq!(series.intern(&labels("newer")), Id::UNKNOWN, "the others live, work or are referred to");
        assert_eq!(series.refused, 2);
    }

    proptest! {
        /// Whatever comes and goes: no more than so many, living ones stay, and ids are not used again.
        #[test]
        fn the_limit_holds_and_the_living_stay(
            steps in prop::collection::vec((0u8..40, 0u8..4, any::<bool>()), 0..300),
            max in 1usize..20,
        ) {
            let (mut series, start) = (Series::new(max), Instant::now());
            let (mut living, mut retired): (HashMap<u8, Id>, HashSet<Id>) = Default::default();
            for (reading, (name, action, serve)) in steps.into_iter().enumerate() {
                series.begin(reading as u64 + 1, start + Duration::from_secs(reading as u64 * 20));
                match action {
                    0 => if let Some(id) = living.remove(&name) {
                        series.release(id);
                    },
                    _ => {
                        let id = series.intern(&labels(&name.to_string()));
                        prop_assert!(!retired.contains(&id));
                        if id != Id::UNKNOWN && living.insert(name, id).is_none() {
                            series.hold(id);
                        }
                    }
                }
                if serve {
                    series.described();
                }
                series.retire(&HashSet::new());
                let gone = series.retired();
                prop_assert!(gone.iter().all(|id| living.values().all(|of| of != id)));
                retired.extend(gone);
                prop_assert!(series.len() <= max);
                for (name, id) in &living {
                    prop_assert_eq!(&series.labels(*id).container, &name.to_string());
                }
            }
        }
    }
}
