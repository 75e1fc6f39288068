//! A place that held objects and is suddenly empty. A server that has just started, or has lost its store, answers like that: it is
//! believed when it is still so half a minute later, and no older than what was known.

use std::time::Duration;

use tokio::time::Instant;

/// For how long, and in how many lists, it has to be empty.
const DOUBT: Duration = Duration::from_secs(30);
const LISTS: u32 = 3;

/// Since when it has been empty, and in how many lists.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Doubt {
    since: Option<Instant>,
    lists: u32,
}

impl Doubt {
    /// Takes in one more empty list, which may be older than what was known. Returns whether it is believed.
    pub(crate) fn is_over(&mut self, is_older: bool, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        self.lists += 1;
        self.lists >= LISTS && now.saturating_duration_since(since) >= DOUBT && !is_older
    }
}
