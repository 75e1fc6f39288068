//! Outcomes for people and for programs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use http::HeaderMap;
use serde::{Serialize, Serializer};

use super::{Outcome, Status};
use crate::grpc;
use crate::stats::{Counts, Latencies, count};
use crate::text::millis;

/// The totals of many calls.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Calls that ended.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// How often each status came.
    pub statuses: Counts,
    /// How often each backend answered; those that are not known are left out.
    pub backends: Counts,
    /// What the mesh said, where it failed calls, and how often.
    pub errors: Counts,
    latencies: Latencies,
    started: Instant,
    took: Duration,
}

impl Summary {
    pub(super) fn start() -> Self {
        Summary {
            requests: 0,
            failed: 0,
            statuses: Counts::new(),
            backends: Counts::new(),
            errors: Counts::new(),
            latencies: Latencies::default(),
            started: Instant::now(),
            took: Duration::ZERO,
        }
    }

    pub(super) fn add(&mut self, outcome: &Outcome) {
        self.requests += 1;
        self.failed += u64::from(!outcome.is_ok());
        count(&mut self.statuses, &outcome.status.to_string());
        outcome.backend.iter().for_each(|backend| count(&mut self.backends, backend));
        outcome.error.iter().for_each(|error| count(&mut self.errors, error));
        self.latencies.add(outcome.took);
    }

    pub(super) fn end(&mut self) {
        self.took = self.started.elapsed();
    }

    /// Whether there were calls, and all succeeded.
    pub fn is_ok(&self) -> bool {
        self.requests > 0 && self.failed == 0
    }

    fn rate(&self) -> f64 {
        let rate = self.requests as f64 / self.took.as_secs_f64().max(f64::MIN_POSITIVE);
        (rate * 10.0).round() / 10.0
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Status::Http(status) => write!(f, "{}", status.as_u16()),
            Status::Grpc(code) => f.write_str(grpc::code_name(*code)),
            Status::Tcp(connection) => f.write_str(connection.as_str()),
        }
    }
}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Status::Http(status) => serializer.serialize_u16(status.as_u16()),
            Status::Grpc(code) => serializer.serialize_str(grpc::code_name(*code)),
            Status::Tcp(connection) => serializer.serialize_str(connection.as_str()),
        }
    }
}

#[derive(Serialize)]
struct Line<'l> {
    status: Status,
    ms: f64,
    backend: Option<&'l str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<BTreeMap<&'l str, Vec<Cow<'l, str>>>>,
    body: &'l str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trailers: Option<BTreeMap<&'l str, Vec<Cow<'l, str>>>>,
    error: Option<&'l str>,
}

/// Headers by name, each with its values in the order in which they came.
fn by_name(headers: &HeaderMap) -> BTreeMap<&str, Vec<Cow<'_, str>>> {
    let mut all = BTreeMap::<_, Vec<_>>::new();
    for (name, value) in headers {
        all.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()));
    }
    all
}

/// One call as one line of JSON, flushed.
pub(super) fn line(outcome: &Outcome, headers: bool, out: &mut dyn Write) -> io::Result<()> {
    let line = Line {
        status: outcome.status,
        ms: millis(outcome.took),
        backend: outcome.backend.as_deref(),
        headers: headers.then(|| by_name(&outcome.headers)),
        body: &outcome.body,
        trailers: headers.then(|| by_name(&outcome.trailers)),
        error: outcome.error.as_deref(),
    };
    write_line(&line, out)
}

/// The totals as the last line of JSON.
pub(super) fn last_line(summary: &Summary, out: &mut dyn Write) -> io::Result<()> {
    let totals = serde_json::json!({
        "requests": summary.requests,
        "ok": summary.requests - summary.failed,
        "failed": summary.failed,
        "seconds": millis(summary.took) / 1e3,
        "rate": summary.rate(),
        "status": summary.statuses,
        "backend": summary.backends,
        "error": summary.errors,
        "ms": summary.latencies.percentiles(),
    });
    write_line(&serde_json::json!({ "summary": totals }), out)
}

fn write_line(value: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}

/// The only call there is: its answer.
pub(super) fn response(outcome: &Outcome, headers: bool, out: &mut dyn Write) -> io::Result<()> {
    let by = outcome.backend.as_deref().map(|backend| format!(" by {backend}")).unwrap_or_default();
    writeln!(out, "{}{by} in {} ms", outcome.status, millis(outcome.took))?;
    if let Some(error) = &outcome.error {
        writeln!(out, "{error}")?;
    }
    if headers {
        write_headers(&outcome.headers, out)?;
        writeln!(out)?;
    }
    if !outcome.body.is_empty() {
        writeln!(out, "{}", outcome.body.trim_end())?;
    }
    if headers && !outcome.trailers.is_empty() {
        writeln!(out)?;
        write_headers(&outcome.trailers, out)?;
    }
    out.flush()
}

fn write_headers(headers: &HeaderMap, out: &mut dyn Write) -> io::Result<()> {
    for (name, value) in headers {
        // Whatever a peer sends, the terminal is given no control characters.
        writeln!(out, "{name}: {}", String::from_utf8_lossy(value.as_bytes()).replace(char::is_control, " "))?;
    }
    Ok(())
}

/// The totals, to read.
pub(super) fn table(summary: &Summary, out: &mut dyn Write) -> io::Result<()> {
    let seconds = summary.took.as_secs_f64();
    let Summary { requests, failed, .. } = summary;
    writeln!(out, "{requests} calls in {seconds:.1} s ({:.1} a second), {failed} failed", summary.rate())?;
    for (title, counts) in [("status", &summary.statuses), ("backend", &summary.backends), ("error", &summary.errors)] {
        for (key, seen) in counts {
            let share = *seen as f64 * 100.0 / (*requests).max(1) as f64;
            writeln!(out, "  {title:<8} {seen:>8}  {share:>5.1} %  {key}")?;
        }
    }
    let ms = summary.latencies.percentiles();
    writeln!(out, "  latency  p50 {} ms  p90 {} ms  p99 {} ms  max {} ms", ms.p50, ms.p90, ms.p99, ms.max)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn outcome(status: Status, error: Option<&str>) -> Outcome {
        let took = Duration::from_micros(1234);
        let (backend, body, error) = (Some("b1".into()), "hi".to_owned(), error.map(str::to_owned));
        let headers = HeaderMap::from_iter([(http::header::SERVER, "s".parse().unwrap())]);
        Outcome { took, backend, headers, body, error, ..Outcome::new(status) }
    }

    fn text(write: impl Fn(&mut dyn Write) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_is_one_json_object() {
        let http = outcome(Status::Http(http::StatusCode::OK), None);
        let expected = r#"{"status":200,"ms":1.234,"backend":"b1","body":"hi","error":null}"#;
        assert_eq!(text(|out| line(&http, false, out)).trim_end(), expected);
        let expected = r#"{"status":200,"ms":1.234,"backend":"b1","headers":{"server":["s"]},"body":"hi","trailers":{},"error":null}"#;
        assert_eq!(text(|out| line(&http, true, out)).trim_end(), expected);
        let grpc = outcome(Status::Grpc(Code::DeadlineExceeded), Some("too late"));
        let expected = r#"{"status":"DEADLINE_EXCEEDED","ms":1.234,"backend":"b1","body":"hi","error":"too late"}"#;
        assert_eq!(text(|out| line(&grpc, false, out)).trim_end(), expected);
    }

    #[test]
    fn the_last_line_has_the_totals() {
        let mut summary = Summary::start();
        assert!(!summary.is_ok());
        summary.add(&outcome(Status::Grpc(Code::Ok), None));
        assert!(summary.is_ok());
        summary.add(&outcome(Status::Grpc(Code::Unavailable), Some("gone")));
        assert!(!summary.is_ok());
        let last: serde_json::Value = serde_json::from_str(&text(|out| last_line(&summary, out))).unwrap();
        let totals = &last["summary"];
        assert_eq!((&totals["requests"], &totals["failed"]), (&2.into(), &1.into()));
        assert_eq!(totals["status"], serde_json::json!({"OK": 1, "UNAVAILABLE": 1}));
        assert_eq!(totals["backend"], serde_json::json!({"b1": 2}));
        assert_eq!(totals["error"], serde_json::json!({"gone": 1}));
        assert_eq!(totals["ms"]["p50"], 1.234);
    }
}
