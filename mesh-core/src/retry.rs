//! Whether a request is tried again, and when: from its policy, the outcome of a try, and how many there were.
//!
//! What is decided here is only whether another try is *wanted*. That sending the request again does no harm, and that
//! it is still whole, the data plane knows: it asks only where both hold. Conditions: Envoy's `x-envoy-retry-on` and
//! `x-envoy-retry-grpc-on`; for gRPC's clients gRFC A44.

use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};

use crate::error::ErrorKind;
use crate::model::{RetryCondition, RetryConditions, RetryPolicy};

/// What holds for a route that has no policy: what was certainly not processed is tried once more, as gRPC does by
/// itself (gRFC A6, transparent retries). A mesh's own defaults are its control plane's to say.
pub const DEFAULT_POLICY: RetryPolicy = RetryPolicy {
    on: RetryConditions::NONE.with(RetryCondition::ConnectFailure).with(RetryCondition::RefusedStream),
    retries: 1,
    base_interval: Duration::from_millis(25),
    max_interval: Duration::from_millis(250),
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
        DEFAULT_POLICY
    }
}

/// How a try ended.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Outcome<'o> {
    /// Without an answer.
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
pub fn looks_at_answers(policy: &RetryPolicy) -> bool {
    policy.on.intersects(OF_ANSWERS)
}

/// Decides after a try, the `attempts`th. There is none that would begin after the deadline.
///
/// ```
/// use std::time::Instant;
/// use mesh_core::error::ErrorKind;
/// use mesh_core::retry::{DEFAULT_POLICY, Outcome, RetryDecision, decide};
///
/// let (now, mut random) = (Instant::now(), fastrand::Rng::with_seed(1));
/// let refused = Outcome::Failed(ErrorKind::ConnectFailure);
/// assert!(matches!(decide(&DEFAULT_POLICY, refused, 1, None, now, &mut random), RetryDecision::Retry { .. }));
/// assert_eq!(decide(&DEFAULT_POLICY, refused, 2, None, now, &mut random), RetryDecision::Stop);
/// ```
pub fn decide(
    policy: &RetryPolicy,
    outcome: Outcome<'_>,
    attempts: u32,
    deadline: Option<Instant>,
    now: Instant,
    random: &mut fastrand::Rng,
) -> RetryDecision {
    if attempts > policy.retries || !policy.on.intersects(conditions_of(outcome)) {
        return RetryDecision::Stop;
    }
    let after = backoff(policy, attempts, random);
    match deadline {
        Some(deadline) if now + after >= deadline => RetryDecision::Stop,
        _ => RetryDecision::Retry { after },
    }
}

/// The conditions that some answer can meet.
const OF_ANSWERS: RetryConditions = RetryConditions::NONE;

/// The conditions that an outcome meets.
fn conditions_of(outcome: Outcome<'_>) -> RetryConditions {
    use RetryCondition::{ConnectFailure, RefusedStream, Reset, ServerError, Unavailable};
    // `unavailable` is what gRPC calls both (gRFC A44), `5xx` and `reset` are Envoy's words that include them.
    let both = RetryConditions::NONE.with(Unavailable).with(ServerError).with(Reset);
    match outcome {
        Outcome::Failed(ErrorKind::ConnectFailure) => both.with(ConnectFailure),
        Outcome::Failed(ErrorKind::RefusedStream) => both.with(RefusedStream),
        Outcome::Failed(_) | Outcome::Answered(..) => RetryConditions::NONE,
    }
}

/// Envoy's: uniform in `0..(2^n - 1) × base`, at most `max`.
fn backoff(policy: &RetryPolicy, attempts: u32, random: &mut fastrand::Rng) -> Duration {
    let growth = 1u32.checked_shl(attempts).map_or(u32::MAX, |power| power - 1);
    policy.base_interval.saturating_mul(growth).min(policy.max_interval).mul_f64(random.f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_processed_is_tried_again() {
        let policy =
            |words: &str, retries| RetryPolicy { on: RetryConditions::parse(words), retries, ..DEFAULT_POLICY };
        let (connect, refused, lost) = (ErrorKind::ConnectFailure, ErrorKind::RefusedStream, ErrorKind::ConnectionLost);
        let cases = [
            (DEFAULT_POLICY, connect, 1, true),
            (DEFAULT_POLICY, refused, 1, true),
            (DEFAULT_POLICY, connect, 2, false),
            (DEFAULT_POLICY, lost, 1, false),
            (policy("connect-failure", 1), connect, 1, true),
            (policy("connect-failure", 1), connect, 2, false),
            (policy("connect-failure", 1), refused, 1, false),
            (policy("unavailable", 1), refused, 1, true),
            (policy("5xx", 1), connect, 1, true),
            (policy("connect-failure", 0), connect, 1, false),
            (policy("reset", 5), lost, 1, false),
            (policy("", 5), connect, 1, false),
        ];
        for (policy, kind, attempts, expected) in cases {
            let mut random = fastrand::Rng::with_seed(1);
            let decision = decide(&policy, Outcome::Failed(kind), attempts, None, Instant::now(), &mut random);
            assert_eq!(decision != RetryDecision::Stop, expected, "{policy:?} {kind:?} after {attempts}");
        }
    }

    #[test]
    fn an_answer_stands() {
        let every = RetryPolicy { on: RetryConditions::parse("5xx,reset,unavailable"), ..DEFAULT_POLICY };
        let outcome = Outcome::Answered(StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new());
        let mut random = fastrand::Rng::with_seed(1);
        assert_eq!(decide(&every, outcome, 1, None, Instant::now(), &mut random), RetryDecision::Stop);
    }

    #[test]
    fn no_try_begins_after_the_deadline() {
        let policy = RetryPolicy {
            base_interval: Duration::from_secs(9),
            max_interval: Duration::from_secs(9),
            ..DEFAULT_POLICY
        };
        let (now, failed) = (Instant::now(), Outcome::Failed(ErrorKind::ConnectFailure));
        for seed in 0..100 {
            let decide = |deadline| decide(&policy, failed, 1, deadline, now, &mut fastrand::Rng::with_seed(seed));
            let RetryDecision::Retry { after } = decide(None) else { panic!("it is tried again") };
            assert_eq!(decide(Some(now + after)), RetryDecision::Stop);
            assert_ne!(decide(Some(now + after + Duration::from_nanos(1))), RetryDecision::Stop);
        }
    }

    #[test]
    fn the_backoff_grows_and_has_a_limit() {
        for attempts in [1, 2, 3, 10, 40] {
            let mut random = fastrand::Rng::with_seed(u64::from(attempts));
            let limit = Duration::from_millis(25 * ((1u64 << attempts) - 1)).min(Duration::from_millis(250));
            assert!(backoff(&DEFAULT_POLICY, attempts, &mut random) <= limit);
        }
    }
}
