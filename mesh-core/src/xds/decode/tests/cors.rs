//! Cross-origin rules, at each level of the configuration.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::config::route::v3::FilterConfig as Wrapper;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::google::protobuf::{Any, BoolValue};

use super::{accept, all_rejected};
use crate::filter::FilterRegistry;
use crate::model::{FilterConfig, Fraction, HttpManager, NamedFilter, RouteConfiguration, RouteSource};
use crate::request::RequestHead;
use crate::resources::{Resource, ResourceType};
use crate::state::States;
use crate::testing::resources::{pack, routes, virtual_host};
use crate::view::RouteTable;

const FILTER: &str = "envoy.filters.http.cors";

fn origins(origin: &str) -> CorsPolicy {
    let test = StringMatcher { match_pattern: Some(MatchPattern::Exact(origin.to_owned())), ignore_case: false };
    CorsPolicy { allow_origin_string_match: vec![test], ..Default::default() }
}

fn says(config: Any) -> HashMap<String, Any> {
    [(FILTER.to_owned(), config)].into()
}

fn decoded(
    of_host: Option<&CorsPolicy>,
    of_route: Any,
    action: Option<route::route::Action>,
) -> Arc<RouteConfiguration> {
    let mut rule = crate::testing::resources::route("/", "a");
    rule.typed_per_filter_config = says(of_route);
    rule.action = action.or(rule.action);
    let mut host = virtual_host("all", &["*"], vec![rule]);
    host.typed_per_filter_config = of_host.map(|policy| says(pack(policy))).unwrap_or_default();
    let decoded = accept(ResourceType::Route, &routes("r", vec![host]));
    assert!(decoded.ignored.is_empty(), "{:?}", decoded.ignored);
    match decoded.resource {
        Resource::Route(config) => config,
        other => panic!("{other:?}"),
    }
}

/// The filters that a request passes, as they say themselves.
fn passed(config: Arc<RouteConfiguration>) -> String {
    let mut http = HttpManager::new(RouteSource::Inline(Arc::clone(&config)));
    let base = FilterConfig::Cors(Arc::default());
    http.filters = vec![NamedFilter::new(FILTER, base)];
    let table = RouteTable::compile(config, &http, &FilterRegistry::default(), &States::default(), "l").unwrap();
    let head = http::Request::get("http://h/").body(()).unwrap().into_parts().0;
    let head = RequestHead::of(&head).unwrap();
    let (_, _, destination) = table.find(&head, &mut fastrand::Rng::with_seed(1)).unwrap();
    format!("{:?}", destination.filters())
}

#[test]
fn a_route_says_what_counts_and_its_virtual_host_the_rest() {
    let of_host = CorsPolicy { max_age: "60".to_owned(), ..origins("https://host") };
    let both = passed(decoded(Some(&of_host), pack(&origins("https://route")), None));
    assert!(both.contains("https://route") && both.contains("\"60\"") && !both.contains("https://host"), "{both}");
    let only_host = CorsPolicy { allow_credentials: Some(BoolValue { value: true }), ..Default::default() };
    let both = passed(decoded(Some(&of_host), pack(&only_host), None));
    assert!(both.contains("https://host") && both.contains("allow_credentials: Some(true)"), "{both}");
    let off = Wrapper { disabled: true, ..Default::default() };
    assert_eq!(passed(decoded(Some(&of_host), pack(&off), None)), "[]");
    assert_eq!(passed(decoded(None, pack(&CorsPolicy::default()), None)), "[]", "it says nothing");
}

#[test]
fn an_answer_of_the_configuration_has_no_rules() {
    let answer = route::DirectResponseAction { status: 200, ..Default::default() };
    let action = Some(route::route::Action::DirectResponse(answer));
    assert_eq!(passed(decoded(None, pack(&origins("https://route")), action)), "[]");
}

#[test]
fn rules_are_for_a_share_of_requests() {
    let half = FractionalPercent { numerator: 50, denominator: 0 };
    let share = |default_value| Some(RuntimeFractionalPercent { default_value, ..Default::default() });
    for (share, expected) in [(share(Some(half)), Fraction::new(1, 2)), (share(None), Fraction::default())] {
        let policy = CorsPolicy { filter_enabled: share, ..origins("https://route") };
        let expected = format!("enabled: Some({expected:?})");
        let passed = passed(decoded(None, pack(&policy), None));
        assert!(passed.contains(&expected), "{expected} in {passed}");
    }
}

#[test]
fn what_is_no_header_is_refused() {
    fn with(change: impl FnOnce(&mut CorsPolicy)) -> HashMap<String, Any> {
        let mut policy = origins("https://route");
        change(&mut policy);
        says(pack(&policy))
    }
    let valid = routes("r", vec![virtual_host("all", &["*"], vec![])]);
    all_rejected(
        ResourceType::Route,
        &valid,
        &[
            ("allow_methods: not the value of a header", |config| {
                config.virtual_hosts[0].typed_per_filter_config = with(|policy| policy.allow_methods = "\n".to_owned());
            }),
            ("max_age: not the value of a header", |config| {
                config.virtual_hosts[0].typed_per_filter_config = with(|policy| policy.max_age = "\u{7f}".to_owned());
            }),
            ("allow_origin_string_match[0]", |config| {
                config.virtual_hosts[0].typed_per_filter_config =
                    with(|policy| policy.allow_origin_string_match = vec![StringMatcher::default()]);
            }),
        ],
    );
}
