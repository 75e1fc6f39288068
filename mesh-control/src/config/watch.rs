//! When to look at a directory again: soon after the operating system says that something changed there,
//! and every two seconds in case it does not (network file systems, a directory that was replaced).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::load::Reach;

const POLL: Duration = Duration::from_secs(2);
/// Several files are often written in one go.
const QUIET: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// Watches one directory, or a tree.
pub struct Watcher {
    touched: Arc<Notify>,
    // Kept for its drop, which ends the watch.
    _system: Option<RecommendedWatcher>,
}

impl Watcher {
    /// Starts to watch. Where the operating system cannot, polling alone remains.
    pub fn new(dir: &Path, reach: Reach) -> Watcher {
        let touched = Arc::new(Notify::new());
        let system = system_watcher(dir, reach, touched.clone());
        if let Err(error) = &system {
            warn!(%error, "configuration changes are noticed by polling only");
        }
        Watcher { touched, _system: system.ok() }
    }

    /// Returns when the operating system has told of a change since the last look.
    pub(crate) async fn noticed(&self) {
        self.touched.notified().await;
    }

    /// Returns when it is time to look again. Cancelling loses nothing.
    pub async fn changed(&self) {
        if timeout(POLL, self.noticed()).await.is_err() {
            return;
        }
        let settle = async { while timeout(QUIET, self.noticed()).await.is_ok() {} };
        tokio::select! {
            () = settle => {}
            () = sleep(LONGEST_WAIT) => {}
        }
    }
}

fn system_watcher(dir: &Path, reach: Reach, touched: Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading a file is an event too; looking again because of one's own look would never end.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            touched.notify_one();
        }
    })?;
    let mode = match reach {
        Reach::Directory => RecursiveMode::NonRecursive,
        Reach::Tree => RecursiveMode::Recursive,
    };
    watcher.watch(dir, mode)?;
    Ok(watcher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn a_change_is_noticed_and_a_silent_directory_is_polled() {
        let dir = tempfile::tempdir().unwrap();
        let watcher = Watcher::new(dir.path(), Reach::Directory);
        std::fs::write(dir.path().join("a.yaml"), "a").unwrap();
        timeout(Duration::from_secs(30), watcher.changed()).await.expect("noticed or polled");
        let start = Instant::now();
        timeout(Duration::from_secs(30), watcher.changed()).await.expect("polled");
        assert!(start.elapsed() >= QUIET);
    }
}
