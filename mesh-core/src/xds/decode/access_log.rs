//! Access logs: those that go to a file, or to a collector of OpenTelemetry's. Others have no effect here, and neither have those
//! with a filter that is not known: they are left out, and not written whole.

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat;
use envoy_types::pb::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig;
use envoy_types::pb::google::protobuf::{Any, Struct};
use envoy_types::pb::opentelemetry::proto::common::v1::any_value::Value;
use envoy_types::pb::opentelemetry::proto::common::v1::{AnyValue, KeyValue, KeyValueList};

use super::common::{holds, struct_json, unpack};
use super::log_filter;
use super::notes::Notes;
use crate::error::Invalid;
use crate::model::{AccessLog, DEFAULT_LINE, LogFormat, LogText};

pub(super) fn decode(notes: &mut Notes<'_>, value: pb::AccessLog) -> Result<Option<AccessLog>, Invalid> {
    let pb::AccessLog { name: _, filter, config_type } = value;
    let Some(pb::access_log::ConfigType::TypedConfig(any)) = config_type else {
        return Err(Invalid::new("is missing").at("typed_config"));
    };
    let is_collected = holds::<OpenTelemetryAccessLogConfig>(&any);
    if !is_collected && !holds::<FileAccessLog>(&any) {
        notes.ignore("typed_config");
        return Ok(None);
    }
    let filter = match filter.map(log_filter::decode).transpose() {
        Ok(filter) => filter,
        Err(unknown) => {
            notes.ignore(&format!("filter ({unknown})"));
            return Ok(None);
        }
    };
    let mut log = if is_collected { collected(&any)? } else { file(&any)? };
    log.filter = filter;
    Ok(Some(log))
}

fn file(any: &Any) -> Result<AccessLog, Invalid> {
    let FileAccessLog { path, access_log_format } = unpack(any)?;
    if path.is_empty() {
        return Err(Invalid::new("is empty").at("typed_config.path"));
    }
    let format = match access_log_format {
        None => LogFormat::default(),
        Some(AccessLogFormat::Format(text)) if text.is_empty() => LogFormat::default(),
        Some(AccessLogFormat::Format(text)) => text_format(&text)?,
        Some(AccessLogFormat::JsonFormat(keys) | AccessLogFormat::TypedJsonFormat(keys)) => json_format(keys)?,
        Some(AccessLogFormat::LogFormat(format)) => match format.format {
            Some(Format::TextFormat(text)) => text_format(&text)?,
            Some(Format::TextFormatSource(source)) => match source.specifier {
                Some(Specifier::InlineString(text)) => text_format(&text)?,
                _ => return Err(Invalid::new("only inline_string is supported").at("typed_config.log_format")),
            },
            Some(Format::JsonFormat(keys)) => json_format(keys)?,
            None => return Err(Invalid::new("is empty").at("typed_config.log_format")),
        },
    };
    Ok(AccessLog::new(path, format))
}

/// Where it goes is the application's to say, and so is whose it is.
fn collected(any: &Any) -> Result<AccessLog, Invalid> {
    let OpenTelemetryAccessLogConfig { body, attributes, .. } = unpack(any)?;
    let body = match body.and_then(|body| body.value) {
        None => DEFAULT_LINE.to_owned(),
        Some(Value::StringValue(text)) => text,
        Some(_) => return Err(Invalid::new("only a text is supported").at("typed_config.body")),
    };
    let attributes = attributes.map(|attributes| fields(&attributes)).transpose();
    let mut attributes = attributes.map_err(|invalid| invalid.at("typed_config.attributes"))?.unwrap_or_default();
    let format = match attributes.is_empty() {
        true => text_format(&body)?,
        false => {
            if attributes.insert(AccessLog::BODY.to_owned(), body.into()).is_some() {
                return Err(Invalid::new("one has no name").at("typed_config.attributes"));
            }
            LogFormat::of_json(&attributes.into()).map_err(|invalid| invalid.at("typed_config.attributes"))?
        }
    };
    Ok(AccessLog::to_collector(format))
}

fn fields(list: &KeyValueList) -> Result<serde_json::Map<String, serde_json::Value>, Invalid> {
    let field = |one: &KeyValue| {
        let value = one.value.as_ref().map_or(Ok(serde_json::Value::Null), json);
        Ok((one.key.clone(), value.map_err(|invalid| invalid.at(&one.key))?))
    };
    list.values.iter().map(field).collect()
}

fn json(value: &AnyValue) -> Result<serde_json::Value, Invalid> {
    Ok(match &value.value {
        None => serde_json::Value::Null,
        Some(Value::StringValue(text)) => text.as_str().into(),
        Some(Value::BoolValue(is_so)) => (*is_so).into(),
        Some(Value::IntValue(number)) => (*number).into(),
        Some(Value::DoubleValue(number)) => (*number).into(),
        Some(Value::ArrayValue(items)) => items.values.iter().map(json).collect::<Result<Vec<_>, _>>()?.into(),
        Some(Value::KvlistValue(list)) => fields(list)?.into(),
        Some(Value::BytesValue(_) | Value::StringValueStrindex(_)) => {
            return Err(Invalid::new("only texts, numbers, lists and objects are supported"));
        }
    })
}

fn text_format(text: &str) -> Result<LogFormat, Invalid> {
    Ok(LogFormat::Text(LogText::parse(text).map_err(|invalid| invalid.at("typed_config.log_format"))?))
}

fn json_format(keys: Struct) -> Result<LogFormat, Invalid> {
    let format = struct_json(&keys).and_then(|keys| LogFormat::of_json(&keys));
    format.map_err(|invalid| invalid.at("typed_config.log_format.json_format"))
}
