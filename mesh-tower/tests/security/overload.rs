//! Overload from YAML to the answer: embedded control plane, the library's server and client, and bytes over sockets.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::Request;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::request_info::{Criticality, Inherited};
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use mesh_tower::server::ConnectionInfo;
use tokio::sync::{Notify, Semaphore};

use crate::shop::{self, workload};

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

/// A server that notes who is let in, by identity or by the header `x-team`, and answers one of them for each permit.
struct Turns {
    let_in: Mutex<Vec<String>>,
    permits: Semaphore,
}

impl Turns {
    fn let_in(&self) -> Vec<String> {
        self.let_in.lock().unwrap().clone()
    }

    async fn have_let_in(&self, count: usize) {
        while self.let_in().len() < count {
            tokio::task::yield_now().await;
        }
    }
}

async fn serve_in_turns(mesh: &Mesh) -> (Arc<Turns>, SocketAddr) {
    let turns = Arc::new(Turns { let_in: Mutex::default(), permits: Semaphore::new(0) });
    let held = Arc::clone(&turns);
    let app = axum::Router::new().fallback(move |request: axum::extract::Request| async move {
        let connection = ConnectionInfo::current().expect("served by the mesh");
        let header = request.headers().get("x-team").and_then(|team| team.to_str().ok());
        let caller = header.or(connection.peer_identity().map(|id| id.as_str())).unwrap_or("nobody");
        held.let_in.lock().unwrap().push(caller.to_owned());
        held.permits.acquire().await.expect("it is never closed").forget();
        http::StatusCode::OK
    });
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let app = app.layer(mesh.server_layer());
    tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
    mesh.serving().await.unwrap();
    (turns, address)
}

/// Waits until so many were counted in the queue of the server.
async fn counted(mesh: &Mesh, rule: &str, verdict: &str, count: usize) {
    let line = format!("limit=\"concurrency queue\",rule=\"{rule}\",verdict=\"{verdict}\"}} {count}\n");
    while !mesh.prometheus().contains(&line) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_with_fifty_requests_does_not_keep_out_one_with_a_single_one() {
    let says = "concurrency: {max: 4, queue: {max: 100, timeout: 60s}}";
    let yaml = format!("{REVIEWS}{}", overload("selector: {matchLabels: {app: reviews}}", says));
    let control = Embedded::start(Config::yaml(yaml), Options::default().dev()).await.unwrap();
    let (reviews, greedy, modest) =
        (workload(&control, "reviews"), workload(&control, "greedy"), workload(&control, "modest"));
    let (turns, _) = serve_in_turns(&reviews).await;
    let call = |caller: &Mesh| {
        let caller = caller.clone();
        tokio::spawn(async move { ask(&caller, "/", Criticality::Critical).await.0 })
    };
    let many: Vec<_> = (0..50).map(|_| call(&greedy)).collect();
    turns.have_let_in(4).await;
    counted(&reviews, "joined", "within", 46).await;
    for joined in 47..52 {
        let one = call(&modest);
        counted(&reviews, "joined", "within", joined).await;
        let before = turns.let_in().len();
        turns.permits.add_permits(2);
        turns.have_let_in(before + 2).await;
        let next = turns.let_in().split_off(before);
        assert!(next.iter().any(|caller| caller.ends_with("/sa/modest")), "its turn is the next but one: {next:?}");
        // It is one of four that are served.
        turns.permits.add_permits(4);
        assert_eq!(one.await.unwrap(), 200);
    }
    turns.permits.add_permits(100);
    for one in many {
        assert_eq!(one.await.unwrap(), 200, "nobody is refused where there is room to wait");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_has_room_for_so_many_for_so_long_and_callers_have_their_weights() {
    let says = "concurrency: {max: 1, queue: {max: 6, timeout: 60s, by: [{header: x-team}], weights: {red: 3}}}";
    let yaml = format!("{REVIEWS}{}", overload("selector: {matchLabels: {app: reviews}}", says));
    let control = Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap();
    let reviews = workload(&control, "reviews");
    let (turns, address) = serve_in_turns(&reviews).await;
    let call = |team: &'static str| {
        tokio::spawn(async move { shop::ask(address, "/", &format!("x-team: {team}\r\n")).await.0 })
    };
    let mut calls = vec![call("first")];
    turns.have_let_in(1).await;
    for (joined, team) in (1..).zip(["red", "red", "red", "red", "blue", "blue"]) {
        calls.push(call(team));
        counted(&reviews, "joined", "within", joined).await;
    }
    assert_eq!(call("blue").await.unwrap(), 503, "there is no room to wait, and blue has its part of it");
    counted(&reviews, "full", "over", 1).await;
    turns.permits.add_permits(7);
    for call in calls {
        assert_eq!(call.await.unwrap(), 200);
    }
    assert_eq!(turns.let_in(), ["first", "red", "red", "red", "blue", "red", "blue"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_too_long_is_answered() {
    let says = "concurrency: {max: 1, status: 529, queue: {max: 6, timeout: 20ms, by: [{header: x-team}]}}";
    let yaml = format!("{REVIEWS}{}", overload("selector: {matchLabels: {app: reviews}}", says));
    let control = Embedded::start(Config::yaml(yaml), Options::default()).await.unwrap();
    let reviews = workload(&control, "reviews");
    let (turns, address) = serve_in_turns(&reviews).await;
    let held = tokio::spawn(shop::ask(address, "/", ""));
    turns.have_let_in(1).await;
    let (status, answer) = shop::ask(address, "/", "x-team: blue\r\n").await;
    assert!(status == 529 && answer.contains("x-envoy-overloaded: true"), "{answer}");
    counted(&reviews, "timeout", "over", 1).await;
    turns.permits.add_permits(1);
    assert_eq!(held.await.unwrap().0, 200);
}
