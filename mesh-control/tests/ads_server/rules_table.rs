//! The table in `docs/xds-server-rules.md` and the tests say the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// The names of all tests of rules, as `(rule, rest of the name)`.
fn tests() -> BTreeSet<(u32, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src/serve"), &mut files);
    sources(&root.join("tests/ads_server"), &mut files);
    let texts = files.iter().map(|path| fs::read_to_string(path).unwrap());
    let names = texts.flat_map(|text| {
        let lines = text.lines().filter_map(|line| line.split("fn server_rule_").nth(1)?.split_once('('));
        lines.map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
    });
    let split = names.filter_map(|name| {
        let (rule, rest) = name.split_once('_')?;
        Some((rule.parse().ok()?, rest.to_owned()))
    });
    split.collect()
}

/// The same from the table: the quoted words of each row's last cell that can be a test's name.
fn table() -> BTreeSet<(u32, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/xds-server-rules.md");
    let text = fs::read_to_string(path).unwrap();
    let mut table = BTreeSet::new();
    for row in text.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let (Some(Ok(rule)), Some(names)) = (cells.get(1).map(|cell| cell.parse()), cells.get(3)) else {
            continue;
        };
        let names = names.split('`').skip(1).step_by(2).filter(|name| !name.starts_with("streams_"));
        table.extend(names.map(|name| (rule, name.to_owned())));
    }
    table
}

#[test]
fn every_rule_has_a_test_and_the_table_lists_exactly_the_tests_there_are() {
    let (tests, table) = (tests(), table());
    assert_eq!(tests, table);
    let rules: BTreeSet<u32> = tests.iter().map(|(rule, _)| *rule).collect();
    assert_eq!(rules, (1..=21).collect());
}
