//! Quotas: which requests are of which bucket, whose share a service assigns
//! (`envoy.extensions.filters.http.rate_limit_quota.v3`), as data.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use crate::model::{Fraction, HeaderChange, HeaderTest, RateLimit};

/// Quotas, of which the first whose test a request passes is for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimitQuota {
    /// The domain of its buckets.
    pub domain: Arc<str>,
    /// The rules, in order.
    pub rules: Vec<QuotaRule>,
    /// How many requests are counted.
    pub enabled: Fraction,
    /// How many of those that there is no room for are refused; the others are only counted.
    pub enforced: Fraction,
    /// Header changes of requests that pass since that is only tried.
    pub request_changes: Vec<HeaderChange>,
}

impl RateLimitQuota {
    /// Quotas of a domain, for all requests.
    pub fn new(domain: impl Into<Arc<str>>, rules: Vec<QuotaRule>) -> Self {
        let (enabled, enforced) = (Fraction::ALL, Fraction::ALL);
        RateLimitQuota { domain: domain.into(), rules, enabled, enforced, request_changes: Vec::new() }
    }
}

/// What a virtual host or a route says in the place of the listener's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaPerRoute {
    /// The domain; `None`: the listener's.
    pub domain: Option<Arc<str>>,
    /// The rules; `None`: the listener's.
    pub rules: Option<Vec<QuotaRule>>,
}

/// Some requests, and their buckets.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaRule {
    /// Which requests; `None`: all.
    pub test: Option<QuotaTest>,
    /// Their buckets.
    pub settings: Arc<QuotaSettings>,
}

impl QuotaRule {
    /// For all requests.
    pub fn new(settings: QuotaSettings) -> Self {
        QuotaRule { test: None, settings: Arc::new(settings) }
    }
}

/// Which requests a rule is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuotaTest {
    /// A header passes.
    Header(HeaderTest),
    /// All of them hold.
    All(Vec<QuotaTest>),
    /// One of them holds.
    Any(Vec<QuotaTest>),
    /// It does not hold.
    Not(Box<QuotaTest>),
}

/// The buckets of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaSettings {
    /// What it is called in metrics: the object that says it, and its rule.
    pub name: (Arc<str>, Arc<str>),
    /// What makes the ID of a request's bucket, one entry an action. A request of which no ID can be made is not
    /// counted.
    pub bucket: Arc<RateLimit>,
    /// How often usage is reported.
    pub interval: Duration,
    /// What is so before the first assignment.
    pub unassigned: QuotaStrategy,
    /// What is so once an assignment is over, and for how long; then, or where nothing is said, its bucket is forgotten.
    pub expired: Option<(ExpiredQuota, Duration)>,
    /// What refused requests are answered, 400 and up.
    pub status: StatusCode,
    /// The body of that answer, and the message for gRPC.
    pub body: Bytes,
    /// The code for gRPC.
    pub grpc_code: u32,
    /// Header changes of answers to the refused.
    pub response_changes: Vec<HeaderChange>,
    /// Whether the refused are told when to come back (`Retry-After`).
    pub tells_when: bool,
}

/// gRPC's code where nothing is said.
const UNAVAILABLE: u32 = 14;

impl QuotaSettings {
    /// Buckets with these IDs, whose usage is reported so often.
    pub fn new(bucket: RateLimit, interval: Duration) -> Self {
        QuotaSettings {
            name: ("quota".into(), "bucket".into()),
            bucket: Arc::new(bucket),
            interval,
            unassigned: QuotaStrategy::AllowAll,
            expired: None,
            status: StatusCode::TOO_MANY_REQUESTS,
            body: Bytes::new(),
            grpc_code: UNAVAILABLE,
            response_changes: Vec::new(),
            tells_when: false,
        }
    }
}

/// What is so once an assignment is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiredQuota {
    /// This.
    Fallback(QuotaStrategy),
    /// What it said goes on.
    Reuse,
}

/// How many requests of a bucket pass (`envoy.type.v3.RateLimitStrategy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaStrategy {
    /// All.
    AllowAll,
    /// None.
    DenyAll,
    /// As many as there are tokens.
    Tokens {
        /// How many there are at first, and at most.
        max: u64,
        /// How many more there are with each interval.
        per_fill: u64,
        /// The interval.
        interval: Duration,
    },
}
