//! Limits, rules and filters that are for a gateway, where it does not do what they say: what is about calls, for it has only requests
//! that come to it, and what an Envoy there is not told.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_core::model::OnFailure;

use super::filters::{becomes, plugin_name};
use super::limits::say;
use super::{filters, limits, quotas};
use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::config::extensions::rate_limit::LimitMode;
use crate::config::extensions::request_rules::RulesMode;
use crate::config::file::{Meta, Objects, Target, Workloads};
use crate::config::gateway_api::GATEWAY_NAME;
use crate::config::locate::locate;
use crate::policy::Policy;
use crate::policy::limits::workloads;
use crate::registry::service::is_subset;

/// What of an object is about calls alone.
struct OfCalls {
    /// The field that says so.
    field: &'static str,
    /// Whether it is there to hold requests back.
    holds_back: bool,
}

/// Looks at those that are for a gateway for certain: they name one, or ask for labels by which one is selected.
pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let all = all(objects, policy);
    let at_gateways: Vec<_> = all.into_iter().filter(|(_, whom, _)| names_gateway(whom, policy)).collect();
    for (meta, OfCalls { field, holds_back }) in
        at_gateways.iter().filter_map(|(meta, _, of)| Some((*meta, of.as_ref()?)))
    {
        let message = "a gateway has no calls of its own, only requests that come to it (SERVER), so that this has no effect there";
        let severity = if *holds_back { Severity::Error } else { Severity::Warning };
        let finding = Diagnostic::at(&locate(&meta.origin, field), severity, Code::Ignored, message);
        found.push(finding.object(meta.id()).field(*field));
    }
    let of_requests = at_gateways.iter().filter(|(.., of_calls)| of_calls.is_none());
    let ids: BTreeSet<Arc<str>> = of_requests.map(|(meta, ..)| meta.id()).collect();
    for object in policy.filters.plugins().filter(|object| ids.contains(&object.meta.id())) {
        let becomes = becomes(object.spec.plugin("").on_failure);
        let message = format!("`mesh-gateway` has none of an application's filters: {becomes}");
        say(&object.meta, plugin_name(object), Code::Degraded, message, found);
    }
    found.extend(lost_at_edge(policy, &ids));
}

/// What an Envoy that is a gateway is not told of these objects.
pub(crate) fn lost_at_edge(policy: &Policy, ids: &BTreeSet<Arc<str>>) -> Vec<Diagnostic> {
    let mut lost = Vec::new();
    if !ids.is_empty() {
        limits::check_envoy(policy, &mut lost);
        quotas::check_envoy(policy, &mut lost);
        filters::check_envoy(policy, &mut lost);
    }
    lost.retain(|finding| finding.object.as_ref().is_some_and(|id| ids.contains(id)));
    for finding in &mut lost {
        finding.message.insert_str(0, "of a gateway, which `mesh-gateway` does: ");
    }
    lost
}

/// All of them, with whom each is for.
fn all<'p>(objects: &Objects, policy: &'p Policy) -> Vec<(&'p Meta, Workloads, Option<OfCalls>)> {
    let of_calls = |is_so: bool, field, holds_back| is_so.then_some(OfCalls { field, holds_back });
    let mut all = Vec::new();
    for object in policy.limits.rate_limits() {
        let (meta, spec) = (&object.meta, &object.spec);
        let whom = workloads(objects, meta, spec.selector.as_ref(), &spec.target_refs);
        all.push((meta, whom, of_calls(spec.mode == LimitMode::Client, "mode", true)));
    }
    for object in policy.limits.quotas() {
        let (meta, spec) = (&object.meta, &object.spec);
        let whom = workloads(objects, meta, spec.selector.as_ref(), &spec.target_refs);
        all.push((meta, whom, of_calls(spec.mode == LimitMode::Client, "mode", true)));
    }
    for object in policy.limits.overloads() {
        let (meta, spec) = (&object.meta, &object.spec);
        let whom = workloads(objects, meta, spec.selector.as_ref(), &spec.target_refs);
        all.push((meta, whom, of_calls(spec.throttle.is_some(), "throttle", false)));
    }
    for object in policy.filters.rules() {
        let (meta, spec) = (&object.meta, &object.spec);
        let whom = workloads(objects, meta, spec.selector.as_ref(), &spec.target_refs);
        all.push((meta, whom, of_calls(spec.mode == RulesMode::Client, "mode", spec.refuses)));
    }
    for object in policy.filters.plugins() {
        let (meta, spec) = (&object.meta, &object.spec);
        let whom = objects.workloads(meta, spec.selector.as_ref(), &spec.targets());
        let may_refuse = spec.plugin("").on_failure != OnFailure::Pass;
        all.push((meta, whom, of_calls(!spec.is_of(false), "match", may_refuse)));
    }
    all
}

/// Whether a gateway is one of these workloads for certain.
fn names_gateway(whom: &Workloads, policy: &Policy) -> bool {
    match whom {
        Workloads::OfTargets(targets) => targets.iter().any(|target| matches!(target, Target::Gateway(_))),
        Workloads::Labelled(wanted) if wanted.is_empty() => false,
        Workloads::Labelled(wanted) => {
            let mut selectors = policy.gateways.of_istio().map(|gateway| &gateway.spec.selector);
            wanted.contains_key(GATEWAY_NAME) || selectors.any(|selector| is_subset(wanted, selector))
        }
    }
}
