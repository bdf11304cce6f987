//! What lately was sampled, as the shares by which a total that is known exactly is split.
//!
//! The kernel knows how many requests a disk completed, and what the programs sampled says how they
//! split: by workload, by latency. A reading of a second may have few samples, or none, so newer
//! samples push out older ones only by so many as they are, and each reading's total is split by
//! what the pool holds. The parts always add up to the total, and none of them falls. A share is
//! nearly unbiased: its bias is about one over the number of samples.

use std::{collections::HashMap, hash::Hash};

use siskin_ebpf::Histogram;

use super::ENOUGH_SAMPLES;

/// How much of a pool is kept when so many samples are added: nothing when they are twice as many
/// as are enough, so that what was before says nothing of a reading that has its own.
fn kept(samples: u64) -> f64 {
    (1.0 - samples as f64 / (2 * ENOUGH_SAMPLES) as f64).max(0.0)
}

/// A whole number of what is due; the rest stays for the next.
fn whole(due: f64, carry: &mut f64) -> u64 {
    let due = due + *carry;
    let whole = due.floor().max(0.0);
    *carry = due - whole;
    whole as u64
}

/// Values of one row, with the variances that sampling adds to them.
#[derive(Clone, Copy, Debug)]
pub struct Row<const N: usize> {
    /// The values.
    pub values: [f64; N],
    /// Their variances, in the values' units squared.
    pub variances: [f64; N],
}

impl<const N: usize> Default for Row<N> {
    fn default() -> Self {
        Self { values: [0.0; N], variances: [0.0; N] }
    }
}

/// Rows of N values each, lately sampled.
#[derive(Clone, Debug)]
pub struct Pool<K, const N: usize> {
    rows: HashMap<K, Row<N>>,
    /// What was to be split while nothing was sampled.
    owed: [f64; N],
    carries: [f64; N],
}

impl<K, const N: usize> Default for Pool<K, N> {
    fn default() -> Self {
        Self { rows: HashMap::new(), owed: [0.0; N], carries: [0.0; N] }
    }
}

impl<K: Copy + Eq + Hash, const N: usize> Pool<K, N> {
    /// Adds rows of so many samples.
    pub fn add(&mut self, rows: impl IntoIterator<Item = (K, Row<N>)>, samples: u64) {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return;
        }
        let kept = kept(samples);
        for row in self.rows.values_mut() {
            row.values.iter_mut().chain(&mut row.variances).for_each(|value| *value *= kept);
        }
        for (key, row) in rows {
            let pooled = self.rows.entry(key).or_default();
            for n in 0..N {
                pooled.values[n] += row.values[n];
                pooled.variances[n] += row.variances[n];
            }
        }
        // What is less than a thousandth of an event is forgotten.
        self.rows.retain(|_, row| row.values[0] > 1e-3);
    }

    /// Lets go of rows.
    pub fn forget(&mut self, is_gone: impl Fn(&K) -> bool) {
        self.rows.retain(|key, _| !is_gone(key));
    }

    /// Nothing is owed any more: all there was, was seen.
    pub fn settle(&mut self) {
        self.owed = [0.0; N];
    }

    /// Splits totals like what was sampled lately. Returns each row's whole part of them, and the
    /// variance of it.
    ///
    /// The variance of a share s of values with variances v, when the sum is known, is that of the
    /// row's own v (1 - 2s) and of all together s² times theirs (the residual of the ratio
    /// estimator; Cochran, Sampling Techniques, 6.4). Samples that stay in the pool stand for
    /// several readings, whose errors are one: then it counts as often.
    pub fn split(&mut self, totals: [f64; N]) -> Vec<(K, [u64; N], [f64; N])> {
        for (owed, total) in self.owed.iter_mut().zip(totals) {
            *owed += total;
        }
        let mut sums = Row::<N>::default();
        for row in self.rows.values() {
            for n in 0..N {
                sums.values[n] += row.values[n];
                sums.variances[n] += row.variances[n];
            }
        }
        let mut parts = Vec::with_capacity(self.rows.len());
        for (key, row) in &self.rows {
            let (mut part, mut variance) = ([0; N], [0.0; N]);
            for n in (0..N).filter(|n| sums.values[*n] > 0.0) {
                let share = row.values[n] / sums.values[n];
                part[n] = whole(self.owed[n] * share, &mut self.carries[n]);
                let factor = self.owed[n] / sums.values[n];
                let residual = row.variances[n] * (1.0 - 2.0 * share) + share * share * sums.variances[n];
                variance[n] = factor * factor.max(1.0) * residual.max(0.0);
            }
            parts.push((*key, part, variance));
        }
        for n in (0..N).filter(|n| sums.values[*n] > 0.0) {
            self.owed[n] = 0.0;
        }
        parts
    }
}

/// A histogram of events that were lately sampled.
#[derive(Clone, Debug)]
pub struct HistogramPool<const MIN_EXP: u32, const N: usize> {
    events: f64,
    buckets: [f64; N],
    sum: f64,
    carry: f64,
}

impl<const MIN_EXP: u32, const N: usize> Default for HistogramPool<MIN_EXP, N> {
    fn default() -> Self {
        Self { events: 0.0, buckets: [0.0; N], sum: 0.0, carry: 0.0 }
    }
}

impl<const MIN_EXP: u32, const N: usize> HistogramPool<MIN_EXP, N> {
    /// Adds a histogram of events, some of which may have no value, from so many samples.
    pub fn add(&mut self, histogram: &Histogram<MIN_EXP, N>, events: u64, samples: u64) {
        let kept = kept(samples);
        self.events = self.events * kept + events as f64;
        for (pooled, bucket) in self.buckets.iter_mut().zip(histogram.buckets) {
            *pooled = *pooled * kept + bucket as f64;
        }
        self.sum = self.sum * kept + histogram.sum as f64;
    }

    /// Whether no event was ever sampled.
    pub fn is_empty(&self) -> bool {
        self.events == 0.0
    }

    /// Splits a number of events.
    pub fn split(&mut self, events: f64) -> Histogram<MIN_EXP, N> {
        let factor = if self.is_empty() { 0.0 } else { events / self.events };
        let mut histogram = Histogram { buckets: [0; N], sum: (self.sum * factor).round() as u64 };
        for (bucket, pooled) in histogram.buckets.iter_mut().zip(self.buckets) {
            *bucket = whole(pooled * factor, &mut self.carry);
        }
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(value: f64, variance: f64) -> Row<1> {
        Row { values: [value], variances: [variance] }
    }

    fn split(pool: &mut Pool<u8, 1>, total: f64) -> Vec<(u8, u64, f64)> {
        let mut parts: Vec<_> =
            pool.split([total]).into_iter().map(|(key, [part], [variance])| (key, part, variance)).collect();
        parts.sort_by_key(|(key, ..)| *key);
        parts
    }

    #[test]
    fn totals_are_split_as_what_was_sampled_lately() {
        let mut pool = Pool::default();
        pool.add([(1, row(300.0, 900.0)), (2, row(100.0, 300.0))], 100);
        let parts = split(&mut pool, 4000.0);
        assert_eq!(parts.iter().map(|(_, part, _)| *part).sum::<u64>(), 4000);
        assert!(parts[0].1.abs_diff(3000) <= 1, "{parts:?}");
        // 1200 s (1 - s), ten times as large in square.
        assert!((parts[0].2 - 1200.0 * 0.75 * 0.25 * 100.0).abs() < 1e-6, "{parts:?}");
        // Nothing was sampled since.
        pool.add([], 0);
        assert!(split(&mut pool, 400.0)[0].1.abs_diff(300) <= 1);
        // What comes pushes out what was before.
        pool.add([(2, row(400.0, 0.0))], 10_000);
        let parts = split(&mut pool, 1000.0);
        assert_eq!((parts.len(), parts[0].0), (1, 2), "{parts:?}");
        assert!(parts[0].1.abs_diff(1000) <= 1, "{parts:?}");
    }

    #[test]
    fn what_nobody_saw_is_owed_until_somebody_is_seen() {
        let mut pool = Pool::default();
        assert_eq!(split(&mut pool, 50.0), []);
        pool.add([(1, row(10.0, 0.0))], 1);
        assert_eq!(split(&mut pool, 10.0), [(1, 60, 0.0)]);
    }

    #[test]
    fn a_histogram_has_as_many_as_are_known() {
        let mut pool = HistogramPool::<0, 4>::default();
        assert_eq!(pool.split(10.0).sum, 0, "nothing is known of them");
        pool.add(&Histogram { buckets: [30, 0, 10, 0], sum: 400 }, 40, 10);
        let mut count = 0;
        for _ in 0..7 {
            let histogram = pool.split(10.0);
            assert_eq!(histogram.sum, 100);
            count += histogram.buckets.iter().sum::<u64>();
        }
        assert!((69..=70).contains(&count), "{count}");
    }

    proptest! {
        #[test]
        fn the_parts_add_up_to_the_totals(
            readings in prop::collection::vec((0u64..10_000, prop::collection::vec((0u8..5, 1u64..3000), 0..20), 0u64..100), 1..50),
        ) {
            let (mut pool, mut total, mut sum, mut is_seen) = (Pool::default(), 0, 0, false);
            for (added, rows, samples) in readings {
                is_seen |= !rows.is_empty();
                pool.add(rows.into_iter().map(|(key, value)| (key, row(value as f64, value as f64))), samples);
                total += added;
                let parts = split(&mut pool, added as f64);
                prop_assert!(parts.iter().all(|(.., variance)| *variance >= 0.0));
                sum += parts.iter().map(|(_, part, _)| part).sum::<u64>();
                if is_seen {
                    prop_assert!(total - sum <= 1, "{sum} of {total}");
                }
            }
        }
    }
}
