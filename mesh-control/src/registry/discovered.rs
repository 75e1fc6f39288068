//! Endpoints that a cluster tells of (Kubernetes' EndpointSlices): who serves a service, and whether it may be called now.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_core::identity::SpiffeId;

use super::endpoints::Endpoint;
use super::service::ServicePort;
use super::workload::Health;

/// The namespace and the name of a cluster's service.
pub type ServiceName = (Arc<str>, Arc<str>);

/// One endpoint of a cluster's service.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Discovered {
    /// Where it is.
    pub address: IpAddr,
    /// Its ports, by the names that the service has for them.
    pub ports: Arc<BTreeMap<String, u16>>,
    /// How well it is; `None` where it is not to be called.
    pub health: Option<Health>,
    /// Its labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Region, zone, subzone.
    pub locality: [Arc<str>; 3],
    /// The workload's name, for telemetry.
    pub workload: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Whether it says by itself that it speaks the mesh's mutual TLS. One that is registered, too, need not say it.
    pub mutual_tls: bool,
    /// Who it is by mutual TLS, where that is known.
    pub identity: Option<SpiffeId>,
}

impl Discovered {
    /// A healthy endpoint at this address, with these ports.
    pub fn new(address: IpAddr, namespace: &str, workload: &str, ports: Arc<BTreeMap<String, u16>>) -> Discovered {
        Discovered {
            address,
            ports,
            health: Some(Health::Healthy),
            labels: Arc::default(),
            locality: Default::default(),
            workload: workload.into(),
            namespace: namespace.into(),
            mutual_tls: false,
            identity: None,
        }
    }

    /// Where it serves a port of the service.
    pub(super) fn serves(&self, port: &ServicePort) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.address, *self.ports.get(&*port.name)?))
    }

    pub(super) fn endpoint(&self, address: SocketAddr, health: Health) -> Endpoint {
        Endpoint {
            address,
            labels: self.labels.clone(),
            weight: 1,
            locality: self.locality.clone(),
            health,
            workload: self.workload.clone(),
            namespace: self.namespace.clone(),
            cluster: Arc::default(),
            key: None,
            mutual_tls: self.mutual_tls,
            identity: self.identity.clone().filter(|_| self.mutual_tls),
            is_gateway: false,
        }
    }
}
