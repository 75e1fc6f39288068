//! Where gRPC and Envoy read the same route in two ways, and the kind of request decides which: as data. Where one way holds for
//! both, it stands with the rest in `docs/xds-client-rules.md`.

use std::time::Duration;

use super::retry::{RetryCondition, RetryConditions};

/// How requests of a kind read their route.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Profile {
    /// How long a request may take whose route does not say it; `None`: as long as the caller waits.
    pub timeout: Option<Duration>,
    /// Whether `grpc_timeout_header_max` goes before what else limits a stream (gRFC A31).
    pub has_grpc_timeout: bool,
    /// The conditions of a retry policy that some answer can meet.
    pub of_answers: RetryConditions,
}

/// The conditions that an answer of any kind can meet, but for those that have a list of their own.
const OF_ANSWERS: RetryConditions = {
    use RetryCondition::{EnvoyRatelimited, GatewayError, Retriable4xx, ServerError};
    RetryConditions::NONE.with(ServerError).with(GatewayError).with(Retriable4xx).with(EnvoyRatelimited)
};

impl Profile {
    /// HTTP, as Envoy reads it.
    pub const HTTP: Profile =
        Profile { timeout: Some(Duration::from_secs(15)), has_grpc_timeout: false, of_answers: OF_ANSWERS };

    /// gRPC: its streams last, so that control planes leave timeouts out (gRFC A31), and its statuses count (gRFC A44).
    pub const GRPC: Profile = {
        use RetryCondition::{Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable};
        let of_answers = OF_ANSWERS.with(Cancelled).with(DeadlineExceeded).with(Internal);
        let of_answers = of_answers.with(ResourceExhausted).with(Unavailable);
        Profile { timeout: None, has_grpc_timeout: true, of_answers }
    };

    /// That of a request.
    ///
    /// ```
    /// use mesh_core::model::Profile;
    ///
    /// assert_eq!(Profile::of(true).timeout, None);
    /// ```
    #[inline]
    pub const fn of(is_grpc: bool) -> &'static Profile {
        if is_grpc { &Profile::GRPC } else { &Profile::HTTP }
    }
}
