//! The table of Telemetry's fields in `docs/telemetry.md`, made of the table of support;
//! `UPDATE_DOCS=1 cargo test -p mesh-control --test config_suite telemetry_page` writes it.

use std::fmt::Write as _;

use mesh_control::config::Source;
use mesh_control::config::node::{self, Node};
use mesh_control::config::support::{ObjectKind, Support, row};

use crate::resilience::{assert_page, root};
use crate::support::testdata;

const DOCUMENT: &str = "docs/telemetry.md";
/// What stands before the table, and behind it.
const EDGES: [&str; 2] = ["<!-- Telemetry's fields: made by a test -->\n", "<!-- the end of Telemetry's fields -->\n"];

/// What is said of the values of which something is said.
fn said(judge: fn(&Node) -> Option<String>) -> String {
    let values = ["false", "true", "Gateway", "{line: {formatter: {}}}"];
    let said = values.iter().find_map(|value| {
        let source = Source { name: "sample".into(), text: (*value).into() };
        let said = judge(node::parse(&source).unwrap().first()?)?;
        Some(format!("`{value}` is reported: {said}"))
    });
    said.expect("one of the values is reported")
}

fn table() -> String {
    let mut table = "\n| field | this library | gRPC's own clients and servers |\n| --- | --- | --- |\n".to_owned();
    let text = std::fs::read_to_string(testdata("fields").join("Telemetry.txt")).unwrap();
    for field in text.lines().filter(|line| !line.starts_with('#')) {
        let row = row(ObjectKind::Telemetry, field).unwrap();
        let cell = |support: &Support, of_library: bool| match support {
            Support::Enforced => "honoured".to_owned(),
            Support::NotYet(instead) if of_library => format!("reported: {instead}"),
            Support::NotYet(instead) => (*instead).to_owned(),
            Support::Partly(judge) => format!("honoured; {}", said(*judge)),
            _ => "noted: nothing hangs on it".to_owned(),
        };
        _ = writeln!(table, "| `{field}` | {} | {} |", cell(&row.library, true), cell(&row.grpc, false));
    }
    table + "\n"
}

#[test]
fn the_document_has_every_field_of_telemetry_and_says_what_becomes_of_it() {
    let document = std::fs::read_to_string(root().join(DOCUMENT)).unwrap();
    let (before, rest) = document.split_once(EDGES[0]).expect("the mark before the table");
    let (_, after) = rest.split_once(EDGES[1]).expect("the mark behind the table");
    let page = format!("{before}{}{}{}{after}", EDGES[0], table(), EDGES[1]);
    assert_page(DOCUMENT, &page, "telemetry_page");
}
