//! The variance of a sum of values of sampled events, when the number of the events is known.
//!
//! The variance of a count of events is known: each event adds D²(N-1), sampled or not. That of a
//! sum of a value v would need the values of events that were skipped; it is the count's, times the
//! mean square of the values of events that were sampled lately. Where the sum is scaled to the
//! known number of events, only what v differs from its mean is left of it (the residual of the
//! ratio estimator; Cochran, Sampling Techniques, 6.4). So an error is right also over a time in
//! which nothing was sampled, and it jumps less than the sum over the sampled events alone.

use super::Sums;

/// What the programs keep of sampled events: words that grow.
#[derive(Clone, Copy, Debug)]
pub struct Sampled<const N: usize> {
    /// The sum of D²(N-1) over all events: [`siskin_ebpf::Sampler::count_variance`].
    pub count_variance: u64,
    /// The sum of D²N(N-1) over the sampled events: [`siskin_ebpf::Sampler::sampled_variance`].
    pub sampled_variance: u64,
    /// The sum of weights of the sampled events: [`siskin_ebpf::Sampler::estimated`].
    pub estimated: u64,
    /// For each value v the sum of its weights times v, in the unit of `squares`.
    pub sums: [f64; N],
    /// For each value v the sum of D²N(N-1) v² over the sampled events.
    pub squares: [u64; N],
}

/// How much of what was sampled before still counts for the mean of values when something newer was
/// sampled.
const MEMORY: f64 = 0.9;

/// Variances of the sums of N values of the same events.
#[derive(Clone, Copy, Debug)]
pub struct Residual<const N: usize> {
    count: Sums<3>,
    squares: Sums<N>,
    last_sums: [f64; N],
    /// Lately sampled: sums of weights, of variances, of values and of squares.
    weights: f64,
    variance: f64,
    recent_sums: [f64; N],
    recent_squares: [f64; N],
    pending: f64,
    variances: [f64; N],
}

impl<const N: usize> Default for Residual<N> {
    fn default() -> Self {
        Self {
            count: Sums::default(),
            squares: Sums::default(),
            last_sums: [0.0; N],
            weights: 0.0,
            variance: 0.0,
            recent_sums: [0.0; N],
            recent_squares: [0.0; N],
            pending: 0.0,
            variances: [0.0; N],
        }
    }
}

impl<const N: usize> Residual<N> {
    /// Reads the words again. `is_scaled` says whether sums are scaled to the known number of
    /// events.
    pub fn read(&mut self, sampled: &Sampled<N>, is_scaled: bool) {
        let words = [sampled.count_variance, sampled.sampled_variance, sampled.estimated];
        let [known, variance, weights] = self.count.read(words);
        let squares = self.squares.read(sampled.squares);
        let sums: [f64; N] = std::array::from_fn(|n| sampled.sums[n] - self.last_sums[n]);
        self.last_sums = sampled.sums;
        if variance > 0.0 {
            self.variance = self.variance * MEMORY + variance;
            self.weights = self.weights * MEMORY + weights;
            for n in 0..N {
                self.recent_sums[n] = self.recent_sums[n] * MEMORY + sums[n];
                self.recent_squares[n] = self.recent_squares[n] * MEMORY + squares[n];
            }
        }
        // Until something was sampled nothing is known of the values.
        self.pending += known;
        if self.variance > 0.0 && self.pending > 0.0 {
            for n in 0..N {
                let mean = if is_scaled { self.recent_sums[n] / self.weights } else { 0.0 };
                let square = self.recent_squares[n] / self.variance - mean * mean;
                self.variances[n] += self.pending * square.max(0.0);
            }
            self.pending = 0.0;
        }
    }

    /// The variance of the sum of the n-th value so far, in the unit of its squares.
    pub fn variance(&self, n: usize) -> f64 {
        self.variances[n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At 1 in 4, events of value 5 or 15 by turns, of which so many were sampled.
    fn sampled(events: u64, sampled: u64) -> Sampled<1> {
        Sampled {
            count_variance: events * 3,
            sampled_variance: sampled * 12,
            estimated: sampled * 4,
            sums: [sampled as f64 * 4.0 * 10.0],
            squares: [sampled * 12 * (25 + 225) / 2],
        }
    }

    #[test]
    fn a_time_in_which_nothing_was_sampled_has_an_error_too() {
        let mut residual = Residual::default();
        residual.read(&sampled(8, 2), false);
        assert_eq!(residual.variance(0), 24.0 * 125.0);
        residual.read(&sampled(16, 2), false);
        assert_eq!(residual.variance(0), 48.0 * 125.0);
    }

    #[test]
    fn what_was_skipped_before_anything_was_sampled_is_accounted_for_later() {
        let mut residual = Residual::default();
        residual.read(&sampled(8, 0), false);
        assert_eq!(residual.variance(0), 0.0);
        residual.read(&sampled(9, 2), false);
        assert_eq!(residual.variance(0), 27.0 * 125.0);
    }

    #[test]
    fn of_a_sum_that_is_scaled_only_the_values_own_variance_is_left() {
        let mut residual = Residual::default();
        residual.read(&sampled(8, 2), true);
        assert_eq!(residual.variance(0), 24.0 * 25.0);
    }
}
