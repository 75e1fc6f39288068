//! How a client is to call a cluster: what the rules in force say, with Istio's defaults where they say nothing.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::locality::LocalitySetting;
pub use crate::config::extensions::{EndpointSubset, HealthCheck, LoadBalancer as OwnBalancer, Probe};
pub use crate::config::istio::service::Session;

/// How long establishing a connection may take where no rule says so: Istio's default (pkg/config/mesh/mesh.go).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How to call a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct TrafficPolicy {
    /// Which endpoint a request goes to.
    pub balancer: Balancer,
    /// A policy that Istio has no name for, in the place of it.
    pub own_balancer: Option<OwnBalancer>,
    /// How many endpoints each client calls, if not all.
    pub subset: Option<EndpointSubset>,
    /// What requests are hashed by, where the balancer goes by it.
    pub hashed_by: Option<HashedBy>,
    /// How new endpoints come to their full share, if a rule says so.
    pub warmup: Option<Warmup>,
    /// Which endpoints are near and go first, where that counts.
    pub locality: Option<LocalitySetting>,
    /// Connections and limits.
    pub connection_pool: ConnectionPool,
    /// Which endpoints are left out for a while; `None` if none are.
    pub outlier_detection: Option<OutlierDetection>,
    /// How endpoints are asked whether they are well, if they are.
    pub health_check: Option<HealthCheck>,
    /// Transport security.
    pub tls: Tls,
    /// How many retries there may be for what is under way, in place of `max_retries`.
    pub retry_budget: Option<RetryBudget>,
    /// The proxy's way for connections whose bytes are not HTTP, where its endpoints are proxies.
    pub tunnel: Option<Tunnel>,
}

impl TrafficPolicy {
    /// Whether the hash of a request says where it goes.
    pub fn goes_by_hash(&self) -> bool {
        self.own_balancer.is_none() && self.balancer.goes_by_hash()
    }

    /// How many endpoints each client calls, where a subset of them can be balanced.
    pub fn subset_in_force(&self) -> Option<EndpointSubset> {
        self.subset.filter(|_| !self.goes_by_hash() && !matches!(self.own_balancer, Some(OwnBalancer::Custom(_))))
    }
}

/// What a proxy is asked for, for a connection through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Where to: a host and a port.
    pub authority: String,
    /// Whether it is asked by POST, and not by CONNECT.
    pub by_post: bool,
}

/// How many retries there may be for what is under way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Percent of the requests.
    pub percent: f64,
    /// So many in any case.
    pub at_least: u32,
    /// Those that began within this time count, in place of those that are under way.
    pub interval: Option<Duration>,
}

/// Which endpoint a request goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Balancer {
    /// Nobody says; each kind of client has its own way.
    #[default]
    Unspecified,
    /// The less loaded of two.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The next one on a ring of hashes, so many at least.
    RingHash(u64),
    /// By Maglev's table, so large.
    Maglev(u64),
    /// None of them: where the caller's connection was going. There is none before the mesh has picked.
    Passthrough,
}

impl Balancer {
    /// Whether it goes by the hash of a request.
    pub fn goes_by_hash(self) -> bool {
        matches!(self, Balancer::RingHash(_) | Balancer::Maglev(_))
    }
}

/// What requests are hashed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashedBy {
    /// A header.
    Header(String),
    /// A cookie, made for who has none where it has a life; a life of zero is that of the caller's session.
    Cookie {
        /// Its name.
        name: String,
        /// Where it counts; empty where nothing is said.
        path: String,
        /// Its life; `None`: none is made.
        ttl: Option<Duration>,
        /// Its attributes, in order; a value may be empty.
        attributes: Vec<(String, String)>,
    },
    /// The address of the client.
    SourceAddress,
    /// A query parameter.
    Query(String),
}

/// How new endpoints come to their full share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warmup {
    /// How long it takes.
    pub duration: Duration,
    /// The share to begin with, in percent.
    pub minimum_percent: f64,
    /// The curve; 1 is a line.
    pub aggression: f64,
}

/// Connections and limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionPool {
    /// How long establishing a connection may take, if a rule says so.
    pub connect_timeout: Option<Duration>,
    /// How long a connection may be idle, if a rule says so.
    pub idle_timeout: Option<Duration>,
    /// The same of a connection whose bytes are not HTTP.
    pub tcp_idle_timeout: Option<Duration>,
    /// How old a connection may become, if a rule says so.
    pub max_connection_duration: Option<Duration>,
    /// Probes of the operating system, if a rule says so.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Requests before a connection is closed, if a rule says so.
    pub max_requests_per_connection: Option<Bound>,
    /// Connections.
    pub max_connections: Bound,
    /// Requests that wait for a connection.
    pub max_pending_requests: Bound,
    /// Requests under way.
    pub max_requests: Bound,
    /// Retries under way.
    pub max_retries: Bound,
    /// Whether what is HTTP/1.1 by its port becomes HTTP/2, if anybody says so.
    pub upgrades_to_http2: Option<bool>,
    /// Whether requests go on in the HTTP that they came in, whatever the port says.
    pub as_caller: bool,
    /// Streams on one connection, if a rule says so.
    pub max_concurrent_streams: Option<Bound>,
    /// Pings on connections of HTTP/2, if a rule says so: how far apart they are, and how long an answer is waited for.
    pub http2_keepalive: Option<(Duration, Duration)>,
}

/// Probes of the operating system on an idle connection; what is not set is the system's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// How many are not answered before the connection is dead.
    pub probes: Option<u32>,
    /// After how much silence the first one is sent.
    pub time: Option<Duration>,
    /// How far apart they are.
    pub interval: Option<Duration>,
}

impl ConnectionPool {
    /// How long establishing a connection may take.
    pub fn connect_timeout_or_default(&self) -> Duration {
        self.connect_timeout.unwrap_or(CONNECT_TIMEOUT)
    }
}

/// How many of something there may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bound {
    /// Any number.
    #[default]
    Unlimited,
    /// So many.
    AtMost(NonZeroU32),
}

impl Bound {
    /// The number, where there is one.
    pub fn number(self) -> Option<u32> {
        match self {
            Bound::Unlimited => None,
            Bound::AtMost(number) => Some(number.get()),
        }
    }
}

/// Which endpoints are left out for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutlierDetection {
    /// Those with so many 5xx answers in a row; `None` if these do not count.
    pub consecutive_5xx: Option<NonZeroU32>,
    /// Those with so many 502, 503 and 504 answers in a row; `None` if these do not count.
    pub consecutive_gateway_errors: Option<NonZeroU32>,
    /// What failures to connect count as.
    pub local_origin: LocalOrigin,
    /// Between two looks; the client's own where no rule says so.
    pub interval: Option<Duration>,
    /// The first time out; the client's own where no rule says so.
    pub base_ejection_time: Option<Duration>,
    /// Percent of endpoints that may be out; the client's own where no rule says so.
    pub max_ejection_percent: Option<u32>,
    /// Percent of healthy endpoints below which all are used.
    pub min_health_percent: u32,
}

/// What failures to connect count as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalOrigin {
    /// As 5xx answers.
    Answers,
    /// As themselves: so many in a row, 0 for never, the client's own number where no rule says so.
    Failures(Option<u32>),
}

/// How connections of a client are secured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// No rule says so: as the mesh does it, mutual TLS with the workloads that speak it.
    #[default]
    Automatic,
    /// A rule wants them in plaintext.
    Plaintext,
    /// A rule wants TLS with a server that need not be of the mesh: by files of the client, or by authorities that are told.
    Foreign(Box<ForeignTls>),
    /// A rule wants TLS by a Secret.
    BySecret(Box<SecretTls>),
    /// A rule wants mutual TLS with the mesh's certificates.
    Mesh {
        /// The name to ask for, if it is not the cluster's.
        sni: Option<String>,
        /// Who may answer, if not whoever serves.
        peers: Vec<String>,
    },
}

/// TLS with a server that need not be of the mesh, by files that the client reads, or by authorities that it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignTls {
    /// The name to ask for, if a rule says so.
    pub sni: Option<String>,
    /// Who vouches for the server.
    pub roots: Roots,
    /// A file with lists of revoked certificates.
    pub revoked: Option<String>,
    /// What the client shows: files with its certificate and its key.
    pub identity: Option<(String, String)>,
    /// Names of which the server has to prove one; its own name where there are none.
    pub names: Vec<String>,
}

/// The same by a Secret, which has what files would have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretTls {
    /// Its name, in the namespace of the rule.
    pub name: String,
    /// Whether the client shows the certificate that is in it.
    pub is_mutual: bool,
    /// Whether the authorities in it have to vouch for the server: a rule may want nobody to.
    pub verifies: bool,
    /// The name to ask for, if a rule says so.
    pub sni: Option<String>,
    /// Names of which the server has to prove one; its own name where there are none.
    pub names: Vec<String>,
}

/// Who vouches for servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Those whom the client's system trusts.
    System,
    /// The authorities in this file.
    File(String),
    /// The authorities in this text, which is PEM.
    Text(Arc<str>),
    /// Nobody: a rule wants it so.
    Nobody,
}

/// How connections to a server are secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerTls {
    /// In plaintext.
    Plaintext,
    /// Mutual TLS for those who speak TLS, plaintext for the others.
    Permissive,
    /// Mutual TLS only.
    Strict,
}
