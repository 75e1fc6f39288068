//! Resources as JSON, in the words of Envoy's dump of its configuration, as far as tools show them (`istioctl proxy-config`): what
//! they are called, which addresses they have, where they lead to and by which conditions. Of headers the names are told, and of
//! secrets nothing else.

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};
use serde_json::{Map, Value, json};

use cluster::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use core::socket_address::PortSpecifier;
use endpoint::lb_endpoint::HostIdentifier;
use hcm::http_connection_manager::RouteSpecifier;
use route::route::Action;
use route::route_action::ClusterSpecifier;
use route::route_match::PathSpecifier;

use crate::client_status::{RawResource, ResourceStatus};
use crate::resources::ResourceType;
use crate::xds::names::type_url;

/// A resource with its type, as far as it is known.
pub(crate) fn show(resource: &ResourceStatus) -> Value {
    let kind = resource.key.kind;
    let name = if kind == ResourceType::Endpoints { "cluster_name" } else { "name" };
    let known = resource.raw.as_ref().and_then(|raw| content(kind, raw));
    let mut shown = known.unwrap_or_else(|| json!({ name: &*resource.key.name }));
    if let Value::Object(fields) = &mut shown {
        fields.insert("@type".to_owned(), type_url(kind).into());
    }
    shown
}

fn content(kind: ResourceType, raw: &RawResource) -> Option<Value> {
    let bytes = raw.value.clone();
    match kind {
        ResourceType::Cluster => cluster::Cluster::decode(bytes).ok().map(of_cluster),
        ResourceType::Listener => listener::Listener::decode(bytes).ok().map(of_listener),
        ResourceType::Route => route::RouteConfiguration::decode(bytes).ok().map(of_routes),
        ResourceType::Endpoints => endpoint::ClusterLoadAssignment::decode(bytes).ok().map(of_endpoints),
        _ => None,
    }
}

/// An object of those fields that there are.
fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let present = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(present.collect::<Map<_, _>>())
}

fn of_cluster(one: cluster::Cluster) -> Value {
    let kind = match one.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(kind).ok(),
        _ => None,
    };
    object([
        ("name", Some(one.name.into())),
        ("type", kind.map(|kind| kind.as_str_name().into())),
        ("eds_cluster_config", one.eds_cluster_config.map(|eds| json!({ "service_name": eds.service_name }))),
        ("lb_policy", LbPolicy::try_from(one.lb_policy).ok().map(|policy| policy.as_str_name().into())),
        ("load_assignment", one.load_assignment.map(of_endpoints)),
    ])
}

fn of_listener(one: listener::Listener) -> Value {
    let chains = |chains: Vec<listener::FilterChain>| (!chains.is_empty()).then(|| list(chains, of_chain));
    object([
        ("name", Some(one.name.into())),
        ("address", one.address.and_then(of_address)),
        ("filter_chains", chains(one.filter_chains)),
        ("default_filter_chain", one.default_filter_chain.map(of_chain)),
        ("api_listener", one.api_listener.map(|api| json!({ "api_listener": api.api_listener.and_then(of_manager) }))),
    ])
}

fn of_chain(one: listener::FilterChain) -> Value {
    let filters = list(one.filters, |filter| {
        let config = match filter.config_type {
            Some(listener::filter::ConfigType::TypedConfig(any)) => of_manager(any),
            _ => None,
        };
        object([("name", Some(filter.name.into())), ("typed_config", config)])
    });
    let matches = one.filter_chain_match.map(|matches| {
        object([
            ("destination_port", matches.destination_port.map(|port| port.value.into())),
            ("server_names", (!matches.server_names.is_empty()).then(|| matches.server_names.into())),
            ("transport_protocol", (!matches.transport_protocol.is_empty()).then(|| matches.transport_protocol.into())),
        ])
    });
    object([("name", Some(one.name.into())), ("filter_chain_match", matches), ("filters", Some(filters))])
}

/// What handles HTTP, which is the one filter that is looked into.
fn of_manager(any: Any) -> Option<Value> {
    let (mut rds, mut inline) = (None, None);
    if any.type_url == hcm::HttpConnectionManager::type_url() {
        match hcm::HttpConnectionManager::decode(&*any.value).ok()?.route_specifier {
            Some(RouteSpecifier::Rds(named)) => rds = Some(json!({ "route_config_name": named.route_config_name })),
            Some(RouteSpecifier::RouteConfig(config)) => inline = Some(of_routes(config)),
            _ => {}
        }
    }
    Some(object([("@type", Some(any.type_url.into())), ("rds", rds), ("route_config", inline)]))
}

fn of_routes(one: route::RouteConfiguration) -> Value {
    let hosts = list(
        one.virtual_hosts,
        |host| json!({ "name": host.name, "domains": host.domains, "routes": list(host.routes, of_route) }),
    );
    json!({ "name": one.name, "virtual_hosts": hosts })
}

fn of_route(one: route::Route) -> Value {
    let (name, value) = match one.action {
        Some(Action::Route(to)) => ("route", of_destination(to.cluster_specifier)),
        Some(Action::Redirect(to)) => ("redirect", json!({ "host_redirect": to.host_redirect })),
        Some(Action::DirectResponse(answer)) => ("direct_response", json!({ "status": answer.status })),
        _ => ("non_forwarding_action", json!({})),
    };
    object([
        ("name", (!one.name.is_empty()).then(|| one.name.into())),
        ("match", one.r#match.map(of_match)),
        (name, Some(value)),
    ])
}

fn of_destination(to: Option<ClusterSpecifier>) -> Value {
    match to {
        Some(ClusterSpecifier::Cluster(cluster)) => json!({ "cluster": cluster }),
        Some(ClusterSpecifier::WeightedClusters(all)) => {
            let weight = |one: route::weighted_cluster::ClusterWeight| {
                object([("name", Some(one.name.into())), ("weight", one.weight.map(|weight| weight.value.into()))])
            };
            json!({ "weighted_clusters": { "clusters": list(all.clusters, weight) } })
        }
        _ => json!({}),
    }
}

fn of_match(one: route::RouteMatch) -> Value {
    let (name, path) = match one.path_specifier {
        Some(PathSpecifier::Prefix(path)) => ("prefix", Some(path.into())),
        Some(PathSpecifier::Path(path)) => ("path", Some(path.into())),
        Some(PathSpecifier::PathSeparatedPrefix(path)) => ("path_separated_prefix", Some(path.into())),
        Some(PathSpecifier::SafeRegex(path)) => ("safe_regex", Some(json!({ "regex": path.regex }))),
        _ => ("prefix", None),
    };
    let named = |name: String| json!({ "name": name });
    let headers = (!one.headers.is_empty()).then(|| list(one.headers, |header| named(header.name)));
    let parameters = one.query_parameters;
    let parameters = (!parameters.is_empty()).then(|| list(parameters, |parameter| named(parameter.name)));
    object([(name, path), ("headers", headers), ("query_parameters", parameters)])
}

fn of_endpoints(one: endpoint::ClusterLoadAssignment) -> Value {
    let localities = list(one.endpoints, |locality| {
        let place = locality
            .locality
            .map(|place| json!({ "region": place.region, "zone": place.zone, "sub_zone": place.sub_zone }));
        object([
            ("locality", place),
            ("priority", Some(locality.priority.into())),
            ("load_balancing_weight", locality.load_balancing_weight.map(|weight| weight.value.into())),
            ("lb_endpoints", Some(list(locality.lb_endpoints, of_endpoint))),
        ])
    });
    json!({ "cluster_name": one.cluster_name, "endpoints": localities })
}

fn of_endpoint(one: endpoint::LbEndpoint) -> Value {
    let address = match one.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => endpoint.address.and_then(of_address),
        _ => None,
    };
    let health = core::HealthStatus::try_from(one.health_status).ok();
    object([
        ("endpoint", Some(object([("address", address)]))),
        ("health_status", health.map(|health| health.as_str_name().into())),
        ("load_balancing_weight", one.load_balancing_weight.map(|weight| weight.value.into())),
    ])
}

fn of_address(address: core::Address) -> Option<Value> {
    let Some(core::address::Address::SocketAddress(socket)) = address.address else { return None };
    let port = match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => port,
        _ => 0,
    };
    Some(json!({ "socket_address": { "address": socket.address, "port_value": port } }))
}

fn list<T>(all: Vec<T>, show: impl FnMut(T) -> Value) -> Value {
    Value::Array(all.into_iter().map(show).collect())
}
