//! Overload from YAML to the answer: embedded control plane, the library's server and client, and bytes over sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Request;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::request_info::{Criticality, Inherited};
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use tokio::sync::Notify;

use crate::shop::workload;

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 9080}]}
";

fn overload(whose: &str, says: &str) -> String {
    format!(
        "---\napiVersion: policy.mesh-control/v1alpha1\nkind: Overload\nmetadata: {{name: overload, namespace: shop}}\n\
         spec: {{{whose}, {says}}}\n"
    )
}

/// A server that holds what asks for `/slow`, and fails what asks for `/fail`.
#[derive(Default)]
struct Server {
    arrived: AtomicUsize,
    go_on: Notify,
}

async fn serve(mesh: &Mesh) -> (Arc<Server>, SocketAddr) {
    let server = Arc::new(Server::default());
    let held = Arc::clone(&server);
    let app = axum::Router::new().fallback(move |request: axum::extract::Request| async move {
        held.arrived.fetch_add(1, Ordering::SeqCst);
        match request.uri().path() {
            "/slow" => held.go_on.notified().await,
            "/fail" => return http::StatusCode::SERVICE_UNAVAILABLE,
            _ => {}
        }
        http::StatusCode::OK
    });
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let app = app.layer(mesh.server_layer());
    tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
    mesh.serving().await.unwrap();
    (server, address)
}

/// The status of the answer, and whether it says that a limit was in the way.
async fn ask(mesh: &Mesh, path: &str, criticality: Criticality) -> (u16, bool) {
    let mut inherited = Inherited::default();
    inherited.criticality = criticality;
    let request = Request::get(format!("http://reviews{path}")).extension(inherited);
    let answer = mesh.client().request(request.body(Body::empty()).unwrap()).await.unwrap();
    (answer.status().as_u16(), answer.headers().contains_key("x-envoy-overloaded"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_takes_on_so_many_and_refuses_first_what_can_be_left_out() {
    let says = "concurrency: {max: 4, sheddablePercent: 50, status: 529}";
    // What is refused says nothing of how well the endpoint is: it would be ejected by the first one.
    let outliers = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews, namespace: shop}\n\
                    spec: {host: reviews, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 1h}}}\n";
    let yaml = format!("{REVIEWS}{outliers}{}", overload("targetRefs: [{kind: Service, name: reviews}]", says));
    let control = Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap();
    let (reviews, web) = (workload(&control, "reviews"), workload(&control, "web"));
    let (server, _) = serve(&reviews).await;
    let mut slow = Vec::new();
    for expected in [(200, false), (529, true), (529, true), (529, true)] {
        let caller = web.clone();
        slow.push(tokio::spawn(async move { ask(&caller, "/slow", Criticality::Critical).await }));
        while server.arrived.load(Ordering::SeqCst) < slow.len() {
            tokio::task::yield_now().await;
        }
        assert_eq!(ask(&web, "/", Criticality::Sheddable).await, expected, "{} are there", slow.len());
        server.arrived.store(slow.len(), Ordering::SeqCst);
    }
    assert_eq!(ask(&web, "/", Criticality::Critical).await, (529, true));
    server.go_on.notify_waiters();
    for slow in slow {
        assert_eq!(slow.await.unwrap(), (200, false));
    }
    assert_eq!(ask(&web, "/", Criticality::Sheddable).await, (200, false), "their places are free");
    let text = reviews.prometheus();
    let over = "limit=\"concurrency\",rule=\"sheddable\",verdict=\"over\"} 3";
    assert!(text.contains(over), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_holds_back_calls_that_would_fail_and_comes_back() {
    let says = "throttle: {successPercent: 50, maxRejectedPercent: 90}";
    let yaml = format!("{REVIEWS}{}", overload("selector: {matchLabels: {app: web}}", says));
    let control = Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap();
    let (reviews, web) = (workload(&control, "reviews"), workload(&control, "web"));
    let (server, _) = serve(&reviews).await;
    // Another try of each would arrive, too: one that is not to be repeated has none.
    let post = || Request::post("http://reviews/fail").body(Body::empty()).unwrap();
    let (mut held_back, mut answered) = (0, 0);
    for _ in 0..300 {
        let answer = web.client().request(post()).await.unwrap();
        match answer.headers().contains_key("x-envoy-overloaded") {
            true => held_back += 1,
            false => answered += 1,
        }
    }
    assert!(held_back > 150, "{held_back}");
    assert!(server.arrived.load(Ordering::SeqCst) >= answered);
    let before = held_back;
    for _ in 0..2_000 {
        held_back += usize::from(ask(&web, "/", Criticality::Critical).await.1);
    }
    assert!(held_back - before < 1_000, "most are answered again: {}", held_back - before);
}
