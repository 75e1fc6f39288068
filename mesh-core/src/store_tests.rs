//! Whole walks from a target to its view, with a source that the test plays itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use super::*;
use crate::balance::PickArgs;
use crate::model::{
    ApiListener, Cluster, ClusterKind, ClusterTls, Clusters, Endpoints, FilterChain, ForeignTls, Forward, HttpManager,
    Listener, Mirror, Roots, Route, RouteAction, RouteConfiguration, RouteMatch, RouteSource, Secret, ServerListener,
    Sni, VirtualHost, WeightedCluster,
};
use crate::request::RequestHead;
use crate::resources::{Change, Resource, ResourceKey, ResourceType};

const WAIT: Duration = Duration::from_secs(10);

/// Names are what they are asked for; the test itself plays the rest.
struct Played;

impl Source for Played {
    fn listener_name(&self, target: &Target) -> Result<ListenerName, Invalid> {
        Ok(target.as_str().into())
    }

    fn server_listener_name(&self, address: SocketAddr) -> Result<ListenerName, Invalid> {
        Ok(format!("server/{address}").into())
    }

    fn run(self: Arc<Self>, _: Sink) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }
}

fn store() -> (Store, Sink) {
    Store::new(Arc::new(Played), Extensions::default(), WAIT)
}

fn key(kind: ResourceType, name: &str) -> ResourceKey {
    ResourceKey::new(kind, name)
}

fn listener(name: &str, route: &str) -> Change {
    let http = HttpManager::new(RouteSource::Named(route.into()));
    let listener = Listener::Api(ApiListener::new(name, http));
    Change::Put(key(ResourceType::Listener, name), Resource::Listener(Arc::new(listener)))
}

/// The listener of a server at this address, which may say more.
fn server_listener(name: &ListenerName, address: SocketAddr, more: impl FnOnce(&mut ServerListener)) -> Change {
    let mut listener = ServerListener::new(name.clone(), address);
    let http = HttpManager::new(RouteSource::Inline(Arc::default()));
    listener.default_filter_chain = Some(FilterChain::new("c", http));
    more(&mut listener);
    let listener = Resource::Listener(Arc::new(Listener::Server(listener)));
    Change::Put(key(ResourceType::Listener, name.as_str()), listener)
}

fn route(name: &str, clusters: &[&str]) -> Change {
    let weighted = clusters.iter().map(|name| WeightedCluster::new(*name, 1)).collect();
    let action = RouteAction::Forward(Forward::among(Clusters::Weighted(weighted)));
    let route = Route { name: name.into(), ..Route::new(RouteMatch::any(), action) };
    let host = VirtualHost::new(["*"], vec![route]);
    let config = RouteConfiguration { name: Some(name.into()), ..RouteConfiguration::new(vec![host]) };
    Change::Put(key(ResourceType::Route, name), Resource::Route(Arc::new(config)))
}

fn cluster(name: &str, kind: ClusterKind) -> Change {
    Change::Put(key(ResourceType::Cluster, name), Resource::Cluster(Arc::new(Cluster::new(name, kind))))
}

fn eds(name: &str) -> Change {
    cluster(name, ClusterKind::Eds { service_name: name.into() })
}

fn endpoints(name: &str, ports: &[u16]) -> Change {
    let addresses = ports.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port)));
    Change::Put(key(ResourceType::Endpoints, name), Resource::Endpoints(Arc::new(Endpoints::fixed(addresses))))
}

fn update(changes: impl IntoIterator<Item = Change>) -> Update {
    Update { changes: changes.into_iter().collect() }
}

/// The port that a request is sent to, or the error.
fn send(entry: &TargetEntry) -> Result<String, MeshError> {
    send_seeded(entry, 1)
}

fn send_seeded(entry: &TargetEntry, seed: u64) -> Result<String, MeshError> {
    let view = entry.view().ok_or_else(|| MeshError::new(ErrorKind::UnknownTarget, "no view"))?;
    let request = http::Request::get("http://t/").body(()).unwrap().into_parts().0;
    let head = RequestHead::of(&request)?;
    let mut random = fastrand::Rng::with_seed(seed);
    let routed = view.find(&head, &mut random)?;
    let pick = routed.cluster.expect("a forwarding route").pick(&mut PickArgs::new(&mut random), || "t:80")?;
    Ok(pick.in_flight.endpoint().id().to_string())
}

#[tokio::test]
async fn a_target_is_walked_from_its_listener_to_its_endpoints_and_becomes_visible_whole() {
    let (store, mut sink) = store();
    let entry = store.target("t").unwrap();
    let progress = sink.changed().await.unwrap();
    assert_eq!(progress.subscribe, [key(ResourceType::Listener, "t")]);
    let progress = sink.apply(update([listener("t", "r")]));
    assert_eq!(progress.subscribe, [key(ResourceType::Route, "r")]);
    let progress = sink.apply(update([route("r", &["a"])]));
    assert_eq!(progress.subscribe, [key(ResourceType::Cluster, "a")]);
    let progress = sink.apply(update([eds("a")]));
    assert_eq!(progress.subscribe, [key(ResourceType::Endpoints, "a")]);
    assert!(entry.view().is_none(), "not before it is complete");
    sink.apply(update([endpoints("a", &[1])]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:1");
}

#[tokio::test]
async fn no_request_waits_for_a_cluster_that_gets_copies_only() {
    let (store, mut sink) = store();
    let entry = store.target("t").unwrap();
    sink.changed().await.unwrap();
    sink.apply(update([listener("t", "r")]));
    let mut forward = Forward::to("a");
    forward.mirrors = vec![Mirror::to("m"), Mirror::to("a")];
    let host = VirtualHost::new(["*"], vec![Route::new(RouteMatch::any(), RouteAction::Forward(forward))]);
    let config = RouteConfiguration { name: Some("r".into()), ..RouteConfiguration::new(vec![host]) };
    let mirrored = Change::Put(key(ResourceType::Route, "r"), Resource::Route(Arc::new(config)));
    let progress = sink.apply(update([mirrored]));
    assert_eq!(progress.subscribe, [key(ResourceType::Cluster, "a"), key(ResourceType::Cluster, "m")]);
    sink.apply(update([eds("a")]));
    sink.apply(update([endpoints("a", &[1])]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:1");
    let copied = || {
        let view = entry.view().unwrap();
        let [a, m] = view.clusters() else { panic!("{view:?}") };
        assert_eq!((a.name().as_str(), m.name().as_str()), ("a", "m"));
        let mut random = fastrand::Rng::with_seed(1);
        let pick = m.pick(&mut PickArgs::new(&mut random), || "");
        pick.map(|pick| pick.in_flight.endpoint().id().to_string()).map_err(|error| error.to_string())
    };
    assert!(copied().unwrap_err().contains("not known yet"));
    sink.apply(update([eds("m")]));
    sink.apply(update([endpoints("m", &[2])]));
    assert_eq!(copied().unwrap(), "127.0.0.1:2");
}

#[tokio::test]
async fn a_secret_is_let_go_with_the_last_who_needs_it_and_not_before_requests_that_may_connect_by_it() {
    let (store, mut sink) = store();
    let entry = store.target("t").unwrap();
    sink.changed().await.unwrap();
    let secret = |says: &str| {
        let secret = Resource::Secret(Arc::new(Secret::Unusable(says.into())));
        Change::Put(key(ResourceType::Secret, "s"), secret)
    };
    let mut tls = ForeignTls::with(Sni::None, Roots::Nobody);
    tls.material.secret = Some("s".into());
    let files = tls.material.clone();
    let mut secured = Cluster::new("a", ClusterKind::Eds { service_name: "a".into() });
    secured.tls = ClusterTls::Foreign(Arc::new(tls));
    let secured = Resource::Cluster(Arc::new(secured));
    let secured = Change::Put(key(ResourceType::Cluster, "a"), secured);
    let says = |sink: &Sink| {
        let read = sink.certificates().material().read(&files, std::time::SystemTime::now());
        read.expect_err("there is no key in it").to_string()
    };
    let gone = "s: this secret is not there, or not for this workload";
    sink.apply(update([secret("nobody asked")]));
    assert_eq!(says(&sink), gone);

    sink.apply(update([listener("t", "r")]));
    sink.apply(update([route("r", &["a"])]));
    sink.apply(update([secured]));
    sink.apply(update([endpoints("a", &[1]), secret("first")]));
    assert_eq!(says(&sink), "s: first");
    let under_way = entry.view().unwrap();

    sink.apply(update([route("r", &["b"])]));
    sink.apply(update([eds("b")]));
    let progress = sink.apply(update([endpoints("b", &[2])]));
    assert!(progress.unsubscribe.contains(&key(ResourceType::Secret, "s")));
    assert_eq!(says(&sink), "s: first", "a request is under way that may connect by it");
    drop(under_way);
    sink.apply(update([]));
    assert_eq!(says(&sink), gone);
    sink.apply(update([secret("too late")]));
    assert_eq!(says(&sink), gone);
}

#[tokio::test]
async fn a_route_to_a_cluster_that_is_not_complete_does_not_become_visible() {
    let (store, mut sink) = store();
    let entry = store.target("t").unwrap();
    sink.changed().await.unwrap();
    sink.apply(update([listener("t", "r")]));
    sink.apply(update([route("r", &["a"])]));
    sink.apply(update([eds("a")]));
    sink.apply(update([endpoints("a", &[1])]));
    let progress = sink.apply(update([route("r", &["b"])]));
    assert_eq!(progress.subscribe, [key(ResourceType::Cluster, "b")]);
    assert_eq!(progress.unsubscribe, [], "what serves now is still needed");
    sink.apply(update([eds("b")]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:1");
    let progress = sink.apply(update([endpoints("b", &[2])]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:2");
    assert_eq!(progress.unsubscribe, [key(ResourceType::Cluster, "a"), key(ResourceType::Endpoints, "a")]);
}

#[tokio::test]
async fn endpoints_in_use_change_at_once_while_a_new_route_waits_for_its_cluster() {
    let (store, mut sink) = store();
    let entry = store.target("t").unwrap();
    sink.changed().await.unwrap();
    sink.apply(update([listener("t", "r")]));
    sink.apply(update([route("r", &["a"])]));
    sink.apply(update([eds("a")]));
    sink.apply(update([endpoints("a", &[1])]));
    let routes = Arc::clone(entry.view().unwrap().routes().unwrap());
    // Both at once: the route has to wait, the endpoints have not.
    sink.apply(update([route("r", &["b"]), endpoints("a", &[2])]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:2");
    sink.apply(update([eds("b"), endpoints("a", &[3])]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:3");
    let view = entry.view().unwrap();
    assert!(Arc::ptr_eq(view.routes().unwrap(), &routes), "the routes are the old ones");
    // What does not touch the view does not make a new one.
    sink.apply(update([endpoints("a", &[3])]));
    assert!(Arc::ptr_eq(&view, &entry.view().unwrap()));
    sink.apply(update([endpoints("b", &[4])]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:4");
}

#[tokio::test]
async fn a_cluster_in_use_that_goes_or_moves_while_a_new_route_waits_serves_on() {
    let (store, mut sink) = store();
    let entry = store.target("t").unwrap();
    sink.changed().await.unwrap();
    sink.apply(update([listener("t", "r")]));
    sink.apply(update([route("r", &["a"])]));
    sink.apply(update([eds("a")]));
    sink.apply(update([endpoints("a", &[1])]));
    sink.apply(update([route("r", &["b"])]));
    // Its endpoints are to be found under another name, of which nothing is known.
    sink.apply(update([cluster("a", ClusterKind::Eds { service_name: "elsewhere".into() })]));
    sink.apply(update([endpoints("a", &[2])]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:2");
    sink.apply(update([Change::Absent(key(ResourceType::Cluster, "a"), "gone".into())]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:2");
    sink.apply(update([endpoints("a", &[3])]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:3");
    sink.apply(update([eds("b")]));
    sink.apply(update([endpoints("b", &[4])]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:4");
}

#[tokio::test]
async fn a_cluster_that_is_absent_fails_its_own_requests_and_names_the_reason() {
    let (store, mut sink) = store();
    let entry = store.target("t").unwrap();
    sink.changed().await.unwrap();
    sink.apply(update([listener("t", "r")]));
    sink.apply(update([route("r", &["a"])]));
    sink.apply(update([Change::Absent(key(ResourceType::Cluster, "a"), "cluster a: does not exist".into())]));
    let error = send(&entry).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::NoCluster, "cluster a: does not exist"));
    // It arrives after all.
    sink.apply(update([eds("a")]));
    sink.apply(update([endpoints("a", &[3])]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:3");
}

#[tokio::test]
async fn an_update_shares_what_it_did_not_touch_and_carries_state_over() {
    let (store, mut sink) = store();
    let entry = store.target("t").unwrap();
    sink.changed().await.unwrap();
    sink.apply(update([listener("t", "r")]));
    sink.apply(update([route("r", &["a", "b"])]));
    sink.apply(update([eds("a"), eds("b")]));
    sink.apply(update([endpoints("a", &[1]), endpoints("b", &[2])]));
    let before = entry.view().unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let held = before.clusters()[1].pick(&mut PickArgs::new(&mut random), || "").unwrap();
    sink.apply(update([endpoints("b", &[2, 3])]));
    let after = entry.view().unwrap();
    assert!(Arc::ptr_eq(&before.clusters()[0], &after.clusters()[0]));
    assert!(!Arc::ptr_eq(&before.clusters()[1], &after.clusters()[1]));
    assert!(Arc::ptr_eq(before.routes().unwrap(), after.routes().unwrap()));
    // The endpoint that stayed still counts the request of the old view.
    let picked = after.clusters()[1].leaves()[0].state.endpoint(held.in_flight.endpoint().id(), false);
    assert_eq!(picked.in_flight(), 1);
}

#[tokio::test]
async fn clusters_in_use_and_routes_to_them_change_without_a_walk_and_what_a_walk_has_to_find_has_one() {
    let (store, mut sink) = store();
    let entry = store.target("t").unwrap();
    sink.changed().await.unwrap();
    for change in [listener("t", "r"), route("r", &["a", "b"])] {
        sink.apply(update([change]));
    }
    sink.apply(update([eds("a"), cluster("b", ClusterKind::Aggregate(vec!["c".into(), "d".into()]))]));
    sink.apply(update([eds("c"), eds("d")]));
    sink.apply(update(["a", "c", "d"].map(|name| endpoints(name, &[1]))));
    let sees = |expected: &[u16]| {
        let expected: BTreeSet<String> = expected.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        assert_eq!(ports(&entry), expected);
    };
    sees(&[1]);
    let walks = sink.assembly.walks;
    sink.apply(update([endpoints("c", &[2])]));
    sees(&[1, 2]);
    sink.apply(update([endpoints("c", &[]), endpoints("d", &[3])]));
    sees(&[1, 3]);
    let is_first = |name: &str| {
        let Some(view) = entry.view() else { return false };
        let Some(routes) = view.routes() else { return false };
        let RouteAction::Forward(forward) = &routes.config().virtual_hosts[0].routes[0].action else { return false };
        matches!(&forward.clusters, Clusters::Weighted(clusters) if clusters[0].name.as_str() == name)
    };
    assert!(is_first("a"));
    sink.apply(update([route("r", &["b", "a"]), endpoints("d", &[6])]));
    sees(&[1, 6]);
    assert!(is_first("b"));
    sink.apply(update([endpoints("d", &[3])]));
    assert_eq!(sink.assembly.walks, walks);
    // What was absent is in no cluster before it is looked for.
    sink.apply(update([Change::Absent(key(ResourceType::Endpoints, "c"), "gone".into())]));
    sees(&[1, 3]);
    sink.apply(update([endpoints("c", &[4])]));
    sees(&[1, 4]);
    assert_eq!(sink.assembly.walks, walks + 2);
    // Together with something else.
    let progress = sink.apply(update([endpoints("a", &[5]), route("r", &["a"])]));
    sees(&[5]);
    assert!(progress.unsubscribe.contains(&key(ResourceType::Endpoints, "c")), "{progress:?}");
    assert_eq!(sink.assembly.walks, walks + 3);
}

#[tokio::test(start_paused = true)]
async fn a_former_view_is_freed_by_the_sink_and_not_by_the_last_request_that_holds_it() {
    let (store, mut sink) = store();
    let entry = store.target("t").unwrap();
    sink.changed().await.unwrap();
    for change in [listener("t", "r"), route("r", &["a"]), eds("a"), endpoints("a", &[1])] {
        sink.apply(update([change]));
    }
    let request = entry.view().unwrap();
    let (former, its_cluster) = (Arc::downgrade(&request), Arc::downgrade(&request.clusters()[0]));
    sink.apply(update([endpoints("a", &[2])]));
    drop(request);
    assert_eq!(former.strong_count(), 1, "the sink's");
    // Nothing happens meanwhile; the sink looks by itself.
    tokio::select! {
        _ = sink.changed() => panic!("nobody wants anything"),
        () = tokio::time::sleep(2 * RETIRED_CHECK) => {}
    }
    assert_eq!((former.strong_count(), its_cluster.strong_count()), (0, 0));
    // One that nobody holds goes at once.
    let former = Arc::downgrade(&entry.view().unwrap());
    sink.apply(update([endpoints("a", &[3])]));
    assert_eq!(former.strong_count(), 0);
}

#[tokio::test]
async fn aggregates_fail_over_from_leaf_to_leaf() {
    let (store, mut sink) = store();
    let entry = store.target("t").unwrap();
    sink.changed().await.unwrap();
    sink.apply(update([listener("t", "r")]));
    sink.apply(update([route("r", &["agg"])]));
    let progress = sink.apply(update([cluster("agg", ClusterKind::Aggregate(vec!["a".into(), "b".into()]))]));
    assert_eq!(progress.subscribe, [key(ResourceType::Cluster, "a"), key(ResourceType::Cluster, "b")]);
    sink.apply(update([eds("a"), eds("b")]));
    sink.apply(update([endpoints("a", &[]), endpoints("b", &[2])]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:2");
    sink.apply(update([endpoints("a", &[1])]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:1");
}

#[tokio::test]
async fn an_aggregate_of_itself_is_an_error_and_not_a_loop() {
    let (store, mut sink) = store();
    let entry = store.target("t").unwrap();
    sink.changed().await.unwrap();
    sink.apply(update([listener("t", "r")]));
    sink.apply(update([route("r", &["agg"])]));
    sink.apply(update([cluster("agg", ClusterKind::Aggregate(vec!["agg".into()]))]));
    assert!(send(&entry).unwrap_err().to_string().contains("nest deeper"));
}

#[tokio::test]
async fn the_wait_for_a_first_view_ends_with_the_view_or_with_the_deadline() {
    tokio::time::pause();
    let (store, mut sink) = store();
    let entry = store.target("t").unwrap();
    let late = Instant::now() + Duration::from_millis(50);
    assert_eq!(entry.wait(late).await.unwrap_err().kind(), ErrorKind::UnknownTarget);
    let waiting = tokio::spawn({
        let entry = Arc::clone(&entry);
        async move { entry.wait(Instant::now() + WAIT).await.is_ok() }
    });
    tokio::task::yield_now().await;
    sink.changed().await.unwrap();
    sink.apply(update([Change::Absent(key(ResourceType::Listener, "t"), "no".into())]));
    assert!(waiting.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_nobody_uses_is_forgotten_and_its_resources_unsubscribed() {
    let (store, mut sink) = store();
    drop(store.target("t").unwrap());
    let held = store.target("held").unwrap();
    sink.changed().await.unwrap();
    sink.apply(update([listener("t", "r"), listener("held", "r")]));
    sink.apply(update([route("r", &["a"])]));
    let progress = sink.changed().await.unwrap();
    assert_eq!(progress.unsubscribe, [key(ResourceType::Listener, "t")]);
    assert!(store.find("t").is_none() && store.find("held").is_some());
    drop(held);
    let progress = sink.changed().await.unwrap();
    assert_eq!(progress.unsubscribe.len(), 3, "{progress:?}");
}

fn store_of_size(most_targets: usize) -> (Store, Sink) {
    Store::of_size(most_targets, Arc::new(Played), Extensions::default(), WAIT)
}

/// Asks for a target once, which has these routes.
async fn ask_for(name: &str, store: &Store, sink: &mut Sink, routes: Change) -> Progress {
    drop(store.target(name).unwrap());
    let progress = sink.changed().await.unwrap();
    for change in [listener(name, "r"), routes, eds("a"), endpoints("a", &[1])] {
        sink.apply(update([change]));
    }
    progress
}

#[tokio::test]
async fn names_that_lead_nowhere_make_room_for_others_before_anything_else() {
    let (store, mut sink) = store_of_size(20);
    let held = store.target("held").unwrap();
    _ = sink.changed().await;
    ask_for("good", &store, &mut sink, route("r", &["a"])).await;
    let mut unsubscribed = Vec::new();
    for turn in 0..100 {
        let name = format!("q{turn}.evil.org");
        drop(store.target(&name).unwrap());
        unsubscribed.extend(sink.changed().await.unwrap().unsubscribe);
        sink.apply(update([Change::Absent(key(ResourceType::Listener, &name), "no such host".into())]));
        assert!(store.targets().list().count() <= 20);
    }
    assert!(Arc::ptr_eq(&store.find("held").unwrap(), &held));
    assert_eq!(send(&store.find("good").unwrap()).unwrap(), "127.0.0.1:1");
    assert!(store.find("q99.evil.org").is_some() && store.find("q0.evil.org").is_none());
    assert!(unsubscribed.contains(&key(ResourceType::Listener, "q0.evil.org")), "{unsubscribed:?}");
    assert!(unsubscribed.iter().all(|key| key.name.ends_with(".evil.org")), "{unsubscribed:?}");
}

#[tokio::test]
async fn of_targets_that_lead_somewhere_the_longest_unused_make_room() {
    let (store, mut sink) = store_of_size(10);
    ask_for("used", &store, &mut sink, route("r", &["a"])).await;
    ask_for("unused", &store, &mut sink, route("r", &["a"])).await;
    for turn in 0..20 {
        ask_for(&format!("q{turn}"), &store, &mut sink, route("r", &["a"])).await;
        assert!(store.view("used").is_some(), "{turn}");
        assert_eq!(store.find("unused").is_some(), turn < 8, "{turn}");
    }
    // It is another subscription, and not the one that was given up.
    let progress = ask_for("unused", &store, &mut sink, route("r", &["a"])).await;
    assert!(progress.subscribe.contains(&key(ResourceType::Listener, "unused")), "{progress:?}");
    assert_eq!(send(&store.find("unused").unwrap()).unwrap(), "127.0.0.1:1");
}

#[tokio::test]
async fn a_target_that_goes_and_comes_back_before_the_source_is_told_is_known() {
    let (store, mut sink) = store_of_size(1);
    ask_for("t", &store, &mut sink, route("r", &["a"])).await;
    drop(store.target("x").unwrap());
    let entry = store.target("t").unwrap();
    assert!(entry.peek().is_none(), "it is another one");
    let changed = std::pin::pin!(sink.changed());
    assert!(changed.poll(&mut Context::from_waker(Waker::noop())).is_pending(), "the source need not know");
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:1");
}

#[tokio::test]
async fn however_often_targets_come_and_go_between_two_looks_the_source_is_told_what_is_so_now() {
    let (store, mut sink) = store_of_size(1);
    let come = |names: &[&str]| names.iter().for_each(|name| drop(store.target(name).unwrap()));
    let names = |keys: &[ResourceKey]| keys.iter().map(|key| key.name.to_string()).collect::<Vec<_>>();
    come(&["a", "b", "a"]);
    let told = sink.changed().await.unwrap();
    assert_eq!((names(&told.subscribe), names(&told.unsubscribe)), (vec!["a".to_owned()], vec![]));
    come(&["b", "a", "b"]);
    let told = sink.changed().await.unwrap();
    assert_eq!((names(&told.subscribe), names(&told.unsubscribe)), (vec!["b".to_owned()], vec!["a".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn where_all_targets_are_held_new_ones_are_refused_and_it_is_not_looked_again_for_each() {
    let (store, _sink) = store_of_size(3);
    let mut held: Vec<_> = ["a", "b", "c"].iter().map(|name| store.target(name).unwrap()).collect();
    assert_eq!(store.target("d").unwrap_err().kind(), ErrorKind::Overflow);
    held.pop();
    assert!(store.target("d").is_err(), "it is known that there is no room");
    tokio::time::advance(ROOM_CHECK).await;
    store.target("d").unwrap();
    assert!(store.find("c").is_none() && store.find("b").is_some());
}

#[tokio::test]
async fn a_server_serves_once_its_listener_is_for_the_address_that_it_is_bound_to() {
    let (store, mut sink) = store();
    let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
    let server = store.server(address).unwrap();
    let name = server.listener().clone();
    let progress = sink.changed().await.unwrap();
    assert_eq!(progress.subscribe, [key(ResourceType::Listener, name.as_str())]);
    let listen = |address| update([server_listener(&name, address, |_| {})]);
    sink.apply(listen("127.0.0.2:80".parse().unwrap()));
    assert!(matches!(&*server.state().borrow(), ServerState::NotServing(_)));
    sink.apply(listen(address));
    let state = server.state();
    let ServerState::Serving(view) = state.borrow().clone() else { panic!("serving") };
    assert!(view.chain(address, "127.0.0.1:999".parse().unwrap(), false, None).is_some());
    drop(server);
    assert_eq!(sink.changed().await.unwrap().unsubscribe.len(), 1);
}

#[tokio::test]
async fn a_process_is_who_its_listener_says_by_labels() {
    let (store, mut sink) = store();
    let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
    let server = store.server(address).unwrap();
    let name = server.listener().clone();
    sink.changed().await.unwrap();
    assert_eq!(store.own().get().app, None);
    for (labels, app) in [(vec![("app", "legacy".into())], Some("legacy")), (Vec::new(), None)] {
        sink.apply(update([server_listener(&name, address, |listener| listener.labels = labels)]));
        assert_eq!(store.own().get().app.as_deref(), app);
    }
}

#[tokio::test]
async fn a_server_that_is_no_gateway_believes_nobody_in_front_of_it() {
    let (store, mut sink) = store();
    let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
    let server = store.server(address).unwrap();
    let name = server.listener().clone();
    sink.changed().await.unwrap();
    let listen = |proxy_protocol, proxies| {
        let more = |listener: &mut ServerListener| {
            listener.proxy_protocol = proxy_protocol;
            listener.default_filter_chain.as_mut().unwrap().http.trust.proxies = proxies;
        };
        update([server_listener(&name, address, more)])
    };
    sink.apply(listen(true, 0));
    assert!(matches!(&*server.state().borrow(), ServerState::NotServing(_)));
    sink.apply(listen(false, 1));
    let state = server.state();
    let ServerState::Serving(view) = state.borrow().clone() else { panic!("serving") };
    let chain = view.chain(address, "127.0.0.1:999".parse().unwrap(), false, None).unwrap();
    assert!(chain.admits(Secured::Plaintext).is_err());
}

#[tokio::test]
async fn the_sink_ends_when_the_last_store_is_gone() {
    let (store, mut sink) = store();
    drop(store);
    assert!(sink.changed().await.is_none());
}

const NAMES: [&str; 3] = ["a", "b", "c"];

/// One thing that a control plane changes: the clusters of the only route, where a cluster's endpoints are, or the
/// endpoints; `None` takes the resource away.
#[derive(Clone, Debug)]
enum Turn {
    Route(Vec<usize>),
    Cluster(usize, Option<usize>),
    Endpoints(usize, Option<u16>),
}

fn turn() -> impl Strategy<Value = Turn> {
    let known = |of| proptest::option::weighted(0.8, of);
    prop_oneof![
        proptest::sample::subsequence(vec![0, 1, 2], 1..=3).prop_map(Turn::Route),
        (0..3usize, known(0..3usize)).prop_map(|(name, service)| Turn::Cluster(name, service)),
        (0..3usize, proptest::option::weighted(0.8, 1..9u16)).prop_map(|(name, port)| Turn::Endpoints(name, port)),
    ]
}

/// What a control plane has, and a sink that is told of it as far as it asks.
struct World {
    sink: Sink,
    has: BTreeMap<ResourceKey, Change>,
    subscribed: BTreeSet<ResourceKey>,
}

impl World {
    /// Takes up what is wanted from the start, which needs no waiting.
    fn start(&mut self) {
        let wanted = {
            let changed = std::pin::pin!(self.sink.changed());
            changed.poll(&mut Context::from_waker(Waker::noop()))
        };
        let Poll::Ready(Some(progress)) = wanted else { panic!("nothing is wanted") };
        self.answer(progress);
    }

    fn set(&mut self, key: ResourceKey, change: Change) {
        // What is the same is no news, and the store keeps the one that it has.
        if self.has.get(&key) == Some(&change) {
            return;
        }
        self.has.insert(key.clone(), change.clone());
        if self.subscribed.contains(&key) {
            let progress = self.sink.apply(update([change]));
            self.answer(progress);
        }
    }

    fn answer(&mut self, mut progress: Progress) {
        while !progress.is_empty() {
            for key in &progress.unsubscribe {
                self.subscribed.remove(key);
            }
            self.subscribed.extend(progress.subscribe.iter().cloned());
            let answers = progress.subscribe.iter().filter_map(|key| self.has.get(key).cloned());
            progress = self.sink.apply(update(answers.collect::<Vec<_>>()));
        }
    }

    fn take(&mut self, turn: &Turn) {
        let gone = |key: ResourceKey| (key.clone(), Change::Absent(key, "gone".into()));
        let (key, change) = match turn {
            Turn::Route(clusters) => {
                let clusters: Vec<_> = clusters.iter().map(|name| NAMES[*name]).collect();
                (key(ResourceType::Route, "r"), route("r", &clusters))
            }
            Turn::Cluster(name, None) => gone(key(ResourceType::Cluster, NAMES[*name])),
            Turn::Cluster(name, Some(service)) => {
                let kind = ClusterKind::Eds { service_name: NAMES[*service].into() };
                (key(ResourceType::Cluster, NAMES[*name]), cluster(NAMES[*name], kind))
            }
            Turn::Endpoints(name, None) => gone(key(ResourceType::Endpoints, NAMES[*name])),
            Turn::Endpoints(name, Some(port)) => {
                (key(ResourceType::Endpoints, NAMES[*name]), endpoints(NAMES[*name], &[*port]))
            }
        };
        self.set(key, change);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(10_000) })]

    /// Whatever waits for whatever: endpoints in use are the newest that there are, and a view with all that its
    /// routes name known is never an old one.
    #[test]
    fn every_history_leaves_the_endpoints_in_use_up_to_date(history in proptest::collection::vec(turn(), 1..24)) {
        let (store, sink) = store();
        let entry = store.target("t").unwrap();
        let mut world = World { sink, has: BTreeMap::new(), subscribed: BTreeSet::new() };
        world.set(key(ResourceType::Listener, "t"), listener("t", "r"));
        world.start();
        for (position, turn) in history.iter().enumerate() {
            world.take(turn);
            let Some(view) = entry.view() else { continue };
            for leaf in view.clusters().iter().flat_map(|cluster| cluster.leaves()) {
                let ClusterKind::Eds { service_name } = &leaf.cluster.kind else { panic!("{leaf:?}") };
                let known = world.has.get(&key(ResourceType::Endpoints, service_name));
                if let Some(Change::Put(_, Resource::Endpoints(known))) = known {
                    prop_assert_eq!(leaf.endpoints.as_ref(), Some(known), "after turn {}", position);
                }
            }
            let Some(Change::Put(_, Resource::Route(newest))) = world.has.get(&key(ResourceType::Route, "r")) else {
                continue;
            };
            if world.subscribed.iter().all(|key| world.has.contains_key(key)) {
                let http = HttpManager::new(RouteSource::Named("r".into()));
                prop_assert!(view.routes().is_some_and(|routes| routes.is_of(newest, &http)), "after turn {position}");
            }
        }
    }
}

/// The endpoint of this port.
fn endpoint(entry: &TargetEntry, port: u16) -> Arc<crate::state::EndpointState> {
    let view = entry.view().unwrap();
    let leaves = view.clusters()[0].leaves();
    let all = leaves.iter().flat_map(|leaf| {
        let localities = &leaf.endpoints.as_ref().unwrap().localities;
        let endpoints = localities.iter().flat_map(|locality| &locality.endpoints);
        endpoints.map(|endpoint| leaf.state.endpoint(&endpoint.id, false))
    });
    let id = format!("127.0.0.1:{port}");
    all.into_iter().find(|endpoint| endpoint.id().to_string() == id).unwrap()
}

/// The ports that requests are sent to.
fn ports(entry: &TargetEntry) -> BTreeSet<String> {
    (0..100).filter_map(|_| send_seeded(entry, fastrand::u64(..)).ok()).collect()
}

#[tokio::test]
async fn endpoints_that_cannot_be_reached_get_no_requests_and_their_cluster_gives_way_without_a_push() {
    let (store, mut sink) = store();
    let entry = store.target("t").unwrap();
    _ = sink.changed().await;
    _ = sink.apply(update([listener("t", "r")]));
    _ = sink.apply(update([route("r", &["a"])]));
    let aggregate = cluster("a", ClusterKind::Aggregate(vec!["b".into(), "c".into()]));
    _ = sink.apply(update([aggregate]));
    _ = sink.apply(update([eds("b"), eds("c")]));
    _ = sink.apply(update([endpoints("b", &[1, 2]), endpoints("c", &[3])]));
    let sees = |expected: &[u16]| {
        let expected: BTreeSet<String> = expected.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        assert_eq!(ports(&entry), expected);
    };
    sees(&[1, 2]);
    let (one, two, three) = (endpoint(&entry, 1), endpoint(&entry, 2), endpoint(&entry, 3));
    let (now, mut random) = (std::time::Instant::now(), fastrand::Rng::with_seed(1));
    let settled = |sink: &mut Sink| {
        let changed = std::pin::pin!(sink.changed());
        assert!(changed.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    };
    one.note_unreachable(now, &mut random);
    settled(&mut sink);
    // The next cluster is for when nothing is left of this one.
    sees(&[2]);
    two.note_unreachable(now, &mut random);
    settled(&mut sink);
    sees(&[3]);
    three.note_unreachable(now, &mut random);
    settled(&mut sink);
    // Nobody can be reached: all are tried.
    sees(&[1, 2]);
    // Another push does not forget it.
    three.note_reachable();
    _ = sink.apply(update([endpoints("c", &[3, 4])]));
    settled(&mut sink);
    sees(&[3, 4]);
    one.note_reachable();
    two.note_reachable();
    settled(&mut sink);
    sees(&[1, 2]);
}
