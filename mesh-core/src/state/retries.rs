//! Retries of a cluster: how many there may be under way, which is exact however many requests ask at once, and how many are
//! left of those that its successes have paid for.
//!
//! A cluster where another try is of use is worth it, however much of it fails, and one that fails requests to their last try has
//! nothing but more work from it. So a request that succeeds has its retries back, whatever it took, and those of a request that
//! fails are paid for by successes, two of them each (as in gRFC A6, whose tokens a client has to be given by its service). Some
//! are kept for what fails at once, such as all that was under way to an endpoint that died; and where none is left, one is given
//! now and then, by which it is found out that retries are of use again.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{ClusterState, Shared, lock};
use crate::model::RetryLimit;

/// One retry under way, from the decision that there is to be one until it is answered or fails. One that does not
/// [begin](RetryPermit::begin) costs nothing.
#[derive(Debug)]
pub struct RetryPermit {
    shared: Arc<Shared>,
    /// What is given back if it does not begin.
    paid: u32,
}

impl RetryPermit {
    /// It begins, and counts as one. What it cost: its request has that back if it succeeds in the end ([`ClusterState::earn`]).
    pub fn begin(&mut self) -> u32 {
        self.shared.usage.retried.fetch_add(1, Ordering::Relaxed);
        std::mem::take(&mut self.paid)
    }
}

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.shared.reserve.left.fetch_add(self.paid, Ordering::Relaxed);
        self.shared.usage.retries.leave();
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

/// What a retry costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryPrice {
    /// Nothing: no server has begun with the try before.
    Nothing,
    /// What two successes have earned.
    Usual,
    /// The same, as long as more than half of what is kept is there: it can be left out.
    OfPlenty,
}

/// Why there is to be no retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooManyRetries {
    /// So many are under way, which is the limit of the configuration.
    UnderWay(u32),
    /// None is left that successes have paid for.
    Unpaid,
}

/// How many retries are kept for a cluster, as halves. A cluster with more requests under way keeps one for each of them.
const KEPT: u32 = 2 * 20;

/// What a retry costs, as halves.
const PRICE: u32 = 2;

/// Where none is left, one is given after so long.
const GIVEN_EVERY: Duration = Duration::from_secs(5);

/// What is left of the retries that were earned, as halves.
#[derive(Debug)]
pub(super) struct Reserve {
    left: AtomicU32,
    /// When one was given, or none was left for the first time.
    given: Mutex<Option<Instant>>,
}

impl Default for Reserve {
    fn default() -> Self {
        Reserve { left: AtomicU32::new(KEPT), given: Mutex::new(None) }
    }
}

impl Reserve {
    /// What was paid; `None` where too little is left.
    fn pay(&self, price: RetryPrice, now: Instant) -> Option<u32> {
        let kept = match price {
            RetryPrice::Nothing => return Some(0),
            RetryPrice::Usual => 0,
            RetryPrice::OfPlenty => KEPT / 2,
        };
        let less = |left: u32| left.checked_sub(PRICE).filter(|left| *left >= kept);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
            return Some(PRICE);
        }
        if price != RetryPrice::Usual {
            return None;
        }
        let mut given = lock(&self.given);
        let last = given.get_or_insert(now);
        (now.saturating_duration_since(*last) >= GIVEN_EVERY).then(|| {
            *last = now;
            0
        })
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

    /// Counts a retry in, if the cluster allows one more. Where its configuration says how many there may be, that counts,
    /// and otherwise what successes have paid for.
    ///
    /// # Errors
    /// Why there is to be none.
    pub fn retry(&self, limit: RetryLimit, price: RetryPrice, now: Instant) -> Result<RetryPermit, TooManyRetries> {
        let usage = &self.shared.usage;
        let (most, price) = match limit {
            RetryLimit::PaidBySuccesses => (u32::MAX, price),
            RetryLimit::AtMost(most) => (most, RetryPrice::Nothing),
            RetryLimit::Budget { share, at_least, interval } => {
                let requests = match interval.is_zero() {
                    true => usage.requests(),
                    false => lock(&self.shared.beginnings).count(interval, now),
                };
                (share.of(requests).max(at_least), RetryPrice::Nothing)
            }
        };
        usage.retries.enter(most).ok_or_else(|| TooManyRetries::UnderWay(usage.retries()))?;
        let mut permit = RetryPermit { shared: Arc::clone(&self.shared), paid: 0 };
        let Some(paid) = self.shared.reserve.pay(price, now) else {
            usage.overflow();
            return Err(TooManyRetries::Unpaid);
        };
        permit.paid = paid;
        Ok(permit)
    }

    /// A request succeeded: it has back what its retries cost ([`RetryPermit::begin`]), and earns half a retry, as long as there are
    /// not enough of them.
    #[inline]
    pub fn earn(&self, paid: u32) {
        let kept = KEPT.max(self.shared.usage.requests().saturating_mul(2));
        let reserve = &self.shared.reserve.left;
        // Nearly always there are, and nothing is written.
        if reserve.load(Ordering::Relaxed) < kept {
            reserve.fetch_add(paid.saturating_add(1), Ordering::Relaxed);
        }
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
                        held.lock().unwrap().extend(cluster.retry(limit, RetryPrice::Nothing, now));
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
            let held: Vec<_> =
                std::iter::from_fn(|| cluster.retry(limit, RetryPrice::Usual, Instant::now()).ok()).collect();
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
        let allowed = |limit, now| {
            std::iter::from_fn(|| cluster.retry(limit, RetryPrice::Usual, now).ok()).collect::<Vec<_>>().len()
        };
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

    /// How many retries the cluster allows now.
    fn left(cluster: &Arc<ClusterState>, price: RetryPrice) -> u32 {
        let mut count = 0;
        while let Ok(mut permit) = cluster.retry(RetryLimit::PaidBySuccesses, price, Instant::now()) {
            permit.begin();
            count += 1;
        }
        assert_eq!(
            cluster.retry(RetryLimit::PaidBySuccesses, price, Instant::now()).unwrap_err(),
            TooManyRetries::Unpaid
        );
        assert_eq!(cluster.usage().retries(), 0, "what is not paid for is not under way");
        count
    }

    /// Requests of which each fails so many times, and then succeeds or, where its policy wants no more, does not.
    fn served(cluster: &Arc<ClusterState>, failures: u32, attempts: u32) -> bool {
        let mut paid = 0;
        for attempt in 1..=attempts {
            if attempt > failures {
                cluster.earn(paid);
                return true;
            }
            if attempt < attempts {
                match cluster.retry(RetryLimit::PaidBySuccesses, RetryPrice::Usual, Instant::now()) {
                    Ok(mut permit) => paid += permit.begin(),
                    Err(_) => return false,
                }
            }
        }
        false
    }

    #[test]
    fn retries_that_are_of_use_do_not_run_out() {
        // However many tries it takes; of those that fail to the last, as many as successes pay for.
        for (failures, attempts, expected) in [(1, 4, 1000), (2, 3, 1000), (3, 4, 1000), (4, 4, 0)] {
            let cluster = Arc::new(ClusterState::default());
            let served = (0..1000).filter(|_| served(&cluster, failures, attempts)).count();
            assert_eq!(served, expected, "{failures} of {attempts}");
        }
        // One in ten requests fails to the last: the others pay for that, and for one in three they could not.
        let cluster = Arc::new(ClusterState::default());
        let all = (0..1000).filter(|at| served(&cluster, if at % 10 == 0 { 4 } else { 1 }, 4)).count();
        assert_eq!(all, 900);
        let all = (0..1000).filter(|at| served(&cluster, if at % 3 == 0 { 4 } else { 1 }, 4)).count();
        assert!(all < 300, "{all}");
    }

    #[test]
    fn a_retry_that_does_not_begin_costs_nothing() {
        let cluster = Arc::new(ClusterState::default());
        for _ in 0..100 {
            cluster.retry(RetryLimit::PaidBySuccesses, RetryPrice::Usual, Instant::now()).unwrap();
        }
        assert_eq!(left(&cluster, RetryPrice::Usual), 20);
    }

    #[test]
    fn where_none_is_left_one_is_given_now_and_then_and_its_success_brings_the_others_back() {
        let cluster = Arc::new(ClusterState::default());
        let began = Instant::now();
        let retry = |seconds| {
            let now = began + Duration::from_secs(seconds);
            cluster.retry(RetryLimit::PaidBySuccesses, RetryPrice::Usual, now).map(|mut permit| permit.begin())
        };
        let given: Vec<u64> = (0..100).filter(|second| *second > 20 && retry(*second).is_ok()).collect();
        assert_eq!(given.len(), 20 + 11, "{given:?}: 20 that are kept, and then one of each five seconds");
        // It was of use, and so are more.
        cluster.earn(retry(200).unwrap());
        cluster.earn(0);
        cluster.earn(retry(200).unwrap());
        assert!(retry(201).is_ok());
    }

    #[test]
    fn retries_are_paid_for_by_successes() {
        let cluster = Arc::new(ClusterState::default());
        assert_eq!((left(&cluster, RetryPrice::OfPlenty), left(&cluster, RetryPrice::Usual)), (10, 10));
        (0..9).for_each(|_| cluster.earn(0));
        assert_eq!((left(&cluster, RetryPrice::OfPlenty), left(&cluster, RetryPrice::Usual)), (0, 4));
        assert!(
            cluster.retry(RetryLimit::PaidBySuccesses, RetryPrice::Nothing, Instant::now()).is_ok(),
            "of what was not processed"
        );
        for limit in [
            RetryLimit::Budget { share: Fraction::new(0, 100), at_least: 1, interval: Duration::ZERO },
            RetryLimit::AtMost(1),
        ] {
            assert!(
                cluster.retry(limit, RetryPrice::Usual, Instant::now()).is_ok(),
                "what the configuration says takes its place"
            );
        }
        // Of a long time without failures no more is kept than of a short one.
        (0..1000).for_each(|_| cluster.earn(0));
        assert_eq!(left(&cluster, RetryPrice::Usual), 20);
    }

    #[test]
    fn all_that_is_under_way_can_fail_at_once() {
        let cluster = Arc::new(ClusterState::default());
        let endpoint = cluster.endpoint(&EndpointId::new(std::net::SocketAddr::from(([10, 0, 0, 1], 1))), false);
        let _busy: Vec<_> = (0..300).map(|_| endpoint.enter()).collect();
        (0..1000).for_each(|_| cluster.earn(0));
        assert_eq!(left(&cluster, RetryPrice::Usual), 300);
    }
}
