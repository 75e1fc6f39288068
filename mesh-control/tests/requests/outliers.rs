//! Outlier detection, by what requests and servers see.

use std::time::{Duration, Instant};

use http::{Request, Version};
use mesh_core::error::ErrorKind;
use mesh_core::request_info::Deadline;
use mesh_tower::body::Body;

use crate::breakers::{ask_through_layer, called_by};
use crate::support::{Face, World, rules};
use crate::upstream::{PATIENCE, Upstream, until};

/// An hour: what is ejected stays out as long as a test lasts.
const LONG: &str = "baseEjectionTime: 1h, interval: 50ms, maxEjectionPercent: 100";

/// One that fails and one that does not, in that order, and a client of both without retries.
async fn pair(detection: &str) -> (Upstream, Upstream, World) {
    let (bad, good) = (Upstream::new().await, Upstream::new().await);
    let policy = format!("{{outlierDetection: {{{detection}}}, loadBalancer: {{simple: ROUND_ROBIN}}}}");
    let once = rules("  - retries: {attempts: 0}\n    route: [{destination: {host: web.example.com}}]\n");
    let world = World::new(&(called_by(&policy, &[&bad, &good]) + &once)).await;
    (bad, good, world)
}

fn get() -> Request<Body> {
    Request::get("http://web.example.com/").body(Body::empty()).unwrap()
}

fn call() -> Request<Body> {
    let call = Request::post("http://web.example.com/a.B/C").header("content-type", "application/grpc");
    call.version(Version::HTTP_2).body(Body::empty()).unwrap()
}

/// Sends requests until so many more have reached this server.
async fn reach(world: &World, upstream: &Upstream, times: usize, request: fn() -> Request<Body>) {
    let (wanted, started) = (upstream.requests.all() + times, Instant::now());
    while upstream.requests.all() < wanted {
        assert!(started.elapsed() < PATIENCE, "it gets no requests");
        _ = world.ask(request()).await;
    }
}

/// Whether one of the endpoints gets no requests, as the mesh sees it.
fn is_out(world: &World, upstream: &Upstream) -> bool {
    let view = world.mesh.store().find("web.example.com:80").unwrap().view().unwrap();
    let (cluster, mut found) = (&view.clusters()[0], None);
    cluster.leaves()[0].state.each(|endpoint| {
        if endpoint.id().to_string() == upstream.at.to_string() {
            found = Some(endpoint.clone());
        }
    });
    !cluster.may_pick(&found.expect("it is known"))
}

/// Sends requests, of which none reaches this server.
async fn passes_by(world: &World, upstream: &Upstream) {
    until("it is out", || is_out(world, upstream)).await;
    let before = upstream.requests.all();
    for _ in 0..20 {
        world.ask(get()).await.unwrap();
    }
    assert_eq!(upstream.requests.all(), before);
}

#[tokio::test]
async fn an_endpoint_that_fails_so_often_in_a_row_gets_no_requests_until_its_time_is_over() {
    for face in Face::OF_REQUESTS {
        let detection = "consecutive5xxErrors: 3, interval: 20ms, baseEjectionTime: 400ms, maxEjectionPercent: 50";
        let (bad, _good, mut world) = pair(detection).await;
        world.face = face;
        reach(&world, &bad, 2, get).await;
        bad.answer(500);
        reach(&world, &bad, 2, get).await;
        bad.answer(200);
        reach(&world, &bad, 1, get).await;
        bad.answer(501);
        // A success in between: these are the first three in a row.
        reach(&world, &bad, 3, get).await;
        let ejected = Instant::now();
        until("it is out", || is_out(&world, &bad)).await;
        bad.answer(200);
        let before = bad.requests.all();
        while bad.requests.all() == before {
            assert!(ejected.elapsed() < PATIENCE, "it never comes back");
            assert_eq!(world.ask(get()).await.unwrap().status, 200);
        }
        assert!(ejected.elapsed() >= Duration::from_millis(350), "{:?}", ejected.elapsed());
    }
}

/// Whose time is over is let back in when the cluster is looked at next.
#[tokio::test]
async fn an_ejection_ends_with_the_interval_in_which_its_time_is_over() {
    let cases = [("20ms", true), ("1h", false)];
    for ((interval, comes_back), face) in cases.into_iter().flat_map(|case| Face::OF_REQUESTS.map(|face| (case, face)))
    {
        let detection = format!("consecutive5xxErrors: 1, interval: {interval}, baseEjectionTime: 1ms");
        let (bad, _good, mut world) = pair(&format!("{detection}, maxEjectionPercent: 50")).await;
        world.face = face;
        bad.answer(500);
        reach(&world, &bad, 1, get).await;
        if comes_back {
            reach(&world, &bad, 1, get).await;
        } else {
            until("it is out", || is_out(&world, &bad)).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            passes_by(&world, &bad).await;
        }
    }
}

#[tokio::test]
async fn each_kind_of_failure_counts_as_it_is_configured() {
    // (settings, what the server does, as often as ejects, whether it does)
    type Act = fn(&Upstream);
    let gateway = "consecutive5xxErrors: 0, consecutiveGatewayErrors: 2";
    let local = "consecutive5xxErrors: 0, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2";
    let cases: [(&str, Act, usize, bool); 8] = [
        ("", |bad| bad.answer(500), 5, true),
        ("", |bad| bad.hang_up(true), 5, true),
        ("consecutive5xxErrors: 0", |bad| bad.answer(500), 12, false),
        (gateway, |bad| bad.answer(500), 12, false),
        (gateway, |bad| bad.answer(502), 2, true),
        (gateway, |bad| bad.hang_up(true), 2, true),
        (local, |bad| bad.hang_up(true), 2, true),
        (local, |bad| bad.answer(503), 12, false),
    ];
    for ((settings, act, times, expected), face) in
        cases.into_iter().flat_map(|case| Face::OF_REQUESTS.map(|face| (case, face)))
    {
        let comma = if settings.is_empty() { "" } else { ", " };
        let (bad, _good, mut world) = pair(&format!("{settings}{comma}{LONG}")).await;
        world.face = face;
        act(&bad);
        reach(&world, &bad, times, get).await;
        if expected {
            passes_by(&world, &bad).await;
            assert_eq!(bad.requests.all(), times, "{face:?} {settings}");
        } else {
            assert!(!is_out(&world, &bad), "{face:?} {settings}");
        }
    }
}

#[tokio::test]
async fn the_status_of_a_grpc_call_counts_where_it_stands_in_the_trailers() {
    for (status, expected) in [(14, true), (13, true), (4, true), (5, false), (8, false), (0, false)] {
        let (bad, _good, world) = pair(&format!("consecutive5xxErrors: 3, {LONG}")).await;
        bad.end_calls(status);
        reach(&world, &bad, 3, call).await;
        if expected {
            passes_by(&world, &bad).await;
        } else {
            reach(&world, &bad, 6, call).await;
            assert!(!is_out(&world, &bad), "{status}");
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_hangs_is_ejected_for_its_timeouts() {
    let (bad, _good, world) = pair(&format!("consecutiveGatewayErrors: 2, {LONG}")).await;
    bad.hold(true);
    let hurried = || {
        let mut request = get();
        request.extensions_mut().insert(Deadline(Instant::now() + Duration::from_millis(50)));
        request
    };
    reach(&world, &bad, 2, hurried).await;
    passes_by(&world, &bad).await;
}

/// A time that is over before the request can be sent says nothing of where it would have gone.
#[tokio::test]
async fn an_endpoint_that_no_request_reached_is_not_to_blame() {
    let upstream = Upstream::new().await;
    let detection = format!("outlierDetection: {{consecutive5xxErrors: 1, {LONG}}}");
    let policy = format!("{{{detection}, connectionPool: {{tcp: {{maxConnections: 1}}}}}}");
    let route = "    route: [{destination: {host: web.example.com}}]\n";
    let rule = |path: &str, limit: &str| format!("  - match: [{{uri: {{exact: {path}}}}}]\n    {limit}\n{route}");
    let hurried = [
        rule("/now", "timeout: 1ns"),
        rule("/soon", "timeout: 20ms"),
        rule("/try", "retries: {attempts: 1, perTryTimeout: 20ms, retryOn: connect-failure}"),
    ];
    let patient = format!("  - retries: {{attempts: 0}}\n{route}");
    let world = World::new(&(called_by(&policy, &[&upstream]) + &rules(&(hurried.concat() + &patient)))).await;
    let fails = async |path: &str, kind: ErrorKind| {
        let error = world.get(&format!("http://web.example.com{path}")).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{path}: {error}");
        assert!(!is_out(&world, &upstream), "{path}: {error}");
    };
    world.get("http://web.example.com/").await.unwrap();
    // There is a connection, and no time.
    fails("/now", ErrorKind::Timeout).await;
    assert_eq!(upstream.requests.all(), 1);
    // There is none, since another request has it.
    upstream.hold(true);
    let held = world.mesh.client().get("http://web.example.com/");
    let held = tokio::spawn(held);
    until("it is held", || upstream.requests.now() == 1).await;
    fails("/now", ErrorKind::Timeout).await;
    fails("/soon", ErrorKind::Timeout).await;
    fails("/try", ErrorKind::ConnectFailure).await;
    // Nor does it say anything that a caller goes away.
    held.abort();
    until("it is gone", || held.is_finished()).await;
    assert!(!is_out(&world, &upstream));
    assert_eq!(upstream.requests.all(), 2);
}

#[tokio::test]
async fn no_more_endpoints_are_out_than_may_be() {
    let cases = [(10, [false, false]), (50, [true, false]), (100, [true, true])];
    for ((percent, are_out), face) in cases.into_iter().flat_map(|case| Face::OF_REQUESTS.map(|face| (case, face))) {
        let (one, other, mut world) = pair(&format!(
            "consecutive5xxErrors: 1, interval: 50ms, baseEjectionTime: 1h, maxEjectionPercent: {percent}"
        ))
        .await;
        world.face = face;
        one.answer(500);
        reach(&world, &one, 1, get).await;
        if are_out[0] {
            until("it is out", || is_out(&world, &one)).await;
        }
        other.answer(500);
        reach(&world, &other, 1, get).await;
        if are_out[1] {
            until("both are out", || is_out(&world, &other)).await;
            let error = world.ask(get()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoHealthyEndpoint);
            assert!(error.to_string().contains("2 known, 2 ejected"), "{error}");
            assert_eq!(world.flag(), "UH");
        }
        assert_eq!([is_out(&world, &one), is_out(&world, &other)], are_out, "{percent} %");
    }
}

#[tokio::test]
async fn where_too_few_are_healthy_those_that_fail_are_used_too() {
    let cases = [(0, true), (50, true), (60, false)];
    for ((min_health, expected), face) in cases.into_iter().flat_map(|case| Face::OF_REQUESTS.map(|face| (case, face)))
    {
        let (bad, _good, mut world) =
            pair(&format!("consecutive5xxErrors: 1, minHealthPercent: {min_health}, {LONG}")).await;
        world.face = face;
        bad.answer(500);
        reach(&world, &bad, 1, get).await;
        if expected {
            passes_by(&world, &bad).await;
        } else {
            reach(&world, &bad, 10, get).await;
        }
    }
}

#[tokio::test]
async fn an_ejection_outlasts_a_change_of_configuration() {
    let (bad, good) = (Upstream::new().await, Upstream::new().await);
    let policy = |timeout: &str| {
        let policy = format!(
            "{{outlierDetection: {{consecutive5xxErrors: 1, {LONG}}}, connectionPool: {{tcp: {{connectTimeout: {timeout}}}}}}}"
        );
        called_by(&policy, &[&bad, &good])
    };
    let world = World::of_file(&policy("1s")).await;
    bad.answer(500);
    reach(&world, &bad, 1, get).await;
    passes_by(&world, &bad).await;
    world.rewrite(&policy("7s"));
    let connect_timeout = || {
        let view = world.mesh.store().find("web.example.com:80").unwrap().view().unwrap();
        view.clusters()[0].leaves()[0].cluster.connect_timeout
    };
    until("the change is in force", || connect_timeout() == Duration::from_secs(7)).await;
    passes_by(&world, &bad).await;
}

#[tokio::test]
async fn what_the_mesh_refuses_by_itself_says_nothing_of_the_endpoint() {
    let only = Upstream::new().await;
    let policy = format!(
        "{{outlierDetection: {{consecutive5xxErrors: 2, {LONG}}}, connectionPool: {{http: {{http2MaxRequests: 1}}}}}}"
    );
    let world = std::sync::Arc::new(World::new(&called_by(&policy, &[&only])).await);
    only.hold(true);
    let held = tokio::spawn({
        let world = std::sync::Arc::clone(&world);
        async move { world.ask(get()).await }
    });
    until("it is held", || only.requests.now() == 1).await;
    for _ in 0..10 {
        assert_eq!(world.ask(get()).await.unwrap_err().kind(), ErrorKind::Overflow);
    }
    only.hold(false);
    held.await.unwrap().unwrap();
    assert!(!is_out(&world, &only));
    // Nor does a caller that went away.
    only.hold(true);
    for _ in 0..10 {
        _ = tokio::time::timeout(Duration::from_millis(5), world.ask(get())).await;
    }
    only.hold(false);
    world.ask(get()).await.unwrap();
    assert!(!is_out(&world, &only));
}

#[tokio::test]
async fn answers_count_that_a_client_of_the_applications_own_has() {
    let (bad, _good, world) = pair(&format!("consecutive5xxErrors: 2, {LONG}")).await;
    bad.answer(503);
    let started = Instant::now();
    while bad.requests.all() < 2 {
        assert!(started.elapsed() < PATIENCE);
        ask_through_layer(&world, get()).await.unwrap();
    }
    passes_by(&world, &bad).await;
}
