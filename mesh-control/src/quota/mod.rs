//! Quotas: how much each identity may have in a minute, an hour, a day or a month, shared among all processes that ask
//! (`envoy.service.rate_limit_quota.v3`).
//!
//! ```text
//!  reports ─▶ session: what a client holds ─▶ store: account (memory + journal | redis) ─▶ session ─▶ assignments
//! ```
//!
//! Sessions and accounts are pure. What the rules are, the catalog of the configuration says.

mod account;
mod session;
mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::catalog::{QUOTA, QuotaLimit, RULE};
use crate::hex::hex;
use crate::period::Period;
use crate::ratelimit::{NotCounted, label};

use self::account::Settled;
pub(crate) use self::session::Session;
pub(crate) use self::store::Question;
pub use self::store::Store;

/// Which account: a digest, so that nothing a caller sends decides how much is kept.
pub(crate) type Key = [u8; 16];

/// Whose quota.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// The object.
    pub quota: String,
    /// Its rule.
    pub rule: String,
    /// What tells it from others, by the keys of the rule.
    pub by: BTreeMap<String, String>,
}

/// Entries of one ID, and bytes of them.
const MOST_ENTRIES: usize = 32;
const MOST_BYTES: usize = 8 << 10;

impl Identity {
    /// Of a bucket with this ID, if it is of a quota.
    fn of<'i>(bucket: impl IntoIterator<Item = (&'i String, &'i String)>) -> Option<Identity> {
        let mut by: BTreeMap<String, String> = BTreeMap::new();
        let mut bytes = 0;
        for (key, value) in bucket {
            bytes += key.len() + value.len();
            if by.len() >= MOST_ENTRIES || bytes > MOST_BYTES {
                return None;
            }
            by.insert(key.clone(), value.clone());
        }
        Some(Identity { quota: by.remove(QUOTA)?, rule: by.remove(RULE)?, by })
    }

    fn bucket(&self) -> impl Iterator<Item = (String, String)> {
        let own = [(QUOTA.to_owned(), self.quota.clone()), (RULE.to_owned(), self.rule.clone())];
        own.into_iter().chain(self.by.iter().map(|(key, value)| (key.clone(), value.clone())))
    }

    /// How many bytes of names it has.
    fn bytes(&self) -> usize {
        let by: usize = self.by.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.quota.len() + self.rule.len() + by
    }

    /// As people may see it, and as it is written down: a value that lets in whoever knows it is told by its digest.
    fn shown(identity: &Arc<Identity>) -> Arc<Identity> {
        if !identity.by.iter().any(|(key, value)| is_secret(key, value)) {
            return Arc::clone(identity);
        }
        let mut shown = Identity::clone(identity);
        for (key, value) in &mut shown.by {
            if is_secret(key, value) {
                let hash = digest(&SHA256, value.as_bytes());
                *value = format!("#{}", hex(hash.as_ref().split_at(8).0));
            }
        }
        Arc::new(shown)
    }

    /// A digest of all of it, each part with its length: no two of them say the same.
    fn key(&self) -> Key {
        let mut told = Vec::with_capacity(256);
        let by = self.by.iter().flat_map(|(key, value)| [key, value]);
        for text in [&self.quota, &self.rule].into_iter().chain(by) {
            told.extend_from_slice(&(text.len() as u64).to_le_bytes());
            told.extend_from_slice(text.as_bytes());
        }
        let mut key = Key::default();
        key.iter_mut().zip(digest(&SHA256, &told).as_ref()).for_each(|(to, from)| *to = *from);
        key
    }
}

/// Parts of names of headers, parameters and claims whose values let in whoever knows them.
const SECRETS: [&str; 9] = ["auth", "cookie", "credential", "key", "pass", "secret", "session", "signature", "token"];
/// Names with one of these in them, whose values everybody may know: hosts, and constants of the configuration.
const NO_SECRETS: [&str; 2] = [":authority", "generic_key"];

/// Whether the value of an entry may let in whoever knows it: by its name, or as it is a token. What was a digest stays one.
fn is_secret(key: &str, value: &str) -> bool {
    let (key, start) = (key.to_ascii_lowercase(), value.get(..7).unwrap_or(value).to_ascii_lowercase());
    let is_hex = |digits: &str| digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let is_digest = value.len() == 17 && value.strip_prefix('#').is_some_and(is_hex);
    let is_token = start.starts_with("eyj") || start.starts_with("basic ") || start == "bearer ";
    let is_named = !NO_SECRETS.contains(&&*key) && SECRETS.iter().any(|part| key.contains(part));
    !is_digest && (is_token || is_named)
}

/// Quotas in use, and where they are kept.
///
/// ```
/// use mesh_control::quota::{Quotas, Store};
///
/// let quotas = Quotas::new(Store::in_memory());
/// assert!(quotas.status(|_, _| None, std::time::Duration::ZERO).identities.is_empty());
/// ```
#[derive(Debug)]
pub struct Quotas {
    store: Store,
    seen: Mutex<AllSeen>,
    leases: AtomicU64,
    refused: AtomicU64,
    not_settled: AtomicU64,
}

/// What is shown.
#[derive(Debug, Default)]
struct AllSeen {
    by_key: HashMap<Key, Seen>,
    /// When room was looked for last, in seconds, and how many found none since.
    swept: u64,
    not_shown: u64,
}

/// How a quota stood when it was settled last.
#[derive(Clone, Debug)]
struct Seen {
    identity: Arc<Identity>,
    period: Period,
    used: u64,
    leased: u64,
    /// Until when the last of what is leased holds, in milliseconds.
    until: u64,
    denied: u64,
}

/// How many identities are shown at most, besides those that the store knows by itself.
const MOST_SEEN: usize = 100_000;
/// Looking for room is looking at all of them, so it is done so often at most, in seconds.
const SWEEP: u64 = 10;
/// How many of them have metrics of their own: those that have used most of theirs.
const MOST_SERIES: usize = 1000;

/// What there is to tell of quotas.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QuotaStatus {
    /// `memory`, `file` or `redis`.
    pub store: String,
    /// Whether it can be reached.
    pub reached: bool,
    /// What was to be settled and could not, as the store was away or full.
    pub not_settled: u64,
    /// How often there was no room to show another one, since it was looked for room last.
    #[serde(default)]
    pub not_shown: u64,
    /// Whose quotas are in use, as far as this server has seen it.
    pub identities: Vec<QuotaUse>,
}

/// How the quota of an identity stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QuotaUse {
    /// The object.
    pub quota: String,
    /// Its rule.
    pub rule: String,
    /// What tells the identity from others, by the keys of the rule.
    pub by: BTreeMap<String, String>,
    /// How many requests there may be in a period.
    pub limit: u64,
    /// `minute`, `hour`, `day` or `month`.
    pub unit: String,
    /// How many there were in this one.
    pub used: u64,
    /// How many more processes may let pass as it is.
    pub leased: u64,
    /// How many are left besides.
    pub left: u64,
    /// How many were refused in this period, as far as this server was told.
    pub denied: u64,
    /// When the next period begins, in Unix time in seconds.
    pub resets: u64,
}

impl QuotaUse {
    /// What tells the identity from others, as `method=GET,x-user=ada`.
    pub fn identity(&self) -> String {
        self.by.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    }
}

impl Quotas {
    /// Quotas that are kept there.
    pub fn new(store: Store) -> Quotas {
        let seen = store.known().into_iter().map(|(key, identity, account)| {
            let leased = account.leases.values().fold(0_u64, |sum, lease| sum.saturating_add(lease.tokens));
            let until = account.leases.values().map(|lease| lease.until).max().unwrap_or_default();
            let (period, used) = (account.period, account.used);
            (key, Seen { identity, period, used, leased, until, denied: 0 })
        });
        let seen = Mutex::new(AllSeen { by_key: seen.collect(), ..AllSeen::default() });
        let counter = || AtomicU64::new(0);
        Quotas { seen, store, leases: counter(), refused: counter(), not_settled: counter() }
    }

    /// A session for a new stream. `random` tells its leases from those of other servers.
    pub(crate) fn session(&self, random: u64) -> Session {
        Session::new(random.wrapping_add(self.leases.fetch_add(1, Ordering::Relaxed)))
    }

    /// The time that quotas go by, where the clock of this machine says so: replicas on a Redis go by that of Redis.
    pub(crate) fn time(&self, clock: Duration) -> Duration {
        self.store.time(clock)
    }

    /// Settles, in order.
    pub(crate) async fn settle(&self, asked: &[Question], now: Duration) -> Vec<Result<Settled, NotCounted>> {
        if asked.is_empty() {
            return Vec::new();
        }
        let settled = self.store.settle(asked.to_vec(), now).await;
        let mut seen = self.seen();
        for ((key, identity, ask), settled) in asked.iter().zip(&settled) {
            let Ok(settled) = settled else {
                self.not_settled.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let Some(one) = seen.of(*key, identity, ask.period, now.as_secs()) else { continue };
            if ask.period.start > one.period.start {
                (one.period, one.denied) = (ask.period, 0);
            }
            (one.used, one.leased, one.until) = (settled.used, settled.leased, one.until.max(ask.until));
        }
        settled
    }

    /// Notes that a client had to refuse requests, of a bucket that is known.
    pub(crate) fn note_denied(&self, question: &Question, denied: u64) {
        if let Some(seen) = self.seen().by_key.get_mut(&question.0) {
            seen.denied = seen.denied.saturating_add(denied);
        }
    }

    /// Notes that a client told of something that is no bucket of a quota for it.
    pub(crate) fn note_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// What there is to tell, of the quotas that are in force.
    pub fn status(&self, limit: impl Fn(&str, &str) -> Option<QuotaLimit>, now: Duration) -> QuotaStatus {
        let now = self.time(now);
        let (seen, not_shown) = {
            let seen = self.seen();
            (seen.by_key.values().cloned().collect::<Vec<Seen>>(), seen.not_shown)
        };
        let mut identities: Vec<QuotaUse> = seen
            .into_iter()
            .filter_map(|Seen { identity, period, used, leased, until, denied }| {
                let limit = limit(&identity.quota, &identity.rule)?;
                let present = limit.unit.period(now);
                let (used, denied) = if period.start == present.start { (used, denied) } else { (0, 0) };
                let leased = if u128::from(until) > now.as_millis() { leased } else { 0 };
                let Identity { quota, rule, by } = Identity::clone(&identity);
                Some(QuotaUse {
                    quota,
                    rule,
                    by,
                    limit: limit.requests,
                    unit: limit.unit.as_str().to_owned(),
                    used,
                    leased,
                    left: limit.requests.saturating_sub(used).saturating_sub(leased),
                    denied,
                    resets: present.end,
                })
            })
            .collect();
        identities.sort_by(|a, b| (&a.quota, &a.rule, &a.by).cmp(&(&b.quota, &b.rule, &b.by)));
        QuotaStatus {
            store: self.store.name().to_owned(),
            reached: self.store.is_reached(),
            not_settled: self.not_settled.load(Ordering::Relaxed),
            not_shown,
            identities,
        }
    }

    /// Where they are kept, while that is away.
    pub(crate) fn away(&self) -> Option<&'static str> {
        (!self.store.is_reached()).then(|| self.store.name())
    }

    /// Appends metrics as Prometheus text.
    pub fn write(&self, limit: impl Fn(&str, &str) -> Option<QuotaLimit>, now: Duration, out: &mut String) {
        let mut status = self.status(limit, now);
        let all = status.identities.len() as u64;
        let left = |one: &QuotaUse| one.limit.saturating_sub(one.used);
        let used_up = status.identities.iter().filter(|one| left(one) == 0).count() as u64;
        for (name, kind, help, value) in [
            ("store_reached", "gauge", "Whether quotas can be settled.", u64::from(status.reached)),
            ("not_settled_total", "counter", "What could not be settled.", status.not_settled),
            (
                "unknown_total",
                "counter",
                "Reports of buckets that are of no quota for who reports.",
                self.refused.load(Ordering::Relaxed),
            ),
            ("identities", "gauge", "Identities whose quotas are in use.", all),
            ("identities_not_shown", "gauge", "Reports of identities that there is no room to show.", status.not_shown),
            ("identities_used_up", "gauge", "Those that have nothing left.", used_up),
        ] {
            let _ = writeln!(
                out,
                "# HELP mesh_quota_{name} {help}\n# TYPE mesh_quota_{name} {kind}\nmesh_quota_{name} {value}"
            );
        }
        status.identities.sort_by_key(|one| left(one).saturating_mul(1000) / one.limit.max(1));
        status.identities.truncate(MOST_SERIES);
        type Figure = fn(&QuotaUse) -> u64;
        let figures: [(&str, &str, Figure); 4] = [
            ("limit_requests", "How many requests an identity may have in a period.", |one| one.limit),
            ("used_requests", "How many it had in this one.", |one| one.used),
            ("leased_requests", "How many more processes may let pass as it is.", |one| one.leased),
            ("denied_requests", "How many were refused in this period.", |one| one.denied),
        ];
        for (name, help, figure) in figures {
            let _ = writeln!(out, "# HELP mesh_quota_{name} {help}\n# TYPE mesh_quota_{name} gauge");
            for one in &status.identities {
                let _ = writeln!(
                    out,
                    "mesh_quota_{name}{{quota=\"{}\",rule=\"{}\",identity=\"{}\"}} {}",
                    label(&one.quota),
                    label(&one.rule),
                    label(&one.identity()),
                    figure(one)
                );
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, AllSeen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AllSeen {
    /// That of an account, where there is room for it.
    fn of(&mut self, key: Key, identity: &Arc<Identity>, period: Period, now: u64) -> Option<&mut Seen> {
        if self.by_key.len() >= MOST_SEEN && !self.by_key.contains_key(&key) {
            if now.abs_diff(self.swept) >= SWEEP {
                self.by_key.retain(|_, seen| seen.period.end > now);
                (self.swept, self.not_shown) = (now, 0);
            }
            if self.by_key.len() >= MOST_SEEN {
                self.not_shown += 1;
                return None;
            }
        }
        Some(self.by_key.entry(key).or_insert_with(|| Seen {
            identity: Identity::shown(identity),
            period,
            used: 0,
            leased: 0,
            until: 0,
            denied: 0,
        }))
    }
}
