//! The meaning of the configuration: what a client in some namespace, with some labels, is to do when it
//! calls a host and port.
//!
//! `route`, `text`, `traffic` and `view` are that meaning, and all that rendering reads; the others make it of Istio's
//! objects.

pub mod access;
pub mod authorizer;
pub mod backend_tls;
pub mod backend_traffic;
pub mod compile;
pub mod connections;
pub mod delegate;
pub mod destination_rules;
pub mod filters;
pub mod gateway_api;
pub mod gateways;
pub mod limits;
pub mod locality;
pub mod mesh;
pub mod outbound;
pub mod paths;
pub mod retry;
mod rivals;
pub mod route;
pub mod secrets;
pub mod security;
pub mod shadow;
pub mod sidecars;
pub mod split;
pub mod telemetry;
pub mod text;
pub mod tokens;
pub mod tracing;
pub mod traffic;
pub mod view;
pub mod virtual_services;
mod workloads;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_core::identity::TrustDomain;

use crate::config::extensions as config;
use crate::config::istio::virtual_service::Subnet;
use crate::config::{Diagnostic, Objects, Origin};
use crate::registry::host::{candidates, covers, split_port};
use crate::registry::protocol::Protocol;
use crate::registry::{Service, ServiceId, ServicePort, Services};
use backend_tls::BackendTls;
use backend_traffic::BackendTraffic;
use compile::Surroundings;
use connections::{Addressed, Connections};
use destination_rules::{Around, DestinationRules, MergedRule};
use filters::Filters;
use gateway_api::{GatewayRoutes, TargetStatus};
use gateways::Gateways;
use limits::Limits;
use mesh::MeshSettings;
use outbound::OutboundTrafficPolicy;
use paths::PathNormalization;
use route::{
    Action, Body, ClusterKey, Condition, Fallback, Faults, Forward, HeaderChanges, PathRewrite, Response, Retry, Route,
    Target, Written,
};
use secrets::Secrets;
use security::Security;
use sidecars::{Scope, Sidecars, Sight};
use telemetry::{Side, Telemetries};
use traffic::{Bound, HashedBy, Roots, Tls, TrafficPolicy};
use view::View;
use virtual_services::VirtualServices;

/// Everything that the configuration says, ready to be asked. Immutable.
#[derive(Debug, Default)]
pub struct Policy {
    /// The services.
    pub services: Services,
    /// The routing rules.
    pub virtual_services: VirtualServices,
    /// Where gateways listen.
    pub gateways: Gateways,
    /// The routes of Gateway API.
    pub gateway_routes: GatewayRoutes,
    /// The rules on how to call.
    pub destination_rules: DestinationRules,
    /// Which Services are called by TLS where no such rule says how.
    pub backend_tls: BackendTls,
    /// How many retries Services get where no such rule says anything of that.
    pub backend_traffic: BackendTraffic,
    /// What clients see.
    pub sidecars: Sidecars,
    /// What becomes of calls to hosts that none of them describes.
    outbound: OutboundTrafficPolicy,
    /// Whether there is something that cannot be read, and may describe any host.
    is_held_back: bool,
    /// What servers make of the paths of their requests.
    pub paths: PathNormalization,
    /// The settings of the mesh.
    pub mesh: MeshSettings,
    /// What guards workloads.
    pub security: Security,
    /// What is told of requests.
    pub telemetries: Telemetries,
    /// How many requests there may be.
    pub limits: Limits,
    /// Filters that applications have compiled in.
    pub filters: Filters,
    /// Certificates, keys and authorities that objects name.
    pub secrets: Secrets,
    /// The trust domain whose authority gives workloads their certificates; `None` where there is none, and so no mutual
    /// TLS.
    pub trust_domain: Option<TrustDomain>,
    label_keys: BTreeSet<String>,
    /// Host and subset of every destination that some rule names.
    destinations: HashSet<(Arc<str>, Arc<str>)>,
    /// The routes that were asked for last.
    lately: Mutex<Option<Lately>>,
}

/// The routes of an address, as clients of a view see them.
type Lately = (Address, View, Arc<Vec<Route>>);

/// What a client means by `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The full host name.
    pub host: Arc<str>,
    /// The port.
    pub port: u16,
}

/// A cluster as a client sees it.
#[derive(Debug)]
pub struct Cluster<'a> {
    /// What it is of.
    pub key: ClusterKey,
    /// The service's place among all services.
    pub id: ServiceId,
    /// The service.
    pub service: &'a Arc<Service>,
    /// The port.
    pub port: ServicePort,
    /// The rule in force.
    pub rule: Option<&'a Arc<MergedRule>>,
    /// Whether a Secret that the rule names is for the client: one that the rule names, or a gateway of its namespace.
    pub has_secret: bool,
    /// The labels of the subset.
    pub labels: Option<Arc<BTreeMap<String, String>>>,
    /// How to call it.
    pub traffic: TrafficPolicy,
    /// The BackendTLSPolicy that says by which TLS, and where that is written; `None` where something else decides.
    pub tls_policy: Option<(&'a Arc<str>, &'a Origin)>,
    /// Where the XBackendTrafficPolicy says how many retries it gets; `None` where something else decides.
    pub budget_policy: Option<&'a Origin>,
    /// Who answers where it has nothing healthy.
    pub fallback: Option<Fallback>,
    /// Nobody knows how to call it, for an object that says so is wrong: it has no endpoints.
    pub is_refused: bool,
}

impl Cluster<'_> {
    /// Whether requests travel over HTTP/2, whoever makes them.
    pub fn is_http2(&self) -> bool {
        self.port.protocol.is_http2() || self.traffic.connection_pool.upgrades_to_http2 == Some(true)
    }
}

/// What the rest of the configuration says of a cluster that a route leads to.
struct OfDestination {
    /// Why nobody knows how to call it.
    refused: Option<Arc<str>>,
    /// Whether another cluster stands in for it.
    falls_back: bool,
    /// What requests are hashed by, there and where it falls back to.
    hashed_by: Vec<HashedBy>,
}

impl Policy {
    /// The meaning of these objects, and what is to be said about them.
    pub fn new(objects: &Objects, mesh: MeshSettings) -> (Policy, Vec<Diagnostic>) {
        let exported = mesh.exported(objects);
        let objects = exported.as_ref().unwrap_or(objects);
        let (mut services, mut found) = Services::new(objects, &mesh.fixed.trust_domain);
        let (backend_traffic, about_traffic) = BackendTraffic::new(objects, &mut services);
        found.extend(about_traffic);
        let (virtual_services, conflicts) = VirtualServices::new(&objects.virtual_services, &objects.refused);
        found.extend(conflicts);
        let secrets = Secrets::new(objects);
        let (gateway_routes, about_routes) = GatewayRoutes::new(objects, &services, &secrets, &mesh);
        found.extend(about_routes);
        let (destination_rules, conflicts) =
            DestinationRules::new(&objects.destination_rules, &objects.refused, &mesh.fixed.root_namespace);
        found.extend(conflicts);
        let (backend_tls, about_policies) = BackendTls::new(objects, &services);
        found.extend(about_policies);
        let label_keys = virtual_services.label_keys.union(&destination_rules.label_keys).cloned().collect();
        let destinations = virtual_services.destinations().flat_map(|(host, subset, namespace)| {
            let real = services.real(&host, namespace);
            [Some(host.into()), real].into_iter().flatten().map(move |host| (host, subset.clone()))
        });
        let destinations = destinations.chain(gateway_routes.destinations()).collect();
        let (sidecars, conflicts) = Sidecars::new(&objects.sidecars, &mesh.fixed.root_namespace);
        found.extend(conflicts);
        let security = Security::new(objects, &mesh);
        let (telemetries, conflicts) = Telemetries::new(objects, &mesh.fixed.root_namespace);
        found.extend(conflicts);
        let limits = Limits::new(objects, &mesh.fixed.root_namespace);
        let filters = Filters::new(objects, &mesh.fixed.root_namespace);
        let policy = Policy {
            limits,
            filters,
            secrets,
            services,
            virtual_services,
            gateways: Gateways::new(objects, &gateway_routes.gateways),
            gateway_routes,
            destination_rules,
            backend_tls,
            backend_traffic,
            sidecars,
            outbound: mesh.outbound,
            is_held_back: false,
            paths: mesh.paths,
            mesh,
            security,
            telemetries,
            label_keys,
            destinations,
            lately: Mutex::default(),
            trust_domain: None,
        };
        found.extend(policy.rivals());
        (policy, found)
    }

    /// What became of each policy of Gateway API at each of its targets.
    pub fn target_statuses(&self) -> impl Iterator<Item = &TargetStatus> {
        self.backend_tls.statuses.iter().chain(&self.backend_traffic.statuses)
    }

    /// A client, reduced to what can change what it is told.
    pub fn view(&self, namespace: &Arc<str>, labels: &BTreeMap<String, String>) -> View {
        let sidecar = self.sidecars.of(namespace, labels);
        let telemetry = self.telemetries.of(namespace, labels, &self.services);
        let limits = self.limits.of(namespace, labels, &self.services, Side::Client);
        let filters = self.filters.of(namespace, labels, &self.services, Side::Client);
        let view = View {
            namespace: namespace.clone(),
            labels: Arc::default(),
            is_gateway: false,
            sidecar,
            telemetry,
            limits,
            filters,
        };
        if self.label_keys.is_empty() {
            return view;
        }
        let kept = labels.iter().filter(|(key, _)| self.label_keys.contains(*key));
        let labels = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
        View { labels: Arc::new(labels), ..view }
    }

    /// What the Sidecar of a client says, where one is for it.
    pub fn scope(&self, view: &View) -> Option<&Scope> {
        self.sidecars.get(view.sidecar?)
    }

    /// What a client sees of objects that rule hosts.
    fn sight<'a>(&'a self, view: &'a View) -> Sight<'a> {
        Sight { namespace: &view.namespace, scope: self.scope(view) }
    }

    /// Whether a client's Sidecar has this host: as a service, or as what only a rule names.
    pub(crate) fn is_imported(&self, host: &str, view: &View) -> bool {
        let Some(scope) = self.scope(view) else { return true };
        if let Some((_, service)) = self.services.find(host, &view.namespace) {
            return scope.imports(&view.namespace, &service.namespace, host);
        }
        // Rules that are not seen are not found; without any, nobody says anything of the host.
        self.virtual_services.find(host, &view.namespace).is_none()
            || self.virtual_services.find(host, self.sight(view)).is_some()
    }

    /// What a client means by a target as the application wrote it, `host:port` or `host`.
    ///
    /// The name as it is written goes before those that it may be short for, and under each name a service or a rule
    /// of exactly that name first; then a name that a rule's wildcard gives routes to, then a service whose wildcard
    /// covers it. A rule without a route for this client counts only where there is nothing else. An alias is what it
    /// stands for. Without a port, it is 80 or else the service's only port.
    pub fn resolve(&self, target: &str, view: &View) -> Option<Address> {
        let (host, port) = split_port(target)?;
        let of_address = self.of_address(host, view);
        let host = of_address.as_deref().unwrap_or(host);
        let mut names = candidates(host, &view.namespace);
        names.retain(|name| self.is_imported(name, view));
        let is_refused = |name: &str| self.services.refused(name, &view.namespace).is_some();
        let has_rules = |name: &str| {
            let address = Address { host: name.into(), port: port.unwrap_or(80) };
            !self.ruled(name, address.port, view).is_empty() || !self.connections(&address, view).is_empty()
        };
        let exact = names.iter().find(|name| {
            self.services.exact(name, &view.namespace).is_some()
                || is_refused(name)
                || self.virtual_services.names_exactly(name, self.sight(view)) && has_rules(name)
        });
        let named = || names.iter().filter(|name| self.virtual_services.names(name, self.sight(view)));
        let ruled = || named().find(|name| has_rules(name));
        let covered = || names.iter().find(|name| self.services.find(name, &view.namespace).is_some());
        let host = exact.or_else(ruled).or_else(covered).or_else(|| named().next())?;
        let host = self.services.real(host, &view.namespace)?;
        let service = self.services.find(&host, &view.namespace).map(|(_, service)| service);
        let service = service.filter(|_| !is_refused(&host));
        let port = match (port, service) {
            (Some(port), Some(service)) => service.port(port)?.number,
            (None, Some(service)) => match service.ports.as_slice() {
                [only] => only.number,
                _ => service.port(80)?.number,
            },
            (port, None) => port.unwrap_or(80),
        };
        Some(Address { host, port })
    }

    /// Where else a target may be that does not exist for a client: at which ports, or in which namespaces. Only what
    /// the client sees is told.
    pub fn absence(&self, target: &str, view: &View) -> Option<String> {
        /// How many services are named.
        const MOST: usize = 5;
        let ports = |service: &Service| {
            let numbers: Vec<_> = service.ports.iter().map(|port| port.number.to_string()).collect();
            match numbers.as_slice() {
                [only] => format!("port {only}"),
                _ => format!("ports {}", numbers.join(", ")),
            }
        };
        if let Some(why) = self.hidden(target, view) {
            return Some(why);
        }
        let (host, port) = split_port(target)?;
        let names = candidates(host, &view.namespace);
        if let Some((_, service)) = names.iter().find_map(|name| self.services.find(name, &view.namespace)) {
            let real = self.services.real(&service.host, &view.namespace);
            let real = real.and_then(|real| Some(self.services.find(&real, &view.namespace)?.1));
            let (host, port) = (&service.host, port.unwrap_or(80));
            return Some(match (&service.alias, real) {
                (None, _) => format!("the host {host} has no port {port}, it has {}", ports(service)),
                (Some(_), Some(real)) => {
                    format!(
                        "the host {host} is an alias of {}, which has no port {port}, it has {}",
                        real.host,
                        ports(real)
                    )
                }
                (Some(alias), None) => format!("the host {host} is an alias of {alias}, which nothing describes"),
            });
        }
        let name = names.first()?.split('.').next()?;
        let elsewhere = self.services.namesakes(name, &view.namespace).take(MOST);
        let elsewhere = elsewhere.map(|service| format!("{name}.{} ({})", service.namespace, ports(service)));
        let elsewhere: Vec<_> = elsewhere.collect();
        if elsewhere.is_empty() {
            return None;
        }
        Some(format!("namespace {} has no host {host:?}, there is {}", view.namespace, elsewhere.join(", ")))
    }

    /// Whether an address is one that exists for a client, so that it has routes.
    pub fn exists(&self, address: &Address, view: &View) -> bool {
        self.services.refused(&address.host, &view.namespace).is_some()
            || self.closed_alias(&address.host, view).is_some()
            || self.has_cluster(address, view)
            || self.services.find(&address.host, &view.namespace).is_none()
                && self.virtual_services.names(&address.host, self.sight(view))
    }

    /// The routes of an address: those of the rules in force for it, or the one to the service itself. Rules that are all
    /// for other clients or ports count for nothing (Istio: buildSidecarVirtualHostsForVirtualService); where there is no
    /// service either, there is no route. A route that leads only to where nobody knows how to call fails.
    ///
    /// The last answer is remembered: whoever asks for a listener asks for its routes next, and there may be thousands.
    pub fn routes(&self, address: &Address, view: &View) -> Arc<Vec<Route>> {
        let lately = || self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            lately().as_ref().filter(|(of, by, _)| of == address && by == view).map(|(.., routes)| routes.clone());
        known.unwrap_or_else(|| {
            // Not a slice: there may be thousands, which would be copied into it.
            let routes = Arc::new(self.compiled_routes(address, view));
            *lately() = Some((address.clone(), view.clone(), routes.clone()));
            routes
        })
    }

    /// The same, made anew.
    pub fn compiled_routes(&self, address: &Address, view: &View) -> Vec<Route> {
        let mut routes = self.ruled(&address.host, address.port, view);
        let is_refused = || {
            self.services.refused(&address.host, &view.namespace).is_some()
                || self.closed_alias(&address.host, view).is_some()
        };
        if routes.is_empty() && (is_refused() || self.has_cluster(address, view)) {
            routes = vec![default_route(address, self.mesh.retry.clone())];
        }
        for route in &mut routes {
            let Action::Forward(forward) = &mut route.action else { continue };
            let targets = forward.targets.iter_mut().map(|target| &mut target.cluster);
            for key in targets.chain(forward.mirrors.iter_mut().map(|(key, _)| key)) {
                self.as_called(key, address, view);
            }
        }
        self.finished(routes, view)
    }

    /// A destination with a wildcard whose calls go to what they ask for is the address that is called, where that is one
    /// of its hosts: nobody can look a wildcard up.
    fn as_called(&self, key: &mut ClusterKey, address: &Address, view: &View) {
        if !key.host.starts_with('*') {
            return;
        }
        let of = |host: &str| self.services.find(host, &view.namespace);
        if let (Some((id, service)), Some((called, _))) = (of(&key.host), of(&address.host))
            && service.discovery.is_of_caller()
            && id == called
        {
            key.host.clone_from(&address.host);
        }
    }

    /// Routes, with what the rest of the configuration says of where they lead.
    fn finished(&self, mut routes: Vec<Route>, view: &View) -> Vec<Route> {
        // Many routes lead to few clusters.
        let mut known: HashMap<ClusterKey, Rc<OfDestination>> = HashMap::new();
        for route in &mut routes {
            let Action::Forward(forward) = &mut route.action else { continue };
            let mut destinations = Vec::with_capacity(forward.targets.len());
            for target in &mut forward.targets {
                let of = known.entry(target.cluster.clone());
                let of = of.or_insert_with_key(|key| Rc::new(self.of_destination(key, view)));
                target.falls_back = of.falls_back;
                destinations.push(Rc::clone(of));
            }
            if let Some(first) = destinations.first()
                && destinations.iter().all(|of| of.refused.is_some())
                && let Some(reason) = &first.refused
            {
                route.action = Action::Fail(Arc::clone(reason));
                continue;
            }
            let mut hashed_by: Vec<HashedBy> = Vec::new();
            for by in destinations.iter().flat_map(|of| &of.hashed_by) {
                if !hashed_by.contains(by) {
                    hashed_by.push(by.clone());
                }
            }
            forward.hashed_by = hashed_by;
            // Who is to be found by a hash is asked again (Istio: retry.go).
            if let ([_], [_, ..], Some(retry)) = (&*forward.targets, &*forward.hashed_by, &mut forward.retry) {
                retry.avoids_tried.get_or_insert(false);
            }
        }
        routes
    }

    /// Of each of the routes of an address, in their order, the rule that it is made of; `None` for the one to the service.
    pub fn rules_of_routes(&self, address: &Address, view: &View) -> Vec<Option<Written>> {
        self.routes(address, view).iter().map(|route| route.written.clone()).collect()
    }

    /// Where connections to an address go whose bytes are not HTTP: by the rules in force for them, or else to the service
    /// itself, where applications speak something else than HTTP to it. None where they go as requests do.
    pub fn connections(&self, address: &Address, view: &View) -> Vec<Connections> {
        let of_service = self.service_port(&address.host, address.port, view);
        let key = ClusterKey { host: address.host.clone(), port: address.port, subset: "".into() };
        let entry = self.virtual_services.find(&address.host, self.sight(view));
        let protocol = of_service.as_ref().map(|(_, _, port)| port.protocol);
        let is_tls = match protocol {
            Some(Protocol::Unspecified) | None => None,
            Some(protocol) => Some(matches!(protocol, Protocol::Tls | Protocol::Https)),
        };
        // Who is wrong has no rules, and its host answers with the reason.
        if self.refuses_connections(address, view) {
            return Vec::new();
        }
        let to = Addressed { port: address.port, addresses: &self.addresses_of(address, view), is_tls, gateway: None };
        let service_of = |host: &str| self.ports_of(host, view);
        let object = entry.and_then(|entry| entry.object.as_ref());
        let mut ways = object.map(|object| connections::ways(object, view, &to, &service_of)).unwrap_or_default();
        let is_raw = matches!(protocol, Some(Protocol::Tcp | Protocol::Tls | Protocol::Https));
        let leads_on = || self.cluster(key.clone(), view).is_some_and(|seen| seen.traffic.tunnel.is_some());
        // Names that no rule has lead nowhere where there are rules for others.
        if ways.is_empty() && (is_raw || leads_on()) {
            let (name, server_names) = ("default".to_owned(), Vec::new());
            ways.push(Connections { name, server_names, targets: vec![(key, 1)], idle_timeout: None, tunnel: None });
        }
        for way in &mut ways {
            for (key, _) in &mut way.targets {
                self.as_called(key, address, view);
            }
            // As for Istio's weighted clusters, the first one decides.
            let first = way.targets.first().and_then(|(key, _)| self.cluster(key.clone(), view));
            way.idle_timeout = first.as_ref().and_then(|seen| seen.traffic.connection_pool.tcp_idle_timeout);
            way.tunnel = first.and_then(|seen| seen.traffic.tunnel);
        }
        ways
    }

    /// The VirtualService that a client sees for a host.
    pub fn rule_of(&self, host: &str, view: &View) -> Option<&virtual_services::Entry> {
        self.virtual_services.find(host, self.sight(view)).map(|entry| &**entry)
    }

    /// The objects that say how a host is called, whoever they are for, wrong ones among them: `Kind namespace/name`.
    pub fn rules_on(&self, host: &str) -> BTreeSet<String> {
        let routing =
            self.virtual_services.iter().filter(|entry| entry.hosts.iter().any(|pattern| covers(pattern, host)));
        let calling = self.destination_rules.of_host(host).map(|rule| &rule.meta);
        let metas = routing.map(|entry| &entry.meta).chain(calling).chain(self.gateway_routes.on(host));
        metas.map(|meta| meta.id().to_string()).collect()
    }

    /// Whether what says where connections to an address go is wrong.
    pub fn refuses_connections(&self, address: &Address, view: &View) -> bool {
        let key = ClusterKey { host: address.host.clone(), port: address.port, subset: "".into() };
        let entry = self.virtual_services.find(&address.host, self.sight(view));
        self.refusal(&key, view).is_some()
            || entry.is_some_and(|entry| entry.object.is_none())
            || self.gateway_table(&address.host, address.port, view).is_some_and(|table| table.is_refused())
    }

    /// The addresses that are known of an address: itself, where it is one.
    fn addresses_of(&self, address: &Address, view: &View) -> Vec<IpAddr> {
        let service = self.services.find(&address.host, &view.namespace).map(|(_, service)| service);
        let of_service = service.iter().flat_map(|service| &service.addresses).filter_map(Subnet::address);
        address.host.parse().ok().into_iter().chain(of_service).collect()
    }

    /// The host of the service that a client means by an address, unless something has it as its own host.
    fn of_address(&self, host: &str, view: &View) -> Option<Arc<str>> {
        let address: IpAddr = host.parse().ok()?;
        let is_host = self.services.exact(host, &view.namespace).is_some()
            || self.virtual_services.names_exactly(host, self.sight(view));
        let service = (!is_host).then(|| self.services.of_address(address, &view.namespace)).flatten()?;
        Some(Arc::clone(&service.host))
    }

    fn of_destination(&self, key: &ClusterKey, view: &View) -> OfDestination {
        let stand_in = self.stand_in(key, view);
        let falls_back = stand_in.is_some();
        let clusters = std::iter::once(key.clone()).chain(stand_in);
        let hashed_by = clusters.filter_map(|cluster| self.cluster(cluster, view)?.traffic.hashed_by).collect();
        OfDestination { refused: self.refusal(key, view), falls_back, hashed_by }
    }

    /// The cluster that stands in for one that has nothing healthy.
    fn stand_in(&self, key: &ClusterKey, view: &View) -> Option<ClusterKey> {
        match self.cluster(key.clone(), view)?.fallback? {
            Fallback::To(other) => Some(other),
            Fallback::Respond(_) => None,
        }
    }

    /// What a rule says of a cluster that has nothing healthy. The service is named as a client in the rule's namespace
    /// would call it, by default at the same port, or else at its only one; nothing stands in for itself.
    pub fn fallback(&self, rule: &MergedRule, key: &ClusterKey) -> Option<Fallback> {
        let (target, subset) = match rule.meta.extensions.fallback.as_ref()? {
            config::Fallback::Response { status, body } => {
                let body = if body.is_empty() { Body::Empty } else { Body::Text(body.clone()) };
                return Some(Fallback::Respond(Response { status: u32::from(*status), body }));
            }
            config::Fallback::Service { target, subset } => (target, subset),
        };
        let view = View::of_namespace(&rule.meta.namespace);
        let address = match split_port(target)? {
            (_, Some(_)) => self.resolve(target, &view)?,
            (host, None) => {
                let at_same_port = self.resolve(&format!("{host}:{}", key.port), &view);
                at_same_port.or_else(|| self.at_only_port(host, &view))?
            }
        };
        let other = ClusterKey { host: address.host, port: address.port, subset: subset.as_str().into() };
        (other != *key).then_some(Fallback::To(other))
    }

    /// What a host without a port means where its service has one port and no more.
    fn at_only_port(&self, host: &str, view: &View) -> Option<Address> {
        let address = self.resolve(host, view)?;
        let (_, service) = self.services.find(&address.host, &view.namespace)?;
        (service.ports.len() == 1).then_some(address)
    }

    /// Whether what stands in for a cluster is something: the client sees its service, and that has the port and the subset.
    pub fn is_there(&self, fallback: &Fallback, view: &View) -> bool {
        let Fallback::To(key) = fallback else { return true };
        let Some((_, service, _)) = self.service_port(&key.host, key.port, view) else { return false };
        let rule = || self.destination_rules.find(&key.host, &service.namespace, view);
        key.subset.is_empty() || rule().is_some_and(|rule| rule.has_subset(&key.subset))
    }

    fn of_virtual_service(&self, host: &str, port: u16, view: &View) -> Vec<Route> {
        let Some(entry) = self.virtual_services.find(host, self.sight(view)) else { return Vec::new() };
        self.compile(view, |around| compile::routes(&entry.rules, view, port, around))
    }

    /// Every route that the rules of a VirtualService can be, to the first port of its first host, as its own namespace sees what
    /// they name: for most of them, what clients get.
    pub fn routes_of_anybody(&self, entry: &virtual_services::Entry) -> Vec<Route> {
        let view = View::of_namespace(&entry.meta.namespace);
        let ports = entry.hosts.first().and_then(|host| self.ports_of(host, &view));
        let port = ports.and_then(|(_, ports)| ports.first().copied()).unwrap_or(80);
        self.compile(&view, |around| compile::routes_of_anybody(&entry.rules, port, around))
    }

    /// Reads rules as a client of this view does.
    fn compile(&self, view: &View, rules: impl FnOnce(&Surroundings<'_>) -> Vec<Route>) -> Vec<Route> {
        // Many routes lead to few hosts.
        let known = RefCell::new(HashMap::<String, Option<_>>::new());
        let service_of = |host: &str| {
            let found = known.borrow().get(host).cloned();
            found.unwrap_or_else(|| {
                let found = self.ports_of(host, view);
                known.borrow_mut().insert(host.to_owned(), found.clone());
                found
            })
        };
        rules(&Surroundings { service_of: &service_of, default_retry: self.mesh.retry.as_ref(), gateway: None })
    }

    /// The host that a full name stands for, and its ports.
    fn ports_of(&self, host: &str, view: &View) -> Option<(Arc<str>, Vec<u16>)> {
        let host = self.services.real(host, &view.namespace)?;
        let service = self.services.find(&host, &view.namespace);
        let ports = service.map(|(_, service)| service.ports.iter().map(|port| port.number).collect());
        Some((host, ports.unwrap_or_default()))
    }

    /// Whether the address is one of a service.
    fn has_cluster(&self, address: &Address, view: &View) -> bool {
        self.service_port(&address.host, address.port, view).is_some()
    }

    /// The service behind a host and port. A host that only an alias speaks of is looked up in DNS; its ports are
    /// whatever is asked for. It is as unknown as any other host, and called only where these may be.
    fn service_port(&self, host: &str, port: u16, view: &View) -> Option<(ServiceId, &Arc<Service>, ServicePort)> {
        match self.services.find(host, &view.namespace) {
            Some((id, service)) => Some((id, service, service.port(port)?.clone())),
            None if self.outbound(view) == OutboundTrafficPolicy::RegistryOnly => None,
            None => {
                let (id, alias) = self.services.alias_of(host, &view.namespace)?;
                Some((id, alias, ServicePort::unnamed(port)))
            }
        }
    }

    /// The cluster of a service that is called by gRPC, as a client sees it.
    pub fn called_by_grpc(&self, host: &str, port: u16, view: &View) -> Option<ClusterKey> {
        let (_, service, at) = self.service_port(host, port, view).filter(|_| self.is_imported(host, view))?;
        let is_grpc = at.protocol.is_http2();
        is_grpc.then(|| ClusterKey { host: service.host.clone(), port, subset: "".into() })
    }

    /// Whether some rule names this as a destination, whether it exists or not.
    pub fn is_destination(&self, key: &ClusterKey) -> bool {
        self.destinations.contains(&(key.host.clone(), key.subset.clone()))
    }

    /// Every address that has a name of its own: the ports of the services that a client sees, and port 80 of a host
    /// that only a rule names.
    pub fn addresses(&self, view: &View) -> BTreeSet<Address> {
        let is_exact = |host: &str| !host.starts_with('*');
        let services = self.services.iter().map(|(_, service)| &service.host).filter(|host| is_exact(host));
        let services = services.filter(|host| self.is_imported(host, view));
        let visible = services.filter_map(|host| self.services.exact(host, &view.namespace));
        let mut addresses: BTreeSet<Address> = visible
            .flat_map(|(_, service)| {
                service.ports.iter().map(|port| Address { host: service.host.clone(), port: port.number })
            })
            .collect();
        let ruled = self.virtual_services.iter().flat_map(|entry| &entry.hosts).filter(|host| is_exact(host));
        let ruled = ruled.map(|host| Address { host: host.as_str().into(), port: 80 });
        let is_seen = |address: &Address| self.exists(address, view) && self.is_imported(&address.host, view);
        addresses.extend(ruled.filter(is_seen));
        addresses
    }

    /// What a rule and the mesh say of a cluster.
    fn traffic(&self, rule: Option<&Arc<MergedRule>>, key: &ClusterKey, service: &Service) -> TrafficPolicy {
        let mesh = &self.mesh;
        let locality =
            locality::Defaults { mesh: mesh.locality(), mesh_zones: mesh.zones(), prefers_near: service.prefers_near };
        let around = Around { locality, baseline: mesh.traffic_policy() };
        let mut traffic = match rule {
            Some(rule) => rule.traffic_policy(key, around),
            None => destination_rules::without_rule(around),
        };
        let pool = &mut traffic.connection_pool;
        pool.connect_timeout = pool.connect_timeout.or(mesh.connect_timeout());
        pool.tcp_keepalive = pool.tcp_keepalive.or(mesh.tcp_keepalive());
        // Of the mesh, ports whose protocol nobody says stay as they are (Istio: shouldH2Upgrade).
        let is_http = service.port(key.port).is_some_and(|port| port.protocol == Protocol::Http);
        pool.upgrades_to_http2 =
            pool.upgrades_to_http2.or(mesh.upgrades_to_http2().filter(|_| is_http && !pool.as_caller));
        traffic
    }

    /// Why nobody knows how to call a cluster, where an object that says so is wrong.
    fn refusal(&self, key: &ClusterKey, view: &View) -> Option<Arc<str>> {
        let of_service = self.services.refused(&key.host, &view.namespace);
        let of_rule = || {
            let (_, service) = self.services.find(&key.host, &view.namespace)?;
            self.destination_rules.find(&key.host, &service.namespace, view)?.refused()
        };
        let of_policy = || {
            let (_, service) = self.services.find(&key.host, &view.namespace)?;
            let port = service.port(key.port).map_or("", |port| &*port.name);
            let refused = self.backend_tls.of(&service.host, port)?.err()?;
            let rule = self.destination_rules.find(&key.host, &service.namespace, view);
            // A rule that says it goes first.
            (self.traffic(rule, key, service).tls == Tls::Automatic).then_some(refused)
        };
        let refused = of_service.or_else(of_rule).or_else(of_policy);
        refused.cloned().or_else(|| self.closed_alias(&key.host, view))
    }

    /// Why a host that only an alias speaks of is not called, where no undescribed host is.
    fn closed_alias(&self, host: &str, view: &View) -> Option<Arc<str>> {
        if self.outbound(view) == OutboundTrafficPolicy::AllowAny || self.services.find(host, &view.namespace).is_some()
        {
            return None;
        }
        let (_, alias) = self.services.alias_of(host, &view.namespace)?;
        let id = alias.meta.id();
        Some(format!("{id} is an alias of {host}, which nothing describes, and such hosts are not called").into())
    }

    /// A cluster, where the client sees its service, and the service has the port and the subset.
    pub fn cluster(&self, key: ClusterKey, view: &View) -> Option<Cluster<'_>> {
        let (id, service, port) = self.service_port(&key.host, key.port, view)?;
        let rule = self.destination_rules.find(&key.host, &service.namespace, view);
        let is_refused = self.refusal(&key, view).is_some();
        let labels = match &*key.subset {
            "" => None,
            _ if is_refused => None,
            name => Some(rule?.labels_of(name)?),
        };
        let labels = labels.filter(|labels| !labels.is_empty()).map(|labels| Arc::new(labels.clone()));
        let mut traffic = self.traffic(rule, &key, service);
        let is_said = traffic.tls != Tls::Automatic;
        if traffic.tls == Tls::Automatic && !self.mesh.auto_mtls {
            traffic.tls = Tls::Plaintext;
        }
        // Where the rule names nobody, the service does (Istio: cluster_tls.go).
        if let Tls::Foreign(tls) = &mut traffic.tls
            && tls.names.is_empty()
            && tls.roots != Roots::Nobody
        {
            tls.names.clone_from(&service.names);
        }
        // What no rule says, policies of Gateway API do.
        let mut tls_policy = None;
        if !is_said && let Some(Ok(tls)) = self.backend_tls.of(&service.host, &port.name) {
            traffic.tls = Tls::Foreign(Box::new(tls.clone()));
            tls_policy = self.backend_tls.place_of(&service.host, &port.name);
        }
        let mut budget_policy = None;
        if traffic.retry_budget.is_none()
            && traffic.connection_pool.max_retries == Bound::Unlimited
            && let Some((budget, origin)) = self.backend_traffic.retry_budget(&service.host)
        {
            traffic.retry_budget = Some(*budget);
            budget_policy = Some(origin);
        }
        let fallback = rule.and_then(|rule| self.fallback(rule, &key)).filter(|fallback| self.is_there(fallback, view));
        let is_own = |rule: &MergedRule| view.is_gateway && rule.meta.namespace == view.namespace;
        let has_secret = rule.is_some_and(|rule| rule.is_for_some() || is_own(rule));
        Some(Cluster {
            key,
            id,
            service,
            port,
            rule,
            has_secret,
            labels,
            traffic,
            tls_policy,
            budget_policy,
            fallback,
            is_refused,
        })
    }
}

fn default_route(address: &Address, retry: Option<Retry>) -> Route {
    let cluster = ClusterKey { host: address.host.clone(), port: address.port, subset: "".into() };
    Route {
        name: "default".to_owned(),
        condition: Condition::default(),
        action: Action::Forward(Forward {
            targets: vec![Target {
                cluster,
                weight: 1,
                headers: HeaderChanges::default(),
                authority: None,
                falls_back: false,
            }],
            rewrite: PathRewrite::None,
            authority: None,
            timeout: None,
            retry,
            hashed_by: Vec::new(),
            coalesces: false,
            sticky_split: None,
            mirrors: Vec::new(),
        }),
        faults: Faults::default(),
        cors: None,
        headers: HeaderChanges::default(),
        written: None,
    }
}
