//! Hazards X5-X9: any bytes end in a value or an [`Invalid`], never in a panic, and never in much memory.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as route_pb;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::google::protobuf::Any;
use proptest::prelude::*;
use prost::Message;

use super::{Options, decode};
use crate::resources::ResourceType;
use crate::testing::resources::{
    api_listener, eds_cluster, endpoints, inline_cluster, inline_listener, lb_endpoint, locality, pack, route,
    route_to_application, routes, routes_to, server_listener, virtual_host,
};
use crate::xds::decode::{decode_named, unwrap};
use crate::xds::names::{KINDS, type_url};

/// Resources that reach most of the decoders.
fn samples() -> Vec<(ResourceType, Vec<u8>)> {
    let mut assignment = endpoints("e", &[("10.0.0.1", 1)]);
    assignment.endpoints.push(locality("z", 1, 2, &[("10.0.0.2", 2)]));
    let mut host = virtual_host("v", &["a.b", "*.c"], vec![route("/a", "c"), route_to_application()]);
    host.routes[0].r#match.as_mut().unwrap().headers.push(route_pb::HeaderMatcher {
        name: "x".into(),
        header_match_specifier: Some(route_pb::header_matcher::HeaderMatchSpecifier::PresentMatch(true)),
        ..Default::default()
    });
    host.request_headers_to_add.push(core::HeaderValueOption {
        header: Some(core::HeaderValue { key: "k".into(), value: "v".into(), raw_value: vec![] }),
        ..Default::default()
    });
    let bound = "127.0.0.1:80".parse().unwrap();
    let strict = envoy_types::pb::envoy::config::cluster::v3::cluster::DiscoveryType::StrictDns;
    vec![
        (ResourceType::Listener, api_listener("l", "r").encode_to_vec()),
        (ResourceType::Listener, inline_listener("l", routes_to("", "c")).encode_to_vec()),
        (ResourceType::Listener, server_listener("s", bound, routes("", vec![host.clone()])).encode_to_vec()),
        (ResourceType::Route, routes("r", vec![host]).encode_to_vec()),
        (ResourceType::Cluster, eds_cluster("c").encode_to_vec()),
        (ResourceType::Cluster, inline_cluster("c", strict, &[("db", 1)]).encode_to_vec()),
        (ResourceType::Endpoints, assignment.encode_to_vec()),
    ]
}

#[test]
fn hazard_x7_a_resource_with_every_field_blank_is_rejected() {
    for kind in KINDS {
        assert!(decode(kind, b"", &Options::default()).is_err());
    }
}

#[test]
fn hazard_x7_any_message_of_a_sample_may_be_blank() {
    // Cuts every length-delimited field of a sample down to nothing, one at a time, wherever it is.
    for (kind, bytes) in samples() {
        for position in 0..bytes.len() {
            let mut blank = bytes.clone();
            blank[position] = 0;
            let _ = decode(kind, &blank, &Options::default());
            let _ = decode(kind, &bytes[..position], &Options::default());
        }
    }
}

#[test]
fn hazard_x8_what_is_not_what_it_says_is_rejected() {
    let cluster = pack(&eds_cluster("c"));
    let wrapped = |name: &str, resource| {
        pack(&discovery::Resource { name: name.into(), resource: Some(resource), ..Default::default() })
    };
    let named = |kind, any: Any| {
        let unwrapped = unwrap(kind, any)?;
        decode_named(kind, &unwrapped.name, &unwrapped.bytes, None, &Options::default())
    };
    assert!(named(ResourceType::Cluster, cluster.clone()).is_ok());
    assert!(named(ResourceType::Cluster, wrapped("c", cluster.clone())).is_ok());
    for (any, expected) in [
        (pack(&routes_to("r", "c")), "was expected"),
        (wrapped("other", cluster.clone()), "the name on the wrapper is \"other\""),
        (wrapped("c", pack(&routes_to("r", "c"))), "inside a Resource wrapper"),
        (wrapped("c", wrapped("c", cluster.clone())), "inside a Resource wrapper"),
        (pack(&discovery::Resource { name: "c".into(), ..Default::default() }), "an empty Resource wrapper"),
        (Any { type_url: type_url(ResourceType::Cluster).into(), value: vec![0xff] }, "malformed Protobuf"),
    ] {
        let text = named(ResourceType::Cluster, any).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn hazard_x6_ten_thousand_of_anything_is_decoded_or_rejected() {
    let many: Vec<_> = (0..10_000).map(|n| lb_endpoint(&format!("10.0.{}.{}", n / 250, n % 250), 1)).collect();
    let mut assignment = endpoints("e", &[]);
    assignment.endpoints[0].lb_endpoints = many;
    assert!(decode(ResourceType::Endpoints, &assignment.encode_to_vec(), &Options::default()).is_ok());
    let again = assignment.endpoints[0].lb_endpoints.clone();
    assignment.endpoints[0].lb_endpoints.extend(again);
    assert!(decode(ResourceType::Endpoints, &assignment.encode_to_vec(), &Options::default()).is_err());
}

#[test]
fn hazard_x9_an_expression_that_needs_much_memory_is_rejected() {
    let mut configuration = routes_to("r", "c");
    let matcher = envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher {
        regex: r"(\w{1,1000}){1,1000}".into(),
        ..Default::default()
    };
    configuration.virtual_hosts[0].routes[0].r#match.as_mut().unwrap().path_specifier =
        Some(route_pb::route_match::PathSpecifier::SafeRegex(matcher));
    let invalid = decode(ResourceType::Route, &configuration.encode_to_vec(), &Options::default()).unwrap_err();
    assert_eq!(invalid.field, "virtual_hosts[0].routes[0].match.safe_regex.regex");
}

#[test]
fn client_rule_21_protobuf_nested_beyond_any_need_is_rejected() {
    // NotMatch inside NotMatch inside a listener filter, by hand: field 3 of a predicate, length-delimited.
    let mut bytes = Vec::new();
    for _ in 0..10_000 {
        let mut outer = vec![0x1a];
        prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
        outer.extend_from_slice(&bytes);
        bytes = outer;
        if bytes.len() > 60_000 {
            break;
        }
    }
    let mut filter = vec![0x22];
    prost::encoding::encode_varint(bytes.len() as u64, &mut filter);
    filter.extend_from_slice(&bytes);
    let mut listener = vec![0x4a];
    prost::encoding::encode_varint(filter.len() as u64, &mut listener);
    listener.extend_from_slice(&filter);
    let invalid = decode(ResourceType::Listener, &listener, &Options::default()).unwrap_err();
    assert!(invalid.reason.contains("malformed Protobuf"), "{invalid}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn client_rule_21_random_bytes_never_panic(bytes in prop::collection::vec(any_byte(), 0..300)) {
        for kind in KINDS {
            let _ = decode(kind, &bytes, &Options::default());
            let wrapped = Any { type_url: "x/envoy.service.discovery.v3.Resource".into(), value: bytes.clone() };
            let _ = unwrap(kind, wrapped);
        }
    }

    #[test]
    fn client_rule_21_a_spoiled_resource_never_panics(
        sample in 0..7_usize,
        spoils in prop::collection::vec((any::<prop::sample::Index>(), any_byte()), 1..6),
        cut in any::<prop::sample::Index>(),
        cuts in prop::bool::weighted(0.2),
    ) {
        let (kind, mut bytes) = samples().swap_remove(sample);
        for (at, value) in spoils {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = decode(kind, &bytes, &Options::default());
    }
}

/// Small numbers are tags and lengths more often than large ones.
fn any_byte() -> impl Strategy<Value = u8> {
    prop_oneof![proptest::num::u8::ANY, 0_u8..48]
}
