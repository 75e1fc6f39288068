//! Memory that the mesh adds to an application, and what mesh-control needs for many clients, with the time that a
//! change takes to reach all of them.
//!
//! ```text
//! cargo run --release --bin memory
//! ```
//!
//! Ends with status 1 if a bar is missed by more than twice.
#![allow(clippy::print_stdout, reason = "a program that prints a table")]

mod application;
mod config;
mod control;
mod stream;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use mesh_benches::Result;
use mesh_benches::process::machine;

/// What the mesh may add to an application, in MiB.
const APPLICATION_BAR: f64 = 8.0;
/// What mesh-control may need, in MiB.
const CONTROL_BAR: f64 = 150.0;
/// How long a change may take, in milliseconds.
const CHANGE_BAR: f64 = 300.0;

#[derive(Parser)]
#[command(about = "Memory of an application and of mesh-control; how long a change takes")]
struct Args {
    /// Applications of each kind; the median is shown.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Clients of mesh-control.
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// Changes that are timed.
    #[arg(long, default_value_t = 50)]
    changes: usize,
    /// What the program calls itself with, to be the application: the port of its servers.
    #[arg(long, hide = true)]
    application: Option<u16>,
    /// The control plane of the application, if it has a mesh.
    #[arg(long, hide = true)]
    xds: Option<String>,
}

fn main() -> Result<ExitCode> {
    // The program is mesh-control when it calls itself so.
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return Ok(mesh_control::cli::main());
    }
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match args.application {
        Some(port) => {
            runtime.block_on(application::run(port, args.xds.as_deref()))?;
            Ok(ExitCode::SUCCESS)
        }
        None => runtime.block_on(measure(&args)),
    }
}

async fn measure(args: &Args) -> Result<ExitCode> {
    println!("{}.\n", machine());
    println!("| what | measured | bar |");
    println!("|---|---:|---|");
    let application = application::compare(args.runs).await.context("the application")?;
    let control = control::measure(args.clients, args.changes).await.context("mesh-control")?;
    let (plain, meshed) = (application.plain, application.meshed);
    row("an application without the mesh", format!("{plain:.1} MiB"), None);
    row("the same with the mesh", format!("{meshed:.1} MiB"), None);
    let services = "1,000 services × 20 endpoints known, 10 used";
    let added = meshed - plain;
    let mut worst =
        row(&format!("the mesh adds: {services}"), format!("{added:.1} MiB"), Some((added, APPLICATION_BAR)));
    row(
        "of that, heap and stacks; the rest are pages of the program",
        format!("{:.1} MiB", application.own_added),
        None,
    );
    let about = format!("500 services × 10 endpoints, {} clients that hold all", args.clients);
    row("mesh-control without clients", format!("{:.1} MiB", control.alone), None);
    let most = control.with_clients;
    worst = worst.max(row(&format!("mesh-control: {about}"), format!("{most:.1} MiB"), Some((most, CONTROL_BAR))));
    row("the same, the most it ever was", format!("{:.1} MiB", control.peak), None);
    row("all clients hold everything after", format!("{:.0} ms", control.first), None);
    row("one endpoint changes, accepted: p50", format!("{:.1} ms", control.p50), None);
    let p99 = control.p99;
    worst = worst.max(row("one endpoint changes, accepted: p99", format!("{p99:.1} ms"), Some((p99, CHANGE_BAR))));
    row("one endpoint changes, accepted: last", format!("{:.1} ms", control.last), None);
    Ok(if worst > 2.0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints a row; how much of its bar is used up.
fn row(what: &str, measured: String, bar: Option<(f64, f64)>) -> f64 {
    let verdict = bar.map(|(value, bar)| match value <= bar {
        true => format!("pass: ≤ {bar}"),
        false => format!("**fail**: ≤ {bar}"),
    });
    println!("| {what} | {measured} | {} |", verdict.unwrap_or_default());
    bar.map_or(0.0, |(value, bar)| value / bar)
}
