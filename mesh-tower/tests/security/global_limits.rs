//! Rate limits that a service counts, from YAML to the answer: embedded control plane, the library's servers and clients, a rate
//! limit service by mesh-control's own rules, and bytes over sockets.

use std::net::SocketAddr;

use http::Request;
use mesh_control::config::Severity;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use tokio::net::TcpListener;

use crate::limits_support::limits;
use crate::server_support::Log;
use crate::shop::{self, workload};

/// Every limit comes along with the question.
const NO_RULES: &str = "domain: shop\n";

/// `reviews`, and a rate limit service at an address of this machine.
fn services(limits: SocketAddr) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: reviews, namespace: shop}}
spec: {{selector: {{app: reviews}}, ports: [{{name: http, port: 80, targetPort: 9080}}]}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: limits, namespace: shop}}
spec:
  hosts: [ratelimit.default.svc.cluster.local]
  ports: [{{number: 8081, name: grpc, targetPort: {}}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1}}]
---
",
        limits.port()
    )
}

/// What an object of ours says of a workload.
fn limit(app: &str, service: &str, rest: &str) -> String {
    format!(
        "apiVersion: policy.mesh-control/v1alpha1\nkind: RateLimit\nmetadata: {{name: {app}, namespace: shop}}\nspec:\n  \
         selector: {{matchLabels: {{app: {app}}}}}\n  \
         service: {{host: ratelimit.default.svc.cluster.local, port: 8081, domain: shop{service}}}\n  {rest}\n"
    )
}

/// Longer than an answer may take on a machine that is busy.
const PATIENT: &str = ", timeout: 30s";

async fn control(yaml: String) -> Embedded {
    Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap()
}

/// A server of `reviews`.
async fn serve(control: &Embedded) -> (Mesh, SocketAddr) {
    let mesh = workload(control, "reviews");
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let app = axum::Router::new().fallback(|| async { "here" }).layer(mesh.server_layer());
    tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
    mesh.serving().await.unwrap();
    (mesh, address)
}

/// Status and text of the answer to a request with these headers, over a connection of its own.
async fn ask(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    shop::ask(address, path, &lines).await
}

/// The status of the answer to a call by the mesh.
async fn call(mesh: &Mesh, user: &str) -> u16 {
    let request = Request::get("http://reviews/").header("x-user", user);
    mesh.client().request(request.body(Body::empty()).unwrap()).await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_limits_all_processes_together() {
    let rest = "answer: {headers: RATE_LIMIT}\n  rules:\n  \
                - {name: users, match: {method: GET, headers: {x-tier: free}}, by: [{header: x-user}], limit: {requests: 2, per: 8760h}}";
    let service = limits(NO_RULES).await;
    let control = control(format!("{}{}", services(service), limit("reviews", PATIENT, rest))).await;
    assert!(control.plane().diagnostics().is_empty(), "{:?}", control.plane().diagnostics());
    let (one, first) = serve(&control).await;
    let (_other, second) = serve(&control).await;
    let jo = [("x-user", "jo"), ("x-tier", "free")];
    for (address, status, left) in
        [(first, 200, "r=1;"), (second, 200, "r=0;"), (first, 429, "r=0;"), (second, 429, "r=0;")]
    {
        let (said, answer) = ask(address, "/", &jo).await;
        assert!(said == status && answer.contains(&format!("ratelimit: \"default\";{left}")), "{status} {answer}");
        assert_eq!(answer.contains("retry-after: "), status == 429, "{answer}");
    }
    assert_eq!(ask(first, "/", &[("x-user", "mo"), ("x-tier", "free")]).await.0, 200, "each has as many");
    // Whom the rule is not for, the service is not asked about.
    for headers in [&[("x-user", "jo")][..], &[("x-user", "jo"), ("x-tier", "paid")]] {
        let (status, answer) = ask(first, "/", headers).await;
        assert!(status == 200 && !answer.contains("ratelimit: "), "{answer}");
    }
    let text = one.prometheus();
    let line = "limit=\"RateLimit shop/reviews\",rule=\"service\",verdict=\"over\"} 1";
    assert!(text.lines().any(|found| found.contains(line)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_without_a_limit_go_by_those_of_the_service_for_what_a_client_calls() {
    let rules = "domain: shop\ndescriptors: [{key: x-user, rate_limit: {unit: year, requests_per_unit: 1}}]\n";
    let service = limits(rules).await;
    // It is for all hosts, and so for the service, too, unless nobody is asked whether he may be asked.
    let rest =
        "mode: CLIENT\n  rules: [{name: users, by: [{header: x-user}]}, {name: all, limit: {requests: 3, per: 8760h}}]";
    let control = control(format!("{}{}", services(service), limit("web", PATIENT, rest))).await;
    let found = control.plane().diagnostics();
    assert!(found.iter().all(|finding| finding.severity == Severity::Info), "{found:?}");
    let (_reviews, address) = serve(&control).await;
    let web = workload(&control, "web");
    for (user, status) in [("jo", 200), ("jo", 429), ("mo", 200), ("bo", 429)] {
        assert_eq!(call(&web, user).await, status, "{user}");
    }
    assert_eq!(ask(address, "/", &[("x-user", "jo")]).await.0, 200, "the server limits nobody");
}

/// Only refusals were told of once: limits may be without effect for long, and nobody knows.
#[tokio::test]
async fn without_an_answer_the_log_says_what_becomes_of_requests() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_max_level(tracing::Level::WARN);
    let _default = tracing::subscriber::set_default(subscriber.finish());
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (mode, status, becomes) in [("ALLOW", 200, "the request passes"), ("DENY", 500, "the request is refused")] {
        let service = format!("{PATIENT}, failureMode: {mode}");
        let rest = "rules: [{name: all, limit: {requests: 1, per: 1s}}]";
        let control = control(format!("{}{}", services(gone), limit("reviews", &service, rest))).await;
        let (_mesh, address) = serve(&control).await;
        for _ in 0..3 {
            assert_eq!(ask(address, "/", &[]).await.0, status, "{mode}");
        }
        let told = String::from_utf8_lossy(&log.0.lock().unwrap()).matches(becomes).count();
        assert_eq!(told, 1, "once in a while");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_the_failure_mode_decides() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (mode, status) in [("ALLOW", 200), ("DENY", 500)] {
        let service = format!("{PATIENT}, failureMode: {mode}");
        let rest = "rules: [{name: all, limit: {requests: 1, per: 1s}}]";
        let control = control(format!("{}{}", services(gone), limit("reviews", &service, rest))).await;
        let (mesh, address) = serve(&control).await;
        assert_eq!(ask(address, "/", &[]).await.0, status, "{mode}");
        assert!(mesh.prometheus().contains("limit=\"RateLimit shop/reviews\",rule=\"no answer\""));
    }
    // So does the time that an answer may take, of one who takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rest = "rules: [{name: all}]";
    let service = ", timeout: 1ms, failureMode: DENY";
    let yaml = format!("{}{}", services(silent.local_addr().unwrap()), limit("reviews", service, rest));
    let control = control(yaml).await;
    let (_mesh, address) = serve(&control).await;
    assert_eq!(ask(address, "/", &[]).await.0, 500);
}

/// As Istio documents it ("Enabling Rate Limits using Envoy", global rate limit), at the workload and not at its gateway.
const OF_ISTIO: &str = "
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata:
  name: filter-ratelimit
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
              subFilter:
                name: envoy.filters.http.router
      patch:
        operation: INSERT_BEFORE
        value:
          name: envoy.filters.http.ratelimit
          typed_config:
            '@type': type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
            domain: productpage-ratelimit
            failure_mode_deny: true
            timeout: 10s
            rate_limit_service:
              grpc_service:
                envoy_grpc:
                  cluster_name: outbound|8081||ratelimit.default.svc.cluster.local
                  authority: ratelimit.default.svc.cluster.local
              transport_api_version: V3
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata:
  name: filter-ratelimit-svc
  namespace: istio-system
spec:
  workloadSelector:
    labels:
      app: reviews
  configPatches:
    - applyTo: VIRTUAL_HOST
      match:
        context: SIDECAR_INBOUND
        routeConfiguration:
          vhost:
            name: ''
            route:
              action: ANY
      patch:
        operation: MERGE
        value:
          rate_limits:
            - actions:
                - request_headers:
                    header_name: ':path'
                    descriptor_key: PATH
";

/// The rules that it documents with it, but for years in the place of minutes.
const RULES_OF_ISTIO: &str = "
domain: productpage-ratelimit
descriptors:
  - key: PATH
    value: '/productpage'
    rate_limit: {unit: year, requests_per_unit: 1}
  - key: PATH
    value: 'api'
    rate_limit: {unit: year, requests_per_unit: 2}
  - key: PATH
    rate_limit: {unit: year, requests_per_unit: 3}
";

#[tokio::test(flavor = "multi_thread")]
async fn the_two_envoy_filters_that_istio_documents_take_effect_unchanged() {
    let service = limits(RULES_OF_ISTIO).await;
    let control = control(format!("{}{OF_ISTIO}", services(service))).await;
    assert!(control.plane().diagnostics().is_empty(), "{:?}", control.plane().diagnostics());
    let (_mesh, address) = serve(&control).await;
    for (path, statuses) in [("/productpage", &[200, 429, 429][..]), ("/other", &[200, 200, 200, 429])] {
        for status in statuses {
            assert_eq!(ask(address, path, &[]).await.0, *status, "{path}");
        }
    }
}
