//! Truth tables: every combination of limits of time, and of faults, by what a request experiences.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::Request;
use mesh_core::error::ErrorKind;
use mesh_core::grpc_timeout;
use mesh_core::request_info::Deadline;
use mesh_tower::body::Body;

use super::world::{World, grpc, http2, request};

/// A limit of time: none, one that ends soon, or one that never matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    None,
    Short,
    Long,
}

use Limit::{Long, Short};

const LIMITS: [Limit; 3] = [Limit::None, Short, Long];

impl Limit {
    fn time(self) -> Option<Duration> {
        match self {
            Limit::None => None,
            Short => Some(Duration::from_millis(250)),
            Long => Some(Duration::from_secs(1000)),
        }
    }

    /// This setting, if there is one.
    fn written(self, field: &str) -> String {
        self.time().map(|time| format!("{field}: {}ms, ", time.as_millis())).unwrap_or_default()
    }
}

/// Rules for requests by their header `x-case`.
fn rules(cases: impl IntoIterator<Item = String>) -> String {
    let rules = cases.into_iter().enumerate().map(|(number, fields)| {
        format!("  - {{match: [{{headers: {{x-case: {{exact: c{number}}}}}}}], {fields}route: [{{destination: {{host: web.example.com}}}}]}}\n")
    });
    let rules: String = rules.collect();
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  hosts: [web.example.com]\n  http:\n{rules}"
    )
}

/// A request of each protocol, in this case, with this much time.
fn asked(kind: &str, path: &str, number: usize, deadline: Limit) -> Request<Body> {
    // Each with a query of its own, so that servers tell them apart.
    let path = format!("{path}?{number}-{kind}-{deadline:?}");
    let mut asked = match kind {
        "gRPC" => grpc(&path, &[]),
        "HTTP/2" => http2("GET", &path),
        _ => request("GET", &path),
    };
    asked.headers_mut().insert("x-case", format!("c{number}").parse().unwrap());
    if let Some(time) = deadline.time() {
        asked.extensions_mut().insert(Deadline(Instant::now() + time));
    }
    asked
}

const KINDS: [&str; 3] = ["HTTP/1.1", "HTTP/2", "gRPC"];

#[tokio::test]
async fn of_all_limits_of_time_the_nearest_holds() {
    let mut cases = Vec::new();
    for route in LIMITS {
        for per_try in LIMITS {
            for attempts in [1, 2] {
                cases.push((route, per_try, attempts));
            }
        }
    }
    let world = World::new(
        2,
        &rules(cases.iter().map(|(route, per_try, attempts)| {
            let per_try = per_try.written("perTryTimeout");
            format!(
                "{}retries: {{attempts: {attempts}, {per_try}retryOn: '5xx', backoff: 1ms}}, ",
                route.written("timeout")
            )
        })),
    )
    .await;
    let experienced = cases.iter().enumerate().flat_map(|(number, case)| {
        let each = KINDS.into_iter().flat_map(|kind| LIMITS.map(|deadline| (kind, deadline)));
        each.map(move |(kind, deadline)| (number, case, kind, deadline))
    });
    // So that there are a configuration and connections.
    for kind in KINDS {
        world.ask(asked(kind, "/ok", 0, Limit::None)).await.unwrap();
    }
    world.log.take();
    let world = &world;
    join_all(experienced.map(async |(number, (route, per_try, attempts), kind, deadline)| {
        let what =
            format!("{kind}: timeout {route:?}, perTryTimeout {per_try:?}, {attempts} retries, deadline {deadline:?}");
        let of_request = [*route, deadline];
        if *per_try == Short || of_request.contains(&Short) {
            let error = world.ask(asked(kind, "/hang", number, deadline)).await.unwrap_err();
            let is_slow = *per_try == Short && error.kind() == ErrorKind::ConnectFailure;
            assert!(error.kind() == ErrorKind::Timeout || is_slow, "{what}: {error}");
            let of_try = error.to_string().contains("in the time of a try");
            match (of_request.contains(&Short), *per_try == Short) {
                (true, false) => assert!(!of_try, "{what}: {error}"),
                (false, true) => assert!(of_try, "{what}: {error}"),
                // Whichever is a moment before the other.
                _ => {}
            }
        } else {
            let answer = world.ask(asked(kind, "/ok", number, deadline)).await.unwrap();
            assert_eq!(answer.0, 200, "{what}");
        }
    }))
    .await;
    // What servers saw of it.
    let seen = world.log.take();
    let mut most = 0;
    for (number, (route, per_try, attempts)) in cases.iter().enumerate() {
        for kind in KINDS {
            for deadline in LIMITS {
                let what = format!(
                    "{kind}: timeout {route:?}, perTryTimeout {per_try:?}, {attempts} retries, deadline {deadline:?}"
                );
                let query = format!("?{number}-{kind}-{deadline:?}");
                let tries: Vec<_> = seen.iter().filter(|seen| seen.path.ends_with(&query)).collect();
                let of_request = [*route, deadline];
                // A machine with much to do may have no connection in time.
                let expected = match (of_request.contains(&Short), *per_try == Short) {
                    (_, true) => 0..=attempts + 1,
                    (true, false) => 0..=1,
                    (false, false) => 1..=1,
                };
                most = most.max(tries.len());
                assert!(expected.contains(&tries.len()), "{what}: {} tries", tries.len());
                // How much time a server is told of: of a call, all of it.
                let Some(first) = tries.first() else { continue };
                let told =
                    first.headers.get(if kind == "gRPC" { "grpc-timeout" } else { "x-envoy-expected-rq-timeout-ms" });
                let told = told.map(|value| match kind {
                    "gRPC" => grpc_timeout::parse(value.as_bytes()).unwrap(),
                    _ => Duration::from_millis(value.to_str().unwrap().parse().unwrap()),
                });
                let per_try = Some(*per_try).filter(|_| kind != "gRPC").unwrap_or(Limit::None);
                let nearest = [*route, deadline, per_try].into_iter().filter_map(Limit::time).min();
                assert_eq!(told.is_some(), nearest.is_some(), "{what}");
                assert!(
                    told <= nearest && told.is_none_or(|told| told * 2 > nearest.unwrap() || nearest == Short.time()),
                    "{what}: {told:?}"
                );
            }
        }
    }
    assert_eq!(most, 3, "two retries at most");
    world.until_open(0).await;
    assert_eq!(world.under_way(), (0, 0));
}

#[tokio::test]
async fn faults_come_before_everything_but_the_callers_own_deadline() {
    const ABORTS: [&str; 3] = ["", "httpStatus: 418", "grpcStatus: UNAVAILABLE"];
    let mut cases = Vec::new();
    for delay in LIMITS {
        for abort in ABORTS {
            for route in [Limit::None, Long] {
                cases.push((delay, abort, route));
            }
        }
    }
    let share = "percentage: {value: 100}";
    let world = World::new(
        1,
        &rules(cases.iter().map(|(delay, abort, route)| {
            let delay = if *delay == Limit::None {
                String::new()
            } else {
                format!("delay: {{{}{share}}}, ", delay.written("fixedDelay"))
            };
            let abort = if abort.is_empty() { String::new() } else { format!("abort: {{{abort}, {share}}}") };
            let fault = if delay.is_empty() && abort.is_empty() {
                String::new()
            } else {
                format!("fault: {{{delay}{abort}}}, ")
            };
            format!(
                "{fault}{}retries: {{attempts: 2, retryOn: '5xx,unavailable', backoff: 1ms}}, ",
                route.written("timeout")
            )
        })),
    )
    .await;
    // So that there is a configuration.
    for kind in KINDS {
        world.ask(asked(kind, "/ok", 0, Limit::None)).await.unwrap();
    }
    world.log.take();
    let world = &world;
    let each = cases.iter().enumerate().flat_map(|(number, case)| KINDS.map(move |kind| (number, case, kind)));
    join_all(each.map(async |(number, (delay, abort, route), kind)| {
        let what = format!("{kind}: delay {delay:?}, abort {abort:?}, timeout {route:?}");
        // Nobody waits for a long delay.
        let deadline = if *delay == Long { Short } else { Limit::None };
        let response = world.mesh.client().request(asked(kind, "/ok", number, deadline)).await;
        if *delay == Long {
            let error = response.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{what}");
            assert!(error.to_string().contains("held the request back"), "{what}: {error}");
            return;
        }
        let response = response.unwrap();
        let grpc_status = response.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned());
        let expected = match (*abort, kind) {
            ("", _) => (200, None),
            // gRPC has its own words for the statuses of HTTP; a status of gRPC is a 200 for others, as in Envoy.
            ("httpStatus: 418", "gRPC") => (200, Some("2")),
            ("httpStatus: 418", _) => (418, None),
            (_, "gRPC") => (200, Some("14")),
            _ => (200, None),
        };
        assert_eq!((response.status().as_u16(), grpc_status.as_deref()), expected, "{what}");
    }))
    .await;
    // What is aborted, or never let go, reaches nobody, and is not tried again.
    let seen = world.log.take();
    for (number, (delay, abort, _)) in cases.iter().enumerate() {
        let reached = seen.iter().filter(|seen| seen.path.contains(&format!("?{number}-"))).count();
        let expected = if *delay != Long && abort.is_empty() { KINDS.len() } else { 0 };
        assert_eq!(reached, expected, "{delay:?} {abort:?}");
    }
}
