//! Whether an endpoint can be reached, as this process finds out by dialling it; and who is told when that changes.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::lock;
use crate::id::ClusterName;

/// The pause before an endpoint that could not be reached is dialled again, and the longest one: gRPC's back-off (1 s to
/// 2 min), shorter, since a dial costs little and an endpoint that is back is wanted.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Each pause is so many times the one before (gRPC's `connection-backoff.md`).
const GROWTH: f64 = 1.6;
/// How far a pause may be off, so that not everybody comes back at once.
const JITTER: f64 = 0.2;

/// Whether an endpoint can be reached.
#[derive(Debug, Default)]
pub(super) struct Reach {
    is_lost: AtomicBool,
    backoff: Mutex<Backoff>,
}

#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
    /// When it may be dialled again for a look.
    next: Option<Instant>,
    /// Until when somebody is taken to dial it.
    looked_for: Option<Instant>,
}

impl Reach {
    #[inline]
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    /// A dial failed. Whether that is news. Dials that overlap count as one.
    pub(super) fn lose(&self, now: Instant, random: &mut fastrand::Rng) -> bool {
        let mut backoff = lock(&self.backoff);
        if backoff.next.is_some_and(|next| now < next) {
            return false;
        }
        (backoff.next, backoff.looked_for) = (now.checked_add(pause(backoff.failures, random)), None);
        backoff.failures = backoff.failures.saturating_add(1);
        !self.is_lost.swap(true, Ordering::Relaxed)
    }

    /// A dial succeeded. Whether that is news.
    pub(super) fn find(&self) -> bool {
        if !self.is_lost() {
            return false;
        }
        *lock(&self.backoff) = Backoff::default();
        self.is_lost.swap(false, Ordering::Relaxed)
    }

    /// Whether it is to be looked for now: nobody else is told so until that came to something, or took too long.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        if !self.is_lost() {
            return false;
        }
        let mut backoff = lock(&self.backoff);
        let is_due = [backoff.next, backoff.looked_for].iter().flatten().all(|until| *until <= now);
        if is_due {
            backoff.looked_for = now.checked_add(PAUSE.1);
        }
        is_due
    }
}

/// The pause after so many failures before.
fn pause(failures: u32, random: &mut fastrand::Rng) -> Duration {
    let grown = PAUSE.0.as_secs_f64() * GROWTH.powi(failures.min(30).cast_signed());
    let off = 1.0 + JITTER * (2.0 * random.f64() - 1.0);
    Duration::from_secs_f64(grown.min(PAUSE.1.as_secs_f64()) * off)
}

/// The clusters whose endpoints are not what they were: whoever makes views takes them, and makes theirs anew.
#[derive(Default)]
pub struct HealthNews {
    changed: Mutex<HashSet<ClusterName>>,
    told: Arc<Notify>,
}

impl HealthNews {
    /// News that wake whoever waits on this.
    pub fn new(told: Arc<Notify>) -> Self {
        HealthNews { changed: Mutex::default(), told }
    }

    fn tell(&self, cluster: &ClusterName) {
        lock(&self.changed).insert(cluster.clone());
        self.told.notify_one();
    }

    /// The clusters whose endpoints changed since the last time that this was asked.
    pub fn take(&self) -> HashSet<ClusterName> {
        std::mem::take(&mut *lock(&self.changed))
    }
}

impl fmt::Debug for HealthNews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lock(&self.changed).fmt(f)
    }
}

/// Where the endpoints of one cluster tell that they are not what they were.
#[derive(Debug, Default)]
pub(super) struct Teller {
    /// `None` where nobody is told, as in tests.
    to: Option<(ClusterName, Arc<HealthNews>)>,
    lost: AtomicU32,
    told: AtomicU64,
}

impl Teller {
    pub(super) fn new(name: ClusterName, news: Arc<HealthNews>) -> Self {
        Teller { to: Some((name, news)), ..Teller::default() }
    }

    /// Whose it is; empty where nobody is told.
    pub(super) fn name(&self) -> &str {
        self.to.as_ref().map_or("", |(name, _)| name.as_str())
    }

    /// Comes after what is told: who sees the count sees that, too.
    pub(super) fn tell(&self) {
        self.told.fetch_add(1, Ordering::Release);
        if let Some((name, news)) = &self.to {
            news.tell(name);
        }
    }

    /// How often anything was told.
    pub(super) fn told(&self) -> u64 {
        self.told.load(Ordering::Acquire)
    }

    /// An endpoint more, or fewer, that cannot be reached.
    pub(super) fn count_lost(&self, more: bool) {
        let change = if more { AtomicU32::fetch_add } else { AtomicU32::fetch_sub };
        change(&self.lost, 1, Ordering::Relaxed);
    }

    /// How many endpoints cannot be reached.
    pub(super) fn lost(&self) -> u32 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_between_looks_grow_to_a_limit_and_differ() {
        for seed in 0..100 {
            let mut random = fastrand::Rng::with_seed(seed);
            for (failures, seconds) in [(0, 0.5), (1, 0.8), (2, 1.28), (7, 10.0), (u32::MAX, 10.0)] {
                let share = pause(failures, &mut random).as_secs_f64() / seconds;
                assert!((0.8..=1.2).contains(&share), "{failures}: {share}");
            }
        }
    }

    #[test]
    fn dials_that_fail_together_count_as_one_and_each_change_is_news_once() {
        let (reach, now, random) = (Reach::default(), Instant::now(), &mut fastrand::Rng::with_seed(1));
        assert!(!reach.find(), "it never was lost");
        assert!(reach.lose(now, random));
        for _ in 0..100 {
            assert!(!reach.lose(now, random));
        }
        assert!(!reach.is_due(now + Duration::from_millis(399)) && reach.is_due(now + Duration::from_millis(600)));
        assert!(!reach.is_due(now + Duration::from_millis(700)), "somebody looks for it");
        assert!(!reach.lose(now + Duration::from_millis(600), random), "it is lost already");
        assert!(!reach.is_due(now + Duration::from_millis(1239)) && reach.is_due(now + Duration::from_millis(1561)));
        assert!(reach.find() && !reach.find() && !reach.is_lost());
        assert!(reach.lose(now, random), "from the beginning");
    }
}
