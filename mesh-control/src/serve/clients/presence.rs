//! Self-registration: a workload is an endpoint for as long as it asks for its server listener, or, where its sidecar takes
//! its connections, for as long as that has its stream.
//!
//! To give the listener up is to say goodbye, and the endpoint goes at once. A stream that breaks says
//! nothing about the workload: its endpoint stays for a grace period, in which the same workload usually
//! comes back (a restart of mesh-control, a network blip, the end of a stream by age).
//!
//! A registration belongs to the identity that made it. Nobody else takes its place, neither by its node id nor by its
//! address, while it is there; one that nobody has proven to be theirs gives way to one that somebody has. Of two that
//! nobody has proven to be theirs, the one whose stream is there stays as it is. Of two that are as well proven, the one whose
//! stream comes from the address itself has it: anybody can write an address down. A registration that the configuration no
//! longer allows ends, and its streams with it. Whenever one ends, whoever had its address before and is still there is registered
//! again, and those are told who were refused it ([`Presence::freed`]).
//!
//! How a workload is, says who asks it by the probe of its WorkloadGroup: the same client, on a stream of its own. It changes no more
//! often than once in a while, since everybody is told; and whoever is not heard of any more is not known to be well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use mesh_core::identity::SpiffeId;

use crate::catalog::Client;
use crate::serve::clients::node::About;
use crate::serve::protocol::session::SERVER_LISTENER_PREFIX;

/// A process that serves at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Workload {
    /// What its node says.
    pub client: Client,
    /// What else it says.
    pub about: About,
    /// Where it can be reached: the address it is bound to, or one of its own where that is unspecified.
    pub address: SocketAddr,
}

impl Workload {
    /// The workload that a client announces by asking for a server listener, if the name is one.
    pub fn announced(client: &Client, about: &About, listener: &str) -> Option<Workload> {
        let bound: SocketAddr = listener.strip_prefix(SERVER_LISTENER_PREFIX)?.parse().ok()?;
        if client.is_gateway {
            // It announces itself by taking its listeners: an endpoint at an address of its choice is held to no Gateway.
            return None;
        }
        let ip = match bound.ip().to_canonical() {
            ip if ip.is_unspecified() => client.instance_ips.first().copied().unwrap_or(client.peer_ip),
            ip => ip,
        };
        (bound.port() != 0).then(|| Workload::at(client, about, SocketAddr::new(ip, bound.port())))
    }

    /// The workload of a client that serves at this address.
    pub(crate) fn at(client: &Client, about: &About, address: SocketAddr) -> Workload {
        Workload { client: client.clone(), about: about.clone(), address }
    }

    /// What tells it from every other.
    pub fn key(&self) -> WorkloadKey {
        WorkloadKey { node_id: self.client.node_id.clone(), address: self.address }
    }
}

/// What tells one workload from every other: who it says it is, and where it serves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct WorkloadKey {
    /// `node.id`
    pub node_id: Arc<str>,
    /// Where it can be reached.
    pub address: SocketAddr,
}

impl std::fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.node_id, self.address)
    }
}

/// The registry, as far as self-registration needs it. It is called one call at a time, in the order of
/// events, and must not call back.
pub trait Workloads: Send + Sync + 'static {
    /// Why a workload may not register, if it may not.
    fn objection(&self, _workload: &Workload) -> Option<String> {
        None
    }

    /// The workload serves; replaces what was known under the same key.
    fn register(&self, workload: Workload);
    /// It no longer does.
    fn unregister(&self, key: &WorkloadKey);

    /// By the probe of its group it is well, or it is not.
    fn report(&self, _key: &WorkloadKey, _is_well: bool) {}

    /// Ends once the catalog has whoever is registered now: changes may be gathered for a moment.
    fn known(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}

/// What the registry has to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Register(Box<Workload>),
    Unregister(WorkloadKey),
    Report(WorkloadKey, bool),
}

#[derive(Debug)]
struct Entry {
    workload: Workload,
    streams: BTreeSet<u64>,
    /// When it goes unless a stream comes back.
    expires: Option<Instant>,
    /// How it is by its reports, if there was one.
    reported: Option<Report>,
}

/// How a workload is by its reports.
#[derive(Debug)]
struct Report {
    /// As the registry was told.
    is_well: bool,
    /// When it was told so.
    since: Instant,
    /// As it was said to be since, where that was another way: the last one counts.
    next: Option<bool>,
    /// When it is no more known to be well, unless that is said again.
    expires: Instant,
}

/// A workload does not become well and unwell more often.
const BETWEEN: Duration = Duration::from_secs(1);

impl Report {
    fn hear(&mut self, is_well: bool, expires: Instant) {
        self.expires = expires;
        if self.next.is_some() || self.is_well != is_well {
            self.next = Some(is_well);
        }
    }

    /// What the registry is to be told now.
    fn turn(&mut self, now: Instant) -> Option<bool> {
        let wanted = now < self.expires && self.next.unwrap_or(self.is_well);
        if now < self.since + BETWEEN {
            if self.next.is_some() || wanted != self.is_well {
                self.next = Some(wanted);
            }
            return None;
        }
        self.next = None;
        if wanted == self.is_well {
            return None;
        }
        (self.is_well, self.since) = (wanted, now);
        Some(wanted)
    }

    /// When there is something to tell though nothing is said.
    fn wakes_at(&self) -> Option<Instant> {
        let turns = self.next.map(|_| self.since + BETWEEN);
        let ends = self.next.unwrap_or(self.is_well).then_some(self.expires);
        turns.into_iter().chain(ends).min()
    }
}

/// Who is there: the decisions, without clock and registry.
#[derive(Debug, Default)]
struct Roll {
    entries: BTreeMap<WorkloadKey, Entry>,
    /// Workloads that were registered by these streams before somebody else came to have their address. They are registered
    /// again once it is free.
    waiting: Vec<(u64, Workload)>,
}

/// Somebody else holds the registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    address: SocketAddr,
    holder: Arc<str>,
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Taken { address, holder } = self;
        write!(
            f,
            "{address} is registered by {holder:?}, which this stream has not proven to be; a stream proves by its certificate \
             who it is, and otherwise registers what nobody is connected for"
        )
    }
}

/// Whether a registration gives way to another workload, or is its own. Who has proven nothing changes nothing that a stream
/// is there for: a client that comes back before its old stream is known to be broken says what it said before.
fn gives_way(holder: &Entry, claimant: &Workload) -> bool {
    match (&holder.workload.client.identity, &claimant.client.identity) {
        _ if is_outdone(&holder.workload, claimant) => true,
        (None, None) => holder.streams.is_empty() || holder.workload == *claimant,
        (holder, claimant) => holder == claimant,
    }
}

/// Whether a workload's stream comes from the address at which it says it serves: one of this machine is everybody's here.
fn is_at_home(workload: &Workload) -> bool {
    let own = workload.client.peer_ip;
    own == workload.address.ip() && !own.is_loopback()
}

/// Whether a client is the one that registered a workload: by what it has proven, its node and where it comes from. Nodes that share a
/// file share their id.
fn is_of(reporter: &Client, holder: &Client) -> bool {
    reporter.node_id == holder.node_id
        && reporter.peer_ip == holder.peer_ip
        && reporter.identity == holder.identity
        && reporter.group == holder.group
}

/// The first key that a workload of this node can have.
fn first_of(node_id: &Arc<str>) -> WorkloadKey {
    WorkloadKey { node_id: node_id.clone(), address: SocketAddr::from(([0, 0, 0, 0], 0)) }
}

/// Whether a registration's streams count no more against another workload at its address: the claimant is better proven; or as well
/// proven, and its stream alone comes from the address.
fn is_outdone(holder: &Workload, claimant: &Workload) -> bool {
    let is_proven = |workload: &Workload| workload.client.identity.is_some();
    match (is_proven(holder), is_proven(claimant)) {
        (false, true) => true,
        (true, false) => false,
        _ => is_at_home(claimant) && !is_at_home(holder),
    }
}

impl Roll {
    fn join(&mut self, stream: u64, workload: Workload) -> Result<Vec<Change>, Taken> {
        let key = workload.key();
        let mut others = self.entries.values().filter(|entry| entry.workload.address == key.address);
        if let Some(held) = others.find(|held| !gives_way(held, &workload)) {
            return Err(Taken { address: key.address, holder: held.workload.client.node_id.clone() });
        }
        let mut changes = Vec::new();
        self.stop_waiting(stream, &key);
        match self.entries.get_mut(&key) {
            Some(entry) => {
                if is_outdone(&entry.workload, &workload) {
                    let displaced = std::mem::take(&mut entry.streams).into_iter();
                    self.waiting.extend(displaced.map(|stream| (stream, entry.workload.clone())));
                }
                entry.streams.insert(stream);
                entry.expires = None;
                if entry.workload != workload {
                    entry.workload = workload.clone();
                    // What was reported may be of the probe of another group.
                    entry.reported = None;
                    changes.push(Change::Register(Box::new(workload.clone())));
                }
            }
            None => {
                changes.push(Change::Register(Box::new(workload.clone())));
                let entry =
                    Entry { workload: workload.clone(), streams: [stream].into(), expires: None, reported: None };
                self.entries.insert(key.clone(), entry);
            }
        }
        // A process that was started again at the same address under a new id: the old one is not there
        // any more. Make before break: the new one is registered first.
        let replaced = self.entries.iter().filter(|(other, entry)| {
            let is_lost = entry.streams.is_empty() || is_outdone(&entry.workload, &workload);
            other.address == key.address && **other != key && is_lost
        });
        let replaced: Vec<WorkloadKey> = replaced.map(|(key, _)| key.clone()).collect();
        for key in replaced {
            if let Some(Entry { workload, streams, .. }) = self.entries.remove(&key) {
                self.waiting.extend(streams.into_iter().map(|stream| (stream, workload.clone())));
            }
            changes.push(Change::Unregister(key));
        }
        Ok(changes)
    }

    /// A registration at this address has ended: registers again who had it before and is still there.
    fn readmit(&mut self, address: SocketAddr) -> Vec<Change> {
        let waiting: Vec<_> = self.waiting.extract_if(.., |(_, workload)| workload.address == address).collect();
        let mut changes = Vec::new();
        for (stream, workload) in waiting {
            match self.join(stream, workload.clone()) {
                Ok(more) => changes.extend(more),
                Err(_) => self.waiting.push((stream, workload)),
            }
        }
        changes
    }

    fn stop_waiting(&mut self, stream: u64, key: &WorkloadKey) {
        self.waiting.retain(|(other, workload)| *other != stream || workload.key() != *key);
    }

    /// Takes out those who wait for their address and that there is an objection to: the streams that are to be told, and why.
    fn turn_away(&mut self, objection: impl Fn(&Workload) -> Option<String>) -> Vec<(u64, String)> {
        let mut told = Vec::new();
        self.waiting.retain(|(stream, workload)| {
            let why = objection(workload);
            let is_welcome = why.is_none();
            told.extend(why.map(|why| (*stream, why)));
            is_welcome
        });
        told
    }

    fn leave(&mut self, stream: u64, key: &WorkloadKey) -> Vec<Change> {
        self.stop_waiting(stream, key);
        let Some(entry) = self.entries.get_mut(key) else {
            return Vec::new();
        };
        // It may be somebody else's by now.
        if !entry.streams.remove(&stream) || !entry.streams.is_empty() {
            return Vec::new();
        }
        self.entries.remove(key);
        let mut changes = vec![Change::Unregister(key.clone())];
        changes.extend(self.readmit(key.address));
        changes
    }

    fn lose(&mut self, stream: u64, expires: Instant) {
        self.waiting.retain(|(other, _)| *other != stream);
        for entry in self.entries.values_mut() {
            if entry.streams.remove(&stream) && entry.streams.is_empty() {
                entry.expires = Some(expires);
            }
        }
    }

    /// A client says how its workload is, which counts until then. Also whether something is to be told later that was not before.
    fn report(&mut self, reporter: &Client, is_well: bool, expires: Instant, now: Instant) -> (Vec<Change>, bool) {
        let (mut changes, mut is_sooner) = (Vec::new(), false);
        let of_node = self.entries.range_mut(first_of(&reporter.node_id)..);
        let of_node = of_node.take_while(|(key, _)| key.node_id == reporter.node_id);
        for (key, entry) in of_node.filter(|(_, entry)| is_of(reporter, &entry.workload.client)) {
            let news = match &mut entry.reported {
                Some(report) => {
                    let has_waited = report.next.is_some();
                    let was_well = report.is_well;
                    report.hear(is_well, expires);
                    let news = report.turn(now);
                    is_sooner |= (report.next.is_some() && !has_waited) || (report.is_well && !was_well);
                    news
                }
                None => {
                    entry.reported = Some(Report { is_well, since: now, next: None, expires });
                    is_sooner = true;
                    Some(is_well)
                }
            };
            changes.extend(news.map(|is_well| Change::Report(key.clone(), is_well)));
        }
        (changes, is_sooner)
    }

    /// Takes out those that there is an objection to: why, and the streams that are to be told.
    fn evict(&mut self, objection: impl Fn(&Workload) -> Option<String>) -> Vec<(WorkloadKey, String, BTreeSet<u64>)> {
        let due = self.entries.iter().filter_map(|(key, entry)| Some((key.clone(), objection(&entry.workload)?)));
        let due: Vec<(WorkloadKey, String)> = due.collect();
        let evicted = due.into_iter().filter_map(|(key, why)| {
            let streams = self.entries.remove(&key)?.streams;
            Some((key, why, streams))
        });
        evicted.collect()
    }

    fn expire(&mut self, now: Instant) -> Vec<Change> {
        let due = self.entries.iter().filter(|(_, entry)| entry.expires.is_some_and(|at| at <= now));
        let due: Vec<WorkloadKey> = due.map(|(key, _)| key.clone()).collect();
        due.iter().for_each(|key| drop(self.entries.remove(key)));
        let mut changes: Vec<Change> = due.iter().cloned().map(Change::Unregister).collect();
        changes.extend(due.iter().flat_map(|key| self.readmit(key.address)));
        for (key, entry) in &mut self.entries {
            let news = entry.reported.as_mut().and_then(|report| report.turn(now));
            changes.extend(news.map(|is_well| Change::Report(key.clone(), is_well)));
        }
        changes
    }

    fn next_expiry(&self) -> Option<Instant> {
        let of = |entry: &Entry| [entry.expires, entry.reported.as_ref().and_then(Report::wakes_at)];
        self.entries.values().flat_map(of).flatten().min()
    }
}

/// See the [module](self).
pub(crate) struct Presence {
    roll: Mutex<Roll>,
    workloads: Arc<dyn Workloads>,
    grace: Duration,
    wake: Notify,
    freed: watch::Sender<()>,
}

/// One registered workload, for status.
#[derive(Clone, Debug)]
pub(crate) struct Registered {
    pub(crate) workload: Workload,
    pub(crate) connected: bool,
    pub(crate) expires: Option<Instant>,
}

impl Presence {
    pub(crate) fn new(workloads: Arc<dyn Workloads>, grace: Duration) -> Presence {
        Presence { roll: Mutex::default(), workloads, grace, wake: Notify::new(), freed: watch::Sender::new(()) }
    }

    /// Ends once the catalog has whoever is registered now.
    pub(crate) async fn known(&self) {
        self.workloads.known().await;
    }

    /// Tells whenever a registration ends: who was refused its address may try again.
    pub(crate) fn freed(&self) -> watch::Receiver<()> {
        self.freed.subscribe()
    }

    /// A stream announces a workload.
    ///
    /// # Errors
    /// Why it is not registered.
    pub(crate) fn join(&self, stream: u64, workload: Workload) -> Result<(), String> {
        // Under the lock: a configuration that comes meanwhile is looked at again by `reconsider`.
        let mut roll = self.roll();
        if let Some(objection) = self.workloads.objection(&workload) {
            return Err(objection);
        }
        let changes = roll.join(stream, workload).map_err(|taken| taken.to_string())?;
        self.apply(changes, &roll);
        Ok(())
    }

    /// A stream says goodbye for a workload.
    pub(crate) fn leave(&self, stream: u64, key: &WorkloadKey) {
        let mut roll = self.roll();
        let changes = roll.leave(stream, key);
        self.apply(changes, &roll);
    }

    /// Whether a workload is registered by this stream: another one at its address may have come before it since.
    pub(crate) fn holds(&self, stream: u64, key: &WorkloadKey) -> bool {
        self.roll().entries.get(key).is_some_and(|entry| entry.streams.contains(&stream))
    }

    /// Whether a workload of this client is registered.
    pub(crate) fn knows(&self, client: &Client) -> bool {
        let roll = self.roll();
        let of_node =
            roll.entries.range(first_of(&client.node_id)..).take_while(|(key, _)| key.node_id == client.node_id);
        of_node.map(|(_, entry)| entry).any(|entry| is_of(client, &entry.workload.client))
    }

    /// A client says how its workload is, which counts for that long.
    pub(crate) fn report(&self, client: &Client, is_well: bool, good_for: Duration, now: Instant) {
        let mut roll = self.roll();
        let (changes, is_sooner) = roll.report(client, is_well, now + good_for, now);
        self.apply(changes, &roll);
        if is_sooner {
            self.wake.notify_one();
        }
    }

    /// The configuration is another one: ends the registrations that it does not allow. Returns each stream that is to be told,
    /// and why.
    pub(crate) fn reconsider(&self) -> Vec<(u64, String)> {
        let mut roll = self.roll();
        let mut told = roll.turn_away(|workload| self.workloads.objection(workload));
        let evicted = roll.evict(|workload| self.workloads.objection(workload));
        for (key, why, streams) in evicted {
            tracing::warn!(node = &*key.node_id, address = %key.address, "a registration ends: {why}");
            told.extend(streams.into_iter().map(|stream| (stream, why.clone())));
            let mut changes = vec![Change::Unregister(key.clone())];
            changes.extend(roll.readmit(key.address));
            self.apply(changes, &roll);
        }
        told
    }

    /// A stream ended without a word.
    pub(crate) fn lose(&self, stream: u64, now: Instant) {
        self.roll().lose(stream, now + self.grace);
        self.wake.notify_one();
    }

    /// Takes out the workloads whose grace is over, and tells of those that are no more known to be well, for ever.
    pub(crate) async fn expire(&self) {
        loop {
            let next = self.roll().next_expiry();
            match next {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => {}
                    () = self.wake.notified() => {}
                },
                None => self.wake.notified().await,
            }
            let mut roll = self.roll();
            let changes = roll.expire(tokio::time::Instant::now().into_std());
            self.apply(changes, &roll);
        }
    }

    /// Everybody who is registered now.
    pub(crate) fn registered(&self) -> Vec<Registered> {
        let roll = self.roll();
        let entries = roll.entries.values();
        entries
            .map(|entry| Registered {
                workload: entry.workload.clone(),
                connected: !entry.streams.is_empty(),
                expires: entry.expires,
            })
            .collect()
    }

    // Under the lock of the roll: the registry must hear of changes in the order in which they were
    // decided. It never calls back.
    fn apply(&self, changes: Vec<Change>, _roll: &MutexGuard<'_, Roll>) {
        for change in changes {
            match change {
                Change::Register(workload) => {
                    let Client { node_id, identity, .. } = &workload.client;
                    let identity = identity.as_ref().map_or("", SpiffeId::as_str);
                    tracing::info!(node = &**node_id, identity, address = %workload.address, "workload registered");
                    if workload.client.identity.is_none() && workload.client.shows_certificate() {
                        tracing::warn!(
                            node = &**node_id,
                            "it says by its label that it has a certificate of the mesh, and none was seen: its stream came \
                             without one, and so it is nobody's identity"
                        );
                    }
                    self.workloads.register(*workload);
                }
                Change::Unregister(key) => {
                    tracing::info!(node = &*key.node_id, address = %key.address, "workload gone");
                    self.workloads.unregister(&key);
                    self.freed.send_replace(());
                }
                Change::Report(key, is_well) => {
                    tracing::info!(node = &*key.node_id, address = %key.address, is_well, "workload asked how it is");
                    self.workloads.report(&key, is_well);
                }
            }
        }
    }

    fn roll(&self) -> MutexGuard<'_, Roll> {
        self.roll.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::ClientClass;
    use crate::serve::protocol::tests::fixture::client;

    fn workload(id: &str, port: u16) -> Workload {
        let client = Client { node_id: id.into(), ..client(ClientClass::Library) };
        Workload { client, about: About::default(), address: SocketAddr::from(([10, 0, 0, 1], port)) }
    }

    fn register(workload: &Workload) -> Change {
        Change::Register(Box::new(workload.clone()))
    }

    #[test]
    fn an_announcement_is_read_from_the_name_of_the_listener() {
        let mut client = client(ClientClass::Grpc);
        let address = |client: &Client, name: &str| {
            Workload::announced(client, &About::default(), name).map(|w| w.address.to_string())
        };
        let prefix = "xds.istio.io/grpc/lds/inbound/";
        for (name, expected) in [
            ("10.1.2.3:9080", Some("10.1.2.3:9080")),
            ("0.0.0.0:9080", Some("127.0.0.1:9080")),
            ("[::]:9080", Some("127.0.0.1:9080")),
            ("[::1]:9080", Some("[::1]:9080")),
            ("[::ffff:10.0.0.9]:80", Some("10.0.0.9:80")),
            ("10.1.2.3:0", None),
            ("10.1.2.3", None),
            ("web:9080", None),
        ] {
            assert_eq!(address(&client, &format!("{prefix}{name}")).as_deref(), expected, "{name}");
        }
        assert_eq!(address(&client, "reviews:9080"), None);
        let gateway = client.clone().gateway();
        assert_eq!(address(&gateway, &format!("{prefix}10.1.2.3:9080")), None, "it takes its listeners");
        client.instance_ips = vec![[10, 0, 0, 7].into(), [10, 0, 0, 8].into()];
        assert_eq!(address(&client, &format!("{prefix}0.0.0.0:9080")).as_deref(), Some("10.0.0.7:9080"));
    }

    #[test]
    fn goodbye_removes_at_once_and_a_broken_stream_after_the_grace() {
        let now = Instant::now();
        let (mut roll, web) = (Roll::default(), workload("web", 80));
        assert_eq!(roll.join(1, web.clone()), Ok(vec![register(&web)]));
        assert_eq!(roll.leave(1, &web.key()), [Change::Unregister(web.key())]);

        roll.join(2, web.clone()).expect("free");
        roll.lose(2, now);
        assert_eq!(roll.next_expiry(), Some(now));
        assert!(roll.expire(now - Duration::from_millis(1)).is_empty());
        assert_eq!(roll.expire(now), [Change::Unregister(web.key())]);
        assert_eq!(roll.next_expiry(), None);
    }

    #[test]
    fn a_stream_that_comes_back_in_time_changes_nothing() {
        let now = Instant::now();
        let (mut roll, web) = (Roll::default(), workload("web", 80));
        roll.join(1, web.clone()).expect("free");
        roll.lose(1, now);
        assert_eq!(roll.join(2, web), Ok(Vec::new()));
        assert!(roll.expire(now).is_empty());
    }

    #[test]
    fn a_workload_is_there_while_any_of_its_streams_is() {
        let now = Instant::now();
        let (mut roll, web) = (Roll::default(), workload("web", 80));
        roll.join(1, web.clone()).expect("free");
        roll.join(2, web.clone()).expect("the same");
        roll.lose(1, now);
        assert!(roll.expire(now).is_empty());
        assert!(roll.leave(1, &web.key()).is_empty(), "the other stream still asks");
        assert_eq!(roll.leave(2, &web.key()).len(), 1);
    }

    #[test]
    fn a_new_process_at_the_same_address_takes_the_place_of_a_lost_one() {
        let now = Instant::now();
        let (mut roll, old, new) = (Roll::default(), workload("web-1", 80), workload("web-2", 80));
        roll.join(1, old.clone()).expect("free");
        roll.lose(1, now);
        let changes = roll.join(2, new.clone());
        assert_eq!(changes, Ok(vec![register(&new), Change::Unregister(old.key())]));
    }

    fn of(workload: &Workload, account: &str) -> Workload {
        let mut own = workload.clone();
        own.client.identity = Some(format!("spiffe://td/ns/shop/sa/{account}").parse().expect("an ID"));
        own
    }

    #[test]
    fn x10_a_registration_is_not_taken_over_by_another_identity_nor_by_nobody() {
        let now = Instant::now();
        let (mut roll, web, other) = (Roll::default(), workload("web", 80), workload("other", 80));
        let ours = of(&web, "web");
        roll.join(1, ours.clone()).expect("free");
        for lost in [false, true] {
            if lost {
                roll.lose(1, now);
            }
            for claimant in [&web, &other, &of(&web, "evil"), &of(&other, "evil")] {
                let refused = roll.join(2, claimant.clone()).expect_err("it is somebody else's");
                assert!(refused.to_string().contains("10.0.0.1:80"), "{refused}");
            }
        }
        assert_eq!(roll.join(3, ours.clone()), Ok(Vec::new()), "it is theirs");
        // A stream that never held it cannot give it up.
        assert!(roll.leave(2, &web.key()).is_empty());
        assert_eq!(roll.leave(3, &web.key()), [Change::Unregister(web.key())]);
        roll.join(2, of(&web, "evil")).expect("it is free now");
    }

    #[test]
    fn x10_who_proves_who_they_are_takes_the_place_of_who_does_not() {
        let (mut roll, web, other) = (Roll::default(), workload("web", 80), workload("other", 80));
        roll.join(1, other.clone()).expect("free");
        let ours = of(&web, "web");
        assert_eq!(roll.join(3, ours.clone()), Ok(vec![register(&ours), Change::Unregister(other.key())]));
        assert!(roll.leave(1, &other.key()).is_empty());
        assert_eq!(roll.leave(3, &ours.key()).len(), 1);
    }

    fn from(workload: &Workload, ip: [u8; 4]) -> Workload {
        let mut own = workload.clone();
        own.client.peer_ip = ip.into();
        own
    }

    #[test]
    fn x10_who_writes_down_the_address_of_another_gives_way_to_who_connects_from_it() {
        let (web, evil) = (workload("web", 80), workload("evil", 80));
        for (there, elsewhere) in [(of(&web, "web"), of(&evil, "evil")), (web.clone(), evil.clone())] {
            let (there, elsewhere) = (from(&there, [10, 0, 0, 1]), from(&elsewhere, [10, 0, 0, 9]));
            let mut roll = Roll::default();
            roll.join(1, elsewhere.clone()).expect("free");
            let changes = vec![register(&there), Change::Unregister(elsewhere.key())];
            assert_eq!(roll.join(2, there.clone()), Ok(changes));
            assert!(roll.join(1, elsewhere).is_err(), "it does not come back");
        }
        // A certificate is more than an address, and this machine's own is everybody's here.
        let mut roll = Roll::default();
        roll.join(1, from(&of(&evil, "evil"), [10, 0, 0, 9])).expect("free");
        assert!(roll.join(2, from(&web, [10, 0, 0, 1])).is_err());
        let local = |workload: &Workload| Workload { address: ([127, 0, 0, 1], 80).into(), ..workload.clone() };
        let mut roll = Roll::default();
        roll.join(1, from(&local(&of(&evil, "evil")), [10, 0, 0, 9])).expect("free");
        assert!(roll.join(2, local(&of(&web, "web"))).is_err());
    }

    #[test]
    fn x10_who_has_lost_an_address_to_another_is_registered_again_when_that_one_is_gone() {
        let now = Instant::now();
        let (mut roll, web, evil) = (Roll::default(), workload("web", 80), of(&workload("evil", 80), "evil"));
        let came = || vec![register(&evil), Change::Unregister(web.key())];
        let is_back = || vec![Change::Unregister(evil.key()), register(&web)];
        roll.join(1, web.clone()).expect("free");
        // It says goodbye, it is lost for good, or the configuration does not want it any more.
        assert_eq!(roll.join(2, evil.clone()), Ok(came()));
        assert_eq!(roll.leave(2, &evil.key()), is_back());
        assert_eq!(roll.join(3, evil.clone()), Ok(came()));
        roll.lose(3, now);
        assert_eq!(roll.expire(now), is_back());
        roll.join(4, evil.clone()).expect("it is better proven");
        assert_eq!(roll.evict(|workload| (*workload == evil).then(|| "no".to_owned())).len(), 1);
        assert_eq!(roll.readmit(web.address), [register(&web)]);
        // Whoever is not there any more, or does not serve there, is not waited for.
        for is_lost in [false, true] {
            roll.join(5, evil.clone()).expect("it is better proven");
            if is_lost {
                roll.lose(1, now);
            } else {
                assert!(roll.leave(1, &web.key()).is_empty());
            }
            assert_eq!(roll.leave(5, &evil.key()), [Change::Unregister(evil.key())]);
            roll.join(1, web.clone()).expect("free");
        }
        // Nor whom the configuration does not want.
        roll.join(6, evil.clone()).expect("it is better proven");
        assert_eq!(roll.turn_away(|_| Some("no".to_owned())), [(1, "no".to_owned())]);
        assert_eq!(roll.leave(6, &evil.key()), [Change::Unregister(evil.key())]);
    }

    #[test]
    fn x10_a_node_id_that_somebody_else_had_for_a_while_is_its_own_again() {
        let (mut roll, web) = (Roll::default(), workload("web", 80));
        let evil = of(&web, "evil");
        roll.join(1, web.clone()).expect("free");
        assert_eq!(roll.join(2, evil.clone()), Ok(vec![register(&evil)]));
        assert_eq!(roll.leave(2, &evil.key()), [Change::Unregister(evil.key()), register(&web)]);
        assert_eq!(roll.leave(1, &web.key()).len(), 1, "it is registered by its own stream");
    }

    fn relabelled(workload: &Workload) -> Workload {
        let mut other = workload.clone();
        other.client.labels = Arc::new([("version".to_owned(), "v2".to_owned())].into());
        other
    }

    #[test]
    fn x10_who_proves_nothing_changes_no_registration_that_a_stream_is_there_for() {
        let (mut roll, web, now) = (Roll::default(), workload("web", 80), Instant::now());
        roll.join(1, web.clone()).expect("free");
        // By the same node id, or by another one at the same address.
        for claimant in [relabelled(&web), workload("other", 80)] {
            let refused = roll.join(2, claimant).expect_err("somebody is there");
            assert!(refused.to_string().contains("10.0.0.1:80"), "{refused}");
        }
        assert_eq!(roll.join(3, web.clone()), Ok(Vec::new()), "the same, which comes back before its end is known");
        roll.lose(1, now);
        assert!(roll.join(2, relabelled(&web)).is_err(), "one of its streams is there");
        roll.lose(3, now);
        let other = relabelled(&web);
        assert_eq!(roll.join(4, other.clone()), Ok(vec![register(&other)]), "nobody is there any more");
    }

    #[test]
    fn an_identity_changes_what_it_has_registered() {
        let (mut roll, web) = (Roll::default(), of(&workload("web", 80), "web"));
        roll.join(1, web.clone()).expect("free");
        let other = relabelled(&web);
        assert_eq!(roll.join(2, other.clone()), Ok(vec![register(&other)]));
    }

    #[test]
    fn what_there_is_an_objection_to_goes_and_its_streams_are_told_why() {
        let (mut roll, web, other) = (Roll::default(), workload("web", 80), workload("other", 81));
        roll.join(1, web.clone()).expect("free");
        roll.join(2, web.clone()).expect("the same");
        roll.join(1, other.clone()).expect("free");
        let evicted = roll.evict(|workload| (workload.address.port() == 80).then(|| "no".to_owned()));
        assert_eq!(evicted, [(web.key(), "no".to_owned(), BTreeSet::from([1, 2]))]);
        assert_eq!(roll.leave(1, &other.key()).len(), 1, "the other one is there");
    }

    #[test]
    fn who_registered_a_workload_says_how_it_is_and_nobody_else() {
        let now = Instant::now();
        let (mut roll, web) = (Roll::default(), of(&workload("web", 80), "web"));
        roll.join(1, web.clone()).expect("free");
        let client = &web.client;
        let elsewhere = Client { peer_ip: [192, 0, 2, 9].into(), ..client.clone() };
        let others =
            [workload("web", 80).client, of(&workload("other", 80), "web").client, of(&web, "evil").client, elsewhere];
        let at = |turns: u32| now + BETWEEN * turns;
        let says = |roll: &mut Roll, client: &Client, is_well, now| roll.report(client, is_well, at(100), now).0;
        for other in others {
            assert!(says(&mut roll, &other, false, now).is_empty(), "{other:?}");
        }
        let report = |is_well| vec![Change::Report(web.key(), is_well)];
        assert_eq!(says(&mut roll, client, true, now), report(true));
        assert!(says(&mut roll, client, true, now).is_empty(), "it is known");
        assert_eq!(says(&mut roll, client, false, at(1)), report(false));
        // It outlives a stream that breaks, and no other registration.
        roll.lose(1, now);
        assert_eq!(roll.join(2, web.clone()), Ok(Vec::new()));
        assert!(says(&mut roll, client, false, at(2)).is_empty(), "it is known");
        roll.leave(2, &web.key());
        roll.join(3, web.clone()).expect("free");
        assert_eq!(says(&mut roll, client, false, at(2)), report(false));
    }

    #[test]
    fn of_a_burst_of_reports_the_last_one_counts_once() {
        let now = Instant::now();
        let (mut roll, web) = (Roll::default(), workload("web", 80));
        roll.join(1, web.clone()).expect("free");
        let expires = now + BETWEEN * 100;
        let report = |is_well| vec![Change::Report(web.key(), is_well)];
        assert_eq!(roll.report(&web.client, true, expires, now), (report(true), true));
        assert_eq!(roll.next_expiry(), Some(expires));
        for is_first_well in [false, true] {
            let mut wakes = 0;
            for index in 0..4000 {
                let (changes, is_sooner) = roll.report(&web.client, (index % 2 == 0) == is_first_well, expires, now);
                assert!(changes.is_empty());
                wakes += u32::from(is_sooner);
            }
            assert!(wakes <= 1, "{wakes}");
        }
        roll.report(&web.client, false, expires, now);
        assert_eq!(roll.next_expiry(), Some(now + BETWEEN));
        assert!(roll.expire(now).is_empty());
        assert_eq!(roll.expire(now + BETWEEN), report(false));
        assert_eq!(roll.next_expiry(), None);
    }

    #[test]
    fn who_is_not_heard_of_any_more_is_not_known_to_be_well() {
        let now = Instant::now();
        let (mut roll, web) = (Roll::default(), workload("web", 80));
        roll.join(1, web.clone()).expect("free");
        let at = |turns: u32| now + BETWEEN * turns;
        roll.report(&web.client, true, at(30), now);
        roll.report(&web.client, true, at(40), at(10));
        assert!(roll.expire(at(30)).is_empty(), "it was said again");
        assert_eq!(roll.expire(at(40)), [Change::Report(web.key(), false)]);
        assert_eq!(roll.next_expiry(), None);
        let again = roll.report(&web.client, true, at(80), at(50));
        assert_eq!(again, (vec![Change::Report(web.key(), true)], true));
        assert_eq!(roll.next_expiry(), Some(at(80)));
    }
}
