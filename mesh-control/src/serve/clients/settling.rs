//! How long after its start mesh-control waits for the workloads that were there before.
//!
//! Our library dials a server that was down at least every 3.6 seconds, and then may have to wait for its turn
//! ([`Admission`](super::admission::Admission)): while a crowd waits, those who are missing are still on their way.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Between the turn of a stream and the registration of its workload.
const REGISTRATION: Duration = Duration::from_millis(500);

/// When mesh-control has settled; moves away while streams wait for their turn, and no further than `latest`.
#[derive(Debug)]
pub(crate) struct Settling {
    ends_at: Mutex<Instant>,
    latest: Instant,
}

impl Settling {
    /// `settle` after the start, and at most `crowd` later.
    pub(crate) fn new(start: Instant, settle: Duration, crowd: Duration) -> Settling {
        Settling { ends_at: Mutex::new(start + settle), latest: start + settle + crowd }
    }

    /// A stream begins, once it has waited so long for its turn.
    pub(crate) fn on_stream(&self, wait: Duration, now: Instant) {
        let mut ends_at = self.lock();
        if !wait.is_zero() && now < *ends_at {
            *ends_at = (now + wait + REGISTRATION).clamp(*ends_at, self.latest);
        }
    }

    /// When mesh-control has settled, as far as is known.
    pub(crate) fn ends_at(&self) -> Instant {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Instant> {
        self.ends_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_that_comes_back_is_waited_for_and_nobody_else_is() {
        let (start, seconds) = (Instant::now(), Duration::from_secs);
        let settling = Settling::new(start, seconds(4), seconds(15));
        let ends = |settling: &Settling| settling.ends_at().duration_since(start).as_secs_f64();
        settling.on_stream(Duration::ZERO, start + seconds(3));
        settling.on_stream(seconds(1), start + seconds(1));
        assert_eq!(ends(&settling), 4.0);
        settling.on_stream(seconds(9), start + seconds(2));
        settling.on_stream(seconds(1), start + seconds(5));
        assert_eq!(ends(&settling), 11.5);
        settling.on_stream(seconds(14), start + seconds(10));
        assert_eq!(ends(&settling), 19.0, "not for ever");
        settling.on_stream(seconds(14), start + seconds(19));
        assert_eq!(ends(&settling), 19.0, "settled is settled");

        let settled = Settling::new(start, Duration::ZERO, seconds(15));
        settled.on_stream(seconds(1), start);
        assert_eq!(settled.ends_at(), start);
    }
}
