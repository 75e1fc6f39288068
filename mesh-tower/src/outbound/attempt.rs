//! One try after the other: an endpoint, a connection, and what becomes of a failure.
//!
//! A try is made again only where nothing was processed: no connection was had, the request was never written, or the
//! peer refused the stream unseen. What a connection that had been in use before makes of a request by closing is not
//! a try: see [`FailureCause`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{Request, Response};
use mesh_core::balance::PickArgs;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::grpc_timeout;
use mesh_core::model::{Cluster, RetryPolicy, RouteAction};
use mesh_core::outlier::Outcome as Outlier;
use mesh_core::request_info::RequestInfo;
use mesh_core::retry::{self, Outcome, RetryDecision};
use mesh_core::view::RouteRef;

use super::request::{ActiveRequest, Attempt, FOUND, Step, Woken};
use crate::body::Body;
use crate::transport::{Failure, FailureCause, HttpVersion, Security, Transport};

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
        let attempt = Attempt {
            security: Security::of(pick.cluster, endpoint.is_mutual_tls())?,
            in_flight: pick.in_flight,
            leaf: pick.leaf,
            version: HttpVersion::Http1,
            stale: 0,
            is_reusable: false,
            is_watched: pick.cluster.outlier_detection.is_some(),
        };
        Ok((attempt, pick.cluster))
    }

    /// Tells outlier detection how the try ended, where the cluster has any.
    pub(crate) fn report(&self, outcome: Outlier, route: &RouteRef<'_>, info: &mut RequestInfo) {
        if self.is_watched
            && let Some(leaf) = route.cluster.and_then(|cluster| cluster.leaves().get(self.leaf))
            && let Some(detection) = &leaf.cluster.outlier_detection
        {
            leaf.state.note_outcome(detection, self.endpoint(), outcome, Instant::now, &mut info.random);
        }
    }

    /// The same of a try without an answer. Limits of the mesh's own, and what is wrong with the request, say nothing of the
    /// endpoint.
    pub(crate) fn report_failure(&self, kind: ErrorKind, route: &RouteRef<'_>, info: &mut RequestInfo) {
        match kind {
            ErrorKind::ConnectFailure | ErrorKind::ConnectionLost | ErrorKind::RefusedStream => {
                self.report(Outlier::LocalFailure, route, info);
            }
            ErrorKind::Timeout => self.report(Outlier::LocalTimeout, route, info),
            _ => {}
        }
    }

    /// After a try that failed: the error, which says where that happened, and whether there is another try.
    pub(crate) fn failed(
        self,
        error: MeshError,
        route: &RouteRef<'_>,
        info: &mut RequestInfo,
    ) -> (MeshError, RetryDecision) {
        self.report_failure(error.kind(), route, info);
        let error = self.within(route, error);
        info.tried.push(Arc::clone(self.endpoint()));
        let decision = decide(route, Outcome::Failed(error.kind()), info);
        (error, decision)
    }
}

/// The retry policy of a route.
#[inline]
fn policy<'v>(route: &RouteRef<'v>) -> &'v RetryPolicy {
    match &route.route.action {
        RouteAction::Forward(forward) => forward.retry.as_ref().unwrap_or(&retry::DEFAULT_POLICY),
        _ => &retry::DEFAULT_POLICY,
    }
}

fn decide(route: &RouteRef<'_>, outcome: Outcome<'_>, info: &mut RequestInfo) -> RetryDecision {
    retry::decide(policy(route), outcome, info.attempts, info.deadline, Instant::now(), &mut info.random)
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
        let (mut attempt, cluster) = Attempt::pick(route, &mut self.info, original_destination)?;
        if attempt.security.is_tls() && !T::SPEAKS_CLUSTER_TLS {
            let what = "it asks for TLS of the mesh's making, which a client below `client_layer` does not speak: use the \
                mesh's own client, or a client over its connector";
            return Err(MeshError::new(ErrorKind::Security, what).within(format_args!("cluster {}", cluster.name)));
        }
        let host = self.route.as_ref().and_then(|route| route.view().host());
        attempt.version = self.transport.form(head, cluster, &self.info, host)?;
        if let Some(deadline) = self.info.deadline.filter(|_| self.info.is_grpc) {
            grpc_timeout::tell(&mut head.headers, deadline.saturating_duration_since(Instant::now()));
        }
        self.route_wants_response = self.filters_entered > 0
            || !route.destination.response_changes().is_empty()
            || !self.set_cookies.is_empty();
        self.policy_wants_response = retry::looks_at_answers(policy(route));
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

    /// Waits for a connection, an old one only if `reuse` says so.
    fn connect(&mut self, attempt: Attempt, cluster: &Arc<Cluster>, reuse: bool) -> Step<T> {
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
                Ok(Step::Send)
            }
            Err(error) => {
                let failure = Failure { error, cause: FailureCause::Endpoint, harmless: true, unreachable: false };
                self.failed(failure, true)
            }
        }
    }

    /// Sends the request over its connection, and keeps what it takes to send it once more.
    #[inline(always)]
    pub(super) fn dispatch(&mut self, head: Parts, mut body: Body) -> T::Exchange {
        self.replay.keep(&head, &mut body, T::READS_EXTENSIONS);
        let endpoint = self.attempt.as_ref().expect(PICKED).endpoint();
        let connection = self.connection.as_mut().expect("a connection was found for the try");
        self.transport.send(connection, Request::from_parts(head, body), endpoint)
    }

    /// The exchange failed: what that says of it, and the request, if it is whole again and another try does no harm.
    #[cold]
    pub(super) fn exchange_failed(&mut self, error: T::Error) -> (Failure, Option<(Parts, Body)>) {
        let connection = self.connection.take();
        let failure = self.transport.failure(error, connection, self.replay.is_idempotent());
        if let Some(attempt) = self.attempt.as_ref().filter(|_| failure.unreachable) {
            attempt.endpoint().note_unreachable(Instant::now(), &mut self.info.random);
        }
        let request = failure.harmless.then(|| self.replay.restore()).flatten();
        (failure, request)
    }

    /// A try failed: the same once more over another connection, another try, or the end. `is_whole` says whether the
    /// request is still there.
    pub(super) fn failed(&mut self, failure: Failure, is_whole: bool) -> Result<Step<T>, MeshError> {
        let selected = self.route.clone().expect(FOUND);
        let route = selected.get();
        let (mut attempt, _) = self.end_attempt().expect(PICKED);
        match failure.cause {
            FailureCause::Stale if is_whole && attempt.stale < MAX_STALE => {
                attempt.stale += 1;
                let (cluster, reuse) = (attempt.cluster(&route), !self.was_cut && attempt.stale < MAX_STALE);
                return Ok(self.connect(attempt, cluster.expect(OF_THE_VIEW), reuse));
            }
            FailureCause::Cut if is_whole && !self.was_cut => {
                self.was_cut = true;
                let cluster = attempt.cluster(&route);
                return Ok(self.connect(attempt, cluster.expect(OF_THE_VIEW), false));
            }
            _ => {}
        }
        match attempt.failed(failure.error, &route, &mut self.info) {
            (_, RetryDecision::Retry { after }) if is_whole => Ok(pause(after)),
            (error, _) => Err(error),
        }
    }

    /// Another try, where the policy wants one after this answer and the request is still whole.
    #[cold]
    pub(super) fn try_again_after(&mut self, response: &Response<T::Body>) -> Option<(Step<T>, (Parts, Body))> {
        let selected = self.route.clone()?;
        let route = selected.get();
        let outcome = Outcome::Answered(response.status(), response.headers());
        let RetryDecision::Retry { after } = decide(&route, outcome, &mut self.info) else { return None };
        let request = self.replay.restore()?;
        // The answer is not read, so its connection cannot be used again.
        if let Some((attempt, _)) = self.end_attempt() {
            self.info.tried.push(Arc::clone(attempt.endpoint()));
        }
        Some((pause(after), request))
    }
}

fn pause<T: Transport>(after: Duration) -> Step<T> {
    Step::Wait(Box::pin(async move {
        tokio::time::sleep(after).await;
        Woken::Retry
    }))
}

const PICKED: &str = "an endpoint was picked for the try";
const OF_THE_VIEW: &str = "the endpoint was picked from this very view, which does not change";
