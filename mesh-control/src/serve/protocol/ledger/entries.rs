//! The names of one subscription, each with what the client was told.
//!
//! Many clients hold the same versions of the same resources, and were told the same of them. So a name and its version are one
//! shared [`Stamp`], and what a stream has is in leaves, of some [`LEAF`] names each, which are shared as well: an [`Interner`] has
//! either once for all streams of a server. Where a leaf ends depends on nothing but the name that it ends with, so that two
//! streams with the same names have the same leaves, in whatever order they asked. A stream that is told something new has a
//! leaf of its own, until it is [shared](Entries::share).

use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::entry::{Entry, State};

/// One name in so many ends a leaf.
const LEAF: u64 = 32;

/// A name, and the version that a client has.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Stamp {
    name: Arc<str>,
    version: Option<Arc<str>>,
}

/// A name, and what the client was told of it.
type Held = (Arc<Stamp>, State);

/// Some names, in order.
#[derive(Clone, Debug, Default)]
struct Leaf(Vec<Held>);

impl Leaf {
    fn last(&self) -> Option<&str> {
        self.0.last().map(|(stamp, _)| &*stamp.name)
    }

    /// Where a name is, or else where it belongs.
    fn find(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(stamp, _)| (*stamp.name).cmp(name))
    }
}

// Stamps of a pool are the same if they are one.
fn key((stamp, state): &Held) -> (*const Stamp, State) {
    (Arc::as_ptr(stamp), *state)
}

impl PartialEq for Leaf {
    fn eq(&self, other: &Leaf) -> bool {
        self.0.iter().map(key).eq(other.0.iter().map(key))
    }
}

impl Eq for Leaf {}

impl Hash for Leaf {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.0.iter().map(key).for_each(|key| key.hash(hasher));
    }
}

/// What streams have in common.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    pool: Mutex<Pool>,
    /// Decides which names end a leaf. No client knows: one could ask for thousands of names without any that does.
    ends: RandomState,
}

#[derive(Debug, Default)]
struct Pool {
    stamps: Pooled<Stamp>,
    leaves: Pooled<Leaf>,
}

/// What there is once for all who have the same.
#[derive(Debug)]
struct Pooled<T> {
    all: HashSet<Arc<T>>,
    /// How many there are when those are looked for next that no stream has any more.
    swept_at: usize,
}

/// Fewer are not worth a look.
const FEW: usize = 64;

impl<T> Default for Pooled<T> {
    fn default() -> Pooled<T> {
        Pooled { all: HashSet::new(), swept_at: FEW }
    }
}

impl<T: Eq + Hash> Pooled<T> {
    fn of(&mut self, one: T) -> Arc<T> {
        if let Some(known) = self.all.get(&one) {
            return known.clone();
        }
        if self.all.len() >= self.swept_at {
            self.all.retain(|one| Arc::strong_count(one) > 1);
            self.swept_at = FEW.max(2 * self.all.len());
            self.all.shrink_to(self.swept_at);
        }
        let one = Arc::new(one);
        self.all.insert(one.clone());
        one
    }
}

impl Interner {
    fn stamp(&self, name: &Arc<str>, version: Option<&Arc<str>>) -> Arc<Stamp> {
        self.pool().stamps.of(Stamp { name: name.clone(), version: version.cloned() })
    }

    fn leaf(&self, mut leaf: Leaf) -> Arc<Leaf> {
        leaf.0.shrink_to_fit();
        self.pool().leaves.of(leaf)
    }

    /// Whether a leaf ends with this name.
    fn ends(&self, name: &str) -> bool {
        self.ends.hash_one(name).is_multiple_of(LEAF)
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.pool().stamps.all.len()
    }

    /// How many leaves streams have.
    #[cfg(test)]
    pub(crate) fn leaves(&self) -> usize {
        self.pool().leaves.all.iter().filter(|leaf| Arc::strong_count(leaf) > 1).count()
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Entries {
    interner: Arc<Interner>,
    /// In the order of names, none of them empty. All but the last one end with a name that ends a leaf, and have no other.
    leaves: Vec<Arc<Leaf>>,
    /// All of them are those of the pool.
    is_shared: bool,
}

impl Entries {
    pub(super) fn new(interner: Arc<Interner>) -> Entries {
        Entries { interner, leaves: Vec::new(), is_shared: true }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.find(name).1.is_ok()
    }

    pub(super) fn get(&self, name: &str) -> Option<Entry<'_>> {
        let (leaf, place) = self.find(name);
        self.leaves.get(leaf)?.0.get(place.ok()?).map(entry)
    }

    /// In the order of names.
    pub(super) fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        self.leaves.iter().flat_map(|leaf| &leaf.0).map(entry)
    }

    /// Notes another state of a name that is there.
    pub(super) fn set(&mut self, name: &str, state: State) {
        let (leaf, Ok(at)) = self.find(name) else { return };
        let known = self.leaves.get(leaf).and_then(|leaf| leaf.0.get(at));
        if known.is_some_and(|(_, known)| *known == state) {
            return;
        }
        if let Some((_, known)) = self.own(leaf).and_then(|own| own.get_mut(at)) {
            *known = state;
        }
    }

    /// Notes a name in this state, in the place of what there was of it.
    pub(super) fn put(&mut self, name: &Arc<str>, version: Option<&Arc<str>>, state: State) {
        let (leaf, place) = self.find(name);
        let known = place.ok().and_then(|at| self.leaves.get(leaf)?.0.get(at));
        if known.is_some_and(|(stamp, _)| stamp.version.as_ref() == version) {
            return self.set(name, state);
        }
        let stamp = self.interner.stamp(name, version);
        match place {
            Ok(at) => {
                if let Some(known) = self.own(leaf).and_then(|own| own.get_mut(at)) {
                    *known = (stamp, state);
                }
            }
            Err(at) => self.insert(leaf, at, (stamp, state)),
        }
    }

    fn insert(&mut self, leaf: usize, at: usize, entry: Held) {
        let ends = self.interner.ends(&entry.0.name);
        if leaf == self.leaves.len() {
            self.leaves.push(Arc::default());
        }
        let Some(own) = self.own(leaf) else { return };
        own.insert(at, entry);
        if ends && at + 1 < own.len() {
            let behind = own.split_off(at + 1);
            self.leaves.insert(leaf + 1, Arc::new(Leaf(behind)));
        }
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Arc<str>> {
        let (leaf, Ok(at)) = self.find(name) else { return None };
        let own = self.own(leaf)?;
        let (stamp, _) = own.remove(at);
        let (was_last, is_empty) = (at == own.len(), own.is_empty());
        if is_empty {
            self.leaves.remove(leaf);
        } else if was_last && leaf + 1 < self.leaves.len() {
            // Nothing ends it any more.
            let next = self.leaves.remove(leaf + 1);
            self.own(leaf)?.extend(Arc::unwrap_or_clone(next).0);
        }
        Some(stamp.name.clone())
    }

    /// Has with other streams in common what they have alike. To be called when a while may pass before the next change.
    pub(super) fn share(&mut self) {
        if mem::replace(&mut self.is_shared, true) {
            return;
        }
        for leaf in &mut self.leaves {
            // The pool has the others.
            if Arc::strong_count(leaf) == 1 {
                *leaf = self.interner.leaf(mem::take(Arc::make_mut(leaf)));
            }
        }
        self.leaves.shrink_to_fit();
    }

    /// The leaf of a name and its place there, or else those where it belongs. There may be no such leaf yet.
    fn find(&self, name: &str) -> (usize, Result<usize, usize>) {
        let leaf = self.leaves.partition_point(|leaf| leaf.last() < Some(name));
        if let Some(found) = self.leaves.get(leaf) {
            return (leaf, found.find(name));
        }
        match self.leaves.split_last() {
            Some((last, before)) if last.last().is_some_and(|name| !self.interner.ends(name)) => {
                (before.len(), Err(last.0.len()))
            }
            _ => (leaf, Err(0)),
        }
    }

    /// A leaf as this stream's own, which may be changed.
    fn own(&mut self, leaf: usize) -> Option<&mut Vec<Held>> {
        self.is_shared = false;
        self.leaves.get_mut(leaf).map(|leaf| &mut Arc::make_mut(leaf).0)
    }
}

fn entry((stamp, state): &Held) -> Entry<'_> {
    Entry { name: &stamp.name, version: stamp.version.as_ref(), state: *state }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::serve::protocol::ledger::entry::Told;

    fn put(entries: &mut Entries, name: &str, version: &str) {
        entries.put(&name.into(), Some(&version.into()), State { told: Told::Sent, ..State::default() });
    }

    fn hold<'a>(interner: &Arc<Interner>, names: impl Iterator<Item = &'a String>) -> Entries {
        let mut entries = Entries::new(interner.clone());
        names.for_each(|name| put(&mut entries, name, "1"));
        entries.share();
        entries
    }

    #[test]
    fn what_two_streams_hold_alike_is_there_once_and_goes_with_the_last_of_them() {
        let interner = Arc::<Interner>::default();
        let mut streams = [0, 1].map(|_| Entries::new(interner.clone()));
        for entries in &mut streams {
            (0..2 * FEW).for_each(|n| put(entries, &format!("name-{n}"), "1"));
        }
        assert_eq!(interner.count(), 2 * FEW);
        put(&mut streams[0], "name-7", "2");
        assert_eq!(streams[0].get("name-7").and_then(|entry| entry.version).map(|version| &**version), Some("2"));
        assert_eq!(streams[1].get("name-7").and_then(|entry| entry.version).map(|version| &**version), Some("1"));
        let [first, _] = streams;
        drop(first);
        let mut other = Entries::new(interner.clone());
        (0..8 * FEW).for_each(|n| put(&mut other, &format!("other-{n}"), "1"));
        drop(other);
        let mut other = Entries::new(interner.clone());
        (0..8 * FEW).for_each(|n| put(&mut other, &format!("another-{n}"), "1"));
        assert!(interner.count() <= 16 * FEW, "{}", interner.count());
    }

    #[test]
    fn streams_with_the_same_names_have_the_same_leaves_and_one_that_differs_has_one_of_its_own() {
        let interner = Arc::<Interner>::default();
        let names: Vec<String> = (0..2_000).map(|n| format!("name-{n}")).collect();
        let first = hold(&interner, names.iter());
        let leaves = interner.leaves();
        // One in 32 names ends a leaf: that it is so many is as good as certain.
        assert!((20..200).contains(&leaves), "{leaves}");
        let mut others: Vec<Entries> = (0..50).map(|_| hold(&interner, names.iter().rev())).collect();
        assert_eq!(interner.leaves(), leaves);
        let is_first =
            |leaves: &[Arc<Leaf>]| leaves.iter().zip(&first.leaves).all(|(own, first)| Arc::ptr_eq(own, first));
        assert!(others.iter().all(|other| is_first(&other.leaves)));
        // A change is told to all, one after the other.
        put(&mut others[0], "name-7", "2");
        assert_eq!(first.get("name-7").and_then(|entry| entry.version).map(|version| &**version), Some("1"));
        others[0].share();
        assert_eq!(interner.leaves(), leaves + 1);
        for other in &mut others {
            put(other, "name-7", "2");
            other.share();
        }
        assert_eq!(interner.leaves(), leaves + 1);
        drop((first, others));
        assert_eq!(interner.leaves(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u16, Option<bool>),
        Set(u16),
        Remove(u16),
        Share,
    }

    fn step() -> impl Strategy<Value = Step> {
        let name = || 0..400_u16;
        prop_oneof![
            4 => (name(), any::<Option<bool>>()).prop_map(|(name, version)| Step::Put(name, version)),
            1 => name().prop_map(Step::Set),
            2 => name().prop_map(Step::Remove),
            1 => Just(Step::Share),
        ]
    }

    proptest! {
        /// They are a map in the order of names, and its leaves end where they must.
        #[test]
        fn entries_are_a_sorted_map(steps in vec(step(), 0..800)) {
            let mut entries = Entries::new(Arc::default());
            let mut model = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Put(name, version) => {
                        let name = format!("name-{name}");
                        let version = version.map(|version| Arc::<str>::from(if version { "1" } else { "2" }));
                        let state = State::default();
                        entries.put(&name.as_str().into(), version.as_ref(), state);
                        model.insert(name, (version, state));
                    }
                    Step::Set(name) => {
                        let name = format!("name-{name}");
                        let state = State { told: Told::Sent, ..State::default() };
                        entries.set(&name, state);
                        if let Some((_, known)) = model.get_mut(&name) {
                            *known = state;
                        }
                    }
                    Step::Remove(name) => {
                        let name = format!("name-{name}");
                        let removed = entries.remove(&name).map(|name| name.to_string());
                        prop_assert_eq!(removed, model.remove(&name).map(|_| name));
                    }
                    Step::Share => entries.share(),
                }
            }
            let held: Vec<_> = entries.iter().map(|one| (one.name.to_string(), (one.version.cloned(), one.state))).collect();
            prop_assert_eq!(held, model.iter().map(|(name, one)| (name.clone(), one.clone())).collect::<Vec<_>>());
            for name in (0..400).map(|name| format!("name-{name}")) {
                prop_assert_eq!(entries.contains(&name), model.contains_key(&name));
                prop_assert_eq!(entries.get(&name).map(|one| one.state), model.get(&name).map(|(_, state)| *state));
            }
            let last = entries.leaves.len().saturating_sub(1);
            for (number, leaf) in entries.leaves.iter().enumerate() {
                let ends: Vec<bool> = leaf.0.iter().map(|(stamp, _)| entries.interner.ends(&stamp.name)).collect();
                prop_assert!(!ends.is_empty());
                prop_assert!(number == last || ends[ends.len() - 1]);
                prop_assert!(ends[..ends.len() - 1].iter().all(|ends| !ends));
            }
        }
    }

    #[test]
    fn a_name_costs_a_leaf_a_pointer_and_a_few_bits() {
        assert!(size_of::<Held>() <= 2 * size_of::<usize>());
    }
}
