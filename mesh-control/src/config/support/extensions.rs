//! What becomes of annotations of our own (`config::extensions`), by their keys.

use super::Support::NotYet;
use super::{Row, both};

/// Each of them.
pub const ANNOTATIONS: &[Row] = &[both("mesh-control/sticky-split", NotYet("each request is split by chance"))];

/// What becomes of the one of this key.
pub fn annotation(key: &str) -> Option<&'static Row> {
    ANNOTATIONS.iter().find(|row| row.path == key)
}
