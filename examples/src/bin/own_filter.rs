//! A filter of the application's own: registered by name in Rust, selected and configured in YAML.
//!
//! `cargo run --bin own_filter`; with the arguments `schemas NAMESPACE` it prints what `mesh-control validate` checks configurations
//! of that namespace by: `istio-system` is for all.

use std::sync::Arc;

use axum::{Router, routing::get};
use http::{HeaderValue, StatusCode, request, response};
use http_body_util::BodyExt;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::error::Invalid;
use mesh_core::filter::{Decision, Filter, FilterFactory, Reply};
use mesh_core::request_info::RequestInfo;
use mesh_tower::body::Body;
use mesh_tower::{Bootstrap, Mesh, MeshBuilder, server};
use serde::Deserialize;
use serde_json::json;
use tower::Layer;

const CONFIG: &str = "
apiVersion: v1
kind: Service
metadata: {name: hello}
spec: {selector: {app: hello}, ports: [{name: http, port: 80}]}
---
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: tenants}
spec:
  selector: {matchLabels: {app: hello}}
  pluginName: acme.tenant
  pluginConfig: {header: x-tenant, known: [red, blue]}
";

/// Lets in who names a tenant that there is, and tells the answer whose it was.
#[derive(Debug, Deserialize)]
struct Tenants {
    header: String,
    known: Vec<String>,
}

const SCHEMA: &str = r#"{
    "type": "object",
    "required": ["header", "known"],
    "properties": {"header": {"type": "string"}, "known": {"type": "array", "items": {"type": "string"}}}
}"#;

impl Filter for Tenants {
    fn on_request(&self, _: &mut RequestInfo, head: &mut request::Parts) -> Decision {
        let tenant = head.headers.get(&self.header).and_then(|tenant| tenant.to_str().ok());
        match tenant {
            Some(tenant) if self.known.iter().any(|known| known == tenant) => Decision::Continue,
            Some(_) => Decision::Reply(Reply::new(StatusCode::FORBIDDEN, "nobody knows that tenant")),
            None => Decision::Reply(Reply::new(StatusCode::BAD_REQUEST, "which tenant?")),
        }
    }

    fn on_response(&self, _: &mut RequestInfo, head: &mut response::Parts) {
        head.headers.insert("x-checked", HeaderValue::from_static("tenant"));
    }
}

fn with_filters(builder: MeshBuilder) -> MeshBuilder {
    let tenants: FilterFactory = Arc::new(|config, _| {
        let tenants: Tenants = serde_json::from_str(config).map_err(|why| Invalid::new(why.to_string()))?;
        Ok(Arc::new(tenants))
    });
    builder.filter_with_schema("acme.tenant", SCHEMA, tenants)
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "a program that says hello")]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    if args.next().is_some_and(|command| command == "schemas") {
        let namespace = args.next().unwrap_or_else(|| "istio-system".to_owned());
        print!("{}", with_filters(Mesh::builder()).filter_schemas(&namespace));
        return Ok(());
    }
    let control = Embedded::start(Config::yaml(CONFIG), Options::default()).await?;
    let source =
        control.source(Bootstrap::new("embedded").node_id("hello-1").metadata("LABELS", json!({"app": "hello"})));
    let mesh = with_filters(Mesh::builder().source(source)).start()?;
    let listener = mesh.bind("127.0.0.1:0").await?;
    let app = mesh.server_layer().layer(Router::new().route("/", get(async || "hello")));
    tokio::spawn(server::serve(listener, app).into_future());
    mesh.serving().await?;

    let caller = Mesh::builder().source(control.source(Bootstrap::new("embedded").node_id("caller-1"))).start()?;
    for tenant in ["", "red", "green"] {
        let mut request = http::Request::get("http://hello/");
        if !tenant.is_empty() {
            request = request.header("x-tenant", tenant);
        }
        let response = caller.client().request(request.body(Body::empty())?).await?;
        let status = response.status().as_u16();
        println!("{status} {}", String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()));
    }
    Ok(())
}
