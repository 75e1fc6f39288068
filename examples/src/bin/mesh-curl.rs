//! A client for the mesh: see `mesh-curl --help`.

use std::io;
use std::num::{NonZeroU64, NonZeroUsize};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_examples::cli::{self, Printing, Signals};
use mesh_examples::curl::{self, Call, Endpoints, Output, Stop, Target};
use mesh_examples::load::Pace;
use mesh_examples::node::{Join, Workload};
use mesh_examples::text;
use tokio::sync::Notify;

/// Sends requests through the mesh, and says who answered what, and how fast.
///
/// The exit code is 0 if every call succeeded (an HTTP status below 400, gRPC OK, a connection that ended after its answer), 1 if one failed or none was made,
/// 2 if the command line makes no sense.
#[derive(Debug, Parser)]
#[command(name = "mesh-curl", version, after_help = HELP)]
struct Args {
    /// http://HOST:PORT/PATH, gRPC as xds:///NAME:PORT/package.Service/Method (without a method, that of mesh-echo), or bytes
    /// as tcp://HOST:PORT.
    target: Target,
    /// What it calls itself.
    #[arg(long, default_value = "mesh-curl")]
    name: String,
    /// How many calls [default: 1, or without end with --duration].
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<NonZeroU64>,
    /// For how long to make calls, such as 10s.
    #[arg(long, value_parser = text::duration)]
    duration: Option<Duration>,
    /// Calls a second, whether or not earlier ones were answered: an open loop. Latencies then count from when a call
    /// was due. Without it, the next call is made when one of --concurrency is answered.
    #[arg(long, value_name = "PER SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// How many calls at most are under way at once [default: 1; with --rate 10000].
    #[arg(short = 'c', long, value_name = "N")]
    concurrency: Option<NonZeroUsize>,
    /// A header, or gRPC metadata; may be repeated. `n` in braces, in its value, is the number of the call, from 1.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The HTTP method [default: GET, with a body POST].
    #[arg(short = 'X', long, value_name = "METHOD")]
    request: Option<Method>,
    /// The body, or the bytes that a connection sends. For gRPC, the text of field 1 of the message; @FILE sends the bytes
    /// of a file, for gRPC as the whole message.
    #[arg(short = 'd', long, value_name = "TEXT|@FILE")]
    data: Option<String>,
    /// Asks for HTTP/2 where the configuration leaves that to the caller. gRPC always uses it.
    #[arg(long)]
    http2: bool,
    /// How long to wait for a response.
    #[arg(long, default_value = "30s", value_parser = text::duration)]
    timeout: Duration,
    /// Prints the headers of each response, too, and its trailers: with one call, or with -o json.
    #[arg(short, long)]
    include: bool,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    join: Join,
}

const HELP: &str = r#"With -o json each call becomes a line as it ends, and the last line has the totals:
  {"status": 200, "ms": 1.234, "backend": "echo-v1-127.0.0.1:8080", "body": "...", "error": null}
  {"summary": {"requests": 1, "ok": 1, "failed": 0, "seconds": 0.01, "rate": 81.0, "status": {"200": 1},
   "backend": {...}, "error": {}, "ms": {"p50": 1.234, "p90": 1.234, "p99": 1.234, "max": 1.234}}}
status   the HTTP status, or "OK" or the name of another gRPC code, or "OK" or "FAILED" of a connection; where the mesh failed the call, the status that
         it answers such a failure with
backend  what the answer calls its backend (header x-mesh-backend, or "backend" in its JSON), else the endpoint's
         ip:port, else null
body     the body; of a gRPC reply its text if mesh-echo sent it, else its fields by number
error    what the mesh says, if it failed the call; for gRPC, the message of the status
With -i there are also "headers" and "trailers", by name, each a list of values.

SIGINT and SIGTERM stop it; calls under way are waited for, and the totals are printed. A second one ends those, too.
It is over as well when nobody reads its output any more."#;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args: Args = cli::parse();
    args.printing.log();
    let is_grpc = matches!(args.target, Target::Grpc { .. });
    let default_method = if args.data.is_some() { Method::POST } else { Method::GET };
    let call = Call {
        method: args.request.unwrap_or(default_method),
        headers: HeaderMap::from_iter(args.headers),
        body: body(args.data.as_deref().unwrap_or_default(), is_grpc).await?,
        http2: args.http2,
        timeout: args.timeout,
        target: args.target,
    };
    let pace = Pace {
        count: args.count.map(NonZeroU64::get).or(if args.duration.is_none() { Some(1) } else { None }),
        time: args.duration,
        rate: args.rate,
        concurrency: args.concurrency.map_or(if args.rate.is_some() { 10_000 } else { 1 }, NonZeroUsize::get),
    };
    let output = Output { format: args.printing.format(), headers: args.include };
    let mut signals = Signals::new()?;
    let mesh = args.join.mesh(Workload::new(&args.name, "v1"))?.observer(Endpoints).start()?;
    args.join.serve_admin(&mesh, args.printing).await?;
    let told = Notify::new();
    let abort = async {
        signals.first().await;
        told.notify_one();
        signals.second().await;
    };
    let ends = Stop { stop: told.notified(), abort };
    let summary = curl::run(&mesh, call, pace, output, ends, &mut io::stdout()).await?;
    mesh.flush_telemetry().await;
    Ok(if summary.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The body that `-d` asks for.
async fn body(data: &str, is_grpc: bool) -> anyhow::Result<Bytes> {
    Ok(match data.strip_prefix('@') {
        Some(file) => tokio::fs::read(file).await.map_err(|error| anyhow::anyhow!("{file}: {error}"))?.into(),
        None if is_grpc => curl::text_message(data),
        None => data.to_owned().into(),
    })
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME: VALUE")?;
    let name: HeaderName = name.trim().parse().map_err(|error| format!("{error}"))?;
    if name == HOST {
        let why =
            "the mesh sends what the target names: put the host there, or let a route rewrite it (rewrite.authority)";
        return Err(why.to_owned());
    }
    let value = HeaderValue::from_str(value.trim()).map_err(|error| format!("{error}"))?;
    Ok((name, value))
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(rate),
        _ => Err("expected a number above 0 and not above 1000000".to_owned()),
    }
}
