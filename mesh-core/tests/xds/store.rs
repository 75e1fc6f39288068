//! The whole walk inside the client: from bytes of a management server to the view that a request finds its way
//! by. Rules 25 to 29 of `docs/xds-client-rules.md`.
#![cfg(feature = "testing")]

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, CustomClusterType, DiscoveryType};
use envoy_types::pb::envoy::config::listener::v3::Listener as PbListener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration as PbRoutes;
use envoy_types::pb::envoy::extensions::clusters::aggregate::v3::ClusterConfig;
use http::Request;
use mesh_core::balance::PickArgs;
use mesh_core::error::{ErrorKind, MeshError};
use mesh_core::request::RequestHead;
use mesh_core::store::{ServerState, Source, Store, TargetEntry};
use mesh_core::testing::resources::{
    api_listener, eds_cluster, endpoints, inline_cluster, inline_listener, pack, route, route_to_application, routes,
    routes_to, server_listener, virtual_host,
};
use mesh_core::testing::{Asked, ManagementServer};
use mesh_core::view::{Extensions, TargetView};
use mesh_core::xds::bootstrap::Server;
use mesh_core::xds::{Bootstrap, Resolver, XdsSource};
use tokio::time::Instant;

const IDLE: Duration = Duration::from_secs(60);

/// An application's side, with the xDS source running on the test's runtime.
fn mesh(server: &ManagementServer, features: &[&str]) -> Store {
    run(source(server, features))
}

fn source(server: &ManagementServer, features: &[&str]) -> XdsSource {
    let mut bootstrap = Bootstrap::new("mesh:1").node_id("node-1");
    bootstrap.servers = vec![features.iter().fold(Server::new("mesh:1"), |server, feature| server.feature(*feature))];
    XdsSource::new(bootstrap).connector(server.connector())
}

fn run(source: XdsSource) -> Store {
    let source = Arc::new(source);
    let (store, sink) = Store::new(Arc::clone(&source) as Arc<dyn Source>, Extensions::default(), IDLE);
    tokio::spawn(source.run(sink));
    store
}

/// One service `name` with a route `r`, a cluster `c` and endpoints on these ports.
fn serve(server: &ManagementServer, name: &str, ports: &[u16]) {
    server.put(name, &api_listener(name, "r"));
    server.put("r", &routes_to("r", "c"));
    server.put("c", &eds_cluster("c"));
    put_endpoints(server, "c", ports);
}

fn put_endpoints(server: &ManagementServer, name: &str, ports: &[u16]) {
    let addresses: Vec<_> = ports.iter().map(|port| ("10.0.0.1", *port)).collect();
    server.put(name, &endpoints(name, &addresses));
}

async fn view(entry: &TargetEntry) -> Arc<TargetView> {
    entry.wait((Instant::now() + Duration::from_secs(3600)).into_std()).await.expect("a view")
}

/// Where a request to `/` goes: a port, or the error.
fn goes_to(view: &TargetView) -> Result<u16, MeshError> {
    let request = Request::get("http://app/").body(()).unwrap();
    let parts = request.into_parts().0;
    let head = RequestHead::of(&parts)?;
    let mut random = fastrand::Rng::with_seed(1);
    let routed = view.find(&head, &mut random)?;
    let cluster = routed.cluster.ok_or_else(|| MeshError::new(ErrorKind::NoCluster, "no cluster"))?;
    let pick = cluster.pick(&mut PickArgs::new(&mut random), || "app")?;
    match pick.in_flight.endpoint().id().addresses() {
        [mesh_core::id::Address::Socket(address)] => Ok(address.port()),
        other => panic!("{other:?}"),
    }
}

/// Waits until requests go to this port.
async fn goes_to_port(entry: &TargetEntry, port: u16) {
    let waiting = async {
        while goes_to(&*view(entry).await).ok() != Some(port) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(600), waiting).await.is_err() {
        panic!("requests go to {:?}, not to {port}", goes_to(&*view(entry).await));
    }
}

#[tokio::test(start_paused = true)]
async fn client_rule_26_a_view_appears_when_everything_that_it_needs_is_there() {
    let server = ManagementServer::start();
    server.put("app", &api_listener("app", "r"));
    let store = mesh(&server, &["fail_on_data_errors"]);
    let entry = store.target("app").unwrap();
    // A state-of-the-world server keeps silent about what it lacks, so only the timers could tell.
    for step in 0..3 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(entry.view().is_none(), "step {step}");
        match step {
            0 => server.put("r", &routes_to("r", "c")),
            1 => server.put("c", &eds_cluster("c")),
            _ => put_endpoints(&server, "c", &[81]),
        }
    }
    goes_to_port(&entry, 81).await;
}

#[tokio::test(start_paused = true)]
async fn client_rule_26_an_aggregate_passes_over_leaves_that_do_not_exist() {
    let server = ManagementServer::start();
    serve(&server, "app", &[81]);
    server.put("r", &routes_to("r", "all"));
    let mut aggregate = eds_cluster("all");
    let children = ClusterConfig { clusters: vec!["gone".into(), "c".into()] };
    aggregate.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
        name: "envoy.clusters.aggregate".into(),
        typed_config: Some(pack(&children)),
    }));
    server.put("all", &aggregate);
    let store = mesh(&server, &["delta"]);
    goes_to_port(&store.target("app").unwrap(), 81).await;
}

#[tokio::test(start_paused = true)]
async fn client_rule_27_a_request_keeps_the_cluster_that_it_found_when_the_cluster_goes() {
    for features in [&["fail_on_data_errors"][..], &["delta", "fail_on_data_errors"]] {
        let server = ManagementServer::start();
        serve(&server, "app", &[81]);
        let store = mesh(&server, features);
        let entry = store.target("app").unwrap();
        let held = view(&entry).await;
        server.put("r", &routes_to("r", "d"));
        server.put("d", &eds_cluster("d"));
        put_endpoints(&server, "d", &[82]);
        goes_to_port(&entry, 82).await;
        server.remove::<envoy_types::pb::envoy::config::cluster::v3::Cluster>("c");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(goes_to(&held).unwrap(), 81);
        assert_eq!(goes_to(&*view(&entry).await).unwrap(), 82);
    }
}

#[tokio::test(start_paused = true)]
async fn client_rule_25_and_28_what_does_not_exist_is_unavailable_and_named() {
    for features in [&[][..], &["delta"]] {
        let server = ManagementServer::start();
        server.report_missing();
        let store = mesh(&server, features);
        let entry = store.target("xds:///nobody").unwrap();
        let error = goes_to(&*view(&entry).await).unwrap_err();
        // NOT_FOUND is an application's word (gRFC A54).
        assert_eq!((error.kind(), error.kind().grpc_code()), (ErrorKind::UnknownTarget, 14));
        for part in ["listener nobody", "mesh:1", "node-1"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn client_rule_28_a_rejected_listener_without_a_good_one_says_why() {
    let server = ManagementServer::start();
    server.put("app", &PbListener { name: "app".into(), api_listener: Some(Default::default()), ..Default::default() });
    let store = mesh(&server, &["delta"]);
    let error = goes_to(&*view(&store.target("app").unwrap()).await).unwrap_err();
    assert!(error.to_string().contains("rejected: \"app\": api_listener.api_listener: missing"), "{error}");
    assert_eq!(error.kind().grpc_code(), 14);
}

#[tokio::test(start_paused = true)]
async fn client_rule_28_a_servers_listener_is_no_clients_and_the_other_way_round() {
    let server = ManagementServer::start();
    let bound = "127.0.0.1:8080".parse().unwrap();
    let name = "xds.istio.io/grpc/lds/inbound/127.0.0.1:8080";
    let inside = || routes("", vec![virtual_host("all", &["*"], vec![route_to_application()])]);
    server.put("app", &server_listener("app", bound, inside()));
    server.put(name, &inline_listener(name, routes_to("", "c")));
    let store = mesh(&server, &["delta"]);
    let error = goes_to(&*view(&store.target("app").unwrap()).await).unwrap_err();
    assert!(error.to_string().contains("a server's listener, where a client's is needed"), "{error}");
    let handle = store.server(bound).unwrap();
    let mut state = handle.state();
    let is_decided = |state: &ServerState| !matches!(state, ServerState::Waiting);
    match &*state.wait_for(is_decided).await.unwrap() {
        ServerState::NotServing(reason) => assert!(reason.contains("a client's listener"), "{reason}"),
        other => panic!("{other:?}"),
    }
    server.put(name, &server_listener(name, bound, inside()));
    state.wait_for(|state| matches!(state, ServerState::Serving(_))).await.unwrap();
    // Who drops the handle drains: the control plane hears of it at once.
    server.forget_asked();
    drop(handle);
    server
        .wait_for("the end of the subscription", |asked| {
            let ended = |asked: &Asked| match asked {
                Asked::Delta(_, request) => request.resource_names_unsubscribe == [name],
                Asked::Sotw(..) => false,
            };
            asked.iter().any(ended)
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn client_rule_29_the_old_route_serves_until_the_new_cluster_is_warm() {
    for features in [&[][..], &["delta"]] {
        let server = ManagementServer::start();
        serve(&server, "app", &[81]);
        let store = mesh(&server, features);
        let entry = store.target("app").unwrap();
        goes_to_port(&entry, 81).await;
        server.put("d", &eds_cluster("d"));
        server.set_delay(Duration::from_secs(4));
        server.put("r", &routes_to("r", "d"));
        put_endpoints(&server, "d", &[82]);
        let mut seen = Vec::new();
        while seen.last() != Some(&82) {
            let port = goes_to(&*view(&entry).await).expect("there is always a cluster");
            if seen.last() != Some(&port) {
                seen.push(port);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(seen, [81, 82]);
    }
}

#[tokio::test(start_paused = true)]
async fn client_rule_29_a_cluster_that_never_gets_warm_is_let_go_after_15_s() {
    let server = ManagementServer::start();
    serve(&server, "app", &[81]);
    let store = mesh(&server, &[]);
    let entry = store.target("app").unwrap();
    goes_to_port(&entry, 81).await;
    server.put("cold", &eds_cluster("cold"));
    server.put("r", &routes_to("r", "cold"));
    tokio::time::sleep(Duration::from_secs(14)).await;
    assert_eq!(goes_to(&*view(&entry).await).unwrap(), 81);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let error = goes_to(&*view(&entry).await).unwrap_err();
    assert!(error.to_string().contains("endpoints cold"), "{error}");
    put_endpoints(&server, "cold", &[83]);
    goes_to_port(&entry, 83).await;
}

#[tokio::test(start_paused = true)]
async fn client_rule_22_a_bad_push_and_a_dead_server_leave_every_request_where_it_was() {
    for features in [&[][..], &["delta"]] {
        let server = ManagementServer::start();
        serve(&server, "app", &[81]);
        let store = mesh(&server, features);
        let entry = store.target("app").unwrap();
        goes_to_port(&entry, 81).await;
        server.put("r", &PbRoutes { virtual_hosts: vec![Default::default()], ..routes_to("r", "c") });
        server.put("c", &inline_cluster("c", DiscoveryType::Static, &[("not an address", 1)]));
        server
            .wait_for("two NACKs", |asked| asked.iter().filter(|asked| asked.rejection().is_some()).count() == 2)
            .await;
        assert_eq!(goes_to(&*view(&entry).await).unwrap(), 81);
        server.set_mode(mesh_core::testing::Mode::Refuse);
        server.cut();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(goes_to(&*view(&entry).await).unwrap(), 81);
        server.set_mode(mesh_core::testing::Mode::Serve);
        serve(&server, "app", &[84]);
        let back = Instant::now();
        goes_to_port(&entry, 84).await;
        assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn the_names_of_a_strict_dns_cluster_are_looked_up_and_followed() {
    let server = ManagementServer::start();
    server.put("app", &api_listener("app", "r"));
    server.put("r", &routes_to("r", "c"));
    server.put("c", &inline_cluster("c", DiscoveryType::StrictDns, &[("db.example", 81)]));
    let turn = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&turn);
    let resolver = Resolver::new(move |name| {
        assert_eq!(name, "db.example");
        let turn = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            match turn {
                0 => Err(std::io::Error::other("no such name")),
                _ => Ok(vec![IpAddr::from([10, 0, 0, 1])]),
            }
        }
    });
    let store = run(source(&server, &["delta"]).resolver(resolver));
    let entry = store.target("app").unwrap();
    let error = goes_to(&*view(&entry).await).unwrap_err();
    assert!(error.to_string().contains("no name can be resolved: db.example: no such name"), "{error}");
    goes_to_port(&entry, 81).await;
    // Envoy's refresh rate: every 5 s.
    let before = turn.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(51)).await;
    assert!((before + 9..=before + 11).contains(&turn.load(Ordering::Relaxed)));
    server.put("c", &inline_cluster("c", DiscoveryType::StrictDns, &[("db.example", 82)]));
    goes_to_port(&entry, 82).await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_nobody_uses_is_unsubscribed_from() {
    let server = ManagementServer::start();
    serve(&server, "app", &[81]);
    let store = mesh(&server, &["delta"]);
    let entry = store.target("app").unwrap();
    goes_to_port(&entry, 81).await;
    drop(entry);
    server.forget_asked();
    // Other news do not put the end off.
    let other = store.target("other").unwrap();
    for turn in 0..150 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.put("other", &api_listener("other", &format!("r{turn}")));
        assert!(other.view().is_none_or(|view| view.routes().is_none()));
    }
    let unsubscribed = |asked: &[Asked]| {
        let of = |asked: &Asked| match asked {
            Asked::Delta(_, request) => request.resource_names_unsubscribe.clone(),
            Asked::Sotw(..) => vec![],
        };
        let names: Vec<String> = asked.iter().flat_map(of).collect();
        ["app", "r", "c"].iter().all(|name| names.iter().any(|dropped| dropped == name))
    };
    assert!(unsubscribed(&server.asked()), "{:#?}", server.asked());
    goes_to_port(&store.target("app").unwrap(), 81).await;
}

#[tokio::test]
async fn a_flood_of_updates_does_not_hold_the_applications_thread_up() {
    let server = ManagementServer::start();
    serve(&server, "app", &[81]);
    let store = run(source(&server, &["delta"]));
    let entry = store.target("app").unwrap();
    goes_to_port(&entry, 81).await;
    // A hundred large changes of one route; the application goes on looking at its view meanwhile.
    let large = |turn: usize| {
        let mut all: Vec<_> = (0..500).map(|n| route(&format!("/{turn}/{n}"), "c")).collect();
        all.push(route("/", "c"));
        routes("r", vec![virtual_host("all", &["*"], all)])
    };
    for turn in 0..100 {
        server.put("r", &large(turn));
        assert_eq!(goes_to(&*view(&entry).await).unwrap(), 81);
        tokio::task::yield_now().await;
    }
    put_endpoints(&server, "c", &[85]);
    goes_to_port(&entry, 85).await;
}
