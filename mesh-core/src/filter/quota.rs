//! Quotas (`envoy.extensions.filters.http.rate_limit_quota.v3`): a service assigns shares of them, and no request waits for it.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use super::counted;
use super::request_rules::Known;
use super::{Decision, Filter, Reply};
use crate::error::Invalid;
use crate::limits::{DescriptorMaker, QuotaDomain, QuotaVerdict, Quotas, RATE_LIMITED};
use crate::matcher::{Field, header_matches};
use crate::model::{
    Fraction, HeaderTest, QuotaPerRoute, QuotaRule, QuotaSettings, QuotaStrategy, QuotaTest, RateLimitQuota,
};
use crate::request::RequestHead;
use crate::request_info::RequestInfo;
use crate::rewrite::{apply_to_request, apply_to_response};
use crate::state::{FilterState, LimitCounts};

/// The quotas of a listener, which its routes share.
#[derive(Clone, Debug)]
pub struct Quota {
    config: Arc<RateLimitQuota>,
    domain: Arc<QuotaDomain>,
    rules: Arc<[Rule]>,
}

#[derive(Debug)]
struct Rule {
    test: Option<Test>,
    id: DescriptorMaker,
    settings: Arc<QuotaSettings>,
    counts: Arc<LimitCounts>,
}

/// A test, with what it takes to carry it out.
#[derive(Debug)]
enum Test {
    Header(Field, HeaderTest),
    All(Box<[Test]>),
    Any(Box<[Test]>),
    Not(Box<Test>),
}

impl Test {
    fn new(test: &QuotaTest) -> Result<Self, Invalid> {
        let each = |tests: &[QuotaTest]| tests.iter().map(Test::new).collect::<Result<Box<[_]>, _>>();
        Ok(match test {
            QuotaTest::Header(test) => Test::Header(Field::of(test)?, test.clone()),
            QuotaTest::All(tests) => Test::All(each(tests)?),
            QuotaTest::Any(tests) => Test::Any(each(tests)?),
            QuotaTest::Not(test) => Test::Not(Box::new(Test::new(test)?)),
        })
    }

    fn passes(&self, head: &RequestHead<'_>) -> bool {
        match self {
            Test::Header(field, test) => header_matches(field, test, head),
            Test::All(tests) => tests.iter().all(|test| test.passes(head)),
            Test::Any(tests) => tests.iter().any(|test| test.passes(head)),
            Test::Not(test) => !test.passes(head),
        }
    }
}

impl Quota {
    /// The quotas of a configuration; their buckets are as they were.
    pub fn new(config: &Arc<RateLimitQuota>, quotas: &Arc<Quotas>, state: &FilterState<'_>) -> Result<Self, Invalid> {
        let rule = |rule: &QuotaRule| {
            let (limit, name) = &rule.settings.name;
            Ok(Rule {
                test: rule.test.as_ref().map(Test::new).transpose()?,
                id: DescriptorMaker::new(&rule.settings.bucket)?,
                settings: Arc::clone(&rule.settings),
                counts: state.limited().counts(limit, name),
            })
        };
        let rules = config.rules.iter().map(rule).collect::<Result<_, Invalid>>()?;
        Ok(Quota { config: Arc::clone(config), domain: quotas.domain(&config.domain), rules })
    }

    /// The same, with what a route says in its place.
    pub fn here(&self, here: &QuotaPerRoute, quotas: &Arc<Quotas>, state: &FilterState<'_>) -> Result<Self, Invalid> {
        let mut config = RateLimitQuota::clone(&self.config);
        config.domain = here.domain.clone().unwrap_or(config.domain);
        config.rules = here.rules.clone().unwrap_or(config.rules);
        Quota::new(&Arc::new(config), quotas, state)
    }

    /// Their filter; `None` where nothing is counted.
    pub fn filter(&self) -> Option<Arc<dyn Filter>> {
        let is_idle = self.rules.is_empty() || self.config.enabled == Fraction::default();
        (!is_idle).then(|| Arc::new(QuotaFilter(self.clone())) as Arc<dyn Filter>)
    }
}

/// Takes from the buckets of quotas.
#[derive(Debug)]
pub struct QuotaFilter(Quota);

impl Filter for QuotaFilter {
    fn on_request(&self, request: &mut RequestInfo, head: &mut Parts) -> Decision {
        let Quota { config, domain, rules } = &self.0;
        if !counted::is_hit(config.enabled, request) {
            return Decision::Continue;
        }
        let found = {
            let known = Known::now(request, head);
            let seen = counted::seen(request, head, &known);
            let is_for = |rule: &&Rule| rule.test.as_ref().is_none_or(|test| test.passes(&seen.head));
            rules.iter().find(is_for).and_then(|rule| {
                let id = rule.id.describe(&seen)?;
                let verdict = domain.take(&id.entries, &rule.settings, request.started);
                Some((rule, verdict.unwrap_or_else(|| without_bucket(&rule.settings))))
            })
        };
        let Some((rule, verdict)) = found else { return Decision::Continue };
        let is_enforced = verdict.is_within || counted::is_hit(config.enforced, request);
        request.note_event("quota", || {
            let (limit, name) = &rule.settings.name;
            serde_json::json!({
                "limit": &**limit, "rule": &**name, "left": verdict.left, "is_within": verdict.is_within,
                "is_enforced": is_enforced,
            })
        });
        match (verdict.is_within, is_enforced) {
            (true, _) => {
                rule.counts.note_within();
                Decision::Continue
            }
            (false, true) => rule.refuse(request, &verdict),
            (false, false) => {
                rule.counts.note_shadow();
                apply_to_request(std::slice::from_ref(&config.request_changes), head);
                Decision::Continue
            }
        }
    }
}

/// What is so where there is no room for a bucket. Not even a few pass where few may: that few are counted somewhere.
#[cold]
fn without_bucket(settings: &QuotaSettings) -> QuotaVerdict {
    let is_within = settings.unassigned == QuotaStrategy::AllowAll;
    QuotaVerdict { is_within, retry_in: settings.interval, left: None, is_urgent: false }
}

impl Rule {
    #[cold]
    fn refuse(&self, request: &mut RequestInfo, verdict: &QuotaVerdict) -> Decision {
        let settings = &self.settings;
        self.counts.note_over();
        counted::note_refused(request);
        let mut headers = HeaderMap::new();
        headers.insert(RATE_LIMITED, HeaderValue::from_static("true"));
        if settings.tells_when {
            counted::tell_when(&mut headers, verdict.retry_in);
        }
        if !settings.response_changes.is_empty() {
            let mut head = http::Response::new(()).into_parts().0;
            (head.status, head.headers) = (settings.status, headers);
            apply_to_response(std::slice::from_ref(&settings.response_changes), &mut head);
            headers = head.headers;
        }
        let mut reply = Reply::new(settings.status, settings.body.clone()).grpc_code(settings.grpc_code);
        reply.headers = Some(Box::new(headers));
        Decision::Reply(reply)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use http::Request;
    use http::header::RETRY_AFTER;

    use super::*;
    use crate::model::{DescriptorAction, RateLimit, StringTest};
    use crate::state::States;

    fn rule(name: &str, test: Option<QuotaTest>) -> QuotaRule {
        let header = |key: &str| DescriptorAction::Header { key: key.into(), name: key.into(), skip_if_absent: false };
        let id = RateLimit::by(vec![
            DescriptorAction::Constant { key: "name".into(), value: name.into() },
            header("x-user"),
        ]);
        QuotaRule { test, ..QuotaRule::new(QuotaSettings::new(id, Duration::from_secs(1))) }
    }

    fn is(name: &str, value: &str) -> QuotaTest {
        let test = StringTest::Exact { value: value.to_owned(), ignore_case: false };
        QuotaTest::Header(HeaderTest::Value { name: name.into(), test, invert: false, missing_is_empty: false })
    }

    /// A filter, and the buckets that it takes from.
    fn filter(config: RateLimitQuota) -> (Arc<dyn Filter>, Arc<Quotas>) {
        let (quotas, states) = (Arc::<Quotas>::default(), States::default());
        let quota = Quota::new(&Arc::new(config), &quotas, &states.filter("", &"quota".into())).unwrap();
        (quota.filter().unwrap(), quotas)
    }

    fn ask(filter: &Arc<dyn Filter>, headers: &[(&str, &str)]) -> Option<Reply> {
        let mut request = Request::get("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        let mut request = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
        match filter.on_request(&mut request, &mut head) {
            Decision::Continue => None,
            Decision::Reply(reply) => Some(reply),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_of_the_bucket_of_the_first_rule_that_is_for_it() {
        let free = QuotaTest::All(vec![is("x-tier", "free"), QuotaTest::Not(Box::new(is("x-user", "root")))]);
        let either = QuotaTest::Any(vec![is("x-tier", "gold"), is("x-tier", "silver")]);
        let rules = vec![rule("free", Some(free)), rule("paid", Some(either))];
        let (filter, quotas) = filter(RateLimitQuota::new("shop", rules));
        for headers in [
            &[("x-tier", "free"), ("x-user", "ada")][..],
            &[("x-tier", "free"), ("x-user", "root")],
            &[("x-tier", "silver"), ("x-user", "ada")],
            &[("x-tier", "gold")],
            &[("x-user", "ada")],
        ] {
            assert!(ask(&filter, headers).is_none());
        }
        let domain = quotas.domain(&"shop".into());
        assert_eq!(domain.len(), 2, "who has no user, and what no rule is for, is not counted");
        for name in ["free", "paid"] {
            assert!(domain.find([("name", name), ("x-user", "ada")]).is_some(), "{name}");
        }
    }

    #[test]
    fn who_is_over_is_answered_as_it_is_said_unless_it_is_only_tried() {
        let deny = |enforced| {
            let mut settings = QuotaSettings::clone(&rule("all", None).settings);
            settings.unassigned = QuotaStrategy::DenyAll;
            (settings.grpc_code, settings.tells_when, settings.body) = (8, true, "none left".into());
            let mut config = RateLimitQuota::new("shop", vec![QuotaRule::new(settings)]);
            config.enforced = enforced;
            config
        };
        let (refusing, _) = filter(deny(Fraction::ALL));
        let reply = ask(&refusing, &[("x-user", "ada")]).unwrap();
        assert_eq!((reply.status.as_u16(), reply.grpc_code, &*reply.body), (429, Some(8), &b"none left"[..]));
        let headers = reply.headers.unwrap();
        assert!(headers[RATE_LIMITED] == "true" && headers[RETRY_AFTER] == "1", "{headers:?}");
        let (trying, _) = filter(deny(Fraction::default()));
        assert!(ask(&trying, &[("x-user", "ada")]).is_none());
    }
}
