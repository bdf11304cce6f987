//! A bounded table of counters: the busiest keys have a row of their own, the rest is added up, and nothing is lost on the
//! way. Pure.
//!
//! Whatever is exported from it, at any moment: rows, what had no row ([`Bounded::other`]) and what rows held that left
//! ([`Bounded::departed`]) add up to everything ever added. No row and no `other` ever falls.
//!
//! **Who has a row.** While there is room, whoever comes. When there is none, what a key adds goes to `other`, and a score
//! is kept of how busy it is. After each scrape the busiest of those without a row are compared with the least busy rows;
//! one that is half as busy again takes the row's place. Scores halve in five minutes.
//!
//! **How a row leaves.** It stops counting: what its key adds goes to `other` from now on. Its last value is served at
//! least once, and for the shortest idle time, so that every scraper sees it. Then the row goes, and its value moves to
//! `departed`. So it does when nothing was added to it for the longest idle time.
//!
//! **Why `departed` has a number.** A scraper's `rate()` saw that value grow already, in the row's own series. Were it added
//! to a series that stays, `rate()` would see it once more. So the value of `departed` never changes within one series: the
//! number is part of its name, and there is a new one for every change. A first value is no increase. This way `sum()` over
//! the series is exact at every scrape, and `rate()` counts nothing twice.
//!
//! **How a row returns.** While it is remembered it continues from its old value, which `departed` gives back. As many rows
//! are remembered as the table holds; one that was forgotten begins at 0, and its old value stays in `departed`.

use std::{collections::HashMap, hash::Hash, time::Duration};

/// The time in which a score halves when nothing is added.
const HALF_LIFE: Duration = Duration::from_secs(300);

/// How much busier than a row one has to be to take its place: flows that are equally busy do not take turns.
const BUSIER: f64 = 1.5;

/// A score below this is forgotten.
const NOTHING: f64 = 0.5;

/// What rows are of.
pub trait Key: Clone + Eq + Hash {
    /// Groups of keys. Each has an `other` and a `departed` of its own.
    const GROUPS: usize;

    /// Which group the key belongs to, below [`Self::GROUPS`].
    fn group(&self) -> usize;
}

/// How many rows there are, and how long they stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most rows.
    pub rows: usize,
    /// How long a row that makes room is served unchanged before it goes.
    pub min_idle: Duration,
    /// How long a row to which nothing is added stays while nobody needs its place.
    pub max_idle: Duration,
    /// Numbers of what departed follow this one, which no earlier run reached: Unix seconds at the start.
    pub first_departure: u64,
}

/// Adds to counters.
fn add<const N: usize>(totals: &mut [u64; N], delta: &[u64; N]) {
    for (total, delta) in totals.iter_mut().zip(delta) {
        *total += delta;
    }
}

/// How busy something is: what it added, less the older it is.
fn weight<const N: usize>(delta: &[u64; N]) -> f64 {
    delta.iter().map(|word| *word as f64).sum()
}

#[derive(Clone, Copy, Debug)]
struct Row<const N: usize> {
    totals: [u64; N],
    score: f64,
    /// When its present value was first scraped; `None` when it was not.
    shown: Option<Duration>,
    /// Nothing more is added to it.
    leaving: bool,
}

/// What a row held that left, and when: numbers only say who left earlier.
#[derive(Clone, Copy, Debug)]
struct Remembered<const N: usize> {
    totals: [u64; N],
    left: u64,
}

/// What rows of a group held that left and have not returned.
#[derive(Clone, Copy, Debug)]
struct Departed<const N: usize> {
    /// Another one for every change.
    number: u64,
    totals: [u64; N],
}

/// The table.
#[derive(Clone, Debug)]
pub struct Bounded<K, const N: usize> {
    limits: Limits,
    rows: HashMap<K, Row<N>>,
    other: Vec<[u64; N]>,
    departed: Vec<Departed<N>>,
    remembered: HashMap<K, Remembered<N>>,
    /// Scores of keys that have no row.
    waiting: HashMap<K, f64>,
    last_scrape: Duration,
    left: u64,
}

impl<K: Key, const N: usize> Bounded<K, N> {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            rows: HashMap::new(),
            other: vec![[0; N]; K::GROUPS],
            departed: vec![Departed { number: limits.first_departure, totals: [0; N] }; K::GROUPS],
            remembered: HashMap::new(),
            waiting: HashMap::new(),
            last_scrape: Duration::ZERO,
            left: 0,
        }
    }

    /// Adds to a key: to its row, or to a new one while there is room, else to the group's `other`.
    pub fn add(&mut self, key: K, delta: &[u64; N]) {
        if !self.rows.contains_key(&key) && self.rows.len() < self.limits.rows {
            let score = self.waiting.remove(&key).unwrap_or_default();
            self.enter(key.clone(), score);
        }
        match self.rows.get_mut(&key) {
            Some(row) if !row.leaving => {
                add(&mut row.totals, delta);
                row.score += weight(delta);
                row.shown = None;
            }
            _ => {
                self.add_other(key.group(), delta);
                *self.waiting.entry(key).or_default() += weight(delta);
                self.bound_waiting();
            }
        }
    }

    /// Adds what belongs to no key.
    pub fn add_other(&mut self, group: usize, delta: &[u64; N]) {
        add(&mut self.other[group], delta);
    }

    /// What was described last has been scraped at `now`, on a clock that only goes on, and nothing was added since: decides
    /// who has a row until the next scrape.
    pub fn scraped(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.last_scrape);
        self.last_scrape = now;
        let decay = (-passed.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        for row in self.rows.values_mut() {
            row.shown.get_or_insert(now);
            row.score *= decay;
        }
        self.waiting.retain(|_, score| {
            *score *= decay;
            *score >= NOTHING
        });
        let mut waiting: Vec<_> = self.waiting.iter().map(|(key, score)| (key.clone(), *score)).collect();
        waiting.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        self.make_room(&waiting);
        self.leave(now);
        for (key, score) in waiting {
            if self.rows.len() >= self.limits.rows {
                break;
            }
            // One whose row is about to leave waits like any other.
            if !self.rows.contains_key(&key) {
                self.waiting.remove(&key);
                self.enter(key, score);
            }
        }
        self.bound_remembered();
    }

    /// Lets rows leave for which `gone` says so, as if nothing would ever be added to them again.
    pub fn retire(&mut self, gone: impl Fn(&K) -> bool) {
        for (_, row) in self.rows.iter_mut().filter(|(key, _)| gone(key)) {
            row.leaving = true;
        }
    }

    /// Lets go of keys without a row that will never be added to again.
    pub fn forget(&mut self, gone: impl Fn(&K) -> bool) {
        self.waiting.retain(|key, _| !gone(key));
        self.remembered.retain(|key, _| !gone(key));
    }

    /// Every row.
    pub fn rows(&self) -> impl Iterator<Item = (&K, &[u64; N])> {
        self.rows.iter().map(|(key, row)| (key, &row.totals))
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What a group's keys added that had no row then, and what belongs to no key.
    pub fn other(&self, group: usize) -> &[u64; N] {
        &self.other[group]
    }

    /// What rows of a group held that left and have not returned, and the number of that value; `None` when it is nothing.
    pub fn departed(&self, group: usize) -> Option<(u64, &[u64; N])> {
        let Departed { number, totals } = &self.departed[group];
        totals.iter().any(|total| *total != 0).then_some((*number, totals))
    }

    /// Rows that left so far.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Gives a key a row, which continues from its old value while that is remembered.
    fn enter(&mut self, key: K, score: f64) {
        let mut row = Row { totals: [0; N], score, shown: None, leaving: false };
        if let Some(Remembered { totals, .. }) = self.remembered.remove(&key) {
            row.totals = totals;
            let departed = &mut self.departed[key.group()];
            departed.number += 1;
            for (departed, total) in departed.totals.iter_mut().zip(totals) {
                *departed -= total;
            }
        }
        self.rows.insert(key, row);
    }

    /// Tells the least busy rows to leave for those that wait and are busier, who come busiest first.
    fn make_room(&mut self, waiting: &[(K, f64)]) {
        let leaving = self.rows.values().filter(|row| row.leaving).count();
        let room = self.limits.rows.saturating_sub(self.rows.len()) + leaving;
        let Some(waiting) = waiting.get(room..).filter(|waiting| !waiting.is_empty()) else { return };
        let mut rows: Vec<_> = self.rows.values_mut().filter(|row| !row.leaving).collect();
        rows.sort_by(|a, b| a.score.total_cmp(&b.score));
        for (row, (_, score)) in rows.into_iter().zip(waiting) {
            if *score < row.score * BUSIER {
                break;
            }
            row.leaving = true;
        }
    }

    /// Removes the rows that were told to leave, and those that nothing was added to for long, once they were served for
    /// long enough.
    fn leave(&mut self, now: Duration) {
        let Limits { min_idle, max_idle, .. } = self.limits;
        let left: Vec<_> = self
            .rows
            .extract_if(|_, row| {
                let idle = row.shown.map_or(Duration::ZERO, |shown| now.saturating_sub(shown));
                row.shown.is_some() && idle >= if row.leaving { min_idle } else { max_idle }
            })
            .collect();
        for (key, row) in left {
            let departed = &mut self.departed[key.group()];
            departed.number += 1;
            add(&mut departed.totals, &row.totals);
            self.left += 1;
            self.remembered.insert(key, Remembered { totals: row.totals, left: self.left });
        }
    }

    /// Forgets who left first, so that no more are remembered than the table holds.
    fn bound_remembered(&mut self) {
        if self.remembered.len() > self.limits.rows {
            let mut numbers: Vec<_> = self.remembered.values().map(|row| row.left).collect();
            let first = numbers.len() - self.limits.rows;
            let (_, oldest, _) = numbers.select_nth_unstable(first);
            let oldest = *oldest;
            self.remembered.retain(|_, row| row.left >= oldest);
        }
    }

    /// Keeps no more scores than twice the rows: the better half stays, so that each key costs little on the whole.
    fn bound_waiting(&mut self) {
        let most = self.limits.rows.max(LEAST_WAITING);
        if self.waiting.len() < most * 2 {
            return;
        }
        let mut waiting: Vec<_> = self.waiting.drain().collect();
        waiting.select_nth_unstable_by(most, |(_, a), (_, b)| b.total_cmp(a));
        waiting.truncate(most);
        self.waiting.extend(waiting);
    }
}

/// Scores kept even by the smallest table.
const LEAST_WAITING: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl Key for (u8, u16) {
        const GROUPS: usize = 2;

        fn group(&self) -> usize {
            usize::from(self.0)
        }
    }

    type Table = Bounded<(u8, u16), 2>;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn table(rows: usize) -> Table {
        Table::new(Limits { rows, min_idle: Duration::ZERO, max_idle: seconds(3600), first_departure: 1000 })
    }

    fn row(table: &Table, key: u16) -> Option<u64> {
        table.rows().find(|(of, _)| **of == (0, key)).map(|(_, totals)| totals[0])
    }

    #[test]
    fn a_busier_key_takes_the_place_of_the_least_busy_and_the_sum_stays() {
        let mut table = table(2);
        for (key, value) in [(1, 100), (2, 10), (3, 40)] {
            table.add((0, key), &[value, 0]);
        }
        assert_eq!((row(&table, 3), table.other(0)[0]), (None, 40), "there is no room");
        table.scraped(seconds(1));
        assert_eq!((row(&table, 1), row(&table, 2), row(&table, 3)), (Some(100), None, Some(0)));
        assert_eq!((table.other(0)[0], table.departed(0), table.left()), (40, Some((1001, &[10, 0])), 1));
        table.add((0, 3), &[7, 0]);
        assert_eq!(row(&table, 3), Some(7));
    }

    #[test]
    fn one_that_is_hardly_busier_waits() {
        let mut table = table(1);
        table.add((0, 1), &[100, 0]);
        table.add((0, 2), &[149, 0]);
        table.scraped(seconds(1));
        assert_eq!((row(&table, 1), row(&table, 2)), (Some(100), None));
        table.add((0, 2), &[2, 0]);
        table.scraped(seconds(2));
        assert_eq!((row(&table, 1), row(&table, 2)), (None, Some(0)));
    }

    #[test]
    fn what_was_busy_once_makes_room_with_time() {
        let mut table = table(1);
        table.add((0, 1), &[1_000_000, 0]);
        table.scraped(seconds(1));
        for step in 1.. {
            table.add((0, 2), &[100, 0]);
            table.scraped(seconds(15 * step));
            if row(&table, 2).is_some() {
                assert!((150..250).contains(&step), "{step} scrapes");
                break;
            }
        }
    }

    #[test]
    fn a_row_that_returns_continues_and_one_that_was_forgotten_begins_again() {
        let mut table = table(1);
        table.add((0, 1), &[10, 1]);
        table.add((0, 2), &[30, 0]);
        table.scraped(seconds(1));
        assert_eq!(table.departed(0), Some((1001, &[10, 1])));
        table.add((0, 1), &[90, 0]);
        table.scraped(seconds(2));
        // What came while it had no row stays in `other`.
        assert_eq!((row(&table, 1), table.other(0)), (Some(10), &[120, 0]));
        assert_eq!(table.departed(0), None, "what the other row held was nothing");
        for (step, key) in (3..).zip(2u16..8) {
            table.add((0, key), &[1000 << key, 0]);
            table.scraped(seconds(step));
            table.add((0, key), &[1, 0]);
        }
        assert_eq!(table.departed(0).map(|(_, totals)| *totals), Some([15, 1]));
        table.add((0, 1), &[1_000_000, 0]);
        table.scraped(seconds(20));
        assert_eq!(row(&table, 1), Some(0), "one row is remembered, and this is not it");
        assert_eq!(table.departed(0).map(|(_, totals)| *totals), Some([16, 1]));
    }

    #[test]
    fn a_row_leaves_only_after_its_last_value_was_served_for_long_enough() {
        let limits = Limits { rows: 1, min_idle: seconds(60), max_idle: seconds(3600), first_departure: 0 };
        let mut table = Table::new(limits);
        table.add((0, 1), &[10, 0]);
        table.scraped(seconds(0));
        table.add((0, 1), &[5, 0]);
        table.add((0, 2), &[1000, 0]);
        table.scraped(seconds(30));
        table.add((0, 1), &[3, 0]);
        assert_eq!((row(&table, 1), table.other(0)[0]), (Some(15), 1003), "it counts no more");
        table.scraped(seconds(89));
        assert_eq!(row(&table, 1), Some(15));
        table.scraped(seconds(90));
        assert_eq!((row(&table, 1), row(&table, 2)), (None, Some(0)));
    }

    #[test]
    fn an_idle_row_ages_and_leaves_although_there_is_room() {
        let mut table = table(10);
        table.add((0, 1), &[10, 0]);
        table.add((0, 2), &[10, 0]);
        for minute in 0..=60 {
            table.add((0, 2), &[1, 0]);
            table.scraped(seconds(60 * minute));
        }
        assert_eq!((row(&table, 1), row(&table, 2), table.len()), (None, Some(71), 1));
        table.add((0, 1), &[1, 0]);
        assert_eq!((row(&table, 1), table.departed(0)), (Some(11), None));
    }

    #[test]
    fn rows_of_what_is_gone_leave_after_the_next_scrape() {
        let mut table = table(10);
        for key in 0..4 {
            table.add((0, key), &[10, 0]);
        }
        table.retire(|(_, key)| *key >= 2);
        assert_eq!(table.len(), 4, "nobody saw their last values");
        table.scraped(seconds(1));
        assert_eq!((table.len(), row(&table, 1), row(&table, 2)), (2, Some(10), None));
    }

    /// What a scraper saw: rows, `other` and `departed` of each group.
    #[derive(Debug, Default)]
    struct Scrape {
        rows: BTreeMap<(u8, u16), [u64; 2]>,
        other: [[u64; 2]; 2],
        departed: [Option<(u64, [u64; 2])>; 2],
    }

    impl Scrape {
        fn of(table: &Table) -> Self {
            Self {
                rows: table.rows().map(|(key, totals)| (*key, *totals)).collect(),
                other: [0, 1].map(|group| *table.other(group)),
                departed: [0, 1].map(|group| table.departed(group).map(|(number, totals)| (number, *totals))),
            }
        }

        fn sum(&self, group: usize) -> [u64; 2] {
            let rows = self.rows.iter().filter(|(key, _)| key.group() == group).map(|(_, totals)| *totals);
            let departed = self.departed[group].map(|(_, totals)| totals);
            rows.chain([self.other[group]]).chain(departed).fold([0; 2], plus)
        }
    }

    fn plus(a: [u64; 2], b: [u64; 2]) -> [u64; 2] {
        [a[0] + b[0], a[1] + b[1]]
    }

    fn not_below(a: [u64; 2], b: [u64; 2]) -> bool {
        a[0] >= b[0] && a[1] >= b[1]
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add((u8, u16), u64),
        AddOther(u8, u64),
        Retire(u16),
        Scrape(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let value = prop_oneof![0u64..100, 0u64..1_000_000];
        let step = prop_oneof![
            8 => ((0u8..2, 0u16..40), value.clone()).prop_map(|(key, value)| Step::Add(key, value)),
            1 => (0u8..2, value).prop_map(|(group, value)| Step::AddOther(group, value)),
            1 => (0u16..40).prop_map(Step::Retire),
            3 => (0u64..400).prop_map(Step::Scrape),
        ];
        prop::collection::vec(step, 0..400)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn sums_are_exact_nothing_falls_rows_are_bounded_and_no_last_value_is_lost(
            steps in steps(),
            rows in 0usize..12,
            min_idle in prop_oneof![Just(0u64), 1u64..300],
            max_idle in 300u64..3000,
        ) {
            let limits = Limits {
                rows,
                min_idle: seconds(min_idle),
                max_idle: seconds(max_idle),
                first_departure: 7,
            };
            let mut table = Table::new(limits);
            let (mut now, mut truth) = (0, [[0u64; 2]; 2]);
            // What the scraper was served last, of every key that it ever was served.
            let mut seen = BTreeMap::<(u8, u16), [u64; 2]>::new();
            let mut last = Scrape::of(&table);
            for step in steps {
                match step {
                    Step::Add(key, value) => {
                        table.add(key, &[value, 1]);
                        truth[key.group()] = plus(truth[key.group()], [value, 1]);
                    }
                    Step::AddOther(group, value) => {
                        table.add_other(group.into(), &[value, 0]);
                        truth[usize::from(group)][0] += value;
                    }
                    Step::Retire(key) => table.retire(|(_, of)| *of == key),
                    Step::Scrape(passed) => {
                        now += passed;
                        let scrape = Scrape::of(&table);
                        prop_assert!(scrape.rows.len() <= rows);
                        for group in [0, 1] {
                            prop_assert_eq!(scrape.sum(group), truth[group], "sums are exact");
                            prop_assert!(not_below(scrape.other[group], last.other[group]));
                            if let [Some((before, was)), Some((number, is))] =
                                [last.departed[group], scrape.departed[group]]
                            {
                                prop_assert!(number > before || is == was, "a number has one value");
                            }
                        }
                        for (key, totals) in &last.rows {
                            let now = scrape.rows.get(key);
                            prop_assert!(now.is_some_and(|now| not_below(*now, *totals)), "{key:?} left unseen or fell");
                        }
                        seen.extend(&scrape.rows);

                        table.scraped(seconds(now));
                        prop_assert!(table.remembered.len() <= rows);
                        prop_assert!(table.waiting.len() <= 2 * LEAST_WAITING);
                        // Nothing was added: who left took along what was served last, who came brought what it had.
                        last = Scrape::of(&table);
                        for group in [0, 1] {
                            prop_assert_eq!(last.sum(group), truth[group]);
                            prop_assert_eq!(last.other[group], scrape.other[group]);
                        }
                        for (key, totals) in &last.rows {
                            let served = scrape.rows.get(key).or(seen.get(key).filter(|_| *totals != [0; 2]));
                            prop_assert_eq!(served.copied().unwrap_or_default(), *totals, "{:?}", key);
                        }
                    }
                }
            }
        }
    }
}
