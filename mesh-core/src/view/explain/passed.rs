//! What a request passes besides what its route says, in words: who says who may do what, limits, rules, and filters of the
//! application's.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::settings::{fields, header_change, percent, said, time};
use super::written;
use crate::model::{
    AdaptiveConcurrency, AdmissionControl, DescriptorAction, ExtProc, FilterConfig, Fraction, GlobalRateLimit,
    HeaderTarget, JwtAuthentication, LimitOverride, LocalRateLimit, LocalRule, OnFailure, Plugin, QuotaRule,
    QuotaStrategy, RateLimit, RateLimitQuota, Rbac, RbacAction, RbacRules, RequestRule, RequestRules, SessionCarrier,
    StatefulSession, TokenBucket,
};

/// Something that a request passes: a limit, rules, policies, or a filter of the application's.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Passed {
    /// The name of its filter, as the listener has it.
    pub name: Arc<str>,
    /// What it is: `local rate limit`, `quota`, `rules`.
    pub kind: &'static str,
    /// What it says.
    pub settings: Value,
    /// Where it is written, where that is known: `mesh-control explain` does.
    pub origin: Option<Arc<str>>,
}

impl Passed {
    /// What a filter is to a request, `own` being what its route or virtual host says in the filter's place. `None` where it is
    /// turned off, and of what a route has for a setting of its own: faults, and what pages of other origins may do.
    pub fn of(name: &Arc<str>, config: &FilterConfig, own: Option<&FilterConfig>) -> Option<Passed> {
        let (kind, settings) = match (own.unwrap_or(config), config) {
            (FilterConfig::RateLimitPerRoute(own), FilterConfig::RateLimit(limit)) => {
                let counted = if own.rate_limits.is_empty() { &limit.rate_limits } else { &own.rate_limits };
                ("rate limit", global_rate_limit(limit, own.domain.as_ref().unwrap_or(&limit.domain), counted))
            }
            (FilterConfig::QuotaPerRoute(own), FilterConfig::RateLimitQuota(quota)) => {
                let rules = own.rules.as_ref().unwrap_or(&quota.rules);
                ("quota", rate_limit_quota(quota, own.domain.as_ref().unwrap_or(&quota.domain), rules))
            }
            (FilterConfig::Fault(_) | FilterConfig::Cors(_) | FilterConfig::Disabled, _) => return None,
            (FilterConfig::RateLimitPerRoute(_) | FilterConfig::QuotaPerRoute(_), _) => return None,
            (FilterConfig::Jwt(tokens), _) => ("tokens", issuers(tokens)),
            (FilterConfig::Rbac(rbac), _) => ("policies", policies(rbac)),
            (FilterConfig::ExtAuthz(asked), _) => ("authorizer", json!({"at": &*asked.target})),
            (FilterConfig::ExtProc(config), _) => ("processor", processor(config)),
            (FilterConfig::LocalRateLimit(limit), _) => ("local rate limit", local_rate_limit(limit)),
            (FilterConfig::RateLimit(limit), _) => {
                ("rate limit", global_rate_limit(limit, &limit.domain, &limit.rate_limits))
            }
            (FilterConfig::RateLimitQuota(quota), _) => ("quota", rate_limit_quota(quota, &quota.domain, &quota.rules)),
            (FilterConfig::AdaptiveConcurrency(limit), _) => ("concurrency limit", concurrency(limit)),
            (FilterConfig::AdmissionControl(throttle), _) => ("admission control", admission(throttle)),
            (FilterConfig::StatefulSession(session), _) => ("session", sessions(session)),
            // What stands in its configuration is the application's own.
            (FilterConfig::Custom(name, _), _) => ("filter", json!({"name": &**name})),
            (FilterConfig::Plugin(filter), _) => ("filter", plugin(filter)),
            (FilterConfig::RequestRules(rules), _) => ("rules", request_rules(rules)),
        };
        Some(Passed { name: Arc::clone(name), kind, settings: fields(settings), origin: None })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "filter": &*self.name,
            "kind": self.kind,
            "settings": self.settings,
            "origin": self.origin.as_deref(),
        })
    }
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.origin.as_ref().unwrap_or(&self.name);
        write!(f, "{}{}: {}", self.kind, written(Some(place)), said(&self.settings))
    }
}

fn issuers(tokens: &JwtAuthentication) -> Value {
    json!({"of": tokens.providers.values().map(|provider| provider.issuer.as_str()).collect::<Vec<_>>()})
}

fn policies(rbac: &Rbac) -> Value {
    let names = |rules: &RbacRules| listed(rules.policies.keys().map(|name| Value::from(&**name)).collect());
    let of = |action| rbac.rules.as_ref().filter(|rules| rules.action == action).and_then(names);
    let tried = rbac.shadow_rules.as_ref().and_then(names);
    // Where somebody has to be let in and nobody is named, nobody is.
    let is_closed = |rules: &Option<RbacRules>| {
        rules.as_ref().is_some_and(|rules| rules.action == RbacAction::Allow && rules.policies.is_empty())
    };
    let allow = of(RbacAction::Allow).or_else(|| is_closed(&rbac.rules).then(|| vec!["nobody".into()]));
    let tried = tried.or_else(|| is_closed(&rbac.shadow_rules).then(|| vec!["nobody is let in".into()]));
    json!({"allow": allow, "deny": of(RbacAction::Deny), "log": of(RbacAction::Log), "tried": tried})
}

fn bucket(bucket: &TokenBucket) -> Value {
    let (per_fill, interval) = (bucket.per_fill(), time(bucket.interval()));
    json!({"at_once": bucket.max(), "requests": per_fill, "per": interval})
}

/// A share of requests, where it is not all of them.
fn part(share: Fraction) -> Option<f64> {
    (share != Fraction::ALL).then(|| percent(share.per_million()))
}

fn local_rate_limit(limit: &LocalRateLimit) -> Value {
    let rules = limit.rules.iter().map(|rule| {
        let by = LocalRule::in_words(&rule.entries);
        let shadow = rule.is_shadow.then_some(true);
        fields(json!({"name": &*rule.name, "by": by, "limit": bucket(&rule.bucket), "shadow": shadow}))
    });
    json!({
        "name": &*limit.name,
        "limit": limit.bucket.as_ref().map(bucket),
        "rules": listed(rules.collect()),
        "enforced_percent": part(limit.enforced),
    })
}

/// A list that has something in it.
fn listed(all: Vec<Value>) -> Option<Vec<Value>> {
    (!all.is_empty()).then_some(all)
}

fn global_rate_limit(limit: &GlobalRateLimit, domain: &str, counted: &[Arc<RateLimit>]) -> Value {
    let rules = counted.iter().map(|one| {
        let limit = match one.limit {
            Some(LimitOverride { requests, unit }) => {
                json!({"requests": requests, "per": time(Duration::from_secs(unit.seconds().into()))})
            }
            None => json!("as the service has it"),
        };
        json!({"by": counted_by(one), "limit": limit})
    });
    json!({
        "asks": &*limit.target,
        "domain": domain,
        "rules": listed(rules.collect()),
        "without_an_answer": if limit.fails_closed { "refused" } else { "passes" },
        "enforced_percent": part(limit.enforced),
    })
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn rate_limit_quota(quota: &RateLimitQuota, domain: &str, rules: &[QuotaRule]) -> Value {
    let rules = rules.iter().map(|rule| {
        let settings = &rule.settings;
        let before = match settings.unassigned {
            QuotaStrategy::AllowAll => json!("passes"),
            QuotaStrategy::DenyAll => json!("refused"),
            QuotaStrategy::Tokens { max, per_fill, interval } => {
                // What fills so slowly is never filled while anybody waits.
                match interval < YEAR {
                    true => json!({"at_once": max, "requests": per_fill, "per": time(interval)}),
                    false => json!({"at_once": max, "then": "refused"}),
                }
            }
        };
        json!({"by": counted_by(&settings.bucket), "without_a_share": before})
    });
    json!({"domain": domain, "rules": rules.collect::<Vec<_>>(), "enforced_percent": part(quota.enforced)})
}

/// What a request is counted by.
fn counted_by(counted: &RateLimit) -> String {
    let entry = |action: &DescriptorAction| match action {
        DescriptorAction::SourceCluster => "source cluster".to_owned(),
        DescriptorAction::DestinationCluster => "destination cluster".to_owned(),
        DescriptorAction::Header { name, .. } => format!("header {name}"),
        DescriptorAction::Query { name, .. } => format!("query {name}"),
        DescriptorAction::RemoteAddress => "remote address".to_owned(),
        DescriptorAction::MaskedRemoteAddress { v4_bits, v6_bits } => {
            format!("remote address /{v4_bits} or /{v6_bits}")
        }
        DescriptorAction::RemoteAddressMatch { key, value, .. }
        | DescriptorAction::Constant { key, value }
        | DescriptorAction::HeaderMatch { key, value, .. }
        | DescriptorAction::QueryMatch { key, value, .. } => format!("{key}={value}"),
        DescriptorAction::Claim { path, .. } => format!("claim {}", path.join(".")),
        DescriptorAction::Client { part, .. } => format!("client {}", part.name()),
        DescriptorAction::PathTemplate { templates, .. } => {
            let templates: Vec<&str> = templates.iter().map(|(text, _)| &**text).collect();
            format!("path {}", templates.join(" or "))
        }
        DescriptorAction::Expression { expression, .. } => format!("expression {}", expression.text()),
    };
    // What says which object it is of tells requests apart no further.
    let is_said = |action: &&DescriptorAction| !matches!(action, DescriptorAction::Constant { key, .. } if key.starts_with("mesh/"));
    counted.actions.iter().filter(is_said).map(entry).collect::<Vec<_>>().join(" and ")
}

fn concurrency(limit: &AdaptiveConcurrency) -> Value {
    let least = (limit.least != limit.most).then_some(limit.least);
    let queue = limit.queue.as_deref().map(|queue| {
        let weights = (!queue.weights.is_empty()).then_some(&queue.weights);
        fields(json!({"most": queue.most, "wait": time(queue.wait), "turns_by": counted_by(&queue.by), "weights": weights}))
    });
    json!({"most": limit.most, "least": least, "sheddable_percent": part(limit.sheddable), "queue": queue})
}

fn processor(config: &ExtProc) -> Value {
    let shown = [("request", config.request), ("response", config.response)];
    let shown: Vec<&str> = shown.into_iter().filter(|(_, is_shown)| *is_shown).map(|(what, _)| what).collect();
    json!({
        "at": &*config.target,
        "shown": shown,
        "timeout": time(config.timeout),
        "without_a_word": if config.fail_open { "passes" } else { "refused" },
    })
}

fn admission(throttle: &AdmissionControl) -> Value {
    json!({
        "window": time(throttle.window),
        "below_percent_of_successes": percent(throttle.enough.per_million()),
        "most_percent": percent(throttle.most.per_million()),
    })
}

fn sessions(session: &StatefulSession) -> Value {
    let by = match &session.carrier {
        SessionCarrier::Cookie { name, .. } => format!("cookie {name}"),
        SessionCarrier::Header(name) => format!("header {name}"),
    };
    json!({"by": by, "strict": session.is_strict})
}

fn plugin(plugin: &Plugin) -> Value {
    let without = match plugin.on_failure {
        OnFailure::Pass => "passes",
        OnFailure::Refuse | OnFailure::Restart => "refused",
    };
    json!({"name": &*plugin.name, "where_it_cannot_run": without})
}

fn request_rules(rules: &RequestRules) -> Value {
    let rule = |rule: &RequestRule| {
        let changes = |target, changes: &[_]| listed(changes.iter().map(|one| header_change(one, target)).collect());
        fields(json!({
            "name": &*rule.name,
            "when": rule.when.as_ref().map(|condition| condition.text()),
            "allowed": rule.allow.then_some(true),
            "refused_with": rule.deny.as_ref().map(|refusal| refusal.status.as_u16()),
            "request_headers": changes(HeaderTarget::Request, &rule.request),
            "response_headers": changes(HeaderTarget::Response, &rule.response),
        }))
    };
    json!({"rules": rules.rules.iter().map(rule).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CelExpression, ClientPart, ConcurrencyQueue, LimitUnit};

    fn told(config: &FilterConfig) -> String {
        Passed::of(&"filter".into(), config, None).expect("it is passed").to_string()
    }

    #[test]
    fn each_rule_of_a_service_is_told_by_itself_with_its_limit() {
        let header = DescriptorAction::Header { key: "x-user".into(), name: "x-user".into(), skip_if_absent: false };
        let mut users = RateLimit::by(vec![header]);
        users.limit = Some(LimitOverride { requests: 100, unit: LimitUnit::Hour });
        let networks = RateLimit::by(vec![DescriptorAction::MaskedRemoteAddress { v4_bits: 24, v6_bits: 64 }]);
        let mut limit = GlobalRateLimit::new("shop", "ratelimit:8081");
        limit.rate_limits = vec![Arc::new(users), Arc::new(networks)];
        let expected = "rate limit (filter): asks ratelimit:8081, domain shop, \
                        rules (by header x-user, limit per 3600s, requests 100) and \
                        (by remote address /24 or /64, limit as the service has it), without an answer passes";
        assert_eq!(told(&FilterConfig::RateLimit(Arc::new(limit))), expected);
    }

    #[test]
    fn what_a_rule_makes_of_its_requests_is_told_also_where_it_lets_them_pass() {
        let mut health = RequestRule::new("health");
        (health.when, health.allow) = (CelExpression::rule("request.url_path == '/healthz'").ok(), true);
        let expected = "rules (filter): rules (name health, allowed, when request.url_path == '/healthz')";
        assert_eq!(told(&FilterConfig::RequestRules(Arc::new(RequestRules::new(vec![health])))), expected);
    }

    #[test]
    fn whose_turns_callers_take_is_told() {
        let by = [
            (ClientPart::Principal, "principal"),
            (ClientPart::Namespace, "namespace"),
            (ClientPart::ServiceAccount, "serviceAccount"),
        ];
        for (part, name) in by {
            let mut queue = ConcurrencyQueue::new(10);
            queue.by = Arc::new(RateLimit::by(vec![DescriptorAction::Client { key: "client".into(), part }]));
            let mut limit = AdaptiveConcurrency::fixed(5);
            limit.queue = Some(Arc::new(queue));
            let text = told(&FilterConfig::AdaptiveConcurrency(Arc::new(limit)));
            assert!(text.contains(&format!("turns by client {name}, ")), "{text}");
        }
    }
}
