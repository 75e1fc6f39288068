//! The client where things do not go smoothly: what must not be sent, not be sent again, not be waited for, and
//! what is said of it in the end. Each of it on the first request, which takes the long way, and on the next ones.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use mesh_core::error::ErrorKind;
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::model::{
    Cluster, ClusterKind, DirectResponse, Endpoints, Forward, Fraction, HeaderTest, RetryPolicy, Route, RouteAction,
    RouteMatch, StringTest,
};
use mesh_core::request_info::{Deadline, Observer, RequestInfo};
use mesh_tower::body::Body;
use mesh_tower::{Client, Mesh};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A server by hand: it answers as long as `answers` says so for the number of the request, from 1, and closes the
/// connection without a word otherwise. Counts connections and requests.
async fn serve(answers: fn(usize) -> bool) -> (SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (connections, requests) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (accepted, received) = (Arc::clone(&connections), Arc::clone(&requests));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            accepted.fetch_add(1, Ordering::SeqCst);
            let received = Arc::clone(&received);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                // Requests here have no body and are read in one piece.
                while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {
                    if !answers(received.fetch_add(1, Ordering::SeqCst) + 1) {
                        return;
                    }
                    stream.write_all(ANSWER).await.unwrap();
                }
            });
        }
    });
    (address, connections, requests)
}

fn client(source: Fixed) -> Client {
    Mesh::builder().source(source).start().unwrap().client()
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

async fn ok(client: &Client, uri: &str) {
    let response = client.get(uri).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
}

#[tokio::test]
async fn what_was_to_be_secret_is_not_sent_in_plaintext() {
    let (address, connections, _) = serve(|_| true).await;
    let mesh = Mesh::builder().source(Fixed::new().service("s:443", [address])).start().unwrap();
    for _ in 0..2 {
        let error = mesh.client().get("https://s/").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Security);
        let fixed = mesh.client_for("s:443").unwrap();
        assert_eq!(fixed.get("https://s/").await.unwrap_err().kind(), ErrorKind::Security);
    }
    let pooled = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new());
    let pooled = pooled.build::<_, http_body_util::Empty<bytes::Bytes>>(mesh.connector());
    assert!(pooled.get("https://s/".parse().unwrap()).await.is_err());
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_name_without_a_port_is_that_of_port_80_whatever_channels_there_are() {
    let (grpc, connections, _) = serve(|_| true).await;
    let (http, _, _) = serve(|_| true).await;
    let source = Fixed::new().service("orders", [grpc]).service("orders:80", [http]);
    let mesh = Mesh::builder().source(source).start().unwrap();
    let _channel = mesh.client_for("orders").unwrap();
    for _ in 0..2 {
        ok(&mesh.client(), "http://orders/").await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0, "the channel's target");
}

#[tokio::test]
async fn a_request_that_kills_its_server_is_sent_twice_at_most() {
    // The first request of each connection is answered; then the poison comes.
    let (address, _, requests) = serve(|number| number <= 4).await;
    let client = client(Fixed::new().service("s:80", [address]));
    // Several connections in the pool, each of which could be tried.
    futures_util::future::join_all((0..4).map(|_| ok(&client, "http://s/"))).await;
    let error = client.get("http://s/poison").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error}");
    assert_eq!(requests.load(Ordering::SeqCst), 4 + 2);
}

/// A server that ends for good with the first request for `/poison`: connections, listener, all of it.
async fn mortal(requests: &Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (dead, requests) = (Arc::new(tokio::sync::Notify::new()), Arc::clone(requests));
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let mut stream = tokio::select! {
                _ = dead.notified() => return,
                accepted = listener.accept() => accepted.unwrap().0,
            };
            let (dead, requests) = (Arc::clone(&dead), Arc::clone(&requests));
            connections.spawn(async move {
                let mut buffer = [0; 4096];
                loop {
                    let count = stream.read(&mut buffer).await.unwrap_or_default();
                    requests.fetch_add(usize::from(count > 0), Ordering::SeqCst);
                    if count == 0 || buffer.starts_with(b"GET /poison") {
                        if count > 0 {
                            dead.notify_one();
                        }
                        return;
                    }
                    stream.write_all(ANSWER).await.unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_request_that_kills_its_server_does_not_go_on_to_kill_all_the_others() {
    let requests = Arc::<AtomicUsize>::default();
    let servers = [mortal(&requests).await, mortal(&requests).await, mortal(&requests).await];
    let client = client(Fixed::new().service("s:80", servers));
    // An old connection to each of them.
    futures_util::future::join_all((0..30).map(|_| ok(&client, "http://s/"))).await;
    let before = requests.load(Ordering::SeqCst);
    client.get("http://s/poison").await.unwrap_err();
    let sent = requests.load(Ordering::SeqCst) - before;
    assert!(sent <= 2, "sent {sent} times");
}

/// As a control plane of another kind has it (`retriable_request_headers`).
#[tokio::test]
async fn only_requests_that_the_policy_names_are_tried_again() {
    let tries = Tries::default();
    let gone = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut policy = RetryPolicy::default();
    let is = |name: &str, value: &str| HeaderTest::Value {
        name: name.into(),
        test: StringTest::Exact { value: value.into(), ignore_case: false },
        invert: false,
        missing_is_empty: false,
    };
    policy.request_headers = vec![is(":method", "GET"), is("x-again", "yes")];
    let route = forwarding(|forward| forward.retry = Some(Arc::new(policy)));
    let cluster = Cluster::new("c", ClusterKind::Static(Endpoints::fixed([gone(), gone()])));
    let source = Fixed::new().routes("s:80", vec![route]).cluster(cluster);
    let client = Mesh::builder().source(source).observer(tries.clone()).start().unwrap().client();
    for (method, again, expected) in [("GET", "", 2), ("POST", "", 1), ("POST", "yes", 2), ("POST", "no", 1)] {
        let request = Request::builder().method(method).uri("http://s/").header("x-again", again);
        client.request(request.body(Body::empty()).unwrap()).await.unwrap_err();
        assert_eq!(tries.0.lock().unwrap().pop(), Some(expected), "{method} {again:?}");
    }
}

/// How many tries each request took.
#[derive(Clone, Debug, Default)]
struct Tries(Arc<Mutex<Vec<u32>>>);

impl Observer for Tries {
    fn on_end(&self, request: &RequestInfo) {
        self.0.lock().unwrap().push(request.attempts);
    }
}

#[tokio::test]
async fn fractions_are_drawn_once() {
    let (address, _, _) = serve(|_| true).await;
    let mut sometimes = acting(RouteAction::Direct(DirectResponse::new(StatusCode::IM_A_TEAPOT, "")));
    sometimes.matches.fraction = Some(Fraction::new(1, 2));
    let source = Fixed::new().routes("s:80", vec![sometimes, route_to("c")]);
    let client = client(source.cluster(Cluster::new("c", ClusterKind::Static(Endpoints::fixed([address])))));
    let mut direct = 0;
    for _ in 0..2000 {
        let response = client.get("http://s/").await.unwrap();
        direct += usize::from(response.status() == StatusCode::IM_A_TEAPOT);
        response.into_body().collect().await.unwrap();
    }
    // Nine standard deviations around a half; a quarter, if it were drawn twice.
    assert!((800..=1200).contains(&direct), "{direct} of 2,000");
}

#[tokio::test]
async fn the_layer_holds_deadlines_as_the_client_does() {
    use tower::{Layer, ServiceExt};
    let (address, _, _) = serve(|_| true).await;
    let source = Fixed::new().routes("s:80", vec![forwarding(|forward| forward.timeout = Some(Duration::ZERO))]);
    let source = source.cluster(Cluster::new("c", ClusterKind::Static(Endpoints::fixed([address]))));
    let mesh = Mesh::builder().source(source).start().unwrap();
    let endless = || futures_util::stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>();
    let calls = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&calls);
    let inner = tower::service_fn(move |request: Request<Body>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            match request.uri().path() {
                "/silent" => std::future::pending().await,
                _ => Ok::<_, Infallible>(http::Response::new(StreamBody::new(endless()))),
            }
        }
    });
    let send = |path: &str, deadline: Instant| {
        let request =
            Request::get(format!("http://s{path}")).extension(Deadline(deadline)).body(Body::empty()).unwrap();
        let sent = mesh.client_layer().layer(inner.clone()).oneshot(request);
        async { tokio::time::timeout(Duration::from_secs(20), sent).await.expect("in time") }
    };
    let kind = |error: mesh_core::error::MeshError| error.kind();
    let error = send("/", Instant::now() - Duration::from_millis(1)).await.map(drop).unwrap_err();
    assert_eq!((kind(error), calls.load(Ordering::SeqCst)), (ErrorKind::Timeout, 0));
    let soon = || Instant::now() + Duration::from_millis(50);
    assert_eq!(kind(send("/silent", soon()).await.map(drop).unwrap_err()), ErrorKind::Timeout);
    let body = send("/endless", soon()).await.unwrap().into_body();
    let read = tokio::time::timeout(Duration::from_secs(20), body.collect()).await.expect("in time");
    assert_eq!(kind(read.map(drop).unwrap_err()), ErrorKind::Timeout);
}

#[tokio::test]
async fn the_layer_tries_another_endpoint_where_one_refuses_and_says_what_failed() {
    use tower::{Layer, ServiceExt};
    let (address, _, _) = serve(|_| true).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let pooled = || {
        let executor = hyper_util::rt::TokioExecutor::new();
        hyper_util::client::legacy::Client::builder(executor).pool_max_idle_per_host(0).build_http::<Body>()
    };
    let source = Fixed::new().service("s:80", [address, nobody]).service("gone:80", [nobody]);
    let seen = Seen::default();
    let mesh = Mesh::builder().source(source).observer(seen.clone()).start().unwrap();
    let send = |uri: &str, body: &'static str| {
        let request = Request::put(uri).body(http_body_util::Full::new(Bytes::from_static(body.as_bytes()))).unwrap();
        mesh.client_layer().layer(pooled()).oneshot(request)
    };
    for _ in 0..40 {
        let response = send("http://s/", "once").await.expect("the other endpoint is there");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    }
    let error = send("http://gone/", "").await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectFailure);
    let text = format!("{error:#}");
    assert!(
        text.starts_with(&format!("route default: cluster gone:80: endpoint {nobody}: the inner client")),
        "{text}"
    );
    assert!(text.to_lowercase().contains("connection refused"), "the inner client's own words: {text}");
    let told = seen.0.lock().unwrap();
    assert!(told.iter().any(|line| line == "s default s:80 Some(200) None 2 true"), "{told:?}");
    assert_eq!(told.last().unwrap(), "gone default gone:80 None Some(ConnectFailure) 2 true");
}

/// A limit of the inner client holds its permit in its future, which is over with the head of the response.
#[tokio::test]
async fn the_layer_lets_go_of_the_inner_clients_future_before_the_body_is_read() {
    use tower::{Layer, Service, ServiceExt};
    let inner = tower::service_fn(|_: Request<Body>| async {
        Ok::<_, Infallible>(http::Response::new(http_body_util::Full::new(Bytes::from_static(b"ok"))))
    });
    let limited = tower::limit::ConcurrencyLimitLayer::new(1).layer(inner);
    let source = Fixed::new().service("s:80", ["127.0.0.1:1".parse().unwrap()]);
    let mesh = Mesh::builder().source(source).start().unwrap();
    let mut client = mesh.client_layer().layer(limited);
    let mut unread = Vec::new();
    for _ in 0..3 {
        let ready = tokio::time::timeout(Duration::from_secs(20), ServiceExt::<Request<Body>>::ready(&mut client));
        let request = Request::get("http://s/").body(Body::empty()).unwrap();
        unread.push(ready.await.expect("the permit is free").unwrap().call(request).await.unwrap());
    }
}

#[tokio::test]
async fn every_try_of_the_inner_client_has_the_requests_extensions() {
    use tower::{Layer, ServiceExt};
    let seen = Arc::<Mutex<Vec<Option<u8>>>>::default();
    let log = Arc::clone(&seen);
    let inner = tower::service_fn(move |request: Request<Body>| {
        log.lock().unwrap().push(request.extensions().get::<u8>().copied());
        async { Err::<http::Response<Body>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)) }
    });
    let source = Fixed::new().service("s:80", ["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()]);
    let mesh = Mesh::builder().source(source).start().unwrap();
    let request = Request::get("http://s/").extension(7u8).body(Body::empty()).unwrap();
    mesh.client_layer().layer(inner).oneshot(request).await.map(drop).unwrap_err();
    assert_eq!(*seen.lock().unwrap(), [Some(7); 2]);
}

/// gRPC's stubs send a path alone; the target has the authority.
#[tokio::test]
async fn filters_see_the_authority_of_a_client_with_one_target() {
    use mesh_core::model::{Fault, FaultAbort, FilterConfig, HeaderTest, NamedFilter, StringTest};
    let (address, _, _) = serve(|_| true).await;
    let test = |name: &str, value: &str| HeaderTest::Value {
        name: name.into(),
        test: StringTest::Exact { value: value.into(), ignore_case: false },
        invert: false,
        missing_is_empty: false,
    };
    for header in [test("end-user", "jason"), test(":authority", "s:80")] {
        let mut fault = Fault::default();
        fault.abort = Some(FaultAbort::http(555, Fraction::ALL));
        fault.headers = vec![header];
        let filter = NamedFilter::new("fault", FilterConfig::Fault(Arc::new(fault)));
        let source = Fixed::new().service("s:80", [address]).filters("s:80", vec![filter]);
        let mesh = Mesh::builder().source(source).start().unwrap();
        let client = mesh.client_for("s:80").unwrap();
        for uri in ["/", "http://user:secret@elsewhere/"] {
            let request = Request::get(uri).header("end-user", "jason").body(Body::empty()).unwrap();
            assert_eq!(client.request(request).await.unwrap().status().as_u16(), 555, "{uri}");
        }
    }
}

#[tokio::test]
async fn a_peer_that_speaks_no_http2_is_dialled_a_bounded_number_of_times() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dials = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&dials);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let client = client(Fixed::new().service("s:80", [address]));
    let request = Request::post("http://s/").header("content-type", "application/grpc").body(Body::empty()).unwrap();
    let error = tokio::time::timeout(Duration::from_secs(20), client.request(request)).await.expect("it ends");
    error.map(drop).unwrap_err();
    let dials = dials.load(Ordering::SeqCst);
    assert!((1..=6).contains(&dials), "{dials} dials for three tries");
}

/// What an inner client does for a request may be refused by somebody else, when the request has long been sent.
#[tokio::test]
async fn the_layer_does_not_take_any_refusal_for_that_of_the_endpoint() {
    use tower::{Layer, ServiceExt};
    let calls = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&calls);
    let inner = tower::service_fn(move |_: Request<Body>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err::<http::Response<Body>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)) }
    });
    let source = Fixed::new().service("s:80", ["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()]);
    let mesh = Mesh::builder().source(source).start().unwrap();
    let request = Request::post("http://s/pay").body(Body::empty()).unwrap();
    let error = mesh.client_layer().layer(inner).oneshot(request).await.map(drop).unwrap_err();
    assert_eq!((error.kind(), calls.load(Ordering::SeqCst)), (ErrorKind::ConnectionLost, 1));
}

/// The same retry as everywhere: what may have been processed is not sent again.
#[tokio::test]
async fn the_layer_does_not_send_again_what_may_have_been_processed() {
    use tower::{Layer, ServiceExt};
    let calls = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&calls);
    let inner = tower::service_fn(move |_: Request<Body>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err::<http::Response<Body>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionReset)) }
    });
    let source = Fixed::new().service("s:80", ["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()]);
    let mesh = Mesh::builder().source(source).start().unwrap();
    let request = Request::get("http://s/").body(Body::empty()).unwrap();
    let error = mesh.client_layer().layer(inner).oneshot(request).await.map(drop).unwrap_err();
    assert_eq!((error.kind(), calls.load(Ordering::SeqCst)), (ErrorKind::ConnectionLost, 1));
}

#[tokio::test]
async fn a_pass_through_name_without_a_port_is_that_of_port_80() {
    let source = Fixed::new().routes("127.0.0.1:80", vec![route_to("c")]);
    let client = client(source.cluster(Cluster::new("c", ClusterKind::PassThrough)));
    // Whether or not somebody listens there: it is dialled.
    if let Err(error) = client.get("http://127.0.0.1/").await {
        assert_ne!(error.kind(), ErrorKind::BadRequest, "{error}");
    }
}

#[tokio::test]
async fn nothing_is_sent_when_the_deadline_has_passed_and_no_connection_is_lost() {
    let (address, connections, requests) = serve(|_| true).await;
    let client = client(Fixed::new().service("s:80", [address]));
    let late = || {
        let past = Instant::now() - Duration::from_millis(1);
        Request::get("http://s/").extension(Deadline(past)).body(Body::empty()).unwrap()
    };
    assert_eq!(client.request(late()).await.unwrap_err().kind(), ErrorKind::Timeout);
    ok(&client, "http://s/").await;
    assert_eq!(client.request(late()).await.unwrap_err().kind(), ErrorKind::Timeout);
    ok(&client, "http://s/").await;
    assert_eq!((connections.load(Ordering::SeqCst), requests.load(Ordering::SeqCst)), (1, 2));
}

#[tokio::test]
async fn a_caller_that_waits_for_the_first_configuration_does_so_until_its_deadline() {
    let client = client(Fixed::new());
    let soon = Deadline(Instant::now() + Duration::from_millis(50));
    let request = Request::get("http://nobody/").extension(soon).body(Body::empty()).unwrap();
    let error = client.request(request).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::UnknownTarget), "{error}");
}

#[tokio::test]
async fn a_response_that_never_ends_ends_at_the_deadline_however_fast_it_is_read() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                _ = stream.read(&mut [0; 4096]).await;
                _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                while stream.write_all(&[b'x'; 64 << 10]).await.is_ok() {}
            });
        }
    });
    let timeout = Some(Duration::from_millis(200));
    let source = Fixed::new().routes("s:80", vec![forwarding(|forward| forward.timeout = timeout)]);
    let client = client(source.cluster(Cluster::new("c", ClusterKind::Static(Endpoints::fixed([address])))));
    for _ in 0..2 {
        let mut body = client.get("http://s/").await.unwrap().into_body();
        let error = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                match body.frame().await {
                    // Slower than the server, so that there is always something to read.
                    Some(Ok(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
                    Some(Err(error)) => break error,
                    None => panic!("the body ended"),
                }
            }
        });
        assert_eq!(error.await.expect("it ends in time").kind(), ErrorKind::Timeout);
    }
}

#[tokio::test]
async fn a_request_that_passes_through_goes_where_the_caller_said_whatever_the_host_becomes() {
    let (address, _, requests) = serve(|_| true).await;
    let name = address.to_string();
    let host = HeaderValue::from_static("127.0.0.1:1");
    let source = Fixed::new().routes(&name, vec![forwarding(|forward| forward.authority = Some(host))]);
    let client = client(source.cluster(Cluster::new("c", ClusterKind::PassThrough)));
    for _ in 0..3 {
        ok(&client, &format!("http://{name}/")).await;
    }
    assert_eq!(requests.load(Ordering::SeqCst), 3);
}

#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Observer for Seen {
    fn on_end(&self, request: &RequestInfo) {
        let status = request.status().map(|status| status.as_u16());
        let (tries, picked) = (request.attempts, request.endpoint().is_some());
        let cluster = request.cluster().map_or("", |cluster| cluster.as_str());
        let line = format!(
            "{} {} {cluster} {status:?} {:?} {tries} {picked}",
            request.authority(),
            request.route().unwrap_or_default(),
            request.error()
        );
        self.0.lock().unwrap().push(line);
    }
}

#[tokio::test]
async fn observers_are_told_once_of_every_request_however_it_ends() {
    let (address, _, _) = serve(|_| true).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_address = silent.local_addr().unwrap();
    let source = Fixed::new().service("s:80", [address]).service("silent:80", [silent_address]);
    let seen = Seen::default();
    let mesh = Mesh::builder().source(source).observer(seen.clone()).start().unwrap();
    let client = mesh.client();
    ok(&client, "http://s/").await;
    ok(&client, "http://s/").await;
    client.get("https://s/").await.unwrap_err();
    let given_up = tokio::time::timeout(Duration::from_millis(100), client.get("http://silent/"));
    assert!(given_up.await.is_err());
    assert_eq!(
        *seen.0.lock().unwrap(),
        [
            "s default s:80 Some(200) None 1 true",
            "s default s:80 Some(200) None 1 true",
            "s   None Some(Security) 0 false",
            "silent default silent:80 None None 1 true",
        ]
    );
}
