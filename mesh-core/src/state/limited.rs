//! How many requests were within their rate limits, and how many were not: by limit and rule, for metrics and for people.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use super::lock;
use crate::seldom::Seldom;

/// What became of the requests that one rule was for.
#[derive(Debug, Default)]
pub struct LimitCounts {
    within: AtomicU64,
    over: AtomicU64,
    shadow: AtomicU64,
    /// When the log last had one that is refused.
    told: Seldom,
}

impl LimitCounts {
    /// One passes.
    #[inline]
    pub fn note_within(&self) {
        self.within.fetch_add(1, Ordering::Relaxed);
    }

    /// One is refused.
    pub fn note_over(&self) {
        self.over.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the log is to have one that is refused, or passes as it cannot be decided about.
    pub fn is_told(&self, now: Instant) -> bool {
        self.told.is_due(now)
    }

    /// One is over the limit, and passes since that is only tried.
    pub fn note_shadow(&self) {
        self.shadow.fetch_add(1, Ordering::Relaxed);
    }

    /// How many passed.
    pub fn within(&self) -> u64 {
        self.within.load(Ordering::Relaxed)
    }

    /// How many were refused.
    pub fn over(&self) -> u64 {
        self.over.load(Ordering::Relaxed)
    }

    /// How many were over a limit that is only tried.
    pub fn shadow(&self) -> u64 {
        self.shadow.load(Ordering::Relaxed)
    }
}

/// Limit and rule.
type Names = (Arc<str>, Arc<str>);

/// The counts of all rules, as long as a configuration has them.
#[derive(Default)]
pub struct Limited(Mutex<BTreeMap<Names, Weak<LimitCounts>>>);

impl Limited {
    /// What a rule of a limit counts by: limits of one name count together, wherever they stand.
    pub fn counts(&self, limit: &str, rule: &str) -> Arc<LimitCounts> {
        let mut all = lock(&self.0);
        let key = (Arc::from(limit), Arc::from(rule));
        if let Some(present) = all.get(&key).and_then(Weak::upgrade) {
            return present;
        }
        all.retain(|_, counts| counts.strong_count() > 0);
        let counts = Arc::<LimitCounts>::default();
        all.insert(key, Arc::downgrade(&counts));
        counts
    }

    /// Shows all of them, with the names of limit and rule.
    pub fn each(&self, mut look: impl FnMut(&str, &str, &LimitCounts)) {
        let all: Vec<_> = lock(&self.0).iter().map(|(key, counts)| (key.clone(), counts.upgrade())).collect();
        for ((limit, rule), counts) in all {
            if let Some(counts) = counts {
                look(&limit, &rule, &counts);
            }
        }
    }
}

impl fmt::Debug for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(lock(&self.0).keys()).finish()
    }
}
