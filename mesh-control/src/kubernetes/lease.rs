//! Which of several replicas writes into a cluster: the one that holds a Lease (`coordination.k8s.io/v1`), by the rules of
//! Kubernetes' own elections (client-go). Plain decisions, with `now` as an argument.
//!
//! Clocks of machines are never compared. Each replica counts by its own for how long it has seen a Lease unchanged, and takes it once
//! that is longer than the Lease lasts. Who holds it counts from before it asked for it, and stops a good while before that: so nobody
//! else can believe to hold it meanwhile, as long as no clock runs half as fast again as another one.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::period::date;

/// How long what lasts (the figures of client-go).
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// How long a Lease lasts that nobody renews.
    pub(super) lease: Duration,
    /// How long its holder goes by it without having renewed it.
    pub(super) held: Duration,
    /// How often it is looked at.
    pub(super) look: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        let seconds = Duration::from_secs;
        Timing { lease: seconds(15), held: seconds(10), look: seconds(2) }
    }
}

/// A Lease as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lease {
    /// The version of the object; empty where it is not stored yet.
    pub(super) version: String,
    /// Whoever holds it; empty where nobody does.
    pub(super) holder: String,
    /// How long it lasts, in seconds, by whoever holds it.
    lasts: u64,
    acquired: String,
    renewed: String,
    transitions: u64,
    /// What else its object says: that is nobody's to take away.
    metadata: Map<String, Value>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There is none: this one is to be made.
    Make(Lease),
    /// This one is to be put in the place of that of its version.
    Put(Lease),
    /// Somebody else holds it.
    Wait,
}

/// What one replica knows of a Lease.
#[derive(Debug)]
pub(super) struct Election {
    me: String,
    timing: Timing,
    seen: Option<Seen>,
    /// Until when it is held by this replica.
    until: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    lease: Lease,
    /// Since when it has been like that.
    since: Instant,
}

impl Election {
    /// One that nothing is known of. No two processes may have the same name, nor one and the same that has started again.
    pub(super) fn new(me: String, timing: Timing) -> Election {
        Election { me, timing, seen: None, until: None }
    }

    /// Until when this replica holds it, if it does.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Takes in what is stored, or that nothing is.
    pub(super) fn look(&mut self, lease: Option<Lease>, now: Instant) {
        if lease.as_ref().is_none_or(|lease| lease.holder != self.me) {
            self.until = None;
        }
        match (&self.seen, lease) {
            (Some(seen), Some(lease)) if seen.lease.version == lease.version => {}
            (_, lease) => self.seen = lease.map(|lease| Seen { lease, since: now }),
        }
    }

    /// What is to be done about it, where it is this time since 1970.
    pub(super) fn step(&self, now: Instant, clock: Duration) -> Step {
        let time = micro_time(clock);
        let mine = |transitions, metadata, version| Lease {
            version,
            holder: self.me.clone(),
            lasts: self.timing.lease.as_secs(),
            acquired: time.clone(),
            renewed: time.clone(),
            transitions,
            metadata,
        };
        let Some(Seen { lease, since }) = &self.seen else {
            return Step::Make(mine(0, Map::new(), String::new()));
        };
        if lease.holder == self.me {
            return Step::Put(Lease { renewed: time, ..lease.clone() });
        }
        let is_over = now.saturating_duration_since(*since) >= Duration::from_secs(lease.lasts);
        if !lease.holder.is_empty() && !is_over {
            return Step::Wait;
        }
        let transitions = lease.transitions.saturating_add(1);
        Step::Put(mine(transitions, lease.metadata.clone(), lease.version.clone()))
    }

    /// What a step asked for is stored, as this. It was asked for at this time.
    pub(super) fn stored(&mut self, lease: Lease, asked: Instant) {
        self.until = Some(asked + self.timing.held);
        self.seen = Some(Seen { lease, since: asked });
    }

    /// Holds it no longer. Returns what is to be stored so that others need not wait.
    pub(super) fn release(&mut self, clock: Duration) -> Option<Lease> {
        self.until = None;
        let Seen { lease, .. } = self.seen.take().filter(|seen| seen.lease.holder == self.me)?;
        Some(Lease { holder: String::new(), lasts: 1, renewed: micro_time(clock), ..lease })
    }
}

impl Lease {
    /// Of an object. What makes no sense in it holds nobody up: it is as if nobody held it.
    pub(super) fn of(object: &Value) -> Result<Lease, String> {
        let metadata = object.get("metadata").and_then(Value::as_object).cloned().ok_or("a Lease without metadata")?;
        let version = metadata.get("resourceVersion").and_then(Value::as_str).unwrap_or_default();
        if version.is_empty() {
            return Err("a Lease without a version".to_owned());
        }
        let spec = |key: &str| object.get("spec").and_then(|spec| spec.get(key));
        let text = |key: &str| spec(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let number = |key: &str| spec(key).and_then(Value::as_u64).unwrap_or_default();
        Ok(Lease {
            version: version.to_owned(),
            holder: text("holderIdentity"),
            lasts: number("leaseDurationSeconds"),
            acquired: text("acquireTime"),
            renewed: text("renewTime"),
            transitions: number("leaseTransitions"),
            metadata,
        })
    }

    /// Its object.
    pub(super) fn object(&self, name: &str) -> Value {
        let mut metadata = self.metadata.clone();
        metadata.insert("name".to_owned(), name.into());
        json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self.holder,
                "leaseDurationSeconds": self.lasts,
                "acquireTime": self.acquired,
                "renewTime": self.renewed,
                "leaseTransitions": self.transitions,
            },
        })
    }
}

/// A time since 1970 as Kubernetes' MicroTime.
fn micro_time(clock: Duration) -> String {
    format!("{}.{:06}Z", date(clock.as_secs()).trim_end_matches('Z'), clock.subsec_micros())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What an API server keeps: a Lease, which only who knows its version can change.
    #[derive(Default)]
    struct Server {
        version: u64,
        stored: Option<Lease>,
    }

    impl Server {
        fn store(&mut self, step: Step) -> Option<Lease> {
            let lease = match (step, &self.stored) {
                (Step::Make(lease), None) => lease,
                (Step::Put(lease), Some(stored)) if stored.version == lease.version => lease,
                _ => return None,
            };
            self.version += 1;
            let stored = Lease { version: self.version.to_string(), ..lease };
            self.stored = Some(stored.clone());
            Some(stored)
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// One look, and what follows from it.
    fn turn(election: &mut Election, server: &mut Server, now: Instant) -> bool {
        election.look(server.stored.clone(), now);
        if let Some(stored) = server.store(election.step(now, seconds(1_796_083_199))) {
            election.stored(stored, now);
        }
        election.until().is_some_and(|until| now < until)
    }

    #[test]
    fn who_comes_first_leads_and_another_one_does_once_it_is_gone() {
        let (start, mut server) = (Instant::now(), Server::default());
        let at = |time| start + seconds(time);
        let [mut a, mut b] = ["a", "b"].map(|name| Election::new(name.to_owned(), Timing::default()));
        for time in (0..60).step_by(2) {
            assert!(turn(&mut a, &mut server, at(time)));
            assert!(!turn(&mut b, &mut server, at(time)));
        }
        assert_eq!(server.stored.as_ref().map(|lease| lease.transitions), Some(0));
        // It says nothing any more: another one waits for as long as the Lease lasts since it saw the last change.
        for time in (60..73).step_by(2) {
            assert!(!turn(&mut b, &mut server, at(time)), "{time}");
        }
        assert!(a.until().is_some_and(|until| until < at(73)), "it has stopped long before");
        assert!(turn(&mut b, &mut server, at(74)));
        let lease = server.stored.clone().expect("one");
        assert_eq!((&*lease.holder, lease.transitions), ("b", 1));
        assert!(!turn(&mut a, &mut server, at(75)), "it comes back, and is none any more");
    }

    #[test]
    fn who_stops_leaves_it_to_the_next_one_at_once() {
        let (now, mut server) = (Instant::now(), Server::default());
        let [mut a, mut b] = ["a", "b"].map(|name| Election::new(name.to_owned(), Timing::default()));
        assert!(turn(&mut a, &mut server, now) && !turn(&mut b, &mut server, now));
        assert_eq!(b.release(seconds(0)), None, "it is not its own");
        let left = a.release(seconds(0)).expect("its own");
        assert!(server.store(Step::Put(left)).is_some() && a.until().is_none());
        assert!(turn(&mut b, &mut server, now));
    }

    #[test]
    fn a_lease_is_stored_as_kubernetes_has_it_and_keeps_what_others_say_in_it() {
        let object = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "mesh-control", "namespace": "mesh", "resourceVersion": "7", "labels": {"a": "b"}},
            "spec": {
                "holderIdentity": "x", "leaseDurationSeconds": 15, "leaseTransitions": 3,
                "acquireTime": "2026-11-30T01:02:03.000004Z", "renewTime": "2026-11-30T01:02:03.000004Z",
            },
        });
        let lease = Lease::of(&object).expect("one");
        assert_eq!(lease.object("mesh-control"), object);
        let mut election = Election::new("me".to_owned(), Timing::default());
        let now = Instant::now();
        election.look(Some(lease), now);
        let clock = seconds(1_796_083_199) + Duration::from_micros(12);
        assert_eq!(election.step(now, clock), Step::Wait);
        let Step::Put(mine) = election.step(now + seconds(15), clock) else { panic!("it is over") };
        let mine = mine.object("mesh-control");
        assert_eq!(mine["metadata"], object["metadata"]);
        let spec = json!({
            "holderIdentity": "me", "leaseDurationSeconds": 15, "leaseTransitions": 4,
            "acquireTime": "2026-11-30T23:59:59.000012Z", "renewTime": "2026-11-30T23:59:59.000012Z",
        });
        assert_eq!(mine["spec"], spec);
        for odd in [json!({}), json!({"metadata": {}}), json!([])] {
            assert!(Lease::of(&odd).is_err());
        }
        // Whatever is written into it holds nobody up for ever, and breaks nothing.
        let odd =
            json!({"metadata": {"resourceVersion": "8"}, "spec": {"holderIdentity": "y", "leaseDurationSeconds": -1}});
        election.look(Some(Lease::of(&odd).expect("one")), now);
        assert!(matches!(election.step(now, clock), Step::Put(_)));
    }

    /// What a replica waits for: answers come when they come, or never.
    #[derive(Default)]
    enum Waiting {
        #[default]
        Nothing,
        Look(Option<Lease>),
        Store {
            step: Step,
            asked: Instant,
        },
        Stored {
            lease: Option<Lease>,
            asked: Instant,
        },
    }

    struct Replica {
        election: Election,
        waiting: Waiting,
        /// How fast its clock runs, in hundredths.
        pace: u32,
    }

    proptest! {
        /// Whatever comes late, gets lost, crashes, or has a clock that runs too fast or too slow.
        #[test]
        fn there_are_never_two_leaders(
            paces in prop::array::uniform3(90_u32..110),
            history in prop::collection::vec((0_u64..5_000, 0_usize..3, 0_u8..16), 1..400),
        ) {
            let (start, mut server, mut elapsed) = (Instant::now(), Server::default(), Duration::ZERO);
            let fresh = |name: String| Election::new(name, Timing::default());
            let mut replicas = [0, 1, 2].map(|at| {
                Replica { election: fresh(at.to_string()), waiting: Waiting::Nothing, pace: paces[at] }
            });
            for (turn, (pause, who, what)) in history.into_iter().enumerate() {
                elapsed += Duration::from_millis(pause);
                let replica = &mut replicas[who];
                let now = start + elapsed * replica.pace / 100;
                replica.waiting = match (std::mem::take(&mut replica.waiting), what) {
                    // It crashes, stops in order, or gives up waiting.
                    (_, 0) => {
                        replica.election = fresh(format!("{who} {turn}"));
                        Waiting::Nothing
                    }
                    (_, 1) => {
                        if let Some(left) = replica.election.release(elapsed) {
                            server.store(Step::Put(left));
                        }
                        Waiting::Nothing
                    }
                    (_, 2) => Waiting::Nothing,
                    (Waiting::Nothing, _) => Waiting::Look(server.stored.clone()),
                    (Waiting::Look(seen), _) => {
                        replica.election.look(seen, now);
                        match replica.election.step(now, elapsed) {
                            Step::Wait => Waiting::Nothing,
                            step => Waiting::Store { step, asked: now },
                        }
                    }
                    (Waiting::Store { step, asked }, _) => Waiting::Stored { lease: server.store(step), asked },
                    (Waiting::Stored { lease: Some(lease), asked }, _) => {
                        replica.election.stored(lease, asked);
                        Waiting::Nothing
                    }
                    (Waiting::Stored { lease: None, .. }, _) => Waiting::Nothing,
                };
                let leads = |replica: &&Replica| {
                    replica.election.until().is_some_and(|until| start + elapsed * replica.pace / 100 < until)
                };
                prop_assert!(replicas.iter().filter(leads).count() <= 1);
            }
        }
    }
}
