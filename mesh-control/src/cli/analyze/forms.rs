//! The forms in which findings are told.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::analysis::istio;
use crate::config::{Diagnostic, Severity};

fn message(finding: &Diagnostic) -> String {
    match &finding.field {
        Some(field) => format!("{field}: {}", finding.message),
        None => finding.message.clone(),
    }
}

/// A line each, as `istioctl analyze` has them, and how many there are.
pub(super) fn text(found: &[Diagnostic]) -> String {
    let mut out = String::new();
    for finding in found {
        let severity = match finding.severity {
            Severity::Error => "Error",
            Severity::Warning => "Warning",
            Severity::Info => "Info",
        };
        let place = match (finding.file.is_empty(), finding.line) {
            (true, _) => String::new(),
            (false, 0) => finding.file.to_string(),
            (false, line) => format!("{}:{line}", finding.file),
        };
        let about: Vec<&str> = finding.object.as_deref().into_iter().chain([place.as_str()]).collect();
        let fixable = if finding.fix().is_some() { " (--fix)" } else { "" };
        let about = about.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ");
        out += &format!("{severity} [{}] ({about}) {}{fixable}\n", finding.known_as(), message(finding));
    }
    let count = |severity: Severity| found.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings, notes) = (count(Severity::Error), count(Severity::Warning), count(Severity::Info));
    out + &format!("{errors} errors, {warnings} warnings, {notes} notes\n")
}

/// An object a line.
pub(super) fn json(found: &[Diagnostic]) -> String {
    let line = |finding: &Diagnostic| {
        let value = json!({
            "code": finding.known_as(),
            "kind": finding.code.as_str(),
            "severity": finding.severity.as_str(),
            "resource": finding.object,
            "field": finding.field,
            "file": &*finding.file,
            "line": finding.line,
            "column": finding.column,
            "message": finding.message,
            "fixable": finding.fix().is_some(),
        });
        format!("{value}\n")
    };
    found.iter().map(line).collect()
}

/// One run of a tool, by SARIF 2.1.0.
pub(super) fn sarif(found: &[Diagnostic]) -> String {
    let rules: BTreeMap<&str, Value> = found
        .iter()
        .map(|finding| {
            let id = finding.known_as();
            (id, json!({"id": id, "name": istio::name(id).unwrap_or(id)}))
        })
        .collect();
    let result = |finding: &Diagnostic| {
        let level = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "note",
        };
        let about = finding.object.as_deref().map(|object| format!("{object}: ")).unwrap_or_default();
        let mut result = json!({
            "ruleId": finding.known_as(),
            "level": level,
            "message": {"text": format!("{about}{}", message(finding))},
        });
        if !finding.file.is_empty() {
            let mut place = json!({"artifactLocation": {"uri": uri(&finding.file)}});
            if finding.line > 0 {
                place["region"] = json!({"startLine": finding.line, "startColumn": finding.column.max(1)});
            }
            result["locations"] = json!([{"physicalLocation": place}]);
        }
        result
    };
    let run = json!({
        "tool": {"driver": {
            "name": "mesh-control",
            "version": env!("CARGO_PKG_VERSION"),
            "rules": rules.into_values().collect::<Vec<_>>(),
        }},
        "columnKind": "unicodeCodePoints",
        "results": found.iter().map(result).collect::<Vec<_>>(),
    });
    let log = json!({"version": "2.1.0", "$schema": "https://json.schemastore.org/sarif-2.1.0.json", "runs": [run]});
    format!("{log:#}\n")
}

/// The name of a file as a URI is written.
fn uri(file: &str) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(byte);
    file.bytes()
        .map(|byte| if is_plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// A workflow command each.
pub(super) fn github(found: &[Diagnostic]) -> String {
    let line = |finding: &Diagnostic| {
        let level = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "notice",
        };
        let mut about = Vec::new();
        if !finding.file.is_empty() {
            about.push(format!("file={}", property(&finding.file)));
        }
        if finding.line > 0 {
            about.push(format!("line={},col={}", finding.line, finding.column.max(1)));
        }
        let title = finding.object.as_deref().map_or(String::new(), |object| format!(" {object}"));
        about.push(format!("title={}", property(&format!("{}{title}", finding.known_as()))));
        format!("::{level} {}::{}\n", about.join(","), data(&message(finding)))
    };
    found.iter().map(line).collect()
}

fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Code, Origin, Source, Span};

    fn found() -> Vec<Diagnostic> {
        let origin = Origin {
            source: Source { name: "a b/x,y.yaml".into(), text: "hosst: web\n".into() },
            span: Span { line: 1, column: 1, start: 0, end: 5 },
        };
        let wrong = Diagnostic::at(&origin, Severity::Error, Code::UnknownField, "50% unknown\nfield");
        let other = Diagnostic::of_file("", Severity::Warning, Code::Vanished, "gone");
        vec![wrong.instead("hosts").object("VirtualService shop/web").field("hosst"), other]
    }

    #[test]
    fn people_read_a_line_each() {
        assert_eq!(
            text(&found()),
            "Error [IST0106] (VirtualService shop/web a b/x,y.yaml:1) hosst: 50% unknown\nfield (--fix)\n\
             Warning [vanished] () gone\n1 errors, 1 warnings, 0 notes\n"
        );
    }

    #[test]
    fn programs_read_objects() {
        let lines = json(&found());
        let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        assert_eq!(
            first,
            json!({
                "code": "IST0106", "kind": "unknown-field", "severity": "error", "resource": "VirtualService shop/web",
                "field": "hosst", "file": "a b/x,y.yaml", "line": 1, "column": 1, "message": "50% unknown\nfield",
                "fixable": true,
            })
        );
    }

    #[test]
    fn github_reads_commands_in_which_nothing_ends_early() {
        assert_eq!(
            github(&found()),
            "::error file=a b/x%2Cy.yaml,line=1,col=1,title=IST0106 VirtualService shop/web::hosst: 50%25 unknown%0Afield\n\
             ::warning title=vanished::gone\n"
        );
    }

    #[test]
    fn code_hosts_read_sarif() {
        let log: Value = serde_json::from_str(&sarif(&found())).unwrap();
        let run = &log["runs"][0];
        assert_eq!(log["version"], "2.1.0");
        assert_eq!(run["tool"]["driver"]["rules"][0], json!({"id": "IST0106", "name": "SchemaValidationError"}));
        assert_eq!(
            run["results"][0],
            json!({
                "ruleId": "IST0106", "level": "error",
                "message": {"text": "VirtualService shop/web: hosst: 50% unknown\nfield"},
                "locations": [{"physicalLocation": {
                    "artifactLocation": {"uri": "a%20b/x%2Cy.yaml"}, "region": {"startLine": 1, "startColumn": 1},
                }}],
            })
        );
        assert_eq!(run["results"][1].get("locations"), None);
    }
}
