//! Where hits are counted: in this process, or in a Redis that several replicas share.

use std::fmt;
use std::time::Duration;

use crate::ratelimit::bounded::Bounded;
use crate::ratelimit::redis::{RedisStore, RedisUrl};
use crate::ratelimit::window::{Charge, Counter};

/// Where hits are counted.
#[derive(Debug)]
pub struct Store(Kept);

#[derive(Debug)]
enum Kept {
    Memory(Bounded<Counter>),
    Redis(RedisStore),
}

/// Why hits were not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotCounted {
    /// Redis is away, slow, or says nonsense.
    Away(String),
    /// Too much is being counted already.
    Busy,
}

impl fmt::Display for NotCounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotCounted::Away(why) => write!(f, "the counters are away: {why}"),
            NotCounted::Busy => f.write_str("too many requests wait for the counters"),
        }
    }
}

impl Store {
    /// Counters in this process, of so many keys: those of the least used are forgotten first. They are gone with it.
    pub fn in_memory(most_keys: usize) -> Store {
        Store(Kept::Memory(Bounded::new(most_keys)))
    }

    /// Counters in Redis; in this process there is only kept which of them, and so many at most, are over their limits. It is
    /// dialled in the background, for as long as there is this store. To be called inside a runtime.
    pub fn in_redis(url: RedisUrl, most_keys: usize) -> Store {
        Store(Kept::Redis(RedisStore::new(url, most_keys)))
    }

    /// Counts hits, and says of each counter how many there are with them.
    pub(super) async fn take(&self, charges: &[Charge], now: Duration) -> Result<Vec<u64>, NotCounted> {
        match &self.0 {
            Kept::Memory(counters) => Ok(charges
                .iter()
                .map(|charge| counters.with(&charge.key, |counter| counter.take(charge, now)))
                .collect()),
            Kept::Redis(store) => store.take(charges, now).await,
        }
    }

    /// `memory` or `redis`.
    pub(super) fn name(&self) -> &'static str {
        match &self.0 {
            Kept::Memory(_) => "memory",
            Kept::Redis(_) => "redis",
        }
    }

    /// Whether hits can be counted now.
    pub(super) fn is_reached(&self) -> bool {
        match &self.0 {
            Kept::Memory(_) => true,
            Kept::Redis(store) => store.is_connected(),
        }
    }

    /// How many keys this process keeps.
    pub(super) fn keys(&self) -> usize {
        match &self.0 {
            Kept::Memory(counters) => counters.len(),
            Kept::Redis(store) => store.keys(),
        }
    }
}
