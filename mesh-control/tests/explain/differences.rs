//! What changes between two versions of the files.

use std::fs;

use serde_json::json;

use crate::support::{EDGE, SHOP, answers, dir_of, rules, run};

const REQUESTS: [&str; 2] = [
    r#"{"id": "a", "source": {"namespace": "shop"}, "host": "reviews"}"#,
    r#"{"id": "b", "source": {"namespace": "shop"}, "host": "ratings:9080"}"#,
];

#[test]
fn an_answer_that_changes_is_shown_with_both_of_its_forms_and_the_exit_code_says_so() {
    let before = dir_of(SHOP);
    let after =
        dir_of(&format!("{SHOP}{}", rules("  - name: new\n    route: [{destination: {host: reviews, subset: v2}}]\n")));
    let against = ["--against", before.path().to_str().unwrap()];
    let (changes, code) = answers(after.path(), &REQUESTS, &against);
    assert_eq!((changes.len(), code), (1, Some(1)), "{changes:?}");
    assert_eq!((&changes[0]["id"], &changes[0]["changed"]), (&json!("a"), &json!(["clusters", "route"])));
    assert_eq!(changes[0]["before"]["clusters"][0]["subset"], json!(null));
    assert_eq!(changes[0]["after"]["clusters"][0]["subset"], "v2");
    let arguments = ["route", "test", "--config", ".", "--requests", "-", against[0], against[1]];
    let output = run(&arguments, after.path(), &REQUESTS.join("\n"));
    let expected = "a: GET reviews/ from shop\n  \
        - clusters: reviews.shop:80\n  \
        + clusters: reviews.shop:80 subset v2\n  \
        - route: default\n  \
        + route: new\n\
        1 of 2 answers change\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[test]
fn what_a_gateway_does_otherwise_is_shown_too() {
    let request = [
        r#"{"id": "a", "kind": "gateway", "gateway": "shop/public", "host": "shop.example"}"#,
        r#"{"id": "b", "kind": "gateway", "gateway": "shop/public", "host": "secure.example"}"#,
    ];
    let before = dir_of(&format!("{SHOP}{EDGE}"));
    let all = "  - name: all\n";
    let after = dir_of(&format!("{SHOP}{}", EDGE.replace(all, &format!("{all}    timeout: 3s\n"))));
    let against = ["--against", before.path().to_str().unwrap()];
    let (changes, code) = answers(after.path(), &request, &against);
    assert_eq!((changes.len(), code), (1, Some(1)), "{changes:?}");
    assert_eq!(changes[0]["request"], "GET shop.example/ at shop/public");
    assert_eq!((&changes[0]["changed"], &changes[0]["after"]["timeout"]), (&json!(["timeout"]), &json!("3s")));
}

/// Each of them changes no route.
#[test]
fn how_a_request_is_treated_on_its_way_is_compared_too() {
    let object = |kind: &str, spec: &str| {
        let (group, kind) = kind.split_once(' ').unwrap();
        format!("---\napiVersion: {group}\nkind: {kind}\nmetadata: {{name: a, namespace: shop}}\nspec: {spec}\n")
    };
    let routed = |more: &str| {
        format!("{SHOP}{}", rules(&format!("  - name: a\n    route: [{{destination: {{host: reviews}}}}]\n{more}")))
    };
    let with = |kind: &str, spec: &str| format!("{}{}", routed(""), object(kind, spec));
    let rule = |policy: &str| {
        with("networking.istio.io/v1 DestinationRule", &format!("{{host: reviews, trafficPolicy: {{{policy}}}}}"))
    };
    let named = "metadata: {name: reviews, namespace: shop}\nspec:\n  hosts:";
    let annotated = named.replace("shop}", "shop, annotations: {mesh-control/coalesce: get}}");
    let coalesced = routed("").replace(named, &annotated);
    let before = dir_of(&routed(""));
    let against = ["--against", before.path().to_str().unwrap()];
    for (after, field, part) in [
        (routed("    timeout: 3s\n"), "timeout", "3s"),
        (routed("    retries: {attempts: 5, perTryTimeout: 1s}\n"), "retry", "5"),
        (rule("loadBalancer: {simple: RANDOM}"), "balancer", "random"),
        (rule("outlierDetection: {consecutive5xxErrors: 3}"), "outlier_detection", "3"),
        (rule("connectionPool: {http: {http2MaxRequests: 7}}"), "circuit_breakers", "7"),
        (rule("connectionPool: {tcp: {tcpKeepalive: {time: 77s}}}"), "connections", "77s"),
        (coalesced, "coalesce", "get"),
        (
            with(
                "security.istio.io/v1 AuthorizationPolicy",
                "{selector: {matchLabels: {app: reviews}}, action: DENY, rules: [{}]}",
            ),
            "servers",
            "policies",
        ),
        (
            with(
                "policy.mesh-control/v1alpha1 RateLimit",
                "{selector: {matchLabels: {app: reviews}}, rules: [{name: all, limit: {requests: 1, per: 1s}}]}",
            ),
            "servers",
            "limit",
        ),
    ] {
        let (changes, code) = answers(dir_of(&after).path(), &REQUESTS[..1], &against);
        assert_eq!((changes.len(), code), (1, Some(1)), "{field}: {changes:?}");
        let changed = changes[0]["changed"].as_array().unwrap();
        assert!(changed.contains(&json!(field)), "{field}: {changed:?}");
        assert!(changes[0]["after"][field].to_string().contains(part), "{field}: {changes:?}");
    }
    let (changes, code) = answers(dir_of(&routed("")).path(), &REQUESTS, &against);
    assert_eq!((changes.len(), code), (0, Some(0)), "{changes:?}");
}

#[test]
fn a_line_that_moves_changes_no_answer() {
    let before = dir_of(SHOP);
    let after = tempfile::tempdir().unwrap();
    fs::write(after.path().join("other.yaml"), format!("# a line more\n{SHOP}")).unwrap();
    let (changes, code) = answers(after.path(), &REQUESTS, &["--against", before.path().to_str().unwrap()]);
    assert_eq!((changes.len(), code), (0, Some(0)), "{changes:?}");
}

#[test]
fn what_a_cluster_has_counts_where_the_files_do_not_say_it() {
    let dump = "apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: ratings, namespace: shop, resourceVersion: '7', uid: x, managedFields: [{manager: kubectl}]}
  spec: {clusterIP: 10.0.0.1, selector: {app: ratings}, ports: [{name: http, port: 9080, targetPort: 9080}]}
  status: {loadBalancer: {}}
- apiVersion: networking.istio.io/v1
  kind: VirtualService
  metadata: {name: reviews, namespace: shop, creationTimestamp: '2026-01-01T00:00:00Z'}
  spec: {hosts: [reviews], http: [{name: of-cluster, route: [{destination: {host: ratings}}]}]}
";
    let empty = dir_of(SHOP);
    fs::write(empty.path().join("dump"), dump).unwrap();
    let (of_both, code) = answers(empty.path(), &REQUESTS, &["--dump", "dump"]);
    assert_eq!((&of_both[0]["route"], code), (&json!("of-cluster"), Some(0)), "{of_both:?}");
    // What the files say of an object goes before what the cluster has of it.
    let rules = rules("  - name: of-files\n    route: [{destination: {host: reviews}}]\n");
    fs::write(empty.path().join("config.yaml"), format!("{SHOP}{rules}")).unwrap();
    let (of_files, _) = answers(empty.path(), &REQUESTS, &["--dump", "dump"]);
    assert_eq!(of_files[0]["route"], "of-files", "{of_files:?}");
    let alone = ["route", "test", "--dump", "dump", "--requests", "-"];
    let output = run(&alone, empty.path(), REQUESTS[1]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "b: forward ratings.shop:9080 as ratings:9080/\n");
}
