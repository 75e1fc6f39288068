//! Two clients that were there before the mesh, and how the mesh gets below the one and around the other.
//!
//! `cargo run --bin existing_client`.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_tower::server::{self, ConnectionInfo};
use mesh_tower::{Bootstrap, Mesh};
use serde_json::json;
use tower::{Layer, ServiceExt};

const CONFIG: &str = "
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  selector: {app: hello}
  ports: [{name: http, port: 80}]
---
# The same server by another name.
apiVersion: v1
kind: Service
metadata: {name: plain}
spec:
  selector: {app: hello}
  ports: [{name: http, port: 80}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: plain}
spec:
  hosts: [plain]
  http:
  - match: [{uri: {prefix: /greet/}}]
    rewrite: {uri: /hello/}
    route: [{destination: {host: plain}}]
  - route: [{destination: {host: plain}}]
---
# Mutual TLS is the mesh's, and a client that brings connections of its own cannot speak it: calls to plain go out in
# plaintext, and who serves it has to take them. Both stand here, for plain alone; without them no byte would be sent.
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: plain}
spec: {host: plain, trafficPolicy: {tls: {mode: DISABLE}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: plain}
spec: {selector: {matchLabels: {app: hello}}, mtls: {mode: PERMISSIVE}}
";

#[tokio::main]
#[allow(clippy::print_stdout, reason = "a program that says hello")]
async fn main() -> anyhow::Result<()> {
    let control = Embedded::start(Config::yaml(CONFIG), Options::default().dev()).await?;
    let service = serve_hello(&control).await?;
    let mesh = Mesh::builder().source(control.source(Bootstrap::new("embedded").node_id("caller-1"))).start()?;

    // Below: hyper-util's pooled client goes on as it is, and the mesh says where its connections go, and secures them.
    // Whatever a route decides by path or header is not seen from here: a connection is made before its requests.
    let pooled: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(mesh.connector());
    let response = pooled.get("http://hello/hello/connector".parse()?).await?;
    println!("below:  {}", text(response.into_body()).await?);

    // Around: a tower client that knows nothing of services is told, request by request, which address to call.
    // Routes, faults and balancing apply as they do to `mesh.client()`. Its connections are its own, so not mutual TLS.
    let plain: Client<HttpConnector, _> = Client::builder(TokioExecutor::new()).build_http();
    let routed = mesh.client_layer().layer(plain);
    let request = Request::get("http://plain/greet/layer").body(Empty::<Bytes>::new())?;
    let response = routed.oneshot(request).await?;
    println!("around: {}", text(response.into_body()).await?);

    service.drain().begin().await;
    Ok(())
}

async fn text<B>(body: B) -> anyhow::Result<String>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = body.collect().await.map_err(|error| anyhow::Error::from_boxed(error.into()))?;
    Ok(String::from_utf8(body.to_bytes().to_vec())?)
}

/// Something to call: says hello to the last part of the path.
async fn serve_hello(control: &Embedded) -> anyhow::Result<Mesh> {
    let node = Bootstrap::new("embedded").node_id("hello-1").metadata("LABELS", json!({"app": "hello"}));
    let mesh = Mesh::builder().source(control.source(node)).start()?;
    let listener = mesh.bind("127.0.0.1:0").await?;
    let hello = |name: axum::extract::Path<String>| async move {
        let is_secured = ConnectionInfo::current().is_some_and(|connection| connection.tls().is_some());
        format!("hello, {}, {}", *name, if is_secured { "by mutual TLS" } else { "in plaintext" })
    };
    let app = axum::Router::new().route("/hello/{name}", axum::routing::get(hello));
    tokio::spawn(server::serve(listener, mesh.server_layer().layer(app)).into_future());
    mesh.serving().await?;
    Ok(mesh)
}
