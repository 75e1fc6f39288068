//! What becomes of the fields of a `ServiceEntry`.

use super::Support::{Enforced, Indifferent, Partly};
use super::{Row, Tables, both, workload_entry};
use crate::config::node::Node;

pub(super) const TABLES: Tables = &[("", SERVICE_ENTRY), ("endpoints", workload_entry::ENDPOINT)];

const SERVICE_ENTRY: &[Row] = &[
    both("hosts", Enforced),
    both("addresses", Enforced),
    both("ports.number", Enforced),
    Row { path: "ports.protocol", library: Partly(transport), grpc: Indifferent },
    both("ports.name", Enforced),
    both("ports.targetPort", Enforced),
    // Whether endpoints that have a service account speak mutual TLS.
    both("location", Enforced),
    both("resolution", Enforced),
    both("workloadSelector.labels", Enforced),
    both("exportTo", Enforced),
    both("subjectAltNames", Enforced),
];

fn transport(node: &Node) -> Option<String> {
    node.as_str()?.eq_ignore_ascii_case("udp").then(|| "UDP; the port is left out".to_owned())
}
