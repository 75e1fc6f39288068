//! Which outcome is tried again under which policy: truth tables.

use std::time::{Duration, Instant};

use http::{Method, Request};
use mesh_core::error::ErrorKind;
use mesh_core::request_info::Repeat;
use mesh_tower::body::Body;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

use super::world::{Log, World, grpc, http2, nobody, request, retries, rule, server};

const METHODS: [Method; 4] = [Method::GET, Method::PUT, Method::POST, Method::DELETE];

/// The statuses of gRPC that some condition is about, and two others.
const GRPC: [(&str, &str); 7] = [
    ("cancelled", "1"),
    ("unknown", "2"),
    ("deadline-exceeded", "4"),
    ("resource-exhausted", "8"),
    ("internal", "13"),
    ("unavailable", "14"),
    ("data-loss", "15"),
];

/// Asks for everything that a server can do wrong, by every method, and says which of it took more than one try.
async fn retried(world: &World, tries: u32) -> Vec<String> {
    let mut retried = Vec::new();
    let mut note = |what: &str, method: &str, (told, seen): (u32, usize)| {
        assert_eq!(told as usize, seen, "{what} {method}: tries as told and as seen");
        assert!(told == 1 || told == tries, "{what} {method}: {told} tries");
        if told > 1 {
            retried.push(format!("{what} {method}"));
        }
    };
    for method in &METHODS {
        let method = method.as_str();
        for status in ["200", "404", "409", "429", "500", "502", "503", "504"] {
            note(status, method, world.tries(request(method, &format!("/status/{status}"))).await);
        }
        note("reset", method, world.tries(request(method, "/reset")).await);
        note("reset of a stream", method, world.tries(http2(method, "/reset")).await);
        note("refused", method, world.tries(http2(method, "/refuse")).await);
    }
    for (name, code) in GRPC {
        note(name, "gRPC", world.tries(grpc("/status/200", &[("give-grpc-status", code)])).await);
        // Without a body there is nothing that would not be an answer.
        note(name, "not gRPC", {
            let mut request = request("GET", "/status/200");
            request.headers_mut().insert("give-grpc-status", code.parse().unwrap());
            world.tries(request).await
        });
    }
    for method in ["GET", "POST"] {
        let mut limited = request(method, "/status/503");
        limited.headers_mut().insert("give-x-envoy-ratelimited", "true".parse().unwrap());
        note("503 for its rate", method, world.tries(limited).await);
    }
    retried.sort();
    retried
}

/// What is retried of a kind, by every method.
fn by_every_method(what: &[&str]) -> Vec<String> {
    what.iter().flat_map(|what| METHODS.iter().map(move |method| format!("{what} {method}"))).collect()
}

/// As many tries as a dead service is worth to each method.
async fn at_dead_ends(yaml: &str) -> Vec<u32> {
    let dead = [nobody().await, nobody().await, nobody().await, nobody().await, nobody().await];
    let world = World::of(&dead, yaml, Log::default(), &watch::Sender::new(0)).await;
    let mut tries = Vec::new();
    for method in METHODS {
        tries.push(world.tries(request(method.as_str(), "/ok")).await.0);
    }
    tries.push(world.tries(grpc("/ok", &[])).await.0);
    tries
}

/// Istio's default: two retries of what was not processed, and of two statuses of gRPC. No status of HTTP, and no reset.
#[tokio::test]
async fn istios_default_is_what_holds_where_nobody_says_anything() {
    let mut expected = by_every_method(&["refused"]);
    expected.extend(["cancelled gRPC", "unavailable gRPC"].map(str::to_owned));
    expected.sort();
    for yaml in ["".to_owned(), rule("")] {
        let world = World::new(3, &yaml).await;
        assert_eq!(retried(&world, 3).await, expected, "{yaml}");
        assert_eq!(at_dead_ends(&yaml).await, [3; 5], "{yaml}");
    }
}

#[tokio::test]
async fn each_condition_is_about_its_own_outcomes_whatever_the_method() {
    let statuses = ["500", "502", "503", "504"];
    let no_answer = ["refused", "reset", "reset of a stream"];
    let words: [(&str, Vec<&str>, &[&str], bool); 16] = [
        ("5xx", [&statuses[..], &no_answer].concat(), &[], true),
        ("gateway-error", [&statuses[1..], &no_answer].concat(), &[], true),
        ("reset", no_answer.to_vec(), &[], true),
        ("reset-before-request", vec![], &[], true),
        ("connect-failure", vec![], &[], true),
        ("refused-stream", vec!["refused"], &[], false),
        ("retriable-4xx", vec!["409"], &[], false),
        ("404", vec!["404"], &[], false),
        ("429,504", vec!["429", "504"], &[], false),
        ("retriable-status-codes", vec![], &[], false),
        ("retriable-headers", vec![], &[], false),
        ("http3-post-connect-failure", vec![], &[], false),
        ("envoy-ratelimited", vec![], &["503 for its rate GET", "503 for its rate POST"], false),
        ("cancelled,deadline-exceeded", vec![], &["cancelled gRPC", "deadline-exceeded gRPC"], false),
        ("internal,resource-exhausted", vec![], &["internal gRPC", "resource-exhausted gRPC"], false),
        ("unavailable", vec!["refused"], &["unavailable gRPC"], true),
    ];
    for (on, kinds, more, dead_ends) in words {
        let yaml = retries(&format!("attempts: 1, retryOn: '{on}', backoff: 1ms"));
        let mut expected = by_every_method(&kinds);
        expected.extend(more.iter().map(|&what| what.to_owned()));
        expected.sort();
        let world = World::new(2, &yaml).await;
        assert_eq!(retried(&world, 2).await, expected, "{on}");
        assert_eq!(at_dead_ends(&yaml).await, [if dead_ends { 2 } else { 1 }; 5], "{on}");
    }
}

#[tokio::test]
async fn no_attempts_are_one_try_of_everything() {
    let yaml = retries("attempts: 0");
    let world = World::new(2, &yaml).await;
    assert_eq!(retried(&world, 1).await, [""; 0]);
    assert_eq!(at_dead_ends(&yaml).await, [1; 5]);
}

const SETTINGS: &str = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    defaultHttpRetryPolicy: ";

#[tokio::test]
async fn the_meshs_own_default_holds_where_a_rule_says_nothing() {
    let settings = |policy: &str| format!("{SETTINGS}{policy}\n");
    let never = settings("{attempts: 0}");
    let conflicts = settings("{attempts: 3, retryOn: retriable-4xx, backoff: 1ms}");
    for (yaml, tries) in [
        (conflicts.clone(), 4),
        (conflicts.clone() + &rule(""), 4),
        (conflicts.clone() + &retries("attempts: 1, retryOn: '409'"), 2),
        (conflicts + &retries("attempts: 0"), 1),
        (never.clone(), 1),
        (never.clone() + &retries("attempts: 1, retryOn: '409'"), 2),
    ] {
        let world = World::new(1, &yaml).await;
        assert_eq!(world.tries(request("GET", "/status/409")).await, (tries, tries as usize), "{yaml}");
    }
    assert_eq!(at_dead_ends(&never).await, [1; 5]);
}

#[tokio::test]
async fn the_application_may_have_less_repeated_than_the_policy_wants() {
    let world = World::new(2, &retries("attempts: 2, retryOn: '5xx', backoff: 1ms")).await;
    let dead = [nobody().await, nobody().await, nobody().await];
    let yaml = retries("attempts: 2, retryOn: '5xx', backoff: 1ms");
    let nowhere = World::of(&dead, &yaml, Log::default(), &watch::Sender::new(0)).await;
    let marked = |request: Request<Body>, repeat: Option<Repeat>| {
        let (mut head, body) = request.into_parts();
        repeat.map(|repeat| head.extensions.insert(repeat));
        Request::from_parts(head, body)
    };
    for (repeat, answered, reset, refused, unreachable) in [
        (None, 3, 3, 3, 3),
        (Some(Repeat::Idempotent), 3, 3, 3, 3),
        (Some(Repeat::IfUnprocessed), 1, 1, 3, 3),
        (Some(Repeat::Never), 1, 1, 1, 1),
    ] {
        let tries = [
            world.tries(marked(request("GET", "/status/503"), repeat)).await.0,
            world.tries(marked(http2("PUT", "/reset"), repeat)).await.0,
            world.tries(marked(http2("POST", "/refuse"), repeat)).await.0,
            nowhere.tries(marked(request("POST", "/ok"), repeat)).await.0,
        ];
        assert_eq!(tries, [answered, reset, refused, unreachable], "{repeat:?}");
    }
}

#[tokio::test]
async fn an_answer_that_came_is_the_callers_when_all_tries_are_spent() {
    let world = World::new(2, &retries("attempts: 2, retryOn: '503', backoff: 1ms")).await;
    for (path, status) in
        [("/then-ok/2/status/503", 200), ("/then-ok/3/status/503", 503), ("/then-ok/1/status/500", 500)]
    {
        world.log.take();
        let (answered, _) = world.ask(request("POST", path)).await.unwrap();
        assert_eq!(answered.as_u16(), status, "{path}");
    }
    world.log.take();
    let error = world.ask(http2("POST", "/then-ok/1/reset")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
}

#[tokio::test]
async fn a_retry_goes_to_an_endpoint_that_was_not_tried_unless_the_policy_does_not_care() {
    let servers_of = async |policy: &str| {
        let world = World::new(3, &retries(&format!("attempts: 2, retryOn: '503', backoff: 1ms{policy}"))).await;
        let mut distinct = Vec::new();
        // Of what fails for good, no more is retried than is kept for it.
        for _ in 0..10 {
            world.ask(request("GET", "/status/503")).await.unwrap();
            let mut servers: Vec<_> = world.log.take().into_iter().map(|seen| seen.server).collect();
            assert_eq!(servers.len(), 3);
            servers.sort();
            servers.dedup();
            distinct.push(servers.len());
        }
        distinct
    };
    assert_eq!(servers_of("").await, [3; 10]);
    assert_eq!(servers_of(", retryIgnorePreviousHosts: true").await, [3; 10]);
    // By chance alone, all three are tried two times in nine.
    assert!(servers_of(", retryIgnorePreviousHosts: false").await.into_iter().any(|distinct| distinct < 3));
}

#[tokio::test]
async fn pauses_are_as_long_as_the_policy_says_and_as_servers_ask() {
    let patient = World::new(2, &retries("attempts: 1, retryOn: '5xx', backoff: 100s")).await;
    // The caller does not wait for as long as the pause would last.
    let in_time = |request: Request<Body>| {
        let (mut head, body) = request.into_parts();
        head.extensions.insert(mesh_core::request_info::Deadline(Instant::now() + Duration::from_millis(20)));
        Request::from_parts(head, body)
    };
    // So that there is a configuration.
    patient.ask(request("GET", "/ok")).await.unwrap();
    let mut spared = 0;
    for _ in 0..20 {
        spared += usize::from(patient.tries(in_time(request("GET", "/status/503"))).await.0 == 1);
    }
    // The pause is anything up to 100 s.
    assert!(spared >= 18, "{spared}");

    let hasty = World::new(2, &retries("attempts: 1, retryOn: '5xx,unavailable'")).await;
    let asking = |name: &str, value: &str| {
        let mut request = request("GET", "/status/503");
        request.headers_mut().insert(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        request
    };
    assert_eq!(hasty.tries(asking("give-retry-after", "30")).await, (1, 1), "longer than its longest pause");
    assert_eq!(hasty.tries(asking("give-retry-after", "0")).await, (2, 2));
    assert_eq!(hasty.tries(asking("give-x-envoy-overloaded", "true")).await, (1, 1));
    for (pushback, tries) in [("-1", 1), ("soon", 1), ("1", 2)] {
        let call = grpc("/status/200", &[("give-grpc-status", "14"), ("give-grpc-retry-pushback-ms", pushback)]);
        assert_eq!(hasty.tries(call).await, (tries, tries as usize), "{pushback}");
    }
    let began = Instant::now();
    let call = grpc("/status/200", &[("give-grpc-status", "14"), ("give-grpc-retry-pushback-ms", "300")]);
    assert_eq!(hasty.tries(call).await, (2, 2));
    assert!(began.elapsed() >= Duration::from_millis(300));
}

/// What is answered is the server's last word, from its head on.
#[tokio::test]
async fn an_answer_whose_head_was_handed_on_is_never_tried_again() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (log, open) = (Log::default(), watch::Sender::new(0));
    let count = open.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.send_modify(|count| *count += 1);
            _ = stream.read(&mut [0; 4096]).await;
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
        }
    });
    let world = World::of(&[address], &retries("attempts: 3, retryOn: '5xx,reset'"), log, &open).await;
    let error = world.ask(request("GET", "/")).await.unwrap_err();
    assert_eq!((error.kind(), *open.borrow()), (ErrorKind::ConnectionLost, 1));
}

/// Half of a change would be the header of one configuration at a server of the other.
#[tokio::test]
async fn every_try_of_a_request_is_by_the_configuration_that_it_began_with() {
    let (log, open) = (Log::default(), watch::Sender::new(0));
    let (one, two) = (server(&log, &open).await, server(&log, &open).await);
    let other = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: other}}\nspec: {{hosts: [other.example.com], resolution: STATIC, ports: [{{number: 80, name: http, protocol: HTTP}}], endpoints: [{{address: {}, ports: {{http: {}}}}}]}}\n",
        two.ip(),
        two.port()
    );
    let rule = |name: &str| {
        let armed = retries("attempts: 1, perTryTimeout: 300ms, retryOn: '5xx', backoff: 1ms");
        let armed = armed.replace("route:", &format!("headers: {{request: {{set: {{x-config: {name}}}}}}}, route:"));
        armed.replace("host: web.example.com}", &format!("host: {name}.example.com}}")) + &other
    };
    let world = World::of(&[one], &rule("web"), log, &open).await;
    let asked = world.mesh.client().request(request("GET", "/then-ok/1/hang"));
    let asked = tokio::spawn(asked);
    world.until_open(1).await;
    world.change(&rule("other")).await;
    assert_eq!(asked.await.unwrap().unwrap().status(), 200);
    world.ask(request("GET", "/ok")).await.unwrap();
    let seen: Vec<_> = world.log.take().iter().map(|seen| (seen.server, seen.headers["x-config"].clone())).collect();
    assert_eq!(seen, [(one, "web".parse().unwrap()), (one, "web".parse().unwrap()), (two, "other".parse().unwrap())]);
}

/// The system drops what comes for a port whose backlog is full.
#[tokio::test]
async fn an_endpoint_that_does_not_answer_dials_fails_no_request_and_gets_none_any_more() {
    let (log, open) = (Log::default(), watch::Sender::new(0));
    let good = server(&log, &open).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let silent = full.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(silent)).await {
        waiting.push(stream.unwrap());
    }
    let world = World::of(&[silent, good], &retries("attempts: 1, retryOn: connect-failure"), log, &open).await;
    for _ in 0..20 {
        assert_eq!(world.ask(request("POST", "/ok")).await.unwrap().0, 200);
    }
    assert_eq!(world.unreachable(), 1);
    assert_eq!(world.log.take().len(), 20);
}
