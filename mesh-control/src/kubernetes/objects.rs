//! Objects of a cluster as texts that the reader of files takes: what a person wrote, and not what the cluster adds.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::kinds::Resource;
use super::known::Name;
use crate::config::diagnostic::RESOURCE;

/// What is read of an object's `metadata`. The rest is the cluster's, and changes when nothing does.
const METADATA: [&str; 5] = ["name", "namespace", "labels", "annotations", "creationTimestamp"];
/// A copy of the object inside of it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The name of the text of an object.
pub(crate) fn text_name(resource: &Resource, (namespace, name): &Name) -> Arc<str> {
    // Of a kind whose name another one has, its own title.
    let kind = if resource.title == resource.kind { resource.plural } else { resource.title };
    format!("{RESOURCE}/{kind}/{namespace}/{name}").into()
}

/// Its text.
pub(crate) fn text(resource: &Resource, version: &str, object: &Value) -> Arc<str> {
    let group = if resource.group.is_empty() { String::new() } else { format!("{}/", resource.group) };
    let mut metadata = Map::new();
    for key in METADATA {
        if let Some(value) = object.get("metadata").and_then(|metadata| metadata.get(key)) {
            metadata.insert(key.to_owned(), value.clone());
        }
    }
    if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
        annotations.remove(LAST_APPLIED);
    }
    // Objects of a list need not say what they are.
    let mut text = json!({"apiVersion": format!("{group}{version}"), "kind": resource.kind, "metadata": metadata});
    for key in ["spec", "data"] {
        if let (Some(value), Some(text)) = (object.get(key), text.as_object_mut()) {
            text.insert(key.to_owned(), value.clone());
        }
    }
    text.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::super::kinds::RESOURCES;
    use super::*;
    use crate::config::{Source, file};

    #[test]
    fn objects_of_two_kinds_are_two_texts_whatever_they_are_called() {
        let name: Name = ("shop".into(), "web".into());
        let names = RESOURCES.iter().map(|resource| text_name(resource, &name));
        assert_eq!(names.collect::<std::collections::BTreeSet<_>>().len(), RESOURCES.len());
    }

    #[test]
    fn what_the_cluster_adds_changes_nothing() {
        let resource = RESOURCES.iter().find(|one| one.kind == "Service").expect("a kind");
        let object = |version: &str, seen: &str| {
            json!({
                "metadata": {
                    "name": "a", "namespace": "b", "generateName": "a-", "resourceVersion": version, "uid": "u",
                    "annotations": {LAST_APPLIED: seen, "x": "\u{7f}\u{85} 'y'"}, "managedFields": [{"manager": seen}],
                },
                "spec": {"ports": [{"port": 80}], "clusterIP": "10.0.0.1", "selector": {"app": "yes"}},
                "status": {"loadBalancer": {"seen": seen}},
            })
        };
        let one = text(resource, "v1", &object("1", "once"));
        assert_eq!(one, text(resource, "v1", &object("2", "twice")));
        let name = text_name(resource, &("b".into(), "a".into()));
        assert_eq!(&*name, "kubernetes://services/b/a");
        let file = file::read(Source { name, text: one });
        assert!(!file.rejected && file.diagnostics.is_empty(), "{:?}", file.diagnostics);
        let meta = file.items[0].meta();
        assert_eq!((&*meta.namespace, &*meta.name, meta.annotations["x"].as_str()), ("b", "a", "\u{7f}\u{85} 'y'"));
        assert_eq!(meta.origin.to_string(), "kubernetes://services/b/a");
    }

    #[test]
    fn a_finding_is_at_the_object() {
        let resource = RESOURCES.iter().find(|one| one.kind == "VirtualService").expect("a kind");
        let object = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"hosts": ["x"], "htpp": []}});
        let name = text_name(resource, &("b".into(), "a".into()));
        let file = file::read(Source { name, text: text(resource, "v1", &object) });
        let found: Vec<String> = file.diagnostics.iter().map(ToString::to_string).collect();
        let expected = "kubernetes://virtualservices/b/a: error[unknown-field]: VirtualService b/a: htpp: unknown field; \
                        did you mean `http`?";
        assert_eq!(found[0], expected);
        assert_eq!(file.diagnostics[0].render(), expected);
    }
}
