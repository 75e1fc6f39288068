//! What becomes of the fields of a `BackendTLSPolicy`. gRPC's clients cannot do it, and do not call.

use super::Support::{Indifferent, NotYet, Partly};
use super::{Row, Tables, http_only, is_core_service};
use crate::config::node::Node;

/// The only word for authorities that a system has.
pub const SYSTEM: &str = "System";

pub(super) const TABLES: Tables = &[("", POLICY)];

const POLICY: &[Row] = &[
    Row { path: "targetRefs", library: Partly(targets), grpc: Indifferent },
    http_only("targetRefs.group", NOT_CALLED),
    http_only("targetRefs.kind", NOT_CALLED),
    http_only("targetRefs.name", NOT_CALLED),
    http_only("targetRefs.sectionName", NOT_CALLED),
    http_only("validation.caCertificateRefs.group", NOT_CALLED),
    http_only("validation.caCertificateRefs.kind", NOT_CALLED),
    http_only("validation.caCertificateRefs.name", NOT_CALLED),
    Row { path: "validation.wellKnownCACertificates", library: Partly(well_known), grpc: NotYet(NOT_CALLED) },
    http_only("validation.hostname", NOT_CALLED),
    http_only("validation.subjectAltNames.type", NOT_CALLED),
    http_only("validation.subjectAltNames.hostname", NOT_CALLED),
    http_only("validation.subjectAltNames.uri", NOT_CALLED),
    Row { path: "options", library: Partly(options), grpc: NotYet(NOT_CALLED) },
];

const NOT_CALLED: &str = "the Service is not called";

/// Targets that are none.
pub(super) fn targets(node: &Node) -> Option<String> {
    let text = |target: &Node, name: &str| target.get(name).and_then(Node::as_str).unwrap_or_default().to_owned();
    let is_service = |target: &&Node| is_core_service(&text(target, "group"), &text(target, "kind"));
    let other = node.items().iter().find(|target| !is_service(target))?;
    Some(format!("targets of kind {}; how these are called no policy says", text(other, "kind")))
}

fn options(node: &Node) -> Option<String> {
    let (option, _) = node.entries().first()?;
    Some(format!("option {}; the Service is not called", option.name))
}

fn well_known(node: &Node) -> Option<String> {
    let other = node.as_str().filter(|word| !matches!(*word, "" | SYSTEM))?;
    Some(format!("{other}; the Service is not called"))
}
