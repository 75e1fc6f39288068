//! RBAC of servers: what is understood, and that nothing that is not is passed over.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier};
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::Int32Range;
use envoy_types::pb::google::protobuf::{Any, UInt32Value};
use matcher::value_matcher::MatchPattern;
use pb::permission::Rule;
use pb::principal::Identifier;
use prost::Message;

use super::decode;
use crate::authz::Connection;
use crate::error::{ErrorKind, Invalid};
use crate::filter::FilterRegistry;
use crate::id::ListenerName;
use crate::jwt::Claims;
use crate::model::{self, Listener, RouteSource, ServerListener};
use crate::request::RequestHead;
use crate::resources::{Resource, ResourceType};
use crate::state::States;
use crate::testing::resources::{
    filter_chain, http_filter, http_manager, pack, route_to_application, routes, server_listener, virtual_host,
};
use crate::view::RouteTable;
use crate::xds::decode::Options;

fn exactly(value: &str) -> matcher::StringMatcher {
    matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(value.to_owned())),
        ..Default::default()
    }
}

fn permission(rule: Rule) -> pb::Permission {
    pb::Permission { rule: Some(rule) }
}

fn principal(identifier: Identifier) -> pb::Principal {
    pb::Principal { identifier: Some(identifier) }
}

fn policy(rule: Rule, identifier: Identifier) -> pb::Policy {
    pb::Policy { permissions: vec![permission(rule)], principals: vec![principal(identifier)], ..Default::default() }
}

fn rules(action: pb::rbac::Action, policies: impl IntoIterator<Item = pb::Policy>) -> Rbac {
    let policies = policies.into_iter().enumerate().map(|(number, policy)| (format!("p{number}"), policy)).collect();
    let rules = pb::Rbac { action: action.into(), policies, ..Default::default() };
    Rbac { rules: Some(rules), ..Default::default() }
}

fn deny(rule: Rule, identifier: Identifier) -> Rbac {
    rules(pb::rbac::Action::Deny, [policy(rule, identifier)])
}

fn header(name: &str) -> route::HeaderMatcher {
    route::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(exactly("a"))),
        ..Default::default()
    }
}

fn cidr(address_prefix: &str, length: u32) -> core::CidrRange {
    core::CidrRange { address_prefix: address_prefix.to_owned(), prefix_len: Some(UInt32Value { value: length }) }
}

fn url_path(path: &str) -> matcher::PathMatcher {
    matcher::PathMatcher { rule: Some(matcher::path_matcher::Rule::Path(exactly(path))) }
}

fn filter_state(key: &str) -> Identifier {
    Identifier::FilterState(matcher::FilterStateMatcher {
        key: key.to_owned(),
        matcher: Some(matcher::filter_state_matcher::Matcher::StringMatch(exactly("shop"))),
    })
}

fn metadata(filter: &str, path: &[&str], pattern: Option<MatchPattern>) -> matcher::MetadataMatcher {
    use matcher::metadata_matcher::{PathSegment, path_segment::Segment};
    let key = |key: &&str| PathSegment { segment: Some(Segment::Key((*key).to_owned())) };
    matcher::MetadataMatcher {
        filter: filter.to_owned(),
        path: path.iter().map(key).collect(),
        value: Some(matcher::ValueMatcher { match_pattern: pattern }),
        invert: false,
    }
}

fn template(path: &str) -> Rule {
    let config = UriTemplateMatchConfig { path_template: path.to_owned() };
    Rule::UriTemplate(core::TypedExtensionConfig { name: "template".to_owned(), typed_config: Some(pack(&config)) })
}

/// A server with this filter, and overrides for its virtual host and its route.
fn server(filter: Any, of_host: Option<Any>, of_route: Option<Any>) -> listener::Listener {
    let named = |any: Option<Any>| any.into_iter().map(|any| ("rbac".to_owned(), any)).collect::<HashMap<_, _>>();
    let mut route = route_to_application();
    route.typed_per_filter_config = named(of_route);
    let mut host = virtual_host("all", &["*"], vec![route]);
    host.typed_per_filter_config = named(of_host);
    let routes = routes("r", vec![host]);
    let mut manager = http_manager(hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes.clone()));
    manager.http_filters.insert(0, http_filter("rbac", filter));
    let mut listener = server_listener("in", "127.0.0.1:80".parse().expect("an address"), routes);
    listener.filter_chains = vec![filter_chain(&manager)];
    listener
}

fn decoded(listener: &listener::Listener) -> Result<ServerListener, Invalid> {
    let decoded = decode(ResourceType::Listener, &listener.encode_to_vec(), &Options::default())?;
    match decoded.resource {
        Resource::Listener(listener) => match &*listener {
            Listener::Server(server) => Ok(server.clone()),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// What becomes of `GET /` from 10.0.0.1, in plaintext.
fn outcome(listener: &listener::Listener) -> Result<(), ErrorKind> {
    outcome_of(listener, &[])
}

/// The same, with these tokens.
fn outcome_of(listener: &listener::Listener, tokens: &[Claims]) -> Result<(), ErrorKind> {
    let server = decoded(listener).unwrap_or_else(|invalid| panic!("{invalid}"));
    let http: &model::HttpManager = &server.filter_chains[0].http;
    let RouteSource::Inline(routes) = &http.routes else { panic!("routes are elsewhere") };
    let (registry, states) = (FilterRegistry::default(), States::default());
    let name = ListenerName::from("in");
    let table = RouteTable::compile(Arc::clone(routes), http, &registry, &states, name.as_str())
        .unwrap_or_else(|invalid| panic!("{invalid}"));
    let request = ::http::Request::get("http://shop/").body(()).expect("a request");
    let head = RequestHead::of_parts(request.method(), request.uri(), request.headers());
    let connection = Connection {
        peer: None,
        source: "10.0.0.1:5000".parse().expect("an address"),
        remote: "10.0.0.1:5000".parse().expect("an address"),
        destination: "127.0.0.1:80".parse().expect("an address"),
        server_name: None,
    };
    let admission = table.admit(&head, Some(connection), tokens, &mut fastrand::Rng::new());
    admission.into_route().map(|_| ()).map_err(|error| error.kind())
}

const REFUSED: Result<(), ErrorKind> = Err(ErrorKind::AccessDenied);

#[test]
fn allow_without_policies_lets_nobody_in_and_no_rules_enforce_nothing() {
    let of = |rbac: &Rbac| outcome(&server(pack(rbac), None, None));
    assert_eq!(of(&Rbac::default()), Ok(()));
    assert_eq!(of(&rules(pb::rbac::Action::Allow, [])), REFUSED);
    assert_eq!(of(&rules(pb::rbac::Action::Deny, [])), Ok(()));
    assert_eq!(of(&rules(pb::rbac::Action::Log, [])), Ok(()));
    let shadow = Rbac { rules: None, shadow_rules: rules(pb::rbac::Action::Allow, []).rules, ..Default::default() };
    assert_eq!(of(&shadow), Ok(()));
}

#[test]
fn what_is_understood_decides() {
    let any = || Identifier::Any(true);
    let is_for =
        |rule: Rule, identifier: Identifier| outcome(&server(pack(&deny(rule, identifier)), None, None)) == REFUSED;
    let set = |rules: Vec<Rule>| pb::permission::Set { rules: rules.into_iter().map(permission).collect() };
    let ids = |ids: Vec<Identifier>| pb::principal::Set { ids: ids.into_iter().map(principal).collect() };
    for (rule, expected) in [
        (Rule::Any(true), true),
        (Rule::AndRules(set(vec![Rule::Any(true), Rule::DestinationPort(81)])), false),
        (Rule::OrRules(set(vec![Rule::DestinationPort(80), Rule::DestinationPort(81)])), true),
        (Rule::NotRule(Box::new(permission(Rule::Any(true)))), false),
        (Rule::UrlPath(url_path("/")), true),
        (Rule::UrlPath(url_path("/a")), false),
        (template("/*"), false),
        (template("/**"), true),
        (Rule::Header(header(":method")), false),
        (Rule::Header(header("x-a")), false),
        (Rule::DestinationIp(cidr("127.0.0.0", 8)), true),
        (Rule::DestinationPortRange(Int32Range { start: 80, end: 81 }), true),
        (Rule::DestinationPortRange(Int32Range { start: 81, end: 82 }), false),
        (Rule::RequestedServerName(exactly("")), true),
    ] {
        assert_eq!(is_for(rule.clone(), any()), expected, "{rule:?}");
    }
    let authenticated = |principal_name| Identifier::Authenticated(pb::principal::Authenticated { principal_name });
    for (identifier, expected) in [
        (any(), true),
        (Identifier::AndIds(ids(vec![any(), authenticated(None)])), false),
        (Identifier::OrIds(ids(vec![any(), authenticated(None)])), true),
        (Identifier::NotId(Box::new(principal(authenticated(Some(exactly("spiffe://td/a")))))), true),
        (authenticated(None), false),
        (Identifier::DirectRemoteIp(cidr("10.0.0.0", 8)), true),
        (Identifier::RemoteIp(cidr("10.0.0.1", 32)), true),
        (Identifier::RemoteIp(cidr("10.0.0.2", 32)), false),
        (Identifier::UrlPath(url_path("/")), true),
        (Identifier::Header(header("x-a")), false),
        (filter_state("mesh.peer.namespace"), false),
    ] {
        assert_eq!(is_for(Rule::Any(true), identifier.clone()), expected, "{identifier:?}");
    }
}

/// As Istio has it, now and before.
#[test]
fn metadata_of_a_jwt_filter_is_what_the_token_says() {
    const JWT: &str = "envoy.filters.http.jwt_authn";
    let claims = serde_json::json!({"iss": "idp", "sub": "me", "aud": ["shop"], "azp": "web", "a": {"b": "c"}});
    let token = Claims::unverified(claims.as_object().expect("claims").clone(), &[].into());
    let is_for = |test: matcher::MetadataMatcher| {
        let sourced = pb::SourcedMetadata { metadata_matcher: Some(test.clone()), ..Default::default() };
        let all = [
            deny(Rule::Any(true), Identifier::Metadata(test.clone())),
            deny(Rule::Metadata(test), Identifier::Any(true)),
            deny(Rule::Any(true), Identifier::SourcedMetadata(sourced.clone())),
            deny(Rule::SourcedMetadata(sourced), Identifier::Any(true)),
        ];
        let [first, rest @ ..] = all.map(|rbac| {
            let listener = server(pack(&rbac), None, None);
            // Without a token, nothing matches.
            assert_eq!(outcome(&listener), Ok(()), "{rbac:?}");
            outcome_of(&listener, std::slice::from_ref(&token)) == REFUSED
        });
        assert_eq!(rest, [first; 3]);
        first
    };
    let text = |value: &str| MatchPattern::StringMatch(exactly(value));
    let value = |pattern| matcher::ValueMatcher { match_pattern: Some(pattern) };
    let one_of = |pattern| {
        let one_of = matcher::list_matcher::MatchPattern::OneOf(Box::new(value(pattern)));
        MatchPattern::ListMatch(Box::new(matcher::ListMatcher { match_pattern: Some(one_of) }))
    };
    let or = |patterns: [MatchPattern; 2]| {
        MatchPattern::OrMatch(matcher::OrMatcher { value_matchers: patterns.map(value).into() })
    };
    for (filter, path, pattern, expected) in [
        (JWT, &["payload", "iss"][..], text("idp"), true),
        (JWT, &["payload", "iss"], text("other"), false),
        (JWT, &["payload", "iss"], MatchPattern::PresentMatch(true), true),
        (JWT, &["payload", "none"], MatchPattern::PresentMatch(true), false),
        (JWT, &["payload", "a", "b"], text("c"), true),
        (JWT, &["payload", "aud"], text("shop"), false),
        (JWT, &["payload", "aud"], one_of(text("shop")), true),
        (JWT, &["payload", "aud"], one_of(or([text("x"), text("shop")])), true),
        (JWT, &["payload", "azp"], or([one_of(text("web")), text("web")]), true),
        ("istio_authn", &["request.auth.principal"], text("idp/me"), true),
        ("istio_authn", &["request.auth.principal"], text("me"), false),
        ("istio_authn", &["request.auth.audiences"], one_of(text("shop")), true),
        ("istio_authn", &["request.auth.presenter"], text("web"), true),
        ("istio_authn", &["request.auth.claims", "a", "b"], text("c"), true),
    ] {
        assert_eq!(is_for(metadata(filter, path, Some(pattern.clone()))), expected, "{path:?} {pattern:?}");
    }
    let inverted = matcher::MetadataMatcher { invert: true, ..metadata(JWT, &["payload", "iss"], Some(text("idp"))) };
    let listener = server(pack(&deny(Rule::Any(true), Identifier::Metadata(inverted))), None, None);
    assert_eq!((outcome(&listener), outcome_of(&listener, &[token])), (REFUSED, Ok(())));
}

/// Hazards A12, A16 and A18.
#[test]
fn a16_a18_what_is_not_understood_is_refused_and_never_passed_over() {
    let any = || Identifier::Any(true);
    let rejected = |rbac: &Rbac, expected: &str| {
        for is_shadow in [false, true] {
            let mut rbac = rbac.clone();
            if is_shadow {
                std::mem::swap(&mut rbac.rules, &mut rbac.shadow_rules);
            }
            let inside = RbacPerRoute { rbac: Some(rbac.clone()) };
            for listener in [
                server(pack(&rbac), None, None),
                server(pack(&Rbac::default()), Some(pack(&inside)), None),
                server(pack(&Rbac::default()), None, Some(pack(&inside))),
            ] {
                let text = decoded(&listener).expect_err(expected).to_string();
                assert!(text.contains(expected), "expected {expected:?} in {text:?}");
            }
        }
    };
    let of_rule = |rule: Option<Rule>, expected: &str| {
        let nested = |rule: pb::Permission| permission(Rule::NotRule(Box::new(rule)));
        for rule in [pb::Permission { rule: rule.clone() }, nested(nested(pb::Permission { rule: rule.clone() }))] {
            let policy = pb::Policy { permissions: vec![rule], ..policy(Rule::Any(true), any()) };
            rejected(&rules(pb::rbac::Action::Allow, [policy]), expected);
        }
    };
    of_rule(None, "no known rule");
    of_rule(Some(Rule::Any(false)), "any: must be true");
    of_rule(Some(Rule::AndRules(Default::default())), "and_rules.rules: the list is empty");
    of_rule(Some(Rule::OrRules(Default::default())), "or_rules.rules: the list is empty");
    of_rule(Some(Rule::Metadata(Default::default())), "metadata.value");
    of_rule(Some(Rule::SourcedMetadata(Default::default())), "sourced_metadata.metadata_matcher");
    of_rule(Some(Rule::Matcher(Default::default())), "matcher: not supported");
    of_rule(Some(Rule::UrlPath(Default::default())), "url_path: no known rule");
    of_rule(Some(template("/**/*")), "behind ** there are literals only");
    of_rule(Some(Rule::DestinationPort(65_536)), "is not a port");
    of_rule(Some(Rule::DestinationPortRange(Int32Range { start: 2, end: 2 })), "not a range of ports");
    of_rule(Some(Rule::DestinationPortRange(Int32Range { start: 0, end: i32::MIN })), "not a range of ports");
    of_rule(Some(Rule::DestinationIp(cidr("shop", 8))), "is not an IP address");
    of_rule(Some(Rule::DestinationIp(cidr("10.0.0.0", 33))), "more than 32 bits");
    of_rule(Some(Rule::Header(route::HeaderMatcher::default())), "header.name");
    of_rule(Some(Rule::Header(header("Grpc-Status"))), "are not for policies");
    of_rule(Some(Rule::Header(header(":scheme"))), "are not for policies");
    of_rule(Some(Rule::RequestedServerName(Default::default())), "no match pattern");
    let of_principal = |identifier: Option<Identifier>, expected: &str| {
        let policy = pb::Policy { principals: vec![pb::Principal { identifier }], ..policy(Rule::Any(true), any()) };
        rejected(&rules(pb::rbac::Action::Deny, [policy]), expected);
    };
    of_principal(None, "no known identifier");
    of_principal(Some(Identifier::Any(false)), "any: must be true");
    of_principal(Some(Identifier::AndIds(Default::default())), "and_ids.ids: the list is empty");
    let text = || MatchPattern::StringMatch(exactly("a"));
    for (filter, path, pattern, expected) in [
        ("envoy.lb", &["payload", "iss"][..], Some(text()), "filter: nobody knows"),
        ("envoy.filters.http.jwt_authn", &["other", "iss"], Some(text()), "path: "),
        ("envoy.filters.http.jwt_authn", &["payload"], Some(text()), "path: "),
        ("envoy.filters.http.jwt_authn", &[], Some(text()), "path: "),
        ("envoy.filters.http.jwt_authn", &["payload", ""], Some(text()), "a segment without a key"),
        ("istio_authn", &["request.auth.principal", "a"], Some(text()), "path: "),
        ("istio_authn", &["request.auth.principal"], Some(MatchPattern::PresentMatch(true)), "only string_match"),
        ("istio_authn", &["source.principal"], Some(text()), "path: "),
        ("istio_authn", &["request.auth.audiences"], None, "no match pattern"),
        ("istio_authn", &["request.auth.audiences"], Some(MatchPattern::PresentMatch(false)), "must be true"),
        ("istio_authn", &["request.auth.audiences"], Some(MatchPattern::BoolMatch(true)), "bool_match: not supported"),
        ("istio_authn", &["request.auth.audiences"], Some(MatchPattern::NullMatch(Default::default())), "null_match"),
        ("istio_authn", &["request.auth.audiences"], Some(MatchPattern::DoubleMatch(Default::default())), "double"),
        ("istio_authn", &["request.auth.audiences"], Some(MatchPattern::ListMatch(Default::default())), "list_match"),
        ("istio_authn", &["request.auth.audiences"], Some(MatchPattern::OrMatch(Default::default())), "is empty"),
    ] {
        let test = metadata(filter, path, pattern);
        of_principal(Some(Identifier::Metadata(test.clone())), expected);
        of_rule(Some(Rule::Metadata(test)), expected);
    }
    let of_route = pb::SourcedMetadata {
        metadata_matcher: Some(metadata("istio_authn", &["request.auth.principal"], Some(text()))),
        metadata_source: pb::MetadataSource::Route.into(),
    };
    of_principal(Some(Identifier::SourcedMetadata(of_route)), "metadata_source: not supported");
    of_principal(Some(Identifier::Custom(Default::default())), "custom: not supported");
    of_principal(Some(filter_state("io.istio.peer_principal")), "is not known");
    let of_policy = |spoil: fn(&mut pb::Policy), expected: &str| {
        let mut policy = policy(Rule::Any(true), any());
        spoil(&mut policy);
        rejected(&rules(pb::rbac::Action::Allow, [policy]), expected);
    };
    of_policy(|policy| policy.permissions.clear(), "permissions: the list is empty");
    of_policy(|policy| policy.principals.clear(), "principals: the list is empty");
    of_policy(|policy| policy.condition = Some(Default::default()), "condition: not supported");
    of_policy(|policy| policy.checked_condition = Some(Default::default()), "checked_condition: not supported");
    of_policy(|policy| policy.cel_config = Some(Default::default()), "cel_config: not supported");
    let unknown = pb::Rbac { action: 7, ..Default::default() };
    rejected(&Rbac { rules: Some(unknown), ..Default::default() }, "action: not a known value");
    rejected(&Rbac { matcher: Some(Default::default()), ..Default::default() }, "matcher: not supported");
    // A field of a release to come: number 100, a message of one byte.
    let mut later = pack(&rules(pb::rbac::Action::Deny, []));
    later.value.extend([0xa2, 0x06, 0x01, 0x00]);
    let text = decoded(&server(later, None, None)).expect_err("it is not known").to_string();
    assert!(text.contains("http_filters[0].typed_config: a security filter with a field that is not known"), "{text}");
}

/// Hazard A17.
#[test]
fn a17_the_most_specific_policies_count_at_every_level() {
    let open = || rules(pb::rbac::Action::Allow, [policy(Rule::Any(true), Identifier::Any(true))]);
    let closed = || rules(pb::rbac::Action::Allow, []);
    let over = |rbac: Rbac| Some(pack(&RbacPerRoute { rbac: Some(rbac) }));
    let off = || Some(pack(&RbacPerRoute { rbac: None }));
    let cases = [
        (server(pack(&open()), over(closed()), None), REFUSED),
        (server(pack(&open()), None, over(closed())), REFUSED),
        (server(pack(&open()), over(open()), over(closed())), REFUSED),
        (server(pack(&open()), over(closed()), over(open())), Ok(())),
        (server(pack(&closed()), over(open()), None), Ok(())),
        (server(pack(&closed()), None, off()), Ok(())),
        (server(pack(&closed()), off(), over(closed())), REFUSED),
        (server(pack(&closed()), over(Rbac::default()), None), Ok(())),
    ];
    for (position, (listener, expected)) in cases.into_iter().enumerate() {
        assert_eq!(outcome(&listener), expected, "case {position}");
    }
}

#[test]
fn nothing_else_takes_the_place_of_a_guard() {
    let plain = decoded(&server(pack(&Rbac::default()), Some(pack(&Rbac::default())), None));
    assert!(plain.expect_err("it must be RBACPerRoute").to_string().contains("not supported here"));
    let server =
        decoded(&server(pack(&Rbac::default()), Some(pack(&HttpFault::default())), None)).expect("two filters");
    let http = &server.filter_chains[0].http;
    let RouteSource::Inline(routes) = &http.routes else { panic!("routes are elsewhere") };
    let table = RouteTable::compile(Arc::clone(routes), http, &FilterRegistry::default(), &States::default(), "in");
    assert!(table.expect_err("no fault in its place").to_string().contains("only RBAC can stand in its place"));
}

/// A plugin before policies is passed before them, and bytes that it cannot look into are let in by no server.
#[test]
fn a_plugin_that_stands_before_a_guard_comes_first_and_closes_the_server_to_bytes() {
    let everybody = rules(pb::rbac::Action::Allow, [policy(Rule::Any(true), Identifier::Any(true))]);
    let server = decoded(&server(pack(&everybody), None, None)).expect("a server");
    let mut http = server.filter_chains[0].http.clone();
    let RouteSource::Inline(routes) = http.routes.clone() else { panic!("routes are elsewhere") };
    let plugin = || {
        let plugin = model::FilterConfig::Plugin(Arc::new(model::Plugin::new("acme.none", "{}")));
        model::NamedFilter::new("plugin", plugin)
    };
    let compiled = |http: &model::HttpManager| {
        RouteTable::compile(Arc::clone(&routes), http, &FilterRegistry::default(), &States::default(), "in").unwrap()
    };
    assert!(compiled(&http).early().is_none() && compiled(&http).why_no_bytes().is_none());
    http.filters.push(plugin());
    let last = compiled(&http);
    assert!(last.early().is_none() && last.has_filters() && last.why_no_bytes().is_some());
    http.filters.pop();
    http.filters.insert(0, plugin());
    let first = compiled(&http);
    let early = first.early().expect("it comes before RBAC");
    assert_eq!((early[0].len(), early[1].len(), first.has_filters()), (0, 1, false));
    assert!(first.why_no_bytes().is_some());
}

/// A server whose chain has these filters, and then a TcpProxy.
fn of_bytes(guards: Vec<(&str, Any)>) -> listener::Listener {
    let proxy = TcpProxy { cluster_specifier: Some(ClusterSpecifier::Cluster("c".to_owned())), ..Default::default() };
    let named = |(name, config): (&str, Any)| listener::Filter {
        name: name.to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(config)),
    };
    let filters = guards.into_iter().chain([("tcp", pack(&proxy))]).map(named).collect();
    let filter_chains = vec![listener::FilterChain { filters, ..Default::default() }];
    let server = server(pack(&Rbac::default()), None, None);
    listener::Listener { filter_chains, default_filter_chain: None, ..server }
}

#[test]
fn rbac_before_a_tcp_proxy_decides_on_connections_and_nothing_else_may_stand_there() {
    let network = |of_requests: Rbac| network::Rbac {
        rules: of_requests.rules,
        stat_prefix: "tcp.".to_owned(),
        ..Default::default()
    };
    let from = |length| network(deny(Rule::Any(true), Identifier::DirectRemoteIp(cidr("10.0.0.0", length))));
    let of_requests = |action| network(rules(action, [policy(Rule::Header(header("x-a")), Identifier::Any(true))]));
    let is_let_in = |guards: Vec<(&str, Any)>| {
        let server = decoded(&of_bytes(guards)).unwrap_or_else(|invalid| panic!("{invalid}"));
        let chain = &server.filter_chains[0];
        assert!(chain.connections.is_some(), "{chain:?}");
        let (registry, states) = (FilterRegistry::default(), States::default());
        let table = RouteTable::compile(Arc::default(), &chain.http, &registry, &states, "in").expect("filters");
        let source = "10.0.0.1:5000".parse().expect("an address");
        let destination = "10.0.0.2:80".parse().expect("an address");
        let connection = Connection { peer: None, source, remote: source, destination, server_name: None };
        table.verdict_on_bytes(connection).is_allowed
    };
    assert!(is_let_in(Vec::new()));
    assert!(is_let_in(vec![("a", pack(&from(32)))]));
    assert!(!is_let_in(vec![("a", pack(&from(32))), ("b", pack(&from(8)))]));
    // Nobody sees requests there.
    for action in [pb::rbac::Action::Allow, pb::rbac::Action::Deny] {
        assert!(!is_let_in(vec![("a", pack(&of_requests(action)))]), "{action:?}");
    }
    let matched = network::Rbac { shadow_matcher: Some(Default::default()), ..from(8) };
    for (guards, expected) in [
        (vec![("a", pack(&from(8))), ("a", pack(&from(32)))], "filters[1].name: the name \"a\" is used twice"),
        (vec![("", pack(&from(8)))], "filters[0].name: must not be empty"),
        (vec![("a", pack(&matched))], "filters[0].typed_config.shadow_matcher: not supported"),
        (vec![("a", pack(&Rbac::default()))], "is not supported"),
        (vec![("a", pack(&TcpProxy::default()))], "cluster_specifier: missing"),
    ] {
        let refused = decoded(&of_bytes(guards)).expect_err("it is refused").to_string();
        assert!(refused.contains(expected), "{refused}");
    }
    // A guard of connections is none of requests.
    let mut before_http = server(pack(&Rbac::default()), None, None);
    let guard = of_bytes(vec![("a", pack(&from(8)))]).filter_chains.remove(0).filters.remove(0);
    before_http.filter_chains[0].filters.insert(0, guard);
    let refused = decoded(&before_http).expect_err("it is refused").to_string();
    assert!(refused.contains("network.rbac.v3.RBAC") && refused.contains("is not supported"), "{refused}");
}
