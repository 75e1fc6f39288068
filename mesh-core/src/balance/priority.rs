//! Priorities: how much load each takes, by the health of its endpoints. Envoy's priority levels,
//! overprovisioning and panic threshold (`xds.md`'s formulas are Envoy's `arch_overview/upstream/load_balancing`).

use std::sync::Arc;

use super::{EndpointSet, LoadBalancer};
use crate::call::Call;
use crate::model::{Endpoints, Health, LocalityEndpoints, PriorityPolicy};
use crate::state::{ClusterState, EndpointState};

/// Envoy's default overprovisioning factor, in percent.
const OVERPROVISIONING_PERCENT: u64 = 140;

/// All priorities of a cluster, with the share of load that each takes.
#[derive(Debug, Default)]
pub struct Levels {
    levels: Vec<Level>,
    /// Running totals of load, in percent; the last is 100 unless nothing can be picked.
    loads: Vec<u64>,
}

/// One priority.
#[derive(Debug)]
pub struct Level {
    /// Which of the cluster's leaves it belongs to (aggregate clusters have several).
    pub leaf: usize,
    /// What may be picked now.
    pub endpoints: EndpointSet,
    balancer: Arc<dyn LoadBalancer>,
    /// Healthy share × overprovisioning, at most 100.
    health: u64,
    panic: bool,
}

impl Levels {
    /// Adds the priorities of one leaf after those that are there.
    pub fn add_leaf(
        &mut self,
        leaf: usize,
        endpoints: &Endpoints,
        policy: PriorityPolicy,
        balancer: &Arc<dyn LoadBalancer>,
        state: &Arc<ClusterState>,
    ) {
        let factor = endpoints.overprovisioning_percent.map_or(OVERPROVISIONING_PERCENT, u64::from);
        let mut priorities: Vec<u32> = endpoints.localities.iter().map(|locality| locality.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        for priority in priorities {
            let localities: Vec<&LocalityEndpoints> =
                endpoints.localities.iter().filter(|locality| locality.priority == priority).collect();
            self.levels.push(Level::new(leaf, &localities, factor, policy, balancer, state));
        }
    }

    /// Distributes load over the priorities, highest first.
    pub fn settle(&mut self) {
        let available: u64 = self.levels.iter().map(|level| level.health).sum::<u64>().min(100);
        let mut left = 100;
        let mut total = 0;
        self.loads.clear();
        for level in &self.levels {
            // Where all priorities together cannot take everything, each takes its share of what they can.
            let share = if level.panic && available == 0 {
                if total == 0 { 100 } else { 0 }
            } else {
                (level.health * 100).checked_div(available).unwrap_or(0).min(left)
            };
            left -= share;
            total += share;
            self.loads.push(total);
        }
        // Whole percents leave a remainder: the last priority that takes any load takes it too.
        if total > 0 && total < 100 {
            for load in self.loads.iter_mut().filter(|load| **load == total) {
                *load = 100;
            }
        }
    }

    /// Picks a priority by load, then an endpoint by policy.
    #[inline]
    pub fn pick(&self, call: &mut Call) -> Option<(&Level, &Arc<EndpointState>)> {
        let position = match self.loads.first() {
            Some(100) => 0,
            None => return None,
            Some(_) => {
                let ticket = call.random.u64(0..100);
                self.loads.iter().position(|load| ticket < *load)?
            }
        };
        let level = self.levels.get(position)?;
        Some((level, level.endpoints.pick(&*level.balancer, call)?))
    }

    /// The priorities, highest first.
    pub fn iter(&self) -> impl Iterator<Item = &Level> {
        self.levels.iter()
    }
}

impl Level {
    fn new(
        leaf: usize,
        localities: &[&LocalityEndpoints],
        factor: u64,
        policy: PriorityPolicy,
        balancer: &Arc<dyn LoadBalancer>,
        state: &Arc<ClusterState>,
    ) -> Level {
        let count = |wanted: fn(Health) -> bool| -> u64 {
            let endpoints = localities.iter().flat_map(|locality| &locality.endpoints);
            endpoints.filter(|endpoint| wanted(endpoint.health)).count() as u64
        };
        let all = count(|health| health != Health::Draining);
        let healthy = count(Health::is_pickable);
        let panic = all > 0 && healthy * 100 < u64::from(policy.panic_percent) * all;
        // Degraded endpoints serve only where no healthy one does; in panic, health is not looked at.
        let wanted: fn(Health) -> bool = if panic {
            |health| health != Health::Draining
        } else if healthy > 0 {
            Health::is_pickable
        } else {
            |health| health == Health::Degraded
        };
        let available = if healthy > 0 { healthy } else { count(|health| health == Health::Degraded) };
        Level {
            leaf,
            endpoints: EndpointSet::new(weighted(localities, wanted, factor, state), Arc::clone(state)),
            balancer: Arc::clone(balancer),
            health: (factor * available).checked_div(all).unwrap_or(0).min(100),
            panic,
        }
    }
}

/// Every wanted endpoint with its share: its weight alone, or, where localities have weights, its part of its
/// locality's share, which shrinks with the locality's health.
fn weighted(
    localities: &[&LocalityEndpoints],
    wanted: fn(Health) -> bool,
    factor: u64,
    state: &ClusterState,
) -> Vec<(Arc<EndpointState>, u64)> {
    let by_locality = localities.iter().any(|locality| locality.weight.is_some());
    let mut weighted = Vec::with_capacity(localities.iter().map(|locality| locality.endpoints.len()).sum());
    for locality in localities {
        let picked = || locality.endpoints.iter().filter(|endpoint| wanted(endpoint.health));
        let share = match (by_locality, locality.weight) {
            (false, _) => None,
            // Others have a weight and this has none: it gets nothing.
            (true, None) => continue,
            (true, Some(weight)) => {
                let availability =
                    (factor * picked().count() as u64 / (locality.endpoints.len() as u64).max(1)).min(100);
                let total: u64 = picked().map(|endpoint| u64::from(endpoint.weight)).sum();
                // Below 2^32 × 100 × 2^20 / total: no overflow before the division by at least one.
                Some((u64::from(weight) * availability, total.max(1)))
            }
        };
        weighted.extend(picked().map(|endpoint| {
            let weight = match share {
                None => u64::from(endpoint.weight),
                Some((share, total)) => {
                    let scaled = u128::from(share) * u128::from(endpoint.weight) * (1 << 20) / u128::from(total);
                    u64::try_from(scaled).unwrap_or(u64::MAX)
                }
            };
            (state.endpoint(&endpoint.id), weight)
        }));
    }
    weighted
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Instant;

    use super::*;
    use crate::balance::Random;
    use crate::id::{EndpointId, Locality};
    use crate::model::Endpoint;

    /// One locality a tuple: (priority, weight, healthy, unhealthy).
    fn levels(localities: &[(u32, Option<u32>, u16, u16)], panic_percent: u8) -> Levels {
        let mut port = 0;
        let localities = localities
            .iter()
            .map(|(priority, weight, healthy, unhealthy)| LocalityEndpoints {
                locality: Locality::default(),
                weight: *weight,
                priority: *priority,
                endpoints: (0..healthy + unhealthy)
                    .map(|at| {
                        port += 1;
                        let address = SocketAddr::from(([10, 0, *priority as u8, 1], port));
                        let health = if at < *healthy { Health::Healthy } else { Health::Unhealthy };
                        Endpoint { health, ..Endpoint::new(EndpointId::new(address)) }
                    })
                    .collect(),
            })
            .collect();
        let mut levels = Levels::default();
        let endpoints = Endpoints { localities, ..Endpoints::default() };
        let balancer: Arc<dyn LoadBalancer> = Arc::new(Random);
        levels.add_leaf(0, &endpoints, PriorityPolicy { panic_percent }, &balancer, &Arc::default());
        levels.settle();
        levels
    }

    type Level = (u32, Option<u32>, u16, u16);

    #[test]
    fn load_moves_to_the_next_priority_as_health_falls() {
        // (localities, panic threshold, running totals of load)
        let cases: &[(&[Level], u8, &[u64])] = &[
            (&[(0, None, 10, 0), (1, None, 10, 0)], 50, &[100, 100]),
            // 72 % healthy × 1.4 is still all of it.
            (&[(0, None, 72, 28), (1, None, 10, 0)], 50, &[100, 100]),
            (&[(0, None, 50, 50), (1, None, 10, 0)], 50, &[70, 100]),
            (&[(0, None, 0, 10), (1, None, 10, 0)], 50, &[0, 100]),
            (&[(0, None, 25, 75), (1, None, 25, 75)], 0, &[50, 100]),
            (&[(0, None, 0, 10), (1, None, 0, 10)], 50, &[100, 100]),
            (&[(0, None, 0, 10)], 0, &[0]),
            (&[], 50, &[]),
        ];
        for (localities, panic_percent, expected) in cases {
            assert_eq!(levels(localities, *panic_percent).loads, *expected, "{localities:?}");
        }
    }

    #[test]
    fn nothing_healthy_and_no_panic_is_no_pick() {
        let mut call = Call::new(Instant::now(), fastrand::Rng::with_seed(1));
        assert!(levels(&[(0, None, 0, 3)], 0).pick(&mut call).is_none());
        assert!(levels(&[(0, None, 0, 3)], 50).pick(&mut call).is_some());
        assert!(levels(&[], 50).pick(&mut call).is_none());
    }

    #[test]
    fn localities_share_by_weight_whatever_their_size() {
        let levels = levels(&[(0, Some(3), 1, 0), (0, Some(1), 9, 0), (0, None, 5, 0)], 50);
        let level = levels.iter().next().unwrap();
        assert_eq!(level.endpoints.len(), 10, "a locality without a weight gets nothing where others have one");
        let first = level.endpoints.weight(0) as f64;
        let rest: f64 = (1..10).map(|at| level.endpoints.weight(at) as f64).sum();
        assert!((first / rest - 3.0).abs() < 0.01, "{first} {rest}");
    }
}
