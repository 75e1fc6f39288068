//! Requests that come at a rate, whatever becomes of those before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mesh_benches::Result;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample<T> {
    /// When it was sent.
    pub(crate) at: Instant,
    /// How long it took.
    pub(crate) took: Duration,
    pub(crate) outcome: T,
}

/// A load that runs until it is stopped.
pub(crate) struct Load<T> {
    is_over: Arc<AtomicBool>,
    running: JoinHandle<Vec<Sample<T>>>,
}

impl<T: Send + 'static> Load<T> {
    /// Sends so many requests a second.
    pub(crate) fn start<F>(rate: u32, mut call: impl FnMut() -> F + Send + 'static) -> Self
    where
        F: Future<Output = T> + Send + 'static,
    {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let running = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let (mut underway, mut samples) = (JoinSet::new(), Vec::new());
            while !over.load(Ordering::Relaxed) {
                tokio::select! {
                    _ = ticks.tick() => {
                        let called = call();
                        underway.spawn(async move {
                            let at = Instant::now();
                            let outcome = called.await;
                            Sample { at, took: at.elapsed(), outcome }
                        });
                    }
                    Some(Ok(sample)) = underway.join_next() => samples.push(sample),
                }
            }
            while let Some(sample) = underway.join_next().await {
                samples.extend(sample);
            }
            samples
        });
        Load { is_over, running }
    }

    /// Sends no more, and waits for those that are under way.
    pub(crate) async fn end(self) -> Result<Vec<Sample<T>>> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut samples = self.running.await?;
        samples.sort_by_key(|sample| sample.at);
        Ok(samples)
    }
}

/// When something came to be, in words.
pub(crate) fn after(time: Option<Duration>) -> String {
    time.map_or_else(|| "never".to_owned(), |time| format!("after {time:?}"))
}

/// How long the requests took that began within these times: what this share of them did not exceed.
pub(crate) fn latency<T>(samples: &[Sample<T>], from: Instant, to: Instant, share: f64) -> Duration {
    let within = samples.iter().filter(|sample| sample.at >= from && sample.at < to);
    let mut taken: Vec<_> = within.map(|sample| sample.took).collect();
    taken.sort_unstable();
    let rank = (taken.len() as f64 * share).ceil() as usize;
    taken.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}
