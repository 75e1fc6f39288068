//! The client over real sockets: connections, retries, deadlines, bodies, errors.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_core::error::{ErrorKind, RetryAdvice};
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::model::{
    BalancerPolicy, Cluster, ClusterKind, ClusterTls, Clusters, DirectResponse, Endpoints, Forward, HeaderChange,
    PathChange, Redirect, Route, RouteAction, RouteMatch, WeightedCluster,
};
use mesh_core::request_info::Deadline;
use mesh_core::state::EndpointState;
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A server that counts its connections and answers with `answer`. Each open connection holds the count.
async fn serve<F, A>(max_streams: u32, answer: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Reply> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let (answer, open) = (answer.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                let _open = open;
                let service = service_fn(move |request| {
                    let reply = answer(request);
                    async move { Ok::<_, Infallible>(reply.await) }
                });
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http2().max_concurrent_streams(max_streams);
                _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            });
        }
    });
    (address, accepted)
}

fn text(body: impl Into<Bytes>) -> Reply {
    Response::new(Full::new(body.into()).boxed_unsync())
}

/// Answers with method, path, host and body of the request.
async fn echo(request: Request<Incoming>) -> Reply {
    let host = request.headers().get("host").map_or("-", |host| host.to_str().unwrap());
    let line = format!("{} {} {host} ", request.method(), request.uri().path());
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    text([line.as_bytes(), &body].concat())
}

/// Answers so late that requests meet.
async fn slow(_: Request<Incoming>) -> Reply {
    tokio::time::sleep(Duration::from_millis(300)).await;
    text("late")
}

fn mesh(source: Fixed) -> Mesh {
    Mesh::builder().source(source).start().unwrap()
}

fn service(addresses: impl IntoIterator<Item = SocketAddr>) -> Mesh {
    mesh(Fixed::new().service("s:80", addresses))
}

fn get(uri: &str, version: Version) -> Request<Body> {
    Request::get(uri).version(version).body(Body::empty()).unwrap()
}

fn post(version: Version, body: &'static str) -> Request<Full<Bytes>> {
    Request::post("http://s:80/p").version(version).body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
}

async fn read<B>(response: Response<B>) -> String
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    String::from_utf8_lossy(&body).into_owned()
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    // The port stays taken, without a listener: no other test comes to listen there.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    Box::leak(Box::new(socket)).local_addr().unwrap()
}

/// The state of the only endpoint of `s:80`.
fn endpoint(mesh: &Mesh) -> Arc<EndpointState> {
    let view = mesh.store().find("s:80").unwrap().view().unwrap();
    let leaf = &view.clusters()[0].leaves()[0];
    leaf.state.endpoint(&leaf.endpoints.as_ref().unwrap().localities[0].endpoints[0].id, false)
}

#[tokio::test]
async fn requests_in_a_row_share_one_connection() {
    for (version, host) in [(Version::HTTP_11, "s:80"), (Version::HTTP_2, "-")] {
        let (address, accepted) = serve(100, echo).await;
        let mesh = service([address]);
        for _ in 0..50 {
            let response = mesh.client().request(post(version, "body")).await.unwrap();
            assert_eq!(response.version(), version);
            assert_eq!(read(response).await, format!("POST /p {host} body"));
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 1, "{version:?}");
    }
}

#[tokio::test]
async fn many_http2_requests_wait_for_one_dial_and_share_its_connection() {
    let (address, accepted) = serve(1000, echo).await;
    let mesh = service([address]);
    for response in join_all((0..50).map(|_| mesh.client().request(post(Version::HTTP_2, "x")))).await {
        read(response.unwrap()).await;
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn another_http2_connection_is_dialled_when_streams_run_out() {
    let (address, accepted) = serve(5, slow).await;
    let mesh = service([address]);
    // With the first response the peer's limit is known.
    read(mesh.client().request(post(Version::HTTP_2, "")).await.unwrap()).await;
    for response in join_all((0..20).map(|_| mesh.client().request(post(Version::HTTP_2, "")))).await {
        assert_eq!(read(response.unwrap()).await, "late");
    }
    // The connections after the first are taken to carry as many before their peer has said so.
    assert_eq!(accepted.load(Ordering::SeqCst), 4, "connections for 20 requests at 5 streams each");
}

#[tokio::test]
async fn what_a_peer_allowed_on_a_connection_that_is_gone_is_expected_of_the_next() {
    let (address, accepted) = serve(5, slow).await;
    let mut cluster = fixed_cluster("c", address);
    cluster.max_requests_per_connection = Some(10);
    let mesh = mesh(Fixed::new().routes("s:80", vec![route_to("c")]).cluster(cluster));
    for round in 0..2 {
        for response in join_all((0..5).map(|_| mesh.client().request(post(Version::HTTP_2, "")))).await {
            assert_eq!(read(response.unwrap()).await, "late", "{round}");
        }
    }
    // The first connection has had its ten requests.
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
    for response in join_all((0..20).map(|_| mesh.client().request(post(Version::HTTP_2, "")))).await {
        assert_eq!(read(response.unwrap()).await, "late");
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 1 + 4, "connections for 20 requests at 5 streams each");
}

#[tokio::test]
async fn a_request_that_waits_for_a_stream_is_sent_again_when_the_connection_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut patience = Duration::from_millis(300);
        let mut streams = 0;
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service = service_fn(async |request| Ok::<_, Infallible>(echo(request).await));
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder.max_concurrent_streams(streams);
                _ = tokio::time::timeout(patience, builder.serve_connection(TokioIo::new(stream), service)).await;
            });
            (patience, streams) = (Duration::from_secs(60), 100);
        }
    });
    let response = service([address]).client().request(get("http://s:80/", Version::HTTP_2)).await.unwrap();
    assert_eq!(read(response).await, "GET / - ");
}

#[tokio::test]
async fn a_peer_that_allows_no_stream_is_not_dialled_again_and_again() {
    let (address, accepted) = serve(0, echo).await;
    let mesh = service([address]);
    // The first may slip in before the peer has said so, and is refused then; the others wait.
    for _ in 0..3 {
        let request = mesh.client().request(post(Version::HTTP_2, ""));
        _ = tokio::time::timeout(Duration::from_millis(300), request).await;
    }
    let connections = accepted.load(Ordering::SeqCst);
    assert!((1..=3).contains(&connections), "{connections} connections for 3 requests");
}

#[tokio::test]
async fn a_failed_dial_is_tried_at_another_endpoint() {
    let (address, _) = serve(100, echo).await;
    let mesh = service([nobody().await, address]);
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for _ in 0..30 {
            assert!(mesh.client().request(post(version, "once")).await.is_ok());
        }
    }
}

#[tokio::test]
async fn when_nobody_answers_the_error_says_who_and_that_it_is_safe_to_try_again() {
    let address = nobody().await;
    let error = service([address]).client().get("http://s:80/").await.unwrap_err();
    assert_eq!((error.kind(), error.kind().retry()), (ErrorKind::ConnectFailure, RetryAdvice::Safe));
    let expected = format!("route default: cluster s:80: endpoint {address}: cannot connect to {address}: ");
    assert!(format!("{error:#}").starts_with(&expected), "{error:#}");
}

#[tokio::test]
async fn no_get_is_lost_to_connections_that_close_between_two_requests() {
    // Promises keep-alive and closes: whoever sends a second request on the connection finds it gone.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                _ = stream.read(&mut request).await;
                _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                tokio::time::sleep(Duration::from_micros(fastrand::u64(0..2000))).await;
            });
        }
    });
    let mesh = service([address]);
    for _ in 0..200 {
        assert_eq!(read(mesh.client().get("http://s:80/").await.unwrap()).await, "ok");
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..2000))).await;
    }
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_with_its_body_whatever_the_method() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let refused = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(refuse_once(stream, Arc::clone(&refused)));
        }
    });
    let response = service([address]).client().request(post(Version::HTTP_2, "again")).await.unwrap();
    assert_eq!(read(response).await, "again");
}

async fn refuse_once(stream: tokio::net::TcpStream, refused: Arc<AtomicUsize>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if refused.fetch_add(1, Ordering::SeqCst) == 0 {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            continue;
        }
        tokio::spawn(async move {
            let mut body = request.into_body();
            let mut whole = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                whole.extend_from_slice(&data);
            }
            respond.send_response(Response::new(()), false).unwrap().send_data(Bytes::from(whole), true).unwrap();
        });
    }
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    // Gives each piece back as it comes, so the exchange ends only if neither side waits for the other's end.
    let mirror = |request: Request<Incoming>| async {
        let pieces = request.into_body().into_data_stream().filter_map(async |piece| piece.ok());
        Response::new(StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece)))).boxed_unsync())
    };
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let (address, _) = serve(100, mirror).await;
        let client = service([address]).client();
        let (pieces, body) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
        let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(body));
        let request = Request::post("http://s:80/").version(version).body(body).unwrap();
        let response = tokio::spawn(async move { client.request(request).await.unwrap() });
        let piece = |text: &'static str| Ok(Frame::data(Bytes::from_static(text.as_bytes())));
        pieces.send(piece("0")).await.unwrap();
        let mut body = response.await.unwrap().into_body().into_data_stream();
        assert_eq!(body.next().await.unwrap().unwrap(), "0");
        for text in ["1", "2", "3"] {
            pieces.send(piece(text)).await.unwrap();
            assert_eq!(body.next().await.unwrap().unwrap(), text);
        }
        drop(pieces);
        // HTTP/2 may end with an empty piece.
        assert!(body.next().await.is_none_or(|end| end.unwrap().is_empty()));
    }
}

#[tokio::test]
async fn an_upgrade_passes_through() {
    let upgrade = |mut request: Request<Incoming>| async move {
        tokio::spawn(async move {
            let mut io = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
            let mut ping = [0; 4];
            io.read_exact(&mut ping).await.unwrap();
            io.write_all(b"pong").await.unwrap();
        });
        let mut reply = text("");
        *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        reply.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        reply.headers_mut().insert("upgrade", HeaderValue::from_static("test"));
        reply
    };
    let (address, _) = serve(100, upgrade).await;
    let mesh = service([address]);
    let request = Request::get("http://s:80/").header("connection", "upgrade").header("upgrade", "test");
    let mut response = mesh.client().request(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    io.write_all(b"ping").await.unwrap();
    let mut pong = [0; 4];
    io.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"pong");
}

/// A route for every request.
fn acting(action: RouteAction) -> Route {
    Route::new(RouteMatch::any(), action)
}

fn forwarding(change: impl FnOnce(&mut Forward)) -> Route {
    let mut forward = Forward::to("c");
    change(&mut forward);
    acting(RouteAction::Forward(forward))
}

fn fixed_cluster(name: &str, address: SocketAddr) -> Cluster {
    let mut cluster = Cluster::new(name, ClusterKind::Static(Endpoints::fixed([address])));
    cluster.protocol = mesh_core::model::ClusterProtocol::AsCaller;
    cluster
}

#[tokio::test]
async fn a_request_ends_at_its_deadline_and_so_does_its_body() {
    let stall = |request: Request<Incoming>| async move {
        if request.uri().path() == "/head" {
            std::future::pending::<()>().await;
        }
        // One piece, and then nothing.
        let one = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"some")))]);
        Response::new(StreamBody::new(one.chain(futures_util::stream::pending())).boxed_unsync())
    };
    let (address, _) = serve(100, stall).await;
    let route = forwarding(|forward| forward.timeout = Some(Duration::from_millis(200)));
    let mesh = mesh(Fixed::new().routes("s:80", vec![route]).cluster(fixed_cluster("c", address)));
    let started = Instant::now();
    let error = mesh.client().get("http://s:80/head").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let response = mesh.client().get("http://s:80/body").await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let mut request = get("http://s:80/head", Version::HTTP_11);
    request.extensions_mut().insert(Deadline(Instant::now() + Duration::from_millis(10)));
    assert_eq!(mesh.client().request(request).await.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn a_dropped_request_no_longer_counts_and_its_http1_connection_is_not_used_again() {
    let hang = |request: Request<Incoming>| async move {
        if request.uri().path() == "/hang" {
            std::future::pending::<()>().await;
        }
        text("ok")
    };
    for (version, connections) in [(Version::HTTP_11, 2), (Version::HTTP_2, 1)] {
        let (address, accepted) = serve(100, hang).await;
        let mesh = service([address]);
        let request = mesh.client().request(get("http://s:80/hang", version));
        assert!(tokio::time::timeout(Duration::from_millis(200), request).await.is_err());
        assert_eq!(endpoint(&mesh).in_flight(), 0);
        assert!(mesh.client().request(post(version, "")).await.is_ok());
        assert_eq!(accepted.load(Ordering::SeqCst), connections, "{version:?}");
    }
}

#[tokio::test]
async fn a_request_counts_as_in_flight_until_its_body_has_ended() {
    let (address, _) = serve(100, echo).await;
    let mesh = service([address]);
    let response = mesh.client().request(post(Version::HTTP_11, "x")).await.unwrap();
    assert_eq!(endpoint(&mesh).in_flight(), 1);
    read(response).await;
    assert_eq!(endpoint(&mesh).in_flight(), 0);
}

#[tokio::test]
async fn a_connection_retires_after_its_number_of_requests() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let (address, accepted) = serve(100, echo).await;
        let mut cluster = fixed_cluster("c", address);
        cluster.max_requests_per_connection = Some(5);
        let mesh = mesh(Fixed::new().routes("s:80", vec![route_to("c")]).cluster(cluster));
        for _ in 0..20 {
            read(mesh.client().request(post(version, "")).await.unwrap()).await;
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 4, "{version:?}");
        // What is left holds the count here and in the server's loop.
        let closed = async {
            while Arc::strong_count(&accepted) > 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), closed).await.expect("a retired connection closes");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_time() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let (address, accepted) = serve(100, echo).await;
        let mut cluster = fixed_cluster("c", address);
        cluster.idle_timeout = Some(Duration::from_millis(100));
        let mesh = mesh(Fixed::new().routes("s:80", vec![route_to("c")]).cluster(cluster));
        for _ in 0..2 {
            read(mesh.client().request(get("http://s:80/", version)).await.unwrap()).await;
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 2, "{version:?}");
    }
}

#[tokio::test]
async fn every_failure_has_its_kind_and_names_the_resource() {
    let (address, _) = serve(100, echo).await;
    let mut secured = fixed_cluster("c", address);
    secured.tls = ClusterTls::Unusable("TLS is not supported yet".into());
    let mesh = mesh(
        Fixed::new()
            .service("empty:80", [])
            .routes("gone:80", vec![route_to("no such cluster")])
            .routes("none:80", vec![])
            .routes("odd:80", vec![acting(RouteAction::Unusable("a reason".into()))])
            .routes("secure:80", vec![route_to("c")])
            .cluster(secured),
    );
    let cases = [
        ("http://unknown:80/", ErrorKind::UnknownTarget, "listener unknown:80: not among the fixed resources"),
        ("/", ErrorKind::BadRequest, "no authority"),
        ("http://c:99999/", ErrorKind::BadRequest, "malformed authority"),
        ("http://empty:80/", ErrorKind::NoHealthyEndpoint, "cluster empty:80: no healthy endpoint (0 known)"),
        ("http://gone:80/", ErrorKind::NoCluster, "cluster no such cluster"),
        ("http://none:80/x", ErrorKind::NoRoute, "no route for GET none:80/x"),
        ("http://odd:80/", ErrorKind::NoRoute, "a reason"),
        // Fails closed: nothing is sent in plaintext.
        ("http://secure:80/", ErrorKind::Security, "cluster c: TLS is not supported yet"),
    ];
    for (uri, kind, text) in cases {
        let error = mesh.client().get(uri).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{uri}: {error}");
        assert!(format!("{error:#}").contains(text), "{uri}: {error:#}");
    }
}

#[tokio::test]
async fn answers_that_the_configuration_asks_for_are_responses() {
    let mut redirect = Redirect::new(StatusCode::FOUND);
    redirect.host = Some("other".into());
    let direct = DirectResponse::new(StatusCode::IM_A_TEAPOT, "tea");
    let mesh = mesh(
        Fixed::new()
            .routes("redirect:80", vec![acting(RouteAction::Redirect(redirect))])
            .routes("direct:80", vec![acting(RouteAction::Direct(direct))]),
    );
    let response = mesh.client().get("http://redirect:80/x?y").await.unwrap();
    assert_eq!(
        (response.status(), response.headers()["location"].as_bytes()),
        (StatusCode::FOUND, &b"http://other/x?y"[..])
    );
    let response = mesh.client().get("http://direct:80/").await.unwrap();
    assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
    assert_eq!(read(response).await, "tea");
    // A connection has no answer: it fails, and says which one it would have been.
    let error = mesh.connect("direct", 80).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute);
    assert!(format!("{error:#}").contains("answers with 418, and a connector cannot: tea"), "{error:#}");
}

#[tokio::test]
async fn what_a_route_changes_is_what_the_server_sees() {
    let report = |request: Request<Incoming>| async move {
        let header = |name| request.headers().get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
        text(format!("{} host={} x={}", request.uri(), header("host"), header("x-added")))
    };
    let (address, _) = serve(100, report).await;
    let mut route = forwarding(|forward| {
        forward.path = Some(PathChange::Full("/new".into()));
        forward.authority = Some(HeaderValue::from_static("elsewhere:9"));
    });
    let (name, value) = (HeaderName::from_static("x-added"), HeaderValue::from_static("1"));
    route.mutations.request.push(HeaderChange::Set(name.clone(), value.clone().into()));
    route.mutations.response.push(HeaderChange::Set(name.clone(), value.clone().into()));
    let mesh = mesh(Fixed::new().routes("s:80", vec![route]).cluster(fixed_cluster("c", address)));
    for (version, expected) in [
        (Version::HTTP_11, "/new?q=1 host=elsewhere:9 x=1"),
        (Version::HTTP_2, "http://elsewhere:9/new?q=1 host=- x=1"),
    ] {
        let response = mesh.client().request(get("http://s:80/old?q=1", version)).await.unwrap();
        assert_eq!(response.headers()[&name], value);
        assert_eq!(read(response).await, expected);
    }
}

#[tokio::test]
async fn weights_divide_the_requests() {
    let (a, _) = serve(100, |_| async { text("a") }).await;
    let (b, _) = serve(100, |_| async { text("b") }).await;
    let weighted = vec![WeightedCluster::new("a", 80), WeightedCluster::new("b", 20)];
    let route = forwarding(|forward| forward.clusters = Clusters::Weighted(weighted));
    let fixed = Fixed::new().routes("s:80", vec![route]);
    let mesh = mesh(fixed.cluster(fixed_cluster("a", a)).cluster(fixed_cluster("b", b)));
    let mut from_b = 0;
    for _ in 0..1000 {
        from_b += usize::from(read(mesh.client().get("http://s:80/").await.unwrap()).await == "b");
    }
    // Six standard deviations.
    assert!((124..276).contains(&from_b), "{from_b}");
}

#[tokio::test]
async fn round_robin_takes_turns_whether_or_not_a_connection_is_there() {
    let (a, _) = serve(100, |_| async { text("a") }).await;
    let (b, _) = serve(100, |_| async { text("b") }).await;
    let mut cluster = fixed_cluster("c", a);
    cluster.kind = ClusterKind::Static(Endpoints::fixed([a, b]));
    cluster.balancer = BalancerPolicy::RoundRobin;
    let mesh = mesh(Fixed::new().routes("s:80", vec![route_to("c")]).cluster(cluster));
    let mut answers = String::new();
    for _ in 0..10 {
        answers += &read(mesh.client().get("http://s:80/").await.unwrap()).await;
    }
    assert!(["ababababab", "bababababa"].contains(&answers.as_str()), "{answers}");
}

#[tokio::test]
async fn a_client_that_the_application_has_can_go_through_the_mesh() {
    use tower::{Layer, ServiceExt};
    let (address, _) = serve(100, echo).await;
    let mesh = service([address]);
    let own = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http::<Body>();
    let response = mesh.client_layer().layer(own).oneshot(post(Version::HTTP_11, "layer")).await.unwrap();
    assert_eq!(read(response).await, "POST /p s:80 layer");
    let own = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
    let own = own.build::<_, Full<Bytes>>(mesh.connector());
    // This client leaves the standard port out.
    assert_eq!(read(own.request(post(Version::HTTP_11, "connector")).await.unwrap()).await, "POST /p s connector");
}

/// A boxed body is pinned where it is, so a stream that cannot move is as good as any.
#[tokio::test]
async fn any_body_can_be_sent() {
    let (address, _) = serve(100, echo).await;
    let unmovable = futures_util::stream::once(async { Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"once"))) });
    let body: Pin<Box<dyn http_body::Body<Data = Bytes, Error = Infallible> + Send>> =
        Box::pin(StreamBody::new(unmovable));
    let response =
        service([address]).client().request(Request::post("http://s:80/").body(body).unwrap()).await.unwrap();
    assert_eq!(read(response).await, "POST / s:80 once");
}

#[tokio::test]
async fn requests_through_a_pass_through_cluster_share_a_connection_until_it_has_been_idle() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let (address, accepted) = serve(100, echo).await;
        let mut cluster = fixed_cluster("through", address);
        cluster.kind = ClusterKind::PassThrough;
        cluster.idle_timeout = Some(Duration::from_secs(2));
        let target = address.to_string();
        let mesh = mesh(Fixed::new().routes(&target, vec![route_to("through")]).cluster(cluster));
        for _ in 0..3 {
            let response = mesh.client().request(get(&format!("http://{target}/"), version)).await.unwrap();
            assert!(read(response).await.starts_with("GET / "));
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 1, "{version:?}");
        let view = mesh.store().find(&target).unwrap().peek().unwrap();
        let state = &view.clusters()[0].leaves()[0].state;
        let in_use = || {
            let mut count = 0;
            state.each(|_| count += 1);
            count
        };
        assert_eq!(in_use(), 1);
        let forgotten = async {
            while in_use() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), forgotten).await.expect("in time");
    }
}
