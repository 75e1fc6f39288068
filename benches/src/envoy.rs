//! A pair of Envoy sidecars around a client and a server, as a mesh with sidecars has them: one process each,
//! HTTP from the one to the other. No TLS, no statistics filter, no access log: the least that sidecars cost; or with the policy
//! of [`routed_mesh`](crate::clients::routed_mesh).

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Result;
use crate::clients::ROUTES;
use crate::process::Process;
use crate::servers::Served;

/// One Envoy that listens for HTTP and for gRPC and passes both on.
pub struct Sidecar {
    process: Process,
    listens: Served,
    _files: TempDir,
}

/// What it does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It passes them on.
    None,
    /// What [`routed_mesh`](crate::clients::routed_mesh) does.
    Routed,
}

impl Sidecar {
    /// Starts one in front of these servers.
    pub async fn start(binary: &Path, upstream: Served, policy: Policy) -> Result<Self> {
        let files = TempDir::new()?;
        let (config, admin) = (files.path().join("envoy.json"), files.path().join("admin"));
        std::fs::write(&config, configuration(upstream, policy).to_string())?;
        let process = Process::start(command(binary, &config).arg("--admin-address-path").arg(&admin))?;
        let listens = tokio::time::timeout(Duration::from_secs(30), listening(&admin)).await;
        let listens = listens.context("envoy does not answer")??;
        Ok(Sidecar { process, listens, _files: files })
    }

    /// Where it listens.
    pub fn listens(&self) -> Served {
        self.listens
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

/// One with this configuration: two workers, and nothing said but what is wrong.
pub fn command(binary: &Path, config: &Path) -> Command {
    let mut command = Command::new(binary);
    command.arg("--config-path").arg(config);
    command.args(["--use-dynamic-base-id", "--concurrency", "2", "--log-level", "error"]).stdout(Stdio::null());
    command
}

/// Asks the administration page for the ports, until both are there.
async fn listening(admin: &Path) -> Result<Served> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let Ok(address) = std::fs::read_to_string(admin) else { continue };
        let Ok(response) = client.get(format!("http://{}/listeners?format=json", address.trim()).parse()?).await else {
            continue;
        };
        let page: Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
        if let (Some(http), Some(grpc)) = (port(&page, "http"), port(&page, "grpc")) {
            return Ok(Served { http, grpc });
        }
    }
}

fn port(page: &Value, name: &str) -> Option<SocketAddr> {
    let listeners = page["listener_statuses"].as_array()?;
    let listener = listeners.iter().find(|listener| listener["name"] == name)?;
    let port = listener["local_address"]["socket_address"]["port_value"].as_u64()?;
    Some(SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).ok()?)))
}

fn configuration(upstream: Served, policy: Policy) -> Value {
    json!({
        "admin": { "address": address(([127, 0, 0, 1], 0).into()) },
        "static_resources": {
            "listeners": [listener("http", policy), listener("grpc", policy)],
            "clusters": [cluster("http", upstream.http, policy), cluster("grpc", upstream.grpc, policy)],
        },
    })
}

fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

/// One of the routes of `routed_mesh`.
fn routed(cluster: &str, position: usize) -> Value {
    let path = if position + 1 == ROUTES { "/".to_owned() } else { format!("/r{position}/") };
    let set = |name: &str, value: &str| json!([{ "header": { "key": name, "value": value }, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" }]);
    let tenant = json!({ "name": "tenant", "string_match": { "exact": format!("t{position}") } });
    let cors = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": [{ "exact": "https://shop.example" }],
    });
    json!({
        "match": { "prefix": path, "query_parameters": [tenant] },
        "route": { "cluster": cluster, "timeout": "0s", "retry_policy": { "retry_on": "5xx", "num_retries": 3 } },
        "request_headers_to_add": set("x-tenant", "one"),
        "request_headers_to_remove": ["x-internal"],
        "response_headers_to_add": set("x-served-by", "mesh"),
        "response_headers_to_remove": ["x-debug"],
        "typed_per_filter_config": { "envoy.filters.http.cors": cors },
    })
}

fn listener(name: &str, policy: Policy) -> Value {
    let hcm = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let routes = match policy {
        Policy::None => vec![json!({ "match": { "prefix": "/" }, "route": { "cluster": name, "timeout": "0s" } })],
        Policy::Routed => (0..ROUTES).map(|position| routed(name, position)).collect(),
    };
    let mut filters = vec![json!({ "name": "router", "typed_config": { "@type": router } })];
    if policy == Policy::Routed {
        let cors = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors";
        filters.insert(0, json!({ "name": "envoy.filters.http.cors", "typed_config": { "@type": cors } }));
    }
    let manager = json!({
        "@type": hcm,
        "stat_prefix": name,
        "codec_type": "AUTO",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
        "http_filters": filters,
    });
    let filter = json!({ "name": "http_connection_manager", "typed_config": manager });
    json!({
        "name": name,
        "address": address(([127, 0, 0, 1], 0).into()),
        "filter_chains": [{ "filters": [filter] }],
    })
}

fn cluster(name: &str, upstream: SocketAddr, policy: Policy) -> Value {
    let endpoint = json!({ "endpoint": { "address": address(upstream) } });
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "use_downstream_protocol_config": { "http_protocol_options": {}, "http2_protocol_options": {} },
            },
        },
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] },
    });
    if policy == Policy::Routed {
        cluster["outlier_detection"] = json!({});
        cluster["circuit_breakers"] = json!({ "thresholds": [{ "max_requests": 1024 }] });
    }
    cluster
}
