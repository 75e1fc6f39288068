//! Gateways and routes of Kubernetes' Gateway API. Of routes that are attached to services (GAMMA): which are in force for a host as a
//! client sees it; of those of Gateways: which come to which listener, for which hosts; and what their status is.
//!
//! A route of the service's own namespace, the producer's, is for all clients. One of another namespace, a consumer's, is for
//! clients of that namespace, and for them it takes the place of all of the producer's. Routes for one host are one table, in
//! which conditions have an order of their own. Where there are GRPCRoutes, HTTPRoutes for the same port do not count.

mod compile;
mod edges;
mod filters;
mod guards;
mod listeners;
mod references;
mod status;
mod targets;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::mesh::MeshSettings;
use super::route::{Action, Route, Written};
use super::secrets::Secrets;
use super::shadow::Earlier;
use super::sidecars::Sight;
use super::virtual_services::Entry;
use crate::config::file::{Governs, Meta, ObjectKey, Objects, Parent, Refused};
use crate::config::gateway_api::{ParentKind, ParentReference};
use crate::config::locate::locate;
use crate::config::support::ObjectKind;
use crate::config::{Code, Diagnostic, Severity};
use crate::registry::host::service_host;
use crate::registry::protocol::Protocol;
use crate::registry::{Service, ServicePort, Services, Visibility};
use compile::{Compiled, connection_rules, grpc_rules, http_rules};
use edges::{AtListener, IncomingRoute};
pub use listeners::KubernetesServed;
use listeners::OwnGateway;
pub(crate) use listeners::internal_name;
use references::References;
pub(super) use status::Fault;
pub use status::{Condition, GatewayStatus, ListenerStatus, ParentStatus, TargetStatus};
pub(super) use targets::{INVALID, by_age, own_service};

/// All that are attached to something.
#[derive(Debug, Default)]
pub struct GatewayRoutes {
    by_host: HashMap<Arc<str>, Vec<Attached>>,
    by_listener: HashMap<String, Vec<AtListener>>,
    /// The Gateways that are served, each with the ListenerSets of it behind it.
    pub gateways: Vec<KubernetesServed>,
    /// What became of each Gateway and each ListenerSet of it.
    pub gateway_statuses: Vec<GatewayStatus>,
    /// What became of each route at each of its parents.
    pub statuses: Vec<ParentStatus>,
}

/// A route at one of its parents.
#[derive(Debug)]
struct Attached {
    meta: Arc<Meta>,
    is_consumer: bool,
    /// The ports that it is for; all where nothing is said.
    ports: Option<Vec<u16>>,
    rules: Arc<Vec<Compiled>>,
    /// Whether it is wrong, so that nobody knows its rules.
    is_refused: bool,
}

/// A condition of a rule of an object.
type Place = (ObjectKey, (usize, usize));

/// The table that is in force for an address.
pub struct Table<'a> {
    attached: Vec<&'a Attached>,
    /// Whether it is a consumer's own.
    pub is_consumer: bool,
    port: u16,
}

impl Attached {
    fn is_for(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }
}

impl GatewayRoutes {
    /// Those of these objects, and what is to be said about them. Of those that are wrong, requests to what they are attached
    /// to are answered with the reason. The settings of the mesh say what is tried again where a route does not.
    pub fn new(
        objects: &Objects,
        services: &Services,
        secrets: &Secrets,
        mesh: &MeshSettings,
    ) -> (GatewayRoutes, Vec<Diagnostic>) {
        let references = References::new(services, &objects.reference_grants);
        let mut all = GatewayRoutes::default();
        let mut found = Vec::new();
        let (retry, root) = (mesh.retry.as_ref(), &*mesh.fixed.root_namespace);
        let mut gateways = listeners::own_gateways(objects, services, &references, secrets, root, &mut found);
        let mut incoming = Vec::new();
        for object in &objects.http_routes {
            let rules = http_rules(object, &references, retry);
            incoming.push(IncomingRoute::new(&object.meta, object.spec.placement(), rules, &mut found));
        }
        for object in &objects.grpc_routes {
            let rules = grpc_rules(object, &references, retry);
            incoming.push(IncomingRoute::new(&object.meta, object.spec.placement(), rules, &mut found));
        }
        for object in &objects.tls_routes {
            let rules = connection_rules(&object.meta, &object.spec.rules, &references);
            incoming.push(IncomingRoute::new(&object.meta, object.spec.placement(), rules, &mut found));
        }
        for object in &objects.tcp_routes {
            let rules = connection_rules(&object.meta, &object.spec.rules, &references);
            incoming.push(IncomingRoute::new(&object.meta, object.spec.placement(), rules, &mut found));
        }
        for route in &incoming {
            all.attach(route, services, &mut found);
        }
        for object in &objects.refused {
            all.attach_refused(object, services);
        }
        all.attach_to_gateways(incoming, &mut gateways, &mut found);
        all.attach_refused_to_gateways(&objects.refused, &gateways);
        all.gateways = gateways.iter().filter_map(OwnGateway::served).collect();
        let right = gateways.iter().filter(|gateway| !gateway.is_closed());
        all.gateway_statuses = right.map(|gateway| gateway.status(services)).collect();
        report_unread(objects, &mut found);
        all.report_shadowed(&mut found);
        (all, found)
    }

    fn attach(&mut self, route: &IncomingRoute<'_>, services: &Services, found: &mut Vec<Diagnostic>) {
        let meta = &route.meta;
        let is_of_mesh = matches!(meta.kind, ObjectKind::HttpRoute | ObjectKind::GrpcRoute);
        for (index, reference) in route.parents.iter().enumerate().filter(|_| is_of_mesh) {
            let Some(kind) = reference.parent_kind() else { continue };
            let namespace = reference.namespace.as_ref().map_or(&*meta.namespace, |namespace| &namespace.value);
            let parent = Parent { kind, namespace: namespace.to_owned(), name: reference.name.value.clone() };
            let named = format!("{} {}/{}", kind.name(), parent.namespace, parent.name);
            let hosts = hosts_of(&parent, services);
            let mut unmatched = hosts.is_empty().then(|| format!("there is no {named}"));
            let mut raw = Vec::new();
            for service in &hosts {
                let ports = match ports_of(reference, service) {
                    Ok(ports) => ports,
                    Err(message) => {
                        unmatched = Some(format!("{named} has {message}"));
                        continue;
                    }
                };
                raw.extend(raw_ports(service, ports.as_deref()));
                self.by_host.entry(service.host.clone()).or_default().push(Attached {
                    meta: meta.clone(),
                    is_consumer: parent.namespace != *meta.namespace,
                    ports,
                    rules: route.rules.clone(),
                    is_refused: false,
                });
            }
            if let Some(message) = &unmatched {
                let message = format!("{message}: the route has no effect there (Accepted is False: NoMatchingParent)");
                let origin = meta.origin.at(reference.span);
                let finding = Diagnostic::at(&origin, Severity::Warning, Code::UnknownReference, message);
                found.push(finding.object(meta.id()).field(format!("parentRefs[{index}]")));
            }
            if let Some(message) = raw.into_iter().next() {
                let origin = meta.origin.at(reference.span);
                let finding = Diagnostic::at(&origin, Severity::Warning, Code::Ignored, message);
                found.push(finding.object(meta.id()).field(format!("parentRefs[{index}]")));
            }
            let unmatched = unmatched.map(|message| ("NoMatchingParent", message));
            self.statuses.push(ParentStatus::new(meta, index, named, unmatched, (&route.problems, route.count)));
        }
    }

    fn attach_refused(&mut self, object: &Refused, services: &Services) {
        let hosts: Vec<(&Service, &str)> = match &object.governs {
            Governs::Parents(parents) => {
                let of = |parent: &'_ Parent| hosts_of(parent, services).into_iter();
                parents.iter().flat_map(|parent| of(parent).map(|service| (service, &*parent.namespace))).collect()
            }
            // Its own namespace's as a producer, and all others as a consumer.
            Governs::AnyParent => services.iter().map(|(_, service)| (&**service, &*service.namespace)).collect(),
            _ => return,
        };
        let written = Written { object: object.id(), field: "rules".into(), origin: object.meta.origin.clone() };
        let rule = compile::refused(object.meta.kind, object.answer(), written);
        let (meta, rules) = (Arc::new(object.meta.clone()), Arc::new(vec![rule]));
        for (service, namespace) in hosts {
            self.by_host.entry(service.host.clone()).or_default().push(Attached {
                meta: meta.clone(),
                is_consumer: *namespace != *object.meta.namespace,
                ports: None,
                rules: rules.clone(),
                is_refused: true,
            });
        }
    }

    /// Those that are attached to a service, wrong ones among them.
    pub fn on(&self, service_host: &str) -> impl Iterator<Item = &Meta> {
        self.by_host.get(service_host).into_iter().flatten().map(|attached| &*attached.meta)
    }

    /// The table in force for a port of a service, as a client sees it: of routes that its Sidecar has, as for VirtualServices.
    pub fn find<'s>(&self, service_host: &str, port: u16, client: impl Into<Sight<'s>>) -> Option<Table<'_>> {
        let all = self.by_host.get(service_host)?;
        let client = client.into();
        let of = |is_consumer: bool| {
            let own = all.iter().filter(|attached| attached.is_consumer == is_consumer && attached.is_for(port));
            let own = own.filter(|attached| client.imports(&attached.meta.namespace, service_host));
            let mut own: Vec<&Attached> =
                own.filter(|attached| !is_consumer || *attached.meta.namespace == *client.namespace).collect();
            // A route without rules says nothing.
            own.retain(|attached| !attached.rules.is_empty());
            if own.iter().any(|attached| attached.meta.kind == ObjectKind::GrpcRoute) {
                own.retain(|attached| attached.meta.kind == ObjectKind::GrpcRoute);
            }
            own.sort_by(|a, b| a.meta.order_by_namespace().cmp(&b.meta.order_by_namespace()));
            own
        };
        let consumers = of(true);
        let is_consumer = !consumers.is_empty();
        let attached = if is_consumer { consumers } else { of(false) };
        (!attached.is_empty()).then_some(Table { attached, is_consumer, port })
    }

    /// Host and subset of every destination.
    pub fn destinations(&self) -> impl Iterator<Item = (Arc<str>, Arc<str>)> {
        let at_gateways = self.by_listener.values().flatten().map(|at| &at.rules);
        let rules = self.by_host.values().flatten().map(|attached| &attached.rules).chain(at_gateways);
        let compiled = rules.flat_map(|rules| rules.iter());
        let forwards = compiled.filter_map(|compiled| match &compiled.route.action {
            Action::Forward(forward) => Some(forward),
            _ => None,
        });
        let of_requests = forwards.flat_map(|forward| {
            let targets = forward.targets.iter().map(|target| &target.cluster);
            targets.chain(forward.mirrors.iter().map(|(cluster, _)| cluster))
        });
        let of_connections = self.by_listener.values().flatten().flat_map(|at| at.connections.iter());
        let of_connections = of_connections.map(|(cluster, _)| cluster);
        of_requests.chain(of_connections).map(|key| (key.host.clone(), key.subset.clone()))
    }

    /// Every route, object by object, each once.
    pub fn all_routes(&self) -> impl Iterator<Item = Vec<Route>> {
        let mut seen = BTreeSet::new();
        let at_gateways = self.by_listener.values().flatten().map(|at| (&at.meta, &at.rules));
        let attached = self.by_host.values().flatten().map(|attached| (&attached.meta, &attached.rules));
        let mut all: Vec<(&Arc<Meta>, &Arc<Vec<Compiled>>)> = attached.chain(at_gateways).collect();
        all.sort_by_key(|(meta, _)| meta.key());
        all.retain(|(meta, _)| seen.insert(meta.key()));
        all.into_iter().map(|(_, rules)| rules.iter().map(|compiled| compiled.route.clone()).collect())
    }

    /// The hosts that something is attached to, each with the ports that routes name, and 0 for all others, and with the
    /// namespaces of the routes.
    pub fn attached(&self) -> impl Iterator<Item = (&Arc<str>, BTreeSet<u16>, BTreeSet<&str>)> {
        self.by_host.iter().map(|(host, all)| {
            let ports = all.iter().filter_map(|attached| attached.ports.as_ref()).flatten().copied().chain([0]);
            (host, ports.collect(), all.iter().map(|attached| &*attached.meta.namespace).collect())
        })
    }

    /// Rules that never get a turn, and HTTPRoutes beside GRPCRoutes.
    fn report_shadowed(&self, found: &mut Vec<Diagnostic>) {
        let mut said = Vec::new();
        for (host, ports, clients) in self.attached() {
            let all = self.by_host.get(host).map(Vec::as_slice).unwrap_or_default();
            for port in ports {
                for client in &clients {
                    let Some(table) = self.find(host, port, *client) else { continue };
                    table.report_shadowed(&mut said);
                    let beside = all.iter().filter(|attached| {
                        attached.is_consumer == table.is_consumer
                            && attached.is_for(port)
                            && attached.meta.kind != ObjectKind::GrpcRoute
                            && (!attached.is_consumer || *attached.meta.namespace == **client)
                    });
                    let grpc = table.attached.iter().find(|attached| attached.meta.kind == ObjectKind::GrpcRoute);
                    for (attached, grpc) in beside.filter_map(|attached| Some((attached, grpc?))) {
                        let message = format!(
                            "{} ({}) is attached to the same port of {host}, where only GRPCRoutes count then",
                            grpc.meta.id(),
                            grpc.meta.origin
                        );
                        let finding = Diagnostic::at(&attached.meta.origin, Severity::Warning, Code::Conflict, message);
                        said.push(finding.object(attached.meta.id()).field("parentRefs"));
                    }
                }
            }
        }
        said.sort_by(|a, b| (&a.object, &a.field, &a.message).cmp(&(&b.object, &b.field, &b.message)));
        said.dedup();
        found.extend(said);
    }
}

/// Gateways and ListenerSets that are wrong, and of which nobody can tell which hosts are theirs.
fn report_unread(objects: &Objects, found: &mut Vec<Diagnostic>) {
    let listens = |kind| matches!(kind, ObjectKind::Gateway | ObjectKind::KubernetesGateway | ObjectKind::ListenerSet);
    for object in objects.refused.iter().filter(|object| listens(object.meta.kind)) {
        if object.closes.as_ref().is_some_and(|closes| closes.is_whole) {
            continue;
        }
        let message = "until it is right, others may have its hosts: not all of where it listens can be read";
        let origin = object.meta.origin.at(object.place);
        let finding = Diagnostic::at(&origin, Severity::Error, Code::Unenforced, message);
        found.push(finding.object(object.id()));
    }
}

/// Conditions in the order in which they are tried.
fn in_order<'a>(all: impl Iterator<Item = (&'a Meta, &'a Compiled)>) -> Vec<(&'a Meta, &'a Compiled)> {
    let mut all: Vec<(&Meta, &Compiled)> = all.collect();
    all.sort_by(|(a, x), (b, y)| {
        let of_b = (Reverse(y.rank), b.order_by_namespace(), y.position);
        (Reverse(x.rank), a.order_by_namespace(), x.position).cmp(&of_b)
    });
    all
}

/// Conditions in their order, as routes of a port.
fn routes(all: Vec<(&Meta, &Compiled)>, port: u16) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for (_, compiled) in all {
        let mut route = compiled.route.clone();
        // The port is that of the service, unless something else is said (the standard one of a scheme is not written).
        if let Action::Redirect(redirect) = &mut route.action
            && redirect.scheme.is_none()
        {
            redirect.port.get_or_insert(port);
        }
        let is_last = route.condition.is_catch_all();
        routes.push(route);
        if is_last {
            break;
        }
    }
    routes
}

/// Whether a VirtualService with this host counts and a producer's route does not, as in Istio (push_context.go): if only some
/// namespaces see it, or else if it is older, or else by its name.
pub fn goes_before(entry: &Entry, route: &Meta) -> bool {
    matches!(entry.visibility, Visibility::Namespaces(_)) || entry.meta.order() < route.order()
}

impl Table<'_> {
    /// The object that competes with others.
    pub fn meta(&self) -> Option<&Meta> {
        self.attached.first().map(|attached| &*attached.meta)
    }

    /// All of its objects.
    pub fn metas(&self) -> impl Iterator<Item = &Meta> {
        self.attached.iter().map(|attached| &*attached.meta)
    }

    /// Whether something of it is wrong.
    pub fn is_refused(&self) -> bool {
        self.attached.iter().any(|attached| attached.is_refused)
    }

    fn in_order(&self) -> Vec<(&Meta, &Compiled)> {
        let all = self.attached.iter().flat_map(|attached| attached.rules.iter().map(|rule| (&*attached.meta, rule)));
        in_order(all)
    }

    /// Its routes, in the order in which they are tried.
    pub fn routes(&self) -> Vec<Route> {
        routes(self.in_order(), self.port)
    }

    fn report_shadowed(&self, said: &mut Vec<Diagnostic>) {
        let mut before: Earlier<&Written> = Earlier::default();
        let mut catch_all: Option<&Written> = None;
        // A condition may be several routes: it gets no turn where none of them does.
        let mut parts: BTreeMap<Place, Vec<Option<Diagnostic>>> = BTreeMap::new();
        for (meta, compiled) in self.in_order() {
            let Some(written) = &compiled.route.written else { continue };
            let condition = &compiled.route.condition;
            let taken = before.takes_all_of(condition);
            let message = match (catch_all, taken) {
                (Some(all), _) => Some(format!("never reached: {} of {} matches every request", all.field, all.object)),
                (None, Some(by)) => {
                    Some(format!("never reached: {} of {} takes all of its requests", by.field, by.object))
                }
                (None, None) => None,
            };
            if message.is_none() {
                before.push(condition.clone(), written);
                catch_all = catch_all.or_else(|| condition.is_catch_all().then_some(written));
            }
            let (rule, position) = compiled.position;
            let finding = message.map(|message| {
                let finding = Diagnostic::at(&written.origin, Severity::Warning, Code::Conflict, message);
                finding.object(meta.id()).field(format!("rules[{rule}].matches[{position}]"))
            });
            parts.entry((meta.key(), compiled.position)).or_default().push(finding);
        }
        said.extend(parts.into_values().filter_map(|parts| parts.into_iter().collect::<Option<Vec<_>>>()?.pop()));
    }
}

/// What a route without parents, or without rules, is.
fn report_idle(meta: &Meta, has_no_parents: bool, has_no_rules: bool, found: &mut Vec<Diagnostic>) {
    let no_rules = match meta.kind {
        ObjectKind::GrpcRoute => "without effect: there are no rules",
        ObjectKind::TlsRoute | ObjectKind::TcpRoute => {
            "there are no rules: every connection to what it is attached to is closed"
        }
        _ => "there are no rules: every request to what it is attached to is answered with 500",
    };
    for (field, is_so, message) in [
        ("parentRefs", has_no_parents, "without effect: it is attached to nothing"),
        ("rules", has_no_rules && !has_no_parents, no_rules),
    ] {
        if is_so {
            let origin = locate(&meta.origin, field);
            found.push(
                Diagnostic::at(&origin, Severity::Warning, Code::Ignored, message).object(meta.id()).field(field),
            );
        }
    }
}

/// What is to be said where none of the ports that a route is for speaks HTTP.
fn raw_ports(service: &Service, only: Option<&[u16]>) -> Option<String> {
    let is_meant = |port: &&ServicePort| only.is_none_or(|only| only.contains(&port.number));
    let is_raw = |port: &ServicePort| matches!(port.protocol, Protocol::Tcp | Protocol::Tls | Protocol::Https);
    let mut ports = service.ports.iter().filter(is_meant).peekable();
    let first = *ports.peek()?;
    let number = first.number;
    ports.all(is_raw).then(|| {
        format!(
            "port {number} of {} is none of HTTP by its name or protocol: connections to it do not go by the route",
            service.host
        )
    })
}

/// The services that a parent is: a ServiceEntry has several hosts.
fn hosts_of<'s>(parent: &Parent, services: &'s Services) -> Vec<&'s Service> {
    match parent.kind {
        ParentKind::Service => {
            let found = services.exact(&service_host(&parent.name, &parent.namespace), &parent.namespace);
            found.map(|(_, service)| &**service).into_iter().collect()
        }
        ParentKind::ServiceEntry => {
            let all = services.iter().map(|(_, service)| &**service);
            let is_meant = |service: &&Service| {
                let meta = &service.meta;
                let is_named = *meta.name == *parent.name && *meta.namespace == *parent.namespace;
                meta.kind == ObjectKind::ServiceEntry && is_named
            };
            all.filter(is_meant).collect()
        }
    }
}

/// The ports that a route is for; all where none is written. An error says what the parent lacks.
fn ports_of(reference: &ParentReference, service: &Service) -> Result<Option<Vec<u16>>, String> {
    let name = reference.section_name.as_ref().map(|name| name.value.as_str()).filter(|name| !name.is_empty());
    if reference.port.is_none() && name.is_none() {
        return Ok(None);
    }
    let ports = service.ports.iter().filter(|port| {
        reference.port.is_none_or(|wanted| wanted.0 == port.number) && name.is_none_or(|wanted| wanted == &*port.name)
    });
    let ports: Vec<u16> = ports.map(|port| port.number).collect();
    match (ports.is_empty(), name, reference.port) {
        (false, _, _) => Ok(Some(ports)),
        (true, Some(name), Some(port)) => Err(format!("no port {} that is called {name}", port.0)),
        (true, Some(name), None) => Err(format!("no port that is called {name}")),
        (true, None, port) => Err(format!("no port {}", port.map_or(0, |port| port.0))),
    }
}
