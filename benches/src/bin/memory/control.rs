//! mesh-control with many clients, each of which holds every resource of every service.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use mesh_benches::Result;
use mesh_benches::process::{Memory, Process, mebibytes};
use mesh_control::catalog::Kind;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config::{self, MOVING, MOVING_HOST, PORT, host};
use crate::stream::Stream;

const SERVICES: usize = 500;
const ENDPOINTS: usize = 10;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(100);
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was measured: memory in MiB, times in milliseconds.
pub(crate) struct Control {
    pub(crate) alone: f64,
    pub(crate) with_clients: f64,
    /// The most that it ever was.
    pub(crate) peak: f64,
    /// From the first connection until all clients hold everything.
    pub(crate) first: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) last: f64,
}

/// Starts mesh-control on a directory: it, and where it serves xDS.
pub(crate) fn control(directory: &Path) -> Result<(Process, SocketAddr)> {
    let directory = directory.to_str().context("a path that is text")?;
    let free = "127.0.0.1:0";
    let arguments = ["serve", "--config", directory, "--xds-addr", free, "--status-addr", free, "--settle", "0"];
    let (process, line) = Process::again(&arguments)?;
    let address = line.strip_prefix("xds listening on ").with_context(|| format!("mesh-control says {line:?}"))?;
    Ok((process, address.parse()?))
}

/// Connects the clients, and times changes of one endpoint: each registers with its listener, or goes.
pub(crate) async fn measure(clients: usize, changes: usize) -> Result<Control> {
    let files = tempfile::tempdir()?;
    let mut yaml = config::services(SERVICES - 1, ENDPOINTS, PORT);
    _ = write!(yaml, "{MOVING}");
    std::fs::write(files.path().join("mesh.yaml"), yaml)?;
    let (process, xds) = control(files.path())?;
    let mebibytes = || Memory::of(process.id()).map(|memory| mebibytes(memory.resident));

    let listener = |number: usize| format!("xds.istio.io/grpc/lds/inbound/127.0.0.1:{}", 20_000 + number);
    let mut workloads = Stream::open(xds, "moving-1", Some("moving")).await?;
    workloads.ask(Kind::Listener, (1..ENDPOINTS).map(listener).collect(), Vec::new()).await?;
    workloads.take().await?;
    let alone = mebibytes()?;

    let start = Instant::now();
    let mut tasks = JoinSet::new();
    let (seen, mut all_seen) = mpsc::channel(clients.max(1));
    for number in 0..clients {
        tasks.spawn(client(xds, number, changes, seen.clone()));
    }
    // Times since then until all clients have said that they have it.
    let mut round = async |since: Instant| -> Result<Vec<f64>> {
        let mut times = Vec::new();
        while times.len() < clients {
            let at: Instant = tokio::time::timeout(PATIENCE, all_seen.recv()).await?.context("a client ended")?;
            times.push(at.saturating_duration_since(since).as_secs_f64() * 1000.0);
        }
        Ok(times)
    };
    let first = round(start).await?.into_iter().fold(0.0, f64::max);
    let mut times = Vec::new();
    for change in 0..changes {
        tokio::time::sleep(PAUSE).await;
        let moving = vec![listener(0)];
        let since = Instant::now();
        match change % 2 {
            0 => workloads.ask(Kind::Listener, moving, Vec::new()).await?,
            _ => workloads.ask(Kind::Listener, Vec::new(), moving).await?,
        }
        times.extend(round(since).await?);
    }
    times.sort_by(f64::total_cmp);
    let at =
        |share: f64| times.get((times.len() as f64 * share) as usize).or(times.last()).copied().unwrap_or(f64::NAN);
    let (p50, p99, last) = (at(0.5), at(0.99), at(1.0));
    let with_clients = mebibytes()?;
    let peak = peak(process.id())?;
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(Control { alone, with_clients, peak, first, p50, p99, last })
}

/// The most memory that a process has had, in MiB.
fn peak(process: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("/proc: no VmHWM")?;
    let kibibytes: f64 = line.trim().trim_end_matches("kB").trim().parse().context("/proc: VmHWM")?;
    Ok(kibibytes / 1024.0)
}

/// One client, of a node and a connection of its own: it asks for everything, and says when it holds it, and when it
/// has accepted each change.
async fn client(xds: SocketAddr, number: usize, changes: usize, seen: mpsc::Sender<Instant>) -> Result {
    let mut stream = Stream::open(xds, &format!("web-{number}"), Some(&format!("web-{}", number % 10))).await?;
    let mut missing = 0;
    for kind in Kind::ALL {
        let hosts = (0..SERVICES - 1).map(host).chain([MOVING_HOST.to_owned()]);
        let name = |host: String| match kind {
            Kind::Listener => format!("{host}:{PORT}"),
            _ => format!("outbound|{PORT}||{host}"),
        };
        let names: Vec<String> = hosts.map(name).collect();
        missing += names.len();
        stream.ask(kind, names, Vec::new()).await?;
    }
    while missing > 0 {
        missing -= stream.take().await?;
    }
    seen.send(Instant::now()).await?;
    for _ in 0..changes {
        let count = stream.take().await?;
        anyhow::ensure!(count == 1, "{count} resources came for one change");
        seen.send(Instant::now()).await?;
    }
    Ok(())
}
