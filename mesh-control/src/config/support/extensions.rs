//! What becomes of annotations of our own (`config::extensions`), by their keys.

use super::Support::NotYet;
use super::{Row, both, http_only};

/// Each of them.
pub const ANNOTATIONS: &[Row] = &[
    http_only("mesh-control/hedge", "gRPC's clients begin no try beside another one"),
    both("mesh-control/sticky-split", NotYet("each request is split by chance")),
];

/// What becomes of the one of this key.
pub fn annotation(key: &str) -> Option<&'static Row> {
    ANNOTATIONS.iter().find(|row| row.path == key)
}
