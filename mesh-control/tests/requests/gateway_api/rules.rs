//! What rules of an HTTPRoute mean, beyond what the conformance profiles ask for.

use std::time::{Duration, Instant};

use axum::extract::Request as Received;
use http::Request;
use mesh_core::request_info::Deadline;
use mesh_tower::body::Body;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{Receiver, channel};

use super::{V1, V2, echo, got, http_route, line, object, shares, who, world};
use crate::support::{failing, nobody};

/// A service `copies` of the namespace `mesh` that tells what reached it: method and path.
pub(super) async fn recording() -> (Receiver<String>, String) {
    // More than any test sends.
    let (tell, told) = channel(1024);
    let app = axum::Router::new().fallback(move |request: Received| {
        tell.try_send(format!("{} {}", request.method(), request.uri().path())).unwrap();
        async { http::StatusCode::INTERNAL_SERVER_ERROR }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let yaml = service("copies", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (told, yaml)
}

/// A service of the namespace `mesh` with one server.
fn service(name: &str, at: std::net::SocketAddr) -> String {
    let (ip, port) = (at.ip(), at.port());
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: mesh}}\n\
         spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80}}, {{name: grpc, port: 7070}}]}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: mesh}}\n\
         spec: {{address: {ip}, labels: {{app: {name}}}, ports: {{http: {port}, grpc: {port}}}}}\n"
    )
}

/// A rule with this condition; it answers with a redirect to a host that is its name.
fn named(name: &str, condition: &str) -> String {
    format!(
        "  - matches: [{{{condition}}}]\n    filters: [{{type: RequestRedirect, requestRedirect: {{hostname: {name}}}}}]\n"
    )
}

#[tokio::test]
async fn conditions_have_an_order_of_their_own_whatever_the_order_of_the_rules() {
    let rules = [
        named("any", "path: {type: PathPrefix, value: /}"),
        named("query", "path: {type: PathPrefix, value: /}, queryParams: [{name: q, value: a}]"),
        named("header", "headers: [{name: x, value: a}]"),
        named("headers", "headers: [{name: x, value: a}, {name: z, value: b}]"),
        named("method", "method: GET"),
        named("short", "path: {type: PathPrefix, value: /a}"),
        // Characters count, not bytes: five against four.
        named("long", "path: {type: PathPrefix, value: /a/bc}"),
        named("exact", "path: {type: Exact, value: /a/b}"),
        named("regex", "path: {type: RegularExpression, value: '/a/[a-z]+/verylong'}"),
    ];
    let forwards: String = rules.concat();
    let backwards: String = rules.iter().rev().cloned().collect();
    for rules in [forwards, backwards] {
        let world = world(&(echo().await + &http_route("order", "echo", &rules))).await;
        for (method, path, headers, expected) in [
            ("POST", "/x", &[][..], "any"),
            ("POST", "/x?q=a", &[], "query"),
            ("POST", "/x?q=a", &[("x", "a")], "header"),
            ("POST", "/x", &[("x", "a"), ("z", "b")], "headers"),
            ("GET", "/x", &[("x", "a"), ("z", "b")], "method"),
            ("GET", "/a", &[("x", "a"), ("z", "b")], "short"),
            ("GET", "/a/", &[], "short"),
            ("GET", "/ab", &[], "method"),
            ("GET", "/a/bc/d", &[], "long"),
            ("GET", "/a/bcd", &[], "short"),
            ("GET", "/a/b", &[], "exact"),
            ("GET", "/a/b/", &[], "short"),
            // Prefixes go before expressions, as in Istio.
            ("GET", "/a/z/verylong", &[], "short"),
        ] {
            let mut request = Request::builder().method(method).uri(format!("http://echo{path}"));
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let answer = world.ask(request.body(Body::empty()).unwrap()).await.unwrap();
            let location = answer.header("location").unwrap();
            assert!(location.starts_with(&format!("http://{expected}/")), "{method} {path} {headers:?}: {location}");
        }
    }
}

#[tokio::test]
async fn routes_for_one_service_are_one_table_the_older_first_and_then_by_name() {
    let route = |name: &str, created: &str, to: &str| {
        let more = if created.is_empty() { String::new() } else { format!(", creationTimestamp: '{created}'") };
        let spec = format!(
            "  parentRefs: [{{group: '', kind: Service, name: echo}}]\n  rules:\n{}",
            named(to, "path: {value: /same}")
        );
        object("HTTPRoute", "mesh", name, &more, &spec)
    };
    let other = http_route("z", "echo", &named("other", "path: {value: /other}"));
    for (routes, expected) in [
        (route("a", "2025-01-01T00:00:00Z", "first") + &route("b", "2024-01-01T00:00:00Z", "second"), "second"),
        (route("b", "", "second") + &route("a", "", "first"), "first"),
    ] {
        let world = world(&(echo().await + &routes + &other)).await;
        let answer = world.get("http://echo/same").await.unwrap();
        assert_eq!(answer.header("location"), Some(&*format!("http://{expected}/same")));
        let answer = world.get("http://echo/other").await.unwrap();
        assert_eq!(answer.header("location"), Some("http://other/other"));
        assert_eq!(who(world.get("http://echo/none").await), "404");
    }
}

#[tokio::test]
async fn expressions_match_whole_texts_and_of_conditions_with_one_name_the_first_counts() {
    let rules = [
        named("path", "path: {type: RegularExpression, value: '/p/[0-9]+'}"),
        named("header", "headers: [{name: X-A, type: RegularExpression, value: 'a+'}, {name: x-a, value: never}]"),
        named("query", "path: {value: /q}, queryParams: [{name: q, type: RegularExpression, value: '[0-9]+'}, {name: q, value: never}]"),
    ]
    .concat();
    let world = world(&(echo().await + &http_route("regex", "echo", &rules))).await;
    for (path, header, expected) in [
        ("/p/12", "", Some("path")),
        ("/p/12a", "", None),
        ("/x", "aa", Some("header")),
        ("/x", "ab", None),
        ("/q?q=12", "", Some("query")),
        ("/q?q=12a", "", None),
        ("/q?Q=12", "", None),
    ] {
        let answer = world.with(&format!("http://echo{path}"), &[("x-a", header)]).await;
        match expected {
            Some(name) => {
                let answer = answer.unwrap();
                assert!(answer.header("location").unwrap().starts_with(&format!("http://{name}/")), "{path} {header}");
            }
            None => assert_eq!(who(answer), "404", "{path} {header}"),
        }
    }
}

#[tokio::test]
async fn what_takes_the_place_of_a_prefix_is_joined_with_one_slash() {
    let table = [
        ("/foo", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo/", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo/", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz", "/foo", "/xyz"),
        ("/foo", "/xyz", "/foo/", "/xyz/"),
        ("/foo", "''", "/foo/bar", "/bar"),
        ("/foo", "''", "/foo/", "/"),
        ("/foo", "''", "/foo", "/"),
        ("/foo", "/", "/foo/", "/"),
        ("/foo", "/", "/foo", "/"),
        ("/", "/xyz", "/foo", "/xyz/foo"),
        ("/", "/xyz/", "/foo?a=b", "/xyz/foo?a=b"),
    ];
    let services = echo().await;
    for (prefix, replacement, asked, expected) in table {
        let modifier = format!("{{path: {{type: ReplacePrefixMatch, replacePrefixMatch: {replacement}}}}}");
        let condition = format!("  - matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}]\n");
        let rewrite = format!("{condition}    filters: [{{type: URLRewrite, urlRewrite: {modifier}}}]\n    {V1}\n");
        let redirect = format!("{condition}    filters: [{{type: RequestRedirect, requestRedirect: {modifier}}}]\n");
        let both = http_route("rewrite", "echo-v1", &rewrite) + &http_route("redirect", "echo-v2", &redirect);
        let world = world(&(services.clone() + &both)).await;
        let answer = world.get(&format!("http://echo-v1{asked}")).await.unwrap();
        assert_eq!(line(&answer), format!("GET {expected}"), "{prefix} {replacement} {asked}");
        let answer = world.get(&format!("http://echo-v2{asked}")).await.unwrap();
        assert_eq!(
            answer.header("location"),
            Some(&*format!("http://echo-v2{expected}")),
            "{prefix} {replacement} {asked}"
        );
    }
}

#[tokio::test]
async fn hosts_are_rewritten_and_responses_get_their_headers() {
    let backend = "backendRefs: [{name: echo-v1, port: 80, filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-backend, value: b}]}}]}]";
    let rules = format!(
        "  - matches: [{{path: {{value: /rewrite}}}}]\n    filters: [{{type: URLRewrite, urlRewrite: {{hostname: other.example}}}}]\n    {V1}\n  \
         - matches: [{{path: {{value: /host}}}}]\n    filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: Host, value: third.example}}]}}}}]\n    {V1}\n  \
         - filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-answer, value: '50%'}}], add: [{{name: x-more, value: m}}], remove: [content-type]}}}}]\n    {backend}"
    );
    let world = world(&(echo().await + &http_route("rewrite", "echo", &rules))).await;
    for (path, host) in [("/rewrite", "other.example"), ("/host", "third.example"), ("/", "echo")] {
        let answer = world.get(&format!("http://echo{path}")).await.unwrap();
        assert_eq!(got(&answer, "host"), [host], "{path}");
    }
    let answer = world.get("http://echo/").await.unwrap();
    let told = ["x-answer", "x-more", "x-backend", "content-type"].map(|name| answer.header(name));
    assert_eq!(told, [Some("50%"), Some("m"), Some("b"), None]);
}

#[tokio::test]
async fn backends_that_are_none_answer_500_for_their_share_and_without_any_good_one_for_all() {
    let services = echo().await;
    for (backends, expected, reason) in [
        ("[]", "500", "there are no backendRefs"),
        ("[{name: echo-v1, port: 80, weight: 0}]", "500", "no backend has a weight above 0"),
        ("[{name: nobody, port: 80}]", "500", "there is no Service mesh/nobody"),
        ("[{name: echo-v1, port: 81}]", "500", "has no port 81"),
        ("[{name: echo-v1, port: 80, kind: Bucket, group: store.example}]", "500", "Bucket"),
        ("[{name: echo-v1, port: 80, namespace: other}]", "500", "no ReferenceGrant"),
        (
            "[{name: echo-v1, port: 80, filters: [{type: URLRewrite, urlRewrite: {hostname: a.b}}]}]",
            "500",
            "URLRewrite",
        ),
        ("[{name: nobody, port: 80, weight: 0}, {name: echo-v1, port: 80}]", "v1", ""),
    ] {
        let world =
            world(&(services.clone() + &http_route("r", "echo", &format!("  - backendRefs: {backends}")))).await;
        let answer = world.get("http://echo/").await.unwrap();
        assert!(answer.body.contains(reason), "{backends}: {answer:?}");
        assert_eq!(who(Ok(answer)), expected, "{backends}");
    }
    // Without rules at all there is one without backends.
    let empty = object("HTTPRoute", "mesh", "empty", "", "  parentRefs: [{group: '', kind: Service, name: echo}]");
    assert_eq!(who(world(&(services.clone() + &empty)).await.get("http://echo/").await), "500");

    let third = "  - backendRefs: [{name: echo-v1, port: 80, weight: 2}, {name: nobody, port: 80, weight: 1}]";
    let world = world(&(services + &http_route("share", "echo", third))).await;
    let (v1, _, failed) = shares(&world, "http://echo/", 600).await;
    assert!((200 - 58..=200 + 58).contains(&failed) && v1 + failed == 600, "{failed} of 600");
}

#[tokio::test]
async fn filters_that_nobody_honours_are_not_passed_over() {
    let services = echo().await;
    for filter in [
        "{type: ExtensionRef, extensionRef: {group: x.example, kind: Limit, name: a}}",
        "{type: ExternalAuth, externalAuth: {protocol: GRPC, backendRef: {name: echo-v2, port: 7070}}}",
    ] {
        let rules =
            format!("  - matches: [{{path: {{value: /guarded}}}}]\n    filters: [{filter}]\n    {V1}\n  - {V2}");
        let world = world(&(services.clone() + &http_route("r", "echo", &rules))).await;
        let answer = world.get("http://echo/guarded").await.unwrap();
        assert_eq!(answer.status, 500, "{filter}");
        assert!(answer.body.contains("cannot be honoured"), "{answer:?}");
        assert_eq!(who(world.get("http://echo/").await), "v2");
    }
}

#[tokio::test]
async fn copies_go_where_a_mirror_says_and_one_that_is_none_is_left_out() {
    let (mut seen, copies) = recording().await;
    let mirror = |to: &str, share: &str| {
        format!("{{type: RequestMirror, requestMirror: {{backendRef: {{name: {to}, port: 80}}{share}}}}}")
    };
    let rule = |path: &str, filters: &[String]| {
        format!("  - matches: [{{path: {{value: {path}}}}}]\n    filters: [{}]\n    {V1}\n", filters.join(", "))
    };
    let rules = [
        rule("/none", &[mirror("copies", ", percent: 0"), mirror("nobody", "")]),
        rule("/zero", &[mirror("copies", ", fraction: {numerator: 0}")]),
        rule("/whole", &[mirror("copies", ", fraction: {numerator: 7, denominator: 7}")]),
        rule("/all", &[mirror("copies", "")]),
    ]
    .concat();
    let world = world(&(echo().await + &copies + &http_route("mirror", "echo", &rules))).await;
    for path in ["/none", "/zero", "/whole", "/none", "/all"] {
        assert_eq!(who(world.get(&format!("http://echo{path}")).await), "v1", "{path}");
    }
    let mut copied = [seen.recv().await.unwrap(), seen.recv().await.unwrap()];
    copied.sort();
    assert_eq!(copied, ["GET /all", "GET /whole"]);
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn a_request_takes_no_longer_than_its_route_lets_it() {
    let rules = "  - matches: [{path: {value: /slow}}]\n    timeouts: {request: 20ms}\n    backendRefs: [{name: echo-v1, port: 80}]\n  \
                 - matches: [{path: {type: Exact, value: /unbounded}}]\n    timeouts: {request: 0s}\n    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /slow}}}]\n    backendRefs: [{name: echo-v1, port: 80}]\n  \
                 - matches: [{path: {type: Exact, value: /try}}]\n    timeouts: {backendRequest: 20ms}\n    retry: {attempts: 0}\n    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /slow}}}]\n    backendRefs: [{name: echo-v1, port: 80}]\n  \
                 - matches: [{path: {type: Exact, value: /tries}}]\n    timeouts: {request: 10s, backendRequest: 20ms}\n    retry: {attempts: 2, codes: [504], backoff: 1ms}\n    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /slow}}}]\n    backendRefs: [{name: echo-v1, port: 80}]";
    let world = world(&(echo().await + &http_route("time", "echo", rules))).await;
    for (path, expected, attempts) in
        [("/slow", "504", 1), ("/unbounded", "v1", 1), ("/try", "504", 1), ("/tries", "504", 3)]
    {
        let mut request = Request::get(format!("http://echo{path}")).body(Body::empty()).unwrap();
        request.extensions_mut().insert(Deadline(Instant::now() + Duration::from_secs(30)));
        assert_eq!(who(world.ask(request).await), expected, "{path}");
        assert_eq!(world.attempts(), attempts, "{path}");
    }
}

#[tokio::test]
async fn what_is_tried_again_is_what_the_route_says() {
    let down = service("down", failing().await) + &service("gone", nobody().await);
    let rule = |path: &str, retry: &str, to: &str| {
        format!(
            "  - matches: [{{path: {{value: /{path}}}}}]\n    {retry}\n    backendRefs: [{{name: {to}, port: 80}}]\n"
        )
    };
    let rules = [
        rule("default", "", "down"),
        rule("codes", "retry: {codes: [503], attempts: 3, backoff: 1ms}", "down"),
        rule("others", "retry: {codes: [500], attempts: 3, backoff: 1ms}", "down"),
        rule("unsaid", "retry: {codes: [503], backoff: 1ms}", "down"),
        rule("never", "retry: {codes: [503], attempts: 0}", "down"),
        rule("gone", "retry: {attempts: 1, backoff: 1ms}", "gone"),
    ]
    .concat();
    let world = world(&(echo().await + &down + &http_route("retry", "echo", &rules))).await;
    for (path, attempts) in [("default", 1), ("codes", 4), ("others", 1), ("unsaid", 3), ("never", 1), ("gone", 2)] {
        assert_eq!(who(world.get(&format!("http://echo/{path}")).await), "503", "{path}");
        assert_eq!(world.attempts(), attempts, "{path}");
    }
}

#[tokio::test]
async fn pages_of_other_origins_are_told_what_they_may() {
    let cors = "{allowOrigins: ['https://*.a.example'], allowMethods: [GET, PUT], allowHeaders: [x-a], exposeHeaders: [x-b], allowCredentials: true}";
    let rules = format!("  - filters: [{{type: CORS, cors: {cors}}}]\n    {V1}");
    let world = world(&(echo().await + &http_route("cors", "echo", &rules))).await;
    let ask = async |method: &str, origin: &str| {
        let request = Request::builder().method(method).uri("http://echo/").header("origin", origin);
        let request = request.header("access-control-request-method", "PUT");
        world.ask(request.body(Body::empty()).unwrap()).await.unwrap()
    };
    let preflight = ask("OPTIONS", "https://x.a.example").await;
    let told = ["allow-origin", "allow-methods", "allow-headers", "allow-credentials", "max-age"];
    let told = told.map(|name| preflight.header(&format!("access-control-{name}")).unwrap_or_default().to_owned());
    assert_eq!(told, ["https://x.a.example", "GET,PUT", "x-a", "true", "5"]);
    assert!(preflight.body.is_empty(), "{preflight:?}");
    let answer = ask("PUT", "https://x.a.example").await;
    assert_eq!(answer.header("access-control-expose-headers"), Some("x-b"));
    assert_eq!(who(Ok(answer)), "v1");
    // Those of others are answered, too, and give no leave.
    let other = ask("OPTIONS", "https://a.example.evil").await;
    assert_eq!((other.header("access-control-allow-origin"), other.body.as_str()), (None, ""));
}
