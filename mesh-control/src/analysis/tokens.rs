//! Tokens that nobody looks at: who goes by what they say goes by nothing.

use super::limits::say;
use crate::config::diagnostic::{Code, Diagnostic};
use crate::config::file::{Meta, Objects, Workloads};
use crate::config::support::ObjectKind;
use crate::policy::Policy;

/// Tells it of the fields of an object for these workloads, as servers, that go by what tokens say.
pub(super) fn check(
    meta: &Meta,
    workloads: &Workloads,
    fields: impl IntoIterator<Item = String>,
    (objects, policy): (&Objects, &Policy),
    found: &mut Vec<Diagnostic>,
) {
    let mut fields = fields.into_iter().peekable();
    // One that is wrong says so itself.
    let is_refused = || objects.refused.iter().any(|other| other.meta.kind == ObjectKind::RequestAuthentication);
    if fields.peek().is_none() || is_refused() {
        return;
    }
    let looks = |other: &Meta, whom: &Workloads| {
        policy.limits.may_meet(&meta.namespace, &other.namespace) && may_be_same(workloads, whom)
    };
    let mut known = objects.request_authentications.iter().filter(|other| !other.spec.jwt_rules.is_empty());
    let is_known = known.any(|other| {
        looks(&other.meta, &objects.workloads(&other.meta, other.spec.selector.as_ref(), &other.spec.targets()))
    });
    for field in fields.filter(|_| !is_known) {
        let message =
            "no RequestAuthentication is for these workloads: no token is looked at, and no request has a claim";
        say(meta, &field, Code::UnknownReference, message.to_owned(), found);
    }
}

/// Whether some workload may be one of both.
pub(super) fn may_be_same(one: &Workloads, other: &Workloads) -> bool {
    match (one, other) {
        (Workloads::Labelled(one), Workloads::Labelled(other)) => {
            one.iter().all(|(key, value)| other.get(key).is_none_or(|wanted| wanted == value))
        }
        (Workloads::OfTargets(one), Workloads::OfTargets(other)) => one.iter().any(|target| other.contains(target)),
        _ => true,
    }
}
