//! Keys of issuers that are elsewhere (`jwksUri`, or OpenID Connect discovery): fetched here, once for the whole mesh, and
//! handed to servers with their configuration, as istiod does it. Workloads need no way out.
//!
//! A server cannot ask for keys, so a new key is known within the refresh interval; no flood of tokens makes for a fetch.

mod fetch;
mod guard;
mod kept;
mod schedule;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

pub(crate) use fetch::Fetcher;
pub(crate) use kept::{read, write};
pub(crate) use schedule::{Good, Schedule};

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
