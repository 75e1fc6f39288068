//! Rules that are easily read as wider, or as something else, than what is written.

use http::Request;
use mesh_core::error::ErrorKind;
use mesh_tower::body::Body;

use crate::support::{World, nobody, rules, server, service, virtual_service, web};

const TO_WEB: &str = "    route: [{destination: {host: web.example.com}}]\n";

#[tokio::test]
async fn a_header_that_comes_twice_matches_by_each_of_its_values() {
    let services = web(&[("v1", server("v1").await)]);
    let world = World::new(&format!(
        "{services}{}",
        rules(
            "  - match: [{uri: {prefix: /exact}, headers: {x-h: {exact: abc}}}]
    directResponse: {status: 201}
  - match: [{uri: {prefix: /regex}, headers: {x-h: {regex: 'z+'}}}]
    directResponse: {status: 202}
  - match: [{uri: {prefix: /without}, withoutHeaders: {x-h: {exact: abc}}}]
    directResponse: {status: 203}
  - directResponse: {status: 299}
"
        )
    ))
    .await;
    let twice = [("x-h", "abc"), ("x-h", "zzz")];
    for (path, headers, expected) in [
        ("/exact", &twice[..], 201),
        ("/exact", &twice[1..], 299),
        ("/regex", &twice[..], 202),
        ("/without", &twice[..], 299),
        ("/without", &twice[..1], 299),
        ("/without", &twice[1..], 203),
        ("/without", &[], 203),
    ] {
        let answer = world.with(&format!("http://web.example.com{path}"), headers).await.unwrap();
        assert_eq!(answer.status, expected, "{path} {headers:?}");
    }
}

#[tokio::test]
async fn names_of_headers_that_differ_only_in_case_are_conditions_that_all_hold() {
    let services = web(&[("v1", server("v1").await)]);
    let world = World::new(&format!(
        "{services}{}",
        rules(
            "  - match: [{uri: {prefix: /with}, headers: {X-A: {prefix: a}, x-a: {regex: '.*z'}}}]
    directResponse: {status: 201}
  - match: [{uri: {prefix: /out}, withoutHeaders: {X-A: {exact: a}, x-a: {exact: b}}}]
    directResponse: {status: 202}
  - directResponse: {status: 299}
"
        )
    ))
    .await;
    for (path, value, expected) in [
        ("/with", "az", 201),
        ("/with", "ab", 299),
        ("/with", "bz", 299),
        ("/out", "a", 299),
        ("/out", "b", 299),
        ("/out", "c", 202),
    ] {
        let answer = world.with(&format!("http://web.example.com{path}"), &[("x-a", value)]).await.unwrap();
        assert_eq!(answer.status, expected, "{path} {value}");
    }
}

/// A delegate must not lose what its root excludes.
#[tokio::test]
async fn a_delegate_keeps_what_its_root_excludes() {
    let services = web(&[("v1", server("v1").await)]);
    let root = rules(
        "  - match: [{withoutHeaders: {x-a: {prefix: a}}}]
    delegate: {name: child}
  - directResponse: {status: 299}
",
    );
    // The narrower, the wider, and one that has nothing to do with it; in the root's spelling and in another.
    for child in ["{exact: ab}", "{}", "{exact: z}"] {
        for name in ["x-a", "X-a"] {
            let condition = format!("{{withoutHeaders: {{{name}: {child}}}}}");
            let child = format!("  http:\n  - match: [{condition}]\n    directResponse: {{status: 201}}\n");
            let world = World::new(&format!("{services}{root}{}", virtual_service("child", &child))).await;
            for value in ["a", "ab", "ac"] {
                let answer = world.with("http://web.example.com/", &[("x-a", value)]).await.unwrap();
                assert_eq!(answer.status, 299, "{condition} {value}");
            }
        }
    }
}

#[tokio::test]
async fn a_delegate_for_other_gateways_than_its_root_has_no_effect() {
    let services = web(&[("v1", server("v1").await)]);
    let child = virtual_service(
        "child",
        "  http:
  - match: [{gateways: [mesh]}]
    directResponse: {status: 201}
",
    );
    for (root, expected) in [("[edge]", 299), ("[edge, mesh]", 201), ("[mesh]", 201)] {
        let root = virtual_service(
            "root",
            &format!(
                "  hosts: [web.example.com]
  gateways: [mesh, edge]
  http:
  - match: [{{gateways: {root}}}]
    delegate: {{name: child}}
  - directResponse: {{status: 299}}
"
            ),
        );
        let world = World::new(&format!("{services}{root}{child}")).await;
        assert_eq!(world.get("http://web.example.com/").await.unwrap().status, expected, "{root}");
    }
}

#[tokio::test]
async fn a_delegate_with_one_alternative_that_fits_no_rule_of_its_root_has_no_effect_at_all() {
    let services = web(&[("v1", server("v1").await)]);
    let root = rules(
        "  - match: [{uri: {prefix: /shop}}]
    delegate: {name: child}
  - directResponse: {status: 299}
",
    );
    let child = virtual_service(
        "child",
        "  http:
  - match: [{uri: {prefix: /shop/cart}}, {uri: {prefix: /elsewhere}}]
    directResponse: {status: 201}
  - match: [{uri: {prefix: /shop/list}}]
    directResponse: {status: 202}
",
    );
    let world = World::new(&format!("{services}{root}{child}")).await;
    for (path, expected) in [("/shop/cart", 299), ("/shop/list", 202)] {
        assert_eq!(world.get(&format!("http://web.example.com{path}")).await.unwrap().status, expected, "{path}");
    }
}

#[tokio::test]
async fn header_operations_of_the_only_destination_come_after_those_of_the_route() {
    let (one, two) = (server("v1").await, server("v2").await);
    let operations = "    headers:
      request: {set: {x-a: route, x-b: route}, add: {x-c: route}, remove: [x-d]}
      response: {set: {x-answer: route}}
";
    let destination =
        "headers: {request: {set: {x-a: destination}, remove: [x-b]}, response: {set: {x-answer: destination}}}";
    let single = rules(&format!(
        "  - route: [{{destination: {{host: web.example.com, subset: v1}}, {destination}}}]\n{operations}"
    ));
    let split = rules(&format!(
        "  - route:
    - {{destination: {{host: web.example.com, subset: v1}}, weight: 1, {destination}}}
    - {{destination: {{host: web.example.com, subset: v2}}, weight: 1, {destination}}}\n{operations}"
    ));
    for (rules, wins) in [(single, "destination"), (split, "route")] {
        let world = World::new(&format!("{}{rules}", web(&[("v1", one), ("v2", two)]))).await;
        let answer = world.with("http://web.example.com/", &[("x-d", "caller")]).await.unwrap();
        assert!(answer.body.contains(&format!("x-a: {wins}\n")), "{}", answer.body);
        assert!(answer.body.contains("x-b: route\nx-c: route\n"), "{}", answer.body);
        assert!(!answer.body.contains("x-d"), "{}", answer.body);
        assert_eq!(answer.header("x-answer"), Some(wins));
    }
}

#[tokio::test]
async fn the_authority_of_the_route_goes_before_that_of_its_only_destination() {
    let services = web(&[("v1", server("v1").await)]);
    let destination = "    route: [{destination: {host: web.example.com}, headers: {request: {set: {Host: destination.example.com}}}}]\n";
    let world = World::new(&format!(
        "{services}{}",
        rules(&format!(
            "  - match: [{{uri: {{prefix: /rewrite}}}}]
    rewrite: {{authority: route.example.com}}
{destination}  - match: [{{uri: {{prefix: /header}}}}]
    headers: {{request: {{set: {{Host: route.example.com}}}}}}
{destination}  - match: [{{uri: {{prefix: /}}}}]
{destination}"
        ))
    ))
    .await;
    for (path, expected) in [("/rewrite", "route"), ("/header", "route"), ("/", "destination")] {
        let answer = world.get(&format!("http://web.example.com{path}")).await.unwrap();
        assert!(answer.body.contains(&format!("host: {expected}.example.com\n")), "{path}: {}", answer.body);
    }
}

#[tokio::test]
async fn response_header_operations_are_for_answers_of_the_mesh_too() {
    let services = web(&[("v1", nobody().await)]);
    let world = World::new(&format!(
        "{services}{}",
        rules(&format!(
            "  - match: [{{uri: {{prefix: /abort}}}}]
    fault: {{abort: {{httpStatus: 555, percentage: {{value: 100}}}}}}
    headers: {{response: {{set: {{x-mesh: abort}}}}}}
{TO_WEB}  - match: [{{uri: {{prefix: /delay}}}}]
    fault: {{delay: {{fixedDelay: 1ms, percentage: {{value: 100}}}}, abort: {{httpStatus: 555, percentage: {{value: 100}}}}}}
    headers: {{response: {{set: {{x-mesh: abort}}}}}}
{TO_WEB}  - match: [{{uri: {{prefix: /direct}}}}]
    directResponse: {{status: 418}}
    headers: {{response: {{set: {{x-mesh: direct}}}}}}
  - match: [{{uri: {{prefix: /redirect}}}}]
    redirect: {{uri: /elsewhere}}
    headers: {{response: {{set: {{x-mesh: redirect}}}}}}
  - headers: {{response: {{set: {{x-mesh: failed}}, add: {{x-more: '1'}}}}}}
    retries: {{attempts: 0}}
{TO_WEB}"
        ))
    ))
    .await;
    for (path, expected, status) in
        [("/abort", "abort", 555), ("/delay", "abort", 555), ("/direct", "direct", 418), ("/redirect", "redirect", 301)]
    {
        let answer = world.get(&format!("http://web.example.com{path}")).await.unwrap();
        assert_eq!((answer.status, answer.header("x-mesh")), (status, Some(expected)), "{path}");
    }
    let error = world.get("http://web.example.com/").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectFailure);
    let answer = mesh_tower::reply::error(&error, false);
    assert_eq!(answer.status(), 503);
    let header = |name| answer.headers().get(name).map(|value| value.to_str().unwrap());
    assert_eq!((header("x-mesh"), header("x-more")), (Some("failed"), Some("1")));
}

#[tokio::test]
async fn expressions_are_those_of_re2() {
    let services = web(&[("v1", server("v1").await)]);
    for (regex, matched, other) in [
        ("(?i)/abc", "/aBc", "/abd"),
        ("/users/{id}", "/users/{id}", "/users/id"),
        (r"/\Qa.b\E", "/a.b", "/axb"),
        ("/[[a]+", "/[a", "/b"),
        ("/[a&&b]+", "/a&b", "/-"),
    ] {
        let world = World::new(&format!(
            "{services}{}",
            rules(&format!(
                "  - match: [{{headers: {{x-path: {{regex: '{regex}'}}}}}}]\n    directResponse: {{status: 201}}\n  - directResponse: {{status: 299}}\n"
            ))
        ))
        .await;
        let status = async |path| world.with("http://web.example.com/", &[("x-path", path)]).await.unwrap().status;
        assert_eq!((status(matched).await, status(other).await), (201, 299), "{regex}");
    }
}

#[tokio::test]
async fn a_rule_that_is_for_others_leaves_the_host_its_default_route() {
    let services = web(&[("v1", server("v1").await)]);
    for condition in ["sourceLabels: {tier: gold}", "sourceNamespace: other", "port: 81", "gateways: [edge]"] {
        let rules = rules(&format!("  - match: [{{{condition}}}]\n    directResponse: {{status: 418}}\n"));
        let world = World::new(&format!("{services}{rules}")).await;
        let answer = world.get("http://web.example.com/").await;
        assert_eq!(answer.map(|answer| answer.status).map_err(|error| error.kind()), Ok(200), "{condition}");
    }
}

/// A host that only a rule names has nothing else for those whom no route of it is for.
#[tokio::test]
async fn a_host_without_a_service_has_no_route_where_its_rules_are_for_others() {
    let rules = virtual_service(
        "a",
        "  hosts: [api.example.com]\n  http: [{match: [{sourceLabels: {tier: gold}}], directResponse: {status: 418}}]\n",
    );
    let world = World::new(&rules).await;
    let error = world.get("http://api.example.com/").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoute);
    let gold = World::of("default", &[("tier", "gold")], &rules).await;
    assert_eq!(gold.get("http://api.example.com/").await.unwrap().status, 418);
}

fn kubernetes_service(name: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

/// An endpoint of the services that select `app: <app>`.
fn workload(app: &str, at: std::net::SocketAddr) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {app}}}\nspec: {{address: {}, labels: {{app: {app}}}, ports: {{http: {}}}}}\n",
        at.ip(),
        at.port()
    )
}

#[tokio::test]
async fn a_dotted_host_of_a_rule_stands_for_itself() {
    let shop = kubernetes_service("shop", "{selector: {app: shop}, ports: [{port: 80, name: http}]}");
    let endpoint = workload("shop", server("shop").await);
    let rules = virtual_service("shop", "  hosts: [shop.default]\n  http: [{directResponse: {status: 418}}]\n");
    let world = World::new(&format!("{shop}{endpoint}{rules}")).await;
    for (host, expected) in [("shop.default", 418), ("shop", 200), ("shop.default.svc", 200)] {
        assert_eq!(world.get(&format!("http://{host}/")).await.unwrap().status, expected, "{host}");
    }
}

#[tokio::test]
async fn an_external_name_is_an_alias_for_the_rules_and_the_endpoints_of_the_real_host() {
    let real = service("real", &[("v1", server("real").await)]);
    let shop = kubernetes_service("shop", "{selector: {app: shop}, ports: [{port: 80, name: http}]}");
    let endpoint = workload("shop", server("shop").await);
    let aliases = [
        kubernetes_service("alias", "{type: ExternalName, externalName: real.example.com}"),
        kubernetes_service(
            "ported",
            "{type: ExternalName, externalName: real.example.com, ports: [{port: 81, name: grpc}]}",
        ),
        kubernetes_service("inside", "{type: ExternalName, externalName: shop.default.svc.cluster.local}"),
        kubernetes_service("twice", "{type: ExternalName, externalName: alias.default.svc.cluster.local}"),
        kubernetes_service("circle", "{type: ExternalName, externalName: circle.default.svc.cluster.local}"),
    ]
    .concat();
    let rules = [
        virtual_service(
            "real",
            "  hosts: [real.example.com]\n  http:\n  - match: [{uri: {prefix: /ruled}}]\n    directResponse: {status: 418}\n  - route: [{destination: {host: real.example.com}}]\n",
        ),
        virtual_service("alias", "  hosts: [alias]\n  http: [{directResponse: {status: 500}}]\n"),
        virtual_service(
            "front",
            "  hosts: [front.example.com]\n  http: [{route: [{destination: {host: alias}}]}]\n",
        ),
    ]
    .concat();
    let world = World::new(&format!("{real}{shop}{endpoint}{aliases}{rules}")).await;
    for (uri, expected) in [("http://alias/ruled", 418), ("http://ported/ruled", 418), ("http://twice/ruled", 418)] {
        assert_eq!(world.get(uri).await.unwrap().status, expected, "{uri}");
    }
    for (uri, expected) in [
        ("http://alias/", "real"),
        ("http://alias.default/", "real"),
        ("http://ported/", "real"),
        ("http://inside/", "shop"),
        ("http://twice/", "real"),
        ("http://front.example.com/", "real"),
    ] {
        let answer = world.get(uri).await.unwrap();
        assert!(answer.status == 200 && answer.body.starts_with(expected), "{uri}: {answer:?}");
    }
    // The ports of the alias are not those of the host.
    assert_eq!(world.get("http://ported:81/").await.unwrap_err().kind(), ErrorKind::UnknownTarget);
    assert_eq!(world.get("http://circle/").await.unwrap_err().kind(), ErrorKind::UnknownTarget);
}

/// Of a host that nobody describes, DNS knows; its port is the one that is asked for.
#[tokio::test]
async fn an_alias_of_a_host_outside_is_looked_up() {
    let at = server("outside").await;
    let alias = kubernetes_service("alias", "{type: ExternalName, externalName: localhost}");
    let world = World::new(&alias).await;
    let answer = world.get(&format!("http://alias:{}/", at.port())).await.unwrap();
    assert!(answer.body.starts_with("outside"), "{answer:?}");
}

#[tokio::test]
async fn a_client_without_an_original_destination_takes_turns_instead_of_passing_through() {
    let shop = kubernetes_service("shop", "{selector: {app: shop}, ports: [{port: 80, name: http}]}");
    let endpoint = workload("shop", server("shop").await);
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: shop}\nspec: {host: shop, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}\n";
    let world = World::new(&format!("{shop}{endpoint}{rule}")).await;
    assert_eq!(world.get("http://shop/").await.unwrap().status, 200);
}

#[tokio::test]
async fn no_attempts_are_no_retries() {
    let nobodies = [("a", nobody().await), ("b", nobody().await), ("c", nobody().await), ("d", nobody().await)];
    let services = web(&nobodies);
    for (retries, tries) in [
        ("    retries: {attempts: 0}\n", 1),
        ("    retries: {attempts: 1}\n", 2),
        ("    retries: {attempts: 3, retryOn: connect-failure}\n", 4),
        ("    retries: {attempts: 3, retryOn: refused-stream}\n", 1),
        // Istio's default.
        ("", 3),
    ] {
        let world = World::new(&format!("{services}{}", rules(&format!("  - {}{retries}", TO_WEB.trim_start())))).await;
        let error = world.get("http://web.example.com/").await.unwrap_err();
        assert_eq!((error.kind(), world.attempts()), (ErrorKind::ConnectFailure, tries), "{retries}");
    }
    let without_rules = World::new(&services).await;
    without_rules.get("http://web.example.com/").await.unwrap_err();
    assert_eq!(without_rules.attempts(), 3);
}

#[tokio::test]
async fn a_route_to_an_unknown_host_or_subset_fails_alone_and_at_once() {
    let services = web(&[("v1", server("v1").await)]);
    let rules = rules(&format!(
        "  - match: [{{uri: {{prefix: /host}}}}]
    route: [{{destination: {{host: nobody.example.com}}}}]
  - match: [{{uri: {{prefix: /subset}}}}]
    route: [{{destination: {{host: web.example.com, subset: v9}}}}]
  - match: [{{uri: {{prefix: /port}}}}]
    route: [{{destination: {{host: web.example.com, port: {{number: 81}}}}}}]
  - {}",
        TO_WEB.trim_start()
    ));
    let world = World::new(&format!("{services}{rules}")).await;
    assert_eq!(world.get("http://web.example.com/").await.unwrap().status, 200);
    for path in ["/host", "/subset", "/port"] {
        let error = world.get(&format!("http://web.example.com{path}")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoCluster, "{path}: {error}");
    }
}

#[tokio::test]
async fn a_rewrite_that_is_written_takes_place() {
    let services = web(&[("v1", server("v1").await)]);
    let rewritten =
        |rewrite: &str| rules(&format!("  - match: [{{uri: {{prefix: /api}}}}]\n    rewrite: {rewrite}\n{TO_WEB}"));
    for (rewrite, expected) in [
        ("{uri: /}", "GET //x"),
        ("{uri: /v2}", "GET /v2/x"),
        ("{uri: '/v2?a=b'}", "GET /v2?a=b/x"),
        ("{authority: other.example.com}", "GET /api/x"),
    ] {
        let world = World::new(&format!("{services}{}", rewritten(rewrite))).await;
        let request = Request::get("http://web.example.com/api/x").body(Body::empty()).unwrap();
        let answer = world.ask(request).await.unwrap();
        assert!(answer.body.contains(expected), "{rewrite}: {}", answer.body);
    }
}

/// What frames a message, or is for one connection, is the data plane's: two peers would disagree where a message ends.
#[tokio::test]
async fn a_route_that_changes_how_messages_are_framed_answers_with_the_reason() {
    let services = web(&[("v1", server("v1").await)]);
    for name in [
        "Connection",
        "content-length",
        "Keep-Alive",
        "proxy-connection",
        "TE",
        "trailer",
        "Transfer-Encoding",
        "upgrade",
    ] {
        let mut routes = String::new();
        for (path, change) in [
            ("/a", format!("request: {{set: {{{name}: '5'}}}}")),
            ("/b", format!("request: {{add: {{{name}: chunked}}}}")),
            ("/c", format!("request: {{remove: [{name}]}}")),
            ("/d", format!("response: {{set: {{{name}: close}}}}")),
            ("/e", format!("response: {{add: {{{name}: '5'}}}}")),
            ("/f", format!("response: {{remove: [{name}]}}")),
        ] {
            routes += &format!("  - match: [{{uri: {{prefix: {path}}}}}]\n    headers: {{{change}}}\n{TO_WEB}");
        }
        let destination = format!("{{host: web.example.com}}, headers: {{request: {{set: {{{name}: a}}}}}}");
        routes +=
            &format!("  - match: [{{uri: {{prefix: /g}}}}]\n    route: [{{destination: {destination}}}]\n{}", "  -");
        routes += &TO_WEB["   ".len()..];
        let world = World::new(&format!("{services}{}", rules(&routes))).await;
        for path in ["/a", "/b", "/c", "/d", "/e", "/f", "/g"] {
            let answer = world.get(&format!("http://web.example.com{path}")).await.unwrap();
            let reason = format!("\"{}\" cannot be changed", name.to_ascii_lowercase());
            assert_eq!(answer.status, 503, "{name} {path}: {answer:?}");
            assert!(answer.body.to_ascii_lowercase().contains(&reason), "{name} {path}: {answer:?}");
        }
        assert_eq!(world.get("http://web.example.com/").await.unwrap().status, 200, "{name}");
    }
}

#[tokio::test]
async fn a_subset_that_nothing_defines_is_no_cluster_in_envoys_words() {
    let web = web(&[("v1", server("v1").await)]);
    let rule = "  - match: [{uri: {prefix: /lost}}]\n    route: [{destination: {host: web.example.com, subset: v9}}]\n  - route: [{destination: {host: web.example.com}}]\n";
    let world = World::new(&format!("{web}{}", rules(rule))).await;
    let error = world.get("http://web.example.com/lost").await.unwrap_err();
    assert_eq!(error.kind().http_status(), 503, "{error}");
    assert_eq!((world.flag().as_str(), world.details().as_str()), ("NC", "cluster_not_found"), "{error}");
    assert_eq!(world.get("http://web.example.com/").await.unwrap().status, 200);
}
