//! `docs/analyze.md`: what becomes of each code of Istio's analyzers. Each that is reported has a case here;
//! `UPDATE_DOCS=1 cargo test -p mesh-control --test config_suite analyze` writes the page.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use mesh_control::analysis::istio::{Answer, CODES};
use mesh_control::analysis::{Mesh, validate_scan};
use mesh_control::config::load::Scan;
use mesh_control::config::{Code, Diagnostic};

use crate::resilience::{assert_page, root};

const WEB: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
";

fn istio(group: &str, kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: {group}.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

fn rule(name: &str, spec: &str) -> String {
    istio("networking", "VirtualService", name, spec)
}

fn destination(name: &str, spec: &str) -> String {
    istio("networking", "DestinationRule", name, spec)
}

/// A finding of each code: its text, besides that of a service, and a part of what is said.
fn cases() -> Vec<(&'static str, String, &'static str)> {
    let to_web = "route: [{destination: {host: web}}]";
    let annotated = |kind: &str, annotation: &str, spec: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: a, namespace: shop, annotations: {{{annotation}}}}}\n\
             spec: {spec}\n"
        )
    };
    let service = |name: &str, spec: &str| {
        format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n")
    };
    let entry = istio(
        "networking",
        "ServiceEntry",
        "ext",
        "{hosts: [ext.example.com], location: MESH_EXTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], \
         endpoints: [{address: 10.0.0.1, labels: {version: v1}}]}",
    );
    vec![
        (
            "IST0002",
            rule("a", &format!("{{hosts: [web], http: [{{fault: {{abort: {{httpStatus: 500, percent: 10}}}}, {to_web}}}]}}")),
            "http[0].fault.abort.percent: a former name: `percentage` says it",
        ),
        ("IST0002", destination("a", "{host: web, trafficPolicy: {loadBalancer: {simple: LEAST_CONN}}}"), "`LEAST_REQUEST` says it"),
        ("IST0101", rule("a", "{hosts: [web], http: [{route: [{destination: {host: wbe}}]}]}"), "did you mean `web`?"),
        ("IST0101", rule("a", "{hosts: [web], http: [{route: [{destination: {host: web, subset: v9}}]}]}"), "v9"),
        ("IST0106", destination("a", "{host: web, trafficPolice: {}}"), "unknown field; did you mean `trafficPolicy`?"),
        ("IST0106", "---\nkind: [\n".to_owned(), ""),
        (
            "IST0107",
            annotated("DestinationRule", "mesh-control/hedge: on-per-try-timeout", "{host: web}"),
            "belongs to a VirtualService",
        ),
        ("IST0108", annotated("DestinationRule", "mesh-control/falback: web", "{host: web}"), "did you mean `mesh-control/fallback`?"),
        (
            "IST0109",
            format!("{}{}", rule("a", &format!("{{hosts: [web], http: [{{{to_web}}}]}}")), rule("b", &format!("{{hosts: [web], http: [{{{to_web}}}]}}"))),
            "is also that of VirtualService shop/a",
        ),
        (
            "IST0110",
            format!(
                "{}{}",
                istio("networking", "Sidecar", "a", "{workloadSelector: {labels: {app: web}}}"),
                istio("networking", "Sidecar", "b", "{workloadSelector: {labels: {app: web, version: v1}}}")
            ),
            "Sidecar shop/a (1.yaml:8) selects some of its workloads, too, and counts there",
        ),
        (
            "IST0111",
            format!(
                "{}{}",
                istio("networking", "Sidecar", "a", "{egress: [{hosts: [./*]}]}"),
                istio("networking", "Sidecar", "b", "{egress: [{hosts: [./*]}]}")
            ),
            "is for the whole namespace, too",
        ),
        (
            "IST0112",
            format!(
                "{}{}",
                service("two", "{selector: {app: two}, ports: [{name: http-a, port: 81}, {name: http-b, port: 82}]}"),
                rule("a", "{hosts: [web], http: [{route: [{destination: {host: two}}]}]}")
            ),
            "has no port 80, only 81, 82",
        ),
        (
            "IST0113",
            format!(
                "{}{}",
                istio("security", "PeerAuthentication", "a", "{mtls: {mode: STRICT}}"),
                destination("a", "{host: web, trafficPolicy: {tls: {mode: DISABLE}}}")
            ),
            "every call to web.shop.svc.cluster.local:80 fails",
        ),
        (
            "IST0116",
            service("raw", "{selector: {app: web}, ports: [{name: tcp, port: 90, targetPort: 8080}]}"),
            "by which the same port speaks TCP and not HTTP",
        ),
        ("IST0118", service("bare", "{selector: {app: bare}, ports: [{port: 80}]}"), "port 80 says no protocol"),
        (
            "IST0119",
            format!(
                "{}{}",
                service("db", "{selector: {app: db}, ports: [{name: tcp, port: 5432}]}"),
                istio("security", "RequestAuthentication", "a", "{selector: {matchLabels: {app: db}}, jwtRules: [{issuer: me, jwksUri: 'https://me.example.com/keys'}]}")
            ),
            "port 5432 of shop/db carries no requests",
        ),
        (
            "IST0122",
            rule("a", &format!("{{hosts: [web], http: [{{match: [{{uri: {{regex: '('}}}}], {to_web}}}]}}")),
            "is not a regular expression",
        ),
        ("IST0125", annotated("VirtualService", "mesh-control/hedge: sometimes", &format!("{{hosts: [web], http: [{{{to_web}}}]}}")), ""),
        (
            "IST0127",
            istio("security", "AuthorizationPolicy", "a", "{selector: {matchLabels: {app: wbe}}, rules: [{}]}"),
            "no workload that is known has app: `wbe`",
        ),
        (
            "IST0127",
            istio("telemetry", "Telemetry", "a", "{selector: {matchLabels: {app: wbe}}, tracing: [{disableSpanReporting: true}]}"),
            "did you mean `web`?",
        ),
        (
            "IST0128",
            destination("a", "{host: web, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}}"),
            "any server will do",
        ),
        (
            "IST0129",
            destination(
                "a",
                "{host: web, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE, insecureSkipVerify: true}}]}}",
            ),
            "any server will do",
        ),
        (
            "IST0130",
            rule("a", &format!("{{hosts: [web], http: [{{{to_web}}}, {{match: [{{uri: {{prefix: /a}}}}], {to_web}}}]}}")),
            "never reached: http[0] matches every request",
        ),
        (
            "IST0131",
            rule(
                "a",
                &format!(
                    "{{hosts: [web], http: [{{match: [{{uri: {{prefix: /a}}}}], {to_web}}}, {{match: [{{uri: {{prefix: /ab}}}}, {{uri: {{prefix: /b}}}}], {to_web}}}]}}"
                ),
            ),
            "takes all of its requests",
        ),
        (
            "IST0132",
            format!("{}{}", edge("a", &edge_server("HTTP", "")), rule("a", &format!("{{hosts: [b.example], gateways: [a], http: [{{{to_web}}}]}}"))),
            "has none of these hosts",
        ),
        (
            "IST0145",
            format!("{}{}", edge("a", &edge_server("HTTP", "")), edge("b", &edge_server("TCP", ""))),
            "it is left out: port 80 is taken by Gateway shop/a",
        ),
        (
            "IST0161",
            edge("a", &edge_server("HTTPS", ", tls: {mode: SIMPLE, credentialName: none}")),
            "no Secret none with it",
        ),
        (
            "IST0133",
            "---\napiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: a, namespace: shop}\nspec:\n  configPatches:\n  \
             - applyTo: HTTP_FILTER\n    match: {context: SIDECAR_INBOUND}\n    patch: {operation: INSERT_BEFORE, value: {name: envoy.filters.http.local_ratelimit, \
             typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: l, \
             filter_enabled: {default_value: {numerator: 100}}, filter_enforced: {default_value: {numerator: 100}}, \
             token_bucket: {max_tokens: 5, fill_interval: 60s}, descriptors: [{entries: [{key: header_match, value: x}], token_bucket: {max_tokens: 5, fill_interval: 60s}}], \
             rate_limits: [{actions: [{header_value_match: {descriptor_value: x, headers: [{name: ':method', exact_match: get}]}}]}]}}}\n"
                .to_owned(),
            "no request has the method `get`",
        ),
        ("IST0157", istio("telemetry", "Telemetry", "a", "{accessLogging: [{}]}"), "nothing is written"),
        (
            "IST0159",
            format!(
                "{}{}",
                istio("telemetry", "Telemetry", "a", "{selector: {matchLabels: {app: web}}, tracing: [{disableSpanReporting: true}]}"),
                istio("telemetry", "Telemetry", "b", "{selector: {matchLabels: {app: web}}, tracing: [{disableSpanReporting: true}]}")
            ),
            "is for the same workloads, and counts",
        ),
        (
            "IST0160",
            format!(
                "{}{}",
                istio("telemetry", "Telemetry", "a", "{tracing: [{disableSpanReporting: true}]}"),
                istio("telemetry", "Telemetry", "b", "{tracing: [{disableSpanReporting: true}]}")
            ),
            "is for the same workloads, and counts",
        ),
        (
            "IST0173",
            format!("{entry}{}", destination("a", "{host: ext.example.com, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}")),
            "subsets[1].labels: no endpoint of ext.example.com has its labels",
        ),
        ("IST0174", destination("a", "{host: wbe}"), "no service is called wbe.shop.svc.cluster.local"),
    ]
}

fn edge(name: &str, server: &str) -> String {
    istio("networking", "Gateway", name, &format!("{{selector: {{istio: edge}}, servers: [{server}]}}"))
}

fn edge_server(protocol: &str, rest: &str) -> String {
    format!("{{port: {{number: 80, name: a, protocol: {protocol}}}, hosts: [a.example]{rest}}}")
}

fn analyze(text: &str) -> Vec<Diagnostic> {
    let mut scan = Scan::default();
    scan.files.insert("1.yaml".into(), Ok(text.into()));
    validate_scan(scan, Mesh { issues_certificates: true, takes_advice: true, ..Mesh::default() }).diagnostics
}

#[test]
fn each_code_that_is_reported_has_a_case_and_what_is_right_has_none() {
    assert!(analyze(WEB).is_empty(), "{:?}", analyze(WEB));
    for (code, text, part) in cases() {
        let found = analyze(&format!("{WEB}{text}"));
        let said = |finding: &&Diagnostic| finding.istio == Some(code) && finding.to_string().contains(part);
        let shown: Vec<String> = found.iter().map(|one| format!("{:?} {one}", one.istio)).collect();
        assert_eq!(found.iter().filter(said).count(), 1, "{code} {part}: {text}\n{shown:#?}");
    }
    let cases: BTreeSet<&str> = cases().iter().map(|(code, ..)| *code).collect();
    let reported = CODES.iter().filter(|(.., answer)| matches!(answer, Answer::Reported(_)));
    assert_eq!(reported.map(|(code, ..)| *code).collect::<BTreeSet<_>>(), cases);
}

/// A code that somebody writes into the sources is one of the table.
#[test]
fn no_code_is_reported_that_the_table_does_not_know() {
    fn look(dir: &std::path::Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                look(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("analysis/istio.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let codes = text.match_indices("\"IST0").filter_map(|(at, _)| text.get(at + 1..at + 8));
                found.extend(codes.map(str::to_owned));
            }
        }
    }
    let mut found = BTreeSet::new();
    look(&root().join("mesh-control/src"), &mut found);
    assert!(found.len() > 20, "{found:?}");
    let is_reported =
        |code: &String| CODES.iter().any(|(known, _, answer)| known == code && matches!(answer, Answer::Reported(_)));
    assert!(found.iter().all(is_reported), "{found:?}");
}

#[test]
fn an_object_may_say_what_it_is_not_to_be_told() {
    let bare = |annotation: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: bare, namespace: shop{annotation}}}\nspec: {{selector: {{app: bare}}, ports: [{{port: 80}}]}}\n"
        )
    };
    assert_eq!(analyze(&bare("")).len(), 1);
    assert_eq!(analyze(&bare(", annotations: {galley.istio.io/analyze-suppress: 'IST0002, IST0118'}")).len(), 0);
    assert_eq!(analyze(&bare(", annotations: {galley.istio.io/analyze-suppress: '*'}")).len(), 0);
    assert_eq!(analyze(&bare(", annotations: {galley.istio.io/analyze-suppress: IST0101}")).len(), 1);
}

/// All that can be told is covered, by the code that is shown: also what clients cannot do, for which Istio has none.
#[test]
fn an_annotation_and_an_option_leave_out_the_same() {
    let text = |annotations: &str| {
        format!(
            "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: t, namespace: shop{annotations}}}\nspec: {{tracing: [{{randomSamplingPercentage: 1}}]}}\n"
        )
    };
    let told = |text: &str, suppress: &[&str]| {
        let mut scan = Scan::default();
        scan.files.insert("1.yaml".into(), Ok(text.into()));
        let suppress = suppress.iter().map(|&pattern| pattern.to_owned()).collect();
        let mesh = Mesh { has_grpc: true, takes_advice: true, suppress, ..Mesh::default() };
        let found = validate_scan(scan, mesh).diagnostics;
        found.iter().filter(|one| one.code == Code::Degraded).count()
    };
    assert_eq!(told(&text(""), &[]), 1);
    for (codes, expected) in [("degraded", 0), ("'*'", 0), ("'IST*, degr*'", 0), ("refused", 1)] {
        let annotated = text(&format!(", annotations: {{galley.istio.io/analyze-suppress: {codes}}}"));
        assert_eq!(told(&annotated, &[]), expected, "{codes}");
    }
    for (pattern, expected) in [("degraded", 0), ("*", 0), ("degraded=Telemetry t.shop", 0), ("refused", 1)] {
        assert_eq!(told(&text(""), &[pattern]), expected, "{pattern}");
    }
}

/// What works is no finding of `validate`.
#[test]
fn advice_is_for_who_asks_for_it() {
    let bare =
        "apiVersion: v1\nkind: Service\nmetadata: {name: bare}\nspec: {selector: {app: bare}, ports: [{port: 80}]}\n";
    assert_eq!(mesh_control::analysis::validate([("1.yaml", bare)]), []);
    assert_eq!(analyze(bare).len(), 1);
}

const HEAD: &str = "# `mesh-control analyze`

```console
mesh-control analyze manifests/
mesh-control analyze -f manifests/ --mesh-config mesh.yaml -o sarif > analyze.sarif
mesh-control analyze manifests/ -o github --failure-threshold warning
mesh-control analyze manifests/ --fix
```

Examines objects by themselves and against each other, over files. There is one judge: what `validate` finds is found, in the same words,
and what works and would better be said otherwise comes besides. Findings have the code that Istio's analyzers have for them, so that
what leaves some of them out there does here, too: `-S IST0118=\"Service web.shop\"`, and the annotation
`galley.istio.io/analyze-suppress: IST0118` on an object. Findings that Istio does not know have a word in its place: `not-supported-yet`,
`degraded` (with `--for grpc` or `--for envoy`), `unenforced`, `refused`. Both ways name any of these, and `*` is anything in them; the
annotation has commas between several, and is for all that is found at its object. What is left out does not count for the exit code, and
`--fix` does not put it right. `validate` and `serve` leave nothing out.

| option | |
| --- | --- |
| `-f`, `--filename` | files and directories, as they may stand without it; all of them are one configuration |
| `-R`, `--recursive` | directories below these are read, too |
| `--mesh-config`, `--trust-domain`, `--dev` | as for `serve`: with `--dev`, the control plane issues certificates |
| `--output-threshold`, `--failure-threshold` | `info`, `warning`, `error`: what is told (`info`), and for what the exit code is 1 (`error`) |
| `-o json` | an object a line: `code`, `kind` (our own word), `severity`, `resource`, `field`, `file`, `line`, `column`, `message`, `fixable` |
| `-o sarif` | SARIF 2.1.0 |
| `-o github` | annotations of GitHub's workflows |
| `--fix` | writes what is clear: a mistyped field, a number that has to be a text, a word in the wrong case. Only these words change, comments and layout stay; the rest is told |

Editors find much of it while one writes: `mesh-control schema` prints JSON Schema of all kinds ([schemas/mesh.json](../schemas/mesh.json)), and `mesh-control schema -o
crd` the CustomResourceDefinitions of those that are our own. They know fields, types, words and bounds; what goes by more than one field, or
is in a language of its own (hosts, expressions), `validate` alone finds. With yaml-language-server, a first line of a file names it:

```yaml
# yaml-language-server: $schema=../schemas/mesh.json
```

## Istio's codes

Made by `mesh-control/tests/config_suite/analyze.rs`, which has a case for each that is reported;
`UPDATE_DOCS=1 cargo test -p mesh-control --test config_suite analyze` writes it anew. Severities and words are our own: what counts all the
same is a warning here, where Istio calls it undefined.

| code | Istio's name | here |
| --- | --- | --- |
";

#[test]
fn the_page_on_analyze_says_what_becomes_of_each_code() {
    let mut page = HEAD.to_owned();
    for (code, name, answer) in CODES {
        let told = match answer {
            Answer::Reported(what) => format!("reported: {what}"),
            Answer::NotApplicable(why) => format!("not applicable: {why}"),
            Answer::NotYet(why) => format!("not yet: {why}"),
            _ => unreachable!("an answer of another kind"),
        };
        writeln!(page, "| {code} | {name} | {told} |").unwrap();
    }
    assert_page("docs/analyze.md", &page, "analyze");
}
