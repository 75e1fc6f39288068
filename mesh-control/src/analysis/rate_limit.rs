//! Limits against other objects, and what others than the library cannot do of them.

use super::security::check_targets;
use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::config::extensions::overload::Overload;
use crate::config::extensions::rate_limit::LimitMode;
use crate::config::file::{Meta, Objects};
use crate::config::istio::security::TargetRef;
use crate::config::locate::locate;
use crate::policy::Policy;
use crate::render::rate_limits::is_for_envoy;

fn say(meta: &Meta, field: &str, code: Code, message: String, found: &mut Vec<Diagnostic>) {
    let finding = Diagnostic::at(&locate(&meta.origin, field), Severity::Warning, code, message);
    found.push(finding.object(meta.id()).field(field));
}

/// Targets and hosts that there are not.
pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let mut check = |meta: &Meta, target_refs: &[TargetRef], hosts: &[String], field: &str| {
        check_targets(objects, meta, &target_refs.iter().collect::<Vec<_>>(), found);
        for host in hosts {
            if policy.services.exact(host, &meta.namespace).is_none() {
                let message = format!("nothing has the host {host:?}, so that no call is counted for it");
                say(meta, field, Code::UnknownReference, message, found);
            }
        }
    };
    for object in policy.rate_limits.rate_limits() {
        check(&object.meta, &object.spec.target_refs, &object.spec.hosts, "hosts");
    }
    for object in policy.rate_limits.overloads() {
        check(&object.meta, &object.spec.target_refs, &object.spec.hosts, "throttle.hosts");
    }
}

/// What gRPC's own clients and servers do of them: nothing.
pub(super) fn check_grpc(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.rate_limits.rate_limits() {
        let message = "gRPC's own clients and servers cannot do this: they let every request pass".to_owned();
        say(&object.meta, "rules", Code::Degraded, message, found);
    }
    for object in policy.rate_limits.overloads() {
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
    for object in policy.rate_limits.rate_limits() {
        if object.spec.mode == LimitMode::Client {
            let message = "an Envoy is not told of this: what its workload calls is not limited".to_owned();
            say(&object.meta, "mode", Code::Degraded, message, found);
            continue;
        }
        let mut counted = object.spec.limits.iter().flat_map(|(_, limit)| &limit.rate_limits);
        if !counted.all(|counted| is_for_envoy(counted)) {
            let message = "an Envoy cannot do this: it counts neither by who the client is nor by templates of paths, \
                           and lets pass what such rules are for";
            say(&object.meta, "rules", Code::Degraded, message.to_owned(), found);
        }
    }
    for object in policy.rate_limits.overloads() {
        if object.spec.throttle.is_some() {
            let message = "an Envoy is not told of this: what its workload calls is not held back".to_owned();
            say(&object.meta, "throttle", Code::Degraded, message, found);
        }
    }
}
