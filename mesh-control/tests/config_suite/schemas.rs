//! `schemas/`: what `mesh-control schema` prints, checked in. `UPDATE_DOCS=1 cargo test -p mesh-control --test config_suite schemas`
//! writes it.

use mesh_control::config::schemas::{custom_resource, json_schema_of_all};
use mesh_control::config::support::ObjectKind;

use crate::resilience::assert_page;

#[test]
fn the_schemas_that_are_checked_in_are_those_of_what_is_read() {
    for kind in ObjectKind::OWN {
        let file = format!("schemas/{}.policy.mesh-control.yaml", kind.plural());
        assert_page(&file, &custom_resource(kind).unwrap(), "schemas");
    }
    let all = serde_json::to_string_pretty(&json_schema_of_all()).unwrap();
    assert_page("schemas/mesh.json", &format!("{all}\n"), "schemas");
}

/// What Kubernetes asks of a structural schema.
#[test]
fn the_schemas_for_kubernetes_are_structural() {
    fn look(schema: &serde_json::Value, path: &str) {
        let schema = schema.as_object().unwrap_or_else(|| panic!("{path}"));
        let is_open = schema.contains_key("x-kubernetes-preserve-unknown-fields")
            || schema.contains_key("x-kubernetes-int-or-string");
        let kind = schema.get("type").and_then(|kind| kind.as_str());
        assert!(is_open || kind.is_some(), "{path}: no type");
        for word in ["$ref", "definitions", "oneOf", "anyOf", "if", "patternProperties", "uniqueItems"] {
            assert!(!schema.contains_key(word), "{path}: {word}");
        }
        let (properties, others) = (schema.get("properties"), schema.get("additionalProperties"));
        assert!(properties.is_none() || others.is_none(), "{path}: both");
        assert!(others.is_none_or(|others| others.is_object()), "{path}: additionalProperties");
        assert!((kind == Some("array")) == schema.contains_key("items"), "{path}: items");
        for (name, schema) in properties.and_then(|all| all.as_object()).into_iter().flatten() {
            look(schema, &format!("{path}.{name}"));
        }
        schema.get("items").into_iter().chain(others).for_each(|below| look(below, path));
    }
    for kind in ObjectKind::OWN {
        let schema =
            mesh_control::config::schemas::spec(kind).to_json(mesh_control::config::schema::Reader::Kubernetes);
        look(&schema, kind.name());
    }
}
