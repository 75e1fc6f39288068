//! Who called what in the mesh: what workloads report of the calls to their servers ([`mesh_core::calls`]), gathered by workload,
//! within bounds, and over a restart.
//!
//! A report counts as taken once it is in the journal, where there is one: whoever reports keeps it until then. What a
//! workload reports is about itself alone; who it is says its certificate, and where it has none (`--dev`, plaintext) its word,
//! which stands apart from what is proven.

mod journal;
mod record;
mod suggest;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mesh_core::calls::{Book, Call};
use mesh_core::xds::access_log::Entry;

pub use record::{Protocol, Record, Verdict, Workload};
pub use suggest::{Suggestion, of_workload, suggest};

use journal::Journal;

/// How many workloads have records; half of that for those whose identity nothing proves, whose names cost nothing.
const MOST_WORKLOADS: usize = 10_000;
/// How many entries all of them have together; half of that for those whose identity nothing proves.
const MOST_ENTRIES: usize = 400_000;

/// The records of all workloads.
///
/// ```
/// use mesh_control::calls::Calls;
///
/// let calls = Calls::in_memory();
/// assert!(calls.records(None).is_empty());
/// ```
#[derive(Debug)]
pub struct Calls(Mutex<Gathered>);

#[derive(Debug, Default)]
struct Gathered {
    books: BTreeMap<Workload, Book>,
    entries: usize,
    journal: Option<Journal>,
}

impl Calls {
    /// Records that end with the process.
    pub fn in_memory() -> Calls {
        Calls(Mutex::default())
    }

    /// Records that are kept in a directory, which is this server's alone, and what is there already. What of it cannot be read is
    /// left out, and said.
    ///
    /// # Errors
    /// Where the directory cannot be written to.
    pub fn open(dir: &Path) -> io::Result<Calls> {
        let mut gathered = Gathered::default();
        let (mut journal, records) = Journal::open(dir)?;
        for record in records {
            gathered.note(&record.workload, &record.entry());
        }
        let all = gathered.records(None);
        journal.rewrite(&all)?;
        gathered.journal = Some(journal);
        Ok(Calls(Mutex::new(gathered)))
    }

    /// Takes in what a workload reports. It is in the journal when this returns.
    ///
    /// # Errors
    /// Where the journal cannot be written, or there are too many workloads: nothing was taken in.
    pub(crate) fn take(&self, workload: &Workload, entries: &[Entry]) -> io::Result<()> {
        let mut gathered = self.gathered();
        if !gathered.books.contains_key(workload) && gathered.books.len() >= most_workloads(workload) {
            let most = most_workloads(workload);
            return Err(io::Error::other(format!("{most} workloads or more have records of calls")));
        }
        if let Some(journal) = &mut gathered.journal {
            journal.append(entries.iter().map(|entry| Record::of(workload, entry)))?;
        }
        for entry in entries {
            gathered.note(workload, entry);
        }
        if gathered.journal.as_ref().is_some_and(|journal| journal.is_long(gathered.entries)) {
            let all = gathered.records(None);
            if let Some(journal) = &mut gathered.journal {
                // What was reported is in it all the same.
                if let Err(error) = journal.rewrite(&all) {
                    tracing::warn!(%error, "the record of calls stays in a file that is longer than it has to be");
                }
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many may have records before this one has none.
fn most_workloads(workload: &Workload) -> usize {
    if workload.is_proven { MOST_WORKLOADS } else { MOST_WORKLOADS / 2 }
}

impl Gathered {
    fn note(&mut self, workload: &Workload, entry: &Entry) {
        let most = if workload.is_proven { MOST_ENTRIES } else { MOST_ENTRIES / 2 };
        if !self.books.contains_key(workload) {
            if self.books.len() >= most_workloads(workload) {
                return;
            }
            self.books.insert(workload.clone(), Book::default());
        }
        let Some(book) = self.books.get_mut(workload) else { return };
        let before = book.len();
        match entry {
            Entry::Calls(counted) => {
                let call: Call<'_> = counted.key.call(counted.rule.as_deref());
                match self.entries < most || book.holds(&call) {
                    true => drop(book.note(&call, counted.count, counted.first, counted.last)),
                    false => book.lose(call.principal, counted.count),
                }
            }
            Entry::Lost(lost) => book.lose(lost.principal.as_deref(), lost.count),
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
    use mesh_core::calls::{CallKey, Counted, Lost};

    use super::*;

    fn workload(name: &str, is_proven: bool) -> Workload {
        let labels = [("app".to_owned(), name.to_owned())].into();
        Workload::new("shop", "w-1", "default", is_proven).labelled(&labels)
    }

    fn calls(path: &str, count: u64) -> Entry {
        let principal = Some("spiffe://cluster.local/ns/shop/sa/web");
        let (port, method, is_allowed) = (80, "GET", true);
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
                records.take(&workload("reviews", true), &[calls("/a", 1)]).unwrap();
            }
            let lost = Entry::Lost(Lost::new(None, 3));
            records.take(&workload("ratings", false), &[calls("/b/7?token=secret", 2), lost]).unwrap();
            records.lines(None)
        };
        assert!(before.contains("\"count\":30000") && before.contains("\"lost\":3") && !before.contains("secret"));
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.lines().count() < 15_000 && !text.contains("secret"));
        // The last line of a server that was killed may be half a line.
        std::fs::write(&file, format!("{text}{{\"workload\":")).unwrap();
        let records = Calls::open(dir.path()).unwrap();
        assert_eq!(records.lines(None), before);
        records.take(&workload("reviews", true), &[calls("/a", 1)]).unwrap();
        drop(records);
        assert!(Calls::open(dir.path()).unwrap().lines(None).contains("\"count\":30001"));
    }

    #[test]
    fn what_is_proven_and_what_is_not_are_two_records() {
        let records = Calls::in_memory();
        records.take(&workload("reviews", true), &[calls("/a", 1)]).unwrap();
        records.take(&workload("reviews", false), &[calls("/spy", 1)]).unwrap();
        let found = records.records(Some(("shop", "reviews")));
        let found: Vec<_> = found.iter().map(|record| (record.workload.is_proven, &*record.path)).collect();
        assert_eq!(found, [(false, "/spy"), (true, "/a")]);
        assert!(records.records(Some(("shop", "ratings"))).is_empty());
    }
}
