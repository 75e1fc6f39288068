//! Reasons that are not for everybody: what a client without an identity is told in their place, and how often the log has them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_core::error::ErrorKind;

/// What is told in the place of a reason of this kind, where that speaks of the configuration. What is wrong with a request
/// itself, or with its token, is for whoever sent it.
pub(super) fn instead(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::NoRoute => Some(
            "this server has no route for the request: its log and `mesh-control status` say more, and it does itself to peers \
             with an identity",
        ),
        ErrorKind::NoListener | ErrorKind::NotServing | ErrorKind::NotServingYet | ErrorKind::Security => Some(
            "the mesh does not let this server answer: its log and `mesh-control status` say why, and it does itself to peers \
             with an identity",
        ),
        _ => None,
    }
}

/// When the log last had the reason of a refusal whose client was not told: now and then is enough.
#[derive(Clone, Debug, Default)]
pub(super) struct Untold(Arc<Mutex<Option<Instant>>>);

impl Untold {
    const PAUSE: Duration = Duration::from_secs(10);

    /// Whether it is to be told again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= Self::PAUSE);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_told_of_now_and_then() {
        let (untold, start) = (Untold::default(), Instant::now());
        let told = (0..1000).filter(|tenths| untold.is_due(start + Duration::from_millis(100 * tenths))).count();
        assert_eq!(told, 10);
    }
}
