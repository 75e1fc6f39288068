//! Listeners: the entry of a client's walk (API listener) and of a server's (socket listener).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::id::{ListenerName, RouteName};
use crate::model::{
    AccessLog, Clusters, EdgeTls, Forward, MetricRules, NamedFilter, Route, RouteAction, RouteConfiguration,
    ServiceNames, Tracing,
};
use crate::path::PathNormalization;

/// A validated Listener.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(clippy::large_enum_variant, reason = "each is shared by an Arc, and there are few")]
pub enum Listener {
    /// What a client resolves its target to.
    Api(ApiListener),
    /// What a server accepts by.
    Server(ServerListener),
}

/// The cluster whose requests go on to where they ask for. The name is Istio's.
pub const PASSTHROUGH_CLUSTER: &str = "PassthroughCluster";
/// The cluster of calls that go nowhere, by Istio's name. Any other cluster whose endpoints are this one's is one of which nothing
/// is known.
pub const BLACK_HOLE_CLUSTER: &str = "BlackHoleCluster";

/// The name of the only route where a target may not be called, for no object describes it. It is Istio's.
pub const BLOCK_ALL: &str = "block_all";

impl Listener {
    /// Whether it only says that the target may be called as if there were no mesh: its requests go to the
    /// [`PASSTHROUGH_CLUSTER`], all of them. It is a permission and no configuration of the target, so that none of it is
    /// left when it is withdrawn.
    pub fn passes_by(&self) -> bool {
        let Listener::Api(listener) = self else { return false };
        let RouteSource::Inline(routes) = &listener.http.routes else { return false };
        let mut actions =
            routes.virtual_hosts.iter().flat_map(|host| &host.routes).map(|route| &route.action).peekable();
        actions.peek().is_some()
            && actions.all(|action| {
                matches!(action, RouteAction::Forward(Forward { clusters: Clusters::One(name), .. })
                    if name.as_str() == PASSTHROUGH_CLUSTER)
            })
    }

    /// Whether it says nothing of its target, but whether those may be called of which nothing is known.
    pub fn says_nothing(&self) -> bool {
        self.passes_by() || matches!(self, Listener::Api(listener) if listener.blocks().is_some())
    }

    /// The resource's name.
    pub fn name(&self) -> &ListenerName {
        match self {
            Listener::Api(listener) => &listener.name,
            Listener::Server(listener) => &listener.name,
        }
    }

    /// The route configurations that it asks for by name.
    pub fn route_names(&self) -> Vec<&RouteName> {
        let managers: Vec<&HttpManager> = match self {
            Listener::Api(listener) => vec![&listener.http],
            Listener::Server(listener) => listener.chains().map(|chain| &chain.http).collect(),
        };
        managers
            .into_iter()
            .filter_map(|http| match &http.routes {
                RouteSource::Named(name) => Some(name),
                RouteSource::Inline(_) => None,
            })
            .collect()
    }
}

/// A client's listener.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ApiListener {
    /// Its name.
    pub name: ListenerName,
    /// Routes and filters.
    pub http: HttpManager,
    /// Where connections go whose bytes are not HTTP: a virtual host's domains are the names of servers that a client may ask
    /// for, and its first route is for all of its connections. `None`: as requests do.
    pub connections: Option<Arc<RouteConfiguration>>,
}

impl ApiListener {
    /// Why the target may not be called, where that is all that it says: its one route is [`BLOCK_ALL`] and answers with 502. As
    /// [passing by](Listener::passes_by), it says nothing of the target that would be worth keeping.
    pub fn blocks(&self) -> Option<&str> {
        let RouteSource::Inline(routes) = &self.http.routes else { return None };
        let [host] = routes.virtual_hosts.as_slice() else { return None };
        match &**host.routes.first().filter(|_| host.routes.len() == 1)? {
            Route { name, action: RouteAction::Direct(answer), .. }
                if **name == *BLOCK_ALL && answer.status == StatusCode::BAD_GATEWAY =>
            {
                std::str::from_utf8(&answer.body).ok()
            }
            _ => None,
        }
    }
}

impl ApiListener {
    /// The listener of this name.
    pub fn new(name: impl Into<ListenerName>, http: HttpManager) -> Self {
        ApiListener { name: name.into(), http, connections: None }
    }
}

/// What an HttpConnectionManager says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpManager {
    /// The routes.
    pub routes: RouteSource,
    /// HTTP filters in the order in which requests pass them; the terminal router is left out.
    pub filters: Vec<NamedFilter>,
    /// The longest a stream may last; `None` or zero = no limit.
    pub max_stream_duration: Option<Duration>,
    /// What a server makes of the paths of its requests.
    pub paths: PathNormalization,
    /// What a server makes of headers whose names have an underscore.
    pub underscores: HeadersWithUnderscores,
    /// Where requests are logged.
    pub access_logs: Arc<[AccessLog]>,
    /// How they are counted, where that is otherwise than usual.
    pub metrics: Option<Arc<MetricRules>>,
    /// How requests are traced; `None` where that is the application's to say.
    pub tracing: Option<Arc<Tracing>>,
    /// What a gateway believes of those in front of it.
    pub trust: EdgeTrust,
    /// Whether a gateway makes gRPC of gRPC-Web.
    pub grpc_web: bool,
}

/// What a gateway believes of those in front of it, and what it tells of who its clients are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EdgeTrust {
    /// How many proxies in front of it are believed: each adds to `x-forwarded-for` who it got the request from, so that the client
    /// is the one at this place from its end. 0: it is who has connected.
    pub proxies: u32,
    /// What becomes of `x-forwarded-client-cert`.
    pub client_cert: ForwardedClientCert,
}

/// What becomes of `x-forwarded-client-cert` at a gateway, by Envoy's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ForwardedClientCert {
    /// It is taken off.
    Sanitize,
    /// It goes on where the client has shown a certificate.
    ForwardOnly,
    /// The same, with what is known of that certificate at its end.
    AppendForward,
    /// It is what is known of the client's certificate, and nothing else.
    #[default]
    SanitizeSet,
    /// It goes on as it is.
    AlwaysForwardOnly,
}

/// What a server makes of headers whose names have an underscore: some applications take `x_role` for `x-role`. The later is
/// the stricter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeadersWithUnderscores {
    /// They pass. Envoy's default, and Istio's.
    #[default]
    Allow,
    /// They are taken off.
    Drop,
    /// Their requests are refused with 400.
    Reject,
}

impl HttpManager {
    /// These routes, without filters and without a limit of streams. Paths stay as they were sent.
    pub fn new(routes: RouteSource) -> Self {
        HttpManager {
            routes,
            filters: Vec::new(),
            max_stream_duration: None,
            paths: PathNormalization::NONE,
            underscores: HeadersWithUnderscores::Allow,
            access_logs: Arc::default(),
            metrics: None,
            tracing: None,
            trust: EdgeTrust::default(),
            grpc_web: false,
        }
    }

    /// Whether the filters of both are the same, and what is made of a request before they see it.
    fn filters_as(&self, other: &HttpManager) -> bool {
        self.filters == other.filters && self.paths == other.paths && self.underscores == other.underscores
    }
}

/// Where routes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RouteSource {
    /// The RouteConfiguration of this name.
    Named(RouteName),
    /// Inline.
    Inline(Arc<RouteConfiguration>),
}

/// A server's listener.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerListener {
    /// Its name.
    pub name: ListenerName,
    /// The address that it must be bound to (gRFC A36).
    pub address: SocketAddr,
    /// Alternatives; the most specific match wins.
    pub filter_chains: Vec<FilterChain>,
    /// Where nothing matches.
    pub default_filter_chain: Option<FilterChain>,
    /// The service that it serves, for telemetry (`metadata.filter_metadata["istio"].services[0]`).
    pub service: Option<Arc<ServiceNames>>,
    /// The labels by which the control plane knows the workload, where it knows more of them than that says
    /// (`metadata.filter_metadata["mesh-control"]`): those that telemetry has a use for.
    pub labels: Vec<(&'static str, Arc<str>)>,
    /// Whether every connection begins with a header of the PROXY protocol, which says whose it is. For gateways.
    pub proxy_protocol: bool,
    /// Whether what clients ask for by TLS that is not ended here is looked at (SNI), even where no chain depends on it: policies and
    /// logs may. For gateways.
    pub inspects_tls: bool,
}

impl ServerListener {
    /// The listener of this name and address. It has no filter chain, and so takes no connection, until it is given one.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use mesh_core::model::{
    ///     FilterChain, HttpManager, Route, RouteAction, RouteConfiguration, RouteMatch, RouteSource, ServerListener,
    ///     VirtualHost,
    /// };
    ///
    /// let route = Route::new(RouteMatch::any(), RouteAction::NonForwarding);
    /// let routes = RouteConfiguration::new(vec![VirtualHost::new(["*"], vec![route])]);
    /// let http = HttpManager::new(RouteSource::Inline(Arc::new(routes)));
    /// let mut listener = ServerListener::new("inbound", "127.0.0.1:8080".parse().unwrap());
    /// listener.default_filter_chain = Some(FilterChain::new("default", http));
    /// ```
    pub fn new(name: impl Into<ListenerName>, address: SocketAddr) -> Self {
        ServerListener {
            name: name.into(),
            address,
            filter_chains: Vec::new(),
            default_filter_chain: None,
            service: None,
            labels: Vec::new(),
            proxy_protocol: false,
            inspects_tls: false,
        }
    }

    /// All chains, the default one last.
    pub fn chains(&self) -> impl Iterator<Item = &FilterChain> {
        self.filter_chains.iter().chain(&self.default_filter_chain)
    }

    /// Whether it has plaintext that a later version does not want any more: that one asks for TLS where this one does not, or
    /// for less plaintext beside it. `later` is what each of its chains takes, and whether in TLS; what nobody can read is
    /// like nothing else.
    pub(crate) fn has_plaintext_beyond(&self, later: &[(Option<FilterChainMatch>, bool)]) -> bool {
        let is_secured = |wanted: &FilterChainMatch| {
            self.chains().any(|chain| chain.tls != ServerTls::None && chain.matches == *wanted)
        };
        let stays = |wanted: &FilterChainMatch| {
            later.iter().any(|(matches, is_tls)| !is_tls && matches.as_ref() == Some(wanted))
        };
        let mut asked = later.iter().filter(|(_, is_tls)| *is_tls).peekable();
        let mut in_plaintext = self.chains().filter(|chain| chain.tls == ServerTls::None).peekable();
        asked.peek().is_some()
            && in_plaintext.peek().is_some()
            && !(asked.all(|(matches, _)| matches.as_ref().is_some_and(is_secured))
                && in_plaintext.all(|chain| stays(&chain.matches)))
    }

    /// Whether a later version has the same filters for every connection, and they see the same of its requests: then it lets
    /// in whom this one does, as far as its routes say nothing else.
    pub(crate) fn has_filters_of(&self, later: &ServerListener) -> bool {
        let (mut own, mut others) = (self.chains(), later.chains());
        let is_one =
            |first: &FilterChain| self.chains().chain(later.chains()).all(|chain| chain.http.filters_as(&first.http));
        self.chains().next().is_some_and(is_one)
            || self.filter_chains.len() == later.filter_chains.len()
                && std::iter::from_fn(|| match (own.next(), others.next()) {
                    (None, None) => None,
                    (Some(own), Some(other)) => Some(own.matches == other.matches && own.http.filters_as(&other.http)),
                    _ => Some(false),
                })
                .all(|is_alike| is_alike)
    }

    /// The same, with nothing let in in plaintext, for this reason. What is secured stays.
    pub(crate) fn without_plaintext(&self, reason: &Arc<str>) -> Self {
        self.closed(reason, |tls| *tls == ServerTls::None)
    }

    /// The same, with no connection let in, for this reason, to chains that are like this.
    pub(crate) fn closed(&self, reason: &Arc<str>, is_meant: impl Fn(&ServerTls) -> bool) -> Self {
        let mut closed = self.clone();
        for chain in closed.filter_chains.iter_mut().chain(&mut closed.default_filter_chain) {
            if is_meant(&chain.tls) {
                chain.tls = ServerTls::Unusable(Arc::clone(reason));
            }
        }
        closed
    }
}

/// One way to treat an accepted connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilterChain {
    /// Its name, for messages.
    pub name: Arc<str>,
    /// Which connections it takes.
    pub matches: FilterChainMatch,
    /// Routes and filters.
    pub http: HttpManager,
    /// Whether its connections are secured.
    pub tls: ServerTls,
    /// Where a gateway sends its connections, where nobody looks into them: the first route of the one host is for all of them.
    /// `None`: they carry HTTP.
    pub connections: Option<Arc<RouteConfiguration>>,
}

/// Whether the connections of a filter chain are secured. Exhaustive: whoever lets a connection in has to know each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ServerTls {
    /// Nothing was said: plaintext.
    #[default]
    None,
    /// Mutual TLS: whoever connects shows a certificate of a trusted domain.
    Mutual,
    /// TLS by certificates that the control plane delivers, with clients that need not be of the mesh.
    Edge(Arc<EdgeTls>),
    /// TLS that this build cannot provide: connections are refused with this reason.
    Unusable(Arc<str>),
}

impl FilterChain {
    /// A chain that takes every connection, in plaintext.
    pub fn new(name: impl Into<Arc<str>>, http: HttpManager) -> Self {
        FilterChain {
            name: name.into(),
            matches: FilterChainMatch::default(),
            http,
            tls: ServerTls::None,
            connections: None,
        }
    }
}

/// Which connections a filter chain takes (gRFC A36's subset). Prefixes are (address, length in bits).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilterChainMatch {
    /// Destination prefixes; empty = any.
    pub destination: Vec<(IpAddr, u8)>,
    /// `Some(true)`: only from this machine; `Some(false)`: only from others.
    pub source_is_local: Option<bool>,
    /// Source prefixes; empty = any.
    pub source: Vec<(IpAddr, u8)>,
    /// Source ports; empty = any.
    pub source_ports: Vec<u16>,
    /// `Some(true)`: only where the client speaks TLS; `Some(false)`: only in plaintext.
    pub is_tls: Option<bool>,
    /// Names that the client asks for (SNI), in lower case, exact or `*.` before a parent; empty = any, and none.
    pub server_names: Box<[Arc<str>]>,
}
