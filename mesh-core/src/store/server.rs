//! What a server is told: whether to serve, and by which filter chains.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::{
    AccessLog, FilterChain, FilterChainMatch, HeadersWithUnderscores, MetricRules, ServerListener, ServerTls, Tracing,
};
use crate::path::PathNormalization;
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
}

impl ChainView {
    /// A chain with these routes whose connections are let in, and whose paths and headers stay as they were sent.
    pub fn new(routes: Arc<RouteTable>) -> Self {
        let (paths, underscores) = (PathNormalization::NONE, HeadersWithUnderscores::Allow);
        let (tls, access_logs) = (ServerTls::None, Arc::default());
        ChainView { routes, tls, paths, underscores, access_logs, metrics: None, tracing: None }
    }

    /// Whether a connection may be served by this chain. `is_mutual_tls` says whether its peer has shown who it is.
    ///
    /// # Errors
    /// The reason why it may not. One that was made before the configuration asked for TLS cannot meet the demand.
    pub fn admits(&self, is_mutual_tls: bool) -> Result<(), Arc<str>> {
        match &self.tls {
            ServerTls::None => Ok(()),
            ServerTls::Mutual if is_mutual_tls => Ok(()),
            ServerTls::Mutual => Err("mutual TLS is required".into()),
            ServerTls::Unusable(reason) => Err(Arc::clone(reason)),
        }
    }
}

impl ServerView {
    /// This listener with its chains, compiled, the default one last.
    pub fn new(listener: Arc<ServerListener>, chains: Vec<ChainView>) -> Self {
        let asks_for_tls = chains.iter().any(|chain| chain.tls != ServerTls::None)
            || listener.chains().any(|chain| chain.matches.is_tls.is_some());
        ServerView { listener, chains, asks_for_tls }
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

    /// Whether anything of it depends on whether a client speaks TLS.
    pub fn asks_for_tls(&self) -> bool {
        self.asks_for_tls
    }

    /// The chain of a connection: the most specific match by destination, then by whether it speaks TLS, then by where it
    /// comes from, then by source address, then by source port; else the default (gRFC A36; Envoy's order).
    pub fn chain(&self, local: SocketAddr, peer: SocketAddr, is_tls: bool) -> Option<&ChainView> {
        let ranked = self.listener.filter_chains.iter().zip(&self.chains);
        let best = ranked
            .filter_map(|(chain, view)| Some((specificity(&chain.matches, local, peer, is_tls)?, view)))
            .max_by_key(|(rank, _)| *rank);
        let default = |_: &FilterChain| self.chains.get(self.listener.filter_chains.len());
        best.map(|(_, view)| view).or_else(|| self.listener.default_filter_chain.as_ref().and_then(default))
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
