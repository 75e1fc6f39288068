//! How the endpoints of a cluster are asked whether they are well (Envoy's active health checks).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use super::StringTest;

/// Active health checks of a cluster. An interval that is `None` is the usual one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HealthCheck {
    /// What an endpoint is asked.
    pub probe: Probe,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How long after a check the next one is.
    pub interval: Duration,
    /// The first check is up to so much later, by chance.
    pub initial_jitter: Duration,
    /// Each other check is up to so much later, by chance.
    pub interval_jitter: Duration,
    /// And up to so many percent of its interval.
    pub interval_jitter_percent: u32,
    /// How many checks fail in a row before an endpoint is unhealthy; at least 1.
    pub unhealthy_threshold: u32,
    /// How many succeed in a row before it is healthy again; at least 1. The very first one is enough.
    pub healthy_threshold: u32,
    /// Whether checks go over connections that requests go over, too; else each has one of its own.
    pub reuse_connection: bool,
    /// The interval while the cluster has never been called. Envoy's default is a minute.
    pub no_traffic_interval: Duration,
    /// The same for endpoints that are healthy.
    pub no_traffic_healthy_interval: Option<Duration>,
    /// The interval of unhealthy endpoints.
    pub unhealthy_interval: Option<Duration>,
    /// After the check by which an endpoint begins to be unhealthy; else that of unhealthy ones.
    pub unhealthy_edge_interval: Option<Duration>,
    /// After the check by which it begins to be healthy.
    pub healthy_edge_interval: Option<Duration>,
}

impl HealthCheck {
    /// A check every `interval`, with the thresholds that Kubernetes has for readiness: three failures, one success.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use mesh_core::model::{HealthCheck, HttpProbe, Probe};
    ///
    /// let check = HealthCheck::new(Probe::Http(HttpProbe::get("/healthz")), Duration::from_secs(10));
    /// assert_eq!(check.unhealthy_threshold, 3);
    /// ```
    pub fn new(probe: Probe, interval: Duration) -> Self {
        HealthCheck {
            probe,
            timeout: Duration::from_secs(1),
            interval,
            initial_jitter: Duration::ZERO,
            interval_jitter: Duration::ZERO,
            interval_jitter_percent: 0,
            unhealthy_threshold: 3,
            healthy_threshold: 1,
            reuse_connection: true,
            no_traffic_interval: Duration::from_secs(60),
            no_traffic_healthy_interval: None,
            unhealthy_interval: None,
            unhealthy_edge_interval: None,
            healthy_edge_interval: None,
        }
    }
}

/// What an endpoint is asked. Exhaustive: one more is one more way to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A request over HTTP.
    Http(HttpProbe),
    /// A connection, and what comes over it.
    Tcp(TcpProbe),
    /// `grpc.health.v1.Health/Check`.
    Grpc(GrpcProbe),
}

/// A request over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpProbe {
    /// The host that is asked for; the cluster's name where that is one, else the endpoint's own.
    pub host: Option<Arc<str>>,
    /// The path, with a query if there is one.
    pub path: Arc<str>,
    /// The method.
    pub method: Method,
    /// The body.
    pub send: Option<Arc<[u8]>>,
    /// What the beginning of the answer's body has to have in it, in this order.
    pub receive: Vec<Arc<[u8]>>,
    /// How much of the answer's body is looked at, in bytes.
    pub response_bytes: usize,
    /// Headers of the request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Statuses of healthy endpoints.
    pub expected: Vec<Range<u16>>,
    /// Statuses that count as one failure; any other makes an endpoint unhealthy at once.
    pub retriable: Vec<Range<u16>>,
    /// Whether it is spoken over HTTP/2.
    pub is_http2: bool,
    /// What the answer has to say its server is, in the header `x-envoy-upstream-healthchecked-cluster`.
    pub service: Option<StringTest>,
}

impl HttpProbe {
    /// A GET for this path, which healthy endpoints answer with 200.
    pub fn get(path: impl Into<Arc<str>>) -> Self {
        HttpProbe {
            host: None,
            path: path.into(),
            method: Method::GET,
            send: None,
            receive: Vec::new(),
            response_bytes: 1024,
            headers: Vec::new(),
            expected: vec![Range { start: 200, end: 201 }],
            retriable: Vec::new(),
            is_http2: false,
            service: None,
        }
    }
}

/// A connection, and what comes over it. Without anything to receive, that it can be made is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpProbe {
    /// What is sent first.
    pub send: Option<Arc<[u8]>>,
    /// What has to come, in this order.
    pub receive: Vec<Arc<[u8]>>,
}

/// `grpc.health.v1.Health/Check`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GrpcProbe {
    /// The service that is asked about; empty is the server as a whole.
    pub service: Arc<str>,
    /// The authority that is asked for; the cluster's name where that is one, else the endpoint's own.
    pub authority: Option<Arc<str>>,
    /// Metadata of the call.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}
