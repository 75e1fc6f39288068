//! What requests look like on the wire: their target in every form that a caller may write it in, and the length of
//! their body. Against a peer that is not a library, with the client and with the layer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::error::ErrorKind;
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::model::{
    Cluster, ClusterKind, DirectResponse, Endpoints, PathTest, QueryTest, Route, RouteAction, RouteMatch, StringTest,
};
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{Receiver, channel};
use tower::{Layer, Service, ServiceExt};

/// Nothing in these tests takes this long.
async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it hangs")
}

/// A server by hand: tells of every byte that it is sent, and answers whatever ends like the head of a request or like
/// the last of `abc`.
async fn peer() -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // More than any test sends.
    let (tell, told) = channel(1000);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while stream.read_buf(&mut seen).await.is_ok_and(|count| count > 0) {
                    let text = String::from_utf8_lossy(&seen).into_owned();
                    let has_body = text.to_lowercase().contains("content-length: 3") || text.contains("chunked");
                    let last = if has_body { "abc" } else { "\r\n\r\n" };
                    if text.trim_end_matches("\r\n0\r\n\r\n").ends_with(last) {
                        tell.send(text).await.unwrap();
                        seen.clear();
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                    }
                }
                _ = tell.send(format!("end {}", String::from_utf8_lossy(&seen))).await;
            });
        }
    });
    (address, told)
}

/// A server of HTTP/2 that reads a request and answers with its `:path`.
async fn http2_peer() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let path = request.uri().path_and_query().map_or("none", |path| path.as_str()).to_owned();
                _ = request.into_body().collect().await;
                Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(path))))
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

fn start(source: Fixed) -> Mesh {
    Mesh::builder().source(source).start().unwrap()
}

/// Every request for `s:80` goes to one endpoint, `OPTIONS *` too.
fn mesh(address: SocketAddr) -> Mesh {
    let mut route = route_to("c");
    route.matches.path = PathTest::Prefix { value: "".into(), ignore_case: false };
    let cluster = Cluster::new("c", ClusterKind::Static(Endpoints::fixed([address])));
    start(Fixed::new().routes("s:80", vec![route]).cluster(cluster))
}

fn inner() -> legacy::Client<legacy::connect::HttpConnector, Body> {
    legacy::Client::builder(TokioExecutor::new()).build_http()
}

/// Sends a request and reads the answer.
async fn send<S, R>(mut service: S, request: Request<Body>) -> Result<StatusCode, S::Error>
where
    S: Service<Request<Body>, Response = http::Response<R>>,
    R: http_body::Body,
{
    let response = within(within(service.ready()).await?.call(request)).await?;
    let status = response.status();
    _ = within(response.into_body().collect()).await;
    Ok(status)
}

/// The next thing that a peer was sent. Connections that end without a word are passed over.
async fn sent(seen: &mut Receiver<String>) -> String {
    loop {
        match within(seen.recv()).await.unwrap() {
            told if told == "end " => {}
            told => return told,
        }
    }
}

/// The request line and the value of `Host`.
fn line_and_host(head: &str) -> (&str, &str) {
    let host = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or("-");
    (head.lines().next().unwrap_or_default(), host)
}

/// RFC 9112, 3.2.1 and 3.2.4.
#[tokio::test]
async fn a_target_has_its_form_on_the_wire_however_it_was_written() {
    let (address, mut seen) = peer().await;
    let mesh = mesh(address);
    let cases = [
        (Method::GET, "http://s?x=1", "GET /?x=1 HTTP/1.1", "s"),
        (Method::GET, "http://s?x=1#f", "GET /?x=1 HTTP/1.1", "s"),
        (Method::GET, "http://s:80?", "GET /? HTTP/1.1", "s:80"),
        (Method::GET, "http://s#f", "GET / HTTP/1.1", "s"),
        (Method::GET, "http://s", "GET / HTTP/1.1", "s"),
        (Method::GET, "http://s/", "GET / HTTP/1.1", "s"),
        (Method::GET, "http://s/p#f", "GET /p HTTP/1.1", "s"),
        (Method::GET, "s:80", "GET / HTTP/1.1", "s:80"),
        (Method::GET, "http://user:secret@s?x=1", "GET /?x=1 HTTP/1.1", "s"),
        (Method::OPTIONS, "http://s?x=1", "OPTIONS /?x=1 HTTP/1.1", "s"),
        (Method::OPTIONS, "*", "OPTIONS * HTTP/1.1", "s"),
    ];
    for (method, uri, line, host) in cases {
        let request = || {
            let mut request = Request::builder().method(&method).uri(uri);
            if !uri.contains('s') {
                request = request.header("host", "s");
            }
            request.body(Body::empty()).unwrap()
        };
        send(mesh.client(), request()).await.unwrap();
        assert_eq!(line_and_host(&sent(&mut seen).await), (line, host), "{method} {uri}");
        send(mesh.client_layer().layer(inner()), request()).await.unwrap();
        assert_eq!(line_and_host(&sent(&mut seen).await), (line, host), "the layer: {method} {uri}");
        if method == Method::GET && uri.starts_with("http") {
            let own = legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(mesh.connector());
            within(own.request(request())).await.unwrap().into_body().collect().await.unwrap();
            assert_eq!(line_and_host(&sent(&mut seen).await).0, line, "the connector: {uri}");
        }
    }
}

#[tokio::test]
async fn a_target_has_its_form_over_http2_too() {
    let mesh = mesh(http2_peer().await);
    let fixed = mesh.client_for("s:80").unwrap();
    let cases = [
        (Method::GET, "http://s?x=1", "/?x=1"),
        (Method::GET, "http://s#f", "/"),
        (Method::GET, "http://s", "/"),
        (Method::OPTIONS, "*", "*"),
    ];
    for (method, uri, path) in cases {
        for client in [mesh.client(), fixed.clone()] {
            let request = Request::builder().method(&method).uri(uri).version(Version::HTTP_2);
            let request = request.header("content-type", "application/grpc").header("host", "s");
            let response = within(client.request(request.body(Body::empty()).unwrap())).await.unwrap();
            let body = within(response.into_body().collect()).await.unwrap().to_bytes();
            assert_eq!(body, path, "{method} {uri}");
        }
    }
}

#[tokio::test]
async fn a_query_without_a_path_matches_as_one_of_the_root() {
    let mut matches = RouteMatch::path(PathTest::Exact { value: "/".into(), ignore_case: false });
    let test = StringTest::Exact { value: "1".into(), ignore_case: false };
    matches.query = vec![QueryTest::new("x", Some(test))];
    let answer = RouteAction::Direct(DirectResponse::new(StatusCode::IM_A_TEAPOT, ""));
    let mesh = start(Fixed::new().routes("s:80", vec![Route::new(matches, answer)]));
    for uri in ["http://s?x=1", "http://s/?x=1", "http://s:80?x=1#f", "http://u@s?x=1"] {
        let get = || Request::get(uri).body(Body::empty()).unwrap();
        assert_eq!(send(mesh.client(), get()).await.unwrap(), 418, "{uri}");
        assert_eq!(send(mesh.client_for("s:80").unwrap(), get()).await.unwrap(), 418, "{uri}");
        assert_eq!(send(mesh.client_layer().layer(inner()), get()).await.unwrap(), 418, "{uri}");
    }
}

/// RFC 9112, 3.2.3.
#[tokio::test]
async fn connect_names_host_and_port_and_nothing_else() {
    let (address, mut seen) = peer().await;
    let mesh = mesh(address);
    for uri in ["s:80", "http://s:80", "http://s:80/", "http://s/ignored?x=1", "http://u:p@s"] {
        let connect = || Request::connect(uri).body(Body::empty()).unwrap();
        assert_eq!(send(mesh.client(), connect()).await.unwrap(), 200);
        assert_eq!(line_and_host(&sent(&mut seen).await), ("CONNECT s:80 HTTP/1.1", "s:80"), "{uri}");
        let refused = send(mesh.client_layer().layer(inner()), connect()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::BadRequest, "the layer: {refused}");
    }
    let path = Request::connect("/p").header("host", "s").body(Body::empty()).unwrap();
    assert_eq!(send(mesh.client(), path).await.unwrap_err().kind(), ErrorKind::BadRequest);
}

/// A tunnel outlives the response that opened it.
#[tokio::test]
async fn what_connect_opened_is_the_callers() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = mesh(listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut head).await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
    });
    let connect = Request::connect("s:80").body(Body::empty()).unwrap();
    let response = within(mesh.client().request(connect)).await.unwrap();
    let mut tunnel = TokioIo::new(within(hyper::upgrade::on(response)).await.unwrap());
    within(tunnel.write_all(b"ping")).await.unwrap();
    let mut bytes = [0; 4];
    within(tunnel.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"ping");
    within(server).await.unwrap();
}

fn stream(parts: &'static [&'static str]) -> Body {
    let frames = parts.iter().map(|part| Ok::<_, Infallible>(Frame::data(Bytes::from_static(part.as_bytes()))));
    Body::new(StreamBody::new(futures_util::stream::iter(frames)))
}

fn post(version: Version, lengths: &[&str], body: Body) -> Request<Body> {
    let mut request = Request::post("http://s/").version(version);
    for length in lengths {
        request = request.header("content-length", *length);
    }
    request.body(body).unwrap()
}

/// RFC 9112, 6.2 and 6.3: what follows would be read as the next request, or be waited for.
#[tokio::test]
async fn a_length_that_contradicts_the_body_is_refused_before_anything_is_sent() {
    let (address, mut seen) = peer().await;
    let mesh = mesh(address);
    let full = |text: &'static str| Body::from(Bytes::from_static(text.as_bytes()));
    let wrong: [&[&str]; 10] =
        [&["5"], &["2"], &["0"], &["+3"], &["3,3"], &["3", "3"], &["3", "4"], &["three"], &[""], &["-3"]];
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for lengths in wrong {
            let error = send(mesh.client(), post(version, lengths, full("abc"))).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadRequest, "{lengths:?}: {error}");
            let error =
                send(mesh.client_layer().layer(inner()), post(version, lengths, full("abc"))).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadRequest, "the layer: {lengths:?}: {error}");
        }
        let error = send(mesh.client(), post(version, &["3"], Body::empty())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{error}");
    }
    while let Ok(Some(told)) = tokio::time::timeout(Duration::ZERO, seen.recv()).await {
        assert_eq!(told, "end ", "something was sent");
    }
    // What is right is sent, over one connection all the time.
    for body in [full("abc"), stream(&["abc"]), stream(&["a", "bc"])] {
        assert_eq!(send(mesh.client(), post(Version::HTTP_11, &["3"], body)).await.unwrap(), 200);
        let told = sent(&mut seen).await;
        assert!(told.contains("content-length: 3\r\n") && told.ends_with("\r\n\r\nabc"), "{told}");
    }
}

/// How long a stream is can only be seen as it goes; then the request breaks off.
#[tokio::test]
async fn a_stream_that_is_longer_or_shorter_than_it_says_fails_the_request() {
    for (lengths, parts) in [("3", &["ab", "cd"] as &[&str]), ("3", &["abcd"]), ("9", &["abc"]), ("9", &[])] {
        let (address, mut seen) = peer().await;
        let mesh = mesh(address);
        let error = send(mesh.client(), post(Version::HTTP_11, &[lengths], stream(parts))).await;
        // What was read of it may have been enough for an answer; but it is never a whole request followed by another.
        assert!(error.is_err(), "{lengths} {parts:?}");
        let told = within(seen.recv()).await.unwrap();
        assert!(told.starts_with("end") && !told.ends_with("abcd"), "{told}");
    }
}

/// Whoever makes the request has not made all of it: nothing is wrong with the server.
#[tokio::test]
async fn a_body_that_breaks_off_is_the_callers_fault() {
    for (version, address) in [(Version::HTTP_11, peer().await.0), (Version::HTTP_2, http2_peer().await)] {
        let frames = [Ok(Frame::data(Bytes::from("ab"))), Err(std::io::Error::other("cut"))];
        let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
        let error = send(mesh(address).client(), post(version, &[], body)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{version:?}: {error:#}");
    }
}

/// hyper sends it without, unless it is told.
#[tokio::test]
async fn a_get_whose_body_is_of_no_known_length_has_it_on_the_wire() {
    let (address, mut seen) = peer().await;
    let request = Request::get("http://s/").body(stream(&["abc"])).unwrap();
    assert_eq!(send(mesh(address).client(), request).await.unwrap(), 200);
    let told = sent(&mut seen).await;
    assert!(told.contains("transfer-encoding: chunked\r\n") && told.contains("\r\nabc\r\n"), "{told}");
}

/// A route's header operations can say anything.
#[tokio::test]
async fn a_length_that_the_route_sets_is_held_to_the_body_too() {
    let (address, mut seen) = peer().await;
    let mut route = route_to("c");
    let length =
        mesh_core::model::HeaderChange::Set(http::header::CONTENT_LENGTH, http::HeaderValue::from_static("5").into());
    route.mutations.request.push(length);
    let cluster = Cluster::new("c", ClusterKind::Static(Endpoints::fixed([address])));
    let mesh = start(Fixed::new().routes("s:80", vec![route]).cluster(cluster));
    for _ in 0..2 {
        let error = send(mesh.client(), Request::get("http://s/").body(Body::empty()).unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadRequest, "{error}");
    }
    while let Ok(Some(told)) = tokio::time::timeout(Duration::ZERO, seen.recv()).await {
        assert_eq!(told, "end ", "something was sent");
    }
}

/// What a client said in trailers could otherwise be read as a head behind the next proxy.
#[tokio::test]
async fn h13_trailers_go_on_over_http1_without_fields_that_say_where_a_message_ends_or_goes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = mesh(listener.local_addr().unwrap());
    let names = ["content-length", "transfer-encoding", "host", "x-sum", "te", "content-type"];
    let trailers = names.map(|name| (name.parse().unwrap(), "1".parse().unwrap())).into_iter().collect();
    let frames = [Frame::data(Bytes::from("abc")), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
    let mut request = post(Version::HTTP_11, &[], Body::new(StreamBody::new(futures_util::stream::iter(frames))));
    request.headers_mut().insert("trailer", names.join(",").parse().unwrap());
    let peer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        while !(seen.ends_with(b"\r\n\r\n") && String::from_utf8_lossy(&seen).contains("\r\n0\r\n")) {
            assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        String::from_utf8(seen).unwrap()
    };
    let (sent, seen) = within(async { tokio::join!(send(mesh.client(), request), peer) }).await;
    assert_eq!(sent.unwrap(), 200);
    assert!(seen.ends_with("\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"), "{seen}");
}

#[tokio::test]
async fn h13_trailers_of_an_answer_over_http2_change_nothing_of_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = mesh(listener.local_addr().unwrap());
    // `:status: 200`, two bytes, and in trailers `:status: 500`, `content-length: 9` and `x-sum: 1`.
    let answer = [
        &b"\0\0\x01\x01\x04\0\0\0\x01\x88\0\0\x02\0\0\0\0\0\x01ok"[..],
        b"\0\0\x0e\x01\x05\0\0\0\x01\x8e\x0f\x0d\x019\0\x05x-sum\x011",
    ];
    let peer = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
        // HEADERS of the first stream, which begin with `:method: POST` of the static table.
        let is_request = |seen: &[u8]| matches!(seen, [1, _, 0, 0, 0, 1, 0x83]);
        let mut seen = Vec::new();
        while !seen.windows(7).any(is_request) {
            assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
        }
        stream.write_all(&answer.concat()).await.unwrap();
        stream
    };
    let asked = async {
        let mut request = post(Version::HTTP_2, &[], Body::empty());
        request.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
        let response = mesh.client().request(request).await.unwrap();
        let (status, body) = (response.status(), response.into_body().collect().await.unwrap());
        (status, body.trailers().cloned().unwrap(), body.to_bytes())
    };
    let ((status, trailers, body), _stream) = within(async { tokio::join!(asked, peer) }).await;
    assert_eq!(
        (status, &body[..], &trailers["x-sum"]),
        (StatusCode::OK, &b"ok"[..], &http::HeaderValue::from_static("1"))
    );
    assert!(trailers.keys().all(|name| !name.as_str().starts_with(':')), "{trailers:?}");
}
