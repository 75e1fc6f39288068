//! Token buckets without a timer and without a lock: the state of one is the moment at which it was empty, if nothing had
//! been taken since but what was. So filling is no work, and taking is one exchange of a number.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::model::TokenBucket;

/// A moment, in nanoseconds. It begins so late that a bucket can be full from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticks(u64);

/// What moments are counted from.
#[derive(Clone, Copy, Debug)]
pub struct Epoch(Instant);

impl Epoch {
    const START: u64 = 1 << 62;

    /// From this moment on.
    pub fn new(now: Instant) -> Self {
        Epoch(now)
    }

    /// A moment; one before the epoch is the epoch.
    #[inline]
    pub fn ticks(self, at: Instant) -> Ticks {
        let since = at.saturating_duration_since(self.0);
        Ticks(Self::START.saturating_add(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// How fast a bucket fills, ready to be calculated with.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    config: TokenBucket,
    /// From empty to full, in nanoseconds.
    window: u64,
    /// A token, in nanoseconds, where that is a whole number; else zero.
    token: u64,
    /// What to multiply by, to divide by it: 2^64 divided by it, rounded up.
    inverse: u64,
}

impl From<TokenBucket> for Rate {
    fn from(config: TokenBucket) -> Self {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let is_whole = config.interval().as_nanos().is_multiple_of(u128::from(config.per_fill()));
        let token = if is_whole { nanos(config.time_of(1)) } else { 0 };
        let inverse = (u64::MAX).checked_div(token).map_or(0, |inverse| inverse.saturating_add(1));
        Rate { window: nanos(config.window()), token, inverse, config }
    }
}

impl Rate {
    /// What it was made of.
    pub fn config(&self) -> &TokenBucket {
        &self.config
    }

    /// Whether it lets less through than another one, in the long run.
    pub fn is_stricter_than(&self, other: &Rate) -> bool {
        let per = |one: &Rate, of: &Rate| u128::from(one.config.per_fill()) * of.config.interval().as_nanos();
        per(self, other) < per(other, self)
    }

    #[inline]
    fn cost(&self, hits: u64) -> u64 {
        match self.token {
            0 => u64::try_from(self.config.time_of(hits).as_nanos()).unwrap_or(u64::MAX),
            token => token.saturating_mul(hits),
        }
    }

    /// How many tokens come in some nanoseconds, at most all.
    #[inline]
    fn tokens(&self, nanos: u64) -> u32 {
        let tokens = match self.token {
            0 => (u128::from(nanos) * u128::from(self.config.per_fill()) / self.config.interval().as_nanos()) as u64,
            1 => nanos,
            // A division takes longer than all the rest. The product is one too large at most.
            token => {
                let about = ((u128::from(nanos) * u128::from(self.inverse)) >> 64) as u64;
                if about.saturating_mul(token) > nanos { about.saturating_sub(1) } else { about }
            }
        };
        u32::try_from(tokens).unwrap_or(u32::MAX).min(self.config.max())
    }
}

/// What became of a request to take something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Whether there was enough.
    pub is_within: bool,
    /// How many tokens are left.
    pub left: u32,
    /// How long it takes until it is full again.
    pub full_in: Duration,
    /// How long it takes until there is enough; zero where there was.
    pub enough_in: Duration,
}

/// A bucket after it was asked: what a decision needs of it. What is told of it takes longer than to take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drawn {
    /// Whether there was enough.
    pub(super) is_within: bool,
    /// The moment at which it was empty, as it is now.
    empty: u64,
}

impl Drawn {
    /// How many tokens are left.
    #[inline]
    pub(super) fn left(self, rate: &Rate, now: Ticks) -> u32 {
        rate.tokens(now.0.saturating_sub(self.empty))
    }

    /// What is told of it.
    #[inline]
    pub(super) fn told(self, rate: &Rate, hits: u64, now: Ticks) -> Taken {
        let full = now.0.saturating_sub(rate.window);
        let missing = if self.is_within { 0 } else { self.empty.saturating_add(rate.cost(hits)).saturating_sub(now.0) };
        Taken {
            is_within: self.is_within,
            left: self.left(rate, now),
            full_in: Duration::from_nanos(self.empty.saturating_sub(full)),
            enough_in: Duration::from_nanos(missing),
        }
    }
}

/// A bucket. It is as it is whatever the configuration becomes: its rate is told with each request.
#[derive(Debug)]
pub struct Bucket(AtomicU64);

impl Default for Bucket {
    /// A full one.
    fn default() -> Self {
        Bucket(AtomicU64::new(0))
    }
}

impl Bucket {
    /// Takes tokens, where there are so many; all of them, or none.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use mesh_core::limits::{Bucket, Epoch};
    /// use mesh_core::model::TokenBucket;
    ///
    /// let start = Instant::now();
    /// let (bucket, epoch) = (Bucket::default(), Epoch::new(start));
    /// let rate = TokenBucket::new(2, 1, Duration::from_secs(1))?.into();
    /// let mut take = |after| bucket.take(&rate, 1, epoch.ticks(start + Duration::from_millis(after))).is_within;
    /// assert!(take(0) && take(0) && !take(0) && !take(999) && take(1000));
    /// # Ok::<(), mesh_core::error::Invalid>(())
    /// ```
    #[inline]
    pub fn take(&self, rate: &Rate, hits: u64, now: Ticks) -> Taken {
        self.draw(rate, hits, now).told(rate, hits, now)
    }

    /// The same, without what is told of it.
    #[inline]
    pub(super) fn draw(&self, rate: &Rate, hits: u64, now: Ticks) -> Drawn {
        let cost = rate.cost(hits);
        let full = now.0.saturating_sub(rate.window);
        let mut empty = self.0.load(Ordering::Relaxed);
        loop {
            let from = empty.max(full);
            let next = from.saturating_add(cost);
            if next > now.0 {
                return Drawn { is_within: false, empty: from };
            }
            match self.0.compare_exchange_weak(empty, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Drawn { is_within: true, empty: next },
                Err(present) => empty = present,
            }
        }
    }

    /// Gives back what was taken.
    pub fn give_back(&self, rate: &Rate, hits: u64) {
        let cost = rate.cost(hits);
        _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty| Some(empty.saturating_sub(cost)));
    }

    /// Goes on with another rate: what it was full of, it is full of.
    pub fn change(&self, from: &Rate, to: &Rate, now: Ticks) {
        _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty| Some(moved(empty, from, to, now)));
    }
}

/// When a bucket is empty that is to be as full as it is, at another rate.
fn moved(empty: u64, from: &Rate, to: &Rate, now: Ticks) -> u64 {
    let fill = now.0.saturating_sub(empty).min(from.window);
    let fill = u128::from(fill) * u128::from(to.window) / u128::from(from.window.max(1));
    now.0.saturating_sub(u64::try_from(fill).unwrap_or(u64::MAX))
}

/// Buckets for as many keys as there is room for, of which the fullest go first: those that are used least. Which key
/// has one is known by a hash of it alone, in a table that nobody locks: a key has its place in one of some groups, and a
/// new key takes the place of the fullest bucket of its group. Where two requests of new keys take one place at once, one of
/// them may be counted for the other.
#[derive(Debug)]
pub struct KeyedBuckets {
    groups: Box<[Group]>,
}

/// How many buckets a group has. With twice the room that was asked for, a group that has to give up one which is still in use
/// is rare.
const GROUP: usize = 16;

#[derive(Debug)]
struct Group {
    /// Hashes of keys; zero where there is none.
    keys: [AtomicU64; GROUP],
    buckets: [Bucket; GROUP],
}

impl Default for Group {
    fn default() -> Self {
        Group { keys: [const { AtomicU64::new(0) }; GROUP], buckets: Default::default() }
    }
}

impl KeyedBuckets {
    /// The most keys that there may be room for.
    pub const MOST: u32 = 1 << 20;

    /// Room for so many keys, and never more than [`KeyedBuckets::MOST`].
    pub fn new(keys: u32) -> Self {
        let groups = (2 * keys.clamp(1, Self::MOST) as usize).div_ceil(GROUP).next_power_of_two();
        KeyedBuckets { groups: (0..groups).map(|_| Group::default()).collect() }
    }

    /// How many buckets there may be.
    pub fn room(&self) -> usize {
        self.groups.len() * GROUP
    }

    /// How many keys have one.
    pub fn len(&self) -> usize {
        self.groups.iter().flat_map(|group| &group.keys).filter(|key| key.load(Ordering::Relaxed) != 0).count()
    }

    /// Whether no key has one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bucket of a key, by its hash.
    #[inline]
    pub fn get(&self, hash: u64) -> &Bucket {
        // Zero is nobody's.
        let hash = hash | 1;
        let position = (hash >> 32) as usize & (self.groups.len() - 1);
        // The number of groups is a power of two.
        let group = self.groups.get(position).expect("a position within the table");
        match group.keys.iter().zip(&group.buckets).find(|(key, _)| key.load(Ordering::Relaxed) == hash) {
            Some((_, bucket)) => bucket,
            None => group.give(hash),
        }
    }

    /// Goes on with another rate.
    pub fn change(&self, from: &Rate, to: &Rate, now: Ticks) {
        self.groups.iter().flat_map(|group| &group.buckets).for_each(|bucket| bucket.change(from, to, now));
    }
}

impl Group {
    /// The place of the fullest bucket, which is full for who has it now.
    fn give(&self, hash: u64) -> &Bucket {
        let places = self.keys.iter().zip(&self.buckets);
        let fullest = places.min_by_key(|(key, bucket)| match key.load(Ordering::Relaxed) {
            0 => 0,
            _ => bucket.0.load(Ordering::Relaxed).max(1),
        });
        let (key, bucket) = fullest.expect("a group has buckets");
        bucket.0.store(0, Ordering::Relaxed);
        key.store(hash, Ordering::Relaxed);
        bucket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(max: u32, per_fill: u32, interval: Duration) -> Rate {
        TokenBucket::new(max, per_fill, interval).unwrap().into()
    }

    #[test]
    fn a_bucket_lets_through_what_it_has_and_then_as_much_as_it_gets() {
        let start = Instant::now();
        let epoch = Epoch::new(start);
        for (max, per_fill, interval, hits) in
            [(10, 10, SECOND, 1), (1, 3, SECOND, 1), (100, 7, SECOND * 3, 2), (5, 1, SECOND / 1000, 1)]
        {
            let (rate, bucket) = (rate(max, per_fill, interval), Bucket::default());
            // An hour at every millisecond.
            let asked = 200_000_u64;
            let step = Duration::from_micros(777);
            let within = (0..asked).filter(|at| {
                let now = epoch.ticks(start + step * u32::try_from(*at).unwrap());
                bucket.take(&rate, hits, now).is_within
            });
            let within = within.count() as f64 * hits as f64;
            let expected = f64::from(max)
                + (step * u32::try_from(asked).unwrap()).as_secs_f64() / interval.as_secs_f64() * f64::from(per_fill);
            let most = asked as f64 * hits as f64;
            let expected = expected.min(most);
            assert!((within / expected - 1.0).abs() < 0.02, "{within} of {expected}");
        }
    }

    #[test]
    fn it_says_what_is_left_and_when_to_come_back() {
        let start = Instant::now();
        let (epoch, bucket, rate) = (Epoch::new(start), Bucket::default(), rate(3, 1, SECOND * 2));
        let now = epoch.ticks(start + SECOND);
        let taken = bucket.take(&rate, 2, now);
        assert_eq!((taken.is_within, taken.left, taken.full_in), (true, 1, SECOND * 4));
        let refused = bucket.take(&rate, 3, now);
        assert_eq!((refused.is_within, refused.left, refused.enough_in), (false, 1, SECOND * 4));
        assert_eq!(bucket.take(&rate, 0, now).left, 1, "who only asks takes nothing");
        bucket.give_back(&rate, 2);
        assert_eq!(bucket.take(&rate, 0, now).left, 3);
    }

    #[test]
    fn what_is_left_is_divided_exactly() {
        let mut random = fastrand::Rng::with_seed(7);
        // Ten years at most.
        for token in [1, 2, 3, 7, 1000, 999_999_937, 6_000_000_000, u64::from(u32::MAX)] {
            let max = u32::try_from(300_000_000_000_000_000 / token).unwrap_or(u32::MAX);
            let rate = rate(max, 1, Duration::from_nanos(token));
            for round in 0..10_000 {
                let whole = token * random.u64(0..=u64::from(max));
                let nanos = if round % 2 == 0 { whole } else { whole.saturating_sub(1) };
                assert_eq!(u64::from(rate.tokens(nanos)), nanos / token, "{nanos} / {token}");
            }
        }
    }

    #[test]
    fn what_it_is_full_of_it_is_full_of_at_another_rate() {
        let start = Instant::now();
        let (epoch, bucket) = (Epoch::new(start), Bucket::default());
        let (old, new) = (rate(10, 10, SECOND), rate(1000, 1000, SECOND * 60));
        let now = epoch.ticks(start + SECOND);
        bucket.take(&old, 7, now);
        bucket.change(&old, &new, now);
        assert_eq!(bucket.take(&new, 0, now).left, 300);
        bucket.change(&new, &old, now);
        assert_eq!(bucket.take(&old, 0, now).left, 3);
    }

    #[test]
    fn the_buckets_of_keys_are_bounded_and_the_fullest_go_first() {
        let start = Instant::now();
        let (epoch, rate) = (Epoch::new(start), rate(10, 10, SECOND * 3600));
        let keys = KeyedBuckets::new(100);
        assert_eq!(keys.room(), 256);
        let hash = |key: u64| key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let now = epoch.ticks(start + SECOND);
        // Ten who use up all that they may.
        for key in 1..=10 {
            assert_eq!((0..20).filter(|_| keys.get(hash(key)).take(&rate, 1, now).is_within).count(), 10);
        }
        // A flood of others, each once.
        for key in 1000..200_000 {
            assert!(keys.get(hash(key)).take(&rate, 1, now).is_within);
        }
        assert!(keys.len() <= keys.room());
        for key in 1..=10 {
            assert!(!keys.get(hash(key)).take(&rate, 1, now).is_within, "{key} is remembered");
        }
    }

    /// 10,000 distinct keys a second, of which a thousand come again and again and ask for twice their limit. An hour of it is a
    /// measurement (`micro limits`).
    #[test]
    fn ten_thousand_keys_a_second_are_bounded_and_counted_exactly() {
        let start = Instant::now();
        let (epoch, rate) = (Epoch::new(start), rate(20, 1, SECOND));
        let keys = KeyedBuckets::new(20_000);
        let hash = |key: u64| {
            let mixed = key.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        };
        let (known, others, seconds) = (1000, 9000, 60);
        let mut within = 0_u64;
        for second in 0..seconds {
            for half in 0..2 {
                let now = epoch.ticks(start + SECOND * second + SECOND / 2 * half);
                within += (0..known).filter(|key| keys.get(hash(*key)).take(&rate, 1, now).is_within).count() as u64;
                for other in 0..others / 2 {
                    let key = known + u64::from(second) * others + u64::from(half) * others / 2 + other;
                    assert!(keys.get(hash(key)).take(&rate, 1, now).is_within);
                }
            }
        }
        let expected = (known * (20 + u64::from(seconds))) as f64;
        assert!((within as f64 / expected - 1.0).abs() < 0.02, "{within} of {expected}");
        assert!(keys.len() <= keys.room());
    }
}
