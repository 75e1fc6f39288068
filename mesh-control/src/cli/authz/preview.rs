//! `mesh-control authz preview`: what a policy would have done to the calls that were seen, before it is applied. Decided as
//! `authz test` decides, once by the configuration as it is and once with the new files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use mesh_core::calls::{ANY, REST, template};
use serde::Serialize;

use super::records::From;
use super::suggest::REFUSES;
use super::{Asked, Protocol, Servers, answer, options};
use crate::calls::{Protocol as Spoken, Record, Workload};
use crate::catalog::{Client, ClientClass};
use crate::cli::directory::Directory;
use crate::cli::{Format, Printing};
use crate::config::Source;
use crate::config::file::{self, Meta, Objects};
use crate::config::load::{self, Reach};
use crate::config::support::ObjectKind;
use crate::explain::workload::WorkloadName;
use crate::plane::Plane;
use crate::policy::access::{Condition, Fact, Value};
use crate::policy::traffic::ServerTls;

/// Says which of the calls that were seen policies would treat differently, before they are applied.
///
/// AuthorizationPolicies and PeerAuthentications are tried. What is not in the records (hosts, headers, tokens, addresses, values
/// in paths) counts as absent, and rules that ask for it are named on stderr, as are objects that are not tried or are for nobody
/// in the records.
/// The exit code is 3 if a call would be refused that is let in now, or if there are calls of which that is not known, and else 0.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// The file with the new policies, or a directory of such files. An object that the configuration has is replaced. It is a
    /// regular file.
    #[arg(value_name = "FILE")]
    path: PathBuf,
    #[command(flatten)]
    directory: Directory,
    /// As for `authz test`.
    #[arg(long)]
    federated: bool,
    /// Only the calls to this workload.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    workload: Option<WorkloadName>,
    #[command(flatten)]
    from: From,
    #[command(flatten)]
    printing: Printing,
}

/// Calls that would be treated differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Difference {
    workload: String,
    principal: Option<Arc<str>>,
    protocol: Spoken,
    method: Arc<str>,
    path: Arc<str>,
    port: u16,
    count: u64,
    before: Decided,
    after: Decided,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Decided {
    verdict: &'static str,
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl Decided {
    fn by(&self) -> &str {
        self.rule.as_deref().or(self.note.as_deref()).unwrap_or("no rule is for it")
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let runtime = super::super::runtime()?;
    let (before, after) = {
        let _entered = runtime.enter();
        (args.directory.plane(options(args.federated))?, args.directory.started(options(args.federated))?)
    };
    let files = files(&args.path)?;
    if files.values().all(|text| text.lines().all(|line| line.trim().is_empty() || line.starts_with(['#', '-']))) {
        bail!("{}: there is no object in it", args.path.display());
    }
    let mut objects = Vec::new();
    for (name, text) in files {
        // The last name goes before the others.
        after.set_yaml(&format!("~{name}"), &text)?;
        objects.extend(metas(&name, &text));
    }
    let (tried, others): (Vec<Meta>, Vec<Meta>) =
        objects.into_iter().partition(|meta| why_not_tried(meta.kind).is_none());
    for meta in &others {
        let why = why_not_tried(meta.kind).unwrap_or_default();
        eprintln!("mesh-control: {} ({}) is not tried: {why}", meta.id(), meta.origin);
    }
    if tried.is_empty() && !others.is_empty() {
        bail!("{}: nothing in it can be tried on calls that were recorded", args.path.display());
    }
    let format = args.printing.format();
    let mut preview = Preview::new(&before, &after);
    args.from.each(args.workload.as_ref(), |record| {
        let Some(difference) = preview.look(&record)? else { return Ok(()) };
        let line = match format {
            Format::Json => format!("{}\n", serde_json::to_string(&difference)?),
            Format::Text => text(&difference),
        };
        Ok(super::super::say(&line)?)
    })?;
    if format == Format::Text {
        super::super::say(&preview.summary())?;
    }
    for said in preview.passed_over() {
        eprintln!("mesh-control: {said}");
    }
    for hint in preview.idle(&tried) {
        eprintln!("mesh-control: {hint}");
    }
    for rule in preview.blind() {
        eprintln!("mesh-control: {rule}: it asks for something that records do not have, which counts as absent here");
    }
    let is_known = preview.lost == 0 && preview.unnamed.0 == 0;
    Ok(if preview.refused.0 > 0 || !is_known { ExitCode::from(REFUSES) } else { ExitCode::SUCCESS })
}

/// The objects of a text.
fn metas(name: &str, text: &str) -> Vec<Meta> {
    let file = file::read(Source { name: name.into(), text: text.into() });
    let mut objects = Objects::default();
    file.items.into_iter().for_each(|item| objects.push(item));
    objects.metas().cloned().collect()
}

/// Why an object of this kind makes no difference here, whatever it makes in force.
fn why_not_tried(kind: ObjectKind) -> Option<&'static str> {
    match kind {
        ObjectKind::AuthorizationPolicy | ObjectKind::PeerAuthentication => None,
        ObjectKind::RequestAuthentication => Some("tokens are in no record: whose token it would refuse is not known"),
        ObjectKind::Service | ObjectKind::WorkloadGroup | ObjectKind::ServiceEntry => {
            Some("by itself it refuses nobody; which workloads policies are for is looked up in it")
        }
        ObjectKind::WasmPlugin | ObjectKind::RequestRules => {
            Some("what filters and rules make of requests is in no record: whom it would refuse is not known")
        }
        ObjectKind::MeshConfig => Some("settings of the mesh are those of its start"),
        _ => Some("it is not about who may call whom, or not enforced"),
    }
}

/// The new files, by name.
fn files(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let context = || format!("cannot read {}", path.display());
    if !path.is_dir() {
        let text = load::read_named(path);
        let text = text.map_err(|unreadable| anyhow::anyhow!("cannot read {}: {}", path.display(), unreadable.why))?;
        return Ok([(path.display().to_string(), text.to_string())].into());
    }
    let scan = load::scan(path, Reach::Directory).with_context(context)?;
    if scan.files.is_empty() {
        bail!("{} has no file *.yaml, *.yml or *.json", path.display());
    }
    let texts = scan.files.into_iter().map(|(name, text)| {
        let name = path.join(&*name).display().to_string();
        let text = text.map_err(|unreadable| anyhow::anyhow!("{name}: {}", unreadable.why))?;
        Ok((name, text.to_string()))
    });
    texts.collect()
}

/// Both configurations, and what was found so far.
struct Preview<'p> {
    planes: [&'p Plane; 2],
    servers: [Servers<'p>; 2],
    asked: HashMap<(Arc<Workload>, u16), Met>,
    blind: BTreeSet<Arc<str>>,
    /// Of how many forms and calls.
    all: (u64, u64),
    refused: (u64, u64),
    allowed: (u64, u64),
    otherwise: (u64, u64),
    /// Of a method or path that no policy can name.
    unnamed: (u64, u64),
    lost: u64,
    /// The objects that are for any workload of the records, once the new files are in force; and the namespaces of these.
    met: BTreeSet<Arc<str>>,
    namespaces: BTreeSet<Arc<str>>,
}

impl<'p> Preview<'p> {
    fn new(before: &'p Plane, after: &'p Plane) -> Preview<'p> {
        Preview {
            planes: [before, after],
            servers: [before, after].map(|plane| Servers { plane, asked: HashMap::new() }),
            asked: HashMap::new(),
            blind: BTreeSet::new(),
            all: (0, 0),
            refused: (0, 0),
            allowed: (0, 0),
            otherwise: (0, 0),
            unnamed: (0, 0),
            lost: 0,
            met: BTreeSet::new(),
            namespaces: BTreeSet::new(),
        }
    }

    /// What would be different for calls.
    fn look(&mut self, record: &Record) -> anyhow::Result<Option<Difference>> {
        if record.lost > 0 {
            self.lost += record.lost;
            return Ok(None);
        }
        if record.method.is_empty() || record.path.is_empty() {
            count(&mut self.unnamed, record);
            return Ok(None);
        }
        count(&mut self.all, record);
        let port = if record.port == 0 { 80 } else { record.port };
        let key = (record.workload.clone(), port);
        let workload = match self.asked.get(&key) {
            Some(workload) => workload.clone(),
            None => {
                let first = self.met(&record.workload, port);
                self.asked.insert(key, first.clone());
                first
            }
        };
        let (workload, peers) = workload;
        let asked = request(record, workload, port);
        let [before, after] = &mut self.servers;
        let [of_before, of_after] = &peers;
        let [before, after] = [decide(before, &asked, of_before)?, decide(after, &asked, of_after)?];
        if before.verdict == after.verdict {
            return Ok(None);
        }
        count(
            match (before.verdict, after.verdict) {
                (_, "deny") => &mut self.refused,
                (_, "allow") => &mut self.allowed,
                _ => &mut self.otherwise,
            },
            record,
        );
        Ok(Some(Difference {
            workload: format!("{}/{}", record.workload.namespace, record.workload.name),
            principal: record.principal.clone(),
            protocol: record.protocol,
            method: record.method.clone(),
            path: record.path.clone(),
            port: record.port,
            count: record.count,
            before,
            after,
        }))
    }

    /// A workload for the first time: its rules may ask for what records do not have.
    fn met(&mut self, workload: &Workload, port: u16) -> Met {
        let labels = workload.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let mut client = Client::new("authz", ClientClass::Library, std::net::Ipv4Addr::LOCALHOST.into())
            .namespace(&*workload.namespace)
            .labels(labels);
        client.group.clone_from(&workload.group);
        let mut labels = BTreeMap::new();
        let peers = self.planes.map(|plane| {
            let snapshot = plane.snapshot();
            self.blind.extend(snapshot.rules_by(&client, port, |condition| !is_recorded(condition)));
            labels = snapshot.labels(&client);
            snapshot.peer_authentication(&client, port)
        });
        let [_, after] = self.planes;
        self.met.extend(after.snapshot().guards_of(&client, port));
        self.namespaces.insert(workload.namespace.clone());
        (crate::explain::workload::Workload { namespace: workload.namespace.to_string(), labels }, peers)
    }

    /// New objects that are for no workload of the records.
    fn idle(&self, tried: &[Meta]) -> Vec<String> {
        let idle = tried.iter().filter(|meta| !self.met.contains(&meta.id()));
        let all: Vec<&str> = self.namespaces.iter().map(AsRef::as_ref).collect();
        let hint = |meta: &Meta| {
            let namespace = &meta.namespace;
            let place = match (self.namespaces.contains(namespace), all.as_slice()) {
                (true, _) | (_, []) => String::new(),
                (false, all) => format!(
                    ": it is in namespace {namespace} (`metadata.namespace` says which), and the workloads of the records are in {}",
                    all.join(", ")
                ),
            };
            format!("{} ({}) is in force for no workload of the records{place}", meta.id(), meta.origin)
        };
        idle.map(hint).collect()
    }

    fn blind(&self) -> &BTreeSet<Arc<str>> {
        &self.blind
    }

    fn summary(&self) -> String {
        format!(
            "of {} that were recorded, {} would be refused, {} let in, {} decided by somebody who is asked; the others stay as \
             they are\n",
            said(self.all),
            said(self.refused),
            said(self.allowed),
            said(self.otherwise),
        )
    }

    /// Calls of which nobody knows what would become of them.
    fn passed_over(&self) -> impl Iterator<Item = String> {
        let unnamed = (self.unnamed.0 > 0).then(|| {
            format!("{} have a method or path that no policy can name, and were not tried", said(self.unnamed))
        });
        let lost = (self.lost > 0)
            .then(|| format!("{} more calls found no place in the records, and nothing is known of them", self.lost));
        unnamed.into_iter().chain(lost)
    }
}

/// So many forms, and so many calls.
fn said((forms, calls): (u64, u64)) -> String {
    format!("{forms} ({calls} call{})", if calls == 1 { "" } else { "s" })
}

fn count((forms, calls): &mut (u64, u64), record: &Record) {
    *forms += 1;
    *calls = calls.saturating_add(record.count);
}

/// Whether records have what a condition asks for. Of a path they have the form: who names a value in it names what they do not
/// have.
fn is_recorded(condition: &Condition) -> bool {
    let is_form = |value: &Value| match value {
        Value::Exact(path) | Value::Prefix(path) | Value::Suffix(path) => !template(path, false).contains(ANY),
        _ => true,
    };
    match condition.fact {
        Fact::Path => condition.values.iter().all(is_form),
        Fact::Principal | Fact::Namespace | Fact::ServiceAccount | Fact::TrustDomain | Fact::Method | Fact::Port => {
            true
        }
        _ => false,
    }
}

/// A call of a record as a request. A segment that stands for many is one that no policy names.
fn request(record: &Record, workload: crate::explain::workload::Workload, port: u16) -> Asked {
    let path = if record.path.contains('{') {
        record.path.replace(REST, "0").replace(ANY, "0")
    } else {
        record.path.to_string()
    };
    Asked {
        id: serde_json::Value::Null,
        workload,
        protocol: match record.protocol {
            Spoken::Http => Protocol::Http,
            Spoken::Grpc => Protocol::Grpc,
        },
        method: Some(record.method.to_string()),
        host: None,
        path: Some(path),
        headers: BTreeMap::new(),
        source_ip: None,
        remote_ip: None,
        destination_ip: None,
        destination_port: Some(port),
        sni: None,
        principal: record.principal.as_deref().map(str::to_owned),
        claims: None,
    }
}

/// What is known of a workload of the records: who is asked, and how it takes connections before and after, as the
/// PeerAuthentication in force says, if any does.
type Met = (crate::explain::workload::Workload, [Option<(Arc<str>, ServerTls)>; 2]);

fn decide(servers: &mut Servers<'_>, asked: &Asked, peers: &Option<(Arc<str>, ServerTls)>) -> anyhow::Result<Decided> {
    let answer = match peers {
        // Who was called without an identity was called in plaintext.
        Some((by, ServerTls::Strict)) if asked.principal.is_none() => {
            let note = format!("plaintext is refused by {by} (STRICT)");
            return Ok(Decided { verdict: "deny", rule: None, note: Some(note) });
        }
        // Nobody who calls in plaintext has an identity.
        Some((_, ServerTls::Plaintext)) if asked.principal.is_some() => {
            answer(servers, &Asked { principal: None, ..asked.clone() })?
        }
        _ => answer(servers, asked)?,
    };
    let reason = answer.note.into_iter().next().filter(|_| answer.is_reasoned);
    Ok(Decided { verdict: answer.verdict, rule: answer.rule, note: reason })
}

fn text(difference: &Difference) -> String {
    let Difference { workload, principal, method, path, count, before, after, .. } = difference;
    let caller = principal.as_deref().unwrap_or("callers without an identity");
    format!(
        "{}: {count} call{} of {caller} to {workload}: {method} {path}: {} (was {}: {})\n",
        after.verdict,
        if *count == 1 { "" } else { "s" },
        after.by(),
        before.verdict,
        before.by()
    )
}
