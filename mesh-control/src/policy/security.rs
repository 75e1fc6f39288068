//! Objects that guard workloads: who they are for, what they let in, and why a workload must not serve because of them.
//!
//! Of those that cannot be enforced yet, a workload that is guarded answers every request with the reason instead. What
//! guards nobody (PERMISSIVE, DENY without rules) is in nobody's way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::access::{Access, AccessPolicy, Effect, Enforcement};
use super::authorizer::Authorizer;
use super::mesh::MeshSettings;
use super::tokens::{KeySource, Keys, TokenRule, token_rules};
use super::traffic::ServerTls;
use super::workloads::{is_for, is_one_of};
use crate::config::diagnostic::Origin;
use crate::config::file::{Meta, Objects, Workloads, is_namespace};
use crate::config::istio::security::{MtlsMode, selected};
use crate::config::locate::locate;
use crate::registry::Services;
use crate::registry::service::is_subset;
use crate::registry::services::Targets;

/// All objects that guard workloads.
#[derive(Debug, Default)]
pub struct Security {
    /// The namespace whose objects are for everybody.
    root: Arc<str>,
    /// The names of the mesh's trust domain, where identities of others are trusted, too.
    home: Vec<String>,
    guards: Vec<Guard>,
    access: Vec<(Selection, AccessPolicy)>,
    tokens: Vec<(Selection, Vec<TokenRule>)>,
    peers: Vec<Peers>,
    /// Whether mutual TLS is PERMISSIVE where no PeerAuthentication says anything.
    pub is_permissive: bool,
}

/// A server of a workload.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    /// The workload's namespace.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// The port that it bound.
    pub port: u16,
}

/// What PeerAuthentications may tell workloads apart by, of which some labels are known.
#[derive(Debug, Default)]
pub struct PeerSelections<'p> {
    /// Other labels that such workloads may have.
    pub labels: Vec<&'p BTreeMap<String, String>>,
    /// Ports.
    pub ports: BTreeSet<u16>,
}

/// An object that nobody may be served without.
#[derive(Debug)]
struct Guard {
    selection: Selection,
    /// What of it is not enforced.
    lacks: String,
    /// What is wrong with it, where something is.
    refused: Option<Arc<str>>,
}

/// An object, and the workloads that it is for.
#[derive(Debug)]
struct Selection {
    meta: Meta,
    workloads: Workloads,
}

/// A rule of an AuthorizationPolicy.
pub(crate) struct NamedRule<'s> {
    /// The policy.
    pub(crate) meta: &'s Meta,
    /// Whom it is for.
    pub(crate) workloads: &'s Workloads,
    /// What it does.
    pub(crate) policy: &'s AccessPolicy,
    /// Where the rule is written.
    pub(crate) origin: Origin,
}

/// A PeerAuthentication.
#[derive(Debug)]
struct Peers {
    meta: Meta,
    labels: BTreeMap<String, String>,
    mode: MtlsMode,
    ports: BTreeMap<u16, MtlsMode>,
}

impl Security {
    /// Those of these objects.
    pub fn new(objects: &Objects, mesh: &MeshSettings) -> Security {
        let mut security = Security { root: mesh.fixed.root_namespace.clone(), ..Security::default() };
        if mesh.is_federated {
            security.home = mesh.trust_domains().into_iter().map(str::to_owned).collect();
        }
        for object in &objects.authorization_policies {
            let workloads = objects.workloads(&object.meta, object.spec.selector.as_ref(), &object.spec.targets());
            let selection = Selection { meta: object.meta.clone(), workloads };
            match Enforcement::of(object, mesh) {
                Enforcement::Enforced(policy) => security.access.push((selection, policy)),
                Enforcement::Unenforced(lacks) => security.guards.push(Guard { selection, lacks, refused: None }),
                Enforcement::Idle => {}
            }
        }
        for object in objects.request_authentications.iter().filter(|object| !object.spec.jwt_rules.is_empty()) {
            let workloads = objects.workloads(&object.meta, object.spec.selector.as_ref(), &object.spec.targets());
            let selection = Selection { meta: object.meta.clone(), workloads };
            match token_rules(&object.spec) {
                Ok(rules) => security.tokens.push((selection, rules)),
                Err(lacks) => security.guards.push(Guard { selection, lacks, refused: None }),
            }
        }
        security.tokens.sort_by(|(a, _), (b, _)| a.meta.order().cmp(&b.meta.order()));
        for object in &objects.refused {
            if let Some(workloads) = object.guards() {
                let selection = Selection { meta: object.meta.clone(), workloads };
                let refused = Some(object.answer());
                security.guards.push(Guard { selection, lacks: String::new(), refused });
            }
        }
        let peers = objects.peer_authentications.iter().map(|object| Peers {
            meta: object.meta.clone(),
            labels: selected(object.spec.selector.as_ref()),
            mode: object.spec.mtls.mode,
            ports: object
                .spec
                .port_level_mtls
                .iter()
                .filter_map(|(port, tls)| Some((port.parse().ok()?, tls.mode)))
                .collect(),
        });
        security.peers = peers.collect();
        // The oldest counts. Files have no age: of two that are as old, the one that asks for more does.
        security.peers.sort_by(|a, b| {
            let by_age = a.meta.age().cmp(&b.meta.age());
            by_age.then(b.is_strict().cmp(&a.is_strict())).then_with(|| a.meta.order().cmp(&b.meta.order()))
        });
        security
    }

    /// The labels that objects of security select workloads by, with the namespace of each object.
    pub fn selectors(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, String>)> {
        let guards = self.guards.iter().map(|guard| &guard.selection);
        let access = self.access.iter().map(|(selection, _)| selection);
        let tokens = self.tokens.iter().map(|(selection, _)| selection);
        let labelled = guards.chain(access).chain(tokens).filter_map(|selection| match &selection.workloads {
            Workloads::Labelled(labels) => Some((&*selection.meta.namespace, labels)),
            Workloads::OfTargets(_) => None,
        });
        labelled.chain(self.peers.iter().map(|peers| (&*peers.meta.namespace, &peers.labels)))
    }

    /// The rule that answers, logs and metrics call `AuthorizationPolicy/namespace/name#index`.
    pub(crate) fn rule_called(&self, id: &str) -> Option<NamedRule<'_>> {
        self.access.iter().find_map(|(Selection { meta, workloads }, policy)| {
            let index = policy.rules.iter().position(|rule| *rule.id == *id)?;
            Some(NamedRule { meta, workloads, policy, origin: locate(&meta.origin, &format!("rules[{index}]")) })
        })
    }

    /// The names of all rules.
    pub(crate) fn rule_ids(&self) -> impl Iterator<Item = &str> {
        self.access.iter().flat_map(|(_, policy)| &policy.rules).map(|rule| &*rule.id)
    }

    /// PeerAuthentications that never count, for another one is for the same workloads: with that one.
    pub fn hidden(&self) -> impl Iterator<Item = (&Meta, &Meta)> {
        self.peers.iter().enumerate().filter_map(|(index, peers)| {
            let same = |other: &&Peers| other.meta.namespace == peers.meta.namespace && other.labels == peers.labels;
            let winner = self.peers.iter().take(index).find(same)?;
            Some((&peers.meta, &winner.meta))
        })
    }

    /// Why a server must not serve, if it must not. One that `speaks_tls` can be held to mutual TLS.
    pub fn refusal(&self, served: Served<'_>, services: &Services, speaks_tls: bool) -> Option<String> {
        const MOST: usize = 3;
        let guards = self.guards.iter().filter(|guard| guard.selection.selects(&self.root, served, services));
        let mut reasons: Vec<String> = guards.map(Guard::why).collect();
        reasons.extend(self.unknown_authorizers(served, services));
        if !speaks_tls {
            let strict = self.in_force(served, services).filter(|(_, mode)| *mode == MtlsMode::Strict);
            reasons.extend(strict.map(|(peers, _)| not_enforced(&peers.meta, " (mTLS STRICT)")));
        }
        let more = reasons.len().saturating_sub(MOST);
        reasons.truncate(MOST);
        if more > 0 {
            reasons.push(format!("and {more} more"));
        }
        (!reasons.is_empty())
            .then(|| format!("{}; to serve all the same: mesh-control serve --allow-unenforced", reasons.join("; ")))
    }

    /// Policies that ask somebody whom nothing describes: who would be called instead is anybody's guess.
    fn unknown_authorizers(&self, served: Served<'_>, services: &Services) -> impl Iterator<Item = String> {
        let selected = self.access.iter().filter(move |(selection, _)| selection.selects(&self.root, served, services));
        selected.filter_map(move |(selection, policy)| {
            let authorizer = unknown_authorizer(policy, served, services)?;
            let why = format!(" (there is no service {} to ask)", authorizer.target());
            Some(not_enforced(&selection.meta, &why))
        })
    }

    /// Who is asked, and by which object.
    pub fn authorizers(&self) -> impl Iterator<Item = (&Meta, &Authorizer)> {
        self.access.iter().filter_map(|(selection, policy)| Some((&selection.meta, policy.authorizer.as_deref()?)))
    }

    /// Whether it takes a workload's labels to tell what guards it in this namespace.
    pub fn looks_at_labels(&self, namespace: &str) -> bool {
        let is_near = |meta: &Meta| *meta.namespace == *namespace || meta.namespace == self.root;
        let all = Workloads::Labelled(BTreeMap::new());
        let guards = self.guards.iter().map(|guard| &guard.selection);
        let selections = guards.chain(self.access.iter().map(|(selection, _)| selection));
        let selections = selections.chain(self.tokens.iter().map(|(selection, _)| selection));
        let some = selections.filter(|selection| selection.workloads != all).map(|selection| &selection.meta);
        let peers = self.peers.iter().filter(|peers| peers.is_strict() && !peers.labels.is_empty());
        some.chain(peers.map(|peers| &peers.meta)).any(is_near)
    }

    /// Who may do what to a server. `allow_unenforced` leaves out what cannot be enforced: without it, the server does not
    /// serve at all.
    pub fn access(&self, served: Served<'_>, services: &Services, allow_unenforced: bool) -> Access<'_> {
        let is_out = |policy| allow_unenforced && unknown_authorizer(policy, served, services).is_some();
        let Targets { sure, doubtful, is_open } = services.targets_of(served.namespace, served.labels, served.port);
        let mut access = Access {
            bound: served.port,
            ports: sure.into_iter().chain([served.port]).collect(),
            doubtful_ports: (!is_open).then(|| doubtful.into_iter().collect()),
            ..Access::default()
        };
        access.home.clone_from(&self.home);
        for (selection, policy) in &self.access {
            if selection.selects(&self.root, served, services) && !is_out(policy) {
                access.add(policy);
            }
        }
        access
    }

    /// All policies on who may do what that can be enforced.
    pub fn policies(&self) -> impl Iterator<Item = (&Meta, &AccessPolicy)> {
        self.access.iter().map(|(selection, policy)| (&selection.meta, policy))
    }

    /// The objects that decide who is let in, with whom each is for. Those that say which tokens are good have no policy.
    pub(crate) fn deciding(&self) -> impl Iterator<Item = (&Meta, &Workloads, Option<&AccessPolicy>)> {
        let enforced = self.access.iter().filter(|(_, policy)| !policy.is_dry_run && policy.effect != Effect::Audit);
        let enforced = enforced.map(|(selection, policy)| (selection, Some(policy)));
        let all = enforced.chain(self.tokens.iter().map(|(selection, _)| (selection, None)));
        all.map(|(selection, policy)| (&selection.meta, &selection.workloads, policy))
    }

    /// The objects that say which tokens are good.
    pub fn of_tokens(&self) -> impl Iterator<Item = &Meta> {
        self.tokens.iter().map(|(selection, _)| &selection.meta)
    }

    /// Which tokens are good for a server: the rules of all objects that are for it, the oldest object first.
    pub fn tokens(&self, served: Served<'_>, services: &Services) -> Vec<&TokenRule> {
        let selected = self.tokens.iter().filter(|(selection, _)| selection.selects(&self.root, served, services));
        selected.flat_map(|(_, rules)| rules).collect()
    }

    /// The objects whose keys are elsewhere, with where and how long a fetch may take.
    pub fn keys_elsewhere(&self) -> impl Iterator<Item = (&Meta, &KeySource, Duration)> {
        let rules = self.tokens.iter().flat_map(|(selection, rules)| rules.iter().map(|rule| (&selection.meta, rule)));
        rules.filter_map(|(meta, rule)| match &rule.keys {
            Keys::Elsewhere(source, timeout) => Some((meta, source, *timeout)),
            Keys::Written(_) => None,
        })
    }

    /// The objects that are right, and would guard somebody if they were enforced; and what is not enforced of them.
    pub fn unenforced(&self) -> impl Iterator<Item = (&Meta, &str)> {
        let guards = self.guards.iter().filter(|guard| guard.refused.is_none());
        let guards = guards.map(|guard| (&guard.selection.meta, guard.lacks.as_str()));
        guards.chain(self.peers.iter().filter(|peers| peers.is_strict()).map(|peers| (&peers.meta, "mTLS STRICT")))
    }

    /// The PeerAuthentications that let servers take both, mutual TLS and plaintext.
    pub fn permissive(&self) -> impl Iterator<Item = &Meta> {
        let is_permissive =
            |peers: &&Peers| peers.ports.values().chain([&peers.mode]).any(|mode| *mode == MtlsMode::Permissive);
        self.peers.iter().filter(is_permissive).map(|peers| &peers.meta)
    }

    /// Whether some PeerAuthentication has servers take plaintext alone.
    pub fn has_plaintext(&self) -> bool {
        let mut modes = self.peers.iter().flat_map(|peers| peers.ports.values().chain([&peers.mode]));
        modes.any(|mode| *mode == MtlsMode::Disable)
    }

    /// The PeerAuthentication that is in force for a server, and what it says; none where all leave it to the mesh. That of
    /// the workload counts, else that of its namespace, else that of the mesh; UNSET leaves it to the next one (Istio:
    /// policy_applier.go).
    fn in_force(&self, served: Served<'_>, services: &Services) -> Option<(&Peers, MtlsMode)> {
        let of_root = || self.peers.iter().filter(|peers| peers.meta.namespace == self.root);
        let own = || self.peers.iter().filter(|peers| *peers.meta.namespace == *served.namespace);
        let with_mode = |peers: &'_ Peers| peers.mode_for(served, services);
        if let Some(peers) = own().find(|peers| is_subset(&peers.labels, served.labels)) {
            let mode = with_mode(peers);
            if mode != MtlsMode::Unset {
                return Some((peers, mode));
            }
        }
        // The API has a selector of the root namespace select everywhere, istiod passes over it: it may ask for more, and not
        // for less.
        let wide = of_root().find(|peers| is_subset(&peers.labels, served.labels));
        if let Some(peers) = wide.filter(|peers| with_mode(peers) == MtlsMode::Strict) {
            return Some((peers, MtlsMode::Strict));
        }
        let everybody = |peers: &&Peers| peers.labels.is_empty();
        let wide = own().find(everybody).into_iter().chain(of_root().find(everybody));
        wide.into_iter().find(|peers| peers.mode != MtlsMode::Unset).map(|peers| (peers, peers.mode))
    }

    /// The AuthorizationPolicies that are for a server.
    pub fn policies_of(&self, served: Served<'_>, services: &Services) -> impl Iterator<Item = &Meta> {
        let selected = self.access.iter().filter(move |(selection, _)| selection.selects(&self.root, served, services));
        selected.map(|(selection, _)| &selection.meta)
    }

    /// The objects that say which tokens are good for a server.
    pub fn tokens_of(&self, served: Served<'_>, services: &Services) -> impl Iterator<Item = &Meta> {
        let selected = self.tokens.iter().filter(move |(selection, _)| selection.selects(&self.root, served, services));
        selected.map(|(selection, _)| &selection.meta)
    }

    /// What the PeerAuthentication in force says of a server, and which that is; `None` where all leave it to the mesh.
    pub fn mode_of(&self, served: Served<'_>, services: &Services) -> Option<(&Meta, ServerTls)> {
        let (peers, mode) = self.in_force(served, services)?;
        let tls = match mode {
            MtlsMode::Unset => return None,
            MtlsMode::Strict => ServerTls::Strict,
            MtlsMode::Permissive => ServerTls::Permissive,
            MtlsMode::Disable => ServerTls::Plaintext,
        };
        Some((&peers.meta, tls))
    }

    /// What tells those workloads of a namespace apart that have these labels, and may have more.
    pub fn peer_selections(&self, namespace: &str, known: &BTreeMap<String, String>) -> PeerSelections<'_> {
        let may_be_meant = |peers: &&Peers| {
            let is_near = *peers.meta.namespace == *namespace || peers.meta.namespace == self.root;
            is_near && peers.labels.iter().all(|(key, value)| known.get(key).is_none_or(|known| known == value))
        };
        let mut found = PeerSelections::default();
        for peers in self.peers.iter().filter(may_be_meant) {
            found.labels.push(&peers.labels);
            found.ports.extend(peers.ports.keys());
        }
        found
    }

    /// How a server's connections are secured in a mesh whose workloads have certificates: STRICT (PERMISSIVE, where they need
    /// not have any), unless a PeerAuthentication says otherwise.
    pub fn server_tls(&self, served: Served<'_>, services: &Services) -> ServerTls {
        let default = if self.is_permissive { ServerTls::Permissive } else { ServerTls::Strict };
        self.mode_of(served, services).map_or(default, |(_, tls)| tls)
    }
}

/// Who is asked by a policy, where nothing describes it. One in the server's own process is known to the server alone.
fn unknown_authorizer<'p>(policy: &'p AccessPolicy, served: Served<'_>, services: &Services) -> Option<&'p Authorizer> {
    let authorizer = policy.authorizer.as_deref().filter(|authorizer| !authorizer.is_in_process())?;
    let service = services.find(&authorizer.host, served.namespace);
    let is_known = service.is_some_and(|(_, service)| service.port(authorizer.port).is_some());
    (!is_known).then_some(authorizer)
}

impl Peers {
    /// Whether it asks for TLS on any port.
    fn is_strict(&self) -> bool {
        self.ports.values().chain([&self.mode]).any(|mode| *mode == MtlsMode::Strict)
    }

    /// What it says of a server: that of the target ports that the bound port stands for. Where nobody can tell which these
    /// are, STRICT on any port holds, unless the bound port is written itself; where it may stand for one or not, STRICT for
    /// either holds.
    fn mode_for(&self, served: Served<'_>, services: &Services) -> MtlsMode {
        let written = |port: &u16| self.ports.get(port).copied().filter(|mode| *mode != MtlsMode::Unset);
        if self.ports.is_empty() {
            return self.mode;
        }
        let bound = written(&served.port);
        let Targets { sure, doubtful, is_open } = services.targets_of(served.namespace, served.labels, served.port);
        let is_unknown = is_open || (sure.is_empty() && doubtful.is_empty());
        if is_unknown && bound.is_none() && self.is_strict() {
            return MtlsMode::Strict;
        }
        let own = (!doubtful.is_empty()).then_some(self.mode);
        let of_targets = sure.iter().chain(&doubtful).map(|port| written(port).unwrap_or(self.mode));
        let modes: Vec<MtlsMode> = own.into_iter().chain(of_targets).chain(bound).collect();
        let is_strict = modes.contains(&MtlsMode::Strict);
        if is_strict { MtlsMode::Strict } else { bound.or(modes.first().copied()).unwrap_or(self.mode) }
    }
}

impl Guard {
    fn why(&self) -> String {
        match &self.refused {
            Some(refused) => refused.to_string(),
            None => not_enforced(&self.selection.meta, &format!(" ({})", self.lacks)),
        }
    }
}

impl Selection {
    fn selects(&self, root: &str, served: Served<'_>, services: &Services) -> bool {
        let (own, Served { namespace, labels, .. }) = (&*self.meta.namespace, served);
        is_for(&self.workloads, (own, root), namespace, labels, services)
            // Of a wrong one, the namespace may be what is wrong.
            || (!is_namespace(own) && is_one_of(&self.workloads, namespace, labels, services))
    }
}

fn not_enforced(meta: &Meta, what: &str) -> String {
    format!("{}{what} ({}) is for this workload, and not enforced yet", meta.id(), meta.origin)
}
