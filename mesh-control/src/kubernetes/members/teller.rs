//! Writes the entries of a replica's members.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::AGAIN;
use super::entries::{Entry, Step, WORKLOAD_ENTRY, is_seen_to, steps};
use crate::config::support::ObjectKind;
use crate::kubernetes::attempts::{Attempts, May};
use crate::kubernetes::client::{Client, Failure};
use crate::kubernetes::kinds::{self, Resource};
use crate::kubernetes::known::Name;
use crate::kubernetes::objects::text_name;

const WORKLOAD_GROUP: Resource = kinds::object(ObjectKind::WorkloadGroup);
/// How long what was written has to come back, before it is written again; how long one is left alone that cannot be made.
pub(super) const COMES_BACK: Duration = Duration::from_secs(2);
const LEFT_ALONE: Duration = Duration::from_secs(600);
/// How long one write may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tells other replicas of the members of this one.
pub(super) struct Teller {
    client: Client,
    replica: String,
    /// Which entries are not to be written again before that, and whether only not to be made: where another replica has made it
    /// meanwhile, it is taken over.
    waits: BTreeMap<Name, (Instant, bool)>,
    /// What somebody else has changed, such as a webhook, is put again a few times, and then with all that is said to be still so.
    attempts: Attempts,
    comes_back: Duration,
}

impl Teller {
    pub(super) fn new(client: Client, replica: String, comes_back: Duration) -> Teller {
        Teller { client, replica, waits: BTreeMap::new(), attempts: Attempts::default(), comes_back }
    }

    /// How long it is until one may be written again that waits for it.
    pub(super) fn wait(&self) -> Option<Duration> {
        self.waits.values().map(|(until, _)| until.saturating_duration_since(Instant::now())).min()
    }

    /// # Errors
    /// Why nothing can be written now.
    pub(super) async fn tell(
        &mut self,
        version: &'static str,
        wanted: &BTreeMap<Name, Entry>,
        there: &BTreeMap<Name, Value>,
        now: u64,
    ) -> Result<(), Failure> {
        self.waits.retain(|_, (until, _)| Instant::now() < *until);
        let names: Vec<Arc<str>> = wanted.keys().map(|name| text_name(&WORKLOAD_ENTRY, name)).collect();
        self.attempts.retain(&names.iter().map(|name| &**name).collect());
        for step in steps(wanted, there, &self.replica, now) {
            let (Step::Make(name, _) | Step::Put(name, ..) | Step::Remove(name, _)) = &step;
            let is_new = matches!(step, Step::Make(..));
            if self.waits.get(*name).is_some_and(|(_, only_made)| is_new || !only_made) {
                continue;
            }
            if !self.may(&step, now) {
                continue;
            }
            let (wait, only_made) = match self.write(version, &step, now).await {
                Ok(()) => (self.comes_back, false),
                // The newest is on its way here.
                Err(Failure::Status(StatusCode::CONFLICT | StatusCode::NOT_FOUND, _)) if !is_new => {
                    self.attempts.outdated(&text_name(&WORKLOAD_ENTRY, name));
                    (self.comes_back, false)
                }
                // Its group is not there.
                Err(Failure::Status(StatusCode::NOT_FOUND, _)) => (AGAIN, true),
                Err(Failure::Status(status, why))
                    if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS =>
                {
                    let (namespace, name) = name;
                    warn!("WorkloadEntry {namespace}/{name}: it is not written, and stays what it is: {status}: {why}");
                    (LEFT_ALONE, is_new)
                }
                Err(failure) => {
                    self.attempts.lost(&text_name(&WORKLOAD_ENTRY, name));
                    return Err(failure);
                }
            };
            self.waits.insert((*name).clone(), (Instant::now() + wait, only_made));
        }
        Ok(())
    }

    /// Whether it may be written, as far as somebody else writes there, too.
    fn may(&mut self, step: &Step<'_>, now: u64) -> bool {
        let Step::Put(name, entry, object) = step else { return true };
        if !is_seen_to(object, &self.replica, now) {
            return true;
        }
        let version = object.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
        match self.attempts.may(&text_name(&WORKLOAD_ENTRY, name), version, &entry.words(), Instant::now()) {
            May::Write => true,
            May::LastTime => {
                let (namespace, name) = name;
                warn!(
                    "WorkloadEntry {namespace}/{name}: somebody else changes what is written there; it stays as they have it for a while"
                );
                true
            }
            May::Wait | May::Never => false,
        }
    }

    async fn write(&self, version: &'static str, step: &Step<'_>, now: u64) -> Result<(), Failure> {
        let of = |namespace: &str| WORKLOAD_ENTRY.path(version, Some(namespace));
        match step {
            Step::Make((namespace, name), entry) => {
                let owner = self.owner(version, namespace, &entry.group).await?;
                let mut object =
                    json!({"metadata": {"name": name, "namespace": namespace, "ownerReferences": [owner]}});
                entry.say(version, &mut object, &self.replica, now);
                self.client.post(&of(namespace), object.to_string().into(), PATIENCE).await.map(drop)
            }
            Step::Put((namespace, name), entry, present) => {
                let mut object = (*present).clone();
                entry.say(version, &mut object, &self.replica, now);
                let path = format!("{}/{name}", of(namespace));
                self.client.put(&path, object.to_string().into(), PATIENCE).await.map(drop)
            }
            Step::Remove((namespace, name), present) => {
                let only = json!({"resourceVersion": present.pointer("/metadata/resourceVersion")});
                let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": only});
                debug!("WorkloadEntry {namespace}/{name}: its workloads are gone");
                let path = format!("{}/{name}", of(namespace));
                self.client.delete(&path, options.to_string().into(), PATIENCE).await.map(drop)
            }
        }
    }

    /// What says that an entry is its group's, and gone with it.
    async fn owner(&self, version: &str, namespace: &str, group: &str) -> Result<Value, Failure> {
        let path = format!("{}/{group}", WORKLOAD_GROUP.path(version, Some(namespace)));
        let object = self.client.get(&path, PATIENCE).await?;
        let object: Value = serde_json::from_slice(&object).map_err(|error| Failure::Lost(error.into()))?;
        let uid = object.pointer("/metadata/uid").cloned().unwrap_or_default();
        let version = format!("{}/{version}", WORKLOAD_GROUP.group);
        Ok(json!({"apiVersion": version, "kind": WORKLOAD_GROUP.kind, "name": group, "uid": uid, "controller": true}))
    }
}
