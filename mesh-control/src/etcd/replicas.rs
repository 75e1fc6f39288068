//! Replicas on one etcd: a workload that registers at one of them is an endpoint to the clients of all.
//!
//! Each replica writes those that are registered with itself below a key of its own, with a lease, and registers those of the others.
//! Where a replica goes down, its workloads come back to others within seconds, and what it wrote ends with the lease: later, so that
//! nobody is given fewer endpoints meanwhile. What cannot be told or heard for a while stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use super::follow::{Pace, Store};
use super::keys::Prefix;
use super::known::Subject;
use super::link::{Client, Failure};
use super::proto::{DeleteRangeRequest, Op, PutRequest, RequestOp, TxnRequest};
use crate::config::source::ConfigStore;
use crate::config::store::Update;
use crate::plane::Plane;
use crate::registry::told::{Told, elsewhere, is_own};

/// For how long workloads of a replica that is gone are known: longer than they need to come back to another one.
const TTL: i64 = 30;
/// How often the lease is made to last.
const KEEP: Duration = Duration::from_secs(10);
/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(20);
/// How many workloads are told of at a time: etcd takes 128 operations in a transaction.
const CHUNK: usize = 100;
/// What one workload may say of itself, in bytes. One that says more is known to its own replica alone, and so that many of them
/// fit into what etcd takes at a time (1.5 MiB).
const LONGEST: usize = 10 << 10;
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(1));
/// Tells other replicas of the workloads of this one, and hears of theirs, for as long as it is there.
pub(crate) struct Replicas {
    _tasks: JoinSet<()>,
}

impl Replicas {
    /// Begins, once it is known which workloads the others have.
    pub(crate) async fn start(client: Client, prefix: Prefix, plane: Plane) -> Replicas {
        Replicas::start_at(client, prefix, plane, Pace::default()).await
    }

    /// The same, at this pace.
    pub(super) async fn start_at(client: Client, prefix: Prefix, plane: Plane, pace: Pace) -> Replicas {
        let replica = format!("{:016x}", fastrand::u64(..));
        let subject = Subject {
            root: prefix.workloads(),
            read: |path, value| (path.into(), String::from_utf8_lossy(value).into()),
        };
        let mut store = Store::of(client.clone(), prefix.clone(), subject, pace);
        if let Some(update) = store.next().await {
            hear(&plane, &replica, update);
            plane.published().await;
        }
        let mut tasks = JoinSet::new();
        let teller = Teller {
            client,
            root: [prefix.workloads(), format!("{replica}/").into_bytes()].concat(),
            plane: plane.clone(),
        };
        tasks.spawn(teller.run());
        tasks.spawn(async move {
            while let Some(update) = store.next().await {
                hear(&plane, &replica, update);
            }
        });
        Replicas { _tasks: tasks }
    }
}

/// Takes in what became of the workloads of others.
fn hear(plane: &Plane, replica: &str, update: Update) {
    let Update::Resources { changed, .. } = update else { return };
    for (name, text) in changed {
        let Some((other, registered)) = name.split_once('/').filter(|(other, _)| *other != replica) else { continue };
        let key = elsewhere(registered, other);
        let Some(text) = text else {
            plane.unregister(&key);
            continue;
        };
        let told = serde_json::from_str::<Told>(&text).map_err(|error| error.to_string());
        match told.and_then(|told| told.workload(&key)) {
            Ok(workload) => plane.register(workload),
            Err(why) => warn!("what another replica tells of {name} cannot be read: {why}"),
        }
    }
}

/// Tells of the workloads of this replica.
struct Teller {
    client: Client,
    /// What its keys begin with.
    root: Vec<u8>,
    plane: Plane,
}

impl Teller {
    async fn run(self) {
        let mut complaint = String::new();
        loop {
            let Err(failure) = self.tell(&mut complaint).await;
            if complaint != failure.to_string() {
                complaint = failure.to_string();
                warn!("other replicas cannot be told of the workloads of this one: {complaint}");
            }
            sleep(PAUSES.0 + (PAUSES.1 - PAUSES.0).mul_f64(fastrand::f64())).await;
        }
    }

    /// Tells of all of them with one lease, for as long as that lasts.
    async fn tell(&self, complaint: &mut String) -> Result<Infallible, Failure> {
        let lease = self.client.grant(TTL).await?;
        let mut registrations = self.plane.registrations();
        let mut told: BTreeMap<Arc<str>, String> = BTreeMap::new();
        let mut left_out = BTreeSet::new();
        let mut keep = interval(KEEP);
        keep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            registrations.mark_unchanged();
            self.tell_what_is_new(lease, &mut told, &mut left_out).await?;
            if !complaint.is_empty() {
                info!("other replicas are told of the workloads of this one");
                complaint.clear();
            }
            tokio::select! {
                changed = registrations.changed() => {
                    // The plane is here as well.
                    let _ = changed;
                    sleep(GATHER).await;
                }
                _ = keep.tick() => {
                    if self.client.keep_alive(lease).await? <= 0 {
                        return Err(Failure::Lost("the lease has ended".to_owned()));
                    }
                }
            }
        }
    }

    async fn tell_what_is_new(
        &self,
        lease: i64,
        told: &mut BTreeMap<Arc<str>, String>,
        left_out: &mut BTreeSet<Arc<str>>,
    ) -> Result<(), Failure> {
        let own = self.plane.registered().into_iter().filter(|workload| is_own(&workload.key));
        let (mut now, mut too_long) = (BTreeMap::new(), BTreeSet::new());
        for workload in own {
            // Plain data, which is always JSON.
            let text = serde_json::to_string(&Told::of(&workload)).unwrap_or_default();
            if workload.key.len() + text.len() > LONGEST {
                if !left_out.contains(&workload.key) {
                    let node: String = workload.node.chars().take(100).collect();
                    warn!(node, "other replicas are not told of it: it says more of itself than {LONGEST} bytes");
                }
                too_long.insert(workload.key.clone());
                continue;
            }
            now.insert(workload.key.clone(), text);
        }
        *left_out = too_long;
        let key = |name: &str| [self.root.as_slice(), name.as_bytes()].concat();
        let new = now
            .iter()
            .filter(|(name, text)| told.get(*name) != Some(*text))
            .map(|(name, text)| Op::Put(PutRequest { key: key(name), value: text.clone().into_bytes(), lease }));
        let gone = told.keys().filter(|name| !now.contains_key(*name));
        let gone = gone.map(|name| Op::Delete(DeleteRangeRequest { key: key(name), range_end: Vec::new() }));
        let all: Vec<RequestOp> = new.chain(gone).map(|op| RequestOp { request: Some(op) }).collect();
        for chunk in all.chunks(CHUNK) {
            let request = TxnRequest { compare: Vec::new(), success: chunk.to_vec() };
            self.client.txn(request).await?;
        }
        *told = now;
        Ok(())
    }
}
