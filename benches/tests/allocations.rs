//! The budget of heap allocations: nothing to decide where a request goes, little to send it and to serve it.
//!
//! Client and server share one thread, and what the mesh adds is the difference to hyper and tonic alone.

use allocation_counter::measure;
use mesh_benches::clients::Unsampled;
use mesh_benches::counts::run;
use mesh_benches::fixtures::{Routes, account, cluster, guarded, limited, limited_request, random};
use mesh_core::authz::Connection;
use mesh_core::balance::PickArgs;
use mesh_core::calls::{Call, Recorder};
use mesh_core::identity::SpiffeId;
use mesh_core::model::BalancerPolicy;
use mesh_core::request::RequestHead;
use mesh_core::request_info::RequestInfo;
use mesh_core::telemetry::SpanSink;
use mesh_core::trace::{Tables, Trace};

/// What a client of the mesh may allocate for a request, above the bare connection.
const CLIENT: f64 = 3.0;
/// What an observer, three filters that let the request go on, and a retry policy may add to that.
const ARMED: f64 = 1.0;
/// What a client may whose service has 100 routes with header operations, CORS and query matches, above the bare connection.
const ROUTED: f64 = 4.0;
/// What a server of the mesh may, above the bare server.
const SERVER: f64 = 2.0;
/// That by which sums of counts to a tenth may differ.
const ROUNDING: f64 = 0.101;

#[test]
fn finding_a_route_and_picking_an_endpoint_allocates_nothing() {
    let policies = [BalancerPolicy::least_request(2), BalancerPolicy::RoundRobin, BalancerPolicy::Random];
    for (kind, policy) in [Routes::Exact, Routes::Prefix, Routes::Mixed].into_iter().zip(policies) {
        let view = kind.view(1000).unwrap();
        let other = cluster(policy.clone(), 100);
        for position in [0, 1, 2, 3, 998] {
            let parts = kind.request(position).unwrap();
            let mut random = random();
            let mut found = false;
            let count = measure(|| {
                let head = RequestHead::of(&parts).unwrap();
                let routed = view.find(&head, &mut random).unwrap();
                let pick = routed.cluster.unwrap().pick(&mut PickArgs::new(&mut random), || head.authority);
                found = pick.is_ok() && other.pick(&mut PickArgs::new(&mut random), || head.authority).is_ok();
            });
            assert!(found);
            assert_eq!(count.count_total, 0, "{kind:?} route {position}, {policy:?}");
        }
    }
}

#[test]
fn a_verdict_of_a_hundred_policies_allocates_nothing() {
    let parts = Routes::Prefix.request(0).unwrap();
    for by_account in [true, false] {
        let table = guarded(100, by_account).unwrap();
        // The first, the last, and nobody's.
        for (number, is_allowed) in [(0, true), (99, true), (100, false)] {
            let peer: SpiffeId = account(number).parse().unwrap();
            let (source, destination) = (([10, 0, 0, 1], 5000).into(), ([10, 0, 0, 2], 8080).into());
            let connection = Connection { peer: Some(&peer), source, remote: source, destination, server_name: None };
            let (mut random, mut admitted) = (random(), false);
            let count = measure(|| {
                let head = RequestHead::of(&parts).unwrap();
                admitted = table.admit(&head, Some(connection), &[], &mut random).verdict().is_allowed;
            });
            assert_eq!((admitted, count.count_total), (is_allowed, 0), "{by_account} {number}");
        }
    }
}

#[test]
fn a_limit_with_a_hundred_rules_of_which_three_apply_allocates_nothing() {
    let filter = limited(100).unwrap();
    let info = RequestInfo::new(std::time::Instant::now(), random());
    // A user who was here before, and one who was not.
    for user in [1, 1, 2] {
        let parts = limited_request(50, user).unwrap();
        let mut is_within = false;
        let count = measure(|| is_within = filter.check(&info, &parts).is_some_and(|verdict| verdict.is_within));
        assert_eq!((is_within, count.count_total), (true, 0), "{user}");
    }
}

#[test]
fn writing_down_a_call_like_one_before_allocates_nothing() {
    let recorder = Recorder::default();
    recorder.set_on(true);
    let mut random = random();
    let rule = Some("AuthorizationPolicy/shop/reviews-callers#0");
    let who = account(0);
    // A path that is known, values in a form that is known, a method of gRPC, and somebody who is refused.
    for (path, other, is_grpc) in [
        ("/api/v1/products", "/api/v1/products?page=2", false),
        ("/api/v1/products/1/reviews", "/api/v1/products/2/reviews", false),
        ("/bookinfo.Ratings/Get", "/bookinfo.Ratings/Get", true),
    ] {
        for (principal, is_allowed) in [(Some(&*who), true), (None, false)] {
            let call = Call { principal, port: 80, is_grpc, method: "POST", path, is_allowed, rule };
            recorder.record(&call, &mut random, || 1);
            let again = Call { path: other, ..call };
            let count = measure(|| (0..1000).for_each(|_| recorder.record(&again, &mut random, || 2)));
            assert_eq!(count.count_total, 0, "{other} {principal:?}");
        }
    }
    assert_eq!(recorder.report().calls.len(), 6);
}

#[test]
fn a_trace_that_is_not_sampled_is_told_without_an_allocation_each() {
    let tracing = Unsampled.tracing();
    let mut random = random();
    let mut headers = http::HeaderMap::with_capacity(8);
    let mut tell = |times: u32| {
        for _ in 0..times {
            headers.clear();
            let mut trace = Trace::default();
            assert_eq!(trace.begin(&tracing, &headers, &mut random), None);
            trace.tell(None, Tables::Kept, &mut headers);
        }
    };
    tell(100);
    let count = measure(|| tell(1000));
    // Values of headers share memory, a piece of it for 45 requests.
    assert!(count.count_total <= 50, "{}", count.count_total);
}

#[test]
fn a_request_keeps_its_budget() {
    for protocol in ["http1", "http2", "grpc"] {
        let raw = allocations("raw", protocol);
        let client = allocations("mesh", protocol) - raw;
        let server = allocations("server", protocol) - raw;
        let armed = allocations("armed", protocol) - raw - client;
        println!("{protocol}: raw {raw:.2}, client {client:+.2}, armed {armed:+.2}, server {server:+.2}");
        assert!(
            armed <= ARMED,
            "{protocol}: an observer, three filters and a retry policy allocate {armed:.2} times more"
        );
        assert!(client <= CLIENT, "{protocol}: the client allocates {client:.2} times above raw");
        assert!(server <= SERVER, "{protocol}: the server allocates {server:.2} times above bare");
    }
}

#[test]
fn a_request_that_is_not_sampled_costs_what_its_two_headers_cost_the_connection() {
    for protocol in ["http1", "http2", "grpc"] {
        let (raw, client, server) =
            (allocations("raw", protocol), allocations("mesh", protocol), allocations("server", protocol));
        // Names that HTTP does not know, values that are new each time, and room for them, on both sides of a bare connection.
        let headers = allocations("told", protocol) - raw;
        println!("{protocol}: headers {headers:+.2}");
        // Alone, and beside metrics and the list of what is under way.
        for (who, server_of) in [("traced", "traced_server"), ("observed", "observed_server")] {
            let (more, served) = (allocations(who, protocol) - client, allocations(server_of, protocol) - server);
            println!("{protocol}: {who} {more:+.2}, {server_of} {served:+.2}");
            assert!(more <= headers + ROUNDING, "{protocol}: a client ({who}) allocates {more:.2} times more");
            assert!(served <= ROUNDING, "{protocol}: a server ({server_of}) allocates {served:.2} times more");
        }
    }
}

#[test]
fn a_request_by_one_of_a_hundred_routes_that_do_much_keeps_its_budget() {
    for protocol in ["http1", "http2"] {
        let routed = allocations("routed", protocol) - allocations("raw", protocol);
        println!("{protocol}: by routes {routed:+.2}");
        assert!(routed <= ROUTED, "{protocol}: a client with many routes allocates {routed:.2} times above raw");
    }
}

/// Allocations per request, to a tenth: now and then hyper grows a buffer.
fn allocations(who: &str, protocol: &str) -> f64 {
    const REQUESTS: u64 = 500;
    let mut count = 0;
    run(&format!("{who}-{protocol}"), REQUESTS, 256, |send| count = measure(send).count_total).unwrap();
    (count as f64 / REQUESTS as f64 * 10.0).round() / 10.0
}
