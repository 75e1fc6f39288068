//! Configuration as validated plain data: what a resource means once it was accepted.
//!
//! Nothing here knows protobuf. `xds/decode/` makes these values or says [`crate::error::Invalid`]; code may
//! also build them by hand (fixed configuration, tests). Everything is immutable and shared by `Arc`.

mod cluster;
mod endpoint;
mod filter;
mod listener;
mod retry;
mod route;
mod strings;

pub use cluster::{BalancerPolicy, Cluster, ClusterKind, ClusterProtocol, ClusterTls, PriorityPolicy};
pub use endpoint::{Endpoint, Endpoints, Health, LocalityEndpoints};
pub use filter::{Fault, FaultAbort, FaultDelay, FilterConfig, Fraction, NamedFilter};
pub use listener::{ApiListener, FilterChain, FilterChainMatch, HttpManager, Listener, RouteSource, ServerListener};
pub use retry::{RetryCondition, RetryConditions, RetryPolicy};
pub use route::{
    Clusters, DirectResponse, Forward, HeaderChange, HeaderMutations, HeaderTest, MaxStreamDuration, PathChange,
    PathRewrite, PathTest, QueryTest, Redirect, Route, RouteAction, RouteConfiguration, RouteMatch, SegmentTemplate,
    TemplatePart, VirtualHost, WeightedCluster,
};
pub use strings::{FullRegex, StringTest};
