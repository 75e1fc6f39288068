//! What is said of routes of Gateway API, and what gRPC's clients are told of them.

use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use mesh_control::analysis::{Mesh, validate, validate_scan};
use mesh_control::config::load::Scan;
use mesh_control::config::{Diagnostic, Severity};
use mesh_control::plane::Plane;

use crate::support::{Seen, client, grpc_client};

const SERVICES: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: calls, namespace: shop}
spec: {selector: {app: calls}, ports: [{name: grpc, port: 7070}]}
";

fn route(kind: &str, name: &str, parents: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  parentRefs: [{parents}]\n  rules: {rules}\n"
    )
}

const WEB: &str = "{group: '', kind: Service, name: web}";
const TO_WEB: &str = "backendRefs: [{name: web, port: 80}]";

/// What is said of these texts beside the services, one finding a line.
fn said(texts: &[&str]) -> Vec<String> {
    let names = ["a.yaml", "b.yaml"];
    let texts = names.into_iter().zip(texts.iter().copied()).chain([("services.yaml", SERVICES)]);
    validate(texts).iter().map(ToString::to_string).collect()
}

#[test]
fn conditions_of_a_route_that_tell_of_something_wrong_are_findings_with_their_reasons() {
    let backend = |backend: &str| route("HTTPRoute", "r", WEB, &format!("[{{backendRefs: [{backend}]}}]"));
    let parent = |parent: &str| route("HTTPRoute", "r", parent, &format!("[{{{TO_WEB}}}]"));
    for (text, severity, field, reason) in [
        (
            backend("{name: nobody, port: 80}"),
            "error",
            "rules[0].backendRefs[0]",
            "ResolvedRefs is False: BackendNotFound",
        ),
        (
            backend("{name: web, port: 81}"),
            "error",
            "rules[0].backendRefs[0]",
            "ResolvedRefs is False: BackendNotFound",
        ),
        (
            backend("{name: web, port: 80, namespace: other}"),
            "error",
            "rules[0].backendRefs[0]",
            "ResolvedRefs is False: RefNotPermitted",
        ),
        (
            backend("{name: web, kind: Bucket, group: x.example}"),
            "error",
            "rules[0].backendRefs[0]",
            "ResolvedRefs is False: InvalidKind",
        ),
        (
            parent("{group: '', kind: Service, name: nobody}"),
            "warning",
            "parentRefs[0]",
            "there is no Service shop/nobody: the route has no effect there (Accepted is False: NoMatchingParent)",
        ),
        (
            parent("{group: '', kind: Service, name: web, port: 81}"),
            "warning",
            "parentRefs[0]",
            "Service shop/web has no port 81: the route has no effect there (Accepted is False: NoMatchingParent)",
        ),
        (parent("{name: edge}"), "warning", "parentRefs", "gateways are not built; the rules apply nowhere"),
        (parent("{kind: Service, name: web}"), "warning", "parentRefs", "it has to be written `group: \"\"`"),
    ] {
        let found = said(&[&text]);
        let [one] = found.as_slice() else { panic!("{text}: {found:#?}") };
        assert!(
            one.contains(&format!("{severity}[")) && one.contains(&format!("HTTPRoute shop/r: {field}: ")),
            "{one}"
        );
        assert!(one.ends_with(&format!("{reason})")) || one.contains(reason), "{one}");
    }
}

#[test]
fn the_status_of_a_route_at_each_of_its_parents_is_gateway_apis() {
    let unsupported = "filters: [{type: ExtensionRef, extensionRef: {group: x.example, kind: Limit, name: a}}]";
    for (parents, rules, expected) in [
        (WEB, format!("[{{{TO_WEB}}}]"), "Accepted=true:Accepted ResolvedRefs=true:ResolvedRefs"),
        (
            "{group: '', kind: Service, name: nobody}",
            format!("[{{{TO_WEB}}}]"),
            "Accepted=false:NoMatchingParent ResolvedRefs=true:ResolvedRefs",
        ),
        (
            WEB,
            format!("[{{{unsupported}, {TO_WEB}}}]"),
            "Accepted=false:UnsupportedValue ResolvedRefs=true:ResolvedRefs",
        ),
        (
            WEB,
            format!(
                "[{{{unsupported}, {TO_WEB}}}, {{matches: [{{path: {{value: /a}}}}], backendRefs: [{{name: nobody, port: 80}}]}}]"
            ),
            "Accepted=true:Accepted ResolvedRefs=false:BackendNotFound PartiallyInvalid=true:UnsupportedValue",
        ),
    ] {
        let plane = Plane::from_yaml(&format!("{SERVICES}---\n{}", route("HTTPRoute", "r", parents, &rules))).unwrap();
        let snapshot = plane.snapshot();
        let [status] = snapshot.route_statuses() else { panic!("{:?}", snapshot.route_statuses()) };
        let told = status.conditions.iter().map(|it| format!("{}={}:{}", it.name, it.holds, it.reason));
        assert_eq!(told.collect::<Vec<_>>().join(" "), expected, "{rules}");
        assert_eq!(&*status.route, "HTTPRoute shop/r");
    }
}

#[test]
fn rules_without_a_turn_and_hosts_of_others_are_told_with_both_places() {
    let first = route(
        "HTTPRoute",
        "a",
        WEB,
        &format!("[{{{TO_WEB}}}, {{matches: [{{path: {{type: RegularExpression, value: '/x.*'}}}}], {TO_WEB}}}]"),
    );
    let found = said(&[&first]);
    let expected =
        "HTTPRoute shop/a: rules[1].matches[0]: never reached: rules[0] of HTTPRoute shop/a matches every request";
    assert!(found.len() == 1 && found[0].contains(expected), "{found:#?}");

    let own = route("HTTPRoute", "b", WEB, &format!("[{{{TO_WEB}}}]"));
    let rules = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a, namespace: shop}\nspec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}\n";
    let found = said(&[&own, rules]);
    let expected = "HTTPRoute shop/b: parentRefs: host web.shop.svc.cluster.local is also that of VirtualService shop/a (b.yaml:1), whose rules count for it";
    assert!(found.len() == 1 && found[0].contains(expected), "{found:#?}");
    let found = said(&[&own, &rules.replace("name: a", "name: c")]);
    assert!(
        found.len() == 1
            && found[0].contains("VirtualService shop/c: hosts: host")
            && found[0].contains("HTTPRoute shop/b (a.yaml:1)"),
        "{found:#?}"
    );

    let calls = route("GRPCRoute", "calls", WEB, "[{backendRefs: [{name: calls, port: 7070}]}]");
    let found = said(&[&own, &calls]);
    assert!(
        found.len() == 1
            && found[0]
                .contains("HTTPRoute shop/b: parentRefs: GRPCRoute shop/calls (b.yaml:1) is attached to the same port"),
        "{found:#?}"
    );
}

#[test]
fn what_the_schemas_refuse_is_an_error_at_its_place() {
    for (rules, field, reason) in [
        ("[{backendRefs: [{name: web}]}]", "rules[0].backendRefs[0].port", "with its port"),
        ("[{filters: [{type: URLRewrite}]}]", "rules[0].filters[0]", "needs `urlRewrite`"),
        ("[{filters: [{type: CORS, cors: {}, urlRewrite: {}}]}]", "rules[0].filters[0].urlRewrite", "of another type"),
        ("[{filters: [{type: CORS, cors: {}}, {type: CORS, cors: {}}]}]", "rules[0].filters[1]", "once at most"),
        (
            "[{filters: [{type: RequestRedirect, requestRedirect: {port: 81}}], backendRefs: [{name: web, port: 80}]}]",
            "rules[0].backendRefs",
            "goes to no backend",
        ),
        (
            "[{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]}]",
            "rules[0].filters.urlRewrite.path",
            "exactly one match",
        ),
        ("[{name: a}, {name: a}]", "rules[1].name", "the same name"),
        (
            "[{timeouts: {request: 1s, backendRequest: 2s}}]",
            "rules[0].timeouts.backendRequest",
            "longer than the request",
        ),
        ("[{mathces: []}]", "rules[0].mathces", "did you mean `matches`?"),
    ] {
        let found = said(&[&route("HTTPRoute", "r", WEB, rules)]);
        let place = format!("HTTPRoute shop/r: {field}: ");
        assert!(
            found.iter().any(|one| one.contains(&place) && one.contains(reason) && one.contains("error[")),
            "{rules}: {found:#?}"
        );
    }
}

#[test]
fn kinds_and_versions_are_those_of_gateway_api() {
    let good = route("HTTPRoute", "r", WEB, &format!("[{{{TO_WEB}}}]"));
    for (from, to, expected) in [
        ("/v1\n", "/v1beta1\n", None),
        ("/v1\n", "/v1alpha2\n", None),
        ("/v1\n", "/v2\n", Some("error[invalid-value]")),
        ("kind: HTTPRoute", "kind: HttpRoutes", Some("taken for an HTTPRoute that is wrong")),
        ("kind: HTTPRoute", "kind: TCPRoute", Some("warning[not-supported-yet]")),
        ("kind: HTTPRoute", "kind: TLSRoute", Some("warning[not-supported-yet]")),
        ("kind: HTTPRoute", "kind: UDPRoute", Some("warning[not-supported-yet]")),
    ] {
        let found = said(&[&good.replace(from, to)]);
        match expected {
            None => assert!(found.is_empty(), "{to}: {found:#?}"),
            Some(expected) => assert!(found.iter().any(|one| one.contains(expected)), "{to}: {found:#?}"),
        }
    }
}

/// gRPC's clients know no prefix of segments (grpc-go refuses the resource), and no path but that of the method.
#[test]
fn grpc_clients_are_told_prefixes_that_they_take_and_nothing_else_of_a_rule_is_lost_in_silence() {
    let rules = "[{matches: [{path: {value: /pkg.Echo}, headers: [{name: x, value: a}]}], backendRefs: [{name: web, port: 80}]}]";
    let plane = Plane::from_yaml(&format!("{SERVICES}---\n{}", route("HTTPRoute", "r", WEB, rules))).unwrap();
    for class in [grpc_client("shop"), client("shop")] {
        let routes = Seen::new(&plane, class).routes_of("web.shop:80");
        let paths =
            routes.virtual_hosts[0].routes.iter().map(|route| route.r#match.clone().unwrap().path_specifier.unwrap());
        let expected = [PathSpecifier::Path("/pkg.Echo".to_owned()), PathSpecifier::Prefix("/pkg.Echo/".to_owned())];
        assert_eq!(paths.collect::<Vec<_>>(), expected);
    }
    let lost = route(
        "HTTPRoute",
        "r",
        WEB,
        "[{matches: [{method: GET}], backendRefs: [{name: web, port: 80}]}, \
         {matches: [{path: {value: /a}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [a]}}, {type: RequestMirror, requestMirror: {backendRef: {name: calls, port: 7070}}}], backendRefs: [{name: web, port: 80}]}]",
    );
    let mut scan = Scan::default();
    scan.files.insert("a.yaml".into(), Ok(format!("{SERVICES}---\n{lost}").into()));
    let found = validate_scan(scan, Mesh { has_grpc: true, ..Mesh::default() }).diagnostics;
    let found: Vec<&Diagnostic> = found.iter().filter(|finding| finding.severity == Severity::Warning).collect();
    for what in ["a call is always a POST", "headers stay as they are", "nothing is mirrored"] {
        assert!(found.iter().any(|finding| finding.message.contains(what) && finding.line > 0), "{what}: {found:#?}");
    }
}
