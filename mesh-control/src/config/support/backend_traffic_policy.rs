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
    Row { path: "sessionPersistence", library: Partly(session), grpc: NotYet(NO_SESSIONS) },
    http_only("sessionPersistence.sessionName", NO_SESSIONS),
    http_only("sessionPersistence.type", NO_SESSIONS),
    http_only("sessionPersistence.absoluteTimeout", NO_SESSIONS),
    both("sessionPersistence.idleTimeout", NotYet(NO_END)),
    http_only("sessionPersistence.cookieConfig.lifetimeType", NO_SESSIONS),
];

const AS_BEFORE: &str = "the Service is called as without the policy";
const NO_BUDGET: &str = "gRPC's clients have no such limit";
const NO_SESSIONS: &str = "calls of a session go to any endpoint";
const NO_END: &str = "a session stays for as long as its caller keeps the cookie or the header";

/// Of a session that ends at a time, a cookie can say so itself; nothing else is kept of it.
fn session(node: &Node) -> Option<String> {
    let text = |node: &Node, name: &str| node.get(name).and_then(Node::as_str).map(str::to_owned);
    let life = text(node, "absoluteTimeout")?;
    let lifetime = node.get("cookieConfig").and_then(|cookie| text(cookie, "lifetimeType"));
    let is_cookie = text(node, "type").is_none_or(|kind| kind == "Cookie");
    let is_kept = is_cookie
        && lifetime.as_deref() == Some("Permanent")
        && life.contains(|digit: char| ('1'..='9').contains(&digit));
    (!is_kept).then(|| format!("`absoluteTimeout` without a cookie that is `Permanent`; {NO_END}"))
}
