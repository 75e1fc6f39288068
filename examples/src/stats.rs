//! Counts and latencies of many calls.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::text::millis;

/// How often each of several things was seen.
pub type Counts = BTreeMap<String, u64>;

/// Counts one more.
pub fn count(counts: &mut Counts, key: &str) {
    match counts.get_mut(key) {
        Some(seen) => *seen += 1,
        None => _ = counts.insert(key.to_owned(), 1),
    }
}

/// The latencies of some calls.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// Takes one more in.
    pub fn add(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their percentiles.
    pub fn percentiles(&self) -> Percentiles {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let at = |share: f64| match sorted.len() {
            0 => 0.0,
            // Nearest rank: the smallest latency that this share of the calls did not exceed.
            len => millis(sorted[((len as f64 * share).ceil() as usize).clamp(1, len) - 1]),
        };
        Percentiles { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

/// Percentiles, in milliseconds; 0 where there was no call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// Nine of ten were not slower.
    pub p90: f64,
    /// 99 of 100 were not slower.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_latencies_that_were_seen() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentiles(), Percentiles::default());
        for ms in (1..=100).rev() {
            latencies.add(Duration::from_millis(ms));
        }
        let expected = Percentiles { p50: 50.0, p90: 90.0, p99: 99.0, max: 100.0 };
        assert_eq!(latencies.percentiles(), expected);
    }
}
