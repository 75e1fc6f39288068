//! Access logs: those that go to a file. Others have no effect here, and neither have those with a filter that is not known:
//! they are left out, and not written whole.

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat;
use envoy_types::pb::google::protobuf::Struct;

use super::common::{holds, struct_json, unpack};
use super::log_filter;
use super::notes::Notes;
use crate::error::Invalid;
use crate::model::{AccessLog, LogFormat, LogText};

pub(super) fn decode(notes: &mut Notes<'_>, value: pb::AccessLog) -> Result<Option<AccessLog>, Invalid> {
    let pb::AccessLog { name: _, filter, config_type } = value;
    let Some(pb::access_log::ConfigType::TypedConfig(any)) = config_type else {
        return Err(Invalid::new("is missing").at("typed_config"));
    };
    if !holds::<FileAccessLog>(&any) {
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
    let FileAccessLog { path, access_log_format } = unpack(&any)?;
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
    let mut log = AccessLog::new(path, format);
    log.filter = filter;
    Ok(Some(log))
}

fn text_format(text: &str) -> Result<LogFormat, Invalid> {
    Ok(LogFormat::Text(LogText::parse(text).map_err(|invalid| invalid.at("typed_config.log_format"))?))
}

fn json_format(keys: Struct) -> Result<LogFormat, Invalid> {
    let format = struct_json(&keys).and_then(|keys| LogFormat::of_json(&keys));
    format.map_err(|invalid| invalid.at("typed_config.log_format.json_format"))
}
