//! What becomes of the fields of a `ReferenceGrant`.

use super::Support::Enforced;
use super::{Row, Tables, both};

pub(super) const TABLES: Tables = &[("", REFERENCE_GRANT)];

const REFERENCE_GRANT: &[Row] = &[
    both("from.group", Enforced),
    both("from.kind", Enforced),
    both("from.namespace", Enforced),
    both("to.group", Enforced),
    both("to.kind", Enforced),
    both("to.name", Enforced),
];
