//! Objects against each other: names that nothing answers to, rules that never get a turn, and, for whom it concerns,
//! what a gRPC client cannot do.
//!
//! A name that makes requests fail is an error. Still, nothing here makes a file unusable: an object may well be written
//! before the one that it speaks of.

#![warn(clippy::indexing_slicing, clippy::string_slice)]

mod advice;
mod at_gateways;
mod destination_rule;
mod envoy;
mod export_to;
mod filters;
mod gateways;
mod groups;
mod grpc;
mod hosts;
pub mod istio;
mod limits;
mod plaintext;
mod quotas;
mod refused;
mod rules;
mod security;
mod selectors;
mod service;
mod sidecar;
mod suppress;
mod telemetry;
mod tls;
mod tokens;
mod unknown;
mod unmet;
mod virtual_service;

pub(crate) use at_gateways::{is_about_envoys, lost_at_edge};
pub(crate) use gateways::is_for_known;
pub(crate) use telemetry::is_told_to_nobody;

use std::io;
use std::path::Path;

use mesh_core::identity::TrustDomain;

use self::suppress::Suppressed;
use crate::config::diagnostic::{Code, Diagnostic, Severity};
use crate::config::file::Objects;
use crate::config::load::{self, Scan};
use crate::config::store::{Loaded, Store};
use crate::config::support::ObjectKind;
use crate::policy::Policy;
use crate::policy::mesh::{Fixed, Given, MeshSettings};
use crate::policy::traffic::ServerTls;
use crate::registry::host::in_namespace;
use crate::render::judge::Judge;

/// What there is to say about a configuration.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// Everything, in the order of files and lines.
    pub diagnostics: Vec<Diagnostic>,
    /// How many objects are in force.
    pub objects: usize,
    /// How many are wrong.
    pub wrong: usize,
    /// How many documents and files there are of which nobody can tell what they hold.
    pub unreadable: usize,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
}

impl Report {
    /// How many findings are this severe.
    pub fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|finding| finding.severity == severity).count()
    }
}

/// Whom a configuration is for.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    /// Whether gRPC's own clients and servers are in it: what they cannot do is said, too.
    pub has_grpc: bool,
    /// Whether Envoys are in it: what they cannot do is said, too.
    pub has_envoys: bool,
    /// Whether its control plane issues certificates.
    pub issues_certificates: bool,
    /// Whether mutual TLS is PERMISSIVE there where no PeerAuthentication says anything, and not STRICT.
    pub permissive: bool,
    /// The trust domain, where something else than the configuration says it.
    pub trust_domain: Option<TrustDomain>,
    /// Whether it is to be said, too, what works and is better said otherwise.
    pub takes_advice: bool,
    /// Findings that are left out: of a code (`IST0118`, `degraded`), of one object where it is named
    /// (`IST0118=Service shop/web`); `*` is anything.
    pub suppress: Vec<String>,
}

impl Mesh {
    /// One whose control plane issues certificates, and that lets in who has none yet.
    pub(crate) fn issuing() -> Mesh {
        Mesh { issues_certificates: true, permissive: true, ..Mesh::default() }
    }
}

/// Everything there is to say about a directory, as `Plane` would load it.
pub fn validate_dir(dir: &Path) -> io::Result<Report> {
    Ok(validate_scan(load::scan(dir, load::Reach::Directory)?, Mesh::default()))
}

/// Everything there is to say about some files, for this mesh.
pub fn validate_scan(scan: Scan, mesh: Mesh) -> Report {
    report(of_scan(scan), mesh)
}

/// Everything there is to say about some texts, by name.
pub fn validate<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<Diagnostic> {
    let mut scan = Scan::default();
    scan.files.extend(texts.into_iter().map(|(name, text)| (name.into(), Ok(text.into()))));
    validate_scan(scan, Mesh::default()).diagnostics
}

fn of_scan(scan: Scan) -> Loaded {
    let mut store = Store::new(true);
    store.apply(Ok(scan));
    let mut loaded = store.loaded();
    loaded.diagnostics.extend(store.silent_texts().map(|name| {
        Diagnostic::of_file(name.clone(), Severity::Warning, Code::File, "nothing to check: no object is in it")
    }));
    loaded
}

fn report(loaded: Loaded, mesh: Mesh) -> Report {
    let settings = loaded.objects.refused.iter().find(|refused| refused.meta.kind == ObjectKind::MeshConfig).cloned();
    let wrong = loaded.objects.refused.iter().filter(|refused| refused.is_object()).count();
    let objects = loaded.objects.len();
    let unreadable = loaded.wrong.len().saturating_sub(wrong);
    let judge = Judge::default();
    let default_tls = if mesh.permissive { ServerTls::Permissive } else { ServerTls::Strict };
    let default_tls = mesh.issues_certificates.then_some(default_tls);
    let given = Given { trust_domain: mesh.trust_domain.clone(), default_tls, ..Given::default() };
    let suppressed = Suppressed::new(&loaded.objects, &mesh);
    let all = mesh.takes_advice.then(|| loaded.objects.clone());
    let (policy, mut diagnostics) = examine(loaded, &given, None, &judge);
    if let Some(objects) = all {
        advice::check(&objects, &policy, &mut diagnostics);
    }
    if mesh.has_grpc {
        grpc::check(&judge, &policy, &mut diagnostics);
    }
    if mesh.has_envoys {
        envoy::check(&judge, &policy, &mut diagnostics);
    }
    diagnostics.retain(|finding| !(mesh.issues_certificates && finding.code == Code::NeedsCertificates));
    if let Some(settings) = settings {
        // With other settings there may be others who are asked.
        diagnostics.retain(|finding| finding.code != Code::Unenforced || finding.field.as_deref() != Some("spec"));
        let message = "mesh-control does not start with these settings; while it runs, those that were in force stay";
        let origin = settings.meta.origin.at(settings.place);
        diagnostics.push(Diagnostic::at(&origin, Severity::Error, Code::File, message).object(settings.id()));
    }
    diagnostics.retain(|finding| !suppressed.has(finding));
    sort(&mut diagnostics);
    let trust_domain = policy.mesh.fixed.trust_domain.clone();
    Report { diagnostics, objects, wrong, unreadable, trust_domain }
}

/// The policy of what is loaded, with the settings that were given besides and those that were fixed at the start; and
/// everything there is to say about it.
pub fn examine(loaded: Loaded, given: &Given, fixed: Option<&Fixed>, judge: &Judge) -> (Policy, Vec<Diagnostic>) {
    let Loaded { objects, mut diagnostics, .. } = loaded;
    let (mesh, found) = MeshSettings::new(&objects, given, fixed);
    diagnostics.extend(found);
    let (policy, found) = Policy::new(&objects, mesh);
    diagnostics.extend(found);
    security::drop_believed(&objects, &policy, &mut diagnostics);
    diagnostics.extend(check(&objects, &policy, given.default_tls, judge));
    sort(&mut diagnostics);
    (policy, diagnostics)
}

fn sort(diagnostics: &mut Vec<Diagnostic>) {
    diagnostics.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    diagnostics.dedup();
}

/// What objects have to do with each other, in a mesh whose servers take connections in this way unless told otherwise.
fn check(objects: &Objects, policy: &Policy, default_tls: Option<ServerTls>, judge: &Judge) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    virtual_service::check(objects, policy, &mut found);
    destination_rule::check(objects, policy, &mut found);
    export_to::check(objects, &mut found);
    hosts::check(policy, &mut found);
    gateways::check(objects, policy, &mut found);
    service::check(objects, policy, &mut found);
    sidecar::check(objects, policy, &mut found);
    security::check(objects, policy, &mut found);
    rules::check(objects, policy, &mut found);
    telemetry::check(objects, policy, &mut found);
    limits::check(objects, policy, &mut found);
    selectors::check(objects, policy, &mut found);
    filters::check(objects, policy, &mut found);
    quotas::check(objects, policy, &mut found);
    at_gateways::check(objects, policy, &mut found);
    tls::check(objects, policy, default_tls, &mut found);
    plaintext::check(objects, policy, &mut found);
    refused::check(judge, policy, &mut found);
    found
}

/// Why rules for a host have no effect, if it is another one's alias.
fn alias_finding(policy: &Policy, host: &str, namespace: &str) -> Option<String> {
    let host = in_namespace(host, namespace);
    let (_, service) = policy.services.exact(&host, namespace)?;
    let real = service.alias.as_ref()?;
    Some(format!("{host} is an alias ({}); the rules of {real} count for it", service.meta.id()))
}
