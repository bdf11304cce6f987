//! Order statistics of small samples.

/// A quantile by linear interpolation; NaN when there is nothing.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted: Vec<_> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = share * last as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// A median with its quartiles, as `m (low-high)`.
pub fn spread(values: &[f64], digits: usize) -> String {
    let at = |share| quantile(values, share);
    if median(values).is_nan() {
        return "-".to_owned();
    }
    format!("{:.digits$} ({:.digits$} to {:.digits$})", at(0.5), at(0.25), at(0.75))
}

/// The 95% interval of the median by the bootstrap, with a generator of fixed seed: the same values give the same interval.
pub fn median_interval(values: &[f64]) -> (f64, f64) {
    const SAMPLES: usize = 2000;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        values[(state % values.len() as u64) as usize]
    };
    if values.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let medians: Vec<_> = (0..SAMPLES)
        .map(|_| {
            let sample: Vec<_> = (0..values.len()).map(|_| draw()).collect();
            median(&sample)
        })
        .collect();
    (quantile(&medians, 0.025), quantile(&medians, 0.975))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(median(&values), 2.5);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&values, 1.0), 4.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_interval_holds_the_median_and_shrinks_to_a_constant() {
        let values: Vec<_> = (0..30).map(f64::from).collect();
        let (low, high) = median_interval(&values);
        assert!(low < 14.5 && high > 14.5 && low > 5.0 && high < 25.0, "{low} {high}");
        assert_eq!(median_interval(&[7.0; 5]), (7.0, 7.0));
    }
}
