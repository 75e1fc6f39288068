//! A pair of `mesh-sidecar`s around a client and a server, in the place of the pair of Envoys: the client calls a port of the one,
//! and the other is in front of the server.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::Result;
use crate::clients::HOST;
use crate::process::Process;

/// Both of them.
#[derive(Debug)]
pub struct Beside {
    near_client: Process,
    near_server: Process,
    listens: SocketAddr,
}

impl Beside {
    /// Starts them around this server, as the service [`HOST`] of this control plane.
    pub fn start(binary: &Path, control: SocketAddr, server: SocketAddr) -> Result<Self> {
        let sidecar = |name: &str, options: &[&str], says: &str| {
            let mut command = Command::new(binary);
            command.args(["--control", &control.to_string(), "--namespace", "bench"]);
            command.args(["--name", name, "--service-account", name]).args(options);
            // What both begin has nothing to do: the client and the server are there. Workers are as many as Envoy's.
            command
                .args(["--", "sleep", "infinity"])
                .env("TOKIO_WORKER_THREADS", "2")
                .env("RUST_LOG", "warn,mesh_sidecar=info")
                .env("NO_COLOR", "1");
            Process::saying(&mut command, says)
        };
        let port = server.port().to_string();
        let (near_server, _) = sidecar("server", &["--app-port", &port, "--inbound", "127.0.0.1:0"], "ready: ")?;
        let (near_client, line) = sidecar("client", &["--listen", &format!("0={HOST}")], &format!(" is {HOST}"))?;
        let listens = line.split(' ').find_map(|word| word.parse().ok()).context("no address")?;
        Ok(Beside { near_client, near_server, listens })
    }

    /// Where a client calls.
    pub fn listens(&self) -> SocketAddr {
        self.listens
    }

    /// The processes of the client's and of the server's.
    pub fn ids(&self) -> (u32, u32) {
        (self.near_client.id(), self.near_server.id())
    }
}
