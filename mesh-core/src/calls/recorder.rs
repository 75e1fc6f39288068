//! What a server writes every call to. A call like one before costs a hash and a look; nothing is allocated for it, and no
//! lock is taken.
//!
//! Counts are exact while they are small. Beyond [`EXACT`] one call in [`STRIDE`] is counted for all of them, so that the cores
//! of a busy server do not fight over a number. A call of a new form takes a lock; where somebody else has it, the call is
//! *missed*, and that is counted. A form that comes again is found then.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use foldhash::quality::RandomState;
use tokio::sync::Notify;

use super::Call;
use super::book::{Book, Counted, Lost, MOST_CALLS};
use super::template::{Template, text, write};

/// Up to here each call is counted.
const EXACT: u64 = 256;
/// How many one counts for beyond that.
const STRIDE: u64 = 16;
/// Where known forms are looked up: twice as many cells as there are forms.
const CELLS: usize = 2 * MOST_CALLS;
/// A cell is a hash, with the place plus one in its lowest bits.
const PLACE: u64 = 0xFFFF;

/// A record of calls that is written on every request. It is off, and costs one look, until it is turned on.
///
/// ```
/// use mesh_core::calls::{Call, Recorder};
///
/// let recorder = Recorder::default();
/// let call = Call {
///     principal: None,
///     port: 80,
///     is_grpc: false,
///     method: "GET",
///     path: "/",
///     is_allowed: true,
///     rule: None,
/// };
/// recorder.record(&call, &mut fastrand::Rng::with_seed(1), || 0);
/// assert!(recorder.report().is_empty(), "it is off");
/// recorder.set_on(true);
/// recorder.record(&call, &mut fastrand::Rng::with_seed(1), || 0);
/// assert_eq!(recorder.report().calls[0].count, 1);
/// ```
#[derive(Debug, Default)]
pub struct Recorder {
    is_on: AtomicBool,
    /// Made when it is turned on for the first time.
    pages: OnceLock<Box<Pages>>,
    news: Notify,
}

#[derive(Debug)]
struct Pages {
    hashing: RandomState,
    cells: Box<[AtomicU64]>,
    counters: Box<[Counter]>,
    book: Mutex<Book>,
    missed: AtomicU64,
}

/// What was counted at a place since the book was brought up to date.
#[derive(Debug, Default)]
struct Counter {
    count: AtomicU64,
    last: AtomicU64,
}

/// What there is to tell that was not told before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Calls that are alike, with how many are new.
    pub calls: Vec<Counted>,
    /// Calls that found no place.
    pub lost: Vec<Lost>,
    /// New calls that were not looked at, since another one was noted at that moment.
    pub missed: u64,
}

impl Report {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty() && self.lost.is_empty() && self.missed == 0
    }
}

impl Recorder {
    /// Whether calls are recorded.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Records from now on, or no more. What was recorded stays.
    pub fn set_on(&self, is_on: bool) {
        if is_on {
            self.pages.get_or_init(Box::default);
        }
        self.is_on.store(is_on, Ordering::Relaxed);
    }

    /// Records a call. `now` is in seconds since 1970, and asked for only where it is written down.
    #[inline]
    pub fn record(&self, call: &Call<'_>, random: &mut fastrand::Rng, now: impl FnOnce() -> u64) {
        if !self.is_on() {
            return;
        }
        let Some(pages) = self.pages.get() else { return };
        let hash = pages.hash(call, call.path.as_bytes());
        match pages.find(hash) {
            Some(counter) => counter.count(random, now),
            None => self.record_form(pages, call, random, now),
        }
    }

    /// The same for a path that is not a form by itself, or is new.
    #[inline(never)]
    fn record_form(&self, pages: &Pages, call: &Call<'_>, random: &mut fastrand::Rng, now: impl FnOnce() -> u64) {
        let mut template = Template::new();
        write(call.path, call.is_grpc, &mut template);
        let hash = pages.hash(call, &template);
        if let Some(counter) = pages.find(hash) {
            return counter.count(random, now);
        }
        let Ok(mut book) = pages.book.try_lock() else {
            pages.missed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (template, now) = (text(&template), now());
        let slot = match book.find(call, template) {
            Some(slot) => slot,
            None if !book.has_room(call) => return book.lose(call.principal, 1),
            None => {
                // Places may move.
                pages.gather(&mut book);
                let place = book.enter(call, template, now);
                if place.has_folded {
                    pages.cells.iter().for_each(|cell| cell.store(0, Ordering::Relaxed));
                }
                self.news.notify_one();
                place.slot
            }
        };
        book.add(slot, call.rule, 1, (now, now));
        // Names that are values by now are many: they would drive the others out.
        if book.slot(call, template).is_some() {
            pages.remember(hash, slot);
        }
    }

    /// Waits until a call of a new form was recorded.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What there is to tell. It stays so until it was [told](Self::told).
    pub fn report(&self) -> Report {
        let Some(pages) = self.pages.get() else { return Report::default() };
        let mut book = pages.book();
        pages.gather(&mut book);
        let (calls, lost) = book.untold();
        Report { calls, lost, missed: pages.missed.load(Ordering::Relaxed) }
    }

    /// A report has arrived where it is kept.
    pub fn told(&self, report: &Report) {
        let Some(pages) = self.pages.get() else { return };
        pages.book().told(&report.calls, &report.lost);
        pages.missed.fetch_sub(report.missed, Ordering::Relaxed);
    }
}

impl Default for Pages {
    fn default() -> Self {
        Pages {
            hashing: RandomState::default(),
            cells: (0..CELLS).map(|_| AtomicU64::new(0)).collect(),
            counters: (0..MOST_CALLS).map(|_| Counter::default()).collect(),
            book: Mutex::default(),
            missed: AtomicU64::new(0),
        }
    }
}

impl Pages {
    /// By all that tells calls apart, and the rule: where another one decides, the book is told.
    #[inline]
    fn hash(&self, call: &Call<'_>, path: &[u8]) -> u64 {
        let principal = call.principal.unwrap_or_default();
        let rule = call.rule.unwrap_or_default();
        let mut hasher = self.hashing.build_hasher();
        hasher.write(principal.as_bytes());
        hasher.write(call.method.as_bytes());
        hasher.write(path);
        hasher.write(rule.as_bytes());
        // The lengths tell where the one ends and the other begins.
        let lengths = (principal.len() as u64) << 32 | (call.method.len() as u64) << 16 | (rule.len() as u64 & 0xFFFF);
        let flags = u64::from(call.is_grpc) | u64::from(call.is_allowed) << 1 | u64::from(call.port) << 2;
        hasher.write_u64(lengths);
        hasher.write_u64(flags);
        hasher.finish()
    }

    /// The two cells that a form may have.
    #[inline]
    fn cells_of(&self, hash: u64) -> [Option<&AtomicU64>; 2] {
        let at = (hash >> 48) as usize % CELLS;
        [self.cells.get(at), self.cells.get(at ^ 1)]
    }

    #[inline]
    fn find(&self, hash: u64) -> Option<&Counter> {
        for cell in self.cells_of(hash).into_iter().flatten() {
            let known = cell.load(Ordering::Relaxed);
            if (known ^ hash) & !PLACE == 0 && known & PLACE != 0 {
                return self.counters.get((known & PLACE) as usize - 1);
            }
        }
        None
    }

    fn remember(&self, hash: u64, slot: usize) {
        let known = (hash & !PLACE) | ((slot as u64 + 1) & PLACE);
        let [first, second] = self.cells_of(hash);
        let free = [first, second].into_iter().flatten().find(|cell| cell.load(Ordering::Relaxed) == 0);
        if let Some(cell) = free.or(first) {
            cell.store(known, Ordering::Relaxed);
        }
    }

    /// Brings the book up to date.
    fn gather(&self, book: &mut Book) {
        for (slot, counter) in self.counters.iter().enumerate() {
            if counter.count.load(Ordering::Relaxed) > 0 {
                book.count(slot, counter.count.swap(0, Ordering::Relaxed), counter.last.load(Ordering::Relaxed));
            }
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counter {
    #[inline]
    fn count(&self, random: &mut fastrand::Rng, now: impl FnOnce() -> u64) {
        let step = match self.count.load(Ordering::Relaxed) < EXACT {
            true => 1,
            false if random.u64(..).is_multiple_of(STRIDE) => STRIDE,
            false => return,
        };
        self.last.store(now(), Ordering::Relaxed);
        self.count.fetch_add(step, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::CallKey;
    use super::*;

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn get(path: &str) -> Call<'_> {
        Call { principal: Some(WEB), port: 80, is_grpc: false, method: "GET", path, is_allowed: true, rule: None }
    }

    fn on() -> Recorder {
        let recorder = Recorder::default();
        recorder.set_on(true);
        recorder
    }

    fn counts(report: &Report) -> Vec<(String, u64)> {
        let mut counts: Vec<_> = report.calls.iter().map(|one| (one.key.path.to_string(), one.count)).collect();
        counts.sort();
        counts
    }

    #[test]
    fn calls_are_counted_by_their_form_and_told_of_once() {
        let (recorder, mut random) = (on(), fastrand::Rng::with_seed(1));
        for turn in 0..100 {
            recorder.record(&get("/a"), &mut random, || 5);
            recorder.record(&get(&format!("/a/{turn}?token=secret")), &mut random, || turn);
        }
        let report = recorder.report();
        assert_eq!(counts(&report), [("/a".to_owned(), 100), ("/a/{*}".to_owned(), 100)]);
        let values = report.calls.iter().find(|one| &*one.key.path == "/a/{*}").unwrap();
        assert_eq!((values.first, values.last), (0, 99));
        assert_eq!(recorder.report(), report, "nobody was told");
        recorder.told(&report);
        assert!(recorder.report().is_empty());
        recorder.record(&get("/a"), &mut random, || 6);
        assert_eq!(counts(&recorder.report()), [("/a".to_owned(), 1)]);
    }

    #[test]
    fn whatever_tells_calls_apart_makes_another_entry_and_the_last_rule_is_known() {
        let (recorder, mut random) = (on(), fastrand::Rng::with_seed(1));
        let call = get("/a");
        let others = [
            call,
            Call { principal: None, ..call },
            Call { port: 81, ..call },
            Call { is_grpc: true, ..call },
            Call { method: "PUT", ..call },
            Call { is_allowed: false, ..call },
            Call { path: "/b", ..call },
        ];
        for call in others.iter().chain(&others) {
            recorder.record(call, &mut random, || 1);
        }
        recorder.record(&Call { rule: Some("x#1"), ..call }, &mut random, || 1);
        let report = recorder.report();
        assert_eq!(report.calls.len(), others.len());
        let first = report.calls.iter().find(|one| one.key == CallKey::of(&call)).unwrap();
        assert_eq!((first.count, first.rule.as_deref()), (3, Some("x#1")));
    }

    #[test]
    fn large_counts_are_estimates_and_small_ones_are_not() {
        let (recorder, mut random) = (on(), fastrand::Rng::with_seed(7));
        (0..EXACT).for_each(|_| recorder.record(&get("/a"), &mut random, || 1));
        assert_eq!(recorder.report().calls[0].count, EXACT);
        (0..1_000_000).for_each(|_| recorder.record(&get("/b"), &mut random, || 1));
        let count = counts(&recorder.report())[1].1;
        assert!((980_000..1_020_000).contains(&count), "{count}");
    }

    /// A quarter of a million paths of one caller, while another one calls as ever.
    #[test]
    fn a_flood_of_different_paths_costs_no_more_than_its_share_and_the_others_are_all_there() {
        let (recorder, mut random) = (on(), fastrand::Rng::with_seed(7));
        let honest = ["/", "/api/v1/products", "/api/v1/products/7/reviews", "/productpage"];
        for turn in 0..250_000_u32 {
            let path = format!("/q{}", letters(turn));
            recorder.record(&Call { principal: None, ..get(&path) }, &mut random, || 1);
            if turn % 25_000 == 0 {
                recorder.record(&get(honest[(turn / 25_000) as usize % honest.len()]), &mut random, || 1);
            }
        }
        let report = recorder.report();
        let of_web: u64 = report.calls.iter().filter(|one| one.key.principal.is_some()).map(|one| one.count).sum();
        assert_eq!(of_web, 10);
        assert_eq!(report.calls.len(), honest.len() + super::super::MOST_OF_CALLER);
        assert_eq!(report.lost, [Lost::new(None, 250_000 - super::super::MOST_OF_CALLER as u64)]);
    }

    fn letters(mut number: u32) -> String {
        let mut text = String::new();
        for _ in 0..5 {
            text.push(char::from(b'g' + (number % 19) as u8));
            number /= 19;
        }
        text
    }

    #[test]
    fn threads_together_lose_no_form() {
        let recorder = Arc::new(on());
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let recorder = Arc::clone(&recorder);
                std::thread::spawn(move || {
                    let mut random = fastrand::Rng::with_seed(thread);
                    for turn in 0..50_000_u32 {
                        recorder.record(&get(&format!("/a/{}", letters(turn % 40))), &mut random, || 1);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let report = recorder.report();
        assert_eq!(report.calls.len(), 40);
        let all: u64 = report.calls.iter().map(|one| one.count).sum();
        assert!((150_000..250_000).contains(&(all + report.missed)), "{all}");
    }
}
