//! Targets and their views: what the application asks for on one side, what a source learns on the other.
//!
//! The application holds a [`Store`]: it looks a target up and finds the current view, or waits for the first.
//! A [`Source`] holds the [`Sink`]: it is told what is wanted, applies what it learns, and every target that is
//! complete gets a new view by one swap (gRFC A74). Nothing that a request does with a view waits for the
//! source; a target's last good view serves until a better one is complete.

mod assemble;
mod gateway;
mod server;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Notify, watch};

use crate::calls::Recorder;
use crate::client_status::StatusHandle;
use crate::error::{ErrorKind, Invalid, MeshError};
use crate::id::{ListenerName, Target};
use crate::live_trace::LiveTraces;
use crate::model::RouteSource;
use crate::resources::{Progress, Update};
use crate::state::{Decided, HealthNews, Limited, Subchannels, Traffic, lock};
use crate::tls::Certificates;
use crate::view::{Extensions, TargetView};
use crate::workload::{Introductions, OwnWorkload, Workload};

pub use server::{ChainView, Edge, Secured, ServerState, ServerView};

use assemble::Assembly;

/// How many targets one store remembers, so that a caller who makes host names up cannot exhaust memory. Then others make room
/// for new ones, a tenth at a time: made-up names have all targets looked at once in a thousand of them.
const MAX_TARGETS: usize = 10_000;

/// How long new targets are refused where none could make room, before all are looked at again.
const ROOM_CHECK: Duration = Duration::from_millis(20);

/// How long a target that nobody asks for is remembered at most.
const LONGEST_IDLE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Where configuration comes from.
pub trait Source: Send + Sync + 'static {
    /// The listener of a target.
    fn listener_name(&self, target: &Target) -> Result<ListenerName, Invalid>;

    /// The listener of a server that is bound to this address.
    fn server_listener_name(&self, address: SocketAddr) -> Result<ListenerName, Invalid>;

    /// Where it tells what it knows and how it came by it. Nothing, unless a source says otherwise.
    fn status(&self) -> StatusHandle {
        StatusHandle::default()
    }

    /// Who this process is, to telemetry. Nobody, unless a source says otherwise.
    fn workload(&self) -> Workload {
        Workload::default()
    }

    /// What its node says of itself to the control plane. Nothing, unless a source says otherwise.
    fn node_metadata(&self) -> serde_json::Map<String, serde_json::Value> {
        serde_json::Map::new()
    }

    /// How it tells others who it is. It does not, unless a source says otherwise.
    fn introductions(&self) -> Option<Introductions> {
        None
    }

    /// Learns until the last [`Store`] is gone. It decodes and compiles on the thread that polls it, and may keep it busy
    /// for a while: run it on one that has nothing else to do, as a mesh does.
    fn run(self: Arc<Self>, sink: Sink) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// The application's side: targets, views, server listeners. Cheap to clone; when the last clone is gone the
/// source stops.
#[derive(Clone)]
pub struct Store {
    shared: Arc<StoreState>,
    _alive: Arc<Alive>,
}

struct StoreState {
    targets: ArcSwap<Entries>,
    onward: Arc<Mutex<Onward>>,
    commands: Mutex<Vec<Command>>,
    news: Arc<Notify>,
    closed: AtomicBool,
    source: Arc<dyn Source>,
    certificates: Arc<Certificates>,
    own: Arc<OwnWorkload>,
    calls: Arc<Recorder>,
    live_traces: Arc<LiveTraces>,
    traffic: Arc<Traffic>,
    limited: Arc<Limited>,
    subchannels: Arc<Subchannels>,
    decided: Decided,
    idle: Duration,
    most_targets: usize,
    /// Goes up with each target that is added, and each look for idle ones: targets keep the one of their last use.
    turn: Arc<AtomicU64>,
    /// Until when there is no room for new targets.
    full_until: Mutex<Option<tokio::time::Instant>>,
}

impl StoreState {
    /// The targets that make room for new ones where no more are remembered. Those that lead nowhere go first, then those that
    /// were not used for longest; none that somebody holds.
    fn room(&self, present: &Entries) -> Vec<Target> {
        let (now, mut full_until) = (tokio::time::Instant::now(), lock(&self.full_until));
        if present.len() < self.most_targets || full_until.is_some_and(|until| now < until) {
            return Vec::new();
        }
        // Held by the published map, and by the assembly or the command for it: anyone else still wants it.
        let free = present.values().filter(|entry| Arc::strong_count(entry) <= 2);
        let mut free: Vec<_> = free.map(|entry| (entry.leads_somewhere(), entry.last_used(), &entry.target)).collect();
        free.sort_unstable_by_key(|(leads_somewhere, last_used, _)| (*leads_somewhere, *last_used));
        free.truncate((self.most_targets / 10).max(1));
        *full_until = free.is_empty().then(|| now + ROOM_CHECK);
        free.into_iter().map(|(_, _, target)| target.clone()).collect()
    }
}

/// How often it is looked whether requests still hold views that others have taken the place of.
const RETIRED_CHECK: Duration = Duration::from_millis(100);

/// Looked into once per request, by names that callers may choose: a fast hash with a random seed.
type Entries = HashMap<Box<str>, Arc<TargetEntry>, foldhash::fast::RandomState>;

/// The listeners that a gateway has, and where each is to be bound.
pub type GatewayListeners = BTreeMap<ListenerName, SocketAddr>;

/// Where requests of gateways go on to, by their routes.
type Onward = HashMap<Arc<str>, Arc<TargetEntry>>;

enum Command {
    AddTarget(Arc<TargetEntry>),
    DropTarget(Target),
    AddServer { listener: ListenerName, address: SocketAddr, state: watch::Sender<ServerState>, is_gateway: bool },
    AddGateway(watch::Sender<GatewayListeners>),
    DropServer(ListenerName, SocketAddr),
}

/// Tells the source when the last store is gone.
struct Alive(Arc<StoreState>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.news.notify_one();
    }
}

/// One target: its view now, and a way to wait for the first one.
pub struct TargetEntry {
    target: Target,
    origin: Origin,
    view: ArcSwapOption<TargetView>,
    news: Notify,
    /// The store's turn at its last use.
    used: AtomicU64,
    turn: Arc<AtomicU64>,
    status: StatusHandle,
}

/// What the view of a target is made of.
#[derive(Debug)]
enum Origin {
    /// A client's listener.
    Listener(ListenerName),
    /// Routes of a gateway.
    Routes(RouteSource),
}

impl TargetEntry {
    fn new(target: Target, origin: Origin, status: StatusHandle, turn: Arc<AtomicU64>) -> Self {
        let (view, news, used) = (ArcSwapOption::empty(), Notify::new(), AtomicU64::new(turn.load(Ordering::Relaxed)));
        TargetEntry { target, origin, view, news, used, turn, status }
    }

    /// Where the requests that come to a gateway by these routes go on to.
    fn onward(place: &str, routes: RouteSource) -> Self {
        TargetEntry::new(Target::from(place), Origin::Routes(routes), StatusHandle::default(), Arc::default())
    }

    /// Whose it is.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether it is where the requests go on to that come to a gateway.
    pub fn is_onward(&self) -> bool {
        matches!(self.origin, Origin::Routes(_))
    }

    /// The current view, if there is one.
    #[inline]
    pub fn view(&self) -> Option<Arc<TargetView>> {
        // Written only when it changes: readers on other cores keep the line shared.
        let turn = self.turn.load(Ordering::Relaxed);
        if self.last_used() != turn {
            self.used.store(turn, Ordering::Relaxed);
        }
        self.view.load_full()
    }

    #[inline]
    fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether it is known to be more than a name.
    fn leads_somewhere(&self) -> bool {
        self.peek().is_some_and(|view| !view.is_failure())
    }

    /// The current view, without counting as a use of the target.
    pub fn peek(&self) -> Option<Arc<TargetView>> {
        self.view.load_full()
    }

    /// The current view, or the first one once it is there.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownTarget`] when there is none by `deadline`: nothing has answered yet, and why if a server could
    /// not be reached.
    pub async fn wait(&self, deadline: Instant) -> Result<Arc<TargetView>, MeshError> {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            if let Some(view) = self.view() {
                return Ok(view);
            }
            if tokio::time::timeout_at(deadline.into(), news).await.is_err() {
                let silence = self.status.get().silence(Instant::now());
                let what = match &self.origin {
                    Origin::Listener(name) => format!("listener {name}"),
                    Origin::Routes(_) => self.target.to_string(),
                };
                let detail = format!("{what}: no configuration yet ({silence})");
                return Err(MeshError::new(ErrorKind::UnknownTarget, detail));
            }
        }
    }

    /// Waits until the view is another than this one: for ever, if it stays. Can be dropped at any time.
    pub async fn changed(&self, present: &Arc<TargetView>) -> Arc<TargetView> {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            match self.view() {
                Some(view) if !Arc::ptr_eq(&view, present) => return view,
                _ => news.await,
            }
        }
    }

    /// Returns the view before.
    fn publish(&self, view: Arc<TargetView>) -> Option<Arc<TargetView>> {
        let before = self.view.swap(Some(view));
        self.news.notify_waiters();
        before
    }
}

impl fmt::Debug for TargetEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TargetEntry({})", self.target)
    }
}

impl Store {
    /// A store and the sink that fills it; run the source with the sink. A target that nobody asked for during `idle`,
    /// or for a year, is forgotten.
    pub fn new(source: Arc<dyn Source>, extensions: Extensions, idle: Duration) -> (Store, Sink) {
        Store::of_size(MAX_TARGETS, source, extensions, idle)
    }

    fn of_size(most_targets: usize, source: Arc<dyn Source>, extensions: Extensions, idle: Duration) -> (Store, Sink) {
        let certificates = Arc::<Certificates>::default();
        let news = Arc::new(Notify::new());
        let health = Arc::new(HealthNews::new(Arc::clone(&news)));
        let onward = Arc::<Mutex<Onward>>::default();
        let own = Arc::new(OwnWorkload::new(source.workload()));
        let (of_certificates, of_own) = (Arc::clone(&certificates), Arc::clone(&own));
        let assembly = Assembly::new(extensions, of_certificates, of_own, health, Arc::clone(&onward));
        let shared = Arc::new(StoreState {
            certificates,
            own,
            calls: Arc::default(),
            live_traces: Arc::default(),
            traffic: Arc::clone(assembly.traffic()),
            limited: Arc::clone(assembly.limited()),
            subchannels: Arc::clone(assembly.subchannels()),
            decided: Decided::default(),
            targets: ArcSwap::default(),
            onward,
            commands: Mutex::default(),
            news,
            closed: AtomicBool::new(false),
            source,
            // A clock cannot add any duration to the present.
            idle: idle.min(LONGEST_IDLE),
            most_targets,
            turn: Arc::default(),
            full_until: Mutex::default(),
        });
        let alive = Arc::new(Alive(Arc::clone(&shared)));
        let sink = Sink { shared: Arc::clone(&shared), assembly, idle_check: None, idle_since: 0 };
        (Store { shared, _alive: alive }, sink)
    }

    /// What becomes of requests, for reports of load.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.shared.traffic
    }

    /// Why nothing has answered yet: what keeps the source's servers from it, and the workload from its certificate.
    pub fn silence(&self) -> String {
        let silence = self.shared.source.status().get().silence(Instant::now());
        match self.shared.certificates.lack() {
            Some(lack) if !silence.contains(&lack) => format!("{silence}; {lack}"),
            _ => silence,
        }
    }

    /// What this process shows of itself where TLS is asked for.
    pub fn certificates(&self) -> &Arc<Certificates> {
        &self.shared.certificates
    }

    /// Who this process is to telemetry.
    pub fn own(&self) -> &Arc<OwnWorkload> {
        &self.shared.own
    }

    /// Who called the servers of this process, where the control plane wants to know.
    pub fn calls(&self) -> &Arc<Recorder> {
        &self.shared.calls
    }

    /// Whom policies have refused, or would have.
    pub fn decided(&self) -> &Decided {
        &self.shared.decided
    }

    /// What became of requests that have limits.
    pub fn limited(&self) -> &Arc<Limited> {
        &self.shared.limited
    }

    /// Connections by the names of gRPC, where somebody wants to know.
    pub fn subchannels(&self) -> &Arc<Subchannels> {
        &self.shared.subchannels
    }

    /// Which requests are followed through the mesh, where somebody asks why they go where they go.
    pub fn live_traces(&self) -> &Arc<LiveTraces> {
        &self.shared.live_traces
    }

    /// The view of a target, if somebody asked for it before and it is there. Allocates nothing.
    pub fn view(&self, target: &str) -> Option<Arc<TargetView>> {
        self.shared.targets.load().get(target)?.view()
    }

    /// The entry of a target, if somebody asked for it before. Allocates nothing.
    pub fn find(&self, target: &str) -> Option<Arc<TargetEntry>> {
        self.shared.targets.load().get(target).cloned()
    }

    /// The entry of a target; a new one is subscribed to. 10,000 are remembered: then those that nobody holds make room, and go
    /// first where they lead nowhere.
    ///
    /// # Errors
    /// [`ErrorKind::BadRequest`] if the target cannot be named, [`ErrorKind::Overflow`] where 10,000 targets are held.
    pub fn target(&self, target: &str) -> Result<Arc<TargetEntry>, MeshError> {
        if let Some(entry) = self.find(target) {
            return Ok(entry);
        }
        let target = Target::from(target);
        let name = self.shared.source.listener_name(&target);
        let listener =
            name.map_err(|invalid| MeshError::new(ErrorKind::BadRequest, format!("target {target}: {invalid}")))?;
        let mut commands = lock(&self.shared.commands);
        if let Some(entry) = self.find(target.as_str()) {
            return Ok(entry);
        }
        let present = self.shared.targets.load();
        let (dropped, most) = (self.shared.room(&present), self.shared.most_targets);
        if present.len() - dropped.len() >= most {
            let why = format!("target {target}: {most} targets are in use, and no more are remembered");
            return Err(MeshError::new(ErrorKind::Overflow, why));
        }
        let mut targets = Entries::clone(&present);
        // The former map holds its targets, too: it is to be gone when the next one looks for room.
        drop(present);
        for target in dropped {
            targets.remove(target.as_str());
            commands.push(Command::DropTarget(target));
        }
        self.shared.turn.fetch_add(1, Ordering::Relaxed);
        let (origin, turn) = (Origin::Listener(listener), Arc::clone(&self.shared.turn));
        let entry = Arc::new(TargetEntry::new(target.clone(), origin, self.shared.source.status(), turn));
        targets.insert(target.as_str().into(), Arc::clone(&entry));
        self.shared.targets.store(Arc::new(targets));
        commands.push(Command::AddTarget(Arc::clone(&entry)));
        drop(commands);
        self.shared.news.notify_one();
        Ok(entry)
    }

    /// A look at all targets that does not keep the store alive.
    pub fn targets(&self) -> Targets {
        Targets(Arc::clone(&self.shared))
    }

    /// Subscribes to the listener of a server that is bound to `address`, until the handle is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::BadRequest`] if the source has no name for it.
    pub fn server(&self, address: SocketAddr) -> Result<ServerHandle, MeshError> {
        let name = self.shared.source.server_listener_name(address);
        let listener =
            name.map_err(|invalid| MeshError::new(ErrorKind::BadRequest, format!("server {address}: {invalid}")))?;
        Ok(self.add_server(listener, address, false))
    }

    /// The listeners that the control plane has for a gateway, as they come and go. All that there are are subscribed to, for as
    /// long as the store lives.
    pub fn gateway(&self) -> watch::Receiver<GatewayListeners> {
        let (sender, listeners) = watch::channel(GatewayListeners::new());
        self.command(Command::AddGateway(sender));
        listeners
    }

    /// Subscribes to one of a [gateway](Store::gateway)'s listeners, which is to be bound to `address`, until the handle is dropped.
    pub fn gateway_server(&self, listener: ListenerName, address: SocketAddr) -> ServerHandle {
        self.add_server(listener, address, true)
    }

    fn add_server(&self, listener: ListenerName, address: SocketAddr, is_gateway: bool) -> ServerHandle {
        let (state, watched) = watch::channel(ServerState::Waiting);
        self.command(Command::AddServer { listener: listener.clone(), address, state, is_gateway });
        ServerHandle { store: self.clone(), listener, address, state: watched }
    }

    fn command(&self, command: Command) {
        lock(&self.shared.commands).push(command);
        self.shared.news.notify_one();
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({} targets)", self.shared.targets.load().len())
    }
}

/// A look at all targets of a store.
#[derive(Clone)]
pub struct Targets(Arc<StoreState>);

impl Targets {
    /// The targets that are known now. Each is held for as long as it is looked at: one that nobody holds may make room.
    pub fn list(&self) -> impl Iterator<Item = Arc<TargetEntry>> + use<> {
        let mut all: Vec<_> = self.0.targets.load().values().map(Arc::downgrade).collect();
        all.extend(lock(&self.0.onward).values().map(Arc::downgrade));
        all.into_iter().filter_map(|entry| entry.upgrade())
    }
}

impl fmt::Debug for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list().map(|entry| entry.target.clone())).finish()
    }
}

/// A server's subscription to its listener. Dropping it unsubscribes: the control plane then stops sending
/// clients to this server.
#[derive(Debug)]
pub struct ServerHandle {
    store: Store,
    listener: ListenerName,
    address: SocketAddr,
    state: watch::Receiver<ServerState>,
}

impl ServerHandle {
    /// The listener's name.
    pub fn listener(&self) -> &ListenerName {
        &self.listener
    }

    /// Whether to serve, and how; changes with the configuration.
    pub fn state(&self) -> watch::Receiver<ServerState> {
        self.state.clone()
    }
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.store.command(Command::DropServer(self.listener.clone(), self.address));
    }
}

/// The source's side of a store.
pub struct Sink {
    shared: Arc<StoreState>,
    assembly: Assembly,
    /// When idle targets are looked for next: kept here, since `changed` is dropped at every other event.
    idle_check: Option<tokio::time::Instant>,
    /// The store's turn at the last such look.
    idle_since: u64,
}

impl Sink {
    /// Takes in what was learned, gives every target that is complete its new view, and says what is wanted
    /// next. Synchronous: call it on the source's own thread.
    pub fn apply(&mut self, update: Update) -> Progress {
        self.assembly.apply(update);
        self.assembly.progress()
    }

    /// Where a source that has an authority to ask puts the workload's credentials, once they are
    /// [wanted](Certificates::wanted).
    pub fn certificates(&self) -> &Arc<Certificates> {
        &self.shared.certificates
    }

    /// Who called the servers of this process: a source that can tell turns it on where somebody wants to be told.
    pub fn calls(&self) -> &Arc<Recorder> {
        &self.shared.calls
    }

    /// Which requests are followed: a source that can be asked to says so there.
    pub fn live_traces(&self) -> &Arc<LiveTraces> {
        &self.shared.live_traces
    }

    /// What becomes of requests, for a source whose control plane wants reports of load.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.shared.traffic
    }

    /// What the application adds to the built-in parts: names beyond these mean nothing to it.
    pub fn extensions(&self) -> &Extensions {
        self.assembly.extensions()
    }

    /// Waits until the application wants other things than before; `None` when the last store is gone. Nothing
    /// is lost if the future is dropped. Meanwhile it keeps views up with what becomes of their endpoints: poll it whenever
    /// nothing else is to be done.
    pub async fn changed(&mut self) -> Option<Progress> {
        loop {
            if self.shared.closed.load(Ordering::Acquire) {
                return None;
            }
            let commands = std::mem::take(&mut *lock(&self.shared.commands));
            for command in commands {
                match command {
                    Command::AddTarget(entry) => self.assembly.add_target(entry),
                    Command::DropTarget(target) => self.assembly.drop_target(&target),
                    Command::AddServer { listener, address, state, is_gateway } => {
                        self.assembly.add_server(listener, address, state, is_gateway);
                    }
                    Command::AddGateway(listeners) => self.assembly.add_gateway(listeners),
                    Command::DropServer(listener, address) => self.assembly.drop_server(&listener, address),
                }
            }
            self.assembly.follow_health();
            let has_retired = self.assembly.free_retired();
            let progress = self.assembly.progress();
            if !progress.is_empty() {
                return Some(progress);
            }
            let idle_check = *self.idle_check.get_or_insert_with(|| tokio::time::Instant::now() + self.shared.idle);
            tokio::select! {
                () = self.shared.news.notified() => {}
                () = tokio::time::sleep(RETIRED_CHECK), if has_retired => {}
                () = tokio::time::sleep_until(idle_check) => {
                    self.idle_check = None;
                    self.forget_idle();
                }
            }
        }
    }

    /// Forgets targets that nobody used since the last time and nobody holds.
    fn forget_idle(&mut self) {
        let _commands = lock(&self.shared.commands);
        let present = self.shared.targets.load_full();
        let mut targets = Entries::clone(&present);
        drop(present);
        let now = self.shared.turn.fetch_add(1, Ordering::Relaxed) + 1;
        let since = std::mem::replace(&mut self.idle_since, now);
        targets.retain(|_, entry| {
            // Held by this map, the published map and the assembly: anyone else still wants it.
            let held = Arc::strong_count(entry) > 3;
            let keep = entry.last_used() >= since || held;
            if !keep {
                self.assembly.drop_target(&entry.target);
            }
            keep
        });
        self.shared.targets.store(Arc::new(targets));
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
