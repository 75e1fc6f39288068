//! How long to wait before a management server is tried again.

use std::time::{Duration, Instant};

/// gRPC's connection back-off: 1 s, 1.6 times as long after every failure, 2 min at most, give or take a fifth.
const BASE: Duration = Duration::from_secs(1);
const FACTOR: f64 = 1.6;
const MAX: Duration = Duration::from_secs(120);
const JITTER: f64 = 0.2;
/// The longest wait for a server that nobody listens for. A refused dial costs the server nothing, and clients
/// must be back soon after it has restarted; the long waits are for a server that takes streams and fails them.
const MAX_REFUSED: Duration = Duration::from_secs(3);

/// How long to wait with what goes beside a stream of resources, after so many failures: 1 s, doubling to one minute, less up to half
/// of it by `jitter` (0 to 1).
pub(crate) fn pause(failures: u32, jitter: f64) -> Duration {
    let longest = BASE.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(Duration::from_secs(60));
    longest.mul_f64(0.5 + 0.5 * jitter)
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// There was at least one response: the server works (gRFC A57).
    Served,
    /// The stream ended, or could not go on, before the server was of any use.
    Failed,
    /// Nobody spoke HTTP/2 at the other end.
    Refused,
}

/// Counts the failures of one server.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failed: u32,
    refused: u32,
}

impl Backoff {
    /// When to try next after an attempt that began at `started` and ended `now`. The wait is counted from the
    /// beginning of the attempt, so that a stream which lived long is replaced at once.
    pub(crate) fn next(
        &mut self,
        attempt: Attempt,
        started: Instant,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) -> Instant {
        let wait = match attempt {
            Attempt::Served => {
                *self = Backoff::default();
                BASE
            }
            Attempt::Failed => {
                self.refused = 0;
                self.failed = self.failed.saturating_add(1);
                nth(self.failed)
            }
            Attempt::Refused => {
                // A dial is refused while the server is down: what it did before says nothing of what comes up.
                self.failed = 0;
                self.refused = self.refused.saturating_add(1);
                nth(self.refused).min(MAX_REFUSED)
            }
        };
        let spread = 1.0 - JITTER + 2.0 * JITTER * rng.f64();
        // Many clients lose a server at the same moment: even the first attempt is spread.
        let at_least = now + BASE.mul_f64(JITTER * rng.f64());
        (started + wait.mul_f64(spread)).max(at_least)
    }
}

fn nth(failure: u32) -> Duration {
    let exponent = i32::try_from(failure.saturating_sub(1)).unwrap_or(i32::MAX).min(64);
    BASE.mul_f64(FACTOR.powi(exponent)).min(MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_beside_a_stream_grows_to_a_minute_and_is_spread() {
        let at = |failures, jitter| pause(failures, jitter).as_secs_f64();
        assert_eq!([at(1, 0.0), at(1, 1.0), at(2, 1.0), at(3, 1.0)], [0.5, 1.0, 2.0, 4.0]);
        assert_eq!([at(7, 1.0), at(u32::MAX, 0.0)], [60.0, 30.0]);
    }

    /// The waits after attempts that take no time.
    fn waits(attempts: &[Attempt]) -> Vec<f64> {
        let (start, mut backoff, mut rng) = (Instant::now(), Backoff::default(), fastrand::Rng::with_seed(1));
        attempts.iter().map(|a| backoff.next(*a, start, start, &mut rng).duration_since(start).as_secs_f64()).collect()
    }

    fn about(actual: f64, expected: f64) {
        assert!((expected * 0.8..=expected * 1.2).contains(&actual), "{actual} is not about {expected}");
    }

    #[test]
    fn client_rule_09_the_back_off_is_grpcs() {
        let waits = waits(&[Attempt::Failed; 15]);
        for (wait, expected) in waits.iter().zip([1.0, 1.6, 2.56, 4.096, 6.55, 10.5, 16.8, 26.8, 42.9, 68.7, 110.0]) {
            about(*wait, expected);
        }
        about(waits[14], 120.0);
    }

    #[test]
    fn client_rule_09_a_response_resets_the_back_off() {
        let waits = waits(&[Attempt::Failed, Attempt::Failed, Attempt::Failed, Attempt::Served, Attempt::Failed]);
        about(waits[2], 2.56);
        about(waits[3], 1.0);
        about(waits[4], 1.0);
    }

    #[test]
    fn a_refused_dial_is_repeated_within_three_seconds() {
        let waits = waits(&[Attempt::Refused; 10]);
        about(waits[0], 1.0);
        about(waits[9], 3.0);
    }

    #[test]
    fn a_server_that_was_down_starts_with_a_clean_sheet() {
        let mut attempts = vec![Attempt::Failed; 9];
        attempts.extend([Attempt::Refused; 9]);
        attempts.push(Attempt::Failed);
        about(waits(&attempts)[18], 1.0);
    }

    #[test]
    fn a_stream_that_lived_long_is_replaced_almost_at_once() {
        let (start, mut backoff, mut rng) = (Instant::now(), Backoff::default(), fastrand::Rng::with_seed(1));
        let now = start + Duration::from_secs(600);
        let next = backoff.next(Attempt::Served, start, now, &mut rng);
        assert!(next >= now && next <= now + Duration::from_millis(200));
    }
}
