//! What outlives a configuration: counts and connections, keyed by identity and carried into the next view.
//!
//! A view holds `Arc`s of these; the registry holds only weak ones. So state lives exactly as long as some
//! view or some request in flight refers to it, and an update that mentions the same endpoint finds it again. Only
//! endpoints that callers name themselves, which no view can hold, are held here for a while.

mod checks;
mod decided;
mod health;
mod leaving;
mod limited;
mod load;
mod parts;
mod peer;
mod retries;
mod subchannels;
mod traffic;
mod usage;

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};

use crate::health_check::Checks;
use crate::id::{ClusterName, EndpointId, Target};
use crate::list::List;
use crate::model::{CircuitBreakers, ClusterTls, OutlierDetection};
use crate::outlier::{Detector, Ejections, Outcome, Reason, Record};
use crate::tls::Certificates;

pub use checks::CheckedEndpoint;
pub use decided::{Decided, Decision, NO_RULE};
pub use health::HealthNews;
pub use leaving::Leaving;
pub use limited::{LimitCounts, Limited};
pub use load::{LoadWeight, LoadWeightCounts};
pub use parts::{EndpointPart, EndpointParts};
pub use retries::{RetryPermit, RetryPrice, TooManyRetries};
pub use subchannels::{Backend, Disconnect, Ending, Subchannel, SubchannelAttempt, SubchannelCounts, Subchannels};
pub use traffic::{ClusterTraffic, LocalityFigures, ReportedTry, Traffic};
pub use usage::{ConnectionPermit, Freed, HostConnections, PendingPermit, Usage};

use health::{Reach, Teller};
use load::{Latency, Load};
pub(crate) use parts::{NewPart, Wanted};
use traffic::LocalityTraffic;

/// How a cluster is secured, and which of its states that is.
type KnownTls = (u64, ClusterTls);

/// What all states of a cluster share, one after the other: how it is secured by now, for those who hold connections to it,
/// and what it has under way.
#[derive(Debug, Default)]
struct Shared {
    told: watch::Sender<KnownTls>,
    marks: Mutex<Marks>,
    usage: Usage,
    /// Of requests, where the limit of retries goes by them.
    beginnings: Mutex<retries::Beginnings>,
    reserve: retries::Reserve,
    teller: Teller,
    /// The target that led to it first.
    target: OnceLock<Target>,
    subchannels: Arc<Subchannels>,
    /// Whether [`States::tell`] has anything to tell, of whichever cluster.
    untold: Arc<AtomicBool>,
}

/// Which endpoints of a cluster are marked for mutual TLS by now.
#[derive(Debug, Default)]
struct Marks {
    by_endpoint: HashMap<EndpointId, Weak<Mark>>,
    /// Who is marked as soon as that is in force.
    next: Vec<Arc<Mark>>,
}

/// Whether an endpoint is marked for mutual TLS by now.
#[derive(Debug, Default)]
struct Mark {
    is_set: AtomicBool,
    changed: Notify,
}

impl Shared {
    /// The mark of an endpoint, which all of its states share.
    fn mark(&self, id: &EndpointId) -> Arc<Mark> {
        let mut marks = lock(&self.marks);
        if let Some(mark) = marks.by_endpoint.get(id).and_then(Weak::upgrade) {
            return mark;
        }
        if marks.by_endpoint.len().is_power_of_two() {
            marks.by_endpoint.retain(|_, mark| mark.strong_count() > 0);
        }
        let mark = Arc::<Mark>::default();
        marks.by_endpoint.insert(id.clone(), Arc::downgrade(&mark));
        mark
    }

    /// Takes in which endpoints are to be marked. What allows more than before counts at once.
    fn note(&self, news: &[NewPart<'_>]) {
        let mut marks = lock(&self.marks);
        let next = &mut marks.next;
        for (endpoint, state) in news.iter().flat_map(|(_, part)| part.iter()) {
            let (mark, is_set) = (&state.mark, state.mark.is_set.load(Ordering::Acquire));
            if endpoint.mutual_tls && !is_set {
                next.push(Arc::clone(mark));
                self.untold.store(true, Ordering::Relaxed);
            } else if !endpoint.mutual_tls {
                if is_set {
                    mark.is_set.store(false, Ordering::Release);
                }
                next.retain(|marked| !Arc::ptr_eq(marked, mark));
            }
        }
    }

    /// Tells that what was noted is in force.
    fn tell_marks(&self) {
        for mark in lock(&self.marks).next.drain(..) {
            mark.is_set.store(true, Ordering::Release);
            mark.changed.notify_waiters();
        }
    }
}

/// How an endpoint is to be secured after its state was made: for whoever holds a connection to it.
#[derive(Debug)]
pub struct TlsChanges {
    known: KnownTls,
    is_marked: bool,
    told: watch::Receiver<KnownTls>,
    mark: Arc<Mark>,
}

impl TlsChanges {
    /// Waits until it is secured in another way than is known here: how its cluster is by now, and whether the endpoint is
    /// marked. Cancel safe.
    pub async fn next(&mut self) -> (ClusterTls, bool) {
        loop {
            let mut marked = pin!(self.mark.changed.notified());
            marked.as_mut().enable();
            let (told, is_marked) = (self.told.borrow_and_update().clone(), self.mark.is_set.load(Ordering::Acquire));
            let is_news = told.0 > self.known.0;
            if is_news || is_marked != self.is_marked {
                self.is_marked = is_marked;
                if is_news {
                    self.known = told;
                }
                return (self.known.1.clone(), is_marked);
            }
            tokio::select! {
                () = marked => {}
                changed = self.told.changed() => if changed.is_err() {
                    // The cluster is gone, and nothing more will be said of it.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// The state of one endpoint of one cluster.
pub struct EndpointState {
    id: EndpointId,
    in_flight: AtomicU32,
    leaving: AtomicU32,
    mutual_tls: bool,
    new_since: OnceLock<Instant>,
    certificates: Arc<Certificates>,
    tls: KnownTls,
    shared: Arc<Shared>,
    mark: Arc<Mark>,
    connections: Arc<HostConnections>,
    reach: Reach,
    record: Arc<Record>,
    checks: Checks,
    load: Load,
    latency: Latency,
    known: peer::Known,
    traffic: ArcSwapOption<LocalityTraffic>,
    /// Whose it is and where, in the words of gRPC, where its connections are counted.
    backend: ArcSwapOption<Backend>,
    attachment: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl EndpointState {
    fn new(id: EndpointId, mutual_tls: bool, cluster: &ClusterState) -> Self {
        EndpointState {
            in_flight: AtomicU32::new(0),
            leaving: AtomicU32::new(0),
            mutual_tls,
            new_since: OnceLock::new(),
            certificates: Arc::clone(&cluster.certificates),
            tls: cluster.tls.clone(),
            mark: cluster.shared.mark(&id),
            shared: Arc::clone(&cluster.shared),
            connections: Arc::default(),
            reach: Reach::default(),
            record: Arc::default(),
            checks: Checks::default(),
            load: Load::default(),
            latency: Latency::default(),
            known: peer::Known::default(),
            traffic: ArcSwapOption::empty(),
            backend: ArcSwapOption::empty(),
            id,
            attachment: OnceLock::new(),
        }
    }

    /// Who it is.
    pub fn id(&self) -> &EndpointId {
        &self.id
    }

    /// Whether it is marked for mutual TLS. One whose mark changes has a new state, and so new connections.
    #[inline]
    pub fn is_mutual_tls(&self) -> bool {
        self.mutual_tls
    }

    /// When it was first about to be picked by a policy in which endpoints are new for a while: now, if never before.
    #[inline]
    pub fn new_since(&self, now: Instant) -> Instant {
        *self.new_since.get_or_init(|| now)
    }

    /// What the mesh shows of itself to whoever is dialled.
    pub fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    /// How it is to be secured from then on that this state is not for.
    pub fn tls_changes(&self) -> TlsChanges {
        let (known, mark) = (self.tls.clone(), Arc::clone(&self.mark));
        TlsChanges { known, is_marked: self.mutual_tls, told: self.shared.told.subscribe(), mark }
    }

    /// Requests in flight, counted to the end of the response body.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts a request in; it is counted out when the guard is dropped.
    #[inline]
    pub fn enter(self: &Arc<Self>) -> InFlight {
        self.shared.usage.request(u32::MAX);
        self.entered()
    }

    /// Counts a request in, if the cluster has fewer than `max` in flight.
    #[inline]
    pub fn enter_within(self: &Arc<Self>, max: u32) -> Option<InFlight> {
        self.shared.usage.request(max).then(|| self.entered())
    }

    #[inline]
    fn entered(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { endpoint: Arc::clone(self), is_request: true }
    }

    /// Its connections, as they are counted.
    #[inline]
    pub fn connections(&self) -> &Arc<HostConnections> {
        &self.connections
    }

    /// Permits a connection, if the limits do.
    pub fn open(&self, limits: &CircuitBreakers) -> Option<ConnectionPermit> {
        ConnectionPermit::take(&self.shared, &self.connections, limits)
    }

    /// Permits a request to wait for a connection, if the limits do.
    pub fn wait_for_connection(&self, limits: &CircuitBreakers) -> Option<PendingPermit> {
        PendingPermit::take(&self.shared, limits)
    }

    /// Notes that a limit was in the way of a connection that nobody waits for.
    pub fn note_overflow(&self) {
        self.shared.usage.overflow();
    }

    /// Whether it can be reached, as far as is known: not since a dial failed, until one succeeds.
    #[inline]
    pub fn is_reachable(&self) -> bool {
        !self.reach.is_lost()
    }

    /// Notes that it could not be reached. It gets no requests while others of its cluster can be, and is dialled for a
    /// look after a pause that grows with each failure.
    pub fn note_unreachable(&self, now: Instant, random: &mut fastrand::Rng) {
        if self.reach.lose(now, random) {
            self.forget_load();
            self.shared.usage.lost.fetch_add(1, Ordering::Relaxed);
            self.shared.teller.count_lost(true);
            self.shared.teller.tell();
        }
    }

    /// Notes that it can be reached.
    #[inline]
    pub fn note_reachable(&self) {
        if self.reach.find() {
            self.shared.teller.count_lost(false);
            self.shared.teller.tell();
        }
    }

    /// Whether it failed so much that it gets no requests for a while.
    #[inline]
    pub fn is_ejected(&self) -> bool {
        self.record.is_ejected()
    }

    /// What a data plane keeps with the endpoint, such as its connection pool: made once, dropped with it.
    /// `None` if something of another type was attached before.
    #[inline]
    pub fn attachment<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Option<&T> {
        self.attachment.get_or_init(|| Box::new(make())).downcast_ref()
    }
}

impl Drop for EndpointState {
    fn drop(&mut self) {
        if self.reach.is_lost() {
            self.shared.teller.count_lost(false);
        }
    }
}

impl fmt::Debug for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ejected = if self.is_ejected() { ", ejected" } else { "" };
        let reach = if self.is_reachable() { "" } else { ", cannot be reached" };
        write!(f, "EndpointState({}, {} in flight{ejected}{reach})", self.id, self.in_flight())
    }
}

/// One request in flight at an endpoint.
#[derive(Debug)]
pub struct InFlight {
    endpoint: Arc<EndpointState>,
    /// Whether it counts among the requests of the cluster.
    is_request: bool,
}

impl InFlight {
    /// The endpoint.
    #[inline]
    pub fn endpoint(&self) -> &Arc<EndpointState> {
        &self.endpoint
    }

    /// The same for a connection whose requests nobody sees: it is a load of its endpoint, and none of the requests that
    /// the cluster may have.
    pub fn of_connection(mut self) -> InFlight {
        if std::mem::take(&mut self.is_request) {
            self.endpoint.shared.usage.requests.leave();
        }
        self
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.is_request {
            self.endpoint.shared.usage.requests.leave();
        }
    }
}

/// The state of one cluster.
#[derive(Debug, Default)]
pub struct ClusterState {
    /// The position of round robin, one for all priorities.
    pub round_robin: AtomicU32,
    /// What is known of the loads of its endpoints, where they are balanced by that.
    pub load_weights: LoadWeightCounts,
    /// By which this client differs from others.
    seed: u64,
    certificates: Arc<Certificates>,
    /// The position is that among the states of the cluster.
    tls: KnownTls,
    shared: Arc<Shared>,
    /// By identity, and by whether they are marked for mutual TLS.
    endpoints: Mutex<HashMap<(EndpointId, bool), Weak<EndpointState>>>,
    /// Endpoints that no view holds.
    visited: Mutex<HashMap<EndpointId, Visited>>,
    outliers: Mutex<Detector>,
    /// Where it is counted what becomes of requests, for reports of load.
    traffic: Arc<Traffic>,
    /// The endpoints of a cluster that has health checks.
    checked: Mutex<Vec<EndpointPart>>,
}

/// An endpoint that a caller named, kept so that the next one finds its connections.
#[derive(Debug)]
struct Visited {
    state: Arc<EndpointState>,
    /// Whether somebody came since the last look.
    used: bool,
    /// As of the last look.
    idle_for: Duration,
}

/// How many endpoints that callers named are kept by a cluster, so that one who makes addresses up cannot exhaust memory.
const MAX_VISITED: usize = 1000;

impl ClusterState {
    /// The state of a cluster whose choices for this client follow from this seed.
    pub fn seeded(seed: u64) -> Self {
        ClusterState { seed, ..ClusterState::default() }
    }

    /// By which this client differs from others.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The state of an endpoint: the present one while anything refers to it, else a new one.
    pub fn endpoint(&self, id: &EndpointId, mutual_tls: bool) -> Arc<EndpointState> {
        let mut endpoints = lock(&self.endpoints);
        let key = (id.clone(), mutual_tls);
        if let Some(state) = endpoints.get(&key).and_then(Weak::upgrade) {
            return state;
        }
        if endpoints.len().is_power_of_two() {
            // Now and then, so that addresses that come and go leave nothing behind.
            endpoints.retain(|_, state| state.strong_count() > 0);
        }
        let state = Arc::new(EndpointState::new(id.clone(), mutual_tls, self));
        endpoints.insert(key, Arc::downgrade(&state));
        state
    }

    /// Takes in which endpoints are to be marked for mutual TLS: those who hold connections are told by [`States::tell`].
    pub(crate) fn note_marks(&self, news: &[NewPart<'_>]) {
        self.shared.note(news);
    }

    /// The state of an endpoint that a caller named and no view holds: kept until it has been idle for as long as
    /// [`ClusterState::pass`] says. Where there are 1,000 the longest idle one makes room; where none is idle, the new one
    /// lasts as long as its requests.
    pub fn visit(&self, id: &EndpointId) -> Arc<EndpointState> {
        let mut visited = lock(&self.visited);
        if let Some(found) = visited.get_mut(id) {
            found.used = true;
            return Arc::clone(&found.state);
        }
        let state = self.endpoint(id, false);
        if visited.len() >= MAX_VISITED {
            // The longest idle one makes room, if there is an idle one.
            let idle = visited.iter().filter(|(_, one)| !one.used && one.state.in_flight() == 0);
            let longest = idle.max_by_key(|(_, one)| one.idle_for).map(|(id, _)| id.clone());
            longest.and_then(|id| visited.remove(&id));
        }
        if visited.len() < MAX_VISITED {
            let kept = Visited { state: Arc::clone(&state), used: true, idle_for: Duration::ZERO };
            visited.insert(id.clone(), kept);
        }
        state
    }

    /// Counts time that has passed, and gives up visited endpoints that have been idle for longer than `limit`.
    pub fn pass(&self, time: Duration, limit: Duration) {
        let idle = |_: &EndpointId, endpoint: &mut Visited| {
            let used = std::mem::take(&mut endpoint.used) || endpoint.state.in_flight() > 0;
            endpoint.idle_for = if used { Duration::ZERO } else { endpoint.idle_for.saturating_add(time) };
            endpoint.idle_for > limit
        };
        let given_up: Vec<_> = lock(&self.visited).extract_if(idle).collect();
        // Connections close here, after the lock.
        drop(given_up);
    }

    /// What it has under way.
    pub fn usage(&self) -> &Usage {
        &self.shared.usage
    }

    /// Notes how a try at one of its endpoints ended, and puts the endpoint out if that was too much.
    pub fn note_outcome(
        &self,
        config: &OutlierDetection,
        endpoint: &EndpointState,
        outcome: Outcome,
        now: impl FnOnce() -> Instant,
        random: &mut fastrand::Rng,
    ) {
        let reasons = endpoint.record.note(config, outcome);
        if reasons == [None, None] {
            return;
        }
        let (now, mut outliers) = (now(), lock(&self.outliers));
        for reason in reasons.into_iter().flatten() {
            if outliers.eject(config, &endpoint.record, reason, now, random) {
                tracing::warn!(endpoint = %endpoint.id, ?reason, "an endpoint is ejected: it gets no requests for a while");
                self.shared.teller.tell();
            }
        }
    }

    /// Compares its endpoints and lets those back whose time is over, where an interval is. When the next one is.
    pub fn sweep(&self, config: &OutlierDetection, now: Instant, random: &mut fastrand::Rng) -> Instant {
        let mut outliers = lock(&self.outliers);
        match outliers.next_sweep() {
            Some(due) if now < due => return due,
            // The first interval begins.
            None => outliers.begin(config, now),
            Some(_) => {
                if outliers.sweep(config, now, random) {
                    self.shared.teller.tell();
                }
            }
        }
        outliers.next_sweep().unwrap_or(now + config.interval.min(LONGEST_SWEEP))
    }

    /// It has no outlier detection any more: whoever is out is back.
    pub(crate) fn end_detection(&self) {
        lock(&self.outliers).end();
    }

    /// The endpoints that there are, as its outlier detection knows them.
    pub(crate) fn set_hosts<'p>(&self, parts: impl Iterator<Item = &'p EndpointPart>) {
        let records = List::of_parts(parts.map(|part| Arc::clone(part.records())));
        lock(&self.outliers).set_hosts(records);
    }

    /// How often anything was told of the health of its endpoints: as long as that is what it was, so are they.
    pub(crate) fn told(&self) -> u64 {
        self.shared.teller.told()
    }

    /// How many endpoints were ejected since the start, and how often one was not, since too many were out.
    pub fn ejections(&self) -> (u64, u64) {
        let outliers = lock(&self.outliers);
        (outliers.ejections(), outliers.overflows())
    }

    /// The same by why endpoints were taken for outliers, with those that only chance kept in.
    pub fn ejections_by_reason(&self) -> BTreeMap<Reason, Ejections> {
        lock(&self.outliers).by_reason().clone()
    }

    /// The endpoints, `most` of them, that cannot be reached and are to be dialled for a look by now.
    pub fn to_look_for(&self, now: Instant, most: usize) -> Vec<Arc<EndpointState>> {
        let mut due = Vec::new();
        if self.has_unreachable() {
            self.each(|endpoint| {
                if due.len() < most && endpoint.reach.is_due(now) {
                    due.push(Arc::clone(endpoint));
                }
            });
        }
        due
    }

    /// Whether some endpoint cannot be reached.
    pub fn has_unreachable(&self) -> bool {
        self.shared.teller.lost() > 0
    }

    /// Shows every endpoint that is in use.
    pub fn each(&self, mut look: impl FnMut(&Arc<EndpointState>)) {
        let endpoints: Vec<_> = lock(&self.endpoints).values().filter_map(Weak::upgrade).collect();
        endpoints.iter().for_each(&mut look);
    }

    /// How many endpoints are remembered.
    pub fn len(&self) -> usize {
        lock(&self.endpoints).len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An interval that is longer is looked at in between.
const LONGEST_SWEEP: Duration = Duration::from_secs(3600);

/// All state of a mesh.
#[derive(Default)]
pub struct States {
    certificates: Arc<Certificates>,
    news: Arc<HealthNews>,
    traffic: Arc<Traffic>,
    limited: Arc<Limited>,
    subchannels: Arc<Subchannels>,
    untold: Arc<AtomicBool>,
    clusters: Mutex<HashMap<ClusterName, Kept>>,
    filters: Mutex<HashMap<FilterKey, Weak<dyn Any + Send + Sync>>>,
}

/// What is kept of a cluster.
struct Kept {
    tls: KnownTls,
    shared: Arc<Shared>,
    state: Weak<ClusterState>,
}

/// Whose state it is: the place in the configuration where the filter is configured, its name there, and the type.
type FilterKey = (Box<str>, Arc<str>, TypeId);

/// Where one filter keeps what is to survive the next push: buckets, caches, the circuit of a call-out. Found again by
/// the filter's name and the place where it is configured: the listener, or the virtual host, route or weighted cluster
/// that overrides it, by name. A nameless route goes by its position: give it a name to keep its state where it is.
#[derive(Clone, Copy, Debug)]
pub struct FilterState<'s> {
    states: &'s States,
    place: &'s str,
    name: &'s Arc<str>,
}

impl FilterState<'_> {
    /// Where it is counted what became of requests that have limits.
    pub fn limited(&self) -> &Limited {
        &self.states.limited
    }

    /// The state of this type: the present one while anything refers to it, else what `make` makes. The filter that
    /// holds it keeps it.
    pub fn get<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let key = (self.place.into(), Arc::clone(self.name), TypeId::of::<T>());
        if let Some(present) = lock(&self.states.filters).get(&key).and_then(Weak::upgrade)
            && let Ok(present) = present.downcast()
        {
            return present;
        }
        // Not under the lock: it may be made of other state.
        let made = Arc::new(make());
        let state: Arc<dyn Any + Send + Sync> = made.clone();
        let mut filters = lock(&self.states.filters);
        filters.retain(|_, state| state.strong_count() > 0);
        filters.insert(key, Arc::downgrade(&state));
        made
    }
}

impl States {
    /// The state of a mesh that shows these of itself, and tells there whose endpoints are not what they were.
    pub fn new(certificates: Arc<Certificates>, news: Arc<HealthNews>) -> Self {
        States { certificates, news, ..States::default() }
    }

    /// What becomes of requests, for reports of load.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// What became of requests that have limits.
    pub fn limited(&self) -> &Arc<Limited> {
        &self.limited
    }

    /// Connections by the names of gRPC.
    pub fn subchannels(&self) -> &Arc<Subchannels> {
        &self.subchannels
    }

    /// Where it is told whose endpoints are not what they were.
    pub fn news(&self) -> &HealthNews {
        &self.news
    }

    /// What the mesh shows of itself.
    pub fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    /// The state of a cluster: the present one while anything refers to it, else a new one. One that is secured in another
    /// way than before is another cluster: no connection that was made in the old way is found, and those that are in use
    /// are told.
    pub fn cluster(&self, name: &ClusterName, tls: &ClusterTls) -> Arc<ClusterState> {
        let mut clusters = lock(&self.clusters);
        let present = clusters.get(name);
        if let Some(state) = present.filter(|present| present.tls.1 == *tls).and_then(|present| present.state.upgrade())
        {
            return state;
        }
        let (last, shared) = match present {
            Some(present) => (present.tls.0, Arc::clone(&present.shared)),
            None => {
                let teller = Teller::new(name.clone(), Arc::clone(&self.news));
                let (subchannels, untold) = (Arc::clone(&self.subchannels), Arc::clone(&self.untold));
                (0, Arc::new(Shared { teller, subchannels, untold, ..Shared::default() }))
            }
        };
        // Now and then, so that clusters that come and go leave nothing behind, and thousands that come together are not all looked
        // at for each of them. Whoever holds an endpoint's state holds what its cluster has under way.
        if clusters.len().is_power_of_two() {
            clusters.retain(|_, kept| Arc::strong_count(&kept.shared) > 1 || kept.shared.told.receiver_count() > 0);
        }
        if tls.upstream().is_some() {
            self.certificates.want();
        }
        let (certificates, tls) = (Arc::clone(&self.certificates), (last + 1, tls.clone()));
        let traffic = Arc::clone(&self.traffic);
        let state = ClusterState { certificates, tls, shared, traffic, ..ClusterState::seeded(fastrand::u64(..)) };
        let state = Arc::new(state);
        let (tls, shared) = (state.tls.clone(), Arc::clone(&state.shared));
        self.untold.store(true, Ordering::Relaxed);
        clusters.insert(name.clone(), Kept { tls, shared, state: Arc::downgrade(&state) });
        state
    }

    /// Tells those who hold connections how their clusters and endpoints are to be secured by now: once the views are there
    /// by which the next requests go. With thousands of clusters it looks at none of them if there is nothing to tell.
    pub fn tell(&self) {
        if !self.untold.swap(false, Ordering::Relaxed) {
            return;
        }
        for kept in lock(&self.clusters).values() {
            kept.shared.told.send_if_modified(|told| {
                let is_news = told.0 < kept.tls.0;
                if is_news {
                    told.clone_from(&kept.tls);
                }
                is_news
            });
            kept.shared.tell_marks();
        }
    }

    /// Where the filter of this name keeps its state, as configured at this place.
    pub fn filter<'s>(&'s self, place: &'s str, name: &'s Arc<str>) -> FilterState<'s> {
        FilterState { states: self, place, name }
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(lock(&self.clusters).keys()).finish()
    }
}

/// Nothing is left half-done under these locks, so a poisoned one is as good as any.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
