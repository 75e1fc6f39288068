//! reqwest on the mesh, as its users have it: the builder, the URL, the timeout and JSON stay as they are, and
//! `send_through(&mesh)` stands in place of `send()`. `cargo run --example hello_reqwest`.
//!
//! What the mesh does around reqwest's client, and what it cannot do there, is said at `mesh_tower::client::reqwest`. It cannot
//! speak the mesh's mutual TLS: the configuration below says for this one service that plaintext is taken.

use std::future::IntoFuture;
use std::time::Duration;

use anyhow::ensure;
use axum::{Json, Router, routing::post};
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_tower::client::reqwest::{Reqwest, SendThrough};
use mesh_tower::server::ConnectionInfo;
use mesh_tower::{Bootstrap, Mesh};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tower::Layer;

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
# Mutual TLS is the mesh's, and a client that brings connections of its own cannot speak it: calls of this
# program to prices go out in plaintext, and who serves it has to take them. Both stand here; without them no byte would be sent.
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: prices}
spec: {host: prices, workloadSelector: {matchLabels: {app: caller}}, trafficPolicy: {tls: {mode: DISABLE}}}
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
    let caller = Bootstrap::new("embedded").node_id("caller-1").metadata("LABELS", json!({"app": "caller"}));
    let mesh = Mesh::builder().source(control.source(caller)).start()?;

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
