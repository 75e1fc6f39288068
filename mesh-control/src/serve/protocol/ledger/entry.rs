//! One name of a subscription: what the client was told, and what follows from what the catalog says now.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::catalog::Encoded;

/// What the client was last told about a name.
#[derive(Clone, Debug)]
pub(super) enum Told {
    /// Nothing yet.
    Nothing,
    /// That it does not exist.
    Absent,
    /// On another stream; the version where the client says which (`initial_resource_versions`).
    Cached(Option<Arc<str>>),
    /// On this stream.
    Sent(Arc<str>),
}

impl Told {
    pub(super) fn version(&self) -> Option<&Arc<str>> {
        match self {
            Told::Nothing | Told::Absent | Told::Cached(None) => None,
            Told::Cached(Some(version)) | Told::Sent(version) => Some(version),
        }
    }

    pub(super) fn is_held(&self) -> bool {
        matches!(self, Told::Cached(_) | Told::Sent(_))
    }
}

/// One name.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Asked for by name, rather than by the wildcard.
    pub(super) explicit: bool,
    pub(super) told: Told,
    /// Owed an answer, whatever its version.
    pub(super) asked: bool,
    /// To be pushed once more although its version is unchanged.
    pub(super) again: bool,
    /// A list that came too late to count was without it: the client has dropped it in between.
    pub(super) forgotten: bool,
}

impl Entry {
    pub(super) fn new(explicit: bool, told: Told) -> Entry {
        Entry { explicit, told, asked: false, again: false, forgotten: false }
    }
}

/// What has to happen for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    Nothing,
    Send,
    Withdraw,
    /// Wait until mesh-control has settled.
    Hold,
}

/// What has to happen for a name of which the catalog says this.
pub(super) fn duty(entry: &Entry, found: Option<&Encoded>, settled: bool) -> Duty {
    let Some(found) = found else {
        return if entry.told.is_held() { Duty::Withdraw } else { Duty::Nothing };
    };
    if entry.told.version() == Some(&found.version) {
        return if entry.again { Duty::Send } else { Duty::Nothing };
    }
    // After a start the registry fills up again as workloads come back. What a client brought along may
    // not shrink meanwhile, if it says how many there were; one that has nothing is served as soon as there is an
    // endpoint.
    let incomplete = match &entry.told {
        Told::Cached(version) => {
            let had = version.as_deref().and_then(Encoded::endpoints_of);
            had.is_none_or(|had| found.endpoints < had)
        }
        Told::Nothing | Told::Absent => found.endpoints == 0,
        Told::Sent(_) => false,
    };
    if found.self_registered && !settled && incomplete { Duty::Hold } else { Duty::Send }
}

/// The names for which something has to happen; each is in one set at most.
#[derive(Debug, Default)]
pub(super) struct Sets {
    pub(super) owed: BTreeSet<Arc<str>>,
    /// To be sent once more, since the client waits for it.
    pub(super) awaited: BTreeSet<Arc<str>>,
    pub(super) changed: BTreeSet<Arc<str>>,
    pub(super) leaving: BTreeSet<Arc<str>>,
    pub(super) settling: BTreeSet<Arc<str>>,
}

impl Sets {
    pub(super) fn of(&mut self, duty: Duty, entry: &Entry) -> Option<&mut BTreeSet<Arc<str>>> {
        match duty {
            Duty::Hold => Some(&mut self.settling),
            Duty::Withdraw => Some(&mut self.leaving),
            Duty::Nothing | Duty::Send if entry.asked => Some(&mut self.owed),
            Duty::Send if entry.again => Some(&mut self.awaited),
            Duty::Send => Some(&mut self.changed),
            Duty::Nothing => None,
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        for set in [&mut self.owed, &mut self.awaited, &mut self.changed, &mut self.leaving, &mut self.settling] {
            set.remove(name);
        }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        [&self.owed, &self.awaited, &self.changed, &self.leaving, &self.settling].iter().any(|set| set.contains(name))
    }

    pub(super) fn len(&self) -> usize {
        self.owed.len() + self.awaited.len() + self.changed.len() + self.leaving.len() + self.settling.len()
    }

    pub(super) fn clear(&mut self) {
        *self = Sets::default();
    }
}
