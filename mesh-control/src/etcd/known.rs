//! What is known of the objects in etcd, and what a list or an answer of a watch means for them: plain decisions, with `now` as an
//! argument.
//!
//! Only two things say that an object is gone: an event that says so, and a list without it. A list that is suddenly empty is not
//! believed at once ([`Doubt`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::keys::{Prefix, below, text};
use super::proto::{DELETE, KeyValue, PUT, ResponseHeader, WatchResponse};
use crate::config::diagnostic::stored_name;
use crate::config::doubt::Doubt;
use crate::config::store::Resources;

/// The most that parts of one answer may have together.
const MOST_BYTES: usize = 256 << 20;

/// What is known of the objects.
#[derive(Debug)]
pub(super) struct Known {
    subject: Subject,
    names: BTreeSet<Arc<str>>,
    /// Whose they are: another cluster counts revisions in another way.
    cluster: u64,
    /// Up to which revision everything was seen.
    pub(super) revision: i64,
    doubt: Doubt,
    /// Whether nobody knows what came after that revision.
    is_expired: bool,
    parts: Parts,
}

/// Parts of an answer that is not whole yet.
#[derive(Debug, Default)]
struct Parts {
    changes: Vec<(Arc<str>, Option<Arc<str>>)>,
    bytes: usize,
}

/// What a whole list means.
#[derive(Debug, PartialEq)]
pub(super) enum Listed {
    Taken(Resources),
    /// It is empty, and nobody believes it yet.
    Doubted,
}

/// What an answer of a watch means.
#[derive(Debug, PartialEq)]
pub(super) enum Event {
    Changed(Resources),
    /// Nothing has changed.
    Silent,
    /// Only a list can say what there is, and why.
    Expired(String),
    /// The watch is over, and goes on elsewhere.
    Failed(String),
}

/// What keys are about: what they begin with, and the name and the text of the rest of a key and its value.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) root: Vec<u8>,
    pub(super) read: fn(&str, &[u8]) -> Named,
}

/// A name and its text.
pub(super) type Named = (Arc<str>, Arc<str>);

impl Subject {
    /// Objects of the configuration.
    pub(super) fn objects(prefix: &Prefix) -> Subject {
        Subject { root: prefix.objects(), read: |path, value| (stored_name(path), text(path, value)) }
    }
}

impl Known {
    pub(super) fn new(subject: Subject) -> Known {
        Known {
            subject,
            names: BTreeSet::new(),
            cluster: 0,
            revision: 0,
            doubt: Doubt::default(),
            is_expired: true,
            parts: Parts::default(),
        }
    }

    /// Takes in all that there is, as of one revision.
    pub(super) fn list(&mut self, header: ResponseHeader, kvs: &[KeyValue], now: Instant) -> Listed {
        let found = kvs.iter().filter_map(|kv| {
            let path = below(&self.subject.root, &kv.key)?;
            Some((self.subject.read)(path, &kv.value))
        });
        let found: Vec<(Arc<str>, Arc<str>)> = found.collect();
        let is_older = header.revision < self.revision;
        if found.is_empty() && !self.names.is_empty() && !self.doubt.is_over(is_older, now) {
            return Listed::Doubted;
        }
        self.doubt = Doubt::default();
        let names: BTreeSet<Arc<str>> = found.iter().map(|(name, _)| name.clone()).collect();
        let gone = self.names.difference(&names).map(|name| (name.clone(), None));
        let mut changed: Resources = gone.collect();
        changed.extend(found.into_iter().map(|(name, text)| (name, Some(text))));
        (self.names, self.cluster, self.revision) = (names, header.cluster_id, header.revision);
        self.is_expired = false;
        self.parts = Parts::default();
        Listed::Taken(changed)
    }

    /// What is known is too old to go on from. What is there stays known.
    pub(super) fn expire(&mut self) {
        self.is_expired = true;
    }

    /// Whether a list has to say what there is.
    pub(super) fn needs_list(&self) -> bool {
        self.is_expired
    }

    /// A new watch begins with what the one before had not told whole.
    pub(super) fn rewatch(&mut self) {
        self.parts = Parts::default();
    }

    /// Takes in one answer of a watch.
    pub(super) fn event(&mut self, response: WatchResponse) -> Event {
        let header = response.header.unwrap_or_default();
        if response.compact_revision != 0 {
            return Event::Expired(format!("revision {} is forgotten (compaction)", self.revision + 1));
        }
        if response.canceled {
            return Event::Failed(format!("the watch was ended: {}", response.cancel_reason));
        }
        if header.cluster_id != self.cluster {
            return Event::Expired("it is another cluster".to_owned());
        }
        if response.created {
            // A member that lags behind, or a store that was set back to a copy: a list, which all members agree on, says which.
            return match header.revision < self.revision {
                true => Event::Expired(format!("its revision is {}, and {} was seen", header.revision, self.revision)),
                false => Event::Silent,
            };
        }
        let last = response.events.iter().rev().find_map(|event| Some(event.kv.as_ref()?.mod_revision));
        for event in response.events {
            let Some(kv) = event.kv else { continue };
            let Some(path) = below(&self.subject.root, &kv.key) else { continue };
            let (name, text) = (self.subject.read)(path, &kv.value);
            let content = match event.kind {
                PUT => Some(text),
                DELETE => None,
                other => return Event::Expired(format!("an event of the kind {other}")),
            };
            self.parts.bytes += kv.key.len() + kv.value.len();
            self.parts.changes.push((name, content));
        }
        if response.fragment {
            return match self.parts.bytes > MOST_BYTES {
                true => Event::Expired(format!("more than {} MiB of changes", MOST_BYTES >> 20)),
                false => Event::Silent,
            };
        }
        // The header of an answer with events may be ahead of them. One without any says how far the watch has come.
        self.revision = self.revision.max(last.unwrap_or(header.revision));
        let Parts { changes, .. } = std::mem::take(&mut self.parts);
        if changes.is_empty() {
            return Event::Silent;
        }
        for (name, content) in &changes {
            match content {
                Some(_) => _ = self.names.insert(name.clone()),
                None => _ = self.names.remove(name),
            }
        }
        Event::Changed(changes.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::proto;
    use super::*;

    fn known() -> Known {
        Known::new(Subject::objects(&Prefix::parse("/mesh").expect("a prefix")))
    }

    fn header(revision: i64) -> ResponseHeader {
        ResponseHeader { cluster_id: 1, member_id: 1, revision }
    }

    fn kv(name: &str, revision: i64) -> KeyValue {
        let key = format!("/mesh/objects/services/shop/{name}").into_bytes();
        KeyValue { key, mod_revision: revision, value: b"{}".to_vec(), ..KeyValue::default() }
    }

    fn names(changed: &Resources) -> Vec<(String, bool)> {
        changed
            .iter()
            .map(|(name, text)| (name.rsplit('/').next().unwrap_or_default().to_owned(), text.is_some()))
            .collect()
    }

    fn listed(known: &mut Known, all: &[&str], revision: i64, now: Instant) -> Option<Vec<(String, bool)>> {
        let all: Vec<KeyValue> = all.iter().map(|name| kv(name, revision)).collect();
        match known.list(header(revision), &all, now) {
            Listed::Taken(changed) => Some(names(&changed)),
            Listed::Doubted => None,
        }
    }

    fn told(events: &[(i32, &str, i64)], revision: i64) -> WatchResponse {
        let event =
            |(kind, name, revision): &(i32, &str, i64)| proto::Event { kind: *kind, kv: Some(kv(name, *revision)) };
        let events = events.iter().map(event).collect();
        WatchResponse { header: Some(header(revision)), events, ..WatchResponse::default() }
    }

    #[test]
    fn x17_a_list_says_what_is_gone_and_one_that_is_suddenly_empty_is_not_believed_at_once() {
        let (mut known, start) = (known(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let pair = |name: &str, is_there| (name.to_owned(), is_there);
        assert_eq!(listed(&mut known, &[], 1, at(0)), Some(vec![]));
        assert_eq!(listed(&mut known, &["a", "b"], 5, at(0)), Some(vec![pair("a", true), pair("b", true)]));
        assert_eq!(
            listed(&mut known, &["b", "c"], 9, at(0)),
            Some(vec![pair("a", false), pair("b", true), pair("c", true)])
        );
        for seconds in [1, 2, 3, 30] {
            assert_eq!(listed(&mut known, &[], 10, at(seconds)), None, "{seconds}");
        }
        assert_eq!(listed(&mut known, &[], 10, at(31)), Some(vec![pair("b", false), pair("c", false)]));
        // A store that has lost everything counts from the beginning.
        listed(&mut known, &["a"], 50, at(40));
        for seconds in [41, 60, 90, 900] {
            assert_eq!(listed(&mut known, &[], 2, at(seconds)), None);
        }
    }

    #[test]
    fn x19_events_move_the_revision_only_as_far_as_they_go_and_parts_count_when_they_are_whole() {
        let mut known = known();
        listed(&mut known, &["a"], 5, Instant::now());
        // The header is ahead of the events: those between come next.
        let Event::Changed(changed) = known.event(told(&[(PUT, "b", 6), (DELETE, "a", 7)], 99)) else { panic!() };
        assert_eq!((names(&changed), known.revision), (vec![("a".to_owned(), false), ("b".to_owned(), true)], 7));
        assert_eq!(known.event(told(&[], 20)), Event::Silent);
        assert_eq!(known.revision, 20);
        let part = WatchResponse { fragment: true, ..told(&[(PUT, "c", 21)], 21) };
        assert_eq!((known.event(part.clone()), known.revision), (Event::Silent, 20));
        let Event::Changed(changed) = known.event(told(&[(PUT, "d", 21)], 21)) else { panic!() };
        assert_eq!((names(&changed).len(), known.revision), (2, 21));
        // A part of which the rest never came is told again by the next watch.
        known.event(part);
        known.rewatch();
        let Event::Changed(changed) = known.event(told(&[(PUT, "e", 22)], 22)) else { panic!() };
        assert_eq!(names(&changed), [("e".to_owned(), true)]);
    }

    #[test]
    fn x19_compaction_another_cluster_and_a_store_that_was_set_back_are_for_a_list_to_say() {
        let mut known = known();
        listed(&mut known, &["a"], 5, Instant::now());
        let answer = |change: &dyn Fn(&mut WatchResponse)| {
            let mut answer = told(&[], 6);
            change(&mut answer);
            answer
        };
        let created = |revision| answer(&|it| (it.created, it.header) = (true, Some(header(revision))));
        assert_eq!(known.event(created(5)), Event::Silent);
        let expired = [
            answer(&|it| (it.canceled, it.compact_revision) = (true, 9)),
            answer(&|it| it.header = Some(ResponseHeader { cluster_id: 2, ..header(6) })),
            created(4),
            told(&[(7, "a", 6)], 6),
        ];
        for answer in expired {
            assert!(matches!(known.event(answer.clone()), Event::Expired(_)), "{answer:?}");
        }
        let canceled = answer(&|it| (it.canceled, it.cancel_reason) = (true, "no leader".to_owned()));
        assert!(matches!(known.event(canceled), Event::Failed(why) if why.contains("no leader")));
        assert_eq!(known.revision, 5, "nothing was missed");
    }
}
