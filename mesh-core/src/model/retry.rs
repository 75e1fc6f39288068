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
    /// How long to wait first.
    pub back_off: RetryBackOff,
    /// Answers that say themselves when to come back; `None` = by `Retry-After`, where it asks for no more than the longest
    /// back-off.
    pub rate_limited: Option<RateLimitedBackOff>,
}

/// The pauses before retries: any up to one that doubles (`retry_back_off`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBackOff {
    /// The longest before the first retry.
    pub base: Duration,
    /// The longest of all.
    pub max: Duration,
}

impl RetryBackOff {
    /// Envoy's, where nobody says anything.
    pub const DEFAULT: RetryBackOff = RetryBackOff::of(Duration::from_millis(25));

    /// From this on, up to ten times as long.
    pub const fn of(base: Duration) -> Self {
        RetryBackOff { base, max: base.saturating_mul(10) }
    }
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

/// One condition of a retry policy, in Envoy's words (`x-envoy-retry-on`, `x-envoy-retry-grpc-on`).
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
    /// `http3-post-connect-failure`: about HTTP/3, which is not spoken. Nothing meets it.
    Http3PostConnectFailure,
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
    const ALL: [RetryCondition; 16] = [
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
        RetryCondition::Http3PostConnectFailure,
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
            RetryCondition::Http3PostConnectFailure => "http3-post-connect-failure",
            RetryCondition::Cancelled => "cancelled",
            RetryCondition::DeadlineExceeded => "deadline-exceeded",
            RetryCondition::Internal => "internal",
            RetryCondition::ResourceExhausted => "resource-exhausted",
            RetryCondition::Unavailable => "unavailable",
        }
    }

    /// That of Envoy's word.
    pub fn parse(word: &str) -> Option<RetryCondition> {
        RetryCondition::ALL.into_iter().find(|condition| condition.word() == word)
    }

    /// Whether it is about gRPC's statuses, which are all that gRPC's own clients look at (gRFC A44).
    pub const fn is_grpc_status(self) -> bool {
        use RetryCondition::{Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable};
        matches!(self, Cancelled | DeadlineExceeded | Internal | ResourceExhausted | Unavailable)
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
    /// with those that it does not know, and so is what nothing meets.
    ///
    /// ```
    /// use mesh_core::model::{RetryCondition, RetryConditions};
    ///
    /// let on = RetryConditions::parse("connect-failure, unavailable,,moonlight");
    /// assert!(on.contains(RetryCondition::ConnectFailure) && !on.contains(RetryCondition::Reset));
    /// ```
    pub fn parse(words: &str) -> Self {
        let known = words.split(',').filter_map(|word| RetryCondition::parse(word.trim()));
        known.filter(|condition| *condition != RetryCondition::Http3PostConnectFailure).fold(Self::NONE, Self::with)
    }
}
