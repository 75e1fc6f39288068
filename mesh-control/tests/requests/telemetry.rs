//! What both sides of a request count of it: Istio's standard metrics, scraped from the admin ports of two workloads that a
//! control plane in this process describes to each other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::Request as Received;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::telemetry::LABELS;
use mesh_core::xds::Bootstrap;
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_layer::Layer;

use crate::support::{introduced, nobody};

const PATIENCE: Duration = Duration::from_secs(5);

const SERVICES: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: ledger, namespace: shop}
spec: {selector: {app: ledger}, ports: [{name: tcp, port: 7000}]}
";

/// A workload of the namespace `shop`, with its admin port.
struct Workload {
    mesh: Mesh,
    admin: SocketAddr,
}

/// A sample of the exposition.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Workload {
    fn start(control: &Embedded, app: &str) -> Workload {
        let bootstrap = introduced(&format!("{app}-v1-7"), json!({"app": app, "version": "v1"}))
            .metadata("SERVICE_ACCOUNT", app)
            .metadata("WORKLOAD_NAME", format!("{app}-v1"))
            .metadata("CLUSTER_ID", "east");
        Workload::of(control, bootstrap)
    }

    fn of(control: &Embedded, bootstrap: Bootstrap) -> Workload {
        let builder = Mesh::builder().source(control.source(bootstrap)).metrics();
        let mesh = builder.cold_start_wait(PATIENCE).start().unwrap();
        let admin = mesh.serve_admin("127.0.0.1:0".parse().unwrap()).unwrap();
        Workload { mesh, admin }
    }

    /// Serves what reached it, over every protocol; a gRPC call gets two messages.
    async fn serve(self) -> Workload {
        let listener = self.mesh.bind("127.0.0.1:0").await.unwrap();
        let app = self.mesh.server_layer().layer(axum::Router::new().fallback(answer));
        tokio::spawn(mesh_tower::server::serve(listener, app).readable_bodies().into_future());
        self.mesh.serving().await.unwrap();
        self
    }

    async fn samples(&self) -> Vec<Sample> {
        let (head, text) = ask(self.admin, "GET /stats/prometheus HTTP/1.1\r\nhost: localhost").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
        text.lines().filter(|line| !line.starts_with('#')).map(sample).collect()
    }

    /// Waits until there is a sample of this name with these labels.
    async fn until(&self, name: &str, labels: &[(&str, &str)], value: f64) -> Sample {
        let come = async {
            loop {
                let all = self.samples().await;
                let fits = |sample: &&Sample| {
                    sample.name == name && labels.iter().all(|(label, value)| sample.labels[*label] == *value)
                };
                if let Some(found) = all.iter().filter(fits).find(|sample| sample.value == value) {
                    return found.clone();
                }
                tokio::task::yield_now().await;
            }
        };
        match tokio::time::timeout(PATIENCE, come).await {
            Ok(found) => found,
            Err(_) => panic!("{name} {labels:?} {value}: {:#?}", self.samples().await),
        }
    }

    async fn get(&self, uri: &str) -> Option<(u16, HeaderMap, String)> {
        let (head, body) = self.mesh.client().get(uri).await.ok()?.into_parts();
        let body = body.collect().await.ok()?.to_bytes();
        Some((head.status.as_u16(), head.headers, String::from_utf8_lossy(&body).into()))
    }
}

async fn answer(request: Received) -> http::Response<axum::body::Body> {
    let (head, body) = request.into_parts();
    if head.headers.get("content-type").is_some_and(|kind| kind == "application/grpc") {
        body.collect().await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", 0.into());
        let message = || Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&[0, 0, 0, 0, 1, 7])));
        let frames = futures_util::stream::iter([message(), message(), Ok(Frame::trailers(trailers))]);
        let answer = http::Response::builder().header("content-type", "application/grpc");
        return answer.body(axum::body::Body::new(StreamBody::new(frames))).unwrap();
    }
    let seen: String = head.headers.keys().map(|name| format!("{name}\n")).collect();
    http::Response::new(axum::body::Body::from(seen))
}

/// Asks a server in plaintext; the head of the answer and its body.
async fn ask(at: SocketAddr, head: &str) -> (String, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{read:?}: {answer}"));
    (head.to_owned(), body.to_owned())
}

/// A line of the text format, which has to be well-formed.
fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            let (mut value, mut chars) = (String::new(), after.char_indices());
            let end = loop {
                match chars.next().unwrap_or_else(|| panic!("{line}")) {
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        c => panic!("\\{c}: {line}"),
                    }),
                    (at, '"') => break at,
                    (_, c) => value.push(c),
                }
            };
            assert_eq!(labels.insert(label.to_owned(), value), None, "{line}");
            rest = &after[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').unwrap_or_else(|| panic!("{line}"));
    }
    let value = rest.strip_prefix(' ').unwrap().parse().unwrap_or_else(|_| panic!("{line}"));
    Sample { name: name.to_owned(), labels, value }
}

async fn control(yaml: &str) -> Embedded {
    Embedded::start(Config::yaml(format!("{SERVICES}{yaml}")), Options::default().dev()).await.unwrap()
}

#[tokio::test]
async fn both_sides_count_a_request_with_all_labels_of_both_workloads() {
    let control = control("").await;
    let server = Workload::start(&control, "reviews").serve().await;
    let client = Workload::start(&control, "web");
    for _ in 0..3 {
        let (status, headers, seen) = client.get("http://reviews.shop/").await.unwrap();
        assert_eq!(status, 200);
        // The exchange of who is who is no business of applications.
        assert!(!seen.contains("x-envoy-peer-metadata") && !headers.contains_key("x-envoy-peer-metadata"), "{seen}");
    }
    let both = [
        ("source_workload", "web-v1"),
        ("source_workload_namespace", "shop"),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/web"),
        ("source_app", "web"),
        ("source_version", "v1"),
        ("source_canonical_service", "web"),
        ("source_canonical_revision", "v1"),
        ("source_cluster", "east"),
        ("destination_workload", "reviews-v1"),
        ("destination_workload_namespace", "shop"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/reviews"),
        ("destination_app", "reviews"),
        ("destination_version", "v1"),
        ("destination_canonical_service", "reviews"),
        ("destination_canonical_revision", "v1"),
        ("destination_cluster", "east"),
        ("destination_service", "reviews.shop.svc.cluster.local"),
        ("destination_service_name", "reviews"),
        ("destination_service_namespace", "shop"),
        ("request_protocol", "http"),
        ("response_code", "200"),
        ("grpc_response_status", ""),
        ("response_flags", "-"),
    ];
    for (side, reporter, policy) in [(&client, "source", "unknown"), (&server, "destination", "mutual_tls")] {
        let own = [("reporter", reporter), ("connection_security_policy", policy)];
        let labels: Vec<_> = both.into_iter().chain(own).collect();
        let found = side.until("istio_requests_total", &labels, 3.0).await;
        let names: Vec<_> = found.labels.keys().map(String::as_str).collect();
        let mut expected = LABELS;
        expected.sort_unstable();
        assert_eq!(names, expected);
        side.until("istio_request_duration_milliseconds_count", &labels, 3.0).await;
        side.until("istio_response_bytes_count", &labels, 3.0).await;
        side.until("istio_request_bytes_sum", &labels, 0.0).await;
    }
}

#[tokio::test]
async fn a_member_of_a_group_counts_by_the_labels_of_its_group() {
    let group = "
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: vms, namespace: shop}
spec: {template: {labels: {app: reviews, version: v3}}}
";
    let control = Embedded::start(Config::yaml(format!("{SERVICES}{group}")), Options::default()).await.unwrap();
    let member = introduced("vm-7", json!({})).metadata("WORKLOAD_NAME", "vm").metadata("AUTO_REGISTER_GROUP", "vms");
    let server = Workload::of(&control, member).serve().await;
    let client = Workload::start(&control, "web");
    for caller in [&client, &server] {
        assert_eq!(caller.get("http://reviews.shop/").await.unwrap().0, 200);
    }
    let of = |end: &str, reporter: &'static str| {
        let labels = [
            ("workload", "vm"),
            ("app", "reviews"),
            ("version", "v3"),
            ("canonical_service", "reviews"),
            ("canonical_revision", "v3"),
        ];
        let mut labels = labels.map(|(label, value)| (format!("{end}_{label}"), value)).to_vec();
        labels.push(("reporter".to_owned(), reporter));
        labels
    };
    for (side, end, reporter) in [
        (&server, "destination", "destination"),
        (&server, "source", "source"),
        // What it tells others of itself in headers.
        (&client, "destination", "source"),
    ] {
        let labels = of(end, reporter);
        let mut labels: Vec<(&str, &str)> = labels.iter().map(|(label, value)| (label.as_str(), *value)).collect();
        if reporter == "destination" {
            labels.push(("source_workload", "web-v1"));
        }
        side.until("istio_requests_total", &labels, 1.0).await;
    }
}

#[tokio::test]
async fn messages_of_grpc_are_counted_on_both_sides_and_in_both_directions() {
    let control = control("").await;
    let server = Workload::start(&control, "reviews").serve().await;
    let client = Workload::start(&control, "web");
    let message = || Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(&[0, 0, 0, 0, 2, 1, 2])));
    let body = Body::new(StreamBody::new(futures_util::stream::iter([message(), message(), message()])));
    let call = Request::post("http://reviews.shop/a.B/C").version(Version::HTTP_2);
    let call = call.header("content-type", "application/grpc").header("te", "trailers").body(body).unwrap();
    client.mesh.client().request(call).await.unwrap().into_body().collect().await.unwrap();
    for side in [&client, &server] {
        let labels = [("request_protocol", "grpc"), ("response_code", "200"), ("grpc_response_status", "0")];
        side.until("istio_requests_total", &labels, 1.0).await;
        side.until("istio_request_messages_total", &labels, 3.0).await;
        side.until("istio_response_messages_total", &labels, 2.0).await;
        side.until("istio_request_bytes_sum", &labels, 21.0).await;
        side.until("istio_response_bytes_sum", &labels, 12.0).await;
    }
}

#[tokio::test]
async fn what_the_mesh_itself_answers_has_envoys_flags() {
    let (gone, reviews) = (nobody().await, "reviews.shop.svc.cluster.local");
    let control = control(&format!(
        "
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: gone, namespace: shop}}
spec:
  hosts: [gone.example.com]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: {}, ports: {{http: {}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: shop}}
spec:
  hosts: [{reviews}]
  http:
  - match: [{{uri: {{prefix: /direct}}}}]
    directResponse: {{status: 418}}
  - match: [{{uri: {{prefix: /abort}}}}]
    fault: {{abort: {{httpStatus: 555, percentage: {{value: 100}}}}, delay: {{fixedDelay: 1ms, percentage: {{value: 100}}}}}}
    route: [{{destination: {{host: {reviews}}}}}]
  - match: [{{uri: {{prefix: /}}}}]
    route: [{{destination: {{host: {reviews}}}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: secret, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: reviews}}}}
  action: DENY
  rules: [{{to: [{{operation: {{paths: [/secret]}}}}]}}]
",
        gone.ip(),
        gone.port(),
    ))
    .await;
    let server = Workload::start(&control, "reviews").serve().await;
    let client = Workload::start(&control, "web");
    for (uri, code, flags, service) in [
        ("http://gone.example.com/", "503", "URX,UF", "gone.example.com"),
        ("http://ledger.shop:7000/", "503", "UH", "ledger.shop.svc.cluster.local"),
        ("http://reviews.shop/direct", "418", "-", "reviews.shop"),
        ("http://reviews.shop/abort", "555", "DI,FI", reviews),
        ("http://reviews.shop/secret", "403", "-", reviews),
    ] {
        client.get(uri).await;
        let labels = [("response_code", code), ("response_flags", flags), ("destination_service", service)];
        client.until("istio_requests_total", &labels, 1.0).await;
    }
    server.until("istio_requests_total", &[("response_code", "403"), ("response_flags", "-")], 1.0).await;
    // Given up before there was an answer.
    let mut given_up = client.mesh.client().get("http://reviews.shop/");
    std::future::poll_fn(|cx| {
        _ = std::pin::Pin::new(&mut given_up).poll(cx);
        std::task::Poll::Ready(())
    })
    .await;
    drop(given_up);
    client.until("istio_requests_total", &[("response_code", "0"), ("response_flags", "DC")], 1.0).await;
}

#[tokio::test]
async fn connections_that_are_not_http_are_counted_on_both_sides() {
    let control = control("").await;
    let server = Workload::start(&control, "ledger");
    let mut listener = server.mesh.bind_tcp("127.0.0.1:0").await.unwrap();
    tokio::spawn(async move {
        while let Some((mut io, _)) = listener.accept().await {
            let mut asked = [0; 3];
            io.read_exact(&mut asked).await.unwrap();
            io.write_all(b"hello").await.unwrap();
            io.shutdown().await.unwrap();
        }
    });
    server.mesh.serving().await.unwrap();
    let client = Workload::start(&control, "web");
    let mut stream = client.mesh.connect("ledger.shop", 7000).await.unwrap();
    stream.write_all(b"abc").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"hello");
    drop(stream);
    for (side, reporter, policy) in [(&client, "source", "unknown"), (&server, "destination", "mutual_tls")] {
        let labels = [
            ("reporter", reporter),
            ("connection_security_policy", policy),
            ("request_protocol", "tcp"),
            ("response_flags", "-"),
            ("source_principal", "spiffe://cluster.local/ns/shop/sa/web"),
            ("destination_principal", "spiffe://cluster.local/ns/shop/sa/ledger"),
            ("destination_service", "ledger.shop.svc.cluster.local"),
        ];
        side.until("istio_tcp_connections_opened_total", &labels, 1.0).await;
        side.until("istio_tcp_connections_closed_total", &labels, 1.0).await;
        side.until("istio_tcp_sent_bytes_total", &labels, 5.0).await;
        side.until("istio_tcp_received_bytes_total", &labels, 3.0).await;
    }
}

#[tokio::test]
async fn a_service_outside_of_the_mesh_is_not_told_who_calls_it() {
    let outside = crate::support::server("outside").await;
    let entry = crate::support::service("web", &[("v1", outside)]);
    let control = control(&entry).await;
    let client = Workload::start(&control, "web");
    let (_, _, seen) = client.get("http://web.example.com/").await.unwrap();
    assert!(seen.starts_with("outside") && !seen.contains("x-envoy-peer-metadata"), "{seen}");
    client.until("istio_requests_total", &[("destination_service", "web.example.com")], 1.0).await;
}

#[tokio::test]
async fn what_a_service_outside_of_the_mesh_says_of_itself_is_in_no_label() {
    use mesh_core::workload::Workload as Claimed;
    let numbers = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let app = axum::Router::new().fallback(move || {
        let number = numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let claimed = Claimed::of_endpoint(&format!("payments-{number};shop;payments;v1;"));
        let claim = mesh_core::xds::peer_metadata::encode(&claimed);
        async move { ([("x-envoy-peer-metadata", claim)], "outside") }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let outside = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());
    let control = control(&crate::support::service("web", &[("v1", outside)])).await;
    let client = Workload::start(&control, "web");
    for _ in 0..3 {
        let (_, headers, _) = client.get("http://web.example.com/").await.unwrap();
        assert!(!headers.contains_key("x-envoy-peer-metadata"), "it is no business of applications");
    }
    // Each name that it makes up would be a series.
    client.until("istio_requests_total", &[("destination_service", "web.example.com")], 3.0).await;
}

#[tokio::test]
async fn what_a_stranger_says_of_himself_cannot_break_a_label_and_is_only_a_claim() {
    use mesh_core::workload::Workload as Claimed;
    let control = control(
        "
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: PERMISSIVE}}
",
    )
    .await;
    let server = Workload::start(&control, "reviews").serve().await;
    let client = Workload::start(&control, "web");
    client.get("http://reviews.shop/").await.unwrap();
    let at = client.mesh.endpoints()[0].endpoint.to_string().parse().unwrap();
    let claim = mesh_core::xds::peer_metadata::encode(&Claimed::of_endpoint("a\"} 1\nforged{\\;shop;;;"));
    let head = format!("{} / HTTP/1.1\r\nhost: reviews\r\nx-envoy-peer-metadata: {claim}", Method::GET);
    let (head, seen) = ask(at, &head).await;
    assert!(head.starts_with("HTTP/1.1 200") && !seen.contains("x-envoy"), "{head} {seen}");
    let labels = [
        ("source_workload", "a\"} 1forged{\\"),
        ("source_principal", "unknown"),
        ("connection_security_policy", "none"),
    ];
    server.until("istio_requests_total", &labels, 1.0).await;
}

const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";

#[tokio::test]
async fn the_admin_port_is_read_only_and_not_a_web_pages_to_read() {
    let control = control("").await;
    let server = Workload::start(&control, "reviews").serve().await;
    let client = Workload::start(&control, "web");
    client.get("http://reviews.shop/").await.unwrap();
    let page = async |path: &str| ask(client.admin, &format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1")).await;
    for path in ["/", "/secret"] {
        assert!(page(path).await.0.starts_with("HTTP/1.1 404"));
    }
    assert!(page("/ready").await.0.starts_with("HTTP/1.1 200"));
    assert!(ask(server.admin, "GET /ready HTTP/1.1\r\nhost: localhost").await.1.starts_with("ready"));
    assert!(page("/clusters").await.1.contains("outbound|80||reviews.shop.svc.cluster.local::127.0.0.1:"));
    let certificates: serde_json::Value = serde_json::from_str(&page("/certs").await.1).unwrap();
    let own = &certificates["certificates"][0]["cert_chain"][0]["subject_alt_names"][0]["uri"];
    assert_eq!(own, "spiffe://cluster.local/ns/shop/sa/web");
    // What became of a resource is told after it is in use.
    let dump = async {
        loop {
            let dump = page("/config_dump").await.1;
            if dump.contains("\"reviews.shop:80\"") {
                return dump;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let dump = tokio::time::timeout(Duration::from_secs(20), dump).await.expect("a dump with the target");
    assert!(!dump.contains("PRIVATE"), "{dump}");
    // As Envoy has it, so that `istioctl proxy-config` shows it.
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let of = |kind: &str, list: &str| {
        let configs = dump["configs"].as_array().unwrap();
        let found = configs.iter().find(|one| one["@type"].as_str().unwrap().ends_with(kind)).unwrap();
        found[list].as_array().unwrap().iter().find(|one| one.to_string().contains("reviews")).unwrap().clone()
    };
    let listener = &of("ListenersConfigDump", "dynamic_listeners")["active_state"]["listener"];
    assert_eq!((&listener["name"], listener["@type"].as_str()), (&"reviews.shop:80".into(), Some(LISTENER)));
    assert!(listener["api_listener"]["api_listener"]["rds"]["route_config_name"].is_string(), "{listener}");
    let cluster = &of("ClustersConfigDump", "dynamic_active_clusters")["cluster"];
    assert_eq!(
        (&cluster["name"], &cluster["type"]),
        (&"outbound|80||reviews.shop.svc.cluster.local".into(), &"EDS".into())
    );
    let routes = &of("RoutesConfigDump", "dynamic_route_configs")["route_config"];
    let route = &routes["virtual_hosts"][0]["routes"][0];
    assert_eq!((&route["match"]["prefix"], &route["route"]["cluster"]), (&"/".into(), &cluster["name"]), "{routes}");
    let endpoints = &of("EndpointsConfigDump", "dynamic_endpoint_configs")["endpoint_config"]["endpoints"];
    let address = &endpoints[0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["address"];
    assert_eq!(address, "127.0.0.1", "{endpoints}");
    let numbers = client.samples().await;
    for name in [
        "mesh_cluster_connections_active",
        "mesh_certificate_expiry_timestamp_seconds",
        "mesh_xds_connected",
        "grpc_xds_client_connected",
        "grpc_xds_client_resource_updates_valid_total",
        "grpc_xds_client_resources",
    ] {
        assert!(numbers.iter().any(|sample| sample.name == name && sample.value >= 1.0), "{name}");
    }
    for (head, status) in [
        ("GET /ready HTTP/1.1\r\nhost: evil.example", "421"),
        ("GET http://evil.example/ready HTTP/1.1\r\nhost: localhost", "421"),
        ("POST /ready HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0", "405"),
    ] {
        let (answer, _) = ask(client.admin, head).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
    let open = client.mesh.serve_admin("0.0.0.0:0".parse().unwrap()).unwrap_err();
    assert!(open.to_string().contains("loopback"), "{open}");
}

#[tokio::test]
async fn the_document_names_every_metric_and_label() {
    let control = control("").await;
    let client = Workload::start(&control, "web");
    client.get("http://reviews.shop/").await;
    let (_, text) = ask(client.admin, "GET /metrics HTTP/1.1\r\nhost: localhost").await;
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/telemetry.md")).unwrap();
    let is_named = |name: &str| document.contains(&format!("`{name}`"));
    let families: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(families.len() > 15, "{families:?}");
    for name in families.into_iter().chain(LABELS) {
        assert!(is_named(name), "{name}");
    }
}
