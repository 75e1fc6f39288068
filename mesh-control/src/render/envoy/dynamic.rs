//! Hosts that stand for many and are looked up when they are called (`resolution: DYNAMIC_DNS`): Envoy's dynamic forward proxy, by
//! the authority of a request or the server name of TLS (Istio: cluster_builder.go, networkfilter.go).

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CustomClusterType, DnsLookupFamily, LbPolicy,
};
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3 as cluster;
use envoy_types::pb::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use envoy_types::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as sni;

use super::super::proto::{any, duration};
use super::{DNS_REFRESH, proxy};
use crate::policy::Cluster;
use crate::registry::Discovery;

/// Whether it is a cluster of such a host.
pub(super) fn is_dynamic(seen: &Cluster<'_>) -> bool {
    seen.service.discovery == Discovery::Dynamic && seen.key.host.starts_with('*')
}

/// What it knows of names. All that have the same name for it have to say the same.
fn cache() -> DnsCacheConfig {
    DnsCacheConfig {
        name: "outbound".to_owned(),
        dns_lookup_family: DnsLookupFamily::V4Preferred.into(),
        dns_refresh_rate: Some(duration(DNS_REFRESH)),
        ..Default::default()
    }
}

/// The cluster of what is looked up for each call.
pub(super) fn by_caller(rendered: &mut pb::Cluster) {
    use cluster::cluster_config::ClusterImplementationSpecifier::DnsCacheConfig;
    let config = cluster::ClusterConfig {
        // It asks for two options of HTTP by which a server proves the name that is asked for. The transport socket has that
        // proven, where there is one.
        allow_insecure_cluster_options: true,
        cluster_implementation_specifier: Some(DnsCacheConfig(cache())),
        ..Default::default()
    };
    let name = "envoy.clusters.dynamic_forward_proxy".to_owned();
    let custom = CustomClusterType { name, typed_config: Some(any(&config)) };
    rendered.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(custom));
    rendered.load_assignment = None;
    (rendered.lb_policy, rendered.lb_config) = (LbPolicy::ClusterProvided.into(), None);
    rendered.load_balancing_policy = None;
}

/// What looks up the authority of a request to such a cluster, before it is sent.
pub(super) fn of_requests() -> hcm::HttpFilter {
    use http::filter_config::ImplementationSpecifier::DnsCacheConfig;
    let implementation_specifier = Some(DnsCacheConfig(cache()));
    let config = http::FilterConfig { implementation_specifier, ..Default::default() };
    hcm::HttpFilter {
        name: "envoy.filters.http.dynamic_forward_proxy".to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any(&config))),
        ..Default::default()
    }
}

/// What looks up the server that a connection of TLS asks for, at this port.
pub(super) fn of_server_names(port: u16) -> listener::Filter {
    let config = sni::FilterConfig {
        dns_cache_config: Some(cache()),
        port_specifier: Some(sni::filter_config::PortSpecifier::PortValue(port.into())),
        ..Default::default()
    };
    proxy::filter("envoy.filters.network.sni_dynamic_forward_proxy", &config)
}
