use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::ExtAuthzPerRoute;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, Int64Range};
use envoy_types::pb::google::protobuf::{self, BoolValue, UInt32Value};
use pb::header_matcher::HeaderMatchSpecifier as Header;
use pb::route::Action;
use pb::route_action::ClusterSpecifier;
use pb::route_match::PathSpecifier;

use prost::Message;

use super::{accept, all_rejected};
use crate::model::{
    Clusters, FilterConfig, Forward, Fraction, HashKey, HashedHeader, HeaderChange, HeaderTest, HeaderText, MirrorHost,
    PathChange, PathTest, RetryBackOff, RetryConditions, Route, RouteAction, RouteConfiguration, StringTest,
};
use crate::resources::{Resource, ResourceType};
use crate::testing::resources::{pack, route, route_of, routes, routes_to, virtual_host};
use crate::xds::decode::{Options, decode, decode_routes};

fn one() -> pb::RouteConfiguration {
    routes_to("r", "c")
}

fn first(configuration: &mut pb::RouteConfiguration) -> &mut pb::Route {
    &mut configuration.virtual_hosts[0].routes[0]
}

fn matches(configuration: &mut pb::RouteConfiguration) -> &mut pb::RouteMatch {
    first(configuration).r#match.as_mut().unwrap()
}

fn forward(configuration: &mut pb::RouteConfiguration) -> &mut pb::RouteAction {
    match &mut first(configuration).action {
        Some(Action::Route(action)) => action,
        other => panic!("{other:?}"),
    }
}

fn decoded(configuration: &pb::RouteConfiguration) -> RouteConfiguration {
    let decoded = accept(ResourceType::Route, configuration);
    // A message says what its bytes say.
    let mut config = configuration.clone();
    if let [host] = config.virtual_hosts.as_mut_slice() {
        let routes = std::mem::take(&mut host.routes).into_iter();
        let again = decode_routes(config, routes, &Options::default()).unwrap_or_else(|invalid| panic!("{invalid}"));
        assert_eq!((again.resource, again.ignored), (decoded.resource.clone(), decoded.ignored));
    }
    match decoded.resource {
        Resource::Route(routes) => RouteConfiguration::clone(&routes),
        other => panic!("{other:?}"),
    }
}

fn decoded_route(change: impl FnOnce(&mut pb::RouteConfiguration)) -> Route {
    let mut configuration = one();
    change(&mut configuration);
    Route::clone(&decoded(&configuration).virtual_hosts[0].routes[0])
}

fn decoded_forward(change: impl FnOnce(&mut pb::RouteAction)) -> Forward {
    match decoded_route(|routes| change(forward(routes))).action {
        RouteAction::Forward(forward) => forward,
        other => panic!("{other:?}"),
    }
}

fn header(name: &str, specifier: Header) -> pb::HeaderMatcher {
    pb::HeaderMatcher { name: name.into(), header_match_specifier: Some(specifier), ..Default::default() }
}

fn regex(regex: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher { regex: regex.into(), ..Default::default() }
}

fn weighted(clusters: &[(&str, u32)]) -> ClusterSpecifier {
    let clusters = clusters.iter().map(|(name, weight)| pb::weighted_cluster::ClusterWeight {
        name: (*name).into(),
        weight: Some(UInt32Value { value: *weight }),
        ..Default::default()
    });
    ClusterSpecifier::WeightedClusters(pb::WeightedCluster { clusters: clusters.collect(), ..Default::default() })
}

fn seconds(seconds: i64) -> Option<protobuf::Duration> {
    Some(protobuf::Duration { seconds, nanos: 0 })
}

#[test]
fn client_rule_40_matches_that_are_rejected() {
    all_rejected(
        ResourceType::Route,
        &one(),
        &[
            ("name: the name is empty", |routes| routes.name.clear()),
            ("\"r\": virtual_hosts[0].routes[0].match: missing", |routes| first(routes).r#match = None),
            ("match: no known path specifier", |routes| matches(routes).path_specifier = None),
            ("connect_matcher: not supported", |routes| {
                matches(routes).path_specifier = Some(PathSpecifier::ConnectMatcher(Default::default()));
            }),
            ("match.safe_regex.regex: invalid regex", |routes| {
                matches(routes).path_specifier = Some(PathSpecifier::SafeRegex(regex("(")));
            }),
            ("match.safe_regex.regex: the expression is empty", |routes| {
                matches(routes).path_specifier = Some(PathSpecifier::SafeRegex(regex("")));
            }),
            ("path_separated_prefix: \"/a/\"", |routes| {
                matches(routes).path_specifier = Some(PathSpecifier::PathSeparatedPrefix("/a/".into()));
            }),
            ("path_match_policy.path_template: \"x\": must start with /", |routes| {
                let config = pack(&UriTemplateMatchConfig { path_template: "x".into() });
                let policy = core::TypedExtensionConfig { name: "t".into(), typed_config: Some(config) };
                matches(routes).path_specifier = Some(PathSpecifier::PathMatchPolicy(policy));
            }),
            ("match.headers[0].name", |routes| matches(routes).headers = vec![header("", Header::PresentMatch(true))]),
            ("match.headers[0]: no known match specifier", |routes| {
                matches(routes).headers = vec![pb::HeaderMatcher { name: "a".into(), ..Default::default() }];
            }),
            ("match.headers[0].safe_regex_match.regex: invalid", |routes| {
                matches(routes).headers = vec![header("a", Header::SafeRegexMatch(regex("*")))];
            }),
            ("match.headers[0].prefix_match: must not be empty", |routes| {
                matches(routes).headers = vec![header("a", Header::PrefixMatch(String::new()))];
            }),
            ("match.headers[0].string_match: no match pattern", |routes| {
                matches(routes).headers = vec![header("a", Header::StringMatch(Default::default()))];
            }),
            ("match.headers[0].string_match.contains: must not be empty", |routes| {
                let empty = matcher::string_matcher::MatchPattern::Contains(String::new());
                let test = matcher::StringMatcher { match_pattern: Some(empty), ignore_case: false };
                matches(routes).headers = vec![header("a", Header::StringMatch(test))];
            }),
            ("match.query_parameters[0].name: must not be empty", |routes| {
                matches(routes).query_parameters.push(Default::default());
            }),
            ("match.cookies: not supported yet", |routes| matches(routes).cookies.push(Default::default())),
            ("match.dynamic_metadata: not supported yet", |routes| {
                matches(routes).dynamic_metadata.push(Default::default())
            }),
            ("match.filter_state: not supported yet", |routes| matches(routes).filter_state.push(Default::default())),
            ("match.tls_context: not supported yet", |routes| matches(routes).tls_context = Some(Default::default())),
            ("runtime_fraction.default_value: missing", |routes| {
                matches(routes).runtime_fraction = Some(Default::default());
            }),
        ],
    );
}

#[test]
fn client_rule_40_actions_that_are_rejected() {
    all_rejected(
        ResourceType::Route,
        &one(),
        &[
            ("route.cluster: the name is empty", |routes| {
                forward(routes).cluster_specifier = Some(ClusterSpecifier::Cluster(String::new()));
            }),
            ("weighted_clusters.clusters: the weights add up", |routes| {
                forward(routes).cluster_specifier = Some(weighted(&[("a", u32::MAX), ("b", 1)]));
            }),
            ("weighted_clusters.clusters: every weight is zero", |routes| {
                forward(routes).cluster_specifier = Some(weighted(&[("a", 0)]));
            }),
            ("weighted_clusters.clusters[0].name: the name is empty", |routes| {
                forward(routes).cluster_specifier = Some(weighted(&[("", 1)]));
            }),
            ("cluster_specifier_plugin: no plugin is named \"p\"", |routes| {
                forward(routes).cluster_specifier = Some(ClusterSpecifier::ClusterSpecifierPlugin("p".into()));
            }),
            ("cluster_specifier_plugins[0]: \"p\" is not supported and not optional", |routes| {
                routes.cluster_specifier_plugins = vec![pb::ClusterSpecifierPlugin {
                    extension: Some(core::TypedExtensionConfig { name: "p".into(), typed_config: None }),
                    is_optional: false,
                }];
            }),
            ("retry_policy.num_retries: must be at least 1", |routes| {
                let retry = pb::RetryPolicy { num_retries: Some(UInt32Value { value: 0 }), ..Default::default() };
                forward(routes).retry_policy = Some(retry);
            }),
            ("retry_back_off.base_interval: missing", |routes| {
                let retry = pb::RetryPolicy { retry_back_off: Some(Default::default()), ..Default::default() };
                forward(routes).retry_policy = Some(retry);
            }),
            ("retry_back_off.base_interval: must be more than zero", |routes| {
                let back_off = pb::retry_policy::RetryBackOff { base_interval: seconds(0), max_interval: None };
                forward(routes).retry_policy =
                    Some(pb::RetryPolicy { retry_back_off: Some(back_off), ..Default::default() });
            }),
            ("retry_back_off.max_interval: must be more than zero", |routes| {
                let back_off = pb::retry_policy::RetryBackOff { base_interval: seconds(1), max_interval: seconds(0) };
                routes.virtual_hosts[0].retry_policy =
                    Some(pb::RetryPolicy { retry_back_off: Some(back_off), ..Default::default() });
            }),
            ("timeout: a negative or malformed duration", |routes| forward(routes).timeout = seconds(-1)),
            ("exclude each other", |routes| {
                forward(routes).prefix_rewrite = "/".into();
                forward(routes).regex_rewrite = Some(Default::default());
            }),
            ("redirect.port_redirect: 65536 is not a port", |routes| {
                let redirect = pb::RedirectAction { port_redirect: 65_536, ..Default::default() };
                first(routes).action = Some(Action::Redirect(redirect));
            }),
            ("redirect.response_code: not a known value", |routes| {
                first(routes).action =
                    Some(Action::Redirect(pb::RedirectAction { response_code: 9, ..Default::default() }));
            }),
            ("direct_response.status: 99 is not a status", |routes| {
                let direct = pb::DirectResponseAction { status: 99, ..Default::default() };
                first(routes).action = Some(Action::DirectResponse(direct));
            }),
            ("direct_response.body: larger than 1048576", |routes| {
                let body = core::data_source::Specifier::InlineBytes(vec![0; (1 << 20) + 1]);
                let body = Some(core::DataSource { specifier: Some(body), ..Default::default() });
                let direct = pb::DirectResponseAction { status: 200, body, ..Default::default() };
                first(routes).action = Some(Action::DirectResponse(direct));
            }),
            ("request_headers_to_add[0].header.key: \":path\" cannot be changed", |routes| {
                routes.request_headers_to_add = vec![add(":path", "/")];
            }),
            (
                "request_headers_to_add[0].header.key: \"Transfer-Encoding\" cannot be changed: it belongs to",
                |routes| {
                    first(routes).request_headers_to_add = vec![add("Transfer-Encoding", "chunked")];
                },
            ),
            ("response_headers_to_remove[0]: \"content-length\" cannot be changed: it belongs to", |routes| {
                first(routes).response_headers_to_remove = vec!["content-length".into()];
            }),
            ("response_headers_to_remove[0]: \"a b\" is not a header name", |routes| {
                routes.virtual_hosts[0].response_headers_to_remove = vec!["a b".into()];
            }),
            ("request_headers_to_add[0].header.value: %START_TIME% is not supported here", |routes| {
                first(routes).request_headers_to_add = vec![add("a", "%START_TIME%")];
            }),
            ("typed_per_filter_config[\"authz\"]: the security filter", |routes| {
                first(routes).typed_per_filter_config.insert("authz".into(), pack(&ExtAuthzPerRoute::default()));
            }),
            ("typed_per_filter_config[\"authz\"].config: the security filter", |routes| {
                let inner = Some(pack(&ExtAuthzPerRoute::default()));
                let wrapper = pb::FilterConfig { config: inner, is_optional: true, disabled: false };
                first(routes).typed_per_filter_config.insert("authz".into(), pack(&wrapper));
            }),
            ("vhds: not supported", |routes| routes.vhds = Some(Default::default())),
            ("vhost_header: not supported", |routes| routes.vhost_header = "x".into()),
        ],
    );
}

#[test]
fn of_many_routes_the_one_is_named_that_is_no_protobuf_and_each_is_what_it_is_by_itself() {
    let (mut config, mut host) = (one(), virtual_host("all", &["*"], vec![route("/a", "c"), route("/", "c")]));
    let expected = decoded(&pb::RouteConfiguration { virtual_hosts: vec![host.clone()], ..config.clone() });
    let routes = std::mem::take(&mut host.routes);
    config.virtual_hosts.clear();
    // What stands before its routes or behind them is the host's, wherever it is.
    let with = |more: &[u8]| {
        let (mut inner, mut outer) = (Vec::new(), config.encode_to_vec());
        routes.iter().for_each(|route| prost::encoding::message::encode(3, route, &mut inner));
        inner.extend_from_slice(&host.encode_to_vec());
        prost::encoding::bytes::encode(2, &[&inner, more].concat(), &mut outer);
        decode(ResourceType::Route, &outer, &Options::default())
    };
    assert_eq!(with(&[]).unwrap().resource, Resource::Route(expected.into()));
    let host = "virtual_hosts[0]";
    for (more, place) in [(&[0x1a, 1, 0xff][..], "virtual_hosts[0].routes[2]"), (&[0x1a, 9], host), (&[0x19], host)] {
        let invalid = with(more).unwrap_err();
        assert_eq!(invalid.field, place);
        assert!(invalid.reason.contains("malformed Protobuf"), "{invalid}");
    }
}

#[test]
fn client_rule_44_a_domain_that_two_virtual_hosts_claim_is_rejected() {
    let hosts = |first: &[&str], second: &[&str]| {
        routes("r", vec![virtual_host("1", first, vec![]), virtual_host("2", second, vec![])])
    };
    let text = super::reject(ResourceType::Route, &hosts(&["a.b", "*"], &["A.b"])).to_string();
    assert_eq!(text, "\"r\": virtual_hosts[1].domains: the domain \"a.b\" is listed twice");
    accept(ResourceType::Route, &hosts(&["a.b", "*.b"], &["b.*", "*"]));
    for bad in ["", "a*b", "**", "*.a.*"] {
        assert!(super::reject(ResourceType::Route, &hosts(&["a"], &[bad])).field.contains("domains"), "{bad}");
    }
    assert!(super::reject(ResourceType::Route, &hosts(&["a"], &[])).reason.contains("at least one"));
}

#[test]
fn client_rule_40_zero_weights_are_skipped() {
    let forward = decoded_forward(|action| action.cluster_specifier = Some(weighted(&[("a", 0), ("b", 3), ("c", 1)])));
    let Clusters::Weighted(clusters) = forward.clusters else { panic!() };
    let weights: Vec<_> = clusters.iter().map(|cluster| (cluster.name.as_str(), cluster.weight)).collect();
    assert_eq!(weights, [("b", 3), ("c", 1)]);
}

#[test]
fn every_kind_of_path() {
    let path = |specifier, sensitive: bool| {
        decoded_route(|routes| {
            matches(routes).path_specifier = Some(specifier);
            matches(routes).case_sensitive = Some(BoolValue { value: sensitive });
        })
        .matches
        .path
    };
    let (value, ignore_case) = ("/a".to_owned(), true);
    assert_eq!(path(PathSpecifier::Prefix("/a".into()), false), PathTest::Prefix { value: value.clone(), ignore_case });
    assert_eq!(path(PathSpecifier::Path("/a".into()), false), PathTest::Exact { value: value.clone(), ignore_case });
    let separated = path(PathSpecifier::PathSeparatedPrefix("/a".into()), true);
    assert_eq!(separated, PathTest::Separated { value, ignore_case: false });
    assert!(matches!(path(PathSpecifier::SafeRegex(regex("/a.*")), true), PathTest::Regex(_)));
    let config = pack(&UriTemplateMatchConfig { path_template: "/{a}/**".into() });
    let policy = core::TypedExtensionConfig { name: "t".into(), typed_config: Some(config) };
    assert!(matches!(path(PathSpecifier::PathMatchPolicy(policy), true), PathTest::Template(_)));
}

#[test]
fn every_kind_of_header_test() {
    let test = |specifier, invert_match| {
        let mut route = decoded_route(|routes| {
            matches(routes).headers = vec![pb::HeaderMatcher { invert_match, ..header("X-A", specifier) }];
        });
        route.matches.headers.remove(0)
    };
    let value = |test, invert| HeaderTest::Value { name: "x-a".into(), test, invert, missing_is_empty: false };
    let text = || ("v".to_owned(), false);
    let (v, ignore_case) = text();
    assert_eq!(test(Header::ExactMatch("v".into()), true), value(StringTest::Exact { value: v, ignore_case }, true));
    let (v, ignore_case) = text();
    assert_eq!(
        test(Header::PrefixMatch("v".into()), false),
        value(StringTest::Prefix { value: v, ignore_case }, false)
    );
    let (v, ignore_case) = text();
    assert_eq!(
        test(Header::SuffixMatch("v".into()), false),
        value(StringTest::Suffix { value: v, ignore_case }, false)
    );
    let (v, ignore_case) = text();
    let contains = StringTest::Contains { value: v, ignore_case };
    assert_eq!(test(Header::ContainsMatch("v".into()), false), value(contains, false));
    assert!(matches!(test(Header::SafeRegexMatch(regex("v")), false), HeaderTest::Value { .. }));
    let exact = matcher::string_matcher::MatchPattern::Exact("v".into());
    let ignoring = matcher::StringMatcher { match_pattern: Some(exact), ignore_case: true };
    let (v, _) = text();
    let expected = value(StringTest::Exact { value: v, ignore_case: true }, false);
    assert_eq!(test(Header::StringMatch(ignoring), false), expected);
    let range = test(Header::RangeMatch(Int64Range { start: -1, end: 5 }), false);
    assert!(matches!(range, HeaderTest::Range { start: -1, end: 5, .. }));
    for (present, invert, expected) in [(true, false, true), (true, true, false), (false, false, false)] {
        let test = test(Header::PresentMatch(present), invert);
        assert_eq!(test, HeaderTest::Present { name: "x-a".into(), present: expected });
    }
}

#[test]
fn queries_grpc_and_fractions() {
    let route = decoded_route(|routes| {
        let exact = matcher::string_matcher::MatchPattern::Exact("1".into());
        let test = matcher::StringMatcher { match_pattern: Some(exact), ignore_case: false };
        matches(routes).query_parameters = vec![
            pb::QueryParameterMatcher {
                name: "a".into(),
                query_parameter_match_specifier: Some(
                    pb::query_parameter_matcher::QueryParameterMatchSpecifier::StringMatch(test),
                ),
            },
            pb::QueryParameterMatcher { name: "b".into(), query_parameter_match_specifier: None },
        ];
        matches(routes).grpc = Some(Default::default());
        matches(routes).runtime_fraction = Some(core::RuntimeFractionalPercent {
            default_value: Some(FractionalPercent { numerator: 25, denominator: 0 }),
            runtime_key: "k".into(),
        });
    });
    assert_eq!(route.matches.query.iter().map(|query| query.test.is_some()).collect::<Vec<_>>(), [true, false]);
    assert!(route.matches.grpc);
    assert_eq!(route.matches.fraction, Some(Fraction::new(1, 4)));
}

#[test]
fn a_host_that_requires_tls_sends_plaintext_there() {
    let mut configuration = one();
    configuration.virtual_hosts[0].require_tls = 2;
    let decoded = accept(ResourceType::Route, &configuration);
    let Resource::Route(routes) = decoded.resource else { panic!() };
    let routes = &routes.virtual_hosts[0].routes;
    let RouteAction::Redirect(redirect) = &routes[0].action else { panic!("{:?}", routes[0].action) };
    assert_eq!((redirect.status.as_u16(), redirect.scheme.as_deref()), (301, Some("https")));
    assert_eq!(routes.len(), configuration.virtual_hosts[0].routes.len() + 1);
}

#[test]
fn a_route_that_asks_for_what_is_not_built_is_unusable_and_listed() {
    let cases: &[fn(&mut pb::RouteConfiguration)] = &[
        |routes| forward(routes).cluster_specifier = Some(ClusterSpecifier::ClusterHeader("x".into())),
        |routes| forward(routes).cluster_specifier = None,
        |routes| forward(routes).metadata_match = Some(Default::default()),
        |routes| forward(routes).path_rewrite = "/x".into(),
        |routes| {
            forward(routes).host_rewrite_specifier =
                Some(pb::route_action::HostRewriteSpecifier::HostRewriteHeader("x".into()));
        },
        |routes| first(routes).action = None,
        |routes| first(routes).action = Some(Action::FilterAction(Default::default())),
        |routes| routes.virtual_hosts[0].require_tls = 1,
        |routes| {
            routes.cluster_specifier_plugins = vec![pb::ClusterSpecifierPlugin {
                extension: Some(core::TypedExtensionConfig { name: "p".into(), typed_config: None }),
                is_optional: true,
            }];
            forward(routes).cluster_specifier = Some(ClusterSpecifier::ClusterSpecifierPlugin("p".into()));
        },
    ];
    for (index, change) in cases.iter().enumerate() {
        let route = decoded_route(change);
        assert!(matches!(route.action, RouteAction::Unusable(_)), "{index}: {:?}", route.action);
    }
    let mut configuration = one();
    forward(&mut configuration).cluster_specifier = Some(ClusterSpecifier::ClusterHeader("x".into()));
    let ignored = accept(ResourceType::Route, &configuration).ignored;
    assert_eq!(ignored, ["virtual_hosts[0].routes[0].action (cluster_header is not supported yet)"]);
}

#[test]
fn rewrites_limits_and_retries_are_kept() {
    let forward = decoded_forward(|action| {
        action.prefix_rewrite = "/new".into();
        action.host_rewrite_specifier =
            Some(pb::route_action::HostRewriteSpecifier::HostRewriteLiteral("other:1".into()));
        action.timeout = seconds(3);
        action.max_stream_duration = Some(pb::route_action::MaxStreamDuration {
            max_stream_duration: seconds(0),
            grpc_timeout_header_max: seconds(7),
            ..Default::default()
        });
        action.retry_policy =
            Some(pb::RetryPolicy { retry_on: "connect-failure, unavailable,,".into(), ..Default::default() });
    });
    assert_eq!(forward.path, Some(PathChange::Prefix("/new".into())));
    assert_eq!(forward.authority.unwrap(), "other:1");
    assert_eq!(forward.timeout, Some(Duration::from_secs(3)));
    let limits = forward.max_stream_duration.unwrap();
    assert_eq!((limits.limit, limits.grpc_timeout_max), (Some(Duration::ZERO), Some(Duration::from_secs(7))));
    let retry = forward.retry.unwrap();
    assert_eq!(retry.on, RetryConditions::parse("connect-failure,unavailable"));
    let (base, max) = (Duration::from_millis(25), Duration::from_millis(250));
    assert_eq!((retry.retries, retry.back_off), (1, RetryBackOff { base, max }));
}

#[test]
fn what_routes_say_alike_is_decoded_once_and_each_is_what_it_is_by_itself() {
    let policy = |change: fn(&mut pb::RetryPolicy)| {
        let mut policy = pb::RetryPolicy { per_try_timeout: seconds(1), ..Default::default() };
        change(&mut policy);
        policy
    };
    let (plain, idle) = (policy(|_| {}), policy(|policy| policy.per_try_idle_timeout = seconds(2)));
    let hedged = pb::HedgePolicy { hedge_on_per_try_timeout: true, ..Default::default() };
    let said = [
        ("a", &plain, None),
        ("xdstp://x/envoy.config.cluster.v3.Cluster/b?z=1&a=2", &plain, None),
        ("xdstp://x/envoy.config.cluster.v3.Cluster/b?a=2&z=1", &plain, Some(hedged)),
        ("a", &plain, None),
        ("a", &idle, None),
        ("a", &idle, None),
    ];
    let made = said.iter().map(|(cluster, retry, hedge)| {
        let mut route = route("/", cluster);
        let Some(Action::Route(action)) = &mut route.action else { panic!("it forwards") };
        (action.retry_policy, action.hedge_policy) = (Some((*retry).clone()), *hedge);
        route
    });
    let all = |made: Vec<pb::Route>| routes("r", vec![virtual_host("all", &["*"], made)]);
    let made: Vec<pb::Route> = made.collect();
    let together = decoded(&all(made.clone()));
    let together = &together.virtual_hosts[0].routes;
    for (one, route) in made.iter().zip(together) {
        assert_eq!(decoded(&all(vec![one.clone()])).virtual_hosts[0].routes[0], *route);
    }
    let forwards: Vec<&Forward> = together
        .iter()
        .map(|route| match &route.action {
            RouteAction::Forward(forward) => forward,
            other => panic!("{other:?}"),
        })
        .collect();
    let retry = |at: usize| forwards[at].retry.as_ref().unwrap();
    for (at, is_shared) in [(1, true), (2, false), (3, true), (4, false)] {
        assert_eq!(Arc::ptr_eq(retry(0), retry(at)), is_shared, "{at}");
    }
    assert!(retry(2).hedges && !retry(1).hedges && !retry(3).hedges);
    let name = |at: usize| forwards[at].clusters.names().next().unwrap().as_str();
    assert!(std::ptr::eq(name(0), name(3)) && std::ptr::eq(name(1), name(2)) && name(0) != name(1));
    // What has no effect is told of each.
    let ignored = accept(ResourceType::Route, &all(made)).ignored;
    let at = |route: usize| format!("virtual_hosts[0].routes[{route}].route.retry_policy.per_try_idle_timeout");
    assert_eq!(ignored, [at(4), at(5)]);
}

#[test]
fn a_routes_retry_policy_replaces_that_of_its_virtual_host() {
    let policy = |on: &str| Some(pb::RetryPolicy { retry_on: on.into(), ..Default::default() });
    let retry_on = |own: Option<pb::RetryPolicy>| {
        let route = decoded_route(|routes| {
            routes.virtual_hosts[0].retry_policy = policy("reset");
            forward(routes).retry_policy = own;
        });
        let RouteAction::Forward(forward) = route.action else { panic!() };
        forward.retry.unwrap().on
    };
    assert_eq!(retry_on(None), RetryConditions::parse("reset"));
    assert_eq!(retry_on(policy("5xx")), RetryConditions::parse("5xx"));
}

#[test]
fn redirects_and_direct_responses() {
    let redirect = decoded_route(|routes| {
        first(routes).action = Some(Action::Redirect(pb::RedirectAction {
            host_redirect: "h".into(),
            port_redirect: 8443,
            response_code: 3,
            strip_query: true,
            scheme_rewrite_specifier: Some(pb::redirect_action::SchemeRewriteSpecifier::HttpsRedirect(true)),
            path_rewrite_specifier: Some(pb::redirect_action::PathRewriteSpecifier::PathRedirect("/p".into())),
        }));
    });
    let RouteAction::Redirect(redirect) = redirect.action else { panic!() };
    assert_eq!((redirect.status.as_u16(), redirect.port, redirect.strip_query), (307, Some(8443), true));
    assert_eq!((redirect.scheme.as_deref(), redirect.host.as_deref()), (Some("https"), Some("h")));
    assert_eq!(redirect.path, Some(PathChange::Full("/p".into())));
    let direct = decoded_route(|routes| {
        let body = core::data_source::Specifier::InlineString("gone".into());
        let body = Some(core::DataSource { specifier: Some(body), ..Default::default() });
        let direct = pb::DirectResponseAction { status: 410, body, ..Default::default() };
        first(routes).action = Some(Action::DirectResponse(direct));
    });
    let RouteAction::Direct(direct) = direct.action else { panic!() };
    assert_eq!((direct.status.as_u16(), &*direct.body), (410, b"gone".as_slice()));
}

fn add(name: &str, value: &str) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue { key: name.into(), value: value.into(), raw_value: vec![] }),
        ..Default::default()
    }
}

#[test]
fn header_changes_in_envoys_order_and_words() {
    let route = decoded_route(|routes| {
        let route = first(routes);
        route.request_headers_to_remove = vec!["Gone".into()];
        route.request_headers_to_add = vec![
            add("a", "100%%"),
            add("empty", ""),
            add("user", "%REQ(x-user)%"),
            core::HeaderValueOption { append_action: 1, ..add("b", "1") },
            core::HeaderValueOption { append_action: 2, ..add("c", "1") },
            core::HeaderValueOption { append_action: 3, ..add("d", "1") },
            core::HeaderValueOption { append: Some(BoolValue { value: false }), ..add("e", "1") },
        ];
    });
    let names: Vec<String> = route
        .mutations
        .request
        .iter()
        .map(|change| match change {
            HeaderChange::Append(name, HeaderText::Fixed(value)) => {
                format!("append {name}={}", value.to_str().unwrap())
            }
            HeaderChange::Append(name, HeaderText::Format(_)) => format!("append {name} with facts"),
            HeaderChange::Set(name, _) => format!("set {name}"),
            HeaderChange::AddIfAbsent(name, _) => format!("absent {name}"),
            HeaderChange::ReplaceIfPresent(name, _) => format!("present {name}"),
            HeaderChange::Remove(name) => format!("remove {name}"),
        })
        .collect();
    assert_eq!(
        names,
        ["remove gone", "set c", "present d", "set e", "append a=100%", "append user with facts", "absent b"]
    );
}

#[test]
fn overrides_of_filters_at_every_level() {
    let off = pack(&pb::FilterConfig { disabled: true, ..Default::default() });
    let fault = pack(&pb::FilterConfig { config: Some(pack(&HttpFault::default())), ..Default::default() });
    let odd = pb::FilterConfig { config: Some(pack(&core::Node::default())), is_optional: true, disabled: false };
    let mut configuration = one();
    configuration.typed_per_filter_config = [("f".to_owned(), fault.clone()), ("g".to_owned(), fault)].into();
    configuration.virtual_hosts[0].typed_per_filter_config.insert("f".into(), off);
    first(&mut configuration).typed_per_filter_config.insert("odd".into(), pack(&odd));
    let host = decoded(&configuration).virtual_hosts.remove(0);
    assert_eq!(host.filters["f"], FilterConfig::Disabled);
    assert!(matches!(host.filters["g"], FilterConfig::Fault(_)));
    assert!(host.routes[0].filters.is_empty());
}

#[test]
fn fields_without_effect_are_listed() {
    let mut configuration = one();
    configuration.ignore_port_in_host_matching = true;
    configuration.virtual_hosts[0].cors = Some(Default::default());
    forward(&mut configuration).request_mirror_policies.push(Default::default());
    forward(&mut configuration).hash_policy.push(Default::default());
    let ignored = accept(ResourceType::Route, &configuration).ignored;
    assert_eq!(
        ignored,
        [
            "ignore_port_in_host_matching",
            "virtual_hosts[0].cors",
            "virtual_hosts[0].routes[0].route.request_mirror_policies[0].(a mirror without a cluster)",
            "virtual_hosts[0].routes[0].route.hash_policy[0].policy_specifier",
        ]
    );
}

#[test]
fn names_of_clusters_are_canonical() {
    let spelling = "xdstp://x/envoy.config.cluster.v3.Cluster/a?b=2&a=1";
    let configuration = routes("r", vec![virtual_host("all", &["*"], vec![route("/", spelling)])]);
    let route = Route::clone(&decoded(&configuration).virtual_hosts[0].routes[0]);
    let RouteAction::Forward(forward) = route.action else { panic!() };
    let names: Vec<&str> = forward.clusters.names().map(|name| name.as_str()).collect();
    assert_eq!(names, ["xdstp://x/envoy.config.cluster.v3.Cluster/a?a=1&b=2"]);
    let non_forwarding = route_of("/", Action::NonForwardingAction(Default::default()));
    let server = routes("r", vec![virtual_host("all", &["*"], vec![non_forwarding])]);
    assert_eq!(decoded(&server).virtual_hosts[0].routes[0].action, RouteAction::NonForwarding);
}

#[test]
fn what_requests_are_hashed_by() {
    use pb::route_action::hash_policy::{
        ConnectionProperties, Cookie, FilterState, Header as HashedHeaderProto, PolicySpecifier, QueryParameter,
    };
    let ttl = Some(protobuf::Duration { seconds: 5, nanos: 0 });
    let cookie = |name: &str, path: &str| Cookie { name: name.into(), path: path.into(), ttl, ..Default::default() };
    let specifiers = [
        PolicySpecifier::Header(HashedHeaderProto { header_name: "x-a".into(), ..Default::default() }),
        PolicySpecifier::Cookie(cookie("c", "/")),
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }),
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: false }),
        PolicySpecifier::QueryParameter(QueryParameter { name: "q".into() }),
        PolicySpecifier::FilterState(FilterState { key: "io.grpc.channel_id".into() }),
        PolicySpecifier::FilterState(FilterState { key: "other".into() }),
    ];
    let policy = |specifier| pb::route_action::HashPolicy { terminal: true, policy_specifier: Some(specifier) };
    let decoded = decoded_forward(|action| action.hash_policy = specifiers.map(policy).into()).hash_policies;
    assert!(decoded.iter().all(|policy| policy.terminal));
    let keys: Vec<_> = decoded.into_iter().map(|policy| policy.key).collect();
    let [
        HashKey::Header(header, None),
        HashKey::Cookie(cookie_key),
        HashKey::SourceAddress,
        HashKey::Query(query),
        HashKey::Channel,
    ] = keys.as_slice()
    else {
        panic!("{keys:?}")
    };
    assert_eq!((header, query.as_str()), (&HashedHeader::named("x-a").unwrap(), "q"));
    assert!(cookie_key.is_made());
    let wrong = [
        PolicySpecifier::Header(HashedHeaderProto { header_name: "a b".into(), ..Default::default() }),
        PolicySpecifier::Cookie(cookie("", "/")),
        PolicySpecifier::Cookie(cookie("c", "/\n")),
        PolicySpecifier::QueryParameter(QueryParameter { name: String::new() }),
    ];
    for specifier in wrong {
        let mut routes = one();
        forward(&mut routes).hash_policy = vec![policy(specifier)];
        let refused = super::reject(ResourceType::Route, &routes).field;
        assert!(refused.starts_with("virtual_hosts[0].routes[0].route.hash_policy[0]."), "{refused}");
    }
}

#[test]
fn who_gets_copies() {
    use pb::route_action::RequestMirrorPolicy;
    let share = FractionalPercent { numerator: 5, denominator: 2 };
    let fraction = core::RuntimeFractionalPercent { default_value: Some(share), ..Default::default() };
    let policies = vec![
        RequestMirrorPolicy { cluster: "a".into(), runtime_fraction: Some(fraction), ..Default::default() },
        RequestMirrorPolicy { cluster: "b".into(), disable_shadow_host_suffix_append: true, ..Default::default() },
        RequestMirrorPolicy { cluster: "c".into(), host_rewrite_literal: "other".into(), ..Default::default() },
    ];
    let mirrors = decoded_forward(|action| action.request_mirror_policies = policies).mirrors;
    let told: Vec<_> = mirrors.iter().map(|it| (it.cluster.as_str(), it.fraction.per_million(), &it.host)).collect();
    let literal = MirrorHost::Literal("other".parse().unwrap());
    let expected = [("a", 5, &MirrorHost::Suffixed), ("b", 1_000_000, &MirrorHost::Same), ("c", 1_000_000, &literal)];
    assert_eq!(told, expected);
    let mut routes = one();
    let wrong = RequestMirrorPolicy { cluster: "c".into(), host_rewrite_literal: "a\nb".into(), ..Default::default() };
    forward(&mut routes).request_mirror_policies = vec![wrong];
    let refused = super::reject(ResourceType::Route, &routes).field;
    assert!(refused.ends_with("request_mirror_policies[0].host_rewrite_literal"), "{refused}");
}
