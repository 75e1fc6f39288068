//! An endpoint is killed that the configuration goes on listing: a second later, calls have to be as fast as before, by each
//! way of calling.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use http::{Request, StatusCode};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use mesh_benches::stats::judge;
use mesh_benches::{Result, grpc};
use mesh_control::embedded::Embedded;
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use tower::{Layer, ServiceExt};

use crate::endpoint::{get, mesh, usual};
use crate::load::{Load, Sample, latency};
use crate::upstream::{Apart, Task};

/// Requests a second.
const RATE: u32 = 200;
/// How much slower nine of ten calls may be.
const BAR: f64 = 1.2;

#[derive(Clone, Copy, Debug)]
enum Way {
    Client,
    Layer,
    Grpc,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Client => "the client",
            Way::Layer => "the layer",
            Way::Grpc => "a gRPC channel",
        })
    }
}

pub(crate) async fn run() -> Result<bool> {
    let mut is_met = true;
    for way in [Way::Client, Way::Layer, Way::Grpc] {
        is_met &= by(way).await?;
    }
    Ok(is_met)
}

/// Three endpoints, and a client of them that has called all of them.
struct Three {
    victim: Apart,
    _others: [Task; 2],
    _control: Embedded,
    mesh: Mesh,
}

impl Three {
    async fn start(way: Way) -> Result<Self> {
        let (victim, others) = (Apart::start()?, [Task::start()?, Task::start()?]);
        let endpoints: Vec<_> = std::iter::once(victim.at).chain(others.iter().map(|other| other.at)).collect();
        let (control, mesh) = mesh(usual(&endpoints)).await?;
        for _ in 0..100 {
            anyhow::ensure!(call(way, mesh.clone()).await, "{way}: a call before anything breaks fails");
        }
        Ok(Three { victim, _others: others, _control: control, mesh })
    }

    fn load(&self, way: Way) -> Load<bool> {
        let mesh = self.mesh.clone();
        Load::start(RATE, move || call(way, mesh.clone()))
    }
}

/// Beside those who lose an endpoint there are others at the same time who lose none: how fast the machine is changes for both.
async fn by(way: Way) -> Result<bool> {
    let (mut three, twins) = (Three::start(way).await?, Three::start(way).await?);
    let (load, of_twins) = (three.load(way), twins.load(way));
    let quiet = Instant::now() + Duration::from_secs(1);
    tokio::time::sleep(Duration::from_secs(6)).await;
    three.victim.kill();
    let killed = Instant::now();
    tokio::time::sleep(Duration::from_secs(7)).await;
    let (samples, of_twins) = (load.end().await?, of_twins.end().await?);

    let (later, end) = (killed + Duration::from_secs(1), Instant::now());
    let p90 = |samples: &[Sample<bool>], from, to| latency(samples, from, to, 0.9);
    let (before, after) = (p90(&samples, quiet, killed), p90(&samples, later, end));
    let twins = p90(&of_twins, later, end).as_secs_f64() / p90(&of_twins, quiet, killed).as_secs_f64();
    let failed = samples.iter().filter(|sample| !sample.outcome).count();
    println!(
        "a dead endpoint that is still listed, by {way}: p90 {before:?} before, {:?} in the first second, {after:?} later (of those who lose none {twins:.2} times as much); {failed} of {} failed",
        p90(&samples, killed, later),
        samples.len()
    );
    let ratio = after.as_secs_f64() / before.as_secs_f64() / twins;
    Ok(judge(&format!("p90 after the first second {ratio:.2} times that before (bar {BAR})"), ratio <= BAR))
}

async fn call(way: Way, mesh: Mesh) -> bool {
    match way {
        Way::Client => get(mesh.client()).await.is_some(),
        Way::Layer => by_layer(&mesh).await.is_ok_and(|status| status == StatusCode::OK),
        Way::Grpc => {
            let channel = mesh_tonic::channel(&mesh, "xds:///web.example.com:81");
            grpc::call(channel, Bytes::from_static(b"hello")).await.is_ok()
        }
    }
}

async fn by_layer(mesh: &Mesh) -> Result<StatusCode> {
    static OWN: std::sync::OnceLock<legacy::Client<legacy::connect::HttpConnector, Body>> = std::sync::OnceLock::new();
    let own = OWN.get_or_init(|| legacy::Client::builder(TokioExecutor::new()).build_http()).clone();
    let request = Request::get("http://web.example.com/").body(Body::empty())?;
    let response = mesh.client_layer().layer(own).oneshot(request).await?;
    let status = response.status();
    http_body_util::BodyExt::collect(response.into_body())
        .await
        .map_err(|error| anyhow::anyhow!("{error:?}"))
        .context("no body")?;
    Ok(status)
}
