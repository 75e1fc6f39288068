//! Whether a request is tried again, and when: from its policy, the outcome of a try, and what is known of the request.
//!
//! What is decided here is only whether another try is *wanted*. That the request is still whole, and that its cluster
//! allows one retry more, the data plane sees to. Conditions are Envoy's (`x-envoy-retry-on`, `x-envoy-retry-grpc-on`;
//! its `RetryStateImpl`). What servers ask for is gRPC's pushback (gRFC A6), which is obeyed, `Retry-After` (RFC 9110,
//! 10.2.3), which is kept to, and what a policy names in its place, which is Envoy's: what is longer than its longest pause is passed over.

use std::str::FromStr;
use std::time::{Duration, Instant};

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::error::{ErrorKind, OVERLOADED};
use crate::limits::RATE_LIMITED;
use crate::matcher::answer_matches;
use crate::model::{Profile, RetryBackOff, RetryCondition, RetryConditions, RetryPolicy};
use crate::request_info::{Repeat, RequestInfo, grpc_status};

/// What holds for a route that has no policy: what was certainly not processed is tried once more, as gRPC does by
/// itself (gRFC A6, transparent retries). A mesh's own defaults are its control plane's to say.
pub static DEFAULT_POLICY: RetryPolicy = RetryPolicy {
    on: RetryConditions::NONE.with(RetryCondition::ConnectFailure).with(RetryCondition::RefusedStream),
    retries: 1,
    statuses: Vec::new(),
    headers: Vec::new(),
    request_headers: Vec::new(),
    per_try_timeout: None,
    avoids_tried: true,
    previous_priorities: None,
    hedges: false,
    back_off: RetryBackOff::DEFAULT,
    rate_limited: None,
};

/// [`DEFAULT_POLICY`].
///
/// ```
/// use mesh_core::model::{RetryConditions, RetryPolicy};
///
/// let mut policy = RetryPolicy::default();
/// policy.on = RetryConditions::parse("connect-failure,unavailable");
/// policy.retries = 3;
/// ```
impl Default for RetryPolicy {
    fn default() -> Self {
        DEFAULT_POLICY.clone()
    }
}

/// How a try ended.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum TryOutcome<'o> {
    /// Without an answer. [`ErrorKind::Timeout`] is that of a try which took too long.
    Failed(ErrorKind),
    /// With the head of an answer.
    Answered(StatusCode, &'o HeaderMap),
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryDecision {
    /// Another try, after this pause.
    Retry {
        /// How long to wait first.
        after: Duration,
    },
    /// None: the outcome stands.
    Stop,
}

/// Whether a policy may want another try after an answer. Where it may not, nobody has to look at answers.
#[inline]
pub fn looks_at_answers(policy: &RetryPolicy, is_grpc: bool) -> bool {
    policy.on.intersects(Profile::of(is_grpc).of_answers)
        || policy.on.contains(RetryCondition::RetriableStatusCodes) && !policy.statuses.is_empty()
        || policy.on.contains(RetryCondition::RetriableHeaders) && !policy.headers.is_empty()
}

/// Decides after a try, the last of `request`'s attempts. There is none that would begin after the deadline.
///
/// ```
/// use std::time::Instant;
/// use mesh_core::error::ErrorKind;
/// use mesh_core::request_info::RequestInfo;
/// use mesh_core::retry::{DEFAULT_POLICY, RetryDecision, TryOutcome, decide};
///
/// let now = Instant::now();
/// let mut request = RequestInfo::new(now, fastrand::Rng::with_seed(1));
/// let refused = TryOutcome::Failed(ErrorKind::ConnectFailure);
/// request.attempts = 1;
/// assert!(matches!(decide(&DEFAULT_POLICY, refused, &mut request, now), RetryDecision::Retry { .. }));
/// request.attempts = 2;
/// assert_eq!(decide(&DEFAULT_POLICY, refused, &mut request, now), RetryDecision::Stop);
/// ```
pub fn decide(policy: &RetryPolicy, outcome: TryOutcome<'_>, request: &mut RequestInfo, now: Instant) -> RetryDecision {
    if request.attempts > policy.retries || !may_repeat(outcome, request) || !wants(policy, outcome, request) {
        return RetryDecision::Stop;
    }
    pause(policy, outcome, request).map_or(RetryDecision::Stop, |after| in_time(after, request, now))
}

/// Whether the policy wants another try after this outcome, and there were as many as it allows (Envoy's flag `URX`).
pub fn is_exhausted(policy: &RetryPolicy, outcome: TryOutcome<'_>, request: &RequestInfo) -> bool {
    policy.retries > 0
        && request.attempts > policy.retries
        && may_repeat(outcome, request)
        && wants(policy, outcome, request)
}

/// A try after this pause, if that begins while the answer is wanted.
fn in_time(after: Duration, request: &RequestInfo, now: Instant) -> RetryDecision {
    let is_in_time = request.answer_by().is_none_or(|by| now + after < by);
    if is_in_time { RetryDecision::Retry { after } } else { RetryDecision::Stop }
}

/// Whether a request's tries that take too long go on beside the next ones. One that the application has not sent twice has
/// no two tries at a time, either.
#[inline]
pub fn hedges(policy: &RetryPolicy, request: &RequestInfo) -> bool {
    policy.hedges && !request.inherited.is_retried() && matches!(request.repeat, None | Some(Repeat::Idempotent))
}

/// Decides where a try takes too long, and goes on: whether the next one begins. As long as there are retries left it does,
/// whatever the policy's conditions are, since nothing has failed (Envoy's `shouldHedgeRetryPerTryTimeout`).
pub fn hedge(policy: &RetryPolicy, request: &mut RequestInfo, now: Instant) -> RetryDecision {
    if !hedges(policy, request) || request.attempts > policy.retries {
        return RetryDecision::Stop;
    }
    let after = usual(policy.back_off, request.attempts, &mut request.random);
    in_time(after, request, now)
}

/// Whether the application lets the request be sent once more, and no hop further out is at that already: its retries and
/// those in here would multiply. What nobody processed costs nobody anything, and is tried again where that is known.
fn may_repeat(outcome: TryOutcome<'_>, request: &RequestInfo) -> bool {
    match request.repeat {
        None | Some(Repeat::Idempotent) => !request.inherited.is_retried() || is_unprocessed(outcome),
        Some(Repeat::IfUnprocessed) => is_unprocessed(outcome),
        Some(Repeat::Never) => false,
    }
}

/// Whether no server has begun with the request: another try is no more work for any.
pub fn is_unprocessed(outcome: TryOutcome<'_>) -> bool {
    matches!(outcome, TryOutcome::Failed(ErrorKind::ConnectFailure | ErrorKind::RefusedStream))
}

/// Whether an answer earns its cluster a part of a retry, see [`ClusterState::earn`](crate::state::ClusterState::earn): the
/// server did what it is there for.
#[inline]
pub fn is_success(status: StatusCode, headers: &HeaderMap, is_grpc: bool) -> bool {
    !status.is_server_error() && (!is_grpc || grpc_status(headers).is_none_or(|code| code == 0))
}

/// When to come back, in the head of a gRPC answer.
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Whether the policy wants another try after this outcome, were there any left.
pub fn wants(policy: &RetryPolicy, outcome: TryOutcome<'_>, request: &RequestInfo) -> bool {
    match outcome {
        TryOutcome::Failed(kind) => policy.on.intersects(conditions_of_failure(kind)),
        TryOutcome::Answered(status, headers) => {
            let is_met = policy.on.intersects(conditions_of_answer(policy, status, headers, request.is_grpc));
            let of_limits = policy.on.contains(RetryCondition::EnvoyRatelimited);
            // So it mostly is, and then no header is looked up.
            if !is_met && !of_limits {
                return false;
            }
            // In this order: Envoy takes the flag of a rate limit for all that there is to know of an answer.
            if headers.contains_key(OVERLOADED) {
                return false;
            }
            if headers.contains_key(RATE_LIMITED) { of_limits } else { is_met }
        }
    }
}

/// The conditions that a try meets to which no answer came.
fn conditions_of_failure(kind: ErrorKind) -> RetryConditions {
    use RetryCondition::{
        ConnectFailure, GatewayError, RefusedStream, Reset, ResetBeforeRequest, ServerError, Unavailable,
    };
    let no_answer = RetryConditions::NONE.with(Reset).with(ServerError).with(GatewayError);
    match kind {
        // `unavailable` is what gRPC calls these two (gRFC A44).
        ErrorKind::ConnectFailure => no_answer.with(ConnectFailure).with(ResetBeforeRequest).with(Unavailable),
        ErrorKind::RefusedStream => no_answer.with(RefusedStream).with(Unavailable),
        ErrorKind::ConnectionLost | ErrorKind::Timeout => no_answer,
        // What the mesh itself refused, it refuses again.
        _ => RetryConditions::NONE,
    }
}

/// The conditions that an answer meets.
fn conditions_of_answer(
    policy: &RetryPolicy,
    status: StatusCode,
    headers: &HeaderMap,
    is_grpc: bool,
) -> RetryConditions {
    use RetryCondition::{
        Cancelled, DeadlineExceeded, GatewayError, Internal, ResourceExhausted, Retriable4xx, RetriableHeaders,
        RetriableStatusCodes, ServerError, Unavailable,
    };
    let mut met = RetryConditions::NONE;
    if status.is_server_error() {
        met = met.with(ServerError);
    }
    if matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT) {
        met = met.with(GatewayError);
    }
    if status == StatusCode::CONFLICT {
        met = met.with(Retriable4xx);
    }
    if policy.statuses.contains(&status) {
        met = met.with(RetriableStatusCodes);
    }
    if policy.headers.iter().any(|test| answer_matches(test, headers)) {
        met = met.with(RetriableHeaders);
    }
    // In the head it is that of an answer without a body (trailers-only). One that comes later came with an answer.
    match is_grpc.then(|| grpc_status(headers)).flatten() {
        Some(1) => met.with(Cancelled),
        Some(4) => met.with(DeadlineExceeded),
        Some(8) => met.with(ResourceExhausted),
        Some(13) => met.with(Internal),
        Some(14) => met.with(Unavailable),
        _ => met,
    }
}

/// How long to wait; `None` where the server does not want to see the request again.
fn pause(policy: &RetryPolicy, outcome: TryOutcome<'_>, request: &mut RequestInfo) -> Option<Duration> {
    let usual = usual(policy.back_off, request.attempts, &mut request.random);
    let TryOutcome::Answered(_, headers) = outcome else { return Some(usual) };
    if request.is_grpc
        && let Some(value) = headers.get(PUSHBACK)
    {
        // gRFC A6: it is obeyed. What is negative or no number (of 32 bits) says that there is to be no other try.
        return number::<u32>(value).map(|millis| Duration::from_millis(millis.into()));
    }
    let seconds = |name: &HeaderName| headers.get(name).and_then(number).map(Duration::from_secs);
    let Some(limited) = &policy.rate_limited else {
        if !headers.contains_key(RETRY_AFTER) {
            return Some(usual);
        }
        // Who is to wait for longer than the policy ever does, is told so instead of being held. So is who is told a date.
        let asked = seconds(&RETRY_AFTER).filter(|asked| *asked <= policy.back_off.max);
        return asked.map(|asked| asked.max(usual));
    };
    let asked = limited.headers.iter().filter_map(seconds).find(|asked| *asked <= limited.max_interval);
    let asked = asked.filter(|asked| !asked.is_zero());
    // Envoy's: up to half as long again, so that not all come back at once.
    Some(asked.map_or(usual, |asked| asked.mul_f64(1.0 + request.random.f64() / 2.0)))
}

/// The number that a header is.
fn number<N: FromStr>(value: &HeaderValue) -> Option<N> {
    std::str::from_utf8(value.as_bytes()).ok()?.parse().ok()
}

/// Envoy's: uniform in `0..(2^n - 1) × base`, at most `max`.
fn usual(back_off: RetryBackOff, attempts: u32, random: &mut fastrand::Rng) -> Duration {
    let growth = 1u32.checked_shl(attempts).map_or(u32::MAX, |power| power - 1);
    back_off.base.saturating_mul(growth).min(back_off.max).mul_f64(random.f64())
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
