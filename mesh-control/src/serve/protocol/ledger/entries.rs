//! The names of one subscription, each with what the client was told.
//!
//! Many clients hold the same versions of the same resources. So a name and its version are one shared [`Stamp`], which a
//! [`Stamps`] has once for all streams of a server, and a stream keeps a pointer to it and a few bits.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use super::entry::{Entry, State};

/// A name, and the version that a client has.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Stamp {
    name: Arc<str>,
    version: Option<Arc<str>>,
}

/// The stamps that streams have in common.
#[derive(Debug, Default)]
pub(crate) struct Stamps(Mutex<Pool>);

#[derive(Debug, Default)]
struct Pool {
    all: HashSet<Arc<Stamp>>,
    /// How many there are when those are looked for next that no stream has any more.
    swept_at: usize,
}

/// Fewer are not worth a look.
const FEW: usize = 1024;

impl Stamps {
    fn of(&self, name: &Arc<str>, version: &Arc<str>) -> Arc<Stamp> {
        let stamp = Stamp { name: name.clone(), version: Some(version.clone()) };
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Pool { all, swept_at } = &mut *pool;
        if let Some(known) = all.get(&stamp) {
            return known.clone();
        }
        if all.len() >= (*swept_at).max(FEW) {
            all.retain(|stamp| Arc::strong_count(stamp) > 1);
            *swept_at = 2 * all.len();
            all.shrink_to(*swept_at);
        }
        let stamp = Arc::new(stamp);
        all.insert(stamp.clone());
        stamp
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).all.len()
    }
}

/// A stamp in the order of names.
#[derive(Debug)]
struct ByName(Arc<Stamp>);

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        &self.0.name
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &ByName) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for ByName {}

impl PartialOrd for ByName {
    fn partial_cmp(&self, other: &ByName) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByName {
    fn cmp(&self, other: &ByName) -> Ordering {
        self.0.name.cmp(&other.0.name)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Entries {
    stamps: Arc<Stamps>,
    all: BTreeMap<ByName, State>,
}

impl Entries {
    pub(super) fn new(stamps: Arc<Stamps>) -> Entries {
        Entries { stamps, all: BTreeMap::new() }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.all.contains_key(name)
    }

    pub(super) fn get(&self, name: &str) -> Option<Entry<'_>> {
        self.all.get_key_value(name).map(entry)
    }

    /// In the order of names.
    pub(super) fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        self.all.iter().map(entry)
    }

    pub(super) fn state(&mut self, name: &str) -> Option<&mut State> {
        self.all.get_mut(name)
    }

    pub(super) fn states(&mut self) -> impl Iterator<Item = (&str, &mut State)> {
        self.all.iter_mut().map(|(stamp, state)| (&*stamp.0.name, state))
    }

    /// Notes a name in this state, in the place of what there was of it.
    pub(super) fn put(&mut self, name: &Arc<str>, version: Option<&Arc<str>>, state: State) {
        let known = self.all.get_key_value(&**name).map(entry);
        if known.is_some_and(|known| known.version == version) {
            if let Some(known) = self.all.get_mut(&**name) {
                *known = state;
            }
            return;
        }
        // A key that is there would stay as it is.
        self.all.remove(&**name);
        let stamp = match version {
            Some(version) => self.stamps.of(name, version),
            None => Arc::new(Stamp { name: name.clone(), version: None }),
        };
        self.all.insert(ByName(stamp), state);
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Arc<str>> {
        let (stamp, _) = self.all.remove_entry(name)?;
        if self.all.is_empty() {
            mem::take(&mut self.all);
        }
        Some(stamp.0.name.clone())
    }
}

fn entry<'a>((stamp, state): (&'a ByName, &State)) -> Entry<'a> {
    Entry { name: &stamp.0.name, version: stamp.0.version.as_ref(), state: *state }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::protocol::ledger::entry::Told;

    fn put(entries: &mut Entries, name: &str, version: &str) {
        entries.put(&name.into(), Some(&version.into()), State { told: Told::Sent, ..State::default() });
    }

    #[test]
    fn what_two_streams_hold_alike_is_there_once_and_goes_with_the_last_of_them() {
        let stamps = Arc::<Stamps>::default();
        let mut streams = [0, 1].map(|_| Entries::new(stamps.clone()));
        for entries in &mut streams {
            (0..2 * FEW).for_each(|n| put(entries, &format!("name-{n}"), "1"));
        }
        assert_eq!(stamps.count(), 2 * FEW);
        put(&mut streams[0], "name-7", "2");
        assert_eq!(streams[0].get("name-7").and_then(|entry| entry.version).map(|version| &**version), Some("2"));
        assert_eq!(streams[1].get("name-7").and_then(|entry| entry.version).map(|version| &**version), Some("1"));
        let [first, _] = streams;
        drop(first);
        let mut other = Entries::new(stamps.clone());
        (0..8 * FEW).for_each(|n| put(&mut other, &format!("other-{n}"), "1"));
        drop(other);
        let mut other = Entries::new(stamps.clone());
        (0..8 * FEW).for_each(|n| put(&mut other, &format!("another-{n}"), "1"));
        assert!(stamps.count() <= 16 * FEW, "{}", stamps.count());
    }

    #[test]
    fn a_name_costs_a_stream_a_pointer_and_a_few_bits() {
        assert!(size_of::<ByName>() == size_of::<usize>() && size_of::<State>() <= 8);
    }
}
