//! Entries of access logs as OTLP has them. What waits, and what is lost, is the access logs' own business: here a message is made
//! and sent, on their thread. The runtime that sends is made and dropped there, too: in an async context tokio lets nobody drop one.

use std::io;

use mesh_core::model::AccessLog;
use mesh_core::telemetry::LogLine;
use mesh_core::workload::Workload;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use serde_json::Value;

use super::env;
use super::otlp::{self, Collector};
use crate::access_log::{Begin, Entry};
use crate::mesh::{MeshBuilder, StartError};

/// Sends what a process of this workload logs.
fn collect(collector: Box<Collector>, own: Workload) -> Begin {
    let resource = otlp::resource(own);
    Box::new(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Box::new(move |entries| {
            let message = message(&resource, entries);
            runtime.block_on(collector.send(message)).map_err(io::Error::other)
        }))
    })
}

fn message(resource: &Resource, entries: Vec<Entry>) -> Vec<u8> {
    let scope_logs = ScopeLogs {
        scope: Some(otlp::scope()),
        log_records: entries.into_iter().map(record).collect(),
        ..ScopeLogs::default()
    };
    let of_one =
        ResourceLogs { resource: Some(resource.clone()), scope_logs: vec![scope_logs], ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![of_one] }.encode_to_vec()
}

/// A text is the body; of an object each key is an attribute, but for the body.
fn record(entry: Entry) -> LogRecord {
    let (body, attributes) = match entry.line {
        LogLine::Json(mut fields) => (fields.remove(AccessLog::BODY).map(any), object(fields)),
        LogLine::Text(line) => (Some(any(line.trim_end_matches('\n').into())), Vec::new()),
    };
    let time = otlp::nanoseconds(entry.ended);
    let mut record =
        LogRecord { time_unix_nano: time, observed_time_unix_nano: time, body, attributes, ..Default::default() };
    if let Some(span) = entry.span {
        record.trace_id = span.trace_id.get().to_be_bytes().to_vec();
        record.span_id = span.span_id.get().to_be_bytes().to_vec();
        record.flags = span.is_sampled().into();
    }
    record
}

fn object(fields: serde_json::Map<String, Value>) -> Vec<KeyValue> {
    let field = |(key, value)| KeyValue { key, value: Some(any(value)), ..KeyValue::default() };
    fields.into_iter().map(field).collect()
}

fn any(value: Value) -> AnyValue {
    let value = match value {
        Value::Null => None,
        Value::Bool(is_so) => Some(Any::BoolValue(is_so)),
        Value::Number(number) => Some(match number.as_i64() {
            Some(number) => Any::IntValue(number),
            None => Any::DoubleValue(number.as_f64().unwrap_or_default()),
        }),
        Value::String(text) => Some(Any::StringValue(text)),
        Value::Array(items) => Some(Any::ArrayValue(ArrayValue { values: items.into_iter().map(any).collect() })),
        Value::Object(fields) => Some(Any::KvlistValue(KeyValueList { values: object(fields) })),
    };
    AnyValue { value }
}

impl MeshBuilder {
    /// Has access logs that the configuration wants at a collector (`envoyOtelAls`, or an application's own
    /// [`AccessLog::to_collector`]) sent over OTLP as the environment says, in OpenTelemetry's words: to
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_LOGS_ENDPOINT`) by `OTEL_EXPORTER_OTLP_PROTOCOL` (`grpc` or
    /// `http/protobuf`). Without an endpoint and without `OTEL_LOGS_EXPORTER=otlp`, and with `none` or `OTEL_SDK_DISABLED=true`,
    /// such logs are not sent, which is warned of and counted ([`Mesh::lost_log_lines`](crate::Mesh::lost_log_lines)).
    ///
    /// 4,096 entries wait at most; others are lost, and counted, too. What is under way is sent when the last part of a mesh is
    /// dropped, or by [`Mesh::flush_access_logs`](crate::Mesh::flush_access_logs), for a second at most. What cannot be understood
    /// of the environment fails [`MeshBuilder::start`].
    ///
    /// ```
    /// use mesh_tower::core::fixed::Fixed;
    /// use mesh_tower::{AccessLog, LogFormat, Mesh};
    ///
    /// // Whatever the configuration says, each request is told of.
    /// let log = AccessLog::to_collector(LogFormat::json());
    /// let mesh = Mesh::builder().source(Fixed::new()).access_log(log).access_logs_from_env().start()?;
    /// # Ok::<(), mesh_tower::StartError>(())
    /// ```
    #[expect(clippy::disallowed_methods, reason = "what it is for")]
    pub fn access_logs_from_env(self) -> Self {
        self.access_logs_from(|name| std::env::var(name).ok())
    }

    fn access_logs_from(self, variable: impl Fn(&str) -> Option<String>) -> Self {
        match env::logs(variable) {
            Ok(Some(collector)) => self.collect_logs_by(|own| collect(collector, own)),
            Ok(None) => self,
            Err(why) => self.fail(StartError::new(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use mesh_core::fixed::Fixed;
    use mesh_core::model::LogFormat;
    use mesh_core::trace::TraceContext;
    use serde_json::json;

    use super::*;
    use crate::mesh::Mesh;

    #[tokio::test]
    async fn a_mesh_that_has_logged_nothing_ends_where_nothing_may_block() {
        let environment = |name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| "http://127.0.0.1:9".to_owned());
        let log = AccessLog::to_collector(LogFormat::json());
        let builder = || Mesh::builder().source(Fixed::new()).access_log(log.clone()).access_logs_from(environment);
        drop(builder());
        drop(builder().start().unwrap());
    }

    #[tokio::test]
    async fn entries_that_a_collector_did_not_take_are_told_of() {
        let begin = collect(Box::new(otlp::tests::rejecting(1, false).await), Workload::default());
        let entry = || Entry { line: LogLine::Text("a".to_owned()), ended: UNIX_EPOCH, span: None };
        let written = tokio::task::spawn_blocking(move || begin().unwrap()(vec![entry(), entry()]));
        assert_eq!(written.await.unwrap().unwrap(), 1);
    }

    #[test]
    fn a_text_is_a_body_and_the_fields_of_an_object_are_attributes() {
        let span = TraceContext::parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let entry = |line| Entry { line, ended: UNIX_EPOCH + Duration::from_secs(7), span };
        let told = record(entry(LogLine::Text("{\"no\": \"object\"}\n".to_owned())));
        assert_eq!((told.body, told.attributes.len()), (Some(any(r#"{"no": "object"}"#.into())), 0));
        assert_eq!(
            (told.time_unix_nano, told.flags, told.trace_id[0], told.span_id[7]),
            (7_000_000_000, 1, 0x4b, 0xb7)
        );
        let Value::Object(fields) = json!({"": "GET /", "code": 200, "deep": {"a": [true, 0.5, null]}}) else {
            panic!()
        };
        let told = record(entry(LogLine::Json(fields)));
        let attributes: Vec<(&str, &AnyValue)> =
            told.attributes.iter().map(|one| (one.key.as_str(), one.value.as_ref().unwrap())).collect();
        assert_eq!(told.body, Some(any("GET /".into())));
        assert_eq!(attributes[0], ("code", &any(200.into())));
        assert!(matches!(&attributes[1].1.value, Some(Any::KvlistValue(list)) if list.values.len() == 1));
    }
}
