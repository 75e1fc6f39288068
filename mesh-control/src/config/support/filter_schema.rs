//! What becomes of the fields of FilterSchema, a kind of our own: they check others, and nobody is told of them.

use super::Support::Enforced;
use super::{Row, Tables, both};

pub(super) const TABLES: Tables = &[("", SCHEMA)];

const SCHEMA: &[Row] = &[both("filter", Enforced), both("schema", Enforced)];
