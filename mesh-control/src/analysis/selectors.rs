//! Selectors that select nobody: a label that workloads are known by, with a value that none of them has.
//!
//! Workloads register themselves, so that nobody knows all of their labels. What is known of them is written in the selectors of
//! services, in WorkloadEntries, WorkloadGroups and endpoints, in subsets, and in templates of Pods (`Deployment`). A label that none of these has may well be there.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::diagnostic::{Code, Diagnostic, Severity, quoted};
use crate::config::extensions::rate_limit::WhoseRequests;
use crate::config::file::{Meta, Objects};
use crate::config::gateway_api::GATEWAY_NAME;
use crate::config::istio::security::selected;
use crate::config::istio::wasm_plugin::WorkloadMode;
use crate::config::locate::locate;
use crate::config::spelling::nearest;
use crate::config::support::ObjectKind;
use crate::policy::Policy;
use crate::registry::host::in_namespace;

/// How many values a finding names.
const MOST: usize = 5;

/// Values by label and namespace.
type Known<'a> = BTreeMap<&'a str, BTreeMap<&'a str, BTreeSet<&'a str>>>;

pub(super) fn check(objects: &Objects, policy: &Policy, found: &mut Vec<Diagnostic>) {
    let selectors = selectors(objects);
    if selectors.iter().all(|(_, _, labels, _)| labels.is_empty()) {
        return;
    }
    let known = known(objects, policy);
    let root = &*policy.mesh.fixed.root_namespace;
    // What is wrong may be the service that is meant.
    let is_doubtful = |namespace: &str| {
        let kinds =
            [ObjectKind::Service, ObjectKind::ServiceEntry, ObjectKind::WorkloadEntry, ObjectKind::WorkloadGroup];
        objects.refused.iter().any(|other| {
            kinds.contains(&other.meta.kind) && (*other.meta.namespace == *namespace || *namespace == *root)
        })
    };
    for (meta, field, labels, is_for_servers) in selectors {
        let is_mesh_wide = *meta.namespace == *root && meta.kind != ObjectKind::Telemetry;
        if is_doubtful(&meta.namespace) {
            continue;
        }
        for (label, value) in &labels {
            let Some(by_namespace) = known.get(label.as_str()) else { continue };
            let values: BTreeSet<&str> = match is_mesh_wide {
                true => by_namespace.values().flatten().copied().collect(),
                false => by_namespace.get(&*meta.namespace).cloned().unwrap_or_default(),
            };
            if values.is_empty() || values.contains(value.as_str()) || is_of_gateway(objects, label, value) {
                continue;
            }
            let meant = nearest(value, &values);
            let more = if values.len() > MOST { ", ..." } else { "" };
            let named: Vec<String> = values.iter().take(MOST).map(|value| quoted(value)).collect();
            let hint = match meant {
                Some(meant) => format!("did you mean {}?", quoted(meant)),
                None => format!("there are {}{more}", named.join(", ")),
            };
            let message = format!("no workload that is known has {label}: {}; {hint}", quoted(value));
            // Who only calls has no service.
            let severity = if is_for_servers || meant.is_some() { Severity::Warning } else { Severity::Info };
            let path = format!("{field}.{label}");
            let finding = Diagnostic::at(&locate(&meta.origin, field), severity, Code::UnknownReference, message);
            found.push(finding.istio("IST0127").object(meta.id()).field(path));
        }
    }
}

/// Whether a Gateway is for gateways with this label: those are of any namespace, and say themselves that they have it.
fn is_of_gateway(objects: &Objects, label: &str, value: &str) -> bool {
    let is_selected =
        objects.gateways.iter().any(|gateway| gateway.spec.selector.get(label).is_some_and(|own| own == value));
    is_selected
        || (label == GATEWAY_NAME && objects.kubernetes_gateways.iter().any(|gateway| *gateway.meta.name == *value))
}

fn known<'a>(objects: &'a Objects, policy: &'a Policy) -> Known<'a> {
    let mut known = Known::new();
    let mut add = |namespace: &'a str, labels: &'a BTreeMap<String, String>| {
        for (label, value) in labels {
            known.entry(label).or_default().entry(namespace).or_default().insert(value);
        }
    };
    for (id, service) in policy.services.iter() {
        service.selector.iter().for_each(|selector| add(&service.namespace, selector));
        policy.services.written(id).for_each(|written| add(&written.namespace, &written.labels));
    }
    for pods in &objects.pods {
        add(&pods.namespace, &pods.labels);
    }
    for entry in &objects.workload_entries {
        add(&entry.meta.namespace, &entry.spec.labels);
    }
    for group in &objects.workload_groups {
        add(&group.meta.namespace, &group.spec.metadata.labels);
        group.spec.template.iter().for_each(|template| add(&group.meta.namespace, &template.labels));
    }
    for rule in &objects.destination_rules {
        let host = in_namespace(&rule.spec.host, &rule.meta.namespace);
        let service = policy.services.find(&host, &rule.meta.namespace).map(|(_, service)| &*service.namespace);
        rule.spec.subsets.iter().for_each(|subset| add(service.unwrap_or(&rule.meta.namespace), &subset.labels));
    }
    known
}

/// Each object that selects by labels, the field, the labels, and whether it is for workloads as servers alone.
fn selectors(objects: &Objects) -> Vec<(&Meta, &'static str, BTreeMap<String, String>, bool)> {
    const FIELD: &str = "selector.matchLabels";
    let mut all = Vec::new();
    let peers = objects.peer_authentications.iter().map(|object| (&object.meta, object.spec.selector.as_ref(), true));
    let tokens =
        objects.request_authentications.iter().map(|object| (&object.meta, object.spec.selector.as_ref(), true));
    let rules = objects.authorization_policies.iter().map(|object| (&object.meta, object.spec.selector.as_ref(), true));
    let telemetries = objects.telemetries.iter().map(|object| (&object.meta, object.spec.selector.as_ref(), false));
    let limits = objects
        .rate_limits
        .iter()
        .map(|object| (&object.meta, object.spec.selector.as_ref(), object.spec.mode == WhoseRequests::Server));
    let overloads = objects
        .overloads
        .iter()
        .map(|object| (&object.meta, object.spec.selector.as_ref(), object.spec.throttle.is_none()));
    let quotas = objects
        .quotas
        .iter()
        .map(|object| (&object.meta, object.spec.selector.as_ref(), object.spec.mode == WhoseRequests::Server));
    let request_rules = objects
        .request_rules
        .iter()
        .map(|object| (&object.meta, object.spec.selector.as_ref(), object.spec.mode == WhoseRequests::Server));
    let plugins = objects.wasm_plugins.iter().map(|object| {
        let sides = &object.spec.matches;
        let is_for_servers = !sides.is_empty() && sides.iter().all(|side| side.mode == WorkloadMode::Server);
        (&object.meta, object.spec.selector.as_ref(), is_for_servers)
    });
    let of_security = peers.chain(tokens).chain(rules);
    let of_our_own = limits.chain(overloads).chain(quotas).chain(request_rules);
    for (meta, selector, is_for_servers) in of_security.chain(telemetries).chain(of_our_own).chain(plugins) {
        let field = if meta.kind == ObjectKind::EnvoyFilter { "workloadSelector.labels" } else { FIELD };
        all.push((meta, field, selected(selector), is_for_servers));
    }
    let sidecars = objects.sidecars.iter().filter_map(|object| Some((&object.meta, object.spec.selector()?)));
    all.extend(sidecars.map(|(meta, labels)| (meta, "workloadSelector.labels", labels.clone(), false)));
    all
}
