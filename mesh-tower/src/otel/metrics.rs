//! The thread that sends metrics over OTLP. Nothing waits for it: it reads what is counted anyway, and what could not be sent is
//! in the next numbers.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use mesh_core::telemetry::{MetricsReader, ReadMetrics};
use mesh_core::workload::Workload;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

use super::env::WantedMetrics;
use super::otlp::{self, Collector, Page};
use super::{FLUSHED, FLUSHES, env};
use crate::mesh::{MeshBuilder, StartError};

/// Sends the metrics of a mesh to a collector.
struct MetricsExporter {
    orders: Sender<Order>,
    rejected: Arc<AtomicU64>,
}

/// What its thread is told.
enum Order {
    Begin(Box<Workload>, ReadMetrics),
    Flush(oneshot::Sender<()>),
}

impl MetricsExporter {
    fn new(collector: Box<Collector>, interval: Duration, timeout: Duration) -> Result<Self, StartError> {
        let failed =
            |why: std::io::Error| StartError::new(format!("cannot start the thread that sends metrics: {why}"));
        let (orders, told) = channel(FLUSHES + 1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let rejected = Arc::<AtomicU64>::default();
        let counts = Arc::clone(&rejected);
        std::thread::Builder::new()
            .name("mesh-metrics".into())
            .spawn(move || runtime.block_on(run(told, &collector, &counts, interval, timeout)))
            .map_err(failed)?;
        Ok(MetricsExporter { orders, rejected })
    }
}

/// Sends until the mesh is gone.
async fn run(
    mut orders: Receiver<Order>,
    collector: &Collector,
    rejected: &AtomicU64,
    interval: Duration,
    timeout: Duration,
) {
    let Some(Order::Begin(own, read)) = orders.recv().await else { return };
    let resource = otlp::resource(*own);
    let (began, mut is_failing) = (SystemTime::now(), false);
    let mut next = Instant::now() + interval;
    loop {
        let flush = tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Flush(done)) => Some(done),
                Some(Order::Begin(..)) => continue,
                None => return,
            },
            () = tokio::time::sleep_until(next.into()) => None,
        };
        let mut page = Page::new(&resource, began, (Instant::now(), SystemTime::now()));
        if !read(&mut page) {
            return;
        }
        let send = async {
            for message in page.finish() {
                rejected.fetch_add(collector.send(message).await?, Ordering::Relaxed);
            }
            Ok::<(), String>(())
        };
        let sent = tokio::time::timeout(timeout, send).await;
        match sent.unwrap_or_else(|_| Err(format!("not all were sent within {timeout:?}"))) {
            Err(why) if !is_failing => {
                tracing::warn!(%why, "metrics were not sent; it is tried again every {interval:?}");
                is_failing = true;
            }
            Ok(()) if is_failing => {
                tracing::info!("metrics are sent again");
                is_failing = false;
            }
            _ => {}
        }
        next = Instant::now() + interval;
        if let Some(done) = flush {
            _ = done.send(());
        }
    }
}

impl MetricsReader for MetricsExporter {
    fn begin(&self, own: &Workload, read: ReadMetrics) {
        _ = self.orders.try_send(Order::Begin(Box::new(own.clone()), read));
    }

    fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    fn flush(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            let (done, is_done) = oneshot::channel();
            if self.orders.try_send(Order::Flush(done)).is_ok() {
                _ = tokio::time::timeout(FLUSHED, is_done).await;
            }
        })
    }
}

impl fmt::Debug for MetricsExporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsExporter").finish_non_exhaustive()
    }
}

impl MeshBuilder {
    /// Keeps metrics and sends them over OTLP as the environment says, in OpenTelemetry's words: to
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`) by `OTEL_EXPORTER_OTLP_PROTOCOL` (`grpc` or
    /// `http/protobuf`), every `OTEL_METRIC_EXPORT_INTERVAL` milliseconds (60,000). Nothing is done without an endpoint and
    /// without `OTEL_METRICS_EXPORTER=otlp`, and with `none` or `OTEL_SDK_DISABLED=true`; with `prometheus` they are kept, for
    /// the admin port. They have the names and labels of [`Mesh::prometheus`](crate::Mesh::prometheus), and grow as there.
    ///
    /// What cannot be understood of it fails [`MeshBuilder::start`]. Call
    /// [`Mesh::flush_telemetry`](crate::Mesh::flush_telemetry) before the process ends.
    ///
    /// ```
    /// use mesh_tower::Mesh;
    /// use mesh_tower::core::fixed::Fixed;
    ///
    /// let mesh = Mesh::builder().source(Fixed::new()).metrics_from_env().start()?;
    /// # Ok::<(), mesh_tower::StartError>(())
    /// ```
    #[expect(clippy::disallowed_methods, reason = "what it is for")]
    pub fn metrics_from_env(self) -> Self {
        match env::metrics(|name| std::env::var(name).ok()) {
            Ok(WantedMetrics::None) => self,
            Ok(WantedMetrics::Kept) => self.metrics(),
            Ok(WantedMetrics::Sent { collector, interval, timeout }) => {
                match MetricsExporter::new(collector, interval, timeout) {
                    Ok(exporter) => self.metrics_to(exporter),
                    Err(why) => self.fail(why),
                }
            }
            Err(why) => self.fail(StartError::new(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::telemetry::Kind;

    use super::*;

    #[tokio::test]
    async fn points_that_a_collector_did_not_take_are_counted() {
        let (collector, long) = (Box::new(otlp::tests::rejecting(3, false).await), Duration::from_secs(600));
        let exporter = MetricsExporter::new(collector, long, long).unwrap();
        let read: ReadMetrics = Box::new(|to| {
            to.family("calls", Kind::Counter, "Calls.");
            to.sample(&[], 7.into(), None);
            true
        });
        exporter.begin(&Workload::default(), read);
        exporter.flush().await;
        assert_eq!(exporter.rejected(), 3);
    }
}
