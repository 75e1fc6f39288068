//! The endpoints of a service, port by port.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use mesh_core::identity::SpiffeId;

use super::discovered::Discovered;
use super::service::{Service, WrittenEndpoint};
use super::workload::{Health, Workload, only_port, ports_by_target};
use crate::catalog::Encoded;
use crate::config::diagnostic::is_of_kubernetes;
use crate::config::support::ObjectKind;
use crate::policy::locality::Nearness;

/// One endpoint of one port.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Where it is reached.
    pub address: SocketAddr,
    /// Its labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Share of the load, at least 1.
    pub weight: u32,
    /// Region, zone, subzone.
    pub locality: [Arc<str>; 3],
    /// How well it is.
    pub health: Health,
    /// The workload's name.
    pub workload: Arc<str>,
    /// The workload's namespace.
    pub namespace: Arc<str>,
    /// The workload's cluster.
    pub cluster: Arc<str>,
    /// The registration that it comes from, where it registered itself.
    pub key: Option<Arc<str>>,
    /// Whether it speaks the mesh's mutual TLS.
    pub mutual_tls: bool,
    /// Who it is by mutual TLS, where that is known.
    pub identity: Option<SpiffeId>,
    /// Whether it is a gateway: how it takes connections, the Gateways that select it say.
    pub is_gateway: bool,
}

/// All endpoints of a service, immutable, with the encodings that were made of them: they are good for as
/// long as the endpoints are, and go away with them.
#[derive(Debug, Default)]
pub struct ServiceEndpoints {
    by_port: BTreeMap<u16, Vec<Endpoint>>,
    identities: Arc<[SpiffeId]>,
    has_gateways: bool,
    encoded: Mutex<HashMap<EncodedKey, Encoded>>,
}

/// How many encodings of the same endpoints are kept.
const MOST_ENCODED: usize = 1_024;

/// What an encoded set of endpoints depends on, apart from the endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EncodedKey {
    /// The name of the resource.
    pub name: Arc<str>,
    /// The labels that the subset asks for.
    pub labels: Option<Arc<BTreeMap<String, String>>>,
    /// What says who speaks mutual TLS.
    pub security: u64,
    /// Whether each endpoint is called as it says itself, and no rule says how to call all of them.
    pub is_automatic: bool,
    /// What of the place of clients makes a difference.
    pub nearness: Option<Arc<Nearness>>,
}

impl ServiceEndpoints {
    /// The endpoints of a port, in a fixed order.
    pub fn of_port(&self, port: u16) -> &[Endpoint] {
        self.by_port.get(&port).map(Vec::as_slice).unwrap_or_default()
    }

    /// Ports that have endpoints, and these.
    pub fn ports(&self) -> impl Iterator<Item = (u16, &[Endpoint])> {
        self.by_port.iter().map(|(port, endpoints)| (*port, endpoints.as_slice()))
    }

    /// Everybody who may serve any of its ports by mutual TLS, in order.
    pub fn identities(&self) -> &Arc<[SpiffeId]> {
        &self.identities
    }

    /// Whether any of them is a gateway.
    pub fn has_gateways(&self) -> bool {
        self.has_gateways
    }

    /// Whether both hold the same endpoints.
    pub fn is_same(&self, other: &ServiceEndpoints) -> bool {
        self.by_port == other.by_port && self.identities == other.identities
    }

    /// The encoding for this key, made once.
    pub fn encoded(&self, key: EncodedKey, make: impl FnOnce() -> Encoded) -> Encoded {
        let mut encoded = self.encoded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !encoded.contains_key(&key) {
            // What was made under an older configuration is of no use any more.
            encoded.retain(|other, _| other.security == key.security);
            // Shares of zones are ever new ones, as clients come and go.
            if encoded.len() >= MOST_ENCODED {
                encoded.clear();
            }
        }
        encoded.entry(key).or_insert_with(make).clone()
    }
}

/// Puts together the endpoints of a service from what is written down, what a cluster tells, and who registered.
///
/// `written` are the service's own endpoints and the WorkloadEntries that it selects; `workloads` are all
/// registered workloads of its namespace. Of one that the cluster tells of, too, the cluster knows better whether it may be
/// called, and its registration whether it speaks mutual TLS. Whether a service of a cluster has an endpoint is for the cluster
/// to say, but for workloads outside of it, which are of a WorkloadGroup.
pub fn collect<'a>(
    service: &Service,
    written: impl Iterator<Item = &'a WrittenEndpoint>,
    workloads: impl Iterator<Item = &'a Arc<Workload>>,
    discovered: &[Discovered],
) -> ServiceEndpoints {
    let mut by_port: BTreeMap<u16, Vec<Endpoint>> = BTreeMap::new();
    let mut verdicts = HashMap::new();
    for told in discovered {
        for port in &service.ports {
            let Some(address) = told.serves(port) else { continue };
            verdicts.insert((port.number, address), told.health);
            if let Some(health) = told.health {
                by_port.entry(port.number).or_default().push(told.endpoint(address, health));
            }
        }
    }
    if service.takes_registrations() {
        let is_of_cluster =
            is_of_kubernetes(&service.meta.origin.source.name) && service.meta.kind == ObjectKind::Service;
        for workload in workloads {
            for port in ports_served(service, workload) {
                let endpoint = match verdicts.get(&(port, workload.address)) {
                    None if is_of_cluster && workload.group.is_none() => continue,
                    None => registered(workload),
                    Some(None) => continue,
                    Some(Some(Health::Healthy)) => registered(workload),
                    Some(Some(health)) => Endpoint { health: *health, ..registered(workload) },
                };
                by_port.entry(port).or_default().push(endpoint);
            }
        }
    }
    for written in written {
        let Some(ip) = written.ip() else { continue };
        for port in &service.ports {
            if let Some(number) = written.port_for(port) {
                let address = SocketAddr::new(ip, number);
                by_port.entry(port.number).or_default().push(of_written(written, address));
            }
        }
    }
    for endpoints in by_port.values_mut() {
        // One address is one endpoint: gRPC rejects the whole set otherwise. The sort is stable, so who
        // registered stays ahead of what is written down, and the rest has a fixed order.
        endpoints.sort_by(|a, b| (a.address, a.key.is_none(), &a.key).cmp(&(b.address, b.key.is_none(), &b.key)));
        let mut seen = HashSet::new();
        endpoints.retain(|endpoint| seen.insert(endpoint.address));
    }
    let identities = by_port.values().flatten().filter_map(|endpoint| endpoint.identity.clone());
    let identities = all_of(service, identities);
    let has_gateways = by_port.values().flatten().any(|endpoint| endpoint.is_gateway);
    ServiceEndpoints { by_port, identities, has_gateways, encoded: Mutex::default() }
}

/// A service whose endpoints its clients look up themselves: only who may answer is known here.
pub fn found_by_clients<'a>(service: &Service, written: impl Iterator<Item = &'a WrittenEndpoint>) -> ServiceEndpoints {
    let identities = written.filter(|written| written.mutual_tls).filter_map(|written| written.identity.clone());
    ServiceEndpoints { identities: all_of(service, identities), ..ServiceEndpoints::default() }
}

/// Who may answer for a service: its endpoints, and who is written besides.
fn all_of(service: &Service, of_endpoints: impl Iterator<Item = SpiffeId>) -> Arc<[SpiffeId]> {
    let all: BTreeSet<SpiffeId> = of_endpoints.chain(service.peers.iter().cloned()).collect();
    all.into_iter().collect()
}

/// Which ports of the service a workload serves, if it is selected: those that its bound port matches by
/// number or by name, else the only one that there is, unless a proxy binds what services name.
///
/// Listeners are judged one by one, not by process: nodes that share a bootstrap file share their id.
fn ports_served(service: &Service, workload: &Workload) -> Vec<u16> {
    if !service.selects(&workload.labels) {
        return Vec::new();
    }
    let ports = ports_by_target(service, workload);
    let is_known = !ports.is_empty() || workload.is_proxied;
    if is_known { ports } else { only_port(service).into_iter().collect() }
}

fn registered(workload: &Workload) -> Endpoint {
    Endpoint {
        address: workload.address,
        labels: workload.labels.clone(),
        weight: workload.weight.max(1),
        locality: workload.locality.clone(),
        health: workload.health,
        workload: workload.name.clone(),
        namespace: workload.namespace.clone(),
        cluster: workload.cluster.clone(),
        key: Some(workload.key.clone()),
        mutual_tls: workload.identity.is_some(),
        identity: workload.identity.clone(),
        is_gateway: workload.is_gateway,
    }
}

fn of_written(written: &WrittenEndpoint, address: SocketAddr) -> Endpoint {
    Endpoint {
        address,
        labels: written.labels.clone(),
        weight: written.weight,
        locality: written.locality.clone(),
        health: Health::Healthy,
        workload: written.workload.clone(),
        namespace: written.namespace.clone(),
        cluster: Arc::default(),
        key: None,
        mutual_tls: written.mutual_tls,
        identity: written.identity.clone().filter(|_| written.mutual_tls),
        is_gateway: false,
    }
}
