//! The facts of one request, on either side of the mesh, from its arrival to the end of its response's body.
//!
//! Decisions read them, the async code around the decisions notes what happens, and whoever registered as an
//! [`Observer`] is told of all of it once, when the request is over. Envoy calls this `StreamInfo`.

mod inherited;
mod messages;
mod noting;
mod onward;
mod spans;

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};
use std::thread::LocalKey;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, Method, StatusCode, Version};
use smallvec::SmallVec;

use crate::error::ErrorKind;
use crate::id::{Address, ClusterName};
use crate::identity::SpiffeId;
use crate::jwt::Claims;
use crate::live_trace::{End, Hop, Place};
use crate::model::{AccessLog, HeaderChange, MetricRules, ServiceNames};
use crate::recycled::{Recycle, Recycled, Spare};
use crate::response_flags::ResponseFlags;
use crate::state::EndpointState;
use crate::workload::Peer;

pub use inherited::{ATTEMPT_COUNT, CRITICALITY, Criticality, EXPECTED_TIMEOUT, Inherited, PREVIOUS_ATTEMPTS};
pub use messages::Messages;
pub use onward::Upstream;
pub use spans::{AttemptEnd, AttemptNotes, SpanNotes};

/// When the caller of a request stops waiting. Put it into a request's extensions: the client enforces it, and
/// a server puts it there for the requests that its handlers make in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub Instant);

/// What the application says of sending a request more than once. Put it into a request's extensions; without it, the
/// route's retry policy alone counts, as in Envoy, whatever the method.
///
/// ```
/// use mesh_core::request_info::Repeat;
///
/// // However the mesh is configured: it is charged once.
/// let request = http::Request::post("http://payments/charge").extension(Repeat::IfUnprocessed).body(())?;
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// There is one try, whatever becomes of it.
    Never,
    /// It is not idempotent: it is sent again only where it was certainly not processed, and the policy wants that.
    IfUnprocessed,
    /// It is idempotent, whatever its method: a connection that closes under it between two requests is none of its
    /// tries.
    Idempotent,
}

/// Which way a request goes, seen from this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The application makes it.
    Outbound,
    /// The application answers it.
    Inbound,
}

/// Someone who wants to know what became of requests.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// use mesh_core::request_info::{Observer, RequestInfo};
///
/// /// Counts what failed, by the mesh or by the server.
/// #[derive(Debug, Default)]
/// struct Failures(AtomicUsize);
///
/// impl Observer for Failures {
///     fn on_end(&self, request: &RequestInfo) {
///         let failed = request.error().is_some() || request.status().is_some_and(|status| status.is_server_error());
///         self.0.fetch_add(usize::from(failed), Ordering::Relaxed);
///     }
/// }
/// ```
pub trait Observer: Send + Sync + fmt::Debug {
    /// A request is over: its response was read to the end, failed, or was given up. Told once for each request, on
    /// the request's task, with [`RequestInfo::started`] to measure from. A connection that is upgraded (101) is over as a
    /// request with that answer. Must not block, and must not panic.
    fn on_end(&self, request: &RequestInfo);

    /// What it wants to know of requests that begin now. Nothing is kept that nobody wants.
    fn interest(&self) -> Interest {
        Interest::Outcome
    }
}

/// Somebody who counts one call of gRPC, and each of its tries.
pub trait CallCounter: Send + Sync + fmt::Debug {
    /// A try begins, at this endpoint.
    fn attempt(&mut self, number: u32, endpoint: &EndpointState, now: Instant);

    /// A try ended that is not the one whose answer the caller gets.
    fn attempt_ended(&mut self, number: u32, end: AttemptEnd, now: Instant);

    /// The call is over.
    fn ended(&self, request: &RequestInfo, now: Instant);
}

/// How much somebody wants to know of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interest {
    /// Nothing: nobody is told.
    Nothing,
    /// Where they go, and what becomes of them.
    #[default]
    Outcome,
    /// Also their heads, and those of their answers: [`RequestInfo::head`].
    Head,
}

/// The most that any of these wants to know.
#[inline]
pub fn interest_of(observers: &Observers) -> Interest {
    observers.iter().map(|observer| observer.interest()).max().unwrap_or(Interest::Nothing)
}

/// The head of a request as it came, and that of its answer as it left, for those who want to know.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Heads {
    /// Path and query, before any route changed it.
    pub path: Box<str>,
    /// The protocol that the caller speaks.
    pub version: Version,
    /// The headers of the request.
    pub request: HeaderMap,
    /// The headers of the answer.
    pub response: HeaderMap,
    /// The trailers of the answer.
    pub trailers: HeaderMap,
    /// Where the request's connection ends here, on a server.
    pub local: Option<SocketAddr>,
    /// Who has connected, on a server: the client, or a proxy in front that is believed.
    pub direct: Option<SocketAddr>,
    /// The name that the client asked for in TLS, on a server.
    pub server_name: Option<Arc<str>>,
    /// When each try began, by its number, whose answer may be the request's.
    attempts: SmallVec<[(u32, Instant); 1]>,
    /// How long the endpoint took until the head of its answer was here.
    pub upstream_time: Option<Duration>,
    /// Why the last try got no connection, in one word.
    pub transport_failure: Option<Box<str>>,
}

/// The endpoint that a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pinned {
    /// Where it is; `None` where the request does not say.
    pub address: Option<Address>,
    /// Whether the request fails where that endpoint is not there, or may not be called.
    pub is_strict: bool,
}

/// Those who are told of every request.
pub type Observers = Arc<[Arc<dyn Observer>]>;

/// One request on its way.
///
/// The public fields are what decisions go by. The rest is noted by the data plane, and only where somebody is told in
/// the end: an observer, or the filters of the request's route. It is read through methods, which know nothing otherwise.
#[non_exhaustive]
pub struct RequestInfo {
    /// When it entered the mesh.
    pub started: Instant,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// Whether it carries gRPC.
    pub is_grpc: bool,
    /// Whether the caller speaks HTTP/2; the protocol of a try may be another.
    pub is_http2: bool,
    /// What it inherits from the request that it is made for. Its deadline is a part of the one above.
    pub inherited: Inherited,
    /// What consistent hashing chooses by, where a policy computed it.
    pub hash: Option<u64>,
    /// The endpoint that it belongs to, where a filter knows of one.
    pub pinned: Option<Box<Pinned>>,
    /// Headers that its answer gets, in the place of its own of the same names: who may read it.
    pub answer_headers: Option<Box<HeaderMap>>,
    /// Changes that rules on requests make to the headers of its answer.
    pub answer_changes: Option<Box<Vec<Arc<[HeaderChange]>>>>,
    /// Headers that a rate limit service wants its answer to have.
    pub limit_headers: Option<Box<HeaderMap>>,
    /// What is left of the limit that it comes nearest to, where its answer is to tell.
    pub limit_note: Option<Box<LimitNote>>,
    /// What the application says of sending it more than once.
    pub repeat: Option<Repeat>,
    /// Tries so far, the current one included; 0 before the first.
    pub attempts: u32,
    /// The endpoints of earlier tries: not to be picked again while there are others.
    pub tried: Vec<Arc<EndpointState>>,
    /// The priorities of earlier tries, where the policy has retries prefer others.
    pub tried_priorities: TriedPriorities,
    /// The source of every random choice of this request. Seed it to make them repeat.
    pub random: fastrand::Rng,
    /// What is held to its end, by few requests.
    held: Option<Box<Held>>,
    record: Option<Recycled<Record>>,
    /// Only where they are recorded.
    spans: Option<Box<SpanNotes>>,
}

/// What a request holds to its end. In a box, it makes those that hold nothing no larger.
#[derive(Default)]
struct Held(Vec<Box<dyn Any + Send + Sync>>);

/// What is left of a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitNote {
    /// The name of its rule, empty where it has none.
    pub rule: Arc<str>,
    /// How many requests there may be in a window.
    pub max: u32,
    /// How many of them are left.
    pub left: u32,
    /// The window.
    pub window: Duration,
    /// When all of them are there again.
    pub full_in: Duration,
}

/// One of the priorities of a cluster: which of its leaves it belongs to, and its number there.
pub type PriorityOf = (usize, u32);

/// The priorities that a request's tries went to (Envoy's `previous_priorities`).
#[derive(Clone, Debug, Default)]
pub struct TriedPriorities(Option<Box<PriorityTries>>);

/// Those of a request that was tried.
#[derive(Clone, Debug, Default)]
struct PriorityTries {
    frequency: usize,
    tries: Vec<PriorityOf>,
}

impl TriedPriorities {
    /// Notes one of them, in a policy by which they count after every `frequency` tries.
    pub fn note(&mut self, frequency: NonZeroU32, priority: PriorityOf) {
        let tried = self.0.get_or_insert_default();
        tried.frequency = usize::try_from(frequency.get()).unwrap_or(usize::MAX);
        tried.tries.push(priority);
    }

    /// Those that count by now, in the order in which they came to.
    pub fn counting(&self) -> impl Iterator<Item = &[PriorityOf]> {
        self.0.iter().flat_map(|tried| tried.tries.chunks_exact(tried.frequency))
    }

    /// Whether none counts yet.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.counting().next().is_none()
    }
}

/// What is noted for those who are told in the end.
struct Record {
    observers: Observers,
    direction: Direction,
    authority: SmallVec<[u8; 64]>,
    method: Method,
    peer: Option<SocketAddr>,
    client: Option<SpiffeId>,
    tokens: SmallVec<[Claims; 1]>,
    source: Option<Arc<Peer>>,
    is_secured: bool,
    is_at_edge: bool,
    route: Option<Arc<str>>,
    cluster: Option<ClusterName>,
    service: Option<Arc<ServiceNames>>,
    endpoint: Option<Arc<EndpointState>>,
    status: Option<StatusCode>,
    grpc_status: Option<u32>,
    error: Option<ErrorKind>,
    is_unchecked: bool,
    flags: ResponseFlags,
    details: Option<Cow<'static, str>>,
    request_bytes: u64,
    request_messages: Messages,
    response_bytes: u64,
    response_messages: Messages,
    is_complete: bool,
    /// When it was over, once somebody has asked.
    ended: OnceLock<Instant>,
    /// Whether it is a connection that is not HTTP.
    is_bytes: bool,
    heads: Option<Box<Heads>>,
    logs: Option<Arc<[AccessLog]>>,
    /// Where it is followed. Its heads are noted then, too.
    hop: Option<Box<Hop>>,
    metrics: Option<Arc<MetricRules>>,
    /// Where it counts by the names of gRPC.
    call: Option<Box<dyn CallCounter>>,
    /// Where it is seen while it is under way.
    place: Option<Place>,
    /// Where it is half of a request of a gateway.
    upstream: Option<Upstream>,
}

impl Recycle for Record {
    fn spare() -> &'static LocalKey<Spare<Self>> {
        thread_local!(static SPARE: Spare<Record> = const { Spare::new(Vec::new()) });
        &SPARE
    }
}

impl RequestInfo {
    /// A request that starts now.
    #[inline]
    pub fn new(now: Instant, random: fastrand::Rng) -> Self {
        RequestInfo {
            started: now,
            deadline: None,
            is_grpc: false,
            is_http2: false,
            inherited: Inherited::default(),
            hash: None,
            pinned: None,
            answer_headers: None,
            answer_changes: None,
            limit_headers: None,
            limit_note: None,
            repeat: None,
            attempts: 0,
            tried: Vec::new(),
            tried_priorities: TriedPriorities::default(),
            random,
            held: None,
            record: None,
            spans: None,
        }
    }

    /// Notes from here on what becomes of the request, and has these told when it is over; filters are told besides. For
    /// data planes.
    pub fn observe(&mut self, observers: &Observers, direction: Direction, method: &Method) {
        let (observers, method) = (Arc::clone(observers), method.clone());
        self.record = Some(Recycled::new(|| Record {
            observers,
            direction,
            authority: SmallVec::new(),
            method,
            peer: None,
            client: None,
            tokens: SmallVec::new(),
            source: None,
            is_secured: false,
            is_at_edge: false,
            route: None,
            cluster: None,
            service: None,
            endpoint: None,
            status: None,
            grpc_status: None,
            error: None,
            is_unchecked: false,
            flags: ResponseFlags::NONE,
            details: None,
            request_bytes: 0,
            request_messages: Messages::default(),
            response_bytes: 0,
            response_messages: Messages::default(),
            is_complete: false,
            ended: OnceLock::new(),
            is_bytes: false,
            heads: None,
            logs: None,
            hop: None,
            metrics: None,
            call: None,
            place: None,
            upstream: None,
        }));
    }

    /// Whether it is noted what becomes of it.
    #[inline]
    pub fn is_observed(&self) -> bool {
        self.record.is_some()
    }

    /// Keeps something until the request is over, however it ends: a permit, a count.
    pub fn hold(&mut self, guard: impl Send + Sync + 'static) {
        self.held.get_or_insert_default().0.push(Box::new(guard));
    }

    /// What is kept of this type.
    pub fn held<T: 'static>(&self) -> impl Iterator<Item = &T> {
        self.held.iter().flat_map(|held| &held.0).filter_map(|guard| guard.downcast_ref())
    }

    /// Brings the deadline forward; a later one than the present has no effect.
    pub fn not_after(&mut self, deadline: Instant) {
        self.deadline = Some(self.deadline.map_or(deadline, |present| present.min(deadline)));
    }

    /// When the head of the answer has to be here: nobody waits for it any longer.
    #[inline]
    pub fn answer_by(&self) -> Option<Instant> {
        match (self.deadline, self.inherited.answer_by) {
            (Some(deadline), Some(by)) => Some(deadline.min(by)),
            (deadline, by) => deadline.or(by),
        }
    }

    /// When it was over, for those who are told: the clock is read for the first of them.
    pub fn ended(&self) -> Instant {
        self.record.as_ref().map_or_else(Instant::now, |record| *record.ended.get_or_init(Instant::now))
    }

    /// Which way it goes.
    pub fn direction(&self) -> Option<Direction> {
        self.record.as_ref().map(|record| record.direction)
    }

    /// Host and port as the application, or on a server the client, wrote them; empty where there were none.
    pub fn authority(&self) -> &str {
        self.record.as_ref().map_or("", |record| std::str::from_utf8(&record.authority).unwrap_or_default())
    }

    /// The method; a connection that is not HTTP has none.
    pub fn method(&self) -> Option<&Method> {
        self.record.as_ref().filter(|record| !record.is_bytes).map(|record| &record.method)
    }

    /// Whether it is a connection that is not HTTP.
    pub fn is_bytes(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.is_bytes)
    }

    /// Who asked: on a server, where the connection is known.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.record.as_ref()?.peer
    }

    /// Who its client has shown to be, on a server, where filters are passed.
    pub fn client(&self) -> Option<&SpiffeId> {
        self.record.as_ref()?.client.as_ref()
    }

    /// What its tokens say, on a server, where filters are passed.
    pub fn tokens(&self) -> &[Claims] {
        self.record.as_ref().map_or(&[], |record| &record.tokens)
    }

    /// The route's name; `None` where none was found. Routes may be nameless.
    pub fn route(&self) -> Option<&str> {
        self.record.as_ref()?.route.as_deref()
    }

    /// The cluster; `None` where none was chosen, as on a server.
    pub fn cluster(&self) -> Option<&ClusterName> {
        self.record.as_ref()?.cluster.as_ref()
    }

    /// The endpoint of the last try; `None` where none was picked.
    pub fn endpoint(&self) -> Option<&Arc<EndpointState>> {
        self.record.as_ref()?.endpoint.as_ref()
    }

    /// The HTTP status, where an answer came.
    pub fn status(&self) -> Option<StatusCode> {
        self.record.as_ref()?.status
    }

    /// The gRPC status code, where an answer had one: in its trailers, or in the head of one without a body.
    pub fn grpc_status(&self) -> Option<u32> {
        self.record.as_ref()?.grpc_status
    }

    /// Why the mesh failed it, or why its response broke off. Neither this nor [`RequestInfo::is_complete`]: the caller
    /// gave it up.
    pub fn error(&self) -> Option<ErrorKind> {
        self.record.as_ref()?.error
    }

    /// Whether an authorizer gave no answer about it, and it passed since the configuration says so (`failOpen`).
    pub fn is_unchecked(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.is_unchecked)
    }

    /// Envoy's response flags: why the mesh failed it, `DC` where the caller gave it up.
    pub fn response_flags(&self) -> ResponseFlags {
        let Some(record) = &self.record else { return ResponseFlags::NONE };
        record.flags
            | match record.error {
                // What an authorizer refused has a flag of its own.
                Some(error) => error.response_flags(),
                None if !record.is_complete => ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION,
                None => ResponseFlags::NONE,
            }
    }

    /// Why it was answered as it was, in Envoy's words: `via_upstream`, `direct_response`, `route_not_found`.
    pub fn response_details(&self) -> &str {
        let Some(record) = &self.record else { return "" };
        match (&record.details, record.error) {
            (Some(details), _) => details,
            (None, _) if record.is_bytes => "",
            (None, Some(error)) => error.response_details(),
            (None, None) if !record.is_complete => "downstream_remote_disconnect",
            (None, None) => "via_upstream",
        }
    }

    /// Whether nobody here answered it: it was sent on, or the caller gave it up.
    pub(crate) fn was_sent_on(&self) -> bool {
        self.record.as_ref().is_some_and(|record| {
            let went_on = record.upstream.as_ref().is_some_and(Upstream::is_told);
            went_on || (record.details.is_none() && record.error.is_none())
        })
    }

    /// The code of the answer: where there was none, that of the answer that is made of the failure, and 0 where the caller
    /// did not wait, and of a connection that is not HTTP. gRPC's failures are told with 200.
    pub fn response_code(&self) -> u16 {
        match (self.status(), self.error()) {
            _ if self.is_bytes() => 0,
            (Some(status), _) => status.as_u16(),
            (None, Some(_)) if self.is_grpc => 200,
            (None, Some(error)) => error.http_status().as_u16(),
            (None, None) => 0,
        }
    }

    /// The gRPC status of the answer, or that of the answer that is made of the failure; `None` for HTTP.
    pub fn grpc_response_status(&self) -> Option<u32> {
        if !self.is_grpc {
            return None;
        }
        self.grpc_status().or_else(|| self.error().map(ErrorKind::grpc_code))
    }

    /// Whether it is one that a gateway has from outside of the mesh.
    pub fn is_at_edge(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.is_at_edge)
    }

    /// On a server, who the client is, as far as telemetry knows.
    pub fn source(&self) -> Option<&Arc<Peer>> {
        self.record.as_ref()?.source.as_ref()
    }

    /// On a server, who its client has shown to be.
    pub fn client_identity(&self) -> Option<&SpiffeId> {
        let is_inbound = self.direction() == Some(Direction::Inbound);
        self.source().filter(|_| is_inbound)?.principal.as_ref()
    }

    /// Whether it came, or its last try went, by mutual TLS.
    pub fn is_secured(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.is_secured)
    }

    /// The service that it is for.
    pub fn service(&self) -> Option<&Arc<ServiceNames>> {
        self.record.as_ref()?.service.as_ref()
    }

    /// The heads of request and answer, where somebody wants to know them.
    pub fn head(&self) -> Option<&Heads> {
        self.record.as_ref()?.heads.as_deref()
    }

    /// The access logs that the configuration wants it in.
    pub fn access_logs(&self) -> &[AccessLog] {
        self.record.as_ref().and_then(|record| record.logs.as_deref()).unwrap_or_default()
    }

    /// How it is counted, where that is otherwise than usual.
    #[inline]
    pub fn metric_rules(&self) -> Option<&Arc<MetricRules>> {
        self.record.as_ref()?.metrics.as_ref()
    }

    /// Bytes of the request's body that were sent, or on a server read, without framing.
    pub fn request_bytes(&self) -> u64 {
        self.record.as_ref().map_or(0, |record| record.request_bytes)
    }

    /// Messages of a gRPC request.
    pub fn request_messages(&self) -> u64 {
        self.record.as_ref().map_or(0, |record| record.request_messages.count())
    }

    /// Messages of a gRPC response.
    pub fn response_messages(&self) -> u64 {
        self.record.as_ref().map_or(0, |record| record.response_messages.count())
    }

    /// Bytes of the response's body, without framing.
    pub fn response_bytes(&self) -> u64 {
        self.record.as_ref().map_or(0, |record| record.response_bytes)
    }

    /// Whether the response was read to its end.
    pub fn is_complete(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.is_complete)
    }

    /// Whether somebody follows it through the mesh.
    #[inline]
    pub fn is_followed(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.hop.is_some())
    }

    /// What is told of it here, where somebody follows it.
    pub fn hop(&self) -> Option<&Hop> {
        self.record.as_ref()?.hop.as_deref()
    }

    fn tell(&self, observers: &Observers) {
        observers.iter().for_each(|observer| observer.on_end(self));
    }

    #[cold]
    fn end_hop(&mut self) {
        let Some(hop) = self.record.as_mut().and_then(|record| record.hop.take()) else { return };
        hop.end(&End {
            status: self.response_code(),
            grpc_status: self.grpc_response_status(),
            flags: self.response_flags().to_string(),
            details: self.response_details(),
            is_complete: self.is_complete(),
            attempts: self.attempts,
        });
    }
}

impl Drop for RequestInfo {
    #[inline]
    fn drop(&mut self) {
        if let Some(upstream) = self.record.as_ref().and_then(|record| record.upstream.clone()) {
            self.end_half(&upstream);
        }
        if let Some(record) = &self.record {
            self.tell(&record.observers);
            if let Some(call) = &record.call {
                call.ended(self, self.ended());
            }
            if record.hop.is_some() {
                self.end_hop();
            }
        }
    }
}

impl fmt::Debug for RequestInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("RequestInfo");
        shown.field("attempts", &self.attempts).field("deadline", &self.deadline).field("is_grpc", &self.is_grpc);
        if self.is_observed() {
            shown.field("direction", &self.direction()).field("authority", &self.authority());
            shown.field("route", &self.route()).field("cluster", &self.cluster());
            shown.field("endpoint", &self.endpoint()).field("status", &self.status());
            shown.field("grpc_status", &self.grpc_status()).field("error", &self.error());
        }
        shown.finish_non_exhaustive()
    }
}

/// The gRPC status code in trailers, or in the head of an answer that has nothing else; `None` where there is none, or no
/// number.
pub fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
    std::str::from_utf8(headers.get(GRPC_STATUS)?.as_bytes()).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;

    use super::*;

    #[derive(Debug, Default)]
    struct Told(Mutex<Vec<String>>);

    impl Observer for Told {
        fn on_end(&self, request: &RequestInfo) {
            self.0.lock().unwrap().push(format!("{request:?} {} {}", request.response_bytes(), request.is_complete()));
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "there is no runtime here")]
    fn how_long_an_endpoint_took_is_counted_from_when_its_own_try_began() {
        let cluster = crate::state::ClusterState::default();
        let endpoint = |port| {
            let at = std::net::SocketAddr::from(([10, 0, 0, 1], port));
            cluster.endpoint(&crate::id::EndpointId::new(at), false)
        };
        let mut request = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
        request.observe(&Observers::from([]), Direction::Outbound, &Method::GET);
        request.note_head("/", Version::HTTP_11, &HeaderMap::new());
        let (first, second) = (endpoint(1), endpoint(2));
        request.note_attempt(&first);
        std::thread::sleep(Duration::from_millis(30));
        request.note_attempt(&second);
        // The first one goes on beside it, and is answered.
        request.note_winner(1, &first);
        request.note_response(StatusCode::OK, &HeaderMap::new(), true);
        let took = request.head().and_then(|head| head.upstream_time).unwrap();
        assert!(took >= Duration::from_millis(30), "{took:?}");
    }

    #[test]
    fn an_observer_is_told_once_of_everything_that_was_noted() {
        let told = Arc::new(Told::default());
        let observers: Observers = Arc::from([Arc::clone(&told) as Arc<dyn Observer>]);
        let mut request = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
        request.observe(&observers, Direction::Outbound, &Method::GET);
        request.note_authority("a:80");
        request.note_response(StatusCode::OK, &HeaderMap::new(), false);
        request.note_response_data(&Bytes::from_static(b"abc"));
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", 14.into());
        request.note_trailers(&trailers);
        request.note_complete();
        assert!(told.0.lock().unwrap().is_empty(), "it is not over");
        drop(request);
        let told = told.0.lock().unwrap();
        assert_eq!(told.len(), 1);
        for part in ["Outbound", "\"a:80\"", "Some(200)", "grpc_status: Some(14)", " 3 true"] {
            assert!(told[0].contains(part), "{part} in {}", told[0]);
        }
    }

    #[derive(Debug, Default)]
    struct When(Mutex<Vec<Instant>>);

    impl Observer for When {
        fn on_end(&self, request: &RequestInfo) {
            self.0.lock().unwrap().push(request.ended());
        }
    }

    #[test]
    fn whoever_is_told_of_the_end_is_told_the_same_one() {
        let when = Arc::new(When::default());
        let observer: Arc<dyn Observer> = Arc::clone(&when) as Arc<dyn Observer>;
        let observers: Observers = Arc::from([Arc::clone(&observer), observer]);
        let mut request = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
        request.observe(&observers, Direction::Inbound, &Method::GET);
        drop(request);
        let when = when.0.lock().unwrap();
        assert_eq!((when.len(), when[0]), (2, when[1]));
    }

    #[test]
    fn what_nobody_is_told_of_is_not_kept() {
        let mut request = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
        request.note_authority("a:80");
        request.note_response(StatusCode::OK, &HeaderMap::new(), false);
        assert_eq!((request.authority(), request.status(), request.is_observed()), ("", None, false));
    }

    #[test]
    fn a_grpc_status_is_a_number() {
        for (text, expected) in [("0", Some(0)), ("14", Some(14)), ("", None), ("x", None), ("-1", None)] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", text.parse().unwrap());
            assert_eq!(grpc_status(&headers), expected, "{text:?}");
        }
    }
}
