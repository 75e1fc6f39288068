//! The way back of a server: what is done when the head of a response passes, and what its body keeps alive.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use mesh_core::error::ErrorKind;
use mesh_core::model::HeaderChange;
use mesh_core::observe::Event;
use mesh_core::request::RequestHead;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_service::Service;

use crate::body::ResponseBody;
use crate::drain::InFlight;
use crate::headers;
use crate::mesh::Mesh;

pin_project! {
    /// A response to come from a service behind the mesh.
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B, S::Future>,
        ending: Option<Ending>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, B, F> {
        /// The application is at work.
        Forwarded {
            #[pin]
            future: F,
        },
        /// A filter holds the request back, or it is answered here.
        Held {
            sleep: Option<Pin<Box<Sleep>>>,
            then: Option<Box<Then<S, B>>>,
        },
    }
}

enum Then<S, B> {
    Forward(S, Request<B>),
    Answer(Response<ResponseBody>),
}

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<B>>,
{
    pub(super) fn forward(future: S::Future, ending: Ending) -> Self {
        ResponseFuture { state: State::Forwarded { future }, ending: Some(ending) }
    }

    pub(super) fn held(delay: Duration, service: S, request: Request<B>, ending: Ending) -> Self {
        Self::after(delay, Then::Forward(service, request), ending)
    }

    pub(super) fn answer(delay: Duration, response: Response<ResponseBody>, ending: Ending) -> Self {
        Self::after(delay, Then::Answer(response), ending)
    }

    fn after(delay: Duration, then: Then<S, B>, ending: Ending) -> Self {
        let sleep = (!delay.is_zero()).then(|| Box::pin(tokio::time::sleep(delay)));
        ResponseFuture { state: State::Held { sleep, then: Some(Box::new(then)) }, ending: Some(ending) }
    }
}

impl<S, B, R> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Output = Result<Response<ServerBody<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const ONCE: &str = "a future is not polled after it returned";
        let mut this = self.project();
        loop {
            let then = match this.state.as_mut().project() {
                StateProjection::Forwarded { future } => {
                    let response = ready!(future.poll(cx));
                    let ending = this.ending.take().expect(ONCE);
                    return Poll::Ready(response.map(|response| ending.pass(response, |body| Content::App { body })));
                }
                StateProjection::Held { sleep, then } => {
                    if let Some(sleep) = sleep {
                        ready!(sleep.as_mut().poll(cx));
                    }
                    then.take().expect(ONCE)
                }
            };
            match *then {
                Then::Forward(mut service, request) => {
                    let future = service.call(request);
                    this.state.set(State::Forwarded { future });
                }
                Then::Answer(response) => {
                    let ending = this.ending.take().expect(ONCE);
                    let local = |body: ResponseBody| Content::Local { bytes: body.into_bytes() };
                    return Poll::Ready(Ok(ending.pass(response, local)));
                }
            }
        }
    }
}

impl<S, B> fmt::Debug for ResponseFuture<S, B>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResponseFuture")
    }
}

/// What is done when the head of a response passes.
pub(super) struct Ending {
    pub(super) in_flight: InFlight,
    pub(super) is_http1: bool,
    pub(super) changes: Option<Box<[HeaderChange]>>,
    pub(super) report: Option<Box<Report>>,
}

impl Ending {
    fn pass<A, R>(self, response: Response<A>, content: impl FnOnce(A) -> Content<R>) -> Response<ServerBody<R>> {
        let leaving = self.in_flight.is_leaving();
        let mut response = response.map(|body| ServerBody { content: content(body), in_flight: self.in_flight });
        if let Some(changes) = self.changes {
            headers::apply(&changes, response.headers_mut());
        }
        // HTTP/2 says it by GOAWAY, which is the connection's and not a response's.
        if leaving && self.is_http1 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(mut report) = self.report {
            report.status = Some(response.status());
        }
        response
    }
}

/// What the observers will be told, when it is dropped: also of a request whose client went away.
pub(super) struct Report {
    mesh: Mesh,
    authority: Box<str>,
    started: Instant,
    status: Option<StatusCode>,
    pub(super) route: Option<Arc<str>>,
    pub(super) error: Option<ErrorKind>,
}

impl Report {
    pub(super) fn of<B>(mesh: &Mesh, request: &Request<B>, started: Instant) -> Self {
        let authority = RequestHead::of_request(request).map_or("", |head| head.authority).into();
        Report { mesh: mesh.clone(), authority, started, status: None, route: None, error: None }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let mut event = Event::new(&self.authority);
        event.route = self.route.as_deref().unwrap_or_default();
        event.status = self.status;
        event.error = self.error;
        event.duration = self.started.elapsed();
        self.mesh.observers().iter().for_each(|observer| observer.on_event(&event));
    }
}

pin_project! {
    /// The body of a response from behind the mesh: the application's own, or an answer of the mesh. The request
    /// is in flight for as long as it lives.
    pub struct ServerBody<B> {
        #[pin]
        content: Content<B>,
        in_flight: InFlight,
    }
}

pin_project! {
    #[project = ContentProjection]
    enum Content<B> {
        App {
            #[pin]
            body: B,
        },
        Local {
            bytes: Bytes,
        },
    }
}

impl<B: http_body::Body<Data = Bytes>> http_body::Body for ServerBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().content.project() {
            ContentProjection::App { body } => body.poll_frame(cx),
            ContentProjection::Local { bytes } if bytes.is_empty() => Poll::Ready(None),
            ContentProjection::Local { bytes } => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::App { body } => body.is_end_stream(),
            Content::Local { bytes } => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::App { body } => body.size_hint(),
            Content::Local { bytes } => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

impl<B> fmt::Debug for ServerBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBody").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}
