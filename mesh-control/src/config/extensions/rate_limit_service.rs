//! A `RateLimit` with a `service`: rules say what requests are counted by, and a rate limit service of Envoy's protocol
//! counts them, for all processes that ask it.

use std::sync::Arc;
use std::time::Duration;

use mesh_core::model::{
    DescriptorAction, GlobalRateLimit, HeaderTest, LimitOverride, LimitUnit, RateLimit as Counted, StringTest,
};

use super::rate_limit::{Fault, Limit, RateLimitSpec, counts_the_same, is_named_again};
use crate::config::decode::{At, PortNumber, Text, keywords, message};
use crate::config::diagnostic::quoted;
use crate::config::istio::names::is_domain;

/// What may be taken to answer.
const LONGEST: Duration = Duration::from_secs(60);

/// What a service is asked about: no question is too large for ours (`serve/io/rate_limits.rs`).
const MOST_RULES: usize = 100;
const MOST_VALUES: usize = 500;

message! {
    /// The service that counts.
    pub struct Service {
        /// A host of the mesh, by its full name.
        host: Text = "host" required,
        /// Its port.
        port: PortNumber = "port" required,
        /// The domain of the rules there.
        domain: Text = "domain" required,
        /// How long an answer may take; absent means 20 ms.
        timeout: Option<At<Duration>> = "timeout",
        /// What becomes of requests that there is no answer about.
        failure_mode: FailureMode = "failureMode",
    }
}

keywords! {
    /// What becomes of requests that there is no answer about.
    pub enum FailureMode {
        /// They pass.
        Allow = "ALLOW",
        /// They are refused.
        Deny = "DENY",
    }
}

impl Service {
    /// What it is asked about.
    pub(super) fn limit(&self, spec: &RateLimitSpec, faults: &mut Vec<Fault>) -> GlobalRateLimit {
        spec.check(faults);
        let (address, timeout) = called_at(&self.host, self.port, self.timeout.as_ref(), "service", faults);
        let mut limit = GlobalRateLimit::new(self.domain.as_str(), address);
        limit.timeout = timeout.unwrap_or(limit.timeout);
        if self.domain.is_empty() {
            faults.push((
                self.domain.span,
                "service.domain".to_owned(),
                "a service is asked about a domain".to_owned(),
            ));
        }
        limit.fails_closed = self.failure_mode == FailureMode::Deny;
        (limit.is_exhaustion, limit.tells_when) = (true, true);
        limit.tells = spec.answer.headers.tells();
        limit.status = spec.answer.status(faults);
        let mut without_effect = |field: &str, span| {
            let message = "without effect: the service counts, and not each process".to_owned();
            faults.push((span, field.to_owned(), message));
        };
        if spec.per_connection == Some(true) {
            without_effect("perConnection", spec.span);
        }
        if let Some(keys) = &spec.max_keys {
            without_effect("maxKeys", keys.span);
        }
        let values: usize = spec.rules.iter().map(|rule| rule.by.len() + rule.matches.headers.len() + 2).sum();
        if spec.rules.len() > MOST_RULES || values > MOST_VALUES {
            let message = format!("a service is asked about {MOST_RULES} rules and {MOST_VALUES} values at most");
            faults.push((spec.span, "rules".to_owned(), message));
        }
        for (index, rule) in spec.rules.iter().enumerate() {
            let at = format!("rules[{index}]");
            if rule.shadow == Some(true) {
                let message = "the service says what only counts (`shadow_mode`)".to_owned();
                faults.push((rule.span, format!("{at}.shadow"), message));
            }
            let (actions, entries) = rule.described(&at, faults);
            let actions = actions.into_iter().zip(entries).map(|(action, (key, value))| asked(action, key, value));
            let mut counted = Counted::by(actions.collect());
            counted.limit = rule.limit.as_ref().and_then(|limit| at_most(limit, &format!("{at}.limit"), faults));
            let others = spec.rules.get(..index).unwrap_or_default();
            if !is_named_again(&rule.name, others.iter().map(|other| &other.name), &at, faults)
                && let Some(place) = limit.rate_limits.iter().position(|other| other.actions == counted.actions)
            {
                let earlier = others.get(place).map_or("", |other| other.name.as_str());
                faults.push((rule.span, at, counts_the_same(earlier)));
            }
            limit.rate_limits.push(Arc::new(counted));
        }
        limit
    }
}

/// Where somebody is called who is asked about requests, `HOST:PORT`, and how long an answer may take, where that is written.
pub(super) fn called_at(
    host: &Text,
    port: PortNumber,
    timeout: Option<&At<Duration>>,
    field: &str,
    faults: &mut Vec<Fault>,
) -> (String, Option<Duration>) {
    if !is_domain(host) {
        faults.push((host.span, format!("{field}.host"), format!("{} is no name", quoted(host))));
    }
    if let Some(timeout) = timeout.filter(|timeout| timeout.is_zero() || ***timeout > LONGEST) {
        faults.push((timeout.span, format!("{field}.timeout"), format!("not between nothing and {LONGEST:?}")));
    }
    (format!("{}:{}", host.value, port.0), timeout.map(|timeout| **timeout))
}

/// An action for a service: where only requests with a value are meant, others are not asked about.
pub(super) fn asked(action: DescriptorAction, key: Arc<str>, value: Arc<str>) -> DescriptorAction {
    match action {
        DescriptorAction::Header { name, .. } if !value.is_empty() => {
            let test = StringTest::Exact { value: value.to_string(), ignore_case: false };
            let tests = vec![HeaderTest::Value { name, test, invert: false, missing_is_empty: false }];
            DescriptorAction::HeaderMatch { key, value, expects: true, tests }
        }
        other => other,
    }
}

/// The limit that a service is told: it counts in units of time, and from the first to the last of one.
fn at_most(limit: &Limit, at: &str, faults: &mut Vec<Fault>) -> Option<LimitOverride> {
    use LimitUnit::{Day, Hour, Minute, Month, Second, Year};
    if let Some(burst) = &limit.burst {
        let message = "without effect: a service counts in whole units of time".to_owned();
        faults.push((burst.span, format!("{at}.burst"), message));
    }
    if limit.requests.value == 0 {
        faults.push((limit.requests.span, format!("{at}.requests"), "must be at least 1".to_owned()));
    }
    let is_per = |unit: &LimitUnit| *limit.per == Duration::from_secs(unit.seconds().into());
    let unit = [Second, Minute, Hour, Day, Month, Year].into_iter().find(is_per);
    if unit.is_none() {
        let message = "a service counts in 1s, 1m, 1h, 24h, 720h (a month) or 8760h (a year)".to_owned();
        faults.push((limit.per.span, format!("{at}.per"), message));
    }
    Some(LimitOverride { requests: limit.requests.value, unit: unit? })
}
