use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as fault;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType};
use envoy_types::pb::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{DownstreamTlsContext, downstream_tls_context};
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::google::protobuf::{self, BoolValue, UInt32Value};

use super::{Case, accept, all_rejected, reject};
use crate::error::Invalid;
use crate::filter::{FaultFilter, Filter};
use crate::model::{
    EdgeTrust, Fault, FilterConfig, ForwardedClientCert, Fraction, Listener, RouteSource, ServerListener, ServerTls,
};
use crate::path::{EscapedSlashes, PathNormalization};
use crate::resources::{Resource, ResourceType};
use crate::testing::resources::{
    address, api_listener, api_listener_of, filter_chain, http_filter, http_manager, inline_listener, pack, rds,
    route_to_application, routes, routes_to, server_listener, virtual_host,
};
use crate::xds::decode::{Options, common::TypedStruct, decode};

fn manager() -> hcm::HttpConnectionManager {
    http_manager(rds("routes"))
}

fn server() -> pb::Listener {
    let routes = routes("r", vec![virtual_host("all", &["*"], vec![route_to_application()])]);
    server_listener("in", "127.0.0.1:80".parse().unwrap(), routes)
}

fn proxy_protocol(filter: &ProxyProtocol) -> pb::ListenerFilter {
    let config_type = Some(pb::listener_filter::ConfigType::TypedConfig(pack(filter)));
    pb::ListenerFilter { name: "proxy_protocol".into(), config_type, ..Default::default() }
}

fn decoded_server(listener: &pb::Listener) -> ServerListener {
    match accept(ResourceType::Listener, listener).resource {
        Resource::Listener(listener) => match &*listener {
            Listener::Server(server) => server.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn labels_that_telemetry_has_no_use_for_are_passed_over() {
    let text = |text: &str| protobuf::Value { kind: Some(protobuf::value::Kind::StringValue(text.to_owned())) };
    let told =
        [("label.version", text("v2")), ("label.app", text("web")), ("label.tier", text("gold")), ("app", text("x"))];
    let fields = told.map(|(key, value)| (key.to_owned(), value)).into();
    let mut listener = server();
    listener.metadata = Some(core::Metadata {
        filter_metadata: [("mesh-control".to_owned(), protobuf::Struct { fields })].into(),
        ..Default::default()
    });
    let expected: Vec<(&str, Arc<str>)> = vec![("app", "web".into()), ("version", "v2".into())];
    assert_eq!(decoded_server(&listener).labels, expected);
    assert!(decoded_server(&server()).labels.is_empty());
}

#[test]
fn client_rule_39_managers_that_are_rejected() {
    let cases: &[Case<hcm::HttpConnectionManager>] = &[
        ("rds.config_source: must be ads or self", |manager| {
            manager.route_specifier = Some(hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
                route_config_name: "r".into(),
                config_source: Some(core::ConfigSource {
                    config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Path("/etc".into())),
                    ..Default::default()
                }),
            }));
        }),
        ("rds.route_config_name: the name is empty", |manager| manager.route_specifier = Some(rds(""))),
        ("no known route specifier", |manager| manager.route_specifier = None),
        ("scoped_routes: not supported", |manager| {
            manager.route_specifier =
                Some(hcm::http_connection_manager::RouteSpecifier::ScopedRoutes(Default::default()));
        }),
        ("xff_num_trusted_hops: must be 0", |manager| manager.xff_num_trusted_hops = 1),
        ("original_ip_detection_extensions", |manager| {
            manager.original_ip_detection_extensions.push(Default::default());
        }),
        ("http_filters[0].name: must not be empty", |manager| manager.http_filters[0].name.clear()),
        ("http_filters[1].name: the name \"router\" is used twice", |manager| {
            manager.http_filters.insert(0, http_filter("router", pack(&HttpFault::default())));
        }),
        ("is not supported and not optional", |manager| {
            manager.http_filters.insert(0, http_filter("odd", pack(&core::Node::default())));
        }),
        ("http_filters: the list is empty", |manager| manager.http_filters.clear()),
        ("the last filter must be the router", |manager| {
            manager.http_filters[0] = http_filter("fault", pack(&HttpFault::default()));
        }),
        ("the router must be the last filter", |manager| {
            manager.http_filters.push(http_filter("again", pack(&Router::default())));
        }),
        ("http_filters[0].typed_config: missing", |manager| manager.http_filters[0].config_type = None),
        ("http_filters: RBAC is for servers", |manager| {
            manager.http_filters.insert(0, http_filter("rbac", pack(&Rbac::default())));
        }),
        ("http_filters: RBAC is for servers", |manager| {
            let rbac = hcm::HttpFilter { is_optional: true, ..http_filter("rbac", pack(&Rbac::default())) };
            manager.http_filters.insert(0, rbac);
        }),
    ];
    for (expected, spoil) in cases {
        let mut bad = manager();
        spoil(&mut bad);
        let text = super::reject(ResourceType::Listener, &api_listener_of("l", &bad)).to_string();
        assert!(text.contains(expected), "expected {expected:?} in {text:?}");
        assert!(text.starts_with("\"l\": api_listener.api_listener"), "{text}");
    }
}

#[test]
fn who_is_in_front_of_an_edge_is_believed_as_the_configuration_says_and_elsewhere_nobody_is() {
    let decoded = |manager: &hcm::HttpConnectionManager| {
        let mut listener = server();
        listener.default_filter_chain = Some(filter_chain(manager));
        listener.listener_filters.push(proxy_protocol(&ProxyProtocol::default()));
        let server = decoded_server(&listener);
        assert!(server.proxy_protocol);
        server.default_filter_chain.unwrap().http.trust
    };
    let mut manager = manager();
    manager.forward_client_cert_details = hcm::http_connection_manager::ForwardClientCertDetails::ForwardOnly as i32;
    assert_eq!(decoded(&manager), EdgeTrust::default(), "it is no edge");
    manager.use_remote_address = Some(BoolValue { value: true });
    manager.xff_num_trusted_hops = 2;
    assert_eq!(decoded(&manager), EdgeTrust { proxies: 2, client_cert: ForwardedClientCert::ForwardOnly });
    assert!(!decoded_server(&server()).proxy_protocol);
}

#[test]
fn a_listener_that_inspects_tls_says_so() {
    let mut listener = server();
    assert!(!decoded_server(&listener).inspects_tls);
    let config_type = Some(pb::listener_filter::ConfigType::TypedConfig(pack(&TlsInspector::default())));
    listener.listener_filters.push(pb::ListenerFilter { name: "inspector".into(), config_type, ..Default::default() });
    let server = decoded_server(&listener);
    assert!(server.inspects_tls && !server.proxy_protocol);
}

#[test]
fn grpc_web_is_for_an_edge_which_others_are_told() {
    let decoded = |manager: &hcm::HttpConnectionManager| {
        let mut listener = server();
        listener.default_filter_chain = Some(filter_chain(manager));
        decoded_server(&listener).default_filter_chain.unwrap().http.grpc_web
    };
    let mut manager = manager();
    manager.use_remote_address = Some(BoolValue { value: true });
    assert!(!decoded(&manager));
    manager.http_filters.insert(0, http_filter("grpc_web", pack(&GrpcWeb {})));
    assert!(decoded(&manager));
    manager.http_filters[0].disabled = true;
    assert!(!decoded(&manager));
    manager.http_filters[0].disabled = false;
    manager.use_remote_address = None;
    assert!(!decoded(&manager));
}

#[test]
fn client_rule_39_listeners_that_are_rejected() {
    all_rejected(
        ResourceType::Listener,
        &api_listener("l", "r"),
        &[
            ("name: the name is empty", |listener| listener.name.clear()),
            ("\"l\": api_listener.api_listener: missing", |listener| {
                listener.api_listener = Some(pb::ApiListener { api_listener: None });
            }),
            ("HttpConnectionManager was expected", |listener| {
                listener.api_listener = Some(pb::ApiListener { api_listener: Some(pack(&Router::default())) });
            }),
        ],
    );
    all_rejected(
        ResourceType::Listener,
        &server(),
        &[
            ("listener_filters: not supported", |listener| listener.listener_filters.push(Default::default())),
            ("listener_filters.allow_requests_without_proxy_protocol: not supported", |listener| {
                let filter = ProxyProtocol { allow_requests_without_proxy_protocol: true, ..Default::default() };
                listener.listener_filters.push(proxy_protocol(&filter));
            }),
            ("listener_filters: not supported", |listener| {
                listener.listener_filters.extend([proxy_protocol(&ProxyProtocol::default()), Default::default()]);
            }),
            ("use_original_dst: not supported", |listener| listener.use_original_dst = Some(BoolValue { value: true })),
            ("address: missing", |listener| listener.address = None),
            ("address.socket_address.port_value: missing", |listener| {
                listener.address = Some(core::Address {
                    address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                        address: "127.0.0.1".into(),
                        ..Default::default()
                    })),
                });
            }),
            ("\"host\" is not an IP address", |listener| listener.address = Some(address("host", 80))),
            ("address.pipe: not supported", |listener| {
                listener.address =
                    Some(core::Address { address: Some(core::address::Address::Pipe(Default::default())) });
            }),
            ("no supported filter chain and no default one", |listener| listener.default_filter_chain = None),
            ("exactly one HttpConnectionManager is needed", |listener| {
                listener.default_filter_chain.as_mut().unwrap().filters.clear();
            }),
            ("filters[0].typed_config: the network filter", |listener| {
                listener.default_filter_chain.as_mut().unwrap().filters[0].config_type =
                    Some(pb::filter::ConfigType::TypedConfig(pack(&Router::default())));
            }),
            ("filters[0].name: must not be empty", |listener| {
                listener.default_filter_chain.as_mut().unwrap().filters[0].name.clear();
            }),
            ("filter_chains[1].filter_chain_match: overlaps", |listener| {
                listener.filter_chains =
                    vec![chain(prefixes(&["10.0.0.0/8", "11.0.0.0/8"])), chain(prefixes(&["10.1.0.0/8"]))];
            }),
            ("filter_chain_match.prefix_ranges[0].prefix_len: more than 32 bits", |listener| {
                listener.filter_chains = vec![chain(prefixes(&["10.0.0.0/33"]))];
            }),
            ("filter_chain_match.source_ports[0]: 70000 is not a port", |listener| {
                listener.filter_chains =
                    vec![chain(pb::FilterChainMatch { source_ports: vec![70_000], ..Default::default() })];
            }),
            ("direct_source_prefix_ranges: not supported yet", |listener| {
                listener.filter_chains = vec![chain(pb::FilterChainMatch {
                    direct_source_prefix_ranges: prefixes(&["10.0.0.0/8"]).prefix_ranges,
                    ..Default::default()
                })];
            }),
            ("require_sni: not supported", |listener| {
                listener.default_filter_chain.as_mut().unwrap().transport_socket = Some(tls(DownstreamTlsContext {
                    require_sni: Some(BoolValue { value: true }),
                    ..Default::default()
                }));
            }),
            ("ocsp_staple_policy: only LENIENT_STAPLING", |listener| {
                listener.default_filter_chain.as_mut().unwrap().transport_socket = Some(tls(DownstreamTlsContext {
                    ocsp_staple_policy: downstream_tls_context::OcspStaplePolicy::MustStaple as i32,
                    ..Default::default()
                }));
            }),
        ],
    );
}

fn chain(matches: pb::FilterChainMatch) -> pb::FilterChain {
    pb::FilterChain { filter_chain_match: Some(matches), ..filter_chain(&manager()) }
}

fn prefixes(ranges: &[&str]) -> pb::FilterChainMatch {
    let range = |range: &&str| {
        let (address, length) = range.split_once('/').unwrap();
        core::CidrRange {
            address_prefix: address.to_owned(),
            prefix_len: Some(UInt32Value { value: length.parse().unwrap() }),
        }
    };
    pb::FilterChainMatch { prefix_ranges: ranges.iter().map(range).collect(), ..Default::default() }
}

fn tls(context: DownstreamTlsContext) -> core::TransportSocket {
    core::TransportSocket {
        name: "tls".into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(&context))),
    }
}

#[test]
fn a_clients_listener_names_its_routes_or_holds_them() {
    let named = accept(ResourceType::Listener, &api_listener("l", "r"));
    let Resource::Listener(listener) = &named.resource else { panic!("{named:?}") };
    assert_eq!(listener.route_names().into_iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["r"]);
    let inline = accept(ResourceType::Listener, &inline_listener("l", routes_to("", "c")));
    let Resource::Listener(listener) = inline.resource else { panic!() };
    let Listener::Api(api) = &*listener else { panic!() };
    assert!(matches!(&api.http.routes, RouteSource::Inline(routes) if routes.virtual_hosts.len() == 1));
}

#[test]
fn a_servers_tls_is_refused_and_never_dropped() {
    let mut listener = server();
    listener.default_filter_chain.as_mut().unwrap().transport_socket = Some(tls(DownstreamTlsContext::default()));
    let chain = decoded_server(&listener).default_filter_chain.unwrap();
    let ServerTls::Unusable(reason) = chain.tls else { panic!("{:?}", chain.tls) };
    assert!(reason.contains("without a certificate of the client"), "{reason}");
}

#[test]
fn filter_chains_that_can_match_nothing_here_are_left_out() {
    let mut listener = server();
    let by_protocol = pb::FilterChainMatch { application_protocols: vec!["h2".into()], ..Default::default() };
    listener.filter_chains = vec![chain(by_protocol), chain(prefixes(&["10.9.8.7/8"]))];
    let decoded = accept(ResourceType::Listener, &listener);
    assert!(decoded.ignored.iter().any(|path| path.starts_with("filter_chains[0].filter_chain_match.")));
    let chains = decoded_server(&listener).filter_chains;
    assert_eq!(chains.len(), 1);
    assert_eq!(chains[0].matches.destination, [("10.0.0.0".parse().unwrap(), 8)]);
}

#[test]
fn filters_keep_their_order_and_optional_unknown_ones_are_listed() {
    let mut manager = manager();
    let half = FractionalPercent { numerator: 50, ..Default::default() };
    let config = HttpFault {
        delay: Some(fault::FaultDelay {
            percentage: Some(half),
            fault_delay_secifier: Some(fault::fault_delay::FaultDelaySecifier::FixedDelay(protobuf::Duration {
                seconds: 2,
                nanos: 0,
            })),
        }),
        abort: Some(FaultAbort { error_type: Some(ErrorType::HttpStatus(503)), ..Default::default() }),
        ..Default::default()
    };
    let odd = hcm::HttpFilter { is_optional: true, ..http_filter("odd", pack(&core::Node::default())) };
    let off = hcm::HttpFilter { disabled: true, ..http_filter("off", pack(&HttpFault::default())) };
    manager.http_filters.splice(0..0, [http_filter("fault", pack(&config)), odd, off]);
    let decoded = accept(ResourceType::Listener, &api_listener_of("l", &manager));
    let Resource::Listener(listener) = &decoded.resource else { panic!() };
    let Listener::Api(api) = &**listener else { panic!() };
    let names: Vec<&str> = api.http.filters.iter().map(|filter| &*filter.name).collect();
    assert_eq!(names, ["fault", "off"]);
    let FilterConfig::Fault(fault) = &api.http.filters[0].config else { panic!() };
    let delay = fault.delay.as_ref().unwrap();
    assert_eq!((delay.duration, delay.fraction), (Some(Duration::from_secs(2)), Fraction::new(1, 2)));
    let abort = fault.abort.as_ref().unwrap();
    assert_eq!((abort.http_status, abort.fraction), (Some(503), Fraction::default()));
    assert_eq!(api.http.filters[1].config, FilterConfig::Disabled);
    assert!(decoded.ignored.iter().any(|path| path.contains("envoy.config.core.v3.Node")), "{:?}", decoded.ignored);
}

#[test]
fn faults_that_requests_ask_for_and_their_bounds() {
    let millionth = FractionalPercent { numerator: 7, denominator: 2 };
    let config = HttpFault {
        delay: Some(fault::FaultDelay {
            percentage: Some(millionth),
            fault_delay_secifier: Some(fault::fault_delay::FaultDelaySecifier::HeaderDelay(Default::default())),
        }),
        abort: Some(FaultAbort {
            error_type: Some(ErrorType::HeaderAbort(Default::default())),
            response_body: "no".into(),
            ..Default::default()
        }),
        upstream_cluster: "c".into(),
        downstream_nodes: vec!["n".into()],
        max_active_faults: Some(UInt32Value { value: 3 }),
        ..Default::default()
    };
    let mut manager = manager();
    manager.http_filters.insert(0, http_filter("fault", pack(&config)));
    let decoded = accept(ResourceType::Listener, &api_listener_of("l", &manager));
    assert!(decoded.ignored.is_empty(), "{:?}", decoded.ignored);
    let Resource::Listener(listener) = &decoded.resource else { panic!() };
    let Listener::Api(api) = &**listener else { panic!() };
    let FilterConfig::Fault(fault) = &api.http.filters[0].config else { panic!() };
    let delay = fault.delay.as_ref().unwrap();
    assert_eq!((delay.duration, delay.fraction.per_million(), delay.unit), (None, 7, 1));
    let abort = fault.abort.as_ref().unwrap();
    assert_eq!((abort.http_status, abort.grpc_code, abort.unit), (None, None, 10_000));
    assert_eq!(abort.body.as_deref(), Some(&b"no"[..]));
    assert_eq!(
        (fault.cluster.as_deref(), fault.nodes.as_slice(), fault.max_active),
        (Some("c"), &["n".to_owned()][..], Some(3))
    );
}

#[test]
fn faults_that_are_rejected() {
    let cases: &[Case<HttpFault>] = &[
        ("abort.http_status: 600", |fault| {
            fault.abort = Some(FaultAbort { error_type: Some(ErrorType::HttpStatus(600)), ..Default::default() });
        }),
        ("abort: no known kind", |fault| fault.abort = Some(FaultAbort::default())),
        ("delay: no known kind", |fault| fault.delay = Some(Default::default())),
        ("abort.percentage.denominator", |fault| {
            let percentage = FractionalPercent { numerator: 1, denominator: 9 };
            fault.abort = Some(FaultAbort { percentage: Some(percentage), ..Default::default() });
        }),
        ("headers[0]", |fault| fault.headers.push(Default::default())),
    ];
    for (expected, spoil) in cases {
        let (mut fault, mut manager) = (HttpFault::default(), manager());
        spoil(&mut fault);
        manager.http_filters.insert(0, http_filter("fault", pack(&fault)));
        let text = super::reject(ResourceType::Listener, &api_listener_of("l", &manager)).to_string();
        assert!(text.contains(expected), "expected {expected:?} in {text:?}");
    }
}

#[test]
fn an_applications_own_filter_is_passed_on_as_json() {
    let number = protobuf::Value { kind: Some(protobuf::value::Kind::NumberValue(3.0)) };
    let typed = TypedStruct {
        type_url: "type.googleapis.com/acme.Shadow".into(),
        value: Some(protobuf::Struct { fields: [("b".to_owned(), number.clone()), ("a".to_owned(), number)].into() }),
    };
    let typed = protobuf::Any {
        type_url: "type.googleapis.com/xds.type.v3.TypedStruct".into(),
        value: prost::Message::encode_to_vec(&typed),
    };
    let mut manager = manager();
    manager.http_filters.insert(0, http_filter("shadow", typed));
    let bytes = prost::Message::encode_to_vec(&api_listener_of("l", &manager));
    assert!(decode(ResourceType::Listener, &bytes, &Options::default()).is_err());
    let mut options = Options::default();
    options.custom_filters.register("acme.Shadow", Arc::new(|_, _| Err(Invalid::new("three is too many"))));
    let refused = decode(ResourceType::Listener, &bytes, &options).unwrap_err().to_string();
    assert!(refused.ends_with("three is too many"), "{refused}");
    let built = Arc::new(FaultFilter::new(&Arc::new(Fault::default())).unwrap());
    options.custom_filters.register("acme.Shadow", Arc::new(move |_, _| Ok(Arc::clone(&built) as Arc<dyn Filter>)));
    let Resource::Listener(listener) = decode(ResourceType::Listener, &bytes, &options).unwrap().resource else {
        panic!()
    };
    let Listener::Api(api) = &*listener else { panic!() };
    let expected = FilterConfig::Custom("acme.Shadow".into(), r#"{"a":3,"b":3}"#.into());
    assert_eq!(api.http.filters[0].config, expected);
}

#[test]
fn what_is_made_of_paths_is_what_the_manager_says() {
    use hcm::http_connection_manager::PathWithEscapedSlashesAction as Action;
    let on = Some(BoolValue { value: true });
    for (normalize_path, merge_slashes, action, expected) in [
        (None, false, Action::ImplementationSpecificDefault, PathNormalization::NONE),
        (Some(BoolValue { value: false }), false, Action::KeepUnchanged, PathNormalization::NONE),
        (on, false, Action::KeepUnchanged, PathNormalization::BASE),
        (on, true, Action::KeepUnchanged, PathNormalization::MERGE_SLASHES),
        (on, true, Action::UnescapeAndForward, PathNormalization::DECODE_AND_MERGE_SLASHES),
        (
            on,
            false,
            Action::RejectRequest,
            PathNormalization { escaped_slashes: EscapedSlashes::Reject, ..PathNormalization::BASE },
        ),
        // Instead of the redirect, which is told.
        (
            on,
            false,
            Action::UnescapeAndRedirect,
            PathNormalization { escaped_slashes: EscapedSlashes::Reject, ..PathNormalization::BASE },
        ),
    ] {
        let manager = hcm::HttpConnectionManager {
            normalize_path,
            merge_slashes,
            path_with_escaped_slashes_action: action.into(),
            ..manager()
        };
        let decoded = accept(ResourceType::Listener, &api_listener_of("l", &manager));
        let Resource::Listener(listener) = &decoded.resource else { panic!() };
        let Listener::Api(api) = &**listener else { panic!() };
        assert_eq!(api.http.paths, expected, "{action:?}");
        let is_told = decoded.ignored.iter().any(|path| path.contains("path_with_escaped_slashes_action"));
        assert_eq!(is_told, action == Action::UnescapeAndRedirect, "{:?}", decoded.ignored);
    }
    let unknown = hcm::HttpConnectionManager { path_with_escaped_slashes_action: 99, ..manager() };
    let refused = reject(ResourceType::Listener, &api_listener_of("l", &unknown)).to_string();
    assert!(refused.contains("path_with_escaped_slashes_action"), "{refused}");
}
