//! Small pieces of protobuf that every rendering needs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher;
use envoy_types::pb::google::protobuf;
use envoy_types::pb::google::protobuf::value::Kind;
use mesh_core::workload::LABELS;
use prost::{Message, Name};

use crate::policy::route::{Body, Response};
use crate::registry::service::Service;

/// The filter for cross-origin requests, by name.
pub const CORS_FILTER: &str = "envoy.filters.http.cors";
/// The filter that injects faults, by name.
pub const FAULT_FILTER: &str = "envoy.filters.http.fault";
/// The filter at the end of every chain, by name.
pub const ROUTER_FILTER: &str = "envoy.filters.http.router";

/// A message inside an `Any`.
pub fn any<M: Message + Name>(message: &M) -> protobuf::Any {
    protobuf::Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// The longest duration that every client takes, in seconds: Envoy counts nanoseconds in 63 bits (292 years), and refuses what
/// protobuf has beyond (10,000 years).
const LONGEST: u64 = 9_223_372_035;

/// A duration, or the longest that there is.
pub fn duration(duration: Duration) -> protobuf::Duration {
    let duration = duration.min(Duration::from_secs(LONGEST));
    protobuf::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// A number that may be absent.
pub fn number(value: u32) -> Option<protobuf::UInt32Value> {
    Some(protobuf::UInt32Value { value })
}

/// An address: an IP address, or a name that the client resolves.
pub fn address(host: &str, port: u16) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: host.to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(port.into())),
            ..Default::default()
        })),
    }
}

/// An IP address and port.
pub fn socket_address(address_and_port: SocketAddr) -> core::Address {
    address(&address_and_port.ip().to_string(), address_and_port.port())
}

/// "By the same stream".
pub fn ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})),
        ..Default::default()
    }
}

/// "By the server that this is from": where clients report their load (gRFC A27).
pub fn its_own_server() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Self_(core::SelfConfigSource::default())),
        ..Default::default()
    }
}

/// An expression.
pub fn regex(regex: &str) -> RegexMatcher {
    RegexMatcher { regex: regex.to_owned(), ..Default::default() }
}

/// An extension and its configuration.
pub fn extension<M: Message + Name>(name: &str, config: &M) -> core::TypedExtensionConfig {
    core::TypedExtensionConfig { name: name.to_owned(), typed_config: Some(any(config)) }
}

/// Filters that do what routes say to them.
#[derive(Clone, Copy, Debug, Default)]
pub struct OfRoutes {
    /// Faults.
    pub faults: bool,
    /// Cross-origin rules.
    pub cors: bool,
}

/// The filters of a client's or server's connection manager.
pub fn http_filters(of_routes: OfRoutes) -> Vec<hcm::HttpFilter> {
    let filter = |name: &str, config| hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    };
    let fault = of_routes.faults.then(|| filter(FAULT_FILTER, any(&HttpFault::default())));
    let cors = of_routes.cors.then(|| filter(CORS_FILTER, any(&Cors::default())));
    fault.into_iter().chain(cors).chain([filter(ROUTER_FILTER, any(&Router::default()))]).collect()
}

/// Metadata with one text under one key of one filter: maps of one entry have one encoding.
pub fn text_metadata(filter: &str, key: &str, text: String) -> core::Metadata {
    let value = protobuf::Value { kind: Some(Kind::StringValue(text)) };
    let fields = [(key.to_owned(), value)].into();
    core::Metadata { filter_metadata: [(filter.to_owned(), protobuf::Struct { fields })].into(), ..Default::default() }
}

/// A route with its filters in order.
pub fn ordered_route(mut route: route::Route) -> Vec<u8> {
    let own = std::mem::take(&mut route.typed_per_filter_config).into_iter().collect();
    joined(&route, &OwnFilters { own })
}

/// Routes with the filters of each in order.
pub fn ordered_routes(mut config: route::RouteConfiguration) -> Vec<u8> {
    let of_host =
        |host: &mut route::VirtualHost| std::mem::take(&mut host.routes).into_iter().map(ordered_route).collect();
    let routes = config.virtual_hosts.iter_mut().map(of_host).collect();
    with_routes(config, routes)
}

/// Virtual hosts with the routes of each, which are encoded. On the wire a message inside another one is a text of bytes like any
/// other, so that what has a map is encoded before what it stands in.
pub fn with_routes(mut config: route::RouteConfiguration, routes: Vec<Vec<Vec<u8>>>) -> Vec<u8> {
    let hosts = std::mem::take(&mut config.virtual_hosts).into_iter().zip(routes);
    let hosts = OwnHosts { own: hosts.map(|(host, own)| joined(&host, &OwnRoutes { own })).collect() };
    joined(&config, &hosts)
}

/// A configuration with nothing in it but these routes, which are encoded.
pub fn routes_alone(routes: &[Vec<u8>]) -> Vec<u8> {
    let host = route::VirtualHost { domains: vec!["*".to_owned()], ..Default::default() };
    let hosts = OwnHosts { own: vec![joined(&host, &OwnRoutes { own: routes.to_vec() })] };
    joined(&route::RouteConfiguration { name: "judged".to_owned(), ..Default::default() }, &hosts)
}

/// A message and fields of it that were left out.
fn joined(message: &impl Message, rest: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(message.encoded_len() + rest.encoded_len());
    // A vector has room for anything.
    let _ = message.encode(&mut bytes);
    let _ = rest.encode(&mut bytes);
    bytes
}

/// `typed_per_filter_config` of `envoy.config.route.v3.Route`.
#[derive(Clone, PartialEq, Message)]
struct OwnFilters {
    #[prost(btree_map = "string, message", tag = "13")]
    own: BTreeMap<String, protobuf::Any>,
}

/// `routes` of `envoy.config.route.v3.VirtualHost`.
#[derive(Clone, PartialEq, Message)]
struct OwnRoutes {
    #[prost(bytes = "vec", repeated, tag = "3")]
    own: Vec<Vec<u8>>,
}

/// `virtual_hosts` of `envoy.config.route.v3.RouteConfiguration`.
#[derive(Clone, PartialEq, Message)]
struct OwnHosts {
    #[prost(bytes = "vec", repeated, tag = "2")]
    own: Vec<Vec<u8>>,
}

/// `envoy.config.core.v3.Metadata` with sorted maps, so that equal metadata has equal bytes.
#[derive(Clone, PartialEq, Message)]
pub(super) struct OrderedMetadata {
    #[prost(btree_map = "string, message", tag = "1")]
    filter_metadata: BTreeMap<String, OrderedStruct>,
}

impl OrderedMetadata {
    /// Metadata that has texts only.
    pub(super) fn of_texts(metadata: &core::Metadata) -> OrderedMetadata {
        let text = |(key, value): (&String, &protobuf::Value)| match &value.kind {
            Some(Kind::StringValue(text)) => {
                Some((key.clone(), OrderedValue { kind: Some(OrderedKind::Text(text.clone())) }))
            }
            _ => None,
        };
        let filters = metadata.filter_metadata.iter();
        let filters = filters.map(|(filter, fields)| {
            (filter.clone(), OrderedStruct { fields: fields.fields.iter().filter_map(text).collect() })
        });
        OrderedMetadata { filter_metadata: filters.collect() }
    }
}

impl OrderedMetadata {
    /// Adds a text that this project's library reads.
    pub(super) fn add_own(&mut self, key: &str, text: String) {
        let own = self.filter_metadata.entry("mesh-control".to_owned()).or_default();
        own.fields.insert(key.to_owned(), OrderedValue { kind: Some(OrderedKind::Text(text)) });
    }

    /// Adds the answer of a cluster that has nothing healthy.
    pub(super) fn add_fallback(&mut self, answer: &Response) {
        let body = match &answer.body {
            Body::Text(body) => body.clone(),
            Body::Bytes(_) | Body::Empty => String::new(),
        };
        self.add_own("fallback.status", answer.status.to_string());
        self.add_own("fallback.body", body);
    }
}

/// `google.protobuf.Struct` with sorted keys.
#[derive(Clone, PartialEq, Message)]
pub(super) struct OrderedStruct {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, OrderedValue>,
}

impl OrderedStruct {
    /// An object of JSON; of anything else, nothing.
    pub(super) fn of_json(value: &serde_json::Value) -> OrderedStruct {
        let fields = value.as_object().into_iter().flatten();
        OrderedStruct { fields: fields.map(|(key, value)| (key.clone(), OrderedValue::of_json(value))).collect() }
    }
}

#[derive(Clone, PartialEq, Message)]
struct OrderedValue {
    #[prost(oneof = "OrderedKind", tags = "1, 2, 3, 4, 5, 6")]
    kind: Option<OrderedKind>,
}

impl OrderedValue {
    fn of_json(value: &serde_json::Value) -> OrderedValue {
        use serde_json::Value;
        let kind = match value {
            Value::Null => OrderedKind::Null(0),
            Value::Bool(is_so) => OrderedKind::Bool(*is_so),
            Value::Number(number) => OrderedKind::Number(number.as_f64().unwrap_or_default()),
            Value::String(text) => OrderedKind::Text(text.clone()),
            Value::Array(items) => {
                OrderedKind::List(OrderedList { values: items.iter().map(OrderedValue::of_json).collect() })
            }
            Value::Object(_) => OrderedKind::Struct(OrderedStruct::of_json(value)),
        };
        OrderedValue { kind: Some(kind) }
    }
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum OrderedKind {
    #[prost(int32, tag = "1")]
    Null(i32),
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(bool, tag = "4")]
    Bool(bool),
    #[prost(message, tag = "5")]
    Struct(OrderedStruct),
    #[prost(message, tag = "6")]
    List(OrderedList),
}

#[derive(Clone, PartialEq, Message)]
struct OrderedList {
    #[prost(message, repeated, tag = "1")]
    values: Vec<OrderedValue>,
}

/// `filter_metadata["istio"].services[]` of a cluster or a listener (Istio: cluster_builder.go), in which telemetry finds
/// the service behind it. One outside of the mesh is marked: nobody tells it who calls.
pub(super) fn service_metadata(service: &Service) -> OrderedMetadata {
    let Service { host, name, namespace, is_internal, .. } = service;
    let value = |kind| OrderedValue { kind: Some(kind) };
    let text = |key: &str, text: &str| (key.to_owned(), value(OrderedKind::Text(text.to_owned())));
    let fields = [text("host", host), text("name", name), text("namespace", namespace)].into();
    let service = value(OrderedKind::Struct(OrderedStruct { fields }));
    let services = value(OrderedKind::List(OrderedList { values: vec![service] }));
    let external = (!is_internal).then(|| ("external".to_owned(), value(OrderedKind::Bool(true))));
    let istio = OrderedStruct { fields: external.into_iter().chain([("services".to_owned(), services)]).collect() };
    OrderedMetadata { filter_metadata: [("istio".to_owned(), istio)].into() }
}

/// What a server is told for telemetry: the service that it serves, and the labels by which it is known, of those that anything
/// is made of there.
pub(super) fn server_metadata(
    service: Option<&Service>,
    labels: Option<&BTreeMap<String, String>>,
) -> Option<OrderedMetadata> {
    let known: Vec<(&str, &String)> = LABELS.into_iter().filter_map(|key| Some((key, labels?.get(key)?))).collect();
    if service.is_none() && known.is_empty() {
        return None;
    }
    let mut metadata = service.map(service_metadata).unwrap_or_default();
    for (key, value) in known {
        metadata.add_own(&format!("label.{key}"), value.clone());
    }
    Some(metadata)
}
