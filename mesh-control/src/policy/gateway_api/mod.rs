//! Routes of Kubernetes' Gateway API that are attached to services (GAMMA): which are in force for a host as a client sees
//! it, and what their status is.
//!
//! A route of the service's own namespace, the producer's, is for all clients. One of another namespace, a consumer's, is for
//! clients of that namespace, and for them it takes the place of all of the producer's. Routes for one host are one table, in
//! which conditions have an order of their own. Where there are GRPCRoutes, HTTPRoutes for the same port do not count.

mod compile;
mod filters;
mod references;
mod status;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::route::{Action, Retry, Route, Written};
use super::virtual_services::{Entry, VirtualServices};
use crate::config::file::{Governs, Meta, Objects, Parent, Refused};
use crate::config::gateway_api::{ParentKind, ParentReference};
use crate::config::support::ObjectKind;
use crate::config::{Code, Diagnostic, Severity};
use crate::registry::host::service_host;
use crate::registry::{Service, Services, Visibility};
use compile::{Compiled, Rules, grpc_rules, http_rules};
use references::References;
pub use status::{ParentStatus, RouteCondition};

/// All that are attached to something.
#[derive(Debug, Default)]
pub struct GatewayRoutes {
    by_host: HashMap<Arc<str>, Vec<Attached>>,
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
}

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
    /// to are answered with the reason. `retry` is what is tried again where a route does not say it.
    pub fn new(objects: &Objects, services: &Services, retry: Option<&Retry>) -> (GatewayRoutes, Vec<Diagnostic>) {
        let references = References::new(services, &objects.reference_grants);
        let mut all = GatewayRoutes::default();
        let mut found = Vec::new();
        for object in &objects.http_routes {
            let rules = http_rules(object, &references, retry);
            all.attach(&object.meta, &object.spec.parent_refs, rules, services, &mut found);
        }
        for object in &objects.grpc_routes {
            let rules = grpc_rules(object, &references, retry);
            all.attach(&object.meta, &object.spec.parent_refs, rules, services, &mut found);
        }
        for object in &objects.refused {
            all.attach_refused(object, services);
        }
        all.report_shadowed(&mut found);
        (all, found)
    }

    fn attach(
        &mut self,
        meta: &Meta,
        parents: &[ParentReference],
        rules: Rules,
        services: &Services,
        found: &mut Vec<Diagnostic>,
    ) {
        let (shared, compiled) = (Arc::new(meta.clone()), Arc::new(rules.compiled));
        for problem in rules.problems.iter().filter(|problem| problem.reason != compile::UNSUPPORTED) {
            let message = format!("{} (ResolvedRefs is False: {})", problem.message, problem.reason);
            let origin = meta.origin.at(problem.span);
            let finding = Diagnostic::at(&origin, Severity::Error, Code::UnknownReference, message);
            found.push(finding.object(meta.id()).field(problem.field.as_str()));
        }
        for (index, reference) in parents.iter().enumerate() {
            let Some(kind) = reference.parent_kind() else { continue };
            let namespace = reference.namespace.as_ref().map_or(&*meta.namespace, |namespace| &namespace.value);
            let parent = Parent { kind, namespace: namespace.to_owned(), name: reference.name.value.clone() };
            let named = format!("{} {}/{}", kind.name(), parent.namespace, parent.name);
            let hosts = hosts_of(&parent, services);
            let mut unmatched = hosts.is_empty().then(|| format!("there is no {named}"));
            for service in &hosts {
                let ports = match ports_of(reference, service) {
                    Ok(ports) => ports,
                    Err(message) => {
                        unmatched = Some(format!("{named} has {message}"));
                        continue;
                    }
                };
                self.by_host.entry(service.host.clone()).or_default().push(Attached {
                    meta: shared.clone(),
                    is_consumer: parent.namespace != *meta.namespace,
                    ports,
                    rules: compiled.clone(),
                });
            }
            if let Some(message) = &unmatched {
                let message = format!("{message}: the route has no effect there (Accepted is False: NoMatchingParent)");
                let origin = meta.origin.at(reference.span);
                let finding = Diagnostic::at(&origin, Severity::Warning, Code::UnknownReference, message);
                found.push(finding.object(meta.id()).field(format!("parentRefs[{index}]")));
            }
            self.statuses.push(ParentStatus::new(meta, index, named, unmatched, (&rules.problems, rules.count)));
        }
    }

    fn attach_refused(&mut self, object: &Refused, services: &Services) {
        let Governs::Parents(parents) = &object.governs else { return };
        let written = Written { object: object.id(), field: "rules".into(), origin: object.meta.origin.clone() };
        let rule = compile::refused(object.meta.kind, object.answer(), written);
        let (meta, rules) = (Arc::new(object.meta.clone()), Arc::new(vec![rule]));
        for parent in parents {
            for service in hosts_of(parent, services) {
                self.by_host.entry(service.host.clone()).or_default().push(Attached {
                    meta: meta.clone(),
                    is_consumer: parent.namespace != *object.meta.namespace,
                    ports: None,
                    rules: rules.clone(),
                });
            }
        }
    }

    /// The table in force for a port of a service, as a client of some namespace sees it.
    pub fn find(&self, service_host: &str, port: u16, client_namespace: &str) -> Option<Table<'_>> {
        let all = self.by_host.get(service_host)?;
        let of = |is_consumer: bool| {
            let own = all.iter().filter(|attached| attached.is_consumer == is_consumer && attached.is_for(port));
            let mut own: Vec<&Attached> =
                own.filter(|attached| !is_consumer || *attached.meta.namespace == *client_namespace).collect();
            if own.iter().any(|attached| attached.meta.kind == ObjectKind::GrpcRoute) {
                own.retain(|attached| attached.meta.kind == ObjectKind::GrpcRoute);
            }
            own.sort_by(|a, b| order(&a.meta).cmp(&order(&b.meta)));
            own
        };
        let consumers = of(true);
        let is_consumer = !consumers.is_empty();
        let attached = if is_consumer { consumers } else { of(false) };
        (!attached.is_empty()).then_some(Table { attached, is_consumer, port })
    }

    /// Host and subset of every destination.
    pub fn destinations(&self) -> impl Iterator<Item = (Arc<str>, Arc<str>)> {
        let compiled = self.by_host.values().flatten().flat_map(|attached| attached.rules.iter());
        let forwards = compiled.filter_map(|compiled| match &compiled.route.action {
            Action::Forward(forward) => Some(forward),
            _ => None,
        });
        forwards.flat_map(|forward| {
            let targets = forward.targets.iter().map(|target| &target.cluster);
            targets
                .chain(forward.mirrors.iter().map(|(cluster, _)| cluster))
                .map(|key| (key.host.clone(), key.subset.clone()))
        })
    }

    /// Every route, object by object, each once.
    pub fn all_routes(&self) -> impl Iterator<Item = Vec<Route>> {
        let mut seen = BTreeSet::new();
        let mut attached: Vec<&Attached> = self.by_host.values().flatten().collect();
        attached.sort_by_key(|attached| attached.meta.key());
        attached.retain(|attached| seen.insert(attached.meta.key()));
        attached.into_iter().map(|attached| attached.rules.iter().map(|compiled| compiled.route.clone()).collect())
    }

    /// What is to be said of hosts that VirtualServices are for, too.
    pub fn conflicts(&self, virtual_services: &VirtualServices) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        for (host, all) in &self.by_host {
            for attached in all {
                let Some(entry) = virtual_services
                    .find(host, &attached.meta.namespace)
                    .filter(|entry| entry.hosts.contains(&host.to_string()))
                else {
                    continue;
                };
                let (winner, loser) = match !attached.is_consumer && goes_before(entry, &attached.meta) {
                    true => (&entry.meta, &*attached.meta),
                    false => (&*attached.meta, &entry.meta),
                };
                let clients = match attached.is_consumer {
                    true => format!("clients of {}", attached.meta.namespace),
                    false => "it".to_owned(),
                };
                let message = format!(
                    "host {host} is also that of {} ({}), whose rules count for {clients}",
                    winner.id(),
                    winner.origin
                );
                let field = if loser.kind == ObjectKind::VirtualService { "hosts" } else { "parentRefs" };
                let finding = Diagnostic::at(&loser.origin, Severity::Warning, Code::Conflict, message);
                found.push(finding.object(loser.id()).field(field));
            }
        }
        found.sort_by(|a: &Diagnostic, b| (&a.object, &a.message).cmp(&(&b.object, &b.message)));
        found.dedup();
        found
    }

    /// Rules that never get a turn, and HTTPRoutes beside GRPCRoutes.
    fn report_shadowed(&self, found: &mut Vec<Diagnostic>) {
        let mut said = Vec::new();
        for (host, all) in &self.by_host {
            let explicit: BTreeSet<u16> =
                all.iter().filter_map(|attached| attached.ports.as_ref()).flatten().copied().collect();
            // Port 0 stands for those that no route names.
            for port in explicit.into_iter().chain([0]) {
                let clients: BTreeSet<&str> = all.iter().map(|attached| &*attached.meta.namespace).collect();
                for client in clients {
                    let Some(table) = self.find(host, port, client) else { continue };
                    table.report_shadowed(&mut said);
                    let beside = all.iter().filter(|attached| {
                        attached.is_consumer == table.is_consumer
                            && attached.is_for(port)
                            && attached.meta.kind != ObjectKind::GrpcRoute
                            && (!attached.is_consumer || *attached.meta.namespace == *client)
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

/// The oldest first, then by namespace and name.
fn order(meta: &Meta) -> (&str, &str, &str) {
    (&meta.created, &meta.namespace, &meta.name)
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

    fn in_order(&self) -> Vec<(&Meta, &Compiled)> {
        let all = self.attached.iter().flat_map(|attached| attached.rules.iter().map(|rule| (&*attached.meta, rule)));
        let mut all: Vec<(&Meta, &Compiled)> = all.collect();
        all.sort_by(|(a, x), (b, y)| {
            (Reverse(x.rank), order(a), x.position).cmp(&(Reverse(y.rank), order(b), y.position))
        });
        all
    }

    /// Its routes, in the order in which they are tried.
    pub fn routes(&self) -> Vec<Route> {
        let mut routes: Vec<Route> = Vec::new();
        for (_, compiled) in self.in_order() {
            let mut route = compiled.route.clone();
            // The port is that of the service, unless something else is said (the standard one of a scheme is not written).
            if let Action::Redirect(redirect) = &mut route.action
                && redirect.scheme.is_none()
            {
                redirect.port.get_or_insert(self.port);
            }
            let is_last = route.condition.is_catch_all();
            routes.push(route);
            if is_last {
                break;
            }
        }
        routes
    }

    fn report_shadowed(&self, said: &mut Vec<Diagnostic>) {
        let mut before: Option<&Route> = None;
        for (meta, compiled) in self.in_order() {
            let Some(written) = &compiled.route.written else { continue };
            if let Some(earlier) = before.and_then(|earlier| earlier.written.as_ref()) {
                let message = format!("never reached: {} of {} matches every request", earlier.field, earlier.object);
                let (rule, condition) = compiled.position;
                let field = format!("rules[{rule}].matches[{condition}]");
                let finding = Diagnostic::at(&written.origin, Severity::Warning, Code::Conflict, message);
                said.push(finding.object(meta.id()).field(field));
            } else if compiled.route.condition.is_catch_all() {
                before = Some(&compiled.route);
            }
        }
    }
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
