//! What a server makes of requests as they are on the wire: their host, their target, and a client that has said all
//! that it had to say.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use crate::server_support::{app_route, listener, within};
use bytes::Bytes;
use http::{HeaderName, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use mesh_core::fixed::Fixed;
use mesh_core::model::{
    FilterChain, HeaderChange, HeaderTarget, HeaderText, HttpManager, PathTest, QueryTest, RouteConfiguration,
    RouteSource, VirtualHost,
};
use mesh_core::request_info::{Observer, RequestInfo};
use mesh_tower::{Mesh, server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::service_fn;
use tower_layer::Layer;

/// Answers with the target and the body, once all of the request is there.
async fn app(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let target = request.uri().to_string();
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    Ok(Response::new(Full::new([target.as_bytes(), b" ", &body].concat().into())))
}

async fn serve_app(mesh: Mesh) -> SocketAddr {
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = bound.local_addr();
    let service = mesh.server_layer().layer(service_fn(app));
    tokio::spawn(server::serve(bound, service).into_future());
    address
}

/// A server with one virtual host for everything.
async fn start() -> SocketAddr {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let address = serve_app(mesh.clone()).await;
    within(mesh.serving()).await.unwrap();
    address
}

/// Sends bytes; all that comes back. The connection ends with the request, since that asks for it.
async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    _ = within(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

/// RFC 9112, 3.2.
#[tokio::test]
async fn an_invalid_host_is_a_bad_request() {
    let address = start().await;
    let wrong = [
        "sh op",
        "<x>",
        "shop/admin",
        "user@shop",
        "a,b",
        "shop:80:80",
        "shop?x",
        "shop#x",
        "",
        ":80",
        "shop:port",
        "shop:65536",
        "[shop]",
        "::1",
        "u:p@shop:80",
        "shop\\admin",
        "\"shop\"",
        "sh\u{f6}p",
    ];
    for host in wrong {
        for target in ["/", "http://shop/"] {
            let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            assert_eq!(status(&ask(address, &request).await), "400", "{target} {host:?}");
        }
    }
    for host in ["shop", "shop:80", "Shop.example.com.", "[::1]:80", "10.0.0.1", "a_b"] {
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        assert_eq!(status(&ask(address, &request).await), "200", "{host:?}");
    }
    for hosts in ["", "host: shop\r\nhost: shop\r\n"] {
        for target in ["/", "http://shop/"] {
            let request = format!("GET {target} HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
            assert_eq!(status(&ask(address, &request).await), "400", "{target} {hosts:?}");
        }
    }
}

/// RFC 9113, 8.3.1.
#[tokio::test]
async fn an_invalid_authority_is_a_bad_request_over_http2() {
    let address = start().await;
    let (mut sender, connection) = h2::client::handshake(TcpStream::connect(address).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    // (the URI, a Host beside it) -> the status
    let cases = [
        ("http://user@shop/", None, 400),
        ("http://u:p@shop:80/", None, 400),
        ("http://shop:port/", None, 400),
        ("http://sh%6fp/", None, 400),
        ("http://shop!/", None, 400),
        ("http://shop/", Some("a,b"), 400),
        ("http://shop:80/", Some("shop:80"), 200),
    ];
    for (uri, host, expected) in cases {
        let Ok(uri) = uri.parse::<http::Uri>() else { continue };
        let mut request = Request::get(uri.clone()).version(http::Version::HTTP_2);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        sender = within(sender.ready()).await.unwrap();
        let (response, _) = sender.send_request(request.body(()).unwrap(), true).unwrap();
        match within(response).await {
            Ok(response) => assert_eq!(response.status(), expected, "{uri} {host:?}"),
            // A library below may have reset the stream already.
            Err(error) => assert!(expected == 400 && error.is_reset(), "{uri} {host:?}: {error}"),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Authorities(Arc<Mutex<Vec<String>>>);

impl Observer for Authorities {
    fn on_end(&self, request: &RequestInfo) {
        self.0.lock().unwrap().push(request.authority().to_owned());
    }
}

/// Every target form of RFC 9112, 3.2, against hosts and routes.
#[tokio::test]
async fn a_request_goes_by_its_target_whatever_form_that_has() {
    let (player, source) = crate::server_support::played();
    let seen = Authorities::default();
    let mesh = Mesh::builder().source(source).observer(seen.clone()).start().unwrap();
    let address = serve_app(mesh.clone()).await;
    let mut root = app_route();
    root.matches.path = PathTest::Exact { value: "/".into(), ignore_case: false };
    let mut query = root.clone();
    query.matches.query = vec![QueryTest::new("x", None)];
    let shop = VirtualHost::new(["shop"], vec![query]);
    let default = VirtualHost::new(["*"], vec![root]);
    let http = HttpManager::new(RouteSource::Inline(Arc::new(RouteConfiguration::new(vec![shop, default]))));
    player.send(listener(address, vec![FilterChain::new("chain", http)]));
    within(mesh.serving()).await.unwrap();
    // (request line, host) -> (status, authority, body)
    let cases = [
        ("GET http://shop?x=1 HTTP/1.1", "other", "200", "shop", "http://shop/?x=1 "),
        ("GET http://shop/?x=1 HTTP/1.1", "other", "200", "shop", "http://shop/?x=1 "),
        ("GET http://shop HTTP/1.1", "other", "404", "shop", ""),
        ("GET http://other HTTP/1.1", "shop", "200", "other", "http://other/ "),
        ("GET /?x=1 HTTP/1.1", "shop", "200", "shop", "/?x=1 "),
        ("GET / HTTP/1.0", "shop", "404", "shop", ""),
        ("GET shop HTTP/1.1", "shop", "400", "", ""),
        ("GET * HTTP/1.1", "other", "400", "", ""),
        ("OPTIONS * HTTP/1.1", "other", "404", "other", ""),
        ("CONNECT / HTTP/1.1", "other", "400", "", ""),
        ("GET http://user@shop/?x=1 HTTP/1.1", "shop", "400", "", ""),
    ];
    for (line, host, expected, authority, body) in cases {
        let answer = ask(address, &format!("{line}\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(status(&answer), expected, "{line} {host}");
        assert!(expected != "200" || answer.ends_with(&format!("\r\n\r\n{body}")), "{line}: {answer}");
        assert_eq!(seen.0.lock().unwrap().pop().unwrap(), authority, "{line} {host}");
    }
}

#[tokio::test]
async fn http10_without_a_host_is_served_by_the_default_host() {
    let address = start().await;
    let answer = ask(address, "GET /p HTTP/1.0\r\n\r\n").await;
    assert!(status(&answer) == "200" && answer.ends_with("/p "), "{answer}");
    let answer = ask(address, "POST /p HTTP/1.0\r\ncontent-length: 3\r\n\r\nabc").await;
    assert!(status(&answer) == "200" && answer.ends_with("/p abc"), "{answer}");
    assert_eq!(status(&ask(address, "GET / HTTP/1.0\r\nhost: user@shop\r\n\r\n").await), "400");
}

/// There is no authority to put in, but all the rest.
#[tokio::test]
async fn http10_without_a_host_gets_its_headers_from_the_route() {
    let (player, source) = crate::server_support::played();
    let mesh = Mesh::builder().source(source).start().unwrap();
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = bound.local_addr();
    let app = service_fn(|request: Request<Incoming>| async move {
        let seen = ["x-copy", "x-protocol"].map(|name| request.headers()[name].to_str().unwrap().to_owned());
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(seen.join(" ")))))
    });
    tokio::spawn(server::serve(bound, mesh.server_layer().layer(app)).into_future());
    let mut route = app_route();
    route.mutations.request = [("x-copy", "%REQ(x)%"), ("x-protocol", "%PROTOCOL%")]
        .map(|(name, text)| {
            let text = HeaderText::parse(text.as_bytes(), HeaderTarget::Request, false).unwrap();
            HeaderChange::Set(HeaderName::from_static(name), text)
        })
        .into();
    let http = HttpManager::new(RouteSource::Inline(Arc::new(RouteConfiguration::new(vec![VirtualHost::new(
        ["*"],
        vec![route],
    )]))));
    player.send(listener(address, vec![FilterChain::new("chain", http)]));
    within(mesh.serving()).await.unwrap();
    for (request, protocol) in [("GET / HTTP/1.0\r\n", "HTTP/1.0"), ("GET / HTTP/1.1\r\nhost: h\r\n", "HTTP/1.1")] {
        let own = "connection: close\r\nx: 1\r\nx-copy: forged\r\nx-protocol: forged\r\n\r\n";
        let answer = ask(address, &format!("{request}{own}")).await;
        assert!(answer.ends_with(&format!("\r\n\r\n1 {protocol}")), "{answer}");
    }
}

/// F26.
#[tokio::test]
async fn a_client_that_has_closed_its_side_gets_its_answers() {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = bound.local_addr();
    let (called, mut calls) = tokio::sync::mpsc::channel(2);
    let (go, gone) = tokio::sync::watch::channel(false);
    let app = service_fn(move |request: Request<Incoming>| {
        let (called, mut gone) = (called.clone(), gone.clone());
        async move {
            called.send(()).await.unwrap();
            gone.wait_for(|go| *go).await.unwrap();
            app(request).await
        }
    });
    tokio::spawn(server::serve(bound, mesh.server_layer().layer(app)).into_future());
    within(mesh.serving()).await.unwrap();
    // One request, two one after the other, and one whose body never comes to its end.
    let requests = [
        ("POST /1 HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc", vec!["/1 abc"]),
        ("GET /1 HTTP/1.1\r\nhost: h\r\n\r\nGET /2 HTTP/1.1\r\nhost: h\r\n\r\n", vec!["/1 ", "/2 "]),
        ("POST /1 HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nabc", vec!["/1 "]),
    ];
    for (request, bodies) in requests {
        go.send_replace(false);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        within(calls.recv()).await.unwrap();
        // By now the end of the client's side has been seen, if anybody looked.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        go.send_replace(true);
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), bodies.len(), "{answer}");
        assert!(bodies.iter().all(|body| answer.contains(&format!("\r\n\r\n{body}"))), "{answer}");
        while calls.try_recv().is_ok() {}
    }
}

/// RFC 9110, 15.2: they come before an answer, and an application has no way to send one that is followed by it.
#[tokio::test]
async fn an_application_that_answers_with_an_interim_status_has_failed_and_its_client_does_not_wait() {
    let interim = service_fn(|request: Request<Incoming>| async move {
        let status: u16 = request.uri().path()[1..].parse().unwrap();
        Ok::<_, Infallible>(Response::builder().status(status).body(Full::new(Bytes::from("?"))).unwrap())
    });
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = bound.local_addr();
    tokio::spawn(server::serve(bound, mesh.server_layer().layer(interim)).into_future());
    let (mut sender, connection) = h2::client::handshake(TcpStream::connect(address).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    for (status, expected) in [(100, 500), (101, 500), (103, 500), (199, 500), (200, 200)] {
        sender = within(sender.ready()).await.unwrap();
        let request = Request::get(format!("http://shop/{status}")).body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        let response = within(response).await.unwrap();
        assert_eq!(response.status(), expected, "{status}");
        let body = within(response.into_body().data()).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&body);
        assert!(expected == 200 || text.contains(&format!("answered with {status}")), "{text}");
    }
    for interim in [100, 103, 199] {
        let two = format!(
            "GET /{interim} HTTP/1.1\r\nhost: shop\r\n\r\nGET /200 HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n"
        );
        let answer = ask(address, &two).await;
        assert_eq!(status(&answer), "500", "{answer}");
        assert!(answer.contains("HTTP/1.1 200"), "the connection goes on: {answer}");
    }
}
