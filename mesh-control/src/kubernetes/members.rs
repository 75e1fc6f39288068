//! Members of WorkloadGroups as WorkloadEntries of a cluster, under Istio's names (auto-registration): by them replicas tell each other
//! who is registered.
//!
//! A replica that may write makes an entry for each address at which members of a group are registered with it, and takes it away when
//! they are gone. Where others at the same address are registered with another replica, there is one of each. To others, such as istiod,
//! the entry says what any WorkloadEntry says; to replicas it says what each workload has told, so that a member is to their clients what
//! it is to those of its own. An entry of ours has our label: nothing else is changed, or taken away. Where a replica goes down its
//! members come back to others, which take their entries over; what nobody takes over counts no more after a while, and is taken away.
//!
//! Who may write WorkloadEntries of a namespace may say who its endpoints are, and of an entry no more than that is believed: its
//! workloads are of its namespace, its group and its address, and no gateways.

mod entries;
mod teller;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::warn;

use super::elected::clock;
use super::hub::Cluster;
use crate::plane::Plane;
use crate::registry::Workload;
pub(super) use entries::is_member;
use entries::{REPLICA, beside, heard, wanted};
use teller::{COMES_BACK, Teller};

/// How often is looked where nothing has happened, and how long changes are gathered.
const AGAIN: Duration = Duration::from_secs(15);
const GATHER: Duration = Duration::from_millis(200);

/// Hears of members that are registered at other replicas, and tells them of those of this one, for as long as it is there.
pub(crate) struct Members(JoinHandle<()>);

impl Members {
    /// Begins. Without `writes` nobody is told.
    pub(crate) fn start(cluster: &Cluster, plane: &Plane, writes: bool) -> Members {
        Members::start_at(cluster, plane, writes, COMES_BACK)
    }

    /// Begins. What was written has so long to come back, before it is written again.
    pub(super) fn start_at(cluster: &Cluster, plane: &Plane, writes: bool, comes_back: Duration) -> Members {
        Members(tokio::spawn(run(cluster.clone(), plane.clone(), writes, comes_back)))
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(cluster: Cluster, plane: Plane, writes: bool, comes_back: Duration) {
    let replica = format!("{REPLICA}{:016x}", fastrand::u64(..));
    let mut registrations = plane.registrations();
    let (mut known, mut doubted) = (BTreeMap::new(), Vec::new());
    let (mut teller, mut complaint) =
        (Teller::new(cluster.client().clone(), replica.clone(), comes_back), String::new());
    loop {
        registrations.mark_unchanged();
        let ((there, version), now) = (cluster.entries(), clock().as_secs());
        let (others, doubts) = heard(&there, &replica, now, &plane.trust_domain());
        known = hear(&plane, known, others);
        for doubt in doubts.iter().filter(|doubt| !doubted.contains(*doubt)) {
            warn!("{doubt}");
        }
        doubted = doubts;
        if let Some(version) = version.filter(|_| writes) {
            let wanted = beside(wanted(&plane.members()), &there, &replica, now);
            let told = teller.tell(version, &wanted, &there, now).await;
            let why = told.err().map(|failure| failure.to_string()).unwrap_or_default();
            if !why.is_empty() && why != complaint {
                warn!("members of WorkloadGroups cannot be written down: {why}");
            }
            complaint = why;
        }
        tokio::select! {
            // The plane is here as well.
            _ = registrations.changed() => {}
            () = cluster.entries_changed() => {}
            () = sleep(teller.wait().map_or(AGAIN, |wait| wait.min(AGAIN))) => {}
        }
        sleep(GATHER).await;
    }
}

/// Registers who is new at others, and forgets who is gone there.
fn hear(
    plane: &Plane,
    known: BTreeMap<Arc<str>, Workload>,
    now: BTreeMap<Arc<str>, Workload>,
) -> BTreeMap<Arc<str>, Workload> {
    for (key, workload) in &now {
        if known.get(key) != Some(workload) {
            plane.register(workload.clone());
        }
    }
    for key in known.keys().filter(|key| !now.contains_key(*key)) {
        plane.unregister(key);
    }
    now
}
