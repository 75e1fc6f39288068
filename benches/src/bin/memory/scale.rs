//! mesh-control in a large mesh, and as a mesh grows.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use mesh_benches::Result;
use mesh_benches::process::{Memory, Process, cpu, mebibytes};
use mesh_control::catalog::Kind;
use tempfile::TempDir;

use crate::chart::Point;
use crate::config::{self, PORT, host};
use crate::control::{control_at, share};
use crate::fleet::Fleet;
use crate::stream::Stream;

/// Between two changes, so that each is told by itself.
const PAUSE: Duration = Duration::from_millis(100);
/// Services in one file.
const OF_A_FILE: usize = 100;
/// The services whose endpoints come and go: how many clients call them.
const ALL: usize = 0;
const SOME: usize = 1;
const FEW: usize = 2;
const CALLED_BY_SOME: usize = 40;
const CALLED_BY_FEW: usize = 3;

/// A mesh, and those who call it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) services: usize,
    pub(crate) endpoints: usize,
    pub(crate) clients: usize,
    /// How many services a client calls.
    pub(crate) calls: usize,
}

/// What changes of one endpoint came to.
pub(crate) struct Changes {
    /// How many clients call the service.
    pub(crate) concerned: usize,
    /// Milliseconds until a client has accepted it.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) last: f64,
    /// Milliseconds of processor time of mesh-control for one.
    pub(crate) work: f64,
}

/// What was measured: memory in MiB, times in milliseconds.
pub(crate) struct Measured {
    /// From the start of the process until it serves.
    pub(crate) load: f64,
    pub(crate) alone: f64,
    pub(crate) with_clients: f64,
    /// Until all clients hold what they call.
    pub(crate) first: f64,
    pub(crate) changes: Vec<Changes>,
    /// Until all clients have accepted what changed in a file.
    pub(crate) written: f64,
    /// From the start of a new process until all clients hold everything again.
    pub(crate) again: f64,
}

impl Measured {
    /// A point of the curve.
    pub(crate) fn point(&self, services: usize) -> Point {
        let change = self.changes.iter().map(|changes| changes.p99).fold(0.0, f64::max);
        Point { services, alone: self.alone, with_clients: self.with_clients, load: self.load / 1000.0, change }
    }
}

/// Connects the clients, changes endpoints, and starts the server anew.
pub(crate) async fn measure(size: Size, changes: usize) -> Result<Measured> {
    let files = write(size)?;
    let start = Instant::now();
    let (process, xds) = control_at(files.path(), "127.0.0.1:0".parse()?)?;
    let load = start.elapsed().as_secs_f64() * 1000.0;
    let mut moving = Moving::register(xds, size.endpoints).await?;
    let alone = resident(&process)?;

    let start = Instant::now();
    let mut fleet = Fleet::connect(xds, size.clients, |number| called(size, number));
    let first = fleet.hold(start).await?;
    let with_clients = resident(&process)?;

    let mut measured = Vec::new();
    for (service, concerned) in [(ALL, size.clients), (SOME, CALLED_BY_SOME), (FEW, CALLED_BY_FEW)] {
        let (mut times, before) = (Vec::new(), cpu(process.id())?);
        for change in 0..changes {
            tokio::time::sleep(PAUSE).await;
            let since = Instant::now();
            moving.change(service, change).await?;
            times.extend(fleet.accept(concerned, since).await?);
        }
        tokio::time::sleep(PAUSE).await;
        let work = (cpu(process.id())?.saturating_sub(before)).as_secs_f64() * 1000.0 / changes.max(1) as f64;
        anyhow::ensure!(fleet.beside() == 0, "others were told of a change that concerns {concerned}");
        times.sort_by(f64::total_cmp);
        let at = |part| share(&times, part);
        measured.push(Changes { concerned, p50: at(0.5), p99: at(0.99), last: at(1.0), work });
    }

    let since = Instant::now();
    write_file(files.path(), size, 0, size.endpoints - 1)?;
    let written = fleet.accept(size.clients, since).await?.into_iter().fold(0.0, f64::max);

    drop((moving, process));
    let start = Instant::now();
    let (_process, _) = control_at(files.path(), xds)?;
    // The fourth service is everybody's, too: all clients hold it again without those that come and go.
    let again = fleet.hold(start).await?;
    Ok(Measured { load, alone, with_clients, first, changes: measured, written, again })
}

fn resident(process: &Process) -> Result<f64> {
    Ok(mebibytes(Memory::of(process.id())?.resident))
}

/// The hosts that a client calls: one that everybody calls of either sort, those of the few, and others in turn.
fn called(size: Size, number: usize) -> Vec<String> {
    let mut hosts = vec![host(0), config::moving_host(ALL)];
    if number < CALLED_BY_SOME {
        hosts.push(config::moving_host(SOME));
    }
    if number < CALLED_BY_FEW {
        hosts.push(config::moving_host(FEW));
    }
    let others = size.services - 4;
    let left = size.calls.saturating_sub(hosts.len()).min(others);
    hosts.extend((0..left).map(|call| host(1 + (number * left + call) % others)));
    hosts
}

/// The configuration: files of a hundred services each, and the services whose workloads register.
fn write(size: Size) -> Result<TempDir> {
    let files = tempfile::tempdir()?;
    for first in (0..size.services - 3).step_by(OF_A_FILE) {
        write_file(files.path(), size, first, size.endpoints)?;
    }
    let moving: String = [ALL, SOME, FEW].map(config::moving).concat();
    std::fs::write(files.path().join("moving.yaml"), moving)?;
    Ok(files)
}

/// The file that begins with a service, which has so many endpoints.
fn write_file(files: &Path, size: Size, first: usize, of_first: usize) -> Result {
    let last = (first + OF_A_FILE).min(size.services - 3);
    let endpoints = |service| if service == first { of_first } else { size.endpoints };
    let yaml: String = (first..last).map(|service| config::service(service, endpoints(service), PORT)).collect();
    // At once, as an editor does.
    let made = files.join(".made");
    std::fs::write(&made, yaml)?;
    Ok(std::fs::rename(made, files.join(format!("services-{first:05}.yaml")))?)
}

/// The workloads of the services whose endpoints come and go, a stream for each service.
struct Moving(Vec<Stream>);

impl Moving {
    async fn register(xds: SocketAddr, endpoints: usize) -> Result<Moving> {
        let mut streams = Vec::new();
        for service in [ALL, SOME, FEW] {
            let app = format!("moving-{service}");
            let mut stream = Stream::open(xds, &app, Some(&app)).await?;
            stream.ask(Kind::Listener, (1..endpoints).map(|one| listener(service, one)).collect(), Vec::new()).await?;
            stream.take().await?;
            streams.push(stream);
        }
        Ok(Moving(streams))
    }

    /// One endpoint comes, or goes.
    async fn change(&mut self, service: usize, number: usize) -> Result {
        let (one, none) = (vec![listener(service, 0)], Vec::new());
        match number % 2 {
            0 => self.0[service].ask(Kind::Listener, one, none).await,
            _ => self.0[service].ask(Kind::Listener, none, one).await,
        }
    }
}

fn listener(service: usize, number: usize) -> String {
    format!("xds.istio.io/grpc/lds/inbound/127.0.0.1:{}", 20_000 + 1_000 * service + number)
}
