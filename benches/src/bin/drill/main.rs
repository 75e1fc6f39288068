//! What breaks, on purpose, under load: one command for each scenario, which prints its figures and its bar, and ends with
//! status 1 where the bar is missed. See `benches/README.md`.
//!
//! ```text
//! cargo run --release --bin drill -- chain --envoy path/to/envoy --chart chain.svg
//! cargo run --release --bin drill -- killed        # or hung, refusing, resetting, syn-dropped
//! cargo run --release --bin drill -- overload      # or shedding, breaker, pushes, streams, dead-but-listed
//! ```
#![allow(clippy::print_stdout, reason = "a program that prints figures")]

mod breaker;
mod chain;
mod chart;
mod dead;
mod endpoint;
mod envoy;
mod load;
mod overload;
mod pushes;
mod shedding;
mod streams;
mod upstream;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mesh_benches::{Result, process};

use endpoint::Fault;

#[derive(Parser)]
#[command(about = "Fault scenarios under load, each with its bar")]
struct Args {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// Chains of three and of five services, each with three retries; the last one fails, and heals. Envoy beside it.
    Chain(ChainArgs),
    /// One of five endpoints is killed (SIGKILL), and started again.
    Killed,
    /// One of five is stopped (SIGSTOP), and goes on.
    Hung,
    /// One of five closes its connections and its port.
    Refusing,
    /// One of five takes connections and resets them.
    Resetting,
    /// One of five has a full backlog: whoever connects hears nothing.
    SynDropped,
    /// Twice as many requests as the servers can answer.
    Overload,
    /// Three times as many requests as a server can answer, of which each tenth must not be left out.
    Shedding,
    /// 1,000 requests at a time past a limit of 10.
    Breaker,
    /// 100 changes of the configuration in a second, with 10,000 endpoints.
    Pushes,
    /// 1,000 streams on three servers, and seven servers more.
    Streams,
    /// A killed endpoint that the configuration goes on listing, for the client, the layer and gRPC.
    DeadButListed,
    /// What the program calls itself with, to be an upstream.
    #[command(hide = true)]
    Upstream {
        /// The port; 0 for any.
        port: u16,
    },
}

#[derive(clap::Args)]
struct ChainArgs {
    /// Requests a second.
    #[arg(long, default_value_t = 80)]
    rate: u32,
    /// For how many seconds the last service fails.
    #[arg(long, default_value_t = 20)]
    fails: u64,
    /// For how many seconds it is watched after that; the bar is about those after the fifth.
    #[arg(long, default_value_t = 10)]
    heals: u64,
    /// The Envoy binary; else the `envoy` that the path finds.
    #[arg(long, value_name = "PATH", default_value = "envoy")]
    envoy: PathBuf,
    /// The mesh alone.
    #[arg(long)]
    without_envoy: bool,
    /// Where the chart goes.
    #[arg(long, value_name = "FILE", default_value = "chain.svg")]
    chart: PathBuf,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let is_met = runtime.block_on(async {
        match args.scenario {
            Scenario::Upstream { port } => {
                upstream::run(port).await?;
                return Ok(true);
            }
            _ => println!("{}", process::machine()),
        }
        match args.scenario {
            Scenario::Chain(args) => chain::run(&args).await,
            Scenario::Killed => endpoint::run(Fault::Killed).await,
            Scenario::Hung => endpoint::run(Fault::Hung).await,
            Scenario::Refusing => endpoint::run(Fault::Refusing).await,
            Scenario::Resetting => endpoint::run(Fault::Resetting).await,
            Scenario::SynDropped => endpoint::run(Fault::SynDropped).await,
            Scenario::Overload => overload::run().await,
            Scenario::Shedding => shedding::run().await,
            Scenario::Breaker => breaker::run().await,
            Scenario::Pushes => pushes::run().await,
            Scenario::Streams => streams::run().await,
            Scenario::DeadButListed => dead::run().await,
            Scenario::Upstream { .. } => Ok(true),
        }
    });
    runtime.shutdown_background();
    Ok(if is_met? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
