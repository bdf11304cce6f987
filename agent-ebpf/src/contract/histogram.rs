//! Histograms with exact bucket bounds. A bucket's upper bound is inclusive, as Prometheus' `le` is.
//!
//! Octave `e` (values above 2^e up to 2^(e+1)) is cut in two at 1.5 times 2^e. Everything at or below 2^`MIN_EXP` is in
//! bucket 0, everything past the last octave in the last bucket. Every power of two inside the range is a bound, so
//! any power of two can be exported without an estimate.

/// A histogram of `u64` values; `N` buckets, the first ends at 2^`MIN_EXP`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Histogram<const MIN_EXP: u32, const N: usize> {
    /// Weight of the observations in each bucket, not cumulative.
    pub buckets: [u64; N],
    /// Sum of weight times value.
    pub sum: u64,
}

// SAFETY: repr(C), and every member is a u64 or an array of them.
unsafe impl<const MIN_EXP: u32, const N: usize> crate::Words for Histogram<MIN_EXP, N> {}

/// Latencies in nanoseconds, from 4 µs to 69 s in 24 octaves.
pub type Latency = Histogram<12, 50>;
/// Lifetimes in nanoseconds, from 1 ms to 13 days in 30 octaves.
pub type Lifetime = Histogram<20, 62>;

impl<const MIN_EXP: u32, const N: usize> Histogram<MIN_EXP, N> {
    /// The bucket that `value` falls into.
    #[inline(always)]
    pub fn index(value: u64) -> usize {
        if value <= 1 << MIN_EXP {
            return 0;
        }
        // Inclusive upper bounds: 2^e belongs to the octave below it, so look at value - 1.
        let below = value - 1;
        let octave = log2(below);
        let half = (below >> (octave - 1)) & 1;
        let index = ((octave - MIN_EXP) as u64 * 2 + half + 1) as usize;
        if index < N { index } else { N - 1 }
    }

    /// The inclusive upper bound of bucket `index`; `None` for the last one, which has no end.
    pub const fn upper_bound(index: usize) -> Option<u64> {
        if index + 1 >= N {
            return None;
        }
        let octave = MIN_EXP + (index as u32).div_ceil(2);
        Some(match (index, index % 2) {
            (0, _) => 1 << MIN_EXP,
            (_, 1) => 3 << (octave - 2),
            _ => 1 << octave,
        })
    }
}

/// A de Bruijn sequence: multiplied by each power of two it has other top six bits.
const DE_BRUIJN: u64 = 0x03f7_9d71_b4cb_0a89;

/// Which power of two those six bits stand for.
static POWERS: [u8; 64] = {
    let mut powers = [0; 64];
    let mut power = 0;
    while power < 64 {
        powers[((1u64 << power).wrapping_mul(DE_BRUIJN) >> 58) as usize] = power;
        power += 1;
    }
    powers
};

/// The largest power of two in `value`, which is not 0. Without a branch: the BPF instruction set before v4 has no leading
/// zeros, and six comparisons in each of two histograms are 4096 paths for the verifier to follow.
#[inline(always)]
fn log2(value: u64) -> u32 {
    let mut below = value;
    below |= below >> 1;
    below |= below >> 2;
    below |= below >> 4;
    below |= below >> 8;
    below |= below >> 16;
    below |= below >> 32;
    let power = below - (below >> 1);
    u32::from(POWERS[(power.wrapping_mul(DE_BRUIJN) >> 58) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds_rise_and_every_power_of_two_in_range_is_one() {
        let bounds = (0..50).map_while(Latency::upper_bound);
        let mut last = 0;
        let mut powers = 0;
        for bound in bounds {
            assert!(bound > last);
            powers += u32::from(bound.is_power_of_two());
            last = bound;
        }
        assert_eq!(powers, 25);
        assert_eq!(last, 1 << 36);
    }

    #[test]
    fn a_bound_is_inside_its_own_bucket() {
        for index in 0..49 {
            let Some(bound) = Latency::upper_bound(index) else { panic!("bucket {index} has no end") };
            assert_eq!(Latency::index(bound), index);
            assert_eq!(Latency::index(bound + 1), index + 1);
        }
        assert_eq!(Latency::index(u64::MAX), 49);
    }

    proptest! {
        #[test]
        fn index_is_the_inverse_of_bounds(value: u64, shift in 0u32..64) {
            let value = value >> shift;
            let index = Lifetime::index(value);
            prop_assert!(Lifetime::upper_bound(index).is_none_or(|bound| value <= bound));
            prop_assert!(index == 0 || Lifetime::upper_bound(index - 1).is_some_and(|bound| value > bound));
        }

        #[test]
        fn the_logarithm_agrees_with_the_compiler(value in 1u64.., shift in 0u32..64) {
            let value = (value >> shift).max(1);
            prop_assert_eq!(log2(value), value.ilog2());
        }
    }
}
