//! One try after the other: an endpoint, a connection, and what becomes of a failure.
//!
//! A try is made again only where nothing was processed: no connection was had, the request was never written, or the
//! peer refused the stream unseen. What a connection that had been in use before makes of a request by closing is not
//! a try: see [`FailureCause`].

use std::sync::Arc;
use std::time::Instant;

use http::{Request, Response, StatusCode};
use mesh_core::balance::PickArgs;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::grpc_timeout;
use mesh_core::model::{RetryPolicy, RouteAction};
use mesh_core::request_info::RequestInfo;
use mesh_core::retry::{self, Outcome, RetryDecision};
use mesh_core::view::{RouteRef, SelectedRoute};

use super::request::{ActiveRequest, Attempt, FOUND, NOT_SENT, Step, Woken};
use super::response_body::Content;
use crate::transport::{Failure, FailureCause, Plaintext, Protocol, Transport};

/// How many connections may turn out to be closed under one try, before a new one is dialled for it.
const MAX_STALE: u8 = 3;

impl Attempt {
    /// Picks an endpoint for the next try of a request. `destination` is where the caller wants to go, for clusters that
    /// pass through.
    ///
    /// # Errors
    /// Where there is no endpoint, or the cluster must not be talked to in plaintext.
    #[inline]
    pub(crate) fn pick(route: &RouteRef<'_>, info: &mut RequestInfo, destination: &str) -> Result<Attempt, MeshError> {
        let no_cluster = || MeshError::new(ErrorKind::NoCluster, "the route has no cluster");
        let pick = route.cluster.ok_or_else(no_cluster)?.pick(&mut PickArgs::of(info), || destination)?;
        info.note_attempt(pick.in_flight.endpoint());
        let allowed = Plaintext::allowed(pick.cluster)?;
        Ok(Attempt { in_flight: pick.in_flight, leaf: pick.leaf, allowed, protocol: Protocol::Http1, stale: 0 })
    }

    /// What becomes of a try that failed: the pause before the next one, or the error, which says where it happened.
    pub(crate) fn failed(
        self,
        error: MeshError,
        route: &SelectedRoute,
        info: &mut RequestInfo,
    ) -> (MeshError, RetryDecision) {
        let cluster = self.cluster(route).map_or("", |cluster| cluster.name.as_str());
        let error = error.within(format_args!("cluster {cluster}: endpoint {}", self.endpoint().id()));
        info.tried.push(Arc::clone(self.endpoint()));
        let outcome = Outcome::Failed(error.kind());
        let decision =
            retry::decide(policy(route), outcome, info.attempts, info.deadline, Instant::now(), &mut info.random);
        (error, decision)
    }
}

/// The retry policy of a route.
#[inline]
fn policy(route: &SelectedRoute) -> &RetryPolicy {
    match &route.get().route.action {
        RouteAction::Forward(forward) => forward.retry.as_ref().unwrap_or(&retry::DEFAULT_POLICY),
        _ => &retry::DEFAULT_POLICY,
    }
}

impl<T: Transport> ActiveRequest<T> {
    /// Begins a try.
    #[inline]
    pub(super) fn try_once(&mut self) -> Result<Step<T>, MeshError> {
        let route = self.route.as_ref().expect(FOUND);
        let (head, _) = self.request.as_mut().expect(NOT_SENT);
        let destination = self.destination.as_deref().unwrap_or_default();
        let mut attempt = Attempt::pick(&route.get(), &mut self.info, destination)?;
        let cluster = attempt.cluster(route).expect(OF_THE_VIEW);
        attempt.protocol = self.transport.form(head, cluster, &self.info, route.view().host())?;
        if let Some(deadline) = self.info.deadline.filter(|_| self.info.is_grpc) {
            grpc_timeout::tell(&mut head.headers, deadline.saturating_duration_since(Instant::now()));
        }
        let ready = match self.was_cut {
            false => self.transport.ready(cluster, attempt.endpoint(), attempt.protocol, attempt.allowed),
            true => None,
        };
        self.attempt = Some(attempt);
        match ready {
            Some(connection) => {
                self.connection = Some(connection);
                Ok(Step::Send)
            }
            None => Ok(self.connect(!self.was_cut)),
        }
    }

    /// Waits for a connection, an old one only if `reuse` says so.
    fn connect(&mut self, reuse: bool) -> Step<T> {
        let route = self.route.as_ref().expect(FOUND);
        let attempt = self.attempt.as_ref().expect(PICKED);
        let cluster = attempt.cluster(route).expect(OF_THE_VIEW);
        let connecting = self.transport.connect(cluster, attempt.endpoint(), attempt.protocol, attempt.allowed, reuse);
        Step::Wait(Box::pin(async move { Woken::Connected(connecting.await) }))
    }

    /// There is a connection, or none could be had.
    pub(super) fn connected(&mut self, connected: Result<T::Connection, MeshError>) -> Result<Step<T>, MeshError> {
        match connected {
            Ok(connection) => {
                self.connection = Some(connection);
                Ok(Step::Send)
            }
            Err(error) => self.failed(Failure { error, cause: FailureCause::Endpoint, harmless: true }),
        }
    }

    /// Sends the request over its connection, and keeps what it takes to send it once more.
    #[inline]
    pub(super) fn dispatch(&mut self) -> T::Exchange {
        let (head, mut body) = self.request.take().expect(NOT_SENT);
        self.replay.keep(&head, &mut body);
        let endpoint = self.attempt.as_ref().expect(PICKED).endpoint();
        let connection = self.connection.as_mut().expect("a connection was found for the try");
        self.transport.send(connection, Request::from_parts(head, body), endpoint)
    }

    /// The exchange is over: the head of the response is here, or there will be none.
    #[inline]
    pub(super) fn concluded(&mut self, outcome: Result<Response<T::Body>, T::Error>) -> Step<T> {
        match outcome {
            Ok(response) => self.answered(response),
            Err(error) => {
                let connection = self.connection.take();
                let failure = self.transport.failure(error, connection, &mut self.replay);
                self.failed(failure).unwrap_or_else(|error| self.fail(error))
            }
        }
    }

    #[inline]
    fn answered(&mut self, response: Response<T::Body>) -> Step<T> {
        let route = self.route.as_ref().expect(FOUND);
        if retry::looks_at_answers(policy(route))
            && let Some(step) = self.try_again_after(&response)
        {
            return step;
        }
        self.replay.forget();
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            // An upgraded connection belongs to whoever took the upgrade.
            self.connection = None;
        }
        let response = self.pass_back(response);
        Step::Done(Ok(response.map(|body| Content::Upstream { body })))
    }

    /// Another try, where the policy wants one after this answer and the request is still whole.
    #[cold]
    fn try_again_after(&mut self, response: &Response<T::Body>) -> Option<Step<T>> {
        let policy = policy(self.route.as_ref().expect(FOUND));
        let outcome = Outcome::Answered(response.status(), response.headers());
        let (info, now) = (&mut self.info, Instant::now());
        let decision = retry::decide(policy, outcome, info.attempts, info.deadline, now, &mut info.random);
        let RetryDecision::Retry { after } = decision else { return None };
        self.request = Some(self.replay.restore()?);
        // The answer is not read, so its connection cannot be used again.
        self.connection = None;
        if let Some(attempt) = self.attempt.take() {
            self.info.tried.push(Arc::clone(attempt.endpoint()));
        }
        Some(pause(after))
    }

    /// A try failed: the same once more over another connection, another try, or the end.
    fn failed(&mut self, failure: Failure) -> Result<Step<T>, MeshError> {
        if failure.harmless && self.request.is_none() {
            self.request = self.replay.restore();
        }
        let is_whole = failure.harmless && self.request.is_some();
        let mut attempt = self.attempt.take().expect(PICKED);
        match failure.cause {
            FailureCause::Stale if is_whole && attempt.stale < MAX_STALE => {
                attempt.stale += 1;
                let reuse = !self.was_cut && attempt.stale < MAX_STALE;
                self.attempt = Some(attempt);
                return Ok(self.connect(reuse));
            }
            FailureCause::Cut if is_whole && !self.was_cut => {
                self.was_cut = true;
                self.attempt = Some(attempt);
                return Ok(self.connect(false));
            }
            _ => {}
        }
        match attempt.failed(failure.error, self.route.as_ref().expect(FOUND), &mut self.info) {
            (_, RetryDecision::Retry { after }) if is_whole => Ok(pause(after)),
            (error, _) => Err(error),
        }
    }
}

fn pause<T: Transport>(after: std::time::Duration) -> Step<T> {
    Step::Wait(Box::pin(async move {
        tokio::time::sleep(after).await;
        Woken::Retry
    }))
}

const PICKED: &str = "an endpoint was picked for the try";
const OF_THE_VIEW: &str = "the endpoint was picked from this very view, which does not change";
