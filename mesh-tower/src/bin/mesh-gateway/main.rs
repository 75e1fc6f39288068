//! `mesh-gateway`: the edge of the mesh, on the library alone. See docs/mesh-gateway.md.
//!
//! Listeners, routes, certificates, policies and telemetry are the library's (`mesh_tower::gateway`); `edge.rs` is what a gateway does
//! with a message, `grpc_web.rs` and `compress.rs` how it speaks with browsers, and this file its life: listeners as they come and go,
//! readiness, and a drain at the end.

#![warn(clippy::unwrap_used)]

mod compress;
mod edge;
#[path = "../shared/forward.rs"]
mod forward;
mod grpc_web;
mod options;
#[path = "../shared/start.rs"]
mod start;
#[path = "../shared/values.rs"]
mod values;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mesh_tower::server::{Carry, MeshListener};
use mesh_tower::{Mesh, server};
use tokio::task::JoinSet;

use crate::edge::Edge;
use crate::options::Options;

/// How often it is looked whether the control plane has answered.
const LOOK: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let options = Options::parse();
    start::program(
        "mesh-gateway",
        "warn,mesh_gateway=info,mesh_tower::gateway=info,mesh_core::store::gateway=info",
        run(&options),
    )
}

/// From the first listener to the end of the last request.
async fn run(options: &Options) -> Result<u8, String> {
    let mesh = options.mesh()?.start().map_err(|error| error.to_string())?;
    mesh.drain_on_signals().map_err(|error| format!("signals: {error}"))?;
    let edge = Edge::new(&mesh, options.compress);
    let carry = Carry::new(&mesh);
    let mut gateway = mesh.gateway();
    let mut serving = JoinSet::new();
    let mut ready = Some(Box::pin(answered(&mesh)));
    loop {
        tokio::select! {
            bound = gateway.bind() => match bound {
                Some(listener) => _ = serving.spawn(serve(listener, edge.clone(), carry.clone(), options.drain_timeout)),
                None => break,
            },
            () = async { ready.as_mut().expect("it is there").await }, if ready.is_some() => {
                ready = None;
                start::serve_admin(options.admin_addr, options.admin_anywhere, &mesh)?;
                tracing::info!("ready");
            }
            Some(_) = serving.join_next() => {}
        }
    }
    tracing::info!("told to end: draining");
    while serving.join_next().await.is_some() {}
    mesh.flush_telemetry().await;
    mesh.flush_access_logs();
    Ok(0)
}

/// Serves by one listener, until it is gone or the mesh has drained.
async fn serve(listener: MeshListener, edge: Edge, carry: Carry, deadline: Duration) {
    let name = listener.name().clone();
    let service = edge.behind(&listener.layer());
    // Authorizers may have to be shown bodies.
    let served = server::serve(listener, service).deadline(deadline).carrying(carry).readable_bodies().into_future();
    match served.await {
        Ok(()) => tracing::info!(listener = %name, "closed"),
        Err(error) => tracing::warn!(listener = %name, "closed: {error}"),
    }
}

/// Waits until the control plane has said something, be it that there are no listeners.
async fn answered(mesh: &Mesh) {
    while !mesh.client_status().servers.iter().any(|server| server.connected) {
        tokio::time::sleep(LOOK).await;
    }
}
