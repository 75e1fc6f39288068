//! What becomes of the fields of the kinds that guard workloads. Where such an object cannot be enforced, workloads that it
//! selects answer every request with the reason (`policy/security.rs`), so who is selected is honoured, and for whom.

use super::Support::{Enforced, Indifferent, Partly};
use super::{Row, Tables, both, http_only};
use crate::config::node::Node;

pub(super) const PEER_AUTHENTICATION: Tables = &[("", PEER)];
pub(super) const REQUEST_AUTHENTICATION: Tables = &[
    ("", REQUEST),
    ("jwtRules", TOKENS),
    ("jwtRules.fromHeaders", TOKEN_HEADER),
    ("jwtRules.outputClaimToHeaders", CLAIM_HEADER),
    ("targetRef", TARGET),
    ("targetRefs", TARGET),
];
pub(super) const AUTHORIZATION_POLICY: Tables = &[
    ("", AUTHORIZATION),
    ("rules.from.source", SOURCE),
    ("rules.to.operation", OPERATION),
    ("rules.when", CONDITION),
    ("targetRef", TARGET),
    ("targetRefs", TARGET),
];

const PEER: &[Row] =
    &[both("selector.matchLabels", Enforced), both("mtls.mode", Partly(mode)), both("portLevelMtls", Partly(modes))];

const TARGET: &[Row] =
    &[both("group", Enforced), both("kind", Enforced), both("name", Enforced), both("namespace", Indifferent)];

const REQUEST: &[Row] = &[both("selector.matchLabels", Enforced)];

const NO_SERVER: &str = "gRPC's servers look at no token; every call of those that it is for fails";

const TOKENS: &[Row] = &[
    http_only("issuer", NO_SERVER),
    http_only("audiences", NO_SERVER),
    http_only("jwksUri", NO_SERVER),
    http_only("jwks", NO_SERVER),
    http_only("fromParams", NO_SERVER),
    http_only("fromCookies", NO_SERVER),
    http_only("outputPayloadToHeader", NO_SERVER),
    http_only("forwardOriginalToken", NO_SERVER),
    http_only("timeout", NO_SERVER),
    http_only("spaceDelimitedClaims", NO_SERVER),
];

const TOKEN_HEADER: &[Row] = &[http_only("name", NO_SERVER), http_only("prefix", NO_SERVER)];

const CLAIM_HEADER: &[Row] = &[http_only("header", NO_SERVER), http_only("claim", NO_SERVER)];

const AUTHORIZATION: &[Row] = &[
    both("selector.matchLabels", Enforced),
    Row { path: "action", library: Enforced, grpc: Partly(action) },
    http_only("provider.name", "gRPC's servers ask nobody; every call of those that the policy is for fails"),
];

const SOURCE: &[Row] = &[
    both("principals", Enforced),
    both("notPrincipals", Enforced),
    http_only("requestPrincipals", NO_SERVER),
    http_only("notRequestPrincipals", NO_SERVER),
    both("namespaces", Enforced),
    both("notNamespaces", Enforced),
    both("ipBlocks", Enforced),
    both("notIpBlocks", Enforced),
    both("remoteIpBlocks", Enforced),
    both("notRemoteIpBlocks", Enforced),
    both("serviceAccounts", Enforced),
    both("notServiceAccounts", Enforced),
    both("trustDomains", Enforced),
    both("notTrustDomains", Enforced),
];

const OPERATION: &[Row] = &[
    both("hosts", Enforced),
    both("notHosts", Enforced),
    both("ports", Enforced),
    both("notPorts", Enforced),
    both("methods", Enforced),
    both("notMethods", Enforced),
    both("paths", Enforced),
    both("notPaths", Enforced),
];

const CONDITION: &[Row] = &[both("key", Partly(key)), both("values", Enforced), both("notValues", Enforced)];

fn mode(node: &Node) -> Option<String> {
    (node.as_str()? == "STRICT").then(|| "no server takes TLS, and workloads answer with 503".to_owned())
}

fn modes(ports: &Node) -> Option<String> {
    ports.entries().iter().find_map(|(_, port)| mode(port.get("mode")?))
}

fn action(node: &Node) -> Option<String> {
    (node.as_str()? == "CUSTOM")
        .then(|| "gRPC's servers ask nobody; every call of those that the policy is for fails".to_owned())
}

fn key(node: &Node) -> Option<String> {
    let key = node.as_str()?;
    let is_unknown = key.starts_with("experimental.");
    is_unknown.then(|| format!("{key} is not looked at; workloads that the policy is for answer with 503"))
}
