//! Answers that come before the request was read: what was left of it ends with the answer, whatever the peer does.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::error::ErrorKind;
use mesh_core::fixed::Fixed;
use mesh_tower::body::Body;
use mesh_tower::{Client, Mesh};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tower::{Layer, ServiceExt};

/// Nothing in these tests takes this long.
pub(super) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it hangs")
}

pub(super) fn mesh(address: SocketAddr) -> Mesh {
    Mesh::builder().source(Fixed::new().service("s:80", [address])).start().unwrap()
}

/// Reads the head of a request, byte by byte, and nothing of its body.
pub(super) async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

/// A server by hand that answers as soon as it has the head of a request, once on each connection, keeps the connection
/// and reads nothing more. Counts connections.
async fn hasty(answer: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            if head(&mut stream).await.is_some() {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            kept.push(stream);
        }
    });
    (address, accepted)
}

const TOO_LARGE: &str = "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 5\r\n\r\nlarge";

/// Frames that hold on to something; whoever has the other end sees when they are dropped.
fn held<S>(frames: S) -> (impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send, oneshot::Receiver<()>)
where
    S: Stream<Item = Bytes> + Send,
{
    let (hold, dropped) = oneshot::channel::<()>();
    let frames = frames.map(move |bytes| {
        _ = &hold;
        Ok(Frame::data(bytes))
    });
    (frames, dropped)
}

fn chunk() -> Bytes {
    Bytes::from_static(&[b'x'; 64 << 10])
}

/// More than any buffer holds.
fn endless() -> impl Stream<Item = Bytes> + Send {
    stream::repeat_with(chunk)
}

/// A beginning, and no end.
fn stuck() -> impl Stream<Item = Bytes> + Send {
    stream::iter([chunk()]).chain(stream::pending())
}

pub(super) fn post(version: Version, body: Body) -> Request<Body> {
    Request::post("http://s/").version(version).body(body).unwrap()
}

async fn refused(client: &Client, request: Request<Body>) {
    let response = within(client.request(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(within(response.into_body().collect()).await.unwrap().to_bytes(), "large");
}

#[tokio::test]
async fn an_upload_ends_with_its_answer_whether_it_waits_for_the_peer_or_for_the_application() {
    let (address, accepted) = hasty(TOO_LARGE).await;
    let mesh = mesh(address);
    for _ in 0..3 {
        let (body, dropped) = held(endless());
        refused(&mesh.client(), post(Version::HTTP_11, Body::new(StreamBody::new(body)))).await;
        within(dropped).await.unwrap_err();
        let (body, dropped) = held(stuck());
        refused(&mesh.client(), post(Version::HTTP_11, Body::new(StreamBody::new(body)))).await;
        within(dropped).await.unwrap_err();
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 6, "no request follows an upload that was cut off");
}

#[tokio::test]
async fn an_upload_ends_when_its_answer_is_given_up() {
    let (address, _) = hasty(TOO_LARGE).await;
    let (silent, _) = hasty("").await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let (body, dropped) = held(endless());
        if version == Version::HTTP_11 {
            let request = post(version, Body::new(StreamBody::new(body)));
            drop(within(mesh(address).client().request(request)).await.unwrap());
            within(dropped).await.unwrap_err();
        }
        let (body, dropped) = held(stuck());
        let mesh = mesh(silent);
        let sent = mesh.client().request(post(version, Body::new(StreamBody::new(body))));
        assert!(tokio::time::timeout(Duration::from_millis(50), sent).await.is_err());
        within(dropped).await.unwrap_err();
    }
}

/// All of it is in the connection's hands at once; so this is seen by the connection that does not get free.
#[tokio::test]
async fn a_body_in_one_piece_that_the_peer_does_not_read_is_not_kept_either() {
    let (address, accepted) = hasty(TOO_LARGE).await;
    let mesh = mesh(address);
    let (hold, dropped) = oneshot::channel::<()>();
    struct Large(Vec<u8>, #[expect(dead_code, reason = "held")] oneshot::Sender<()>);
    impl AsRef<[u8]> for Large {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let body = Bytes::from_owner(Large(vec![b'x'; 32 << 20], hold));
    refused(&mesh.client(), post(Version::HTTP_11, body.into())).await;
    within(dropped).await.unwrap_err();
    refused(&mesh.client(), post(Version::HTTP_11, Body::empty())).await;
    assert_eq!(accepted.load(Ordering::SeqCst), 2);
}

/// An HTTP/2 server that refuses what it is sent and answers everything else; counts connections.
async fn http2(keeps: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let service = service_fn(move |request: Request<Incoming>| async move {
                let mut response = Response::new(http_body_util::Full::new(Bytes::from_static(b"large")));
                if request.method() == http::Method::POST {
                    *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                }
                if keeps {
                    // Who drops it resets the stream.
                    tokio::spawn(async move {
                        let _unread = request;
                        std::future::pending::<()>().await;
                    });
                }
                Ok::<_, Infallible>(response)
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, accepted)
}

#[tokio::test]
async fn a_stream_of_http2_ends_with_its_answer_and_its_connection_goes_on() {
    for keeps in [false, true] {
        let (address, accepted) = http2(keeps).await;
        let client = mesh(address).client();
        for _ in 0..5 {
            let (body, dropped) = held(stuck());
            refused(&client, post(Version::HTTP_2, Body::new(StreamBody::new(body)))).await;
            within(dropped).await.unwrap_err();
            let get = Request::get("http://s/").version(Version::HTTP_2).body(Body::empty()).unwrap();
            let response = within(client.request(get)).await.unwrap();
            assert_eq!(response.status(), 200);
            within(response.into_body().collect()).await.unwrap();
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 1, "keeps: {keeps}");
    }
}

/// An HTTP/2 server that answers at once, opens no window beyond the first, and says what each stream ended with.
async fn http2_without_window() -> (SocketAddr, tokio::sync::mpsc::Receiver<Option<h2::Reason>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ended, ends) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut connection =
                h2::server::Builder::new().max_concurrent_streams(2).handshake::<_, Bytes>(stream).await.unwrap();
            let ended = ended.clone();
            tokio::spawn(async move {
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let answer = Response::builder().status(StatusCode::PAYLOAD_TOO_LARGE).body(()).unwrap();
                    respond.send_response(answer, false).unwrap().send_data("large".into(), true).unwrap();
                    let (mut body, ended) = (request.into_body(), ended.clone());
                    tokio::spawn(async move {
                        // What was read is not given back to the window.
                        let end = loop {
                            match body.data().await {
                                Some(Ok(_)) => {}
                                Some(Err(error)) => break error.reason(),
                                None => break None,
                            }
                        };
                        ended.send(end).await.unwrap();
                    });
                }
            });
        }
    });
    (address, ends)
}

/// The peer neither reads nor resets: without a reset by the client each such upload would hold a stream for ever.
#[tokio::test]
async fn an_upload_that_waits_for_a_window_of_http2_is_reset_when_its_answer_has_ended() {
    let (address, mut ends) = http2_without_window().await;
    let client = mesh(address).client();
    for _ in 0..5 {
        refused(&client, post(Version::HTTP_2, vec![b'x'; 1 << 20].into())).await;
        assert_eq!(within(ends.recv()).await.unwrap(), Some(h2::Reason::CANCEL));
        // One frame, as gRPC sends it.
        let one = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b'x'; 1 << 20])))]);
        refused(&client, post(Version::HTTP_2, Body::new(StreamBody::new(one)))).await;
        assert_eq!(within(ends.recv()).await.unwrap(), Some(h2::Reason::CANCEL));
        let (body, dropped) = held(endless());
        let response = within(client.request(post(Version::HTTP_2, Body::new(StreamBody::new(body))))).await.unwrap();
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let mut body = response.into_body();
        assert_eq!(within(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "large");
        while within(body.frame()).await.is_some() {}
        within(dropped).await.unwrap_err();
        assert_eq!(within(ends.recv()).await.unwrap(), Some(h2::Reason::CANCEL));
        drop(body);
    }
}

/// What is left of an upload waits in the connection's hands: nobody asks the application for more.
#[tokio::test]
async fn the_end_of_an_upload_that_waits_for_a_window_of_http2_arrives_when_that_opens_and_holds_up_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = mesh(listener.local_addr().unwrap()).client();
    let (open, opens) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut server = h2::server::Builder::new();
        server.initial_window_size(1).initial_connection_window_size(1 << 20);
        let mut connection = server.handshake::<_, Bytes>(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let mut opens = opens.clone();
            tokio::spawn(async move {
                let is_upload = request.method() == http::Method::POST;
                let mut body = request.into_body();
                let mut read = 0;
                while let Some(part) = body.data().await {
                    let part = part.unwrap();
                    read += part.len();
                    opens.wait_for(|open| *open).await.unwrap();
                    body.flow_control().release_capacity(part.len()).unwrap();
                }
                let end = body.trailers().await.unwrap();
                assert_eq!(end.is_some_and(|trailers| trailers["x-end"] == "1"), is_upload);
                let answer = Response::new(());
                respond.send_response(answer, false).unwrap().send_data(read.to_string().into(), true).unwrap();
            });
        }
    });
    let trailers = http::HeaderMap::from_iter([("x-end".parse().unwrap(), http::HeaderValue::from_static("1"))]);
    let parts = [Frame::data(Bytes::from("all but the first byte waits")), Frame::trailers(trailers)];
    let body = Body::new(StreamBody::new(stream::iter(parts.map(Ok::<_, Infallible>))));
    let upload = tokio::spawn(client.request(post(Version::HTTP_2, body)));
    for _ in 0..3 {
        let get = Request::get("http://s/").version(Version::HTTP_2).body(Body::empty()).unwrap();
        assert_eq!(within(client.request(get)).await.unwrap().status(), 200);
    }
    assert!(!upload.is_finished());
    open.send(true).unwrap();
    let answer = within(upload).await.unwrap().unwrap();
    assert_eq!(within(answer.into_body().collect()).await.unwrap().to_bytes(), "28");
}

#[tokio::test]
async fn under_the_layer_an_upload_ends_with_its_answer_too() {
    let (address, _) = hasty(TOO_LARGE).await;
    let mesh = mesh(address);
    let own = legacy::Client::builder(TokioExecutor::new()).build_http::<Body>();
    let (body, dropped) = held(stuck());
    let request = post(Version::HTTP_11, Body::new(StreamBody::new(body)));
    let response = within(mesh.client_layer().layer(own).oneshot(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    within(response.into_body().collect()).await.unwrap();
    within(dropped).await.unwrap_err();
}

/// Uploads that are read are not cut off, however late the end of the body comes.
#[tokio::test]
async fn an_answer_that_comes_with_the_request_still_under_way_does_not_end_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Echoes: the answer begins with the first byte of the request, and ends with its last.
            let service = service_fn(|request: Request<Incoming>| async move {
                Ok::<_, Infallible>(Response::new(request.into_body()))
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            tokio::spawn(async move { builder.serve_connection(TokioIo::new(stream), service).await.map_err(drop) });
        }
    });
    let client = mesh(address).client();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let (send, parts) = tokio::sync::mpsc::channel::<Bytes>(1);
        let parts =
            tokio_stream::wrappers::ReceiverStream::new(parts).map(|part| Ok::<_, Infallible>(Frame::data(part)));
        send.send(Bytes::from_static(b"0")).await.unwrap();
        let mut body =
            within(client.request(post(version, Body::new(StreamBody::new(parts))))).await.unwrap().into_body();
        for part in ["1", "2", "3"] {
            assert!(within(body.frame()).await.unwrap().unwrap().is_data());
            send.send(Bytes::from_static(part.as_bytes())).await.unwrap();
        }
        drop(send);
        assert_eq!(within(body.collect()).await.unwrap().to_bytes(), "3", "{version:?}");
    }
}

const ANSWERS: [&str; 3] = [
    "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
];

/// RFC 9110, 7.8.
#[tokio::test]
async fn a_protocol_that_nobody_asked_for_is_an_error() {
    for (asked, answer) in [
        (None, ANSWERS[0]),
        (None, ANSWERS[1]),
        (Some("websocket"), ANSWERS[0]),
        (Some("websocket"), ANSWERS[2]),
        (Some("foo, bar"), ANSWERS[1]),
    ] {
        let (address, accepted) = hasty(answer).await;
        let mesh = mesh(address);
        let request = || {
            let mut request = Request::get("http://s/");
            if let Some(asked) = asked {
                request = request.header("connection", "upgrade").header("upgrade", asked);
            }
            request.body(Body::empty()).unwrap()
        };
        for _ in 0..2 {
            let error = within(mesh.client().request(request())).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{asked:?} {error}");
            assert!(error.to_string().contains("had not asked for (101)"), "{error}");
            assert!(error.to_string().contains(&address.to_string()), "{error}");
        }
        assert_eq!(accepted.load(Ordering::SeqCst), 2, "the connection is not used again");
        let own = legacy::Client::builder(TokioExecutor::new()).build_http::<Body>();
        let error = within(mesh.client_layer().layer(own).oneshot(request())).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionLost, "the layer: {asked:?} {error}");
    }
}

#[tokio::test]
async fn a_protocol_that_was_asked_for_belongs_to_the_caller() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = mesh(listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        head(&mut stream).await.unwrap();
        stream.write_all(ANSWERS[1].as_bytes()).await.unwrap();
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
    });
    let request = Request::get("http://s/").header("connection", "upgrade").header("upgrade", "foo, WebSocket");
    let response = within(mesh.client().request(request.body(Empty::<Bytes>::new()).unwrap())).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut tunnel = TokioIo::new(within(hyper::upgrade::on(response)).await.unwrap());
    within(tunnel.write_all(b"ping")).await.unwrap();
    let mut bytes = [0; 4];
    within(tunnel.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"ping");
    within(server).await.unwrap();
}
