//! HTTP filters as data: what a listener lists and a route overrides (gRFC A39).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::model::{
    AdaptiveConcurrency, AdmissionControl, CorsPolicy, ExtAuthz, ExtProc, GlobalRateLimit, HeaderTest,
    JwtAuthentication, LocalRateLimit, Plugin, QuotaPerRoute, RateLimitPerRoute, RateLimitQuota, Rbac, RequestRules,
    StatefulSession,
};

/// One entry of a listener's filter list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamedFilter {
    /// The instance's name: overrides refer to it, and state is kept by it.
    pub name: Arc<str>,
    /// What it does.
    pub config: FilterConfig,
}

impl NamedFilter {
    /// A filter of this name.
    pub fn new(name: impl Into<Arc<str>>, config: FilterConfig) -> Self {
        NamedFilter { name: name.into(), config }
    }
}

/// The configuration of one filter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FilterConfig {
    /// `envoy.filters.http.fault` (gRFC A33).
    Fault(Arc<Fault>),
    /// `envoy.filters.http.cors`. What a route says is completed by what is said above it.
    Cors(Arc<CorsPolicy>),
    /// `envoy.filters.http.jwt_authn`. On servers only, before RBAC.
    Jwt(Arc<JwtAuthentication>),
    /// `envoy.filters.http.rbac`. On servers only, and decided before every other filter.
    Rbac(Arc<Rbac>),
    /// `envoy.filters.http.ext_authz`. On servers only, after JWT and before RBAC.
    ExtAuthz(Arc<ExtAuthz>),
    /// `envoy.filters.http.ext_proc`: a processor is shown heads. On servers only.
    ExtProc(Arc<ExtProc>),
    /// `envoy.filters.http.local_ratelimit`.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// `envoy.filters.http.adaptive_concurrency`.
    AdaptiveConcurrency(Arc<AdaptiveConcurrency>),
    /// `envoy.filters.http.admission_control`.
    AdmissionControl(Arc<AdmissionControl>),
    /// `envoy.filters.http.stateful_session`. On clients only.
    StatefulSession(Arc<StatefulSession>),
    /// `envoy.filters.http.ratelimit`: a service is asked.
    RateLimit(Arc<GlobalRateLimit>),
    /// What a virtual host or a route says in the place of the listener's [`RateLimit`](Self::RateLimit).
    RateLimitPerRoute(Arc<RateLimitPerRoute>),
    /// `envoy.filters.http.rate_limit_quota`: a service assigns shares.
    RateLimitQuota(Arc<RateLimitQuota>),
    /// What a virtual host or a route says in the place of the listener's [`RateLimitQuota`](Self::RateLimitQuota).
    QuotaPerRoute(Arc<QuotaPerRoute>),
    /// A filter of the application's own: the name that it was registered under, and its configuration as
    /// canonical JSON.
    Custom(Arc<str>, Arc<str>),
    /// The same, of which the configuration says what becomes of requests where it cannot run.
    Plugin(Arc<Plugin>),
    /// Rules on requests without code.
    RequestRules(Arc<RequestRules>),
    /// Turned off for this route.
    Disabled,
}

/// Delay and abort on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// Hold the request back.
    pub delay: Option<FaultDelay>,
    /// Answer in place of the upstream.
    pub abort: Option<FaultAbort>,
    /// Only requests whose headers all pass.
    pub headers: Vec<HeaderTest>,
    /// Only requests to this cluster.
    pub cluster: Option<Arc<str>>,
    /// Only requests of these nodes, by `x-envoy-downstream-service-node`; none for all.
    pub nodes: Vec<String>,
    /// How many requests may suffer from it at a time, to their end; `None`: any number.
    pub max_active: Option<u32>,
}

/// A delay.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultDelay {
    /// How long; `None`: as `x-envoy-fault-delay-request` says, in milliseconds, and none without it.
    pub duration: Option<Duration>,
    /// How many requests. Where the request says how long, it may say less in `x-envoy-fault-delay-request-percentage`.
    pub fraction: Fraction,
    /// What 1 is in that header, in parts per million.
    pub unit: u32,
}

impl FaultDelay {
    /// So long, for so many requests.
    pub fn new(duration: Duration, fraction: Fraction) -> Self {
        FaultDelay { duration: Some(duration), fraction, unit: 10_000 }
    }

    /// For as long as the request says, for so many requests at most.
    pub fn by_header(fraction: Fraction) -> Self {
        FaultDelay { duration: None, fraction, unit: 10_000 }
    }
}

/// An abort: with an HTTP status, or with a gRPC code.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultAbort {
    /// The HTTP status, 200 to 599, where given.
    pub http_status: Option<u16>,
    /// The gRPC code, where given. With neither: as `x-envoy-fault-abort-request` or `x-envoy-fault-abort-grpc-request`
    /// says, and none without them.
    pub grpc_code: Option<u32>,
    /// How many requests. Where the request says with what, it may say less in `x-envoy-fault-abort-request-percentage`.
    pub fraction: Fraction,
    /// What 1 is in that header, in parts per million.
    pub unit: u32,
    /// The body; `None`: the filter's own.
    pub body: Option<Bytes>,
}

impl FaultAbort {
    /// With an HTTP status.
    pub fn http(status: u16, fraction: Fraction) -> Self {
        FaultAbort { http_status: Some(status), ..FaultAbort::by_header(fraction) }
    }

    /// With a gRPC code.
    pub fn grpc(code: u32, fraction: Fraction) -> Self {
        FaultAbort { grpc_code: Some(code), ..FaultAbort::by_header(fraction) }
    }

    /// With what the request says, for so many requests at most.
    pub fn by_header(fraction: Fraction) -> Self {
        FaultAbort { http_status: None, grpc_code: None, fraction, unit: 10_000, body: None }
    }
}

/// A share of requests, in parts per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fraction(u32);

impl Fraction {
    /// Every request.
    pub const ALL: Fraction = Fraction(1_000_000);

    /// `numerator` of `denominator`, at most all. A denominator of zero is none.
    pub fn new(numerator: u32, denominator: u32) -> Self {
        if denominator == 0 {
            return Fraction(0);
        }
        let per_million = u64::from(numerator) * 1_000_000 / u64::from(denominator);
        Fraction(u32::try_from(per_million.min(1_000_000)).unwrap_or(1_000_000))
    }

    /// So many parts per million, at most all.
    pub fn of_million(parts: u64) -> Self {
        Fraction(u32::try_from(parts.min(1_000_000)).unwrap_or(1_000_000))
    }

    /// So many percent, to four places, at most all.
    pub fn of_percent(percent: f64) -> Self {
        // A cast of a float saturates.
        Fraction::of_million((percent * 1e4).round() as u64)
    }

    /// In percent.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 1e4
    }

    /// In parts per million.
    pub fn per_million(self) -> u32 {
        self.0
    }

    /// This share of a number, rounded down.
    pub fn of(self, number: u32) -> u32 {
        let share = u64::from(number) * u64::from(self.0) / 1_000_000;
        u32::try_from(share).unwrap_or(number)
    }

    /// Whether a draw from `0..1_000_000` falls into the share.
    pub fn contains(self, draw: u32) -> bool {
        draw < self.0
    }
}
