//! Services, from `Service` and `ServiceEntry`: a host, its ports, and how its endpoints are found.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::identity::{SpiffeId, TrustDomain};

use super::host::{plain, service_host};
use super::protocol::{self, Protocol};
use crate::catalog::TLS_MODE;
use crate::config::Origin;
use crate::config::file::{Meta, Object};
use crate::config::istio::service::{self, Session, TargetPort};
use crate::config::istio::service_entry::{self, ServiceEntry};
use crate::config::istio::virtual_service::Subnet;
use crate::config::istio::workload_entry::WorkloadEntry;
use crate::config::support::ObjectKind;

/// Who may see an object (`exportTo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Every namespace.
    All,
    /// These namespaces.
    Namespaces(BTreeSet<String>),
}

impl Visibility {
    /// What `exportTo` says in an object of some namespace: `*`, `.`, `~` (nobody) and names.
    pub fn new<'a>(export_to: impl IntoIterator<Item = &'a str>, namespace: &str) -> Visibility {
        let mut namespaces = BTreeSet::new();
        let mut is_empty = true;
        for entry in export_to {
            is_empty = false;
            match entry.trim() {
                "*" => return Visibility::All,
                "." => namespaces.insert(namespace.to_owned()),
                "~" => false,
                name => namespaces.insert(name.to_owned()),
            };
        }
        if is_empty { Visibility::All } else { Visibility::Namespaces(namespaces) }
    }

    /// The namespaces that it names; none where it is for every one.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        let named = match self {
            Visibility::All => None,
            Visibility::Namespaces(namespaces) => Some(namespaces),
        };
        named.into_iter().flatten().map(String::as_str)
    }

    /// Whether a client of this namespace sees it.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Visibility::All => true,
            Visibility::Namespaces(namespaces) => namespaces.contains(namespace),
        }
    }
}

/// How the endpoints of a service are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Discovery {
    /// mesh-control knows them: written down, or registered.
    Registry,
    /// The client asks DNS; every address is an endpoint.
    Dns,
    /// The client asks DNS; one address at a time.
    LogicalDns,
    /// There is none: the address that the caller asks for.
    Passthrough,
    /// The client asks DNS for the host that the caller asks for, when it does.
    Dynamic,
}

impl Discovery {
    /// Whether calls go to what they ask for, and to no endpoints of the service.
    pub fn is_of_caller(self) -> bool {
        matches!(self, Discovery::Passthrough | Discovery::Dynamic)
    }
}

/// A port of a service.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Its number.
    pub number: u16,
    /// Its name, empty where the only port has none.
    pub name: Arc<str>,
    /// What it speaks.
    pub protocol: Protocol,
    /// The port of the endpoints.
    pub target: Target,
}

impl ServicePort {
    /// A port of which only the number is known.
    pub fn unnamed(number: u16) -> ServicePort {
        let protocol = protocol::of_service_port(None, "", number);
        ServicePort { number, name: Arc::default(), protocol, target: Target::Number(number) }
    }
}

/// The port of the endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This number.
    Number(u16),
    /// The container port of this name.
    Name(Arc<str>),
}

/// An endpoint that is written down.
#[derive(Clone, Debug)]
pub struct WrittenEndpoint {
    /// An IP address or a DNS name.
    pub address: Arc<str>,
    /// Ports by name.
    pub ports: BTreeMap<String, u16>,
    /// Labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Share of the load, at least 1.
    pub weight: u32,
    /// Region, zone, subzone.
    pub locality: [Arc<str>; 3],
    /// The workload's name, for telemetry.
    pub workload: Arc<str>,
    /// The workload's namespace.
    pub namespace: Arc<str>,
    /// Whether it speaks the mesh's mutual TLS.
    pub mutual_tls: bool,
    /// Who it is by mutual TLS, where it is written.
    pub identity: Option<SpiffeId>,
    /// The ports of the service that it is an endpoint of, where these are not all: those of its own ServiceEntry.
    pub of_ports: Option<Arc<[u16]>>,
    /// The object that it is written in.
    pub object: Arc<str>,
    /// Where it is written.
    pub origin: Origin,
}

impl WrittenEndpoint {
    /// The endpoint of a WorkloadEntry, of a service that `is_internal` to the mesh or not; `None` for a unix socket, which
    /// is reported where it is read.
    pub fn new(
        entry: &WorkloadEntry,
        meta: &Meta,
        labels: BTreeMap<String, String>,
        is_internal: bool,
        domain: &TrustDomain,
    ) -> Option<Self> {
        if entry.address.is_empty() || entry.address.starts_with("unix://") {
            return None;
        }
        let account = entry.service_account.as_str();
        // Istio: getTLSModeFromWorkloadEntry (serviceregistry/serviceentry/conversion.go).
        let mutual_tls = match labels.get(TLS_MODE) {
            Some(mode) => mode == "istio",
            None => is_internal && !account.is_empty(),
        };
        Some(WrittenEndpoint {
            address: entry.address.value.as_str().into(),
            ports: entry.ports.iter().map(|(name, port)| (name.clone(), port.0)).collect(),
            labels: Arc::new(labels),
            weight: entry.weight.max(1),
            locality: parse_locality(&entry.locality),
            workload: meta.name.clone(),
            namespace: meta.namespace.clone(),
            mutual_tls,
            identity: SpiffeId::of_workload(domain, &meta.namespace, account).ok(),
            of_ports: None,
            object: meta.id(),
            origin: meta.origin.at(entry.address.span),
        })
    }

    /// The address, where it is an IP address.
    pub fn ip(&self) -> Option<IpAddr> {
        self.address.parse().ok()
    }

    /// Whether it is meant to serve a port of the service.
    pub fn is_of(&self, port: &ServicePort) -> bool {
        self.of_ports.as_ref().is_none_or(|ports| ports.contains(&port.number))
    }

    /// The port on which it serves a port of the service.
    pub fn port_for(&self, port: &ServicePort) -> Option<u16> {
        if !self.is_of(port) {
            return None;
        }
        if let Some(number) = self.ports.get(&*port.name) {
            return Some(*number);
        }
        match &port.target {
            Target::Number(number) => Some(*number),
            Target::Name(name) => self.ports.get(&**name).copied(),
        }
    }
}

/// `region/zone/subzone`; missing parts are empty.
pub fn parse_locality(text: &str) -> [Arc<str>; 3] {
    let mut parts = text.splitn(3, '/').map(Arc::<str>::from);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// A service as clients know it.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its full name, or `*.suffix`.
    pub host: Arc<str>,
    /// Its name for telemetry: the object's.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Addresses that stand for it, whoever answers there.
    pub addresses: Vec<Subnet>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// How its endpoints are found.
    pub discovery: Discovery,
    /// The host that it is another name of.
    pub alias: Option<Arc<str>>,
    /// Labels of the workloads that are its endpoints.
    pub selector: Option<BTreeMap<String, String>>,
    /// Endpoints that are written down in the object itself.
    pub endpoints: Vec<WrittenEndpoint>,
    /// Whether it is a part of the mesh (`location` of a ServiceEntry).
    pub is_internal: bool,
    /// Who may answer for it by mutual TLS besides its endpoints (`subjectAltNames` of a ServiceEntry).
    pub peers: Vec<SpiffeId>,
    /// What its servers can prove to be, and one of which is enough, where they are called by TLS that is not the mesh's
    /// (the same field, as it is written).
    pub names: Vec<String>,
    /// Who sees it.
    pub visibility: Visibility,
    /// What carries the endpoint of a session, where requests of one stay at theirs.
    pub session: Option<Session>,
    /// Whether endpoints in a client's zone go first (`trafficDistribution`).
    pub prefers_near: bool,
    /// The object.
    pub meta: Meta,
}

impl Service {
    /// The port of this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Takes in another one of the same host and namespace, where both are parts of one service: ServiceEntries that agree
    /// on all but ports and endpoints (Istio: canMergeServices). Returns the ports that both have: the first one's count.
    pub fn merge(&mut self, other: &Service) -> Option<Vec<u16>> {
        let is_entry = |service: &Service| service.meta.kind == ObjectKind::ServiceEntry;
        let agree = is_entry(self)
            && is_entry(other)
            && self.discovery == other.discovery
            && self.selector == other.selector
            && self.visibility == other.visibility;
        if !agree {
            return None;
        }
        let (both, new): (Vec<&ServicePort>, Vec<&ServicePort>) =
            other.ports.iter().partition(|port| self.port(port.number).is_some());
        let new_numbers: Arc<[u16]> = new.iter().map(|port| port.number).collect();
        let own_numbers: Arc<[u16]> = self.ports.iter().map(|port| port.number).collect();
        for endpoint in self.endpoints.iter_mut().filter(|endpoint| endpoint.of_ports.is_none()) {
            endpoint.of_ports = Some(own_numbers.clone());
        }
        let endpoints = other.endpoints.iter().cloned();
        self.endpoints
            .extend(endpoints.map(|endpoint| WrittenEndpoint { of_ports: Some(new_numbers.clone()), ..endpoint }));
        self.peers.extend(other.peers.iter().cloned());
        self.names.extend(other.names.iter().cloned());
        self.addresses.extend(other.addresses.iter().copied());
        let both = both.into_iter().map(|port| port.number).collect();
        self.ports.extend(new.into_iter().cloned());
        Some(both)
    }

    /// Whether workloads can register themselves as its endpoints.
    pub fn takes_registrations(&self) -> bool {
        self.selector.is_some() && self.discovery == Discovery::Registry
    }

    /// Whether its own labels say what its sessions stay by.
    pub fn has_session_labels(&self) -> bool {
        matches!(service::session(&self.meta.labels), Ok(Some(_)))
    }

    /// Whether a workload with these labels is an endpoint.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.as_ref().is_some_and(|selector| is_subset(selector, labels))
    }

    /// Of services with the same host, a client takes the one of its own namespace, then a Kubernetes
    /// service, then the oldest.
    pub fn rank<'a>(&'a self, client_namespace: &str) -> impl Ord + 'a {
        let is_foreign = &*self.namespace != client_namespace;
        let is_entry = self.meta.kind != ObjectKind::Service;
        (is_foreign, is_entry, self.meta.order())
    }
}

/// Whether all of these labels are among those.
pub fn is_subset(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The service that a Kubernetes `Service` declares.
pub fn of_service(object: &Object<service::Service>) -> Service {
    let Object { meta, spec } = object;
    let is_tcp = |port: &&service::Port| port.protocol.as_deref().is_none_or(|text| text == "TCP");
    let ports = spec.ports.iter().filter(is_tcp).map(|port| {
        let number = port.port.0;
        ServicePort {
            number,
            name: port.name.as_str().into(),
            protocol: protocol::of_service_port(port.app_protocol.as_deref(), &port.name, number),
            target: match &port.target_port {
                Some(TargetPort::Number(target)) => Target::Number(target.0),
                Some(TargetPort::Name(name)) => Target::Name(name.as_str().into()),
                Some(TargetPort::Same) | None => Target::Number(number),
            },
        }
    });
    let is_external = spec.service_type.as_deref() == Some("ExternalName");
    let external = spec.external_name.as_ref().filter(|_| is_external);
    let external = external.map(|name| plain(name));
    Service {
        host: service_host(&meta.name, &meta.namespace).into(),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        addresses: Vec::new(),
        // Those of an alias are those of the real host.
        ports: ports.filter(|_| external.is_none()).collect(),
        discovery: if external.is_some() { Discovery::Dns } else { Discovery::Registry },
        selector: (!spec.selector.is_empty() && external.is_none()).then(|| spec.selector.clone()),
        endpoints: external.iter().map(|name| dns_endpoint(name, meta)).collect(),
        is_internal: true,
        peers: Vec::new(),
        names: Vec::new(),
        alias: external.map(Arc::from),
        visibility: Visibility::new(service::exported_to(&meta.annotations), &meta.namespace),
        session: service::session(&meta.labels).ok().flatten(),
        prefers_near: matches!(
            spec.traffic_distribution.as_deref(),
            Some("PreferClose" | "PreferSameZone" | "PreferSameNode")
        ),
        meta: meta.clone(),
    }
}

/// The services that a `ServiceEntry` declares, one for each host.
pub fn of_entry(object: &Object<ServiceEntry>, domain: &TrustDomain) -> Vec<Service> {
    let Object { meta, spec } = object;
    let ports: Vec<ServicePort> = spec
        .ports
        .iter()
        .filter(|port| !port.protocol.as_deref().is_some_and(|protocol| protocol.eq_ignore_ascii_case("udp")))
        .map(|port| {
            let number = port.number.0;
            ServicePort {
                number,
                name: port.name.as_str().into(),
                protocol: protocol::of_entry_port(port.protocol.as_deref(), &port.name, number),
                target: Target::Number(port.target_port.map_or(number, |target| target.0)),
            }
        })
        .collect();
    let is_internal = spec.location == service_entry::Location::Internal;
    let endpoints = spec.endpoints.iter();
    let endpoints: Vec<WrittenEndpoint> = endpoints
        .filter_map(|entry| WrittenEndpoint::new(entry, meta, entry.labels.clone(), is_internal, domain))
        .collect();
    let all_ips = !endpoints.is_empty() && endpoints.iter().all(|endpoint| endpoint.ip().is_some());
    let discovery = match spec.resolution {
        service_entry::Resolution::None => Discovery::Passthrough,
        service_entry::Resolution::DynamicDns => Discovery::Dynamic,
        service_entry::Resolution::Static => Discovery::Registry,
        // There is nothing to ask DNS for.
        service_entry::Resolution::Dns | service_entry::Resolution::DnsRoundRobin if all_ips => Discovery::Registry,
        service_entry::Resolution::Dns => Discovery::Dns,
        service_entry::Resolution::DnsRoundRobin => Discovery::LogicalDns,
    };
    let visibility = Visibility::new(spec.export_to.iter().map(|text| text.as_str()), &meta.namespace);
    spec.hosts
        .iter()
        .map(|host| {
            // It stands for itself, dot or no dot.
            let host: Arc<str> = plain(host).into();
            let by_host = matches!(discovery, Discovery::Dns | Discovery::LogicalDns)
                && endpoints.is_empty()
                && spec.workload_selector.is_none();
            Service {
                endpoints: match by_host {
                    true => vec![dns_endpoint(&host, meta)],
                    false => endpoints.clone(),
                },
                host,
                name: meta.name.clone(),
                namespace: meta.namespace.clone(),
                addresses: match discovery {
                    discovery if discovery.is_of_caller() => Vec::new(),
                    _ => spec.addresses.iter().filter_map(|text| Subnet::parse(text)).collect(),
                },
                ports: ports.clone(),
                discovery,
                alias: None,
                selector: spec.workload_selector.as_ref().map(|selector| selector.labels.clone()),
                is_internal,
                peers: spec.subject_alt_names.iter().filter_map(|name| name.parse().ok()).collect(),
                names: spec.subject_alt_names.clone(),
                visibility: visibility.clone(),
                session: service::session(&meta.labels).ok().flatten(),
                prefers_near: false,
                meta: meta.clone(),
            }
        })
        .collect()
}

fn dns_endpoint(name: &str, meta: &Meta) -> WrittenEndpoint {
    WrittenEndpoint {
        address: name.into(),
        ports: BTreeMap::new(),
        labels: Arc::default(),
        weight: 1,
        locality: Default::default(),
        workload: meta.name.clone(),
        namespace: meta.namespace.clone(),
        mutual_tls: false,
        identity: None,
        of_ports: None,
        object: meta.id(),
        origin: meta.origin.clone(),
    }
}
