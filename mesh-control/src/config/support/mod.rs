//! Which field is enforced for which kind of client: the one table to change when that changes, a file for each kind
//! of object.
//!
//! Every field of every kind that is read has a row, itself or through a parent that is not enforced as a
//! whole; a test walks the fields and holds the table to that. What is written and not enforced is
//! reported with its position when the file is read, so nothing is ever dropped in silence.

mod backend_tls_policy;
mod backend_traffic_policy;
mod connection_route;
mod destination_rule;
mod envoy;
mod extensions;
mod filter_schema;
mod gateway;
mod grpc_route;
mod http_route;
mod kind;
mod kubernetes_gateway;
mod mesh_config;
mod overload;
mod quota;
mod rate_limit;
mod reference_grant;
mod request_rules;
mod security;
mod service;
mod service_entry;
mod sidecar;
mod telemetry;
mod virtual_service;
mod wasm_plugin;
mod workload_entry;
mod workload_group;

use std::collections::HashMap;

use crate::config::decode::Decoder;
use crate::config::diagnostic::{Code, Severity};
use crate::config::node::{Key, Node, Value};

pub use backend_tls_policy::SYSTEM;
pub use envoy::by_envoy;
pub use extensions::{ANNOTATIONS, annotation};
pub use gateway::is_foreign_to_gateways;
pub use kind::{ObjectKind, group_of, is_core_service};
pub use kubernetes_gateway::{NAMESPACE_NAME, TERMINATE_MODE, is_gateway_kind, listening_kind, listens};
pub use workload_group::{is_probed_header, is_probed_scheme, is_probed_value, probed_ip, probed_path};

use Support::{Enforced, Indifferent, MostlyIndifferent, NotYet, Partly};

/// What becomes of a field.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Support {
    /// It does what Istio says.
    Enforced,
    /// It is reported as not supported yet; the text says what happens instead.
    NotYet(&'static str),
    /// Some of its values are not supported yet: for those, the text to report.
    Partly(fn(&Node) -> Option<String>),
    /// It says something about a cluster or a sidecar that this mesh does not have; nothing is lost, and it is noted.
    Indifferent,
    /// The same, but for some of its values: for those, the text to report.
    MostlyIndifferent(fn(&Node) -> Option<String>),
}

/// One field.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its path below `spec`, without indexes and keys of maps.
    pub path: &'static str,
    /// For this project's library.
    pub library: Support,
    /// For gRPC's own xDS clients; `render::grpc` reports what they do instead.
    pub grpc: Support,
}

const fn both(path: &'static str, support: Support) -> Row {
    Row { path, library: support, grpc: support }
}

const fn http_only(path: &'static str, grpc: &'static str) -> Row {
    Row { path, library: Enforced, grpc: NotYet(grpc) }
}

/// `targetRefs` of an object for workloads, which gRPC's clients are not told of.
const fn workloads(nothing: &'static str) -> [Row; 4] {
    [
        http_only("group", nothing),
        http_only("kind", nothing),
        http_only("name", nothing),
        both("namespace", Indifferent),
    ]
}

/// What a rule of a limit or a quota counts.
const fn counted(nothing: &'static str) -> [Row; 13] {
    [
        http_only("name", nothing),
        http_only("match.method", nothing),
        http_only("match.path", nothing),
        http_only("match.headers", nothing),
        http_only("by.header", nothing),
        http_only("by.query", nothing),
        http_only("by.claim", nothing),
        http_only("by.pathTemplates", nothing),
        http_only("by.client", nothing),
        http_only("by.remoteAddress.v4Bits", nothing),
        http_only("by.remoteAddress.v6Bits", nothing),
        http_only("by.method", nothing),
        http_only("by.expression", nothing),
    ]
}

/// Of what is spoken on a connection; gRPC's clients speak HTTP/2 whatever is written.
const fn unneeded_by_grpc(path: &'static str) -> Row {
    Row { path, library: Enforced, grpc: Indifferent }
}

/// Tables, and the field that each stands under.
type Tables = &'static [(&'static str, &'static [Row])];

fn tables(kind: ObjectKind) -> Tables {
    match kind {
        ObjectKind::VirtualService => virtual_service::TABLES,
        ObjectKind::DestinationRule => destination_rule::TABLES,
        ObjectKind::ServiceEntry => service_entry::TABLES,
        ObjectKind::WorkloadEntry => workload_entry::TABLES,
        ObjectKind::WorkloadGroup => workload_group::TABLES,
        ObjectKind::Sidecar => sidecar::TABLES,
        ObjectKind::Gateway => gateway::TABLES,
        ObjectKind::Service => service::TABLES,
        ObjectKind::PeerAuthentication => security::PEER_AUTHENTICATION,
        ObjectKind::RequestAuthentication => security::REQUEST_AUTHENTICATION,
        ObjectKind::AuthorizationPolicy => security::AUTHORIZATION_POLICY,
        ObjectKind::MeshConfig => mesh_config::TABLES,
        ObjectKind::Telemetry => telemetry::TABLES,
        ObjectKind::HttpRoute => http_route::TABLES,
        ObjectKind::GrpcRoute => grpc_route::TABLES,
        ObjectKind::ReferenceGrant => reference_grant::TABLES,
        ObjectKind::KubernetesGateway => kubernetes_gateway::TABLES,
        ObjectKind::TlsRoute => connection_route::TLS,
        ObjectKind::TcpRoute => connection_route::TCP,
        ObjectKind::ListenerSet => kubernetes_gateway::LISTENER_SET,
        ObjectKind::BackendTlsPolicy => backend_tls_policy::TABLES,
        ObjectKind::BackendTrafficPolicy => backend_traffic_policy::TABLES,
        ObjectKind::RateLimit => rate_limit::TABLES,
        ObjectKind::Overload => overload::TABLES,
        ObjectKind::WasmPlugin => wasm_plugin::TABLES,
        ObjectKind::RequestRules => request_rules::TABLES,
        ObjectKind::FilterSchema => filter_schema::TABLES,
        ObjectKind::Quota => quota::TABLES,
        ObjectKind::EnvoyFilter | ObjectKind::Secret | ObjectKind::ConfigMap | ObjectKind::Foreign(_) => &[],
    }
}

/// What the table says of a field: its own row, or that of the nearest parent which has one.
pub fn row(kind: ObjectKind, path: &str) -> Option<&'static Row> {
    let mut best: Option<(usize, &'static Row)> = None;
    for (prefix, rows) in tables(kind) {
        let Some(rest) = below(path, prefix) else {
            continue;
        };
        for row in *rows {
            let covers = rest == row.path || below(rest, row.path).is_some();
            let length = prefix.len() + row.path.len();
            if covers && best.is_none_or(|(longest, _)| length > longest) {
                best = Some((length, row));
            }
        }
    }
    best.map(|(_, row)| row)
}

/// Whether the path of this row is the whole path.
pub fn is_own_row(row: &Row, path: &str) -> bool {
    path.strip_suffix(row.path).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn has_rows_below(kind: ObjectKind, path: &str) -> bool {
    tables(kind).iter().any(|(prefix, rows)| match below(path, prefix) {
        Some(rest) => rows.iter().any(|row| below(row.path, rest).is_some()),
        None => path == *prefix || below(prefix, path).is_some(),
    })
}

fn below<'p>(path: &'p str, parent: &str) -> Option<&'p str> {
    if parent.is_empty() {
        return Some(path);
    }
    path.strip_prefix(parent)?.strip_prefix('.')
}

/// Reports everything in a specification that this project's library does not enforce.
pub fn report(kind: ObjectKind, spec: &Node, d: &mut Decoder<'_>) {
    walk(kind, spec, &mut |written| {
        let Written { path, shown, key, value, becomes } = written;
        match becomes {
            Becomes::Enforced => {}
            Becomes::Idle => d.idle(kind.name(), path, key.span),
            Becomes::Instead(instead) => {
                // Calls fail until it is built, rather than travel unprotected: more than a warning.
                let severity = match path.ends_with("tls") && kind == ObjectKind::DestinationRule {
                    true => Severity::Error,
                    false => Severity::Warning,
                };
                let (code, when) = match needs_certificates(kind, value) {
                    true => (
                        Code::NeedsCertificates,
                        "where the control plane issues no certificates (it does with --ca-dir, --state-dir or --dev)",
                    ),
                    false => (Code::NotSupportedYet, "not supported yet"),
                };
                d.report_at(key.span, shown.to_owned(), severity, code, format!("{when}: {instead}"));
            }
        }
    });
}

/// A field that is written somewhere.
#[derive(Debug)]
pub struct Written<'n> {
    /// Its path below `spec`, without indexes and keys of maps.
    pub path: &'n str,
    /// The same with them.
    pub shown: &'n str,
    /// Its name.
    pub key: &'n Key,
    /// What it says.
    pub value: &'n Node,
    /// What becomes of it.
    pub becomes: Becomes,
}

/// What becomes of a field that is written, for this project's library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Becomes {
    /// It does what Istio says.
    Enforced,
    /// It is about what this mesh does not have; nothing is lost.
    Idle,
    /// What happens instead.
    Instead(String),
}

/// Tells of every field in a specification that has a row of its own what becomes of it.
pub fn walk(kind: ObjectKind, spec: &Node, tell: &mut dyn FnMut(Written<'_>)) {
    visit(&mut Known { kind, places: HashMap::new() }, spec, "", "", tell);
}

/// What the tables of a kind say of the paths of one object. Each is looked up once: there may be thousands of rules, whose fields
/// have the same ones.
struct Known {
    kind: ObjectKind,
    places: HashMap<String, Place>,
}

/// What they say of a path.
#[derive(Clone, Copy)]
struct Place {
    /// Its own row.
    row: Option<&'static Row>,
    has_rows_below: bool,
}

impl Known {
    fn at(&mut self, path: &str) -> Place {
        if let Some(place) = self.places.get(path) {
            return *place;
        }
        let row = row(self.kind, path).filter(|row| is_own_row(row, path));
        let place = Place { row, has_rows_below: has_rows_below(self.kind, path) };
        self.places.insert(path.to_owned(), place);
        place
    }
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { [parent, ".", name].concat() }
}

fn visit(known: &mut Known, node: &Node, path: &str, shown: &str, tell: &mut dyn FnMut(Written<'_>)) {
    if let Value::Seq(items) = &node.value
        && (path.is_empty() || known.at(path).has_rows_below)
    {
        for (index, item) in items.iter().enumerate() {
            visit(known, item, path, &format!("{shown}[{index}]"), tell);
        }
        return;
    }
    for (key, value) in node.entries() {
        if value.value == Value::Null {
            continue;
        }
        let (path, shown) = (join(path, &key.name), join(shown, &key.name));
        let place = known.at(&path);
        if let Some(row) = place.row {
            let (becomes, is_last) = match row.library {
                Enforced => (Some(Becomes::Enforced), false),
                Indifferent => (Some(Becomes::Idle), true),
                NotYet(instead) => (Some(Becomes::Instead(instead.to_owned())), true),
                Partly(judge) => match judge(value) {
                    Some(instead) => (Some(Becomes::Instead(instead)), true),
                    None => (Some(Becomes::Enforced), false),
                },
                MostlyIndifferent(judge) => match judge(value) {
                    Some(instead) => (Some(Becomes::Instead(instead)), true),
                    None => {
                        // What has rows of its own speaks for itself, and of the rest each field does.
                        for (key, value) in value.entries() {
                            let (path, shown) = (join(&path, &key.name), join(&shown, &key.name));
                            let place = known.at(&path);
                            let has_rows = place.has_rows_below || place.row.is_some();
                            if !has_rows && value.value != Value::Null {
                                tell(Written { path: &path, shown: &shown, key, value, becomes: Becomes::Idle });
                            }
                        }
                        (value.entries().is_empty().then_some(Becomes::Idle), false)
                    }
                },
            };
            if let Some(becomes) = becomes {
                tell(Written { path: &path, shown: &shown, key, value, becomes });
            }
            if is_last {
                continue;
            }
        }
        if place.has_rows_below {
            visit(known, value, &path, &shown, tell);
        }
    }
}

/// Whether what is not enforced of a field is, by a control plane that issues certificates.
fn needs_certificates(kind: ObjectKind, value: &Node) -> bool {
    let mode = || value.get("mode").and_then(Node::as_str);
    match kind {
        ObjectKind::PeerAuthentication => true,
        ObjectKind::DestinationRule => mode() == Some("ISTIO_MUTUAL"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::decode::Decode;
    use crate::config::extensions::filter_schema::FilterSchema;
    use crate::config::extensions::overload::Overload;
    use crate::config::extensions::quota::Quota;
    use crate::config::extensions::rate_limit::RateLimit;
    use crate::config::extensions::request_rules::RequestRules;
    use crate::config::gateway_api::backend_tls_policy::BackendTlsPolicy;
    use crate::config::gateway_api::backend_traffic_policy::BackendTrafficPolicy;
    use crate::config::gateway_api::connection_route::{TcpRoute, TlsRoute};
    use crate::config::gateway_api::gateway::KubernetesGateway;
    use crate::config::gateway_api::grpc_route::GrpcRoute;
    use crate::config::gateway_api::http_route::HttpRoute;
    use crate::config::gateway_api::listener_set::ListenerSet;
    use crate::config::gateway_api::reference_grant::ReferenceGrant;
    use crate::config::istio::destination_rule::DestinationRule;
    use crate::config::istio::gateway::Gateway;
    use crate::config::istio::mesh_config::MeshConfig;
    use crate::config::istio::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
    use crate::config::istio::service::Service;
    use crate::config::istio::service_entry::ServiceEntry;
    use crate::config::istio::sidecar::Sidecar;
    use crate::config::istio::telemetry::Telemetry;
    use crate::config::istio::virtual_service::VirtualService;
    use crate::config::istio::wasm_plugin::WasmPlugin;
    use crate::config::istio::workload_entry::WorkloadEntry;
    use crate::config::istio::workload_group::WorkloadGroup;

    fn fields(kind: ObjectKind) -> Vec<String> {
        let mut out = Vec::new();
        match kind {
            ObjectKind::VirtualService => VirtualService::fields("", &mut out),
            ObjectKind::DestinationRule => DestinationRule::fields("", &mut out),
            ObjectKind::ServiceEntry => ServiceEntry::fields("", &mut out),
            ObjectKind::WorkloadEntry => WorkloadEntry::fields("", &mut out),
            ObjectKind::WorkloadGroup => WorkloadGroup::fields("", &mut out),
            ObjectKind::Sidecar => Sidecar::fields("", &mut out),
            ObjectKind::Gateway => Gateway::fields("", &mut out),
            ObjectKind::Service => Service::fields("", &mut out),
            ObjectKind::PeerAuthentication => PeerAuthentication::fields("", &mut out),
            ObjectKind::RequestAuthentication => RequestAuthentication::fields("", &mut out),
            ObjectKind::AuthorizationPolicy => AuthorizationPolicy::fields("", &mut out),
            ObjectKind::MeshConfig => MeshConfig::fields("", &mut out),
            ObjectKind::Telemetry => Telemetry::fields("", &mut out),
            ObjectKind::HttpRoute => HttpRoute::fields("", &mut out),
            ObjectKind::GrpcRoute => GrpcRoute::fields("", &mut out),
            ObjectKind::ReferenceGrant => ReferenceGrant::fields("", &mut out),
            ObjectKind::KubernetesGateway => KubernetesGateway::fields("", &mut out),
            ObjectKind::TlsRoute => TlsRoute::fields("", &mut out),
            ObjectKind::TcpRoute => TcpRoute::fields("", &mut out),
            ObjectKind::ListenerSet => ListenerSet::fields("", &mut out),
            ObjectKind::BackendTlsPolicy => BackendTlsPolicy::fields("", &mut out),
            ObjectKind::BackendTrafficPolicy => BackendTrafficPolicy::fields("", &mut out),
            ObjectKind::RateLimit => RateLimit::fields("", &mut out),
            ObjectKind::Overload => Overload::fields("", &mut out),
            ObjectKind::WasmPlugin => WasmPlugin::fields("", &mut out),
            ObjectKind::RequestRules => RequestRules::fields("", &mut out),
            ObjectKind::FilterSchema => FilterSchema::fields("", &mut out),
            ObjectKind::Quota => Quota::fields("", &mut out),
            ObjectKind::EnvoyFilter | ObjectKind::Secret | ObjectKind::ConfigMap | ObjectKind::Foreign(_) => {}
        }
        out
    }

    #[test]
    fn every_field_of_every_kind_is_enforced_or_reported() {
        for kind in ObjectKind::ALL {
            let fields = fields(kind);
            assert!(fields.len() >= 2, "{kind:?}");
            for path in fields {
                let row = row(kind, &path).unwrap_or_else(|| panic!("{kind:?} {path} has no row"));
                let covered = is_own_row(row, &path) || matches!(row.library, NotYet(_) | Partly(_));
                assert!(covered, "{kind:?} {path} hides behind {}", row.path);
            }
        }
    }

    #[test]
    fn every_row_is_a_field() {
        for kind in ObjectKind::ALL {
            let fields = fields(kind);
            for (prefix, rows) in tables(kind) {
                for row in *rows {
                    let path = if prefix.is_empty() { row.path.to_owned() } else { format!("{prefix}.{}", row.path) };
                    let known = fields.iter().any(|field| *field == path || below(field, &path).is_some());
                    assert!(known, "{kind:?} has no field {path}");
                }
            }
        }
    }
}
