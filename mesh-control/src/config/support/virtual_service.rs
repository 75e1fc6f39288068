//! What becomes of the fields of a `VirtualService`.

use super::Support::{Enforced, NotYet, Partly};
use super::{Row, Tables, both, http_only};
use crate::config::node::{Node, Value};

pub(super) const TABLES: Tables = &[("", VIRTUAL_SERVICE)];

const NO_HEADERS: &str = "gRPC's xDS clients leave headers as they are";
const NO_REWRITE: &str = "gRPC's xDS clients leave path and authority as they are";
const AS_STATUS: &str = "a gRPC client fails the call with the status that the HTTP status maps to";
const NO_COPY: &str = "gRPC's xDS clients mirror nothing";
const NO_PSEUDO: &str = "gRPC's xDS clients do not match on pseudo headers";

const VIRTUAL_SERVICE: &[Row] = &[
    both("hosts", Enforced),
    both("gateways", Partly(gateways)),
    both("exportTo", Enforced),
    both("http.name", Enforced),
    both("http.match.name", Enforced),
    both("http.match.uri.exact", Enforced),
    both("http.match.uri.prefix", Enforced),
    both("http.match.uri.regex", Enforced),
    http_only("http.match.scheme.exact", NO_PSEUDO),
    http_only("http.match.scheme.prefix", NO_PSEUDO),
    http_only("http.match.scheme.regex", NO_PSEUDO),
    http_only("http.match.method.exact", NO_PSEUDO),
    http_only("http.match.method.prefix", NO_PSEUDO),
    http_only("http.match.method.regex", NO_PSEUDO),
    http_only("http.match.authority.exact", NO_PSEUDO),
    http_only("http.match.authority.prefix", NO_PSEUDO),
    http_only("http.match.authority.regex", NO_PSEUDO),
    both("http.match.headers.exact", Enforced),
    both("http.match.headers.prefix", Enforced),
    both("http.match.headers.regex", Enforced),
    both("http.match.port", Enforced),
    both("http.match.sourceLabels", Enforced),
    both("http.match.gateways", Partly(gateways)),
    http_only("http.match.queryParams.exact", "a gRPC call has no query"),
    http_only("http.match.queryParams.prefix", "a gRPC call has no query"),
    http_only("http.match.queryParams.regex", "a gRPC call has no query"),
    both("http.match.ignoreUriCase", Enforced),
    both("http.match.withoutHeaders.exact", Enforced),
    both("http.match.withoutHeaders.prefix", Enforced),
    both("http.match.withoutHeaders.regex", Enforced),
    both("http.match.sourceNamespace", Enforced),
    both("http.match.statPrefix", NotYet("statistics carry the route's name only")),
    both("http.route.destination.host", Enforced),
    both("http.route.destination.subset", Enforced),
    both("http.route.destination.port.number", Enforced),
    both("http.route.weight", Enforced),
    http_only("http.route.headers.request.set", NO_HEADERS),
    http_only("http.route.headers.request.add", NO_HEADERS),
    http_only("http.route.headers.request.remove", NO_HEADERS),
    http_only("http.route.headers.response.set", NO_HEADERS),
    http_only("http.route.headers.response.add", NO_HEADERS),
    http_only("http.route.headers.response.remove", NO_HEADERS),
    http_only("http.headers.request.set", NO_HEADERS),
    http_only("http.headers.request.add", NO_HEADERS),
    http_only("http.headers.request.remove", NO_HEADERS),
    http_only("http.headers.response.set", NO_HEADERS),
    http_only("http.headers.response.add", NO_HEADERS),
    http_only("http.headers.response.remove", NO_HEADERS),
    http_only("http.redirect.uri", AS_STATUS),
    http_only("http.redirect.authority", AS_STATUS),
    http_only("http.redirect.port", AS_STATUS),
    http_only("http.redirect.derivePort", AS_STATUS),
    http_only("http.redirect.scheme", AS_STATUS),
    http_only("http.redirect.redirectCode", AS_STATUS),
    http_only("http.redirect.prefixRewrite", AS_STATUS),
    http_only("http.directResponse.status", AS_STATUS),
    http_only("http.directResponse.body.string", AS_STATUS),
    http_only("http.directResponse.body.bytes", AS_STATUS),
    both("http.delegate.name", Enforced),
    both("http.delegate.namespace", Enforced),
    http_only("http.rewrite.uri", NO_REWRITE),
    http_only("http.rewrite.authority", NO_REWRITE),
    http_only("http.rewrite.uriRegexRewrite.match", NO_REWRITE),
    http_only("http.rewrite.uriRegexRewrite.rewrite", NO_REWRITE),
    both("http.timeout", Enforced),
    Row { path: "http.retries", library: Partly(retries_without_conditions), grpc: Enforced },
    both("http.retries.attempts", Enforced),
    both("http.retries.perTryTimeout", NotYet("a try lasts as long as the request may")),
    Row { path: "http.retries.retryOn", library: Partly(retry_on), grpc: Partly(grpc_retry_on) },
    both("http.retries.retryRemoteLocalities", NotYet("localities are not told apart")),
    Row {
        path: "http.retries.retryIgnorePreviousHosts",
        library: Partly(previous_hosts),
        grpc: NotYet("a retry picks as the first try does"),
    },
    Row {
        path: "http.retries.backoff",
        library: NotYet("a connection failure is tried again at once"),
        grpc: Enforced,
    },
    both("http.fault.delay.percent", Enforced),
    both("http.fault.delay.fixedDelay", Enforced),
    both("http.fault.delay.exponentialDelay", NotYet("Istio does not implement it either")),
    both("http.fault.delay.percentage.value", Enforced),
    both("http.fault.abort.httpStatus", Enforced),
    both("http.fault.abort.grpcStatus", Enforced),
    both("http.fault.abort.http2Error", NotYet("Istio does not implement it either")),
    both("http.fault.abort.percentage.value", Enforced),
    both("http.fault.abort.percent", Enforced),
    http_only("http.mirror.host", NO_COPY),
    http_only("http.mirror.subset", NO_COPY),
    http_only("http.mirror.port.number", NO_COPY),
    http_only("http.mirrors.destination.host", NO_COPY),
    http_only("http.mirrors.destination.subset", NO_COPY),
    http_only("http.mirrors.destination.port.number", NO_COPY),
    http_only("http.mirrors.percentage.value", NO_COPY),
    http_only("http.mirrorPercent", NO_COPY),
    http_only("http.mirrorPercentage.value", NO_COPY),
    both("http.corsPolicy", NotYet("no header of it is added or answered")),
    both("tls", NotYet("raw TLS connections are not routed")),
    both("tcp", NotYet("raw connections are not routed")),
];

fn gateways(node: &Node) -> Option<String> {
    let others: Vec<&str> = node.items().iter().filter_map(Node::as_str).filter(|name| *name != "mesh").collect();
    let in_mesh = node.items().iter().any(|name| name.as_str() == Some("mesh"));
    if others.is_empty() {
        return None;
    }
    Some(match in_mesh {
        true => "gateways are not built; the rules apply inside the mesh".to_owned(),
        false => "gateways are not built; the rules apply nowhere".to_owned(),
    })
}

fn retries_without_conditions(node: &Node) -> Option<String> {
    let off = matches!(node.get("attempts").map(|node| &node.value), Some(Value::Int(0)) | None);
    (!off && node.get("retryOn").is_none())
        .then(|| "only connection failures and refused streams are retried".to_owned())
}

/// Istio's own default is to pass over them.
fn previous_hosts(node: &Node) -> Option<String> {
    (node.value == Value::Bool(false)).then(|| "endpoints that were tried are passed over all the same".to_owned())
}

fn retry_on(node: &Node) -> Option<String> {
    let others = other_tokens(node, &["connect-failure", "refused-stream"])?;
    Some(format!("{others}; only connection failures and refused streams are retried"))
}

/// What gRPC's xDS clients retry on (gRFC A44).
pub const GRPC_RETRY_TOKENS: [&str; 5] =
    ["cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"];

fn grpc_retry_on(node: &Node) -> Option<String> {
    let others = other_tokens(node, &GRPC_RETRY_TOKENS)?;
    Some(format!("{others}; gRPC's clients retry on five gRPC statuses only"))
}

fn other_tokens(node: &Node, supported: &[&str]) -> Option<String> {
    let text = node.as_str()?;
    let others: Vec<&str> =
        text.split(',').map(str::trim).filter(|token| !token.is_empty() && !supported.contains(token)).collect();
    (!others.is_empty()).then(|| others.join(", "))
}
