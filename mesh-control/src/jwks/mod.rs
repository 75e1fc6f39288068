//! Keys of issuers that are elsewhere (`jwksUri`, or OpenID Connect discovery): fetched here, once for the whole mesh, and
//! handed to servers with their configuration, as istiod does it. Workloads need no way out.
//!
//! A server cannot ask for keys, so a new key is known within the refresh interval; no flood of tokens makes for a fetch.

mod fetch;
mod kept;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use fetch::Fetcher;
pub(crate) use kept::{read, write};

use crate::fetch::Schedule;
use crate::policy::tokens::{FetchedKeys, KeySource};

/// For how long keys are good that nobody can fetch again (Istio: 7 days).
const MOST_STALE: Duration = Duration::from_secs(7 * 24 * 3_600);

/// When the keys of which issuer are fetched, and what is known of them.
pub(crate) type KeySchedule = Schedule<KeySource, Arc<str>>;

pub(crate) fn schedule() -> KeySchedule {
    Schedule::new().good_for(MOST_STALE)
}

/// The keys that are known.
pub(crate) fn keys(schedule: &KeySchedule) -> FetchedKeys {
    schedule.good().map(|(source, good)| (source.clone(), Arc::clone(&good.value))).collect()
}

/// Why keys could not be fetched the last time, and what holds meanwhile.
pub(crate) fn problems(schedule: &KeySchedule, now: Instant) -> BTreeMap<KeySource, String> {
    let failed = schedule.failed().map(|(source, why, since)| {
        let meanwhile = match since {
            None => "its tokens are refused with 401".to_owned(),
            Some(since) => {
                let minutes = now.saturating_duration_since(since).as_secs() / 60;
                format!("the last good ones, {minutes} min old, stay in force")
            }
        };
        (source.clone(), format!("the keys cannot be fetched: {why}; {meanwhile}"))
    });
    failed.collect()
}

/// How the keys of issuers are fetched.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KeyFetching {
    /// The authorities that vouch for the servers of keys, as PEM; those of the system unless set.
    pub roots: Option<PathBuf>,
    /// How often keys that are known are fetched again: 20 minutes, as istiod does it.
    pub refresh: Duration,
    /// For development: keys are fetched over plain HTTP, and from loopback, link-local and metadata addresses, too.
    pub allow_insecure: bool,
}

impl Default for KeyFetching {
    fn default() -> Self {
        KeyFetching { roots: None, refresh: Duration::from_secs(20 * 60), allow_insecure: false }
    }
}

impl KeyFetching {
    /// Trusts these authorities; see [`roots`](field@Self::roots).
    pub fn roots(mut self, file: impl Into<PathBuf>) -> KeyFetching {
        self.roots = Some(file.into());
        self
    }

    /// Fetches keys again so often; see [`refresh`](field@Self::refresh).
    pub fn refresh(mut self, interval: Duration) -> KeyFetching {
        self.refresh = interval;
        self
    }

    /// Whether keys may come from anywhere; see [`allow_insecure`](field@Self::allow_insecure).
    pub fn allow_insecure(mut self, allowed: bool) -> KeyFetching {
        self.allow_insecure = allowed;
        self
    }
}
