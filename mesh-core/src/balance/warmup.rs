//! Slow start: a new endpoint takes a share that grows to the full one (Envoy's `SlowStartConfig`).

use std::sync::Arc;
use std::time::Instant;

use super::{EndpointSet, LoadBalancer, PickArgs, Picker};
use crate::model::SlowStart;
use crate::state::EndpointState;

/// How often another endpoint is looked at before one that is new gets more than its share.
const MOST_DRAWS: usize = 64;

/// Another policy, in which endpoints begin with a small share. An endpoint is new from the first time that it is about
/// to be picked, so that one which nobody called is new to its first callers.
#[derive(Debug)]
pub struct Warmup {
    /// The policy.
    pub balancer: Arc<dyn LoadBalancer>,
    /// How shares grow.
    pub slow_start: SlowStart,
}

#[derive(Debug)]
struct Warming {
    picker: Box<dyn Picker>,
    slow_start: SlowStart,
}

impl LoadBalancer for Warmup {
    fn build(&self, set: &EndpointSet, previous: Option<&dyn Picker>) -> Box<dyn Picker> {
        let previous = previous.map(|previous| match (previous as &dyn std::any::Any).downcast_ref::<Warming>() {
            Some(warming) => &*warming.picker,
            None => previous,
        });
        Box::new(Warming { picker: self.balancer.build(set, previous), slow_start: self.slow_start })
    }
}

impl Picker for Warming {
    fn pick(&self, set: &EndpointSet, args: &mut PickArgs<'_>) -> Option<usize> {
        let mut picked = self.picker.pick(set, args)?;
        let Some(now) = args.now else { return Some(picked) };
        for _ in 0..MOST_DRAWS {
            let endpoint = set.get(picked)?;
            let share = share(self.slow_start, endpoint, now);
            // Refused as often as its share is smaller than that of one which is not new.
            if share >= 1.0 || args.random.f64() < share {
                break;
            }
            picked = self.picker.pick(set, args)?;
        }
        Some(picked)
    }

    fn refresh(&self, set: &EndpointSet, now: Instant) {
        self.picker.refresh(set, now);
    }

    fn goes_by_hash(&self) -> bool {
        self.picker.goes_by_hash()
    }
}

/// The share of an endpoint, of 1: max(least, (age ÷ window) ^ (1 ÷ aggression)).
fn share(slow_start: SlowStart, endpoint: &EndpointState, now: Instant) -> f64 {
    let age = now.saturating_duration_since(endpoint.new_since(now));
    if age >= slow_start.window {
        return 1.0;
    }
    // Envoy's clock has whole seconds and begins with the first; this one has all there are.
    let part = age.as_secs_f64() / slow_start.window.as_secs_f64();
    let grown = part.powf(1000.0 / f64::from(slow_start.aggression.max(1)));
    grown.max(f64::from(slow_start.min_percent) / 100.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::balance::{LeastRequest, RoundRobin};
    use crate::id::EndpointId;
    use crate::state::ClusterState;

    fn part_of_the_second(slow_start: SlowStart, age_of_the_second: Duration) -> f64 {
        let policies: [Arc<dyn LoadBalancer>; 2] =
            [Arc::new(RoundRobin), Arc::new(LeastRequest { choices: 2, bias: 1000 })];
        let parts = policies.map(|balancer| {
            let cluster = Arc::new(ClusterState::default());
            let endpoint = |port: u16| {
                (cluster.endpoint(&EndpointId::new(std::net::SocketAddr::from(([10, 0, 0, 1], port))), false), 1)
            };
            let set = EndpointSet::new(vec![endpoint(1), endpoint(2)], Arc::clone(&cluster));
            let (start, mut random) = (Instant::now(), fastrand::Rng::with_seed(1));
            let now = start + 10 * slow_start.window;
            set.get(0).unwrap().new_since(start);
            set.get(1).unwrap().new_since(now - age_of_the_second);
            let picker = Warmup { balancer, slow_start }.build(&set, None);
            let picks = (0..20_000).filter(|_| {
                picker.pick(&set, &mut PickArgs { now: Some(now), ..PickArgs::new(&mut random) }) == Some(1)
            });
            picks.count() as f64 / 20_000.0
        });
        assert!((parts[0] - parts[1]).abs() < 0.02, "{parts:?}");
        parts[0]
    }

    #[test]
    fn a_new_endpoint_grows_into_its_share() {
        let second = Duration::from_secs(1);
        let line = SlowStart::over(100 * second);
        let fast = SlowStart { aggression: 2000, ..line };
        let from_half = SlowStart { min_percent: 50, ..line };
        // (curve, age, its share of that of the other)
        for (slow_start, age, expected) in [
            (line, Duration::ZERO, 0.1),
            (line, 5 * second, 0.1),
            (line, 50 * second, 0.5),
            (line, 100 * second, 1.0),
            (fast, 25 * second, 0.5),
            (from_half, 5 * second, 0.5),
        ] {
            let part = part_of_the_second(slow_start, age);
            // Of two, one that has the share s of the other is picked s ÷ (1 + s) of the time.
            let wanted = expected / (1.0 + expected);
            assert!((part - wanted).abs() < 0.02, "{slow_start:?} {age:?}: {part} for {wanted}");
        }
    }

    #[test]
    fn where_all_are_new_all_are_picked_alike() {
        let cluster = Arc::new(ClusterState::default());
        let endpoint = |port: u16| {
            (cluster.endpoint(&EndpointId::new(std::net::SocketAddr::from(([10, 0, 0, 1], port))), false), 1)
        };
        let set = EndpointSet::new((1..=4).map(endpoint).collect(), Arc::clone(&cluster));
        let slow_start = SlowStart::over(Duration::from_secs(10));
        let picker = Warmup { balancer: Arc::new(RoundRobin), slow_start }.build(&set, None);
        let (now, mut random) = (Instant::now(), fastrand::Rng::with_seed(1));
        let mut counts = [0; 4];
        for _ in 0..8_000 {
            counts[picker.pick(&set, &mut PickArgs { now: Some(now), ..PickArgs::new(&mut random) }).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (1_800..2_200).contains(count)), "{counts:?}");
    }
}
