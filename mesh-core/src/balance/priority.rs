//! Priorities: how much load each takes, by the health of its endpoints. Envoy's priority levels,
//! overprovisioning and panic threshold (`arch_overview/upstream/load_balancing/priority`, `…/panic_threshold`).

use std::sync::Arc;
use std::time::Instant;

use super::{EndpointSet, HashNames, LoadBalancer, PickArgs, Picker};
use crate::list::List;
use crate::model::{Endpoints, Health, LocalityEndpoints, PriorityPolicy};
use crate::request_info::{PriorityOf, TriedPriorities};
use crate::state::{ClusterState, EndpointPart, EndpointState};

/// Envoy's default overprovisioning factor, in percent.
const OVERPROVISIONING_PERCENT: u64 = 140;

/// All priorities of a cluster, with the share of load that each takes.
#[derive(Debug, Default)]
pub struct Levels {
    /// What was added since the last time that load was distributed.
    priorities: Vec<Priority>,
    levels: Vec<Level>,
    /// Running totals of load, in percent; the last is 100 unless nothing can be picked.
    loads: Vec<u64>,
    /// Whether the hash of a request chooses among them, so that equal ones go to the same priority.
    by_hash: bool,
}

/// What takes a share of load: the healthy endpoints of a priority, its degraded ones, or in panic all of them.
#[derive(Debug)]
#[non_exhaustive]
pub struct Level {
    /// Which of the cluster's leaves it belongs to (aggregate clusters have several).
    pub leaf: usize,
    /// What may be picked now.
    pub endpoints: EndpointSet,
    picker: Box<dyn Picker>,
    /// Which of the leaf's priorities it is, and which part of it.
    part: (u32, Part),
    /// How much load it could take, in percent.
    availability: u64,
    /// Whether its priority serves in panic whom it knows to be unwell.
    panics: bool,
}

impl Level {
    /// Whether each of its endpoints cannot be reached or is ejected by now, as the next view will know.
    fn is_lost(&self) -> bool {
        let is_out = |endpoint: &EndpointState| !endpoint.is_reachable() || (!self.panics && endpoint.is_ejected());
        self.endpoints.iter().all(|endpoint| is_out(endpoint))
    }

    /// Whether load may go to it in this state.
    fn may_serve(&self) -> bool {
        (self.availability > 0 || self.part.1 == Part::All) && !self.is_lost()
    }

    /// The priority that it is of.
    pub fn priority(&self) -> PriorityOf {
        (self.leaf, self.part.0)
    }
}

/// The endpoints of a priority that make up a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Healthy,
    Degraded,
    /// In panic.
    All,
}

/// One priority, before it is known whether the others can make up for what it lacks.
#[derive(Debug)]
struct Priority {
    leaf: usize,
    number: u32,
    balancer: Arc<dyn LoadBalancer>,
    healthy: EndpointSet,
    degraded: EndpointSet,
    /// All endpoints, whatever their health, where fewer than the panic threshold are available.
    all: Option<EndpointSet>,
    /// Healthy share × overprovisioning, at most 100; and the same for degraded.
    health: u64,
    degraded_health: u64,
    panics: bool,
}

impl Levels {
    /// Adds the priorities of one leaf, with its endpoints by locality, after those that are there; [`Levels::settle`] makes
    /// them count.
    pub fn add_leaf(
        &mut self,
        leaf: usize,
        (endpoints, parts): (&Endpoints, &[Vec<EndpointPart>]),
        policy: PriorityPolicy,
        balancer: &Arc<dyn LoadBalancer>,
        state: &Arc<ClusterState>,
    ) {
        let factor = endpoints.overprovisioning_percent.map_or(OVERPROVISIONING_PERCENT, u64::from);
        let mut priorities: Vec<u32> = endpoints.localities.iter().map(|locality| locality.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let with_states =
            || endpoints.localities.iter().zip(parts).map(|(locality, parts)| (locality, parts.as_slice()));
        for priority in priorities {
            let localities: Vec<Stated<'_>> =
                with_states().filter(|(locality, _)| locality.priority == priority).collect();
            self.priorities.push(Priority::new((leaf, priority), &localities, factor, policy, balancer, state));
        }
    }

    /// Distributes load over what was added: over healthy endpoints, highest priority first; what they cannot take,
    /// over degraded ones. Where all of them together cannot take everything, each takes its share of what they can,
    /// and a priority below the panic threshold spreads it over all of its endpoints.
    ///
    /// Of an aggregate's leaves, the first of which anything is available takes everything, as in gRFC A37: the next one is for
    /// when nothing is, and not for what the one before lacks.
    ///
    /// `previous` is what the cluster had until now: the picker of a level is built with the one before it in mind.
    pub fn settle(&mut self, previous: Option<&Levels>) {
        let priorities = std::mem::take(&mut self.priorities);
        let available_of = |priority: &Priority| priority.health + priority.degraded_health;
        let leaf = priorities.iter().find(|priority| available_of(priority) > 0).map(|priority| priority.leaf);
        let takes_load = |priority: &&Priority| Some(priority.leaf) == leaf;
        let available = priorities.iter().filter(takes_load).map(available_of).sum::<u64>().min(100);
        let mut left = 100;
        let mut share = |priority: &Priority, health: u64| {
            if !takes_load(&priority) {
                return 0;
            }
            let share = (health * 100).checked_div(available).unwrap_or(0).min(left);
            left -= share;
            share
        };
        let mut healthy: Vec<u64> = priorities.iter().map(|priority| share(priority, priority.health)).collect();
        let mut degraded: Vec<u64> =
            priorities.iter().map(|priority| share(priority, priority.degraded_health)).collect();
        if available > 0 {
            // Whole percents leave a remainder: the first takes it too, healthy before degraded.
            if let Some(first) = healthy.iter_mut().chain(&mut degraded).find(|share| **share > 0) {
                *first += left;
            }
        } else if let Some((share, _)) =
            healthy.iter_mut().zip(&priorities).find(|(_, priority)| priority.all.is_some())
        {
            // Nothing is available anywhere: the first that may serve in panic takes everything.
            *share = 100;
        }
        (self.levels, self.loads) = (Vec::new(), Vec::new());
        let mut total = 0;
        for (priority, (healthy, degraded)) in priorities.into_iter().zip(healthy.into_iter().zip(degraded)) {
            let (health, degraded_health, panics) = (priority.health, priority.degraded_health, priority.panics);
            let mut add = |part, endpoints, share: u64, availability| {
                total += share;
                let part = (priority.number, part);
                let same = |level: &&Level| (level.leaf, level.part) == (priority.leaf, part);
                let before = previous.and_then(|levels| levels.levels.iter().find(same));
                let picker = priority.balancer.build(&endpoints, before.map(|before| &*before.picker));
                self.levels.push(Level { leaf: priority.leaf, endpoints, picker, part, availability, panics });
                self.loads.push(total);
            };
            match priority.all.filter(|_| available < 100) {
                Some(all) => add(Part::All, all, healthy + degraded, health + degraded_health),
                None => {
                    add(Part::Healthy, priority.healthy, healthy, health);
                    if !priority.degraded.is_empty() {
                        add(Part::Degraded, priority.degraded, degraded, degraded_health);
                    }
                }
            }
        }
        self.by_hash = self.levels.iter().any(|level| level.picker.goes_by_hash());
    }

    /// Picks a priority by load, then an endpoint by policy.
    #[inline]
    pub fn pick(&self, args: &mut PickArgs<'_>) -> Option<(&Level, &Arc<EndpointState>)> {
        if args.tried.is_empty() && args.tried_priorities.is_none() {
            return self.pick_by(&self.loads, args);
        }
        match self.loads_beyond(args.tried_priorities) {
            None => self.pick_by(&self.loads, args),
            Some(loads) => self.pick_by(&loads, args),
        }
    }

    /// Whether nobody is left whom the next view would have served: all were lost since this one was made.
    #[cold]
    pub fn are_lost(&self) -> bool {
        !self.levels.iter().any(Level::may_serve)
    }

    #[inline]
    fn pick_by(&self, loads: &[u64], args: &mut PickArgs<'_>) -> Option<(&Level, &Arc<EndpointState>)> {
        let position = match loads.first() {
            Some(100) => 0,
            None => return None,
            Some(_) => {
                let ticket = match args.hash.filter(|_| self.by_hash) {
                    Some(hash) => hash % 100,
                    None => args.random.u64(0..100),
                };
                loads.iter().position(|load| ticket < *load)?
            }
        };
        let level = self.levels.get(position)?;
        Some((level, level.endpoints.pick(&*level.picker, args)?))
    }

    /// The running totals for a retry: levels that were lost since this view was made get nothing, as in the next one, nor do
    /// priorities that were tried, and the others get all of the load by Envoy's formula.
    /// Where none of the others is available, all are as if they had not been tried (its `PreviousPrioritiesRetryPriority`).
    /// Other leaves than the one that takes load are none of the others: they are for when that has nobody.
    /// `None` where nothing is different.
    #[cold]
    fn loads_beyond(&self, tried: Option<&TriedPriorities>) -> Option<Vec<u64>> {
        let lost: Vec<bool> = self.levels.iter().map(|level| !level.may_serve()).collect();
        let is_any_lost = self.levels.iter().zip(&lost).any(|(level, lost)| *lost && !level.endpoints.is_empty());
        let mut there = self.levels.iter().zip(&lost).filter(|(_, lost)| !**lost).map(|(level, _)| level);
        let Some(leaf) = there.clone().find(|level| level.availability > 0).map(|level| level.leaf) else {
            // Nothing is available: the first that may serve in panic takes everything.
            let panics = there.next().filter(|_| is_any_lost)?;
            let from = self.levels.iter().position(|level| std::ptr::eq(level, panics))?;
            return Some((0..self.levels.len()).map(|at| if at < from { 0 } else { 100 }).collect());
        };
        let counts = |(level, lost): &(&Level, &bool), left_out: &[PriorityOf]| {
            level.leaf == leaf && !**lost && !left_out.contains(&level.priority())
        };
        let available = |left_out: &[PriorityOf]| {
            let left = self.levels.iter().zip(&lost).filter(|level| counts(level, left_out));
            left.map(|(level, _)| level.availability).sum::<u64>().min(100)
        };
        let mut left_out = Vec::new();
        for tries in tried.into_iter().flat_map(TriedPriorities::counting) {
            left_out.extend_from_slice(tries);
            if available(&left_out) == 0 {
                left_out.clear();
            }
        }
        let total = available(&left_out);
        if (left_out.is_empty() && !is_any_lost) || total == 0 {
            return None;
        }
        let (mut shares, mut left) = (vec![0; self.levels.len()], 100);
        // Again, since whole percents leave a remainder.
        while left > 0 {
            for is_degraded in [false, true] {
                let of_part = |level: &Level| (level.part.1 == Part::Degraded) == is_degraded;
                for (share, (level, lost)) in shares.iter_mut().zip(self.levels.iter().zip(&lost)) {
                    if of_part(level) && counts(&(level, lost), &left_out) {
                        let more = (level.availability * 100 / total).min(left);
                        *share += more;
                        left -= more;
                    }
                }
            }
        }
        let mut sum = 0;
        Some(
            shares
                .into_iter()
                .map(|share| {
                    sum += share;
                    sum
                })
                .collect(),
        )
    }

    /// Has pickers take in what is known of endpoints by now.
    pub fn refresh(&self, now: Instant) {
        for level in &self.levels {
            level.picker.refresh(&level.endpoints, now);
        }
    }

    /// All levels, highest priority first.
    pub fn iter(&self) -> impl Iterator<Item = &Level> {
        self.levels.iter()
    }

    /// Those that take load now, highest priority first.
    pub fn taking_load(&self) -> impl Iterator<Item = &Level> {
        let before = std::iter::once(0).chain(self.loads.iter().copied());
        let shares = self.loads.iter().zip(before).map(|(load, before)| load - before);
        self.levels.iter().zip(shares).filter(|(_, share)| *share > 0).map(|(level, _)| level)
    }
}

/// A locality, and its endpoints with their states.
type Stated<'e> = (&'e LocalityEndpoints, &'e [EndpointPart]);

impl Priority {
    fn new(
        (leaf, number): (usize, u32),
        localities: &[Stated<'_>],
        factor: u64,
        policy: PriorityPolicy,
        balancer: &Arc<dyn LoadBalancer>,
        state: &Arc<ClusterState>,
    ) -> Priority {
        let count =
            |wanted: fn(Health) -> bool| -> u64 { localities.iter().map(|(_, parts)| sums(parts, wanted).0).sum() };
        let set = |wanted| {
            if let Some(unnamed) = Unnamed::of(localities, wanted, factor) {
                return unnamed.into_set(state);
            }
            let (endpoints, (names, of_localities)) = weighted(localities, wanted, factor).into_iter().unzip();
            let set = EndpointSet::new(endpoints, Arc::clone(state)).with_names(names);
            if by_locality(localities) { set.with_localities(of_localities) } else { set }
        };
        let is_degraded: fn(Health) -> bool = |health| health == Health::Degraded;
        let is_not_leaving: fn(Health) -> bool = |health| health != Health::Draining;
        let (all, healthy, degraded) = (count(is_not_leaving), count(Health::is_pickable), count(is_degraded));
        let health = |available: u64| (factor * available).checked_div(all).unwrap_or(0).min(100);
        let may_be_tried: fn(Health) -> bool = |health| !matches!(health, Health::Draining | Health::Unreachable);
        // Degraded endpoints are available ones (Envoy, panic threshold).
        let may_panic = all > 0 && (healthy + degraded) * 100 < u64::from(policy.panic_percent) * all;
        Priority {
            leaf,
            number,
            balancer: Arc::clone(balancer),
            healthy: set(Health::is_pickable),
            degraded: set(is_degraded),
            all: may_panic.then(|| set(may_be_tried)).filter(|set| !set.is_empty()),
            health: health(healthy),
            degraded_health: health(degraded),
            panics: policy.panic_percent > 0,
        }
    }
}

/// How many of some endpoints are wanted, and what they weigh together.
fn sums(parts: &[EndpointPart], wanted: fn(Health) -> bool) -> (u64, u64) {
    let of_part = |part: &EndpointPart| match part.plain_weight() {
        Some(weight) if wanted(Health::Healthy) => (part.len() as u64, part.len() as u64 * u64::from(weight)),
        Some(_) => (0, 0),
        None => {
            let some = part.iter().filter(|(endpoint, _)| wanted(endpoint.health));
            some.fold((0, 0), |(count, total), (endpoint, _)| (count + 1, total + u64::from(endpoint.weight)))
        }
    };
    parts.iter().map(of_part).fold((0, 0), |(count, total), (more, weight)| (count + more, total + weight))
}

/// Whether the localities of a priority have weights.
fn by_locality(localities: &[Stated<'_>]) -> bool {
    localities.iter().any(|(locality, _)| locality.weight.is_some())
}

/// What a locality's endpoints share, and among how much weight.
#[derive(Clone, Copy)]
struct LocalityShare(u64, u64);

impl LocalityShare {
    /// It shrinks with the locality's health. `None` where localities have no weights.
    fn of((locality, parts): &Stated<'_>, wanted: fn(Health) -> bool, factor: u64) -> Option<LocalityShare> {
        let weight = locality.weight?;
        let (count, total) = sums(parts, wanted);
        let availability = (factor * count / (locality.endpoints.len() as u64).max(1)).min(100);
        // Below 2^32 × 100 × 2^20 / total: no overflow before the division by at least one.
        Some(LocalityShare(u64::from(weight) * availability, total.max(1)))
    }

    /// The share of an endpoint of this weight.
    fn part(share: Option<LocalityShare>, weight: u32) -> u64 {
        let Some(LocalityShare(share, total)) = share else { return u64::from(weight) };
        let scaled = u128::from(share) * u128::from(weight) * (1 << 20) / u128::from(total);
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }
}

/// Every wanted endpoint, where none has a name that it is hashed by: how many in a row have which share, and the number of the
/// locality of each where localities have weights. Parts that are wanted as a whole are shared.
#[derive(Default)]
struct Unnamed {
    parts: Vec<Arc<[Arc<EndpointState>]>>,
    shares: Vec<(u64, usize)>,
    localities: Vec<u32>,
}

impl Unnamed {
    fn of(localities: &[Stated<'_>], wanted: fn(Health) -> bool, factor: u64) -> Option<Unnamed> {
        let (mut all, by_locality) = (Unnamed::default(), by_locality(localities));
        for (number, stated) in (0..).zip(localities) {
            let share = LocalityShare::of(stated, wanted, factor);
            if by_locality && share.is_none() {
                continue;
            }
            for part in stated.1 {
                let states: Arc<[_]> = match part.plain_weight() {
                    Some(weight) if wanted(Health::Healthy) => {
                        all.share(LocalityShare::part(share, weight), part.len());
                        Arc::clone(part.states())
                    }
                    Some(_) => continue,
                    None => {
                        let mut states = Vec::new();
                        for (endpoint, state) in part.iter().filter(|(endpoint, _)| wanted(endpoint.health)) {
                            if !endpoint.goes_by_address() {
                                return None;
                            }
                            all.share(LocalityShare::part(share, endpoint.weight), 1);
                            states.push(Arc::clone(state));
                        }
                        states.into()
                    }
                };
                if by_locality {
                    all.localities.extend(std::iter::repeat_n(number, states.len()));
                }
                all.parts.push(states);
            }
        }
        Some(all)
    }

    /// So many endpoints more have this share.
    fn share(&mut self, share: u64, count: usize) {
        match self.shares.last_mut() {
            Some((last, of)) if *last == share => *of += count,
            _ => self.shares.push((share, count)),
        }
    }

    fn into_set(self, cluster: &Arc<ClusterState>) -> EndpointSet {
        let endpoints = List::of_parts(self.parts);
        EndpointSet::of_shares(endpoints, &self.shares, Arc::clone(cluster)).with_localities(self.localities)
    }
}

/// An endpoint and its share.
type Share = (Arc<EndpointState>, u64);

/// Every wanted endpoint with its share, its names and the number of its locality: its weight alone, or, where localities have weights, its part of its
/// locality's share.
fn weighted(localities: &[Stated<'_>], wanted: fn(Health) -> bool, factor: u64) -> Vec<(Share, (HashNames, u32))> {
    let by_locality = by_locality(localities);
    let mut weighted = Vec::with_capacity(localities.iter().map(|(locality, _)| locality.endpoints.len()).sum());
    for (number, stated) in (0..).zip(localities) {
        let share = LocalityShare::of(stated, wanted, factor);
        if by_locality && share.is_none() {
            // Others have a weight and this has none: it gets nothing.
            continue;
        }
        let all = stated.1.iter().flat_map(EndpointPart::iter);
        weighted.extend(all.filter(|(endpoint, _)| wanted(endpoint.health)).map(|(endpoint, state)| {
            let names = HashNames { key: endpoint.hash_key().cloned(), hostname: endpoint.hostname.clone() };
            ((Arc::clone(state), LocalityShare::part(share, endpoint.weight)), (names, number))
        }));
    }
    weighted
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::balance::Random;
    use crate::id::{EndpointId, Locality};
    use crate::model::Endpoint;
    use crate::state::EndpointParts;

    /// One locality: its priority, its weight, and how many endpoints are healthy, degraded and unhealthy.
    type Group = (u32, Option<u32>, [u16; 3]);

    fn groups(localities: &[Group]) -> Vec<LocalityEndpoints> {
        let mut port = 0;
        localities
            .iter()
            .map(|(priority, weight, [healthy, degraded, unhealthy])| LocalityEndpoints {
                locality: Locality::default(),
                weight: *weight,
                priority: *priority,
                endpoints: (0..healthy + degraded + unhealthy)
                    .map(|at| {
                        port += 1;
                        let address = SocketAddr::from(([10, 0, *priority as u8, 1], port));
                        let health = match at {
                            at if at < *healthy => Health::Healthy,
                            at if at < healthy + degraded => Health::Degraded,
                            _ => Health::Unhealthy,
                        };
                        Endpoint { health, ..Endpoint::new(EndpointId::new(address)) }
                    })
                    .collect(),
            })
            .collect()
    }

    fn levels(localities: &[Group], panic_percent: u8) -> Levels {
        of_leaves(&[(localities, panic_percent)])
    }

    fn of_leaves(leaves: &[LeafGroups<'_>]) -> Levels {
        let mut levels = Levels::default();
        let balancer: Arc<dyn LoadBalancer> = Arc::new(Random);
        for (leaf, (localities, panic_percent)) in leaves.iter().enumerate() {
            let endpoints = Endpoints { localities: groups(localities), ..Endpoints::default() };
            let policy = PriorityPolicy { panic_percent: *panic_percent, ..Default::default() };
            let state = Arc::<ClusterState>::default();
            levels.add_leaf(leaf, (&endpoints, &state.resolve(&endpoints, None).0), policy, &balancer, &state);
        }
        levels.settle(None);
        levels
    }

    /// The levels of one leaf, and the parts of which its endpoints are.
    fn of_endpoints(endpoints: &Endpoints, state: &Arc<ClusterState>) -> (Levels, EndpointParts) {
        let mut levels = Levels::default();
        let (parts, _) = state.resolve(endpoints, None);
        let balancer: Arc<dyn LoadBalancer> = Arc::new(Random);
        levels.add_leaf(0, (endpoints, &parts), PriorityPolicy::default(), &balancer, state);
        levels.settle(None);
        (levels, parts)
    }

    #[test]
    fn load_moves_to_the_next_priority_as_health_falls() {
        // (localities, panic threshold, running totals of load)
        let cases: &[(&[Group], u8, &[u64])] = &[
            (&[(0, None, [10, 0, 0]), (1, None, [10, 0, 0])], 50, &[100, 100]),
            // 72 % healthy × 1.4 is still all of it.
            (&[(0, None, [72, 0, 28]), (1, None, [10, 0, 0])], 50, &[100, 100]),
            (&[(0, None, [50, 0, 50]), (1, None, [10, 0, 0])], 50, &[70, 100]),
            (&[(0, None, [0, 0, 10]), (1, None, [10, 0, 0])], 50, &[0, 100]),
            (&[(0, None, [25, 0, 75]), (1, None, [25, 0, 75])], 0, &[50, 100]),
            // Three times 33 %: what is left goes to the first.
            (&[(0, None, [1, 0, 9]), (1, None, [1, 0, 9]), (2, None, [1, 0, 9])], 0, &[34, 67, 100]),
            (&[(0, None, [0, 0, 9]), (1, None, [1, 0, 9]), (2, None, [2, 0, 8])], 0, &[0, 34, 100]),
            // Healthy, degraded, of each priority: the first healthy one takes it, or the first degraded one.
            (&[(0, None, [0, 1, 9]), (1, None, [1, 0, 9]), (2, None, [1, 0, 9])], 0, &[0, 33, 67, 100]),
            (&[(0, None, [0, 1, 9]), (1, None, [0, 1, 9]), (2, None, [0, 1, 9])], 0, &[0, 34, 34, 67, 67, 100]),
            (&[(0, None, [0, 0, 10]), (1, None, [0, 0, 10])], 50, &[100, 100]),
            (&[(0, None, [0, 0, 10])], 0, &[0]),
            (&[], 50, &[]),
        ];
        for (localities, panic_percent, expected) in cases {
            assert_eq!(levels(localities, *panic_percent).loads, *expected, "{localities:?}");
        }
    }

    /// A leaf: its localities, and its panic threshold.
    type LeafGroups<'g> = (&'g [Group], u8);

    #[test]
    fn of_several_leaves_the_first_that_has_anything_takes_everything() {
        // (leaves, the share of each)
        let cases: &[(&[LeafGroups<'_>], [u64; 2])] = &[
            (&[(&[(0, None, [1, 0, 9])], 0), (&[(0, None, [9, 0, 0])], 0)], [100, 0]),
            (&[(&[(0, None, [0, 0, 9]), (1, None, [1, 0, 9])], 0), (&[(0, None, [9, 0, 0])], 0)], [100, 0]),
            (&[(&[(0, None, [0, 1, 9])], 0), (&[(0, None, [9, 0, 0])], 0)], [100, 0]),
            // Nobody panics as long as another leaf has somebody.
            (&[(&[(0, None, [0, 0, 9])], 50), (&[(0, None, [1, 0, 9])], 0)], [0, 100]),
            (&[(&[], 50), (&[(0, None, [1, 0, 9])], 50)], [0, 100]),
            (&[(&[(0, None, [0, 0, 9])], 50), (&[(0, None, [0, 0, 9])], 50)], [100, 0]),
            (&[(&[(0, None, [0, 0, 9])], 0), (&[(0, None, [0, 0, 9])], 50)], [0, 100]),
        ];
        for (leaves, expected) in cases {
            let levels = of_leaves(leaves);
            let (mut shares, mut before) = ([0, 0], 0);
            for (level, load) in levels.iter().zip(&levels.loads) {
                shares[level.leaf] += load - before;
                before = *load;
            }
            assert_eq!(shares, *expected, "{leaves:?}");
        }
    }

    #[test]
    fn panic_is_only_where_all_priorities_together_cannot_take_the_load() {
        // (localities, how many endpoints share which part of the load), with a panic threshold of 50 %.
        type Shares = [(usize, u64)];
        let cases: &[(&[Group], &Shares)] = &[
            // The other priority makes up for it: nothing goes to endpoints that are known to be unhealthy.
            (&[(0, None, [2, 0, 8]), (1, None, [10, 0, 0])], &[(2, 28), (10, 72)]),
            (&[(0, None, [1, 0, 19]), (1, None, [13, 0, 7])], &[(20, 8), (13, 92)]),
            (&[(0, None, [5, 0, 15]), (1, None, [5, 0, 15])], &[(20, 50), (20, 50)]),
            (&[(0, None, [0, 0, 10]), (1, None, [0, 0, 10])], &[(10, 100), (10, 0)]),
            // Degraded endpoints are available, and take what the healthy ones cannot.
            (&[(0, None, [25, 65, 10])], &[(25, 35), (65, 65)]),
            (&[(0, None, [2, 8, 0])], &[(2, 28), (8, 72)]),
            (&[(0, None, [71, 29, 0])], &[(71, 99), (29, 1)]),
            (&[(0, None, [0, 4, 6])], &[(10, 100)]),
            (&[(0, None, [0, 6, 4])], &[(0, 0), (6, 100)]),
            // A healthy endpoint of a lower priority comes before a degraded one of a higher.
            (&[(0, None, [0, 10, 0]), (1, None, [10, 0, 0])], &[(0, 0), (10, 0), (10, 100)]),
        ];
        for (localities, expected) in cases {
            let levels = levels(localities, 50);
            let mut before = 0;
            let shares = levels.iter().zip(&levels.loads).map(|(level, load)| {
                let share = load - before;
                before = *load;
                (level.endpoints.len(), share)
            });
            assert_eq!(shares.collect::<Vec<_>>(), *expected, "{localities:?}");
        }
    }

    #[test]
    fn retries_prefer_priorities_that_were_not_tried() {
        let three: &[Group] = &[(0, None, [10, 0, 0]), (1, None, [5, 0, 5]), (2, None, [10, 0, 0])];
        let degraded: &[Group] = &[(0, None, [10, 0, 0]), (1, None, [0, 5, 5]), (2, None, [2, 0, 8])];
        let gone: &[Group] = &[(0, None, [10, 0, 0]), (1, None, [0, 0, 10])];
        // (localities, after how many tries, the priorities of the tries, running totals of load where they differ)
        type Case<'c> = (&'c [Group], u32, &'c [u32], Option<&'c [u64]>);
        let cases: &[Case<'_>] = &[
            (three, 2, &[], None),
            (three, 2, &[0], None),
            (three, 2, &[0, 0], Some(&[0, 70, 100])),
            // The third one does not count before there is a fourth.
            (three, 2, &[0, 0, 1], Some(&[0, 70, 100])),
            (three, 2, &[0, 0, 1, 1], Some(&[0, 0, 100])),
            (three, 1, &[0], Some(&[0, 70, 100])),
            (three, 1, &[1], Some(&[100, 100, 100])),
            // All were tried: all count again, and are left out anew.
            (three, 1, &[0, 1, 2], None),
            (three, 1, &[0, 1, 2, 0], Some(&[0, 70, 100])),
            // What is degraded comes behind what is healthy.
            (degraded, 1, &[0], Some(&[0, 0, 71, 100])),
            (gone, 1, &[0], None),
            (&[], 1, &[0], None),
        ];
        for (localities, frequency, tries, expected) in cases {
            let levels = levels(localities, 0);
            let mut tried = TriedPriorities::default();
            for priority in *tries {
                tried.note(std::num::NonZeroU32::new(*frequency).unwrap(), (0, *priority));
            }
            let loads = if tried.is_empty() { None } else { levels.loads_beyond(Some(&tried)) };
            assert_eq!(loads.as_deref(), *expected, "{localities:?} {frequency} {tries:?}");
            let (mut first, mut second) = (fastrand::Rng::with_seed(1), fastrand::Rng::with_seed(1));
            let usual = levels.pick(&mut PickArgs::new(&mut first)).map(|(level, _)| level.priority().1);
            let mut args = PickArgs { tried_priorities: Some(&tried), ..PickArgs::new(&mut second) };
            let picked = levels.pick(&mut args).map(|(level, _)| level.priority().1);
            assert!(expected.is_some() || picked == usual, "{localities:?} {frequency} {tries:?}");
        }
    }

    #[test]
    fn a_retry_goes_to_another_leaf_only_where_the_first_has_nobody() {
        let two: &[Group] = &[(0, None, [4, 0, 0]), (1, None, [4, 0, 0])];
        let (one, gone): (&[Group], &[Group]) = (&[(0, None, [4, 0, 0])], &[(0, None, [0, 0, 4])]);
        // (leaves, the priorities of the tries, running totals of load where they differ)
        type Case<'c> = ([&'c [Group]; 2], &'c [PriorityOf], Option<&'c [u64]>);
        let cases: &[Case<'_>] = &[
            ([one, two], &[(0, 0)], None),
            ([two, one], &[(0, 0)], Some(&[0, 100, 100])),
            ([two, one], &[(0, 0), (0, 1)], None),
            ([gone, two], &[(1, 0)], Some(&[0, 0, 100])),
            // That was before the first one was back.
            ([one, two], &[(1, 0), (0, 0)], None),
        ];
        for (leaves, tries, expected) in cases {
            let levels = of_leaves(&leaves.map(|localities| (localities, 0)));
            let mut tried = TriedPriorities::default();
            for priority in *tries {
                tried.note(std::num::NonZeroU32::MIN, *priority);
            }
            assert_eq!(levels.loads_beyond(Some(&tried)).as_deref(), *expected, "{leaves:?} {tries:?}");
        }
    }

    #[test]
    fn a_retry_passes_over_levels_that_were_lost_since_the_view_was_made() {
        let (one, two): (&[Group], &[Group]) = (&[(0, None, [1, 0, 0])], &[(0, None, [2, 0, 0]), (1, None, [1, 0, 0])]);
        let mixed: &[Group] = &[(0, None, [1, 1, 0]), (1, None, [1, 0, 0])];
        let panics: &[Group] = &[(0, None, [1, 0, 9]), (1, None, [0, 0, 10])];
        // (leaves, the panic threshold, how many endpoints cannot be reached by now, from the first on; where a retry goes, and
        // whether nobody is left)
        type Case<'c> = (&'c [&'c [Group]], u8, usize, Option<&'c [u64]>, bool);
        let cases: &[Case<'_>] = &[
            (&[two], 0, 0, None, false),
            (&[two], 0, 1, None, false),
            (&[two], 0, 2, Some(&[0, 100]), false),
            (&[two], 0, 3, None, true),
            (&[two, one], 0, 2, Some(&[0, 100, 100]), false),
            (&[two, one], 0, 3, Some(&[0, 0, 100]), false),
            (&[two, one], 0, 4, None, true),
            // The degraded one comes behind what is healthy.
            (&[mixed], 0, 1, Some(&[0, 0, 100]), false),
            (&[mixed], 0, 2, Some(&[0, 0, 100]), false),
            (&[panics], 50, 10, Some(&[0, 100]), false),
            (&[panics], 50, 20, None, true),
        ];
        for (leaves, panic_percent, gone, expected, are_lost) in cases {
            let leaves: Vec<LeafGroups<'_>> = leaves.iter().map(|groups| (*groups, *panic_percent)).collect();
            let levels = of_leaves(&leaves);
            let endpoints = || levels.iter().flat_map(|level| level.endpoints.iter());
            for endpoint in endpoints().take(*gone) {
                endpoint.note_unreachable(Instant::now(), &mut fastrand::Rng::with_seed(1));
            }
            assert_eq!(levels.loads_beyond(None).as_deref(), *expected, "{leaves:?} {gone}");
            assert_eq!(levels.are_lost(), *are_lost, "{leaves:?} {gone}");
            // Of a priority that is there, who cannot be reached by now is passed over, tried or not.
            let (mut random, tried) = (fastrand::Rng::with_seed(1), endpoints().take(1).cloned().collect::<Vec<_>>());
            for _ in 0..50 {
                let mut args = PickArgs { tried: &tried, ..PickArgs::new(&mut random) };
                let picked = levels.pick(&mut args).map(|(_, endpoint)| endpoint.is_reachable());
                assert_eq!(picked, Some(!are_lost), "{leaves:?} {gone}");
            }
        }
    }

    /// A policy whose pickers know how often their level was built.
    #[derive(Debug)]
    struct Counting;

    #[derive(Debug)]
    struct Built(usize);

    impl LoadBalancer for Counting {
        fn build(&self, _: &EndpointSet, previous: Option<&dyn Picker>) -> Box<dyn Picker> {
            let previous = previous.and_then(|previous| (previous as &dyn std::any::Any).downcast_ref::<Built>());
            Box::new(Built(previous.map_or(1, |built| built.0 + 1)))
        }
    }

    impl Picker for Built {
        fn pick(&self, _: &EndpointSet, _: &mut PickArgs<'_>) -> Option<usize> {
            Some(0)
        }
    }

    #[test]
    fn a_picker_takes_over_from_the_one_of_the_same_priority() {
        let settle = |localities: &[Group], previous: Option<&Levels>| {
            let mut levels = Levels::default();
            let endpoints = Endpoints { localities: groups(localities), ..Endpoints::default() };
            let balancer: Arc<dyn LoadBalancer> = Arc::new(Counting);
            let policy = PriorityPolicy { panic_percent: 0, ..Default::default() };
            let state = Arc::<ClusterState>::default();
            levels.add_leaf(0, (&endpoints, &state.resolve(&endpoints, None).0), policy, &balancer, &state);
            levels.settle(previous);
            levels
        };
        let built = |levels: &Levels| -> Vec<usize> {
            let picker = |level: &Level| (&*level.picker as &dyn std::any::Any).downcast_ref::<Built>().unwrap().0;
            levels.iter().map(picker).collect()
        };
        let first = settle(&[(0, None, [2, 0, 0]), (1, None, [2, 0, 0])], None);
        assert_eq!(built(&first), [1, 1]);
        let second = settle(&[(1, None, [2, 0, 0])], Some(&first));
        assert_eq!(built(&second), [2], "priority 1 is the first now");
        let third = settle(&[(0, None, [1, 1, 0]), (1, None, [2, 0, 0])], Some(&second));
        assert_eq!(built(&third), [1, 1, 3], "healthy, degraded, and priority 1");
    }

    #[test]
    fn nothing_healthy_and_no_panic_is_no_pick() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut args = PickArgs::new(&mut random);
        assert!(levels(&[(0, None, [0, 0, 3])], 0).pick(&mut args).is_none());
        assert!(levels(&[(0, None, [0, 0, 3])], 50).pick(&mut args).is_some());
        assert!(levels(&[], 50).pick(&mut args).is_none());
    }

    /// Control planes say what the endpoints of a locality weigh together: then an endpoint of one has no more than one of another.
    #[test]
    fn where_localities_weigh_what_their_endpoints_do_the_parts_of_these_are_shared() {
        let localities = [(0, Some(600), [600, 0, 0]), (0, Some(300), [300, 0, 0]), (1, Some(1), [1, 0, 0])];
        let endpoints = Endpoints { localities: groups(&localities), ..Endpoints::default() };
        let state = Arc::<ClusterState>::default();
        let (levels, parts) = of_endpoints(&endpoints, &state);
        let level = levels.iter().next().unwrap();
        assert!(level.endpoints.is_equal() && level.endpoints.has_localities());
        assert_eq!([0, 599, 600, 899].map(|at| level.endpoints.locality(at)), [0, 0, 1, 1]);
        let states = parts.iter().take(2).flatten().map(EndpointPart::states);
        assert!(level.endpoints.endpoints.parts().iter().zip(states).all(|(one, other)| Arc::ptr_eq(one, other)));
    }

    #[test]
    fn of_localities_with_weights_the_parts_are_shared_whatever_their_shares_come_to() {
        let localities = [(0, Some(600), [600, 0, 1]), (0, Some(100), [300, 0, 0])];
        let endpoints = Endpoints { localities: groups(&localities), ..Endpoints::default() };
        let state = Arc::<ClusterState>::default();
        let (levels, parts) = of_endpoints(&endpoints, &state);
        let set = &levels.iter().next().unwrap().endpoints;
        let whole = parts.iter().flatten().filter(|part| part.plain_weight().is_some()).map(EndpointPart::states);
        let shared = |states: &Arc<[_]>| set.endpoints.parts().iter().any(|part| Arc::ptr_eq(part, states));
        assert_eq!((whole.clone().count(), whole.clone().filter(|states| shared(states)).count()), (14, 14));
        // As it is where each has a name that it is hashed by.
        let named = |locality: LocalityEndpoints| LocalityEndpoints {
            endpoints: locality
                .endpoints
                .iter()
                .map(|one| Endpoint { hostname: Some("h".into()), ..one.clone() })
                .collect(),
            ..locality
        };
        let endpoints =
            Endpoints { localities: endpoints.localities.into_iter().map(named).collect(), ..Endpoints::default() };
        let (levels, _) = of_endpoints(&endpoints, &state);
        let named = &levels.iter().next().unwrap().endpoints;
        let of = |set: &EndpointSet, at: usize| {
            let id = set.get(at).unwrap().id().clone();
            (id, set.exact_weight(at), set.weight(at), set.locality(at))
        };
        assert_eq!((set.len(), named.len()), (900, 900));
        assert!((0..900).all(|at| of(set, at) == of(named, at)));
    }

    #[test]
    fn localities_share_by_weight_whatever_their_size() {
        let levels = levels(&[(0, Some(3), [1, 0, 0]), (0, Some(1), [9, 0, 0]), (0, None, [5, 0, 0])], 50);
        let level = levels.iter().next().unwrap();
        assert_eq!(level.endpoints.len(), 10, "a locality without a weight gets nothing where others have one");
        let first = level.endpoints.weight(0) as f64;
        let rest: f64 = (1..10).map(|at| level.endpoints.weight(at) as f64).sum();
        assert!((first / rest - 3.0).abs() < 0.01, "{first} {rest}");
    }
}
