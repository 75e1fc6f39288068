//! Envoy's protocol of rate limit services over gRPC (`envoy.service.ratelimit.v3`): a question and an answer in bytes.

use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::HeaderValue as HeaderValueProto;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::{Entry, RateLimitOverride};
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus};
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use envoy_types::pb::envoy::r#type::v3::RateLimitUnit;
use envoy_types::pb::google::protobuf::UInt64Value;
use http::HeaderMap;
use prost::Message;

use crate::authz::external::settable;
use crate::limits::{Answer, Left, Question};
use crate::model::LimitUnit;

/// The path of the call.
pub const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// A question as the protocol has it.
pub fn encode(question: &Question) -> Vec<u8> {
    let descriptors = question.descriptors.iter().map(|descriptor| RateLimitDescriptor {
        entries: descriptor
            .entries
            .iter()
            .map(|(key, value)| Entry { key: key.clone(), value: value.clone() })
            .collect(),
        limit: descriptor
            .limit
            .map(|limit| RateLimitOverride { requests_per_unit: limit.requests, unit: unit(limit.unit).into() }),
        hits_addend: descriptor.hits.map(|value| UInt64Value { value }),
        is_negative_hits: descriptor.gives_back,
    });
    let descriptors = descriptors.collect();
    RateLimitRequest { domain: question.domain.to_string(), descriptors, hits_addend: 0 }.encode_to_vec()
}

/// A unit of time in the words of the protocol.
pub fn unit(unit: LimitUnit) -> RateLimitUnit {
    match unit {
        LimitUnit::Second => RateLimitUnit::Second,
        LimitUnit::Minute => RateLimitUnit::Minute,
        LimitUnit::Hour => RateLimitUnit::Hour,
        LimitUnit::Day => RateLimitUnit::Day,
        LimitUnit::Month => RateLimitUnit::Month,
        LimitUnit::Year => RateLimitUnit::Year,
    }
}

/// What an answer means.
///
/// # Errors
/// It is no answer: malformed, or of a code that says neither.
pub fn decode(bytes: &[u8]) -> Result<Answer, String> {
    let malformed = |error: prost::DecodeError| format!("the answer of the rate limit service is malformed: {error}");
    let answer = RateLimitResponse::decode(bytes).map_err(malformed)?;
    let is_over = match answer.overall_code() {
        Code::Ok => false,
        Code::OverLimit => true,
        Code::Unknown => return Err("the answer of the rate limit service has no code".to_owned()),
    };
    let is_nearer = |status: &&DescriptorStatus| (status.code() != Code::OverLimit, status.limit_remaining);
    let limited = answer.statuses.iter().filter(|status| status.current_limit.is_some());
    let nearest = limited.min_by_key(is_nearer);
    Ok(Answer {
        is_over,
        left: nearest.and_then(left),
        response_headers: headers(&answer.response_headers_to_add),
        request_headers: headers(&answer.request_headers_to_add),
        body: Bytes::from(answer.raw_body),
    })
}

fn left(status: &DescriptorStatus) -> Option<Left> {
    const DAY: u64 = 86_400;
    let limit = status.current_limit.as_ref()?;
    let window = match limit.unit() {
        Unit::Unknown => return None,
        Unit::Second => 1,
        Unit::Minute => 60,
        Unit::Hour => 3_600,
        Unit::Day => DAY,
        Unit::Week => 7 * DAY,
        Unit::Month => 30 * DAY,
        Unit::Year => 365 * DAY,
    };
    let until = status.duration_until_reset.as_ref().map_or(0, |until| u64::try_from(until.seconds).unwrap_or(0));
    let (max, left, window) = (limit.requests_per_unit, status.limit_remaining, Duration::from_secs(window));
    let name = limit.name.as_str().into();
    Some(Left { name, max, left, window, full_in: Duration::from_secs(until).min(window) })
}

/// Those that may be set by somebody else than who makes the message.
fn headers(list: &[HeaderValueProto]) -> HeaderMap {
    let header = |header: &HeaderValueProto| {
        let value = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
        settable(&header.key.to_ascii_lowercase(), value).ok()
    };
    list.iter().filter_map(header).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::RateLimit;

    #[test]
    fn an_answer_means_its_code_and_what_is_left_under_the_nearest_limit() {
        let status = |code: Code, left: u32| DescriptorStatus {
            code: code.into(),
            current_limit: Some(RateLimit { name: String::new(), requests_per_unit: 10, unit: Unit::Minute.into() }),
            limit_remaining: left,
            ..DescriptorStatus::default()
        };
        let header = |key: &str| HeaderValueProto { key: key.to_owned(), value: "1".to_owned(), ..Default::default() };
        let answer = RateLimitResponse {
            overall_code: Code::OverLimit.into(),
            statuses: vec![status(Code::Ok, 0), DescriptorStatus::default(), status(Code::OverLimit, 3)],
            response_headers_to_add: vec![header("RateLimit-Limit"), header("content-length"), header("no header")],
            ..RateLimitResponse::default()
        };
        let meaning = decode(&answer.encode_to_vec()).unwrap();
        assert!(meaning.is_over);
        assert_eq!(meaning.left.map(|left| (left.max, left.left, left.window.as_secs())), Some((10, 3, 60)));
        assert_eq!(meaning.response_headers.keys().collect::<Vec<_>>(), ["ratelimit-limit"]);
        assert!(decode(&[]).unwrap_err().contains("no code"));
        assert!(decode(&[0xff]).unwrap_err().contains("malformed"));
    }
}
