//! The way in of a server, for as long as it takes: filters that hold a request back, its body, authorizers, the application, and
//! filters that hold its answer back.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, request};
use mesh_core::authz::external::Denial;
use mesh_core::filter::{Callout, ResponseCallout};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_service::Service;

use crate::server::asked::{Asked, BODY_TIMEOUT, NotShown};
use crate::server::check::Answers;
use crate::server::request::{Admission, HAS_FACTS, ServerContext};
use crate::server::request_body::{Reading, Wanted, is_empty};
use crate::server::response::{ActiveRequest, Content, ServerBody};

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
                    let request = this.request.as_mut().expect(ONCE);
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
                    let active = this.request.as_mut().expect(ONCE);
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
                    let active = this.request.as_mut().expect(ONCE);
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
