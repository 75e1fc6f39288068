//! An echo behind the mesh: see `mesh-echo --help`.

use std::net::SocketAddr;

use clap::Parser;
use mesh_examples::cli::{self, Printing};
use mesh_examples::echo::{self, Identity};
use mesh_examples::node::{Join, Workload};
use mesh_tower::server;
use serde_json::json;
use tower::Layer;

/// Answers every request with what it saw of it, over HTTP/1.1, HTTP/2 and gRPC on one port; bytes on another one, where
/// asked to.
///
/// It registers itself with the control plane through its server listener: the services whose selectors match its
/// labels have it as an endpoint. On SIGTERM or SIGINT it leaves without losing a request; on a second one, at once.
#[derive(Debug, Parser)]
#[command(name = "mesh-echo", disable_version_flag = true, after_help = echo::HELP)]
struct Args {
    /// What it calls itself.
    #[arg(long, default_value = "echo")]
    name: String,
    /// The version that it calls itself.
    #[arg(long, default_value = "v1")]
    version: String,
    /// Where it listens; port 0 takes a free one, and the line that it prints says which.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Where it sends bytes back as they come, whatever they are.
    #[arg(long, value_name = "IP:PORT")]
    tcp: Option<SocketAddr>,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    join: Join,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Args = cli::parse();
    args.printing.log();
    let mesh = args.join.mesh(Workload::new(&args.name, &args.version))?.start()?;
    // Before anything is said: whoever reads the address may send a signal at once.
    mesh.drain_on_signals()?;
    args.join.serve_admin(&mesh, args.printing).await?;
    let listener = mesh.bind(args.listen).await?;
    let address = listener.local_addr();
    let identity = Identity::new(&args.name, &args.version, address);
    let app = mesh_tonic::server_layer(&mesh).layer(echo::app(&mesh, identity.clone()));
    let serving = tokio::spawn(server::serve(listener, app).readable_bodies().into_future());
    let backend = &identity.backend;
    if let Some(address) = args.tcp {
        let listener = mesh.bind_tcp(address).await?;
        let address = listener.local_addr();
        let state = json!({ "backend": backend, "address": address, "protocol": "tcp", "state": "listening" });
        args.printing.say(format_args!("{backend} listening on {address} for bytes"), &state)?;
        tokio::spawn(echo::bytes(listener));
    }
    let state = |state: &str| json!({ "backend": backend, "address": address, "state": state });
    args.printing.say(format_args!("{backend} listening on {address}"), &state("listening"))?;
    match mesh.serving().await {
        Ok(()) => args.printing.say(format_args!("{backend} serving"), &state("serving"))?,
        Err(reason) => tracing::warn!("not serving yet: {reason}"),
    }
    serving.await??;
    mesh.flush_telemetry().await;
    Ok(())
}
