//! What gRPC's clients have names for besides calls: connections (gRFC A94), made, refused, and ended in each way that there is by
//! a peer that writes its frames by hand; and what outlier detection makes of endpoints (A91).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode, Version};
use http_body_util::BodyExt;
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::model::{
    ApiListener, Cluster, ClusterKind, ClusterProtocol, Consecutive, Endpoints, HttpManager, Listener,
    OutlierDetection, RouteConfiguration, RouteSource, VirtualHost,
};
use mesh_core::resources::{Change, Resource, ResourceKey, ResourceType};
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::server_support::frames::{END_HEADERS, END_STREAM, frame};
use crate::server_support::{played, within};

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

/// What a peer does with a connection once it has answered its first request.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Stay,
    GoAway(u8),
    Reset,
    Close,
}

/// A peer, and where it is told what to do with its next connection.
async fn peer() -> (SocketAddr, Sender<Fate>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = channel(1);
    tokio::spawn(serve(listener, told));
    (address, tell)
}

async fn serve(listener: TcpListener, mut told: Receiver<Fate>) {
    while let Some(fate) = told.recv().await {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(answer(stream, fate));
    }
}

async fn answer(mut stream: TcpStream, fate: Fate) {
    stream.read_exact(&mut [0; 24]).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).await.unwrap();
        if head[3] == HEADERS {
            break;
        }
    }
    // `:status: 200`, and no body.
    stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x88")).await.unwrap();
    match fate {
        Fate::Stay => {}
        Fate::GoAway(code) => stream.write_all(&frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, code])).await.unwrap(),
        Fate::Close => stream.shutdown().await.unwrap(),
        Fate::Reset => return SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap(),
    }
    // A reset is an end, too.
    while stream.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
}

/// The target `s:80`, which leads to the cluster `c`.
fn target() -> Change {
    let config = RouteConfiguration::new(vec![VirtualHost::new(["*"], vec![route_to("c")])]);
    let http = HttpManager::new(RouteSource::Inline(Arc::new(config)));
    let listener = Listener::Api(ApiListener::new("s:80", http));
    Change::Put(ResourceKey::new(ResourceType::Listener, "s:80"), Resource::Listener(Arc::new(listener)))
}

/// The cluster `c` at this address in `eu`.
fn at(address: SocketAddr, idle: Option<Duration>) -> Change {
    let mut endpoints = Endpoints::fixed([address]);
    endpoints.localities[0].locality.region = "eu".into();
    let mut cluster = Cluster::new("c", ClusterKind::Static(endpoints));
    (cluster.protocol, cluster.idle_timeout) = (ClusterProtocol::Http2, idle);
    Change::Put(ResourceKey::new(ResourceType::Cluster, "c"), Resource::Cluster(Arc::new(cluster)))
}

async fn call(mesh: &Mesh) -> bool {
    let request = Request::get("http://s/").version(Version::HTTP_2).body(Body::empty()).unwrap();
    match within(mesh.client().request(request)).await {
        Ok(answer) => within(answer.into_body().collect()).await.is_ok(),
        Err(_) => false,
    }
}

/// Waits until a metric of the one place that there is has this value, with these labels more.
async fn counts(mesh: &Mesh, name: &str, more: &str, count: u64) {
    let place = r#"grpc_target="xds:///s:80",grpc_lb_backend_service="c""#;
    let place = format!(r#"{place},grpc_lb_locality="{{region=\"eu\", zone=\"\", sub_zone=\"\"}}""#);
    let line = format!("grpc_subchannel_{name}{{{place}{more}}} {count}");
    let is_so = async {
        while !mesh.prometheus().lines().any(|told| told == line) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(20), is_so).await;
    told.unwrap_or_else(|_| panic!("{line}\n{}", mesh.prometheus()));
}

#[tokio::test]
async fn connections_count_where_they_lead_to_and_by_why_they_end() {
    let (address, tell) = peer().await;
    let (player, source) = played();
    let mesh = Mesh::builder().source(source).grpc_metrics().start().unwrap();
    let plain_text = r#",grpc_security_level="none""#;
    for change in [target(), at(address, None)] {
        player.send(change);
    }
    let ended = |reason: &str| format!(",grpc_disconnect_error=\"{reason}\"");
    let fates = [
        (Fate::GoAway(11), "GOAWAY ENHANCE_YOUR_CALM"),
        (Fate::GoAway(0), "GOAWAY NO_ERROR"),
        (Fate::Reset, "connection reset"),
        (Fate::Close, "unknown"),
    ];
    for (fate, reason) in fates {
        tell.send(fate).await.unwrap();
        assert!(call(&mesh).await, "{fate:?}");
        counts(&mesh, "disconnections_total", &ended(reason), 1).await;
    }
    counts(&mesh, "connection_attempts_succeeded_total", "", 4).await;
    counts(&mesh, "open_connections", plain_text, 0).await;

    // The configuration does not have the endpoint any more, and then one at which nobody listens.
    tell.send(Fate::Stay).await.unwrap();
    assert!(call(&mesh).await);
    counts(&mesh, "open_connections", plain_text, 1).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    player.send(at(nobody, None));
    counts(&mesh, "disconnections_total", &ended("subchannel shutdown"), 1).await;
    assert!(!call(&mesh).await);
    // What was refused unseen is tried once more.
    counts(&mesh, "connection_attempts_failed_total", "", 2).await;

    // Nobody uses it.
    player.send(at(address, Some(Duration::from_millis(50))));
    tell.send(Fate::Stay).await.unwrap();
    within(async { while !call(&mesh).await {} }).await;
    counts(&mesh, "disconnections_total", &ended("subchannel shutdown"), 2).await;
    counts(&mesh, "open_connections", plain_text, 0).await;
    counts(&mesh, "connection_attempts_succeeded_total", "", 6).await;

    // They are gRPC's own, and there for whoever asks for them.
    assert!(!Mesh::builder().source(Fixed::new()).metrics().start().unwrap().prometheus().contains("subchannel"));
}

#[tokio::test]
async fn outliers_count_by_why_they_are_taken_for_some_and_by_why_they_stay() {
    let mut endpoints = Vec::new();
    for _ in 0..2 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        endpoints.push(listener.local_addr().unwrap());
        let app = axum::Router::new().fallback(|| async { StatusCode::SERVICE_UNAVAILABLE });
        tokio::spawn(async move { axum::serve(listener, app).await });
    }
    let mut detection = OutlierDetection::default();
    detection.consecutive_5xx = Consecutive { failures: 1, enforcing: 100 };
    detection.consecutive_gateway_failure = Consecutive { failures: 1, enforcing: 0 };
    detection.max_ejection_percent = 50;
    let mut cluster = Cluster::new("c", ClusterKind::Static(Endpoints::fixed(endpoints)));
    cluster.outlier_detection = Some(detection);
    let source = Fixed::new().routes("s:80", vec![route_to("c")]).cluster(cluster);
    let mesh = Mesh::builder().source(source).grpc_metrics().start().unwrap();
    // One is out after the first, and the other one may not be, whenever it is asked.
    let fail = async {
        loop {
            let answer = mesh.client().get("http://s/").await.unwrap();
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
            let told = mesh.prometheus();
            if told.contains("=\"max_ejection_overflow\"} 1\n") {
                return told;
            }
        }
    };
    let told = within(fail).await;
    let place = r#"grpc_target="xds:///s:80",grpc_lb_backend_service="c",grpc_lb_outlier_detection_detection_method"#;
    let unenforced = "grpc_lb_outlier_detection_unenforced_reason";
    for line in [
        format!(r#"enforced_total{{{place}="consecutive_5xx"}} 1"#),
        format!(r#"enforced_total{{{place}="consecutive_gateway_failure"}} 0"#),
        format!(r#"unenforced_total{{{place}="consecutive_5xx",{unenforced}="enforcement_percentage"}} 0"#),
        format!(r#"unenforced_total{{{place}="consecutive_5xx",{unenforced}="max_ejection_overflow"}} 1"#),
        format!(r#"unenforced_total{{{place}="consecutive_gateway_failure",{unenforced}="enforcement_percentage"}} 2"#),
    ] {
        let line = format!("grpc_lb_outlier_detection_ejections_{line}");
        assert!(told.lines().any(|told| told == line), "{line}\n{told}");
    }
}
