//! Random subsetting (gRFC A68): a client calls so many endpoints only, by rendezvous hashing with a seed of its own, so that
//! many clients of many endpoints do not make every connection that there could be.

use std::sync::Arc;
use std::time::Instant;

use xxhash_rust::xxh64::xxh64;

use super::{EndpointSet, HashedEndpoints, LoadBalancer, PickArgs, Picker};

/// Another policy, among some of the endpoints. Where one of them is gone or fails, the next one takes its place, and the
/// others stay.
#[derive(Debug)]
pub struct RandomSubset {
    /// How many.
    pub size: usize,
    /// The policy.
    pub child: Arc<dyn LoadBalancer>,
}

#[derive(Debug)]
struct Subset {
    /// What it is a part of, and how many were asked for.
    of: (HashedEndpoints, usize),
    set: EndpointSet,
    /// Where each of its endpoints is in the whole set.
    positions: Box<[usize]>,
    picker: Box<dyn Picker>,
}

impl LoadBalancer for RandomSubset {
    fn build(&self, set: &EndpointSet, previous: Option<&dyn Picker>) -> Box<dyn Picker> {
        let before = previous.and_then(|previous| (previous as &dyn std::any::Any).downcast_ref::<Subset>());
        let is_alike = |before: &&Subset| {
            let (hashed, size) = &before.of;
            *size == self.size && before.set.cluster().seed() == set.cluster().seed() && hashed.is_of(set)
        };
        let positions = match before.filter(is_alike) {
            Some(before) => before.positions.clone(),
            None => self.positions(set),
        };
        let previous = match before {
            Some(before) => Some(&*before.picker),
            None => previous,
        };
        let subset = set.part(&positions);
        let picker = self.child.build(&subset, previous);
        Box::new(Subset { of: (set.hashed(), self.size), set: subset, positions, picker })
    }
}

impl RandomSubset {
    fn positions(&self, set: &EndpointSet) -> Box<[usize]> {
        let seed = set.cluster().seed();
        let mut ranked: Vec<(u64, usize)> =
            (0..set.len()).map(|at| (xxh64(set.hash_key(at, false).as_bytes(), seed), at)).collect();
        ranked.sort_unstable();
        let mut positions: Vec<usize> = ranked.into_iter().take(self.size.max(1)).map(|(_, at)| at).collect();
        positions.sort_unstable();
        positions.into_boxed_slice()
    }
}

impl Picker for Subset {
    fn pick(&self, _: &EndpointSet, args: &mut PickArgs<'_>) -> Option<usize> {
        self.positions.get(self.picker.pick(&self.set, args)?).copied()
    }

    fn refresh(&self, _: &EndpointSet, now: Instant) {
        self.picker.refresh(&self.set, now);
    }

    fn goes_by_hash(&self) -> bool {
        self.picker.goes_by_hash()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::tests::{critical, set_of};
    use crate::balance::{Random, RoundRobin};
    use crate::state::ClusterState;

    fn picked(set: &EndpointSet, size: usize) -> Vec<usize> {
        let picker = RandomSubset { size, child: Arc::new(RoundRobin) }.build(set, None);
        let mut random = fastrand::Rng::with_seed(1);
        let mut picked: Vec<usize> =
            (0..200).map(|_| picker.pick(set, &mut PickArgs::new(&mut random)).unwrap()).collect();
        picked.sort_unstable();
        picked.dedup();
        picked
    }

    #[test]
    fn each_client_has_its_own_endpoints_and_all_of_them_together_are_called_alike() {
        let mut counts = [0usize; 20];
        for seed in 0..2_000 {
            let set = set_of(&[1; 20], Arc::new(ClusterState::seeded(seed)));
            let own = picked(&set, 4);
            assert_eq!(own.len(), 4);
            assert_eq!(own, picked(&set, 4), "the same ones each time");
            own.into_iter().for_each(|at| counts[at] += 1);
        }
        let expected = 2_000.0 * 4.0 / 20.0;
        let sum: f64 = counts.iter().map(|count| (*count as f64 - expected).powi(2) / expected).sum();
        assert!(sum < critical(19), "{sum}: {counts:?}");
    }

    #[test]
    fn where_one_leaves_the_others_stay_and_weights_count_among_them() {
        let cluster = Arc::new(ClusterState::seeded(7));
        let before = picked(&set_of(&[1; 20], Arc::clone(&cluster)), 5);
        let gone = before[2];
        // The last position of the whole set stands in for the one that left.
        let left: Vec<usize> = (0..20).filter(|at| *at != gone).collect();
        let after: Vec<usize> =
            picked(&set_of(&[1; 20], cluster).part(&left), 5).into_iter().map(|at| left[at]).collect();
        assert_eq!(before.iter().filter(|at| after.contains(at)).count(), 4, "{before:?} {after:?}");
        let set = set_of(&[1, 1, 1, 9], Arc::new(ClusterState::seeded(1)));
        assert_eq!(picked(&set, 10), [0, 1, 2, 3], "fewer than there may be");
        let picker = RandomSubset { size: 10, child: Arc::new(Random) }.build(&set, None);
        let mut random = fastrand::Rng::with_seed(1);
        let heavy = (0..12_000).filter(|_| picker.pick(&set, &mut PickArgs::new(&mut random)) == Some(3)).count();
        assert!(heavy.abs_diff(9_000) < 200, "{heavy}");
    }
}
