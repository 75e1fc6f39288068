//! The rate limit service (`envoy.service.ratelimit.v3`): rules in the file format of envoyproxy/ratelimit, and counters in memory
//! or in Redis.
//!
//! ```text
//!  rule files ─▶ file ─▶ rules ─┐
//!                               ├─▶ decide: plan ─▶ store (memory | redis) ─▶ decide: answer
//!                      request ─┘
//! ```
//!
//! Everything but the store is pure. A store that is away is an error to whoever asks: what then becomes of a request is for the
//! failure mode that is configured there.

mod bounded;
mod decide;
mod file;
mod redis;
mod rules;
mod stats;
mod store;
mod window;

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use serde::{Deserialize, Serialize};

use crate::config::diagnostic::{Code, Diagnostic, Severity, Source, quoted};
use crate::config::load::{Reach, Scan, scan};
use crate::config::watch::Watcher;

pub use self::redis::RedisUrl;
pub(crate) use self::redis::Scripted;
pub use self::rules::{Limit, Mode, Rule, Rules};
pub(crate) use self::stats::label;
pub use self::stats::{RuleStats, RuleStatus};
pub use self::store::{NotCounted, Store};
pub use self::window::{Algorithm, Charge, Counter, Key, Unit};

/// How many keys are kept unless somebody says so: some 100 MiB.
pub const MOST_KEYS: usize = 1_000_000;

/// How many domains without rules are told by name, and how many characters of each.
const MOST_UNKNOWN: usize = 100;
const LONGEST_UNKNOWN: usize = 100;

/// The rules in force, and how requests fare by them.
///
/// ```
/// use std::time::Duration;
/// use mesh_control::ratelimit::{RateLimits, Store};
/// use envoy_types::pb::envoy::extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry};
/// use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, rate_limit_response::Code};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let limits = RateLimits::new(Store::in_memory(1000));
/// limits.apply_texts([("shop.yaml", "
/// domain: shop
/// descriptors:
/// - key: user
///   rate_limit: {unit: minute, requests_per_unit: 1}
/// ")]);
/// let request = RateLimitRequest {
///     domain: "shop".to_owned(),
///     descriptors: vec![RateLimitDescriptor {
///         entries: vec![Entry { key: "user".to_owned(), value: "ada".to_owned() }],
///         ..RateLimitDescriptor::default()
///     }],
///     ..RateLimitRequest::default()
/// };
/// let now = Duration::from_secs(1_800_000_000);
/// assert_eq!(limits.decide(&request, now).await.unwrap().overall_code(), Code::Ok);
/// assert_eq!(limits.decide(&request, now).await.unwrap().overall_code(), Code::OverLimit);
/// # }
/// ```
pub struct RateLimits {
    rules: ArcSwapOption<Rules>,
    stats: stats::Stats,
    store: Store,
    tells_headers: bool,
    seen: Mutex<Seen>,
    refused: AtomicU64,
    not_counted: AtomicU64,
    unknown_domain: AtomicU64,
    unknown_domains: RwLock<BTreeSet<String>>,
}

/// What it means that there never were good rules.
pub(crate) const WITHOUT_RULES: &str = "no rules are in force: questions are not answered";

/// A file by its name, with its text, or why that cannot be read.
type FileRead = (Arc<str>, Result<Arc<str>, String>);

/// What was read last.
#[derive(Default)]
struct Seen {
    files: Vec<FileRead>,
    is_gone: bool,
    findings: Vec<Diagnostic>,
    /// Whether it is in force.
    is_current: bool,
}

/// Why a request was not decided about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The request is wrong.
    Invalid(String),
    /// There were no good rules yet.
    NoRules,
    /// Hits were not counted.
    NotCounted(NotCounted),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Invalid(why) => f.write_str(why),
            Refusal::NoRules => f.write_str("there are no rules that could be read"),
            Refusal::NotCounted(why) => why.fmt(f),
        }
    }
}

/// What there is to tell of rate limits.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RateLimitStatus {
    /// `memory` or `redis`.
    pub store: String,
    /// Whether the store can be reached.
    pub reached: bool,
    /// Whether the rules that were read last are in force; if not, the last good ones are, or none.
    pub current: bool,
    /// How many keys this process keeps.
    pub keys: usize,
    /// Requests that were not decided about since the store was away, or busy.
    pub not_counted: u64,
    /// Whether there are no rules, as there never were good ones: questions are not answered.
    #[serde(default)]
    pub without_rules: bool,
    /// Requests of domains that have no rules. They pass.
    #[serde(default)]
    pub unknown_domain: u64,
    /// Those domains, or some of them.
    #[serde(default)]
    pub unknown_domains: Vec<String>,
    /// What is wrong with the rules.
    pub findings: Vec<String>,
    /// The rules, and how often each applied.
    pub rules: Vec<RuleStatus>,
}

impl RateLimits {
    /// Rules that are still to come, and their counters.
    pub fn new(store: Store) -> RateLimits {
        RateLimits {
            rules: ArcSwapOption::empty(),
            stats: stats::Stats::default(),
            store,
            tells_headers: false,
            seen: Mutex::default(),
            refused: AtomicU64::new(0),
            not_counted: AtomicU64::new(0),
            unknown_domain: AtomicU64::new(0),
            unknown_domains: RwLock::default(),
        }
    }

    /// Whether answers have headers for the client that say what is left (`ratelimit-limit`, `-remaining`, `-reset`).
    pub fn tells_headers(mut self, tells: bool) -> RateLimits {
        self.tells_headers = tells;
        self
    }

    /// Decides about a request, and counts its hits. `now` is the time since 1970.
    ///
    /// # Errors
    /// It could not be decided: whoever asked has a failure mode for that.
    pub async fn decide(&self, request: &RateLimitRequest, now: Duration) -> Result<RateLimitResponse, Refusal> {
        let rules = self.rules.load_full().ok_or(Refusal::NoRules)?;
        let plan = decide::plan(&rules, &self.stats, request).map_err(|why| {
            self.refused.fetch_add(1, Ordering::Relaxed);
            Refusal::Invalid(why)
        })?;
        if rules.domain(&request.domain).is_none() {
            self.note_unknown(&request.domain);
        }
        let counts = if plan.charges.is_empty() { Ok(Vec::new()) } else { self.store.take(&plan.charges, now).await };
        let counts = counts.map_err(|why| {
            self.not_counted.fetch_add(1, Ordering::Relaxed);
            Refusal::NotCounted(why)
        })?;
        Ok(decide::answer(&plan, &counts, now, self.tells_headers))
    }

    /// A question for a domain without rules: the first for each is told.
    fn note_unknown(&self, domain: &str) {
        self.unknown_domain.fetch_add(1, Ordering::Relaxed);
        let name = match domain.char_indices().nth(LONGEST_UNKNOWN) {
            Some((end, _)) => domain.get(..end).unwrap_or_default(),
            None => domain,
        };
        let is_told = |known: &BTreeSet<String>| known.len() >= MOST_UNKNOWN || known.contains(name);
        if is_told(&self.unknown_domains.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let mut known = self.unknown_domains.write().unwrap_or_else(PoisonError::into_inner);
        if is_told(&known) {
            return;
        }
        known.insert(name.to_owned());
        tracing::warn!("no rules of rate limits have the domain {}: what is asked of it passes", quoted(name));
        if known.len() == MOST_UNKNOWN {
            tracing::warn!("{MOST_UNKNOWN} domains without rules were asked for: more are counted, and not told");
        }
    }

    /// Takes these rule files, by name and text, unless something in them is an error: then all that was in force stays.
    /// Returns what there is to say about them.
    pub fn apply_texts<'t>(&self, files: impl IntoIterator<Item = (&'t str, &'t str)>) -> Vec<Diagnostic> {
        let files = files.into_iter().map(|(name, text)| (name.into(), Ok(text.into()))).collect();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.take(&mut seen, files, Vec::new());
        seen.findings.clone()
    }

    /// Takes what a directory holds. Returns whether it says anything new.
    fn apply(&self, scanned: io::Result<Scan>) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = |why: String| Diagnostic::of_file("", Severity::Error, Code::Vanished, why);
        let (files, overlooked) = match scanned {
            Ok(scan) => (scan.files, scan.diagnostics),
            Err(error) => {
                let message =
                    format!("the directory of the rules cannot be read, and what was in force stays: {error}");
                let is_new = !std::mem::replace(&mut seen.is_gone, true);
                (seen.findings, seen.is_current) = (vec![gone(message)], false);
                return is_new;
            }
        };
        let files: Vec<_> =
            files.into_iter().map(|(name, text)| (name, text.map_err(|unreadable| unreadable.why))).collect();
        if !seen.is_gone && seen.files == files {
            return false;
        }
        seen.is_gone = false;
        if files.is_empty() && self.rules.load().as_ref().is_some_and(|rules| rules.count() > 0) {
            let message = "all rule files are gone at once, and what was in force stays";
            (seen.findings, seen.is_current, seen.files) = (vec![gone(message.to_owned())], false, files);
            return true;
        }
        self.take(&mut seen, files, overlooked);
        true
    }

    fn take(&self, seen: &mut Seen, files: Vec<FileRead>, mut findings: Vec<Diagnostic>) {
        let rules = read(&files, &self.stats, &mut findings);
        let is_wrong = findings.iter().any(|finding| finding.severity == Severity::Error);
        match is_wrong {
            true => drop(rules),
            false => {
                let mut unknown = self.unknown_domains.write().unwrap_or_else(PoisonError::into_inner);
                unknown.retain(|name| rules.domain(name).is_none());
                self.rules.store(Some(Arc::new(rules)));
            }
        }
        // What is held by nobody but the table belongs to rules that are no more.
        self.stats.keep(|stats| Arc::strong_count(stats) > 1);
        *seen = Seen { files, is_gone: false, findings, is_current: !is_wrong };
    }

    /// Whether there are no rules yet, so that questions are not answered.
    pub fn is_without_rules(&self) -> bool {
        self.rules.load().is_none()
    }

    /// What is wrong with the rules, and what of their directory is not read.
    pub(crate) fn faults(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fault = |one: &&Diagnostic| one.severity == Severity::Error || one.code == Code::NotRead;
        seen.findings.iter().filter(is_fault).map(ToString::to_string).collect()
    }

    /// What there is to tell.
    pub fn status(&self) -> RateLimitStatus {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let unknown = self.unknown_domains.read().unwrap_or_else(PoisonError::into_inner);
        RateLimitStatus {
            store: self.store.name().to_owned(),
            reached: self.store.is_reached(),
            current: seen.is_current,
            keys: self.store.keys(),
            not_counted: self.not_counted.load(Ordering::Relaxed),
            without_rules: self.is_without_rules(),
            unknown_domain: self.unknown_domain.load(Ordering::Relaxed),
            unknown_domains: unknown.iter().cloned().collect(),
            findings: seen.findings.iter().map(ToString::to_string).collect(),
            rules: self.stats.report(),
        }
    }

    /// Appends metrics as Prometheus text.
    pub fn write(&self, out: &mut String) {
        let status = self.status();
        stats::write(&status.rules, out);
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, kind, help, value) in [
            ("invalid_total", "counter", "Requests for rate limits that make no sense.", get(&self.refused)),
            (
                "not_counted_total",
                "counter",
                "Requests without an answer, as the counters were away.",
                status.not_counted,
            ),
            ("unknown_domain_total", "counter", "Requests of domains that have no rules.", status.unknown_domain),
            ("keys", "gauge", "Counters that this process keeps.", status.keys as u64),
            ("store_reached", "gauge", "Whether hits can be counted.", status.reached.into()),
            ("rules_current", "gauge", "Whether the rules that were read last are in force.", status.current.into()),
        ] {
            let _ = writeln!(
                out,
                "# HELP mesh_ratelimit_{name} {help}\n# TYPE mesh_ratelimit_{name} {kind}\nmesh_ratelimit_{name} {value}"
            );
        }
    }

    fn log(&self) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for finding in &seen.findings {
            match finding.severity {
                Severity::Error => tracing::error!("rules of rate limits: {finding}"),
                Severity::Warning => tracing::warn!("rules of rate limits: {finding}"),
                Severity::Info => tracing::debug!("rules of rate limits: {finding}"),
            }
        }
        let rules = self.rules.load().as_ref().map_or(0, |rules| rules.count());
        match seen.is_current {
            true => tracing::info!(rules, "rules of rate limits are in force"),
            false if self.is_without_rules() => {
                tracing::error!("rules of rate limits are wrong: {WITHOUT_RULES}");
            }
            false => tracing::error!(rules, "rules of rate limits are wrong: the last good ones are in force"),
        }
    }

    /// Reads the rules in a directory.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn read(&self, dir: &Path) -> io::Result<()> {
        self.apply(Ok(scan(dir, Reach::Directory)?));
        self.log();
        Ok(())
    }

    /// Follows the rules in a directory, for as long as it is polled.
    pub async fn follow(self: Arc<RateLimits>, dir: Arc<Path>) {
        let watcher = Watcher::new(&dir, Reach::Directory);
        loop {
            let (limits, dir) = (self.clone(), dir.clone());
            let looked = tokio::task::spawn_blocking(move || {
                if limits.apply(scan(&dir, Reach::Directory)) {
                    limits.log();
                }
            });
            if looked.await.is_err() {
                return;
            }
            watcher.changed().await;
        }
    }
}

/// The rules of some files, and what is wrong with them.
fn read(files: &[FileRead], stats: &stats::Stats, found: &mut Vec<Diagnostic>) -> Rules {
    let mut sources = Vec::new();
    for (name, text) in files {
        match text {
            Ok(text) => sources.push(Source { name: name.clone(), text: text.clone() }),
            Err(why) => {
                let message = format!("cannot be read: {why}");
                found.push(Diagnostic::of_file(name.clone(), Severity::Error, Code::File, message));
            }
        }
    }
    let (rules, wrong) = Rules::read(&sources, stats);
    found.extend(wrong);
    rules
}

/// What is wrong with the rule files of a directory, which nobody serves yet.
///
/// # Errors
/// The directory cannot be read.
pub fn findings(dir: &Path) -> io::Result<Vec<Diagnostic>> {
    let scan = scan(dir, Reach::Directory)?;
    let mut found = scan.diagnostics;
    let files = scan.files.into_iter().map(|(name, text)| (name, text.map_err(|unreadable| unreadable.why)));
    let files: Vec<FileRead> = files.collect();
    if files.is_empty() {
        let message = "the directory has no rule file: questions would not be answered";
        found.push(Diagnostic::of_file("", Severity::Warning, Code::File, message));
    }
    read(&files, &stats::Stats::default(), &mut found);
    Ok(found)
}

impl fmt::Debug for RateLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimits").field("store", &self.store).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_in_the_documentation() {
        let mut out = String::new();
        RateLimits::new(Store::in_memory(10)).write(&mut out);
        let page = include_str!("../../../docs/ratelimit.md");
        for name in out.lines().filter_map(|line| line.strip_prefix("# TYPE mesh_ratelimit")?.split(' ').next()) {
            assert!(page.contains(&format!("`{name}`")) || page.contains(&format!("`mesh_ratelimit{name}`")), "{name}");
        }
    }

    /// Each poll looks at the files again; who reads the log wants to know of changes.
    #[test]
    fn what_is_wrong_with_rules_is_news_once_a_change() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |text: &str| std::fs::write(dir.path().join("a.yaml"), text).expect("written");
        let limits = RateLimits::new(Store::in_memory(10));
        let looks = || [(); 3].map(|()| limits.apply(scan(dir.path(), Reach::Directory)));
        for (text, is_current) in
            [("domain: [\n", false), ("domain: d\n", true), ("domain: [\n", false), ("domain: ''\n", false)]
        {
            write(text);
            assert_eq!(looks(), [true, false, false], "{text}");
            assert_eq!((limits.status().current, limits.faults().is_empty()), (is_current, is_current), "{text}");
        }
        std::fs::remove_file(dir.path().join("a.yaml")).expect("removed");
        assert_eq!(looks(), [true, false, false]);
    }
}
