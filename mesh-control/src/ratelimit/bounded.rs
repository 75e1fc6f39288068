//! What is kept by key within bounds: so many of them, and of those the least used go first. In parts, each with a lock of its
//! own, so that no lock is everybody's.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::window::Key;

/// Into how many parts it is divided. On a machine of many cores, two requests seldom meet in one of them.
const PARTS: usize = 64;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Bounded<V> {
    parts: Box<[Mutex<Part<V>>]>,
}

impl<V: Default> Bounded<V> {
    /// Room for `most` keys, or a few more.
    pub(super) fn new(most: usize) -> Bounded<V> {
        let parts = PARTS.min(most.max(1));
        let each = most.max(1).div_ceil(parts);
        Bounded { parts: (0..parts).map(|_| Mutex::new(Part::new(each))).collect() }
    }

    /// Works on the value of a key: a new one where there is none, which may take the place of the one that was not used for
    /// the longest time.
    pub(super) fn with<R>(&self, key: &Key, work: impl FnOnce(&mut V) -> R) -> R {
        work(self.part(key).get_or_default(key))
    }

    /// Looks at the value of a key, if there is one.
    pub(super) fn look<R>(&self, key: &Key, work: impl FnOnce(&V) -> R) -> Option<R> {
        self.part(key).get(key).map(|value| work(value))
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|part| lock(part).places.len()).sum()
    }

    fn part(&self, key: &Key) -> MutexGuard<'_, Part<V>> {
        // A digest has all its bytes alike.
        let number = usize::from(key.first().copied().unwrap_or_default());
        let part = self.parts.get(number % self.parts.len()).or(self.parts.first());
        lock(part.expect("there is one part at least"))
    }
}

fn lock<V>(part: &Mutex<Part<V>>) -> MutexGuard<'_, Part<V>> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// No slot.
const NONE: u32 = u32::MAX;

/// Values in slots that are linked in the order of their use.
#[derive(Debug)]
struct Part<V> {
    places: HashMap<Key, u32>,
    slots: Vec<Slot<V>>,
    newest: u32,
    oldest: u32,
    most: usize,
}

#[derive(Debug)]
struct Slot<V> {
    key: Key,
    value: V,
    newer: u32,
    older: u32,
}

impl<V: Default> Part<V> {
    fn new(most: usize) -> Part<V> {
        Part { places: HashMap::new(), slots: Vec::new(), newest: NONE, oldest: NONE, most: most.min(NONE as usize) }
    }

    fn get(&mut self, key: &Key) -> Option<&mut V> {
        let place = *self.places.get(key)?;
        self.unlink(place);
        self.link_newest(place);
        self.slots.get_mut(place as usize).map(|slot| &mut slot.value)
    }

    fn get_or_default(&mut self, key: &Key) -> &mut V {
        let place = match self.places.get(key) {
            Some(place) => {
                let place = *place;
                self.unlink(place);
                place
            }
            None => self.room_for(*key),
        };
        self.link_newest(place);
        &mut self.slots[place as usize].value
    }

    /// A slot that is not linked, with nothing in it.
    fn room_for(&mut self, key: Key) -> u32 {
        let slot = Slot { key, value: V::default(), newer: NONE, older: NONE };
        let place = if self.slots.len() < self.most {
            self.slots.push(slot);
            u32::try_from(self.slots.len() - 1).expect("there are fewer than NONE")
        } else {
            let place = self.oldest;
            self.unlink(place);
            let gone = std::mem::replace(&mut self.slots[place as usize], slot);
            self.places.remove(&gone.key);
            place
        };
        self.places.insert(key, place);
        place
    }

    fn unlink(&mut self, place: u32) {
        let Slot { newer, older, .. } = self.slots[place as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
    }

    fn link_newest(&mut self, place: u32) {
        let older = std::mem::replace(&mut self.newest, place);
        let slot = &mut self.slots[place as usize];
        (slot.newer, slot.older) = (NONE, older);
        match older {
            NONE => self.oldest = place,
            older => self.slots[older as usize].newer = place,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_least_used_goes_first() {
        let mut part: Part<u32> = Part::new(2);
        let [a, b, c] = [[1; 16], [2; 16], [3; 16]];
        *part.get_or_default(&a) = 1;
        *part.get_or_default(&b) = 2;
        assert_eq!(part.get(&a), Some(&mut 1));
        *part.get_or_default(&c) = 3;
        assert_eq!([part.get(&a).copied(), part.get(&b).copied(), part.get(&c).copied()], [Some(1), None, Some(3)]);
    }

    #[test]
    fn a_million_keys_of_a_hostile_caller_leave_as_many_as_there_is_room_for() {
        let kept: Bounded<u64> = Bounded::new(1000);
        for number in 0..1_000_000_u32 {
            let mut key = [0; 16];
            key[..4].copy_from_slice(&number.to_le_bytes());
            kept.with(&key, |value| *value += 1);
        }
        assert!((1000..=1000 + PARTS).contains(&kept.len()), "{}", kept.len());
    }

    proptest! {
        #[test]
        fn it_is_a_map_that_forgets_what_was_used_longest_ago(keys in prop::collection::vec(0_u8..12, 1..300)) {
            let mut part: Part<u32> = Part::new(5);
            // The newest first.
            let mut model: Vec<(u8, u32)> = Vec::new();
            for key in keys {
                let known = model.iter().position(|(one, _)| *one == key);
                let (_, count) = known.map_or((key, 0), |at| model.remove(at));
                model.insert(0, (key, count + 1));
                model.truncate(5);
                let value = part.get_or_default(&[key; 16]);
                *value += 1;
                prop_assert_eq!(*value, count + 1);
                prop_assert_eq!(part.places.len(), model.len());
            }
            let (mut at, mut order) = (part.newest, Vec::new());
            while let Some(slot) = part.slots.get(at as usize) {
                order.push((slot.key[0], slot.value));
                at = slot.older;
            }
            prop_assert_eq!(order, model);
        }
    }
}
