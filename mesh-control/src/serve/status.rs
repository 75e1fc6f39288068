//! What the server knows, for people and for Prometheus, over HTTP: read only.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::serve::ads::now;
use crate::serve::fleet::{ClientStatus, KindStatus, seconds, unix};
use crate::serve::metrics::{family, single};
use crate::serve::presence::Registered;
use crate::serve::server::Server;

/// What the rest of mesh-control has to say in a status report.
pub trait Inspect: Send + Sync + 'static {
    /// Whether there is a configuration to serve.
    fn is_ready(&self) -> bool {
        true
    }

    /// What is wrong with the configuration.
    fn diagnostics(&self) -> Vec<DiagnosticStatus> {
        Vec::new()
    }

    /// How many services are known.
    fn services(&self) -> usize {
        0
    }

    /// What the workloads that registered serve, by the text form of their keys.
    fn serving(&self) -> BTreeMap<String, Serving> {
        BTreeMap::new()
    }
}

/// What one workload serves.
#[derive(Clone, Debug, Default)]
pub struct Serving {
    /// `host:port` of every service of which it is an endpoint.
    pub services: Vec<String>,
    /// Why it is an endpoint of none, where it is not.
    pub note: Option<String>,
}

/// Everything that a status report says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The version of mesh-control.
    pub version: String,
    /// Unix time in seconds of its start.
    pub started: u64,
    /// Whether there is a configuration to serve.
    pub ready: bool,
    /// How long it goes on settling after its start, in seconds.
    pub settling_seconds: Option<f64>,
    /// How many services it knows.
    pub services: usize,
    /// Who is connected.
    pub clients: Vec<ClientStatus>,
    /// Who registered itself.
    pub workloads: Vec<WorkloadStatus>,
    /// What is wrong with the configuration.
    pub diagnostics: Vec<DiagnosticStatus>,
}

/// A workload that registered itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkloadStatus {
    /// `node.id`
    pub node: String,
    /// Where it serves.
    pub address: SocketAddr,
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `host:port` of every service of which it is an endpoint.
    pub serves: Vec<String>,
    /// Why it is an endpoint of none, where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Its stream is there.
    pub connected: bool,
    /// When its stream is gone: the seconds until it is no longer an endpoint.
    pub expires_seconds: Option<f64>,
}

/// Something wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiagnosticStatus {
    /// `error`, `warning` or `info`.
    pub severity: String,
    /// Which kind of thing.
    pub code: String,
    /// In words.
    pub message: String,
    /// The object, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The field, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The file, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line in that file, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// The column in that line, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
}

/// Puts a report together. `all_names` lists every name that a client asks for, rather than the first
/// hundred of each kind.
pub fn report(server: &Server, inspect: &dyn Inspect, all_names: bool) -> Status {
    let (shared, now) = (server.shared(), now());
    let mut serving = inspect.serving();
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: unix(server.started()),
        ready: inspect.is_ready(),
        settling_seconds: shared
            .settling
            .ends_at()
            .checked_duration_since(now)
            .filter(|left| !left.is_zero())
            .map(seconds),
        services: inspect.services(),
        clients: shared.fleet.all().iter().map(|connection| connection.status(all_names, now)).collect(),
        workloads: shared.presence.registered().into_iter().map(|one| workload(one, &mut serving, now)).collect(),
        diagnostics: inspect.diagnostics(),
    }
}

fn workload(registered: Registered, serving: &mut BTreeMap<String, Serving>, now: Instant) -> WorkloadStatus {
    let Registered { workload, connected, expires } = registered;
    let serving = serving.remove(&workload.key().to_string()).unwrap_or_default();
    WorkloadStatus {
        node: workload.client.node_id.to_string(),
        address: workload.address,
        namespace: workload.client.namespace.to_string(),
        labels: (*workload.client.labels).clone(),
        serves: serving.services,
        note: serving.note,
        connected,
        expires_seconds: expires.map(|at| seconds(at.saturating_duration_since(now))),
    }
}

/// The metrics as Prometheus text.
pub fn metrics(server: &Server, inspect: &dyn Inspect) -> String {
    let shared = server.shared();
    let mut out = String::with_capacity(8 << 10);
    let mut connections: BTreeMap<(&'static str, &'static str), u64> = BTreeMap::new();
    for connection in shared.fleet.all() {
        let session = connection.session();
        *connections.entry((session.client().class.name(), session.protocol().name())).or_default() += 1;
    }
    let version = env!("CARGO_PKG_VERSION");
    family(&mut out, "pilot_xds", "gauge", "Streams that are open.");
    let _ = writeln!(out, "pilot_xds{{version=\"{version}\"}} {}", connections.values().sum::<u64>());
    family(&mut out, "mesh_xds_connections", "gauge", "Streams that are open, by class of client and protocol.");
    for ((class, protocol), count) in connections {
        let _ = writeln!(out, "mesh_xds_connections{{class=\"{class}\",protocol=\"{protocol}\"}} {count}");
    }
    shared.metrics.write(&mut out);
    shared.load.write(&mut out);
    let workloads = shared.presence.registered().len() as u64;
    single(&mut out, "mesh_registered_workloads", "gauge", "Workloads that registered themselves.", workloads);
    single(&mut out, "pilot_services", "gauge", "Services that are known.", inspect.services() as u64);
    let mut severities = BTreeMap::from([("error".to_owned(), 0), ("warning".to_owned(), 0), ("info".to_owned(), 0)]);
    for diagnostic in inspect.diagnostics() {
        *severities.entry(diagnostic.severity).or_insert(0) += 1;
    }
    family(&mut out, "mesh_config_diagnostics", "gauge", "What is wrong with the configuration, by severity.");
    for (severity, count) in severities {
        let _ = writeln!(out, "mesh_config_diagnostics{{severity=\"{severity}\"}} {count}");
    }
    single(&mut out, "mesh_ready", "gauge", "Whether there is a configuration to serve.", inspect.is_ready().into());
    out
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
        .route("/debug/syncz", get(syncz))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there are /status, /metrics, /healthz, /ready, /debug/syncz\n") })
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

async fn ready(State(sources): State<Sources>) -> impl IntoResponse {
    match sources.inspect.is_ready() {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "no configuration is loaded\n"),
    }
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
