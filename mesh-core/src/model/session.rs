//! Sessions that stay at their endpoint (Envoy's stateful sessions, gRFC A55).

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

/// Where a request says which endpoint it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatefulSession {
    /// What carries the name of the endpoint.
    pub carrier: SessionCarrier,
    /// Whether a request fails whose endpoint is not there any more, or may not be called. Else any other takes it.
    pub is_strict: bool,
}

impl StatefulSession {
    /// Sessions that move on where their endpoint is gone.
    pub fn by(carrier: SessionCarrier) -> Self {
        StatefulSession { carrier, is_strict: false }
    }
}

/// What carries the name of the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionCarrier {
    /// A cookie.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// Where it counts; empty is everywhere.
        path: Arc<str>,
        /// Its life; `None` is the caller's session.
        ttl: Option<Duration>,
        /// Its attributes, in order; a value may be empty.
        attributes: Vec<(String, String)>,
    },
    /// A header of requests and of answers.
    Header(HeaderName),
}
