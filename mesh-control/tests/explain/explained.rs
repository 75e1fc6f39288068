//! What `explain` says of one request, with files and lines.

use serde_json::{Value, json};

use crate::support::{EDGE, SHOP, answers, dir_of, explained, has, rules, run};

#[test]
fn explain_shows_what_happens_to_headers_and_pages_of_other_origins_with_their_lines() {
    let http =
        "  - corsPolicy: {allowOrigins: [{exact: 'https://a.example'}], allowMethods: [GET], allowCredentials: true}
    headers:
      request: {set: {x-a: '%REQ(x-user)%', authorization: Basic QTpC}, remove: [x-gone]}
      response: {add: {x-by: mesh}}
    retries: {attempts: 3}
    route: [{destination: {host: reviews}}]
";
    let dir = dir_of(&format!("{SHOP}{}", rules(http)));
    let explain = |more: &[&str]| {
        let arguments =
            [&["explain", "--config", ".", "--from", "shop/reviews", "GET", "http://reviews/"], more].concat();
        String::from_utf8(run(&arguments, dir.path(), "").stdout).unwrap()
    };
    let said: Value = serde_json::from_str(&explain(&["-o", "json"])).unwrap();
    let expected = json!({"route": {
        "cors": {"origins": "exact \"https://a.example\"", "methods": "GET", "credentials": true, "preflights_of_others": "go on"},
        "request_headers": ["remove x-gone", "set authorization (not shown)", "set x-a: %REQ(x-user)%"],
        "response_headers": ["add x-by: mesh"],
        "origins": {"cors": "config.yaml:28", "request_headers": "config.yaml:30", "response_headers": "config.yaml:31",
            "retry": "config.yaml:32"},
    }});
    assert!(has(&said, &expected), "{said:#}");
    let text = explain(&[]);
    for line in [
        "  cors: credentials, methods GET, origins exact \"https://a.example\", preflights of others go on (config.yaml:28)",
        "  request headers: remove x-gone and set authorization (not shown) and set x-a: %REQ(x-user)% (config.yaml:30)",
        "  response headers: add x-by: mesh (config.yaml:31)",
    ] {
        assert!(text.lines().any(|one| one == line), "{line}:\n{text}");
    }
    // Where clusters differ, each says its own.
    let two = "  - route:
    - {destination: {host: reviews}, weight: 1}
    - {destination: {host: ratings}, weight: 1, headers: {request: {set: {x-v: '2'}}}}
";
    let dir = dir_of(&format!("{SHOP}{}", rules(two)));
    let said = explained(dir.path(), &["GET", "http://reviews/"]);
    let of = |at: usize| said["clusters"][at]["request_headers"].clone();
    assert_eq!((of(0), of(1)), (Value::Null, json!(["set x-v: 2"])), "{said:#}");
}

#[test]
fn explain_shows_what_a_request_passes_at_the_client_and_at_the_server_with_file_and_line() {
    let own = |kind: &str, name: &str, spec: &str| {
        format!(
            "---\napiVersion: policy.mesh-control/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  {spec}\n"
        )
    };
    let istio = |group: &str, kind: &str, name: &str, spec: &str| {
        format!(
            "---\napiVersion: {group}\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  {spec}\n"
        )
    };
    let reviews = "selector: {matchLabels: {app: reviews}}\n  ";
    let objects = [
        own(
            "RateLimit",
            "calls",
            "mode: CLIENT\n  hosts: [reviews.shop.svc.cluster.local]\n  rules: [{name: all, limit: {requests: 10, per: 1s}}]",
        ),
        own("RequestRules", "tell", "mode: CLIENT\n  rules: [{name: web, headers: {request: {set: {x-from: web}}}}]"),
        own("Overload", "hold", &format!("{reviews}throttle: {{successPercent: 95}}\n  concurrency: {{max: 5}}")),
        own(
            "RateLimit",
            "users",
            &format!("{reviews}rules: [{{name: each, by: [{{header: x-user}}], limit: {{requests: 5, per: 60s}}}}]"),
        ),
        own(
            "Quota",
            "monthly",
            &format!(
                "{reviews}rules:\n  - {{name: each, by: [{{header: x-user}}], limit: {{requests: 100, per: MONTH}}}}"
            ),
        ),
        own(
            "RequestRules",
            "tenants",
            &format!(
                "{reviews}rules: [{{name: none, when: \"!has(request.headers['x-tenant'])\", deny: {{status: 400}}}}]"
            ),
        ),
        istio("extensions.istio.io/v1alpha1", "WasmPlugin", "acme", &format!("{reviews}pluginName: acme.tenant")),
        istio(
            "security.istio.io/v1",
            "AuthorizationPolicy",
            "gets",
            &format!("{reviews}rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]"),
        ),
        // Nobody whom the request meets.
        own(
            "RateLimit",
            "others",
            "selector: {matchLabels: {app: ratings}}\n  rules: [{name: all, limit: {requests: 10, per: 1s}}]",
        ),
    ];
    let dir = dir_of(&format!("{SHOP}{}", objects.concat()));
    let explain = |url: &str, more: &[&str]| {
        let arguments = [&["explain", "--config", ".", "--from", "shop/ratings", "GET", url], more].concat();
        String::from_utf8(run(&arguments, dir.path(), "").stdout).unwrap()
    };
    let text = explain("http://reviews/", &[]);
    let (client, server) = text.split_once("server app=reviews in shop, port 80\n").unwrap_or_else(|| panic!("{text}"));
    let expected = [
        "  local rate limit (config.yaml:22, RateLimit shop/calls): name RateLimit shop/calls, rules (name all, by generic_key=all, limit at once 10, per 1s, requests 10)",
        "  rules (config.yaml:30, RequestRules shop/tell): rules (name web, request headers set x-from: web)",
    ];
    for line in expected {
        assert!(client.lines().any(|one| one == line), "{line}:\n{text}");
    }
    // In the order in which requests pass them.
    let expected = [
        "  policies (config.yaml:74, AuthorizationPolicy shop/gets): allow AuthorizationPolicy/shop/gets#0",
        "  rules (config.yaml:60, RequestRules shop/tenants): rules (name none, refused with 400, when !('x-tenant' in request.headers))",
        "  local rate limit (config.yaml:45, RateLimit shop/users): name RateLimit shop/users, rules (name each, by x-user, limit at once 5, per 60s, requests 5)",
        "  quota (config.yaml:58, Quota shop/monthly rules[0]): domain mesh-control, limit 100 in a month, rules (by header x-user, without a share passes)",
        "  concurrency limit (config.yaml:43, Overload shop/hold concurrency): most 5, sheddable percent 80.0",
        "  filter (config.yaml:67, WasmPlugin shop/acme): name acme.tenant, where it cannot run refused",
    ];
    assert_eq!(server.lines().collect::<Vec<_>>(), expected, "{text}");
    let said: Value = serde_json::from_str(&explain("http://reviews/", &["-o", "json"])).unwrap();
    let expected = json!({
        "route": {"passes": [{"kind": "rules"}, {"kind": "local rate limit"}]},
        "servers": [{"name": "app=reviews in shop, port 80", "problem": null}],
    });
    assert!(has(&said, &expected), "{said:#}");
    // A host that nothing describes is one of all.
    let anywhere = "mode: CLIENT\n  rules: [{name: all, limit: {requests: 7, per: 1s}}]";
    std::fs::write(dir.path().join("more.yaml"), own("RateLimit", "anywhere", anywhere)).unwrap();
    let text = explain("http://outside.example.com/", &[]);
    let (rules, limit) = (
        "  rules (config.yaml:30, RequestRules shop/tell): ",
        "  local rate limit (more.yaml:2, RateLimit shop/anywhere): ",
    );
    assert!(text.find(rules).zip(text.find(limit)).is_some_and(|(rules, limit)| rules < limit), "{text}");
    // Nobody knows what an object would have said that is wrong.
    let wrong = istio("security.istio.io/v1", "AuthorizationPolicy", "wrong", &format!("{reviews}rulez: []"));
    std::fs::write(dir.path().join("wrong.yaml"), wrong).unwrap();
    let text = explain("http://reviews/", &[]);
    assert!(text.contains("  problem: every request is answered with 503: "), "{text}");
}

#[test]
fn the_time_of_a_try_is_where_it_is_written() {
    let of_route = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec:\n  parentRefs: [{group: '', kind: Service, name: reviews}]\n  rules:\n  - backendRefs: [{name: reviews, port: 80}]\n    timeouts:\n      backendRequest: 2s\n";
    let of_mesh = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    defaultHttpRetryPolicy: {attempts: 2, perTryTimeout: 3s}\n";
    let own = rules("  - retries: {attempts: 1, perTryTimeout: 1s}\n    route: [{destination: {host: reviews}}]\n");
    let none = rules("  - retries: {attempts: 1}\n    route: [{destination: {host: reviews}}]\n");
    for (yaml, time, line) in [
        (own, Some("1s"), Some("config.yaml:28")),
        (none, None, None),
        (of_route.to_owned(), Some("2s"), Some("config.yaml:30")),
        (
            format!("{}{of_mesh}", rules("  - route: [{destination: {host: reviews}}]\n")),
            Some("3s"),
            Some("config.yaml:35"),
        ),
    ] {
        let dir = dir_of(&format!("{SHOP}{yaml}"));
        let said = explained(dir.path(), &["GET", "http://reviews/"]);
        let route = &said["route"];
        assert_eq!(route["per_try_timeout"].as_str(), time, "{said:#}");
        if line.is_some() {
            assert_eq!(route["origins"]["per_try_timeout"].as_str(), line, "{said:#}");
        }
    }
}

#[test]
fn a_retry_budget_is_where_the_policy_says_it_unless_a_rule_does() {
    let policy = "---\napiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\nmetadata: {name: ratings, namespace: shop}\nspec:\n  targetRefs: [{group: '', kind: Service, name: ratings}]\n  retryConstraint: {budget: {percent: 30}}\n";
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: ratings, namespace: shop}\nspec:\n  host: ratings\n  trafficPolicy:\n    retryBudget: {percent: 40}\n";
    let lines = SHOP.lines().count();
    for (yaml, line) in [(policy.to_owned(), 7), (format!("{policy}{rule}"), 7 + 8)] {
        let dir = dir_of(&format!("{SHOP}{yaml}"));
        let said = explained(dir.path(), &["GET", "http://ratings:9080/"]);
        let place = format!("config.yaml:{}", lines + line);
        let places: Vec<_> =
            said["clusters"].as_array().unwrap().iter().map(|one| &one["origins"]["circuit_breakers"]).collect();
        assert_eq!(places, [&json!(place)], "{said:#}");
    }
}

#[test]
fn settings_of_the_mesh_are_where_the_mesh_says_them() {
    // Lines 2 to 8 of a file; what stands in a string has the place of its line.
    let settings = "connectTimeout: 3s
h2UpgradePolicy: UPGRADE
enableAutoMtls: false
defaultTrafficPolicy:
  connectionPool: {http: {http2MaxRequests: 9}}
  outlierDetection:
    consecutive5xxErrors: 7
outboundTrafficPolicy: {mode: ALLOW_ANY}
";
    let rule = |policy: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: ratings, namespace: shop}}\nspec: {{host: ratings, trafficPolicy: {{{policy}}}}}\n"
        )
    };
    let sidecar = "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: shop}\nspec:\n  outboundTrafficPolicy: {mode: ALLOW_ANY}\n";
    let map: String = settings.lines().map(|line| format!("    {line}\n")).collect();
    let map = format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n{map}"
    );
    let origins = |yaml: &str, of_file: bool, url: &str| {
        let dir = dir_of(&format!("{SHOP}{yaml}"));
        std::fs::write(dir.path().join("settings"), settings).unwrap();
        let file: &[&str] = if of_file { &["--mesh-config", "settings"] } else { &[] };
        explained(dir.path(), &[&["GET", url], file].concat())["clusters"][0]["origins"].clone()
    };
    let ratings = "http://ratings:9080/";
    let of_mesh = |connections: &str, name: &str, first: usize| {
        let line = |at: usize| format!("{name}:{}", first + at);
        json!({
            "connections": format!("{connections}{}", line(0)),
            "protocol": line(1),
            "tls": line(2),
            "circuit_breakers": line(4),
            "outlier_detection": line(6),
        })
    };
    let lines = |yaml: &str| SHOP.lines().count() + yaml.lines().count();
    let all = origins(&map, false, ratings);
    let first = lines(&map) - settings.lines().count() + 1;
    let expected = of_mesh(&format!("config.yaml:{}, connect timeout ", first + 4), "config.yaml", first);
    assert!(has(&all, &expected), "{all:#}");
    let all = origins("", true, ratings);
    let expected = of_mesh("--mesh-config=settings:5, connect timeout ", "--mesh-config=settings", 1);
    assert!(has(&all, &expected), "{all:#}");
    // A rule's own block goes before the mesh's, and leaves the rest to it.
    let own = format!("{map}{}", rule("connectionPool: {http: {maxRetries: 1}}"));
    let all = origins(&own, false, ratings);
    let here = format!("config.yaml:{}", lines(&own));
    let expected = json!({
        "connections": format!("{here}, connect timeout config.yaml:{first}"),
        "circuit_breakers": here,
        "outlier_detection": format!("config.yaml:{}", first + 6),
    });
    assert!(has(&all, &expected), "{all:#}");
    let own = format!("{map}{}", rule("connectionPool: {tcp: {connectTimeout: 1s}}, outlierDetection: {}"));
    let all = origins(&own, false, ratings);
    let here = format!("config.yaml:{}", lines(&own));
    assert!(has(&all, &json!({"connections": here, "outlier_detection": here})), "{all:#}");
    // Who says that hosts are called which nothing describes.
    let nobody = "http://nobody.example.com/";
    assert_eq!(origins(&map, false, nobody)["service"], format!("config.yaml:{}", lines(&map)));
    let own = format!("{map}{sidecar}");
    assert_eq!(origins(&own, false, nobody)["service"], format!("config.yaml:{}", lines(&own)));
}

#[test]
fn explain_fails_where_the_request_does_and_takes_no_scheme_that_is_none_of_the_mesh() {
    let dir = dir_of(&format!(
        "{SHOP}{}",
        rules(
            "  - match: [{uri: {prefix: /a}}]
    route: [{destination: {host: reviews}}]
  - match: [{uri: {prefix: /lost}}]
    route: [{destination: {host: reviews, subset: v9}}]
  - match: [{uri: {prefix: /half}}]
    route: [{destination: {host: reviews, subset: v9}, weight: 1}, {destination: {host: reviews}, weight: 99}]
"
        )
    ));
    let explain = |url: &str| {
        let output = run(&["explain", "--config", ".", "--from", "shop/reviews", "GET", url], dir.path(), "");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    for (url, code, expected) in [
        ("http://reviews/a", 0, "cluster outbound|80||reviews"),
        ("http://reviews/b", 1, "error: "),
        ("http://reviews/lost", 1, "error: cluster outbound|80|v9|reviews.shop.svc.cluster.local leads nowhere"),
        ("http://reviews/half", 0, "problem: cluster outbound|80|v9|reviews.shop.svc.cluster.local leads nowhere"),
        ("http://reviews:81/a", 1, "error: "),
        ("https://reviews:80/a", 1, "https is not for the mesh"),
        ("https://nobody.example.com/a", 0, "PassthroughCluster"),
        ("ftp://reviews/a", 1, "no scheme of the mesh"),
        ("ws://reviews/a", 1, "no scheme of the mesh"),
    ] {
        let (found, said) = explain(url);
        assert_eq!(found, Some(code), "{url}: {said}");
        assert!(said.contains(expected), "{url}: {said}");
    }
}

#[test]
fn explain_as_json_has_what_a_program_needs_with_files_and_lines() {
    let http = "  - match: [{headers: {x-tier: {exact: gold}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - timeout: 2s
    route: [{destination: {host: reviews, subset: v1}}]
";
    let dir = dir_of(&format!("{SHOP}{}", rules(http)));
    let said = explained(dir.path(), &["GET", "http://reviews/", "-H", "x-tier: silver"]);
    let expected = json!({
        "request": "GET reviews/",
        "outcome": "forward",
        "passed_over": [{"position": 0, "origin": "config.yaml:28, VirtualService shop/reviews http[0]",
            "unmet": {"what": "header x-tier", "wanted": "exact \"gold\"", "found": "request has \"silver\""}}],
        "route": {"position": 1, "timeout": "2s", "origins": {"timeout": "config.yaml:30", "retry": "Istio's default"}},
        "clusters": [{"weight": 1, "balancer": {"policy": "least request"}, "subset": "v1", "origins": {"subset": "config.yaml:20"}}],
    });
    assert!(has(&said, &expected), "{said:#}");
}

#[test]
fn who_is_not_known_is_asked_for_by_name_and_a_command_line_that_makes_no_sense_is_an_error() {
    let dir = dir_of(SHOP);
    let explain = |arguments: &[&str]| {
        let arguments: Vec<&str> = ["explain", "--config", "."].iter().chain(arguments).copied().collect();
        let output = run(&arguments, dir.path(), "");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = explain(&["--from", "shop/cron", "GET", "http://reviews/"]);
    assert_eq!((code, said.contains("taken for a workload without labels")), (Some(0), true), "{said}");
    for (arguments, expected) in [
        (&["--from", "cron", "GET", "http://reviews/"][..], "NAMESPACE/NAME is needed"),
        (&["--from", "shop/reviews", "GET", "/reviews"], "a host is needed"),
        (&["--from", "shop/reviews", "GET", "http://reviews/", "-H", "x"], "no : in it"),
        (&["--from", "shop/reviews", "G T", "http://reviews/"], "METHOD"),
    ] {
        let (code, said) = explain(arguments);
        assert!(matches!(code, Some(1 | 2)) && said.contains(expected), "{arguments:?}: {code:?} {said}");
    }
}

#[test]
fn explain_says_what_a_sticky_split_goes_by_and_where_it_leads_with_the_weights_as_they_are_written() {
    let to = |v1, v2| {
        format!(
            "  - route:\n    - {{destination: {{host: reviews, subset: v1}}, weight: {v1}}}\n    - {{destination: {{host: reviews, subset: v2}}, weight: {v2}}}\n"
        )
    };
    let annotated = |by: &str, rules: &str| {
        let own = format!("namespace: shop, annotations: {{mesh-control/sticky-split: {by}}}}}\nspec:\n  hosts");
        rules.replace("namespace: shop}\nspec:\n  hosts", &own)
    };
    for (by, name, given) in [
        ("header=x-user", "header x-user", &["-H", "x-user: jason"][..]),
        ("cookie=session", "cookie session", &["-H", "cookie: session=jason"]),
    ] {
        for (v1, v2) in [(70, 30), (2, 1), (40, 60)] {
            let yaml = format!("{SHOP}{}", annotated(by, &rules(&to(v1, v2))));
            let line = 1 + yaml.lines().position(|line| line.contains("sticky-split")).unwrap();
            let dir = dir_of(&yaml);
            let explain = |more: &[&str]| {
                let arguments =
                    [&["explain", "--config", ".", "--from", "shop/ratings", "GET", "http://reviews/"], more].concat();
                String::from_utf8(run(&arguments, dir.path(), "").stdout).unwrap()
            };
            let (of_user, of_nobody) = (explain(given), explain(&[]));
            let expected = format!("  split by: {name} (config.yaml:{line})");
            for text in [&of_user, &of_nobody] {
                assert!(text.lines().any(|one| one == expected), "{expected}:\n{text}");
                for (subset, weight) in [("v1", v1), ("v2", v2)] {
                    let cluster =
                        format!("cluster outbound|80|{subset}|reviews.shop.svc.cluster.local: weight {weight}");
                    assert!(text.lines().any(|one| one.starts_with(&cluster)), "{cluster}:\n{text}");
                }
            }
            assert!(of_user.contains("\n  this request goes to: outbound|80|v"), "{of_user}");
            assert!(of_nobody.contains("\n  this request goes to: any of them, by chance"), "{of_nobody}");
            let (answers, _) = answers(dir.path(), &[r#"{"source": {"namespace": "shop"}, "host": "reviews"}"#], &[]);
            let weights: Vec<_> =
                answers[0]["clusters"].as_array().unwrap().iter().map(|to| to["weight"].clone()).collect();
            assert_eq!(json!(weights), json!([v1, v2]), "{answers:?}");
        }
    }
}

#[test]
fn explain_says_that_a_policy_lets_nobody_in_and_what_passes_before_a_quota_has_a_share() {
    let objects = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {}
---
apiVersion: policy.mesh-control/v1alpha1
kind: Quota
metadata: {name: hourly, namespace: shop}
spec:
  selector: {matchLabels: {app: reviews}}
  failureMode: DENY
  rules:
  - {name: each, by: [{header: x-user}], limit: {requests: 4, per: HOUR}}
";
    let dir = dir_of(&format!("{SHOP}{objects}"));
    let arguments = ["explain", "--config", ".", "--from", "shop/ratings", "GET", "http://reviews/"];
    let text = String::from_utf8(run(&arguments, dir.path(), "").stdout).unwrap();
    for expected in [
        ", AuthorizationPolicy shop/nobody): allow nobody\n",
        "limit 4 in an hour",
        "without a share at once 1, then refused)",
    ] {
        assert!(text.contains(expected), "{expected}:\n{text}");
    }
}

#[test]
fn a_gateway_is_no_client_and_explain_says_so() {
    let dir = dir_of(&[SHOP, EDGE].concat());
    let explain = |from: &[&str]| {
        run(&[&["explain", "--config", ".", "GET", "http://reviews.shop/", "--from"], from].concat(), dir.path(), "")
    };
    for (from, gateway) in [
        (&["edges/edge"][..], "Gateway shop/public"),
        (&["edges/any", "--label", "istio=edge"], "Gateway shop/public"),
        (&["shop/front"], "Gateway shop/front"),
        (&["shop/any", "--label", "gateway.networking.k8s.io/gateway-name=front"], "Gateway shop/front"),
    ] {
        let output = explain(from);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("is a gateway (") && said.contains(gateway), "{from:?}: {said}");
        assert!(output.stdout.is_empty() && !output.status.success(), "{from:?}");
    }
    assert!(explain(&["shop/reviews"]).status.success());
    assert!(explain(&["edges/any", "--label", "gateway.networking.k8s.io/gateway-name=front"]).status.success());
}

#[test]
fn explain_says_what_a_gateway_does_with_a_request_of_somebody_outside() {
    let policy = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: partners, namespace: edges}
spec: {selector: {matchLabels: {istio: edge}}, rules: [{from: [{source: {remoteIpBlocks: [192.0.2.0/24]}}]}]}
";
    let dir = dir_of(&[SHOP, EDGE, policy].concat());
    let at_gateway = |gateway: &[&str], url: &str| {
        let arguments = [&["explain", "--config", ".", "-o", "json", "GET", url, "--gateway"], gateway].concat();
        let output = run(&arguments, dir.path(), "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|_| panic!("{url}: {said}")), output.status)
    };
    let (reviews, ratings) =
        ("outbound|80||reviews.shop.svc.cluster.local", "outbound|9080||ratings.shop.svc.cluster.local");
    for gateway in [&["shop/public"][..], &["edges/edge"], &["edges/any", "--label", "istio=edge"]] {
        let (told, status) = at_gateway(gateway, "http://shop.example/1");
        assert!(status.success(), "{told}");
        assert_eq!((&told["outcome"], &told["clusters"][0]["name"]), (&json!("forward"), &json!(reviews)), "{told}");
        let ends = |place: &Value, end: &str| place.as_str().is_some_and(|place| place.ends_with(end));
        assert!(ends(&told["route"]["origin"], ", VirtualService shop/shop http[1]"), "{told}");
        assert!(ends(&told["passed_over"][0]["origin"], ", VirtualService shop/shop http[0]"), "{told}");
        assert!(ends(&told["clusters"][0]["origins"]["service"], ", Service shop/reviews"), "{told}");
        let policies = &told["route"]["passes"][0];
        assert_eq!(policies["kind"], "policies", "{told}");
        assert!(ends(&policies["origin"], ", AuthorizationPolicy edges/partners"), "{told}");
        let note = "it comes in at 0.0.0.0_8080, of gateways of namespace edges with istio=edge";
        assert_eq!(told["notes"], json!([note]), "{told}");
    }
    let of_public = |url: &str| at_gateway(&["shop/public"], url).0;
    assert_eq!(of_public("https://shop.example/1")["clusters"][0]["name"], reviews);
    assert_eq!(of_public("http://secure.example/1")["outcome"], "redirect");
    // The port that the Service leads to is one that a gateway may be asked at, too.
    assert_eq!(of_public("http://shop.example:8080/1")["outcome"], "forward");
    let raw = of_public("https://raw.example/");
    assert_eq!(raw["clusters"][0]["name"], ratings, "{raw}");
    assert_eq!(raw["route"]["passes"][0]["kind"], "policies", "{raw}");
    assert!(raw["notes"][0].as_str().is_some_and(|note| note.contains("nobody looks into")), "{raw}");
    for (url, why) in [
        ("http://other.example/", "no virtual host for"),
        ("https://other.example/", "TLS is refused for the name"),
        ("http://shop.example:443/", "connections in plaintext are closed"),
        ("https://shop.example:80/", "it takes no TLS"),
        ("http://shop.example:81/", "does not listen for port 81"),
    ] {
        let (told, status) = at_gateway(&["shop/public"], url);
        assert!(told["error"].as_str().is_some_and(|error| error.contains(why)), "{url}: {told}");
        assert!(told["outcome"] == "error" && status.code() == Some(1), "{url}: {told}");
    }
    let (front, _) = at_gateway(&["shop/front"], "http://any.example/");
    let origin = front["route"]["origin"].as_str().unwrap_or_default();
    assert!(front["outcome"] == "forward" && origin.contains(", HTTPRoute shop/front rules[0]"), "{front}");
    for (arguments, why) in [
        (&["--gateway", "shop/reviews"][..], "no Gateway is called so"),
        (&["--gateway", "shop/public", "--from", "shop/reviews"], "cannot be used with"),
        (&[], "--from <NAMESPACE/NAME>"),
    ] {
        let output = run(&[&["explain", "--config", ".", "GET", "http://a/"], arguments].concat(), dir.path(), "");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{said}");
    }
}

#[test]
fn explain_names_the_policy_by_which_a_service_is_called_by_tls() {
    let policy = "---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: behind, namespace: shop}
spec: {targetRefs: [{group: '', kind: Service, name: ratings}], validation: {hostname: ratings.internal, wellKnownCACertificates: System}}
";
    // It goes before what the mesh says of all.
    let mesh = "---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    enableAutoMtls: false
";
    let line = SHOP.lines().count() + 5;
    let expected = format!("tls: TLS (config.yaml:{line}, BackendTLSPolicy shop/behind)");
    for mesh in ["", mesh] {
        let dir = dir_of(&format!("{SHOP}{policy}{mesh}"));
        let arguments = ["explain", "--config", ".", "--from", "shop/reviews", "GET", "http://ratings:9080/"];
        let text = String::from_utf8(run(&arguments, dir.path(), "").stdout).unwrap();
        assert!(text.lines().any(|one| one.trim() == expected), "{text}");
    }
}
