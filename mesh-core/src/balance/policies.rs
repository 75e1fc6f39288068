//! Least request, round robin and random. Envoy's load balancers overview, gRFC A48; static stride: gRFC A58.

use std::sync::atomic::Ordering;

use super::{EndpointSet, LoadBalancer, PickArgs, Picker};

/// Of a few random endpoints, the one with the fewest requests in flight for its weight.
#[derive(Clone, Copy, Debug)]
pub struct LeastRequest {
    /// How many are looked at; at least 2.
    pub choices: u32,
}

impl LoadBalancer for LeastRequest {
    fn build(&self, _: &EndpointSet, _: Option<&dyn Picker>) -> Box<dyn Picker> {
        Box::new(*self)
    }
}

impl Picker for LeastRequest {
    fn pick(&self, set: &EndpointSet, args: &mut PickArgs<'_>) -> Option<usize> {
        let mut best = set.draw(args.random)?;
        let mut least = set.get(best)?.in_flight();
        for _ in 1..self.choices.max(2) {
            let other = set.draw(args.random)?;
            let load = set.get(other)?.in_flight();
            // load/weight compared without dividing; the draw was by weight, so idle endpoints keep their shares.
            if u64::from(load) * set.weight(best) < u64::from(least) * set.weight(other) {
                (best, least) = (other, load);
            }
        }
        Some(best)
    }
}

/// Any endpoint, by weight.
#[derive(Clone, Copy, Debug)]
pub struct Random;

impl LoadBalancer for Random {
    fn build(&self, _: &EndpointSet, _: Option<&dyn Picker>) -> Box<dyn Picker> {
        Box::new(*self)
    }
}

impl Picker for Random {
    fn pick(&self, set: &EndpointSet, args: &mut PickArgs<'_>) -> Option<usize> {
        set.draw(args.random)
    }
}

/// One endpoint after the other; with weights, each in proportion, by a static stride.
#[derive(Clone, Copy, Debug)]
pub struct RoundRobin;

impl LoadBalancer for RoundRobin {
    fn build(&self, _: &EndpointSet, _: Option<&dyn Picker>) -> Box<dyn Picker> {
        Box::new(*self)
    }
}

impl Picker for RoundRobin {
    fn pick(&self, set: &EndpointSet, _: &mut PickArgs<'_>) -> Option<usize> {
        let count = u32::try_from(set.len()).ok().filter(|count| *count > 0)?;
        let cursor = &set.cluster().round_robin;
        loop {
            let turn = cursor.fetch_add(1, Ordering::Relaxed);
            let position = (turn % count) as usize;
            if set.is_equal() {
                return Some(position);
            }
            // In `MAX` rounds an endpoint of weight w is taken w times, spread evenly. The heaviest has `MAX`
            // and is taken every round, so this ends within one round.
            const MAX: u64 = u16::MAX as u64;
            let weight = set.weight(position);
            let round = u64::from(turn / count) + position as u64 * (MAX / 2);
            if (weight * round) % MAX >= MAX - weight || weight == MAX {
                return Some(position);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::EndpointId;
    use crate::state::{ClusterState, EndpointState};

    fn set(weights: &[u64]) -> EndpointSet {
        let cluster = Arc::new(ClusterState::default());
        let endpoint = |port: usize| {
            cluster.endpoint(&EndpointId::new(std::net::SocketAddr::from(([10, 0, 0, 1], 1 + port as u16))), false)
        };
        let endpoints = weights.iter().enumerate().map(|(at, weight)| (endpoint(at), *weight)).collect();
        EndpointSet::new(endpoints, Arc::clone(&cluster))
    }

    fn shares(picker: &dyn Picker, set: &EndpointSet, picks: usize) -> Vec<f64> {
        let mut random = fastrand::Rng::with_seed(3);
        let mut counts = vec![0usize; set.len()];
        for _ in 0..picks {
            counts[picker.pick(set, &mut PickArgs::new(&mut random)).unwrap()] += 1;
        }
        counts.into_iter().map(|count| count as f64 / picks as f64).collect()
    }

    #[test]
    fn idle_endpoints_get_their_shares_by_weight() {
        let policies: [&dyn Picker; 3] = [&LeastRequest { choices: 2 }, &Random, &RoundRobin];
        for policy in policies {
            for weights in [vec![1], vec![1, 1, 1], vec![1, 2, 3], vec![100, 1, 1, 50], vec![u64::MAX, u64::MAX]] {
                let total: f64 = weights.iter().map(|weight| *weight as f64).sum();
                for (share, weight) in shares(policy, &set(&weights), 200_000).iter().zip(&weights) {
                    let expected = *weight as f64 / total;
                    assert!((share - expected).abs() < 0.01, "{policy:?} {weights:?}: {share} for {expected}");
                }
            }
        }
    }

    #[test]
    fn round_robin_of_equals_takes_each_in_turn() {
        let set = set(&[5, 5, 5]);
        let mut random = fastrand::Rng::with_seed(1);
        let picks: Vec<usize> =
            (0..6).map(|_| RoundRobin.pick(&set, &mut PickArgs::new(&mut random)).unwrap()).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn least_request_avoids_the_busy_endpoint() {
        let set = set(&[1, 1]);
        let _busy: Vec<_> = (0..10).map(|_| set.get(0).unwrap().enter()).collect();
        // Only when both draws hit the busy one is it picked: a quarter of the time.
        let busy_share = shares(&LeastRequest { choices: 2 }, &set, 10_000)[0];
        assert!((0.2..0.3).contains(&busy_share), "{busy_share}");
    }

    #[test]
    fn an_empty_set_has_no_pick() {
        let policies: [&dyn Picker; 3] = [&LeastRequest { choices: 2 }, &Random, &RoundRobin];
        for policy in policies {
            assert_eq!(policy.pick(&set(&[]), &mut PickArgs::new(&mut fastrand::Rng::with_seed(1))), None);
        }
    }

    #[test]
    fn an_endpoint_that_was_tried_is_avoided_while_there_is_another() {
        let policies: [&dyn Picker; 3] = [&LeastRequest { choices: 2 }, &Random, &RoundRobin];
        for policy in policies {
            let set = set(&[1, 1]);
            // The one that was tried refuses connections, so it is idle, and the other one is busy.
            let _busy: Vec<_> = (0..10).map(|_| set.get(1).unwrap().enter()).collect();
            let mut random = fastrand::Rng::with_seed(1);
            let mut tried: Vec<Arc<EndpointState>> = vec![Arc::clone(set.get(0).unwrap())];
            for _ in 0..1000 {
                let mut args = PickArgs { tried: &tried, ..PickArgs::new(&mut random) };
                assert!(Arc::ptr_eq(set.pick(policy, &mut args).unwrap(), set.get(1).unwrap()), "{policy:?}");
            }
            tried.push(Arc::clone(set.get(1).unwrap()));
            let mut args = PickArgs { tried: &tried, ..PickArgs::new(&mut random) };
            assert!(set.pick(policy, &mut args).is_some(), "{policy:?}: all were tried");
        }
    }
}
