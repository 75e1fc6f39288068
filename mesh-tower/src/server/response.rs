//! The way back of a server: what is done when the head of a response passes, and what its body keeps alive.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::LocalKey;
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::response::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use mesh_core::error::ErrorKind;
use mesh_core::filter::{ResponseCallout, ResponseResume};
use mesh_core::model::HeaderChange;
use mesh_core::recycled::{Recycle, Recycled, Spare};
use mesh_core::request_info::{Inherited, RequestInfo};
use mesh_core::rewrite;
use mesh_core::view::{Destination, RoutePosition, RouteTable};
use pin_project_lite::pin_project;

use crate::body::note_frame;
use crate::drain::InFlight;
use crate::server::early::Early;
use crate::server::request::goes_on;
use crate::server::request_body::{BodyCount, is_empty};
use crate::telemetry::Telemetry;
use crate::{filters, inherited, reply};

/// A request that was let in, to the end of its response's body.
#[derive(Debug)]
pub(super) struct ActiveRequest {
    in_flight: InFlight,
    is_http1: bool,
    /// For those that are made for it.
    inherited: inherited::Shared,
    /// Only where an observer, a filter or the route wants to see the response.
    pub(super) facts: Option<Recycled<Facts>>,
}

/// What is known of a request, and who wants to know.
pub(super) struct Facts {
    pub(super) info: RequestInfo,
    /// `None` until it is found, and where it has nothing to do with the response.
    pub(super) route: Option<(Arc<RouteTable>, RoutePosition)>,
    /// The filters that it passes before it is said who may do what, where there are any.
    pub(super) early: Option<Box<Early>>,
    /// How many of the route's filters have seen it.
    pub(super) filters_entered: usize,
    /// What authorizers want changed of the response.
    pub(super) checked: Vec<HeaderChange>,
    /// How long the response's body is, where the application says so: nobody asks for more.
    content_length: Option<u64>,
    /// Where the client wants to know who this process is.
    pub(super) introduces: Option<Arc<Telemetry>>,
    /// How much of the request's body the application has read, where its length is not told.
    body: Option<Arc<BodyCount>>,
}

impl Recycle for Facts {
    fn spare() -> &'static LocalKey<Spare<Self>> {
        thread_local!(static SPARE: Spare<Facts> = const { Spare::new(Vec::new()) });
        &SPARE
    }
}

impl Facts {
    #[inline]
    pub(super) fn new(now: Instant, random: fastrand::Rng) -> Self {
        Facts {
            info: RequestInfo::new(now, random),
            route: None,
            early: None,
            filters_entered: 0,
            checked: Vec::new(),
            content_length: None,
            introduces: None,
            body: None,
        }
    }

    /// What is to count the request's body, where its headers do not say all: it has no length, or has messages of gRPC in it.
    pub(super) fn counts_body<B: 'static>(&self, request: &Request<B>) -> Option<BodyCount> {
        let is_told = || {
            let headers = request.headers();
            // Without either, a request of HTTP/1.1 has no body (RFC 9112, 6.3).
            let has_none = request.version() <= Version::HTTP_11 && !headers.contains_key(TRANSFER_ENCODING);
            has_none || headers.contains_key(CONTENT_LENGTH) || is_empty(request.body())
        };
        (self.info.is_grpc || !is_told()).then(|| BodyCount::new(self.info.is_grpc))
    }

    /// The request's body is counted by this.
    pub(super) fn body_counted_by(&mut self, count: Arc<BodyCount>) {
        self.body = Some(count);
    }

    /// Filters and the route's changes, on the way back.
    fn pass_back(&mut self, head: &mut Parts, is_end: bool) {
        rewrite::apply_to_response(std::slice::from_ref(&self.checked), head);
        if let Some((route, destination)) = self.route.as_ref().and_then(|(routes, position)| routes.at(*position)) {
            filters::on_response(destination.filters(), self.filters_entered, &mut self.info, head);
            // Of an answer that comes from elsewhere, they were made there.
            if !goes_on(route) {
                rewrite::apply_to_response(destination.response_changes(), head);
            }
        }
        if let Some(early) = &self.early {
            early.on_response(&mut self.info, head);
        }
        if let Some(telemetry) = &self.introduces {
            telemetry.introduce(&mut head.headers);
        }
        self.info.note_response(head.status, &head.headers, is_end);
    }

    /// Notes a frame of the body, and whether it was the last one.
    fn note(&mut self, frame: Option<&Frame<Bytes>>, is_over: bool) {
        if let Some(frame) = frame {
            note_frame(&mut self.info, frame);
        }
        if is_over || self.content_length.is_some_and(|length| self.info.response_bytes() >= length) {
            self.info.note_complete();
        }
    }
}

impl Drop for Facts {
    fn drop(&mut self) {
        if let Some((bytes, messages)) = self.body.as_ref().map(|body| body.get()) {
            self.info.note_request_body(bytes, messages);
        }
        if let Some((_, destination)) = self.route.as_ref().and_then(|(routes, position)| routes.at(*position)) {
            filters::on_end(destination.filters(), self.filters_entered, &self.info);
        }
        if let Some(early) = &self.early {
            early.on_end(&self.info);
        }
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}

impl ActiveRequest {
    #[inline]
    pub(super) fn new(
        in_flight: InFlight,
        is_http1: bool,
        inherited: Option<Inherited>,
        facts: Option<Recycled<Facts>>,
    ) -> Self {
        let inherited = inherited.map(inherited::Shared::from).unwrap_or_default();
        ActiveRequest { in_flight, is_http1, inherited, facts }
    }

    /// Has the application do something for this request.
    #[inline]
    pub(super) fn on_behalf<R>(&mut self, work: impl FnOnce() -> R) -> R {
        self.inherited.during(work)
    }

    /// What is known of it, and where it goes.
    fn found(&mut self) -> Option<(&mut RequestInfo, &Destination)> {
        let Facts { info, route, .. } = &mut **self.facts.as_mut()?;
        let (_, destination) = route.as_ref().and_then(|(routes, position)| routes.at(*position))?;
        Some((info, destination))
    }

    /// Whether a filter that it has passed may hold the answer back.
    #[inline]
    pub(super) fn holds_responses(&self) -> bool {
        let route = self.facts.as_ref().and_then(|facts| facts.route.as_ref());
        route.and_then(|(routes, position)| routes.at(*position)).is_some_and(|(_, to)| to.holds_responses())
    }

    pub(super) fn filters_entered(&self) -> usize {
        self.facts.as_ref().map_or(0, |facts| facts.filters_entered)
    }

    /// What the next filter waits for that holds the answer back.
    pub(super) fn hold_response(&mut self, left: &mut usize, head: &Parts) -> Option<ResponseCallout> {
        let (info, destination) = self.found()?;
        filters::hold_response(destination.filters(), left, info, head)
    }

    /// The filter that held the answer back knows more: there may be another answer.
    pub(super) fn decided(&mut self, decide: ResponseResume, head: &mut Parts) -> Option<Response<Bytes>> {
        let (info, _) = self.found()?;
        let reply = reply::filter(decide(info, head)?, info.is_grpc);
        Some(reply::to(info.method().unwrap_or(&Method::GET), reply))
    }

    /// The application returned an error instead of a response.
    pub(super) fn note_application_error(&mut self) {
        if let Some(facts) = &mut self.facts {
            facts.info.note_error(ErrorKind::Application);
        }
    }

    /// What the application answered with is no answer: over HTTP/2 it would be sent, and the client would wait for the
    /// one that comes after it (RFC 9110, 15.2).
    #[cold]
    fn answer_for<R: http_body::Body>(mut self, status: StatusCode) -> Response<ServerBody<R>> {
        self.note_application_error();
        let reason = format!("the application answered with {}, which only comes before an answer", status.as_u16());
        let mut response = Response::new(Bytes::from(reason));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        self.pass_back(response, |bytes| Content::Local { bytes })
    }

    /// The head of the response passes.
    #[inline]
    pub(super) fn pass_back<A, R: http_body::Body>(
        mut self,
        response: Response<A>,
        content: impl FnOnce(A) -> Content<R>,
    ) -> Response<ServerBody<R>> {
        let (mut head, body) = response.into_parts();
        if head.status.is_informational() && !(self.is_http1 && head.status == StatusCode::SWITCHING_PROTOCOLS) {
            return self.answer_for(head.status);
        }
        // From here on nobody waits for the head.
        self.inherited.is_answered();
        let content = content(body);
        if let Some(facts) = &mut self.facts {
            // Nobody reads the body of these.
            let has_none = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
                || facts.info.method() == Some(&Method::HEAD);
            let is_end = has_none || content.is_end_stream();
            facts.pass_back(&mut head, is_end);
            if is_end {
                facts.info.note_complete();
            } else {
                let length = head.headers.get(CONTENT_LENGTH);
                facts.content_length = length.and_then(|length| length.to_str().ok()?.parse().ok());
            }
        }
        // HTTP/2 says it by GOAWAY, which is the connection's and not a response's.
        if self.in_flight.is_leaving() && self.is_http1 && head.status != StatusCode::SWITCHING_PROTOCOLS {
            head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Response::from_parts(head, ServerBody { content, request: self })
    }
}

pin_project! {
    /// The body of a response from behind the mesh: the application's own, or an answer of the mesh. The request
    /// is in flight for as long as it lives.
    pub struct ServerBody<B> {
        #[pin]
        content: Content<B>,
        request: ActiveRequest,
    }
}

pin_project! {
    #[project = ContentProjection]
    pub(super) enum Content<B> {
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

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let polled = match this.content.as_mut().project() {
            ContentProjection::App { body } => this.request.on_behalf(|| body.poll_frame(cx)),
            ContentProjection::Local { bytes } if bytes.is_empty() => Poll::Ready(None),
            ContentProjection::Local { bytes } => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
        };
        if let (Some(facts), Poll::Ready(frame)) = (&mut this.request.facts, &polled) {
            if let Some(Err(_)) = frame {
                facts.info.note_error(ErrorKind::Application);
            }
            // Nothing comes after trailers, and nobody asks.
            let is_over = frame.as_ref().is_none_or(|frame| frame.as_ref().is_ok_and(Frame::is_trailers));
            facts.note(frame.as_ref().and_then(|frame| frame.as_ref().ok()), is_over || this.content.is_end_stream());
        }
        polled
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::App { body } => body.size_hint(),
            Content::Local { bytes } => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

impl<B: http_body::Body> Content<B> {
    fn is_end_stream(&self) -> bool {
        match self {
            Content::App { body } => body.is_end_stream(),
            Content::Local { bytes } => bytes.is_empty(),
        }
    }
}

impl<B> fmt::Debug for ServerBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBody").field("request", &self.request).finish_non_exhaustive()
    }
}
