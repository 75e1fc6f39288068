//! How much of something a cluster may have under way at once.

use std::time::Duration;

use crate::model::Fraction;

/// Limits of a cluster, and of each of its endpoints: what is above them fails at once (Envoy's circuit breakers, of
/// the priority DEFAULT). [`u32::MAX`] is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CircuitBreakers {
    /// Connections. An endpoint that has none gets one all the same, as in Envoy.
    pub max_connections: u32,
    /// Requests that wait for a connection.
    pub max_pending_requests: u32,
    /// Requests in flight, whatever they are sent by.
    pub max_requests: u32,
    /// Connections to each endpoint.
    pub max_connections_per_host: u32,
    /// Retries. Envoy's 3, where a control plane says nothing, would fail what is retried transparently (gRFC A6) as soon as an
    /// endpoint is gone.
    pub retries: RetryLimit,
}

impl CircuitBreakers {
    /// No limits: what Istio has where nothing is said.
    pub const UNLIMITED: CircuitBreakers = CircuitBreakers {
        max_connections: u32::MAX,
        max_pending_requests: u32::MAX,
        max_requests: u32::MAX,
        max_connections_per_host: u32::MAX,
        retries: RetryLimit::PaidBySuccesses,
    };

    /// What Envoy has where a cluster says nothing, and of it gRPC `max_requests` (gRFC A32).
    pub const ENVOY: CircuitBreakers = CircuitBreakers {
        max_connections: 1024,
        max_pending_requests: 1024,
        max_requests: 1024,
        max_connections_per_host: u32::MAX,
        retries: RetryLimit::PaidBySuccesses,
    };
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        CircuitBreakers::UNLIMITED
    }
}

/// How many retries there may be at once, so that they do not bring down what is only slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryLimit {
    /// Nobody says how many: those that successes of the cluster have paid for.
    PaidBySuccesses,
    /// So many (`max_retries`).
    AtMost(u32),
    /// A share of the requests in flight (`retry_budget`).
    Budget {
        /// The share.
        share: Fraction,
        /// So many in any case.
        at_least: u32,
        /// Zero: those in flight count. Else those that began within this time (`budget_interval`), whether they are over
        /// or not.
        interval: Duration,
    },
}
