//! Objects that are wrong: what is still known of them, so that what they govern fails closed.
//!
//! The tree of such an object is read with patience, for three things only: who it is, what it governs, and for whom.
//! Where one of them is in doubt, more is taken to be governed rather than less.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Meta, is_name, is_namespace};
use crate::config::diagnostic::{Diagnostic, Origin, Source};
use crate::config::istio::names::export_faults;
use crate::config::istio::security::{TargetRef, is_workload_target};
use crate::config::istio::service::exported_to;
use crate::config::istio::virtual_service::is_for_mesh;
use crate::config::node::{Node, Value};
use crate::config::support::ObjectKind;

/// An object that is wrong.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Who it is. Its name is empty where none can be read; labels and annotations are those that can be.
    pub meta: Meta,
    /// What is wrong, with its place: the first of the findings.
    pub reason: Arc<str>,
    /// What it governs.
    pub governs: Governs,
    /// Whether that is all that it governs.
    pub is_whole: bool,
    /// Whether its name and namespace can be those of an object.
    pub is_identified: bool,
    /// The VirtualServices that it delegates to: namespace and name.
    pub delegates: Vec<(String, String)>,
}

/// What an object governs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Governs {
    /// Requests to hosts.
    Hosts {
        /// As they are written.
        hosts: Vec<String>,
        /// Of clients in these namespaces; empty means all.
        export_to: Vec<String>,
        /// Of clients with these labels; empty means all.
        selector: BTreeMap<String, String>,
    },
    /// What another VirtualService delegates to it.
    Delegated,
    /// Requests to workloads.
    Workloads(Workloads),
    /// Nothing that anything could be let through by.
    Nothing,
}

/// The workloads that an object of security is for. In the root namespace, labels are those of any namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workloads {
    /// Those of its namespace with these labels; without labels, all.
    Labelled(BTreeMap<String, String>),
    /// Those that are endpoints of these services of its namespace.
    OfServices(Vec<String>),
}

impl Workloads {
    /// Those of a selector and of targets, of which only one is there.
    pub fn of(labels: BTreeMap<String, String>, targets: &[&TargetRef]) -> Workloads {
        if targets.is_empty() {
            return Workloads::Labelled(labels);
        }
        let services = targets.iter().filter(|target| is_workload_target(&target.kind));
        Workloads::OfServices(services.map(|target| target.name.value.clone()).collect())
    }
}

impl Refused {
    /// Whether its name is known.
    pub fn is_named(&self) -> bool {
        !self.meta.name.is_empty()
    }

    /// `Kind namespace/name`.
    pub fn id(&self) -> Arc<str> {
        match self.is_named() {
            true => self.meta.id(),
            false => format!("{} without a name in {}", self.meta.kind.name(), self.meta.namespace).into(),
        }
    }

    /// What requests that it governs are answered with.
    pub fn answer(&self) -> Arc<str> {
        format!("{} is wrong, and no good state of it is known: {}", self.id(), self.reason).into()
    }
}

/// What is known of a wrong object; `None` where nobody can tell what it governs.
pub(super) fn read(document: &Node, kind: ObjectKind, source: &Source, finding: &Diagnostic) -> Option<Refused> {
    let (meta, is_identified) = meta(document, kind, source)?;
    let spec = document.get("spec");
    let export_to = || spec.and_then(|spec| texts(spec.get("exportTo")?).all()).map(exported).unwrap_or_default();
    let hosts = |written: Texts, selector| {
        let is_whole = written.is_whole;
        (!written.read.is_empty())
            .then(|| (Governs::Hosts { hosts: written.read, export_to: export_to(), selector }, is_whole))
    };
    let (governs, is_whole) = match kind {
        ObjectKind::VirtualService => match spec?.get("hosts") {
            // Rules that only a gateway has concern nobody here.
            Some(_) if is_for_gateways(spec?) => (Governs::Nothing, true),
            Some(written) => hosts(texts(written), BTreeMap::new())?,
            // A delegate, unless it is `hosts` that is mistyped.
            None => {
                let is_below = finding.field.as_deref().is_some_and(|field| field.contains(['.', '[']));
                (Governs::Delegated, is_below && is_identified)
            }
        },
        ObjectKind::DestinationRule => {
            let host = Texts { read: vec![plain(spec?.get("host")?)?], is_whole: true };
            let selector =
                spec?.get("workloadSelector").and_then(|selector| selector_labels(selector.get("matchLabels")?));
            hosts(host, selector.unwrap_or_default())?
        }
        ObjectKind::ServiceEntry => hosts(texts(spec?.get("hosts")?), BTreeMap::new())?,
        ObjectKind::Service if meta.name.is_empty() => return None,
        ObjectKind::Service => {
            let export_to = exported_to(&meta.annotations).map(str::to_owned).collect();
            let (hosts, export_to) = (vec![plain_text(&meta.name)], exported(export_to));
            (Governs::Hosts { hosts, export_to, selector: BTreeMap::new() }, true)
        }
        ObjectKind::PeerAuthentication | ObjectKind::RequestAuthentication | ObjectKind::AuthorizationPolicy => {
            (Governs::Workloads(workloads(spec)), true)
        }
        // Without it there are fewer endpoints, and none that should not be there.
        ObjectKind::WorkloadEntry | ObjectKind::WorkloadGroup => (Governs::Nothing, true),
    };
    let delegates = delegates(spec, &meta.namespace);
    // In a namespace that cannot be, nobody can tell which host a short name is.
    let is_whole = is_whole && (is_guard(kind) || is_namespace(&meta.namespace));
    Some(Refused { meta, reason: finding.in_short().into(), governs, is_whole, is_identified, delegates })
}

/// All of the namespace, unless something narrower can be read in full.
fn workloads(spec: Option<&Node>) -> Workloads {
    let field = |name| spec.and_then(|spec| spec.get(name));
    if let Some(labels) = field("selector").and_then(|selector| selector_labels(selector.get("matchLabels")?)) {
        return Workloads::Labelled(labels);
    }
    let targets: Vec<&Node> =
        field("targetRef").into_iter().chain(field("targetRefs").map(Node::items).unwrap_or_default()).collect();
    let service = |target: &&Node| match target.get("kind")?.as_str()? {
        kind if is_workload_target(kind) => Some(text(target.get("name")?)?.to_owned()),
        _ => None,
    };
    match targets.iter().map(service).collect::<Option<Vec<_>>>() {
        Some(services) if !services.is_empty() => Workloads::OfServices(services),
        _ => Workloads::Labelled(BTreeMap::new()),
    }
}

/// Who it is, as far as it can be read, and whether that can be the name of an object.
fn meta(document: &Node, kind: ObjectKind, source: &Source) -> Option<(Meta, bool)> {
    let metadata = document.get("metadata")?;
    let written = match metadata.get("namespace") {
        Some(namespace) => text(namespace)?,
        None => "default",
    };
    // A guard of a namespace that cannot be is one of any.
    let namespace = if is_guard(kind) { written.to_owned() } else { plain_text(written) };
    let name = metadata.get("name").and_then(text).unwrap_or_default();
    let pairs = |field| metadata.get(field).and_then(labels).unwrap_or_default();
    let is_identified = is_name(name) && is_namespace(written);
    let meta = Meta {
        kind,
        namespace: namespace.into(),
        name: name.into(),
        labels: pairs("labels"),
        annotations: pairs("annotations"),
        created: metadata.get("creationTimestamp").and_then(text).unwrap_or_default().to_owned(),
        origin: Origin { source: source.clone(), span: document.span },
    };
    Some((meta, is_identified))
}

fn is_for_gateways(spec: &Node) -> bool {
    let gateways = spec.get("gateways").and_then(|gateways| texts(gateways).all());
    gateways.is_some_and(|gateways| !is_for_mesh(gateways.iter().map(String::as_str)))
}

fn delegates(spec: Option<&Node>, own: &str) -> Vec<(String, String)> {
    let rules = spec.and_then(|spec| spec.get("http")).map(Node::items).unwrap_or_default();
    let delegates = rules.iter().filter_map(|rule| {
        let delegate = rule.get("delegate")?;
        let namespace = delegate.get("namespace").and_then(plain).unwrap_or_else(|| own.to_owned());
        Some((namespace, plain(delegate.get("name")?)?))
    });
    delegates.collect()
}

fn text(node: &Node) -> Option<&str> {
    node.as_str().filter(|text| !text.is_empty())
}

const fn is_guard(kind: ObjectKind) -> bool {
    use ObjectKind::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
    matches!(kind, PeerAuthentication | RequestAuthentication | AuthorizationPolicy)
}

/// Blanks and capitals make a host or a name wrong, and leave no doubt which one is meant.
fn plain(node: &Node) -> Option<String> {
    Some(plain_text(node.as_str()?)).filter(|text| !text.is_empty())
}

fn plain_text(text: &str) -> String {
    text.trim().to_ascii_lowercase()
}

/// The namespaces, unless something is wrong with them: nobody can tell who is meant then, so that all are.
fn exported(namespaces: Vec<String>) -> Vec<String> {
    match export_faults(namespaces.iter().map(String::as_str)).as_slice() {
        [] => namespaces,
        _ => Vec::new(),
    }
}

/// The strings of a list, and whether it has nothing else.
struct Texts {
    read: Vec<String>,
    is_whole: bool,
}

impl Texts {
    fn all(self) -> Option<Vec<String>> {
        self.is_whole.then_some(self.read)
    }
}

fn texts(list: &Node) -> Texts {
    let read: Vec<String> = list.items().iter().filter_map(plain).collect();
    let is_whole = matches!(list.value, Value::Seq(_)) && read.len() == list.items().len();
    Texts { read, is_whole }
}

fn labels(map: &Node) -> Option<BTreeMap<String, String>> {
    let Value::Map(entries) = &map.value else { return None };
    entries.iter().map(|(key, value)| Some((key.name.clone(), value.as_str()?.to_owned()))).collect()
}

/// Of a selector with a wildcard nobody can tell whom it is for.
fn selector_labels(map: &Node) -> Option<BTreeMap<String, String>> {
    labels(map).filter(|labels| !labels.iter().any(|(key, value)| key.contains('*') || value.contains('*')))
}
