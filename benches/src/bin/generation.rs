//! What the control plane needs to make one push for one client, by Istio's own cases of generation.
//!
//! ```text
//! cargo run --release --bin generation
//! cargo run --release --bin generation -- --case gateways
//! ```
//!
//! Each push is made of a configuration of which nothing was made before; *first* is by a control plane that has just started, and
//! has judged nothing yet. Allocations are counted of a push by themselves, by a counter that is there while times are taken, too.
#![allow(clippy::print_stdout, reason = "a program that prints a table")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use clap::Parser;
use mesh_benches::Result;
use mesh_benches::generation::{CASES, Case, Generation, message_bytes};
use mesh_benches::process::machine;
use mesh_benches::stats::median;
use mesh_control::catalog::{Encoded, Kind};

#[derive(Parser)]
#[command(about = "What it costs to make one push for one client")]
struct Args {
    /// The case of this name only.
    #[arg(long)]
    case: Option<String>,
    /// Pushes that are timed; the median is shown.
    #[arg(long, default_value_t = 21)]
    turns: usize,
}

struct Figures {
    resources: usize,
    first: f64,
    again: f64,
    bytes: usize,
    allocations: u64,
}

fn main() -> Result {
    let args = Args::parse();
    println!("{}. Medians, one thread, for an Envoy.\n", machine());
    println!(
        "| case | services | endpoints each | kind | resources | ns, first | ns per message | kB per message | allocations |"
    );
    println!("|---|---:|---:|---|---:|---:|---:|---:|---:|");
    let is_asked_for = |case: &&Case| args.case.as_deref().is_none_or(|name| name == case.name);
    for case in CASES.iter().filter(is_asked_for) {
        for made in case.made {
            let of = measure(case, made.kind, args.turns.max(1))?;
            let (Case { name, services, endpoints, .. }, kilobytes) = (case, of.bytes as f64 / 1e3);
            println!(
                "| {name} | {services} | {endpoints} | {:?} | {} | {:.0} | {:.0} | {kilobytes:.1} | {} |",
                made.kind, of.resources, of.first, of.again, of.allocations
            );
        }
    }
    Ok(())
}

fn measure(case: &Case, kind: Kind, turns: usize) -> Result<Figures> {
    let of = Generation::new(case)?;
    let snapshot = of.plane.snapshot();
    let (resources, first) = timed(|| of.push(&snapshot, kind));
    let mut times = Vec::new();
    for turn in 0..turns {
        let snapshot = of.renew(turn)?;
        let (made, time) = timed(|| of.push(&snapshot, kind));
        anyhow::ensure!(made.len() == resources.len(), "{} resources, and {} before", made.len(), resources.len());
        times.push(nanoseconds(time));
    }
    let snapshot = of.renew(turns)?;
    let counted = allocation_counter::measure(|| {
        black_box(of.push(&snapshot, kind));
    });
    Ok(Figures {
        resources: resources.len(),
        first: nanoseconds(first),
        again: median(&times),
        bytes: message_bytes(kind, &resources),
        allocations: counted.count_total,
    })
}

/// What is made, and how long it took; it is let go of after that.
fn timed(make: impl FnOnce() -> Vec<Encoded>) -> (Vec<Encoded>, Duration) {
    let start = Instant::now();
    let made = black_box(make());
    (made, start.elapsed())
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_nanos() as f64
}
