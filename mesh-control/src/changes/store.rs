//! The seam for whatever keeps objects with versions, and a history of their changes: an etcd, or a Kubernetes cluster.

use std::sync::Arc;
use std::time::SystemTime;

use super::{All, Author, Change, Entry, Id, Refusal, Stored, mark};

/// A store of objects that have versions.
pub(crate) trait VersionedStore: Sync {
    /// All objects as of a moment, and what the store knows of that moment.
    type Held: Send + Sync;

    /// The objects of that moment.
    fn objects(held: &Self::Held) -> &All;

    /// What the text of an object is called in what is found wrong with it.
    fn name(id: &Id) -> Arc<str>;

    /// All objects, as they are now.
    fn read(&self) -> impl Future<Output = Result<Self::Held, Refusal>> + Send;

    /// The changes that are kept, the newest first.
    fn history(&self) -> impl Future<Output = Result<Vec<Past>, Refusal>> + Send;

    /// What these changes would make of the objects, each in its place: a store may add to what is written. It may refuse them, and
    /// changes nothing.
    fn preview(
        &self,
        held: &Self::Held,
        changes: &[Change],
    ) -> impl Future<Output = Result<Vec<Change>, Refusal>> + Send;

    /// Changes objects that were read, and writes down who did it.
    fn commit(
        &self,
        held: &Self::Held,
        changes: &[Change],
        author: &Author,
        now: SystemTime,
    ) -> impl Future<Output = Result<Outcome, Refusal>> + Send;
}

/// What became of a set of changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is in force, under this number.
    Committed(u64),
    /// Somebody has changed something meanwhile.
    Conflict,
}

/// A change of the history.
#[derive(Clone, Debug)]
pub(crate) struct Past {
    pub(crate) entry: Entry,
    /// The version that it gave to its objects, where a version tells of such changes alone. Elsewhere each object's mark tells.
    pub(crate) version: Option<i64>,
}

impl Past {
    /// Whether an object that this change was about is as it left it.
    fn left(&self, path: &str, now: Option<&Stored>) -> bool {
        let mut changed = self.entry.objects.iter().filter(|changed| changed.object == path);
        match (now, self.version) {
            (None, _) => changed.any(|changed| changed.verb == "deleted"),
            (Some(stored), Some(version)) => stored.version == version,
            (Some(stored), None) => {
                let now = mark(&stored.text);
                changed.any(|changed| changed.after.as_ref() == Some(&now))
            }
        }
    }
}

/// Which of these objects would be changed, and were since the history's last word on them, by somebody who wrote none.
pub(super) fn beside(all: &All, newest_first: &[Past], changes: &[Change]) -> Vec<Id> {
    let is_beside = |change: &&Change| {
        if change.verb(all).is_none() {
            return false;
        }
        let path = change.id.path();
        let mut pasts = newest_first.iter();
        let last = pasts.find(|past| past.entry.objects.iter().any(|changed| changed.object == path));
        last.is_none_or(|past| !past.left(&path, all.get(&change.id)))
    };
    changes.iter().filter(is_beside).map(|change| change.id.clone()).collect()
}
