//! What one stream asked for, was told and confirmed, for one kind of resource.
//!
//! A ledger holds names and versions, never queued responses: the sets say *that* a name has to be sent,
//! and the resource itself is looked up in the newest catalog at the moment of sending. A slow client
//! therefore costs a few sets of names, skips every version it had no time for, and never holds up the
//! publisher (xDS server rule 13).

mod entries;
mod entry;
mod report;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::catalog::{Catalog, Changes, Client, Encoded, Kind};
use entries::Entries;
pub(crate) use entries::Interner;
use entry::{Duty, Sets, State, Told, duty};
pub(crate) use report::{NameReport, Report};

/// The catalog as one client sees it now.
pub(crate) struct View<'a> {
    pub(crate) catalog: &'a dyn Catalog,
    pub(crate) client: &'a Client,
    /// Workloads had the time to register themselves again after the start of mesh-control.
    pub(crate) settled: bool,
    /// The clusters in whose place the client is given something else, since it refused them, and which version that was.
    pub(crate) given_up: &'a BTreeMap<Arc<str>, Arc<str>>,
}

impl View<'_> {
    fn find(&self, kind: Kind, name: &str) -> Option<Encoded> {
        let found = self.catalog.resource(self.client, kind, name)?;
        match kind == Kind::Cluster && self.given_up.get(name) == Some(&found.version) {
            true => Some(self.catalog.instead(self.client, kind, name).unwrap_or(found)),
            false => Some(found),
        }
    }
}

/// A response that the client has not answered.
#[derive(Debug)]
struct Flight {
    nonce: u64,
    version: String,
    names: Vec<Arc<str>>,
    sent_at: Instant,
}

/// The last refusal of a kind.
#[derive(Clone, Debug)]
pub(crate) struct Nack {
    pub(crate) at: Instant,
    pub(crate) text: String,
    /// The resources that the text names, or else all of the refused response.
    pub(crate) names: Vec<Arc<str>>,
}

/// How a name came to be refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Blame {
    /// It was named, or alone in the response.
    certain: bool,
    /// A refusal named none of its response, which has this nonce: any of them may be the cause.
    shared: Option<u64>,
}

/// Which sets a response may draw from, besides the answers that are owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) pushes: Pushes,
    pub(crate) removals: bool,
}

/// What of a kind may be pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushes {
    /// Nothing.
    None,
    /// What the client waits for, since something before it was sent.
    Awaited,
    /// Everything that changed.
    All,
}

/// The content of one response.
#[derive(Debug, Default)]
pub(crate) struct Parcel {
    pub(crate) resources: Vec<Encoded>,
    /// Those of them that are not merely there because a response has to be whole.
    pub(crate) given: Vec<Arc<str>>,
    pub(crate) absent: Vec<Arc<str>>,
}

impl Parcel {
    fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.absent.is_empty()
    }
}

/// How many unanswered responses are remembered, so that a refusal can be put down to its resources.
const FLIGHTS: usize = 8;
/// How many names of a refused response are remembered.
const NACK_NAMES: usize = 64;
/// How many bytes of a refusal's text are remembered.
const NACK_TEXT: usize = 2048;
/// How many bytes of names one stream may subscribe to per kind, 64 bytes of bookkeeping each included.
const NAME_BYTES: usize = 32 << 20;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Ledger {
    kind: Kind,
    whole: bool,
    window: usize,
    entries: Entries,
    /// What was sent, where a later response has to repeat it.
    bodies: BTreeMap<Arc<str>, Bytes>,
    name_bytes: usize,
    opened: bool,
    wildcard: bool,
    /// A wildcard's first answer is owed even if it is empty.
    greeting: bool,
    /// Names given up under a wildcard that does not cover them: the client is owed the word that they are gone.
    parting: BTreeSet<Arc<str>>,
    sets: Sets,
    flights: VecDeque<Flight>,
    nonce: u64,
    nack: Option<Nack>,
    /// What the client refused and has not accepted since.
    refused: BTreeMap<Arc<str>, Blame>,
    /// Those of them in whose place it was given something else: that it accepts this says nothing of them.
    given_up: BTreeSet<Arc<str>>,
    sent_version: String,
    acked_version: String,
    acked_at: Option<Instant>,
    pushes: u64,
    nacks: u64,
}

impl Ledger {
    /// `whole`: every response of this kind repeats the whole subscribed set, since what is left out
    /// counts as deleted. `window`: how many responses may be unanswered while requests are answered.
    pub(crate) fn new(kind: Kind, whole: bool, window: usize, interner: Arc<Interner>) -> Ledger {
        Ledger {
            kind,
            whole,
            window,
            entries: Entries::new(interner),
            bodies: BTreeMap::new(),
            name_bytes: 0,
            opened: false,
            wildcard: false,
            greeting: false,
            parting: BTreeSet::new(),
            sets: Sets::default(),
            flights: VecDeque::new(),
            nonce: 0,
            nack: None,
            refused: BTreeMap::new(),
            given_up: BTreeSet::new(),
            sent_version: String::new(),
            acked_version: String::new(),
            acked_at: None,
            pushes: 0,
            nacks: 0,
        }
    }

    /// Notes a request of this kind; whether it is the first one of the stream.
    pub(crate) fn open(&mut self) -> bool {
        !mem::replace(&mut self.opened, true)
    }

    /// Subscribes to a name, which is thereby owed an answer even if the client was told before: it may
    /// have forgotten. Whether the name is new.
    pub(crate) fn subscribe(&mut self, name: &str, view: &View<'_>) -> bool {
        self.enter(name, None, true, view)
    }

    /// Subscribes to a name that the client holds from another stream: with the version it tells, only a
    /// difference is sent; without one, the name is owed an answer.
    pub(crate) fn resume(&mut self, name: &str, version: Option<&str>, view: &View<'_>) -> bool {
        self.enter(name, Some(version.map(Arc::from)), version.is_none(), view)
    }

    /// Remembers what a wildcard client holds without having asked for it by name.
    pub(crate) fn inherit(&mut self, name: &str, version: &str, view: &View<'_>) {
        if self.entries.contains(name) {
            return;
        }
        let (name, found) = intern(name, self.kind, view);
        self.name_bytes += weight(&name);
        let version = known(version.into(), found.as_ref());
        self.entries.put(&name, Some(&version), State { told: Told::Cached, ..State::default() });
        self.place(&name, found.as_ref(), false, view.settled);
    }

    /// Notes a whole list that does not count, because its nonce is stale. It does not change the
    /// subscription; but what it leaves out the client has dropped, and if the next list that counts has it
    /// again, it must be sent again.
    pub(crate) fn doubt(&mut self, names: &BTreeSet<&str>) {
        let dropped = self.entries.iter().filter(|entry| entry.state.explicit && !names.contains(&**entry.name));
        let dropped: Vec<_> = dropped.map(|entry| (entry.name.clone(), entry.state)).collect();
        for (name, state) in dropped {
            self.entries.set(&name, State { forgotten: true, ..state });
        }
    }

    /// The client may have dropped the name since it was told. Asking clears it.
    pub(crate) fn take_forgotten(&mut self, name: &str) -> bool {
        let Some(state) = self.state(name) else { return false };
        self.entries.set(name, State { forgotten: false, ..state });
        state.forgotten
    }

    /// `cached`: the client has it from another stream, in this version if it says which.
    fn enter(&mut self, name: &str, cached: Option<Option<Arc<str>>>, owed: bool, view: &View<'_>) -> bool {
        let (name, found) = intern(name, self.kind, view);
        if self.parting.remove(&name) {
            self.name_bytes = self.name_bytes.saturating_sub(weight(&name));
        }
        let is_new = match self.state(&name) {
            Some(state) => {
                self.entries.set(&name, State { explicit: true, ..state });
                !state.explicit
            }
            None => {
                self.name_bytes += weight(&name);
                let told = if cached.is_some() { Told::Cached } else { Told::Nothing };
                let version = cached.flatten().map(|version| known(version, found.as_ref()));
                self.entries.put(&name, version.as_ref(), State { told, explicit: true, ..State::default() });
                true
            }
        };
        self.place(&name, found.as_ref(), owed, view.settled);
        is_new
    }

    /// Gives up names; those of them that were asked for by themselves. Under a wildcard each of these is owed an
    /// answer, since the client does not know which names it covers: a name that it covers is sent again, any
    /// other is said to be gone (xDS protocol, "unsubscribing from resources").
    pub(crate) fn unsubscribe(&mut self, names: &[&str], view: &View<'_>) -> Vec<Arc<str>> {
        let everything = match self.wildcard && !names.is_empty() {
            true => view.catalog.everything(view.client, self.kind),
            false => Vec::new(),
        };
        let covered: HashSet<&str> = everything.iter().map(|name| &**name).collect();
        let mut given_up = Vec::new();
        for name in names {
            let Some(entry) = self.entries.get(name) else {
                continue;
            };
            let (own, state) = (entry.name.clone(), entry.state);
            if covered.contains(name) {
                let (name, found) = intern(name, self.kind, view);
                self.entries.set(&name, State { explicit: false, ..state });
                self.place(&name, found.as_ref(), true, view.settled);
            } else {
                self.forget(name);
                if self.wildcard && state.explicit {
                    self.name_bytes += weight(name);
                    self.parting.insert(own.clone());
                }
            }
            if state.explicit {
                given_up.push(own);
            }
        }
        given_up
    }

    /// Switches the wildcard on or off.
    pub(crate) fn set_wildcard(&mut self, on: bool, view: &View<'_>) {
        if self.wildcard == on {
            return;
        }
        self.wildcard = on;
        self.greeting = on;
        if on {
            self.expand(view);
        } else {
            let implicit = self.entries.iter().filter(|entry| !entry.state.explicit);
            let implicit: Vec<_> = implicit.map(|entry| entry.name.clone()).collect();
            implicit.iter().for_each(|name| self.forget(name));
        }
    }

    fn expand(&mut self, view: &View<'_>) {
        for name in view.catalog.everything(view.client, self.kind) {
            if !self.entries.contains(&name) {
                self.name_bytes += weight(&name);
                self.entries.put(&name, None, State::default());
                let found = view.find(self.kind, &name);
                self.place(&name, found.as_ref(), false, view.settled);
            }
        }
    }

    fn forget(&mut self, name: &str) {
        if let Some(name) = self.entries.remove(name) {
            self.name_bytes = self.name_bytes.saturating_sub(weight(&name));
        }
        self.sets.remove(name);
        self.bodies.remove(name);
        // A refusal of resources that the client no longer wants is settled.
        self.given_up.remove(name);
        self.refused.remove(name);
    }

    /// Whether any of what changes is, or may become, a part of the subscription.
    pub(crate) fn is_concerned(&self, changes: &Changes<'_>) -> bool {
        self.wildcard || self.entries.iter().any(|entry| changes.may_concern(entry.name))
    }

    /// Compares what may have changed with a new catalog. Whether something came up for removal that was not before.
    pub(crate) fn compare(&mut self, changes: &Changes<'_>, view: &View<'_>) -> bool {
        let mut leaves = false;
        for entry in self.entries.iter().filter(|entry| changes.may_concern(entry.name)) {
            let found = view.find(self.kind, entry.name);
            let duty = duty(&entry, found.as_ref(), view.settled);
            leaves |= duty == Duty::Withdraw && !self.sets.leaving.contains(entry.name);
            self.sets.put(duty, &entry);
        }
        if self.wildcard {
            self.expand(view);
        }
        leaves
    }

    fn place(&mut self, name: &Arc<str>, found: Option<&Encoded>, owed: bool, settled: bool) {
        if owed && let Some(state) = self.state(name) {
            self.entries.set(name, State { asked: true, ..state });
        }
        if let Some(entry) = self.entries.get(name) {
            self.sets.put(duty(&entry, found, settled), &entry);
        }
    }

    /// Has these names sent once more if the client has them from this stream: it waits for them.
    pub(crate) fn repeat<'a>(&mut self, names: impl Iterator<Item = &'a Arc<str>>) {
        for name in names {
            if let Some(state) = self.state(name)
                && state.told == Told::Sent
                && !self.sets.leaving.contains(name)
                && !self.sets.owed.contains(name)
            {
                self.entries.set(name, State { again: true, ..state });
                self.sets.changed.remove(name);
                self.sets.awaited.insert(name.clone());
            }
        }
    }

    /// The client waits for an answer that can be given now.
    pub(crate) fn has_answers(&self, removals: bool) -> bool {
        (self.greeting || !self.sets.owed.is_empty() || !self.parting.is_empty()) && (removals || !self.is_blind())
    }

    /// A whole-set response cannot be put together: it would have to repeat a resource that the client
    /// has from another stream and that no longer exists, and leaving it out would delete it.
    fn is_blind(&self) -> bool {
        self.whole
            && self.kind != Kind::Listener
            && self
                .sets
                .leaving
                .iter()
                .filter_map(|name| self.entries.get(name))
                .any(|entry| entry.state.told == Told::Cached)
    }

    /// There is something to push. A listener that disappeared counts: nothing refers to a listener, so
    /// its removal need not wait for anything.
    pub(crate) fn has_pushes(&self, removals: bool) -> bool {
        let listener_left = self.kind == Kind::Listener && self.has_removals();
        let is_changed = !self.sets.changed.is_empty() || self.has_awaited();
        (is_changed || listener_left) && (removals || !self.is_blind())
    }

    /// There is something to push that the client waits for.
    pub(crate) fn has_awaited(&self) -> bool {
        !self.sets.awaited.is_empty()
    }

    /// There is something to remove.
    pub(crate) fn has_removals(&self) -> bool {
        !self.sets.leaving.is_empty()
    }

    /// How much there is to remove that waits for the gate.
    pub(crate) fn held(&self) -> usize {
        if self.kind == Kind::Listener { 0 } else { self.sets.leaving.len() }
    }

    /// Something waits until mesh-control has settled.
    pub(crate) fn is_settling(&self) -> bool {
        !self.sets.settling.is_empty()
    }

    /// Another answer may be sent although earlier ones are unanswered.
    pub(crate) fn has_window(&self, now: Instant, grace: Duration) -> bool {
        self.flights.len() < self.window || self.unanswered().is_none_or(|at| at + grace <= now)
    }

    /// When the newest unanswered response was sent.
    pub(crate) fn unanswered(&self) -> Option<Instant> {
        self.flights.back().map(|flight| flight.sent_at)
    }

    /// The present refusal of this kind: the client has accepted nothing since.
    pub(crate) fn refusal(&self) -> Option<&Nack> {
        self.nack.as_ref().filter(|_| !self.refused.is_empty())
    }

    /// The client works with an older version of something that still exists.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.keys().any(|name| !self.sets.leaving.contains(name))
    }

    /// The wildcard has had no answer yet.
    pub(crate) fn owes_greeting(&self) -> bool {
        self.greeting
    }

    /// Takes the next response out of the sets, about `limit` bytes of it where it may be divided.
    pub(crate) fn compose(&mut self, scope: Scope, limit: usize, view: &View<'_>) -> Option<Parcel> {
        let removals = scope.removals || self.kind == Kind::Listener;
        let mut parcel = match self.whole {
            true => self.compose_whole(Scope { removals, ..scope }, view),
            false => self.compose_part(Scope { removals, ..scope }, limit, view),
        };
        for name in mem::take(&mut self.parting) {
            self.name_bytes = self.name_bytes.saturating_sub(weight(&name));
            parcel.absent.push(name);
        }
        let greeting = mem::take(&mut self.greeting);
        (greeting || !parcel.is_empty()).then_some(parcel)
    }

    fn compose_part(&mut self, scope: Scope, limit: usize, view: &View<'_>) -> Parcel {
        let mut parcel = Parcel::default();
        let mut bytes = 0;
        while bytes < limit {
            let pushes = if self.greeting { Pushes::All } else { scope.pushes };
            let sets = &mut self.sets;
            let next = sets.owed.pop_first();
            let next = next.or_else(|| if pushes != Pushes::None { sets.awaited.pop_first() } else { None });
            let next = next.or_else(|| if pushes == Pushes::All { sets.changed.pop_first() } else { None });
            let Some(name) = next else { break };
            bytes += self.give(name, view, &mut parcel);
        }
        while scope.removals && bytes < limit {
            let Some(name) = self.sets.leaving.pop_first() else {
                break;
            };
            bytes += name.len();
            self.withdraw(name, &mut parcel);
        }
        parcel
    }

    fn compose_whole(&mut self, scope: Scope, view: &View<'_>) -> Parcel {
        let mut parcel = Parcel::default();
        let owed = mem::take(&mut self.sets.owed);
        let pushes = scope.pushes != Pushes::None || self.greeting;
        let pushed = if pushes { mem::take(&mut self.sets.changed) } else { BTreeSet::new() };
        let removed = if scope.removals { mem::take(&mut self.sets.leaving) } else { BTreeSet::new() };
        for name in self.entries.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>() {
            if removed.contains(&name) {
                self.withdraw(name, &mut parcel);
            } else if owed.contains(&name) || pushed.contains(&name) {
                self.give(name, view, &mut parcel);
            } else if let Some(entry) = self.entries.get(&name) {
                match (entry.state.told, entry.version, self.bodies.get(&name)) {
                    (Told::Sent, Some(version), Some(body)) => parcel.resources.push(Encoded {
                        version: version.clone(),
                        body: body.clone(),
                        name,
                        self_registered: false,
                        endpoints: 0,
                    }),
                    (Told::Absent, ..) => parcel.absent.push(name),
                    _ => {}
                }
            }
        }
        parcel
    }

    fn give(&mut self, name: Arc<str>, view: &View<'_>, parcel: &mut Parcel) -> usize {
        let Some(state) = self.state(&name) else {
            return 0;
        };
        let state = State { asked: false, again: false, ..state };
        match view.find(self.kind, &name) {
            Some(found) => {
                match view.given_up.contains_key(&name) {
                    true => self.given_up.insert(name.clone()),
                    false => self.given_up.remove(&name),
                };
                self.entries.put(&name, Some(&found.version), State { told: Told::Sent, ..state });
                if self.whole {
                    self.bodies.insert(name.clone(), found.body.clone());
                }
                let bytes = found.body.len() + name.len();
                parcel.resources.push(found);
                parcel.given.push(name);
                bytes
            }
            None => {
                self.entries.set(&name, state);
                self.withdraw(name, parcel);
                0
            }
        }
    }

    fn withdraw(&mut self, name: Arc<str>, parcel: &mut Parcel) {
        self.bodies.remove(&name);
        match self.entries.get(&name).map(|entry| entry.state) {
            Some(state) if state.explicit => {
                self.entries.put(&name, None, State { told: Told::Absent, asked: false, ..state });
            }
            Some(_) => self.forget(&name),
            None => return,
        }
        parcel.absent.push(name);
    }

    /// Has with other streams in common what it holds like them; see [`Entries::share`].
    pub(crate) fn share(&mut self) {
        self.entries.share();
    }

    fn state(&self, name: &str) -> Option<State> {
        self.entries.get(name).map(|entry| entry.state)
    }

    /// Notes a response as sent and returns its nonce: nonces of a kind only grow.
    pub(crate) fn launch(&mut self, parcel: &Parcel, now: Instant) -> (u64, String) {
        self.nonce += 1;
        self.pushes += 1;
        if self.flights.len() >= FLIGHTS {
            self.flights.pop_front();
        }
        let version = self.fingerprint();
        let names = parcel.resources.iter().map(|resource| resource.name.clone()).chain(parcel.absent.iter().cloned());
        self.flights.push_back(Flight {
            nonce: self.nonce,
            version: version.clone(),
            names: names.collect(),
            sent_at: now,
        });
        self.sent_version.clone_from(&version);
        (self.nonce, version)
    }

    /// One version for all that the client was told: a hash over names and content versions, and so the
    /// same on every replica and after every restart.
    fn fingerprint(&self) -> String {
        let mut hash = Xxh3::new();
        for entry in self.entries.iter() {
            if let Some(version) = entry.version {
                hash.update(entry.name.as_bytes());
                hash.update(&[0]);
                hash.update(version.as_bytes());
                hash.update(&[0]);
            }
        }
        format!("{:016x}", hash.digest())
    }

    /// The number of the last response, 0 before the first one.
    pub(crate) fn last_nonce(&self) -> u64 {
        self.nonce
    }

    /// The client accepted a response. Whether that response was still unanswered.
    pub(crate) fn accept(&mut self, nonce: u64, now: Instant) -> bool {
        let Some(flight) = self.land(nonce) else {
            return false;
        };
        self.acked_version = flight.version;
        self.acked_at = Some(now);
        flight.names.iter().for_each(|name| self.clear(name));
        true
    }

    /// The client works with the newest version of a name.
    fn clear(&mut self, name: &str) {
        if self.given_up.contains(name) {
            return;
        }
        if let Some(Blame { shared: Some(nonce), .. }) = self.refused.remove(name) {
            // Who refuses without a name and then accepts one of them may never be sent the others again: a refusal
            // that nothing can end would hold back removals for ever. Those that were refused on their own stay so.
            self.refused.retain(|_, other| other.certain || other.shared != Some(nonce));
        }
    }

    /// The client refused a response. Whether that response was still unanswered.
    pub(crate) fn refuse(&mut self, nonce: u64, text: &str, now: Instant) -> bool {
        let Some(flight) = self.land(nonce) else {
            return false;
        };
        let mut names = flight.names;
        let is_named = names.iter().any(|name| mentions(text, name));
        if is_named {
            let accepted = names.extract_if(.., |name| !mentions(text, name));
            accepted.for_each(|name| self.clear(&name));
        }
        let certain = is_named || names.len() == 1;
        for name in names.iter().filter(|name| self.entries.contains(name)) {
            let blame = self.refused.entry(name.clone()).or_default();
            if certain {
                blame.certain = true;
                continue;
            }
            // Those that shared the blame with it before share it from now on as well.
            match blame.shared.replace(nonce) {
                Some(before) if before != nonce => {
                    let others = self.refused.values_mut().filter(|other| other.shared == Some(before));
                    others.for_each(|other| other.shared = Some(nonce));
                }
                _ => {}
            }
        }
        names.truncate(NACK_NAMES);
        let end = (0..=NACK_TEXT.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        self.nack = Some(Nack { at: now, text: text[..end].to_owned(), names });
        self.nacks += 1;
        true
    }

    /// What the client certainly refused, each with its version.
    pub(crate) fn certainly_refused(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let certain = self.refused.iter().filter(|(_, blame)| blame.certain);
        certain.filter_map(|(name, _)| Some((name.clone(), self.entries.get(name)?.version?.clone()))).collect()
    }

    /// Expects no answer to anything sent so far: who has answered the newest response need not answer those before.
    pub(crate) fn supersede(&mut self) {
        self.flights.clear();
    }

    fn land(&mut self, nonce: u64) -> Option<Flight> {
        let at = self.flights.iter().position(|flight| flight.nonce == nonce)?;
        self.flights.remove(at)
    }

    /// How many bytes of names are asked for, with their bookkeeping.
    pub(crate) fn name_bytes(&self) -> usize {
        self.name_bytes
    }

    /// More names than one stream may have.
    pub(crate) fn is_overfull(&self) -> bool {
        self.name_bytes > NAME_BYTES
    }

    /// Everything is asked for.
    pub(crate) fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    /// The name is asked for by itself.
    pub(crate) fn is_subscribed(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.state.explicit)
    }

    /// The name is asked for, by itself or by the wildcard.
    pub(crate) fn is_known(&self, name: &str) -> bool {
        self.entries.contains(name)
    }

    /// The names asked for one by one.
    pub(crate) fn explicit(&self) -> impl Iterator<Item = &Arc<str>> {
        self.entries.iter().filter(|entry| entry.state.explicit).map(|entry| entry.name)
    }

    /// What there is to say about this kind in a status report.
    pub(crate) fn report(&self) -> Report {
        Report {
            kind: self.kind,
            wildcard: self.wildcard,
            names: self
                .entries
                .iter()
                .map(|entry| NameReport {
                    name: entry.name.clone(),
                    version: entry.version.cloned(),
                    absent: entry.state.told == Told::Absent,
                    pending: self.sets.contains(entry.name),
                    refused: self.refused.contains_key(entry.name),
                })
                .collect(),
            sent_version: self.sent_version.clone(),
            acked_version: self.acked_version.clone(),
            acked_at: self.acked_at,
            pending_since: self.flights.front().map(|flight| flight.sent_at),
            unsent: self.sets.len() + self.parting.len(),
            settling: self.sets.settling.len(),
            nack: self.nack.clone(),
            refused: !self.refused.is_empty(),
            pushes: self.pushes,
            nacks: self.nacks,
        }
    }
}

/// The catalog's own copy of a name where it has one, so that 200 streams share it.
fn intern(name: &str, kind: Kind, view: &View<'_>) -> (Arc<str>, Option<Encoded>) {
    let found = view.find(kind, name);
    let name = match &found {
        Some(found) if &*found.name == name => found.name.clone(),
        _ => Arc::from(name),
    };
    (name, found)
}

/// A version that a client tells, as the catalog has it if that is the same.
fn known(version: Arc<str>, found: Option<&Encoded>) -> Arc<str> {
    found.map(|found| &found.version).filter(|own| **own == version).cloned().unwrap_or(version)
}

/// Whether a text has this name in it, and not just as a part of a longer one.
fn mentions(text: &str, name: &str) -> bool {
    let goes_on = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte));
    let bytes = text.as_bytes();
    let is_whole = |at: usize| {
        let before = at.checked_sub(1).and_then(|before| bytes.get(before));
        !goes_on(before) && !goes_on(bytes.get(at + name.len()))
    };
    text.match_indices(name).any(|(at, _)| is_whole(at))
}

fn weight(name: &str) -> usize {
    name.len() + 64
}

#[cfg(test)]
mod tests {
    use super::mentions;

    #[test]
    fn a_name_is_mentioned_as_a_whole() {
        for text in ["80: bad", "bad: 80", "resource \"80\"", "80", "a8080 and 80."] {
            assert!(mentions(text, "80"), "{text}");
        }
        for text in ["", "8080", "port-80", "80-v2", "line 180", "80_"] {
            assert!(!mentions(text, "80"), "{text}");
        }
    }
}
