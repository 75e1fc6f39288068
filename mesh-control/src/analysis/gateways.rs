//! Gateways: servers that cannot be where they are to be, certificates that there are not, and rules of VirtualServices that are for
//! none of them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::rules::nobody_by;
use crate::config::diagnostic::{Code, Diagnostic, Severity, Topic, quoted};
use crate::config::file::{Meta, Object, Objects, Refused};
use crate::config::istio::authorization::Unseen;
use crate::config::istio::gateway::{Gateway, Server, ServerTls, TlsMode, split_host};
use crate::config::istio::secret::Secret;
use crate::config::istio::virtual_service::{AnyMatch, AnyRoute, MESH, VirtualService};
use crate::config::locate::locate;
use crate::config::spelling::nearest;
use crate::config::support::{ObjectKind, is_foreign_to_gateways};
use crate::policy::Policy;
use crate::policy::access::{AccessPolicy, AccessRule, Effect};
use crate::policy::gateways::Allowed;
use crate::policy::secrets::AUTHORITIES;
use crate::policy::virtual_services::gateway_name;
use crate::registry::Discovery;
use crate::registry::host::in_namespace;
use crate::registry::service::{Target, is_subset};

pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    rules(objects, policy, found);
    conflicts(policy, found);
    credentials(objects, policy, found);
    selectors(objects, policy, found);
    unseen(policy, found);
}

/// Rules for gateways that there are not, or that have none of their hosts.
fn rules(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let by_name: BTreeMap<String, Allowed<'_>> = policy
        .gateways
        .of_istio()
        .map(|gateway| {
            let Meta { namespace, name, .. } = &gateway.meta;
            (format!("{namespace}/{name}"), Allowed::of(&gateway.spec.servers, namespace))
        })
        .collect();
    let is_wrong = |name: &str| {
        let is_it = |object: &Refused| {
            object.meta.kind == ObjectKind::Gateway && format!("{}/{}", object.meta.namespace, object.meta.name) == name
        };
        objects.refused.iter().any(|object| is_it(object))
    };
    let known: BTreeSet<&str> = by_name.keys().map(String::as_str).collect();
    for rule in &objects.virtual_services {
        let own = &rule.meta.namespace;
        conditions(rule, found);
        back_to_gateway(rule, policy, found);
        let hosts: Vec<String> = rule.spec.hosts.iter().map(|host| in_namespace(host, own)).collect();
        for (index, written) in rule.spec.gateways.iter().enumerate() {
            let name = gateway_name(written, own);
            if name == MESH || is_wrong(&name) {
                continue;
            }
            let origin = rule.meta.origin.at(written.span);
            let mut say = |istio, field: String, message: String| {
                let finding = Diagnostic::at(&origin, Severity::Warning, Code::UnknownReference, message);
                found.push(finding.istio(istio).object(rule.meta.id()).field(field));
            };
            let Some(allowed) = by_name.get(&name) else {
                let meant = nearest(&name, &known).map(|meant| format!("; did you mean {}?", quoted(meant)));
                let message =
                    format!("there is no Gateway {name}: the rules apply nowhere there{}", meant.unwrap_or_default());
                say("IST0101", format!("gateways[{index}]"), message);
                continue;
            };
            if allowed.shared(&hosts, own).is_empty() {
                let message = format!(
                    "Gateway {name} has none of these hosts for namespace {own}: the rules apply nowhere there"
                );
                say("IST0132", "hosts".to_owned(), message);
            }
        }
    }
}

/// Conditions for gateways that their object is not for. Those of a delegate are for the gateways of others.
fn conditions(rule: &Object<VirtualService>, found: &mut Vec<Diagnostic>) {
    let own = &rule.meta.namespace;
    let of_object: BTreeSet<String> = match rule.spec.gateways.as_slice() {
        [] if rule.spec.hosts.is_empty() => return,
        [] => [MESH.to_owned()].into(),
        written => written.iter().map(|name| gateway_name(name, own)).collect(),
    };
    for (index, route) in rule.spec.http.iter().enumerate() {
        for (place, condition) in route.matches.iter().enumerate() {
            let stray = condition.gateways.iter().find(|name| !of_object.contains(&gateway_name(name, own)));
            let Some(stray) = stray else { continue };
            let message =
                format!("{} is none of the gateways of the object: the condition never holds there", quoted(stray));
            let finding =
                Diagnostic::at(&rule.meta.origin.at(stray.span), Severity::Warning, Code::UnknownReference, message);
            found.push(finding.object(rule.meta.id()).field(format!("http[{index}].match[{place}].gateways")));
        }
    }
}

/// Destinations behind a gateway that are wherever a connection was going to (`resolution: NONE`), by a wildcard: it was going to the
/// gateway.
fn back_to_gateway(rule: &Object<VirtualService>, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let own = &rule.meta.namespace;
    if !rule.spec.is_at_gateways() {
        return;
    }
    let routes = rule.spec.routes().filter(|(_, route)| counts_at_gateways(&route.matches()));
    let destinations = routes
        .flat_map(|(index, route)| route.destinations().enumerate().map(move |(at, to)| (index, route, at, &to.host)));
    for (index, route, at, host) in destinations {
        let service = policy.services.find(&in_namespace(host, own), own);
        let is_there = service.is_some_and(|(_, service)| service.discovery == Discovery::Passthrough);
        if !is_there || !host.starts_with('*') {
            continue;
        }
        let message = format!(
            "{} is where a connection was going to (`resolution: NONE`), which at a gateway is the gateway itself; with `resolution: \
             DYNAMIC_DNS` in its ServiceEntry the name is looked up that a client asks for",
            quoted(host)
        );
        // A request has a name that a program of this project goes by.
        let severity = if matches!(route, AnyRoute::Http(_)) { Severity::Warning } else { Severity::Error };
        let finding = Diagnostic::at(&rule.meta.origin.at(host.span), severity, Code::Conflict, message);
        let field = format!("{}.route[{at}].destination.host", route.path(index));
        found.push(finding.object(rule.meta.id()).field(field));
    }
}

/// Whether a rule whose conditions name these gateways is for others than the workloads of the mesh.
fn counts_at_gateways(matches: &[AnyMatch<'_>]) -> bool {
    let is_for_gateways = |names: &[&str]| names.is_empty() || names.iter().any(|name| *name != MESH);
    matches.is_empty() || matches.iter().any(|one| is_for_gateways(&one.gateways))
}

/// Servers that are left out of a gateway, for another one is there.
fn conflicts(policy: &Policy, found: &mut Vec<Diagnostic>) {
    let mut told = BTreeSet::new();
    for (namespace, labels) in policy.gateways.described(&policy.services) {
        let (_, left_out) = policy.gateways.of(&namespace, &labels, &[], &policy.services);
        for out in left_out {
            let meta = &out.server.gateway.meta;
            if !told.insert((meta.id(), out.server.index)) {
                continue;
            }
            let span = out.server.server().map(|server| server.span).unwrap_or_default();
            let message = format!("it is left out: {}", out.why);
            let finding = Diagnostic::at(&meta.origin.at(span), Severity::Error, Code::Conflict, message);
            let field = match out.server.is_listener() {
                true => "listeners".to_owned(),
                false => format!("servers[{}]", out.server.index),
            };
            found.push(finding.istio("IST0145").object(meta.id()).field(field));
        }
    }
}

/// Certificates that no Secret has, and hosts that no certificate can be chosen for.
fn credentials(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for gateway in policy.gateways.of_istio() {
        for (index, server) in gateway.spec.servers.iter().enumerate() {
            let Some(tls) = server.tls.as_ref().filter(|_| server.port.is_tls()) else { continue };
            let mut say = |istio: Option<&'static str>, span, field: String, message: String| {
                let origin = gateway.meta.origin.at(span);
                let finding = Diagnostic::at(&origin, Severity::Warning, Code::UnknownReference, message);
                let finding = finding.object(gateway.meta.id()).field(format!("servers[{index}].{field}"));
                found.push(match istio {
                    Some(code) => finding.istio(code),
                    None => finding,
                });
            };
            for (place, host) in partial(server) {
                let message = format!(
                    "{} cannot be asked for by TLS, where `*` is a whole label: it is not served",
                    quoted(host)
                );
                say(None, server.span, format!("hosts[{place}]"), message);
            }
            for (field, name) in missing(objects, tls) {
                let what = match field {
                    OF_CLIENTS => {
                        format!("{name}{AUTHORITIES} with the authorities of clients (`ca.crt`), or {name} with them,")
                    }
                    _ => format!("{name} with it"),
                };
                let message = format!(
                    "no Secret {what} is among the objects (from a Kubernetes cluster, none is read): connections for these \
                     hosts are closed"
                );
                say(Some("IST0161"), tls.span, format!("tls.{field}"), message);
            }
        }
    }
}

fn partial(server: &Server) -> impl Iterator<Item = (usize, &str)> {
    let hosts = server.hosts.iter().map(|host| split_host(host).1).enumerate();
    hosts.filter(|(_, host)| host.starts_with('*') && *host != "*" && !host.starts_with("*."))
}

/// The field that names who vouches for clients.
const OF_CLIENTS: &str = "caCertCredentialName";

/// Of the Secrets that a server names, those that there are not; in which namespace they have to be, the gateway says.
fn missing<'a>(objects: &Objects, tls: &'a ServerTls) -> Vec<(&'static str, &'a str)> {
    let any = |name: &str, has: fn(&Secret) -> bool| {
        objects.secrets.iter().any(|secret| *secret.meta.name == *name && has(&secret.spec))
    };
    let mut missing = Vec::new();
    if !tls.mode.terminates() {
        return missing;
    }
    for name in tls.credentials() {
        if !any(name, |secret| secret.identity.is_some()) {
            missing.push(("credentialName", name.as_str()));
        }
    }
    if let Some(name) = tls.authorities().filter(|_| tls.mode.asks_clients()) {
        let has_roots = |secret: &Secret| secret.authorities.is_some();
        if !any(name, has_roots) && !any(&format!("{}{AUTHORITIES}", name.value), has_roots) {
            missing.push((OF_CLIENTS, name.as_str()));
        }
    }
    missing
}

/// What is said of a Gateway whose labels nothing here has.
const NOBODY: &str = "nothing here has these labels: it is for gateways that say themselves that they have them (`mesh-gateway --label \
    KEY=VALUE`; an Envoy by `mesh-control bootstrap --envoy gateway --label KEY=VALUE`)";

/// Whether that is said of a Gateway, and it is for a gateway with some of these labels.
pub(crate) fn is_for_known(finding: &Diagnostic, policy: &Policy, known: &[&BTreeMap<String, String>]) -> bool {
    let is_it = |gateway: &Object<Gateway>| {
        let is_named = finding.object.as_ref() == Some(&gateway.meta.id());
        is_named && known.iter().any(|labels| is_subset(&gateway.spec.selector, labels))
    };
    finding.topic() == Some(Topic::UnknownGateways) && policy.gateways.of_istio().any(|gateway| is_it(gateway))
}

/// Selectors that nothing in the configuration has the labels of.
fn selectors(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for gateway in policy.gateways.of_istio().filter(|gateway| !gateway.spec.selector.is_empty()) {
        let of_services = policy.services.iter().filter_map(|(_, service)| service.selector.as_ref());
        let mut known = of_services.chain(objects.pods.iter().map(|pods| &pods.labels));
        if !known.any(|labels| is_subset(&gateway.spec.selector, labels)) {
            let finding = Diagnostic::at(&gateway.meta.origin, Severity::Info, Code::UnknownReference, NOBODY);
            found.push(finding.object(gateway.meta.id()).field("selector").about(Topic::UnknownGateways));
        }
    }
}

/// What guards a gateway by what nobody knows at a server of it: requests, where nobody sees any, names that clients ask for, and who they
/// are.
fn unseen(policy: &Policy, found: &mut Vec<Diagnostic>) {
    let root = &*policy.mesh.fixed.root_namespace;
    for (meta, workloads, access) in policy.security.deciding() {
        let of_bytes = of_bytes(access);
        let by_tls = access.filter(|access| lost(access, Unseen::ALL).next().is_some());
        let mut places = BTreeMap::new();
        let gateways = policy.gateways.among(workloads, (&*meta.namespace, root), &policy.services);
        for (gateway, index, server) in gateways
            .flat_map(|gateway| gateway.spec.servers.iter().enumerate().map(move |(at, one)| (gateway, at, one)))
        {
            if is_foreign_to_gateways(&server.port.protocol) {
                continue;
            }
            let mut said = if server.takes_requests() { Vec::new() } else { of_bytes.clone() };
            // Where nobody is let in at all, that is said.
            let by_tls = by_tls.filter(|_| said.iter().all(|(field, ..)| field.starts_with("rules[")));
            if let Some(access) = by_tls {
                let lost = lost(access, unseen_at(server)).filter(|(_, rule, _)| is_for(rule, gateway, server, policy));
                for (number, _, why) in lost {
                    let field = format!("rules[{number}]");
                    said.retain(|(of, ..)| *of != field);
                    let what = format!("{} by this rule: {why}", does(access.effect)).into();
                    said.push((field, Severity::Warning, Code::Ignored, what));
                }
            }
            if said.is_empty() {
                continue;
            }
            let place = match gateway.meta.kind {
                ObjectKind::Gateway => format!("servers[{index}]"),
                _ => format!("listener {}", quoted(&server.name)),
            };
            let (id, protocol, port) = (gateway.meta.id(), &server.port.protocol.value, server.port.number.0);
            for (field, severity, code, what) in said {
                let message = format!("{place} of {id} ({protocol}, port {port}) {what}");
                let origin = places.entry(field.clone()).or_insert_with(|| locate(&meta.origin, &field));
                found.push(Diagnostic::at(origin, severity, code, message).object(meta.id()).field(field));
            }
        }
    }
}

/// The rules that nobody fits where this is unknown, and why.
fn lost(access: &AccessPolicy, unseen: Unseen) -> impl Iterator<Item = (usize, &AccessRule, &'static str)> {
    let lets_in = matches!(access.effect, Effect::Allow | Effect::Audit);
    let rules = access.rules.iter().enumerate();
    rules.filter_map(move |(index, rule)| Some((index, rule, nobody_by(rule.conditions.lost(unseen, lets_in)?))))
}

/// What nobody knows of the connections to a server.
fn unseen_at(server: &Server) -> Unseen {
    let tls = server.tls.as_ref().filter(|_| server.port.is_tls());
    let is_shown = |tls: &ServerTls| tls.mode.asks_clients() || tls.mode == TlsMode::IstioMutual;
    Unseen { names: !server.port.is_tls(), peers: !tls.is_some_and(is_shown) }
}

/// Whether a rule may be for a server, by its own port, or by the target ports of Services that lead to it.
fn is_for(rule: &AccessRule, gateway: &Object<Gateway>, server: &Server, policy: &Policy) -> bool {
    let number = server.port.number.0;
    if rule.conditions.may_be_at(&[number]) {
        return true;
    }
    let services = policy.services.iter().map(|(_, service)| service);
    let leading = services
        .filter(|service| service.selector.as_ref().is_some_and(|labels| is_subset(&gateway.spec.selector, labels)));
    let mut there = leading.flat_map(|service| &service.ports).filter(|port| port.number == number);
    there.any(|port| matches!(port.target, Target::Number(target) if rule.conditions.may_be_at(&[target])))
}

/// What becomes of those whom no rule of a policy fits.
fn does(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "lets nobody in",
        Effect::Deny => "refuses nobody",
        Effect::Audit => "tells of nobody",
        Effect::Ask => "has nobody asked",
    }
}

/// What is said of an object at a server where nobody sees requests, with the field; nothing where it asks about connections alone.
fn of_bytes(access: Option<&AccessPolicy>) -> Vec<(String, Severity, Code, Cow<'static, str>)> {
    let closed = |why: &'static str| vec![("spec".to_owned(), Severity::Error, Code::NotSupportedYet, why.into())];
    let Some(AccessPolicy { effect, rules, .. }) = access else {
        let why = "looks at no token, so that this has no effect: nobody sees requests there; who may connect is for \
            AuthorizationPolicies to say";
        return vec![("jwtRules".to_owned(), Severity::Warning, Code::Ignored, why.into())];
    };
    let asking = || rules.iter().enumerate().filter(|(_, rule)| rule.conditions.ask_about_requests());
    let of_rule = |index: usize, severity: Severity, what: &'static str| {
        let code = if severity == Severity::Error { Code::Conflict } else { Code::Ignored };
        (format!("rules[{index}]"), severity, code, what.into())
    };
    match effect {
        Effect::Ask => closed(
            "closes every connection: somebody is asked about requests, and nobody sees any there; what is to pass as bytes goes \
             by a gateway of its own that this is not for",
        ),
        Effect::Audit => Vec::new(),
        Effect::Allow if !rules.is_empty() && asking().count() == rules.len() => vec![(
            "rules".to_owned(),
            Severity::Error,
            Code::Conflict,
            "lets no connection in by this policy: all of its rules ask about requests, and nobody sees any there"
                .into(),
        )],
        Effect::Allow => asking()
            .map(|(index, _)| {
                let what = "lets no connection in by this rule: it asks about requests, and nobody sees any there";
                of_rule(index, Severity::Warning, what)
            })
            .collect(),
        Effect::Deny => asking()
            .map(|(index, rule)| match rule.conditions.fit_every_connection() {
                true => {
                    let what =
                        "closes every connection: this rule asks about requests alone, and nobody sees any there";
                    of_rule(index, Severity::Error, what)
                }
                false => {
                    let what = "refuses connections by the rest of this rule: nobody sees requests there";
                    of_rule(index, Severity::Warning, what)
                }
            })
            .collect(),
    }
}
