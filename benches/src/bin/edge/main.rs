//! The edges of the mesh beside those that they replace, in one run and interleaved: `mesh-gateway` beside an Envoy and beside nginx, a
//! pair of `mesh-sidecar` beside a pair of Envoys, and gateways of 10,000 hosts. Ends with status 1 where a bar is missed. See
//! `benches/README.md`.
//!
//! ```text
//! cargo build --release -p mesh-control -p mesh-tower --features mesh-tower/gateway,mesh-tower/sidecar --bins
//! cargo run --release --bin edge -- --envoy path/to/envoy                       # all of it
//! cargo run --release --bin edge -- gateway sidecars --envoy path/to/envoy
//! cargo run --release --bin edge -- nginx --nginx path/to/nginx
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints tables")]

mod compare;
mod door;
mod gateways;
mod hosts;
mod objects;
mod sidecars;
mod world;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use mesh_benches::servers::{self, ServerKind};
use mesh_benches::{Result, process};

use world::Programs;

#[derive(Parser)]
#[command(about = "Gateways and sidecars beside Envoy's and nginx: rates, processor time, memory, changes")]
struct Args {
    /// What is measured: all of it, if nothing is named.
    #[arg(value_name = "CASE")]
    cases: Vec<Case>,
    /// The Envoy binary, which every case but `nginx` needs.
    #[arg(long, value_name = "PATH")]
    envoy: Option<PathBuf>,
    /// The nginx binary.
    #[arg(long, value_name = "PATH", default_value = "/usr/sbin/nginx")]
    nginx: PathBuf,
    /// How often everything is measured; medians are shown. Of 10,000 hosts: how many changes of each kind there are, too.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each is measured in each round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// What the program calls itself with, to be the server behind a gateway.
    #[arg(long, hide = true)]
    serve: bool,
    /// The control plane that such a server follows; without one it is in plaintext.
    #[arg(long, hide = true)]
    control: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// TLS in, mutual TLS out: `mesh-gateway` beside an Envoy.
    Gateway,
    /// Plaintext in and out: `mesh-gateway` beside nginx.
    Nginx,
    /// Mutual TLS between a client's and a server's: a pair of `mesh-sidecar` beside a pair of Envoys.
    Sidecars,
    /// 10,000 hosts on one gateway: what changes, until it is in use, and TLS handshakes.
    Hosts,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build()?;
    if args.serve {
        let served = runtime.block_on(async {
            match args.control {
                Some(control) => Ok(servers::following(control).await?.http),
                None => servers::http(ServerKind::Bare).await,
            }
        });
        println!("{}", served?);
        process::until_orphaned();
        return Ok(ExitCode::SUCCESS);
    }
    let is_met = runtime.block_on(run(&args));
    runtime.shutdown_background();
    Ok(if is_met? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether every bar is met.
async fn run(args: &Args) -> Result<bool> {
    println!("{}.", process::machine());
    let programs = Programs::find(args)?;
    let cases = if args.cases.is_empty() { Case::value_variants() } else { args.cases.as_slice() };
    let mut is_met = true;
    for case in cases {
        is_met &= match case {
            Case::Gateway => gateways::beside_envoy(&programs, args).await,
            Case::Nginx => gateways::beside_nginx(&programs, args).await,
            Case::Sidecars => sidecars::run(&programs, args).await,
            Case::Hosts => hosts::run(&programs, args).await,
        }
        .with_context(|| format!("{case:?}"))?;
    }
    Ok(is_met)
}
