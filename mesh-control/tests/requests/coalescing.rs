//! `mesh-control/coalesce`: identical GETs that are under way at the same time are one.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use mesh_core::error::ErrorKind;
use mesh_core::request_info::{ATTEMPT_COUNT, CRITICALITY, Criticality, Deadline, Inherited};
use mesh_tower::body::Body;
use mesh_tower::inherited;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::support::{World, web};
use crate::upstream::until;

/// A server that holds requests back until it is told to answer, and counts them.
struct Held {
    at: SocketAddr,
    requests: Arc<AtomicUsize>,
    cancelled: Arc<AtomicUsize>,
    /// What each of them inherits: which attempt it is, and how much it matters.
    inherited: Arc<Mutex<Vec<[String; 2]>>>,
    go_on: watch::Sender<bool>,
}

/// Counts what is dropped before it was answered.
struct Answered<'a>(bool, &'a AtomicUsize);

impl Drop for Answered<'_> {
    fn drop(&mut self) {
        if !self.0 {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Held {
    /// Its answers have this header, and a body of this length; its number where that is 0.
    async fn new(header: (&'static str, &'static str), length: usize) -> Held {
        let (requests, cancelled) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let go_on = watch::Sender::new(false);
        let (seen, gone, told) = (Arc::clone(&requests), Arc::clone(&cancelled), go_on.clone());
        let inherited = Arc::<Mutex<Vec<_>>>::default();
        let noted = Arc::clone(&inherited);
        let app = axum::Router::new().fallback(move |headers: http::HeaderMap| {
            let text = |name| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
            noted.lock().unwrap().push([ATTEMPT_COUNT, CRITICALITY].map(text));
            let (seen, gone, mut told) = (Arc::clone(&seen), Arc::clone(&gone), told.subscribe());
            async move {
                let number = seen.fetch_add(1, Ordering::SeqCst) + 1;
                let mut answered = Answered(false, &gone);
                _ = told.wait_for(|told| *told).await;
                answered.0 = true;
                let body = if length == 0 { format!("answer {number}") } else { "x".repeat(length) };
                ([header], body)
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Held { at, requests, cancelled, inherited, go_on }
    }

    fn asked(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// A client whose requests to it are one where they are identical.
    async fn world(&self) -> World {
        let rules = "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: web
  annotations:
    mesh-control/coalesce: get
spec:
  hosts: [web.example.com]
  http:
  - route: [{destination: {host: web.example.com}}]
";
        let world = World::new(&format!("{}{rules}", web(&[("v1", self.at)]))).await;
        // Routes are known from the first request on.
        self.go_on.send_replace(true);
        world.get("http://web.example.com:80/first").await.unwrap();
        self.go_on.send_replace(false);
        self.requests.store(0, Ordering::SeqCst);
        self.inherited.lock().unwrap().clear();
        world
    }
}

fn get(headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::get("http://web.example.com:80/same");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

/// Sends a request on its way; what comes back, as text.
fn send(world: &World, request: Request<Body>) -> tokio::task::JoinHandle<Result<String, ErrorKind>> {
    let response = world.mesh.client().request(request);
    tokio::spawn(async move {
        let body = response.await.map_err(|error| error.kind())?.into_body().collect().await;
        Ok(String::from_utf8(body.map_err(|error| error.kind())?.to_bytes().to_vec()).unwrap())
    })
}

#[tokio::test]
async fn identical_gets_are_one_and_others_are_not() {
    let server = Held::new(("x-answer", "server"), 0).await;
    let world = server.world().await;
    let same = [("accept", "text/plain"), ("cookie", "a=b"), ("authorization", "Bearer x")];
    let mut tasks = Vec::new();
    for number in 0..10 {
        let trace = format!("00-{number:032x}-0000000000000001-00");
        let headers: Vec<_> = same.into_iter().chain([("traceparent", trace.as_str())]).collect();
        tasks.push(send(&world, get(&headers)));
    }
    until("the one is there", || server.asked() == 1).await;
    // Each of these differs in something that an answer may depend on.
    let mut others = Vec::new();
    for (name, value) in [
        ("accept", "text/html"),
        ("accept-language", "de"),
        ("cookie", "a=c"),
        ("authorization", "Bearer y"),
        ("range", "bytes=0-1"),
        ("x-user", "somebody"),
    ] {
        let headers: Vec<_> = same.into_iter().filter(|(other, _)| *other != name).chain([(name, value)]).collect();
        others.push(send(&world, get(&headers)));
    }
    let mut post = get(&same);
    *post.method_mut() = http::Method::POST;
    others.push(send(&world, post));
    let mut elsewhere = get(&same);
    *elsewhere.uri_mut() = "http://web.example.com:80/same?other".parse().unwrap();
    others.push(send(&world, elsewhere));
    until("the others are there, too", || server.asked() == 1 + others.len()).await;
    server.go_on.send_replace(true);
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap(), "answer 1");
    }
    for task in others {
        assert_ne!(task.await.unwrap().unwrap(), "answer 1");
    }
    // Nothing is kept.
    let before = server.asked();
    assert_eq!(send(&world, get(&same)).await.unwrap().unwrap(), format!("answer {}", before + 1));
}

#[tokio::test]
async fn who_goes_away_does_not_end_it_for_the_others_and_the_last_one_does() {
    let server = Held::new(("x-answer", "server"), 0).await;
    let world = server.world().await;
    let (first, second) = (send(&world, get(&[])), send(&world, get(&[])));
    until("it is there", || server.asked() == 1).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let third = send(&world, get(&[]));
    server.go_on.send_replace(true);
    assert_eq!(second.await.unwrap().unwrap(), "answer 1");
    assert_eq!(third.await.unwrap().unwrap(), "answer 1");
    assert_eq!((server.asked(), server.cancelled.load(Ordering::SeqCst)), (1, 0));
    server.go_on.send_replace(false);
    let both = [send(&world, get(&[])), send(&world, get(&[]))];
    until("it is there", || server.asked() == 2).await;
    both.iter().for_each(tokio::task::JoinHandle::abort);
    until("it is cancelled", || server.cancelled.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn each_caller_has_a_deadline_of_its_own_and_a_failure_is_everybodys() {
    let server = Held::new(("x-answer", "server"), 0).await;
    let world = server.world().await;
    let mut hurried = get(&[]);
    hurried.extensions_mut().insert(Deadline(std::time::Instant::now() + Duration::from_millis(30)));
    let (hurried, patient) = (send(&world, hurried), send(&world, get(&[])));
    assert_eq!(hurried.await.unwrap(), Err(ErrorKind::Timeout));
    server.go_on.send_replace(true);
    assert_eq!(patient.await.unwrap().unwrap(), "answer 1");
    assert_eq!(server.asked(), 1);
}

/// What is inherited, as an extension of a request or from the request that the task serves.
fn send_inheriting(
    world: &World,
    inherited: Inherited,
    is_by_task: bool,
) -> tokio::task::JoinHandle<Result<String, ErrorKind>> {
    let mut request = get(&[]);
    if is_by_task {
        return inherited::sync_scope(inherited, || send(world, request));
    }
    request.extensions_mut().insert(inherited);
    send(world, request)
}

#[tokio::test]
async fn a_request_for_several_says_what_all_of_them_inherit() {
    let server = Held::new(("x-answer", "server"), 0).await;
    let world = server.world().await;
    let (mut retried, mut sheddable) = (Inherited::default(), Inherited::default());
    retried.attempt = 3;
    sheddable.criticality = Criticality::Sheddable;
    let mut tasks = Vec::new();
    for inherited in [Inherited::default(), retried, sheddable] {
        for is_by_task in [true, false] {
            tasks.push(send_inheriting(&world, inherited.clone(), is_by_task));
        }
    }
    until("there is one of each", || server.asked() == 3).await;
    server.go_on.send_replace(true);
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let mut seen = server.inherited.lock().unwrap().clone();
    seen.sort();
    assert_eq!(seen, [["", ""], ["", "sheddable"], ["3", ""]]);
}

#[tokio::test]
async fn inherited_times_end_the_wait_of_their_caller_and_of_nobody_else() {
    for (is_by_task, is_of_answer) in [(true, true), (true, false), (false, true), (false, false)] {
        let server = Held::new(("x-answer", "server"), 0).await;
        let world = server.world().await;
        let mut inherited = Inherited::default();
        let soon = Some(std::time::Instant::now() + Duration::from_millis(30));
        *if is_of_answer { &mut inherited.answer_by } else { &mut inherited.deadline } = soon;
        // The one that makes the request, and one that joins.
        let hurried = [0, 1].map(|_| send_inheriting(&world, inherited.clone(), is_by_task));
        let patient = send(&world, get(&[]));
        for hurried in hurried {
            assert_eq!(hurried.await.unwrap(), Err(ErrorKind::Timeout), "{is_by_task} {is_of_answer}");
        }
        server.go_on.send_replace(true);
        assert_eq!(patient.await.unwrap().unwrap(), "answer 1", "{is_by_task} {is_of_answer}");
        assert_eq!(server.asked(), 1);
    }
}

#[tokio::test]
async fn answers_for_one_caller_are_not_shared() {
    for (header, length) in [
        (("set-cookie", "session=1"), 0),
        (("cache-control", "private"), 0),
        (("vary", "traceparent"), 0),
        (("x-answer", "server"), (1 << 20) + 1),
    ] {
        let server = Held::new(header, length).await;
        let world = server.world().await;
        let tasks: Vec<_> = (0..3).map(|_| send(&world, get(&[]))).collect();
        until("the one is there", || server.asked() == 1).await;
        server.go_on.send_replace(true);
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap().unwrap());
        }
        assert_eq!(server.asked(), 3, "{header:?} {length}: each has made its own request");
        if length == 0 {
            answers.sort();
            answers.dedup();
            assert_eq!(answers.len(), 3, "{header:?}: nobody has the answer of another one");
        }
    }
}
