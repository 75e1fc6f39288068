//! The mesh's own connections: a pool for each endpoint, attached to the endpoint's state.

use std::collections::HashSet;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::{Cluster, ClusterProtocol, ClusterTls};
use mesh_core::request_info::RequestInfo;
use mesh_core::rewrite::edit;
use mesh_core::state::EndpointState;
use mesh_core::store::Targets;
use mesh_core::trace::Tables;

use super::http1::{Http1Connection, Http1Pool};
use super::http2::{Http2Pool, Http2Stream};
use super::{Connecting, Failure, HttpVersion, Security, Transport};
use crate::body::Body;
use crate::uri::{to_http1, to_http2};

/// The connections to one endpoint.
#[derive(Default)]
struct Pool {
    http1: Http1Pool,
    http2: Http2Pool,
}

impl Pool {
    /// A connection that is ready in a moment.
    async fn take(&self, cluster: &Cluster, version: HttpVersion) -> Option<PooledConnection> {
        match version {
            HttpVersion::Http1 => self.http1.take().await.map(PooledConnection::Http1),
            HttpVersion::Http2 => self.http2.take(cluster).map(PooledConnection::Http2),
        }
    }
}

/// A connection in use.
pub(crate) enum PooledConnection {
    /// Nobody else uses it meanwhile.
    Http1(Http1Connection),
    /// One stream of many.
    Http2(Http2Stream),
}

impl PooledConnection {
    /// Sends a request. hyper keeps it in a queue until the connection's task writes it.
    #[inline(always)]
    fn send(&mut self, request: Request<Body>) -> impl Future<Output = Result<Response<Incoming>, Lost>> + use<> {
        match self {
            PooledConnection::Http1(connection) => match connection.send(request) {
                Some(future) => Exchange::Http1 { future },
                None => Exchange::Unsent,
            },
            PooledConnection::Http2(stream) => match stream.send(request) {
                Some(future) => Exchange::Http2 { future },
                None => Exchange::Unsent,
            },
        }
    }
}

/// Why there is no answer: what hyper says, or `None` where the connection had ended before.
pub(crate) type Lost = Option<hyper::Error>;

/// The pool as a transport. hyper's futures cannot be named, so the type parameters stand for what makes them (`S`) and
/// for them (`F`).
pub(crate) struct Pooled<S, F> {
    send: S,
    exchange: PhantomData<fn() -> F>,
}

/// The mesh's own connections.
#[inline]
pub(crate) fn pooled() -> impl Transport<Connection = PooledConnection, Body = Incoming, Error = Lost> {
    Pooled { send: PooledConnection::send, exchange: PhantomData }
}

impl<S, F> Transport for Pooled<S, F>
where
    S: Fn(&mut PooledConnection, Request<Body>) -> F + Send + 'static,
    F: Future<Output = Result<Response<Incoming>, Lost>> + Send + 'static,
{
    type Connection = PooledConnection;
    type Body = Incoming;
    type Error = Lost;
    type Exchange = F;
    const READS_EXTENSIONS: bool = false;
    const SPEAKS_TLS: bool = false;
    const SPEAKS_CLUSTER_TLS: bool = true;

    #[inline]
    fn form(
        &self,
        head: &mut Parts,
        cluster: &Cluster,
        info: &RequestInfo,
        host: Option<&HeaderValue>,
    ) -> Result<HttpVersion, MeshError> {
        let version = version(&head.method, &head.headers, cluster, info);
        match version {
            HttpVersion::Http1 => to_http1(head, host)?,
            HttpVersion::Http2 => {
                to_http2(head)?;
                // What a server outside of the mesh is asked for, it is asked for by TLS (RFC 9113, 8.3.1).
                let scheme = if matches!(cluster.tls, ClusterTls::Foreign(_)) { Scheme::HTTPS } else { Scheme::HTTP };
                if head.uri.scheme().is_some_and(|present| *present != scheme) {
                    edit(&mut head.uri, |uri| uri.scheme = Some(scheme));
                }
            }
        }
        Ok(version)
    }

    #[inline]
    fn ready(
        &mut self,
        cluster: &Cluster,
        endpoint: &EndpointState,
        version: HttpVersion,
        _: Security,
    ) -> Option<PooledConnection> {
        // Whoever waits for a connection comes first.
        if endpoint.connections().is_awaited() {
            return None;
        }
        let pool = endpoint.attachment(Pool::default)?;
        match version {
            HttpVersion::Http1 => pool.http1.ready().map(PooledConnection::Http1),
            HttpVersion::Http2 => pool.http2.take(cluster).map(PooledConnection::Http2),
        }
    }

    fn connect(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<EndpointState>,
        version: HttpVersion,
        security: Security,
        reuse: bool,
    ) -> Connecting<PooledConnection> {
        Box::pin(connect(Arc::clone(cluster), Arc::clone(endpoint), version, security, reuse))
    }

    #[inline(always)]
    fn send(&self, connection: &mut PooledConnection, request: Request<Body>, _: &EndpointState) -> F {
        (self.send)(connection, request)
    }

    #[inline]
    fn tables(&self, connection: &PooledConnection) -> Tables {
        match connection {
            PooledConnection::Http2(stream) if stream.was_reused() => Tables::Spared,
            PooledConnection::Http1(_) | PooledConnection::Http2(_) => Tables::Kept,
        }
    }

    #[inline]
    fn answered(&self, connection: &PooledConnection) {
        if let PooledConnection::Http1(connection) = connection {
            connection.answered();
        }
    }

    fn failure(&self, error: Lost, connection: Option<PooledConnection>, is_idempotent: bool) -> Failure {
        let (reused, http1) = match &connection {
            Some(PooledConnection::Http1(connection)) => (connection.was_reused(), true),
            Some(PooledConnection::Http2(stream)) => (stream.was_reused(), false),
            None => (false, false),
        };
        Failure::of_exchange(error, reused, http1, is_idempotent)
    }

    #[inline]
    fn may_go_on(&self, connection: &PooledConnection, cluster: &Cluster) -> bool {
        match connection {
            PooledConnection::Http1(connection) => connection.may_go_on(cluster),
            PooledConnection::Http2(_) => true,
        }
    }

    fn hand_over(&self, connection: PooledConnection) {
        if let PooledConnection::Http1(connection) = connection {
            connection.hand_over();
        }
    }

    #[inline]
    fn release(&self, connection: PooledConnection, endpoint: &EndpointState) {
        match connection {
            PooledConnection::Http1(connection) => {
                if let Some(pool) = endpoint.attachment(Pool::default) {
                    pool.http1.give_back(connection);
                    endpoint.connections().free();
                }
            }
            PooledConnection::Http2(stream) => drop(stream),
        }
    }
}

/// What a request to a cluster is sent by.
#[inline]
fn version(method: &Method, headers: &HeaderMap, cluster: &Cluster, info: &RequestInfo) -> HttpVersion {
    // gRPC is HTTP/2, whatever the cluster says. An upgrade is a matter of HTTP/1.1.
    let upgrades = || method == Method::CONNECT || headers.contains_key(http::header::UPGRADE);
    let wants = info.is_grpc
        || match cluster.protocol {
            ClusterProtocol::Http1 => false,
            ClusterProtocol::Http2 => !upgrades(),
            ClusterProtocol::AsCaller => info.is_http2 && !upgrades(),
        };
    if wants { HttpVersion::Http2 } else { HttpVersion::Http1 }
}

/// How many connections to a peer that closes them at once are made for one try.
const MAX_DEAD: u32 = 1;

/// A connection: one that is there, if `reuse` says so, or a new one. Of HTTP/2 it may be one that somebody else
/// dialled meanwhile.
async fn connect(
    cluster: Arc<Cluster>,
    endpoint: Arc<EndpointState>,
    version: HttpVersion,
    security: Security,
    reuse: bool,
) -> Result<PooledConnection, MeshError> {
    let foreign = || MeshError::new(ErrorKind::ConnectFailure, "the endpoint's state belongs to another data plane");
    let pool = endpoint.attachment(Pool::default).ok_or_else(foreign)?;
    // One that is there in a moment is not waited for, as far as limits are concerned.
    if reuse
        && !endpoint.connections().is_awaited()
        && let Some(connection) = pool.take(&cluster, version).await
    {
        return Ok(connection);
    }
    let limits = &cluster.circuit_breakers;
    let _pending = endpoint.wait_for_connection(limits).ok_or_else(|| too_many_wait(limits.max_pending_requests))?;
    let mut dead = 0;
    loop {
        let mut freed = None;
        if limits.max_connections < u32::MAX || limits.max_connections_per_host < u32::MAX {
            let waiting = freed.insert(endpoint.connections().freed());
            // What becomes free from here on is not missed.
            waiting.enable();
        }
        if (reuse || version == HttpVersion::Http2)
            && let Some(connection) = pool.take(&cluster, version).await
        {
            return Ok(connection);
        }
        match version {
            HttpVersion::Http1 => {
                if let Some(permit) = endpoint.open(limits) {
                    drop(freed);
                    let dialled = super::http1::dial(&cluster, &endpoint, security, permit).await;
                    return dialled.map(PooledConnection::Http1);
                }
            }
            // Others may take the streams of the new connection, and there may be several rounds of that.
            HttpVersion::Http2 => {
                if let Some(dialled) = pool.http2.dial(&cluster, &endpoint, security).await {
                    dead += u32::from(!dialled?.is_alive());
                    if dead > MAX_DEAD {
                        let reason = "the connection closed as soon as it was made";
                        return Err(MeshError::new(ErrorKind::ConnectFailure, reason));
                    }
                    continue;
                }
            }
        }
        // There may be no more connections. One that only another request could use is in the way.
        let is_closed = match version {
            HttpVersion::Http1 => (!reuse && pool.http1.make_room()) || pool.http2.make_room(),
            HttpVersion::Http2 => pool.http1.make_room(),
        };
        match freed {
            Some(freed) => freed.wait().await,
            // Somebody closed it, and nobody counts.
            None if is_closed => {}
            None => tokio::task::yield_now().await,
        }
    }
}

/// A connection that an exchange went over.
pub(crate) struct Used {
    connection: PooledConnection,
    may_go_on: bool,
}

impl Used {
    /// The answer was read to its end: the next one may have it, where the cluster allows that.
    pub(crate) fn give_back(self, endpoint: &EndpointState) {
        if self.may_go_on {
            pooled().release(self.connection, endpoint);
        }
    }
}

/// Sends a request of the mesh's own, once: over a connection that others use too, or where it is not to `reuse` any over one
/// of its own.
pub(crate) async fn exchange(
    cluster: &Arc<Cluster>,
    endpoint: &Arc<EndpointState>,
    info: &RequestInfo,
    reuse: bool,
    request: Request<Body>,
) -> Result<(Response<Incoming>, Used), MeshError> {
    let security = Security::of(cluster, endpoint.is_mutual_tls())?;
    let mut transport = pooled();
    let (mut head, body) = request.into_parts();
    let version = transport.form(&mut head, cluster, info, None)?;
    let ready = if reuse { transport.ready(cluster, endpoint, version, security) } else { None };
    let mut connection = match ready {
        Some(connection) => connection,
        None if reuse => transport.connect(cluster, endpoint, version, security, true).await?,
        None => connect_apart(cluster, endpoint, version, security).await?,
    };
    let may_go_on = reuse && transport.may_go_on(&connection, cluster);
    let sent = transport.send(&mut connection, Request::from_parts(head, body), endpoint);
    match sent.await {
        Ok(response) => {
            transport.answered(&connection);
            Ok((response, Used { connection, may_go_on }))
        }
        Err(error) => Err(transport.failure(error, Some(connection), false).error),
    }
}

/// A connection that only one exchange goes over, whatever others there are.
async fn connect_apart(
    cluster: &Arc<Cluster>,
    endpoint: &Arc<EndpointState>,
    version: HttpVersion,
    security: Security,
) -> Result<PooledConnection, MeshError> {
    let overflow = || MeshError::new(ErrorKind::Overflow, "no connection is permitted");
    match version {
        HttpVersion::Http1 => {
            let permit = endpoint.open(&cluster.circuit_breakers).ok_or_else(overflow)?;
            super::http1::dial(cluster, endpoint, security, permit).await.map(PooledConnection::Http1)
        }
        HttpVersion::Http2 => {
            let own = Http2Pool::default();
            own.dial(cluster, endpoint, security).await.ok_or_else(overflow)??;
            let closed = || MeshError::new(ErrorKind::ConnectFailure, "the connection closed as soon as it was made");
            own.take(cluster).map(PooledConnection::Http2).ok_or_else(closed)
        }
    }
}

/// The failure of a request that may not even wait for a connection.
#[cold]
fn too_many_wait(max: u32) -> MeshError {
    let what =
        format!("{max} requests wait for a connection, which is its limit (circuit breaker max_pending_requests)");
    MeshError::new(ErrorKind::Overflow, what)
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
    /// A request on its way.
    #[project = ExchangeProjection]
    enum Exchange<L, R> {
        Http1 { #[pin] future: L },
        Http2 { #[pin] future: R },
        Unsent,
    }
}

impl<T, L, R> Future for Exchange<L, R>
where
    L: Future<Output = hyper::Result<T>>,
    R: Future<Output = hyper::Result<T>>,
{
    type Output = Result<T, Lost>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T, Lost>> {
        match self.project() {
            ExchangeProjection::Http1 { future } => future.poll(cx).map_err(Some),
            ExchangeProjection::Http2 { future } => future.poll(cx).map_err(Some),
            ExchangeProjection::Unsent => Poll::Ready(Err(None)),
        }
    }
}
