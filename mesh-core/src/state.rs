//! What outlives a configuration: counts and connections, keyed by identity and carried into the next view.
//!
//! A view holds `Arc`s of these; the registry holds only weak ones. So state lives exactly as long as some
//! view or some request in flight refers to it, and an update that mentions the same endpoint finds it again. Only
//! endpoints that callers name themselves, which no view can hold, are held here for a while.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::id::{ClusterName, EndpointId};
use crate::model::{ClusterTls, Endpoints};
use crate::tls::Certificates;

/// How a cluster is secured, and which of its states that is.
type KnownTls = (u64, ClusterTls);

/// How a cluster is secured by now, for those who hold connections to it. All of its states share it, one after the other.
#[derive(Debug, Default)]
struct SharedTls {
    told: watch::Sender<KnownTls>,
    marks: Mutex<Marks>,
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

impl SharedTls {
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
    fn note(&self, endpoints: &Endpoints) {
        let mut marks = lock(&self.marks);
        let Marks { by_endpoint, next } = &mut *marks;
        for endpoint in endpoints.localities.iter().flat_map(|locality| &locality.endpoints) {
            let Some(mark) = by_endpoint.get(&endpoint.id).and_then(Weak::upgrade) else { continue };
            if !endpoint.mutual_tls {
                mark.is_set.store(false, Ordering::Release);
                next.retain(|marked| !Arc::ptr_eq(marked, &mark));
            } else if !mark.is_set.load(Ordering::Acquire) {
                next.push(mark);
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
    mutual_tls: bool,
    certificates: Arc<Certificates>,
    tls: KnownTls,
    shared: Arc<SharedTls>,
    mark: Arc<Mark>,
    attachment: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl EndpointState {
    fn new(id: EndpointId, mutual_tls: bool, cluster: &ClusterState) -> Self {
        EndpointState {
            in_flight: AtomicU32::new(0),
            mutual_tls,
            certificates: Arc::clone(&cluster.certificates),
            tls: cluster.tls.clone(),
            mark: cluster.shared.mark(&id),
            shared: Arc::clone(&cluster.shared),
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
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// What a data plane keeps with the endpoint, such as its connection pool: made once, dropped with it.
    /// `None` if something of another type was attached before.
    #[inline]
    pub fn attachment<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Option<&T> {
        self.attachment.get_or_init(|| Box::new(make())).downcast_ref()
    }
}

impl fmt::Debug for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointState({}, {} in flight)", self.id, self.in_flight())
    }
}

/// One request in flight at an endpoint.
#[derive(Debug)]
pub struct InFlight(Arc<EndpointState>);

impl InFlight {
    /// The endpoint.
    #[inline]
    pub fn endpoint(&self) -> &Arc<EndpointState> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The state of one cluster.
#[derive(Debug, Default)]
pub struct ClusterState {
    /// The position of round robin, one for all priorities.
    pub round_robin: AtomicU32,
    certificates: Arc<Certificates>,
    /// The position is that among the states of the cluster.
    tls: KnownTls,
    shared: Arc<SharedTls>,
    /// By identity, and by whether they are marked for mutual TLS.
    endpoints: Mutex<HashMap<(EndpointId, bool), Weak<EndpointState>>>,
    /// Endpoints that no view holds.
    visited: Mutex<HashMap<EndpointId, Visited>>,
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
    pub fn note_marks(&self, endpoints: &Endpoints) {
        self.shared.note(endpoints);
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

/// All state of a mesh.
#[derive(Default)]
pub struct States {
    certificates: Arc<Certificates>,
    clusters: Mutex<HashMap<ClusterName, Kept>>,
    filters: Mutex<HashMap<FilterKey, Weak<dyn Any + Send + Sync>>>,
}

/// What is kept of a cluster.
struct Kept {
    tls: KnownTls,
    shared: Arc<SharedTls>,
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
    /// The state of a mesh that shows these of itself.
    pub fn new(certificates: Arc<Certificates>) -> Self {
        States { certificates, ..States::default() }
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
            None => (0, Arc::default()),
        };
        clusters.retain(|_, kept| kept.state.strong_count() > 0 || kept.shared.told.receiver_count() > 0);
        if tls.upstream().is_some() {
            self.certificates.want();
        }
        let (certificates, tls) = (Arc::clone(&self.certificates), (last + 1, tls.clone()));
        let state = ClusterState { certificates, tls, shared, ..ClusterState::default() };
        let state = Arc::new(state);
        let (tls, shared) = (state.tls.clone(), Arc::clone(&state.shared));
        clusters.insert(name.clone(), Kept { tls, shared, state: Arc::downgrade(&state) });
        state
    }

    /// Tells those who hold connections how their clusters and endpoints are to be secured by now: once the views are there
    /// by which the next requests go.
    pub fn tell(&self) {
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
mod tests {
    use super::*;
    use crate::model::UpstreamTls;

    fn id(port: u16) -> EndpointId {
        EndpointId::new(std::net::SocketAddr::from(([127, 0, 0, 1], port)))
    }

    #[test]
    fn state_is_found_again_while_a_request_holds_it_and_forgotten_after() {
        let states = States::default();
        let cluster = states.cluster(&"c".into(), &ClusterTls::None);
        let guard = cluster.endpoint(&id(1), false).enter();
        assert_eq!(cluster.endpoint(&id(1), false).in_flight(), 1);
        drop(guard);
        assert_eq!(cluster.endpoint(&id(1), false).in_flight(), 0);
        for port in 2..100 {
            drop(cluster.endpoint(&id(port), false));
        }
        assert!(cluster.len() < 10, "{}", cluster.len());
        let before = Arc::downgrade(&cluster);
        drop(cluster);
        assert!(before.upgrade().is_none());
    }

    #[test]
    fn connections_that_were_secured_in_another_way_are_not_found() {
        let states = States::default();
        let plain = states.cluster(&"c".into(), &ClusterTls::None);
        let tls = |peer: &str| ClusterTls::Mutual(Arc::new(UpstreamTls::with([peer.parse().expect("an ID")])));
        let secured = states.cluster(&"c".into(), &tls("spiffe://td/a"));
        let other = states.cluster(&"c".into(), &tls("spiffe://td/b"));
        assert!(!Arc::ptr_eq(&plain, &secured) && !Arc::ptr_eq(&secured, &other));
        assert!(Arc::ptr_eq(&other, &states.cluster(&"c".into(), &tls("spiffe://td/b"))));
        let (marked, unmarked) = (other.endpoint(&id(1), true), other.endpoint(&id(1), false));
        assert!(!Arc::ptr_eq(&marked, &unmarked) && Arc::ptr_eq(&marked, &other.endpoint(&id(1), true)));
    }

    fn news(changes: &mut TlsChanges) -> Option<(ClusterTls, bool)> {
        use std::future::Future;
        use std::task::{Context, Poll, Waker};
        match pin!(changes.next()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(news) => Some(news),
            Poll::Pending => None,
        }
    }

    #[test]
    fn whoever_holds_a_connection_is_told_once_its_endpoint_is_marked_and_not_of_others() {
        let states = States::default();
        let marked = |marks: [bool; 2]| {
            let mut endpoints = Endpoints::fixed([1, 2].map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port))));
            for (endpoint, is_marked) in endpoints.localities[0].endpoints.iter_mut().zip(marks) {
                endpoint.mutual_tls = is_marked;
            }
            endpoints
        };
        let cluster = states.cluster(&"c".into(), &ClusterTls::None);
        states.tell();
        let endpoints = [cluster.endpoint(&id(1), false), cluster.endpoint(&id(2), false)];
        let mut changes = [endpoints[0].tls_changes(), endpoints[1].tls_changes()];
        cluster.note_marks(&marked([true, false]));
        assert_eq!(changes.each_mut().map(news), [None, None], "it is not in force yet");
        states.tell();
        assert_eq!(changes.each_mut().map(news), [Some((ClusterTls::None, true)), None]);
        assert_eq!(changes.each_mut().map(news), [None, None], "it is told once");
        // A later state of the cluster speaks of the same endpoints.
        let secured = ClusterTls::Unusable("no".into());
        states.cluster(&"c".into(), &secured).note_marks(&marked([false, true]));
        states.tell();
        assert_eq!(changes.each_mut().map(news), [Some((secured.clone(), false)), Some((secured, true))]);
    }

    #[test]
    fn whoever_holds_a_connection_is_told_of_a_change_once_it_is_in_force() {
        fn told(changes: &mut TlsChanges) -> Option<ClusterTls> {
            news(changes).map(|(tls, _)| tls)
        }
        let states = States::default();
        let unusable = |reason: &str| ClusterTls::Unusable(reason.into());
        let changes = |state: &Arc<ClusterState>| state.endpoint(&id(1), false).tls_changes();
        let first = states.cluster(&"c".into(), &ClusterTls::None);
        let mut of_first = changes(&first);
        states.tell();
        assert_eq!(told(&mut of_first), None, "it is as it was");
        let second = states.cluster(&"c".into(), &unusable("2"));
        let mut of_second = changes(&second);
        assert_eq!((told(&mut of_first), told(&mut of_second)), (None, None), "it is not in force yet");
        states.tell();
        assert_eq!((told(&mut of_first), told(&mut of_second)), (Some(unusable("2")), None));
        // Nobody refers to the states any more, and still there is a connection.
        drop((first, second));
        _ = states.cluster(&"d".into(), &ClusterTls::None);
        _ = states.cluster(&"c".into(), &unusable("3"));
        states.tell();
        assert_eq!((told(&mut of_first), told(&mut of_second)), (Some(unusable("3")), Some(unusable("3"))));
        drop((of_first, of_second));
        _ = states.cluster(&"d".into(), &ClusterTls::None);
        assert!(!lock(&states.clusters).contains_key("c"), "it is forgotten");
    }

    #[test]
    fn a_visited_endpoint_is_kept_until_it_has_been_idle_and_only_so_many() {
        let cluster = ClusterState::default();
        let (second, limit) = (Duration::from_secs(1), Duration::from_secs(3));
        let visit = |port| Arc::downgrade(&cluster.visit(&id(port)));
        let (idle, again, busy) = (visit(1), visit(2), visit(3));
        let request = cluster.visit(&id(3)).enter();
        for _ in 0..5 {
            assert!(idle.upgrade().is_some());
            assert!(again.ptr_eq(&visit(2)), "the same while it is in use");
            cluster.pass(second, limit);
        }
        assert!(idle.upgrade().is_none() && again.upgrade().is_some() && busy.upgrade().is_some());
        drop(request);
        for _ in 0..5 {
            cluster.pass(second, limit);
        }
        assert!(again.upgrade().is_none() && busy.upgrade().is_none());

        let visited: Vec<_> = (0..5000).map(visit).collect();
        assert_eq!(visited.iter().filter(|state| state.upgrade().is_some()).count(), MAX_VISITED);
        assert!(cluster.len() < 3 * MAX_VISITED, "{}", cluster.len());
        let beyond = cluster.visit(&id(6000));
        assert!(Arc::ptr_eq(&beyond, &cluster.visit(&id(6000))), "shared while a request holds it");
        drop(beyond);
        // Once none of them is in use, the one that comes pushes out another.
        cluster.pass(second, Duration::MAX);
        let kept = visit(6000);
        assert!(kept.upgrade().is_some());
        assert_eq!(visited.iter().filter(|state| state.upgrade().is_some()).count(), MAX_VISITED - 1);
        cluster.pass(second, Duration::ZERO);
        cluster.pass(second, Duration::ZERO);
        assert!(visited.iter().all(|state| state.upgrade().is_none()));
    }

    #[test]
    fn a_filters_state_is_found_again_by_place_and_name_while_a_filter_holds_it() {
        let (states, a, b) = (States::default(), Arc::from("a"), Arc::from("b"));
        let counter = |place, name| states.filter(place, name).get(AtomicU32::default);
        let first = counter("l", &a);
        first.store(7, Ordering::Relaxed);
        assert!(Arc::ptr_eq(&first, &counter("l", &a)));
        for other in [counter("l", &b), counter("l/route", &a)] {
            assert_eq!(other.load(Ordering::Relaxed), 0);
        }
        assert_eq!(*states.filter("l", &a).get(|| "another type"), "another type");
        assert!(Arc::ptr_eq(&first, &counter("l", &a)), "each type has its own");
        drop(first);
        assert_eq!(counter("l", &a).load(Ordering::Relaxed), 0, "nobody held it");
    }

    #[test]
    fn an_attachment_is_made_once_and_keeps_its_type() {
        let state = ClusterState::default().endpoint(&id(1), false);
        assert_eq!(state.attachment(|| 1u32), Some(&1));
        assert_eq!(state.attachment(|| 2u32), Some(&1));
        assert_eq!(state.attachment(|| "text"), None);
    }
}
