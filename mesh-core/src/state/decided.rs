//! How often policies refused requests, or would have: by the name of the rule that decided, for metrics and for people.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::BuildHasher;
use std::iter::successors;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use foldhash::quality::RandomState;

/// What is counted of policies. A request that is let in costs nothing, unless a policy is only tried: then it is counted which way that
/// one would have decided.
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

/// How often each rule decided so. Names come, and never go: whoever counts takes no lock, and allocates nothing for one that is known.
#[derive(Default)]
pub struct Decided {
    /// Rules by the hash of their names.
    rules: HashTable,
    names: AtomicUsize,
    none: Counts,
    others: Counts,
}

/// How often, by decision.
#[derive(Default)]
struct Counts([AtomicU64; 4]);

impl Counts {
    fn of(&self, decision: Decision) -> &AtomicU64 {
        let [denied, would_deny, would_allow, audited] = &self.0;
        match decision {
            Decision::Denied => denied,
            Decision::WouldDeny => would_deny,
            Decision::WouldAllow => would_allow,
            Decision::Audited => audited,
        }
    }
}

/// Chains of rules whose names have the same place.
struct HashTable {
    hasher: RandomState,
    chains: [Link; 256],
}

type Link = OnceLock<Box<Rule>>;

struct Rule {
    name: Box<str>,
    counts: Counts,
    next: Link,
}

impl Default for HashTable {
    fn default() -> Self {
        HashTable { hasher: RandomState::default(), chains: std::array::from_fn(|_| Link::new()) }
    }
}

impl HashTable {
    fn chain(&self, name: &str) -> &Link {
        let [first, ..] = &self.chains;
        let place = self.hasher.hash_one(name) % self.chains.len() as u64;
        self.chains.get(place as usize).unwrap_or(first)
    }
}

impl Decided {
    /// Counts a decision of this rule, or of none.
    #[inline]
    pub fn note(&self, rule: Option<&str>, decision: Decision) {
        self.counts(rule.unwrap_or(NO_RULE)).of(decision).fetch_add(1, Ordering::Relaxed);
    }

    fn counts(&self, name: &str) -> &Counts {
        match name {
            NO_RULE => return &self.none,
            OTHERS => return &self.others,
            _ => {}
        }
        let mut link = self.rules.chain(name);
        loop {
            let rule = match link.get() {
                Some(rule) => rule,
                None if self.names.load(Ordering::Relaxed) >= MOST => return &self.others,
                // Another one may come first; then the way goes on behind it.
                None => link.get_or_init(|| {
                    self.names.fetch_add(1, Ordering::Relaxed);
                    Box::new(Rule { name: name.into(), counts: Counts::default(), next: Link::new() })
                }),
            };
            if *rule.name == *name {
                return &rule.counts;
            }
            link = &rule.next;
        }
    }

    /// Shows all of them.
    pub fn each(&self, mut show: impl FnMut(&str, Decision, u64)) {
        let mut all = BTreeMap::from([(NO_RULE, &self.none), (OTHERS, &self.others)]);
        for first in &self.rules.chains {
            let rules = successors(first.get(), |rule| rule.next.get());
            all.extend(rules.map(|rule| (&*rule.name, &rule.counts)));
        }
        for decision in Decision::ALL {
            for (name, counts) in &all {
                let count = counts.of(decision).load(Ordering::Relaxed);
                if count > 0 {
                    show(name, decision, count);
                }
            }
        }
    }
}

impl fmt::Debug for Decided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decided").field("names", &self.names).finish_non_exhaustive()
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

    #[test]
    fn nothing_is_lost_of_what_many_count_at_once() {
        let decided = Decided::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for number in 0..4_000 {
                        decided.note(Some(&format!("rule-{}", number % 1_000)), Decision::WouldAllow);
                        decided.note(None, Decision::WouldDeny);
                    }
                });
            }
        });
        let mut shown = Vec::new();
        decided.each(|rule, decision, count| shown.push((rule.to_owned(), decision, count)));
        assert_eq!(shown.first(), Some(&(NO_RULE.to_owned(), Decision::WouldDeny, 16_000)));
        assert_eq!(shown.len(), 1_001);
        assert!(shown.iter().skip(1).all(|(_, decision, count)| (*decision, *count) == (Decision::WouldAllow, 16)));
    }
}
