//! What becomes of the fields of a `WorkloadEntry`, alone or as a part of other objects.

use super::Support::{Enforced, Partly};
use super::{Row, Tables, both};
use crate::config::node::Node;

pub(super) const TABLES: Tables = &[("", ENDPOINT)];

/// Of an endpoint, wherever it is written.
pub(super) const ENDPOINT: &[Row] = &[
    both("address", Partly(address)),
    both("ports", Enforced),
    both("labels", Enforced),
    both("network", Partly(network)),
    both("locality", Enforced),
    both("weight", Enforced),
    both("serviceAccount", Enforced),
];

fn address(node: &Node) -> Option<String> {
    let is_unix = node.as_str()?.starts_with("unix://");
    is_unix.then(|| "unix sockets; the endpoint is left out".to_owned())
}

fn network(node: &Node) -> Option<String> {
    let is_set = !node.as_str()?.is_empty();
    is_set.then(|| "the endpoint is reached directly, without a gateway".to_owned())
}
