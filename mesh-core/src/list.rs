//! Long lists that change a little at a time: thousands of routes or endpoints, of which a change is about one.
//!
//! A [`List`] never changes. One that is made of another shares with it the parts that both have, so that a change costs
//! what it changes, and whoever keeps something for the items of a list sees by a pointer what still holds.

use std::collections::HashMap;
use std::ops::{Index, Range};
use std::slice;
use std::sync::Arc;

/// How many items a part has at most. Half as many are the least in a list that has more than that.
const MOST: usize = 64;

/// A list in parts. Two with the same items are equal, whatever their parts are.
#[derive(Clone, Debug)]
pub struct List<T> {
    /// None is empty.
    parts: Vec<Arc<[T]>>,
    /// Where each of them ends.
    ends: Vec<usize>,
}

/// What a list that was made of another has next.
#[derive(Clone, Debug)]
pub enum Run<T> {
    /// These items of the other.
    Kept(Range<usize>),
    /// Items of its own.
    New(Vec<T>),
}

/// The items of a list, in order.
pub type Iter<'l, T> =
    std::iter::FlatMap<slice::Iter<'l, Arc<[T]>>, slice::Iter<'l, T>, fn(&Arc<[T]>) -> slice::Iter<'_, T>>;

impl<T> List<T> {
    /// A list of these parts, as they are.
    pub fn of_parts(parts: impl IntoIterator<Item = Arc<[T]>>) -> Self {
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let ends = parts.iter().scan(0, |end, part| {
            *end += part.len();
            Some(*end)
        });
        List { ends: ends.collect(), parts }
    }

    /// How many items there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or_default()
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The item at a position.
    #[inline]
    pub fn get(&self, position: usize) -> Option<&T> {
        // Most lists have one part.
        if let [only] = self.parts.as_slice() {
            return only.get(position);
        }
        let part = self.ends.partition_point(|end| *end <= position);
        let (items, end) = (self.parts.get(part)?, self.ends.get(part)?);
        items.get(position - (end - items.len()))
    }

    /// The first item.
    pub fn first(&self) -> Option<&T> {
        self.parts.first()?.first()
    }

    /// All items, in order.
    pub fn iter(&self) -> Iter<'_, T> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// The parts, in order.
    pub fn parts(&self) -> &[Arc<[T]>] {
        &self.parts
    }

    /// Which part of another list each of its parts is, where it is one.
    pub fn shared_with<'l>(&'l self, other: &'l List<T>) -> impl Iterator<Item = Option<usize>> + 'l {
        let (mut next, mut places) = (0, None);
        self.parts.iter().map(move |part| {
            // Mostly the one behind the last one.
            let found = if other.parts.get(next).is_some_and(|other| Arc::ptr_eq(part, other)) {
                next
            } else {
                let places: &HashMap<*const T, usize, foldhash::fast::RandomState> = places.get_or_insert_with(|| {
                    other.parts.iter().enumerate().map(|(place, part)| (part.as_ptr(), place)).collect()
                });
                *places.get(&part.as_ptr())?
            };
            next = found + 1;
            Some(found)
        })
    }

    /// Whether it is as long as another, and this holds of the two items at each position. Parts that both share are not
    /// looked into.
    pub fn agrees(&self, other: &List<T>, mut holds: impl FnMut(&T, &T) -> bool) -> bool {
        if self.ends == other.ends {
            let differing = self.parts.iter().zip(&other.parts).filter(|(one, other)| !Arc::ptr_eq(one, other));
            return differing
                .flat_map(|(one, other)| one.iter().zip(other.iter()))
                .all(|(one, other)| holds(one, other));
        }
        self.len() == other.len() && self.iter().zip(other).all(|(one, other)| holds(one, other))
    }
}

impl<T: Clone> List<T> {
    /// The list that has these, in order. It shares the parts that it has as a whole.
    pub fn changed(&self, runs: Vec<Run<T>>) -> Self {
        if let [Run::Kept(kept)] = runs.as_slice()
            && (kept.start, kept.end) == (0, self.len())
        {
            return self.clone();
        }
        let (mut parts, mut loose) = (Vec::new(), Vec::new());
        for run in runs {
            let kept = match run {
                Run::Kept(kept) => kept,
                Run::New(items) => {
                    loose.extend(items);
                    continue;
                }
            };
            let first = self.ends.partition_point(|end| *end <= kept.start);
            for (part, end) in self.parts.iter().zip(&self.ends).skip(first) {
                let start = end - part.len();
                let inside = kept.start.max(start)..kept.end.min(*end);
                if inside.is_empty() {
                    break;
                }
                let is_whole = inside.len() == part.len() && part.len() >= MOST / 2;
                if is_whole && (loose.is_empty() || loose.len() >= MOST / 2) {
                    parts.extend(cut(std::mem::take(&mut loose)));
                    parts.push(Arc::clone(part));
                } else {
                    loose.extend_from_slice(part.get(inside.start - start..inside.end - start).unwrap_or_default());
                }
            }
        }
        // What is too short for a part goes to the one before.
        if (1..MOST / 2).contains(&loose.len())
            && let Some(last) = parts.pop()
        {
            loose.splice(0..0, last.iter().cloned());
        }
        parts.extend(cut(loose));
        List::of_parts(parts)
    }

    /// The same with other items where there are some, in parts that are as long.
    pub fn replaced(&self, mut other: impl FnMut(usize, &T) -> Option<T>) -> Self {
        let mut position = 0;
        let parts = self.parts.iter().map(|part| {
            let mut changed: Option<Vec<T>> = None;
            for (place, item) in part.iter().enumerate() {
                if let Some(other) = other(position + place, item)
                    && let Some(item) = changed.get_or_insert_with(|| part.to_vec()).get_mut(place)
                {
                    *item = other;
                }
            }
            position += part.len();
            changed.map_or_else(|| Arc::clone(part), Arc::from)
        });
        List { parts: parts.collect(), ends: self.ends.clone() }
    }
}

/// Items as parts of about the same length.
fn cut<T>(items: Vec<T>) -> impl Iterator<Item = Arc<[T]>> {
    let (length, count) = (items.len(), items.len().div_ceil(MOST));
    let mut items = items.into_iter();
    (0..count).map(move |part| items.by_ref().take(length * (part + 1) / count - length * part / count).collect())
}

impl<T> Default for List<T> {
    fn default() -> Self {
        List { parts: Vec::new(), ends: Vec::new() }
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        List::of_parts(cut(items))
    }
}

impl<T> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        List::from(Vec::from_iter(items))
    }
}

impl<'l, T> IntoIterator for &'l List<T> {
    type Item = &'l T;
    type IntoIter = Iter<'l, T>;

    fn into_iter(self) -> Iter<'l, T> {
        self.iter()
    }
}

impl<T: PartialEq> PartialEq for List<T> {
    fn eq(&self, other: &Self) -> bool {
        self.agrees(other, |one, other| one == other)
    }
}

impl<T: Eq> Eq for List<T> {}

impl<T> Index<usize> for List<T> {
    type Output = T;

    /// As that of a slice: where there is no such item, it panics.
    fn index(&self, position: usize) -> &T {
        self.get(position).expect("the position is within the list")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shared<T>(list: &List<T>, with: &List<T>) -> usize {
        list.shared_with(with).flatten().count()
    }

    /// The same with another item at a position.
    fn with(list: &List<usize>, position: usize, item: usize) -> List<usize> {
        list.replaced(|at, _| (at == position).then_some(item))
    }

    #[test]
    fn a_change_leaves_the_other_parts_as_they_are() {
        let list: List<usize> = (0..10_000).collect();
        assert_eq!(
            (list.len(), list.parts().len(), list.get(9_999), list.get(10_000)),
            (10_000, 157, Some(&9_999), None)
        );
        assert_eq!(shared(&list, &list), 157);
        let changed = with(&list, 5_000, 1);
        assert_eq!((changed[4_999], changed[5_000], changed[5_001], changed.len()), (4_999, 1, 5_001, 10_000));
        assert_eq!(shared(&changed, &list), 156);
        assert_ne!(changed, list);
        assert_eq!(with(&changed, 5_000, 5_000), list);
        let inserted = list.changed(vec![Run::New(vec![7, 8]), Run::Kept(0..10_000)]);
        assert_eq!((inserted.first(), inserted[2], inserted.len()), (Some(&7), 0, 10_002));
        assert!(shared(&inserted, &list) >= 155, "{}", shared(&inserted, &list));
        assert_eq!(shared(&list.changed(vec![Run::Kept(0..10_000)]), &list), 157);
    }

    #[test]
    fn lists_are_equal_by_their_items() {
        let one: List<usize> = (0..1_000).collect();
        let other = List::of_parts((0..100).map(|part| (part * 10..part * 10 + 10).collect()));
        assert_eq!(one, other);
        assert_ne!(one, with(&other, 999, 0));
        assert_ne!(one, (0..999).collect());
        assert_eq!(List::<usize>::default(), List::from(Vec::new()));
    }

    /// A run of a list that is so long at most.
    fn run() -> impl Strategy<Value = Run<u32>> {
        let kept = (0..400_usize, 0..400_usize).prop_map(|(start, length)| Run::Kept(start..start + length));
        prop_oneof![3 => kept, 1 => prop::collection::vec(any::<u32>(), 0..80).prop_map(Run::New)]
    }

    proptest! {
        #[test]
        fn a_list_that_changes_again_and_again_is_what_a_vector_would_be(
            first in prop::collection::vec(any::<u32>(), 0..300),
            changes in prop::collection::vec(prop::collection::vec(run(), 0..6), 0..6),
        ) {
            let (mut plain, mut list) = (first.clone(), List::from(first));
            for runs in changes {
                let mut next = Vec::new();
                for run in &runs {
                    match run {
                        Run::Kept(range) => {
                            next.extend_from_slice(&plain[range.start.min(plain.len())..range.end.min(plain.len())]);
                        }
                        Run::New(items) => next.extend_from_slice(items),
                    }
                }
                let changed = list.changed(runs);
                (plain, list) = (next, changed);
                prop_assert!(list.iter().eq(&plain));
                prop_assert!((0..=plain.len()).all(|at| list.get(at) == plain.get(at)));
                prop_assert!(list.parts().iter().all(|part| (1..=MOST).contains(&part.len())));
                prop_assert!(list.parts().len() <= 1.max(2 * plain.len() / MOST));
            }
        }
    }
}
