//! Which VirtualService is in force for a host, as a client of some namespace sees it.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::compile::Rule;
use super::delegate;
use super::route::Written;
use super::sidecars::Sight;
use crate::config::extensions::Extensions;
use crate::config::file::{AtGateways, Governs, Meta, Object, Refused};
use crate::config::istio::virtual_service::{Destination, HttpRoute, MESH, VirtualService, is_for_mesh};
use crate::config::support::ObjectKind;
use crate::config::{Code, Diagnostic, Severity};
use crate::registry::Visibility;
use crate::registry::host::{covers, in_namespace};

/// A VirtualService, ready to be asked.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The object.
    pub meta: Meta,
    /// Its hosts in full.
    pub hosts: Vec<String>,
    /// Who sees it.
    pub visibility: Visibility,
    /// Its rules.
    pub rules: Vec<Rule>,
    /// What is written, with the rules on connections; `None` where it is wrong.
    pub object: Option<Arc<Object<VirtualService>>>,
    /// The gateways that it is for, `NAMESPACE/NAME`; `*` is any, of one that is wrong.
    pub gateways: Vec<String>,
}

/// All of them: those that apply inside the mesh, by host, and those of gateways.
#[derive(Debug, Default)]
pub struct VirtualServices {
    /// In the order in which they compete.
    entries: Vec<Arc<Entry>>,
    /// Those that are for gateways, in the same order.
    at_gateways: Vec<Arc<Entry>>,
    /// The places of those by their hosts, and of those with a wildcard.
    at_gateways_by_host: HashMap<String, Vec<usize>>,
    exact: HashMap<String, Vec<usize>>,
    /// The most specific pattern first.
    wildcards: Vec<(String, Vec<usize>)>,
    /// The labels of clients that some rule asks for.
    pub label_keys: BTreeSet<String>,
}

impl VirtualServices {
    /// Those of these objects, and what is to be said about them. Of `refused`, those of this kind fail every request that
    /// would follow their rules.
    pub fn new(
        objects: &[Arc<Object<VirtualService>>],
        refused: &[Arc<Refused>],
    ) -> (VirtualServices, Vec<Diagnostic>) {
        let mut sorted: Vec<&Arc<Object<VirtualService>>> = objects.iter().collect();
        sorted.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
        let mut all = VirtualServices::default();
        let mut found = Vec::new();
        let of_kind = refused.iter().filter(|object| object.meta.kind == ObjectKind::VirtualService);
        let refused: Vec<&Refused> = of_kind.map(AsRef::as_ref).collect();
        let of_mesh = refused.iter().filter_map(|object| refused_entry(object));
        let mut entries: Vec<Arc<Entry>> = of_mesh.map(Arc::new).collect();
        let of_gateways = refused.iter().filter_map(|object| refused_at_gateways(object));
        let mut at_gateways: Vec<Arc<Entry>> = of_gateways.map(Arc::new).collect();
        for object in &sorted {
            let in_mesh = is_for_mesh(object.spec.gateways.iter().map(|name| name.value.as_str()));
            let names = object.spec.gateways.iter().filter(|name| name.value != MESH);
            let gateways: Vec<String> = names.map(|name| gateway_name(name, &object.meta.namespace)).collect();
            if object.spec.hosts.is_empty() {
                continue;
            }
            let entry = Arc::new(Entry {
                hosts: object.spec.hosts.iter().map(|host| in_namespace(host, &object.meta.namespace)).collect(),
                visibility: visibility(object),
                rules: rules(object, &sorted, &refused, &mut found),
                meta: object.meta.clone(),
                object: Some(Arc::clone(object)),
                gateways,
            });
            if !entry.gateways.is_empty() {
                at_gateways.push(Arc::clone(&entry));
            }
            if in_mesh {
                entries.push(entry);
            }
        }
        entries.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
        entries.into_iter().for_each(|entry| all.add(entry));
        at_gateways.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
        at_gateways.iter().for_each(|entry| all.note_labels(entry));
        for (index, entry) in at_gateways.iter().enumerate() {
            for host in &entry.hosts {
                let key = if host.starts_with('*') { "*" } else { host };
                all.at_gateways_by_host.entry(key.to_owned()).or_default().push(index);
            }
        }
        all.at_gateways = at_gateways;
        all.wildcards.sort_by(|a, b| (Reverse(a.0.len()), &a.0).cmp(&(Reverse(b.0.len()), &b.0)));
        all.report_conflicts(&mut found);
        (all, found)
    }

    fn add(&mut self, entry: Arc<Entry>) {
        let index = self.entries.len();
        for host in &entry.hosts {
            if host.starts_with('*') {
                match self.wildcards.iter_mut().find(|(pattern, _)| pattern == host) {
                    Some((_, indexes)) => indexes.push(index),
                    None => self.wildcards.push((host.clone(), vec![index])),
                }
            } else {
                self.exact.entry(host.clone()).or_default().push(index);
            }
        }
        self.note_labels(&entry);
        self.entries.push(entry);
    }

    /// Notes the labels of clients that its rules ask for.
    fn note_labels(&mut self, entry: &Entry) {
        for condition in entry.rules.iter().flat_map(|rule| &rule.route.matches) {
            self.label_keys.extend(condition.source_labels.keys().cloned());
        }
        if let Some(object) = &entry.object {
            let tls = object.spec.tls.iter().flat_map(|rule| &rule.matches).map(|it| &it.source_labels);
            let tcp = object.spec.tcp.iter().flat_map(|rule| &rule.matches).map(|it| &it.source_labels);
            self.label_keys.extend(tls.chain(tcp).flat_map(|labels| labels.keys().cloned()));
        }
    }

    /// Those that are for gateways and may have one of these hosts, in the order in which their rules count.
    pub fn at_gateways(&self, hosts: &[String]) -> Vec<&Entry> {
        if hosts.iter().any(|host| host.starts_with('*')) {
            return self.at_gateways.iter().map(|entry| &**entry).collect();
        }
        let keys = hosts.iter().map(String::as_str).chain(["*"]);
        let places: BTreeSet<usize> =
            keys.filter_map(|key| self.at_gateways_by_host.get(key)).flatten().copied().collect();
        places.into_iter().filter_map(|place| self.at_gateways.get(place)).map(|entry| &**entry).collect()
    }

    /// The one in force for a full host name: that of the most specific host; of equals, what only the
    /// client's namespace sees goes before what is exported to it by name, and that before what all see;
    /// then the oldest, then by name.
    pub fn find<'a>(&self, host: &str, client: impl Into<Sight<'a>>) -> Option<&Arc<Entry>> {
        let client = client.into();
        let exact = self.exact.get(host).and_then(|indexes| self.best(indexes, host, client));
        exact.or_else(|| {
            let mut covering = self.wildcards.iter().filter(|(pattern, _)| covers(pattern, host));
            covering.find_map(|(_, indexes)| self.best(indexes, host, client))
        })
    }

    /// Whether any object, whoever sees it, has exactly this host.
    pub fn has_exact(&self, host: &str) -> bool {
        self.exact.contains_key(host)
    }

    /// Whether some object has exactly this host.
    pub fn names_exactly(&self, host: &str, client: Sight<'_>) -> bool {
        self.exact.get(host).and_then(|indexes| self.best(indexes, host, client)).is_some()
    }

    /// Host and subset of every destination, and the namespace of the rule.
    pub fn destinations(&self) -> impl Iterator<Item = (String, Arc<str>, &Arc<str>)> {
        let of = |to: &Destination, namespace| {
            let subset = to.subset.as_ref().map_or("", |subset| &subset.value);
            (in_namespace(&to.host, namespace), subset.into())
        };
        let all = || self.entries.iter().chain(&self.at_gateways);
        let rules = all().flat_map(|entry| &entry.rules);
        let of_requests = rules.flat_map(move |rule| {
            let mirrored = rule.route.mirrored().map(|(_, to, _)| to);
            let routed = rule.route.route.iter().map(|route| &route.destination);
            routed.chain(mirrored).map(move |to| (of(to, &rule.namespace), &rule.namespace))
        });
        let objects = all().filter_map(|entry| entry.object.as_ref());
        let of_connections = objects.flat_map(move |object| {
            let tls = object.spec.tls.iter().flat_map(|rule| &rule.route);
            let tcp = object.spec.tcp.iter().flat_map(|rule| &rule.route);
            let namespace = &object.meta.namespace;
            tls.chain(tcp).map(move |to| (of(&to.destination, namespace), namespace))
        });
        of_requests.chain(of_connections).map(|((host, subset), namespace)| (host, subset, namespace))
    }

    /// Whether some object names this host, and not merely everything.
    pub fn names<'a>(&self, host: &str, client: impl Into<Sight<'a>>) -> bool {
        self.find(host, client)
            .is_some_and(|entry| entry.hosts.iter().any(|pattern| pattern != "*" && covers(pattern, host)))
    }

    /// Whether any object that clients of this namespace see has this host among its own.
    pub fn describes(&self, host: &str, client_namespace: &str) -> bool {
        let covering = self.wildcards.iter().filter(|(pattern, _)| covers(pattern, host)).map(|(_, indexes)| indexes);
        let indexes = self.exact.get(host).into_iter().chain(covering).flatten();
        let mut entries = indexes.filter_map(|index| self.entries.get(*index));
        entries.any(|entry| entry.visibility.includes(client_namespace))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.iter()
    }

    fn best(&self, indexes: &[usize], host: &str, client: Sight<'_>) -> Option<&Arc<Entry>> {
        indexes
            .iter()
            .filter_map(|index| self.entries.get(*index))
            .filter(|entry| entry.visibility.includes(client.namespace) && client.imports(&entry.meta.namespace, host))
            .min_by_key(|entry| match &entry.visibility {
                Visibility::Namespaces(_) if *entry.meta.namespace == *client.namespace => 0,
                Visibility::Namespaces(_) => 1,
                Visibility::All => 2,
            })
    }

    fn report_conflicts(&self, found: &mut Vec<Diagnostic>) {
        let hosts = self.exact.iter();
        let wildcards = self.wildcards.iter().map(|(host, indexes)| (host, indexes));
        let mut conflicts: Vec<(usize, Diagnostic)> = Vec::new();
        for (host, indexes) in hosts.chain(wildcards) {
            for (position, index) in indexes.iter().enumerate() {
                let earlier = indexes.iter().take(position).filter(|earlier| *earlier != index);
                let hidden_by = earlier
                    .filter_map(|earlier| self.entries.get(*earlier))
                    .find(|earlier| self.entries.get(*index).is_some_and(|own| own.visibility == earlier.visibility));
                let (Some(winner), Some(own)) = (hidden_by, self.entries.get(*index)) else {
                    continue;
                };
                let message = format!(
                    "host {host} is also that of {} ({}), whose rules count for it",
                    winner.meta.id(),
                    winner.meta.origin
                );
                let finding = Diagnostic::at(&own.meta.origin, Severity::Warning, Code::Conflict, message);
                conflicts.push((*index, finding.istio("IST0109").object(own.meta.id()).field("hosts")));
            }
        }
        conflicts.sort_by(|a, b| (a.0, &a.1.message).cmp(&(b.0, &b.1.message)));
        found.extend(conflicts.into_iter().map(|(_, finding)| finding));
    }
}

fn visibility(object: &Object<VirtualService>) -> Visibility {
    let export_to = object.spec.export_to.iter().map(|text| text.value.as_str());
    Visibility::new(export_to, &object.meta.namespace)
}

/// What is known of a wrong object: its hosts, for which nobody knows the rules.
fn refused_entry(object: &Refused) -> Option<Entry> {
    let Governs::Hosts { hosts, export_to, .. } = &object.governs else { return None };
    let written = Written { object: object.id(), field: "http".into(), origin: object.meta.origin.clone() };
    Some(Entry {
        hosts: hosts.iter().map(|host| in_namespace(host, &object.meta.namespace)).collect(),
        visibility: Visibility::new(export_to.iter().map(String::as_str), &object.meta.namespace),
        rules: vec![refused_rule(object, &HttpRoute::default(), written)],
        meta: object.meta.clone(),
        object: None,
        gateways: Vec::new(),
    })
}

/// The same at gateways.
fn refused_at_gateways(object: &Refused) -> Option<Entry> {
    let AtGateways { gateways, hosts } = &object.at_gateways;
    let own = &object.meta.namespace;
    let written = Written { object: object.id(), field: "http".into(), origin: object.meta.origin.clone() };
    (!hosts.is_empty()).then(|| Entry {
        hosts: hosts.iter().map(|host| in_namespace(host, own)).collect(),
        visibility: Visibility::All,
        rules: vec![refused_rule(object, &HttpRoute::default(), written)],
        meta: object.meta.clone(),
        object: None,
        gateways: gateways.iter().map(|name| gateway_name(name, own)).collect(),
    })
}

/// The full name of a gateway that an object of a namespace names: `NAME`, `NAMESPACE/NAME`, or in the words of DNS, as Istio once
/// had it.
pub fn gateway_name(written: &str, own: &str) -> String {
    match written.split_once('/') {
        _ if matches!(written, MESH | "*") => written.to_owned(),
        Some((".", name)) => format!("{own}/{name}"),
        Some(_) => written.to_owned(),
        None => {
            let mut parts = written.split('.');
            let name = parts.next().unwrap_or_default();
            format!("{}/{name}", parts.next().unwrap_or(own))
        }
    }
}

/// A rule whose conditions name gateways in full.
fn in_full(route: &HttpRoute, own: &str) -> HttpRoute {
    let mut route = route.clone();
    for name in route.matches.iter_mut().flat_map(|condition| &mut condition.gateways) {
        name.value = gateway_name(&name.value, own);
    }
    route
}

/// The rule that stands where those of a wrong object would: its conditions are those of `route`.
fn refused_rule(object: &Refused, route: &HttpRoute, written: Written) -> Rule {
    let route = HttpRoute { matches: route.matches.clone(), name: route.name.clone(), ..HttpRoute::default() };
    Rule {
        route,
        namespace: object.meta.namespace.clone(),
        written,
        refused: Some(object.answer()),
        extensions: Extensions::default(),
    }
}

/// How many conditions delegation may make for one object: each of a rule meets each of its delegate, so that a few
/// kilobytes could ask for gigabytes.
const MOST_MERGED: usize = 10_000;

fn rules(
    object: &Arc<Object<VirtualService>>,
    all: &[&Arc<Object<VirtualService>>],
    refused: &[&Refused],
    found: &mut Vec<Diagnostic>,
) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut merged_conditions = 0_usize;
    let id = object.meta.id();
    for (index, route) in object.spec.http.iter().enumerate() {
        let field: Arc<str> = format!("http[{index}]").into();
        let origin = object.meta.origin.at(route.span);
        let written = Written { object: id.clone(), field: field.clone(), origin };
        let route = in_full(route, &object.meta.namespace);
        let Some(target) = route.delegate.clone() else {
            let namespace = object.meta.namespace.clone();
            let extensions = object.meta.extensions.clone();
            rules.push(Rule { route, namespace, written, refused: None, extensions });
            continue;
        };
        let route = &route;
        let mut report = |severity, code, message: String| {
            let origin = object.meta.origin.at(target.name.span);
            let finding = Diagnostic::at(&origin, severity, code, message);
            found.push(finding.object(id.clone()).field(format!("{field}.delegate")));
        };
        let namespace = match target.namespace.as_str() {
            "" => &*object.meta.namespace,
            namespace => namespace,
        };
        let is_meant = |meta: &Meta| *meta.name == *target.name.value && *meta.namespace == *namespace;
        if let Some(child) = refused.iter().find(|other| is_meant(&other.meta)) {
            rules.push(refused_rule(child, route, written));
            continue;
        }
        let child = all.iter().find(|other| is_meant(&other.meta));
        let of_child: usize = child.iter().flat_map(|child| &child.spec.http).map(conditions).sum();
        merged_conditions = merged_conditions.saturating_add(conditions(route).saturating_mul(of_child));
        let fault = match child {
            None => Some((Code::UnknownReference, format!("there is no VirtualService {namespace}/{}", *target.name))),
            Some(child) => not_a_delegate(child, object, merged_conditions),
        };
        // Without the rule its requests would fall to the next one, which may let through what this one does not.
        if let Some((code, message)) = fault {
            rules.push(failing(route, object, &message, written));
            report(Severity::Error, code, format!("{message}; {ANSWERED}"));
            continue;
        }
        let Some(child) = child else { continue };
        for (child_index, child_route) in child.spec.http.iter().enumerate() {
            let Some(merged) = delegate::merge(route, &in_full(child_route, &child.meta.namespace)) else {
                let message = format!(
                    "http[{child_index}] of {} matches requests that this rule does not; it is left out",
                    child.meta.id()
                );
                report(Severity::Warning, Code::Conflict, message);
                continue;
            };
            let written = Written {
                object: child.meta.id(),
                field: format!("http[{child_index}]").into(),
                origin: child.meta.origin.at(child_route.span),
            };
            if child_route.delegate.is_some() {
                let message = format!("{} delegates again, which is one level too deep", child.meta.id());
                rules.push(failing(&merged, child, &message, written));
                report(Severity::Error, Code::Conflict, format!("{message}; {ANSWERED}"));
                continue;
            }
            // The delegate knows its destinations; what it leaves open is filled in, as with fields.
            let mut extensions = child.meta.extensions.clone();
            extensions.merge(object.meta.extensions.clone());
            let namespace = child.meta.namespace.clone();
            rules.push(Rule { route: merged, namespace, written, refused: None, extensions });
        }
    }
    rules
}

const ANSWERED: &str = "its requests are answered with 503 and this reason";

fn conditions(route: &HttpRoute) -> usize {
    route.matches.len().max(1)
}

/// Why a rule cannot go on with the rules of another object.
fn not_a_delegate(
    child: &Object<VirtualService>,
    object: &Object<VirtualService>,
    merged_conditions: usize,
) -> Option<(Code, String)> {
    let id = child.meta.id();
    if !child.spec.hosts.is_empty() {
        return Some((Code::Conflict, format!("{id} has hosts of its own, so it is no delegate")));
    }
    if !visibility(child).includes(&object.meta.namespace) {
        return Some((Code::Conflict, format!("{id} is not exported to this namespace")));
    }
    if child.spec.http.is_empty() {
        return Some((Code::Conflict, format!("{id} has no rules for HTTP")));
    }
    let message = || format!("with {id} this makes more than {MOST_MERGED} conditions; divide the object");
    (merged_conditions > MOST_MERGED).then(|| (Code::InvalidValue, message()))
}

/// A rule for the same requests as `route`, which answers with the reason.
fn failing(route: &HttpRoute, object: &Object<VirtualService>, message: &str, written: Written) -> Rule {
    let reason = format!("{}: {}.delegate: {message}", written.object, written.field);
    let route = HttpRoute { matches: route.matches.clone(), name: route.name.clone(), ..HttpRoute::default() };
    Rule {
        route,
        namespace: object.meta.namespace.clone(),
        written,
        refused: Some(reason.into()),
        extensions: Extensions::default(),
    }
}
