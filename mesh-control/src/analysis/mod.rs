//! Objects against each other: names that nothing answers to, rules that never get a turn, and what a gRPC
//! client cannot do for services that speak gRPC.
//!
//! Nothing here makes a file unusable: an object may well be written before the one that it speaks of.

#![warn(clippy::indexing_slicing, clippy::string_slice)]

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use crate::catalog::ClientClass;
use crate::config::diagnostic::{Code, Diagnostic, Severity, Span};
use crate::config::file::Objects;
use crate::config::istio::virtual_service::HttpDestination;
use crate::config::load::{self, Loaded, Scan, Store};
use crate::policy::Policy;
use crate::policy::route::{ClusterKey, Rule, authority_in};
use crate::policy::view::View;
use crate::policy::virtual_services::Entry;
use crate::registry::host::{candidates, in_namespace};
use crate::registry::protocol::Protocol;
use crate::registry::{Discovery, Service, ServiceId};
use crate::render;

/// What there is to say about a configuration.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Everything, in the order of files and lines.
    pub diagnostics: Vec<Diagnostic>,
    /// How many objects are in force.
    pub objects: usize,
}

impl Report {
    /// How many findings are this severe.
    pub fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|finding| finding.severity == severity).count()
    }
}

/// Everything there is to say about a directory, as `Plane` would load it.
pub fn validate_dir(dir: &Path) -> io::Result<Report> {
    Ok(validate_scan(load::scan(dir)?))
}

/// Everything there is to say about some files.
pub fn validate_scan(scan: Scan) -> Report {
    let mut store = Store::new(true);
    store.apply(Ok(scan));
    report(store.loaded())
}

/// Everything there is to say about some texts, by name.
pub fn validate<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<Diagnostic> {
    report(load::from_texts(texts).loaded()).diagnostics
}

fn report(loaded: Loaded) -> Report {
    let (_, diagnostics) = examine(loaded.clone());
    Report { diagnostics, objects: loaded.objects.len() }
}

/// The policy of what is loaded, and everything there is to say about it.
pub fn examine(loaded: Loaded) -> (Policy, Vec<Diagnostic>) {
    let Loaded { objects, mut diagnostics } = loaded;
    let (policy, found) = Policy::new(&objects);
    diagnostics.extend(found);
    diagnostics.extend(check(&objects, &policy));
    diagnostics.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    diagnostics.dedup();
    (policy, diagnostics)
}

/// What objects have to do with each other.
pub fn check(objects: &Objects, policy: &Policy) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for entry in policy.virtual_services.iter() {
        let mut checker = Checker { policy, entry, found: &mut found };
        checker.check();
    }
    check_delegates(objects, &mut found);
    for object in &objects.destination_rules {
        let host = in_namespace(&object.spec.host, &object.meta.namespace);
        let is_known = host.starts_with('*')
            || policy.services.find(&host, &object.meta.namespace).is_some()
            || policy.virtual_services.names(&host, &object.meta.namespace);
        if !is_known {
            let origin = object.meta.origin.at(object.spec.host.span);
            let message = unknown_host(policy, &host, &object.meta.namespace);
            let finding = Diagnostic::at(&origin, Severity::Warning, Code::UnknownReference, message);
            found.push(finding.object(object.meta.id()).field("host"));
        }
    }
    for (id, service) in policy.services.iter() {
        check_grpc(policy, service, &mut found);
        check_endpoints(policy, id, service, &mut found);
    }
    found
}

/// Endpoints that are written down and cannot be used.
fn check_endpoints(policy: &Policy, id: ServiceId, service: &Service, found: &mut Vec<Diagnostic>) {
    for written in policy.services.written(id) {
        let mut say = |message: String| {
            let finding = Diagnostic::at(&written.origin, Severity::Warning, Code::UnknownReference, message);
            found.push(finding.object(written.object.clone()).field("address"));
        };
        if service.discovery == Discovery::Registry && written.ip().is_none() {
            say(format!("a name, but {} takes addresses only; it is no endpoint", service.host));
            continue;
        }
        for port in service.ports.iter().filter(|port| written.port_for(port).is_none()) {
            say(format!("it has no port for port {} of {}", port.number, service.host));
        }
    }
}

struct Checker<'a> {
    policy: &'a Policy,
    entry: &'a Entry,
    found: &'a mut Vec<Diagnostic>,
}

impl Checker<'_> {
    fn check(&mut self) {
        for rule in &self.entry.rules {
            self.check_rule(rule);
        }
        let mut catch_all: Option<&Rule> = None;
        for rule in &self.entry.rules {
            if let Some(earlier) = catch_all {
                let message = format!("never reached: {} matches every request", earlier.written.field);
                self.say(rule, rule.route.span, "", Severity::Warning, Code::Conflict, message);
            } else if is_catch_all(rule) {
                catch_all = Some(rule);
            }
        }
    }

    fn check_rule(&mut self, rule: &Rule) {
        let several = rule.route.route.len() > 1;
        let weight_of = |destination: &HttpDestination| destination.weight.as_ref().map_or(0, |weight| weight.value);
        let is_split = rule.route.route.iter().filter(|destination| weight_of(destination) > 0).count() > 1;
        for (index, destination) in rule.route.route.iter().enumerate() {
            let weight = weight_of(destination);
            if several && weight <= 0 {
                let field = format!("route[{index}].weight");
                let message = "0, so it gets no request";
                self.say(rule, destination.span, &field, Severity::Info, Code::Ignored, message);
                continue;
            }
            if is_split && authority_in(&destination.headers.request).is_some() {
                let field = format!("route[{index}].headers.request");
                let message =
                    "not supported yet: an authority for one of several destinations; requests of this route fail";
                self.say(rule, destination.span, &field, Severity::Warning, Code::NotSupportedYet, message);
            }
            let to = &destination.destination;
            let host = in_namespace(&to.host, &rule.namespace);
            let client = &self.entry.meta.namespace;
            let Some((_, service)) = self.policy.services.find(&host, client) else {
                let message = unknown_host(self.policy, &host, client);
                let field = format!("route[{index}].destination.host");
                self.say(rule, to.host.span, &field, Severity::Warning, Code::UnknownReference, message);
                continue;
            };
            match &to.port {
                Some(port) => self.check_port(rule, index, service, &[port.number.0], port.span),
                None if service.ports.len() != 1 => {
                    let addressed = self.addressed_ports();
                    self.check_port(rule, index, service, &addressed, to.span);
                }
                None => {}
            }
            if let Some(subset) = &to.subset {
                self.check_subset(rule, index, &host, service, &subset.value, subset.span);
            }
        }
    }

    fn check_port(&mut self, rule: &Rule, index: usize, service: &Service, ports: &[u16], span: Span) {
        for port in ports.iter().filter(|port| service.port(**port).is_none()) {
            let known: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
            let message = format!("{} has no port {port}, only {}", service.host, known.join(", "));
            let field = format!("route[{index}].destination.port");
            self.say(rule, span, &field, Severity::Warning, Code::UnknownReference, message);
        }
    }

    fn check_subset(&mut self, rule: &Rule, index: usize, host: &str, service: &Service, subset: &str, span: Span) {
        let view = View::of_namespace(&self.entry.meta.namespace);
        let defined = self.policy.destination_rules.find(host, &service.namespace, &view);
        if defined.is_some_and(|defined| defined.subset(subset).is_some()) {
            return;
        }
        let known: Vec<&str> = defined.iter().flat_map(|defined| defined.subset_names()).collect();
        let message = match known.is_empty() {
            true => format!("no DestinationRule defines a subset of {host}"),
            false => format!("{host} has the subsets {}", known.join(", ")),
        };
        let message = format!("`{subset}` is no subset: {message}");
        let field = format!("route[{index}].destination.subset");
        self.say(rule, span, &field, Severity::Warning, Code::UnknownReference, message);
    }

    /// The ports of the services that the object's hosts name.
    fn addressed_ports(&self) -> Vec<u16> {
        let hosts = self.entry.hosts.iter().filter(|host| !host.starts_with('*'));
        let services = hosts.filter_map(|host| self.policy.services.find(host, &self.entry.meta.namespace));
        let ports = services.flat_map(|(_, service)| service.ports.iter().map(|port| port.number));
        ports.collect::<BTreeSet<u16>>().into_iter().collect()
    }

    fn say(
        &mut self,
        rule: &Rule,
        span: Span,
        field: &str,
        severity: Severity,
        code: Code,
        message: impl Into<String>,
    ) {
        let written = &rule.written;
        let path = match field {
            "" => written.field.to_string(),
            field => format!("{}.{field}", written.field),
        };
        let finding = Diagnostic::at(&written.origin.at(span), severity, code, message);
        self.found.push(finding.object(written.object.clone()).field(path));
    }
}

/// Whether a rule takes every request of every client, whatever the port.
fn is_catch_all(rule: &Rule) -> bool {
    let everyone = View::default();
    if rule.route.matches.is_empty() {
        return true;
    }
    let open = rule.route.matches.iter().filter(|condition| {
        condition.source_labels.is_empty()
            && condition.source_namespace.is_empty()
            && condition.gateways.is_empty()
            && condition.port.is_none()
    });
    let mut open_rule = rule.clone();
    open_rule.route.matches = open.cloned().collect();
    let routes = match open_rule.route.matches.is_empty() {
        true => return false,
        false => crate::policy::route::compile(&[open_rule], &everyone, 0, &|_| None),
    };
    routes.iter().any(|route| route.condition.is_catch_all())
}

fn check_delegates(objects: &Objects, found: &mut Vec<Diagnostic>) {
    let mut targets: BTreeSet<(&str, &str)> = BTreeSet::new();
    for object in &objects.virtual_services {
        for delegate in object.spec.http.iter().filter_map(|route| route.delegate.as_ref()) {
            let namespace = match delegate.namespace.as_str() {
                "" => &*object.meta.namespace,
                namespace => namespace,
            };
            targets.insert((namespace, &delegate.name));
        }
    }
    for object in objects.virtual_services.iter().filter(|object| object.spec.hosts.is_empty()) {
        if !targets.contains(&(&*object.meta.namespace, &*object.meta.name)) {
            let message = "it has no hosts, and no other object delegates to it: it has no effect";
            let finding = Diagnostic::at(&object.meta.origin, Severity::Warning, Code::UnknownReference, message);
            found.push(finding.object(object.meta.id()).field("hosts"));
        }
    }
}

/// What a gRPC client of the service's own namespace cannot do, for ports that speak gRPC.
fn check_grpc(policy: &Policy, service: &Service, found: &mut Vec<Diagnostic>) {
    let view = View::of_namespace(&service.namespace);
    for port in service.ports.iter().filter(|port| port.protocol == Protocol::Grpc) {
        let key = ClusterKey { host: service.host.clone(), port: port.number, subset: "".into() };
        let name = key.to_string();
        let routes = render::render_routes(policy, ClientClass::Grpc, &view, &name);
        let cluster = render::render_cluster(policy, ClientClass::Grpc, &view, &name);
        for degraded in routes.into_iter().chain(cluster).flat_map(|rendered| rendered.degraded) {
            found.push(degraded.diagnostic());
        }
    }
}

fn unknown_host(policy: &Policy, host: &str, namespace: &str) -> String {
    let names = candidates(host, namespace);
    let meant = names.iter().skip(1).find(|name| policy.services.exact(name, namespace).is_some());
    match meant {
        Some(meant) => format!("no service is called {host}; {meant} is"),
        None => format!("no service is called {host}"),
    }
}
