//! What becomes of the fields of a `Gateway` and a `ListenerSet` of Gateway API. Gateways are Envoys, or programs of this project's; gRPC's clients are none.

use super::Support::{Indifferent, NotYet, Partly};
use super::gateway::at_gateway;
use super::{ObjectKind, Row, Tables, both};
use crate::config::node::Node;

/// The option of a listener that says whether its clients show certificates, as Istio has it.
pub const TERMINATE_MODE: &str = "gateway.istio.io/tls-terminate-mode";
/// The label that every namespace has, with its name.
pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The kind of a parent of a route, where that has listeners.
pub fn listens(parent: &Node) -> Option<ObjectKind> {
    let text = |name: &str| parent.get(name).and_then(Node::as_str);
    listening_kind(text("group"), text("kind"))
}

/// The kind of what has listeners, by its group and its kind: a Gateway where neither is written, or a ListenerSet.
pub fn listening_kind(group: Option<&str>, kind: Option<&str>) -> Option<ObjectKind> {
    const SET: ObjectKind = ObjectKind::ListenerSet;
    if is_gateway_kind(group, kind) {
        return Some(ObjectKind::KubernetesGateway);
    }
    let is_set = kind == Some(SET.name()) && group.is_none_or(|group| group == SET.group());
    is_set.then_some(SET)
}

/// Whether something is a Gateway by its group and its kind, which it is where neither is written.
pub fn is_gateway_kind(group: Option<&str>, kind: Option<&str>) -> bool {
    const GATEWAY: ObjectKind = ObjectKind::KubernetesGateway;
    group.is_none_or(|group| group == GATEWAY.group()) && kind.is_none_or(|kind| kind == GATEWAY.name())
}

pub(super) const TABLES: Tables =
    &[("", GATEWAY), ("listeners", LISTENER), ("allowedListeners.namespaces", NAMESPACES)];
pub(super) const LISTENER_SET: Tables = &[("", SET), ("listeners", LISTENER)];

const GATEWAY: &[Row] = &[
    at_gateway("gatewayClassName"),
    Row { path: "addresses.type", library: Partly(address), grpc: Indifferent },
    at_gateway("addresses.value"),
    both("infrastructure.labels", Indifferent),
    both("infrastructure.annotations", Indifferent),
    both("infrastructure.parametersRef.group", Indifferent),
    both("infrastructure.parametersRef.kind", Indifferent),
    both("infrastructure.parametersRef.name", Indifferent),
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

const SET: &[Row] = &[
    Row { path: "parentRef", library: Partly(parent), grpc: Indifferent },
    at_gateway("parentRef.group"),
    at_gateway("parentRef.kind"),
    at_gateway("parentRef.name"),
    at_gateway("parentRef.namespace"),
];

const LISTENER: &[Row] = &[
    at_gateway("name"),
    at_gateway("hostname"),
    at_gateway("port"),
    Row { path: "protocol", library: Partly(protocol), grpc: Indifferent },
    at_gateway("tls.mode"),
    at_gateway("tls.certificateRefs.group"),
    at_gateway("tls.certificateRefs.kind"),
    at_gateway("tls.certificateRefs.name"),
    at_gateway("tls.certificateRefs.namespace"),
    Row { path: "tls.options", library: Partly(options), grpc: Indifferent },
    at_gateway("allowedRoutes.namespaces.from"),
    Row { path: "allowedRoutes.namespaces.selector.matchLabels", library: Partly(labels), grpc: Indifferent },
    Row { path: "allowedRoutes.namespaces.selector.matchExpressions.key", library: Partly(label), grpc: Indifferent },
    at_gateway("allowedRoutes.namespaces.selector.matchExpressions.operator"),
    at_gateway("allowedRoutes.namespaces.selector.matchExpressions.values"),
    at_gateway("allowedRoutes.kinds.group"),
    at_gateway("allowedRoutes.kinds.kind"),
];

/// Whose ListenerSets may be attached.
const NAMESPACES: &[Row] = &[
    at_gateway("from"),
    Row { path: "selector.matchLabels", library: Partly(labels), grpc: Indifferent },
    Row { path: "selector.matchExpressions.key", library: Partly(label), grpc: Indifferent },
    at_gateway("selector.matchExpressions.operator"),
    at_gateway("selector.matchExpressions.values"),
];

/// A parent that is no Gateway.
fn parent(node: &Node) -> Option<String> {
    let text = |name: &str| node.get(name).and_then(Node::as_str);
    let kind = text("kind").unwrap_or(ObjectKind::KubernetesGateway.name());
    (!is_gateway_kind(text("group"), text("kind"))).then(|| format!("a parent of kind {kind}; nobody listens there"))
}

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
