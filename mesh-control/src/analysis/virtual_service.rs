//! VirtualServices: destinations, ports and subsets that do not exist, rules that never get a turn, and delegates
//! to which nobody delegates.

use std::collections::{BTreeSet, HashMap};

use super::unknown::{Known, entry_of_short_name, unknown_host};
use super::{alias_finding, unmet};
use crate::config::decode::Text;
use crate::config::diagnostic::{Code, Diagnostic, Severity, Span, quoted};
use crate::config::extensions::Extensions;
use crate::config::file::{Object, Objects};
use crate::config::istio::virtual_service::{
    AnyMatch, AnyRoute, Destination, HttpDestination, HttpMatch, HttpRoute, VirtualService, is_for_mesh,
};
use crate::config::locate::locate;
use crate::config::spelling::nearest;
use crate::policy::Policy;
use crate::policy::compile::{self, Rule};
use crate::policy::destination_rules::Around;
use crate::policy::gateways::Server;
use crate::policy::retry;
use crate::policy::route::{ClusterKey, Written};
use crate::policy::shadow::Earlier;
use crate::policy::traffic::HashedBy;
use crate::policy::view::View;
use crate::policy::virtual_services::{Entry, gateway_name};
use crate::registry::Service;
use crate::registry::host::{covers, in_namespace};
use crate::registry::protocol::Protocol;
use crate::registry::service::is_subset;

pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for entry in policy.virtual_services.iter() {
        Checker { policy, entry, found }.check();
    }
    check_delegates(objects, found);
    check_sessions(objects, policy, found);
    let mut known: HashMap<&str, Known<'_>> = HashMap::new();
    for object in &objects.virtual_services {
        check_called(object, policy, found);
        let own = &*object.meta.namespace;
        for (index, host) in object.spec.hosts.iter().enumerate() {
            let nearby = |host: &str| known.entry(own).or_insert_with(|| Known::new(policy, own)).nearby(host);
            if let Some(message) = misspelt(policy, host, own, nearby) {
                let origin = object.meta.origin.at(host.span);
                let finding = Diagnostic::at(&origin, Severity::Warning, Code::UnknownReference, message);
                found.push(finding.object(object.meta.id()).field(format!("hosts[{index}]")));
            }
            if let Some(message) = alias_finding(policy, host, &object.meta.namespace) {
                let origin = object.meta.origin.at(host.span);
                let finding = Diagnostic::at(&origin, Severity::Warning, Code::Conflict, message);
                found.push(finding.object(object.meta.id()).field(format!("hosts[{index}]")));
            }
        }
    }
}

/// Destinations with a wildcard that are whatever is called (`resolution: NONE`, `DYNAMIC_DNS`), for calls of other hosts: their name
/// is none that anybody could look up.
fn check_called(object: &Object<VirtualService>, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let own = &*object.meta.namespace;
    if !is_for_mesh(object.spec.gateways.iter().map(|gateway| gateway.value.as_str())) {
        return;
    }
    for (index, route) in object.spec.routes() {
        let matches = route.matches();
        if !matches.is_empty() && !matches.iter().any(|one| is_for_mesh(one.gateways.iter().copied())) {
            continue;
        }
        for (at, to) in route.destinations().enumerate().filter(|(_, to)| to.host.starts_with('*')) {
            let service = policy.services.find(&in_namespace(&to.host, own), own);
            let Some((_, service)) = service.filter(|(_, service)| service.discovery.is_of_caller()) else { continue };
            let is_other = |host: &&Text| {
                let host = in_namespace(host, own);
                !covers(&service.host, &host) && !covers(&host, &service.host)
            };
            let Some(other) = object.spec.hosts.iter().find(is_other) else { continue };
            let message = format!(
                "{} is the host that is called, and {} is none of its hosts: calls of that one fail, but an Envoy's; name the \
                 host that is meant",
                quoted(&to.host),
                quoted(other)
            );
            let origin = object.meta.origin.at(to.host.span);
            let finding = Diagnostic::at(&origin, Severity::Warning, Code::Conflict, message);
            let field = format!("{}.route[{at}].destination.host", route.path(index));
            found.push(finding.object(object.meta.id()).field(field));
        }
    }
}

/// A host that exists by its rule alone, if it is nearly the name of a service: `nearby` says which one.
fn misspelt(
    policy: &Policy,
    host: &str,
    namespace: &str,
    nearby: impl FnOnce(&str) -> Option<String>,
) -> Option<String> {
    let host = in_namespace(host, namespace);
    let is_known = host.contains('*')
        || policy.services.find(&host, namespace).is_some()
        || policy.services.alias_of(&host, namespace).is_some()
        || policy.services.refused(&host, namespace).is_some();
    if is_known {
        return None;
    }
    let meant = entry_of_short_name(policy, &host, namespace)
        .or_else(|| Some(format!("did you mean {}?", quoted(&nearby(&host)?))))?;
    Some(format!("no service is called {host}, which is here by this rule alone; {meant}"))
}

struct Checker<'a> {
    policy: &'a Policy,
    entry: &'a Entry,
    found: &'a mut Vec<Diagnostic>,
}

impl Checker<'_> {
    fn check(&mut self) {
        self.check_sticky_split();
        self.check_hedge();
        self.check_connections();
        for rule in &self.entry.rules {
            self.check_rule(rule);
        }
        self.check_order();
        self.check_names();
    }

    /// Rules of one name, of which nobody can tell which one a request took.
    fn check_names(&mut self) {
        let mut before: HashMap<&str, &Rule> = HashMap::new();
        for rule in &self.entry.rules {
            let name = rule.route.name.as_str();
            let Some(earlier) = (!name.is_empty()).then(|| *before.entry(name).or_insert(rule)) else { continue };
            let is_other = earlier.written.object == rule.written.object && earlier.written.field != rule.written.field;
            if is_other {
                let message =
                    format!("{} has the same name: logs and `explain` do not tell them apart", earlier.written.field);
                self.say(rule, rule.route.span, "name", Severity::Warning, Code::Duplicate, message);
            }
        }
    }

    /// Rules and conditions that never get a turn.
    fn check_order(&mut self) {
        let mut catch_all: Option<&Rule> = None;
        let mut before: Earlier<String> = Earlier::default();
        for rule in &self.entry.rules {
            if let Some(earlier) = catch_all {
                let message = format!("never reached: {} matches every request", earlier.written.field);
                self.say(rule, rule.route.span, "", Severity::Warning, Code::Conflict, message);
                self.is("IST0130");
                continue;
            }
            // Of conditions of one rule, only those that say the same are of no use.
            let (mut own, mut alike) = (Vec::new(), HashMap::new());
            for (index, condition) in rule.route.matches.iter().enumerate() {
                let field = format!("match[{index}]");
                let asked = compile::condition_of(condition);
                let is_open = is_of_everyone(condition);
                let is_compared = is_open && rule.route.matches.len() > 1;
                let same = is_compared.then(|| alike.insert(format!("{asked:?}"), field.clone())).flatten();
                if let Some(earlier) = before.takes_all_of(&asked).or(same.as_ref()) {
                    let message = format!("never reached: {earlier} takes all of its requests");
                    self.say(rule, condition.span, &field, Severity::Warning, Code::Conflict, message);
                    self.is(if rule.route.matches.len() == 1 { "IST0130" } else { "IST0131" });
                } else if is_open {
                    own.push((asked, format!("{}.{field}", rule.written.field)));
                }
            }
            own.into_iter().for_each(|(asked, field)| before.push(asked, field));
            if is_catch_all(rule) {
                catch_all = Some(rule);
            }
        }
    }

    /// A sticky split that splits nothing, or takes the choice of an endpoint from what was to make it.
    fn check_sticky_split(&mut self) {
        let Some(by) = &self.entry.meta.extensions.sticky_split else { return };
        let splits: Vec<&Rule> = self.entry.rules.iter().filter(|rule| rule.route.route.len() > 1).collect();
        let is_known = self.entry.rules.iter().all(|rule| rule.refused.is_none());
        let by = HashedBy::from(by);
        let beside = |rule: &Rule| {
            rule.route.route.iter().find_map(|to| {
                let hashed = hashed_by(self.policy, &to.destination, &rule.namespace);
                hashed.iter().find_map(|hashed| beside_split(&by, hashed))
            })
        };
        let message = match splits.iter().find_map(|rule| Some((rule, beside(rule)?))) {
            Some((rule, what)) => format!("a destination of {} has a `consistentHash` by {what}", rule.written.field),
            None if splits.is_empty() && is_known => "without effect: no rule has several destinations".to_owned(),
            None => return,
        };
        let field = "metadata.annotations.mesh-control/sticky-split";
        let origin = locate(&self.entry.meta.origin, field);
        let finding = Diagnostic::at(&origin, Severity::Warning, Code::Ignored, message);
        self.found.push(finding.object(self.entry.meta.id()).field(field));
    }

    /// Hedging where no try has a time after which the next one begins.
    fn check_hedge(&mut self) {
        let default = self.policy.mesh.retry.as_ref();
        let may_hedge = |rule: &Rule| {
            let retry = retry::of(rule.route.retries.as_ref(), default);
            rule.refused.is_some() || retry.is_some_and(|retry| retry.per_try_timeout.is_some())
        };
        if self.entry.meta.extensions.hedge.is_none() || self.entry.rules.iter().any(may_hedge) {
            return;
        }
        let field = "metadata.annotations.mesh-control/hedge";
        let origin = locate(&self.entry.meta.origin, field);
        let message = "without effect: no rule has retries with a `perTryTimeout`";
        let finding = Diagnostic::at(&origin, Severity::Warning, Code::Ignored, message);
        self.found.push(finding.object(self.entry.meta.id()).field(field));
    }

    /// Rules on connections: where they lead, and whether there is a port that they are for.
    fn check_connections(&mut self) {
        let Some(object) = self.entry.object.clone() else { return };
        let hosts = self.entry.hosts.iter().filter(|host| !host.starts_with('*'));
        let services: Vec<_> = hosts.map(|host| self.policy.services.find(host, &object.meta.namespace)).collect();
        let spoken: Option<Vec<Protocol>> = services
            .iter()
            .map(|service| Some(service.as_ref()?.1.ports.iter().map(|port| port.protocol)))
            .collect::<Option<Vec<_>>>()
            .map(|ports| ports.into_iter().flatten().collect());
        for (index, route) in object.spec.routes() {
            let is_on_names = match route {
                AnyRoute::Http(_) => continue,
                AnyRoute::Tls(_) => true,
                AnyRoute::Tcp(_) => false,
            };
            let span = route.span();
            let written = Written {
                object: object.meta.id(),
                field: route.path(index).into(),
                origin: object.meta.origin.at(span),
            };
            let rule = Rule {
                route: HttpRoute::default(),
                namespace: object.meta.namespace.clone(),
                written,
                refused: None,
                extensions: Extensions::default(),
            };
            for (position, to) in route.destinations().enumerate() {
                self.check_destination(&rule, &format!("route[{position}].destination"), to);
            }
            let is_for = |protocol: &Protocol| match protocol {
                Protocol::Unspecified => true,
                protocol => matches!(protocol, Protocol::Tls | Protocol::Https) == is_on_names,
            };
            let is_idle = spoken.as_ref().is_some_and(|spoken| !spoken.is_empty() && !spoken.iter().any(is_for));
            if is_idle && !self.counts_at_gateway(is_on_names, &route.matches()) {
                let message = match is_on_names {
                    true => "without effect: it is for ports whose protocol is TLS or HTTPS, and its hosts have none",
                    false => "without effect: applications speak TLS to every port of its hosts, for which `tls` is",
                };
                self.say(&rule, span, "", Severity::Warning, Code::Ignored, message);
            }
        }
    }

    /// Whether a rule on connections, with these conditions on gateways and ports, is for a server of a gateway: one on names where
    /// TLS passes, and one on any connections where it has ended, or was none. What is spoken behind the gateway is of no account.
    fn counts_at_gateway(&self, is_on_names: bool, matches: &[AnyMatch<'_>]) -> bool {
        let own = &self.entry.meta.namespace;
        let is_meant = |name: &str, server: &Server| {
            let has = |names: &[&str]| names.is_empty() || names.iter().any(|one| gateway_name(one, own) == name);
            let port = server.port.number.0;
            matches.is_empty()
                || matches.iter().any(|one| has(&one.gateways) && one.port.is_none_or(|wanted| wanted == port))
        };
        let passes = |server: &Server| server.tls.as_ref().is_some_and(|tls| !tls.mode.terminates());
        self.policy.gateways.of_istio().any(|gateway| {
            let name = format!("{}/{}", gateway.meta.namespace, gateway.meta.name);
            self.entry.gateways.contains(&name)
                && gateway
                    .spec
                    .servers
                    .iter()
                    .any(|server| !server.takes_requests() && passes(server) == is_on_names && is_meant(&name, server))
        })
    }

    /// Destinations of one rule that are chosen from by different hashes.
    fn check_hashes(&mut self, rule: &Rule) {
        let view = View::of_namespace(&self.entry.meta.namespace);
        let addressed = self.addressed_ports();
        let mut by: Vec<HashedBy> = Vec::new();
        for HttpDestination { destination: to, .. } in &rule.route.route {
            let host = in_namespace(&to.host, &rule.namespace);
            let service = self.policy.services.find(&host, &self.entry.meta.namespace);
            let only = service.and_then(|(_, service)| match service.ports.as_slice() {
                [only] => Some(only.number),
                _ => addressed.first().copied(),
            });
            let Some(port) = to.port.as_ref().map(|port| port.number.0).or(only) else { continue };
            let subset = to.subset.as_ref().map_or("", |subset| subset.value.as_str());
            let key = ClusterKey { host: host.as_str().into(), port, subset: subset.into() };
            let hashed = self.policy.cluster(key, &view).and_then(|seen| seen.traffic.hashed_by);
            by.extend(hashed.filter(|hashed| !by.contains(hashed)));
        }
        if by.len() > 1 {
            let by: Vec<String> = by.iter().map(named).collect();
            let message = format!(
                "the rules on its destinations hash requests by {}: each request is hashed by all of them, whichever \
                 destination it goes to",
                by.join(", and by ")
            );
            self.say(rule, rule.route.span, "route", Severity::Warning, Code::Conflict, message);
        }
    }

    fn check_rule(&mut self, rule: &Rule) {
        for (field, why) in unmet::in_rule(&rule.route, &self.addressed_ports()) {
            self.say(rule, rule.route.span, &field, Severity::Warning, Code::Ignored, why);
        }
        let several = rule.route.route.len() > 1;
        let weight_of = |destination: &HttpDestination| destination.weight.as_ref().map_or(0, |weight| weight.value);
        let is_split = rule.route.route.iter().filter(|destination| weight_of(destination) > 0).count() > 1;
        if is_split {
            self.check_hashes(rule);
        }
        let mut before = Vec::new();
        for (index, destination) in rule.route.route.iter().enumerate() {
            let weight = weight_of(destination);
            if several && weight <= 0 {
                let field = format!("route[{index}].weight");
                let message = "0, so it gets no request";
                self.say(rule, destination.span, &field, Severity::Info, Code::Ignored, message);
                continue;
            }
            let to = &destination.destination;
            let host = in_namespace(&to.host, &rule.namespace);
            let same = (host.clone(), to.subset.as_deref(), to.port.as_ref().map(|port| port.number));
            if let Some((earlier, _)) = before.iter().find(|(_, other)| *other == same) {
                let message = format!("the same destination as route[{earlier}]: their weights add up");
                let field = format!("route[{index}].destination");
                self.say(rule, to.span, &field, Severity::Warning, Code::Duplicate, message);
            }
            before.push((index, same));
            self.check_destination(rule, &format!("route[{index}].destination"), to);
        }
        for (field, to, _) in rule.route.mirrored() {
            self.check_destination(rule, &field, to);
        }
    }

    fn check_destination(&mut self, rule: &Rule, field: &str, to: &Destination) {
        let client = &self.entry.meta.namespace;
        let host = in_namespace(&to.host, &rule.namespace);
        // The object that is wrong says so.
        if self.policy.services.refused(&host, client).is_some() {
            return;
        }
        let real = self.policy.services.real(&host, client);
        let host = real.map_or(host, |real| real.to_string());
        let Some((_, service)) = self.policy.services.find(&host, client) else {
            // What an alias stands for is looked up, and has any port.
            if self.policy.services.alias_of(&host, client).is_some() {
                return;
            }
            let message = unknown_host(self.policy, &host, client);
            let field = format!("{field}.host");
            self.say(rule, to.host.span, &field, Severity::Error, Code::UnknownReference, message);
            return;
        };
        match &to.port {
            Some(port) => self.check_port(rule, field, service, &[port.number.0], port.span),
            None if service.ports.len() != 1 => {
                let (addressed, before) = (self.addressed_ports(), self.found.len());
                self.check_port(rule, field, service, &addressed, to.span);
                // A port that is written would be another one.
                self.found.iter_mut().skip(before).for_each(|finding| finding.istio = Some("IST0112"));
            }
            None => {}
        }
        if let Some(subset) = &to.subset {
            self.check_subset(rule, field, &host, service, &subset.value, subset.span);
        }
    }

    fn check_port(&mut self, rule: &Rule, field: &str, service: &Service, ports: &[u16], span: Span) {
        for port in ports.iter().filter(|port| service.port(**port).is_none()) {
            let known: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
            let message = format!("{} has no port {port}, only {}", service.host, known.join(", "));
            let field = format!("{field}.port");
            self.say(rule, span, &field, Severity::Error, Code::UnknownReference, message);
        }
    }

    fn check_subset(&mut self, rule: &Rule, field: &str, host: &str, service: &Service, subset: &str, span: Span) {
        let rules = &self.policy.destination_rules;
        let seen_from = |namespace: &str| rules.find(host, &service.namespace, &View::of_namespace(namespace));
        let has = |namespace: &&str| {
            seen_from(namespace).is_some_and(|seen| seen.has_subset(subset) || seen.refused().is_some())
        };
        let own = &*self.entry.meta.namespace;
        // A gateway that the object is for, too, does not call itself: its namespace is no client for that.
        let theirs = Some(&*service.namespace).filter(|_| !self.leads_to_own_gateway(service));
        // Those that the rules for it are meant for, too: they may be told to some namespaces only.
        let governing = rules.governing(host, [own, &*service.namespace]);
        let named = governing.iter().flat_map(|rule| rule.visibility().named());
        let clients = named.chain(self.entry.visibility.named()).chain([own]).chain(theirs);
        let is_client = |namespace: &&str| self.entry.visibility.includes(namespace);
        let clients: BTreeSet<&str> = clients.filter(is_client).collect();
        let without: Vec<&str> = clients.iter().copied().filter(|namespace| !has(namespace)).collect();
        let Some(first) = without.iter().find(|namespace| **namespace == own).or(without.first()) else { return };
        // Clients of other namespaces may well have a rule of their own that defines it.
        let all = clients.iter().copied().chain(rules.namespaces().map(|namespace| &**namespace).filter(is_client));
        let with: BTreeSet<&str> = all.filter(has).collect();
        let known: Vec<&str> = seen_from(first).into_iter().flat_map(|seen| seen.subset_names()).collect();
        // What is told to others on purpose is not what the object's own clients are to have.
        let is_meant = governing.iter().any(|rule| rule.has_subset(subset) && !rule.visibility().includes(own));
        let fails_own = *first == own && !is_meant;
        let severity = if with.is_empty() || fails_own { Severity::Error } else { Severity::Warning };
        let message = match (with.is_empty(), nearest(subset, &known)) {
            (false, _) => {
                let with = with.into_iter().collect::<Vec<_>>().join(", ");
                format!(" for clients of namespace {}, only for those of {with}", without.join(", "))
            }
            (true, _) if known.is_empty() => format!(": no DestinationRule defines a subset of {host}"),
            (true, None) => format!(": {host} has the subsets {}", known.join(", ")),
            (true, Some(meant)) => {
                format!(": {host} has the subsets {}; did you mean {}?", known.join(", "), quoted(meant))
            }
        };
        let message = format!("{} is no subset{message}", quoted(subset));
        let field = format!("{field}.subset");
        self.say(rule, span, &field, severity, Code::UnknownReference, message);
    }

    /// Whether a service leads to a gateway that the object is for, too.
    fn leads_to_own_gateway(&self, service: &Service) -> bool {
        let Some(labels) = &service.selector else { return false };
        self.policy.gateways.of_istio().any(|gateway| {
            let name = format!("{}/{}", gateway.meta.namespace, gateway.meta.name);
            let selector = &gateway.spec.selector;
            self.entry.gateways.contains(&name) && !selector.is_empty() && is_subset(selector, labels)
        })
    }

    /// The last finding has this code in Istio.
    fn is(&mut self, istio: &'static str) {
        if let Some(last) = self.found.last_mut() {
            last.istio = Some(istio);
        }
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

/// Splits of sessions by chance: a cookie keeps them at an endpoint of the destination that a request is for, and which that is each
/// request draws anew.
fn check_sessions(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in objects.virtual_services.iter().filter(|object| object.meta.extensions.sticky_split.is_none()) {
        for (index, rule) in object.spec.http.iter().enumerate() {
            let has_share = |to: &&HttpDestination| to.weight.as_ref().is_some_and(|weight| weight.value > 0);
            let shares: Vec<&HttpDestination> = rule.route.iter().filter(has_share).collect();
            let cookie = shares.iter().find_map(|to| {
                let hashed = hashed_by(policy, &to.destination, &object.meta.namespace);
                hashed.into_iter().find_map(|by| match by {
                    HashedBy::Cookie { name, .. } => Some(name),
                    _ => None,
                })
            });
            let Some(name) = cookie.filter(|_| shares.len() > 1) else { continue };
            let message = format!(
                "the cookie {} keeps a session at an endpoint, and not at a destination: which one a request goes to is drawn by weight \
                 each time; the annotation `mesh-control/sticky-split` splits by it, too",
                quoted(&name)
            );
            let finding = Diagnostic::at(&object.meta.origin.at(rule.span), Severity::Info, Code::Advice, message);
            found.push(finding.object(object.meta.id()).field(format!("http[{index}].route")));
        }
    }
}

/// What the rules on a destination hash requests by, whoever they are for.
fn hashed_by(policy: &Policy, to: &Destination, namespace: &str) -> Vec<HashedBy> {
    let host = in_namespace(&to.host, namespace);
    let port = to.port.as_ref().map_or(0, |port| port.number.0);
    let subset = to.subset.as_ref().map_or("", |subset| subset.value.as_str());
    let key = ClusterKey { host: host.as_str().into(), port, subset: subset.into() };
    let rules = policy.destination_rules.of_host(&host);
    rules.filter_map(|rule| rule.traffic_policy(&key, Around::default()).hashed_by).collect()
}

/// What requests are hashed by, in the words of a DestinationRule.
fn named(by: &HashedBy) -> String {
    match by {
        HashedBy::Header(name) => format!("the header {name}"),
        HashedBy::Cookie { name, .. } => format!("the cookie {name}"),
        HashedBy::SourceAddress => "the address of the client".to_owned(),
        HashedBy::Query(name) => format!("the query parameter {name}"),
    }
}

/// Whether a rule takes every request of every client, whatever the port.
fn is_catch_all(rule: &Rule) -> bool {
    let mut open = rule.route.matches.iter().filter(|condition| is_of_everyone(condition));
    rule.route.matches.is_empty() || open.any(|condition| compile::condition_of(condition).is_catch_all())
}

/// Whether a condition is for every client of the mesh, whatever the port.
fn is_of_everyone(condition: &HttpMatch) -> bool {
    let mut names = condition.headers.keys().chain(condition.without_headers.keys());
    condition.source_labels.is_empty()
        && condition.source_namespace.is_empty()
        && condition.gateways.is_empty()
        && condition.port.is_none()
        // Claims of a token are known to a gateway only.
        && !names.any(|name| name.starts_with('@'))
}

/// What is to be said of what a destination hashes by, beside a split that goes by this.
fn beside_split(by: &HashedBy, hashed: &HashedBy) -> Option<&'static str> {
    match (by, hashed) {
        (HashedBy::Cookie { name, .. }, HashedBy::Cookie { name: other, .. }) if name == other => None,
        (HashedBy::Header(name), HashedBy::Header(other)) if name.eq_ignore_ascii_case(other) => None,
        _ => Some("something else: it counts for requests only that do not say who makes them"),
    }
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
    let of_refused = objects.refused.iter().flat_map(|object| &object.delegates);
    targets.extend(of_refused.map(|(namespace, name)| (namespace.as_str(), name.as_str())));
    for object in objects.virtual_services.iter().filter(|object| object.spec.hosts.is_empty()) {
        if !targets.contains(&(&*object.meta.namespace, &*object.meta.name)) {
            let message = "it has no hosts, and no other object delegates to it: it has no effect";
            let finding = Diagnostic::at(&object.meta.origin, Severity::Warning, Code::UnknownReference, message);
            found.push(finding.object(object.meta.id()).field("hosts"));
        }
    }
}
