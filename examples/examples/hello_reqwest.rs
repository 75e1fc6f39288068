//! reqwest on the mesh, as its users have it: the builder, the URL, the timeout and JSON stay as they are, and
//! `send_through(&mesh)` stands in place of `send()`. `cargo run --example hello_reqwest`.
//!
//! The mesh goes around reqwest's client (`mesh.client_layer()`), and does all that it does for its own: routes, retries, faults,
//! balancing. The client sends each try to the endpoint that the mesh chose, over its own connections, with its own
//! settings: default headers, connect timeout, pool, TLS for hosts outside of the mesh. Below it the mesh cannot go:
//! what reqwest calls a connector layer is neither told where a connection leads, nor may it bring one of its own
//! (reqwest 0.13.5). So it cannot speak the mesh's mutual TLS either, which `mesh.client()` and `mesh.connector()` do: the
//! configuration below says for this one service that plaintext is taken. Two settings belong to the mesh: a redirect is for the caller to follow, by a name and not by an
//! address, and there is no proxy between the mesh and its endpoints.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::ensure;
use axum::{Json, Router, routing::post};
use http_body::Body as _;
use http_body_util::BodyExt;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_tower::body::Body;
use mesh_tower::client::ClientService;
use mesh_tower::server::ConnectionInfo;
use mesh_tower::{Bootstrap, Deadline, Mesh};
use reqwest::ResponseBuilderExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tower::{Layer, Service, ServiceExt};

/// reqwest's client as a service of `http` requests, for the mesh to go around.
#[derive(Clone)]
struct Reqwest(reqwest::Client);

impl Service<http::Request<Body>> for Reqwest {
    type Response = http::Response<reqwest::Body>;
    type Error = reqwest::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, reqwest::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), reqwest::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let client = self.0.clone();
        // A stream does not say how long it is.
        if let Some(length) = request.body().size_hint().exact().filter(|length| *length > 0) {
            request.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
        }
        let request = request.map(|body| match body.is_end_stream() {
            true => reqwest::Body::default(),
            false => reqwest::Body::wrap_stream(body.into_data_stream()),
        });
        Box::pin(async move { Ok(client.execute(request.try_into()?).await?.into()) })
    }
}

/// What stands in place of [`reqwest::RequestBuilder::send`].
trait SendThrough {
    /// Sends the request through the mesh; its timeout holds for all tries together.
    fn send_through(
        self,
        mesh: &ClientService<Reqwest>,
    ) -> impl Future<Output = anyhow::Result<reqwest::Response>> + Send;
}

impl SendThrough for reqwest::RequestBuilder {
    async fn send_through(self, mesh: &ClientService<Reqwest>) -> anyhow::Result<reqwest::Response> {
        let request = self.build()?;
        let url = request.url().clone();
        let deadline = request.timeout().and_then(|timeout| Instant::now().checked_add(*timeout));
        let mut request = http::Request::try_from(request)?;
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        let (head, body) = mesh.clone().oneshot(request).await?.into_parts();
        let body = reqwest::Body::wrap_stream(body.into_data_stream());
        let mut response = http::Response::builder().status(head.status).version(head.version).url(url).body(body)?;
        *response.headers_mut() = head.headers;
        Ok(response.into())
    }
}

const CONFIG: &str = "
apiVersion: v1
kind: Service
metadata: {name: prices}
spec:
  selector: {app: prices}
  ports: [{name: http, port: 80}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: prices}
spec:
  hosts: [prices]
  http:
  - match: [{uri: {prefix: /slow}}]
    fault: {delay: {fixedDelay: 3600s, percentage: {value: 100}}}
    route: [{destination: {host: prices}}]
  - match: [{uri: {prefix: /v1/}}]
    rewrite: {uri: /}
    route: [{destination: {host: prices}}]
  - route: [{destination: {host: prices}}]
---
# Mutual TLS is the mesh's, and a client that brings connections of its own cannot speak it: calls to prices go out in
# plaintext, and who serves it has to take them. Both stand here, for prices alone; without them no byte would be sent.
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: prices}
spec: {host: prices, trafficPolicy: {tls: {mode: DISABLE}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: prices}
spec: {selector: {matchLabels: {app: prices}}, mtls: {mode: PERMISSIVE}}
";

#[derive(Debug, Deserialize, Serialize)]
struct Order {
    item: String,
    count: u32,
}

#[derive(Debug, Deserialize, Serialize)]
struct Price {
    total: u32,
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "a program that says hello")]
async fn main() -> anyhow::Result<()> {
    let control = Embedded::start(Config::yaml(CONFIG), Options::default().dev()).await?;
    let service = serve_prices(&control).await?;
    let mesh = Mesh::builder().source(control.source(Bootstrap::new("embedded").node_id("caller-1"))).start()?;

    // Once, where the program makes its client.
    let client = reqwest::Client::builder()
        .user_agent("hello")
        .connect_timeout(Duration::from_secs(1))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()?;
    let through = mesh.client_layer().layer(Reqwest(client.clone()));

    // Everywhere else, as before.
    let order = Order { item: "book".to_owned(), count: 3 };
    let request = client.post("http://prices/v1/orders").query(&[("currency", "EUR")]).json(&order);
    let response = request.timeout(Duration::from_secs(10)).send_through(&through).await?;
    ensure!(response.url().as_str() == "http://prices/v1/orders?currency=EUR", "{response:?}");
    let price: Price = response.error_for_status()?.json().await?;
    println!("three books: {} EUR", price.total);

    let late = client.get("http://prices/slow").timeout(Duration::from_millis(50)).send_through(&through).await;
    println!("too late: {}", late.is_err_and(|error| format!("{error:#}").contains("deadline")));

    let missing = client.get("http://prices/nothing").send_through(&through).await?;
    println!("missing: {}", missing.status());

    service.drain().begin().await;
    Ok(())
}

/// Something to call: what an order costs.
async fn serve_prices(control: &Embedded) -> anyhow::Result<Mesh> {
    let node = Bootstrap::new("embedded").node_id("prices-1").metadata("LABELS", json!({"app": "prices"}));
    let mesh = Mesh::builder().source(control.source(node)).start()?;
    let listener = mesh.bind("127.0.0.1:0").await?;
    let price = |Json(order): Json<Order>| async move { Json(Price { total: order.count * 7 }) };
    let app = Router::new().route("/orders", post(price)).layer(mesh.server_layer());
    tokio::spawn(
        axum::serve(listener, app.into_make_service_with_connect_info::<ConnectionInfo>())
            .with_graceful_shutdown(mesh.drained())
            .into_future(),
    );
    mesh.serving().await?;
    Ok(mesh)
}
