//! From variances to standard errors. Pure.

/// The variance of a total in its own unit, from one of draws kept in `unit`s squared and one of clusters.
///
/// At ratio 1 every weight is 1 and there are no clusters, so the variance is 0 and the total is exact.
pub fn variance(draws: f64, unit: f64, clusters: f64) -> f64 {
    draws * unit * unit + clusters
}

/// N sums of words of the kernel, which wrap: read often, each reading adds what came since.
#[derive(Clone, Copy, Debug)]
pub struct Sums<const N: usize> {
    last: [u64; N],
    sums: [f64; N],
}

impl<const N: usize> Default for Sums<N> {
    fn default() -> Self {
        Self { last: [0; N], sums: [0.0; N] }
    }
}

impl<const N: usize> Sums<N> {
    /// Takes a newer reading; returns what it adds.
    pub fn read(&mut self, words: [u64; N]) -> [f64; N] {
        let mut added = [0.0; N];
        for (n, word) in words.into_iter().enumerate() {
            added[n] = word.wrapping_sub(self.last[n]) as f64;
            self.sums[n] += added[n];
            self.last[n] = word;
        }
        added
    }

    /// The n-th sum so far.
    pub fn of(&self, n: usize) -> f64 {
        self.sums[n]
    }
}

/// What the kernel notes of the draws of a program: words that grow.
#[derive(Clone, Copy, Debug)]
pub struct Draws<const N: usize> {
    /// The sum of D²(N-1) over all events: [`siskin_ebpf::Sampler::spread`].
    pub spread: u64,
    /// The sum of D²N(N-1) over the taken events.
    pub count: u64,
    /// The sums of D²N(N-1) v² over the taken events, for each value v.
    pub values: [u64; N],
}

/// Variances of a count and of the sums of N values of the same events.
///
/// The count's variance is known: each event adds D²(N-1), taken or not. That of a sum would need the values of events that
/// were passed over; it is the count's, times the mean square of the values of events that were taken lately. So an error is
/// right also over a time in which nothing was taken, and it jumps less than the sum over the taken events alone.
#[derive(Clone, Copy, Debug)]
pub struct Variances<const N: usize> {
    spread: Sums<1>,
    count: Sums<1>,
    values: Sums<N>,
    recent_count: f64,
    recent_values: [f64; N],
    pending: f64,
    sums: [f64; N],
}

/// How much of what was taken before still tells about values when something newer was taken.
const MEMORY: f64 = 0.9;

impl<const N: usize> Default for Variances<N> {
    fn default() -> Self {
        Self {
            spread: Sums::default(),
            count: Sums::default(),
            values: Sums::default(),
            recent_count: 0.0,
            recent_values: [0.0; N],
            pending: 0.0,
            sums: [0.0; N],
        }
    }
}

impl<const N: usize> Variances<N> {
    /// Takes a newer reading.
    pub fn read(&mut self, draws: Draws<N>) {
        let [spread] = self.spread.read([draws.spread]);
        let [count] = self.count.read([draws.count]);
        let values = self.values.read(draws.values);
        if count > 0.0 {
            self.recent_count = self.recent_count * MEMORY + count;
            for (recent, value) in self.recent_values.iter_mut().zip(values) {
                *recent = *recent * MEMORY + value;
            }
        }
        // Until something was taken nothing is known of the values.
        self.pending += spread;
        if self.recent_count > 0.0 {
            for (sum, value) in self.sums.iter_mut().zip(self.recent_values) {
                *sum += self.pending * value / self.recent_count;
            }
            self.pending = 0.0;
        }
    }

    /// The count's variance so far.
    pub fn count(&self) -> f64 {
        self.spread.of(0)
    }

    /// The variance of the sum of the n-th value so far, in the unit of its words.
    pub fn sum(&self, n: usize) -> f64 {
        self.sums[n]
    }
}

/// Variances of N totals of a probe that is attached for a share of the time.
///
/// One window in D is watched, at a random place. A window's total x, standing for D windows, is an estimate X = D x of the
/// tick's total; when nothing is known of the other windows its variance is estimated by (D²-D) x² = (1-1/D) X², as if
/// each window were drawn alone. That is the worst case, and right for a load that comes in bursts.
#[derive(Clone, Copy, Debug)]
pub struct Clusters<const N: usize> {
    last: [u64; N],
    variances: [f64; N],
}

impl<const N: usize> Default for Clusters<N> {
    fn default() -> Self {
        Self { last: [0; N], variances: [0.0; N] }
    }
}

impl<const N: usize> Clusters<N> {
    /// Ends a tick, with the totals as they stand and the share 1/D that was watched.
    pub fn tick(&mut self, totals: [u64; N], duty_log2: u64) {
        let share = (-(duty_log2 as f64)).exp2();
        for ((last, variance), total) in self.last.iter_mut().zip(&mut self.variances).zip(totals) {
            let estimate = total.wrapping_sub(*last) as f64;
            *last = total;
            *variance += (1.0 - share) * estimate * estimate;
        }
    }

    /// The variance of the n-th total so far.
    pub fn variance(&self, n: usize) -> f64 {
        self.variances[n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watching_half_of_the_time_errs_as_half_the_windows_do() {
        // Windows of 10 events, each watched or not by the toss of a coin: an estimate of 20 or 0, variance 100.
        let mut clusters = Clusters::default();
        for tick in 1..=1000 {
            clusters.tick([20 * (tick / 2)], 1);
        }
        assert_eq!(clusters.variance(0), 500.0 * 200.0);
        clusters.tick([20 * 500 + 7], 0);
        assert_eq!(clusters.variance(0), 500.0 * 200.0, "all of the time is no cluster");
    }

    #[test]
    fn a_word_that_wraps_goes_on_adding() {
        let mut sums = Sums::default();
        for word in [u64::MAX - 9, 10, 30] {
            sums.read([word]);
        }
        assert_eq!(sums.of(0), (u64::MAX - 9) as f64 + 20.0 + 20.0);
    }

    #[test]
    fn a_time_in_which_nothing_was_taken_has_an_error_too() {
        let mut variances = Variances::default();
        // At 1 in 4, eight events of value 5 of which two are taken; then eight of which none is.
        let taken = Draws { spread: 8 * 3, count: 2 * 12, values: [2 * 12 * 25] };
        variances.read(taken);
        assert_eq!((variances.count(), variances.sum(0)), (24.0, 24.0 * 25.0));
        variances.read(Draws { spread: 16 * 3, ..taken });
        assert_eq!((variances.count(), variances.sum(0)), (48.0, 48.0 * 25.0));
    }

    #[test]
    fn what_was_passed_over_before_anything_was_taken_is_accounted_for_later() {
        let mut variances = Variances::default();
        variances.read(Draws { spread: 24, count: 0, values: [0] });
        assert_eq!((variances.count(), variances.sum(0)), (24.0, 0.0));
        variances.read(Draws { spread: 27, count: 12, values: [12 * 9] });
        assert_eq!(variances.sum(0), 27.0 * 9.0);
    }
}
