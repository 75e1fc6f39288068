//! Quotas: what is understood of Envoy's filter, and of what routes say in its place, and what is refused.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::core::v3::{GrpcService, HeaderValue, HeaderValueOption, TypedExtensionConfig};
use envoy_types::pb::envoy::extensions::filters::http::rate_limit_quota::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::rate_limit_quota::v3::rate_limit_quota_bucket_settings::{
    self as settings, bucket_id_builder::ValueBuilder, bucket_id_builder::value_builder::ValueSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::r#type::matcher::v3::HttpRequestHeaderMatchInput;
use envoy_types::pb::envoy::r#type::v3::rate_limit_strategy::{RequestsPerTimeUnit, Strategy};
use envoy_types::pb::envoy::r#type::v3::{HttpStatus, RateLimitStrategy, RateLimitUnit, TokenBucket};
use envoy_types::pb::google::protobuf;
use envoy_types::pb::google::rpc;
use envoy_types::pb::xds::core::v3::TypedExtensionConfig as Extension;
use envoy_types::pb::xds::r#type::matcher::v3 as xds;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::{FieldMatcher, Predicate, predicate};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{MatcherList, MatcherType, OnMatch, on_match};
use prost::Message;

use super::decode;
use crate::error::Invalid;
use crate::model::{
    DescriptorAction, ExpiredQuota, FilterConfig, HeaderTest, Listener, QuotaStrategy, QuotaTest, RateLimitQuota,
    RouteSource, StringTest,
};
use crate::resources::{Resource, ResourceType};
use crate::testing::resources::{
    filter_chain, http_filter, http_manager, pack, route_to_application, routes, server_listener, virtual_host,
};
use crate::xds::decode::Options;

/// What comes of a filter, and of what a route says in its place.
fn decoded(
    filter: &pb::RateLimitQuotaFilterConfig,
    here: &pb::RateLimitQuotaOverride,
) -> Result<(RateLimitQuota, FilterConfig, Vec<String>), Invalid> {
    let mut route = route_to_application();
    route.typed_per_filter_config = [("quota".to_owned(), pack(here))].into();
    let routes = routes("r", vec![virtual_host("all", &["*"], vec![route])]);
    let mut manager = http_manager(hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes.clone()));
    manager.http_filters.insert(0, http_filter("quota", pack(filter)));
    let mut listener = server_listener("in", "127.0.0.1:80".parse().expect("an address"), routes);
    listener.filter_chains = vec![filter_chain(&manager)];
    let decoded = decode(ResourceType::Listener, &listener.encode_to_vec(), &Options::default())?;
    let ignored = decoded.ignored;
    let Resource::Listener(listener) = decoded.resource else { panic!("no listener") };
    let Listener::Server(server) = &*listener else { panic!("no server") };
    let http = &server.filter_chains[0].http;
    let FilterConfig::RateLimitQuota(quota) = &http.filters[0].config else { panic!("no quota") };
    let RouteSource::Inline(routes) = &http.routes else { panic!("routes are elsewhere") };
    let here = routes.virtual_hosts[0].routes[0].filters["quota"].clone();
    Ok((RateLimitQuota::clone(quota), here, ignored))
}

fn service(cluster_name: &str) -> Option<GrpcService> {
    let service = EnvoyGrpc { cluster_name: cluster_name.to_owned(), ..EnvoyGrpc::default() };
    Some(GrpcService { target_specifier: Some(TargetSpecifier::EnvoyGrpc(service)), ..GrpcService::default() })
}

fn header(name: &str) -> protobuf::Any {
    pack(&HttpRequestHeaderMatchInput { header_name: name.to_owned() })
}

fn seconds(seconds: i64) -> Option<protobuf::Duration> {
    Some(protobuf::Duration { seconds, nanos: 0 })
}

fn per(requests: u64, unit: RateLimitUnit) -> RateLimitStrategy {
    let strategy = RequestsPerTimeUnit { requests_per_time_unit: requests, time_unit: unit.into() };
    RateLimitStrategy { strategy: Some(Strategy::RequestsPerTimeUnit(strategy)) }
}

fn bucket(name: &str) -> pb::RateLimitQuotaBucketSettings {
    let fixed = ValueBuilder { value_specifier: Some(ValueSpecifier::StringValue(name.to_owned())) };
    let custom = TypedExtensionConfig { name: "user".to_owned(), typed_config: Some(header("X-User")) };
    let of_header = ValueBuilder { value_specifier: Some(ValueSpecifier::CustomValue(custom)) };
    let entries = [("user".to_owned(), of_header), ("name".to_owned(), fixed)];
    pb::RateLimitQuotaBucketSettings {
        bucket_id_builder: Some(settings::BucketIdBuilder { bucket_id_builder: entries.into() }),
        reporting_interval: seconds(5),
        ..Default::default()
    }
}

fn action(settings: &pb::RateLimitQuotaBucketSettings) -> OnMatch {
    let action = Extension { name: "bucket".to_owned(), typed_config: Some(pack(settings)) };
    OnMatch { on_match: Some(on_match::OnMatch::Action(action)), ..Default::default() }
}

fn always(settings: &pb::RateLimitQuotaBucketSettings) -> Option<xds::Matcher> {
    Some(xds::Matcher { on_no_match: Some(Box::new(action(settings))), ..Default::default() })
}

fn exact(name: &str, value: &str) -> Predicate {
    let pattern = xds::string_matcher::MatchPattern::Exact(value.to_owned());
    let matcher = xds::StringMatcher { match_pattern: Some(pattern), ..Default::default() };
    let single = predicate::SinglePredicate {
        input: Some(Extension { name: "in".to_owned(), typed_config: Some(header(name)) }),
        matcher: Some(predicate::single_predicate::Matcher::ValueMatch(matcher)),
    };
    Predicate { match_type: Some(predicate::MatchType::SinglePredicate(single)) }
}

fn filter(bucket_matchers: Option<xds::Matcher>) -> pb::RateLimitQuotaFilterConfig {
    pb::RateLimitQuotaFilterConfig {
        rlqs_server: service("xds-grpc"),
        domain: "shop".to_owned(),
        bucket_matchers,
        ..Default::default()
    }
}

#[test]
fn every_field_of_a_quota_is_understood() {
    let mut limited = bucket("limited");
    limited.no_assignment_behavior = Some(settings::NoAssignmentBehavior {
        no_assignment_behavior: Some(settings::no_assignment_behavior::NoAssignmentBehavior::FallbackRateLimit(per(
            3,
            RateLimitUnit::Hour,
        ))),
    });
    let tokens = TokenBucket {
        max_tokens: 7,
        tokens_per_fill: Some(protobuf::UInt32Value { value: 2 }),
        fill_interval: seconds(9),
    };
    limited.expired_assignment_behavior = Some(settings::ExpiredAssignmentBehavior {
        expired_assignment_behavior_timeout: seconds(60),
        expired_assignment_behavior: Some(
            settings::expired_assignment_behavior::ExpiredAssignmentBehavior::FallbackRateLimit(RateLimitStrategy {
                strategy: Some(Strategy::TokenBucket(tokens)),
            }),
        ),
    });
    limited.deny_response_settings = Some(settings::DenyResponseSettings {
        http_status: Some(HttpStatus { code: 503 }),
        http_body: Some(protobuf::BytesValue { value: b"no more".to_vec() }),
        grpc_status: Some(rpc::Status { code: 8, message: "no".to_owned(), ..Default::default() }),
        response_headers_to_add: vec![HeaderValueOption {
            header: Some(HeaderValue { key: "x-why".to_owned(), value: "quota".to_owned(), ..Default::default() }),
            ..Default::default()
        }],
    });
    let tests = vec![
        exact("x-tier", "free"),
        Predicate { match_type: Some(predicate::MatchType::NotMatcher(Box::new(exact(":method", "HEAD")))) },
    ];
    let list = predicate::PredicateList { predicate: tests };
    let one = FieldMatcher {
        predicate: Some(Predicate { match_type: Some(predicate::MatchType::AndMatcher(list)) }),
        on_match: Some(action(&limited)),
    };
    let matcher = xds::Matcher {
        matcher_type: Some(MatcherType::MatcherList(MatcherList { matchers: vec![one] })),
        on_no_match: Some(Box::new(action(&bucket("others")))),
    };
    let here = pb::RateLimitQuotaOverride { domain: "other".to_owned(), bucket_matchers: always(&bucket("here")) };
    let (quota, here, ignored) = decoded(&filter(Some(matcher)), &here).unwrap();
    assert!(ignored.iter().any(|field| field.ends_with("grpc_status.message and details (the message is the body)")));
    assert_eq!((&*quota.domain, quota.rules.len()), ("shop", 2));
    let value = |name: &str, value: &str| {
        let test = StringTest::Exact { value: value.to_owned(), ignore_case: false };
        QuotaTest::Header(HeaderTest::Value { name: name.into(), test, invert: false, missing_is_empty: false })
    };
    let expected = QuotaTest::All(vec![value("x-tier", "free"), QuotaTest::Not(Box::new(value(":method", "HEAD")))]);
    assert_eq!(quota.rules[0].test, Some(expected));
    let settings = &quota.rules[0].settings;
    assert_eq!(
        settings.bucket.actions,
        [
            DescriptorAction::Constant { key: "name".into(), value: "limited".into() },
            DescriptorAction::Header { key: "user".into(), name: "x-user".into(), skip_if_absent: false },
        ]
    );
    assert_eq!(&*settings.name.1, "name=limited");
    assert_eq!(settings.interval, Duration::from_secs(5));
    let hour = QuotaStrategy::Tokens { max: 3, per_fill: 3, interval: Duration::from_secs(3600) };
    assert_eq!(settings.unassigned, hour);
    let tokens = QuotaStrategy::Tokens { max: 7, per_fill: 2, interval: Duration::from_secs(9) };
    assert_eq!(settings.expired, Some((ExpiredQuota::Fallback(tokens), Duration::from_secs(60))));
    assert_eq!((settings.status.as_u16(), &*settings.body, settings.grpc_code), (503, &b"no more"[..], 8));
    assert_eq!(settings.response_changes.len(), 1);
    assert_eq!((quota.rules[1].test.as_ref(), quota.rules[1].settings.expired), (None, None));
    assert_eq!(quota.rules[1].settings.unassigned, QuotaStrategy::AllowAll);
    let FilterConfig::QuotaPerRoute(here) = here else { panic!("{here:?}") };
    let rules = here.rules.as_ref().unwrap();
    assert_eq!((here.domain.as_deref(), &*rules[0].settings.name.1), (Some("other"), "name=here"));
}

#[test]
fn each_value_of_a_header_may_have_a_bucket_of_its_own() {
    let tree = xds::matcher::MatcherTree {
        input: Some(Extension { name: "in".to_owned(), typed_config: Some(header("x-tier")) }),
        tree_type: Some(xds::matcher::matcher_tree::TreeType::ExactMatchMap(xds::matcher::matcher_tree::MatchMap {
            map: [("gold".to_owned(), action(&bucket("gold"))), ("free".to_owned(), action(&bucket("free")))].into(),
        })),
    };
    let matcher = xds::Matcher { matcher_type: Some(MatcherType::MatcherTree(tree)), on_no_match: None };
    let (quota, ..) = decoded(&filter(Some(matcher)), &Default::default()).unwrap();
    let names: Vec<_> = quota.rules.iter().map(|rule| &*rule.settings.name.1).collect();
    assert_eq!(names, ["name=free", "name=gold"]);
    assert!(quota.rules.iter().all(|rule| rule.test.is_some()));
}

#[test]
fn what_cannot_be_honoured_is_refused_with_its_place() {
    type Change = fn(&mut pb::RateLimitQuotaFilterConfig);
    type Settings = fn(&mut pb::RateLimitQuotaBucketSettings);
    let changes: [(Change, &str); 6] = [
        (
            |filter| filter.rlqs_server = service("outbound|80||limits"),
            "rlqs_server.target_specifier: only the control",
        ),
        (|filter| filter.rlqs_server = None, "rlqs_server: missing"),
        (|filter| filter.domain.clear(), "domain: "),
        (|filter| filter.bucket_matchers = None, "bucket_matchers: missing"),
        (|filter| filter.bucket_matchers = Some(xds::Matcher::default()), "bucket_matchers: no bucket is for any"),
        (
            |filter| {
                let mut kept = action(&bucket("a"));
                kept.keep_matching = true;
                filter.bucket_matchers = Some(xds::Matcher { on_no_match: Some(Box::new(kept)), ..Default::default() });
            },
            "on_no_match.keep_matching: not supported",
        ),
    ];
    let settings: [(Settings, &str); 5] = [
        (|settings| settings.bucket_id_builder = None, "bucket_id_builder: missing"),
        (|settings| settings.reporting_interval = None, "reporting_interval: missing"),
        (
            |settings| settings.reporting_interval = Some(protobuf::Duration { seconds: 0, nanos: 99_000_000 }),
            "reporting_interval: shorter than",
        ),
        (
            |settings| {
                let custom =
                    TypedExtensionConfig { name: "?".to_owned(), typed_config: Some(pack(&HttpStatus { code: 1 })) };
                let value = ValueBuilder { value_specifier: Some(ValueSpecifier::CustomValue(custom)) };
                settings.bucket_id_builder.as_mut().unwrap().bucket_id_builder.insert("z".to_owned(), value);
            },
            "bucket_id_builder[\"z\"].custom_value.typed_config: type",
        ),
        (
            |settings| {
                settings.expired_assignment_behavior = Some(settings::ExpiredAssignmentBehavior {
                    expired_assignment_behavior_timeout: None,
                    expired_assignment_behavior: Some(
                        settings::expired_assignment_behavior::ExpiredAssignmentBehavior::FallbackRateLimit(per(
                            1,
                            RateLimitUnit::Unknown,
                        )),
                    ),
                });
            },
            "expired_assignment_behavior.requests_per_time_unit.time_unit: not a known unit",
        ),
    ];
    let of_filters = changes.into_iter().map(|(change, expected)| {
        let mut filter = filter(always(&bucket("a")));
        change(&mut filter);
        (filter, expected)
    });
    let of_settings = settings.into_iter().map(|(change, expected)| {
        let mut settings = bucket("a");
        change(&mut settings);
        (filter(always(&settings)), expected)
    });
    for (filter, expected) in of_filters.chain(of_settings) {
        let why = decoded(&filter, &Default::default()).unwrap_err().to_string();
        assert!(why.contains(expected), "{expected}: {why}");
    }
}
