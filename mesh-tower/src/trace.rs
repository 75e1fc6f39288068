//! Traces: which requests are recorded, who takes their spans, and what the application can know of the trace that it works
//! for.

use std::sync::Arc;
use std::time::SystemTime;

use mesh_core::model::Tracing;
use mesh_core::request_info::{Interest, Observer, RequestInfo};
use mesh_core::telemetry::{SpanSink, spans_of};
use mesh_core::trace::TraceContext;
use mesh_core::workload::OwnWorkload;

use crate::inherited;

/// The step of a trace that this task works for, for lines of a log and for spans of the application's own: below
/// [`Mesh::server_layer`](crate::Mesh::server_layer) the span of the request, or what its headers say where nothing is
/// recorded; elsewhere none. Calls of the mesh's clients tell it by themselves.
///
/// ```
/// fn log(line: &str) -> String {
///     match mesh_tower::trace::current() {
///         Some(trace) => format!("{line} trace_id={} span_id={}", trace.trace_id, trace.span_id),
///         None => line.to_owned(),
///     }
/// }
/// assert_eq!(log("nobody asked"), "nobody asked");
/// ```
pub fn current() -> Option<TraceContext> {
    inherited::look(|inherited| inherited.trace.context()).flatten()
}

/// Who takes the spans of a mesh.
#[derive(Debug)]
pub(crate) struct Tracer {
    sink: Box<dyn SpanSink>,
    own: Arc<OwnWorkload>,
    tracing: Arc<Tracing>,
}

impl Tracer {
    pub(crate) fn new(sink: Box<dyn SpanSink>, own: Arc<OwnWorkload>) -> Self {
        sink.begin(&own.get());
        Tracer { tracing: Arc::new(sink.tracing()), sink, own }
    }

    /// How requests are traced of which the configuration says nothing.
    #[inline]
    pub(crate) fn tracing(&self) -> &Arc<Tracing> {
        &self.tracing
    }

    /// Waits until what was recorded until now is sent, or for as long as the sink allows.
    pub(crate) async fn flush(&self) {
        self.sink.flush().await;
    }

    /// Spans that were lost.
    pub(crate) fn dropped(&self) -> u64 {
        self.sink.dropped()
    }
}

impl Observer for Tracer {
    fn on_end(&self, request: &RequestInfo) {
        if request.spans().is_some() {
            let now = (request.ended(), SystemTime::now());
            spans_of(request, &self.own.get(), now).into_iter().for_each(|span| self.sink.take(span));
        }
    }

    /// Of those that are recorded, the data plane notes everything in any case.
    fn interest(&self) -> Interest {
        Interest::Nothing
    }
}
