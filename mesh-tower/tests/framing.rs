//! Requests whose bytes can be read in two ways, and floods that cost a server more than their sender: refused, with the
//! connection, before the application sees any of it.

mod server_support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use mesh_core::fixed::Fixed;
use mesh_tower::{Mesh, server};
use server_support::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_layer::Layer;

/// A server that counts the requests that it has read whole.
async fn start() -> (SocketAddr, Arc<AtomicUsize>) {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let (address, served) = (bound.local_addr(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&served);
    let app = tower::service_fn(move |request: Request<Incoming>| {
        let counted = Arc::clone(&counted);
        async move {
            if request.into_body().collect().await.is_ok() {
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"served"))))
        }
    });
    tokio::spawn(server::serve(bound, mesh.server_layer().layer(app)).into_future());
    within(mesh.serving()).await.unwrap();
    (address, served)
}

/// Sends bytes; what comes back until the server ends the connection.
async fn ask(address: SocketAddr, said: &[u8]) -> Vec<u8> {
    let (mut reads, mut writes) = TcpStream::connect(address).await.unwrap().into_split();
    let mut answer = Vec::new();
    // Whoever is not read any more cannot write on. A reset is an end, too.
    _ = within(async { tokio::join!(writes.write_all(said), reads.read_to_end(&mut answer)) }).await;
    answer
}

/// RFC 9112, 6.3 and 7.1: a length that is not one is no way to hide a request behind another one.
#[tokio::test]
async fn h9_a_body_whose_end_can_be_seen_in_two_places_ends_the_connection() {
    let (address, served) = start().await;
    const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nhost: shop\r\n\r\n";
    for fields in [
        "content-length: +5",
        "content-length: -5",
        "content-length: 5, 6",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 0x5",
        "content-length: 18446744073709551617",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: identity",
        "transfer-encoding: xchunked",
        "transfer-encoding : chunked",
        "content-length : 5",
    ] {
        let said = format!("POST / HTTP/1.1\r\nhost: shop\r\n{fields}\r\n\r\n{HIDDEN}");
        let answer = String::from_utf8_lossy(&ask(address, said.as_bytes()).await).into_owned();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{fields}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{fields}: {answer}");
    }
    for body in ["10000000000000001\r\n", "-1\r\n", "+5\r\nhello\r\n0\r\n\r\n", "5 \nhello\r\n0\r\n\r\n", "z\r\n"] {
        let said = format!("POST / HTTP/1.1\r\nhost: shop\r\ntransfer-encoding: chunked\r\n\r\n{body}{HIDDEN}");
        let answer = String::from_utf8_lossy(&ask(address, said.as_bytes()).await).into_owned();
        assert!(answer.matches("HTTP/1.1").count() <= 1, "{body:?}: {answer}");
    }
    assert_eq!(served.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn h20_thousands_of_host_headers_are_a_bad_request() {
    let (address, served) = start().await;
    for count in [2, 50, 5_000] {
        let said = format!("GET / HTTP/1.1\r\nconnection: close\r\n{}\r\n", "host: shop\r\n".repeat(count));
        let answer = String::from_utf8_lossy(&ask(address, said.as_bytes()).await).into_owned();
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(matches!(status, "400" | "431"), "{count}: {answer}");
    }
    assert_eq!(served.load(Ordering::Relaxed), 0);
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// `GET http://shop/`: three fields of the static table, and `:authority`.
const GET: &[u8] = b"\x82\x86\x84\x01\x04shop";
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The frames of an answer: kind, stream, payload.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        frames.push((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload.to_vec()));
        bytes = rest;
    }
    frames
}

/// The code of the GOAWAY in an answer.
fn goaway(answer: &[u8]) -> Option<u8> {
    frames(answer).into_iter().find(|(kind, ..)| *kind == 7).and_then(|(.., payload)| payload.get(7).copied())
}

#[tokio::test]
async fn h1_streams_that_are_opened_and_reset_without_end_end_the_connection() {
    const ENHANCE_YOUR_CALM: u8 = 11;
    let (address, _) = start().await;
    let mut said = PREFACE.to_vec();
    for number in 0..20_000 {
        said.extend(frame(1, END_STREAM | END_HEADERS, number * 2 + 1, GET));
        said.extend(frame(3, 0, number * 2 + 1, &8_u32.to_be_bytes()));
    }
    assert_eq!(goaway(&ask(address, &said).await), Some(ENHANCE_YOUR_CALM));
    // Nobody else is bothered.
    assert!(
        ask(address, b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n").await.starts_with(b"HTTP/1.1 200")
    );
}

#[tokio::test]
async fn h3_a_head_that_never_ends_ends_the_connection() {
    let (address, served) = start().await;
    let mut said = [PREFACE, &frame(1, END_STREAM, 1, GET)].concat();
    for _ in 0..20_000 {
        said.extend(frame(9, 0, 1, b"\0\x01a\x01b"));
    }
    assert!(goaway(&ask(address, &said).await).is_some());
    assert_eq!(served.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn h12_a_stream_that_is_shorter_or_longer_than_it_says_is_reset() {
    const PROTOCOL_ERROR: &[u8] = &[0, 0, 0, 1];
    let (address, served) = start().await;
    let head = [GET, b"\x0f\x0d\x015"].concat();
    let shut = frame(7, 0, 0, &[0; 8]);
    for (flags, body) in [
        (END_STREAM | END_HEADERS, Vec::new()),
        (END_HEADERS, frame(0, END_STREAM, 1, b"four")),
        (END_HEADERS, frame(0, END_STREAM, 1, b"sixsix")),
    ] {
        let said = [PREFACE, &frame(1, flags, 1, &head), &body, &shut].concat();
        let answer = frames(&ask(address, &said).await);
        let reset = answer.iter().any(|(kind, stream, code)| (*kind, *stream, &**code) == (3, 1, PROTOCOL_ERROR));
        assert!(reset, "{body:?}: {answer:?}");
    }
    assert_eq!(served.load(Ordering::Relaxed), 0);
}
