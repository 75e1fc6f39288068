//! What becomes of the fields of a `WorkloadGroup`.

use super::Support::{Enforced, Indifferent, NotYet};
use super::{Row, Tables, both, workload_entry};

pub(super) const TABLES: Tables = &[("", WORKLOAD_GROUP), ("template", workload_entry::ENDPOINT)];

const WORKLOAD_GROUP: &[Row] = &[
    both("metadata.labels", Enforced),
    both("metadata.annotations", Indifferent),
    // A member has a certificate, or says that it has none.
    both("template.labels", Enforced),
    both("template.address", NotYet("a member is reached where it registered itself")),
    both("probe", NotYet("a member is healthy while it is connected")),
];
