//! How a client holds back what would fail (Envoy's admission control; the client-side throttling of Google's SRE book): the more
//! of the last requests failed, the more are not sent.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::model::AdmissionControl;
use crate::state::lock;

const SECOND: Duration = Duration::from_secs(1);

/// How many requests there were and succeeded, second by second. It outlives its configuration.
#[derive(Debug, Default)]
pub struct Admission(Mutex<Seconds>);

#[derive(Debug, Default)]
struct Seconds {
    each: VecDeque<Second>,
    /// The sum of each.
    requests: u64,
    successes: u64,
}

#[derive(Debug)]
struct Second {
    began: Instant,
    requests: u64,
    successes: u64,
}

impl Admission {
    /// A request ended so.
    pub fn note(&self, config: &AdmissionControl, is_success: bool, now: Instant) {
        let mut seconds = lock(&self.0);
        seconds.forget(config.window, now);
        if seconds.each.back().is_none_or(|last| now.saturating_duration_since(last.began) >= SECOND) {
            seconds.each.push_back(Second { began: now, requests: 0, successes: 0 });
        }
        if let Some(last) = seconds.each.back_mut() {
            last.requests += 1;
            last.successes += u64::from(is_success);
            seconds.requests += 1;
            seconds.successes += u64::from(is_success);
        }
    }

    /// How likely a request is not sent, from 0 to 1.
    pub fn rejection(&self, config: &AdmissionControl, now: Instant) -> f64 {
        let mut seconds = lock(&self.0);
        seconds.forget(config.window, now);
        let per_second = seconds.requests as f64 / config.window.as_secs_f64().max(1.0);
        match per_second < f64::from(config.least_per_second) {
            true => 0.0,
            false => rejection(config, seconds.requests, seconds.successes),
        }
    }
}

impl Seconds {
    fn forget(&mut self, window: Duration, now: Instant) {
        while let Some(first) = self.each.front()
            && now.saturating_duration_since(first.began) >= window
        {
            self.requests -= first.requests;
            self.successes -= first.successes;
            self.each.pop_front();
        }
    }
}

/// The share that is held back, of so many requests of which so many succeeded.
fn rejection(config: &AdmissionControl, requests: u64, successes: u64) -> f64 {
    let share = |fraction: crate::model::Fraction| f64::from(fraction.per_million()) / 1e6;
    let enough = share(config.enough);
    if enough <= 0.0 {
        return 0.0;
    }
    let (requests, successes) = (requests as f64, successes as f64);
    let too_many = ((requests - successes / enough) / (requests + 1.0)).max(0.0);
    // Less than in step is in step, as in Envoy.
    let aggression = f64::from(config.aggression.max(1_000)) / 1e3;
    too_many.powf(1.0 / aggression).min(share(config.most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Fraction;

    #[test]
    fn the_more_fail_the_more_are_held_back() {
        let usual = AdmissionControl::default();
        let steep = AdmissionControl { aggression: 2_000, ..usual.clone() };
        let flat = AdmissionControl { aggression: 1, ..usual.clone() };
        let never = AdmissionControl { enough: Fraction::default(), ..usual.clone() };
        for (config, requests, successes, expected) in [
            (&usual, 0, 0, 0.0),
            (&usual, 100, 100, 0.0),
            (&usual, 100, 95, 0.0),
            (&usual, 99, 47, 0.4953),
            (&usual, 99, 0, 0.8),
            (&steep, 99, 47, 0.7037),
            (&flat, 99, 47, 0.4953),
            (&never, 99, 0, 0.0),
        ] {
            let found = rejection(config, requests, successes);
            assert!((found - expected).abs() < 1e-3, "{requests} {successes}: {found}");
        }
    }

    #[test]
    fn what_was_long_ago_does_not_count_and_few_are_let_pass() {
        let (config, admission, now) = (AdmissionControl::default(), Admission::default(), Instant::now());
        for second in 0..10 {
            (0..10).for_each(|_| admission.note(&config, false, now + SECOND * second));
        }
        let at = |config: &AdmissionControl, second: u32| admission.rejection(config, now + SECOND * second);
        let few = AdmissionControl { least_per_second: 4, ..config.clone() };
        assert_eq!((at(&config, 10), at(&few, 10)), (0.8, 0.0));
        assert!(at(&config, 38) > 0.0);
        assert_eq!(at(&config, 39), 0.0);
        assert!(lock(&admission.0).each.is_empty());
    }
}
