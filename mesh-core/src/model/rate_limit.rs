//! What requests are counted by: descriptors, as routes make them (`envoy.config.route.v3.RateLimit`). Local limits look
//! them up, and global ones ask a service about them.

use std::sync::Arc;

use crate::model::{CelExpression, HeaderTest, IpPrefix, QueryTest, SegmentTemplate};

/// The highest stage that Envoy knows.
pub const LAST_STAGE: u8 = 10;

/// The most hits that one request may count for (Envoy).
pub const MOST_HITS: u64 = 1_000_000_000;

/// How one descriptor of a request is made. Where an action yields nothing, there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimit {
    /// Which filters go by it: those of the same stage, up to [`LAST_STAGE`].
    pub stage: u8,
    /// Its entries, in order; at least one.
    pub actions: Vec<DescriptorAction>,
    /// How many hits a request is; `None`: as many as the filter says, mostly 1. Zero only asks.
    pub hits: Option<u64>,
    /// Whether hits are given back.
    pub gives_back: bool,
    /// A limit in the place of the one that a rate limit service would find.
    pub limit: Option<LimitOverride>,
    /// Whether answers tell how much is left (`x-ratelimit-*`); `None`: as the filter says.
    pub tells_rest: Option<bool>,
}

impl RateLimit {
    /// One hit by these, at the first stage.
    pub fn by(actions: Vec<DescriptorAction>) -> Self {
        RateLimit { stage: 0, actions, hits: None, gives_back: false, limit: None, tells_rest: None }
    }
}

/// One entry of a descriptor. Exhaustive: whoever makes descriptors has to know each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DescriptorAction {
    /// `source_cluster`: the service that this process is, as its node says it.
    SourceCluster,
    /// `destination_cluster`: where the route sends it.
    DestinationCluster,
    /// The first value of a header, also of `:method`, `:path` and their like.
    Header {
        /// The entry's key.
        key: Arc<str>,
        /// The header.
        name: Arc<str>,
        /// Whether a request without it has the other entries all the same.
        skip_if_absent: bool,
    },
    /// The first value of a query parameter, decoded.
    Query {
        /// The entry's key.
        key: Arc<str>,
        /// The parameter.
        name: Arc<str>,
        /// Whether a request without it has the other entries all the same.
        skip_if_absent: bool,
    },
    /// `remote_address`: where the client connected from, without its port.
    RemoteAddress,
    /// `masked_remote_address`: the network that it is of.
    MaskedRemoteAddress {
        /// Bits of an IPv4 address that count, up to 32.
        v4_bits: u8,
        /// Bits of an IPv6 address that count, up to 128.
        v6_bits: u8,
    },
    /// A constant, where the client connected from one of these networks.
    RemoteAddressMatch {
        /// The entry's key.
        key: Arc<str>,
        /// Its value.
        value: Arc<str>,
        /// The networks.
        ranges: Vec<IpPrefix>,
        /// Where from none of them.
        invert: bool,
    },
    /// A constant.
    Constant {
        /// The entry's key.
        key: Arc<str>,
        /// Its value.
        value: Arc<str>,
    },
    /// A constant, where all tests on headers pass, or not all of them.
    HeaderMatch {
        /// The entry's key.
        key: Arc<str>,
        /// Its value.
        value: Arc<str>,
        /// Whether they have to pass.
        expects: bool,
        /// The tests.
        tests: Vec<HeaderTest>,
    },
    /// A constant, where all tests on query parameters pass, or not all of them.
    QueryMatch {
        /// The entry's key.
        key: Arc<str>,
        /// Its value.
        value: Arc<str>,
        /// Whether they have to pass.
        expects: bool,
        /// The tests.
        tests: Vec<QueryTest>,
    },
    /// A claim of the request's token that is a text. An empty one is none, as in Envoy.
    Claim {
        /// The entry's key.
        key: Arc<str>,
        /// The names that lead to it.
        path: Vec<String>,
        /// What stands for one that is not there.
        default: Option<Arc<str>>,
        /// Whether a request without it has the other entries all the same.
        skip_if_absent: bool,
    },
    /// Who the client has shown to be by mutual TLS, or a part of it. Envoy has nothing like it.
    Client {
        /// The entry's key.
        key: Arc<str>,
        /// Which part.
        part: ClientPart,
    },
    /// The first of some templates that the request's path fits. Envoy has nothing like it.
    PathTemplate {
        /// The entry's key.
        key: Arc<str>,
        /// The templates, as they are written, which is the entry's value, and as they are read.
        templates: Vec<(Arc<str>, SegmentTemplate)>,
    },
    /// What an expression of CEL comes to (`envoy.rate_limit_descriptors.expr`).
    Expression {
        /// The entry's key.
        key: Arc<str>,
        /// The expression.
        expression: Arc<CelExpression>,
        /// Whether a request of which it comes to nothing has the other entries all the same.
        skip_if_absent: bool,
    },
}

impl DescriptorAction {
    /// Whether a request that has nothing of it has the other entries all the same.
    pub fn may_be_absent(&self) -> bool {
        match self {
            DescriptorAction::Header { skip_if_absent, .. }
            | DescriptorAction::Query { skip_if_absent, .. }
            | DescriptorAction::Claim { skip_if_absent, .. }
            | DescriptorAction::Expression { skip_if_absent, .. } => *skip_if_absent,
            DescriptorAction::SourceCluster
            | DescriptorAction::DestinationCluster
            | DescriptorAction::RemoteAddress
            | DescriptorAction::MaskedRemoteAddress { .. }
            | DescriptorAction::RemoteAddressMatch { .. }
            | DescriptorAction::Constant { .. }
            | DescriptorAction::HeaderMatch { .. }
            | DescriptorAction::QueryMatch { .. }
            | DescriptorAction::Client { .. }
            | DescriptorAction::PathTemplate { .. } => false,
        }
    }

    /// The key of its entry.
    pub fn key(&self) -> &str {
        match self {
            DescriptorAction::SourceCluster => "source_cluster",
            DescriptorAction::DestinationCluster => "destination_cluster",
            DescriptorAction::RemoteAddress => "remote_address",
            DescriptorAction::MaskedRemoteAddress { .. } => "masked_remote_address",
            DescriptorAction::Header { key, .. }
            | DescriptorAction::Query { key, .. }
            | DescriptorAction::RemoteAddressMatch { key, .. }
            | DescriptorAction::Constant { key, .. }
            | DescriptorAction::HeaderMatch { key, .. }
            | DescriptorAction::QueryMatch { key, .. }
            | DescriptorAction::Claim { key, .. }
            | DescriptorAction::Client { key, .. }
            | DescriptorAction::PathTemplate { key, .. }
            | DescriptorAction::Expression { key, .. } => key,
        }
    }
}

/// Which part of a client's identity an entry has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientPart {
    /// All of it: `spiffe://cluster.local/ns/default/sa/web`.
    Principal,
    /// The namespace of its workload: `default`.
    Namespace,
    /// Namespace and service account: `default/web`.
    ServiceAccount,
}

/// So many requests in a unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LimitOverride {
    /// How many.
    pub requests: u32,
    /// In which time.
    pub unit: LimitUnit,
}

/// A unit of time in which requests are counted (`envoy.type.v3.RateLimitUnit`). Months and years are those of 30 and 365
/// days, as in envoyproxy/ratelimit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum LimitUnit {
    Second,
    Minute,
    Hour,
    Day,
    Month,
    Year,
}

/// What the configuration of a [`DescriptorAction::Client`] is called: a `TypedStruct` with `key` and `part`.
pub const CLIENT_ENTRY: &str = "mesh.rate_limit.v1.Client";

/// What the configuration of a [`DescriptorAction::PathTemplate`] is called: a `TypedStruct` with `key` and `templates`.
pub const PATH_ENTRY: &str = "mesh.rate_limit.v1.PathTemplate";

impl ClientPart {
    const ALL: [(ClientPart, &str); 3] = [
        (ClientPart::Principal, "principal"),
        (ClientPart::Namespace, "namespace"),
        (ClientPart::ServiceAccount, "serviceAccount"),
    ];

    /// The part of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(part, _)| *part)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(part, _)| *part == self).map_or("", |(_, name)| name)
    }
}

impl LimitUnit {
    /// How long it is.
    pub fn seconds(self) -> u32 {
        const DAY: u32 = 86_400;
        match self {
            LimitUnit::Second => 1,
            LimitUnit::Minute => 60,
            LimitUnit::Hour => 3_600,
            LimitUnit::Day => DAY,
            LimitUnit::Month => 30 * DAY,
            LimitUnit::Year => 365 * DAY,
        }
    }
}
