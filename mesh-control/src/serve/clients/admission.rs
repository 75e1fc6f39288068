//! How fast streams may begin. After a restart everybody comes back at once; what they ask for is the
//! same work whether it is done in one second or in ten, and the memory for it is not.

use std::time::{Duration, Instant};

/// A rate with a burst, as a virtual clock (GCRA): every stream takes the next slot.
#[derive(Debug)]
pub(crate) struct Admission {
    interval: Duration,
    burst: Duration,
    patience: Duration,
    next: Option<Instant>,
}

/// Too many wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crowded;

impl Admission {
    /// `burst` streams at once and `rate` a second after that; who would wait longer than `patience` is
    /// sent away.
    pub(crate) fn new(rate: u32, burst: u32, patience: Duration) -> Admission {
        let interval = Duration::from_secs(1) / rate.max(1);
        Admission { interval, burst: interval * burst, patience, next: None }
    }

    /// How long the next stream has to wait.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<Duration, Crowded> {
        let slot = self.next.map_or(now, |next| next.max(now));
        let wait = slot.saturating_duration_since(now).saturating_sub(self.burst);
        if wait > self.patience {
            return Err(Crowded);
        }
        self.next = Some(slot + self.interval);
        Ok(wait)
    }

    /// Whether it has forgotten everybody who was admitted.
    pub(crate) fn is_at_rest(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| next <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_the_rest_is_spread_and_a_crowd_is_sent_away() {
        let now = Instant::now();
        let mut admission = Admission::new(100, 10, Duration::from_secs(1));
        let waits: Vec<_> = (0..200).map(|_| admission.admit(now)).collect();
        assert!(waits[..11].iter().all(|wait| *wait == Ok(Duration::ZERO)));
        assert_eq!(waits[20], Ok(Duration::from_millis(100)));
        assert_eq!(waits[110], Ok(Duration::from_secs(1)));
        assert_eq!(waits[111], Err(Crowded));
        assert_eq!(admission.admit(now + Duration::from_secs(10)), Ok(Duration::ZERO));
    }
}
