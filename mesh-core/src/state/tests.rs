use super::*;
use crate::model::{Endpoint, Endpoints, UpstreamTls};

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
        let list = &mut endpoints.localities[0].endpoints;
        *list = list.iter().zip(marks).map(|(one, mutual_tls)| Endpoint { mutual_tls, ..one.clone() }).collect();
        endpoints
    };
    let cluster = states.cluster(&"c".into(), &ClusterTls::None);
    states.tell();
    let endpoints = [cluster.endpoint(&id(1), false), cluster.endpoint(&id(2), false)];
    let mut changes = [endpoints[0].tls_changes(), endpoints[1].tls_changes()];
    let note = |cluster: &ClusterState, marks: [bool; 2]| {
        let endpoints = marked(marks);
        let (parts, _) = cluster.resolve(&endpoints, None);
        cluster.note_marks(&[(&endpoints.localities[0].locality, &parts[0][0])]);
    };
    note(&cluster, [true, false]);
    assert_eq!(changes.each_mut().map(news), [None, None], "it is not in force yet");
    states.tell();
    assert_eq!(changes.each_mut().map(news), [Some((ClusterTls::None, true)), None]);
    assert_eq!(changes.each_mut().map(news), [None, None], "it is told once");
    note(&cluster, [true, false]);
    assert!(!states.untold.load(Ordering::Relaxed), "nothing is looked at for it again");
    // A later state of the cluster speaks of the same endpoints.
    let secured = ClusterTls::Unusable("no".into());
    note(&states.cluster(&"c".into(), &secured), [false, true]);
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

fn limits(max_connections: u32, max_pending_requests: u32, per_host: u32) -> CircuitBreakers {
    CircuitBreakers {
        max_connections,
        max_pending_requests,
        max_connections_per_host: per_host,
        ..CircuitBreakers::UNLIMITED
    }
}

#[test]
fn requests_in_flight_are_counted_by_the_name_of_their_cluster_whatever_becomes_of_its_configuration() {
    let states = States::default();
    let plain = states.cluster(&"c".into(), &ClusterTls::None);
    let first = plain.endpoint(&id(1), false).enter_within(2).unwrap();
    let secured = states.cluster(&"c".into(), &ClusterTls::Unusable("no".into()));
    let second = secured.endpoint(&id(2), false).enter_within(2).unwrap();
    assert!(plain.endpoint(&id(3), false).enter_within(2).is_none());
    assert_eq!((plain.usage().requests(), secured.usage().overflows()), (2, 1));
    // Nobody refers to the cluster any more but the requests.
    drop((plain, secured));
    let again = states.cluster(&"c".into(), &ClusterTls::None);
    assert!(again.endpoint(&id(1), false).enter_within(2).is_none());
    drop((first, second));
    assert_eq!(again.usage().requests(), 0);
    let connection = again.endpoint(&id(1), false).enter_within(1).unwrap().of_connection();
    assert_eq!((connection.endpoint().in_flight(), again.usage().requests()), (1, 0));
}

#[test]
fn a_limit_is_never_exceeded_for_a_moment_however_many_come_at_once() {
    let cluster = Arc::new(ClusterState::default());
    let endpoint = cluster.endpoint(&id(1), false);
    let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    let Some(_request) = endpoint.enter_within(3) else { continue };
                    let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert!(most.load(Ordering::SeqCst) <= 3);
    assert_eq!(cluster.usage().requests(), 0);
}

#[test]
fn an_endpoint_has_one_connection_whatever_the_limit_of_its_cluster() {
    let cluster = ClusterState::default();
    let [one, two] = [1, 2].map(|port| cluster.endpoint(&id(port), false));
    let limits = limits(2, u32::MAX, 2);
    let held = [one.open(&limits).unwrap(), one.open(&limits).unwrap()];
    assert!(one.open(&limits).is_none(), "two of it, and two of the cluster");
    let first = two.open(&limits).unwrap();
    assert!(two.open(&limits).is_none());
    assert_eq!(cluster.usage().connections(), 3);
    drop(held);
    let second = two.open(&limits).unwrap();
    assert!(two.open(&limits).is_none(), "two of it");
    drop((first, second));
    assert_eq!(cluster.usage().connections(), 0);
}

#[tokio::test]
async fn whoever_waits_for_a_connection_is_told_when_one_is_free_and_one_who_gave_up_passes_it_on() {
    let cluster = ClusterState::default();
    let endpoint = cluster.endpoint(&id(1), false);
    let limits = limits(1, 2, u32::MAX);
    let connection = endpoint.open(&limits).unwrap();
    let waiting = [endpoint.wait_for_connection(&limits).unwrap(), endpoint.wait_for_connection(&limits).unwrap()];
    assert!(endpoint.wait_for_connection(&limits).is_none());
    let (mut first, mut second) = (endpoint.connections().freed(), endpoint.connections().freed());
    first.enable();
    second.enable();
    assert!(endpoint.open(&limits).is_none());
    drop(connection);
    drop(first);
    second.wait().await;
    assert!(endpoint.open(&limits).is_some() && !endpoint.connections().is_awaited());
    drop(waiting);
    assert_eq!((cluster.usage().pending(), cluster.usage().overflows()), (0, 1));
}

#[test]
fn endpoints_that_cannot_be_reached_are_looked_for_after_a_pause() {
    let (cluster, now) = (ClusterState::default(), Instant::now());
    let endpoint = cluster.endpoint(&id(1), false);
    endpoint.note_unreachable(now, &mut fastrand::Rng::with_seed(1));
    assert!(!endpoint.is_reachable() && cluster.has_unreachable() && cluster.to_look_for(now, 9).is_empty());
    assert_eq!(cluster.to_look_for(now + Duration::from_secs(1), 9).len(), 1);
    endpoint.note_reachable();
    assert!(endpoint.is_reachable() && !cluster.has_unreachable());
    endpoint.note_unreachable(now, &mut fastrand::Rng::with_seed(1));
    drop(endpoint);
    assert!(!cluster.has_unreachable(), "it is gone");
}

#[test]
fn what_is_put_together_of_a_part_stays_with_it() {
    let endpoints = Endpoints::fixed((1..=100).map(|port| std::net::SocketAddr::from(([127, 0, 0, 1], port))));
    let cluster = ClusterState::default();
    let (first, _) = cluster.resolve(&endpoints, None);
    cluster.set_hosts(first.iter().flatten());
    let found = |port: u16| {
        let (id, mut parts) = (id(port), first.iter().flatten());
        parts.find_map(|part| part.having(Wanted::new(&id.addresses()[0])).next()).map(|(_, state)| state.id().clone())
    };
    assert!((1..=100).all(|port| found(port) == Some(id(port))) && found(101).is_none());
    let (second, news) = cluster.resolve(&endpoints, Some((&endpoints, &first)));
    assert!(news.is_empty());
    for (before, now) in first.iter().flatten().zip(second.iter().flatten()) {
        assert!(Arc::ptr_eq(before.records(), now.records()) && Arc::ptr_eq(before.addresses(), now.addresses()));
    }
}

#[test]
fn endpoints_that_stay_keep_their_states_and_others_are_found_or_made() {
    let endpoints = |ports: &[(u16, bool)]| {
        let mut endpoints =
            Endpoints::fixed(ports.iter().map(|(port, _)| std::net::SocketAddr::from(([127, 0, 0, 1], *port))));
        let list = &mut endpoints.localities[0].endpoints;
        let marked = list.iter().zip(ports).map(|(one, (_, mark))| Endpoint { mutual_tls: *mark, ..one.clone() });
        *list = marked.collect();
        endpoints
    };
    let cluster = ClusterState::default();
    let first = endpoints(&[(1, false), (2, false), (3, false)]);
    let (states, news) = cluster.resolve(&first, None);
    assert_eq!(news, [(0, 0)]);
    // One that stays, one whose mark changes, one that moves, and a new one.
    let second = endpoints(&[(1, false), (2, true), (4, false), (3, false)]);
    let (later, _) = cluster.resolve(&second, Some((&first, &states)));
    let same = |at: usize, before: usize| Arc::ptr_eq(&later[0][0].states()[at], &states[0][0].states()[before]);
    assert!(same(0, 0) && !same(1, 1) && same(3, 2), "{later:?}");
    for (endpoint, state) in later[0][0].iter() {
        assert_eq!((state.id(), state.is_mutual_tls()), (&endpoint.id, endpoint.mutual_tls));
        assert!(Arc::ptr_eq(state, &cluster.endpoint(&endpoint.id, endpoint.mutual_tls)));
    }
}
