//! Hedging: a try that takes too long goes on, and the next one begins beside it.

use bytes::Bytes;
use mesh_core::error::ErrorKind;
use mesh_core::request_info::Repeat;

use super::limits::{spawn, until};
use super::world::{World, grpc, http2, request, rule, streamed};

/// A rule with these fields, whose requests are hedged.
fn hedged(fields: &str) -> String {
    rule(fields).replace("{name: web}", "{name: web, annotations: {mesh-control/hedge: on-per-try-timeout}}")
}

const TWO: &str = "retries: {attempts: 1, perTryTimeout: 50ms, retryOn: '503', backoff: 1ms}, ";

#[tokio::test]
async fn the_first_answer_wins_whichever_try_it_is_of_and_the_other_try_is_given_up() {
    let world = World::new(2, &hedged(TWO)).await;
    // The first try answers as soon as there is a second one, or the second one answers.
    for path in ["/then-hang/1/late/ok", "/then-ok/1/hang"] {
        for asked in [request("GET", path), http2("POST", path), grpc(path, &[])] {
            world.log.take();
            assert_eq!(world.ask(asked).await.unwrap().0, 200, "{path}");
            assert_eq!(world.log.take().len(), 2, "{path}");
            world.until_open(0).await;
            assert_eq!(world.under_way(), (0, 0), "{path}");
        }
    }
}

#[tokio::test]
async fn both_tries_count_and_a_caller_that_goes_away_takes_both_along() {
    let world = World::new(2, &hedged(TWO)).await;
    for asked in [request("GET", "/hang"), http2("GET", "/hang"), grpc("/hang", &[])] {
        let task = spawn(&world, asked);
        world.until_open(2).await;
        until(|| world.under_way() == (2, 1)).await;
        task.abort();
        world.until_open(0).await;
        assert_eq!(world.under_way(), (0, 0));
    }
}

#[tokio::test]
async fn a_bad_answer_is_not_taken_as_long_as_there_may_be_a_better_one() {
    let world = World::new(2, &hedged(TWO)).await;
    for (path, expected) in [("/then-late/1/late/status/503", 503), ("/then-ok/1/late/status/503", 200)] {
        for asked in [request("GET", path), http2("GET", path)] {
            world.log.take();
            assert_eq!(world.ask(asked).await.unwrap().0.as_u16(), expected, "{path}");
            world.until_open(0).await;
        }
    }
    let world = World::new(2, &hedged(TWO)).await;
    let answer = world.ask(request("GET", "/then-reset/1/late/ok")).await.unwrap();
    assert_eq!((answer.0.as_u16(), world.log.take().len()), (200, 2));
}

#[tokio::test]
async fn an_answer_to_a_try_beside_another_says_how_its_endpoint_is() {
    let checked = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, annotations: {mesh-control/health-check: 'path=/hang, interval=1h, timeout=30m'}}\nspec: {host: web.example.com}\n";
    let world = World::new(2, &(hedged(TWO) + checked)).await;
    let mut asked = request("GET", "/then-hang/1/late/ok");
    asked.headers_mut().insert("give-x-envoy-immediate-health-check-fail", "1".parse().unwrap());
    assert_eq!(world.ask(asked).await.unwrap().0, 200);
    assert_eq!(world.unwell(), 1);
}

#[tokio::test]
async fn what_may_not_be_sent_twice_has_one_try() {
    let world = World::new(2, &hedged(TWO)).await;
    for (repeat, tries) in [(Repeat::Never, 1), (Repeat::IfUnprocessed, 1), (Repeat::Idempotent, 2)] {
        let mut asked = request("POST", "/then-ok/1/hang");
        asked.extensions_mut().insert(repeat);
        world.log.take();
        let answer = world.ask(asked).await.map(|answer| answer.0.as_u16()).map_err(|error| error.kind());
        assert_eq!(answer, if tries == 1 { Err(ErrorKind::Timeout) } else { Ok(200) }, "{repeat:?}");
        assert_eq!(world.log.take().len(), tries, "{repeat:?}");
    }
}

#[tokio::test]
async fn a_body_that_was_streamed_is_sent_by_both_tries() {
    let world = World::new(2, &hedged(TWO)).await;
    let frames = || vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")];
    for (path, uri) in
        [("/then-ok/1/hang", "http://web.example.com"), ("/then-hang/1/late/ok", "http://web.example.com:81")]
    {
        world.log.take();
        let asked = http::Request::post(format!("{uri}{path}")).body(streamed(frames())).unwrap();
        assert_eq!(world.ask(asked).await.unwrap(), (http::StatusCode::OK, Bytes::from_static(b"onetwo")), "{path}");
        let bodies: Vec<_> = world.log.take().into_iter().map(|seen| seen.body).collect();
        assert_eq!(bodies, [Some(Bytes::from_static(b"onetwo")), Some(Bytes::from_static(b"onetwo"))], "{path}");
    }
}

/// There is no place for the second one: the first goes on, to the end of the request's time.
#[tokio::test]
async fn a_limit_of_the_cluster_holds_for_tries_beside_others() {
    for (limited, time, expected) in [
        ("{connectionPool: {http: {http2MaxRequests: 1}}}", "300ms", (Err(ErrorKind::Timeout), 1)),
        ("{retryBudget: {percent: 0, minRetryConcurrency: 0}}", "300ms", (Err(ErrorKind::Timeout), 1)),
        ("{}", "60s", (Ok(200), 2)),
    ] {
        let breakers = format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web}}\nspec: {{host: web.example.com, trafficPolicy: {limited}}}\n"
        );
        let world = World::new(2, &(hedged(&format!("timeout: {time}, {TWO}")) + &breakers)).await;
        let answer = world.ask(request("GET", "/then-ok/1/hang")).await;
        let answer = answer.map(|answer| answer.0.as_u16()).map_err(|error| error.kind());
        assert_eq!((answer, world.log.take().len()), expected, "{limited}");
        world.until_open(0).await;
        assert_eq!(world.under_way(), (0, 0));
    }
}
