//! An Envoy as Istio configures its sidecars for calls: retries after Istio's default conditions, and no limits.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use mesh_benches::Result;
use mesh_benches::envoy::command;
use mesh_benches::process::Process;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// Whether there is one.
pub(crate) fn is_there(binary: &Path) -> bool {
    let version = Command::new(binary).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// An Envoy at work.
pub(crate) struct Envoy {
    _process: Process,
    _files: TempDir,
}

/// Starts one that passes on what comes to each port.
pub(crate) async fn start(binary: &Path, upstreams: &[(u16, SocketAddr)], retries: u32) -> Result<Envoy> {
    let files = TempDir::new()?;
    let config = files.path().join("envoy.json");
    std::fs::write(&config, configuration(upstreams, retries).to_string())?;
    let envoy = Envoy { _process: Process::start(&mut command(binary, &config))?, _files: files };
    let started = Instant::now();
    for (port, _) in upstreams {
        while TcpStream::connect(("127.0.0.1", *port)).await.is_err() {
            anyhow::ensure!(started.elapsed() < Duration::from_secs(30), "envoy does not listen on {port}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    upstreams.first().context("an Envoy for nobody")?;
    Ok(envoy)
}

fn configuration(upstreams: &[(u16, SocketAddr)], retries: u32) -> Value {
    let listeners: Vec<_> = upstreams.iter().map(|(port, _)| listener(*port, retries)).collect();
    let clusters: Vec<_> = upstreams.iter().map(|(port, at)| cluster(*port, *at)).collect();
    json!({ "static_resources": { "listeners": listeners, "clusters": clusters } })
}

fn address(port: u16) -> Value {
    json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } })
}

fn listener(port: u16, retries: u32) -> Value {
    let policy = json!({
        "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
        "retriable_status_codes": [503],
        "num_retries": retries,
        "host_selection_retry_max_attempts": 5,
        "retry_host_predicate": [{
            "name": "previous_hosts",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate" },
        }],
    });
    let route = json!({
        "match": { "prefix": "/" },
        "route": { "cluster": format!("to-{port}"), "timeout": "0s", "retry_policy": policy },
    });
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "out",
        "route_config": { "virtual_hosts": [{
            "name": "all", "domains": ["*"], "routes": [route], "include_request_attempt_count": true,
        }] },
        "http_filters": [{ "name": "router", "typed_config": { "@type": router } }],
    });
    let filter = json!({ "name": "http_connection_manager", "typed_config": manager });
    json!({ "name": format!("at-{port}"), "address": address(port), "filter_chains": [{ "filters": [filter] }] })
}

fn cluster(port: u16, at: SocketAddr) -> Value {
    let endpoint = json!({ "endpoint": { "address": address(at.port()) } });
    let most = u32::MAX;
    let limits = json!({
        "max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": most,
    });
    json!({
        "name": format!("to-{port}"),
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": { "thresholds": [limits] },
        "load_assignment": { "cluster_name": format!("to-{port}"), "endpoints": [{ "lb_endpoints": [endpoint] }] },
    })
}
