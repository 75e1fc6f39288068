//! Metrics through a `MeterProvider` that the application has: what is counted anyway is read when that collects, and how large
//! requests were, and how long they took, is recorded as they end, by instruments that are bound to the labels of a series once.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Instant;

use mesh_core::model::MetricSet;
use mesh_core::telemetry::{
    BOUNDS, BoundHistograms, FAMILIES, Family, Histograms, Kind, Labels, MetricsReader, MetricsWriter, Read,
    ReadMetrics, Sample, Value,
};
use mesh_core::workload::Workload;
use opentelemetry::metrics::{AsyncInstrument, BoundHistogram, Histogram, Meter, MeterProvider};
use opentelemetry::{InstrumentationScope, KeyValue};

use crate::mesh::MeshBuilder;

/// Places of the histograms among the standard metrics.
const SIZES: [usize; 3] = [1, 2, 3];

/// The instruments of a mesh.
struct Meters {
    meter: Meter,
    sizes: Arc<Sizes>,
    /// Instruments have no more than a weak hold of it: the provider outlives the mesh.
    reading: OnceLock<Arc<Reading>>,
}

impl Meters {
    fn new(provider: &dyn MeterProvider) -> Self {
        let scope = InstrumentationScope::builder("mesh-tower").with_version(env!("CARGO_PKG_VERSION")).build();
        let meter = provider.meter_with_scope(scope);
        Meters { sizes: Arc::new(Sizes::new(&meter)), meter, reading: OnceLock::new() }
    }
}

impl MetricsReader for Meters {
    fn begin(&self, _: &Workload, read: ReadMetrics) {
        let reading = Arc::new(Reading { read, meter: self.meter.clone(), state: Mutex::default() });
        let standard = FAMILIES.into_iter().map(|Family { name, help, read, .. }| {
            let is_counter = matches!(read, Read::Counter(_));
            (name, if is_counter { Kind::Counter } else { Kind::Histogram }, help)
        });
        for family in standard.chain(reading.read().families) {
            if reading.state().known.insert(family.0) {
                reading.make(family);
            }
        }
        _ = self.reading.set(reading);
    }

    fn histograms(&self) -> Option<Arc<dyn Histograms>> {
        Some(Arc::clone(&self.sizes) as Arc<dyn Histograms>)
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

/// The name of a family, what it is, and what it counts.
type Head = (&'static str, Kind, &'static str);

/// A number, and its labels.
type Point = (Vec<KeyValue>, f64);

/// The metrics of a mesh, as they are read by one collection after the other.
struct Reading {
    read: ReadMetrics,
    meter: Meter,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Families that have an instrument, or that can have none.
    known: HashSet<&'static str>,
    /// What was read and is not told yet. The first instrument of a collection finds nothing of its family, and has all read.
    unread: HashMap<&'static str, Vec<Point>>,
}

/// All metrics, once read.
#[derive(Default)]
struct Page {
    families: Vec<Head>,
    points: HashMap<&'static str, Vec<Point>>,
}

impl MetricsWriter for Page {
    fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) {
        self.families.push((name, kind, help));
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: Value<'_>, _: Option<Instant>) {
        let value = match value {
            Value::Count(count) => count as f64,
            Value::Amount(amount) => amount,
            // No instrument takes what is counted already.
            _ => return,
        };
        let Some((family, ..)) = self.families.last() else { return };
        let attributes = labels.iter().map(|(name, value)| KeyValue::new((*name).to_owned(), (*value).to_owned()));
        self.points.entry(*family).or_default().push((attributes.collect(), value));
    }
}

impl Reading {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything as it is now; nothing, once the mesh is gone.
    fn read(&self) -> Page {
        let mut page = Page::default();
        _ = (self.read)(&mut page);
        page
    }

    /// Makes the instrument of a family.
    fn make(self: &Arc<Self>, (name, kind, help): Head) {
        let reading = Arc::downgrade(self);
        match kind {
            Kind::Counter => {
                let counter = self.meter.f64_observable_counter(name).with_description(help);
                _ = counter.with_callback(move |to| tell(&reading, name, to)).build();
            }
            Kind::Gauge => {
                let gauge = self.meter.f64_observable_gauge(name).with_description(help);
                _ = gauge.with_callback(move |to| tell(&reading, name, to)).build();
            }
            // They are told of each request.
            Kind::Histogram if FAMILIES.iter().any(|family| family.name == name) => {}
            Kind::Histogram => {
                tracing::warn!(
                    metric = name,
                    "OpenTelemetry's instruments take no histogram that is counted already: it is not told"
                );
            }
        }
    }

    /// The numbers of a family for the collection that is under way.
    fn take(self: &Arc<Self>, name: &'static str) -> Vec<Point> {
        let mut state = self.state();
        if let Some(points) = state.unread.remove(name) {
            return points;
        }
        let page = self.read();
        let State { known, unread } = &mut *state;
        let new: Vec<Head> = page.families.into_iter().filter(|(name, ..)| known.insert(*name)).collect();
        // That a family has no number now is read, too.
        *unread = known.iter().map(|known| (*known, Vec::new())).collect();
        unread.extend(page.points);
        let points = unread.remove(name).unwrap_or_default();
        drop(state);
        if !new.is_empty() {
            self.make_later(new);
        }
        points
    }

    /// Makes the instruments of families that were not there before. Not at once: whoever collects may hold what they are made
    /// under.
    #[cold]
    fn make_later(self: &Arc<Self>, families: Vec<Head>) {
        let reading = Arc::clone(self);
        let make = move || families.into_iter().for_each(|family| reading.make(family));
        if let Err(why) = std::thread::Builder::new().name("mesh-meters".into()).spawn(make) {
            tracing::warn!(%why, "there is no thread to make instruments of metrics: they are not told");
        }
    }
}

/// Tells an instrument of all numbers of its family.
fn tell(reading: &Weak<Reading>, name: &'static str, to: &dyn AsyncInstrument<f64>) {
    let Some(reading) = reading.upgrade() else { return };
    for (attributes, value) in reading.take(name) {
        to.observe(value, &attributes);
    }
}

/// The histograms of the standard metrics.
#[derive(Debug)]
struct Sizes([Histogram<f64>; SIZES.len()]);

impl Sizes {
    fn new(meter: &Meter) -> Self {
        Sizes(SIZES.map(|place| {
            let Family { name, help, .. } = FAMILIES[place];
            meter.f64_histogram(name).with_description(help).with_boundaries(BOUNDS.to_vec()).build()
        }))
    }
}

impl Histograms for Sizes {
    fn bind(&self, labels: &Labels) -> Box<dyn BoundHistograms> {
        let attributes = labels.iter().map(|(name, value)| KeyValue::new(name.to_owned(), Arc::clone(value)));
        let attributes: Vec<KeyValue> = attributes.collect();
        Box::new(BoundSizes(self.0.each_ref().map(|histogram| histogram.bind(&attributes))))
    }
}

/// Those of one series.
#[derive(Debug)]
struct BoundSizes([BoundHistogram<f64>; SIZES.len()]);

impl BoundHistograms for BoundSizes {
    fn record(&self, sample: &Sample, metrics: MetricSet) {
        let milliseconds = sample.duration.as_secs_f64() * 1000.0;
        let sizes = [milliseconds, sample.request_bytes as f64, sample.response_bytes as f64];
        for ((place, histogram), size) in SIZES.into_iter().zip(&self.0).zip(sizes) {
            if metrics.has(place) {
                histogram.record(size);
            }
        }
    }
}

impl MeshBuilder {
    /// Keeps metrics, and tells them through a `MeterProvider` that the application has, to wherever that leads, beside those of its
    /// own. They have the names and labels of [`Mesh::prometheus`](crate::Mesh::prometheus). Like [`MeshBuilder::metrics_to`], of
    /// which the last one set counts.
    ///
    /// Counters and gauges are read when the provider collects. Its histograms of Istio's three are told of each request that
    /// ends, by instruments that are bound to their labels, which the provider has to know how to do, as the SDK's does; another
    /// one has nothing of them. Those of [`MeshBuilder::grpc_metrics`] are not told, which is warned of. How many sets of labels a
    /// metric has at most is the provider's to say: the SDK's views have 2,000.
    ///
    /// ```
    /// use mesh_tower::Mesh;
    /// use mesh_tower::core::fixed::Fixed;
    /// use opentelemetry_sdk::metrics::SdkMeterProvider;
    ///
    /// // With the exporters and views of the application.
    /// let provider = SdkMeterProvider::builder().build();
    /// let mesh = Mesh::builder().source(Fixed::new()).meter_provider(&provider).start()?;
    /// # Ok::<(), mesh_tower::StartError>(())
    /// ```
    pub fn meter_provider(self, provider: &dyn MeterProvider) -> Self {
        self.metrics_to(Meters::new(provider))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use mesh_core::fixed::Fixed;
    use mesh_core::request_info::{Direction, RequestInfo};
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
    use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
    use opentelemetry_sdk::metrics::{SdkMeterProvider, Temporality};

    use super::*;
    use crate::mesh::Mesh;

    /// Keeps what it was given last: of each metric the sum of its numbers, or how many values its histograms have.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<HashMap<String, f64>>>);

    fn sum(data: &AggregatedMetrics) -> f64 {
        match data {
            AggregatedMetrics::F64(MetricData::Sum(sum)) => sum.data_points().map(|point| point.value()).sum(),
            AggregatedMetrics::F64(MetricData::Gauge(gauge)) => gauge.data_points().map(|point| point.value()).sum(),
            AggregatedMetrics::F64(MetricData::Histogram(sizes)) => {
                sizes.data_points().map(|point| point.count() as f64).sum()
            }
            _ => f64::NAN,
        }
    }

    impl PushMetricExporter for Kept {
        async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
            let all = metrics.scope_metrics().flat_map(|scope| scope.metrics());
            *self.0.lock().unwrap() = all.map(|metric| (metric.name().to_owned(), sum(metric.data()))).collect();
            Ok(())
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }

        fn temporality(&self) -> Temporality {
            Temporality::Cumulative
        }
    }

    impl Kept {
        fn provider(&self) -> SdkMeterProvider {
            SdkMeterProvider::builder().with_periodic_exporter(self.clone()).build()
        }

        /// What a provider says of a metric by now.
        fn collect(&self, provider: &SdkMeterProvider, name: &str) -> Option<f64> {
            provider.force_flush().unwrap();
            self.0.lock().unwrap().get(name).copied()
        }
    }

    #[test]
    fn a_provider_is_told_what_is_counted_whenever_it_collects() {
        let kept = Kept::default();
        let provider = kept.provider();
        let mesh = Mesh::builder().source(Fixed::new()).meter_provider(&provider).start().unwrap();
        for expected in [1.0, 2.0] {
            let mut request = RequestInfo::new(Instant::now(), fastrand::Rng::with_seed(1));
            request.observe(mesh.observers(), Direction::Outbound, &http::Method::GET);
            drop(request);
            for family in FAMILIES.iter().take(4) {
                assert_eq!(kept.collect(&provider, family.name), Some(expected), "{}", family.name);
            }
            assert_eq!(kept.collect(&provider, "istio_build"), Some(1.0));
        }
    }

    #[test]
    fn a_family_that_comes_later_gets_its_instrument_and_nothing_is_read_of_a_mesh_that_is_gone() {
        let (kept, is_there) = (Kept::default(), Arc::new(AtomicBool::new(false)));
        let (provider, there) = (kept.provider(), Arc::clone(&is_there));
        let meters = Meters::new(&provider);
        let read = move |to: &mut dyn MetricsWriter| {
            to.family("early", Kind::Counter, "What is there at once.");
            to.sample(&[("a", "1")], Value::Count(1), None);
            to.sample(&[("a", "2")], Value::Count(2), None);
            if there.load(Ordering::Relaxed) {
                to.family("late", Kind::Gauge, "What comes later.");
                to.sample(&[], Value::Amount(7.5), None);
            }
            true
        };
        meters.begin(&Workload::default(), Box::new(read));
        assert_eq!((kept.collect(&provider, "early"), kept.collect(&provider, "late")), (Some(3.0), None));
        is_there.store(true, Ordering::Relaxed);
        // A thread makes it.
        let begun = Instant::now();
        let patience = || begun.elapsed() < Duration::from_secs(60);
        let mut late = None;
        while late.is_none() && patience() {
            std::thread::park_timeout(Duration::from_millis(1));
            late = kept.collect(&provider, "late");
        }
        assert_eq!((late, kept.collect(&provider, "early")), (Some(7.5), Some(3.0)));
        let reading = Arc::downgrade(meters.reading.get().unwrap());
        drop(meters);
        // The thread may still be at its end.
        while reading.upgrade().is_some() {
            assert!(patience(), "the provider keeps nothing of it");
            std::thread::park_timeout(Duration::from_millis(1));
        }
        provider.force_flush().unwrap();
    }
}
