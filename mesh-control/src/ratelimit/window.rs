//! Windows of time, and what is counted in one: pure, `now` is the time since 1970.
//!
//! They begin at multiples of their length since 1970, as those of envoyproxy/ratelimit do, so that all replicas agree on them
//! without a word; a month has 30 days, and a year 365.

use std::time::Duration;

/// Which counter: a digest, so that nothing a caller sends decides how much is kept.
pub type Key = [u8; 16];

/// How long a window is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day, of UTC.
    Day,
    /// Seven days.
    Week,
    /// Thirty days.
    Month,
    /// 365 days.
    Year,
}

impl Unit {
    /// All of them, the shortest first.
    pub const ALL: [Unit; 7] = [Unit::Second, Unit::Minute, Unit::Hour, Unit::Day, Unit::Week, Unit::Month, Unit::Year];

    /// Its word in rule files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Unit::Second => "second",
            Unit::Minute => "minute",
            Unit::Hour => "hour",
            Unit::Day => "day",
            Unit::Week => "week",
            Unit::Month => "month",
            Unit::Year => "year",
        }
    }

    /// Its length in seconds.
    pub const fn seconds(self) -> u64 {
        const DAY: u64 = 24 * 3600;
        match self {
            Unit::Second => 1,
            Unit::Minute => 60,
            Unit::Hour => 3600,
            Unit::Day => DAY,
            Unit::Week => 7 * DAY,
            Unit::Month => 30 * DAY,
            Unit::Year => 365 * DAY,
        }
    }

    /// The number of the window that a time is in.
    pub const fn window(self, now: Duration) -> u64 {
        now.as_secs() / self.seconds()
    }

    /// How long it is until the next window begins, in whole seconds and never none.
    pub const fn until_next(self, now: Duration) -> Duration {
        Duration::from_secs(self.seconds() - now.as_secs() % self.seconds())
    }

    /// Which part of the window before lies in the last [`seconds`](Self::seconds), in millionths.
    pub fn share_before(self, now: Duration) -> u64 {
        let length = u128::from(self.seconds()) * 1_000_000_000;
        let left = length - now.as_nanos() % length;
        u64::try_from(left * u128::from(MILLION) / length).unwrap_or(MILLION)
    }
}

/// A whole, in the parts that shares are said in.
pub(super) const MILLION: u64 = 1_000_000;

/// How hits of the past count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Those of the present window. At its edge, twice the limit may come within a short time.
    #[default]
    Fixed,
    /// Those of the present window, and of the one before the part that is not over yet: close to any stretch of its length. What is
    /// refused is not counted, so that a caller who goes on asking has the rate of the limit, and not nothing.
    Sliding,
}

/// Hits that ask for room under one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// The counter.
    pub key: Key,
    /// The length of its windows.
    pub unit: Unit,
    /// How it counts.
    pub algorithm: Algorithm,
    /// How many hits a window has room for.
    pub limit: u32,
    /// How many there are; given back where negative, and with none it is only looked.
    pub hits: i64,
}

/// The most hits of one request: more than any limit has room for. So no counter overflows within the life of a server.
pub(super) const MOST_HITS: u64 = 1 << 32;

/// What was used under one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    window: u64,
    used: u64,
    before: u64,
}

impl Counter {
    /// Counts the hits, and says how many there are with them: it is over the limit if they are more. `script.lua` does the same.
    pub fn take(&mut self, charge: &Charge, now: Duration) -> u64 {
        self.turn(charge.unit.window(now));
        let carried = match charge.algorithm {
            Algorithm::Fixed => 0,
            Algorithm::Sliding => {
                let share = u128::from(self.before) * u128::from(charge.unit.share_before(now)) / u128::from(MILLION);
                u64::try_from(share).unwrap_or(u64::MAX)
            }
        };
        let used = self.used.saturating_add_signed(charge.hits);
        let with = carried.saturating_add(used);
        if charge.algorithm == Algorithm::Fixed || charge.hits <= 0 || with <= u64::from(charge.limit) {
            self.used = used;
        }
        with
    }

    /// Turns over to a window. A clock may be a little behind the one that counted before, and then it is still that one's.
    fn turn(&mut self, window: u64) {
        if window == self.window || window.checked_add(1) == Some(self.window) {
            return;
        }
        let is_next = self.window.checked_add(1) == Some(window);
        *self = Counter { window, used: 0, before: if is_next { self.used } else { 0 } };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn charge(algorithm: Algorithm, limit: u32, hits: i64) -> Charge {
        Charge { key: Key::default(), unit: Unit::Minute, algorithm, limit, hits }
    }

    #[test]
    fn a_fixed_window_counts_what_comes_in_it() {
        let mut counter = Counter::default();
        let mut take =
            |second: u64, hits: i64| counter.take(&charge(Algorithm::Fixed, 3, hits), Duration::from_secs(second));
        assert_eq!([take(60, 1), take(90, 2), take(119, 1)], [1, 3, 4]);
        // Looked at, given back, and never less than none.
        assert_eq!([take(119, 0), take(119, -2), take(119, -9), take(119, 1)], [4, 2, 0, 1]);
        assert_eq!(take(120, 1), 1, "the next window");
        assert_eq!(take(119, 1), 2, "a clock that is a little behind");
        assert_eq!(take(3600, 1), 1);
        assert_eq!(take(60, 1), 1, "a clock that was set back");
    }

    #[test]
    fn a_sliding_window_takes_in_the_part_of_the_one_before_that_is_not_over_and_nothing_that_was_refused() {
        let mut counter = Counter::default();
        let mut take = |millis: u64, hits: i64| {
            counter.take(&charge(Algorithm::Sliding, 100, hits), Duration::from_millis(millis))
        };
        assert_eq!(take(119_000, 100), 100);
        assert_eq!(take(119_500, 50), 150, "refused");
        assert_eq!(take(120_000, 1), 101, "all of the window before still counts");
        assert_eq!(take(150_000, 50), 100, "half of it, and nothing that was refused");
        assert_eq!(take(240_000, 100), 100, "two windows on");
    }

    #[test]
    fn windows_end_where_their_length_says() {
        for unit in Unit::ALL {
            let length = unit.seconds();
            let now = Duration::from_secs(7 * length + length / 2);
            assert_eq!(unit.window(now), 7, "{unit:?}");
            assert_eq!(unit.window(now + unit.until_next(now)), 8, "{unit:?}");
            assert_eq!(unit.share_before(Duration::from_secs(7 * length)), MILLION);
        }
        assert_eq!(Unit::Second.share_before(Duration::from_millis(7_500)), MILLION / 2);
    }

    proptest! {
        /// However hits come, a fixed window lets in as many as its limit, and a sliding one within any of its windows no more.
        #[test]
        fn no_window_lets_in_more_than_its_limit(
            steps in prop::collection::vec((0_u64..20_000, 1_i64..4), 1..200),
            limit in 1_u32..20,
            is_sliding: bool,
        ) {
            let algorithm = if is_sliding { Algorithm::Sliding } else { Algorithm::Fixed };
            let (mut counter, mut now) = (Counter::default(), Duration::from_secs(6000));
            let (mut window, mut inside) = (0, 0);
            for (millis, hits) in steps {
                now += Duration::from_millis(millis);
                if Unit::Minute.window(now) != window {
                    (window, inside) = (Unit::Minute.window(now), 0);
                }
                if counter.take(&charge(algorithm, limit, hits), now) <= u64::from(limit) {
                    inside += hits;
                }
                prop_assert!(inside <= i64::from(limit));
            }
        }
    }
}
