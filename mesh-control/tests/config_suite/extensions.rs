//! Annotations of our own, as `docs/extensions.md` has them.

use mesh_control::analysis::validate;
use mesh_control::config::extensions::KEYS;
use mesh_control::config::support::ObjectKind;

fn document() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/extensions.md")).unwrap()
}

/// What is said of an object of this kind with this annotation, and of nothing else.
fn said(kind: ObjectKind, annotation: &str) -> Vec<String> {
    let (version, spec) = match kind {
        ObjectKind::VirtualService => {
            ("networking.istio.io/v1", "{hosts: [a.com], http: [{directResponse: {status: 200}}]}")
        }
        ObjectKind::DestinationRule => ("networking.istio.io/v1", "{host: a.com}"),
        ObjectKind::Service => ("v1", "{ports: [{port: 80}]}"),
        other => panic!("{other:?} has no example here"),
    };
    let text = format!(
        "apiVersion: {version}\nkind: {}\nmetadata:\n  name: x\n  annotations:\n    {annotation}\nspec: {spec}\n",
        kind.name()
    );
    let found = validate([("t.yaml", text.as_str())]);
    found.iter().map(ToString::to_string).filter(|line| line.contains("annotations")).collect()
}

/// An annotation, in a document by itself: what its objects refer to is not there.
fn is_wrong(line: &str) -> bool {
    line.contains("error[") && line.contains("annotations")
}

#[test]
fn every_annotation_has_a_section_with_an_example_that_is_right() {
    let document = document();
    for (key, kinds) in KEYS {
        let heading = format!("\n## `{key}`");
        let section = document.split_once(&heading).unwrap_or_else(|| panic!("no section {key}")).1;
        let section = section.split("\n## ").next().unwrap();
        let examples: Vec<&str> =
            section.split("```yaml\n").skip(1).map(|part| part.split("```").next().unwrap()).collect();
        assert!(examples.iter().any(|example| example.contains(key)), "{key} has no example");
        for example in examples {
            let found = validate([("example.yaml", example)]);
            let found: Vec<_> = found.iter().map(ToString::to_string).filter(|line| is_wrong(line)).collect();
            assert!(found.is_empty(), "{key}: {found:?}");
            assert!(kinds.iter().any(|kind| example.contains(&format!("kind: {}\n", kind.name()))), "{key}: {kinds:?}");
        }
        assert!(document.contains(&format!("\n| `{key}` |")), "{key} has no row in the table");
    }
}

#[test]
fn a_mistyped_annotation_is_an_error_that_names_the_nearest_one_and_its_object_is_wrong() {
    use ObjectKind::{DestinationRule, Service, VirtualService};
    for (kind, annotation, expected) in [
        (
            VirtualService,
            "mesh-control/sticky-splt: header=x",
            "t.yaml:6:5: error[unknown-field]: VirtualService default/x: metadata.annotations.mesh-control/sticky-splt: \
             unknown annotation; did you mean `mesh-control/sticky-split`?",
        ),
        (
            VirtualService,
            "mesh-control/sticky-split: heder=x",
            "t.yaml:6:32: error[invalid-value]: VirtualService default/x: metadata.annotations.mesh-control/sticky-split: \
             `heder` is not known; did you mean `header`?",
        ),
        (
            DestinationRule,
            "mesh-control/sticky-split: header=x",
            "t.yaml:6:5: error[unknown-field]: DestinationRule default/x: metadata.annotations.mesh-control/sticky-split: \
             belongs to a VirtualService",
        ),
        (
            Service,
            "mesh-control/sticky-split: 7",
            "t.yaml:6:32: error[wrong-type]: Service default/x: metadata.annotations[mesh-control/sticky-split]: expected a \
             string, found a number; quote it",
        ),
    ] {
        assert_eq!(said(kind, annotation), [expected], "{annotation}");
    }
    let found = said(Service, "mesh-control/colour: blue");
    assert!(
        found.len() == 1 && found[0].contains("error[unknown-field]") && found[0].contains("none for a Service"),
        "{found:?}"
    );
    assert!(said(VirtualService, "example.com/sticky-splt: x").is_empty(), "of others, everything passes");
}
