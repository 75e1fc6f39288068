//! Every field that Istio's protos have, kind by kind: known, and enforced or reported.
//!
//! The lists in `testdata/fields` are the fields of the protos; a field that Istio adds is added there, and
//! the tests then ask for it.

use std::collections::BTreeSet;

use mesh_control::config::decode::Decode;
use mesh_control::config::extensions::filter_schema::FilterSchema;
use mesh_control::config::extensions::overload::Overload;
use mesh_control::config::extensions::quota::Quota;
use mesh_control::config::extensions::rate_limit::RateLimit;
use mesh_control::config::extensions::request_rules::RequestRules;
use mesh_control::config::file::read;
use mesh_control::config::gateway_api::backend_tls_policy::BackendTlsPolicy;
use mesh_control::config::gateway_api::backend_traffic_policy::BackendTrafficPolicy;
use mesh_control::config::gateway_api::connection_route::{TcpRoute, TlsRoute};
use mesh_control::config::gateway_api::gateway::KubernetesGateway;
use mesh_control::config::gateway_api::grpc_route::GrpcRoute;
use mesh_control::config::gateway_api::http_route::HttpRoute;
use mesh_control::config::gateway_api::listener_set::ListenerSet;
use mesh_control::config::gateway_api::reference_grant::ReferenceGrant;
use mesh_control::config::istio::destination_rule::DestinationRule;
use mesh_control::config::istio::gateway::Gateway;
use mesh_control::config::istio::mesh_config::MeshConfig;
use mesh_control::config::istio::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use mesh_control::config::istio::service::Service;
use mesh_control::config::istio::service_entry::ServiceEntry;
use mesh_control::config::istio::sidecar::Sidecar;
use mesh_control::config::istio::telemetry::Telemetry;
use mesh_control::config::istio::virtual_service::VirtualService;
use mesh_control::config::istio::wasm_plugin::WasmPlugin;
use mesh_control::config::istio::workload_entry::WorkloadEntry;
use mesh_control::config::istio::workload_group::WorkloadGroup;
use mesh_control::config::node::{self, Node};
use mesh_control::config::support::{ObjectKind, Support, row};
use mesh_control::config::{Code, Source};

use crate::support::testdata;

fn typed(kind: ObjectKind) -> Vec<String> {
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
        ObjectKind::Foreign(_) => {}
        other => panic!("{other:?} has no fields here"),
    }
    out.sort();
    out
}

fn listed(kind: ObjectKind) -> Vec<String> {
    let path = testdata("fields").join(format!("{}.txt", kind.title()));
    let text = std::fs::read_to_string(path).unwrap();
    let mut fields: Vec<String> = text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    fields.sort();
    fields
}

/// Settings of a mesh that cannot stand beside those of `testdata/everything`.
const SHARES: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |-
    localityLbSetting: {distribute: [{from: r1, to: {r1: 100}}]}
";

/// Every file of `testdata/everything`, in which every field is written, but for a few.
fn everything() -> Vec<Source> {
    let files = std::fs::read_dir(testdata("everything")).unwrap().map(|entry| entry.unwrap().path());
    let shares = Source { name: "mesh-config-shares.yaml".into(), text: SHARES.into() };
    files
        .map(|path| Source {
            name: path.file_name().unwrap().to_string_lossy().into(),
            text: std::fs::read_to_string(&path).unwrap().into(),
        })
        .chain([shares])
        .collect()
}

#[test]
fn the_fields_that_are_read_are_those_of_the_protos() {
    for kind in ObjectKind::ALL {
        assert_eq!(typed(kind), listed(kind), "{kind:?}");
    }
}

/// The dotted paths of everything that is written, without indexes.
fn written(node: &Node, path: &str, out: &mut BTreeSet<String>) {
    if !path.is_empty() {
        out.insert(path.to_owned());
    }
    for item in node.items() {
        written(item, path, out);
    }
    for (key, value) in node.entries() {
        let path = if path.is_empty() { key.name.clone() } else { format!("{path}.{}", key.name) };
        written(value, &path, out);
    }
}

/// Whether a path is the field, apart from the key of a map somewhere in it.
fn is_field(path: &str, field: &str) -> bool {
    let mut segments = path.split('.');
    field.split('.').all(|wanted| segments.any(|segment| segment == wanted))
}

#[test]
fn fields_without_effect_are_noted_once_a_file_and_keep_no_error_out() {
    let entry = |number: usize, port: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\n\
             spec: {{clusterIP: 10.0.0.1, ports: [{{port: {port}, name: http}}]}}\n---\n"
        )
    };
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n---\n";
    let text: String = (0..300).map(|number| entry(number, "80")).collect();
    let text = text + &deployment.repeat(300) + &entry(300, "eighty");
    let file = read(Source { name: "many.yaml".into(), text: text.into() });
    assert!(file.rejected && file.diagnostics.len() < 210, "{}", file.diagnostics.len());
    let said: Vec<String> = file.diagnostics.iter().map(ToString::to_string).collect();
    let one =
        |part: &str| assert_eq!(said.iter().filter(|one| one.contains(part)).count(), 1, "{part}: {:#?}", &said[190..]);
    one("error[wrong-type]");
    one("many.yaml:4:8: info[ignored]: Service: clusterIP: without effect in this mesh (here and 300 times more)");
    one("info[file]: 100 more findings like these are left out");
}

#[test]
fn every_field_is_written_somewhere_and_then_enforced_or_reported() {
    for kind in ObjectKind::ALL {
        let mut paths = BTreeSet::new();
        let mut reported = BTreeSet::new();
        for source in everything() {
            for document in node::parse(&source).unwrap() {
                let version = document.get("apiVersion").and_then(Node::as_str).unwrap_or_default();
                match document.get("kind").and_then(Node::as_str) {
                    Some(written_kind) if kind.is(version, written_kind) => {
                        written(document.get("spec").unwrap(), "", &mut paths);
                    }
                    // The settings of the mesh are a text in a ConfigMap.
                    Some("ConfigMap") if kind == ObjectKind::MeshConfig => {
                        let text = document.get("data").unwrap().get("mesh").unwrap().as_str().unwrap();
                        let settings = Source { name: "mesh".into(), text: text.into() };
                        node::parse(&settings).unwrap().iter().for_each(|settings| written(settings, "", &mut paths));
                    }
                    _ => {}
                }
            }
            let file = read(source);
            assert!(!file.rejected, "{:?}", file.diagnostics);
            for finding in file.diagnostics {
                let of_kind = finding.object.as_deref().is_some_and(|id| id.starts_with(kind.title()));
                if of_kind && finding.code == Code::NotSupportedYet {
                    let field = finding.field.as_deref().unwrap();
                    let parts = field.split(['[', ']']);
                    // `http[0].match[1].port`: what stands in brackets is an index or a key.
                    let names: Vec<&str> = parts.step_by(2).map(|part| part.trim_matches('.')).collect();
                    let names: Vec<&str> = names.into_iter().filter(|part| !part.is_empty()).collect();
                    reported.insert(names.join("."));
                }
            }
        }
        let missing: Vec<String> =
            listed(kind).into_iter().filter(|field| !paths.iter().any(|path| is_field(path, field))).collect();
        assert!(missing.is_empty(), "{kind:?}: written nowhere: {missing:?}");
        for field in listed(kind) {
            let row = row(kind, &field).unwrap();
            if let Support::NotYet(_) = row.library {
                let is_reported = reported.iter().any(|path| {
                    *path == field || field.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('.'))
                });
                assert!(is_reported, "{kind:?} {field} is not reported: {reported:?}");
            }
        }
    }
}
