//! What becomes of the fields of RateLimit, a kind of our own.

use super::{Row, Tables, counted, http_only, workloads};

pub(super) const TABLES: Tables =
    &[("", LIMIT), ("targetRefs", TARGET), ("rules", COUNTED), ("rules", RULE), ("service", SERVICE)];

/// What gRPC's own clients and servers do with each.
const NOTHING: &str = "gRPC's own clients and servers know no rate limits";

const LIMIT: &[Row] = &[
    http_only("selector.matchLabels", NOTHING),
    http_only("mode", NOTHING),
    http_only("hosts", NOTHING),
    http_only("perConnection", NOTHING),
    http_only("maxKeys", NOTHING),
    http_only("answer.status", NOTHING),
    http_only("answer.headers", NOTHING),
];

const SERVICE: &[Row] = &[
    http_only("host", NOTHING),
    http_only("port", NOTHING),
    http_only("domain", NOTHING),
    http_only("timeout", NOTHING),
    http_only("failureMode", NOTHING),
];

const TARGET: &[Row] = &workloads(NOTHING);

const COUNTED: &[Row] = &counted(NOTHING);

const RULE: &[Row] = &[
    http_only("limit.requests", NOTHING),
    http_only("limit.per", NOTHING),
    http_only("limit.burst", NOTHING),
    http_only("shadow", NOTHING),
];
