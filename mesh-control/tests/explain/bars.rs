//! How fast it has to be: measurements, for release builds.

use std::time::Duration;

use crate::support::{SHOP, dir_of, rules, run};

/// Run with `cargo test --release -p mesh-control --test explain -- --ignored`.
#[test]
#[ignore = "a measurement, which means nothing in a debug build"]
fn twenty_thousand_requests_a_second_are_answered() {
    const REQUESTS: usize = 200_000;
    let http = (0..100).map(|at| {
        format!("  - name: r{at}\n    match: [{{uri: {{prefix: /r{at}/}}, headers: {{x-tier: {{exact: gold}}}}}}]\n    route: [{{destination: {{host: reviews, subset: v1}}}}]\n")
    });
    let last = "  - route: [{destination: {host: reviews}}]\n";
    let dir = dir_of(&format!("{SHOP}{}{last}", rules(&http.collect::<String>())));
    let requests: String = (0..REQUESTS)
        .map(|at| {
            let (namespace, path) = (at % 50, at % 200);
            format!(
                "{{\"id\": {at}, \"kind\": \"mesh\", \"source\": {{\"namespace\": \"n{namespace}\", \"labels\": {{\"app\": \"web\"}}}}, \"host\": \"reviews.shop\", \"path\": \"/r{path}/x\", \"headers\": {{\"x-tier\": \"gold\"}}}}\n"
            )
        })
        .collect();
    std::fs::write(dir.path().join("requests.jsonl"), requests).unwrap();
    let started = std::time::Instant::now();
    let arguments = ["route", "test", "--config", ".", "--requests", "requests.jsonl", "-o", "json"];
    let output = run(&arguments, dir.path(), "");
    let took = started.elapsed();
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), REQUESTS);
    println!("{:.0} requests a second, with the start of the process", REQUESTS as f64 / took.as_secs_f64());
    assert!(took.as_secs_f64() < REQUESTS as f64 / 20_000.0, "{took:?}");
}

/// Run with `cargo test --release -p mesh-control --test explain -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, which means nothing in a debug build"]
fn one_request_among_ten_thousand_routes_is_explained_in_fifty_milliseconds_beyond_reading() {
    let http: String = (0..10_000)
        .map(|at| format!("  - name: r{at}\n    match: [{{uri: {{prefix: /r{at}/}}}}]\n    timeout: 1s\n    route: [{{destination: {{host: reviews, subset: v1}}}}]\n"))
        .collect();
    let dir = dir_of(&format!("{SHOP}{}", rules(&http)));
    let took = |arguments: &[&str]| {
        let one = |_| {
            let started = std::time::Instant::now();
            assert!(run(arguments, dir.path(), "").status.success());
            started.elapsed()
        };
        (0..5).map(one).min().unwrap()
    };
    std::fs::write(dir.path().join("none.jsonl"), "").unwrap();
    let reading = took(&["route", "test", "--config", ".", "--requests", "none.jsonl"]);
    for format in ["text", "json"] {
        let explain =
            ["explain", "--config", ".", "--from", "shop/reviews", "GET", "http://reviews/r9999/x", "-o", format];
        let whole = took(&explain);
        let beyond = whole.saturating_sub(reading);
        println!("{format}: {whole:?}, of which reading {reading:?}: {beyond:?} beyond");
        assert!(beyond <= Duration::from_millis(50), "{beyond:?}");
    }
}
