//! The way back of a server: what is done when the head of a response passes, and what its body keeps alive.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread::LocalKey;
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::response::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, request};
use http_body::{Frame, SizeHint};
use mesh_core::authz::external::Denial;
use mesh_core::error::ErrorKind;
use mesh_core::filter::{Callout, ResponseCallout, ResponseResume};
use mesh_core::model::HeaderChange;
use mesh_core::recycled::{Recycle, Recycled, Spare};
use mesh_core::request_info::{Inherited, RequestInfo};
use mesh_core::rewrite;
use mesh_core::view::{Destination, RoutePosition, RouteTable};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_service::Service;

use crate::body::note_frame;
use crate::drain::InFlight;
use crate::server::asked::{Asked, BODY_TIMEOUT, NotShown};
use crate::server::check::Answers;
use crate::server::early::Early;
use crate::server::request::{Admission, HAS_FACTS, ServerContext, goes_on};
use crate::server::request_body::{BodyCount, Reading, Wanted, is_empty};
use crate::telemetry::Telemetry;
use crate::{filters, inherited, reply};

pin_project! {
    /// A response to come from a service behind the mesh.
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B, S::Future, S::Response>,
        request: Option<ActiveRequest>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, B, F, A> {
        /// The application is at work.
        Forwarded {
            #[pin]
            future: F,
        },
        /// A filter holds the request back.
        Held {
            callout: Callout,
            deadline: Option<Pin<Box<Sleep>>>,
            then: Option<Box<(Arc<ServerContext>, S, Request<B>)>>,
        },
        /// Its body is read, which authorizers are to be shown.
        Reading {
            reading: Option<Box<Shown<S, B>>>,
            deadline: Option<Pin<Box<Sleep>>>,
        },
        /// Authorizers are asked about it.
        Asked {
            asked: Box<Asked>,
            answers: Answers,
            deadline: Option<Pin<Box<Sleep>>>,
            then: Option<Box<(Arc<ServerContext>, S, Request<B>)>>,
        },
        /// A filter holds the answer back, before the others that saw the request.
        Returning {
            // `None` at first.
            callout: Option<ResponseCallout>,
            // How many of them it has yet to pass.
            left: usize,
            response: Option<A>,
        },
        /// It is answered here.
        Answered {
            response: Option<Box<Response<Bytes>>>,
        },
    }
}

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<B>>,
{
    #[inline]
    pub(super) fn forward(future: S::Future, request: ActiveRequest) -> Self {
        ResponseFuture { state: State::Forwarded { future }, request: Some(request) }
    }

    pub(super) fn held(
        callout: Callout,
        context: Arc<ServerContext>,
        service: S,
        request: Request<B>,
        active: ActiveRequest,
    ) -> Self {
        let deadline = deadline_of(&active);
        let then = Some(Box::new((context, service, request)));
        ResponseFuture { state: State::Held { callout, deadline, then }, request: Some(active) }
    }

    pub(super) fn asked(
        asked: Box<Asked>,
        context: Arc<ServerContext>,
        service: S,
        request: Request<B>,
        active: ActiveRequest,
    ) -> Self
    where
        B: 'static,
    {
        let state = State::asking(asked, context, service, request, deadline_of(&active));
        ResponseFuture { state, request: Some(active) }
    }

    pub(super) fn answer(response: Box<Response<Bytes>>, request: ActiveRequest) -> Self {
        ResponseFuture { state: State::Answered { response: Some(response) }, request: Some(request) }
    }
}

impl<S, B, F, A> State<S, B, F, A> {
    /// Authorizers are asked about a request, as soon as its body is read where they are to be shown it.
    fn asking(
        mut asked: Box<Asked>,
        context: Arc<ServerContext>,
        service: S,
        request: Request<B>,
        deadline: Option<Pin<Box<Sleep>>>,
    ) -> Self
    where
        B: 'static,
    {
        // What follows CONNECT is a tunnel's, and no body.
        let wanted = asked.wanted().filter(|_| *request.method() != Method::CONNECT);
        let (answers, request) = match wanted {
            None => (asked.ask(&context.mesh), request),
            Some(_) if is_empty(request.body()) => {
                asked.show(|_| (Bytes::new(), false));
                (asked.ask(&context.mesh), request)
            }
            Some(wanted) => {
                let client = context.connection(&request).map(|connection| connection.peer.ip());
                let (head, body) = request.into_parts();
                match context.bodies.read(body, client) {
                    Err(body) => {
                        if context.bodies.tells_of_unknown() {
                            asked.tell_of_unknown();
                        }
                        (asked.refuse(NotShown::UnknownType), Request::from_parts(head, body))
                    }
                    Ok(body) => {
                        let late = Box::pin(tokio::time::sleep(BODY_TIMEOUT));
                        let reading = Some(Box::new(Shown { asked, context, service, head, body, wanted, late }));
                        return State::Reading { reading, deadline };
                    }
                }
            }
        };
        let then = Some(Box::new((context, service, request)));
        State::Asked { asked, answers, deadline, then }
    }
}

/// A request whose body is read before authorizers are asked about it.
struct Shown<S, B> {
    asked: Box<Asked>,
    context: Arc<ServerContext>,
    service: S,
    head: request::Parts,
    body: Box<dyn Reading<B>>,
    wanted: Wanted,
    /// The client has had its time.
    late: Pin<Box<Sleep>>,
}

/// When the time of a request is over, where it has any.
fn deadline_of(active: &ActiveRequest) -> Option<Pin<Box<Sleep>>> {
    let deadline = active.facts.as_ref().and_then(|facts| facts.info.deadline);
    deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.into())))
}

impl<S, B, R> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
    B: 'static,
    R: http_body::Body<Data = Bytes>,
{
    type Output = Result<Response<ServerBody<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const ONCE: &str = "a future is not polled after it returned";
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Forwarded { future } => {
                    let request = this.request.as_ref().expect(ONCE);
                    let response = ready!(request.on_behalf(|| future.poll(cx)));
                    if request.holds_responses()
                        && let Ok(response) = response
                    {
                        let left = request.filters_entered();
                        this.state.set(State::Returning { callout: None, left, response: Some(response) });
                        continue;
                    }
                    let mut request = this.request.take().expect(ONCE);
                    if response.is_err() {
                        request.note_application_error();
                    }
                    return Poll::Ready(
                        response.map(|response| request.pass_back(response, |body| Content::App { body })),
                    );
                }
                StateProjection::Answered { response } => {
                    let (request, response) = (this.request.take().expect(ONCE), response.take().expect(ONCE));
                    return Poll::Ready(Ok(request.pass_back(*response, |bytes| Content::Local { bytes })));
                }
                StateProjection::Returning { callout, left, response } => {
                    let decide = match callout {
                        Some(callout) => Some(ready!(callout.as_mut().poll(cx))),
                        None => None,
                    };
                    let request = this.request.as_mut().expect(ONCE);
                    let (mut head, body) = response.take().expect(ONCE).into_parts();
                    match decide.and_then(|decide| request.decided(decide, &mut head)) {
                        Some(instead) => State::Answered { response: Some(Box::new(instead)) },
                        None => {
                            *callout = request.hold_response(left, &head);
                            let whole = Response::from_parts(head, body);
                            if callout.is_none() {
                                let request = this.request.take().expect(ONCE);
                                return Poll::Ready(Ok(request.pass_back(whole, |body| Content::App { body })));
                            }
                            *response = Some(whole);
                            continue;
                        }
                    }
                }
                StateProjection::Held { callout, deadline, then } => {
                    let decide = match callout.as_mut().poll(cx) {
                        Poll::Ready(decide) => Some(decide),
                        Poll::Pending => {
                            let Some(deadline) = deadline else { return Poll::Pending };
                            ready!(deadline.as_mut().poll(cx));
                            None
                        }
                    };
                    let (context, mut service, mut request) = *then.take().expect(ONCE);
                    let facts = &mut this.request.as_mut().expect(ONCE).facts;
                    let admission = match decide {
                        Some(decide) => context.resume(decide, facts, &mut request),
                        None => context.too_late(facts.as_deref_mut().expect(HAS_FACTS), &request),
                    };
                    let active = this.request.as_ref().expect(ONCE);
                    match admission {
                        Admission::Admit => State::Forwarded { future: active.on_behalf(|| service.call(request)) },
                        Admission::Answer(response) => State::Answered { response: Some(response) },
                        Admission::Held(callout) => {
                            let then = Some(Box::new((context, service, request)));
                            State::Held { callout, deadline: deadline.take(), then }
                        }
                        Admission::Asked(asked) => State::asking(asked, context, service, request, deadline.take()),
                    }
                }
                StateProjection::Reading { reading, deadline } => {
                    let shown = reading.as_mut().expect(ONCE);
                    let read = match shown.body.poll_read(shown.wanted, cx) {
                        Poll::Ready(read) => read.map_err(NotShown::Unread),
                        Poll::Pending => {
                            let is_over =
                                deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
                            if !is_over {
                                ready!(shown.late.as_mut().poll(cx));
                            }
                            Err(NotShown::Late)
                        }
                    };
                    let Shown { mut asked, context, service, head, body, .. } = *reading.take().expect(ONCE);
                    let answers = match read {
                        Ok(()) => {
                            asked.show(|most| body.shown(most));
                            asked.ask(&context.mesh)
                        }
                        Err(why) => asked.refuse(why),
                    };
                    let then = Some(Box::new((context, service, Request::from_parts(head, body.finish()))));
                    State::Asked { asked, answers, deadline: deadline.take(), then }
                }
                StateProjection::Asked { asked, answers, deadline, then } => {
                    let answer = match answers.as_mut().poll(cx) {
                        Poll::Ready(answer) => Some(answer),
                        Poll::Pending => {
                            let Some(deadline) = deadline else { return Poll::Pending };
                            ready!(deadline.as_mut().poll(cx));
                            None
                        }
                    };
                    let (context, mut service, mut request) = *then.take().expect(ONCE);
                    let facts = &mut this.request.as_mut().expect(ONCE).facts;
                    let admission = match (answer, facts.as_deref_mut()) {
                        (None, Some(facts)) => context.too_late(facts, &request),
                        (answer, _) => {
                            let in_doubt = || Err(Box::new(Denial::new(StatusCode::FORBIDDEN)));
                            context.answered(asked, answer.unwrap_or_else(in_doubt), facts, &mut request)
                        }
                    };
                    let active = this.request.as_ref().expect(ONCE);
                    match admission {
                        Admission::Admit => State::Forwarded { future: active.on_behalf(|| service.call(request)) },
                        Admission::Answer(response) => State::Answered { response: Some(response) },
                        Admission::Held(callout) => {
                            let then = Some(Box::new((context, service, request)));
                            State::Held { callout, deadline: deadline.take(), then }
                        }
                        Admission::Asked(_) => unreachable!("they were asked"),
                    }
                }
            };
            this.state.set(next);
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

/// A request that was let in, to the end of its response's body.
#[derive(Debug)]
pub(super) struct ActiveRequest {
    in_flight: InFlight,
    is_http1: bool,
    /// For those that are made for it.
    inherited: inherited::Shared,
    /// Only where an observer, a filter or the route wants to see the response.
    facts: Option<Recycled<Facts>>,
}

/// What is known of a request, and who wants to know.
pub(super) struct Facts {
    pub(super) info: RequestInfo,
    /// `None` until it is found.
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
    pub(super) fn on_behalf<R>(&self, work: impl FnOnce() -> R) -> R {
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
    fn holds_responses(&self) -> bool {
        let route = self.facts.as_ref().and_then(|facts| facts.route.as_ref());
        route.and_then(|(routes, position)| routes.at(*position)).is_some_and(|(_, to)| to.holds_responses())
    }

    fn filters_entered(&self) -> usize {
        self.facts.as_ref().map_or(0, |facts| facts.filters_entered)
    }

    /// What the next filter waits for that holds the answer back.
    fn hold_response(&mut self, left: &mut usize, head: &Parts) -> Option<ResponseCallout> {
        let (info, destination) = self.found()?;
        filters::hold_response(destination.filters(), left, info, head)
    }

    /// The filter that held the answer back knows more: there may be another answer.
    fn decided(&mut self, decide: ResponseResume, head: &mut Parts) -> Option<Response<Bytes>> {
        let (info, _) = self.found()?;
        let reply = reply::filter(decide(info, head)?, info.is_grpc);
        Some(reply::to(info.method().unwrap_or(&Method::GET), reply))
    }

    /// The application returned an error instead of a response.
    fn note_application_error(&mut self) {
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
    fn pass_back<A, R: http_body::Body>(
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
            facts.content_length =
                head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
            if is_end {
                facts.info.note_complete();
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

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let request = &*this.request;
        let polled = match this.content.as_mut().project() {
            ContentProjection::App { body } => request.on_behalf(|| body.poll_frame(cx)),
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
