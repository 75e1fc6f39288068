//! Active health checks, as a foreign control plane asks for them (Envoy's `health_checks`): from the bytes of a cluster to
//! what servers and requests see.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{CommonLbConfig, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck, payload,
};
use envoy_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range, Percent};
use envoy_types::pb::google::protobuf::{BoolValue, Duration as ProtoDuration, UInt32Value};
use http::{HeaderMap, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_core::error::ErrorKind;
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::model::Cluster;
use mesh_core::resources::{Resource, ResourceType};
use mesh_core::testing::resources::inline_cluster;
use mesh_core::xds::decode::{Options, decode};
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Generous: it only bounds a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[derive(Default)]
struct Orders {
    /// What `/healthz` is answered with, and the status in the answer to a gRPC check.
    status: AtomicU16,
    serving: AtomicU16,
    /// A header of each answer but those to checks.
    fails: AtomicBool,
    requests: AtomicU32,
    checks: AtomicU32,
    connections: AtomicU32,
    hosts: Mutex<Vec<String>>,
}

impl Orders {
    fn checks(&self) -> u32 {
        self.checks.load(Ordering::SeqCst)
    }
    fn requests(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
    }
}

struct Server {
    at: SocketAddr,
    orders: Arc<Orders>,
}

type Frames = StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

fn answer(request: &Request<Incoming>, orders: &Orders) -> Response<Frames> {
    let host = match request.version() {
        Version::HTTP_2 => request.uri().authority().map(ToString::to_string),
        _ => request.headers().get("host").map(|host| host.to_str().unwrap().to_owned()),
    };
    let host = host.unwrap_or_default();
    let mut response = Response::builder();
    let frames = match request.uri().path() {
        "/healthz" => {
            orders.hosts.lock().unwrap().push(host);
            orders.checks.fetch_add(1, Ordering::SeqCst);
            response = response.status(orders.status.load(Ordering::SeqCst));
            vec![Ok(Frame::data(Bytes::from_static(b"all is well")))]
        }
        "/grpc.health.v1.Health/Check" => {
            orders.hosts.lock().unwrap().push(host);
            orders.checks.fetch_add(1, Ordering::SeqCst);
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", 0.into());
            let serving = orders.serving.load(Ordering::SeqCst) as u8;
            let message = Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, serving]);
            response = response.header("content-type", "application/grpc");
            vec![Ok(Frame::data(message)), Ok(Frame::trailers(trailers))]
        }
        _ => {
            orders.requests.fetch_add(1, Ordering::SeqCst);
            if orders.fails.load(Ordering::SeqCst) {
                response = response.header("x-envoy-immediate-health-check-fail", "true");
            }
            Vec::new()
        }
    };
    response.body(StreamBody::new(futures_util::stream::iter(frames))).unwrap()
}

impl Server {
    async fn new() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let orders = Arc::new(Orders { status: 200.into(), serving: 1.into(), ..Orders::default() });
        let shared = Arc::clone(&orders);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let orders = Arc::clone(&shared);
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let orders = Arc::clone(&orders);
                        async move { Ok::<_, Infallible>(answer(&request, &orders)) }
                    });
                    _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Server { at, orders }
    }
}

/// A check every 20 ms, of two failures and one success.
fn every_20_ms(checker: HealthChecker) -> core::HealthCheck {
    let millis = |millis| Some(ProtoDuration { seconds: 0, nanos: millis * 1_000_000 });
    let count = |value| Some(UInt32Value { value });
    core::HealthCheck {
        timeout: Some(ProtoDuration { seconds: 20, nanos: 0 }),
        interval: millis(20),
        no_traffic_interval: millis(20),
        unhealthy_threshold: count(2),
        healthy_threshold: count(1),
        health_checker: Some(checker),
        ..Default::default()
    }
}

fn http() -> HealthChecker {
    HealthChecker::HttpHealthCheck(HttpHealthCheck { path: "/healthz".into(), ..Default::default() })
}

fn grpc() -> HealthChecker {
    HealthChecker::GrpcHealthCheck(GrpcHealthCheck::default())
}

/// A cluster of these endpoints, with what a control plane says of it.
fn cluster(name: &str, endpoints: &[SocketAddr], change: impl FnOnce(&mut pb::Cluster)) -> Cluster {
    let hosts: Vec<String> = endpoints.iter().map(|at| at.ip().to_string()).collect();
    let addresses: Vec<_> = hosts.iter().zip(endpoints).map(|(host, at)| (host.as_str(), at.port())).collect();
    let mut cluster = inline_cluster(name, DiscoveryType::Static, &addresses);
    cluster.common_lb_config =
        Some(CommonLbConfig { healthy_panic_threshold: Some(Percent { value: 0.0 }), ..Default::default() });
    change(&mut cluster);
    let decoded = decode(ResourceType::Cluster, &cluster.encode_to_vec(), &Options::default()).unwrap();
    assert!(decoded.ignored.is_empty(), "{:?}", decoded.ignored);
    let Resource::Cluster(cluster) = decoded.resource else { panic!("a cluster") };
    (*cluster).clone()
}

/// A client of these endpoints, with what a control plane says of their cluster.
fn mesh(endpoints: &[SocketAddr], change: impl FnOnce(&mut pb::Cluster)) -> Mesh {
    let cluster = cluster("web.shop", endpoints, change);
    let source = Fixed::new().routes("web.shop:80", vec![route_to("web.shop")]).cluster(cluster);
    Mesh::builder().source(source).start().unwrap()
}

async fn ask(mesh: &Mesh) -> Result<u16, mesh_core::error::MeshError> {
    let response = mesh.client().request(Request::get("http://web.shop/").body(Body::empty()).unwrap()).await?;
    let status = response.status().as_u16();
    response.into_body().collect().await?;
    Ok(status)
}

fn is_used(mesh: &Mesh, at: SocketAddr) -> bool {
    let view = mesh.store().find("web.shop:80").unwrap().view().unwrap();
    let (cluster, mut used) = (&view.clusters()[0], false);
    cluster.leaves()[0].state.each(|endpoint| {
        used |= endpoint.id().to_string() == at.to_string() && cluster.may_pick(endpoint);
    });
    used
}

#[tokio::test]
async fn an_endpoint_that_is_not_well_gets_no_requests_until_it_is() {
    let http2 = HealthChecker::HttpHealthCheck(HttpHealthCheck {
        path: "/healthz".into(),
        host: "check.shop".into(),
        codec_client_type: CodecClientType::Http2.into(),
        expected_statuses: vec![Int64Range { start: 200, end: 300 }],
        receive: vec![Payload { payload: Some(payload::Payload::Binary(b"all".to_vec())) }],
        ..Default::default()
    });
    let typed = core::HeaderValue { key: "content-type".into(), value: "text/plain".into(), ..Default::default() };
    let typed = HealthChecker::HttpHealthCheck(HttpHealthCheck {
        path: "/healthz".into(),
        request_headers_to_add: vec![core::HeaderValueOption { header: Some(typed), ..Default::default() }],
        ..Default::default()
    });
    let cases = [(http(), "web.shop"), (typed, "web.shop"), (http2, "check.shop"), (grpc(), "web.shop")];
    for (checker, host) in cases {
        let (ill, well) = (Server::new().await, Server::new().await);
        let mesh = mesh(&[ill.at, well.at], |cluster| cluster.health_checks.push(every_20_ms(checker.clone())));
        ask(&mesh).await.unwrap();
        until("both are well", || is_used(&mesh, ill.at) && is_used(&mesh, well.at) && ill.orders.checks() > 2).await;
        ill.orders.status.store(503, Ordering::SeqCst);
        ill.orders.serving.store(2, Ordering::SeqCst);
        until("it is out", || !is_used(&mesh, ill.at)).await;
        let told: Vec<String> = mesh.endpoints().iter().map(ToString::to_string).collect();
        let expected = [
            format!("web.shop {}: Unknown, by its checks Unhealthy, gets no requests, 0 in flight", ill.at),
            format!("web.shop {}: Unknown, 0 in flight", well.at),
        ];
        assert_eq!(told, expected);
        let before = ill.orders.requests();
        for _ in 0..20 {
            assert_eq!(ask(&mesh).await.unwrap(), 200);
        }
        assert_eq!(ill.orders.requests(), before, "{checker:?}");
        ill.orders.status.store(200, Ordering::SeqCst);
        ill.orders.serving.store(1, Ordering::SeqCst);
        until("it is back", || is_used(&mesh, ill.at)).await;
        while ill.orders.requests() == before {
            ask(&mesh).await.unwrap();
        }
        let hosts = ill.orders.hosts.lock().unwrap();
        assert!(hosts.iter().all(|seen| seen == host), "{hosts:?}");
    }
}

#[tokio::test]
async fn a_tcp_check_sends_and_waits_for_what_it_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (at, says) = (listener.local_addr().unwrap(), Arc::new(AtomicU16::new(u16::from(b'+'))));
    let shared = Arc::clone(&says);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut read = [0; 4];
            if stream.read_exact(&mut read).await.is_ok() && &read == b"PING" {
                _ = stream.write_all(&[shared.load(Ordering::SeqCst) as u8, b'P', b'O']).await;
                _ = stream.write_all(b"NG").await;
            }
        }
    });
    let payload = |text: &str| Payload { payload: Some(payload::Payload::Binary(text.into())) };
    let probe = TcpHealthCheck {
        send: Some(payload("PING")),
        receive: vec![payload("+"), payload("PONG")],
        ..Default::default()
    };
    let well = Server::new().await;
    let plain = HealthChecker::TcpHealthCheck(TcpHealthCheck::default());
    let connect_only = mesh(&[well.at], |cluster| cluster.health_checks.push(every_20_ms(plain)));
    ask(&connect_only).await.unwrap();
    until("it is dialled", || well.orders.connections.load(Ordering::SeqCst) > 3).await;
    assert!(is_used(&connect_only, well.at));
    let checker = HealthChecker::TcpHealthCheck(probe);
    let mesh = mesh(&[at], |cluster| {
        cluster.common_lb_config = None;
        cluster.health_checks.push(every_20_ms(checker));
    });
    let view = mesh.store().target("web.shop:80").unwrap();
    until("there is a view", || view.view().is_some()).await;
    let checked = || {
        let view = view.view().unwrap();
        let mut found = None;
        view.clusters()[0].leaves()[0].state.each(|endpoint| found = Some(endpoint.checked()));
        found
    };
    use mesh_core::health_check::Checked;
    until("it is well", || checked() == Some(Checked::Healthy)).await;
    says.store(u16::from(b'-'), Ordering::SeqCst);
    until("it is not", || checked() == Some(Checked::Unhealthy)).await;
}

#[tokio::test]
async fn checks_share_connections_with_requests_unless_they_are_to_have_their_own() {
    for (checker, reuses) in [(http(), true), (http(), false), (grpc(), true), (grpc(), false)] {
        let server = Server::new().await;
        let mesh = mesh(&[server.at], |cluster| {
            let mut check = every_20_ms(checker.clone());
            check.reuse_connection = Some(BoolValue { value: reuses });
            cluster.health_checks.push(check);
        });
        ask(&mesh).await.unwrap();
        until("it is checked", || server.orders.checks() >= 5).await;
        let connections = server.orders.connections.load(Ordering::SeqCst);
        match reuses {
            // One for requests over HTTP/1.1, and one for checks that speak something else, or come at the same time.
            true => assert!(connections <= 3, "{connections}"),
            false => assert!(connections >= 5, "{connections}"),
        }
    }
}

#[tokio::test]
async fn checks_that_hang_hold_up_those_of_no_other_cluster() {
    let (well, taken) = (Server::new().await, Arc::new(AtomicU32::new(0)));
    let mut hanging = Vec::new();
    for _ in 0..110 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        hanging.push(listener.local_addr().unwrap());
        let taken = Arc::clone(&taken);
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
                taken.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let checked = |name: &str, endpoints: &[SocketAddr]| {
        cluster(name, endpoints, |cluster| {
            let timeout = Some(ProtoDuration { seconds: 3600, nanos: 0 });
            cluster.health_checks.push(core::HealthCheck { timeout, ..every_20_ms(http()) });
        })
    };
    let source = Fixed::new()
        .routes("hanging.shop:80", vec![route_to("hanging.shop")])
        .cluster(checked("hanging.shop", &hanging))
        .routes("web.shop:80", vec![route_to("web.shop")])
        .cluster(checked("web.shop", &[well.at]));
    let mesh = Mesh::builder().source(source).start().unwrap();
    let _hanging = mesh.store().target("hanging.shop:80").unwrap();
    until("as many hang as may", || taken.load(Ordering::SeqCst) >= 100).await;
    ask(&mesh).await.unwrap();
    until("the other is checked", || well.orders.checks() > 2).await;
}

#[tokio::test]
async fn where_nobody_is_well_requests_fail_and_say_so_or_all_are_used_in_panic() {
    for (panic, is_answered) in [(0.0, false), (50.0, true)] {
        let (one, two) = (Server::new().await, Server::new().await);
        let mesh = mesh(&[one.at, two.at], |cluster| {
            cluster.health_checks.push(every_20_ms(http()));
            cluster.common_lb_config.as_mut().unwrap().healthy_panic_threshold = Some(Percent { value: panic });
        });
        ask(&mesh).await.unwrap();
        for server in [&one, &two] {
            server.orders.status.store(404, Ordering::SeqCst);
        }
        let view = || mesh.store().find("web.shop:80").unwrap().view().unwrap();
        until("both are known to be ill", || {
            let (mut ill, view) = (0, view());
            view.clusters()[0].leaves()[0]
                .state
                .each(|one| ill += u32::from(one.checked() == mesh_core::health_check::Checked::Unhealthy));
            ill == 2 && (is_answered || !is_used(&mesh, one.at) && !is_used(&mesh, two.at))
        })
        .await;
        match ask(&mesh).await {
            Ok(status) => assert!(is_answered && status == 200),
            Err(error) => {
                assert!(!is_answered && error.kind() == ErrorKind::NoHealthyEndpoint, "{error}");
                assert!(error.to_string().contains("2 known, 2 failing health checks"), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_says_in_an_answer_that_it_is_not_well_is_out_until_it_passes_a_check() {
    let (ill, well) = (Server::new().await, Server::new().await);
    let mesh = mesh(&[ill.at, well.at], |cluster| {
        let mut check = every_20_ms(http());
        check.interval = Some(ProtoDuration { seconds: 3600, nanos: 0 });
        cluster.health_checks.push(check);
    });
    ask(&mesh).await.unwrap();
    // Their answers are known here: one that comes later would be the check that is passed.
    until("both are known to be well", || {
        let (mut known, view) = (0, mesh.store().find("web.shop:80").unwrap().view().unwrap());
        let state = &view.clusters()[0].leaves()[0].state;
        state.each(|one| known += u32::from(one.checked() == mesh_core::health_check::Checked::Healthy));
        known == 2
    })
    .await;
    ill.orders.fails.store(true, Ordering::SeqCst);
    let started = Instant::now();
    while is_used(&mesh, ill.at) {
        assert!(started.elapsed() < PATIENCE);
        ask(&mesh).await.unwrap();
    }
    let before = ill.orders.requests();
    for _ in 0..20 {
        ask(&mesh).await.unwrap();
    }
    assert_eq!(ill.orders.requests(), before);
}
