//! Access logs, as Istio renders them: into the connection manager of each listener, to a file, of the requests that an
//! expression of CEL is for.

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_types::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::proto::{OrderedStruct, any};
use crate::policy::telemetry::{AccessLogFile, LogLines};

/// This access log.
pub fn file(log: AccessLogFile) -> pb::AccessLog {
    let format = match log.lines {
        LogLines::Json(keys) => OrderedFormat { json: Some(OrderedStruct::of_json(&keys)), text: None },
        LogLines::Text(text) => OrderedFormat { json: None, text: Some(Inline { text }) },
    };
    let file = OrderedLog { path: log.path, format: Some(format) };
    let config = Any { type_url: FileAccessLog::type_url(), value: file.encode_to_vec() };
    pb::AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        filter: log.filter.map(filter),
        config_type: Some(pb::access_log::ConfigType::TypedConfig(config)),
    }
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
