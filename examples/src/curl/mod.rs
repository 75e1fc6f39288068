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
use tokio::sync::Notify;

use crate::cli::Format;
use crate::load::{self, Pace};

pub use call::{Connection, Endpoints, Outcome, Status};
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
    /// The body; for gRPC, one message without its frame; for a connection, the bytes to send.
    pub body: Bytes,
    /// Whether to ask for HTTP/2 where the configuration leaves the choice to the caller.
    pub http2: bool,
    /// How long to wait for the whole response.
    pub timeout: Duration,
}

/// How to say what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// As text the one response, or a summary of many calls; as JSON each call as it ends, then the totals.
    pub format: Format,
    /// Whether the headers and trailers of each response are written, too.
    pub headers: bool,
}

/// What ends the calls before their pace does.
#[derive(Clone, Copy, Debug)]
pub struct Stop<S, A> {
    /// No call is made any more; those under way are waited for.
    pub stop: S,
    /// Those under way are given up, too.
    pub abort: A,
}

/// Sends the call as often as the pace says, or until it is stopped, and writes the outcome. If nobody reads that any
/// more, it is over.
///
/// # Errors
/// When the outcome cannot be written. A call that fails is part of the outcome.
pub async fn run(
    mesh: &Mesh,
    call: Call,
    pace: Pace,
    output: Output,
    ends: Stop<impl Future<Output = ()>, impl Future<Output = ()>>,
    out: &mut dyn Write,
) -> io::Result<Summary> {
    let sender = Arc::new(call::Sender::new(mesh, call));
    let mut summary = Summary::start();
    let mut written = Ok(());
    let unwritten = Notify::new();
    let alone = pace.count == Some(1);
    let each = |outcome: Outcome| {
        summary.add(&outcome);
        if written.is_ok() {
            written = match output.format {
                Format::Json => report::line(&outcome, output.headers, out),
                Format::Text if alone => report::response(&outcome, output.headers, out),
                Format::Text => Ok(()),
            };
        }
        if written.is_err() {
            unwritten.notify_one();
        }
    };
    let one = |_, due| {
        let sender = Arc::clone(&sender);
        async move { sender.send(due).await }
    };
    tokio::select! {
        () = load::run(&pace, ends.stop, one, each) => {}
        () = ends.abort => {}
        () = unwritten.notified() => {}
    }
    summary.end();
    let told = written.and_then(|()| match output.format {
        Format::Json => report::last_line(&summary, out),
        Format::Text if alone => Ok(()),
        Format::Text => report::table(&summary, out),
    });
    match told {
        // Whoever has read enough and closed the pipe (`| head`) is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(summary),
    }
}
