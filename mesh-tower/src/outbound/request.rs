//! A request under way: what it knows, what it holds, and what the steps of its walk come to.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::SET_COOKIE;
use http::response::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::filter::Resume;
use mesh_core::hashing::Caller;
use mesh_core::live_trace::LiveTraces;
use mesh_core::model::{Cluster, LoadWeights, PASSTHROUGH_CLUSTER};
use mesh_core::outlier::Outcome;
use mesh_core::request_info::{Observers, RequestInfo, grpc_status};
use mesh_core::rewrite;
use mesh_core::state::{EndpointState, InFlight, ReportedTry, RetryPermit};
use mesh_core::store::{Store, TargetEntry};
use mesh_core::view::{RouteRef, SelectedRoute, TargetView};
use tokio::time::Sleep;

use super::coalesced::Coalescer;
use super::mirror::{Copies, Mirrors};
use crate::telemetry::Telemetry;
use crate::trace::Tracer;
use crate::transport::{HttpVersion, Replay, Security, Sending, Transport};
use crate::{filters, followed};

/// What the requests of one client have in common.
pub(crate) struct OutboundContext {
    pub(crate) store: Store,
    pub(crate) observers: Observers,
    /// How long the first request to a target waits for its configuration.
    pub(crate) cold_start_wait: Duration,
    pub(crate) target: Option<FixedTarget>,
    /// Whether requests say where they go on to, as those of a gateway do.
    pub(crate) is_gateway: bool,
    /// Copies of requests, of all clients of the mesh.
    pub(crate) mirrors: Arc<Mirrors>,
    /// Requests that several wait for, of all clients of the mesh.
    pub(crate) coalescer: Arc<Coalescer>,
    /// What keeps the metrics, where they are kept.
    pub(crate) telemetry: Option<Arc<Telemetry>>,
    /// Which requests somebody follows.
    pub(crate) live_traces: Arc<LiveTraces>,
    /// Who takes spans, where somebody does.
    pub(crate) tracer: Option<Arc<Tracer>>,
    /// Who this client is, for routes that hash by it.
    pub(crate) caller: Caller,
}

/// The one target of a client that has one, such as a gRPC channel.
pub(crate) struct FixedTarget {
    pub(crate) entry: Arc<TargetEntry>,
    pub(crate) authority: Authority,
}

/// What a request knows and holds, to the end of its response's body: then its connection and its place among the
/// requests in flight are given back, and whoever wants to know is told.
pub(super) struct ActiveRequest<T: Transport> {
    pub(super) context: Arc<OutboundContext>,
    pub(super) transport: T,
    pub(super) info: RequestInfo,
    /// `None` until it is found.
    pub(super) route: Option<SelectedRoute>,
    /// How many of the route's filters have seen it.
    pub(super) filters_entered: usize,
    /// The host and port that a pass-through cluster is to dial.
    pub(super) original_destination: Option<Box<str>>,
    /// Cookies that were made for the caller to be hashed by.
    pub(super) set_cookies: Box<[HeaderValue]>,
    /// Copies that go where the request itself is sent for the first time.
    pub(super) copies: Option<Box<Copies>>,
    /// The present try.
    pub(super) attempt: Option<Attempt>,
    pub(super) connection: Option<T::Connection>,
    pub(super) replay: Replay,
    /// Whether the response says where it comes from.
    pub(super) follows: bool,
    /// Whether a connection that had been in use before closed under it: from then on only new ones will do.
    pub(super) was_cut: bool,
    /// Whether the route has something to do with the response. Where it has not, nobody looks the route up again.
    pub(super) route_wants_response: bool,
    /// Whether the retry policy may want another try after an answer.
    pub(super) policy_wants_response: bool,
    /// Whether successes pay for retries of the policy.
    pub(super) policy_is_paid: bool,
    /// What its retries have cost.
    pub(super) paid: u32,
    /// The present try is a retry, and counts as such.
    pub(super) retry: Option<RetryPermit>,
    /// When the present try has taken too long.
    pub(super) try_until: Option<Instant>,
    /// Tries that took too long, and go on beside the present one.
    pub(super) rivals: Option<Box<Rivals<T>>>,
    /// For the deadline or the end of the try, whichever comes first. Runs from when there is something to wait for.
    pub(super) timer: Option<Pin<Box<Sleep>>>,
}

/// What a step comes to.
pub(super) enum Step<T: Transport> {
    /// The request goes over the connection that was found for it.
    Send,
    /// Something has to be waited for.
    Wait(Wait<T::Connection>),
    /// The mesh answers itself.
    Done(Response<Bytes>),
}

/// Something to wait for.
pub(super) type Wait<C> = Pin<Box<dyn Future<Output = Woken<C>> + Send>>;

/// What a wait ended with, and so where to go on.
pub(super) enum Woken<C> {
    /// The first view of the target is there, or there is none.
    View(Result<Arc<TargetView>, MeshError>),
    /// A filter knows more.
    Filter(Resume),
    /// The pause before another try is over.
    Retry,
    /// There is a connection, or none could be had.
    Connected(Result<C, MeshError>),
    /// There was none in the time of a try.
    Unconnected,
}

/// What took too long.
pub(super) enum Expired {
    /// The request, and what that fails with.
    Request(MeshError),
    /// The present try.
    Try,
}

/// A try that goes on beside the present one. Dropped, it is given up.
pub(super) struct Rival<T: Transport> {
    pub(super) exchange: Pin<Box<T::Exchange>>,
    pub(super) connection: Option<T::Connection>,
    pub(super) sending: Sending,
    pub(super) attempt: Attempt,
    /// It counts as a retry until it is over.
    pub(super) _retry: Option<RetryPermit>,
}

/// Tries that go on beside the present one. Few requests have any: in a box, they make the others no larger.
pub(super) struct Rivals<T: Transport>(pub(super) Vec<Rival<T>>);

/// One try: the endpoint that it goes to, counted among its requests in flight.
pub(crate) struct Attempt {
    pub(super) in_flight: InFlight,
    /// Which try of its request it is, from 1 on.
    pub(super) number: u32,
    /// Which of the cluster's leaves the endpoint belongs to.
    pub(super) leaf: usize,
    /// Which of that leaf's priorities.
    pub(super) priority: u32,
    /// How connections to it are secured.
    pub(crate) security: Security,
    pub(super) version: HttpVersion,
    /// How many connections turned out to be closed.
    pub(super) stale: u8,
    /// Whether the connection may carry another request after this one.
    pub(super) is_reusable: bool,
    /// Whether its endpoint was told who this process is.
    pub(super) is_told: bool,
    /// What the cluster wants to know of it.
    pub(super) watch: Watch,
}

/// What a cluster wants to know of a try.
pub(super) struct Watch {
    /// How it ends (outlier detection).
    pub(super) outcomes: bool,
    /// Whether its endpoint says that it is not well (health checks).
    pub(super) health: bool,
    /// The load that its endpoint reports, where the policy goes by that.
    pub(super) load: Option<Arc<LoadWeights>>,
    /// When it began, and how long that counts, where the policy goes by how long answers take.
    pub(super) since: Option<(Instant, Duration)>,
    /// It is counted, where the control plane wants reports of load.
    pub(super) reported: Option<ReportedTry>,
}

impl Attempt {
    /// Which of the cluster's leaves the endpoint belongs to.
    pub(crate) fn leaf(&self) -> usize {
        self.leaf
    }

    /// The endpoint.
    #[inline]
    pub(crate) fn endpoint(&self) -> &Arc<EndpointState> {
        self.in_flight.endpoint()
    }

    /// The same for a connection whose requests nobody sees.
    pub(crate) fn of_connection(self) -> Attempt {
        Attempt { in_flight: self.in_flight.of_connection(), ..self }
    }

    /// What the endpoint makes of an error.
    pub(super) fn within(&self, route: &RouteRef<'_>, error: MeshError) -> MeshError {
        let cluster = self.cluster(route).map_or("", |cluster| cluster.name.as_str());
        let undescribed = match cluster {
            // A mistyped name comes this far.
            PASSTHROUGH_CLUSTER => ", a host that no object describes (outboundTrafficPolicy ALLOW_ANY)",
            _ => "",
        };
        error.within(format_args!("cluster {cluster}: endpoint {}{undescribed}", self.endpoint().id()))
    }

    /// The cluster that the endpoint belongs to.
    pub(super) fn cluster<'v>(&self, route: &RouteRef<'v>) -> Option<&'v Arc<Cluster>> {
        Some(&route.cluster?.leaves().get(self.leaf)?.cluster)
    }
}

impl<T: Transport> ActiveRequest<T> {
    /// Whether the cluster wants to know anything of the present try.
    #[inline]
    pub(super) fn is_watched(&self) -> bool {
        self.attempt.as_ref().is_some_and(|attempt| attempt.watch.is_on())
    }

    /// Whether trailers may have in them what the present try is watched for.
    #[inline]
    pub(super) fn awaits_trailers(&self) -> bool {
        let is_load = || self.attempt.as_ref().is_some_and(|attempt| attempt.watch.load.is_some());
        self.is_watched() && (self.info.is_grpc || is_load())
    }

    /// The head of an answer came. A gRPC call ends with its trailers, unless these are all of it.
    pub(super) fn note_answer(&mut self, status: StatusCode, headers: &HeaderMap) {
        if let (Some(attempt), Some(route)) = (&self.attempt, &self.route) {
            attempt.note_answer(status, headers, &route.get(), &mut self.info);
        }
    }

    /// The trailers of an answer came.
    pub(super) fn note_trailers(&mut self, trailers: &HeaderMap) {
        if let Some(attempt) = &self.attempt {
            attempt.heed(trailers);
        }
        if let Some(code) = grpc_status(trailers).filter(|_| self.info.is_grpc) {
            self.note_outcome(Outcome::of_grpc(code));
        }
    }

    fn note_outcome(&mut self, outcome: Outcome) {
        if let (Some(attempt), Some(route)) = (&self.attempt, &self.route) {
            attempt.report(outcome, &route.get(), &mut self.info);
        }
    }

    /// The way back of every response: filters, the route's changes. `is_end` says whether the head is all of it.
    #[inline(always)]
    pub(super) fn pass_back(&mut self, head: &mut Parts, is_end: bool) {
        if self.route_wants_response {
            self.change(head);
        }
        self.info.note_response(head.status, &head.headers, is_end);
    }

    fn change(&mut self, head: &mut Parts) {
        let Some(route) = &self.route else { return };
        let destination = route.get().destination;
        filters::on_response(destination.filters(), self.filters_entered, &mut self.info, head);
        rewrite::apply_to_response(destination.response_changes(), head);
        for cookie in std::mem::take(&mut self.set_cookies) {
            head.headers.append(SET_COOKIE, cookie);
        }
    }

    /// The request fails; the error says on which route.
    #[cold]
    pub(super) fn fail(&mut self, error: MeshError) -> MeshError {
        self.end_attempt();
        // Limits of a cluster count what they are in the way of.
        if error.kind() != ErrorKind::Overflow {
            self.note_unsent();
        }
        let error = match &self.route {
            Some(route) => with_changes(route, within(route, error)),
            None => error,
        };
        self.info.note_error(error.kind());
        self.info.note_event("failed", || followed::failure(&error));
        error
    }

    /// It has failed: where no endpoint was picked, nobody else counts it for the report of load.
    pub(super) fn note_unsent(&self) {
        let Some(selected) = self.route.as_ref().filter(|_| self.info.attempts == 0) else { return };
        match selected.get().cluster.and_then(|cluster| cluster.leaves().first()) {
            Some(leaf) => leaf.state.note_unsent(&leaf.cluster),
            None => self.context.store.traffic().note_nowhere(selected.view().target(), false),
        }
    }

    /// The present try came to nothing, and there is none after it: what the request fails with, unless others go on.
    #[cold]
    pub(super) fn lost(&mut self, error: MeshError) -> Option<MeshError> {
        if !self.has_rivals() {
            return Some(self.fail(error));
        }
        self.end_attempt();
        self.retry = None;
        None
    }

    /// The response breaks off; the error says at which endpoint.
    #[cold]
    pub(super) fn break_off(&mut self, error: MeshError) -> MeshError {
        let error = match (&self.attempt, &self.route) {
            (Some(attempt), Some(route)) => {
                // Of one whose answer has begun, only that it breaks off counts.
                if error.kind() != ErrorKind::Timeout {
                    attempt.report_failure(error.kind(), &route.get(), &mut self.info);
                }
                attempt.within(&route.get(), error)
            }
            _ => error,
        };
        self.fail(error)
    }

    /// The deadline, for the response's body.
    #[inline]
    pub(super) fn take_deadline(&mut self) -> Option<Pin<Box<Sleep>>> {
        let until = self.info.deadline?;
        let mut sleep = self.timer.take().unwrap_or_else(|| sleep_until(until));
        keep_to(&mut sleep, until);
        Some(sleep)
    }

    /// What takes too long by now, the request or the present try.
    #[inline]
    pub(super) fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        let (until, is_try) = match (self.info.answer_by(), self.try_until) {
            (None, None) => return Poll::Pending,
            (Some(deadline), Some(limit)) if limit < deadline => (limit, true),
            (Some(deadline), _) => (deadline, false),
            (None, Some(limit)) => (limit, true),
        };
        let sleep = self.timer.get_or_insert_with(|| sleep_until(until));
        keep_to(sleep, until);
        ready!(sleep.as_mut().poll(cx));
        if is_try {
            return Poll::Ready(Expired::Try);
        }
        let error = self.too_late();
        Poll::Ready(Expired::Request(self.fail(error)))
    }

    /// The failure of a request whose deadline has passed. It speaks against an endpoint only where that has the request.
    #[cold]
    pub(super) fn too_late(&mut self) -> MeshError {
        // Whoever sent the request that this one is made for may have left any time, and that says nothing of the endpoint.
        let is_blamed = self.connection.is_some() && !self.info.inherited.has_passed(Instant::now());
        if let (Some(attempt), Some(route), true) = (&self.attempt, &self.route, is_blamed) {
            attempt.report_failure(ErrorKind::Timeout, &route.get(), &mut self.info);
        }
        match &self.route {
            None => {
                let silence = self.context.store.silence();
                let what = format!("the deadline passed before there was a configuration ({silence})");
                MeshError::new(ErrorKind::Timeout, what)
            }
            Some(_) if self.info.attempts == 0 => {
                MeshError::new(ErrorKind::Timeout, "the deadline passed while a filter held the request back")
            }
            Some(route) => too_late(&route.get()),
        }
    }

    /// The response has come to its end, and the request with it: the connection can be used again, unless the request
    /// is still being sent over it. Whether it was.
    #[inline]
    pub(super) fn complete(&mut self) -> bool {
        self.info.note_complete();
        let was_cut_off = self.replay.cut_off();
        self.release(!was_cut_off);
        was_cut_off
    }

    /// The request cannot be sent, which is not its connection's fault.
    #[cold]
    pub(super) fn refuse(&mut self, error: MeshError) -> MeshError {
        self.release(true);
        self.fail(error)
    }

    /// The present try is over, and its answer is of no use.
    pub(super) fn give_up(&mut self, was_read: bool) {
        self.release(was_read);
    }

    #[inline]
    fn release(&mut self, is_free: bool) {
        if let Some((attempt, Some(connection))) = self.end_attempt()
            && is_free
            && attempt.is_reusable
        {
            self.transport.release(connection, attempt.endpoint());
        }
    }

    /// The present try is over, and with it its place among the requests in flight. Every try ends here, however it does.
    #[inline(always)]
    pub(super) fn end_attempt(&mut self) -> Option<(Attempt, Option<T::Connection>)> {
        let connection = self.connection.take();
        self.try_until = None;
        Some((self.attempt.take()?, connection))
    }
}

impl<T: Transport> Drop for ActiveRequest<T> {
    #[inline]
    fn drop(&mut self) {
        self.replay.cut_off();
        if self.info.is_observed()
            && let Some((bytes, messages)) = self.replay.streamed()
        {
            self.info.note_request_body(bytes, messages);
        }
        if self.attempt.is_some() {
            self.end_attempt();
        }
        if self.filters_entered > 0
            && let Some(route) = &self.route
        {
            filters::on_end(route.get().destination.filters(), self.filters_entered, &self.info);
        }
    }
}

/// The deadline may have come nearer since the sleep was made.
fn keep_to(sleep: &mut Pin<Box<Sleep>>, deadline: std::time::Instant) {
    if sleep.deadline() != deadline.into() {
        sleep.as_mut().reset(deadline.into());
    }
}

fn sleep_until(deadline: std::time::Instant) -> Pin<Box<Sleep>> {
    Box::pin(tokio::time::sleep_until(deadline.into()))
}

/// What the route makes of an error.
#[cold]
pub(crate) fn within(route: &SelectedRoute, error: MeshError) -> MeshError {
    let name = &route.get().route.name;
    if name.is_empty() { error } else { error.within(format_args!("route {name}")) }
}

/// The error with what the route sets on its responses: whoever makes an answer of it is to set that, too.
fn with_changes(route: &SelectedRoute, error: MeshError) -> MeshError {
    let changes = route.get().destination.response_changes();
    if changes.is_empty() {
        return error;
    }
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = error.kind().http_status();
    rewrite::apply_to_response(changes, &mut head);
    error.with_response_headers(head.headers)
}

/// The failure of a request that was not answered in time.
pub(super) fn too_late(route: &RouteRef<'_>) -> MeshError {
    let cluster = route.cluster.map_or("", |cluster| cluster.name().as_str());
    MeshError::new(ErrorKind::Timeout, format!("cluster {cluster}: no response by the deadline"))
}

pub(super) const FOUND: &str = "the route was found";
