//! What becomes of the fields of Quota, a kind of our own.

use super::{Row, Tables, counted, http_only, workloads};

pub(super) const TABLES: Tables = &[("", QUOTA), ("targetRefs", TARGET), ("rules", COUNTED), ("rules", RULE)];

/// What gRPC's own clients and servers do with each.
const NOTHING: &str = "gRPC's own clients and servers know no quotas";

const QUOTA: &[Row] = &[
    http_only("selector.matchLabels", NOTHING),
    http_only("mode", NOTHING),
    http_only("hosts", NOTHING),
    http_only("failureMode", NOTHING),
    http_only("unassigned", NOTHING),
    http_only("reportEvery", NOTHING),
    http_only("answer.status", NOTHING),
];

const TARGET: &[Row] = &workloads(NOTHING);

const COUNTED: &[Row] = &counted(NOTHING);

const RULE: &[Row] =
    &[http_only("limit.requests", NOTHING), http_only("limit.per", NOTHING), http_only("shadow", NOTHING)];
