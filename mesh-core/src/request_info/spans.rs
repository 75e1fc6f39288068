//! What is noted of a request whose spans are recorded: its own, and one for each try. Others have nothing of it.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, StatusCode};

use super::RequestInfo;
use crate::error::ErrorKind;
use crate::model::Tracing;
use crate::state::EndpointState;
use crate::trace::{Begun, SpanId, Tables, TraceContext};

/// The spans of a request.
#[derive(Debug)]
#[non_exhaustive]
pub struct SpanNotes {
    /// Its own, and whose part that is.
    pub begun: Begun,
    /// What the configuration wants of them.
    pub tracing: Arc<Tracing>,
    /// Tries, in the order in which they began.
    pub attempts: Vec<AttemptNotes>,
    /// The number of the try whose answer is the request's, or that it failed with.
    pub winner: u32,
}

/// One try.
#[derive(Debug)]
#[non_exhaustive]
pub struct AttemptNotes {
    /// Which try it is, from 1 on.
    pub number: u32,
    /// Its span.
    pub span_id: SpanId,
    /// When it began.
    pub started: Instant,
    /// The endpoint that it went to.
    pub endpoint: Arc<EndpointState>,
    /// How it ended, and when, where that was before the end of the request.
    pub ended: Option<(Instant, AttemptEnd)>,
}

/// How a try ended that another one followed, or stood beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    /// With this answer, which was not good enough: its status, and that of gRPC where its head has one.
    Answered(StatusCode, Option<u32>),
    /// Without one.
    Failed(ErrorKind),
    /// It was given up: another one was faster.
    GivenUp,
}

impl RequestInfo {
    /// Notes that its spans are recorded. For data planes, which observe it from here on, too.
    #[cold]
    pub fn note_span(&mut self, begun: Begun, tracing: &Arc<Tracing>) {
        let tracing = Arc::clone(tracing);
        self.spans = Some(Box::new(SpanNotes { begun, tracing, attempts: Vec::new(), winner: 0 }));
    }

    /// Its spans, where they are recorded.
    #[inline]
    pub fn spans(&self) -> Option<&SpanNotes> {
        self.spans.as_deref()
    }

    /// A try begins.
    #[cold]
    pub(super) fn note_attempt_span(&mut self, endpoint: &Arc<EndpointState>) {
        let (number, span_id) = (self.attempts, SpanId::random(&mut self.random));
        if let Some(spans) = &mut self.spans {
            let endpoint = Arc::clone(endpoint);
            spans.attempts.push(AttemptNotes { number, span_id, started: Instant::now(), endpoint, ended: None });
            spans.winner = number;
        }
    }

    /// Notes how try number `number` ended, before the end of the request.
    #[inline]
    pub fn note_attempt_end(&mut self, number: u32, end: AttemptEnd) {
        if let Some(call) = self.call_mut() {
            call.attempt_ended(number, end, Instant::now());
        }
        if let Some(spans) = &mut self.spans
            && let Some(attempt) = spans.attempts.iter_mut().find(|attempt| attempt.number == number)
        {
            attempt.ended.get_or_insert_with(|| (Instant::now(), end));
        }
    }

    /// Tells whoever gets the present try which trace it is a part of.
    #[inline]
    pub fn tell_trace(&self, tables: Tables, headers: &mut HeaderMap) {
        self.inherited.trace.tell(self.spans.as_deref().map(SpanNotes::present), tables, headers);
    }
}

impl SpanNotes {
    /// What requests are made for now: the present try, or the request itself before the first one.
    fn present(&self) -> TraceContext {
        self.attempts.last().map_or(self.begun.context, |attempt| self.begun.context.step(attempt.span_id))
    }
}
