//! How a program on the library starts: its log, its runtime, its mesh, and the page for who runs it.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::process::ExitCode;

use mesh_tower::core::xds::XdsSource;
use mesh_tower::{Bootstrap, Mesh, MeshBuilder};
use tracing_subscriber::EnvFilter;

/// Runs a program, by its name, to its end. `logs` is what its log has where the environment (`RUST_LOG`) says nothing.
pub(crate) fn program<F>(name: &str, logs: &str, run: F) -> ExitCode
where
    F: Future<Output = Result<u8, String>>,
{
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(logs));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    log.with_ansi(io::stderr().is_terminal()).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(run)) {
        Ok(code) => code.into(),
        Err(why) => {
            eprintln!("{name}: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The mesh of this bootstrap, to be started; it tells traces, metrics and access logs where the environment says (`OTEL_*`).
pub(crate) fn mesh(bootstrap: Bootstrap, keeps_metrics: bool) -> MeshBuilder {
    let builder = Mesh::builder().traces_from_env().metrics_from_env().access_logs_from_env();
    let builder = builder.source(XdsSource::new(bootstrap));
    if keeps_metrics { builder.metrics() } else { builder }
}

/// Serves what is known of the mesh, where that is wanted; on the loopback alone, unless it may be anywhere.
pub(crate) fn serve_admin(address: Option<SocketAddr>, anywhere: bool, mesh: &Mesh) -> Result<(), String> {
    let Some(address) = address else { return Ok(()) };
    if !anywhere && !address.ip().to_canonical().is_loopback() {
        return Err(format!("--admin-addr {address} is not on the loopback; --admin-anywhere lets it be any address"));
    }
    let bound = mesh.serve_admin_anywhere(address).map_err(|error| format!("--admin-addr {address}: {error}"))?;
    tracing::info!("admin at {bound}");
    Ok(())
}
