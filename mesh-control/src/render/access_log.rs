//! Access logs, as Istio renders those of its settings: into the connection manager of each listener, to a file.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_types::pb::google::protobuf::Any;
use mesh_core::model::DEFAULT_JSON;
use prost::{Message, Name};

use super::proto::OrderedStruct;
use crate::config::istio::mesh_config::{LogEncoding, MeshConfig};

/// The access log of the mesh's settings, where they ask for one. What is wrong with its format was said where they are read.
pub fn of_mesh(settings: &MeshConfig) -> Option<pb::AccessLog> {
    if settings.access_log_file.is_empty() || settings.access_log().is_err() {
        return None;
    }
    let written = settings.access_log_format.as_ref().map_or("", |text| text.value.as_str());
    let format = match settings.access_log_encoding {
        Some(LogEncoding::Json) => {
            let keys: BTreeMap<String, String> = match written {
                "" => DEFAULT_JSON.map(|(key, text)| (key.to_owned(), text.to_owned())).into(),
                written => serde_json::from_str(written).ok()?,
            };
            OrderedFormat { json: Some(OrderedStruct::of_texts(keys)), text: None }
        }
        Some(LogEncoding::Text) | None => {
            let text = if written.is_empty() { mesh_core::model::DEFAULT_LINE } else { written };
            OrderedFormat { json: None, text: Some(Inline { text: text.to_owned() }) }
        }
    };
    let log = OrderedLog { path: settings.access_log_file.clone(), format: Some(format) };
    let config = Any { type_url: FileAccessLog::type_url(), value: log.encode_to_vec() };
    Some(pb::AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(pb::access_log::ConfigType::TypedConfig(config)),
        ..Default::default()
    })
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
