//! A circuit breaker with a limit of 10 under 1,000 callers at a time: the server never sees an eleventh request.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_benches::{Result, grpc};
use mesh_core::error::ErrorKind;
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::endpoint::mesh;
use crate::judge;

const LIMIT: usize = 10;
const CALLERS: usize = 1_000;
/// How long each kind of request is made.
const TIME: Duration = Duration::from_secs(3);
/// How long the server works on each.
const WORK: Duration = Duration::from_millis(2);

/// How many requests the server works on, and were most at a time.
#[derive(Default)]
struct Seen {
    now: AtomicUsize,
    most: AtomicUsize,
}

pub(crate) async fn run() -> Result<bool> {
    let mut is_met = true;
    for kind in ["HTTP/1.1", "HTTP/2", "gRPC"] {
        let seen = Arc::<Seen>::default();
        let at = serve(Arc::clone(&seen)).await?;
        let (_control, mesh) = mesh(yaml(at)).await?;
        let mut callers = JoinSet::new();
        let began = Instant::now();
        for _ in 0..CALLERS {
            let mesh = mesh.clone();
            callers.spawn(async move {
                let [mut done, mut refused, mut failed] = [0usize; 3];
                while began.elapsed() < TIME {
                    match call(&mesh, kind).await {
                        Some(true) => done += 1,
                        Some(false) => refused += 1,
                        None => failed += 1,
                    }
                    tokio::task::yield_now().await;
                }
                [done, refused, failed]
            });
        }
        let all = callers.join_all().await;
        let [done, refused, failed] = [0, 1, 2].map(|at| all.iter().filter_map(|counts| counts.get(at)).sum::<usize>());
        let most = seen.most.load(Ordering::SeqCst);
        println!("{kind}, {CALLERS} callers at a time: {done} requests done, {refused} refused");
        is_met &= judge(&format!("{most} at a time at most (limit {LIMIT})"), most <= LIMIT && refused > 0);
        is_met &= judge(&format!("{failed} failed otherwise (bar 0)"), failed == 0 && done > 0);
    }
    Ok(is_met)
}

/// Whether it was answered, or refused; `None` if it failed otherwise.
async fn call(mesh: &Mesh, kind: &str) -> Option<bool> {
    if kind == "gRPC" {
        let called = grpc::call(mesh_tonic::channel(mesh, "xds:///web.example.com:81"), Bytes::new()).await;
        return match called {
            Ok(_) => Some(true),
            Err(status) if status.message().contains("circuit breaker") => Some(false),
            Err(_) => None,
        };
    }
    let version = if kind == "HTTP/2" { Version::HTTP_2 } else { Version::HTTP_11 };
    let request = Request::get("http://web.example.com/").version(version).body(Body::empty()).ok()?;
    match mesh.client().request(request).await {
        Ok(response) if response.status() == StatusCode::OK => response.into_body().collect().await.ok().map(|_| true),
        Err(error) if error.kind() == ErrorKind::Overflow => Some(false),
        _ => None,
    }
}

async fn serve(seen: Arc<Seen>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            _ = stream.set_nodelay(true);
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let seen = Arc::clone(&seen);
                    async move {
                        let now = seen.now.fetch_add(1, Ordering::SeqCst) + 1;
                        seen.most.fetch_max(now, Ordering::SeqCst);
                        tokio::time::sleep(WORK).await;
                        seen.now.fetch_sub(1, Ordering::SeqCst);
                        answer(request).await
                    }
                });
                _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Ok(at)
}

async fn answer(request: Request<Incoming>) -> std::result::Result<Response<tonic::body::Body>, Infallible> {
    if mesh_core::request::is_grpc(request.headers()) {
        return tower::ServiceExt::oneshot(grpc::EchoServer, request).await;
    }
    Ok(Response::new(tonic::body::Body::new(Full::new(Bytes::from_static(b"done")))))
}

fn yaml(at: SocketAddr) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web}}
spec:
  hosts: [web.example.com]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}, {{number: 81, name: grpc, protocol: GRPC}}]
  endpoints: [{{address: {}, ports: {{http: {port}, grpc: {port}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: web}}
spec:
  hosts: [web.example.com]
  http:
  - retries: {{attempts: 0}}
    route: [{{destination: {{host: web.example.com}}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web}}
spec:
  host: web.example.com
  trafficPolicy:
    connectionPool: {{http: {{http2MaxRequests: {LIMIT}, useClientProtocol: true}}}}
",
        at.ip(),
        port = at.port()
    )
}
