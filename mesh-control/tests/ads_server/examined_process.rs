//! What is said of files before anybody serves them: the commands, by what they print and how they end.

use std::io::Write;
use std::process::Stdio;

use crate::process::{command, output, text};

const WRONG: &str = "# Kept.
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  hosst: web   # the service
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
";

#[test]
fn analyze_tells_codes_in_each_form_and_writes_what_is_clear() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    std::fs::write(&file, WRONG).unwrap();
    let path = dir.path().to_str().unwrap();
    let analyze = |more: &[&str]| {
        let out = output(&[&["analyze", path], more].concat());
        (out.status.code().unwrap(), text(&out.stdout))
    };
    let (code, told) = analyze(&[]);
    assert_eq!(code, 1, "{told}");
    let place = format!("Error [IST0106] (DestinationRule shop/web {}:6) hosst: unknown field", file.display());
    assert!(told.contains(&place) && told.contains("Info [IST0118] (Service shop/web"), "{told}");
    let (_, lines) = analyze(&["-o", "json", "--output-threshold", "error"]);
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&first["code"], &first["line"]), (&"IST0106".into(), &6.into()), "{lines}");
    assert!(!lines.contains("IST0118"), "{lines}");
    let log: serde_json::Value = serde_json::from_str(&analyze(&["-o", "sarif"]).1).unwrap();
    assert_eq!(log["runs"][0]["results"][0]["ruleId"], "IST0106");
    assert!(analyze(&["-o", "github"]).1.contains("::error file="));
    assert!(!analyze(&["-S", "IST0118=Service web.shop"]).1.contains("IST0118"));
    assert_eq!(analyze(&["--fix"]).0, 0);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), WRONG.replace("hosst", "host"));
    assert_eq!(analyze(&["--failure-threshold", "info"]).0, 1, "advice is left");
    let settings = dir.path().join("mesh.conf");
    std::fs::write(&settings, "trustDomian: shop.example\n").unwrap();
    let (code, told) = analyze(&["--mesh-config", settings.to_str().unwrap()]);
    assert!(code == 1 && told.contains("did you mean `trustDomain`?"), "{told}");
}

#[test]
fn schemas_are_printed_for_editors_and_for_kubernetes() {
    let schema = |arguments: &[&str]| {
        let out = output(&[&["schema"], arguments].concat());
        (out.status.success(), text(&out.stdout))
    };
    let of_all: serde_json::Value = serde_json::from_str(&schema(&[]).1).unwrap();
    assert!(of_all["$defs"]["VirtualService"].is_object(), "{of_all}");
    let of_one: serde_json::Value = serde_json::from_str(&schema(&["ratelimit"]).1).unwrap();
    assert_eq!(of_one["properties"]["kind"]["const"], "RateLimit");
    let (_, definitions) = schema(&["-o", "crd"]);
    assert!(definitions.contains("name: ratelimits.policy.mesh-control\n"), "{definitions}");
    assert!(definitions.contains("---\n") && definitions.contains("name: overloads.policy.mesh-control\n"));
    assert!(!schema(&["VirtualService", "-o", "crd"]).0, "that is Istio's");
    assert!(!schema(&["Nothing"]).0);
}

#[test]
fn validate_looks_at_rule_files_as_the_rate_limit_service_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let validate = || {
        let out = output(&["validate", "--ratelimit-config", path]);
        (out.status.success(), text(&out.stdout))
    };
    let (is_fine, told) = validate();
    assert!(is_fine && told.contains("no rule file"), "{told}");
    std::fs::write(dir.path().join("a.yaml"), "domain: shop\ndescriptors: [{key: user, rate_limit: {unit: day}}]\n")
        .unwrap();
    let (is_fine, told) = validate();
    let place = format!("{}:2:", dir.path().join("a.yaml").display());
    assert!(!is_fine && told.contains("field `requests_per_unit` is missing") && told.contains(&place), "{told}");
    std::fs::write(dir.path().join("a.yaml"), "kind: ConfigMap\ndata: {a.yaml: 'domain: shop'}\n").unwrap();
    assert!(validate().1.contains("a ConfigMap around a rule file"));
    std::fs::write(dir.path().join("a.yaml"), "domain: shop\ndescriptors: [{key: user}]\n").unwrap();
    let (is_fine, told) = validate();
    assert!(is_fine && told.contains("0 errors, 0 warnings"), "{told}");
}

#[test]
fn what_comes_over_a_pipe_is_examined_by_the_name_of_a_dash() {
    let text =
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: {hosts: [a], htpp: []}\n";
    for command_name in ["validate", "analyze"] {
        let mut child = command(&[command_name, "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(said.contains("stdin:4") && said.contains("did you mean `http`?"), "{command_name}: {said}");
        assert_ne!(out.status.code(), Some(0), "{command_name}");
    }
}
