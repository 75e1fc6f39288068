//! The application: it calls every endpoint of ten services, and then has nothing to do. Once with hyper-util's
//! client and a list of addresses, once with the mesh.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use mesh_benches::Result;
use mesh_benches::clients::{Job, Version, pooled, send_mesh, send_pooled};
use mesh_benches::process::{Memory, Process, mebibytes, until_orphaned};
use mesh_benches::servers::{self, ServerKind};
use mesh_benches::stats::median;
use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::Mesh;

use crate::config::{self, PORT, address, host};
use crate::control::control;

const SERVICES: usize = 1000;
const ENDPOINTS: usize = 20;
const USED: usize = 10;
/// Requests to each endpoint, on average.
const ROUNDS: usize = 15;

/// Medians, in MiB.
pub(crate) struct Application {
    /// Resident without the mesh, and with it.
    pub(crate) plain: f64,
    pub(crate) meshed: f64,
    /// What the mesh adds to the memory that the application has written itself.
    pub(crate) own_added: f64,
}

/// Measures both kinds, each in processes of their own.
pub(crate) async fn compare(runs: usize) -> Result<Application> {
    let port = servers::http_at(ServerKind::Bare, ([0, 0, 0, 0], 0).into()).await?.port();
    let files = tempfile::tempdir()?;
    std::fs::write(files.path().join("mesh.yaml"), config::services(SERVICES, ENDPOINTS, port))?;
    let (_control, xds) = control(files.path())?;
    let xds = xds.to_string();
    let (mut plain, mut meshed) = (Vec::new(), Vec::new());
    for _ in 0..runs.max(1) {
        plain.push(one(&["--application", &port.to_string()]).await?);
        meshed.push(one(&["--application", &port.to_string(), "--xds", &xds]).await?);
    }
    let of = |all: &[Memory], part: fn(&Memory) -> u64| {
        median(&all.iter().map(|memory| mebibytes(part(memory))).collect::<Vec<_>>())
    };
    Ok(Application {
        plain: of(&plain, |memory| memory.resident),
        meshed: of(&meshed, |memory| memory.resident),
        own_added: of(&meshed, |memory| memory.own) - of(&plain, |memory| memory.own),
    })
}

async fn one(arguments: &[&str]) -> Result<Memory> {
    let (application, line) = Process::again(arguments)?;
    anyhow::ensure!(line == "ready", "the application says {line:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    Memory::of(application.id())
}

/// Is the application.
pub(crate) async fn run(port: u16, xds: Option<&str>) -> Result {
    match xds {
        None => plain(port).await?,
        Some(xds) => meshed(xds).await?,
    }
    Ok(())
}

async fn plain(port: u16) -> Result {
    let client = pooled::<Full<Bytes>>(Version::Http1);
    let addresses = (0..USED).flat_map(|service| (0..ENDPOINTS).map(move |one| address(service, one)));
    let jobs = addresses.map(|address| Job::plain(&SocketAddr::from((address, port)).to_string(), 256));
    let jobs: Vec<_> = jobs.collect::<Result<_>>()?;
    for _ in 0..ROUNDS {
        for job in &jobs {
            send_pooled(&client, job).await?;
        }
    }
    ready(client);
    Ok(())
}

async fn meshed(xds: &str) -> Result {
    let bootstrap = Bootstrap::new(xds).node_id("mesh~127.0.0.1~web.shop~shop.svc.cluster.local");
    let client = Mesh::builder().source(XdsSource::new(bootstrap)).start()?.client();
    for service in 0..USED {
        let job = Job::plain(&format!("{}:{PORT}", host(service)), 256)?;
        for _ in 0..ROUNDS * ENDPOINTS {
            send_mesh(&client, Version::Http1, &job).await.with_context(|| host(service))?;
        }
    }
    ready(client);
    Ok(())
}

/// Says so, and keeps the client until it is no longer looked at.
fn ready<C>(client: C) {
    println!("ready");
    until_orphaned();
    drop(client);
}
