//! The third station: tries. One is made again only where nothing was processed: no connection was had, the
//! request was never written, or the peer refused the stream unseen. What a connection that had been in use before
//! makes of a request by closing is not a try: see [`super::connect::Blame`].

use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use mesh_core::call::Call;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::model::RetryPolicy;
use mesh_core::view::{ClusterView, Pick, TargetView};

use super::balance;
use super::connect::{Failure, Guard};
use crate::body::Body;

/// Istio's default number of retries, for routes that say nothing.
const DEFAULT_RETRIES: u32 = 2;
/// Envoy's default back-off.
const DEFAULT_BACKOFF: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(250));

/// The way from a cluster on: what a request needs to be tried and tried again.
pub(super) struct Tries<'v> {
    pub(super) view: &'v TargetView,
    pub(super) cluster: &'v ClusterView,
    pub(super) policy: Option<&'v RetryPolicy>,
    /// What the caller asked for, where that is where requests go.
    pub(super) authority: Option<&'v str>,
}

impl<'v> Tries<'v> {
    /// Sends a request, as often as its policy allows.
    pub(super) async fn run(
        &self,
        call: &mut Call,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, Guard), MeshError> {
        let pick = self.pick(call)?;
        self.from(pick, call, request).await
    }

    /// The same with the endpoint of the first try.
    pub(super) async fn from(
        &self,
        mut pick: Pick<'v>,
        call: &mut Call,
        mut request: Request<Body>,
    ) -> Result<(Response<Incoming>, Guard), MeshError> {
        loop {
            match balance::try_once(self.view, pick, call, request).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => request = Box::pin(self.next(call, failure)).await?,
            }
            pick = self.pick(call)?;
        }
    }

    /// After a failed try: the request for the next one, once it is time; or the failure, if it was the last.
    pub(super) async fn next(&self, call: &mut Call, failure: Failure) -> Result<Request<Body>, MeshError> {
        let again = may_retry(self.policy, &failure.error, call.attempt);
        let Some(request) = failure.request.filter(|_| again) else { return Err(failure.error) };
        let pause = backoff(self.policy, call);
        if call.deadline.is_some_and(|deadline| Instant::now() + pause >= deadline) {
            return Err(failure.error);
        }
        tokio::time::sleep(pause).await;
        call.attempt += 1;
        Ok(*request)
    }

    fn pick(&self, call: &mut Call) -> Result<Pick<'v>, MeshError> {
        self.cluster.pick(call, || self.authority.unwrap_or_default())
    }
}

/// Whether a policy has another try after this many.
fn may_retry(policy: Option<&RetryPolicy>, error: &MeshError, attempts: u32) -> bool {
    let retries = policy.map_or(DEFAULT_RETRIES, |policy| policy.retries);
    let word = match error.kind() {
        ErrorKind::ConnectFailure => "connect-failure",
        ErrorKind::RefusedStream => "refused-stream",
        _ => return false,
    };
    // `unavailable` is what gRPC calls both (gRFC A44), `5xx` and `reset` are Envoy's words that include them.
    let covers = |on: &String| on == word || matches!(on.as_str(), "unavailable" | "5xx" | "reset");
    attempts <= retries && policy.is_none_or(|policy| policy.on.iter().any(covers))
}

/// Envoy's: uniform in `0..(2^n - 1) × base`, at most `max`.
fn backoff(policy: Option<&RetryPolicy>, call: &mut Call) -> Duration {
    let (base, max) = policy.map_or(DEFAULT_BACKOFF, |policy| (policy.base_interval, policy.max_interval));
    let growth = 1u32.checked_shl(call.attempt).map_or(u32::MAX, |power| power - 1);
    base.saturating_mul(growth).min(max).mul_f64(call.random.f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_processed_is_tried_again() {
        let policy = |on: &[&str], retries| RetryPolicy {
            on: on.iter().map(|word| word.to_string()).collect(),
            retries,
            base_interval: Duration::from_millis(25),
            max_interval: Duration::from_millis(250),
        };
        let (connect, refused, lost) = (ErrorKind::ConnectFailure, ErrorKind::RefusedStream, ErrorKind::ConnectionLost);
        let cases = [
            (None, connect, 1, true),
            (None, connect, 2, true),
            (None, connect, 3, false),
            (None, lost, 1, false),
            (Some(policy(&["connect-failure"], 1)), connect, 1, true),
            (Some(policy(&["connect-failure"], 1)), connect, 2, false),
            (Some(policy(&["connect-failure"], 1)), refused, 1, false),
            (Some(policy(&["unavailable"], 1)), refused, 1, true),
            (Some(policy(&["connect-failure"], 0)), connect, 1, false),
            (Some(policy(&["reset"], 5)), lost, 1, false),
        ];
        for (policy, kind, attempts, expected) in cases {
            let retried = may_retry(policy.as_ref(), &MeshError::new(kind, ""), attempts);
            assert_eq!(retried, expected, "{policy:?} {kind:?} after {attempts}");
        }
    }

    #[test]
    fn the_backoff_grows_and_has_a_limit() {
        for attempt in [1, 2, 3, 10, 40] {
            let mut call = Call::new(Instant::now(), fastrand::Rng::with_seed(u64::from(attempt)));
            call.attempt = attempt;
            let limit = Duration::from_millis(25 * ((1u64 << attempt) - 1)).min(Duration::from_millis(250));
            assert!(backoff(None, &mut call) <= limit);
        }
    }
}
