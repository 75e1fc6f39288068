//! Fetches the keys that the configuration names, for as long as there is a plane, and publishes what changes.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::{Inner, Live, Plane, Snapshot};
use crate::config::{Code, Diagnostic, Severity};
use crate::fetch::{Good, UnderWay, Wanted};
use crate::jwks::{self, Fetcher, KeySchedule, read, write};
use crate::policy::tokens::KeySource;

/// How long a start waits for keys.
const MOST_WAIT: Duration = Duration::from_secs(6);

impl Plane {
    /// Fetches the keys of issuers from now on that a `RequestAuthentication` does not write down, and fetches them again
    /// in time. Until there are any, servers refuse the tokens of that issuer with 401. The last good keys stay while
    /// they cannot be fetched, for 7 days; with a state directory, over a restart.
    ///
    /// Must be called within a Tokio runtime. Nothing is fetched by a plane for which it is not called.
    ///
    /// Returns when all have been tried once, within seconds: who asks for a listener then is told of the keys at once.
    pub async fn fetch_keys(&self) {
        let fetching = &self.inner.options.key_fetching;
        let (tried, all_tried) = oneshot::channel();
        let work = Work {
            inner: Arc::downgrade(&self.inner),
            snapshots: self.subscribe(),
            fetcher: Fetcher::new(fetching),
            schedule: jwks::schedule(),
            refresh: fetching.refresh,
        };
        let task = tokio::spawn(work.run(tried));
        if let Err(second) = self.inner.fetcher.set(task.abort_handle()) {
            return second.abort();
        }
        let _ = timeout(MOST_WAIT, all_tried).await;
    }
}

struct Work {
    inner: Weak<Inner>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    fetcher: Fetcher,
    schedule: KeySchedule,
    refresh: Duration,
}

impl Work {
    async fn run(self, tried: oneshot::Sender<()>) {
        let Work { inner, mut snapshots, fetcher, mut schedule, refresh } = self;
        let mut under_way = UnderWay::new();
        let mut tried = Some(tried);
        let mut is_fresh = false;
        let mut kept = match inner.upgrade() {
            Some(inner) => inner.kept_keys(),
            None => return,
        };
        loop {
            let now = Instant::now();
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            let mut wanted: BTreeMap<KeySource, Wanted> = BTreeMap::new();
            for (_, source, timeout) in snapshot.compiled.policy.security.keys_elsewhere() {
                let wanted = wanted.entry(source.clone()).or_insert(Wanted { timeout, refresh });
                wanted.timeout = timeout.max(wanted.timeout);
            }
            drop(snapshot);
            schedule.want(&wanted, &mut kept, now);
            match inner.upgrade() {
                Some(inner) => inner.take_keys(&schedule, now, std::mem::take(&mut is_fresh)),
                None => return,
            }
            if schedule.all_tried()
                && let Some(tried) = tried.take()
            {
                let _ = tried.send(());
            }
            let fetch = |source: KeySource, timeout| {
                let fetcher = fetcher.clone();
                async move {
                    let set = fetcher.fetch(&source, timeout).await?;
                    set.remarks().iter().for_each(|remark| warn!("{}: {remark}", source.url()));
                    Ok::<Arc<str>, String>(set.to_json().into())
                }
            };
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                ended = under_way.next(&mut schedule, fetch) => {
                    let Some((source, outcome)) = ended else { continue };
                    tell(&schedule, &source, &outcome);
                    is_fresh = outcome.is_ok();
                    schedule.done(&source, outcome, Instant::now(), fastrand::f64());
                }
            }
        }
    }
}

/// Says what is new.
fn tell(schedule: &KeySchedule, source: &KeySource, outcome: &Result<Arc<str>, String>) {
    let url = source.url();
    match outcome {
        Ok(keys) if jwks::keys(schedule).get(source) == Some(keys) => {}
        Ok(_) => info!(url, "new keys of an issuer of tokens"),
        Err(why) => warn!("keys of an issuer of tokens cannot be fetched: {why}"),
    }
}

impl Inner {
    /// The keys of an earlier process.
    fn kept_keys(&self) -> BTreeMap<KeySource, Good<Arc<str>>> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.kept_keys().map(|bytes| read(&bytes, Instant::now(), SystemTime::now())).unwrap_or_default()
    }

    /// Puts what is known in force, where it is new, and keeps what was fetched just now.
    fn take_keys(&self, schedule: &KeySchedule, now: Instant, is_fresh: bool) {
        let keys = jwks::keys(schedule);
        let mut live = self.live();
        live.key_problems = jwks::problems(schedule, now);
        if *live.keys != keys {
            live.keys = Arc::new(keys);
            // They stand in listeners, which are looked at again where this has changed.
            live.config_generation += 1;
            self.publish(&mut live);
        }
        drop(live);
        if !is_fresh {
            return;
        }
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = store.keep_keys(&write(schedule.good(), now, SystemTime::now())) {
            warn!("the keys of issuers cannot be kept in the state directory: {error}");
        }
    }
}

/// What is to be said of keys that could not be fetched, at the objects that need them.
pub(super) fn findings(live: &Live) -> Vec<Diagnostic> {
    let needed = live.compiled.policy.security.keys_elsewhere();
    let findings = needed.filter_map(|(meta, source, _)| {
        let message = live.key_problems.get(source)?.clone();
        let finding = Diagnostic::at(&meta.origin, Severity::Warning, Code::UnknownReference, message);
        Some(finding.object(meta.id()).field("jwtRules"))
    });
    findings.collect()
}
