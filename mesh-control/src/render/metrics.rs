//! What is otherwise than usual of Istio's metrics, as Istio renders it: the configuration of its filter `istio.stats`
//! (telemetry.go, `generateStatsConfig`). It is for the library; an Envoy that is not Istio's own has no such filter.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use crate::policy::telemetry::MetricOverride;

/// The filter's name and the type of its configuration.
const NAME: &str = "istio.stats";
const TYPE_URL: &str = "type.googleapis.com/stats.PluginConfig";

/// The filter that says so; none, where everything is as usual.
pub(super) fn filter(overrides: &BTreeMap<String, MetricOverride>) -> Option<hcm::HttpFilter> {
    if overrides.is_empty() {
        return None;
    }
    let metric = |(name, metric): (&String, &MetricOverride)| MetricConfig {
        name: name.clone(),
        dimensions: metric.labels.iter().filter_map(|(label, value)| Some((label.clone(), value.clone()?))).collect(),
        tags_to_remove: metric
            .labels
            .iter()
            .filter(|(_, value)| value.is_none())
            .map(|(label, _)| label.clone())
            .collect(),
        drop: metric.is_disabled,
    };
    let config = PluginConfig { metrics: overrides.iter().map(metric).collect() };
    let config = Any { type_url: TYPE_URL.to_owned(), value: config.encode_to_vec() };
    Some(hcm::HttpFilter {
        name: NAME.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    })
}

/// `stats.PluginConfig`, as much of it as is told.
#[derive(Clone, PartialEq, Message)]
struct PluginConfig {
    #[prost(message, repeated, tag = "8")]
    metrics: Vec<MetricConfig>,
}

/// `stats.MetricConfig`
#[derive(Clone, PartialEq, Message)]
struct MetricConfig {
    #[prost(btree_map = "string, string", tag = "1")]
    dimensions: BTreeMap<String, String>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, repeated, tag = "3")]
    tags_to_remove: Vec<String>,
    #[prost(bool, tag = "5")]
    drop: bool,
}
