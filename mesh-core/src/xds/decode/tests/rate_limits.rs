//! What requests are counted by.

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::{self, ActionSpecifier as Kind};
use envoy_types::pb::envoy::config::route::v3::rate_limit::{Action, HitsAddend, Override, r#override};
use envoy_types::pb::envoy::config::route::v3::{self as pb, RateLimit as RateLimitProto};
use envoy_types::pb::envoy::r#type::metadata::v3::{MetadataKey, metadata_key};
use envoy_types::pb::google::protobuf::value::Kind as ValueKind;
use envoy_types::pb::google::protobuf::{Any, BoolValue, ListValue, Struct, UInt32Value, UInt64Value, Value};
use prost::Message;

use super::super::common::TypedStruct;
use super::{accept, all_rejected};
use crate::model::{
    CLIENT_ENTRY, ClientPart, DescriptorAction, LimitOverride, LimitUnit, PATH_ENTRY, RateLimit, RouteAction,
};
use crate::resources::{Resource, ResourceType};

fn by(kinds: impl IntoIterator<Item = Kind>) -> RateLimitProto {
    let actions = kinds.into_iter().map(|kind| Action { action_specifier: Some(kind) }).collect();
    RateLimitProto { actions, ..Default::default() }
}

fn constant(value: &str) -> Kind {
    Kind::GenericKey(action::GenericKey { descriptor_value: value.to_owned(), ..Default::default() })
}

/// An entry of our own.
fn own(name: &str, fields: &[(&str, ValueKind)]) -> Kind {
    let fields = fields.iter().map(|(key, kind)| ((*key).to_owned(), Value { kind: Some(kind.clone()) })).collect();
    let own = TypedStruct { type_url: format!("type.googleapis.com/{name}"), value: Some(Struct { fields }) };
    let any = Any { type_url: "type.googleapis.com/xds.type.v3.TypedStruct".to_owned(), value: own.encode_to_vec() };
    Kind::Extension(TypedExtensionConfig { name: "own".to_owned(), typed_config: Some(any) })
}

fn text(text: &str) -> ValueKind {
    ValueKind::StringValue(text.to_owned())
}

fn metadata(filter: &str, path: &[&str]) -> Kind {
    let path = path.iter().map(|key| metadata_key::PathSegment {
        segment: Some(metadata_key::path_segment::Segment::Key((*key).to_owned())),
    });
    Kind::Metadata(action::MetaData {
        descriptor_key: "sub".to_owned(),
        metadata_key: Some(MetadataKey { key: filter.to_owned(), path: path.collect() }),
        ..Default::default()
    })
}

/// A route with these, in a virtual host with those.
fn configuration(of_route: Vec<RateLimitProto>, of_host: Vec<RateLimitProto>) -> pb::RouteConfiguration {
    let action = pb::RouteAction {
        rate_limits: of_route,
        include_vh_rate_limits: Some(BoolValue { value: true }),
        cluster_specifier: Some(pb::route_action::ClusterSpecifier::Cluster("a".to_owned())),
        ..Default::default()
    };
    let route = pb::Route {
        r#match: Some(pb::RouteMatch {
            path_specifier: Some(pb::route_match::PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(pb::route::Action::Route(action)),
        ..Default::default()
    };
    let host = pb::VirtualHost {
        domains: vec!["*".to_owned()],
        routes: vec![route],
        rate_limits: of_host,
        ..Default::default()
    };
    pb::RouteConfiguration { name: "r".to_owned(), virtual_hosts: vec![host], ..Default::default() }
}

/// What of these counts on a route, and what is passed over.
fn decoded(limits: Vec<RateLimitProto>) -> (Vec<RateLimit>, Vec<String>) {
    let decoded = accept(ResourceType::Route, &configuration(limits, Vec::new()));
    let Resource::Route(routes) = decoded.resource else { panic!("another kind") };
    let RouteAction::Forward(forward) = &routes.virtual_hosts[0].routes[0].action else { panic!("another action") };
    (forward.rate_limits.iter().map(|limit| RateLimit::clone(limit)).collect(), decoded.ignored)
}

#[test]
fn routes_and_virtual_hosts_say_what_requests_are_counted_by() {
    let decoded = accept(
        ResourceType::Route,
        &configuration(vec![by([constant("of the route")])], vec![by([constant("of the host")])]),
    );
    assert_eq!(decoded.ignored, [""; 0]);
    let Resource::Route(routes) = decoded.resource else { panic!("another kind") };
    let host = &routes.virtual_hosts[0];
    let RouteAction::Forward(forward) = &host.routes[0].action else { panic!("another action") };
    let one = |value: &str| {
        RateLimit::by(vec![DescriptorAction::Constant { key: "generic_key".into(), value: value.into() }])
    };
    assert_eq!((&*forward.rate_limits[0], forward.includes_host_rate_limits), (&one("of the route"), true));
    assert_eq!(*host.rate_limits[0], one("of the host"));
}

#[test]
fn every_action_is_known_and_what_it_leaves_out_has_envoys_default() {
    let key = |text: &str| text.into();
    let templates = ValueKind::ListValue(ListValue { values: vec![Value { kind: Some(text("/users/{id}")) }] });
    let header = pb::HeaderMatcher {
        name: "a".to_owned(),
        header_match_specifier: Some(pb::header_matcher::HeaderMatchSpecifier::PresentMatch(true)),
        ..Default::default()
    };
    let query = pb::QueryParameterMatcher { name: "a".to_owned(), ..Default::default() };
    let (limits, ignored) = decoded(vec![by([
        Kind::SourceCluster(action::SourceCluster {}),
        Kind::DestinationCluster(action::DestinationCluster {}),
        Kind::RequestHeaders(action::RequestHeaders {
            header_name: "X-User".to_owned(),
            descriptor_key: "user".to_owned(),
            skip_if_absent: true,
        }),
        Kind::QueryParameters(action::QueryParameters {
            query_parameter_name: "q".to_owned(),
            descriptor_key: "query".to_owned(),
            skip_if_absent: false,
        }),
        Kind::RemoteAddress(action::RemoteAddress {}),
        Kind::MaskedRemoteAddress(action::MaskedRemoteAddress {
            v4_prefix_mask_len: Some(UInt32Value { value: 16 }),
            v6_prefix_mask_len: None,
        }),
        Kind::HeaderValueMatch(action::HeaderValueMatch {
            descriptor_value: "h".to_owned(),
            headers: vec![header],
            ..Default::default()
        }),
        Kind::QueryParameterValueMatch(action::QueryParameterValueMatch {
            descriptor_value: "v".to_owned(),
            query_parameters: vec![query],
            expect_match: Some(BoolValue { value: false }),
            ..Default::default()
        }),
        metadata("envoy.filters.http.jwt_authn", &["payload", "sub"]),
        own(CLIENT_ENTRY, &[("key", text("who")), ("part", text("namespace"))]),
        own(PATH_ENTRY, &[("key", text("path")), ("templates", templates)]),
    ])]);
    assert_eq!(ignored, [""; 0]);
    let actions = &limits[0].actions;
    assert!(matches!(&actions[2], DescriptorAction::Header { name, skip_if_absent: true, .. } if **name == *"x-user"));
    assert!(matches!(actions[5], DescriptorAction::MaskedRemoteAddress { v4_bits: 16, v6_bits: 128 }));
    assert!(
        matches!(&actions[6], DescriptorAction::HeaderMatch { key, expects: true, .. } if **key == *"header_match")
    );
    assert!(matches!(&actions[7], DescriptorAction::QueryMatch { key, expects: false, .. } if **key == *"query_match"));
    let path = vec!["sub".to_owned()];
    assert_eq!(actions[8], DescriptorAction::Claim { key: key("sub"), path, default: None, skip_if_absent: false });
    assert_eq!(actions[9], DescriptorAction::Client { key: key("who"), part: ClientPart::Namespace });
    assert!(matches!(&actions[10], DescriptorAction::PathTemplate { templates, .. } if templates.len() == 1));
}

#[test]
fn hits_and_limits_of_a_route_are_honoured() {
    let of_route = Override {
        override_specifier: Some(r#override::OverrideSpecifier::RateLimit(r#override::RateLimitOverride {
            requests_per_unit: 5,
            unit: 3,
        })),
    };
    let (limits, ignored) = decoded(vec![RateLimitProto {
        stage: Some(UInt32Value { value: 10 }),
        hits_addend: Some(HitsAddend { number: Some(UInt64Value { value: 7 }), ..Default::default() }),
        limit: Some(of_route),
        ..by([constant("x")])
    }]);
    assert_eq!(ignored, [""; 0]);
    let limit = LimitOverride { requests: 5, unit: LimitUnit::Hour };
    assert_eq!((limits[0].stage, limits[0].hits, limits[0].limit), (10, Some(7), Some(limit)));
}

#[test]
fn what_nobody_can_find_out_here_is_told_and_not_counted_otherwise() {
    let commands = HitsAddend { format: "%BYTES_RECEIVED%".to_owned(), ..Default::default() };
    for (limit, told) in [
        (RateLimitProto { apply_on_stream_done: true, ..by([constant("x")]) }, "apply_on_stream_done"),
        (RateLimitProto { hits_addend: Some(commands), ..by([constant("x")]) }, "hits_addend.format"),
        (by([constant("x"), metadata("my.filter", &["a"])]), "actions[1].metadata.metadata_key"),
        (by([own("another.Thing", &[])]), "actions[0].extension.(another.Thing)"),
    ] {
        let (limits, ignored) = decoded(vec![limit]);
        assert_eq!(limits, [], "{told}");
        assert!(ignored.len() == 1 && ignored[0].contains(told), "{told:?} in {ignored:?}");
    }
}

#[test]
fn what_envoy_refuses_is_refused() {
    let valid = configuration(vec![by([constant("x")])], Vec::new());
    fn limit(routes: &mut pb::RouteConfiguration) -> &mut RateLimitProto {
        let Some(pb::route::Action::Route(action)) = &mut routes.virtual_hosts[0].routes[0].action else {
            panic!("another action");
        };
        &mut action.rate_limits[0]
    }
    all_rejected(
        ResourceType::Route,
        &valid,
        &[
            ("route.rate_limits[0].stage: more than 10", |routes| {
                limit(routes).stage = Some(UInt32Value { value: 11 });
            }),
            ("actions: the list is empty", |routes| limit(routes).actions.clear()),
            ("actions[0]: no known kind of action", |routes| limit(routes).actions[0].action_specifier = None),
            ("generic_key.descriptor_value: must not be empty", |routes| *limit(routes) = by([constant("")])),
            ("request_headers.header_name", |routes| {
                *limit(routes) = by([Kind::RequestHeaders(action::RequestHeaders {
                    header_name: "a b".to_owned(),
                    descriptor_key: "x".to_owned(),
                    skip_if_absent: false,
                })]);
            }),
            ("v4_prefix_mask_len: more than 32 bits", |routes| {
                *limit(routes) = by([Kind::MaskedRemoteAddress(action::MaskedRemoteAddress {
                    v4_prefix_mask_len: Some(UInt32Value { value: 33 }),
                    v6_prefix_mask_len: None,
                })]);
            }),
            ("hits_addend.number: more than 1000000000", |routes| {
                let number = Some(UInt64Value { value: 1_000_000_001 });
                limit(routes).hits_addend = Some(HitsAddend { number, ..Default::default() });
            }),
            ("limit.unit", |routes| {
                limit(routes).limit = Some(Override {
                    override_specifier: Some(r#override::OverrideSpecifier::RateLimit(Default::default())),
                });
            }),
            ("extension.part: \"x\" is not known", |routes| {
                *limit(routes) = by([own(CLIENT_ENTRY, &[("key", text("who")), ("part", text("x"))])]);
            }),
        ],
    );
}
