//! How often policies refused requests, or would have: by the name of the rule that decided, for metrics and for people.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use super::lock;

/// What is counted of policies. Requests that are let in are not: that would cost each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Decision {
    /// A request or a connection was refused.
    Denied,
    /// It would have been, by a policy that is only tried.
    WouldDeny,
    /// It would have been let in by one.
    WouldAllow,
    /// It was only to be told of.
    Audited,
}

impl Decision {
    /// All of them.
    pub const ALL: [Decision; 4] = [Decision::Denied, Decision::WouldDeny, Decision::WouldAllow, Decision::Audited];

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Decision::Denied => "denied",
            Decision::WouldDeny => "would_deny",
            Decision::WouldAllow => "would_allow",
            Decision::Audited => "audited",
        }
    }
}

/// Names that are counted apart: more are counted as one, [`OTHERS`].
const MOST: usize = 10_000;

/// What those rules are called together that found no room.
const OTHERS: &str = "others";

/// What is called so is the decision of no rule: there are some that let in, and none of them was for the request.
pub const NO_RULE: &str = "none";

/// How often each rule decided so.
#[derive(Default)]
pub struct Decided([Mutex<Counts>; 4]);

/// How often, by the name of the rule.
type Counts = BTreeMap<Arc<str>, u64>;

impl Decided {
    /// Counts a decision of this rule, or of none.
    pub fn note(&self, rule: Option<&str>, decision: Decision) {
        let [denied, would_deny, would_allow, audited] = &self.0;
        let mut counts = lock(match decision {
            Decision::Denied => denied,
            Decision::WouldDeny => would_deny,
            Decision::WouldAllow => would_allow,
            Decision::Audited => audited,
        });
        let rule = rule.unwrap_or(NO_RULE);
        let name = if counts.len() < MOST || counts.contains_key(rule) { rule } else { OTHERS };
        match counts.get_mut(name) {
            Some(count) => *count += 1,
            None => _ = counts.insert(name.into(), 1),
        }
    }

    /// Shows all of them.
    pub fn each(&self, mut show: impl FnMut(&str, Decision, u64)) {
        for (counts, decision) in self.0.iter().zip(Decision::ALL) {
            let counts = lock(counts).clone();
            counts.iter().for_each(|(rule, count)| show(rule, decision, *count));
        }
    }
}

impl fmt::Debug for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|counts| lock(counts).len())).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_counted_by_rule_and_rules_without_end_as_one() {
        let decided = Decided::default();
        for number in 0..MOST + 5 {
            decided.note(Some(&format!("rule-{number}")), Decision::Denied);
        }
        decided.note(Some("rule-3"), Decision::Denied);
        decided.note(None, Decision::WouldDeny);
        let mut shown = BTreeMap::new();
        decided.each(|rule, decision, count| _ = shown.insert((rule.to_owned(), decision), count));
        let count = |rule: &str, decision| shown.get(&(rule.to_owned(), decision)).copied();
        assert_eq!([count("rule-3", Decision::Denied), count("rule-4", Decision::Denied)], [Some(2), Some(1)]);
        assert_eq!(count(OTHERS, Decision::Denied), Some(5));
        assert_eq!(count(NO_RULE, Decision::WouldDeny), Some(1));
        assert_eq!(shown.len(), MOST + 2);
    }
}
