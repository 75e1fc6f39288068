//! An API server that does what it is told: lists in pages, watches with bookmarks, and everything that goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{StatusCode, Uri};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::config::node::{self, Node};
use crate::config::{Source, node::Value as Yaml};

/// Objects of one answer, whatever is asked for.
const PAGE: usize = 3;

/// A group that is there when one of its kinds is.
const GROUP: &str = "gateway.networking.k8s.io";

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
        let plural = plural(object["kind"].as_str().expect("a kind"));
        let metadata = &mut object["metadata"];
        if plural != "nodes" && metadata.get("namespace").is_none() {
            metadata["namespace"] = "default".into();
        }
        metadata["resourceVersion"] = version.to_string().into();
        metadata["uid"] = "u".into();
        metadata["managedFields"] = json!([{"manager": version}]);
        let key = key(&plural, &object);
        let kind = if world.objects.insert(key, object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        world.tell(&plural, kind, &object);
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

async fn answer(State((world, asked)): State<Shared>, uri: Uri) -> Response {
    let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let plural = parts.last().copied().unwrap_or_default();
    let namespace = parts.iter().position(|part| *part == "namespaces").and_then(|at| parts.get(at + 1).copied());
    let query: BTreeMap<&str, &str> =
        uri.query().unwrap_or_default().split('&').filter_map(|one| one.split_once('=')).collect();
    let is_watch = query.contains_key("watch");
    let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
    let number = |key: &str| query.get(key).and_then(|text| text.parse().ok()).unwrap_or(0);
    let status = |status: StatusCode| (status, json!({"message": "as told"}).to_string()).into_response();
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

fn plural(kind: &str) -> String {
    let found = super::super::kinds::RESOURCES.iter().find(|resource| resource.kind == kind);
    found.map_or_else(|| kind.to_lowercase(), |resource| resource.plural.to_owned())
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
