//! Rate limits against other objects, and what others than the library cannot do of them.

use super::security::check_targets;
use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::config::extensions::rate_limit::LimitMode;
use crate::config::file::{Meta, Objects};
use crate::config::locate::locate;
use crate::policy::Policy;
use crate::render::rate_limits::is_for_envoy;

fn say(meta: &Meta, field: &str, code: Code, message: String, found: &mut Vec<Diagnostic>) {
    let finding = Diagnostic::at(&locate(&meta.origin, field), Severity::Warning, code, message);
    found.push(finding.object(meta.id()).field(field));
}

/// Targets and hosts that there are not.
pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.rate_limits.iter() {
        check_targets(objects, &object.meta, &object.spec.target_refs.iter().collect::<Vec<_>>(), found);
        for host in &object.spec.hosts {
            if policy.services.exact(host, &object.meta.namespace).is_none() {
                let message = format!("nothing has the host {host:?}, so that no call is counted for it");
                say(&object.meta, "hosts", Code::UnknownReference, message, found);
            }
        }
    }
}

/// What gRPC's own clients and servers do of them: nothing.
pub(super) fn check_grpc(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.rate_limits.iter() {
        let message = "gRPC's own clients and servers cannot do this: they let every request pass".to_owned();
        say(&object.meta, "rules", Code::Degraded, message, found);
    }
}

/// What an Envoy beside a workload does not do of them.
pub(super) fn check_envoy(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.rate_limits.iter() {
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
}
