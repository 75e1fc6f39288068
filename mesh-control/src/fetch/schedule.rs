//! When what is fetched, and what is known of it: plain functions of `now` and of what came of earlier fetches.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// How soon a fetch that failed is tried again: twice as long each time, up to a minute (Istio: a minute).
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What is fetched from each source `S` that somebody wants, as `V`.
#[derive(Debug)]
pub(crate) struct Schedule<S, V> {
    sources: BTreeMap<S, State<V>>,
    /// Those that are being fetched: never twice at a time, whatever becomes of the configuration.
    in_flight: BTreeSet<S>,
    most_stale: Option<Duration>,
    is_patient: bool,
}

/// How a source is to be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// How long a fetch may take.
    pub(crate) timeout: Duration,
    /// How often what is known is fetched again.
    pub(crate) refresh: Duration,
}

#[derive(Debug)]
struct State<V> {
    wanted: Wanted,
    good: Option<Good<V>>,
    failures: u32,
    why: Option<String>,
    due: Instant,
}

/// What was fetched, and when.
#[derive(Clone, Debug)]
pub(crate) struct Good<V> {
    pub(crate) value: V,
    pub(crate) since: Instant,
}

impl<S: Ord + Clone, V> Schedule<S, V> {
    /// Where what was fetched is good until something else is.
    pub(crate) fn new() -> Schedule<S, V> {
        Schedule { sources: BTreeMap::new(), in_flight: BTreeSet::new(), most_stale: None, is_patient: false }
    }

    /// Where it is good for so long, if nobody can fetch it again.
    pub(crate) fn good_for(self, most_stale: Duration) -> Schedule<S, V> {
        Schedule { most_stale: Some(most_stale), ..self }
    }

    /// Where something is known, it is not fetched again before its time, be it that the last fetch has failed.
    pub(crate) fn patient(self) -> Schedule<S, V> {
        Schedule { is_patient: true, ..self }
    }

    /// These sources are wanted from now on. `kept` is what an earlier process knew.
    pub(crate) fn want(&mut self, wanted: &BTreeMap<S, Wanted>, kept: &mut BTreeMap<S, Good<V>>, now: Instant) {
        self.sources.retain(|source, _| wanted.contains_key(source));
        for (source, wanted) in wanted {
            let new = || State { wanted: *wanted, good: kept.remove(source), failures: 0, why: None, due: now };
            self.sources.entry(source.clone()).or_insert_with(new).wanted = *wanted;
        }
        self.forget_stale(now);
    }

    /// What is to be fetched now, so many at most. It is in flight until [`Schedule::done`].
    pub(crate) fn take_due(&mut self, now: Instant, most: usize) -> Vec<(S, Duration)> {
        let due = self.sources.iter().filter(|(source, state)| state.due <= now && !self.in_flight.contains(*source));
        let due: Vec<_> = due.take(most).map(|(source, state)| (source.clone(), state.wanted.timeout)).collect();
        self.in_flight.extend(due.iter().map(|(source, _)| source.clone()));
        due
    }

    /// A source is to be fetched again so often.
    pub(crate) fn refresh(&mut self, source: &S, refresh: Duration) {
        if let Some(state) = self.sources.get_mut(source) {
            state.wanted.refresh = refresh;
        }
    }

    /// When there is something to fetch next.
    pub(crate) fn next(&self) -> Option<Instant> {
        let waiting = self.sources.iter().filter(|(source, _)| !self.in_flight.contains(*source));
        waiting.map(|(_, state)| state.due).min()
    }

    /// Whether of each either something is known, or why nothing is.
    pub(crate) fn all_tried(&self) -> bool {
        self.sources.values().all(|state| state.good.is_some() || state.why.is_some())
    }

    /// A fetch has ended. What was known stays if it failed.
    pub(crate) fn done(&mut self, source: &S, outcome: Result<V, String>, now: Instant, spread: f64) {
        self.in_flight.remove(source);
        let Some(state) = self.sources.get_mut(source) else { return };
        let wait = match outcome {
            Ok(value) => {
                state.good = Some(Good { value, since: now });
                (state.failures, state.why) = (0, None);
                state.wanted.refresh
            }
            Err(why) => {
                state.why = Some(why);
                let wait = FIRST_RETRY.saturating_mul(1 << state.failures.min(10)).min(LAST_RETRY);
                state.failures = state.failures.saturating_add(1);
                if self.is_patient && state.good.is_some() { state.wanted.refresh } else { wait }
            }
        };
        // Many that were asked for together are not asked for together for ever.
        state.due = now + wait.mul_f64(0.9 + 0.2 * spread.clamp(0.0, 1.0));
        self.forget_stale(now);
    }

    fn forget_stale(&mut self, now: Instant) {
        let Some(most) = self.most_stale else { return };
        for state in self.sources.values_mut() {
            state.good.take_if(|good| now.saturating_duration_since(good.since) >= most);
        }
    }

    /// What is known.
    pub(crate) fn good(&self) -> impl Iterator<Item = (&S, &Good<V>)> {
        self.sources.iter().filter_map(|(source, state)| Some((source, state.good.as_ref()?)))
    }

    /// Why something could not be fetched the last time, and since when what is known instead was.
    pub(crate) fn failed(&self) -> impl Iterator<Item = (&S, &str, Option<Instant>)> {
        let failed = self.sources.iter().filter_map(|(source, state)| Some((source, state, state.why.as_deref()?)));
        failed.map(|(source, state, why)| (source, why, state.good.as_ref().map(|good| good.since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Texts = Schedule<&'static str, &'static str>;

    const REFRESH: Duration = Duration::from_secs(1_200);
    const MOST_STALE: Duration = Duration::from_secs(7 * 24 * 3_600);

    fn new() -> Texts {
        Schedule::new().good_for(MOST_STALE)
    }

    fn wanted(names: &[&'static str]) -> BTreeMap<&'static str, Wanted> {
        let wanted = Wanted { timeout: Duration::from_secs(5), refresh: REFRESH };
        names.iter().map(|name| (*name, wanted)).collect()
    }

    fn due(schedule: &mut Texts, now: Instant) -> Vec<&'static str> {
        schedule.take_due(now, 16).into_iter().map(|(source, _)| source).collect()
    }

    fn known(schedule: &Texts) -> Vec<(&'static str, &'static str)> {
        schedule.good().map(|(source, good)| (*source, good.value)).collect()
    }

    /// Hours of failures after something was fetched once: the waits in seconds.
    fn waits_of(schedule: &mut Texts, mut now: Instant, count: usize) -> Vec<u64> {
        let waits = (0..count).map(|_| {
            let next = schedule.next().expect("another try");
            let wait = (next - now).as_secs();
            now = next;
            assert_eq!(due(schedule, now), ["a"]);
            schedule.done(&"a", Err("500".to_owned()), now, 0.5);
            wait
        });
        waits.collect()
    }

    #[test]
    fn j6_the_last_good_keys_stay_while_a_fetch_fails_and_not_for_ever() {
        let (start, mut schedule) = (Instant::now(), new());
        schedule.want(&wanted(&["a"]), &mut BTreeMap::new(), start);
        assert_eq!(due(&mut schedule, start), ["a"]);
        schedule.done(&"a", Err("500".to_owned()), start, 0.5);
        assert!(known(&schedule).is_empty(), "nothing is made up");
        assert_eq!(schedule.failed().collect::<Vec<_>>(), [(&"a", "500", None)]);
        let now = schedule.next().expect("another try");
        assert_eq!(now, start + FIRST_RETRY);
        assert_eq!(due(&mut schedule, now), ["a"]);
        schedule.done(&"a", Ok("keys"), now, 0.5);
        assert_eq!(known(&schedule), [("a", "keys")]);
        assert!(schedule.failed().next().is_none());
        assert_eq!(waits_of(&mut schedule, now, 7), [1_200, 5, 10, 20, 40, 60, 60]);
        assert_eq!(known(&schedule), [("a", "keys")]);
        assert_eq!(schedule.failed().collect::<Vec<_>>(), [(&"a", "500", Some(now))]);
        schedule.want(&wanted(&["a"]), &mut BTreeMap::new(), now + MOST_STALE);
        assert!(known(&schedule).is_empty(), "they are as old as that");
    }

    #[test]
    fn what_is_known_is_fetched_again_at_its_time_and_what_is_not_soon() {
        let (start, mut schedule) = (Instant::now(), Texts::new().patient());
        schedule.want(&wanted(&["a"]), &mut BTreeMap::new(), start);
        assert_eq!(waits_of(&mut schedule, start, 3), [0, 5, 10]);
        let now = schedule.next().expect("another try");
        assert_eq!(due(&mut schedule, now), ["a"]);
        schedule.refresh(&"a", Duration::from_secs(60));
        schedule.done(&"a", Ok("bundle"), now, 0.5);
        assert_eq!(waits_of(&mut schedule, now, 3), [60, 60, 60]);
        schedule.want(&wanted(&["a"]), &mut BTreeMap::new(), now + 1_000 * MOST_STALE);
        assert_eq!(known(&schedule), [("a", "bundle")], "it is good until another one is");
    }

    #[test]
    fn j11_nothing_is_fetched_twice_at_a_time_or_before_its_time() {
        let (now, mut schedule) = (Instant::now(), new());
        schedule.want(&wanted(&["a", "b"]), &mut BTreeMap::new(), now);
        assert_eq!(due(&mut schedule, now), ["a", "b"]);
        assert!(due(&mut schedule, now).is_empty() && schedule.next().is_none());
        // The object is taken out and written again while it is in flight.
        schedule.want(&wanted(&["b"]), &mut BTreeMap::new(), now);
        schedule.want(&wanted(&["a", "b"]), &mut BTreeMap::new(), now);
        assert!(due(&mut schedule, now).is_empty());
        schedule.done(&"a", Ok("keys"), now, 0.0);
        assert_eq!(schedule.next(), Some(now + REFRESH.mul_f64(0.9)));
        schedule.want(&wanted(&["a", "b"]), &mut BTreeMap::new(), now + Duration::from_secs(1));
        assert!(due(&mut schedule, now + Duration::from_secs(1)).is_empty());
        // What nobody wants any more is forgotten, and its answer too.
        schedule.want(&wanted(&[]), &mut BTreeMap::new(), now);
        schedule.done(&"b", Ok("keys"), now, 0.0);
        assert!(known(&schedule).is_empty() && schedule.next().is_none());
    }

    #[test]
    fn keys_of_an_earlier_process_are_good_and_fetched_again_at_once() {
        let (now, mut schedule) = (Instant::now() + 2 * MOST_STALE, new());
        let kept = |age: Duration| Good { value: "kept", since: now - age };
        let mut all = BTreeMap::from([
            ("a", kept(Duration::from_secs(60))),
            ("old", kept(MOST_STALE)),
            ("gone", kept(Duration::ZERO)),
        ]);
        schedule.want(&wanted(&["a", "old"]), &mut all, now);
        assert_eq!(known(&schedule), [("a", "kept")]);
        assert_eq!(due(&mut schedule, now), ["a", "old"]);
    }
}
