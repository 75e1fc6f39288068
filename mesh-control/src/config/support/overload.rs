//! What becomes of the fields of Overload, a kind of our own.

use super::Support::{Indifferent, NotYet, Partly};
use super::security::target;
use super::{Row, Tables, both, http_only};

pub(super) const TABLES: Tables =
    &[("", OVERLOAD), ("targetRefs", TARGET), ("concurrency", CONCURRENCY), ("throttle", THROTTLE)];

/// What gRPC's own clients and servers do with each.
const NOTHING: &str = "gRPC's own clients and servers know no such limits";

const OVERLOAD: &[Row] = &[http_only("selector.matchLabels", NOTHING)];

const TARGET: &[Row] = &[
    both("group", Indifferent),
    Row { path: "kind", library: Partly(target), grpc: NotYet(NOTHING) },
    http_only("name", NOTHING),
    both("namespace", Indifferent),
];

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
];

const THROTTLE: &[Row] = &[
    http_only("hosts", NOTHING),
    http_only("successPercent", NOTHING),
    http_only("window", NOTHING),
    http_only("maxRejectedPercent", NOTHING),
    http_only("minRequestsPerSecond", NOTHING),
    http_only("aggression", NOTHING),
];
