//! One cluster: ready to pick from.

use std::sync::Arc;

use super::Extensions;
use crate::balance::{Levels, PickArgs, built_in};
use crate::error::{ErrorKind, MeshError};
use crate::id::{Address, ClusterName, EndpointId};
use crate::model::{BalancerPolicy, Cluster, ClusterKind, Endpoints};
use crate::state::{ClusterState, EndpointState, InFlight};

/// One cluster, compiled: ready to pick from.
#[derive(Debug)]
pub struct ClusterView {
    name: ClusterName,
    leaves: Vec<Leaf>,
    levels: Levels,
    /// Why it cannot be used at all.
    unusable: Option<Arc<str>>,
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
}

/// A chosen endpoint. It counts as a request in flight until dropped.
#[derive(Debug)]
#[non_exhaustive]
pub struct Pick<'v> {
    /// The cluster that the endpoint belongs to: for an aggregate, the leaf.
    pub cluster: &'v Arc<Cluster>,
    /// Which of [`ClusterView::leaves`] that is.
    pub leaf: usize,
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
        let mut levels = Levels::default();
        let mut unusable = None;
        for (position, leaf) in leaves.iter().enumerate() {
            let balancer = match &leaf.cluster.balancer {
                BalancerPolicy::Custom(name) => extensions.balancers.get(name).cloned(),
                policy => built_in(policy),
            };
            match (balancer, &leaf.endpoints) {
                (Some(balancer), Some(endpoints)) => {
                    levels.add_leaf(position, endpoints, leaf.cluster.priorities, &balancer, &leaf.state);
                    leaf.state.note_marks(endpoints);
                }
                (Some(_), None) => {}
                (None, _) => {
                    unusable = Some(format!("no balancer is registered for {:?}", leaf.cluster.balancer).into());
                }
            }
        }
        levels.settle(previous.map(|previous| &previous.levels));
        ClusterView { name, leaves, levels, unusable }
    }

    /// A cluster that cannot be used, and why.
    pub fn unusable(name: ClusterName, reason: Arc<str>) -> Self {
        ClusterView { name, leaves: Vec::new(), levels: Levels::default(), unusable: Some(reason) }
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

    /// Whether an endpoint takes load now.
    pub fn may_pick(&self, endpoint: &EndpointState) -> bool {
        self.passes_through() || self.levels.taking_load().any(|level| level.endpoints.contains(endpoint))
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
            return Ok(Pick { cluster: &leaf.cluster, leaf: level.leaf, in_flight: endpoint.enter() });
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
            return Ok(Pick { cluster, leaf: 0, in_flight: state.visit(&id).enter() });
        }
        let known: usize = self.leaves.iter().filter_map(|leaf| leaf.endpoints.as_ref()).map(|all| all.len()).sum();
        Err(error(ErrorKind::NoHealthyEndpoint, &format!("no healthy endpoint ({known} known)")))
    }
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
