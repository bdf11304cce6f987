//! From variances to standard errors. Pure.

/// The standard error of a total, from the sum of N(N-1) v² over the taken events, v in units of `unit`, and the variance
/// of its clusters.
///
/// At ratio 1 every weight N is 1 and there are no clusters, so the error is 0 and the total is exact.
pub fn standard_error(variance: f64, unit: f64, clusters: f64) -> f64 {
    (variance * unit * unit + clusters).sqrt()
}

/// Variances of N totals, from the kernel's words, which wrap: read often, each reading adds what came since.
#[derive(Clone, Copy, Debug)]
pub struct Variances<const N: usize> {
    last: [u64; N],
    sums: [f64; N],
}

impl<const N: usize> Default for Variances<N> {
    fn default() -> Self {
        Self { last: [0; N], sums: [0.0; N] }
    }
}

impl<const N: usize> Variances<N> {
    /// Takes a newer reading.
    pub fn read(&mut self, words: [u64; N]) {
        for ((last, sum), word) in self.last.iter_mut().zip(&mut self.sums).zip(words) {
            *sum += word.wrapping_sub(*last) as f64;
            *last = word;
        }
    }

    /// The n-th variance so far.
    pub fn of(&self, n: usize) -> f64 {
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
    use siskin_ebpf::variance;

    #[test]
    fn weight_one_is_exact_and_weight_n_is_not() {
        assert_eq!(standard_error(variance(0, 1000) as f64, 512.0, 0.0), 0.0);
        // One event taken at 1 in 4 stands for four, give or take the square root of 4 times 3.
        assert_eq!(standard_error(variance(2, 1) as f64, 1.0, 0.0), 12f64.sqrt());
    }

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
        let mut variances = Variances::default();
        for word in [u64::MAX - 9, 10, 30] {
            variances.read([word]);
        }
        assert_eq!(variances.of(0), (u64::MAX - 9) as f64 + 20.0 + 20.0);
    }

    #[test]
    fn a_variance_is_bounded() {
        assert!(variance(20, u64::MAX) <= 1 << 62);
    }
}
