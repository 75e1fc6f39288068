//! Policies that go by what is known of endpoints: weighted round robin by the load that they report (gRFC A58), and
//! peak-EWMA by how long their answers take.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use super::policies::{RoundRobin, by_turns};
use super::{EndpointSet, LoadBalancer, PickArgs, Picker};
use crate::model::LoadWeights;
use crate::state::{EndpointState, LoadWeight, lock};

/// One endpoint after the other, each in proportion to what it can do for its load as it says itself.
#[derive(Clone, Debug)]
pub struct WeightedByLoad(pub Arc<LoadWeights>);

#[derive(Debug)]
struct ByLoad {
    config: Arc<LoadWeights>,
    /// The turns of each endpoint, of `u16::MAX` for the heaviest; none where too little is known: they take turns then.
    strides: ArcSwapOption<Vec<u16>>,
    updated: Mutex<Option<Instant>>,
}

impl LoadBalancer for WeightedByLoad {
    fn build(&self, set: &EndpointSet, previous: Option<&dyn Picker>) -> Box<dyn Picker> {
        let before = previous.and_then(|previous| (previous as &dyn std::any::Any).downcast_ref::<ByLoad>());
        let picker = ByLoad { config: Arc::clone(&self.0), strides: ArcSwapOption::empty(), updated: Mutex::default() };
        // What was known a moment ago still holds.
        if let Some(updated) = before.and_then(|before| *lock(&before.updated)) {
            picker.refresh(set, updated);
        }
        Box::new(picker)
    }
}

impl Picker for ByLoad {
    fn pick(&self, set: &EndpointSet, args: &mut PickArgs<'_>) -> Option<usize> {
        let strides = self.strides.load();
        match &*strides {
            Some(strides) => by_turns(&set.cluster().round_robin, set.len(), args.random, |at| {
                strides.get(at).copied().map(u64::from)
            }),
            None => RoundRobin.pick(set, args),
        }
    }

    fn refresh(&self, set: &EndpointSet, now: Instant) {
        let mut updated = lock(&self.updated);
        let due = updated.and_then(|updated| updated.checked_add(self.config.update_period));
        if due.is_some_and(|due| now < due) {
            return;
        }
        *updated = Some(now);
        let known = (0..set.len()).filter_map(|at| set.get(at)).map(|one| one.load_weight(&self.config, now));
        let known: Vec<LoadWeight> = known.collect();
        let weights: Vec<Option<f64>> = known.iter().map(|known| known.usable()).collect();
        let strides = strides(set, &weights);
        set.cluster().load_weights.note(&known, strides.is_none());
        self.strides.store(strides);
    }
}

/// The turns of each endpoint. Localities keep their shares; in each, endpoints whose load is not known are as good as the
/// others are in the mean, and all are alike where fewer than two are known.
fn strides(set: &EndpointSet, known: &[Option<f64>]) -> Option<Arc<Vec<u16>>> {
    let mut localities: Vec<(u32, Sum)> = Vec::new();
    for (at, weight) in known.iter().enumerate() {
        let locality = set.locality(at);
        if !localities.iter().any(|(known, _)| *known == locality) {
            localities.push((locality, Sum::default()));
        }
        let Some((_, sum)) = localities.iter_mut().find(|(known, _)| *known == locality) else { continue };
        sum.count += 1;
        sum.share += set.weight(at) as f64;
        if let Some(weight) = weight {
            (sum.known, sum.weights) = (sum.known + 1, sum.weights + weight);
        }
    }
    if localities.iter().all(|(_, sum)| sum.known < 2) {
        return None;
    }
    let is_weighted = set.has_localities();
    let weights: Vec<f64> = known
        .iter()
        .enumerate()
        .map(|(at, weight)| {
            let sum = localities.iter().find(|(locality, _)| *locality == set.locality(at)).map(|(_, sum)| *sum);
            let sum = sum.unwrap_or_default();
            let mean = if sum.known < 2 { 1.0 } else { sum.weights / f64::from(sum.known) };
            let own = weight.filter(|_| sum.known >= 2).unwrap_or(mean);
            // In a locality with a share, the mean has the mean of that.
            if is_weighted { own / mean * sum.share / f64::from(sum.count.max(1)) } else { own }
        })
        .collect();
    let heaviest = weights.iter().copied().fold(0.0, f64::max);
    if !heaviest.is_normal() {
        return None;
    }
    let stride = |weight: &f64| ((weight / heaviest * f64::from(u16::MAX)).round() as u16).max(1);
    Some(Arc::new(weights.iter().map(stride).collect()))
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    count: u32,
    share: f64,
    known: u32,
    weights: f64,
}

/// Of two random endpoints, the one that will answer sooner: by how long its answers take, as the slowest of late, for each
/// request that it has in flight.
#[derive(Clone, Copy, Debug)]
pub struct PeakEwma {
    /// How long it takes until an answer counts for a third.
    pub decay: Duration,
}

/// What an endpoint is taken to need before its first answer, in seconds: less than most do, so that it gets one.
const UNKNOWN: f32 = 0.001;

impl LoadBalancer for PeakEwma {
    fn build(&self, _: &EndpointSet, _: Option<&dyn Picker>) -> Box<dyn Picker> {
        Box::new(*self)
    }
}

impl Picker for PeakEwma {
    fn pick(&self, set: &EndpointSet, args: &mut PickArgs<'_>) -> Option<usize> {
        let first = set.draw(args.random)?;
        let mut second = set.draw(args.random)?;
        // Two different ones where there are two: another draw is enough most of the time.
        if second == first {
            second = set.draw(args.random)?;
        }
        let Some(now) = args.now else { return Some(first) };
        let cost = |at: usize| set.get(at).map_or(f32::MAX, |endpoint| self.cost(endpoint, now));
        Some(if cost(second) < cost(first) { second } else { first })
    }
}

impl PeakEwma {
    fn cost(&self, endpoint: &EndpointState, now: Instant) -> f32 {
        let latency = endpoint.latency(self.decay, now).unwrap_or(UNKNOWN);
        latency * (endpoint.in_flight() as f32 + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::tests::{critical, set};
    use crate::load_report::LoadReport;

    const SECOND: Duration = Duration::from_secs(1);

    /// Endpoints that report that they can do so much; 0 reports nothing.
    fn reporting(set: &EndpointSet, can: &[u64], config: &LoadWeights, now: Instant) {
        for (at, can) in can.iter().enumerate().filter(|(_, can)| **can > 0) {
            let mut report = LoadReport::default();
            (report.cpu_utilization, report.requests_per_second) = (0.5, *can as f64 / 2.0);
            set.get(at).unwrap().note_load(config, &report, now);
        }
    }

    fn counts(picker: &dyn Picker, set: &EndpointSet, now: Option<Instant>, picks: usize) -> Vec<usize> {
        let mut random = fastrand::Rng::with_seed(3);
        let mut counts = vec![0; set.len()];
        for _ in 0..picks {
            counts[picker.pick(set, &mut PickArgs { now, ..PickArgs::new(&mut random) }).unwrap()] += 1;
        }
        counts
    }

    fn chi_square(counts: &[usize], shares: &[f64]) -> (f64, f64) {
        let (picks, total): (usize, f64) = (counts.iter().sum(), shares.iter().sum());
        let terms = counts.iter().zip(shares).map(|(count, share)| {
            let expected = picks as f64 * share / total;
            (*count as f64 - expected).powi(2) / expected
        });
        (terms.sum(), critical(shares.len() - 1))
    }

    #[test]
    fn endpoints_get_their_shares_by_their_load_within_the_bounds_of_chance() {
        let many: Vec<u64> = (1..=100).collect();
        // (what they can do, and the shares that follow)
        for (can, shares) in [
            (vec![100, 200, 300], vec![1.0, 2.0, 3.0]),
            (vec![10, 10, 10], vec![1.0; 3]),
            (vec![100, 1000, 0, 0], vec![100.0, 1000.0, 550.0, 550.0]),
            (vec![0, 500, 0], vec![1.0; 3]),
            (many.clone(), many.iter().map(|can| *can as f64).collect()),
        ] {
            let set = set(&vec![1; can.len()]);
            let config = Arc::new(LoadWeights { blackout: Duration::ZERO, ..LoadWeights::default() });
            let picker = WeightedByLoad(Arc::clone(&config)).build(&set, None);
            let now = Instant::now();
            reporting(&set, &can, &config, now);
            picker.refresh(&set, now);
            let (sum, limit) = chi_square(&counts(&*picker, &set, None, 200_000), &shares);
            assert!(sum < limit, "{can:?}: {sum} of at most {limit}");
        }
    }

    #[test]
    fn weights_are_taken_in_once_a_period_and_survive_a_change_of_endpoints() {
        let set = set(&[1, 1]);
        let config = Arc::new(LoadWeights { blackout: Duration::ZERO, ..LoadWeights::default() });
        let (balancer, now) = (WeightedByLoad(Arc::clone(&config)), Instant::now());
        let picker = balancer.build(&set, None);
        picker.refresh(&set, now);
        reporting(&set, &[100, 300], &config, now);
        let share = |picker: &dyn Picker| counts(picker, &set, None, 4_000)[0];
        picker.refresh(&set, now + SECOND / 2);
        assert!(share(&*picker).abs_diff(2_000) < 50, "not yet");
        picker.refresh(&set, now + SECOND);
        assert!(share(&*picker).abs_diff(1_000) < 50);
        let next = balancer.build(&set, Some(&*picker));
        assert!(share(&*next).abs_diff(1_000) < 50, "at once");
        next.refresh(&set, now + 200 * SECOND);
        assert!(share(&*next).abs_diff(2_000) < 50, "what they said is too old");
    }

    #[test]
    fn reports_that_cannot_be_true_leave_the_others_their_shares() {
        let (set, now) = (set(&[1; 4]), Instant::now());
        let config = Arc::new(LoadWeights { blackout: Duration::ZERO, ..LoadWeights::default() });
        let picker = WeightedByLoad(Arc::clone(&config)).build(&set, None);
        for at in 0..4 {
            let mut report = LoadReport::default();
            (report.cpu_utilization, report.requests_per_second) = (1.0, f64::MAX);
            set.get(at).unwrap().note_load(&config, &report, now);
        }
        picker.refresh(&set, now);
        let (sum, limit) = chi_square(&counts(&*picker, &set, None, 10_000), &[1.0; 4]);
        assert!(sum < limit, "{sum} of at most {limit}");
        let set_of_shares = set.with_localities(vec![0; 4]);
        for weight in [f64::MAX, f64::MIN_POSITIVE / 4.0, f64::NAN] {
            let strides = strides(&set_of_shares, &[Some(weight); 4]);
            assert!(strides.is_none_or(|strides| strides.contains(&u16::MAX)), "{weight}");
        }
    }

    #[test]
    fn localities_keep_their_shares_whatever_their_endpoints_report() {
        // A locality of three quarters with two endpoints, and one of a quarter with two.
        let set = set(&[3, 3, 1, 1]).with_localities(vec![0, 0, 1, 1]);
        let config = Arc::new(LoadWeights { blackout: Duration::ZERO, ..LoadWeights::default() });
        let picker = WeightedByLoad(Arc::clone(&config)).build(&set, None);
        let now = Instant::now();
        reporting(&set, &[100, 200, 9_000, 1_000], &config, now);
        picker.refresh(&set, now);
        let shares = [3.0 / 4.0 / 3.0, 3.0 / 4.0 * 2.0 / 3.0, 0.25 * 0.9, 0.25 * 0.1];
        let (sum, limit) = chi_square(&counts(&*picker, &set, None, 200_000), &shares);
        assert!(sum < limit, "{sum} of at most {limit}");
    }

    #[test]
    fn equally_fast_endpoints_are_picked_alike_and_slow_and_busy_ones_seldom() {
        let (set, now) = (set(&[1; 4]), Instant::now());
        let policy = PeakEwma { decay: 10 * SECOND };
        let uniform = |counts: &[usize]| chi_square(counts, &vec![1.0; counts.len()]);
        let (sum, limit) = uniform(&counts(&policy, &set, Some(now), 200_000));
        assert!(sum < limit, "before any answer: {sum} of at most {limit}");
        for at in 0..4 {
            set.get(at).unwrap().note_latency(SECOND / 100, policy.decay, now);
        }
        let (sum, limit) = uniform(&counts(&policy, &set, Some(now), 200_000));
        assert!(sum < limit, "{sum} of at most {limit}");
        // Ten times slower: picked only where each of three draws is it.
        set.get(0).unwrap().note_latency(SECOND / 10, policy.decay, now);
        let slow = counts(&policy, &set, Some(now), 200_000)[0] as f64 / 200_000.0;
        assert!((slow - 1.0 / 64.0).abs() < 0.004, "{slow}");
        // Nobody waits for it for ever: a minute later it is as good as any, and fast ones are busy.
        let later = now + 60 * SECOND;
        for at in 1..4 {
            set.get(at).unwrap().note_latency(SECOND / 100, policy.decay, later);
        }
        assert!(counts(&policy, &set, Some(later), 10_000)[0] > 2_000);
        let _busy: Vec<_> = (0..20).map(|_| set.get(1).unwrap().enter()).collect();
        assert!(counts(&policy, &set, Some(now), 10_000)[1] < 1_000);
    }
}
