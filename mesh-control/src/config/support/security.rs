//! What becomes of the fields of the kinds that guard workloads. None is enforced: workloads that such an object selects answer
//! every request with the reason (`policy/security.rs`), so who is selected is honoured, and for whom.

use super::Support::{Enforced, Indifferent, NotYet, Partly};
use super::{Row, Tables, both};
use crate::config::node::Node;

pub(super) const PEER_AUTHENTICATION: Tables = &[("", PEER)];
pub(super) const REQUEST_AUTHENTICATION: Tables = &[("", REQUEST), ("targetRef", TARGET), ("targetRefs", TARGET)];
pub(super) const AUTHORIZATION_POLICY: Tables = &[("", AUTHORIZATION), ("targetRef", TARGET), ("targetRefs", TARGET)];

const PEER: &[Row] =
    &[both("selector.matchLabels", Enforced), both("mtls.mode", Partly(mode)), both("portLevelMtls", Partly(modes))];

const TARGET: &[Row] =
    &[both("group", Indifferent), both("kind", Partly(target)), both("name", Enforced), both("namespace", Indifferent)];

const REQUEST: &[Row] = &[both("selector.matchLabels", Enforced), both("jwtRules", NotYet("no token is looked at"))];

const AUTHORIZATION: &[Row] = &[
    both("selector.matchLabels", Enforced),
    both("rules", NotYet("no request is looked at")),
    both("action", Partly(action)),
    both("provider", NotYet("nobody is asked")),
];

fn mode(node: &Node) -> Option<String> {
    (node.as_str()? == "STRICT").then(|| "no server takes TLS".to_owned())
}

fn modes(ports: &Node) -> Option<String> {
    ports.entries().iter().find_map(|(_, port)| mode(port.get("mode")?))
}

fn target(node: &Node) -> Option<String> {
    let kind = node.as_str()?;
    kind.starts_with("Gateway").then(|| "gateways are not built; no workload is selected".to_owned())
}

fn action(node: &Node) -> Option<String> {
    (node.as_str()? == "AUDIT").then(|| "no request is marked".to_owned())
}
