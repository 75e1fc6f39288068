//! What becomes of the fields of Quota, a kind of our own.

use super::Support::{Indifferent, NotYet, Partly};
use super::security::target;
use super::{Row, Tables, both, http_only};

pub(super) const TABLES: Tables = &[("", QUOTA), ("targetRefs", TARGET), ("rules", RULE)];

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

const TARGET: &[Row] = &[
    both("group", Indifferent),
    Row { path: "kind", library: Partly(target), grpc: NotYet(NOTHING) },
    http_only("name", NOTHING),
    both("namespace", Indifferent),
];

const RULE: &[Row] = &[
    http_only("name", NOTHING),
    http_only("match.method", NOTHING),
    http_only("match.path", NOTHING),
    http_only("match.headers", NOTHING),
    http_only("by.header", NOTHING),
    http_only("by.query", NOTHING),
    http_only("by.claim", NOTHING),
    http_only("by.pathTemplates", NOTHING),
    http_only("by.client", NOTHING),
    http_only("by.remoteAddress.v4Bits", NOTHING),
    http_only("by.remoteAddress.v6Bits", NOTHING),
    http_only("by.method", NOTHING),
    http_only("limit.requests", NOTHING),
    http_only("limit.per", NOTHING),
    http_only("shadow", NOTHING),
];
