//! How long a try may take, how many retries there may be, and what is left of a request that is given up.

use std::time::{Duration, Instant};

use http::Request;
use mesh_core::error::ErrorKind;
use mesh_core::grpc_timeout;
use mesh_core::request_info::Deadline;
use mesh_tower::body::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::world::{Log, World, grpc, http2, request, retries, rule};

#[tokio::test]
async fn a_try_that_takes_too_long_is_given_up_and_made_again() {
    let world = World::new(2, &retries("attempts: 1, perTryTimeout: 100ms, retryOn: '5xx', backoff: 1ms")).await;
    let path = "/then-ok/1/hang";
    for request in [request("GET", path), http2("POST", path), grpc(path, &[])] {
        world.log.take();
        assert_eq!(world.ask(request).await.unwrap().0, 200);
        assert_eq!(world.log.take().len(), 2);
        // The server is told, too.
        world.until_open(0).await;
    }
    for request in [request("GET", "/hang"), http2("POST", "/hang"), grpc("/hang", &[])] {
        let error = world.ask(request).await.unwrap_err();
        assert_eq!((error.kind(), world.log.take().len()), (ErrorKind::Timeout, 2));
        assert!(error.to_string().contains("no response in the time of a try"), "{error}");
        world.until_open(0).await;
        assert_eq!(world.under_way(), (0, 0));
    }
}

#[tokio::test]
async fn a_try_that_takes_too_long_is_the_last_where_no_condition_is_about_it() {
    for on in ["", ", retryOn: 'refused-stream,unavailable,deadline-exceeded,503'"] {
        let world = World::new(2, &retries(&format!("attempts: 3, perTryTimeout: 50ms{on}"))).await;
        for request in [request("GET", "/hang"), grpc("/hang", &[])] {
            let error = world.ask(request).await.unwrap_err();
            assert_eq!((error.kind(), world.log.take().len()), (ErrorKind::Timeout, 1), "{on}");
        }
    }
}

/// A peer that takes no connection: the time of a try has it in, unlike in Envoy, and what was not sent is not processed.
#[tokio::test]
async fn a_connection_that_does_not_come_is_a_try_that_takes_too_long() {
    // TLS that nobody answers: the handshake never ends.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let yaml = retries("attempts: 2, perTryTimeout: 50ms, retryOn: connect-failure, backoff: 1ms")
        + "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec: {host: web.example.com, trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}}\n";
    let world = World::of(&[silent.local_addr().unwrap()], &yaml, Log::default(), &watch::Sender::new(0)).await;
    let error = world.ask(request("POST", "/ok")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectFailure, "{error}");
    assert_eq!(world.tries(request("POST", "/ok")).await.0, 3);
}

#[tokio::test]
async fn the_time_of_the_request_is_that_of_all_its_tries() {
    let yaml = rule(
        "timeout: 300ms, retries: {attempts: 1000, perTryTimeout: 100ms, retryOn: '5xx,unavailable', backoff: 1ms}, ",
    );
    let world = World::new(2, &yaml).await;
    for request in [request("GET", "/hang"), http2("PUT", "/hang"), grpc("/hang", &[])] {
        let began = Instant::now();
        assert_eq!(world.ask(request).await.unwrap_err().kind(), ErrorKind::Timeout);
        assert!(began.elapsed() >= Duration::from_millis(300));
        let tries = world.log.take().len();
        assert!((1..=3).contains(&tries), "{tries} tries of 100 ms in 300 ms");
        world.until_open(0).await;
    }
}

/// As in Envoy: it is for the head of the answer.
#[tokio::test]
async fn the_time_of_a_try_ends_with_the_head_of_its_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            _ = stream.read(&mut [0; 4096]).await;
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nsl").await;
            tokio::time::sleep(Duration::from_millis(400)).await;
            _ = stream.write_all(b"owly").await;
        }
    });
    let yaml = retries("attempts: 1, perTryTimeout: 200ms, retryOn: '5xx'");
    let world = World::of(&[address], &yaml, Log::default(), &watch::Sender::new(0)).await;
    assert_eq!(world.ask(request("GET", "/")).await.unwrap().1, "slowl");
}

/// Headers of the only try of a request.
async fn told(world: &World, request: Request<Body>) -> http::HeaderMap {
    world.log.take();
    world.ask(request).await.unwrap();
    world.log.take().remove(0).headers
}

#[tokio::test]
async fn servers_are_told_how_long_there_is_left() {
    let expected = |headers: &http::HeaderMap| {
        let value = headers.get("x-envoy-expected-rq-timeout-ms")?;
        Some(Duration::from_millis(value.to_str().unwrap().parse().unwrap()))
    };
    let within = |told: Option<Duration>, most: u64| {
        told.is_some_and(|told| told > Duration::ZERO && told <= Duration::from_secs(most))
    };
    let world = World::new(1, &rule("timeout: 20s, ")).await;
    assert!(within(expected(&told(&world, request("GET", "/ok")).await), 20));
    let of_call = told(&world, grpc("/ok", &[])).await;
    assert!(within(grpc_timeout::parse(of_call["grpc-timeout"].as_bytes()), 20));
    // The caller has less time, or the application said something else.
    let mut hurried = request("GET", "/ok");
    hurried.extensions_mut().insert(Deadline(Instant::now() + Duration::from_secs(10)));
    hurried.headers_mut().insert("x-envoy-expected-rq-timeout-ms", "1000000".parse().unwrap());
    assert!(within(expected(&told(&world, hurried).await), 10));
    let of_tries = World::new(1, &rule("timeout: 20s, retries: {attempts: 1, perTryTimeout: 5s}, ")).await;
    assert!(within(expected(&told(&of_tries, request("GET", "/ok")).await), 5));
    // A call that streams goes on when its try has been answered.
    let of_call = told(&of_tries, grpc("/ok", &[])).await;
    assert!(grpc_timeout::parse(of_call["grpc-timeout"].as_bytes()).unwrap() > Duration::from_secs(5));
    let unlimited = World::new(1, "").await;
    assert_eq!(expected(&told(&unlimited, request("GET", "/ok")).await), None);
}

/// Sends a request in a task of its own.
pub(crate) fn spawn(world: &World, request: Request<Body>) -> JoinHandle<Option<u16>> {
    let asked = world.mesh.client().request(request);
    tokio::spawn(async move { asked.await.ok().map(|response| response.status().as_u16()) })
}

pub(crate) async fn until(condition: impl Fn() -> bool) {
    let met = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), met).await.expect("it comes to that");
}

fn limited(policy: &str) -> String {
    let rule = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web}}\nspec: {{host: web.example.com, trafficPolicy: {{{policy}}}}}\n"
    );
    retries("attempts: 2, retryOn: '503', backoff: 1ms") + &rule
}

#[tokio::test]
async fn there_are_never_more_retries_under_way_than_the_cluster_allows() {
    // As many as are kept for a cluster of which nothing is known yet.
    const ASKED: usize = 20;
    for (limit, expected) in [("{maxRetries: 3}", 3), ("{maxRetries: 0}", ASKED), ("{}", ASKED)] {
        let world = World::new(2, &limited(&format!("connectionPool: {{http: {limit}}}"))).await;
        let asked: Vec<_> = (0..ASKED)
            .map(|number| spawn(&world, request("GET", &format!("/then-hang/1/status/503?{number}"))))
            .collect();
        let counts = (expected as u32, expected as u32);
        let others = || asked.iter().filter(|asked| asked.is_finished()).count();
        until(|| world.under_way() == counts && others() == ASKED - expected).await;
        world.until_open(expected).await;
        for asked in asked.iter().filter(|asked| !asked.is_finished()) {
            asked.abort();
        }
        for asked in asked {
            assert!(matches!(asked.await, Ok(Some(503)) | Err(_)), "{limit}");
        }
        world.until_open(0).await;
        assert_eq!(world.under_way(), (0, 0), "{limit}");
    }
}

#[tokio::test]
async fn a_budget_allows_a_share_of_the_requests_under_way_and_some_in_any_case() {
    for (budget, under_way, expected) in [
        ("{percent: 20, minRetryConcurrency: 1}", 0, 1),
        ("{percent: 20, minRetryConcurrency: 1}", 10, 2),
        ("{percent: 20, minRetryConcurrency: 4}", 10, 4),
        ("{percent: 0, minRetryConcurrency: 0}", 10, 0),
        // Istio's default, which is Envoy's.
        ("{}", 0, 3),
    ] {
        let budget = limited(&format!("retryBudget: {budget}, connectionPool: {{http: {{maxRetries: 1}}}}"));
        let world = World::new(2, &budget).await;
        let mut tasks: Vec<_> = (0..under_way).map(|_| spawn(&world, request("GET", "/hang"))).collect();
        world.until_open(under_way).await;
        for number in 0..expected {
            tasks.push(spawn(&world, request("GET", &format!("/then-hang/1/status/503?{number}"))));
            until(|| world.under_way().1 == number as u32 + 1).await;
        }
        let (status, _) = world.ask(request("GET", "/then-hang/1/status/503?more")).await.unwrap();
        assert_eq!((status.as_u16(), world.under_way().1), (503, expected as u32), "{budget}");
        tasks.iter().for_each(JoinHandle::abort);
        world.until_open(0).await;
    }
}

#[tokio::test]
async fn a_budget_is_a_share_of_requests_and_not_of_tries() {
    let budget = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web}\nspec: {host: web.example.com, trafficPolicy: {retryBudget: {percent: 50, minRetryConcurrency: 1, budgetInterval: 1h}}}\n";
    let world = World::new(1, &(retries("attempts: 3, retryOn: '503', backoff: 1ms") + budget)).await;
    let task = spawn(&world, request("GET", "/then-hang/3/status/503"));
    until(|| world.log.seen() == 4).await;
    // Half of two requests is one retry, and that is under way.
    world.ask(request("GET", "/status/503")).await.unwrap();
    assert_eq!(world.log.seen(), 5);
    task.abort();
}

#[tokio::test]
async fn a_failure_says_that_there_are_too_many_retries() {
    let yaml = limited("connectionPool: {http: {maxRetries: 1}}").replace("retryOn: '503'", "retryOn: 'reset,503'");
    let world = World::new(2, &yaml).await;
    let task = spawn(&world, request("GET", "/then-hang/1/status/503"));
    until(|| world.under_way().1 == 1).await;
    let error = world.ask(http2("GET", "/reset")).await.unwrap_err();
    // The second port is another cluster, with a limit of its own.
    assert!(!error.to_string().contains("under way"), "{error}");
    let error = world.ask(request("GET", "/reset")).await.unwrap_err();
    assert!(error.to_string().contains("not tried again: 1 retries are under way, which is the limit"), "{error}");
    task.abort();
}

/// In whatever state it is: with its first try, in a pause, or with a retry.
#[tokio::test]
async fn a_caller_that_goes_away_takes_everything_along() {
    let patient = World::new(2, &retries("attempts: 2, retryOn: '503', backoff: 1000s")).await;
    let hasty = World::new(2, &retries("attempts: 2, retryOn: '503', backoff: 1ms")).await;
    for kind in ["HTTP/1.1", "HTTP/2", "gRPC"] {
        let asking = |path: &str| match kind {
            "gRPC" => grpc(path, &[]),
            "HTTP/2" => http2("GET", path),
            _ => request("GET", path),
        };
        let first = spawn(&hasty, asking("/hang"));
        hasty.until_open(1).await;
        assert_eq!(hasty.under_way(), (1, 0));
        let again = spawn(&hasty, asking(&format!("/then-hang/1/status/503?{kind}")));
        until(|| hasty.under_way() == (2, 1)).await;
        hasty.until_open(2).await;
        let pausing = spawn(&patient, asking("/status/503"));
        until(|| patient.under_way() == (0, 1)).await;
        for task in [first, again, pausing] {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        }
        // The server's handlers are dropped, too.
        hasty.until_open(0).await;
        assert_eq!((hasty.under_way(), patient.under_way()), ((0, 0), (0, 0)));
    }
}
