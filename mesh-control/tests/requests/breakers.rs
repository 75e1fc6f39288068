//! Circuit breakers and settings of connections, by what requests, a server and the kernel see.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Version};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_tower::body::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tower_service::Service;

use crate::support::{Face, World, mesh_settings, rules, service};
use crate::upstream::{PATIENCE, Upstream, until};

/// `web.example.com` with these endpoints, called by this policy.
pub(crate) fn called_by(policy: &str, endpoints: &[&Upstream]) -> String {
    let names = ["v1", "v2", "v3", "v4", "v5"];
    let listed: Vec<_> = names.into_iter().zip(endpoints.iter().map(|upstream| upstream.at)).collect();
    service("web", &listed)
        .replace("  host: web.example.com\n", &format!("  host: web.example.com\n  trafficPolicy: {policy}\n"))
}

fn get(version: Version) -> Request<Body> {
    Request::get("http://web.example.com/").version(version).body(Body::empty()).unwrap()
}

fn call() -> Request<Body> {
    let call = Request::post("http://web.example.com/a.B/C").header("content-type", "application/grpc");
    call.version(Version::HTTP_2).body(Body::empty()).unwrap()
}

/// Sends a request, and reads its answer to the end.
async fn ask(world: &World, request: Request<Body>) -> Result<u16, MeshError> {
    world.ask(request).await.map(|answer| answer.status)
}

/// The same through a client of the application's own, below the mesh.
pub(crate) async fn ask_through_layer(world: &World, request: Request<Body>) -> Result<u16, MeshError> {
    world.ask_through_layer(request).await.map(|answer| answer.status)
}

#[tokio::test]
async fn never_more_requests_are_in_flight_than_the_limit_and_the_others_fail_at_once() {
    for kind in ["HTTP/1.1", "HTTP/2", "gRPC", "layer"] {
        let upstream = Upstream::new().await;
        let upgrade = if kind == "HTTP/2" { ", h2UpgradePolicy: UPGRADE" } else { "" };
        let policy = format!("{{connectionPool: {{http: {{http2MaxRequests: 10{upgrade}}}}}}}");
        let world = Arc::new(World::new(&called_by(&policy, &[&upstream])).await);
        assert_eq!(ask(&world, get(Version::HTTP_11)).await.unwrap(), 200);
        upstream.hold(true);
        let mut asked = JoinSet::new();
        for _ in 0..1000 {
            let world = Arc::clone(&world);
            asked.spawn(async move {
                match kind {
                    "gRPC" => ask(&world, call()).await,
                    "layer" => ask_through_layer(&world, get(Version::HTTP_11)).await,
                    _ => ask(&world, get(Version::HTTP_11)).await,
                }
            });
        }
        for _ in 0..990 {
            let failed = tokio::time::timeout(PATIENCE, asked.join_next()).await.expect(kind).unwrap().unwrap();
            let error = failed.expect_err("the server holds all back");
            assert_eq!(error.kind(), ErrorKind::Overflow, "{kind}: {error}");
            let answer = mesh_tower::reply::error(&error, kind == "gRPC");
            assert_eq!(answer.headers()["x-envoy-overloaded"], "true");
            match kind {
                "gRPC" => assert_eq!(answer.headers()["grpc-status"], "14"),
                _ => assert_eq!(answer.status(), 503),
            }
            assert!(error.to_string().contains("circuit breaker max_requests"), "{kind}: {error}");
        }
        assert_eq!(world.flag(), "UO", "{kind}");
        until("those that were let in are there", || upstream.requests.now() == 10).await;
        upstream.hold(false);
        while let Some(answered) = asked.join_next().await {
            assert_eq!(answered.unwrap().unwrap(), 200, "{kind}");
        }
        assert_eq!(upstream.requests.most(), 10, "{kind}");
        assert_eq!(ask(&world, get(Version::HTTP_11)).await.unwrap(), 200, "{kind}: there is room again");
    }
}

#[tokio::test]
async fn requests_in_flight_count_on_when_the_limit_changes() {
    let upstream = Upstream::new().await;
    let limited =
        |max: u32| called_by(&format!("{{connectionPool: {{http: {{http2MaxRequests: {max}}}}}}}"), &[&upstream]);
    let world = Arc::new(World::of_file(&limited(2)).await);
    ask(&world, get(Version::HTTP_11)).await.unwrap();
    upstream.hold(true);
    let mut held = JoinSet::new();
    let mut send = |world: &Arc<World>| {
        let world = Arc::clone(world);
        held.spawn(async move { ask(&world, get(Version::HTTP_11)).await })
    };
    send(&world);
    send(&world);
    until("two are held", || upstream.requests.now() == 2).await;
    assert_eq!(ask(&world, get(Version::HTTP_11)).await.unwrap_err().kind(), ErrorKind::Overflow);
    world.rewrite(&limited(3));
    // Until the change is in force, each of these fails.
    let started = std::time::Instant::now();
    while upstream.requests.now() == 2 {
        assert!(started.elapsed() < PATIENCE);
        send(&world);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ask(&world, get(Version::HTTP_11)).await.unwrap_err().kind(), ErrorKind::Overflow);
    assert_eq!(upstream.requests.most(), 3);
    upstream.hold(false);
}

#[tokio::test]
async fn requests_wait_for_one_of_the_connections_that_there_may_be_as_many_as_may_wait() {
    for (http, version, connections, in_flight) in [
        ("", Version::HTTP_11, 2, 2),
        (", h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 3", Version::HTTP_2, 2, 6),
        (", useClientProtocol: true, maxConcurrentStreams: 3", Version::HTTP_2, 2, 6),
    ] {
        let upstream = Upstream::new().await;
        let policy = format!(
            "{{connectionPool: {{tcp: {{maxConnections: {connections}}}, http: {{http1MaxPendingRequests: 4{http}}}}}}}"
        );
        let world = Arc::new(World::new(&called_by(&policy, &[&upstream])).await);
        ask(&world, get(version)).await.unwrap();
        upstream.hold(true);
        let mut asked = JoinSet::new();
        // One after the other, so that no more wait for a dial than may.
        for number in 1..=in_flight {
            let world = Arc::clone(&world);
            asked.spawn(async move { ask(&world, get(version)).await });
            until("it is there", || upstream.requests.now() == number).await;
        }
        for _ in 0..20 {
            let world = Arc::clone(&world);
            asked.spawn(async move { ask(&world, get(version)).await });
        }
        for _ in 0..16 {
            let failed = tokio::time::timeout(PATIENCE, asked.join_next()).await.unwrap().unwrap().unwrap();
            let error = failed.expect_err("the server holds all back");
            assert_eq!(error.kind(), ErrorKind::Overflow, "{error}");
            assert!(error.to_string().contains("circuit breaker max_pending_requests"), "{error}");
        }
        assert_eq!(upstream.requests.now(), in_flight, "{http}");
        upstream.hold(false);
        let mut answered = 0;
        while let Some(asked) =
            tokio::time::timeout(PATIENCE, asked.join_next()).await.expect("those who wait get their turn")
        {
            assert_eq!(asked.unwrap().unwrap(), 200);
            answered += 1;
        }
        assert_eq!(answered, in_flight + 4);
        assert_eq!(upstream.connections.most(), connections, "{http}");
    }
}

#[tokio::test]
async fn a_connection_that_fails_makes_room_for_those_who_wait() {
    let upstream = Upstream::new().await;
    let world = Arc::new(World::new(&called_by("{connectionPool: {tcp: {maxConnections: 1}}}", &[&upstream])).await);
    upstream.hold(true);
    let mut asked = JoinSet::new();
    for _ in 0..3 {
        let world = Arc::clone(&world);
        asked.spawn(async move { ask(&world, get(Version::HTTP_11)).await });
    }
    until("one is there", || upstream.requests.now() == 1).await;
    // It fails, and so do the others in turn: each over a connection of its own.
    upstream.hang_up(true);
    upstream.hold(false);
    while let Some(answered) = tokio::time::timeout(PATIENCE, asked.join_next()).await.expect("nobody waits for ever") {
        assert_eq!(answered.unwrap().unwrap_err().kind(), ErrorKind::ConnectionLost);
    }
    assert_eq!((upstream.connections.most(), upstream.connections.all()), (1, 3));
}

#[tokio::test]
async fn a_connector_makes_no_more_connections_than_there_may_be() {
    let upstream = Upstream::new().await;
    let world = World::new(&called_by("{connectionPool: {tcp: {maxConnections: 2}}}", &[&upstream])).await;
    let mut connector = world.mesh.connector();
    let mut connect = || connector.call("http://web.example.com/".parse().unwrap());
    let held = [connect().await.unwrap(), connect().await.unwrap()];
    let error = connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overflow, "{error}");
    drop(held);
    connect().await.unwrap();
}

/// A server whose backlog is full: whoever connects hears nothing. It is so as long as the result is there.
#[cfg(target_os = "linux")]
pub(crate) async fn silent() -> (std::net::SocketAddr, Vec<tokio::net::TcpStream>, tokio::net::TcpListener) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let (at, mut waiting) = (listener.local_addr().unwrap(), Vec::new());
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(at)).await {
        waiting.push(stream.unwrap());
        assert!(waiting.len() < 100, "the backlog does not fill");
    }
    (at, waiting, listener)
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_connection_is_given_up_when_it_takes_longer_than_it_may() {
    let (at, _waiting, _listener) = silent().await;
    let called = |time: &str, limit: &str| {
        let policy = format!("trafficPolicy: {{connectionPool: {{tcp: {{connectTimeout: {time}}}}}}}");
        let yaml = service("web", &[("v1", at)])
            .replace("  host: web.example.com\n", &format!("  host: web.example.com\n  {policy}\n"));
        let rule = format!(
            "  - retries: {{attempts: 0}}\n    timeout: {limit}\n    route: [{{destination: {{host: web.example.com}}}}]\n"
        );
        format!("{yaml}{}", rules(&rule))
    };
    // What is over first says what the request fails with.
    let of_rule = called("50ms", "20s");
    let of_mesh = of_rule.replace("connectTimeout: 50ms", "") + &mesh_settings("connectTimeout: 50ms");
    for yaml in [of_rule, of_mesh] {
        let mut world = World::new(&yaml).await;
        for face in [Face::Client, Face::Connector] {
            world.face = face;
            let error = world.get("http://web.example.com/").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectFailure, "{face:?}: {error}");
        }
    }
    let world = World::new(&called("20s", "50ms")).await;
    assert_eq!(world.get("http://web.example.com/").await.unwrap_err().kind(), ErrorKind::Timeout);
}

#[tokio::test]
async fn connections_end_when_they_are_old_or_idle_for_too_long() {
    for (policy, is_short) in [
        ("{connectionPool: {tcp: {maxConnectionDuration: 30ms}}}", true),
        ("{connectionPool: {tcp: {maxConnectionDuration: 30ms}, http: {h2UpgradePolicy: UPGRADE}}}", true),
        ("{connectionPool: {tcp: {idleTimeout: 30ms}}}", true),
        ("{connectionPool: {tcp: {idleTimeout: 30ms}, http: {idleTimeout: 1h}}}", false),
        ("{connectionPool: {tcp: {maxConnectionDuration: 1h, idleTimeout: 0s}}}", false),
    ] {
        let upstream = Upstream::new().await;
        let world = World::new(&called_by(policy, &[&upstream])).await;
        ask(&world, get(Version::HTTP_11)).await.unwrap();
        if is_short {
            until(policy, || upstream.connections.now() == 0).await;
        } else {
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(upstream.connections.now(), 1, "{policy}");
        }
        ask(&world, get(Version::HTTP_11)).await.unwrap();
        assert_eq!(upstream.connections.all(), if is_short { 2 } else { 1 }, "{policy}");
    }
}

#[tokio::test]
async fn the_clients_own_protocol_is_kept_where_that_is_wanted() {
    let upstream = Upstream::new().await;
    let world = World::new(&called_by("{connectionPool: {http: {useClientProtocol: true}}}", &[&upstream])).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        assert_eq!(world.ask(get(version)).await.unwrap().body, format!("{version:?}"));
    }
}

/// The kernel says which timer of a connection runs: 02 is that of keepalive probes (proc(5), `/proc/net/tcp`).
#[cfg(target_os = "linux")]
#[tokio::test]
async fn idle_connections_are_probed_where_that_is_wanted() {
    let probes = "tcpKeepalive: {time: 7s, interval: 2s, probes: 3}";
    let cases = [
        (format!("{{connectionPool: {{tcp: {{{probes}}}}}}}"), String::new(), true),
        ("{}".to_owned(), mesh_settings(probes), true),
        ("{}".to_owned(), String::new(), false),
    ];
    for ((policy, settings, probed), face) in
        cases.iter().flat_map(|case| [Face::Client, Face::Connector].map(|face| (case, face)))
    {
        let upstream = Upstream::new().await;
        let world = World::new(&format!("{}{settings}", called_by(policy, &[&upstream]))).await;
        let mut held = None;
        match face {
            Face::Connector => {
                held = Some(world.mesh.connector().call("http://web.example.com/".parse().unwrap()).await.unwrap());
            }
            Face::Client | Face::Layer => assert_eq!(ask(&world, get(Version::HTTP_11)).await.unwrap(), 200),
        }
        let remote = format!("0100007F:{:04X}", upstream.at.port());
        let timer = || {
            let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
            // The one that is open (1): one of another test that had the port before may still be told of.
            let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let open = lines.into_iter().find(|fields| fields.get(2..4) == Some(&[&*remote, "01"])).unwrap();
            open[5].split(':').next().unwrap().to_owned()
        };
        // Another timer runs until the last packet is acknowledged.
        until("it is quiet", || timer() != "01").await;
        assert_eq!(timer(), if *probed { "02" } else { "00" }, "{face:?} {policy} {settings}");
        drop(held);
    }
}

#[tokio::test]
async fn limits_of_zero_are_none() {
    let upstream = Upstream::new().await;
    let policy =
        "{connectionPool: {tcp: {maxConnections: 0}, http: {http1MaxPendingRequests: 0, http2MaxRequests: 0}}}";
    let world = Arc::new(
        World::new(
            &(called_by(policy, &[&upstream]) + &rules("  - route: [{destination: {host: web.example.com}}]\n")),
        )
        .await,
    );
    upstream.hold(true);
    let mut asked = JoinSet::new();
    for _ in 0..50 {
        let world = Arc::clone(&world);
        asked.spawn(async move { ask(&world, get(Version::HTTP_11)).await });
    }
    until("all are there", || upstream.requests.now() == 50).await;
    upstream.hold(false);
    while let Some(answered) = asked.join_next().await {
        assert_eq!(answered.unwrap().unwrap(), 200);
    }
}

/// A server that speaks HTTP/2 as far as its settings, and answers nothing: neither requests nor pings, of which it tells.
async fn mute(pings: tokio::sync::watch::Sender<usize>) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let pings = pings.clone();
            tokio::spawn(async move {
                let mut preface = [0; 24];
                stream.read_exact(&mut preface).await?;
                stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
                let mut head = [0; 9];
                while stream.read_exact(&mut head).await.is_ok() {
                    let length = usize::from(head[1]) << 8 | usize::from(head[2]);
                    stream.read_exact(&mut vec![0; length]).await?;
                    pings.send_modify(|pings| *pings += usize::from(head[3] == 6));
                }
                std::io::Result::Ok(())
            });
        }
    });
    at
}

#[tokio::test]
async fn a_server_that_answers_no_pings_is_given_up() {
    let policy =
        "{connectionPool: {http: {h2UpgradePolicy: UPGRADE, http2KeepAlive: {interval: 20ms, timeout: 20ms}}}}";
    let (pings, mut seen) = tokio::sync::watch::channel(0);
    let at = mute(pings).await;
    let yaml = service("web", &[("v1", at)])
        .replace("  host: web.example.com\n", &format!("  host: web.example.com\n  trafficPolicy: {policy}\n"));
    let once = rules("  - retries: {attempts: 0}\n    route: [{destination: {host: web.example.com}}]\n");
    let world = World::new(&format!("{yaml}{once}")).await;
    let answer = tokio::time::timeout(PATIENCE, world.get("http://web.example.com/")).await.expect("it ends");
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::ConnectionLost);
    seen.wait_for(|pings| *pings > 0).await.unwrap();
}
