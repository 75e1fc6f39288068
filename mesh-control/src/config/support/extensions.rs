//! What becomes of annotations of our own (`config::extensions`), by their keys.

use super::Support::{Enforced, Indifferent, Partly};
use super::{Row, both, http_only};
use crate::config::node::Node;

/// Each of them.
pub const ANNOTATIONS: &[Row] = &[
    http_only("mesh-control/hedge", "gRPC's clients begin no try beside another one"),
    http_only("mesh-control/sticky-split", "gRPC's clients split calls by chance"),
    // gRPC's calls are never GETs.
    Row { path: "mesh-control/coalesce", library: Enforced, grpc: Indifferent },
    Row { path: "mesh-control/fallback", library: Enforced, grpc: Partly(answer) },
    both("mesh-control/endpoint-subset", Enforced),
    http_only("mesh-control/health-check", "gRPC's clients do not ask endpoints how they are"),
    Row { path: "mesh-control/load-balancer", library: Enforced, grpc: Partly(grpc_balancer) },
];

fn answer(value: &Node) -> Option<String> {
    value.as_str()?.starts_with("status=").then(|| "gRPC's clients fail the call".to_owned())
}

fn grpc_balancer(node: &Node) -> Option<String> {
    let is_known = node.as_str()?.contains("weighted-by-load");
    (!is_known).then(|| "of two random endpoints, the one with fewer calls under way is picked".to_owned())
}

/// What becomes of the one of this key.
pub fn annotation(key: &str) -> Option<&'static Row> {
    ANNOTATIONS.iter().find(|row| row.path == key)
}
