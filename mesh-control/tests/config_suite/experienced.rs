//! What `validate` says is what is experienced: where it depends on how the control plane is started, and where a field means
//! something else than in Istio.

use mesh_control::analysis::{Mesh, validate, validate_scan};
use mesh_control::config::load::Scan;
use mesh_control::config::{Code, Diagnostic, Severity};
use mesh_control::plane::Plane;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: web}, ports: [{name: http, port: 80}]}\n";

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a, namespace: shop}}\nspec: {spec}\n"
    )
}

fn settings(text: &str) -> String {
    let text: String = text.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |-\n{text}"
    )
}

fn said_in(mesh: Mesh, texts: &[&str]) -> Vec<Diagnostic> {
    let mut scan = Scan::default();
    let texts = texts.iter().enumerate();
    scan.files.extend(texts.map(|(index, text)| (format!("{index}.yaml").into(), Ok((*text).into()))));
    validate_scan(scan, mesh).diagnostics
}

fn lines(said: &[Diagnostic]) -> Vec<String> {
    said.iter().map(ToString::to_string).collect()
}

#[test]
fn a_policy_on_the_address_of_the_client_is_told_that_it_is_that_of_the_connection() {
    for (spec, field, consequence) in [
        (
            "{action: DENY, rules: [{from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]}]}",
            "rules[0].from[0].source.remoteIpBlocks",
            "a client that is meant passes",
        ),
        (
            "{action: DENY, rules: [{from: [{source: {notRemoteIpBlocks: [10.0.0.0/8]}}]}]}",
            "rules[0].from[0].source.notRemoteIpBlocks",
            "a client that is meant passes",
        ),
        (
            "{rules: [{}, {when: [{key: remote.ip, values: [10.0.0.1]}]}]}",
            "rules[1].when[0].values",
            "a client that is meant is refused",
        ),
    ] {
        let said = validate([("a.yaml", policy(spec).as_str())]);
        let [one] = said.as_slice() else { panic!("{spec}: {said:?}") };
        assert_eq!((one.severity, one.field.as_deref(), one.line), (Severity::Warning, Some(field), 4), "{spec}");
        assert!(
            one.message.contains("X-Forwarded-For is believed from nobody") && one.message.contains(consequence),
            "{one}"
        );
    }
    assert!(
        validate([(
            "a.yaml",
            policy("{action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]}").as_str()
        )])
        .is_empty()
    );
}

#[test]
fn a_policy_on_the_address_of_the_client_is_right_at_gateways_that_know_who_is_in_front_of_them() {
    let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: shop}\n\
        spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n";
    let known = settings("defaultConfig: {gatewayTopology: {numTrustedProxies: 2}}");
    let (unknown, passed) =
        (settings("ingressClass: istio"), settings("defaultConfig: {gatewayTopology: {proxyProtocol: {}}}"));
    let at = |labels: &str| {
        policy(&format!(
            "{{selector: {{matchLabels: {{{labels}}}}}, action: DENY, rules: [{{from: [{{source: {{remoteIpBlocks: [10.0.0.0/8]}}}}]}}]}}"
        ))
    };
    for (settings, labels, is_told) in [
        (&known, "istio: ingressgateway", false),
        (&passed, "istio: ingressgateway", false),
        (&unknown, "istio: ingressgateway", true),
        (&known, "app: web", true),
    ] {
        let said = validate([("m.yaml", settings.as_str()), ("g.yaml", gateway), ("a.yaml", at(labels).as_str())]);
        let told = said.iter().any(|one| one.message.contains("X-Forwarded-For is believed from nobody"));
        assert_eq!(told, is_told, "{labels}: {said:?}");
    }
}

#[test]
fn an_object_whose_expressions_are_too_large_together_is_wrong_and_its_hosts_say_why() {
    let large = format!("(?:{})", "a".repeat(8_000));
    let rule = |name: &str, regex: &str, times: usize| {
        let http = format!("- {{match: [{{uri: {{regex: '{regex}'}}}}], route: [{{destination: {{host: web}}}}]}}\n")
            .repeat(times);
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  hosts: [{name}.example.com]\n  http:\n  {}",
            http.replace("\n- ", "\n  - ")
        )
    };
    let dir = tempfile::tempdir().unwrap();
    let files = [
        ("a", rule("small", "/users/[^/]+/orders", 2_000)),
        ("b", rule("big", &large, 5)),
        ("c", rule("huge", &large, 40)),
        ("d", SERVICE.to_owned()),
    ];
    for (name, text) in files {
        std::fs::write(dir.path().join(format!("{name}.yaml")), text).unwrap();
    }
    let store = mesh_control::analysis::validate_dir(dir.path()).unwrap();
    assert_eq!((store.objects, store.wrong), (3, 1), "{:?}", lines(&store.diagnostics));
    let errors: Vec<&Diagnostic> = store.diagnostics.iter().filter(|one| one.severity == Severity::Error).collect();
    for one in &errors {
        assert_eq!((one.object.as_deref(), one.code), (Some("VirtualService shop/huge"), Code::InvalidValue), "{one}");
        assert!(one.message.contains("the expressions of this object are too large together"), "{one}");
    }
    assert!(!errors.is_empty());
    let rewrite = "{uriRegexRewrite: {match: '@', rewrite: /a}}".replace('@', &large);
    let rewrites = rule("huge", &large, 6).replace("route: [", &format!("rewrite: {rewrite}, route: ["));
    let said = validate([("a.yaml", &*rewrites), ("b.yaml", SERVICE)]);
    assert!(
        said.iter().any(|one| one.field.as_deref().is_some_and(|field| field.ends_with("uriRegexRewrite.match"))),
        "{:?}",
        lines(&said)
    );
}

#[test]
fn trusted_proxies_are_a_warning_where_nobody_reads_them() {
    let annotation = "annotations: {proxy.istio.io/config: '{gatewayTopology: {numTrustedProxies: 2}}'}";
    for text in [
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: a}}\nspec: {{template: {{metadata: {{{annotation}}}}}}}\n"
        ),
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a, {annotation}}}\n"),
        SERVICE.replace("namespace: shop", &format!("namespace: shop, {annotation}")),
    ] {
        let said = validate([("a.yaml", text.as_str())]);
        let told = said.iter().any(|one| {
            one.severity == Severity::Warning && one.message.contains("X-Forwarded-For is believed from nobody")
        });
        assert!(told, "{text}: {said:?}");
    }
    for read in [
        "defaultConfig: {gatewayTopology: {numTrustedProxies: 2, forwardClientCertDetails: SANITIZE, proxyProtocol: {}}}",
        "default_config: {gateway_topology: {num_trusted_proxies: 2}}",
    ] {
        assert_eq!(lines(&validate([("a.yaml", settings(read).as_str())])), [""; 0]);
    }
    let said = lines(&validate([("a.yaml", settings("defaultConfig: {concurrency: 2}").as_str())]));
    assert!(said.len() == 1 && said[0].contains("defaultConfig.concurrency: without effect"), "{said:?}");
}

#[test]
fn strict_mutual_tls_is_right_where_the_control_plane_issues_certificates() {
    let peer = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";
    let without = said_in(Mesh::default(), &[peer]);
    assert!(without.iter().any(|one| one.severity == Severity::Error), "{without:?}");
    for one in &without {
        assert!(one.message.contains("--ca-dir, --state-dir or --dev"), "{one}");
    }
    let with = said_in(Mesh { issues_certificates: true, ..Mesh::default() }, &[peer]);
    assert!(with.is_empty(), "{with:?}");
}

#[test]
fn settings_that_stop_a_start_are_told_so_and_nothing_is_said_of_who_would_be_asked() {
    let provider = "trustDomian: a\nextensionProviders:\n- name: mine\n  envoyExtAuthzHttp: {service: web.shop.svc.cluster.local, port: 80}\n";
    let custom = policy("{action: CUSTOM, provider: {name: mine}, rules: [{}]}");
    let said = lines(&said_in(Mesh::default(), &[SERVICE, &settings(provider), &custom]));
    let expected =
        ["trustDomian: unknown field; did you mean `trustDomain`?", "mesh-control does not start with these settings"];
    assert!(said.len() == 2 && said.iter().zip(expected).all(|(line, end)| line.contains(end)), "{said:?}");
}

#[test]
fn settings_are_read_by_protobuf_s_rules_for_json() {
    let text = "trust_domain: one.org\noutbound_traffic_policy: {mode: REGISTRY_ONLY}\nextension_providers:\n- name: mine\n  envoy_ext_authz_http:\n    service: web.shop.svc.cluster.local\n    port: \"80\"\n    include_additional_headers_in_check: {x_y: z}\n";
    let plane = Plane::from_yaml(&format!(
        "{}---\n{SERVICE}---\n{}",
        settings(text),
        policy("{action: CUSTOM, provider: {name: mine}, rules: [{}]}")
    ))
    .unwrap();
    assert_eq!(plane.trust_domain().as_str(), "one.org");
    assert!(plane.diagnostics().is_empty(), "{:?}", lines(&plane.diagnostics()));
    for wrong in [
        "trust_domain: a\ntrustDomain: b\n",
        "extensionProviders: [{name: a, envoyExtAuthzHttp: {service: a.b, port: eighty}}]",
    ] {
        assert!(Plane::from_yaml(&settings(wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn a_provider_that_there_is_not_is_named_with_those_that_there_are() {
    let custom = policy("{action: CUSTOM, provider: {name: ext-auth}, rules: [{}]}");
    let providers = "extensionProviders:\n- {name: logs, zipkin: {}}\n- name: ext-authz\n  envoyExtAuthzHttp: {service: web.shop.svc.cluster.local, port: 80}\n";
    let said = lines(&validate([("a.yaml", &*settings(providers)), ("b.yaml", &*custom), ("c.yaml", SERVICE)]));
    let expected = "no extension provider `ext-auth`, only `ext-authz`; did you mean `ext-authz`?";
    assert!(said.iter().any(|line| line.contains("error[unenforced]") && line.contains(expected)), "{said:?}");
    let said = lines(&validate([("b.yaml", &*custom)]));
    assert!(
        said.iter().any(|line| line.contains("no extension provider `ext-auth`, and none that can be asked")),
        "{said:?}"
    );
}

#[test]
fn what_grpc_s_servers_do_not_do_with_custom_policies_and_permissive_peers_is_told() {
    let custom = policy("{action: CUSTOM, provider: {name: mine}, rules: [{}]}");
    let providers =
        "extensionProviders:\n- name: mine\n  envoyExtAuthzHttp: {service: web.shop.svc.cluster.local, port: 80}\n";
    let peer = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\nspec: {mtls: {mode: PERMISSIVE}}\n";
    let mesh = Mesh { has_grpc: true, issues_certificates: true, ..Mesh::default() };
    let said = said_in(mesh, &[SERVICE, &settings(providers), &custom, peer]);
    let found = |object: &str, what: &str| {
        said.iter().any(|one| {
            one.code == Code::Degraded && one.object.as_deref() == Some(object) && one.message.contains(what)
        })
    };
    assert!(found("AuthorizationPolicy shop/a", "nobody is asked (CUSTOM)"), "{:?}", lines(&said));
    assert!(found("PeerAuthentication shop/p", "is STRICT where this says PERMISSIVE"), "{:?}", lines(&said));
}
