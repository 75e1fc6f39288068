//! Choosing an endpoint: priority first, then one of the priority's endpoints by the cluster's policy.
//!
//! A picker is an immutable table plus the counters of the endpoints' own state: no lock, no allocation. Every
//! random choice comes from the call, so a test repeats it.

mod policies;
mod priority;

use std::fmt;
use std::sync::Arc;

use crate::call::Call;
use crate::model::BalancerPolicy;
use crate::state::{ClusterState, EndpointState};

pub use policies::{LeastRequest, Random, RoundRobin};
pub use priority::{Level, Levels};

/// A policy that chooses among the endpoints of one priority.
///
/// The application's own policies implement it and are registered by name with the mesh builder.
pub trait LoadBalancer: Send + Sync + fmt::Debug {
    /// The position of the chosen endpoint, or `None` where the set is empty. Must not block.
    fn pick(&self, set: &EndpointSet, call: &mut Call) -> Option<usize>;
}

/// The policy that a cluster asks for; `None` if it is one of the application's own.
pub fn built_in(policy: &BalancerPolicy) -> Option<Arc<dyn LoadBalancer>> {
    Some(match policy {
        BalancerPolicy::LeastRequest { choices } => Arc::new(LeastRequest { choices: *choices }),
        BalancerPolicy::RoundRobin => Arc::new(RoundRobin),
        BalancerPolicy::Random => Arc::new(Random),
        BalancerPolicy::Custom(_) => return None,
    })
}

/// The endpoints that a policy chooses among, and their shares.
#[derive(Debug)]
pub struct EndpointSet {
    endpoints: Box<[Arc<EndpointState>]>,
    weights: Weights,
    cluster: Arc<ClusterState>,
}

#[derive(Debug)]
enum Weights {
    Equal,
    /// Each endpoint's weight, scaled to `u16::MAX` for the heaviest, and the running totals.
    Each {
        strides: Box<[u16]>,
        totals: Box<[u64]>,
    },
}

impl EndpointSet {
    /// A set of endpoints by weight; a weight of zero counts as the smallest there is.
    pub fn new(endpoints: Vec<(Arc<EndpointState>, u64)>, cluster: Arc<ClusterState>) -> Self {
        let heaviest = endpoints.iter().map(|(_, weight)| *weight).max().unwrap_or(0).max(1);
        let equal = endpoints.iter().all(|(_, weight)| *weight == heaviest);
        let weights = if equal {
            Weights::Equal
        } else {
            let stride = |weight: u64| {
                let scaled = u128::from(weight) * u128::from(u16::MAX) / u128::from(heaviest);
                u16::try_from(scaled).unwrap_or(u16::MAX).max(1)
            };
            let strides: Box<[u16]> = endpoints.iter().map(|(_, weight)| stride(*weight)).collect();
            let totals = strides.iter().scan(0u64, |total, stride| {
                *total += u64::from(*stride);
                Some(*total)
            });
            Weights::Each { totals: totals.collect(), strides }
        };
        EndpointSet { endpoints: endpoints.into_iter().map(|(state, _)| state).collect(), weights, cluster }
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

    /// Picks by a policy. An endpoint that this call has tried is passed over as long as there is another.
    #[inline]
    pub fn pick(&self, policy: &dyn LoadBalancer, call: &mut Call) -> Option<&Arc<EndpointState>> {
        let picked = self.get(policy.pick(self, call)?)?;
        if call.tried.is_empty() { Some(picked) } else { self.pick_untried(picked, policy, call) }
    }

    /// Again, up to five times (Envoy's `previous_hosts` with Istio's five attempts). Then, where Envoy settles for
    /// what it has, any other: an endpoint that refuses connections looks idle, so that a policy may go on picking
    /// it.
    #[cold]
    fn pick_untried<'s>(
        &'s self,
        mut picked: &'s Arc<EndpointState>,
        policy: &dyn LoadBalancer,
        call: &mut Call,
    ) -> Option<&'s Arc<EndpointState>> {
        let tried = |call: &Call, endpoint| call.tried.iter().any(|tried| Arc::ptr_eq(tried, endpoint));
        for _ in 0..5 {
            if !tried(call, picked) {
                return Some(picked);
            }
            picked = self.get(policy.pick(self, call)?)?;
        }
        let (before, after) = self.endpoints.split_at(call.random.usize(0..self.endpoints.len()));
        after.iter().chain(before).find(|endpoint| !tried(call, endpoint)).or(Some(picked))
    }
}
