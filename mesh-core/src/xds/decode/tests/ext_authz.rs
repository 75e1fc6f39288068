//! Authorizers of servers: what is understood, and that nothing that is not is passed over.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::rbac::v3 as policies;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::Any;
use http::StatusCode;
use prost::Message;

use super::decode;
use crate::authz::AccessRequest;
use crate::error::Invalid;
use crate::filter::FilterRegistry;
use crate::model::{CheckProtocol, FilterConfig, HttpManager, Listener, RouteSource};
use crate::request::RequestHead;
use crate::resources::{Resource, ResourceType};
use crate::state::States;
use crate::testing::resources::{
    filter_chain, http_filter, http_manager, pack, route_to_application, routes, server_listener, virtual_host,
};
use crate::view::RouteTable;
use crate::xds::decode::Options;

/// A server with these filters, and an override for its route.
fn server(filters: Vec<(&str, Any)>, of_route: Option<(&str, Any)>) -> listener::Listener {
    let mut route = route_to_application();
    route.typed_per_filter_config = of_route.into_iter().map(|(name, any)| (name.to_owned(), any)).collect();
    let routes = routes("r", vec![virtual_host("all", &["*"], vec![route])]);
    let mut manager = http_manager(hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes.clone()));
    let filters = filters.into_iter().map(|(name, any)| http_filter(name, any));
    manager.http_filters.splice(0..0, filters);
    let mut listener = server_listener("in", "127.0.0.1:80".parse().expect("an address"), routes);
    listener.filter_chains = vec![filter_chain(&manager)];
    listener
}

fn decoded(listener: &listener::Listener) -> Result<HttpManager, Invalid> {
    let decoded = decode(ResourceType::Listener, &listener.encode_to_vec(), &Options::default())?;
    let Resource::Listener(listener) = decoded.resource else { panic!("no listener") };
    let Listener::Server(server) = &*listener else { panic!("no server") };
    Ok(HttpManager::clone(&server.filter_chains[0].http))
}

fn compiled(listener: &listener::Listener) -> Result<RouteTable, Invalid> {
    let http = decoded(listener)?;
    let RouteSource::Inline(routes) = &http.routes else { panic!("routes are elsewhere") };
    RouteTable::compile(Arc::clone(routes), &http, &FilterRegistry::default(), &States::default(), "in")
}

fn grpc() -> pb::ExtAuthz {
    let service = core::grpc_service::EnvoyGrpc { authority: "authz:9000".to_owned(), ..Default::default() };
    let service = core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(service)),
        ..Default::default()
    };
    pb::ExtAuthz { services: Some(pb::ext_authz::Services::GrpcService(service)), ..Default::default() }
}

fn over_http(change: impl FnOnce(&mut pb::HttpService)) -> pb::ExtAuthz {
    let uri = core::HttpUri { uri: "http://authz:8000".to_owned(), ..Default::default() };
    let mut service = pb::HttpService { server_uri: Some(uri), ..Default::default() };
    change(&mut service);
    pb::ExtAuthz { services: Some(pb::ext_authz::Services::HttpService(service)), ..Default::default() }
}

fn with(change: impl FnOnce(&mut pb::ExtAuthz)) -> pb::ExtAuthz {
    let mut config = grpc();
    change(&mut config);
    config
}

/// "Where shadow rules have noted a policy under this prefix."
fn noted(prefix: &str) -> Option<matcher::MetadataMatcher> {
    use matcher::metadata_matcher::{PathSegment, path_segment::Segment};
    Some(matcher::MetadataMatcher {
        filter: "envoy.filters.http.rbac".to_owned(),
        path: vec![PathSegment { segment: Some(Segment::Key(format!("{prefix}shadow_effective_policy_id"))) }],
        value: Some(matcher::ValueMatcher {
            match_pattern: Some(matcher::value_matcher::MatchPattern::PresentMatch(true)),
        }),
        invert: false,
    })
}

/// Shadow rules for the path `/private`.
fn shadow(action: policies::rbac::Action) -> Rbac {
    let path = matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Exact("/private".to_owned())),
        ..Default::default()
    };
    let path = matcher::PathMatcher { rule: Some(matcher::path_matcher::Rule::Path(path)) };
    let policy = policies::Policy {
        permissions: vec![policies::Permission { rule: Some(policies::permission::Rule::UrlPath(path)) }],
        principals: vec![policies::Principal { identifier: Some(policies::principal::Identifier::Any(true)) }],
        ..Default::default()
    };
    let rules =
        policies::Rbac { action: action.into(), policies: [("p".to_owned(), policy)].into(), ..Default::default() };
    Rbac { shadow_rules: Some(rules), shadow_rules_stat_prefix: "custom_".to_owned(), ..Default::default() }
}

#[test]
fn an_authorizer_has_a_place_a_time_and_an_answer_for_when_it_has_none() {
    let config = over_http(|service| service.path_prefix = "/check".to_owned());
    let config = pb::ExtAuthz { failure_mode_allow: true, status_on_error: Some(HttpStatus { code: 503 }), ..config };
    let http = decoded(&server(vec![("a", pack(&config))], None)).expect("valid");
    let FilterConfig::ExtAuthz(read) = &http.filters[0].config else { panic!("{:?}", http.filters) };
    assert_eq!(
        (&*read.target, read.fail_open, read.status_on_error),
        ("authz:8000", true, StatusCode::SERVICE_UNAVAILABLE)
    );
    let CheckProtocol::Http(check) = &read.protocol else { panic!("{read:?}") };
    assert_eq!((check.path_prefix.as_str(), read.timeout.as_millis()), ("/check", 200));
    let http = decoded(&server(vec![("a", pack(&grpc()))], None)).expect("valid");
    let FilterConfig::ExtAuthz(read) = &http.filters[0].config else { panic!("{:?}", http.filters) };
    assert_eq!(
        (&read.protocol, read.fail_open, read.status_on_error),
        (&CheckProtocol::Grpc, false, StatusCode::FORBIDDEN)
    );
}

#[test]
fn an_authorizer_in_the_process_has_a_name_and_what_is_shown_of_bodies_a_bound() {
    let mut config = pb::ExtAuthz {
        with_request_body: Some(pb::BufferSettings {
            max_request_bytes: 8192,
            allow_partial_message: true,
            pack_as_bytes: true,
        }),
        ..grpc()
    };
    let Some(pb::ext_authz::Services::GrpcService(service)) = &mut config.services else { panic!("gRPC") };
    let Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(envoy)) = &mut service.target_specifier else {
        panic!("Envoy's")
    };
    envoy.authority = "plans.in-process.invalid:9000".to_owned();
    let http = decoded(&server(vec![("a", pack(&config))], None)).expect("valid");
    let FilterConfig::ExtAuthz(read) = &http.filters[0].config else { panic!("{:?}", http.filters) };
    assert_eq!(read.protocol, CheckProtocol::InProcess("plans".into()));
    let shown = read.body.expect("shown");
    assert_eq!((shown.most, shown.allow_partial, shown.as_bytes), (8192, true, true));
}

#[test]
fn what_cannot_be_asked_or_is_not_known_makes_the_resource_invalid() {
    let list = || Some(matcher::ListStringMatcher::default());
    let place = |uri: &str| over_http(|service| service.server_uri.as_mut().expect("set").uri = uri.to_owned());
    for (why, config) in [
        ("no service", pb::ExtAuthz::default()),
        ("a body of no length", with(|it| it.with_request_body = Some(pb::BufferSettings::default()))),
        (
            "a body of any length",
            with(|it| {
                it.with_request_body = Some(pb::BufferSettings { max_request_bytes: u32::MAX, ..Default::default() });
            }),
        ),
        ("over HTTP in the same process", place("http://plans.in-process.invalid:80")),
        ("a share", with(|it| it.filter_enabled = Some(core::RuntimeFractionalPercent::default()))),
        ("a status that lets in", with(|it| it.status_on_error = Some(HttpStatus { code: 200 }))),
        ("no status", with(|it| it.status_on_error = Some(HttpStatus { code: 0 }))),
        ("shadow mode", with(|it| it.shadow_mode = true)),
        ("hidden headers", with(|it| it.disallowed_headers = list())),
        ("rules on changes", with(|it| it.decoder_header_mutation_rules = Some(Default::default()))),
        (
            "an inverted condition",
            with(|it| {
                it.filter_enabled_metadata = noted("custom_");
                it.filter_enabled_metadata.as_mut().expect("set").invert = true;
            }),
        ),
        (
            "a condition on something else",
            with(|it| {
                it.filter_enabled_metadata = noted("custom_");
                it.filter_enabled_metadata.as_mut().expect("set").filter = "other".to_owned();
            }),
        ),
        ("a condition without a prefix", with(|it| it.filter_enabled_metadata = noted(""))),
        ("no host", place("http://")),
        ("no port", place("http://authz")),
        ("TLS of its own", place("https://authz:443")),
        ("a path", place("http://authz:80/check")),
        ("retries", over_http(|it| it.retry_policy = Some(core::RetryPolicy::default()))),
        ("another path", over_http(|it| it.path_override = "/x".to_owned())),
        (
            "a header of framing",
            over_http(|it| {
                let header =
                    core::HeaderValue { key: "Content-Length".to_owned(), value: "0".to_owned(), ..Default::default() };
                it.authorization_request =
                    Some(pb::AuthorizationRequest { headers_to_add: vec![header], ..Default::default() });
            }),
        ),
        (
            "headers to append",
            over_http(|it| {
                it.authorization_response = Some(pb::AuthorizationResponse {
                    allowed_upstream_headers_to_append: list(),
                    ..Default::default()
                });
            }),
        ),
    ] {
        assert!(decoded(&server(vec![("a", pack(&config))], None)).is_err(), "{why}");
    }
    let mut later = pack(&grpc());
    later.value.extend([0xf8, 0x7f, 0x01]);
    assert!(decoded(&server(vec![("a", later)], None)).is_err(), "a field of a later version");
}

#[test]
fn shadow_rules_say_whom_it_is_asked_about_and_are_not_tried() {
    let asker = with(|it| it.filter_enabled_metadata = noted("custom_"));
    let table =
        compiled(&server(vec![("noted", pack(&shadow(policies::rbac::Action::Deny))), ("asker", pack(&asker))], None));
    let table = table.unwrap_or_else(|invalid| panic!("{invalid}"));
    assert!(table.is_guarded());
    let asked_by = |path: &str| {
        let request = http::Request::get(format!("http://shop{path}")).body(()).expect("a request");
        let head = RequestHead::of_parts(request.method(), request.uri(), request.headers());
        let admission = table.admit(&head, None, &[], &mut fastrand::Rng::new());
        assert_eq!((admission.verdict().is_allowed, admission.verdict().shadow), (true, None));
        let [asker] = table.askers() else { panic!("{:?}", table.askers()) };
        asker.asked_by(&AccessRequest { head: Some(head), connection: None, tokens: &[] }).map(str::to_owned)
    };
    assert_eq!((asked_by("/private").as_deref(), asked_by("/open")), (Some("p"), None));
    assert!(
        table
            .find(
                &RequestHead::of_parts(&http::Method::GET, &"/".parse().expect("a path"), &http::HeaderMap::new()),
                &mut fastrand::Rng::new()
            )
            .is_err()
    );
}

#[test]
fn a_condition_that_nobody_decides_and_an_override_of_one_are_invalid() {
    let asker = || pack(&with(|it| it.filter_enabled_metadata = noted("custom_")));
    let deny = || pack(&shadow(policies::rbac::Action::Deny));
    let off = || pack(&RbacPerRoute::default());
    let disabled =
        || pack(&envoy_types::pb::envoy::config::route::v3::FilterConfig { disabled: true, ..Default::default() });
    for (why, filters, of_route) in [
        ("nobody decides", vec![("asker", asker())], None),
        ("it is decided after", vec![("asker", asker()), ("noted", deny())], None),
        (
            "it says who is let in",
            vec![("noted", pack(&shadow(policies::rbac::Action::Allow))), ("asker", asker())],
            None,
        ),
        ("the condition is turned off", vec![("noted", deny()), ("asker", asker())], Some(("noted", off()))),
        ("the question is turned off", vec![("noted", deny()), ("asker", asker())], Some(("asker", disabled()))),
    ] {
        assert!(compiled(&server(filters, of_route)).is_err(), "{why}");
    }
}
