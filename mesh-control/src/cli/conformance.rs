//! `mesh-control conformance`: how the cases of Gateway API's profiles are checked here.

use serde_json::json;

use super::status::section;
use super::{Format, Printing};
use crate::conformance::{CASES, Case, Check};

/// Where the tests are.
const TESTS: &str = "mesh-control/tests/requests/gateway_api/conformance.rs";
/// What this is not.
const CLAIM: &str =
    "The official suite of Gateway API was not run: this is no conformance report of it, and claims nothing official.";

/// Says how far Gateway API is kept to.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Lists each case of Gateway API's profiles MESH-HTTP and MESH-GRPC with the test of this project's own that checks it, or
    /// why none does. The official suite was not run.
    Report(Report),
}

#[derive(Clone, Debug, clap::Args)]
struct Report {
    #[command(flatten)]
    printing: Printing,
}

pub(super) fn run(args: &Args) -> std::io::Result<()> {
    let Command::Report(report) = &args.command;
    super::say(&match report.printing.format() {
        Format::Text => text(),
        Format::Json => format!("{:#}\n", json()),
    })
}

fn text() -> String {
    let mut rows = vec![["CASE", "PROFILE", "CHECKED BY"].map(str::to_owned)];
    rows.extend(CASES.iter().map(|case| {
        let check = match case.check {
            Check::Test(test) => test.to_owned(),
            Check::None(why) => format!("nothing: {why}"),
        };
        [case.name.to_owned(), case.profile().to_owned(), check]
    }));
    let mut out = format!("{CLAIM}\nThe tests are in {TESTS}, over sockets.\n");
    section(rows, &mut out);
    out
}

fn json() -> serde_json::Value {
    let of_profile = |profile: &str| -> Vec<_> {
        let cases = CASES.iter().filter(|case| case.profile() == profile);
        let case = |case: &Case| match case.check {
            Check::Test(test) => json!({"name": case.name, "test": test}),
            Check::None(why) => json!({"name": case.name, "unchecked": why}),
        };
        cases.map(case).collect()
    };
    let profiles = ["MESH-HTTP", "MESH-GRPC"].map(|name| json!({"name": name, "cases": of_profile(name)}));
    json!({"official": false, "note": CLAIM, "tests": TESTS, "profiles": profiles})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_printed_and_nothing_official_is_claimed() {
        let (text, json) = (text(), json());
        assert!(text.starts_with(CLAIM) && json["official"] == false && json.get("kind").is_none());
        let profiles = json["profiles"].as_array().expect("profiles");
        let cases: usize = profiles.iter().map(|profile| profile["cases"].as_array().map_or(0, Vec::len)).sum();
        assert_eq!(cases, CASES.len());
        assert!(
            CASES.iter().all(|case| text.lines().any(|line| line.starts_with(&format!("{} ", case.name)))),
            "{text}"
        );
        assert!(text.contains("MESH-HTTP  nothing: clients of a library"), "{text}");
    }
}
