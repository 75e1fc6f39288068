//! Limits, rules, filters and telemetry that are for a gateway, where it does not do what they say: what is about calls, for it has only
//! requests that come to it, what is about servers, for Istio takes it for a client, and what an Envoy there is not told.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_core::model::OnFailure;

use super::filters::{AT_ENVOY, becomes, plugin_name};
use super::limits::say;
use super::{filters, limits, quotas};
use crate::config::diagnostic::{Code, Diagnostic, Severity, Topic};
use crate::config::extensions::rate_limit::WhoseRequests;
use crate::config::file::{Meta, Objects, Target, Workloads};
use crate::config::gateway_api::GATEWAY_NAME;
use crate::config::istio::telemetry::WorkloadMode;
use crate::config::locate::locate;
use crate::policy::Policy;
use crate::policy::limits::workloads;
use crate::policy::telemetry::Side;
use crate::registry::service::is_subset;

/// An object, and whom it is for.
struct ForWhom<'p> {
    meta: &'p Meta,
    whom: Workloads,
    /// What of it is not for gateways.
    apart: Option<Apart>,
    /// Whether the rest of it is for what comes to a gateway.
    is_for_requests: bool,
}

/// What of an object is not for gateways.
struct Apart {
    /// The field that says so.
    field: &'static str,
    /// Whether it is there to hold requests back.
    holds_back: bool,
    /// Why it is not.
    why: &'static str,
}

const OF_CALLS: &str =
    "a gateway has no calls of its own, only requests that come to it (SERVER), so that this has no effect there";
const OF_THROTTLE: &str =
    "a gateway has no calls of its own that could be held back, so that this has no effect there, as `concurrency` has";
const OF_SERVERS: &str = "to Istio a gateway is a client, so that this has no effect there: CLIENT, CLIENT_AND_SERVER, or no mode \
    at all, is for gateways, too";

/// Looks at those that are for a gateway for certain: they name one, or ask for labels by which one is selected.
pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let at_gateways: Vec<_> =
        all(objects, policy).into_iter().filter(|object| names_gateway(&object.whom, policy)).collect();
    for (meta, Apart { field, holds_back, why }) in
        at_gateways.iter().filter_map(|object| Some((object.meta, object.apart.as_ref()?)))
    {
        let severity = if *holds_back { Severity::Error } else { Severity::Warning };
        say_apart(meta, field, severity, why, found);
    }
    let of_requests = at_gateways.iter().filter(|object| object.is_for_requests);
    let ids: BTreeSet<Arc<str>> = of_requests.map(|object| object.meta.id()).collect();
    for object in policy.filters.plugins().filter(|object| ids.contains(&object.meta.id())) {
        let becomes = becomes(object.spec.plugin("").on_failure);
        let message = format!("`mesh-gateway` has none of an application's filters: {becomes}");
        say(&object.meta, plugin_name(object), Code::Degraded, message, found);
    }
    found.extend(lost_at_edge(policy, &ids));
    check_telemetry(objects, policy, found);
}

/// What of Telemetry is for servers alone.
fn check_telemetry(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.telemetries.iter() {
        let spec = &object.spec;
        let whom = objects.workloads(&object.meta, spec.selector.as_ref(), &spec.targets());
        if !names_gateway(&whom, policy) {
            continue;
        }
        let apart = |field: String, mode: WorkloadMode| {
            (!mode.has(Side::Gateway.is_client())).then(|| format!("{field}.match.mode"))
        };
        let logs = spec.access_logging.iter().enumerate();
        let logs = logs.filter_map(|(at, one)| apart(format!("accessLogging[{at}]"), one.side.as_ref()?.mode));
        let traces = spec.tracing.iter().enumerate();
        let traces = traces.filter_map(|(at, one)| apart(format!("tracing[{at}]"), one.side.as_ref()?.mode));
        let overrides =
            spec.metrics.iter().enumerate().flat_map(|(at, metrics)| {
                metrics.overrides.iter().enumerate().filter_map(move |(number, one)| {
                    apart(format!("metrics[{at}].overrides[{number}]"), one.selector.mode)
                })
            });
        for field in logs.chain(traces).chain(overrides) {
            say_apart(&object.meta, &field, Severity::Warning, OF_SERVERS, found);
        }
    }
}

fn say_apart(meta: &Meta, field: &str, severity: Severity, why: &str, found: &mut Vec<Diagnostic>) {
    let finding = Diagnostic::at(&locate(&meta.origin, field), severity, Code::Ignored, why);
    found.push(finding.object(meta.id()).field(field));
}

/// Whether it is said of Envoys that are gateways, and of nobody else.
pub(crate) fn is_about_envoys(finding: &Diagnostic) -> bool {
    finding.topic() == Some(Topic::EnvoyGateways)
}

/// What an Envoy that is a gateway is not told of these objects, of which `mesh-gateway` does all but filters of applications.
pub(crate) fn lost_at_edge(policy: &Policy, ids: &BTreeSet<Arc<str>>) -> Vec<Diagnostic> {
    let mut lost = Vec::new();
    if ids.is_empty() {
        return lost;
    }
    limits::check_envoy(policy, &mut lost);
    quotas::check_envoy(policy, &mut lost);
    // These are about calls, which no gateway has.
    lost.retain(|finding| !matches!(finding.field.as_deref(), Some("mode" | "throttle")));
    for finding in &mut lost {
        finding.message.insert_str(0, AT_ENVOY);
    }
    filters::check_edge(policy, &mut lost);
    lost.retain(|finding| finding.object.as_ref().is_some_and(|id| ids.contains(id)));
    lost.into_iter().map(|finding| finding.about(Topic::EnvoyGateways)).collect()
}

/// All of them, with whom each is for.
fn all<'p>(objects: &Objects, policy: &'p Policy) -> Vec<ForWhom<'p>> {
    let of = |meta: &'p Meta, whom: Workloads, apart: Option<Apart>| {
        let is_for_requests = apart.is_none();
        ForWhom { meta, whom, apart, is_for_requests }
    };
    let of_calls = |is_so: bool, holds_back: bool| is_so.then_some(Apart { field: "mode", holds_back, why: OF_CALLS });
    let mut all = Vec::new();
    for object in policy.limits.rate_limits() {
        let (meta, spec) = (&object.meta, &object.spec);
        let whom = workloads(objects, meta, spec.selector.as_ref(), &spec.target_refs);
        all.push(of(meta, whom, of_calls(spec.mode == WhoseRequests::Client, true)));
    }
    for object in policy.limits.quotas() {
        let (meta, spec) = (&object.meta, &object.spec);
        let whom = workloads(objects, meta, spec.selector.as_ref(), &spec.target_refs);
        all.push(of(meta, whom, of_calls(spec.mode == WhoseRequests::Client, true)));
    }
    for object in policy.limits.overloads() {
        let (meta, spec) = (&object.meta, &object.spec);
        let whom = workloads(objects, meta, spec.selector.as_ref(), &spec.target_refs);
        let apart = spec.throttle.as_ref().map(|_| Apart { field: "throttle", holds_back: false, why: OF_THROTTLE });
        all.push(ForWhom { is_for_requests: spec.concurrency.is_some(), ..of(meta, whom, apart) });
    }
    for object in policy.filters.rules() {
        let (meta, spec) = (&object.meta, &object.spec);
        let whom = workloads(objects, meta, spec.selector.as_ref(), &spec.target_refs);
        all.push(of(meta, whom, of_calls(spec.mode == WhoseRequests::Client, spec.refuses)));
    }
    for object in policy.filters.plugins() {
        let (meta, spec) = (&object.meta, &object.spec);
        let whom = objects.workloads(meta, spec.selector.as_ref(), &spec.targets());
        let holds_back = spec.plugin("").on_failure != OnFailure::Pass;
        let is_apart = !spec.is_of(Side::Gateway.is_client());
        all.push(of(meta, whom, is_apart.then_some(Apart { field: "match", holds_back, why: OF_SERVERS })));
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
