//! What an application makes of a mesh: its own filters and balancers over xDS, and what it is told about them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, LoadBalancingPolicy, load_balancing_policy::Policy};
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use http::StatusCode;
use http::request::Parts;
use http_body_util::BodyExt;
use mesh_core::balance::{EndpointSet, LoadBalancer, PickArgs, Picker};
use mesh_core::client_status::{ResourceState, ResourceStatus};
use mesh_core::error::{ErrorKind, Invalid};
use mesh_core::filter::{Decision, Filter, Reply};
use mesh_core::fixed::Fixed;
use mesh_core::request_info::RequestInfo;
use mesh_core::resources::{ResourceKey, ResourceType};
use mesh_core::state::FilterState;
use mesh_core::testing::ManagementServer;
use mesh_core::testing::resources::{
    api_listener_of, eds_cluster, endpoints, http_filter, http_manager, rds, routes_to, typed_struct,
};
use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::{Mesh, MeshBuilder};

const WAIT: Duration = Duration::from_secs(20);

/// Answers every request with its configuration.
#[derive(Debug)]
struct Echo(Bytes);

impl Filter for Echo {
    fn on_request(&self, _: &mut RequestInfo, _: &mut Parts) -> Decision {
        Decision::Reply(Reply::new(StatusCode::OK, self.0.clone()))
    }
}

fn echo(config: &str, _: &FilterState<'_>) -> Result<Arc<dyn Filter>, Invalid> {
    if config.contains("nonsense") {
        return Err(Invalid::new("echo does not talk nonsense"));
    }
    Ok(Arc::new(Echo(Bytes::copy_from_slice(config.as_bytes()))))
}

/// Always the last endpoint.
#[derive(Debug)]
struct Last;

impl LoadBalancer for Last {
    fn build(&self, set: &EndpointSet, _: Option<&dyn Picker>) -> Box<dyn Picker> {
        Box::new(Position(set.len().checked_sub(1)))
    }
}

#[derive(Debug)]
struct Position(Option<usize>);

impl Picker for Position {
    fn pick(&self, _: &EndpointSet, _: &mut PickArgs<'_>) -> Option<usize> {
        self.0
    }
}

fn builder(server: &ManagementServer) -> MeshBuilder {
    let source = XdsSource::new(Bootstrap::new("mesh:1").node_id("node-1")).connector(server.connector());
    Mesh::builder().source(source)
}

/// A target `app:80` whose filter says `text` and whose cluster has a balancer of the application's own.
fn serve(server: &ManagementServer, text: &str) {
    server.put("app:80", &listener(text));
    server.put("r", &routes_to("r", "c"));
    server.put("c", &cluster());
    server.put("c", &endpoints("c", &[("10.0.0.1", 1), ("10.0.0.1", 2)]));
}

fn listener(text: &str) -> Listener {
    let mut manager = http_manager(rds("r"));
    manager.http_filters.insert(0, http_filter("own", typed_struct("acme.Echo", &[("say", text)])));
    api_listener_of("app:80", &manager)
}

fn cluster() -> Cluster {
    let config = TypedExtensionConfig { name: "own".into(), typed_config: Some(typed_struct("acme.Last", &[])) };
    let policies = vec![Policy { typed_extension_config: Some(config) }];
    Cluster { load_balancing_policy: Some(LoadBalancingPolicy { policies }), ..eds_cluster("c") }
}

async fn ask(mesh: &Mesh) -> Result<String, String> {
    let response = mesh.client().get("http://app/").await.map_err(|error| error.to_string())?;
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Waits until the mesh tells that a resource is in this state.
async fn becomes(mesh: &Mesh, kind: ResourceType, name: &str, state: ResourceState) -> ResourceStatus {
    let key = ResourceKey::new(kind, name);
    let found = async {
        loop {
            let status = mesh.client_status();
            if let Some(found) = status.resources.iter().find(|found| found.key == key && found.state == state) {
                return found.clone();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let found = tokio::time::timeout(WAIT, found).await;
    found.unwrap_or_else(|_| panic!("{key} is not {state:?}: {:?}", mesh.client_status()))
}

#[tokio::test]
async fn a_filter_and_a_balancer_that_the_application_registered_are_accepted_over_xds() {
    let server = ManagementServer::start();
    serve(&server, "hello");
    let mesh = builder(&server).filter("acme.Echo", Arc::new(echo)).balancer("acme.Last", Last).start().unwrap();
    assert_eq!(ask(&mesh).await.unwrap(), r#"{"say":"hello"}"#);
    becomes(&mesh, ResourceType::Listener, "app:80", ResourceState::Acked).await;
    becomes(&mesh, ResourceType::Cluster, "c", ResourceState::Acked).await;
    let view = mesh.store().find("app:80").unwrap().peek().unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    let pick = view.clusters()[0].pick(&mut PickArgs::new(&mut random), || "app").unwrap();
    assert_eq!(pick.in_flight.endpoint().id().to_string(), "10.0.0.1:2");
}

#[tokio::test]
async fn what_the_application_did_not_register_is_rejected_by_name_and_told() {
    let server = ManagementServer::start();
    serve(&server, "hello");
    // Registered, but under other names.
    let mesh = builder(&server).filter("acme.Last", Arc::new(echo)).start().unwrap();
    mesh.store().target("app:80").unwrap();
    let rejected = becomes(&mesh, ResourceType::Listener, "app:80", ResourceState::Nacked).await;
    let details = rejected.error.unwrap().details;
    assert!(details.contains("acme.Echo"), "{details}");
    let mesh = builder(&server).filter("acme.Echo", Arc::new(echo)).start().unwrap();
    mesh.store().target("app:80").unwrap();
    let rejected = becomes(&mesh, ResourceType::Cluster, "c", ResourceState::Nacked).await;
    let details = rejected.error.unwrap().details;
    assert!(details.contains("load_balancing_policy"), "{details}");
}

#[tokio::test]
async fn a_configuration_that_a_filter_refuses_leaves_its_last_good_one_in_force() {
    let server = ManagementServer::start();
    serve(&server, "hello");
    let mesh = builder(&server).filter("acme.Echo", Arc::new(echo)).balancer("acme.Last", Last).start().unwrap();
    assert_eq!(ask(&mesh).await.unwrap(), r#"{"say":"hello"}"#);
    server.put("app:80", &listener("nonsense"));
    let rejected = becomes(&mesh, ResourceType::Listener, "app:80", ResourceState::Nacked).await;
    let details = rejected.error.unwrap().details;
    assert!(details.contains("echo does not talk nonsense"), "{details}");
    assert_eq!(ask(&mesh).await.unwrap(), r#"{"say":"hello"}"#);
}

/// An update that takes as long as the test wants, in the middle of being decoded.
#[tokio::test]
async fn an_update_that_takes_long_keeps_the_meshs_one_thread_busy_and_not_the_applications() {
    let server = ManagementServer::start();
    serve(&server, "hello");
    let (release, released) = mpsc::sync_channel::<()>(1);
    let (released, entered) = (Mutex::new(released), Arc::new(AtomicBool::new(false)));
    let slow = {
        let entered = Arc::clone(&entered);
        move |config: &str, state: &FilterState<'_>| {
            assert_eq!(std::thread::current().name(), Some("mesh-config"));
            if config.contains("slow") && !entered.swap(true, Ordering::SeqCst) {
                released.lock().unwrap().recv_timeout(WAIT).unwrap();
            }
            echo(config, state)
        }
    };
    let mesh = builder(&server).filter("acme.Echo", Arc::new(slow)).balancer("acme.Last", Last).start().unwrap();
    assert_eq!(ask(&mesh).await.unwrap(), r#"{"say":"hello"}"#);
    server.put("app:80", &listener("slow"));
    tokio::time::timeout(WAIT, async {
        while !entered.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the update arrives");
    // The application has one thread here, which serves the control plane as well.
    for _ in 0..100 {
        assert_eq!(ask(&mesh).await.unwrap(), r#"{"say":"hello"}"#);
    }
    release.send(()).unwrap();
    let changed = async {
        while ask(&mesh).await.unwrap() != r#"{"say":"slow"}"# {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(WAIT, changed).await.expect("the update takes effect");
}

#[tokio::test]
async fn a_mesh_without_a_control_plane_tells_nothing() {
    let mesh = Mesh::builder().source(mesh_core::fixed::Fixed::new()).start().unwrap();
    assert_eq!(*mesh.client_status(), Default::default());
}

#[tokio::test]
async fn times_that_no_clock_can_add_to_the_present_mean_for_ever() {
    let source = Fixed::new().service("a:80", []).service("b:80", []);
    let builder = Mesh::builder().source(source).cold_start_wait(Duration::MAX).target_idle(Duration::MAX);
    let mesh = builder.lame_duck(Duration::MAX).start().unwrap();
    let all = async {
        let _listener = mesh.bind("127.0.0.1:0").await.unwrap();
        mesh.serving().await.unwrap();
        // The configuration of each is still to come, from the thread that forgets idle ones.
        for uri in ["http://a:80/", "http://b:80/"] {
            assert_eq!(mesh.client().get(uri).await.unwrap_err().kind(), ErrorKind::NoHealthyEndpoint);
        }
    };
    tokio::time::timeout(WAIT, all).await.expect("in time");
}

#[tokio::test]
async fn a_balancer_that_nobody_registered_is_named_in_the_error() {
    use mesh_core::model::{BalancerPolicy, ClusterKind, Endpoints};
    let endpoints = Endpoints::fixed(["127.0.0.1:9".parse().unwrap()]);
    let mut cluster = mesh_core::model::Cluster::new("c", ClusterKind::Static(endpoints));
    cluster.balancer = BalancerPolicy::Custom("acme.Last".into());
    let source = Fixed::new().routes("app:80", vec![mesh_core::fixed::route_to("c")]).cluster(cluster);
    let mesh = Mesh::builder().source(source).start().unwrap();
    let error = mesh.client().get("http://app:80/").await.unwrap_err();
    assert!(error.to_string().contains("no balancer is registered by the name acme.Last"), "{error}");
}
