//! A server loop on hyper: HTTP/1.1 and HTTP/2 on one port, with limits, and an end that loses nothing.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::Builder;
use mesh_core::error::{ErrorKind, MeshError};
use pin_project_lite::pin_project;
use tokio::task::{AbortHandle, JoinSet};
use tower_service::Service;

use crate::body::{Body, BoxError};
use crate::connection::ConnectionInfo;
use crate::listeners::ListenerState;
use crate::mesh::Mesh;
use crate::server::accept::{MeshIo, MeshListener};
use crate::server::carry::Carry;
use crate::server::limits::Limits;
use crate::server::monitor::{Activity, BusyGuard, ConnectionMonitor, Signal, Watched};
use crate::server::stalled::Stallable;
use crate::server::unseen;

/// Of a call that failed, in the head where there is nothing else.
const GRPC_STATUS: &str = "grpc-status";

/// Serves until the mesh has drained. The service sees every request of the listener; put
/// [`crate::Mesh::server_layer`] around the application.
///
/// Await it, or spawn it with `into_future`. When the drain is over, connections end with their last request;
/// those that take longer than the deadline are cut, and that is an error. Dropping the future cuts all of
/// them. Connections that were upgraded belong to the application and are left alone.
///
/// An HTTP/1.1 client that closes its side after a request gets its answer, if that takes no longer than
/// [`Limits::half_close_timeout`].
///
/// ```
/// use mesh_core::fixed::Fixed;
/// use mesh_tower::{Mesh, server};
/// use tower_layer::Layer;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mesh = Mesh::builder().source(Fixed::new()).start()?;
/// let app = tower::service_fn(|_| async { Ok::<_, std::io::Error>(http::Response::new("hello".to_owned())) });
/// let listener = mesh.bind("127.0.0.1:0").await?;
/// mesh.drain_on_signals()?;
/// # let draining = mesh.clone();
/// # tokio::spawn(async move { draining.drain().begin().await });
/// server::serve(listener, mesh.server_layer().layer(app)).await?;
/// # Ok(()) }
/// ```
pub fn serve<S>(listener: MeshListener, service: S) -> Serve<S> {
    Serve { listener, service, limits: Limits::default(), deadline: Duration::from_secs(25), opaque: None }
}

/// A server that is about to serve.
#[derive(Debug)]
#[must_use = "it serves when awaited"]
pub struct Serve<S> {
    listener: MeshListener,
    service: S,
    limits: Limits,
    deadline: Duration,
    opaque: Option<Carry>,
}

impl<S> Serve<S> {
    /// For the listener of a [gateway](crate::gateway): what becomes of connections that nobody looks into. Without it they are closed.
    pub fn carrying(mut self, carry: Carry) -> Self {
        self.opaque = Some(carry);
        self
    }

    /// Other limits than the default ones.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How long requests may take once nobody connects any more. 25 s by default: with the lame-duck time, a
    /// little less than the 30 s that Kubernetes grants.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same, with requests whose bodies can be shown to authorizers (`includeRequestBodyInCheck`): the service gets a
    /// [`Body`] in the place of hyper's, which nobody can put together again once something of it was read. It costs a box for
    /// each request that has a body. A service for any body, such as axum's `Router`, needs nothing else.
    ///
    /// ```
    /// use http::{Request, Response};
    /// use mesh_core::fixed::Fixed;
    /// use mesh_tower::body::Body;
    /// use mesh_tower::{Mesh, server};
    /// use tower_layer::Layer;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mesh = Mesh::builder().source(Fixed::new()).start()?;
    /// let echo = |request: Request<Body>| async { Ok::<_, std::io::Error>(Response::new(request.into_body())) };
    /// let app = mesh.server_layer().layer(tower::service_fn(echo));
    /// let serving = server::serve(mesh.bind("127.0.0.1:0").await?, app).readable_bodies();
    /// # drop(serving);
    /// # Ok(()) }
    /// ```
    pub fn readable_bodies(self) -> Serve<ReadableBodies<S>> {
        let Serve { listener, service, limits, deadline, opaque } = self;
        Serve { listener, service: ReadableBodies { service }, limits, deadline, opaque }
    }
}

/// A service whose requests have bodies that authorizers can be shown: see [`Serve::readable_bodies`].
#[derive(Clone, Debug)]
pub struct ReadableBodies<S> {
    service: S,
}

impl<S: Service<Request<Body>>> Service<Request<Incoming>> for ReadableBodies<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> S::Future {
        self.service.call(request.map(Body::new))
    }
}

impl<S, B> IntoFuture for Serve<S>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError> + Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<(), MeshError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<(), MeshError>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<S, B> Serve<S>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError> + Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    async fn run(mut self) -> Result<(), MeshError> {
        let limits = Arc::new(self.limits);
        let watched = Watchers::start(self.listener.mesh(), &limits);
        self.listener = self.listener.max_connections_per_client(limits.max_connections_per_client);
        let mut connections = JoinSet::new();
        let is_gateway = self.listener.is_of_gateway();
        loop {
            if connections.len() >= limits.max_connections.max(1) {
                connections.join_next().await;
                continue;
            }
            tokio::select! {
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    None => break,
                    Some((io, _)) => {
                        let activity = watched.add();
                        let (service, limits, opaque) = (self.service.clone(), Arc::clone(&limits), self.opaque.clone());
                        let name = is_gateway.then(|| Arc::clone(self.listener.listener()));
                        connections.spawn(async move {
                            match name {
                                None => converse(io, service, limits, activity).await,
                                Some(listener) => {
                                    if let Some(io) = carried(io, &listener, opaque).await {
                                        converse(io, service, limits, activity).await;
                                    }
                                }
                            }
                        });
                    }
                }
            }
        }
        watched.tell_all(Signal::End);
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(self.deadline, all).await.is_ok() {
            return Ok(());
        }
        let left = connections.len();
        connections.shutdown().await;
        let detail = format!("cut {left} connections that did not end within {:?}", self.deadline);
        Err(MeshError::new(ErrorKind::Draining, detail).within(format_args!("listener {}", self.listener.name())))
    }
}

/// The connections of a server, and the chore of looking after them.
struct Watchers {
    monitors: Arc<Mutex<Vec<ConnectionMonitor>>>,
    chore: AbortHandle,
}

impl Watchers {
    fn start(mesh: &Mesh, limits: &Arc<Limits>) -> Self {
        let monitors = Arc::<Mutex<Vec<ConnectionMonitor>>>::default();
        // Often enough to be a tenth late at most.
        let often =
            limits.head_timeout.min(limits.idle_timeout).min(limits.half_close_timeout).min(limits.stall_timeout) / 10;
        let often = often.clamp(Duration::from_millis(10), Duration::from_secs(1));
        let (watched, limits) = (Arc::clone(&monitors), Arc::clone(limits));
        let chore = mesh.background().spawn(async move {
            loop {
                tokio::time::sleep(often).await;
                let now = Instant::now();
                lock(&watched).retain_mut(|monitor| {
                    let Some(connection) = monitor.connection() else { return false };
                    connection.tell(monitor.judge(&connection, &limits, now));
                    true
                });
            }
        });
        Watchers { monitors, chore: chore.abort_handle() }
    }

    fn add(&self) -> Arc<Activity> {
        let activity = Activity::new();
        lock(&self.monitors).push(ConnectionMonitor::on(&activity, Instant::now()));
        activity
    }

    fn tell_all(&self, signal: Signal) {
        lock(&self.monitors)
            .iter()
            .filter_map(ConnectionMonitor::connection)
            .for_each(|connection| connection.tell(signal));
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.chore.abort();
    }
}

/// Nothing is left half-done under the lock, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection of a gateway, unless it is one that nobody looks into: that one is carried on.
async fn carried(mut io: MeshIo, listener: &ListenerState, opaque: Option<Carry>) -> Option<MeshIo> {
    // Why a handshake fails is told there.
    let onward = io.opened().await.ok()?;
    let Some(onward) = onward else { return Some(io) };
    match opaque {
        Some(carry) => carry.carry(io, listener, onward).await,
        None => tracing::warn!(listener = %listener.name(), "a connection is closed: nobody carries its bytes"),
    }
    None
}

/// One connection from its first byte to its last.
async fn converse<S, B>(mut io: MeshIo, service: S, limits: Arc<Limits>, activity: Arc<Activity>)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError> + Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (connection, seat) = (Arc::clone(io.connection()), Arc::clone(io.seat()));
    activity.belongs_to(io.is_told_of(), &connection);
    let io = TokioIo::new(Watched::new(io, &activity));
    let service = App { service, activity: Arc::clone(&activity) };
    let builder = builder(&connection, &activity, &limits);
    let mut conversation = pin!(builder.serve_connection_with_upgrades(io, service));
    let mut ending = false;
    let ended = ConnectionInfo::scope(
        Arc::clone(&connection),
        std::future::poll_fn(|cx| {
            match activity.signal(cx.waker()) {
                Signal::GoOn => {}
                Signal::End if ending => {}
                Signal::End => {
                    ending = true;
                    conversation.as_mut().graceful_shutdown();
                }
                Signal::CutHead => return Poll::Ready(Err("a request's head took too long".into())),
                Signal::CutHalfClosed => {
                    let what = "the client closed its side, and its answer took longer than half_close_timeout";
                    return Poll::Ready(Err(what.into()));
                }
                Signal::CutStalled => {
                    return Poll::Ready(Err("the client takes no notice of the end".into()));
                }
                Signal::CutUnread => {
                    return Poll::Ready(Err("the client takes nothing of what is there for it (stall_timeout)".into()));
                }
                Signal::CutUnseen => return Poll::Ready(Err("an answer past the mesh's policies".into())),
                Signal::CutBroken => return Poll::Ready(Err("the connection broke".into())),
            }
            conversation.as_mut().poll(cx)
        }),
    );
    if let Err(error) = ended.await {
        seat.ended(&*error);
        tracing::debug!(peer = %connection.peer, error, "connection failed");
    }
}

fn builder(connection: &Arc<ConnectionInfo>, activity: &Arc<Activity>, limits: &Limits) -> Builder<OnBehalf> {
    let mut builder = Builder::new(OnBehalf {
        connection: Arc::clone(connection),
        activity: Arc::clone(activity),
        stall_timeout: limits.stall_timeout,
    });
    let head = usize::try_from(limits.max_head).unwrap_or(usize::MAX);
    // The head's timeout is kept by `monitor`. hyper's least buffer is 8 KiB. A client that has closed its side may still
    // read (RFC 9112, 9.6), and cannot be told from one that is gone.
    builder.http1().header_read_timeout(None).max_buf_size(head.max(8 << 10)).half_close(true);
    builder
        .http2()
        .max_concurrent_streams(limits.max_concurrent_streams)
        .max_header_list_size(limits.max_head)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window);
    builder
}

/// Runs HTTP/2 streams so that they know their connection, and end where their client takes nothing of them.
#[derive(Clone, Debug)]
struct OnBehalf {
    connection: Arc<ConnectionInfo>,
    activity: Arc<Activity>,
    stall_timeout: Duration,
}

impl<F> hyper::rt::Executor<F> for OnBehalf
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        // In a box: the application's future is in it, which would be moved three times more.
        let stream = ConnectionInfo::scope(Arc::clone(&self.connection), Box::pin(stream));
        tokio::spawn(Stallable::new(stream, Arc::clone(&self.activity), self.stall_timeout));
    }
}

/// The application, as hyper calls it.
struct App<S> {
    service: S,
    activity: Arc<Activity>,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for App<S>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone,
    B: http_body::Body<Data = Bytes>,
{
    type Response = Response<BusyBody<B>>;
    type Error = S::Error;
    type Future = AppFuture<S>;

    fn call(&self, request: Request<Incoming>) -> AppFuture<S> {
        let (busy, is_http2) = (Some(self.activity.begin()), request.version() == Version::HTTP_2);
        let (mut service, mut is_seen) = (self.service.clone(), false);
        // Most services are always ready; the others are asked again by the task.
        let state = match service.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => AppState::Called { future: unseen::watch(&mut is_seen, || service.call(request)) },
            Poll::Ready(Err(error)) => AppState::Failed { error: Some(error) },
            Poll::Pending => AppState::Unready { waiting: Some(Box::new((service, request))) },
        };
        AppFuture { state, busy, is_http2, is_seen }
    }
}

pin_project! {
    /// A response of the application.
    struct AppFuture<S>
    where
        S: Service<Request<Incoming>>,
    {
        #[pin]
        state: AppState<S, S::Future, S::Error>,
        busy: Option<BusyGuard>,
        is_http2: bool,
        // Whether the mesh's layer saw the request.
        is_seen: bool,
    }
}

pin_project! {
    #[project = AppProjection]
    enum AppState<S, F, E> {
        Called {
            #[pin]
            future: F,
        },
        Unready {
            waiting: Option<Box<(S, Request<Incoming>)>>,
        },
        Failed {
            error: Option<E>,
        },
        // Its answer does not leave, and the connection is told to end.
        KeptBack,
    }
}

impl<S, B> Future for AppFuture<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
{
    type Output = Result<Response<BusyBody<B>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const ONCE: &str = "a future is not polled after it returned";
        let mut this = self.project();
        loop {
            let future = match this.state.as_mut().project() {
                AppProjection::Called { future } => {
                    let response = ready!(unseen::watch(this.is_seen, || future.poll(cx)));
                    if !*this.is_seen
                        && response.as_ref().is_ok_and(|response| !is_failure(response))
                        && this.busy.as_ref().is_some_and(|busy| !busy.lets_out_unseen())
                    {
                        this.state.set(AppState::KeptBack);
                        return Poll::Pending;
                    }
                    let (mut busy, is_http2) = (this.busy.take(), *this.is_http2);
                    busy.iter_mut().for_each(|busy| busy.note_handed(true));
                    return Poll::Ready(
                        response
                            .map(|response| response.map(|body| BusyBody { body, rest: Bytes::new(), busy, is_http2 })),
                    );
                }
                AppProjection::Unready { waiting } => {
                    let (service, _) = waiting.as_deref_mut().expect(ONCE);
                    ready!(service.poll_ready(cx))?;
                    let (mut service, request) = *waiting.take().expect(ONCE);
                    unseen::watch(this.is_seen, || service.call(request))
                }
                AppProjection::Failed { error } => return Poll::Ready(Err(error.take().expect(ONCE))),
                AppProjection::KeptBack => return Poll::Pending,
            };
            this.state.set(AppState::Called { future });
        }
    }
}

/// Whether an answer says no more than that there is none: layers around the mesh's may refuse, by a limit or a deadline.
fn is_failure<B>(response: &Response<B>) -> bool {
    let status = response.status();
    let is_failed_call = || response.headers().get(GRPC_STATUS).is_some_and(|status| status != "0");
    status.is_client_error() || status.is_server_error() || is_failed_call()
}

/// How much of an answer over HTTP/2 is handed to the library at a time: a frame of the usual size. The library keeps the last piece of
/// an answer that is not taken, and the answer's task is over: so much, then, for each of the streams that a client may have.
const PIECE: usize = 16 << 10;

pin_project! {
    /// A response's body; its connection is busy for as long as it lives.
    struct BusyBody<B> {
        #[pin]
        body: B,
        // What was not handed out yet of the last piece.
        rest: Bytes,
        busy: Option<BusyGuard>,
        is_http2: bool,
    }
}

/// The next piece. The last one is a copy, so that it does not keep all of what it was a part of.
fn piece(rest: &mut Bytes) -> Bytes {
    match rest.len() > PIECE {
        true => rest.split_to(PIECE),
        false => Bytes::copy_from_slice(&std::mem::take(rest)),
    }
}

impl<B: http_body::Body<Data = Bytes>> http_body::Body for BusyBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let polled = match this.rest.is_empty() {
            true => this.body.poll_frame(cx),
            false => Poll::Ready(Some(Ok(Frame::data(piece(this.rest))))),
        };
        this.busy.iter_mut().for_each(|busy| busy.note_handed(polled.is_ready()));
        polled.map_ok(|frame| match frame.into_data() {
            Ok(data) if *this.is_http2 && data.len() > PIECE => {
                *this.rest = data;
                Frame::data(piece(this.rest))
            }
            Ok(data) => Frame::data(data),
            Err(other) => other,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    /// It is asked for before there is a rest.
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
