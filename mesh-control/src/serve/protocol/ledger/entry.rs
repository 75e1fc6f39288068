//! One name of a subscription: what the client was told, and what follows from what the catalog says now.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::catalog::Encoded;

/// What the client was last told about a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Told {
    /// Nothing yet.
    #[default]
    Nothing,
    /// That it does not exist.
    Absent,
    /// On another stream; the version where the client says which (`initial_resource_versions`).
    Cached,
    /// On this stream.
    Sent,
}

/// What there is to know of a name besides the version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) told: Told,
    /// Asked for by name, rather than by the wildcard.
    pub(super) explicit: bool,
    /// Owed an answer, whatever its version.
    pub(super) asked: bool,
    /// To be pushed once more although its version is unchanged.
    pub(super) again: bool,
    /// A list that came too late to count was without it: the client has dropped it in between.
    pub(super) forgotten: bool,
}

/// One name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a Arc<str>,
    /// That of what the client has, where it has something and the version is known.
    pub(super) version: Option<&'a Arc<str>>,
    pub(super) state: State,
}

impl Entry<'_> {
    pub(super) fn is_held(&self) -> bool {
        matches!(self.state.told, Told::Cached | Told::Sent)
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
pub(super) fn duty(entry: &Entry<'_>, found: Option<&Encoded>, settled: bool) -> Duty {
    let Some(found) = found else {
        return if entry.is_held() { Duty::Withdraw } else { Duty::Nothing };
    };
    if entry.version == Some(&found.version) {
        return if entry.state.again { Duty::Send } else { Duty::Nothing };
    }
    // After a start the registry fills up again as workloads come back. What a client brought along may
    // not shrink meanwhile, if it says how many there were; one that has nothing is served as soon as there is an
    // endpoint.
    let incomplete = match entry.state.told {
        Told::Cached => {
            let had = entry.version.and_then(|version| Encoded::endpoints_of(version));
            had.is_none_or(|had| found.endpoints < had)
        }
        Told::Nothing | Told::Absent => found.endpoints == 0,
        Told::Sent => false,
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
    /// Has this happen for a name, in place of what was to happen before.
    pub(super) fn put(&mut self, duty: Duty, entry: &Entry<'_>) {
        self.remove(entry.name);
        let set = match duty {
            Duty::Hold => &mut self.settling,
            Duty::Withdraw => &mut self.leaving,
            Duty::Nothing | Duty::Send if entry.state.asked => &mut self.owed,
            Duty::Send if entry.state.again => &mut self.awaited,
            Duty::Send => &mut self.changed,
            Duty::Nothing => return,
        };
        set.insert(entry.name.clone());
    }

    fn all(&self) -> [&BTreeSet<Arc<str>>; 5] {
        [&self.owed, &self.awaited, &self.changed, &self.leaving, &self.settling]
    }

    pub(super) fn remove(&mut self, name: &str) {
        for set in [&mut self.owed, &mut self.awaited, &mut self.changed, &mut self.leaving, &mut self.settling] {
            set.remove(name);
        }
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.all().iter().any(|set| set.contains(name))
    }

    pub(super) fn len(&self) -> usize {
        self.all().iter().map(|set| set.len()).sum()
    }
}
