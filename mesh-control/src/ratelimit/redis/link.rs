//! The connection to Redis: how it is dialled and kept, and what is said over it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::try_join_all;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult, Script, ScriptInvocation, ServerErrorKind};
use tokio::time::{Instant, sleep, timeout};

use super::Line;
use super::url::RedisUrl;
use crate::hex::hex;
use crate::ratelimit::window::{Algorithm, Charge, Key};

/// Pauses between attempts to dial.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long dialling may take.
const DIAL: Duration = Duration::from_secs(2);

/// A connection that many requests share.
pub(crate) enum Link {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// Keeps a connection; for ever.
pub(super) async fn keep(url: RedisUrl, line: Arc<Line>, script: &'static str, what: &'static str) {
    let (mut pause, mut complaint) = (FIRST_PAUSE, String::new());
    loop {
        let dialled = match timeout(DIAL, dial(&url, script)).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no connection within {DIAL:?}")),
        };
        match dialled {
            Ok(link) => {
                tracing::info!(redis = %url, "{what} are counted in Redis");
                complaint.clear();
                let since = Instant::now();
                line.refuses.store(false, Ordering::Relaxed);
                line.link.store(Some(Arc::new(link)));
                line.lost.notified().await;
                tracing::warn!(redis = %url, "the connection to Redis is lost: {what} are not counted");
                // A server that takes connections and breaks them is not dialled any faster for it.
                pause = if since.elapsed() > LONGEST_PAUSE { FIRST_PAUSE } else { (2 * pause).min(LONGEST_PAUSE) };
            }
            Err(why) => {
                if complaint != why {
                    tracing::warn!(redis = %url, "cannot reach Redis: {why}");
                    complaint = why;
                }
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
        }
        // Replicas that lost it at the same time do not come back at the same time.
        sleep(pause.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
    }
}

async fn dial(url: &RedisUrl, script: &str) -> RedisResult<Link> {
    let mut link = url.dial().await?;
    // So that no request has to; and a server that is still loading its data is no server yet. `Script::load_async` would panic
    // where the answer is the name of another script, and nobody would dial again.
    let mut load = redis::cmd("SCRIPT");
    load.arg("LOAD").arg(script);
    let name: String = match &mut link {
        Link::One(link) => load.query_async(link).await?,
        Link::Cluster(link) => load.query_async(link).await?,
    };
    match name == Script::new(script).get_hash() {
        true => Ok(link),
        false => Err(nonsense()),
    }
}

/// What Redis says that has nothing to do with the question.
fn nonsense() -> RedisError {
    (ErrorKind::UnexpectedReturnType, "Redis answered something else than was asked").into()
}

/// Whether an error says that the connection is of no use any more. After a failover, that to the former master is not.
pub(super) fn is_lost(error: &RedisError) -> bool {
    let is_other = matches!(
        error.kind(),
        ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading)
    );
    is_other || error.is_unrecoverable_error() || error.is_io_error()
}

impl Link {
    /// Runs one script.
    pub(crate) async fn invoke<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> RedisResult<T> {
        match self {
            Link::One(link) => script.invoke_async(&mut link.clone()).await,
            Link::Cluster(link) => script.invoke_async(&mut link.clone()).await,
        }
    }

    /// Counts hits, and says of each counter how many there are with them.
    pub(super) async fn take(&self, script: &Script, charges: &[Charge], now: Duration) -> RedisResult<Vec<u64>> {
        match self {
            Link::One(link) => run(script, link.clone(), charges, now).await,
            Link::Cluster(link) => {
                let each = charges.chunks(1).map(|charge| run(script, link.clone(), charge, now));
                Ok(try_join_all(each).await?.into_iter().flatten().collect())
            }
        }
    }
}

async fn run(
    script: &Script,
    mut link: impl ConnectionLike,
    charges: &[Charge],
    now: Duration,
) -> RedisResult<Vec<u64>> {
    let mut invocation = script.prepare_invoke();
    for Charge { key, unit, algorithm, limit, hits } in charges {
        let (window, millis) = (unit.window(now), unit.seconds() * 1000);
        invocation.key(name(key, window)).arg(*hits).arg(*limit);
        match algorithm {
            Algorithm::Fixed => invocation.arg(millis).arg(-1),
            Algorithm::Sliding => {
                invocation.key(name(key, window.saturating_sub(1))).arg(2 * millis).arg(unit.share_before(now))
            }
        };
    }
    let counts: Vec<i64> = invocation.invoke_async(&mut link).await?;
    counts.into_iter().map(|count| u64::try_from(count).map_err(|_| nonsense())).collect()
}

/// The name of a window's counter. What is in braces decides where it lies in a cluster: windows of one limit lie together.
fn name(key: &Key, window: u64) -> String {
    format!("mesh-ratelimit:{{{}}}:{window}", hex(key))
}
