//! What is known of the resources that somebody asked for, whichever server and protocol it came over.
//!
//! Both protocol machines ask the same questions of it and report the same events to it, so that the rules on
//! what an event means are here and only here: last good is kept whatever happens (gRFC A46, A57, A88), unless
//! the server has the feature `fail_on_data_errors`; what the store was told is remembered, so that it is told
//! once. An error is kept beside the resource that works, never in its place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use crate::error::Invalid;
use crate::resources::{Change, Resource, ResourceKey, ResourceType};
use crate::xds::bootstrap::Server;
use crate::xds::client_status::{ErrorState, RawResource, ResourceState, ResourceStatus};
use crate::xds::decode::{Before, Decoded, Noted, without_plaintext};
use crate::xds::ignored::Ignored;
use crate::xds::names::type_url;

/// How long an unsubscribed resource is remembered. A server may see an unsubscription and the next subscription
/// as one (a stale nonce hides the first from a state-of-the-world server) and then has no reason to send the
/// resource again.
pub(crate) const REMEMBER: Duration = Duration::from_secs(5);

/// What is known, by resource.
#[derive(Debug)]
pub(crate) struct Cache {
    node_id: Arc<str>,
    entries: BTreeMap<ResourceKey, Entry>,
    parked: usize,
    ignored: Ignored,
}

#[derive(Debug, Default)]
struct Entry {
    good: Option<Good>,
    /// What stands in the place of the good one, which is in plaintext, since a version was refused that asks for TLS.
    closed: Option<Resource>,
    state: ResourceState,
    failure: Option<Failure>,
    /// It is there since all of its kind are wanted, and was not asked for by its name.
    is_one_of_all: bool,
    /// Unsubscribed, and forgotten at this time.
    parked: Option<Instant>,
    /// Seen since the subscription: only then does its absence from a response mean anything.
    seen: bool,
    /// What the store last heard, if it was that there is none.
    absent: Option<Arc<str>>,
}

/// A version that works.
#[derive(Debug)]
struct Good {
    resource: Resource,
    version: Arc<str>,
    raw: Bytes,
    ignored: Arc<[String]>,
    noted: Noted,
    updated: Instant,
    /// Where among the servers it came from: versions of one mean nothing to another.
    server: usize,
}

#[derive(Debug)]
struct Failure {
    reason: Arc<str>,
    version: Arc<str>,
    raw: Option<Bytes>,
    at: Instant,
}

/// One event: which server it came from, when, and what the store is to be told of it.
pub(crate) struct Step<'s> {
    /// The server's place in the list of servers.
    pub(crate) index: usize,
    /// What it is.
    pub(crate) server: &'s Server,
    /// When.
    pub(crate) now: Instant,
    /// For the store.
    pub(crate) out: &'s mut Vec<Change>,
}

impl Cache {
    pub(crate) fn new(node_id: impl Into<Arc<str>>) -> Self {
        Cache { node_id: node_id.into(), entries: BTreeMap::new(), parked: 0, ignored: Ignored::default() }
    }

    /// Somebody wants a resource; `false` if somebody did already. What is remembered of it is told at once.
    pub(crate) fn subscribe(&mut self, key: &ResourceKey, out: &mut Vec<Change>) -> bool {
        if let Some(entry) = self.entries.get_mut(key) {
            if entry.parked.take().is_none() {
                // Whoever wants it was not there when it came.
                if entry.is_one_of_all
                    && let Some(resource) = entry.in_use()
                {
                    out.push(Change::Put(key.clone(), resource.clone()));
                }
                return false;
            }
            self.parked -= 1;
            entry.seen = false;
            match entry.in_use() {
                Some(resource) => out.push(Change::Put(key.clone(), resource.clone())),
                None => *entry = Entry::default(),
            }
            return true;
        }
        self.entries.insert(key.clone(), Entry::default());
        true
    }

    /// Nobody wants a resource any more; `false` if nobody did before.
    pub(crate) fn unsubscribe(&mut self, key: &ResourceKey, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.parked.is_none()) else { return false };
        if entry.is_one_of_all {
            return false;
        }
        if key.is_all() {
            self.entries.retain(|other, entry| other.kind != key.kind || !entry.is_one_of_all);
        } else if entry.good.is_some() {
            entry.parked = Some(now + REMEMBER);
            entry.absent = None;
            self.parked += 1;
            return true;
        }
        self.entries.remove(key);
        true
    }

    /// Forgets what was unsubscribed long enough ago.
    pub(crate) fn forget(&mut self, now: Instant) {
        if self.parked > 0 {
            self.entries.retain(|_, entry| entry.parked.is_none_or(|until| until > now));
            self.parked = self.entries.values().filter(|entry| entry.parked.is_some()).count();
        }
    }

    /// When something is to be forgotten next.
    pub(crate) fn next_forget(&self) -> Option<Instant> {
        if self.parked == 0 {
            return None;
        }
        self.entries.values().filter_map(|entry| entry.parked).min()
    }

    /// The names of a kind that a server is asked for.
    pub(crate) fn names(&self, kind: ResourceType) -> impl Iterator<Item = &Arc<str>> {
        self.wanted(kind).filter(|(_, entry)| !entry.is_one_of_all).map(|(key, _)| &key.name)
    }

    /// The names of those that came since all of their kind are wanted.
    pub(crate) fn names_of_all(&self, kind: ResourceType) -> impl Iterator<Item = &Arc<str>> {
        self.of_kind(kind).filter(|(_, entry)| entry.is_one_of_all).map(|(key, _)| &key.name)
    }

    /// A server has answered for this kind: where all of it are wanted, that is all that there is to know.
    pub(crate) fn note_answer(&mut self, kind: ResourceType) -> Option<ResourceKey> {
        let all = ResourceKey::all(kind);
        self.entries.get_mut(&all).filter(|_| all.is_all())?.state = ResourceState::Acked;
        Some(all)
    }

    /// Whether somebody asked for what has arrived: by its name, or for all of its kind.
    fn is_for_us(&mut self, key: &ResourceKey) -> bool {
        if self.entries.contains_key(key) {
            return true;
        }
        let all = ResourceKey::all(key.kind);
        let wants_all = all.is_all() && self.entries.contains_key(&all);
        if wants_all {
            self.entries.insert(key.clone(), Entry { is_one_of_all: true, ..Entry::default() });
        }
        wants_all
    }

    /// The wanted resources of a kind that no answer came for yet.
    pub(crate) fn awaited(&self, kind: ResourceType) -> impl Iterator<Item = &ResourceKey> {
        self.wanted(kind).filter(|(_, entry)| entry.is_awaited()).map(|(key, _)| key)
    }

    /// Name and version of what a server need not send again: what came from it and is as it says (rule 33).
    pub(crate) fn versions(&self, kind: ResourceType, server: usize) -> impl Iterator<Item = (&str, &str)> {
        self.wanted(kind).filter_map(move |(key, entry)| {
            let good = entry.good.as_ref()?;
            let is_current = matches!(entry.state, ResourceState::Acked | ResourceState::Nacked);
            (is_current && good.server == server && !good.version.is_empty()).then_some((&*key.name, &*good.version))
        })
    }

    /// The resources of a kind of which there is a version that works, wanted or remembered.
    pub(crate) fn present(&self, kind: ResourceType) -> impl Iterator<Item = &ResourceKey> {
        self.of_kind(kind).filter(|(_, entry)| entry.good.is_some()).map(|(key, _)| key)
    }

    /// Whether anything is wanted.
    pub(crate) fn is_wanted(&self) -> bool {
        self.entries.len() > self.parked
    }

    /// Whether something is wanted of which nothing is known. That a resource does not exist is something known
    /// (gRFC A71).
    pub(crate) fn lacks_something(&self) -> bool {
        self.entries.values().any(|entry| {
            entry.parked.is_none()
                && entry.good.is_none()
                && matches!(entry.state, ResourceState::Requested | ResourceState::Timeout)
        })
    }

    /// Whether these are the very bytes of the version in use.
    pub(crate) fn has(&self, key: &ResourceKey, bytes: &[u8]) -> bool {
        self.good(key).is_some_and(|good| *good.raw == *bytes)
    }

    /// The version that works of a resource: one that says nearly the same can share with it.
    pub(crate) fn before(&self, key: &ResourceKey) -> Option<Before<'_>> {
        let good = self.good(key)?;
        Some(Before { bytes: &good.raw, resource: &good.resource, noted: &good.noted })
    }

    /// The version in use was sent again: only its version and where it came from are news.
    pub(crate) fn confirm(&mut self, step: &mut Step<'_>, key: &ResourceKey, version: &str) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let Some(good) = &mut entry.good else { return };
        good.server = step.index;
        if *good.version != *version {
            good.version = Arc::from(version);
        }
        entry.recovered(key, step.out, false);
    }

    /// A version that works has arrived.
    pub(crate) fn accept(
        &mut self,
        step: &mut Step<'_>,
        key: &ResourceKey,
        version: &str,
        raw: Bytes,
        decoded: Decoded,
    ) {
        if !self.is_for_us(key) {
            return;
        }
        let news = self.ignored.news(key, &decoded.ignored);
        let (node, server) = (&*self.node_id, &*step.server.uri);
        for field in &news {
            tracing::warn!(node, server, "{key}: set and without effect here: {field}");
        }
        if !news.is_empty() && self.ignored.is_full() {
            tracing::warn!(node, server, "further fields without effect are told by the client status alone");
        }
        let Some(entry) = self.entries.get_mut(key) else { return };
        // Other bytes may say the same: Protobuf maps have no order. Then the value that is in use stays in use, so
        // that whoever compares by pointer sees no change.
        let same = entry.good.take().map(|good| good.resource).filter(|resource| *resource == decoded.resource);
        let is_new = same.is_none();
        entry.good = Some(Good {
            resource: same.unwrap_or(decoded.resource),
            version: Arc::from(version),
            raw,
            ignored: decoded.ignored.into(),
            noted: decoded.noted,
            updated: step.now,
            server: step.index,
        });
        entry.recovered(key, step.out, is_new);
    }

    /// A version that does not work has arrived. One that does is kept; without one, the store learns why.
    pub(crate) fn reject(
        &mut self,
        step: &mut Step<'_>,
        key: &ResourceKey,
        version: &str,
        raw: Option<Bytes>,
        invalid: &Invalid,
    ) {
        let reason = self.reason(step.server, key, &format!("rejected: {invalid}"));
        if !self.is_for_us(key) {
            return;
        }
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.state = ResourceState::Nacked;
        entry.seen = true;
        if entry.good.is_none() {
            entry.tell_absent(key, &reason, step.out);
        }
        let refused = raw.as_deref().zip(entry.in_use());
        if let Some(closed) = refused.and_then(|(raw, present)| without_plaintext(present, raw, &reason)) {
            tracing::warn!(node = %self.node_id, "{reason}; it asks for TLS, so nothing goes on in plaintext");
            if entry.parked.is_none() {
                step.out.push(Change::Put(key.clone(), closed.clone()));
            }
            entry.closed = Some(closed);
        }
        entry.failure = Some(Failure { reason, version: Arc::from(version), raw, at: step.now });
    }

    /// The server says, by its silence or in words, that there is no such resource; `why`, if it says that, too.
    pub(crate) fn delete(&mut self, step: &mut Step<'_>, key: &ResourceKey, why: Option<&str>) {
        let what = "the management server has none";
        let what = why.map_or_else(|| what.to_owned(), |why| format!("{what}: {why}"));
        let reason = self.reason(step.server, key, &what);
        let Some(entry) = self.entries.get_mut(key) else { return };
        if entry.parked.is_some() {
            self.entries.remove(key);
            self.parked -= 1;
            return;
        }
        if entry.is_one_of_all {
            // Nobody would have it but for the server, who says what there is.
            self.entries.remove(key);
            step.out.push(Change::Absent(key.clone(), reason));
            return;
        }
        let is_news = entry.state != ResourceState::DoesNotExist;
        entry.state = ResourceState::DoesNotExist;
        if is_news && entry.good.is_some() && !entry.is_dropped_by(step.server) {
            tracing::warn!(node = %self.node_id, "{reason}; the last good one stays in use");
        }
        entry.data_error(step, key, reason);
    }

    /// The server reports an error about a resource (`resource_errors`, rule 23).
    pub(crate) fn error(&mut self, step: &mut Step<'_>, key: &ResourceKey, code: i32, message: &str) {
        const NOT_FOUND: i32 = 5;
        const PERMISSION_DENIED: i32 = 7;
        let what = format!("the management server reports an error (code {code}): {message}");
        let reason = self.reason(step.server, key, &what);
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.state = ResourceState::ReceivedError;
        entry.seen = true;
        match code {
            NOT_FOUND | PERMISSION_DENIED => entry.data_error(step, key, reason),
            _ => {
                if entry.good.is_none() {
                    entry.tell_absent(key, &reason, step.out);
                }
                entry.failure = Some(Failure { reason, version: Arc::from(""), raw: None, at: step.now });
            }
        }
    }

    /// The server kept silent about a resource for too long (rule 13).
    pub(crate) fn time_out(&mut self, step: &mut Step<'_>, key: &ResourceKey) {
        let is_transient = step.server.timer_is_transient();
        let what = match is_transient {
            true => "no answer from the management server in 30 s",
            false => "no answer from the management server in 15 s, so it has none",
        };
        let reason = self.reason(step.server, key, what);
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.is_awaited()) else { return };
        entry.state = if is_transient { ResourceState::Timeout } else { ResourceState::DoesNotExist };
        entry.tell_absent(key, &reason, step.out);
        entry.failure = Some(Failure { reason, version: Arc::from(""), raw: None, at: step.now });
    }

    /// No server can be reached. Whoever waits for a listener of which nothing is known learns why. A missing
    /// route, cluster or assignment is not reported: what works now goes on working until it is complete.
    pub(crate) fn unreachable(&mut self, step: &mut Step<'_>, error: &str) {
        let first = ResourceKey::new(ResourceType::Listener, "");
        let listeners = self.entries.range_mut(first..).take_while(|(key, _)| key.kind == ResourceType::Listener);
        for (key, entry) in listeners {
            if entry.is_awaited() && entry.absent.is_none() && entry.parked.is_none() {
                let reason = reason(&self.node_id, step.server, key, &format!("no management server answers: {error}"));
                entry.tell_absent(key, &reason, step.out);
            }
        }
    }

    /// Whether a resource was seen since it was subscribed to, so that its absence means its deletion.
    pub(crate) fn is_seen(&self, key: &ResourceKey) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.seen || entry.parked.is_some())
    }

    /// The version in use of a resource, as long as somebody wants it.
    pub(crate) fn content(&self, key: &ResourceKey) -> Option<&Resource> {
        let entry = self.entries.get(key).filter(|entry| entry.parked.is_none())?;
        entry.in_use()
    }

    /// How many fields were met that have no effect, each counted once for each resource.
    pub(crate) fn ignored_fields(&self) -> u64 {
        self.ignored.count()
    }

    /// Everything that is wanted, for the status page. Times are told in wall-clock time.
    pub(crate) fn status(&self, now: Instant, wall: SystemTime) -> impl Iterator<Item = ResourceStatus> {
        let time = move |at: Instant| wall.checked_sub(now.saturating_duration_since(at)).unwrap_or(wall);
        self.entries.iter().filter(|(_, entry)| entry.parked.is_none()).map(move |(key, entry)| {
            // Whoever may look at the status need not be told of keys.
            let told = |bytes: &Bytes| if key.kind == ResourceType::Secret { Bytes::new() } else { bytes.clone() };
            let raw = |bytes: &Bytes| RawResource { type_url: type_url(key.kind), value: told(bytes) };
            let good = entry.good.as_ref();
            ResourceStatus {
                key: key.clone(),
                state: entry.state,
                version: good.map_or_else(String::new, |good| good.version.to_string()),
                last_updated: good.map(|good| time(good.updated)),
                raw: good.map(|good| raw(&good.raw)),
                error: entry.failure.as_ref().map(|failure| ErrorState {
                    details: Arc::clone(&failure.reason),
                    version: failure.version.to_string(),
                    raw: failure.raw.as_ref().map(raw),
                    at: time(failure.at),
                }),
                ignored: good.map_or_else(|| Arc::from([]), |good| Arc::clone(&good.ignored)),
            }
        })
    }

    fn good(&self, key: &ResourceKey) -> Option<&Good> {
        self.entries.get(key)?.good.as_ref()
    }

    fn of_kind(&self, kind: ResourceType) -> impl Iterator<Item = (&ResourceKey, &Entry)> {
        self.entries.range(ResourceKey::new(kind, "")..).take_while(move |(key, _)| key.kind == kind)
    }

    fn wanted(&self, kind: ResourceType) -> impl Iterator<Item = (&ResourceKey, &Entry)> {
        self.of_kind(kind).filter(|(_, entry)| entry.parked.is_none())
    }

    fn reason(&self, server: &Server, key: &ResourceKey, what: &str) -> Arc<str> {
        reason(&self.node_id, server, key, what)
    }
}

/// The text of an error: resource, what, server and node (rule 12, gRFC A88).
fn reason(node_id: &str, server: &Server, key: &ResourceKey, what: &str) -> Arc<str> {
    Arc::from(format!("{key}: {what} [xDS server {}, node id {node_id:?}]", server.uri))
}

impl Entry {
    fn is_awaited(&self) -> bool {
        self.good.is_none() && self.state == ResourceState::Requested
    }

    /// What the store is to have.
    fn in_use(&self) -> Option<&Resource> {
        self.closed.as_ref().or(self.good.as_ref().map(|good| &good.resource))
    }

    /// The server has a version that works. The store hears of it if it is new, or if an error came in between
    /// (rule 17).
    fn recovered(&mut self, key: &ResourceKey, out: &mut Vec<Change>, is_new: bool) {
        self.seen = true;
        let had_failed = self.failure.take().is_some() | self.closed.take().is_some();
        if had_failed && self.state == ResourceState::DoesNotExist && !is_new {
            tracing::info!("{key} is there again");
        }
        self.state = ResourceState::Acked;
        if self.parked.is_some() {
            return;
        }
        if (is_new || had_failed || self.absent.is_some())
            && let Some(good) = &self.good
        {
            self.absent = None;
            out.push(Change::Put(key.clone(), good.resource.clone()));
        }
    }

    /// Whether there is nothing left of it once the server says that it is not for us: where the server's features say so
    /// (gRFC A88), and where it was a permission to pass by the mesh, or a ban, which must not outlive whoever gave it.
    fn is_dropped_by(&self, server: &Server) -> bool {
        let is_empty = |good: &Good| matches!(&good.resource, Resource::Listener(listener) if listener.says_nothing());
        server.fails_on_data_errors() || self.good.as_ref().is_some_and(is_empty)
    }

    /// The server says that the resource is not for us.
    fn data_error(&mut self, step: &mut Step<'_>, key: &ResourceKey, reason: Arc<str>) {
        if self.is_dropped_by(step.server) {
            (self.good, self.closed) = (None, None);
        }
        if self.good.is_none() {
            self.tell_absent(key, &reason, step.out);
        }
        self.failure = Some(Failure { reason, version: Arc::from(""), raw: None, at: step.now });
    }

    /// Tells the store that there is none, unless it has heard the same before (rule 18).
    fn tell_absent(&mut self, key: &ResourceKey, reason: &Arc<str>, out: &mut Vec<Change>) {
        if self.parked.is_none() && self.absent.as_ref() != Some(reason) {
            self.absent = Some(Arc::clone(reason));
            out.push(Change::Absent(key.clone(), Arc::clone(reason)));
        }
    }
}
