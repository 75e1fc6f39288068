//! Endpoints: where a cluster's requests can go, by priority and locality.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::id::{EndpointId, Locality};
use crate::list::List;

/// What the control plane says of an endpoint's health (`envoy.config.core.v3.HealthStatus`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Health {
    /// Nothing: taken as healthy.
    #[default]
    Unknown,
    /// It may be picked.
    Healthy,
    /// It may be picked after all healthy ones.
    Degraded,
    /// It finishes what it has and gets nothing new.
    Draining,
    /// It must not be picked. Also TIMEOUT.
    Unhealthy,
    /// It cannot be reached, as this process found out: not picked in panic, either.
    Unreachable,
}

impl Health {
    /// Whether new requests may go there.
    pub fn is_pickable(self) -> bool {
        matches!(self, Health::Unknown | Health::Healthy)
    }
}

/// One endpoint of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// Its identity, by which state is carried from one configuration to the next.
    pub id: EndpointId,
    /// Its health as the control plane sees it.
    pub health: Health,
    /// Its share within the locality, at least 1.
    pub weight: u32,
    /// The name to dial it by, where it differs from the address (gRFC A81).
    pub hostname: Option<Arc<str>>,
    /// Whether it speaks the mesh's mutual TLS (`envoy.transport_socket_match`, `tlsMode: istio`). Counts in clusters that
    /// leave it to their endpoints.
    pub mutual_tls: bool,
    /// Whether it is checked, where its cluster has health checks.
    pub is_checked: bool,
    /// The host that checks ask it for, in place of the cluster's.
    pub check_host: Option<Arc<str>>,
    /// String metadata by filter namespace and key, as in `istio` / `workload`.
    pub metadata: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Arc<str>>>,
}

impl Endpoint {
    /// A healthy endpoint of weight 1.
    pub fn new(id: EndpointId) -> Self {
        Endpoint {
            id,
            health: Health::Unknown,
            weight: 1,
            hostname: None,
            mutual_tls: false,
            is_checked: true,
            check_host: None,
            metadata: BTreeMap::new(),
        }
    }

    /// What it is hashed by in the place of its address (gRFC A76).
    pub fn hash_key(&self) -> Option<&Arc<str>> {
        self.metadata.get("envoy.lb")?.get("hash_key")
    }

    /// Whether it has no name to be hashed by.
    pub fn goes_by_address(&self) -> bool {
        self.hostname.is_none() && self.hash_key().is_none()
    }
}

/// The endpoints of one locality at one priority.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LocalityEndpoints {
    /// Where they are.
    pub locality: Locality,
    /// The locality's share within its priority, at least 1. Where no locality of a priority has one, all
    /// endpoints of the priority count alike.
    pub weight: Option<u32>,
    /// 0 is used first.
    pub priority: u32,
    /// The endpoints. In the next configuration a part of them that stays is to be the same allocation: then it is not looked at
    /// again.
    pub endpoints: List<Endpoint>,
}

impl LocalityEndpoints {
    /// These endpoints at priority 0, without a weight of their locality.
    pub fn new(locality: Locality, endpoints: Vec<Endpoint>) -> Self {
        LocalityEndpoints { locality, weight: None, priority: 0, endpoints: endpoints.into() }
    }
}

/// All endpoints of a cluster (`ClusterLoadAssignment`). Priorities are contiguous from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoints {
    /// By locality and priority.
    pub localities: Vec<LocalityEndpoints>,
    /// Requests to drop on purpose, per million (`drop_overloads`, summed in order).
    pub drop_per_million: Vec<u32>,
    /// How much load a priority may take above its healthy share, in percent. Envoy's default is 140.
    pub overprovisioning_percent: Option<u32>,
}

impl Endpoints {
    /// These localities, none of whose requests are dropped.
    pub fn new(localities: Vec<LocalityEndpoints>) -> Self {
        Endpoints { localities, ..Endpoints::default() }
    }

    /// One locality, priority 0: the usual case of tests and fixed configuration.
    ///
    /// ```
    /// use mesh_core::model::Endpoints;
    ///
    /// let endpoints = Endpoints::fixed(["127.0.0.1:8080".parse().unwrap()]);
    /// assert_eq!(endpoints.len(), 1);
    /// ```
    pub fn fixed(addresses: impl IntoIterator<Item = std::net::SocketAddr>) -> Self {
        let endpoints = addresses.into_iter().map(|addr| Endpoint::new(EndpointId::new(addr))).collect();
        Endpoints::new(vec![LocalityEndpoints::new(Locality::default(), endpoints)])
    }

    /// All of them, whatever their health, in the order of localities.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.localities.iter().flat_map(|locality| &locality.endpoints)
    }

    /// How many endpoints there are, whatever their health.
    pub fn len(&self) -> usize {
        self.localities.iter().map(|locality| locality.endpoints.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
