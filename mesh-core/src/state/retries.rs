//! Retries under way, by cluster: how many there may be is exact however many requests ask at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{ClusterState, Shared, lock};
use crate::model::RetryLimit;

/// One retry under way, from the decision that there is to be one until it is answered or fails.
#[derive(Debug)]
pub struct RetryPermit(Arc<Shared>);

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.0.usage.retries.leave();
    }
}

/// In so many parts the time of a budget passes: a request counts for a part less than the whole at least.
const PARTS: u64 = 20;

/// How many requests began, and when: so many in each part of a budget's time, of those parts that count.
#[derive(Debug, Default)]
pub(super) struct Beginnings {
    /// The time of the budget, and when the first part began.
    of: Option<(Duration, Instant)>,
    /// The number of a part, and how many began in it.
    parts: [(u64, u32); PARTS as usize],
}

impl Beginnings {
    /// The parts that count, and the number of the present one. Those of another time are forgotten.
    fn at(&mut self, interval: Duration, now: Instant) -> (&mut [(u64, u32); PARTS as usize], u64) {
        let first = match self.of {
            Some((known, first)) if known == interval => first,
            _ => {
                *self = Beginnings { of: Some((interval, now)), ..Beginnings::default() };
                now
            }
        };
        let part = (interval.as_nanos() / u128::from(PARTS)).max(1);
        let passed = now.saturating_duration_since(first).as_nanos() / part;
        // From one on, so that parts in which nothing began do not count.
        (&mut self.parts, u64::try_from(passed).unwrap_or(u64::MAX - 1) + 1)
    }

    fn note(&mut self, interval: Duration, now: Instant) {
        let (parts, number) = self.at(interval, now);
        if let Some(part) = usize::try_from(number % PARTS).ok().and_then(|at| parts.get_mut(at)) {
            *part = if part.0 == number { (number, part.1.saturating_add(1)) } else { (number, 1) };
        }
    }

    fn count(&mut self, interval: Duration, now: Instant) -> u32 {
        let (parts, number) = self.at(interval, now);
        let counting = parts.iter().filter(|(of, _)| *of > 0 && of + PARTS > number);
        counting.fold(0, |sum: u32, (_, began)| sum.saturating_add(*began))
    }
}

impl ClusterState {
    /// Notes that a request begins, where the limit of retries goes by when they began.
    #[inline]
    pub fn note_beginning(&self, limit: RetryLimit, now: impl FnOnce() -> Instant) {
        if let RetryLimit::Budget { interval, .. } = limit
            && !interval.is_zero()
        {
            lock(&self.shared.beginnings).note(interval, now());
        }
    }

    /// Counts a retry in, if the cluster allows one more.
    pub fn retry(&self, limit: RetryLimit, now: Instant) -> Option<RetryPermit> {
        let usage = &self.shared.usage;
        let most = match limit {
            RetryLimit::AtMost(most) => most,
            RetryLimit::Budget { share, at_least, interval } => {
                let requests = match interval.is_zero() {
                    true => usage.requests(),
                    false => lock(&self.shared.beginnings).count(interval, now),
                };
                share.of(requests).max(at_least)
            }
        };
        usage.retries.enter(most)?;
        Some(RetryPermit(Arc::clone(&self.shared)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::EndpointId;
    use crate::model::Fraction;

    #[test]
    fn there_are_never_more_retries_than_the_limit_however_many_ask() {
        let cluster = Arc::new(ClusterState::default());
        let (limit, now) = (RetryLimit::AtMost(10), Instant::now());
        let held = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        held.lock().unwrap().extend(cluster.retry(limit, now));
                        assert!(cluster.usage().retries() <= 10);
                    }
                });
            }
        });
        assert_eq!((held.lock().unwrap().len(), cluster.usage().retries()), (10, 10));
        held.lock().unwrap().clear();
        assert_eq!(cluster.usage().retries(), 0);
    }

    #[test]
    fn a_budget_is_a_share_of_what_is_in_flight_and_some_in_any_case() {
        let cluster = Arc::new(ClusterState::default());
        let endpoint =
            |port| cluster.endpoint(&EndpointId::new(std::net::SocketAddr::from(([10, 0, 0, 1], port))), false);
        let endpoints = [endpoint(1), endpoint(2)];
        for (share, at_least, in_flight, expected) in
            [(20, 3, 0, 3), (20, 3, 10, 3), (20, 3, 100, 20), (0, 0, 100, 0), (100, 0, 7, 7), (25, 0, 7, 1)]
        {
            let limit = RetryLimit::Budget { share: Fraction::new(share, 100), at_least, interval: Duration::ZERO };
            let _busy: Vec<_> = (0..in_flight).map(|at| endpoints[at % 2].enter()).collect();
            let held: Vec<_> = std::iter::from_fn(|| cluster.retry(limit, Instant::now())).collect();
            assert_eq!(held.len(), expected, "{share}% of {in_flight}, at least {at_least}");
        }
    }

    #[test]
    fn a_budget_with_a_time_counts_what_began_within_it() {
        let began = Instant::now();
        let after = |millis| began + Duration::from_millis(millis);
        let budget = |seconds| RetryLimit::Budget {
            share: Fraction::new(50, 100),
            at_least: 0,
            interval: Duration::from_secs(seconds),
        };
        let cluster = ClusterState::default();
        let allowed = |limit, now| std::iter::from_fn(|| cluster.retry(limit, now)).collect::<Vec<_>>().len();
        for millis in [0, 0, 10, 900, 900, 900] {
            cluster.note_beginning(budget(1), || after(millis));
        }
        // (when, half of what began within a second before, give or take a twentieth of that)
        for (millis, expected) in [(900, 3), (949, 3), (1000, 1), (1849, 1), (1900, 0), (1_000_000, 0)] {
            assert_eq!(allowed(budget(1), after(millis)), expected, "{millis}");
        }
        cluster.note_beginning(budget(1), || after(2_000_000));
        cluster.note_beginning(budget(1), || after(2_000_000));
        assert_eq!(allowed(budget(1), after(2_000_100)), 1);
        // Another time counts anew, and what is in flight does not count.
        let endpoint = cluster.endpoint(&EndpointId::new(std::net::SocketAddr::from(([10, 0, 0, 1], 1))), false);
        let _busy = [endpoint.enter(), endpoint.enter()];
        assert_eq!(allowed(budget(2), after(2_000_100)), 0);
    }
}
