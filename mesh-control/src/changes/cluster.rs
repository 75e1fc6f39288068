//! Objects in a Kubernetes cluster, read and changed: by server-side apply, each only if it still has the version that was looked at.
//!
//! A cluster has no transactions. The API server is asked about every change first (`dryRun`), so that what it refuses keeps all
//! others from being made, and where one fails in between, what was made is told. It keeps no history either: each change is a
//! ConfigMap, written before anything is changed, with what each object was before. Its name is its number, so that two of
//! them never have the same, and when it is done it says what each object was left as: versions change with every status, too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use futures_util::future::try_join_all;
use http::StatusCode;
use serde_json::{Value, json};

use super::store::{Outcome, Past, VersionedStore};
use super::{All, Author, Change, Changed, Entry, Id, Refusal, Stored, kept, mark};
use crate::kubernetes::kinds::{Resource, Use};
use crate::kubernetes::objects::{text, text_name};
use crate::kubernetes::{Client, Failure, list, list_any};
use crate::period::date;
use crate::policy::mesh::ROOT_NAMESPACE;

/// As whom the API server knows the fields that are applied.
const MANAGER: &str = "mesh-control";
/// How many changes the history keeps. All of them are read for each change, with the objects that were there before.
const KEPT: usize = 50;
/// What the ConfigMaps of the history are known by, and called.
const LABEL: &str = "policy.mesh-control/history";
const NAME: &str = "mesh-control-change-";
/// A version that no object has: the first one of an etcd is that of nothing.
const NO_VERSION: i64 = 1;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The objects of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct ClusterObjects {
    client: Client,
    /// Where the history is.
    namespace: String,
    /// Whether fields are taken over that somebody else has applied.
    forces: bool,
}

/// All of them, as they were seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) objects: All,
    /// What tells each from another one of its name.
    uids: BTreeMap<Id, String>,
    /// What is none of a name that it could be changed by.
    pub(crate) strange: Vec<String>,
    /// In which version each kind was listed, by its title.
    versions: BTreeMap<&'static str, &'static str>,
    /// The changes of the history, the oldest first.
    numbers: Vec<u64>,
}

impl ClusterObjects {
    /// Those that this client is shown, with the history in a namespace.
    pub(crate) fn new(client: Client, namespace: &str) -> ClusterObjects {
        ClusterObjects { client, namespace: namespace.to_owned(), forces: false }
    }

    /// Whether fields are taken over that somebody else has applied; without, that is a conflict.
    pub(crate) fn forces(self, forces: bool) -> ClusterObjects {
        ClusterObjects { forces, ..self }
    }

    /// As whom the API server knows who asks.
    ///
    /// # Errors
    /// It does not say so.
    pub(crate) async fn who(&self) -> Result<String, Refusal> {
        let question = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let answer = self.client.post(path, question.to_string().into_bytes(), PATIENCE).await;
        let answer = answer.map_err(|failure| refusal("who asks", failure))?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let name = answer.pointer("/status/userInfo/username").and_then(Value::as_str).filter(|name| !name.is_empty());
        name.map(str::to_owned).ok_or_else(|| Refusal::Store("Kubernetes: it does not say who asks".to_owned()))
    }

    async fn list(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
    ) -> Result<Option<(&'static Resource, &'static str, Vec<Value>)>, Refusal> {
        let listed = list_any(&self.client, resource, namespace).await;
        let listed = listed.map_err(|why| Refusal::Store(format!("Kubernetes: {}: {why}", resource.plural)))?;
        Ok(listed.map(|(version, items, _)| (resource, version, items)))
    }

    fn history_path(&self) -> String {
        format!("/api/v1/namespaces/{}/configmaps", self.namespace)
    }

    fn change_path(&self, number: u64) -> String {
        format!("{}/{NAME}{number}", self.history_path())
    }

    /// The changes of the history and what is said of each, the oldest first.
    async fn changes(&self) -> Result<Vec<(u64, String)>, Refusal> {
        let selector = format!("&labelSelector={LABEL}%3Dtrue");
        let listed = list(&self.client, &self.history_path(), &selector).await;
        let (items, _) = listed.map_err(|failure| refusal("the history", failure))?;
        let numbered = items.iter().filter_map(|item| {
            let number = item.pointer("/metadata/name")?.as_str()?.strip_prefix(NAME)?.parse::<u64>().ok()?;
            let text = item.pointer("/data/change").and_then(Value::as_str).unwrap_or_default();
            Some((number, text.to_owned()))
        });
        let mut changes: Vec<(u64, String)> = numbered.collect();
        changes.sort_unstable();
        Ok(changes)
    }

    /// Carries out one change, or asks what it would come to. Returns the text of the object then.
    async fn write(&self, seen: &Seen, change: &Change, is_dry: bool) -> Result<Option<Arc<str>>, Failure> {
        match &change.text {
            Some(text) => self.put(seen, &change.id, text, is_dry).await.map(Some),
            None => self.remove(seen, &change.id, is_dry).await.map(|()| None),
        }
    }

    async fn put(&self, seen: &Seen, id: &Id, written: &str, is_dry: bool) -> Result<Arc<str>, Failure> {
        let no_json = |error: serde_json::Error| Failure::Lost(error.into());
        let mut object: Value = serde_json::from_str(written).map_err(no_json)?;
        let said = object.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
        // It is a part of the path.
        let version = id.resource.versions.iter().copied().find(|version| id.api_version(version) == said);
        let version = version.ok_or_else(|| Failure::Lost(anyhow!("{said} is no version of it")))?;
        let present = seen.objects.get(id);
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            // The cluster says when it was made.
            metadata.remove("creationTimestamp");
            if !is_dry {
                // What was not there when it was looked at, and is by now, is somebody else's: it has to be looked at again.
                let version = present.map_or(NO_VERSION, |stored| stored.version);
                metadata.insert("resourceVersion".to_owned(), version.to_string().into());
                // And what was there then, and is gone by now: by its version alone it would be made anew.
                if let Some(uid) = seen.uids.get(id) {
                    metadata.insert("uid".to_owned(), uid.as_str().into());
                }
            }
        }
        let force = if self.forces && present.is_some() { "&force=true" } else { "" };
        let path = format!(
            "{}/{}?fieldManager={MANAGER}&fieldValidation=Strict{force}{}",
            id.resource.path(version, Some(&id.namespace)),
            id.name,
            if is_dry { "&dryRun=All" } else { "" },
        );
        let answer = self.client.apply(&path, object.to_string().into_bytes(), PATIENCE).await?;
        let mut answer: Value = serde_json::from_slice(&answer).map_err(no_json)?;
        if let (None, true, Some(Value::Object(metadata))) = (present, is_dry, answer.get_mut("metadata")) {
            metadata.remove("creationTimestamp");
        }
        // As the next list has it.
        Ok(text(id.resource, seen.versions.get(id.resource.title).copied().unwrap_or(version), &answer))
    }

    async fn remove(&self, seen: &Seen, id: &Id, is_dry: bool) -> Result<(), Failure> {
        let version = seen.versions.get(id.resource.title);
        let Some((stored, version)) = seen.objects.get(id).zip(version) else { return Ok(()) };
        let only = json!({"resourceVersion": stored.version.to_string()});
        let options = match is_dry {
            true => json!({"apiVersion": "v1", "kind": "DeleteOptions", "dryRun": ["All"]}),
            false => json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": only}),
        };
        let path = format!("{}/{}", id.resource.path(version, Some(&id.namespace)), id.name);
        self.client.delete(&path, options.to_string().into_bytes(), PATIENCE).await.map(drop)
    }

    /// Forgets the oldest changes. What is not forgotten now is after the next change.
    async fn forget(&self, seen: &Seen) {
        let over = (seen.numbers.len() + 1).saturating_sub(KEPT);
        for number in seen.numbers.iter().take(over) {
            let _ = self.client.delete(&self.change_path(*number), Vec::new(), PATIENCE).await;
        }
    }
}

impl VersionedStore for ClusterObjects {
    type Held = Seen;

    fn objects(seen: &Seen) -> &All {
        &seen.objects
    }

    fn name(id: &Id) -> Arc<str> {
        text_name(id.resource, &(id.namespace.clone(), id.name.clone()))
    }

    async fn read(&self) -> Result<Seen, Refusal> {
        // First: who commits what was found later is told if anything came between.
        let numbers = self.changes().await?.into_iter().map(|(number, _)| number).collect();
        let mut seen = Seen { numbers, ..Seen::default() };
        let everywhere: Vec<String> = Vec::new();
        let mut lists = Vec::new();
        for resource in kept() {
            for namespace in resource.namespaces(&everywhere) {
                lists.push(self.list(resource, namespace));
            }
        }
        for (resource, version, items) in try_join_all(lists).await?.into_iter().flatten() {
            seen.versions.insert(resource.title, version);
            for item in items {
                seen.add(resource, version, &item)?;
            }
        }
        Ok(seen)
    }

    async fn history(&self) -> Result<Vec<Past>, Refusal> {
        let pasts = self.changes().await?.into_iter().rev().filter_map(|(number, text)| {
            let entry: Entry = serde_json::from_str(&text).ok()?;
            (entry.number == number).then_some(Past { entry, version: None })
        });
        Ok(pasts.collect())
    }

    async fn preview(&self, seen: &Seen, changes: &[Change]) -> Result<Vec<Change>, Refusal> {
        let mut becomes = Vec::new();
        for change in changes {
            let id = &change.id;
            if id.resource.use_ == Use::Settings && &*id.namespace != ROOT_NAMESPACE {
                return Err(Refusal::Unknown(format!(
                    "{id}: of these, the one of {ROOT_NAMESPACE} alone is of the mesh"
                )));
            }
            let text = match self.write(seen, change, true).await {
                Err(Failure::Status(StatusCode::CONFLICT, why)) if !self.forces => {
                    let hint = "--force-conflicts takes such fields over";
                    return Err(Refusal::Conflict(format!("{id}: {why} ({hint})")));
                }
                written => written.map_err(|failure| refusal(&id.to_string(), failure))?,
            };
            becomes.push(Change { id: id.clone(), text });
        }
        Ok(becomes)
    }

    async fn commit(
        &self,
        seen: &Seen,
        changes: &[Change],
        author: &Author,
        now: SystemTime,
    ) -> Result<Outcome, Refusal> {
        let number = seen.numbers.last().map_or(1, |last| last.saturating_add(1));
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let Author { name, message } = author.clone();
        let objects = changes.iter().map(|change| seen.changed(change)).collect();
        let mut entry = Entry { number, author: name, message, time: date(seconds), attempt: String::new(), objects };
        // Nothing is changed of which nobody could tell what it was.
        let metadata = json!({"name": format!("{NAME}{number}"), "labels": {LABEL: "true"}});
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": said(&entry)});
        match self.client.post(&self.history_path(), map.to_string().into_bytes(), PATIENCE).await {
            Ok(_) => {}
            Err(Failure::Status(StatusCode::CONFLICT, _)) => return Ok(Outcome::Conflict),
            Err(failure) => return Err(refusal("the history", failure)),
        }

        let (mut made, mut failed) = (Vec::new(), None);
        for change in changes {
            let mut changed = seen.changed(change);
            match self.write(seen, change, false).await {
                Ok(after) => {
                    changed.after = after.as_deref().map(mark);
                    made.push(changed);
                }
                Err(failure) => {
                    // Where there is no answer, or none to go by, nobody knows whether it was changed.
                    if !matches!(&failure, Failure::Status(status, _) if status.is_client_error()) {
                        made.push(changed);
                    }
                    failed = Some((&change.id, failure));
                    break;
                }
            }
        }
        let path = self.change_path(number);
        let failed = match failed {
            Some((id, failure)) if made.is_empty() => {
                // Nothing has happened. If this fails as well, the history tells of a change that nobody can take back.
                let _ = self.client.delete(&path, Vec::new(), PATIENCE).await;
                return match failure {
                    Failure::Status(StatusCode::CONFLICT, _) => Ok(Outcome::Conflict),
                    failure => Err(refusal(&id.to_string(), failure)),
                };
            }
            failed => failed,
        };
        entry.objects = made;
        let patch = json!({"data": said(&entry)});
        let told = self.client.patch(&path, patch.to_string().into_bytes(), PATIENCE).await;
        if let Some((id, failure)) = failed {
            let made: Vec<&str> = entry.objects.iter().map(|changed| changed.object.as_str()).collect();
            let made = made.join(", ");
            let why = format!("{id}: {failure}; so change {number} is made in part, which the history tells: {made}");
            return Err(Refusal::Store(why));
        }
        told.map_err(|failure| {
            Refusal::Store(format!("change {number} was made, and the history does not say how it ended: {failure}"))
        })?;
        self.forget(seen).await;
        Ok(Outcome::Committed(number))
    }
}

impl Seen {
    fn add(&mut self, resource: &'static Resource, version: &str, item: &Value) -> Result<(), Refusal> {
        let metadata = |key: &str| {
            let value = item.get("metadata").and_then(|metadata| metadata.get(key)?.as_str());
            value.unwrap_or_default()
        };
        let (namespace, name) = (metadata("namespace"), metadata("name"));
        let Ok(id) = Id::new(resource, namespace, name) else {
            self.strange.push(format!("{}/{namespace}/{name}", resource.plural));
            return Ok(());
        };
        // Versions are numbers (Kubernetes 1.35).
        let number = metadata("resourceVersion");
        let number = number
            .parse::<i64>()
            .map_err(|_| Refusal::Store(format!("Kubernetes: {id}: its resourceVersion {number:?} is no number")))?;
        let uid = metadata("uid");
        if !uid.is_empty() {
            self.uids.insert(id.clone(), uid.to_owned());
        }
        self.objects.insert(id, Stored { text: text(resource, version, item), version: number });
        Ok(())
    }

    /// What the history says of a change before it is made.
    fn changed(&self, change: &Change) -> Changed {
        // What is written as it was is made into something else by the cluster: what it leaves alone is no change.
        change.told(change.verb(&self.objects).unwrap_or("configured"), &self.objects)
    }
}

/// The data of a change's ConfigMap.
fn said(entry: &Entry) -> Value {
    // A value of plain data, which is always JSON.
    json!({"change": serde_json::to_string(entry).unwrap_or_default()})
}

fn refusal(what: &str, failure: Failure) -> Refusal {
    match failure {
        Failure::Status(StatusCode::CONFLICT, why) => Refusal::Conflict(format!("{what}: {why}")),
        Failure::Status(StatusCode::NOT_FOUND, why) => Refusal::Unknown(format!("{what}: {why}")),
        Failure::Status(StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY, why) => {
            Refusal::Invalid(vec![format!("{what}: {why}")])
        }
        failure => Refusal::Store(format!("Kubernetes: {what}: {failure}")),
    }
}
