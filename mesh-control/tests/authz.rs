//! `mesh-control authz test`, as people run it to test their policies.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

const CONFIG: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 9080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-delete, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}, {to: [{operation: {methods: [DELETE]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-web, namespace: shop}
spec:
  selector: {matchLabels: {app: reviews}}
  rules:
  - from: [{source: {serviceAccounts: [web]}}]
    to: [{operation: {paths: [/a*], hosts: [reviews]}}]
  - when: [{key: 'request.headers[x-role]', values: [admin]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: try, namespace: shop, annotations: {istio.io/dry-run: 'true'}}
spec: {action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: jwt, namespace: vault}
spec: {action: DENY, rules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: spies, namespace: vault}
spec:
  action: DENY
  rules:
  - when:
    - {key: 'request.auth.claims[roles]', values: [spy]}
    - {key: 'request.auth.claims[in][groups]', values: [b]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: vault}
spec:
  jwtRules:
  - issuer: idp
    spaceDelimitedClaims: [roles]
    jwks: '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: staff, namespace: claims}
spec: {rules: [{when: [{key: 'request.auth.claims[role]', values: [staff]}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: locked}
spec: {}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-writes, namespace: bytes}
spec: {action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: tokens}
spec: {jwtRules: [{issuer: issuer, jwks: '{"keys": [{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}'}]}
"#;

fn config() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.yaml"), CONFIG).unwrap();
    dir
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
    command.args(["authz", "test", "--config", dir.to_str().unwrap()]).args(arguments).output().unwrap()
}

/// What is said; the exit code says the same where it is about one request.
fn out(dir: &Path, arguments: &[&str]) -> String {
    let output = run(dir, arguments);
    let said = String::from_utf8(output.stdout).unwrap();
    let expected = match said.split_once(':').map(|(verdict, _)| verdict) {
        Some("deny") => 3,
        Some("ask") => 4,
        _ => 0,
    };
    assert_eq!(output.status.code(), Some(expected), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Why there is no answer.
fn why(dir: &Path, arguments: &[&str]) -> String {
    let output = run(dir, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(matches!(output.status.code(), Some(1 | 2)) && output.stdout.is_empty(), "{said}");
    said
}

#[test]
fn the_name_of_a_rule_is_explained_with_its_place_and_its_words() {
    let dir = config();
    let command = |id: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
        command.args(["why", id, "--config", dir.path().to_str().unwrap()]).args(more).output().unwrap()
    };
    let text = |output: Output| String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let line = |words: &str| 1 + CONFIG.lines().position(|line| line.contains(words)).unwrap();
    let by_role = format!(
        "AuthorizationPolicy/shop/allow-web#1\n  config.yaml:{}\n  ALLOW: for workloads with app=reviews of namespace shop\n  \
         - when: [{{key: 'request.headers[x-role]', values: [admin]}}]\n",
        line("x-role")
    );
    assert_eq!(text(command("AuthorizationPolicy/shop/allow-web#1", &[])), by_role);
    let several = text(command("AuthorizationPolicy/shop/allow-web#0", &[]));
    assert!(
        several.ends_with(
            "  - from: [{source: {serviceAccounts: [web]}}]\n    to: [{operation: {paths: [/a*], hosts: [reviews]}}]\n"
        ),
        "{several}"
    );
    let tried = text(command("AuthorizationPolicy/shop/try#0", &[]));
    assert!(
        tried.contains("DENY, which is only tried (istio.io/dry-run): for all workloads of namespace shop"),
        "{tried}"
    );
    let json: Value =
        serde_json::from_slice(&command("AuthorizationPolicy/shop/deny-delete#1", &["-o", "json"]).stdout).unwrap();
    assert_eq!((&json["effect"], &json["dry_run"]), (&json!("DENY"), &json!(false)));
    assert!(text(command("none", &[])).starts_with("none: no rule is for the request"));
    let unknown = command("AuthorizationPolicy/shop/alow-web#1", &[]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(unknown).contains("; did you mean `AuthorizationPolicy/shop/allow-web#1`?"));
    let other = text(command("request_rule[no-tenant]", &[]));
    assert!(
        other.contains("; the names are AuthorizationPolicy/NAMESPACE/NAME#INDEX and `none`; where limits"),
        "{other}"
    );
}

#[test]
fn one_request_has_a_verdict_and_the_rule_that_decided() {
    let dir = config();
    let web = ["--from", "spiffe://cluster.local/ns/shop/sa/web", "--to", "shop/reviews"];
    for (more, expected) in [
        (&["--path", "/a"][..], "allow: AuthorizationPolicy/shop/allow-web#0\n"),
        (&["--path", "/a?x"], "allow: AuthorizationPolicy/shop/allow-web#0\n"),
        (&["--path", "/b"], "deny: no rule is for it\n"),
        (&["--path", "/a", "--host", "ratings"], "deny: no rule is for it\n"),
        (&["--path", "http://ratings/a"], "deny: no rule is for it\n"),
        (&["--path", "http://reviews/a", "--host", "ratings"], "allow: AuthorizationPolicy/shop/allow-web#0\n"),
        (&["--path", "/a", "--method", "DELETE"], "deny: AuthorizationPolicy/shop/deny-delete#1\n"),
        (&["--path", "/a", "--method", "delete"], "deny: malformed: malformed method\n"),
        (&["--header", "X-Role: admin"], "allow: AuthorizationPolicy/shop/allow-web#1\n"),
        (&["--header", "x-role: admin", "--header", "x-role: guest"], "deny: no rule is for it\n"),
        (&["--path", "/a", "--label", "app=other"], "allow: no rule is for it\n"),
    ] {
        let said = out(dir.path(), &[&web[..], more].concat());
        assert_eq!(said.lines().next().map(|line| format!("{line}\n")).as_deref(), Some(expected), "{more:?}");
        // What is malformed is answered before there is a policy.
        assert!(said.contains("dry run: allow: no rule is for it") || expected.contains("malformed"), "{said}");
    }
    let any = |namespace: &str| out(dir.path(), &["--to", &format!("{namespace}/any"), "--label", "app=any"]);
    assert_eq!(any("locked"), "deny: no rule is for it\n");
    assert_eq!(any("vault"), "deny: AuthorizationPolicy/vault/jwt#0\n");
    assert!(!run(dir.path(), &["--to", "reviews"]).status.success());
}

#[test]
fn a_workload_that_nothing_names_is_an_error_with_the_one_that_is_meant() {
    let dir = config();
    for (to, expected) in [
        ("shop/revews", "did you mean shop/reviews?"),
        ("shpo/reviews", "did you mean shop/reviews?"),
        ("revews/shop", "did you mean shop/reviews?"),
        ("something/elsewhere", "known are shop/reviews"),
    ] {
        let said = why(dir.path(), &["--to", to]);
        assert!(said.contains(expected) && said.contains("--label KEY=VALUE"), "{to}: {said}");
        let output = rendered(dir.path(), to);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && output.stdout.is_empty() && said.contains(expected), "{to}: {said}");
    }
    // What is said of it is taken for it, and that nothing is in such a namespace is told.
    let said = out(dir.path(), &["--to", "shpo/reviews", "--label", "app=reviews"]);
    assert_eq!(
        said,
        "allow: no rule is for it\nnote: no object of the configuration is in the namespace \"shpo\"; did you mean \"shop\"?\n"
    );
}

#[test]
fn one_request_is_told_by_options_as_a_line_tells_it() {
    let config = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, namespace: shop}
spec:
  rules:
  - when: [{key: 'request.auth.claims[role]', values: [staff]}]
  - when: [{key: 'request.auth.claims[in][groups]', values: [b]}]
  - when: [{key: connection.sni, values: [www.shop]}]
  - when: [{key: destination.ip, values: [10.9.0.0/16]}]
  - from: [{source: {remoteIpBlocks: [10.1.0.0/16]}}]
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: shop}
spec:
  jwtRules:
  - issuer: idp
    jwks: '{\"keys\": [{\"kty\": \"OKP\", \"crv\": \"Ed25519\", \"x\": \"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}'
  - issuer: elsewhere
    jwksUri: https://elsewhere.example/keys
";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.yaml"), config).unwrap();
    for (more, expected) in [
        (&["--claim", "iss=idp", "--claim", "role=staff"][..], "allow: AuthorizationPolicy/shop/all#0\n"),
        (
            &["--claim", "iss=idp", "--claim", "in={\"groups\": [\"a\", \"b\"]}"],
            "allow: AuthorizationPolicy/shop/all#1\n",
        ),
        (&["--claim", "{\"iss\": \"idp\", \"role\": \"cook\"}"], "deny: no rule is for it\n"),
        // A token of somebody whom the server does not know is refused before there is a policy, and one of nobody too.
        (&["--claim", "iss=who", "--claim", "role=staff"], "deny: 401: the token: Jwt issuer is not configured\n"),
        (&["--claim", "role=staff"], "deny: 401: the token: Jwt issuer is not configured\n"),
        (&["--sni", "www.shop"], "allow: AuthorizationPolicy/shop/all#2\n"),
        (&["--destination-ip", "10.9.1.1"], "allow: AuthorizationPolicy/shop/all#3\n"),
        (&["--source-ip", "10.1.1.1"], "allow: AuthorizationPolicy/shop/all#4\n"),
        (&["--sni", "www.shop", "--protocol", "tcp"], "allow: AuthorizationPolicy/shop/all#2\n"),
        (
            &["--remote-ip", "10.1.1.1"],
            "deny: no rule is for it\nnote: remote_ip has no effect: nobody's word is taken for it but at gateways with a \
             gatewayTopology, and it is source_ip\n",
        ),
        // A token is looked at as the server would: it is not one, or nobody knows who it is of.
        (
            &["--header", "authorization: Bearer nonsense"],
            "deny: 401: the token: Jwt is not in the form of Header.Payload.Signature",
        ),
        (
            &["--header", "authorization: Bearer eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJ3aG8ifQ.AA"],
            "deny: 401: the token: Jwt issuer is not configured",
        ),
        (
            &["--header", "authorization: Bearer eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJpZHAifQ.AA"],
            "deny: 401: the token: Jwt verification fails",
        ),
        (
            &["--header", "authorization: Bearer eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJlbHNld2hlcmUifQ.AA"],
            "deny: the token's issuer is known, and its keys are not fetched here",
        ),
    ] {
        let said = out(dir.path(), &[&["--to", "shop/web"][..], more].concat());
        assert!(said.starts_with(expected), "{more:?}: {said}");
    }
    assert!(why(dir.path(), &["--to", "shop/web", "--claim", "role"]).contains("--claim role"));
    assert!(why(dir.path(), &["--requests", "-", "--sni", "a"]).contains("--requests"));
    // Where no server looks at tokens, that is said.
    let dir = self::config();
    let said = out(dir.path(), &["--to", "shop/reviews", "--header", "authorization: Bearer a.b.c"]);
    assert!(
        said.contains("note: no RequestAuthentication is for this workload: its server looks at no token\n"),
        "{said}"
    );
    // Nor is it taken for good: the request is one without a token.
    let said = out(dir.path(), &["--to", "claims/any", "--label", "app=any", "--claim", "role=staff"]);
    assert!(said.starts_with("deny: no rule is for it\nnote: no RequestAuthentication is for this workload"), "{said}");
}

#[test]
fn whoever_has_an_identity_of_an_old_trust_domain_is_meant_by_the_new_one() {
    let policy = |name: &str, namespace: &str, rules: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{rules}}}\n"
        )
    };
    let settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    trustDomain: new.org\n    trustDomainAliases: [old.org, older-td]\n";
    let from = |source: &str| format!("rules: [{{from: [{{source: {{{source}}}}}]}}]");
    let dir = tempfile::tempdir().unwrap();
    let policies = [
        policy("a", "by-old", &from("principals: [old.org/ns/shop/sa/web]")),
        policy("a", "by-new", &from("principals: [new.org/ns/shop/sa/web*]")),
        policy("a", "by-suffix", &from("principals: ['*-td/ns/shop/sa/web']")),
        policy("a", "by-default", &from("principals: [cluster.local/ns/shop/sa/web]")),
        policy("a", "by-foreign", &from("principals: [foreign.org/ns/shop/sa/web]")),
        policy("a", "denied", &format!("action: DENY, {}", from("principals: [old.org/ns/shop/sa/web]"))),
        policy("a", "not-old", &from("notPrincipals: [old.org/ns/shop/sa/web]")),
        policy("a", "by-domain", &from("trustDomains: [old.org]")),
        policy("a", "by-key", "rules: [{when: [{key: source.principal, values: [older-td/ns/shop/sa/web]}]}]"),
    ];
    std::fs::write(dir.path().join("config.yaml"), format!("{settings}{}", policies.concat())).unwrap();
    for (namespace, old, new, foreign) in [
        ("by-old", true, true, false),
        ("by-new", true, true, false),
        ("by-suffix", true, true, false),
        ("by-default", true, true, false),
        ("by-foreign", false, false, true),
        ("denied", false, false, true),
        ("not-old", false, false, true),
        ("by-domain", true, true, false),
        ("by-key", true, true, false),
    ] {
        for (domain, expected) in [("old.org", old), ("new.org", new), ("foreign.org", foreign)] {
            let who = format!("spiffe://{domain}/ns/shop/sa/web");
            let said = out(dir.path(), &["--from", &who, "--to", &format!("{namespace}/any"), "--label", "app=any"]);
            assert_eq!(said.starts_with("allow"), expected, "{namespace} from {domain}: {said}");
        }
    }
}

#[test]
fn where_domains_are_federated_a_namespace_that_lets_in_is_one_of_the_mesh() {
    let policy = |namespace: &str, action: &str, source: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a, namespace: {namespace}}}\n\
             spec: {{action: {action}, rules: [{{from: [{{source: {{{source}}}}}]}}]}}\n"
        )
    };
    let settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    trustDomain: new.org\n    trustDomainAliases: [old.org]\n";
    let dir = tempfile::tempdir().unwrap();
    let policies = [
        policy("by-namespace", "ALLOW", "namespaces: [shop]"),
        policy("by-account", "ALLOW", "serviceAccounts: [shop/web]"),
        policy("refused", "DENY", "namespaces: [shop]"),
        policy("spared", "DENY", "notNamespaces: [shop]"),
        policy("others", "ALLOW", "notNamespaces: [pay]"),
    ];
    std::fs::write(dir.path().join("config.yaml"), format!("{settings}{}", policies.concat())).unwrap();
    for (namespace, own, foreign, foreign_federated) in [
        ("by-namespace", true, true, false),
        ("by-account", true, true, false),
        ("refused", false, false, false),
        ("spared", true, true, false),
        ("others", true, true, true),
    ] {
        for (domain, plain, federated) in
            [("old.org", own, own), ("new.org", own, own), ("foreign.org", foreign, foreign_federated)]
        {
            let who = format!("spiffe://{domain}/ns/shop/sa/web");
            let asked = ["--from", &who, "--to", &format!("{namespace}/any"), "--label", "app=any"];
            let is_let_in = |more: &[&str]| out(dir.path(), &[&asked[..], more].concat()).starts_with("allow");
            let verdicts = (is_let_in(&[]), is_let_in(&["--federated"]));
            assert_eq!(verdicts, (plain, federated), "{namespace} from {domain}");
        }
    }
}

#[test]
fn where_an_authorizer_decides_the_verdict_is_to_ask_unless_a_policy_refuses() {
    let config = "apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: opa.shop.svc.cluster.local, port: 9000}}]
---
apiVersion: v1
kind: Service
metadata: {name: opa, namespace: shop}
spec: {selector: {app: opa}, ports: [{name: grpc, port: 9000}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: shop}
spec: {action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: [/x]}}]}, {to: [{operation: {paths: [/a*]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}
";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.yaml"), config).unwrap();
    let reviews = ["--to", "shop/reviews", "--label", "app=reviews"];
    for (path, expected) in [
        ("/a", "ask: AuthorizationPolicy/shop/ask#1\n"),
        ("/b", "allow: no rule is for it\n"),
        ("/admin", "deny: AuthorizationPolicy/shop/deny#0\n"),
    ] {
        assert_eq!(out(dir.path(), &[&reviews[..], &["--path", path]].concat()), expected, "{path}");
    }
    let refused = rendered_as(dir.path(), "shop/reviews", &["--label", "app=reviews"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("opa: an AuthorizationPolicy (CUSTOM) has it asked"), "{said}");
    assert!(!said.contains("gRPC"), "{said}");
    let asked = json!({"id": 1, "workload": {"namespace": "shop"}, "path": "/a", "protocol": "tcp"}).to_string();
    let file = dir.path().join("requests.jsonl");
    std::fs::write(&file, asked).unwrap();
    let answer = out(dir.path(), &["--requests", file.to_str().unwrap(), "-o", "json"]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["verdict"], "deny", "nobody is asked about bytes: {answer}");
}

#[test]
fn a_workload_that_must_not_serve_lets_in_no_bytes_either() {
    let config = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: shop}
spec: {action: CUSTOM, provider: {name: nobody}, rules: [{to: [{operation: {ports: ['1']}}]}]}
";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.yaml"), config).unwrap();
    let file = dir.path().join("requests.jsonl");
    for protocol in ["http", "tcp"] {
        let asked = json!({"id": 1, "workload": {"namespace": "shop"}, "protocol": protocol, "path": "/"}).to_string();
        std::fs::write(&file, asked).unwrap();
        let answer = out(dir.path(), &["--requests", file.to_str().unwrap(), "-o", "json"]);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["verdict"], "deny", "{protocol}: {answer}");
        assert!(answer.to_string().contains("nobody"), "{protocol}: {answer}");
    }
}

#[test]
fn a_batch_has_an_answer_a_line() {
    let dir = config();
    let reviews = json!({"namespace": "shop", "labels": {"app": "reviews"}});
    let web = "cluster.local/ns/shop/sa/web";
    let cases = [
        (
            json!({"id": 1, "workload": reviews, "method": "GET", "host": "reviews.:80", "path": "/a", "principal": web,
                "source_ip": "10.1.1.1"}),
            json!({"id": 1, "verdict": "allow", "policy": "AuthorizationPolicy/shop/allow-web",
                "rule": "AuthorizationPolicy/shop/allow-web#0",
                "dry_run": {"verdict": "deny", "rule": "AuthorizationPolicy/shop/try#0"}}),
        ),
        (
            json!({"id": "two", "workload": reviews, "protocol": "grpc", "host": "reviews", "path": "/a.B/C",
                "headers": {"x-role": ["admin"]}, "source_ip": "11.1.1.1"}),
            json!({"id": "two", "verdict": "allow", "policy": "AuthorizationPolicy/shop/allow-web",
                "rule": "AuthorizationPolicy/shop/allow-web#1", "dry_run": {"verdict": "allow", "rule": null}}),
        ),
        (
            json!({"id": 3, "workload": {"namespace": "other"}, "path": "/"}),
            json!({"id": 3, "verdict": "allow", "policy": null, "rule": null, "dry_run": null,
                "note": "no object of the configuration is in the namespace \"other\""}),
        ),
        (
            json!({"id": 5, "workload": {"namespace": "vault"}}),
            json!({"id": 5, "verdict": "deny", "policy": "AuthorizationPolicy/vault/jwt",
                "rule": "AuthorizationPolicy/vault/jwt#0", "dry_run": null}),
        ),
        (
            json!({"id": 6, "workload": {"namespace": "vault"}, "claims": {"iss": "idp", "sub": "me"}}),
            json!({"id": 6, "verdict": "allow", "policy": null, "rule": null, "dry_run": null}),
        ),
        (
            json!({"id": 7, "workload": {"namespace": "vault"},
                "claims": {"iss": "idp", "sub": "me", "roles": "cook spy", "in": {"groups": ["a", "b"]}}}),
            json!({"id": 7, "verdict": "deny", "policy": "AuthorizationPolicy/vault/spies",
                "rule": "AuthorizationPolicy/vault/spies#0", "dry_run": null}),
        ),
        (
            json!({"id": 8, "workload": {"namespace": "vault"}, "claims": {"iss": "who", "sub": "me"}}),
            json!({"id": 8, "verdict": "deny", "policy": null, "rule": null, "dry_run": null, "note":
                "401: the token: Jwt issuer is not configured"}),
        ),
        // Nobody looks into bytes: what a policy asks of requests refuses them.
        (
            json!({"id": 4, "workload": {"namespace": "bytes"}, "protocol": "tcp", "destination_port": 5432}),
            json!({"id": 4, "verdict": "deny", "policy": "AuthorizationPolicy/bytes/no-writes",
                "rule": "AuthorizationPolicy/bytes/no-writes#0", "dry_run": null}),
        ),
    ];
    let file = dir.path().join("requests.jsonl");
    let lines: String = cases.iter().map(|(asked, _)| format!("{asked}\n")).collect();
    std::fs::write(&file, lines).unwrap();
    let said = out(dir.path(), &["--requests", file.to_str().unwrap(), "-o", "json"]);
    let answers: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected: Vec<Value> = cases.into_iter().map(|(_, answer)| answer).collect();
    assert_eq!(answers, expected);
    std::fs::write(&file, "{\"id\": 1, \"workload\": {\"namespace\": \"shop\"}, \"metod\": \"GET\"}\n").unwrap();
    let wrong = run(dir.path(), &["--requests", file.to_str().unwrap()]);
    let why = String::from_utf8(wrong.stderr).unwrap();
    assert!(!wrong.status.success() && why.contains("requests.jsonl:1") && why.contains("metod"), "{why}");
}

fn rendered(dir: &Path, to: &str) -> Output {
    rendered_as(dir, to, &[])
}

fn rendered_as(dir: &Path, to: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
    command.args(["authz", "render", "--config", dir.to_str().unwrap(), "--to", to, "--port", "9080"]);
    command.args(more).output().unwrap()
}

/// Whether Envoy says the same is seen by `interop/decisions.py`.
#[test]
fn what_an_envoy_is_to_enforce_is_written_whole_or_not_at_all() {
    let dir = config();
    let policies = |to: &str| -> Value {
        let name = to.split_once('/').unwrap().1;
        let output = rendered_as(dir.path(), to, &["--label", &format!("app={name}")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    // Nobody is let in: there is a filter, and no policy in it.
    let locked = policies("locked/any");
    assert_eq!(
        locked["http_filters"],
        json!([{"name": "mesh.rbac.allow", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": "ALLOW", "policies": {}}}}])
    );
    assert_eq!(
        (&locked["merge_slashes"], &locked["path_with_escaped_slashes_action"]),
        (&json!(true), &json!("REJECT_REQUEST"))
    );
    assert_eq!(policies("free/any")["http_filters"], json!([]));
    let reviews = policies("shop/reviews");
    let filters = reviews["http_filters"].as_array().unwrap();
    let rules: Vec<(&str, &Value)> =
        filters.iter().map(|it| (it["name"].as_str().unwrap(), &it["typed_config"]["rules"]["policies"])).collect();
    assert_eq!(rules[0].0, "mesh.rbac.deny");
    assert_eq!(
        rules[0].1["AuthorizationPolicy/shop/deny-delete#1"],
        json!({"permissions": [{"header": {"name": ":method", "string_match": {"exact": "DELETE"}}}],
            "principals": [{"any": true}]})
    );
    assert!(filters[0]["typed_config"]["shadow_rules"]["policies"]["AuthorizationPolicy/shop/try#0"].is_object());
    // A second value of a header is no way in.
    let role = &rules[1].1["AuthorizationPolicy/shop/allow-web#1"]["permissions"][0]["and_rules"]["rules"];
    assert_eq!(role[0]["header"]["string_match"], json!({"exact": "admin"}));
    assert!(role[1]["not_rule"]["header"]["string_match"]["safe_regex"]["regex"].is_string(), "{role}");
    let tokens = "a RequestAuthentication is for it";
    let claims = "AuthorizationPolicy/claims/staff#0: a condition on tokens has no form here";
    for (to, why) in [("vault/any", tokens), ("tokens/any", tokens), ("claims/any", claims)] {
        let refused = rendered_as(dir.path(), to, &["--label", "app=any"]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && refused.stdout.is_empty() && said.contains(why), "{said}");
    }
}

#[test]
fn what_a_grpc_server_cannot_enforce_is_told_before_it_is_asked_to() {
    let dir = tempfile::tempdir().unwrap();
    let policy = |name: &str, more: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: {name}, namespace: shop{more}}}\nspec: {spec}\n"
        )
    };
    let header = |words: &str| format!("{{when: [{{key: 'request.headers[x-role]', {words}}}]}}");
    let of = |action: &str, rule: &str| {
        format!("{{action: {action}, rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}, {rule}]}}")
    };
    let cases = [
        ("nobody", "", "{}".to_owned(), None),
        ("exact", "", of("ALLOW", &header("values: [admin]")), None),
        ("denied", "", of("DENY", &header("values: [admin]")), Some(("rules[1]", "a second value"))),
        ("begins", "", of("ALLOW", &header("values: [ad*]")), Some(("rules[1]", "a second value"))),
        (
            "binary",
            "",
            of("ALLOW", &header("values: [a]").replace("x-role", "a-bin")),
            Some(("rules[1]", "do not see")),
        ),
        ("template", "", of("ALLOW", "{to: [{operation: {paths: ['/{*}']}}]}"), Some(("rules[1]", "a path template"))),
        ("sni", "", of("DENY", "{when: [{key: connection.sni, values: [a]}]}"), Some(("rules[1]", "connection.sni"))),
        ("audit", "", of("AUDIT", &header("values: [admin]")), Some(("action", "AUDIT is passed over"))),
        ("dry", ", annotations: {istio.io/dry-run: 'true'}", of("DENY", "{}"), Some(("rules", "are not tried"))),
        (
            "custom",
            "",
            "{action: CUSTOM, provider: {name: x}, rules: [{}]}".to_owned(),
            Some(("spec", "no extension provider `x`")),
        ),
    ];
    for (name, more, spec, expected) in cases {
        std::fs::write(dir.path().join("policy.yaml"), policy(name, more, &spec)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
        let output = command.args(["validate", "--for", "grpc", "-o", "json"]).arg(dir.path()).output().unwrap();
        let findings: Vec<Value> = String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|finding: &Value| finding["severity"] != "info")
            .collect();
        match expected {
            None => assert_eq!(findings, Vec::<Value>::new(), "{name}"),
            Some((field, what)) => {
                let told = findings.iter().find(|finding| finding["field"] == field);
                let told = told.unwrap_or_else(|| panic!("{name}: {findings:?}"));
                assert!(told["message"].as_str().unwrap().contains(what), "{name}: {told}");
            }
        }
    }
}

#[test]
fn what_only_a_proxy_may_set_is_not_looked_at_and_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop}\nspec: {selector: {app: api}, ports: [{port: 80}]}\n---\n\
        apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n\
        spec: {rules: [{when: [{key: 'request.headers[x-envoy-internal]', values: ['true']}]}]}\n";
    std::fs::write(dir.path().join("a.yaml"), text).unwrap();
    let said = out(dir.path(), &["--to", "shop/api", "--header", "X-Envoy-Internal: true"]);
    assert!(said.starts_with("deny: no rule is for it\n") && said.contains("note: X-Envoy-Internal is not"), "{said}");
}

#[test]
fn a_port_that_a_workload_chose_stands_for_no_other_one_in_a_rule_that_lets_in() {
    let dir = tempfile::tempdir().unwrap();
    let write = |action: &str, rule: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: own, namespace: shop}}\n\
             spec: {{selector: {{app: own}}, ports: [{{name: http, port: 80}}]}}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: admin, namespace: shop}}\n\
             spec: {{selector: {{app: own}}, ports: [{{name: http, port: 40001}}]}}\n---\n\
             apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{action: {action}, rules: [{{to: [{{operation: {{{rule}}}}}]}}]}}\n"
        );
        std::fs::write(dir.path().join("a.yaml"), text).unwrap();
    };
    let verdict = |port: &str| {
        let told = out(dir.path(), &["--to", "shop/own", "--port", port]);
        told.split(':').next().unwrap_or_default().to_owned()
    };
    let mut verdicts = Vec::new();
    for (action, rule) in [("ALLOW", "ports: ['80']"), ("DENY", "ports: ['80']"), ("ALLOW", "notPorts: ['80']")] {
        write(action, rule);
        // The target port; one that was chosen; one that the system picked, which stands for a service's only port; one that
        // another service names, and is no other one's.
        verdicts.push(["80", "8081", "40000", "40001"].map(verdict));
    }
    assert_eq!(
        verdicts,
        [["allow", "deny", "allow", "deny"], ["deny", "deny", "deny", "allow"], ["deny", "deny", "deny", "allow"],]
    );
}

#[test]
fn a_workload_is_named_with_its_namespace_first_and_the_other_way_round_only_where_that_is_clear() {
    let dir = config();
    let asked = |to: &str| run(dir.path(), &["--to", to, "--header", "x-role: admin"]);
    let said = |to: &str| (asked(to).status.code(), String::from_utf8(asked(to).stderr).unwrap());
    assert_eq!(said("shop/reviews"), (Some(0), String::new()));
    let (code, told) = said("reviews/shop");
    assert!(code == Some(0) && told.contains("is taken for shop/reviews: the namespace comes first"), "{told}");
    // With a namespace of the workload's name, the first one is the namespace.
    let twin = "---\napiVersion: v1\nkind: Service\nmetadata: {name: shop, namespace: reviews}\nspec: {selector: {app: shop}, ports: [{port: 80}]}\n";
    std::fs::write(dir.path().join("twin.yaml"), twin).unwrap();
    for (to, expected) in [("shop/reviews", "reviews in namespace shop"), ("reviews/shop", "shop in namespace reviews")]
    {
        let (code, told) = said(to);
        assert!(code == Some(0) && told.contains(&format!("--to {to} is {expected}; there is")), "{told}");
    }
    assert!(why(dir.path(), &["--to", "a/b/c"]).contains("NAMESPACE/NAME is needed"));
}

/// A preview of files by records in a file: its exit code, what it says, and what it says besides.
fn preview(dir: &Path, file: &str, records: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
    command.args(["authz", "preview", file, "--records", records, "--config"]).arg(dir);
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Calls to `reviews`: one of somebody, one of nobody.
fn records(dir: &Path) -> String {
    let workload = json!({"namespace": "shop", "name": "reviews", "service_account": "default", "proven": true, "labels": {"app": "reviews"}});
    let line = |principal: Value| {
        format!(
            "{}\n",
            json!({"workload": workload, "principal": principal, "method": "GET", "path": "/a", "port": 9080, "verdict": "allow",
                "rule": null, "count": 2, "first": 1, "last": 2})
        )
    };
    let file = dir.join("records.jsonl");
    std::fs::write(&file, line(Value::Null) + &line("spiffe://cluster.local/ns/shop/sa/web".into())).unwrap();
    file.to_str().unwrap().to_owned()
}

const REVIEWS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews, namespace: shop}\n\
                       spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}\n";

fn object(kind: &str, metadata: &str, spec: &str) -> String {
    format!("apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{{metadata}}}\nspec: {spec}\n")
}

#[test]
fn a_preview_tries_peer_authentications_and_names_what_it_does_not_try() {
    let (dir, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("a.yaml"), REVIEWS).unwrap();
    let records = records(beside.path());
    let tried = |text: &str| {
        let file = beside.path().join("new.yaml");
        std::fs::write(&file, text).unwrap();
        preview(dir.path(), file.to_str().unwrap(), &records)
    };
    let peers =
        |mode: &str| object("PeerAuthentication", "name: p, namespace: shop", &format!("{{mtls: {{mode: {mode}}}}}"));
    let (code, said, _) = tried(&peers("STRICT"));
    assert_eq!(code, Some(3));
    assert!(
        said.starts_with("deny: 2 calls of callers without an identity to shop/reviews: GET /a: plaintext is refused by PeerAuthentication shop/p (STRICT)"),
        "{said}"
    );
    assert!(said.contains("of 2 (4 calls) that were recorded, 1 (2 calls) would be refused"), "{said}");
    assert_eq!(tried(&peers("PERMISSIVE")).0, Some(0));
    // In plaintext nobody is known.
    let allow = object(
        "AuthorizationPolicy",
        "name: a, namespace: shop",
        "{rules: [{from: [{source: {principals: ['cluster.local/ns/shop/sa/web']}}]}]}",
    );
    let (_, said, _) = tried(&format!("{allow}---\n{}", peers("DISABLE")));
    assert!(said.contains("of 2 (4 calls) that were recorded, 2 (4 calls) would be refused"), "{said}");

    let tokens = object(
        "RequestAuthentication",
        "name: t, namespace: shop",
        "{jwtRules: [{issuer: a, jwksUri: https://a.example/keys}]}",
    );
    let (code, said, besides) = tried(&format!("{allow}---\n{tokens}"));
    assert!(code == Some(3) && said.contains("that were recorded"), "{said}");
    assert!(
        besides.contains("RequestAuthentication shop/t (") && besides.contains("is not tried: tokens are in no record"),
        "{besides}"
    );
    let (code, said, besides) = tried(&tokens);
    assert!(code == Some(1) && said.is_empty() && besides.contains("nothing in it can be tried"), "{besides}");
}

#[test]
fn a_preview_of_a_policy_that_is_for_no_recorded_workload_says_where_it_is() {
    let (dir, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("a.yaml"), REVIEWS).unwrap();
    let records = records(beside.path());
    let said = |metadata: &str, spec: &str| {
        let file = beside.path().join("new.yaml");
        std::fs::write(&file, object("AuthorizationPolicy", metadata, spec)).unwrap();
        preview(dir.path(), file.to_str().unwrap(), &records).2
    };
    let hint = said("name: a", "{}");
    assert!(
        hint.contains("AuthorizationPolicy default/a (") && hint.contains("is in force for no workload of the records: it is in namespace default (`metadata.namespace` says which), and the workloads of the records are in shop"),
        "{hint}"
    );
    let hint = said("name: a, namespace: shop", "{selector: {matchLabels: {app: other}}}");
    assert!(hint.contains("is in force for no workload of the records\n"), "{hint}");
    assert!(!said("name: a, namespace: shop", "{}").contains("no workload of the records"));
}

#[test]
fn what_has_no_end_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), REVIEWS).unwrap();
    let beside = tempfile::tempdir().unwrap();
    let pipe = beside.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let policy = beside.path().join("new.yaml");
    std::fs::write(&policy, object("AuthorizationPolicy", "name: a, namespace: shop", "{}")).unwrap();
    let [pipe, policy] = [&pipe, &policy].map(|path| path.to_str().unwrap().to_owned());
    let records = records(beside.path());
    for endless in [&*pipe, "/dev/zero"] {
        for (file, records) in [(endless, &*records), (&*policy, endless)] {
            let (code, _, why) = preview(dir.path(), file, records);
            assert!(code == Some(1) && why.contains(endless) && why.contains("not a regular file"), "{why}");
        }
        assert!(why(dir.path(), &["--requests", endless]).contains("not a regular file"));
        let mut validate = Command::new(env!("CARGO_BIN_EXE_mesh-control"));
        let output = validate.args(["validate", endless]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.code() == Some(1) && said.contains("not a regular file"), "{said}");
    }
    let (code, _, why) = preview(dir.path(), &policy, dir.path().to_str().unwrap());
    assert!(code == Some(1) && why.contains("not a regular file"), "{why}");
    // A line has an end, too.
    let long = beside.path().join("long.jsonl");
    std::fs::write(&long, vec![b'x'; (1 << 20) + 1]).unwrap();
    let (code, _, why) = preview(dir.path(), &policy, long.to_str().unwrap());
    assert!(code == Some(1) && why.contains("long.jsonl:1: a line of more than 1 MiB"), "{why}");
}
