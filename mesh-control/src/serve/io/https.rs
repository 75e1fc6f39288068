//! Ports of HTTPS that whoever reaches them may connect to: the validating webhook, the API, and the endpoint of the mesh's bundle;
//! and that of the status, which is plaintext.
//!
//! Nobody can hold such a port shut: who says nothing waits at the [`Door`], and of connections that are open, the newest is always
//! one.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use http::StatusCode;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use mesh_core::request::client_of;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::serve::clients::refusals::Port;
use crate::serve::io::door::{Door, accept};
use crate::serve::io::server::{Conn, Server};

/// Connections that are open at a time; see [`gives_way`].
pub(super) const CONNECTIONS: usize = 64;
const STREAMS_PER_CONNECTION: u32 = 64;
/// How long a request may take, from the end of its head to the answer. The API server is told to wait for half of that.
pub(super) const REQUEST: Duration = Duration::from_secs(10);
/// How long the head of a request over HTTP/1 may take, the wait for it included.
const HEAD: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How old a connection may become. An API server makes another one then.
const AGE: Duration = Duration::from_secs(300);
/// What a port of HTTPS has room for.
const ROOM: Room = Room { connections: CONNECTIONS, age: AGE };
/// What the status has: browsers have several connections each, and a live request may be waited for for an hour.
const ROOM_OF_STATUS: Room = Room { connections: 128, age: Duration::from_secs(7200) };
/// How long a connection that has to go may take for what it has in hand.
const LINGER: Duration = Duration::from_secs(2);

/// What a port has room for.
#[derive(Clone, Copy)]
struct Room {
    /// Connections that are open at a time.
    connections: usize,
    /// How old one may become.
    age: Duration,
}

/// A connection, for as long as nobody else needs its place: it ends with this.
struct Place {
    client: IpAddr,
    held: oneshot::Sender<()>,
}

/// Serves these routes at an address until it is told to stop: over TLS with what `acceptor` has for the next connection, each request
/// with who asks (`Peer`). Who is turned away is told with the status of `server`. Returns the address bound.
///
/// # Errors
/// The address is taken.
pub(super) async fn listen<A>(
    (port, address): (Port, SocketAddr),
    acceptor: impl Fn() -> A + Clone + Send + Sync + 'static,
    router: Router,
    server: &Server,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<(SocketAddr, JoinHandle<()>)>
where
    A: Future<Output = Option<TlsAcceptor>> + Send,
{
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let (connections, incoming) = mpsc::channel(CONNECTIONS);
    let door = Door::new(connections, port, server.state().clone(), false);
    let task = tokio::spawn(async move {
        let accepting = async {
            while let Some((stream, peer)) = accept(&listener, &door.connections).await {
                let acceptor = acceptor.clone();
                door.let_in(stream, peer, move |door, stream, _| async move {
                    door.tls(with_http1(&acceptor().await?), stream, peer).await
                });
            }
        };
        tokio::select! {
            () = accepting => {}
            () = serve(incoming, router, ROOM) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    });
    Ok((bound, task))
}

/// Serves these routes at an address in plaintext, until `stop` turns true or its sender is gone. Returns the address bound.
///
/// # Errors
/// The address is taken.
pub(super) async fn listen_plaintext(
    address: SocketAddr,
    router: Router,
    mut stop: watch::Receiver<bool>,
) -> io::Result<(SocketAddr, JoinHandle<()>)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let (connections, incoming) = mpsc::channel(CONNECTIONS);
    let task = tokio::spawn(async move {
        let accepting = async {
            while let Some((stream, peer)) = accept(&listener, &connections).await {
                // It is gone with the task.
                _ = connections.send(Conn::plaintext(stream, peer)).await;
            }
        };
        tokio::select! {
            () = accepting => {}
            () = serve(incoming, router, ROOM_OF_STATUS) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    });
    Ok((bound, task))
}

/// Who speaks no HTTP/2 is answered, too.
fn with_http1(acceptor: &TlsAcceptor) -> TlsAcceptor {
    const HTTP1: &[u8] = b"http/1.1";
    let mut config = ServerConfig::clone(acceptor.config());
    if !config.alpn_protocols.iter().any(|known| known == HTTP1) {
        config.alpn_protocols.push(HTTP1.to_vec());
    }
    TlsAcceptor::from(Arc::new(config))
}

/// Serves connections, of which each has its place.
async fn serve(mut incoming: mpsc::Receiver<Conn>, router: Router, room: Room) {
    let (mut serving, mut places) = (JoinSet::new(), Vec::<Place>::new());
    while let Some(connection) = incoming.recv().await {
        while serving.try_join_next().is_some() {}
        places.retain(|place| !place.held.is_closed());
        let client = client_of(connection.peer.ip);
        let (held, ended) = oneshot::channel();
        places.push(Place { client, held });
        if places.len() > room.connections
            && let Some(at) = gives_way(places.iter().map(|place| place.client))
        {
            places.remove(at);
        }
        // Those that linger are no more than those that do not.
        if serving.len() >= 2 * room.connections {
            serving.join_next().await;
        }
        serving.spawn(serve_one(connection, ended, router.clone(), room.age));
    }
}

/// Serves a connection until its place is given to another one.
async fn serve_one(connection: Conn, ended: oneshot::Receiver<()>, router: Router, age: Duration) {
    let router = router.layer(Extension(connection.peer.clone()));
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .max_concurrent_streams(STREAMS_PER_CONNECTION);
    let served = builder.serve_connection(TokioIo::new(connection), TowerToHyperService::new(router));
    let mut served = pin!(served);
    tokio::select! {
        _ = served.as_mut() => return,
        _ = ended => {}
        () = sleep(age) => {}
    }
    served.as_mut().graceful_shutdown();
    drop(timeout(LINGER, served).await);
}

/// Which of these connections gives way, named by their clients, the oldest first: the oldest of the client that has most.
fn gives_way(mut clients: impl Iterator<Item = IpAddr> + Clone) -> Option<usize> {
    let mut counts: HashMap<IpAddr, usize> = HashMap::new();
    clients.clone().for_each(|client| *counts.entry(client).or_default() += 1);
    let most = counts.values().max()?;
    clients.position(|client| counts.get(&client) == Some(most))
}

/// The same routes, of which each answers within `limit`, or as `late` says.
pub(super) fn in_time<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    limit: Duration,
    late: impl Fn() -> Response + Clone + Send + Sync + 'static,
) -> Router<S> {
    router.layer(middleware::from_fn(move |request: Request, next: Next| {
        let late = late.clone();
        async move { timeout(limit, next.run(request)).await.unwrap_or_else(|_| late()) }
    }))
}

/// The answer where nobody needs to know more.
pub(super) fn late() -> Response {
    (StatusCode::REQUEST_TIMEOUT, "it took too long\n").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_connection_of_whoever_has_most_gives_way() {
        let of = |clients: &[u8]| gives_way(clients.iter().map(|&last| IpAddr::from([10, 0, 0, last])));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[1, 2, 2, 3]), Some(1));
        assert_eq!(of(&[1, 2, 3]), Some(0));
    }
}
