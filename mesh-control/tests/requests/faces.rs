//! What each way into the mesh makes of a setting, where the tests of the setting itself look at one of them only.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Version};
use http_body_util::{BodyExt, Empty};
use mesh_core::error::ErrorKind;
use mesh_core::state::EndpointState;
use mesh_tower::body::Body;
use tower_service::Service;

use crate::breakers::called_by;
use crate::support::{Face, World, mesh_settings, nobody, rules, server, service, web};
use crate::upstream::{PATIENCE, Upstream, until};

/// How `web.example.com` is called at these addresses, by this policy.
fn called(policy: &str, endpoints: &[(&str, SocketAddr)]) -> String {
    web(endpoints)
        .replace("  host: web.example.com\n", &format!("  host: web.example.com\n  trafficPolicy: {policy}\n"))
}

fn get() -> Request<Body> {
    Request::get("http://web.example.com/").body(Body::empty()).unwrap()
}

/// What is known of the endpoint of `web.example.com` at this address.
fn state(world: &World, at: SocketAddr) -> Arc<EndpointState> {
    let view = world.mesh.store().find("web.example.com:80").unwrap().view().unwrap();
    let mut found = None;
    view.clusters()[0].leaves()[0].state.each(|endpoint| {
        if endpoint.id().to_string() == at.to_string() {
            found = Some(Arc::clone(endpoint));
        }
    });
    found.expect("it is known")
}

#[tokio::test]
async fn a_port_has_its_own_policy() {
    for (port, takes_turns) in [(80, true), (81, false)] {
        let mut endpoints = Vec::new();
        for name in ["v1", "v2", "v3", "v4", "v5"] {
            endpoints.push((name, server(name).await));
        }
        let own = format!("[{{port: {{number: {port}}}, loadBalancer: {{simple: ROUND_ROBIN}}}}]");
        let policy = format!("{{loadBalancer: {{simple: RANDOM}}, portLevelSettings: {own}}}");
        let mut world = World::new(&called(&policy, &endpoints)).await;
        for face in Face::ALL {
            world.face = face;
            let mut counts = std::collections::BTreeMap::<String, usize>::new();
            for _ in 0..100 {
                let answer = world.ask(get()).await.unwrap();
                *counts.entry(answer.body.lines().next().unwrap().to_owned()).or_default() += 1;
            }
            assert_eq!(counts.values().all(|count| *count == 20), takes_turns, "{face:?} {port}: {counts:?}");
        }
    }
}

/// One endpoint fails every first try, and the other one holds back every retry: as many of ten requests are retried at a time as
/// may be, and the others fail at once. A connector tries connections again, and the others what is asked over them.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn as_many_retries_are_under_way_as_a_limit_or_a_budget_lets() {
    let (http, budget) = ("connectionPool: {http: ", "retryBudget: {");
    let cases = [
        (format!("{http}{{maxRetries: 1}}}}"), 1),
        (format!("{http}{{maxRetries: 2}}}}"), 2),
        (format!("{http}{{}}}}"), 5),
        (format!("{budget}percent: 0, minRetryConcurrency: 0}}"), 0),
        (format!("{budget}percent: 0, minRetryConcurrency: 2}}"), 2),
        (format!("{budget}percent: 100, minRetryConcurrency: 0}}"), 5),
    ];
    let retried = rules(
        "  - retries: {attempts: 1, retryOn: 'connect-failure,503', backoff: 1ms}\n    route: [{destination: {host: web.example.com}}]\n",
    );
    for ((limit, expected), face) in cases.iter().flat_map(|case| Face::ALL.map(|face| (case, face))) {
        let (bad, good) = (Upstream::new().await, Upstream::new().await);
        bad.answer(503);
        bad.hold(true);
        good.hold(true);
        let mut backlog = None;
        let endpoints = match face {
            Face::Connector => {
                let (waits, _, _) = backlog.insert(crate::breakers::silent().await);
                [("v1", nobody().await), ("v2", *waits)]
            }
            Face::Client | Face::Layer => [("v1", bad.at), ("v2", good.at)],
        };
        let policy = format!("{{loadBalancer: {{simple: ROUND_ROBIN}}, {limit}}}");
        let world = Arc::new(World::new(&format!("{}{retried}", called(&policy, &endpoints))).await.through(face));
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let world = Arc::clone(&world);
            asked.spawn(async move { world.ask(get()).await.map(|answer| answer.status) });
        }
        if face != Face::Connector {
            // Nobody tries again before each has tried once, so that they take turns.
            until("each has tried", || (bad.requests.now(), good.requests.now()) == (5, 5)).await;
            bad.hold(false);
        }
        for _ in 0..5 - expected {
            let over = tokio::time::timeout(PATIENCE, asked.join_next()).await.expect("it fails at once");
            let failed = over.unwrap().unwrap();
            let is_right = match face {
                Face::Connector => matches!(&failed, Err(error) if error.kind() == ErrorKind::ConnectFailure),
                Face::Client | Face::Layer => matches!(failed, Ok(503)),
            };
            assert!(is_right, "{face:?} {limit}: {failed:?}");
        }
        if face != Face::Connector {
            until("the others are held", || good.requests.now() == 5 + expected).await;
        }
        assert_eq!(asked.len(), 5 + expected, "{face:?} {limit}");
    }
}

/// The failures of a connector are those of connections.
#[tokio::test]
async fn of_a_connector_failures_to_connect_eject_as_they_are_configured() {
    const LONG: &str = "interval: 20ms, baseEjectionTime: 1h, maxEjectionPercent: 100";
    let once = rules("  - retries: {attempts: 0}\n    route: [{destination: {host: web.example.com}}]\n");
    let local = "consecutive5xxErrors: 0, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2";
    // (settings, endpoints that refuse, connections that are asked for, how many of them are ejected then)
    let cases = [
        (format!("{local}, {LONG}"), 1, 1, 0),
        (format!("{local}, {LONG}"), 1, 2, 1),
        ("consecutive5xxErrors: 2, interval: 20ms, baseEjectionTime: 1h, maxEjectionPercent: 100".to_owned(), 1, 2, 1),
        (format!("consecutive5xxErrors: 0, {LONG}"), 1, 12, 0),
        (format!("consecutive5xxErrors: 1, {LONG}").replace("Percent: 100", "Percent: 50"), 2, 12, 1),
        (format!("consecutive5xxErrors: 1, {LONG}"), 2, 12, 2),
    ];
    for (settings, refuse, times, expected) in cases {
        let mut endpoints = vec![("v1", nobody().await)];
        endpoints.extend((refuse == 2).then_some(("v2", nobody().await)));
        let policy = format!("{{outlierDetection: {{{settings}}}}}");
        let world = World::new(&format!("{}{once}", called(&policy, &endpoints))).await.through(Face::Connector);
        for _ in 0..times {
            world.ask(get()).await.unwrap_err();
        }
        let ejected = || endpoints.iter().filter(|(_, at)| state(&world, *at).is_ejected()).count();
        until(&settings, || ejected() >= expected).await;
        assert_eq!(ejected(), expected, "{settings}");
    }
    // When it is over: with the interval in which its time is.
    for (times, comes_back) in [
        ("interval: 20ms, baseEjectionTime: 1ms", true),
        ("interval: 20ms, baseEjectionTime: 1h", false),
        ("interval: 1h, baseEjectionTime: 1ms", false),
    ] {
        let at = nobody().await;
        let policy = format!("{{outlierDetection: {{consecutive5xxErrors: 1, {times}, maxEjectionPercent: 100}}}}");
        let world = World::new(&format!("{}{once}", called(&policy, &[("v1", at)]))).await.through(Face::Connector);
        world.ask(get()).await.unwrap_err();
        let state = state(&world, at);
        if comes_back {
            until("it is let back in", || !state.is_ejected()).await;
        } else {
            until("it is ejected", || state.is_ejected()).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(state.is_ejected(), "{times}");
        }
    }
}

/// Of those that are out, all are used where too few are left.
#[tokio::test]
async fn a_connector_uses_those_that_fail_where_too_few_are_healthy() {
    let once = rules("  - retries: {attempts: 0}\n    route: [{destination: {host: web.example.com}}]\n");
    for (least, is_used) in [(60, true), (0, false)] {
        let (good, away) = (Upstream::new().await, nobody().await);
        let settings = format!(
            "consecutive5xxErrors: 1, minHealthPercent: {least}, interval: 20ms, baseEjectionTime: 1h, maxEjectionPercent: 100"
        );
        let policy = format!("{{loadBalancer: {{simple: ROUND_ROBIN}}, outlierDetection: {{{settings}}}}}");
        let yaml = format!("{}{once}", called(&policy, &[("v1", good.at), ("v2", away)]));
        let world = World::new(&yaml).await.through(Face::Connector);
        while world.ask(get()).await.is_ok() {}
        until("it is ejected", || state(&world, away).is_ejected()).await;
        // It is there again, and is found to be: what is left is that it is ejected.
        let back = Upstream::bind(away).await;
        until("it can be reached", || state(&world, away).is_reachable()).await;
        for _ in 0..20 {
            world.ask(get()).await.unwrap();
        }
        assert_eq!(back.requests.all() > 0, is_used, "{least} %");
    }
}

/// A retry is made after its pause, and every second one goes where none was tried.
#[tokio::test]
async fn a_connector_tries_again_as_the_policy_has_it() {
    let of_rule = |fields: &str| {
        rules(&format!("  - retries: {{{fields}}}\n    route: [{{destination: {{host: web.example.com}}}}]\n"))
    };
    let of_mesh = |fields: &str| mesh_settings(&format!("defaultHttpRetryPolicy: {{{fields}}}"));
    let asked = "attempts: 2, retryOn: connect-failure";
    for said in [&of_rule as &dyn Fn(&str) -> String, &of_mesh] {
        let at = nobody().await;
        for (backoff, is_over) in [("1ms", true), ("1000h", false)] {
            let yaml = format!("{}{}", web(&[("v1", at)]), said(&format!("{asked}, backoff: {backoff}")));
            let world = World::new(&yaml).await.through(Face::Connector);
            let patience = if is_over { PATIENCE } else { Duration::from_millis(300) };
            let answer = tokio::time::timeout(patience, world.ask(get())).await;
            assert_eq!(answer.is_ok(), is_over, "{backoff}: {answer:?}");
        }
        // Who is tried again waits for longer than this test.
        for (fields, is_tried_again) in [
            ("attempts: 2, retryOn: connect-failure, backoff: 1000h", true),
            ("attempts: 2, retryOn: '503', backoff: 1000h", false),
            ("attempts: 0", false),
        ] {
            let yaml = format!("{}{}", web(&[("v1", at)]), said(fields));
            let world = World::new(&yaml).await.through(Face::Connector);
            let patience = if is_tried_again { Duration::from_millis(300) } else { PATIENCE };
            let answer = tokio::time::timeout(patience, world.ask(get())).await;
            assert_eq!(answer.is_err(), is_tried_again, "{fields}: {answer:?}");
        }
        // Of a budget with a time, connections count that were made, for a quarter of four.
        for (interval, is_retried) in [(", budgetInterval: 1h", true), ("", false)] {
            let policy = format!("{{retryBudget: {{percent: 25, minRetryConcurrency: 0{interval}}}}}");
            let upstream = Upstream::new().await;
            let yaml = format!("{}{}", called_by(&policy, &[&upstream]), said(&format!("{asked}, backoff: 1000h")));
            let world = World::new(&yaml).await.through(Face::Connector);
            for _ in 0..3 {
                world.ask(get()).await.unwrap();
            }
            upstream.kill().await;
            let patience = if is_retried { Duration::from_millis(300) } else { PATIENCE };
            let answer = tokio::time::timeout(patience, world.ask(get())).await;
            assert_eq!(answer.is_err(), is_retried, "{interval}: {answer:?}");
        }
        for (fields, is_reached) in [(", retryRemoteLocalities: true", true), ("", false)] {
            // So many near ones refuse that those few which are tried take nothing from the rest.
            let mut near = String::new();
            for _ in 0..40 {
                let at = nobody().await;
                near += &format!("\n  - {{address: {}, ports: {{http: {}}}, labels: {{v: v1}}}}", at.ip(), at.port());
            }
            let far = server("far").await;
            let policy = "{loadBalancer: {localityLbSetting: {failoverPriority: ['v=v1']}}, outlierDetection: {consecutive5xxErrors: 1000}}";
            let services = called(policy, &[("v2", far)]).replace("\n  endpoints:", &format!("\n  endpoints:{near}"));
            let yaml = format!("{services}{}", said(&format!("{asked}, backoff: 1ms{fields}")));
            let world = World::new(&yaml).await.through(Face::Connector);
            let answer = world.ask(get()).await;
            assert_eq!(answer.is_ok(), is_reached, "{fields}: {answer:?}");
        }
    }
}

/// The connection of a client above a connector ends between two requests when it is old.
#[tokio::test]
async fn a_connection_of_a_connector_ends_when_it_is_old() {
    let upstream = Upstream::new().await;
    let world = World::new(&called_by("{connectionPool: {tcp: {maxConnectionDuration: 30ms}}}", &[&upstream])).await;
    let stream = world.mesh.connector().call("http://web.example.com/".parse().unwrap()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/").version(Version::HTTP_11).header("host", "web.example.com");
    let answer = sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!((answer.status(), upstream.connections.all()), (200.try_into().unwrap(), 1));
    answer.into_body().collect().await.unwrap();
    // Nobody but the mesh ends it: the sender is there, and idle.
    until("it has ended", || upstream.connections.now() == 0).await;
    assert!(sender.is_closed() || sender.ready().await.is_err());
}

/// The first request that finds out has the view in which the near ones are all there is: its own next try goes on.
#[tokio::test]
async fn a_retry_goes_on_where_a_whole_priority_is_found_dead() {
    let near = "localityLbSetting: {failoverPriority: ['v=v1']}}, outlierDetection: {consecutive5xxErrors: 1000}";
    let hashed = "consistentHash: {httpHeaderName: x-user}";
    let by_locality = format!("  trafficPolicy: {{loadBalancer: {{{near}}}\n");
    let by_hash = format!("  trafficPolicy: {{loadBalancer: {{{hashed}, {near}}}\n");
    let fallback = |text: &str| format!("  annotations: {{mesh-control/fallback: '{text}'}}\n");
    // (of the rule's spec, of its metadata, how many near ones refuse, who answers after how many tries)
    let cases = [
        (by_locality.clone(), String::new(), 1, Some("200 far"), 2),
        (by_locality.clone(), String::new(), 2, Some("200 far"), 3),
        // There are no tries left.
        (by_locality, String::new(), 3, None, 3),
        (by_hash, String::new(), 2, Some("200 far"), 3),
        (String::new(), fallback("host=spare.example.com"), 1, Some("200 far"), 2),
        (String::new(), fallback("status=203, body=closed"), 1, Some("203 closed"), 1),
    ];
    for (policy, annotations, refuse, expected, tries) in cases {
        for (face, is_retried) in Face::ALL.into_iter().flat_map(|face| [(face, true), (face, false)]) {
            let far = server("far").await;
            let mut others = String::new();
            for _ in 1..refuse {
                let at = nobody().await;
                others += &format!("\n  - {{address: {}, ports: {{http: {}}}, labels: {{v: v1}}}}", at.ip(), at.port());
            }
            let mut endpoints = vec![("v1", nobody().await)];
            endpoints.extend((annotations.is_empty()).then_some(("v2", far)));
            let rule = "kind: DestinationRule\nmetadata: {name: web}\n";
            let services = web(&endpoints)
                .replace("\n  endpoints:", &format!("\n  endpoints:{others}"))
                .replace(rule, &format!("kind: DestinationRule\nmetadata:\n  name: web\n{annotations}"))
                .replace("  host: web.example.com\n", &format!("  host: web.example.com\n{policy}"));
            let once = rules("  - retries: {attempts: 0}\n    route: [{destination: {host: web.example.com}}]\n");
            let said = if is_retried { String::new() } else { once };
            let yaml = format!("{services}{}{said}", service("spare", &[("v1", far)]));
            let world = World::new(&yaml).await.through(face);
            let answer = world.with("http://web.example.com/", &[("x-user", "me")]).await;
            let who = answer
                .as_ref()
                .ok()
                .map(|answer| format!("{} {}", answer.status, answer.body.lines().next().unwrap_or_default()));
            let may_stand_in = face != Face::Connector || expected != Some("203 closed");
            let expected = expected.filter(|_| is_retried && may_stand_in);
            let what = format!("{face:?} {is_retried}: {answer:?}\n{yaml}");
            match (expected, face) {
                // The layer's client answers what the mesh fails.
                (None, _) => assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 503), "{what}"),
                (Some(expected), _) => assert_eq!(who.as_deref(), Some(expected), "{what}"),
            }
            if face != Face::Connector {
                assert_eq!(world.attempts(), if is_retried { tries } else { 1 }, "{what}");
            }
        }
    }
}
