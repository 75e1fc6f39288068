//! How long, and how large: counts by size, in Envoy's buckets.

use std::sync::atomic::{AtomicU64, Ordering};

/// The upper bounds of the buckets, Envoy's default ones; beyond the last one there is another.
pub const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// The same in thousandths.
const LIMITS: [u64; BOUNDS.len()] = {
    let (mut limits, mut at) = ([0; BOUNDS.len()], 0);
    while at < limits.len() {
        limits[at] = (BOUNDS[at] * 1000.0) as u64;
        at += 1;
    }
    limits
};

/// Counts of values by their size.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// In thousandths.
    sum: AtomicU64,
}

impl Histogram {
    /// Counts a value, in thousandths of the unit.
    #[inline]
    pub fn record(&self, thousandths: u64) {
        let at = LIMITS.partition_point(|limit| *limit < thousandths);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        // Many bodies are empty, and all threads write the sum.
        if thousandths > 0 {
            self.sum.fetch_add(thousandths, Ordering::Relaxed);
        }
    }

    /// What was counted since it was taken the last time: how many values are in each bucket, and their sum.
    pub fn take(&self) -> ([u64; BOUNDS.len() + 1], f64) {
        let counts = self.buckets.each_ref().map(|bucket| bucket.swap(0, Ordering::Relaxed));
        (counts, self.sum.swap(0, Ordering::Relaxed) as f64 / 1000.0)
    }

    /// How many values there are in each bucket, and the sum of all.
    pub fn read(&self) -> ([u64; BOUNDS.len() + 1], f64) {
        let counts = self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed));
        (counts, self.sum.load(Ordering::Relaxed) as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_where_it_is_no_larger_than_the_bound() {
        let histogram = Histogram::default();
        for thousandths in [0, 500, 501, 1_000, 3_600_000_000, 3_600_000_001] {
            histogram.record(thousandths);
        }
        let (counts, sum) = histogram.read();
        assert_eq!((counts[0], counts[1], counts[18], counts[19]), (2, 2, 1, 1));
        assert!((sum - 7_200_002.002).abs() < 1e-6);
        assert_eq!((histogram.take(), histogram.read().0), ((counts, sum), [0; 20]));
    }
}
