//! A circuit breaker with a limit of 10 under 1,000 callers at a time: the server never sees an eleventh request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body_util::BodyExt;
use mesh_benches::stats::judge;
use mesh_benches::{Result, grpc};
use mesh_core::error::ErrorKind;
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use tokio::task::JoinSet;

use crate::endpoint::{mesh, yaml};
use crate::upstream;

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
        let at = serve(Arc::clone(&seen))?;
        let limit = format!("connectionPool: {{http: {{http2MaxRequests: {LIMIT}, useClientProtocol: true}}}}");
        let (_control, mesh) = mesh(yaml(&[at], "retries: {attempts: 0}", &limit)).await?;
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

fn serve(seen: Arc<Seen>) -> Result<SocketAddr> {
    upstream::start(move |request| {
        let seen = Arc::clone(&seen);
        async move {
            let now = seen.now.fetch_add(1, Ordering::SeqCst) + 1;
            seen.most.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(WORK).await;
            seen.now.fetch_sub(1, Ordering::SeqCst);
            upstream::echo(request, Bytes::from_static(b"done")).await
        }
    })
}
