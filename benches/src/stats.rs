//! Medians, percentiles, the noise of rounds, and bars.

/// The median; of an even number the mean of the middle two. NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (count, middle) if count % 2 == 1 => sorted[middle],
        (_, middle) => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// The value that this share of the sorted ones does not exceed. 0 of nothing.
pub fn percentile(sorted: &[u32], share: f64) -> u32 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// Says whether a bar was met.
#[allow(clippy::print_stdout, reason = "for programs that print figures")]
pub fn judge(what: &str, is_met: bool) -> bool {
    println!("  {what}: {}", if is_met { "met" } else { "MISSED" });
    is_met
}

/// A ratio, or a difference, over several rounds: its median, and how far it may be off.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    /// The median of the rounds' own ratios, or differences.
    pub median: f64,
    /// The standard error of the median, from the rounds' median deviation: what one more series of rounds
    /// would differ by.
    pub noise: f64,
}

impl Ratio {
    /// Of values to others, measured in the same rounds.
    pub fn of(values: &[f64], others: &[f64]) -> Self {
        Ratio::over(values.iter().zip(others).map(|(value, other)| value / other).collect())
    }

    /// Of values beyond others, measured in the same rounds.
    pub fn beyond(values: &[f64], others: &[f64]) -> Self {
        Ratio::over(values.iter().zip(others).map(|(value, other)| value - other).collect())
    }

    fn over(ratios: Vec<f64>) -> Self {
        let middle = median(&ratios);
        let deviations: Vec<f64> = ratios.iter().map(|ratio| (ratio - middle).abs()).collect();
        // 1.4826 median deviations are a standard deviation; the median of n has an error of 1.2533/√n of that.
        let noise = 1.4826 * 1.2533 * median(&deviations) / (ratios.len() as f64).sqrt();
        Ratio { median: middle, noise }
    }

    /// Whether it may be at least this: below by no more than two standard errors.
    pub fn may_reach(self, bar: f64) -> bool {
        self.median + 2.0 * self.noise >= bar
    }

    /// Whether it may be at most this.
    pub fn may_stay_at(self, bar: f64) -> bool {
        self.median - 2.0 * self.noise <= bar
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let sorted: Vec<u32> = (1..=1000).collect();
        assert_eq!([0.5, 0.99, 0.999, 1.0].map(|share| percentile(&sorted, share)), [500, 990, 999, 1000]);
        assert_eq!(percentile(&[7], 0.5), 7);
        assert_eq!(percentile(&[], 0.5), 0);
    }

    #[test]
    fn a_ratio_is_judged_within_its_noise() {
        let others = [100.0; 5];
        let steady = Ratio::of(&[90.0; 5], &others);
        assert!(!steady.may_reach(1.0) && steady.may_stay_at(1.0));
        assert!(steady.may_reach(0.9) && !steady.may_stay_at(0.89));
        let noisy = Ratio::of(&[80.0, 85.0, 97.0, 110.0, 115.0], &others);
        assert!(noisy.may_reach(1.0) && noisy.may_stay_at(1.0), "{noisy:?}");
        assert_eq!(median(&[1.0, 4.0, 2.0, 3.0]), 2.5);
        let beyond = Ratio::beyond(&[8.2, 8.3, 8.7], &[8.0, 8.0, 8.0]);
        assert!(
            (beyond.median - 0.3).abs() < 1e-9 && beyond.may_stay_at(0.3) && !beyond.may_stay_at(0.0),
            "{beyond:?}"
        );
    }
}
