//! A client under test: it wants what the test wants, and writes down what it learns.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_core::resources::{Change, Progress, Resource, ResourceKey, ResourceType, Update};
use mesh_core::testing::ManagementServer;
use mesh_core::xds::bootstrap::Server;
use mesh_core::xds::{Bootstrap, Consumer, StatusHandle, XdsSource};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Generous: with paused time it costs nothing.
const PATIENCE: Duration = Duration::from_secs(900);

/// The running client.
pub(crate) struct Client {
    wants: mpsc::Sender<Progress>,
    log: Arc<Mutex<Vec<Change>>>,
    news: watch::Receiver<usize>,
    pub(crate) status: StatusHandle,
    pub(crate) task: JoinHandle<()>,
}

struct Recorder {
    wants: mpsc::Receiver<Progress>,
    log: Arc<Mutex<Vec<Change>>>,
    news: watch::Sender<usize>,
}

impl Consumer for Recorder {
    fn apply(&mut self, update: Update) -> Progress {
        let mut log = self.log.lock().unwrap();
        log.extend(update.changes);
        self.news.send_replace(log.len());
        Progress::default()
    }

    async fn changed(&mut self) -> Option<Progress> {
        self.wants.recv().await
    }
}

/// A bootstrap for one in-memory server with these features.
pub(crate) fn bootstrap(features: &[&str]) -> Bootstrap {
    let mut bootstrap = Bootstrap::new("mesh:1").node_id("node-1");
    bootstrap.servers = vec![features.iter().fold(Server::new("mesh:1"), |server, feature| server.feature(*feature))];
    bootstrap
}

impl Client {
    /// A client of one in-memory server.
    pub(crate) fn of(server: &ManagementServer, features: &[&str]) -> Client {
        Client::run(XdsSource::new(bootstrap(features)).connector(server.connector()))
    }

    /// A client with this source, on the test's runtime.
    #[allow(clippy::disallowed_methods, reason = "a test sends a handful")]
    pub(crate) fn run(source: XdsSource) -> Client {
        let (wants, wanted) = mpsc::channel(64);
        let log = Arc::<Mutex<Vec<Change>>>::default();
        let (news_sender, news) = watch::channel(0);
        let recorder = Recorder { wants: wanted, log: Arc::clone(&log), news: news_sender };
        let source = source.seed(7);
        let status = source.status();
        let task = tokio::spawn(async move { source.run_for(recorder).await });
        Client { wants, log, news, status, task }
    }

    pub(crate) fn want(&self, keys: &[(ResourceType, &str)]) {
        let mut progress = Progress::default();
        progress.subscribe = keys.iter().map(|(kind, name)| ResourceKey::new(*kind, *name)).collect();
        self.wants.try_send(progress).unwrap();
    }

    pub(crate) fn drop_interest(&self, keys: &[(ResourceType, &str)]) {
        let mut progress = Progress::default();
        progress.unsubscribe = keys.iter().map(|(kind, name)| ResourceKey::new(*kind, *name)).collect();
        self.wants.try_send(progress).unwrap();
    }

    /// Everything learned so far, in short.
    pub(crate) fn told(&self) -> Vec<String> {
        self.log.lock().unwrap().iter().map(short).collect()
    }

    /// What is known now, by key.
    pub(crate) fn known(&self) -> BTreeMap<ResourceKey, Option<Resource>> {
        let log = self.log.lock().unwrap();
        log.iter()
            .map(|change| match change {
                Change::Put(key, resource) => (key.clone(), Some(resource.clone())),
                Change::Absent(key, _) => (key.clone(), None),
            })
            .collect()
    }

    /// The reason given last for the absence of a resource.
    pub(crate) fn reason(&self, name: &str) -> String {
        let log = self.log.lock().unwrap();
        let reason = log.iter().rev().find_map(|change| match change {
            Change::Absent(key, reason) if &*key.name == name => Some(reason.to_string()),
            _ => None,
        });
        reason.unwrap_or_else(|| panic!("{name} was never absent: {:?}", log.iter().map(short).collect::<Vec<_>>()))
    }

    /// Waits until so many things were learned in all.
    pub(crate) async fn learns(&mut self, count: usize) -> Vec<String> {
        let waiting = self.news.wait_for(|learned| *learned >= count);
        if !matches!(tokio::time::timeout(PATIENCE, waiting).await, Ok(Ok(_))) {
            panic!("waited in vain for {count} news; learned so far: {:#?}", self.told());
        }
        self.told()
    }

    /// Tells the client to stop, and waits until it has.
    pub(crate) async fn stop(self) {
        drop(self.wants);
        tokio::time::timeout(PATIENCE, self.task).await.expect("the client stops").expect("and does not panic");
    }
}

fn short(change: &Change) -> String {
    match change {
        Change::Put(key, _) => format!("put {}", key.name),
        Change::Absent(key, _) => format!("absent {}", key.name),
    }
}
