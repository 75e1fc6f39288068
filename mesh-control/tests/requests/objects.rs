//! What single objects mean, where that is easily misread: who has a host, who sees an object, how a name is written.

use std::net::SocketAddr;

use mesh_core::error::ErrorKind;

use crate::support::{Face, World, rules, server, service, virtual_service};

/// A ServiceEntry `web` in a namespace, for this host and endpoint.
fn entry(namespace: &str, host: &str, more: &str, at: SocketAddr) -> String {
    format!(
        "
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web, namespace: {namespace}{more}}}
spec:
  hosts: [{host}]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: {}, ports: {{http: {}}}}}]
",
        at.ip(),
        at.port()
    )
}

#[tokio::test]
async fn of_two_entries_for_a_host_the_one_of_the_clients_namespace_counts_else_the_oldest() {
    let (one, two) = (server("one").await, server("two").await);
    let old = ", creationTimestamp: '2024-01-01T00:00:00Z'";
    let new = ", creationTimestamp: '2025-01-01T00:00:00Z'";
    let both = entry("a", "web.example.com", new, one) + &entry("b", "web.example.com", old, two);
    for (client, expected) in [("a", "one"), ("b", "two"), ("c", "two")] {
        let answer = World::of(client, &[], &both).await.get("http://web.example.com/").await.unwrap();
        assert!(answer.body.starts_with(expected), "{client}: {answer:?}");
    }
}

/// Rules of which nobody can tell whom they are for are for everybody, and wrong.
#[tokio::test]
async fn rules_whose_export_to_says_nothing_fail_for_everybody() {
    let up = server("up").await;
    for export_to in ["['*', prod]", "[./]", "[..]", "['~', default]"] {
        let deny = rules("  - directResponse: {status: 403}\n")
            .replace("  http:", &format!("  exportTo: {export_to}\n  http:"));
        let world = World::of_file(&(entry("default", "web.example.com", "", up) + &deny)).await;
        let answer = world.get("http://web.example.com/").await.unwrap();
        assert_eq!(answer.status, 503, "{export_to}: {answer:?}");
        assert!(answer.body.contains("VirtualService default/web is wrong"), "{export_to}: {answer:?}");
    }
}

/// Nobody can tell what of the calls it secures.
#[tokio::test]
async fn a_host_whose_rule_for_tls_is_no_yaml_fails_with_the_reason_and_others_go_on() {
    let up = server("up").await;
    let services = entry("default", "web.example.com", "", up)
        + &entry("default", "api.example.com", "", up).replace("{name: web", "{name: api")
        + &entry("other", "own.example.com", "", up);
    let rule = |host: &str, policy: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a, namespace: default}}\n\
             spec:\n  host: {host}\n  trafficPolicy: {{{policy}, retryBudget: {{percent: .nan}}}}\n"
        )
    };
    let tls = "tls: {mode: SIMPLE}";
    let balanced = "loadBalancer: {simple: RANDOM}";
    for (namespace, rule, closed) in [
        ("default", rule("web.example.com", tls), &["web"][..]),
        ("default", rule("web.example.com", &format!("{tls}, {tls}")), &["web"]),
        ("default", rule("'*.example.com'", tls), &["web", "api", "own"]),
        ("default", rule("&host web.example.com", tls), &["web", "api", "own"]),
        ("other", rule("&host web.example.com", tls), &["web", "api"]),
        ("default", rule("web.example.com", balanced), &[]),
    ] {
        let world = World::of_file_in(namespace, &format!("{services}{rule}")).await;
        for name in ["web", "api", "own"] {
            let answer = world.get(&format!("http://{name}.example.com/")).await.unwrap();
            let is_closed = closed.contains(&name);
            assert_eq!(answer.status, if is_closed { 503 } else { 200 }, "{namespace}, {name}: {rule}: {answer:?}");
            let reason =
                "DestinationRule without a name in default is wrong, and no good state of it is known: config.yaml:";
            let line = answer.body.split_once(reason).map(|(_, line)| line.starts_with(|c: char| c.is_ascii_digit()));
            assert_eq!(line, is_closed.then_some(true), "{namespace}, {name}: {rule}: {answer:?}");
        }
    }
}

/// What stands behind a rule may let through what its delegate does not.
#[tokio::test]
async fn a_rule_whose_delegate_is_none_answers_with_the_reason_and_does_not_fall_through() {
    let up = server("up").await;
    let services = entry("default", "web.example.com", "", up);
    let root = rules(
        "  - match: [{uri: {prefix: /admin}}]
    delegate: {name: child}
  - route: [{destination: {host: web.example.com}}]
",
    );
    let respond = "  http: [{directResponse: {status: 403}}]";
    let child = |spec: &str| virtual_service("child", spec);
    let of_other = child(respond).replace("{name: child}", "{name: child, namespace: other}");
    for (child, reason) in [
        (String::new(), "there is no VirtualService default/child"),
        (of_other, "there is no VirtualService default/child"),
        (child(&format!("  hosts: [a.example]\n{respond}")), "has hosts of its own"),
        (child(&format!("  exportTo: [other]\n{respond}")), "is not exported to this namespace"),
        (child("  tcp: [{route: [{destination: {host: web.example.com}}]}]"), "has no rules for HTTP"),
        (child("  http: [{delegate: {name: deeper}}]"), "delegates again"),
        (child("  http: [{directResponse: {status: 9}}]"), "VirtualService default/child is wrong"),
        ("---\nnobody: knows\n".to_owned(), "there is no VirtualService default/child"),
    ] {
        let world = World::of_file(&format!("{services}{root}{child}")).await;
        let answer = world.get("http://web.example.com/admin").await.unwrap();
        assert_eq!(answer.status, 503, "{child}: {answer:?}");
        assert!(answer.body.contains(reason), "{child}: {answer:?}");
        let answer = world.get("http://web.example.com/").await.unwrap();
        assert_eq!(answer.status, 200, "{child}: {answer:?}");
    }
}

/// Names of DNS have no case, and the dot at their end may be written.
#[tokio::test]
async fn a_host_is_the_same_in_capitals_and_with_a_dot_at_its_end_wherever_it_is_written() {
    let up = server("up").await;
    let selected = format!(
        "
---
apiVersion: v1
kind: Service
metadata: {{name: reviews}}
spec: {{selector: {{app: reviews}}, ports: [{{port: 80, name: http}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: reviews, labels: {{app: reviews, v: v1}}}}
spec: {{address: {}, ports: {{http: {}}}}}
",
        up.ip(),
        up.port()
    );
    let entry = |host: &str| entry("default", host, "", up).replace("ports: {http", "labels: {v: v1}, ports: {http");
    let full = "reviews.default.svc.cluster.local";
    for (services, asked, written) in [
        (selected.clone(), "reviews", "Reviews"),
        (selected.clone(), "reviews", "reviews.default.svc.cluster.local."),
        (selected.clone(), full, "Reviews.Default.svc.cluster.local."),
        (entry("Web.Example.com"), "web.example.com", "WEB.example.com."),
        (entry("web.example.com."), "web.example.com", "web.example.com"),
        (entry("'*.Example.com.'"), "web.example.com", "Web.Example.Com."),
    ] {
        let rule = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web}}\n\
             spec: {{host: {written}, subsets: [{{name: v1, labels: {{v: v1}}}}]}}\n"
        );
        let routes = format!(
            "  hosts: [{written}]\n  http: [{{name: mine, route: [{{destination: {{host: {written}, subset: v1}}}}]}}]"
        );
        let world = World::new(&format!("{services}{rule}{}", virtual_service("web", &routes))).await;
        let answer = world.get(&format!("http://{asked}/")).await;
        let answer = answer.unwrap_or_else(|error| panic!("{asked} {written}: {error}"));
        assert!(answer.body.starts_with("up\n"), "{asked} {written}: {answer:?}");
        assert_eq!(world.route(), "mine", "{asked} {written}");
    }
}

#[tokio::test]
async fn what_an_expression_makes_of_a_path_is_a_path_or_the_request_fails() {
    let up = server("up").await;
    let services = entry("default", "web.example.com", "", up);
    for (pattern, substitution, path, expected) in [
        ("^/items/([0-9]+)$", r"/items?id=\1", "/items/5", Ok("/items?id=5")),
        // The request's own parameters are not lost.
        ("^/items/([0-9]+)$", r"/items?id=\1", "/items/5?x=1", Ok("/items?id=5&x=1")),
        ("^/old/(.*)$", r"/new/\1", "/old/a?x=1", Ok("/new/a?x=1")),
        ("^/(.*)$", r"\1", "/*", Err("does not begin with /")),
        ("^/(.*)$", r"\1", "/a", Err("does not begin with /")),
        ("^/$", "@evil.example/", "/", Err("does not begin with /")),
    ] {
        let rule = format!(
            "  - rewrite: {{uriRegexRewrite: {{match: '{pattern}', rewrite: '{substitution}'}}}}\n    \
             route: [{{destination: {{host: web.example.com}}}}]\n"
        );
        let world = World::new(&format!("{services}{}", rules(&rule))).await;
        let answer = world.get(&format!("http://web.example.com{path}")).await;
        match (answer, expected) {
            (Ok(answer), Ok(expected)) => {
                assert!(answer.body.starts_with(&format!("up\nGET {expected}\n")), "{substitution} {path}: {answer:?}");
            }
            (Err(error), Err(reason)) => {
                assert_eq!(error.kind(), ErrorKind::BadRequest, "{substitution} {path}: {error}");
                assert!(error.to_string().contains(reason), "{substitution} {path}: {error}");
            }
            (answer, _) => panic!("{substitution} {path}: {answer:?}"),
        }
    }
}

#[tokio::test]
async fn an_alias_of_a_host_that_nothing_describes_says_so_where_such_hosts_are_not_called() {
    let alias = "---
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {type: ExternalName, externalName: far.example.com}
";
    let route = rules("  - route: [{destination: {host: far, port: {number: 80}}}]\n");
    let world = World::registry_only(&format!("{alias}{route}")).await;
    for asked in ["http://far/", "http://web.example.com/"] {
        let told = world.get(asked).await.map_or_else(|error| error.to_string(), |answer| answer.body);
        assert!(told.contains("far.example.com, which nothing describes"), "{asked}: {told}");
    }
}

#[tokio::test]
async fn who_sees_what_says_nothing_of_it_and_what_is_called_that_nothing_describes_is_up_to_the_mesh() {
    let answer = virtual_service("web", "  hosts: [web.example.com]\n  http: [{directResponse: {status: 201}}]\n");
    // By which no call of this server succeeds.
    let tls = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web-policy}
spec: {host: web.example.com, trafficPolicy: {tls: {mode: SIMPLE}}}
";
    let at = server("v1").await;
    let entry = service("web", &[("v1", at)]);
    let (entry, _) = entry.rsplit_once("---\n").unwrap();
    let outside = format!("http://127.0.0.1:{}/", at.port());
    let web = "http://web.example.com/";
    for (setting, objects, uri, seen, unseen) in [
        ("defaultServiceExportTo: ['.']", entry.to_owned(), web, Some("200 HTTP/1.1"), None),
        ("defaultVirtualServiceExportTo: ['.']", format!("{entry}{answer}"), web, Some("201 "), Some("200 HTTP/1.1")),
        ("defaultDestinationRuleExportTo: ['.']", format!("{entry}{tls}"), web, None, Some("200 HTTP/1.1")),
        ("outboundTrafficPolicy: {mode: REGISTRY_ONLY}", String::new(), &*outside, Some("200 HTTP/1.1"), None),
    ] {
        let map = format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: '{}'\n",
            setting.replace('\'', "''")
        );
        for (yaml, expected) in [(objects.clone(), seen), (format!("{objects}{map}"), unseen)] {
            for face in Face::ALL {
                // A client of another namespace than the objects.
                let answer = World::of("other", &[], &yaml).await.through(face).get(uri).await;
                let told = answer
                    .map(|answer| format!("{} {}", answer.status, answer.body.lines().nth(2).unwrap_or_default()));
                // A connector has no answers of its own.
                let expected = expected.filter(|expected| face != Face::Connector || !expected.starts_with("201"));
                assert_eq!(told.as_deref().ok(), expected, "{face:?} {setting}: {told:?}\n{yaml}");
            }
        }
    }
}

#[tokio::test]
async fn two_entries_of_one_host_with_different_ports_answer_at_both() {
    let (one, two) = (server("one").await, server("two").await);
    let second = entry("default", "web.example.com", "", two)
        .replace("name: web,", "name: web-8080,")
        .replace("number: 80,", "number: 8080,");
    let world = World::of_file(&(entry("default", "web.example.com", "", one) + &second)).await;
    for (uri, expected) in [("http://web.example.com/", "one"), ("http://web.example.com:8080/", "two")] {
        let answer = world.get(uri).await.unwrap();
        assert!(answer.body.starts_with(expected), "{uri}: {answer:?}");
    }
}

/// Neither kind can have every host, so that a wrong one of them governs none but those that it names.
#[tokio::test]
async fn a_wrong_object_for_all_hosts_takes_nobody_s_services_away() {
    let (up, named) = (server("up").await, server("named").await);
    let services = entry("default", "web.example.com", "", up)
        + &entry("default", "podinfo.example.com", "", named).replace("name: web,", "name: podinfo,");
    let gateway = virtual_service(
        "all",
        "  hosts: ['*', podinfo.example.com]\n  gateways: [gw, mesh]\n  http: [{directResponse: {status: 403}}]",
    );
    let everything = entry("team-x", "'*'", "", up).replace("name: web,", "name: all,");
    for (wrong, of_named) in [(gateway.as_str(), 503), (&everything, 200)] {
        let world = World::of_file(&format!("{services}{wrong}")).await;
        assert!(world.get("http://web.example.com/").await.unwrap().body.starts_with("up"), "{wrong}");
        assert_eq!(world.get("http://podinfo.example.com/").await.unwrap().status, of_named, "{wrong}");
        let error = world.get("http://elsewhere.invalid/").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectFailure, "it passes by ALLOW_ANY: {error:#}");
    }
}

/// ALLOW_ANY lets it pass, so that the resolver is who knows nothing of it.
#[tokio::test]
async fn a_mistyped_host_is_told_from_one_of_the_mesh() {
    let world = World::of_file(&entry("default", "web.invalid", "", server("one").await)).await;
    let error = world.get("http://wbe.invalid/").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectFailure);
    let expected = "route allow_any: cluster PassthroughCluster: endpoint wbe.invalid:80, a host that no object describes \
                    (outboundTrafficPolicy ALLOW_ANY): cannot connect to wbe.invalid:80";
    assert_eq!(error.to_string(), expected);
}
