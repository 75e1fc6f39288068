//! What becomes of annotations of our own (`config::extensions`), by their keys.

use super::{Row, http_only};

/// Each of them.
pub const ANNOTATIONS: &[Row] = &[
    http_only("mesh-control/hedge", "gRPC's clients begin no try beside another one"),
    http_only("mesh-control/sticky-split", "gRPC's clients split calls by chance"),
];

/// What becomes of the one of this key.
pub fn annotation(key: &str) -> Option<&'static Row> {
    ANNOTATIONS.iter().find(|row| row.path == key)
}
