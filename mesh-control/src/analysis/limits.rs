//! Limits against other objects, and what others than the library cannot do of them.

use std::collections::BTreeSet;

use super::security::check_targets;
use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::config::extensions::overload::Overload;
use crate::config::extensions::rate_limit::{Counter, LimitMode, RateLimit};
use crate::config::file::{Meta, Objects};
use crate::config::istio::security::TargetRef;
use crate::config::locate::locate;
use crate::config::support::ObjectKind;
use crate::policy::Policy;
use crate::registry::protocol::Protocol;
use crate::registry::service::Target;
use crate::render::limits::is_for_envoy;

fn say(meta: &Meta, field: &str, code: Code, message: String, found: &mut Vec<Diagnostic>) {
    let finding = Diagnostic::at(&locate(&meta.origin, field), Severity::Warning, code, message);
    found.push(finding.object(meta.id()).field(field));
}

/// Where an object says which service is asked.
fn service(meta: &Meta) -> &'static str {
    if meta.kind == ObjectKind::EnvoyFilter { "configPatches" } else { "service" }
}

/// Targets and hosts that there are not.
pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.rate_limits() {
        let limited = object.spec.limits.iter().filter_map(|(port, _)| *port);
        let ports = limited.chain(object.spec.counted.iter().filter_map(|(port, _)| *port));
        for port in ports.collect::<BTreeSet<_>>() {
            let mut known = policy.services.iter().flat_map(|(_, service)| &service.ports);
            if !known.any(|known| known.number == port || known.target == Target::Number(port)) {
                let message = format!("no service has a port {port}, so that nothing is counted there");
                say(&object.meta, "configPatches", Code::UnknownReference, message, found);
            }
        }
    }
    let mut check = |meta: &Meta, target_refs: &[TargetRef], hosts: &[String], field: &str| {
        check_targets(objects, meta, &target_refs.iter().collect::<Vec<_>>(), found);
        for host in hosts {
            if policy.services.exact(host, &meta.namespace).is_none() {
                let message = format!("nothing has the host {host:?}, so that no call is counted for it");
                say(meta, field, Code::UnknownReference, message, found);
            }
        }
    };
    for object in policy.limits.rate_limits() {
        check(&object.meta, &object.spec.target_refs, &object.spec.hosts, "hosts");
    }
    for object in policy.limits.overloads() {
        check(&object.meta, &object.spec.target_refs, &object.spec.hosts, "throttle.hosts");
    }
    check_services(policy, found);
    check_counted(policy, found);
}

/// Services that cannot be asked.
fn check_services(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.rate_limits() {
        let counters = object.spec.limits.iter().filter_map(|(_, counter)| match counter {
            Counter::Service(limit) => Some(&limit.target),
            Counter::Process(_) => None,
        });
        // Those of an EnvoyFilter may differ by port.
        for target in counters.collect::<BTreeSet<_>>() {
            let (host, port) = target.rsplit_once(':').unwrap_or((target, ""));
            let found_service = policy.services.exact(host, &object.meta.namespace);
            let port = found_service
                .and_then(|(_, service)| service.ports.iter().find(|known| port.parse() == Ok(known.number)));
            let why = match port.map(|port| port.protocol) {
                None => "nothing has it",
                Some(Protocol::Grpc | Protocol::Http2 | Protocol::Unspecified) => continue,
                Some(_) => "it speaks no gRPC, by the name of its port",
            };
            let message = format!("{target:?} gives no answers, since {why}: the failure mode decides");
            say(&object.meta, service(&object.meta), Code::UnknownReference, message, found);
        }
    }
}

/// Limits that no object says what to count by, and what is to be counted by that no limit takes up.
fn check_counted(policy: &Policy, found: &mut Vec<Diagnostic>) {
    let objects = policy.limits.rate_limits();
    let is_open = |limit: &RateLimit| limit.limits.iter().any(|(_, counter)| counter.is_open());
    let says = |limit: &RateLimit| !limit.counted.is_empty();
    for object in objects {
        let meets = |other: &RateLimit, namespace: &str, wanted: &dyn Fn(&RateLimit) -> bool| {
            wanted(other) && policy.limits.may_meet(&object.meta.namespace, namespace)
        };
        let has = |wanted: &dyn Fn(&RateLimit) -> bool| {
            objects.iter().any(|other| meets(&other.spec, &other.meta.namespace, wanted))
        };
        let message = if is_open(&object.spec) && !has(&says) {
            "nothing says what requests are counted by (`rate_limits` of virtual hosts), so that no service is asked"
        } else if says(&object.spec) && !has(&is_open) {
            "no rate limit is counted by this"
        } else {
            continue;
        };
        say(&object.meta, "configPatches", Code::UnknownReference, message.to_owned(), found);
    }
}

/// What gRPC's own clients and servers do of them: nothing.
pub(super) fn check_grpc(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.rate_limits() {
        let message = "gRPC's own clients and servers cannot do this: they let every request pass".to_owned();
        say(&object.meta, "rules", Code::Degraded, message, found);
    }
    for object in policy.limits.overloads() {
        for (field, is_said) in of_overload(&object.spec) {
            let message = "gRPC's own clients and servers cannot do this: they let every request pass".to_owned();
            if is_said {
                say(&object.meta, field, Code::Degraded, message, found);
            }
        }
    }
}

/// The parts of an overload, and which of them are said.
fn of_overload(overload: &Overload) -> [(&'static str, bool); 2] {
    [("concurrency", overload.concurrency.is_some()), ("throttle", overload.throttle.is_some())]
}

/// What an Envoy beside a workload does not do of them.
pub(super) fn check_envoy(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.rate_limits() {
        if object.spec.mode == LimitMode::Client {
            let message = "an Envoy is not told of this: what its workload calls is not limited".to_owned();
            say(&object.meta, "mode", Code::Degraded, message, found);
            continue;
        }
        if object.spec.limits.iter().any(|(_, counter)| matches!(counter, Counter::Service(_))) {
            let message = "an Envoy is not told of this: it asks no service, and lets every request pass".to_owned();
            say(&object.meta, service(&object.meta), Code::Degraded, message, found);
            continue;
        }
        let mut counted = object.spec.limits.iter().flat_map(|(_, counter)| counter.counted());
        if !counted.all(|counted| is_for_envoy(counted)) {
            let message = "an Envoy cannot do this: it counts neither by who the client is nor by templates of paths, \
                           and lets pass what such rules are for";
            say(&object.meta, "rules", Code::Degraded, message.to_owned(), found);
        }
    }
    for object in policy.limits.overloads() {
        if object.spec.throttle.is_some() {
            let message = "an Envoy is not told of this: what its workload calls is not held back".to_owned();
            say(&object.meta, "throttle", Code::Degraded, message, found);
        }
    }
}
