//! Workloads that register themselves, and which port of a service they serve.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::identity::SpiffeId;

use super::probe::Probe;
use super::service::{Service, Target};
use crate::catalog::ClientClass;
use crate::config::istio::workload_group::WorkloadGroup;

/// How well a workload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Health {
    /// It takes requests.
    #[default]
    Healthy,
    /// It takes no new requests.
    Draining,
    /// It is known to fail.
    Unhealthy,
}

/// One server listener of a workload that registered itself.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Workload {
    /// Identifies the registration: the same key again replaces it.
    pub key: Arc<str>,
    /// The id of the node that it belongs to, for people to look at: it need not be unique.
    pub node: Arc<str>,
    /// The workload's name, for telemetry.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Where it listens, as others reach it.
    pub address: SocketAddr,
    /// Named ports (`POD_PORTS`).
    pub ports: Vec<(String, u16)>,
    /// Region, zone, subzone.
    pub locality: [Arc<str>; 3],
    /// The cluster it is in (`CLUSTER_ID`), for telemetry.
    pub cluster: Arc<str>,
    /// The WorkloadGroup that it says it belongs to (`AUTO_REGISTER_GROUP`).
    pub group: Option<Arc<str>>,
    /// Share of the load, at least 1.
    pub weight: u32,
    /// How well it is.
    pub health: Health,
    /// Who it is by mutual TLS, where it speaks it.
    pub identity: Option<SpiffeId>,
    /// Whether a proxy listens for it, a sidecar or a gateway: at the target ports of its services, and nowhere else.
    pub is_proxied: bool,
    /// What it runs: whether it can be asked how it is.
    pub class: ClientClass,
    /// Whether it was well by the last report of who asks it, if there was one.
    pub reported: Option<bool>,
    /// Whether it has to be well by the probe of its group, and is not known to be: then it is nobody's endpoint. What its group adds
    /// says so.
    pub is_unwell: bool,
    /// Whether it is a gateway: how it takes connections, the Gateways that select it say.
    pub is_gateway: bool,
}

impl Workload {
    /// A healthy workload of weight 1 with nothing but an address and labels.
    pub fn new(key: &str, namespace: &str, name: &str, address: SocketAddr) -> Workload {
        Workload {
            key: key.into(),
            node: key.into(),
            name: name.into(),
            namespace: namespace.into(),
            labels: Arc::default(),
            address,
            ports: Vec::new(),
            locality: Default::default(),
            cluster: Arc::default(),
            group: None,
            weight: 1,
            health: Health::Healthy,
            identity: None,
            is_proxied: false,
            class: ClientClass::Grpc,
            reported: None,
            is_unwell: false,
            is_gateway: false,
        }
    }

    /// The same workload with these labels.
    pub fn labelled<'a>(mut self, labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Workload {
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        self.labels = Arc::new(labels.into_iter().map(own).collect());
        self
    }

    /// The same workload, with what its group says of all its members; what it says itself counts more.
    pub fn with_group(&self, group: &WorkloadGroup) -> Workload {
        let mut merged = self.clone();
        if let Some(template) = &group.template {
            merged.ports.extend(template.ports.iter().map(|(name, port)| (name.clone(), port.0)));
            if merged.locality.iter().all(|part| part.is_empty()) {
                merged.locality = super::service::parse_locality(&template.locality);
            }
            if template.weight > 0 && merged.weight == 1 {
                merged.weight = template.weight;
            }
        }
        merged.labels = Arc::new(labels_in_group(group, &self.labels));
        // As in Istio, nobody is told of a member before it is known to be well.
        let is_asked = Probe::of(group).is_some_and(|probe| probe.is_for(self.class));
        merged.is_unwell = is_asked && self.reported != Some(true);
        merged
    }
}

/// The labels of a member, with what its group says of all of them; its own count more.
pub fn labels_in_group(group: &WorkloadGroup, own: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut labels = group.metadata.labels.clone();
    labels.extend(group.template.iter().flat_map(|template| template.labels.clone()));
    labels.extend(own.clone());
    labels
}

/// The ports of a service that a bound port serves by number or by name.
pub fn ports_by_target(service: &Service, workload: &Workload) -> Vec<u16> {
    let bound = workload.address.port();
    let named = |name: &str| workload.ports.iter().any(|(port, number)| port == name && *number == bound);
    service
        .ports
        .iter()
        .filter(|port| match &port.target {
            Target::Number(number) => *number == bound,
            Target::Name(name) => named(name),
        })
        .map(|port| port.number)
        .collect()
}

/// The only port of a service: what a workload serves that bound a port which the service does not name.
pub fn only_port(service: &Service) -> Option<u16> {
    match service.ports.as_slice() {
        [port] => Some(port.number),
        _ => None,
    }
}
