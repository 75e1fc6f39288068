//! What becomes of the fields of a `WorkloadEntry`, alone or as a part of other objects.

use super::Support::{Enforced, Indifferent, Partly};
use super::{Row, Tables, both};
use crate::catalog::TLS_MODE;
use crate::config::node::Node;

pub(super) const TABLES: Tables = &[("", ENDPOINT)];

/// Of an endpoint, wherever it is written.
pub(super) const ENDPOINT: &[Row] = &[
    both("address", Partly(address)),
    both("ports", Enforced),
    both("labels", Partly(labels)),
    both("network", Partly(network)),
    both("locality", Enforced),
    both("weight", Enforced),
    // It names the certificate that the endpoint shows, and only rules say who may answer by mutual TLS.
    both("serviceAccount", Indifferent),
];

fn address(node: &Node) -> Option<String> {
    let is_unix = node.as_str()?.starts_with("unix://");
    is_unix.then(|| "unix sockets; the endpoint is left out".to_owned())
}

fn labels(node: &Node) -> Option<String> {
    let speaks_tls = node.get(TLS_MODE)?.as_str()? == "istio";
    speaks_tls.then(|| {
        format!(
            "{TLS_MODE}: an endpoint that is written down is called in plaintext, unless a DestinationRule says ISTIO_MUTUAL, \
             with subjectAltNames"
        )
    })
}

fn network(node: &Node) -> Option<String> {
    let is_set = !node.as_str()?.is_empty();
    is_set.then(|| "the endpoint is reached directly, without a gateway".to_owned())
}
