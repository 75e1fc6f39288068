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
    /// Of no concern to the mesh, and why.
    Elsewhere(&'static str),
    UnknownVersion(ObjectKind, &'static str),
    /// Mistyped, most likely: its kind or its group is nearly this one's. What guards workloads elsewhere is meant to guard
    /// these, too.
    Mistyped(ObjectKind),
    UnknownKind,
}

const NETWORKING_KINDS: [(&str, ObjectKind); 6] = [
    ("VirtualService", ObjectKind::VirtualService),
    ("DestinationRule", ObjectKind::DestinationRule),
    ("ServiceEntry", ObjectKind::ServiceEntry),
    ("WorkloadEntry", ObjectKind::WorkloadEntry),
    ("WorkloadGroup", ObjectKind::WorkloadGroup),
    ("Sidecar", ObjectKind::Sidecar),
];

/// The kinds of Gateway API that are read, with their versions.
const GATEWAY_KINDS: [(&str, ObjectKind, &[&str], &str); 3] = [
    ("HTTPRoute", ObjectKind::HttpRoute, &["v1", "v1beta1", "v1alpha2"], "v1, v1beta1 or v1alpha2"),
    ("GRPCRoute", ObjectKind::GrpcRoute, &["v1", "v1alpha2"], "v1 or v1alpha2"),
    ("ReferenceGrant", ObjectKind::ReferenceGrant, &["v1", "v1beta1", "v1alpha2"], "v1, v1beta1 or v1alpha2"),
];

/// Its other kinds, each a name of its own: none of them is one that is read, mistyped.
const OTHER_GATEWAY_KINDS: [&str; 9] = [
    "BackendLBPolicy",
    "BackendTLSPolicy",
    "Gateway",
    "GatewayClass",
    "ListenerSet",
    "Mesh",
    "TCPRoute",
    "TLSRoute",
    "UDPRoute",
];

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

const SECURITY_KINDS: [(&str, ObjectKind); 3] = [
    ("PeerAuthentication", ObjectKind::PeerAuthentication),
    ("RequestAuthentication", ObjectKind::RequestAuthentication),
    ("AuthorizationPolicy", ObjectKind::AuthorizationPolicy),
];

const NETWORKING: &str = "networking.istio.io";
const TELEMETRY: &str = "telemetry.istio.io";
const POLICY: &str = "policy.mesh-control";
const EXTENSIONS: &str = "extensions.istio.io";
/// The only kind of our own that guards workloads.
pub(super) const REQUEST_RULES: &str = "RequestRules";
/// The only kind of that group that is read.
pub(super) const WASM_PLUGIN: &str = "WasmPlugin";
const SECURITY: &str = "security.istio.io";
const GATEWAY: &str = "gateway.networking.k8s.io";
/// Istio's former security API.
const FORMER_SECURITY: [&str; 2] = ["authentication.istio.io", "rbac.istio.io"];

/// The kind that guards workloads, if a word is nearly one.
pub(super) fn guard_like(kind: &str) -> Option<ObjectKind> {
    SECURITY_KINDS.iter().find(|(name, _)| is_like(kind, name)).map(|(_, read)| *read)
}

/// Whether objects of this group, or version of it, guard workloads.
pub(super) fn is_guarding_group(api_version: &str) -> bool {
    let group = api_version.split('/').next().unwrap_or_default();
    is_like(group, SECURITY) || FORMER_SECURITY.contains(&group)
}

/// The kind of a document that says nothing of its version.
pub(super) fn without_version(kind: &str) -> Option<ObjectKind> {
    let networking = NETWORKING_KINDS.iter().find(|(name, _)| *name == kind).map(|(_, read)| *read);
    let gateway = || GATEWAY_KINDS.iter().find(|(name, ..)| *name == kind).map(|(_, read, ..)| *read);
    let telemetry = || match kind {
        "Telemetry" => Some(ObjectKind::Telemetry),
        WASM_PLUGIN => Some(ObjectKind::WasmPlugin),
        _ => policy_kind(kind),
    };
    networking.or_else(gateway).or_else(telemetry).or_else(|| guard_like(kind))
}

/// The kinds of our own.
fn policy_kind(kind: &str) -> Option<ObjectKind> {
    match kind {
        "RateLimit" => Some(ObjectKind::RateLimit),
        "Overload" => Some(ObjectKind::Overload),
        "FilterSchema" => Some(ObjectKind::FilterSchema),
        REQUEST_RULES => Some(ObjectKind::RequestRules),
        "Quota" => Some(ObjectKind::Quota),
        _ => None,
    }
}

/// What is to be done with an object of this kind.
pub(super) fn classify(api_version: &str, kind: &str) -> Class {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    if let Some(former) = Foreign::former(kind).filter(|_| FORMER_SECURITY.contains(&group)) {
        return Class::Foreign(former);
    }
    match group {
        NETWORKING => {
            if let Some((_, read)) = NETWORKING_KINDS.iter().find(|(name, _)| *name == kind) {
                return match version {
                    "v1" | "v1beta1" | "v1alpha3" => Class::Read(*read),
                    _ => Class::UnknownVersion(*read, "v1, v1beta1 or v1alpha3"),
                };
            }
            match kind {
                "EnvoyFilter" => Class::Foreign(Foreign::EnvoyFilter),
                "Gateway" => Class::NotYet(Severity::Warning),
                "ProxyConfig" => Class::Elsewhere(
                    "says how proxies are started (concurrency, environmentVariables, image), and there are none here",
                ),
                _ => networking_like(kind).or_else(|| guard_like(kind)).map_or(Class::UnknownKind, Class::Mistyped),
            }
        }
        SECURITY => match SECURITY_KINDS.iter().find(|(name, _)| *name == kind) {
            Some((_, read)) if matches!(version, "v1" | "v1beta1") => Class::Read(*read),
            Some((_, read)) => Class::UnknownVersion(*read, "v1 or v1beta1"),
            None => Class::Mistyped(guard_like(kind).unwrap_or(ObjectKind::AuthorizationPolicy)),
        },
        _ if is_guarding_group(group) || guard_like(kind).is_some() => {
            Class::Mistyped(guard_like(kind).unwrap_or(ObjectKind::AuthorizationPolicy))
        }
        _ if is_like(group, NETWORKING) => {
            networking_like(kind).map_or(Class::NotYet(Severity::Warning), Class::Mistyped)
        }
        TELEMETRY if kind == "Telemetry" => match version {
            "v1" | "v1alpha1" => Class::Read(ObjectKind::Telemetry),
            _ => Class::UnknownVersion(ObjectKind::Telemetry, "v1 or v1alpha1"),
        },
        TELEMETRY => Class::Mistyped(ObjectKind::Telemetry),
        POLICY => match (policy_kind(kind), version) {
            (Some(read), "v1alpha1") => Class::Read(read),
            (Some(read), _) => Class::UnknownVersion(read, "v1alpha1"),
            // It may refuse requests, as the others do not.
            (None, _) if is_like(kind, REQUEST_RULES) => Class::Mistyped(ObjectKind::RequestRules),
            (None, _) => Class::Mistyped(ObjectKind::RateLimit),
        },
        EXTENSIONS if is_like(kind, WASM_PLUGIN) => match (kind, version) {
            (WASM_PLUGIN, "v1alpha1") => Class::Read(ObjectKind::WasmPlugin),
            (WASM_PLUGIN, _) => Class::UnknownVersion(ObjectKind::WasmPlugin, "v1alpha1"),
            _ => Class::Mistyped(ObjectKind::WasmPlugin),
        },
        EXTENSIONS | "install.istio.io" | "operator.istio.io" => Class::NotYet(Severity::Warning),
        GATEWAY => gateway_kind(kind, version),
        "gateway.networking.x-k8s.io" | "inference.networking.k8s.io" => Class::NotYet(Severity::Warning),
        "discovery.k8s.io" => Class::NotYet(Severity::Warning),
        "networking.k8s.io" if kind == "Ingress" => Class::NotYet(Severity::Warning),
        // The cluster's network enforces it, below every connection of the mesh and whether there is a mesh or not.
        "networking.k8s.io" if kind == "NetworkPolicy" => {
            Class::Elsewhere("is enforced by the cluster's network, not by the mesh")
        }
        "" => match kind {
            "Service" if version == "v1" => Class::Read(ObjectKind::Service),
            "Service" => Class::UnknownVersion(ObjectKind::Service, "v1"),
            "List" if version == "v1" => Class::List,
            "ConfigMap" if version == "v1" => Class::ConfigMap,
            "Endpoints" => Class::NotYet(Severity::Warning),
            _ if version == "v1" && CORE_KINDS.contains(&kind) => ELSEWHERE,
            _ => Class::UnknownKind,
        },
        _ if group.ends_with(".istio.io") || NETWORKING_KINDS.iter().any(|(name, _)| *name == kind) => {
            Class::NotYet(Severity::Warning)
        }
        _ => ELSEWHERE,
    }
}

/// What is to be done with a kind of Gateway API.
fn gateway_kind(kind: &str, version: &str) -> Class {
    if let Some((_, read, versions, known)) = GATEWAY_KINDS.iter().find(|(name, ..)| *name == kind) {
        return match versions.contains(&version) {
            true => Class::Read(*read),
            false => Class::UnknownVersion(*read, known),
        };
    }
    // BackendTLSPolicy says how a gateway calls what is behind it (GEP-1897). There is no gateway here, and so no call that would
    // go out in plaintext because of it; calls of the mesh's own clients have a DestinationRule.
    let names = GATEWAY_KINDS.map(|(name, ..)| name);
    let meant = if OTHER_GATEWAY_KINDS.contains(&kind) { None } else { nearest(kind, &names) };
    let meant = meant.and_then(|meant| GATEWAY_KINDS.iter().find(|(name, ..)| *name == meant));
    meant.map_or(Class::NotYet(Severity::Warning), |(_, read, ..)| Class::Mistyped(*read))
}

/// The kind of routes and services, if a word is nearly one.
fn networking_like(kind: &str) -> Option<ObjectKind> {
    let names = NETWORKING_KINDS.map(|(name, _)| name);
    let meant = nearest(kind, &names)?;
    NETWORKING_KINDS.iter().find(|(name, _)| *name == meant).map(|(_, read)| *read)
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
