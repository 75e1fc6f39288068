//! Rate limits from YAML to the answer: embedded control plane, the library's server, and bytes over sockets.

use std::net::SocketAddr;

use mesh_control::embedded::{Config, Embedded, Options};
use mesh_tower::Mesh;

use crate::shop::{ask, workload};

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 9080}]}
---
";

/// What an object of ours says of `reviews`.
fn limit(rest: &str) -> String {
    format!(
        "{REVIEWS}apiVersion: policy.mesh-control/v1alpha1\nkind: RateLimit\nmetadata: {{name: calls, namespace: shop}}\n\
         spec: {{selector: {{matchLabels: {{app: reviews}}}}, {rest}}}\n"
    )
}

/// A server of `reviews` under a configuration.
async fn serve(yaml: &str) -> (Embedded, Mesh, SocketAddr) {
    let control = Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap();
    let mesh = workload(&control, "reviews");
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let app = axum::Router::new().fallback(|| async { "here" }).layer(mesh.server_layer());
    tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
    mesh.serving().await.unwrap();
    (control, mesh, address)
}

#[tokio::test]
async fn each_user_may_have_so_many_and_is_told_what_is_left_and_when_to_come_back() {
    let rules = "answer: {headers: RATE_LIMIT}, \
                 rules: [{name: each-user, by: [{header: x-user}], limit: {requests: 2, per: 1h}}]";
    let (_control, mesh, address) = serve(&limit(rules)).await;
    let (status, answer) = ask(address, "/", "x-user: jo\r\n").await;
    assert!(status == 200 && answer.contains("ratelimit: \"each-user\";r=1;t=1800"), "{answer}");
    assert!(answer.contains("ratelimit-policy: \"each-user\";q=2;w=3600"), "{answer}");
    assert_eq!(ask(address, "/", "x-user: jo\r\n").await.0, 200);
    let (status, answer) = ask(address, "/", "x-user: jo\r\n").await;
    assert!(status == 429 && answer.contains("retry-after: ") && answer.contains("local_rate_limited"), "{answer}");
    // Others have their own, and who has no header none.
    for _ in 0..3 {
        assert_eq!(ask(address, "/", "").await.0, 200);
    }
    assert_eq!(ask(address, "/", "x-user: mo\r\n").await.0, 200);
    let grpc = ask(address, "/", "x-user: jo\r\ncontent-type: application/grpc\r\n").await.1;
    assert!(grpc.starts_with("HTTP/1.1 200") && grpc.contains("grpc-status: 8"), "{grpc}");
    let text = mesh.prometheus();
    let count = |verdict: &str| {
        let labels = format!("limit=\"RateLimit shop/calls\",rule=\"each-user\",verdict=\"{verdict}\"}} ");
        let line = text.lines().find(|line| line.contains(&labels)).unwrap_or_else(|| panic!("{text}"));
        line.rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!((count("within"), count("over")), ("3".to_owned(), "2".to_owned()));
}

#[tokio::test]
async fn requests_are_told_apart_by_what_an_expression_comes_to() {
    let by = r#"by: [{expression: "request.method + ' ' + request.headers['x-plan']"}]"#;
    let (_control, _mesh, address) =
        serve(&limit(&format!("rules: [{{name: plans, {by}, limit: {{requests: 1, per: 1h}}}}]"))).await;
    let free = "x-plan: free\r\n";
    assert_eq!((ask(address, "/", free).await.0, ask(address, "/", free).await.0), (200, 429));
    assert_eq!(ask(address, "/", "x-plan: paid\r\n").await.0, 200, "another value has its own");
    // Where it comes to nothing, nothing is counted.
    assert_eq!((ask(address, "/", "").await.0, ask(address, "/", "").await.0), (200, 200));
    // Who says a thing twice does not get around it: all who do count together.
    let twice = |second: &str| format!("{free}x-plan: {second}\r\n");
    assert_eq!((ask(address, "/", &twice("a")).await.0, ask(address, "/", &twice("b")).await.0), (200, 429));
    // So do all whose value cannot be calculated.
    let number = r#"by: [{expression: "int(request.headers['x-shard']) % 4"}]"#;
    let shards = serve(&limit(&format!("rules: [{{name: shards, {number}, limit: {{requests: 1, per: 1h}}}}]"))).await;
    let shard = async |value: &str| ask(shards.2, "/", &format!("x-shard: {value}\r\n")).await.0;
    assert_eq!((shard("5").await, shard("9").await, shard("2").await), (200, 429, 200));
    assert_eq!((shard("none").await, shard("x").await, shard("99999999999999999999").await), (200, 429, 429));
}

/// The one for one value once stood in the place of the one for each value, and its bucket was taken from twice.
#[tokio::test]
async fn a_request_has_to_be_within_a_rule_for_each_value_and_within_one_for_this_value() {
    let rules = "rules: [\
        {name: each-path, by: [{pathTemplates: ['/a', '/b']}], limit: {requests: 2, per: 1h}}, \
        {name: a, match: {path: /a}, limit: {requests: 3, per: 1h}}, \
        {name: c, match: {path: /c}, limit: {requests: 3, per: 1h}}, \
        {name: put, match: {method: PUT}, limit: {requests: 9, per: 1h}}, \
        {name: each-method, by: [{method: true}], limit: {requests: 6, per: 1h}}, \
        {name: forged, by: [{header: method}], limit: {requests: 1, per: 1h}}]";
    let (_control, _mesh, address) = serve(&limit(rules)).await;
    let passed = async |path: &str, headers: &str| {
        let mut passed = 0;
        for _ in 0..5 {
            passed += usize::from(ask(address, path, headers).await.0 == 200);
        }
        passed
    };
    assert_eq!(passed("/a", "").await, 2);
    assert_eq!(passed("/c", "").await, 3);
    assert_eq!(passed("/", "").await, 1, "six of each method");
    assert_eq!(passed("/", "method: PUT\r\n").await, 0);
}

#[tokio::test]
async fn a_bucket_is_as_full_as_it_was_after_a_push_and_at_another_limit() {
    let rule = |requests: u32| limit(&format!("rules: [{{name: all, limit: {{requests: {requests}, per: 1h}}}}]"));
    let (control, mesh, address) = serve(&rule(4)).await;
    for _ in 0..4 {
        assert_eq!(ask(address, "/", "").await.0, 200);
    }
    assert_eq!(ask(address, "/", "").await.0, 429);
    // What the push says besides shows that it is in force.
    let more = rule(400).replace("rules:", "answer: {status: 503}, rules:");
    control.set_yaml("config.yaml", &more).unwrap();
    let mut status = 429;
    for _ in 0..1000 {
        status = ask(address, "/", "").await.0;
        if status == 503 {
            break;
        }
        assert_eq!(status, 429, "empty is empty");
        tokio::task::yield_now().await;
    }
    assert_eq!(status, 503);
    drop(mesh);
}

#[tokio::test]
async fn rules_are_for_requests_of_a_method_a_path_and_headers_and_one_that_is_only_tried_refuses_nobody() {
    let rules = "rules: [\
        {name: users, match: {method: GET, path: '/users/{id}', headers: {x-tier: free}}, limit: {requests: 1, per: 1h}}, \
        {name: paths, by: [{pathTemplates: ['/a/*', '/b/**']}], limit: {requests: 1, per: 1h}}, \
        {name: tried, shadow: true, limit: {requests: 1, per: 1h}}]";
    let (_control, mesh, address) = serve(&limit(rules)).await;
    let free = "x-tier: free\r\n";
    assert_eq!(ask(address, "/users/1", free).await.0, 200);
    assert_eq!(ask(address, "/users/2", free).await.0, 429, "one bucket for all that fit");
    assert_eq!(ask(address, "/users/2", "x-tier: paid\r\n").await.0, 200);
    assert_eq!((ask(address, "/a/1", "").await.0, ask(address, "/a/2", "").await.0), (200, 429));
    assert_eq!((ask(address, "/b/1/2", "").await.0, ask(address, "/b/3", "").await.0), (200, 429));
    assert_eq!((ask(address, "/c", "").await.0, ask(address, "/c", "").await.0), (200, 200));
    let text = mesh.prometheus();
    assert!(
        text.lines().any(|line| line.contains("rule=\"tried\",verdict=\"shadow\"") && !line.ends_with(" 0")),
        "{text}"
    );
}

#[tokio::test]
async fn one_for_a_service_is_for_its_workloads_and_methods_are_told_apart() {
    let of_service = |service: &str| {
        let rules = "rules: [{name: methods, by: [{method: true}], limit: {requests: 1, per: 1h}}]";
        let target = format!("targetRefs: [{{kind: Service, name: {service}}}]");
        limit(rules).replace("selector: {matchLabels: {app: reviews}}", &target)
    };
    let (_control, _mesh, address) = serve(&of_service("reviews")).await;
    assert_eq!((ask(address, "/", "").await.0, ask(address, "/", "").await.0), (200, 429));
    let other = REVIEWS.replace("reviews", "other");
    let (_control, _mesh, address) = serve(&format!("{other}{}", of_service("other"))).await;
    assert_eq!((ask(address, "/", "").await.0, ask(address, "/", "").await.0), (200, 200));
}

/// As Istio documents it ("Enabling Rate Limits using Envoy", local rate limit).
const OF_ISTIO: &str = "
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata:
  name: filter-local-ratelimit-svc
  namespace: istio-system
spec:
  workloadSelector:
    labels:
      app: reviews
  configPatches:
    - applyTo: HTTP_FILTER
      match:
        context: SIDECAR_INBOUND
        listener:
          filterChain:
            filter:
              name: envoy.filters.network.http_connection_manager
      patch:
        operation: INSERT_BEFORE
        value:
          name: envoy.filters.http.local_ratelimit
          typed_config:
            '@type': type.googleapis.com/udpa.type.v1.TypedStruct
            type_url: type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
            value:
              stat_prefix: http_local_rate_limiter
              token_bucket:
                max_tokens: 4
                tokens_per_fill: 4
                fill_interval: 3600s
              filter_enabled:
                runtime_key: local_rate_limit_enabled
                default_value:
                  numerator: 100
                  denominator: HUNDRED
              filter_enforced:
                runtime_key: local_rate_limit_enforced
                default_value:
                  numerator: 100
                  denominator: HUNDRED
              response_headers_to_add:
                - append: false
                  header:
                    key: x-local-rate-limit
                    value: 'true'
";

#[tokio::test]
async fn the_envoy_filter_that_istio_documents_takes_effect_unchanged() {
    let (_control, mesh, address) = serve(&format!("{REVIEWS}{OF_ISTIO}")).await;
    for _ in 0..4 {
        let (status, answer) = ask(address, "/", "").await;
        assert!(status == 200 && !answer.contains("x-local-rate-limit"), "{answer}");
    }
    let (status, answer) = ask(address, "/", "").await;
    assert!(status == 429 && answer.contains("x-local-rate-limit: true"), "{answer}");
    assert!(mesh.prometheus().contains("limit=\"http_local_rate_limiter\""));
}

/// The same for some routes of one port, by descriptors.
#[tokio::test]
async fn one_for_virtual_hosts_counts_by_what_they_say() {
    let by_path = "
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: by-path, namespace: shop}
spec:
  workloadSelector: {labels: {app: reviews}}
  configPatches:
    - applyTo: HTTP_FILTER
      match: {context: SIDECAR_INBOUND}
      patch:
        operation: INSERT_BEFORE
        value:
          name: envoy.filters.http.local_ratelimit
          typed_config:
            '@type': type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
            stat_prefix: by_path
            filter_enabled: {default_value: {numerator: 100, denominator: HUNDRED}}
            filter_enforced: {default_value: {numerator: 100, denominator: HUNDRED}}
            token_bucket: {max_tokens: 100, tokens_per_fill: 100, fill_interval: 3600s}
            descriptors:
              - entries: [{key: path, value: /limited}]
                token_bucket: {max_tokens: 1, tokens_per_fill: 1, fill_interval: 3600s}
    - applyTo: VIRTUAL_HOST
      match: {context: SIDECAR_INBOUND, routeConfiguration: {vhost: {name: ''}}}
      patch:
        operation: MERGE
        value:
          rate_limits:
            - actions: [{request_headers: {header_name: ':path', descriptor_key: path}}]
";
    // Of all ports, and of that of the service, which is not the one that is bound.
    for vhost in ["", "inbound|http|80"] {
        let by_path = by_path.replace("vhost: {name: ''}", &format!("vhost: {{name: '{vhost}'}}"));
        let (_control, _mesh, address) = serve(&format!("{REVIEWS}{by_path}")).await;
        assert_eq!((ask(address, "/limited", "").await.0, ask(address, "/limited", "").await.0), (200, 429), "{vhost}");
        assert_eq!((ask(address, "/free", "").await.0, ask(address, "/free", "").await.0), (200, 200));
    }
    // By an expression, in either form that Envoy has for one.
    for test in ["safe_regex_match: {google_re2: {}, regex: '/li.*'}", "string_match: {safe_regex: {regex: '/li.*'}}"] {
        let action = format!(
            "header_value_match: {{descriptor_key: path, descriptor_value: /limited, headers: [{{name: ':path', {test}}}]}}"
        );
        let by_path = by_path.replace("request_headers: {header_name: ':path', descriptor_key: path}", &action);
        let (_control, _mesh, address) = serve(&format!("{REVIEWS}{by_path}")).await;
        assert_eq!((ask(address, "/limited", "").await.0, ask(address, "/lines", "").await.0), (200, 429), "{test}");
        assert_eq!((ask(address, "/free", "").await.0, ask(address, "/free", "").await.0), (200, 200));
    }
}
