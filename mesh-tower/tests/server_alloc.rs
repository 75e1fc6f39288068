//! What the server side adds to a request: at most two heap allocations above bare hyper, held here; and that metrics add none,
//! on either side. And how much of its memory floods take.
//!
//! Client and server share one thread, and the client is hyper's own connection in every case; so what differs
//! is the server.

mod server_support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_core::fixed::Fixed;
use mesh_tower::server::{Limits, Serve};
use mesh_tower::{Mesh, server};
use server_support::frames::{END_HEADERS, END_STREAM, GET, PREFACE, frame};
use server_support::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::service_fn;
use tower_layer::Layer;

const REQUESTS: u32 = 500;

async fn app(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    Ok(Response::new(Full::new(body)))
}

async fn bare() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let service = hyper::service::service_fn(app);
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                builder.serve_connection(TokioIo::new(stream), service).await
            });
        }
    });
    address
}

/// A mesh, with metrics or without.
fn mesh(source: Fixed, counts: bool) -> Mesh {
    let builder = Mesh::builder().source(source);
    if counts { builder.metrics() } else { builder }.start().unwrap()
}

async fn meshed(counts: bool) -> SocketAddr {
    let mesh = mesh(Fixed::new(), counts);
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    mesh.serving().await.unwrap();
    let address = listener.local_addr();
    let service = mesh.server_layer().layer(service_fn(app));
    tokio::spawn(server::serve(listener, service).into_future());
    address
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn connect(address: SocketAddr, version: Version) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let io = TokioIo::new(stream);
        if version == Version::HTTP_2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            return Sender::Http2(sender);
        }
        let (sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        Sender::Http1(sender)
    }

    async fn send(&mut self) {
        let request = Request::post("http://h/path").header("host", "h");
        let request = request.body(Full::new(Bytes::from_static(&[b'x'; 256]))).unwrap();
        let response = match self {
            Sender::Http1(sender) => {
                sender.ready().await.unwrap();
                sender.send_request(request).await
            }
            Sender::Http2(sender) => sender.send_request(request).await,
        };
        let response = response.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), 256);
    }
}

/// Allocations per request, after a warm-up.
fn allocations(runtime: &tokio::runtime::Runtime, address: SocketAddr, version: Version) -> f64 {
    let mut sender = runtime.block_on(Sender::connect(address, version));
    let mut send = |times: u32| (0..times).for_each(|_| runtime.block_on(sender.send()));
    send(50);
    let info = allocation_counter::measure(|| send(REQUESTS));
    info.count_total as f64 / f64::from(REQUESTS)
}

#[test]
fn a_request_costs_at_most_two_allocations_above_bare_hyper() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (bare, meshed) = runtime.block_on(async { (bare().await, meshed(false).await) });
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let (without, with) = (allocations(&runtime, bare, version), allocations(&runtime, meshed, version));
        println!("{version:?}: {without:.2} without the mesh, {with:.2} with it");
        assert!(with - without <= 2.0, "{version:?}: {without:.2} without the mesh, {with:.2} with it");
    }
}

/// Allocations per request of the mesh's client, after a warm-up.
fn of_client(runtime: &tokio::runtime::Runtime, address: SocketAddr, version: Version, counts: bool) -> f64 {
    let _guard = runtime.enter();
    let client = mesh(Fixed::new().service("h:80", [address]), counts).client();
    let send = |times: u32| {
        for _ in 0..times {
            runtime.block_on(async {
                let request = Request::post("http://h/path").version(version);
                let request = request.body(Full::new(Bytes::from_static(&[b'x'; 256]))).unwrap();
                let response = client.request(request).await.unwrap();
                assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), 256);
            });
        }
    };
    send(50);
    let info = allocation_counter::measure(|| send(REQUESTS));
    info.count_total as f64 / f64::from(REQUESTS)
}

#[test]
fn metrics_cost_no_allocation_on_either_side() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (bare, off, on) = runtime.block_on(async { (bare().await, meshed(false).await, meshed(true).await) });
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let server = [off, on].map(|address| allocations(&runtime, address, version));
        let client = [false, true].map(|counts| of_client(&runtime, bare, version, counts));
        for (side, [without, with]) in [("server", server), ("client", client)] {
            println!("{side} {version:?}: {without:.2} without metrics, {with:.2} with them");
            // Now and then hyper grows a buffer.
            assert!(with - without <= 0.1, "{side} {version:?}: {without:.2} without metrics, {with:.2} with them");
        }
    }
}

/// A server that never reads a body, and whose answers have no end.
async fn endless() -> SocketAddr {
    let mesh = mesh(Fixed::new(), false);
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    mesh.serving().await.unwrap();
    let address = listener.local_addr();
    let app = service_fn(|request: Request<Incoming>| async move {
        if request.uri().path() == "/held" {
            std::future::pending::<()>().await;
        }
        let part = Bytes::from(vec![b'x'; 16 << 10]);
        let parts =
            futures_util::stream::repeat_with(move || Ok::<_, Infallible>(hyper::body::Frame::data(part.clone())));
        Ok::<_, Infallible>(Response::new(http_body_util::StreamBody::new(parts)))
    });
    let mut limits = Limits::default();
    limits.stall_timeout = Duration::from_millis(200);
    let serve: Serve<_> = server::serve(listener, mesh.server_layer().layer(app));
    tokio::spawn(serve.limits(limits).into_future());
    address
}

/// The most that is on the heap at a time while somebody says this, and reads what comes back or nothing at all, until the server
/// ends the connection. What the client says was there before.
fn most(runtime: &tokio::runtime::Runtime, address: SocketAddr, said: &[u8], reads: bool) -> u64 {
    let stream = runtime.block_on(TcpStream::connect(address)).unwrap();
    let flood = async {
        let (mut answers, mut says) = stream.into_split();
        let saying = async {
            _ = says.write_all(said).await;
            if !reads {
                // It is cut off.
                while says.write_all(&[0]).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        let mut buffer = [0; 4096];
        let reading = async { while reads && answers.read(&mut buffer).await.is_ok_and(|count| count > 0) {} };
        within(async { tokio::join!(saying, reading) }).await;
    };
    allocation_counter::measure(|| runtime.block_on(flood)).bytes_max
}

#[test]
fn h1_to_h8_no_flood_takes_more_than_sixteen_mebibytes_of_its_servers_memory() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let address = runtime.block_on(endless());
    let held = b"\x82\x86\x04\x05/held\x01\x04shop";
    let streams = |count: u32, each: &dyn Fn(u32) -> Vec<u8>| -> Vec<u8> {
        PREFACE.iter().copied().chain((0..count).flat_map(|number| each(number * 2 + 1))).collect()
    };
    let resets =
        |stream| [frame(1, END_STREAM | END_HEADERS, stream, held), frame(3, 0, stream, &[0, 0, 0, 8])].concat();
    let windows =
        |stream| [frame(1, END_HEADERS, stream, held), frame(8, 0, stream, &[0x7f, 0xff, 0xff, 0xff])].concat();
    let no_end = [&frame(1, END_STREAM, 1, GET)[..], &frame(9, 0, 1, b"\0\x01a\x01b").repeat(20_000)].concat();
    // A cookie of 4,000 bytes, and a thousand times the one byte that stands for it.
    let crumb = [&b"\x60\x7f\xa1\x1e"[..], &[b'c'; 4_000]].concat();
    let cookies = [&held[..], &crumb, &[0xbe; 1_000]].concat();
    let cookies = [frame(1, END_STREAM | END_HEADERS, 1, &cookies), frame(7, 0, 0, &[0; 8])].concat();
    let empty = [&frame(1, END_HEADERS, 1, held)[..], &frame(0, 0, 1, b"").repeat(200_000)].concat();
    let crumbs = [&frame(1, END_HEADERS, 1, held)[..], &frame(0, 0, 1, b"x").repeat(200_000)].concat();
    let no_window = [&PREFACE[..24], &frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])].concat();
    let unread: Vec<u8> = (0..100).flat_map(|number| frame(1, END_STREAM | END_HEADERS, number * 2 + 1, GET)).collect();
    for (row, said, reads) in [
        ("H1: streams that are opened and reset", streams(20_000, &resets), true),
        ("H2: streams that the server has to reset", streams(20_000, &windows), true),
        ("H3: a head without an end", [PREFACE, &no_end].concat(), true),
        ("H4: cookies that are small on the wire", [PREFACE, &cookies].concat(), true),
        ("H5: empty frames that nobody reads", [PREFACE, &empty].concat(), true),
        ("H5: frames of a byte that nobody reads", [PREFACE, &crumbs].concat(), true),
        ("H6: a client that reads no resets", streams(3_000, &windows), false),
        ("H8: a hundred answers without a window", [no_window, unread].concat(), true),
        ("H8: an answer that is not read", b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n".to_vec(), false),
    ] {
        let bytes = most(&runtime, address, &said, reads);
        println!("{row}: {} KiB", bytes >> 10);
        assert!(bytes < 16 << 20, "{row}: {bytes} bytes");
    }
}
