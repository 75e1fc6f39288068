//! Configuration as validated plain data: what a resource means once it was accepted.
//!
//! Nothing here knows protobuf. `xds/decode/` makes these values or says [`crate::error::Invalid`]; code may
//! also build them by hand (fixed configuration, tests). Everything is immutable and shared by `Arc`.
//!
//! What will grow is `#[non_exhaustive]`: its constructor takes what it cannot do without and leaves the rest as a
//! configuration that says nothing more would; its fields are public, to be set afterwards. Enums that the data plane
//! has to act on, variant by variant, are exhaustive on purpose: a new one must not find a wildcard there.
//!
//! ```
//! use std::time::Duration;
//!
//! use mesh_core::model::{Forward, Route, RouteAction, RouteMatch, VirtualHost};
//!
//! let mut forward = Forward::to("reviews");
//! forward.timeout = Some(Duration::from_secs(3));
//! let mut route = Route::new(RouteMatch::any(), RouteAction::Forward(forward));
//! route.name = "all".into();
//! let host = VirtualHost::new(["reviews.shop"], vec![route]);
//! ```

mod access_log;
mod cel;
mod circuit_breakers;
mod cluster;
mod command;
mod cors;
mod endpoint;
mod ext_authz;
mod ext_proc;
mod filter;
mod foreign_tls;
mod hash_policy;
mod header_text;
mod health_check;
mod jwks;
mod jwt;
mod listener;
mod local_rate_limit;
mod log_filter;
mod metric_rules;
mod outlier;
mod overload;
mod path_rewrite;
mod path_template;
mod plugin;
mod profile;
mod quota;
mod rate_limit;
mod rate_limit_service;
mod rbac;
mod re2;
mod request_rules;
mod retry;
mod route;
mod secret;
mod session;
mod strings;
mod time_format;
mod tracing;
mod tunnel;

pub use access_log::{
    AccessLog, DEFAULT_JSON, DEFAULT_LINE, LogDestination, LogFact, LogFormat, LogHeader, LogJson, LogPart, LogText,
};
pub(crate) use cel::Nothing;
pub use cel::{CelAttribute, CelExpression, CelFault, CelValue, Facts, LONGEST_EXPRESSION};
pub use circuit_breakers::{CircuitBreakers, RetryLimit};
pub use cluster::{
    BalancerPolicy, Cluster, ClusterKind, ClusterProtocol, ClusterTls, ConsistentHashing, HashFunction, Http2Keepalive,
    LoadWeights, PEAK_EWMA, PriorityPolicy, ServiceNames, SlowStart, TcpKeepalive, UpstreamTls,
};
pub use cors::CorsPolicy;
pub use endpoint::{Endpoint, Endpoints, Health, LocalityEndpoints};
pub use ext_authz::{CheckProtocol, CheckedBody, ExtAuthz, HttpCheck, IN_PROCESS};
pub use ext_proc::ExtProc;
pub use filter::{Fault, FaultAbort, FaultDelay, FilterConfig, Fraction, NamedFilter};
pub use foreign_tls::{ForeignTls, NameKind, NameTest, Roots, Sni, TlsMaterial, TlsVersions};
pub use hash_policy::{CookieKey, HashKey, HashPolicy, HashedHeader};
pub(crate) use header_text::protocol;
pub use header_text::{HeaderFormat, HeaderTarget, HeaderText};
pub use health_check::{GrpcProbe, HealthCheck, HttpProbe, Probe, TcpProbe};
pub use jwks::{Jwk, JwkSet, JwsAlgorithm, KeyMaterial, MOST_JWKS_BYTES, MOST_JWKS_KEYS};
pub use jwt::{ClaimHeader, JwtAuthentication, JwtProvider, JwtRequirement, JwtRule, TokenLocation};
pub use listener::{
    ApiListener, BLACK_HOLE_CLUSTER, BLOCK_ALL, EdgeTrust, FilterChain, FilterChainMatch, ForwardedClientCert,
    HeadersWithUnderscores, HttpManager, Listener, PASSTHROUGH_CLUSTER, RouteSource, ServerListener, ServerTls,
};
pub use local_rate_limit::{LocalRateLimit, LocalRule, OfHost, RestHeaders, TokenBucket};
pub use log_filter::{Comparison, LogFilter};
pub use metric_rules::{
    LabelRule, METRIC_NAMES, MetricGroup, MetricRules, MetricSet, PROMETHEUS_NAMES, is_metric_label,
};
pub use outlier::{Consecutive, FailurePercentage, OutlierDetection, SuccessRate};
pub use overload::{AdaptiveConcurrency, AdmissionControl, ConcurrencyQueue, UnloadedTime};
pub use path_rewrite::PathRewrite;
pub use plugin::{OnFailure, Plugin};
pub use profile::Profile;
pub use quota::{ExpiredQuota, QuotaPerRoute, QuotaRule, QuotaSettings, QuotaStrategy, QuotaTest, RateLimitQuota};
pub use rate_limit::{
    CLIENT_ENTRY, ClientPart, DescriptorAction, LAST_STAGE, LimitOverride, LimitUnit, MOST_HITS, PATH_ENTRY, RateLimit,
};
pub use rate_limit_service::{GlobalRateLimit, RateLimitPerRoute};
pub use rbac::{ClaimTest, IpPrefix, PeerTest, Rbac, RbacAction, RbacCondition, RbacPolicy, RbacRules, TokenTest};
pub use request_rules::{REQUEST_RULES, Refusal, RequestRule, RequestRules};
pub use retry::{RateLimitedBackOff, RetryBackOff, RetryCondition, RetryConditions, RetryPolicy};
pub use route::{
    Clusters, DirectResponse, Forward, HeaderChange, HeaderMutations, HeaderTest, MaxStreamDuration, Mirror,
    MirrorHost, PathChange, PathTest, QueryTest, Redirect, Route, RouteAction, RouteConfiguration, RouteMatch,
    SegmentTemplate, SplitBy, TemplatePart, VirtualHost, WeightedCluster,
};
pub use secret::{EdgeTls, Secret};
pub use session::{SessionCarrier, StatefulSession};
pub use strings::{FullRegex, StringTest};
pub use time_format::TimeFormat;
pub use tracing::{CustomTag, TagValue, TraceHeaders, Tracing};
pub use tunnel::Tunnel;
