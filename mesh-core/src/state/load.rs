//! What is known of an endpoint's load and speed, by which some policies choose: what it reports itself (gRFC A58), and how
//! long its answers take.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::{EndpointState, lock};
use crate::histogram::Histogram;
use crate::load_report::LoadReport;
use crate::model::LoadWeights;

/// What an endpoint reported last, as a weight.
#[derive(Debug, Default)]
pub(super) struct Load(Mutex<Option<Known>>);

#[derive(Clone, Copy, Debug)]
struct Known {
    weight: f64,
    /// Since when there have been weights without a break; `None` after the last one became too old.
    since: Option<Instant>,
    updated: Instant,
}

/// What is known of an endpoint's load.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum LoadWeight {
    /// Its weight.
    Usable(f64),
    /// It has reported nothing yet, or not for long enough.
    NotYet,
    /// It was heard of last too long ago.
    Stale,
}

impl LoadWeight {
    /// The weight, where there is one.
    pub fn usable(self) -> Option<f64> {
        match self {
            LoadWeight::Usable(weight) => Some(weight),
            LoadWeight::NotYet | LoadWeight::Stale => None,
        }
    }
}

/// What weighted round robin has found whenever it looked at the loads of a cluster's endpoints (gRFC A78).
#[derive(Debug, Default)]
pub struct LoadWeightCounts {
    /// Times that too few of them were known, so that endpoints take turns.
    pub fallbacks: AtomicU64,
    /// Endpoints without a weight yet.
    pub not_yet: AtomicU64,
    /// Endpoints whose weight was too old.
    pub stale: AtomicU64,
    /// The weights of the others.
    pub weights: Histogram,
}

impl LoadWeightCounts {
    /// Counts what was known at one look. `is_fallback`, where that was too little.
    pub(crate) fn note(&self, known: &[LoadWeight], is_fallback: bool) {
        self.fallbacks.fetch_add(u64::from(is_fallback), Ordering::Relaxed);
        for weight in known {
            match weight {
                LoadWeight::Usable(weight) => self.weights.record((weight * 1000.0) as u64),
                LoadWeight::NotYet => _ = self.not_yet.fetch_add(1, Ordering::Relaxed),
                LoadWeight::Stale => _ = self.stale.fetch_add(1, Ordering::Relaxed),
            }
        }
    }
}

/// The bounds of weights: what lies outside is no server's load, and the sum of any number of weights is a number.
const LEAST: f64 = 1e-9;
const MOST: f64 = 1e12;

impl LoadWeights {
    /// The weight that follows from a report: what it does for its utilization. `None` where it says too little.
    pub fn weight(&self, report: &LoadReport) -> Option<f64> {
        let named = self.metrics.iter().filter_map(|name| report.metric(name)).fold(0.0, f64::max);
        let utilization = [report.application_utilization, named, report.cpu_utilization];
        let utilization = utilization.into_iter().find(|utilization| *utilization > 0.0)?;
        let (rate, errors) = (report.requests_per_second, report.errors_per_second);
        if rate <= 0.0 {
            return None;
        }
        let penalty = errors / rate * f64::from(self.error_penalty) / 1000.0;
        let weight = rate / (utilization + penalty);
        (weight.is_finite() && weight > 0.0).then(|| weight.clamp(LEAST, MOST))
    }
}

impl EndpointState {
    /// Notes a report of its load.
    pub fn note_load(&self, config: &LoadWeights, report: &LoadReport, now: Instant) {
        let Some(weight) = config.weight(report) else { return };
        let mut known = lock(&self.load.0);
        let since = Some(known.and_then(|known| known.since).unwrap_or(now));
        *known = Some(Known { weight, since, updated: now });
    }

    /// Its weight by its load.
    pub fn load_weight(&self, config: &LoadWeights, now: Instant) -> LoadWeight {
        let mut known = lock(&self.load.0);
        let Some(Known { weight, since, updated }) = &mut *known else { return LoadWeight::NotYet };
        if now.saturating_duration_since(*updated) >= config.expiration {
            // The next one is new again.
            *since = None;
        }
        match *since {
            None => LoadWeight::Stale,
            Some(since) if now.saturating_duration_since(since) < config.blackout => LoadWeight::NotYet,
            Some(_) => LoadWeight::Usable(*weight),
        }
    }

    /// What it reported was before it went away.
    pub(super) fn forget_load(&self) {
        *lock(&self.load.0) = None;
    }

    /// Notes how long an answer took. `decay` is how long it takes until one counts for a third.
    pub fn note_latency(&self, took: Duration, decay: Duration, now: Instant) {
        let since = self.latency.since.get_or_init(|| now);
        let at = millis(now.saturating_duration_since(*since));
        let update = |packed: u64| {
            let (average, before) = unpack(packed);
            let took = took.as_secs_f32();
            // What is slower counts at once, what is faster bit by bit.
            let share = decayed(at.saturating_sub(before), decay);
            let average = if took > average { took } else { average * share + took * (1.0 - share) };
            Some(pack(average, at.max(before)))
        };
        // It never says no.
        _ = self.latency.packed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    /// How long answers take, in seconds: less and less while none comes. `None` before the first.
    #[inline]
    pub fn latency(&self, decay: Duration, now: Instant) -> Option<f32> {
        let since = self.latency.since.get()?;
        let (average, before) = unpack(self.latency.packed.load(Ordering::Relaxed));
        Some(average * decayed(millis(now.saturating_duration_since(*since)).saturating_sub(before), decay))
    }
}

/// How long the answers of an endpoint take.
#[derive(Debug, Default)]
pub(super) struct Latency {
    since: OnceLock<Instant>,
    /// The average in seconds, and when that was, in milliseconds from the first answer.
    packed: AtomicU64,
}

fn pack(average: f32, at: u32) -> u64 {
    u64::from(average.to_bits()) << 32 | u64::from(at)
}

fn unpack(packed: u64) -> (f32, u32) {
    (f32::from_bits((packed >> 32) as u32), packed as u32)
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// What is left of the past after so many milliseconds.
fn decayed(millis: u32, decay: Duration) -> f32 {
    (-(millis as f32) / 1000.0 / decay.as_secs_f32().max(0.001)).exp()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::EndpointId;
    use crate::state::ClusterState;

    const SECOND: Duration = Duration::from_secs(1);

    fn endpoint() -> Arc<EndpointState> {
        ClusterState::default().endpoint(&EndpointId::new(std::net::SocketAddr::from(([10, 0, 0, 1], 1))), false)
    }

    fn report(cpu: f64, application: f64, rate: f64, errors: f64) -> LoadReport {
        let mut report = LoadReport::default();
        (report.cpu_utilization, report.application_utilization) = (cpu, application);
        (report.requests_per_second, report.errors_per_second) = (rate, errors);
        report
    }

    #[test]
    fn a_weight_is_the_rate_for_the_utilization_with_errors_on_top() {
        let mut config = LoadWeights::default();
        for (cpu, application, rate, errors, expected) in [
            (0.5, 0.0, 100.0, 0.0, Some(200.0)),
            (0.5, 0.25, 100.0, 0.0, Some(400.0)),
            (0.5, 0.0, 100.0, 50.0, Some(100.0)),
            (0.0, 0.0, 100.0, 0.0, None),
            (0.5, 0.0, 0.0, 0.0, None),
            // Whatever a server says.
            (1.0, 0.0, 1e308, 0.0, Some(1e12)),
            (1e308, 0.0, 1.0, 0.0, Some(1e-9)),
            (1e-308, 0.0, 1e308, 0.0, None),
            (0.5, 0.0, 1e-308, 1e308, None),
        ] {
            assert_eq!(config.weight(&report(cpu, application, rate, errors)), expected, "{cpu} {application} {rate}");
        }
        config.error_penalty = 0;
        assert_eq!(config.weight(&report(0.5, 0.0, 100.0, 50.0)), Some(200.0));
        config.metrics = vec!["named_metrics.queue".into(), "utilization.disk".into(), "other".into()];
        let mut named = report(0.5, 0.0, 100.0, 0.0);
        assert_eq!(config.weight(&named), Some(200.0), "none of the metrics is there");
        named.named_metrics = vec![("queue".into(), 0.1)];
        named.utilization = vec![("disk".into(), 0.2)];
        assert_eq!(config.weight(&named), Some(500.0), "the highest of them counts");
    }

    #[test]
    fn a_weight_counts_after_a_while_until_it_is_too_old_and_then_begins_anew() {
        let (config, endpoint, start) = (LoadWeights::default(), endpoint(), Instant::now());
        let at = |seconds: u32| start + seconds * SECOND;
        let one = report(0.5, 0.0, 100.0, 0.0);
        assert_eq!(endpoint.load_weight(&config, start), LoadWeight::NotYet);
        endpoint.note_load(&config, &one, at(0));
        endpoint.note_load(&config, &report(0.0, 0.0, 100.0, 0.0), at(5));
        assert_eq!(endpoint.load_weight(&config, at(9)), LoadWeight::NotYet, "blackout");
        assert_eq!(endpoint.load_weight(&config, at(10)), LoadWeight::Usable(200.0));
        endpoint.note_load(&config, &report(1.0, 0.0, 100.0, 0.0), at(20));
        assert_eq!(endpoint.load_weight(&config, at(199)), LoadWeight::Usable(100.0), "3 min from the last one");
        assert_eq!(endpoint.load_weight(&config, at(200)), LoadWeight::Stale, "expired");
        assert_eq!(endpoint.load_weight(&config, at(200)), LoadWeight::Stale, "and stays so");
        endpoint.note_load(&config, &one, at(201));
        assert_eq!(endpoint.load_weight(&config, at(205)), LoadWeight::NotYet, "blackout again");
        assert_eq!(endpoint.load_weight(&config, at(211)), LoadWeight::Usable(200.0));
        endpoint.note_unreachable(at(212), &mut fastrand::Rng::with_seed(1));
        assert_eq!(endpoint.load_weight(&config, at(213)), LoadWeight::NotYet, "it may be another process by now");
    }

    #[test]
    fn slow_answers_count_at_once_and_are_forgotten_bit_by_bit() {
        let (endpoint, start, decay) = (endpoint(), Instant::now(), 10 * SECOND);
        assert_eq!(endpoint.latency(decay, start), None);
        endpoint.note_latency(SECOND / 10, decay, start);
        endpoint.note_latency(SECOND, decay, start);
        assert_eq!(endpoint.latency(decay, start), Some(1.0));
        let third = endpoint.latency(decay, start + decay).unwrap();
        assert!((third - 0.3679).abs() < 0.001, "{third}");
        endpoint.note_latency(SECOND / 10, decay, start + decay);
        let mixed = endpoint.latency(decay, start + decay).unwrap();
        assert!((mixed - (0.3679 + 0.0632)).abs() < 0.001, "{mixed}");
    }
}
