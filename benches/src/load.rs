//! Load: callers that send one request after the other, for a time.

use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::Result;
use crate::stats::percentile;

/// Somebody who sends requests.
pub trait Caller: Send + 'static {
    /// One request, its response read to the end.
    fn call(&mut self) -> impl Future<Output = Result> + Send;
}

/// What was measured in one round.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Figures {
    /// Requests per second.
    pub rate: f64,
    /// Latency in microseconds that half of the requests did not exceed.
    pub p50: f64,
    /// That 99 of 100 did not exceed.
    pub p99: f64,
    /// That 999 of 1000 did not exceed.
    pub p999: f64,
    /// CPU time of the client's side, in microseconds per request.
    pub client_cpu: f64,
    /// CPU time of the server's side, in microseconds per request.
    pub server_cpu: f64,
}

/// A crew at work: the sorted latencies in nanoseconds, and how long it was.
type Work<'w> = Pin<Box<dyn Future<Output = Result<(Vec<u32>, Duration)>> + 'w>>;

/// Callers at work at the same time, whatever they are.
pub trait Crew {
    /// Works for about this long; the sorted latencies in nanoseconds, and how long it was.
    fn work(&mut self, time: Duration) -> Work<'_>;
}

impl<C: Caller> Crew for Vec<C> {
    fn work(&mut self, time: Duration) -> Work<'_> {
        Box::pin(async move {
            let start = Instant::now();
            let working: Vec<_> = self.drain(..).map(|caller| tokio::spawn(call_until(caller, start + time))).collect();
            let mut latencies = Vec::new();
            for one in working {
                let done = tokio::time::timeout(time + PATIENCE, one).await.context("a request hangs")?;
                let (caller, mut its) = done??;
                self.push(caller);
                latencies.append(&mut its);
            }
            let elapsed = start.elapsed();
            latencies.sort_unstable();
            Ok((latencies, elapsed))
        })
    }
}

/// Far longer than any request here takes.
const PATIENCE: Duration = Duration::from_secs(30);

async fn call_until<C: Caller>(mut caller: C, end: Instant) -> Result<(C, Vec<u32>)> {
    let mut latencies = Vec::with_capacity(64 << 10);
    let mut last = Instant::now();
    while last < end {
        caller.call().await?;
        let now = Instant::now();
        latencies.push(u32::try_from(now.duration_since(last).as_nanos()).unwrap_or(u32::MAX));
        last = now;
    }
    Ok((caller, latencies))
}

/// A moment's CPU time of both sides.
struct Spent {
    client: Duration,
    server: Duration,
}

impl Spent {
    fn now(client: &[u32], server: &[u32]) -> Result<Self> {
        let sum = |processes: &[u32]| -> Result<Duration> { processes.iter().map(|it| crate::process::cpu(*it)).sum() };
        Ok(Spent { client: sum(client)?, server: sum(server)? })
    }
}

/// Measures one round: a tenth of the time to warm up, then all of it. The processes are those of each side.
pub async fn measure(crew: &mut dyn Crew, time: Duration, client: &[u32], server: &[u32]) -> Result<Figures> {
    crew.work(time / 10).await?;
    let before = Spent::now(client, server)?;
    let (latencies, elapsed) = crew.work(time).await?;
    let after = Spent::now(client, server)?;
    let requests = latencies.len() as f64;
    let at = |share| f64::from(percentile(&latencies, share)) / 1000.0;
    let each = |before: Duration, after: Duration| after.saturating_sub(before).as_secs_f64() * 1e6 / requests;
    Ok(Figures {
        rate: requests / elapsed.as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        client_cpu: each(before.client, after.client),
        server_cpu: each(before.server, after.server),
    })
}
