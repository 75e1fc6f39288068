//! Somebody who is shown requests and answers and may change them (`envoy.extensions.filters.http.ext_proc.v3`), as data.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

/// Who is shown the heads of requests and of their answers, and what becomes of those that nobody has a word on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExtProc {
    /// The processor, as the mesh's client calls it: `host:port`.
    pub target: Arc<str>,
    /// How long it may take for each head.
    pub timeout: Duration,
    /// Whether what it has no word on passes. Never, unless it is written.
    pub fail_open: bool,
    /// What a request is answered with that it had no word on.
    pub status_on_error: StatusCode,
    /// Whether it is shown the heads of requests.
    pub request: bool,
    /// Whether it is shown the heads of their answers.
    pub response: bool,
    /// Whether it may answer requests itself.
    pub may_answer: bool,
}

impl ExtProc {
    /// One that is shown both, and has 200 ms for each (Envoy's default).
    pub fn new(target: impl Into<Arc<str>>) -> Self {
        ExtProc {
            target: target.into(),
            timeout: Duration::from_millis(200),
            fail_open: false,
            status_on_error: StatusCode::INTERNAL_SERVER_ERROR,
            request: true,
            response: true,
            may_answer: true,
        }
    }
}
