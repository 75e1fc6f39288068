//! Where what a client is told is written. It is no part of what is told: a line that moves is no news to anybody.

use mesh_core::model::PASSTHROUGH_CLUSTER;

use super::Snapshot;
use crate::catalog::{Catalog, Client};
use crate::config::file::Meta;
use crate::config::locate::{locate, written_in};
use crate::policy::Address;
use crate::policy::destination_rules::places;
use crate::policy::route::{ClusterKey, FallbackName, Written};

/// Settings by the name that an explanation has for them, each with `file:line`.
pub(crate) type Origins = Vec<(&'static str, String)>;

impl Snapshot {
    /// Of each route of a route configuration, in its order, the rule that it is made of; `None` for the default route of a
    /// service.
    pub(crate) fn rules_of(&self, client: &Client, routes: &str) -> Vec<Option<Written>> {
        let policy = &self.compiled.policy;
        let Some(key) = ClusterKey::parse(routes) else { return Vec::new() };
        let view = policy.view(&client.namespace, &client.labels);
        policy.rules_of_routes(&Address { host: key.host, port: key.port }, &view)
    }

    /// Why a client does not see what a target would be to others: its Sidecar does not have it.
    pub(crate) fn hidden(&self, client: &Client, target: &str) -> Option<String> {
        let policy = &self.compiled.policy;
        policy.hidden(target, &policy.view(&client.namespace, &client.labels))
    }

    /// The objects that say how a target is called, wrong ones among them.
    pub(crate) fn rules_on(&self, client: &Client, target: &str) -> Vec<String> {
        let host = self.host_of(client, target);
        host.map(|host| self.compiled.policy.rules_on(&host).into_iter().collect()).unwrap_or_default()
    }

    /// The rule on connections of this name, as a client of a target sees it: `tcp[0]`, `tls[1].match[0]`.
    pub(crate) fn rule_on_connections(&self, client: &Client, target: &str, name: &str) -> Option<String> {
        let policy = &self.compiled.policy;
        let view = policy.view(&client.namespace, &client.labels);
        let address = policy.resolve(target, &view)?;
        let object = &policy.rule_of(&address.host, &view)?.meta;
        let is_rule = name.starts_with("tcp[") || name.starts_with("tls[");
        is_rule.then(|| format!("{}, {} {name}", locate(&object.origin, name), object.id()))
    }

    /// Where the settings of a rule are written.
    pub(crate) fn settings_of_rule(&self, rule: &Written) -> Origins {
        /// A setting's name, and its field in a rule.
        const FIELDS: [(&str, &str); 23] = [
            ("timeout", "timeout"),
            ("retry", "retries"),
            ("per_try_timeout", "retries.perTryTimeout"),
            ("fault", "fault"),
            ("cors", "corsPolicy"),
            ("request_headers", "headers.request"),
            ("response_headers", "headers.response"),
            ("redirect", "redirect"),
            ("direct_response", "directResponse"),
            ("path", "rewrite"),
            ("authority", "rewrite"),
            ("mirrors", "mirrors"),
            ("mirrors", "mirror"),
            // The same in a route of Gateway API.
            ("timeout", "timeouts"),
            ("retry", "retry"),
            ("per_try_timeout", "timeouts.backendRequest"),
            ("cors", "filters"),
            ("request_headers", "filters"),
            ("response_headers", "filters"),
            ("redirect", "filters"),
            ("path", "filters"),
            ("authority", "filters"),
            ("mirrors", "filters"),
        ];
        let places = written_in(&rule.origin, &rule.field, &FIELDS.map(|(_, field)| field));
        let places = FIELDS.iter().zip(places).filter_map(|((name, _), place)| Some((*name, place?.to_string())));
        let mut all: Origins = places.collect();
        let is_written = |all: &Origins, wanted: &str| all.iter().any(|(name, _)| *name == wanted);
        if !is_written(&all, "retry") {
            all.push(("retry", self.default_retry()));
            // A time of each try that is not written comes with it.
            if !is_written(&all, "per_try_timeout") {
                all.push(("per_try_timeout", self.default_retry()));
            }
        }
        all
    }

    /// Where it is written what the split of a rule goes by, where that is not chance. All of the object is read for it.
    pub(crate) fn origin_of_split(&self, rule: &Written) -> Option<(&'static str, String)> {
        let key = "metadata.annotations.mesh-control/sticky-split";
        let place = locate(&rule.origin, key);
        let bytes = usize::try_from(place.span.start).ok()?..usize::try_from(place.span.end).ok()?;
        // Of a delegate's rule, the annotation may be the other object's.
        let is_there = place.source.text.get(bytes).is_some_and(|text| text.contains("sticky-split"));
        is_there.then(|| ("split_by", place.to_string()))
    }

    /// Where it is written when a route tries again that does not say it.
    pub(crate) fn default_retry(&self) -> String {
        let object = self.compiled.policy.mesh.object.as_ref();
        let policy = object.and_then(|object| Some((object, object.spec.default_http_retry_policy.as_ref()?)));
        match policy {
            Some((object, policy)) => object.meta.origin.at(policy.span).to_string(),
            None => "Istio's default".to_owned(),
        }
    }

    /// Where the service and the subset of a cluster are written, and the settings in force for it.
    pub(crate) fn settings_of_cluster(&self, client: &Client, name: &str) -> Origins {
        let policy = &self.compiled.policy;
        let view = match client.is_gateway {
            true => policy.gateway_view(&client.namespace, &client.labels),
            false => policy.view(&client.namespace, &client.labels),
        };
        let key = ClusterKey::parse(name).or_else(|| FallbackName::parse(name));
        let Some(seen) = key.and_then(|key| policy.cluster(key, &view)) else {
            let place = policy.place_of_outbound(&view).filter(|_| name == PASSTHROUGH_CLUSTER);
            return place.map(|place| ("service", place.to_string())).into_iter().collect();
        };
        let meta = &seen.service.meta;
        let mut all: Origins = vec![("service", format!("{}, {}", meta.origin, meta.id()))];
        let is_upgraded_or_not = seen.traffic.connection_pool.upgrades_to_http2.is_some();
        let written = places(seen.rule.map(|rule| &**rule), &seen.key, &policy.mesh);
        for (field, origin) in written {
            let place = origin.to_string();
            match field {
                "subset" => all.push(("subset", place)),
                "loadBalancer" => all.push(("balancer", place)),
                "connectionPool" => all.extend([("connections", place.clone()), ("circuit_breakers", place)]),
                // One of the settings of connections, which may be written elsewhere than the others.
                "connectTimeout" => match all.iter_mut().find(|(name, _)| *name == "connections") {
                    Some((_, others)) if *others == place => {}
                    Some((_, others)) => others.push_str(&format!(", connect timeout {place}")),
                    None => all.push(("connections", place)),
                },
                "h2UpgradePolicy" if is_upgraded_or_not => all.push(("protocol", place)),
                "outlierDetection" => all.push(("outlier_detection", place)),
                "retryBudget" if !all.iter().any(|(name, _)| *name == "circuit_breakers") => {
                    all.push(("circuit_breakers", place));
                }
                "tls" => all.push(("tls", place)),
                _ => {}
            }
        }
        if let Some((id, place)) = seen.tls_policy {
            // What the mesh says of all does not count there.
            all.retain(|(name, _)| *name != "tls");
            all.push(("tls", format!("{place}, {id}")));
        }
        if let Some(place) = seen.budget_policy {
            match all.iter_mut().find(|(name, _)| *name == "circuit_breakers") {
                Some((_, others)) => others.push_str(&format!(", retry budget {place}")),
                None => all.push(("circuit_breakers", place.to_string())),
            }
        }
        let Some(rule) = seen.rule else { return all };
        let own = &rule.meta.extensions;
        let annotated = [
            ("balancer", "load-balancer", own.load_balancer.is_some() || own.endpoint_subset.is_some()),
            ("health_check", "health-check", own.health_check.is_some()),
            ("fallback", "fallback", own.fallback.is_some()),
        ];
        for (name, key, _) in annotated.into_iter().filter(|(.., is_set)| *is_set) {
            all.retain(|(other, _)| *other != name);
            all.push((name, annotation(&rule.meta, key)));
        }
        all
    }
}

fn annotation(meta: &Meta, key: &str) -> String {
    locate(&meta.origin, &format!("metadata.annotations.mesh-control/{key}")).to_string()
}
