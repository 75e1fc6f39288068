//! Choosing an endpoint: priority first, then one of the priority's endpoints by the cluster's policy.
//!
//! A picker is an immutable table plus the counters of the endpoints' own state: no lock, no allocation. Every
//! random choice comes from the request, so a test repeats it.

mod hashed;
mod leveling;
mod measured;
mod policies;
mod priority;
mod subset;
mod warmup;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::list::List;
use crate::model::{BalancerPolicy, SlowStart};
use crate::request_info::{Pinned, RequestInfo, TriedPriorities};
use crate::state::{ClusterState, EndpointState};

pub use hashed::{MOST_POINTS, Maglev, RingHash};
pub use leveling::{Leveling, Loads};
pub use measured::{PeakEwma, WeightedByLoad};
pub use policies::{LeastRequest, Random, RoundRobin};
pub use priority::{Level, Levels};
pub use subset::RandomSubset;
pub use warmup::Warmup;

/// A policy that chooses among the endpoints of one priority. It is asked for a [`Picker`] whenever the set of
/// endpoints is another one, so what takes time to build (a ring, a table) is built here and not for each request.
///
/// The application's own policies implement it and are registered by name with the mesh builder.
///
/// ```
/// use mesh_core::balance::{EndpointSet, LoadBalancer, PickArgs, Picker};
///
/// /// The last endpoint, always.
/// #[derive(Debug)]
/// struct Last;
///
/// impl LoadBalancer for Last {
///     fn build(&self, set: &EndpointSet, _: Option<&dyn Picker>) -> Box<dyn Picker> {
///         Box::new(Position(set.len().checked_sub(1)))
///     }
/// }
///
/// #[derive(Debug)]
/// struct Position(Option<usize>);
///
/// impl Picker for Position {
///     fn pick(&self, _: &EndpointSet, _: &mut PickArgs<'_>) -> Option<usize> {
///         self.0
///     }
/// }
/// ```
pub trait LoadBalancer: Send + Sync + fmt::Debug {
    /// A picker for these endpoints. `previous` is the one that the same priority of the cluster had until now, be it of
    /// this policy or of another: downcast it (it is `Any`) to take over what it learned. Runs on the mesh's
    /// configuration thread.
    fn build(&self, set: &EndpointSet, previous: Option<&dyn Picker>) -> Box<dyn Picker>;
}

/// What a policy made of one set of endpoints.
pub trait Picker: Any + Send + Sync + fmt::Debug {
    /// The position of the chosen endpoint in the set that it was built for, or `None` where that is empty. Must not
    /// block.
    fn pick(&self, set: &EndpointSet, args: &mut PickArgs<'_>) -> Option<usize>;

    /// Takes in what is known by now of the endpoints that it was built for. Called every 200 ms or so while the cluster is
    /// in use, on the mesh's configuration thread, beside [`Picker::pick`].
    fn refresh(&self, _set: &EndpointSet, _now: Instant) {}

    /// Whether it chooses by the request's hash: then the hash chooses the priority, too.
    fn goes_by_hash(&self) -> bool {
        false
    }
}

/// What a choice among endpoints goes by.
#[derive(Debug)]
#[non_exhaustive]
pub struct PickArgs<'r> {
    /// What consistent hashing chooses by, where a policy computed it.
    pub hash: Option<u64>,
    /// The endpoint that the request belongs to, where a filter knows of one; policies are not asked then.
    pub pinned: Option<&'r Pinned>,
    /// Endpoints that this request has tried: not to be picked again while there are others. The caller of the picker
    /// sees to it.
    pub tried: &'r [Arc<EndpointState>],
    /// Priorities that it has tried: others are preferred. `None` where none counts.
    pub tried_priorities: Option<&'r TriedPriorities>,
    /// When the request began; `None` where time does not count, and no endpoint is new.
    pub now: Option<Instant>,
    /// The source of every random choice.
    pub random: &'r mut fastrand::Rng,
}

impl<'r> PickArgs<'r> {
    /// A choice that goes by nothing but chance.
    pub fn new(random: &'r mut fastrand::Rng) -> Self {
        PickArgs { hash: None, pinned: None, tried: &[], tried_priorities: None, now: None, random }
    }

    /// The choice for a request's next try.
    #[inline]
    pub fn of(request: &'r mut RequestInfo) -> Self {
        let RequestInfo { hash, pinned, tried, tried_priorities, started, random, .. } = request;
        let tried_priorities = Some(&*tried_priorities).filter(|tried| !tried.is_empty());
        let pinned = pinned.as_deref();
        PickArgs { hash: *hash, pinned, tried, tried_priorities, now: Some(*started), random }
    }

    /// Whether this request has tried the endpoint.
    fn has_tried(&self, endpoint: &Arc<EndpointState>) -> bool {
        self.tried.iter().any(|tried| Arc::ptr_eq(tried, endpoint))
    }

    /// Whether a retry passes over the endpoint while there is another: it was tried, or cannot be reached by now. A first try
    /// passes over nobody.
    fn passes_over(&self, endpoint: &Arc<EndpointState>) -> bool {
        !self.tried.is_empty() && (!endpoint.is_reachable() || self.has_tried(endpoint))
    }
}

/// The policy that a cluster asks for; `None` if it is one of the application's own.
pub fn built_in(policy: &BalancerPolicy, slow_start: Option<SlowStart>) -> Option<Arc<dyn LoadBalancer>> {
    let warming = |balancer: Arc<dyn LoadBalancer>| match slow_start {
        Some(slow_start) => Arc::new(Warmup { balancer, slow_start }) as Arc<dyn LoadBalancer>,
        None => balancer,
    };
    Some(match policy {
        BalancerPolicy::LeastRequest { choices, bias } => {
            warming(Arc::new(LeastRequest { choices: *choices, bias: *bias }))
        }
        BalancerPolicy::RoundRobin => warming(Arc::new(RoundRobin)),
        BalancerPolicy::WeightedByLoad(config) => warming(Arc::new(WeightedByLoad(Arc::clone(config)))),
        BalancerPolicy::PeakEwma { decay } => Arc::new(PeakEwma { decay: *decay }),
        BalancerPolicy::Random => Arc::new(Random),
        BalancerPolicy::RingHash { min_size, max_size, function, hashing } => {
            let (min_size, max_size, function, hashing) = (*min_size, *max_size, *function, *hashing);
            Arc::new(RingHash { min_size, max_size, function, hashing })
        }
        BalancerPolicy::Maglev { table_size, hashing } => {
            Arc::new(Maglev { table_size: *table_size, hashing: *hashing })
        }
        BalancerPolicy::RandomSubset { size, child } => {
            Arc::new(RandomSubset { size: *size as usize, child: built_in(child, slow_start)? })
        }
        BalancerPolicy::Custom(_) => return None,
    })
}

/// The endpoints that a policy chooses among, and their shares.
#[derive(Debug)]
pub struct EndpointSet {
    /// In parts, which sets share that have them in common.
    endpoints: List<Arc<EndpointState>>,
    weights: Weights,
    /// Empty where no endpoint has one.
    names: Arc<[HashNames]>,
    /// The locality of each endpoint; empty where localities have no shares.
    localities: Box<[u32]>,
    cluster: Arc<ClusterState>,
}

/// What consistent hashing goes by, where it is not the address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashNames {
    /// `hash_key` in the endpoint's metadata `envoy.lb` (gRFC A76).
    pub key: Option<Arc<str>>,
    /// Its host name.
    pub hostname: Option<Arc<str>>,
}

#[derive(Debug)]
enum Weights {
    Equal,
    /// Each endpoint's weight, the same scaled to `u16::MAX` for the heaviest, and the running totals of that.
    Each {
        exact: Arc<[u64]>,
        strides: Box<[u16]>,
        totals: Box<[u64]>,
    },
}

/// Endpoints as they are hashed: where each stands, what it is hashed by, and its share.
#[derive(Debug)]
struct HashedEndpoints {
    endpoints: List<Arc<EndpointState>>,
    names: Arc<[HashNames]>,
    /// `None` where all have the same.
    weights: Option<Arc<[u64]>>,
}

impl HashedEndpoints {
    /// Whether a set is hashed alike: what was made of the one is what would be made of the other.
    fn is_of(&self, set: &EndpointSet) -> bool {
        let other = set.hashed();
        let is_same = |one: &Arc<EndpointState>, other: &Arc<EndpointState>| {
            Arc::ptr_eq(one, other) || one.id().addresses().first() == other.id().addresses().first()
        };
        self.weights == other.weights && self.names == other.names && self.endpoints.agrees(&other.endpoints, is_same)
    }
}

impl EndpointSet {
    /// A set of endpoints by weight; a weight of zero counts as the smallest there is.
    pub fn new(endpoints: Vec<(Arc<EndpointState>, u64)>, cluster: Arc<ClusterState>) -> Self {
        let shares: Vec<(u64, usize)> = endpoints.iter().map(|(_, weight)| (*weight, 1)).collect();
        EndpointSet::of_shares(endpoints.into_iter().map(|(state, _)| state).collect(), &shares, cluster)
    }

    /// The same, by how many in a row have which weight.
    fn of_shares(endpoints: List<Arc<EndpointState>>, shares: &[(u64, usize)], cluster: Arc<ClusterState>) -> Self {
        let heaviest = shares.iter().map(|(weight, _)| *weight).max().unwrap_or(0).max(1);
        let weights = if shares.iter().all(|(weight, _)| *weight == heaviest) {
            Weights::Equal
        } else {
            let stride = |weight: u64| {
                let scaled = u128::from(weight) * u128::from(u16::MAX) / u128::from(heaviest);
                u16::try_from(scaled).unwrap_or(u16::MAX).max(1)
            };
            let runs = shares.iter().map(|(weight, count)| std::iter::repeat_n(stride(*weight), *count));
            let strides: Box<[u16]> = runs.flatten().collect();
            let totals = strides.iter().scan(0u64, |total, stride| {
                *total += u64::from(*stride);
                Some(*total)
            });
            let exact = shares.iter().flat_map(|(weight, count)| std::iter::repeat_n((*weight).max(1), *count));
            Weights::Each { totals: totals.collect(), exact: exact.collect(), strides }
        };
        EndpointSet { endpoints, weights, names: Arc::default(), localities: Box::default(), cluster }
    }

    /// With what consistent hashing goes by, in the order of the endpoints.
    pub fn with_names(mut self, names: Vec<HashNames>) -> Self {
        let is_named = names.iter().any(|names| *names != HashNames::default());
        self.names = if is_named { names.into() } else { Arc::default() };
        self
    }

    /// With the localities whose shares its weights are made of, in the order of the endpoints.
    pub fn with_localities(mut self, localities: Vec<u32>) -> Self {
        self.localities = localities.into_boxed_slice();
        self
    }

    /// Some of its endpoints, in this order.
    fn part(&self, positions: &[usize]) -> EndpointSet {
        let endpoints = positions.iter().filter_map(|at| Some((Arc::clone(self.get(*at)?), self.exact_weight(*at))));
        let pick = |all: &[u32]| positions.iter().filter_map(|at| all.get(*at).copied()).collect();
        let names = positions.iter().filter_map(|at| self.names.get(*at).cloned()).collect();
        let part = EndpointSet::new(endpoints.collect(), Arc::clone(&self.cluster));
        part.with_names(names).with_localities(pick(&self.localities))
    }

    /// What a policy that hashes endpoints makes its table of.
    fn hashed(&self) -> HashedEndpoints {
        let weights = match &self.weights {
            Weights::Equal => None,
            Weights::Each { exact, .. } => Some(Arc::clone(exact)),
        };
        HashedEndpoints { endpoints: self.endpoints.clone(), names: Arc::clone(&self.names), weights }
    }

    /// Whether weights are made of the shares of localities.
    pub fn has_localities(&self) -> bool {
        !self.localities.is_empty()
    }

    /// The locality of the endpoint at a position; all are in the same one where localities have no shares.
    pub fn locality(&self, position: usize) -> u32 {
        self.localities.get(position).copied().unwrap_or_default()
    }

    /// What stands for the endpoint at a position where endpoints are hashed: its key, its name if that is asked for, its
    /// address.
    pub fn hash_key(&self, position: usize, by_hostname: bool) -> String {
        let named = self.names.get(position).and_then(|names| {
            let hostname = || names.hostname.as_ref().filter(|_| by_hostname);
            names.key.as_ref().filter(|key| !key.is_empty()).or_else(hostname)
        });
        match (named, self.get(position).and_then(|endpoint| endpoint.id().addresses().first())) {
            (Some(name), _) => name.to_string(),
            (None, Some(address)) => address.to_string(),
            (None, None) => String::new(),
        }
    }

    /// The weight of the endpoint at a position as it was given; equal ones are all 1.
    pub fn exact_weight(&self, position: usize) -> u64 {
        match &self.weights {
            Weights::Equal => 1,
            Weights::Each { exact, .. } => exact.get(position).copied().unwrap_or(1),
        }
    }

    /// How many endpoints there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// The endpoint at a position.
    #[inline]
    pub fn get(&self, position: usize) -> Option<&Arc<EndpointState>> {
        self.endpoints.get(position)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<EndpointState>> {
        self.endpoints.iter()
    }

    /// Whether an endpoint is among them.
    pub fn contains(&self, endpoint: &EndpointState) -> bool {
        self.endpoints.iter().any(|present| std::ptr::eq(Arc::as_ptr(present), endpoint))
    }

    /// The share of the endpoint at a position, from 1; equal shares are all 1.
    #[inline]
    pub fn weight(&self, position: usize) -> u64 {
        match &self.weights {
            Weights::Equal => 1,
            Weights::Each { strides, .. } => strides.get(position).copied().unwrap_or(1).into(),
        }
    }

    /// Whether all have the same share.
    pub fn is_equal(&self) -> bool {
        matches!(self.weights, Weights::Equal)
    }

    /// The state of the cluster that they belong to.
    pub fn cluster(&self) -> &ClusterState {
        &self.cluster
    }

    /// A random position, by weight. `None` where the set is empty.
    #[inline]
    pub fn draw(&self, random: &mut fastrand::Rng) -> Option<usize> {
        if self.endpoints.is_empty() {
            return None;
        }
        match &self.weights {
            Weights::Equal => Some(random.usize(0..self.endpoints.len())),
            Weights::Each { totals, .. } => {
                let total = *totals.last()?;
                let ticket = random.u64(0..total);
                Some(totals.partition_point(|sum| *sum <= ticket))
            }
        }
    }

    /// Picks an endpoint. One that this request has tried is passed over as long as there is another, and so is then one that
    /// cannot be reached by now.
    #[inline]
    pub fn pick(&self, picker: &dyn Picker, args: &mut PickArgs<'_>) -> Option<&Arc<EndpointState>> {
        let picked = self.get(picker.pick(self, args)?)?;
        if args.tried.is_empty() { Some(picked) } else { self.pick_untried(picked, picker, args) }
    }

    /// Again, up to five times (Envoy's `previous_hosts` with Istio's five attempts). Then, where Envoy settles for
    /// what it has, any other: an endpoint that refuses connections looks idle, so that a policy may go on picking
    /// it.
    #[cold]
    fn pick_untried<'s>(
        &'s self,
        mut picked: &'s Arc<EndpointState>,
        picker: &dyn Picker,
        args: &mut PickArgs<'_>,
    ) -> Option<&'s Arc<EndpointState>> {
        for _ in 0..5 {
            if !args.passes_over(picked) {
                return Some(picked);
            }
            picked = self.get(picker.pick(self, args)?)?;
        }
        let (first, count) = (args.random.usize(0..self.endpoints.len()), self.endpoints.len());
        let mut others = (first..count).chain(0..first).filter_map(|position| self.get(position));
        let untried = others.clone().find(|endpoint| !args.has_tried(endpoint));
        others.find(|endpoint| !args.passes_over(endpoint)).or(untried).or(Some(picked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::EndpointId;

    /// Endpoints of these weights.
    pub(super) fn set(weights: &[u64]) -> EndpointSet {
        set_of(weights, Arc::default())
    }

    /// The same of this cluster.
    pub(super) fn set_of(weights: &[u64], cluster: Arc<ClusterState>) -> EndpointSet {
        let endpoint = |port: usize| {
            cluster.endpoint(&EndpointId::new(std::net::SocketAddr::from(([10, 0, 0, 1], 1 + port as u16))), false)
        };
        let endpoints = weights.iter().enumerate().map(|(at, weight)| (endpoint(at), *weight)).collect();
        EndpointSet::new(endpoints, Arc::clone(&cluster))
    }

    /// The value of chi-square that is exceeded in 1 % of cases, by Wilson and Hilferty; 2.326 is the normal quantile.
    pub(super) fn critical(freedom: usize) -> f64 {
        let freedom = freedom as f64;
        let spread = 2.0 / (9.0 * freedom);
        freedom * (1.0 - spread + 2.326 * spread.sqrt()).powi(3)
    }
}
