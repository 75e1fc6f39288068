//! Lines in, lines out.

use serde_json::{Value, json};

use crate::support::{EDGE, SHOP, answers, dir_of, explained, has, rules, run};

fn check(yaml: &str, cases: &[(&str, Value)]) {
    let dir = dir_of(yaml);
    let requests: Vec<&str> = cases.iter().map(|(request, _)| *request).collect();
    let (answers, code) = answers(dir.path(), &requests, &[]);
    assert_eq!(answers.len(), cases.len(), "{answers:?}");
    for (answer, (request, expected)) in answers.iter().zip(cases) {
        assert!(has(answer, expected), "{request}\n{answer:#}\nwhere this was expected: {expected:#}");
    }
    assert_eq!(code, Some(0));
}

#[test]
fn a_request_goes_where_the_rules_of_its_caller_send_it() {
    let http = "  - match: [{sourceLabels: {tier: batch}}]
    directResponse: {status: 429}
  - match: [{sourceNamespace: far}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: reviews}}]
  - name: split
    match: [{uri: {prefix: /split/}}]
    timeout: 2s
    rewrite: {uri: /new/, authority: inside}
    headers: {request: {set: {x-a: b}, remove: [x-gone]}, response: {set: {x-by: mesh}, remove: [server]}}
    mirrors: [{destination: {host: ratings}, percentage: {value: 12.5}}]
    route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v2}, weight: 10, headers: {request: {set: {x-v: '2'}}}}
  - match: [{uri: {prefix: /moved}}]
    redirect: {authority: other.example.com, redirectCode: 302, scheme: https}
  - match: [{uri: {exact: /lost}}]
    route: [{destination: {host: reviews, subset: v9}}]
  - route: [{destination: {host: reviews}}]
";
    let v = |version: &str, weight: u32| {
        json!({"service": "reviews", "namespace": "shop", "port": 80, "subset": version, "weight": weight,
               "name": format!("outbound|80|{version}|reviews.shop.svc.cluster.local")})
    };
    let cases = [
        (
            r#"{"id": 1, "kind": "mesh", "source": {"namespace": "shop"}, "host": "reviews", "path": "/x?q=1"}"#,
            json!({"id": 1, "outcome": "forward", "clusters": [{"service": "reviews", "namespace": "shop", "port": 80, "weight": 1,
                   "subset": null}], "request": {"path": "/x?q=1", "host": "reviews"}, "reason": null}),
        ),
        (
            r#"{"id": 2, "source": {"namespace": "shop"}, "host": "reviews:80", "path": "/split/1?q", "headers": {"x-gone": "1", "X-B": ["1", "2"]}}"#,
            json!({"outcome": "forward", "route": "split", "clusters": [v("v1", 90), v("v2", 10)],
                   "virtual_host": "outbound|80||reviews.shop.svc.cluster.local",
                   "request": {"path": "/new/1?q", "host": "inside", "headers": {"x-a": "b", "x-b": ["1", "2"], "x-gone": null, "x-v": null}},
                   "response_headers": {"x-by": "mesh"}, "response_headers_removed": ["server"],
                   "mirrors": [{"service": "ratings", "namespace": "shop", "port": 9080, "percent": 12.5}]}),
        ),
        (
            r#"{"id": 3, "source": {"namespace": "shop"}, "host": "reviews.shop", "path": "/moved/1"}"#,
            json!({"outcome": "redirect", "status": 302, "location": "https://other.example.com/moved/1", "clusters": null}),
        ),
        (
            r#"{"id": 4, "source": {"namespace": "shop", "labels": {"tier": "batch"}}, "host": "reviews"}"#,
            json!({"outcome": "direct", "status": 429}),
        ),
        (
            r#"{"id": 5, "source": {"namespace": "far"}, "host": "reviews.shop", "protocol": "grpc", "path": "/a.B/C"}"#,
            json!({"outcome": "direct", "status": 418, "reason": "a fault answers every such request with status 418"}),
        ),
        (
            r#"{"id": 6, "source": {"namespace": "shop"}, "host": "reviews", "path": "/lost"}"#,
            json!({"outcome": "error", "status": 503, "clusters": [{"subset": "v9"}],
                   "reason": "cluster outbound|80|v9|reviews.shop.svc.cluster.local leads nowhere: nothing describes what it would be made of"}),
        ),
        (
            r#"{"id": 7, "source": {"namespace": "shop"}, "host": "api.example.com"}"#,
            json!({"outcome": "forward", "clusters": [{"host": "api.example.com", "service": null, "port": 80}]}),
        ),
        (
            r#"{"id": 8, "source": {"namespace": "shop"}, "host": "nobody.example.com", "port": 8080}"#,
            json!({"outcome": "forward", "clusters": [{"host": "nobody.example.com", "port": 8080, "name": "PassthroughCluster"}]}),
        ),
        (
            r#"{"id": 9, "source": {"namespace": "shop"}, "host": "reviews:81"}"#,
            json!({"outcome": "error", "status": 502, "clusters": null}),
        ),
        (
            r#"{"id": 10, "source": {"namespace": "shop"}, "host": "reviews", "tls": true, "sni": "reviews", "alpn": ["h2"]}"#,
            json!({"outcome": "error", "status": 503, "notes": ["alpn has no effect: no rule goes by it"]}),
        ),
        (
            r#"{"id": 11, "source": {"namespace": "shop"}, "host": "reviews", "protocol": "tcp", "address": "10.0.0.1"}"#,
            json!({"outcome": "forward", "clusters": [{"service": "reviews"}], "request": null,
                   "notes": ["no rule is on its connections: they follow the route of GET /", "address has no effect: the library goes by the host"]}),
        ),
    ];
    check(&format!("{SHOP}{}", rules(http)), &cases);
}

#[test]
fn bytes_go_by_the_rules_on_connections() {
    let db = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: shop}
spec: {hosts: [db.example.com], resolution: DNS, ports: [{name: tcp, number: 5432, protocol: TCP}, {name: tls, number: 5433, protocol: TLS}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db, namespace: shop}
spec:
  hosts: [db.example.com, '*.db.example.com']
  tcp: [{route: [{destination: {host: ratings}, weight: 75}, {destination: {host: db.example.com}, weight: 25}]}]
  tls: [{match: [{sniHosts: ['*.db.example.com']}], route: [{destination: {host: reviews}}]}]
";
    let source = r#""source": {"namespace": "shop"}, "host": "db.example.com""#;
    let at = |more: &str| format!("{{{source}, {more}}}");
    let requests = [
        at(r#""port": 5432, "protocol": "tcp""#),
        at(r#""port": 5433, "protocol": "tcp", "tls": true, "sni": "Replica.db.example.com""#),
        at(r#""port": 5433, "protocol": "tcp", "tls": true, "sni": "other.example.com""#),
        at(r#""port": 5433, "protocol": "tcp""#),
        at(r#""port": 5433, "scheme": "https", "sni": "replica.db.example.com""#),
        at(r#""port": 5433, "scheme": "https""#),
    ];
    let to_reviews = || json!({"outcome": "forward", "route": "tls[0].match[0]", "clusters": [{"service": "reviews"}], "request": null});
    let refused = |reason: &str| json!({"outcome": "error", "status": 404, "reason": reason});
    let expected = [
        json!({"outcome": "forward", "route": "tcp[0]", "request": null,
               "clusters": [{"service": "ratings", "weight": 75}, {"host": "db.example.com", "weight": 25}]}),
        to_reviews(),
        refused(r#"no rule on TLS connections is for the server name "other.example.com""#),
        refused("its rules are for TLS connections by the name of their server, and none is said"),
        to_reviews(),
        refused(r#"no rule on TLS connections is for the server name "db.example.com""#),
    ];
    let cases: Vec<(&str, Value)> = requests.iter().map(String::as_str).zip(expected).collect();
    check(&format!("{SHOP}{db}"), &cases);
    let dir = dir_of(&format!("{SHOP}{db}"));
    let said = explained(dir.path(), &["GET", "https://replica.db.example.com:5433/"]);
    assert_eq!(said["route"]["origin"], "config.yaml:33, VirtualService shop/db tls[0].match[0]", "{said:#}");
}

#[test]
fn preflights_are_answered_and_faults_for_some_are_noted() {
    let http = "  - corsPolicy: {allowOrigins: [{exact: 'https://a.example'}], allowMethods: [GET]}
    fault: {abort: {httpStatus: 503, percentage: {value: 50}}}
    headers: {response: {set: {x-by: mesh}}}
    route: [{destination: {host: reviews}}]
";
    let origin = r#""source": {"namespace": "shop"}, "host": "reviews", "headers": {"origin": "https://a.example""#;
    let preflight = format!(r#"{{"method": "OPTIONS", {origin}, "access-control-request-method": "GET"}}}}"#);
    let request = format!("{{{origin}}}}}");
    let half = "a fault answers 50 % of such requests with status 503";
    let cases = [
        (
            preflight.as_str(),
            json!({"outcome": "direct", "status": 200, "notes": [half], "clusters": null, "response_headers":
                {"access-control-allow-origin": "https://a.example", "access-control-allow-methods": "GET", "x-by": "mesh"}}),
        ),
        (
            request.as_str(),
            json!({"outcome": "forward", "notes": [half], "response_headers":
                {"access-control-allow-origin": "https://a.example", "x-by": "mesh"}}),
        ),
    ];
    check(&format!("{SHOP}{}", rules(http)), &cases);
}

#[test]
fn a_host_that_nothing_describes_follows_the_settings_of_the_mesh() {
    let settings = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n";
    let request = r#"{"source": {"namespace": "shop"}, "host": "nobody.example.com"}"#;
    check(SHOP, &[(request, json!({"outcome": "forward"}))]);
    let refused = json!({"outcome": "error", "status": 502,
        "reason": "listener nobody.example.com:80: no object describes it, and such hosts are not called (REGISTRY_ONLY)"});
    check(&format!("{SHOP}{settings}"), &[(request, refused)]);
}

/// A rule that a client does not see takes no host of the world away from it.
#[test]
fn a_host_is_described_to_those_who_see_an_object_that_does() {
    let rule = |kind: &str, spec: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: own, namespace: own}}\nspec: {{{spec}}}\n"
        )
    };
    let destination = |host: &str, more: &str| rule("DestinationRule", &format!("host: '{host}'{more}"));
    let (private, tls) = (", exportTo: [.]", ", trafficPolicy: {tls: {mode: SIMPLE}}");
    let mutual = ", trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}";
    let tunnel = ", trafficPolicy: {tunnel: {targetHost: db.example.org, targetPort: 1}}";
    let routes = "http: [{route: [{destination: {host: other.example.org}}]}]";
    let entry = "resolution: DNS, location: MESH_EXTERNAL, ports: [{number: 443, name: tls, protocol: TLS}]";
    // An object of the namespace `own`, and whether others, and it, are refused at port 80.
    for (object, others, own) in [
        (destination("*", private), false, false),
        (destination("*", ""), false, false),
        (destination("*.example.org", ""), false, false),
        (destination("*.example.org", tls), true, true),
        (destination("*.example.org", mutual), true, true),
        (destination("*.example.org", tunnel), true, true),
        (destination("*", mutual), false, false),
        (destination("*.example.org", &format!("{tls}{private}")), false, true),
        (destination("pay.example.org", private), false, true),
        (destination("pay.example.org", ""), true, true),
        (rule("VirtualService", &format!("hosts: [pay.example.org], {routes}{private}")), false, true),
        (rule("VirtualService", &format!("hosts: ['*.example.org'], {routes}{private}")), false, true),
        (rule("ServiceEntry", &format!("hosts: [pay.example.org], {entry}{private}")), false, true),
        (rule("ServiceEntry", &format!("hosts: [pay.example.org], {entry}")), true, true),
    ] {
        for (namespace, is_refused) in [("shop", others), ("own", own)] {
            let request = format!(r#"{{"source": {{"namespace": "{namespace}"}}, "host": "pay.example.org"}}"#);
            let outcome = if is_refused { "error" } else { "forward" };
            let is_routed = namespace == "own" && object.contains("VirtualService");
            let expected = if is_routed { json!({}) } else { json!({"outcome": outcome}) };
            check(&format!("{SHOP}{object}"), &[(&request, expected)]);
        }
    }
    // A service of the cluster is none of the world's, whoever sees it.
    let hidden = "---\napiVersion: v1\nkind: Service\nmetadata: {name: hidden, namespace: own, annotations: {networking.istio.io/exportTo: .}}\n\
                  spec: {selector: {app: hidden}, ports: [{name: http, port: 80}]}\n";
    let request = r#"{"source": {"namespace": "shop"}, "host": "hidden.own.svc.cluster.local"}"#;
    check(&format!("{SHOP}{hidden}"), &[(request, json!({"outcome": "error"}))]);
    // Nor is one by a name without dots that another namespace keeps to itself.
    let short = rule("ServiceEntry", &format!("hosts: [short], {entry}{private}"));
    let request = r#"{"source": {"namespace": "shop"}, "host": "short"}"#;
    check(&format!("{SHOP}{short}"), &[(request, json!({"outcome": "forward"}))]);
}

#[test]
fn what_reaches_a_server_goes_to_its_application_with_the_path_that_this_sees() {
    let guarded = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec: {action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}\n";
    let cases = [
        (
            r#"{"kind": "inbound", "source": {"namespace": "shop", "labels": {"app": "reviews"}}, "host": "reviews", "port": 9080, "path": "/a/../b//c?d"}"#,
            json!({"outcome": "forward", "clusters": [{"name": "inbound|9080||", "port": 9080}],
                   "request": {"path": "/b/c?d", "host": "reviews"},
                   "notes": ["who may do what is not looked at here, but by `authz test`"]}),
        ),
        (
            r#"{"kind": "inbound", "source": {"namespace": "shop"}, "host": "reviews", "address": "10.1.2.3:81", "path": "/%2Fadmin"}"#,
            json!({"outcome": "error", "status": 400}),
        ),
    ];
    check(&format!("{SHOP}{guarded}"), &cases);
}

#[test]
fn what_comes_to_a_gateway_goes_where_its_listeners_and_its_routes_send_it() {
    let policies = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: partners, namespace: edges}
spec: {selector: {matchLabels: {istio: edge}}, rules: [{from: [{source: {remoteIpBlocks: [198.51.100.0/24]}}]}]}
---
apiVersion: policy.mesh-control/v1alpha1
kind: RateLimit
metadata: {name: few, namespace: edges}
spec: {selector: {matchLabels: {istio: edge}}, rules: [{name: all, limit: {requests: 1, per: 1h}}]}
";
    let of = |line: &str| format!(r#"{{"kind": "gateway", "gateway": "shop/public", {line}}}"#);
    let (reviews, ratings) =
        ("outbound|80||reviews.shop.svc.cluster.local", "outbound|9080||ratings.shop.svc.cluster.local");
    let unlooked = "policies, limits and other filters of the gateway are not looked at here";
    let opaque = "nobody looks into what comes in here: it goes on as it is";
    let refused = |why: &str| json!({"outcome": "error", "status": null, "reason": why});
    let cases = [
        (
            r#""host": "shop.example", "path": "/a/../1", "headers": {"x-tier": "gold"}"#,
            json!({"outcome": "forward", "clusters": [{"name": ratings, "service": "ratings", "weight": 1}], "route": "gold",
                   "virtual_host": "shop.example:80", "notes": [unlooked],
                   "request": {"path": "/gold/1", "host": "shop.example", "headers": {"x-tier": "gold"}}}),
        ),
        // The limit is one, and nobody may come in: that is not asked here.
        (r#""host": "shop.example""#, json!({"outcome": "forward", "clusters": [{"name": reviews}], "route": "all"})),
        (
            r#""host": "secure.example", "path": "/1?a""#,
            json!({"outcome": "redirect", "status": 301, "location": "https://secure.example/1?a"}),
        ),
        (
            r#""host": "shop.example", "scheme": "https""#,
            json!({"outcome": "forward", "clusters": [{"name": reviews}]}),
        ),
        (r#""host": "shop.example:443""#, json!({"outcome": "forward", "request": {"host": "shop.example:443"}})),
        (r#""host": "shop.example", "tls": true"#, json!({"outcome": "forward"})),
        (
            r#""host": "own.example", "sni": "shop.example""#,
            json!({"outcome": "error", "status": 421,
                   "reason": "own.example has TLS of its own, and the connection is for another name"}),
        ),
        (r#""host": "nobody.example", "sni": "shop.example""#, json!({"outcome": "error", "status": 404})),
        (r#""host": "nobody.example""#, json!({"outcome": "error", "status": 404})),
        (
            r#""host": "raw.example", "protocol": "tcp", "port": 443, "sni": "raw.example""#,
            json!({"outcome": "forward", "clusters": [{"name": ratings}], "request": null, "virtual_host": null,
                   "notes": [opaque, unlooked]}),
        ),
        (r#""host": "raw.example", "scheme": "https""#, json!({"outcome": "forward", "clusters": [{"name": ratings}]})),
        (
            r#""host": "db.example", "protocol": "tcp", "port": 5432"#,
            json!({"outcome": "forward", "clusters": [{"name": ratings}], "notes": [opaque, unlooked]}),
        ),
        (
            r#""host": "other.example", "scheme": "https""#,
            refused(r#"listener 0.0.0.0_443: TLS is refused for the name "other.example""#),
        ),
        (
            r#""host": "shop.example:443", "tls": false"#,
            refused("listener 0.0.0.0_443: connections in plaintext are closed"),
        ),
        (
            r#""host": "shop.example", "protocol": "tcp""#,
            refused("the gateway takes requests here, and no other bytes"),
        ),
        (r#""host": "shop.example:81""#, refused("the gateway does not listen for port 81")),
    ];
    let cases: Vec<(String, Value)> = cases.into_iter().map(|(line, expected)| (of(line), expected)).collect();
    let cases: Vec<(&str, Value)> = cases.iter().map(|(line, expected)| (line.as_str(), expected.clone())).collect();
    check(&[SHOP, EDGE, policies].concat(), &cases);
    // By other names, and of Gateway API.
    let unknown = "gateway shop/reviews: no Gateway is called so, and none selects a workload of this name";
    let cases = [
        (
            r#"{"kind": "gateway", "gateway": "edges/edge", "host": "shop.example"}"#,
            json!({"outcome": "forward", "clusters": [{"name": reviews}], "notes": null}),
        ),
        (
            r#"{"kind": "gateway", "gateway": "shop/front", "host": "any.example"}"#,
            json!({"outcome": "forward", "clusters": [{"name": reviews}]}),
        ),
        (r#"{"kind": "gateway", "gateway": "shop/reviews", "host": "shop.example"}"#, refused(unknown)),
        (
            r#"{"kind": "gateway", "gateway": "public", "host": "shop.example"}"#,
            refused("gateway public: NAMESPACE/NAME is needed"),
        ),
        (
            r#"{"id": "g", "kind": "gateway", "host": "shop.example"}"#,
            json!({"id": "g", "outcome": "error", "reason": "gateway: missing; it is the NAMESPACE/NAME of one"}),
        ),
    ];
    check(&[SHOP, EDGE].concat(), &cases);
}

#[test]
fn a_line_that_is_no_request_is_an_answer_with_its_error_and_the_others_have_theirs() {
    let dir = dir_of(SHOP);
    let good = r#"{"id": "good", "source": {"namespace": "shop"}, "host": "reviews"}"#;
    let cases = [
        (r#"{"id": 1, "host": "reviews", "hots": "x"}"#, "unknown field `hots`"),
        (r#"{"id": 1, "host": "reviews", "source": {"namespace": "shop", "label": {}}}"#, "unknown field `label`"),
        (r#"{"id": 1, "host": "reviews", "source": ["shop", {}]}"#, "expected a map"),
        ("nonsense", "no JSON object"),
        (r#"[1, "mesh", null, null, "http", "http", "reviews"]"#, "no JSON object"),
        ("{nonsense", "key must be a string"),
        (r#"{"id": 1}"#, "host: missing"),
        (r#"{"id": 1, "host": "a b"}"#, "is no host"),
        (r#"{"id": 1, "host": "reviews:80", "port": 81}"#, "port: 81, and the host says 80"),
        (r#"{"id": 1, "host": "reviews", "port": 65536}"#, "65536"),
        (r#"{"id": 1, "host": "reviews", "port": 0}"#, "port: 0"),
        (r#"{"id": 1, "host": "reviews", "path": "x"}"#, "does not begin with /"),
        (r#"{"id": 1, "host": "reviews", "method": "A B"}"#, "method"),
        (r#"{"id": 1, "host": "reviews", "kind": "ingress"}"#, "unknown variant `ingress`"),
        (r#"{"id": 1, "host": "reviews", "protocol": "quic"}"#, "unknown variant `quic`"),
        (r#"{"id": 1, "host": "reviews", "scheme": "ftp"}"#, "scheme"),
        (r#"{"id": 1, "host": "reviews", "headers": {"host": "x"}}"#, "the authority is `host`"),
        (r#"{"id": 1, "host": "reviews", "headers": {"a b": "x"}}"#, "headers"),
        (r#"{"id": 1, "host": "reviews", "headers": {"a": "x\ny"}}"#, "headers: a"),
        (r#"{"id": 1, "host": "reviews", "headers": {"X-A": "1", "x-a": "2"}}"#, "headers: x-a is there twice"),
        (r#"{"id": 1, "host": "reviews", "gateway": "a/b"}"#, "only a request of kind gateway has one"),
        (r#"{"id": 1, "host": "reviews", "protocol": "tcp", "path": "/x"}"#, "tcp has no method, path or headers"),
    ];
    let mut requests: Vec<&str> = cases.iter().map(|(line, _)| *line).collect();
    requests.push(good);
    let (answers, code) = answers(dir.path(), &requests, &[]);
    assert_eq!((answers.len(), code), (requests.len(), Some(1)));
    for (answer, (number, (line, expected))) in answers.iter().zip((1..).zip(&cases)) {
        let reason = answer["reason"].as_str().unwrap_or_default();
        assert_eq!(answer["outcome"], "error", "{line}: {answer}");
        assert!(reason.starts_with(&format!("stdin:{number}: ")) && reason.contains(expected), "{line}: {reason}");
        // The line's own number is the only one.
        assert!(!reason.contains(" line 1"), "{line}: {reason}");
        assert_eq!(answer["id"].is_null(), !line.contains(r#""id""#), "{line}: {answer}");
    }
    assert_eq!(answers.last().map(|answer| &answer["outcome"]), Some(&json!("forward")));
}

#[test]
fn a_file_that_is_not_there_is_no_request_file() {
    let dir = dir_of(SHOP);
    let arguments = ["route", "test", "--config", ".", "--requests", "none.jsonl"];
    let output = run(&arguments, dir.path(), "");
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(1), true));
    assert!(String::from_utf8_lossy(&output.stderr).contains("none.jsonl"));
}

#[test]
fn a_line_that_is_too_long_is_no_request_and_those_behind_it_are() {
    let dir = dir_of(SHOP);
    let good = r#"{"id": "good", "source": {"namespace": "shop"}, "host": "reviews"}"#;
    let long = "x".repeat(5 << 19);
    for (lines, expected) in [(&[good, &long, good][..], 3), (&[&long], 1)] {
        let (answers, code) = answers(dir.path(), lines, &[]);
        assert_eq!((answers.len(), code), (expected, Some(1)));
        for (answer, (number, line)) in answers.iter().zip((1..).zip(lines)) {
            match *line == good {
                true => assert_eq!(answer["outcome"], "forward"),
                false => assert_eq!(answer["reason"], format!("stdin:{number}: a line of more than 1 MiB")),
            }
        }
    }
}

#[test]
fn a_namespace_that_nothing_is_in_and_a_host_that_a_sidecar_hides_are_noted() {
    let sidecar = "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: few, namespace: shop}\nspec: {egress: [{hosts: [./ratings.shop.svc.cluster.local]}]}\n";
    let cases = [
        (
            r#"{"source": {"namespace": "shpo"}, "host": "reviews.shop"}"#,
            json!({"outcome": "forward",
                "notes": ["no object of the configuration is in the namespace \"shpo\"; did you mean \"shop\"?"]}),
        ),
        (r#"{"host": "reviews.shop"}"#, json!({"outcome": "forward", "notes": null})),
        (
            r#"{"source": {"namespace": "shop"}, "host": "reviews"}"#,
            json!({"clusters": [{"name": "PassthroughCluster"}], "notes":
                ["Sidecar shop/few does not have reviews.shop.svc.cluster.local among the hosts of its egress"]}),
        ),
    ];
    check(&format!("{SHOP}{sidecar}"), &cases);
    let dir = dir_of(&format!("{SHOP}{sidecar}"));
    let arguments = ["explain", "--config", ".", "--from", "shop/reviews", "GET", "http://reviews/"];
    let output = run(&arguments, dir.path(), "");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("note: Sidecar shop/few does not have reviews.shop"), "{said}");
}

#[test]
fn a_destination_that_is_whatever_is_called_is_the_host_that_is_called() {
    for resolution in ["NONE", "DYNAMIC_DNS"] {
        let entry = |name: &str, host: &str| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
                 hosts: ['{host}']\n  ports: [{{number: 443, name: tls, protocol: TLS}}, {{number: 80, name: http, protocol: HTTP}}]\n  \
                 resolution: {resolution}\n"
            )
        };
        let rules = |name: &str, host: &str| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
                 hosts: ['{host}']\n  http:\n  - mirrors: [{{destination: {{host: '*.apis.example'}}}}]\n    \
                 route: [{{destination: {{host: '*.apis.example'}}}}]\n  tls:\n  - match: [{{port: 443, sniHosts: ['{host}']}}]\n    \
                 route: [{{destination: {{host: '*.apis.example', port: {{number: 443}}}}}}]\n"
            )
        };
        let yaml = [
            SHOP.to_owned(),
            entry("apis", "*.apis.example"),
            entry("own", "own.apis.example"),
            rules("apis", "*.apis.example"),
            rules("maps", "maps.apis.example"),
            rules("own", "own.apis.example"),
        ];
        let to =
            |host: &str, port: u16| json!([{"host": host, "port": port, "name": format!("outbound|{port}||{host}")}]);
        let cases = [
            (
                r#"{"source": {"namespace": "shop"}, "host": "a.apis.example"}"#,
                json!({"outcome": "forward", "clusters": to("a.apis.example", 80),
                    "mirrors": [{"name": "outbound|80||a.apis.example"}]}),
            ),
            (
                r#"{"source": {"namespace": "shop"}, "host": "maps.apis.example"}"#,
                json!({"outcome": "forward", "clusters": to("maps.apis.example", 80)}),
            ),
            (
                r#"{"source": {"namespace": "shop"}, "protocol": "tcp", "tls": true, "sni": "a.apis.example", "host": "a.apis.example", "port": 443}"#,
                json!({"outcome": "forward", "clusters": to("a.apis.example", 443)}),
            ),
            // It is a service of its own, and no host of the wildcard's.
            (
                r#"{"source": {"namespace": "shop"}, "host": "own.apis.example"}"#,
                json!({"outcome": "error", "clusters": to("*.apis.example", 80)}),
            ),
        ];
        check(&yaml.concat(), &cases);
    }
}
