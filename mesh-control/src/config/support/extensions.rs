//! What becomes of annotations of our own (`config::extensions`), by their keys.

use super::Support::{Enforced, Indifferent, Partly};
use super::{Row, http_only};
use crate::config::node::Node;

/// Each of them.
pub const ANNOTATIONS: &[Row] = &[
    http_only("mesh-control/hedge", "gRPC's clients begin no try beside another one"),
    http_only("mesh-control/sticky-split", "gRPC's clients split calls by chance"),
    // gRPC's calls are never GETs.
    Row { path: "mesh-control/coalesce", library: Enforced, grpc: Indifferent },
    Row { path: "mesh-control/fallback", library: Enforced, grpc: Partly(answer) },
];

fn answer(value: &Node) -> Option<String> {
    value.as_str()?.starts_with("status=").then(|| "gRPC's clients fail the call".to_owned())
}

/// What becomes of the one of this key.
pub fn annotation(key: &str) -> Option<&'static Row> {
    ANNOTATIONS.iter().find(|row| row.path == key)
}
