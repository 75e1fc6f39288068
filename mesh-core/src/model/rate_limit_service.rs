//! Global rate limits: which rate limit service is asked about requests (`envoy.extensions.filters.http.ratelimit.v3`), as data.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::model::{Fraction, HeaderChange, OfHost, RateLimit, RestHeaders};

/// Who is asked whether there is room for a request, and what becomes of one that there is no answer about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GlobalRateLimit {
    /// What it is called in metrics.
    pub name: Arc<str>,
    /// The domain that the service is asked about.
    pub domain: Arc<str>,
    /// The service, as the mesh's client calls it: `host:port`.
    pub target: Arc<str>,
    /// How long an answer may take; 20 ms unless it is said, as in Envoy.
    pub timeout: Duration,
    /// Whether requests are refused that there is no answer about. They pass, unless it is said.
    pub fails_closed: bool,
    /// What such requests are answered with.
    pub status_on_error: StatusCode,
    /// What requests are counted by; where there is none, what their route says for the stage.
    pub rate_limits: Vec<Arc<RateLimit>>,
    /// The stage of what their route says.
    pub stage: u8,
    /// Which of the virtual host's count.
    pub of_host: OfHost,
    /// About how many requests it is asked.
    pub enabled: Fraction,
    /// How many of those that there is no room for are refused; the others are only counted.
    pub enforced: Fraction,
    /// What refused requests are answered, 400 and up.
    pub status: StatusCode,
    /// Whether gRPC is told RESOURCE_EXHAUSTED, and not UNAVAILABLE.
    pub is_exhaustion: bool,
    /// Whether the refused are told that it was a rate limit (`x-envoy-ratelimited`).
    pub tells_why: bool,
    /// Whether the refused are told when to come back (`Retry-After`).
    pub tells_when: bool,
    /// What answers tell of what is left.
    pub tells: RestHeaders,
    /// Header changes of answers to the refused.
    pub response_changes: Vec<HeaderChange>,
}

impl GlobalRateLimit {
    /// A service that is asked about this domain.
    pub fn new(domain: impl Into<Arc<str>>, target: impl Into<Arc<str>>) -> Self {
        let domain = domain.into();
        GlobalRateLimit {
            name: Arc::clone(&domain),
            domain,
            target: target.into(),
            timeout: Duration::from_millis(20),
            fails_closed: false,
            status_on_error: StatusCode::INTERNAL_SERVER_ERROR,
            rate_limits: Vec::new(),
            stage: 0,
            of_host: OfHost::Without,
            enabled: Fraction::ALL,
            enforced: Fraction::ALL,
            status: StatusCode::TOO_MANY_REQUESTS,
            is_exhaustion: false,
            tells_why: true,
            tells_when: false,
            tells: RestHeaders::None,
            response_changes: Vec::new(),
        }
    }
}

/// What a route or a virtual host says in the place of the listener's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimitPerRoute {
    /// The domain; `None`: the listener's.
    pub domain: Option<Arc<str>>,
    /// What requests are counted by; none: what the listener's filter or the route says.
    pub rate_limits: Vec<Arc<RateLimit>>,
    /// Which of the virtual host's count.
    pub of_host: OfHost,
}
