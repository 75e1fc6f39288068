//! The thread that sends spans: what waits is bounded, and so is how long anybody waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use mesh_core::telemetry::{Span, SpanKind, SpanValue};
use mesh_core::workload::Workload;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind as Kind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter, SpanLinks};
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;

use super::{Limits, env};

pub(super) struct Queue {
    pub(super) spans: Receiver<Span>,
    pub(super) flushes: Receiver<oneshot::Sender<()>>,
    pub(super) dropped: Arc<AtomicU64>,
    pub(super) own: Arc<OnceLock<Workload>>,
    pub(super) limits: Limits,
}

impl Queue {
    /// Sends until nobody is left who could record a span.
    pub(super) async fn run(mut self, mut exporter: impl SpanExporter) {
        let scope = InstrumentationScope::builder("mesh-tower").with_version(env!("CARGO_PKG_VERSION")).build();
        let mut batch = Vec::new();
        let mut is_introduced = false;
        let mut oldest: Option<Instant> = None;
        loop {
            let room = self.limits.batch.max(1) - batch.len();
            let due = oldest.map(|oldest| oldest + self.limits.delay);
            let mut flush = None;
            let is_over = tokio::select! {
                count = self.spans.recv_many(&mut batch, room) => count == 0,
                Some(done) = self.flushes.recv() => {
                    flush = Some(done);
                    false
                }
                () = until(due) => false,
            };
            if !batch.is_empty() && !is_introduced {
                // Whoever records a span has said who it is.
                exporter.set_resource(&resource(self.own.get().cloned().unwrap_or_default()));
                is_introduced = true;
            }
            if !batch.is_empty() {
                oldest.get_or_insert_with(Instant::now);
            }
            let is_due = oldest.is_some_and(|oldest| oldest.elapsed() >= self.limits.delay);
            if is_over || flush.is_some() || is_due || batch.len() >= self.limits.batch {
                self.send(&exporter, &scope, &mut batch).await;
                oldest = None;
            }
            if let Some(done) = flush {
                // No more than waited when it was asked for: others go on recording.
                let mut left = self.spans.len();
                while left > 0 {
                    let count = self.spans.recv_many(&mut batch, left.min(self.limits.batch.max(1))).await;
                    left -= count.min(left);
                    if !is_introduced {
                        exporter.set_resource(&resource(self.own.get().cloned().unwrap_or_default()));
                        is_introduced = true;
                    }
                    self.send(&exporter, &scope, &mut batch).await;
                }
                _ = exporter.force_flush();
                _ = done.send(());
            }
            if is_over {
                _ = exporter.shutdown();
                return;
            }
        }
    }

    async fn send(&self, exporter: &impl SpanExporter, scope: &InstrumentationScope, batch: &mut Vec<Span>) {
        if batch.is_empty() {
            return;
        }
        let spans: Vec<SpanData> = batch.drain(..).map(|span| data(span, scope)).collect();
        let count = spans.len() as u64;
        let sent = tokio::time::timeout(self.limits.timeout, exporter.export(spans)).await;
        let why = match sent {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.limits.timeout),
        };
        if self.dropped.fetch_add(count, Ordering::Relaxed) == 0 {
            tracing::warn!(%why, "spans were not sent; further ones are counted (mesh_trace_spans_dropped_total)");
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// What spans and metrics are of: this workload, unless the environment says otherwise. The service's name is Istio's, `APP.NAMESPACE`.
#[expect(clippy::disallowed_methods, reason = "whose they are, the environment says in OpenTelemetry's words")]
pub(super) fn resource(own: Workload) -> Resource {
    let name = own.canonical_name.as_deref().or(own.app.as_deref()).or(own.name.as_deref());
    let name = name.map(|name| match own.namespace.as_deref() {
        Some(namespace) => format!("{name}.{namespace}"),
        None => name.to_owned(),
    });
    let pairs = [
        ("service.name", name),
        ("service.version", own.canonical_revision.as_deref().map(ToOwned::to_owned)),
        ("service.instance.id", own.node.as_deref().map(ToOwned::to_owned)),
        ("k8s.namespace.name", own.namespace.as_deref().map(ToOwned::to_owned)),
    ];
    let known = pairs.into_iter().filter_map(|(key, value)| Some(KeyValue::new(key, value?)));
    // OpenTelemetry's own detector leaves the escapes in.
    let written = env::attributes(&std::env::var(env::RESOURCE_ATTRIBUTES).unwrap_or_default()).unwrap_or_else(|| {
        // Where the environment asks for the exporter, the mesh has not started.
        tracing::warn!(variable = env::RESOURCE_ATTRIBUTES, "is no list of NAME=VALUE, both escaped as in URLs");
        Vec::new()
    });
    let written = written.into_iter().map(|(key, value)| KeyValue::new(key, value));
    let named = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
    let named = named.map(|name| KeyValue::new("service.name", name));
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(known)
        .with_attributes(written)
        .with_attributes(named)
        .build()
}

fn data(span: Span, scope: &InstrumentationScope) -> SpanData {
    let Span { context, parent, is_parent_remote, name, kind, started, ended, attributes, error, .. } = span;
    let trace_id = TraceId::from(context.trace_id.get());
    let span_id = SpanId::from(context.span_id.get());
    let span_context = SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, false, TraceState::NONE);
    let attributes = attributes.into_iter().map(|(name, value)| {
        let value = match value {
            SpanValue::Text(text) => Value::String(text.into_owned().into()),
            SpanValue::Number(number) => Value::I64(number),
            SpanValue::Flag(is_so) => Value::Bool(is_so),
            _ => Value::String("".into()),
        };
        KeyValue::new(name.into_owned(), value)
    });
    SpanData {
        span_context,
        parent_span_id: parent.map_or(SpanId::INVALID, |parent| SpanId::from(parent.get())),
        parent_span_is_remote: is_parent_remote && parent.is_some(),
        span_kind: match kind {
            SpanKind::Server => Kind::Server,
            SpanKind::Client => Kind::Client,
        },
        name: name.into(),
        start_time: started,
        end_time: ended,
        attributes: attributes.collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: match error {
            Some(why) => Status::error(why),
            None => Status::Unset,
        },
        instrumentation_scope: scope.clone(),
    }
}
