//! Copies of requests, as a VirtualService wants them: what the mirror is sent, and that the request itself knows nothing of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request as Received;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use mesh_tower::MirrorCounts;
use mesh_tower::body::Body;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinSet;

use crate::breakers::{ask_through_layer, called_by};
use crate::support::{Face, World, nobody, rules, server, service, web};
use crate::upstream::{self, Upstream};

/// What reached a mirror.
#[derive(Debug)]
struct Copied {
    line: String,
    host: String,
    user: String,
    body: Bytes,
    sum: Option<String>,
}

/// A server that fails every request, and tells what reached it.
async fn mirror() -> (SocketAddr, Receiver<Copied>) {
    // More than any test sends.
    let (tell, told) = channel(1024);
    let app = axum::Router::new().fallback(move |request: Received| {
        let tell = tell.clone();
        async move {
            let (head, body) = request.into_parts();
            let text = |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
            let (host, user) = (text("host"), text("x-user"));
            let body = body.collect().await.unwrap();
            let sum = body.trailers().and_then(|trailers| trailers.get("x-sum"));
            let sum = sum.map(|sum| sum.to_str().unwrap().to_owned());
            let line = format!("{} {}", head.method, head.uri);
            tell.try_send(Copied { line, host, user, body: body.to_bytes(), sum }).unwrap();
            StatusCode::INTERNAL_SERVER_ERROR
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    (address, told)
}

async fn next(told: &mut Receiver<Copied>) -> Copied {
    tokio::time::timeout(Duration::from_secs(10), told.recv()).await.expect("a copy in time").unwrap()
}

/// `web.example.com` at a server, `copy.example.com` at a mirror, and a rule with these settings.
async fn mirrored(at: SocketAddr, settings: &str) -> World {
    let services = format!("{}{}", web(&[("v1", server("v1").await)]), service("copy", &[("v1", at)]));
    let rule = rules(&format!("  - route: [{{destination: {{host: web.example.com}}}}]\n{settings}"));
    World::new(&format!("{services}{rule}")).await
}

/// Waits until this is so.
async fn until(world: &World, is_so: impl Fn(MirrorCounts) -> bool) -> MirrorCounts {
    let wait = async {
        while !is_so(world.mirror_counts()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("{:?}", world.mirror_counts()));
    world.mirror_counts()
}

const MIRROR: &str = "    mirror: {host: copy.example.com}\n";

#[tokio::test]
async fn a_copy_has_all_of_the_request_and_its_answer_is_nobodys() {
    let (at, mut told) = mirror().await;
    let world = mirrored(
        at,
        &format!("{MIRROR}    rewrite: {{uri: /new}}\n    headers: {{request: {{set: {{x-user: u}}}}}}\n"),
    )
    .await;
    let request = Request::post("http://web.example.com/old?q=1").body(Body::from("hello")).unwrap();
    let answer = world.ask(request).await.unwrap();
    assert_eq!(answer.status, 200);
    let copied = next(&mut told).await;
    assert_eq!((copied.line.as_str(), copied.user.as_str(), &*copied.body), ("POST /newold?q=1", "u", &b"hello"[..]));
    assert_eq!(copied.host, "web.example.com", "as in Istio, and without Envoy's -shadow");
    assert!(answer.body.contains("POST /newold?q=1"), "{answer:?}");
    assert_eq!(until(&world, |counts| counts.answered == 1).await.failed, 0);
}

#[tokio::test]
async fn a_body_that_is_made_piece_by_piece_is_copied_within_bounds() {
    let (at, mut told) = mirror().await;
    let world = mirrored(at, MIRROR).await;
    let pieces = |count: usize| {
        let frames = (0..count).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b'x'; 16 << 10]))));
        Body::new(StreamBody::new(tokio_stream::iter(frames.collect::<Vec<_>>())))
    };
    for (count, is_copied) in [(3, true), (5, false), (4, true)] {
        let request = Request::post("http://web.example.com/").body(pieces(count)).unwrap();
        assert_eq!(world.ask(request).await.unwrap().status, 200);
        if is_copied {
            assert_eq!(next(&mut told).await.body.len(), count << 14);
        }
    }
    until(&world, |counts| (counts.answered, counts.too_large) == (2, 1)).await;
}

#[tokio::test]
async fn a_copy_has_the_trailers_of_its_request() {
    let (at, mut told) = mirror().await;
    let world = mirrored(at, MIRROR).await;
    for trailers in [true, false] {
        let mut frames = vec![Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"abc")))];
        if trailers {
            frames.push(Ok(Frame::trailers([("x-sum".parse().unwrap(), "6".parse().unwrap())].into_iter().collect())));
        }
        let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
        let request = Request::post("http://web.example.com/").header("trailer", "x-sum").body(body).unwrap();
        assert_eq!(world.ask(request).await.unwrap().status, 200);
        let copied = next(&mut told).await;
        assert_eq!((&copied.body[..], copied.sum.as_deref()), (&b"abc"[..], trailers.then_some("6")));
    }
}

#[tokio::test]
async fn requests_of_the_applications_own_client_are_copied_too() {
    let (at, mut told) = mirror().await;
    let world = mirrored(at, MIRROR).await;
    let request = Request::post("http://web.example.com/a?b").header("x-user", "me").body(Body::from("abc")).unwrap();
    assert_eq!(ask_through_layer(&world, request).await.unwrap(), 200);
    let copied = next(&mut told).await;
    assert_eq!((copied.line.as_str(), copied.user.as_str(), &copied.body[..]), ("POST /a?b", "me", &b"abc"[..]));
    until(&world, |counts| counts.answered == 1).await;
}

#[tokio::test]
async fn as_many_requests_are_copied_as_is_written() {
    for (settings, expected) in [
        (MIRROR.to_owned(), 100..=100),
        (format!("{MIRROR}    mirrorPercentage: {{value: 0}}\n"), 0..=0),
        // 50 expected, within four times the standard deviation.
        (format!("{MIRROR}    mirrorPercentage: {{value: 50}}\n"), 30..=70),
        (format!("{MIRROR}    mirrorPercent: 50\n"), 30..=70),
        (format!("{MIRROR}    mirror_percent: 50\n"), 30..=70),
        ("    mirrors: [{destination: {host: copy.example.com}, percentage: {value: 50}}]\n".to_owned(), 30..=70),
        ("    mirrors: [{destination: {host: copy.example.com}}, {destination: {host: copy.example.com, subset: v1}}]\n".to_owned(), 200..=200),
    ] {
        let (at, mut told) = mirror().await;
        let mut world = mirrored(at, &settings).await;
        for number in 0..100 {
            world.face = Face::OF_REQUESTS[number % 2];
            assert_eq!(world.get("http://web.example.com/").await.unwrap().status, 200);
        }
        let least = *expected.start() as u64;
        let counts = until(&world, |counts| counts.answered >= least).await;
        assert_eq!((counts.failed, counts.overflowed), (0, 0), "{settings}");
        let mut copies = 0;
        while told.try_recv().is_ok() {
            copies += 1;
        }
        assert!(expected.contains(&copies), "{settings}: {copies}");
    }
}

#[tokio::test]
async fn a_mirror_that_hangs_slows_nothing_and_is_bounded() {
    let hung = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = mirrored(hung.local_addr().unwrap(), MIRROR).await;
    let all = async {
        for _ in 0..300 {
            assert_eq!(world.get("http://web.example.com/").await.unwrap().status, 200);
        }
    };
    tokio::time::timeout(Duration::from_secs(10), all).await.expect("no request waits for a copy");
    assert_eq!(world.mirror_counts().overflowed, 300 - 256);
}

#[tokio::test]
async fn a_mirror_that_is_not_there_fails_nothing() {
    let world = mirrored(nobody().await, MIRROR).await;
    assert_eq!(world.get("http://web.example.com/").await.unwrap().status, 200);
    until(&world, |counts| counts.failed == 1).await;
    let world = mirrored(nobody().await, "    mirror: {host: nowhere.example.com}\n").await;
    assert_eq!(world.get("http://web.example.com/").await.unwrap().status, 200);
    until(&world, |counts| counts.failed == 1).await;
}

#[tokio::test]
async fn what_a_rule_answers_itself_is_not_copied() {
    let (at, mut told) = mirror().await;
    let world =
        mirrored(at, &format!("{MIRROR}    fault: {{abort: {{httpStatus: 418, percentage: {{value: 100}}}}}}\n")).await;
    assert_eq!(world.get("http://web.example.com/").await.unwrap().status, 418);
    assert_eq!(world.mirror_counts(), MirrorCounts::default());
    assert!(told.try_recv().is_err());
}

#[tokio::test]
async fn requests_whose_bodies_are_slow_to_come_are_in_no_copys_way() {
    let (at, mut told) = mirror().await;
    let upstream = Upstream::new().await;
    let rule = rules(&format!("  - route: [{{destination: {{host: web.example.com}}}}]\n{MIRROR}"));
    let called = called_by("{connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}", &[&upstream]);
    let world = Arc::new(World::new(&format!("{called}{}{rule}", service("copy", &[("v1", at)]))).await);
    upstream.hold(true);
    let mut asked = JoinSet::new();
    let mut ask = |body: Body| {
        let world = Arc::clone(&world);
        let request = Request::post("http://web.example.com/").body(body).unwrap();
        asked.spawn(async move { world.ask(request).await.map(|answer| answer.status) });
    };
    for _ in 0..300 {
        let never = futures_util::stream::pending::<Result<Frame<Bytes>, std::convert::Infallible>>();
        ask(Body::new(StreamBody::new(never)));
    }
    upstream::until("they are under way", || upstream.requests.now() == 300).await;
    ask(Body::from("at once"));
    assert_eq!(next(&mut told).await.body, "at once");
    let piece = Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"in a moment")));
    ask(Body::new(StreamBody::new(futures_util::stream::iter([piece]))));
    assert_eq!(next(&mut told).await.body, "in a moment");
    assert_eq!(world.mirror_counts().overflowed, 0);
}

#[tokio::test]
async fn what_is_never_sent_is_not_copied() {
    let (at, mut told) = mirror().await;
    let upstream = Upstream::new().await;
    let called = called_by("{connectionPool: {http: {http2MaxRequests: 1}}}", &[&upstream]);
    let rule = rules(&format!("  - route: [{{destination: {{host: web.example.com}}}}]\n{MIRROR}"));
    let world = Arc::new(World::new(&format!("{called}{}{rule}", service("copy", &[("v1", at)]))).await);
    upstream.hold(true);
    let mut held = JoinSet::new();
    held.spawn({
        let world = Arc::clone(&world);
        async move { world.get("http://web.example.com/held").await.unwrap().status }
    });
    // Its copy does not wait for its answer.
    assert_eq!(next(&mut told).await.line, "GET /held");
    for _ in 0..50 {
        world.get("http://web.example.com/refused").await.expect_err("one is under way");
    }
    upstream.hold(false);
    assert_eq!(held.join_next().await.unwrap().unwrap(), 200);
    assert_eq!(world.get("http://web.example.com/last").await.unwrap().status, 200);
    assert_eq!(next(&mut told).await.line, "GET /last");
    let counts = until(&world, |counts| counts.answered >= 2).await;
    assert_eq!((counts.answered, counts.failed, counts.overflowed), (2, 0, 0));

    let services = format!("{}{}", web(&[("v1", nobody().await)]), service("copy", &[("v1", at)]));
    let world = World::new(&format!("{services}{rule}")).await;
    world.get("http://web.example.com/").await.expect_err("nobody is there");
    assert_eq!(world.mirror_counts(), MirrorCounts::default());
    assert!(told.try_recv().is_err());
}

#[tokio::test]
async fn a_copy_goes_to_the_subset_and_the_port_that_are_written() {
    for (destination, expected) in [
        ("host: copy.example.com, subset: v1, port: {number: 80}", 0),
        ("host: copy.example.com, subset: v2, port: {number: 80}", 1),
        ("host: copy.example.com, subset: v1, port: {number: 81}", 2),
    ] {
        for settings in [format!("mirror: {{{destination}}}"), format!("mirrors: [{{destination: {{{destination}}}}}]")]
        {
            let (mut mirrors, mut at) = (Vec::new(), Vec::new());
            for _ in 0..3 {
                let (address, told) = mirror().await;
                mirrors.push(told);
                at.push(address.port());
            }
            let entry = format!(
                "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: copy}}
spec:
  hosts: [copy.example.com]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 81, name: http-more, protocol: HTTP}}]
  endpoints:
  - {{address: 127.0.0.1, ports: {{http: {}, http-more: {}}}, labels: {{v: '1'}}}}
  - {{address: 127.0.0.1, ports: {{http: {}, http-more: 1}}, labels: {{v: '2'}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: copy}}
spec:
  host: copy.example.com
  subsets: [{{name: v1, labels: {{v: '1'}}}}, {{name: v2, labels: {{v: '2'}}}}]
",
                at[0], at[2], at[1]
            );
            let rule = rules(&format!("  - route: [{{destination: {{host: web.example.com}}}}]\n    {settings}\n"));
            let mut world = World::new(&format!("{}{entry}{rule}", web(&[("v1", server("v1").await)]))).await;
            for face in Face::OF_REQUESTS {
                world.face = face;
                assert_eq!(world.get("http://web.example.com/").await.unwrap().status, 200);
                next(&mut mirrors[expected]).await;
                assert!(mirrors.iter_mut().all(|told| told.try_recv().is_err()), "{face:?} {settings}");
            }
        }
    }
}
