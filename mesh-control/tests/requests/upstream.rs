//! A server that is told how to behave, and says what reached it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// How long something may take that does not depend on time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until it is so.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// How many of something there are, were at most, and were in all.
#[derive(Default)]
pub(crate) struct Count {
    now: AtomicUsize,
    most: AtomicUsize,
    all: AtomicUsize,
}

impl Count {
    fn enter(self: &Arc<Self>) -> Counted {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.all.fetch_add(1, Ordering::SeqCst);
        Counted(Arc::clone(self))
    }

    pub(crate) fn now(&self) -> usize {
        self.now.load(Ordering::SeqCst)
    }

    pub(crate) fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    pub(crate) fn all(&self) -> usize {
        self.all.load(Ordering::SeqCst)
    }
}

struct Counted(Arc<Count>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Orders {
    status: AtomicU16,
    grpc_status: AtomicU32,
    hangs_up: AtomicBool,
    held: watch::Sender<bool>,
}

/// The server. It ends when it is dropped, and its connections with it.
pub(crate) struct Upstream {
    pub(crate) at: SocketAddr,
    pub(crate) requests: Arc<Count>,
    pub(crate) connections: Arc<Count>,
    orders: Arc<Orders>,
    task: JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    /// It answers 200.
    pub(crate) async fn new() -> Upstream {
        Upstream::bind("127.0.0.1:0".parse().unwrap()).await
    }

    /// The same at this address.
    pub(crate) async fn bind(at: SocketAddr) -> Upstream {
        let listener = TcpListener::bind(at).await.unwrap();
        let at = listener.local_addr().unwrap();
        let orders = Arc::<Orders>::default();
        orders.status.store(200, Ordering::SeqCst);
        let (requests, connections) = (Arc::<Count>::default(), Arc::<Count>::default());
        let task = tokio::spawn(serve(listener, Arc::clone(&orders), Arc::clone(&requests), Arc::clone(&connections)));
        Upstream { at, requests, connections, orders, task }
    }

    /// Answers with this status from now on.
    pub(crate) fn answer(&self, status: u16) {
        self.orders.status.store(status, Ordering::SeqCst);
    }

    /// Ends gRPC calls with this status from now on, in trailers after a message.
    pub(crate) fn end_calls(&self, status: u32) {
        self.orders.grpc_status.store(status, Ordering::SeqCst);
    }

    /// Closes the connection in place of an answer, from now on.
    pub(crate) fn hang_up(&self, hangs_up: bool) {
        self.orders.hangs_up.store(hangs_up, Ordering::SeqCst);
    }

    /// Keeps requests waiting, from now on or not any more.
    pub(crate) fn hold(&self, held: bool) {
        self.orders.held.send_replace(held);
    }

    /// Ends, with all connections.
    pub(crate) async fn kill(mut self) {
        self.task.abort();
        _ = (&mut self.task).await;
    }
}

async fn serve(listener: TcpListener, orders: Arc<Orders>, requests: Arc<Count>, connections: Arc<Count>) {
    let mut open = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        open.spawn(converse(stream, Arc::clone(&orders), Arc::clone(&requests), connections.enter()));
    }
}

async fn converse(stream: TcpStream, orders: Arc<Orders>, requests: Arc<Count>, _counted: Counted) {
    let over = Arc::new(tokio::sync::Notify::new());
    let service = service_fn(|request: Request<Incoming>| {
        let (orders, counted, over) = (Arc::clone(&orders), requests.enter(), Arc::clone(&over));
        async move {
            _ = orders.held.subscribe().wait_for(|held| !held).await;
            drop(counted);
            if orders.hangs_up.load(Ordering::SeqCst) {
                over.notify_one();
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(answer(&request, &orders))
        }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    tokio::select! {
        _ = server.serve_connection(TokioIo::new(stream), service) => {}
        () = over.notified() => {}
    }
}

type Frames = StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

fn answer(request: &Request<Incoming>, orders: &Orders) -> Response<Frames> {
    let is_grpc = request.headers().contains_key("grpc-timeout")
        || request.headers().get("content-type").is_some_and(|value| value == "application/grpc");
    let text = format!("{:?}", request.version());
    let mut frames = vec![Ok(Frame::data(Bytes::from(text)))];
    let mut response = Response::builder().status(orders.status.load(Ordering::SeqCst));
    if is_grpc {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", orders.grpc_status.load(Ordering::SeqCst).into());
        frames.push(Ok(Frame::trailers(trailers)));
        response = response.header("content-type", "application/grpc");
    }
    response.body(StreamBody::new(futures_util::stream::iter(frames))).unwrap()
}
