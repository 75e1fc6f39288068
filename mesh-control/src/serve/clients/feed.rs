//! Where the catalogs come from, and how often streams are told of a new one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::catalog::Catalog;

/// How long streams are left alone after they were told of a change. The first change of a burst is
/// told at once, the rest of it together.
const QUIET: Duration = Duration::from_millis(50);

/// The newest catalog, and a pulse for those who wait for a newer one.
pub struct Feed {
    latest: Box<dyn Fn() -> Arc<dyn Catalog> + Send + Sync>,
    pulse: watch::Receiver<()>,
    task: AbortHandle,
}

impl Feed {
    /// Follows a channel whose values hold a catalog. To be called inside a runtime.
    pub fn new<T, F>(source: watch::Receiver<T>, catalog: F) -> Feed
    where
        T: Send + Sync + 'static,
        F: Fn(&T) -> Arc<dyn Catalog> + Send + Sync + 'static,
    {
        let (beat, pulse) = watch::channel(());
        let mut changes = source.clone();
        let task = tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                changes.mark_unchanged();
                beat.send_replace(());
                tokio::time::sleep(QUIET).await;
            }
        });
        Feed { latest: Box::new(move || catalog(&source.borrow())), pulse, task: task.abort_handle() }
    }

    /// The newest catalog.
    pub(crate) fn latest(&self) -> Arc<dyn Catalog> {
        (self.latest)()
    }

    /// Whether no newer one comes any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.pulse.has_changed().is_err()
    }

    /// Changes when there is a newer one.
    pub(crate) fn pulse(&self) -> watch::Receiver<()> {
        self.pulse.clone()
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::protocol::tests::fixture::Shelf;

    #[tokio::test(start_paused = true)]
    async fn server_rule_14_the_first_change_is_told_at_once_and_a_burst_together() {
        let (sender, receiver) = watch::channel(Shelf::default());
        let feed = Feed::new(receiver, |shelf| shelf.arc());
        let mut pulse = feed.pulse();
        let start = tokio::time::Instant::now();
        let mut beats = Vec::new();
        for _ in 0..20 {
            sender.send_replace(Shelf::default());
            if tokio::time::timeout(Duration::from_millis(5), pulse.changed()).await.is_ok() {
                beats.push(start.elapsed());
            }
        }
        pulse.changed().await.expect("the feed lives");
        beats.push(start.elapsed());
        assert!(beats[0] < Duration::from_millis(5), "{beats:?}");
        assert!(beats.len() <= 4, "{beats:?}");
        assert!(beats.windows(2).all(|two| two[1] - two[0] >= QUIET), "{beats:?}");
    }
}
