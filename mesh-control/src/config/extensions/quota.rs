//! `Quota` (policy.mesh-control/v1alpha1): how many requests an identity may have in a minute, an hour, a day or a month, of all
//! workloads that it is for together. `mesh-control` assigns shares of it to their processes; what it comes to is Envoy's
//! `rate_limit_quota`.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::model::{
    ExpiredQuota, Fraction, QuotaRule as Counted, QuotaSettings, QuotaStrategy, RateLimit, RateLimitQuota,
};

use super::rate_limit::{Fault, Key, Match, Rule, WhoseRequests, check_whose, is_named_again, report, status_of};
use super::rate_limit_service::{FailureMode, asked};
use crate::catalog::QuotaLimit;
use crate::config::decode::{At, Decode, Decoder, Text, keywords, message};
use crate::config::diagnostic::{Span, quoted};
use crate::config::istio::security::{Selector, TargetRef, check_whom};
use crate::config::node::Node;
use crate::config::schema::Schema;
use crate::period::Unit;

/// How often processes report what they use, and the bounds of it.
const INTERVAL: Duration = Duration::from_secs(1);
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);

/// What is said once a share is over, where nobody assigns another one, holds for so long. Then it is as at first.
const CLOSED: Duration = Duration::from_secs(24 * 60 * 60);
const OPEN: Duration = Duration::from_secs(60);
/// What is left at first is filled no more before it is of no interest: each process has it once.
const NEVER: Duration = Duration::from_secs(1000 * 24 * 60 * 60);

/// RESOURCE_EXHAUSTED.
const RESOURCE_EXHAUSTED: u32 = 8;

message! {
    /// The specification.
    pub struct QuotaSpec {
        /// The workloads; absent means all of the namespace.
        selector: Option<Selector> = "selector",
        /// The objects whose workloads are meant.
        target_refs: Vec<TargetRef> = "targetRefs",
        /// Which of their requests.
        mode: WhoseRequests = "mode",
        /// Of those that they make, which: those to these hosts; absent means all.
        hosts: Vec<Text> = "hosts",
        /// What is counted, and how much of it there may be. A request has to be within all of them that are for it.
        rules: Vec<QuotaRuleSpec> = "rules",
        /// What becomes of requests where nobody assigns a share.
        failure_mode: FailureMode = "failureMode",
        /// With failure mode DENY, how many requests of an identity pass at a process before it has its first share.
        unassigned: Option<At<u32>> = "unassigned",
        /// How often processes report what they use.
        report_every: Option<At<Duration>> = "reportEvery",
        /// What is answered.
        answer: QuotaAnswer = "answer",
    }
    /// Some requests, and how many of them there may be.
    pub struct QuotaRuleSpec {
        /// Its name, for metrics and people.
        name: Text = "name" required,
        /// Which requests; absent means all.
        matches: Match = "match",
        /// What they are told apart by: for each value there may be as many.
        by: Vec<Key> = "by",
        /// How many.
        limit: QuotaLimitSpec = "limit" required,
        /// Whether it only counts.
        shadow: Option<bool> = "shadow",
    }
    /// So many in each of such a time.
    pub struct QuotaLimitSpec {
        /// How many.
        requests: At<u32> = "requests" required,
        /// In which time.
        per: UnitWord = "per" required,
    }
    /// What is answered.
    pub struct QuotaAnswer {
        /// The status of those that are over.
        status: Option<At<u16>> = "status",
    }
}

keywords! {
    /// A time, as the calendar of UTC has it.
    pub enum UnitWord {
        /// A minute.
        Minute = "MINUTE",
        /// An hour.
        Hour = "HOUR",
        /// A day.
        Day = "DAY",
        /// A month.
        Month = "MONTH",
    }
}

/// A quota.
#[derive(Clone, Debug, Default)]
pub struct Quota {
    /// Where it is written.
    pub span: Span,
    /// The workloads; absent means all of the namespace.
    pub selector: Option<Selector>,
    /// The objects whose workloads are meant.
    pub target_refs: Vec<TargetRef>,
    /// Whose requests.
    pub mode: WhoseRequests,
    /// Of a client's, those to these hosts; none for all.
    pub hosts: Vec<String>,
    /// The rules, in order.
    pub rules: Vec<Arc<QuotaRule>>,
}

/// A rule of a quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaRule {
    /// Its name.
    pub name: Arc<str>,
    /// How much each identity has.
    pub limit: QuotaLimit,
    /// How processes go by it. The IDs of its buckets do not say yet which quota it is.
    pub quota: Arc<RateLimitQuota>,
}

impl QuotaRule {
    /// How buckets are made, and what is so without an assignment.
    pub fn settings(&self) -> Option<&Arc<QuotaSettings>> {
        self.quota.rules.first().map(|rule| &rule.settings)
    }
}

impl Decode for Quota {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let spec = QuotaSpec::decode(node, d)?;
        let mut faults = Vec::new();
        let rules = spec.read(&mut faults);
        report(&faults, d);
        if !faults.is_empty() {
            return None;
        }
        Some(Quota {
            span: spec.span,
            selector: spec.selector,
            target_refs: spec.target_refs,
            mode: spec.mode,
            hosts: spec.hosts.into_iter().map(|host| host.value).collect(),
            rules,
        })
    }

    fn fields(prefix: &str, out: &mut Vec<String>) {
        QuotaSpec::fields(prefix, out);
    }

    fn schema() -> Schema {
        QuotaSpec::schema()
    }
}

impl Quota {
    /// What is wrong with whom it is for.
    pub fn check(&self, namespace: &str, d: &mut Decoder<'_>) {
        check_whom(self.span, namespace, self.selector.as_ref(), &self.target_refs, d);
    }
}

impl QuotaSpec {
    fn read(&self, faults: &mut Vec<Fault>) -> Vec<Arc<QuotaRule>> {
        let keys = self.rules.iter().map(|rule| &*rule.by);
        check_whose((self.span, self.mode, &self.hosts), keys, faults);
        let interval = self.report_every.as_ref().map_or(INTERVAL, |every| every.value);
        if let Some(every) = self.report_every.as_ref().filter(|_| !(SHORTEST..=LONGEST).contains(&interval)) {
            let message = format!("not between {SHORTEST:?} and {LONGEST:?}");
            faults.push((every.span, "reportEvery".to_owned(), message));
        }
        let is_closed = self.failure_mode == FailureMode::Deny;
        if let (Some(unassigned), false) = (&self.unassigned, is_closed) {
            let message = "without effect: with failure mode ALLOW, all pass".to_owned();
            faults.push((unassigned.span, "unassigned".to_owned(), message));
        }
        let mut settings = QuotaSettings::new(RateLimit::by(Vec::new()), interval);
        (settings.grpc_code, settings.tells_when) = (RESOURCE_EXHAUSTED, true);
        (settings.unassigned, settings.expired) = match is_closed {
            false => (QuotaStrategy::AllowAll, Some((ExpiredQuota::Fallback(QuotaStrategy::AllowAll), OPEN))),
            true => {
                let first = match self.unassigned.as_ref().map_or(1, |first| first.value) {
                    0 => QuotaStrategy::DenyAll,
                    first => QuotaStrategy::Tokens { max: first.into(), per_fill: 1, interval: NEVER },
                };
                (first, Some((ExpiredQuota::Fallback(QuotaStrategy::DenyAll), CLOSED)))
            }
        };
        settings.status = status_of(self.answer.status.as_ref(), "answer.status", settings.status, faults);
        let rules = self.rules.iter().enumerate().filter_map(|(index, rule)| {
            let at = format!("rules[{index}]");
            is_named_again(&rule.name, self.rules.iter().take(index).map(|other| &other.name), &at, faults);
            rule.read(&settings, &at, faults).map(Arc::new)
        });
        rules.collect()
    }
}

impl QuotaRuleSpec {
    fn read(&self, settings: &QuotaSettings, at: &str, faults: &mut Vec<Fault>) -> Option<QuotaRule> {
        let before = faults.len();
        let described = Rule {
            span: self.span,
            name: self.name.clone(),
            matches: self.matches.clone(),
            by: self.by.clone(),
            ..Rule::default()
        };
        let (actions, entries) = described.described(at, faults);
        let actions: Vec<_> =
            actions.into_iter().zip(entries).map(|(action, (key, value))| asked(action, key, value)).collect();
        for (position, action) in actions.iter().enumerate() {
            if actions.iter().take(position).any(|other| other.key() == action.key()) {
                let message = format!("{} is said twice", quoted(action.key()));
                faults.push((self.span, format!("{at}.by"), message));
            }
        }
        if self.limit.requests.value == 0 {
            let message = "must be at least 1".to_owned();
            faults.push((self.limit.requests.span, format!("{at}.limit.requests"), message));
        }
        let name: Arc<str> = self.name.as_str().into();
        let unit = match self.limit.per {
            UnitWord::Minute => Unit::Minute,
            UnitWord::Hour => Unit::Hour,
            UnitWord::Day => Unit::Day,
            UnitWord::Month => Unit::Month,
        };
        let mut settings = settings.clone();
        settings.bucket = Arc::new(RateLimit::by(actions));
        let limit = QuotaLimit::new(self.limit.requests.value.into(), unit, settings.interval);
        let mut quota = RateLimitQuota::new(DOMAIN, vec![Counted::new(settings)]);
        if self.shadow == Some(true) {
            quota.enforced = Fraction::default();
        }
        (faults.len() == before).then(|| QuotaRule { name, limit, quota: Arc::new(quota) })
    }
}

/// The domain of the buckets of our own objects.
pub const DOMAIN: &str = "mesh-control";
