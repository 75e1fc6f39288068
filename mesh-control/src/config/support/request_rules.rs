//! What becomes of the fields of RequestRules, a kind of our own.

use super::{Row, Tables, http_only, workloads};

pub(super) const TABLES: Tables = &[("", RULES), ("targetRefs", TARGET), ("rules", RULE), ("processor", PROCESSOR)];

/// What gRPC's own clients and servers do with each.
const NOTHING: &str = "gRPC's own clients and servers know no such rules";

const RULES: &[Row] =
    &[http_only("selector.matchLabels", NOTHING), http_only("mode", NOTHING), http_only("hosts", NOTHING)];

const PROCESSOR: &[Row] = &[
    http_only("host", NOTHING),
    http_only("port", NOTHING),
    http_only("timeout", NOTHING),
    http_only("failureMode", NOTHING),
    http_only("request", NOTHING),
    http_only("response", NOTHING),
];

const TARGET: &[Row] = &workloads(NOTHING);

const RULE: &[Row] = &[
    http_only("name", NOTHING),
    http_only("when", NOTHING),
    http_only("allow", NOTHING),
    http_only("deny.status", NOTHING),
    http_only("deny.body", NOTHING),
    http_only("headers.request.set", NOTHING),
    http_only("headers.request.remove", NOTHING),
    http_only("headers.response.set", NOTHING),
    http_only("headers.response.remove", NOTHING),
];
