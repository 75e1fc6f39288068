use std::num::NonZeroU32;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{self, UInt32Value};
use http::{HeaderName, StatusCode};
use pb::header_matcher::HeaderMatchSpecifier;
use pb::retry_policy::retry_priority::ConfigType;
use pb::retry_policy::{RateLimitedRetryBackOff, ResetHeader, ResetHeaderFormat, RetryHostPredicate, RetryPriority};

use super::clusters::with;
use super::{accept, all_rejected};
use crate::model::{Fraction, HeaderTest, RateLimitedBackOff, RetryLimit, RetryPolicy, RouteAction};
use crate::resources::{Resource, ResourceType};
use crate::testing::resources::{pack, routes_to};

fn seconds(seconds: i64) -> Option<protobuf::Duration> {
    Some(protobuf::Duration { seconds, nanos: 0 })
}

fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

/// A priority that prefers those that were not tried.
fn previous_priorities(update_frequency: i32) -> Option<RetryPriority> {
    let config = pack(&PreviousPrioritiesConfig { update_frequency });
    Some(RetryPriority { name: "any".into(), config_type: Some(ConfigType::TypedConfig(config)) })
}

/// A configuration whose only route has this policy.
fn routes(policy: pb::RetryPolicy) -> pb::RouteConfiguration {
    let mut routes = routes_to("r", "c");
    let route = &mut routes.virtual_hosts[0].routes[0];
    let Some(pb::route::Action::Route(action)) = &mut route.action else { panic!("{route:?}") };
    action.retry_policy = Some(policy);
    routes
}

/// The policy as it is decoded, and what of it has no effect.
fn decoded(policy: pb::RetryPolicy) -> (RetryPolicy, Vec<String>) {
    let decoded = accept(ResourceType::Route, &routes(policy));
    let Resource::Route(routes) = decoded.resource else { panic!("it is a route configuration") };
    let RouteAction::Forward(forward) = &routes.virtual_hosts[0].routes[0].action else { panic!("it forwards") };
    (RetryPolicy::clone(forward.retry.as_ref().expect("a policy")), decoded.ignored)
}

#[test]
fn every_part_of_a_policy_is_taken() {
    let test = HeaderMatchSpecifier::PresentMatch(true);
    let header = |name: &str, format| ResetHeader { name: name.into(), format };
    let (policy, ignored) = decoded(pb::RetryPolicy {
        num_retries: number(7),
        per_try_timeout: seconds(2),
        retriable_status_codes: vec![503, 429],
        retriable_headers: vec![pb::HeaderMatcher {
            name: "X-Again".into(),
            header_match_specifier: Some(test),
            ..Default::default()
        }],
        retry_host_predicate: vec![RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".into(),
            ..Default::default()
        }],
        retriable_request_headers: vec![pb::HeaderMatcher {
            name: ":method".into(),
            header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
            ..Default::default()
        }],
        host_selection_retry_max_attempts: 5,
        retry_priority: previous_priorities(2),
        rate_limited_retry_back_off: Some(RateLimitedRetryBackOff {
            reset_headers: vec![header("x-reset", ResetHeaderFormat::Seconds as i32)],
            max_interval: None,
        }),
        ..Default::default()
    });
    assert_eq!(ignored, [""; 0]);
    assert_eq!((policy.retries, policy.per_try_timeout), (7, Some(Duration::from_secs(2))));
    assert_eq!(policy.statuses, [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS]);
    assert_eq!(policy.headers, [HeaderTest::Present { name: "x-again".into(), present: true }]);
    assert_eq!(policy.request_headers, [HeaderTest::Present { name: ":method".into(), present: true }]);
    assert!(policy.avoids_tried);
    assert_eq!(policy.previous_priorities, NonZeroU32::new(2));
    let headers = vec![HeaderName::from_static("x-reset")];
    assert_eq!(policy.rate_limited, Some(RateLimitedBackOff { headers, max_interval: Duration::from_secs(300) }));

    let (plain, _) = decoded(pb::RetryPolicy { per_try_timeout: seconds(0), ..Default::default() });
    assert_eq!((plain.per_try_timeout, plain.avoids_tried, plain.rate_limited), (None, false, None));
}

#[test]
fn hedging_is_said_beside_the_policy_and_a_routes_own_word_goes_before_that_of_its_virtual_host() {
    let hedge = |hedges| Some(pb::HedgePolicy { hedge_on_per_try_timeout: hedges, ..Default::default() });
    let timed = pb::RetryPolicy { per_try_timeout: seconds(1), ..Default::default() };
    let decoded = |policy: &pb::RetryPolicy, host: Option<bool>, route: Option<bool>| {
        let mut routes = routes(policy.clone());
        let host_of = &mut routes.virtual_hosts[0];
        host_of.hedge_policy = host.and_then(hedge);
        let Some(pb::route::Action::Route(action)) = &mut host_of.routes[0].action else { panic!("it forwards") };
        action.hedge_policy = route.and_then(hedge);
        let decoded = accept(ResourceType::Route, &routes);
        let Resource::Route(routes) = decoded.resource else { panic!("it is a route configuration") };
        let RouteAction::Forward(forward) = &routes.virtual_hosts[0].routes[0].action else { panic!("it forwards") };
        (forward.retry.as_ref().unwrap().hedges, decoded.ignored.len())
    };
    for (host, route, expected) in [
        (None, None, false),
        (None, Some(true), true),
        (Some(true), None, true),
        (Some(true), Some(false), false),
        (Some(false), Some(true), true),
    ] {
        assert_eq!(decoded(&timed, host, route), (expected, 0), "{host:?} {route:?}");
    }
    // Without the time of a try nothing is late, and that is said.
    assert_eq!(decoded(&pb::RetryPolicy::default(), None, Some(true)), (false, 1));
}

#[test]
fn what_of_a_policy_has_no_effect_is_said() {
    let predicate = |name: &str| RetryHostPredicate { name: name.into(), ..Default::default() };
    let (_, ignored) = decoded(pb::RetryPolicy {
        per_try_idle_timeout: seconds(1),
        retry_priority: Some(RetryPriority {
            name: "envoy.retry_priorities.previous_priorities".into(),
            config_type: Some(ConfigType::TypedConfig(pack(&pb::RetryPolicy::default()))),
        }),
        retry_host_predicate: vec![predicate("envoy.retry_host_predicates.omit_canary_hosts")],
        rate_limited_retry_back_off: Some(RateLimitedRetryBackOff {
            reset_headers: vec![ResetHeader {
                name: "x-reset".into(),
                format: ResetHeaderFormat::UnixTimestamp as i32,
            }],
            max_interval: None,
        }),
        ..Default::default()
    });
    let at = |field: &str| format!("virtual_hosts[0].routes[0].route.retry_policy.{field}");
    let expected = [
        "per_try_idle_timeout",
        "retry_host_predicate[0].name",
        "retry_priority.typed_config",
        "rate_limited_retry_back_off.reset_headers[0].format",
    ];
    assert_eq!(ignored, expected.map(at));
}

#[test]
fn what_is_out_of_range_is_refused_with_its_path() {
    fn policy(routes: &mut pb::RouteConfiguration) -> &mut pb::RetryPolicy {
        match &mut routes.virtual_hosts[0].routes[0].action {
            Some(pb::route::Action::Route(action)) => action.retry_policy.as_mut().unwrap(),
            other => panic!("{other:?}"),
        }
    }
    all_rejected(
        ResourceType::Route,
        &routes(pb::RetryPolicy::default()),
        &[
            ("retry_policy.per_try_timeout: a negative", |routes| policy(routes).per_try_timeout = seconds(-1)),
            ("retry_policy.retriable_status_codes[1]: not a status from 100 to 599", |routes| {
                policy(routes).retriable_status_codes = vec![503, 600];
            }),
            ("retry_policy.retriable_status_codes[0]: not a status", |routes| {
                policy(routes).retriable_status_codes = vec![u32::MAX];
            }),
            ("retry_policy.retriable_headers[0]: no known match specifier", |routes| {
                policy(routes).retriable_headers = vec![pb::HeaderMatcher { name: "a".into(), ..Default::default() }];
            }),
            ("retry_policy.retry_priority.typed_config: missing", |routes| {
                policy(routes).retry_priority = Some(RetryPriority::default());
            }),
            ("retry_priority.typed_config.update_frequency: must be more than zero", |routes| {
                policy(routes).retry_priority = previous_priorities(0);
            }),
            ("retry_priority.typed_config.update_frequency: must be more than zero", |routes| {
                policy(routes).retry_priority = previous_priorities(-1);
            }),
            ("rate_limited_retry_back_off.reset_headers[0].name: not a header name", |routes| {
                let reset_headers = vec![ResetHeader { name: "a b".into(), format: 0 }];
                policy(routes).rate_limited_retry_back_off =
                    Some(RateLimitedRetryBackOff { reset_headers, max_interval: None });
            }),
            ("rate_limited_retry_back_off.max_interval: must be more than zero", |routes| {
                policy(routes).rate_limited_retry_back_off =
                    Some(RateLimitedRetryBackOff { reset_headers: Vec::new(), max_interval: seconds(0) });
            }),
        ],
    );
}

#[test]
fn how_many_retries_a_cluster_allows() {
    use cluster::circuit_breakers::Thresholds;
    use cluster::circuit_breakers::thresholds::RetryBudget;
    let budget = |percent: Option<f64>, least: Option<u32>| RetryBudget {
        budget_percent: percent.map(|value| Percent { value }),
        min_retry_concurrency: least.and_then(number),
        ..Default::default()
    };
    let limit = |thresholds: Vec<Thresholds>| {
        let breakers = cluster::CircuitBreakers { thresholds, ..Default::default() };
        with(|cluster| cluster.circuit_breakers = Some(breakers)).circuit_breakers.retries
    };
    let share = |percent, at_least| RetryLimit::Budget {
        share: Fraction::new(percent, 1000),
        at_least,
        interval: Duration::ZERO,
    };
    let max_retries = number(5);
    assert_eq!(with(|_| {}).circuit_breakers.retries, RetryLimit::PaidBySuccesses);
    assert_eq!(limit(vec![Thresholds::default()]), RetryLimit::PaidBySuccesses);
    assert_eq!(limit(vec![Thresholds { max_retries, ..Default::default() }]), RetryLimit::AtMost(5));
    // Those of requests of high priority, which there are none of here.
    assert_eq!(limit(vec![Thresholds { max_retries, priority: 1, ..Default::default() }]), RetryLimit::PaidBySuccesses);
    for (budget, expected) in [
        (budget(None, None), share(200, 3)),
        (budget(Some(2.5), Some(0)), share(25, 0)),
        (budget(Some(100.0), None), share(1000, 3)),
    ] {
        let both = Thresholds { max_retries, retry_budget: Some(budget), ..Default::default() };
        assert_eq!(limit(vec![both]), expected);
    }
    let timed = RetryBudget { budget_interval: seconds(7), ..budget(None, None) };
    let RetryLimit::Budget { interval, .. } =
        limit(vec![Thresholds { retry_budget: Some(timed), ..Default::default() }])
    else {
        panic!("it is a budget")
    };
    assert_eq!(interval, Duration::from_secs(7));
}
