//! Quotas against other objects, and what others than the library cannot do of them.

use super::limits::say;
use super::security::check_targets;
use crate::config::diagnostic::{Code, Diagnostic};
use crate::config::extensions::quota::Quota;
use crate::config::extensions::rate_limit::LimitMode;
use crate::config::file::{Object, Objects};
use crate::policy::Policy;
use mesh_core::model::DescriptorAction;

/// Targets, hosts and tokens that there are not.
pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.quotas() {
        let Quota { target_refs, hosts, .. } = &object.spec;
        check_targets(objects, &object.meta, &target_refs.iter().collect::<Vec<_>>(), found);
        for host in hosts {
            if policy.services.exact(host, &object.meta.namespace).is_none() {
                let message = format!("nothing has the host {host:?}, so that no call is counted for it");
                say(&object.meta, "hosts", Code::UnknownReference, message, found);
            }
        }
        check_claims(objects, policy, object, found);
    }
}

/// Claims are those of tokens that somebody verifies: on servers, where a RequestAuthentication asks for it.
fn check_claims(objects: &Objects, policy: &Policy, object: &Object<Quota>, found: &mut Vec<Diagnostic>) {
    let is_verified = object.spec.mode == LimitMode::Server
        && objects
            .request_authentications
            .iter()
            .any(|authentication| policy.limits.may_meet(&object.meta.namespace, &authentication.meta.namespace));
    for (index, rule) in object.spec.rules.iter().enumerate() {
        let actions = rule.settings().map_or(&[][..], |settings| &settings.bucket.actions);
        let claim = actions.iter().find(|action| matches!(action, DescriptorAction::Claim { .. }));
        if let Some(claim) = claim.filter(|_| !is_verified) {
            let message = format!(
                "no RequestAuthentication verifies a token here, so that no request has {:?}, and none is counted",
                claim.key()
            );
            say(&object.meta, &format!("rules[{index}].by"), Code::UnknownReference, message, found);
        }
    }
}

/// What gRPC's own clients and servers do of them: nothing.
pub(super) fn check_grpc(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.quotas() {
        let message = "gRPC's own clients and servers cannot do this: they let every request pass".to_owned();
        say(&object.meta, "rules", Code::Degraded, message, found);
    }
}

/// What an Envoy beside a workload does of them: nothing.
pub(super) fn check_envoy(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.quotas() {
        let message = "an Envoy is not told of this: it lets every request pass".to_owned();
        say(&object.meta, "rules", Code::Degraded, message, found);
    }
}
