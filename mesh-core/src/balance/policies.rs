//! Least request, round robin and random. Envoy's load balancers overview, gRFC A48; static stride: gRFC A58.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{EndpointSet, LoadBalancer, PickArgs, Picker};

/// Of a few random endpoints, the one with the fewest requests in flight for its weight.
#[derive(Clone, Copy, Debug)]
pub struct LeastRequest {
    /// How many are looked at; at least 2.
    pub choices: u32,
    /// How much requests in flight count against weights, in thousandths.
    pub bias: u32,
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
            if self.is_less((load, set.weight(other)), (least, set.weight(best)), set.is_equal()) {
                (best, least) = (other, load);
            }
        }
        Some(best)
    }
}

impl LeastRequest {
    /// Whether one load is less than another for its weight. The draw was by weight, so idle endpoints keep their shares.
    #[inline]
    fn is_less(&self, (load, weight): (u32, u64), (other, others_weight): (u32, u64), is_equal: bool) -> bool {
        match self.bias {
            // load/weight compared without dividing.
            1000 => u64::from(load) * others_weight < u64::from(other) * weight,
            // Where weights are equal, the bias does not count (Envoy).
            _ if is_equal => load < other,
            // It is weighted round robin then: any will do.
            0 => false,
            bias => {
                let counted = |load: u32| f64::from(load).powf(f64::from(bias) / 1000.0);
                counted(load) * (others_weight as f64) < counted(other) * (weight as f64)
            }
        }
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
    fn pick(&self, set: &EndpointSet, args: &mut PickArgs<'_>) -> Option<usize> {
        let is_equal = set.is_equal();
        let weight = |at| Some(if is_equal { MOST_TURNS } else { set.weight(at) });
        by_turns(&set.cluster().round_robin, set.len(), args.random, weight)
    }
}

/// The weight of an endpoint that is taken in every round.
const MOST_TURNS: u64 = u16::MAX as u64;

/// After so many rounds without a turn, any position will do.
const MOST_ROUNDS: u32 = 4;

/// One position after the other, each as often as its weight says, of which the heaviest has to be [`MOST_TURNS`].
#[inline]
pub(super) fn by_turns(
    cursor: &AtomicU32,
    count: usize,
    random: &mut fastrand::Rng,
    weight: impl Fn(usize) -> Option<u64>,
) -> Option<usize> {
    let count = u32::try_from(count).ok().filter(|count| *count > 0)?;
    let mut position = 0;
    // Others move the cursor, too, so that one of them may always be at the heaviest: nobody looks for long.
    for _ in 0..count.saturating_mul(MOST_ROUNDS) {
        let mut turn = cursor.fetch_add(1, Ordering::Relaxed);
        if turn == 0 {
            // Anywhere, so that clients which start together do not all begin with the same endpoint.
            turn = random.u32(..);
            cursor.store(turn.wrapping_add(1), Ordering::Relaxed);
        }
        position = (turn % count) as usize;
        // In `MOST_TURNS` rounds an endpoint of weight w is taken w times, spread evenly. The heaviest is taken every
        // round, so this ends within one round.
        let weight = weight(position)?;
        let round = u64::from(turn / count) + position as u64 * (MOST_TURNS / 2);
        if weight == MOST_TURNS || (weight * round) % MOST_TURNS >= MOST_TURNS - weight {
            return Some(position);
        }
    }
    Some(position)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::balance::tests::{critical, set};
    use crate::state::EndpointState;

    const LEAST_REQUEST: LeastRequest = LeastRequest { choices: 2, bias: 1000 };

    fn counts(picker: &dyn Picker, set: &EndpointSet, picks: usize) -> Vec<usize> {
        let mut random = fastrand::Rng::with_seed(3);
        let mut counts = vec![0usize; set.len()];
        for _ in 0..picks {
            counts[picker.pick(set, &mut PickArgs::new(&mut random)).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn nobody_looks_for_a_turn_for_long_whatever_the_weights_are() {
        let (looked, mut random) = (std::cell::Cell::new(0), fastrand::Rng::with_seed(1));
        let cursor = AtomicU32::new(1);
        for _ in 0..100 {
            looked.set(0);
            let picked = by_turns(&cursor, 10, &mut random, |_| {
                looked.set(looked.get() + 1);
                Some(1)
            });
            assert!(picked.is_some_and(|picked| picked < 10) && looked.get() <= 10 * MOST_ROUNDS, "{}", looked.get());
        }
    }

    /// Least request among idle endpoints, since one that is picked is idle again before the next pick.
    #[test]
    fn idle_endpoints_get_their_shares_by_weight_within_the_bounds_of_chance() {
        let unbiased = LeastRequest { choices: 5, bias: 0 };
        let policies: [&dyn Picker; 4] = [&LEAST_REQUEST, &unbiased, &Random, &RoundRobin];
        let many: Vec<u64> = (1..=100).collect();
        let sets = [vec![1, 1, 1], vec![1, 2, 3], vec![100, 1, 1, 50], vec![7; 10], vec![1, 1_000], many];
        for policy in policies {
            for weights in &sets {
                let picks = 200_000;
                let total: u64 = weights.iter().sum();
                let terms = counts(policy, &set(weights), picks).into_iter().zip(weights).map(|(count, weight)| {
                    let expected = picks as f64 * *weight as f64 / total as f64;
                    (count as f64 - expected).powi(2) / expected
                });
                let (sum, limit) = (terms.sum::<f64>(), critical(weights.len() - 1));
                assert!(sum < limit, "{policy:?} {weights:?}: {sum} of at most {limit}");
            }
            assert_eq!(counts(policy, &set(&[1]), 10), [10]);
            assert!(counts(policy, &set(&[u64::MAX, u64::MAX]), 1000)[0].abs_diff(500) < 50, "{policy:?}");
        }
    }

    #[test]
    fn the_bias_says_how_much_load_counts_against_weights() {
        let shares = |bias, weights: &[u64]| {
            let set = set(weights);
            let _busy: Vec<_> = (0..16).map(|_| set.get(0).unwrap().enter()).collect();
            let _less: Vec<_> = (0..4).map(|_| set.get(1).unwrap().enter()).collect();
            counts(&LeastRequest { choices: 2, bias }, &set, 10_000)[0]
        };
        // 16 of weight 3 against 4 of weight 1: more for its weight as it stands, and less by the root of the load.
        let (none, root, whole) = (shares(0, &[3, 1]), shares(500, &[3, 1]), shares(1000, &[3, 1]));
        assert!(
            none.abs_diff(7_500) < 200 && whole.abs_diff(5_625) < 200 && root.abs_diff(9_375) < 200,
            "{none} {root} {whole}"
        );
        assert!(shares(0, &[1, 1]) < 3_000, "it counts between different weights only");
    }

    #[test]
    fn round_robin_of_equals_takes_each_in_turn_from_anywhere() {
        let set = set(&[5, 5, 5]);
        let mut random = fastrand::Rng::with_seed(1);
        let picks: Vec<usize> =
            (0..6).map(|_| RoundRobin.pick(&set, &mut PickArgs::new(&mut random)).unwrap()).collect();
        let first = picks[0];
        assert_eq!(picks, [0, 1, 2, 3, 4, 5].map(|turn| (first + turn) % 3));
        let mut starts: Vec<usize> = (0..20)
            .map(|seed| {
                let mut random = fastrand::Rng::with_seed(seed);
                RoundRobin.pick(&crate::balance::tests::set(&[5, 5, 5]), &mut PickArgs::new(&mut random)).unwrap()
            })
            .collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts, [0, 1, 2], "clients do not all begin with the same one");
    }

    #[test]
    fn least_request_avoids_the_busy_endpoint() {
        let set = set(&[1, 1]);
        let _busy: Vec<_> = (0..10).map(|_| set.get(0).unwrap().enter()).collect();
        // Only when both draws hit the busy one is it picked: a quarter of the time.
        let busy_share = counts(&LEAST_REQUEST, &set, 10_000)[0];
        assert!((2_000..3_000).contains(&busy_share), "{busy_share}");
    }

    #[test]
    fn an_empty_set_has_no_pick() {
        let policies: [&dyn Picker; 3] = [&LEAST_REQUEST, &Random, &RoundRobin];
        for policy in policies {
            assert_eq!(policy.pick(&set(&[]), &mut PickArgs::new(&mut fastrand::Rng::with_seed(1))), None);
        }
    }

    #[test]
    fn an_endpoint_that_was_tried_is_avoided_while_there_is_another() {
        let policies: [&dyn Picker; 3] = [&LEAST_REQUEST, &Random, &RoundRobin];
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
