//! The fifth station: a connection to the endpoint, reused or dialled, and the exchange over it.
//!
//! Every endpoint has a pool of its own, attached to the endpoint's state, so connections outlive configuration
//! and go away with their endpoint. A connection that turns out to be closed before the request was written
//! costs the request nothing: hyper gives it back and it goes to another connection.

mod http1;
mod http2;
mod replay;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use hyper::body::Incoming;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::id::Address;
use mesh_core::model::{Cluster, ClusterProtocol};
use mesh_core::state::EndpointState;
use mesh_core::store::Targets;
use tokio::net::TcpStream;

use super::attempt::Failure;
use super::{Outgoing, change};
use replay::Replay;

/// The connections to one endpoint.
#[derive(Default)]
struct Pool {
    http1: http1::Idle,
    http2: http2::Shared,
}

/// A connection in use.
pub(crate) enum Lease {
    /// Nobody else uses it meanwhile.
    Http1(http1::Connection),
    /// One stream of many.
    Http2(http2::Stream),
}

/// How many HTTP/2 connections may close under a request before that counts as a failed try.
const MAX_CLOSED: u32 = 3;

/// Sends a request to an endpoint and waits for the head of the response.
pub(super) async fn exchange(
    cluster: &Arc<Cluster>,
    endpoint: &Arc<EndpointState>,
    host: Option<&HeaderValue>,
    is_grpc: bool,
    request: &mut Outgoing,
) -> Result<(Response<Incoming>, Option<Lease>), Failure> {
    let Some(pool) = endpoint.attachment(Pool::default) else {
        let error = MeshError::new(ErrorKind::ConnectFailure, "the endpoint's state belongs to another data plane");
        return Err(Failure { error, unsent: false });
    };
    if speaks_http2(cluster.protocol, is_grpc, &request.parts) {
        change::to_http2(&mut request.parts).map_err(|error| Failure { error, unsent: false })?;
        over_http2(cluster, endpoint, pool, request).await
    } else {
        change::to_http1(&mut request.parts, host);
        over_http1(cluster, endpoint, pool, request).await
    }
}

fn speaks_http2(protocol: ClusterProtocol, is_grpc: bool, parts: &Parts) -> bool {
    let wants = match protocol {
        ClusterProtocol::Http1 => is_grpc,
        ClusterProtocol::Http2 => true,
        ClusterProtocol::AsCaller => is_grpc || parts.version == http::Version::HTTP_2,
    };
    // An upgrade is a matter of HTTP/1.1.
    wants && parts.method != http::Method::CONNECT && !parts.headers.contains_key(http::header::UPGRADE)
}

async fn over_http1(
    cluster: &Arc<Cluster>,
    endpoint: &Arc<EndpointState>,
    pool: &Pool,
    request: &mut Outgoing,
) -> Result<(Response<Incoming>, Option<Lease>), Failure> {
    loop {
        let (mut connection, reused) = match pool.http1.take().await {
            Some(connection) => (connection, true),
            None => {
                let dialled = Box::pin(http1::dial(cluster, endpoint)).await;
                (dialled.map_err(|error| Failure { error, unsent: true })?, false)
            }
        };
        // A server may close an idle connection just when a request is on its way. Where sending twice does no
        // harm, it is sent again (RFC 9112, 9.3.1).
        let replay = (reused && request.parts.method.is_idempotent()).then(|| Replay::of(request));
        let mut failed = match connection.send(request.take()).await {
            Ok(response) => {
                let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                let lease = (!upgraded && connection.may_go_on(cluster)).then_some(Lease::Http1(connection));
                return Ok((response, lease));
            }
            Err(failed) => failed,
        };
        let unsent = failed.take_message();
        let error = failed.into_error();
        let closed = was_closed(&error);
        let whole = match (unsent, replay) {
            (Some(unsent), _) => {
                request.put_back(unsent);
                true
            }
            (None, Some(replay)) if closed => replay.restore(request),
            (None, _) => false,
        };
        if !whole || !reused {
            return Err(Failure { error: lost(error, whole), unsent: whole });
        }
    }
}

async fn over_http2(
    cluster: &Arc<Cluster>,
    endpoint: &Arc<EndpointState>,
    pool: &Pool,
    request: &mut Outgoing,
) -> Result<(Response<Incoming>, Option<Lease>), Failure> {
    let mut closed = 0;
    loop {
        let stream = match pool.http2.take(cluster) {
            Some(stream) => stream,
            None => match Box::pin(pool.http2.dial(cluster, endpoint)).await {
                Ok(()) => continue,
                Err(error) => return Err(Failure { error, unsent: true }),
            },
        };
        let replay = Replay::of(request);
        let mut failed = match stream.send(request.take()).await {
            Ok(response) => return Ok((response, Some(Lease::Http2(stream)))),
            Err(failed) => failed,
        };
        let unsent = failed.take_message();
        let error = failed.into_error();
        if let Some(unsent) = unsent {
            // The connection closed before the stream was opened; it is not offered again.
            request.put_back(unsent);
            closed += 1;
            if closed == MAX_CLOSED {
                return Err(Failure { error: lost(error, true), unsent: true });
            }
            continue;
        }
        if was_refused(&error) {
            let error = MeshError::new(ErrorKind::RefusedStream, "the stream was refused").caused_by(error);
            return Err(Failure { error, unsent: replay.restore(request) });
        }
        return Err(Failure { error: lost(error, false), unsent: false });
    }
}

/// Whether the peer says that it has not looked at the stream: REFUSED_STREAM, or a GOAWAY below it (RFC 9113,
/// 8.7 and 6.8; gRFC A6 calls the retry of it transparent).
fn was_refused(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM) && error.is_remote();
            let leaving = error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
            return refused || leaving;
        }
        source = cause.source();
    }
    false
}

/// Whether an HTTP/1.1 connection ended before any response came: closed, or reset.
fn was_closed(error: &hyper::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    let reset = io.is_some_and(|io| matches!(io.kind(), ConnectionReset | ConnectionAborted | BrokenPipe));
    reset || error.is_closed() || error.is_incomplete_message() || error.is_canceled()
}

fn lost(error: hyper::Error, unsent: bool) -> MeshError {
    match unsent {
        true => MeshError::new(ErrorKind::ConnectFailure, "the connection closed before the request was sent"),
        false => MeshError::new(ErrorKind::ConnectionLost, "the connection failed before a response came"),
    }
    .caused_by(error)
}

/// Takes a connection back whose response has ended.
pub(super) fn give_back(endpoint: &Arc<EndpointState>, lease: Lease) {
    match lease {
        Lease::Http1(connection) => {
            if let Some(pool) = endpoint.attachment(Pool::default) {
                pool.http1.give_back(connection);
            }
        }
        Lease::Http2(stream) => drop(stream),
    }
}

/// Opens a TCP connection to the first address of the endpoint that accepts, within the cluster's timeout.
pub(super) async fn open(cluster: &Cluster, endpoint: &EndpointState) -> Result<TcpStream, MeshError> {
    let failed = |what: String| MeshError::new(ErrorKind::ConnectFailure, what);
    let try_all = async {
        let mut last = None;
        for address in endpoint.id().addresses() {
            let opened = match address {
                Address::Socket(socket) => TcpStream::connect(socket).await,
                Address::Host(host, port) => TcpStream::connect((&**host, *port)).await,
            };
            match opened {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(failed(format!("cannot connect to {address}")).caused_by(error)),
            }
        }
        Err(last.unwrap_or_else(|| failed("the endpoint has no address".into())))
    };
    let timeout = cluster.connect_timeout;
    let stream = tokio::time::timeout(timeout, try_all)
        .await
        .unwrap_or_else(|_| Err(failed(format!("cannot connect within {timeout:?}"))))?;
    // A request is written in few pieces and its answer waited for: never hold the last piece back.
    stream.set_nodelay(true).map_err(|error| failed("cannot set TCP_NODELAY".into()).caused_by(error))?;
    Ok(stream)
}

/// Closes connections that nobody uses, in time: one task for the whole mesh, on its own runtime, so that
/// neither requests nor the application's timers know of it.
pub(crate) async fn close_idle(targets: Targets) {
    let mut period = PERIODS.1;
    loop {
        tokio::time::sleep(period).await;
        let mut shortest = PERIODS.1 * 4;
        let mut seen = HashSet::new();
        for entry in targets.list() {
            let Some(view) = entry.peek() else { continue };
            for leaf in view.clusters().iter().flat_map(|cluster| cluster.leaves()) {
                let Some(limit) = leaf.cluster.idle_timeout else { continue };
                shortest = shortest.min(limit);
                if !seen.insert(Arc::as_ptr(&leaf.state)) {
                    continue;
                }
                leaf.state.each(|endpoint| {
                    if let Some(pool) = endpoint.attachment(Pool::default) {
                        pool.http1.pass(period, limit);
                        pool.http2.pass(period, limit);
                    }
                });
            }
        }
        period = (shortest / 4).clamp(PERIODS.0, PERIODS.1);
    }
}

/// How often idle connections are looked at: a quarter of the shortest idle timeout, within these bounds.
const PERIODS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
