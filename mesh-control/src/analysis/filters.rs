//! Filters that applications have compiled in, against what these say of them; and what others than the library cannot do.

use std::sync::Arc;

use mesh_core::model::OnFailure;

use super::limits::{check_hosts, not_answering, say};
use super::tokens;
use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::config::extensions::rate_limit::WhoseRequests;
use crate::config::extensions::request_rules::RequestRules;
use crate::config::file::{Object, Objects};
use crate::config::istio::wasm_plugin::{TrafficSelector, WasmPlugin, WorkloadMode};
use crate::config::locate::locate;
use crate::policy::Policy;
use crate::policy::limits::workloads;

/// Targets that there are not, and configurations that filters do not take.
pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    check_rules(objects, policy, found);
    let schemas = policy.filters.schemas();
    for object in &objects.filter_schemas {
        let Some(first) = schemas.of(&object.meta.namespace, &object.spec.filter) else { continue };
        if !Arc::ptr_eq(first, object) {
            let message =
                format!("{} ({}) says what this filter takes, and counts", first.meta.id(), first.meta.origin);
            let finding = Diagnostic::at(&object.meta.origin, Severity::Warning, Code::Conflict, message);
            found.push(finding.object(object.meta.id()));
            continue;
        }
        let plugins =
            || policy.filters.plugins().filter(|plugin| plugin.spec.filter(&plugin.meta.name) == object.spec.filter);
        let schema_of = |plugin: &Object<WasmPlugin>| schemas.of(&plugin.meta.namespace, &object.spec.filter);
        let is_used = plugins().any(|plugin| schema_of(plugin).is_some_and(|schema| Arc::ptr_eq(schema, object)));
        if let Some(plugin) = plugins().find(|plugin| schema_of(plugin).is_none()).filter(|_| !is_used) {
            let message = format!(
                "it is for plugins of the namespace {}, of which none names the filter {:?}, and {} ({}) is not held to it: one of the \
                 root namespace ({}) is for all",
                object.meta.namespace,
                object.spec.filter,
                plugin.meta.id(),
                plugin.meta.origin,
                schemas.root(),
            );
            let at = locate(&object.meta.origin, "filter");
            let finding = Diagnostic::at(&at, Severity::Warning, Code::UnknownReference, message);
            found.push(finding.object(object.meta.id()).field("filter"));
        }
    }
    for object in policy.filters.plugins() {
        let plugin = object.spec.plugin(&object.meta.name);
        for (path, (span, message)) in schemas.faults(object) {
            let dot = if path.is_empty() || path.starts_with('[') { "" } else { "." };
            let message = format!("{message}; {}", becomes(plugin.on_failure));
            let finding = Diagnostic::at(&object.meta.origin.at(span), Severity::Error, Code::InvalidValue, message);
            found.push(finding.object(object.meta.id()).field(format!("pluginConfig{dot}{path}")));
        }
        let known: Vec<&str> = schemas.filters(&object.meta.namespace).collect();
        // Who has none that says what it takes, has no use for this.
        let is_declared = schemas.of(&object.meta.namespace, &plugin.name).is_some()
            || schemas.wrong(&object.meta.namespace, &plugin.name).is_some();
        if !known.is_empty() && !is_declared {
            let message = format!(
                "no FilterSchema says that there is a filter {:?}; there are {}: where it is not registered, {}",
                plugin.name,
                known.join(", "),
                becomes(plugin.on_failure)
            );
            let field = plugin_name(object);
            let at = locate(&object.meta.origin, field);
            let finding = Diagnostic::at(&at, Severity::Warning, Code::UnknownReference, message);
            found.push(finding.object(object.meta.id()).field(field));
        }
    }
}

/// Hosts that there are not.
fn check_rules(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    for object in policy.filters.rules() {
        check_hosts(&object.meta, &object.spec.hosts, "hosts", (objects, policy), found);
        let silent = object.spec.processor.as_ref().and_then(|processor| {
            not_answering(&processor.target, "has no word on any request", &object.meta.namespace, policy)
        });
        if let Some(message) = silent {
            say(&object.meta, "processor.host", Code::UnknownReference, message, found);
        }
        let whom = workloads(objects, &object.meta, object.spec.selector.as_ref(), &object.spec.target_refs);
        tokens::check(&object.meta, &whom, of_tokens(&object.spec), (objects, policy), found);
    }
}

/// The fields of rules in which somebody asks what a token says.
fn of_tokens(rules: &RequestRules) -> impl Iterator<Item = String> {
    rules.of_tokens.iter().map(|index| format!("rules[{index}].when"))
}

pub(super) fn becomes(on_failure: OnFailure) -> &'static str {
    match on_failure {
        OnFailure::Pass => "requests pass without it (FAIL_OPEN)",
        OnFailure::Refuse | OnFailure::Restart => "every request is answered with 500",
    }
}

/// What gRPC's own clients and servers do of them.
pub(super) fn check_grpc(policy: &Policy, found: &mut Vec<Diagnostic>) {
    check_others(policy, "gRPC's own clients and servers cannot do this", "every call to a server", found);
}

/// What an Envoy beside a workload does of them.
pub(super) fn check_envoy(policy: &Policy, found: &mut Vec<Diagnostic>) {
    check_others(policy, "an Envoy is not told of this", "every request to a workload behind one", found);
}

/// Nobody else runs the filters of an application.
fn check_others(policy: &Policy, who: &str, refused: &str, found: &mut Vec<Diagnostic>) {
    for object in policy.filters.plugins() {
        let sides = &object.spec.matches;
        let is_of = |not: WorkloadMode| sides.is_empty() || sides.iter().any(|side: &TrafficSelector| side.mode != not);
        let (of_servers, of_clients) = (is_of(WorkloadMode::Client), is_of(WorkloadMode::Server));
        let is_needed = object.spec.plugin("").on_failure != OnFailure::Pass;
        let mut effects = Vec::new();
        if of_servers && is_needed {
            effects.push(format!("{refused} that it is for fails, unless `failStrategy` is FAIL_OPEN"));
        } else if of_servers {
            effects.push("requests to servers pass without it".to_owned());
        }
        if of_clients {
            effects.push("what clients call does not pass it, whatever `failStrategy` is".to_owned());
        }
        let message = format!("{who}: it runs no filters of others; {}", effects.join("; "));
        say(&object.meta, plugin_name(object), Code::Degraded, message, found);
    }
    for object in policy.filters.rules() {
        let effect = match (object.spec.mode, object.spec.refuses) {
            (WhoseRequests::Server, true) => format!("{refused} that it is for fails"),
            (WhoseRequests::Server, false) => "requests to servers pass unchanged".to_owned(),
            (WhoseRequests::Client, _) => "what clients call does not go by it".to_owned(),
        };
        let message = format!("{who}: it knows no such rules; {effect}");
        say(&object.meta, said_in(&object.spec), Code::Degraded, message, found);
    }
}

/// What is said of Envoys that are gateways begins so where `mesh-gateway` does what they do not.
pub(super) const AT_ENVOY: &str = "where the gateway is an Envoy, and not `mesh-gateway`: ";

/// What an Envoy that is a gateway does of them.
pub(super) fn check_edge(policy: &Policy, found: &mut Vec<Diagnostic>) {
    const REFUSED: &str = "every request there is answered with 503";
    for object in policy.filters.plugins() {
        let becomes = match object.spec.plugin("").on_failure {
            OnFailure::Pass => "requests pass without it (FAIL_OPEN)".to_owned(),
            OnFailure::Refuse | OnFailure::Restart => format!("{REFUSED}, unless `failStrategy` is FAIL_OPEN"),
        };
        let message = format!("an Envoy that is a gateway runs no filters of others: {becomes}");
        say(&object.meta, plugin_name(object), Code::Degraded, message, found);
    }
    for object in policy.filters.rules() {
        let becomes = if object.spec.refuses { REFUSED } else { "requests pass unchanged" };
        let message = format!("{AT_ENVOY}an Envoy knows no such rules; {becomes}");
        say(&object.meta, said_in(&object.spec), Code::Degraded, message, found);
    }
}

/// Where rules say what they do.
fn said_in(rules: &RequestRules) -> &'static str {
    if rules.processor.is_some() { "processor" } else { "rules" }
}

/// Where a plugin says which filter it is.
pub(super) fn plugin_name(object: &Object<WasmPlugin>) -> &'static str {
    if object.spec.plugin_name.is_some() { "pluginName" } else { "" }
}
