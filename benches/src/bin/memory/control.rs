//! mesh-control with many clients, each of which holds every resource of every service.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use mesh_benches::Result;
use mesh_benches::process::{Memory, Process, mebibytes};
use mesh_control::catalog::Kind;

use crate::config::{self, PORT, host};
use crate::fleet::Fleet;
use crate::stream::Stream;

const SERVICES: usize = 500;
const ENDPOINTS: usize = 10;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(100);

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
    control_at(directory, ([127, 0, 0, 1], 0).into())
}

/// The same at this address.
pub(crate) fn control_at(directory: &Path, xds: SocketAddr) -> Result<(Process, SocketAddr)> {
    let directory = directory.to_str().context("a path that is text")?;
    let (xds, status) = (xds.to_string(), "127.0.0.1:0");
    let arguments = ["serve", "--config", directory, "--xds-addr", &xds, "--status-addr", status, "--settle", "0"];
    let (process, line) = Process::again(&arguments)?;
    let address = line.strip_prefix("xds listening on ").with_context(|| format!("mesh-control says {line:?}"))?;
    Ok((process, address.parse()?))
}

/// Connects the clients, and times changes of one endpoint: each registers with its listener, or goes.
pub(crate) async fn measure(clients: usize, changes: usize) -> Result<Control> {
    let files = tempfile::tempdir()?;
    let yaml = config::services(SERVICES - 1, ENDPOINTS, PORT) + &config::moving(0);
    std::fs::write(files.path().join("mesh.yaml"), yaml)?;
    let (process, xds) = control(files.path())?;
    let mebibytes = || Memory::of(process.id()).map(|memory| mebibytes(memory.resident));

    let listener = |number: usize| format!("xds.istio.io/grpc/lds/inbound/127.0.0.1:{}", 20_000 + number);
    let mut workloads = Stream::open(xds, "moving-0", Some("moving-0")).await?;
    workloads.ask(Kind::Listener, (1..ENDPOINTS).map(listener).collect(), Vec::new()).await?;
    workloads.take().await?;
    let alone = mebibytes()?;

    let start = Instant::now();
    let all: Vec<String> = (0..SERVICES - 1).map(host).chain([config::moving_host(0)]).collect();
    let mut fleet = Fleet::connect(xds, clients, |_| all.clone());
    let first = fleet.hold(start).await?;
    let mut times = Vec::new();
    for change in 0..changes {
        tokio::time::sleep(PAUSE).await;
        let moving = vec![listener(0)];
        let since = Instant::now();
        match change % 2 {
            0 => workloads.ask(Kind::Listener, moving, Vec::new()).await?,
            _ => workloads.ask(Kind::Listener, Vec::new(), moving).await?,
        }
        times.extend(fleet.accept(clients, since).await?);
    }
    times.sort_by(f64::total_cmp);
    let (p50, p99, last) = (share(&times, 0.5), share(&times, 0.99), share(&times, 1.0));
    let with_clients = mebibytes()?;
    let peak = peak(process.id())?;
    Ok(Control { alone, with_clients, peak, first, p50, p99, last })
}

/// The value below which such a share of them is, which are sorted.
pub(crate) fn share(sorted: &[f64], share: f64) -> f64 {
    sorted.get((sorted.len() as f64 * share) as usize).or(sorted.last()).copied().unwrap_or(f64::NAN)
}

/// The most memory that a process has had, in MiB.
fn peak(process: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("/proc: no VmHWM")?;
    let kibibytes: f64 = line.trim().trim_end_matches("kB").trim().parse().context("/proc: VmHWM")?;
    Ok(kibibytes / 1024.0)
}
