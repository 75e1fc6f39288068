//! Which hosts a client sees by the Sidecar that is for it (Istio: pilot/pkg/model/sidecar.go). What it does not see is to it as
//! if nobody had described it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::outbound::OutboundTrafficPolicy;
use crate::config::file::Object;
use crate::config::istio::mesh_config::OutboundMode;
use crate::config::istio::sidecar::Sidecar;
use crate::config::{Code, Diagnostic, Severity};
use crate::registry::host::{covers, plain};
use crate::registry::service::is_subset;

/// What one Sidecar says.
#[derive(Debug)]
pub struct Scope {
    /// The object.
    pub object: Arc<Object<Sidecar>>,
    imports: Vec<Import>,
    /// What becomes of calls to hosts that nothing describes, where it says so.
    pub outbound: Option<OutboundTrafficPolicy>,
}

/// Hosts of namespaces.
#[derive(Debug)]
pub struct Import {
    /// Of which.
    pub of: Namespaces,
    /// The host, or those that its wildcard stands for.
    pub host: String,
    is_left_out: bool,
}

/// Which namespaces an entry of `hosts` is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// Every one.
    Any,
    /// That of the client, also in a Sidecar of the root namespace, which is for clients of all.
    OfClient,
    /// This one.
    Named(Arc<str>),
}

impl Namespaces {
    /// Whether this one is among them, for a client.
    fn has(&self, namespace: &str, client: &str) -> bool {
        match self {
            Namespaces::Any => true,
            Namespaces::OfClient => namespace == client,
            Namespaces::Named(name) => **name == *namespace,
        }
    }
}

impl Scope {
    fn new(object: &Arc<Object<Sidecar>>) -> Scope {
        let entries = object.spec.egress.iter().flat_map(|egress| &egress.hosts);
        let imports = entries.filter_map(|entry| Import::parse(entry));
        // A policy that does not say its mode is REGISTRY_ONLY: that is the enumeration's zero.
        let outbound = object.spec.outbound_traffic_policy.as_ref().map(|policy| match policy.mode {
            None | Some(OutboundMode::RegistryOnly) => OutboundTrafficPolicy::RegistryOnly,
            Some(OutboundMode::AllowAny | OutboundMode::AllowAnyDynamicDns) => OutboundTrafficPolicy::AllowAny,
        });
        Scope { imports: imports.collect(), outbound, object: Arc::clone(object) }
    }

    /// Whether a client of a namespace sees what an object of another one says of a host.
    pub fn imports(&self, client: &str, namespace: &str, host: &str) -> bool {
        let is_meant = |import: &&Import| import.of.has(namespace, client) && import.covers(host);
        let is_left_out = self.imports.iter().filter(|import| import.is_left_out).any(|import| is_meant(&import));
        let is_imported = self.imports.iter().filter(|import| !import.is_left_out).any(|import| is_meant(&import));
        !is_left_out && (is_imported || self.object.spec.egress.is_empty())
    }

    /// The labels of the workloads that it is for; none are all.
    fn selector(&self) -> Option<&BTreeMap<String, String>> {
        self.object.spec.selector()
    }
}

impl Import {
    /// An entry of `hosts`; `~/*` is none.
    pub fn parse(entry: &str) -> Option<Import> {
        let (namespace, host) = entry.split_once('/')?;
        let (namespace, is_left_out) = match namespace.strip_prefix('~') {
            Some("") => return None,
            Some(rest) => (rest, true),
            None => (namespace, false),
        };
        let of = match namespace {
            "*" => Namespaces::Any,
            "." => Namespaces::OfClient,
            name => Namespaces::Named(name.into()),
        };
        Some(Import { of, host: plain(host), is_left_out })
    }

    /// Whether a host is one of these, of whichever namespace.
    pub fn covers(&self, host: &str) -> bool {
        covers(&self.host, host)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Sidecars {
    /// By their place, in the order in which they compete.
    scopes: Vec<Scope>,
    root_namespace: Arc<str>,
}

impl Sidecars {
    /// Those of these objects, and what is to be said about them.
    pub fn new(objects: &[Arc<Object<Sidecar>>], root_namespace: &Arc<str>) -> (Sidecars, Vec<Diagnostic>) {
        let mut sorted: Vec<&Arc<Object<Sidecar>>> = objects.iter().collect();
        sorted.sort_by(|a, b| a.meta.order().cmp(&b.meta.order()));
        let scopes: Vec<Scope> = sorted.into_iter().map(Scope::new).collect();
        let mut found = Vec::new();
        for (position, scope) in scopes.iter().enumerate().filter(|(_, scope)| scope.selector().is_none()) {
            let meta = &scope.object.meta;
            let is_rival = |other: &&Scope| other.selector().is_none() && other.object.meta.namespace == meta.namespace;
            if let Some(winner) = scopes.iter().take(position).find(is_rival) {
                let winner = &winner.object.meta;
                let message =
                    format!("{} ({}) is for the whole namespace, too, and counts", winner.id(), winner.origin);
                let finding = Diagnostic::at(&meta.origin, Severity::Warning, Code::Conflict, message);
                found.push(finding.istio("IST0111").object(meta.id()));
            }
        }
        for (position, scope) in scopes.iter().enumerate() {
            let (meta, Some(own)) = (&scope.object.meta, scope.selector()) else { continue };
            let is_rival = |other: &&Scope| {
                let has_both = |selector| is_subset(selector, own) || is_subset(own, selector);
                other.object.meta.namespace == meta.namespace && other.selector().is_some_and(has_both)
            };
            if let Some(winner) = scopes.iter().take(position).find(is_rival) {
                let winner = &winner.object.meta;
                let message =
                    format!("{} ({}) selects some of its workloads, too, and counts there", winner.id(), winner.origin);
                let finding = Diagnostic::at(&meta.origin, Severity::Warning, Code::Conflict, message);
                found.push(finding.istio("IST0110").object(meta.id()));
            }
        }
        (Sidecars { scopes, root_namespace: Arc::clone(root_namespace) }, found)
    }

    /// The place of the one that is for a client: one that selects it, else that of its namespace, else that of the root
    /// namespace, which is for all that have none of their own. Of several, the oldest.
    pub fn of(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Option<usize> {
        let find = |is_meant: &dyn Fn(&Scope) -> bool| self.scopes.iter().position(is_meant);
        let in_namespace = |scope: &Scope| *scope.object.meta.namespace == *namespace;
        let selects = |scope: &Scope| scope.selector().is_some_and(|selector| is_subset(selector, labels));
        find(&|scope| in_namespace(scope) && selects(scope))
            .or_else(|| find(&|scope| in_namespace(scope) && scope.selector().is_none()))
            .or_else(|| find(&|scope| scope.object.meta.namespace == self.root_namespace && scope.selector().is_none()))
    }

    /// Those that there are Sidecars in.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.scopes.iter().map(|scope| &*scope.object.meta.namespace)
    }

    /// Whether one of them lets calls to hosts pass that nothing describes.
    pub fn let_any_pass(&self) -> bool {
        self.scopes.iter().any(|scope| scope.outbound == Some(OutboundTrafficPolicy::AllowAny))
    }

    /// None of them says any more whether they pass.
    pub fn let_none_pass(&mut self) {
        self.scopes.iter_mut().for_each(|scope| scope.outbound = None);
    }

    /// The one at a place.
    pub fn get(&self, place: usize) -> Option<&Scope> {
        self.scopes.get(place)
    }
}

/// Who looks for an object: a namespace, and what its Sidecar lets it see.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// The namespace.
    pub namespace: &'a str,
    /// What is seen; `None` is everything that is exported there.
    pub scope: Option<&'a Scope>,
}

impl Sight<'_> {
    /// Whether what an object of a namespace says of a host is seen.
    pub fn imports(&self, namespace: &str, host: &str) -> bool {
        self.scope.is_none_or(|scope| scope.imports(self.namespace, namespace, host))
    }
}

impl<'a> From<&'a str> for Sight<'a> {
    fn from(namespace: &'a str) -> Sight<'a> {
        Sight { namespace, scope: None }
    }
}

impl<'a> From<&'a Arc<str>> for Sight<'a> {
    fn from(namespace: &'a Arc<str>) -> Sight<'a> {
        Sight { namespace, scope: None }
    }
}
