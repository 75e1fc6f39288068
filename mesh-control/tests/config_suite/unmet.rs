//! What is written of ports and of callers that there are not, and ports that are called in plaintext: told at the field.

use mesh_control::analysis::{Mesh, validate, validate_scan};
use mesh_control::config::load::Scan;
use mesh_control::plane::{Plane, PlaneOptions};

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: admin, port: 90}]}
---
apiVersion: v1
kind: Service
metadata: {name: own, namespace: shop}
spec: {selector: {app: own}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: named, namespace: shop}
spec: {selector: {app: named}, ports: [{name: http, port: 80, targetPort: http}]}
";

fn policy(spec: &str) -> String {
    format!(
        "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n{spec}\n"
    )
}

/// The findings about ports and callers: the text that they point at, and what they say.
fn said(text: &str) -> Vec<(String, String)> {
    let mut scan = Scan::default();
    scan.files.insert("t.yaml".into(), Ok(text.into()));
    let found = validate_scan(scan, Mesh { issues_certificates: true, ..Mesh::default() }).diagnostics;
    let place = |line: u32, column: u32| {
        let line = text.lines().nth(line as usize - 1).unwrap_or_default();
        line.chars().skip(column as usize - 1).collect::<String>()
    };
    found.iter().map(|one| (place(one.line, one.column), one.to_string())).collect()
}

fn check(text: &str, expected: Option<(&str, &[&str])>) {
    let found = said(text);
    match (expected, &found[..]) {
        (None, []) => {}
        (Some((at, parts)), [(place, message)]) => {
            assert!(place.starts_with(at), "{message}: at {place}");
            assert!(message.contains("warning[unknown-reference]"), "{message}");
            for part in parts {
                assert!(message.contains(part), "{part} not in {message}");
            }
        }
        _ => panic!("{text}: {found:?}"),
    }
}

#[test]
fn a_port_of_a_policy_that_no_selected_workload_listens_on_is_told_with_the_one_that_was_meant() {
    let of = |app: &str, rule: &str| {
        let selector =
            if app.is_empty() { String::new() } else { format!("  selector: {{matchLabels: {{app: {app}}}}}\n") };
        format!("{SERVICES}{}", policy(&format!("{selector}  rules:\n{rule}")))
    };
    let meant = [
        "no service of these workloads has the target port 80, only 90, 8080",
        "did you mean `8080`, the target port of port 80 of shop/web?",
        "it lets nobody in",
    ];
    check(&of("web", "  - to:\n    - operation:\n        ports: [\"8080\", \"80\"]"), Some(("\"80\"", &meant)));
    check(&of("web", "  - when:\n    - {key: destination.port, values: ['80']}"), Some(("'80'", &meant)));
    check(
        &of("web", "  - to: [{operation: {notPorts: ['80'], methods: [GET]}}]"),
        Some(("'80'", &["it excludes nobody"])),
    );
    check(
        &of("web", "  - to: [{operation: {ports: ['80']}}]").replace("spec:\n  sel", "spec:\n  action: DENY\n  sel"),
        Some(("'80'", &["it refuses nobody"])),
    );
    check(
        &of("web", "  - to: [{operation: {ports: ['7']}}]"),
        Some(("'7'", &["the target port 7, only 90, 8080; as it is"])),
    );
    // By a target: its services are the ones that count.
    let by_target = of("", "  - to: [{operation: {ports: ['80']}}]")
        .replace("  rules:", "  targetRefs: [{kind: Service, name: web}]\n  rules:");
    check(&by_target, Some(("'80'", &meant)));
    for (app, rule) in [
        ("web", "  - to: [{operation: {ports: ['8080', '90']}}]"),
        ("own", "  - to: [{operation: {ports: ['80']}}]"),
        // A name stands for whatever number the workload says.
        ("named", "  - to: [{operation: {ports: ['7']}}]"),
    ] {
        check(&of(app, rule), None);
    }
    let nobody = of("nobody", "  - to: [{operation: {ports: ['7']}}]");
    check(&nobody, Some(("matchLabels", &["no workload that is known has app: `nobody`; there are "])));
}

#[test]
fn a_port_of_a_peer_authentication_is_told_at_its_own_line() {
    let text = format!(
        "{SERVICES}\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: shop}}\nspec:\n  \
         selector:\n    matchLabels: {{app: web}}\n  portLevelMtls:\n    8080:\n      mode: DISABLE\n    80:\n      mode: STRICT\n"
    );
    check(&text, Some(("80:", &["portLevelMtls.80", "did you mean `8080`"])));
    let wrong = said(&text.replace("    80:", "    eighty:"));
    assert!(
        wrong.iter().any(|(place, message)| place.starts_with("eighty") && message.contains("is not a port")),
        "{wrong:?}"
    );
}

#[test]
fn what_a_rule_asks_of_tls_or_of_requests_is_told_where_a_port_has_none() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\n\
        spec: {selector: {app: db}, ports: [{name: http, port: 80}, {name: tcp, port: 5432, targetPort: 5433}]}\n";
    let plaintext = |port: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: plain, namespace: shop}}\n\
             spec: {{selector: {{matchLabels: {{app: db}}}}, portLevelMtls: {{{port}: {{mode: DISABLE}}}}}}\n"
        )
    };
    let told = |more: &str, action: &str, rules: &str| {
        let rules =
            policy(&format!("  selector: {{matchLabels: {{app: db}}}}\n  action: {action}\n  rules: [{rules}]"));
        let found = said(&format!("{service}{more}{rules}")).into_iter().map(|(_, message)| message);
        found.filter(|message| message.contains("warning[ignored]")).collect::<Vec<_>>()
    };
    let sni = "{when: [{key: connection.sni, values: [db]}]}";
    let known = "{from: [{source: {namespaces: [shop]}}]}";
    let unknown = "{from: [{source: {notNamespaces: [shop]}}]}";
    let at_http = "{to: [{operation: {ports: ['80']}}], when: [{key: connection.sni, values: [db]}]}";
    let paths = "{to: [{operation: {paths: [/x]}}]}";
    let here = "port 5433 of shop/db takes plaintext by PeerAuthentication shop/plain (t.yaml";
    let raw = "port 5433 of shop/db carries no requests: ";
    for (more, action, rules, expected) in [
        (
            plaintext("5433"),
            "ALLOW",
            sni,
            &[here, "no client asks for a name there (`connection.sni`); as it is, it lets nobody in"][..],
        ),
        (plaintext("5433"), "DENY", sni, &[here, "it refuses nobody there"]),
        (
            plaintext("5433"),
            "DENY",
            known,
            &[here, "no client shows there who it is; as it is, it refuses nobody there"],
        ),
        (plaintext("5433"), "ALLOW", unknown, &[here]),
        (plaintext("5433"), "DENY", unknown, &[]),
        (plaintext("5433"), "DENY", at_http, &[]),
        (plaintext("80"), "DENY", at_http, &["port 80 of shop/db takes plaintext"]),
        (String::new(), "DENY", sni, &[]),
        (String::new(), "ALLOW", paths, &[raw, "all of these rules ask about some, and let no connection in there"]),
        (String::new(), "ALLOW", &format!("{paths}, {known}"), &[]),
        (String::new(), "DENY", paths, &[raw, "this is taken to hold there"]),
    ] {
        match (&told(&more, action, rules)[..], expected) {
            ([], []) => {}
            ([message], parts) if !parts.is_empty() => {
                assert!(parts.iter().all(|part| message.contains(part)), "{action} {rules}: {message}");
            }
            (found, _) => panic!("{action} {rules}: {found:?}"),
        }
    }
}

#[test]
fn callers_that_nobody_is_are_told_with_those_who_were_meant() {
    let group = "\n---\napiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {name: web, namespace: shop}\nspec: {template: {serviceAccount: frontend}}\n";
    let of = |source: &str| {
        format!("{SERVICES}{group}{}", policy(&format!("  rules: [{{from: [{{source: {{{source}}}}}]}}]")))
    };
    let unmet: [(&str, &str, &[&str]); 15] = [
        (
            "principals: ['web']",
            "'web'",
            &["TRUST-DOMAIN/ns/NAMESPACE/sa/NAME", "did you mean `cluster.local/ns/shop/sa/web`?", "it lets nobody in"],
        ),
        ("principals: ['xx/xxx']", "'xx/xxx'", &["the mesh's trust domain is cluster.local, not `xx`"]),
        (
            "principals: ['cluster.local/ns/shop/web']",
            "'cluster",
            &["workloads of the mesh are called cluster.local/ns/NAMESPACE/sa/NAME"],
        ),
        ("principals: ['cluster.local/ns/shop/sa/web/x']", "'cluster", &["workloads of the mesh are called"]),
        ("principals: ['cluster.local/ns//sa/web']", "'cluster", &["nobody is called so"]),
        ("principals: ['Cluster.Local/ns/shop/sa/web']", "'Cluster", &["nobody is called so"]),
        ("principals: ['cluster.locl/ns/shop/sa/web']", "'cluster", &["did you mean `cluster.local`?"]),
        (
            "principals: ['cluster.local/ns/shpo/sa/web']",
            "'cluster",
            &["no object is in namespace `shpo`; did you mean `shop`?"],
        ),
        (
            "principals: ['cluster.local/ns/shop/sa/frontned']",
            "'cluster",
            &["service account shop/`frontned`; did you mean `frontend`?"],
        ),
        ("principals: ['cluster.local/ns/shpo/*']", "'cluster", &["did you mean `shop`?"]),
        ("notPrincipals: ['web']", "'web'", &["it excludes nobody"]),
        ("namespaces: ['shpo']", "'shpo'", &["no object is in namespace `shpo`; did you mean `shop`?"]),
        ("namespaces: ['prod-*']", "'prod-", &["no object is in a namespace `prod-*`"]),
        ("serviceAccounts: ['shpo/frontend']", "'shpo", &["did you mean `shop`?"]),
        ("trustDomains: ['cluster.locl']", "'cluster.locl'", &["did you mean `cluster.local`?"]),
    ];
    for (source, at, parts) in unmet {
        check(&of(source), Some((at, parts)));
    }
    for source in [
        "principals: ['cluster.local/ns/shop/sa/web', 'cluster.local/ns/shop/sa/frontend', '*/ns/shop/sa/x', 'cluster.local/*', '*']",
        "namespaces: ['shop', 'sh*', '*op', '*']",
        "serviceAccounts: ['frontend', 'shop/anybody']",
        "trustDomains: ['cluster.local']",
    ] {
        check(&of(source), None);
    }
    let when = policy(
        "  rules: [{when: [{key: source.namespace, values: ['shpo']}, {key: source.principal, notValues: ['me']}]}]",
    );
    assert_eq!(said(&format!("{SERVICES}{when}")).len(), 2);
    let issuer = said(&of("requestPrincipals: ['me']"));
    assert!(
        issuer.iter().any(|(_, message)| message.contains("it is written ISSUER/SUBJECT, and never matches")),
        "{issuer:?}"
    );
}

#[test]
fn workloads_of_foreign_trust_domains_are_known_where_domains_are_federated() {
    let plane = Plane::start(PlaneOptions::default().federated(true)).unwrap();
    let told = |principal: &str| {
        let rules = policy(&format!("  rules: [{{from: [{{source: {{principals: ['{principal}']}}}}]}}]"));
        plane.set_yaml("c.yaml", &format!("{SERVICES}{rules}")).unwrap();
        plane.diagnostics().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(told("partner.example/billing"), Vec::<String>::new());
    assert_eq!(told("partner.example/ns/theirs/sa/web"), Vec::<String>::new());
    // Which domains those are is not written in the objects: one that is nearly the mesh's own may be meant, too.
    assert_eq!(told("cluster.locl/ns/shop/sa/web"), Vec::<String>::new());
}

#[test]
fn a_port_that_speaks_tls_and_is_called_in_plaintext_is_told_with_what_to_write() {
    let entry = |ports: &str, more: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: shop}}\n\
             spec: {{hosts: [api.example.com, b.example.com], resolution: DNS, ports: [{ports}]{more}}}\n"
        )
    };
    let rule = |spec: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let https = "{number: 443, name: https, protocol: HTTPS}";
    let simple = "trafficPolicy: {tls: {mode: SIMPLE}}";
    let of_port = "trafficPolicy: {portLevelSettings: [{port: {number: 443}, tls: {mode: SIMPLE}}]}";
    let all = rule(&format!("{{host: '*.example.com', {simple}}}"));
    let by_name = |host: &str, port: u16| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r, namespace: shop}}\nspec: {{hosts: ['{host}'], \
             tls: [{{match: [{{port: {port}, sniHosts: ['{host}']}}], route: [{{destination: {{host: api.example.com, port: {{number: 443}}}}}}]}}]}}\n"
        )
    };
    let cases = [
        (entry(https, ""), Some(("protocol: HTTPS", "port 443 of api.example.com, b.example.com"))),
        (entry("{number: 443, name: x, protocol: tls}", ""), Some(("protocol: tls", "port 443"))),
        (entry("{number: 443, name: https-api}", ""), Some(("name: https-api", "port 443"))),
        (
            entry(https, "") + &rule(&format!("{{host: api.example.com, {simple}}}")),
            Some(("protocol: HTTPS", "port 443 of b.example.com;")),
        ),
        (entry(https, "") + &all.replace("SIMPLE", "DISABLE"), Some(("protocol: HTTPS", "port 443 of"))),
        (entry(https, "") + &all, None),
        (entry(https, "") + &rule(&format!("{{host: '*.example.com', {of_port}}}")), None),
        (entry("{number: 80, name: http}", ""), None),
        // Who asks for the server's name speaks TLS by itself.
        (entry(https, "") + &by_name("*.example.com", 443), None),
        (entry(https, "") + &by_name("*.example.com", 444), Some(("protocol: HTTPS", "port 443 of"))),
        (
            entry(https, "") + &by_name("b.example.com", 443).replace("host: api", "host: b"),
            Some(("protocol: HTTPS", "port 443 of api.example.com;")),
        ),
        // Also by a name that is another's.
        (
            entry(https, "") + &by_name("front.example.org", 443),
            Some(("protocol: HTTPS", "port 443 of b.example.com;")),
        ),
        (
            entry(https, "") + &by_name("front.example.org", 443).replace("{number: 443}}}]}", "{number: 444}}}]}"),
            Some(("protocol: HTTPS", "port 443 of api.example.com, b.example.com;")),
        ),
        (
            entry(
                https,
                ", endpoints: [{address: a.internal, serviceAccount: web, labels: {security.istio.io/tlsMode: istio}}]",
            ),
            None,
        ),
    ];
    for (text, expected) in cases {
        let found = said(&text);
        let found: Vec<_> = found.iter().filter(|(_, message)| message.contains("called in plaintext")).collect();
        match (expected, &found[..]) {
            (None, []) => {}
            (Some((at, part)), [(place, message)]) => {
                assert!(place.starts_with(at), "{message}: at {place}");
                assert!(message.contains("warning[insecure]") && message.contains(part), "{message}");
                assert!(
                    message.contains("portLevelSettings: [{port: {number: 443}, tls: {mode: SIMPLE}}]"),
                    "{message}"
                );
            }
            _ => panic!("{text}: {found:?}"),
        }
    }
    // What is told to be written is right.
    let written =
        "{host: api.example.com, trafficPolicy: {portLevelSettings: [{port: {number: 443}, tls: {mode: SIMPLE}}]}}";
    let single = entry(https, "").replace(", b.example.com", "");
    assert_eq!(validate([("a.yaml", &*(single + &rule(written)))]), []);
}

#[test]
fn the_labels_of_the_pods_that_a_deployment_makes_are_known() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{name: http, port: 80}]}\n";
    let policy = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n\
                  spec: {selector: {matchLabels: {app: cron}}, rules: [{}]}\n";
    let made = |kind: &str, namespace: &str, spec: &str| {
        format!(
            "---\napiVersion: batch/v1\nkind: {kind}\nmetadata: {{name: cron, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let pods = "template: {metadata: {labels: {app: cron}}}";
    let job = made("CronJob", "default", &format!("{{jobTemplate: {{spec: {{{pods}}}}}}}"));
    let deployment = |namespace: &str| made("Deployment", namespace, &format!("{{{pods}}}")).replace("batch", "apps");
    for (more, is_known) in [
        (String::new(), false),
        (deployment("default"), true),
        (job, true),
        (deployment("shop"), false),
        (deployment("default").replace("cron}}}", "corn}}}"), false),
    ] {
        let found = validate([("a.yaml", &*format!("{service}{policy}{more}"))]);
        let is_told =
            found.iter().any(|finding| finding.to_string().contains("no workload that is known has app: `cron`"));
        assert_eq!(is_told, !is_known, "{more}: {found:?}");
    }
}

#[test]
fn a_host_without_dots_that_a_rule_does_not_mean_is_told_with_the_form_that_it_takes() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: db, namespace: shop}\n\
                 spec: {hosts: [mysql], resolution: DNS, ports: [{number: 80, name: http}]}\n";
    let object = |kind: &str, spec: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let rules = |host: &str| {
        [
            object("DestinationRule", &format!("{{host: {host}}}")),
            object("VirtualService", &format!("{{hosts: [{host}], http: [{{directResponse: {{status: 200}}}}]}}")),
            object(
                "VirtualService",
                &format!("{{hosts: [a.example], http: [{{route: [{{destination: {{host: {host}}}}}]}}]}}"),
            ),
        ]
    };
    for rule in rules("mysql") {
        let [(place, message)] = &said(&format!("{entry}{rule}"))[..] else { panic!("{rule}") };
        assert!(place.starts_with("mysql"), "{message}");
        assert!(message.contains("no service is called mysql.shop.svc.cluster.local"), "{message}");
        assert!(message.contains("did you mean `mysql.`, the host of ServiceEntry shop/db (t.yaml:"), "{message}");
    }
    // What is told to be written is right.
    for rule in rules("mysql.") {
        assert_eq!(said(&format!("{entry}{rule}")), [], "{rule}");
    }
}

#[test]
fn a_cors_policy_whose_preflights_meet_none_of_its_conditions_is_told() {
    let header = |name: &str| format!("[{{headers: {{{name}: {{exact: a}}}}}}]");
    for (matches, is_told) in [
        (header("x-tenant"), true),
        (header("authorization"), true),
        (header("origin"), false),
        ("[{method: {exact: GET}}]".to_owned(), true),
        ("[{method: {regex: 'GET|OPTIONS'}}]".to_owned(), false),
        ("[{uri: {prefix: /a}, headers: {x-tenant: {}}}, {uri: {prefix: /a}}]".to_owned(), false),
        ("[]".to_owned(), false),
    ] {
        let yaml = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  hosts: [web.example.com]\n  http:\n  \
             - {{match: {matches}, corsPolicy: {{allowOrigins: [{{exact: 'https://a.example.com'}}]}}, route: [{{destination: {{host: web.example.com}}}}]}}\n"
        );
        let found: Vec<String> =
            mesh_control::analysis::validate([("t.yaml", yaml.as_str())]).iter().map(ToString::to_string).collect();
        let told = found.iter().any(|line| line.contains("corsPolicy: preflights (OPTIONS"));
        assert_eq!(told, is_told, "{matches}: {found:#?}");
    }
}

#[test]
fn what_a_namespace_says_of_the_traffic_of_its_services_is_told_to_have_no_effect() {
    let namespace = |more: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop{more}}}\n");
    let annotated = namespace(", annotations: {networking.istio.io/traffic-distribution: PreferClose}");
    for (yaml, is_told) in [(annotated, true), (namespace(""), false)] {
        let found: Vec<String> =
            mesh_control::analysis::validate([("t.yaml", yaml.as_str())]).iter().map(ToString::to_string).collect();
        let told = found.iter().any(|line| line.contains("has no effect on a Namespace"));
        assert_eq!(told, is_told, "{found:#?}");
    }
}
