//! Policies that go by what is known of servers: by the load that they report (ORCA), and by how long their answers take. From
//! the bytes of a cluster, as a foreign control plane sends it, to which server gets the requests.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::DiscoveryType;
use envoy_types::pb::envoy::config::cluster::v3::load_balancing_policy::Policy;
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::extensions::load_balancing_policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin;
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration as ProtoDuration};
use http::{HeaderMap, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::load_report::LoadReport;
use mesh_core::resources::{Resource, ResourceType};
use mesh_core::testing::resources::{inline_cluster, pack, typed_struct};
use mesh_core::xds::decode::{Options, decode};
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use mesh_tower::server::ReportLoad;
use tokio::net::TcpListener;
use tower_layer::Layer;

/// Generous: it only bounds a test that fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that is so many requests from its limit as it says, or takes so long to answer.
struct Server {
    at: SocketAddr,
    requests: Arc<AtomicU32>,
    rate: Arc<AtomicU64>,
}

type Frames = StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

fn answer(request: &Request<Incoming>) -> Response<Frames> {
    let mut response = Response::builder();
    let mut frames = vec![Ok(Frame::data(Bytes::from_static(b"hello")))];
    if request.headers().get("content-type").is_some_and(|media| media == "application/grpc") {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", 0.into());
        frames.push(Ok(Frame::trailers(trailers)));
        response = response.header("content-type", "application/grpc");
    }
    response.body(StreamBody::new(futures_util::stream::iter(frames))).unwrap()
}

impl Server {
    async fn new(rate: u64, pause: Duration) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (requests, rate) = (Arc::<AtomicU32>::default(), Arc::new(AtomicU64::new(rate)));
        let (counted, told) = (Arc::clone(&requests), Arc::clone(&rate));
        let reported = ReportLoad::new(move || {
            let mut report = LoadReport::default();
            (report.cpu_utilization, report.requests_per_second) = (0.5, told.load(Ordering::SeqCst) as f64);
            report
        });
        let service = reported.layer(tower::service_fn(move |request: Request<Incoming>| {
            counted.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::time::sleep(pause).await;
                Ok::<_, Infallible>(answer(&request))
            }
        }));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(service.clone());
                tokio::spawn(async move {
                    _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Server { at, requests, rate }
    }

    fn requests(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
    }
}

/// A client of these servers by this policy.
fn mesh(servers: &[&Server], policy: Any) -> Mesh {
    let hosts: Vec<String> = servers.iter().map(|server| server.at.ip().to_string()).collect();
    let addresses: Vec<_> = hosts.iter().zip(servers).map(|(host, server)| (host.as_str(), server.at.port())).collect();
    let policy = TypedExtensionConfig { name: "p".into(), typed_config: Some(policy) };
    let policies = vec![Policy { typed_extension_config: Some(policy) }];
    let cluster = pb::Cluster {
        load_balancing_policy: Some(pb::LoadBalancingPolicy { policies }),
        ..inline_cluster("web.shop", DiscoveryType::Static, &addresses)
    };
    let decoded = decode(ResourceType::Cluster, &prost::Message::encode_to_vec(&cluster), &Options::default()).unwrap();
    assert!(decoded.ignored.is_empty(), "{:?}", decoded.ignored);
    let Resource::Cluster(cluster) = decoded.resource else { panic!("a cluster") };
    let source = Fixed::new().routes("web.shop:80", vec![route_to("web.shop")]).cluster((*cluster).clone());
    Mesh::builder().source(source).start().unwrap()
}

async fn ask(mesh: &Mesh, is_grpc: bool) {
    let mut request = Request::get("http://web.shop/");
    if is_grpc {
        request = request.method("POST").version(Version::HTTP_2).header("content-type", "application/grpc");
    }
    let response = mesh.client().request(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
}

/// How many of the next requests each server gets.
async fn shares(mesh: &Mesh, servers: [&Server; 2], count: u32, is_grpc: bool) -> [u32; 2] {
    let before = servers.map(Server::requests);
    for _ in 0..count {
        ask(mesh, is_grpc).await;
    }
    [0, 1].map(|at| servers[at].requests() - before[at])
}

#[tokio::test]
async fn servers_get_requests_in_proportion_to_what_they_say_they_can_do() {
    for is_grpc in [false, true] {
        let (large, small) = (Server::new(300, Duration::ZERO).await, Server::new(100, Duration::ZERO).await);
        let millis = |millis| Some(ProtoDuration { seconds: 0, nanos: millis * 1_000_000 });
        let policy = ClientSideWeightedRoundRobin {
            blackout_period: Some(ProtoDuration::default()),
            weight_update_period: millis(100),
            ..Default::default()
        };
        let mesh = mesh(&[&large, &small], pack(&policy));
        let started = Instant::now();
        while shares(&mesh, [&large, &small], 40, is_grpc).await[0].abs_diff(30) > 2 {
            assert!(started.elapsed() < PATIENCE, "its weights never count");
        }
        // The other way round.
        large.rate.store(10, Ordering::SeqCst);
        small.rate.store(90, Ordering::SeqCst);
        while shares(&mesh, [&large, &small], 40, is_grpc).await[0].abs_diff(4) > 2 {
            assert!(started.elapsed() < PATIENCE, "what changed is never taken in");
        }
    }
}

/// A server that reports its load on a stream, and answers requests without a word of it.
async fn streaming(rate: f64) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let requests = Arc::<AtomicU32>::default();
    let counted = Arc::clone(&requests);
    let mut report = LoadReport::default();
    (report.cpu_utilization, report.requests_per_second) = (0.5, rate);
    let message = report.to_binary();
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let (counted, message) = (Arc::clone(&counted), message.clone());
        async move {
            let is_stream = request.uri().path() == "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics";
            let mut frames: Vec<Result<Frame<Bytes>, Infallible>> = Vec::new();
            if is_stream {
                assert_eq!(request.version(), Version::HTTP_2);
                // It asks for a report every 10 s.
                assert_eq!(&request.into_body().collect().await.unwrap().to_bytes()[5..], [0x0a, 2, 8, 10]);
                let mut framed = vec![0, 0, 0, 0, message.len() as u8];
                framed.extend(message);
                frames.push(Ok(Frame::data(framed.into())));
            } else {
                counted.fetch_add(1, Ordering::SeqCst);
            }
            // A stream goes on.
            let rest = futures_util::stream::iter(frames);
            let open = futures_util::stream::pending();
            let body = match is_stream {
                true => StreamBody::new(futures_util::StreamExt::boxed(futures_util::StreamExt::chain(rest, open))),
                false => StreamBody::new(futures_util::StreamExt::boxed(rest)),
            };
            let mut response = Response::new(body);
            response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            Ok::<_, Infallible>(response)
        }
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Server { at, requests, rate: Arc::default() }
}

#[tokio::test]
async fn reports_on_a_stream_count_in_the_place_of_those_with_answers() {
    let (large, small) = (streaming(300.0).await, streaming(100.0).await);
    let policy = ClientSideWeightedRoundRobin {
        blackout_period: Some(ProtoDuration::default()),
        enable_oob_load_report: Some(BoolValue { value: true }),
        ..Default::default()
    };
    let mesh = mesh(&[&large, &small], pack(&policy));
    let started = Instant::now();
    while shares(&mesh, [&large, &small], 40, false).await[0].abs_diff(30) > 2 {
        assert!(started.elapsed() < PATIENCE, "its weights never count");
    }
}

#[tokio::test]
async fn a_slow_server_gets_few_requests_as_soon_as_that_is_known() {
    let (fast, slow) = (Server::new(0, Duration::ZERO).await, Server::new(0, Duration::from_millis(150)).await);
    let mesh = mesh(&[&fast, &slow], typed_struct("mesh.load_balancing.v1.PeakEwma", &[]));
    while slow.requests() == 0 || fast.requests() == 0 {
        ask(&mesh, false).await;
    }
    let [_, seldom] = shares(&mesh, [&fast, &slow], 100, false).await;
    // Of two draws, and a third where they are the same, an eighth draws it alone.
    assert!(seldom < 40, "{seldom}");
}
