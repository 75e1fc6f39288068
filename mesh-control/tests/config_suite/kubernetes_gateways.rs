//! Gateways of Gateway API: where they listen, which routes come to which listener, and what their status is. That they serve over
//! sockets is shown by `mesh-tower/tests/sidecar/gateway_api.rs`, and with a real Envoy by `interop/gateway.py`.

use std::collections::BTreeMap;

use mesh_control::analysis::{Mesh, validate_scan};
use mesh_control::catalog::{Catalog, Client, Kind};
use mesh_control::config::load::Scan;
use mesh_control::config::store::Standing;
use mesh_control::plane::{Plane, PlaneOptions};

use crate::gateways::{BOOKINFO, WEB, chains, clusters_of, edge, hosts, names, plane, secret};

/// Istio's own, as it is.
const BOOKINFO_GATEWAY: &str = include_str!("../../../interop/bookinfo/bookinfo-gateway-api.yaml");

/// What a workload of a namespace is told that is this Gateway.
fn gateway(namespace: &str, name: &str) -> Client {
    edge().namespace(namespace).labels([("gateway.networking.k8s.io/gateway-name", name)])
}

pub(crate) fn gateway_of_shop() -> Client {
    gateway("shop", "edge")
}

pub(crate) fn object(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

fn listeners(listeners: &str) -> String {
    object("Gateway", "shop", "edge", &format!("{{gatewayClassName: istio, listeners: [{listeners}]}}"))
}

pub(crate) fn http(name: &str, more: &str) -> String {
    format!("{{name: {name}, port: 80, protocol: HTTP{more}}}")
}

pub(crate) fn https(name: &str, host: &str, tls: &str) -> String {
    format!("{{name: {name}, port: 443, protocol: HTTPS, hostname: '{host}', tls: {{{tls}}}}}")
}

/// A route of a namespace, with these parents and hosts, whose rule is for a path.
pub(crate) fn route(kind: &str, namespace: &str, name: &str, parents: &str, hosts: &str, path: &str) -> String {
    let condition = match kind {
        "HTTPRoute" => format!("path: {{value: {path}}}"),
        _ => "method: {service: a.B}".to_owned(),
    };
    let to = "backendRefs: [{name: web, namespace: shop, port: 80}]";
    let spec =
        format!("{{parentRefs: [{parents}], hostnames: [{hosts}], rules: [{{matches: [{{{condition}}}], {to}}}]}}");
    object(kind, namespace, name, &spec)
}

/// The conditions of a status that do not hold, or with a good reason.
pub(crate) fn told(conditions: &[mesh_control::policy::gateway_api::Condition]) -> String {
    let conditions = conditions.iter().map(|it| format!("{}={}:{}", it.name, it.holds, it.reason));
    conditions.collect::<Vec<_>>().join(" ")
}

/// `Accepted` of each route at each of its parents.
pub(crate) fn accepted(plane: &Plane) -> BTreeMap<String, String> {
    let snapshot = plane.snapshot();
    let all = snapshot.route_statuses().iter().map(|status| {
        let name = format!("{} {}", status.route.rsplit('/').next().unwrap_or_default(), status.parent_ref);
        (name, status.conditions[0].reason.to_owned())
    });
    all.collect()
}

/// The paths that a host of a table of routes has.
fn paths(plane: &Plane, client: &Client, table: &str, host: &str) -> usize {
    hosts(plane, client, table).get(host).map_or(0, |host| host.routes.len())
}

/// An object of this year.
pub(crate) fn aged(text: String, year: &str) -> String {
    text.replace("}\nspec", &format!(", creationTimestamp: '{year}-01-01T00:00:00Z'}}\nspec"))
}

/// A directory with a file that is good, and one of which nothing is: it is in force in its way.
pub(crate) fn with_wrong(good: &str, wrong: &str) -> (tempfile::TempDir, Plane) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("good.yaml"), good).unwrap();
    std::fs::write(dir.path().join("wrong.yaml"), wrong).unwrap();
    let plane = Plane::start(PlaneOptions::default().trust_claims(true).config_dir(dir.path())).unwrap();
    assert_eq!(plane.wrong().len(), 1, "{wrong}");
    (dir, plane)
}

#[test]
fn istios_own_bookinfo_gateway_of_gateway_api_drives_a_gateway_unchanged() {
    let plane = plane(&format!("{BOOKINFO}\n---\n{BOOKINFO_GATEWAY}"));
    let client = gateway("default", "bookinfo-gateway");
    assert_eq!(names(&plane, &client, Kind::Listener), "0.0.0.0_80");
    assert_eq!(names(&plane, &client, Kind::Route), "http.80");
    let cluster = "outbound|9080||productpage.default.svc.cluster.local";
    assert_eq!(names(&plane, &client, Kind::Cluster), format!("BlackHoleCluster {cluster}"));
    let found = hosts(&plane, &client, "http.80");
    assert_eq!(found.keys().collect::<Vec<_>>(), ["*:80"]);
    // Exact paths first; a prefix is two of them.
    assert_eq!(clusters_of(&found["*:80"]), vec![cluster; 7]);
    for other in [gateway("default", "other"), gateway("shop", "bookinfo-gateway"), edge()] {
        assert_eq!(names(&plane, &other, Kind::Listener), "");
    }
    let snapshot = plane.snapshot();
    let [status] = snapshot.gateway_statuses() else { panic!("{:?}", snapshot.gateway_statuses()) };
    assert_eq!(told(&status.conditions), "Accepted=true:Accepted Programmed=true:Programmed");
    let [listener] = status.listeners.as_slice() else { panic!("{status:?}") };
    assert_eq!((listener.name.as_str(), listener.attached_routes), ("http", 1));
    assert_eq!(listener.supported_kinds, ["HTTPRoute", "GRPCRoute"]);
    assert_eq!(accepted(&plane), [("bookinfo 0".to_owned(), "Accepted".to_owned())].into());
}

#[test]
fn a_gateway_with_an_address_is_the_workloads_of_that_service_wherever_they_are() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: edge, namespace: edges}\n\
        spec: {selector: {istio: ingressgateway}, ports: [{name: http, port: 80, targetPort: 18080}]}\n---\n";
    let spec = |address: &str| {
        format!("{{gatewayClassName: istio, addresses: [{address}], listeners: [{}]}}", http("http", ""))
    };
    let of = |address: &str| plane(&format!("{WEB}{service}{}", object("Gateway", "shop", "edge", &spec(address))));
    let address = "{type: Hostname, value: edge.edges.svc.cluster.local}";
    let grant = |from: &str, to: &str| {
        let spec = format!("{{from: [{from}], to: [{{group: '', kind: Service, name: {to}}}]}}");
        object("ReferenceGrant", "edges", "grant", &spec).replace("k8s.io/v1\n", "k8s.io/v1beta1\n")
    };
    let from = "{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}";
    let there = of(address);
    there.set_yaml("grant.yaml", &grant(from, "edge")).unwrap();
    assert_eq!(names(&there, &edge(), Kind::Listener), "0.0.0.0_18080");
    let route = from.replace("kind: Gateway", "kind: HTTPRoute");
    for other in
        [String::new(), grant(from, "other"), grant(&route, "edge"), grant(&from.replace("shop", "guest"), "edge")]
    {
        let denied = of(address);
        denied.set_yaml("grant.yaml", &other).unwrap();
        assert_eq!(names(&denied, &edge(), Kind::Listener), "", "{other}");
        let snapshot = denied.snapshot();
        let status = &snapshot.gateway_statuses()[0];
        assert_eq!(told(&status.conditions), "Accepted=true:Accepted Programmed=false:AddressNotUsable");
        let said: Vec<String> = denied.diagnostics().iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|line| line.contains("Service edges/edge is of another namespace")), "{said:#?}");
    }
    // A host that somebody else claims for himself is not that Service.
    let claims = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: claims, namespace: shop}\nspec: {hosts: \
        [edge.edges.svc.cluster.local], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, workloadSelector: {labels: {istio: ingressgateway}}}";
    let claimed = of(address);
    claimed.set_yaml("claims.yaml", claims).unwrap();
    assert_eq!(names(&claimed, &edge(), Kind::Listener), "");
    assert_eq!(names(&there, &edge().namespace("shop"), Kind::Listener), "", "the Service is of another namespace");
    assert_eq!(names(&there, &gateway("shop", "edge"), Kind::Listener), "", "the address says who it is");
    assert_eq!(there.snapshot().gateway_statuses()[0].addresses, ["edge.edges.svc.cluster.local"]);
    for (address, reason) in [
        ("{type: Hostname, value: nobody.example}", "AddressNotAssigned"),
        ("{type: IPAddress, value: 10.0.0.1}", "AddressNotUsable"),
        ("{value: 10.0.0.1}", "AddressNotUsable"),
    ] {
        let nowhere = of(address);
        assert_eq!(names(&nowhere, &gateway("shop", "edge"), Kind::Listener), "", "{address}");
        let snapshot = nowhere.snapshot();
        let status = &snapshot.gateway_statuses()[0];
        assert_eq!(told(&status.conditions), format!("Accepted=true:Accepted Programmed=false:{reason}"));
    }
}

#[test]
fn routes_come_to_the_listeners_that_let_them_in_for_the_hosts_that_both_have() {
    let gateway_text = listeners(&[
        http("same", ", hostname: a.example"),
        http("all", ", hostname: '*.b.example', allowedRoutes: {namespaces: {from: All}}"),
        http("closer", ", hostname: closer.b.example"),
        http("some", ", hostname: c.example, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: guest}}}}"),
        http("calls", ", hostname: d.example, allowedRoutes: {kinds: [{kind: GRPCRoute}]}"),
    ].join(", "));
    let grant = object(
        "ReferenceGrant",
        "shop",
        "grant",
        "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: guest}], to: [{group: '', kind: Service}]}",
    )
    .replace("k8s.io/v1\n", "k8s.io/v1beta1\n");
    let edge_of_shop = "{name: edge, namespace: shop}";
    let routes = [
        route("HTTPRoute", "shop", "own", "{name: edge}", "a.example", "/own"),
        route(
            "HTTPRoute",
            "guest",
            "guest",
            edge_of_shop,
            "a.example, x.b.example, closer.b.example, c.example",
            "/guest",
        ),
        route("HTTPRoute", "guest", "denied", edge_of_shop, "d.example", "/denied"),
        route("HTTPRoute", "guest", "section", "{name: edge, namespace: shop, sectionName: same}", "", "/section"),
        route("HTTPRoute", "shop", "wide", "{name: edge, port: 80}", "'*.b.example'", "/wide"),
        route("HTTPRoute", "shop", "nohost", "{name: edge}", "other.example", "/nohost"),
        route("HTTPRoute", "shop", "noport", "{name: edge, port: 81}, {name: edge, sectionName: none}", "", "/noport"),
        route("GRPCRoute", "shop", "call", "{name: edge, sectionName: calls}", "d.example", ""),
    ];
    let plane = plane(&[WEB, &gateway_text, &grant, &routes.concat()].concat());
    let expected = [
        ("own 0", "Accepted"),
        ("guest 0", "Accepted"),
        ("denied 0", "NoMatchingListenerHostname"),
        ("section 0", "NotAllowedByListeners"),
        ("wide 0", "Accepted"),
        ("nohost 0", "NoMatchingListenerHostname"),
        ("noport 0", "NoMatchingParent"),
        ("noport 1", "NoMatchingParent"),
        ("call 0", "Accepted"),
    ];
    assert_eq!(accepted(&plane), expected.map(|(name, reason)| (name.to_owned(), reason.to_owned())).into());
    let client = gateway("shop", "edge");
    let found = hosts(&plane, &client, "http.80");
    let count: Vec<(&str, usize)> = found.iter().map(|(name, host)| (name.as_str(), host.routes.len())).collect();
    let expected = [
        ("*.b.example:80", 2),
        ("a.example:80", 2),
        ("c.example:80", 2),
        // It has a listener of its own: who is let in at the wider one alone does not get its requests.
        ("closer.b.example:80", 2),
        ("d.example:80", 1),
        ("x.b.example:80", 2),
    ];
    assert_eq!(count, expected);
    let snapshot = plane.snapshot();
    let attached = &snapshot.gateway_statuses()[0].listeners;
    let attached: Vec<usize> = attached.iter().map(|listener| listener.attached_routes).collect();
    assert_eq!(attached, [1, 2, 1, 1, 1]);
}

#[tokio::test]
async fn of_two_kinds_of_routes_for_a_host_the_older_comes_and_the_more_precise_condition_goes_first() {
    let text = [
        WEB.to_owned(),
        listeners(&http("http", "")),
        aged(route("GRPCRoute", "shop", "late", "{name: edge}", "'*.example'", ""), "2026"),
        aged(route("HTTPRoute", "shop", "b", "{name: edge}", "a.example", "/"), "2025"),
        aged(route("HTTPRoute", "shop", "a", "{name: edge}", "a.example", "/long"), "2026"),
    ];
    let broken = route("HTTPRoute", "shop", "broken", "{name: edge}", "broken.example", "/").replace("rules", "ruels");
    let (_dir, plane) = with_wrong(&text.concat(), &broken);
    let expected = [("a 0", "Accepted"), ("b 0", "Accepted"), ("late 0", "HostnameConflict")];
    assert_eq!(accepted(&plane), expected.map(|(name, reason)| (name.to_owned(), reason.to_owned())).into());
    let client = gateway("shop", "edge");
    let found = hosts(&plane, &client, "http.80");
    let names: Vec<&str> = found["a.example:80"].routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["shop.a.0", "shop.a.0", "shop.b.0"]);
    // Of one that is wrong nobody knows the rules, and no other route has its host.
    assert_eq!(clusters_of(&found["broken.example:80"]), ["500"]);
}

#[test]
fn a_certificate_of_another_namespace_is_shown_where_a_grant_says_so_and_what_is_missing_closes_its_own_hosts_alone() {
    let refer = |to: &str| format!("certificateRefs: [{to}]");
    let option =
        |mode: &str| format!("{}, options: {{gateway.istio.io/tls-terminate-mode: {mode}}}", refer("{name: own}"));
    let text = [
        WEB.to_owned(),
        secret("shop", "own", "a.example"),
        secret("vault", "shared", "b.example"),
        secret("vault", "secret", "c.example"),
        listeners(&[
            https("a", "a.example", &refer("{name: own}")),
            https("b", "b.example", &refer("{name: shared, namespace: vault}")),
            https("c", "c.example", &refer("{name: secret, namespace: vault}")),
            https("d", "d.example", &refer("{name: missing}")),
            https("e", "e.example", &option("MUTUAL")),
            https("f", "f.example", &(refer("{name: own}") + ", options: {example.com/other: a}")),
        ].join(", ")),
        object(
            "ReferenceGrant",
            "vault",
            "grant",
            "{from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}], to: [{group: '', kind: Secret, name: shared}]}",
        ).replace("k8s.io/v1\n", "k8s.io/v1beta1\n"),
        route("HTTPRoute", "shop", "r", "{name: edge}", "", "/"),
    ];
    let plane = plane(&text.concat());
    let client = gateway("shop", "edge");
    let of = |host: &str, is_served: bool| (vec![host.to_owned()], is_served);
    let expected = [
        of("a.example", true),
        of("b.example", true),
        of("c.example", false),
        of("d.example", false),
        of("e.example", true),
    ];
    assert_eq!(chains(&plane, &client, "0.0.0.0_443"), expected);
    let secrets = "kubernetes://shop/own kubernetes://shop/own-cacert kubernetes://vault/shared";
    assert_eq!(names(&plane, &client, Kind::Secret), secrets);
    assert!(plane.snapshot().resource(&client, Kind::Secret, "kubernetes://vault/secret").is_none());
    let table = "https.443.default.edge-istio-autogenerated-k8s-gateway-a.shop";
    assert_eq!(paths(&plane, &client, table, "a.example:443"), 1);
    let snapshot = plane.snapshot();
    let status = &snapshot.gateway_statuses()[0];
    assert_eq!(told(&status.conditions), "Accepted=true:ListenersNotValid Programmed=true:Programmed");
    let refs: Vec<&str> = status.listeners.iter().map(|listener| listener.conditions[2].reason).collect();
    assert_eq!(
        refs,
        ["ResolvedRefs", "ResolvedRefs", "RefNotPermitted", "InvalidCertificateRef", "ResolvedRefs", "ResolvedRefs"]
    );
    let programmed: Vec<bool> = status.listeners.iter().map(|listener| listener.conditions[3].holds).collect();
    assert_eq!(programmed, [true, true, false, false, true, false]);
    assert_eq!(status.listeners[5].conditions[0].reason, "UnsupportedValue");
    // Istio's own Gateways refer to Secrets of the gateway's namespace alone, whatever they write.
    let istio = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: web, namespace: shop}\n\
        spec: {servers: [{port: {number: 8443, name: a, protocol: HTTPS}, hosts: [g.example], tls: {mode: SIMPLE, credentialName: vault/secret}}]}\n";
    plane.set_yaml("istio.yaml", istio).unwrap();
    assert_eq!(chains(&plane, &client, "0.0.0.0_8443"), [of("g.example", false)]);
    assert!(plane.snapshot().resource(&client, Kind::Secret, "kubernetes://vault/secret").is_none());
}

#[test]
fn clients_show_a_certificate_where_the_frontend_says_so() {
    let validation = |references: &str| {
        let tls = format!("tls: {{frontend: {{default: {{validation: {{caCertificateRefs: [{references}]}}}}}}}}");
        let spec = format!(
            "{{gatewayClassName: istio, {tls}, listeners: [{}]}}",
            https("a", "a.example", "certificateRefs: [{name: own}]")
        );
        let text = [WEB.to_owned(), secret("shop", "own", "a.example"), object("Gateway", "shop", "edge", &spec)];
        plane(&text.concat())
    };
    let client = gateway("shop", "edge");
    for (references, is_served, reason) in [
        ("{kind: Secret, name: own}", true, "ResolvedRefs"),
        ("{kind: Secret, name: nobody}", false, "InvalidCACertificateRef"),
        ("{kind: Secret, name: own, namespace: vault}", false, "RefNotPermitted"),
        ("{kind: ConfigMap, name: own}", false, "InvalidCACertificateKind"),
        ("{kind: Secret, name: own}, {kind: Secret, name: own}", false, "InvalidCACertificateRef"),
    ] {
        let plane = validation(references);
        assert_eq!(chains(&plane, &client, "0.0.0.0_443"), [(vec!["a.example".to_owned()], is_served)], "{references}");
        assert_eq!(plane.snapshot().gateway_statuses()[0].listeners[0].conditions[2].reason, reason);
    }
    let secrets = names(&validation("{kind: Secret, name: own}"), &client, Kind::Secret);
    assert_eq!(secrets, "kubernetes://shop/own kubernetes://shop/own-cacert");
}

#[test]
fn listeners_in_each_others_way_are_left_out_with_their_reason_and_others_go_on() {
    let isto = "options: {gateway.istio.io/tls-terminate-mode: ISTIO_MUTUAL}";
    let text = listeners(
        &[
            http("one", ", hostname: a.example"),
            http("two", ", hostname: a.example"),
            http("three", ", hostname: b.example"),
            format!(
                "{{name: four, port: 81, protocol: HTTP}}, {{name: five, port: 81, protocol: HTTPS, tls: {{{isto}}}}}"
            ),
            "{name: six, port: 82, protocol: UDP}".to_owned(),
        ]
        .join(", "),
    );
    let plane = plane(&text);
    assert_eq!(names(&plane, &gateway("shop", "edge"), Kind::Listener), "0.0.0.0_80");
    assert_eq!(hosts(&plane, &gateway("shop", "edge"), "http.80").keys().collect::<Vec<_>>(), ["b.example:80"]);
    let snapshot = plane.snapshot();
    let listeners = &snapshot.gateway_statuses()[0].listeners;
    let told: Vec<String> = listeners.iter().map(|listener| told(&listener.conditions[..2])).collect();
    let of = |reason: &str| format!("Accepted=false:{reason} Conflicted=true:{reason}");
    let expected = [
        of("HostnameConflict"),
        of("HostnameConflict"),
        "Accepted=true:Accepted Conflicted=false:NoConflicts".to_owned(),
        of("ProtocolConflict"),
        of("ProtocolConflict"),
        "Accepted=false:UnsupportedProtocol Conflicted=false:NoConflicts".to_owned(),
    ];
    assert_eq!(told, expected);
    let said: Vec<String> = plane.diagnostics().iter().map(ToString::to_string).collect();
    for (place, reason) in
        [("listeners[0]", "Conflicted is True: HostnameConflict"), ("listeners[5].protocol", "nobody listens there")]
    {
        assert!(said.iter().any(|line| line.contains(place) && line.contains(reason)), "{place}: {said:#?}");
    }
}

#[test]
fn connections_go_where_routes_of_tls_and_tcp_say_and_nowhere_where_one_of_their_backends_is_not_there() {
    let mode = |mode: &str| format!("tls: {{mode: {mode}, certificateRefs: [{{name: own}}]}}");
    let text = |to: &str| {
        let connections = |kind: &str, name: &str, section: &str, hosts: &str| {
            let spec = format!(
                "{{parentRefs: [{{name: edge, sectionName: {section}}}], {hosts}rules: [{{backendRefs: [{to}]}}]}}"
            );
            object(kind, "shop", name, &spec)
        };
        [
            WEB.to_owned(),
            secret("shop", "own", "ends.example"),
            listeners(
                &[
                    format!(
                        "{{name: passes, port: 443, protocol: TLS, hostname: '*.example', {}}}",
                        mode("Passthrough")
                    ),
                    format!("{{name: ends, port: 443, protocol: TLS, hostname: ends.example, {}}}", mode("Terminate")),
                    "{name: tcp, port: 5432, protocol: TCP}".to_owned(),
                    "{name: taken, port: 5433, protocol: TCP}, {name: also, port: 5433, protocol: TCP}".to_owned(),
                ]
                .join(", "),
            ),
            connections("TLSRoute", "a", "passes", "hostnames: [a.example, b.example], "),
            connections("TLSRoute", "b", "passes", "hostnames: [b.example, other.org], "),
            connections("TLSRoute", "ends", "ends", ""),
            connections("TCPRoute", "first", "tcp", ""),
            connections("TCPRoute", "second", "tcp", ""),
            connections("TCPRoute", "passes", "passes", ""),
        ]
        .concat()
    };
    let to = |plane: &Plane, name: &str| {
        let client = gateway("shop", "edge");
        let found = plane.snapshot().resource(&client, Kind::Listener, name).unwrap();
        let body = String::from_utf8_lossy(&found.body).into_owned();
        (body.contains("outbound|80||web.shop"), body.contains("BlackHoleCluster"))
    };
    let good = plane(&text("{name: web, port: 80}"));
    assert_eq!(names(&good, &gateway("shop", "edge"), Kind::Listener), "0.0.0.0_443 0.0.0.0_5432");
    let of = |hosts: &[&str], ends: bool| (hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>(), ends);
    let expected = [of(&["a.example", "b.example"], false), of(&["*.example"], false), of(&["ends.example"], true)];
    assert_eq!(chains(&good, &gateway("shop", "edge"), "0.0.0.0_443"), expected);
    assert_eq!(to(&good, "0.0.0.0_5432"), (true, false));
    let expected = [
        ("a 0", "Accepted"),
        ("b 0", "HostnameConflict"),
        ("ends 0", "Accepted"),
        ("first 0", "Accepted"),
        ("passes 0", "NotAllowedByListeners"),
        ("second 0", "HostnameConflict"),
    ];
    assert_eq!(accepted(&good), expected.map(|(name, reason)| (name.to_owned(), reason.to_owned())).into());
    let snapshot = good.snapshot();
    let conflicts = snapshot.gateway_statuses()[0].listeners.iter().map(|listener| listener.conditions[1].reason);
    let expected = ["NoConflicts", "NoConflicts", "NoConflicts", "ProtocolConflict", "ProtocolConflict"];
    assert_eq!(conflicts.collect::<Vec<_>>(), expected);
    let bad = plane(&text("{name: web, port: 80}, {name: nobody, port: 80}"));
    assert_eq!(to(&bad, "0.0.0.0_5432"), (false, true));
    assert_eq!(to(&bad, "0.0.0.0_443"), (false, true));
}

#[tokio::test]
async fn a_wrong_route_takes_no_host_away_from_good_ones_and_fails_those_that_only_it_has() {
    let edge_of = |more: &str| format!("{{name: edge, namespace: shop{more}}}");
    let call = |hosts: &str| {
        let method = "method: {type: RegularExpression, service: '('}";
        route("GRPCRoute", "guest", "wrong", &edge_of(""), hosts, "").replace("method: {service: a.B}", method)
    };
    let of = |host: &str, more: &str, wrong: String| {
        let host = format!(", hostname: '{host}', allowedRoutes: {{namespaces: {{from: All}}}}");
        let good = aged(route("HTTPRoute", "shop", "good", "{name: edge}", more, "/good"), "2025");
        let (_dir, plane) = with_wrong(&[WEB.to_owned(), listeners(&http("http", &host)), good].concat(), &wrong);
        assert_eq!(accepted(&plane)["good 0"], "Accepted");
        assert_eq!(plane.snapshot().gateway_statuses()[0].listeners[0].attached_routes, 1);
        let found = hosts(&plane, &gateway("shop", "edge"), "http.80");
        found.iter().map(|(name, host)| (name.clone(), host.routes.len())).collect::<Vec<_>>()
    };
    let good = |host: &str| (host.to_owned(), 2);
    let fails = |host: &str| (host.to_owned(), 1);
    // Another kind, or the same one without hosts: of whichever age.
    for year in ["2024", "2026"] {
        assert_eq!(of("a.example", "", aged(call(""), year)), [good("a.example:80")]);
        let wrong = route("HTTPRoute", "guest", "wrong", &edge_of(""), "", "/").replace("rules", "ruels");
        assert_eq!(of("a.example", "", aged(wrong, year)), [good("a.example:80")]);
    }
    // By age where it says the same host, and its own where nobody else has it.
    let same =
        route("HTTPRoute", "guest", "wrong", &edge_of(""), "a.example, b.example", "/").replace("rules", "ruels");
    let younger = of("*.example", "a.example", aged(same.clone(), "2026"));
    assert_eq!(younger, [("*.example:80".to_owned(), 0), good("a.example:80"), fails("b.example:80")]);
    let older = of("*.example", "a.example", aged(same, "2024"));
    assert_eq!(older, [("*.example:80".to_owned(), 0), fails("a.example:80"), fails("b.example:80")]);
    // Nobody knows to which Gateway it was to come, nor for which hosts.
    let lost = call("").replace("parentRefs: [", "parentRefs: [1, ");
    assert_eq!(of("a.example", "", lost), [good("a.example:80")]);
}

#[tokio::test]
async fn a_wrong_route_of_connections_closes_none_of_those_of_others() {
    let tls = "tls: {mode: Terminate, certificateRefs: [{name: own}]}";
    let ends = format!("{{name: ends, port: 443, protocol: TLS, hostname: ends.example, {tls}}}");
    let spec = "{parentRefs: [{name: edge}], rules: [{backendRefs: [{name: web, port: 80}]}]}";
    let good = aged(object("TLSRoute", "shop", "good", spec), "2025");
    let text = [WEB.to_owned(), secret("shop", "own", "ends.example"), listeners(&ends), good];
    let wrong = aged(object("TCPRoute", "shop", "wrong", &spec.replace("rules", "ruels")), "2024");
    let (_dir, plane) = with_wrong(&text.concat(), &wrong);
    assert_eq!(plane.wrong()[0].standing, Standing::FailsClosed);
    assert_eq!(accepted(&plane), [("good 0".to_owned(), "Accepted".to_owned())].into());
    let found = plane.snapshot().resource(&gateway("shop", "edge"), Kind::Listener, "0.0.0.0_443").unwrap();
    let body = String::from_utf8_lossy(&found.body);
    assert!(body.contains("outbound|80||web.shop") && !body.contains("BlackHoleCluster"), "{body}");
}

#[test]
fn a_gateway_of_no_age_takes_no_port_away_from_one_that_has_an_age() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: edge, namespace: edges}\n\
        spec: {selector: {istio: ingressgateway}, ports: [{name: http, port: 80}]}\n---\n";
    let of = |namespace: &str, name: &str, protocol: &str| {
        let spec = format!(
            "{{gatewayClassName: istio, addresses: [{{type: Hostname, value: edge.edges.svc.cluster.local}}], \
             listeners: [{{name: a, port: 80, protocol: {protocol}}}]}}"
        );
        object("Gateway", namespace, name, &spec)
    };
    let from = "{group: gateway.networking.k8s.io, kind: Gateway, namespace: guest}";
    let grant = format!("{{from: [{from}], to: [{{group: '', kind: Service}}]}}");
    let grant = object("ReferenceGrant", "edges", "grant", &grant).replace("k8s.io/v1\n", "k8s.io/v1beta1\n");
    let own = aged(of("edges", "own", "HTTP"), "2025");
    let plane = plane(&[service, &grant, &of("guest", "a", "TCP"), &own].concat());
    assert_eq!(names(&plane, &edge(), Kind::Route), "http.80");
}

#[test]
fn a_host_of_a_service_of_another_namespace_needs_a_grant_as_its_name_does() {
    let victim = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: victim}\nspec: {selector: {app: db}, ports: [{name: http, port: 80}]}\n---\n\
        apiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop}\nspec: {type: ExternalName, externalName: db.victim.svc.cluster.local}\n---\n";
    let grant = "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service, name: db}]}";
    let grant = object("ReferenceGrant", "victim", "grant", grant).replace("k8s.io/v1\n", "k8s.io/v1beta1\n");
    let host = |name: &str| format!("{{group: networking.istio.io, kind: Hostname, name: {name}, port: 80}}");
    for to in [
        host("db.victim.svc.cluster.local"),
        host("alias.shop.svc.cluster.local"),
        "{name: alias, port: 80}".to_owned(),
    ] {
        let spec = format!("{{parentRefs: [{{name: edge}}], rules: [{{backendRefs: [{to}]}}]}}");
        let text = [victim, &listeners(&http("http", "")), &object("HTTPRoute", "shop", "r", &spec)].concat();
        let of = |grant: &str| {
            let plane = Plane::start(PlaneOptions::default().trust_claims(true)).unwrap();
            drop(plane.set_yaml("c.yaml", &[&text, grant].concat()));
            let reason = plane.snapshot().route_statuses()[0].conditions[1].reason;
            (reason, names(&plane, &gateway("shop", "edge"), Kind::Cluster))
        };
        let (reason, clusters) = of("");
        assert_eq!((reason, clusters.contains("victim")), ("RefNotPermitted", false), "{to}: {clusters}");
        let (reason, clusters) = of(&grant);
        assert_eq!((reason, clusters.contains("outbound|80||db.victim")), ("ResolvedRefs", true), "{to}: {clusters}");
    }
}

#[test]
fn a_listener_with_a_host_of_one_label_is_served_under_that_name() {
    let text = [
        WEB.to_owned(),
        secret("shop", "own", "intranet"),
        listeners(&https("a", "intranet", "certificateRefs: [{name: own}]")),
        route("HTTPRoute", "shop", "r", "{name: edge}", "intranet", "/"),
    ];
    let plane = plane(&text.concat());
    let client = gateway("shop", "edge");
    assert_eq!(chains(&plane, &client, "0.0.0.0_443"), [(vec!["intranet".to_owned()], true)]);
    let table = "https.443.default.edge-istio-autogenerated-k8s-gateway-a.shop";
    assert_eq!(hosts(&plane, &client, table).keys().collect::<Vec<_>>(), ["intranet:443"]);
}

#[test]
fn of_two_routes_of_tls_for_a_name_the_older_has_it_and_the_other_is_told_so() {
    let passes = "{name: passes, port: 443, protocol: TLS, hostname: '*.example', tls: {mode: Passthrough}}";
    let of = |name: &str, hosts: &str, year: &str| {
        let spec = format!(
            "{{parentRefs: [{{name: edge}}], hostnames: [{hosts}], rules: [{{backendRefs: [{{name: web, port: 80}}]}}]}}"
        );
        aged(object("TLSRoute", "shop", name, &spec), year)
    };
    let text = [
        WEB.to_owned(),
        listeners(passes),
        of("some", "a.example, b.example, '*.example'", "2025"),
        of("none", "a.example", "2026"),
        of("first", "a.example, c.example", "2024"),
    ];
    let plane = plane(&text.concat());
    let expected = [("first 0", "Accepted"), ("none 0", "HostnameConflict"), ("some 0", "Accepted")];
    assert_eq!(accepted(&plane), expected.map(|(name, reason)| (name.to_owned(), reason.to_owned())).into());
    assert_eq!(plane.snapshot().gateway_statuses()[0].listeners[0].attached_routes, 2);
    let said: Vec<String> = plane.diagnostics().iter().map(ToString::to_string).collect();
    let is_told =
        |line: &String| line.contains("TLSRoute shop/some") && line.contains("without effect there for a.example:");
    assert!(said.iter().any(is_told), "{said:#?}");
}

#[test]
fn a_route_of_connections_with_more_backends_than_the_schema_lets_it_have_is_wrong() {
    let of = |count: usize| {
        let to = vec!["{name: web, port: 80, weight: 1000000}"; count].join(", ");
        let spec = format!("{{parentRefs: [{{name: edge}}], rules: [{{backendRefs: [{to}]}}]}}");
        let tcp = "{name: tcp, port: 5432, protocol: TCP}";
        let plane = plane(&[WEB.to_owned(), listeners(tcp)].concat());
        plane.set_yaml("route.yaml", &object("TCPRoute", "shop", "r", &spec)).is_ok()
    };
    assert_eq!((of(16), of(17)), (true, false));
}

/// The Service whose workloads a gateway is.
pub(crate) const WORKLOADS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: edge, namespace: shop}\n\
    spec: {selector: {istio: ingressgateway}, ports: [{name: http, port: 80}, {name: tls, port: 443}]}\n---\n";

/// A Gateway that is these.
pub(crate) fn at_address(name: &str, listeners: &str) -> String {
    let address = "{type: Hostname, value: edge.shop.svc.cluster.local}";
    let spec = format!("{{gatewayClassName: istio, addresses: [{address}], listeners: [{listeners}]}}");
    object("Gateway", "shop", name, &spec)
}

/// The routes of each host of a table, by their names.
fn routes_of(plane: &Plane, client: &Client, table: &str) -> BTreeMap<String, Vec<String>> {
    let found = hosts(plane, client, table).into_iter();
    let names = found.map(|(name, host)| (name, host.routes.into_iter().map(|route| route.name).collect()));
    names.collect()
}

#[test]
fn of_gateways_at_one_address_that_with_the_closer_host_has_it_alone_whichever_is_older() {
    let passes =
        |host: &str| format!("{{name: tls, port: 443, protocol: TLS, hostname: '{host}', tls: {{mode: Passthrough}}}}");
    let connections = |name: &str, parent: &str, hosts: &str| {
        let to = "rules: [{backendRefs: [{name: web, port: 80}]}]";
        object("TLSRoute", "shop", name, &format!("{{parentRefs: [{{name: {parent}}}], hostnames: [{hosts}], {to}}}"))
    };
    let wide = [http("http", ""), passes("*.example")].join(", ");
    let close = [http("http", ", hostname: a.example"), passes("a.example")].join(", ");
    let rest = [
        WEB.to_owned(),
        WORKLOADS.to_owned(),
        route("HTTPRoute", "shop", "named", "{name: wide}", "a.example, b.example", "/"),
        route("HTTPRoute", "shop", "own", "{name: close}", "", "/"),
        connections("named", "wide", "a.example, b.example"),
        connections("own", "close", "a.example"),
    ]
    .concat();
    let client = edge().namespace("shop");
    for (one, other) in [("2024", "2026"), ("2026", "2024")] {
        let gateways = [aged(at_address("wide", &wide), one), aged(at_address("close", &close), other)].concat();
        let plane = plane(&[gateways, rest.clone()].concat());
        let of = |name: &str, routes: &[&str]| {
            (name.to_owned(), routes.iter().map(|&route| route.to_owned()).collect::<Vec<_>>())
        };
        let expected = [of("*:80", &[]), of("a.example:80", &["shop.own.0"]), of("b.example:80", &["shop.named.0"])];
        assert_eq!(routes_of(&plane, &client, "http.80"), expected.into(), "{one}");
        let mut names: Vec<_> = chains(&plane, &client, "0.0.0.0_443").into_iter().map(|(names, _)| names).collect();
        names.sort();
        assert_eq!(names, [["*.example"], ["a.example"], ["b.example"]], "{one}");
    }
}

#[test]
fn a_listener_and_a_server_of_istios_keep_their_closer_hosts_from_each_other() {
    let istio = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: old, namespace: shop}\n\
        spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*.example', istio.listener.org]}]}\n---\n\
        apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: old, namespace: shop}\n\
        spec: {hosts: [a.example, b.example], gateways: [old], http: [{name: old, route: [{destination: {host: web}}]}]}\n---\n";
    let listeners = [http("http", ", hostname: a.example"), http("wide", ", hostname: '*.listener.org'")].join(", ");
    let text = [
        WEB.to_owned(),
        istio.to_owned(),
        WORKLOADS.to_owned(),
        at_address("new", &listeners),
        route("HTTPRoute", "shop", "new", "{name: new}", "a.example, istio.listener.org, b.listener.org", "/"),
    ];
    let found = hosts(&plane(&text.concat()), &edge().namespace("shop"), "http.80");
    let found: Vec<(&str, usize)> = found.iter().map(|(name, host)| (name.as_str(), host.routes.len())).collect();
    let expected = [
        ("*.listener.org:80", 0),
        ("a.example:80", 1),
        ("b.example:80", 1),
        ("b.listener.org:80", 1),
        // No rule of Istio's has it, and it is not the listener's.
        ("istio.listener.org:80", 0),
    ];
    assert_eq!(found, expected);
}

/// A Gateway of Istio's in another namespace, with a rule for a host.
pub(crate) fn stranger(selector: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: stranger, namespace: guest}}\n\
         spec: {{selector: {{{selector}}}, servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: [a.example]}}]}}\n---\n"
    )
}

pub(crate) const RULES: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: stranger, namespace: guest}\n\
    spec: {hosts: [a.example], gateways: [stranger], http: [{match: [{uri: {prefix: /own/account}}], \
    route: [{destination: {host: web.shop.svc.cluster.local}}]}]}\n---\n";

/// Whose the routes of the host are: a listener's, or the stranger's. They are never of both; and what is said of the other.
pub(crate) fn is_strangers(text: &str, client: &Client) -> (bool, Vec<String>) {
    let routes = routes_of(&plane(text), client, "http.80").remove("a.example:80").unwrap();
    let own = routes.iter().filter(|name| name.contains("own.0")).count();
    assert!(!routes.is_empty() && (own == 0 || own == routes.len()), "{routes:?}");
    let mut scan = Scan::default();
    scan.files.insert("c.yaml".into(), Ok(text.into()));
    let said = validate_scan(scan, Mesh::default()).diagnostics.iter().map(ToString::to_string).collect();
    (own == 0, said)
}

#[test]
fn a_host_that_a_listener_and_a_server_of_istios_have_is_the_olders_alone_and_the_other_is_told() {
    let client = edge().namespace("shop");
    for (listener, istio, expected, told) in [
        (
            "2024",
            "2026",
            false,
            "Gateway guest/stranger: servers[0]: it is left out: a listener of Gateway API has host a.example",
        ),
        ("2026", "2024", true, "it is left out: a Gateway of Istio's has host a.example at port 80"),
    ] {
        let text = [
            WEB.to_owned(),
            WORKLOADS.to_owned(),
            aged(at_address("edge", &http("http", ", hostname: a.example")), listener),
            aged(stranger("istio: ingressgateway"), istio),
            RULES.to_owned(),
            route("HTTPRoute", "shop", "own", "{name: edge}", "", "/own"),
        ];
        let (found, said) = is_strangers(&text.concat(), &client);
        assert_eq!(found, expected, "{listener}");
        assert!(said.iter().any(|line| line.contains(told)), "{said:#?}");
    }
}

#[tokio::test]
async fn a_wrong_gateway_answers_for_its_hosts() {
    let wrong = listeners(&http("http", ", hostname: a.example, allowdRoutes: {}"));
    let (_dir, plane) = with_wrong(WEB, &wrong);
    assert_eq!(clusters_of(&hosts(&plane, &gateway_of_shop(), "http.80")["a.example:80"]), ["503"]);
}
