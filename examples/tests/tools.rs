//! The echo and the curl of the mesh, against each other over real sockets.

use std::time::Duration;

use http::{HeaderMap, Method};
use mesh_core::fixed::Fixed;
use mesh_core::jwt::Claims;
use mesh_examples::cli::Format;
use mesh_examples::curl::{self, Call, Endpoints, Output, Stop, Summary};
use mesh_examples::echo::{self, Identity};
use mesh_examples::load::Pace;
use mesh_tower::{Mesh, server};
use prost::Message;
use serde_json::Value;
use tower::{Layer, ServiceExt};

/// A mesh in which `echo:80` is an echo.
async fn mesh_with_echo() -> Mesh {
    let server_mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = server_mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let app =
        mesh_tonic::server_layer(&server_mesh).layer(echo::app(&server_mesh, Identity::new("echo", "v1", address)));
    tokio::spawn(server::serve(listener, app).into_future());
    Mesh::builder()
        .source(Fixed::new().service("echo:80", [address]).service("xds:///echo:80", [address]))
        .observer(Endpoints)
        .start()
        .unwrap()
}

fn call(target: &str, body: &str) -> Call {
    let is_grpc = target.starts_with("xds:");
    Call {
        target: target.parse().unwrap(),
        method: if body.is_empty() { Method::GET } else { Method::POST },
        headers: HeaderMap::new(),
        body: if is_grpc { curl::text_message(body) } else { body.to_owned().into() },
        http2: false,
        timeout: Duration::from_secs(20),
    }
}

async fn run(mesh: &Mesh, call: Call, count: u64) -> (Summary, Vec<Value>) {
    let pace = Pace { count: Some(count), time: None, rate: None, concurrency: 2 };
    let mut out = Vec::new();
    let output = Output { format: Format::Json, headers: true };
    let ends = Stop { stop: std::future::pending(), abort: std::future::pending() };
    let summary = curl::run(mesh, call, pace, output, ends, &mut out).await.unwrap();
    let text = String::from_utf8(out).unwrap();
    (summary, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[tokio::test]
async fn an_http_request_comes_back_as_it_arrived() {
    let mesh = mesh_with_echo().await;
    for http2 in [false, true] {
        let mut call = call("http://echo:80/a/b?x=1", "hello");
        call.http2 = http2;
        call.headers.insert("x-color", "green".parse().unwrap());
        let (summary, lines) = run(&mesh, call, 3).await;
        assert!(summary.is_ok(), "{summary:?}");
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0]["status"], 200);
        assert!(lines[0]["backend"].as_str().unwrap().starts_with("echo-v1-127.0.0.1:"));
        let echo: Value = serde_json::from_str(lines[0]["body"].as_str().unwrap()).unwrap();
        assert_eq!(echo["http"], if http2 { "HTTP/2.0" } else { "HTTP/1.1" });
        assert_eq!((&echo["method"], &echo["path"], &echo["query"]), (&"POST".into(), &"/a/b".into(), &"x=1".into()));
        assert_eq!((&echo["body"], &echo["headers"]["x-color"]), (&"hello".into(), &"green".into()));
        assert!(echo["peer_address"].as_str().unwrap().starts_with("127.0.0.1:"));
        assert_eq!((&echo["peer"], &echo["tls"]), (&Value::Null, &Value::Null), "nobody is known in plaintext");
        assert_eq!(lines[0]["headers"]["content-type"], serde_json::json!(["application/json"]));
        assert_eq!(lines[3]["summary"]["requests"], 3);
    }
}

#[tokio::test]
async fn the_echo_tells_what_the_callers_token_says() {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let claims = serde_json::json!({"iss": "idp", "sub": "me", "groups": ["a"]});
    for (token, expected) in [(Some(&claims), &claims), (None, &Value::Null)] {
        let app = echo::app(&mesh, Identity::new("echo", "v1", "127.0.0.1:1".parse().unwrap()));
        let answer = |uri: &str, message: bytes::Bytes| {
            let mut request = http::Request::post(uri).body(axum::body::Body::from(message)).unwrap();
            request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            if uri == "/" {
                request.headers_mut().clear();
            }
            if let Some(token) = token {
                request.extensions_mut().insert(Claims::unverified(token.as_object().unwrap().clone(), &[].into()));
            }
            let answer = app.clone().oneshot(request);
            async move { axum::body::to_bytes(answer.await.unwrap().into_body(), 1 << 16).await.unwrap() }
        };
        let echo: Value = serde_json::from_slice(&answer("/", "hello".into()).await).unwrap();
        assert_eq!(&echo["claims"], expected);
        let message = curl::text_message("hello");
        let frame = [&[0, 0, 0, 0, u8::try_from(message.len()).unwrap()], &*message].concat();
        let reply = answer("/mesh.echo.v1.Echo/Unary", frame.into()).await;
        let reply = echo::proto::EchoReply::decode(&reply[5..]).unwrap();
        let told = serde_json::from_str(&reply.claims).unwrap_or(Value::Null);
        assert_eq!(&told, expected);
    }
}

#[tokio::test]
async fn a_grpc_call_of_every_kind_comes_back() {
    let mesh = mesh_with_echo().await;
    for method in ["Unary", "ServerStream", "ClientStream", "BidiStream"] {
        let call = call(&format!("xds:///echo:80/mesh.echo.v1.Echo/{method}"), "hello");
        let (summary, lines) = run(&mesh, call, 1).await;
        assert!(summary.is_ok(), "{method}: {summary:?}");
        assert_eq!((&lines[0]["status"], &lines[0]["body"]), (&"OK".into(), &"hello".into()), "{method}");
        assert!(lines[0]["backend"].as_str().unwrap().starts_with("echo-v1-127.0.0.1:"), "{method}");
    }
}

#[tokio::test]
async fn the_echo_fails_delays_and_hangs_when_asked() {
    let mesh = mesh_with_echo().await;
    let (summary, lines) = run(&mesh, call("http://echo:80/?x-echo-status=503", ""), 1).await;
    assert!(!summary.is_ok());
    assert_eq!((&lines[0]["status"], &lines[0]["error"]), (&503.into(), &Value::Null));

    let (_, lines) = run(&mesh, call("http://echo:80/?x-echo-delay=150ms", ""), 1).await;
    assert!(lines[0]["ms"].as_f64().unwrap() >= 150.0);

    let mut hanging = call("http://echo:80/?x-echo-hang", "");
    hanging.timeout = Duration::from_millis(200);
    let (_, lines) = run(&mesh, hanging, 1).await;
    assert_eq!(lines[0]["status"], 504);
    assert!(lines[0]["error"].as_str().unwrap().contains("deadline"), "{lines:?}");

    let mut failing = call("xds:///echo:80", "");
    failing.headers.insert("x-echo-grpc-status", "RESOURCE_EXHAUSTED".parse().unwrap());
    let (_, lines) = run(&mesh, failing, 1).await;
    assert_eq!(lines[0]["status"], "RESOURCE_EXHAUSTED");
    assert_eq!(lines[0]["error"], "as the request asked");

    let (_, lines) = run(&mesh, call("xds:///echo:80/some.Service/Method", ""), 1).await;
    assert_eq!(lines[0]["status"], "UNIMPLEMENTED");
}

#[tokio::test]
async fn what_the_mesh_cannot_send_is_told_in_its_own_words() {
    let mesh = mesh_with_echo().await;
    let (summary, lines) = run(&mesh, call("http://nobody:80/", ""), 1).await;
    assert!(!summary.is_ok());
    assert_eq!(lines[0]["status"], 502);
    assert!(lines[0]["error"].as_str().unwrap().contains("nobody:80"), "{lines:?}");
    let (_, lines) = run(&mesh, call("xds:///nobody:80/a.B/C", ""), 1).await;
    assert_eq!(lines[0]["status"], "UNAVAILABLE");
    assert!(lines[0]["error"].as_str().unwrap().contains("nobody:80"), "{lines:?}");
}

#[tokio::test]
async fn the_echo_tells_its_health_and_keeps_grpc_deadlines() {
    let mesh = mesh_with_echo().await;
    let (_, lines) = run(&mesh, call("xds:///echo:80/grpc.health.v1.Health/Check", "mesh.echo.v1.Echo"), 1).await;
    assert_eq!((&lines[0]["status"], &lines[0]["body"]), (&"OK".into(), &r#"{"1": 1}"#.into()));
    let mut late = call("xds:///echo:80", "");
    late.headers.insert("x-echo-delay", "5s".parse().unwrap());
    late.timeout = Duration::from_millis(100);
    let (_, lines) = run(&mesh, late, 1).await;
    assert_eq!(lines[0]["status"], "DEADLINE_EXCEEDED");
    assert!(lines[0]["ms"].as_f64().unwrap() < 4000.0);
}

#[tokio::test]
async fn bytes_come_back_over_a_connection_of_the_mesh() {
    let server = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = server.bind_tcp("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    tokio::spawn(echo::bytes(listener));
    let mesh = Mesh::builder().source(Fixed::new().service("bytes:7", [address])).start().unwrap();
    let (summary, lines) = run(&mesh, call("tcp://bytes:7", "hello\n"), 2).await;
    assert!(summary.is_ok(), "{lines:?}");
    assert_eq!((&lines[0]["status"], &lines[0]["body"]), (&"OK".into(), &"hello\n".into()));
    let (summary, lines) = run(&mesh, call("tcp://nobody:7", "hello"), 1).await;
    assert!(!summary.is_ok());
    assert_eq!(lines[0]["status"], "FAILED");
    assert!(lines[0]["error"].as_str().unwrap().contains("nobody:7"), "{lines:?}");
}

#[tokio::test]
async fn a_backend_without_a_name_is_its_endpoint() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new()).await });
    let source = Fixed::new().service("plain:80", [address]);
    let mesh = Mesh::builder().source(source).observer(Endpoints).start().unwrap();
    let (_, lines) = run(&mesh, call("http://plain:80/", ""), 1).await;
    assert_eq!((&lines[0]["status"], &lines[0]["backend"]), (&404.into(), &address.to_string().into()));
}
