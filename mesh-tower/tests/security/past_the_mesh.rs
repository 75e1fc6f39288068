//! An application without the layer, or with routes outside of it: where anything looks at requests, its answers do not leave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::model::{Fault, FilterConfig, NamedFilter};
use mesh_core::testing::TokenIssuer;
use mesh_core::xds::Bootstrap;
use mesh_tower::Mesh;
use mesh_tower::health::Health;
use mesh_tower::server::{self, MeshListener};
use serde_json::json;
use tokio::net::TcpStream;

use crate::server_support::{Log, app_route, chain, is_answered, listener, mesh, within};

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 9080}]}
";

/// Objects that look at requests, each in its own way: none of them refuses these.
fn guards() -> [String; 3] {
    let issuer = TokenIssuer::new("k");
    let meta = "metadata: {name: g, namespace: shop}";
    [
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n{meta}\n\
             spec: {{action: DENY, rules: [{{to: [{{operation: {{paths: [/other]}}}}]}}]}}"
        ),
        format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n{meta}\n\
             spec: {{jwtRules: [{{issuer: i, jwks: '{}'}}]}}",
            issuer.jwks()
        ),
        format!(
            "apiVersion: policy.mesh-control/v1alpha1\nkind: RateLimit\n{meta}\n\
             spec: {{rules: [{{name: all, limit: {{requests: 1000, per: 1h}}}}]}}"
        ),
    ]
}

/// Each of them under each loop.
fn cases() -> impl Iterator<Item = (String, Loop)> {
    guards().into_iter().flat_map(|guard| LOOPS.iter().map(move |how| (guard.clone(), *how)))
}

/// Those that refuse nobody: a policy that is only tried.
const TRIED: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: g, namespace: shop, \
     annotations: {istio.io/dry-run: 'true'}}\nspec: {}";

fn workload(control: &Embedded, app: &str) -> Mesh {
    let bootstrap = Bootstrap::new("embedded")
        .node_id(format!("mesh~127.0.0.1~{app}.shop~shop.svc.cluster.local"))
        .metadata("NAMESPACE", "shop")
        .metadata("SERVICE_ACCOUNT", app)
        .metadata("LABELS", json!({"app": app}));
    Mesh::builder().source(control.source(bootstrap)).cold_start_wait(Duration::from_secs(10)).start().unwrap()
}

async fn joined(objects: &str) -> (Embedded, Mesh, MeshListener) {
    let control =
        Embedded::start(Config::yaml(format!("{REVIEWS}---\n{objects}\n")), Options::default()).await.unwrap();
    let mesh = workload(&control, "reviews");
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    (control, mesh, listener)
}

/// The loops that serve HTTP.
#[derive(Clone, Copy, Debug)]
enum Loop {
    Own,
    #[cfg(feature = "axum")]
    Axum,
}

const LOOPS: &[Loop] = &[
    Loop::Own,
    #[cfg(feature = "axum")]
    Loop::Axum,
];

impl Loop {
    fn serve(self, listener: MeshListener, app: Router) -> SocketAddr {
        let address = listener.local_addr();
        match self {
            Loop::Own => _ = tokio::spawn(async move { server::serve(listener, app).await }),
            #[cfg(feature = "axum")]
            Loop::Axum => {
                let app = app.into_make_service_with_connect_info::<server::ConnectionInfo>();
                tokio::spawn(axum::serve(listener, app).into_future());
            }
        }
        address
    }
}

/// With a route that was added behind the layer, and a layer around the mesh's that refuses by itself.
fn router(mesh: &Mesh) -> Router {
    let busy = from_fn(|request: axum::extract::Request, next: axum::middleware::Next| async move {
        match request.uri().path() {
            "/busy" => (StatusCode::SERVICE_UNAVAILABLE, "busy").into_response(),
            _ => next.run(request).await,
        }
    });
    let app = Router::new().route("/", get(|| async { "welcome" })).layer(mesh.server_layer());
    app.route("/admin", get(|| async { "secret" })).layer(busy)
}

/// Whether each of these paths is answered, over one connection.
async fn ask(address: SocketAddr, requests: &[(&str, &str, bool)], context: &str) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    for (path, body, expected) in requests {
        assert_eq!(is_answered(&mut stream, path, body).await, *expected, "{path} of {requests:?}: {context}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_layer_a_server_whose_requests_are_looked_at_answers_nobody() {
    for (guard, how) in cases() {
        let (_control, mesh, listener) = joined(&guard).await;
        let address = how.serve(listener, Router::new().route("/", get(|| async { "welcome" })));
        within(mesh.serving()).await.unwrap();
        ask(address, &[("/", "welcome", false)], &format!("{how:?} {guard}")).await;
        let health = mesh.health().now();
        assert!(
            matches!(&health, Health::NotServing(why) if why.contains("Mesh::server_layer")),
            "{how:?}: {health:?}"
        );
        // It was made too late for those that came before.
        _ = mesh.server_layer();
        assert_eq!(mesh.health().now(), Health::Serving);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_beside_the_layer_is_answered_and_that_is_told() {
    for (guard, how) in cases() {
        let (_control, mesh, listener) = joined(&guard).await;
        let address = how.serve(listener, router(&mesh));
        let context = format!("{how:?} {guard}");
        within(mesh.serving()).await.unwrap();
        // It may be meant: health, metrics, what layers in front of the mesh's answer. Nobody else's requests suffer.
        ask(address, &[("/admin", "secret", true), ("/", "welcome", true), ("/admin", "secret", true)], &context).await;
        ask(address, &[("/busy", "busy", true), ("/busy", "busy", true), ("/", "welcome", true)], &context).await;
        assert_eq!(mesh.health().now(), Health::Serving, "{context}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_is_no_way_around_a_missing_layer() {
    for how in LOOPS {
        let (_control, mesh, listener) = joined(&guards()[0]).await;
        let address = how.serve(listener, Router::new().route("/", get(|| async { "welcome" })));
        within(mesh.serving()).await.unwrap();
        for paths in [&[("/", false)][..], &[("/nowhere", true), ("/nowhere", true), ("/", false)]] {
            let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            tokio::spawn(connection);
            for (path, expected) in paths {
                let request = Request::get(format!("http://reviews{path}")).body(String::new()).unwrap();
                let answer = within(sender.send_request(request)).await;
                assert_eq!(answer.is_ok(), *expected, "{how:?} {path} of {paths:?}: {answer:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_looks_at_requests_whoever_answers_may() {
    for (objects, how) in ["", TRIED].iter().flat_map(|objects| LOOPS.iter().map(move |how| (*objects, *how))) {
        let (_control, mesh, listener) = joined(objects).await;
        let address = how.serve(listener, router(&mesh));
        within(mesh.serving()).await.unwrap();
        ask(address, &[("/admin", "secret", true), ("/", "welcome", true)], &format!("{how:?} {objects}")).await;
        assert_eq!(mesh.health().now(), Health::Serving);
    }
}

#[tokio::test]
async fn answers_past_the_mesh_are_told_of_in_the_log() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_max_level(tracing::Level::WARN);
    let _default = tracing::subscriber::set_default(subscriber.finish());
    let (player, mesh) = mesh();
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = bound.local_addr();
    player.send(listener(address, vec![chain(vec![app_route()], vec![])]));
    within(mesh.serving()).await.unwrap();
    let address = Loop::Own.serve(bound, Router::new().route("/", get(|| async { "welcome" })));
    for _ in 0..3 {
        ask(address, &[("/", "welcome", true)], "unguarded").await;
    }
    let told = |what: &str| String::from_utf8_lossy(&log.0.lock().unwrap()).matches(what).count();
    assert_eq!(told("requests are answered past the mesh"), 1, "once");
    assert_eq!(told("ERROR"), 0);
    let filter = NamedFilter::new("fault", FilterConfig::Fault(Arc::new(Fault::default())));
    player.send(listener(address, vec![chain(vec![app_route()], vec![filter])]));
    let mut stream = TcpStream::connect(address).await.unwrap();
    while is_answered(&mut stream, "/", "welcome").await {}
    assert_eq!(told("answers a request past the mesh's policies: its connection is closed"), 1);
    assert_eq!(told("nothing of this server goes through `Mesh::server_layer`"), 2);
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn a_server_that_is_not_told_of_connections_does_not_say_that_its_clients_have_no_identity() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_max_level(tracing::Level::WARN);
    let _default = tracing::subscriber::set_default(subscriber.finish());
    let control = Embedded::start(Config::yaml(REVIEWS), Options::default().dev()).await.unwrap();
    let mesh = workload(&control, "reviews");
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let app = Router::new().route("/", get(|| async { "welcome" })).layer(mesh.server_layer());
    tokio::spawn(axum::serve(bound, app).into_future());
    within(mesh.serving()).await.unwrap();
    let client = workload(&control, "web").client();
    let told = |what: &str| String::from_utf8_lossy(&log.0.lock().unwrap()).contains(what);
    let is_refused = async {
        while !told("a request was refused") {
            assert!(!client.get("http://reviews/").await.is_ok_and(|answer| answer.status().is_success()));
        }
    };
    within(is_refused).await;
    assert!(told("who its client is cannot be told without its connection"));
    assert!(!told("its client has no identity"));
}
