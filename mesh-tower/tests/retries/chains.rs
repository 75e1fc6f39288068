//! Chains of services: what a request inherits from the one that it is made for, and how many tries come to the last
//! server of the chain.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use mesh_core::error::ErrorKind;
use mesh_core::fixed::Fixed;
use mesh_core::grpc_timeout;
use mesh_core::request_info::{Criticality, Inherited};
use mesh_tower::body::Body;
use mesh_tower::{Mesh, inherited, reply, server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tower::{Layer, ServiceExt, service_fn};

use super::world::{Log, World, grpc, http2, request, retries, rule};

/// A service that asks the servers of a world what it is asked itself, and passes on what these answer.
async fn service(world: &World) -> SocketAddr {
    let client = world.mesh.client();
    let passing_on = service_fn(move |request: Request<hyper::body::Incoming>| {
        let client = client.clone();
        async move {
            let is_grpc = mesh_core::request::is_grpc(request.headers());
            let port = if request.version() == http::Version::HTTP_2 { 81 } else { 80 };
            let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
            let mut asked =
                Request::builder().method(request.method()).uri(format!("http://web.example.com:{port}{path}"));
            for name in ["content-type", "give-grpc-status"] {
                if let Some(value) = request.headers().get(name) {
                    asked = asked.header(name, value);
                }
            }
            let answer = match client.request(asked.body(request.into_body()).unwrap()).await {
                Ok(response) => response.map(Body::new),
                Err(error) => reply::error(&error, is_grpc).map(Body::from),
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    mesh.serving().await.unwrap();
    let address = listener.local_addr();
    tokio::spawn(server::serve(listener, mesh.server_layer().layer(passing_on)).into_future());
    address
}

/// A world whose server is a service in front of another world.
async fn before(world: &World, yaml: &str) -> World {
    let service = service(world).await;
    World::of(&[service], yaml, Log::default(), &watch::Sender::new(0)).await
}

const ARMED: &str = "attempts: 3, retryOn: '503,unavailable', backoff: 1ms";

#[tokio::test]
async fn tries_of_several_hops_add_up_and_never_multiply() {
    let leaf = World::new(2, &retries(ARMED)).await;
    let two = before(&leaf, &retries(ARMED)).await;
    let three = before(&two, &retries(ARMED)).await;
    for (world, hops) in [(&leaf, 1), (&two, 2), (&three, 3)] {
        for request in
            [request("GET", "/status/503"), http2("PUT", "/status/503"), grpc("/ok", &[("give-grpc-status", "14")])]
        {
            leaf.log.take();
            world.ask(request).await.unwrap();
            let seen = leaf.log.take();
            // One by one; each with three more would be 64.
            assert_eq!(seen.len(), 1 + 3 * hops);
            // Who comes again says so, whichever hop it is that tries again.
            let attempts: Vec<_> = seen.iter().map(|seen| seen.headers.get("x-envoy-attempt-count").cloned()).collect();
            assert_eq!(attempts[0], None);
            assert!(attempts[1..].iter().all(Option::is_some), "{attempts:?}");
            let previous = |seen: &super::world::Seen| seen.headers.get("grpc-previous-rpc-attempts").cloned();
            if seen[0].headers.contains_key("content-type") {
                assert_eq!(previous(&seen[0]), None);
                assert_eq!(previous(&seen[1]).unwrap(), "1");
            }
        }
    }
}

/// Each hop's own policy is honoured: what one does not retry, the next one does.
#[tokio::test]
async fn a_hop_in_the_middle_takes_retries_from_nobody() {
    let unarmed = retries("attempts: 0");
    for (inner, outer) in [(retries(ARMED), unarmed.clone()), (unarmed.clone(), retries(ARMED))] {
        let leaf = World::new(1, &inner).await;
        let world = before(&leaf, &outer).await;
        let answer = world.ask(request("GET", "/then-ok/3/status/503")).await.unwrap();
        assert_eq!((answer.0.as_u16(), leaf.log.take().len()), (200, 4));
    }
}

#[tokio::test]
async fn time_that_is_left_travels_to_the_last_server() {
    let leaf = World::new(1, "").await;
    let world = before(&leaf, &rule("timeout: 20s, ")).await;
    let world = before(&world, "").await;
    let told = async |request| {
        leaf.log.take();
        world.ask(request).await.unwrap();
        leaf.log.take().remove(0).headers
    };
    let unlimited = told(request("GET", "/ok")).await;
    let most = Duration::from_secs(20);
    let left = |value: &http::HeaderValue| Duration::from_millis(value.to_str().unwrap().parse().unwrap());
    let expected = left(&unlimited["x-envoy-expected-rq-timeout-ms"]);
    assert!(expected > Duration::ZERO && expected <= most, "{expected:?}");
    let of_call = told(grpc("/ok", &[])).await;
    let timeout = grpc_timeout::parse(of_call["grpc-timeout"].as_bytes()).unwrap();
    assert!(timeout > Duration::ZERO && timeout <= most, "{timeout:?}");
}

#[tokio::test]
async fn what_can_be_left_out_is_so_to_the_last_server_and_who_says_so_is_believed() {
    let leaf = World::new(1, "").await;
    let world = before(&leaf, "").await;
    let mut sheddable = Inherited::default();
    sheddable.criticality = Criticality::Sheddable;
    let mut by_extension = request("GET", "/ok");
    by_extension.extensions_mut().insert(sheddable);
    let mut by_header = request("GET", "/ok");
    by_header.headers_mut().insert("x-mesh-criticality", "sheddable".parse().unwrap());
    for (request, expected) in [(by_extension, true), (by_header, true), (request("GET", "/ok"), false)] {
        world.ask(request).await.unwrap();
        let headers = leaf.log.take().remove(0).headers;
        assert_eq!(headers.get("x-mesh-criticality").is_some(), expected);
    }
}

/// The time of a try ends with the head of its answer, and so does what is inherited of it.
#[tokio::test]
async fn the_body_of_an_answer_is_not_made_in_the_time_of_its_head() {
    struct Noting(Arc<Mutex<Vec<Inherited>>>);
    impl http_body::Body for Noting {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.lock().unwrap().push(inherited::current());
            Poll::Ready(None)
        }
    }
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let _listener = mesh.bind("127.0.0.1:0").await.unwrap();
    mesh.serving().await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noting = Arc::clone(&seen);
    let handler = mesh.server_layer().layer(service_fn(move |_: Request<()>| {
        let seen = Arc::clone(&noting);
        async move {
            seen.lock().unwrap().push(inherited::current());
            Ok::<_, Infallible>(Response::new(Noting(seen)))
        }
    }));
    let request = Request::get("/").header("host", "web").header("x-envoy-expected-rq-timeout-ms", "5000");
    let request = request.header("x-envoy-attempt-count", "2").body(()).unwrap();
    let response = handler.oneshot(request).await.unwrap();
    _ = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(
        seen.iter().map(|seen| (seen.answer_by.is_some(), seen.attempt)).collect::<Vec<_>>(),
        [(true, 2), (false, 2)]
    );
    assert_eq!(inherited::current(), Inherited::default(), "nothing stays with the task");
}

/// Whoever sends a request can say how long it waits, and nobody can have others' endpoints ejected by it.
#[tokio::test]
async fn a_caller_in_a_hurry_says_nothing_of_endpoints() {
    let detection = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec: {host: web.example.com, trafficPolicy: {outlierDetection: {splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 1, consecutive5xxErrors: 1, maxEjectionPercent: 100}}}\n";
    for (path_limit, ejected) in [("", 0), ("timeout: 50ms, ", 1)] {
        let leaf = World::new(1, &format!("{}{detection}", rule(path_limit))).await;
        let service = service(&leaf).await;
        let asked = World::of(&[service], "", Log::default(), &watch::Sender::new(0)).await;
        let mut hurried = request("GET", "/hang");
        if path_limit.is_empty() {
            hurried.headers_mut().insert("x-envoy-expected-rq-timeout-ms", "20".parse().unwrap());
        }
        assert_eq!(asked.ask(hurried).await.unwrap().0, 504);
        leaf.until_open(0).await;
        assert_eq!(leaf.ejected(), ejected, "{path_limit:?}");
    }
}

/// Over HTTP/1.1 a client that has closed its side may be gone, or wait for its answer.
#[tokio::test]
async fn for_a_client_that_may_be_gone_there_is_one_try_and_no_copy() {
    let copied = "mirror: {host: web.example.com, port: {number: 80}}";
    let world =
        World::new(1, &rule(&format!("retries: {{attempts: 2, retryOn: '503', backoff: 1ms}}, {copied}, "))).await;
    let client = world.mesh.client();
    let handler = service_fn(move |asked: Request<hyper::body::Incoming>| {
        let client = client.clone();
        async move {
            let path = asked.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
            let connection = server::ConnectionInfo::current().unwrap();
            while path.ends_with("closes") && !connection.is_half_closed() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let answer = client.request(request("GET", &path)).await.unwrap();
            Ok::<_, Infallible>(Response::builder().status(answer.status()).body(Body::empty()).unwrap())
        }
    });
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    tokio::spawn(server::serve(listener, mesh.server_layer().layer(handler)).into_future());
    for what in ["closes", "stays"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET /status/503?{what} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        if what == "closes" {
            stream.shutdown().await.unwrap();
        }
        let mut answer = String::new();
        let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_string(&mut answer));
        read.await.expect("it is answered").unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{what}: {answer}");
    }
    let is_copied = async {
        while world.mesh.mirror_counts().answered == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), is_copied).await.expect("the other one is copied");
    let seen = world.log.take();
    let count = |what: &str| seen.iter().filter(|seen| seen.path.ends_with(what)).count();
    assert_eq!((count("closes"), count("stays")), (1, 3 + 1), "{seen:?}");
}

#[tokio::test]
async fn a_cluster_that_fails_everything_is_left_alone() {
    let world = World::new(2, &retries("attempts: 3, retryOn: 'reset,503', backoff: 1ms")).await;
    for _ in 0..100 {
        assert_eq!(world.ask(request("GET", "/status/503")).await.unwrap().0, 503);
    }
    // Each of them four times would be 400.
    assert_eq!(world.log.take().len(), 120);
    let error = world.ask(request("GET", "/reset")).await.unwrap_err();
    assert_eq!((error.kind(), world.log.take().len()), (ErrorKind::ConnectionLost, 1));
    assert!(error.to_string().contains("not tried again: too few requests to the cluster succeed"), "{error}");
    // As soon as it does what it is there for, it gets what it can bear.
    for _ in 0..8 {
        world.ask(request("GET", "/ok")).await.unwrap();
    }
    world.log.take();
    assert_eq!(world.ask(request("GET", "/then-ok/3/status/503")).await.unwrap().0, 200);
    assert_eq!(world.log.take().len(), 4);
}

#[tokio::test]
async fn what_the_configuration_says_of_retries_is_all_that_counts() {
    for limit in ["retryBudget: {percent: 100, minRetryConcurrency: 10}", "connectionPool: {http: {maxRetries: 10}}"] {
        let rule = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web}}\nspec: {{host: web.example.com, trafficPolicy: {{{limit}}}}}\n"
        );
        let world = World::new(2, &(retries("attempts: 3, retryOn: '503', backoff: 1ms") + &rule)).await;
        for _ in 0..20 {
            world.ask(request("GET", "/status/503")).await.unwrap();
        }
        assert_eq!(world.log.take().len(), 80, "{limit}");
    }
}
