//! Keeps `docs/xds-client-rules.md` and the tests that it names in step.
#![cfg(feature = "testing")]

use std::collections::BTreeSet;
use std::path::Path;

const TABLE: &str = include_str!("../../../docs/xds-client-rules.md");

#[test]
fn every_rule_has_a_test_and_every_test_is_in_the_table() {
    let mut in_sources = BTreeSet::new();
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["src/xds", "tests"] {
        collect(&crate_root.join(folder), &mut in_sources);
    }
    let mut in_table = BTreeSet::new();
    let mut rules = BTreeSet::new();
    for row in TABLE.lines().filter(|row| row.starts_with("| ")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let Ok(rule) = cells[1].parse::<u32>() else { continue };
        rules.insert(rule);
        let tests: Vec<String> =
            cells[3].split('`').filter(|part| part.starts_with("client_rule_")).map(str::to_owned).collect();
        assert!(!tests.is_empty(), "rule {rule} has no test");
        for test in &tests {
            let numbers = test.trim_start_matches("client_rule_").split('_').map_while(|part| match part {
                "and" => Some(None),
                part => part.parse::<u32>().ok().map(Some),
            });
            assert!(numbers.flatten().any(|number| number == rule), "{test} is no test of rule {rule}");
        }
        in_table.extend(tests);
    }
    let expected: BTreeSet<u32> = (1..=36).chain(39..=42).chain([44]).collect();
    assert_eq!(rules, expected);
    assert_eq!(in_table, in_sources);
}

/// The names of all tests in a folder that are named after a rule.
fn collect(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            collect(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a readable source");
            let functions = text.lines().filter_map(|line| line.trim().split_once("fn client_rule_"));
            names.extend(functions.filter_map(|(_, rest)| Some(format!("client_rule_{}", rest.split_once('(')?.0))));
        }
    }
}
