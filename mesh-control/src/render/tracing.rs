//! How requests are traced, in the connection manager of each listener. Where spans go is for the application to say, so that
//! a provider names no cluster: it says in which headers others are told of a trace.

use envoy_types::pb::envoy::config::trace::v3::{OpenTelemetryConfig, ZipkinConfig, tracing};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;
use envoy_types::pb::envoy::r#type::tracing::v3::{CustomTag, custom_tag};
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::UInt32Value;

use super::proto::any;
use crate::policy::tracing::{DEFAULT_SAMPLING, Provider, Tag, Tracing};

/// These settings. One that is disabled caps all sampling at nothing.
pub fn manager(tracing: &Tracing) -> hcm::Tracing {
    let percent = |value| Some(Percent { value });
    if tracing.is_disabled {
        return hcm::Tracing { random_sampling: percent(0.0), overall_sampling: percent(0.0), ..Default::default() };
    }
    hcm::Tracing {
        client_sampling: percent(100.0),
        random_sampling: percent(tracing.sampling.unwrap_or(DEFAULT_SAMPLING)),
        overall_sampling: percent(100.0),
        max_path_tag_length: tracing.max_path_length.map(|value| UInt32Value { value }),
        custom_tags: tracing.custom_tags.iter().map(|(name, tag)| custom_tag(name, tag)).collect(),
        provider: tracing.provider.map(provider),
        ..Default::default()
    }
}

fn custom_tag(name: &str, tag: &Tag) -> CustomTag {
    use custom_tag::{Environment, Header, Literal, Type};
    let r#type = match tag.clone() {
        Tag::Literal(value) => Type::Literal(Literal { value }),
        Tag::Environment { name, default } => Type::Environment(Environment { name, default_value: default }),
        Tag::Header { name, default } => Type::RequestHeader(Header { name, default_value: default }),
    };
    CustomTag { tag: name.to_owned(), r#type: Some(r#type) }
}

fn provider(provider: Provider) -> tracing::Http {
    let (name, config) = match provider {
        Provider::OpenTelemetry => ("envoy.tracers.opentelemetry", any(&OpenTelemetryConfig::default())),
        Provider::Zipkin => ("envoy.tracers.zipkin", any(&ZipkinConfig::default())),
    };
    tracing::Http { name: name.to_owned(), config_type: Some(tracing::http::ConfigType::TypedConfig(config)) }
}
