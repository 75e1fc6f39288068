//! The rate limit service of `mesh-control` under load: what a decision costs, beside envoyproxy/ratelimit, and how exact two replicas
//! on one Redis are. Ends with status 1 where a bar is missed.
//!
//! ```text
//! cargo build --release --bin mesh-control
//! cargo run --release --bin limits -- --theirs path/to/ratelimit      # envoyproxy/ratelimit, as interop/run builds it
//! ```
#![allow(clippy::print_stdout, reason = "a program that prints figures")]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Parser;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use envoy_types::pb::envoy::service::ratelimit::v3::RateLimitRequest;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::Code;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
use mesh_benches::Result;
use mesh_benches::process::{Process, cpu, free_ports, machine, program_beside};
use mesh_benches::stats::{judge, median};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tonic::transport::Channel;

/// Who asks at a time, over how many connections, about how many users.
const CALLERS: usize = 16;
const CONNECTIONS: usize = 4;
const USERS: usize = 1000;
/// How many times as many decisions there have to be for each second of a CPU.
const DECISIONS: f64 = 2.0;

/// Requests a second of all clients together, how many of them may pass, and how far from that may be.
const RATE: u32 = 5000;
const LIMIT: u32 = 2500;
const CLIENTS: u32 = 3;
const ACCURACY: f64 = 0.02;

#[derive(Parser)]
#[command(about = "What decisions about rate limits cost, and how exact they are")]
struct Args {
    /// The binary of mesh-control; else the one beside this program.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// The binary of envoyproxy/ratelimit; without it, ours is measured alone.
    #[arg(long, value_name = "PATH")]
    theirs: Option<PathBuf>,
    /// The binary of Redis.
    #[arg(long, value_name = "PATH", default_value = "redis-server")]
    redis: PathBuf,
    /// How often each is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// For how many seconds each time.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// A service that is asked.
struct Service {
    name: &'static str,
    process: Process,
    address: SocketAddr,
}

type Client = RateLimitServiceClient<Channel>;

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let is_met = runtime.block_on(run(&args))?;
    Ok(if is_met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run(args: &Args) -> Result<bool> {
    println!("{}", machine());
    let folder = tempfile::tempdir()?;
    let rules = format!(
        "domain: bench\ndescriptors:\n- key: user\n  rate_limit: {{unit: hour, requests_per_unit: 1000000000}}\n\
         - key: crowd\n  rate_limit: {{unit: second, requests_per_unit: {LIMIT}}}\n"
    );
    let (config, runtime) = (folder.path().join("config"), folder.path().join("runtime/ratelimit/config"));
    for path in [&config, &runtime, &folder.path().join("empty")] {
        fs::create_dir_all(path)?;
    }
    fs::write(config.join("rules.yaml"), &rules)?;
    fs::write(runtime.join("rules.yaml"), &rules)?;
    let (_redis, redis) = redis(&args.redis, folder.path())?;
    let url = format!("redis://{redis}");
    let mut services = vec![
        ours("mesh-control, in memory", args, folder.path(), None)?,
        ours("mesh-control, on Redis", args, folder.path(), Some(&url))?,
    ];
    if let Some(path) = &args.theirs {
        services.push(theirs(path, folder.path(), redis)?);
    }
    let mut each: Vec<Vec<f64>> = services.iter().map(|_| Vec::new()).collect();
    for service in &services {
        ready(service.address).await?;
    }
    for _ in 0..args.rounds {
        for (service, figures) in services.iter().zip(&mut each) {
            figures.push(decisions(service, Duration::from_secs(args.seconds)).await?);
        }
    }
    let medians: Vec<f64> = each.iter().map(|figures| median(figures)).collect();
    println!("decisions for each second of a CPU, the median of {}:", args.rounds);
    for (service, median) in services.iter().zip(&medians) {
        println!("  {}: {median:.0}", service.name);
    }
    let mut is_met = true;
    if let [memory, redis, theirs] = medians[..] {
        for (ratio, what) in [(memory / theirs, "in memory"), (redis / theirs, "on Redis")] {
            is_met &= judge(&format!("{what} {ratio:.1} times as many (bar {DECISIONS})"), ratio >= DECISIONS);
        }
    }
    // Two replicas, and what they count in.
    services.truncate(2);
    services.remove(0);
    services.push(ours("a second replica", args, folder.path(), Some(&url))?);
    let mut replicas = Vec::new();
    for service in &services {
        replicas.push(ready(service.address).await?);
    }
    Ok(exact(&replicas).await? && is_met)
}

/// Addresses of this machine that nobody listens on.
fn free<const N: usize>() -> Result<[SocketAddr; N]> {
    Ok(free_ports::<N>()?.map(|port| SocketAddr::from(([127, 0, 0, 1], port))))
}

fn redis(program: &Path, folder: &Path) -> Result<(Process, SocketAddr)> {
    let [address] = free()?;
    let mut command = Command::new(program);
    command.args(["--bind", "127.0.0.1", "--save", "", "--port", &address.port().to_string()]);
    command.arg("--dir").arg(folder).stdout(Stdio::null());
    Ok((Process::start(&mut command)?, address))
}

fn ours(name: &'static str, args: &Args, folder: &Path, redis: Option<&str>) -> Result<Service> {
    let beside = || program_beside("mesh-control", "cargo build --release --bin mesh-control");
    let program = args.control.clone().map_or_else(beside, Ok)?;
    let [address] = free()?;
    let mut command = Command::new(program);
    command.args([
        "serve",
        "--xds-addr",
        "127.0.0.1:0",
        "--secure-addr",
        "127.0.0.1:0",
        "--status-addr",
        "127.0.0.1:0",
    ]);
    command.arg("--config").arg(folder.join("empty")).arg("--ratelimit-config").arg(folder.join("config"));
    command.arg("--ratelimit-addr").arg(address.to_string()).stdout(Stdio::null()).env("RUST_LOG", "error");
    if let Some(url) = redis {
        command.args(["--redis-url", url]);
    }
    Ok(Service { name, process: Process::start(&mut command)?, address })
}

fn theirs(program: &Path, folder: &Path, redis: SocketAddr) -> Result<Service> {
    let [address, http, debug] = free()?;
    let mut command = Command::new(program);
    command.env("RUNTIME_ROOT", folder.join("runtime")).stdout(Stdio::null()).stderr(Stdio::null());
    command.envs([
        ("RUNTIME_SUBDIRECTORY", "ratelimit"),
        ("RUNTIME_WATCH_ROOT", "false"),
        ("USE_STATSD", "false"),
        ("LOG_LEVEL", "error"),
        ("BACKEND_TYPE", "redis"),
        ("REDIS_SOCKET_TYPE", "tcp"),
        ("REDIS_TYPE", "SINGLE"),
        ("GRPC_HOST", "127.0.0.1"),
        ("HOST", "127.0.0.1"),
        ("DEBUG_HOST", "127.0.0.1"),
        ("LOCAL_CACHE_SIZE_IN_BYTES", "1048576"),
    ]);
    command.env("REDIS_URL", redis.to_string()).env("GRPC_PORT", address.port().to_string());
    command.env("PORT", http.port().to_string()).env("DEBUG_PORT", debug.port().to_string());
    Ok(Service { name: "envoyproxy/ratelimit, on Redis", process: Process::start(&mut command)?, address })
}

/// A client of a service that answers.
async fn ready(address: SocketAddr) -> Result<Client> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let connected = Channel::from_shared(format!("http://{address}"))?.connect().await;
        if let Ok(channel) = connected {
            let mut client = Client::new(channel);
            if client.should_rate_limit(question("user", "ready")).await.is_ok() {
                return Ok(client);
            }
        }
        anyhow::ensure!(Instant::now() < end, "{address} does not answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn question(key: &str, value: &str) -> RateLimitRequest {
    let entries = vec![Entry { key: key.to_owned(), value: value.to_owned() }];
    let descriptors = vec![RateLimitDescriptor { entries, ..RateLimitDescriptor::default() }];
    RateLimitRequest { domain: "bench".to_owned(), descriptors, hits_addend: 0 }
}

/// Asks as fast as it is answered; how many decisions there were for each second of a CPU.
async fn decisions(service: &Service, time: Duration) -> Result<f64> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(ready(service.address).await?);
    }
    let (before, began, mut callers) = (cpu(service.process.id())?, Instant::now(), JoinSet::new());
    for (caller, client) in (0..CALLERS).zip(clients.iter().cycle()) {
        let mut client = client.clone();
        callers.spawn(async move {
            let (mut asked, mut user) = (0_u64, caller * USERS / CALLERS);
            while began.elapsed() < time {
                user = (user + 1) % USERS;
                client.should_rate_limit(question("user", &format!("user-{user}"))).await?;
                asked += 1;
            }
            Ok::<_, tonic::Status>(asked)
        });
    }
    let mut asked = 0;
    while let Some(one) = callers.join_next().await {
        asked += one?.with_context(|| format!("{} does not answer", service.name))?;
    }
    let used = cpu(service.process.id())?.saturating_sub(before);
    Ok(asked as f64 / used.as_secs_f64())
}

/// Clients of both replicas ask at a rate of twice what may pass: in each whole second as many pass as may.
async fn exact(replicas: &[Client]) -> Result<bool> {
    const SECONDS: u64 = 12;
    let mut clients = JoinSet::new();
    for (_, client) in (0..CLIENTS).zip(replicas.iter().cycle()) {
        let client = client.clone();
        clients.spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) * CLIENTS / RATE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let (end, mut calls) = (Instant::now() + Duration::from_secs(SECONDS), JoinSet::new());
            while Instant::now() < end {
                ticks.tick().await;
                let mut client = client.clone();
                calls.spawn(async move {
                    let second = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                    (second, client.should_rate_limit(question("crowd", "all")).await)
                });
            }
            calls.join_all().await
        });
    }
    // By the second: how many asked, and how many passed.
    let (mut seconds, mut failed) = (BTreeMap::<u64, (u64, u64)>::new(), 0);
    for (second, answer) in clients.join_all().await.into_iter().flatten() {
        let (asked, passed) = seconds.entry(second).or_default();
        *asked += 1;
        match answer {
            Ok(answer) if answer.get_ref().overall_code() == Code::Ok => *passed += 1,
            Ok(_) => {}
            Err(_) => failed += 1,
        }
    }
    // Those in the middle are whole.
    let whole: Vec<_> = seconds.values().skip(1).take(seconds.len().saturating_sub(2)).collect();
    let sum = |part: fn(&(u64, u64)) -> u64| whole.iter().map(|one| part(one)).sum::<u64>() as f64;
    let (asked, passed) = (sum(|one| one.0) / whole.len() as f64, sum(|one| one.1) / whole.len() as f64);
    let off = (passed / f64::from(LIMIT) - 1.0).abs();
    println!("{CLIENTS} clients and 2 replicas on Redis, {} whole seconds of {asked:.0} requests:", whole.len());
    let is_exact =
        judge(&format!("{passed:.0} a second pass of {LIMIT}, {:.2} % off (bar 2 %)", off * 100.0), off <= ACCURACY);
    let is_fast =
        judge(&format!("{asked:.0} a second asked (bar {RATE}, within 5 %)"), asked >= 0.95 * f64::from(RATE));
    Ok(judge(&format!("{failed} not answered (bar 0)"), failed == 0) && is_exact && is_fast)
}
