//! Which endpoint a request goes to, as a DestinationRule wants it.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{Answer, World, rules, server, web};

/// Servers `v1` to `v5` behind `web.example.com`, with a traffic policy.
async fn five(policy: &str) -> String {
    let mut endpoints = Vec::new();
    for name in ["v1", "v2", "v3", "v4", "v5"] {
        endpoints.push((name, server(name).await));
    }
    format!("{}{}", web(&endpoints), traffic_policy(policy))
}

/// How `web.example.com` is called.
fn traffic_policy(policy: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web-policy}}\nspec:\n  host: web.example.com\n  trafficPolicy: {policy}\n"
    )
}

fn who(answer: &Answer) -> String {
    answer.body.lines().next().unwrap_or_default().to_owned()
}

/// How often each server answered.
async fn counts(world: &World, requests: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        *counts.entry(who(&world.get("http://web.example.com/").await.unwrap())).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn round_robin_takes_turns_and_the_others_do_not() {
    let requests = 100;
    for (simple, takes_turns) in [
        ("ROUND_ROBIN", true),
        ("PASSTHROUGH", true),
        ("RANDOM", false),
        ("LEAST_REQUEST", false),
        ("LEAST_CONN", false),
        ("UNSPECIFIED", false),
    ] {
        let world = World::new(&five(&format!("{{loadBalancer: {{simple: {simple}}}}}")).await).await;
        let counts = counts(&world, requests).await;
        assert_eq!(counts.len(), 5, "{simple}: {counts:?}");
        assert_eq!(counts.values().all(|count| *count == 20), takes_turns, "{simple}: {counts:?}");
    }
}

/// Each key has its one server, and many keys have them all.
async fn is_sticky(policy: &str, ask: impl AsyncFn(&World, usize) -> Answer) {
    let world = World::new(&five(policy).await).await;
    let mut servers = BTreeSet::new();
    for key in 0..40 {
        let first = who(&ask(&world, key).await);
        for _ in 0..3 {
            assert_eq!(who(&ask(&world, key).await), first, "{policy}: key {key}");
        }
        servers.insert(first);
    }
    assert_eq!(servers.len(), 5, "{policy}: {servers:?}");
}

#[tokio::test]
async fn requests_with_the_same_header_go_to_the_same_endpoint() {
    for algorithm in
        ["", ", ringHash: {minimumRingSize: 2048}", ", minimumRingSize: 512", ", maglev: {tableSize: 1009}"]
    {
        let policy = format!("{{loadBalancer: {{consistentHash: {{httpHeaderName: x-user{algorithm}}}}}}}");
        is_sticky(&policy, async |world, key| {
            world.with("http://web.example.com/", &[("x-user", &format!("user-{key}"))]).await.unwrap()
        })
        .await;
    }
}

#[tokio::test]
async fn requests_with_the_same_query_parameter_go_to_the_same_endpoint() {
    let policy = "{loadBalancer: {consistentHash: {httpQueryParameterName: user}}}";
    is_sticky(policy, async |world, key| {
        world.get(&format!("http://web.example.com/?a={key}&user=u{key}")).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn who_has_no_cookie_is_given_one_that_leads_back() {
    let policy = "{loadBalancer: {consistentHash: {httpCookie: {name: session, path: /shop, ttl: 60s, attributes: \
                  [{name: SameSite, value: Lax}]}}}}";
    let world = World::new(&five(policy).await).await;
    let mut servers = BTreeSet::new();
    for _ in 0..40 {
        let first = world.get("http://web.example.com/").await.unwrap();
        let (pair, attributes) = first.header("set-cookie").unwrap().split_once(';').unwrap();
        assert_eq!(attributes, " Max-Age=60; Path=/shop; SameSite=Lax; HttpOnly");
        let again = world.with("http://web.example.com/", &[("cookie", &format!("a=b; {pair}"))]).await.unwrap();
        assert_eq!(who(&again), who(&first));
        assert_eq!(again.header("set-cookie"), None, "it has one");
        servers.insert(who(&first));
    }
    assert_eq!(servers.len(), 5, "each caller has a cookie of its own: {servers:?}");
}

#[tokio::test]
async fn a_cookie_without_a_life_is_looked_at_and_not_made() {
    let policy = "{loadBalancer: {consistentHash: {httpCookie: {name: session}}}}";
    is_sticky(policy, async |world, key| {
        let answer = world.with("http://web.example.com/", &[("cookie", &format!("session={key}"))]).await.unwrap();
        assert_eq!(answer.header("set-cookie"), None);
        answer
    })
    .await;
    let world = World::new(&five(policy).await).await;
    assert_eq!(world.get("http://web.example.com/").await.unwrap().header("set-cookie"), None);
    let zero = policy.replace("session}", "session, ttl: 0s}");
    let world = World::new(&five(&zero).await).await;
    let made = world.get("http://web.example.com/").await.unwrap();
    assert!(made.header("set-cookie").unwrap().ends_with("\"; HttpOnly"), "{made:?}");
}

#[tokio::test]
async fn requests_of_one_process_go_to_one_endpoint_where_its_address_is_hashed() {
    let world = World::new(&five("{loadBalancer: {consistentHash: {useSourceIp: true}}}").await).await;
    assert_eq!(counts(&world, 20).await.len(), 1);
    let world = World::new(&five("{loadBalancer: {consistentHash: {useSourceIp: false}}}").await).await;
    assert_eq!(counts(&world, 60).await.len(), 5, "nothing is hashed");
}

#[tokio::test]
async fn a_request_without_what_is_hashed_goes_to_any_endpoint() {
    let world = World::new(&five("{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}").await).await;
    assert_eq!(counts(&world, 60).await.len(), 5);
}

#[tokio::test]
async fn a_routes_destinations_are_each_asked_what_to_hash_by() {
    let split = "  - route:\n    - {destination: {host: web.example.com, subset: v1}, weight: 50}\n    - {destination: {host: web.example.com}, weight: 50}\n";
    let policy = five("{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}").await;
    let world = World::new(&format!("{policy}{}", rules(split))).await;
    let mut servers = BTreeSet::new();
    for _ in 0..40 {
        let answer = world.with("http://web.example.com/", &[("x-user", "no-one-of-v1")]).await.unwrap();
        servers.insert(who(&answer));
    }
    assert!(servers.contains("v1") && servers.len() <= 2, "v1 of the subset, and one of the whole: {servers:?}");
}

#[tokio::test]
async fn a_port_and_a_subset_have_their_own_policy() {
    let own = "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web-policy}
spec:
  host: web.example.com
  trafficPolicy:
    loadBalancer: {simple: RANDOM}
    portLevelSettings: [{port: {number: 80}, loadBalancer: {consistentHash: {httpHeaderName: x-user}}}]
";
    let world = World::new(&five("{}").await.replace(&traffic_policy("{}"), own)).await;
    let mut servers = BTreeSet::new();
    for _ in 0..20 {
        servers.insert(who(&world.with("http://web.example.com/", &[("x-user", "u")]).await.unwrap()));
    }
    assert_eq!(servers.len(), 1);
}

#[tokio::test]
async fn new_endpoints_are_warmed_up_with_round_robin_and_least_request() {
    // All are new at the same time here, and so alike: that none is left out is what can be seen within a test.
    for simple in ["ROUND_ROBIN", "LEAST_REQUEST"] {
        for warmup in ["warmup: {duration: 60s, minimumPercent: 20, aggression: 2}", "warmupDurationSecs: 60s"] {
            let policy = format!("{{loadBalancer: {{simple: {simple}, {warmup}}}}}");
            let world = World::new(&five(&policy).await).await;
            let counts = counts(&world, 200).await;
            assert_eq!(counts.len(), 5, "{simple} {warmup}: {counts:?}");
        }
    }
}

/// Servers at these places, a client at `r/z/s` with the label `net: n1`, and a traffic policy.
async fn placed(servers: &[(&'static str, &str, &str)], policy: &str) -> (World, String) {
    let mut listed = String::new();
    for (name, place, labels) in servers {
        let at = server(name).await;
        listed += &format!(
            "\n  - {{address: {}, ports: {{http: {}}}, locality: {place}, labels: {{{labels}}}}}",
            at.ip(),
            at.port()
        );
    }
    let yaml = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: web}}\nspec:\n  hosts: [web.example.com]\n  resolution: STATIC\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n  endpoints:{listed}\n{}",
        traffic_policy(policy)
    );
    (World::at(["r", "z", "s"], &[("net", "n1")], &yaml).await, yaml)
}

const PLACES: [(&str, &str, &str); 4] = [
    ("near", "r/z/s", "net: n2"),
    ("zone", "r/z/t", "net: n1"),
    ("region", "r/y/s", "net: n1"),
    ("far", "q/z/s", "net: n2"),
];

#[tokio::test]
async fn near_endpoints_go_first_where_outliers_are_detected() {
    let at = |setting: &str, detection: &str| format!("{{loadBalancer: {{simple: ROUND_ROBIN{setting}}}{detection}}}");
    let detection = ", outlierDetection: {consecutive5xxErrors: 5}";
    let setting = |text: &str| format!(", localityLbSetting: {{{text}}}");
    let region = "topology.kubernetes.io/region";
    // (setting, outlier detection) -> who answers
    let cases: Vec<(String, &str, &[&str])> = vec![
        (String::new(), "", &["far", "near", "region", "zone"]),
        (String::new(), detection, &["near"]),
        (setting("enabled: true"), detection, &["near"]),
        (setting("enabled: false"), detection, &["far", "near", "region", "zone"]),
        (setting("failoverPriority: [net]"), detection, &["region", "zone"]),
        (setting("failoverPriority: [net=n2]"), detection, &["far", "near"]),
        (setting(&format!("failoverPriority: ['{region}', net]")), detection, &["region", "zone"]),
        (setting("distribute: [{from: r/*, to: {r/z/*: 50, q: 50}}]"), "", &["far", "near", "zone"]),
        (setting("distribute: [{from: other, to: {q: 100}}]"), "", &["far", "near", "region", "zone"]),
    ];
    for (setting, detection, expected) in cases {
        let (world, yaml) = placed(&PLACES, &at(&setting, detection)).await;
        let counts = counts(&world, 80).await;
        assert_eq!(counts.keys().collect::<Vec<_>>(), expected, "{counts:?}\n{yaml}");
    }
}

/// Settings of localities for the whole mesh.
fn of_mesh(setting: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |-\n    localityLbSetting: {setting}\n"
    )
}

#[tokio::test]
async fn a_region_fails_over_to_the_one_that_is_named() {
    let places = [("far", "p/z/s", ""), ("named", "q/z/s", "")];
    let detection = "outlierDetection: {consecutive5xxErrors: 5}";
    for (setting, expected) in [("failover: [{from: r, to: q}]", 1), ("failover: [{from: x, to: q}]", 2)] {
        let policy =
            format!("{{loadBalancer: {{simple: ROUND_ROBIN, localityLbSetting: {{{setting}}}}}, {detection}}}");
        let by_rule = placed(&places, &policy).await.0;
        let (_, yaml) = placed(&places, &format!("{{loadBalancer: {{simple: ROUND_ROBIN}}, {detection}}}")).await;
        let by_mesh = World::at(["r", "z", "s"], &[], &format!("{yaml}{}", of_mesh(&format!("{{{setting}}}")))).await;
        for world in [by_rule, by_mesh] {
            let counts = counts(&world, 40).await;
            assert_eq!((counts.len(), counts.contains_key("named")), (expected, true), "{setting}: {counts:?}");
        }
    }
}

#[tokio::test]
async fn localities_have_the_shares_that_are_written() {
    let policy =
        "{loadBalancer: {simple: RANDOM, localityLbSetting: {distribute: [{from: r/z/*, to: {r/z/*: 80, q: 20}}]}}}";
    let counts = counts(&placed(&PLACES, policy).await.0, 1_000).await;
    let near = counts["near"] + counts["zone"];
    // 800 of 1,000 expected, within four times the standard deviation.
    assert!(near.abs_diff(800) < 51 && !counts.contains_key("region"), "{counts:?}");
}

#[tokio::test]
async fn the_mesh_says_it_where_no_rule_does() {
    let shares = "{distribute: [{from: r/z/s, to: {q/z/s: 100}}]}";
    let detection = "outlierDetection: {consecutive5xxErrors: 5}";
    for (mesh, policy, expected) in [
        (shares, "{loadBalancer: {simple: ROUND_ROBIN}}".to_owned(), vec!["far"]),
        (
            shares,
            format!("{{loadBalancer: {{simple: ROUND_ROBIN, localityLbSetting: {{enabled: true}}}}, {detection}}}"),
            vec!["near"],
        ),
        (
            "{failoverPriority: [net]}",
            format!("{{loadBalancer: {{simple: ROUND_ROBIN}}, {detection}}}"),
            vec!["region", "zone"],
        ),
        (
            "{enabled: false}",
            format!("{{loadBalancer: {{simple: ROUND_ROBIN}}, {detection}}}"),
            vec!["far", "near", "region", "zone"],
        ),
    ] {
        let (_, yaml) = placed(&PLACES, &policy).await;
        let world = World::at(["r", "z", "s"], &[("net", "n1")], &format!("{yaml}{}", of_mesh(mesh))).await;
        let counts = counts(&world, 80).await;
        assert_eq!(counts.keys().collect::<Vec<_>>(), expected, "{mesh} {policy}: {counts:?}");
    }
}

#[tokio::test]
async fn a_service_may_prefer_the_zone_of_its_client_without_any_rule() {
    let (near, other, far) = (server("near").await, server("other").await, server("far").await);
    let entry = |name: &str, at: std::net::SocketAddr, place: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}}}\nspec: {{address: {}, ports: {{http: {}}}, labels: {{app: web}}, locality: {place}}}\n",
            at.ip(),
            at.port()
        )
    };
    let entries = [entry("a", near, "r/z/s"), entry("b", other, "r/z/t"), entry("c", far, "r/y/s")].concat();
    let off = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec: {host: web, trafficPolicy: {loadBalancer: {localityLbSetting: {enabled: false}}}}\n";
    // (what the service says, rule) -> who answers
    for (distribution, rule, expected) in [
        ("", "", &["far", "near", "other"][..]),
        (", trafficDistribution: PreferClose", "", &["near", "other"]),
        (", trafficDistribution: PreferSameZone", "", &["near", "other"]),
        (", trafficDistribution: PreferSameNode", "", &["near", "other"]),
        (", trafficDistribution: PreferClose", off, &["far", "near", "other"]),
    ] {
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{selector: {{app: web}}, ports: [{{name: http, port: 80}}]{distribution}}}\n"
        );
        let world = World::at(["r", "z", "s"], &[], &format!("{service}{entries}{rule}")).await;
        let mut who_answers = BTreeMap::<String, usize>::new();
        for _ in 0..60 {
            *who_answers.entry(who(&world.get("http://web/").await.unwrap())).or_default() += 1;
        }
        assert_eq!(who_answers.keys().collect::<Vec<_>>(), expected, "{distribution}{rule}: {who_answers:?}");
    }
}
