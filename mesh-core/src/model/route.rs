//! Routes: what a request must look like, and what becomes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};

use crate::id::{ClusterName, RouteName};
use crate::list::List;
use crate::model::{
    FilterConfig, Fraction, FullRegex, HashPolicy, HeaderText, PathRewrite, Profile, RateLimit, RetryPolicy,
    StringTest, Tunnel,
};

/// Filter overrides by filter name (`typed_per_filter_config`).
type FilterOverrides = BTreeMap<Arc<str>, FilterConfig>;

/// A validated RouteConfiguration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteConfiguration {
    /// Its name; empty when inline.
    pub name: Option<RouteName>,
    /// By domain.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Header changes of every route, applied last.
    pub mutations: HeaderMutations,
    /// Apply the most specific header changes last, so that they win.
    pub most_specific_mutations_win: bool,
}

impl RouteConfiguration {
    /// These virtual hosts, without a name.
    pub fn new(virtual_hosts: Vec<VirtualHost>) -> Self {
        RouteConfiguration { virtual_hosts, ..RouteConfiguration::default() }
    }
}

/// The routes of some domains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VirtualHost {
    /// Its name.
    pub name: Arc<str>,
    /// `a.b`, `*.b`, `a.*` or `*`; lower case.
    pub domains: Vec<String>,
    /// In order; the first match wins. One that stays as it is is to be the same allocation in the next configuration: then it is
    /// not compiled again.
    pub routes: List<Arc<Route>>,
    /// Header changes of every route in it.
    pub mutations: HeaderMutations,
    /// Filter overrides of every route in it.
    pub filters: FilterOverrides,
    /// What requests are counted by whose route says nothing of it, or wants these besides.
    pub rate_limits: Vec<Arc<RateLimit>>,
}

impl VirtualHost {
    /// These routes for these domains, without a name.
    pub fn new(domains: impl IntoIterator<Item = impl Into<String>>, routes: Vec<Route>) -> Self {
        let (domains, routes) =
            (domains.into_iter().map(Into::into).collect(), routes.into_iter().map(Arc::new).collect());
        VirtualHost { domains, routes, ..VirtualHost::default() }
    }
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Route {
    /// Its name, for messages and telemetry; may be empty.
    pub name: Arc<str>,
    /// What the request must look like.
    pub matches: RouteMatch,
    /// What becomes of it.
    pub action: RouteAction,
    /// Header changes.
    pub mutations: HeaderMutations,
    /// Filter overrides.
    pub filters: FilterOverrides,
}

impl Route {
    /// A route without a name that changes no headers.
    ///
    /// ```
    /// use mesh_core::model::{Forward, PathTest, Route, RouteAction, RouteMatch};
    ///
    /// let path = PathTest::Prefix { value: "/v2".into(), ignore_case: false };
    /// let route = Route::new(RouteMatch::path(path), RouteAction::Forward(Forward::to("reviews-v2")));
    /// ```
    pub fn new(matches: RouteMatch, action: RouteAction) -> Self {
        Route {
            name: Arc::default(),
            matches,
            action,
            mutations: HeaderMutations::default(),
            filters: FilterOverrides::new(),
        }
    }
}

/// What a request must look like; every part must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteMatch {
    /// The path.
    pub path: PathTest,
    /// Headers.
    pub headers: Vec<HeaderTest>,
    /// Query parameters.
    pub query: Vec<QueryTest>,
    /// Only requests that carry gRPC.
    pub grpc: bool,
    /// Only this share of requests.
    pub fraction: Option<Fraction>,
}

impl RouteMatch {
    /// Every request.
    pub fn any() -> Self {
        RouteMatch::path(PathTest::Prefix { value: "/".into(), ignore_case: false })
    }

    /// Every request with such a path.
    pub fn path(path: PathTest) -> Self {
        RouteMatch { path, headers: Vec::new(), query: Vec::new(), grpc: false, fraction: None }
    }
}

/// A test on the path. All but `Prefix` look at the path without its query; ASCII case is folded on demand.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields say what they are")]
pub enum PathTest {
    /// The start of the path, query included.
    Prefix { value: String, ignore_case: bool },
    /// The whole path.
    Exact { value: String, ignore_case: bool },
    /// The whole path, by expression.
    Regex(FullRegex),
    /// The path itself or anything below it: `/a` matches `/a` and `/a/b`, not `/ab`.
    Separated { value: String, ignore_case: bool },
    /// A URI template (`envoy.path.match.uri_template`).
    Template(SegmentTemplate),
}

/// A path template of `/`-separated segments: literals, `{*}` or `{name}` for one segment, `{**}` or
/// `{name=**}` for any number of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentTemplate {
    /// Its parts.
    pub parts: Vec<TemplatePart>,
}

/// One part of a path template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePart {
    /// This very segment.
    Literal(String),
    /// Any one segment, not empty.
    One,
    /// Any number of segments, none too.
    Many,
}

/// A test on one header.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderTest {
    /// The value; of several, any. `missing_is_empty`: an absent header is tested as the empty string; otherwise it
    /// fails, inverted or not (`envoy.config.route.v3.HeaderMatcher`).
    Value {
        /// The header: a real one, or `:method`, `:path`, `:authority`, `:scheme`.
        name: Arc<str>,
        /// The test.
        test: StringTest,
        /// Pass where the test fails, for every value.
        invert: bool,
        /// Treat an absent header as empty.
        missing_is_empty: bool,
    },
    /// A decimal number in `start..end`.
    Range {
        /// The header.
        name: Arc<str>,
        /// First number that passes.
        start: i64,
        /// First number that does not.
        end: i64,
        /// Pass where the test fails.
        invert: bool,
        /// Treat an absent header as empty, which is no number.
        missing_is_empty: bool,
    },
    /// Whether the header is there.
    Present {
        /// The header.
        name: Arc<str>,
        /// `true`: it must be; `false`: it must not.
        present: bool,
    },
}

/// A test on one query parameter; the first of several counts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueryTest {
    /// The parameter, as it stands in the query.
    pub name: String,
    /// On its value; `None` = it must be there, whatever its value.
    pub test: Option<StringTest>,
}

impl QueryTest {
    /// A test on this parameter.
    pub fn new(name: impl Into<String>, test: Option<StringTest>) -> Self {
        QueryTest { name: name.into(), test }
    }
}

/// What becomes of a request. Exhaustive: whoever carries requests has to know what to do for each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "nearly all of them forward, and each request looks at one")]
pub enum RouteAction {
    /// It goes to a cluster.
    Forward(Forward),
    /// It is answered with another place.
    Redirect(Redirect),
    /// It is answered at once.
    Direct(DirectResponse),
    /// A server's route: the application answers (gRFC A36).
    NonForwarding,
    /// It fails, and this is why: the route asks for something that is not built. Taking the next route
    /// instead would send the request where nobody wanted it.
    Unusable(Arc<str>),
}

/// How a request goes to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Forward {
    /// Which one.
    pub clusters: Clusters,
    /// What a split among several goes by.
    pub split_by: SplitBy,
    /// What the path becomes.
    pub path: Option<PathChange>,
    /// What the authority becomes.
    pub authority: Option<HeaderValue>,
    /// From when the route was found to the end of the response; in Envoy from the end of the request. `None` = 15 s
    /// (Envoy); zero = no limit.
    pub timeout: Option<Duration>,
    /// Limits of streams.
    pub max_stream_duration: Option<MaxStreamDuration>,
    /// When to try again: one policy of all routes that say the same.
    pub retry: Option<Arc<RetryPolicy>>,
    /// What requests are hashed by, for clusters that choose by hash.
    pub hash_policies: Vec<HashPolicy>,
    /// Who else gets a copy.
    pub mirrors: Vec<Mirror>,
    /// Whether identical GETs that are under way at the same time may be one.
    pub coalesces: bool,
    /// What requests are counted by.
    pub rate_limits: Vec<Arc<RateLimit>>,
    /// Whether those of the virtual host count besides.
    pub includes_host_rate_limits: bool,
    /// How long a connection whose bytes are not HTTP may be idle; `None` = as long as both sides want.
    pub idle_timeout: Option<Duration>,
    /// What the endpoint, which is a proxy, connects such a connection to.
    pub tunnel: Option<Arc<Tunnel>>,
}

/// Who else gets a copy of a request, and is not waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mirror {
    /// The cluster.
    pub cluster: ClusterName,
    /// Of how many requests.
    pub fraction: Fraction,
    /// What its host is.
    pub host: MirrorHost,
}

impl Mirror {
    /// A copy of every request, as it is.
    pub fn to(cluster: impl Into<ClusterName>) -> Self {
        Mirror { cluster: cluster.into(), fraction: Fraction::ALL, host: MirrorHost::Same }
    }
}

/// The host of a copy. Exhaustive: whoever makes one has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorHost {
    /// That of the request.
    Same,
    /// That with `-shadow` behind its name (Envoy, where nothing is said; not Istio).
    Suffixed,
    /// This one.
    Literal(HeaderValue),
}

impl Forward {
    /// To one cluster, without a time limit.
    pub fn to(cluster: impl Into<ClusterName>) -> Self {
        Forward::among(Clusters::One(cluster.into()))
    }

    /// To one of these clusters, without a time limit.
    pub fn among(clusters: Clusters) -> Self {
        Forward {
            clusters,
            split_by: SplitBy::Chance,
            path: None,
            authority: None,
            timeout: Some(Duration::ZERO),
            max_stream_duration: None,
            retry: None,
            hash_policies: Vec::new(),
            mirrors: Vec::new(),
            coalesces: false,
            rate_limits: Vec::new(),
            includes_host_rate_limits: false,
            idle_timeout: None,
            tunnel: None,
        }
    }
}

impl Forward {
    /// How long a request may take on this route; `None` = as long as the caller waits.
    ///
    /// The route timeout and the limit of the stream, whichever is shorter; zero is no limit. The stream's is the
    /// route's `max_stream_duration`, else the listener's; for gRPC `grpc_timeout_header_max` goes before both (gRFC
    /// A31). Where the route says no timeout it is Envoy's 15 s; for gRPC there is none then, as gRFC A31 has it: its
    /// streams last, and control planes leave the field out for it.
    pub fn time_limit(&self, is_grpc: bool, listener_limit: Option<Duration>) -> Option<Duration> {
        let stream = self.max_stream_duration;
        let mut stream_limit = stream.and_then(|stream| stream.limit).or(listener_limit);
        let profile = Profile::of(is_grpc);
        if profile.has_grpc_timeout {
            stream_limit = stream.and_then(|stream| stream.grpc_timeout_max).or(stream_limit);
        }
        [self.timeout.or(profile.timeout), stream_limit].into_iter().flatten().filter(|limit| !limit.is_zero()).min()
    }
}

/// Which cluster a request goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Clusters {
    /// Always this one.
    One(ClusterName),
    /// By weight, in the order listed; never empty, the weights add up to 1 to `u32::MAX`.
    Weighted(Vec<WeightedCluster>),
}

/// What a split among several clusters goes by (`random_value_specifier` of `WeightedCluster`). What a request brings is a
/// number, and that number modulo the sum of the weights is a place in the list of the clusters. Who brings nothing is split
/// by chance. Exhaustive: whoever splits has to know each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SplitBy {
    /// Each request by itself.
    #[default]
    Chance,
    /// The hash of the route's policies, as far as it is made of what the request brings, or of a cookie that they make for it.
    HashPolicies,
    /// The decimal number that is the one value of this header.
    Header(HeaderName),
}

impl Clusters {
    /// Whether one of them has header changes of its own.
    pub fn mutate_headers(&self) -> bool {
        matches!(self, Clusters::Weighted(clusters) if clusters.iter().any(|cluster| !cluster.mutations.is_empty()))
    }

    /// Every cluster that is named.
    pub fn names(&self) -> impl Iterator<Item = &ClusterName> {
        let (one, weighted) = match self {
            Clusters::One(name) => (Some(name), [].as_slice()),
            Clusters::Weighted(clusters) => (None, clusters.as_slice()),
        };
        one.into_iter().chain(weighted.iter().map(|cluster| &cluster.name))
    }
}

/// One of several clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WeightedCluster {
    /// Which.
    pub name: ClusterName,
    /// Its share, at least 1.
    pub weight: u32,
    /// Header changes, applied first.
    pub mutations: HeaderMutations,
    /// What the authority becomes, where the route does not say so.
    pub authority: Option<HeaderValue>,
    /// Filter overrides.
    pub filters: FilterOverrides,
}

impl WeightedCluster {
    /// This cluster with this share; it changes no headers.
    pub fn new(name: impl Into<ClusterName>, weight: u32) -> Self {
        let (mutations, filters) = (HeaderMutations::default(), FilterOverrides::new());
        WeightedCluster { name: name.into(), weight, mutations, authority: None, filters }
    }
}

/// What a path becomes. The query stays. Exhaustive: whoever carries requests has to make each of the changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathChange {
    /// The matched prefix (or whole path) is replaced.
    Prefix(String),
    /// Every match of the expression is replaced; `\\1` stands for its first group.
    Regex(PathRewrite),
    /// The whole path is replaced.
    Full(String),
}

/// Limits of streams (gRFC A31). By default there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MaxStreamDuration {
    /// The longest a stream may last; zero = the application's deadline alone.
    pub limit: Option<Duration>,
    /// The longest that a caller's `grpc-timeout` may ask for; zero = anything.
    pub grpc_timeout_max: Option<Duration>,
}

/// An answer that names another place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// The scheme, where it changes.
    pub scheme: Option<String>,
    /// The host, where it changes.
    pub host: Option<String>,
    /// The port, where it changes.
    pub port: Option<u16>,
    /// The path, where it changes.
    pub path: Option<PathChange>,
    /// Leave the query out.
    pub strip_query: bool,
}

impl Redirect {
    /// An answer with this status that names the place that was asked for, until a part of it is changed.
    pub fn new(status: StatusCode) -> Self {
        Redirect { status, scheme: None, host: None, port: None, path: None, strip_query: false }
    }
}

/// An answer from the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DirectResponse {
    /// The status.
    pub status: StatusCode,
    /// The body, at most 1 MiB.
    pub body: bytes::Bytes,
}

impl DirectResponse {
    /// An answer with this status and body.
    pub fn new(status: StatusCode, body: impl Into<bytes::Bytes>) -> Self {
        DirectResponse { status, body: body.into() }
    }
}

/// Changes to the headers of requests and responses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeaderMutations {
    /// On the way to the cluster.
    pub request: Vec<HeaderChange>,
    /// On the way back.
    pub response: Vec<HeaderChange>,
}

impl HeaderMutations {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// One change to a header map, in the order given. Exhaustive: whoever carries requests has to make each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "names and values of headers")]
pub enum HeaderChange {
    /// Add a value, whatever is there.
    Append(HeaderName, HeaderText),
    /// Replace, or add.
    Set(HeaderName, HeaderText),
    /// Add only where there is none.
    AddIfAbsent(HeaderName, HeaderText),
    /// Replace only where there is one.
    ReplaceIfPresent(HeaderName, HeaderText),
    /// Remove every value.
    Remove(HeaderName),
}

impl HeaderChange {
    /// The header that changes.
    pub fn name(&self) -> &HeaderName {
        match self {
            HeaderChange::Append(name, _)
            | HeaderChange::Set(name, _)
            | HeaderChange::AddIfAbsent(name, _)
            | HeaderChange::ReplaceIfPresent(name, _)
            | HeaderChange::Remove(name) => name,
        }
    }

    /// What is written there, if anything is.
    pub fn text(&self) -> Option<&HeaderText> {
        match self {
            HeaderChange::Append(_, text)
            | HeaderChange::Set(_, text)
            | HeaderChange::AddIfAbsent(_, text)
            | HeaderChange::ReplaceIfPresent(_, text) => Some(text),
            HeaderChange::Remove(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_limit_of_a_route() {
        let second = Duration::from_secs(1);
        let stream = |limit, grpc_timeout_max| Some(MaxStreamDuration { limit, grpc_timeout_max });
        let zero = Some(Duration::ZERO);
        // (gRPC?, route timeout, stream limits, listener's limit) -> limit
        let cases = [
            (false, None, None, None, Profile::HTTP.timeout),
            (false, zero, None, None, None),
            (false, Some(2 * second), None, None, Some(2 * second)),
            (false, Some(2 * second), stream(Some(second), None), None, Some(second)),
            (false, zero, None, Some(second), Some(second)),
            (true, Some(second), None, None, Some(second)),
            (true, None, None, None, None),
            (true, zero, None, None, None),
            (true, zero, stream(Some(second), None), None, Some(second)),
            (true, Some(2 * second), stream(Some(3 * second), None), None, Some(2 * second)),
            (true, Some(2 * second), stream(None, Some(second)), None, Some(second)),
            (true, Some(2 * second), stream(None, zero), Some(second), Some(2 * second)),
            (true, None, stream(Some(second), None), Some(2 * second), Some(second)),
            (true, None, None, Some(2 * second), Some(2 * second)),
            (true, None, stream(zero, None), Some(2 * second), None),
            (true, None, stream(Some(second), Some(3 * second)), None, Some(3 * second)),
            (true, None, stream(Some(second), zero), None, None),
        ];
        for (is_grpc, timeout, max_stream_duration, listener, expected) in cases {
            let forward = Forward { timeout, max_stream_duration, ..Forward::to("c") };
            assert_eq!(forward.time_limit(is_grpc, listener), expected, "{forward:?} {listener:?}");
        }
    }
}
