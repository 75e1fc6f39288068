//! One cluster: ready to pick from.

use std::borrow::Cow;
use std::sync::Arc;

use super::Extensions;
use crate::balance::{Levels, Loads, PickArgs, built_in};
use crate::error::{ErrorKind, MeshError};
use crate::id::{Address, ClusterName, EndpointId};
use crate::model::{BalancerPolicy, Cluster, ClusterKind, DirectResponse, Endpoint, Endpoints, Health};
use crate::state::{ClusterState, EndpointState, InFlight};

/// One cluster, compiled: ready to pick from.
#[derive(Debug)]
pub struct ClusterView {
    name: ClusterName,
    leaves: Vec<Leaf>,
    levels: Levels,
    /// Why it cannot be used at all.
    unusable: Option<Arc<str>>,
    /// The state of endpoints that are not picked, so that it is known when they are back.
    set_aside: Vec<Arc<EndpointState>>,
}

/// What a compiled cluster was made of. An aggregate has several leaves, any other cluster one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Leaf {
    /// The cluster.
    pub cluster: Arc<Cluster>,
    /// Its endpoints; `None` where the caller's own address is dialled.
    pub endpoints: Option<Arc<Endpoints>>,
    /// What outlives this view.
    pub state: Arc<ClusterState>,
}

impl Leaf {
    /// This cluster with these endpoints.
    pub fn new(cluster: Arc<Cluster>, endpoints: Option<Arc<Endpoints>>, state: Arc<ClusterState>) -> Self {
        Leaf { cluster, endpoints, state }
    }

    /// The state of an endpoint of it.
    fn state_of(&self, endpoint: &Endpoint) -> Arc<EndpointState> {
        self.state.endpoint(&endpoint.id, endpoint.mutual_tls)
    }

    /// Its endpoints, with what this process found out of their health: who is ejected, and, where that `counts`, who cannot
    /// be reached.
    /// They are `set_aside`.
    fn found<'l>(
        &self,
        endpoints: &'l Endpoints,
        reach_counts: bool,
        set_aside: &mut Vec<Arc<EndpointState>>,
    ) -> Cow<'l, Endpoints> {
        let can_eject = self.cluster.outlier_detection.is_some();
        let mut found = |endpoint: &Endpoint| {
            if !matches!(endpoint.health, Health::Unknown | Health::Healthy | Health::Degraded) {
                return None;
            }
            let state = self.state_of(endpoint);
            let health = match () {
                () if reach_counts && !state.is_reachable() => Health::Unreachable,
                () if can_eject && state.is_ejected() => Health::Unhealthy,
                () => return None,
            };
            set_aside.push(state);
            Some(health)
        };
        let may_differ = can_eject || (reach_counts && self.state.has_unreachable());
        if !may_differ {
            return Cow::Borrowed(endpoints);
        }
        let mut known = Cow::Borrowed(endpoints);
        for (at, locality) in endpoints.localities.iter().enumerate() {
            for (position, endpoint) in locality.endpoints.iter().enumerate() {
                if let Some(health) = found(endpoint)
                    && let Some(locality) = known.to_mut().localities.get_mut(at)
                    && let Some(endpoint) = locality.endpoints.get_mut(position)
                {
                    endpoint.health = health;
                }
            }
        }
        known
    }
}

/// A chosen endpoint. It counts as a request in flight until dropped.
#[derive(Debug)]
#[non_exhaustive]
pub struct Pick<'v> {
    /// The cluster that the endpoint belongs to: for an aggregate, the leaf.
    pub cluster: &'v Arc<Cluster>,
    /// Which of [`ClusterView::leaves`] that is.
    pub leaf: usize,
    /// Which of the leaf's priorities it was picked from.
    pub priority: u32,
    /// The endpoint, counted in.
    pub in_flight: InFlight,
}

impl ClusterView {
    /// Compiles a cluster from its leaves; `previous` is what the cluster was until now.
    pub fn compile(
        name: ClusterName,
        leaves: Vec<Leaf>,
        extensions: &Extensions,
        previous: Option<&ClusterView>,
    ) -> Self {
        let mut compiled = Self::levels(&leaves, extensions, previous, true);
        // Where nobody can be reached, everybody is tried: one of them may be back.
        let has_answer = leaves.last().is_some_and(|leaf| leaf.cluster.fallback.is_some());
        let has_unreachable = || leaves.iter().any(|leaf| leaf.state.has_unreachable());
        if compiled.0.taking_load().next().is_none() && !has_answer && has_unreachable() {
            compiled = Self::levels(&leaves, extensions, previous, false);
        }
        let (levels, unusable, set_aside) = compiled;
        ClusterView { name, leaves, levels, unusable, set_aside }
    }

    fn levels(
        leaves: &[Leaf],
        extensions: &Extensions,
        previous: Option<&ClusterView>,
        reach_counts: bool,
    ) -> (Levels, Option<Arc<str>>, Vec<Arc<EndpointState>>) {
        let (mut levels, mut unusable, mut set_aside) = (Levels::default(), None, Vec::new());
        for (position, leaf) in leaves.iter().enumerate() {
            let balancer = match &leaf.cluster.balancer {
                BalancerPolicy::Custom(name) => extensions.balancers.get(name).cloned(),
                policy => built_in(policy, leaf.cluster.slow_start),
            };
            match (balancer, &leaf.endpoints) {
                (Some(balancer), Some(endpoints)) => {
                    let found = leaf.found(endpoints, reach_counts, &mut set_aside);
                    levels.add_leaf(position, &found, leaf.cluster.priorities, &balancer, &leaf.state);
                    leaf.state.note_marks(endpoints);
                    if leaf.cluster.outlier_detection.is_some() {
                        let all = endpoints.localities.iter().flat_map(|locality| &locality.endpoints);
                        leaf.state.set_hosts(all.map(|endpoint| leaf.state_of(endpoint)));
                    }
                }
                (Some(_), None) => {}
                (None, _) => {
                    unusable = Some(format!("no balancer is registered for {:?}", leaf.cluster.balancer).into());
                }
            }
        }
        levels.settle(previous.map(|previous| &previous.levels));
        (levels, unusable, set_aside)
    }

    /// A cluster that cannot be used, and why.
    pub fn unusable(name: ClusterName, reason: Arc<str>) -> Self {
        ClusterView {
            name,
            leaves: Vec::new(),
            levels: Levels::default(),
            unusable: Some(reason),
            set_aside: Vec::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &ClusterName {
        &self.name
    }

    /// What it was made of.
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    /// Whether it was compiled from these very inputs.
    pub fn is_of(&self, leaves: &[Leaf]) -> bool {
        let same_endpoints = |a: &Option<Arc<Endpoints>>, b: &Option<Arc<Endpoints>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        self.unusable.is_none()
            && self.leaves.len() == leaves.len()
            && self
                .leaves
                .iter()
                .zip(leaves)
                .all(|(a, b)| Arc::ptr_eq(&a.cluster, &b.cluster) && same_endpoints(&a.endpoints, &b.endpoints))
    }

    /// The answer to a request for which there is no healthy endpoint.
    pub fn fallback(&self) -> Option<&DirectResponse> {
        self.leaves.last()?.cluster.fallback.as_deref()
    }

    /// Whether an endpoint takes load now.
    pub fn may_pick(&self, endpoint: &EndpointState) -> bool {
        self.passes_through() || self.levels.taking_load().any(|level| level.endpoints.contains(endpoint))
    }

    /// What a client has under way on an endpoint, and beside it.
    pub fn loads_of(&self, endpoint: &EndpointState) -> Loads {
        Loads::of(endpoint, &self.levels)
    }

    /// Whether requests go to the address that the caller asked for.
    pub fn passes_through(&self) -> bool {
        matches!(self.leaves.as_slice(), [Leaf { endpoints: None, .. }])
    }

    /// Chooses an endpoint. `authority` is what the caller asked for; only a pass-through cluster asks for it.
    #[inline]
    pub fn pick<'a>(
        &self,
        args: &mut PickArgs<'_>,
        authority: impl FnOnce() -> &'a str,
    ) -> Result<Pick<'_>, MeshError> {
        if let Some((level, endpoint)) = self.levels.pick(args)
            && let Some(leaf) = self.leaves.get(level.leaf)
        {
            let max = leaf.cluster.circuit_breakers.max_requests;
            return match endpoint.enter_within(max) {
                Some(in_flight) => {
                    let (leaf_of, priority) = level.priority();
                    Ok(Pick { cluster: &leaf.cluster, leaf: leaf_of, priority, in_flight })
                }
                None => Err(overflow(&leaf.cluster, max)),
            };
        }
        self.pick_without_endpoints(authority())
    }

    #[cold]
    fn pick_without_endpoints(&self, authority: &str) -> Result<Pick<'_>, MeshError> {
        let error = |kind, what: &str| MeshError::new(kind, what).within(format_args!("cluster {}", self.name));
        if let Some(reason) = &self.unusable {
            return Err(error(ErrorKind::NoCluster, reason));
        }
        if let [Leaf { cluster, endpoints: None, state }] = self.leaves.as_slice() {
            let id = address_of(authority).map(EndpointId::new);
            let id =
                id.ok_or_else(|| error(ErrorKind::BadRequest, "the authority is no address to pass through to"))?;
            let max = cluster.circuit_breakers.max_requests;
            let in_flight = state.visit(&id).enter_within(max).ok_or_else(|| overflow(cluster, max))?;
            return Ok(Pick { cluster, leaf: 0, priority: 0, in_flight });
        }
        Err(error(ErrorKind::NoHealthyEndpoint, &format!("no healthy endpoint ({})", self.known())))
    }

    /// How many endpoints there are, and what keeps them from being picked.
    fn known(&self) -> String {
        let known: usize = self.leaves.iter().filter_map(|leaf| leaf.endpoints.as_ref()).map(|all| all.len()).sum();
        let ejected = self.set_aside.iter().filter(|endpoint| endpoint.is_ejected()).count();
        if ejected > 0 { format!("{known} known, {ejected} ejected") } else { format!("{known} known") }
    }
}

/// The failure of a request above the limit of its cluster.
#[cold]
fn overflow(cluster: &Cluster, max: u32) -> MeshError {
    let what = format!("{max} requests are in flight, which is its limit (circuit breaker max_requests)");
    MeshError::new(ErrorKind::Overflow, what).within(format_args!("cluster {}", cluster.name))
}

/// The address that an authority with a port stands for.
fn address_of(authority: &str) -> Option<Address> {
    if let Ok(socket) = authority.parse() {
        return Some(Address::Socket(socket));
    }
    let (host, port) = authority.rsplit_once(':')?;
    Some(Address::Host(host.into(), port.parse().ok()?))
}

impl Cluster {
    /// The endpoints that a cluster brings itself, where it does.
    pub fn inline_endpoints(&self) -> Option<&Endpoints> {
        match &self.kind {
            ClusterKind::Static(endpoints) | ClusterKind::LogicalDns(endpoints) => Some(endpoints),
            _ => None,
        }
    }
}
