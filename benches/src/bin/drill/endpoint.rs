//! One of five endpoints breaks under load, and heals: what callers notice of it, when it gets no more requests, and when it
//! gets some again.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use http_body_util::BodyExt;
use mesh_benches::Result;
use mesh_benches::stats::judge;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::xds::Bootstrap;
use mesh_tower::{Client, Mesh};

use crate::load::{Load, Sample, after, latency};
use crate::upstream::{Apart, Task};

/// How the endpoint breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Killed,
    Hung,
    Refusing,
    Resetting,
    SynDropped,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Killed => "killed",
            Fault::Hung => "hung",
            Fault::Refusing => "refusing connections",
            Fault::Resetting => "resetting connections",
            Fault::SynDropped => "dropping SYNs",
        })
    }
}

/// The one that breaks.
enum Victim {
    Apart(Apart),
    Task(Task),
}

impl Victim {
    fn at(&self) -> SocketAddr {
        match self {
            Victim::Apart(it) => it.at,
            Victim::Task(it) => it.at,
        }
    }

    async fn suffer(&mut self, fault: Fault) -> Result {
        match (self, fault) {
            (Victim::Apart(it), Fault::Killed) => it.kill(),
            (Victim::Apart(it), _) => it.signal("-STOP")?,
            (Victim::Task(it), Fault::Resetting) => it.reset().await?,
            (Victim::Task(it), Fault::SynDropped) => it.drop_syns().await?,
            (Victim::Task(it), _) => it.refuse().await,
        }
        Ok(())
    }

    async fn heal(&mut self, fault: Fault) -> Result {
        match self {
            Victim::Apart(it) if fault == Fault::Killed => it.start_again(),
            Victim::Apart(it) => it.signal("-CONT"),
            Victim::Task(it) => it.heal().await,
        }
    }
}

/// Requests a second.
const RATE: u32 = 400;
/// How many requests may fail: 0.1 %.
const FAILED: f64 = 0.001;
/// When the endpoint has to be out.
const OUT: Duration = Duration::from_secs(5);
/// When it has to be back. Dials are made anew after pauses that grow to 10 s.
const BACK: Duration = Duration::from_secs(15);
/// How long it is broken.
const BROKEN: Duration = Duration::from_secs(6);

/// What an Istio user writes for this.
pub(crate) const RETRIES: &str =
    "retries: {attempts: 3, perTryTimeout: 500ms, retryOn: '5xx,unavailable,deadline-exceeded'}";
pub(crate) const EJECTION: &str =
    "outlierDetection: {consecutive5xxErrors: 5, interval: 1s, baseEjectionTime: 3s, maxEjectionPercent: 50}";

/// Endpoints with a timeout, retries and outlier detection.
pub(crate) fn usual(endpoints: &[SocketAddr]) -> String {
    yaml(endpoints, &format!("timeout: 5s, {RETRIES}"), EJECTION)
}

/// Endpoints with what their route says besides where it leads, and their traffic policy.
pub(crate) fn yaml(endpoints: &[SocketAddr], route: &str, policy: &str) -> String {
    let endpoints: String = endpoints
        .iter()
        .map(|at| format!("\n  - {{address: {}, ports: {{http: {port}, grpc: {port}}}}}", at.ip(), port = at.port()))
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web}}
spec:
  hosts: [web.example.com]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 81, name: grpc, protocol: GRPC}}]
  endpoints:{endpoints}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: web}}
spec:
  hosts: [web.example.com]
  http: [{{{route}, route: [{{destination: {{host: web.example.com}}}}]}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web}}
spec:
  host: web.example.com
  trafficPolicy: {{{policy}}}
"
    )
}

/// A control plane with this configuration, and a client of it.
pub(crate) async fn mesh(yaml: String) -> Result<(Embedded, Mesh)> {
    let control = Embedded::start(Config::yaml(yaml), Options::default()).await;
    let control = control.map_err(|error| anyhow::anyhow!("{error}"))?;
    let mesh = Mesh::builder().source(control.source(Bootstrap::new("embedded"))).start()?;
    Ok((control, mesh))
}

/// Where a GET was answered; `None` if it failed.
pub(crate) async fn get(client: Client) -> Option<SocketAddr> {
    let response = client.get("http://web.example.com/").await.ok()?;
    if !response.status().is_success() {
        return None;
    }
    let name = response.into_body().collect().await.ok()?.to_bytes();
    std::str::from_utf8(&name).ok()?.parse().ok()
}

/// Whether requests may go to an endpoint, as the mesh sees it.
fn may_be_picked(mesh: &Mesh, at: SocketAddr) -> Result<bool> {
    let view = mesh.store().find("web.example.com:80").and_then(|entry| entry.view()).context("no view")?;
    let cluster = view.clusters().first().context("no cluster")?;
    let mut found = None;
    cluster.leaves().first().context("no leaf")?.state.each(|endpoint| {
        if endpoint.id().to_string() == at.to_string() {
            found = Some(endpoint.clone());
        }
    });
    Ok(found.is_some_and(|endpoint| cluster.may_pick(&endpoint)))
}

pub(crate) async fn run(fault: Fault) -> Result<bool> {
    let mut victim = match fault {
        Fault::Killed | Fault::Hung => Victim::Apart(Apart::start()?),
        _ => Victim::Task(Task::start()?),
    };
    let others = [Task::start()?, Task::start()?, Task::start()?, Task::start()?];
    let at = victim.at();
    let endpoints: Vec<_> = std::iter::once(at).chain(others.iter().map(|other| other.at)).collect();
    let (_control, mesh) = mesh(usual(&endpoints)).await?;
    let client = mesh.client();
    // All of them are connected to, and nothing is new any more.
    for _ in 0..200 {
        get(client.clone()).await.context("a request before anything breaks fails")?;
    }
    let load = Load::start(RATE, move || get(client.clone()));
    let quiet = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;

    let broke = Instant::now();
    victim.suffer(fault).await?;
    let mut out = None;
    while broke.elapsed() < BROKEN {
        if out.is_none() && !may_be_picked(&mesh, at)? {
            out = Some(broke.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let healed = Instant::now();
    victim.heal(fault).await?;
    tokio::time::sleep(BACK).await;
    let samples = load.end().await?;
    report(fault, &samples, at, (quiet, broke, healed), out)
}

fn report(
    fault: Fault,
    samples: &[Sample<Option<SocketAddr>>],
    at: SocketAddr,
    (quiet, broke, healed): (Instant, Instant, Instant),
    out: Option<Duration>,
) -> Result<bool> {
    let failed = samples.iter().filter(|sample| sample.outcome.is_none()).count();
    let back = samples.iter().find(|sample| sample.at > healed && sample.outcome == Some(at));
    let back = back.map(|sample| sample.at.duration_since(healed));
    let p99 = |from, to| latency(samples, from, to, 0.99);
    println!("one of five endpoints is {fault}, {RATE} requests a second:");
    println!(
        "  p99: {:?} before, {:?} while it is broken, {:?} after",
        p99(quiet, broke),
        p99(broke, healed),
        p99(healed, Instant::now())
    );
    let share = failed as f64 / samples.len().max(1) as f64;
    let met = [
        judge(
            &format!("{failed} of {} requests failed ({:.3} %; bar 0.1 %)", samples.len(), share * 100.0),
            share <= FAILED,
        ),
        judge(&format!("it was out {} (bar {OUT:?})", after(out)), out.is_some_and(|out| out <= OUT)),
        judge(&format!("it was back {} (bar {BACK:?})", after(back)), back.is_some()),
    ];
    Ok(met.into_iter().all(|is_met| is_met))
}
