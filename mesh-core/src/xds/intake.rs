//! One response, whatever the protocol: its resources are decoded one by one, the good ones are taken in, and the
//! bad ones make up the text of the NACK (gRFC A46).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3 as discovery;
use envoy_types::pb::google::protobuf::{Any, Struct, Value, value::Kind};
use envoy_types::pb::google::rpc::Status;
use prost::Message;

use crate::error::Invalid;
use crate::resources::{ResourceKey, ResourceType};
use crate::xds::bootstrap::Node;
use crate::xds::cache::{Cache, Step};
use crate::xds::decode::{Options, decode_named, unwrap};
use crate::xds::names;

/// What this client says that it runs.
pub(super) const USER_AGENT: &str = "mesh-core";

/// How much one NACK spells out, in bytes, and how long each error may be, in characters. A server takes what is not in
/// it as accepted.
const MAX_ERRORS: usize = 64 << 10;
const MAX_ERROR: usize = 500;
/// google.rpc.Code.INVALID_ARGUMENT
const INVALID_ARGUMENT: i32 = 3;

/// One resource of a response.
pub(crate) struct Item {
    /// The name beside it; empty where there is none.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// The resource, perhaps in a wrapper.
    pub(crate) any: Any,
}

/// What a response came to.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// What is wrong with it; empty = it is acknowledged.
    pub(crate) errors: Vec<String>,
    /// Every resource in it that could be named, good or bad.
    pub(crate) named: HashSet<Arc<str>>,
    /// Something in it could not even be named, so that no absence can be concluded from it.
    pub(crate) has_unnamed: bool,
    /// How many resources were accepted.
    pub(crate) accepted: u64,
}

/// The first field of each of the resources is its name.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

struct Candidate {
    name: Arc<str>,
    wrapper_name: String,
    version: String,
    bytes: Bytes,
}

/// Takes in the resources of a response.
pub(crate) fn take_in(
    cache: &mut Cache,
    step: &mut Step<'_>,
    kind: ResourceType,
    items: Vec<Item>,
    options: &Options,
) -> Taken {
    let mut taken = Taken::default();
    let mut candidates = Vec::with_capacity(items.len());
    let mut times: HashMap<Arc<str>, usize> = HashMap::new();
    for item in items {
        match candidate(kind, item) {
            Ok(candidate) => {
                *times.entry(Arc::clone(&candidate.name)).or_default() += 1;
                candidates.push(candidate);
            }
            Err((name, version, invalid)) => {
                let name = names::canonical(kind, &name).ok();
                match &name {
                    Some(name) => {
                        *times.entry(Arc::clone(name)).or_default() += 1;
                        cache.reject(step, &key(kind, name), &version, None, &invalid);
                    }
                    None => taken.has_unnamed = true,
                }
                taken.named.extend(name);
                taken.errors.push(invalid.to_string());
            }
        }
    }
    for candidate in candidates {
        let is_first = taken.named.insert(Arc::clone(&candidate.name));
        if times.get(&candidate.name).is_some_and(|times| *times > 1) {
            // Which of them is meant is anybody's guess: none is taken.
            let invalid = Invalid::new("listed twice in one response").of(&*candidate.name);
            let key = key(kind, &candidate.name);
            cache.reject(step, &key, &candidate.version, Some(candidate.bytes), &invalid);
            if is_first {
                taken.errors.push(invalid.to_string());
            }
            continue;
        }
        match take_one(cache, step, kind, candidate, options) {
            Ok(()) => taken.accepted += 1,
            Err(invalid) => taken.errors.push(invalid.to_string()),
        }
    }
    taken
}

fn key(kind: ResourceType, name: &Arc<str>) -> ResourceKey {
    ResourceKey { kind, name: Arc::clone(name) }
}

/// A resource with its name; or, where it has none that can be found out, the name beside it, its version and
/// what is wrong.
fn candidate(kind: ResourceType, item: Item) -> Result<Candidate, (String, String, Invalid)> {
    let Item { name: mut wrapper_name, version, any } = item;
    let unwrapped = match unwrap(kind, any) {
        Ok(unwrapped) => unwrapped,
        Err(invalid) => {
            let name = if wrapper_name.is_empty() { invalid.resource.clone() } else { wrapper_name };
            return Err((name, version, invalid));
        }
    };
    if wrapper_name.is_empty() {
        wrapper_name = unwrapped.name;
    }
    let named = Named::decode(&*unwrapped.bytes).map_err(|error| format!("malformed Protobuf: {error}"));
    let name = named.map_err(Invalid::new).and_then(|named| names::canonical(kind, &named.name));
    match name {
        Ok(name) => Ok(Candidate { name, wrapper_name, version, bytes: unwrapped.bytes.into() }),
        Err(invalid) => Err((wrapper_name.clone(), version, invalid.at("name").of(wrapper_name))),
    }
}

fn take_one(
    cache: &mut Cache,
    step: &mut Step<'_>,
    kind: ResourceType,
    candidate: Candidate,
    options: &Options,
) -> Result<(), Invalid> {
    let Candidate { name, wrapper_name, version, bytes } = candidate;
    let key = key(kind, &name);
    // A state-of-the-world server repeats everything with every change: what is known need not be decoded again.
    let name_agrees = wrapper_name.is_empty() || *wrapper_name == *name;
    if name_agrees && cache.has(&key, &bytes) {
        cache.confirm(step, &key, &version);
        return Ok(());
    }
    match decode_named(kind, &wrapper_name, &bytes, cache.before(&key), options) {
        Ok(decoded) => {
            cache.accept(step, &key, &version, bytes, decoded);
            Ok(())
        }
        Err(invalid) => {
            cache.reject(step, &key, &version, Some(bytes), &invalid);
            Err(invalid)
        }
    }
}

/// Takes in what the server reports of resources that it does not send; the names it reports on.
pub(crate) fn take_errors(
    cache: &mut Cache,
    step: &mut Step<'_>,
    kind: ResourceType,
    errors: Vec<discovery::ResourceError>,
) -> HashSet<Arc<str>> {
    let mut named = HashSet::new();
    for error in errors {
        let name = error.resource_name.map(|name| name.name).unwrap_or_default();
        let status = error.error_detail.unwrap_or_default();
        // A report of no error, or on nothing that can be named, says nothing.
        if let Ok(name) = names::canonical(kind, &name)
            && status.code != 0
        {
            cache.error(step, &key(kind, &name), status.code, &status.message);
            named.insert(name);
        }
    }
    named
}

/// The error detail of a NACK; `None` where there is nothing wrong. Its size is bounded whatever was received.
pub(crate) fn error_detail(errors: &[String]) -> Option<Status> {
    if errors.is_empty() {
        return None;
    }
    let mut bytes = 0;
    let mut texts: Vec<String> = errors.iter().map(|error| shortened(error)).collect();
    let fits = texts.iter().position(|text| {
        bytes += text.len();
        bytes > MAX_ERRORS
    });
    if let Some(fits) = fits {
        texts.truncate(fits);
        texts.push(format!("and {} more", errors.len() - fits));
    }
    Some(Status { code: INVALID_ARGUMENT, message: texts.join("; "), details: Vec::new() })
}

fn shortened(text: &str) -> String {
    let mut rest = text.chars();
    let start: String = rest.by_ref().take(MAX_ERROR).collect();
    if rest.next().is_some() { start + "…" } else { start }
}

/// The node as it is told to every server, once a stream (rules 1, 10 and 12).
pub(crate) fn node(node: &Node) -> core::Node {
    let locality = &node.locality;
    core::Node {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        metadata: (!node.metadata.is_empty()).then(|| json_struct(&node.metadata)),
        locality: (*locality != crate::id::Locality::default()).then(|| core::Locality {
            region: locality.region.to_string(),
            zone: locality.zone.to_string(),
            sub_zone: locality.sub_zone.to_string(),
        }),
        user_agent_name: USER_AGENT.to_owned(),
        user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").to_owned(),
        )),
        client_features: vec![
            "envoy.lb.does_not_support_overprovisioning".to_owned(),
            "xds.config.resource-in-sotw".to_owned(),
        ],
        ..Default::default()
    }
}

fn json_struct(fields: &serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct { fields: fields.iter().map(|(key, value)| (key.clone(), json_value(value))).collect() }
}

fn json_value(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => Kind::StringValue(value.clone()),
        Json::Array(values) => {
            let values = values.iter().map(json_value).collect();
            Kind::ListValue(envoy_types::pb::google::protobuf::ListValue { values })
        }
        Json::Object(fields) => Kind::StructValue(json_struct(fields)),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nack_is_bounded_whatever_was_received() {
        assert_eq!(error_detail(&[]), None);
        let errors = vec!["ä".repeat(100_000); 100];
        let status = error_detail(&errors).unwrap();
        assert!(status.message.len() < 66_000 && status.message.ends_with("and 35 more"), "{}", status.message.len());
        let routes: Vec<String> = (0..100).map(|number| format!("resource route-{number}: broken")).collect();
        assert!(error_detail(&routes).unwrap().message.ends_with("; resource route-99: broken"));
    }

    #[test]
    fn client_rule_10_and_12_the_node_says_who_it_is_and_what_it_can_do() {
        let mut given = Node { id: "n".into(), cluster: "c".into(), ..Node::default() };
        given.metadata.insert("LABELS".into(), serde_json::json!({"app": ["a", 1, true, null]}));
        given.locality.zone = "z".into();
        let node = node(&given);
        assert_eq!((node.id.as_str(), node.user_agent_name.as_str()), ("n", "mesh-core"));
        assert!(node.user_agent_version_type.is_some());
        let features = ["envoy.lb.does_not_support_overprovisioning", "xds.config.resource-in-sotw"];
        assert_eq!(node.client_features, features);
        assert_eq!(node.locality.unwrap().zone, "z");
        let labels = &node.metadata.unwrap().fields["LABELS"];
        assert!(matches!(&labels.kind, Some(Kind::StructValue(labels)) if labels.fields.contains_key("app")));
    }
}
