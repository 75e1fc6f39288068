//! The tables of hazards (`docs/hazards.md`) and of SPIFFE's demands (`docs/spiffe.md`): no row is missing, every row has a
//! test or says why not, and every test exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rows that there are, by their letter.
const ROWS: [(char, std::ops::RangeInclusive<u32>); 5] =
    [('A', 1..=28), ('J', 1..=12), ('M', 1..=20), ('H', 1..=21), ('C', 1..=16)];

/// Those of other lists that are about secrets.
const SECRETS: [&str; 4] = ["X10", "X11", "X12", "X23"];

#[test]
fn every_hazard_has_its_tests_or_the_reason_why_not_and_every_test_exists() {
    let mut expected: BTreeSet<String> =
        ROWS.into_iter().flat_map(|(letter, numbers)| numbers.map(move |number| format!("{letter}{number}"))).collect();
    expected.extend(SECRETS.map(str::to_owned));
    assert_eq!(rows("docs/hazards.md"), expected);
}

#[test]
fn every_demand_of_spiffe_has_its_tests_or_the_reason_why_not_and_every_test_exists() {
    assert!(rows("docs/spiffe.md").len() > 20);
}

/// The rows of a table, each of which has tests that exist, or a reason.
fn rows(table: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(table)).expect("the table");
    let mut found = BTreeSet::new();
    for line in
        text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| row") && !line.starts_with("| -"))
    {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [row, what, tests] = cells[..] else { panic!("not three cells: {line}") };
        assert!(found.insert(row.to_owned()), "{row} is there twice");
        assert!(!what.is_empty() && !tests.is_empty(), "{line}");
        tests.split("<br>").for_each(|part| check(row, part));
    }
    found
}

/// A test that exists, or the reason why there is none.
fn check(row: &str, part: &str) {
    let Some(test) = part.strip_prefix('`').and_then(|part| part.strip_suffix('`')) else {
        let reason = ["open: ", "n/a: "].iter().find_map(|word| part.strip_prefix(word));
        let reason = reason.unwrap_or_else(|| panic!("{row}: neither test nor reason: {part}"));
        assert!(!reason.is_empty(), "{row}");
        return;
    };
    let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("{row}: no FILE::TEST: {test}"));
    let text = fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{row}: {file}: {error}"));
    assert!(is_test(&text, name), "{row}: there is no test {name} in {file}");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

/// Whether a file has a test of this name that is run: a method that one of `interop`'s programs hands to `check`, or a function with its attribute not far above or inside `proptest!`.
fn is_test(text: &str, name: &str) -> bool {
    if text.contains(&format!("def {name}(self")) {
        return [')', '('].iter().any(|behind| text.contains(&format!("self.{name}{behind}")));
    }
    let Some((before, _)) = text.split_once(&format!("fn {name}(")) else { return false };
    let above: Vec<&str> = before.lines().rev().take(6).collect();
    above.iter().any(|line| line.trim_start().starts_with("#[") && line.contains("test"))
        && !above.iter().any(|line| line.contains("#[ignore"))
}
