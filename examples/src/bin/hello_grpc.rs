//! A gRPC service and its caller in one mesh, with the control plane in the same process.
//!
//! The service is the standard health service, whose stubs come with tonic; a service of your own looks the same.
//! `cargo run --bin hello_grpc`.

use mesh_control::embedded::{Config, Embedded, Options};
use mesh_tonic::health::HealthService;
use mesh_tower::{Bootstrap, Mesh, server};
use serde_json::json;
use tonic::service::Routes;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::Layer;

const CONFIG: &str = "
apiVersion: v1
kind: Service
metadata: {name: greeter}
spec:
  selector: {app: greeter}
  ports: [{name: grpc, port: 50051}]
";

#[tokio::main]
#[allow(clippy::print_stdout, reason = "a program that says hello")]
async fn main() -> anyhow::Result<()> {
    let control = Embedded::start(Config::yaml(CONFIG), Options::default().dev()).await?;

    // The service: any tonic service, with the mesh's layer around it and the mesh's listener below it.
    let node = Bootstrap::new("embedded").node_id("greeter-1").metadata("LABELS", json!({"app": "greeter"}));
    let mesh = Mesh::builder().source(control.source(node)).start()?;
    let listener = mesh.bind("127.0.0.1:0").await?;
    let health = HealthService::new(&mesh).into_server();
    let app = mesh_tonic::server_layer(&mesh).layer(Routes::new(health));
    let server = tokio::spawn(server::serve(listener, app).readable_bodies().into_future());
    mesh.serving().await?;

    // The caller: any generated client, over a channel of the mesh. Its deadline travels with the call.
    let caller = Mesh::builder().source(control.source(Bootstrap::new("embedded").node_id("caller-1"))).start()?;
    let mut client = HealthClient::new(mesh_tonic::channel(&caller, "xds:///greeter:50051"));
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    request.set_timeout(std::time::Duration::from_secs(5));
    let answer = client.check(request).await?.into_inner();
    println!("greeter is {}", answer.status().as_str_name());

    mesh.drain().begin().await;
    Ok(server.await??)
}
