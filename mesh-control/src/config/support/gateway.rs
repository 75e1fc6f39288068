//! What becomes of the fields of a `Gateway` of Istio. Gateways are Envoys, or programs of this project's; gRPC's clients are none.

use super::Support::{Enforced, Indifferent, NotYet, Partly};
use super::{Row, Tables, both};
use crate::config::node::Node;

pub(super) const TABLES: Tables = &[("", GATEWAY)];

const GATEWAY: &[Row] = &[
    at_gateway("selector"),
    at_gateway("servers.port.number"),
    Row { path: "servers.port.protocol", library: Partly(protocol), grpc: Indifferent },
    at_gateway("servers.port.name"),
    both("servers.port.targetPort", Indifferent),
    at_gateway("servers.bind"),
    at_gateway("servers.hosts"),
    at_gateway("servers.tls.httpsRedirect"),
    at_gateway("servers.tls.mode"),
    by_an_envoy("servers.tls.serverCertificate"),
    by_an_envoy("servers.tls.privateKey"),
    by_an_envoy("servers.tls.caCertificates"),
    by_an_envoy("servers.tls.caCrl"),
    at_gateway("servers.tls.credentialName"),
    at_gateway("servers.tls.credentialNames"),
    by_an_envoy("servers.tls.tlsCertificates.serverCertificate"),
    by_an_envoy("servers.tls.tlsCertificates.privateKey"),
    both("servers.tls.tlsCertificates.caCertificates", NotYet("`caCertificates` of `tls` is for all of them")),
    at_gateway("servers.tls.caCertCredentialName"),
    at_gateway("servers.tls.subjectAltNames"),
    by_an_envoy("servers.tls.verifyCertificateSpki"),
    by_an_envoy("servers.tls.verifyCertificateHash"),
    at_gateway("servers.tls.minProtocolVersion"),
    at_gateway("servers.tls.maxProtocolVersion"),
    by_an_envoy("servers.tls.cipherSuites"),
    both("servers.tls.insecureSkipVerify", NotYet("certificates of clients are verified all the same")),
    both("servers.defaultEndpoint", NotYet("Istio does not read it either")),
    both("servers.name", Indifferent),
];

pub(super) const fn at_gateway(path: &'static str) -> Row {
    Row { path, library: Enforced, grpc: Indifferent }
}

const fn by_an_envoy(path: &'static str) -> Row {
    Row { path, library: Partly(closed_by_ours), grpc: Indifferent }
}

/// Whether no gateway takes what is spoken: datagrams, and tunnels.
pub fn is_foreign_to_gateways(protocol: &str) -> bool {
    ["UDP", "HBONE", "DOUBLEHBONE", "HTTP_PROXY"].iter().any(|name| name.eq_ignore_ascii_case(protocol))
}

fn protocol(node: &Node) -> Option<String> {
    let written = node.as_str().filter(|written| is_foreign_to_gateways(written))?;
    Some(format!("{written}; nobody listens there"))
}

/// What the library's decoder does not take makes the filter chain unusable.
fn closed_by_ours(_: &Node) -> Option<String> {
    Some("only an Envoy; `mesh-gateway` closes these hosts".to_owned())
}
