//! Deadlines by resource: how long a server may keep silent about each.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use crate::resources::ResourceKey;

/// Deadlines, the next one first.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    by_time: BTreeSet<(Instant, ResourceKey)>,
    by_key: HashMap<ResourceKey, Instant>,
}

impl Timers {
    /// Sets the deadline of a resource that has none.
    pub(crate) fn arm(&mut self, key: &ResourceKey, at: Instant) {
        if !self.by_key.contains_key(key) {
            self.by_key.insert(key.clone(), at);
            self.by_time.insert((at, key.clone()));
        }
    }

    pub(crate) fn cancel(&mut self, key: &ResourceKey) {
        if let Some((key, at)) = self.by_key.remove_entry(key) {
            self.by_time.remove(&(at, key));
        }
    }

    pub(crate) fn clear(&mut self) {
        self.by_time.clear();
        self.by_key.clear();
    }

    /// The next deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes a resource whose deadline has passed.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<ResourceKey> {
        let (at, _) = self.by_time.first()?;
        if *at > now {
            return None;
        }
        let (_, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::resources::ResourceType;

    #[test]
    fn deadlines_come_in_order_and_the_first_of_a_resource_counts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let key = |name: &str| ResourceKey::new(ResourceType::Cluster, name);
        let mut timers = Timers::default();
        timers.arm(&key("a"), at(3));
        timers.arm(&key("b"), at(1));
        timers.arm(&key("b"), at(9));
        timers.arm(&key("c"), at(2));
        timers.cancel(&key("c"));
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.pop(at(0)), None);
        assert_eq!(timers.pop(at(5)), Some(key("b")));
        assert_eq!(timers.pop(at(5)), Some(key("a")));
        assert_eq!((timers.pop(at(5)), timers.next()), (None, None));
    }
}
