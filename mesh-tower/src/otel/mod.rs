//! Spans, metrics and access logs to OpenTelemetry (feature `otel`): over OTLP as the environment says, spans also to an exporter of the
//! application's own, and metrics through its `MeterProvider`.
//!
//! Requests put spans into a queue with a bound and go on; a thread sends them. One that is slow, hangs or is gone costs spans,
//! which are counted ([`Exporter::dropped`](SpanSink::dropped)), and neither time nor memory. Metrics wait nowhere: another thread
//! reads them now and then.

mod env;
mod logs;
mod meters;
mod metrics;
mod otlp;
mod queue;

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mesh_core::model::Tracing;
use mesh_core::telemetry::{Span, SpanSink};
use mesh_core::workload::Workload;
use opentelemetry_sdk::trace::SpanExporter;
use tokio::sync::mpsc::{Sender, channel};
use tokio::sync::oneshot;

use crate::mesh::{MeshBuilder, StartError};

/// How long [`Mesh::flush_telemetry`](crate::Mesh::flush_telemetry) waits at most.
const FLUSHED: Duration = Duration::from_secs(5);
/// How many may wait for a flush at a time.
const FLUSHES: usize = 16;

/// How many spans wait, and for how long. The defaults are OpenTelemetry's.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// How many spans wait at most; what comes then is dropped.
    pub queue: usize,
    /// How many are sent together at most.
    pub batch: usize,
    /// How long a span waits for others.
    pub delay: Duration,
    /// How long a batch may take; then it is given up.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { queue: 2048, batch: 512, delay: Duration::from_secs(5), timeout: Duration::from_secs(10) }
    }
}

/// Gives spans to an exporter of OpenTelemetry's.
///
/// ```
/// use mesh_tower::Mesh;
/// use mesh_tower::core::fixed::Fixed;
/// use mesh_tower::otel::Exporter;
/// use opentelemetry_sdk::error::OTelSdkResult;
/// use opentelemetry_sdk::trace::{SpanData, SpanExporter};
///
/// /// Over OTLP, `MeshBuilder::traces_from_env` is shorter.
/// #[derive(Debug)]
/// struct Names;
///
/// impl SpanExporter for Names {
///     async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
///         batch.iter().for_each(|span| println!("{}", span.name));
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mesh = Mesh::builder().source(Fixed::new()).traces(Exporter::new(Names)?).start()?;
/// // Before the process ends.
/// mesh.flush_telemetry().await;
/// # Ok(()) }
/// ```
pub struct Exporter {
    spans: Sender<Span>,
    flushes: Sender<oneshot::Sender<()>>,
    dropped: Arc<AtomicU64>,
    own: Arc<OnceLock<Workload>>,
    tracing: Tracing,
}

impl Exporter {
    /// Sends spans to this, from a thread of its own. Its resource is set to what is known of this process, and to what the
    /// environment says (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`).
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn new(exporter: impl SpanExporter + 'static) -> Result<Self, StartError> {
        Exporter::with_limits(exporter, Limits::default())
    }

    /// The same with other limits.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn with_limits(exporter: impl SpanExporter + 'static, limits: Limits) -> Result<Self, StartError> {
        Exporter::made(move |_| exporter, limits)
    }

    /// The same of one that counts itself what of a batch is not taken.
    fn made<E: SpanExporter + 'static>(
        make: impl FnOnce(&Arc<AtomicU64>) -> E,
        limits: Limits,
    ) -> Result<Self, StartError> {
        let (spans, queue) = channel(limits.queue.max(1));
        let (flushes, asked) = channel(FLUSHES);
        let (dropped, own) = (Arc::<AtomicU64>::default(), Arc::<OnceLock<Workload>>::default());
        let exporter = make(&dropped);
        let queue =
            queue::Queue { spans: queue, flushes: asked, dropped: Arc::clone(&dropped), own: Arc::clone(&own), limits };
        let failed = |why: std::io::Error| StartError::new(format!("cannot start the thread that sends spans: {why}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        std::thread::Builder::new()
            .name("mesh-spans".into())
            .spawn(move || runtime.block_on(queue.run(exporter)))
            .map_err(failed)?;
        Ok(Exporter { spans, flushes, dropped, own, tracing: Tracing::default() })
    }

    /// The same, for requests of which the configuration says nothing traced in this way.
    pub fn tracing(mut self, tracing: Tracing) -> Self {
        self.tracing = tracing;
        self
    }
}

impl SpanSink for Exporter {
    fn take(&self, span: Span) {
        if self.spans.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn tracing(&self) -> Tracing {
        self.tracing.clone()
    }

    fn begin(&self, own: &Workload) {
        _ = self.own.set(own.clone());
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn flush(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            let (done, is_done) = oneshot::channel();
            if self.flushes.try_send(done).is_ok() {
                _ = tokio::time::timeout(FLUSHED, is_done).await;
            }
        })
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("dropped", &self.dropped()).finish_non_exhaustive()
    }
}

impl MeshBuilder {
    /// Records traces and sends their spans over OTLP as the environment says, in OpenTelemetry's words: to
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) by `OTEL_EXPORTER_OTLP_PROTOCOL` (`grpc` or
    /// `http/protobuf`), as `OTEL_SERVICE_NAME` with `OTEL_RESOURCE_ATTRIBUTES`; of what the configuration says nothing of, as
    /// many as `OTEL_TRACES_SAMPLER` says. Nothing is done without an endpoint and without `OTEL_TRACES_EXPORTER=otlp`, and
    /// with `OTEL_TRACES_EXPORTER=none` or `OTEL_SDK_DISABLED=true`.
    ///
    /// What cannot be understood of it fails [`MeshBuilder::start`]. Call [`Mesh::flush_telemetry`](crate::Mesh::flush_telemetry)
    /// before the process ends.
    ///
    /// ```
    /// use mesh_tower::Mesh;
    /// use mesh_tower::core::fixed::Fixed;
    ///
    /// let mesh = Mesh::builder().source(Fixed::new()).traces_from_env().start()?;
    /// # Ok::<(), mesh_tower::StartError>(())
    /// ```
    #[expect(clippy::disallowed_methods, reason = "what it is for")]
    pub fn traces_from_env(self) -> Self {
        match env::exporter(|name| std::env::var(name).ok()) {
            Ok(Some(exporter)) => self.traces(exporter),
            Ok(None) => self,
            Err(why) => self.fail(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use mesh_core::model::Tracing;
    use mesh_core::request_info::{Direction, RequestInfo};
    use mesh_core::telemetry::spans_of;
    use mesh_core::trace::Trace;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::SpanData;

    use super::*;

    fn span() -> Span {
        let (mut random, mut tracing) = (fastrand::Rng::with_seed(1), Tracing::default());
        tracing.random = mesh_core::model::Fraction::ALL;
        let begun = Trace::default().begin(&tracing, &http::HeaderMap::new(), &mut random).unwrap();
        let mut info = RequestInfo::new(Instant::now(), random);
        info.observe(&Arc::from([]), Direction::Inbound, &http::Method::GET);
        info.note_span(begun, &Arc::new(tracing));
        spans_of(&info, &Workload::default(), (Instant::now(), SystemTime::now())).remove(0)
    }

    /// Never ends what it begins.
    #[derive(Debug)]
    struct Hanging;

    impl SpanExporter for Hanging {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            std::future::pending().await
        }
    }

    /// Blocks its thread, as none should.
    #[derive(Debug)]
    struct Blocking(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);

    impl SpanExporter for Blocking {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            _ = self.0.lock().unwrap().recv();
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_exporter_that_hangs_costs_spans_which_are_counted_and_nothing_else() {
        let limits = Limits { queue: 100, batch: 10, delay: Duration::ZERO, ..Limits::default() };
        let (_never, receiver) = std::sync::mpsc::sync_channel(1);
        let hanging = Exporter::with_limits(Hanging, limits).unwrap();
        let blocking = Exporter::with_limits(Blocking(receiver.into()), limits).unwrap();
        for exporter in [hanging, blocking] {
            // What waits is bounded: a queue and a batch.
            (0..10_000).for_each(|_| exporter.take(span()));
            assert!(exporter.dropped() >= 10_000 - 110, "{}", exporter.dropped());
        }
    }

    #[tokio::test]
    async fn a_batch_that_takes_too_long_is_given_up_and_counted() {
        let limits = Limits { delay: Duration::ZERO, timeout: Duration::from_millis(1), ..Limits::default() };
        let exporter = Exporter::with_limits(Hanging, limits).unwrap();
        exporter.take(span());
        exporter.flush().await;
        assert_eq!(exporter.dropped(), 1);
    }

    #[tokio::test]
    async fn spans_that_a_collector_did_not_take_are_counted() {
        let collector = otlp::tests::rejecting(2, true).await;
        let exporter =
            Exporter::made(|dropped| otlp::Spans::new(collector, Arc::clone(dropped)), Limits::default()).unwrap();
        (0..5).for_each(|_| exporter.take(span()));
        exporter.flush().await;
        assert_eq!(exporter.dropped(), 2);
    }

    /// Counts.
    #[derive(Clone, Debug, Default)]
    struct Counting(Arc<AtomicU64>);

    impl SpanExporter for Counting {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.fetch_add(batch.len() as u64, Ordering::Relaxed);
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_was_recorded_is_there_after_a_flush() {
        let counting = Counting::default();
        let exporter = Exporter::new(counting.clone()).unwrap();
        (0..1000).for_each(|_| exporter.take(span()));
        exporter.flush().await;
        assert_eq!((counting.0.load(Ordering::Relaxed), exporter.dropped()), (1000, 0));
    }
}
