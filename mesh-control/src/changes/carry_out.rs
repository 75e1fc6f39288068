//! Carries out what somebody wants of the objects in a store: looks at what is there, says what would change, refuses what `validate`
//! refuses, and commits. Where somebody else was faster it looks again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;

use super::check::refused;
use super::diff::diff;
use super::store::{Outcome, Past, VersionedStore, beside};
use super::{All, Author, Change, Documents, Done, DoneWith, Entry, Id, Refusal, Wanted, What, undo};
use crate::config::load::Scan;
use crate::config::yaml::yaml;

/// How often it is looked at anew.
const LOOKS: u32 = 5;

/// Does what is wanted, or says why not.
///
/// # Errors
/// Why nothing was changed.
pub(crate) async fn carry_out<S: VersionedStore>(
    store: &S,
    wanted: &Wanted,
    author: &str,
    now: SystemTime,
) -> Result<Done, Refusal> {
    let author = Author { name: author.to_owned(), message: wanted.message.clone() };
    for _ in 0..LOOKS {
        let held = store.read().await?;
        let all = S::objects(&held);
        let (changes, left_out) = plan(store, all, &wanted.what).await?;
        let becomes = store.preview(&held, &changes).await?;
        let objects = becomes.iter().map(|change| done_with(all, change)).collect();
        let mut done = Done { number: None, objects, left_out };
        let both = changes.into_iter().zip(&becomes);
        let changes: Vec<Change> =
            both.filter(|(_, becomes)| becomes.verb(all).is_some()).map(|(change, _)| change).collect();
        if wanted.dry_run || changes.is_empty() {
            return Ok(done);
        }
        if let Outcome::Committed(number) = store.commit(&held, &changes, &author, now).await? {
            done.number = Some(number);
            return Ok(done);
        }
    }
    Err(Refusal::Conflict(format!("others changed something each of {LOOKS} times that it was tried")))
}

async fn plan<S: VersionedStore>(store: &S, all: &All, what: &What) -> Result<(Vec<Change>, Vec<String>), Refusal> {
    match what {
        What::Apply(files) => {
            let mut scan = Scan::default();
            scan.files.extend(files.iter().map(|(name, text)| (name.as_str().into(), Ok(text.as_str().into()))));
            let documents = Documents::read(&scan)
                .map_err(|wrong| Refusal::Invalid(wrong.iter().map(crate::config::Diagnostic::render).collect()))?;
            let changes = documents.changes(all).map_err(Refusal::Conflict)?;
            check(all, scan, &changes, S::name).await?;
            Ok((changes, documents.left_out))
        }
        What::Delete(paths) => {
            let ids: Result<BTreeSet<Id>, String> = paths.iter().map(|path| Id::parse_path(path)).collect();
            let ids = ids.map_err(Refusal::Unknown)?;
            if let Some(id) = ids.iter().find(|id| !all.contains_key(id)) {
                return Err(Refusal::Unknown(format!("there is no {id}")));
            }
            // Whoever takes away what others refer to may do so, as in a cluster: it fails what refers to it.
            Ok((ids.into_iter().map(|id| Change { id, text: None }).collect(), Vec::new()))
        }
        What::Rollback(to) => {
            let pasts: Vec<Past> = store.history().await?;
            let entries: Vec<Entry> = pasts.iter().map(|past| past.entry.clone()).collect();
            let last = entries
                .first()
                .map(|entry| entry.number)
                .ok_or_else(|| Refusal::Unknown("there is no change that could be taken back".to_owned()))?;
            let to = to.unwrap_or_else(|| last.saturating_sub(1));
            let changes = undo(&entries, to).map_err(Refusal::Unknown)?;
            if let Some(id) = beside(all, &pasts, &changes).first() {
                return Err(Refusal::Conflict(format!("{id} was changed by somebody who wrote no history")));
            }
            let mut scan = Scan::default();
            let files = changes.iter().filter_map(|change| Some((change.id.to_string(), change.text.clone()?)));
            scan.files.extend(files.map(|(name, text)| (name.into(), Ok(text))));
            check(all, scan, &changes, S::name).await?;
            Ok((changes, Vec::new()))
        }
    }
}

/// Looks at all objects as they would be.
async fn check(all: &All, files: Scan, changes: &[Change], name: fn(&Id) -> Arc<str>) -> Result<(), Refusal> {
    let (all, written) = (all.clone(), changes.iter().map(|change| change.id.clone()).collect());
    let found = tokio::task::spawn_blocking(move || refused(&all, files, &written, name)).await;
    let found = found.map_err(|_| Refusal::Store("the objects could not be looked at".to_owned()))?;
    if found.is_empty() {
        return Ok(());
    }
    Err(Refusal::Invalid(found.iter().map(|finding| finding.render().trim_end().to_owned()).collect()))
}

fn done_with(all: &All, change: &Change) -> DoneWith {
    let text = |text: &str| serde_json::from_str(text).map_or_else(|_| text.to_owned(), |value: Value| yaml(&value));
    let before = all.get(&change.id).map(|stored| text(&stored.text)).unwrap_or_default();
    let after = change.text.as_deref().map(text).unwrap_or_default();
    DoneWith {
        object: change.id.to_string(),
        verb: change.verb(all).unwrap_or("unchanged").to_owned(),
        diff: diff(&change.id.path(), &before, &after),
    }
}
