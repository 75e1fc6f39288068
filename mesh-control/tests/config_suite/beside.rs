//! What is written and has no effect for something that is written beside it, or for the kind of object or port that it is on: each
//! has a finding.

use mesh_control::analysis::validate;

fn said(texts: &[&str]) -> Vec<String> {
    let texts: Vec<(String, &str)> =
        texts.iter().enumerate().map(|(index, text)| (format!("{index}.yaml"), *text)).collect();
    validate(texts.iter().map(|(name, text)| (name.as_str(), *text))).iter().map(ToString::to_string).collect()
}

/// Each has one finding that says all of this.
fn check(cases: &[(&[&str], &[&str])]) {
    for (texts, parts) in cases {
        let said = said(texts);
        let meant = said.iter().filter(|line| parts.iter().all(|part| line.contains(part)));
        assert_eq!(meant.count(), 1, "{parts:?} under {texts:#?}: {said:#?}");
    }
}

fn object(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n"
    )
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: ledger, namespace: shop}
spec: {selector: {app: ledger}, ports: [{name: tcp-ledger, port: 7000}]}
---
apiVersion: v1
kind: Service
metadata: {name: secret, namespace: shop}
spec: {selector: {app: secret}, ports: [{name: tls, port: 7443}]}
";

#[test]
fn of_two_fields_for_one_thing_the_one_that_does_not_count_is_named() {
    let mirrors = object(
        "VirtualService",
        "{hosts: [web], http: [{route: [{destination: {host: web}}], mirror: {host: web}, mirrorPercent: 5, mirrorPercentage: {value: 5}}]}",
    );
    let rule = |policy: &str| object("DestinationRule", &format!("{{host: web, trafficPolicy: {{{policy}}}}}"));
    let retries = rule("retryBudget: {percent: 20}, connectionPool: {http: {maxRetries: 5}}");
    let of_port = rule(
        "retryBudget: {percent: 20}, portLevelSettings: [{port: {number: 80}, connectionPool: {http: {maxRetries: 5}}}]",
    );
    let warmups = rule("loadBalancer: {simple: ROUND_ROBIN, warmupDurationSecs: 9s, warmup: {duration: 5s}}");
    let ports = rule("portLevelSettings: [{port: {number: 80}}, {port: {number: 80}, loadBalancer: {simple: RANDOM}}]");
    check(&[
        (&[SERVICES, &mirrors], &["http[0].mirrorPercent", "`mirrorPercentage` counts"]),
        (&[SERVICES, &retries], &["trafficPolicy.connectionPool.http.maxRetries", "`retryBudget` counts"]),
        (&[SERVICES, &of_port], &["portLevelSettings[0].connectionPool.http.maxRetries", "`retryBudget` counts"]),
        (&[SERVICES, &warmups], &["loadBalancer.warmupDurationSecs", "`warmup` counts"]),
        (&[SERVICES, &ports], &["warning[duplicate]", "portLevelSettings[1]", "port 80 is written twice"]),
    ]);
}

#[test]
fn a_ring_that_is_larger_than_clients_make_it_is_named() {
    let ring = |size: u32| {
        let hash = format!("{{httpHeaderName: x, ringHash: {{minimumRingSize: {size}}}}}");
        object(
            "DestinationRule",
            &format!("{{host: web, trafficPolicy: {{loadBalancer: {{consistentHash: {hash}}}}}}}"),
        )
    };
    let (larger, largest) = (ring((1 << 20) + 1), ring(1 << 20));
    let named = "consistentHash.ringHash.minimumRingSize: mesh-core's clients have 1048576 at most";
    check(&[(&[SERVICES, &larger], &["warning[ignored]", named])]);
    assert!(!said(&[SERVICES, &largest]).iter().any(|line| line.contains(named)));
}

#[test]
fn a_body_of_an_answer_that_has_none_by_its_status_is_named() {
    let answer = |status: u32| {
        let route = format!("directResponse: {{status: {status}, body: {{string: x}}}}");
        object("VirtualService", &format!("{{hosts: [web], http: [{{{route}}}]}}"))
    };
    let body = "http[0].directResponse.body: without effect";
    check(&[
        (&[SERVICES, &answer(204)], &["warning[ignored]", body, "status 204 has no body"]),
        (&[SERVICES, &answer(304)], &["warning[ignored]", body, "status 304 has no body"]),
    ]);
    assert!(!said(&[SERVICES, &answer(200)]).iter().any(|line| line.contains(body)));
}

fn mesh(settings: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: '{settings}'\n"
    )
}

#[test]
fn a_preference_for_near_endpoints_that_has_no_effect_is_named() {
    let outside =
        object("ServiceEntry", "{hosts: [a.example.com], resolution: DNS, ports: [{number: 80, name: http}]}");
    let rule = |host: &str, setting: &str| {
        object("DestinationRule", &format!("{{host: {host}, trafficPolicy: {{loadBalancer: {{{setting}}}}}}}"))
    };
    let zones = rule("a.example.com", "zoneAwareLbSetting: {minClusterSize: 2}");
    let fails_over = rule("web", "localityLbSetting: {failoverPriority: [a]}");
    let both = mesh("{localityLbSetting: {failoverPriority: [a]}, zoneAwareLbSetting: {}}");
    let shares = rule("web", "localityLbSetting: {enabled: false, distribute: [{from: a, to: {b: 100}}]}");
    let off = mesh("{zoneAwareLbSetting: {enabled: false, minClusterSize: 2}}");
    check(&[
        (&[&outside, &zones], &["loadBalancer.zoneAwareLbSetting", "clients look the names of this host up"]),
        (&[SERVICES, &fails_over], &["localityLbSetting.failoverPriority", "nothing fails over without"]),
        (&[&both], &["warning[ignored]", "localityLbSetting: without effect: `zoneAwareLbSetting` stands"]),
        (&[SERVICES, &shares], &["localityLbSetting.distribute: without effect: `enabled` is false"]),
        (&[&off], &["warning[ignored]", "zoneAwareLbSetting.minClusterSize: without effect: `enabled` is false"]),
    ]);
    // The outlier detection of the mesh is beside it, too.
    let detects = mesh("{defaultTrafficPolicy: {outlierDetection: {}}}");
    let said = said(&[SERVICES, &fails_over, &detects]);
    assert!(!said.iter().any(|line| line.contains("nothing fails over")), "{said:#?}");
}

#[test]
fn servers_outside_of_the_mesh_that_the_mesh_has_called_by_http2_are_named() {
    let upgrade = mesh("{h2UpgradePolicy: UPGRADE}");
    let entry = |rest: &str, port: &str| {
        let port = format!("ports: [{{number: 80, {port}}}]");
        object("ServiceEntry", &format!("{{hosts: [a.example.com], resolution: DNS, {rest} {port}}}"))
    };
    let outside = entry("", "name: http");
    check(&[(
        &[&outside, &upgrade],
        &["ServiceEntry shop/web: ports", "a.example.com:80, which is outside", "HTTP/2"],
    )]);
    let own = |policy: &str| {
        let pool = format!("connectionPool: {{http: {{h2UpgradePolicy: {policy}}}}}");
        object("DestinationRule", &format!("{{host: a.example.com, trafficPolicy: {{{pool}}}}}"))
    };
    let (kept, meant) = (own("DO_NOT_UPGRADE"), own("UPGRADE"));
    let (inside, http2) = (entry("location: MESH_INTERNAL,", "name: http"), entry("", "name: http2"));
    let cases: [&[&str]; 5] = [
        &[&outside],
        &[&outside, &upgrade, &kept],
        &[&outside, &upgrade, &meant],
        &[&inside, &upgrade],
        &[&http2, &upgrade],
    ];
    for texts in cases {
        let said = said(texts);
        assert!(!said.iter().any(|line| line.contains("which is outside")), "{said:#?}");
    }
}

#[test]
fn destinations_that_hash_requests_by_different_things_are_named() {
    let split = object(
        "VirtualService",
        "{hosts: [web], http: [{route: [{destination: {host: web, subset: a}, weight: 1}, {destination: {host: web, subset: b}, weight: 1}]}]}",
    );
    let hash = |by: &str| format!("trafficPolicy: {{loadBalancer: {{consistentHash: {{{by}}}}}}}");
    let rule = |a: &str, b: &str| {
        let subset = |name: &str, by: &str| format!("{{name: {name}, labels: {{v: {name}}}, {}}}", hash(by));
        object("DestinationRule", &format!("{{host: web, subsets: [{}, {}]}}", subset("a", a), subset("b", b)))
    };
    let differ = rule("httpHeaderName: x-a", "httpQueryParameterName: b");
    let said_of_both = &["http[0].route", "the header x-a, and by the query parameter b"][..];
    check(&[(&[SERVICES, &split, &differ], said_of_both)]);
    let same = said(&[SERVICES, &split, &rule("httpHeaderName: x-a", "httpHeaderName: x-a")]);
    assert!(!same.iter().any(|line| line.contains("hash requests by")), "{same:#?}");
}

#[test]
fn a_rule_that_refuses_requests_on_a_port_without_any_is_named() {
    let policy = |app: &str, to: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: web, namespace: shop}}\n\
             spec: {{action: DENY, selector: {{matchLabels: {{app: {app}}}}}, rules: [{{to: [{{operation: {{{to}}}}}]}}]}}\n"
        )
    };
    let (paths, port) = (policy("ledger", "paths: [/admin]"), policy("ledger", "methods: [PUT], ports: ['7000']"));
    check(&[
        (&[SERVICES, &paths], &["rules[0].to[0].operation.paths", "port 7000 of shop/ledger carries no requests"]),
        (&[SERVICES, &port], &["rules[0].to[0].operation.methods", "port 7000 of shop/ledger carries no requests"]),
    ]);
    for fine in [policy("web", "paths: [/admin]"), policy("ledger", "ports: ['7000']")] {
        let said = said(&[SERVICES, &fine]);
        assert!(!said.iter().any(|line| line.contains("carries no requests")), "{said:#?}");
    }
}

#[test]
fn a_setting_of_ours_on_a_kind_that_has_none_is_named() {
    let annotated = |head: &str| format!("{head}\nmetadata: {{name: a, annotations: {{mesh-control/hedge: 'on'}}}}\n");
    for head in [
        "apiVersion: apps/v1\nkind: Deployment",
        "apiVersion: networking.istio.io/v1beta1\nkind: ProxyConfig",
        "apiVersion: v1\nkind: ConfigMap",
    ] {
        let said = said(&[&annotated(head)]);
        let meant = |line: &&String| line.contains("metadata.annotations.mesh-control/hedge: without effect");
        assert_eq!(said.iter().filter(meant).count(), 1, "{head}: {said:#?}");
    }
}

#[test]
fn rules_on_connections_are_looked_at_as_those_on_requests_are() {
    let rules = |spec: &str| object("VirtualService", spec);
    let tls = |host: &str| {
        rules(&format!(
            "{{hosts: [{host}], tls: [{{match: [{{sniHosts: [{host}]}}], route: [{{destination: {{host: {host}}}}}]}}]}}"
        ))
    };
    let tcp =
        |host: &str, to: &str| rules(&format!("{{hosts: [{host}], tcp: [{{route: [{{destination: {{{to}}}}}]}}]}}"));
    let (unknown, subset) = (tcp("ledger", "host: nobody"), tcp("ledger", "host: ledger, subset: v9"));
    let (port, of_tls) = (tcp("ledger", "host: ledger, port: {number: 1}"), tcp("secret", "host: secret"));
    check(&[
        (&[SERVICES, &unknown], &["error[unknown-reference]", "tcp[0].route[0].destination.host"]),
        (&[SERVICES, &subset], &["error[unknown-reference]", "tcp[0].route[0].destination.subset"]),
        (&[SERVICES, &port], &["error[unknown-reference]", "tcp[0].route[0].destination.port"]),
        (&[SERVICES, &tls("ledger")], &["tls[0]", "without effect: it is for ports whose protocol is TLS or HTTPS"]),
        (&[SERVICES, &of_tls], &["tcp[0]", "without effect: applications speak TLS to every port"]),
    ]);
    for fine in [tls("secret"), tcp("ledger", "host: ledger"), tcp("web", "host: web")] {
        let said = said(&[SERVICES, &fine]);
        assert!(said.is_empty(), "{said:#?}");
    }
}

#[test]
fn rules_on_connections_of_a_gateway_count_by_what_it_does_with_tls() {
    let gateway = |tls: &str| {
        object(
            "Gateway",
            &format!(
                "{{servers: [{{port: {{number: 443, name: tls, protocol: TLS}}, hosts: ['*'], tls: {{{tls}}}}}]}}"
            ),
        )
    };
    let rules = |spec: &str| object("VirtualService", spec);
    let tcp = |port: u16, names: &str| {
        rules(&format!(
            "{{hosts: [secret], gateways: [mesh, web], tcp: [{{match: [{{port: {port}, gateways: [{names}]}}], \
             route: [{{destination: {{host: secret}}}}]}}]}}"
        ))
    };
    let names = rules(
        "{hosts: [ledger], gateways: [mesh, web], tls: [{match: [{gateways: [web], sniHosts: [ledger]}], \
         route: [{destination: {host: ledger}}]}]}",
    );
    let (ends, passes) = (gateway("mode: ISTIO_MUTUAL"), gateway("mode: PASSTHROUGH"));
    for (gateway, rules, counts) in [
        (&ends, tcp(443, "web"), true),
        (&ends, tcp(444, "web"), false),
        (&ends, tcp(443, "mesh"), false),
        (&passes, tcp(443, "web"), false),
        (&passes, names.clone(), true),
        (&ends, names, false),
    ] {
        let said = said(&[SERVICES, gateway, &rules]);
        let is_idle = said.iter().any(|line| line.contains("[0]: without effect"));
        assert_eq!(is_idle, !counts, "{gateway}{rules}{said:#?}");
    }
}
