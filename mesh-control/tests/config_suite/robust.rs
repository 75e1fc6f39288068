//! No text panics, and no text that is accepted makes anything that a gRPC client would reject.

use mesh_control::analysis::validate;
use mesh_control::config::Severity;
use mesh_control::plane::Plane;
use proptest::prelude::*;

use crate::grpc::check_everything;
use crate::support::{Seen, client, grpc_client, testdata};

fn fixture(folder: &str, file: &str) -> String {
    std::fs::read_to_string(testdata(folder).join(file)).unwrap()
}

/// Values that stand where others belong.
const ODD: [&str; 22] = [
    "null",
    "~",
    "-1",
    "0",
    "65536",
    "99999999999999999999999",
    "1e400",
    ".nan",
    "-.inf",
    "''",
    "[]",
    "{}",
    "[[]]",
    "'*'",
    "\"\\u0000\"",
    "'a b'",
    "yes",
    "0x1F",
    "1s",
    "'é'",
    "*policy",
    "!!binary aGk=",
];

#[derive(Clone, Debug)]
enum Edit {
    Remove(prop::sample::Index, u8),
    Insert(prop::sample::Index, String),
    Value(prop::sample::Index, prop::sample::Index),
    Repeat(prop::sample::Index),
    Drop(prop::sample::Index),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let index = || any::<prop::sample::Index>();
    let one = prop_oneof![
        1 => (index(), 1..20u8).prop_map(|(at, count)| Edit::Remove(at, count)),
        1 => (index(), "[ -~\\n]{1,6}").prop_map(|(at, text)| Edit::Insert(at, text)),
        6 => (index(), index()).prop_map(|(at, value)| Edit::Value(at, value)),
        1 => index().prop_map(Edit::Repeat),
        2 => index().prop_map(Edit::Drop),
    ];
    prop::collection::vec(one, 1..4)
}

fn edit(text: &str, edits: &[Edit]) -> String {
    let mut text = text.to_owned();
    for edit in edits {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if lines.is_empty() {
            break;
        }
        match edit {
            Edit::Remove(at, count) => {
                let mut chars: Vec<char> = text.chars().collect();
                let from = at.index(chars.len());
                chars.drain(from..(from + usize::from(*count)).min(chars.len()));
                text = chars.into_iter().collect();
                continue;
            }
            Edit::Insert(at, what) => {
                let mut chars: Vec<char> = text.chars().collect();
                let from = at.index(chars.len());
                chars.splice(from..from, what.chars());
                text = chars.into_iter().collect();
                continue;
            }
            Edit::Value(at, value) => {
                let line = &mut lines[at.index(text.lines().count())];
                if let Some((key, _)) = line.split_once(": ") {
                    *line = format!("{key}: {}", ODD[value.index(ODD.len())]);
                }
            }
            Edit::Repeat(at) => {
                let at = at.index(lines.len());
                let line = lines[at].clone();
                lines.insert(at, line);
            }
            Edit::Drop(at) => {
                let at = at.index(lines.len());
                lines.remove(at);
            }
        }
        text = lines.join("\n");
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_at_all_panics(text in "\\PC{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for text in [text, String::from_utf8_lossy(&bytes).into_owned()] {
            for finding in validate([("a.yaml", text.as_str())]) {
                prop_assert!(!finding.render().is_empty());
            }
        }
    }

    #[test]
    fn no_text_that_looks_like_yaml_panics(text in "([ \\-]{0,4}(apiVersion|kind|metadata|spec|http|&a|\\*a|<<)?[:,\\[\\]{}|>'\"#!&*? ]{0,3}[a-z0-9]{0,3}\n){0,12}") {
        let _ = validate([("a.yaml", text.as_str())]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_accepted_after_any_edit_is_still_good_for_grpc(edits in edits(), which in 0..4usize) {
        let files = ["virtual-service.yaml", "destination-rule.yaml", "services.yaml", "gateway-api.yaml"];
        let plane = Plane::empty();
        for (index, file) in files.iter().enumerate() {
            let text = fixture("everything", file);
            let text = if index == which { edit(&text, &edits) } else { text };
            if let Err(rejected) = plane.set_yaml(file, &text) {
                prop_assert!(rejected.diagnostics.iter().any(|finding| finding.severity == Severity::Error));
            }
        }
        for finding in plane.diagnostics() {
            prop_assert!(!finding.render().is_empty());
        }
        check_everything(&plane, &Seen::new(&plane, grpc_client("shop")));
        let seen = Seen::new(&plane, client("shop"));
        for service in plane.services() {
            for port in service.ports {
                let target = format!("{}:{}", service.host.replace('*', "sub"), port.number);
                if seen.get(mesh_control::catalog::Kind::Listener, &target).is_some() {
                    seen.routes_if_any_of(&target);
                }
            }
        }
    }
}

#[test]
fn a_hostile_file_is_refused_with_its_place_and_a_bounded_report() {
    let many_unknown: String = (0..50_000).map(|n| format!("  unknown{n}: 1\n")).collect();
    let wide = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec:\n{many_unknown}");
    let findings = validate([("wide.yaml", wide.as_str())]);
    assert!(findings.len() < 300, "{}", findings.len());
    assert!(findings.iter().any(|finding| finding.message.contains("more findings")));

    let long = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{{}: 1}}\n", "x".repeat(1000));
    for finding in validate([("long.yaml", long.as_str())]) {
        assert!(finding.to_string().len() < 1000, "{finding}");
    }
    let labels: String = (0..2_000).map(|n| format!("- {{uri: {{exact: /{n}}}}}\n")).collect();
    let long_list = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec:\n  hosts: [a.b]\n  http:\n  - redirect: {{uri: /}}\n    match:\n{}",
        labels.lines().map(|line| format!("    {line}\n")).collect::<String>()
    );
    let plane = Plane::from_yaml(&long_list).unwrap();
    assert_eq!(Seen::new(&plane, client("x")).routes_of("a.b:80").virtual_hosts[0].routes.len(), 2_000);
}
