//! Access logs, as Istio renders those of its settings: into the connection manager of each listener, to a file.

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::proto::OrderedStruct;
use crate::policy::mesh::{AccessLogFile, LogLines};

/// This access log.
pub fn file(log: AccessLogFile) -> pb::AccessLog {
    let format = match log.lines {
        LogLines::Json(keys) => OrderedFormat { json: Some(OrderedStruct::of_texts(keys)), text: None },
        LogLines::Text(text) => OrderedFormat { json: None, text: Some(Inline { text }) },
    };
    let log = OrderedLog { path: log.path, format: Some(format) };
    let config = Any { type_url: FileAccessLog::type_url(), value: log.encode_to_vec() };
    pb::AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(pb::access_log::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
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
