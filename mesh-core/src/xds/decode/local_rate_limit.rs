//! Local rate limits (`envoy.extensions.filters.http.local_ratelimit.v3`), of a listener, a virtual host or a route.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::common::ratelimit::v3::{
    LocalRateLimitDescriptor, VhRateLimitsOptions, XRateLimitHeadersRfcVersion,
};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit as LocalRateLimitProto;
use envoy_types::pb::envoy::r#type::v3::TokenBucket as TokenBucketProto;
use envoy_types::pb::google::protobuf::Any;
use http::StatusCode;
use prost::Message;

use super::common::{duration, filled, parse, runtime_share, status_from, unpack};
use super::headers::{self, mutations};
use super::notes::{Notes, ignored};
use super::rate_limits::{rate_limits, stage};
use crate::error::Invalid;
use crate::limits::KeyedBuckets;
use crate::model::{Fraction, LocalRateLimit, LocalRule, OfHost, RestHeaders, TokenBucket};

/// Envoy takes no interval that is shorter.
const SHORTEST_FILL: Duration = Duration::from_millis(50);

/// What `mesh-control` says besides, to the library alone: behind the fields that Envoy knows, in the same message.
#[derive(Clone, PartialEq, Message)]
pub struct LocalRateLimitBesides {
    /// Answers tell what is left in `RateLimit-Policy` and `RateLimit`.
    #[prost(bool, tag = "1000")]
    pub tells_rest: bool,
    /// What the rules are called, in the order of the descriptors.
    #[prost(string, repeated, tag = "1001")]
    pub names: Vec<String>,
}

/// Of a listener, or in the place of that of a listener (`is_override`), where it has to have a bucket.
pub(super) fn local_rate_limit(notes: &mut Notes<'_>, any: &Any, is_override: bool) -> Result<LocalRateLimit, Invalid> {
    let LocalRateLimitProto {
        stat_prefix,
        status,
        token_bucket,
        filter_enabled,
        filter_enforced,
        request_headers_to_add_when_not_enforced,
        response_headers_to_add,
        descriptors,
        stage: of_stage,
        local_rate_limit_per_downstream_connection: per_connection,
        local_cluster_rate_limit,
        enable_x_ratelimit_headers,
        vh_rate_limits,
        always_consume_default_token_bucket,
        rate_limited_as_resource_exhausted: is_exhaustion,
        rate_limits: own_limits,
        max_dynamic_descriptors,
        enable_retry_after_header: tells_when,
    } = unpack(any)?;
    let LocalRateLimitBesides { tells_rest, names } = parse(&any.value)?;
    // It divides the limit among all of its kind, and nobody here knows how many there are.
    ignored!(notes; local_cluster_rate_limit);
    let bucket = notes.optional("token_bucket", token_bucket, |_, value| bucket(&value))?;
    let mut names = names.into_iter();
    let rules = notes.each("descriptors", descriptors, |notes, value| rule(notes, value, names.next()))?;
    if bucket.is_none() && is_override && rules.is_empty() {
        return Err(Invalid::new("missing, of a route or a virtual host").at("token_bucket"));
    }
    for (position, rule) in rules.iter().enumerate() {
        if rules.iter().take(position).any(|other| other.entries == rule.entries) {
            let reason = "another one has the same entries";
            return Err(Invalid::new(reason).at(format!("descriptors[{position}]")));
        }
    }
    let most_keys = max_dynamic_descriptors.map_or(20, |most| most.value);
    if !(1..=KeyedBuckets::MOST).contains(&most_keys) {
        let reason = format!("must be 1 to {}", KeyedBuckets::MOST);
        return Err(Invalid::new(reason).at("max_dynamic_descriptors"));
    }
    let keyed = rules.iter().filter(|rule| per_connection || rule.is_keyed()).count();
    if u64::from(most_keys) * keyed as u64 > u64::from(KeyedBuckets::MOST) {
        let reason = format!("{keyed} descriptors for any value, and {most_keys} values of each, are too many buckets");
        return Err(Invalid::new(reason).at("max_dynamic_descriptors"));
    }
    // Unset is none, as in Envoy.
    let enabled = runtime_share(notes, "filter_enabled", filter_enabled)?.unwrap_or_default();
    if enabled == Fraction::default() && (bucket.is_some() || !rules.is_empty()) {
        notes.ignore("(filter_enabled is 0 %, so that no request is counted)");
    }
    let changes = mutations(
        notes,
        headers::Lists {
            request_headers_to_add: request_headers_to_add_when_not_enforced,
            response_headers_to_add,
            ..headers::Lists::default()
        },
    )?;
    Ok(LocalRateLimit {
        bucket,
        is_for_all: always_consume_default_token_bucket.is_none_or(|always| always.value),
        rules,
        rate_limits: rate_limits(notes, own_limits)?,
        stage: stage(of_stage)?,
        of_host: match VhRateLimitsOptions::try_from(vh_rate_limits) {
            Ok(VhRateLimitsOptions::Override) => OfHost::Without,
            Ok(VhRateLimitsOptions::Include) => OfHost::Always,
            Ok(VhRateLimitsOptions::Ignore) => OfHost::Never,
            Err(_) => return Err(Invalid::new("not a known value").at("vh_rate_limits")),
        },
        enabled,
        enforced: runtime_share(notes, "filter_enforced", filter_enforced)?.unwrap_or_default(),
        per_connection,
        most_keys,
        // As in Envoy, what is no error is 429.
        status: status.and_then(|status| status_from(400, &status)).unwrap_or(StatusCode::TOO_MANY_REQUESTS),
        is_exhaustion,
        tells_when,
        tells: match XRateLimitHeadersRfcVersion::try_from(enable_x_ratelimit_headers) {
            _ if tells_rest => RestHeaders::RateLimit,
            Ok(XRateLimitHeadersRfcVersion::Off) => RestHeaders::None,
            Ok(XRateLimitHeadersRfcVersion::DraftVersion03) => RestHeaders::XRateLimit,
            Err(_) => return Err(Invalid::new("not a known value").at("enable_x_ratelimit_headers")),
        },
        request_changes: changes.request,
        response_changes: changes.response,
        ..LocalRateLimit::new(filled("stat_prefix", stat_prefix)?, None)
    })
}

fn rule(notes: &mut Notes<'_>, value: LocalRateLimitDescriptor, name: Option<String>) -> Result<LocalRule, Invalid> {
    let LocalRateLimitDescriptor { entries, token_bucket, shadow_mode } = value;
    if entries.is_empty() {
        return Err(Invalid::new("the list is empty").at("entries"));
    }
    let entries = notes.each("entries", entries, |_, entry| {
        Ok((Arc::<str>::from(filled("key", entry.key)?), Arc::<str>::from(entry.value)))
    })?;
    let bucket = notes.required("token_bucket", token_bucket, |_, value| bucket(&value))?;
    let name = name.filter(|name| !name.is_empty()).unwrap_or_else(|| LocalRule::in_words(&entries).join(","));
    Ok(LocalRule { is_shadow: shadow_mode, ..LocalRule::new(name, entries, bucket) })
}

fn bucket(value: &TokenBucketProto) -> Result<TokenBucket, Invalid> {
    let interval = value.fill_interval.as_ref().ok_or_else(|| Invalid::new("missing").at("fill_interval"))?;
    let interval = duration(interval).map_err(|invalid| invalid.at("fill_interval"))?;
    if interval < SHORTEST_FILL {
        return Err(Invalid::new(format!("shorter than {SHORTEST_FILL:?}")).at("fill_interval"));
    }
    TokenBucket::new(value.max_tokens, value.tokens_per_fill.as_ref().map_or(1, |tokens| tokens.value), interval)
}
