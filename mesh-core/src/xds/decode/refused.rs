//! What a version that was refused says all the same: that something is to be secured which is in use in plaintext.
//!
//! A refused version leaves its predecessor in use. Where that is plaintext and the refused one asks for TLS, nobody knows
//! how, and still nobody may go on as before.

use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::listener::v3 as listener;

use super::common::parse;
use super::listener::chain_match;
use super::notes::Notes;
use super::{Options, tls};
use crate::model::{Cluster, ClusterTls, Listener, ServerListener};
use crate::resources::Resource;

/// The resource in use, without the plaintext that a refused version of it does not have any more; `None` where it may stay
/// as it is. What is secured stays.
pub(crate) fn without_plaintext(present: &Resource, refused: &[u8], reason: &Arc<str>) -> Option<Resource> {
    match present {
        Resource::Cluster(present) => {
            let refused = parse::<cluster::Cluster>(refused).ok()?;
            let mut closed = Cluster::clone(present);
            closed.tls = ClusterTls::Unusable(Arc::clone(reason));
            secures_cluster(&present.tls, refused).then(|| Resource::Cluster(Arc::new(closed)))
        }
        Resource::Listener(present) => {
            let Listener::Server(present) = &**present else { return None };
            let refused = parse::<listener::Listener>(refused).ok()?;
            let closed = || Resource::Listener(Arc::new(Listener::Server(present.without_plaintext(reason))));
            secures_listener(present, refused).then(closed)
        }
        Resource::Route(_) | Resource::Endpoints(_) | Resource::Secret(_) => None,
    }
}

/// Whether a version of a cluster asks for TLS where the present one may send plaintext.
fn secures_cluster(present: &ClusterTls, refused: cluster::Cluster) -> bool {
    let cluster::Cluster { transport_socket, transport_socket_matches, .. } = refused;
    let of_endpoints = transport_socket_matches.iter().map(|one| one.transport_socket.as_ref());
    let asks = of_endpoints.chain([transport_socket.as_ref()]).flatten().any(tls::is_asked_for);
    let by_mark = |matches| tls::of_endpoints(&mut Notes::new(&Options::default()), matches, false);
    match present {
        ClusterTls::Mutual(_) | ClusterTls::Foreign(_) | ClusterTls::Unusable(_) => false,
        ClusterTls::None => asks,
        // Plaintext to those that are not marked is what the refused one wants, too.
        ClusterTls::MutualWhereMarked(_) => {
            asks && !matches!(by_mark(transport_socket_matches), Ok(ClusterTls::MutualWhereMarked(_)))
        }
    }
}

/// Whether a version of a listener asks for TLS where the present one does not, or for less plaintext beside it.
fn secures_listener(present: &ServerListener, refused: listener::Listener) -> bool {
    let listener::Listener { filter_chains, default_filter_chain, .. } = refused;
    let default_filter_chain = default_filter_chain.map(|mut chain| {
        chain.filter_chain_match = None;
        chain
    });
    // What a match means that cannot be read, nobody knows: it is like no other.
    let refused: Vec<_> = filter_chains
        .into_iter()
        .chain(default_filter_chain)
        .map(|chain| {
            let matches = chain_match(&mut Notes::new(&Options::default()), chain.filter_chain_match);
            (matches.ok().flatten(), chain.transport_socket.as_ref().is_some_and(tls::is_asked_for))
        })
        .collect();
    present.has_plaintext_beyond(&refused)
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3 as core;
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;

    use super::*;
    use crate::model::{FilterChain, HttpManager, RouteConfiguration, RouteSource, ServerTls};

    /// A chain by its transport, and whether it asks for TLS.
    type Chain = (&'static str, bool);

    fn refused(chains: &[Chain]) -> listener::Listener {
        let config = || {
            let value = prost::Message::encode_to_vec(&DownstreamTlsContext::default());
            let url = <DownstreamTlsContext as prost::Name>::type_url();
            let any = envoy_types::pb::google::protobuf::Any { type_url: url, value };
            let config_type = Some(core::transport_socket::ConfigType::TypedConfig(any));
            core::TransportSocket { name: "tls".to_owned(), config_type }
        };
        let chain = |(transport, is_tls): &Chain| listener::FilterChain {
            filter_chain_match: Some(listener::FilterChainMatch {
                transport_protocol: (*transport).to_owned(),
                ..Default::default()
            }),
            transport_socket: is_tls.then(config),
            ..Default::default()
        };
        listener::Listener { filter_chains: chains.iter().map(chain).collect(), ..Default::default() }
    }

    fn present(chains: &[Chain]) -> ServerListener {
        let mut listener = ServerListener::new("l", "127.0.0.1:1".parse().expect("an address"));
        let chains = chains.iter().map(|(transport, is_tls)| {
            let routes = RouteSource::Inline(Arc::new(RouteConfiguration::new(Vec::new())));
            let mut chain = FilterChain::new("", HttpManager::new(routes));
            chain.matches.is_tls = (!transport.is_empty()).then_some(*transport == "tls");
            chain.tls = if *is_tls { ServerTls::Mutual } else { ServerTls::None };
            chain
        });
        listener.filter_chains = chains.collect();
        listener
    }

    #[test]
    fn plaintext_stays_only_where_the_refused_version_has_it_too_and_asks_for_no_more_tls() {
        const STRICT: &[Chain] = &[("", true)];
        const PERMISSIVE: &[Chain] = &[("tls", true), ("raw_buffer", false)];
        const OPEN: &[Chain] = &[("", false)];
        let cases: [(&[Chain], &[Chain], bool); 9] = [
            (OPEN, OPEN, false),
            (OPEN, &[], false),
            (OPEN, STRICT, true),
            (OPEN, PERMISSIVE, true),
            (OPEN, &[("", false), ("quic", true)], true),
            (PERMISSIVE, PERMISSIVE, false),
            (PERMISSIVE, STRICT, true),
            (PERMISSIVE, &[("tls", true)], true),
            (STRICT, STRICT, false),
        ];
        for (before, after, closes) in cases {
            assert_eq!(secures_listener(&present(before), refused(after)), closes, "{before:?} {after:?}");
        }
    }

    #[test]
    fn what_is_secured_stays_and_plaintext_has_the_reason() {
        let present = Resource::Listener(Arc::new(Listener::Server(present(&[("tls", true), ("raw_buffer", false)]))));
        let refused = prost::Message::encode_to_vec(&refused(&[("", true)]));
        let reason: Arc<str> = "why".into();
        let closed = without_plaintext(&present, &refused, &reason).expect("it is closed");
        let Resource::Listener(listener) = &closed else { panic!("another kind") };
        let Listener::Server(listener) = &**listener else { panic!("another kind") };
        let tls: Vec<_> = listener.chains().map(|chain| chain.tls.clone()).collect();
        assert_eq!(tls, [ServerTls::Mutual, ServerTls::Unusable(Arc::clone(&reason))]);
        assert_eq!(without_plaintext(&closed, &refused, &reason), None, "there is nothing more to be closed");
        assert_eq!(without_plaintext(&present, b"no protobuf", &reason), None);
    }
}
