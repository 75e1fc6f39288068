//! The network filters of a sidecar, and the parts of a listener.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3::AccessLog;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    RouteSpecifier, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use envoy_types::pb::google::protobuf::BoolValue;
use prost::{Message, Name};

use super::super::proto::{OfRoutes, ads, any, duration, http_filters, socket_address};

/// A connection manager with these routes and filters, the router excepted, whose requests are logged so.
pub(super) fn manager(
    stat_prefix: String,
    routes: RouteSpecifier,
    filters: Vec<hcm::HttpFilter>,
    access_log: Vec<AccessLog>,
) -> hcm::HttpConnectionManager {
    hcm::HttpConnectionManager {
        stat_prefix,
        access_log,
        route_specifier: Some(routes),
        http_filters: filters.into_iter().chain(http_filters(OfRoutes::default())).collect(),
        use_remote_address: Some(BoolValue { value: false }),
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() }],
        // A stream lasts as long as its two ends want it (Istio: listener_builder.go).
        stream_idle_timeout: Some(duration(Duration::ZERO)),
        server_name: "istio-envoy".to_owned(),
        ..Default::default()
    }
}

/// Routes of this name, by the same stream. Without them nothing is served, however long it takes.
pub(super) fn by_rds(name: String) -> RouteSpecifier {
    let source = core::ConfigSource { initial_fetch_timeout: Some(duration(Duration::ZERO)), ..ads() };
    RouteSpecifier::Rds(hcm::Rds { config_source: Some(source), route_config_name: name })
}

/// One route for every request.
pub(super) fn inline(name: String, host: String, action: route::route::Action) -> RouteSpecifier {
    let everything = route::Route {
        name: "default".to_owned(),
        r#match: Some(route::RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(action),
        ..Default::default()
    };
    RouteSpecifier::RouteConfig(route::RouteConfiguration {
        name,
        virtual_hosts: vec![route::VirtualHost {
            name: host,
            domains: vec!["*".to_owned()],
            routes: vec![everything],
            ..Default::default()
        }],
        validate_clusters: Some(BoolValue { value: false }),
        ..Default::default()
    })
}

/// All of it goes to this cluster.
pub(super) fn to_cluster(cluster: String) -> route::route::Action {
    route::route::Action::Route(route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster)),
        // Without a value Envoy's own default of 15 s would hold.
        timeout: Some(duration(Duration::ZERO)),
        ..Default::default()
    })
}

/// Makes gRPC of gRPC-Web, and leaves everything else as it is. It comes before what routes have settings for (Istio:
/// listener_builder.go).
pub(super) fn grpc_web() -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: "envoy.filters.http.grpc_web".to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any(&GrpcWeb {}))),
        ..Default::default()
    }
}

pub(super) fn http(manager: &hcm::HttpConnectionManager) -> pb::Filter {
    filter("envoy.filters.network.http_connection_manager", manager)
}

/// Bytes that go to a cluster, in connections that are logged so.
pub(super) fn bytes(cluster: String, access_log: Vec<AccessLog>) -> pb::Filter {
    let proxy = tcp::TcpProxy {
        stat_prefix: cluster.clone(),
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(cluster)),
        access_log,
        ..Default::default()
    };
    filter("envoy.filters.network.tcp_proxy", &proxy)
}

pub(super) fn filter<M: Message + Name>(name: &str, config: &M) -> pb::Filter {
    let config_type = Some(pb::filter::ConfigType::TypedConfig(any(config)));
    pb::Filter { name: name.to_owned(), config_type }
}

pub(super) fn tls_inspector() -> pb::ListenerFilter {
    listener_filter("envoy.filters.listener.tls_inspector", &TlsInspector::default())
}

/// A load balancer says of each connection whose it is. One of which it does not is closed.
pub(super) fn proxy_protocol() -> pb::ListenerFilter {
    listener_filter("envoy.filters.listener.proxy_protocol", &ProxyProtocol::default())
}

/// Where a redirected connection was going.
pub(super) fn original_dst() -> pb::ListenerFilter {
    listener_filter("envoy.filters.listener.original_dst", &OriginalDst::default())
}

fn listener_filter<M: Message + Name>(name: &str, config: &M) -> pb::ListenerFilter {
    let config_type = Some(pb::listener_filter::ConfigType::TypedConfig(any(config)));
    pb::ListenerFilter { name: name.to_owned(), config_type, ..Default::default() }
}

/// A listener without chains.
pub(super) fn listener(name: &str, ip: IpAddr, port: u16, direction: core::TrafficDirection) -> pb::Listener {
    pb::Listener {
        // Another proxy at the same address would take connections that are for this one, and call in its own name.
        enable_reuse_port: Some(BoolValue { value: false }),
        name: name.to_owned(),
        address: Some(socket_address(SocketAddr::new(ip, port))),
        traffic_direction: direction.into(),
        ..Default::default()
    }
}
