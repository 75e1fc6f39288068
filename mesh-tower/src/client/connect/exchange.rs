//! The exchange: a request on its way over a connection, until the head of its response is here.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::Cluster;
use mesh_core::state::EndpointState;
use pin_project_lite::pin_project;

use super::Lease;
use super::replay::Replay;
use crate::body::Body;

pin_project! {
    /// An exchange under way. Dropping it gives the request up, and an HTTP/1.1 connection with it.
    pub(in crate::client) struct Exchange<F> {
        #[pin]
        response: Option<F>,
        lease: Option<Lease>,
        // Whether the connection had carried requests before: then it may have been closed since.
        reused: bool,
        // Whether the connection may carry another request after this one.
        goes_on: bool,
        replay: Replay,
    }
}

/// An exchange that failed.
pub(in crate::client) struct Failure {
    /// Why.
    pub(in crate::client) error: MeshError,
    /// The request, if it is whole again and sending it once more does no harm.
    pub(in crate::client) request: Option<Box<Request<Body>>>,
    /// Whether the connection alone was to blame, which had carried requests before.
    pub(in crate::client) blame: Blame,
}

/// What a failure says about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::client) enum Blame {
    /// Nothing in particular: it is the endpoint that failed.
    Endpoint,
    /// It had closed while nobody used it, and nothing was sent: any other connection will do, and no try was made.
    Stale,
    /// It closed without an answer. The server may have been about to close it, or the request may have been too
    /// much for it: once more, over a new connection (RFC 9112, 9.3.1; RFC 9110, 9.2.2 forbids a third time).
    Cut,
}

impl Failure {
    /// A failure that no further try can mend.
    pub(in crate::client) fn last(error: MeshError) -> Self {
        Failure { error, request: None, blame: Blame::Endpoint }
    }

    /// A failure before anything was sent.
    pub(in crate::client) fn unsent(error: MeshError, request: Request<Body>) -> Self {
        Failure { error, request: Some(Box::new(request)), blame: Blame::Endpoint }
    }

    /// The same, with the place where it happened.
    pub(in crate::client) fn within(mut self, cluster: &Cluster, endpoint: &EndpointState) -> Self {
        self.error = self.error.within(format_args!("cluster {}: endpoint {}", cluster.name, endpoint.id()));
        self
    }
}

impl<F: Future<Output = hyper::Result<Response<Incoming>>>> Exchange<F> {
    /// An exchange over a connection, yet to begin. `goes_on` says whether the connection may carry another one
    /// after it.
    #[inline(always)]
    pub(in crate::client) fn new(lease: Lease, goes_on: bool) -> Self {
        let reused = lease.is_reused();
        Exchange { response: None, lease: Some(lease), reused, goes_on, replay: Replay::default() }
    }

    /// Sends the request, which has the connection's form. `send` is [`Lease::send`], whose future has no name.
    #[inline(always)]
    pub(in crate::client) fn begin(
        &mut self,
        mut request: Request<Body>,
        send: impl FnOnce(&mut Lease, Request<Body>) -> F,
    ) {
        self.replay.keep(&mut request);
        self.response = self.lease.as_mut().map(|lease| send(lease, request));
    }
}

impl<F: Future<Output = hyper::Result<Response<Incoming>>>> Future for Exchange<F> {
    /// The lease is missing where the connection ends with this response.
    type Output = Result<(Response<Incoming>, Option<Lease>), Failure>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = this.response.as_pin_mut().expect("it has begun");
        Poll::Ready(match ready!(response.poll(cx)) {
            Ok(response) => {
                // An upgraded connection belongs to whoever took the upgrade.
                let goes_on = *this.goes_on && response.status() != StatusCode::SWITCHING_PROTOCOLS;
                Ok((response, this.lease.take().filter(|_| goes_on)))
            }
            Err(cause) => {
                // The connection, or the place on it, is free from here on.
                let http1 = matches!(this.lease.take(), Some(Lease::Http1(_)));
                Err(failure(cause, *this.reused, http1, this.replay))
            }
        })
    }
}

impl<F> Exchange<F> {
    /// Gives the request up.
    pub(in crate::client) fn abandon(self: Pin<&mut Self>) {
        let mut this = self.project();
        this.response.set(None);
        *this.lease = None;
    }
}

/// What to make of an error. A request that was never written is whole; so is one whose stream was refused
/// unseen, and where sending twice does no harm one whose old connection closed under it.
#[cold]
fn failure(cause: hyper::Error, reused: bool, http1: bool, replay: &mut Replay) -> Failure {
    // hyper cancels only what it has not sent.
    let unsent = cause.is_canceled();
    let refused = !unsent && was_refused(&cause);
    let cut = !unsent && http1 && reused && replay.is_idempotent() && was_closed(&cause);
    // A connection that ends drops the one request that waits in it for a stream, and says no more than of one that was
    // sent.
    let dropped = !unsent && !http1 && cause.is_user() && replay.is_idempotent();
    let request = (unsent || refused || cut || dropped).then(|| replay.restore()).flatten().map(Box::new);
    let error = match &request {
        _ if refused => MeshError::new(ErrorKind::RefusedStream, "the stream was refused"),
        Some(_) if unsent || dropped => {
            MeshError::new(ErrorKind::ConnectFailure, "the connection closed before the request was sent")
        }
        _ => MeshError::new(ErrorKind::ConnectionLost, "the connection failed before a response came"),
    };
    let blame = match &request {
        Some(_) if cut => Blame::Cut,
        Some(_) if unsent && reused => Blame::Stale,
        _ => Blame::Endpoint,
    };
    Failure { error: error.caused_by(cause), request, blame }
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
    reset || error.is_incomplete_message()
}
