//! The calls that are kept, within bounds. Nothing is ever driven out: who comes first stays, and what finds no place is
//! counted for the one who called.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use foldhash::quality::RandomState;

use super::template::{ANY, Template, text, write};
use super::{Call, CallKey, method_of};

/// How many different calls one book keeps.
pub const MOST_CALLS: usize = 4096;
/// How many of one caller; all who are not known are one.
pub const MOST_OF_CALLER: usize = 512;
/// How many that were refused: those who only try have no place of those who are let in.
const MOST_REFUSED: usize = 1024;
/// How many callers are told apart in what was lost.
const MOST_CALLERS: usize = 1024;
/// So many different segments at one place below the same names are values, whatever they look like.
const MOST_SIBLINGS: usize = 48;
/// At so many places of one caller.
const MOST_FOLDS: usize = 256;

/// Calls that are alike, and how many there were.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counted {
    /// What they have in common.
    pub key: CallKey,
    /// The rule that decided the last time.
    pub rule: Option<Arc<str>>,
    /// How many.
    pub count: u64,
    /// When the first one was, in seconds since 1970.
    pub first: u64,
    /// When the last one was, in seconds since 1970.
    pub last: u64,
}

impl Counted {
    /// So many calls between these times.
    pub fn new(key: CallKey, rule: Option<Arc<str>>, count: u64, first: u64, last: u64) -> Counted {
        Counted { key, rule, count, first, last }
    }
}

/// Calls of somebody that found no place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lost {
    /// Who called; `None` for all who are not known, and for those beyond the callers that are told apart.
    pub principal: Option<Arc<str>>,
    /// How many calls.
    pub count: u64,
}

impl Lost {
    /// So many calls of somebody.
    pub fn new(principal: Option<Arc<str>>, count: u64) -> Lost {
        Lost { principal, count }
    }
}

/// The calls that are kept.
///
/// ```
/// use mesh_core::calls::{Book, Call};
///
/// let mut book = Book::default();
/// let call = Call {
///     principal: Some("spiffe://cluster.local/ns/shop/sa/web"),
///     port: 9080,
///     is_grpc: false,
///     method: "GET",
///     path: "/reviews/7",
///     is_allowed: true,
///     rule: None,
/// };
/// book.note(&call, 1, 10, 10);
/// book.note(&Call { path: "/reviews/8?user=me", ..call }, 1, 20, 20);
/// let kept = book.calls().next().unwrap();
/// assert_eq!((&*kept.key.path, kept.count, kept.first, kept.last), ("/reviews/{*}", 2, 10, 20));
/// ```
#[derive(Debug, Default)]
pub struct Book {
    slots: Vec<Option<Kept>>,
    free: Vec<usize>,
    by_hash: HashMap<u64, usize>,
    hashing: RandomState,
    /// By who called; the empty name is that of all who are not known.
    callers: HashMap<Arc<str>, Caller>,
    refused: usize,
    /// Below which names any segment is a value, by who called how.
    folds: HashMap<u64, Vec<Box<str>>>,
}

#[derive(Debug)]
struct Kept {
    counted: Counted,
    /// How many of them were told of.
    told: u64,
}

#[derive(Debug, Default)]
struct Caller {
    calls: usize,
    lost: u64,
    told: u64,
}

/// Where calls are in a book.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) slot: usize,
    /// Whether other calls have moved, since a place of names became one of values.
    pub(super) has_folded: bool,
}

impl Book {
    /// Notes calls that are alike, in seconds since 1970. Returns whether they found a place.
    pub fn note(&mut self, call: &Call<'_>, count: u64, first: u64, last: u64) -> bool {
        let mut template = Template::new();
        write(call.path, call.is_grpc, &mut template);
        let place = match self.find(call, text(&template)) {
            Some(slot) => Some(slot),
            None if self.has_room(call) => Some(self.enter(call, text(&template), first).slot),
            None => None,
        };
        match place {
            Some(slot) => self.add(slot, call.rule, count, (first, last)),
            None => self.lose(call.principal, count),
        }
        place.is_some()
    }

    /// Notes that so many calls of somebody found no place.
    pub fn lose(&mut self, principal: Option<&str>, count: u64) {
        let caller = self.caller(principal);
        caller.lost = caller.lost.saturating_add(count);
    }

    /// Whether calls like this one are kept.
    pub fn holds(&self, call: &Call<'_>) -> bool {
        let mut template = Template::new();
        write(call.path, call.is_grpc, &mut template);
        self.find(call, text(&template)).is_some()
    }

    /// All that is kept, in no order.
    pub fn calls(&self) -> impl Iterator<Item = &Counted> {
        self.slots.iter().flatten().map(|kept| &kept.counted)
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What found no place, by who called.
    pub fn lost(&self) -> impl Iterator<Item = Lost> {
        let lost = self.callers.iter().filter(|(_, caller)| caller.lost > 0);
        lost.map(|(principal, caller)| Lost::new(known(principal), caller.lost))
    }

    /// Where calls of this form are kept, if they are. Allocates nothing unless their form is a folded one.
    pub(super) fn find(&self, call: &Call<'_>, template: &str) -> Option<usize> {
        let found = self.slot(call, template);
        found.or_else(|| self.folded(call, template).and_then(|template| self.slot(call, &template)))
    }

    /// Whether there is a place for calls that are new.
    pub(super) fn has_room(&mut self, call: &Call<'_>) -> bool {
        self.len() < MOST_CALLS
            && (call.is_allowed || self.refused < MOST_REFUSED)
            && self.caller(call.principal).calls < MOST_OF_CALLER
    }

    /// Gives calls that are new a place; there is [room](Self::has_room).
    pub(super) fn enter(&mut self, call: &Call<'_>, template: &str, now: u64) -> Place {
        let folded = self.folded(call, template);
        let template = folded.as_deref().unwrap_or(template);
        let key = CallKey { path: template.into(), ..CallKey::of(&Call { path: "", ..*call }) };
        let slot = self.put(Kept { counted: Counted::new(key, None, 0, now, now), told: 0 });
        let Some(names) = self.crowded(call, template) else { return Place { slot, has_folded: false } };
        self.fold(call, names);
        Place { slot: self.find(call, template).unwrap_or(slot), has_folded: true }
    }

    pub(super) fn add(&mut self, slot: usize, rule: Option<&str>, count: u64, (first, last): (u64, u64)) {
        let Some(Kept { counted, .. }) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        counted.count = counted.count.saturating_add(count);
        counted.first = counted.first.min(first);
        counted.last = counted.last.max(last);
        if counted.rule.as_deref() != rule {
            counted.rule = rule.map(Arc::from);
        }
    }

    /// The same without knowing the rule.
    pub(super) fn count(&mut self, slot: usize, count: u64, last: u64) {
        if let Some(Kept { counted, .. }) = self.slots.get_mut(slot).and_then(Option::as_mut) {
            counted.count = counted.count.saturating_add(count);
            counted.last = counted.last.max(last);
        }
    }

    /// What was not told of yet.
    pub(super) fn untold(&self) -> (Vec<Counted>, Vec<Lost>) {
        let kept = self.slots.iter().flatten().filter(|kept| kept.counted.count > kept.told);
        let calls = kept.map(|kept| Counted { count: kept.counted.count - kept.told, ..kept.counted.clone() });
        let lost = self.callers.iter().filter(|(_, caller)| caller.lost > caller.told);
        let lost = lost.map(|(principal, caller)| Lost::new(known(principal), caller.lost - caller.told));
        (calls.collect(), lost.collect())
    }

    /// Somebody was told of these.
    pub(super) fn told(&mut self, calls: &[Counted], lost: &[Lost]) {
        for told in calls {
            // It may have another place by now.
            let slot = self.find(&told.key.call(None), &told.key.path);
            if let Some(kept) = slot.and_then(|slot| self.slots.get_mut(slot)).and_then(Option::as_mut) {
                kept.told = kept.told.saturating_add(told.count).min(kept.counted.count);
            }
        }
        for told in lost {
            let caller = self.caller(told.principal.as_deref());
            caller.told = caller.told.saturating_add(told.count).min(caller.lost);
        }
    }

    /// A caller; those beyond the most are one with those who are not known.
    fn caller(&mut self, principal: Option<&str>) -> &mut Caller {
        let name = principal.filter(|name| self.callers.contains_key(*name) || self.callers.len() < MOST_CALLERS);
        let name = name.unwrap_or_default();
        if !self.callers.contains_key(name) {
            self.callers.insert(name.into(), Caller::default());
        }
        self.callers.get_mut(name).expect("it was put there if it was not")
    }

    /// Where calls of this very form are kept.
    pub(super) fn slot(&self, call: &Call<'_>, template: &str) -> Option<usize> {
        let slot = *self.by_hash.get(&self.hash(call, template))?;
        let key = &self.slots.get(slot)?.as_ref()?.counted.key;
        (is_of(key, call) && *key.path == *template).then_some(slot)
    }

    fn put(&mut self, kept: Kept) -> usize {
        let key = &kept.counted.key;
        let hash = self.hash(&key.call(None), &key.path);
        self.refused += usize::from(!key.is_allowed);
        self.caller(key.principal.as_deref()).calls += 1;
        let slot = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some(empty) => *empty = Some(kept),
            None => self.slots.push(Some(kept)),
        }
        self.by_hash.insert(hash, slot);
        slot
    }

    fn take(&mut self, slot: usize) -> Option<Kept> {
        let kept = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        let key = &kept.counted.key;
        self.by_hash.remove(&self.hash(&key.call(None), &key.path));
        self.refused -= usize::from(!key.is_allowed);
        let caller = self.caller(key.principal.as_deref());
        caller.calls = caller.calls.saturating_sub(1);
        Some(kept)
    }

    /// The names below which a new path is one sibling too many. The first segment is never folded: that would be all paths.
    fn crowded(&self, call: &Call<'_>, template: &str) -> Option<String> {
        let folds = self.folds.get(&self.group(call)).map_or(0, Vec::len);
        if call.is_grpc || folds >= MOST_FOLDS {
            return None;
        }
        template.match_indices('/').skip(1).find_map(|(end, _)| {
            let (names, rest) = template.split_at_checked(end)?;
            // Paths without any name in them have none to fold below.
            if !is_name(segment_of(rest)?) || !names.split('/').any(|name| !name.is_empty() && is_name(name)) {
                return None;
            }
            let keys = self.slots.iter().flatten().map(|kept| &kept.counted.key).filter(|key| is_of(key, call));
            let segments = keys.filter_map(|key| key.path.strip_prefix(names).and_then(segment_of));
            let siblings: HashSet<&str> = segments.filter(|segment| is_name(segment)).collect();
            (siblings.len() > MOST_SIBLINGS).then(|| names.to_owned())
        })
    }

    /// From now on any segment below these names is a value, and what is there already is put together.
    fn fold(&mut self, call: &Call<'_>, names: String) {
        let group = self.group(call);
        let folds = self.folds.entry(group).or_default();
        // Nothing is below it by a name any more.
        let is_below = |fold: &str| fold.strip_prefix(&*names).and_then(segment_of).is_some_and(is_name);
        folds.retain(|fold| !is_below(fold));
        folds.push(names.into());
        let of_group = |kept: &Option<Kept>| kept.as_ref().is_some_and(|kept| is_of(&kept.counted.key, call));
        let slots: Vec<usize> =
            (0..self.slots.len()).filter(|slot| self.slots.get(*slot).is_some_and(of_group)).collect();
        for slot in slots {
            let path = self.slots.get(slot).and_then(Option::as_ref).map(|kept| kept.counted.key.path.clone());
            let Some(folded) = path.and_then(|path| self.folded(call, &path)) else { continue };
            let Some(mut kept) = self.take(slot) else { continue };
            match self.slot(call, &folded) {
                None => {
                    kept.counted.key.path = folded.into();
                    self.put(kept);
                }
                Some(other) => {
                    let Counted { rule, count, first, last, .. } = &kept.counted;
                    self.add(other, rule.as_deref(), *count, (*first, *last));
                    if let Some(other) = self.slots.get_mut(other).and_then(Option::as_mut) {
                        other.told += kept.told;
                    }
                }
            }
        }
    }

    /// A form in which segments below folded names are values; `None` where it is that already.
    fn folded(&self, call: &Call<'_>, template: &str) -> Option<String> {
        let folds = self.folds.get(&self.group(call))?;
        let mut folded = template.to_owned();
        // A fold may lie below another one.
        for names in folds.iter().chain(folds) {
            let Some(rest) = folded.strip_prefix(&**names) else { continue };
            let Some(segment) = segment_of(rest).filter(|segment| is_name(segment)) else { continue };
            let behind = rest.get(1 + segment.len()..).unwrap_or_default();
            folded = format!("{names}/{ANY}{behind}");
        }
        (folded != template).then_some(folded)
    }

    /// Who called how.
    fn group(&self, call: &Call<'_>) -> u64 {
        let mut hasher = self.hashing.build_hasher();
        hash_caller(call, &mut hasher);
        hasher.finish()
    }

    fn hash(&self, call: &Call<'_>, template: &str) -> u64 {
        let mut hasher = self.hashing.build_hasher();
        hash_caller(call, &mut hasher);
        hasher.write(template.as_bytes());
        hasher.finish()
    }
}

/// Who that is; the empty name is nobody's.
fn known(principal: &Arc<str>) -> Option<Arc<str>> {
    (!principal.is_empty()).then(|| principal.clone())
}

/// Whether a segment of a template is none that stands for others.
fn is_name(segment: &str) -> bool {
    !segment.starts_with('{')
}

/// The first segment of `/segment/...`; none where there is nothing.
fn segment_of(rest: &str) -> Option<&str> {
    let segment = rest.strip_prefix('/')?;
    Some(segment.split('/').next().unwrap_or(segment)).filter(|segment| !segment.is_empty())
}

/// Whether the same called in the same way, whatever the path.
fn is_of(key: &CallKey, call: &Call<'_>) -> bool {
    key.principal.as_deref() == call.principal
        && (key.port, key.is_grpc, key.is_allowed) == (call.port, call.is_grpc, call.is_allowed)
        && *key.method == *method_of(call.method)
}

/// All of a call but its path and its rule.
fn hash_caller(call: &Call<'_>, hasher: &mut impl Hasher) {
    let principal = call.principal.unwrap_or_default();
    hasher.write(principal.as_bytes());
    hasher.write(method_of(call.method).as_bytes());
    // The lengths tell where the one ends and the other begins.
    let flags = u64::from(call.is_grpc) | u64::from(call.is_allowed) << 1 | (principal.len() as u64) << 2;
    hasher.write_u64(u64::from(call.port) << 48 | flags);
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "spiffe://td/ns/shop/sa/web";

    fn get(path: &str) -> Call<'_> {
        Call { principal: Some(WEB), port: 80, is_grpc: false, method: "GET", path, is_allowed: true, rule: None }
    }

    fn paths(book: &Book) -> Vec<&str> {
        let mut paths: Vec<&str> = book.calls().map(|counted| &*counted.key.path).collect();
        paths.sort_unstable();
        paths
    }

    #[test]
    fn a_flood_of_one_caller_does_not_drive_out_the_calls_of_others() {
        let mut book = Book::default();
        assert!(book.note(&get("/early"), 1, 0, 0));
        let names: Vec<String> = (0..100_000).map(|turn| format!("/x{}", letters(turn))).collect();
        for path in &names {
            let flood = get(path);
            book.note(&Call { principal: Some("spiffe://td/ns/shop/sa/spy"), ..flood }, 1, 1, 1);
            book.note(&Call { principal: None, ..flood }, 1, 1, 1);
            book.note(&Call { principal: Some("spiffe://td/ns/shop/sa/refused"), is_allowed: false, ..flood }, 1, 1, 1);
        }
        assert_eq!(book.len(), 1 + 3 * MOST_OF_CALLER);
        assert!(book.note(&get("/late"), 1, 2, 2));
        assert_eq!(book.calls().filter(|counted| counted.key.principal.as_deref() == Some(WEB)).count(), 2);
        let lost: u64 = book.lost().map(|lost| lost.count).sum();
        assert_eq!(lost, 3 * (100_000 - MOST_OF_CALLER as u64), "it is told of");
        assert!(book.lost().all(|lost| lost.principal.as_deref() != Some(WEB)));
    }

    /// A word that is no value: letters only.
    fn letters(mut number: usize) -> String {
        let mut text = String::new();
        for _ in 0..5 {
            text.push(char::from(b'g' + (number % 19) as u8));
            number /= 19;
        }
        text
    }

    #[test]
    fn many_words_at_one_place_are_values() {
        let mut book = Book::default();
        for turn in 0..1000 {
            let name = letters(turn);
            assert!(book.note(&get(&format!("/users/{name}/cart")), 1, turn as u64, turn as u64));
            assert!(book.note(&get(&format!("/users/{name}")), 1, 1, 1));
            // The first segment stays what it is, within the bound.
            book.note(&get(&format!("/{name}")), 1, 1, 1);
        }
        let below: Vec<&str> = paths(&book).into_iter().filter(|path| path.starts_with("/users/")).collect();
        assert_eq!(below, ["/users/{*}", "/users/{*}/cart"]);
        let cart = book.calls().find(|counted| &*counted.key.path == "/users/{*}/cart").unwrap();
        assert_eq!((cart.count, cart.first, cart.last), (1000, 0, 999));
        assert!(!paths(&book).contains(&"/{*}"));
    }

    #[test]
    fn places_of_values_are_forgotten_with_the_names_above_them() {
        let mut book = Book::default();
        let letter = |of: usize| ["a", "b", "c", "d", "e", "f", "g", "h"][of % 8];
        let word = |of: usize| format!("w{}{}", letter(of / 8), letter(of));
        for turn in 0..20_000 {
            let [a, b, c] = [turn / 3600, turn / 60 % 60, turn % 60].map(word);
            book.note(&get(&format!("/a/{a}/{b}/{c}")), 1, 0, 0);
        }
        let folds: Vec<_> = book.folds.values().flatten().collect();
        assert!(folds.iter().any(|fold| &***fold == "/a/waa"), "{folds:?}");
        assert!(!folds.iter().any(|fold| fold.starts_with("/a/waa/w")) && folds.len() <= MOST_FOLDS, "{folds:?}");
    }

    #[test]
    fn what_one_was_refused_does_not_widen_what_was_let_in() {
        let mut book = Book::default();
        book.note(&get("/users/me"), 1, 1, 1);
        for turn in 0..200 {
            book.note(&Call { is_allowed: false, ..get(&format!("/users/{}", letters(turn))) }, 1, 1, 1);
            book.note(&Call { method: "PUT", ..get(&format!("/users/{}", letters(turn))) }, 1, 1, 1);
        }
        let of_get = book.calls().filter(|counted| counted.key.is_allowed && &*counted.key.method == "GET");
        assert_eq!(of_get.map(|counted| &*counted.key.path).collect::<Vec<_>>(), ["/users/me"]);
    }

    #[test]
    fn what_was_told_is_not_told_again_also_when_it_has_moved() {
        let mut book = Book::default();
        for turn in 0..40 {
            book.note(&get(&format!("/users/{}", letters(turn))), 2, 1, 1);
        }
        let (calls, lost) = book.untold();
        assert_eq!((calls.len(), calls.iter().map(|one| one.count).sum::<u64>(), lost.len()), (40, 80, 0));
        for turn in 40..80 {
            book.note(&get(&format!("/users/{}", letters(turn))), 1, 1, 1);
        }
        book.told(&calls, &lost);
        let (calls, _) = book.untold();
        assert_eq!(calls.iter().map(|one| (&*one.key.path, one.count)).collect::<Vec<_>>(), [("/users/{*}", 40)]);
        book.told(&calls, &[]);
        assert!(book.untold().0.is_empty());
    }
}
