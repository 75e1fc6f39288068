//! The schemas of all kinds that are read: for editors, and, of the kinds that are our own, as CustomResourceDefinitions.

use serde_json::{Map, Value, json};

use super::decode::Decode;
use super::extensions::filter_schema::FilterSchema;
use super::extensions::overload::Overload;
use super::extensions::quota::Quota;
use super::extensions::rate_limit::{POLICY_GROUP, RateLimit};
use super::extensions::request_rules::RequestRules;
use super::gateway_api::grpc_route::GrpcRoute;
use super::gateway_api::http_route::HttpRoute;
use super::gateway_api::reference_grant::ReferenceGrant;
use super::istio::destination_rule::DestinationRule;
use super::istio::mesh_config::MeshConfig;
use super::istio::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use super::istio::service::Service;
use super::istio::service_entry::ServiceEntry;
use super::istio::sidecar::Sidecar;
use super::istio::telemetry::Telemetry;
use super::istio::virtual_service::VirtualService;
use super::istio::wasm_plugin::WasmPlugin;
use super::istio::workload_entry::WorkloadEntry;
use super::istio::workload_group::WorkloadGroup;
use super::schema::{Reader, Schema, yaml};
use super::support::ObjectKind;

/// The version of the kinds that are our own.
const VERSION: &str = "v1alpha1";

/// The kinds that are our own.
pub const OWN: [ObjectKind; 5] = [
    ObjectKind::RateLimit,
    ObjectKind::Overload,
    ObjectKind::Quota,
    ObjectKind::RequestRules,
    ObjectKind::FilterSchema,
];

/// What may stand under `spec` of a kind; of the settings of the mesh, in their file.
pub fn spec(kind: ObjectKind) -> Schema {
    match kind {
        ObjectKind::VirtualService => VirtualService::schema(),
        ObjectKind::DestinationRule => DestinationRule::schema(),
        ObjectKind::ServiceEntry => ServiceEntry::schema(),
        ObjectKind::WorkloadEntry => WorkloadEntry::schema(),
        ObjectKind::WorkloadGroup => WorkloadGroup::schema(),
        ObjectKind::Sidecar => Sidecar::schema(),
        ObjectKind::Service => Service::schema(),
        ObjectKind::PeerAuthentication => PeerAuthentication::schema(),
        ObjectKind::RequestAuthentication => RequestAuthentication::schema(),
        ObjectKind::AuthorizationPolicy => AuthorizationPolicy::schema(),
        ObjectKind::MeshConfig => MeshConfig::schema(),
        ObjectKind::Telemetry => Telemetry::schema(),
        ObjectKind::HttpRoute => HttpRoute::schema(),
        ObjectKind::GrpcRoute => GrpcRoute::schema(),
        ObjectKind::ReferenceGrant => ReferenceGrant::schema(),
        ObjectKind::RateLimit => RateLimit::schema(),
        ObjectKind::Overload => Overload::schema(),
        ObjectKind::WasmPlugin => WasmPlugin::schema(),
        ObjectKind::RequestRules => RequestRules::schema(),
        ObjectKind::FilterSchema => FilterSchema::schema(),
        ObjectKind::Quota => Quota::schema(),
        ObjectKind::EnvoyFilter | ObjectKind::Foreign(_) => Schema::Any,
    }
}

/// The versions of a kind that are read; none for the settings of the mesh.
fn api_versions(kind: ObjectKind) -> Vec<String> {
    let (group, versions): (&str, &[&str]) = match kind {
        ObjectKind::VirtualService
        | ObjectKind::DestinationRule
        | ObjectKind::ServiceEntry
        | ObjectKind::WorkloadEntry
        | ObjectKind::WorkloadGroup
        | ObjectKind::Sidecar => ("networking.istio.io/", &["v1", "v1beta1", "v1alpha3"]),
        ObjectKind::PeerAuthentication | ObjectKind::RequestAuthentication | ObjectKind::AuthorizationPolicy => {
            ("security.istio.io/", &["v1", "v1beta1"])
        }
        ObjectKind::Telemetry => ("telemetry.istio.io/", &["v1", "v1alpha1"]),
        ObjectKind::HttpRoute | ObjectKind::ReferenceGrant => {
            ("gateway.networking.k8s.io/", &["v1", "v1beta1", "v1alpha2"])
        }
        ObjectKind::GrpcRoute => ("gateway.networking.k8s.io/", &["v1", "v1alpha2"]),
        ObjectKind::Service => ("", &["v1"]),
        ObjectKind::WasmPlugin => ("extensions.istio.io/", &["v1alpha1"]),
        ObjectKind::RateLimit
        | ObjectKind::Overload
        | ObjectKind::Quota
        | ObjectKind::RequestRules
        | ObjectKind::FilterSchema => return vec![format!("{POLICY_GROUP}/{VERSION}")],
        ObjectKind::MeshConfig | ObjectKind::EnvoyFilter | ObjectKind::Foreign(_) => return Vec::new(),
    };
    versions.iter().map(|version| format!("{group}{version}")).collect()
}

/// JSON Schema (2020-12) of one kind, as a document of it is written.
pub fn json_schema(kind: ObjectKind) -> Value {
    let mut schema = object(kind);
    if let Value::Object(schema) = &mut schema {
        schema.insert("$schema".to_owned(), json!(DIALECT));
        schema.insert("title".to_owned(), json!(kind.name()));
    }
    schema
}

/// JSON Schema of the kinds that stand in files, each found by what its documents say of themselves.
pub fn json_schema_of_all() -> Value {
    let kinds = || ObjectKind::ALL.into_iter().filter(|kind| !api_versions(*kind).is_empty());
    let rule = |kind: ObjectKind| {
        json!({
            "if": {"properties": {"kind": {"const": kind.name()}, "apiVersion": {"enum": api_versions(kind)}}, "required": ["kind", "apiVersion"]},
            "then": {"$ref": format!("#/$defs/{}", kind.name())},
        })
    };
    let definitions: Map<String, Value> = kinds().map(|kind| (kind.name().to_owned(), object(kind))).collect();
    json!({
        "$schema": DIALECT,
        "title": "What mesh-control reads",
        "type": "object",
        "required": ["apiVersion", "kind"],
        "allOf": kinds().map(rule).collect::<Vec<_>>(),
        "$defs": definitions,
    })
}

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

fn object(kind: ObjectKind) -> Value {
    let spec = spec(kind).to_json(Reader::Json);
    let versions = api_versions(kind);
    if versions.is_empty() {
        return spec;
    }
    let texts = json!({"type": "object", "additionalProperties": {"type": "string"}});
    json!({
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": false,
        "properties": {
            "apiVersion": {"enum": versions},
            "kind": {"const": kind.name()},
            "metadata": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "namespace": {"type": "string"},
                    "labels": texts,
                    "annotations": texts,
                },
            },
            "spec": spec,
            "status": {},
        },
    })
}

/// What many objects of a kind of our own are called in a path of Kubernetes.
pub fn plural(kind: ObjectKind) -> String {
    let singular = kind.name().to_ascii_lowercase();
    if singular.ends_with('s') { singular } else { format!("{singular}s") }
}

/// The CustomResourceDefinition of a kind of our own, as YAML; `None` for a kind that others define.
pub fn custom_resource(kind: ObjectKind) -> Option<String> {
    if !OWN.contains(&kind) {
        return None;
    }
    let (singular, plural) = (kind.name().to_ascii_lowercase(), plural(kind));
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{POLICY_GROUP}")},
        "spec": {
            "group": POLICY_GROUP,
            "scope": "Namespaced",
            "names": {"kind": kind.name(), "listKind": format!("{}List", kind.name()), "plural": plural, "singular": singular},
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": {"type": "string"},
                        "kind": {"type": "string"},
                        "metadata": {"type": "object"},
                        "spec": spec(kind).to_json(Reader::Kubernetes),
                        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    },
                }},
            }],
        },
    });
    Some(yaml(&definition))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diagnostic::Source;
    use crate::config::file;
    use crate::config::node::{self, Node, Value as Written};

    /// Why a node is not what a schema wants.
    fn refused(schema: &Schema, node: &Node, path: &str) -> Option<String> {
        let wrong = |is_right: bool| (!is_right).then(|| format!("{path}: {schema:?}"));
        match (schema, &node.value) {
            (_, Written::Null) | (Schema::Any, _) => None,
            (Schema::Boolean, value) => wrong(matches!(value, Written::Bool(_))),
            (Schema::Number, value) => wrong(matches!(value, Written::Int(_) | Written::Float(_))),
            (Schema::Integer(least, most), Written::Int(value)) => {
                wrong((*least..=*most).contains(&i128::from(*value)))
            }
            (Schema::Text, value) => wrong(matches!(value, Written::Str(_))),
            (Schema::Like(pattern), Written::Str(text)) => wrong(regex::Regex::new(pattern).unwrap().is_match(text)),
            (Schema::Words(words), Written::Str(text)) => wrong(words.contains(&text.as_str())),
            (Schema::IntegerOrText, value) => wrong(matches!(value, Written::Int(_) | Written::Str(_))),
            (Schema::List(items), Written::Seq(list)) => list.iter().find_map(|item| refused(items, item, path)),
            (Schema::Named(values), Written::Map(entries)) => {
                entries.iter().find_map(|(key, value)| refused(values, value, &format!("{path}.{}", key.name)))
            }
            (Schema::Object(fields), Written::Map(entries)) => {
                let unknown =
                    entries.iter().find_map(|(key, value)| match fields.iter().find(|field| field.name == key.name) {
                        Some(field) => refused(&field.schema, value, &format!("{path}.{}", key.name)),
                        None => Some(format!("{path}.{}: unknown", key.name)),
                    });
                let is_there = |name: &str| entries.iter().any(|(key, _)| key.name == name);
                let missing = fields.iter().find(|field| field.is_required && !is_there(field.name));
                unknown.or_else(|| missing.map(|field| format!("{path}.{}: missing", field.name)))
            }
            _ => wrong(false),
        }
    }

    fn everything() -> Vec<(ObjectKind, Node)> {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/everything");
        let mut all = Vec::new();
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let source = Source { name: name.into(), text: std::fs::read_to_string(&path).unwrap().into() };
            for document in node::parse(&source).unwrap() {
                let name = document.get("kind").and_then(Node::as_str).unwrap_or_default();
                let kind = ObjectKind::ALL.into_iter().find(|kind| kind.name() == name);
                all.extend(kind.map(|kind| (kind, document.get("spec").cloned().expect("a spec"))));
            }
        }
        all
    }

    #[test]
    fn the_schema_of_a_kind_takes_every_field_of_it_and_no_other() {
        let all = everything();
        for kind in ObjectKind::ALL.into_iter().filter(|kind| *kind != ObjectKind::MeshConfig) {
            let schema = spec(kind);
            let written: Vec<&Node> = all.iter().filter(|(of, _)| *of == kind).map(|(_, node)| node).collect();
            assert!(!written.is_empty(), "{kind:?}");
            for node in written {
                assert_eq!(refused(&schema, node, kind.name()), None);
                let Written::Map(mut entries) = node.value.clone() else { panic!("{kind:?}") };
                let Some((mut key, value)) = entries.pop() else { panic!("{kind:?}") };
                key.name.push('x');
                entries.push((key, value));
                let other = Node { value: Written::Map(entries), span: node.span };
                assert!(refused(&schema, &other, "").is_some(), "{kind:?}");
            }
        }
    }

    #[test]
    fn kinds_have_the_versions_that_are_read() {
        for kind in ObjectKind::ALL {
            for version in api_versions(kind) {
                let text = format!("apiVersion: {version}\nkind: {}\nmetadata: {{name: a}}\nspec: []\n", kind.name());
                let found = file::read(Source { name: "a.yaml".into(), text: text.into() }).diagnostics;
                assert!(found.iter().all(|one| !one.message.contains("version")), "{version} {kind:?}: {found:?}");
                assert!(
                    found.iter().any(|one| one.message.contains("expected a mapping")),
                    "{version} {kind:?}: {found:?}"
                );
            }
        }
    }

    /// Whatever is written is checked, and told what it is.
    #[test]
    fn every_field_of_our_own_kinds_has_a_type_and_words() {
        fn look(schema: &Schema, path: &str) {
            match schema {
                Schema::Any => assert_eq!(path, "FilterSchema.schema", "it may be anything"),
                Schema::List(items) | Schema::Named(items) => look(items, path),
                Schema::Object(fields) => {
                    for field in fields {
                        assert!(field.about.len() > 3, "{path}.{} is not told of", field.name);
                        look(&field.schema, &format!("{path}.{}", field.name));
                    }
                }
                _ => {}
            }
        }
        OWN.into_iter().for_each(|kind| look(&spec(kind), kind.name()));
        assert!(custom_resource(ObjectKind::VirtualService).is_none(), "that is Istio's");
    }
}
