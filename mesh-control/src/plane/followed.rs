//! Where what a workload tells of a live request is written: the rules of its routes, their settings, and policies.

use serde_json::{Value, json};

use super::Snapshot;
use crate::catalog::Client;
use crate::policy::route::ClusterKey;
use crate::policy::security::NamedRule;

impl Snapshot {
    /// The rule that answers, logs and metrics call so.
    pub(crate) fn rule_called(&self, id: &str) -> Option<NamedRule<'_>> {
        self.compiled.policy.security.rule_called(id)
    }

    /// The names of all rules of policies.
    pub(crate) fn rule_ids(&self) -> impl Iterator<Item = &str> {
        self.compiled.policy.security.rule_ids()
    }

    /// Adds to a hop that this client tells of where each of its reasons is written.
    pub(crate) fn locate_hop(&self, client: &Client, hop: &mut Value) {
        for event in hop.get_mut("events").and_then(Value::as_array_mut).into_iter().flatten() {
            match event.get("what").and_then(Value::as_str) {
                Some("routed") => self.locate_route(client, event),
                Some("policy") => {
                    let name = event.get("policy").and_then(Value::as_str);
                    if let Some(rule) = name.and_then(|name| self.rule_called(name)) {
                        event["origin"] = rule.origin.to_string().into();
                    }
                }
                _ => {}
            }
        }
    }

    fn locate_route(&self, client: &Client, event: &mut Value) {
        let Some(explained) = event.get_mut("explanation").filter(|explained| explained.is_object()) else { return };
        let name = explained.get("route_configuration").and_then(Value::as_str);
        let host = explained.pointer("/virtual_host/name").and_then(Value::as_str);
        let rules = match (name, host) {
            // What it calls of itself is a client's.
            (Some(name), Some(host)) if client.is_gateway && ClusterKey::parse(name).is_none() => {
                self.gateway_rules(client, name, host)
            }
            (Some(name), _) => self.rules_of(client, name),
            (None, _) => Vec::new(),
        };
        let rule_of = |of: &Value| {
            let position = usize::try_from(of.get("position")?.as_u64()?).ok()?;
            rules.get(position)?.as_ref()
        };
        let passed_over = explained.get_mut("passed_over").and_then(Value::as_array_mut);
        for over in passed_over.into_iter().flatten().filter(|over| over.is_object()) {
            if let Some(rule) = rule_of(over) {
                over["origin"] = rule.place().into();
            }
        }
        if let Some(route) = explained.get_mut("route").filter(|route| route.is_object())
            && let Some(rule) = rule_of(route)
        {
            route["origin"] = rule.place().into();
            let split =
                route.get("split_by").is_some_and(Value::is_string).then(|| self.origin_of_split(rule)).flatten();
            route["origins"] = origins(self.settings_of_rule(rule).into_iter().chain(split).collect());
        }
        let clusters = explained.get_mut("clusters").and_then(Value::as_array_mut);
        for cluster in clusters.into_iter().flatten().filter(|cluster| cluster.is_object()) {
            if let Some(name) = cluster.get("name").and_then(Value::as_str) {
                cluster["origins"] = origins(self.settings_of_cluster(client, name));
            }
        }
    }
}

fn origins(all: super::origins::Origins) -> Value {
    all.into_iter().map(|(name, place)| (name.to_owned(), json!(place))).collect::<serde_json::Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::ClientClass;
    use crate::plane::Plane;

    #[test]
    fn a_gateway_s_route_has_the_place_of_its_rule_as_a_client_s_has() {
        let plane = Plane::from_yaml(
            "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {selector: {istio: edge}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [a.example]
  gateways: [edge]
  http:
  - match: [{uri: {prefix: /no}}]
    directResponse: {status: 404}
  - timeout: 2s
    route: [{destination: {host: web}}]
",
        );
        let snapshot = plane.unwrap_or_else(|why| panic!("{why}")).snapshot();
        let gateway = Client::new("edge", ClientClass::Library, [127, 0, 0, 1].into())
            .namespace("edges")
            .labels([("istio", "edge")])
            .gateway();
        let cluster = "outbound|80||web.shop.svc.cluster.local";
        let mut hop = json!({"events": [{"what": "routed", "explanation": {
            "route_configuration": "http.80", "virtual_host": {"name": "a.example:80"},
            "passed_over": [{"position": 0}], "route": {"position": 1}, "clusters": [{"name": cluster}]}}]});
        snapshot.locate_hop(&gateway, &mut hop);
        let explained = &hop["events"][0]["explanation"];
        let place = |place: &Value| place.as_str().unwrap_or_default().split(',').next().unwrap_or_default().to_owned();
        assert!(place(&explained["passed_over"][0]["origin"]).ends_with(":18"), "{hop}");
        assert!(place(&explained["route"]["origin"]).ends_with(":20"), "{hop}");
        assert!(place(&explained["route"]["origins"]["timeout"]).ends_with(":20"), "{hop}");
        assert!(
            explained["clusters"][0]["origins"]["service"].as_str().is_some_and(|at| at.contains("shop/web")),
            "{hop}"
        );
        // Of a host that it does not have, nothing is said.
        let mut other = json!({"events": [{"what": "routed", "explanation": {
            "route_configuration": "http.80", "virtual_host": {"name": "b.example:80"}, "route": {"position": 0}}}]});
        snapshot.locate_hop(&gateway, &mut other);
        assert_eq!(other["events"][0]["explanation"]["route"].get("origin"), None);
    }
}
