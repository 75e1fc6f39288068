//! One record as a line of JSON: of the journal, of `/calls`, and of the files that commands read.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::calls::{Book, Call, CallKey, Counted, Lost};
use mesh_core::workload::canonical_name;
use mesh_core::xds::access_log::{Entry, is_rule};
use serde::{Deserialize, Serialize};

/// Whose server was called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Workload {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name: that of its label `app`, or of the labels that Istio puts before that; else its own.
    pub name: Arc<str>,
    /// Its service account.
    pub service_account: Arc<str>,
    /// Whether a certificate says so.
    #[serde(rename = "proven")]
    pub is_proven: bool,
    /// Its labels, but for those that are another replica's or another rollout's.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The WorkloadGroup that it says it is a member of, which may add labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Arc<str>>,
}

/// Labels that say which replica or which rollout it is.
const FLEETING: [&str; 4] = [
    "pod-template-hash",
    "controller-revision-hash",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
];

impl Workload {
    /// A workload without labels.
    pub fn new(namespace: &str, name: &str, service_account: &str, is_proven: bool) -> Workload {
        Workload {
            namespace: namespace.into(),
            name: name.into(),
            service_account: service_account.into(),
            is_proven,
            labels: BTreeMap::new(),
            group: None,
        }
    }

    /// A member of this group.
    pub fn group(mut self, group: Option<Arc<str>>) -> Workload {
        self.group = group;
        self
    }

    /// With these labels, and named by the one that says its name.
    pub fn labelled(mut self, labels: &BTreeMap<String, String>) -> Workload {
        let lasting = labels.iter().filter(|(key, _)| !FLEETING.contains(&key.as_str()));
        self.labels = lasting.map(|(key, value)| (key.clone(), value.clone())).collect();
        if let Some((_, name)) = self.selector() {
            self.name = name.into();
        }
        self
    }

    /// How many bytes its names and labels have.
    pub(crate) fn len(&self) -> usize {
        let labels = self.labels.iter().map(|(key, value)| key.len() + value.len());
        let names = [&self.namespace, &self.name, &self.service_account].into_iter().chain(&self.group);
        labels.chain(names.map(|name| name.len())).sum()
    }

    /// The label by which a policy selects it, and all others of its name.
    pub fn selector(&self) -> Option<(&'static str, &str)> {
        canonical_name(|key| self.labels.get(key).map(String::as_str).filter(|name| !name.is_empty()))
    }
}

/// What was spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP.
    #[default]
    Http,
    /// gRPC.
    Grpc,
}

/// What became of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// They were let in.
    #[default]
    Allow,
    /// They were refused.
    Deny,
}

impl Verdict {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
        }
    }
}

/// Calls that are alike, or those that found no place in a record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// Whose server was called.
    pub workload: Arc<Workload>,
    /// Who called; `None` where mutual TLS did not tell.
    pub principal: Option<Arc<str>>,
    /// What was spoken.
    #[serde(default)]
    pub protocol: Protocol,
    /// The method; empty where no policy could name it.
    #[serde(default)]
    pub method: Arc<str>,
    /// The form of the path; empty where it is none.
    #[serde(default)]
    pub path: Arc<str>,
    /// The port that the server bound; 0 where that is not known.
    #[serde(default)]
    pub port: u16,
    /// What became of them.
    #[serde(default)]
    pub verdict: Verdict,
    /// The rule that decided the last time; `None` where none was for it.
    #[serde(default)]
    pub rule: Option<Arc<str>>,
    /// How many.
    #[serde(default)]
    pub count: u64,
    /// When the first one was, in seconds since 1970.
    #[serde(default)]
    pub first: u64,
    /// When the last one was, in seconds since 1970.
    #[serde(default)]
    pub last: u64,
    /// How many calls found no place, of which nothing else is known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Record {
    pub(super) fn of(workload: &Workload, entry: &Entry) -> Record {
        let workload = Arc::new(workload.clone());
        match entry {
            Entry::Calls(counted) => Record::calls(workload, counted),
            Entry::Lost(lost) => Record::lost(workload, lost),
        }
    }

    /// All that a book has.
    pub(super) fn all(workload: &Workload, book: &Book) -> Vec<Record> {
        let workload = Arc::new(workload.clone());
        let calls = book.calls().map(|counted| Record::calls(workload.clone(), counted));
        calls.chain(book.lost().map(|lost| Record::lost(workload.clone(), &lost))).collect()
    }

    fn calls(workload: Arc<Workload>, counted: &Counted) -> Record {
        let Counted { key, rule, count, first, last, .. } = counted.clone();
        Record {
            workload,
            principal: key.principal,
            protocol: if key.is_grpc { Protocol::Grpc } else { Protocol::Http },
            method: key.method,
            path: key.path,
            port: key.port,
            verdict: if key.is_allowed { Verdict::Allow } else { Verdict::Deny },
            rule,
            count,
            first,
            last,
            lost: 0,
        }
    }

    fn lost(workload: Arc<Workload>, lost: &Lost) -> Record {
        Record {
            workload,
            principal: lost.principal.clone(),
            protocol: Protocol::default(),
            method: "".into(),
            path: "".into(),
            port: 0,
            verdict: Verdict::default(),
            rule: None,
            count: 0,
            first: 0,
            last: 0,
            lost: lost.count,
        }
    }

    /// Reads a line. Whoever wrote it: of a path its form is taken, and a method is one that a policy can name, or empty.
    ///
    /// # Errors
    /// What is no record.
    pub fn parse(line: &[u8]) -> serde_json::Result<Record> {
        let mut record: Record = serde_json::from_slice(line)?;
        record.rule = record.rule.filter(|rule| is_rule(rule));
        if record.lost == 0 {
            let key = CallKey::of(&record.call());
            (record.method, record.path) = (key.method, key.path);
        }
        Ok(record)
    }

    /// As it was reported.
    pub(super) fn entry(&self) -> Entry {
        if self.lost > 0 {
            return Entry::Lost(Lost::new(self.principal.clone(), self.lost));
        }
        let (key, rule) = (CallKey::of(&self.call()), self.rule.clone());
        Entry::Calls(Counted::new(key, rule, self.count, self.first, self.last))
    }

    fn call(&self) -> Call<'_> {
        Call {
            principal: self.principal.as_deref(),
            port: self.port,
            is_grpc: self.protocol == Protocol::Grpc,
            method: &self.method,
            path: &self.path,
            is_allowed: self.verdict == Verdict::Allow,
            rule: None,
        }
    }

    /// As a line of JSON.
    pub fn line(&self) -> String {
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}
