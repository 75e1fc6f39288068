//! The fetches that are under way, as a [`Schedule`] has them.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Schedule;

/// How many are fetched at a time; others wait.
const MOST_AT_ONCE: usize = 16;

/// Fetches from sources `S`, each of which comes to a `T`, or to why there is none. They end with this.
pub(crate) struct UnderWay<S, T>(JoinSet<(S, Result<T, String>)>);

impl<S: Ord + Clone + Send + 'static, T: Send + 'static> UnderWay<S, T> {
    pub(crate) fn new() -> UnderWay<S, T> {
        UnderWay(JoinSet::new())
    }

    /// Begins what is due by `fetch`, of which is known how long it may take, and waits for what ends: who has that says so to
    /// [`Schedule::done`]. `None` where something else is due by now. May be given up at any time.
    pub(crate) async fn next<V, F>(
        &mut self,
        schedule: &mut Schedule<S, V>,
        fetch: impl Fn(S, Duration) -> F,
    ) -> Option<(S, Result<T, String>)>
    where
        F: Future<Output = Result<T, String>> + Send + 'static,
    {
        let now = Instant::now();
        for (source, limit) in schedule.take_due(now, MOST_AT_ONCE.saturating_sub(self.0.len())) {
            let fetched = fetch(source.clone(), limit);
            self.0.spawn(async move { (source, fetched.await) });
        }
        let next = schedule.next().filter(|_| self.0.len() < MOST_AT_ONCE);
        tokio::select! {
            // None of them is aborted, or panics.
            Some(ended) = self.0.join_next() => ended.ok(),
            () = sleep_until(next.unwrap_or(now)), if next.is_some() => None,
            // Nothing is wanted.
            else => std::future::pending().await,
        }
    }
}
