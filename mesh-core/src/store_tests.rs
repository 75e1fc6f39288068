//! Whole walks from a target to its view, with a source that the test plays itself.

use std::net::SocketAddr;

use super::*;
use crate::call::Call;
use crate::model::{
    ApiListener, Cluster, ClusterKind, Clusters, Endpoints, Forward, HttpManager, Listener, Route, RouteAction,
    RouteConfiguration, RouteMatch, RouteSource, VirtualHost, WeightedCluster,
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
    let http = HttpManager { routes: RouteSource::Named(route.into()), filters: vec![], max_stream_duration: None };
    let listener = Listener::Api(ApiListener { name: name.into(), http });
    Change::Put(key(ResourceType::Listener, name), Resource::Listener(Arc::new(listener)))
}

fn route(name: &str, clusters: &[&str]) -> Change {
    let weighted = clusters.iter().map(|name| WeightedCluster {
        name: (*name).into(),
        weight: 1,
        mutations: Default::default(),
        filters: Default::default(),
    });
    let action = RouteAction::Forward(Forward { clusters: Clusters::Weighted(weighted.collect()), ..Forward::to("x") });
    let route = Route {
        name: name.into(),
        matches: RouteMatch::any(),
        action,
        mutations: Default::default(),
        filters: Default::default(),
    };
    let host = VirtualHost { domains: vec!["*".into()], routes: vec![route], ..VirtualHost::default() };
    let config = RouteConfiguration { name: Some(name.into()), virtual_hosts: vec![host], ..Default::default() };
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
    let view = entry.view().ok_or_else(|| MeshError::new(ErrorKind::UnknownTarget, "no view"))?;
    let request = http::Request::get("http://t/").body(()).unwrap().into_parts().0;
    let head = RequestHead::of(&request)?;
    let mut call = Call::new(Instant::now(), fastrand::Rng::with_seed(1));
    let routed = view.find(&head, &mut call)?;
    let pick = routed.cluster.expect("a forwarding route").pick(&mut call, || "t:80")?;
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
    // An update of what serves now is not held up by what does not serve yet... it becomes visible with it.
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:1");
    let progress = sink.apply(update([endpoints("b", &[2])]));
    assert_eq!(send(&entry).unwrap(), "127.0.0.1:2");
    assert_eq!(progress.unsubscribe, [key(ResourceType::Cluster, "a"), key(ResourceType::Endpoints, "a")]);
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
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::NoCluster, "cluster a: cluster a: does not exist")
    );
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
    let mut call = Call::new(Instant::now(), fastrand::Rng::with_seed(1));
    let held = before.clusters()[1].pick(&mut call, || "").unwrap();
    sink.apply(update([endpoints("b", &[2, 3])]));
    let after = entry.view().unwrap();
    assert!(Arc::ptr_eq(&before.clusters()[0], &after.clusters()[0]));
    assert!(!Arc::ptr_eq(&before.clusters()[1], &after.clusters()[1]));
    assert!(Arc::ptr_eq(before.routes().unwrap(), after.routes().unwrap()));
    // The endpoint that stayed still counts the request of the old view.
    let picked = after.clusters()[1].leaves()[0].state.endpoint(held.in_flight.endpoint().id());
    assert_eq!(picked.in_flight(), 1);
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

#[tokio::test]
async fn a_server_serves_once_its_listener_is_for_the_address_that_it_is_bound_to() {
    let (store, mut sink) = store();
    let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
    let server = store.server(address).unwrap();
    let name = server.listener().clone();
    let progress = sink.changed().await.unwrap();
    assert_eq!(progress.subscribe, [key(ResourceType::Listener, name.as_str())]);
    let listen = |address| {
        let http =
            HttpManager { routes: RouteSource::Inline(Arc::default()), filters: vec![], max_stream_duration: None };
        let chain =
            crate::model::FilterChain { name: "c".into(), matches: Default::default(), http, unusable_tls: None };
        let listener = Listener::Server(crate::model::ServerListener {
            name: name.clone(),
            address,
            filter_chains: vec![],
            default_filter_chain: Some(chain),
        });
        update([Change::Put(key(ResourceType::Listener, name.as_str()), Resource::Listener(Arc::new(listener)))])
    };
    sink.apply(listen("127.0.0.2:80".parse().unwrap()));
    assert!(matches!(&*server.state().borrow(), ServerState::NotServing(_)));
    sink.apply(listen(address));
    let state = server.state();
    let ServerState::Serving(view) = state.borrow().clone() else { panic!("serving") };
    assert!(view.chain(address, "127.0.0.1:999".parse().unwrap()).is_some());
    drop(server);
    assert_eq!(sink.changed().await.unwrap().unsubscribe.len(), 1);
}

#[tokio::test]
async fn the_sink_ends_when_the_last_store_is_gone() {
    let (store, mut sink) = store();
    drop(store);
    assert!(sink.changed().await.is_none());
}
