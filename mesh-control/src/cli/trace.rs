//! `mesh-control trace`: follows the next live request that fits, and says why it went as it went.

use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::status::StatusServer;
use super::{Format, Printing};
use crate::explain::workload::WorkloadName;
use crate::live_trace::{Traced, Wanted};

/// The longest line that is read.
const MOST: usize = 64 << 20;

/// Follows the next live request that fits through all processes of the library that it passes, and says why it went as it did:
/// the deciding cause first; then each hop with the routes that were tried and the condition that did not hold, the endpoints that
/// there were and the one that was picked, each try with its outcome, policies with the file and the line, and times.
///
/// Whoever reaches the status of mesh-control may do so. Of headers the names are told, and the values of those that the mesh
/// reads, and that --where names; credentials never are. The exit code is 0 if as many requests were seen as were asked for, 1 if not.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    server: StatusServer,
    /// Whose requests: NAMESPACE/WORKLOAD, by the workload's name or its label `app`. Without it anybody's, also those that come
    /// from outside of the mesh.
    #[arg(long, value_name = "NAMESPACE/WORKLOAD")]
    from: Option<WorkloadName>,
    /// The host that they ask for, with or without a port.
    #[arg(long, value_name = "HOST", default_value = "", hide_default_value = true)]
    to: String,
    /// What has to be so of them: `header NAME=VALUE`, `header NAME`, `path /PATH`, `path /START*`, `method METHOD`. May be given
    /// several times.
    #[arg(long = "where", value_name = "CONDITION")]
    conditions: Vec<String>,
    /// How many of them.
    #[arg(long, value_name = "N", default_value_t = 1)]
    next: u32,
    /// How long to wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    #[command(flatten)]
    printing: Printing,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut wanted = Wanted::to(&args.to).next(args.next).seconds(args.timeout);
    wanted.from = args.from.as_ref().map(WorkloadName::to_string);
    wanted.r#where.clone_from(&args.conditions);
    wanted.check().map_err(anyhow::Error::msg)?;
    let mut lines = ask(&args.server.status_addr, &serde_json::to_string(&wanted)?).await?;
    let mut is_first = true;
    loop {
        let mut line = Vec::new();
        let read = lines.take_line(&mut line).await.context("the answer broke off")?;
        if read == 0 {
            bail!("the answer broke off");
        }
        let line: Value = serde_json::from_slice(&line).context("not an answer of mesh-control")?;
        if let Some(armed) = line.get("armed") {
            let count = |name: &str| armed.get(name).and_then(Value::as_u64).unwrap_or_default();
            let (follow, begin) = (count("processes"), count("looked_at"));
            eprintln!("mesh-control: processes that follow: {follow}; whose requests are looked at: {begin}");
        } else if let Some(request) = line.get("request") {
            match args.printing.format() {
                Format::Json => super::say(&format!("{request}\n"))?,
                Format::Text => {
                    let traced: Traced = serde_json::from_value(request.clone()).context("not a request")?;
                    let between = if is_first { "" } else { "\n" };
                    super::say(&format!("{between}{traced}"))?;
                }
            }
            is_first = false;
        } else if let Some(end) = line.get("end").and_then(Value::as_str) {
            if line.get("missing").and_then(Value::as_u64) == Some(0) {
                return Ok(ExitCode::SUCCESS);
            }
            bail!("{end}, and not as many requests came that fit as were asked for");
        }
    }
}

/// A reader of lines, within a bound.
struct Lines(BufReader<TcpStream>);

impl Lines {
    async fn take_line(&mut self, into: &mut Vec<u8>) -> std::io::Result<usize> {
        use tokio::io::AsyncReadExt;
        (&mut self.0).take(MOST as u64).read_until(b'\n', into).await
    }
}

/// One POST over HTTP/1.0: the answer ends where the connection ends.
async fn ask(address: &str, body: &str) -> anyhow::Result<Lines> {
    let unreachable = || format!("cannot reach mesh-control's status at {address}");
    let mut stream = TcpStream::connect(address).await.with_context(unreachable)?;
    let length = body.len();
    let request = format!(
        "POST /trace HTTP/1.0\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.with_context(unreachable)?;
    let mut lines = Lines(BufReader::new(stream));
    let mut head = Vec::new();
    loop {
        let mut line = Vec::new();
        if lines.take_line(&mut line).await.with_context(unreachable)? == 0 {
            bail!("{address}: not an HTTP answer");
        }
        if line == b"\r\n" {
            break;
        }
        head.extend_from_slice(&line);
    }
    let head = String::from_utf8_lossy(&head);
    if head.split(' ').nth(1) != Some("200") {
        let mut why = Vec::new();
        lines.take_line(&mut why).await.with_context(unreachable)?;
        bail!("{address}: {}: {}", head.lines().next().unwrap_or_default(), String::from_utf8_lossy(&why).trim());
    }
    Ok(lines)
}
