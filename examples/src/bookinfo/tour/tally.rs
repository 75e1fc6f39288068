//! What was seen of the calls between the services, and whether it is what should be.

use std::collections::BTreeMap;
use std::time::Duration;

use super::meaning::{Expectation, Outcome};
use crate::bookinfo::onward::Leg;
use crate::bookinfo::service::App;
use crate::stats::Latencies;

/// The calls of one service on behalf of one kind of user.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How they ended, and how often.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// What was said of those that failed, the last of each kind.
    pub errors: BTreeMap<Outcome, String>,
    /// How long they took.
    pub latencies: Latencies,
    times: Vec<Duration>,
}

/// How far apart a share and what is seen of it may be, in standard deviations: once in two million times it is
/// further apart by chance.
const SIGMA: f64 = 5.0;
/// How much earlier than asked for a delay may seem to end: clocks are read at different places.
const EARLY: Duration = Duration::from_millis(2);

impl Tally {
    /// Takes a call in.
    pub fn add(&mut self, app: App, leg: &Leg) {
        let outcome = outcome(app, leg);
        if let Some(error) = &leg.error {
            self.errors.insert(outcome.clone(), error.clone());
        }
        *self.outcomes.entry(outcome).or_default() += 1;
        let took = Duration::from_secs_f64(leg.ms.max(0.0) / 1e3);
        self.latencies.add(took);
        self.times.push(took);
    }

    /// How many calls there were.
    pub fn calls(&self) -> u64 {
        self.times.len() as u64
    }

    /// What is not as it should be, in sentences.
    pub fn problems(&self, expected: &Expectation) -> Vec<String> {
        if self.times.is_empty() {
            return Vec::new();
        }
        let mut problems = Vec::new();
        for (outcome, seen) in &self.outcomes {
            if !is_expected(expected, outcome) {
                let why = self.errors.get(outcome).map(|error| format!(": {error}")).unwrap_or_default();
                problems.push(format!("{} for {seen} of {} calls{why}", describe(outcome), self.calls()));
            }
        }
        for (outcome, share) in expected.outcomes.iter().filter(|(outcome, _)| **outcome != Outcome::Closed) {
            let seen = self.outcomes.get(outcome).copied().unwrap_or(0);
            if expected.weighted && !is_likely(seen, self.calls(), *share) {
                let (percent, calls) = (share * 100.0, self.calls());
                problems.push(format!("{} for {seen} of {calls} calls, expected {percent:.0} %", describe(outcome)));
            }
        }
        if let Some((share, time)) = expected.delay {
            let late = self.times.iter().filter(|took| **took + EARLY >= time).count() as u64;
            if !is_likely(late, self.calls(), share) {
                let (percent, calls) = (share * 100.0, self.calls());
                problems.push(format!("{late} of {calls} calls took {time:?}, expected {percent:.0} %"));
            }
        }
        problems
    }

    /// Whether calls took as long as a fault makes those of somebody else take.
    pub fn is_as_slow_as(&self, time: Duration) -> bool {
        !self.times.is_empty() && self.latencies.percentiles().p50 >= time.as_secs_f64() * 1e3
    }
}

/// How a call ended.
fn outcome(app: App, leg: &Leg) -> Outcome {
    match leg.version(app.name()) {
        Some(version) if leg.is_ok() => Outcome::Version(version.to_owned()),
        _ => Outcome::Failed(leg.status.clone()),
    }
}

/// Whether a call may end like this one did.
pub(super) fn is_possible(expected: &Expectation, app: App, leg: &Leg) -> bool {
    is_expected(expected, &outcome(app, leg))
}

fn is_expected(expected: &Expectation, outcome: &Outcome) -> bool {
    let closed = expected.outcomes.contains_key(&Outcome::Closed) && matches!(outcome, Outcome::Failed(_));
    closed || expected.outcomes.contains_key(outcome)
}

/// Whether so many of so many are likely, if each is one with this probability.
fn is_likely(seen: u64, of: u64, share: f64) -> bool {
    let (seen, of) = (seen as f64, of as f64);
    let deviation = (of * share * (1.0 - share)).sqrt();
    (seen - of * share).abs() <= SIGMA * deviation + 1e-9
}

/// An outcome in a few words.
pub(super) fn describe(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Version(version) => version.clone(),
        Outcome::Failed(status) => format!("failed {status}"),
        Outcome::Closed => "fails".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(outcomes: &[(Outcome, f64)]) -> Expectation {
        Expectation { outcomes: outcomes.iter().cloned().collect(), weighted: true, delay: None }
    }

    fn version(name: &str) -> Outcome {
        Outcome::Version(name.into())
    }

    fn seen(calls: &[(&str, u64, f64)]) -> Tally {
        let mut tally = Tally::default();
        for (what, times, ms) in calls {
            let leg = match what.parse::<u16>() {
                Ok(status) => Leg { status: status.to_string(), ms: *ms, ..Leg::default() },
                Err(_) => Leg {
                    status: "200".into(),
                    backend: Some(format!("reviews-{what}-127.0.0.1:1")),
                    ms: *ms,
                    error: None,
                },
            };
            (0..*times).for_each(|_| tally.add(App::Reviews, &leg));
        }
        tally
    }

    #[test]
    fn shares_may_differ_by_chance_and_not_by_more() {
        let weights = expected(&[(version("v1"), 0.8), (version("v2"), 0.2)]);
        assert_eq!(seen(&[("v1", 780, 1.0), ("v2", 220, 1.0)]).problems(&weights), [""; 0]);
        assert_eq!(seen(&[("v1", 600, 1.0), ("v2", 400, 1.0)]).problems(&weights).len(), 2);
        assert_eq!(seen(&[("v1", 1000, 1.0)]).problems(&weights).len(), 2);
        assert_eq!(seen(&[]).problems(&weights), [""; 0]);
    }

    #[test]
    fn certainties_allow_no_exception() {
        let all = expected(&[(version("v1"), 1.0)]);
        assert_eq!(seen(&[("v1", 1000, 1.0)]).problems(&all), [""; 0]);
        assert_eq!(seen(&[("v1", 999, 1.0), ("v2", 1, 1.0)]).problems(&all).len(), 2);
        assert_eq!(seen(&[("v1", 999, 1.0), ("503", 1, 1.0)]).problems(&all).len(), 2);
    }

    #[test]
    fn what_is_balanced_has_no_exact_shares() {
        let any = Expectation { weighted: false, ..expected(&[(version("v1"), 0.5), (version("v2"), 0.5)]) };
        assert_eq!(seen(&[("v1", 1000, 1.0)]).problems(&any), [""; 0]);
        assert_eq!(seen(&[("v3", 1, 1.0)]).problems(&any).len(), 1);
    }

    #[test]
    fn a_closed_service_fails_in_any_way_and_answers_in_none() {
        let closed = expected(&[(Outcome::Closed, 1.0)]);
        assert_eq!(seen(&[("503", 10, 1.0)]).problems(&closed), [""; 0]);
        assert_eq!(seen(&[("503", 9, 1.0), ("v1", 1, 1.0)]).problems(&closed).len(), 1);
    }

    #[test]
    fn a_delay_holds_its_share_of_calls_back() {
        let delayed = Duration::from_millis(400);
        let all = Expectation { delay: Some((1.0, delayed)), ..expected(&[(version("v1"), 1.0)]) };
        assert_eq!(seen(&[("v1", 10, 401.0)]).problems(&all), [""; 0]);
        assert_eq!(seen(&[("v1", 9, 401.0), ("v1", 1, 3.0)]).problems(&all).len(), 1);
        assert!(seen(&[("v1", 9, 401.0), ("v1", 1, 3.0)]).is_as_slow_as(delayed));
        assert!(!seen(&[("v1", 1, 401.0), ("v1", 9, 3.0)]).is_as_slow_as(delayed));
        let late = Outcome::Failed("504".into());
        let long = Expectation { delay: Some((1.0, Duration::from_secs(3))), ..expected(&[(late, 1.0)]) };
        assert_eq!(seen(&[("504", 10, 3001.0)]).problems(&long), [""; 0]);
    }
}
