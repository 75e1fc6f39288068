//! Interim answers (1xx): they come before the answer, are none, and cannot go on for ever.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use mesh_core::error::ErrorKind;
use mesh_tower::Deadline;
use mesh_tower::body::Body;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::early_answers::{head, mesh, post, within};

/// An HTTP/2 server that sends these interim answers before each answer, which is the request's body with trailers, or
/// ends with the last of them. Counts connections.
async fn hinting(hints: Vec<u16>, answers: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let hints = hints.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let hints = hints.clone();
                    tokio::spawn(async move {
                        let head = |status| Response::builder().status(status).header("link", "</a>").body(()).unwrap();
                        for status in hints {
                            respond.send_informational(head(status)).unwrap();
                            tokio::task::yield_now().await;
                        }
                        let mut body = request.into_body();
                        let mut read = Vec::new();
                        while let Some(Ok(part)) = body.data().await {
                            body.flow_control().release_capacity(part.len()).unwrap();
                            read.extend(part);
                        }
                        if !answers {
                            respond.send_response(head(101), true).unwrap();
                            return;
                        }
                        let answer = Response::builder().status(201).body(()).unwrap();
                        let mut sends = respond.send_response(answer, false).unwrap();
                        sends.send_data(read.into(), false).unwrap();
                        let trailers =
                            HeaderMap::from_iter([("x-end".parse().unwrap(), HeaderValue::from_static("1"))]);
                        sends.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    (address, accepted)
}

fn upload() -> http::Request<Body> {
    let parts = ["a", "b"].map(|part| Ok::<_, Infallible>(Frame::data(Bytes::from(part))));
    let mut request = post(Version::HTTP_2, Body::new(StreamBody::new(stream::iter(parts))));
    request.headers_mut().insert("expect", HeaderValue::from_static("100-continue"));
    request
}

#[tokio::test]
async fn interim_answers_over_http2_come_before_the_answer_and_are_none() {
    let (address, accepted) = hinting([[100, 103, 102].repeat(40), vec![199]].concat(), true).await;
    let client = mesh(address).client();
    // The first one makes the connection; then many at once, so that the heads of all are mixed.
    for at_once in [1, 50, 50] {
        let answers = join_all((0..at_once).map(|_| client.request(upload())));
        for answer in within(answers).await {
            let answer = answer.unwrap();
            assert_eq!(answer.status(), StatusCode::CREATED);
            assert!(!answer.headers().contains_key("link"), "{:?}", answer.headers());
            let body = within(answer.into_body().collect()).await.unwrap();
            assert_eq!(body.trailers().unwrap()["x-end"], "1");
            assert_eq!(body.to_bytes(), "ab");
        }
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

/// RFC 9113, 8.6.
#[tokio::test]
async fn over_http2_no_server_switches_to_another_protocol() {
    for (hints, answers) in [(vec![101], true), (vec![103, 101], true), (vec![], false)] {
        let (address, _) = hinting(hints.clone(), answers).await;
        let error = within(mesh(address).client().request(upload())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{hints:?} {error:#}");
        assert!(!answers || format!("{error:#}").contains("(101)"), "{hints:?} {error:#}");
    }
}

/// A server that sends interim answers, and nothing else: as fast as they are read, or one now and then.
async fn never_done(version: Version, pieces: usize) -> SocketAddr {
    let pause = async move || match pieces {
        1 => tokio::time::sleep(Duration::from_millis(5)).await,
        _ => tokio::task::yield_now().await,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                if version == Version::HTTP_11 {
                    head(&mut stream).await.unwrap();
                    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(pieces);
                    while stream.write_all(hints.as_bytes()).await.is_ok() {
                        pause().await;
                    }
                    return;
                }
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let hint = || Response::builder().status(103).body(()).unwrap();
                        while respond.send_informational(hint()).is_ok() {
                            pause().await;
                        }
                    });
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn interim_answers_do_not_put_off_the_deadline_of_a_request() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mesh = mesh(never_done(version, 1).await);
        let mut request = post(version, Body::empty());
        request.extensions_mut().insert(Deadline(Instant::now() + Duration::from_millis(50)));
        let error = within(mesh.client().request(request)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{version:?} {error:#}");
    }
}

#[tokio::test]
async fn interim_answers_that_never_end_fail_the_request_and_few_of_them_do_not() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let address = never_done(version, 1000).await;
        let mut request = post(version, Body::empty());
        request.extensions_mut().insert(Deadline(Instant::now() + Duration::from_secs(3600)));
        let error = within(mesh(address).client().request(request)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionLost, "{error:#}");
        assert!(format!("{error:#}").contains("interim ones (1xx)"), "{error:#}");
    }

    // What was allowed is not used up by bodies, nor by one request after the other.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = mesh(listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let body = "x".repeat(1 << 20);
        while head(&mut stream).await.is_some() {
            let hints = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100);
            let answer = format!("{hints}HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    for _ in 0..5 {
        let response = within(mesh.client().get("http://s/")).await.unwrap();
        assert_eq!(within(response.into_body().collect()).await.unwrap().to_bytes().len(), 1 << 20);
    }
}
