//! How often rules applied, and how that went.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::ratelimit::rules::Mode;

/// Of one rule, in hits.
#[derive(Debug, Default)]
pub struct RuleStats {
    hits: AtomicU64,
    over: AtomicU64,
    near: AtomicU64,
    shadow: AtomicU64,
}

/// The part of a limit from which on hits are near it: four fifths.
const NEAR: (u64, u64) = (4, 5);

impl RuleStats {
    /// So many hits came, and with them there were `with`, of the `limit` that there is room for.
    pub(super) fn note(&self, limit: u64, hits: u64, with: u64, mode: Mode) {
        add(&self.hits, hits);
        let before = with.saturating_sub(hits);
        let near = limit.saturating_mul(NEAR.0) / NEAR.1;
        let above = |bound: u64| with.saturating_sub(before.max(bound));
        let over = above(limit);
        add(&self.near, above(near) - over);
        if over > 0 {
            add(&self.over, over);
            if mode != Mode::Enforced {
                add(&self.shadow, over);
            }
        }
    }
}

fn add(counter: &AtomicU64, more: u64) {
    if more > 0 {
        counter.fetch_add(more, Ordering::Relaxed);
    }
}

/// What a rule has come to, in hits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RuleStatus {
    /// The domain.
    pub domain: String,
    /// The keys and values that lead to it, `key_value.key_value`.
    pub rule: String,
    /// Those that came.
    pub hits: u64,
    /// Those of them for which there was no room.
    pub over: u64,
    /// Those that came when four fifths of the limit were used up, and for which there was room.
    pub near: u64,
    /// Those over the limit that were let through, since the rule only watches (`shadow_mode`, `quota_mode`).
    pub shadow: u64,
}

/// Whose: a domain and the path of a rule in it.
pub(super) type Name = (Arc<str>, Arc<str>);

/// How many rules and values of descriptors are counted by themselves. What comes beyond that is counted with its rule.
const MOST_SERIES: usize = 10_000;

/// Of all rules, those among them that are told apart by the values of descriptors.
#[derive(Debug, Default)]
pub(super) struct Stats {
    series: RwLock<HashMap<Name, Arc<RuleStats>>>,
}

impl Stats {
    /// Those of a rule of the configuration: the same ones after every change of it.
    pub(super) fn of_rule(&self, name: &Name) -> Arc<RuleStats> {
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        series.entry(name.clone()).or_default().clone()
    }

    /// Those of a rule for certain values, as long as there is room.
    pub(super) fn of_values(&self, name: &Name) -> Option<Arc<RuleStats>> {
        if let Some(known) = self.series.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Some(known.clone());
        }
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        if series.len() >= MOST_SERIES && !series.contains_key(name) {
            return None;
        }
        Some(series.entry(name.clone()).or_default().clone())
    }

    /// Forgets those that no rule has any more; those of values come again when they are needed.
    pub(super) fn keep(&self, is_kept: impl Fn(&Arc<RuleStats>) -> bool) {
        self.series.write().unwrap_or_else(PoisonError::into_inner).retain(|_, stats| is_kept(stats));
    }

    /// All that was counted, in order.
    pub(super) fn report(&self) -> Vec<RuleStatus> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<RuleStatus> = series
            .iter()
            .map(|((domain, rule), stats)| RuleStatus {
                domain: domain.to_string(),
                rule: rule.to_string(),
                hits: get(&stats.hits),
                over: get(&stats.over),
                near: get(&stats.near),
                shadow: get(&stats.shadow),
            })
            .collect();
        all.sort_by(|a, b| (&a.domain, &a.rule).cmp(&(&b.domain, &b.rule)));
        all
    }
}

/// Appends the text form for Prometheus.
pub(super) fn write(rules: &[RuleStatus], out: &mut String) {
    type Figure = fn(&RuleStatus) -> u64;
    let families: [(&str, &str, Figure); 4] = [
        ("hits", "Hits that rules of rate limits applied to.", |rule| rule.hits),
        ("over_limit", "Hits for which a limit had no room.", |rule| rule.over),
        ("near_limit", "Hits from four fifths of a limit on.", |rule| rule.near),
        ("shadow", "Hits over the limit of a rule that only watches.", |rule| rule.shadow),
    ];
    for (name, help, figure) in families {
        let _ = writeln!(out, "# HELP mesh_ratelimit_{name}_total {help}\n# TYPE mesh_ratelimit_{name}_total counter");
        for rule in rules {
            let (domain, path) = (label(&rule.domain), label(&rule.rule));
            let _ =
                writeln!(out, "mesh_ratelimit_{name}_total{{domain=\"{domain}\",rule=\"{path}\"}} {}", figure(rule));
        }
    }
}

/// The value of a label in Prometheus' text: what a caller sends may be in it.
pub(crate) fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_near_or_over_each_by_itself() {
        let stats = Stats::default();
        let rule = stats.of_rule(&("d".into(), "r".into()));
        rule.note(10, 7, 7, Mode::Enforced);
        rule.note(10, 5, 12, Mode::Enforced);
        rule.note(10, 3, 15, Mode::Shadow);
        let report = stats.report().remove(0);
        assert_eq!((report.hits, report.near, report.over, report.shadow), (15, 2, 5, 3));
    }

    #[test]
    fn values_that_a_caller_makes_up_are_counted_within_bounds() {
        let stats = Stats::default();
        let counted =
            (0..20_000).filter(|number| stats.of_values(&("d".into(), format!("k_{number}").into())).is_some());
        assert_eq!(counted.count(), MOST_SERIES);
        assert!(stats.of_values(&("d".into(), "k_7".into())).is_some(), "it is known");
        let mut out = String::new();
        write(&[RuleStatus { rule: "a\"b\\c\nd".to_owned(), ..RuleStatus::default() }], &mut out);
        assert!(out.contains(r#"rule="a\"b\\c\nd"} 0"#), "{out}");
    }
}
