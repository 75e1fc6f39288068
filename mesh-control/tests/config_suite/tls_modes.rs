//! Ways of calling that no server of a service takes: told before anybody calls.

use mesh_control::analysis::{Mesh, validate_scan};
use mesh_control::config::Severity;
use mesh_control::config::load::Scan;

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 80, targetPort: 9080}, {name: admin, port: 81, targetPort: 9081}]}
";

fn peers(namespace: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn rule(spec: &str) -> String {
    rule_in("shop", spec)
}

fn rule_in(namespace: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn tls(mode: &str) -> String {
    rule(&format!("{{host: reviews, trafficPolicy: {{tls: {mode}}}}}"))
}

/// The errors in a mesh with certificates that say that calls fail: field and text.
fn failing(text: &str) -> Vec<(String, String)> {
    failing_in(Mesh { issues_certificates: true, ..Mesh::default() }, text)
}

fn failing_in(mesh: Mesh, text: &str) -> Vec<(String, String)> {
    let mut scan = Scan::default();
    scan.files.insert("t.yaml".into(), Ok(text.into()));
    let found = validate_scan(scan, mesh).diagnostics;
    let found = found.into_iter().filter(|one| one.message.contains("every call to"));
    found
        .map(|one| {
            assert_eq!(one.severity, Severity::Error, "{one}");
            let line = text.lines().nth(one.line as usize - 1).unwrap_or_default();
            let word = one.field.as_deref().and_then(|field| field.rsplit('.').next()).unwrap_or_default();
            assert!(line.contains(word), "{one} stands at {line}");
            (one.field.unwrap_or_default().to_string(), one.message)
        })
        .collect()
}

#[test]
fn a_rule_that_no_workload_takes_is_an_error_and_one_that_some_take_is_not() {
    const FILES: &str = "caCertificates: ca.pem";
    const OWN: &str = "caCertificates: ca.pem, clientCertificate: a.pem, privateKey: a.key";
    let own = |more: &str| format!("{{mode: MUTUAL, {OWN}{more}}}");
    let cases = [
        ("{mode: DISABLE}".to_owned(), [true, false, false]),
        (format!("{{mode: SIMPLE, {FILES}}}"), [true, true, true]),
        ("{mode: SIMPLE, insecureSkipVerify: true}".to_owned(), [true, true, true]),
        (own(""), [true, true, true]),
        (own(", subjectAltNames: [reviews.example]"), [true, true, true]),
        (own(", subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/reviews']"), [false, false, true]),
        ("{mode: ISTIO_MUTUAL}".to_owned(), [false, false, true]),
    ];
    for (asked, expected) in cases {
        for (mode, expected) in ["STRICT", "PERMISSIVE", "DISABLE"].into_iter().zip(expected) {
            let text = format!("{REVIEWS}{}{}", peers("shop", &format!("{{mtls: {{mode: {mode}}}}}")), tls(&asked));
            let found = failing(&text);
            assert_eq!(!found.is_empty(), expected, "{asked} to {mode}: {found:?}");
            for (field, message) in found {
                assert_eq!(field, "trafficPolicy.tls.mode");
                assert!(message.contains("reviews.shop.svc.cluster.local:80, "), "{message}");
                assert!(message.contains("PeerAuthentication shop/p (t.yaml:"), "{message}");
            }
        }
    }
}

#[test]
fn where_no_peer_authentication_speaks_the_mesh_s_default_counts_if_it_is_known() {
    let text = format!("{REVIEWS}{}", tls("{mode: DISABLE}"));
    assert!(failing_in(Mesh::default(), &text).is_empty());
    let permissive = Mesh { issues_certificates: true, permissive: true, ..Mesh::default() };
    assert!(failing_in(permissive, &text).is_empty());
    let [(_, message)] = &failing(&text)[..] else { panic!("one finding") };
    assert!(message.contains("(no PeerAuthentication says otherwise)"), "{message}");
}

#[test]
fn how_a_gateway_takes_connections_no_peer_authentication_says() {
    let gateway = |port: u16| {
        format!(
            "\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: g}}\nspec: {{selector: {{app: reviews}}, \
             servers: [{{port: {{number: {port}, name: http, protocol: HTTP}}, hosts: ['*']}}]}}\n"
        )
    };
    let asks = |mode: &str, asked: &str| {
        format!(
            "{REVIEWS}{}{}",
            peers("shop", &format!("{{mtls: {{mode: {mode}}}}}")),
            tls(&format!("{{mode: {asked}}}"))
        )
    };
    for (mode, asked) in [("STRICT", "DISABLE"), ("DISABLE", "ISTIO_MUTUAL")] {
        let text = asks(mode, asked);
        let both = gateway(80) + &gateway(81).replace("name: g}", "name: h}");
        assert!(failing(&format!("{text}{both}")).is_empty(), "{asked} to {mode}");
        // Another port of it is that of a workload.
        let [(_, message)] = &failing(&format!("{text}{}", gateway(80)))[..] else { panic!("one finding") };
        assert!(message.contains("every call to reviews.shop.svc.cluster.local:81 fails"), "{message}");
    }
}

#[test]
fn ports_subsets_and_selectors_are_told_apart() {
    let strict = |more: &str| peers("shop", &format!("{{mtls: {{mode: STRICT}}{more}}}"));
    let permissive = |more: &str| peers("shop", &format!("{{mtls: {{mode: PERMISSIVE}}{more}}}"));
    let reviews = ", selector: {matchLabels: {app: reviews}}";
    let disable = "trafficPolicy: {tls: {mode: DISABLE}}";
    let of_port = "trafficPolicy: {portLevelSettings: [{port: {number: 81}, tls: {mode: DISABLE}}]}";
    let of_subset = format!("subsets: [{{name: v1, labels: {{v: '1'}}}}, {{name: v2, labels: {{v: '2'}}, {disable}}}]");
    let v2 = ", selector: {matchLabels: {app: reviews, v: '2'}}";
    let cases: [(&str, String, &[&str], &str); 9] = [
        // Ports of workloads are those of endpoints, and those of rules the service's.
        (
            disable,
            permissive(&format!("{reviews}, portLevelMtls: {{9081: {{mode: STRICT}}}}")),
            &["trafficPolicy.tls.mode"],
            "cluster.local:81 fails",
        ),
        (
            disable,
            strict(&format!("{reviews}, portLevelMtls: {{9081: {{mode: DISABLE}}}}")),
            &["trafficPolicy.tls.mode"],
            "cluster.local:80 fails",
        ),
        (of_port, strict(""), &["trafficPolicy.portLevelSettings[0].tls.mode"], ":81 fails"),
        (of_port, permissive(&format!("{reviews}, portLevelMtls: {{9080: {{mode: STRICT}}}}")), &[], ""),
        (&of_subset, strict(""), &["subsets[1].trafficPolicy.tls.mode"], ""),
        (&of_subset, strict(v2), &["subsets[1].trafficPolicy.tls.mode"], ""),
        // Workloads of other labels may be there, which take it.
        (disable, permissive("") + &strict(v2).replace("name: p", "name: p2"), &[], ""),
        (disable, strict("") + &permissive(v2).replace("name: p", "name: p2"), &[], ""),
        (
            disable,
            strict("") + &permissive(", selector: {matchLabels: {app: other}}").replace("name: p", "name: p2"),
            &["trafficPolicy.tls.mode"],
            "",
        ),
    ];
    for (spec, peers, expected, said) in cases {
        let text = format!("{REVIEWS}{peers}{}", rule(&format!("{{host: reviews, {spec}}}")));
        let found = failing(&text);
        let fields: Vec<&str> = found.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(fields, expected, "{spec} {peers}: {found:?}");
        assert!(found.iter().all(|(_, message)| message.contains(said)), "{said}: {found:?}");
    }
}

#[test]
fn a_rule_for_all_hosts_names_those_whose_calls_fail() {
    let all = rule_in("istio-system", "{host: '*.local', trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}");
    let disabled = peers("shop", "{mtls: {mode: DISABLE}}");
    let [(_, message)] = &failing(&format!("{REVIEWS}{all}{disabled}"))[..] else { panic!("one finding") };
    assert!(
        message.contains("reviews.shop.svc.cluster.local:80, reviews.shop.svc.cluster.local:81 fails"),
        "{message}"
    );
    // Another rule is what counts for the service.
    assert!(failing(&format!("{REVIEWS}{all}{disabled}{}", tls("{mode: DISABLE}"))).is_empty());
    // Without automatic mutual TLS, everybody without a rule calls in plaintext.
    let settings = "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    enableAutoMtls: false\n";
    let strict = peers("shop", "{mtls: {mode: STRICT}}");
    let found = failing_of_settings(&format!("{REVIEWS}{settings}{strict}"));
    assert!(found.len() == 1 && found[0].contains("where no DestinationRule says ISTIO_MUTUAL"), "{found:?}");
    assert!(failing_of_settings(&format!("{REVIEWS}{settings}{strict}{all}")).is_empty());
}

fn failing_of_settings(text: &str) -> Vec<String> {
    let mut scan = Scan::default();
    scan.files.insert("t.yaml".into(), Ok(text.into()));
    let found = validate_scan(scan, Mesh { issues_certificates: true, ..Mesh::default() }).diagnostics;
    let found = found.iter().filter(|one| one.field.as_deref() == Some("enableAutoMtls"));
    found.map(ToString::to_string).filter(|line| line.contains("every call to")).collect()
}

#[test]
fn mutual_tls_to_endpoints_of_which_nobody_knows_who_they_are_is_an_error() {
    let entry = |more: &str, endpoint: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: w, namespace: shop}}\n\
             spec: {{hosts: [w.example], resolution: STATIC, ports: [{{number: 80, name: http}}]{more}, endpoints: [{{address: 10.0.0.1{endpoint}}}]}}\n"
        )
    };
    let mutual =
        |more: &str| rule(&format!("{{host: w.example, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL{more}}}}}}}"));
    let id = "subjectAltNames: ['spiffe://cluster.local/ns/shop/sa/w']";
    let internal = ", location: MESH_INTERNAL";
    for (entry, rule, expected) in [
        (entry("", ""), mutual(""), true),
        // Outside of the mesh an account alone says nothing.
        (entry("", ", serviceAccount: w"), mutual(""), true),
        (entry(internal, ", serviceAccount: w"), mutual(""), false),
        (entry(&format!(", {id}"), ""), mutual(""), false),
        (entry("", ""), mutual(&format!(", {id}")), false),
        (entry("", ", serviceAccount: w, labels: {security.istio.io/tlsMode: istio}"), mutual(""), false),
    ] {
        let found = failing(&format!("{entry}{rule}"));
        assert_eq!(!found.is_empty(), expected, "{entry}{rule}: {found:?}");
        assert!(found.iter().all(|(_, message)| message.contains("serviceAccount")), "{found:?}");
    }
    // The workloads are WorkloadEntries.
    let selected = "apiVersion: v1\nkind: Service\nmetadata: {name: w, namespace: shop}\nspec: {ports: [{name: http, port: 80}]}\n---\n\
                    apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: w, namespace: shop}\n\
                    spec: {hosts: [w.example], resolution: DNS, ports: [{number: 80, name: http}], workloadSelector: {labels: {app: w}}}\n---\n\
                    apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w, namespace: shop}\nspec: {address: w.internal, labels: {app: w}}\n";
    assert_eq!(failing(&format!("{selected}{}", mutual(""))).len(), 1);
}

#[test]
fn endpoints_that_may_be_of_somebody_else_may_take_what_workloads_do_not() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: w, namespace: shop}\n\
                 spec: {hosts: [w.example], resolution: STATIC, ports: [{number: 80, name: http}], endpoints: [{address: 10.0.0.1}]}\n";
    let strict = peers("shop", "{mtls: {mode: STRICT}}");
    for mode in ["{mode: DISABLE}", "{mode: SIMPLE}"] {
        let rule = rule(&format!("{{host: w.example, trafficPolicy: {{tls: {mode}}}}}"));
        assert!(failing(&format!("{entry}{strict}{rule}")).is_empty(), "{mode}");
        let marked =
            entry.replace("10.0.0.1", "10.0.0.1, serviceAccount: w, labels: {security.istio.io/tlsMode: istio}");
        assert_eq!(failing(&format!("{marked}{strict}{rule}")).len(), 1, "{mode}");
        // What servers of this mesh do by default is not said of those that are written down.
        assert!(mode != "{mode: DISABLE}" || failing(&format!("{marked}{rule}")).is_empty(), "{mode}");
    }
    // TLS that the application speaks itself.
    let own = REVIEWS.replace("name: http", "name: https").replace("name: admin", "name: tls");
    let disabled = peers("shop", "{mtls: {mode: DISABLE}}");
    assert!(failing(&format!("{own}{disabled}{}", tls("{mode: SIMPLE}"))).is_empty());
}
