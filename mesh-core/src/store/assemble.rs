//! From resources to views: which targets are complete, what each needs, what all of them need together.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::server::{ChainView, ServerState, ServerView};
use super::{GatewayListeners, Onward, Origin, TargetEntry};
use crate::error::{ErrorKind, MeshError};
use crate::id::{ClusterName, ListenerName, Target};
use crate::model::{
    Cluster, ClusterKind, ClusterTls, HttpManager, Listener, RouteConfiguration, RouteSource, ServerListener, ServerTls,
};
use crate::resources::{Change, Known, Progress, Resource, ResourceKey, ResourceType, Resources, Update};
use crate::state::{HealthNews, Limited, States, Subchannels, Traffic};
use crate::tls::Certificates;
use crate::view::{ClusterView, Extensions, Leaf, RouteTable, TargetView};
use crate::workload::OwnWorkload;

/// How deep aggregate clusters may nest (gRFC A37).
const MAX_DEPTH: usize = 16;

/// Everything that is wanted and everything that is known, and the views made of it.
pub(super) struct Assembly {
    pub(super) resources: Resources,
    extensions: Extensions,
    states: States,
    /// Who this process is to telemetry.
    own: Arc<OwnWorkload>,
    users: HashMap<UserId, User>,
    /// Who needs a resource.
    needed_by: HashMap<ResourceKey, HashSet<UserId>>,
    compiled: HashMap<ClusterName, Arc<ClusterView>>,
    /// Former views that requests still hold. The last of them is not to be the one that frees them, with thousands of
    /// endpoints maybe.
    retired: Vec<Arc<TargetView>>,
    /// Secrets that nobody needs any more, unless a request holds a view that leads to a cluster which takes them.
    unneeded: Vec<ResourceKey>,
    /// Where requests of gateways go on to, by their routes.
    pub(super) onward: Arc<Mutex<Onward>>,
    /// Who wants to know which listeners a gateway has.
    pub(super) gateway: Option<watch::Sender<GatewayListeners>>,
    progress: Progress,
    /// How often a view was made by a walk.
    #[cfg(test)]
    pub(super) walks: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum UserId {
    Target(Target),
    Server(ListenerName, SocketAddr),
    Onward(Arc<str>),
    Gateway,
}

struct User {
    kind: UserKind,
    needs: BTreeSet<ResourceKey>,
    /// Whether its view was made of all that it needs.
    is_whole: bool,
}

pub(super) enum UserKind {
    Target(Arc<TargetEntry>),
    Server { address: SocketAddr, listener: ListenerName, state: watch::Sender<ServerState>, is_gateway: bool },
    Gateway,
}

/// A walk from a listener down: what it needs, and whether something on the way is still unknown.
#[derive(Default)]
pub(super) struct Walk {
    pub(super) needs: BTreeSet<ResourceKey>,
    incomplete: bool,
}

impl Walk {
    fn need<T>(
        &mut self,
        kind: ResourceType,
        name: &str,
        get: impl FnOnce(&str) -> Known<T>,
    ) -> Option<Result<T, Arc<str>>> {
        self.needs.insert(ResourceKey::new(kind, name));
        match get(name) {
            Known::Unknown => {
                self.incomplete = true;
                None
            }
            Known::Absent(reason) => Some(Err(reason)),
            Known::Present(content) => Some(Ok(content)),
        }
    }
}

impl Assembly {
    pub(super) fn new(
        extensions: Extensions,
        certificates: Arc<Certificates>,
        own: Arc<OwnWorkload>,
        news: Arc<HealthNews>,
        onward: Arc<Mutex<Onward>>,
    ) -> Self {
        Assembly {
            resources: Resources::default(),
            extensions,
            states: States::new(certificates, news),
            own,
            users: HashMap::new(),
            needed_by: HashMap::new(),
            compiled: HashMap::new(),
            retired: Vec::new(),
            unneeded: Vec::new(),
            onward,
            gateway: None,
            progress: Progress::default(),
            #[cfg(test)]
            walks: 0,
        }
    }

    /// What becomes of requests, for reports of load.
    pub(super) fn limited(&self) -> &Arc<Limited> {
        self.states.limited()
    }

    pub(super) fn subchannels(&self) -> &Arc<Subchannels> {
        self.states.subchannels()
    }

    pub(super) fn traffic(&self) -> &Arc<Traffic> {
        self.states.traffic()
    }

    pub(super) fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    pub(super) fn add_target(&mut self, entry: Arc<TargetEntry>) {
        let id = UserId::Target(entry.target().clone());
        self.add(id, UserKind::Target(entry));
    }

    pub(super) fn drop_target(&mut self, target: &Target) {
        self.remove(&UserId::Target(target.clone()));
    }

    pub(super) fn add_server(
        &mut self,
        listener: ListenerName,
        address: SocketAddr,
        state: watch::Sender<ServerState>,
        is_gateway: bool,
    ) {
        let id = UserId::Server(listener.clone(), address);
        self.add(id, UserKind::Server { address, listener, state, is_gateway });
    }

    /// Every listener that there is for this process is wanted from now on.
    pub(super) fn add_gateway(&mut self, listeners: watch::Sender<GatewayListeners>) {
        self.gateway = Some(listeners);
        self.add(UserId::Gateway, UserKind::Gateway);
    }

    pub(super) fn drop_server(&mut self, listener: &ListenerName, address: SocketAddr) {
        self.remove(&UserId::Server(listener.clone(), address));
    }

    /// Frees former views that no request holds any more, and what was kept for them only. Whether there are others.
    pub(super) fn free_retired(&mut self) -> bool {
        if !self.retired.is_empty() || !self.unneeded.is_empty() {
            self.retired.retain(|view| Arc::strong_count(view) > 1);
            self.forget_unused();
            self.forget_secrets();
        }
        !self.retired.is_empty() || !self.unneeded.is_empty()
    }

    /// Lets go of secrets that nobody needs any more. A request that is under way may still connect by those of its view.
    fn forget_secrets(&mut self) {
        if self.unneeded.is_empty() {
            return;
        }
        let needed_by = &self.needed_by;
        self.unneeded.retain(|key| !needed_by.contains_key(key));
        let former = self.retired.iter().flat_map(|view| view.clusters());
        let leaves = former.chain(self.compiled.values()).flat_map(|cluster| cluster.leaves());
        let held: HashSet<&Arc<str>> = leaves.flat_map(|leaf| leaf.cluster.tls.secrets()).collect();
        let reader = self.states.certificates().material();
        self.unneeded.retain(|key| {
            let is_held = held.contains(&key.name);
            if !is_held {
                reader.release(&key.name);
            }
            is_held
        });
    }

    fn forget_unused(&mut self) {
        self.compiled.retain(|_, view| Arc::strong_count(view) > 1);
    }

    /// Merges what was learned and rebuilds the views of those who need any of it.
    pub(super) fn apply(&mut self, update: Update) {
        let mut affected: HashMap<UserId, Vec<ResourceKey>> = HashMap::new();
        self.note_listeners(&update.changes);
        self.note_secrets(&update.changes);
        for change in update.changes {
            if let Some(key) = self.resources.merge(change) {
                for user in self.needed_by.get(&key).into_iter().flatten() {
                    affected.entry(user.clone()).or_default().push(key.clone());
                }
            }
        }
        for (user, changed) in affected {
            let mut routes = None;
            if !self.renew(&user, &changed, &mut routes) {
                self.rebuild(&user, routes);
            }
        }
        self.states.tell();
        self.forget_onward();
        self.free_retired();
        self.forget_unused();
    }

    /// Hands on what secrets say, to whoever connects by them. One that nobody needs would stay for good.
    fn note_secrets(&self, changes: &[Change]) {
        let reader = self.states.certificates().material();
        for change in changes {
            match change {
                Change::Put(key, Resource::Secret(secret)) if self.needed_by.contains_key(key) => {
                    reader.deliver(&key.name, Some(Arc::clone(secret)));
                }
                Change::Absent(key, _) if key.kind == ResourceType::Secret => reader.deliver(&key.name, None),
                _ => {}
            }
        }
    }

    /// Makes the views anew whose endpoints are not what they were: some are ejected, cannot be reached, or are back.
    pub(super) fn follow_health(&mut self) {
        let changed = self.states.news().take();
        if changed.is_empty() {
            return;
        }
        let is_stale = |view: &ClusterView| view.leaves().iter().any(|leaf| changed.contains(&leaf.cluster.name));
        let mut renewed: Vec<(Arc<ClusterView>, Arc<ClusterView>)> = Vec::new();
        let entries = self.users.values().filter_map(|user| match &user.kind {
            UserKind::Target(entry) => Some(entry),
            UserKind::Server { .. } | UserKind::Gateway => None,
        });
        for entry in entries {
            let Some(present) = entry.view.load_full() else { continue };
            if !present.clusters().iter().any(|cluster| is_stale(cluster)) {
                continue;
            }
            let clusters = present.clusters().iter().map(|cluster| {
                if !is_stale(cluster) {
                    return Arc::clone(cluster);
                }
                // Targets share their clusters.
                if let Some((_, made)) = renewed.iter().find(|(stale, _)| Arc::ptr_eq(stale, cluster)) {
                    return Arc::clone(made);
                }
                let (name, leaves) = (cluster.name().clone(), cluster.leaves().to_vec());
                let made = Arc::new(ClusterView::compile(name.clone(), leaves, &self.extensions, Some(cluster)));
                if self.compiled.get(&name).is_some_and(|known| Arc::ptr_eq(known, cluster)) {
                    self.compiled.insert(name, Arc::clone(&made));
                }
                renewed.push((Arc::clone(cluster), Arc::clone(&made)));
                made
            });
            if let Some(view) = present.with_clusters(clusters.collect()) {
                self.retired.extend(entry.publish(Arc::new(view)));
            }
        }
        self.states.tell();
        self.free_retired();
        self.forget_unused();
    }

    /// What is wanted since the last time this was asked.
    pub(super) fn progress(&mut self) -> Progress {
        let mut progress = std::mem::take(&mut self.progress);
        for key in &progress.unsubscribe {
            if self.resources.forget(key) && key.kind == ResourceType::Secret {
                self.unneeded.push(key.clone());
            }
        }
        self.forget_secrets();
        // Dropped and wanted again, or wanted and dropped again, in between: the source need not know.
        let mut balance: HashMap<ResourceKey, i64> = HashMap::new();
        progress.subscribe.iter().for_each(|key| *balance.entry(key.clone()).or_default() += 1);
        progress.unsubscribe.iter().for_each(|key| *balance.entry(key.clone()).or_default() -= 1);
        progress.subscribe.retain(|key| balance.get(key) == Some(&1) && balance.remove(key).is_some());
        progress.unsubscribe.retain(|key| balance.get(key) == Some(&-1) && balance.remove(key).is_some());
        progress
    }

    pub(super) fn add(&mut self, id: UserId, kind: UserKind) {
        self.users.insert(id.clone(), User { kind, needs: BTreeSet::new(), is_whole: false });
        self.rebuild(&id, None);
        self.states.tell();
    }

    pub(super) fn remove(&mut self, id: &UserId) {
        if let Some(user) = self.users.remove(id) {
            for key in user.needs {
                self.release(id, &key);
            }
        }
        self.compiled.retain(|_, view| Arc::strong_count(view) > 1);
    }

    fn release(&mut self, id: &UserId, key: &ResourceKey) {
        if let Some(users) = self.needed_by.get_mut(key) {
            users.remove(id);
            if users.is_empty() {
                self.needed_by.remove(key);
            }
        }
        if self.resources.release(key) {
            self.progress.unsubscribe.push(key.clone());
        }
    }

    /// Walks from a user's listener as far as resources are known. Complete: a new view. Not complete: the routes of
    /// the present view stay, and so does everything that they need; its clusters keep up with what is learned.
    /// `routes` are those of a target, if they were compiled already.
    fn rebuild(&mut self, id: &UserId, routes: Option<Arc<RouteTable>>) {
        #[cfg(test)]
        {
            self.walks += 1;
        }
        let Some(user) = self.users.get(id) else { return };
        let (mut walk, mut is_whole) = (Walk::default(), false);
        match &user.kind {
            UserKind::Target(entry) => {
                let entry = Arc::clone(entry);
                let view = self.target_view(&entry, routes, &mut walk).filter(|_| !walk.incomplete);
                is_whole = view.is_some();
                if let Some(view) = view.or_else(|| self.refreshed(&entry)) {
                    view.note_target();
                    self.retired.extend(entry.publish(Arc::new(view)));
                }
            }
            UserKind::Gateway => {
                walk.needs.insert(ResourceKey::all(ResourceType::Listener));
            }
            UserKind::Server { address, listener, state, is_gateway } => {
                let (address, listener, state) = (*address, listener.clone(), state.clone());
                let (present, is_gateway) = (state.borrow().clone(), *is_gateway);
                let next = self.server_state(&listener, (address, is_gateway), &present, &mut walk);
                let next = next.filter(|_| !walk.incomplete).or_else(|| self.until_complete(&listener, &present));
                if let Some(next) = next {
                    state.send_replace(next);
                }
            }
        }
        self.set_needs(id, walk, is_whole);
    }

    /// Makes the view of a target anew of which nothing has changed but the endpoints of clusters that it has, and routes that lead to
    /// the clusters to which they led: the walk would find everything else as it is. Whether it is one; the routes are `made` anyway.
    fn renew(&mut self, id: &UserId, changed: &[ResourceKey], made: &mut Option<Arc<RouteTable>>) -> bool {
        let Some(User { kind: UserKind::Target(entry), is_whole: true, .. }) = self.users.get(id) else {
            return false;
        };
        let entry = Arc::clone(entry);
        let Some(present) = entry.peek() else { return false };
        let (mut news, mut clusters) = (HashMap::new(), present.clusters().to_vec());
        for key in changed {
            match key.kind {
                ResourceType::Endpoints => {
                    let Known::Present(endpoints) = self.resources.endpoints(&key.name) else { return false };
                    news.insert(&*key.name, (endpoints, false));
                }
                ResourceType::Route => *made = self.renewed_routes(&entry, &present),
                _ => return false,
            }
        }
        let has_routes = changed.iter().any(|key| key.kind == ResourceType::Route);
        let leads_there = |table: &Arc<RouteTable>| present.routes().is_some_and(|before| table.has_places_of(before));
        if has_routes && !made.as_ref().is_some_and(leads_there) {
            return false;
        }
        for cluster in &mut clusters {
            let mut leaves: Option<Vec<Leaf>> = None;
            for (at, leaf) in cluster.leaves().iter().enumerate() {
                let Some(name) = endpoints_name(&leaf.cluster) else { continue };
                let Some((endpoints, is_used)) = news.get_mut(&*name) else { continue };
                *is_used = true;
                if let Some(leaf) = leaves.get_or_insert_with(|| cluster.leaves().to_vec()).get_mut(at) {
                    leaf.endpoints = Some(Arc::clone(endpoints));
                }
            }
            if let Some(leaves) = leaves {
                *cluster = self.compiled_of(&cluster.name().clone(), leaves);
            }
        }
        // Endpoints of which no cluster had any may be what one has waited for.
        if !news.values().all(|(_, is_used)| *is_used) {
            return false;
        }
        let Some(view) = present.with_clusters(clusters) else { return false };
        let view = match made.take() {
            Some(routes) => view.with_routes(routes),
            None => view,
        };
        self.retired.extend(entry.publish(Arc::new(view)));
        true
    }

    /// The routes of a target whose listener is as it was.
    fn renewed_routes(&mut self, entry: &TargetEntry, present: &TargetView) -> Option<Arc<RouteTable>> {
        let (http, place) = match &entry.origin {
            Origin::Listener(name) => match self.resources.listener(name.as_str()) {
                Known::Present(listener) => match &*listener {
                    Listener::Api(listener) => (listener.http.clone(), name.as_str()),
                    Listener::Server(_) => return None,
                },
                _ => return None,
            },
            Origin::Routes(routes) => (HttpManager::new(routes.clone()), entry.target.as_str()),
        };
        self.route_table(&http, present.routes(), place, &mut Walk::default())?.ok()
    }

    fn set_needs(&mut self, id: &UserId, walk: Walk, is_whole: bool) {
        let Some(user) = self.users.get_mut(id) else { return };
        user.is_whole = is_whole;
        let mut needs = walk.needs;
        if walk.incomplete {
            needs.extend(user.needs.iter().cloned());
        }
        if needs == user.needs {
            return;
        }
        let before = std::mem::replace(&mut user.needs, needs.clone());
        for key in needs.difference(&before) {
            self.needed_by.entry(key.clone()).or_default().insert(id.clone());
            if self.resources.acquire(key) {
                self.progress.subscribe.push(key.clone());
            }
        }
        for key in before.difference(&needs) {
            self.release(id, key);
        }
    }

    /// `None` while something is unknown. `made` are its routes, if they were compiled already.
    fn target_view(
        &mut self,
        entry: &TargetEntry,
        made: Option<Arc<RouteTable>>,
        walk: &mut Walk,
    ) -> Option<TargetView> {
        let failed = |what: String| {
            Some(TargetView::failed(entry.target.clone(), MeshError::new(ErrorKind::UnknownTarget, what)))
        };
        let name = match &entry.origin {
            Origin::Listener(name) => name.as_str(),
            Origin::Routes(routes) => {
                let http = HttpManager::new(routes.clone());
                let previous = entry.view.load_full();
                let present = made.as_ref().or(previous.as_ref().and_then(|view| view.routes()));
                let routes = match self.route_table(&http, present, entry.target.as_str(), walk)? {
                    Ok(routes) => routes,
                    Err(reason) => return failed(reason),
                };
                let clusters = self.clusters_of(&routes, walk)?;
                return Some(TargetView::new(entry.target.clone(), &http, routes, clusters));
            }
        };
        let listener = match walk.need(ResourceType::Listener, name, |name| self.resources.listener(name))? {
            Ok(listener) => listener,
            Err(reason) => return failed(reason.to_string()),
        };
        let Listener::Api(listener) = &*listener else {
            return failed(format!("listener {name}: a server's listener, where a client's is needed"));
        };
        if let Some(why) = listener.blocks() {
            let error = MeshError::new(ErrorKind::UnknownTarget, format!("listener {name}: {why}"));
            return Some(TargetView::blocked(entry.target.clone(), &listener.http, error));
        }
        let previous = entry.view.load_full();
        let present = made.as_ref().or(previous.as_ref().and_then(|view| view.routes()));
        let routes = match self.route_table(&listener.http, present, name, walk)? {
            Ok(routes) => routes,
            Err(reason) => return failed(format!("listener {name}: {reason}")),
        };
        let clusters = self.clusters_of(&routes, walk);
        let connections = listener.connections.as_ref().map(|config| {
            let present = previous.as_ref().and_then(|view| view.connections()?.routes());
            self.connections(config, present, name, walk)
        });
        let view = TargetView::new(entry.target.clone(), &listener.http, routes, clusters?);
        match connections {
            None => Some(view),
            Some(Ok((http, table, clusters))) => Some(view.with_connections(&http, table, clusters?)),
            Some(Err(reason)) => failed(format!("listener {name}: connections: {reason}")),
        }
    }

    /// The clusters that routes name; `None` where one of these is not known. Every one is walked, so that all of them are asked for
    /// at once.
    fn clusters_of(&mut self, routes: &RouteTable, walk: &mut Walk) -> Option<Vec<Arc<ClusterView>>> {
        let clusters = routes.clusters().iter().enumerate().map(|(position, name)| {
            if routes.is_free(position) {
                return Some(Arc::new(ClusterView::unusable(name.clone(), "no route leads to it".into())));
            }
            let was_incomplete = walk.incomplete;
            let view = self.cluster_view(name, walk);
            if view.is_none() && routes.is_mirror(position) {
                // No request waits for what gets copies only.
                walk.incomplete = was_incomplete;
                return Some(Arc::new(ClusterView::unusable(name.clone(), "not known yet".into())));
            }
            view
        });
        let clusters: Vec<_> = clusters.collect();
        clusters.into_iter().collect()
    }

    /// The routes of connections whose bytes are not HTTP, and their clusters; `None` where one of these is not known.
    #[allow(clippy::type_complexity, reason = "a table, and the clusters that it names")]
    fn connections(
        &mut self,
        config: &Arc<RouteConfiguration>,
        present: Option<&Arc<RouteTable>>,
        listener: &str,
        walk: &mut Walk,
    ) -> Result<(HttpManager, Arc<RouteTable>, Option<Vec<Arc<ClusterView>>>), String> {
        let http = HttpManager::new(RouteSource::Inline(Arc::clone(config)));
        let place = format!("{listener}/connections");
        // What is inline is always known.
        let table =
            self.route_table(&http, present, &place, walk).unwrap_or_else(|| Err("there are none".to_owned()))?;
        let clusters = self.clusters_of(&table, walk);
        Ok((http, table, clusters))
    }

    /// The present view with what is known of its clusters by now; `None` if nothing of that is new. New routes may
    /// wait for their clusters for as long as 15 s, and the endpoints in use cannot.
    fn refreshed(&mut self, entry: &TargetEntry) -> Option<TargetView> {
        let present = entry.view.load_full()?;
        let clusters: Vec<_> = present.clusters().iter().map(|cluster| self.refreshed_cluster(cluster)).collect();
        let changed = clusters.iter().zip(present.clusters()).any(|(now, before)| !Arc::ptr_eq(now, before));
        if changed { present.with_clusters(clusters) } else { None }
    }

    /// A cluster in use as it is known by now. What is gone, or not complete in its new form, stays in use as it was,
    /// since routes that may not name it any more are on their way; its endpoints are renewed all the same. Plaintext that
    /// the new form does not want is not sent any more.
    fn refreshed_cluster(&mut self, present: &Arc<ClusterView>) -> Arc<ClusterView> {
        let mut leaves = Vec::new();
        // What this walk needs and nobody wants yet is for the new routes to ask for.
        if let Some(Ok(())) = self.leaves(present.name(), 0, &mut leaves, &mut Walk::default()) {
            return self.compiled_of(present.name(), leaves);
        }
        let mut later = Vec::new();
        self.known_clusters(present.name(), 0, &mut later);
        let renewed = present.leaves().iter().map(|leaf| {
            let known = endpoints_name(&leaf.cluster).map(|name| self.resources.endpoints(&name));
            let leaf = self.without_plaintext_to(leaf, &later);
            match known {
                Some(Known::Present(endpoints)) => Leaf { endpoints: Some(endpoints), ..leaf },
                _ => leaf,
            }
        });
        let renewed: Vec<Leaf> = renewed.collect();
        if renewed.is_empty() || present.is_of(&renewed) {
            return Arc::clone(present);
        }
        self.compiled_of(present.name(), renewed)
    }

    /// A leaf in use, unusable where it has plaintext that what is `later` in its place does not want.
    fn without_plaintext_to(&self, leaf: &Leaf, later: &[Arc<Cluster>]) -> Leaf {
        let own = later.iter().find(|cluster| cluster.name == leaf.cluster.name);
        let is_unwanted = |later: &Arc<Cluster>| leaf.cluster.tls.has_plaintext_beyond(&later.tls);
        if !own.map_or_else(|| later.iter().any(is_unwanted), is_unwanted) {
            return leaf.clone();
        }
        let mut closed = Cluster::clone(&leaf.cluster);
        closed.tls = ClusterTls::Unusable("TLS is asked for, and its endpoints are not known yet".into());
        let state = self.states.cluster(&closed.name, &closed.tls);
        Leaf { cluster: Arc::new(closed), endpoints: leaf.endpoints.clone(), state }
    }

    /// The clusters that one of this name consists of, as far as they are known.
    fn known_clusters(&self, name: &ClusterName, depth: usize, found: &mut Vec<Arc<Cluster>>) {
        let Known::Present(cluster) = self.resources.cluster(name.as_str()) else { return };
        match &cluster.kind {
            ClusterKind::Aggregate(children) if depth < MAX_DEPTH => {
                children.iter().for_each(|child| self.known_clusters(child, depth + 1, found));
            }
            ClusterKind::Aggregate(_) => {}
            _ if found.iter().any(|known| known.name == cluster.name) => {}
            _ => found.push(cluster),
        }
    }

    fn server_state(
        &mut self,
        listener: &ListenerName,
        (address, is_gateway): (SocketAddr, bool),
        previous: &ServerState,
        walk: &mut Walk,
    ) -> Option<ServerState> {
        let name = listener.as_str();
        let listener = match walk.need(ResourceType::Listener, name, |name| self.resources.listener(name))? {
            Ok(listener) => listener,
            // Whoever has bound it is told, and lets its requests end.
            Err(_) if is_gateway && matches!(previous, ServerState::Serving(_)) => return Some(previous.clone()),
            Err(reason) => return Some(ServerState::NotServing(reason)),
        };
        let Listener::Server(listener) = &*listener else {
            return Some(ServerState::NotServing(
                format!("listener {name}: a client's listener, where a server's is needed").into(),
            ));
        };
        if listener.address != address {
            // gRFC A36: the address must be the one that is bound.
            let wrong = listener.address;
            return Some(ServerState::NotServing(format!("listener {name}: it is for {wrong}, not {address}").into()));
        }
        if listener.proxy_protocol && !is_gateway {
            let reason = format!("listener {name}: its clients are told by the PROXY protocol, which is for gateways");
            return Some(ServerState::NotServing(reason.into()));
        }
        match self.chains(listener, is_gateway, previous, walk)? {
            Ok(chains) => {
                if !is_gateway {
                    self.own.note_labels(&listener.labels);
                }
                if chains.iter().any(|chain| chain.tls == ServerTls::Mutual) {
                    self.states.certificates().want();
                }
                Some(ServerState::Serving(Arc::new(ServerView::new(Arc::new(listener.clone()), chains))))
            }
            Err(reason) => Some(ServerState::NotServing(format!("listener {name}: {reason}").into())),
        }
    }

    /// What a server is told while its listener is not complete in its new form; `None` where it stays as it was.
    fn until_complete(&self, name: &ListenerName, present: &ServerState) -> Option<ServerState> {
        let (ServerState::Serving(view), Known::Present(listener)) = (present, self.resources.listener(name.as_str()))
        else {
            return None;
        };
        let Listener::Server(listener) = &*listener else { return None };
        view.until_complete(listener)
    }

    fn chains(
        &mut self,
        listener: &ServerListener,
        is_gateway: bool,
        previous: &ServerState,
        walk: &mut Walk,
    ) -> Option<Result<Vec<ChainView>, String>> {
        let present: HashMap<&str, &ChainView> = match previous {
            ServerState::Serving(view) => {
                view.listener.chains().map(|chain| &*chain.name).zip(view.chains.iter()).collect()
            }
            _ => HashMap::new(),
        };
        let mut chains = Vec::new();
        for chain in listener.chains() {
            let present = present.get(&*chain.name).copied();
            let before = present.map(|chain| &chain.routes);
            let place = format!("{}/{}", listener.name, chain.name);
            match self.route_table(&chain.http, before, &place, walk) {
                None => {}
                Some(Ok(routes)) => {
                    let HttpManager { paths, underscores, access_logs, metrics, tracing, trust, grpc_web, .. } =
                        &chain.http;
                    let (tls, access_logs) = (chain.tls.clone(), Arc::clone(access_logs));
                    let (paths, underscores) = (*paths, *underscores);
                    let (metrics, tracing) = (metrics.clone(), tracing.clone());
                    let edge = match &tls {
                        ServerTls::Edge(tls) => Some(self.edge(tls, present, walk)),
                        _ => None,
                    };
                    let (onward, is_opaque) =
                        (is_gateway.then(|| self.onward(chain, &place)), chain.connections.is_some());
                    let tls = match (is_gateway, is_opaque, trust.proxies) {
                        (true, ..) | (false, false, 0) => tls,
                        (false, true, _) => {
                            ServerTls::Unusable("its connections are to go on elsewhere, which a gateway does".into())
                        }
                        (false, false, _) => {
                            ServerTls::Unusable("proxies in front are to be believed, which a gateway does".into())
                        }
                    };
                    chains.push(ChainView {
                        routes,
                        tls,
                        paths,
                        underscores,
                        access_logs,
                        metrics,
                        tracing,
                        edge,
                        onward,
                        is_opaque,
                        trust: *trust,
                        grpc_web: *grpc_web,
                    });
                }
                // Of a gateway, the others go on.
                Some(Err(reason)) if is_gateway => {
                    let http = HttpManager::new(RouteSource::Inline(Arc::default()));
                    let nothing = self.route_table(&http, before, &place, walk);
                    let Some(Ok(routes)) = nothing else { return Some(Err(reason)) };
                    let tls = ServerTls::Unusable(format!("filter chain {:?}: {reason}", chain.name).into());
                    chains.push(ChainView { tls, ..ChainView::new(routes) });
                }
                Some(Err(reason)) => return Some(Err(format!("filter chain {:?}: {reason}", chain.name))),
            }
        }
        (!walk.incomplete).then_some(Ok(chains))
    }

    fn route_table(
        &mut self,
        http: &HttpManager,
        present: Option<&Arc<RouteTable>>,
        place: &str,
        walk: &mut Walk,
    ) -> Option<Result<Arc<RouteTable>, String>> {
        let config = match &http.routes {
            RouteSource::Inline(config) => Arc::clone(config),
            RouteSource::Named(name) => {
                match walk.need(ResourceType::Route, name.as_str(), |name| self.resources.route(name))? {
                    Ok(config) => config,
                    Err(reason) => return Some(Err(reason.to_string())),
                }
            }
        };
        if let Some(present) = present.filter(|table| table.is_of(&config, http)) {
            return Some(Ok(Arc::clone(present)));
        }
        let (present, registry) = (present.map(|present| &**present), &self.extensions.filters);
        let table = RouteTable::compile_after(present, config, http, registry, &self.states, place);
        Some(table.map(Arc::new).map_err(|invalid| invalid.to_string()))
    }

    /// `None` while something is unknown. A cluster that cannot be used fails the requests that go to it, and
    /// no others.
    fn cluster_view(&mut self, name: &ClusterName, walk: &mut Walk) -> Option<Arc<ClusterView>> {
        let mut leaves = Vec::new();
        match self.leaves(name, 0, &mut leaves, walk)? {
            Err(reason) => {
                let view = Arc::new(ClusterView::unusable(name.clone(), reason));
                self.compiled.insert(name.clone(), Arc::clone(&view));
                Some(view)
            }
            Ok(()) => Some(self.compiled_of(name, leaves)),
        }
    }

    /// The cluster of these leaves: the present one, if it was made of them.
    fn compiled_of(&mut self, name: &ClusterName, leaves: Vec<Leaf>) -> Arc<ClusterView> {
        let present = self.compiled.get(name);
        if let Some(present) = present.filter(|present| present.is_of(&leaves)) {
            return Arc::clone(present);
        }
        let present = present.map(|present| &**present);
        let view = Arc::new(ClusterView::compile(name.clone(), leaves, &self.extensions, present));
        self.compiled.insert(name.clone(), Arc::clone(&view));
        view
    }

    fn leaves(
        &mut self,
        name: &ClusterName,
        depth: usize,
        leaves: &mut Vec<Leaf>,
        walk: &mut Walk,
    ) -> Option<Result<(), Arc<str>>> {
        if depth >= MAX_DEPTH {
            return Some(Err(format!("cluster {name}: aggregate clusters nest deeper than {MAX_DEPTH}").into()));
        }
        let cluster = match walk.need(ResourceType::Cluster, name.as_str(), |name| self.resources.cluster(name))? {
            Ok(cluster) => cluster,
            Err(reason) => return Some(Err(reason)),
        };
        if let ClusterKind::Aggregate(children) = &cluster.kind {
            let (mut unknown, mut failed, before) = (false, None, leaves.len());
            for child in children {
                match self.leaves(child, depth + 1, leaves, walk) {
                    None => unknown = true,
                    // A leaf that is missing is passed over while there are others (gRFC A37).
                    Some(Err(reason)) => failed = Some(reason),
                    Some(Ok(())) => {}
                }
            }
            return match failed {
                _ if unknown => None,
                Some(reason) if leaves.len() == before => Some(Err(reason)),
                _ => Some(Ok(())),
            };
        }
        // All are asked for at once. One that is not there fails the connections that need it, and nothing else.
        let secrets: Vec<_> = cluster.tls.secrets().map(|name| self.secret_known(name, walk)).collect();
        let endpoints = match self.endpoints(&cluster, walk)? {
            Ok(endpoints) => endpoints,
            Err(reason) => return Some(Err(reason)),
        };
        secrets.into_iter().collect::<Option<()>>()?;
        // A cluster that stands twice in an aggregate counts once, where it stands first.
        if !leaves.iter().any(|leaf| leaf.cluster.name == cluster.name) {
            let state = self.states.cluster(&cluster.name, &cluster.tls);
            leaves.push(Leaf { cluster, endpoints, state });
        }
        Some(Ok(()))
    }

    /// `None` while it is not known whether there is this secret.
    fn secret_known(&self, name: &str, walk: &mut Walk) -> Option<()> {
        walk.need(ResourceType::Secret, name, |name| self.resources.secret(name)).map(drop)
    }

    #[allow(clippy::type_complexity, reason = "unknown, unusable, or known to have endpoints or none by design")]
    fn endpoints(
        &mut self,
        cluster: &Arc<Cluster>,
        walk: &mut Walk,
    ) -> Option<Result<Option<Arc<crate::model::Endpoints>>, Arc<str>>> {
        let Some(name) = endpoints_name(cluster) else {
            // The same endpoints as in the present view are the same `Arc`, so that they compare as equal.
            let present = self.compiled.get(&cluster.name).and_then(|view| {
                view.leaves().iter().find(|leaf| Arc::ptr_eq(&leaf.cluster, cluster))?.endpoints.clone()
            });
            return Some(Ok(present.or_else(|| cluster.inline_endpoints().cloned().map(Arc::new))));
        };
        let endpoints = walk.need(ResourceType::Endpoints, &name, |name| self.resources.endpoints(name))?;
        Some(endpoints.map(Some))
    }
}

/// Under which name the endpoints of a cluster arrive; `None` where it brings them itself or has none by design.
fn endpoints_name(cluster: &Cluster) -> Option<Arc<str>> {
    match &cluster.kind {
        ClusterKind::Eds { service_name } => Some(Arc::clone(service_name)),
        ClusterKind::StrictDns { .. } => Some(ResourceKey::resolved(cluster.name.as_str()).name),
        ClusterKind::PassThrough | ClusterKind::Aggregate(_) | ClusterKind::Static(_) | ClusterKind::LogicalDns(_) => {
            None
        }
    }
}
