//! When to try again, as configured.

use std::num::NonZeroU32;
use std::time::Duration;

use http::{HeaderName, StatusCode};

use crate::model::HeaderTest;

/// When to try again, as configured. What an outcome means for it is decided by [`crate::retry`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// After which outcomes.
    pub on: RetryConditions,
    /// Attempts after the first.
    pub retries: u32,
    /// The statuses of `retriable-status-codes`.
    pub statuses: Vec<StatusCode>,
    /// The headers of `retriable-headers`: an answer that has one of them.
    pub headers: Vec<HeaderTest>,
    /// What requests have to have to be tried again, one of it; empty: nothing (`retriable_request_headers`).
    pub request_headers: Vec<HeaderTest>,
    /// How long a try may take until the head of its answer is here; `None` = as long as the request may.
    pub per_try_timeout: Option<Duration>,
    /// Whether a retry goes to an endpoint that was not tried yet, as long as there is one (`previous_hosts`).
    pub avoids_tried: bool,
    /// After every so many tries, those that follow prefer priorities that none of them went to (`previous_priorities`);
    /// `None` = every try goes by the same shares of load.
    pub previous_priorities: Option<NonZeroU32>,
    /// Whether a try that takes longer than `per_try_timeout` goes on, and the next one begins beside it
    /// (`hedge_on_per_try_timeout`). The first good answer counts.
    pub hedges: bool,
    /// The back-off before the first retry; doubles. 25 ms by default.
    pub base_interval: Duration,
    /// The longest back-off. Ten times the base by default. A `Retry-After` that asks for more is passed over.
    pub max_interval: Duration,
    /// Answers that say themselves when to come back; `None` = by `Retry-After`, within `max_interval`.
    pub rate_limited: Option<RateLimitedBackOff>,
}

/// How long to wait after an answer that says so (`rate_limited_retry_back_off`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitedBackOff {
    /// Headers that say so, in seconds; the first one counts that an answer has, and that asks for no more than
    /// `max_interval`.
    pub headers: Vec<HeaderName>,
    /// What asks for more is passed over. Envoy's default is 300 s.
    pub max_interval: Duration,
}

/// One condition of a retry policy, in Envoy's words (`x-envoy-retry-on`, `x-envoy-retry-grpc-on`). Its
/// `http3-post-connect-failure` is about what is not spoken here, and has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryCondition {
    /// `connect-failure`: no connection could be made, so that nothing was processed.
    ConnectFailure,
    /// `refused-stream`: the peer refused the stream unseen.
    RefusedStream,
    /// `reset`: no answer came.
    Reset,
    /// `reset-before-request`: no answer came, and the request was not sent.
    ResetBeforeRequest,
    /// `5xx`: a server error, or no answer came.
    ServerError,
    /// `gateway-error`: 502, 503 or 504, or no answer came.
    GatewayError,
    /// `retriable-4xx`: 409.
    Retriable4xx,
    /// `retriable-status-codes`: a status of [`RetryPolicy::statuses`].
    RetriableStatusCodes,
    /// `retriable-headers`: a header of [`RetryPolicy::headers`].
    RetriableHeaders,
    /// `envoy-ratelimited`: an answer with `x-envoy-ratelimited`; without it, none of those is tried again.
    EnvoyRatelimited,
    /// `cancelled`: gRPC's status of that name, in the head of an answer.
    Cancelled,
    /// `deadline-exceeded`: gRPC's status of that name, in the head of an answer.
    DeadlineExceeded,
    /// `internal`: gRPC's status of that name, in the head of an answer.
    Internal,
    /// `resource-exhausted`: gRPC's status of that name, in the head of an answer.
    ResourceExhausted,
    /// `unavailable`: gRPC's status of that name, in the head of an answer, or what was not processed.
    Unavailable,
}

impl RetryCondition {
    const ALL: [RetryCondition; 15] = [
        RetryCondition::ConnectFailure,
        RetryCondition::RefusedStream,
        RetryCondition::Reset,
        RetryCondition::ResetBeforeRequest,
        RetryCondition::ServerError,
        RetryCondition::GatewayError,
        RetryCondition::Retriable4xx,
        RetryCondition::RetriableStatusCodes,
        RetryCondition::RetriableHeaders,
        RetryCondition::EnvoyRatelimited,
        RetryCondition::Cancelled,
        RetryCondition::DeadlineExceeded,
        RetryCondition::Internal,
        RetryCondition::ResourceExhausted,
        RetryCondition::Unavailable,
    ];

    /// Envoy's word for it.
    pub const fn word(self) -> &'static str {
        match self {
            RetryCondition::ConnectFailure => "connect-failure",
            RetryCondition::RefusedStream => "refused-stream",
            RetryCondition::Reset => "reset",
            RetryCondition::ResetBeforeRequest => "reset-before-request",
            RetryCondition::ServerError => "5xx",
            RetryCondition::GatewayError => "gateway-error",
            RetryCondition::Retriable4xx => "retriable-4xx",
            RetryCondition::RetriableStatusCodes => "retriable-status-codes",
            RetryCondition::RetriableHeaders => "retriable-headers",
            RetryCondition::EnvoyRatelimited => "envoy-ratelimited",
            RetryCondition::Cancelled => "cancelled",
            RetryCondition::DeadlineExceeded => "deadline-exceeded",
            RetryCondition::Internal => "internal",
            RetryCondition::ResourceExhausted => "resource-exhausted",
            RetryCondition::Unavailable => "unavailable",
        }
    }
}

/// Some of the conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryConditions(u32);

impl RetryConditions {
    /// None of them.
    pub const NONE: RetryConditions = RetryConditions(0);

    /// These and one more.
    pub const fn with(self, condition: RetryCondition) -> Self {
        RetryConditions(self.0 | 1 << condition as u32)
    }

    /// Whether one is among them.
    #[inline]
    pub const fn contains(self, condition: RetryCondition) -> bool {
        self.0 & 1 << condition as u32 != 0
    }

    /// Whether they have one in common.
    #[inline]
    pub const fn intersects(self, other: RetryConditions) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether one is about requests that a server may have begun with.
    #[inline]
    pub const fn is_of_processed(self) -> bool {
        const OTHERS: u32 =
            RetryConditions::NONE.with(RetryCondition::ConnectFailure).with(RetryCondition::RefusedStream).0;
        self.0 & !OTHERS != 0
    }

    /// Envoy's words for them.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        RetryCondition::ALL.into_iter().filter(move |condition| self.contains(*condition)).map(RetryCondition::word)
    }

    /// Those that are named in a list of Envoy's words, separated by commas. Other words are passed over, as Envoy does
    /// with those that it does not know.
    ///
    /// ```
    /// use mesh_core::model::{RetryCondition, RetryConditions};
    ///
    /// let on = RetryConditions::parse("connect-failure, unavailable,,moonlight");
    /// assert!(on.contains(RetryCondition::ConnectFailure) && !on.contains(RetryCondition::Reset));
    /// ```
    pub fn parse(words: &str) -> Self {
        let known = |word: &str| RetryCondition::ALL.into_iter().find(|condition| condition.word() == word);
        words.split(',').filter_map(|word| known(word.trim())).fold(Self::NONE, Self::with)
    }
}
