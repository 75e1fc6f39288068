//! Which documents are ours: what is to be done with an object, by its version and kind, and which files hold none.

use std::path::Path;

use super::foreign::Foreign;
use crate::config::diagnostic::Severity;
use crate::config::spelling::{is_like, nearest};
use crate::config::support::ObjectKind;

/// What is to be done with a document.
pub(super) enum Class {
    Read(ObjectKind),
    List,
    /// It may hold the settings of the mesh.
    ConfigMap,
    NotYet(Severity),
    /// It may guard workloads, and is not enforced if it does.
    Foreign(Foreign),
    /// It may hold certificates.
    Secret,
    /// Of no concern to the mesh, and why.
    Elsewhere(&'static str),
    UnknownVersion(ObjectKind),
    /// Mistyped, most likely: its kind or its group is nearly this one's. What guards workloads elsewhere is meant to guard
    /// these, too.
    Mistyped(ObjectKind),
    UnknownKind,
}

/// The other kinds of Gateway API, each a name of its own: none of them is one that is read, mistyped.
const OTHER_GATEWAY_KINDS: [&str; 3] = ["BackendLBPolicy", "Mesh", "UDPRoute"];

const ELSEWHERE: Class = Class::Elsewhere("is of no concern to the mesh");

/// The other kinds of the group without a name: a mistyped `Service` is not one of them.
const CORE_KINDS: [&str; 17] = [
    "Binding",
    "ComponentStatus",
    "ConfigMap",
    "Event",
    "LimitRange",
    "Namespace",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodList",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "ServiceAccount",
    "Status",
];

const NETWORKING: &str = ObjectKind::VirtualService.group();
const TELEMETRY: &str = ObjectKind::Telemetry.group();
const POLICY: &str = ObjectKind::RequestRules.group();
const EXTENSIONS: &str = ObjectKind::WasmPlugin.group();
/// The only kind of our own that guards workloads.
pub(super) const REQUEST_RULES: &str = ObjectKind::RequestRules.name();
/// The only kind of that group that is read.
pub(super) const WASM_PLUGIN: &str = ObjectKind::WasmPlugin.name();
const SECURITY: &str = ObjectKind::AuthorizationPolicy.group();
const GATEWAY: &str = ObjectKind::HttpRoute.group();
/// Istio's former security API.
const FORMER_SECURITY: [&str; 2] = ["authentication.istio.io", "rbac.istio.io"];

/// The kinds of a group that are read.
fn of_group(group: &str) -> impl Iterator<Item = ObjectKind> {
    ObjectKind::ALL.into_iter().filter(move |read| read.group() == group && !read.versions().is_empty())
}

/// The kind of a group that is meant, if a word is nearly one.
fn like(group: &str, kind: &str) -> Option<ObjectKind> {
    let names: Vec<&str> = of_group(group).map(ObjectKind::name).collect();
    let meant = nearest(kind, &names)?;
    of_group(group).find(|read| read.name() == meant)
}

/// The kind that guards workloads, if a word is nearly one.
pub(super) fn guard_like(kind: &str) -> Option<ObjectKind> {
    of_group(SECURITY).find(|read| is_like(kind, read.name()))
}

/// Whether objects of this group, or version of it, guard workloads.
pub(super) fn is_guarding_group(api_version: &str) -> bool {
    let group = api_version.split('/').next().unwrap_or_default();
    is_like(group, SECURITY) || FORMER_SECURITY.contains(&group)
}

/// The kind of a document that says nothing of its version.
pub(super) fn without_version(kind: &str) -> Option<ObjectKind> {
    let named = ObjectKind::ALL.into_iter().find(|read| read.name() == kind && !read.group().is_empty());
    named.or_else(|| guard_like(kind))
}

/// What is to be done with an object of this kind.
pub(super) fn classify(api_version: &str, kind: &str) -> Class {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    if let Some(former) = Foreign::former(kind).filter(|_| FORMER_SECURITY.contains(&group)) {
        return Class::Foreign(former);
    }
    if let Some(read) = of_group(group).find(|read| read.name() == kind) {
        return if read.versions().contains(&version) { Class::Read(read) } else { Class::UnknownVersion(read) };
    }
    match group {
        NETWORKING => match kind {
            "EnvoyFilter" => Class::Foreign(Foreign::EnvoyFilter),
            "ProxyConfig" => Class::Elsewhere(
                "says how proxies are started (concurrency, environmentVariables, image), and there are none here",
            ),
            _ => like(NETWORKING, kind).or_else(|| guard_like(kind)).map_or(Class::UnknownKind, Class::Mistyped),
        },
        SECURITY => Class::Mistyped(guard_like(kind).unwrap_or(ObjectKind::AuthorizationPolicy)),
        _ if is_guarding_group(group) || guard_like(kind).is_some() => {
            Class::Mistyped(guard_like(kind).unwrap_or(ObjectKind::AuthorizationPolicy))
        }
        _ if is_like(group, NETWORKING) => {
            like(NETWORKING, kind).map_or(Class::NotYet(Severity::Warning), Class::Mistyped)
        }
        TELEMETRY => Class::Mistyped(ObjectKind::Telemetry),
        // It may refuse requests, as the others do not.
        POLICY if is_like(kind, REQUEST_RULES) => Class::Mistyped(ObjectKind::RequestRules),
        POLICY => Class::Mistyped(ObjectKind::RateLimit),
        EXTENSIONS if is_like(kind, WASM_PLUGIN) => Class::Mistyped(ObjectKind::WasmPlugin),
        EXTENSIONS | "install.istio.io" | "operator.istio.io" => Class::NotYet(Severity::Warning),
        GATEWAY if kind == "GatewayClass" => Class::Elsewhere(
            "is not needed: Gateways of the classes istio and mesh-control are served, whoever has the class, and those of no other; no \
             parameters (`parametersRef`) are taken",
        ),
        GATEWAY if OTHER_GATEWAY_KINDS.contains(&kind) => Class::NotYet(Severity::Warning),
        GATEWAY => like(GATEWAY, kind).map_or(Class::NotYet(Severity::Warning), Class::Mistyped),
        "gateway.networking.x-k8s.io" | "inference.networking.k8s.io" => Class::NotYet(Severity::Warning),
        "discovery.k8s.io" => Class::NotYet(Severity::Warning),
        "networking.k8s.io" if kind == "Ingress" => Class::NotYet(Severity::Warning),
        // The cluster's network enforces it, below every connection of the mesh and whether there is a mesh or not.
        "networking.k8s.io" if kind == "NetworkPolicy" => {
            Class::Elsewhere("is enforced by the cluster's network, not by the mesh")
        }
        "" => match kind {
            "List" if version == "v1" => Class::List,
            "ConfigMap" if version == "v1" => Class::ConfigMap,
            "Secret" if version == "v1" => Class::Secret,
            "Endpoints" => Class::NotYet(Severity::Warning),
            _ if version == "v1" && CORE_KINDS.contains(&kind) => ELSEWHERE,
            _ => Class::UnknownKind,
        },
        // Calls may be in plaintext without it, and a gateway may serve others' hosts.
        _ if is_like(group, GATEWAY) => like(GATEWAY, kind).map_or(Class::NotYet(Severity::Warning), Class::Mistyped),
        _ if group.ends_with(".istio.io") || of_group(NETWORKING).any(|read| read.name() == kind) => {
            Class::NotYet(Severity::Warning)
        }
        _ => ELSEWHERE,
    }
}

/// Files that other tools leave among manifests, in lower case. They hold no objects: kustomize, Helm, npm and the like.
const FOREIGN: [&str; 22] = [
    "kustomization.yaml",
    "kustomization.yml",
    "values.yaml",
    "values.yml",
    "values.schema.json",
    "chart.yaml",
    "requirements.yaml",
    "helmfile.yaml",
    "skaffold.yaml",
    "package.json",
    "package-lock.json",
    "tsconfig.json",
    "composer.json",
    "renovate.json",
    "docker-compose.yaml",
    "docker-compose.yml",
    "compose.yaml",
    "compose.yml",
    "mkdocs.yml",
    "taskfile.yml",
    "pnpm-lock.yaml",
    "pnpm-workspace.yaml",
];

/// Whether a file of this name is another tool's.
pub(super) fn is_foreign(name: &str) -> bool {
    let name = Path::new(name).file_name().and_then(|name| name.to_str()).unwrap_or_default().to_ascii_lowercase();
    // `values-prod.yaml`, `values.prod.yaml`
    let of_helm = || name.starts_with("values-") || name.starts_with("values.");
    FOREIGN.contains(&name.as_str()) || of_helm()
}
