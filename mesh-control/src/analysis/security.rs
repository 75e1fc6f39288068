//! Objects that guard workloads and are not enforced, never count, or are for a service or a port that does not exist.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::rules::TargetPorts;
use super::tokens;
use crate::config::diagnostic::{Code, Diagnostic, Severity, Topic, quoted};
use crate::config::file::{Governs, Meta, Object, Objects, Refused, Workloads, is_namespace};
use crate::config::gateway_api::CLASSES;
use crate::config::istio::authorization::conditions;
use crate::config::istio::security::{Action, AuthorizationPolicy, DRY_RUN, PeerAuthentication, TargetRef, selected};
use crate::config::locate::locate;
use crate::config::support::ObjectKind;
use crate::policy::Policy;

pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for (meta, lacks) in policy.security.unenforced() {
        let (code, when) = match meta.kind {
            ObjectKind::PeerAuthentication => (
                Code::NeedsCertificates,
                "not enforced where the control plane issues no certificates (it does with --ca-dir, --state-dir or --dev)",
            ),
            _ => (Code::Unenforced, "not enforced"),
        };
        let message = format!(
            "{when}: {lacks}: workloads that it is for answer every request with 503 and the reason, unless mesh-control is told \
             --allow-unenforced"
        );
        found.push(Diagnostic::at(&meta.origin, Severity::Error, code, message).object(meta.id()).field("spec"));
    }
    let root = &*policy.mesh.fixed.root_namespace;
    found.extend(objects.refused.iter().filter_map(|object| guarded_all_the_same(object, root)));
    found.extend(objects.refused.iter().filter_map(|object| not_in_force(object)));
    check_authorizers(objects, policy, found);
    for (hidden, winner) in policy.security.hidden() {
        let message = format!(
            "without effect: {} ({}) is for the same workloads, and is the one that counts",
            winner.id(),
            winner.origin
        );
        found.push(Diagnostic::at(&hidden.origin, Severity::Warning, Code::Conflict, message).object(hidden.id()));
    }
    for object in &objects.peer_authentications {
        check_ports(object, policy, found);
    }
    for object in &objects.authorization_policies {
        let whom = objects.workloads(&object.meta, object.spec.selector.as_ref(), &object.spec.targets());
        tokens::check(&object.meta, &whom, of_tokens(&object.spec), (objects, policy), found);
    }
    for (meta, targets) in objects.targets() {
        check_targets(objects, root, meta, &targets, found);
    }
}

/// Takes out what was said of addresses of clients, where a policy is for gateways alone and the mesh says who is in front of them.
pub(super) fn drop_believed(objects: &Objects, policy: &Policy, diagnostics: &mut Vec<Diagnostic>) {
    let topology = policy.mesh.topology();
    if topology.forwarded_hops.is_none_or(|number| number == 0) && topology.proxy_protocol != Some(true) {
        return;
    }
    let root = &*policy.mesh.fixed.root_namespace;
    let is_at_gateway = |object: &Object<AuthorizationPolicy>| {
        let whom = objects.workloads(&object.meta, object.spec.selector.as_ref(), &object.spec.targets());
        let is_for_all = matches!(&whom, Workloads::Labelled(labels) if labels.is_empty());
        let mut gateways = policy.gateways.among(&whom, (&*object.meta.namespace, root), &policy.services);
        !is_for_all && gateways.next().is_some()
    };
    let believed = objects.authorization_policies.iter().filter(|object| is_at_gateway(object));
    let believed: BTreeSet<Arc<str>> = believed.map(|object| object.meta.id()).collect();
    diagnostics.retain(|finding| {
        let is_believed = finding.object.as_ref().is_some_and(|id| believed.contains(id));
        !(is_believed && finding.topic() == Some(Topic::ClientAddress))
    });
}

/// Policies that ask somebody whom nothing describes, and those that ask nobody.
fn check_authorizers(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let called = policy.security.authorizers().filter(|(_, authorizer)| !authorizer.is_in_process());
    for (meta, authorizer) in called {
        let service = policy.services.find(&authorizer.host, &meta.namespace);
        if service.is_none_or(|(_, service)| service.port(authorizer.port).is_none()) {
            let (name, target) = (&authorizer.name, authorizer.target());
            let message = format!(
                "{name} is {target}, which nothing describes: workloads that the policy is for answer every request with \
                 503 and the reason"
            );
            let origin = locate(&meta.origin, "provider");
            let finding = Diagnostic::at(&origin, Severity::Error, Code::UnknownReference, message);
            found.push(finding.object(meta.id()).field("provider"));
        }
    }
    let is_tried = |meta: &Meta| meta.annotations.get(DRY_RUN).is_some_and(|value| value == "true");
    for object in &objects.authorization_policies {
        if object.spec.action == Action::Custom && is_tried(&object.meta) {
            let message = "without effect: nobody is asked for a dry run";
            let origin = locate(&object.meta.origin, "action");
            let finding = Diagnostic::at(&origin, Severity::Warning, Code::NotSupportedYet, message);
            found.push(finding.object(object.meta.id()).field("action"));
        }
    }
}

/// What is wrong guards all the same: whom, and until when.
fn guarded_all_the_same(refused: &Refused, root: &str) -> Option<Diagnostic> {
    let guarded = refused.guards();
    let (workloads, hosts): (_, &[String]) = match (&guarded, refused.guards_calls()) {
        (_, Some((workloads, hosts))) => (workloads, hosts),
        (Some(workloads), None) => (workloads, &[]),
        (None, None) => return None,
    };
    let namespace = &refused.meta.namespace;
    let everywhere = !is_namespace(namespace) || **namespace == *root;
    let place = if everywhere { "of every namespace".to_owned() } else { format!("of namespace {namespace}") };
    let whom = match workloads {
        Workloads::Labelled(labels) if labels.is_empty() => "all workloads",
        _ => "those workloads that it is for,",
    };
    let to = if hosts.is_empty() { String::new() } else { format!(" to {}", hosts.join(", ")) };
    // To Istio they are clients.
    let gateways = match refused.meta.kind {
        ObjectKind::WasmPlugin => ", and gateways among them answer no request in another way",
        _ => "",
    };
    let does = match (guarded.is_some(), refused.guards_calls().is_some()) {
        (true, false) => "answer every request with 503 and the reason".to_owned(),
        (true, true) => {
            "answer every request with 503 and the reason, and each of their calls fails with 500".to_owned()
        }
        (false, _) => format!("have each of their calls{to} fail with 500 and the reason{gateways}"),
    };
    let until = if refused.is_foreign() { "" } else { "until it is right, " };
    let message = format!("{until}{whom} {place} {does}, unless mesh-control is told --allow-unenforced");
    let origin = refused.meta.origin.at(refused.place);
    let finding = Diagnostic::at(&origin, Severity::Error, Code::Unenforced, message);
    Some(if refused.is_object() { finding.object(refused.id()) } else { finding })
}

/// What is wrong and keeps nothing from anything: nobody may count on it meanwhile.
fn not_in_force(refused: &Refused) -> Option<Diagnostic> {
    let what = match refused.meta.kind {
        ObjectKind::RateLimit | ObjectKind::Overload | ObjectKind::Quota => "nothing is limited by it",
        ObjectKind::EnvoyFilter => "nothing of it is in force, and nothing is limited by it",
        ObjectKind::WasmPlugin if refused.governs == Governs::Nothing => "requests pass without it (FAIL_OPEN)",
        _ => return None,
    };
    let origin = refused.meta.origin.at(refused.place);
    let message = format!("until it is right, {what}");
    Some(Diagnostic::at(&origin, Severity::Error, Code::Unenforced, message).object(refused.id()))
}

/// Ports that are none of the target ports of the services that the workloads are endpoints of.
fn check_ports(object: &Object<PeerAuthentication>, policy: &Policy, found: &mut Vec<Diagnostic>) {
    if object.spec.port_level_mtls.is_empty() {
        return;
    }
    let labels = selected(object.spec.selector.as_ref());
    let ports = TargetPorts::new(policy, &object.meta.namespace, &labels, &[]);
    for port in object.spec.port_level_mtls.keys() {
        let Some(message) = port.parse().ok().and_then(|port| ports.unknown(port)) else { continue };
        let field = format!("portLevelMtls.{port}");
        let origin = locate(&object.meta.origin, &field);
        let finding = Diagnostic::at(&origin, Severity::Warning, Code::UnknownReference, message);
        found.push(finding.object(object.meta.id()).field(field));
    }
}

/// The field of a policy that asks what tokens say, if it does.
fn of_tokens(policy: &AuthorizationPolicy) -> Option<String> {
    let asks = policy.rules.iter().filter_map(conditions).any(|read| read.asks_for_tokens());
    asks.then(|| "rules".to_owned())
}

/// Objects that there are not, or whose workloads a policy of this namespace is not for.
fn check_targets(objects: &Objects, root: &str, meta: &Meta, targets: &[&TargetRef], found: &mut Vec<Diagnostic>) {
    for target in targets {
        let origin = meta.origin.at(target.name.span);
        let mut say = |message: String| {
            let finding = Diagnostic::at(&origin, Severity::Error, Code::UnknownReference, message);
            found.push(finding.object(meta.id()).field("targetRefs"));
        };
        if target.kind.as_str() == "GatewayClass" {
            let name = target.name.as_str();
            if !CLASSES.contains(&name) {
                say(format!("no Gateway is of class {}, ours are {}", quoted(name), CLASSES.join(" and ")));
            } else if *meta.namespace != *root {
                say(format!("only Gateways of this namespace are meant, for it is not the root namespace, {root}"));
            }
            continue;
        }
        let is_meant = |other: &Meta| *other.name == *target.name.value && other.namespace == meta.namespace;
        let is_known = match target.kind.as_str() {
            "Service" => objects.services.iter().any(|object| is_meant(&object.meta)),
            "ServiceEntry" => objects.service_entries.iter().any(|object| is_meant(&object.meta)),
            "Gateway" => objects.kubernetes_gateways.iter().any(|object| is_meant(&object.meta)),
            _ => true,
        } || objects.refused.iter().any(|object| is_meant(&object.meta));
        if !is_known {
            say(format!("there is no {} {}/{}", target.kind.value, meta.namespace, target.name.value));
        }
    }
}
