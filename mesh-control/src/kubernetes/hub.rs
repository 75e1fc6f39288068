//! All that a cluster tells, gathered: objects of the configuration for the plane's store, and who serves which service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::{error, info, warn};

use super::client::Client;
use super::facts::Fact;
use super::follow::{Follower, News, Pace, What};
use super::kinds::{RESOURCES, Resource, Use};
use super::known::{Change, Name};
use super::members::is_member;
use super::objects::{text, text_name};
use super::places::Places;
use crate::config::source::{ConfigStore, LONGEST_WAIT, QUIET};
use crate::config::store::{Resources, Update};
use crate::config::support::ObjectKind;
use crate::plane::Plane;
use crate::registry::ServiceName;

/// News that wait for whoever gathers them; who brings more waits, too.
const WAITING: usize = 256;

/// A cluster that is followed, for as long as this is there.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    shared: Arc<Shared>,
    client: Client,
    /// End with the last clone.
    _tasks: Arc<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Objects have changed, or the cluster was lost or found.
    objects: Notify,
    /// Who serves a service has changed.
    services: Notify,
    /// An object that has a status has changed.
    facts: Notify,
    /// A WorkloadEntry has changed.
    entries: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Kinds of which nobody knows yet what there is.
    unknown: BTreeSet<usize>,
    /// What has changed since the last look.
    changed: Resources,
    lost: BTreeMap<usize, String>,
    /// How many times since the last look an object has changed, or the cluster was lost or found: what whoever keeps the
    /// objects has not been told yet.
    untold: usize,
    places: Places,
    touched: BTreeSet<ServiceName>,
    /// Of every object that has a status, by the name of its text.
    facts: BTreeMap<Arc<str>, Arc<Fact>>,
    /// The members of groups that replicas have written down. They are no objects of the configuration: who is registered is not.
    entries: BTreeMap<Name, Value>,
    /// In which version WorkloadEntries are served.
    entry_version: Option<&'static str>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    /// Begins to follow a cluster: objects and services of these namespaces and objects of the root namespace, or those of all
    /// where there are none. To be called inside a runtime.
    pub(crate) fn follow(client: &Client, wanted: &[String]) -> Cluster {
        Cluster::follow_at(client, wanted, Pace::default())
    }

    /// The same, at this pace.
    pub(super) fn follow_at(client: &Client, wanted: &[String], pace: Pace) -> Cluster {
        let shared = Arc::<Shared>::default();
        let (news, told) = mpsc::channel(WAITING);
        let mut tasks = JoinSet::new();
        let mut followed = Vec::new();
        for resource in &RESOURCES {
            for namespace in resource.namespaces(wanted) {
                let namespace = namespace.map(str::to_owned);
                let (client, of, news) = (client.clone(), followed.len(), news.clone());
                followed.push(resource);
                tasks.spawn(Follower { client, resource, namespace, of, news, pace }.run());
            }
        }
        shared.state().unknown = (0..followed.len()).collect();
        tasks.spawn(gather(shared.clone(), followed, told));
        Cluster { shared, client: client.clone(), _tasks: Arc::new(tasks) }
    }

    /// By which it is asked.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// What is known of every object that has a status.
    pub(super) fn facts(&self) -> Vec<Arc<Fact>> {
        self.shared.state().facts.values().cloned().collect()
    }

    /// Waits until one of them has changed since this was asked the last time. For one who asks.
    pub(super) async fn facts_changed(&self) {
        self.shared.facts.notified().await;
    }

    /// The members of groups that replicas have written down, and in which version such entries are served.
    pub(super) fn entries(&self) -> (BTreeMap<Name, Value>, Option<&'static str>) {
        let state = self.shared.state();
        (state.entries.clone(), state.entry_version)
    }

    /// Waits until one of them has changed since this was asked the last time. For one who asks.
    pub(super) async fn entries_changed(&self) {
        self.shared.entries.notified().await;
    }

    /// Tells a plane who serves which service, from now on: at once what is known by now, and every change of it. Ends when the
    /// cluster is not followed any more.
    pub(crate) fn tell(&self, plane: &Plane) -> impl Future<Output = ()> + Send + 'static {
        let (shared, plane, domain) = (self.shared.clone(), plane.clone(), plane.trust_domain());
        let look = move |shared: &Shared| {
            let mut state = shared.state();
            let touched = std::mem::take(&mut state.touched);
            let told = touched.into_iter().map(|name| (name.clone(), state.places.of(&name, &domain)));
            let told: Vec<_> = told.collect();
            drop(state);
            plane.discover(told);
        };
        look(&shared);
        async move {
            loop {
                shared.services.notified().await;
                look(&shared);
            }
        }
    }
}

impl ConfigStore for Cluster {
    fn name(&self) -> String {
        format!("Kubernetes at {}", self.client.server())
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Update>> {
        Box::pin(async move {
            while !self.shared.state().is_worth_telling() {
                self.shared.objects.notified().await;
            }
            let until = Instant::now() + LONGEST_WAIT;
            let mut quiet = Instant::now() + QUIET;
            while timeout_at(quiet.min(until), self.shared.objects.notified()).await.is_ok() {
                quiet = Instant::now() + QUIET;
            }
            let mut state = self.shared.state();
            state.untold = 0;
            let changed = std::mem::take(&mut state.changed);
            let lost = state.lost.values().next().map(|why| format!("Kubernetes cannot be followed ({why})"));
            Some(Update::Resources { changed, lost })
        })
    }
}

async fn gather(shared: Arc<Shared>, followed: Vec<&'static Resource>, mut told: mpsc::Receiver<News>) {
    while let Some(News { of, what }) = told.recv().await {
        let Some(&resource) = followed.get(of) else { continue };
        let is_change = matches!(what, What::Listed(..) | What::Changed(..));
        let mut state = shared.state();
        let (was_known, before) = (state.unknown.is_empty(), (state.untold, state.touched.len()));
        match what {
            What::Listed(changes, version) => {
                if is_entry(resource) {
                    state.entry_version = Some(version);
                }
                changes.iter().for_each(|change| state.take(resource, version, change));
                state.unknown.remove(&of);
                state.found(of);
            }
            What::Changed(change, version) => state.take(resource, version, &change),
            What::Found => state.found(of),
            What::Lost(why) => state.lost(of, why),
        }
        if !was_known && state.unknown.is_empty() {
            info!(objects = state.changed.len(), "the cluster is known");
            state.untold += 1;
        }
        let objects = state.is_worth_telling() && state.untold != before.0;
        let services = state.touched.len() != before.1;
        drop(state);
        if objects {
            shared.objects.notify_one();
        }
        if services {
            shared.services.notify_one();
        }
        if is_change && resource.has_status() {
            shared.facts.notify_one();
        }
        if is_change && is_entry(resource) {
            shared.entries.notify_one();
        }
    }
}

fn is_entry(resource: &Resource) -> bool {
    resource.title == ObjectKind::WorkloadEntry.title()
}

impl State {
    fn is_worth_telling(&self) -> bool {
        self.untold > 0 && self.unknown.is_empty()
    }

    fn take(&mut self, resource: &'static Resource, version: &'static str, change: &Change) {
        if !is_entry(resource) {
            return self.take_object(resource, version, change);
        }
        let was_member = self.entries.remove(&change.name).is_some();
        let member = change.object.as_ref().filter(|object| is_member(object));
        if let Some(object) = member {
            self.entries.insert(change.name.clone(), object.clone());
        }
        let is_known = self.facts.contains_key(&text_name(resource, &change.name));
        let is_gone = was_member && change.object.is_none();
        if member.is_some() && is_known {
            // Somebody has made a member of what was an object of the configuration.
            let gone = Change { name: change.name.clone(), object: None };
            self.take_object(resource, version, &gone);
        } else if member.is_none() && (is_known || !is_gone) {
            self.take_object(resource, version, change);
        }
    }

    /// Takes what is no member.
    fn take_object(&mut self, resource: &'static Resource, version: &'static str, change: &Change) {
        if matches!(resource.use_, Use::Object | Use::Service | Use::Settings) {
            let name = text_name(resource, &change.name);
            let mut text = change.object.as_ref().map(|object| text(resource, version, object));
            if let Some(known) = self.facts.remove(&name)
                && text.as_ref() == Some(&known.text)
            {
                // Nothing that somebody wrote is another one, such as after a list, or when a status was written.
                text = Some(known.text.clone());
            }
            if let Some((object, text)) = change.object.as_ref().zip(text.clone()).filter(|_| resource.has_status()) {
                let fact = Fact::of(resource, version, &change.name, name.clone(), text, object);
                self.facts.insert(name.clone(), Arc::new(fact));
            }
            self.changed.insert(name, text);
            self.untold += 1;
        }
        if let Err(why) = self.places.take(resource.use_, change, &mut self.touched) {
            let (namespace, name) = &change.name;
            error!("{} {namespace}/{name} cannot be read, and what was known of it stays: {why}", resource.kind);
        }
    }

    fn lost(&mut self, of: usize, why: String) {
        let is_first = self.lost.is_empty();
        let is_new = self.lost.insert(of, why.clone()).as_ref() != Some(&why);
        if is_first && self.unknown.is_empty() {
            warn!("the cluster cannot be followed, and what it held last is in force: {why}");
        } else if is_new && !self.unknown.is_empty() {
            warn!("the cluster is not known yet, and nothing is served: {why}");
        }
        self.untold += usize::from(is_first);
    }

    fn found(&mut self, of: usize) {
        if self.lost.remove(&of).is_some() && self.lost.is_empty() {
            info!("the cluster can be followed");
            self.untold += 1;
        }
    }
}
