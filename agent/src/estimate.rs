//! From variances to standard errors. Pure.

/// The standard error of a total, from the sum of N(N-1) v² over the taken events: the estimate of its variance.
///
/// At ratio 1 every weight N is 1, so the sum stays 0 and the total is exact.
pub fn standard_error(variance: u64) -> f64 {
    (variance as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use siskin_ebpf::variance;

    #[test]
    fn weight_one_is_exact_and_weight_n_is_not() {
        assert_eq!(standard_error(variance(0, 1000)), 0.0);
        // One event taken at 1 in 4 stands for four, give or take the square root of 4 times 3.
        assert_eq!(standard_error(variance(2, 1)), 12f64.sqrt());
    }

    #[test]
    fn a_variance_is_bounded() {
        assert!(variance(20, u64::MAX) <= 1 << 62);
    }
}
