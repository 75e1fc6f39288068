//! Where a client's connections go whose bytes are not HTTP.

use std::time::Duration;

use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, TunnelingConfig, WeightedCluster, weighted_cluster::ClusterWeight,
};
use envoy_types::pb::google::protobuf::UInt32Value;

use super::{accept, all_rejected};
use crate::model::{Clusters, Listener, RetryCondition, RouteAction};
use crate::resources::{Resource, ResourceType};
use crate::testing::resources::{api_listener, pack};

fn chain(names: &[&str], proxy: &TcpProxy) -> pb::FilterChain {
    let matches = pb::FilterChainMatch {
        server_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    pb::FilterChain {
        name: names.join(" "),
        filter_chain_match: Some(matches),
        filters: vec![pb::Filter {
            name: "tcp".to_owned(),
            config_type: Some(pb::filter::ConfigType::TypedConfig(pack(proxy))),
        }],
        ..Default::default()
    }
}

fn to(cluster: &str) -> TcpProxy {
    TcpProxy { cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())), ..Default::default() }
}

fn tunnel() -> TunnelingConfig {
    TunnelingConfig { hostname: "db.example.com:5432".to_owned(), ..Default::default() }
}

fn through(tunnel: TunnelingConfig) -> TcpProxy {
    TcpProxy { tunneling_config: Some(tunnel), ..to("a") }
}

fn split(weights: &[u32]) -> TcpProxy {
    let share = |weight: &u32| ClusterWeight { name: format!("c{weight}"), weight: *weight, metadata_match: None };
    let clusters = WeightedCluster { clusters: weights.iter().map(share).collect() };
    TcpProxy { cluster_specifier: Some(ClusterSpecifier::WeightedClusters(clusters)), ..Default::default() }
}

fn listener(chains: Vec<pb::FilterChain>) -> pb::Listener {
    pb::Listener { filter_chains: chains, ..api_listener("db:5432", "r") }
}

#[test]
fn chains_of_a_client_are_routes_by_the_names_of_servers() {
    let proxy = TcpProxy {
        idle_timeout: Some(envoy_types::pb::google::protobuf::Duration { seconds: 7, nanos: 0 }),
        max_connect_attempts: Some(UInt32Value { value: 3 }),
        ..through(tunnel())
    };
    let mut message = listener(vec![chain(&["A.example", "*.b.example"], &proxy)]);
    message.default_filter_chain = Some(chain(&[], &split(&[1, 3])));
    let decoded = accept(ResourceType::Listener, &message);
    assert!(decoded.ignored.is_empty(), "{:?}", decoded.ignored);
    let Resource::Listener(listener) = decoded.resource else { panic!("it is a listener") };
    let Listener::Api(listener) = &*listener else { panic!("it is a client's") };
    let hosts = &listener.connections.as_ref().unwrap().virtual_hosts;
    let forwards: Vec<_> = hosts
        .iter()
        .map(|host| match &host.routes[0].action {
            RouteAction::Forward(forward) => (host.domains.join(" "), forward),
            other => panic!("{other:?}"),
        })
        .collect();
    let [(names, forward), (rest, split)] = forwards.as_slice() else { panic!("{hosts:?}") };
    assert_eq!((names.as_str(), rest.as_str()), ("a.example *.b.example", "*"));
    assert_eq!((&forward.clusters, forward.idle_timeout), (&Clusters::One("a".into()), Some(Duration::from_secs(7))));
    let retry = forward.retry.as_ref().unwrap();
    assert_eq!(forward.tunnel.as_ref().map(|tunnel| &*tunnel.authority), Some("db.example.com:5432"));
    assert!(split.tunnel.is_none());
    assert!(retry.retries == 2 && retry.on.contains(RetryCondition::ConnectFailure), "{retry:?}");
    assert!(matches!(&split.clusters, Clusters::Weighted(clusters) if clusters.len() == 2), "{split:?}");
    assert!(split.retry.is_none(), "once, as with Envoy");
}

#[test]
fn what_would_send_connections_elsewhere_is_refused() {
    fn first(listener: &mut pb::Listener) -> &mut pb::FilterChain {
        &mut listener.filter_chains[0]
    }
    fn criteria(listener: &mut pb::Listener) -> &mut pb::FilterChainMatch {
        first(listener).filter_chain_match.as_mut().unwrap()
    }
    fn proxy(listener: &mut pb::Listener, proxy: &TcpProxy) {
        first(listener).filters = chain(&[], proxy).filters;
    }
    all_rejected(
        ResourceType::Listener,
        &listener(vec![chain(&["a"], &to("a"))]),
        &[
            ("filter_chain_match.prefix_ranges: not known", |listener| {
                criteria(listener).prefix_ranges.push(Default::default());
            }),
            ("filter_chain_match.destination_port: not known", |listener| {
                criteria(listener).destination_port = Some(UInt32Value { value: 1 });
            }),
            ("filter_chain_match.application_protocols: not known", |listener| {
                criteria(listener).application_protocols.push("h2".to_owned());
            }),
            ("server_names: \"a*b\" is not the name of a server", |listener| {
                criteria(listener).server_names = vec!["a*b".to_owned()];
            }),
            ("two chains are for \"a\"", |listener| listener.filter_chains.push(chain(&["A"], &to("b")))),
            ("exactly one TcpProxy is needed", |listener| first(listener).filters.clear()),
            ("is not supported", |listener| {
                first(listener).filters[0].config_type =
                    Some(pb::filter::ConfigType::TypedConfig(pack(&pb::FilterChain::default())));
            }),
            ("transport_socket: a client's own", |listener| {
                first(listener).transport_socket = Some(Default::default())
            }),
            ("cluster_specifier: missing", |listener| proxy(listener, &TcpProxy::default())),
            ("weighted_clusters.clusters: there is none", |listener| proxy(listener, &split(&[]))),
            ("weight: must be at least 1", |listener| proxy(listener, &split(&[1, 0]))),
            ("weights add up", |listener| proxy(listener, &split(&[u32::MAX, 1]))),
            ("max_connect_attempts: must be at least 1", |listener| {
                proxy(listener, &TcpProxy { max_connect_attempts: Some(UInt32Value { value: 0 }), ..to("a") });
            }),
            ("tunneling_config.hostname: \"\" is not a host and a port", |listener| {
                proxy(listener, &through(TunnelingConfig::default()));
            }),
            ("tunneling_config.use_post: not supported", |listener| {
                proxy(listener, &through(TunnelingConfig { use_post: true, ..tunnel() }));
            }),
            ("tunneling_config.headers_to_add: not supported", |listener| {
                proxy(listener, &through(TunnelingConfig { headers_to_add: vec![Default::default()], ..tunnel() }));
            }),
            ("metadata_match: not supported", |listener| {
                proxy(listener, &TcpProxy { metadata_match: Some(Default::default()), ..to("a") });
            }),
        ],
    );
}
