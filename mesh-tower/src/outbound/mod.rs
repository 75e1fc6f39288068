//! An outbound request, from the caller's hands to the end of its response's body: one state machine, whoever the
//! caller is and whatever takes the request to its endpoint.
//!
//! [`request`] has what a request knows and holds. Its steps are plain functions, in the order of the walk: [`route`]
//! finds the target's view, the route, and what the route wants; [`attempt`] picks an endpoint and a connection, and
//! decides what becomes of a failure, [`hedge`] has tries go on beside each other; [`response_body`] is the way home. A step goes on to the next one as long as
//! nothing has to be waited for, so most requests are in the connection's queue before the call returns. What is
//! waited for, that is a first view, a filter, a pause, a dial, is a [`Wait`], and what it wakes up with says where to
//! go on.

mod attempt;
mod coalesce;
mod coalesced;
mod hedge;
mod mirror;
mod placement;
mod request;
mod response_body;
mod rewrite;
mod route;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{Response, StatusCode};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::request_info::{RequestInfo, grpc_status};
use pin_project_lite::pin_project;

use crate::body::{Body, BoxError, length, note_frame};
use crate::connection::ConnectionInfo;
use crate::reply;
use crate::transport::{Replay, Transport};

pub(crate) use coalesce::{join, key};
pub(crate) use coalesced::Coalescer;
pub use mirror::MirrorCounts;
pub(crate) use mirror::Mirrors;
pub use placement::{Follow, Placement};
pub(crate) use request::{Attempt, FixedTarget, OutboundContext, within};
pub use response_body::ResponseBody;
pub(crate) use route::{entry, original_destination, refuse_scheme, refuse_tls};

use request::{ActiveRequest, Expired, Step, Wait, Woken};
use response_body::{Content, Underway};

/// Sends a request as far as it gets without waiting. The one allocation of a request is made here, and lasts to the
/// end of the response's body.
#[inline]
pub(crate) fn send<T: Transport>(
    context: &Arc<OutboundContext>,
    transport: T,
    head: Parts,
    body: Body,
) -> ResponseFuture<T::Body> {
    // Memory first: so it is filled where it is, and not moved there.
    let (memory, context) = (Box::new_uninit(), Arc::clone(context));
    let (now, random) = (Instant::now(), fastrand::Rng::new());
    let outbound = Box::write(
        memory,
        Outbound {
            request: ActiveRequest {
                context,
                transport,
                info: RequestInfo::new(now, random),
                follows: false,
                route: None,
                filters_entered: 0,
                original_destination: None,
                set_cookies: Box::default(),
                copies: None,
                attempt: None,
                connection: None,
                replay: Replay::default(),
                was_cut: false,
                route_wants_response: false,
                policy_wants_response: false,
                policy_is_paid: false,
                paid: 0,
                retry: None,
                try_until: None,
                rivals: None,
                timer: None,
            },
            flight: Flight::Here { request: None },
            wait: None,
        },
    );
    let mut outbound = Box::into_pin(outbound);
    match outbound.as_mut().step(head, body, ActiveRequest::start) {
        None => ResponseFuture { state: State::Underway { outbound } },
        Some(Ok(mut response)) => {
            response.body_mut().attach(outbound);
            ResponseFuture::ready(Ok(response))
        }
        Some(Err(error)) => ResponseFuture::ready(Err(error)),
    }
}

pin_project! {
    /// A request with what it waits for.
    struct Outbound<T>
    where
        T: Transport,
    {
        request: ActiveRequest<T>,
        #[pin]
        flight: Flight<T::Exchange>,
        wait: Option<Wait<T::Connection>>,
    }
}

pin_project! {
    /// Where the request itself is.
    #[project = FlightProjection]
    enum Flight<F> {
        /// Not sent yet, or whole again; `None` while a step has it, and where it is lost.
        Here { request: Option<(Parts, Body)> },
        /// On its way.
        Away {
            #[pin]
            exchange: F,
        },
        /// On its way, as a try that may go on beside the next one; `None` while it is put there.
        Apart { exchange: Option<Pin<Box<F>>> },
    }
}

impl<F: Future> FlightProjection<'_, F> {
    /// What becomes of a request on its way; `None` where it is not.
    #[inline]
    fn poll(self, cx: &mut Context<'_>) -> Option<Poll<F::Output>> {
        match self {
            FlightProjection::Here { .. } => None,
            FlightProjection::Away { exchange } => Some(exchange.poll(cx)),
            FlightProjection::Apart { exchange } => exchange.as_mut().map(|exchange| exchange.as_mut().poll(cx)),
        }
    }
}

/// The head of the response, or why there is none.
type Concluded<B> = Result<Response<ResponseBody<B>>, MeshError>;

impl<T: Transport> Outbound<T> {
    /// Takes a step with the request, and does what it asks for; what the request came to, if that was the last one.
    #[inline(always)]
    fn step(
        self: Pin<&mut Self>,
        mut head: Parts,
        mut body: Body,
        step: impl FnOnce(&mut ActiveRequest<T>, &mut Parts) -> Result<Step<T>, MeshError>,
    ) -> Option<Concluded<T::Body>> {
        let mut this = self.project();
        let step = step(this.request, &mut head);
        match step {
            Ok(Step::Send) => match length::check(&mut head, &mut body) {
                Ok(()) => {
                    // What is sent nowhere is copied nowhere, nor is anything of a client that may be gone.
                    if let Some(copies) = this.request.copies.take().filter(|_| !ConnectionInfo::may_be_left()) {
                        copies.go_with(&mut body, &mut this.request.info);
                    }
                    let exchange = this.request.dispatch(head, body);
                    this.flight.set(match this.request.hedges() {
                        false => Flight::Away { exchange },
                        true => Flight::Apart { exchange: Some(Box::pin(exchange)) },
                    });
                }
                Err(error) => return Some(Err(this.request.refuse(error))),
            },
            Ok(Step::Wait(wait)) => {
                this.flight.set(Flight::Here { request: Some((head, body)) });
                *this.wait = Some(wait);
            }
            Ok(Step::Done(response)) => {
                return Some(Ok(this.request.deliver(reply::to(&head.method, response))));
            }
            Err(error) => return this.request.lost(error).map(Err),
        }
        None
    }

    /// The same after an exchange, which has left the request whole or not.
    #[cold]
    fn step_after(
        self: Pin<&mut Self>,
        request: Option<(Parts, Body)>,
        step: Result<Step<T>, MeshError>,
    ) -> Option<Concluded<T::Body>> {
        match (request, step) {
            (Some((head, body)), step) => self.step(head, body, |_, _| step),
            (None, Err(error)) => self.project().request.lost(error).map(Err),
            (None, Ok(_)) => unreachable!("a request that is not whole is not tried again"),
        }
    }
}

impl<T: Transport> Underway<T::Body> for Outbound<T> {
    #[inline]
    fn poll_response(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Concluded<T::Body>> {
        loop {
            let mut this = self.as_mut().project();
            if this.request.has_rivals() {
                let is_over = this.wait.is_none() && this.request.attempt.is_none();
                if let Some(ended) = this.request.poll_rivals(is_over, cx) {
                    this.flight.set(Flight::Here { request: None });
                    *this.wait = None;
                    return Poll::Ready(ended.and_then(|response| this.request.answered(response)));
                }
            }
            let concluded = if let Some(wait) = this.wait {
                let woken = match wait.as_mut().poll(cx) {
                    Poll::Ready(woken) => woken,
                    Poll::Pending => match ready!(this.request.poll_limits(cx)) {
                        Expired::Request(error) => return Poll::Ready(Err(error)),
                        Expired::Try => Woken::Unconnected,
                    },
                };
                *this.wait = None;
                let request = match this.flight.as_mut().project() {
                    FlightProjection::Here { request } => request.take(),
                    FlightProjection::Away { .. } | FlightProjection::Apart { .. } => None,
                };
                let (head, body) = request.expect("the request is here while something is waited for");
                self.as_mut().step(head, body, |active, head| active.woken(woken, head))
            } else if let Some(polled) = this.flight.as_mut().project().poll(cx) {
                if polled.is_pending() {
                    match ready!(this.request.poll_limits(cx)) {
                        Expired::Request(error) => return Poll::Ready(Err(error)),
                        // From here on, what is pending has taken too long.
                        Expired::Try => {}
                    }
                    if let FlightProjection::Apart { exchange } = this.flight.as_mut().project() {
                        if let Some((step, request)) = this.request.hedge(exchange) {
                            self.as_mut().step_after(Some(request), Ok(step));
                        }
                        continue;
                    }
                }
                // Another client's future may hold what its next request waits for; and a try that took too long ends here.
                this.flight.set(Flight::Here { request: None });
                if let Poll::Ready(Ok(response)) = &polled
                    && this.request.is_watched()
                {
                    this.request.note_answer(response.status(), response.headers());
                }
                match polled {
                    Poll::Ready(Ok(response)) if !this.request.policy_wants_response => {
                        return Poll::Ready(this.request.answered(response));
                    }
                    Poll::Ready(Ok(response)) => match this.request.try_again_after(&response) {
                        None if this.request.waits_for_a_better(&response) => {
                            this.request.note_answered(&response);
                            this.request.give_up(response.body().is_end_stream());
                            None
                        }
                        None => return Poll::Ready(this.request.answered(response)),
                        Some((step, request)) => self.as_mut().step_after(Some(request), Ok(step)),
                    },
                    Poll::Ready(Err(error)) => {
                        let (request, step) = this.request.exchange_failed(error);
                        self.as_mut().step_after(request, step)
                    }
                    Poll::Pending => {
                        let (request, step) = this.request.no_answer();
                        self.as_mut().step_after(request, step)
                    }
                }
            } else if this.request.has_rivals() {
                match ready!(this.request.poll_limits(cx)) {
                    Expired::Request(error) => return Poll::Ready(Err(error)),
                    // There is no present try that could be late.
                    Expired::Try => this.request.try_until = None,
                }
                None
            } else {
                unreachable!("what is not waited for is on its way, and is not polled again when it was answered")
            };
            if let Some(concluded) = concluded {
                return Poll::Ready(concluded);
            }
        }
    }

    fn on_frame(self: Pin<&mut Self>, frame: &Frame<Bytes>) {
        let request = self.project().request;
        note_frame(&mut request.info, frame);
        if let Some(trailers) = frame.trailers_ref().filter(|_| request.is_watched()) {
            request.note_trailers(trailers);
        }
    }

    #[inline]
    fn on_end(self: Pin<&mut Self>) -> bool {
        self.project().request.complete()
    }

    fn on_error(self: Pin<&mut Self>, error: MeshError) -> MeshError {
        self.project().request.break_off(error)
    }
}

impl<T: Transport> ActiveRequest<T> {
    /// Goes on where a wait left off.
    fn woken(&mut self, woken: Woken<T::Connection>, head: &mut Parts) -> Result<Step<T>, MeshError> {
        match woken {
            Woken::View(view) => self.select(view?, head),
            Woken::Filter(decide) => self.resume(decide, head),
            Woken::Retry => self.retry(head),
            Woken::Connected(connected) => self.connected(connected),
            Woken::Unconnected => self.unconnected(),
        }
    }

    /// The endpoint's answer goes home.
    #[inline(always)]
    fn answered(&mut self, response: Response<T::Body>) -> Concluded<T::Body> {
        if let Some(connection) = &self.connection {
            self.transport.answered(connection);
        }
        let (mut head, body) = response.into_parts();
        if let Some(telemetry) = &self.context.telemetry {
            let told = self.attempt.as_ref().filter(|attempt| attempt.is_told).map(Attempt::endpoint);
            telemetry.answered(&mut head.headers, told);
        }
        if self.policy_is_paid {
            self.earn(head.status, &head.headers);
        }
        if self.replay.opens_tunnel(head.status) {
            self.open_tunnel(&head)?;
        }
        self.replay.forget();
        self.retry = None;
        // They are given up before the answer is read.
        if self.has_rivals() {
            self.give_up_rivals();
        }
        // A look at a stream of HTTP/2 takes its connection's lock.
        let is_end = self.info.is_observed() && body.is_end_stream();
        self.pass_back(&mut head, is_end);
        if self.follows {
            self.tell_placement(&mut head);
        }
        let is_observed = self.info.is_observed() || self.awaits_trailers();
        let body = ResponseBody::new(Content::Upstream { body }, self.take_deadline(), is_observed);
        Ok(Response::from_parts(head, body))
    }

    /// Says where the answer comes from.
    #[cold]
    fn tell_placement(&self, head: &mut http::response::Parts) {
        let (Some(attempt), Some(route)) = (&self.attempt, &self.route) else { return };
        let target = match &self.context.target {
            Some(target) => Some(Arc::clone(&target.entry)),
            None => self.context.store.find(route.view().target().as_str()),
        };
        if let (Some(target), Some(cluster)) = (target, route.get().cluster) {
            let (endpoint, cluster) = (Arc::clone(attempt.endpoint()), cluster.name().clone());
            head.extensions.insert(Placement { endpoint, target, cluster });
        }
    }

    /// The connection speaks another protocol from here on, and belongs to whoever asked for that.
    #[cold]
    fn open_tunnel(&mut self, head: &http::response::Parts) -> Result<(), MeshError> {
        if head.status == StatusCode::SWITCHING_PROTOCOLS && !self.replay.asked_for(&head.headers) {
            let reason = "the server switched to a protocol that the request had not asked for (101)";
            return Err(self.break_off(MeshError::new(ErrorKind::ConnectionLost, reason)));
        }
        if let Some(connection) = self.connection.take() {
            self.transport.hand_over(connection);
        }
        Ok(())
    }

    /// An answer of the mesh itself goes home.
    fn deliver(&mut self, response: Response<Bytes>) -> Response<ResponseBody<T::Body>> {
        // There was no try that would have asked.
        self.route_wants_response = true;
        let (mut head, bytes) = response.into_parts();
        if head.status.is_server_error() || grpc_status(&head.headers).is_some_and(|code| code != 0) {
            self.note_unsent();
        }
        self.pass_back(&mut head, bytes.is_empty());
        Response::from_parts(head, ResponseBody::new(Content::Local { bytes }, None, self.info.is_observed()))
    }
}

/// A response to come. Dropping it cancels the request.
pub struct ResponseFuture<B: 'static = Incoming> {
    state: State<B>,
}

/// A response that is made elsewhere.
type Waiting<B> = Pin<Box<dyn Future<Output = Concluded<B>> + Send>>;

enum State<B: 'static> {
    Underway { outbound: Pin<Box<dyn Underway<B>>> },
    Waiting { response: Waiting<B> },
    Ready { result: Option<Box<Concluded<B>>> },
}

impl<B: 'static> ResponseFuture<B> {
    #[cold]
    pub(crate) fn ready(result: Concluded<B>) -> Self {
        ResponseFuture { state: State::Ready { result: Some(Box::new(result)) } }
    }

    #[cold]
    pub(crate) fn waiting(response: Waiting<B>) -> Self {
        ResponseFuture { state: State::Waiting { response } }
    }
}

impl<B> Future for ResponseFuture<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + 'static,
{
    type Output = Concluded<B>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.state {
            State::Underway { outbound } => {
                let mut concluded = outbound.as_mut().poll_response(cx);
                if let Poll::Ready(concluded) = &mut concluded
                    && let State::Underway { outbound } =
                        std::mem::replace(&mut self.state, State::Ready { result: None })
                    && let Ok(response) = concluded
                {
                    response.body_mut().attach(outbound);
                }
                concluded
            }
            State::Waiting { response } => response.as_mut().poll(cx),
            State::Ready { result } => Poll::Ready(*result.take().expect("a future is not polled after it returned")),
        }
    }
}

impl<B> fmt::Debug for ResponseFuture<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::pooled;

    /// glibc has memory at hand for up to 1,032 bytes; what is larger costs some 400 instructions more to get and to give back.
    #[test]
    fn what_a_request_holds_is_small_enough_to_be_had_fast() {
        fn size<T: Transport>(_: &T) -> usize {
            size_of::<Outbound<T>>()
        }
        let size = size(&pooled());
        assert!(size <= 1032, "{size} bytes");
    }
}
