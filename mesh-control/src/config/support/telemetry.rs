//! What becomes of the fields of Telemetry.

use super::Support::{Indifferent, NotYet, Partly};
use super::{Row, Tables, both, http_only};
use crate::config::node::{Node, Value};

pub(super) const TABLES: Tables = &[
    ("", TELEMETRY),
    ("targetRef", TARGET),
    ("targetRefs", TARGET),
    ("accessLogging", LOGGING),
    ("metrics", METRICS),
    ("metrics.overrides", OVERRIDES),
    ("tracing", TRACING),
];

const TELEMETRY: &[Row] = &[http_only("selector.matchLabels", NOTHING)];

const TARGET: &[Row] = &[
    http_only("group", NOTHING),
    http_only("kind", NOTHING),
    http_only("name", NOTHING),
    both("namespace", Indifferent),
];

/// What gRPC's own clients and servers do with each.
const NOTHING: &str = "gRPC's own clients and servers are told nothing of it";
pub(super) const NO_LOG: &str = "gRPC's own clients and servers write no access log";
pub(super) const NO_METRICS: &str = "gRPC's own clients and servers count as their application says";
pub(super) const NO_SPANS: &str = "gRPC's own clients and servers trace as their application says";

const LOGGING: &[Row] = &[
    http_only("match.mode", NO_LOG),
    http_only("providers.name", NO_LOG),
    http_only("disabled", NO_LOG),
    http_only("filter.expression", NO_LOG),
];

const METRICS: &[Row] = &[
    http_only("providers.name", NO_METRICS),
    both("reportingInterval", NotYet("numbers are those of the moment in which they are read")),
];

const OVERRIDES: &[Row] = &[
    http_only("match.metric", NO_METRICS),
    http_only("match.customMetric", NO_METRICS),
    http_only("match.mode", NO_METRICS),
    http_only("disabled", NO_METRICS),
    http_only("tagOverrides.operation", NO_METRICS),
    http_only("tagOverrides.value", NO_METRICS),
];

const TRACING: &[Row] = &[
    http_only("match.mode", NO_SPANS),
    http_only("providers.name", NO_SPANS),
    http_only("randomSamplingPercentage", NO_SPANS),
    http_only("disableSpanReporting", NO_SPANS),
    http_only("customTags.literal.value", NO_SPANS),
    http_only("customTags.environment.name", NO_SPANS),
    http_only("customTags.environment.defaultValue", NO_SPANS),
    http_only("customTags.header.name", NO_SPANS),
    http_only("customTags.header.defaultValue", NO_SPANS),
    Row { path: "customTags", library: Partly(formatted), grpc: NotYet(NO_SPANS) },
    Row { path: "enableIstioTags", library: Partly(istio_tags), grpc: NotYet(NO_SPANS) },
    Row { path: "useRequestIdForTraceSampling", library: Partly(by_request_id), grpc: NotYet(NO_SPANS) },
    Row { path: "disableContextPropagation", library: Partly(not_told), grpc: NotYet(NO_SPANS) },
];

/// Tags are known by their names, below which their fields stand.
fn formatted(tags: &Node) -> Option<String> {
    let formatted = tags.entries().iter().find(|(_, tag)| tag.get("formatter").is_some());
    formatted.map(|(key, _)| format!("{}: a tag is a text, a variable of the environment or a header", key.name))
}

pub(super) fn istio_tags(node: &Node) -> Option<String> {
    (node.value == Value::Bool(false)).then(|| "spans say whose they are in Istio's words in any case".to_owned())
}

fn by_request_id(node: &Node) -> Option<String> {
    (node.value == Value::Bool(true)).then(|| "the trace itself says whether it is sampled".to_owned())
}

fn not_told(node: &Node) -> Option<String> {
    (node.value == Value::Bool(true)).then(|| "others are told of a trace in any case".to_owned())
}
