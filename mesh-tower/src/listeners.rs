//! The listeners of a mesh: what each is told by the configuration, kept where every request finds it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::id::ListenerName;
use mesh_core::seldom::Seldom;
use mesh_core::store::{ServerHandle, ServerState};
use tokio::sync::watch;

use crate::connection::ConnectionInfo;
use crate::drain::{Drain, Phase, reached};
use crate::health::Health;

/// All listeners of a mesh that are bound or have connections.
#[derive(Debug)]
pub(crate) struct Listeners {
    all: ArcSwap<Vec<Arc<ListenerState>>>,
    health: watch::Sender<Health>,
    /// What is wrong with listeners of a gateway that could not be bound.
    problems: Mutex<Option<BTreeMap<ListenerName, String>>>,
    /// There is a layer for them.
    has_layer: AtomicBool,
    /// The layer saw requests of which it cannot tell the connection: then nobody can tell which it did not see.
    sees_unknown: AtomicBool,
    /// Connections that were closed without a header of the PROXY protocol, by the reason.
    headless: [AtomicU64; Headless::ALL.len()],
    /// When the log last had one of them.
    headless_told: Seldom,
}

/// Why a connection was closed that has to begin with a header of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Headless {
    /// It begins with something else.
    Invalid,
    /// It ended before.
    Ended,
    /// There was none in time.
    Late,
    /// It made room for another one.
    Crowded,
}

impl Headless {
    pub(crate) const ALL: [Headless; 4] = [Headless::Invalid, Headless::Ended, Headless::Late, Headless::Crowded];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Headless::Invalid => "invalid",
            Headless::Ended => "ended",
            Headless::Late => "late",
            Headless::Crowded => "crowded",
        }
    }
}

impl Default for Listeners {
    fn default() -> Self {
        Listeners {
            all: ArcSwap::default(),
            health: watch::Sender::new(Health::Starting),
            problems: Mutex::default(),
            has_layer: AtomicBool::new(false),
            sees_unknown: AtomicBool::new(false),
            headless: Default::default(),
            headless_told: Seldom::default(),
        }
    }
}

impl Listeners {
    pub(crate) fn load(&self) -> Guard<Arc<Vec<Arc<ListenerState>>>> {
        self.all.load()
    }

    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// What is wrong with listeners that could not be bound, by their names; `None` where this is no gateway.
    pub(crate) fn problems(&self) -> Option<BTreeMap<ListenerName, String>> {
        lock(&self.problems).clone()
    }

    /// Notes why a listener cannot be bound, or that it is; whether that is news.
    pub(crate) fn note_problem(&self, name: &ListenerName, problem: Option<String>) -> bool {
        let mut problems = lock(&self.problems);
        let problems = problems.get_or_insert_default();
        match problem {
            None => problems.remove(name).is_some(),
            Some(problem) => problems.insert(name.clone(), problem.clone()).as_ref() != Some(&problem),
        }
    }

    /// Forgets the problems of listeners that there are not any more.
    pub(crate) fn forget_problems(&self, is_there: impl Fn(&ListenerName) -> bool) {
        lock(&self.problems).get_or_insert_default().retain(|name, _| is_there(name));
    }

    /// Somebody has made a layer for them.
    pub(crate) fn note_layer(&self) {
        if !self.has_layer.swap(true, Ordering::AcqRel) {
            self.assess();
        }
    }

    fn has_layer(&self) -> bool {
        self.has_layer.load(Ordering::Acquire)
    }

    /// The layer saw a request, and cannot tell its connection.
    #[inline]
    pub(crate) fn note_unknown(&self) {
        if !self.sees_unknown() {
            self.sees_unknown.store(true, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn sees_unknown(&self) -> bool {
        self.sees_unknown.load(Ordering::Relaxed)
    }

    /// The application answers a request that no layer saw; whether the answer may leave. Of a listener that has something which looks
    /// at requests it does not, where there is no layer at all.
    pub(crate) fn note_unseen(&self, listener: &ListenerState, is_guarded: bool) -> bool {
        let (name, address) = (&listener.name, listener.address);
        if !is_guarded {
            if !listener.is_unseen.swap(true, Ordering::Relaxed) {
                let reason = if self.has_layer() { OUTSIDE } else { NO_LAYER };
                tracing::warn!(listener = %name, %address, reason, "requests are answered past the mesh");
            }
            return true;
        }
        if self.has_layer() {
            if listener.unseen_told.is_due(Instant::now()) {
                let reason = OUTSIDE;
                tracing::error!(listener = %name, %address, reason, "the application answers a request past the mesh's policies");
            }
            return true;
        }
        if listener.unseen_told.is_due(Instant::now()) {
            tracing::error!(
                listener = %name, %address, reason = NO_LAYER,
                "the application answers a request past the mesh's policies: its connection is closed",
            );
        }
        if !listener.is_bypassed.swap(true, Ordering::AcqRel) {
            self.assess();
        }
        false
    }

    /// A connection was closed without a header of the PROXY protocol.
    pub(crate) fn note_headless(&self, listener: &ListenerName, peer: SocketAddr, why: Headless, reason: &str) {
        if let Some(count) = self.headless.get(why as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        // Load balancers look whether somebody listens, and say nothing.
        if why != Headless::Ended && self.headless_told.is_due(Instant::now()) {
            let hint = "others like it are counted (mesh_proxy_protocol_refused_total)";
            tracing::warn!(%listener, %peer, reason, hint, "connection refused: it has to begin with a header of the PROXY protocol");
        } else {
            tracing::debug!(%listener, %peer, reason, "connection refused");
        }
    }

    /// How many were closed for this reason.
    pub(crate) fn headless(&self, why: Headless) -> u64 {
        self.headless.get(why as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    fn add(&self, listener: &Arc<ListenerState>) {
        self.all.rcu(|all| all.iter().chain([listener]).cloned().collect::<Vec<_>>());
        self.assess();
    }

    fn remove(&self, listener: &Arc<ListenerState>) {
        self.all.rcu(|all| all.iter().filter(|it| !Arc::ptr_eq(it, listener)).cloned().collect::<Vec<_>>());
        self.assess();
    }

    fn assess(&self) {
        let states: Vec<_> = self.all.load().iter().map(|listener| listener.state.load_full()).collect();
        let health = match !self.has_layer() && self.all.load().iter().any(|listener| listener.is_bypassed()) {
            true => Health::NotServing(NO_LAYER.into()),
            false => Health::of(states.iter().map(AsRef::as_ref)),
        };
        self.health.send_if_modified(|present| std::mem::replace(present, health.clone()) != health);
    }
}

/// Nothing is left half-done under the lock, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why policies are not looked at.
const NO_LAYER: &str = "nothing of this server goes through `Mesh::server_layer`, where policies are enforced";
const OUTSIDE: &str = "it did not come through `Mesh::server_layer`, where policies are enforced: put that around every route that \
    policies are for (axum: `.layer(mesh.server_layer())` is for the routes that were added before it)";

/// What a request without a connection is told where the connection matters.
pub(crate) const UNKNOWN_CONNECTION: &str = "the connection is not known: serve with `mesh_tower::server::serve`, or \
    under `axum::serve` by `into_make_service_with_connect_info::<ConnectionInfo>()`, or tell the layer how to find it \
    (`ServerLayer::connection_by`)";

/// The listener that a request came by, by its connection.
pub(crate) fn find<'l>(
    all: &'l [Arc<ListenerState>],
    connection: Option<&ConnectionInfo>,
) -> Result<&'l Arc<ListenerState>, MeshError> {
    let Some(connection) = connection else {
        let detail = match all.len() {
            0 => "no listener of this mesh is bound".to_owned(),
            _ => format!("several listeners of this mesh are bound, and {UNKNOWN_CONNECTION}"),
        };
        return Err(MeshError::new(ErrorKind::NoListener, detail));
    };
    let found = all.iter().find(|listener| listener.is_at(connection.local));
    found.ok_or_else(|| {
        let detail = format!("no listener of this mesh is bound at {}", connection.local);
        MeshError::new(ErrorKind::NoListener, detail)
    })
}

/// One listener, as its requests see it. It outlives the socket for as long as there are connections.
#[derive(Debug)]
pub(crate) struct ListenerState {
    address: SocketAddr,
    name: ListenerName,
    state: ArcSwap<ServerState>,
    news: watch::Sender<()>,
    security: watch::Sender<()>,
    /// It was said that the application answers what no layer saw, although nothing is to look at it.
    is_unseen: AtomicBool,
    /// When it was last said that such an answer was kept back, and whether there was one.
    unseen_told: Seldom,
    is_bypassed: AtomicBool,
    /// When it was last said that a connection is closed since its chain cannot take it.
    refused_told: Seldom,
}

impl ListenerState {
    fn new(name: ListenerName, address: SocketAddr) -> Arc<Self> {
        Arc::new(ListenerState {
            address,
            name,
            state: ArcSwap::from_pointee(ServerState::Waiting),
            news: watch::Sender::new(()),
            security: watch::Sender::new(()),
            is_unseen: AtomicBool::new(false),
            unseen_told: Seldom::default(),
            is_bypassed: AtomicBool::new(false),
            refused_told: Seldom::default(),
        })
    }

    /// A connection is closed since the configuration of its chain cannot be honoured, be it for a certificate that is not known.
    pub(crate) fn note_refused(&self, peer: SocketAddr, reason: &str) {
        if self.refused_told.is_due(Instant::now()) {
            tracing::warn!(listener = %self.name, %peer, reason, "connection refused, and others like it");
        }
    }

    fn is_bypassed(&self) -> bool {
        self.is_bypassed.load(Ordering::Acquire)
    }

    pub(crate) fn name(&self) -> &ListenerName {
        &self.name
    }

    /// The port that it is bound to.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Whether to serve, and how.
    pub(crate) fn state(&self) -> Guard<Arc<ServerState>> {
        self.state.load()
    }

    /// Tells of every change of the state from now on.
    pub(crate) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Tells of every change of which connections it lets in, from now on.
    pub(crate) fn security_changes(&self) -> watch::Receiver<()> {
        self.security.subscribe()
    }

    fn is_at(&self, local: SocketAddr) -> bool {
        self.address == local || (self.address.port() == local.port() && self.address.ip().is_unspecified())
    }

    fn publish(&self, state: ServerState) {
        match &state {
            ServerState::Serving(_) if !matches!(**self.state.load(), ServerState::Serving(_)) => {
                tracing::info!(listener = %self.name, address = %self.address, "serving");
            }
            ServerState::NotServing(reason) => {
                tracing::warn!(listener = %self.name, address = %self.address, %reason, "not serving");
            }
            _ => {}
        }
        let before = self.state.swap(Arc::new(state));
        self.news.send_replace(());
        if !admits_alike(&before, &self.state.load()) {
            self.security.send_replace(());
        }
    }
}

/// Whether two states let the same connections in: then those that there are need not look.
fn admits_alike(before: &ServerState, now: &ServerState) -> bool {
    let (ServerState::Serving(before), ServerState::Serving(now)) = (before, now) else { return false };
    let (mut old, mut new) = (before.listener.chains(), now.listener.chains());
    std::iter::from_fn(|| match (old.next(), new.next()) {
        (None, None) => None,
        (Some(old), Some(new)) => Some(old.matches == new.matches && old.tls == new.tls),
        _ => Some(false),
    })
    .all(|is_alike| is_alike)
        && before.verifies_like(now)
}

/// A part of a listener: the socket or one of its connections. The last one to go takes it off the list.
#[derive(Clone, Debug)]
pub(crate) struct ListenerGuard(Arc<Whole>);

#[derive(Debug)]
struct Whole {
    listener: Arc<ListenerState>,
    listeners: Arc<Listeners>,
}

impl ListenerGuard {
    pub(crate) fn listener(&self) -> &Arc<ListenerState> {
        &self.0.listener
    }

    pub(crate) fn listeners(&self) -> &Arc<Listeners> {
        &self.0.listeners
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        self.listeners.remove(&self.listener);
    }
}

/// Follows what the configuration says of a listener until the drain begins or the task is aborted; the
/// subscription ends with it, and the last state stays.
pub(crate) fn watch_listener(
    listeners: &Arc<Listeners>,
    handle: ServerHandle,
    address: SocketAddr,
    drain: &Drain,
) -> (ListenerGuard, WatchTask) {
    let listener = ListenerState::new(handle.listener().clone(), address);
    listeners.add(&listener);
    let part = ListenerGuard(Arc::new(Whole { listener: Arc::clone(&listener), listeners: Arc::clone(listeners) }));
    let (listeners, mut phase) = (Arc::clone(listeners), drain.watch());
    let task = tokio::spawn(async move {
        let mut state = handle.state();
        let mut news = true;
        while news {
            let next = state.borrow_and_update().clone();
            listener.publish(next);
            listeners.assess();
            news = tokio::select! {
                changed = state.changed() => changed.is_ok(),
                () = reached(&mut phase, Phase::LameDuck) => false,
            };
        }
    });
    (part, WatchTask(task))
}

/// The task that follows a listener; ends when dropped.
#[derive(Debug)]
pub(crate) struct WatchTask(tokio::task::JoinHandle<()>);

impl Drop for WatchTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(address: &str) -> Arc<ListenerState> {
        ListenerState::new(address.into(), address.parse().unwrap())
    }

    #[test]
    fn a_request_finds_its_listener_by_its_connection() {
        let any = listener("0.0.0.0:80");
        let one = listener("127.0.0.1:81");
        let connection = |local: &str| ConnectionInfo::new(local.parse().unwrap(), "1.2.3.4:5".parse().unwrap());
        let cases = [
            (vec![&any, &one], None, None),
            (vec![], None, None),
            (vec![&any, &one], Some("127.0.0.1:80"), Some(&any)),
            (vec![&any, &one], Some("127.0.0.1:81"), Some(&one)),
            (vec![&one], Some("127.0.0.2:81"), None),
            (vec![&any, &one], Some("127.0.0.1:82"), None),
        ];
        for (all, local, expected) in cases {
            let all: Vec<_> = all.into_iter().cloned().collect();
            let found = find(&all, local.map(connection).as_ref()).ok();
            assert_eq!(found.map(|it| it.address), expected.map(|it| it.address), "{local:?} among {all:?}");
        }
    }
}
