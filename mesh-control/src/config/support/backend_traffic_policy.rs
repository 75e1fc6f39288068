//! What becomes of the fields of an `XBackendTrafficPolicy`. gRPC's clients go by nothing of it.

use super::Support::{Indifferent, NotYet, Partly};
use super::backend_tls_policy::targets;
use super::{Row, Tables, both, http_only};
use crate::config::node::Node;

pub(super) const TABLES: Tables = &[("", POLICY)];

const POLICY: &[Row] = &[
    Row { path: "targetRefs", library: Partly(targets), grpc: Indifferent },
    http_only("targetRefs.group", AS_BEFORE),
    http_only("targetRefs.kind", AS_BEFORE),
    http_only("targetRefs.name", AS_BEFORE),
    http_only("retryConstraint.budget.percent", NO_BUDGET),
    http_only("retryConstraint.budget.interval", NO_BUDGET),
    http_only("retryConstraint.minRetryRate.count", NO_BUDGET),
    both("retryConstraint.minRetryRate.interval", NotYet("`count` is how many may be under way in any case")),
    http_only("sessionPersistence.sessionName", NO_SESSIONS),
    http_only("sessionPersistence.type", NO_SESSIONS),
    both("sessionPersistence.absoluteTimeout", NotYet(NO_END)),
    both("sessionPersistence.idleTimeout", NotYet(NO_END)),
    Row { path: "sessionPersistence.cookieConfig.lifetimeType", library: Partly(lifetime), grpc: NotYet(NO_SESSIONS) },
];

const AS_BEFORE: &str = "the Service is called as without the policy";
const NO_BUDGET: &str = "gRPC's clients have no such limit";
const NO_SESSIONS: &str = "calls of a session go to any endpoint";
const NO_END: &str = "a session stays for as long as its caller keeps the cookie or the header";

fn lifetime(node: &Node) -> Option<String> {
    let written = node.as_str().filter(|word| *word == "Permanent")?;
    Some(format!("{written}; the cookie is one of the caller's session"))
}
