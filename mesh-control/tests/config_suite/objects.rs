//! What is said of single objects that mean something else than what they seem to.

use mesh_control::analysis::{Mesh, validate, validate_scan};
use mesh_control::catalog::{Catalog, Kind};
use mesh_control::config::load::Scan;
use mesh_control::config::{Source, file};
use mesh_control::plane::{Plane, PlaneOptions};

use crate::support::client;

/// What is said of these texts, one finding a line.
fn said(texts: &[&str]) -> Vec<String> {
    let names = ["a.yaml", "b.yaml", "c.yaml"];
    let found = validate(names.into_iter().zip(texts.iter().copied()));
    found.iter().map(ToString::to_string).collect()
}

fn entry(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: web, namespace: {namespace}}}\nspec:\n  \
         resolution: STATIC\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n  endpoints: [{{address: 10.0.0.1}}]\n  {spec}\n"
    )
}

fn service(namespace: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {namespace}}}\nspec: {{selector: {{app: web}}, ports: [{{port: 80, name: http}}]}}\n"
    )
}

#[test]
fn the_loser_of_two_objects_for_one_host_is_named_with_both_places() {
    let host = "hosts: [web.example.com]";
    let (a, b) = (entry("a", host), entry("b", host));
    assert_eq!(
        said(&[&a, &b]),
        [
            "b.yaml:8:3: warning[conflict]: ServiceEntry b/web: hosts: host web.example.com is also that of ServiceEntry a/web (a.yaml:1), which counts for clients of every namespace but b"
        ]
    );
    // The service counts, whatever the names and ages.
    let squatter = entry("a", "hosts: [web.shop.svc.cluster.local]");
    assert_eq!(
        said(&[&squatter, &service("shop")]),
        [
            "a.yaml:8:3: warning[conflict]: ServiceEntry a/web: hosts: host web.shop.svc.cluster.local is also that of Service shop/web (b.yaml:1), which counts for clients of every namespace but a"
        ]
    );
    let beside = entry("shop", "hosts: [web.shop.svc.cluster.local]");
    let found = said(&[&beside, &service("shop")]);
    assert!(found.iter().any(|line| line.contains("is already that of Service shop/web (b.yaml:1)")), "{found:?}");
    // Wildcards are hosts as others are.
    let (a, b) = (entry("a", "hosts: ['*.example.com']"), entry("b", "hosts: ['*.example.com']"));
    assert_eq!(said(&[&a, &b]).len(), 1);
}

#[test]
fn what_nobody_sees_of_both_is_no_conflict() {
    let host = "hosts: [web.example.com]";
    let private = |namespace| entry(namespace, &format!("{host}\n  exportTo: [.]"));
    assert_eq!(said(&[&private("a"), &private("b")]), [""; 0]);
    assert_eq!(said(&[&private("a"), &entry("b", host)]), [""; 0]);
    assert_eq!(said(&[&entry("a", host), &private("b")]), [""; 0]);
    let to_c = |namespace| entry(namespace, &format!("{host}\n  exportTo: [c]"));
    let found = said(&[&to_c("a"), &to_c("b"), &service("c")]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].ends_with("which counts for clients of c"), "{found:?}");
}

#[test]
fn an_entry_that_takes_the_short_name_of_a_service_is_named() {
    for (host, expected) in [
        ("web", "calls to `web` reach this host, and not Service shop/web (b.yaml:1)"),
        ("web.shop", "calls to `web.shop` reach this host, and not Service shop/web (b.yaml:1)"),
        ("web.shop.svc", "calls to `web.shop.svc` reach this host, and not Service shop/web (b.yaml:1)"),
        ("web.other", ""),
        ("web.shop.example", ""),
    ] {
        let found = said(&[&entry("a", &format!("hosts: [{host}]")), &service("shop")]);
        assert_eq!(found.len(), usize::from(!expected.is_empty()), "{host}: {found:?}");
        assert!(found.iter().all(|line| line.starts_with("a.yaml:8:3: warning[conflict]")), "{found:?}");
        assert!(found.iter().all(|line| line.contains(expected)), "{host}: {found:?}");
    }
}

#[test]
fn what_export_to_cannot_say_is_refused_for_each_kind() {
    let rules = |export_to: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  hosts: [web.example.com]\n  \
             exportTo: {export_to}\n  http: [{{directResponse: {{status: 200}}}}]\n"
        )
    };
    let calling = |export_to: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web}}\nspec:\n  host: '*.example.com'\n  exportTo: {export_to}\n"
        )
    };
    let entry = |export_to: &str| entry("default", &format!("hosts: [web.example.com]\n  exportTo: {export_to}"));
    let service = |export_to: &str| {
        let text = export_to.trim_matches(['[', ']']).replace('\'', "");
        let annotations = format!("annotations: {{networking.istio.io/exportTo: '{text}'}}");
        service("default").replace("namespace: default", &annotations)
    };
    for kind in ["VirtualService", "DestinationRule", "ServiceEntry", "Service"] {
        let text = |export_to: &str| match kind {
            "VirtualService" => rules(export_to),
            "DestinationRule" => calling(export_to),
            "ServiceEntry" => entry(export_to),
            _ => service(export_to),
        };
        let may_be_nobody = kind.starts_with("Service");
        for (export_to, is_wrong) in [
            ("['*']", false),
            ("[.]", false),
            ("[., default]", false),
            ("[]", false),
            ("['~']", !may_be_nobody),
            ("['*', default]", true),
            ("['~', default]", true),
            ("[./]", true),
            ("[Prod]", true),
            ("[a.b]", true),
            ("[default, default]", true),
        ] {
            let found = said(&[&text(export_to)]);
            let is_told = found.iter().any(|line| line.contains("error[invalid-value]") && line.contains("exportTo"));
            assert_eq!((is_told, found.is_empty()), (is_wrong, !is_wrong), "{kind} {export_to}: {found:?}");
        }
        let found = said(&[&text("[defualt]")]);
        assert_eq!(found.len(), 1, "{kind}: {found:?}");
        assert!(found[0].contains("info[unknown-reference]"), "{found:?}");
        assert!(found[0].ends_with("no object is in namespace defualt; did you mean `default`?"), "{found:?}");
    }
    let for_some = calling("['*']") + "  workloadSelector: {matchLabels: {app: a}}\n";
    assert!(said(&[&for_some])[0].contains("only `.` can be set"), "{:?}", said(&[&for_some]));
}

fn rule(policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web}}\nspec: {{host: '*.example.com', {policy}}}\n"
    )
}

#[test]
fn tls_without_a_mode_is_refused_and_a_mistyped_mode_is_one_error() {
    for (tls, expected) in [
        ("sni: a.example", "trafficPolicy.tls.mode: field `mode` is missing: without it, calls are plaintext"),
        ("caCertificates: a.pem", "trafficPolicy.tls.mode: field `mode` is missing"),
        ("insecureSkipVerify: true", "trafficPolicy.tls.mode: field `mode` is missing"),
        ("subjectAltNames: [a]", "trafficPolicy.tls.mode: field `mode` is missing"),
        ("mode: MUTUALL", "`MUTUALL` is none of DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL"),
        ("mode: 1", "expected a string"),
        ("mode: DISABLE, sni: a.example", "warning[ignored]"),
        (
            "mode: SIMPLE, credentialName: a",
            "trafficPolicy.tls.credentialName: without a `workloadSelector` only gateways",
        ),
        ("mode: MUTUAL, clientCertificate: a", "trafficPolicy.tls.privateKey: mode MUTUAL needs a file here"),
        ("mode: MUTUAL, privateKey: a", "trafficPolicy.tls.clientCertificate: mode MUTUAL needs a file here"),
        (
            "mode: SIMPLE, privateKey: a",
            "trafficPolicy.tls.privateKey: without effect: mode SIMPLE shows no certificate",
        ),
        ("mode: SIMPLE, insecureSkipVerify: true", "warning[insecure]"),
        (
            "mode: SIMPLE, insecureSkipVerify: true, caCertificates: a",
            "trafficPolicy.tls.insecureSkipVerify: nothing is",
        ),
        (
            "mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [a]",
            "trafficPolicy.tls.insecureSkipVerify: nothing is",
        ),
        ("mode: SIMPLE, subjectAltNames: [a, '']", "trafficPolicy.tls.subjectAltNames[1]: no name"),
        ("mode: SIMPLE, sni: '*.example.com'", "trafficPolicy.tls.sni: not the name of a host"),
    ] {
        let found = said(&[&rule(&format!("trafficPolicy: {{tls: {{{tls}}}}}"))]);
        assert_eq!(found.len(), 1, "{tls}: {found:?}");
        assert!(found[0].contains(expected), "{tls}: {found:?}");
        let of_port = format!("trafficPolicy: {{portLevelSettings: [{{port: {{number: 80}}, tls: {{{tls}}}}}]}}");
        let of_subset = format!("subsets: [{{name: a, labels: {{a: b}}, trafficPolicy: {{tls: {{{tls}}}}}}}]");
        for policy in [of_port, of_subset] {
            let found = said(&[&rule(&policy)]);
            assert!(found.iter().any(|line| line.contains(expected.trim_start_matches("trafficPolicy."))), "{found:?}");
        }
    }
    for field in [
        "caCertificates: a",
        "caCrl: a",
        "clientCertificate: a",
        "privateKey: a",
        "credentialName: a",
        "insecureSkipVerify: true",
    ] {
        let found = said(&[&rule(&format!("trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL, {field}}}}}"))]);
        let name = field.split(':').next().unwrap();
        let expected = format!("trafficPolicy.tls.{name}: without effect: mode ISTIO_MUTUAL takes the mesh's own");
        assert!(found.iter().any(|line| line.contains("warning[ignored]") && line.contains(&expected)), "{found:?}");
    }
    let both = said(&[&rule("trafficPolicy: {tls: {mode: SIMPLE, credentialName: a, caCrl: b}}")]);
    assert!(both[0].contains("trafficPolicy.tls.caCrl: only one of `credentialName` and files"), "{both:?}");
    for enforced in [
        "mode: DISABLE",
        "mode: SIMPLE, caCertificates: a, subjectAltNames: [a], sni: a.example, caCrl: c, insecureSkipVerify: false",
        "mode: MUTUAL, clientCertificate: a, privateKey: b",
    ] {
        assert_eq!(said(&[&rule(&format!("trafficPolicy: {{tls: {{{enforced}}}}}"))]), [""; 0], "{enforced}");
    }
}

#[test]
fn a_case_that_is_ignored_to_no_effect_is_named() {
    let found = |condition: &str| {
        let rules = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  hosts: [web.example.com]\n  \
             http: [{{match: [{{{condition}, ignoreUriCase: true}}], directResponse: {{status: 200}}}}]\n"
        );
        said(&[&rules])
    };
    assert_eq!(found("uri: {exact: /a}"), [""; 0]);
    assert_eq!(found("uri: {prefix: /a}"), [""; 0]);
    for condition in ["uri: {regex: /a}", "uri: {}", "method: {exact: GET}"] {
        let found = found(condition);
        assert_eq!(found.len(), 1, "{condition}: {found:?}");
        assert!(found[0].contains("warning[ignored]"), "{found:?}");
        assert!(found[0].contains("http[0].match[0].ignoreUriCase: without effect: "), "{found:?}");
    }
}

#[test]
fn a_selector_with_a_wildcard_is_refused_and_one_that_selects_hardly_anybody_is_named() {
    let of_entry = |labels: &str| {
        entry("default", &format!("hosts: [web.example.com]\n  workloadSelector: {{labels: {{{labels}}}}}"))
            .replace("  endpoints: [{address: 10.0.0.1}]\n", "")
    };
    let of_service = |labels: &str| service("default").replace("app: web", labels);
    for is_entry in [true, false] {
        let text = |labels: &str| if is_entry { of_entry(labels) } else { of_service(labels) };
        for (labels, expected) in [
            ("app: '*'", "error[invalid-value]"),
            ("'app*': web", "error[invalid-value]"),
            ("'': web", "error[invalid-value]"),
            ("app: ''", "warning[ignored]"),
        ] {
            let found = said(&[&text(labels)]);
            assert_eq!(found.len(), 1, "{labels}: {found:?}");
            assert!(found[0].contains(expected) && found[0].contains("elector"), "{labels}: {found:?}");
        }
        assert_eq!(said(&[&text("app: web")]), [""; 0]);
    }
    assert!(said(&[&of_entry("")])[0].contains("without labels it selects no workload"));
}

#[test]
fn a_policy_for_an_object_of_another_namespace_is_refused_and_guards_all_of_its_own() {
    for kind in ["AuthorizationPolicy", "RequestAuthentication"] {
        for (target, is_wrong) in [
            ("targetRef: {kind: Service, name: web, namespace: other}", true),
            ("targetRefs: [{kind: Service, name: web, namespace: other}]", true),
            ("targetRefs: [{kind: Service, name: web, namespace: shop}]", false),
            ("targetRefs: [{kind: Service, name: web}]", false),
        ] {
            let text = format!(
                "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: a, namespace: shop}}\nspec: {{{target}}}\n"
            );
            let found = said(&[&text, &service("shop"), &service("other")]);
            let is_told = found.iter().any(|line| line.contains("`other` is not the policy's own namespace, shop"));
            assert_eq!(is_told, is_wrong, "{kind} {target}: {found:?}");
            let read = file::read(Source { name: "t.yaml".into(), text: text.into() });
            assert_eq!(read.rejected, is_wrong, "{kind} {target}");
            if let file::Item::Refused(refused) = &read.items[0] {
                let all = file::Governs::Workloads(file::Workloads::Labelled(Default::default()));
                assert_eq!(refused.governs, all, "{kind} {target}");
            }
        }
    }
}

#[test]
fn a_substitution_that_no_path_can_have_is_refused() {
    for (rewrite, is_wrong) in [("/a#b", true), ("/a b", true), ("/a\\1#", true), ("/a?b=\\1", false), ("a-\\1", false)]
    {
        let rules = format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  hosts: [web.example.com]\n  http:\n  \
             - rewrite: {{uriRegexRewrite: {{match: '(x)', rewrite: '{rewrite}'}}}}\n    route: [{{destination: {{host: web.example.com}}}}]\n"
        );
        let found = said(&[&rules, &entry("default", "hosts: [web.example.com]")]);
        let is_told = found
            .iter()
            .any(|line| line.contains("uriRegexRewrite.rewrite: ") && line.contains("is no part of a path"));
        assert_eq!((is_told, found.is_empty()), (is_wrong, !is_wrong), "{rewrite}: {found:?}");
    }
}

#[test]
fn a_probe_that_nobody_can_ask_is_told_and_one_that_istio_refuses_is_wrong() {
    let (warned, wrong) = (Some("warning["), Some("error["));
    for (probe, severity, part) in [
        ("{timeoutSeconds: 2, httpGet: {path: /a?b=c, port: 80, host: '::1', scheme: http}}", None, ""),
        ("{tcpSocket: {port: 80, host: localhost}}", None, ""),
        ("{grpc: {port: 80}}", None, ""),
        ("{}", warned, "it says nothing to ask"),
        ("{initialDelaySeconds: 5, tcpSocket: {port: 80}}", warned, "a member is asked at once"),
        ("{exec: {command: [ls]}}", warned, "no command is run"),
        ("{httpGet: {port: 80, scheme: HTTPS}}", warned, "probe.httpGet.scheme"),
        ("{httpGet: {port: 80, host: a.example.com}}", warned, "probe.httpGet.host"),
        (
            "{httpGet: {port: 80, httpHeaders: [{name: Upgrade, value: h2c}]}}",
            warned,
            "probe.httpGet.httpHeaders[0].name",
        ),
        ("{httpGet: {path: /}}", wrong, "probe.httpGet.port"),
        ("{httpGet: {port: 80, httpHeaders: [{name: Host, value: a b}]}}", wrong, "`a b` is no host"),
        ("{httpGet: {port: 80}, tcpSocket: {port: 80}}", wrong, "only one of"),
        ("{periodSeconds: -1, tcpSocket: {port: 80}}", wrong, "-1 is less than zero"),
    ] {
        let found = said(&[&format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: vms, namespace: shop}}\nspec: {{probe: {probe}}}\n"
        )]);
        match severity {
            None => assert!(found.is_empty(), "{probe}: {found:?}"),
            Some(severity) => {
                let is_told = found.iter().any(|line| line.contains(severity) && line.contains(part));
                assert!(is_told, "{probe}: {found:?}");
            }
        }
    }
}

#[test]
fn a_probe_that_some_members_cannot_be_asked_is_told_of_for_those() {
    let found = |probe: &str, mesh: Mesh| {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: vms, namespace: shop}}\nspec: {{probe: {probe}}}\n"
        );
        let mut scan = Scan::default();
        scan.files.insert("t.yaml".into(), Ok(text.into()));
        validate_scan(scan, mesh).diagnostics.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let grpc = || Mesh { has_grpc: true, ..Mesh::default() };
    let envoys = || Mesh { has_envoys: true, ..Mesh::default() };
    let (tcp, own) = ("{tcpSocket: {port: 80}}", "{grpc: {port: 80}}");
    for (probe, mesh, is_told) in [
        (tcp, grpc(), true),
        (own, grpc(), true),
        (tcp, envoys(), false),
        (own, envoys(), true),
        (own, Mesh::default(), false),
    ] {
        let found = found(probe, mesh);
        assert_eq!(found.contains("such a member is healthy while it is connected"), is_told, "{probe}: {found}");
    }
}

/// The group may add the label by which a policy selects its members.
#[tokio::test]
async fn a_member_of_a_wrong_group_does_not_serve_where_its_labels_tell_what_guards_it() {
    let group = |spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: till, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let policy = |namespace: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let selecting = "{selector: {matchLabels: {app: till}}}";
    let (right, wrong) = ("{metadata: {labels: {app: other}}}", "{metadata: {labels: {app: 1}}}");
    for (spec, policy, expected) in [
        (right, policy("shop", selecting), None),
        (
            wrong,
            policy("shop", selecting),
            Some("nobody can tell what guards this workload: WorkloadGroup shop/till is wrong"),
        ),
        (wrong, policy("istio-system", selecting), Some("nobody can tell what guards this workload")),
        (wrong, policy("elsewhere", selecting), None),
        (wrong, String::new(), None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), format!("{}---\n{policy}", group(spec))).unwrap();
        let plane = Plane::start(PlaneOptions::default().config_dir(dir.path())).unwrap();
        let mut member = client("shop");
        member.group = Some("till".into());
        let name = "xds.istio.io/grpc/lds/inbound/0.0.0.0:80";
        let told = plane.snapshot().resource(&member, Kind::Listener, name).unwrap();
        let told = String::from_utf8_lossy(&told.body).into_owned();
        match expected {
            Some(reason) => assert!(told.contains(reason), "{spec} {policy}: {told}"),
            None => assert!(!told.contains("guards"), "{spec} {policy}: {told}"),
        }
    }
}

#[test]
fn an_action_that_can_do_nothing_or_asks_nobody_is_refused() {
    let policy = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a, namespace: shop}}\nspec: {{{spec}}}\n"
        )
    };
    let asked = "rules: [{to: [{operation: {paths: [/headers]}}]}], provider: {name: a}";
    for (spec, expected) in [
        ("action: DENY".to_owned(), "rules: DENY without rules is for no request"),
        ("action: DENY, rules: []".to_owned(), "rules: DENY without rules is for no request"),
        ("action: CUSTOM, provider: {name: a}".to_owned(), "rules: CUSTOM without rules is for no request"),
        (asked.to_owned(), "provider: only `action: CUSTOM` asks somebody, and this is ALLOW"),
        (format!("action: DENY, {asked}"), "provider: only `action: CUSTOM` asks somebody, and this is DENY"),
        (format!("action: AUDIT, {asked}"), "provider: only `action: CUSTOM` asks somebody, and this is AUDIT"),
    ] {
        let found = said(&[&policy(&spec)]);
        let is_error = |line: &String| line.contains("error[") && line.contains(expected);
        assert!(found.iter().any(is_error), "{spec}: {found:?}");
        // It guards all the same.
        assert!(found.iter().any(|line| line.contains("error[unenforced]")), "{spec}: {found:?}");
    }
    let audit = said(&[&policy("action: AUDIT")]);
    assert!(audit.iter().any(|line| line.contains("warning[") && line.contains("AUDIT without rules")), "{audit:?}");
    assert_eq!(said(&[&policy("")]), [""; 0]);
}

#[test]
fn names_that_a_service_has_to_prove_are_asked_for_or_told_to_be_in_vain() {
    let entry = |names: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: shop}}\nspec: {{hosts: \
             [api.example.com], ports: [{{number: 443, name: http}}], resolution: STATIC, endpoints: [{{address: 10.0.0.1}}], \
             subjectAltNames: [{names}]}}\n---\n"
        )
    };
    let rule = |tls: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: api, namespace: shop}}\n\
             spec: {{host: api.example.com, trafficPolicy: {{tls: {{{tls}}}}}}}\n"
        )
    };
    const IDENTITY: &str = "'spiffe://cluster.local/ns/a/sa/b'";
    let simple = rule("mode: SIMPLE, caCertificates: ca.pem");
    for names in ["api.example.com", IDENTITY] {
        assert_eq!(said(&[&(entry(names) + &simple)]), [""; 0], "{names}");
        for (tls, why) in [("", "calls are plaintext"), ("mode: DISABLE", "calls are plaintext")] {
            let found = said(&[&(entry(names) + if tls.is_empty() { String::new() } else { rule(tls) }.as_str())]);
            let is_told = |line: &String| line.contains("subjectAltNames: without effect") && line.contains(why);
            assert_eq!(found.iter().filter(|line| is_told(line)).count(), 1, "{names} {tls}: {found:?}");
        }
    }
    // Who is asked for: the names of the rule, else of the service, and nobody's where nothing is verified.
    let asked = |tls: &str| {
        let plane = mesh_control::plane::Plane::from_yaml(&(entry("api.example.com") + &rule(tls))).unwrap();
        let client = crate::support::client_of(mesh_control::catalog::ClientClass::Library, "shop", &[]);
        let name = "outbound|443||api.example.com";
        let told = mesh_control::catalog::Catalog::resource(
            &*plane.snapshot(),
            &client,
            mesh_control::catalog::Kind::Cluster,
            name,
        );
        let kind = mesh_core::resources::ResourceType::Cluster;
        let decoded = mesh_core::xds::decode::decode(kind, &told.unwrap().body, &Default::default()).unwrap();
        format!("{:?}", decoded.resource)
    };
    let of_service = asked("mode: SIMPLE, caCertificates: ca.pem");
    assert!(of_service.contains("value: \"api.example.com\""), "{of_service}");
    let of_rule = asked("mode: SIMPLE, caCertificates: ca.pem, subjectAltNames: [other.example]");
    assert!(
        of_rule.contains("value: \"other.example\"") && !of_rule.contains("value: \"api.example.com\""),
        "{of_rule}"
    );
    let of_nobody = asked("mode: SIMPLE, insecureSkipVerify: true");
    assert!(!of_nobody.contains("value: \"api.example.com\""), "{of_nobody}");
}
