//! Quotas against other objects, and what others than the library cannot do of them.

use super::limits::{check_hosts, needs_token, say, uncounted};
use super::tokens;
use crate::config::diagnostic::{Code, Diagnostic};
use crate::config::extensions::quota::Quota;
use crate::config::extensions::rate_limit::WhoseRequests;
use crate::config::file::Objects;
use crate::policy::Policy;
use crate::policy::limits::{needs_share, workloads};

/// Hosts and tokens that there are not.
pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.quotas() {
        check_hosts(&object.meta, &object.spec.hosts, "hosts", (objects, policy), found);
        let whom = workloads(objects, &object.meta, object.spec.selector.as_ref(), &object.spec.target_refs);
        tokens::check(&object.meta, &whom, of_tokens(&object.spec), (objects, policy), found);
    }
}

/// The fields in which claims are needed.
fn of_tokens(quota: &Quota) -> impl Iterator<Item = String> {
    let rules = quota.rules.iter().enumerate();
    let rules = rules.filter(|(_, rule)| rule.settings().is_some_and(|settings| needs_token(&settings.bucket)));
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
    uncounted(quota.mode == WhoseRequests::Server && quota.rules.iter().any(|rule| needs_share(&rule.quota)))
}

/// What an Envoy does of them: nothing.
pub(super) fn check_envoy(policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.limits.quotas() {
        let message = format!("Envoys are not told of this: {}", becomes(&object.spec));
        say(&object.meta, "rules", Code::Degraded, message, found);
    }
}
