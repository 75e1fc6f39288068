//! How many requests there may be at a time, by how long they take (Envoy's gradient controller).
//!
//! The time that requests take without load is known, or measured now and then with few of them at a time. In between the limit
//! follows what they take: it is multiplied by the one time over the other, and has room for a burst on top.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::model::{AdaptiveConcurrency, UnloadedTime};
use crate::state::lock;

/// So many intervals at the least limit in a row mean that the unloaded time is wrong: it is measured again.
const LEAST_IN_A_ROW: u32 = 5;

/// Measuring ends without a result where, for so many intervals, all places are taken and none of them becomes free: long streams would
/// keep everybody else out.
const STUCK: u32 = 10;

/// How many requests there are and may be, which outlives its configuration.
#[derive(Debug)]
pub struct Concurrency {
    in_flight: AtomicU32,
    limit: AtomicU32,
    times: Times,
    calculation: Mutex<Calculation>,
}

#[derive(Debug)]
struct Calculation {
    /// What requests take without load, once it is known.
    unloaded: Option<Duration>,
    /// Since when it is measured, and the limit to go back to.
    measuring: Option<(Instant, u32)>,
    /// Since when requests find no place meanwhile, and none ends.
    stuck_since: Option<Instant>,
    measure_at: Instant,
    calculate_at: Instant,
    least_in_a_row: u32,
}

impl Concurrency {
    /// By this configuration, from now on.
    pub fn new(config: &AdaptiveConcurrency, now: Instant) -> Self {
        let limit = match config.unloaded {
            UnloadedTime::Fixed(_) => config.least,
            UnloadedTime::Measured { at_a_time, .. } => at_a_time.min(config.most),
        };
        Concurrency {
            in_flight: AtomicU32::new(0),
            limit: AtomicU32::new(limit),
            times: Times::default(),
            calculation: Mutex::new(Calculation {
                unloaded: None,
                measuring: matches!(config.unloaded, UnloadedTime::Measured { .. }).then_some((now, limit)),
                stuck_since: None,
                measure_at: now,
                calculate_at: now,
                least_in_a_row: 0,
            }),
        }
    }

    /// How many requests there may be.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// How many there are.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether one more may be, which is one from here on: [`leave`](Self::leave) says that it is over. What can be left out gives
    /// way before the limit.
    #[inline]
    pub fn enter(&self, config: &AdaptiveConcurrency, is_sheddable: bool, now: Instant) -> bool {
        self.has_place(config, is_sheddable)
            || (self.gives_up_measuring(config, now) && self.has_place(config, is_sheddable))
    }

    #[inline]
    fn has_place(&self, config: &AdaptiveConcurrency, is_sheddable: bool) -> bool {
        let limit = self.limit();
        // One has a place in any case, where nobody else is.
        let limit = if is_sheddable { config.sheddable.of(limit).max(1) } else { limit };
        let more = |in_flight: u32| (in_flight < limit).then_some(in_flight + 1);
        // In one order with who waits: whoever finds no place and then waits is seen by the next one that leaves.
        self.in_flight.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// Whether it does, as of now: the limit is what it was, or the most where nothing is known.
    #[cold]
    fn gives_up_measuring(&self, config: &AdaptiveConcurrency, now: Instant) -> bool {
        let Ok(mut calculation) = self.calculation.try_lock() else { return false };
        let (Some((_, limit)), UnloadedTime::Measured { interval, .. }) = (calculation.measuring, &config.unloaded)
        else {
            return false;
        };
        let since = *calculation.stuck_since.get_or_insert(now);
        if now.saturating_duration_since(since) < config.interval * STUCK {
            return false;
        }
        (calculation.measuring, calculation.stuck_since) = (None, None);
        calculation.measure_at = now + *interval;
        self.times.clear();
        self.set(config, if calculation.unloaded.is_some() { limit } else { config.most });
        true
    }

    /// One that has entered is over.
    #[inline]
    pub fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
    }

    /// One was answered that began at `started`. `random` is from 0 to 1.
    pub fn note_answered(&self, config: &AdaptiveConcurrency, started: Instant, now: Instant, random: f64) {
        // Whoever finds it taken leaves it to who has it.
        let Ok(mut calculation) = self.calculation.try_lock() else {
            self.times.note(now.saturating_duration_since(started));
            return;
        };
        calculation.stuck_since = None;
        // Those that began before would tell of the load that there was.
        if calculation.measuring.is_none_or(|(since, _)| started >= since) {
            self.times.note(now.saturating_duration_since(started));
        }
        self.calculate(config, &mut calculation, now, random);
    }

    /// The configuration is another one.
    pub fn change(&self, config: &AdaptiveConcurrency, now: Instant) {
        let mut calculation = lock(&self.calculation);
        calculation.calculate_at = calculation.calculate_at.min(now + config.interval);
        if let UnloadedTime::Measured { interval, .. } = config.unloaded {
            calculation.measure_at = calculation.measure_at.min(now + interval);
        }
        match (&config.unloaded, calculation.measuring.as_mut()) {
            (UnloadedTime::Fixed(_), Some((_, limit))) => {
                self.set(config, *limit);
                calculation.measuring = None;
            }
            (UnloadedTime::Measured { at_a_time, .. }, Some(_)) => {
                self.limit.store((*at_a_time).min(config.most), Ordering::Relaxed);
            }
            (_, None) => self.set(config, self.limit()),
        }
    }

    fn set(&self, config: &AdaptiveConcurrency, limit: u32) {
        self.limit.store(limit.max(config.least).min(config.most), Ordering::Relaxed);
    }

    fn calculate(&self, config: &AdaptiveConcurrency, calculation: &mut Calculation, now: Instant, random: f64) {
        let unloaded = match &config.unloaded {
            UnloadedTime::Fixed(time) => *time,
            UnloadedTime::Measured { interval, jitter, requests, at_a_time } => {
                if calculation.measuring.is_none() && now >= calculation.measure_at {
                    self.measure(config, calculation, *at_a_time, now);
                }
                if let Some((_, limit)) = calculation.measuring {
                    if self.times.count() < u64::from(*requests) {
                        return;
                    }
                    calculation.unloaded = self.times.take(config.percentile.per_million());
                    calculation.measuring = None;
                    let jitter = f64::from(jitter.per_million()) / 1e6 * random;
                    calculation.measure_at = now + *interval + interval.mul_f64(jitter);
                    calculation.calculate_at = now + config.interval;
                    self.set(config, limit);
                    return;
                }
                let Some(unloaded) = calculation.unloaded else { return };
                unloaded
            }
        };
        if now < calculation.calculate_at {
            return;
        }
        calculation.calculate_at = now + config.interval;
        let Some(loaded) = self.times.take(config.percentile.per_million()) else { return };
        let before = self.limit();
        let limit = next_limit(before, unloaded, config.buffer.per_million(), loaded);
        self.set(config, limit);
        let is_least = self.limit() == config.least && before == config.least && config.least < config.most;
        calculation.least_in_a_row = if is_least { calculation.least_in_a_row + 1 } else { 0 };
        if let UnloadedTime::Measured { at_a_time, .. } = config.unloaded
            && calculation.least_in_a_row >= LEAST_IN_A_ROW
        {
            self.measure(config, calculation, at_a_time, now);
        }
    }

    fn measure(&self, config: &AdaptiveConcurrency, calculation: &mut Calculation, at_a_time: u32, now: Instant) {
        calculation.measuring = Some((now, self.limit()));
        calculation.least_in_a_row = 0;
        self.times.clear();
        self.limit.store(at_a_time.min(config.most), Ordering::Relaxed);
    }
}

/// The limit that follows from what requests take.
fn next_limit(limit: u32, unloaded: Duration, buffer_per_million: u32, loaded: Duration) -> u32 {
    let unloaded = unloaded.as_secs_f64() * (1.0 + f64::from(buffer_per_million) / 1e6);
    let gradient = (unloaded / loaded.as_secs_f64().max(1e-6)).clamp(0.5, 2.0);
    let limit = f64::from(limit) * gradient;
    // A cast of a float saturates.
    (limit + limit.sqrt()) as u32
}

/// Counts of times by their size: of each power of two of microseconds sixteen.
#[derive(Debug)]
struct Times([AtomicU32; Times::BUCKETS]);

impl Default for Times {
    fn default() -> Self {
        Times([const { AtomicU32::new(0) }; Times::BUCKETS])
    }
}

impl Times {
    /// The longest is some 19 hours.
    const BUCKETS: usize = 33 * 16;

    fn note(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.0.get(Times::bucket(micros)).or(self.0.last()) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn bucket(micros: u64) -> usize {
        if micros < 16 {
            return micros as usize;
        }
        let power = micros.ilog2();
        // The four bits below the first.
        let of_power = (micros >> (power - 4)) & 15;
        (power as usize - 3) * 16 + of_power as usize
    }

    /// The least time of a bucket.
    fn micros(bucket: usize) -> u64 {
        match bucket / 16 {
            0 => bucket as u64,
            power => (16 + (bucket as u64 & 15)) << (power - 1),
        }
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|bucket| u64::from(bucket.load(Ordering::Relaxed))).sum()
    }

    fn clear(&self) {
        self.0.iter().for_each(|bucket| bucket.store(0, Ordering::Relaxed));
    }

    /// The time that this share is not above, of those that were noted since the last time; `None` of none.
    fn take(&self, per_million: u32) -> Option<Duration> {
        let counts: Vec<u32> = self.0.iter().map(|bucket| bucket.swap(0, Ordering::Relaxed)).collect();
        let all: u64 = counts.iter().map(|count| u64::from(*count)).sum();
        let wanted = (all * u64::from(per_million)).div_ceil(1_000_000).max(1);
        let mut passed = 0;
        let at = counts.iter().position(|count| {
            passed += u64::from(*count);
            passed >= wanted
        })?;
        Some(Duration::from_micros(Times::micros(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Fraction;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn buckets_of_times_lie_side_by_side() {
        for bucket in 0..Times::BUCKETS {
            let micros = Times::micros(bucket);
            assert_eq!(Times::bucket(micros), bucket);
            assert_eq!(Times::bucket(Times::micros(bucket + 1) - 1), bucket);
        }
    }

    #[test]
    fn the_limit_follows_what_requests_take() {
        for (limit, unloaded, loaded, expected) in
            [(100, 10, 10, 136), (100, 10, 5, 214), (100, 10, 1000, 57), (10, 8, 20, 7), (u32::MAX, 10, 1, u32::MAX)]
        {
            assert_eq!(next_limit(limit, MILLI * unloaded, 250_000, MILLI * loaded), expected, "{limit} {loaded}");
        }
    }

    /// Requests come without pause, as many at a time as may be: with more of them than the server has room for, each takes longer
    /// in proportion.
    fn run(config: &AdaptiveConcurrency, concurrency: &Concurrency, from: Instant, room: u32, rounds: u32) -> Instant {
        let mut now = from;
        for _ in 0..rounds {
            let entered = (0..2_000).filter(|_| concurrency.enter(config, false, now)).count() as u32;
            let took = MILLI * 10 * entered.max(room) / room;
            let started = now;
            now += took;
            for _ in 0..entered {
                concurrency.note_answered(config, started, now, 0.5);
                concurrency.leave();
            }
        }
        now
    }

    #[test]
    fn a_server_takes_on_what_it_has_room_for_and_comes_back_after_it_had_less() {
        let (config, now) = (AdaptiveConcurrency::default(), Instant::now());
        let concurrency = Concurrency::new(&config, now);
        assert_eq!(concurrency.limit(), 3, "it measures first");
        let now = run(&config, &concurrency, now, 100, 500);
        let at = concurrency.limit();
        assert!((100..=200).contains(&at), "{at}");
        let now = run(&config, &concurrency, now, 20, 200);
        let at = concurrency.limit();
        assert!((20..=60).contains(&at), "{at}");
        run(&config, &concurrency, now, 100, 500);
        let at = concurrency.limit();
        assert!((100..=200).contains(&at), "{at}");
        assert_eq!(concurrency.in_flight(), 0);
    }

    #[test]
    fn what_can_be_left_out_has_a_share_and_a_fixed_limit_stays() {
        let (config, now) = (AdaptiveConcurrency::fixed(10), Instant::now());
        let concurrency = Concurrency::new(&config, now);
        let enter =
            |is_sheddable, asked: usize| (0..asked).filter(|_| concurrency.enter(&config, is_sheddable, now)).count();
        assert_eq!(enter(true, 20), 8);
        assert_eq!(enter(false, 20), 2);
        (0..10).for_each(|_| concurrency.leave());
        run(&config, &concurrency, now, 1, 100);
        assert_eq!(concurrency.limit(), 10);
        let one = AdaptiveConcurrency { sheddable: Fraction::default(), ..AdaptiveConcurrency::fixed(10) };
        assert!(concurrency.enter(&one, true, now), "where there is nobody else, there is room");
        assert!(!concurrency.enter(&one, true, now));
    }

    #[test]
    fn another_configuration_goes_on_from_the_limit_that_there_is() {
        let (config, now) = (AdaptiveConcurrency::default(), Instant::now());
        let concurrency = Concurrency::new(&config, now);
        let now = run(&config, &concurrency, now, 100, 500);
        let before = concurrency.limit();
        concurrency.change(&config, now);
        assert_eq!(concurrency.limit(), before);
        concurrency.change(&AdaptiveConcurrency { most: 50, ..config.clone() }, now);
        assert_eq!(concurrency.limit(), 50);
        concurrency.change(&AdaptiveConcurrency::fixed(70), now);
        assert_eq!(concurrency.limit(), 70);
    }

    #[test]
    fn a_limit_that_stays_at_its_least_has_the_time_measured_again() {
        let (config, now) = (AdaptiveConcurrency::default(), Instant::now());
        let concurrency = Concurrency::new(&config, now);
        let now = run(&config, &concurrency, now, 100, 500);
        // The server is a slower one from here on: ten times, without load.
        let mut now = now;
        for _ in 0..200 {
            let started = now;
            now += MILLI * 100;
            let entered = (0..2_000).filter(|_| concurrency.enter(&config, false, now)).count();
            for _ in 0..entered {
                concurrency.note_answered(&config, started, now, 0.5);
                concurrency.leave();
            }
        }
        assert!(concurrency.limit() > 100, "{}", concurrency.limit());
    }

    #[test]
    fn long_requests_that_hold_all_places_end_the_measuring() {
        let (config, now) = (AdaptiveConcurrency::default(), Instant::now());
        let concurrency = Concurrency::new(&config, now);
        assert_eq!((0..5).filter(|_| concurrency.enter(&config, false, now)).count(), 3);
        let early = now + config.interval * (STUCK - 1);
        assert!(!concurrency.enter(&config, false, early));
        // One that ends says that they do.
        concurrency.note_answered(&config, now, early, 0.5);
        let late = now + config.interval * STUCK;
        assert!(!concurrency.enter(&config, false, late));
        assert!(concurrency.enter(&config, false, late + config.interval * STUCK));
        assert_eq!(concurrency.limit(), config.most, "nothing is known yet");
    }
}
