//! One bucket of a quota: what its service has assigned, what is left of that, and what is to be reported. Pure; `now` is an
//! argument. No request waits for an assignment: before the first one and after the last one, the settings say what is so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{ExpiredQuota, QuotaSettings, QuotaStrategy};

/// A bucket.
#[derive(Debug)]
pub struct QuotaBucket {
    settings: Arc<QuotaSettings>,
    phase: Phase,
    tokens: Tokens,
    allowed: u64,
    denied: u64,
    /// Since when they are counted.
    since: Instant,
    used: Instant,
    applied: u64,
    /// Whether the service of the present stream knows of it.
    is_told: bool,
    /// Whether more was asked for since the last assignment.
    has_asked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Unassigned,
    /// Until then, or for ever.
    Assigned(Option<Instant>),
    /// What is said for that holds until then.
    Expired(Instant),
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaVerdict {
    /// Whether it passes.
    pub is_within: bool,
    /// When there may be room again; zero where it passes.
    pub retry_in: Duration,
    /// How many more may pass, where that is known.
    pub left: Option<u64>,
    /// Whether the service should hear of it before the next report is due.
    pub is_urgent: bool,
}

/// What became of the requests of a bucket since the last report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaUsage {
    /// How many passed.
    pub allowed: u64,
    /// How many did not.
    pub denied: u64,
    /// In which time.
    pub elapsed: Duration,
    /// How many assignments came before, on this stream.
    pub applied: u64,
}

/// A bucket that was not asked for anything for so long, and has no assignment, is forgotten.
const IDLE: Duration = Duration::from_secs(60);

impl QuotaBucket {
    /// One without an assignment.
    pub fn new(settings: &Arc<QuotaSettings>, now: Instant) -> Self {
        QuotaBucket {
            settings: Arc::clone(settings),
            phase: Phase::Unassigned,
            tokens: Tokens::new(settings.unassigned, now),
            allowed: 0,
            denied: 0,
            since: now,
            used: now,
            applied: 0,
            is_told: false,
            has_asked: false,
        }
    }

    /// Decides about one request.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::time::{Duration, Instant};
    /// use mesh_core::limits::QuotaBucket;
    /// use mesh_core::model::{DescriptorAction, QuotaSettings, QuotaStrategy, RateLimit};
    ///
    /// let id = RateLimit::by(vec![DescriptorAction::Constant { key: "name".into(), value: "all".into() }]);
    /// let settings = Arc::new(QuotaSettings::new(id, Duration::from_secs(1)));
    /// let now = Instant::now();
    /// let mut bucket = QuotaBucket::new(&settings, now);
    /// assert!(bucket.take(&settings, now).is_within, "nothing is assigned yet, and these settings let all pass");
    /// bucket.assign(QuotaStrategy::DenyAll, Some(Duration::from_secs(60)), now);
    /// let refused = bucket.take(&settings, now);
    /// assert_eq!((refused.is_within, refused.retry_in), (false, Duration::from_secs(60)));
    /// ```
    pub fn take(&mut self, settings: &Arc<QuotaSettings>, now: Instant) -> QuotaVerdict {
        if !Arc::ptr_eq(&self.settings, settings) {
            let is_other = self.settings.unassigned != settings.unassigned;
            self.settings = Arc::clone(settings);
            if is_other && self.phase == Phase::Unassigned {
                self.tokens = Tokens::new(settings.unassigned, now);
            }
        }
        self.turn(now);
        self.used = now;
        let taken = self.tokens.take(now);
        match taken {
            Ok(()) => self.allowed = self.allowed.saturating_add(1),
            Err(_) => self.denied = self.denied.saturating_add(1),
        }
        let asks = !self.is_told || (!self.has_asked && self.tokens.is_low());
        (self.is_told, self.has_asked) = (true, self.has_asked || asks);
        QuotaVerdict {
            is_within: taken.is_ok(),
            retry_in: taken.err().map_or(Duration::ZERO, |wait| self.retry_in(wait, now)),
            left: self.tokens.left(),
            is_urgent: asks,
        }
    }

    /// When who is refused may come back: when there are tokens, or the assignment is over; where neither is near, the next
    /// report may change it, unless all are refused.
    fn retry_in(&self, refill: Option<Duration>, now: Instant) -> Duration {
        let over = match self.phase {
            Phase::Assigned(until) => until.map(|until| until.saturating_duration_since(now)),
            Phase::Unassigned | Phase::Expired(_) => None,
        };
        let wait = match (self.tokens.strategy, over) {
            (QuotaStrategy::DenyAll, Some(over)) => over,
            _ => self.settings.interval,
        };
        refill.map_or(wait, |refill| refill.min(wait))
    }

    /// Takes in what the service says: so much, for so long, or for ever. Returns whether it is something new, which has to be
    /// reported.
    pub fn assign(&mut self, strategy: QuotaStrategy, ttl: Option<Duration>, now: Instant) -> bool {
        self.turn(now);
        let is_same = matches!(self.phase, Phase::Assigned(_)) && self.tokens.strategy == strategy;
        if !is_same {
            self.tokens = Tokens::new(strategy, now);
        }
        self.has_asked &= is_same;
        // What is too long for the clock is for ever.
        self.phase = Phase::Assigned(ttl.and_then(|ttl| now.checked_add(ttl)));
        self.applied += 1;
        !is_same
    }

    /// The service does not want to hear of it any more: as if no request had come yet. What was not reported is kept.
    pub fn abandon(&mut self, now: Instant) {
        self.phase = Phase::Unassigned;
        self.tokens = Tokens::new(self.settings.unassigned, now);
        (self.applied, self.is_told, self.has_asked) = (0, false, false);
    }

    /// What is to be reported, which is then counted as reported.
    pub fn report(&mut self, now: Instant) -> QuotaUsage {
        let usage = QuotaUsage {
            allowed: std::mem::take(&mut self.allowed),
            denied: std::mem::take(&mut self.denied),
            elapsed: now.saturating_duration_since(self.since),
            applied: self.applied,
        };
        (self.since, self.is_told) = (now, true);
        usage
    }

    /// It could not be reported, and is to be reported again.
    pub fn keep(&mut self, usage: &QuotaUsage) {
        self.allowed = self.allowed.saturating_add(usage.allowed);
        self.denied = self.denied.saturating_add(usage.denied);
        self.since = self.since.checked_sub(usage.elapsed).unwrap_or(self.since);
    }

    /// How many assignments have come on this stream.
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Whether its interval is over, and something is to be reported.
    pub fn is_due(&self, now: Instant) -> bool {
        (self.allowed > 0 || self.denied > 0) && now.saturating_duration_since(self.since) >= self.settings.interval
    }

    /// Whether something is to be reported.
    pub fn has_news(&self) -> bool {
        self.allowed > 0 || self.denied > 0
    }

    /// Another service, or the same one after an interruption, which knows of nothing. Returns whether it is to be told now:
    /// what is not used is told when it is.
    pub fn restart(&mut self, now: Instant) -> bool {
        (self.applied, self.has_asked) = (0, false);
        self.is_told = self.has_news() || now.saturating_duration_since(self.used) < self.settings.interval * 2;
        self.is_told
    }

    /// Whether nothing is lost when it is forgotten.
    pub fn is_idle(&mut self, now: Instant) -> bool {
        self.turn(now);
        let is_unused = now.saturating_duration_since(self.used) >= IDLE;
        self.phase == Phase::Unassigned && is_unused && !self.has_news()
    }

    /// Goes on to the next phase, where the present one is over.
    fn turn(&mut self, now: Instant) {
        if let Phase::Assigned(Some(until)) = self.phase
            && until <= now
        {
            match self.settings.expired.map(|(kind, time)| (kind, until.checked_add(time))) {
                Some((kind, over)) => {
                    self.phase = Phase::Expired(over.unwrap_or(until));
                    if let ExpiredQuota::Fallback(strategy) = kind {
                        self.tokens = Tokens::new(strategy, now);
                    }
                }
                None => self.abandon(now),
            }
        }
        if let Phase::Expired(until) = self.phase
            && until <= now
        {
            self.abandon(now);
        }
    }
}

/// Tokens of a strategy.
#[derive(Clone, Copy, Debug)]
struct Tokens {
    strategy: QuotaStrategy,
    left: u64,
    filled: Instant,
}

impl Tokens {
    fn new(strategy: QuotaStrategy, now: Instant) -> Self {
        let left = if let QuotaStrategy::Tokens { max, .. } = strategy { max } else { 0 };
        Tokens { strategy, left, filled: now }
    }

    /// Takes one; otherwise, when there is one, if that is known.
    fn take(&mut self, now: Instant) -> Result<(), Option<Duration>> {
        match self.strategy {
            QuotaStrategy::AllowAll => Ok(()),
            QuotaStrategy::DenyAll => Err(None),
            QuotaStrategy::Tokens { max, per_fill, interval } => {
                let passed = now.saturating_duration_since(self.filled);
                let fills = passed.as_nanos().checked_div(interval.as_nanos()).unwrap_or(0);
                if fills > 0 {
                    let fills = u64::try_from(fills).unwrap_or(u64::MAX);
                    self.left = self.left.saturating_add(fills.saturating_mul(per_fill)).min(max);
                    let over = u64::try_from(passed.as_nanos() % interval.as_nanos()).unwrap_or(0);
                    self.filled = now.checked_sub(Duration::from_nanos(over)).unwrap_or(now);
                }
                if self.left > 0 {
                    self.left -= 1;
                    return Ok(());
                }
                let is_filled = per_fill > 0 && max > 0 && !interval.is_zero();
                Err(is_filled.then(|| interval.saturating_sub(now.saturating_duration_since(self.filled))))
            }
        }
    }

    fn left(&self) -> Option<u64> {
        match self.strategy {
            QuotaStrategy::AllowAll => None,
            QuotaStrategy::DenyAll => Some(0),
            QuotaStrategy::Tokens { .. } => Some(self.left),
        }
    }

    /// Whether half of them are gone.
    fn is_low(&self) -> bool {
        matches!(self.strategy, QuotaStrategy::Tokens { max, .. } if self.left <= max / 2)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{DescriptorAction, RateLimit};

    const SECOND: Duration = Duration::from_secs(1);

    fn share(max: u64) -> QuotaStrategy {
        QuotaStrategy::Tokens { max, per_fill: 1, interval: SECOND * 1_000_000 }
    }

    fn settings(change: impl FnOnce(&mut QuotaSettings)) -> Arc<QuotaSettings> {
        let id = RateLimit::by(vec![DescriptorAction::Constant { key: "name".into(), value: "all".into() }]);
        let mut settings = QuotaSettings::new(id, SECOND);
        change(&mut settings);
        Arc::new(settings)
    }

    fn passes(bucket: &mut QuotaBucket, settings: &Arc<QuotaSettings>, asked: usize, now: Instant) -> usize {
        (0..asked).filter(|_| bucket.take(settings, now).is_within).count()
    }

    #[test]
    fn an_assignment_is_used_up_and_then_it_is_over_and_then_the_bucket_is_as_new() {
        let closed = (ExpiredQuota::Fallback(QuotaStrategy::DenyAll), SECOND * 30);
        let settings = settings(|settings| (settings.unassigned, settings.expired) = (share(2), Some(closed)));
        let start = Instant::now();
        let mut bucket = QuotaBucket::new(&settings, start);
        assert_eq!(passes(&mut bucket, &settings, 5, start), 2, "before the first assignment");
        assert!(bucket.assign(share(10), Some(SECOND * 60), start));
        assert_eq!(passes(&mut bucket, &settings, 7, start), 7);
        assert!(!bucket.assign(share(10), Some(SECOND * 60), start + SECOND * 30), "the same one goes on");
        assert_eq!(passes(&mut bucket, &settings, 7, start + SECOND * 89), 3, "with what it has left");
        assert_eq!(passes(&mut bucket, &settings, 7, start + SECOND * 90), 0, "it is over");
        assert_eq!(passes(&mut bucket, &settings, 7, start + SECOND * 119), 0);
        assert_eq!(passes(&mut bucket, &settings, 7, start + SECOND * 120), 2, "as new");
        assert!(bucket.assign(QuotaStrategy::AllowAll, None, start + SECOND * 120));
        assert_eq!(passes(&mut bucket, &settings, 7, start + SECOND * 100_000), 7, "for ever");
    }

    #[test]
    fn what_it_says_once_an_assignment_is_over_may_be_nothing_or_that_it_goes_on() {
        let start = Instant::now();
        for (expired, after) in [(None, 1), (Some((ExpiredQuota::Reuse, SECOND * 5)), 2)] {
            let settings = settings(|settings| (settings.unassigned, settings.expired) = (share(1), expired));
            let mut bucket = QuotaBucket::new(&settings, start);
            bucket.assign(share(3), Some(SECOND), start);
            assert_eq!(passes(&mut bucket, &settings, 1, start), 1);
            assert_eq!(passes(&mut bucket, &settings, 9, start + SECOND), after, "{expired:?}");
        }
    }

    #[test]
    fn the_service_hears_at_once_of_a_new_bucket_and_of_one_that_is_half_used() {
        let (settings, start) = (settings(|_| ()), Instant::now());
        let mut bucket = QuotaBucket::new(&settings, start);
        let urgent = |bucket: &mut QuotaBucket| bucket.take(&settings, start).is_urgent;
        assert_eq!([urgent(&mut bucket), urgent(&mut bucket)], [true, false]);
        bucket.assign(share(4), None, start);
        assert_eq!([urgent(&mut bucket), urgent(&mut bucket), urgent(&mut bucket)], [false, true, false]);
        let usage = bucket.report(start + SECOND);
        assert_eq!(usage, QuotaUsage { allowed: 5, denied: 0, elapsed: SECOND, applied: 1 });
        assert!(!bucket.has_news());
        bucket.take(&settings, start + SECOND);
        assert!(bucket.restart(start + SECOND), "a new stream is told what the last one was not");
        assert_eq!(bucket.report(start + SECOND).applied, 0);
        assert!(!bucket.restart(start + SECOND * 60), "and nothing of what is not used");
        assert!(bucket.take(&settings, start + SECOND * 60).is_urgent, "until it is");
    }

    #[test]
    fn who_is_refused_is_told_when_to_come_back() {
        let (settings, start) = (settings(|_| ()), Instant::now());
        let mut bucket = QuotaBucket::new(&settings, start);
        bucket.assign(QuotaStrategy::DenyAll, Some(SECOND * 3600), start);
        assert_eq!(bucket.take(&settings, start + SECOND).retry_in, SECOND * 3599);
        bucket.assign(share(0), Some(SECOND * 3600), start);
        assert_eq!(bucket.take(&settings, start).retry_in, SECOND, "the next report may bring some");
        let often = QuotaStrategy::Tokens { max: 1, per_fill: 1, interval: SECOND / 4 };
        bucket.assign(often, None, start);
        bucket.take(&settings, start);
        assert_eq!(bucket.take(&settings, start + SECOND / 10).retry_in, SECOND / 4 - SECOND / 10);
    }

    proptest! {
        /// Whatever comes when, no more pass than there were tokens, and everything is reported once.
        #[test]
        fn no_more_pass_than_were_assigned_and_all_of_it_is_reported(
            steps in prop::collection::vec((0_u64..3000, 0_u8..10, 0_u64..20), 1..300),
        ) {
            let settings = settings(|settings| settings.unassigned = share(1));
            let mut now = Instant::now();
            let mut bucket = QuotaBucket::new(&settings, now);
            let (mut given, mut passed, mut refused) = (1, 0, 0);
            let mut reported = (0, 0);
            for (wait, step, number) in steps {
                now += Duration::from_millis(wait);
                match step {
                    0 => {
                        let seconds = number % 4;
                        // Each is another one: the same one would go on.
                        let interval = SECOND * 1_000_000 + Duration::from_nanos(given);
                        bucket.assign(
                            QuotaStrategy::Tokens { max: number, per_fill: 1, interval },
                            Some(SECOND * u32::try_from(seconds).unwrap()),
                            now,
                        );
                        // Once it is over, the bucket is as new.
                        given += number + 1;
                    }
                    1 => {
                        let usage = bucket.report(now);
                        reported = (reported.0 + usage.allowed, reported.1 + usage.denied);
                    }
                    _ => match bucket.take(&settings, now).is_within {
                        true => passed += 1,
                        false => refused += 1,
                    },
                }
                prop_assert!(passed <= given);
            }
            let rest = bucket.report(now);
            prop_assert_eq!((reported.0 + rest.allowed, reported.1 + rest.denied), (passed, refused));
        }
    }
}
