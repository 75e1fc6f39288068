//! What a server is told: whether to serve, and by which filter chains.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use smallvec::SmallVec;
use tokio_rustls::rustls::ServerConfig;

use crate::model::{
    AccessLog, EdgeTls, EdgeTrust, FilterChain, FilterChainMatch, HeadersWithUnderscores, MetricRules, ServerListener,
    ServerTls, Tracing,
};
use crate::path::PathNormalization;
use crate::store::TargetEntry;
use crate::tls::{ClientVerifier, EdgeClient};
use crate::view::RouteTable;

/// Whether a server may serve (gRFC A36). Exhaustive: one more must not pass for one that may.
#[derive(Clone, Debug)]
pub enum ServerState {
    /// Nothing is known yet.
    Waiting,
    /// It may, in this way.
    Serving(Arc<ServerView>),
    /// It may not, and why.
    NotServing(Arc<str>),
}

/// A server's configuration, compiled.
#[derive(Debug)]
#[non_exhaustive]
pub struct ServerView {
    /// The listener that it was made of.
    pub listener: Arc<ServerListener>,
    /// Its chains, the default one last.
    pub chains: Vec<ChainView>,
    asks_for_tls: bool,
    reads_names: bool,
    names: Names,
}

/// One filter chain, compiled.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ChainView {
    /// Its routes.
    pub routes: Arc<RouteTable>,
    /// Whether its connections are secured.
    pub tls: ServerTls,
    /// What is made of the paths of its requests.
    pub paths: PathNormalization,
    /// What is made of their headers whose names have an underscore.
    pub underscores: HeadersWithUnderscores,
    /// Where its requests are logged.
    pub access_logs: Arc<[AccessLog]>,
    /// How they are counted, where that is otherwise than usual.
    pub metrics: Option<Arc<MetricRules>>,
    /// How its requests are traced; `None` where that is the application's to say.
    pub tracing: Option<Arc<Tracing>>,
    /// How clients shake hands, where that is by secrets.
    pub edge: Option<Arc<Edge>>,
    /// Where a gateway finds out where its requests, or its connections, go on to.
    pub onward: Option<Arc<TargetEntry>>,
    /// Whether nobody looks into its connections.
    pub is_opaque: bool,
    /// What a gateway believes of those in front of it.
    pub trust: EdgeTrust,
    /// Whether a gateway makes gRPC of gRPC-Web.
    pub grpc_web: bool,
}

/// How the clients of a chain shake hands, where that is by secrets.
#[derive(Debug)]
#[non_exhaustive]
pub struct Edge {
    /// By which rules.
    pub tls: Arc<EdgeTls>,
    /// The secrets that they name, or why one is not known.
    pub(super) secrets: Vec<Result<Arc<crate::model::Secret>, Arc<str>>>,
    /// The same as a server has it, or why there is none.
    pub config: Result<Arc<ServerConfig>, Arc<str>>,
    /// When the certificates end that it shows, by the names of their secrets.
    pub ends: Vec<(Arc<str>, SystemTime)>,
    /// Who verifies what clients show, where they are asked for something, or why nobody can.
    pub(super) clients: Result<Option<Arc<ClientVerifier>>, Arc<str>>,
}

impl Edge {
    /// Whether a client that has shaken hands would be let in by what it has shown, as far as it is known now who is to be trusted.
    ///
    /// # Errors
    /// Why it would not.
    pub fn vouches_for(&self, client: &EdgeClient, now: SystemTime) -> Result<(), Arc<str>> {
        match &self.clients {
            Ok(clients) => clients.as_ref().map_or(Ok(()), |clients| clients.check(client, now)),
            Err(reason) => Err(Arc::clone(reason)),
        }
    }
}

/// How a connection was secured.
#[derive(Clone, Copy, Debug)]
pub enum Secured<'c> {
    /// It was not.
    Plaintext,
    /// By mutual TLS of the mesh: its peer has shown who it is.
    Mutual,
    /// By these rules of a gateway.
    Edge(&'c Arc<EdgeTls>),
    /// It will be as its chain wants it: its client begins a handshake.
    Willing,
}

/// Which chains are for the names that clients ask for, by their places.
#[derive(Debug, Default)]
struct Names {
    exact: HashMap<Arc<str>, Vec<usize>>,
    /// By the parent, with its leading dot.
    below: HashMap<Box<str>, Vec<usize>>,
    /// Those for any name, and for none.
    any: Vec<usize>,
}

impl Names {
    fn new(chains: &[FilterChain]) -> Self {
        let mut names = Names::default();
        for (place, chain) in chains.iter().enumerate() {
            if chain.matches.server_names.is_empty() {
                names.any.push(place);
            }
            for name in &chain.matches.server_names {
                match name.strip_prefix('*') {
                    Some(parent) => names.below.entry(parent.into()).or_default().push(place),
                    None => names.exact.entry(Arc::clone(name)).or_default().push(place),
                }
            }
        }
        names
    }

    fn are_none(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty()
    }

    /// The chains that are for a name, each with how well it fits: exactly, or by how long a parent.
    fn of<'n>(&'n self, name: Option<&str>) -> impl Iterator<Item = (u16, usize)> + use<'n> {
        let mut found: SmallVec<[(u16, &[usize]); 4]> = SmallVec::new();
        if let Some(name) = name.filter(|_| !self.are_none()) {
            let name = match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                true => Cow::Owned(name.to_ascii_lowercase()),
                false => Cow::Borrowed(name),
            };
            if let Some(places) = self.exact.get(&*name) {
                found.push((u16::MAX, places));
            }
            let dots = name.match_indices('.').map(|(dot, _)| name.get(dot..).unwrap_or_default());
            for parent in dots.filter(|_| !self.below.is_empty()) {
                if let Some(places) = self.below.get(parent) {
                    found.push((u16::try_from(parent.len()).unwrap_or(u16::MAX - 1), places));
                }
            }
        }
        let any = self.any.iter().map(|place| (0, *place));
        found.into_iter().flat_map(|(rank, places)| places.iter().map(move |place| (rank, *place))).chain(any)
    }
}

impl ChainView {
    /// A chain with these routes whose connections are let in, and whose paths and headers stay as they were sent.
    pub fn new(routes: Arc<RouteTable>) -> Self {
        ChainView {
            routes,
            tls: ServerTls::None,
            paths: PathNormalization::NONE,
            underscores: HeadersWithUnderscores::Allow,
            access_logs: Arc::default(),
            metrics: None,
            tracing: None,
            edge: None,
            onward: None,
            is_opaque: false,
            trust: EdgeTrust::default(),
            grpc_web: false,
        }
    }

    /// Whether a connection may be served by this chain.
    ///
    /// # Errors
    /// The reason why it may not. One that was made before the configuration asked for TLS, or for TLS by other rules, cannot meet
    /// the demand.
    pub fn admits(&self, secured: Secured<'_>) -> Result<(), Arc<str>> {
        match (&self.tls, secured) {
            (ServerTls::Unusable(reason), _) => Err(Arc::clone(reason)),
            (ServerTls::None, _) | (ServerTls::Mutual, Secured::Mutual | Secured::Willing) => Ok(()),
            (ServerTls::Mutual, _) => Err("mutual TLS is required".into()),
            (ServerTls::Edge(_), Secured::Willing) => match self.edge.as_ref().map(|edge| &edge.config) {
                Some(Ok(_)) => Ok(()),
                Some(Err(reason)) => Err(Arc::clone(reason)),
                None => Err("its certificates are not known".into()),
            },
            (ServerTls::Edge(rules), Secured::Edge(kept)) if rules == kept => Ok(()),
            (ServerTls::Edge(_), Secured::Edge(_)) => Err("TLS by other rules is required".into()),
            (ServerTls::Edge(_), _) => Err("TLS is required".into()),
        }
    }
}

impl ServerView {
    /// This listener with its chains, compiled, the default one last.
    pub fn new(listener: Arc<ServerListener>, chains: Vec<ChainView>) -> Self {
        let names = Names::new(&listener.filter_chains);
        let asks_for_tls = chains.iter().any(|chain| chain.tls != ServerTls::None)
            || listener.chains().any(|chain| chain.matches.is_tls.is_some())
            || !names.are_none();
        let passes_tls = chains.iter().any(|chain| chain.is_opaque && chain.tls == ServerTls::None);
        let reads_names = !names.are_none() || (listener.inspects_tls && passes_tls);
        ServerView { listener, chains, asks_for_tls, reads_names, names }
    }

    /// What becomes of it while a later version of its listener is not complete; `None` where it may stay as it is. Plaintext
    /// that the later one does not want is closed. Where its filters are others, nobody knows yet whom it lets in, so that
    /// nobody is.
    pub(super) fn until_complete(&self, later: &ServerListener) -> Option<ServerState> {
        let because = |what: &str| format!("listener {}: {what}, and its routes are not known yet", later.name).into();
        let chains = later.chains().map(|chain| (Some(chain.matches.clone()), chain.tls != ServerTls::None));
        let is_to_be_secured = self.listener.has_plaintext_beyond(&chains.collect::<Vec<_>>());
        let has_same_filters = self.listener.has_filters_of(later);
        let listener = match (is_to_be_secured, has_same_filters) {
            (false, true) => return None,
            (false, false) => return Some(ServerState::NotServing(because("its filters have changed"))),
            (true, true) => self.listener.without_plaintext(&because("TLS is asked for")),
            (true, false) => self.listener.closed(&because("TLS is asked for, its filters have changed"), |_| true),
        };
        let chains = listener.chains().zip(&self.chains);
        let chains = chains.map(|(chain, view)| ChainView { tls: chain.tls.clone(), ..view.clone() }).collect();
        Some(ServerState::Serving(Arc::new(ServerView::new(Arc::new(listener), chains))))
    }

    /// Whether clients of its chains are verified as by another one: by the very same verifiers.
    pub fn verifies_like(&self, other: &ServerView) -> bool {
        let of = |chain: &ChainView| Some(chain.edge.as_ref()?.clients.as_ref().ok()?.as_ref().map(Arc::as_ptr));
        self.chains.iter().map(of).eq(other.chains.iter().map(of))
    }

    /// Whether anything of it depends on whether a client speaks TLS.
    pub fn asks_for_tls(&self) -> bool {
        self.asks_for_tls
    }

    /// Whether the name that a client asks for is read before there is a handshake: which chain takes it depends on that, or there is
    /// no handshake here, and policies may be about the name.
    pub fn reads_names(&self) -> bool {
        self.reads_names
    }

    /// Whether which chain takes a client depends on the name that it asks for.
    pub fn asks_for_names(&self) -> bool {
        !self.names.are_none()
    }

    /// The chain of a connection: the most specific match by destination, then by the name that it asks for (exactly, or by the
    /// longest parent), then by whether it speaks TLS, then by where it comes from, then by source address, then by source port;
    /// else the default (gRFC A36; Envoy's order).
    pub fn chain(
        &self,
        local: SocketAddr,
        peer: SocketAddr,
        is_tls: bool,
        server_name: Option<&str>,
    ) -> Option<&ChainView> {
        let best = self
            .names
            .of(server_name)
            .filter_map(|(name, place)| {
                let chain = self.listener.filter_chains.get(place)?;
                let [destination, rest @ ..] = specificity(&chain.matches, local, peer, is_tls)?;
                Some(((destination, name, rest), place))
            })
            .max_by_key(|(rank, _)| *rank);
        let default = || self.listener.default_filter_chain.as_ref().map(|_| self.listener.filter_chains.len());
        self.chains.get(best.map(|(_, place)| place).or_else(default)?)
    }
}

/// How specifically a chain matches a connection, in the order in which that counts; `None` if it does not.
fn specificity(matches: &FilterChainMatch, local: SocketAddr, peer: SocketAddr, is_tls: bool) -> Option<[u16; 5]> {
    let prefix = |prefixes: &[(std::net::IpAddr, u8)], ip| {
        if prefixes.is_empty() {
            return Some(0);
        }
        let fits = prefixes.iter().filter(|(network, length)| contains(*network, *length, ip));
        fits.map(|(_, length)| u16::from(*length) + 1).max()
    };
    let transport = match matches.is_tls {
        None => 0,
        Some(wanted) if wanted == is_tls => 1,
        Some(_) => return None,
    };
    let is_local = peer.ip().is_loopback() || peer.ip() == local.ip();
    let source = match matches.source_is_local {
        None => 0,
        Some(wanted) if wanted == is_local => 1,
        Some(_) => return None,
    };
    let port = match matches.source_ports.as_slice() {
        [] => 0,
        ports if ports.contains(&peer.port()) => 1,
        _ => return None,
    };
    let (destination, peers) = (prefix(&matches.destination, local.ip())?, prefix(&matches.source, peer.ip())?);
    Some([destination, transport, source, peers, port])
}

fn contains(network: std::net::IpAddr, length: u8, ip: std::net::IpAddr) -> bool {
    use std::net::IpAddr::{V4, V6};
    let (network, ip, width): (u128, u128, u32) = match (network, ip.to_canonical()) {
        (V4(network), V4(ip)) => (u128::from(network.to_bits()), u128::from(ip.to_bits()), 32),
        (V6(network), V6(ip)) => (network.to_bits(), ip.to_bits(), 128),
        _ => return false,
    };
    let shift = width.saturating_sub(u32::from(length));
    network.checked_shr(shift).unwrap_or(0) == ip.checked_shr(shift).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::FilterRegistry;
    use crate::model::{HttpManager, RouteSource};
    use crate::state::States;

    #[test]
    fn the_most_specific_chain_is_the_one_that_counts() {
        let local: SocketAddr = "10.1.2.3:80".parse().unwrap();
        let peer: SocketAddr = "10.9.9.9:5000".parse().unwrap();
        let net = |text: &str, length| (text.parse().unwrap(), length);
        let any = FilterChainMatch::default();
        let cases = [
            (any.clone(), Some([0, 0, 0, 0, 0])),
            (
                FilterChainMatch { destination: vec![net("10.0.0.0", 8), net("10.1.0.0", 16)], ..any.clone() },
                Some([17, 0, 0, 0, 0]),
            ),
            (FilterChainMatch { destination: vec![net("11.0.0.0", 8)], ..any.clone() }, None),
            (FilterChainMatch { source_is_local: Some(true), ..any.clone() }, None),
            (FilterChainMatch { source_is_local: Some(false), ..any.clone() }, Some([0, 0, 1, 0, 0])),
            (FilterChainMatch { source: vec![net("0.0.0.0", 0)], ..any.clone() }, Some([0, 0, 0, 1, 0])),
            (FilterChainMatch { source_ports: vec![5000], ..any.clone() }, Some([0, 0, 0, 0, 1])),
            (FilterChainMatch { source_ports: vec![1], ..any.clone() }, None),
            (FilterChainMatch { is_tls: Some(true), ..any.clone() }, Some([0, 1, 0, 0, 0])),
            (FilterChainMatch { is_tls: Some(false), ..any }, None),
        ];
        for (matches, expected) in cases {
            assert_eq!(specificity(&matches, local, peer, true), expected, "{matches:?}");
        }
    }

    #[test]
    fn the_name_that_a_client_asks_for_finds_its_chain_exactly_or_by_the_longest_parent() {
        let mut listener = ServerListener::new("l", "127.0.0.1:443".parse().unwrap());
        let chain = |names: &[&str]| {
            let server_names = names.iter().map(|&name| name.into()).collect();
            let matches = FilterChainMatch { server_names, ..FilterChainMatch::default() };
            FilterChain {
                matches,
                ..FilterChain::new(names.concat(), HttpManager::new(RouteSource::Named("r".into())))
            }
        };
        listener.filter_chains =
            vec![chain(&["*.example"]), chain(&["shop.example", "b.a.example"]), chain(&["*.a.example"])];
        listener.default_filter_chain = Some(chain(&[]));
        let (registry, states) = (FilterRegistry::default(), States::new(Arc::default(), Arc::default()));
        let http = HttpManager::new(RouteSource::Inline(Arc::default()));
        let routes = Arc::new(RouteTable::compile(Arc::default(), &http, &registry, &states, "l").unwrap());
        let views: Vec<_> = listener.chains().map(|_| ChainView::new(Arc::clone(&routes))).collect();
        let view = ServerView::new(Arc::new(listener), views);
        let [local, peer] = ["127.0.0.1:443", "10.0.0.1:9"].map(|address| address.parse::<SocketAddr>().unwrap());
        let found = |name: Option<&str>| {
            let found = view.chain(local, peer, true, name)?;
            view.chains.iter().position(|chain| std::ptr::eq(chain, found))
        };
        for (name, place) in [
            (Some("shop.example"), 1),
            (Some("SHOP.example"), 1),
            (Some("other.example"), 0),
            (Some("x.y.example"), 0),
            (Some("b.a.example"), 1),
            (Some("c.a.example"), 2),
            (Some("a.example"), 0),
            (Some("example"), 3),
            (Some("other.test"), 3),
            (Some(""), 3),
            (None, 3),
        ] {
            assert_eq!(found(name), Some(place), "{name:?}");
        }
    }

    #[test]
    fn while_routes_are_not_known_nobody_is_let_in_by_filters_or_tls_of_the_version_before() {
        let chain = |tls: &ServerTls, is_tls, paths| {
            let mut http = HttpManager::new(RouteSource::Named("r".into()));
            http.paths = paths;
            let matches = FilterChainMatch { is_tls, ..FilterChainMatch::default() };
            FilterChain { matches, tls: tls.clone(), ..FilterChain::new("c", http) }
        };
        let listener = |chains: Vec<FilterChain>| {
            let mut listener = ServerListener::new("l", "127.0.0.1:80".parse().unwrap());
            listener.filter_chains = chains;
            listener
        };
        let (old, new) = (PathNormalization::NONE, PathNormalization::BASE);
        let permissive = |paths| {
            let secured = chain(&ServerTls::Mutual, Some(true), paths);
            listener(vec![secured, chain(&ServerTls::None, Some(false), paths)])
        };
        let strict = |paths| listener(vec![chain(&ServerTls::Mutual, None, paths)]);
        let present = permissive(old);
        let routes = || {
            let (registry, states) = (FilterRegistry::default(), States::new(Arc::default(), Arc::default()));
            let http = HttpManager::new(RouteSource::Inline(Arc::default()));
            Arc::new(RouteTable::compile(Arc::default(), &http, &registry, &states, "l").unwrap())
        };
        let views =
            present.filter_chains.iter().map(|chain| ChainView { tls: chain.tls.clone(), ..ChainView::new(routes()) });
        let view = ServerView::new(Arc::new(present.clone()), views.collect());
        let closed = |later: &ServerListener| match view.until_complete(later) {
            None => "serves on".to_owned(),
            Some(ServerState::Serving(view)) => {
                let is_closed = view.chains.iter().map(|chain| matches!(chain.tls, ServerTls::Unusable(_)));
                format!("{:?}", is_closed.collect::<Vec<_>>())
            }
            Some(_) => "does not serve".to_owned(),
        };
        assert_eq!(closed(&permissive(old)), "serves on");
        assert_eq!(closed(&strict(old)), "[false, true]");
        assert_eq!(closed(&permissive(new)), "does not serve");
        assert_eq!(closed(&strict(new)), "[true, true]");
    }
}
