//! HTTP/2: many requests at a time over one connection; another is dialled when its streams run out. One dial
//! at a time: whoever comes meanwhile waits for it.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::Cluster;
use mesh_core::state::{ConnectionPermit, Disconnect, Ending, EndpointState, HostConnections, SubchannelAttempt};
use tokio::sync::watch;

use super::Security;
use super::dial::HTTP2;
use super::interim::{Heads, Limited};
use crate::body::{self, Body, Started};
use crate::io::Retired;

/// Until the peer says otherwise, the first connection is taken to carry this many streams.
const INITIAL_STREAMS: u32 = 100;
/// The most that a peer may send in the headers of one response.
const MAX_HEADER_LIST_BYTES: u32 = 64 * 1024;

/// One connection, shared by its streams.
struct Http2Connection {
    /// Behind a lock, and not cloned for each request: sending is a push onto a queue. `None` where the connection ended as
    /// a request was sent.
    sender: Mutex<Option<http2::SendRequest<Body>>>,
    streams: AtomicU32,
    requests: Arc<AtomicU32>,
    /// As many as the peer allows, but never none: a request that the peer does not allow yet waits here, where
    /// another connection would be no better.
    limit: Arc<AtomicU32>,
    retired: Retired,
    idle: Mutex<IdleTime>,
    host: Arc<HostConnections>,
    ending: Option<Ending>,
}

impl Http2Connection {
    /// Whether it takes no more requests.
    fn is_closed(&self) -> bool {
        self.retired.is() || lock(&self.sender).as_ref().is_none_or(http2::SendRequest::is_closed)
    }
}

impl Drop for Http2Connection {
    fn drop(&mut self) {
        if let Some(ending) = &self.ending {
            ending.note(Disconnect::Shutdown);
        }
    }
}

/// How long nobody has used a connection, as of the last look.
#[derive(Default)]
struct IdleTime {
    requests: u32,
    idle_for: Duration,
}

/// One stream in use; its place is free again when it is dropped.
pub(crate) struct Http2Stream {
    connection: Arc<Http2Connection>,
    /// Whether the connection has carried a request before.
    reused: bool,
}

impl Http2Stream {
    /// Sends a request; `None` where there is nothing to send it by.
    #[inline]
    pub(super) fn send(
        &self,
        request: Request<Body>,
    ) -> Option<impl Future<Output = hyper::Result<Response<Incoming>>> + use<>> {
        let mut sender = lock(&self.connection.sender);
        let response = sender.as_mut().map(|sender| sender.send_request(request));
        // As over HTTP/1.1: what comes just as the connection ends is given back when nobody can send any more.
        let ended = sender.take_if(|sender| sender.is_closed());
        // Bodies that are given back are somebody else's, and may send requests themselves.
        drop(sender);
        drop(ended);
        response
    }

    /// Whether the connection had carried a request before the present one.
    pub(super) fn was_reused(&self) -> bool {
        self.reused
    }
}

impl Drop for Http2Stream {
    fn drop(&mut self) {
        self.connection.streams.fetch_sub(1, Ordering::SeqCst);
        self.connection.host.free();
    }
}

/// What a dial came to; `None` while it goes on.
type Dialled = Option<Result<NewConnection, MeshError>>;

/// A connection that was just made, as those see it who waited for it.
#[derive(Clone)]
pub(super) struct NewConnection(Weak<Http2Connection>);

impl NewConnection {
    /// Whether it has not closed yet.
    pub(super) fn is_alive(&self) -> bool {
        self.0.upgrade().is_some_and(|connection| !connection.is_closed())
    }
}

/// All connections to one endpoint.
#[derive(Default)]
pub(super) struct Http2Pool(Arc<Mutex<Connections>>);

#[derive(Default)]
struct Connections {
    open: Vec<Arc<Http2Connection>>,
    /// What the peer allows on the newest connection, which may be gone.
    allowed: Option<Arc<AtomicU32>>,
    dialling: Option<watch::Receiver<Dialled>>,
}

impl Http2Pool {
    /// A stream on a connection that has room for one.
    pub(super) fn take(&self, cluster: &Cluster) -> Option<Http2Stream> {
        lock(&self.0).stream(cluster)
    }

    /// Waits until there is one more connection, or until room appeared on another; `None` where there may be no more.
    pub(super) async fn dial(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<EndpointState>,
        security: Security,
    ) -> Option<Result<NewConnection, MeshError>> {
        let mut dial = lock(&self.0).dial(&Arc::downgrade(&self.0), cluster, endpoint, security)?;
        // A dial whose task is gone (its runtime was shut down) says nothing: then somebody dials again.
        let gone = || Ok(NewConnection(Weak::new()));
        Some(match dial.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(gone),
            Err(_) => gone(),
        })
    }

    /// Closes one that nobody uses, so that another can be made in its place. Whether there was one.
    pub(super) fn make_room(&self) -> bool {
        let mut connections = lock(&self.0);
        let idle = connections.open.iter().position(|open| open.streams.load(Ordering::SeqCst) == 0);
        idle.map(|idle| connections.open.remove(idle)).is_some()
    }

    /// Counts time that has passed, and closes what has been idle for too long.
    pub(super) fn pass(&self, time: Duration, limit: Duration) {
        lock(&self.0).open.retain(|connection| {
            let mut idle = lock(&connection.idle);
            let requests = connection.requests.load(Ordering::Relaxed);
            let used = connection.streams.load(Ordering::Acquire) > 0 || idle.requests != requests;
            idle.requests = requests;
            idle.idle_for = if used { Duration::ZERO } else { idle.idle_for.saturating_add(time) };
            !connection.is_closed() && idle.idle_for <= limit
        });
    }
}

impl Connections {
    fn stream(&mut self, cluster: &Cluster) -> Option<Http2Stream> {
        // With no stream at all, nothing could ever be sent.
        let own_limit = cluster.max_concurrent_streams.unwrap_or(u32::MAX).max(1);
        for (at, connection) in self.open.iter().enumerate() {
            // Streams come only under the lock of `Connections`, so the room seen here is there.
            let limit = connection.limit.load(Ordering::SeqCst).min(own_limit);
            let has_room = connection.streams.load(Ordering::SeqCst) < limit;
            if has_room && !connection.is_closed() {
                connection.streams.fetch_add(1, Ordering::SeqCst);
                let requests = connection.requests.fetch_add(1, Ordering::Relaxed) + 1;
                let stream = Http2Stream { connection: Arc::clone(connection), reused: requests > 1 };
                if cluster.max_requests_per_connection.is_some_and(|max| requests >= max) {
                    // From here on only its streams hold it.
                    self.open.remove(at);
                }
                return Some(stream);
            }
        }
        self.open.retain(|connection| !connection.is_closed());
        None
    }

    /// The dial in progress, or a new one. It has a task of its own, so that the request which started it can
    /// be cancelled without the others. `None` where there may be no more connections.
    fn dial(
        &mut self,
        pool: &Weak<Mutex<Connections>>,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<EndpointState>,
        security: Security,
    ) -> Option<watch::Receiver<Dialled>> {
        // A dial that has not answered and whose task is gone is over: its runtime was shut down.
        if let Some(dialling) = self.dialling.as_ref().filter(|dialling| dialling.has_changed().is_ok()) {
            return Some(dialling.clone());
        }
        let permit = endpoint.open(&cluster.circuit_breakers)?;
        let (outcome, dialling) = watch::channel(None);
        self.dialling = Some(dialling.clone());
        let (pool, cluster, endpoint) = (Weak::clone(pool), Arc::clone(cluster), Arc::clone(endpoint));
        // What the peer allowed on the last connection it will allow on the next.
        let streams = self.allowed.as_ref().map_or(INITIAL_STREAMS, |allowed| allowed.load(Ordering::Relaxed));
        tokio::spawn(async move {
            let dialled = dial(&cluster, &endpoint, security, permit, streams).await;
            let Some(pool) = pool.upgrade() else { return };
            let mut connections = lock(&pool);
            connections.dialling = None;
            let answer = dialled.map(|connection| {
                connections.allowed = Some(Arc::clone(&connection.limit));
                let connection = Arc::new(connection);
                connections.open.push(Arc::clone(&connection));
                NewConnection(Arc::downgrade(&connection))
            });
            drop(connections);
            outcome.send_replace(Some(answer));
        });
        Some(dialling)
    }
}

async fn dial(
    cluster: &Cluster,
    endpoint: &EndpointState,
    security: Security,
    permit: ConnectionPermit,
    streams: u32,
) -> Result<Http2Connection, MeshError> {
    let counted = endpoint.subchannel();
    let stream = match super::dial(cluster, endpoint, security, Some(HTTP2), permit).await {
        Ok(stream) => stream,
        Err(error) => {
            counted.into_iter().for_each(SubchannelAttempt::failed);
            return Err(error);
        }
    };
    // hyper gives a connection up by itself when its pings are not answered, or the peer breaks the protocol, which is rarer.
    let otherwise = if cluster.http2_keepalive.is_some() { Disconnect::TimedOut } else { Disconnect::Unknown };
    let subchannel = counted.map(|counted| counted.succeeded(security.is_tls(), otherwise));
    let ending = subchannel.as_ref().map(|subchannel| subchannel.ending().clone());
    let (requests, retired) = (Arc::<AtomicU32>::default(), stream.retired().clone());
    let stream = Limited { stream, limit: Heads::new(Arc::clone(&requests), subchannel) };
    let mut builder = http2::Builder::new(Tasks);
    builder.timer(TokioTimer::new()).max_header_list_size(MAX_HEADER_LIST_BYTES);
    if let Some(keepalive) = cluster.http2_keepalive {
        builder.keep_alive_while_idle(true).keep_alive_interval(keepalive.interval);
        builder.keep_alive_timeout(keepalive.timeout);
    }
    let (sender, connection) = builder
        .initial_max_send_streams(streams as usize)
        .handshake(TokioIo::new(Box::new(stream)))
        .await
        .map_err(|error| MeshError::new(ErrorKind::ConnectFailure, "HTTP/2 handshake").caused_by(error))?;
    let limit = Arc::new(AtomicU32::new(streams));
    let host = Arc::clone(endpoint.connections());
    tokio::spawn(Driver { connection, limit: Arc::clone(&limit), host: Arc::clone(&host) });
    Ok(Http2Connection {
        sender: Mutex::new(Some(sender)),
        streams: AtomicU32::new(0),
        requests,
        limit,
        retired,
        idle: Mutex::default(),
        host,
        ending,
    })
}

/// Runs hyper's tasks. One that sends an upload ends when the upload is cut off: it may wait for a window that the peer
/// never opens.
#[derive(Clone)]
struct Tasks;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        match body::started() {
            Some(Started::Begun(upload)) => drop(tokio::spawn(upload.bound(task))),
            // In no box, which would be one allocation more: the upload has cost some already.
            Some(Started::Over) => drop(tokio::spawn(task)),
            // In a box: it is as large as the task of the connection, and would be moved four times more.
            None => drop(tokio::spawn(Box::pin(task))),
        }
    }
}

/// Drives a connection, and notes how many streams the peer allows.
struct Driver {
    /// In a box: hyper's futures of single streams are as large as that of the connection, and are moved with each request.
    connection: http2::Connection<TokioIo<Box<Limited<Heads>>>, Body, Tasks>,
    limit: Arc<AtomicU32>,
    host: Arc<HostConnections>,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let polled = body::while_starting(|| Pin::new(&mut self.connection).poll(cx));
        let limit = u32::try_from(self.connection.current_max_send_streams()).unwrap_or(u32::MAX);
        if self.limit.swap(limit.max(1), Ordering::SeqCst) < limit {
            self.host.free();
        }
        // Its end is seen by whoever holds a sender.
        let _ = ready!(polled);
        Poll::Ready(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
