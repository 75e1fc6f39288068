//! Quotas as Envoy's filter (`envoy.filters.http.rate_limit_quota`). What tells identities apart is said to the library besides: an
//! Envoy is not served it.

use envoy_types::pb::envoy::config::core::v3::GrpcService;
use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::extensions::filters::http::rate_limit_quota::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::rate_limit_quota::v3::rate_limit_quota_bucket_settings::{
    BucketIdBuilder, DenyResponseSettings, ExpiredAssignmentBehavior, NoAssignmentBehavior, bucket_id_builder,
    expired_assignment_behavior, no_assignment_behavior,
};
use envoy_types::pb::envoy::r#type::v3::rate_limit_strategy::{BlanketRule, Strategy};
use envoy_types::pb::envoy::r#type::v3::{HttpStatus, RateLimitStrategy, TokenBucket};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc;
use envoy_types::pb::xds::core::v3::TypedExtensionConfig as Action;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{OnMatch, on_match};
use mesh_core::model::{ExpiredQuota, QuotaSettings, QuotaStrategy, RateLimitQuota};
use mesh_core::xds::decode::{CONTROL_PLANE, QuotaBesides};
use prost::{Message, Name};

use super::limits::{rate_limit, share};
use super::proto::{duration, number};
use crate::catalog::{QUOTA, RULE};

/// The filter of a rule of this object.
pub(super) fn quota(quota: &RateLimitQuota, id: &str, rule: &str) -> Any {
    let service = EnvoyGrpc { cluster_name: CONTROL_PLANE.to_owned(), ..Default::default() };
    let rules = quota.rules.first().map(|first| OnMatch {
        on_match: Some(on_match::OnMatch::Action(Action {
            name: rule.to_owned(),
            typed_config: Some(bucket(&first.settings, id, rule)),
        })),
        ..Default::default()
    });
    let config = pb::RateLimitQuotaFilterConfig {
        rlqs_server: Some(GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(service)),
            ..Default::default()
        }),
        domain: quota.domain.to_string(),
        bucket_matchers: Some(Matcher { on_no_match: rules.map(Box::new), ..Default::default() }),
        filter_enabled: Some(share(quota.enabled)),
        filter_enforced: Some(share(quota.enforced)),
        ..Default::default()
    };
    Any { type_url: pb::RateLimitQuotaFilterConfig::type_url(), value: config.encode_to_vec() }
}

fn bucket(settings: &QuotaSettings, id: &str, rule: &str) -> Any {
    use bucket_id_builder::{ValueBuilder, value_builder::ValueSpecifier};
    let fixed = [(QUOTA, id), (RULE, rule)].map(|(key, value)| {
        (key.to_owned(), ValueBuilder { value_specifier: Some(ValueSpecifier::StringValue(value.to_owned())) })
    });
    let expired = settings.expired.map(|(kind, time)| ExpiredAssignmentBehavior {
        expired_assignment_behavior_timeout: Some(duration(time)),
        expired_assignment_behavior: Some(match kind {
            ExpiredQuota::Fallback(fallback) => {
                expired_assignment_behavior::ExpiredAssignmentBehavior::FallbackRateLimit(strategy(fallback))
            }
            ExpiredQuota::Reuse => expired_assignment_behavior::ExpiredAssignmentBehavior::ReuseLastAssignment(
                expired_assignment_behavior::ReuseLastAssignment {},
            ),
        }),
    });
    let code = i32::try_from(settings.grpc_code).unwrap_or_default();
    let config = pb::RateLimitQuotaBucketSettings {
        bucket_id_builder: Some(BucketIdBuilder { bucket_id_builder: fixed.into() }),
        reporting_interval: Some(duration(settings.interval)),
        deny_response_settings: Some(DenyResponseSettings {
            http_status: Some(HttpStatus { code: settings.status.as_u16().into() }),
            grpc_status: Some(rpc::Status { code, ..Default::default() }),
            ..Default::default()
        }),
        no_assignment_behavior: Some(NoAssignmentBehavior {
            no_assignment_behavior: Some(no_assignment_behavior::NoAssignmentBehavior::FallbackRateLimit(strategy(
                settings.unassigned,
            ))),
        }),
        expired_assignment_behavior: expired,
    };
    let besides = QuotaBesides {
        bucket: Some(rate_limit(&settings.bucket)),
        limit: id.to_owned(),
        rule: rule.to_owned(),
        tells_when: settings.tells_when,
    };
    let mut value = config.encode_to_vec();
    value.extend(besides.encode_to_vec());
    Any { type_url: pb::RateLimitQuotaBucketSettings::type_url(), value }
}

fn strategy(strategy: QuotaStrategy) -> RateLimitStrategy {
    let strategy = match strategy {
        QuotaStrategy::AllowAll => Strategy::BlanketRule(BlanketRule::AllowAll.into()),
        QuotaStrategy::DenyAll => Strategy::BlanketRule(BlanketRule::DenyAll.into()),
        QuotaStrategy::Tokens { max, per_fill, interval } => Strategy::TokenBucket(TokenBucket {
            max_tokens: u32::try_from(max).unwrap_or(u32::MAX),
            tokens_per_fill: number(u32::try_from(per_fill).unwrap_or(u32::MAX)),
            fill_interval: Some(duration(interval)),
        }),
    };
    RateLimitStrategy { strategy: Some(strategy) }
}
