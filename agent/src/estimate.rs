//! From weights to totals and their standard errors. Pure.

/// The standard error of a total whose variance is estimated by `variance`.
///
/// A taken event of weight N adds N to the count and N(N-1) to the variance: at ratio 1 every weight is 1, the variance
/// stays 0, and the total is exact.
pub fn standard_error(variance: f64) -> f64 {
    variance.max(0.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weight_one_is_exact() {
        let weights = [1.0, 1.0, 1.0];
        assert_eq!(standard_error(weights.iter().map(|n| n * (n - 1.0)).sum()), 0.0);
    }

    #[test]
    fn rounding_below_zero_is_no_error() {
        assert_eq!(standard_error(-1e-9), 0.0);
    }
}
