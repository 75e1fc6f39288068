//! The live picture: what a client reports of its requests is what the console, `top` and `/api/graph` are told, over real
//! streams and sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request as Received;
use http_body_util::BodyExt;
use mesh_control::embedded::{Config, Embedded, Options, OutboundTrafficPolicy, PlaneOptions};
use mesh_control::serve::status;
use mesh_tower::Mesh;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tower_layer::Layer;

use crate::support::introduced;

const PATIENCE: Duration = Duration::from_secs(15);
const HOST: &str = "reviews.shop.svc.cluster.local";

/// A service with two subsets.
const SUBSETS: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
";

const CANARY: &str = "
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {canary: {exact: 'yes'}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews, subset: v1}}]
";

/// A control plane with its status port.
struct Control {
    embedded: Embedded,
    status: SocketAddr,
    _stop: watch::Sender<bool>,
}

impl Control {
    async fn start(options: Options) -> Control {
        Control::of(&format!("{SUBSETS}{CANARY}"), options).await
    }

    async fn of(yaml: &str, options: Options) -> Control {
        let embedded = Embedded::start(Config::yaml(yaml), options).await.unwrap();
        let (stop, stopped) = watch::channel(false);
        let (server, plane) = (Arc::clone(embedded.server()), Arc::new(embedded.plane().clone()));
        let at = "127.0.0.1:0".parse().unwrap();
        let (status, _) = status::listen(at, Vec::new(), server, plane, stopped).await.unwrap();
        Control { embedded, status, _stop: stop }
    }

    fn mesh(&self, app: &str, version: &str) -> Mesh {
        let bootstrap = introduced(&format!("{app}-{version}-7"), json!({"app": app, "version": version}))
            .metadata("SERVICE_ACCOUNT", app)
            .metadata("WORKLOAD_NAME", format!("{app}-{version}"));
        Mesh::builder().source(self.embedded.source(bootstrap)).cold_start_wait(PATIENCE).start().unwrap()
    }

    /// A server that answers 500 where it is asked for `/fail`.
    async fn serve(&self, app: &str, version: &str) -> Mesh {
        let mesh = self.mesh(app, version);
        let listener = mesh.bind("127.0.0.1:0").await.unwrap();
        let answer = |request: Received| async move {
            let status = if request.uri().path() == "/fail" { 500 } else { 200 };
            (http::StatusCode::from_u16(status).unwrap(), "answer")
        };
        let app = mesh.server_layer().layer(axum::Router::new().fallback(answer));
        tokio::spawn(mesh_tower::server::serve(listener, app).into_future());
        mesh.serving().await.unwrap();
        mesh
    }

    async fn get(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.status).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    async fn json(&self, path: &str) -> Value {
        let (head, body) = self.get(path).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// The edge between two nodes, once it has so many requests.
    async fn edge(&self, source: &str, destination: &str, requests: u64) -> Value {
        let come = async {
            loop {
                let graph = self.json("/api/graph").await;
                let edges = graph["edges"].as_array().unwrap();
                let found = edges.iter().find(|edge| edge["source"] == source && edge["destination"] == destination);
                match found.filter(|edge| edge["requests"].as_u64() >= Some(requests)) {
                    Some(edge) => return edge.clone(),
                    None => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        match tokio::time::timeout(PATIENCE, come).await {
            Ok(edge) => edge,
            Err(_) => panic!("{source} -> {destination}: {:#}", self.json("/api/graph").await),
        }
    }
}

const MIRRORED: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec: {selector: {app: nobody}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - route: [{destination: {host: reviews, subset: v1}}]
    mirrors: [{destination: {host: reviews, subset: v2}}, {destination: {host: nobody}}]
";

async fn call(mesh: &Mesh, path: &str, canary: bool) -> u16 {
    let mut request = http::Request::get(format!("http://reviews/{path}"));
    if canary {
        request = request.header("canary", "yes");
    }
    let answer = mesh.client().request(request.body(mesh_tower::body::Body::empty()).unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    body.collect().await.unwrap();
    head.status.as_u16()
}

#[tokio::test]
async fn copies_of_requests_are_seen_where_they_went_or_should_have_gone() {
    let control = Control::of(&format!("{SUBSETS}{MIRRORED}"), Options::default().dev()).await;
    let _servers = (control.serve("reviews", "v1").await, control.serve("reviews", "v2").await);
    let web = control.mesh("web", "v1");
    // Requests do not wait until it is known where their copies go.
    let mut calls = 0;
    let sent = async {
        while web.mirror_counts().answered == 0 {
            call(&web, "", false).await;
            calls += 1;
        }
        for _ in 0..3 {
            call(&web, "fail", false).await;
            calls += 1;
        }
        loop {
            let counts = web.mirror_counts();
            if counts.answered + counts.failed == 2 * calls {
                return counts.answered;
            }
            tokio::task::yield_now().await;
        }
    };
    let answered = tokio::time::timeout(PATIENCE, sent).await.unwrap();
    let copied = control.edge("shop/web/v1", &format!("{HOST}/v2"), answered).await;
    assert_eq!(copied["requests"], json!(answered), "each copy is one");
    assert_eq!(copied["error_rate"].as_f64().map(|rate| (rate * answered as f64).round()), Some(3.0));
    let nobody = control.edge("shop/web/v1", "nobody.shop.svc.cluster.local", 3).await;
    assert_eq!(nobody["error_rate"], json!(1.0));
}

#[tokio::test]
async fn what_a_client_sends_is_seen_by_subset_with_failures_times_and_tls() {
    let control = Control::start(Options::default().dev()).await;
    let _servers = (control.serve("reviews", "v1").await, control.serve("reviews", "v2").await);
    let web = control.mesh("web", "v1");
    for n in 0..12 {
        assert_eq!(call(&web, "", n % 4 == 0).await, 200);
    }
    for _ in 0..3 {
        assert_eq!(call(&web, "fail", true).await, 500);
    }
    let stable = control.edge("shop/web/v1", &format!("{HOST}/v1"), 9).await;
    let canary = control.edge("shop/web/v1", &format!("{HOST}/v2"), 6).await;
    assert_eq!((&stable["requests"], &canary["requests"]), (&json!(9), &json!(6)), "each request is one");
    assert_eq!((&stable["error_rate"], &canary["error_rate"]), (&json!(0.0), &json!(0.5)));
    assert_eq!((&canary["subset"], &canary["service"]), (&json!("v2"), &json!(HOST)));
    assert!(stable["requests_per_second"].as_f64() > Some(0.0) && stable["p99_ms"].as_f64() > Some(0.0), "{stable}");
    assert_eq!(stable["mutual_tls"], json!(1.0), "certificates are issued");
    let workloads = control.json("/status").await["workloads"].clone();
    let issued = workloads.as_array().unwrap().iter().filter(|one| one["certificate"] == "issued");
    assert_eq!(issued.count(), 2, "streams are plaintext in development: {workloads}");
    let graph = control.json("/api/graph").await;
    let ids: Vec<_> = graph["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_str().unwrap()).collect();
    assert!(ids.contains(&HOST) && ids.contains(&"shop/web/v1"), "{ids:?}");
}

/// Short-lived jobs are seen, too.
#[tokio::test]
async fn a_client_that_ends_tells_what_was_left() {
    let control = Control::start(Options::default()).await;
    let _server = control.serve("reviews", "v1").await;
    let job = control.mesh("job", "v1");
    call(&job, "", false).await;
    // The stream of reports is there: what comes now would be told two seconds later.
    control.edge("shop/job/v1", &format!("{HOST}/v1"), 1).await;
    call(&job, "", false).await;
    call(&job, "", false).await;
    drop(job);
    let told = control.edge("shop/job/v1", &format!("{HOST}/v1"), 3).await;
    assert_eq!(told["mutual_tls"], json!(0.0), "nobody has a certificate here");
}

#[tokio::test]
async fn a_service_calling_another_is_one_path() {
    let control = Control::start(Options::default()).await;
    let _servers = (control.serve("reviews", "v1").await, control.serve("reviews", "v2").await);
    let v2 = control.mesh("reviews", "v2");
    call(&v2, "", false).await;
    control.edge(&format!("{HOST}/v2"), &format!("{HOST}/v1"), 1).await;
}

/// Of a service without an endpoint: it has nobody who could be picked, a fault, a subset that there is not, and paths without a
/// route.
const RATED: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: rated, namespace: shop}
spec: {selector: {app: rated}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: rated, namespace: shop}
spec:
  hosts: [rated]
  http:
  - match: [{uri: {prefix: /fault}}]
    fault: {abort: {httpStatus: 500, percentage: {value: 100}}}
    route: [{destination: {host: rated}}]
  - match: [{uri: {prefix: /subset}}]
    route: [{destination: {host: rated, subset: gone}}]
  - match: [{uri: {prefix: /there}}]
    route: [{destination: {host: rated}}]
";

#[tokio::test]
async fn requests_for_which_no_endpoint_is_picked_are_failing_edges() {
    let closed = PlaneOptions::default().outbound_traffic_policy(OutboundTrafficPolicy::RegistryOnly);
    let control = Control::of(&format!("{SUBSETS}{CANARY}{RATED}"), Options::default().plane(closed)).await;
    let (web, other) = (control.mesh("web", "v1"), control.mesh("other", "v1"));
    let ask = async |mesh: &Mesh, uri: &str, times: usize| {
        for _ in 0..times {
            match mesh.client().get(uri).await {
                Ok(answer) => assert!(answer.status().is_server_error(), "{uri}"),
                Err(error) => assert!(error.kind().http_status().as_u16() >= 404, "{uri}: {error:#}"),
            }
        }
    };
    ask(&web, "http://rated/there", 1).await;
    ask(&web, "http://rated/fault", 2).await;
    ask(&web, "http://rated/none", 3).await;
    ask(&web, "http://rated/subset", 4).await;
    // This one has nothing else to report.
    ask(&other, "http://nobody.example.com/", 5).await;
    let host = "rated.shop.svc.cluster.local";
    for (source, destination, requests) in [
        ("shop/web/v1", host, 6),
        ("shop/web/v1", &format!("{host}/gone"), 4),
        ("shop/other/v1", "BlackHoleCluster", 5),
    ] {
        let edge = control.edge(source, destination, requests).await;
        assert_eq!((&edge["requests"], &edge["error_rate"]), (&json!(requests), &json!(1.0)), "{edge}");
        assert!(edge["requests_per_second"].as_f64() > Some(0.0), "{edge}");
    }
}

#[tokio::test]
async fn calls_that_pass_by_the_mesh_are_an_edge_of_their_own() {
    let control = Control::start(Options::default()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let app = axum::Router::new().route("/", axum::routing::get(|| async { "outside" }));
    tokio::spawn(axum::serve(listener, app).into_future());
    let web = control.mesh("web", "v1");
    for (path, expected) in [("", 200), ("", 200), ("nowhere", 404)] {
        assert_eq!(web.client().get(format!("http://{at}/{path}")).await.unwrap().status().as_u16(), expected);
    }
    let edge = control.edge("shop/web/v1", "PassthroughCluster", 3).await;
    assert_eq!((&edge["error_rate"], &edge["mutual_tls"]), (&json!(0.0), &json!(0.0)), "{edge}");
    assert!(edge["p50_ms"].as_f64() > Some(0.0), "{edge}");
}

#[tokio::test]
async fn the_console_is_guarded_against_what_its_pages_hold_and_answers_its_own_questions() {
    let control = Control::start(Options::default()).await;
    for (path, kind) in [
        ("/", "text/html"),
        ("/console/main.js", "text/javascript"),
        ("/console/console.css", "text/css"),
        ("/api/graph", "application/json"),
        ("/status?names=none", "application/json"),
        ("/nowhere", "text/plain"),
    ] {
        let (head, body) = control.get(path).await;
        let head = head.to_ascii_lowercase();
        assert!(head.contains(&format!("content-type: {kind}")), "{path}: {head}");
        let policy = head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).unwrap();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert!(head.contains("x-content-type-options: nosniff") && head.contains("frame-ancestors 'none'"));
        // Every script and style is a file of its own, and comes from nowhere else.
        assert!(!body.contains("<script>") && !body.contains("style=") && !body.contains("https://"), "{path}");
    }
    let routes = control.json(&format!("/api/routes?from=shop/web&target={HOST}:80")).await;
    let first = &routes["routes"][0];
    assert_eq!(first["clusters"][0]["subset"], json!("v2"));
    assert!(first["conditions"].to_string().contains("canary"), "{first}");
    assert!(first["origin"].as_str().unwrap().contains("VirtualService shop/reviews http[0]"), "{first}");
    let asked = "/api/explain?from=shop/web&method=GET&url=http://reviews/x&headers=canary:yes%0Aa:b";
    let explained = control.json(asked).await;
    assert_eq!(explained["clusters"][0]["subset"], json!("v2"), "{explained}");
    assert!(explained["text"].as_str().unwrap().contains("http[0]"));
    for wrong in ["from=x&method=GET&url=http://a/", "from=a/b&method=G%20T&url=http://a/", "from=a/b&method=GET&url=/"]
    {
        let (head, body) = control.get(&format!("/api/explain?{wrong}")).await;
        assert!(head.starts_with("HTTP/1.1 400") && !body.is_empty(), "{wrong}: {head}");
    }
    let objects = control.json("/api/objects").await;
    let standing = |object: &str| {
        let all = objects["objects"].as_array().unwrap();
        all.iter().find(|one| one["object"] == object).map(|one| one["standing"].clone())
    };
    assert_eq!(standing("VirtualService shop/reviews"), Some(json!("in-force")));
    assert_eq!((&objects["services"][0]["host"], &objects["services"][0]["ports"][0]), (&json!(HOST), &json!(80)));
}
