//! Objects that are wrong: what is still known of them, so that what they govern fails closed.
//!
//! The tree of such an object is read with patience, for three things only: who it is, what it governs, and for whom.
//! Where one of them is in doubt, more is taken to be governed rather than less.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Meta;
use super::closed::{self, Closes};
use super::foreign::Foreign;
use super::object::{is_name, is_namespace};
use super::spec::{DOCUMENT, Spec, Texts, collect, labels, like, plain, plain_text, texts};
use super::workloads::{Target, Workloads};
use crate::config::decode::{Decode, Decoder};
use crate::config::diagnostic::{Diagnostic, Origin, Source, Span};
use crate::config::gateway_api::ParentKind;
use crate::config::gateway_api::reference_grant::ReferenceGrant;
use crate::config::istio::names::{export_faults, host_fault};
use crate::config::istio::security::is_workload_target;
use crate::config::istio::service::exported_to;
use crate::config::istio::virtual_service::{MESH, is_for_mesh};
use crate::config::node::{Key, Node, Value};
use crate::config::spelling::nearest;
use crate::config::support::{ObjectKind, listens};
use crate::period::comparable;

/// An object that is wrong.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Who it is. Its name is empty where none can be read; labels and annotations are those that can be.
    pub meta: Meta,
    /// What is wrong, with its place: the first of the findings.
    pub reason: Arc<str>,
    /// That place.
    pub place: Span,
    /// What it governs.
    pub governs: Governs,
    /// Whether that is all that it governs.
    pub is_whole: bool,
    /// Whether its name and namespace can be those of an object.
    pub is_identified: bool,
    /// The VirtualServices that it delegates to: namespace and name.
    pub delegates: Vec<(String, String)>,
    /// What a ReferenceGrant still says plainly.
    pub grants: ReferenceGrant,
    /// What it governs at gateways.
    pub at_gateways: AtGateways,
    /// Where a gateway would listen by it.
    pub closes: Option<Closes>,
}

/// Hosts whose requests an object governs at gateways, both as they are written; `*` is any gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AtGateways {
    /// At which; a ListenerSet is one by its kind and its name.
    pub gateways: Vec<String>,
    /// Which hosts.
    pub hosts: Vec<String>,
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
    /// Its host cannot be read: requests to any host of its namespace, and those of its namespace's clients to any host. Without a
    /// namespace, all requests.
    AnyHost,
    /// What another VirtualService delegates to it.
    Delegated,
    /// Requests to what it is attached to.
    Parents(Vec<Parent>),
    /// What it is attached to cannot be read: requests to any service of its namespace, and those of its namespace's clients to
    /// any service.
    AnyParent,
    /// Requests to workloads.
    Workloads(Workloads),
    /// Requests that workloads make.
    Calls {
        /// Which workloads.
        of: Workloads,
        /// To these hosts; empty means all.
        hosts: Vec<String>,
    },
    /// Requests to workloads, and those that they make.
    BothSides(Workloads),
    /// What the plugins of its namespace may be configured with: those of this filter; `None` where nobody can tell which.
    Plugins(Option<String>),
    /// What workloads write of requests.
    Logs(Workloads),
    /// Nobody can tell: it is a file of which nothing is known. It may guard any workload, and the calls of any.
    Anything,
    /// Nothing that anything could be let through by.
    Nothing,
}

/// What a route of Gateway API is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Parent {
    /// Its kind.
    pub kind: ParentKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// All workloads.
static EVERYBODY: Workloads = Workloads::Labelled(BTreeMap::new());

impl Refused {
    /// An object that governs this, and possibly more: nothing else is known of it.
    pub(super) fn new(meta: Meta, finding: Option<&Diagnostic>, governs: Governs) -> Refused {
        Refused {
            meta,
            reason: finding.map(Diagnostic::in_short).unwrap_or_default().into(),
            place: finding.map(Diagnostic::span).unwrap_or_default(),
            governs,
            is_whole: false,
            is_identified: false,
            delegates: Vec::new(),
            grants: ReferenceGrant::default(),
            at_gateways: AtGateways::default(),
            closes: None,
        }
    }

    /// Whether its name is known.
    pub fn is_named(&self) -> bool {
        !self.meta.name.is_empty()
    }

    /// Whether it is some object, and not a file that may hold any.
    pub fn is_object(&self) -> bool {
        self.governs != Governs::Anything
    }

    /// The workloads that it may guard.
    pub fn guards(&self) -> Option<Workloads> {
        match &self.governs {
            Governs::Workloads(workloads) | Governs::BothSides(workloads) => Some(workloads.clone()),
            Governs::Anything => Some(Workloads::Labelled(BTreeMap::new())),
            _ => None,
        }
    }

    /// The workloads whose calls it may guard, and of these calls those to which hosts; empty means all.
    pub fn guards_calls(&self) -> Option<(&Workloads, &[String])> {
        match &self.governs {
            Governs::Calls { of, hosts } => Some((of, hosts)),
            Governs::BothSides(workloads) => Some((workloads, &[])),
            Governs::Anything => Some((&EVERYBODY, &[])),
            _ => None,
        }
    }

    /// Whether it is right, and nobody enforces its kind.
    pub fn is_foreign(&self) -> bool {
        matches!(self.meta.kind, ObjectKind::Foreign(_))
    }

    /// `Kind namespace/name`.
    pub fn id(&self) -> Arc<str> {
        let (kind, namespace) = (self.meta.kind.title(), &self.meta.namespace);
        match (self.is_named(), namespace.is_empty()) {
            (true, true) if self.is_foreign() => format!("{kind} {}", self.meta.name).into(),
            (true, false) => self.meta.id(),
            (true, true) => format!("{kind} {} of no known namespace", self.meta.name).into(),
            (false, false) => format!("{kind} without a name in {namespace}").into(),
            (false, true) => format!("{kind} of no known name").into(),
        }
    }

    /// What requests that it governs are answered with.
    pub fn answer(&self) -> Arc<str> {
        if self.is_foreign() && self.is_whole {
            return format!("{} guards this workload, and is not enforced: {}", self.id(), self.reason).into();
        }
        if !self.is_object() {
            return format!("nobody can tell what guards this workload: {}", self.reason).into();
        }
        format!("{} is wrong, and no good state of it is known: {}", self.id(), self.reason).into()
    }
}

/// The word by which requests need not pass a plugin.
pub(super) const FAIL_OPEN: &str = "FAIL_OPEN";

const METADATA: [&str; 15] = [
    "name",
    "namespace",
    "labels",
    "annotations",
    "creationTimestamp",
    "generateName",
    "generation",
    "resourceVersion",
    "uid",
    "managedFields",
    "ownerReferences",
    "finalizers",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

/// What a document says that it is.
pub(super) fn kind(document: &Node) -> Option<&str> {
    like(document, "kind", &DOCUMENT)?.as_str()
}

/// Whom an object is for that nobody enforces.
pub(super) fn foreign(document: &Node, foreign: Foreign, source: &Source, finding: &Diagnostic) -> Refused {
    let kind = ObjectKind::Foreign(foreign.name());
    let (mut meta, is_identified) = meta(document, kind, source);
    if foreign.is_for_all() {
        meta.namespace = "".into();
    }
    let governs = Governs::Workloads(workloads(&Spec::of(document, kind), &meta.namespace));
    Refused { is_whole: true, is_identified, ..Refused::new(meta, Some(finding), governs) }
}

/// What is known of a wrong object; `None` where nobody can tell what it governs.
pub(super) fn read(document: &Node, kind: ObjectKind, source: &Source, finding: &Diagnostic) -> Option<Refused> {
    let (meta, is_identified) = meta(document, kind, source);
    let spec = Spec::of(document, kind);
    let export_to = || spec.get("exportTo").and_then(|written| texts(written).all()).map(exported).unwrap_or_default();
    let hosts = |written: Option<&Node>, selector| {
        let mut hosts = written.map(texts).unwrap_or_default();
        if hosts.read.is_empty() {
            hosts = Texts { read: spec.named(), is_whole: false };
        }
        let is_whole = hosts.is_whole;
        (!hosts.read.is_empty())
            .then(|| (Governs::Hosts { hosts: hosts.read, export_to: export_to(), selector }, is_whole))
    };
    let (governs, is_whole) = match kind {
        ObjectKind::VirtualService => match spec.get("hosts").filter(|hosts| hosts.value != Value::Seq(Vec::new())) {
            // Rules that only a gateway has concern nobody here.
            Some(_) if is_for_gateways(&spec) => (Governs::Nothing, true),
            // A delegate, unless it is `hosts` that is mistyped.
            None if spec.is_known() => (Governs::Delegated, is_identified),
            written => hosts(written, BTreeMap::new()).unwrap_or((Governs::Delegated, false)),
        },
        ObjectKind::DestinationRule => {
            let selector = spec.get("workloadSelector").and_then(match_labels);
            hosts(spec.get("host"), selector.unwrap_or_default())?
        }
        ObjectKind::ServiceEntry => hosts(spec.get("hosts"), BTreeMap::new())?,
        ObjectKind::Service if meta.name.is_empty() => return None,
        ObjectKind::Service => {
            let export_to = exported_to(&meta.annotations).map(str::to_owned).collect();
            let (hosts, export_to) = (vec![plain_text(&meta.name)], exported(export_to));
            (Governs::Hosts { hosts, export_to, selector: BTreeMap::new() }, true)
        }
        // Requests need not pass it.
        ObjectKind::WasmPlugin if spec.get("failStrategy").and_then(Node::as_str) == Some(FAIL_OPEN) => {
            (Governs::Nothing, true)
        }
        ObjectKind::WasmPlugin => (on(sides_of_plugin(&spec), &spec, &meta.namespace), true),
        ObjectKind::RequestRules => (on(sides_of_rules(&spec), &spec, &meta.namespace), true),
        ObjectKind::PeerAuthentication
        | ObjectKind::RequestAuthentication
        | ObjectKind::AuthorizationPolicy
        | ObjectKind::Foreign(_) => (Governs::Workloads(workloads(&spec, &meta.namespace)), true),
        // Without it there are fewer endpoints, and none that should not be there. Members of a group do not serve where it
        // takes their labels to tell what guards them.
        // What was in force of the settings of a mesh stays; without any, nothing starts.
        ObjectKind::WorkloadEntry | ObjectKind::WorkloadGroup | ObjectKind::MeshConfig => (Governs::Nothing, true),
        // What it governs is where gateways listen.
        ObjectKind::Gateway | ObjectKind::KubernetesGateway | ObjectKind::ListenerSet => (Governs::Nothing, true),
        // What it governs is at gateways.
        ObjectKind::TlsRoute | ObjectKind::TcpRoute => (Governs::Nothing, true),
        // What it hides is no secret. It may keep calls inside of the mesh, and nobody can tell whose.
        ObjectKind::Sidecar => (Governs::Nothing, spec.is_known() && spec.get("outboundTrafficPolicy").is_none()),
        // It may have kept requests out of the access logs.
        ObjectKind::Telemetry => (Governs::Logs(workloads(&spec, &meta.namespace)), true),
        // It keeps others from too much of something, and is no guard: without it there is no limit, which is said.
        ObjectKind::RateLimit | ObjectKind::Overload | ObjectKind::Quota | ObjectKind::EnvoyFilter => {
            (Governs::Nothing, true)
        }
        // Who needs it has no certificate, and does not call, or serve, without.
        ObjectKind::Secret | ObjectKind::ConfigMap => (Governs::Nothing, true),
        // Its Services would be called in plaintext without it.
        ObjectKind::BackendTlsPolicy => policy_targets(&spec),
        // Without it retries are as where nobody says anything of them, and sessions stay nowhere: it guards nobody.
        ObjectKind::BackendTrafficPolicy => (Governs::Nothing, true),
        // It may refuse any of them.
        ObjectKind::FilterSchema => (Governs::Plugins(spec.get("filter").and_then(text).map(str::to_owned)), true),
        // Of a grant that is wrong, nothing is granted but what its last good state grants, too.
        ObjectKind::ReferenceGrant => (Governs::Nothing, true),
        ObjectKind::HttpRoute | ObjectKind::GrpcRoute => parents(&spec, &meta.namespace),
    };
    let governs = match governs {
        // No object of these kinds can have every host of the mesh, however right the rest of it is: nothing is lost with it, and
        // nobody may take away everybody's services by a typo.
        Governs::Hosts { mut hosts, export_to, selector }
            if matches!(kind, ObjectKind::VirtualService | ObjectKind::ServiceEntry) =>
        {
            hosts.retain(|host| host != "*");
            if hosts.is_empty() { Governs::Nothing } else { Governs::Hosts { hosts, export_to, selector } }
        }
        governs => governs,
    };
    let delegates = delegates(&spec, &meta.namespace);
    // In a namespace that cannot be, nobody can tell which host a short name is.
    let is_whole = is_whole && (is_guard(kind) || is_namespace(&meta.namespace));
    let grants = if kind == ObjectKind::ReferenceGrant { grants(&spec, source) } else { ReferenceGrant::default() };
    let at_gateways = match kind {
        ObjectKind::VirtualService => at_gateways(&spec),
        kind if kind.is_gateway_route() => route_at_gateways(&spec, &meta.namespace),
        _ => AtGateways::default(),
    };
    let closes = closed::read(&spec, &meta);
    Some(Refused {
        is_whole,
        is_identified,
        delegates,
        grants,
        at_gateways,
        closes,
        ..Refused::new(meta, Some(finding), governs)
    })
}

/// The hosts of a VirtualService, by the gateways that it may be for.
fn at_gateways(spec: &Spec<'_>) -> AtGateways {
    let Some(written) = spec.get("gateways").filter(|gateways| gateways.value != Value::Null) else {
        return AtGateways::default();
    };
    let named = texts(written).all().map(|names| names.into_iter().filter(|name| name != MESH).collect());
    hosts_at(named, spec.get("hosts"))
}

/// The hosts of a route of Gateway API, by the Gateways that it may be for.
fn route_at_gateways(spec: &Spec<'_>, own: &str) -> AtGateways {
    let Some(written) = spec.get("parentRefs") else { return AtGateways::default() };
    let name = |(kind, item): (ObjectKind, &Node)| {
        let namespace = match item.get("namespace") {
            None => own.to_owned(),
            Some(written) => plain(written)?,
        };
        let name = format!("{namespace}/{}", plain(item.get("name")?)?);
        Some(if kind == ObjectKind::ListenerSet { format!("{} {name}", kind.name()) } else { name })
    };
    let named: Option<Vec<String>> =
        written.items().iter().filter_map(|item| Some((listens(item)?, item))).map(name).collect();
    hosts_at(named.filter(|_| matches!(written.value, Value::Seq(_))), spec.get("hostnames"))
}

/// Hosts at gateways. Where either cannot be read, all are meant; every host of every gateway is nobody's, so that nobody takes it
/// away from all by a typo.
fn hosts_at(gateways: Option<Vec<String>>, hosts: Option<&Node>) -> AtGateways {
    let hosts = hosts.map(texts).unwrap_or_default();
    let hosts = if hosts.is_whole && !hosts.read.is_empty() { hosts.read } else { vec!["*".to_owned()] };
    match gateways {
        Some(gateways) if gateways.is_empty() => AtGateways::default(),
        Some(gateways) => AtGateways { gateways, hosts },
        None => {
            let hosts = hosts.into_iter().filter(|host| host != "*").collect();
            AtGateways { gateways: vec!["*".to_owned()], hosts }
        }
    }
}

/// Whose requests are meant: those that workloads serve, and those that they make.
type Sides = (bool, bool);

/// A side by the word for it; without one, or with another, it may be either.
fn side(word: Option<&Node>) -> Sides {
    match word.and_then(Node::as_str) {
        Some("SERVER") => (true, false),
        Some("CLIENT") => (false, true),
        _ => (true, true),
    }
}

fn sides_of_rules(spec: &Spec<'_>) -> Sides {
    match spec.get("mode") {
        None => (true, false),
        mode => side(mode),
    }
}

fn sides_of_plugin(spec: &Spec<'_>) -> Sides {
    match spec.get("match").map(Node::items) {
        None | Some([]) => (true, true),
        Some(matches) => {
            let sides = matches.iter().map(|one| side(one.get("mode")));
            sides.fold((false, false), |(serves, calls), (serve, call)| (serves || serve, calls || call))
        }
    }
}

/// The requests of these sides of its workloads.
fn on((serves, calls): Sides, spec: &Spec<'_>, own: &str) -> Governs {
    let of = workloads(spec, own);
    if !calls {
        return Governs::Workloads(of);
    }
    if serves {
        return Governs::BothSides(of);
    }
    // Where one of them is in doubt, all are meant.
    let hosts = spec.get("hosts").and_then(|hosts| texts(hosts).all()).unwrap_or_default();
    let is_sure = hosts.iter().all(|host| host_fault(host).is_none());
    Governs::Calls { of, hosts: if is_sure { hosts } else { Vec::new() } }
}

/// The entries of a grant in which nothing is wrong.
fn grants(spec: &Spec<'_>, source: &Source) -> ReferenceGrant {
    fn good<T: Decode>(spec: &Spec<'_>, name: &str, source: &Source) -> Vec<T> {
        let entries = spec.get(name).map(Node::items).unwrap_or_default();
        let read = entries.iter().filter_map(|entry| {
            let mut d = Decoder::new(source);
            T::decode(entry, &mut d).filter(|_| !d.is_rejected())
        });
        read.collect()
    }
    let (from, to) = (good(spec, "from", source), good(spec, "to", source));
    ReferenceGrant { span: spec.span(), from, to }
}

/// The Services of its namespace that a policy is for, by their names; any of them, where one cannot be read.
fn policy_targets(spec: &Spec<'_>) -> (Governs, bool) {
    let name = |target: &Node| plain(like(target, "name", &["group", "kind", "name", "sectionName"])?);
    let items = spec.get("targetRefs").map(Node::items).unwrap_or_default();
    match items.iter().map(name).collect::<Option<Vec<_>>>().filter(|names| !names.is_empty()) {
        Some(hosts) => (Governs::Hosts { hosts, export_to: Vec::new(), selector: BTreeMap::new() }, true),
        None => (Governs::AnyHost, true),
    }
}

/// What a route is attached to, and whether each of these says so plainly. Where there is no kind that anybody knows, it is taken
/// for a Service.
fn parents(spec: &Spec<'_>, own: &str) -> (Governs, bool) {
    let written = match spec.get("parentRefs") {
        // Attached to nothing, unless it is `parentRefs` that is mistyped.
        None if spec.is_known() => return (Governs::Nothing, true),
        None => return (Governs::AnyParent, true),
        Some(written) => written,
    };
    let items = match &written.value {
        Value::Null => &[],
        Value::Seq(items) => items.as_slice(),
        _ => std::slice::from_ref(written),
    };
    const FIELDS: [&str; 6] = ["group", "kind", "namespace", "name", "sectionName", "port"];
    let (mut parents, mut is_whole) = (Vec::new(), true);
    for item in items {
        let text = |name| like(item, name, &FIELDS).and_then(plain_case);
        let (group, kind) = (text("group"), text("kind"));
        let read = ParentKind::of(group.as_deref(), kind.as_deref());
        // A Gateway is none of the mesh; what is no kind that anybody knows may be a Service.
        let is_elsewhere =
            matches!(kind.as_deref(), None | Some("Gateway" | "ListenerSet")) && !item.entries().is_empty();
        if read.is_none() && is_elsewhere {
            continue;
        }
        is_whole &= read.is_some();
        let mut names = Vec::new();
        match like(item, "name", &FIELDS) {
            Some(name) => collect(name, &mut names),
            None if item.entries().is_empty() => collect(item, &mut names),
            None => {}
        }
        let namespace = match like(item, "namespace", &FIELDS).map(|written| (plain(written), &written.value)) {
            None | Some((None, Value::Null)) => Some(own.to_owned()),
            Some((read, _)) => read,
        };
        let Some(namespace) = namespace.filter(|_| !names.is_empty()) else { return (Governs::AnyParent, true) };
        let kind = read.unwrap_or(ParentKind::Service);
        parents.extend(names.into_iter().map(|name| Parent { kind, namespace: namespace.clone(), name }));
    }
    match parents.is_empty() {
        true => (Governs::Nothing, true),
        false => (Governs::Parents(parents), is_whole),
    }
}

/// A word as it is written.
fn plain_case(node: &Node) -> Option<String> {
    Some(node.as_str()?.trim().to_owned())
}

/// All of the namespace, unless something narrower can be read in full.
fn workloads(spec: &Spec<'_>, own: &str) -> Workloads {
    let everybody = Workloads::Labelled(BTreeMap::new());
    // One may be written as a list, several without.
    let targets = ["targetRef", "targetRefs"].into_iter().filter_map(|name| spec.get(name));
    let targets = targets.flat_map(|node| match node.items() {
        [] => std::slice::from_ref(node),
        items => items,
    });
    let targets: Vec<&Node> = targets.collect();
    let is_own = |target: &Node| {
        let namespace = target.get("namespace");
        namespace.is_none_or(|namespace| namespace.as_str().is_some_and(|text| text.is_empty() || text == own))
    };
    let service = |target: &&Node| match target.get("kind")?.as_str()? {
        kind if is_workload_target(kind) && is_own(target) => {
            Some(Target::Service(text(target.get("name")?)?.to_owned()))
        }
        _ => None,
    };
    let selector = spec.get("selector").or_else(|| spec.get("workloadSelector"));
    match (selector, targets.iter().map(service).collect::<Option<Vec<_>>>()) {
        (Some(selector), Some(none)) if none.is_empty() => {
            match_labels(selector).map_or(everybody, Workloads::Labelled)
        }
        (None, Some(services)) if !services.is_empty() => Workloads::OfTargets(services),
        _ => everybody,
    }
}

/// Who it is, as far as it can be read, and whether that can be the name of an object.
fn meta(document: &Node, kind: ObjectKind, source: &Source) -> (Meta, bool) {
    let written_metadata = like(document, "metadata", &DOCUMENT);
    // Its fields may have lost their indentation.
    let metadata = written_metadata.unwrap_or(document);
    let namespace = [metadata, document].into_iter().find_map(|node| like(node, "namespace", &METADATA));
    let is_known = |(key, _): &(Key, Node)| nearest(&key.name, &METADATA).is_some();
    let written = match namespace {
        Some(namespace) => text(namespace).unwrap_or_default(),
        None if !is_guard(kind) => "default",
        // Where somebody may have written it in other words, it is not the one that is meant without any.
        None if written_metadata.is_some_and(|metadata| metadata.entries().iter().all(is_known)) => "default",
        None => "",
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
        extensions: Default::default(),
        created: metadata.get("creationTimestamp").and_then(text).and_then(comparable).unwrap_or_default(),
        origin: Origin { source: source.clone(), span: document.span },
    };
    (meta, is_identified && written_metadata.is_some())
}

fn is_for_gateways(spec: &Spec<'_>) -> bool {
    let gateways = spec.get("gateways").and_then(|gateways| texts(gateways).all());
    gateways.is_some_and(|gateways| !is_for_mesh(gateways.iter().map(String::as_str)))
}

fn delegates(spec: &Spec<'_>, own: &str) -> Vec<(String, String)> {
    let rules = spec.get("http").map(Node::items).unwrap_or_default();
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

pub(super) const fn is_guard(kind: ObjectKind) -> bool {
    use ObjectKind::{
        AuthorizationPolicy, Foreign, PeerAuthentication, RequestAuthentication, RequestRules, WasmPlugin,
    };
    matches!(
        kind,
        PeerAuthentication | RequestAuthentication | AuthorizationPolicy | WasmPlugin | RequestRules | Foreign(_)
    )
}

/// The namespaces, unless something is wrong with them: nobody can tell who is meant then, so that all are.
fn exported(namespaces: Vec<String>) -> Vec<String> {
    match export_faults(namespaces.iter().map(String::as_str)).as_slice() {
        [] => namespaces,
        _ => Vec::new(),
    }
}

/// The labels of a selector. Of one with a wildcard nobody can tell whom it is for.
fn match_labels(selector: &Node) -> Option<BTreeMap<String, String>> {
    // An EnvoyFilter has its own word.
    let written = selector.get("labels").or_else(|| like(selector, "matchLabels", &["matchLabels"]));
    let labels = labels(written?)?;
    let has_wildcard = labels.iter().any(|(key, value)| key.contains('*') || value.contains('*'));
    (!has_wildcard).then_some(labels)
}
