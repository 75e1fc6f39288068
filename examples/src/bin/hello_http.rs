//! A web service and its caller in one mesh, with the control plane in the same process.
//!
//! The service says who it is by its labels; the route finds it by its name. `cargo run --bin hello_http`.

use axum::extract::{ConnectInfo, Path};
use axum::{Router, routing::get};
use http_body_util::BodyExt;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_tower::core::identity::SpiffeId;
use mesh_tower::server::ConnectionInfo;
use mesh_tower::{Bootstrap, Mesh};
use serde_json::json;

const CONFIG: &str = "
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  selector: {app: hello}
  ports: [{name: http, port: 80}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hello}
spec:
  hosts: [hello]
  http:
  - match: [{uri: {prefix: /greet/}}]
    rewrite: {uri: /hello/}
    route: [{destination: {host: hello}}]
  - route: [{destination: {host: hello}}]
";

#[tokio::main]
#[allow(clippy::print_stdout, reason = "a program that says hello")]
async fn main() -> anyhow::Result<()> {
    let control = Embedded::start(Config::yaml(CONFIG), Options::default().dev()).await?;

    // The service: any axum router, with the mesh's listener below it and the mesh's layer around it.
    let node = |id, account| Bootstrap::new("embedded").node_id(id).metadata("SERVICE_ACCOUNT", account);
    let mesh = control.source(node("hello-1", "hello").metadata("LABELS", json!({"app": "hello"})));
    let mesh = Mesh::builder().source(mesh).start()?;
    let listener = mesh.bind("127.0.0.1:0").await?;
    // Who asks is known by mutual TLS, which development mode has everywhere.
    let hello = get(|name: Path<String>, ConnectInfo(connection): ConnectInfo<ConnectionInfo>| async move {
        format!("hello, {}, from {}", *name, connection.peer_identity().map_or("nobody", SpiffeId::as_str))
    });
    let app = Router::new().route("/hello/{name}", hello).layer(mesh.server_layer());
    let app = app.into_make_service_with_connect_info::<ConnectionInfo>();
    let server = axum::serve(listener, app).with_graceful_shutdown(mesh.drained());
    let server = tokio::spawn(server.into_future());
    mesh.serving().await?;

    // The caller: a tower service for any `http::Request`, with a mesh of its own.
    let caller = Mesh::builder().source(control.source(node("caller-1", "web"))).start()?;
    for path in ["hello/world", "greet/mesh"] {
        let response = caller.client().get(format!("http://hello/{path}")).await?;
        println!(
            "{} {}",
            response.status(),
            String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes())
        );
    }

    mesh.drain().begin().await;
    Ok(server.await??)
}
