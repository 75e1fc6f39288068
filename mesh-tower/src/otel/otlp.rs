//! Metrics as OTLP has them, and the way to a collector, which may take a part of what it is sent (`partial_success`).
//!
//! OpenTelemetry's own exporters take nothing but what its own instruments have counted, and say nothing of what was not taken.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use mesh_core::printable::printable;
use mesh_core::telemetry::{Kind, MetricsWriter, Value};
use mesh_core::workload::Workload;
// The answers of all three have the same fields by other names.
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse as Answer;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Text;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use prost::Message;

use super::queue;
use crate::grpc_wire::{framed, note_call, only_message};

/// How many numbers are sent together: with all labels far below the 4 MiB that collectors take over gRPC.
const MOST_POINTS: usize = 1000;
/// What is read of an answer.
const MOST_ANSWER: usize = 64 << 10;

/// All metrics at a moment, as messages to a collector.
pub(super) struct Page<'a> {
    resource: &'a Resource,
    now: Instant,
    /// When it is, and when this process began, in nanoseconds since 1970.
    time: u64,
    began: u64,
    family: (&'static str, Kind, &'static str),
    metrics: Vec<Metric>,
    points: usize,
    messages: Vec<Vec<u8>>,
}

impl<'a> Page<'a> {
    pub(super) fn new(resource: &'a Resource, began: SystemTime, (now, time): (Instant, SystemTime)) -> Self {
        let (time, began) = (nanoseconds(time), nanoseconds(began));
        let family = ("", Kind::Gauge, "");
        Page { resource, now, time, began, family, metrics: Vec::new(), points: 0, messages: Vec::new() }
    }

    /// What is to be sent, one after the other.
    pub(super) fn finish(mut self) -> Vec<Vec<u8>> {
        self.close();
        self.messages
    }

    fn open(&mut self) {
        let temporality = AggregationTemporality::Cumulative.into();
        let (name, kind, help) = self.family;
        let data = match kind {
            Kind::Counter => {
                Data::Sum(Sum { aggregation_temporality: temporality, is_monotonic: true, ..Sum::default() })
            }
            Kind::Gauge => Data::Gauge(Gauge::default()),
            Kind::Histogram => {
                Data::Histogram(Histogram { aggregation_temporality: temporality, ..Histogram::default() })
            }
        };
        let (name, description) = (name.to_owned(), help.to_owned());
        self.metrics.push(Metric { name, description, data: Some(data), ..Metric::default() });
    }

    fn close(&mut self) {
        let mut metrics = std::mem::take(&mut self.metrics);
        metrics.retain(|metric| match &metric.data {
            Some(Data::Sum(sum)) => !sum.data_points.is_empty(),
            Some(Data::Gauge(gauge)) => !gauge.data_points.is_empty(),
            Some(Data::Histogram(histogram)) => !histogram.data_points.is_empty(),
            _ => false,
        });
        if metrics.is_empty() {
            return;
        }
        self.points = 0;
        let scope = ScopeMetrics { scope: Some(scope()), metrics, ..ScopeMetrics::default() };
        let resource = ResourceMetrics {
            resource: Some(self.resource.clone()),
            scope_metrics: vec![scope],
            ..ResourceMetrics::default()
        };
        self.messages.push(ExportMetricsServiceRequest { resource_metrics: vec![resource] }.encode_to_vec());
    }
}

impl MetricsWriter for Page<'_> {
    fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) {
        self.family = (name, kind, help);
        self.open();
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: Value<'_>, since: Option<Instant>) {
        if self.points >= MOST_POINTS {
            self.close();
            self.open();
        }
        let Some(Metric { data: Some(data), .. }) = self.metrics.last_mut() else { return };
        let attributes = labels.iter().map(|(name, value)| text(name, value)).collect();
        let start_time_unix_nano = since.map_or(self.began, |since| {
            let age = self.now.saturating_duration_since(since).as_nanos();
            self.time.saturating_sub(u64::try_from(age).unwrap_or(u64::MAX))
        });
        let time_unix_nano = self.time;
        let number = |value| {
            let value = match value {
                Value::Count(count) => Number::AsInt(i64::try_from(count).unwrap_or(i64::MAX)),
                Value::Amount(amount) => Number::AsDouble(amount),
                _ => return NumberDataPoint::default(),
            };
            NumberDataPoint { value: Some(value), ..NumberDataPoint::default() }
        };
        match (data, value) {
            (Data::Sum(sum), value) => sum.data_points.push(NumberDataPoint {
                attributes,
                start_time_unix_nano,
                time_unix_nano,
                ..number(value)
            }),
            (Data::Gauge(gauge), value) => {
                gauge.data_points.push(NumberDataPoint { attributes, time_unix_nano, ..number(value) });
            }
            (Data::Histogram(histogram), Value::Histogram { bounds, counts, sum }) => {
                histogram.data_points.push(HistogramDataPoint {
                    attributes,
                    start_time_unix_nano,
                    time_unix_nano,
                    count: counts.iter().sum(),
                    sum: Some(sum),
                    bucket_counts: counts.to_vec(),
                    explicit_bounds: bounds.to_vec(),
                    ..HistogramDataPoint::default()
                });
            }
            _ => return,
        }
        self.points += 1;
    }
}

/// Who tells it.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "mesh-tower".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

pub(super) fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What is told is of this workload, unless the environment says otherwise.
pub(super) fn resource(own: Workload) -> Resource {
    let known = queue::resource(own);
    let attributes = known.iter().map(|(name, value)| text(name.as_str(), &value.as_str())).collect();
    Resource { attributes, ..Resource::default() }
}

/// An attribute.
pub(super) fn text(name: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Text::StringValue(value.to_owned())) });
    KeyValue { key: name.to_owned(), value, ..KeyValue::default() }
}

/// Who takes spans, metrics or logs, over HTTP/1.1 or gRPC.
pub(super) struct Collector {
    client: Client<HttpConnector, Full<Bytes>>,
    uri: Uri,
    headers: HeaderMap,
    is_grpc: bool,
    timeout: Duration,
    /// Whether it was told that it does not take all.
    has_told: AtomicBool,
}

impl Collector {
    /// The one that is there. A message is given up after `timeout`.
    pub(super) fn new(uri: Uri, mut headers: HeaderMap, is_grpc: bool, timeout: Duration) -> Self {
        if is_grpc {
            note_call(&mut headers);
        } else {
            headers.insert(CONTENT_TYPE, const { HeaderValue::from_static("application/x-protobuf") });
        }
        let client = Client::builder(TokioExecutor::new()).http2_only(is_grpc).build_http();
        Collector { client, uri, headers, is_grpc, timeout, has_told: AtomicBool::new(false) }
    }

    #[cfg(test)]
    pub(super) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// How many of the spans, points or records of a message were not taken; none, as a rule.
    pub(super) async fn send(&self, message: Vec<u8>) -> Result<u64, String> {
        let sent = tokio::time::timeout(self.timeout, self.exchange(message)).await;
        let answer = sent.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.timeout)))?;
        let Some(rejected) = answer.partial_success else { return Ok(0) };
        let count = u64::try_from(rejected.rejected_log_records).unwrap_or_default();
        // Without any, it is a word of advice.
        if (count > 0 || !rejected.error_message.is_empty()) && !self.has_told.swap(true, Ordering::Relaxed) {
            let why = printable(&rejected.error_message);
            tracing::warn!(collector = %self.uri, count, %why, "a collector did not take all that it was sent; this is said once");
        }
        Ok(count)
    }

    async fn exchange(&self, message: Vec<u8>) -> Result<Answer, String> {
        let body = match self.is_grpc {
            true => framed(&message),
            false => message.into(),
        };
        let mut request = Request::post(self.uri.clone()).body(Full::new(body)).map_err(|error| error.to_string())?;
        request.headers_mut().extend(self.headers.clone());
        let answer = self.client.request(request).await.map_err(|error| causes(&error))?;
        let (head, body) = answer.into_parts();
        if !head.status.is_success() {
            return Err(format!("the collector answered {}", head.status));
        }
        let rest = Limited::new(body, MOST_ANSWER).collect().await;
        if !self.is_grpc {
            // It has taken it, whatever it says besides: some answer in words.
            return Ok(rest.ok().and_then(|rest| Answer::decode(rest.to_bytes()).ok()).unwrap_or_default());
        }
        let rest = rest.map_err(|error| error.to_string())?;
        let status = head.headers.get("grpc-status").or_else(|| rest.trailers()?.get("grpc-status")).cloned();
        match status.as_ref().map(HeaderValue::as_bytes) {
            Some(b"0") => {
                let body = rest.to_bytes();
                Ok(only_message(&body).and_then(|message| Answer::decode(message).ok()).unwrap_or_default())
            }
            other => Err(format!(
                "the collector answered gRPC status {}",
                other.map_or_else(|| "none".into(), String::from_utf8_lossy)
            )),
        }
    }
}

/// Sends spans.
#[derive(Debug)]
pub(super) struct Spans {
    collector: Collector,
    resource: ResourceAttributesWithSchema,
    dropped: Arc<AtomicU64>,
}

impl Spans {
    /// Counts those that are not taken of a batch which is.
    pub(super) fn new(collector: Collector, dropped: Arc<AtomicU64>) -> Self {
        Spans { collector, resource: ResourceAttributesWithSchema::default(), dropped }
    }
}

impl SpanExporter for Spans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let message = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let rejected = self.collector.send(message).await.map_err(OTelSdkError::InternalFailure)?;
        self.dropped.fetch_add(rejected, Ordering::Relaxed);
        Ok(())
    }

    fn set_resource(&mut self, resource: &opentelemetry_sdk::Resource) {
        self.resource = resource.into();
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("uri", &self.uri).finish_non_exhaustive()
    }
}

/// An error with what it comes of.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A collector that does not take so many of what it is sent.
    pub(in crate::otel) async fn rejecting(count: i64, is_grpc: bool) -> Collector {
        use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsPartialSuccess;
        let rejected =
            ExportLogsPartialSuccess { rejected_log_records: count, error_message: "too old\x1b[2J".to_owned() };
        let answer = Answer { partial_success: Some(rejected) }.encode_to_vec();
        let answer = if is_grpc { framed(&answer) } else { answer.into() };
        let app = axum::Router::new().fallback(move || async move { ([("grpc-status", "0")], answer) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(axum::serve(listener, app).into_future());
        Collector::new(uri, HeaderMap::new(), is_grpc, Duration::from_secs(20))
    }

    #[tokio::test]
    async fn a_collector_says_how_much_it_did_not_take() {
        for (count, expected) in [(0, 0), (7, 7), (-1, 0)] {
            for is_grpc in [false, true] {
                assert_eq!(rejecting(count, is_grpc).await.send(Vec::new()).await, Ok(expected), "{count} {is_grpc}");
            }
        }
    }

    #[test]
    fn much_is_sent_in_parts_and_every_part_says_whose_and_of_what() {
        let resource = Resource { attributes: vec![text("service.name", "a")], ..Resource::default() };
        let (now, time) = (Instant::now() + Duration::from_secs(60), UNIX_EPOCH + Duration::from_secs(100));
        let mut page = Page::new(&resource, UNIX_EPOCH + Duration::from_secs(10), (now, time));
        page.family("nothing", Kind::Gauge, "");
        page.family("calls", Kind::Counter, "Calls.");
        for number in 0..MOST_POINTS as u64 + 1 {
            let since = (number > 0).then(|| now - Duration::from_secs(1));
            page.sample(&[("to", &number.to_string())], number.into(), since);
        }
        let messages = page.finish();
        let mut points = Vec::new();
        for message in &messages {
            assert!(message.len() < 4 << 20);
            let message = ExportMetricsServiceRequest::decode(&message[..]).unwrap();
            let [of_one] = &message.resource_metrics[..] else { panic!("{message:?}") };
            assert_eq!(of_one.resource.as_ref(), Some(&resource));
            let [metric] = &of_one.scope_metrics[0].metrics[..] else { panic!("{message:?}") };
            assert_eq!((&*metric.name, &*metric.description), ("calls", "Calls."));
            let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
            assert!(sum.is_monotonic && sum.aggregation_temporality() == AggregationTemporality::Cumulative);
            points.extend(sum.data_points.clone());
        }
        assert_eq!((messages.len(), points.len()), (2, MOST_POINTS + 1));
        let seconds = |point: &NumberDataPoint| {
            [point.start_time_unix_nano, point.time_unix_nano].map(|time| time / 1_000_000_000)
        };
        assert_eq!((seconds(&points[0]), seconds(&points[1])), ([10, 100], [99, 100]));
        assert_eq!(points[7].value, Some(Number::AsInt(7)));
    }
}
