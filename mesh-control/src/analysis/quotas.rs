//! Quotas against other objects, and what others than the library cannot do of them.

use super::limits::{say, uncounted};
use super::tokens;
use super::unknown::meant_in_full;
use crate::config::diagnostic::{Code, Diagnostic};
use crate::config::extensions::quota::Quota;
use crate::config::extensions::rate_limit::LimitMode;
use crate::config::file::Objects;
use crate::policy::Policy;
use crate::policy::limits::{needs_share, workloads};
use mesh_core::model::DescriptorAction;

/// Hosts and tokens that there are not.
pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.quotas() {
        for host in &object.spec.hosts {
            if policy.services.exact(host, &object.meta.namespace).is_none() {
                let meant = meant_in_full(policy, host, &object.meta.namespace);
                let message = format!("nothing has the host {host:?}, so that no call is counted for it{meant}");
                say(&object.meta, "hosts", Code::UnknownReference, message, found);
            }
        }
        let whom = workloads(objects, &object.meta, object.spec.selector.as_ref(), &object.spec.target_refs);
        tokens::check(&object.meta, &whom, of_tokens(&object.spec), (objects, policy), found);
    }
}

/// The fields in which claims are needed.
fn of_tokens(quota: &Quota) -> impl Iterator<Item = String> {
    let needs = |action: &DescriptorAction| matches!(action, DescriptorAction::Claim { .. });
    let rules = quota.rules.iter().enumerate();
    let rules = rules
        .filter(move |(_, rule)| rule.settings().is_some_and(|settings| settings.bucket.actions.iter().any(needs)));
    rules.map(|(index, _)| format!("rules[{index}].by"))
}

/// What gRPC's own clients and servers do of them: nothing.
pub(super) fn check_grpc(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.quotas() {
        let message = format!("gRPC's own clients and servers cannot do this: {}", becomes(&object.spec));
        say(&object.meta, "rules", Code::Degraded, message, found);
    }
}

/// What becomes of requests where nobody counts them.
fn becomes(quota: &Quota) -> &'static str {
    uncounted(quota.mode == LimitMode::Server && quota.rules.iter().any(|rule| needs_share(&rule.quota)))
}

/// What an Envoy does of them: nothing.
pub(super) fn check_envoy(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.quotas() {
        let message = format!("Envoys are not told of this: {}", becomes(&object.spec));
        say(&object.meta, "rules", Code::Degraded, message, found);
    }
}
