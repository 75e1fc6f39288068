//! Frames of HTTP/2 that a test writes by hand, and a server that gets them.

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
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_layer::Layer;

use super::within;

/// A server that counts the requests that it has read whole.
pub async fn start() -> (SocketAddr, Arc<AtomicUsize>) {
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
pub async fn ask(address: SocketAddr, said: &[u8]) -> Vec<u8> {
    let (mut reads, mut writes) = TcpStream::connect(address).await.unwrap().into_split();
    let mut answer = Vec::new();
    // Whoever is not read any more cannot write on. A reset is an end, too.
    _ = within(async { tokio::join!(writes.write_all(said), reads.read_to_end(&mut answer)) }).await;
    answer
}

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// `GET http://shop/`: three fields of the static table, and `:authority`.
pub const GET: &[u8] = b"\x82\x86\x84\x01\x04shop";
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The frames of an answer: kind, stream, payload.
pub fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
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
pub fn goaway(answer: &[u8]) -> Option<u8> {
    frames(answer).into_iter().find(|(kind, ..)| *kind == 7).and_then(|(.., payload)| payload.get(7).copied())
}

/// A field with this name and value, which are not looked at.
pub fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let length = |text: &[u8]| u8::try_from(text.len()).expect("below 127");
    [&[0, length(name)], name, &[length(value)], value].concat()
}

/// Whether a stream was reset.
pub fn is_reset(answer: &[u8], stream: u32) -> bool {
    frames(answer).iter().any(|(kind, of, _)| (*kind, *of) == (3, stream))
}
