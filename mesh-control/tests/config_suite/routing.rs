//! VirtualService, rule by rule (`istio.md` 1.1 and 2.1).

use envoy_types::pb::envoy::config::route::v3::RetryPolicy;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use mesh_control::catalog::ClientClass;

use crate::support::{Seen, client, client_of, plane_from, told};

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: other}
spec: {selector: {app: web}, ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: shop}
spec:
  selector: {app: two}
  ports: [{port: 8080, name: http}, {port: 9090, name: http-admin}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, subsets: [{name: v1, labels: {v: '1'}}, {name: v2, labels: {v: '2'}}]}
";

const WEB: &str = "outbound|80||web.shop.svc.cluster.local";
const V1: &str = "outbound|80|v1|web.shop.svc.cluster.local";
const V2: &str = "outbound|80|v2|web.shop.svc.cluster.local";

fn vs(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n{spec}\n"
    )
}

/// The routes of `web:80` for a client of the namespace `shop`, with these rules.
fn check(http: &str, expected: &[&str]) {
    let rules = vs("web", &format!("  hosts: [web]\n  http:\n{http}"));
    let plane = plane_from(&format!("{SERVICES}{rules}"));
    let seen = Seen::new(&plane, client("shop"));
    assert_eq!(told(&seen.routes_of("web:80")), expected, "{http}");
}

#[test]
fn without_rules_everything_goes_to_the_service() {
    let plane = plane_from(SERVICES);
    let seen = Seen::new(&plane, client("shop"));
    let routes = seen.routes_of("web:80");
    assert_eq!(told(&routes), [format!("default: /* -> {WEB}")]);
    let Some(Action::Route(action)) = &routes.virtual_hosts[0].routes[0].action else { panic!("a route") };
    // None is written 0, since Envoy's own default is 15 s; Istio retries twice, which is said once for all routes.
    assert_eq!(action.timeout.as_ref().map(|timeout| timeout.seconds), Some(0));
    assert_eq!(action.retry_policy, None);
    let retry = routes.virtual_hosts[0].retry_policy.as_ref().unwrap();
    assert_eq!(retry.num_retries.as_ref().unwrap().value, 2);
    assert!(!retry.retry_on.contains("5xx"));
}

#[test]
fn a_rule_that_says_something_of_retries_says_it_for_itself_and_the_others_have_what_their_virtual_host_has() {
    let rule = |path: &str, retries: &str| {
        format!("  - match: [{{uri: {{exact: {path}}}}}]\n{retries}    route: [{{destination: {{host: web}}}}]\n")
    };
    let rules = [
        rule("/as-the-mesh", ""),
        rule("/never", "    retries: {attempts: 0}\n"),
        rule("/often", "    retries: {attempts: 5}\n"),
        rule("/as-the-mesh-too", "    retries: {attempts: 2}\n"),
    ];
    let of_mesh = |attempts: u32| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |-\n    defaultHttpRetryPolicy: {{attempts: {attempts}}}\n"
        )
    };
    let policy =
        |retry: &RetryPolicy| (retry.num_retries.as_ref().map(|number| number.value), !retry.retry_on.is_empty());
    for (attempts, of_host, expected) in [
        (2, (Some(2), true), [None, Some((None, false)), Some((Some(5), true)), None]),
        (0, (None, false), [None, None, Some((Some(5), true)), Some((Some(2), true))]),
    ] {
        let rules = vs("web", &format!("  hosts: [web]\n  http:\n{}", rules.concat()));
        let plane = plane_from(&[SERVICES, &rules, &of_mesh(attempts)].concat());
        let routes = Seen::new(&plane, client("shop")).routes_of("web:80");
        let host = &routes.virtual_hosts[0];
        assert_eq!(host.retry_policy.as_ref().map(policy), Some(of_host), "{attempts}");
        let own = host.routes.iter().map(|route| match &route.action {
            Some(Action::Route(action)) => action.retry_policy.as_ref().map(policy),
            other => panic!("{other:?}"),
        });
        assert_eq!(own.collect::<Vec<_>>(), expected, "{attempts}");
    }
}

#[test]
fn every_kind_of_condition_is_rendered() {
    let to = "    route: [{destination: {host: web}}]";
    for (condition, expected) in [
        ("uri: {exact: /a}", "=/a"),
        ("uri: {prefix: /a}", "/a*"),
        ("uri: {regex: '/a.*'}", "~/a.*"),
        ("uri: {regex: '*'}", "/*"),
        ("uri: {prefix: /A}\n      ignoreUriCase: true", "/A* nocase"),
        ("scheme: {exact: https}", "/* :scheme=https"),
        ("method: {exact: GET}", "/* :method=GET"),
        ("authority: {prefix: api.}", "/* :authority=api.*"),
        ("headers: {X-User: {exact: ann}}", "/* x-user=ann"),
        ("headers: {a: {prefix: x}, b: {regex: 'y+'}, c: {}}", "/* a=x* b~y+ c"),
        ("withoutHeaders: {a: {exact: x}, b: {}}", "/* !a=x? !b"),
        ("queryParams: {q: {exact: '1'}, r: {}, s: {regex: 'z.'}, t: {prefix: p}}", "/* ?q=1 ?r ?s~z. ?t=p*"),
        ("uri: {exact: /a}\n      headers: {h: {exact: x}}", "=/a h=x"),
    ] {
        check(&format!("  - match:\n    - {condition}\n{to}"), &[&format!("{expected} -> {WEB}")]);
    }
}

#[test]
fn conditions_of_a_rule_are_alternatives_and_nothing_follows_a_catch_all() {
    check(
        "  - name: r
    match: [{uri: {exact: /a}}, {uri: {exact: /b}, name: m}]
    route: [{destination: {host: web}}]
  - route: [{destination: {host: web, subset: v1}}]
  - route: [{destination: {host: web, subset: v2}}]",
        &[&format!("r: =/a -> {WEB}"), &format!("r.m: =/b -> {WEB}"), &format!("/* -> {V1}")],
    );
}

#[test]
fn the_client_and_the_port_are_judged_here_and_not_by_the_client() {
    let rules = vs(
        "two",
        "  hosts: [two]
  http:
  - match: [{sourceLabels: {tier: gold}}]
    route: [{destination: {host: web, subset: v1}}]
  - match: [{sourceNamespace: other}]
    route: [{destination: {host: web, subset: v2}}]
  - match: [{port: 9090}]
    route: [{destination: {host: web}}]
  - match: [{gateways: [ingress]}]
    redirect: {uri: /never}
  - match: [{headers: {'@request.auth.claims.group': {exact: admin}}}]
    redirect: {uri: /never}
  - route: [{destination: {host: two}}]",
    );
    let plane = plane_from(&format!("{SERVICES}{rules}"));
    let two = |port| format!("/* -> outbound|{port}||two.shop.svc.cluster.local");
    let own = |labels: &[(&str, &str)]| Seen::new(&plane, client_of(ClientClass::Library, "shop", labels));
    assert_eq!(told(&own(&[]).routes_of("two:8080")), [two(8080)]);
    assert_eq!(told(&own(&[("tier", "gold")]).routes_of("two:8080")), [format!("/* -> {V1}")]);
    assert_eq!(told(&own(&[("tier", "tin")]).routes_of("two:8080")), [two(8080)]);
    assert_eq!(told(&own(&[]).routes_of("two:9090")), [format!("/* -> {WEB}")]);
    let foreign = Seen::new(&plane, client("other"));
    assert_eq!(told(&foreign.routes_of("two.shop:8080")), [format!("/* -> {V2}")]);
}

#[test]
fn the_port_of_a_destination_is_the_written_one_or_the_only_one_or_the_addressed_one() {
    let rules = vs(
        "two",
        "  hosts: [two]
  http:
  - match: [{uri: {exact: /written}}]
    route: [{destination: {host: two, port: {number: 9090}}}]
  - match: [{uri: {exact: /only}}]
    route: [{destination: {host: web}}]
  - route: [{destination: {host: two}}]",
    );
    let plane = plane_from(&format!("{SERVICES}{rules}"));
    assert_eq!(
        told(&Seen::new(&plane, client("shop")).routes_of("two:8080")),
        [
            "=/written -> outbound|9090||two.shop.svc.cluster.local".to_owned(),
            format!("=/only -> {WEB}"),
            "/* -> outbound|8080||two.shop.svc.cluster.local".to_owned(),
        ]
    );
}

#[test]
fn of_several_destinations_those_without_weight_get_nothing() {
    let three = "  - route:
    - {destination: {host: web, subset: v1}, weight: 3}
    - {destination: {host: web, subset: v2}, weight: 0}
    - {destination: {host: web}, weight: 1}";
    check(three, &[&format!("/* -> 3 {V1} / 1 {WEB}")]);
    check("  - route: [{destination: {host: web, subset: v1}, weight: 0}]", &[&format!("/* -> {V1}")]);
    check(
        "  - route:\n    - {destination: {host: web, subset: v1}, weight: 100}\n    - {destination: {host: web}}",
        &[&format!("/* -> {V1}")],
    );
}

#[test]
fn paths_authorities_and_headers_are_rewritten() {
    check(
        "  - match: [{uri: {prefix: /old}}]
    rewrite: {uri: /new, authority: new.example.com}
    timeout: 1.5s
    headers:
      request: {set: {A: '1'}, add: {b: '2'}, remove: [C]}
      response: {add: {d: '4'}, remove: [e]}
    route:
    - destination: {host: web}
      headers: {request: {set: {f: '6'}}}",
        &[&format!(
            "/old* -> {WEB} within 1.500s path=/new HostRewriteLiteral(\"new.example.com\") req:a=1 req:b+=2 req:f=6 res:d+=4 req:-c res:-e"
        )],
    );
    check(
        "  - rewrite: {uriRegexRewrite: {match: '^/v(\\d)/(.*)', rewrite: '/\\2?v=\\1'}}
    route:
    - destination: {host: web}
      headers: {request: {set: {Host: other.example.com}}}",
        &[&format!("/* -> {WEB} path~^/v(\\d)/(.*)=/\\2?v=\\1 HostRewriteLiteral(\"other.example.com\")")],
    );
}

#[test]
fn redirects_and_direct_responses_answer_in_place() {
    for (redirect, expected) in [
        (
            "{uri: /x, authority: y.com, redirectCode: 308, scheme: https, port: 8443}",
            "redirect 4 y.com:8443 Some(SchemeRedirect(\"https\")) Some(PathRedirect(\"/x\"))",
        ),
        ("{prefixRewrite: /z}", "redirect 0 :0 None Some(PrefixRewrite(\"/z\"))"),
        ("{derivePort: FROM_REQUEST_PORT}", "redirect 0 :80 None None"),
        ("{port: 81, redirectCode: 302}", "redirect 1 :81 None None"),
    ] {
        check(&format!("  - redirect: {redirect}"), &[&format!("/* -> {expected}")]);
    }
    let rules = vs("web", "  hosts: [web]\n  http: [{directResponse: {status: 503, body: {string: later}}}]");
    let plane = plane_from(&format!("{SERVICES}{rules}"));
    let told = told(&Seen::new(&plane, client("shop")).routes_of("web:80"));
    assert!(told[0].starts_with("/* -> answer 503") && told[0].contains("later"), "{told:?}");
}

#[test]
fn faults_hit_their_share_and_none_without_one() {
    let to = "    route: [{destination: {host: web}}]";
    for (fault, expected) in [
        (
            "{delay: {fixedDelay: 7s, percentage: {value: 100}}}",
            " delay FixedDelay(Duration{seconds:7,nanos:0}) 1000000",
        ),
        ("{delay: {fixedDelay: 7s, percent: 5}}", " delay FixedDelay(Duration{seconds:7,nanos:0}) 50000"),
        ("{delay: {fixedDelay: 7s}}", ""),
        ("{abort: {httpStatus: 555, percentage: {value: 0.0001}}}", " abort HttpStatus(555) 1"),
        ("{abort: {grpcStatus: UNAVAILABLE, percentage: {value: 50}}}", " abort GrpcStatus(14) 500000"),
        ("{abort: {httpStatus: 500, percentage: {value: 0}}}", ""),
    ] {
        check(&format!("  - fault: {fault}\n{to}"), &[&format!("/* -> {WEB}{expected}")]);
    }
}

#[test]
fn the_most_specific_host_counts_and_then_the_first_by_name() {
    let rules = [
        vs("a", "  hosts: ['*.local']\n  http: [{redirect: {uri: /a}}]"),
        vs("b", "  hosts: ['*.shop.svc.cluster.local']\n  http: [{redirect: {uri: /b}}]"),
        vs("d", "  hosts: [web]\n  http: [{redirect: {uri: /d}}]"),
        vs("c", "  hosts: [web.shop.svc.cluster.local]\n  http: [{redirect: {uri: /c}}]"),
    ]
    .concat();
    let plane = plane_from(&format!("{SERVICES}{rules}"));
    let path = |target: &str| told(&Seen::new(&plane, client("shop")).routes_of(target))[0].clone();
    assert!(path("web:80").contains("/c"));
    assert!(path("two:8080").contains("/b"));
    assert!(path("web.other:80").contains("/a"));
    let found: Vec<String> = plane.diagnostics().iter().map(ToString::to_string).collect();
    assert!(
        found.iter().any(|line| line.contains(
            "VirtualService shop/d: hosts: host web.shop.svc.cluster.local is also that of VirtualService shop/c"
        )),
        "{found:?}"
    );
}

#[test]
fn the_oldest_goes_first_where_ages_are_known() {
    let aged = |name: &str, year: &str, path: &str| {
        vs(name, &format!("  hosts: [web]\n  http: [{{redirect: {{uri: {path}}}}}]"))
            .replace("namespace: shop}", &format!("namespace: shop, creationTimestamp: '{year}-01-01T00:00:00Z'}}"))
    };
    let rules = aged("a", "2025", "/young") + &aged("b", "2020", "/old");
    let plane = plane_from(&format!("{SERVICES}{rules}"));
    assert!(told(&Seen::new(&plane, client("shop")).routes_of("web:80"))[0].contains("/old"));
}

#[test]
fn what_has_no_age_or_a_time_that_is_none_is_younger_than_all_that_have_one() {
    let at = |text: &str, time: &str| match time {
        "" => text.to_owned(),
        time => text.replace("namespace: shop}", &format!("namespace: shop, creationTimestamp: '{time}'}}")),
    };
    let rules = |name: &str, path: &str| vs(name, &format!("  hosts: [web]\n  http: [{{redirect: {{uri: {path}}}}}]"));
    let route = |name: &str, path: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             parentRefs: [{{group: '', kind: Service, name: web}}]\n  rules: [{{filters: [{{type: RequestRedirect, \
             requestRedirect: {{path: {{type: ReplaceFullPath, replaceFullPath: {path}}}}}}}]}}]\n"
        )
    };
    for time in ["", "yesterday", "2019-13-01T00:00:00Z"] {
        for young in [rules("a", "/young"), route("a", "/young")] {
            for old in [rules("b", "/old"), route("b", "/old")] {
                let text = [SERVICES, &at(&young, time), &at(&old, "2025-01-01T00:00:00Z")].concat();
                let plane = plane_from(&text);
                let routes = told(&Seen::new(&plane, client("shop")).routes_of("web:80"));
                assert!(routes[0].contains("/old"), "{text}: {routes:?}");
                let said: Vec<String> = plane.diagnostics().iter().map(ToString::to_string).collect();
                let is_of_it =
                    |line: &String| line.contains("metadata.creationTimestamp") && line.contains("is no time");
                assert_eq!(said.iter().any(is_of_it), !time.is_empty(), "{said:#?}");
            }
        }
    }
}

#[test]
fn what_is_not_exported_to_a_client_does_not_exist_for_it() {
    let private = vs("private", "  hosts: [web]\n  exportTo: ['.']\n  http: [{redirect: {uri: /private}}]");
    let public = vs("public", "  hosts: [web]\n  http: [{redirect: {uri: /public}}]");
    let named = vs("named", "  hosts: [web]\n  exportTo: [friend]\n  http: [{redirect: {uri: /named}}]");
    let nobody = vs("a-nobody", "  hosts: [web]\n  exportTo: [else]\n  http: [{redirect: {uri: /nobody}}]");
    let plane = plane_from(&format!("{SERVICES}{private}{public}{named}{nobody}"));
    let path = |namespace: &str| told(&Seen::new(&plane, client(namespace)).routes_of("web.shop:80"))[0].clone();
    assert!(path("shop").contains("/private"));
    assert!(path("friend").contains("/named"));
    assert!(path("stranger").contains("/public"));
}

#[test]
fn rules_for_gateways_only_are_not_for_the_mesh() {
    let edge = vs("edge", "  hosts: [web]\n  gateways: [ingress]\n  http: [{redirect: {uri: /edge}}]");
    let both = vs("two", "  hosts: [two]\n  gateways: [ingress, mesh]\n  http: [{redirect: {uri: /both}}]");
    let plane = plane_from(&format!("{SERVICES}{edge}{both}"));
    let seen = Seen::new(&plane, client("shop"));
    assert_eq!(told(&seen.routes_of("web:80")), [format!("default: /* -> {WEB}")]);
    assert!(told(&seen.routes_of("two:8080"))[0].contains("/both"));
    let reported = plane
        .diagnostics()
        .iter()
        .filter(|finding| finding.message.contains("there is no Gateway shop/ingress"))
        .count();
    assert_eq!(reported, 2);
}

#[test]
fn a_host_without_a_service_has_routes_if_a_rule_names_it() {
    let rules = vs("api", "  hosts: [api.example.com]\n  http: [{route: [{destination: {host: web}}]}]");
    let plane = plane_from(&format!("{SERVICES}{rules}"));
    let seen = Seen::new(&plane, client("shop"));
    let routes = seen.routes_of("api.example.com:8443");
    assert_eq!(routes.name, "outbound|8443||api.example.com");
    assert_eq!(told(&routes), [format!("/* -> {WEB}")]);
    assert_eq!(seen.routes_of("api.example.com").name, "outbound|80||api.example.com");
}

#[test]
fn names_are_resolved_in_the_namespace_of_the_client() {
    let plane = plane_from(SERVICES);
    let name = |namespace: &str, target: &str| Seen::new(&plane, client(namespace)).routes_of(target).name;
    let of = |namespace: &str| format!("outbound|80||web.{namespace}.svc.cluster.local");
    assert_eq!(name("shop", "web:80"), of("shop"));
    assert_eq!(name("other", "web:80"), of("other"));
    assert_eq!(name("other", "web"), of("other"));
    for target in [
        "web.shop:80",
        "web.shop.svc:80",
        "web.shop.svc.cluster.local:80",
        "WEB.shop:80",
        "web.shop.svc.cluster.local.:80",
    ] {
        assert_eq!(name("other", target), of("shop"), "{target}");
    }
}

#[test]
fn a_delegate_continues_the_rule_in_its_own_namespace() {
    let root = vs(
        "root",
        "  hosts: [web]
  http:
  - match: [{uri: {prefix: /shop}}]
    timeout: 9s
    delegate: {name: child, namespace: other}
  - match: [{uri: {prefix: /gone}}]
    delegate: {name: nobody}
  - route: [{destination: {host: web}}]",
    );
    let child = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: child, namespace: other}
spec:
  http:
  - match: [{uri: {prefix: /shop/cart}}]
    route: [{destination: {host: web}}]
  - match: [{uri: {prefix: /elsewhere}}]
    route: [{destination: {host: web}}]
  - route: [{destination: {host: web.shop.svc.cluster.local, subset: v1}}]
";
    let plane = plane_from(&format!("{SERVICES}{root}{child}"));
    assert_eq!(
        told(&Seen::new(&plane, client("shop")).routes_of("web:80")),
        [
            "/shop/cart* -> outbound|80||web.other.svc.cluster.local within 9.000s".to_owned(),
            format!("/shop* -> {V1} within 9.000s"),
            "/gone* -> answer 503 Some(DataSource { watched_directory: None, specifier: Some(InlineString(\"VirtualService shop/root: \
             http[1].delegate: there is no VirtualService shop/nobody\")) })"
                .to_owned(),
            format!("/* -> {WEB}"),
        ]
    );
    let found: Vec<String> = plane.diagnostics().iter().map(ToString::to_string).collect();
    assert!(found.iter().any(|line| line.contains("there is no VirtualService shop/nobody")), "{found:?}");
    assert!(
        found.iter().any(|line| line.contains("http[1] of VirtualService other/child matches requests")),
        "{found:?}"
    );
}

#[test]
fn service_entries_of_one_host_with_different_ports_are_one_service() {
    let entry = |name: &str, port: u16, address: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\n\
             spec: {{hosts: [api.example.com], resolution: STATIC, ports: [{{number: {port}, name: http-{port}}}], \
             endpoints: [{{address: {address}}}]}}\n---\n"
        )
    };
    let plane = plane_from(&(entry("a", 80, "10.0.0.1") + &entry("b", 8080, "10.0.0.2")));
    assert!(plane.diagnostics().is_empty(), "{:?}", plane.diagnostics());
    let seen = Seen::new(&plane, client("default"));
    assert_eq!(seen.addresses("outbound|80||api.example.com"), ["10.0.0.1:80"]);
    assert_eq!(seen.addresses("outbound|8080||api.example.com"), ["10.0.0.2:8080"]);
    // A port that both have is that of the first, and the other one is told so.
    let plane = plane_from(&(entry("a", 80, "10.0.0.1") + &entry("b", 80, "10.0.0.2")));
    let seen = Seen::new(&plane, client("default"));
    assert_eq!(seen.addresses("outbound|80||api.example.com"), ["10.0.0.1:80"]);
    assert!(
        plane.diagnostics().iter().any(|finding| finding.message.contains("has port 80 from ServiceEntry default/a"))
    );
}
