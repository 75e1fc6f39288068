//! An outbound request, from the caller's hands to the end of its response's body: one state machine, whoever the
//! caller is and whatever takes the request to its endpoint.
//!
//! [`request`] has what a request knows and holds. Its steps are plain functions, in the order of the walk: [`route`] finds the target's view, the route, and what
//! the route wants; [`attempt`] picks an endpoint and a connection, and decides what becomes of a failure;
//! [`response_body`] is the way home. A step goes on to the next one as long as nothing has to be waited for, so
//! most requests are in the connection's queue before the call returns. What is waited for, that is a first view, a
//! filter, a pause, a dial, is a [`Wait`], and what it wakes up with says where to go on.

mod attempt;
mod request;
mod response_body;
mod rewrite;
mod route;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use hyper::body::Incoming;
use mesh_core::error::MeshError;
use pin_project_lite::pin_project;

use crate::body::{Body, BoxError, note_frame};
use crate::transport::{Replay, Transport};

pub(crate) use request::{Attempt, FixedTarget, OutboundContext, within};
pub use response_body::ResponseBody;
pub(crate) use route::{destination, entry, refuse_tls};

use request::{ActiveRequest, Step, Wait, Woken};
use response_body::Underway;

/// Sends a request as far as it gets without waiting. The one allocation of a request is made here, and lasts to the
/// end of the response's body.
#[inline]
pub(crate) fn send<T: Transport>(
    context: Arc<OutboundContext>,
    transport: T,
    request: Request<Body>,
) -> ResponseFuture<T::Body> {
    let mut outbound = Outbound::new(context, transport, request);
    let step = outbound.as_mut().project().request.start();
    match outbound.as_mut().carry_out(step) {
        None => ResponseFuture { state: State::Underway { outbound } },
        Some(result) => ResponseFuture::ready(result),
    }
}

pin_project! {
    /// A request with what it waits for.
    struct Outbound<T>
    where
        T: Transport,
    {
        request: ActiveRequest<T>,
        wait: Option<Wait<T::Connection>>,
        #[pin]
        exchange: Option<T::Exchange>,
    }
}

impl<T: Transport> Outbound<T> {
    #[inline]
    fn new(context: Arc<OutboundContext>, transport: T, request: Request<Body>) -> Pin<Box<Self>> {
        let (head, body) = request.into_parts();
        let info = route::info_of(&context, &head);
        let request = ActiveRequest {
            context,
            transport,
            info,
            route: None,
            filters_entered: 0,
            request: Some((head, body)),
            destination: None,
            attempt: None,
            connection: None,
            replay: Replay::default(),
            was_cut: false,
            deadline: None,
        };
        Box::pin(Outbound { request, wait: None, exchange: None })
    }

    /// Does what a step asks for; the result, if that was the last one.
    #[inline]
    fn carry_out(self: Pin<&mut Self>, step: Step<T>) -> Option<Result<Response<ResponseBody<T::Body>>, MeshError>> {
        let mut this = self.project();
        match step {
            Step::Send => this.exchange.set(Some(this.request.dispatch())),
            Step::Wait(wait) => *this.wait = Some(wait),
            Step::Done(Ok(response)) => {
                let deadline = this.request.take_deadline();
                let is_observed = this.request.info.is_observed();
                return Some(Ok(response.map(|content| ResponseBody::new(content, deadline, is_observed))));
            }
            Step::Done(Err(error)) => {
                this.request.info.note_error(&error);
                return Some(Err(error));
            }
        }
        None
    }
}

impl<T: Transport> Underway<T::Body> for Outbound<T> {
    #[inline]
    fn poll_response(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<ResponseBody<T::Body>>, MeshError>> {
        loop {
            let mut this = self.as_mut().project();
            let step = if let Some(wait) = this.wait {
                match wait.as_mut().poll(cx) {
                    Poll::Pending => return this.request.poll_deadline(cx).map(Err),
                    Poll::Ready(woken) => {
                        *this.wait = None;
                        this.request.woken(woken)
                    }
                }
            } else {
                let exchange = this.exchange.as_mut().as_pin_mut().expect("what is not waited for is on its way");
                match exchange.poll(cx) {
                    Poll::Pending => return this.request.poll_deadline(cx).map(Err),
                    Poll::Ready(outcome) => {
                        this.exchange.set(None);
                        this.request.concluded(outcome)
                    }
                }
            };
            if let Some(result) = self.as_mut().carry_out(step) {
                return Poll::Ready(result);
            }
        }
    }

    fn on_frame(self: Pin<&mut Self>, frame: &Frame<Bytes>) {
        note_frame(&mut self.project().request.info, frame);
    }

    #[inline]
    fn on_end(self: Pin<&mut Self>, result: Result<(), &MeshError>) {
        let request = self.project().request;
        match result {
            Ok(()) => request.complete(),
            Err(error) => {
                request.info.note_error(error);
                request.abandon();
            }
        }
    }
}

impl<T: Transport> ActiveRequest<T> {
    /// Goes on where a wait left off.
    fn woken(&mut self, woken: Woken<T::Connection>) -> Step<T> {
        let step = match woken {
            Woken::View(view) => view.and_then(|view| self.select(view)),
            Woken::Filter(decide) => self.resume(decide),
            Woken::Retry => self.try_once(),
            Woken::Connected(connected) => self.connected(connected),
        };
        step.unwrap_or_else(|error| self.fail(error))
    }
}

/// A response to come. Dropping it cancels the request.
pub struct ResponseFuture<B: 'static = Incoming> {
    state: State<B>,
}

enum State<B: 'static> {
    Underway { outbound: Pin<Box<dyn Underway<B>>> },
    Ready { result: Option<Box<Result<Response<ResponseBody<B>>, MeshError>>> },
}

impl<B: 'static> ResponseFuture<B> {
    #[cold]
    pub(crate) fn ready(result: Result<Response<ResponseBody<B>>, MeshError>) -> Self {
        ResponseFuture { state: State::Ready { result: Some(Box::new(result)) } }
    }
}

impl<B> Future for ResponseFuture<B>
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + 'static,
{
    type Output = Result<Response<ResponseBody<B>>, MeshError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = match &mut self.state {
            State::Underway { outbound } => ready!(outbound.as_mut().poll_response(cx)),
            State::Ready { result } => *result.take().expect("a future is not polled after it returned"),
        };
        let state = std::mem::replace(&mut self.state, State::Ready { result: None });
        Poll::Ready(match (result, state) {
            (Ok(mut response), State::Underway { outbound }) => {
                response.body_mut().attach(outbound);
                Ok(response)
            }
            (result, _) => result,
        })
    }
}

impl<B> fmt::Debug for ResponseFuture<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}
