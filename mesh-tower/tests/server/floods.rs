//! Frames that cost a server more than whoever sends them: what comes of each, over real sockets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::server_support::frames::{
    END_HEADERS, END_STREAM, GET, PREFACE, ask, field, frame, frames, goaway, is_reset, start,
};
use crate::server_support::{is_answered, within};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use mesh_core::fixed::Fixed;
use mesh_tower::server::{Limits, Serve};
use mesh_tower::{Mesh, server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower_layer::Layer;

pub(crate) const ENHANCE_YOUR_CALM: u8 = 11;

/// Handlers that are at work, and the most that there ever were.
#[derive(Default)]
struct AtWork(AtomicUsize, AtomicUsize);

struct Working(Arc<AtWork>);

impl Working {
    fn of(all: &Arc<AtWork>) -> Self {
        let now = all.0.fetch_add(1, Ordering::Relaxed) + 1;
        all.1.fetch_max(now, Ordering::Relaxed);
        Working(Arc::clone(all))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A server that neither reads nor answers requests of HTTP/2, and answers those of HTTP/1.1 at once.
async fn held(limits: Limits) -> (SocketAddr, Arc<AtWork>) {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let (address, at_work) = (bound.local_addr(), Arc::<AtWork>::default());
    let counted = Arc::clone(&at_work);
    let app = tower::service_fn(move |request: Request<Incoming>| {
        let counted = Arc::clone(&counted);
        async move {
            if request.version() == http::Version::HTTP_2 {
                let _working = Working::of(&counted);
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"served"))))
        }
    });
    let serve: Serve<_> = server::serve(bound, mesh.server_layer().layer(app));
    tokio::spawn(serve.limits(limits).into_future());
    within(mesh.serving()).await.unwrap();
    (address, at_work)
}

async fn others_are_served(address: SocketAddr) {
    let answer = ask(address, b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

/// Streams that begin well, and that their server then has to reset: a window becomes too large (RFC 9113, 6.9.1).
pub(crate) fn streams_to_reset(count: u32) -> Vec<u8> {
    let mut said = PREFACE.to_vec();
    for number in 0..count {
        said.extend(frame(1, END_HEADERS, number * 2 + 1, GET));
        said.extend(frame(8, 0, number * 2 + 1, &[0x7f, 0xff, 0xff, 0xff]));
    }
    said
}

/// What 99 % of a thousand requests over one connection take at most.
fn time_of_99(address: SocketAddr) -> Duration {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = [0; 4096];
    let mut times: Vec<Duration> = (0..1000)
        .map(|_| {
            let began = Instant::now();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n").unwrap();
            let mut read = 0;
            while !buffer[..read].ends_with(b"served") {
                read += stream.read(&mut buffer[read..]).unwrap();
            }
            began.elapsed()
        })
        .collect();
    times.sort();
    times[990]
}

/// `cargo test --release -p mesh-tower --test server h1_a_flood -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, for the release profile"]
async fn h1_a_flood_of_resets_slows_nobody_else_down() {
    let (address, _) = held(Limits::default()).await;
    let quiet = tokio::task::spawn_blocking(move || time_of_99(address)).await.unwrap();
    let mut flood = PREFACE.to_vec();
    for number in 0..100_000 {
        flood.extend(frame(1, END_STREAM | END_HEADERS, number * 2 + 1, GET));
        flood.extend(frame(3, 0, number * 2 + 1, &8_u32.to_be_bytes()));
    }
    // As many as a client has before it is kept out, from another address.
    let flooding = tokio::spawn(async move {
        for _ in 0..10 {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind((std::net::Ipv4Addr::new(127, 0, 0, 2), 0).into()).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            _ = stream.write_all(&flood).await;
            _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let flooded = tokio::task::spawn_blocking(move || time_of_99(address)).await.unwrap();
    within(flooding).await.unwrap();
    println!("99 % of requests take {quiet:?} at most, and {flooded:?} beside ten floods");
    assert!(flooded <= 2 * quiet, "the bar is twice as long");
}

#[tokio::test]
async fn h2_streams_that_the_server_has_to_reset_end_the_connection_and_their_handlers() {
    let (address, at_work) = held(Limits::default()).await;
    assert_eq!(goaway(&ask(address, &streams_to_reset(20_000)).await), Some(ENHANCE_YOUR_CALM));
    let gone = async {
        while at_work.0.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    };
    within(gone).await;
    assert!(at_work.1.load(Ordering::Relaxed) <= 100, "{}", at_work.1.load(Ordering::Relaxed));
    others_are_served(address).await;
}

#[tokio::test]
async fn h5_empty_frames_that_nobody_reads_end_the_connection() {
    let (address, _) = held(Limits::default()).await;
    for data in [&b""[..], b"x"] {
        let mut said = [PREFACE, &frame(1, END_HEADERS, 1, GET)].concat();
        said.extend(frame(0, 0, 1, data).repeat(200_000));
        assert!(goaway(&ask(address, &said).await).is_some_and(|code| code != 0), "{data:?}");
    }
    others_are_served(address).await;
}

#[tokio::test]
async fn h6_a_client_that_does_not_read_is_owed_no_more_than_a_thousand_resets() {
    let (address, _) = held(Limits::default()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It fits into the buffers of the sockets, so that it is written before anything is read.
    within(stream.write_all(&streams_to_reset(3_000))).await.unwrap();
    let mut answer = Vec::new();
    _ = within(stream.read_to_end(&mut answer)).await;
    assert_eq!(goaway(&answer), Some(ENHANCE_YOUR_CALM));
    let resets = frames(&answer).iter().filter(|(kind, ..)| *kind == 3).count();
    assert!(resets <= 1_025, "{resets}");
}

#[tokio::test]
async fn h7_a_client_has_only_so_many_connections_and_one_that_floods_them_is_let_in_no_more() {
    let mut limits = Limits::default();
    limits.max_connections_per_client = 2;
    let (address, _) = held(limits).await;
    let connect = || async { TcpStream::connect(address).await.unwrap() };
    let is_served = async |stream: &mut TcpStream| is_answered(stream, "/", "served").await;
    let (mut one, mut two) = (connect().await, connect().await);
    assert!(is_served(&mut one).await && is_served(&mut two).await);
    assert!(!is_served(&mut connect().await).await, "a third one");
    drop(one);
    let comes_in = async { while !is_served(&mut connect().await).await {} };
    within(comes_in).await;
    assert!(is_served(&mut two).await);
    drop(two);

    let (address, _) = held(Limits::default()).await;
    for _ in 0..10 {
        others_are_served(address).await;
        assert_eq!(goaway(&ask(address, &streams_to_reset(3_000)).await), Some(ENHANCE_YOUR_CALM));
    }
    let refused = async { while !ask(address, b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n").await.is_empty() {} };
    within(refused).await;
}

#[tokio::test]
async fn h7_settings_and_pings_are_answered_one_by_one_and_end_the_connection_where_they_flood_it() {
    let (address, served) = start().await;
    for idle in [frame(4, 0, 0, b""), frame(6, 0, 0, &[7; 8])] {
        let request = [frame(1, END_STREAM | END_HEADERS, 1, GET), frame(7, 0, 0, &[0; 8])].concat();
        let answers = async |count: usize| {
            let said = [PREFACE, &idle.repeat(count), &request].concat();
            let (answer, ()) = tokio::join!(ask(address, &said), others_are_served(address));
            frames(&answer).iter().filter(|frame| frame.0 == idle[3]).count()
        };
        assert!(answers(15_000).await >= 15_000);
        // Twenty thousand within any second are too many.
        assert!(answers(400_000).await < 400_000);
    }
    // Its request came behind the flood.
    assert_eq!(served.load(Ordering::Relaxed), 6);
}

#[tokio::test]
async fn h13_bytes_that_http1_would_read_otherwise_are_no_part_of_a_field() {
    let (address, served) = start().await;
    let shut = frame(7, 0, 0, &[0; 8]);
    let is_refused = |answer: &[u8]| is_reset(answer, 1) || goaway(answer).is_some_and(|code| code != 0);
    for (name, value) in [
        (&b"a b"[..], &b"1"[..]),
        (b"a:b", b"1"),
        (b"a\r\nb", b"1"),
        (b"a\0b", b"1"),
        (b"Upper", b"1"),
        (b"", b"1"),
        (b"a", b"1\r\nevil: 1"),
        (b"a", b"1\nevil: 1"),
        (b"a", b"1\0"),
        (b"transfer-encoding", b"chunked"),
        (b"connection", b"close"),
        (b":path", b"/twice"),
        (b":unknown", b"1"),
    ] {
        let head = [GET, &field(name, value)].concat();
        let said = [PREFACE, &frame(1, END_STREAM | END_HEADERS, 1, &head), &shut].concat();
        let answer = ask(address, &said).await;
        assert!(is_refused(&answer), "{name:?}: {value:?}: {:?}", frames(&answer));
    }
    for trailer in [field(b"a\r\nb", b"1"), field(b"a", b"1\r\nevil: 1"), field(b"connection", b"close")] {
        let head = frame(1, END_HEADERS, 1, GET);
        let said = [PREFACE, &head, &frame(1, END_STREAM | END_HEADERS, 1, &trailer), &shut].concat();
        let answer = ask(address, &said).await;
        assert!(is_refused(&answer), "{trailer:?}: {:?}", frames(&answer));
    }
    assert_eq!(served.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn h13_a_pseudo_header_in_trailers_ends_the_connection_and_its_request_is_never_whole() {
    let (address, served) = start().await;
    // The last ones name fields of the request by their place: `:authority`, and a header that trailers may have.
    for (trailers, is_refused) in [
        (field(b":path", b"/admin"), true),
        (field(b":authority", b"other"), true),
        (field(b":unknown", b"1"), true),
        (b"\x84".to_vec(), true),
        (b"\xbf".to_vec(), true),
        (b"\xbe".to_vec(), false),
        (field(b"a", b"1"), false),
    ] {
        let before = served.swap(0, Ordering::Relaxed);
        assert!(before < 2);
        let said = [
            PREFACE,
            // `:authority` and `a` become entries of the table.
            &frame(1, END_HEADERS, 1, b"\x82\x86\x84\x41\x04shop\x40\x01a\x01b"),
            &frame(0, 0, 1, b"body"),
            &frame(1, END_STREAM | END_HEADERS, 1, &trailers),
            &frame(7, 0, 0, &[0; 8]),
        ];
        let answer = ask(address, &said.concat()).await;
        let is_answered = frames(&answer).iter().any(|(kind, of, _)| (*kind, *of) == (1, 1));
        assert_eq!(
            (is_answered, served.load(Ordering::Relaxed)),
            (!is_refused, usize::from(!is_refused)),
            "{trailers:?}"
        );
    }
}

/// A server that tells of each request what came of it.
async fn telling() -> (SocketAddr, tokio::sync::mpsc::Receiver<(http::request::Parts, Option<http::HeaderMap>, Bytes)>)
{
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = bound.local_addr();
    let (told, seen) = tokio::sync::mpsc::channel(1);
    let app = tower::service_fn(move |request: Request<Incoming>| {
        let told = told.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap();
            told.send((head, body.trailers().cloned(), body.to_bytes())).await.unwrap();
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
        }
    });
    tokio::spawn(server::serve(bound, mesh.server_layer().layer(app)).into_future());
    within(mesh.serving()).await.unwrap();
    (address, seen)
}

#[tokio::test]
async fn h13_fields_of_trailers_are_no_part_of_the_request_that_they_end() {
    let (address, mut seen) = telling().await;
    let shut = frame(7, 0, 0, &[0; 8]);
    for (name, value) in [(&b"content-length"[..], &b"1"[..]), (b"host", b"other")] {
        let said = [
            PREFACE,
            &frame(1, END_HEADERS, 1, GET),
            &frame(0, 0, 1, b"body"),
            &frame(1, END_STREAM | END_HEADERS, 1, &field(name, value)),
            &shut,
        ];
        let answer = ask(address, &said.concat()).await;
        let (head, trailers, body) = within(seen.recv()).await.unwrap();
        assert_eq!((head.uri.to_string(), &body[..]), ("http://shop/".to_owned(), &b"body"[..]), "{answer:?}");
        assert!(!head.headers.contains_key("host") && !head.headers.contains_key("content-length"), "{head:?}");
        let name = http::HeaderName::from_bytes(name).unwrap();
        assert_eq!(trailers.unwrap_or_default().get(name).map(|value| value.as_bytes()), Some(value));
    }
}

#[tokio::test]
async fn h13_trailers_pass_whatever_of_them_a_client_names_by_its_place_in_the_table() {
    use http::{HeaderName, HeaderValue};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let (address, mut seen) = telling().await;
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let mut random = fastrand::Rng::with_seed(13);
    for number in 0..500 {
        let mut field = || {
            let value = "v".repeat(random.usize(..40)) + &random.u8(..4).to_string();
            (format!("x-{}", random.u8(..60)), value)
        };
        let (headers, trailers): (Vec<_>, http::HeaderMap) = ((0..number % 7).map(|_| field()).collect(), {
            let fields = (0..1 + number % 3).map(|_| field());
            fields
                .map(|(name, value)| (HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap()))
                .collect()
        });
        let mut request = Request::post(format!("http://shop-{}/{}", number % 5, number % 11));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let frames =
            [hyper::body::Frame::data(Bytes::from_static(b"body")), hyper::body::Frame::trailers(trailers.clone())];
        let body = http_body_util::StreamBody::new(tokio_stream::iter(frames.map(Ok::<_, Infallible>)));
        let (answer, told) =
            within(async { tokio::join!(sender.send_request(request.body(body).unwrap()), seen.recv()) }).await;
        assert_eq!(answer.unwrap().status(), 200, "{number}");
        assert_eq!(told.unwrap().1, Some(trailers));
    }
}

#[tokio::test]
async fn h18_trailers_without_an_end_padding_and_ten_thousand_fields_concern_their_stream_alone() {
    let (address, served) = start().await;
    let shut = frame(7, 0, 0, &[0; 8]);
    let another = frame(1, END_STREAM | END_HEADERS, 3, GET);
    let is_answered = |answer: &[u8], stream| frames(answer).iter().any(|(kind, of, _)| (*kind, *of) == (1, stream));
    // Trailers have to end the stream (RFC 9113, 8.1).
    let trailers = frame(1, END_HEADERS, 1, &field(b"a", b"1"));
    let answer = ask(address, &[PREFACE, &frame(1, END_HEADERS, 1, GET), &trailers, &another, &shut].concat()).await;
    assert!(is_reset(&answer, 1) && is_answered(&answer, 3), "{:?}", frames(&answer));
    assert_eq!(served.load(Ordering::Relaxed), 1);
    // As much padding as there can be, around a byte each.
    const PADDED: u8 = 8;
    let padded = [&[255, b'x'][..], &[0; 255]].concat();
    let mut said = [PREFACE, &frame(1, END_HEADERS, 1, GET)].concat();
    said.extend(frame(0, PADDED, 1, &padded).repeat(200));
    said.extend([frame(0, END_STREAM, 1, b""), another.clone(), shut.clone()].concat());
    let answer = ask(address, &said).await;
    assert!(is_answered(&answer, 1) && is_answered(&answer, 3), "{:?}", frames(&answer));
    assert_eq!(served.load(Ordering::Relaxed), 3);
    // Ten thousand fields, in as many frames as they take.
    let fields: Vec<u8> = (0..10_000).flat_map(|number| field(format!("x-{number}").as_bytes(), b"1")).collect();
    let mut parts = fields.chunks(16_000).peekable();
    let mut said = [PREFACE, &frame(1, END_STREAM, 1, GET)].concat();
    while let Some(part) = parts.next() {
        said.extend(frame(9, if parts.peek().is_none() { END_HEADERS } else { 0 }, 1, part));
    }
    said.extend([another, shut].concat());
    let answer = ask(address, &said).await;
    let is_refused =
        frames(&answer).iter().any(|(kind, of, head)| (*kind, *of) == (1, 1) && head.starts_with(b"\x48\x03431"))
            || is_reset(&answer, 1)
            || goaway(&answer).is_some_and(|code| code != 0);
    assert!(is_refused, "{:?}", frames(&answer));
    others_are_served(address).await;
}
