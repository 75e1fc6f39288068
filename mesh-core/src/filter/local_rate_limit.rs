//! Local rate limits (`envoy.extensions.filters.http.local_ratelimit.v3`): who is over is answered, or only counted.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, response};

use super::counted;
use super::request_rules::Known;
use super::{Decision, Filter, Reply};
use crate::error::Invalid;
use crate::limits::{DescriptorMaker, LocalBuckets, LocalLimiter, LocalPlan, LocalVerdict, RATE_LIMITED};
use crate::model::{Fraction, LocalRateLimit, RateLimit, RestHeaders};
use crate::request::RequestHead;
use crate::request_info::{LimitNote, RequestInfo};
use crate::response_flags::ResponseFlags;
use crate::rewrite::{apply_to_request, apply_to_response};
use crate::state::{FilterState, LimitCounts};

/// A limit as it is configured in one place, with what is kept of it: routes share it.
#[derive(Clone, Debug)]
pub struct LocalLimit {
    config: Arc<LocalRateLimit>,
    limiter: Arc<LocalLimiter>,
    /// Those over the limit that are not refused, where not all are.
    passed: Option<Arc<LimitCounts>>,
}

impl LocalLimit {
    /// The limit of a configuration; its buckets are as full as they were.
    pub fn new(config: &Arc<LocalRateLimit>, state: &FilterState<'_>, now: Instant) -> Self {
        let buckets = state.get(|| LocalBuckets::new(now));
        let counts = |rule: &str| state.limited().counts(&config.name, rule);
        let limiter = Arc::new(LocalLimiter::new(config, &buckets, counts, now));
        let passed = (config.enforced != Fraction::ALL).then(|| counts("not_enforced"));
        LocalLimit { limiter, passed, config: Arc::clone(config) }
    }

    /// Whether it counts nothing, whatever comes.
    pub fn is_idle(&self) -> bool {
        let is_off = self.config.enabled == Fraction::default();
        is_off || (self.config.bucket.is_none() && self.config.rules.is_empty())
    }

    /// The filter of a route, which goes by what the route and its virtual host say, unless the limit says it itself.
    pub fn filter(
        &self,
        of_route: (&[Arc<RateLimit>], bool),
        of_host: &[Arc<RateLimit>],
    ) -> Result<LocalRateLimitFilter, Invalid> {
        let LocalRateLimit { rate_limits: own, stage, of_host: counts_host, .. } = &*self.config;
        let limits = counted::by(own, *stage, *counts_host, (of_route, of_host));
        let makers = limits.iter().map(DescriptorMaker::new).collect::<Result<Vec<_>, _>>()?;
        Ok(LocalRateLimitFilter { plan: self.limiter.plan(makers), limit: self.clone() })
    }
}

/// Takes from the buckets of a limit, for the requests of one route.
#[derive(Debug)]
pub struct LocalRateLimitFilter {
    limit: LocalLimit,
    plan: LocalPlan,
}

impl LocalRateLimitFilter {
    /// What the limit says of a request that began at `now`.
    pub fn check<'l>(&'l self, request: &RequestInfo, head: &Parts) -> Option<LocalVerdict<'l>> {
        let seen = match self.plan.needs_authority() {
            true => RequestHead::of_parts(&head.method, &head.uri, &head.headers),
            false => RequestHead::with_authority(head, ""),
        };
        let known = Known::of(request, seen, head.version);
        let limited = counted::seen_as(request, seen, &known);
        self.limit.limiter.take(&self.plan, &limited, request.peer(), request.started)
    }

    /// The answer to a request that is over.
    #[cold]
    fn refuse(&self, request: &mut RequestInfo, verdict: &LocalVerdict<'_>) -> Decision {
        let config = &self.limit.config;
        counted::note_refused(request);
        let code = counted::grpc_code(config.is_exhaustion);
        let mut reply = Reply::new(config.status, Bytes::from_static(b"local_rate_limited")).grpc_code(code);
        let mut headers = HeaderMap::new();
        headers.insert(RATE_LIMITED, HeaderValue::from_static("true"));
        if config.tells_when {
            counted::tell_when(&mut headers, verdict.taken.enough_in);
        }
        reply.headers = Some(Box::new(headers));
        Decision::Reply(reply)
    }
}

impl Filter for LocalRateLimitFilter {
    #[inline]
    fn on_request(&self, request: &mut RequestInfo, head: &mut Parts) -> Decision {
        let config = &self.limit.config;
        if !counted::is_hit(config.enabled, request) {
            return Decision::Continue;
        }
        let is_enforced = counted::is_hit(config.enforced, request);
        let Some(verdict) = self.check(request, head) else { return Decision::Continue };
        if config.tells != RestHeaders::None {
            note(request, &verdict);
        }
        request.note_event("rate limit", || {
            serde_json::json!({
                "limit": &*config.name, "rule": &*verdict.rule.name, "left": verdict.taken.left,
                "is_within": verdict.is_within, "is_enforced": is_enforced,
            })
        });
        match (verdict.is_within, is_enforced) {
            (true, _) => Decision::Continue,
            (false, true) => self.refuse(request, &verdict),
            (false, false) => {
                if let Some(passed) = &self.limit.passed {
                    passed.note_shadow();
                }
                apply_to_request(std::slice::from_ref(&config.request_changes), head);
                Decision::Continue
            }
        }
    }

    fn on_response(&self, request: &mut RequestInfo, head: &mut response::Parts) {
        let config = &self.limit.config;
        let is_refused =
            head.headers.contains_key(RATE_LIMITED) && request.response_flags().contains(ResponseFlags::RATE_LIMITED);
        if is_refused && !config.response_changes.is_empty() {
            apply_to_response(std::slice::from_ref(&config.response_changes), head);
        }
        if let Some(note) = &request.limit_note {
            counted::tell(note, config.tells, &mut head.headers);
        }
    }
}

/// Notes what is left, where less is than is known.
fn note(request: &mut RequestInfo, verdict: &LocalVerdict<'_>) {
    let (left, bucket) = (verdict.taken.left, &verdict.rule.bucket);
    let (max, window, full_in) = (bucket.max(), bucket.window(), verdict.taken.full_in);
    counted::note(request, LimitNote { rule: Arc::clone(&verdict.rule.name), max, left, window, full_in });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{DescriptorAction, HeaderTest, LocalRule, TokenBucket};
    use crate::state::States;

    #[test]
    fn what_passes_over_a_limit_is_counted_where_not_all_are_refused() {
        let (now, once) = (Instant::now(), TokenBucket::new(1, 1, Duration::from_secs(60)).unwrap());
        for (enforced, expected) in [(Fraction::ALL, None), (Fraction::default(), Some(2))] {
            let mut config = LocalRateLimit::new("limit", Some(once));
            config.enforced = enforced;
            let (states, name) = (States::default(), Arc::from("limit"));
            let limit = LocalLimit::new(&Arc::new(config), &states.filter("listener", &name), now);
            let filter = limit.filter((&[], false), &[]).unwrap();
            for _ in 0..3 {
                let mut head = http::Request::get("/").body(()).unwrap().into_parts().0;
                _ = filter.on_request(&mut RequestInfo::new(now, fastrand::Rng::with_seed(1)), &mut head);
            }
            let mut passed = None;
            states.limited().each(|_, rule, counts| {
                if rule == "not_enforced" {
                    passed = Some(counts.shadow());
                }
            });
            assert_eq!(passed, expected);
        }
    }

    #[test]
    fn whom_a_request_is_for_is_known_to_a_limit_that_asks_for_it() {
        let header =
            |name: &str| DescriptorAction::Header { key: "k".into(), name: name.into(), skip_if_absent: false };
        let tests = vec![HeaderTest::Present { name: "host".into(), present: true }];
        let has_host = DescriptorAction::HeaderMatch { key: "has".into(), value: "host".into(), expects: true, tests };
        let (now, once) = (Instant::now(), TokenBucket::new(1, 1, Duration::from_secs(60)).unwrap());
        let cases = [
            (vec![header("host")], [true, true, false]),
            (vec![header(":authority"), header("x")], [true, true, false]),
            (vec![has_host, header("host")], [true, true, false]),
            (vec![header("x")], [true, false, false]),
            (vec![header(":path"), header(":method")], [true, false, false]),
        ];
        for (actions, expected) in cases {
            let shown = format!("{actions:?}");
            let mut config = LocalRateLimit::new("limit", None);
            let entries = actions.iter().map(|action| (action.key().into(), "".into())).collect();
            config.rules = vec![LocalRule::new("rule", entries, once)];
            config.rate_limits = vec![Arc::new(RateLimit::by(actions))];
            let (states, name) = (States::default(), Arc::from("limit"));
            let limit = LocalLimit::new(&Arc::new(config), &states.filter("listener", &name), now);
            let filter = limit.filter((&[], false), &[]).unwrap();
            let info = RequestInfo::new(now, fastrand::Rng::with_seed(1));
            let is_within = ["a", "b", "a"].map(|host| {
                let request = http::Request::get(format!("http://{host}/")).header("x", "1");
                let head = request.body(()).unwrap().into_parts().0;
                filter.check(&info, &head).is_some_and(|verdict| verdict.is_within)
            });
            assert_eq!(is_within, expected, "{shown}");
        }
    }
}
