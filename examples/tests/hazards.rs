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

/// A test that exists, one that `.ci/nightly` runs, or the reason why there is nothing to test.
fn check(row: &str, part: &str) {
    if let Some(reason) = part.strip_prefix("n/a: ") {
        return assert!(!reason.is_empty(), "{row}");
    }
    let measured = part.strip_prefix("measured: ");
    let test = measured.unwrap_or(part).strip_prefix('`').and_then(|part| part.strip_suffix('`'));
    let test = test.unwrap_or_else(|| panic!("{row}: neither test nor reason: {part}"));
    let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("{row}: no FILE::TEST: {test}"));
    let text = fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{row}: {file}: {error}"));
    match measured {
        None => assert!(is_test(&text, name), "{row}: there is no test {name} in {file}"),
        Some(_) => {
            let nightly = fs::read_to_string(root().join(".ci/nightly")).expect("the script");
            let is_run = nightly.contains(&format!(" {name}\n")) || nightly.contains(&format!(" {name} &&"));
            assert!(
                text.contains(&format!("fn {name}(")) && is_run,
                "{row}: .ci/nightly does not run {name} of {file}"
            );
        }
    }
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
