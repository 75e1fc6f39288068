//! Make before break: which kind of resource may be pushed next, and when a removal may follow.
//!
//! A change travels CDS, EDS, LDS, RDS, each after the answer to the one before (xDS protocol, "eventual
//! consistency considerations"), so that a route never names a cluster that its client has not seen. Endpoints
//! alone follow their clusters at once: an Envoy does not answer for clusters before it has their endpoints. What
//! disappeared is withdrawn last: once the client has confirmed the configuration that stopped referring
//! to it. Everything here is a function of the lanes and of `now`; [`Session`](super::session::Session)
//! keeps the lanes.

use std::time::{Duration, Instant};

use crate::catalog::Kind;

/// How long one stream waits for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pace {
    /// A client that has neither confirmed nor refused for this long no longer holds back what comes next.
    pub grace: Duration,
    /// The quiet time between the last confirmation and a removal. A client that has just confirmed a
    /// route goes on to ask for the route's clusters and endpoints, and uses the old ones until they are
    /// there.
    pub linger: Duration,
    /// The shortest time between two pushes of a kind that the client keeps refusing.
    pub nack_pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { grace: Duration::from_secs(5), linger: Duration::from_millis(500), nack_pause: Duration::from_secs(1) }
    }
}

impl Pace {
    /// Waits this long for an answer; see [`grace`](field@Self::grace).
    pub fn grace(mut self, time: Duration) -> Pace {
        self.grace = time;
        self
    }

    /// Waits this long between a confirmation and a removal; see [`linger`](field@Self::linger).
    pub fn linger(mut self, time: Duration) -> Pace {
        self.linger = time;
        self
    }

    /// Waits this long between pushes that are refused; see [`nack_pause`](field@Self::nack_pause).
    pub fn nack_pause(mut self, time: Duration) -> Pace {
        self.nack_pause = time;
        self
    }
}

/// What the order of pushes needs to know of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lane {
    /// The catalog has something for the client that it has not been sent.
    pub(crate) work: bool,
    /// Some of that has to follow what was sent of the kind before, which the client does not answer for without it.
    pub(crate) awaited: bool,
    /// When the newest response that is still unanswered was sent.
    pub(crate) unanswered: Option<Instant>,
    /// The client refused the last push of this kind, at this time.
    pub(crate) refused: Option<Instant>,
}

impl Lane {
    fn blocked_until(&self, now: Instant, pace: &Pace) -> Option<Instant> {
        self.unanswered.map(|at| at + pace.grace).filter(|at| *at > now)
    }

    fn paused_until(&self, now: Instant, pace: &Pace) -> Option<Instant> {
        self.refused.map(|at| at + pace.nack_pause).filter(|at| *at > now)
    }

    /// Until when its work has to wait for its own answers.
    fn held_until(&self, now: Instant, pace: &Pace) -> Option<Instant> {
        self.blocked_until(now, pace).max(self.paused_until(now, pace))
    }
}

/// The lanes of a stream, in the order of [`Kind::ALL`].
pub(crate) type Lanes = [Lane; Kind::ALL.len()];

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// This kind may be pushed now.
    Push(Kind),
    /// What is awaited of this kind may be pushed now, and nothing else of it.
    PushAwaited(Kind),
    /// Nothing may be pushed before the client answers, or before this time.
    Wait(Instant),
    /// Everything has been sent and answered.
    Quiet,
}

/// The first kind, in push order, that has work or an unanswered response decides; endpoints need not wait for the answer to
/// clusters.
pub(crate) fn turn(lanes: &Lanes, now: Instant, pace: &Pace) -> Turn {
    let [clusters, endpoints, ..] = lanes;
    let turn = first(lanes, now, pace);
    // Those whose own cluster may still have to be sent come after it.
    let follows = if clusters.work { endpoints.awaited } else { endpoints.work };
    let (Turn::Wait(at), true, true) = (turn, follows, clusters.unanswered.is_some()) else { return turn };
    match endpoints.held_until(now, pace) {
        Some(held) => Turn::Wait(at.min(held)),
        None if clusters.work => Turn::PushAwaited(Kind::Endpoints),
        None => Turn::Push(Kind::Endpoints),
    }
}

fn first(lanes: &Lanes, now: Instant, pace: &Pace) -> Turn {
    for (kind, lane) in Kind::ALL.into_iter().zip(lanes) {
        if lane.work {
            return lane.held_until(now, pace).map_or(Turn::Push(kind), Turn::Wait);
        }
        if let Some(at) = lane.blocked_until(now, pace) {
            return Turn::Wait(at);
        }
    }
    Turn::Quiet
}

/// Holds back removals.
///
/// It opens after [`Pace::linger`] of quiet, or [`Pace::grace`] after the removal came up if the client
/// says nothing; it stays shut while the client refuses a listener or a route, since it then still uses
/// the old ones and what they refer to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gate {
    held_since: Option<Instant>,
    quiet_since: Option<Instant>,
    open: bool,
}

impl Gate {
    /// Takes note of the present state. `held`: there is something to remove. `quiet`: nothing else is
    /// left to send or to be answered. `refused`: a listener or route is refused at present.
    pub(crate) fn observe(&mut self, held: bool, quiet: bool, refused: bool, now: Instant, pace: &Pace) {
        if !held || refused {
            *self = Gate::default();
            return;
        }
        self.held_since.get_or_insert(now);
        if self.open {
            return;
        }
        match quiet {
            true => {
                self.quiet_since.get_or_insert(now);
            }
            false => self.quiet_since = None,
        }
        self.open = self.opens_at(pace).is_some_and(|at| at <= now);
    }

    /// More came up for removal: it waits its own time.
    pub(crate) fn restart(&mut self) {
        *self = Gate::default();
    }

    /// Removals may be sent.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// When the gate opens if nothing else happens.
    pub(crate) fn opens_at(&self, pace: &Pace) -> Option<Instant> {
        let grace = self.held_since.map(|at| at + pace.grace)?;
        Some(self.quiet_since.map_or(grace, |at| grace.min(at + pace.linger)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace =
        Pace { grace: Duration::from_secs(5), linger: Duration::from_millis(500), nack_pause: Duration::from_secs(1) };

    fn lanes(edit: impl FnOnce(&mut Lanes)) -> Lanes {
        let mut lanes = Lanes::default();
        edit(&mut lanes);
        lanes
    }

    #[test]
    fn kinds_take_their_turn_in_push_order() {
        let now = Instant::now();
        let all = lanes(|lanes| lanes.iter_mut().for_each(|lane| lane.work = true));
        assert_eq!(turn(&all, now, &PACE), Turn::Push(Kind::Cluster));
        let last = lanes(|lanes| lanes[3].work = true);
        assert_eq!(turn(&last, now, &PACE), Turn::Push(Kind::Route));
        assert_eq!(turn(&Lanes::default(), now, &PACE), Turn::Quiet);
    }

    #[test]
    fn an_unanswered_kind_holds_back_the_later_ones_for_the_grace_only() {
        let now = Instant::now();
        let held = lanes(|lanes| {
            lanes[0].unanswered = Some(now);
            lanes[3].work = true;
        });
        assert_eq!(turn(&held, now, &PACE), Turn::Wait(now + PACE.grace));
        assert_eq!(turn(&held, now + PACE.grace, &PACE), Turn::Push(Kind::Route));
    }

    #[test]
    fn endpoints_do_not_wait_for_the_answer_to_clusters_and_what_follows_does() {
        let now = Instant::now();
        let unanswered = |edit: fn(&mut Lanes)| {
            lanes(|lanes| {
                lanes[0].unanswered = Some(now);
                edit(lanes);
            })
        };
        let follows = unanswered(|lanes| lanes[1].work = true);
        assert_eq!(turn(&follows, now, &PACE), Turn::Push(Kind::Endpoints));
        let both = unanswered(|lanes| {
            lanes[1].unanswered = lanes[0].unanswered;
            lanes[2].work = true;
        });
        assert_eq!(turn(&both, now, &PACE), Turn::Wait(now + PACE.grace));
        // Of endpoints, those whose cluster is still to be sent wait for that.
        let more = unanswered(|lanes| (lanes[0].work, lanes[1].work) = (true, true));
        assert_eq!(turn(&more, now, &PACE), Turn::Wait(now + PACE.grace));
        let awaited = unanswered(|lanes| {
            lanes[0].work = true;
            (lanes[1].work, lanes[1].awaited) = (true, true);
        });
        assert_eq!(turn(&awaited, now, &PACE), Turn::PushAwaited(Kind::Endpoints));
    }

    #[test]
    fn a_later_unanswered_kind_does_not_hold_back_an_earlier_one() {
        let now = Instant::now();
        let lanes = lanes(|lanes| {
            lanes[0].work = true;
            lanes[2].unanswered = Some(now);
        });
        assert_eq!(turn(&lanes, now, &PACE), Turn::Push(Kind::Cluster));
    }

    #[test]
    fn a_refused_kind_is_pushed_at_most_once_a_second() {
        let now = Instant::now();
        let lanes = lanes(|lanes| {
            lanes[1].work = true;
            lanes[1].refused = Some(now);
        });
        assert_eq!(turn(&lanes, now, &PACE), Turn::Wait(now + PACE.nack_pause));
        assert_eq!(turn(&lanes, now + PACE.nack_pause, &PACE), Turn::Push(Kind::Endpoints));
    }

    #[test]
    fn the_gate_opens_after_quiet_or_grace_and_stays_shut_while_a_route_is_refused() {
        let start = Instant::now();
        let mut gate = Gate::default();
        gate.observe(true, false, false, start, &PACE);
        assert!(!gate.is_open());
        gate.observe(true, true, false, start + Duration::from_secs(1), &PACE);
        assert!(!gate.is_open(), "quiet has only begun");
        gate.observe(true, true, false, start + Duration::from_secs(1) + PACE.linger, &PACE);
        assert!(gate.is_open());

        let mut gate = Gate::default();
        gate.observe(true, false, false, start, &PACE);
        gate.observe(true, false, false, start + PACE.grace, &PACE);
        assert!(gate.is_open(), "a silent client does not hold removals for ever");

        let mut gate = Gate::default();
        gate.observe(true, true, true, start, &PACE);
        gate.observe(true, true, true, start + 10 * PACE.grace, &PACE);
        assert!(!gate.is_open(), "a client that refuses the new route still uses the old one");
    }
}
