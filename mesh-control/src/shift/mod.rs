//! A staged shift: the weights of a VirtualService move to one subset step by step, as long as the calls to it do well, and
//! back where they do not.
//!
//! [`Shift`] decides, by what workloads report and by the time; [`weights`] reads and writes the weights in the text of a file,
//! and nothing else of it. Who follows both is `cli/shift.rs`.

pub(crate) mod weights;

use std::fmt;
use std::time::{Duration, Instant};

/// What was called before is reported within this time: the longest interval of reports, and a second.
const LATE: Duration = Duration::from_secs(6);

/// How a shift goes on, and what ends it.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The shares of the subset in percent, one after the other.
    pub(crate) steps: Vec<u32>,
    /// How long a step lasts.
    pub(crate) every: Duration,
    /// The share of failed requests from which on it is given up, 0 to 1.
    pub(crate) max_error_rate: f64,
    /// The time that 99 of 100 requests may take.
    pub(crate) max_p99: Option<Duration>,
    /// So many requests have to be seen in each step before it says anything.
    pub(crate) min_requests: u64,
}

impl Plan {
    /// What is wrong with it, for a subset that has this share now.
    ///
    /// # Errors
    /// Where the steps do not rise to at most 100 percent, or begin at or below what the subset has.
    pub(crate) fn check(&self, present: u32) -> Result<(), String> {
        let first = *self.steps.first().ok_or("there are no steps")?;
        if first <= present {
            return Err(format!("the first step is {first} %, and the subset has {present} % already"));
        }
        if !self.steps.is_sorted_by(|a, b| a < b) {
            return Err("every step has to be above the one before it".to_owned());
        }
        match self.steps.last() {
            Some(last) if *last > 100 => Err(format!("{last} % is more than all")),
            _ => Ok(()),
        }
    }
}

/// What workloads report of the calls to the subset, as sums that only grow while the same server tells them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Seen {
    /// Requests.
    pub(crate) requests: u64,
    /// Those of them that failed.
    pub(crate) failures: u64,
    /// The time within which 99 of 100 of the last seconds ended, where it is known.
    pub(crate) p99: Option<Duration>,
    /// Whether there were requests within the last seconds.
    pub(crate) is_called: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Next {
    /// Nothing.
    Wait,
    /// Nothing, though the step has had its time: too few requests came to say anything.
    TooFew,
    /// The subset gets this share, in percent.
    Step(u32),
    /// All weights become what they were.
    RollBack(Fault),
    /// The last step has had its time.
    Done,
}

/// Why a shift is given up.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// Too many requests failed.
    Errors {
        /// How many there were since the step began.
        requests: u64,
        /// How many of them failed.
        failures: u64,
    },
    /// Requests take too long.
    Slow(Duration),
    /// Nobody tells how requests fare, for as long as a step lasts.
    Blind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Errors { requests, failures } => {
                let rate = *failures as f64 / (*requests).max(1) as f64 * 100.0;
                write!(f, "{failures} of {requests} requests failed ({rate:.1} %)")
            }
            Fault::Slow(p99) => write!(f, "99 of 100 requests took up to {p99:.1?}"),
            Fault::Blind => f.write_str("nothing could be learned of its requests for a whole step"),
        }
    }
}

/// A shift under way.
#[derive(Debug)]
pub(crate) struct Shift {
    plan: Plan,
    /// How many steps were begun; the first one begins at once.
    begun: usize,
    since: Instant,
    /// What had been seen when the step began.
    before: Seen,
    /// When something was seen last.
    told: Instant,
}

impl Shift {
    /// A shift whose first step is the next thing to do.
    pub(crate) fn new(plan: Plan, now: Instant) -> Shift {
        Shift { plan, begun: 0, since: now, before: Seen::default(), told: now }
    }

    /// What was seen in the present step.
    pub(crate) fn in_step(&self, seen: &Seen) -> Seen {
        Seen {
            requests: seen.requests.saturating_sub(self.before.requests),
            failures: seen.failures.saturating_sub(self.before.failures),
            ..*seen
        }
    }

    /// Decides by what is seen now; `None` where nobody tells.
    pub(crate) fn next(&mut self, seen: Option<Seen>, now: Instant) -> Next {
        let Some(seen) = seen else {
            // A step never ends by not looking.
            let is_blind = now.saturating_duration_since(self.told) >= self.plan.every;
            return if is_blind && self.begun > 0 { Next::RollBack(Fault::Blind) } else { Next::Wait };
        };
        self.told = now;
        if self.begun == 0 {
            // What the subset answered before the shift, and is not told yet, says nothing of it.
            let is_late = seen.is_called && now.saturating_duration_since(self.since) < LATE;
            return if is_late { Next::Wait } else { self.begin(seen, now) };
        }
        if seen.requests < self.before.requests || seen.failures < self.before.failures {
            // Who tells has begun anew.
            self.before = Seen::default();
        }
        let step = self.in_step(&seen);
        if let Some(fault) = self.fault(&step) {
            return Next::RollBack(fault);
        }
        if now.saturating_duration_since(self.since) < self.plan.every {
            return Next::Wait;
        }
        if step.requests < self.plan.min_requests {
            return Next::TooFew;
        }
        self.begin(seen, now)
    }

    fn begin(&mut self, seen: Seen, now: Instant) -> Next {
        let Some(share) = self.plan.steps.get(self.begun) else { return Next::Done };
        self.begun += 1;
        (self.since, self.before) = (now, seen);
        Next::Step(*share)
    }

    fn fault(&self, step: &Seen) -> Option<Fault> {
        let Seen { requests, failures, p99, .. } = *step;
        // As soon as the rest of the requests that a step needs could not make up for the failures.
        let judged = requests.max(self.plan.min_requests);
        if failures as f64 > self.plan.max_error_rate * judged as f64 {
            return Some(Fault::Errors { requests, failures });
        }
        let too_long = p99.filter(|p99| self.plan.max_p99.is_some_and(|most| *p99 > most))?;
        (requests >= self.plan.min_requests).then_some(Fault::Slow(too_long))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn plan() -> Plan {
        let max_p99 = Some(Duration::from_millis(250));
        Plan { steps: vec![5, 50, 100], every: MINUTE, max_error_rate: 0.01, max_p99, min_requests: 100 }
    }

    fn seen(requests: u64, failures: u64) -> Option<Seen> {
        Some(Seen { requests, failures, p99: Some(Duration::from_millis(20)), is_called: false })
    }

    #[test]
    fn a_good_subset_gets_every_step_for_its_time_and_is_done_after_the_last_one() {
        let start = Instant::now();
        let mut shift = Shift::new(plan(), start);
        // What was there before says nothing of the step.
        assert_eq!(shift.next(seen(1_000, 900), start), Next::Step(5));
        assert_eq!(shift.next(seen(1_200, 901), start + MINUTE / 2), Next::Wait);
        assert_eq!(shift.next(seen(1_200, 901), start + MINUTE), Next::Step(50));
        assert_eq!(shift.next(seen(1_300, 901), start + MINUTE * 2), Next::Step(100));
        assert_eq!(shift.next(seen(1_400, 902), start + MINUTE * 3 - MINUTE / 60), Next::Wait);
        assert_eq!(shift.next(seen(1_400, 902), start + MINUTE * 3), Next::Done);
    }

    #[test]
    fn too_many_failures_end_it_at_once_and_as_soon_as_nothing_can_make_up_for_them() {
        let start = Instant::now();
        let begun = |seen| {
            let mut shift = Shift::new(plan(), start);
            shift.next(Some(Seen::default()), start);
            shift.next(seen, start + MINUTE / 60)
        };
        assert_eq!(begun(seen(200, 3)), Next::RollBack(Fault::Errors { requests: 200, failures: 3 }));
        assert_eq!(begun(seen(200, 2)), Next::Wait, "1 % is not above 1 %");
        assert_eq!(begun(seen(2, 2)), Next::RollBack(Fault::Errors { requests: 2, failures: 2 }));
        assert_eq!(begun(seen(2, 1)), Next::Wait, "one of a hundred");
    }

    #[test]
    fn slow_answers_end_it_once_there_are_enough_of_them() {
        let start = Instant::now();
        let slow =
            |requests| Some(Seen { p99: Some(Duration::from_millis(300)), ..seen(requests, 0).unwrap_or_default() });
        let mut shift = Shift::new(plan(), start);
        shift.next(Some(Seen::default()), start);
        assert_eq!(shift.next(slow(99), start), Next::Wait);
        assert_eq!(shift.next(slow(100), start), Next::RollBack(Fault::Slow(Duration::from_millis(300))));
    }

    #[test]
    fn nothing_moves_on_what_nobody_tells_or_too_few_ask_for() {
        let start = Instant::now();
        let mut shift = Shift::new(plan(), start);
        assert_eq!(shift.next(None, start + MINUTE * 9), Next::Wait, "it has not begun");
        assert_eq!(shift.next(Some(Seen::default()), start), Next::Step(5));
        assert_eq!(shift.next(seen(99, 0), start + MINUTE * 2), Next::TooFew);
        assert_eq!(shift.next(None, start + MINUTE * 2 + MINUTE / 2), Next::Wait);
        assert_eq!(shift.next(None, start + MINUTE * 3), Next::RollBack(Fault::Blind));
    }

    #[test]
    fn what_was_answered_before_it_began_is_awaited() {
        let start = Instant::now();
        let mut shift = Shift::new(plan(), start);
        let called = |requests, failures| seen(requests, failures).map(|seen| Seen { is_called: true, ..seen });
        assert_eq!(shift.next(called(100, 10), start), Next::Wait);
        assert_eq!(shift.next(called(200, 20), start + LATE), Next::Step(5));
        assert_eq!(shift.next(called(201, 20), start + LATE + MINUTE / 60), Next::Wait);
    }

    #[test]
    fn a_server_that_begins_anew_counts_from_zero() {
        let start = Instant::now();
        let mut shift = Shift::new(plan(), start);
        shift.next(seen(10_000, 50), start);
        assert_eq!(
            shift.next(seen(90, 2), start + MINUTE),
            Next::RollBack(Fault::Errors { requests: 90, failures: 2 })
        );
    }

    #[test]
    fn steps_rise_from_what_there_is_to_at_most_all() {
        let check = |steps: &[u32], present| Plan { steps: steps.to_vec(), ..plan() }.check(present);
        assert_eq!(check(&[5, 25, 100], 0), Ok(()));
        assert!(check(&[], 0).is_err());
        assert!(check(&[5, 5], 0).is_err());
        assert!(check(&[50, 25], 0).is_err());
        assert!(check(&[50, 101], 0).is_err());
        assert!(check(&[5, 25], 5).is_err());
    }
}
