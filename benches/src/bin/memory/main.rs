//! Memory that the mesh adds to an application, and what mesh-control needs for many clients, with the time that a
//! change takes to reach all of them.
//!
//! ```text
//! cargo run --release --bin memory
//! cargo run --release --bin memory -- --scale --chart benches/scale.svg
//! ```
//!
//! The second one is mesh-control in a large mesh, and as a mesh grows.
//!
//! Ends with status 1 if a bar is missed by more than twice.
#![allow(clippy::print_stdout, reason = "a program that prints a table")]

mod application;
mod chart;
mod config;
mod control;
mod fleet;
mod scale;
mod stream;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use mesh_benches::Result;
use mesh_benches::process::machine;

use crate::scale::Size;

/// What the mesh may add to an application, in MiB.
const APPLICATION_BAR: f64 = 8.0;
/// What mesh-control may need, in MiB.
const CONTROL_BAR: f64 = 150.0;
/// What a client may cost that holds 2,000 resources, in MiB.
const CLIENT_BAR: f64 = 0.1;
/// How long a change may take, in milliseconds.
const CHANGE_BAR: f64 = 300.0;
/// What mesh-control may need in a mesh of 1,000 services and 2,000 clients, in MiB, and how long these may take to come back.
const FLEET_BAR: f64 = 500.0;
const AGAIN_BAR: f64 = 10_000.0;
/// What it may need in a mesh of 10,000 services and 100,000 endpoints, in MiB, and how long a change may take.
const LARGE_BAR: f64 = 1_536.0;
const WIRE_BAR: f64 = 50.0;

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
    /// A large mesh, and the curve as a mesh grows, in the place of the others.
    #[arg(long)]
    scale: bool,
    /// The mesh of --scale, in place of all: services, endpoints each, clients, services that each calls.
    #[arg(long, value_delimiter = ',', value_name = "COUNT", requires = "scale")]
    size: Vec<usize>,
    /// Where to draw that curve.
    #[arg(long, value_name = "SVG", requires = "scale")]
    chart: Option<PathBuf>,
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
        None if args.scale => runtime.block_on(scale(&args)),
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
    let each = (most - control.alone) / args.clients.max(1) as f64;
    let about = "one client that holds all 2,000 resources";
    worst = worst.max(row(about, format!("{each:.3} MiB"), Some((each, CLIENT_BAR))));
    row("the same, the most it ever was", format!("{:.1} MiB", control.peak), None);
    row("all clients hold everything after", format!("{:.0} ms", control.first), None);
    row("one endpoint changes, accepted: p50", format!("{:.1} ms", control.p50), None);
    let p99 = control.p99;
    worst = worst.max(row("one endpoint changes, accepted: p99", format!("{p99:.1} ms"), Some((p99, CHANGE_BAR))));
    row("one endpoint changes, accepted: last", format!("{:.1} ms", control.last), None);
    Ok(if worst > 2.0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What is demanded of a mesh of some size.
struct Bars {
    memory: f64,
    change: f64,
    again: f64,
}

async fn scale(args: &Args) -> Result<ExitCode> {
    println!("{}.\n", machine());
    println!("| what | measured | bar |");
    println!("|---|---:|---|");
    let size = |services, endpoints, clients, calls| Size { services, endpoints, clients, calls };
    let none = || Bars { memory: f64::INFINITY, change: f64::INFINITY, again: f64::INFINITY };
    let sizes = match args.size[..] {
        [services, endpoints, clients, calls] => vec![(size(services, endpoints, clients, calls), none(), true)],
        _ => vec![
            (size(1_000, 20, 2_000, 20), Bars { memory: FLEET_BAR, change: CHANGE_BAR, again: AGAIN_BAR }, false),
            (size(1_000, 10, 200, 50), none(), true),
            (size(3_000, 10, 200, 50), none(), true),
            (size(10_000, 10, 200, 50), Bars { memory: LARGE_BAR, change: WIRE_BAR, again: f64::INFINITY }, true),
        ],
    };
    let (mut worst, mut curve) = (0.0_f64, Vec::new());
    for (size, bars, is_of_curve) in sizes {
        let measured = scale::measure(size, args.changes).await.with_context(|| format!("{size:?}"))?;
        let Size { services, endpoints, clients, calls } = size;
        println!("| **{services} services × {endpoints} endpoints, {clients} clients that call {calls} each** | | |");
        row("from the start until it serves", format!("{:.0} ms", measured.load), None);
        row("without clients", format!("{:.1} MiB", measured.alone), None);
        let with = measured.with_clients;
        worst = worst.max(row("with them", format!("{with:.1} MiB"), Some((with, bars.memory))));
        row("all hold what they call after", format!("{:.0} ms", measured.first), None);
        for change in &measured.changes {
            let what = format!("one endpoint changes, {} clients call it: p50 / p99 / last", change.concerned);
            let times = format!("{:.1} / {:.1} / {:.1} ms", change.p50, change.p99, change.last);
            worst = worst.max(row(&what, times, Some((change.p99, bars.change))));
            row("the same, processor time of mesh-control", format!("{:.2} ms", change.work), None);
        }
        row("one endpoint changes in a file, accepted by all", format!("{:.0} ms", measured.written), None);
        let again = measured.again;
        let what = "a new process, and all hold everything again after";
        worst = worst.max(row(what, format!("{again:.0} ms"), Some((again, bars.again))));
        curve.extend(is_of_curve.then(|| measured.point(services)));
    }
    if let Some(file) = &args.chart {
        std::fs::write(file, chart::draw(&curve))?;
    }
    Ok(if worst > 1.0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints a row; how much of its bar is used up.
fn row(what: &str, measured: String, bar: Option<(f64, f64)>) -> f64 {
    let bar = bar.filter(|(_, bar)| bar.is_finite());
    let verdict = bar.map(|(value, bar)| match value <= bar {
        true => format!("pass: ≤ {bar}"),
        false => format!("**fail**: ≤ {bar}"),
    });
    println!("| {what} | {measured} | {} |", verdict.unwrap_or_default());
    bar.map_or(0.0, |(value, bar)| value / bar)
}
