//! Counters in Redis, which several replicas share: one script counts all limits of a request in one round trip.
//!
//! One connection carries all requests ([`Scripted`]). A task of its own dials it, and dials again when it is lost; meanwhile requests
//! fail at once, and whoever asks decides what that means. What is known to be over its limit until a window ends is not asked
//! again. A Redis that is full, or lets nobody write, keeps its connection: that it does not count is told in the log.
//!
//! In a cluster, limits of one request may lie on several machines, so each is a script of its own, and all are under way at once.
//! Nothing is lost by it: what a limit says has nothing to do with the others.

mod link;
mod url;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use mesh_core::seldom::Seldom;
use redis::{RedisError, RedisResult, Script};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

pub(crate) use self::link::Link;
use self::link::keep;
pub use self::url::RedisUrl;
use crate::ratelimit::bounded::Bounded;
use crate::ratelimit::store::NotCounted;
use crate::ratelimit::window::{Algorithm, Charge};

/// How long Redis has for an answer. Envoy waits 20 ms for ours unless it is told otherwise.
const PATIENCE: Duration = Duration::from_millis(250);
/// Requests that wait for Redis at a time.
const MOST_WAITING: usize = 4096;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct RedisStore {
    redis: Scripted,
    /// What is over its limit.
    over: Bounded<Over>,
}

/// A connection to Redis that is kept, and the script that is run over it.
pub(crate) struct Scripted {
    line: Arc<Line>,
    script: Script,
    what: &'static str,
    waiting: Semaphore,
    keeper: JoinHandle<()>,
}

/// The connection, while there is one.
#[derive(Default)]
struct Line {
    link: ArcSwapOption<Link>,
    lost: Notify,
    /// Whether the last answer was that it does not count.
    refuses: AtomicBool,
    told: Seldom,
}

/// In which window a counter is over which limit. Where the limit is raised meanwhile, that says nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Over {
    window: u64,
    limit: u32,
    is_over: bool,
}

impl RedisStore {
    pub(super) fn new(url: RedisUrl, most_keys: usize) -> RedisStore {
        let redis = Scripted::new(url, include_str!("redis/script.lua"), "rate limits");
        RedisStore { redis, over: Bounded::new(most_keys) }
    }

    pub(super) async fn take(&self, charges: &[Charge], now: Duration) -> Result<Vec<u64>, NotCounted> {
        let known: Vec<Option<u64>> = charges.iter().map(|charge| self.known(charge, now)).collect();
        let unknown = charges.iter().zip(&known).filter(|(_, known)| known.is_none());
        let asked: Vec<Charge> = unknown.map(|(charge, _)| *charge).collect();
        let mut counts = if asked.is_empty() { Vec::new() } else { self.ask(&asked, now).await? }.into_iter();
        let nonsense = || NotCounted::Away("Redis answered something else than was asked".to_owned());
        charges
            .iter()
            .zip(known)
            .map(|(charge, known)| match known {
                Some(count) => Ok(count),
                None => {
                    let count = counts.next().ok_or_else(nonsense)?;
                    self.learn(charge, count, now);
                    Ok(count)
                }
            })
            .collect()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.redis.is_connected()
    }

    pub(super) fn keys(&self) -> usize {
        self.over.len()
    }

    async fn ask(&self, charges: &[Charge], now: Duration) -> Result<Vec<u64>, NotCounted> {
        self.redis.run(async |link, script| link.take(script, charges, now).await).await
    }

    /// How many hits there are as far as this process knows: over the limit, or `None`.
    fn known(&self, charge: &Charge, now: Duration) -> Option<u64> {
        if charge.algorithm != Algorithm::Fixed || charge.hits < 0 {
            return None;
        }
        let window = charge.unit.window(now);
        let is_over = |over: &Over| over.is_over && over.window == window && over.limit >= charge.limit;
        let hits = charge.hits.unsigned_abs().max(1);
        self.over.look(&charge.key, is_over)?.then(|| u64::from(charge.limit).saturating_add(hits))
    }

    fn learn(&self, charge: &Charge, count: u64, now: Duration) {
        let is_over = charge.algorithm == Algorithm::Fixed && count > u64::from(charge.limit);
        // What was given back may bring it below its limit again.
        if is_over || charge.hits < 0 {
            let window = charge.unit.window(now);
            self.over.with(&charge.key, |over| *over = Over { window, limit: charge.limit, is_over });
        }
    }
}

impl Line {
    /// Gives up a connection, unless somebody did so already.
    fn lose(&self, link: &Arc<Link>) {
        let present = self.link.compare_and_swap(&Some(Arc::clone(link)), None);
        if present.as_ref().is_some_and(|present| Arc::ptr_eq(present, link)) {
            self.lost.notify_one();
        }
    }

    /// It answered, and did not count.
    #[cold]
    fn note_refusal(&self, error: &RedisError, what: &str) {
        self.refuses.store(true, Ordering::Relaxed);
        if self.told.is_due(Instant::now().into_std()) {
            tracing::warn!("Redis answers, and {what} are not counted: {error}");
        }
    }
}

impl Scripted {
    /// Dials in the background, for as long as there is this. `what` is what is counted there. To be called inside a runtime.
    pub(crate) fn new(url: RedisUrl, script: &'static str, what: &'static str) -> Scripted {
        let line = Arc::<Line>::default();
        let keeper = tokio::spawn(keep(url, line.clone(), script, what));
        Scripted { line, script: Script::new(script), what, waiting: Semaphore::new(MOST_WAITING), keeper }
    }

    /// Whether there is a Redis that counts, as far as it was asked.
    pub(crate) fn is_connected(&self) -> bool {
        self.line.link.load().is_some() && !self.line.refuses.load(Ordering::Relaxed)
    }

    /// Runs the script, within the time that an answer may take.
    pub(crate) async fn run<T>(
        &self,
        run: impl AsyncFnOnce(&Link, &Script) -> RedisResult<T>,
    ) -> Result<T, NotCounted> {
        let _turn = self.waiting.try_acquire().map_err(|_| NotCounted::Busy)?;
        let link = self.line.link.load_full().ok_or_else(|| NotCounted::Away("no connection to Redis".to_owned()))?;
        match timeout(PATIENCE, run(&link, &self.script)).await {
            Ok(Ok(answer)) => {
                // Decisions share this, and hardly ever is it another one.
                if self.line.refuses.load(Ordering::Relaxed) {
                    self.line.refuses.store(false, Ordering::Relaxed);
                }
                Ok(answer)
            }
            Ok(Err(error)) => {
                match link::is_lost(&error) {
                    true => self.line.lose(&link),
                    false => self.line.note_refusal(&error, self.what),
                }
                let code = error.code().map(|code| format!("Redis says {code}"));
                Err(NotCounted::Away(code.unwrap_or_else(|| error.category().to_owned())))
            }
            Err(_) => {
                // It may hang for good: where the other end has vanished, nothing says so.
                self.line.lose(&link);
                Err(NotCounted::Away(format!("Redis did not answer within {PATIENCE:?}")))
            }
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scripted").field("connected", &self.is_connected()).finish_non_exhaustive()
    }
}
