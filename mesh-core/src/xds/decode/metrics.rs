//! `stats.PluginConfig`, the configuration of Istio's filter `istio.stats`: which metrics are not there, and whose labels are
//! others. It decides nothing about a request, so that what is not known of it is noted and left out.

use std::collections::BTreeMap;

use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::common::type_name;
use super::notes::Notes;
use crate::error::Invalid;
use crate::model::{CelExpression, LabelRule, METRIC_NAMES, MetricRules};

#[derive(Clone, PartialEq, Message)]
struct PluginConfig {
    #[prost(message, repeated, tag = "8")]
    metrics: Vec<MetricConfig>,
    /// Metrics of one's own.
    #[prost(bytes = "vec", repeated, tag = "9")]
    definitions: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct MetricConfig {
    #[prost(btree_map = "string, string", tag = "1")]
    dimensions: BTreeMap<String, String>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, repeated, tag = "3")]
    tags_to_remove: Vec<String>,
    #[prost(string, tag = "4")]
    r#match: String,
    #[prost(bool, tag = "5")]
    drop: bool,
}

/// Whether this is such a configuration.
pub(super) fn is_one(any: &Any) -> bool {
    type_name(&any.type_url) == "stats.PluginConfig"
}

pub(super) fn decode(notes: &mut Notes<'_>, any: &Any) -> Result<MetricRules, Invalid> {
    let PluginConfig { metrics, definitions } =
        PluginConfig::decode(&*any.value).map_err(|error| Invalid::new(format!("cannot be decoded: {error}")))?;
    notes.ignore_if_set("definitions", &definitions);
    // Of several for one metric, each adds to the one before.
    let mut rules: BTreeMap<usize, (bool, BTreeMap<String, Option<CelExpression>>)> = BTreeMap::new();
    notes.each("metrics", metrics, |notes, metric| {
        notes.ignore_if_set("match", &metric.r#match);
        let places = (0..METRIC_NAMES.len()).filter(|place| {
            metric.name.is_empty() || METRIC_NAMES.get(*place).is_some_and(|name| *name == metric.name)
        });
        let places: Vec<usize> = places.collect();
        if places.is_empty() {
            notes.ignore(&format!("name ({:?})", metric.name));
        }
        let mut labels: BTreeMap<String, Option<CelExpression>> = BTreeMap::new();
        for (label, text) in metric.dimensions {
            match CelExpression::label(&text) {
                Ok(expression) => _ = labels.insert(label, Some(expression)),
                Err(fault) => notes.ignore(&format!("dimensions[{label:?}] ({fault})")),
            }
        }
        labels.extend(metric.tags_to_remove.into_iter().map(|label| (label, None)));
        for place in places {
            let (is_dropped, all) = rules.entry(place).or_default();
            *is_dropped |= metric.drop;
            all.extend(labels.clone());
        }
        Ok(())
    })?;
    let rules = rules.into_iter().map(|(place, (is_dropped, labels))| {
        let labels: Vec<LabelRule> = labels.into_iter().map(|(label, value)| (label.into(), value)).collect();
        (place, (!is_dropped).then_some(labels))
    });
    MetricRules::new(rules)
}
