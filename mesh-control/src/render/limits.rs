//! Rate limits as Envoy's filters (`envoy.filters.http.local_ratelimit`, `envoy.filters.http.ratelimit`), one for each that is in
//! force. What of it is our own, the library is told besides, and an Envoy is not served.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::{self, ActionSpecifier as Kind};
use envoy_types::pb::envoy::config::route::v3::rate_limit::r#override::{OverrideSpecifier, RateLimitOverride};
use envoy_types::pb::envoy::config::route::v3::rate_limit::{Action, HitsAddend, Override};
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, RateLimit as RateLimitProto};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::{
    LocalRateLimitDescriptor, VhRateLimitsOptions, XRateLimitHeadersRfcVersion,
};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit as LocalRateLimitProto;
use envoy_types::pb::envoy::extensions::filters::http::ratelimit::v3 as global;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::rate_limit_descriptors::expr::v3::Descriptor as ExprDescriptor;
use envoy_types::pb::envoy::extensions::rate_limit_descriptors::expr::v3::descriptor::ExprSpecifier;
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::envoy::r#type::v3::{
    FractionalPercent, HttpStatus, TokenBucket as TokenBucketProto, fractional_percent::DenominatorType,
};
use envoy_types::pb::google::protobuf::{Any, BoolValue, UInt32Value, UInt64Value};
use mesh_core::model::{
    CLIENT_ENTRY, DescriptorAction, Fraction, GlobalRateLimit, HeaderChange, HeaderTarget, HeaderTest, LocalRateLimit,
    LocalRule, OfHost, PATH_ENTRY, RateLimit, RestHeaders, StringTest, TokenBucket,
};
use mesh_core::xds::decode::{LocalRateLimitBesides, RateLimitBesides};
use mesh_core::xds::rate_limit::unit;
use prost::{Message, Name};
use serde_json::json;

use super::extensions::typed_struct;
use super::overload;
use super::proto::{any, duration, number, regex};
use crate::catalog::ClientClass;
use crate::policy::limits::{Limit, LimitInForce};

/// The filters of these limits, in their order, for clients of this class: gRPC's know none.
pub fn filters(limits: &[LimitInForce], class: ClientClass) -> Vec<hcm::HttpFilter> {
    match class {
        ClientClass::Grpc => Vec::new(),
        ClientClass::Library => limits.iter().map(|limit| filter(limit, class)).collect(),
        // It would need a cluster for the service.
        ClientClass::Envoy => {
            let known = limits.iter().filter(|limit| !matches!(limit.limit, Limit::Global(_) | Limit::Quota { .. }));
            known.map(|limit| filter(limit, class)).collect()
        }
    }
}

/// Whether an Envoy knows how a request is counted.
pub fn is_for_envoy(limit: &RateLimit) -> bool {
    let is_own = |action: &DescriptorAction| {
        use DescriptorAction::{Client, Expression, PathTemplate};
        // An expression may ask what only the library knows.
        matches!(action, Client { .. } | PathTemplate { .. } | Expression { .. })
    };
    !limit.actions.iter().any(is_own)
}

fn filter(LimitInForce { id, limit }: &LimitInForce, class: ClientClass) -> hcm::HttpFilter {
    let mut name = String::new();
    let (kind, config) = match limit {
        Limit::Rate(limit) => ("local_ratelimit", local_rate_limit(limit, id, class)),
        Limit::Global(limit) => ("ratelimit", global_rate_limit(limit, id)),
        Limit::Quota { rule, quota, .. } => {
            // One for each rule: a request has to be within all of them.
            name = format!("/{rule}");
            ("rate_limit_quota", super::quota::quota(quota, id, rule))
        }
        Limit::Concurrency(config) => ("adaptive_concurrency", overload::adaptive_concurrency(config, class)),
        Limit::Throttle(config) => ("admission_control", overload::admission_control(config)),
    };
    hcm::HttpFilter {
        name: format!("mesh-control.{kind}/{id}{name}"),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

fn local_rate_limit(limit: &LocalRateLimit, id: &str, class: ClientClass) -> Any {
    let mut value = proto(limit, id, class).encode_to_vec();
    if class == ClientClass::Library {
        let names = limit.rules.iter().map(|rule| rule.name.to_string()).collect();
        let besides = LocalRateLimitBesides { tells_rest: limit.tells == RestHeaders::RateLimit, names };
        value.extend(besides.encode_to_vec());
    }
    Any { type_url: LocalRateLimitProto::type_url(), value }
}

/// For the library alone, which makes out by itself how a host and its port are called.
fn global_rate_limit(limit: &GlobalRateLimit, id: &str) -> Any {
    let service = EnvoyGrpc { authority: limit.target.to_string(), ..Default::default() };
    let service =
        core::GrpcService { target_specifier: Some(TargetSpecifier::EnvoyGrpc(service)), ..Default::default() };
    let status = |code: http::StatusCode| Some(HttpStatus { code: code.as_u16().into() });
    let filter = global::RateLimit {
        domain: limit.domain.to_string(),
        // What counts by it is called as the domain is, unless somebody says it.
        stat_prefix: if limit.name == limit.domain { id.to_owned() } else { limit.name.to_string() },
        stage: limit.stage.into(),
        timeout: Some(duration(limit.timeout)),
        failure_mode_deny: limit.fails_closed,
        rate_limited_as_resource_exhausted: limit.is_exhaustion,
        rate_limit_service: Some(RateLimitServiceConfig {
            grpc_service: Some(service),
            transport_api_version: core::ApiVersion::V3.into(),
        }),
        enable_x_ratelimit_headers: match limit.tells {
            RestHeaders::XRateLimit => global::rate_limit::XRateLimitHeadersRfcVersion::DraftVersion03,
            RestHeaders::None | RestHeaders::RateLimit => global::rate_limit::XRateLimitHeadersRfcVersion::Off,
        }
        .into(),
        disable_x_envoy_ratelimited_header: !limit.tells_why,
        rate_limited_status: status(limit.status),
        status_on_error: status(limit.status_on_error),
        response_headers_to_add: added(&limit.response_changes, HeaderTarget::Response),
        filter_enabled: Some(share(limit.enabled)),
        filter_enforced: Some(share(limit.enforced)),
        rate_limits: limit.rate_limits.iter().map(|counted| rate_limit(counted)).collect(),
        enable_retry_after_header: limit.tells_when,
        ..Default::default()
    };
    let mut value = filter.encode_to_vec();
    value.extend(RateLimitBesides { tells_rest: limit.tells == RestHeaders::RateLimit }.encode_to_vec());
    Any { type_url: global::RateLimit::type_url(), value }
}

fn proto(limit: &LocalRateLimit, id: &str, class: ClientClass) -> LocalRateLimitProto {
    let counted = limit.rate_limits.iter().filter(|counted| class == ClientClass::Library || is_for_envoy(counted));
    LocalRateLimitProto {
        // Objects of our own have no name for it; what counts by it is theirs.
        stat_prefix: if limit.name.is_empty() { id.to_owned() } else { limit.name.to_string() },
        status: Some(HttpStatus { code: limit.status.as_u16().into() }),
        token_bucket: limit.bucket.as_ref().map(bucket),
        filter_enabled: Some(share(limit.enabled)),
        filter_enforced: Some(share(limit.enforced)),
        request_headers_to_add_when_not_enforced: added(&limit.request_changes, HeaderTarget::Request),
        response_headers_to_add: added(&limit.response_changes, HeaderTarget::Response),
        descriptors: limit.rules.iter().map(descriptor).collect(),
        stage: limit.stage.into(),
        local_rate_limit_per_downstream_connection: limit.per_connection,
        enable_x_ratelimit_headers: match limit.tells {
            RestHeaders::XRateLimit => XRateLimitHeadersRfcVersion::DraftVersion03,
            RestHeaders::None | RestHeaders::RateLimit => XRateLimitHeadersRfcVersion::Off,
        }
        .into(),
        vh_rate_limits: match limit.of_host {
            OfHost::Without => VhRateLimitsOptions::Override,
            OfHost::Always => VhRateLimitsOptions::Include,
            OfHost::Never => VhRateLimitsOptions::Ignore,
        }
        .into(),
        always_consume_default_token_bucket: Some(BoolValue { value: limit.is_for_all }),
        rate_limited_as_resource_exhausted: limit.is_exhaustion,
        rate_limits: counted.map(|counted| rate_limit(counted)).collect(),
        max_dynamic_descriptors: number(limit.most_keys),
        enable_retry_after_header: limit.tells_when,
        ..Default::default()
    }
}

fn bucket(bucket: &TokenBucket) -> TokenBucketProto {
    TokenBucketProto {
        max_tokens: bucket.max(),
        tokens_per_fill: number(bucket.per_fill()),
        fill_interval: Some(duration(bucket.interval())),
    }
}

pub(super) fn share(share: Fraction) -> core::RuntimeFractionalPercent {
    core::RuntimeFractionalPercent {
        default_value: Some(FractionalPercent {
            numerator: share.per_million(),
            denominator: DenominatorType::Million.into(),
        }),
        ..Default::default()
    }
}

fn added(changes: &[HeaderChange], target: HeaderTarget) -> Vec<core::HeaderValueOption> {
    use core::header_value_option::HeaderAppendAction as Append;
    let option = |change: &HeaderChange| {
        let (name, text, action) = match change {
            HeaderChange::Set(name, text) => (name, text, Append::OverwriteIfExistsOrAdd),
            HeaderChange::ReplaceIfPresent(name, text) => (name, text, Append::OverwriteIfExists),
            HeaderChange::Append(name, text) => (name, text, Append::AppendIfExistsOrAdd),
            HeaderChange::AddIfAbsent(name, text) => (name, text, Append::AddIfAbsent),
            HeaderChange::Remove(_) => return None,
        };
        let header = core::HeaderValue { key: name.to_string(), value: text.written(target), ..Default::default() };
        Some(core::HeaderValueOption {
            header: Some(header),
            append_action: action.into(),
            keep_empty_value: true,
            ..Default::default()
        })
    };
    changes.iter().filter_map(option).collect()
}

fn descriptor(rule: &LocalRule) -> LocalRateLimitDescriptor {
    let entry = |(key, value): &(std::sync::Arc<str>, std::sync::Arc<str>)| Entry {
        key: key.to_string(),
        value: value.to_string(),
    };
    LocalRateLimitDescriptor {
        entries: rule.entries.iter().map(entry).collect(),
        token_bucket: Some(bucket(&rule.bucket)),
        shadow_mode: rule.is_shadow,
    }
}

pub(super) fn rate_limit(limit: &RateLimit) -> RateLimitProto {
    RateLimitProto {
        actions: limit.actions.iter().map(|action| Action { action_specifier: Some(kind(action)) }).collect(),
        limit: limit.limit.map(|limit| Override {
            override_specifier: Some(OverrideSpecifier::RateLimit(RateLimitOverride {
                requests_per_unit: limit.requests,
                unit: unit(limit.unit).into(),
            })),
        }),
        hits_addend: limit
            .hits
            .map(|hits| HitsAddend { number: Some(UInt64Value { value: hits }), ..Default::default() }),
        ..Default::default()
    }
}

fn kind(action: &DescriptorAction) -> Kind {
    let text = |text: &std::sync::Arc<str>| text.to_string();
    match action {
        DescriptorAction::SourceCluster => Kind::SourceCluster(action::SourceCluster {}),
        DescriptorAction::DestinationCluster => Kind::DestinationCluster(action::DestinationCluster {}),
        DescriptorAction::Header { key, name, skip_if_absent } => Kind::RequestHeaders(action::RequestHeaders {
            header_name: text(name),
            descriptor_key: text(key),
            skip_if_absent: *skip_if_absent,
        }),
        DescriptorAction::Query { key, name, skip_if_absent } => Kind::QueryParameters(action::QueryParameters {
            query_parameter_name: text(name),
            descriptor_key: text(key),
            skip_if_absent: *skip_if_absent,
        }),
        DescriptorAction::RemoteAddress => Kind::RemoteAddress(action::RemoteAddress {}),
        DescriptorAction::MaskedRemoteAddress { v4_bits, v6_bits } => {
            let bits = |bits: u8| Some(UInt32Value { value: bits.into() });
            Kind::MaskedRemoteAddress(action::MaskedRemoteAddress {
                v4_prefix_mask_len: bits(*v4_bits),
                v6_prefix_mask_len: bits(*v6_bits),
            })
        }
        DescriptorAction::Constant { key, value } => Kind::GenericKey(action::GenericKey {
            descriptor_key: text(key),
            descriptor_value: text(value),
            ..Default::default()
        }),
        DescriptorAction::HeaderMatch { key, value, expects, tests } => {
            Kind::HeaderValueMatch(action::HeaderValueMatch {
                descriptor_key: text(key),
                descriptor_value: text(value),
                expect_match: Some(BoolValue { value: *expects }),
                headers: tests.iter().filter_map(header_matcher).collect(),
                ..Default::default()
            })
        }
        DescriptorAction::Claim { key, path, .. } => {
            use envoy_types::pb::envoy::r#type::metadata::v3::{MetadataKey, metadata_key};
            let path = ["payload"].into_iter().chain(path.iter().map(String::as_str));
            let segment = |key: &str| metadata_key::PathSegment {
                segment: Some(metadata_key::path_segment::Segment::Key(key.to_owned())),
            };
            Kind::Metadata(action::MetaData {
                descriptor_key: text(key),
                metadata_key: Some(MetadataKey {
                    key: "envoy.filters.http.jwt_authn".to_owned(),
                    path: path.map(segment).collect(),
                }),
                ..Default::default()
            })
        }
        DescriptorAction::Client { key, part } => {
            Kind::Extension(typed_struct(CLIENT_ENTRY, &json!({"key": &**key, "part": part.name()})))
        }
        DescriptorAction::PathTemplate { key, templates } => {
            let templates: Vec<&str> = templates.iter().map(|(text, _)| &**text).collect();
            Kind::Extension(typed_struct(PATH_ENTRY, &json!({"key": &**key, "templates": templates})))
        }
        DescriptorAction::Expression { key, expression, skip_if_absent } => {
            let descriptor = ExprDescriptor {
                descriptor_key: text(key),
                skip_if_error: *skip_if_absent,
                expr_specifier: Some(ExprSpecifier::Text(expression.text().to_owned())),
            };
            Kind::Extension(core::TypedExtensionConfig {
                name: "envoy.rate_limit_descriptors.expr".to_owned(),
                typed_config: Some(any(&descriptor)),
            })
        }
        // Nobody writes these in an object.
        DescriptorAction::RemoteAddressMatch { key, value, .. } | DescriptorAction::QueryMatch { key, value, .. } => {
            Kind::GenericKey(action::GenericKey {
                descriptor_key: text(key),
                descriptor_value: text(value),
                ..Default::default()
            })
        }
    }
}

fn header_matcher(test: &HeaderTest) -> Option<HeaderMatcher> {
    let matcher = |name: &str, invert: bool, specifier| HeaderMatcher {
        name: name.to_owned(),
        invert_match: invert,
        header_match_specifier: Some(specifier),
        ..Default::default()
    };
    match test {
        HeaderTest::Present { name, present } => {
            Some(matcher(name, false, HeaderMatchSpecifier::PresentMatch(*present)))
        }
        HeaderTest::Value { name, test, invert, .. } => {
            let (pattern, ignore_case) = match test {
                StringTest::Exact { value, ignore_case } => (MatchPattern::Exact(value.clone()), *ignore_case),
                StringTest::Prefix { value, ignore_case } => (MatchPattern::Prefix(value.clone()), *ignore_case),
                StringTest::Suffix { value, ignore_case } => (MatchPattern::Suffix(value.clone()), *ignore_case),
                StringTest::Contains { value, ignore_case } => (MatchPattern::Contains(value.clone()), *ignore_case),
                StringTest::Regex(expression) => (MatchPattern::SafeRegex(regex(expression.as_str())), false),
                _ => return None,
            };
            let test = StringMatcher { ignore_case, match_pattern: Some(pattern) };
            Some(matcher(name, *invert, HeaderMatchSpecifier::StringMatch(test)))
        }
        // Neither do objects have these.
        _ => None,
    }
}
