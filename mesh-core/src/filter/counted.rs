//! What local and global rate limits have in common: what requests are counted by, and what answers tell of what is left.

use std::sync::Arc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use super::request_rules::Known;
use crate::limits::LimitedRequest;
use crate::model::{Fraction, OfHost, RateLimit, RestHeaders};
use crate::request::RequestHead;
use crate::request_info::{LimitNote, RequestInfo};
use crate::response_flags::ResponseFlags;

/// What a route says that its requests are counted by, with whether its virtual host counts besides; and what that says.
pub(super) type RouteLimits<'c> = ((&'c [Arc<RateLimit>], bool), &'c [Arc<RateLimit>]);

/// What requests are counted by: as the filter says it, or as its route and virtual host do for a stage.
pub(super) fn by(own: &[Arc<RateLimit>], stage: u8, of_host: OfHost, limits: RouteLimits<'_>) -> Vec<Arc<RateLimit>> {
    if !own.is_empty() {
        return own.to_vec();
    }
    let ((of_route, includes_host), of_the_host) = limits;
    let at_stage = |limits: &[Arc<RateLimit>]| -> Vec<Arc<RateLimit>> {
        limits.iter().filter(|limit| limit.stage == stage).cloned().collect()
    };
    let mut found = at_stage(of_route);
    let counts_host = match of_host {
        OfHost::Always => true,
        OfHost::Without => found.is_empty() || includes_host,
        OfHost::Never => false,
    };
    if counts_host {
        found.extend(at_stage(of_the_host));
    }
    found
}

/// Whether a request is one of a share.
#[inline]
pub(super) fn is_hit(share: Fraction, request: &mut RequestInfo) -> bool {
    share == Fraction::ALL || share.contains(request.random.u32(0..1_000_000))
}

/// What is known of a request that is to be counted, with what expressions find out about it.
pub(super) fn seen<'r>(request: &'r RequestInfo, head: &'r Parts, tells: &'r Known<'r>) -> LimitedRequest<'r> {
    // Where it is known already, it is not worked out again.
    let seen = tells.head().copied();
    let seen = seen.unwrap_or_else(|| RequestHead::of_parts(&head.method, &head.uri, &head.headers));
    seen_as(request, seen, tells)
}

/// The same of one whose head is at hand. Copied out of what was made of it a moment ago, it would be read in larger pieces than it
/// was written in, for which a processor waits (store forwarding fails).
#[inline]
pub(super) fn seen_as<'r>(request: &'r RequestInfo, head: RequestHead<'r>, tells: &'r Known<'r>) -> LimitedRequest<'r> {
    let mut limited = LimitedRequest::new(head);
    limited.remote = request.peer().map(|peer| peer.ip());
    limited.destination_cluster = request.cluster().map_or("", |cluster| cluster.as_str());
    limited.client = request.client();
    limited.tokens = request.tokens();
    limited.tells = Some(tells);
    limited
}

/// What gRPC's callers are told who are over a limit.
pub(super) fn grpc_code(is_exhaustion: bool) -> u32 {
    const RESOURCE_EXHAUSTED: u32 = 8;
    const UNAVAILABLE: u32 = 14;
    if is_exhaustion { RESOURCE_EXHAUSTED } else { UNAVAILABLE }
}

/// Notes that a request is over a limit, and is refused.
pub(super) fn note_refused(request: &mut RequestInfo) {
    request.note_flags(ResponseFlags::RATE_LIMITED);
    request.note_details("request_rate_limited");
}

/// Tells who is refused when to come back.
pub(super) fn tell_when(headers: &mut HeaderMap, then: Duration) {
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds(then).max(1)));
}

/// Notes what is left, where less is than is known.
pub(super) fn note(request: &mut RequestInfo, note: LimitNote) {
    if request.limit_note.as_ref().is_none_or(|known| note.left <= known.left) {
        request.limit_note = Some(Box::new(note));
    }
}

/// Tells in an answer what is left.
pub(super) fn tell(note: &LimitNote, tells: RestHeaders, headers: &mut HeaderMap) {
    let mut tell = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    let LimitNote { max, left, window, full_in, .. } = *note;
    match tells {
        RestHeaders::None => {}
        RestHeaders::XRateLimit => {
            tell("x-ratelimit-limit", format!("{max}, {max};w={}", seconds(window)));
            tell("x-ratelimit-remaining", left.to_string());
            tell("x-ratelimit-reset", seconds(full_in).to_string());
        }
        RestHeaders::RateLimit => {
            let policy = policy(&note.rule);
            tell("ratelimit-policy", format!("{policy};q={max};w={}", seconds(window).max(1)));
            tell("ratelimit", format!("{policy};r={left};t={}", seconds(full_in)));
        }
    }
}

/// The name of a policy, as a string of a structured field (RFC 9651), which is printable ASCII.
fn policy(rule: &str) -> String {
    let mut text = String::from("\"");
    for c in if rule.is_empty() { "default" } else { rule }.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            ' '..='~' => text.push(c),
            _ => text.push('_'),
        }
    }
    text.push('"');
    text
}

/// In whole seconds, and rather too long.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_name_the_rule_that_has_least_left() {
        for (rule, expected) in
            [("each-user", "\"each-user\""), ("", "\"default\""), ("a \"b\" \\ ü\n", "\"a \\\"b\\\" \\\\ __\"")]
        {
            let (window, full_in) = (Duration::from_secs(60), Duration::from_secs(6));
            let note = LimitNote { rule: rule.into(), max: 10, left: 3, window, full_in };
            let mut headers = HeaderMap::new();
            tell(&note, RestHeaders::RateLimit, &mut headers);
            assert_eq!(headers["ratelimit-policy"], format!("{expected};q=10;w=60"));
            assert_eq!(headers["ratelimit"], format!("{expected};r=3;t=6"));
        }
    }
}
