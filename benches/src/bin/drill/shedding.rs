//! Three times as many requests as a server can answer, of which a tenth must not be left out: an `Overload` on the server turns the
//! others away before any work is done, does all the work that can be done, and serves those that matter.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use mesh_benches::Result;
use mesh_benches::stats::judge;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::request_info::{Criticality, Inherited};
use mesh_core::xds::Bootstrap;
use mesh_tower::body::Body;
use mesh_tower::{Client, Mesh, server};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::Layer;

use crate::load::{Load, Sample};

/// How many requests the application works on at a time, and for how long on each.
const SLOTS: usize = 16;
const WORK: Duration = Duration::from_millis(20);
/// So many times as much as it can do comes, of which each tenth must not be left out.
const OVERLOAD: f64 = 3.0;
const CRITICAL: usize = 10;

const GOODPUT: f64 = 0.95;
const SERVED: f64 = 0.99;
const REFUSED: Duration = Duration::from_millis(2);
const BACK: Duration = Duration::from_secs(2);

/// What became of a request, and whether it might have been left out.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    is_critical: bool,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    Refused,
    Failed,
}

pub(crate) async fn run() -> Result<bool> {
    let control = Embedded::start(Config::yaml(yaml()), Options::default()).await;
    let control = control.map_err(|error| anyhow::anyhow!("{error}"))?;
    let workload = |name: &str| {
        let bootstrap = Bootstrap::new("embedded")
            .node_id(format!("mesh~127.0.0.1~{name}.default~default.svc.cluster.local"))
            .metadata("NAMESPACE", "default")
            .metadata("LABELS", serde_json::json!({ "app": name }));
        Mesh::builder().source(control.source(bootstrap)).start()
    };
    let (server, caller) = (workload("web")?, workload("caller")?);
    let at = serve(&server).await?;
    let client = caller.client();
    let known = tokio::time::timeout(Duration::from_secs(20), async {
        while call(client.clone(), true).await.end != End::Done {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    known.await.with_context(|| format!("the service at {at} is not found"))?;
    let capacity = capacity(&client).await?;
    println!("a server that works on {SLOTS} requests at a time, {WORK:?} each: {capacity:.0} a second");

    let rate = (OVERLOAD * capacity) as u32;
    let (caller, mut turn) = (client.clone(), 0_usize);
    let load = Load::start(rate, move || {
        turn += 1;
        call(caller.clone(), turn.is_multiple_of(CRITICAL))
    });
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let samples = load.end().await?;
    let (elapsed, over) = (began.elapsed().as_secs_f64(), Instant::now());
    let count = |is_critical: Option<bool>, end: Option<End>| {
        let is_meant = |sample: &&Sample<Outcome>| {
            is_critical.is_none_or(|wanted| wanted == sample.outcome.is_critical)
                && end.is_none_or(|wanted| wanted == sample.outcome.end)
        };
        samples.iter().filter(is_meant).count()
    };
    let done = count(None, Some(End::Done)) as f64 / elapsed;
    let served = count(Some(true), Some(End::Done)) as f64 / count(Some(true), None).max(1) as f64;
    let (refused, failed) = (count(None, Some(End::Refused)), count(None, Some(End::Failed)));
    let refusals = samples.iter().filter(|sample| sample.outcome.end == End::Refused);
    let mut took: Vec<_> = refusals.map(|sample| sample.took).collect();
    took.sort_unstable();
    let median = took.get(took.len() / 2).copied().unwrap_or_default();
    println!(
        "{} requests, {rate} a second: {done:.0} a second done, {refused} refused, {failed} failed otherwise",
        samples.len()
    );

    // Soon after, all is as before.
    let half = (capacity / 2.0) as u32;
    let load = Load::start(half, move || call(client.clone(), false));
    tokio::time::sleep(Duration::from_secs(4)).await;
    let after = load.end().await?;
    let last = after.iter().rev().find(|sample| sample.outcome.end != End::Done);
    let back = last.map_or(Duration::ZERO, |sample| sample.at.saturating_duration_since(over));
    let met = [
        judge(
            &format!("{:.1} % of what the server can do is done (bar 95 %)", done / capacity * 100.0),
            done >= GOODPUT * capacity,
        ),
        judge(&format!("{:.2} % of those that matter are served (bar 99 %)", served * 100.0), served >= SERVED),
        judge(
            &format!("half of those refused hear so within {median:?} (bar {REFUSED:?})"),
            median <= REFUSED && refused > 0,
        ),
        judge(&format!("{failed} fail without being told why (bar 0)"), failed == 0),
        judge(&format!("all is as before {back:?} after it ends (bar {BACK:?})"), back <= BACK && !after.is_empty()),
    ];
    Ok(met.into_iter().all(|is_met| is_met))
}

/// As many requests as there are slots, one after the other in each.
async fn capacity(client: &Client) -> Result<f64> {
    let (began, mut callers) = (Instant::now(), JoinSet::new());
    for _ in 0..SLOTS {
        let client = client.clone();
        callers.spawn(async move {
            let mut done = 0u32;
            while began.elapsed() < Duration::from_secs(3) {
                done += u32::from(call(client.clone(), true).await.end == End::Done);
            }
            done
        });
    }
    let done: u32 = callers.join_all().await.into_iter().sum();
    Ok(f64::from(done) / began.elapsed().as_secs_f64())
}

async fn call(client: Client, is_critical: bool) -> Outcome {
    let mut request = Request::get("http://web.default.svc.cluster.local/");
    if !is_critical {
        let mut inherited = Inherited::default();
        inherited.criticality = Criticality::Sheddable;
        request = request.extension(inherited);
    }
    let end = match request.body(Body::empty()) {
        Ok(request) => match client.request(request).await {
            Ok(response) if response.status() == StatusCode::OK => match response.into_body().collect().await {
                Ok(_) => End::Done,
                Err(_) => End::Failed,
            },
            Ok(response) if response.headers().contains_key("x-envoy-overloaded") => End::Refused,
            _ => End::Failed,
        },
        Err(_) => End::Failed,
    };
    Outcome { is_critical, end }
}

async fn serve(mesh: &Mesh) -> Result<SocketAddr> {
    let listener = mesh.bind("127.0.0.1:0").await?;
    let at = listener.local_addr();
    let slots = Arc::new(Semaphore::new(SLOTS));
    let work = tower::service_fn(move |_: Request<Incoming>| {
        let slots = Arc::clone(&slots);
        async move {
            let _slot = slots.acquire().await;
            tokio::time::sleep(WORK).await;
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"done"))))
        }
    });
    tokio::spawn(server::serve(listener, mesh.server_layer().layer(work)).into_future());
    mesh.serving().await?;
    Ok(at)
}

/// Who can be left out may take as many places as the application works on; for those that matter there are a few more, where they
/// wait for their turn.
fn yaml() -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{name: http, port: 80}}]}}
---
apiVersion: policy.mesh-control/v1alpha1
kind: Overload
metadata: {{name: web}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  concurrency: {{max: {}, sheddablePercent: 80}}
",
        SLOTS * 5 / 4
    )
}
