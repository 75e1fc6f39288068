//! Active health checks: when an endpoint is asked whether it is well, and what its answers make of it.
//!
//! [`Checks`] is what is known of one endpoint. Who asks, and how, is a matter of the data plane; `now` and chance are
//! arguments. Rules are Envoy's (`health_checker_impl.cc`).

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::HealthCheck;

/// What one check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    /// The endpoint is well.
    Passed,
    /// It is well, and wants to be asked after all others (`x-envoy-degraded`).
    Degraded,
    /// No answer, not in time, or one that counts as a single failure.
    Failed,
    /// It said that it is not well: once is enough.
    Unhealthy,
    /// It was not asked: this process could not.
    Skipped,
}

/// What checks made of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Checked {
    /// There was none yet.
    #[default]
    Never = 0,
    /// It is healthy.
    Healthy = 1,
    /// It is healthy, and to be picked after all others.
    Degraded = 2,
    /// It is not healthy.
    Unhealthy = 3,
}

/// What is known of one endpoint.
#[derive(Debug, Default)]
pub struct Checks {
    checked: AtomicU8,
    turn: Mutex<Turn>,
}

#[derive(Debug, Default)]
struct Turn {
    /// When the next check is; `None` before the first, and while one is under way.
    next: Option<Instant>,
    is_under_way: bool,
    /// Whether nobody had called the cluster when the next one was planned.
    is_unused: bool,
    failures: u32,
    successes: u32,
}

impl Checks {
    /// What the checks so far made of it.
    #[inline]
    pub fn checked(&self) -> Checked {
        match self.checked.load(Ordering::Relaxed) {
            1 => Checked::Healthy,
            2 => Checked::Degraded,
            3 => Checked::Unhealthy,
            _ => Checked::Never,
        }
    }

    fn turn(&self) -> std::sync::MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the next check is due; `None` while one is under way. The first time that this is asked, the first check is
    /// planned. `is_called` says whether the cluster has ever been called: the first call brings the next check forward.
    pub fn due(
        &self,
        config: &HealthCheck,
        is_called: bool,
        now: Instant,
        random: &mut fastrand::Rng,
    ) -> Option<Instant> {
        let mut turn = self.turn();
        if turn.is_under_way {
            return None;
        }
        // A config with a shorter interval than the one before does not wait for what that planned.
        let longest = match is_called && std::mem::take(&mut turn.is_unused) {
            true => config.interval.min(LONGEST),
            false => longest(config),
        };
        let longest = now.checked_add(longest).unwrap_or(now);
        let planned =
            turn.next.map_or_else(|| now + part(config.initial_jitter.min(LONGEST), random), |next| next.min(longest));
        turn.next = Some(planned);
        Some(planned)
    }

    /// Notes that a check is under way: no other is due until [`Checks::note`] says what came of it.
    pub fn begin(&self) {
        self.turn().is_under_way = true;
    }

    /// Notes what a check came to, and plans the next one. Whether the endpoint is not what it was. `is_called` says
    /// whether the cluster has ever been called.
    pub fn note(
        &self,
        config: &HealthCheck,
        outcome: CheckOutcome,
        is_called: bool,
        now: Instant,
        random: &mut fastrand::Rng,
    ) -> bool {
        let mut turn = self.turn();
        let before = self.checked();
        let after = turn.judge(config, outcome, before);
        // A count that has begun is an edge, too: the endpoint is about to change.
        let passes = matches!(outcome, CheckOutcome::Passed | CheckOutcome::Degraded);
        let is_edge = match before {
            Checked::Unhealthy => passes,
            Checked::Healthy | Checked::Degraded => !passes,
            Checked::Never => true,
        };
        let base = match is_called {
            _ if outcome == CheckOutcome::Skipped => config.interval,
            true => usual(config, passes, is_edge),
            false if passes => config.no_traffic_healthy_interval.unwrap_or(config.no_traffic_interval),
            false => config.no_traffic_interval,
        };
        let percent = base.saturating_mul(config.interval_jitter_percent) / 100;
        let jitter = part(percent, random).saturating_add(part(config.interval_jitter, random));
        let pause = base.saturating_add(jitter).min(LONGEST);
        (turn.is_under_way, turn.is_unused) = (false, !is_called);
        turn.next = now.checked_add(pause);
        self.checked.store(after as u8, Ordering::Relaxed);
        before != after
    }

    /// Notes that the endpoint said of itself, in an answer to some request, that it is to get no more. Whether that is
    /// news.
    pub fn fail(&self) -> bool {
        let mut turn = self.turn();
        (turn.successes, turn.failures) = (0, 0);
        self.checked.swap(Checked::Unhealthy as u8, Ordering::Relaxed) != Checked::Unhealthy as u8
    }
}

impl Turn {
    fn judge(&mut self, config: &HealthCheck, outcome: CheckOutcome, before: Checked) -> Checked {
        match outcome {
            CheckOutcome::Skipped => before,
            CheckOutcome::Passed | CheckOutcome::Degraded => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                let well = if outcome == CheckOutcome::Passed { Checked::Healthy } else { Checked::Degraded };
                let is_back = before != Checked::Unhealthy || self.successes >= config.healthy_threshold;
                if is_back { well } else { Checked::Unhealthy }
            }
            CheckOutcome::Failed | CheckOutcome::Unhealthy => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                let is_out = outcome == CheckOutcome::Unhealthy || self.failures >= config.unhealthy_threshold;
                match before {
                    // The first one decides: nothing good is known of it.
                    Checked::Never => Checked::Unhealthy,
                    _ if is_out => Checked::Unhealthy,
                    before => before,
                }
            }
        }
    }
}

/// The interval of a cluster that is called.
fn usual(config: &HealthCheck, passes: bool, is_edge: bool) -> Duration {
    let unhealthy = config.unhealthy_interval.unwrap_or(config.interval);
    match (passes, is_edge) {
        (true, false) => config.interval,
        (true, true) => config.healthy_edge_interval.unwrap_or(config.interval),
        (false, false) => unhealthy,
        (false, true) => config.unhealthy_edge_interval.unwrap_or(unhealthy),
    }
}

/// Longer pauses are "never", and a clock cannot add them to the present.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The longest pause that there can be.
fn longest(config: &HealthCheck) -> Duration {
    let edges = [config.healthy_edge_interval, config.unhealthy_edge_interval, config.unhealthy_interval];
    let others = [Some(config.interval), Some(config.no_traffic_interval), config.no_traffic_healthy_interval];
    let base = edges.into_iter().chain(others).flatten().max().unwrap_or_default();
    let jitter = base.saturating_mul(config.interval_jitter_percent) / 100;
    base.saturating_add(jitter).saturating_add(config.interval_jitter).max(config.initial_jitter).min(LONGEST)
}

/// Any part of a time.
fn part(whole: Duration, random: &mut fastrand::Rng) -> Duration {
    whole.mul_f64(random.f64())
}

#[cfg(test)]
mod tests {
    use super::CheckOutcome::{Degraded, Failed, Passed, Skipped, Unhealthy};
    use super::*;
    use crate::model::{HttpProbe, Probe};

    const SECOND: Duration = Duration::from_secs(1);

    fn config() -> HealthCheck {
        let mut config = HealthCheck::new(Probe::Http(HttpProbe::get("/")), 10 * SECOND);
        (config.healthy_threshold, config.unhealthy_threshold) = (2, 3);
        config
    }

    #[test]
    fn an_endpoint_is_what_its_last_checks_say_by_the_thresholds() {
        let (well, ill) = (Checked::Healthy, Checked::Unhealthy);
        // (outcomes, what it is after each)
        let cases: &[(&[CheckOutcome], &[Checked])] = &[
            (&[Passed, Failed, Failed, Failed, Passed, Passed], &[well, well, well, ill, ill, well]),
            (&[Passed, Failed, Failed, Passed, Failed, Failed, Failed], &[well, well, well, well, well, well, ill]),
            (&[Passed, Unhealthy, Passed, Failed, Passed, Passed], &[well, ill, ill, ill, ill, well]),
            (&[Failed, Passed, Passed], &[ill, ill, well]),
            (&[Degraded, Passed, Degraded], &[Checked::Degraded, well, Checked::Degraded]),
            (&[Skipped, Failed, Skipped], &[Checked::Never, ill, ill]),
        ];
        for (outcomes, expected) in cases {
            let (checks, mut random) = (Checks::default(), fastrand::Rng::with_seed(1));
            for (outcome, expected) in outcomes.iter().zip(*expected) {
                let before = checks.checked();
                let is_news = checks.note(&config(), *outcome, true, Instant::now(), &mut random);
                assert_eq!(checks.checked(), *expected, "{outcomes:?}");
                assert_eq!(is_news, before != *expected, "{outcomes:?}");
            }
        }
    }

    #[test]
    fn each_state_has_its_interval_and_an_unused_cluster_is_asked_rarely() {
        let mut config = config();
        config.unhealthy_interval = Some(3 * SECOND);
        config.unhealthy_edge_interval = Some(2 * SECOND);
        config.healthy_edge_interval = Some(SECOND);
        config.no_traffic_healthy_interval = Some(90 * SECOND);
        let (checks, now, random) = (Checks::default(), Instant::now(), &mut fastrand::Rng::with_seed(1));
        // (outcome, whether the cluster is called, seconds to the next check)
        for (outcome, is_called, seconds) in [
            (Passed, true, 1),
            (Passed, true, 10),
            (Failed, true, 2),
            (Failed, true, 2),
            (Failed, true, 2),
            (Failed, true, 3),
            (Passed, true, 1),
            (Passed, true, 1),
            (Passed, true, 10),
            (Passed, false, 90),
            (Failed, false, 60),
        ] {
            checks.begin();
            assert_eq!(checks.due(&config, is_called, now, random), None, "one is under way");
            checks.note(&config, outcome, is_called, now, random);
            let due = checks.due(&config, is_called, now, random);
            assert_eq!(due, Some(now + seconds * SECOND), "{outcome:?}");
        }
        // Of a config with a shorter interval than what is planned, and once the cluster is called.
        let short = HealthCheck { no_traffic_interval: 30 * SECOND, no_traffic_healthy_interval: None, ..config };
        assert_eq!(checks.due(&short, false, now, random), Some(now + 30 * SECOND));
        assert_eq!(checks.due(&short, true, now, random), Some(now + 10 * SECOND));
    }

    #[test]
    fn checks_are_spread_by_chance_within_their_bounds() {
        let mut config = config();
        (config.initial_jitter, config.interval_jitter, config.interval_jitter_percent) = (SECOND, SECOND, 50);
        let (now, random) = (Instant::now(), &mut fastrand::Rng::with_seed(1));
        let (mut first, mut others) = (Vec::new(), Vec::new());
        for _ in 0..200 {
            let checks = Checks::default();
            first.push(checks.due(&config, true, now, random).unwrap() - now);
            let again = checks.due(&config, true, now, random).map(|due| due - now);
            assert_eq!(again, first.last().copied(), "it is planned once");
            checks.begin();
            checks.note(&config, Passed, true, now, random);
            others.push(checks.due(&config, true, now, random).unwrap() - now);
        }
        let bounds = |times: &[Duration]| (*times.iter().min().unwrap(), *times.iter().max().unwrap());
        let (least, most) = bounds(&first);
        assert!(least < SECOND / 10 && most > SECOND * 9 / 10 && most <= SECOND, "{least:?} {most:?}");
        let (least, most) = bounds(&others);
        assert!(least >= 10 * SECOND && least < 11 * SECOND && most > 15 * SECOND && most <= 16 * SECOND, "{most:?}");
    }

    #[test]
    fn an_endpoint_that_says_so_is_out_at_once_and_news_once() {
        let (checks, random) = (Checks::default(), &mut fastrand::Rng::with_seed(1));
        checks.note(&config(), Passed, true, Instant::now(), random);
        assert!(checks.fail() && !checks.fail());
        assert_eq!(checks.checked(), Checked::Unhealthy);
        assert!(!checks.note(&config(), Passed, true, Instant::now(), random), "once is not enough to come back");
        assert!(checks.note(&config(), Passed, true, Instant::now(), random));
    }
}
