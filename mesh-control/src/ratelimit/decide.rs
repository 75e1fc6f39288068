//! What becomes of a request, as envoyproxy/ratelimit decides it: which counters it asks for room, and, once they were asked,
//! the answer. Pure: the store is between the two.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::HeaderValue;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::RateLimitOverride;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::{self, Code, DescriptorStatus};
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use envoy_types::pb::google::protobuf;

use crate::ratelimit::rules::{Domain, Limit, Mode, Rules, override_key};
use crate::ratelimit::stats::{RuleStats, Stats};
use crate::ratelimit::window::{Algorithm, Charge, MOST_HITS, Unit};

/// The most descriptors of a request, and entries of a descriptor. Envoy sends one of each for an action of a route.
const MOST_DESCRIPTORS: usize = 100;
const MOST_ENTRIES: usize = 50;

/// What a request asks for.
pub(super) struct Plan {
    /// Of each descriptor.
    applies: Vec<Applies>,
    /// The counters to be asked, in the order of the limits in `applies`.
    pub(super) charges: Vec<Charge>,
}

enum Applies {
    /// No rule.
    Nothing,
    /// A rule that there is no limit.
    Unlimited,
    Limit(Applied),
}

struct Applied {
    limit: Limit,
    name: String,
    mode: Mode,
    stats: Arc<RuleStats>,
}

/// Finds out what a request asks for.
///
/// # Errors
/// What is wrong with the request.
pub(super) fn plan(rules: &Rules, stats: &Stats, request: &RateLimitRequest) -> Result<Plan, String> {
    if request.domain.is_empty() {
        return Err("a request names its domain".to_owned());
    }
    if !(1..=MOST_DESCRIPTORS).contains(&request.descriptors.len()) {
        return Err(format!("a request has 1 to {MOST_DESCRIPTORS} descriptors"));
    }
    if request.descriptors.iter().any(|descriptor| descriptor.entries.len() > MOST_ENTRIES) {
        return Err(format!("a descriptor has {MOST_ENTRIES} entries at most"));
    }
    let mut plan = Plan { applies: Vec::with_capacity(request.descriptors.len()), charges: Vec::new() };
    let domain = rules.domain(&request.domain);
    let mut found = Vec::with_capacity(request.descriptors.len());
    for descriptor in &request.descriptors {
        found.push(match domain {
            Some(domain) => look(domain, stats, descriptor)?,
            None => None,
        });
    }
    let replaced: HashSet<&str> =
        found.iter().flatten().flat_map(|one| one.replaces.iter().map(|name| &**name)).collect();
    for (descriptor, one) in request.descriptors.iter().zip(&found) {
        plan.applies.push(match one {
            None => Applies::Nothing,
            Some(one) => match one.limit {
                None => Applies::Unlimited,
                Some(_) if !one.name.is_empty() && replaced.contains(one.name) => Applies::Nothing,
                Some((limit, key)) => {
                    let hits = hits(request, descriptor);
                    let Limit { requests, unit, algorithm } = limit;
                    plan.charges.push(Charge { key, unit, algorithm, limit: requests, hits });
                    let stats = Arc::clone(&one.stats);
                    Applies::Limit(Applied { limit, name: one.name.to_owned(), mode: one.mode, stats })
                }
            },
        });
    }
    Ok(plan)
}

/// The rule of a descriptor, or the limit that it brings along.
struct Looked<'r> {
    limit: Option<(Limit, crate::ratelimit::window::Key)>,
    mode: Mode,
    name: &'r str,
    replaces: &'r [Box<str>],
    stats: Arc<RuleStats>,
}

fn look<'r>(domain: &'r Domain, stats: &Stats, descriptor: &RateLimitDescriptor) -> Result<Option<Looked<'r>>, String> {
    let entries = &descriptor.entries;
    if let Some(own) = &descriptor.limit {
        let limit = override_limit(own)?;
        let key = override_key(&domain.name, entries, &limit);
        let stats = Arc::clone(&domain.overrides);
        return Ok(Some(Looked { limit: Some((limit, key)), mode: Mode::Enforced, name: "", replaces: &[], stats }));
    }
    let Some(found) = domain.find(entries) else { return Ok(None) };
    let rule = found.rule;
    Ok(Some(Looked {
        limit: rule.limit.map(|limit| (limit, found.key(entries, &limit))),
        mode: rule.mode,
        name: rule.name.as_deref().unwrap_or_default(),
        replaces: &rule.replaces,
        stats: found.stats(entries, stats),
    }))
}

fn override_limit(own: &RateLimitOverride) -> Result<Limit, String> {
    let unit = Unit::ALL.into_iter().find(|unit| number(*unit) as i32 == own.unit);
    let unit = unit.ok_or("a limit of a descriptor has a unit")?;
    Ok(Limit { requests: own.requests_per_unit, unit, algorithm: Algorithm::Fixed })
}

/// The protocol's number of a unit.
fn number(unit: Unit) -> rate_limit_response::rate_limit::Unit {
    use rate_limit_response::rate_limit::Unit as Number;
    match unit {
        Unit::Second => Number::Second,
        Unit::Minute => Number::Minute,
        Unit::Hour => Number::Hour,
        Unit::Day => Number::Day,
        Unit::Week => Number::Week,
        Unit::Month => Number::Month,
        Unit::Year => Number::Year,
    }
}

/// How many hits a descriptor stands for: its own number, which may be none, or the request's, or one.
fn hits(request: &RateLimitRequest, descriptor: &RateLimitDescriptor) -> i64 {
    let own = descriptor.hits_addend.as_ref().map(|hits| hits.value);
    let hits = own.unwrap_or_else(|| u64::from(request.hits_addend.max(1))).min(MOST_HITS);
    let hits = i64::try_from(hits).unwrap_or(i64::MAX);
    if descriptor.is_negative_hits { -hits } else { hits }
}

/// The answer, once the counters said how many hits there are, those of the request among them.
pub(super) fn answer(plan: &Plan, counts: &[u64], now: Duration, tells_headers: bool) -> RateLimitResponse {
    let mut counted = plan.charges.iter().zip(counts);
    let statuses = plan.applies.iter().map(|applies| match applies {
        Applies::Nothing => DescriptorStatus { code: Code::Ok.into(), ..DescriptorStatus::default() },
        Applies::Unlimited => {
            DescriptorStatus { code: Code::Ok.into(), limit_remaining: u32::MAX, ..DescriptorStatus::default() }
        }
        Applies::Limit(applied) => match counted.next() {
            Some((charge, with)) => applied.status(charge.hits, *with, now),
            // There is a count for each charge.
            None => DescriptorStatus { code: Code::Unknown.into(), ..DescriptorStatus::default() },
        },
    });
    let statuses: Vec<DescriptorStatus> = statuses.collect();
    let is_over = statuses.iter().any(|status| status.code() == Code::OverLimit);
    RateLimitResponse {
        overall_code: if is_over { Code::OverLimit } else { Code::Ok }.into(),
        response_headers_to_add: if tells_headers { headers(&statuses) } else { Vec::new() },
        statuses,
        ..RateLimitResponse::default()
    }
}

impl Applied {
    fn status(&self, hits: i64, with: u64, now: Duration) -> DescriptorStatus {
        let requests = u64::from(self.limit.requests);
        self.stats.note(requests, hits.unsigned_abs() * u64::from(hits > 0), with, self.mode);
        let code = if with > requests && self.mode == Mode::Enforced { Code::OverLimit } else { Code::Ok };
        let until = self.limit.unit.until_next(now).as_secs();
        DescriptorStatus {
            code: code.into(),
            current_limit: Some(rate_limit_response::RateLimit {
                name: self.name.clone(),
                requests_per_unit: self.limit.requests,
                unit: number(self.limit.unit).into(),
            }),
            limit_remaining: u32::try_from(requests.saturating_sub(with)).unwrap_or(u32::MAX),
            duration_until_reset: Some(protobuf::Duration {
                seconds: i64::try_from(until).unwrap_or(i64::MAX),
                nanos: 0,
            }),
            ..DescriptorStatus::default()
        }
    }
}

/// What is left of the limit that is nearest to its end (draft-ietf-httpapi-ratelimit-headers), for the client.
fn headers(statuses: &[DescriptorStatus]) -> Vec<HeaderValue> {
    let limited = statuses.iter().filter_map(|status| Some((status, status.current_limit.as_ref()?)));
    let nearest = limited.min_by_key(|(status, _)| (status.code() != Code::OverLimit, status.limit_remaining));
    let Some((status, limit)) = nearest else { return Vec::new() };
    let reset = status.duration_until_reset.as_ref().map_or(0, |until| until.seconds);
    [
        ("ratelimit-limit", limit.requests_per_unit.to_string()),
        ("ratelimit-remaining", status.limit_remaining.to_string()),
        ("ratelimit-reset", reset.to_string()),
    ]
    .map(|(key, value)| HeaderValue { key: key.to_owned(), value, ..HeaderValue::default() })
    .into()
}
