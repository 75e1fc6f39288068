//! What a server does not let its clients do (hazards of slow and large heads, streams, connections).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use crate::server_support::frames::{END_HEADERS, END_STREAM, GET, PREFACE, ask, frame, frames, goaway, is_reset};
use crate::server_support::within;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::fixed::Fixed;
use mesh_tower::server::{ConnectionInfo, Limits, serve};
use mesh_tower::{Mesh, server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::service_fn;
use tower_layer::Layer;

/// Answers with the address of its client.
async fn app(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let waits = request.uri().path().strip_prefix("/wait/").and_then(|millis| millis.parse().ok());
    tokio::time::sleep(Duration::from_millis(waits.unwrap_or(0))).await;
    _ = request.into_body().collect().await;
    let peer = ConnectionInfo::current().map(|connection| connection.peer.to_string());
    Ok(Response::new(Full::new(Bytes::from(peer.unwrap_or_default()))))
}

async fn start(limits: impl FnOnce(&mut Limits)) -> SocketAddr {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let mut chosen = Limits::default();
    limits(&mut chosen);
    let service = mesh.server_layer().layer(service_fn(app));
    tokio::spawn(serve(listener, service).limits(chosen).into_future());
    address
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    _ = within(stream.read_to_end(&mut text)).await;
    String::from_utf8_lossy(&text).into_owned()
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("http://h{path}")).header("host", "h").body(Full::new(Bytes::new())).unwrap()
}

/// H14.
#[tokio::test]
async fn a_slow_head_ends_the_connection_and_a_slow_body_or_a_pause_does_not() {
    let address = start(|limits| limits.head_timeout = Duration::from_millis(200)).await;
    let trickle = async |stream: &mut TcpStream, text: &[u8]| {
        for byte in text {
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.write_all(&[*byte]).await?;
        }
        std::io::Result::Ok(())
    };
    let mut slow = TcpStream::connect(address).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n", "x".repeat(100));
    _ = trickle(&mut slow, head.as_bytes()).await;
    assert_eq!(read_to_end(&mut slow).await, "");
    // Nor may what is to come before the first frame of HTTP/2 take longer.
    for begun in ["", "PRI * HTTP/2.0\r\n"] {
        let mut silent = TcpStream::connect(address).await.unwrap();
        silent.write_all(begun.as_bytes()).await.unwrap();
        assert_eq!(read_to_end(&mut silent).await, "", "{begun:?}");
    }

    let mut patient = TcpStream::connect(address).await.unwrap();
    patient.write_all(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 20\r\n\r\n").await.unwrap();
    trickle(&mut patient, &[b'x'; 20]).await.unwrap();
    let mut answer = [0; 15];
    within(patient.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    tokio::time::sleep(Duration::from_millis(400)).await;
    patient.write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(read_to_end(&mut patient).await.contains("HTTP/1.1 200 OK"));

    // A client of HTTP/2 may connect long before it has a request.
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(within(sender.send_request(get("/"))).await.unwrap().status(), 200);
}

/// H4.
#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let address = start(|_| {}).await;
    let large = http::HeaderValue::from_bytes(&[b'x'; 70 << 10]).unwrap();
    let mut request = get("/");
    request.headers_mut().insert("x-large", large);
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(within(sender.send_request(request.clone())).await.unwrap().status(), 431);
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    match within(sender.send_request(request)).await {
        Ok(response) => assert_eq!(response.status(), 431),
        Err(error) => assert!(!error.is_timeout(), "{error}"),
    }
    assert_eq!(within(sender.send_request(get("/"))).await.unwrap().status(), 200, "the stream's error alone");
}

#[tokio::test]
async fn streams_above_the_limit_wait_and_none_is_lost() {
    let address = start(|limits| limits.max_concurrent_streams = 3).await;
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    within(sender.send_request(get("/"))).await.unwrap();
    let began = std::time::Instant::now();
    let all = (0..9).map(|_| {
        let mut sender = sender.clone();
        async move { sender.send_request(get("/wait/100")).await.unwrap().status() }
    });
    let statuses = within(futures_util::future::join_all(all)).await;
    assert!(statuses.iter().all(|status| *status == 200));
    assert!(began.elapsed() >= Duration::from_millis(300), "three at a time");
}

#[tokio::test]
async fn connections_above_the_limit_wait_until_another_ends() {
    let address = start(|limits| limits.max_connections = 1).await;
    let (mut first, connection) =
        http1::handshake(TokioIo::new(TcpStream::connect(address).await.unwrap())).await.unwrap();
    let first_ends = tokio::spawn(connection);
    within(first.send_request(get("/"))).await.unwrap().into_body().collect().await.unwrap();
    let (mut second, connection) =
        http1::handshake(TokioIo::new(TcpStream::connect(address).await.unwrap())).await.unwrap();
    tokio::spawn(connection);
    let answer = tokio::spawn(second.send_request(get("/")));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!answer.is_finished());
    drop(first);
    within(first_ends).await.unwrap().unwrap();
    assert_eq!(within(answer).await.unwrap().unwrap().status(), 200);
}

/// Half-closed or gone: nobody can tell. One that is still there is waited for.
#[tokio::test]
async fn a_handler_whose_client_may_be_gone_is_dropped_in_time() {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let mut limits = Limits::default();
    limits.half_close_timeout = Duration::from_millis(100);
    let (called, mut calls) = tokio::sync::mpsc::channel(1);
    let hang = service_fn(move |request: Request<Incoming>| {
        let called = called.clone();
        async move {
            let (held, dropped) = tokio::sync::oneshot::channel::<()>();
            called.send(dropped).await.unwrap();
            _ = request.into_body().collect().await;
            std::future::pending::<()>().await;
            drop(held);
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
        }
    });
    tokio::spawn(serve(listener, mesh.server_layer().layer(hang)).limits(limits).into_future());
    let request = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc";
    let mut there = TcpStream::connect(address).await.unwrap();
    there.write_all(request).await.unwrap();
    let mut held = within(calls.recv()).await.unwrap();
    for closes in [true, false] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let dropped = within(calls.recv()).await.unwrap();
        stream.shutdown().await.unwrap();
        let _open = (!closes).then_some(stream);
        within(dropped).await.unwrap_err();
    }
    assert!(held.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Empty));
}

#[tokio::test]
async fn an_idle_connection_is_ended() {
    let address = start(|limits| limits.idle_timeout = Duration::from_millis(100)).await;
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    assert!(read_to_end(&mut idle).await.starts_with("HTTP/1.1 200 OK"));
}

/// Over HTTP/2 the end is agreed on: a GOAWAY, and an answer to a PING.
#[tokio::test]
async fn an_idle_client_that_does_not_take_the_end_is_cut_off() {
    let address = start(|limits| {
        limits.idle_timeout = Duration::from_millis(100);
        limits.half_close_timeout = Duration::from_millis(100);
    })
    .await;
    let answer = ask(address, &[PREFACE, &frame(1, END_STREAM | END_HEADERS, 1, GET)].concat()).await;
    assert!(goaway(&answer).is_some() && frames(&answer).iter().any(|(kind, ..)| *kind == 0), "{answer:?}");
}

/// Nothing else would end it: the connection is busy with the answer.
#[tokio::test]
async fn h8_a_client_that_takes_nothing_of_its_answer_is_cut_off() {
    let address = start(|limits| limits.stall_timeout = Duration::from_millis(100)).await;
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    let no_window = [&PREFACE[..24], &frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
    let answer = ask(address, &[&no_window[..], &frame(1, END_STREAM | END_HEADERS, 1, GET)].concat()).await;
    let kinds: Vec<u8> = frames(&answer).iter().map(|(kind, ..)| *kind).collect();
    assert!(kinds.contains(&1) && !kinds.contains(&0), "its head and nothing of its body: {kinds:?}");
    // Over HTTP/1.1, what the sockets hold is all that goes out.
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let mut limits = Limits::default();
    limits.stall_timeout = Duration::from_millis(100);
    let (called, mut calls) = tokio::sync::mpsc::channel(1);
    let long = service_fn(move |_: Request<Incoming>| {
        let called = called.clone();
        async move {
            let (held, dropped) = tokio::sync::oneshot::channel::<()>();
            called.send(dropped).await.unwrap();
            let parts = [64 << 20, 1].map(|length| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0; length]))));
            let held = stream::once(async move {
                drop(held);
                Ok(Frame::data(Bytes::new()))
            });
            Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(stream::iter(parts).chain(held)))))
        }
    });
    tokio::spawn(serve(listener, mesh.server_layer().layer(long)).limits(limits).into_future());
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    let dropped = within(calls.recv()).await.unwrap();
    within(dropped).await.unwrap_err();
}

/// `GET http://shop/a`.
pub(crate) const OTHER: &[u8] = b"\x82\x86\x04\x02/a\x01\x04shop";

#[tokio::test]
async fn h21_small_frames_that_nobody_has_read_are_as_many_as_the_window_of_the_connection_says() {
    for (window, is_ended) in [(1 << 20, true), (8 << 20, false)] {
        let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
        let listener = mesh.bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr();
        let mut limits = Limits::default();
        limits.connection_window = window;
        // Nobody reads before the last one is there, behind which another request comes.
        let are_there = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
        let app = service_fn(move |request: Request<Incoming>| {
            let are_there = std::sync::Arc::clone(&are_there);
            async move {
                match request.uri().path() {
                    "/" => drop(are_there.acquire().await),
                    _ => are_there.add_permits(1),
                }
                let read = request.into_body().collect().await.map(|body| body.to_bytes().len());
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(read.unwrap_or_default().to_string()))))
            }
        });
        tokio::spawn(serve(listener, mesh.server_layer().layer(app)).limits(limits).into_future());
        let said = [
            PREFACE,
            &frame(1, END_HEADERS, 1, GET),
            &frame(0, 0, 1, b"four").repeat(4_000),
            &frame(1, END_STREAM | END_HEADERS, 3, OTHER),
            &frame(0, END_STREAM, 1, b""),
            &frame(7, 0, 0, &[0; 8]),
        ];
        let answer = ask(address, &said.concat()).await;
        let is_answered = frames(&answer).iter().any(|(kind, of, data)| (*kind, *of, &**data) == (0, 1, b"16000"));
        assert_eq!((goaway(&answer) == Some(11), is_answered), (is_ended, !is_ended), "{window}");
    }
}

/// To the application they have ended: what is left of them is the connection's, and takes the place of a stream.
#[tokio::test]
async fn h8_answers_whose_windows_stay_closed_are_as_many_as_a_client_may_have_streams() {
    let address = start(|limits| {
        limits.max_concurrent_streams = 2;
        (limits.idle_timeout, limits.half_close_timeout) = (Duration::from_millis(100), Duration::from_millis(100));
    })
    .await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    // SETTINGS_INITIAL_WINDOW_SIZE is 1.
    let settings = [&PREFACE[..24], &frame(4, 0, 0, &[0, 4, 0, 0, 0, 1])].concat();
    let request = |id| frame(1, END_STREAM | END_HEADERS, id, GET);
    stream.write_all(&[settings, request(1), request(3)].concat()).await.unwrap();
    let mut answer = Vec::new();
    let data = |answer: &[u8]| frames(answer).into_iter().filter(|(kind, ..)| *kind == 0).collect::<Vec<_>>();
    while data(&answer).len() < 2 {
        assert!(within(stream.read_buf(&mut answer)).await.unwrap() > 0, "the server ended");
    }
    stream.write_all(&request(5)).await.unwrap();
    _ = within(stream.read_to_end(&mut answer)).await;
    assert!(is_reset(&answer, 5), "{:?}", frames(&answer));
    assert_eq!(data(&answer), [(0, 1, b"1".to_vec()), (0, 3, b"1".to_vec())], "a byte of each");
}

#[tokio::test]
async fn a_handler_knows_the_connection_of_its_request() {
    let address = start(|_| {}).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let local = stream.local_addr().unwrap().to_string();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = within(sender.send_request(get("/"))).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), local);
    let stream = TcpStream::connect(address).await.unwrap();
    let local = stream.local_addr().unwrap().to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = within(sender.send_request(get("/"))).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), local);
    assert_eq!(ConnectionInfo::current(), None);
}

/// A service that is ready a while after it was asked.
struct Later {
    ready: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

impl Clone for Later {
    fn clone(&self) -> Self {
        Later { ready: None }
    }
}

impl tower::Service<Request<Incoming>> for Later {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Full<Bytes>>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        let wait = || Box::pin(tokio::time::sleep(Duration::from_millis(30)));
        self.ready.get_or_insert_with(wait).as_mut().poll(cx).map(Ok)
    }

    fn call(&mut self, _: Request<Incoming>) -> Self::Future {
        let ready = self.ready.as_ref().is_some_and(|ready| ready.is_elapsed());
        assert!(ready, "called before it was ready");
        std::future::ready(Ok(Response::new(Full::new(Bytes::new()))))
    }
}

#[tokio::test]
async fn a_service_is_called_when_it_is_ready() {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    tokio::spawn(serve(listener, mesh.server_layer().layer(Later { ready: None })).into_future());
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(TcpStream::connect(address).await.unwrap())).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(within(sender.send_request(get("/"))).await.unwrap().status(), 200);
}

#[tokio::test]
async fn an_upgraded_connection_passes_through() {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let upgrade = service_fn(|mut request: Request<Incoming>| async move {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgraded.await.unwrap());
            let mut bytes = [0; 4];
            io.read_exact(&mut bytes).await.unwrap();
            bytes.reverse();
            io.write_all(&bytes).await.unwrap();
        });
        let response = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
        Ok::<_, Infallible>(response.body(Full::new(Bytes::new())).unwrap())
    });
    tokio::spawn(server::serve(listener, mesh.server_layer().layer(upgrade)).into_future());
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    stream.write_all(b"abcd").await.unwrap();
    let mut bytes = [0; 4];
    within(stream.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"dcba");
}

#[tokio::test]
async fn h11_what_follows_an_upgrade_that_is_not_agreed_on_is_a_request_of_its_own_or_refused() {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let (asked, mut seen) = tokio::sync::mpsc::channel(4);
    let refuse = service_fn(move |request: Request<Incoming>| {
        let asked = asked.clone();
        async move {
            asked.send(request.uri().path().to_owned()).await.unwrap();
            Ok::<_, Infallible>(Response::builder().status(403).body(Full::new(Bytes::new())).unwrap())
        }
    });
    tokio::spawn(server::serve(listener, mesh.server_layer().layer(refuse)).into_future());
    within(mesh.serving()).await.unwrap();
    for (early, paths, statuses) in [
        ("GET /early HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n", &["/", "/early"][..], &["403", "403"][..]),
        ("\x01\x02 no request\r\n\r\n", &["/"], &["403", "400"]),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = "GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        stream.write_all(format!("{head}{early}").as_bytes()).await.unwrap();
        let mut answers = String::new();
        _ = within(stream.read_to_string(&mut answers)).await;
        let found: Vec<&str> =
            answers.split("HTTP/1.1 ").skip(1).map(|answer| answer.split(' ').next().unwrap()).collect();
        assert_eq!(found, statuses, "{answers}");
        for path in paths {
            assert_eq!(within(seen.recv()).await.as_deref(), Some(*path));
        }
        assert!(seen.try_recv().is_err());
    }
}
