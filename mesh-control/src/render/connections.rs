//! Where connections go whose bytes are not HTTP, as filter chains with a `TcpProxy` (Istio: networkfilter.go).

use envoy_types::pb::envoy::config::accesslog::v3::AccessLog;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, TunnelingConfig, WeightedCluster, weighted_cluster::ClusterWeight,
};

use super::BLACK_HOLE;
use super::proto::{any, duration, number};
use crate::policy::connections::Connections;
use crate::policy::route::ClusterKey;

/// A connection that cannot be made costs nothing yet: it is tried as often as a request is. In Istio it is tried once.
const ATTEMPTS: u32 = 3;

/// Those of the library, which asks proxies by CONNECT only: what should go by POST goes nowhere.
pub(super) fn filter_chains(ways: Vec<Connections>) -> Vec<pb::FilterChain> {
    let known = ways.into_iter().map(|mut way| {
        if way.tunnel.take_if(|tunnel| tunnel.by_post).is_some() {
            way.targets.clear();
        }
        way
    });
    // A client logs them where it logs requests.
    known.map(|way| filter_chain(&way, Vec::new())).collect()
}

/// Connections that are logged so.
pub(super) fn filter_chain(way: &Connections, access_log: Vec<AccessLog>) -> pb::FilterChain {
    let specifier = match way.targets.as_slice() {
        [] => ClusterSpecifier::Cluster(BLACK_HOLE.to_owned()),
        [(only, _)] => ClusterSpecifier::Cluster(only.to_string()),
        several => {
            ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: several.iter().map(weighted).collect() })
        }
    };
    let proxy = TcpProxy {
        stat_prefix: way.name.clone(),
        cluster_specifier: Some(specifier),
        idle_timeout: way.idle_timeout.map(duration),
        access_log,
        max_connect_attempts: number(ATTEMPTS),
        tunneling_config: way.tunnel.as_ref().map(|tunnel| TunnelingConfig {
            hostname: tunnel.authority.clone(),
            use_post: tunnel.by_post,
            ..Default::default()
        }),
        ..Default::default()
    };
    let by_name = pb::FilterChainMatch {
        server_names: way.server_names.clone(),
        transport_protocol: "tls".to_owned(),
        ..Default::default()
    };
    pb::FilterChain {
        name: way.name.clone(),
        filter_chain_match: (!way.server_names.is_empty()).then_some(by_name),
        filters: vec![pb::Filter {
            name: "envoy.filters.network.tcp_proxy".to_owned(),
            config_type: Some(ConfigType::TypedConfig(any(&proxy))),
        }],
        ..Default::default()
    }
}

fn weighted((key, weight): &(ClusterKey, u32)) -> ClusterWeight {
    ClusterWeight { name: key.to_string(), weight: *weight, metadata_match: None }
}
