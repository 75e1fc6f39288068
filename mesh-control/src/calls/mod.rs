//! Who called what in the mesh: what workloads report of the calls to their servers ([`mesh_core::calls`]), gathered by workload,
//! within bounds, and over a restart.
//!
//! A report counts as taken once it is in the journal, where there is one: whoever reports keeps it until then. What a
//! workload reports is about itself alone; who it is says its certificate, and where it has none (`--dev`, plaintext) its word,
//! which stands apart from what is proven.

mod record;
mod suggest;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mesh_core::calls::{Book, Call, Lost};
use mesh_core::xds::access_log::Entry;

use crate::journal::Journal;

pub use record::{Protocol, Record, Verdict, Workload};
pub use suggest::{Suggestion, of_workload, suggest};

const FILE: &str = "calls.jsonl";
/// How many workloads have records; half of that for those whose identity nothing proves, whose names cost nothing.
const MOST_WORKLOADS: usize = 10_000;
/// How many of the latter one address has brought: nobody else is left without a place by it.
const MOST_OF_ADDRESS: usize = 1_000;
/// How many entries all of them have together; half of that for those whose identity nothing proves.
const MOST_ENTRIES: usize = 400_000;
/// How many bytes these are as lines, each of which repeats whose they are; half of that for those whose identity nothing proves.
const MOST_BYTES: usize = 256 << 20;

/// The records of all workloads.
///
/// ```
/// use mesh_control::calls::Calls;
///
/// let calls = Calls::in_memory();
/// assert!(calls.records(None).is_empty());
/// ```
#[derive(Debug)]
pub struct Calls {
    /// Locked before `gathered` where both are needed, and while the disk is written to.
    journal: Mutex<Option<Journal>>,
    /// Locked for as long as it takes to look something up: whoever reads waits for no disk.
    gathered: Mutex<Gathered>,
}

#[derive(Debug, Default)]
struct Gathered {
    books: BTreeMap<Workload, Book>,
    entries: usize,
    /// Of the entries, as lines.
    bytes: usize,
    /// How many workloads that nothing proves came from an address, since the start.
    brought: HashMap<IpAddr, usize>,
}

impl Calls {
    /// Records that end with the process.
    pub fn in_memory() -> Calls {
        Calls { journal: Mutex::default(), gathered: Mutex::default() }
    }

    /// Records that are kept in a directory, which is this server's alone, and what is there already. What of it cannot be read is
    /// left out, and said.
    ///
    /// # Errors
    /// Where the directory cannot be written to.
    pub fn open(dir: &Path) -> io::Result<Calls> {
        let mut gathered = Gathered::default();
        let (mut journal, records) = Journal::open::<Record>(dir, FILE)?;
        for record in records {
            gathered.note(&record.workload, &record.entry());
        }
        journal.rewrite(&gathered.records(None))?;
        Ok(Calls { journal: Mutex::new(Some(journal)), gathered: Mutex::new(gathered) })
    }

    /// Takes in what a workload reports, from this address. It is in the journal when this returns.
    ///
    /// # Errors
    /// Where the journal cannot be written, or there are too many workloads: nothing was taken in.
    pub(crate) fn take(&self, workload: &Workload, from: IpAddr, entries: &[Entry]) -> io::Result<()> {
        // One after the other: what is in the journal is what was gathered.
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        self.gathered().admit(workload, from)?;
        if let Some(journal) = &mut *journal {
            journal.append(entries.iter().map(|entry| Record::of(workload, entry)))?;
        }
        let all = {
            let mut gathered = self.gathered();
            gathered.enter(workload, from);
            for entry in entries {
                gathered.note(workload, entry);
            }
            let is_long = journal.as_ref().is_some_and(Journal::is_long);
            is_long.then(|| gathered.records(None))
        };
        if let (Some(journal), Some(all)) = (&mut *journal, all) {
            // What was reported is in it all the same.
            if let Err(error) = journal.rewrite(&all) {
                tracing::warn!(%error, "the record of calls stays in a file that is longer than it has to be");
            }
        }
        Ok(())
    }

    /// All records, or those of one workload: its namespace and name.
    pub fn records(&self, of: Option<(&str, &str)>) -> Vec<Record> {
        self.gathered().records(of)
    }

    /// The same as JSON Lines, as `mesh-control authz suggest` and `preview` read them.
    pub fn lines(&self, of: Option<(&str, &str)>) -> String {
        self.records(of).iter().map(Record::line).collect()
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many may have records before this one has none.
fn most_workloads(workload: &Workload) -> usize {
    if workload.is_proven { MOST_WORKLOADS } else { MOST_WORKLOADS / 2 }
}

impl Gathered {
    /// Whether there is a place for the records of a workload that reports from this address.
    fn admit(&self, workload: &Workload, from: IpAddr) -> io::Result<()> {
        if self.books.contains_key(workload) {
            return Ok(());
        }
        let most = most_workloads(workload);
        if self.books.len() >= most {
            return Err(io::Error::other(format!("{most} workloads or more have records of calls")));
        }
        if !workload.is_proven && self.brought.get(&from).is_some_and(|brought| *brought >= MOST_OF_ADDRESS) {
            let why = format!(
                "{from} reports the calls of {MOST_OF_ADDRESS} workloads already, of which none has a certificate"
            );
            return Err(io::Error::other(why));
        }
        Ok(())
    }

    /// Gives a workload that was admitted its place.
    fn enter(&mut self, workload: &Workload, from: IpAddr) {
        if !self.books.contains_key(workload) {
            self.books.insert(workload.clone(), Book::default());
            if !workload.is_proven {
                *self.brought.entry(from).or_default() += 1;
            }
        }
    }

    /// Counts an entry. One that finds no place is counted as lost.
    fn note(&mut self, workload: &Workload, entry: &Entry) {
        let share = |most: usize| if workload.is_proven { most } else { most / 2 };
        if !self.books.contains_key(workload) {
            // Those of a journal: they were admitted when they were written.
            if self.books.len() >= most_workloads(workload) {
                return;
            }
            self.books.insert(workload.clone(), Book::default());
        }
        let Some(book) = self.books.get_mut(workload) else { return };
        let before = book.len();
        let mut lost = None;
        match entry {
            Entry::Calls(counted) => {
                let call: Call<'_> = counted.key.call(counted.rule.as_deref());
                let length = if book.holds(&call) { 0 } else { Record::of(workload, entry).line().len() };
                let has_room = self.entries < share(MOST_ENTRIES) && self.bytes + length <= share(MOST_BYTES);
                match has_room || length == 0 {
                    true => drop(book.note(&call, counted.count, counted.first, counted.last)),
                    false => lost = Some(Lost::new(counted.key.principal.clone(), counted.count)),
                }
                // Where many became one, the bytes of all of them stay counted.
                self.bytes += if book.len() > before { length } else { 0 };
            }
            Entry::Lost(entry) => lost = Some(entry.clone()),
        }
        if let Some(lost) = lost {
            let is_told_apart = lost.principal.is_none() || book.lost().any(|other| other.principal == lost.principal);
            let length = if is_told_apart { 0 } else { Record::of(workload, &Entry::Lost(lost.clone())).line().len() };
            // One line for all who are not told apart is what each workload has.
            let principal = lost.principal.as_deref().filter(|_| self.bytes + length <= share(MOST_BYTES));
            self.bytes += if principal.is_some() { length } else { 0 };
            book.lose(principal, lost.count);
        }
        self.entries = (self.entries + book.len()).saturating_sub(before);
    }

    fn records(&self, of: Option<(&str, &str)>) -> Vec<Record> {
        let is_wanted = |workload: &Workload| of.is_none_or(|of| of == (&*workload.namespace, &*workload.name));
        let books = self.books.iter().filter(|(workload, _)| is_wanted(workload));
        let mut records: Vec<Record> = books.flat_map(|(workload, book)| Record::all(workload, book)).collect();
        records.sort();
        records
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::calls::{CallKey, Counted};

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn workload(name: &str, is_proven: bool) -> Workload {
        let labels = [("app".to_owned(), name.to_owned())].into();
        Workload::new("shop", "w-1", "default", is_proven).labelled(&labels)
    }

    fn calls(path: &str, count: u64) -> Entry {
        calls_at(80, path, count)
    }

    fn calls_at(port: u16, path: &str, count: u64) -> Entry {
        let principal = Some("spiffe://cluster.local/ns/shop/sa/web");
        let (method, is_allowed) = ("GET", true);
        let call = Call { principal, port, is_grpc: false, method, path, is_allowed, rule: None };
        Entry::Calls(Counted::new(CallKey::of(&call), Some("a/b/c#0".into()), count, 10, 20))
    }

    #[test]
    fn a_restart_loses_nothing_and_the_journal_does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("calls.jsonl");
        let before = {
            let records = Calls::open(dir.path()).unwrap();
            for _ in 0..30_000 {
                records.take(&workload("reviews", true), HERE, &[calls("/a", 1)]).unwrap();
            }
            let lost = Entry::Lost(Lost::new(None, 3));
            records.take(&workload("ratings", false), HERE, &[calls("/b/7?token=secret", 2), lost]).unwrap();
            records.lines(None)
        };
        assert!(before.contains("\"count\":30000") && before.contains("\"lost\":3") && !before.contains("secret"));
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.lines().count() < 15_000 && !text.contains("secret"));
        // The last line of a server that was killed may be half a line.
        std::fs::write(&file, format!("{text}{{\"workload\":")).unwrap();
        let records = Calls::open(dir.path()).unwrap();
        assert_eq!(records.lines(None), before);
        records.take(&workload("reviews", true), HERE, &[calls("/a", 1)]).unwrap();
        drop(records);
        assert!(Calls::open(dir.path()).unwrap().lines(None).contains("\"count\":30001"));
    }

    #[test]
    fn what_is_proven_and_what_is_not_are_two_records() {
        let records = Calls::in_memory();
        records.take(&workload("reviews", true), HERE, &[calls("/a", 1)]).unwrap();
        records.take(&workload("reviews", false), HERE, &[calls("/spy", 1)]).unwrap();
        let found = records.records(Some(("shop", "reviews")));
        let found: Vec<_> = found.iter().map(|record| (record.workload.is_proven, &*record.path)).collect();
        assert_eq!(found, [(false, "/spy"), (true, "/a")]);
        assert!(records.records(Some(("shop", "ratings"))).is_empty());
    }
    #[test]
    fn records_are_bounded_by_their_bytes_and_what_finds_no_place_is_counted() {
        let records = Calls::in_memory();
        let wide = |number: usize| {
            let labels = [("app".to_owned(), format!("w{number}")), ("a".to_owned(), "x".repeat(8_000))].into();
            Workload::new("shop", "w", "default", false).labelled(&labels)
        };
        let mut told = 0;
        for number in 0..40 {
            let paths: Vec<Entry> = (1..=500).map(|port| calls_at(port, "/a", 1)).collect();
            told += paths.len() as u64;
            records.take(&wide(number), HERE, &paths).unwrap();
        }
        let all = records.records(None);
        let bytes: usize = all.iter().map(|record| record.line().len()).sum();
        // A line of what was lost for each workload comes on top.
        assert!(bytes <= MOST_BYTES / 2 + 40 * 9_000, "{bytes}");
        assert!(all.iter().any(|record| record.lost > 0), "more than there is room for");
        assert_eq!(
            all.iter().map(|record| record.count + record.lost).sum::<u64>(),
            told,
            "nothing is lost in silence"
        );
        // Those who are known have room.
        records.take(&workload("reviews", true), HERE, &[calls("/a", 1)]).unwrap();
        assert_eq!(records.records(Some(("shop", "reviews"))).iter().map(|record| record.count).sum::<u64>(), 1);
    }

    #[test]
    fn the_journal_of_wide_records_is_written_anew_before_it_is_long() {
        let dir = tempfile::tempdir().unwrap();
        let records = Calls::open(dir.path()).unwrap();
        let labels = [("app".to_owned(), "w".to_owned()), ("a".to_owned(), "x".repeat(8_000))].into();
        let wide = Workload::new("shop", "w", "default", true).labelled(&labels);
        for _ in 0..20 {
            records.take(&wide, HERE, &vec![calls("/a", 1); 500]).unwrap();
        }
        // 10,000 lines of 8 KB were told.
        let length = std::fs::metadata(dir.path().join("calls.jsonl")).unwrap().len();
        assert!(length < 32 << 20, "{length}");
        assert!(records.lines(None).contains("\"count\":10000"));
    }

    #[test]
    fn one_address_leaves_places_for_the_workloads_of_others() {
        let records = Calls::in_memory();
        for number in 0..MOST_OF_ADDRESS {
            records.take(&workload(&format!("w{number}"), false), HERE, &[]).unwrap();
        }
        let more = workload("more", false);
        let refused = records.take(&more, HERE, &[calls("/a", 1)]).unwrap_err().to_string();
        assert!(refused.contains("127.0.0.1 reports the calls of 1000 workloads already"), "{refused}");
        records.take(&more, [10, 0, 0, 1].into(), &[calls("/a", 1)]).unwrap();
        records.take(&workload("w7", false), HERE, &[calls("/a", 1)]).unwrap();
        records.take(&workload("proven", true), HERE, &[calls("/a", 1)]).unwrap();
    }

    #[test]
    fn whoever_reads_does_not_wait_for_the_disk() {
        let records = Calls::in_memory();
        records.take(&workload("reviews", true), HERE, &[calls("/a", 1)]).unwrap();
        // As it is while the journal is written.
        let _writing = records.journal.lock().unwrap();
        assert_eq!(records.records(None).len(), 1);
    }
}
