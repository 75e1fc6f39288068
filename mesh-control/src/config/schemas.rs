//! The schemas of all kinds that are read: for editors, and, of the kinds that are our own, as CustomResourceDefinitions.

use serde_json::{Map, Value, json};

use super::decode::Decode;
use super::extensions::filter_schema::FilterSchema;
use super::extensions::overload::Overload;
use super::extensions::quota::Quota;
use super::extensions::rate_limit::RateLimit;
use super::extensions::request_rules::RequestRules;
use super::gateway_api::backend_tls_policy::BackendTlsPolicy;
use super::gateway_api::backend_traffic_policy::BackendTrafficPolicy;
use super::gateway_api::connection_route::{TcpRoute, TlsRoute};
use super::gateway_api::gateway::KubernetesGateway;
use super::gateway_api::grpc_route::GrpcRoute;
use super::gateway_api::http_route::HttpRoute;
use super::gateway_api::listener_set::ListenerSet;
use super::gateway_api::reference_grant::ReferenceGrant;
use super::istio::destination_rule::DestinationRule;
use super::istio::gateway::Gateway;
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
use super::schema::{Reader, Schema};
use super::support::ObjectKind;
use super::yaml::yaml;

/// What may stand under `spec` of a kind; of the settings of the mesh, in their file.
pub fn spec(kind: ObjectKind) -> Schema {
    match kind {
        ObjectKind::VirtualService => VirtualService::schema(),
        ObjectKind::DestinationRule => DestinationRule::schema(),
        ObjectKind::ServiceEntry => ServiceEntry::schema(),
        ObjectKind::WorkloadEntry => WorkloadEntry::schema(),
        ObjectKind::WorkloadGroup => WorkloadGroup::schema(),
        ObjectKind::Sidecar => Sidecar::schema(),
        ObjectKind::Gateway => Gateway::schema(),
        ObjectKind::Service => Service::schema(),
        ObjectKind::PeerAuthentication => PeerAuthentication::schema(),
        ObjectKind::RequestAuthentication => RequestAuthentication::schema(),
        ObjectKind::AuthorizationPolicy => AuthorizationPolicy::schema(),
        ObjectKind::MeshConfig => MeshConfig::schema(),
        ObjectKind::Telemetry => Telemetry::schema(),
        ObjectKind::HttpRoute => HttpRoute::schema(),
        ObjectKind::GrpcRoute => GrpcRoute::schema(),
        ObjectKind::ReferenceGrant => ReferenceGrant::schema(),
        ObjectKind::TlsRoute => TlsRoute::schema(),
        ObjectKind::TcpRoute => TcpRoute::schema(),
        ObjectKind::ListenerSet => ListenerSet::schema(),
        ObjectKind::BackendTlsPolicy => BackendTlsPolicy::schema(),
        ObjectKind::BackendTrafficPolicy => BackendTrafficPolicy::schema(),
        ObjectKind::KubernetesGateway => KubernetesGateway::schema(),
        ObjectKind::RateLimit => RateLimit::schema(),
        ObjectKind::Overload => Overload::schema(),
        ObjectKind::WasmPlugin => WasmPlugin::schema(),
        ObjectKind::RequestRules => RequestRules::schema(),
        ObjectKind::FilterSchema => FilterSchema::schema(),
        ObjectKind::Quota => Quota::schema(),
        ObjectKind::EnvoyFilter | ObjectKind::Secret | ObjectKind::ConfigMap | ObjectKind::Foreign(_) => Schema::Any,
    }
}

/// What documents of a kind say of their version; nothing of the settings of the mesh.
fn api_versions(kind: ObjectKind) -> Vec<String> {
    let group = kind.group();
    let versions = kind.versions().iter();
    versions.map(|version| if group.is_empty() { version.to_string() } else { format!("{group}/{version}") }).collect()
}

/// JSON Schema (2020-12) of one kind, as a document of it is written.
pub fn json_schema(kind: ObjectKind) -> Value {
    let mut schema = object(kind);
    if let Value::Object(schema) = &mut schema {
        schema.insert("$schema".to_owned(), json!(DIALECT));
        schema.insert("title".to_owned(), json!(kind.title()));
    }
    schema
}

/// JSON Schema of the kinds that stand in files, each found by what its documents say of themselves.
pub fn json_schema_of_all() -> Value {
    let kinds = || ObjectKind::ALL.into_iter().filter(|kind| !api_versions(*kind).is_empty());
    let rule = |kind: ObjectKind| {
        json!({
            "if": {"properties": {"kind": {"const": kind.name()}, "apiVersion": {"enum": api_versions(kind)}}, "required": ["kind", "apiVersion"]},
            "then": {"$ref": format!("#/$defs/{}", kind.title())},
        })
    };
    let definitions: Map<String, Value> = kinds().map(|kind| (kind.title().to_owned(), object(kind))).collect();
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

/// The CustomResourceDefinition of a kind of our own, as YAML; `None` for a kind that others define.
pub fn custom_resource(kind: ObjectKind) -> Option<String> {
    let version = kind.versions().first().filter(|_| ObjectKind::OWN.contains(&kind))?;
    let (singular, plural, group) = (kind.name().to_ascii_lowercase(), kind.plural(), kind.group());
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind.name(), "listKind": format!("{}List", kind.name()), "plural": plural, "singular": singular},
            "versions": [{
                "name": version,
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
    use std::path::Path;

    use super::*;
    use crate::config::diagnostic::{Code, Severity, Source};
    use crate::config::extensions::json_schema;
    use crate::config::file;
    use crate::config::node::{self, Key, Node, Value as Written};

    /// The schema of a kind as it is printed, read by those who check documents with it.
    fn printed(kind: ObjectKind) -> json_schema::Schema {
        let text = super::json_schema(kind).to_string();
        let documents = node::parse(&Source { name: "schema.json".into(), text: text.into() }).unwrap();
        json_schema::Schema::read(&documents[0]).unwrap_or_else(|fault| panic!("{kind:?}: {fault:?}"))
    }

    /// The objects of a directory, and of those below it.
    fn objects(dir: &Path, all: &mut Vec<(ObjectKind, Node)>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                objects(&path, all);
                continue;
            }
            let name = path.display().to_string();
            let source = Source { name: name.into(), text: std::fs::read_to_string(&path).unwrap().into() };
            let found = file::read(source.clone()).diagnostics;
            // What is not supported is written as it has to be all the same.
            let wrong = found.iter().find(|one| one.severity == Severity::Error && one.code != Code::NotSupportedYet);
            assert!(wrong.is_none(), "{}", wrong.map_or(String::new(), ToString::to_string));
            for document in node::parse(&source).unwrap() {
                let name = document.get("kind").and_then(Node::as_str).unwrap_or_default();
                let version = document.get("apiVersion").and_then(Node::as_str).unwrap_or_default();
                let kind = ObjectKind::ALL.into_iter().find(|kind| kind.is(version, name));
                all.extend(kind.map(|kind| (kind, document)));
            }
        }
    }

    /// An object whose `spec` has another field besides.
    fn with_more(object: &Node) -> Node {
        let mut object = object.clone();
        let Written::Map(entries) = &mut object.value else { panic!("an object") };
        let (key, spec) = entries.iter_mut().find(|(key, _)| key.name == "spec").expect("a spec");
        let other = (Key { name: "other".to_owned(), ..key.clone() }, spec.clone());
        let Written::Map(fields) = &mut spec.value else { panic!("fields") };
        fields.push(other);
        object
    }

    /// What is read without an error is no error in an editor either, and what is not read is one.
    #[test]
    fn the_schema_of_a_kind_that_is_printed_takes_every_field_of_it_and_no_other() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut all = Vec::new();
        objects(&root.join("testdata/everything"), &mut all);
        objects(&root.join("../examples/manifests"), &mut all);
        for kind in ObjectKind::ALL.into_iter().filter(|kind| *kind != ObjectKind::MeshConfig) {
            let schema = printed(kind);
            let mut count = 0;
            for (_, object) in all.iter().filter(|(of, _)| *of == kind) {
                let wrong = schema.faults(object);
                assert!(wrong.is_empty(), "{kind:?}: {wrong:?}");
                let unknown = schema.faults(&with_more(object));
                let [(path, (_, message))] = unknown.as_slice() else { panic!("{kind:?}: {unknown:?}") };
                assert!(path == "spec.other" && message.contains("unknown field"), "{path}: {message}");
                count += 1;
            }
            assert!(count > 0, "{kind:?}");
        }
    }

    /// The settings of the mesh stand in a file of their own, too.
    #[test]
    fn the_schema_of_the_settings_takes_every_field_of_them() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/everything/mesh-config.yaml");
        let parsed =
            |text: String| node::parse(&Source { name: "a.yaml".into(), text: text.into() }).unwrap().remove(0);
        let map = parsed(std::fs::read_to_string(path).unwrap());
        let text = map.get("data").and_then(|data| data.get("mesh")).and_then(Node::as_str).expect("settings");
        let schema = printed(ObjectKind::MeshConfig);
        assert_eq!(schema.faults(&parsed(text.to_owned())).len(), 0, "{:?}", schema.faults(&parsed(text.to_owned())));
        assert_eq!(schema.faults(&parsed(format!("{text}\nother: 1\n"))).len(), 1);
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
        ObjectKind::OWN.into_iter().for_each(|kind| look(&spec(kind), kind.name()));
        assert!(custom_resource(ObjectKind::VirtualService).is_none(), "that is Istio's");
    }
}
