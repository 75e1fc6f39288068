//! Sends requests through a mesh and says what became of them: `mesh-curl` as a function.

mod call;
mod report;
mod target;
mod wire;

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use mesh_tower::Mesh;

use crate::load::{self, Pace};

pub use call::{Endpoints, Outcome, Status};
pub use report::Summary;
pub use target::{Target, TargetError};
pub use wire::text_message;

/// What to send.
#[derive(Clone, Debug)]
pub struct Call {
    /// Where to.
    pub target: Target,
    /// HTTP only.
    pub method: Method,
    /// Headers, or gRPC metadata.
    pub headers: HeaderMap,
    /// The body; for gRPC, one message without its frame.
    pub body: Bytes,
    /// Whether to ask for HTTP/2 where the configuration leaves the choice to the caller.
    pub http2: bool,
    /// How long to wait for the whole response.
    pub timeout: Duration,
}

/// How to say what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The one response, or a summary of many calls.
    Human,
    /// One JSON object a line: each call as it ends, then the totals.
    Json,
}

/// Sends the call as often as the pace says, or until `stop`, and writes the outcome.
///
/// # Errors
/// When the outcome cannot be written. A call that fails is part of the outcome.
pub async fn run(
    mesh: &Mesh,
    call: Call,
    pace: Pace,
    output: Output,
    stop: impl Future<Output = ()>,
    out: &mut dyn Write,
) -> io::Result<Summary> {
    let sender = Arc::new(call::Sender::new(mesh, call));
    let mut summary = Summary::start();
    let mut written = Ok(());
    let alone = pace.count == Some(1);
    let each = |outcome: Outcome| {
        summary.add(&outcome);
        if written.is_ok() {
            written = match output {
                Output::Json => report::line(&outcome, out),
                Output::Human if alone => report::response(&outcome, out),
                Output::Human => Ok(()),
            };
        }
    };
    let one = |_, due| {
        let sender = Arc::clone(&sender);
        async move { sender.send(due).await }
    };
    load::run(&pace, stop, one, each).await;
    written?;
    summary.end();
    match output {
        Output::Json => report::last_line(&summary, out)?,
        Output::Human if alone => {}
        Output::Human => report::table(&summary, out)?,
    }
    Ok(summary)
}
