//! What becomes of the fields of a `TLSRoute` and a `TCPRoute`. They are for gateways; gRPC's clients are none.

use super::Support::{Indifferent, NotYet, Partly};
use super::gateway::at_gateway;
use super::http_route::NO_DEFAULT;
use super::{Row, Tables, both, listens};
use crate::config::node::Node;

pub(super) const TLS: Tables = &[("", ROUTE), ("", &[at_gateway("hostnames")])];
pub(super) const TCP: Tables = &[("", ROUTE)];

const ROUTE: &[Row] = &[
    Row { path: "parentRefs", library: Partly(parents), grpc: Indifferent },
    at_gateway("parentRefs.group"),
    at_gateway("parentRefs.kind"),
    at_gateway("parentRefs.namespace"),
    at_gateway("parentRefs.name"),
    at_gateway("parentRefs.sectionName"),
    at_gateway("parentRefs.port"),
    both("useDefaultGateways", NotYet(NO_DEFAULT)),
    both("rules.name", Indifferent),
    at_gateway("rules.backendRefs.group"),
    at_gateway("rules.backendRefs.kind"),
    at_gateway("rules.backendRefs.name"),
    at_gateway("rules.backendRefs.namespace"),
    at_gateway("rules.backendRefs.port"),
    at_gateway("rules.backendRefs.weight"),
];

/// Parents that have no listeners.
fn parents(node: &Node) -> Option<String> {
    let other = node.items().iter().find(|parent| listens(parent).is_none())?;
    let kind = other.get("kind").and_then(Node::as_str).unwrap_or("Gateway");
    Some(format!(
        "parents of kind {kind}; connections of the mesh have rules of a VirtualService, and these are for Gateways"
    ))
}
