//! Short constructors of the four resources, as a control plane would send them. What they make is valid; a test
//! changes the field that it is about.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::{Any, Struct, UInt32Value, Value, value};
use prost::{Message, Name};

/// Any message with its type.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// A client's listener whose routes are fetched by name.
pub fn api_listener(name: &str, route: &str) -> listener::Listener {
    api_listener_of(name, &http_manager(rds(route)))
}

/// A client's listener with its routes inline.
pub fn inline_listener(name: &str, routes: route::RouteConfiguration) -> listener::Listener {
    let routes = hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes);
    api_listener_of(name, &http_manager(routes))
}

/// A client's listener around this manager.
pub fn api_listener_of(name: &str, manager: &hcm::HttpConnectionManager) -> listener::Listener {
    listener::Listener {
        name: name.to_owned(),
        api_listener: Some(listener::ApiListener { api_listener: Some(pack(manager)) }),
        ..Default::default()
    }
}

/// A server's listener with one default filter chain and its routes inline.
pub fn server_listener(name: &str, bound: SocketAddr, routes: route::RouteConfiguration) -> listener::Listener {
    let routes = hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes);
    listener::Listener {
        name: name.to_owned(),
        address: Some(address(&bound.ip().to_string(), bound.port())),
        default_filter_chain: Some(filter_chain(&http_manager(routes))),
        ..Default::default()
    }
}

/// A filter chain around this manager.
pub fn filter_chain(manager: &hcm::HttpConnectionManager) -> listener::FilterChain {
    let http = listener::Filter {
        name: "http".to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(pack(manager))),
    };
    listener::FilterChain { filters: vec![http], ..Default::default() }
}

/// A manager that has these routes and no filter but the router.
pub fn http_manager(routes: hcm::http_connection_manager::RouteSpecifier) -> hcm::HttpConnectionManager {
    hcm::HttpConnectionManager {
        http_filters: vec![http_filter("router", pack(&Router::default()))],
        route_specifier: Some(routes),
        ..Default::default()
    }
}

/// An HTTP filter.
pub fn http_filter(name: &str, config: Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

/// The configuration of an extension that has no message of its own: its type, and strings by name.
pub fn typed_struct(name: &str, values: &[(&str, &str)]) -> Any {
    let value = |text: &str| Value { kind: Some(value::Kind::StringValue(text.to_owned())) };
    let fields = values.iter().map(|(name, text)| ((*name).to_owned(), value(text))).collect();
    let mut bytes = Vec::new();
    prost::encoding::string::encode(1, &format!("type.googleapis.com/{name}"), &mut bytes);
    prost::encoding::message::encode(2, &Struct { fields }, &mut bytes);
    Any { type_url: "type.googleapis.com/xds.type.v3.TypedStruct".to_owned(), value: bytes }
}

/// Routes by name, over the same stream.
pub fn rds(name: &str) -> hcm::http_connection_manager::RouteSpecifier {
    hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
        config_source: Some(same_stream()),
        route_config_name: name.to_owned(),
    })
}

/// The source of everything here.
pub fn same_stream() -> core::ConfigSource {
    core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    }
}

/// A route configuration that sends everything to one cluster.
pub fn routes_to(name: &str, cluster: &str) -> route::RouteConfiguration {
    routes(name, vec![virtual_host("all", &["*"], vec![route("/", cluster)])])
}

/// A route configuration.
pub fn routes(name: &str, virtual_hosts: Vec<route::VirtualHost>) -> route::RouteConfiguration {
    route::RouteConfiguration { name: name.to_owned(), virtual_hosts, ..Default::default() }
}

/// A virtual host.
pub fn virtual_host(name: &str, domains: &[&str], routes: Vec<route::Route>) -> route::VirtualHost {
    route::VirtualHost {
        name: name.to_owned(),
        domains: domains.iter().map(|&domain| domain.to_owned()).collect(),
        routes,
        ..Default::default()
    }
}

/// A route of a path prefix to a cluster.
pub fn route(prefix: &str, cluster: &str) -> route::Route {
    let action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    route_of(prefix, route::route::Action::Route(action))
}

/// A route of a path prefix to any action.
pub fn route_of(prefix: &str, action: route::route::Action) -> route::Route {
    route::Route {
        r#match: Some(route::RouteMatch {
            path_specifier: Some(route::route_match::PathSpecifier::Prefix(prefix.to_owned())),
            ..Default::default()
        }),
        action: Some(action),
        ..Default::default()
    }
}

/// A server's route: the application answers.
pub fn route_to_application() -> route::Route {
    route_of("/", route::route::Action::NonForwardingAction(Default::default()))
}

/// A cluster whose endpoints are fetched by the cluster's name.
pub fn eds_cluster(name: &str) -> cluster::Cluster {
    cluster::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds as i32,
        )),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig {
            eds_config: Some(same_stream()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A cluster of another type, with its endpoints inline.
pub fn inline_cluster(
    name: &str,
    kind: cluster::cluster::DiscoveryType,
    addresses: &[(&str, u16)],
) -> cluster::Cluster {
    cluster::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(kind as i32)),
        load_assignment: Some(endpoints(name, addresses)),
        ..Default::default()
    }
}

/// Endpoints of one locality without a weight.
pub fn endpoints(name: &str, addresses: &[(&str, u16)]) -> endpoint::ClusterLoadAssignment {
    let addresses = addresses.iter().map(|(host, port)| lb_endpoint(host, *port)).collect();
    endpoint::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints: addresses, ..Default::default() }],
        ..Default::default()
    }
}

/// Endpoints of one locality at one priority, with a weight.
pub fn locality(zone: &str, priority: u32, weight: u32, addresses: &[(&str, u16)]) -> endpoint::LocalityLbEndpoints {
    endpoint::LocalityLbEndpoints {
        locality: Some(core::Locality { zone: zone.to_owned(), ..Default::default() }),
        lb_endpoints: addresses.iter().map(|(host, port)| lb_endpoint(host, *port)).collect(),
        load_balancing_weight: Some(UInt32Value { value: weight }),
        priority,
        ..Default::default()
    }
}

/// One endpoint.
pub fn lb_endpoint(host: &str, port: u16) -> endpoint::LbEndpoint {
    let endpoint = endpoint::Endpoint { address: Some(address(host, port)), ..Default::default() };
    endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
        ..Default::default()
    }
}

/// A TCP address.
pub fn address(host: &str, port: u16) -> core::Address {
    let socket = core::SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(port))),
        ..Default::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}
