//! The whole walk, from YAML to a request answered: embedded control plane, xDS, client, server.

use std::time::Duration;

use http_body_util::BodyExt;
use mesh_control::embedded::{Config, Embedded, Options, OutboundTrafficPolicy, PlaneOptions};
use mesh_core::error::ErrorKind;
use mesh_core::xds::Bootstrap;
use mesh_tower::Mesh;
use serde_json::json;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
";

fn to_subset(subset: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews}}
spec:
  hosts: [reviews]
  http:
  - route:
    - destination: {{host: reviews, subset: {subset}}}
"
    )
}

fn mesh(control: &Embedded, name: &str, version: &str) -> Mesh {
    let bootstrap = Bootstrap::new("embedded")
        .node_id(format!("mesh~127.0.0.1~{name}-{version}.default~default.svc.cluster.local"))
        .metadata("NAMESPACE", "default")
        .metadata("LABELS", json!({"app": name, "version": version}));
    Mesh::builder().source(control.source(bootstrap)).cold_start_wait(Duration::from_secs(10)).start().unwrap()
}

/// A server of `reviews` that answers with its version; it registers itself.
async fn serve(control: &Embedded, version: &'static str) -> Mesh {
    let mesh = mesh(control, "reviews", version);
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let app = axum::Router::new().route("/", axum::routing::get(move || async move { version }));
    let app = app.layer(mesh.server_layer());
    tokio::spawn(async move { mesh_tower::server::serve(listener, app).await });
    mesh
}

async fn ask(mesh: &Mesh) -> Result<String, ErrorKind> {
    let response = mesh.client().get("http://reviews:9080/").await.map_err(|error| error.kind())?;
    let body = response.into_body().collect().await.map_err(|error| error.kind())?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Asks until the answers are `expected`, and then once more many times.
async fn becomes(mesh: &Mesh, expected: &str) {
    let settled = async {
        while ask(mesh).await.as_deref() != Ok(expected) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled).await.expect("the change takes effect");
    for _ in 0..20 {
        assert_eq!(ask(mesh).await.as_deref(), Ok(expected));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn yaml_routes_requests_to_servers_that_registered_themselves() {
    let control = Embedded::start(Config::yaml(SERVICES), Options::default()).await.unwrap();
    let _one = serve(&control, "v1").await;
    let two = serve(&control, "v2").await;
    let client = mesh(&control, "web", "v1");
    control.set_yaml("route.yaml", &to_subset("v1")).unwrap();
    becomes(&client, "v1").await;
    control.set_yaml("route.yaml", &to_subset("v2")).unwrap();
    becomes(&client, "v2").await;
    // A text that is wrong changes nothing.
    assert!(control.set_yaml("route.yaml", "spec: [").is_err());
    becomes(&client, "v2").await;
    // The only server of the subset leaves: nobody is asked any more.
    two.drain().begin().await;
    let left = async {
        while ask(&client).await != Err(ErrorKind::NoHealthyEndpoint) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), left).await.expect("the endpoint is gone");
}

#[tokio::test]
async fn an_unknown_host_is_an_error_that_names_the_listener_and_the_reason() {
    let options =
        Options::default().plane(PlaneOptions::default().outbound_traffic_policy(OutboundTrafficPolicy::RegistryOnly));
    let control = Embedded::start(Config::yaml(SERVICES), options).await.unwrap();
    let client = mesh(&control, "web", "v1");
    let error = client.client().get("http://nobody:1/").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownTarget);
    let text = error.to_string();
    assert!(text.contains("listener nobody:1") && text.contains("REGISTRY_ONLY"), "{text}");
}
