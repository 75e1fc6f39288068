//! An API server that does what it is told: lists in pages, watches with bookmarks, statuses by patches, Leases, objects that are
//! applied, and everything that goes wrong.

mod changed;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::super::kinds::{CLASS, RESOURCES};
use crate::config::node::{self, Node};
use crate::config::{Source, node::Value as Yaml};

/// Objects of one answer, whatever is asked for.
const PAGE: usize = 3;

/// A group that is there when one of its kinds is.
const GROUP: &str = "gateway.networking.k8s.io";
const KUBERNETES_GATEWAYS: &str = "gateways.gateway.networking.k8s.io";

type Key = (String, String, String);

#[derive(Default)]
pub(super) struct World {
    objects: BTreeMap<Key, Value>,
    version: u64,
    /// Every change: version, plural, line.
    log: Vec<(u64, String, String)>,
    /// Up to which version that has been forgotten.
    compacted: u64,
    /// Kinds that nobody has installed.
    pub(super) absent: BTreeSet<String>,
    /// Kinds that are answered with 503; `*` is all.
    pub(super) failing: BTreeSet<String>,
    /// Whether lists are empty, as of a store that has lost everything.
    pub(super) is_blank: bool,
    /// Whether every watch ends as soon as it begins, as behind a proxy that keeps none.
    pub(super) is_mute: bool,
    /// Whether nobody may write statuses.
    pub(super) is_forbidden: bool,
    /// The name of an object whose status cannot be stored, as where the whole would be too large for etcd.
    pub(super) is_too_large: &'static str,
    /// So many patches come too late: somebody else has labelled the object meanwhile.
    pub(super) too_late: u32,
    /// Whether somebody else takes every status away again.
    pub(super) has_rival: bool,
    /// Whether a webhook changes every WorkloadEntry that is written.
    pub(super) has_webhook: bool,
    /// What somebody else makes just before the next object is applied, under its name.
    pub(super) rival: Option<Value>,
    /// The name of an object that somebody else deletes just before it is applied.
    pub(super) is_deleted: &'static str,
    /// What was applied of each object's specification.
    applied: BTreeMap<Key, Value>,
    /// The names of objects: one whose fields are somebody else's, one that is refused, and one that cannot be stored.
    pub(super) is_others: &'static str,
    pub(super) is_refused: &'static str,
    pub(super) is_broken: &'static str,
    watchers: Vec<(String, mpsc::Sender<String>)>,
}

#[derive(Clone)]
pub(super) struct Fake {
    world: Arc<Mutex<World>>,
    /// Counts requests.
    asked: Arc<watch::Sender<BTreeMap<String, u64>>>,
    pub(super) address: SocketAddr,
    _task: Arc<Task>,
}

struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Fake {
    pub(super) async fn start() -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (world, asked) = (Arc::<Mutex<World>>::default(), Arc::new(watch::Sender::default()));
        world.lock().expect("a lock").version = 100;
        let router = Router::new().fallback(answer).with_state((world.clone(), asked.clone()));
        let task = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
        Fake { world, asked, address, _task: Arc::new(Task(task)) }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for so many more requests of a kind, `list virtualservices`, to be answered.
    pub(super) async fn asked(&self, what: &str, more: u64) {
        let mut counts = self.asked.subscribe();
        let of = |counts: &BTreeMap<String, u64>| counts.get(what).copied().unwrap_or_default();
        let before = of(&counts.borrow());
        counts.wait_for(|counts| of(counts) >= before + more).await.expect("a server");
    }

    /// Puts in objects, as YAML. A namespace that is not said is `default`.
    pub(super) fn apply(&self, yaml: &str) {
        let source = Source { name: "t.yaml".into(), text: yaml.into() };
        for document in node::parse(&source).expect("YAML") {
            self.put(json_of(&document));
        }
    }

    pub(super) fn put(&self, mut object: Value) {
        let mut world = self.world();
        world.version += 1;
        let version = world.version;
        let plural = plural(&object);
        let metadata = &mut object["metadata"];
        if !matches!(plural.as_str(), "nodes" | "gatewayclasses") && metadata.get("namespace").is_none() {
            metadata["namespace"] = "default".into();
        }
        metadata["resourceVersion"] = version.to_string().into();
        metadata["uid"] = "u".into();
        metadata["managedFields"] = json!([{"manager": version}]);
        let key = key(&plural, &object);
        let before = world.objects.get(&key).cloned().unwrap_or_default();
        let generation = before["metadata"]["generation"].as_u64().unwrap_or(0);
        let is_other = before["spec"] != object["spec"];
        object["metadata"]["generation"] = (generation + u64::from(is_other)).into();
        if before["status"].is_object() {
            object["status"] = before["status"].clone();
        }
        let kind = if world.objects.insert(key, object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        world.tell(&plural, kind, &object);
    }

    /// What an object says of itself; nothing where there is none.
    pub(super) fn status(&self, plural: &str, name: &str) -> Value {
        self.world().object(plural, name)["status"].clone()
    }

    /// How many requests of a kind there were, `patch virtualservices`.
    pub(super) fn count(&self, what: &str) -> u64 {
        self.asked.borrow().get(what).copied().unwrap_or_default()
    }

    /// Waits until it is like this after some request.
    pub(super) async fn until(&self, what: &str, is_so: impl Fn(&Fake) -> bool) {
        let mut asked = self.asked.subscribe();
        let wait = async {
            while !is_so(self) {
                asked.changed().await.expect("a server");
            }
        };
        tokio::time::timeout(super::LIMIT, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    pub(super) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut world = self.world();
        world.version += 1;
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let mut object = world.objects.remove(&key).expect("it is there");
        object["metadata"]["resourceVersion"] = world.version.to_string().into();
        world.tell(plural, "DELETED", &object);
    }

    /// Ends every watch.
    pub(super) fn cut(&self) {
        self.world().watchers.clear();
    }

    /// Forgets all changes so far, and ends every watch.
    pub(super) fn compact(&self) {
        let mut world = self.world();
        world.version += 1;
        world.compacted = world.version;
        world.log.clear();
        world.watchers.clear();
    }
}

impl World {
    /// An object of the namespace `shop`.
    pub(super) fn object(&self, plural: &str, name: &str) -> Value {
        self.objects.get(&(plural.to_owned(), "shop".to_owned(), name.to_owned())).cloned().unwrap_or_default()
    }

    pub(super) fn class(&self, name: &str) -> Value {
        self.objects.get(&("gatewayclasses".to_owned(), String::new(), name.to_owned())).cloned().unwrap_or_default()
    }

    pub(super) fn lease_of(&self, name: &str) -> Value {
        self.objects.get(&("leases".to_owned(), "mesh".to_owned(), name.to_owned())).cloned().unwrap_or_default()
    }

    /// Puts in what somebody else has made of an object.
    fn store(&mut self, key: &Key, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(key.clone(), object.clone());
        self.tell(&key.0, "MODIFIED", &object);
        object
    }

    fn patch(&mut self, key: &Key, patch: &Value) -> Result<Value, StatusCode> {
        let mut object = self.objects.get(key).cloned().ok_or(StatusCode::NOT_FOUND)?;
        if self.is_forbidden {
            return Err(StatusCode::FORBIDDEN);
        }
        if key.2 == self.is_too_large {
            return Err(StatusCode::INTERNAL_SERVER_ERROR);
        }
        if self.too_late > 0 {
            self.too_late -= 1;
            object["metadata"]["labels"] = json!({"late": self.too_late.to_string()});
            object = self.store(key, object);
        }
        if patch["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
            return Err(StatusCode::CONFLICT);
        }
        let others = object["status"].clone();
        let mut status = others.as_object().cloned().unwrap_or_default();
        for (name, value) in patch["status"].as_object().expect("a status") {
            match value {
                Value::Null => drop(status.remove(name)),
                value => drop(status.insert(name.clone(), value.clone())),
            }
        }
        object["status"] = status.into();
        let mut stored = self.store(key, object);
        if self.has_rival {
            stored["status"] = others;
            stored = self.store(key, stored);
        }
        Ok(stored)
    }

    /// A Lease is made once, and put in the place of the version that is known.
    fn lease(&mut self, method: &Method, name: &str, body: &[u8]) -> Result<Value, StatusCode> {
        let key = |name: &str| ("leases".to_owned(), "mesh".to_owned(), name.to_owned());
        if method == Method::GET {
            return self.objects.get(&key(name)).cloned().ok_or(StatusCode::NOT_FOUND);
        }
        let object: Value = serde_json::from_slice(body).map_err(|_| StatusCode::BAD_REQUEST)?;
        let key = key(object["metadata"]["name"].as_str().ok_or(StatusCode::BAD_REQUEST)?);
        let known = self.objects.get(&key).map(|known| &known["metadata"]["resourceVersion"]);
        let is_new = method == Method::POST;
        match known {
            Some(version) if is_new || *version != object["metadata"]["resourceVersion"] => Err(StatusCode::CONFLICT),
            None if !is_new => Err(StatusCode::NOT_FOUND),
            _ => Ok(self.store(&key, object)),
        }
    }

    fn tell(&mut self, plural: &str, kind: &str, object: &Value) {
        let line = json!({"type": kind, "object": object}).to_string() + "\n";
        self.log.push((self.version, plural.to_owned(), line.clone()));
        self.watchers.retain(|(of, watcher)| of != plural || watcher.try_send(line.clone()).is_ok());
    }

    fn list(&self, plural: &str, namespace: Option<&str>, from: usize) -> Value {
        let all = self.objects.iter().filter(|((of, ns, _), _)| of == plural && namespace.is_none_or(|one| one == ns));
        let mut all: Vec<&Value> = all.map(|(_, object)| object).collect();
        if self.is_blank {
            all.clear();
        }
        // In a list of a typed kind, items do not say what they are.
        let item = |object: &&Value| {
            let mut item = (*object).clone();
            item.as_object_mut().map(|item| (item.remove("kind"), item.remove("apiVersion")));
            item
        };
        let page: Vec<Value> = all.iter().skip(from).take(PAGE).map(item).collect();
        let next = if from + PAGE < all.len() { (from + PAGE).to_string() } else { String::new() };
        json!({"metadata": {"resourceVersion": self.version.to_string(), "continue": next}, "items": page})
    }

    fn watch(&mut self, plural: &str, since: u64) -> Body {
        if self.is_mute {
            return Body::empty();
        }
        let (lines, told) = mpsc::channel(1000);
        let send = |line: String| lines.try_send(line).expect("room");
        if since < self.compacted {
            let gone = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}});
            send(gone.to_string() + "\n");
        } else {
            for (_, _, line) in self.log.iter().filter(|(version, of, _)| *version > since && of == plural) {
                send(line.clone());
            }
            let bookmark = json!({"metadata": {"resourceVersion": self.version.to_string()}});
            send(json!({"type": "BOOKMARK", "object": bookmark}).to_string() + "\n");
            self.watchers.push((plural.to_owned(), lines));
        }
        Body::from_stream(ReceiverStream::new(told).map(|line| Ok::<_, Infallible>(Bytes::from(line))))
    }
}

type Shared = (Arc<Mutex<World>>, Arc<watch::Sender<BTreeMap<String, u64>>>);

async fn answer(
    State((world, asked)): State<Shared>,
    method: Method,
    headers: HeaderMap,
    uri: Uri,
    body: Bytes,
) -> Response {
    let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let plural = told_apart(&parts, parts.last().copied().unwrap_or_default());
    let namespace = parts.iter().position(|part| *part == "namespaces").and_then(|at| parts.get(at + 1).copied());
    let query: BTreeMap<&str, &str> =
        uri.query().unwrap_or_default().split('&').filter_map(|one| one.split_once('=')).collect();
    let is_watch = query.contains_key("watch");
    let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
    let number = |key: &str| query.get(key).and_then(|text| text.parse().ok()).unwrap_or(0);
    let status = |status: StatusCode| (status, json!({"message": "as told"}).to_string()).into_response();
    let stored = |stored: Result<Value, StatusCode>| {
        stored.map_or_else(status, |object| (StatusCode::OK, object.to_string()).into_response())
    };
    if let [.., plural, name, "status"] = parts[..]
        && method == Method::PATCH
    {
        assert_eq!(headers["content-type"], "application/merge-patch+json");
        let plural = told_apart(&parts, plural);
        let key = (plural.to_owned(), namespace.unwrap_or_default().to_owned(), name.to_owned());
        let patched = world.patch(&key, &serde_json::from_slice(&body).expect("a patch"));
        let is_written = patched.is_ok();
        let answer = stored(patched);
        drop(world);
        asked.send_modify(|counts| {
            *counts.entry(format!("patch {plural}")).or_default() += 1;
            *counts.entry(format!("written {plural}")).or_default() += u64::from(is_written);
        });
        return answer;
    }
    if let Some((what, changed)) = world.changed(&method, &parts, &query, &headers, &body) {
        let answer = stored(changed);
        drop(world);
        asked.send_modify(|counts| *counts.entry(what).or_default() += 1);
        return answer;
    }
    if parts.contains(&"leases") {
        let answer = match world.failing.contains("*") {
            true => status(StatusCode::SERVICE_UNAVAILABLE),
            false => stored(world.lease(&method, plural, &body)),
        };
        drop(world);
        asked.send_modify(|counts| *counts.entry(format!("{method} lease")).or_default() += 1);
        return answer;
    }
    let answer = if world.failing.contains("*") || world.failing.contains(plural) {
        status(StatusCode::SERVICE_UNAVAILABLE)
    } else if plural == "readyz" {
        "ok".into_response()
    } else if world.absent.contains(if plural == GROUP { "httproutes" } else { plural }) {
        status(StatusCode::NOT_FOUND)
    } else if is_watch {
        world.watch(plural, number("resourceVersion")).into_response()
    } else {
        let from = usize::try_from(number("continue")).expect("small");
        world.list(plural, namespace, from).to_string().into_response()
    };
    drop(world);
    let verb = if is_watch { "watch" } else { "list" };
    asked.send_modify(|counts| *counts.entry(format!("{verb} {plural}")).or_default() += 1);
    answer
}

fn key(plural: &str, object: &Value) -> Key {
    let text = |name: &str| object["metadata"].get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    (plural.to_owned(), text("namespace"), text("name"))
}

/// Two groups have Gateways.
fn told_apart<'p>(path: &[&str], plural: &'p str) -> &'p str {
    if plural == "gateways" && path.contains(&GROUP) { KUBERNETES_GATEWAYS } else { plural }
}

fn plural(object: &Value) -> String {
    let text = |name: &str| object[name].as_str().expect("a text");
    let (kind, path) = (text("kind"), text("apiVersion").split('/').collect::<Vec<_>>());
    let found = RESOURCES.iter().chain([&CLASS]).find(|resource| resource.kind == kind);
    found.map_or_else(|| kind.to_lowercase(), |resource| told_apart(&path, resource.plural).to_owned())
}

pub(super) fn json_of(node: &Node) -> Value {
    match &node.value {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => (*value).into(),
        Yaml::Int(value) => (*value).into(),
        Yaml::Float(value) => (*value).into(),
        Yaml::Str(text) => text.as_str().into(),
        Yaml::Seq(items) => items.iter().map(json_of).collect(),
        Yaml::Map(entries) => entries.iter().map(|(key, value)| (key.name.clone(), json_of(value))).collect(),
    }
}
