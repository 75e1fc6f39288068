//! The rules of rate limits, in the file format of envoyproxy/ratelimit, and the one that a descriptor finds.
//!
//! A file says a domain and a tree of keys and values. A descriptor goes down the tree, an entry a level: an exact value first,
//! then the first wildcard (`foo*`) in the order of the file, then the key that says no value. What it comes to at its last entry
//! is its rule. Beyond that format there is `algorithm: sliding`.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use mesh_core::printable::printable;

use crate::config::diagnostic::Diagnostic;
use crate::config::diagnostic::Source;
use crate::ratelimit::file;
use crate::ratelimit::stats::{Name, RuleStats, Stats};
use crate::ratelimit::window::{Algorithm, Key, Unit};

/// All rules that are in force.
#[derive(Debug, Default)]
pub struct Rules {
    pub(super) domains: HashMap<Box<str>, Domain>,
}

/// Those of one domain.
#[derive(Debug)]
pub(super) struct Domain {
    pub(super) name: Arc<str>,
    pub(super) root: Level,
    /// What limits come to that requests bring along themselves.
    pub(super) overrides: Arc<RuleStats>,
}

/// What is asked of one entry: its key, and then its value.
#[derive(Debug, Default)]
pub(super) struct Level {
    pub(super) keys: HashMap<Box<str>, Values>,
}

#[derive(Debug, Default)]
pub(super) struct Values {
    pub(super) exact: HashMap<Box<str>, Node>,
    /// What the value begins with.
    pub(super) wildcards: Vec<(Box<str>, Node)>,
    pub(super) any: Option<Node>,
}

#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) rule: Option<Rule>,
    pub(super) next: Level,
    /// Whether metrics tell the value.
    pub(super) value_to_metric: bool,
    /// Whether all values of the wildcard are counted together.
    pub(super) is_shared: bool,
}

/// A limit, and what becomes of those over it.
#[derive(Debug)]
pub struct Rule {
    /// `None` where there is no limit.
    pub(super) limit: Option<Limit>,
    pub(super) mode: Mode,
    pub(super) name: Option<Box<str>>,
    pub(super) replaces: Vec<Box<str>>,
    /// Whether each descriptor is told apart in metrics.
    pub(super) is_detailed: bool,
    pub(super) stats: Arc<RuleStats>,
}

/// So many requests in so much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How many.
    pub requests: u32,
    /// In which time.
    pub unit: Unit,
    /// How they are counted.
    pub algorithm: Algorithm,
}

/// What becomes of requests over a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// They are over the limit.
    #[default]
    Enforced,
    /// They are let through, with nothing left of the limit (`shadow_mode`, `quota_mode`).
    Shadow,
}

/// How an entry came to its node.
#[derive(Clone, Copy, Debug)]
enum Way<'r> {
    Exact,
    Wildcard(&'r str),
    Any,
}

/// The rule that a descriptor found.
#[derive(Debug)]
pub(super) struct Found<'r> {
    pub(super) rule: &'r Rule,
    domain: &'r Domain,
    way: Vec<(&'r Node, Way<'r>)>,
}

impl Rules {
    /// Reads rule files. What is wrong comes with its place; where something is an error, the rules are not to be used.
    pub(super) fn read(files: &[Source], stats: &Stats) -> (Rules, Vec<Diagnostic>) {
        file::read(files, stats)
    }

    /// How many rules there are.
    pub fn count(&self) -> usize {
        self.domains.values().map(|domain| domain.root.count()).sum()
    }

    /// The domain of this name.
    pub(super) fn domain(&self, name: &str) -> Option<&Domain> {
        self.domains.get(name)
    }
}

impl Level {
    fn count(&self) -> usize {
        let of_values = |values: &Values| {
            let wildcards = values.wildcards.iter().map(|(_, node)| node);
            let nodes = values.exact.values().chain(wildcards).chain(&values.any);
            nodes.map(|node| usize::from(node.rule.is_some()) + node.next.count()).sum::<usize>()
        };
        self.keys.values().map(of_values).sum()
    }

    fn find(&self, entry: &Entry) -> Option<(&Node, Way<'_>)> {
        let values = self.keys.get(entry.key.as_str())?;
        // An empty value is none: there is no rule for it alone.
        if !entry.value.is_empty()
            && let Some(node) = values.exact.get(entry.value.as_str())
        {
            return Some((node, Way::Exact));
        }
        let wildcard = values.wildcards.iter().find(|(prefix, _)| entry.value.starts_with(&**prefix));
        let wildcard = wildcard.map(|(prefix, node)| (node, Way::Wildcard(prefix)));
        wildcard.or_else(|| Some((values.any.as_ref()?, Way::Any)))
    }
}

impl Domain {
    /// The rule for a descriptor: of exactly as many levels as it has entries.
    pub(super) fn find(&self, entries: &[Entry]) -> Option<Found<'_>> {
        let mut way = Vec::with_capacity(entries.len());
        let mut level = &self.root;
        for entry in entries {
            let (node, how) = level.find(entry)?;
            way.push((node, how));
            level = &node.next;
        }
        let rule = way.last()?.0.rule.as_ref()?;
        Some(Found { rule, domain: self, way })
    }
}

impl Found<'_> {
    /// The counter of a descriptor.
    pub(super) fn key(&self, entries: &[Entry], limit: &Limit) -> Key {
        let values = entries.iter().zip(&self.way).map(|(entry, step)| match step {
            (node, Way::Wildcard(prefix)) if node.is_shared => (entry, *prefix, true),
            _ => (entry, entry.value.as_str(), false),
        });
        counter_key(&self.domain.name, values, limit)
    }

    /// Where it is counted.
    pub(super) fn stats(&self, entries: &[Entry], stats: &Stats) -> Arc<RuleStats> {
        let tells_values = self.rule.is_detailed || self.way.iter().any(|(node, _)| node.value_to_metric);
        let named = tells_values.then(|| self.metric(entries)).and_then(|name| stats.of_values(&name));
        named.unwrap_or_else(|| Arc::clone(&self.rule.stats))
    }

    /// What it is called in metrics: where rules tell values, with them.
    pub(super) fn metric(&self, entries: &[Entry]) -> Name {
        let mut path = String::new();
        for (entry, (node, way)) in entries.iter().zip(&self.way) {
            let value = match way {
                Way::Exact => entry.value.clone(),
                Way::Wildcard(prefix) if node.is_shared => format!("{prefix}*"),
                _ if self.rule.is_detailed || node.value_to_metric => shortened(&entry.value),
                Way::Wildcard(prefix) => format!("{prefix}*"),
                Way::Any => String::new(),
            };
            push_step(&mut path, &entry.key, &value);
        }
        (self.domain.name.clone(), path.into())
    }
}

/// Adds a level to the path of a rule, as envoyproxy/ratelimit names them.
pub(super) fn push_step(path: &mut String, key: &str, value: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
    if !value.is_empty() {
        path.push('_');
        path.push_str(value);
    }
}

/// What a caller sends, fit for the name of a metric.
fn shortened(value: &str) -> String {
    const LONGEST: usize = 100;
    printable(&value.chars().take(LONGEST).collect::<String>())
}

/// The counter of a limit that a request brings along.
pub(super) fn override_key(domain: &str, entries: &[Entry], limit: &Limit) -> Key {
    counter_key(domain, entries.iter().map(|entry| (entry, entry.value.as_str(), false)), limit)
}

/// A digest of all that tells counters apart, each part with its length: no two of them say the same.
fn counter_key<'a>(domain: &str, entries: impl Iterator<Item = (&'a Entry, &'a str, bool)>, limit: &Limit) -> Key {
    let mut told = Vec::with_capacity(256);
    let mut tell = |text: &str| {
        told.extend_from_slice(&(text.len() as u64).to_le_bytes());
        told.extend_from_slice(text.as_bytes());
    };
    tell(domain);
    tell(limit.unit.as_str());
    tell(if limit.algorithm == Algorithm::Sliding { "sliding" } else { "fixed" });
    for (entry, value, is_shared) in entries {
        tell(&entry.key);
        tell(value);
        tell(if is_shared { "*" } else { "" });
    }
    let mut key = Key::default();
    key.iter_mut().zip(digest(&SHA256, &told).as_ref()).for_each(|(to, from)| *to = *from);
    key
}
