//! The table of support, by what a request experiences: every field of a VirtualService that is called enforced for the
//! library makes a difference to some request, and the right one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use http::Request;
use mesh_control::config::support::{ObjectKind, Support, is_own_row, row};
use mesh_core::request_info::Deadline;
use mesh_tower::body::Body;

use crate::support::{World, failing, nobody, server, service, virtual_service};

/// A field, a rule with and without it, a request, and what that experiences with it and not without it.
struct Case {
    field: &'static str,
    with: String,
    without: String,
    ask: Ask,
    expected: &'static str,
}

/// The way into the mesh.
#[derive(Clone, Copy, Debug)]
enum Face {
    Client,
    Layer,
}

/// A request.
#[derive(Clone, Copy)]
struct Ask {
    method: &'static str,
    uri: &'static str,
    headers: &'static [(&'static str, &'static str)],
    /// How long the caller waits.
    patience: Duration,
}

const ROOT: Ask =
    Ask { method: "GET", uri: "http://web.example.com/", headers: &[], patience: Duration::from_secs(30) };

const fn to(uri: &'static str) -> Ask {
    Ask { uri, ..ROOT }
}

const fn headed(headers: &'static [(&'static str, &'static str)]) -> Ask {
    Ask { headers, ..ROOT }
}

/// What a page of another origin makes a browser ask.
const OF_A: Ask = headed(&[("origin", "https://a.example")]);
const PREFLIGHT: Ask =
    Ask { method: "OPTIONS", ..headed(&[("origin", "https://a.example"), ("access-control-request-method", "PUT")]) };
const PREFLIGHT_OF_B: Ask =
    Ask { method: "OPTIONS", ..headed(&[("origin", "https://b.example"), ("access-control-request-method", "PUT")]) };

const TO_WEB: &str = "route: [{destination: {host: web.example.com}}]";

/// Conditions: the request that meets one is answered with 201, the other with 299; without the condition both are met.
fn conditions() -> Vec<Case> {
    let post = Ask { method: "POST", ..ROOT };
    let port = "http://web.example.com:80/";
    let conditions: Vec<(&'static str, &'static str, Ask, Ask)> = vec![
        ("uri.exact", "uri: {exact: /a}", to("http://web.example.com/a?q"), to("http://web.example.com/ab")),
        ("uri.prefix", "uri: {prefix: /a}", to("http://web.example.com/ab"), ROOT),
        ("uri.regex", "uri: {regex: '/a+'}", to("http://web.example.com/aa"), to("http://web.example.com/aab")),
        ("method.exact", "method: {exact: POST}", post, ROOT),
        ("method.prefix", "method: {prefix: PO}", post, ROOT),
        ("method.regex", "method: {regex: 'P.*'}", post, ROOT),
        ("authority.exact", "authority: {exact: 'web.example.com:80'}", to(port), ROOT),
        ("authority.prefix", "authority: {prefix: 'web.example.com:'}", to(port), ROOT),
        ("authority.regex", "authority: {regex: '.*:80'}", to(port), ROOT),
        ("headers.exact", "headers: {x: {exact: a}}", headed(&[("x", "a")]), headed(&[("x", "ab")])),
        ("headers.prefix", "headers: {x: {prefix: a}}", headed(&[("x", "ab")]), headed(&[("x", "b")])),
        ("headers.regex", "headers: {x: {regex: 'a+'}}", headed(&[("x", "aa")]), headed(&[("x", "aab")])),
        ("withoutHeaders.exact", "withoutHeaders: {x: {exact: a}}", headed(&[("x", "ab")]), headed(&[("x", "a")])),
        ("withoutHeaders.prefix", "withoutHeaders: {x: {prefix: a}}", ROOT, headed(&[("x", "ab")])),
        ("withoutHeaders.regex", "withoutHeaders: {x: {regex: 'a+'}}", headed(&[("x", "b")]), headed(&[("x", "aa")])),
        ("queryParams.exact", "queryParams: {q: {exact: a}}", to("http://web.example.com/?q=a"), ROOT),
        ("queryParams.prefix", "queryParams: {q: {prefix: a}}", to("http://web.example.com/?q=ab"), ROOT),
        ("queryParams.regex", "queryParams: {q: {regex: 'a+'}}", to("http://web.example.com/?q=aa"), ROOT),
        ("port", "port: 81", to("http://web.example.com:81/"), ROOT),
    ];
    let rule = |condition: &str| {
        rules(&format!(
            "  - match: [{{{condition}}}]\n    directResponse: {{status: 201}}\n  - directResponse: {{status: 299}}\n"
        ))
    };
    let one = |field: &str, with: &str, without: &str, ask, expected| Case {
        field: leaked(&format!("http.match.{field}")),
        with: rule(with),
        without: rule(without),
        ask,
        expected,
    };
    let mut cases = Vec::new();
    for (field, condition, met, missed) in conditions {
        cases.push(one(field, condition, "", missed, "status: 299"));
        // Whoever meets it is not merely shut out with the rest.
        cases.push(one(field, condition, "method: {exact: NONE}", met, "status: 201"));
    }
    for kind in ["exact: http", "prefix: h", "regex: 'https?'"] {
        let field = leaked(&format!("scheme.{}", kind.split(':').next().unwrap()));
        cases.push(one(field, &format!("scheme: {{{kind}}}"), "method: {exact: NONE}", ROOT, "status: 201"));
        let other = kind.replace("http", "ftp").replace(": h", ": f");
        cases.push(one(field, &format!("scheme: {{{other}}}"), "", ROOT, "status: 299"));
    }
    for (field, condition, met) in [
        ("sourceLabels", "sourceLabels: {app: other}", "sourceLabels: {app: caller}"),
        ("sourceNamespace", "sourceNamespace: other", "sourceNamespace: default"),
        ("gateways", "gateways: [edge]", "gateways: [mesh]"),
    ] {
        cases.push(one(field, condition, "", ROOT, "status: 299"));
        cases.push(one(field, met, "method: {exact: NONE}", ROOT, "status: 201"));
    }
    let folded = to("http://web.example.com/A");
    cases.push(one(
        "ignoreUriCase",
        "uri: {exact: /a}, ignoreUriCase: true",
        "uri: {exact: /a}",
        folded,
        "status: 201",
    ));
    cases
}

/// Everything that a rule does, by rules that differ in one field: `@` is where it stands.
fn effects() -> Vec<Case> {
    let cases: Vec<(&'static str, &'static str, &'static str, Ask, &'static str)> = vec![
        ("http.name", "{name: rule, directResponse: {status: 201}}", "name: rule, ", ROOT, "route: rule\n"),
        (
            "http.match.name",
            "{name: rule, match: [{name: part}], directResponse: {status: 201}}",
            "name: part",
            ROOT,
            "route: rule.part",
        ),
        (
            "http.route.destination.subset",
            "{route: [{destination: {host: web.example.com, subset: v2}}]}",
            ", subset: v2",
            to("http://web.example.com/100"),
            "100 times v2",
        ),
        (
            "http.route.destination.port.number",
            "{route: [{destination: {host: web.example.com, port: {number: 81}}}]}",
            ", port: {number: 81}",
            ROOT,
            "by: other",
        ),
        (
            "http.directResponse.body.string",
            "{directResponse: {status: 201, body: {string: tea}}}",
            ", body: {string: tea}",
            ROOT,
            "tea",
        ),
        (
            "http.directResponse.body.bytes",
            "{directResponse: {status: 201, body: {bytes: dGVh}}}",
            ", body: {bytes: dGVh}",
            ROOT,
            "tea",
        ),
        (
            "http.redirect.uri",
            "{redirect: {uri: /x, redirectCode: 302}}",
            "",
            ROOT,
            "< location: http://web.example.com/x\n",
        ),
        (
            "http.redirect.redirectCode",
            "{redirect: {uri: /x, redirectCode: 307}}",
            ", redirectCode: 307",
            ROOT,
            "status: 307",
        ),
        (
            "http.redirect.authority",
            "{redirect: {uri: /x, authority: y.com}}",
            ", authority: y.com",
            ROOT,
            "< location: http://y.com/x\n",
        ),
        (
            "http.redirect.port",
            "{redirect: {uri: /x, port: 81}}",
            ", port: 81",
            ROOT,
            "< location: http://web.example.com:81/x\n",
        ),
        (
            "http.redirect.derivePort",
            "{redirect: {authority: y.com, derivePort: FROM_REQUEST_PORT}}",
            ", derivePort: FROM_REQUEST_PORT",
            to("http://web.example.com:81/"),
            "< location: http://y.com:81/\n",
        ),
        (
            "http.redirect.scheme",
            "{redirect: {uri: /x, scheme: https}}",
            ", scheme: https",
            ROOT,
            "< location: https://web.example.com/x\n",
        ),
        (
            "http.redirect.prefixRewrite",
            "{match: [{uri: {prefix: /a}}], redirect: {port: 81, prefixRewrite: /x}}",
            ", prefixRewrite: /x",
            to("http://web.example.com/a/b"),
            "< location: http://web.example.com:81/x/b\n",
        ),
        (
            "http.rewrite.uri",
            "{match: [{uri: {prefix: /a}}], rewrite: {authority: y.com, uri: /x}, TO_WEB}",
            ", uri: /x",
            to("http://web.example.com/a/b?q"),
            "GET /x/b?q\n",
        ),
        (
            "http.rewrite.authority",
            "{rewrite: {uri: /, authority: y.com}, TO_WEB}",
            ", authority: y.com",
            ROOT,
            "host: y.com\n",
        ),
        (
            "http.rewrite.uriRegexRewrite.match",
            "{rewrite: {authority: y.com, uriRegexRewrite: {match: '/a(.)', rewrite: '/\\1x'}}, TO_WEB}",
            ", uriRegexRewrite: {match: '/a(.)', rewrite: '/\\1x'}",
            to("http://web.example.com/ab"),
            "GET /bx\n",
        ),
        (
            "http.rewrite.uriRegexRewrite.rewrite",
            "{rewrite: {uriRegexRewrite: {match: '/a(.)', rewrite: '/\\1yy'}}, TO_WEB}",
            "yy",
            to("http://web.example.com/ab"),
            "GET /byy\n",
        ),
        (
            "http.timeout",
            "{timeout: 50ms, TO_WEB}",
            "timeout: 50ms, ",
            to("http://web.example.com/slow"),
            "error: Timeout",
        ),
        (
            "http.fault.delay.fixedDelay",
            "{fault: {delay: {fixedDelay: 1h, percent: 100}, abort: {httpStatus: 500}}, TO_WEB}",
            "delay: {fixedDelay: 1h, percent: 100}, ",
            Ask { patience: Duration::from_millis(100), uri: "http://web.example.com/quick", ..ROOT },
            "error: Timeout",
        ),
        (
            "http.fault.delay.percent",
            "{fault: {delay: {fixedDelay: 1h, percent: 100}}, TO_WEB}",
            ", percent: 100",
            Ask { patience: Duration::from_secs(2), ..ROOT },
            "error: Timeout",
        ),
        (
            "http.fault.delay.percentage.value",
            "{fault: {delay: {fixedDelay: 1h, percentage: {value: 100}}}, TO_WEB}",
            ", percentage: {value: 100}",
            Ask { patience: Duration::from_secs(2), ..ROOT },
            "error: Timeout",
        ),
        (
            "http.fault.abort.httpStatus",
            "{fault: {delay: {fixedDelay: 1ms}, abort: {httpStatus: 555, percent: 100}}, TO_WEB}",
            ", abort: {httpStatus: 555, percent: 100}",
            ROOT,
            "status: 555",
        ),
        (
            "http.fault.abort.grpcStatus",
            "{fault: {delay: {fixedDelay: 1ms}, abort: {grpcStatus: ABORTED, percent: 100}}, TO_WEB}",
            ", abort: {grpcStatus: ABORTED, percent: 100}",
            headed(&[("content-type", "application/grpc")]),
            "< grpc-status: 10\n",
        ),
        (
            "http.fault.abort.percent",
            "{fault: {abort: {httpStatus: 555, percent: 100}}, TO_WEB}",
            ", percent: 100",
            ROOT,
            "status: 555",
        ),
        (
            "http.fault.abort.percentage.value",
            "{fault: {abort: {httpStatus: 555, percentage: {value: 100}}}, TO_WEB}",
            ", percentage: {value: 100}",
            ROOT,
            "status: 555",
        ),
        (
            "http.retries.attempts",
            "{retries: {attempts: 0}, route: [{destination: {host: dead.example.com}}]}",
            "retries: {attempts: 0}, ",
            ROOT,
            "tries: 1\n",
        ),
        (
            "http.retries.attempts",
            "{retries: {attempts: 3}, route: [{destination: {host: dead.example.com}}]}",
            "retries: {attempts: 3}, ",
            ROOT,
            "tries: 4\n",
        ),
        (
            "http.retries.perTryTimeout",
            "{retries: {attempts: 1, retryOn: 5xx, perTryTimeout: 50ms}, TO_WEB}",
            ", perTryTimeout: 50ms",
            to("http://web.example.com/slow"),
            "error: Timeout\ntries: 2\n",
        ),
        (
            "http.retries.backoff",
            "{retries: {attempts: 3, backoff: 1000h}, route: [{destination: {host: dead.example.com}}]}",
            ", backoff: 1000h",
            ROOT,
            "tries: 1\n",
        ),
        (
            "http.corsPolicy.allowOrigins.exact",
            "{corsPolicy: {allowOrigins: [{exact: 'https://a.example'}]}, TO_WEB}",
            "allowOrigins: [{exact: 'https://a.example'}]",
            OF_A,
            "< access-control-allow-origin: https://a.example\n",
        ),
        (
            "http.corsPolicy.allowOrigins.prefix",
            "{corsPolicy: {allowOrigins: [{prefix: 'https://a.'}]}, TO_WEB}",
            "allowOrigins: [{prefix: 'https://a.'}]",
            OF_A,
            "< access-control-allow-origin: https://a.example\n",
        ),
        (
            "http.corsPolicy.allowOrigins.regex",
            "{corsPolicy: {allowOrigins: [{regex: 'https://[a-z].example'}]}, TO_WEB}",
            "allowOrigins: [{regex: 'https://[a-z].example'}]",
            OF_A,
            "< access-control-allow-origin: https://a.example\n",
        ),
        (
            "http.corsPolicy.allowOrigin",
            "{corsPolicy: {allowOrigin: ['https://a.example']}, TO_WEB}",
            "allowOrigin: ['https://a.example']",
            OF_A,
            "< access-control-allow-origin: https://a.example\n",
        ),
        (
            "http.corsPolicy.allowMethods",
            "{corsPolicy: {allowOrigins: [{exact: 'https://a.example'}], allowMethods: [GET, PUT]}, TO_WEB}",
            ", allowMethods: [GET, PUT]",
            PREFLIGHT,
            "< access-control-allow-methods: GET,PUT\n",
        ),
        (
            "http.corsPolicy.allowHeaders",
            "{corsPolicy: {allowOrigins: [{exact: 'https://a.example'}], allowHeaders: [x-a, x-b]}, TO_WEB}",
            ", allowHeaders: [x-a, x-b]",
            PREFLIGHT,
            "< access-control-allow-headers: x-a,x-b\n",
        ),
        (
            "http.corsPolicy.exposeHeaders",
            "{corsPolicy: {allowOrigins: [{exact: 'https://a.example'}], exposeHeaders: [x-answer]}, TO_WEB}",
            ", exposeHeaders: [x-answer]",
            OF_A,
            "< access-control-expose-headers: x-answer\n",
        ),
        (
            "http.corsPolicy.maxAge",
            "{corsPolicy: {allowOrigins: [{exact: 'https://a.example'}], maxAge: 1h}, TO_WEB}",
            ", maxAge: 1h",
            PREFLIGHT,
            "< access-control-max-age: 3600\n",
        ),
        (
            "http.corsPolicy.allowCredentials",
            "{corsPolicy: {allowOrigins: [{exact: 'https://a.example'}], allowCredentials: true}, TO_WEB}",
            ", allowCredentials: true",
            OF_A,
            "< access-control-allow-credentials: true\n",
        ),
        (
            "http.corsPolicy.unmatchedPreflights",
            "{corsPolicy: {allowOrigins: [{exact: 'https://a.example'}], unmatchedPreflights: IGNORE}, TO_WEB}",
            ", unmatchedPreflights: IGNORE",
            PREFLIGHT_OF_B,
            "status: 200\nby: \n",
        ),
        (
            "http.headers.request.set",
            "{headers: {request: {set: {x: a}}}, TO_WEB}",
            "set: {x: a}",
            headed(&[("x", "b")]),
            "\nx: a\n",
        ),
        (
            "http.headers.request.add",
            "{headers: {request: {add: {x: a}}}, TO_WEB}",
            "add: {x: a}",
            headed(&[("x", "b")]),
            "\nx: b\nx: a\n",
        ),
        (
            "http.headers.response.set",
            "{headers: {response: {set: {x-answer: a}}}, TO_WEB}",
            "set: {x-answer: a}",
            ROOT,
            "< x-answer: a\n",
        ),
        (
            "http.headers.response.add",
            "{headers: {response: {add: {x-answer: a}}}, TO_WEB}",
            "add: {x-answer: a}",
            ROOT,
            "< x-answer: server\n< x-answer: a\n",
        ),
        (
            "http.route.headers.request.set",
            "{route: [{destination: {host: web.example.com}, headers: {request: {set: {x: a}}}}]}",
            "set: {x: a}",
            headed(&[("x", "b")]),
            "\nx: a\n",
        ),
        (
            "http.route.headers.request.add",
            "{route: [{destination: {host: web.example.com}, headers: {request: {add: {x: a}}}}]}",
            "add: {x: a}",
            headed(&[("x", "b")]),
            "\nx: b\nx: a\n",
        ),
        (
            "http.route.headers.response.set",
            "{route: [{destination: {host: web.example.com}, headers: {response: {set: {x-answer: a}}}}]}",
            "set: {x-answer: a}",
            ROOT,
            "< x-answer: a\n",
        ),
        (
            "http.route.headers.response.add",
            "{route: [{destination: {host: web.example.com}, headers: {response: {add: {x-answer: a}}}}]}",
            "add: {x-answer: a}",
            ROOT,
            "< x-answer: server\n< x-answer: a\n",
        ),
    ];
    let mut all: Vec<Case> = cases
        .into_iter()
        .map(|(field, rule, clause, ask, expected)| {
            let with = rule.replace("TO_WEB", TO_WEB);
            let without = match clause {
                // The whole of the rule.
                "" => format!("{{{TO_WEB}}}"),
                clause => with.replace(clause, ""),
            };
            assert_ne!(with, without, "{field}: {clause} is not in the rule");
            Case {
                field,
                with: rules(&format!("  - {with}\n")),
                without: rules(&format!("  - {without}\n")),
                ask,
                expected,
            }
        })
        .collect();
    // What is seen by what is not there any more, or by another value in its place.
    let swapped: Vec<(&'static str, &'static str, &'static str, Ask, &'static str)> = vec![
        (
            "http.headers.request.remove",
            "{headers: {request: {remove: []}}, TO_WEB}",
            "{headers: {request: {remove: [x]}}, TO_WEB}",
            headed(&[("x", "b")]),
            "\nx: b\n",
        ),
        (
            "http.headers.response.remove",
            "{headers: {response: {remove: []}}, TO_WEB}",
            "{headers: {response: {remove: [x-answer]}}, TO_WEB}",
            ROOT,
            "< x-answer",
        ),
        (
            "http.route.headers.request.remove",
            "{TO_WEB}",
            "{route: [{destination: {host: web.example.com}, headers: {request: {remove: [x]}}}]}",
            headed(&[("x", "b")]),
            "\nx: b\n",
        ),
        (
            "http.route.headers.response.remove",
            "{TO_WEB}",
            "{route: [{destination: {host: web.example.com}, headers: {response: {remove: [x-answer]}}}]}",
            ROOT,
            "< x-answer",
        ),
        (
            "http.route.destination.host",
            "{route: [{destination: {host: two.example.com}}]}",
            "{TO_WEB}",
            ROOT,
            "by: two",
        ),
        (
            "http.directResponse.status",
            "{directResponse: {status: 418}}",
            "{directResponse: {status: 201}}",
            ROOT,
            "status: 418",
        ),
        (
            "http.route.weight",
            "{route: [{destination: {host: two.example.com}, weight: 0}, {destination: {host: web.example.com, subset: v1}, weight: 1}]}",
            "{route: [{destination: {host: two.example.com}, weight: 1}, {destination: {host: web.example.com, subset: v1}, weight: 1}]}",
            to("http://web.example.com/100"),
            "100 times v1",
        ),
        (
            "http.retries.retryOn",
            "{retries: {attempts: 3, retryOn: refused-stream}, route: [{destination: {host: dead.example.com}}]}",
            "{retries: {attempts: 3, retryOn: connect-failure}, route: [{destination: {host: dead.example.com}}]}",
            ROOT,
            "tries: 1\n",
        ),
        (
            "http.retries.retryIgnorePreviousHosts",
            "{retries: {attempts: 1, retryOn: '503', retryIgnorePreviousHosts: true}, route: [{destination: {host: half.example.com}}]}",
            "{retries: {attempts: 1, retryOn: '503', retryIgnorePreviousHosts: false}, route: [{destination: {host: half.example.com}}]}",
            to("http://web.example.com/100"),
            "100 times half",
        ),
        (
            "http.retries.retryRemoteLocalities",
            "{retries: {attempts: 2, retryOn: '503', retryRemoteLocalities: true}, route: [{destination: {host: ranked.example.com}}]}",
            "{retries: {attempts: 2, retryOn: '503', retryRemoteLocalities: false}, route: [{destination: {host: ranked.example.com}}]}",
            ROOT,
            "by: far",
        ),
        ("http.delegate.name", "{delegate: {name: child}}", "{delegate: {name: other}}", ROOT, "status: 231"),
        (
            "http.delegate.namespace",
            "{delegate: {name: child, namespace: elsewhere}}",
            "{delegate: {name: child}}",
            ROOT,
            "status: 232",
        ),
    ];
    all.extend(swapped.into_iter().map(|(field, with, without, ask, expected)| {
        let rule = |text: &str| rules(&format!("  - {}\n", text.replace("TO_WEB", TO_WEB)));
        Case { field, with: rule(with), without: rule(without), ask, expected }
    }));
    let object = |spec: &str| virtual_service("web", &format!("{spec}  http: [{{directResponse: {{status: 201}}}}]\n"));
    for (field, with, without) in [
        ("hosts", "  hosts: [web.example.com]\n", "  hosts: [two.example.com]\n"),
        (
            "gateways",
            "  hosts: [web.example.com]\n  gateways: [edge, mesh]\n",
            "  hosts: [web.example.com]\n  gateways: [edge]\n",
        ),
        (
            "exportTo",
            "  hosts: [web.example.com]\n  exportTo: [default]\n",
            "  hosts: [web.example.com]\n  exportTo: [other]\n",
        ),
    ] {
        all.push(Case { field, with: object(with), without: object(without), ask: ROOT, expected: "status: 201" });
    }
    all
}

fn leaked(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn rules(http: &str) -> String {
    virtual_service("web", &format!("  hosts: [web.example.com]\n  http:\n{http}"))
}

/// `web.example.com` of two ports and two versions, one more service, one that is dead, and delegates.
async fn services() -> String {
    let (v1, v2, other) = (server("v1").await, server("v2").await, server("other").await);
    let endpoint = |version: &str, port: u16| {
        format!(
            "\n  - {{address: 127.0.0.1, ports: {{http: {port}, other: {}}}, labels: {{v: {version}}}}}",
            other.port()
        )
    };
    let web = format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web}}
spec:
  hosts: [web.example.com]
  resolution: STATIC
  ports: [{{number: 80, name: http}}, {{number: 81, name: other}}]
  endpoints:{}{}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web}}
spec: {{host: web.example.com, subsets: [{{name: v1, labels: {{v: v1}}}}, {{name: v2, labels: {{v: v2}}}}]}}
",
        endpoint("v1", v1.port()),
        endpoint("v2", v2.port()),
    );
    let dead = [("a", nobody().await), ("b", nobody().await), ("c", nobody().await), ("d", nobody().await)];
    let delegate =
        |status: u16| virtual_service("child", &format!("  http: [{{directResponse: {{status: {status}}}}}]\n"));
    let elsewhere = delegate(232).replace("{name: child}", "{name: child, namespace: elsewhere}");
    let two = service("two", &[("v1", server("two").await)]);
    let half = service("half", &[("v1", server("half").await), ("v2", failing().await)]);
    let ranked = service("ranked", &[("v1", failing().await), ("v2", server("far").await)]);
    let first = "localityLbSetting: {failoverPriority: ['v=v1']}}, outlierDetection: {consecutive5xxErrors: 1000}";
    let ranking = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: ranking}}\nspec: {{host: ranked.example.com, trafficPolicy: {{loadBalancer: {{{first}}}}}\n"
    );
    [web, two, half, ranked, ranking, service("dead", &dead), delegate(231), elsewhere].concat()
}

/// What a request experiences, a line for each thing; where its path asks for 100, how often it was served by whom.
async fn experience(world: &World, face: Face, ask: Ask) -> String {
    if ask.uri.ends_with("/100") {
        let mut by = BTreeSet::new();
        for _ in 0..100 {
            let answer = one(world, face, ask).await;
            by.insert(answer.split("by: ").nth(1).and_then(|rest| rest.lines().next()).unwrap_or_default().to_owned());
        }
        return by.iter().map(|name| format!("{} times {name}", 100 / by.len())).collect::<Vec<_>>().join(", ");
    }
    one(world, face, ask).await
}

async fn one(world: &World, face: Face, ask: Ask) -> String {
    let mut request = Request::builder().method(ask.method).uri(ask.uri);
    for (name, value) in ask.headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::empty()).unwrap();
    request.extensions_mut().insert(Deadline(Instant::now() + ask.patience));
    let answer = match face {
        Face::Client => world.ask(request).await,
        Face::Layer => world.ask_through_layer(request).await,
    };
    let mut text = match answer {
        Ok(answer) => {
            let headers = answer.headers.iter();
            let headers: String =
                headers.map(|(name, value)| format!("< {name}: {}\n", value.to_str().unwrap())).collect();
            format!("status: {}\n{headers}by: {}\n", answer.status, answer.body)
        }
        Err(error) => format!("error: {:?}\n", error.kind()),
    };
    text += &format!("tries: {}\nroute: {}\n", world.attempts(), world.route());
    text
}

#[tokio::test]
async fn every_enforced_field_of_a_virtual_service_makes_its_difference_to_a_request() {
    let services = services().await;
    let cases: Vec<Case> = conditions().into_iter().chain(effects()).collect();
    let fields = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/fields/VirtualService.txt");
    let fields = std::fs::read_to_string(fields).unwrap();
    let tested: BTreeSet<&str> = cases.iter().map(|case| case.field).collect();
    let kind = ObjectKind::VirtualService;
    let enforced = fields.lines().filter(|field| {
        let row = row(kind, field).filter(|row| is_own_row(row, field));
        row.is_some_and(|row| matches!(row.library, Support::Enforced))
    });
    // Of copies, the request that is copied knows nothing: what reaches whom is in `mirroring.rs`.
    let enforced = enforced.filter(|field| !field.starts_with("http.mirror"));
    // Of connections: `connections.rs`.
    let enforced = enforced.filter(|field| !field.starts_with("tcp.") && !field.starts_with("tls."));
    let untested: Vec<&str> = enforced.filter(|field| !tested.contains(field)).collect();
    assert!(untested.is_empty(), "enforced, and no request says so: {untested:#?}");
    let mut wrong = Vec::new();
    for Case { field, with, without, ask, expected } in cases {
        for (rules, is_expected) in [(&with, true), (&without, false)] {
            let start = || async { World::of("default", &[("app", "caller")], &format!("{services}{rules}")).await };
            let mut world = start().await;
            for face in [Face::Client, Face::Layer] {
                // Of what is kept for retries, a hundred requests leave little.
                if matches!(face, Face::Layer) && ask.uri.ends_with("/100") {
                    world = start().await;
                }
                let experienced = experience(&world, face, ask).await;
                if experienced.contains(expected) != is_expected {
                    let unexpected = if is_expected { "no" } else { "a" };
                    wrong.push(format!("{face:?} {field}: {unexpected} {expected:?} under\n{rules}\n{experienced}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
