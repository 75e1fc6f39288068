//! Where retries go.

use std::time::{Duration, Instant};

use http::Request;
use mesh_core::request_info::Deadline;
use mesh_tower::body::Body;

use crate::support::{Face, World, failing, nobody, rules, server, web};
use crate::upstream::Upstream;

/// Servers that answer with this status, and how `web.example.com` is called.
async fn upstreams(count: usize, status: u16, policy: &str) -> (Vec<Upstream>, String) {
    let names = ["v1", "v2", "v3", "v4", "v5"];
    let (mut upstreams, mut endpoints) = (Vec::new(), Vec::new());
    for name in &names[..count] {
        let upstream = Upstream::new().await;
        upstream.answer(status);
        endpoints.push((*name, upstream.at));
        upstreams.push(upstream);
    }
    (upstreams, format!("{}{}", web(&endpoints), called(policy)))
}

fn called(policy: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web-policy}}\nspec:\n  host: web.example.com\n  trafficPolicy: {policy}\n"
    )
}

const HASHED: &str = "{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}";

fn retries(fields: &str) -> String {
    rules(&format!("  - retries: {{{fields}}}\n    route: [{{destination: {{host: web.example.com}}}}]\n"))
}

/// The policy of the mesh, for routes that say nothing.
fn meshs_own(fields: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |-\n    defaultHttpRetryPolicy: {{{fields}}}\n"
    )
}

#[tokio::test]
async fn who_is_found_by_a_hash_is_asked_again_unless_a_rule_wants_somebody_else() {
    let three = "attempts: 2, retryOn: '503', backoff: 1ms";
    let mesh = meshs_own(three);
    let cases = [
        (retries(three), HASHED, 1),
        (retries(&format!("{three}, retryIgnorePreviousHosts: true")), HASHED, 3),
        (retries(three), "{loadBalancer: {simple: RANDOM}}", 3),
        // Without any rule, too.
        (mesh.clone(), HASHED, 1),
        (mesh, "{loadBalancer: {simple: RANDOM}}", 3),
        (meshs_own(&format!("{three}, retryIgnorePreviousHosts: true")), HASHED, 3),
    ];
    for ((rules, policy, asked), face) in cases.iter().flat_map(|case| Face::OF_REQUESTS.map(|face| (case, face))) {
        let (upstreams, yaml) = upstreams(5, 503, policy).await;
        let world = World::new(&format!("{yaml}{rules}")).await.through(face);
        let answer = world.with("http://web.example.com/", &[("x-user", "me")]).await.unwrap();
        assert_eq!((answer.status, world.attempts()), (503, 3), "{face:?} {rules}");
        let were_asked = upstreams.iter().filter(|upstream| upstream.requests.all() > 0).count();
        assert_eq!(were_asked, *asked, "{face:?} {policy} {rules}");
    }
}

/// One that cannot be reached is out of the ring for whoever comes next, and so for a retry.
#[tokio::test]
async fn who_is_found_by_a_hash_and_cannot_be_reached_is_not_asked_again() {
    for _ in 0..5 {
        let endpoints = [("v1", server("v1").await), ("v2", nobody().await)];
        let world = World::new(&format!("{}{}", web(&endpoints), called(HASHED))).await;
        let mut most = 0;
        for user in 0..20 {
            let answer = world.with("http://web.example.com/", &[("x-user", &user.to_string())]).await.unwrap();
            assert_eq!(answer.status, 200);
            most = most.max(world.attempts());
        }
        assert_eq!(most, 2);
    }
}

#[tokio::test]
async fn every_second_retry_goes_to_a_priority_that_was_not_tried() {
    let policy = "{loadBalancer: {localityLbSetting: {failoverPriority: ['v=v1']}}, outlierDetection: {consecutive5xxErrors: 1000}}";
    // (retries, requests that the near one and the far one see)
    for (fields, near, far) in [
        ("attempts: 1, retryRemoteLocalities: true", 2, 0),
        ("attempts: 2, retryRemoteLocalities: true", 2, 1),
        ("attempts: 3, retryRemoteLocalities: true", 2, 2),
        // All were tried: it begins anew.
        ("attempts: 4, retryRemoteLocalities: true", 3, 2),
        ("attempts: 4, retryRemoteLocalities: false", 5, 0),
    ] {
        for said in [retries, meshs_own].map(|by| by(&format!("{fields}, retryOn: '503', backoff: 1ms"))) {
            for face in Face::OF_REQUESTS {
                let (upstreams, yaml) = upstreams(2, 503, policy).await;
                let world = World::new(&format!("{yaml}{said}")).await.through(face);
                assert_eq!(world.get("http://web.example.com/").await.unwrap().status, 503);
                let seen: Vec<usize> = upstreams.iter().map(|upstream| upstream.requests.all()).collect();
                assert_eq!(seen, [near, far], "{face:?} {said}");
            }
        }
    }
}

#[tokio::test]
async fn times_of_the_meshs_own_policy_hold_where_a_rule_says_nothing() {
    for face in Face::OF_REQUESTS {
        times_hold(face).await;
    }
}

async fn times_hold(face: Face) {
    let slow = web(&[("v1", server("v1").await)]);
    for (fields, tries) in [("perTryTimeout: 50ms, ", 2), ("", 1)] {
        let policy = meshs_own(&format!("{fields}attempts: 1, retryOn: '5xx', backoff: 1ms"));
        let world = World::new(&format!("{slow}{policy}")).await.through(face);
        assert_eq!(world.get("http://web.example.com/slow").await.is_ok(), fields.is_empty(), "{fields}");
        assert_eq!(world.attempts(), tries, "{fields}");
    }
    // Nobody waits for a pause that is longer than there is time.
    for (backoff, tries) in [("1000h", 1), ("1ms", 3)] {
        let (_upstreams, yaml) = upstreams(1, 503, "{}").await;
        let policy = meshs_own(&format!("attempts: 2, retryOn: '503', backoff: {backoff}"));
        let world = World::new(&format!("{yaml}{policy}")).await.through(face);
        let mut request = Request::get("http://web.example.com/").body(Body::empty()).unwrap();
        request.extensions_mut().insert(Deadline(Instant::now() + Duration::from_secs(30)));
        assert_eq!(world.ask(request).await.unwrap().status, 503);
        assert_eq!(world.attempts(), tries, "{backoff}");
    }
}

#[tokio::test]
async fn a_budget_with_a_time_has_requests_count_that_are_over() {
    let retried = retries("attempts: 1, retryOn: '503', backoff: 1ms");
    let cases = [("", 1), (", budgetInterval: 0s", 1), (", budgetInterval: 1h", 2)];
    for ((interval, tries), face) in cases.into_iter().flat_map(|case| Face::OF_REQUESTS.map(|face| (case, face))) {
        let policy = format!("{{retryBudget: {{percent: 25, minRetryConcurrency: 0{interval}}}}}");
        let (upstreams, yaml) = upstreams(1, 200, &policy).await;
        let world = World::new(&format!("{yaml}{retried}")).await.through(face);
        for _ in 0..3 {
            assert_eq!(world.get("http://web.example.com/").await.unwrap().status, 200);
        }
        upstreams[0].answer(503);
        // A quarter of four that began, or of one that is under way.
        assert_eq!(world.get("http://web.example.com/").await.unwrap().status, 503);
        assert_eq!(world.attempts(), tries, "{face:?} {interval}");
    }
}

/// Nobody says how many retries there may be.
#[tokio::test]
async fn retries_that_help_do_not_run_out() {
    let policy = called("{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 0}}");
    let (bad, good) = (failing().await, server("good").await);
    let wanted = retries("attempts: 3, retryOn: 5xx, backoff: 1ms");
    for endpoints in [&[("v1", bad), ("v2", good)][..], &[("v1", bad), ("v2", bad), ("v3", good)]] {
        let yaml = format!("{}{policy}{wanted}", web(endpoints));
        let mut world = World::new(&yaml).await;
        for face in Face::OF_REQUESTS {
            world.face = face;
            for number in 0..100 {
                let answer = world.get("http://web.example.com/").await.unwrap();
                assert_eq!(answer.status, 200, "{face:?}: request {number} of {} endpoints", endpoints.len());
            }
        }
    }
    // Where no try helps, there are few.
    let world = World::new(&format!("{}{policy}{wanted}", web(&[("v1", bad)]))).await;
    let mut tries = 0;
    for _ in 0..50 {
        assert_eq!(world.get("http://web.example.com/").await.unwrap().status, 503);
        tries += world.attempts();
    }
    assert!((50 + 20..50 + 30).contains(&tries), "{tries}");
    assert_eq!(world.flag(), "UO");
}
