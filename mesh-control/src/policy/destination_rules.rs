//! Which DestinationRule is in force for a service, as a client sees it, and what it says of one port.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::view::View;
use crate::config::file::{Meta, Object};
use crate::config::istio::destination_rule::{
    ClientTls, ConnectionPool, DestinationRule, LoadBalancer, OutlierDetection, Subset, TrafficPolicy,
};
use crate::config::{Code, Diagnostic, Severity};
use crate::registry::Visibility;
use crate::registry::host::{covers, in_namespace, specificity};
use crate::registry::service::is_subset;

/// The namespace whose rules are for everybody.
pub const ROOT_NAMESPACE: &str = "istio-system";

/// Rules for one host from one namespace, merged.
#[derive(Debug)]
pub struct MergedRule {
    /// The host in full.
    pub host: String,
    /// The first of the objects.
    pub meta: Meta,
    visibility: Visibility,
    selector: BTreeMap<String, String>,
    policy: Option<TrafficPolicy>,
    subsets: Vec<Subset>,
}

/// All rules.
#[derive(Debug, Default)]
pub struct DestinationRules {
    by_namespace: HashMap<Arc<str>, Vec<Arc<MergedRule>>>,
    /// The labels of clients that some rule asks for.
    pub label_keys: BTreeSet<String>,
}

/// What holds for one port of a service, or of a subset of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings<'a> {
    /// Load balancing.
    pub load_balancer: Option<&'a LoadBalancer>,
    /// Connections and limits.
    pub connection_pool: Option<&'a ConnectionPool>,
    /// Ejection of failing endpoints.
    pub outlier_detection: Option<&'a OutlierDetection>,
    /// Transport security.
    pub tls: Option<&'a ClientTls>,
}

impl DestinationRules {
    /// Those of these objects, and what is to be said about them.
    pub fn new(objects: &[Arc<Object<DestinationRule>>]) -> (DestinationRules, Vec<Diagnostic>) {
        let mut sorted: Vec<&Arc<Object<DestinationRule>>> = objects.iter().collect();
        sorted.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
        let mut merged: HashMap<Arc<str>, Vec<MergedRule>> = HashMap::new();
        let mut label_keys = BTreeSet::new();
        let mut found = Vec::new();
        for object in sorted {
            let rule = single(object);
            label_keys.extend(rule.selector.keys().cloned());
            let rules = merged.entry(object.meta.namespace.clone()).or_default();
            // Rules for the same host are one rule (Istio: destination_rule.go): the first traffic policy
            // and the first subset of each name count.
            let same = rules.iter_mut().find(|other| {
                other.host == rule.host && other.visibility == rule.visibility && other.selector == rule.selector
            });
            match same {
                Some(earlier) => merge_into(earlier, rule, &mut found),
                None => rules.push(rule),
            }
        }
        let by_namespace = merged
            .into_iter()
            .map(|(namespace, mut rules)| {
                // What is for some clients only goes before what is for all.
                rules.sort_by_key(|rule| (Reverse(specificity(&rule.host)), rule.selector.is_empty()));
                (namespace, rules.into_iter().map(Arc::new).collect())
            })
            .collect();
        (DestinationRules { by_namespace, label_keys }, found)
    }

    /// The rule in force for a service: of the client's namespace, else of the service's, else of the root
    /// namespace (Istio: push_context.go); of one namespace, that of the most specific host.
    pub fn find(&self, host: &str, service_namespace: &str, view: &View) -> Option<&Arc<MergedRule>> {
        let client = &*view.namespace;
        let own = || self.of_namespace(client).find(|rule| covers(&rule.host, host) && rule.is_for(&view.labels));
        let exported = |namespace: &str| {
            self.of_namespace(namespace)
                .find(|rule| covers(&rule.host, host) && rule.selector.is_empty() && rule.visibility.includes(client))
        };
        let own = (client != ROOT_NAMESPACE).then(own).flatten();
        own.or_else(|| exported(service_namespace)).or_else(|| exported(ROOT_NAMESPACE))
    }

    fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<MergedRule>> {
        self.by_namespace.get(namespace).into_iter().flatten()
    }
}

impl MergedRule {
    fn is_for(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.is_empty() || is_subset(&self.selector, labels)
    }

    /// The subset of this name.
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|subset| subset.name.value == name)
    }

    /// The names of all subsets.
    pub fn subset_names(&self) -> impl Iterator<Item = &str> {
        self.subsets.iter().map(|subset| subset.name.value.as_str())
    }

    /// What holds for a port of the service, or of a subset of it.
    pub fn settings(&self, port: u16, subset: Option<&Subset>) -> Settings<'_> {
        // The subset's lifetime is the rule's: it is looked up again to say so.
        let subset = subset.and_then(|subset| self.subset(&subset.name));
        let of_rule = self.policy.as_ref().map(|policy| Settings::default().overridden_by(policy, port));
        let of_rule = of_rule.unwrap_or_default();
        match subset.and_then(|subset| subset.traffic_policy.as_ref()) {
            Some(policy) => of_rule.overridden_by(policy, port),
            None => of_rule,
        }
    }
}

impl<'a> Settings<'a> {
    /// These settings, with those of a policy in their place; a port's own settings inherit nothing
    /// (Istio: mergeTrafficPolicy).
    fn overridden_by(self, policy: &'a TrafficPolicy, port: u16) -> Settings<'a> {
        let of_port = policy.port_level_settings.iter().find(|settings| settings.port.number.0 == port);
        match of_port {
            Some(settings) => Settings {
                load_balancer: settings.load_balancer.as_ref(),
                connection_pool: settings.connection_pool.as_ref(),
                outlier_detection: settings.outlier_detection.as_ref(),
                tls: settings.tls.as_ref(),
            },
            None => Settings {
                load_balancer: policy.load_balancer.as_ref().or(self.load_balancer),
                connection_pool: policy.connection_pool.as_ref().or(self.connection_pool),
                outlier_detection: policy.outlier_detection.as_ref().or(self.outlier_detection),
                tls: policy.tls.as_ref().or(self.tls),
            },
        }
    }
}

fn single(object: &Object<DestinationRule>) -> MergedRule {
    let Object { meta, spec } = object;
    let export_to = spec.export_to.iter().map(|text| text.value.as_str());
    MergedRule {
        host: in_namespace(&spec.host, &meta.namespace),
        meta: meta.clone(),
        visibility: Visibility::new(export_to, &meta.namespace),
        selector: spec.workload_selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default(),
        policy: spec.traffic_policy.clone(),
        subsets: spec.subsets.clone(),
    }
}

fn merge_into(earlier: &mut MergedRule, later: MergedRule, found: &mut Vec<Diagnostic>) {
    let mut report = |message: String| {
        let origin = &later.meta.origin;
        let finding = Diagnostic::at(origin, Severity::Warning, Code::Conflict, message);
        found.push(finding.object(later.meta.id()));
    };
    let winner = format!("{} ({})", earlier.meta.id(), earlier.meta.origin);
    match (&earlier.policy, &later.policy) {
        (Some(_), Some(_)) => {
            report(format!("host {} has its traffic policy from {winner} already", later.host));
        }
        (None, Some(policy)) => earlier.policy = Some(policy.clone()),
        _ => {}
    }
    for subset in later.subsets {
        if earlier.subset(&subset.name).is_some() {
            report(format!("host {} has its subset `{}` from {winner} already", later.host, subset.name.value));
        } else {
            earlier.subsets.push(subset);
        }
    }
}
