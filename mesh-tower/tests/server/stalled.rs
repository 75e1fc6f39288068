//! Answers over HTTP/2 that are not taken, while their client goes on with other requests (H8).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::limits::OTHER;
use crate::server_support::frames::{END_HEADERS, END_STREAM, GET, PREFACE, frame, frames, goaway, is_reset};
use crate::server_support::within;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use mesh_core::fixed::Fixed;
use mesh_tower::Mesh;
use mesh_tower::server::{Limits, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tower::service_fn;
use tower_layer::Layer;

/// `GET http://shop/b`.
const OF_B: &[u8] = b"\x82\x86\x04\x02/b\x01\x04shop";

/// A server whose answers have so many bytes: to `/`, to `/b`, and none to others. What nothing is taken of ends soon.
async fn answering(bytes: [usize; 2]) -> (OwnedReadHalf, OwnedWriteHalf) {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr();
    let mut limits = Limits::default();
    limits.stall_timeout = Duration::from_millis(200);
    let app = service_fn(move |request: Request<Incoming>| async move {
        let length = match request.uri().path() {
            "/" => bytes[0],
            "/b" => bytes[1],
            _ => 0,
        };
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![7; length]))))
    });
    tokio::spawn(serve(listener, mesh.server_layer().layer(app)).limits(limits).into_future());
    TcpStream::connect(address).await.unwrap().into_split()
}

/// Reads until this is so, and sends other requests meanwhile, from this stream on.
async fn go_on(
    reads: &mut OwnedReadHalf,
    writes: &mut OwnedWriteHalf,
    first: u32,
    answer: &mut Vec<u8>,
    is_so: impl Fn(&[u8]) -> bool,
) {
    let is_over = AtomicBool::new(false);
    let reading = async {
        while !is_so(answer) {
            assert!(reads.read_buf(answer).await.unwrap() > 0, "the connection ended: {:?}", goaway(answer));
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let writing = async {
        for number in 0.. {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            writes.write_all(&frame(1, END_STREAM | END_HEADERS, first + number * 2, OTHER)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(async { tokio::join!(reading, writing) }).await;
}

/// How many bytes of its answer a stream has got.
fn taken(answer: &[u8], stream: u32) -> usize {
    frames(answer).iter().filter(|(kind, of, _)| (*kind, *of) == (0, stream)).map(|(.., data)| data.len()).sum()
}

#[tokio::test]
async fn h8_an_answer_of_which_a_client_takes_nothing_is_reset_while_it_goes_on_with_others() {
    let (mut reads, mut writes) = answering([1 << 20, 0]).await;
    writes.write_all(&[PREFACE, &frame(1, END_STREAM | END_HEADERS, 1, GET)].concat()).await.unwrap();
    let mut answer = Vec::new();
    go_on(&mut reads, &mut writes, 3, &mut answer, |answer| is_reset(answer, 1)).await;
    assert_eq!(taken(&answer, 1), 65_535, "as much as its window had");
    assert!(frames(&answer).iter().any(|(kind, of, _)| *kind == 1 && *of > 1), "others were answered");
}

/// The first answer is kept by the HTTP library until it is taken; the second one has a byte more.
#[tokio::test]
async fn h8_of_an_answer_that_is_not_taken_no_more_is_kept_than_one_frame() {
    const FRAME: usize = 16 << 10;
    let (mut reads, mut writes) = answering([FRAME, FRAME + 1]).await;
    // SETTINGS_INITIAL_WINDOW_SIZE is 1.
    let settings = [&PREFACE[..24], &frame(4, 0, 0, &[0, 4, 0, 0, 0, 1])].concat();
    let (one, two) = (frame(1, END_STREAM | END_HEADERS, 1, GET), frame(1, END_STREAM | END_HEADERS, 3, OF_B));
    writes.write_all(&[settings, one, two].concat()).await.unwrap();
    let mut answer = Vec::new();
    go_on(&mut reads, &mut writes, 5, &mut answer, |answer| is_reset(answer, 3)).await;
    assert_eq!((taken(&answer, 1), taken(&answer, 3)), (1, 1), "as much as the windows had");
    writes.write_all(&frame(8, 0, 1, &(1_u32 << 20).to_be_bytes())).await.unwrap();
    while taken(&answer, 1) < FRAME {
        assert!(within(reads.read_buf(&mut answer)).await.unwrap() > 0, "the connection ended: {:?}", goaway(&answer));
    }
    assert!(!is_reset(&answer, 1));
}
