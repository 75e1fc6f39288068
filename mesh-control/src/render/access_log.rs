//! Access logs, as Istio renders them: into the connection manager of each listener, to a file or a collector of OpenTelemetry's,
//! of the requests that an expression of CEL is for.

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::core::v3::{ApiVersion, GrpcService};
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_types::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use envoy_types::pb::envoy::extensions::access_loggers::grpc::v3::CommonGrpcAccessLogConfig;
use envoy_types::pb::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::opentelemetry::proto::common::v1::any_value::Value;
use envoy_types::pb::opentelemetry::proto::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use mesh_core::model::{AccessLog, LogDestination};
use prost::{Message, Name};

use super::proto::{OrderedStruct, any};
use crate::policy::route::ClusterKey;
use crate::policy::telemetry::{AccessLogFile, Collector, LogLines};

/// This access log, of a process whose application says where the collector is.
pub fn log(log: AccessLogFile) -> pb::AccessLog {
    sent(log, None)
}

/// This access log of an Envoy, where it can be had: a collector is called as the cluster that `called` says.
pub fn of_envoy(log: AccessLogFile, called: impl FnOnce(&Collector) -> Option<ClusterKey>) -> Option<pb::AccessLog> {
    let Some(collector) = &log.collector else { return Some(self::log(log)) };
    let at = (called(collector)?, collector.log_name.clone());
    Some(sent(log, Some(at)))
}

fn sent(log: AccessLogFile, collector: Option<(ClusterKey, String)>) -> pb::AccessLog {
    let (name, config) = match log.to {
        LogDestination::Collector => {
            #[expect(deprecated, reason = "its successor is unknown to Envoys that are a few versions old")]
            let config = OpenTelemetryAccessLogConfig {
                common_config: collector.map(|(cluster, log_name)| common(&cluster, log_name)),
                ..record(log.lines)
            };
            ("envoy.access_loggers.open_telemetry", any(&config))
        }
        LogDestination::File(path) => ("envoy.access_loggers.file", file(path.to_string(), log.lines)),
    };
    pb::AccessLog {
        name: name.to_owned(),
        filter: log.filter.map(filter),
        config_type: Some(pb::access_log::ConfigType::TypedConfig(config)),
    }
}

/// As Istio has it, which older Envoys read, too.
fn common(cluster: &ClusterKey, log_name: String) -> CommonGrpcAccessLogConfig {
    let service =
        EnvoyGrpc { cluster_name: cluster.to_string(), authority: cluster.host.to_string(), ..EnvoyGrpc::default() };
    CommonGrpcAccessLogConfig {
        log_name,
        grpc_service: Some(GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(service)),
            ..GrpcService::default()
        }),
        transport_api_version: ApiVersion::V3.into(),
        ..CommonGrpcAccessLogConfig::default()
    }
}

fn file(path: String, lines: LogLines) -> Any {
    let format = match lines {
        LogLines::Json(keys) => OrderedFormat { json: Some(OrderedStruct::of_json(&keys)), text: None },
        LogLines::Text(text) => OrderedFormat { json: None, text: Some(Inline { text }) },
    };
    let file = OrderedLog { path, format: Some(format) };
    Any { type_url: FileAccessLog::type_url(), value: file.encode_to_vec() }
}

/// Without a service.
fn record(lines: LogLines) -> OpenTelemetryAccessLogConfig {
    let (body, attributes) = match lines {
        LogLines::Text(text) => (Some(text.into()), None),
        LogLines::Json(serde_json::Value::Object(mut fields)) => (fields.remove(AccessLog::BODY), Some(list(&fields))),
        LogLines::Json(other) => (Some(other), None),
    };
    OpenTelemetryAccessLogConfig { body: body.as_ref().map(value), attributes, ..Default::default() }
}

fn list(fields: &serde_json::Map<String, serde_json::Value>) -> KeyValueList {
    let field = |(key, of): (&String, _)| KeyValue { key: key.clone(), value: Some(value(of)), ..KeyValue::default() };
    let mut values: Vec<KeyValue> = fields.iter().map(field).collect();
    values.sort_by(|a, b| a.key.cmp(&b.key));
    KeyValueList { values }
}

fn value(json: &serde_json::Value) -> AnyValue {
    use serde_json::Value as Json;
    let value = match json {
        Json::Null => None,
        Json::Bool(is_so) => Some(Value::BoolValue(*is_so)),
        Json::Number(number) => Some(match number.as_i64() {
            Some(number) => Value::IntValue(number),
            None => Value::DoubleValue(number.as_f64().unwrap_or_default()),
        }),
        Json::String(text) => Some(Value::StringValue(text.clone())),
        Json::Array(items) => Some(Value::ArrayValue(ArrayValue { values: items.iter().map(value).collect() })),
        Json::Object(fields) => Some(Value::KvlistValue(list(fields))),
    };
    AnyValue { value }
}

fn filter(expression: String) -> pb::AccessLogFilter {
    use pb::access_log_filter::FilterSpecifier;
    let config = any(&ExpressionFilter { expression, cel_config: None });
    let extension = pb::ExtensionFilter {
        name: "envoy.access_loggers.extension_filters.cel".to_owned(),
        config_type: Some(pb::extension_filter::ConfigType::TypedConfig(config)),
    };
    pb::AccessLogFilter { filter_specifier: Some(FilterSpecifier::ExtensionFilter(extension)) }
}

/// `envoy.extensions.access_loggers.file.v3.FileAccessLog` with sorted keys, so that the same settings are the same bytes.
#[derive(Clone, PartialEq, Message)]
struct OrderedLog {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(message, optional, tag = "5")]
    format: Option<OrderedFormat>,
}

/// `envoy.config.core.v3.SubstitutionFormatString`
#[derive(Clone, PartialEq, Message)]
struct OrderedFormat {
    #[prost(message, optional, tag = "2")]
    json: Option<OrderedStruct>,
    #[prost(message, optional, tag = "5")]
    text: Option<Inline>,
}

/// `envoy.config.core.v3.DataSource`
#[derive(Clone, PartialEq, Message)]
struct Inline {
    #[prost(string, tag = "3")]
    text: String,
}
