//! The status of a server over HTTP, for people and for Prometheus: read only.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::serve::clients::fleet::KindStatus;
use crate::serve::clients::status::{self, Inspect, Status};
use crate::serve::io::server::Server;

/// Puts a report together. `all_names` lists every name that a client asks for, rather than the first
/// hundred of each kind.
pub fn report(server: &Server, inspect: &dyn Inspect, all_names: bool) -> Status {
    status::report(server.state(), inspect, all_names)
}

/// The metrics as Prometheus text.
pub fn metrics(server: &Server, inspect: &dyn Inspect) -> String {
    status::metrics(server.state(), inspect)
}

#[derive(Clone)]
struct Sources {
    server: Arc<Server>,
    inspect: Arc<dyn Inspect>,
}

/// Serves the status of `server` at `address` until `stop` turns true or its sender is gone. Returns the
/// address bound.
pub async fn listen(
    address: SocketAddr,
    server: Arc<Server>,
    inspect: Arc<dyn Inspect>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let router = axum::Router::new()
        .route("/status", get(status_page))
        .route("/metrics", get(metrics_page))
        .route("/calls", get(calls_page))
        .route("/debug/syncz", get(syncz))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .fallback(|| async {
            (StatusCode::NOT_FOUND, "there are /status, /metrics, /calls, /healthz, /ready, /debug/syncz\n")
        })
        .with_state(Sources { server, inspect });
    let task = tokio::spawn(async move {
        // Reports are read and gone: nothing is worth waiting for.
        tokio::select! {
            served = axum::serve(listener, router) => if let Err(error) = served {
                tracing::error!(%error, "the status page stopped");
            },
            _ = stop.wait_for(|stop| *stop) => {}
        }
    });
    Ok((bound, task))
}

#[derive(Deserialize)]
struct Detail {
    /// `all` lists every name.
    #[serde(default)]
    names: String,
}

async fn status_page(State(sources): State<Sources>, Query(detail): Query<Detail>) -> impl IntoResponse {
    Json(report(&sources.server, &*sources.inspect, detail.names == "all"))
}

async fn metrics_page(State(sources): State<Sources>) -> impl IntoResponse {
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, metrics(&sources.server, &*sources.inspect))
}

#[derive(Deserialize)]
struct Whose {
    /// NAMESPACE/NAME; all, unless it is said.
    workload: Option<String>,
}

/// Who called what, as JSON Lines.
async fn calls_page(State(sources): State<Sources>, Query(whose): Query<Whose>) -> impl IntoResponse {
    let Some(calls) = sources.server.calls() else {
        return (StatusCode::NOT_FOUND, "no records of calls are kept here\n").into_response();
    };
    let workload = whose.workload.as_deref().map(|text| text.split_once('/').unwrap_or(("", text)));
    ([(header::CONTENT_TYPE, "application/jsonl")], calls.lines(workload)).into_response()
}

async fn ready(State(sources): State<Sources>) -> impl IntoResponse {
    let is_ready = sources.inspect.is_ready();
    let unread = "not ready: correct what is `unread`, of which nobody can tell what it governs:\n";
    let mut text = if is_ready { "ready\n" } else { unread }.to_owned();
    if let Some(age) = sources.inspect.stale() {
        let age = age.as_secs();
        text += &format!(
            "stale: the directory of the configuration is gone, or empty; what it held {age} s ago is in force\n"
        );
    }
    for wrong in sources.inspect.wrong() {
        let what = wrong.object.unwrap_or(wrong.file);
        text += &format!("{}: {what}: {}\n", wrong.standing, wrong.reason);
    }
    (if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

/// One client in the form of Istiod's `/debug/syncz`, which `istioctl proxy-status` reads.
#[derive(Serialize)]
struct Synced {
    proxy: String,
    istio_version: String,
    #[serde(flatten)]
    kinds: BTreeMap<String, String>,
}

async fn syncz(State(sources): State<Sources>) -> impl IntoResponse {
    let status = report(&sources.server, &*sources.inspect, false);
    let syncs = status.clients.into_iter().map(|client| Synced {
        proxy: client.node,
        istio_version: client.user_agent,
        kinds: client.kinds.into_iter().flat_map(versions).collect(),
    });
    Json(syncs.collect::<Vec<_>>())
}

fn versions(kind: KindStatus) -> [(String, String); 2] {
    let name = match &*kind.kind {
        "cds" => "cluster",
        "eds" => "endpoint",
        "lds" => "listener",
        _ => "route",
    };
    [(format!("{name}_sent"), kind.sent_version), (format!("{name}_acked"), kind.acked_version)]
}
