//! How requests are traced. Where spans go is for the application to say: of a provider, only in which headers it tells of a
//! trace.

use std::sync::Arc;

use envoy_types::pb::envoy::config::trace::v3::{OpenTelemetryConfig, ZipkinConfig, tracing};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as pb;
use envoy_types::pb::envoy::r#type::tracing::v3 as tags;
use envoy_types::pb::envoy::r#type::v3::Percent;
use http::HeaderName;

use super::common::{filled, holds, percent};
use super::notes::{Notes, ignored};
use crate::error::Invalid;
use crate::model::{CustomTag, Fraction, TagValue, TraceHeaders, Tracing};

pub(super) fn decode(notes: &mut Notes<'_>, value: pb::Tracing) -> Result<Tracing, Invalid> {
    let pb::Tracing {
        client_sampling,
        random_sampling,
        overall_sampling,
        verbose,
        max_path_tag_length,
        custom_tags,
        provider,
        // Each try has a span.
        spawn_upstream_span: _,
        operation,
        upstream_operation,
        no_context_propagation,
    } = value;
    ignored!(notes; verbose, operation, upstream_operation, no_context_propagation);
    let default = Tracing::default();
    let length = max_path_tag_length.map(|length| usize::try_from(length.value).unwrap_or(usize::MAX));
    Ok(Tracing {
        client: share(notes, "client_sampling", client_sampling)?,
        random: share(notes, "random_sampling", random_sampling)?,
        overall: share(notes, "overall_sampling", overall_sampling)?,
        max_path_length: length.unwrap_or(default.max_path_length),
        custom_tags: notes.each("custom_tags", custom_tags, custom_tag)?.into_iter().flatten().collect(),
        headers: notes.optional("provider", provider, headers)?.unwrap_or_default(),
    })
}

/// Envoy's default is all.
fn share(notes: &mut Notes<'_>, name: &'static str, value: Option<Percent>) -> Result<Fraction, Invalid> {
    let value = notes.optional(name, value, |_, value| percent(&value))?;
    // Between 0 and 100 percent, so that it is a number of millionths.
    Ok(value.map_or(Fraction::ALL, |percent| Fraction::of_million((percent * 10_000.0).round() as u64)))
}

fn headers(notes: &mut Notes<'_>, value: tracing::Http) -> Result<TraceHeaders, Invalid> {
    let tracing::Http { name: _, config_type } = value;
    match config_type {
        Some(tracing::http::ConfigType::TypedConfig(any)) if holds::<ZipkinConfig>(&any) => Ok(TraceHeaders::B3),
        Some(tracing::http::ConfigType::TypedConfig(any)) if !holds::<OpenTelemetryConfig>(&any) => {
            notes.ignore("typed_config");
            Ok(TraceHeaders::W3c)
        }
        _ => Ok(TraceHeaders::W3c),
    }
}

fn custom_tag(notes: &mut Notes<'_>, value: tags::CustomTag) -> Result<Option<CustomTag>, Invalid> {
    use tags::custom_tag::Type;
    let tags::CustomTag { tag, r#type } = value;
    let name = filled("tag", tag)?;
    let some = |text: String| (!text.is_empty()).then(|| Arc::from(text));
    let value = match r#type {
        Some(Type::Literal(literal)) => TagValue::Text(filled("literal.value", literal.value)?.into()),
        Some(Type::Environment(variable)) => {
            let name = filled("environment.name", variable.name)?;
            TagValue::Environment { name: name.into(), default: some(variable.default_value) }
        }
        Some(Type::RequestHeader(header)) => {
            let invalid = |_| Invalid::new("not the name of a header").at("request_header.name");
            let name = HeaderName::try_from(header.name).map_err(invalid)?;
            TagValue::Header { name, default: some(header.default_value) }
        }
        Some(_) => {
            notes.ignore("type");
            return Ok(None);
        }
        None => return Err(Invalid::new("is missing").at("type")),
    };
    Ok(Some(CustomTag::new(name, value)))
}
