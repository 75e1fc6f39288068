//! Self-registration: a workload is an endpoint for as long as it asks for its server listener.
//!
//! To give the listener up is to say goodbye, and the endpoint goes at once. A stream that breaks says
//! nothing about the workload: its endpoint stays for a grace period, in which the same workload usually
//! comes back (a restart of mesh-control, a network blip, the end of a stream by age).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

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
        let ip = match bound.ip().to_canonical() {
            ip if ip.is_unspecified() => client.instance_ips.first().copied().unwrap_or(client.peer_ip),
            ip => ip,
        };
        (bound.port() != 0).then(|| Workload {
            client: client.clone(),
            about: about.clone(),
            address: SocketAddr::new(ip, bound.port()),
        })
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
    /// The workload serves; replaces what was known under the same key.
    fn register(&self, workload: Workload);
    /// It no longer does.
    fn unregister(&self, key: &WorkloadKey);
}

/// What the registry has to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Register(Box<Workload>),
    Unregister(WorkloadKey),
}

#[derive(Debug)]
struct Entry {
    workload: Workload,
    streams: BTreeSet<u64>,
    /// When it goes unless a stream comes back.
    expires: Option<Instant>,
}

/// Who is there: the decisions, without clock and registry.
#[derive(Debug, Default)]
struct Roll(BTreeMap<WorkloadKey, Entry>);

impl Roll {
    fn join(&mut self, stream: u64, workload: Workload) -> Vec<Change> {
        let key = workload.key();
        let mut changes = Vec::new();
        match self.0.get_mut(&key) {
            Some(entry) => {
                entry.streams.insert(stream);
                entry.expires = None;
                if entry.workload != workload {
                    entry.workload = workload.clone();
                    changes.push(Change::Register(Box::new(workload)));
                }
            }
            None => {
                changes.push(Change::Register(Box::new(workload.clone())));
                self.0.insert(key.clone(), Entry { workload, streams: [stream].into(), expires: None });
            }
        }
        // A process that was started again at the same address under a new id: the old one is not there
        // any more. Make before break: the new one is registered first.
        let replaced = self
            .0
            .iter()
            .filter(|(other, entry)| other.address == key.address && **other != key && entry.streams.is_empty());
        let replaced: Vec<WorkloadKey> = replaced.map(|(key, _)| key.clone()).collect();
        for key in replaced {
            self.0.remove(&key);
            changes.push(Change::Unregister(key));
        }
        changes
    }

    fn leave(&mut self, stream: u64, key: &WorkloadKey) -> Vec<Change> {
        let Some(entry) = self.0.get_mut(key) else {
            return Vec::new();
        };
        entry.streams.remove(&stream);
        if !entry.streams.is_empty() {
            return Vec::new();
        }
        self.0.remove(key);
        vec![Change::Unregister(key.clone())]
    }

    fn lose(&mut self, stream: u64, expires: Instant) {
        for entry in self.0.values_mut() {
            if entry.streams.remove(&stream) && entry.streams.is_empty() {
                entry.expires = Some(expires);
            }
        }
    }

    fn expire(&mut self, now: Instant) -> Vec<Change> {
        let due = self.0.iter().filter(|(_, entry)| entry.expires.is_some_and(|at| at <= now));
        let due: Vec<WorkloadKey> = due.map(|(key, _)| key.clone()).collect();
        due.iter().for_each(|key| drop(self.0.remove(key)));
        due.into_iter().map(Change::Unregister).collect()
    }

    fn next_expiry(&self) -> Option<Instant> {
        self.0.values().filter_map(|entry| entry.expires).min()
    }
}

/// See the [module](self).
pub(crate) struct Presence {
    roll: Mutex<Roll>,
    workloads: Arc<dyn Workloads>,
    grace: Duration,
    lost: Notify,
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
        Presence { roll: Mutex::default(), workloads, grace, lost: Notify::new() }
    }

    /// A stream announces a workload.
    pub(crate) fn join(&self, stream: u64, workload: Workload) {
        let mut roll = self.roll();
        let changes = roll.join(stream, workload);
        self.apply(changes, &roll);
    }

    /// A stream says goodbye for a workload.
    pub(crate) fn leave(&self, stream: u64, key: &WorkloadKey) {
        let mut roll = self.roll();
        let changes = roll.leave(stream, key);
        self.apply(changes, &roll);
    }

    /// A stream ended without a word.
    pub(crate) fn lose(&self, stream: u64, now: Instant) {
        self.roll().lose(stream, now + self.grace);
        self.lost.notify_one();
    }

    /// Takes out the workloads whose grace is over, for ever.
    pub(crate) async fn expire(&self) {
        loop {
            let next = self.roll().next_expiry();
            match next {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => {}
                    () = self.lost.notified() => {}
                },
                None => self.lost.notified().await,
            }
            let mut roll = self.roll();
            let changes = roll.expire(tokio::time::Instant::now().into_std());
            self.apply(changes, &roll);
        }
    }

    /// Everybody who is registered now.
    pub(crate) fn registered(&self) -> Vec<Registered> {
        let roll = self.roll();
        let entries = roll.0.values();
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
                    tracing::info!(node = &*workload.client.node_id, address = %workload.address, "workload registered");
                    self.workloads.register(*workload);
                }
                Change::Unregister(key) => {
                    tracing::info!(node = &*key.node_id, address = %key.address, "workload gone");
                    self.workloads.unregister(&key);
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
        client.instance_ips = vec![[10, 0, 0, 7].into(), [10, 0, 0, 8].into()];
        assert_eq!(address(&client, &format!("{prefix}0.0.0.0:9080")).as_deref(), Some("10.0.0.7:9080"));
    }

    #[test]
    fn goodbye_removes_at_once_and_a_broken_stream_after_the_grace() {
        let now = Instant::now();
        let (mut roll, web) = (Roll::default(), workload("web", 80));
        assert_eq!(roll.join(1, web.clone()), [register(&web)]);
        assert_eq!(roll.leave(1, &web.key()), [Change::Unregister(web.key())]);

        roll.join(2, web.clone());
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
        roll.join(1, web.clone());
        roll.lose(1, now);
        assert!(roll.join(2, web).is_empty());
        assert!(roll.expire(now).is_empty());
    }

    #[test]
    fn a_workload_is_there_while_any_of_its_streams_is() {
        let now = Instant::now();
        let (mut roll, web) = (Roll::default(), workload("web", 80));
        roll.join(1, web.clone());
        roll.join(2, web.clone());
        roll.lose(1, now);
        assert!(roll.expire(now).is_empty());
        assert!(roll.leave(1, &web.key()).is_empty(), "the other stream still asks");
        assert_eq!(roll.leave(2, &web.key()).len(), 1);
    }

    #[test]
    fn a_new_process_at_the_same_address_takes_the_place_of_a_lost_one() {
        let now = Instant::now();
        let (mut roll, old, new) = (Roll::default(), workload("web-1", 80), workload("web-2", 80));
        roll.join(1, old.clone());
        roll.lose(1, now);
        let changes = roll.join(2, new.clone());
        assert_eq!(changes, [register(&new), Change::Unregister(old.key())]);
    }

    #[test]
    fn a_workload_that_comes_back_with_other_labels_is_registered_anew() {
        let (mut roll, web) = (Roll::default(), workload("web", 80));
        roll.join(1, web.clone());
        let mut other = web;
        other.client.labels = Arc::new([("version".to_owned(), "v2".to_owned())].into());
        assert_eq!(roll.join(2, other.clone()), [register(&other)]);
    }
}
