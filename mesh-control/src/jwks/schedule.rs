//! When the keys of which issuer are fetched, and what is known of them: plain functions of `now` and of what came of
//! earlier fetches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::policy::tokens::{FetchedKeys, KeySource};

/// How soon a fetch that failed is tried again: twice as long each time, up to a minute (Istio: a minute).
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// For how long keys are good that nobody can fetch again (Istio: 7 days).
pub(super) const MOST_STALE: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Every source of keys that the configuration names.
#[derive(Debug)]
pub(crate) struct Schedule {
    refresh: Duration,
    sources: BTreeMap<KeySource, State>,
    /// Those that are being fetched: never twice at a time, whatever becomes of the configuration.
    in_flight: BTreeSet<KeySource>,
}

#[derive(Debug)]
struct State {
    timeout: Duration,
    good: Option<Good>,
    failures: u32,
    why: Option<String>,
    due: Instant,
}

/// Keys, and when they were fetched.
#[derive(Clone, Debug)]
pub(crate) struct Good {
    pub(crate) keys: Arc<str>,
    pub(crate) since: Instant,
}

impl Schedule {
    /// Where keys are fetched again so often.
    pub(crate) fn new(refresh: Duration) -> Schedule {
        Schedule { refresh, sources: BTreeMap::new(), in_flight: BTreeSet::new() }
    }

    /// These sources are wanted from now on, with how long a fetch of each may take. `kept` are keys of an earlier process.
    pub(crate) fn want(
        &mut self,
        wanted: &BTreeMap<KeySource, Duration>,
        kept: &mut BTreeMap<KeySource, Good>,
        now: Instant,
    ) {
        self.sources.retain(|source, _| wanted.contains_key(source));
        for (source, timeout) in wanted {
            let new = || State { timeout: *timeout, good: kept.remove(source), failures: 0, why: None, due: now };
            self.sources.entry(source.clone()).or_insert_with(new).timeout = *timeout;
        }
        self.forget_stale(now);
    }

    /// What is to be fetched now, so many at most. It is in flight until [`Schedule::done`].
    pub(crate) fn take_due(&mut self, now: Instant, most: usize) -> Vec<(KeySource, Duration)> {
        let due = self.sources.iter().filter(|(source, state)| state.due <= now && !self.in_flight.contains(*source));
        let due: Vec<_> = due.take(most).map(|(source, state)| (source.clone(), state.timeout)).collect();
        self.in_flight.extend(due.iter().map(|(source, _)| source.clone()));
        due
    }

    /// When there is something to fetch next.
    pub(crate) fn next(&self) -> Option<Instant> {
        let waiting = self.sources.iter().filter(|(source, _)| !self.in_flight.contains(*source));
        waiting.map(|(_, state)| state.due).min()
    }

    /// Whether of each either keys are known, or why there are none.
    pub(crate) fn all_tried(&self) -> bool {
        self.sources.values().all(|state| state.good.is_some() || state.why.is_some())
    }

    /// A fetch has ended. What was known stays if it failed.
    pub(crate) fn done(&mut self, source: &KeySource, outcome: Result<Arc<str>, String>, now: Instant, spread: f64) {
        self.in_flight.remove(source);
        let Some(state) = self.sources.get_mut(source) else { return };
        let wait = match outcome {
            Ok(keys) => {
                state.good = Some(Good { keys, since: now });
                (state.failures, state.why) = (0, None);
                self.refresh
            }
            Err(why) => {
                state.why = Some(why);
                let wait = FIRST_RETRY.saturating_mul(1 << state.failures.min(10)).min(LAST_RETRY);
                state.failures = state.failures.saturating_add(1);
                wait
            }
        };
        // Many that were asked for together are not asked for together for ever.
        state.due = now + wait.mul_f64(0.9 + 0.2 * spread.clamp(0.0, 1.0));
        self.forget_stale(now);
    }

    fn forget_stale(&mut self, now: Instant) {
        for state in self.sources.values_mut() {
            let is_stale = |good: &Good| now.saturating_duration_since(good.since) >= MOST_STALE;
            state.good.take_if(|good| is_stale(good));
        }
    }

    /// The keys that are known.
    pub(crate) fn keys(&self) -> FetchedKeys {
        self.good().map(|(source, good)| (source.clone(), Arc::clone(&good.keys))).collect()
    }

    /// The same, with their age.
    pub(crate) fn good(&self) -> impl Iterator<Item = (&KeySource, &Good)> {
        self.sources.iter().filter_map(|(source, state)| Some((source, state.good.as_ref()?)))
    }

    /// Why keys could not be fetched the last time, and what holds meanwhile.
    pub(crate) fn problems(&self, now: Instant) -> BTreeMap<KeySource, String> {
        let failed = self.sources.iter().filter_map(|(source, state)| {
            let why = state.why.as_ref()?;
            let meanwhile = match &state.good {
                None => "its tokens are refused with 401".to_owned(),
                Some(good) => {
                    let minutes = now.saturating_duration_since(good.since).as_secs() / 60;
                    format!("the last good ones, {minutes} min old, stay in force")
                }
            };
            Some((source.clone(), format!("the keys cannot be fetched: {why}; {meanwhile}")))
        });
        failed.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str) -> KeySource {
        KeySource::Uri(name.to_owned())
    }

    fn wanted(names: &[&str]) -> BTreeMap<KeySource, Duration> {
        names.iter().map(|name| (source(name), Duration::from_secs(5))).collect()
    }

    fn due(schedule: &mut Schedule, now: Instant) -> Vec<KeySource> {
        schedule.take_due(now, 16).into_iter().map(|(source, _)| source).collect()
    }

    const REFRESH: Duration = Duration::from_secs(1_200);

    #[test]
    fn j6_the_last_good_keys_stay_while_a_fetch_fails_and_not_for_ever() {
        let (start, mut schedule) = (Instant::now(), Schedule::new(REFRESH));
        schedule.want(&wanted(&["a"]), &mut BTreeMap::new(), start);
        assert_eq!(due(&mut schedule, start), [source("a")]);
        schedule.done(&source("a"), Err("500".to_owned()), start, 0.5);
        assert!(schedule.keys().is_empty(), "no keys are made up");
        assert!(schedule.problems(start)[&source("a")].contains("500; its tokens are refused with 401"));
        let mut now = schedule.next().expect("another try");
        assert_eq!(now, start + FIRST_RETRY);
        assert_eq!(due(&mut schedule, now), [source("a")]);
        schedule.done(&source("a"), Ok("keys".into()), now, 0.5);
        assert_eq!(schedule.keys(), FetchedKeys::from([(source("a"), "keys".into())]));
        assert!(schedule.problems(now).is_empty());
        let good_since = now;
        assert_eq!(schedule.next(), Some(now + REFRESH));
        let mut waits = Vec::new();
        while now < good_since + MOST_STALE {
            assert_eq!(schedule.keys().len(), 1, "after {:?}", now - good_since);
            let next = schedule.next().expect("another try");
            waits.push((next - now).as_secs());
            now = next;
            due(&mut schedule, now);
            schedule.done(&source("a"), Err("500".to_owned()), now, 0.5);
        }
        assert_eq!(&waits[..7], [1_200, 5, 10, 20, 40, 60, 60]);
        assert!(schedule.keys().is_empty(), "they are as old as that");
    }

    #[test]
    fn j11_nothing_is_fetched_twice_at_a_time_or_before_its_time() {
        let (now, mut schedule) = (Instant::now(), Schedule::new(REFRESH));
        schedule.want(&wanted(&["a", "b"]), &mut BTreeMap::new(), now);
        assert_eq!(due(&mut schedule, now), [source("a"), source("b")]);
        assert!(due(&mut schedule, now).is_empty() && schedule.next().is_none());
        // The object is taken out and written again while it is in flight.
        schedule.want(&wanted(&["b"]), &mut BTreeMap::new(), now);
        schedule.want(&wanted(&["a", "b"]), &mut BTreeMap::new(), now);
        assert!(due(&mut schedule, now).is_empty());
        schedule.done(&source("a"), Ok("keys".into()), now, 0.0);
        assert_eq!(schedule.next(), Some(now + REFRESH.mul_f64(0.9)));
        schedule.want(&wanted(&["a", "b"]), &mut BTreeMap::new(), now + Duration::from_secs(1));
        assert!(due(&mut schedule, now + Duration::from_secs(1)).is_empty());
        // What nobody wants any more is forgotten, and its answer too.
        schedule.want(&wanted(&[]), &mut BTreeMap::new(), now);
        schedule.done(&source("b"), Ok("keys".into()), now, 0.0);
        assert!(schedule.keys().is_empty() && schedule.next().is_none());
    }

    #[test]
    fn keys_of_an_earlier_process_are_good_and_fetched_again_at_once() {
        let (now, mut schedule) = (Instant::now() + 2 * MOST_STALE, Schedule::new(REFRESH));
        let kept = |age: Duration| Good { keys: "kept".into(), since: now - age };
        let mut all = BTreeMap::from([
            (source("a"), kept(Duration::from_secs(60))),
            (source("old"), kept(MOST_STALE)),
            (source("gone"), kept(Duration::ZERO)),
        ]);
        schedule.want(&wanted(&["a", "old"]), &mut all, now);
        assert_eq!(schedule.keys(), FetchedKeys::from([(source("a"), "kept".into())]));
        assert_eq!(due(&mut schedule, now), [source("a"), source("old")]);
    }
}
