//! Calls of all four kinds through the mesh on both sides, over real sockets.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::{Calculator, CalculatorClient, Number, channel, number, start, within};
use mesh_core::error::ErrorKind;
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::model::{Forward, MaxStreamDuration, Route, RouteAction, RouteMatch};
use mesh_tonic::status::mesh_error;
use mesh_tower::drain::Phase;
use mesh_tower::{Mesh, Repeat};
use tokio_stream::StreamExt;
use tonic::{Code, Request, Status, Streaming};

async fn values(stream: Streaming<Number>) -> Result<Vec<i64>, Status> {
    stream.map(|next| next.map(|number| number.value)).collect().await
}

#[tokio::test]
async fn calls_of_all_four_kinds() {
    let server = start(Calculator::default()).await;
    let client = CalculatorClient(channel(&[server.address]));
    assert_eq!(within(client.double(21)).await.unwrap(), 42);
    let count = within(client.count(Request::new(number(50)))).await.unwrap();
    assert_eq!(within(values(count)).await.unwrap(), (0..50).rev().collect::<Vec<_>>());
    assert_eq!(within(client.sum(tokio_stream::iter((1..=100).map(number)))).await.unwrap(), 5050);

    // Each answer is asked for by the one before: neither side waits for the other to end.
    let (send, numbers) = tokio::sync::mpsc::channel(1);
    let mut sums = within(client.sums(tokio_stream::wrappers::ReceiverStream::new(numbers))).await.unwrap();
    for (value, sum) in [(1, 1), (2, 3), (3, 6)] {
        send.send(number(value)).await.unwrap();
        assert_eq!(within(sums.next()).await.unwrap().unwrap().value, sum);
    }
    drop(send);
    assert!(within(sums.next()).await.is_none());
    assert_eq!(server.mesh.drain().in_flight(), 0);
}

#[tokio::test]
async fn many_calls_at_once_share_connections_and_reach_every_server() {
    let servers = [start(Calculator::default()).await, start(Calculator::default()).await];
    let client = CalculatorClient(channel(&servers.each_ref().map(|server| server.address)));
    let calls: Vec<_> = (0..500)
        .map(|value| {
            let client = client.clone();
            tokio::spawn(async move { (client.double(value).await.unwrap(), value * 2) })
        })
        .collect();
    for call in calls {
        let (answer, expected) = within(call).await.unwrap();
        assert_eq!(answer, expected);
    }
}

#[tokio::test]
async fn the_servers_own_status_arrives_as_it_is() {
    let server = start(Calculator::default()).await;
    let client = CalculatorClient(channel(&[server.address]));
    let status = within(client.double(-1)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "no negative numbers, please"));
    assert!(mesh_error(&status).is_none());
    let status = within(client.unary("Nothing", Request::new(number(1)))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_target_that_makes_no_sense_fails_the_call_and_says_why() {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    for (target, says) in [
        ("", "target \"\": not a name or name:port"),
        ("ftp://x", "target \"ftp://x\": the scheme \"ftp\" is not one of xds, http"),
        ("x:99999", "target \"x:99999\": the port is no number up to 65535"),
    ] {
        let client = CalculatorClient(mesh_tonic::channel(&mesh, target));
        let status = within(client.double(1)).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Internal, says));
        assert_eq!(mesh_error(&status).map(|error| error.kind()), Some(ErrorKind::BadRequest));
    }
}

#[tokio::test]
async fn every_failure_on_the_way_is_a_status_with_the_meshs_message() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let no_route = Route::new(RouteMatch::any(), RouteAction::Unusable("asks for what is not built".into()));
    let source = Fixed::new()
        .service("empty:1", [])
        .service("gone:1", [gone])
        .routes("unusable:1", vec![no_route])
        .routes("nothing:1", vec![])
        .routes("cluster:1", vec![route_to("absent")]);
    let mesh = Mesh::builder().source(source).start().unwrap();
    // (target, kind, what the message contains)
    let table = [
        ("unknown:1", ErrorKind::UnknownTarget, "listener unknown:1: not among the fixed resources"),
        ("nothing:1", ErrorKind::NoRoute, "no route for POST nothing:1/test.Calculator/Double"),
        ("unusable:1", ErrorKind::NoRoute, "asks for what is not built"),
        ("cluster:1", ErrorKind::NoCluster, "cluster absent"),
        ("empty:1", ErrorKind::NoHealthyEndpoint, "cluster empty:1: no healthy endpoint (0 known)"),
        ("gone:1", ErrorKind::ConnectFailure, "gone:1"),
    ];
    for (target, kind, says) in table {
        let client = CalculatorClient(mesh_tonic::channel(&mesh, target));
        let status = within(client.double(1)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{target}: {status:?}");
        assert_eq!(mesh_error(&status).map(|error| error.kind()), Some(kind), "{target}: {status:?}");
        assert!(status.message().contains(says), "{target}: {}", status.message());
    }
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_on_both_sides() {
    let server = start(Calculator::default()).await;
    let client = CalculatorClient(channel(&[server.address]));
    let mut slow = Request::new(number(10_000));
    slow.set_timeout(Duration::from_millis(200));
    let began = std::time::Instant::now();
    let status = within(client.unary("Double", slow)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(began.elapsed() < Duration::from_secs(5));
    within(async {
        while server.mesh.drain().in_flight() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;

    let mut endless = Request::new(number(i64::MAX));
    endless.set_timeout(Duration::from_millis(200));
    let stream = within(client.count(endless)).await.unwrap();
    let status = within(values(stream)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");

    let mut past = Request::new(number(1));
    past.metadata_mut().insert("grpc-timeout", "0n".parse().unwrap());
    assert_eq!(within(client.unary("Double", past)).await.unwrap_err().code(), Code::DeadlineExceeded);
    let mut nonsense = Request::new(number(1));
    nonsense.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    assert_eq!(within(client.unary("Double", nonsense)).await.unwrap_err().code(), Code::Internal);
}

/// gRFC A31: the nearer of the two is the deadline, and the server is told.
#[tokio::test]
async fn a_route_limits_a_call_and_the_server_knows() {
    let server = start(Calculator::default()).await;
    let mut limit = MaxStreamDuration::default();
    limit.limit = Some(Duration::from_secs(5));
    let mut forward = Forward::to("calculator:50051");
    forward.max_stream_duration = Some(limit);
    let route = Route::new(RouteMatch::any(), RouteAction::Forward(forward));
    let source = Fixed::new().service("calculator:50051", [server.address]).routes("calculator:50051", vec![route]);
    let mesh = Mesh::builder().source(source).start().unwrap();
    let client = CalculatorClient(mesh_tonic::channel(&mesh, "xds:///calculator:50051"));
    // Twice: the first call waits for its connection, the second finds it open.
    for _ in 0..2 {
        for (own, expected) in [(None, 2_000..=5_000), (Some(100), 2_000..=5_000), (Some(1), 0..=1_000)] {
            let mut request = Request::new(number(0));
            if let Some(seconds) = own {
                request.set_timeout(Duration::from_secs(seconds));
            }
            let left = within(client.unary("Left", request)).await.unwrap().into_inner().value;
            assert!(expected.contains(&left), "own timeout {own:?} s: the server was told {left} ms");
        }
    }
}

/// gRFC A31: the server itself answers, for clients that do not watch the time.
#[tokio::test]
async fn a_server_answers_when_the_deadline_has_passed() {
    let server = start(Calculator::default()).await;
    let mesh = Mesh::builder().source(Fixed::new().service("calculator:50051", [server.address])).start().unwrap();
    // The mesh's client knows deadlines by the extension that a channel makes of the header.
    let client = mesh.client_for("calculator:50051").unwrap();
    let client = tower::ServiceExt::map_request(client, |mut request: http::Request<tonic::body::Body>| {
        request.headers_mut().insert("grpc-timeout", "100m".parse().unwrap());
        request
    });
    let mut grpc = tonic::client::Grpc::new(client);
    within(grpc.ready()).await.unwrap();
    let codec = tonic_prost::ProstCodec::<Number, Number>::default();
    let path = http::uri::PathAndQuery::from_static("/test.Calculator/Double");
    let status = within(grpc.unary(Request::new(number(10_000)), path, codec)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "no response by the deadline"));
}

#[tokio::test]
async fn a_call_that_is_made_for_another_one_has_at_most_its_deadline() {
    let last = start(Calculator::default()).await;
    let first = start(Calculator { next: Some(channel(&[last.address])) }).await;
    let client = CalculatorClient(channel(&[first.address]));
    let ask = async |timeout: Option<Duration>| {
        let mut request = Request::new(number(0));
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        within(client.unary("Relay", request)).await.unwrap().into_inner().value
    };
    assert_eq!(ask(None).await, -1);
    let left = ask(Some(Duration::from_secs(10))).await;
    assert!((1..10_000).contains(&left), "{left} ms");
}

/// How many tries each call took.
#[derive(Clone, Debug, Default)]
struct Tries(std::sync::Arc<std::sync::Mutex<Vec<u32>>>);

impl mesh_core::request_info::Observer for Tries {
    fn on_end(&self, request: &mesh_core::request_info::RequestInfo) {
        self.0.lock().unwrap().push(request.attempts);
    }
}

#[tokio::test]
async fn a_call_says_itself_whether_it_may_be_made_more_than_once() {
    let gone = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tries = Tries::default();
    let source = Fixed::new().service("gone:1", [gone(), gone()]);
    let mesh = Mesh::builder().source(source).observer(tries.clone()).start().unwrap();
    let client = CalculatorClient(mesh_tonic::channel(&mesh, "gone:1"));
    // Nobody took a connection, so that it was certainly not processed.
    for (repeat, expected) in [(None, 2), (Some(Repeat::Never), 1), (Some(Repeat::IfUnprocessed), 2)] {
        let mut call = Request::new(number(1));
        if let Some(repeat) = repeat {
            call.extensions_mut().insert(repeat);
        }
        assert_eq!(within(client.unary("Double", call)).await.unwrap_err().code(), Code::Unavailable);
        assert_eq!(tries.0.lock().unwrap().pop(), Some(expected), "{repeat:?}");
    }
}

#[tokio::test]
async fn dropping_a_call_cancels_it_at_the_server() {
    let server = start(Calculator::default()).await;
    let client = CalculatorClient(channel(&[server.address]));
    let mut stream = within(client.count(Request::new(number(i64::MAX)))).await.unwrap();
    within(stream.next()).await.unwrap().unwrap();
    assert_eq!(server.mesh.drain().in_flight(), 1);
    drop(stream);
    within(async {
        while server.mesh.drain().in_flight() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_drain_finishes_streams_and_refuses_nothing() {
    let old = start(Calculator::default()).await;
    let client = CalculatorClient(channel(&[old.address]));
    let stream = within(client.count(Request::new(number(1000)))).await.unwrap();
    let drain = old.mesh.drain().clone();
    tokio::spawn(async move { drain.begin().await });
    within(old.mesh.drain().reached(Phase::LameDuck)).await;
    assert_eq!(within(client.double(4)).await.unwrap(), 8, "a lame duck still answers");
    assert_eq!(within(values(stream)).await.unwrap().len(), 1000);
    within(old.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn tonics_own_routes_may_be_served_by_the_meshs_server() {
    use tower_layer::Layer;
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr();
    let routes = tonic::service::Routes::new(Calculator::default());
    let service = mesh_tonic::server_layer(&mesh).layer(routes.prepare());
    tokio::spawn(mesh_tower::server::serve(listener, service).into_future());
    let client = CalculatorClient(channel(&[address]));
    assert_eq!(within(client.double(21)).await.unwrap(), 42);
    let count = within(client.count(Request::new(number(5)))).await.unwrap();
    assert_eq!(within(values(count)).await.unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h21_a_million_small_messages_on_one_stream_both_ways_reset_nothing() {
    const MANY: i64 = 1_000_000;
    let server = start(Calculator::default()).await;
    let client = CalculatorClient(channel(&[server.address]));
    let mut sums = client.sums(tokio_stream::iter((0..MANY).map(|_| number(1)))).await.unwrap();
    let (mut last, mut seen) = (0, 0);
    while let Some(next) = sums.next().await {
        last = next.expect("no reset").value;
        seen += 1;
    }
    assert_eq!((seen, last), (MANY, MANY));
}

/// What a server says to a call of one message, of which this is the frame.
async fn status_of(address: SocketAddr, encoding: &str, frame: Vec<u8>) -> String {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://calculator/test.Calculator/Double")
        .header("content-type", "application/grpc")
        .header("grpc-encoding", encoding)
        .body(http_body_util::Full::new(bytes::Bytes::from(frame)));
    let response = within(send.send_request(request.unwrap())).await.unwrap();
    let status = |headers: &http::HeaderMap| headers.get("grpc-status").map(|it| it.to_str().unwrap().to_owned());
    let of_head = status(response.headers());
    let body = within(http_body_util::BodyExt::collect(response.into_body())).await.unwrap();
    of_head.or_else(|| status(body.trailers()?)).expect("a status")
}

#[tokio::test]
async fn h16_a_message_that_would_unpack_or_is_said_to_be_large_is_refused_and_never_unpacked() {
    let server = start(Calculator::default()).await;
    let (unimplemented, out_of_range) = ("12", "11");
    for encoding in ["gzip", "deflate", "zstd", "br"] {
        let frame = [&[1, 0, 0, 0, 4][..], b"pack"].concat();
        assert_eq!(status_of(server.address, encoding, frame).await, unimplemented, "{encoding}");
    }
    let frame = [&[0, 0xff, 0xff, 0xff, 0xff][..], &[0; 1000]].concat();
    assert_eq!(status_of(server.address, "identity", frame).await, out_of_range);
}
