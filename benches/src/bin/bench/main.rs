//! Measures the mesh against what it replaces, in one run and interleaved: requests per second, latency, CPU time
//! of both sides. See `benches/README.md` for what the cases do.
//!
//! ```text
//! cargo run --release --bin bench                                   # every case, about fifteen minutes
//! cargo run --release --bin bench -- --only 'http1/c1/256B' --seconds 0.5
//! cargo run --release -p mesh-benches --bin bench --features tonic-xds -- --envoy path/to/envoy
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints tables")]

mod cases;
mod report;
#[cfg(feature = "tonic-xds")]
mod xds;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use mesh_benches::clients::Version;
use mesh_benches::process::{self, Process};
use mesh_benches::servers::{self, Served, ServerKind};
use mesh_benches::{Result, load};
use regex::Regex;

use cases::{Contender, Side, Sides};

#[derive(Parser)]
#[command(about = "The mesh against what it replaces: rates, latencies, CPU time")]
struct Args {
    /// How long each contender is measured in each round.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// How often everything is measured; medians are shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only contenders whose `protocol/callers/body name` matches, as in `http1/c16/256B mesh`.
    #[arg(long, default_value = "")]
    only: Regex,
    /// Print everything as one JSON object instead of tables.
    #[arg(long)]
    json: bool,
    /// An Envoy binary: adds a pair of sidecars around the bare client and server.
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
    /// A `mesh-sidecar` binary: adds pairs of it where those of Envoys are.
    #[arg(long, value_name = "PATH")]
    sidecar: Option<PathBuf>,
    /// Worker threads of the client, and of each server.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// End with status 1 if the mesh misses a bar.
    #[arg(long)]
    check: bool,
    /// What the program calls itself with, to be the server.
    #[arg(long, hide = true)]
    serve: Option<ServerKind>,
    /// The control plane that such a server follows.
    #[arg(long, hide = true)]
    control: Option<SocketAddr>,
}

fn main() -> Result {
    let args = Args::parse();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(args.threads.max(1)).enable_all().build()?;
    match args.serve {
        Some(kind) => {
            let served = match args.control {
                Some(control) => runtime.block_on(servers::following(control))?,
                None => runtime.block_on(servers::start(kind))?,
            };
            println!("{} {}", served.http, served.grpc);
            process::until_orphaned();
            Ok(())
        }
        None => runtime.block_on(compare(&args)),
    }
}

async fn compare(args: &Args) -> Result {
    let machine = process::machine();
    let bare = server("bare", args.threads, None)?;
    // The same but for TLS.
    let (secret, open) =
        (servers::control(Version::Http1, false).await?, servers::control(Version::Http1, true).await?);
    let sides = Sides {
        #[cfg(feature = "tonic-xds")]
        control: xds::control(bare.served.grpc).await?,
        bare,
        mesh: server("mesh", args.threads, None)?,
        observed: server("observed", args.threads, None)?,
        mutual: (server("mesh", args.threads, Some(secret.xds_addr()))?, secret),
        open: (server("mesh", args.threads, Some(open.xds_addr()))?, open),
        envoy: None,
        routed: None,
        beside: None,
    };
    if !cfg!(feature = "tonic-xds") {
        eprintln!("tonic-xds is left out: run with `--features tonic-xds` to compare with it");
    }
    if args.envoy.is_none() {
        eprintln!("sidecars are left out: give `--envoy PATH` to compare with them");
    }
    let sides = match &args.envoy {
        Some(binary) => sides.with_sidecars(binary).await?,
        None => sides,
    };
    let beside = (servers::control(Version::Http1, true).await?, servers::control(Version::Http1, false).await?);
    let sides = match &args.sidecar {
        Some(binary) => sides.with_beside(binary, &beside.0, &beside.1)?,
        None => sides,
    };
    let mut contenders = cases::all(&sides, &args.only).await?;
    anyhow::ensure!(!contenders.is_empty(), "nothing matches --only {}", args.only);
    let time = Duration::from_secs_f64(args.seconds);
    for round in 0..args.rounds.max(1) {
        eprintln!("round {} of {}: {} contenders", round + 1, args.rounds, contenders.len());
        for same_case in contenders.chunk_by_mut(|a, b| a.case == b.case) {
            measure(same_case, round, time).await?;
        }
    }
    let passed = if args.json {
        report::json(&contenders, &machine, args.seconds)
    } else {
        report::tables(&contenders, &machine, args.seconds)
    };
    anyhow::ensure!(passed || !args.check, "the mesh misses a bar");
    Ok(())
}

/// One round of one case. Each round begins with another contender, so that none is always after the same one.
async fn measure(contenders: &mut [Contender], round: usize, time: Duration) -> Result {
    let count = contenders.len();
    for turn in 0..count {
        let contender = &mut contenders[(round + turn) % count];
        let figures = load::measure(&mut *contender.crew, time, &contender.client, &contender.server).await;
        contender.rounds.push(figures.with_context(|| format!("{} {}", contender.case, contender.name))?);
    }
    Ok(())
}

/// Starts this program as a server.
fn server(kind: &str, threads: usize, control: Option<SocketAddr>) -> Result<Side> {
    let threads = threads.to_string();
    let control = control.map(|address| address.to_string());
    let mut arguments = vec!["--serve", kind, "--threads", &threads];
    arguments.extend(control.iter().flat_map(|control| ["--control", control.as_str()]));
    let (process, line) = Process::again(&arguments)?;
    let (http, grpc) = line.split_once(' ').context("the server does not say where it serves")?;
    Ok(Side { process, served: Served { http: http.parse()?, grpc: grpc.parse()? } })
}
