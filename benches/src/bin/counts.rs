//! Counts what does not depend on the weather: heap allocations and instructions per request.
//!
//! Client and server share one thread, so the figures are of both together; what the mesh adds is the
//! difference to `raw` in the same run. Instructions are counted by callgrind, as the difference between a long
//! and a short run of the same case.
//!
//! ```text
//! cargo run --release --bin counts                    # the table
//! cargo run --release --bin counts -- --case mesh-http1 --requests 1000   # one case, to profile
//! ```
#![allow(clippy::print_stdout, reason = "a program that prints a table")]

use std::process::Command;

use anyhow::{Context, ensure};
use clap::Parser;
use mesh_benches::Result;
use mesh_benches::counts::{CASES, run};
use mesh_benches::process::machine;

#[derive(Parser)]
#[command(about = "Allocations and instructions per request")]
struct Args {
    /// Run one case and print nothing: what callgrind is pointed at.
    #[arg(long)]
    case: Option<String>,
    /// Requests of a single case.
    #[arg(long, default_value_t = 1000)]
    requests: u64,
    /// Leave the instructions out: no callgrind needed.
    #[arg(long)]
    allocations_only: bool,
    /// Bytes of the bodies, each way; at most 64 KiB.
    #[arg(long, default_value_t = 256)]
    bytes: usize,
}

fn main() -> Result {
    let args = Args::parse();
    if let Some(case) = &args.case {
        return run(case, args.requests, args.bytes, |send| send());
    }
    println!("{}. {} B each way.\n", machine(), args.bytes);
    println!("| case | allocations | above raw | bytes allocated | above raw | instructions | above raw |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let mut raw = (0.0, 0.0, 0.0);
    for case in CASES {
        let (allocations, allocated) = allocations(case, args.requests, args.bytes)?;
        let instructions = match args.allocations_only {
            true => f64::NAN,
            false => instructions(case, args.bytes)?,
        };
        if case.starts_with("raw") {
            raw = (allocations, allocated, instructions);
        }
        println!(
            "| {case} | {allocations:.1} | {:+.1} | {allocated:.0} | {:+.0} | {instructions:.0} | {:+.0} |",
            allocations - raw.0,
            allocated - raw.1,
            instructions - raw.2
        );
    }
    Ok(())
}

/// Allocations per request, of both sides: how many, and of how many bytes.
fn allocations(case: &str, requests: u64, bytes: usize) -> Result<(f64, f64)> {
    let mut info = allocation_counter::AllocationInfo::default();
    run(case, requests, bytes, |send| info = allocation_counter::measure(send))?;
    let each = |total: u64| total as f64 / requests as f64;
    Ok((each(info.count_total), each(info.bytes_total)))
}

/// Instructions per request: callgrind on this very program, twice.
fn instructions(case: &str, bytes: usize) -> Result<f64> {
    let (few, many) = (200, 1200);
    Ok((callgrind(case, many, bytes)? - callgrind(case, few, bytes)?) / (many - few) as f64)
}

fn callgrind(case: &str, requests: u64, bytes: usize) -> Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["--case", case, "--requests", &requests.to_string(), "--bytes", &bytes.to_string()])
        .output()
        .context("valgrind is needed to count instructions (or --allocations-only)")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "callgrind failed:\n{text}");
    let line = text.lines().find_map(|line| line.split("Collected : ").nth(1)).context("callgrind printed no total")?;
    Ok(line.trim().parse()?)
}
