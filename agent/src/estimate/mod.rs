//! From samples to totals and errors. Pure, but for the map of errors by workload.
//!
//! * [`calibration`]: estimates are scaled to a total that is known exactly.
//! * [`residual`]: what sampling leaves of an error when the number of events is known.
//! * [`duty_cycle`]: what being attached for a share of the time adds to an error.
//! * [`pool`]: a known total is split as what lately was sampled.
//! * [`errors`]: variances by metric and workload.

pub mod calibration;
pub mod duty_cycle;
pub mod errors;
pub mod pool;
pub mod residual;

pub use calibration::{Calibration, SamplerCalibration, Scale};
pub use duty_cycle::DutyCycle;
pub use errors::{Added, Errors, Ratio};
pub use residual::{Residual, Sampled};

/// Samples from which a ratio of two estimates is believed: its bias falls with their number
/// (Cochran, Sampling Techniques, 6.8).
pub const ENOUGH_SAMPLES: u64 = 30;

/// N sums of words of the kernel, which wrap: read often, each reading adds what was added since.
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
    /// Reads the words again; returns what was added.
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
    pub fn get(&self, n: usize) -> f64 {
        self.sums[n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_wraps_goes_on_adding() {
        let mut sums = Sums::default();
        for word in [u64::MAX - 9, 10, 30] {
            sums.read([word]);
        }
        assert_eq!(sums.get(0), (u64::MAX - 9) as f64 + 20.0 + 20.0);
    }
}
