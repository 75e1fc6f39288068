//! The fifth station: a connection to the endpoint, reused or dialled.
//!
//! Every endpoint has a pool of its own, attached to the endpoint's state, so connections outlive configuration
//! and go away with their endpoint.

mod exchange;
mod http1;
mod http2;
mod replay;

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use mesh_core::call::Call;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::id::Address;
use mesh_core::model::{Cluster, ClusterProtocol};
use mesh_core::state::{EndpointState, InFlight};
use mesh_core::store::Targets;
use tokio::net::TcpStream;

use super::change;
use crate::body::Body;

pub(super) use exchange::{Blame, Exchange, Failure};

/// The connections to one endpoint.
#[derive(Default)]
struct Pool {
    http1: http1::Idle,
    http2: http2::Shared,
}

/// The protocol of an exchange.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    /// What a request to a cluster is sent by.
    #[inline]
    pub(super) fn of<B>(request: &Request<B>, cluster: &Cluster, call: &Call) -> Self {
        // gRPC is HTTP/2, whatever the cluster says. An upgrade is a matter of HTTP/1.1.
        let upgrades = || request.method() == Method::CONNECT || request.headers().contains_key(http::header::UPGRADE);
        let wants = call.is_grpc
            || match cluster.protocol {
                ClusterProtocol::Http1 => false,
                ClusterProtocol::Http2 => !upgrades(),
                ClusterProtocol::AsCaller => call.is_http2 && !upgrades(),
            };
        if wants { Protocol::Http2 } else { Protocol::Http1 }
    }

    /// Gives a request this protocol's form. `host` is the usual `Host` header, made before.
    pub(super) fn form<B>(self, request: &mut Request<B>, host: Option<&HeaderValue>) -> Result<(), MeshError> {
        match self {
            Protocol::Http1 => {
                change::to_http1(request, host);
                Ok(())
            }
            Protocol::Http2 => change::to_http2(request),
        }
    }
}

/// A connection in use.
pub(crate) enum Lease {
    /// Nobody else uses it meanwhile.
    Http1(http1::Connection),
    /// One stream of many.
    Http2(http2::Stream),
}

impl Lease {
    /// Sends a request. hyper keeps it in a queue until the connection's task writes it.
    #[inline]
    pub(super) fn send(
        &mut self,
        request: Request<Body>,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<> {
        match self {
            Lease::Http1(connection) => Either::Left { future: connection.send(request) },
            Lease::Http2(stream) => Either::Right { future: stream.send(request) },
        }
    }

    /// Whether the connection has carried a request before.
    #[inline]
    fn is_reused(&self) -> bool {
        match self {
            Lease::Http1(connection) => connection.is_reused(),
            Lease::Http2(stream) => stream.is_reused(),
        }
    }

    /// Whether the cluster allows another request on the connection after the next one.
    #[inline]
    pub(super) fn may_go_on(&self, cluster: &Cluster) -> bool {
        match self {
            Lease::Http1(connection) => connection.may_go_on(cluster),
            Lease::Http2(_) => true,
        }
    }
}

/// What a response in progress holds: its place among the requests in flight, and its connection.
#[derive(Default)]
pub(crate) struct Guard {
    in_flight: Option<InFlight>,
    lease: Option<Lease>,
}

impl Guard {
    /// Of a response that has begun. Without a lease its connection ends with it.
    #[inline]
    pub(super) fn new(in_flight: InFlight, lease: Option<Lease>) -> Self {
        Guard { in_flight: Some(in_flight), lease }
    }

    /// The response has ended well: the connection can be used again.
    pub(crate) fn finished(&mut self) {
        if let (Some(in_flight), Some(lease)) = (self.in_flight.take(), self.lease.take()) {
            give_back(in_flight.endpoint(), lease);
        }
    }

    /// The response has not ended well: the connection is given up.
    pub(crate) fn failed(&mut self) {
        self.lease = None;
        self.in_flight = None;
    }
}

/// A connection that can take a request at once.
#[inline]
pub(super) fn ready(cluster: &Cluster, endpoint: &EndpointState, protocol: Protocol) -> Option<Lease> {
    let pool = endpoint.attachment(Pool::default)?;
    match protocol {
        Protocol::Http1 => pool.http1.ready().map(Lease::Http1),
        Protocol::Http2 => pool.http2.take(cluster).map(Lease::Http2),
    }
}

/// A connection: one that is there, if `reuse` says so, or a new one. Of HTTP/2 it may be one that somebody else
/// dialled meanwhile.
pub(super) async fn lease(
    cluster: &Arc<Cluster>,
    endpoint: &Arc<EndpointState>,
    protocol: Protocol,
    reuse: bool,
) -> Result<Lease, MeshError> {
    let foreign = || MeshError::new(ErrorKind::ConnectFailure, "the endpoint's state belongs to another data plane");
    let pool = endpoint.attachment(Pool::default).ok_or_else(foreign)?;
    if protocol == Protocol::Http1 {
        if reuse && let Some(connection) = pool.http1.take().await {
            return Ok(Lease::Http1(connection));
        }
        return Box::pin(http1::dial(cluster, endpoint)).await.map(Lease::Http1);
    }
    loop {
        match pool.http2.take(cluster) {
            Some(stream) => return Ok(Lease::Http2(stream)),
            None => Box::pin(pool.http2.dial(cluster, endpoint)).await?,
        }
    }
}

/// Takes a connection back that carries no request any more.
pub(super) fn give_back(endpoint: &EndpointState, lease: Lease) {
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
                let limit = leaf.cluster.idle_timeout.unwrap_or(Duration::MAX);
                shortest = shortest.min(limit);
                if !seen.insert(Arc::as_ptr(&leaf.state)) {
                    continue;
                }
                leaf.state.pass(period, limit);
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

pin_project_lite::pin_project! {
    /// One of two futures.
    #[project = EitherProjection]
    enum Either<L, R> {
        Left { #[pin] future: L },
        Right { #[pin] future: R },
    }
}

impl<L: Future, R: Future<Output = L::Output>> Future for Either<L, R> {
    type Output = L::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<L::Output> {
        match self.project() {
            EitherProjection::Left { future } => future.poll(cx),
            EitherProjection::Right { future } => future.poll(cx),
        }
    }
}
