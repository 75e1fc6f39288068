//! Twice as many requests as the servers can answer, past a circuit breaker that lets through as many as they work on at a
//! time: what they can do is done all the same, and the others hear at once that it is too much.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use mesh_benches::Result;
use mesh_benches::stats::judge;
use mesh_core::error::ErrorKind;
use mesh_tower::Client;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::endpoint::mesh;
use crate::load::{Load, Sample};
use crate::upstream;

/// How many requests each server works on at a time.
const SLOTS: usize = 8;
/// How long it works on each.
const WORK: Duration = Duration::from_millis(20);
const SERVERS: usize = 2;

/// The share of what the servers can do that has to be done.
const GOODPUT: f64 = 0.9;
/// How soon 99 of 100 of those have to be refused who are.
const REFUSED: Duration = Duration::from_millis(5);

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Refused,
    Failed,
}

pub(crate) async fn run() -> Result<bool> {
    let mut servers = Vec::new();
    for _ in 0..SERVERS {
        servers.push(serve()?);
    }
    let (_control, mesh) = mesh(yaml(&servers)).await?;
    let client = mesh.client();
    _ = call(client.clone()).await;
    let capacity = capacity(&client).await?;
    println!("{SERVERS} servers that work on {SLOTS} requests at a time, {WORK:?} each: {capacity:.0} a second");

    let measured = Duration::from_secs(6);
    let twice = (2.0 * capacity) as u32;
    let caller = client.clone();
    let load = Load::start(twice, move || call(caller.clone()));
    let began = Instant::now();
    tokio::time::sleep(measured).await;
    let samples = load.end().await?;
    let elapsed = began.elapsed().as_secs_f64();
    let done = count(&samples, Outcome::Done) as f64 / elapsed;
    let (refused, failed) = (count(&samples, Outcome::Refused), count(&samples, Outcome::Failed));
    let mut took: Vec<_> =
        samples.iter().filter(|sample| sample.outcome == Outcome::Refused).map(|sample| sample.took).collect();
    took.sort_unstable();
    let p99 = took.get(took.len() * 99 / 100).copied().unwrap_or_default();
    println!("{twice} requests a second: {done:.0} a second done, {refused} refused, {failed} failed otherwise");

    // Soon after, all is as before.
    let half = (capacity / 2.0) as u32;
    let load = Load::start(half, move || call(client.clone()));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = load.end().await?;
    let lost = after.len() - count(&after, Outcome::Done);
    let met = [
        judge(
            &format!("{:.1} % of what the servers can do is done (bar 90 %)", done / capacity * 100.0),
            done >= GOODPUT * capacity,
        ),
        judge(
            &format!("99 % of those refused hear so within {p99:?} (bar {REFUSED:?})"),
            p99 <= REFUSED && refused > 0,
        ),
        judge(&format!("{failed} fail without being told why (bar 0)"), failed == 0),
        judge(
            &format!("{lost} of {} are refused or fail when half of that comes (bar 0.1 %)", after.len()),
            lost * 1000 <= after.len(),
        ),
    ];
    Ok(met.into_iter().all(|is_met| is_met))
}

fn count(samples: &[Sample<Outcome>], outcome: Outcome) -> usize {
    samples.iter().filter(|sample| sample.outcome == outcome).count()
}

/// As many requests as there are slots, one after the other in each.
async fn capacity(client: &Client) -> Result<f64> {
    let (began, mut callers) = (Instant::now(), JoinSet::new());
    for _ in 0..SLOTS * SERVERS {
        let client = client.clone();
        callers.spawn(async move {
            let mut done = 0u32;
            while began.elapsed() < Duration::from_secs(3) {
                done += u32::from(call(client.clone()).await == Outcome::Done);
            }
            done
        });
    }
    let done: u32 = callers.join_all().await.into_iter().sum();
    Ok(f64::from(done) / began.elapsed().as_secs_f64())
}

async fn call(client: Client) -> Outcome {
    match client.get("http://web.example.com/").await {
        Ok(response) if response.status() == StatusCode::OK => match response.into_body().collect().await {
            Ok(_) => Outcome::Done,
            Err(_) => Outcome::Failed,
        },
        Err(error) if error.kind() == ErrorKind::Overflow => Outcome::Refused,
        _ => Outcome::Failed,
    }
}

fn serve() -> Result<SocketAddr> {
    let slots = Arc::new(Semaphore::new(SLOTS));
    upstream::start(move |_| {
        let slots = Arc::clone(&slots);
        async move {
            let _slot = slots.acquire().await;
            tokio::time::sleep(WORK).await;
            Response::new(Full::new(Bytes::from_static(b"done")))
        }
    })
}

fn yaml(servers: &[SocketAddr]) -> String {
    let endpoints: String =
        servers.iter().map(|at| format!("\n  - {{address: {}, ports: {{http: {}}}}}", at.ip(), at.port())).collect();
    let limit = SLOTS * SERVERS;
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web}}
spec:
  hosts: [web.example.com]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:{endpoints}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web}}
spec:
  host: web.example.com
  trafficPolicy:
    connectionPool: {{http: {{http2MaxRequests: {limit}}}}}
"
    )
}
