//! The validating webhook: an HTTPS port on which an API server asks whether objects may be stored.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::{StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use mesh_core::identity::TrustDomain;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::kubernetes::admission;
use crate::plane::Plane;
use crate::serve::clients::clock::now;
use crate::serve::io::tls::{Reloading, TlsFiles};

/// An object of etcd's largest, twice: as it was and as it will be.
const MOST_BYTES: usize = 8 << 20;
/// Reviews at a time, each of which looks at the whole configuration; who comes then waits.
const REVIEWS: usize = 2;
const CONNECTIONS: usize = 64;
const HANDSHAKE: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Desk {
    plane: Plane,
    turns: Arc<Semaphore>,
}

/// Answers reviews at `/validate`, over TLS with these files, until it is told to stop. Returns the address bound.
///
/// # Errors
/// The files cannot be used, or the address is taken.
pub(crate) async fn listen(
    address: SocketAddr,
    files: TlsFiles,
    domain: TrustDomain,
    plane: Plane,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<(SocketAddr, JoinHandle<()>)> {
    // Who asks is an API server, which has no certificate of the mesh.
    let acceptor = Arc::new(Reloading::new(files.client_ca(None), None, domain, now())?);
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let desk = Desk { plane, turns: Arc::new(Semaphore::new(REVIEWS)) };
    let router =
        Router::new().route("/validate", post(validate)).layer(DefaultBodyLimit::max(MOST_BYTES)).with_state(desk);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            while connections.try_join_next().is_some() {}
            let Ok((stream, _)) = accepted else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let (acceptor, router) = (acceptor.clone(), router.clone());
            connections.spawn(async move {
                let _place = place;
                let handshake = timeout(HANDSHAKE, async { acceptor.latest().await.accept(stream).await });
                let Ok(Ok(stream)) = handshake.await else { return };
                let mut builder = Builder::new(TokioExecutor::new());
                builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEPALIVE).max_concurrent_streams(64);
                drop(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await);
            });
        }
    });
    Ok((bound, task))
}

async fn validate(State(desk): State<Desk>, body: Bytes) -> Result<Response, Infallible> {
    let Ok(turn) = desk.turns.clone().acquire_owned().await else {
        return Ok(StatusCode::SERVICE_UNAVAILABLE.into_response());
    };
    let plane = desk.plane;
    let answered = spawn_blocking(move || {
        let _turn = turn;
        admission::answer(&body, |name, text| plane.review(&name, text))
    });
    Ok(match answered.await {
        Ok(Ok(answer)) => ([(header::CONTENT_TYPE, "application/json")], answer).into_response(),
        Ok(Err(why)) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    })
}
