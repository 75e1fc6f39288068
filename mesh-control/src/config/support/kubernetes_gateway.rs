//! What becomes of the fields of a `Gateway` of Gateway API. Gateways are Envoys, or programs of this project's; gRPC's clients are none.

use super::Support::{Indifferent, NotYet, Partly};
use super::gateway::at_gateway;
use super::{ObjectKind, Row, Tables, both};
use crate::config::node::Node;

/// The option of a listener that says whether its clients show certificates, as Istio has it.
pub const TERMINATE_MODE: &str = "gateway.istio.io/tls-terminate-mode";
/// The label that every namespace has, with its name.
pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Whether a parent of a route is a Gateway.
pub fn is_gateway(parent: &Node) -> bool {
    let text = |name: &str| parent.get(name).and_then(Node::as_str);
    is_gateway_kind(text("group"), text("kind"))
}

/// Whether a parent of a route is a Gateway by its group and its kind, which it is where neither is written.
pub fn is_gateway_kind(group: Option<&str>, kind: Option<&str>) -> bool {
    const GATEWAY: ObjectKind = ObjectKind::KubernetesGateway;
    group.is_none_or(|group| group == GATEWAY.group()) && kind.is_none_or(|kind| kind == GATEWAY.name())
}

pub(super) const TABLES: Tables = &[("", GATEWAY)];

const GATEWAY: &[Row] = &[
    at_gateway("gatewayClassName"),
    at_gateway("listeners.name"),
    at_gateway("listeners.hostname"),
    at_gateway("listeners.port"),
    Row { path: "listeners.protocol", library: Partly(protocol), grpc: Indifferent },
    at_gateway("listeners.tls.mode"),
    at_gateway("listeners.tls.certificateRefs.group"),
    at_gateway("listeners.tls.certificateRefs.kind"),
    at_gateway("listeners.tls.certificateRefs.name"),
    at_gateway("listeners.tls.certificateRefs.namespace"),
    Row { path: "listeners.tls.options", library: Partly(options), grpc: Indifferent },
    at_gateway("listeners.allowedRoutes.namespaces.from"),
    Row { path: "listeners.allowedRoutes.namespaces.selector.matchLabels", library: Partly(labels), grpc: Indifferent },
    Row {
        path: "listeners.allowedRoutes.namespaces.selector.matchExpressions.key",
        library: Partly(label),
        grpc: Indifferent,
    },
    at_gateway("listeners.allowedRoutes.namespaces.selector.matchExpressions.operator"),
    at_gateway("listeners.allowedRoutes.namespaces.selector.matchExpressions.values"),
    at_gateway("listeners.allowedRoutes.kinds.group"),
    at_gateway("listeners.allowedRoutes.kinds.kind"),
    Row { path: "addresses.type", library: Partly(address), grpc: Indifferent },
    at_gateway("addresses.value"),
    both("infrastructure.labels", Indifferent),
    both("infrastructure.annotations", Indifferent),
    both("infrastructure.parametersRef.group", Indifferent),
    both("infrastructure.parametersRef.kind", Indifferent),
    both("infrastructure.parametersRef.name", Indifferent),
    both("allowedListeners", NotYet("ListenerSets are not built")),
    both("tls.backend", NotYet("what is behind the gateway is shown the certificate of the mesh, or none")),
    at_gateway("tls.frontend.default.validation.caCertificateRefs.group"),
    at_gateway("tls.frontend.default.validation.caCertificateRefs.kind"),
    at_gateway("tls.frontend.default.validation.caCertificateRefs.name"),
    at_gateway("tls.frontend.default.validation.caCertificateRefs.namespace"),
    Row { path: "tls.frontend.default.validation.mode", library: Partly(validation), grpc: Indifferent },
    at_gateway("tls.frontend.perPort.port"),
    at_gateway("tls.frontend.perPort.tls.validation.caCertificateRefs.group"),
    at_gateway("tls.frontend.perPort.tls.validation.caCertificateRefs.kind"),
    at_gateway("tls.frontend.perPort.tls.validation.caCertificateRefs.name"),
    at_gateway("tls.frontend.perPort.tls.validation.caCertificateRefs.namespace"),
    Row { path: "tls.frontend.perPort.tls.validation.mode", library: Partly(validation), grpc: Indifferent },
    both("defaultScope", NotYet("routes name the Gateways that they are for")),
];

fn protocol(node: &Node) -> Option<String> {
    let other = node.as_str().filter(|name| !matches!(*name, "HTTP" | "HTTPS" | "TLS" | "TCP"))?;
    Some(format!("{other}; nobody listens there"))
}

fn options(node: &Node) -> Option<String> {
    let other = node.entries().iter().find(|(key, _)| key.name != TERMINATE_MODE)?;
    Some(format!("option {}; the listener is not served", other.0.name))
}

fn address(node: &Node) -> Option<String> {
    let other = node.as_str().filter(|kind| *kind != "Hostname")?;
    Some(format!("{other}; nobody here gives addresses out, and the Gateway is not served"))
}

fn labels(node: &Node) -> Option<String> {
    let other = node.entries().iter().find(|(key, _)| key.name != NAMESPACE_NAME)?;
    Some(unknown_label(&other.0.name))
}

fn label(node: &Node) -> Option<String> {
    node.as_str().filter(|key| *key != NAMESPACE_NAME).map(unknown_label)
}

fn unknown_label(key: &str) -> String {
    format!("label {key}; of namespaces only {NAMESPACE_NAME} is known, and none is selected")
}

fn validation(node: &Node) -> Option<String> {
    let is_it = node.as_str() == Some("AllowInsecureFallback");
    is_it.then(|| "clients may come without a certificate, and not with one that nobody vouches for".to_owned())
}
