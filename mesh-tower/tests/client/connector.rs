//! A client's own pool over the mesh's connector: what happens to its connections when the configuration changes, and
//! where an endpoint refuses.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::server_support::{Player, mesh, within};
use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, Empty, Full};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::fixed::route_to;
use mesh_core::model::{
    ApiListener, Cluster, ClusterKind, ClusterTls, Clusters, Endpoints, FilterConfig, Forward, HashKey, HashPolicy,
    HttpManager, Listener, Mirror, NamedFilter, Route, RouteAction, RouteConfiguration, RouteMatch, RouteSource,
    VirtualHost, WeightedCluster,
};
use mesh_core::resources::{Change, Resource, ResourceKey, ResourceType};
use mesh_tower::Mesh;
use mesh_tower::client::Connector;
use tokio::net::TcpListener;

/// A server that answers with its name, and counts its open connections.
async fn serve(name: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let open = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&open);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let answer = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    if request.uri().path() == "/slow" {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(name.as_bytes()))))
                });
                let connection = hyper::server::conn::http1::Builder::new();
                _ = connection.serve_connection(TokioIo::new(stream), answer).await;
                count.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (address, open)
}

fn cluster(name: &str, address: SocketAddr) -> Cluster {
    Cluster::new(name, ClusterKind::Static(Endpoints::fixed([address])))
}

fn put_cluster(player: &Player, cluster: Cluster) {
    let key = ResourceKey::new(ResourceType::Cluster, cluster.name.as_str());
    player.send(Change::Put(key, Resource::Cluster(Arc::new(cluster))));
}

fn put_routes(player: &Player, routes: Vec<Route>, filters: Vec<NamedFilter>) {
    let host = VirtualHost::new(["*"], routes);
    let config = RouteConfiguration::new(vec![host]);
    let mut http = HttpManager::new(RouteSource::Inline(Arc::new(config)));
    http.filters = filters;
    let listener = Listener::Api(ApiListener::new("s:80", http));
    player.send(Change::Put(ResourceKey::new(ResourceType::Listener, "s:80"), Resource::Listener(Arc::new(listener))));
}

fn weighted(weights: &[(&str, u32)]) -> Route {
    let clusters = weights.iter().map(|(name, weight)| WeightedCluster::new(*name, *weight)).collect();
    Route::new(RouteMatch::any(), RouteAction::Forward(Forward::among(Clusters::Weighted(clusters))))
}

type Pooled = Client<Connector, Empty<Bytes>>;

fn pooled(mesh: &Mesh) -> Pooled {
    Client::builder(TokioExecutor::new()).build(mesh.connector())
}

async fn ask(client: &Pooled, path: &str) -> Result<String, hyper_util::client::legacy::Error> {
    let response = client.get(format!("http://s{path}").parse().unwrap()).await?;
    Ok(String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

/// Asks again and again, without a pause that a connection could end in, until another server answers.
async fn moves(client: &Pooled, from: &str, to: &str) {
    within(async {
        loop {
            let answer = ask(client, "/").await.expect("no request is lost");
            if answer == to {
                return;
            }
            assert_eq!(answer, from);
        }
    })
    .await;
}

fn kind_of(error: &hyper_util::client::legacy::Error) -> Option<ErrorKind> {
    let mut cause = std::error::Error::source(error);
    while let Some(present) = cause {
        // An I/O error that wraps another hands out the other's cause, not the other.
        let wrapped = present.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let wrapped = wrapped.and_then(|inner| inner.downcast_ref::<MeshError>());
        if let Some(error) = present.downcast_ref::<MeshError>().or(wrapped) {
            return Some(error.kind());
        }
        cause = present.source();
    }
    None
}

#[tokio::test]
async fn connections_follow_the_weights_without_losing_a_request() {
    let ((a, open_a), (b, _)) = (serve("a").await, serve("b").await);
    let (player, mesh) = mesh();
    put_routes(&player, vec![weighted(&[("a", 100)])], vec![]);
    put_cluster(&player, cluster("a", a));
    put_cluster(&player, cluster("b", b));
    let client = pooled(&mesh);
    for _ in 0..3 {
        assert_eq!(ask(&client, "/").await.unwrap(), "a");
    }
    // A request is on its way all the time, another is answered slowly.
    let slow = client.clone();
    let mut slow = Box::pin(async move { ask(&slow, "/slow").await.expect("no request is lost") });
    // From here on it has its connection.
    let answered = std::future::poll_fn(|cx| Poll::Ready(slow.as_mut().poll(cx).is_ready())).await;
    assert!(!answered);
    let slow = tokio::spawn(slow);
    put_routes(&player, vec![weighted(&[("b", 100)])], vec![]);
    moves(&client, "a", "b").await;
    assert_eq!(within(slow).await.unwrap(), "a");
    within(async {
        while open_a.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_stays_while_its_cluster_has_any_share() {
    let ((a, _), (b, _)) = (serve("a").await, serve("b").await);
    let (player, mesh) = mesh();
    put_routes(&player, vec![weighted(&[("a", 100)])], vec![]);
    put_cluster(&player, cluster("a", a));
    put_cluster(&player, cluster("b", b));
    let client = pooled(&mesh);
    assert_eq!(ask(&client, "/").await.unwrap(), "a");
    put_routes(&player, vec![weighted(&[("a", 1), ("b", 99)])], vec![]);
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        assert_eq!(ask(&client, "/").await.unwrap(), "a");
    }
}

#[tokio::test]
async fn a_connection_ends_when_its_endpoint_leaves() {
    let ((a, _), (b, _)) = (serve("a").await, serve("b").await);
    let (player, mesh) = mesh();
    put_routes(&player, vec![route_to("c")], vec![]);
    put_cluster(&player, cluster("c", a));
    let client = pooled(&mesh);
    assert_eq!(ask(&client, "/").await.unwrap(), "a");
    put_cluster(&player, cluster("c", b));
    moves(&client, "a", "b").await;
}

#[tokio::test]
async fn nothing_more_travels_in_plaintext_once_tls_is_asked_for() {
    let (a, open) = serve("a").await;
    let (player, mesh) = mesh();
    put_routes(&player, vec![route_to("c")], vec![]);
    put_cluster(&player, cluster("c", a));
    let client = pooled(&mesh);
    assert_eq!(ask(&client, "/").await.unwrap(), "a");
    let slow = client.clone();
    let slow = tokio::spawn(async move { ask(&slow, "/slow").await });
    let mut secured = cluster("c", a);
    secured.tls = ClusterTls::Unusable("ISTIO_MUTUAL".into());
    put_cluster(&player, secured);
    within(async {
        while let Ok(answer) = ask(&client, "/").await {
            assert_eq!(answer, "a", "sent before the change was known");
        }
    })
    .await;
    let error = ask(&client, "/").await.unwrap_err();
    assert_eq!(kind_of(&error), Some(ErrorKind::Security), "{error:?}");
    // The request that was on its way was cut off: its answer is secret from now on. It may have been through before.
    _ = within(slow).await.unwrap();
    within(async {
        while open.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_cluster_that_moves_to_a_secured_port_leaves_nothing_in_plaintext_behind() {
    let ((a, _), (b, _)) = (serve("a").await, serve("b").await);
    let (player, mesh) = mesh();
    put_routes(&player, vec![route_to("c")], vec![]);
    put_cluster(&player, cluster("c", a));
    let client = pooled(&mesh);
    assert_eq!(ask(&client, "/").await.unwrap(), "a");
    let mut secured = cluster("c", b);
    secured.tls = ClusterTls::Unusable("ISTIO_MUTUAL".into());
    put_cluster(&player, secured);
    let entry = mesh.store().find("s:80").unwrap();
    within(async {
        while entry.peek().unwrap().clusters()[0].leaves()[0].cluster.tls == ClusterTls::None {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    ask(&client, "/").await.unwrap_err();
}

#[tokio::test]
async fn an_http2_request_outlasts_a_change_of_the_weights() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let a = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(|_| async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"a"))))
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(async move { _ = connection.serve_connection(TokioIo::new(stream), answer).await });
        }
    });
    let (b, _) = serve("b").await;
    let (player, mesh) = mesh();
    put_routes(&player, vec![weighted(&[("a", 100)])], vec![]);
    put_cluster(&player, cluster("a", a));
    put_cluster(&player, cluster("b", b));
    let client: Pooled = Client::builder(TokioExecutor::new()).http2_only(true).build(mesh.connector());
    let slow = tokio::spawn(async move { ask(&client, "/").await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    put_routes(&player, vec![weighted(&[("b", 100)])], vec![]);
    assert_eq!(within(slow).await.unwrap().unwrap(), "a");
}

#[tokio::test]
async fn where_an_endpoint_refuses_another_one_is_dialled() {
    let (a, _) = serve("a").await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (player, mesh) = mesh();
    put_routes(&player, vec![route_to("c")], vec![]);
    let kind = ClusterKind::Static(Endpoints::fixed([a, nobody]));
    put_cluster(&player, Cluster::new("c", kind));
    for _ in 0..30 {
        // A client of its own each time, so that each dials.
        assert_eq!(ask(&pooled(&mesh), "/").await.unwrap(), "a");
    }
    put_cluster(&player, cluster("c", nobody));
    let refused = within(async {
        loop {
            match ask(&pooled(&mesh), "/").await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => return error,
            }
        }
    })
    .await;
    assert_eq!(kind_of(&refused), Some(ErrorKind::ConnectFailure), "{refused:?}");
}

#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_a_connector_cannot_honour_is_said_once_for_each_target() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .with_max_level(tracing::Level::WARN);
    // On this test's one thread.
    let _default = tracing::subscriber::set_default(subscriber.finish());
    let (a, _) = serve("a").await;
    let (player, mesh) = mesh();
    let mut canary = route_to("c");
    canary.matches.path = mesh_core::model::PathTest::Exact { value: "/canary".into(), ignore_case: false };
    let fault = NamedFilter::new("fault", FilterConfig::Fault(Arc::default()));
    let mut forward = Forward::to("c");
    forward.hash_policies = vec![HashPolicy::by(HashKey::SourceAddress)];
    forward.mirrors = vec![Mirror::to("copies")];
    let copied = Route::new(RouteMatch::any(), RouteAction::Forward(forward));
    put_routes(&player, vec![canary, copied], vec![fault]);
    put_cluster(&player, cluster("c", a));
    let client = pooled(&mesh);
    for _ in 0..3 {
        assert_eq!(ask(&client, "/").await.unwrap(), "a");
    }
    let again: Pooled = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(mesh.connector());
    for _ in 0..3 {
        assert_eq!(ask(&again, "/").await.unwrap(), "a");
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.matches("a connector cannot honour").count(), 1, "{text}");
    for part in ["s:80", "routes other than that of its connections", "filters", "consistent hashing", "mirrors"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
