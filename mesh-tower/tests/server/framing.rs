//! Requests whose bytes can be read in two ways, and floods that cost a server more than their sender: refused, with the
//! connection, before the application sees any of it.

use std::sync::atomic::Ordering;

use crate::server_support::frames::{END_HEADERS, END_STREAM, GET, PREFACE, ask, frame, frames, goaway, start};

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
        "transfer-encoding: identity\r\ntransfer-encoding: chunked",
        "transfer-encoding: identity, chunked",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
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
