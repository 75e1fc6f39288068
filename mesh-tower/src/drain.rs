//! Leaving without losing a request: first tell, then wait, then close.
//!
//! `begin` unsubscribes the listeners, so the control plane sends no more clients here; for the lame-duck time
//! the server still accepts, answering with `connection: close` or GOAWAY; then it stops accepting and every
//! connection ends with its last request.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How far a drain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not begun.
    Serving,
    /// Still accepting, while clients learn that this server is leaving.
    LameDuck,
    /// No longer accepting; connections end with their last request.
    Closing,
}

/// The drain of a mesh. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drain {
    phase: Arc<watch::Sender<Phase>>,
    lame_duck: Duration,
}

impl Drain {
    /// A drain that has not begun.
    pub fn new(lame_duck: Duration) -> Self {
        Drain { phase: Arc::new(watch::Sender::new(Phase::Serving)), lame_duck }
    }

    /// Drains: returns when the lame-duck time is over and listeners have stopped accepting. Connections may
    /// still be finishing then. Dropping the future does not stop the drain; calling it again waits for the
    /// same end. Needs a tokio runtime.
    pub async fn begin(&self) {
        let first = self.phase.send_if_modified(|phase| {
            let first = *phase == Phase::Serving;
            if first {
                *phase = Phase::LameDuck;
            }
            first
        });
        if first {
            let (phase, lame_duck) = (Arc::clone(&self.phase), self.lame_duck);
            tokio::spawn(async move {
                tokio::time::sleep(lame_duck).await;
                phase.send_replace(Phase::Closing);
            });
        }
        self.reached(Phase::Closing).await;
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until it has come this far.
    pub async fn reached(&self, phase: Phase) {
        let mut watched = self.phase.subscribe();
        // The sender lives as long as `self`, so this waits for the phase and nothing else.
        let _ = watched.wait_for(|present| *present >= phase).await;
    }
}
