//! Annotations of our own, as `docs/extensions.md` has them.

use mesh_control::analysis::{Mesh, validate, validate_scan};
use mesh_control::config::extensions::KEYS;
use mesh_control::config::load::Scan;
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

/// What is said of a rule for `a.com` with this annotation and these destinations, under these other objects.
fn said_of_split(destinations: &str, others: &str) -> Vec<String> {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: x\n  annotations:\n    \
         mesh-control/sticky-split: header=x-user\nspec: {{hosts: [a.com], http: [{{route: [{destinations}]}}]}}\n---\n{others}"
    );
    let found = validate([("t.yaml", text.as_str())]);
    found.iter().map(ToString::to_string).filter(|line| line.contains("sticky-split")).collect()
}

#[test]
fn a_sticky_split_without_effect_is_told() {
    let two = "{destination: {host: a.com, port: {number: 1}}, weight: 1}, {destination: {host: a.com, port: {number: 2}}, weight: 1}";
    assert_eq!(
        said_of_split("{destination: {host: a.com}}", ""),
        [
            "t.yaml:6:5: warning[ignored]: VirtualService default/x: metadata.annotations.mesh-control/sticky-split: without \
          effect: no rule has several destinations"
        ]
    );
    let hashed_by = |header: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d}}\nspec: {{host: a.com, \
             trafficPolicy: {{loadBalancer: {{consistentHash: {{httpHeaderName: {header}}}}}}}}}\n"
        )
    };
    assert_eq!(said_of_split(two, &hashed_by("x-user")), [""; 0]);
    let found = said_of_split(two, &hashed_by("x-session"));
    assert!(found.len() == 1 && found[0].contains("has a `consistentHash` by something else"), "{found:?}");
}

/// What is said of a text of this mesh, which has gRPC clients.
fn said_for_grpc(text: &str) -> Vec<String> {
    let mut scan = Scan::default();
    scan.files.insert("t.yaml".into(), Ok(text.into()));
    let found = validate_scan(scan, Mesh { has_grpc: true, ..Mesh::default() }).diagnostics;
    found.iter().map(ToString::to_string).filter(|line| line.contains("mesh-control/")).collect()
}

const SERVICE: &str = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a}
spec:
  hosts: [a.com]
  resolution: STATIC
  ports: [{number: 80, name: grpc, protocol: GRPC}]
  endpoints: [{address: 10.0.0.1}]
";

#[test]
fn grpc_clients_are_told_that_their_calls_are_split_by_chance() {
    let text = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: x
  annotations:
    mesh-control/sticky-split: header=x-user
spec:
  hosts: [a.com]
  http:
  - route:
    - {destination: {host: a.com, port: {number: 80}}, weight: 1}
    - {destination: {host: b.com, port: {number: 80}}, weight: 1}
";
    assert_eq!(
        said_for_grpc(&format!("{text}{SERVICE}")),
        [
            "t.yaml:10:5: warning[degraded]: VirtualService default/x: http[0].route: a gRPC client cannot do this: calls are \
          split by chance, whoever makes them (mesh-control/sticky-split)"
        ]
    );
}
