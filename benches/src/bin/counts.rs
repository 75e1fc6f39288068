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

use std::process::Command;

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Parser;
use mesh_benches::clients::{self, Raw, RawGrpc, Version};
use mesh_benches::{Result, grpc, servers};

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
    /// Bytes of the bodies, each way.
    #[arg(long, default_value_t = 256)]
    bytes: usize,
}

const CASES: [&str; 9] = [
    "raw-http1",
    "pooled-http1",
    "mesh-http1",
    "raw-http2",
    "pooled-http2",
    "mesh-http2",
    "raw-grpc",
    "channel-grpc",
    "mesh-grpc",
];

fn main() -> Result {
    let args = Args::parse();
    if let Some(case) = &args.case {
        return run(case, args.requests, args.bytes).map(drop);
    }
    println!("| case | allocations | above raw | instructions | above raw |");
    println!("|---|---:|---:|---:|---:|");
    let mut raw = (0.0, 0.0);
    for case in CASES {
        let allocations = run(case, args.requests, args.bytes)?;
        let instructions = match args.allocations_only {
            true => f64::NAN,
            false => instructions(case, args.bytes)?,
        };
        if case.starts_with("raw") {
            raw = (allocations, instructions);
        }
        println!(
            "| {case} | {allocations:.1} | {:+.1} | {instructions:.0} | {:+.0} |",
            allocations - raw.0,
            instructions - raw.1
        );
    }
    Ok(())
}

/// Runs a case; allocations per request after a warm-up.
fn run(case: &str, requests: u64, bytes: usize) -> Result<f64> {
    // A second thread, as in any real program: allocators and system calls cost a little more with one.
    std::thread::spawn(std::thread::park);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let body = Bytes::from(vec![b'y'; bytes]);
    let version = if case.ends_with("http2") { Version::Http2 } else { Version::Http1 };
    let count = |send: &mut dyn FnMut() -> Result| -> Result<f64> {
        (0..100).try_for_each(|_| send())?;
        let mut result = Ok(());
        let info = allocation_counter::measure(|| result = (0..requests).try_for_each(|_| send()));
        result.map(|()| info.count_total as f64 / requests as f64)
    };
    match case {
        "raw-http1" | "raw-http2" => {
            let address = runtime.block_on(servers::bare(bytes))?;
            let mut client = runtime.block_on(Raw::connect(address, version))?;
            count(&mut || runtime.block_on(client.send(body.clone())).map(drop))
        }
        "pooled-http1" | "pooled-http2" => {
            let address = runtime.block_on(servers::bare(bytes))?;
            let (client, uri) = (clients::pooled(version), clients::direct_uri(address)?);
            count(&mut || runtime.block_on(clients::send_pooled(&client, &uri, body.clone())).map(drop))
        }
        "mesh-http1" | "mesh-http2" => {
            let address = runtime.block_on(servers::bare(bytes))?;
            let mesh = clients::mesh([address])?;
            let client = mesh.client();
            count(&mut || runtime.block_on(clients::send_mesh(&client, version, body.clone())).map(drop))
        }
        "raw-grpc" => {
            let address = runtime.block_on(servers::grpc())?;
            let client = runtime.block_on(RawGrpc::connect(address))?;
            count(&mut || Ok(runtime.block_on(grpc::call(client.clone(), body.clone())).map(drop)?))
        }
        "channel-grpc" => {
            let address = runtime.block_on(servers::grpc())?;
            let endpoint = tonic::transport::Endpoint::new(format!("http://{address}"))?;
            let client = runtime.block_on(endpoint.connect())?;
            count(&mut || Ok(runtime.block_on(grpc::call(client.clone(), body.clone())).map(drop)?))
        }
        "mesh-grpc" => {
            let address = runtime.block_on(servers::grpc())?;
            let mesh = clients::mesh([address])?;
            let client = mesh.client_for(clients::HOST)?;
            count(&mut || Ok(runtime.block_on(grpc::call(client.clone(), body.clone())).map(drop)?))
        }
        _ => anyhow::bail!("no case is called {case}"),
    }
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
