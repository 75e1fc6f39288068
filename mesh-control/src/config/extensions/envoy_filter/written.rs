//! An `EnvoyFilter` as it is written, before it is read: names as protobuf's JSON has them, and fields that Istio and Envoy know and
//! that have no effect here. They are told as such: whoever reads "unknown" looks for a slip of the pen.

use super::Fault;
use crate::config::diagnostic::quoted;
use crate::config::node::{Key, Node, Value};

const ONE_STAGE: &str = "there is one stage, 0";
const ONCE: &str = "each request counts once, by what its actions say";

/// By what they are in: fields, and why nothing is made of them.
const NOT_SUPPORTED: &[(&str, &[&str], &str)] = &[
    ("spec", &["targetRefs"], "`workloadSelector` names workloads"),
    ("match", &["proxy", "cluster", "waypoint"], "`context`, `listener` and `routeConfiguration` say where"),
    ("listener", &["name", "portName", "listenerFilter"], "`portNumber` names a listener"),
    (
        "filterChain",
        &["name", "sni", "transportProtocol", "applicationProtocols", "destinationPort"],
        "a port has one chain",
    ),
    ("routeConfiguration", &["name", "portName", "gateway"], "`portNumber` or `vhost.name` names a port"),
    ("vhost", &["domainName"], "a port has one virtual host"),
    ("patch", &["filterClass"], "limits come after authorization"),
    ("rate_limits", &["stage"], ONE_STAGE),
    ("rate_limits", &["disable_key", "limit", "hits_addend", "apply_on_stream_done"], ONCE),
    (
        "actions",
        &[
            "source_cluster",
            "dynamic_metadata",
            "metadata",
            "masked_remote_address",
            "extension",
            "query_parameter_value_match",
            "remote_address_match",
        ],
        "not among the actions that are read of an EnvoyFilter; a RateLimit has more of them",
    ),
    (
        "headers",
        &["range_match", "treat_missing_header_as_empty"],
        "tests of texts, and whether there is one, are read",
    ),
    ("string_match", &["custom"], "there are no extensions of Envoy here"),
    ("typed_config", &["stage"], ONE_STAGE),
    (
        "typed_config",
        &["vh_rate_limits", "local_cluster_rate_limit", "failure_mode_deny_percent"],
        "the filter has no such setting here",
    ),
    ("grpc_service", &["google_grpc", "initial_metadata", "retry_policy"], "the mesh's own client asks"),
    ("envoy_grpc", &["retry_policy", "max_receive_message_length"], "the mesh's own client asks"),
];

/// Durations. Envoy reads one as the message that it is, too: `{seconds: 60}`.
const DURATIONS: [&str; 2] = ["fill_interval", "timeout"];
/// Values that may be absent. Envoy reads one as the message that it is, too: `{value: 5}`.
const WRAPPED: [&str; 5] =
    ["tokens_per_fill", "append", "expect_match", "always_consume_default_token_bucket", "max_dynamic_descriptors"];

/// The same with names as Envoy writes them, and without what is not supported, which is told.
pub(super) fn read(spec: &Node, faults: &mut Vec<Fault>) -> Node {
    Walk { faults }.node(spec, "spec", "", false)
}

struct Walk<'a> {
    faults: &'a mut Vec<Fault>,
}

impl Walk<'_> {
    /// `of` is the field that it is in; where that is a list, each of its items is in it. Envoy's own fields have two names.
    fn node(&mut self, node: &Node, of: &str, at: &str, is_envoys: bool) -> Node {
        let value = match &node.value {
            Value::Map(entries) => {
                let kept = entries.iter().filter_map(|(key, value)| self.field(node, key, value, (of, at), is_envoys));
                Value::Map(kept.collect())
            }
            Value::Seq(items) => {
                let items = items.iter().enumerate();
                Value::Seq(
                    items.map(|(index, item)| self.node(item, of, &format!("{at}[{index}]"), is_envoys)).collect(),
                )
            }
            plain => plain.clone(),
        };
        Node { span: node.span, value }
    }

    fn field(
        &mut self,
        node: &Node,
        key: &Key,
        value: &Node,
        (of, at): (&str, &str),
        is_envoys: bool,
    ) -> Option<(Key, Node)> {
        let mut name = key.name.clone();
        if is_envoys {
            // Of both names of one field, one would not count: that stays unknown.
            let other = snake(&name);
            let is_twice = node.entries().iter().any(|(key, _)| key.name == other);
            name = if is_twice { name } else { other };
        }
        let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        let found = NOT_SUPPORTED.iter().find(|(parent, fields, _)| *parent == of && fields.contains(&&*name));
        if let Some((_, _, why)) = found {
            // What is written as it is without being written.
            let is_default = matches!(value.value, Value::Null | Value::Int(0) | Value::Bool(false));
            if !is_default {
                self.faults.push((key.span, at, format!("{}: {why}", quoted(&name))));
            }
            return None;
        }
        if let Some(plain) = is_envoys.then(|| plain(&name, value)).flatten() {
            return Some((Key { name, span: key.span }, plain));
        }
        // The configuration of a filter, in each of its forms.
        let is_config = is_envoys && (name.starts_with("envoy.filters.") || (of == "typed_config" && name == "value"));
        let parent = if is_config { "typed_config" } else { name.as_str() };
        let value = self.node(value, parent, &at, is_envoys || (of == "patch" && name == "value"));
        Some((Key { name, span: key.span }, value))
    }
}

/// What is written as a message, as it is written else.
fn plain(name: &str, value: &Node) -> Option<Node> {
    match value.entries() {
        [(key, only)] if key.name == "value" && WRAPPED.contains(&name) => Some(only.clone()),
        parts if !parts.is_empty() && DURATIONS.contains(&name) => {
            let part = |of: &str| match value.get(of).map(|part| &part.value) {
                None => Some(0),
                Some(Value::Int(number)) => u64::try_from(*number).ok(),
                Some(_) => None,
            };
            let (seconds, nanos) = (part("seconds")?, part("nanos")?);
            let is_one = parts.iter().all(|(key, _)| ["seconds", "nanos"].contains(&key.name.as_str()));
            let text = format!("{seconds}.{nanos:09}s");
            (is_one && nanos < 1_000_000_000).then_some(Node { span: value.span, value: Value::Str(text) })
        }
        _ => None,
    }
}

/// `tokenBucket` as `token_bucket`; other names as they are.
fn snake(name: &str) -> String {
    if !name.starts_with(|first: char| first.is_ascii_lowercase())
        || !name.bytes().all(|byte| byte.is_ascii_alphanumeric())
    {
        return name.to_owned();
    }
    let mut snake = String::with_capacity(name.len());
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}
