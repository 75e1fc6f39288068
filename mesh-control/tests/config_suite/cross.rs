//! What is said of objects that do not fit together, with its place.

use mesh_control::analysis::validate;
use mesh_control::config::diagnostic::Severity;
use mesh_control::config::{Source, file};

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: two}
spec: {selector: {app: two}, ports: [{port: 8080, name: http}, {port: 9090, name: admin}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec: {host: web, subsets: [{name: v1, labels: {v: '1'}}]}
";

fn check(text: &str, expected: &[&str]) {
    let found = validate([("0-services.yaml", SERVICES), ("t.yaml", text)]);
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, expected);
}

fn vs(http: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  hosts: [web]\n  http:\n{http}"
    )
}

#[test]
fn what_fits_together_is_not_mentioned() {
    check(&vs("  - route: [{destination: {host: web, subset: v1, port: {number: 80}}}]\n"), &[]);
}

#[test]
fn destinations_that_do_not_exist_are_named() {
    check(
        &vs("  - route: [{destination: {host: nobody}}]\n"),
        &[
            "t.yaml:7:34: error[unknown-reference]: VirtualService default/web: http[0].route[0].destination.host: no service is called nobody.default.svc.cluster.local",
        ],
    );
    check(
        &vs("  - route: [{destination: {host: web.default}}]\n"),
        &[
            "t.yaml:7:34: error[unknown-reference]: VirtualService default/web: http[0].route[0].destination.host: no service is called web.default; web.default.svc.cluster.local is",
        ],
    );
    check(
        &vs("  - route: [{destination: {host: web, subset: v9}}]\n"),
        &[
            "t.yaml:7:47: error[unknown-reference]: VirtualService default/web: http[0].route[0].destination.subset: `v9` is no subset: web.default.svc.cluster.local has the subsets v1; did you mean `v1`?",
        ],
    );
    check(
        &vs("  - route: [{destination: {host: web, port: {number: 81}}}]\n"),
        &[
            "t.yaml:7:45: error[unknown-reference]: VirtualService default/web: http[0].route[0].destination.port: web.default.svc.cluster.local has no port 81, only 80",
        ],
    );
    // Of several ports, the one that is being addressed is taken; here there is none of that number.
    check(
        &vs("  - route: [{destination: {host: two}}]\n"),
        &[
            "t.yaml:7:27: error[unknown-reference]: VirtualService default/web: http[0].route[0].destination.port: two.default.svc.cluster.local has no port 80, only 8080, 9090",
        ],
    );
}

#[test]
fn a_mistyped_name_is_answered_with_the_one_that_was_meant() {
    let elsewhere = "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {ports: [{port: 80, name: http}]}\n---\n\
                     apiVersion: v1\nkind: Service\nmetadata: {name: own, namespace: shop, annotations: {networking.istio.io/exportTo: '.'}}\nspec: {ports: [{port: 80, name: http}]}\n";
    for (destination, expected) in [
        ("{host: wbe}", "; did you mean `web`?"),
        ("{host: web, subset: v2}", "; did you mean `v1`?"),
        (
            "{host: cart}",
            "no service is called cart.default.svc.cluster.local; did you mean `cart.shop.svc.cluster.local`?",
        ),
        ("{host: cart.shpo.svc.cluster.local}", "; did you mean `cart.shop.svc.cluster.local`?"),
        ("{host: carts.shop.svc.cluster.local}", "; did you mean `cart.shop.svc.cluster.local`?"),
        (
            "{host: own.shop.svc.cluster.local}",
            "Service shop/own (elsewhere.yaml:6) is not exported to namespace default",
        ),
        ("{host: something-else}", "no service is called something-else.default.svc.cluster.local"),
    ] {
        let text = vs(&format!("  - route: [{{destination: {destination}}}]\n"));
        let found = validate([("0.yaml", SERVICES), ("elsewhere.yaml", elsewhere), ("t.yaml", text.as_str())]);
        let said: Vec<&str> = found.iter().map(|finding| finding.message.as_str()).collect();
        assert_eq!(said.len(), 1, "{destination}: {said:?}");
        assert!(said[0].ends_with(expected), "{destination}: {said:?}");
    }
}

#[test]
fn a_host_that_is_nearly_that_of_a_service_is_named() {
    let here_alone = |host: &str| {
        vs("  - route: [{destination: {host: web}}]\n").replace("hosts: [web]", &format!("hosts: [{host}]"))
    };
    check(
        &here_alone("wbe"),
        &[
            "t.yaml:5:11: warning[unknown-reference]: VirtualService default/web: hosts[0]: no service is called wbe.default.svc.cluster.local, which is here by this rule alone; did you mean `web`?",
        ],
    );
    check(&here_alone("shop.example"), &[]);
}

#[test]
fn what_no_request_meets_is_named() {
    let to_web = "route: [{destination: {host: web}}]";
    for (rule, said) in [
        (
            "fault: {abort: {httpStatus: 503}}",
            "http[0].fault.abort: without effect: it hits no request, as `percentage` is missing",
        ),
        (
            "fault: {delay: {fixedDelay: 5s}}",
            "http[0].fault.delay: without effect: it hits no request, as `percentage` is missing",
        ),
        (
            "match: [{port: 9999}]",
            "http[0].match[0].port: no request meets it: the hosts of this object have no port 9999, only 80",
        ),
        (
            "match: [{uri: {prefix: price}}]",
            "http[0].match[0].uri: no request meets it: a path begins with /, and `price` does not",
        ),
        (
            "match: [{uri: {exact: ''}}]",
            "http[0].match[0].uri: no request meets it: no path is empty: `/` is the shortest",
        ),
        (
            "match: [{method: {exact: ''}}]",
            "http[0].match[0].method: no request meets it: no request has an empty method",
        ),
        (
            "match: [{method: {exact: get}}]",
            "http[0].match[0].method: no request meets it: methods are told apart by case, and this one is GET",
        ),
    ] {
        let found = validate([("0-services.yaml", SERVICES), ("t.yaml", &vs(&format!("  - {rule}\n    {to_web}\n")))]);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(found.len() == 1 && found[0].ends_with(said) && found[0].contains("warning"), "{rule}: {found:?}");
    }
    for rule in [
        "fault: {abort: {httpStatus: 503, percentage: {value: 0}}}",
        "match: [{port: 80, uri: {exact: '*'}, method: {exact: MY-OWN}}]",
    ] {
        check(&vs(&format!("  - {rule}\n    {to_web}\n")), &[]);
    }
}

#[test]
fn a_try_that_outlives_its_request_and_rules_of_one_name_are_named() {
    let tries = |timeout: &str| {
        vs(&format!(
            "  - retries: {{attempts: 2, perTryTimeout: 3s}}\n{timeout}    route: [{{destination: {{host: web}}}}]\n"
        ))
    };
    check(
        &tries("    timeout: 2s\n"),
        &[
            "t.yaml:7:5: warning[ignored]: VirtualService default/web: http[0].retries.perTryTimeout: without effect: `timeout` ends the whole request after 2s, and each try with it",
        ],
    );
    for timeout in ["", "    timeout: 0s\n", "    timeout: 3s\n"] {
        check(&tries(timeout), &[]);
    }
    let named = |names: [&str; 2]| {
        let [one, two] = names.map(|name| format!("name: '{name}', route: [{{destination: {{host: web}}}}]"));
        vs(&format!("  - {{match: [{{uri: {{prefix: /a}}}}], {one}}}\n  - {{{two}}}\n"))
    };
    check(
        &named(["a", "a"]),
        &[
            "t.yaml:8:5: warning[duplicate]: VirtualService default/web: http[1].name: http[0] has the same name: logs and `explain` do not tell them apart",
        ],
    );
    check(&named(["a", "b"]), &[]);
    check(&named(["", ""]), &[]);
}

#[test]
fn the_same_destination_twice_is_named() {
    check(
        &vs(
            "  - route:\n    - {destination: {host: web}, weight: 1}\n    - {destination: {host: web, subset: v1}, weight: 1}\n    - {destination: {host: web.default.svc.cluster.local}, weight: 1}\n",
        ),
        &[
            "t.yaml:10:21: warning[duplicate]: VirtualService default/web: http[0].route[2].destination: the same destination as route[0]: their weights add up",
        ],
    );
}

#[test]
fn a_subset_that_only_clients_of_another_namespace_have_is_told_as_such() {
    let rule = |namespace: &str, export_to: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: two, namespace: {namespace}}}\n\
             spec: {{host: two.default.svc.cluster.local, exportTo: [{export_to}], subsets: [{{name: v1, labels: {{v: '1'}}}}]}}\n---\n"
        )
    };
    let routed = vs("  - route: [{destination: {host: two, port: {number: 8080}, subset: v1}}]\n");
    for (rules, expected) in [
        (rule("edge", "'*'"), "`v1` is no subset for clients of namespace default, only for those of edge"),
        (rule("default", "'.'"), ""),
        (String::new(), "`v1` is no subset: no DestinationRule defines a subset of two.default.svc.cluster.local"),
    ] {
        let found = validate([("0-services.yaml", SERVICES), ("t.yaml", (rules + &routed).as_str())]);
        let said: Vec<String> = found.into_iter().map(|finding| finding.message).collect();
        let expected: Vec<&str> = [expected].into_iter().filter(|text| !text.is_empty()).collect();
        assert_eq!(said, expected);
    }
}

#[test]
fn a_subset_is_looked_for_where_the_clients_are_that_the_rules_are_told_to() {
    let rule = |name: &str, export_to: &str, subset: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}}}\nspec: {{host: \
             two.default.svc.cluster.local, exportTo: [{export_to}], subsets: [{{name: {subset}, labels: {{v: '1'}}}}]}}\n---\n"
        )
    };
    let routed = |export_to: &str, subset: &str| {
        vs(&format!("  - route: [{{destination: {{host: two, port: {{number: 8080}}, subset: {subset}}}}}]\n"))
            .replace("  http:", &format!("  exportTo: [{export_to}]\n  http:"))
    };
    let rules = rule("a", "foo", "v1") + &rule("b", "bar", "v2");
    for (export_to, subset, expected) in [
        ("foo", "v1", ""),
        ("bar", "v2", ""),
        ("'*'", "v1", "warning: `v1` is no subset for clients of namespace bar, only for those of default, foo"),
        ("'*'", "v2", "warning: `v2` is no subset for clients of namespace default, foo, only for those of bar"),
        ("foo, bar", "v2", "warning: `v2` is no subset for clients of namespace foo, only for those of bar"),
        ("foo", "v2", "error: `v2` is no subset: two.default.svc.cluster.local has the subsets v1; did you mean `v1`?"),
        (
            "foo, bar",
            "v9",
            "error: `v9` is no subset: two.default.svc.cluster.local has the subsets v2; did you mean `v2`?",
        ),
    ] {
        let text = rules.clone() + &routed(export_to, subset);
        let found = validate([("0-services.yaml", SERVICES), ("t.yaml", text.as_str())]);
        let of_subset = found.into_iter().filter(|finding| finding.message.contains("no subset"));
        let said: Vec<String> =
            of_subset.map(|one| format!("{:?}: {}", one.severity, one.message).to_ascii_lowercase()).collect();
        assert_eq!(said.join("\n"), expected, "{export_to} {subset}");
    }
}

#[test]
fn a_mistake_hides_nothing_that_is_to_be_said_of_other_objects() {
    let mistake = "apiVersion: v1\nkind: Service\nmetadata: {name: lost}\nspec: {prots: []}\n---\n";
    let routed = vs("  - route: [{destination: {host: nobody}}]\n  - route: [{destination: {host: lost}}]\n");
    let found = validate([("0-services.yaml", SERVICES), ("t.yaml", (mistake.to_owned() + &routed).as_str())]);
    let said: Vec<String> = found.iter().map(ToString::to_string).collect();
    let one = |part: &str| assert_eq!(said.iter().filter(|line| line.contains(part)).count(), 1, "{part}: {said:#?}");
    one("prots: unknown field");
    one("no service is called nobody.default.svc.cluster.local");
    one("never reached: http[0] matches every request");
    // It is there, and wrong: that is said once.
    assert!(!said.iter().any(|line| line.contains("no service is called lost")), "{said:#?}");
}

/// As Istio has it.
#[test]
fn inside_of_the_mesh_a_rule_is_for_hosts_that_it_names() {
    let rule = |gateways: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: a}}\nspec: {{hosts: ['*']{gateways}, http: [{{redirect: {{uri: /}}}}]}}\n"
        )
    };
    for (gateways, is_error) in [("", true), (", gateways: [mesh, g]", true), (", gateways: [g]", false)] {
        let found = validate([("t.yaml", rule(gateways).as_str())]);
        let is_told = found.iter().any(|one| {
            one.to_string().contains("error[invalid-value]: VirtualService default/a: hosts[0]: `*` is for gateways")
        });
        assert_eq!(is_told, is_error, "{gateways}: {found:?}");
    }
}

#[test]
fn rules_without_effect_are_named() {
    check(
        &vs("  - route: [{destination: {host: web}}]\n  - match: [{uri: {exact: /late}}]\n    redirect: {uri: /}\n"),
        &[
            "t.yaml:8:5: warning[conflict]: VirtualService default/web: http[1]: never reached: http[0] matches every request",
        ],
    );
    check(
        &vs("  - match: [{uri: {prefix: /}, sourceLabels: {a: b}}]\n    redirect: {uri: /a}\n  - redirect: {uri: /}\n"),
        &[],
    );
    check(
        &vs("  - route:\n    - {destination: {host: web}, weight: 1}\n    - {destination: {host: web, subset: v1}}\n"),
        &["t.yaml:9:7: info[ignored]: VirtualService default/web: http[0].route[1].weight: 0, so it gets no request"],
    );
    check(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: orphan}\nspec: {http: [{redirect: {uri: /}}]}\n",
        &[
            "t.yaml:1:1: warning[unknown-reference]: VirtualService default/orphan: hosts: it has no hosts, and no other object delegates to it: it has no effect",
        ],
    );
    check(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: lost}\nspec: {host: nobody}\n",
        &[
            "t.yaml:4:14: warning[unknown-reference]: DestinationRule default/lost: host: no service is called nobody.default.svc.cluster.local",
        ],
    );
    check(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm}\nspec: {address: vm.example.com, labels: {app: web}}\n",
        &[
            "t.yaml:4:17: warning[unknown-reference]: WorkloadEntry default/vm: address: a name, but web.default.svc.cluster.local takes addresses only; it is no endpoint",
        ],
    );
}

#[test]
fn what_is_written_without_effect_is_named() {
    let said = |text: &str, expected: &str| {
        let found = validate([("0-services.yaml", SERVICES), ("t.yaml", text)]);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        let line = found.iter().find(|line| line.starts_with("t.yaml:") && line.contains(expected));
        assert!(line.is_some(), "{text}: {found:?}");
    };
    let empty = "warning[ignored]: VirtualService default/web: http[0].";
    said(&vs("  - {redirect: {uri: '', port: 81}}\n"), &format!("{empty}redirect.uri: empty"));
    said(
        &vs("  - {rewrite: {uri: '', authority: a}, route: [{destination: {host: web}}]}\n"),
        &format!("{empty}rewrite.uri: empty"),
    );
    let service = |spec: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: other}}\nspec: {spec}\n");
    said(&service("{ports: [{port: 80, appProtocol: HTTPX}]}"), "ports[0].appProtocol: `HTTPX` is no protocol");
    let alias = service("{type: ExternalName, externalName: web, ports: [{port: 80}]}");
    said(&alias, "Service default/other: ports: without effect");
    let object = |kind: &str, spec: &str| {
        format!("---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: on-alias}}\nspec: {spec}\n")
    };
    let rules = object("VirtualService", "{hosts: [other], http: [{directResponse: {status: 200}}]}");
    said(&format!("{alias}{rules}"), "hosts[0]: other.default.svc.cluster.local is an alias");
    let rule = object("DestinationRule", "{host: other}");
    said(&format!("{alias}{rule}"), "host: other.default.svc.cluster.local is an alias");
    let passthrough = object("DestinationRule", "{host: web, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}");
    said(&passthrough, "trafficPolicy.loadBalancer.simple: not supported yet: PASSTHROUGH");
    said(
        &object("ServiceEntry", "{hosts: [x.com], ports: [{number: 1, name: a, protocol: UDP}]}"),
        "ports[0].protocol: not supported yet: UDP",
    );
    // One alternative of a delegate that fits no rule of its root takes the whole of it out.
    let root = vs("  - {match: [{uri: {prefix: /shop}}], delegate: {name: on-alias}}\n");
    let child = "{http: [{match: [{uri: {prefix: /shop/a}}, {uri: {prefix: /b}}], directResponse: {status: 200}}]}";
    said(
        &format!("{root}{}", object("VirtualService", child)),
        "http[0].delegate: http[0] of VirtualService default/on-alias matches requests that this rule does not",
    );
}

#[test]
fn an_authority_that_is_none_is_one_finding_wherever_it_is_written() {
    for authority in ["''", "'%REQ(x)%'", "a/b"] {
        for http in [
            format!("{{headers: {{request: {{set: {{Host: {authority}}}}}}}, redirect: {{uri: /}}}}"),
            format!(
                "{{route: [{{destination: {{host: web}}, headers: {{request: {{add: {{Host: {authority}}}}}}}}}]}}"
            ),
        ] {
            let text = vs(&format!("  - {http}\n"));
            // As they are found: what is said twice is put together later.
            let parsed = file::read(Source { name: "t.yaml".into(), text: text.as_str().into() });
            let found: Vec<_> = parsed.diagnostics.iter().filter(|finding| finding.rejects_object()).collect();
            let [only] = found.as_slice() else { panic!("{http}: {found:?}") };
            assert!(only.to_string().contains("is not an authority"), "{http}: {only}");
        }
    }
}

#[test]
fn what_istio_itself_refuses_is_refused() {
    for (http, expected) in [
        ("  - {}\n", "http[0]: one of `route`, `redirect`"),
        ("  - {route: [{destination: {host: web}}], redirect: {uri: /}}\n", "only one of `route`, `redirect`"),
        ("  - route: [{destination: {host: web}, weight: -1}]\n", "http[0].route[0].weight: less than 0"),
        (
            "  - route: [{destination: {host: web}}, {destination: {host: web}}]\n",
            "no destination has a weight above 0",
        ),
        ("  - {redirect: {redirectCode: 200}}\n", "http[0].redirect.redirectCode: 200 is none of"),
        ("  - {directResponse: {status: 99}}\n", "http[0].directResponse.status: 99 is not"),
        ("  - {directResponse: {status: 200, body: {bytes: '?'}}}\n", "not base64"),
        (
            "  - {match: [{uri: {regex: '('}}], redirect: {uri: /}}\n",
            "match[0].uri.regex: `(` is not a regular expression: a group without an end",
        ),
        ("  - {match: [{uri: {regex: 'a(?=b)'}}], redirect: {uri: /}}\n", "`a(?=b)` is not a regular expression: "),
        ("  - {match: [{uri: {exact: a, prefix: b}}], redirect: {uri: /}}\n", "only one of exact, prefix and regex"),
        ("  - {match: [{headers: {'a b': {}}}], redirect: {uri: /}}\n", "`a b` is not the name of a header"),
        (
            "  - {headers: {request: {set: {'x': \"a\\nb\"}}}, redirect: {uri: /}}\n",
            "set[x]: `a\\nb`: not a header value",
        ),
        ("  - {headers: {request: {remove: [Host]}}, redirect: {uri: /}}\n", "the authority cannot be removed"),
        ("  - {retries: {attempts: 1, retryOn: sometimes}, redirect: {uri: /}}\n", "`sometimes` is not a condition"),
        (
            "  - {fault: {abort: {percentage: {value: 1}}}, redirect: {uri: /}}\n",
            "exactly one of `httpStatus` and `grpcStatus`",
        ),
        ("  - {fault: {abort: {grpcStatus: NOPE}}, redirect: {uri: /}}\n", "`NOPE` is not a gRPC status"),
        (
            "  - {fault: {delay: {fixedDelay: 1s, percentage: {value: 101}}}, redirect: {uri: /}}\n",
            "101 is not between 0 and 100",
        ),
        ("  - {timeout: 5, redirect: {uri: /}}\n", "http[0].timeout: expected a duration"),
        ("  - {redirect: {}}\n", "http[0].redirect: one of `uri`, `prefixRewrite`"),
        ("  - {redirect: {redirectCode: 302}}\n", "http[0].redirect: one of `uri`, `prefixRewrite`"),
        ("  - {redirect: {uri: ''}}\n", "http[0].redirect: one of `uri`, `prefixRewrite`"),
        ("  - {redirect: {scheme: ftp}}\n", "http[0].redirect.scheme: `ftp` is neither http nor https"),
        ("  - {redirect: {uri: v2}}\n", "http[0].redirect.uri: `v2` is not a path"),
        ("  - {redirect: {prefixRewrite: '/a b'}}\n", "http[0].redirect.prefixRewrite: `/a b` is not a path"),
        ("  - {redirect: {authority: 'a b'}}\n", "http[0].redirect.authority: `a b` is not an authority"),
        ("  - {fault: {abort: {httpStatus: 500}}, redirect: {uri: /}}\n", "only one of `fault` and `redirect`"),
        ("  - {rewrite: {uri: /x}, redirect: {uri: /}}\n", "only one of `rewrite` and `redirect`"),
        ("  - {rewrite: {uri: /x}, directResponse: {status: 200}}\n", "only one of `rewrite` and `directResponse`"),
        (
            "  - {mirror: {host: web}, mirrors: [{destination: {host: web}}], redirect: {uri: /}}\n",
            "only one of `mirror`",
        ),
        (
            "  - {rewrite: {}, route: [{destination: {host: web}}]}\n",
            "http[0].rewrite: one of `uri`, `uriRegexRewrite`",
        ),
        ("  - {rewrite: {uri: ''}, route: [{destination: {host: web}}]}\n", "http[0].rewrite: one of `uri`"),
        ("  - {rewrite: {uri: ' '}, route: [{destination: {host: web}}]}\n", "http[0].rewrite.uri: ` ` is not a path"),
        ("  - {rewrite: {uri: v2}, route: [{destination: {host: web}}]}\n", "http[0].rewrite.uri: `v2` is not a path"),
        (
            "  - {rewrite: {uri: /a b}, route: [{destination: {host: web}}]}\n",
            "http[0].rewrite.uri: `/a b` is not a path",
        ),
        ("  - {rewrite: {uri: '/a#b'}, route: [{destination: {host: web}}]}\n", "`/a#b` is not a path"),
        ("  - {rewrite: {authority: a/b}, route: [{destination: {host: web}}]}\n", "`a/b` is not an authority"),
        (
            "  - {rewrite: {uri: /x, uriRegexRewrite: {match: a, rewrite: b}}, route: [{destination: {host: web}}]}\n",
            "only one of `uri` and `uriRegexRewrite`",
        ),
        (
            "  - {rewrite: {uriRegexRewrite: {match: a}}, route: [{destination: {host: web}}]}\n",
            "uriRegexRewrite.rewrite: must not be empty",
        ),
        (
            "  - {rewrite: {uriRegexRewrite: {match: a, rewrite: '\\1'}}, route: [{destination: {host: web}}]}\n",
            "no group 1 in the pattern",
        ),
        (
            "  - {rewrite: {authority: a}, headers: {request: {set: {Host: b}}}, route: [{destination: {host: web}}]}\n",
            "the authority can be set only once",
        ),
        ("  - {headers: {response: {set: {Host: b}}}, redirect: {uri: /}}\n", "a response has no authority"),
        ("  - {retries: {retryOn: 5xx}, route: [{destination: {host: web}}]}\n", "0 turns retries off"),
        ("  - {headers: {response: {set: {X-A: a, x-a: b}}}, redirect: {uri: /}}\n", "`x-a` is set twice"),
        ("  - {fault: {}, route: [{destination: {host: web}}]}\n", "http[0].fault: one of `delay` and `abort`"),
        ("  - {route: [{destination: {host: '*'}}]}\n", "http[0].route[0].destination.host: `*` is not a host"),
        ("  - {match: [{port: 0}], redirect: {uri: /}}\n", "http[0].match[0].port: 0 is not between"),
        (
            "  - {retries: {attempts: 1, perTryTimeout: 0s}, route: [{destination: {host: web}}]}\n",
            "http[0].retries.perTryTimeout: less than 1ms",
        ),
        (
            "  - {fault: {delay: {fixedDelay: 0s, percentage: {value: 1}}}, route: [{destination: {host: web}}]}\n",
            "http[0].fault.delay.fixedDelay: less than 1ms",
        ),
        (
            "  - {fault: {delay: {fixedDelay: 1s, percent: 101}}, route: [{destination: {host: web}}]}\n",
            "http[0].fault.delay.percent: not from 0 to 100",
        ),
        (
            "  - {fault: {abort: {httpStatus: 500, percent: -1}}, route: [{destination: {host: web}}]}\n",
            "http[0].fault.abort.percent: not from 0 to 100",
        ),
        (
            "  - {fault: {abort: {httpStatus: 500, percentage: {value: 0.00001}}}, route: [{destination: {host: web}}]}\n",
            "0.00001 hits nothing: 0.0001 is the least",
        ),
    ] {
        let text = vs(http);
        let found = validate([("t.yaml", text.as_str())]);
        let line = found.iter().map(ToString::to_string).find(|line| line.contains(expected));
        assert!(line.is_some_and(|line| line.starts_with("t.yaml:7:") && line.contains("error[")), "{http}: {found:?}");
    }
    for (spec, expected) in [
        ("ServiceEntry\nmetadata: {name: a}\nspec: {hosts: ['*']}", "a bare `*` is not a host"),
        (
            "ServiceEntry\nmetadata: {name: a}\nspec: {hosts: ['*.x.com'], resolution: DNS}",
            "a wildcard has no addresses in DNS",
        ),
        (
            "ServiceEntry\nmetadata: {name: a}\nspec: {hosts: [x.com], resolution: STATIC, endpoints: [{address: y.com}]}",
            "is not an IP address, as STATIC needs",
        ),
        (
            "ServiceEntry\nmetadata: {name: a}\nspec: {hosts: [x.com], ports: [{number: 1, name: a}, {number: 1, name: b}]}",
            "port 1 is defined twice",
        ),
        (
            "ServiceEntry\nmetadata: {name: a}\nspec: {hosts: [x.com], endpoints: [{address: 1.2.3.4}], resolution: STATIC, workloadSelector: {labels: {a: b}}}",
            "only one of `endpoints` and `workloadSelector`",
        ),
        (
            "ServiceEntry\nmetadata: {name: a}\nspec: {hosts: [x.com], resolution: MAGIC}",
            "`MAGIC` is none of NONE, STATIC",
        ),
        (
            "DestinationRule\nmetadata: {name: a}\nspec: {host: x, subsets: [{name: v1}, {name: v1}]}",
            "subset `v1` is defined twice",
        ),
        (
            "DestinationRule\nmetadata: {name: a}\nspec: {host: x, trafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {}}}}",
            "only one of `simple` and `consistentHash`",
        ),
        (
            "DestinationRule\nmetadata: {name: a}\nspec: {host: x, trafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}}",
            "connectionPool.tcp.maxConnections: less than 0",
        ),
        (
            "DestinationRule\nmetadata: {name: a}\nspec: {host: x, trafficPolicy: {connectionPool: {http: {http1MaxPendingRequests: -1}}}}",
            "connectionPool.http.http1MaxPendingRequests: less than 0",
        ),
        (
            "DestinationRule\nmetadata: {name: a}\nspec: {host: x, trafficPolicy: {connectionPool: {http: {http2MaxRequests: -1}}}}",
            "connectionPool.http.http2MaxRequests: less than 0",
        ),
        (
            "DestinationRule\nmetadata: {name: a}\nspec: {host: x, trafficPolicy: {connectionPool: {http: {maxRetries: -1}}}}",
            "connectionPool.http.maxRetries: less than 0",
        ),
        (
            "DestinationRule\nmetadata: {name: a}\nspec: {host: x, trafficPolicy: {outlierDetection: {consecutiveLocalOriginFailures: 2}}}",
            "consecutiveLocalOriginFailures: needs `splitExternalLocalOriginErrors: true`",
        ),
        (
            "DestinationRule\nmetadata: {name: a}\nspec: {host: x, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: \
             [{from: 'r1/*', to: {'r2/*': 90, '*': 10}}]}}}}",
            "distribute[0].to: `*` and `r2/*` cover some of the same",
        ),
        (
            "DestinationRule\nmetadata: {name: a}\nspec: {host: x, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: \
             [{from: r1, to: {'r1/z1/*': 80, 'r1/*': 20}}]}}}}",
            "distribute[0].to: `r1/*` and `r1/z1/*` cover some of the same",
        ),
        (
            "DestinationRule\nmetadata: {name: a}\nspec: {host: x, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: \
             [{from: '*', to: {r1: 100}}, {from: r1/z1, to: {r1: 100}}]}}}}",
            "distribute[1].from: `*` covers some of the same, and is written before",
        ),
        (
            "DestinationRule\nmetadata: {name: a}\nspec: {host: x, trafficPolicy: {loadBalancer: {localityLbSetting: {failover: \
             [{from: r1, to: r2}, {from: r1, to: r3}]}}}}",
            "failover[1].from: written before",
        ),
        ("WorkloadEntry\nmetadata: {name: a}\nspec: {labels: {a: b}}", "field `address` is missing"),
        (
            "ServiceEntry\nmetadata: {name: a}\nspec: {hosts: [x.com], ports: [{number: 1, name: a, protocol: HTTPX}]}",
            "`HTTPX` is none of tcp, udp",
        ),
        (
            "VirtualService\nmetadata: {name: a}\nspec: {gateways: [mesh], http: [{directResponse: {status: 200}}]}",
            "without `hosts` it is a delegate",
        ),
        (
            "VirtualService\nmetadata: {name: a}\nspec: {hosts: ['a b'], http: [{directResponse: {status: 200}}]}",
            "`a b` is not a host",
        ),
        ("VirtualService\nmetadata: {name: a}\nspec: {hosts: [x]}", "one of `http`, `tls` and `tcp` is needed"),
        ("VirtualService\nmetadata: {name: A_b}\nspec: {hosts: [x], http: []}", "`A_b` is not a name"),
        ("VirtualService\nmetadata: {}\nspec: {hosts: [x], http: []}", "field `name` is missing"),
    ] {
        let text = format!("apiVersion: networking.istio.io/v1\nkind: {spec}\n");
        let found = validate([("t.yaml", text.as_str())]);
        assert!(
            found.iter().any(|finding| finding.rejects_object() && finding.to_string().contains(expected)),
            "{spec}: {found:?}"
        );
    }
}

#[test]
fn delegation_that_multiplies_is_refused() {
    let conditions: String = (0..200).map(|n| format!("{{uri: {{prefix: /{n}}}}}, ")).collect();
    let object = |name: &str, hosts: &str, rule: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec: {{{hosts}http: [{rule}]}}\n---\n"
        )
    };
    let root = object("root", "hosts: [web], ", &format!("{{match: [{conditions}], delegate: {{name: child}}}}"));
    let headers: String = (0..200).map(|n| format!("{{headers: {{h: {{exact: '{n}'}}}}}}, ")).collect();
    let child = object("child", "", &format!("{{match: [{headers}], route: [{{destination: {{host: web}}}}]}}"));
    let found = validate([("0-services.yaml", SERVICES), ("t.yaml", &format!("{root}{child}"))]);
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("error[invalid-value]: VirtualService default/root: http[0].delegate: with"),
        "{found:?}"
    );
}

fn destination_rule(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

#[test]
fn tls_that_a_port_keeps_or_a_narrower_rule_hides_is_told_and_so_is_a_port_that_nobody_has() {
    let found = |text: &str| -> Vec<String> {
        let found = validate([("0-services.yaml", SERVICES), ("t.yaml", text)]);
        found.iter().map(ToString::to_string).filter(|line| line.contains("warning")).collect()
    };
    let only = |text: &str, part: &str| {
        let lines = found(text);
        assert_eq!(lines.iter().filter(|line| line.contains(part)).count(), 1, "{part}: {lines:?}");
    };
    let of_port = "portLevelSettings: [{port: {number: 8080}, loadBalancer: {simple: RANDOM}}]";
    let kept = "trafficPolicy.portLevelSettings[0]: says nothing of tls: that of the level above stays in force";
    let tls = "tls: {mode: ISTIO_MUTUAL}";
    only(&destination_rule("two", "default", &format!("{{host: two, trafficPolicy: {{{tls}, {of_port}}}}}")), kept);
    let in_subset = format!("subsets: [{{name: a, trafficPolicy: {{{of_port}}}}}]");
    only(&destination_rule("two", "default", &format!("{{host: two, trafficPolicy: {{{tls}}}, {in_subset}}}")), kept);

    let elsewhere = "{host: two, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}}";
    let no_port = "portLevelSettings[0]: two.default.svc.cluster.local has no port 80";
    only(&destination_rule("two", "default", elsewhere), no_port);

    let wide = destination_rule("all", "istio-system", &format!("{{host: '*.local', trafficPolicy: {{{tls}}}}}"));
    let narrow = destination_rule("two", "default", "{host: two, trafficPolicy: {loadBalancer: {simple: RANDOM}}}");
    only(
        &format!("{wide}---\n{narrow}"),
        "default/two: trafficPolicy: says nothing of tls and takes the place of DestinationRule istio-system/all",
    );
    let silent = destination_rule("two", "default", "{host: two, trafficPolicy: {loadBalancer: {simple: RANDOM}}}");
    assert!(found(&silent).is_empty(), "{:?}", found(&silent));
}

fn peer_authentication(name: &str, spec: &str) -> String {
    format!("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

#[test]
fn a_peer_authentication_that_never_counts_or_names_a_port_that_nobody_has_is_told() {
    let has = |text: &str, part: &str| {
        let found: Vec<String> =
            validate([("0-services.yaml", SERVICES), ("t.yaml", text)]).iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|line| line.contains(part)), "{part}: {found:?}");
    };
    let two =
        [peer_authentication("a", "{mtls: {mode: PERMISSIVE}}"), peer_authentication("b", "{mtls: {mode: STRICT}}")];
    has(&two.join("---\n"), "PeerAuthentication default/a: without effect: PeerAuthentication default/b");
    let of_port = "{selector: {matchLabels: {app: two}}, portLevelMtls: {80: {mode: STRICT}}}";
    has(
        &peer_authentication("two", of_port),
        "portLevelMtls.80: no service of these workloads has the target port 80, only 8080, 9090",
    );
}

#[test]
fn objects_of_istio_or_of_a_mistyped_group_are_not_passed_over_as_notes() {
    for (api_version, kind, severity) in [
        ("authentication.istio.io/v1alpha1", "MeshPolicy", "error"),
        ("rbac.istio.io/v1alpha1", "ClusterRbacConfig", "error"),
        ("security.istio/v1", "AuthorizationPolicy", "error"),
        ("securiti.istio.io/v1", "PeerAuthentication", "error"),
        ("config.istio.io/v1alpha2", "rule", "warning"),
        ("networking.istio/v1", "VirtualService", "error"),
        ("appmesh.k8s.aws/v1beta2", "VirtualService", "warning"),
        ("apps/v1", "Deployment", "info"),
    ] {
        let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{}}\n");
        let found: Vec<String> = validate([("t.yaml", text.as_str())]).iter().map(ToString::to_string).collect();
        let fits = |line: &String| line.contains(&format!(" {severity}[")) && line.contains(kind);
        assert!(found.iter().any(fits), "{found:?}");
    }
}

#[test]
fn a_preference_for_localities_of_names_that_are_looked_up_is_told_not_to_count() {
    let objects = |resolution: &str, setting: &str| {
        let address = if resolution == "DNS" { "a.example.org" } else { "127.0.0.1" };
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: far, namespace: shop}}\n\
             spec: {{hosts: [far.example.com], resolution: {resolution}, ports: [{{number: 80, name: http}}], endpoints: [{{address: {address}}}]}}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: far, namespace: shop}}\n\
             spec: {{host: far.example.com, trafficPolicy: {{loadBalancer: {{localityLbSetting: {setting}}}}}}}\n"
        )
    };
    let shares = "{distribute: [{from: a, to: {a: 100}}]}";
    for (resolution, setting, expected) in [("DNS", shares, 1), ("STATIC", shares, 0), ("DNS", "{enabled: false}", 0)] {
        let said = mesh_control::analysis::validate([("a.yaml", objects(resolution, setting).as_str())]);
        let field = Some("trafficPolicy.loadBalancer.localityLbSetting");
        let told = said.iter().filter(|one| one.field.as_deref() == field && one.message.contains("look the names"));
        assert_eq!(told.count(), expected, "{resolution} {setting}: {said:?}");
    }
}

#[test]
fn a_destination_that_is_whatever_is_called_is_told_of_hosts_that_are_none_of_it() {
    let entry = |resolution: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: apis}}\nspec: {{hosts: ['*.apis.example'], ports: \
             [{{number: 80, name: http, protocol: HTTP}}], resolution: {resolution}}}\n---\n"
        )
    };
    let rule = |host: &str, rest: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r}}\nspec:\n  hosts: ['{host}']\n  \
             gateways: [mesh, edge]\n  http:\n  - {rest}route: [{{destination: {{host: '*.apis.example'}}}}]\n"
        )
    };
    for (resolution, host, rest, is_told) in [
        ("NONE", "ext.example", "", true),
        ("DYNAMIC_DNS", "ext.example", "", true),
        ("STATIC", "ext.example", "", false),
        ("NONE", "*.apis.example", "", false),
        ("NONE", "maps.apis.example", "", false),
        ("NONE", "*.example", "", false),
        ("NONE", "ext.example", "match: [{gateways: [edge]}]\n    ", false),
    ] {
        let text = entry(resolution) + &rule(host, rest);
        let found = validate([("t.yaml", text.as_str())]);
        let told = found.iter().find(|finding| finding.message.contains("is the host that is called"));
        let place = told.map(|finding| (finding.severity, finding.line, finding.field.as_deref()));
        let expected = (Severity::Warning, 13, Some("http[0].route[0].destination.host"));
        assert_eq!(place, is_told.then_some(expected), "{text}");
    }
}
