//! What is said of rate limits that a service counts, with its place.

use mesh_control::analysis::validate;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: limits, namespace: shop}
spec: {selector: {app: limits}, ports: [{name: grpc, port: 8081}]}
";

/// The findings of a text hold these, one each in this order.
fn check(text: &str, expected: &[&str]) {
    let found = validate([("0-services.yaml", SERVICES), ("t.yaml", text)]);
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    let holds = found.iter().zip(expected).all(|(finding, part)| finding.contains(part));
    assert!(holds && found.len() == expected.len(), "{text}: {found:#?}");
}

fn rate_limit(service: &str, rules: &str) -> String {
    format!(
        "apiVersion: policy.mesh-control/v1alpha1\nkind: RateLimit\nmetadata: {{name: calls, namespace: shop}}\nspec:\n  \
         selector: {{matchLabels: {{app: web}}}}\n  service: {service}\n  rules: [{rules}]\n"
    )
}

const SERVICE: &str = "{host: limits.shop.svc.cluster.local, port: 8081, domain: shop}";

#[test]
fn what_has_no_effect_beside_a_service_is_an_error_and_one_that_cannot_be_asked_is_told() {
    let all = "{name: all, limit: {requests: 1, per: 1s}}";
    check(&rate_limit(SERVICE, all), &[]);
    for (rules, expected) in [
        (
            "{name: a, limit: {requests: 1, per: 90s}}",
            "t.yaml:7:47: error[invalid-value]: RateLimit shop/calls: rules[0].limit.per: ",
        ),
        ("{name: a, limit: {requests: 1, per: 1s, burst: 2}}", "rules[0].limit.burst: without effect"),
        ("{name: a, shadow: true}", "rules[0].shadow: the service says"),
        ("{name: a, limit: {requests: 0, per: 1s}}", "rules[0].limit.requests: must be at least 1"),
        ("{name: a}, {name: a, by: [{method: true}]}", "rules[1].name: another rule is named `a`"),
        ("{name: a}, {name: b}", "rules[1]: another rule counts the same requests"),
    ] {
        check(&rate_limit(SERVICE, rules), &[expected]);
    }
    let keys = rate_limit(SERVICE, all).replace("rules:", "maxKeys: 5\n  perConnection: true\n  rules:");
    check(&keys, &["perConnection: without effect", "maxKeys: without effect"]);
    check(&rate_limit(&SERVICE.replace("limits.shop", "-"), all), &["t.yaml:6:19: error[invalid-value]"]);
    let gone = "warning[unknown-reference]: RateLimit shop/calls: service: \"limits.shop.svc.cluster.local:9\"";
    check(&rate_limit(&SERVICE.replace("8081", "9"), all), &[gone]);
    check(&rate_limit(&SERVICE.replace("limits", "web").replace("8081", "80"), all), &["speaks no gRPC"]);
}

fn envoy_filter(name: &str, patches: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  workloadSelector: {{labels: {{app: web}}}}\n  configPatches: [{patches}]\n"
    )
}

/// A filter that is put into a chain, and what is counted by.
fn patches(context: &str, cluster: &str) -> [String; 2] {
    let filter = format!(
        "{{applyTo: HTTP_FILTER, match: {{context: {context}}}, patch: {{operation: INSERT_BEFORE, value: {{\
         name: envoy.filters.http.ratelimit, typed_config: {{\
         \"@type\": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit, domain: shop, \
         rate_limit_service: {{grpc_service: {{envoy_grpc: {{cluster_name: '{cluster}'}}}}, transport_api_version: V3}}}}}}}}}}"
    );
    let counted = format!(
        "{{applyTo: VIRTUAL_HOST, match: {{context: {context}}}, patch: {{operation: MERGE, value: \
         {{rate_limits: [{{actions: [{{remote_address: {{}}}}]}}]}}}}}}"
    );
    [filter, counted]
}

#[test]
fn envoy_filters_for_global_limits_are_read_whole_or_not_at_all() {
    const CLUSTER: &str = "outbound|8081||limits.shop.svc.cluster.local";
    let [filter, counted] = patches("SIDECAR_INBOUND", CLUSTER);
    let both = format!("{}{}", envoy_filter("a", &filter), envoy_filter("b", &counted));
    check(&both, &[]);
    check(&envoy_filter("a", &format!("{filter}, {counted}")), &[]);
    check(&envoy_filter("a", &filter), &["configPatches: nothing says what requests are counted by"]);
    check(&envoy_filter("a", &counted), &["configPatches: no rate limit is counted by this"]);
    check(
        &both.replace("limits.shop", "other.shop"),
        &["configPatches: \"other.shop.svc.cluster.local:8081\" gives no answers"],
    );
    let text = envoy_filter("a", &format!("{}, {counted}", filter.replace(CLUSTER, "rate_limit_cluster")));
    let expected = "the cluster `rate_limit_cluster`: outbound|PORT||HOST is expected";
    check(&text, &[&format!("and so nothing of this EnvoyFilter is in force: {expected}")]);
    // What is not known of it.
    let unknown = filter.replace("domain: shop", "domain: shop, stage: 3");
    check(&envoy_filter("a", &format!("{unknown}, {counted}")), &["error[unknown-field]"]);
    // Gateways are none of ours.
    for patch in patches("GATEWAY", CLUSTER) {
        check(&envoy_filter("a", &patch), &["t.yaml:"]);
    }
}
