//! One try after the other: an endpoint, a connection, and what becomes of a failure or an answer.
//!
//! Whether there is another try says the route's policy; whether the request is whole, its [`Replay`]; whether one more
//! retry may be under way, its cluster. What a connection that had been in use before makes of a request by closing is
//! not a try: see [`FailureCause`].
//!
//! [`Replay`]: crate::transport::Replay

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Body as _;
use mesh_core::balance::PickArgs;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::grpc_timeout;
use mesh_core::live_trace::{MARK, Stage};
use mesh_core::load_report::LoadReport;
use mesh_core::model::{BalancerPolicy, Cluster, ClusterTls, RetryConditions, RetryPolicy, RouteAction};
use mesh_core::outlier::Outcome;
use mesh_core::request_info::{AttemptEnd, Criticality, EXPECTED_TIMEOUT, Repeat, RequestInfo, grpc_status};
use mesh_core::response_flags::ResponseFlags;
use mesh_core::retry::{self, RetryDecision, TryOutcome};
use mesh_core::state::{EndpointState, RetryPermit, RetryPrice, TooManyRetries};
use mesh_core::view::RouteRef;
use serde_json::json;

use super::request::{ActiveRequest, Attempt, FOUND, Step, Watch, Woken};
use crate::body::Body;
use crate::connection::ConnectionInfo;
use crate::followed;
use crate::reply;
use crate::transport::{FAIL, Failure, FailureCause, HttpVersion, Security, Transport, is_success, outcome_of};

/// How many connections may turn out to be closed under one try, before a new one is dialled for it.
const MAX_STALE: u8 = 3;

impl Attempt {
    /// Picks an endpoint for the next try of a request, and tells which cluster it belongs to: for an aggregate, the
    /// leaf. `original_destination` is what a pass-through cluster is to dial.
    ///
    /// # Errors
    /// Where there is no endpoint, or the cluster asks for TLS that cannot be had.
    #[inline]
    pub(crate) fn pick<'v>(
        route: &RouteRef<'v>,
        info: &mut RequestInfo,
        original_destination: &str,
    ) -> Result<(Attempt, &'v Arc<Cluster>), MeshError> {
        let Some(cluster) = route.cluster else {
            return Err(MeshError::new(ErrorKind::NoCluster, "the route has no cluster"));
        };
        let pick = cluster.pick(&mut PickArgs::of(info), || original_destination)?;
        let endpoint = pick.in_flight.endpoint();
        info.note_attempt(endpoint);
        if pick.leaf > 0 {
            info.note_service(pick.cluster.service.as_ref());
            info.note_event("fallback", || json!({"to": pick.cluster.name.as_str()}));
        }
        // A budget of retries is a share of requests, and not of tries.
        if info.attempts == 1
            && let Some(leaf) = cluster.leaves().get(pick.leaf)
        {
            leaf.state.note_beginning(pick.cluster.circuit_breakers.retries, Instant::now);
        }
        let attempt = Attempt {
            security: Security::of(pick.cluster, endpoint.is_mutual_tls())?,
            number: info.attempts,
            leaf: pick.leaf,
            priority: pick.priority,
            version: HttpVersion::Http1,
            stale: 0,
            is_reusable: false,
            is_told: false,
            watch: Watch::of(pick.cluster, endpoint),
            in_flight: pick.in_flight,
        };
        Ok((attempt, pick.cluster))
    }

    /// Tells outlier detection and the report of load how the try ended, where the cluster has any.
    pub(crate) fn report(&self, outcome: Outcome, route: &RouteRef<'_>, info: &mut RequestInfo) {
        if let Some(reported) = &self.watch.reported {
            reported.note(is_success(outcome, info.is_grpc));
        }
        if self.watch.outcomes
            && let Some(leaf) = route.cluster.and_then(|cluster| cluster.leaves().get(self.leaf))
            && let Some(detection) = &leaf.cluster.outlier_detection
        {
            leaf.state.note_outcome(detection, self.endpoint(), outcome, Instant::now, &mut info.random);
        }
    }

    /// Takes in what the head of an answer, or its trailers, say of the endpoint itself.
    pub(super) fn heed(&self, headers: &HeaderMap) {
        if self.watch.health && headers.contains_key(FAIL) {
            self.endpoint().note_unwell();
        }
        if let Some(config) = &self.watch.load
            && let Some(report) = LoadReport::of(headers)
        {
            self.endpoint().note_load(config, &report, Instant::now());
        }
    }

    /// The head of an answer came. A gRPC call ends with its trailers, unless these are all of it.
    pub(super) fn note_answer(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        route: &RouteRef<'_>,
        info: &mut RequestInfo,
    ) {
        self.time(Duration::ZERO);
        self.heed(headers);
        if let Some(outcome) = outcome_of(status, headers, info.is_grpc) {
            self.report(outcome, route, info);
        }
    }

    /// Notes how long the try has taken until now, and `at_least` so long.
    fn time(&self, at_least: Duration) {
        if let Some((began, decay)) = self.watch.since {
            let now = Instant::now();
            self.endpoint().note_latency(now.saturating_duration_since(began).max(at_least), decay, now);
        }
    }

    /// The same of a try without an answer. Limits of the mesh's own, and what is wrong with the request, say nothing of the
    /// endpoint.
    pub(crate) fn report_failure(&self, kind: ErrorKind, route: &RouteRef<'_>, info: &mut RequestInfo) {
        use ErrorKind::{ConnectFailure, ConnectionLost, RefusedStream, Timeout};
        if matches!(kind, ConnectFailure | ConnectionLost | RefusedStream | Timeout) {
            self.time(FAILED);
        }
        match kind {
            ErrorKind::ConnectFailure | ErrorKind::ConnectionLost | ErrorKind::RefusedStream => {
                self.report(Outcome::LocalFailure, route, info);
            }
            ErrorKind::Timeout => self.report(Outcome::LocalTimeout, route, info),
            _ => {}
        }
    }

    /// After a try that failed: the error, which says where that happened, and the next try, if there is one.
    pub(crate) fn failed(
        self,
        error: MeshError,
        route: &RouteRef<'_>,
        info: &mut RequestInfo,
    ) -> (MeshError, Option<Retry>) {
        self.report_failure(error.kind(), route, info);
        if matches!(error.kind(), ErrorKind::ConnectFailure | ErrorKind::Security) {
            info.note_transport_failure(&error);
        }
        info.note_attempt_end(self.number, AttemptEnd::Failed(error.kind()));
        let error = self.within(route, error);
        match self.again(route, TryOutcome::Failed(error.kind()), info) {
            Again::Wanted(retry) => (error, Some(retry)),
            Again::Refused(reason) => (error.followed_by(reason), None),
            Again::No => (error, None),
        }
    }

    /// Whether there is another try after this one.
    fn again(&self, route: &RouteRef<'_>, outcome: TryOutcome<'_>, info: &mut RequestInfo) -> Again {
        let (policy, now) = (policy(route), Instant::now());
        let RetryDecision::Retry { after } = retry::decide(policy, outcome, info, now) else {
            if info.is_observed() && retry::is_exhausted(policy, outcome, info) {
                info.note_flags(ResponseFlags::RETRY_LIMIT_EXCEEDED);
            }
            return Again::No;
        };
        self.permitted(route, after, retry::is_unprocessed(outcome), info, now)
    }

    /// Whether another try begins beside this one, which takes too long.
    pub(super) fn beside(&self, route: &RouteRef<'_>, info: &mut RequestInfo) -> Option<Retry> {
        // It is slow, and has not failed: an answer may still come.
        self.time(Duration::ZERO);
        self.report(Outcome::LocalTimeout, route, info);
        let now = Instant::now();
        let RetryDecision::Retry { after } = retry::hedge(policy(route), info, now) else { return None };
        match self.permitted(route, after, false, info, now) {
            Again::Wanted(retry) => Some(retry),
            Again::Refused(_) | Again::No => None,
        }
    }

    /// The try that the policy wants after this one, if there is somebody to wait for it, and the cluster allows one more.
    fn permitted(
        &self,
        route: &RouteRef<'_>,
        after: Duration,
        is_unprocessed: bool,
        info: &mut RequestInfo,
        now: Instant,
    ) -> Again {
        // A client that is still there gets the answer, or the failure, that there is.
        if ConnectionInfo::may_be_left() {
            return Again::Refused("it is not tried again: the client has closed its side, and may be gone".into());
        }
        let policy = policy(route);
        let Some(leaf) = route.cluster.and_then(|cluster| cluster.leaves().get(self.leaf)) else { return Again::No };
        let price = match info.inherited.criticality {
            _ if is_unprocessed => RetryPrice::Nothing,
            Criticality::Sheddable => RetryPrice::OfPlenty,
            _ => RetryPrice::Usual,
        };
        let permit = match leaf.state.retry(leaf.cluster.circuit_breakers.retries, price, now) {
            Ok(permit) => permit,
            Err(TooManyRetries::UnderWay(retries)) => {
                info.note_flags(ResponseFlags::UPSTREAM_OVERFLOW);
                return Again::Refused(format!(
                    "it is not tried again: {retries} retries are under way, which is the limit"
                ));
            }
            Err(TooManyRetries::Unpaid) => {
                info.note_flags(ResponseFlags::UPSTREAM_OVERFLOW);
                return Again::Refused("it is not tried again: too few requests to the cluster succeed".into());
            }
        };
        // One that is out of the next view is passed over in this one, too.
        let endpoint = self.endpoint();
        if policy.avoids_tried || endpoint.is_ejected() || !endpoint.is_reachable() {
            info.tried.push(Arc::clone(endpoint));
        }
        if let Some(frequency) = policy.previous_priorities {
            info.tried_priorities.note(frequency, (self.leaf, self.priority));
        }
        Again::Wanted(Retry { after, permit })
    }
}

/// How long a try counts at least that fails, so that who fails fast is not taken for fast.
const FAILED: Duration = Duration::from_secs(1);

impl Watch {
    fn of(cluster: &Cluster, endpoint: &EndpointState) -> Watch {
        let (load, since) = match cluster.balancer.choosing() {
            // Endpoints that report on a stream of their own are not heard twice.
            BalancerPolicy::WeightedByLoad(config) if config.oob.is_none() => (Some(Arc::clone(config)), None),
            BalancerPolicy::PeakEwma { decay } => (None, Some((Instant::now(), *decay))),
            _ => (None, None),
        };
        let (outcomes, health) = (cluster.outlier_detection.is_some(), cluster.health_check.is_some());
        let reported = if cluster.reports_load { endpoint.begin_reported(Instant::now) } else { None };
        Watch { outcomes, health, load, since, reported }
    }

    /// Whether anything is.
    pub(super) fn is_on(&self) -> bool {
        self.outcomes || self.health || self.load.is_some() || self.since.is_some() || self.reported.is_some()
    }
}

/// The next try of a request.
pub(crate) struct Retry {
    /// How long to wait first.
    pub(crate) after: Duration,
    /// Held until it is answered or fails.
    pub(crate) permit: RetryPermit,
}

/// Whether there is another try.
enum Again {
    Wanted(Retry),
    /// The policy wants one, and this is why there is none.
    Refused(String),
    No,
}

/// The retry policy of a route.
#[inline]
pub(super) fn policy<'v>(route: &RouteRef<'v>) -> &'v RetryPolicy {
    match &route.route.action {
        RouteAction::Forward(forward) => forward.retry.as_deref().unwrap_or(&retry::DEFAULT_POLICY),
        _ => &retry::DEFAULT_POLICY,
    }
}

impl<T: Transport> ActiveRequest<T> {
    /// Another try: the pause is over.
    pub(super) fn retry(&mut self, head: &mut Parts) -> Result<Step<T>, MeshError> {
        let selected = self.route.clone().expect(FOUND);
        self.try_once(&selected.get(), head)
    }

    /// Begins a try.
    #[inline]
    pub(super) fn try_once(&mut self, route: &RouteRef<'_>, head: &mut Parts) -> Result<Step<T>, MeshError> {
        let original_destination = self.original_destination.as_deref().unwrap_or_default();
        let (mut attempt, cluster) = match Attempt::pick(route, &mut self.info, original_destination) {
            Ok(picked) => picked,
            Err(error) => {
                let fallback = route.cluster.and_then(|cluster| cluster.fallback());
                return match fallback.filter(|_| error.kind() == ErrorKind::NoHealthyEndpoint) {
                    Some(answer) => {
                        self.info.note_flags(error.kind().response_flags());
                        self.info.note_details(error.kind().response_details());
                        let event = || json!({"status": answer.status.as_u16(), "error": error.to_string()});
                        self.info.note_event("fallback", event);
                        Ok(Step::Done(reply::direct(answer, self.info.is_grpc)))
                    }
                    None => Err(error),
                };
            }
        };
        if attempt.security.is_tls() && !T::SPEAKS_CLUSTER_TLS {
            let what = "it asks for TLS of the mesh's making, which a client below `client_layer` does not speak: use the \
                mesh's own client or a client over its connector, or have a DestinationRule with `tls: {mode: DISABLE}` and a \
                PERMISSIVE server say that these calls travel in plaintext";
            return Err(MeshError::new(ErrorKind::Security, what).within(format_args!("cluster {}", cluster.name)));
        }
        let host = self.route.as_ref().and_then(|route| route.view().host());
        self.info.note_secured(attempt.security.is_tls());
        attempt.version = self.transport.form(head, cluster, &self.info, host)?;
        self.route_wants_response = self.filters_entered > 0
            || !route.destination.response_changes().is_empty()
            || !self.set_cookies.is_empty();
        let policy = policy(route);
        self.policy_wants_response = retry::looks_at_answers(policy, self.info.is_grpc);
        self.policy_is_paid = policy.on.is_of_processed();
        if policy.per_try_timeout.is_some() || self.info.answer_by().is_some() {
            let is_late = self.limit_try(policy, head);
            // Nobody is sent what is over by now.
            if is_late {
                return Err(self.too_late());
            }
        }
        self.info.inherited.tell(self.info.attempts, self.info.is_grpc, &mut head.headers);
        let ready = match self.was_cut {
            false => self.transport.ready(cluster, attempt.endpoint(), attempt.version, attempt.security),
            true => None,
        };
        match ready {
            Some(connection) => {
                attempt.is_reusable = self.transport.may_go_on(&connection, cluster);
                self.connection = Some(connection);
                self.attempt = Some(attempt);
                Ok(Step::Send)
            }
            None => Ok(self.connect(attempt, cluster, !self.was_cut)),
        }
    }

    /// From here on the try has its own time, and the server is told how long there is. gRPC's own header is about all of a
    /// call, and so is not about the time of a try, which ends with the head of the answer. Whether the request's own is over.
    fn limit_try(&mut self, policy: &RetryPolicy, head: &mut Parts) -> bool {
        let now = Instant::now();
        self.try_until = policy.per_try_timeout.and_then(|limit| now.checked_add(limit));
        let answer_by = self.info.answer_by();
        if !self.info.is_grpc {
            if let Some(nearest) = answer_by.into_iter().chain(self.try_until).min() {
                let left = nearest.saturating_duration_since(now).as_millis();
                head.headers
                    .insert(EXPECTED_TIMEOUT, HeaderValue::from(u64::try_from(left).unwrap_or(u64::MAX).max(1)));
            }
        } else if let Some(deadline) = self.info.deadline {
            grpc_timeout::tell(&mut head.headers, deadline.saturating_duration_since(now));
        }
        answer_by.is_some_and(|by| by <= now)
    }

    /// Waits for a connection, an old one only if `reuse` says so.
    fn connect(&mut self, attempt: Attempt, cluster: &Arc<Cluster>, reuse: bool) -> Step<T> {
        self.info.waits_for(Stage::Connection);
        self.info.note_event("connecting", || json!({"reuse": reuse}));
        let connecting = self.transport.connect(cluster, attempt.endpoint(), attempt.version, attempt.security, reuse);
        self.attempt = Some(attempt);
        Step::Wait(Box::pin(async move { Woken::Connected(connecting.await) }))
    }

    /// There is a connection, or none could be had.
    pub(super) fn connected(&mut self, connected: Result<T::Connection, MeshError>) -> Result<Step<T>, MeshError> {
        match connected {
            Ok(connection) => {
                let (attempt, route) = (self.attempt.as_mut().expect(PICKED), self.route.as_ref().expect(FOUND));
                let cluster = attempt.cluster(&route.get()).expect(OF_THE_VIEW);
                attempt.is_reusable = self.transport.may_go_on(&connection, cluster);
                self.connection = Some(connection);
                self.info.note_event("connected", || json!({}));
                if self.info.answer_by().is_some_and(|by| by <= Instant::now()) {
                    // Another request may have the connection.
                    self.give_up(true);
                    return Err(self.too_late());
                }
                Ok(Step::Send)
            }
            Err(error) => {
                let (error, step) = self.failed(Failure { error, cause: FailureCause::Endpoint, unreachable: false });
                step.ok_or(error)
            }
        }
    }

    /// Sends the request over its connection, and keeps what it takes to send it once more.
    #[inline(always)]
    pub(super) fn dispatch(&mut self, mut head: Parts, mut body: Body) -> T::Exchange {
        let is_kept = body.is_streamed() && self.keeps_body();
        self.replay.keep(&head, &mut body, is_kept, T::READS_EXTENSIONS);
        let connection = self.connection.as_ref().expect(CONNECTED);
        self.info.tell_trace(self.transport.tables(connection), &mut head.headers);
        if self.info.is_observed() {
            self.observe_sending(&mut head);
        }
        let endpoint = self.attempt.as_ref().expect(PICKED).endpoint();
        let connection = self.connection.as_mut().expect(CONNECTED);
        self.transport.send(connection, Request::from_parts(head, body), endpoint)
    }

    /// Notes what is sent, and tells servers of the mesh who this process is. That is told for this try alone: the next one may
    /// go elsewhere.
    #[inline]
    fn observe_sending(&mut self, head: &mut Parts) {
        let (bytes, messages) = self.replay.sent_at_once(self.info.is_grpc);
        self.info.note_request_body(bytes, messages);
        self.info.waits_for(Stage::Answer);
        let is_followed = self.info.is_followed();
        if self.context.telemetry.is_none() && !is_followed {
            return;
        }
        let (Some(attempt), Some(route)) = (&self.attempt, &self.route) else { return };
        let cluster = attempt.cluster(&route.get());
        let service = cluster.and_then(|cluster| cluster.service.as_ref());
        // Who proves itself to an authority of files, or of a Secret, is none of the mesh.
        let is_outside = service.is_some_and(|service| service.is_external)
            || cluster.is_some_and(|cluster| matches!(cluster.tls, ClusterTls::Foreign(_)));
        if is_followed
            && !is_outside
            && let Some(mark) = self.info.hop().and_then(|hop| hop.mark(self.info.attempts).to_header())
        {
            head.headers.insert(MARK, mark);
            let attempt = self.info.attempts;
            self.info.note_event("sent", || json!({"attempt": attempt}));
        }
        let Some(telemetry) = &self.context.telemetry else { return };
        let is_of_mesh = service.is_some() && !is_outside && attempt.endpoint().has_peer();
        if is_of_mesh {
            telemetry.introduce(&mut head.headers);
            self.attempt.as_mut().expect(PICKED).is_told = true;
        }
    }

    /// Whether what is read of a streamed body is kept for another try: where the route has a policy that may want one.
    #[inline]
    fn keeps_body(&self) -> bool {
        let Some(route) = &self.route else { return false };
        let RouteAction::Forward(forward) = &route.get().route.action else { return false };
        let wants = |policy: &RetryPolicy| policy.on != RetryConditions::NONE && self.info.attempts <= policy.retries;
        forward.retry.as_deref().is_some_and(wants) && self.info.repeat != Some(Repeat::Never)
    }

    /// The exchange failed: the request, if it is whole again for the next step, and that step.
    #[cold]
    pub(super) fn exchange_failed(&mut self, error: T::Error) -> (Whole, Result<Step<T>, MeshError>) {
        let connection = self.connection.take();
        let failure = self.transport.failure(error, connection, self.is_idempotent());
        if let Some(attempt) = self.attempt.as_ref().filter(|_| failure.unreachable) {
            attempt.endpoint().note_unreachable(Instant::now(), &mut self.info.random);
        }
        self.failed_underway(failure)
    }

    /// No answer came in the time of a try.
    #[cold]
    pub(super) fn no_answer(&mut self) -> (Whole, Result<Step<T>, MeshError>) {
        let error = MeshError::new(ErrorKind::Timeout, "no response in the time of a try");
        let failed = self.failed_underway(Failure { error, cause: FailureCause::Endpoint, unreachable: false });
        if failed.1.is_err() {
            self.info.note_details("upstream_per_try_timeout");
        }
        failed
    }

    /// A try had no connection in its time. How short that is, is not the endpoint's fault: it has seen nothing of the request.
    #[cold]
    pub(super) fn unconnected(&mut self) -> Result<Step<T>, MeshError> {
        if let Some(attempt) = &mut self.attempt {
            (attempt.watch.outcomes, attempt.watch.since) = (false, None);
        }
        self.connected(Err(MeshError::new(ErrorKind::ConnectFailure, "no connection in the time of a try")))
    }

    fn failed_underway(&mut self, failure: Failure) -> (Whole, Result<Step<T>, MeshError>) {
        match self.failed(failure) {
            (error, None) => (None, Err(error)),
            (error, Some(step)) => match self.replay.restore() {
                None => (None, Err(error.followed_by("it is not tried again: its body is not there any more"))),
                request => (request, Ok(step)),
            },
        }
    }

    /// Whether the request may be sent twice without harm: by its method, or as the application says.
    fn is_idempotent(&self) -> bool {
        match self.info.repeat {
            None => self.replay.is_idempotent(),
            Some(repeat) => repeat == Repeat::Idempotent,
        }
    }

    /// A try failed: the error, and if there is to be another one the step to it. That is the same once more over another
    /// connection, or a try.
    fn failed(&mut self, failure: Failure) -> (MeshError, Option<Step<T>>) {
        self.info.note_event("attempt failed", || followed::failure(&failure.error));
        let selected = self.route.clone().expect(FOUND);
        let route = selected.get();
        let until = self.try_until;
        let (mut attempt, _) = self.end_attempt().expect(PICKED);
        let reuse = match failure.cause {
            FailureCause::Stale if attempt.stale < MAX_STALE => {
                attempt.stale += 1;
                Some(!self.was_cut && attempt.stale < MAX_STALE)
            }
            // A route that retries nothing has this not sent twice, either.
            FailureCause::Cut if !self.was_cut && policy(&route).on != RetryConditions::NONE => {
                self.was_cut = true;
                Some(false)
            }
            _ => None,
        };
        if let Some(reuse) = reuse {
            let error = attempt.within(&route, failure.error);
            let cluster = attempt.cluster(&route).expect(OF_THE_VIEW);
            self.try_until = until;
            return (error, Some(self.connect(attempt, cluster, reuse)));
        }
        // This try is no retry under way any more.
        self.retry = None;
        let (error, retry) = attempt.failed(failure.error, &route, &mut self.info);
        (error, retry.map(|retry| self.pause(retry)))
    }

    /// The endpoint answered, and this is what the caller gets: what it did well pays for retries.
    #[inline]
    pub(super) fn earn(&self, status: StatusCode, headers: &HeaderMap) {
        if retry::is_success(status, headers, self.info.is_grpc)
            && let (Some(attempt), Some(route)) = (&self.attempt, &self.route)
            && let Some(leaf) = route.get().cluster.and_then(|cluster| cluster.leaves().get(attempt.leaf))
        {
            leaf.state.earn(self.paid);
        }
    }

    /// Another try, where the policy wants one after this answer and the request is still whole.
    #[cold]
    pub(super) fn try_again_after(&mut self, response: &Response<T::Body>) -> Option<(Step<T>, (Parts, Body))> {
        let selected = self.route.clone()?;
        let route = selected.get();
        let outcome = TryOutcome::Answered(response.status(), response.headers());
        self.retry = None;
        let attempt = self.attempt.as_ref()?;
        let retry = match attempt.again(&route, outcome, &mut self.info) {
            Again::Wanted(retry) => retry,
            Again::Refused(reason) => {
                self.info.note_event("no retry", || json!({"reason": reason}));
                return None;
            }
            Again::No => return None,
        };
        let request = self.replay.restore()?;
        self.info.note_event("attempt answered", || json!({"status": response.status().as_u16()}));
        let end = AttemptEnd::Answered(response.status(), grpc_status(response.headers()));
        self.info.note_attempt_end(attempt.number, end);
        // An answer that is not read leaves its connection in no state to be used again.
        self.give_up(response.body().is_end_stream());
        Some((self.pause(retry), request))
    }

    /// The present try was answered, which is not the end of the request.
    #[cold]
    pub(super) fn note_answered(&mut self, response: &Response<T::Body>) {
        if let Some(attempt) = &self.attempt {
            let end = AttemptEnd::Answered(response.status(), grpc_status(response.headers()));
            self.info.note_attempt_end(attempt.number, end);
        }
    }

    pub(super) fn pause(&mut self, retry: Retry) -> Step<T> {
        let mut permit = retry.permit;
        self.paid = self.paid.saturating_add(permit.begin());
        self.retry = Some(permit);
        let after = retry.after;
        self.info.waits_for(Stage::Pause);
        self.info.note_event("retry", || json!({"after_ms": after.as_secs_f64() * 1e3}));
        Step::Wait(Box::pin(async move {
            tokio::time::sleep(after).await;
            Woken::Retry
        }))
    }
}

/// The request, where it is whole.
type Whole = Option<(Parts, Body)>;

const CONNECTED: &str = "a connection was found for the try";
const PICKED: &str = "an endpoint was picked for the try";
const OF_THE_VIEW: &str = "the endpoint was picked from this very view, which does not change";
