//! What becomes of the fields of Overload, a kind of our own.

use super::{Row, Tables, http_only, workloads};

pub(super) const TABLES: Tables =
    &[("", OVERLOAD), ("targetRefs", TARGET), ("concurrency", CONCURRENCY), ("throttle", THROTTLE)];

/// What gRPC's own clients and servers do with each.
const NOTHING: &str = "gRPC's own clients and servers know no such limits";

const OVERLOAD: &[Row] = &[http_only("selector.matchLabels", NOTHING)];

const TARGET: &[Row] = &workloads(NOTHING);

const CONCURRENCY: &[Row] = &[
    http_only("max", NOTHING),
    http_only("adaptive.min", NOTHING),
    http_only("adaptive.interval", NOTHING),
    http_only("adaptive.percentile", NOTHING),
    http_only("adaptive.tolerancePercent", NOTHING),
    http_only("adaptive.unloaded.time", NOTHING),
    http_only("adaptive.unloaded.every", NOTHING),
    http_only("adaptive.unloaded.requests", NOTHING),
    http_only("adaptive.unloaded.concurrency", NOTHING),
    http_only("sheddablePercent", NOTHING),
    http_only("status", NOTHING),
    http_only("queue.max", NOTHING),
    http_only("queue.timeout", NOTHING),
    http_only("queue.by.header", NOTHING),
    http_only("queue.by.query", NOTHING),
    http_only("queue.by.claim", NOTHING),
    http_only("queue.by.pathTemplates", NOTHING),
    http_only("queue.by.client", NOTHING),
    http_only("queue.by.remoteAddress.v4Bits", NOTHING),
    http_only("queue.by.remoteAddress.v6Bits", NOTHING),
    http_only("queue.by.method", NOTHING),
    http_only("queue.by.expression", NOTHING),
    http_only("queue.weights", NOTHING),
];

const THROTTLE: &[Row] = &[
    http_only("hosts", NOTHING),
    http_only("successPercent", NOTHING),
    http_only("window", NOTHING),
    http_only("maxRejectedPercent", NOTHING),
    http_only("minRequestsPerSecond", NOTHING),
    http_only("aggression", NOTHING),
];
