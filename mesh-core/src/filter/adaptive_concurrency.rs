//! How many requests there may be at a time (`envoy.extensions.filters.http.adaptive_concurrency.v3`): who has no place is
//! answered before any work is done, or waits for one where there is a queue.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use foldhash::fast::RandomState;
use http::request::Parts;
use serde_json::json;
use tokio::sync::oneshot;

use super::request_rules::Known;
use super::{Decision, Filter, Reply, Resume, counted};
use crate::error::Invalid;
use crate::limits::{Arrival, Concurrency, DescriptorMaker, FairQueue, Joined, Ticket};
use crate::model::{AdaptiveConcurrency, ConcurrencyQueue};
use crate::request_info::{Criticality, RequestInfo};
use crate::response_flags::ResponseFlags;
use crate::state::{FilterState, LimitCounts, lock};

/// Why, in Envoy's words where there is no queue.
const REFUSED: &str = "reached_concurrency_limit";
const FULL: &str = "concurrency_queue_full";
const DISPLACED: &str = "concurrency_queue_displaced";
const EXPIRED: &str = "concurrency_queue_timeout";

/// Lets in as many requests as may be, and learns from those how many that is.
#[derive(Debug)]
pub struct AdaptiveConcurrencyFilter {
    room: Arc<Room>,
    queue: Option<Arc<Queue>>,
    counts: Arc<Counts>,
}

/// Where requests have their places.
#[derive(Debug)]
struct Room {
    config: Arc<AdaptiveConcurrency>,
    concurrency: Arc<Concurrency>,
    line: Arc<Line>,
}

/// Those that wait for one, which outlive their configuration.
#[derive(Debug, Default)]
struct Line {
    /// How many, and of those how many that matter: for whoever need not look further where there are none.
    waiting: AtomicUsize,
    critical: AtomicUsize,
    queue: Mutex<FairQueue<oneshot::Sender<Place>>>,
    /// So that nobody can choose to be taken for another caller.
    hasher: RandomState,
}

/// The place of a request.
#[derive(Debug)]
struct Place {
    room: Arc<Room>,
    since: Instant,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.concurrency.leave();
        self.room.let_in();
    }
}

/// By how much requests matter.
#[derive(Debug)]
struct Counts {
    critical: Arc<LimitCounts>,
    sheddable: Arc<LimitCounts>,
}

impl Counts {
    fn of(&self, is_sheddable: bool) -> &LimitCounts {
        if is_sheddable { &self.sheddable } else { &self.critical }
    }
}

/// Who waits, and what became of those who did.
#[derive(Debug)]
struct Queue {
    config: Arc<ConcurrencyQueue>,
    maker: DescriptorMaker,
    /// Waits, and got a place after all.
    joined: Arc<LimitCounts>,
    served: Arc<LimitCounts>,
    /// Found no room to wait, had to make room for another caller's, waited for too long, or did not want to wait any longer.
    full: Arc<LimitCounts>,
    displaced: Arc<LimitCounts>,
    expired: Arc<LimitCounts>,
    given_up: Arc<LimitCounts>,
}

/// One that waits; dropped, it does not any more.
struct InLine {
    room: Arc<Room>,
    queue: Arc<Queue>,
    ticket: Ticket,
}

impl InLine {
    /// Whether it was there until now.
    fn leave(&self) -> bool {
        self.room.line.remove(&self.ticket)
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        if self.leave() {
            self.queue.given_up.note_over();
        }
    }
}

impl Line {
    /// Does something with the queue, after which it is known how many wait.
    fn with<R>(&self, act: impl FnOnce(&mut FairQueue<oneshot::Sender<Place>>) -> R) -> R {
        let mut queue = lock(&self.queue);
        let done = act(&mut queue);
        self.critical.store(queue.critical(), Ordering::SeqCst);
        self.waiting.store(queue.len(), Ordering::SeqCst);
        done
    }

    fn remove(&self, ticket: &Ticket) -> bool {
        self.with(|queue| queue.remove(ticket)).is_some()
    }
}

impl Room {
    /// A place, where there is one and nobody waits for it who comes first.
    #[inline]
    fn enter(self: &Arc<Self>, is_sheddable: bool, now: Instant) -> Option<Place> {
        let before = if is_sheddable { &self.line.waiting } else { &self.line.critical };
        if self.config.queue.is_some() && before.load(Ordering::SeqCst) > 0 {
            return None;
        }
        self.concurrency.enter(&self.config, is_sheddable, now).then(|| Place { room: Arc::clone(self), since: now })
    }

    /// Lets in those that wait, as many as there are places.
    #[inline]
    fn let_in(self: &Arc<Self>) {
        if self.line.waiting.load(Ordering::SeqCst) > 0 {
            self.let_in_now();
        }
    }

    #[cold]
    fn let_in_now(self: &Arc<Self>) {
        let now = Instant::now();
        let mut unclaimed = Vec::new();
        self.line.with(|queue| {
            while let Some(is_sheddable) = queue.next_is_sheddable() {
                if !self.concurrency.enter(&self.config, is_sheddable, now) {
                    break;
                }
                let place = Place { room: Arc::clone(self), since: now };
                match queue.pop() {
                    Some(waiting) => unclaimed.extend(waiting.send(place).err()),
                    None => unclaimed.push(place),
                }
            }
        });
        // Not under the lock: each lets in the next one.
        drop(unclaimed);
    }

    /// Waits for a place among others, where there is room to wait.
    fn join(self: &Arc<Self>, queue: &Arc<Queue>, arrival: Arrival) -> Option<(InLine, oneshot::Receiver<Place>)> {
        let (sender, receiver) = oneshot::channel();
        let most = usize::try_from(queue.config.most).unwrap_or(usize::MAX);
        let ticket = match self.line.with(|line| line.join(arrival, most, sender)) {
            Joined::Waits(ticket) => ticket,
            // Whoever loses its place in the line hears of it by losing the sender.
            Joined::Displaces(ticket, _) => ticket,
            Joined::Full(_) => return None,
        };
        // A place may have become free before it was in the line, and nobody was told.
        self.let_in();
        Some((InLine { room: Arc::clone(self), queue: Arc::clone(queue), ticket }, receiver))
    }
}

impl Queue {
    fn new(config: &Arc<ConcurrencyQueue>, state: &FilterState<'_>) -> Result<Self, Invalid> {
        let counts = |rule| state.limited().counts("concurrency queue", rule);
        Ok(Queue {
            config: Arc::clone(config),
            maker: DescriptorMaker::new(&config.by)?,
            joined: counts("joined"),
            served: counts("served"),
            full: counts("full"),
            displaced: counts("displaced"),
            expired: counts("timeout"),
            given_up: counts("given_up"),
        })
    }

    /// Whose a request is.
    fn arrival(&self, request: &RequestInfo, head: &Parts, is_sheddable: bool, hasher: &RandomState) -> Arrival {
        let known = Known::now(request, head);
        let seen = counted::seen(request, head, &known);
        let mut hasher = hasher.build_hasher();
        let mut weight = 1;
        if let Some(descriptor) = self.maker.describe(&seen) {
            let first = descriptor.entries.first().and_then(|entry| std::str::from_utf8(entry.value.as_bytes()).ok());
            weight = first.and_then(|value| self.config.weights.get(value)).copied().unwrap_or(weight);
            descriptor.entries.iter().for_each(|entry| entry.value.as_bytes().hash(&mut hasher));
        }
        Arrival { caller: hasher.finish(), weight, is_sheddable }
    }
}

impl AdaptiveConcurrencyFilter {
    /// A filter by this configuration, which goes on from the limit that there is, and from who waits.
    ///
    /// # Errors
    /// Callers cannot be told apart by this.
    pub fn new(config: &Arc<AdaptiveConcurrency>, state: &FilterState<'_>, now: Instant) -> Result<Self, Invalid> {
        let concurrency = state.get(|| Concurrency::new(config, now));
        concurrency.change(config, now);
        let counts = |rule| state.limited().counts("concurrency", rule);
        let room = Room { config: Arc::clone(config), concurrency, line: state.get(Line::default) };
        let room = Arc::new(room);
        // There may be more places than before.
        room.let_in();
        Ok(AdaptiveConcurrencyFilter {
            room,
            queue: config.queue.as_ref().map(|queue| Queue::new(queue, state)).transpose()?.map(Arc::new),
            counts: Arc::new(Counts { critical: counts("critical"), sheddable: counts("sheddable") }),
        })
    }

    #[cold]
    fn wait(&self, queue: &Arc<Queue>, is_sheddable: bool, request: &mut RequestInfo, head: &Parts) -> Decision {
        let arrival = queue.arrival(request, head, is_sheddable, &self.room.line.hasher);
        let Some((in_line, place)) = self.room.join(queue, arrival) else {
            queue.full.note_over();
            return refuse(&self.room.config, self.counts.of(is_sheddable), FULL, request);
        };
        queue.joined.note_within();
        let (room, counts, longest) = (Arc::clone(&self.room), Arc::clone(&self.counts), queue.config.wait);
        Decision::Callout(Box::pin(async move {
            let outcome = match tokio::time::timeout(longest, place).await {
                Ok(Ok(place)) => Ok(place),
                Ok(Err(_)) => Err((&in_line.queue.displaced, DISPLACED)),
                Err(_) => Err((&in_line.queue.expired, EXPIRED)),
            };
            let outcome = outcome.map_err(|(reason, details)| {
                reason.note_over();
                in_line.leave();
                details
            });
            if outcome.is_ok() {
                in_line.queue.served.note_within();
            }
            Box::new(move |request: &mut RequestInfo, _: &mut Parts| match outcome {
                Ok(place) => {
                    counts.of(is_sheddable).note_within();
                    request.hold(place);
                    Decision::Continue
                }
                Err(details) => refuse(&room.config, counts.of(is_sheddable), details, request),
            }) as Resume
        }))
    }
}

#[cold]
fn refuse(
    config: &AdaptiveConcurrency,
    counts: &LimitCounts,
    details: &'static str,
    request: &mut RequestInfo,
) -> Decision {
    counts.note_over();
    request.note_event("concurrency limit", || json!({"refused": details}));
    Decision::Reply(Reply::overloaded(request, config.status, "reached concurrency limit", details))
}

impl Filter for AdaptiveConcurrencyFilter {
    #[inline]
    fn on_request(&self, request: &mut RequestInfo, head: &mut Parts) -> Decision {
        let is_sheddable = request.inherited.criticality == Criticality::Sheddable;
        if let Some(place) = self.room.enter(is_sheddable, request.started) {
            self.counts.of(is_sheddable).note_within();
            request.hold(place);
            return Decision::Continue;
        }
        match &self.queue {
            Some(queue) => self.wait(queue, is_sheddable, request, head),
            None => refuse(&self.room.config, self.counts.of(is_sheddable), REFUSED, request),
        }
    }

    fn on_end(&self, request: &RequestInfo) {
        // Of those that were refused, or not answered, it is not known how long they would have taken.
        if request.is_complete() && !request.response_flags().contains(ResponseFlags::OVERLOAD_MANAGER) {
            // What it waited for is not what it takes.
            let own = request.held::<Place>().find(|place| Arc::ptr_eq(&place.room, &self.room));
            let since = own.map_or(request.started, |place| place.since);
            self.room.concurrency.note_answered(&self.room.config, since, Instant::now(), fastrand::f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::OVERLOADED;
    use crate::filter::Callout;
    use crate::model::{DescriptorAction, Fraction, RateLimit};
    use crate::state::States;

    fn filter(config: AdaptiveConcurrency, states: &States) -> AdaptiveConcurrencyFilter {
        let name = Arc::from("overload");
        AdaptiveConcurrencyFilter::new(&Arc::new(config), &states.filter("", &name), Instant::now()).unwrap()
    }

    /// So many at a time, and so many that wait, of callers that say who they are.
    fn queued(places: u32, most: u32) -> AdaptiveConcurrency {
        let header = DescriptorAction::Header { key: "who".into(), name: "who".into(), skip_if_absent: false };
        let mut queue = ConcurrencyQueue::new(most);
        queue.by = Arc::new(RateLimit::by(vec![header]));
        AdaptiveConcurrency { queue: Some(Arc::new(queue)), ..AdaptiveConcurrency::fixed(places) }
    }

    fn ask(filter: &AdaptiveConcurrencyFilter, who: &str, criticality: Criticality) -> (Decision, RequestInfo, Parts) {
        let mut info = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
        info.inherited.criticality = criticality;
        let (mut parts, ()) = http::Request::get("http://h/").header("who", who).body(()).unwrap().into_parts();
        (filter.on_request(&mut info, &mut parts), info, parts)
    }

    fn enters(filter: &AdaptiveConcurrencyFilter, who: &str) -> RequestInfo {
        match ask(filter, who, Criticality::Critical) {
            (Decision::Continue, info, _) => info,
            (other, ..) => panic!("{other:?}"),
        }
    }

    fn waits(filter: &AdaptiveConcurrencyFilter, who: &str) -> (Callout, RequestInfo, Parts) {
        match ask(filter, who, Criticality::Critical) {
            (Decision::Callout(callout), info, parts) => (callout, info, parts),
            (other, ..) => panic!("{other:?}"),
        }
    }

    /// What became of one that waited.
    async fn outcome((callout, mut info, mut parts): (Callout, RequestInfo, Parts)) -> Result<RequestInfo, u16> {
        let resume = callout.await;
        match resume(&mut info, &mut parts) {
            Decision::Continue => Ok(info),
            Decision::Reply(reply) => Err(reply.status.as_u16()),
            other => panic!("{other:?}"),
        }
    }

    fn counted(states: &States) -> Vec<(String, u64, u64)> {
        let mut counted = Vec::new();
        let mut look = |limit: &str, rule: &str, counts: &LimitCounts| {
            counted.push((format!("{limit} {rule}"), counts.within(), counts.over()));
        };
        states.limited().each(&mut look);
        counted
    }

    #[test]
    fn who_has_no_place_is_answered_and_a_place_is_free_when_a_request_is_over() {
        let states = States::default();
        let mut config = AdaptiveConcurrency::fixed(2);
        config.sheddable = Fraction::new(1, 2);
        let filter = filter(config, &states);
        let ask = |criticality| match ask(&filter, "web", criticality) {
            (Decision::Continue, info, _) => Ok(info),
            (Decision::Reply(reply), ..) => Err(reply),
            (other, ..) => panic!("{other:?}"),
        };
        let first = ask(Criticality::Sheddable).ok();
        assert!(first.is_some());
        let refused = ask(Criticality::Sheddable).err().unwrap();
        assert_eq!((refused.status.as_u16(), &refused.headers.unwrap()[OVERLOADED]), (503, &"true".parse().unwrap()));
        let second = ask(Criticality::Critical).ok();
        assert!(second.is_some() && ask(Criticality::Critical).is_err());
        drop(first);
        assert!(ask(Criticality::Sheddable).is_err(), "half of two is one, which is there");
        assert!(ask(Criticality::Critical).is_ok());
        let expected = [("concurrency critical".to_owned(), 2, 1), ("concurrency sheddable".to_owned(), 1, 2)];
        assert_eq!(counted(&states), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn places_that_become_free_go_to_callers_in_turn() {
        let states = States::default();
        let filter = filter(queued(1, 10), &states);
        let first = enters(&filter, "greedy");
        let [second, third] = [(); 2].map(|()| waits(&filter, "greedy"));
        let modest = waits(&filter, "modest");
        drop(first);
        let second = outcome(second).await.unwrap();
        drop(second);
        let modest = outcome(modest).await.expect("it is before the rest of those that were there before");
        // Whoever comes now is behind those that wait, and gives way to nobody by leaving.
        let late = waits(&filter, "late");
        drop(late);
        drop(modest);
        drop(outcome(third).await.unwrap());
        assert_eq!(filter.room.concurrency.in_flight(), 0);
        drop(enters(&filter, "late"));
        let counted = counted(&states);
        assert!(counted.contains(&("concurrency queue served".to_owned(), 3, 0)), "{counted:?}");
        assert!(counted.contains(&("concurrency queue given_up".to_owned(), 0, 1)), "{counted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_longer_than_is_said_or_where_there_is_no_room() {
        let states = States::default();
        let filter = filter(queued(1, 2), &states);
        let held = enters(&filter, "greedy");
        let [patient, displaced] = [(); 2].map(|()| waits(&filter, "greedy"));
        assert!(matches!(ask(&filter, "greedy", Criticality::Critical).0, Decision::Reply(_)), "it has all the room");
        let modest = waits(&filter, "modest");
        assert_eq!(outcome(displaced).await.err(), Some(503));
        let began = tokio::time::Instant::now();
        assert_eq!(outcome(patient).await.err(), Some(503));
        assert_eq!(began.elapsed().as_secs(), 1);
        drop(held);
        assert_eq!(outcome(modest).await.err(), None, "a place became free in time");
        let counted = counted(&states);
        for (rule, over) in [("full", 1), ("displaced", 1), ("timeout", 1), ("given_up", 0)] {
            assert!(counted.contains(&(format!("concurrency queue {rule}"), 0, over)), "{rule}: {counted:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_are_let_in_by_what_is_configured_next() {
        let states = States::default();
        let before = filter(queued(1, 10), &states);
        let held = enters(&before, "web");
        let (first, second) = (waits(&before, "web"), waits(&before, "web"));
        // There is no queue any more, and one more place.
        let after = filter(AdaptiveConcurrency::fixed(2), &states);
        let first = outcome(first).await.expect("there are two places");
        assert!(matches!(ask(&after, "web", Criticality::Critical).0, Decision::Reply(_)));
        drop(held);
        drop((first, outcome(second).await.expect("a place is free")));
        assert_eq!(after.room.concurrency.in_flight(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_request_waited_for_is_not_what_it_takes() {
        let states = States::default();
        let filter = filter(queued(1, 10), &states);
        let held = enters(&filter, "web");
        let waiting = waits(&filter, "web");
        tokio::time::advance(Duration::from_millis(900)).await;
        let began = Instant::now();
        drop(held);
        let served = outcome(waiting).await.unwrap();
        assert!(served.held::<Place>().next().is_some_and(|place| place.since >= began));
    }
}
