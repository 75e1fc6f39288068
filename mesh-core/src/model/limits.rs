//! How much of something a cluster may have under way at once.

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
}

impl CircuitBreakers {
    /// No limits: what Istio has where nothing is said.
    pub const UNLIMITED: CircuitBreakers = CircuitBreakers {
        max_connections: u32::MAX,
        max_pending_requests: u32::MAX,
        max_requests: u32::MAX,
        max_connections_per_host: u32::MAX,
    };

    /// What Envoy has where a cluster says nothing, and of it gRPC `max_requests` (gRFC A32).
    pub const ENVOY: CircuitBreakers = CircuitBreakers {
        max_connections: 1024,
        max_pending_requests: 1024,
        max_requests: 1024,
        max_connections_per_host: u32::MAX,
    };
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        CircuitBreakers::UNLIMITED
    }
}
