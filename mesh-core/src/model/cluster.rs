//! Clusters: a set of endpoints, and how to choose among them and talk to them.

use std::sync::Arc;
use std::time::Duration;

use crate::id::ClusterName;
use crate::identity::SpiffeId;
use crate::model::{
    BLACK_HOLE_CLUSTER, CircuitBreakers, DirectResponse, Endpoints, ForeignTls, Health, HealthCheck, OutlierDetection,
    TlsMaterial,
};

/// A validated Cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// Where its endpoints come from.
    pub kind: ClusterKind,
    /// How an endpoint is chosen.
    pub balancer: BalancerPolicy,
    /// How priorities, panic and locality weights are treated.
    pub priorities: PriorityPolicy,
    /// How new endpoints come to their full share; `None`: they have it at once. For round robin and least request.
    pub slow_start: Option<SlowStart>,
    /// What its endpoints speak.
    pub protocol: ClusterProtocol,
    /// Whether connections must be secured.
    pub tls: ClusterTls,
    /// How long a dial may take. Envoy's default is 5 s.
    pub connect_timeout: Duration,
    /// When an unused connection is closed. Envoy's default is 1 h; `None` = never.
    pub idle_timeout: Option<Duration>,
    /// After how many requests a connection is retired.
    pub max_requests_per_connection: Option<u32>,
    /// How many streams one HTTP/2 connection may carry at once; the peer's own limit counts too.
    pub max_concurrent_streams: Option<u32>,
    /// When a connection is retired, however busy. Envoy's default is never.
    pub max_connection_duration: Option<Duration>,
    /// Probes of the operating system on idle connections; `None` = none.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Pings on connections of HTTP/2; `None` = none.
    pub http2_keepalive: Option<Http2Keepalive>,
    /// How much it may have under way. No limits by default; Envoy's ([`CircuitBreakers::ENVOY`]) where a control plane
    /// says nothing.
    pub circuit_breakers: CircuitBreakers,
    /// Which of its endpoints get no requests for a while, since they fail; `None` = none.
    pub outlier_detection: Option<OutlierDetection>,
    /// The answer to a request for which it has no healthy endpoint; `None`: the request fails.
    pub fallback: Option<Arc<DirectResponse>>,
    /// How its endpoints are asked whether they are well; `None` = not at all.
    pub health_check: Option<Arc<HealthCheck>>,
    /// In which states of health an endpoint gets the requests that belong to it (stateful sessions).
    pub session_health: Vec<Health>,
    /// The service it stands for: host, name and namespace (`metadata.filter_metadata["istio"].services[0]`).
    pub service: Option<Arc<ServiceNames>>,
    /// Whether the control plane wants to know how many requests go to it (`lrs_server: self`, gRFC A27).
    pub reports_load: bool,
}

/// How a service is called, for telemetry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ServiceNames {
    /// Its full name.
    pub host: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Whether it is known to be outside of the mesh, which then tells it nothing.
    pub is_external: bool,
}

impl ServiceNames {
    /// A service of the mesh.
    pub fn new(host: impl Into<Arc<str>>, name: impl Into<Arc<str>>, namespace: impl Into<Arc<str>>) -> Self {
        ServiceNames { host: host.into(), name: name.into(), namespace: namespace.into(), is_external: false }
    }
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterKind {
    /// From the ClusterLoadAssignment of this name.
    Eds {
        /// `eds_cluster_config.service_name`, or the cluster's own name.
        service_name: Arc<str>,
    },
    /// Inline.
    Static(Endpoints),
    /// Every address that the inline host names resolve to, looked up again every `refresh`.
    StrictDns {
        /// The endpoints, by name.
        endpoints: Endpoints,
        /// How often the names are looked up. Envoy's default is 5 s.
        refresh: Duration,
    },
    /// One endpoint by name, resolved at every dial.
    LogicalDns(Endpoints),
    /// The clusters of these names, in order of priority (gRFC A37, A75).
    Aggregate(Vec<ClusterName>),
    /// The address that the caller asked for (Envoy's ORIGINAL_DST).
    PassThrough,
}

/// How an endpoint is chosen within a priority.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BalancerPolicy {
    /// Of `choices` random ones, the one with the fewest requests in flight (gRFC A48; Envoy: 2).
    LeastRequest {
        /// How many are looked at, 2 to 10.
        choices: u32,
        /// How much requests in flight count against weights, in thousandths (Envoy's `active_request_bias`, 1): 0 is not
        /// at all.
        bias: u32,
    },
    /// One after the other, by weight.
    RoundRobin,
    /// Any, by weight.
    Random,
    /// The next one on a ring of hashes, of which each endpoint has several (gRFC A42).
    RingHash {
        /// So many hashes at least.
        min_size: u64,
        /// So many hashes at most.
        max_size: u64,
        /// How they are made; requests are hashed by xxHash64 always.
        function: HashFunction,
        /// What is hashed of endpoints, and how much one may get.
        hashing: ConsistentHashing,
    },
    /// By Maglev's table.
    Maglev {
        /// How many entries it has, a prime.
        table_size: u64,
        /// What is hashed of endpoints, and how much one may get.
        hashing: ConsistentHashing,
    },
    /// One after the other, in proportion to what they can do for their load as they report it (gRFC A58).
    WeightedByLoad(Arc<LoadWeights>),
    /// Of two random ones, the one that answers sooner, by a peak-sensitive average of how long its answers take.
    PeakEwma {
        /// How long it takes until an answer counts for a third.
        decay: Duration,
    },
    /// Among so many, which differ from one client to another (gRFC A68).
    RandomSubset {
        /// How many endpoints of a priority this client calls.
        size: u32,
        /// How one of them is chosen.
        child: Box<BalancerPolicy>,
    },
    /// A policy of the application's own, by the name it was registered under.
    Custom(Arc<str>),
}

impl Default for BalancerPolicy {
    fn default() -> Self {
        BalancerPolicy::least_request(2)
    }
}

impl BalancerPolicy {
    /// The policy that chooses one endpoint: where it is among some of them, the policy in that.
    pub fn choosing(&self) -> &BalancerPolicy {
        match self {
            BalancerPolicy::RandomSubset { child, .. } => child.choosing(),
            policy => policy,
        }
    }

    /// How weights follow from reports of load, where they do.
    pub fn load_weights(&self) -> Option<&Arc<LoadWeights>> {
        match self.choosing() {
            BalancerPolicy::WeightedByLoad(config) => Some(config),
            _ => None,
        }
    }

    /// Of so many random endpoints, the one with the fewest requests in flight.
    pub fn least_request(choices: u32) -> Self {
        BalancerPolicy::LeastRequest { choices, bias: 1000 }
    }
}

/// The type of [`BalancerPolicy::PeakEwma`] over xDS: that of a `TypedStruct`, with `decay` in seconds. Others do not know it.
pub const PEAK_EWMA: &str = "mesh.load_balancing.v1.PeakEwma";

/// How weights follow from reports of load (gRFC A58).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadWeights {
    /// For how long the first reports of an endpoint do not count.
    pub blackout: Duration,
    /// For how long the last one counts.
    pub expiration: Duration,
    /// How often weights are worked out.
    pub update_period: Duration,
    /// How much errors count, in thousandths: by this share of requests that failed, an endpoint is more utilized.
    pub error_penalty: u32,
    /// How often endpoints are to report on a stream of their own; `None`: they do with their answers.
    pub oob: Option<Duration>,
    /// Metrics by name, the highest of which counts where the application says nothing (gRFC A114).
    pub metrics: Vec<Arc<str>>,
}

impl Default for LoadWeights {
    fn default() -> Self {
        LoadWeights {
            blackout: Duration::from_secs(10),
            expiration: Duration::from_secs(180),
            update_period: Duration::from_secs(1),
            error_penalty: 1000,
            oob: None,
            metrics: Vec::new(),
        }
    }
}

/// How the hashes on a ring are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashFunction {
    /// xxHash64.
    #[default]
    Xx,
    /// MurmurHash2 of 64 bits, as in libstdc++.
    Murmur2,
}

/// What is hashed of endpoints, and how much one may get (Envoy's `ConsistentHashingLbConfig`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsistentHashing {
    /// Hash the names of endpoints, where they have one, and not their addresses.
    pub by_hostname: bool,
    /// How many requests in flight an endpoint may have, in percent of the mean, at least 100; others stand in for
    /// one that has more. `None`: any number.
    pub balance_percent: Option<u32>,
}

/// How new endpoints come to their full share (Envoy's `SlowStartConfig`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlowStart {
    /// How long it takes, from the first time that an endpoint is about to be picked.
    pub window: Duration,
    /// The curve, in thousandths: 1000 is a line, more is faster at the beginning.
    pub aggression: u32,
    /// The share to begin with, in percent.
    pub min_percent: u8,
}

impl SlowStart {
    /// In a line from a tenth, which are Envoy's defaults.
    pub fn over(window: Duration) -> Self {
        SlowStart { window, aggression: 1000, min_percent: 10 }
    }
}

/// How load moves between priorities (Envoy's `common_lb_config`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PriorityPolicy {
    /// Below this share of healthy endpoints, health is ignored. Envoy: 50; gRPC and Istio: 0 (never).
    pub panic_percent: u8,
    /// Whether endpoints that were not checked yet do not count, where others are known to be healthy; else they are
    /// unhealthy until they are. Matters where there are health checks.
    pub ignores_unchecked: bool,
}

impl Default for PriorityPolicy {
    fn default() -> Self {
        PriorityPolicy { panic_percent: 50, ignores_unchecked: false }
    }
}

/// Probes of the operating system on a connection that is idle. What is `None` is the system's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// How many are not answered before the connection is dead.
    pub probes: Option<u32>,
    /// How long the connection is silent before the first.
    pub time: Option<Duration>,
    /// How far apart they are.
    pub interval: Option<Duration>,
}

/// Pings on a connection of HTTP/2, whether it carries requests or not. One that is not answered ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http2Keepalive {
    /// How far apart they are; what arrives meanwhile stands for an answer.
    pub interval: Duration,
    /// How long an answer is waited for.
    pub timeout: Duration,
}

/// What the endpoints of a cluster speak. Exhaustive: one more is one more way to talk to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, with prior knowledge where there is no TLS.
    Http2,
    /// As the caller's request (`use_downstream_protocol_config`).
    AsCaller,
}

/// Whether connections to a cluster are secured. Exhaustive: whoever opens a connection has to know each of them, so
/// that one more does not pass for [`ClusterTls::None`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClusterTls {
    /// Nothing was said.
    #[default]
    None,
    /// Mutual TLS.
    Mutual(Arc<UpstreamTls>),
    /// Mutual TLS with the endpoints that are marked for it ([`Endpoint::mutual_tls`](crate::model::Endpoint)), plaintext
    /// with the others: Istio's automatic mTLS.
    MutualWhereMarked(Arc<UpstreamTls>),
    /// TLS by files or secrets, with servers that need not be of the mesh.
    Foreign(Arc<ForeignTls>),
    /// TLS is asked for and this build cannot provide it: every dial fails with this reason, and nothing is
    /// ever sent in plaintext.
    Unusable(Arc<str>),
}

/// Mutual TLS with the endpoints of a cluster, with the mesh's own certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpstreamTls {
    /// Who may answer (secure naming). Nobody else is sent a byte.
    pub peers: Arc<[SpiffeId]>,
    /// Whether they are named for being its endpoints, and by no rule. Who leaves then has done nothing wrong: requests that are
    /// under way there go on, and nothing new is sent.
    pub by_endpoints: bool,
    /// The name that is asked for.
    pub sni: Option<Arc<str>>,
}

impl UpstreamTls {
    /// With these peers, named by a rule, asking for no name.
    pub fn with(peers: impl IntoIterator<Item = SpiffeId>) -> Self {
        UpstreamTls { peers: peers.into_iter().collect(), by_endpoints: false, sni: None }
    }
}

impl ClusterTls {
    /// How connections are secured, where that is by the mesh's own certificates.
    pub fn upstream(&self) -> Option<&Arc<UpstreamTls>> {
        match self {
            ClusterTls::Mutual(tls) | ClusterTls::MutualWhereMarked(tls) => Some(tls),
            ClusterTls::None | ClusterTls::Foreign(_) | ClusterTls::Unusable(_) => None,
        }
    }

    /// The names of the secrets that it takes.
    pub fn secrets(&self) -> impl Iterator<Item = &Arc<str>> {
        let material = match self {
            ClusterTls::Foreign(tls) => Some(&tls.material),
            ClusterTls::None | ClusterTls::Mutual(_) | ClusterTls::MutualWhereMarked(_) | ClusterTls::Unusable(_) => {
                None
            }
        };
        material.into_iter().flat_map(TlsMaterial::secrets)
    }

    /// Whether it has plaintext that a later version does not want any more.
    pub(crate) fn has_plaintext_beyond(&self, later: &ClusterTls) -> bool {
        match (self, later) {
            (_, ClusterTls::None) | (ClusterTls::Mutual(_) | ClusterTls::Foreign(_) | ClusterTls::Unusable(_), _) => {
                false
            }
            // To those that are not marked, the later one sends it, too.
            (ClusterTls::MutualWhereMarked(_), ClusterTls::MutualWhereMarked(_)) => false,
            (ClusterTls::None | ClusterTls::MutualWhereMarked(_), _) => true,
        }
    }
}

impl Cluster {
    /// Whether nothing is known of it: its endpoints are those of calls that go nowhere.
    pub fn leads_nowhere(&self) -> bool {
        let is_black_hole = |name: &str| name == BLACK_HOLE_CLUSTER;
        matches!(&self.kind, ClusterKind::Eds { service_name } if is_black_hole(service_name))
            && !is_black_hole(self.name.as_str())
    }

    /// A cluster with every default.
    ///
    /// ```
    /// use mesh_core::model::{Cluster, ClusterKind, ClusterProtocol, Endpoints};
    ///
    /// let endpoints = Endpoints::fixed(["127.0.0.1:8080".parse().unwrap()]);
    /// let mut cluster = Cluster::new("reviews", ClusterKind::Static(endpoints));
    /// cluster.protocol = ClusterProtocol::Http2;
    /// ```
    pub fn new(name: impl Into<ClusterName>, kind: ClusterKind) -> Self {
        Cluster {
            name: name.into(),
            kind,
            balancer: BalancerPolicy::default(),
            priorities: PriorityPolicy::default(),
            slow_start: None,
            protocol: ClusterProtocol::default(),
            tls: ClusterTls::None,
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_requests_per_connection: None,
            max_concurrent_streams: None,
            max_connection_duration: None,
            tcp_keepalive: None,
            http2_keepalive: None,
            circuit_breakers: CircuitBreakers::default(),
            outlier_detection: None,
            fallback: None,
            health_check: None,
            session_health: vec![Health::Unknown, Health::Healthy, Health::Degraded],
            service: None,
            reports_load: false,
        }
    }
}
