//! A listener, from bound to drained, over real sockets.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::server_support::{Player, absent, app_route, chain, listener, mesh, serve_all, within};
use mesh_core::error::ErrorKind;
use mesh_core::model::ServerTls;
use mesh_tower::Mesh;
use mesh_tower::health::Health;
use mesh_tower::server::{MeshIo, MeshListener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn bound() -> (Player, Mesh, MeshListener) {
    let (mut player, mesh) = mesh();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    player.wants(&[listener.local_addr()]).await;
    (player, mesh, listener)
}

async fn connect(listener: &MeshListener) -> TcpStream {
    TcpStream::connect(listener.local_addr()).await.unwrap()
}

/// Accepts a connection for as long as this takes.
async fn accept_for(listener: &mut MeshListener, millis: u64) -> Option<MeshIo> {
    let accepted = tokio::time::timeout(Duration::from_millis(millis), listener.accept()).await;
    accepted.ok().map(|accepted| accepted.expect("not draining").0)
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    match within(stream.read(&mut [0; 1])).await {
        Ok(read) => read == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[tokio::test]
async fn connections_wait_in_the_backlog_until_the_listener_is_known() {
    let (player, mesh, mut listener) = bound().await;
    let mut client = connect(&listener).await;
    client.write_all(b"x").await.unwrap();
    assert!(accept_for(&mut listener, 100).await.is_none());
    assert_eq!(mesh.health().now(), Health::Starting);
    player.send(serve_all(listener.local_addr()));
    let (mut io, peer) = within(listener.accept()).await.unwrap();
    assert_eq!(within(io.read_u8()).await.unwrap(), b'x');
    let ends = io.connection();
    assert_eq!((ends.local, ends.peer), (listener.local_addr(), peer));
    assert_eq!(peer, client.local_addr().unwrap());
}

#[tokio::test]
async fn a_listener_that_must_not_serve_closes_connections_until_it_may() {
    let (player, mesh, mut listener) = bound().await;
    player.send(absent(listener.local_addr(), "no such listener"));
    let error = within(mesh.serving()).await.unwrap_err();
    assert!(error.to_string().ends_with("no such listener"), "{error}");
    assert_eq!(mesh.health().now(), Health::NotServing("no such listener".into()));
    let mut refused = connect(&listener).await;
    assert!(accept_for(&mut listener, 100).await.is_none());
    assert!(is_closed(&mut refused).await);

    player.send(serve_all(listener.local_addr()));
    within(listener.serving()).await.unwrap();
    let _client = connect(&listener).await;
    assert!(accept_for(&mut listener, 5000).await.is_some());
}

#[tokio::test]
async fn the_loss_of_the_control_plane_changes_nothing_for_a_listener_that_serves() {
    let (player, mesh, mut listener) = bound().await;
    player.send(serve_all(listener.local_addr()));
    within(mesh.serving()).await.unwrap();
    drop(player);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let _client = connect(&listener).await;
    assert!(accept_for(&mut listener, 5000).await.is_some());
    assert_eq!(mesh.health().now(), Health::Serving);
}

#[tokio::test]
async fn without_an_answer_nothing_is_served_and_the_wait_ends_with_the_reason() {
    let (_player, source) = crate::server_support::played();
    let mesh = Mesh::builder().source(source).cold_start_wait(Duration::from_millis(50)).start().unwrap();
    let error = mesh.serving().await.unwrap_err();
    assert!(error.kind() == ErrorKind::NoListener && error.to_string().contains("no listener"), "{error}");
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let error = within(listener.serving()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotServingYet);
    let place = format!("listener server/{}", listener.local_addr());
    assert_eq!(error.to_string(), format!("{place}: no configuration yet (no answer from the control plane)"));
}

#[tokio::test]
async fn a_connection_without_a_chain_or_with_tls_that_cannot_be_had_is_closed() {
    let (player, mesh, mut bound) = bound().await;
    let mut secured = chain(vec![app_route()], vec![]);
    secured.tls = ServerTls::Unusable("TLS is not built".into());
    player.send(listener(bound.local_addr(), vec![secured]));
    within(mesh.serving()).await.unwrap();
    let mut refused = connect(&bound).await;
    assert!(accept_for(&mut bound, 100).await.is_none());
    assert!(is_closed(&mut refused).await);

    let mut elsewhere = chain(vec![app_route()], vec![]);
    elsewhere.matches.source_ports = vec![1];
    let mut only_elsewhere = listener(bound.local_addr(), vec![elsewhere, chain(vec![], vec![])]);
    if let mesh_core::resources::Change::Put(_, mesh_core::resources::Resource::Listener(listener)) =
        &mut only_elsewhere
        && let mesh_core::model::Listener::Server(listener) = std::sync::Arc::make_mut(listener)
    {
        listener.default_filter_chain = None;
    }
    player.send(only_elsewhere);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut refused = connect(&bound).await;
    assert!(accept_for(&mut bound, 100).await.is_none());
    assert!(is_closed(&mut refused).await);
}

#[tokio::test]
async fn a_drain_unsubscribes_at_once_accepts_on_and_takes_what_has_connected() {
    let (mut player, mesh, mut listener) = bound().await;
    let address = listener.local_addr();
    player.send(serve_all(address));
    within(mesh.serving()).await.unwrap();
    let drain = mesh.drain().clone();
    let draining = tokio::spawn(async move { drain.begin().await });
    player.wants(&[]).await;
    assert_eq!(mesh.health().now(), Health::Draining);
    let _early = connect(&listener).await;
    assert!(accept_for(&mut listener, 5000).await.is_some());

    // The listener is not asked until the drain closes it: what connects meanwhile waits in the backlog.
    let mut late = connect(&listener).await;
    late.write_all(b"x").await.unwrap();
    within(mesh.drain().reached(mesh_tower::drain::Phase::Closing)).await;
    let (mut io, _) = within(listener.accept()).await.expect("the one in the backlog");
    assert_eq!(within(io.read_u8()).await.unwrap(), b'x');
    assert!(within(listener.accept()).await.is_none());
    within(draining).await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    assert!(mesh.bind("127.0.0.1:0").await.is_err());
}

#[tokio::test]
async fn a_listener_that_is_dropped_unsubscribes() {
    let (mut player, _mesh, listener) = bound().await;
    drop(listener);
    player.wants(&[]).await;
}

#[tokio::test]
async fn the_stream_of_connections_ends_with_the_drain() {
    use futures_util::StreamExt;
    let (player, mesh, listener) = bound().await;
    player.send(serve_all(listener.local_addr()));
    let _client = connect(&listener).await;
    let mut incoming = listener.incoming();
    assert!(within(incoming.next()).await.is_some_and(|io| io.is_ok()));
    tokio::spawn(async move { mesh.drain().begin().await });
    assert!(within(incoming.next()).await.is_none());
    assert!(within(incoming.next()).await.is_none());
}

/// RS-2024-0376, CVE-2020-8663: the loop goes on when file descriptors run out. The descriptors of a process are
/// shared by all of its tests, so this one runs again in a process of its own with few of them.
#[test]
#[expect(clippy::disallowed_methods, reason = "the test tells its child by it")]
fn the_loop_goes_on_when_there_are_no_file_descriptors() {
    const CHILD: &str = "MESH_TEST_FEW_DESCRIPTORS";
    const NAME: &str = "accept::the_loop_goes_on_when_there_are_no_file_descriptors";
    if std::env::var_os(CHILD).is_some() {
        return accept_with_few_descriptors();
    }
    let shell = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 48 && exec \"$0\" --exact \"$1\" --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .arg(NAME)
        .env(CHILD, "1")
        .output();
    let output = shell.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{NAME} is the test's name");
}

#[tokio::main(flavor = "current_thread")]
async fn accept_with_few_descriptors() {
    let (player, mesh, mut listener) = bound().await;
    player.send(serve_all(listener.local_addr()));
    within(mesh.serving()).await.unwrap();
    let address: SocketAddr = listener.local_addr();
    let mut held = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        held.push(file);
    }
    held.pop();
    let mut client = TcpStream::connect(address).await.unwrap();
    assert!(accept_for(&mut listener, 300).await.is_none(), "no descriptor is left");
    client.write_all(b"x").await.unwrap();
    drop(held);
    let (mut io, _) = within(listener.accept()).await.unwrap();
    assert_eq!(within(io.read_u8()).await.unwrap(), b'x');
}
