//! A drain loses no request: real sockets, clients that keep going, and a second server to go to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::server_support::within;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::error::MeshError;
use mesh_core::fixed::Fixed;
use mesh_tower::drain::Phase;
use mesh_tower::{Mesh, server};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tower::service_fn;
use tower_layer::Layer;

/// Takes a moment, and answers with what it was sent.
async fn app(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..3))).await;
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    Ok(Response::new(Full::new(body)))
}

struct Server {
    mesh: Mesh,
    address: SocketAddr,
    serving: JoinHandle<Result<(), MeshError>>,
}

impl Server {
    async fn start() -> Self {
        let mesh = Mesh::builder().source(Fixed::new()).lame_duck(Duration::from_millis(300)).start().unwrap();
        let listener = mesh.bind("127.0.0.1:0").await.unwrap();
        mesh.serving().await.unwrap();
        let address = listener.local_addr();
        let service = mesh.server_layer().layer(service_fn(app));
        let serving = tokio::spawn(server::serve(listener, service).deadline(Duration::from_secs(10)).into_future());
        Server { mesh, address, serving }
    }

    /// Drains to the end; nothing may have been cut.
    async fn stop(self) {
        within(self.mesh.drain().begin()).await;
        within(self.serving).await.unwrap().unwrap();
        within(self.mesh.drain().finished()).await;
    }
}

/// Where clients connect: what the control plane would tell them.
#[derive(Default)]
struct Registry {
    address: std::sync::Mutex<Option<SocketAddr>>,
    done: AtomicBool,
    answered: AtomicU32,
}

impl Registry {
    async fn connect(&self) -> TokioIo<TcpStream> {
        let address = self.address.lock().unwrap().expect("a server is registered");
        let stream = TcpStream::connect(address).await.expect("a registered server accepts");
        stream.set_nodelay(true).unwrap();
        TokioIo::new(stream)
    }

    fn register(&self, server: &Server) {
        *self.address.lock().unwrap() = Some(server.address);
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let body = Full::new(Bytes::from(self.answered.load(Ordering::Relaxed).to_string()));
        Request::post("http://h/").header("host", "h").body(body).unwrap()
    }

    async fn answer(&self, response: Response<Incoming>) {
        assert_eq!(response.status(), 200);
        assert!(!response.into_body().collect().await.expect("a whole response").to_bytes().is_empty());
        self.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// A client that keeps its connection until it is told to close it. It tries nothing twice.
async fn http1_client(registry: Arc<Registry>) {
    while !registry.done.load(Ordering::Relaxed) {
        let (mut sender, connection) = http1::handshake(registry.connect().await).await.unwrap();
        tokio::spawn(connection);
        loop {
            let response = sender.send_request(registry.request()).await.expect("an answer");
            let close = response.headers().get("connection").is_some_and(|value| value == "close");
            registry.answer(response).await;
            if close || registry.done.load(Ordering::Relaxed) {
                break;
            }
            sender.ready().await.expect("nobody said that the connection closes");
        }
    }
}

/// A client with several streams at once, which takes a new connection when a GOAWAY came. A stream that the
/// server says it did not process is opened again: that is what GOAWAY means.
async fn http2_client(registry: Arc<Registry>) {
    while !registry.done.load(Ordering::Relaxed) {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), registry.connect().await).await.unwrap();
        tokio::spawn(connection);
        let mut streams = JoinSet::new();
        for _ in 0..4 {
            let (mut sender, registry) = (sender.clone(), Arc::clone(&registry));
            streams.spawn(async move {
                while !registry.done.load(Ordering::Relaxed) && sender.ready().await.is_ok() {
                    match sender.try_send_request(registry.request()).await {
                        Ok(response) => registry.answer(response).await,
                        Err(mut error) => {
                            let unseen = error.take_message().is_some() || refused_unseen(error.error());
                            assert!(unseen, "a request was lost: {:?}", error.error());
                            return;
                        }
                    }
                }
            });
        }
        while let Some(stream) = streams.join_next().await {
            stream.unwrap();
        }
    }
}

/// A stream that is newer than the last one that a GOAWAY names.
fn refused_unseen(error: &hyper::Error) -> bool {
    let error = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    error.is_some_and(|error| {
        let reason = error.reason();
        (error.is_go_away() && error.is_remote() && reason == Some(h2::Reason::NO_ERROR))
            || reason == Some(h2::Reason::REFUSED_STREAM)
    })
}

/// Replaces the server again and again under load.
async fn rolling_restart<C, F>(client: C)
where
    C: Fn(Arc<Registry>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let registry = Arc::new(Registry::default());
    let mut present = Server::start().await;
    registry.register(&present);
    let mut clients = JoinSet::new();
    (0..8).for_each(|_| _ = clients.spawn(client(Arc::clone(&registry))));
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let next = Server::start().await;
        // The drain begins before the clients know, as it does with a real control plane.
        let leaving = std::mem::replace(&mut present, next);
        let stopped = tokio::spawn(leaving.stop());
        tokio::time::sleep(Duration::from_millis(50)).await;
        registry.register(&present);
        within(stopped).await.expect("nothing was cut");
    }
    registry.done.store(true, Ordering::Relaxed);
    while let Some(client) = within(clients.join_next()).await {
        client.expect("a client lost nothing");
    }
    let answered = registry.answered.load(Ordering::Relaxed);
    assert!(answered > 500, "too few requests to tell: {answered}");
    within(present.stop()).await;
}

#[tokio::test]
async fn http1_clients_lose_nothing_when_servers_are_replaced() {
    rolling_restart(http1_client).await;
}

#[tokio::test]
async fn http2_clients_lose_nothing_when_servers_are_replaced() {
    rolling_restart(http2_client).await;
}

#[tokio::test]
async fn a_response_that_is_under_way_is_sent_to_its_end() {
    use futures_util::stream;
    const PIECES: usize = 20;
    let mesh = Mesh::builder().source(Fixed::new()).lame_duck(Duration::from_millis(100)).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let slow = service_fn(|_: Request<Incoming>| async {
        let pieces = stream::unfold(PIECES, |left| async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let piece = Ok::<_, Infallible>(http_body::Frame::data(Bytes::from("piece")));
            (left > 0).then(|| (piece, left - 1))
        });
        Ok::<_, Infallible>(Response::new(http_body_util::StreamBody::new(pieces)))
    });
    let serving = tokio::spawn(server::serve(listener, mesh.server_layer().layer(slow)).into_future());
    let request = || Request::get("http://h/").header("host", "h").body(Full::new(Bytes::new())).unwrap();
    let connect = || async { TokioIo::new(TcpStream::connect(address).await.unwrap()) };
    let (mut one, connection) = http1::handshake(connect().await).await.unwrap();
    tokio::spawn(connection);
    let (mut two, connection) = http2::handshake(TokioExecutor::new(), connect().await).await.unwrap();
    tokio::spawn(connection);
    let one = within(one.send_request(request())).await.unwrap();
    let two = within(two.send_request(request())).await.unwrap();
    within(mesh.drain().begin()).await;
    assert_eq!(mesh.drain().in_flight(), 2);
    for response in [one, two] {
        let body = within(response.into_body().collect()).await.expect("a whole response").to_bytes();
        assert_eq!(body.len(), PIECES * "piece".len());
    }
    within(serving).await.unwrap().unwrap();
}

/// To the application the answer has ended: its last bytes and its trailers are the connection's.
#[tokio::test]
async fn the_end_of_an_answer_that_waits_for_a_window_of_http2_is_sent_though_the_server_drains() {
    let mesh = Mesh::builder().source(Fixed::new()).lame_duck(Duration::ZERO).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let with_trailers = service_fn(|request: Request<Incoming>| async move {
        let trailers = http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), 0.into())]);
        let end = (request.uri().path() == "/trailers").then(|| http_body::Frame::trailers(trailers));
        let frames = [http_body::Frame::data(Bytes::from("all but the first byte waits"))].into_iter().chain(end);
        let frames: Vec<_> = frames.map(Ok::<_, Infallible>).collect();
        Ok::<_, Infallible>(Response::new(http_body_util::StreamBody::new(futures_util::stream::iter(frames))))
    });
    let serving = tokio::spawn(server::serve(listener, mesh.server_layer().layer(with_trailers)).into_future());
    let (mut sender, connection) = h2::client::Builder::new()
        .initial_window_size(1)
        .handshake::<_, Bytes>(TcpStream::connect(address).await.unwrap())
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let mut bodies = Vec::new();
    for path in ["/", "/trailers"] {
        sender = within(sender.ready()).await.unwrap();
        let (response, _) =
            sender.send_request(Request::get(format!("http://h{path}")).body(()).unwrap(), true).unwrap();
        let mut body = within(response).await.unwrap().into_body();
        assert_eq!(within(body.data()).await.unwrap().unwrap(), "a");
        bodies.push(body);
    }
    drop(sender);
    within(mesh.drain().begin()).await;
    for (body, has_trailers) in bodies.iter_mut().zip([false, true]) {
        let mut read = 1;
        body.flow_control().release_capacity(1).unwrap();
        while let Some(part) = within(body.data()).await {
            let part = part.expect("a whole response");
            body.flow_control().release_capacity(part.len()).unwrap();
            read += part.len();
        }
        assert_eq!(read, "all but the first byte waits".len());
        assert_eq!(within(body.trailers()).await.unwrap().is_some(), has_trailers);
    }
    drop(bodies);
    within(connection).await.unwrap().unwrap();
    within(serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_made_in_the_last_moment_gets_its_answer() {
    let server = Server::start().await;
    let (address, mesh) = (server.address, server.mesh.clone());
    let stopped = tokio::spawn(server.stop());
    within(mesh.drain().reached(Phase::LameDuck)).await;
    tokio::time::sleep(Duration::from_millis(290)).await;
    let stream = TcpStream::connect(address).await.unwrap();
    within(mesh.drain().reached(Phase::Closing)).await;
    // Closed to others, but this one still has its first request to send.
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("/").header("host", "h").body(Full::new(Bytes::from("x"))).unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["connection"]), (200, &"close".parse().unwrap()));
    drop(response);
    within(stopped).await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_request_that_outlasts_the_deadline_is_cut_and_that_is_an_error() {
    let mesh = Mesh::builder().source(Fixed::new()).lame_duck(Duration::ZERO).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let never = service_fn(|_: Request<Incoming>| std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>());
    let service = mesh.server_layer().layer(never);
    let serving = tokio::spawn(server::serve(listener, service).deadline(Duration::from_millis(100)).into_future());
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(TcpStream::connect(address).await.unwrap())).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/").header("host", "h").body(Full::new(Bytes::new())).unwrap();
    let response = tokio::spawn(sender.send_request(request));
    within(async {
        while mesh.drain().in_flight() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    within(mesh.drain().begin()).await;
    let error = within(serving).await.unwrap().unwrap_err();
    assert!(error.to_string().ends_with("cut 1 connections that did not end within 100ms"), "{error}");
    assert!(within(response).await.unwrap().is_err());
    assert_eq!(mesh.drain().in_flight(), 0);
}
