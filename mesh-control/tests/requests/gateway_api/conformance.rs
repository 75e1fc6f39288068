//! The cases of Gateway API's conformance profiles MESH-HTTP and MESH-GRPC, as tests of our own.

use super::{V1, V2, call, echo, got, grpc_route, http_route, line, object, shares, who, world};
use crate::support::World;
use mesh_control::conformance::{CASES, Check};

const SET: &str =
    "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Header-Set, value: set}]}}]";

#[test]
fn the_table_of_the_docs_has_every_case_with_its_test() {
    let docs = include_str!("../../../../docs/gateway-api.md");
    let source = include_str!("conformance.rs");
    let rows = docs.lines().filter(|line| line.starts_with("| Mesh")).map(str::to_owned);
    let cases = CASES.iter().map(|case| match case.check {
        Check::Test(test) => format!("| {} | `{test}` |", case.name),
        Check::None(why) => format!("| {} | none: {why} |", case.name),
        _ => panic!("{case:?}"),
    });
    assert_eq!(rows.collect::<Vec<_>>(), cases.collect::<Vec<_>>());
    let tests = CASES.iter().filter_map(|case| match case.check {
        Check::Test(test) => Some(test),
        _ => None,
    });
    let mut listed: Vec<&str> = tests.collect();
    let tests = source.split("#[tokio::test]\nasync fn ").skip(1).map(|rest| rest.split('(').next().unwrap());
    let mut tests: Vec<&str> = tests.collect();
    listed.sort_unstable();
    listed.dedup();
    tests.sort_unstable();
    assert_eq!(listed, tests);
}

#[tokio::test]
async fn mesh_basic() {
    let world = world(&echo().await).await;
    assert_eq!(who(world.get("http://echo-v1/").await), "v1");
    assert_eq!(who(world.get("http://echo-v2.mesh.svc.cluster.local:8080/").await), "v2");
}

#[tokio::test]
async fn mesh_frontend() {
    let services = echo().await;
    let world = world(&(services.clone() + &http_route("set", "echo-v2", &format!("  - {SET}\n    {V2}")))).await;
    let answer = world.get("http://echo-v2/").await.unwrap();
    assert_eq!((answer.header("x-header-set"), who(Ok(answer.clone())).as_str()), (Some("set"), "v2"));
    // Whoever calls the workload itself is not routed.
    let entry = services.lines().rfind(|line| line.contains("version: v2}, ports")).unwrap();
    let port = entry.split("http: ").nth(1).unwrap().split(',').next().unwrap();
    let answer = world.get(&format!("http://127.0.0.1:{port}/")).await.unwrap();
    assert_eq!((answer.header("x-header-set"), who(Ok(answer.clone())).as_str()), (None, "v2"));
}

#[tokio::test]
async fn mesh_frontend_hostname() {
    // Hosts of a route say nothing in a mesh: it is for whatever its parent is called by.
    let hosts = http_route("set", "echo-v2", &format!("  - {SET}\n    {V2}"))
        .replace("  rules:", "  hostnames: [other.example]\n  rules:");
    let world = world(&(echo().await + &hosts)).await;
    for host in ["echo-v2", "echo-v2.mesh", "echo-v2.mesh.svc", "echo-v2.mesh.svc.cluster.local"] {
        let answer = world.get(&format!("http://{host}/")).await.unwrap();
        assert_eq!((answer.header("x-header-set"), who(Ok(answer.clone())).as_str()), (Some("set"), "v2"), "{host}");
    }
}

#[tokio::test]
async fn mesh_ports() {
    let only = http_route("v1", "echo-v1, port: 80", &format!("  - {SET}\n    {V1}"));
    let all = http_route("v2", "echo-v2", &format!("  - {SET}\n    {V2}"));
    let world = world(&(echo().await + &only + &all)).await;
    for (uri, set) in [
        ("http://echo-v1/", Some("set")),
        ("http://echo-v1:8080/", None),
        ("http://echo-v2/", Some("set")),
        ("http://echo-v2:8080/", Some("set")),
    ] {
        let answer = world.get(uri).await.unwrap();
        assert_eq!((answer.status, answer.header("x-header-set")), (200, set), "{uri}");
    }
}

#[tokio::test]
async fn mesh_traffic_split() {
    let rules = format!(
        "  - matches: [{{path: {{type: Exact, value: /v1}}}}]\n    {V1}\n  - matches: [{{path: {{type: Exact, value: /v2}}}}]\n    {V2}"
    );
    let world = world(&(echo().await + &http_route("split", "echo", &rules))).await;
    for (path, expected) in [("v1", "v1"), ("v2", "v2"), ("v3", "404")] {
        assert_eq!(who(world.get(&format!("http://echo/{path}")).await), expected, "{path}");
    }
}

#[tokio::test]
async fn mesh_consumer_route() {
    let services = echo().await;
    let parent = "  parentRefs: [{group: '', kind: Service, name: echo-v1, namespace: mesh}]\n";
    let rules = format!("  rules:\n  - {SET}\n    backendRefs: [{{name: echo-v1, namespace: mesh, port: 80}}]");
    let route = object("HTTPRoute", "consumer", "set", "", &format!("{parent}{rules}"));
    let grant = object(
        "ReferenceGrant",
        "mesh",
        "grant",
        "",
        "  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: consumer}]\n  to: [{group: '', kind: Service}]",
    );
    let yaml = services + &route + &grant;
    for (namespace, set) in [("consumer", Some("set")), ("mesh", None), ("third", None)] {
        let answer = World::of(namespace, &[], &yaml).await.get("http://echo-v1.mesh/").await.unwrap();
        assert_eq!((answer.header("x-header-set"), who(Ok(answer.clone())).as_str()), (set, "v1"), "{namespace}");
    }
}

#[tokio::test]
async fn http_route_matching() {
    let header = "headers: [{name: version, value: two}]";
    let one = format!(
        "  - matches: [{{path: {{type: PathPrefix, value: /}}}}, {{headers: [{{name: version, value: one}}]}}]\n    {V1}\n"
    );
    let two = format!("  - matches: [{{path: {{type: PathPrefix, value: /v2}}}}, {{{header}}}]\n    {V2}");
    let world = world(&(echo().await + &http_route("matching", "echo", &(one + &two)))).await;
    for (path, version, expected) in [
        ("/", None, "v1"),
        ("/example", None, "v1"),
        ("/", Some("one"), "v1"),
        ("/v2", None, "v2"),
        ("/v2/example", None, "v2"),
        // Segments are compared as wholes.
        ("/v2example", None, "v1"),
        ("/foo/v2/example", None, "v1"),
        ("/", Some("two"), "v2"),
        // The longer prefix goes before more headers.
        ("/v2/", Some("one"), "v2"),
    ] {
        let headers: Vec<(&str, &str)> = version.map(|version| ("Version", version)).into_iter().collect();
        let answer = world.with(&format!("http://echo{path}"), &headers).await;
        assert_eq!(who(answer), expected, "{path} {version:?}");
    }
}

#[tokio::test]
async fn http_route_simple_same_namespace() {
    let world = world(&(echo().await + &http_route("simple", "echo", &format!("  - {V1}")))).await;
    assert_eq!(shares(&world, "http://echo/", 20).await, (20, 0, 0));
}

#[tokio::test]
async fn http_route_weight() {
    let backends = "  - backendRefs: [{name: echo-v1, port: 80, weight: 70}, {name: echo-v2, port: 80, weight: 30}, {name: echo, port: 80, weight: 0}]";
    let world = world(&(echo().await + &http_route("weight", "echo", backends))).await;
    let (v1, v2, failed) = shares(&world, "http://echo/", 600).await;
    assert_eq!(failed, 0);
    // Beyond five standard deviations, it is not chance.
    assert!((420 - 56..=420 + 56).contains(&v1), "{v1} of 600, and {v2}");
}

/// The rules of the next two tests: filters of rules, or of backends.
fn modifiers(of_backend: bool) -> String {
    let rule = |path: &str, modifier: &str| {
        let filter = format!("filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{{modifier}}}}}]");
        let matches = format!("  - matches: [{{path: {{type: PathPrefix, value: /{path}}}}}]\n");
        match of_backend {
            false => format!("{matches}    {filter}\n    {V1}\n"),
            true => format!("{matches}    backendRefs: [{{name: echo-v1, port: 80, {filter}}}]\n"),
        }
    };
    [
        rule("set", "set: [{name: X-Header-Set, value: set-overwrites-values}]"),
        rule("add", "add: [{name: X-Header-Add, value: add-appends-values}]"),
        rule("remove", "remove: [X-Header-Remove]"),
        rule(
            "multiple",
            "set: [{name: X-Set-1, value: s1}, {name: X-Set-2, value: s2}], add: [{name: X-Add-1, value: a1}, {name: X-Add-2, value: a2}], \
             remove: [X-Remove-1, X-Remove-2]",
        ),
        // What is written is what is sent.
        rule("literal", "set: [{name: X-Header-Set, value: '100%REQ(x)%'}]"),
    ]
    .concat()
}

async fn modifies_requests(rules: &str) {
    let world = world(&(echo().await + &http_route("modify", "echo", rules))).await;
    type Headers = &'static [(&'static str, &'static str)];
    let cases: [(&str, Headers, Headers); 7] = [
        ("/set", &[("some-other", "val")], &[("some-other", "val"), ("x-header-set", "set-overwrites-values")]),
        ("/set", &[("x-header-set", "other")], &[("x-header-set", "set-overwrites-values")]),
        ("/add", &[], &[("x-header-add", "add-appends-values")]),
        ("/add", &[("x-header-add", "other")], &[("x-header-add", "other,add-appends-values")]),
        ("/remove", &[("X-Header-Remove", "val")], &[("x-header-remove", "")]),
        (
            "/multiple",
            &[("x-set-2", "v"), ("x-add-2", "v"), ("x-remove-2", "v"), ("another", "v")],
            &[
                ("x-set-1", "s1"),
                ("x-set-2", "s2"),
                ("x-add-1", "a1"),
                ("x-add-2", "v,a2"),
                ("x-remove-1", ""),
                ("x-remove-2", ""),
                ("another", "v"),
            ],
        ),
        ("/literal", &[], &[("x-header-set", "100%REQ(x)%")]),
    ];
    for (path, sent, expected) in cases {
        let answer = world.with(&format!("http://echo{path}"), sent).await.unwrap();
        for (name, value) in expected {
            assert_eq!(got(&answer, name).join(","), *value, "{path} {name}: {answer:?}");
        }
        assert_eq!(who(Ok(answer)), "v1");
    }
}

#[tokio::test]
async fn http_route_request_header_modifier() {
    modifies_requests(&modifiers(false)).await;
}

#[tokio::test]
async fn http_route_backend_request_header_modifier() {
    modifies_requests(&modifiers(true)).await;
}

/// Rules for `/NAME` that redirect as it is said.
fn redirects(cases: &[(&str, &str)]) -> String {
    let rule = |(path, redirect): &(&str, &str)| {
        format!(
            "  - matches: [{{path: {{type: PathPrefix, value: /{path}}}}}]\n    filters: [{{type: RequestRedirect, requestRedirect: {{{redirect}}}}}]\n"
        )
    };
    cases.iter().map(rule).collect()
}

async fn redirects_to(rules: &[(&str, &str)], expected: &[(&str, u16, &str)]) {
    let world = world(&(echo().await + &http_route("redirect", "echo", &redirects(rules)))).await;
    for (uri, status, location) in expected {
        let answer = world.get(&format!("http://{uri}")).await.unwrap();
        assert_eq!((answer.status, answer.header("location")), (*status, Some(*location)), "{uri}");
    }
}

#[tokio::test]
async fn http_route_redirect_host_and_status() {
    redirects_to(
        &[
            ("host", "hostname: example.org"),
            ("both", "hostname: example.org, statusCode: 301"),
            ("status", "statusCode: 301, scheme: https"),
        ],
        &[
            ("echo/host?a=b", 302, "http://example.org/host?a=b"),
            ("echo:8080/host", 302, "http://example.org:8080/host"),
            ("echo/both", 301, "http://example.org/both"),
            ("echo/status", 301, "https://echo/status"),
        ],
    )
    .await;
}

#[tokio::test]
async fn http_route_additional_redirect_statuses() {
    redirects_to(
        &[
            ("303", "hostname: example.org, statusCode: 303"),
            ("307", "hostname: example.org, statusCode: 307"),
            ("308", "hostname: example.org, statusCode: 308"),
        ],
        &[
            ("echo/303", 303, "http://example.org/303"),
            ("echo/307", 307, "http://example.org/307"),
            ("echo/308", 308, "http://example.org/308"),
        ],
    )
    .await;
}

#[tokio::test]
async fn http_route_redirect_path() {
    redirects_to(
        &[
            ("original", "path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement}"),
            ("full", "path: {type: ReplaceFullPath, replaceFullPath: /full-replacement}"),
            ("host", "hostname: example.org, path: {type: ReplacePrefixMatch, replacePrefixMatch: /replacement}"),
            ("status", "statusCode: 301, path: {type: ReplaceFullPath, replaceFullPath: /full-replacement}"),
        ],
        &[
            ("echo/original/lemon?a", 302, "http://echo/replacement/lemon?a"),
            ("echo/original", 302, "http://echo/replacement"),
            ("echo/full/path/original", 302, "http://echo/full-replacement"),
            ("echo/host", 302, "http://example.org/replacement"),
            ("echo/status", 301, "http://echo/full-replacement"),
        ],
    )
    .await;
}

#[tokio::test]
async fn http_route_redirect_port() {
    redirects_to(
        &[
            ("port", "port: 8083"),
            ("host", "port: 8083, hostname: example.org"),
            ("status", "port: 8083, statusCode: 301"),
            ("standard", "port: 80, hostname: example.org"),
        ],
        &[
            ("echo/port", 302, "http://echo:8083/port"),
            ("echo/host", 302, "http://example.org:8083/host"),
            ("echo/status", 301, "http://echo:8083/status"),
            ("echo:8080/standard", 302, "http://example.org/standard"),
        ],
    )
    .await;
}

#[tokio::test]
async fn http_route_redirect_scheme() {
    redirects_to(
        &[
            ("scheme", "scheme: https"),
            ("host", "scheme: https, hostname: example.org"),
            ("status", "scheme: https, statusCode: 301"),
            ("all", "scheme: https, hostname: example.org, port: 8443, statusCode: 301"),
        ],
        &[
            ("echo/scheme", 302, "https://echo/scheme"),
            ("echo:8080/scheme", 302, "https://echo/scheme"),
            ("echo:8080/host", 302, "https://example.org/host"),
            ("echo/status", 301, "https://echo/status"),
            ("echo/all", 301, "https://example.org:8443/all"),
        ],
    )
    .await;
}

#[tokio::test]
async fn http_route_rewrite_path() {
    let rule = |path: &str, rewrite: &str, more: &str| {
        format!(
            "  - matches: [{{path: {{type: PathPrefix, value: {path}}}}}]\n    filters: [{{type: URLRewrite, urlRewrite: {{{rewrite}}}}}{more}]\n    {V1}\n"
        )
    };
    let modify = ", {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: s}], add: [{name: X-Add, value: a}], remove: [X-Remove]}}";
    let prefix = |to: &str| format!("path: {{type: ReplacePrefixMatch, replacePrefixMatch: {to}}}");
    let rules = [
        rule("/prefix/one", &prefix("/one"), ""),
        rule("/strip-prefix", &prefix("/"), ""),
        rule("/full/one", "path: {type: ReplaceFullPath, replaceFullPath: /one}", ""),
        rule("/full/headers", r"path: {type: ReplaceFullPath, replaceFullPath: '/te\1st'}", modify),
        rule("/prefix/headers", &prefix("/prefix"), modify),
    ]
    .concat();
    let world = world(&(echo().await + &http_route("rewrite", "echo", &rules))).await;
    for (path, expected) in [
        ("/prefix/one/two", "/one/two"),
        ("/strip-prefix/three", "/three"),
        ("/strip-prefix", "/"),
        ("/strip-prefix/", "/"),
        ("/full/one/two?a=b", "/one?a=b"),
        ("/full/one", "/one"),
        ("/prefix/headers/one", "/prefix/one"),
    ] {
        let answer = world.with(&format!("http://echo{path}"), &[("x-remove", "v"), ("x-add", "b")]).await.unwrap();
        assert_eq!(line(&answer), format!("GET {expected}"), "{path}");
        if path.contains("headers") {
            assert_eq!(
                (got(&answer, "x-set"), got(&answer, "x-add").join(",")),
                (vec!["s".to_owned()], "b,a".to_owned())
            );
            assert!(got(&answer, "x-remove").is_empty());
        }
    }
    // What would mean something in a substitution is a part of the path.
    let answer = world.get("http://echo/full/headers/x").await.unwrap();
    assert_eq!(line(&answer), r"GET /te\1st");
}

#[tokio::test]
async fn http_route_query_param_matching() {
    let query = |name: &str, value: &str| format!("queryParams: [{{name: {name}, value: {value}}}]");
    let path = |path: &str| format!("path: {{type: PathPrefix, value: {path}}}");
    let version = |value: &str| format!("headers: [{{name: version, value: {value}}}]");
    let rules = [
        format!("  - matches: [{{{}}}]\n    {V1}\n", query("animal", "whale")),
        format!("  - matches: [{{{}}}]\n    {V2}\n", query("animal", "dolphin")),
        format!("  - matches: [{{{}, {}}}]\n    {V1}\n", path("/path1"), query("animal", "whale")),
        format!("  - matches: [{{{}, {}}}]\n    {V2}\n", version("one"), query("animal", "whale")),
        format!(
            "  - matches: [{{{}, {}}}, {{{}, {}, {}}}]\n    {V1}\n",
            path("/path3"),
            query("animal", "shark"),
            path("/path4"),
            query("animal", "kraken"),
            version("three")
        ),
        format!("  - matches: [{{{}, {}}}]\n    {V1}\n", path("/path5"), query("animal", "hydra")),
        format!("  - matches: [{{{}}}]\n    {V2}", query("animal", "hydra")),
    ]
    .concat();
    let world = world(&(echo().await + &http_route("query", "echo", &rules))).await;
    for (target, version, expected) in [
        ("/?animal=whale", None, "v1"),
        ("/?animal=dolphin", None, "v2"),
        ("/?animal=whale&otherparam=irrelevant", None, "v1"),
        ("/?animal=dolphin&color=yellow", None, "v2"),
        ("/?color=blue", None, "404"),
        ("/?animal=dog", None, "404"),
        ("/?animal=whaledolphin", None, "404"),
        ("/", None, "404"),
        ("/path1?animal=whale", None, "v1"),
        ("/?animal=whale", Some("one"), "v2"),
        ("/path3?animal=shark", None, "v1"),
        ("/path4?animal=kraken", Some("three"), "v1"),
        ("/?animal=shark", None, "404"),
        ("/path4?animal=kraken", None, "404"),
        ("/path5?animal=hydra", None, "v1"),
        ("/other?animal=hydra", None, "v2"),
    ] {
        let headers: Vec<(&str, &str)> = version.map(|version| ("version", version)).into_iter().collect();
        let answer = world.with(&format!("http://echo{target}"), &headers).await;
        assert_eq!(who(answer), expected, "{target} {version:?}");
    }
}

#[tokio::test]
async fn http_route_named_rule() {
    let rules = format!(
        "  - name: named\n    matches: [{{path: {{type: PathPrefix, value: /named}}}}]\n    {V1}\n  - matches: [{{path: {{type: PathPrefix, value: /unnamed}}}}]\n    {V2}"
    );
    let world = world(&(echo().await + &http_route("rules", "echo", &rules))).await;
    for (path, expected, route) in [("named", "v1", "mesh.rules.0.named"), ("unnamed", "v2", "mesh.rules.1")] {
        assert_eq!(who(world.get(&format!("http://echo/{path}")).await), expected);
        assert_eq!(world.route(), route);
    }
}

const CALL: &str = "http://echo:7070/pkg.Echo/Say";

#[tokio::test]
async fn grpc_route_weight() {
    let backends = "  - backendRefs: [{name: echo-v1, port: 7070, weight: 70}, {name: echo-v2, port: 7070, weight: 30}, {name: echo, port: 7070, weight: 0}]";
    let world = world(&(echo().await + &grpc_route("weight", "echo", backends))).await;
    let mut first = 0;
    for _ in 0..600 {
        first += usize::from(who(world.ask(call(CALL, &[])).await) == "v1");
    }
    assert!((420 - 56..=420 + 56).contains(&first), "{first} of 600");
}

#[tokio::test]
async fn grpc_route_request_header_modifier() {
    let rule = "  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: s}], add: [{name: X-Add, value: a}], remove: [X-Remove]}}]\n    backendRefs: [{name: echo-v1, port: 7070}]";
    let world = world(&(echo().await + &grpc_route("modify", "echo", rule))).await;
    let sent = [("x-set", "other"), ("x-add", "b"), ("x-remove", "v"), ("x-kept", "k")];
    let answer = world.ask(call(CALL, &sent)).await.unwrap();
    for (name, value) in [("x-set", "s"), ("x-add", "b,a"), ("x-remove", ""), ("x-kept", "k")] {
        assert_eq!(got(&answer, name).join(","), value, "{name}");
    }
    assert!(answer.body.starts_with("v1\nPOST "), "{answer:?}");
}

#[tokio::test]
async fn grpc_route_request_mirror() {
    let (mut seen, copies) = super::rules::recording().await;
    let mirror = "{type: RequestMirror, requestMirror: {backendRef: {name: copies, port: 7070}}}";
    let modify = "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: s}]}}";
    let rules = format!(
        "  - matches: [{{headers: [{{name: x-modify, value: 'true'}}]}}]\n    filters: [{mirror}, {modify}]\n    backendRefs: [{{name: echo-v1, port: 7070}}]\n  \
         - filters: [{mirror}]\n    backendRefs: [{{name: echo-v1, port: 7070}}]"
    );
    let world = world(&(echo().await + &copies + &grpc_route("mirror", "echo", &rules))).await;
    for (headers, set) in [(&[][..], ""), (&[("x-modify", "true")][..], "s")] {
        let answer = world.ask(call(CALL, headers)).await.unwrap();
        assert_eq!((got(&answer, "x-set").join(",").as_str(), who(Ok(answer.clone())).as_str()), (set, "v1"));
        assert_eq!(seen.recv().await.unwrap(), "POST /pkg.Echo/Say");
    }
}
