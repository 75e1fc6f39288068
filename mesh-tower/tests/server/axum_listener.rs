//! The listener and the layer under `axum::serve` (Cargo feature `axum`).
#![cfg(feature = "axum")]

use std::net::SocketAddr;

use crate::floods::{ENHANCE_YOUR_CALM, streams_to_reset};
use crate::server_support::{chain, frames, is_answered, listener, mesh, serve_all, within};
use axum::Router;
use axum::extract::ConnectInfo;
use axum::routing::get;
use mesh_core::fixed::Fixed;
use mesh_tower::Mesh;
use mesh_tower::drain::Phase;
use mesh_tower::server::ConnectionInfo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends a request that asks for the connection to be closed; the whole answer.
async fn ask(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within(stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn axum_serves_a_mesh_listener_and_ends_with_the_drain() {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let app = Router::new().route("/hello", get(|| async { "hello" })).layer(mesh.server_layer());
    let serving = axum::serve(listener, app).with_graceful_shutdown(mesh.drained());
    let serving = tokio::spawn(serving.into_future());
    assert!(ask(address, "/hello").await.ends_with("hello"));
    let drain = mesh.drain().clone();
    tokio::spawn(async move { drain.begin().await });
    within(mesh.drain().reached(Phase::LameDuck)).await;
    assert!(ask(address, "/hello").await.ends_with("hello"));
    within(serving).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn axum_may_serve_several_listeners_with_one_layer_if_it_knows_the_connection() {
    let (player, mesh) = mesh();
    let open = mesh.bind("127.0.0.1:0").await.unwrap();
    let shut = mesh.bind("127.0.0.1:0").await.unwrap();
    player.send(serve_all(open.local_addr()));
    player.send(listener(shut.local_addr(), vec![chain(vec![], vec![])]));
    within(mesh.serving()).await.unwrap();
    let peer = |ConnectInfo(connection): ConnectInfo<ConnectionInfo>| async move { connection.peer.ip().to_string() };
    let app = Router::new().route("/", get(peer)).layer(mesh.server_layer());
    let addresses = [open.local_addr(), shut.local_addr()];
    for bound in [open, shut] {
        let app = app.clone().into_make_service_with_connect_info::<ConnectionInfo>();
        tokio::spawn(axum::serve(bound, app).into_future());
    }
    assert!(ask(addresses[0], "/").await.ends_with("127.0.0.1"));
    assert!(ask(addresses[1], "/").await.starts_with("HTTP/1.1 404"));
}

/// What `mesh_tower::server::serve` does about floods does not depend on it: neither about those that the mesh ends itself, nor about
/// those that the HTTP library ends.
#[tokio::test]
async fn h7_a_client_that_floods_its_server_is_let_in_no_more_under_axum_either() {
    let pings = [frames::PREFACE, &frames::frame(6, 0, 0, &[7; 8]).repeat(400_000)].concat();
    for (flood, code) in [(pings, None), (streams_to_reset(3_000), Some(ENHANCE_YOUR_CALM))] {
        let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
        let listener = mesh.bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr();
        let app = Router::new().route("/hello", get(|| async { "hello" })).layer(mesh.server_layer());
        tokio::spawn(axum::serve(listener, app).into_future());
        for _ in 0..10 {
            assert!(ask(address, "/hello").await.ends_with("hello"));
            let answer = frames::ask(address, &flood).await;
            assert!(frames::frames(&answer).len() < 400_000);
            assert!(code.is_none() || frames::goaway(&answer) == code);
        }
        let is_let_in = async || {
            let mut stream = TcpStream::connect(address).await.unwrap();
            _ = stream.write_all(b"GET /hello HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await;
            let mut answer = Vec::new();
            _ = stream.read_to_end(&mut answer).await;
            !answer.is_empty()
        };
        within(async { while is_let_in().await {} }).await;
    }
}

#[tokio::test]
async fn h13_a_pseudo_header_in_trailers_is_refused_under_axum_too() {
    use frames::{END_HEADERS, END_STREAM, GET, PREFACE, field, frame};
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let app = Router::new().route("/", get(|body: String| async { body })).layer(mesh.server_layer());
    tokio::spawn(axum::serve(listener, app).into_future());
    for (name, is_answered) in [(":path", false), ("x-path", true)] {
        let trailers = frame(1, END_STREAM | END_HEADERS, 1, &field(name.as_bytes(), b"/admin"));
        let said =
            [PREFACE, &frame(1, END_HEADERS, 1, GET), &frame(0, 0, 1, b"body"), &trailers, &frame(7, 0, 0, &[0; 8])];
        let answer = frames::ask(address, &said.concat()).await;
        assert_eq!(frames::frames(&answer).iter().any(|(.., data)| data == b"body"), is_answered, "{name}");
    }
}

/// A handler that asks somebody else, and fails as that fails.
#[tokio::test]
async fn an_error_of_the_mesh_is_a_response_of_a_handler() {
    use http_body_util::BodyExt;
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let caller = Mesh::builder().source(Fixed::new().service("gone:80", [nobody])).start().unwrap();
    let client = caller.client();
    let ask_on = get(async move |axum::extract::Path(host): axum::extract::Path<String>| {
        let answer = client.get(format!("http://{host}/")).await?;
        Ok::<_, mesh_tower::MeshError>(answer.status().to_string())
    });
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let app = Router::new().route("/{host}", ask_on).layer(mesh.server_layer());
    tokio::spawn(axum::serve(listener, app).into_future());
    for (host, status) in [("gone:80", "503"), ("unknown:80", "502")] {
        let answer = ask(address, &format!("/{host}")).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
        let error = caller.client().get(format!("http://{host}/")).await.unwrap_err();
        assert!(answer.ends_with(&format!("{error:#}")), "{answer}");
        // What the mesh itself answers is the same.
        let own = mesh_tower::reply::error(&error, false).map(http_body_util::Full::new);
        assert_eq!(
            (own.status().as_str(), own.collect().await.unwrap().to_bytes()),
            (status, format!("{error:#}").into())
        );
    }
}

#[tokio::test]
async fn h7_a_client_has_as_many_connections_as_the_listener_says_under_axum() {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap().max_connections_per_client(2);
    let address = listener.local_addr();
    let app = Router::new().route("/hello", get(|| async { "hello" })).layer(mesh.server_layer());
    tokio::spawn(axum::serve(listener, app).into_future());
    let is_served = async |stream: &mut TcpStream| is_answered(stream, "/hello", "hello").await;
    let connect = async || TcpStream::connect(address).await.unwrap();
    let (mut one, mut two) = (connect().await, connect().await);
    assert!(is_served(&mut one).await && is_served(&mut two).await);
    assert!(!is_served(&mut connect().await).await, "a third one");
}
