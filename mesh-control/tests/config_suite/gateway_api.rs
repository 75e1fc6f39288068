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
        (
            parent("{name: edge}"),
            "warning",
            "parentRefs[0]",
            "there is no Gateway shop/edge of a class of ours: the route has no effect there",
        ),
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

/// One place decides what counts and what is said to count.
#[test]
fn the_winner_that_is_told_beside_several_routes_is_the_one_that_counts() {
    let of = |name: &str, namespace: &str, path: &str| {
        let redirect = format!(
            "filters: [{{type: RequestRedirect, requestRedirect: {{path: {{type: ReplaceFullPath, replaceFullPath: {path}}}}}}}]"
        );
        let parent = "{group: '', kind: Service, name: web, namespace: shop}";
        let route =
            route("HTTPRoute", name, parent, &format!("[{{matches: [{{path: {{value: {path}}}}}], {redirect}}}]"));
        route.replace("namespace: shop}\nspec", &format!("namespace: {namespace}}}\nspec"))
    };
    let rules = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: b, namespace: shop}\nspec: {hosts: [web], http: [{redirect: {uri: /rule}}]}\n";
    for (first, second, expected) in [
        // The first of them competes for all.
        (of("a", "shop", "/a"), of("c", "shop", "/c"), &["VirtualService shop/b loses to HTTPRoute shop/a"][..]),
        (
            of("c", "shop", "/a"),
            of("d", "shop", "/c"),
            &["HTTPRoute shop/c loses to VirtualService shop/b", "HTTPRoute shop/d loses to VirtualService shop/b"],
        ),
        (
            of("c", "shop", "/a"),
            of("d", "other", "/c"),
            &["HTTPRoute shop/c loses to VirtualService shop/b", "VirtualService shop/b loses to HTTPRoute other/d"],
        ),
    ] {
        let all = format!("{first}---\n{second}---\n{rules}");
        let found = said(&[&all]);
        let told = found.iter().filter_map(|one| {
            let (loser, rest) = one.split_once("conflict]: ")?.1.split_once(": ")?;
            let winner = rest.split_once("is also that of ")?.1.split_once(" (")?.0;
            Some(format!("{loser} loses to {winner}"))
        });
        let mut told: Vec<String> = told.collect();
        told.sort();
        told.dedup();
        assert_eq!(told, expected, "{found:#?}");
        let plane = Plane::from_yaml(&format!("{SERVICES}---\n{all}")).unwrap();
        let routes = format!("{:?}", Seen::new(&plane, client("shop")).routes_of("web.shop:80"));
        assert_eq!(
            routes.contains("/rule"),
            expected.iter().any(|one| one.ends_with("VirtualService shop/b")),
            "{all}"
        );
    }
}

#[test]
fn conditions_that_an_earlier_one_takes_all_of_are_told_with_it() {
    let rules = |rules: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a, namespace: shop}}\nspec: {{hosts: [web], http: [{rules}]}}\n"
        )
    };
    let to = "route: [{destination: {host: web}}]";
    let http = |rules: &str| route("HTTPRoute", "a", WEB, rules);
    for (text, expected) in [
        (
            rules(&format!(
                "{{match: [{{uri: {{prefix: /a}}}}], {to}}}, {{match: [{{uri: {{prefix: /a/b}}}}, {{uri: {{exact: /c}}}}], {to}}}"
            )),
            Some("VirtualService shop/a: http[1].match[0]: never reached: http[0].match[0] takes all of its requests"),
        ),
        (
            rules(&format!(
                "{{match: [{{uri: {{prefix: /a}}, headers: {{x: {{exact: b}}}}}}], {to}}}, {{match: [{{uri: {{prefix: /a}}, headers: {{x: {{exact: b}}}}, method: {{exact: GET}}}}], {to}}}"
            )),
            Some("http[1].match[0]: never reached: http[0].match[0] takes"),
        ),
        (
            rules(&format!("{{match: [{{uri: {{exact: /a}}}}, {{uri: {{exact: /a}}}}], {to}}}")),
            Some("http[0].match[1]: never reached: match[0] takes all"),
        ),
        // For other clients, ports and values, it gets its turn.
        (
            rules(&format!(
                "{{match: [{{uri: {{prefix: /a}}, sourceLabels: {{a: b}}}}], {to}}}, {{match: [{{uri: {{prefix: /a}}}}], {to}}}"
            )),
            None,
        ),
        (
            rules(&format!(
                "{{match: [{{uri: {{prefix: /a}}, port: 80}}], {to}}}, {{match: [{{uri: {{prefix: /a}}}}], {to}}}"
            )),
            None,
        ),
        (
            rules(&format!("{{match: [{{uri: {{prefix: /a/b}}}}], {to}}}, {{match: [{{uri: {{prefix: /a}}}}], {to}}}")),
            None,
        ),
        (
            http(&format!(
                "[{{matches: [{{path: {{value: /a}}}}], {TO_WEB}}}, {{matches: [{{path: {{value: /a}}}}], {TO_WEB}}}]"
            )),
            Some(
                "HTTPRoute shop/a: rules[1].matches[0]: never reached: rules[0] of HTTPRoute shop/a takes all of its requests",
            ),
        ),
        (
            http(&format!(
                "[{{matches: [{{path: {{value: /a}}}}], {TO_WEB}}}, {{matches: [{{path: {{value: /a/b}}}}], {TO_WEB}}}]"
            )),
            None,
        ),
    ] {
        let found = said(&[&text]);
        let told: Vec<&String> = found.iter().filter(|one| one.contains("never reached")).collect();
        match expected {
            Some(expected) => assert!(told.len() == 1 && told[0].contains(expected), "{text}: {found:#?}"),
            None => assert!(told.is_empty(), "{text}: {found:#?}"),
        }
    }
}

#[test]
fn routes_that_do_nothing_or_nothing_good_are_told() {
    let raw = "---\napiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {selector: {app: db}, ports: [{name: tcp, port: 5432}, {name: https, port: 443}]}\n";
    let db = |more: &str| format!("{{group: '', kind: Service, name: db{more}}}");
    let rules = format!("[{{{TO_WEB}}}]");
    for (text, expected) in [
        (route("HTTPRoute", "r", "", &rules), Some("parentRefs: without effect: it is attached to nothing")),
        (route("GRPCRoute", "r", "", "[]"), Some("parentRefs: without effect: it is attached to nothing")),
        (route("HTTPRoute", "r", WEB, "[]"), Some("rules: there are no rules: every request")),
        (route("GRPCRoute", "r", WEB, "[]"), Some("rules: without effect: there are no rules")),
        (
            route("HTTPRoute", "r", &db(""), &rules),
            Some("parentRefs[0]: port 5432 of db.shop.svc.cluster.local is none of HTTP"),
        ),
        (route("HTTPRoute", "r", &db(", port: 443"), &rules), Some("parentRefs[0]: port 443 of db.shop")),
        (route("HTTPRoute", "r", WEB, &rules), None),
    ] {
        let found = said(&[&format!("{text}{raw}")]);
        let told: Vec<&String> = found.iter().filter(|one| one.contains("Route shop/r: ")).collect();
        match expected {
            Some(expected) => assert!(told.len() == 1 && told[0].contains(expected), "{text}: {found:#?}"),
            None => assert!(told.is_empty(), "{text}: {found:#?}"),
        }
    }
    // A call goes to its service as if there were no such route.
    let plane = Plane::from_yaml(&format!(
        "{SERVICES}---\n{}---\n{}",
        route("GRPCRoute", "r", WEB, "[]"),
        route("HTTPRoute", "s", WEB, "[{filters: [{type: RequestRedirect, requestRedirect: {hostname: a.example}}]}]")
    ))
    .unwrap();
    let routes = format!("{:?}", Seen::new(&plane, client("shop")).routes_of("web.shop:80"));
    assert!(routes.contains("a.example"), "{routes}");
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
