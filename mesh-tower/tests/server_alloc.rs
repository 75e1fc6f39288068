//! What the server side adds to a request: at most two heap allocations above bare hyper, held here; and that metrics add none,
//! on either side.
//!
//! Client and server share one thread, and the client is hyper's own connection in every case; so what differs
//! is the server.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_core::fixed::Fixed;
use mesh_tower::{Mesh, server};
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
