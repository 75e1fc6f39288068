//! Which endpoint a request goes to, as a DestinationRule wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::support::{Answer, Face, World, mesh_settings, rules, server, web};

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
        let mut world = World::new(&five(&format!("{{loadBalancer: {{simple: {simple}}}}}")).await).await;
        for face in Face::ALL {
            world.face = face;
            let counts = counts(&world, requests).await;
            assert_eq!(counts.len(), 5, "{face:?} {simple}: {counts:?}");
            assert_eq!(counts.values().all(|count| *count == 20), takes_turns, "{face:?} {simple}: {counts:?}");
        }
    }
}

/// Each key has its one server, and many keys have them all.
async fn is_sticky(policy: &str, ask: impl AsyncFn(&World, usize) -> Answer) {
    let mut world = World::new(&five(policy).await).await;
    let mut servers = BTreeSet::new();
    for key in 0..40 {
        world.face = Face::Client;
        let first = who(&ask(&world, key).await);
        for face in [Face::Client, Face::Layer, Face::Layer] {
            world.face = face;
            assert_eq!(who(&ask(&world, key).await), first, "{policy}: {face:?}, key {key}");
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

/// The size of a ring says which keys go where.
#[tokio::test]
async fn the_older_form_of_a_rings_size_makes_the_same_ring() {
    let five = five("{}").await;
    let mut found = Vec::new();
    for ring in ["minimumRingSize: 512", "ringHash: {minimumRingSize: 512}", "ringHash: {minimumRingSize: 64}"] {
        let policy =
            traffic_policy(&format!("{{loadBalancer: {{consistentHash: {{httpHeaderName: x-user, {ring}}}}}}}"));
        let world = World::new(&five.replace(&traffic_policy("{}"), &policy)).await;
        let mut servers = Vec::new();
        for key in 0..60 {
            servers.push(who(&world
                .with("http://web.example.com/", &[("x-user", &format!("user-{key}"))])
                .await
                .unwrap()));
        }
        found.push(servers);
    }
    assert_eq!(found[0], found[1]);
    assert_ne!(found[0], found[2]);
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
    let mut world = World::new(&five(policy).await).await;
    let mut servers = BTreeSet::new();
    for number in 0..40 {
        world.face = Face::OF_REQUESTS[number % 2];
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
    let mut hashed = World::new(&five("{loadBalancer: {consistentHash: {useSourceIp: true}}}").await).await;
    let mut world = World::new(&five("{loadBalancer: {consistentHash: {useSourceIp: false}}}").await).await;
    for face in Face::OF_REQUESTS {
        (hashed.face, world.face) = (face, face);
        assert_eq!(counts(&hashed, 20).await.len(), 1, "{face:?}");
        assert_eq!(counts(&world, 60).await.len(), 5, "{face:?}: nothing is hashed");
    }
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
    let mut world = World::new(&five("{}").await.replace(&traffic_policy("{}"), own)).await;
    let mut servers = BTreeSet::new();
    for number in 0..20 {
        world.face = Face::OF_REQUESTS[number % 2];
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
            let mut world = World::new(&five(&policy).await).await;
            for face in Face::ALL {
                world.face = face;
                let counts = counts(&world, 200).await;
                assert_eq!(counts.len(), 5, "{face:?} {simple} {warmup}: {counts:?}");
            }
        }
    }
}

/// One that is added takes a smaller share than one that has been there for a while, as long as it is new.
#[tokio::test]
async fn an_endpoint_that_is_added_grows_into_its_share() {
    const WINDOW: Duration = Duration::from_secs(4);
    let grows = async |simple: &str, warmup: &str| {
        let (old, new) = (("v1", server("v1").await), ("v2", server("v2").await));
        let policy = traffic_policy(&format!("{{loadBalancer: {{simple: {simple}, {warmup}}}}}"));
        let world = World::of_file(&format!("{}{policy}", web(&[old]))).await;
        counts(&world, 10).await;
        tokio::time::sleep(WINDOW).await;
        world.rewrite(&format!("{}{policy}", web(&[old, new])));
        let first = async { while !counts(&world, 1).await.contains_key("v2") {} };
        tokio::time::timeout(Duration::from_secs(10), first).await.expect("it is asked at all");
        // In a quarter of the window its share is at most a quarter of that of the other.
        let (began, mut counted) = (Instant::now(), BTreeMap::new());
        while began.elapsed() < WINDOW / 4 {
            *counted.entry(who(&world.get("http://web.example.com/").await.unwrap())).or_insert(0) += 1;
        }
        let (old, new) = (counted.remove("v1").unwrap_or(0), counted.remove("v2").unwrap_or(0));
        assert!(old > 2 * new, "{simple} {warmup}: {old} and {new}");
    };
    let warmup = "warmup: {duration: 4s, minimumPercent: 1, aggression: 1}";
    tokio::join!(
        grows("ROUND_ROBIN", warmup),
        grows("LEAST_REQUEST", warmup),
        grows("ROUND_ROBIN", "warmupDurationSecs: 4s")
    );
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
        let (mut world, yaml) = placed(&PLACES, &at(&setting, detection)).await;
        for face in Face::ALL {
            world.face = face;
            let counts = counts(&world, 80).await;
            assert_eq!(counts.keys().collect::<Vec<_>>(), expected, "{face:?}: {counts:?}\n{yaml}");
        }
    }
}

/// Settings of localities for the whole mesh.
fn of_mesh(setting: &str) -> String {
    mesh_settings(&format!("localityLbSetting: {setting}"))
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
        for mut world in [by_rule, by_mesh] {
            for face in Face::ALL {
                world.face = face;
                let counts = counts(&world, 40).await;
                assert_eq!((counts.len(), counts.contains_key("named")), (expected, true), "{setting}: {counts:?}");
            }
        }
    }
}

#[tokio::test]
async fn localities_have_the_shares_that_are_written() {
    let policy =
        "{loadBalancer: {simple: RANDOM, localityLbSetting: {distribute: [{from: r/z/*, to: {r/z/*: 80, q: 20}}]}}}";
    let (mut world, _) = placed(&PLACES, policy).await;
    for face in Face::ALL {
        world.face = face;
        let counts = counts(&world, 500).await;
        let near = counts["near"] + counts["zone"];
        // 400 of 500 expected, within four times the standard deviation.
        assert!(near.abs_diff(400) < 36 && !counts.contains_key("region"), "{face:?}: {counts:?}");
    }
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
        let mut world = World::at(["r", "z", "s"], &[("net", "n1")], &format!("{yaml}{}", of_mesh(mesh))).await;
        for face in Face::ALL {
            world.face = face;
            let counts = counts(&world, 80).await;
            assert_eq!(counts.keys().collect::<Vec<_>>(), expected, "{face:?} {mesh} {policy}: {counts:?}");
        }
    }
}

/// A client in zone `a` of region `r`, whose own service has so many endpoints in zones `a` and `b`, and a service with these
/// servers, called by this policy and by these settings of the mesh.
async fn among_zones(
    callers: [usize; 2],
    servers: &[(&'static str, &str, &str)],
    policy: &str,
    settings: &str,
) -> World {
    let own: String = ["a", "b"]
        .into_iter()
        .zip(callers)
        .flat_map(|(zone, count)| (0..count).map(move |number| (zone, number)))
        .enumerate()
        .map(|(place, (zone, number))| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: me-{zone}{number}}}\nspec: {{address: 192.0.2.{place}, labels: {{app: me}}, locality: r/{zone}}}\n"
            )
        })
        .collect();
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: me}\nspec: {selector: {app: me}, ports: [{name: http, port: 80}]}\n";
    let (_, yaml) = placed(servers, policy).await;
    World::at(["r", "a", ""], &[("app", "me"), ("net", "n1")], &format!("{yaml}{service}{own}{settings}")).await
}

#[tokio::test]
async fn requests_stay_in_the_own_zone_as_far_as_it_can_take_them() {
    let servers = [
        ("near", "r/a", "net: n1"),
        ("b1", "r/b", "net: n1"),
        ("b2", "r/b", "net: n2"),
        ("b3", "r/b", "net: n1"),
        ("far", "q/a", ""),
    ];
    let zones = |setting: &str| format!("{{loadBalancer: {{simple: RANDOM, zoneAwareLbSetting: {{{setting}}}}}}}");
    // (clients in zones a and b, setting, ways in) -> of 400 requests, those that stay in the zone; whether others go to zone b,
    // and to another region.
    let (all, client) = (&Face::ALL[..], &Face::ALL[..1]);
    let cases = [
        // A quarter of the endpoints is for half of the clients.
        ([2, 2], "minClusterSize: 4", all, 200, [true, false]),
        ([1, 3], "enabled: true, minClusterSize: 4", client, 400, [false, false]),
        // There are four, and with nothing said six are asked for: each endpoint of the region has the same.
        ([2, 2], "enabled: true", client, 100, [true, false]),
        ([1, 3], "minClusterSize: 5", client, 100, [true, false]),
        // Nobody knows where clients like this one are.
        ([0, 0], "minClusterSize: 1", client, 100, [true, false]),
        ([2, 2], "enabled: false, minClusterSize: 1", client, 80, [true, true]),
    ];
    for (callers, setting, faces, stays, others) in cases {
        let by_rule = among_zones(callers, &servers, &zones(setting), "").await;
        let settings = mesh_settings(&format!("zoneAwareLbSetting: {{{setting}}}"));
        let by_mesh = among_zones(callers, &servers, "{loadBalancer: {simple: RANDOM}}", &settings).await;
        for mut world in [by_rule, by_mesh] {
            for &face in faces {
                world.face = face;
                let counts = counts(&world, 400).await;
                let near = counts.get("near").copied().unwrap_or_default();
                // Within four times the standard deviation of a half.
                assert!(near.abs_diff(stays) <= if stays == 400 { 0 } else { 40 }, "{face:?} {setting}: {counts:?}");
                let is_called = |names: &[&str]| names.iter().any(|name| counts.contains_key(*name));
                assert_eq!(
                    [is_called(&["b1", "b2", "b3"]), is_called(&["far"])],
                    others,
                    "{face:?} {setting}: {counts:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn beyond_zones_regions_and_labels_rank_as_they_are_written() {
    let near = [("near", "r/a", "net: n2"), ("b1", "r/b", "net: n1"), ("far", "q/a", "net: n1")];
    let away = [("p1", "p/a", ""), ("q1", "q/a", "")];
    // (servers, setting) -> who answers
    type Case<'c> = (&'c [(&'static str, &'static str, &'static str)], &'c str, &'c [&'c str]);
    let cases: [Case<'_>; 5] = [
        (&near, "enabled: true", &["b1", "near"]),
        (&near, "failoverPriority: [net]", &["b1"]),
        (&near, "failoverPriority: [net=n2]", &["near"]),
        (&away, "enabled: true", &["p1", "q1"]),
        (&away, "failover: [{from: r, to: q}]", &["q1"]),
    ];
    for (servers, setting, expected) in cases {
        let of_rule = format!("{{loadBalancer: {{simple: ROUND_ROBIN, zoneAwareLbSetting: {{{setting}}}}}}}");
        let by_rule = among_zones([1, 1], servers, &of_rule, "").await;
        // The mesh says the same.
        let (_, yaml) = placed(servers, "{loadBalancer: {simple: ROUND_ROBIN}}").await;
        let settings = mesh_settings(&format!("zoneAwareLbSetting: {{{setting}}}"));
        let by_mesh = World::at(["r", "a", ""], &[("net", "n1")], &format!("{yaml}{settings}")).await;
        for mut world in [by_rule, by_mesh] {
            for face in Face::ALL {
                world.face = face;
                let counts = counts(&world, 40).await;
                assert_eq!(counts.keys().collect::<Vec<_>>(), expected, "{face:?} {setting}: {counts:?}");
            }
        }
    }
    let off = "{loadBalancer: {simple: ROUND_ROBIN, zoneAwareLbSetting: {enabled: false}}}";
    let (_, yaml) = placed(&near, off).await;
    let world = World::at(["r", "a", ""], &[], &format!("{yaml}{}", mesh_settings("zoneAwareLbSetting: {}"))).await;
    assert_eq!(counts(&world, 40).await.len(), 3, "the rule goes before the mesh");
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
