//! What becomes of the fields of a `VirtualService`.

use mesh_core::model::RetryCondition;

use super::Support::{Enforced, Indifferent, NotYet, Partly};
use super::{Row, Tables, both, http_only};
use crate::config::node::{Node, Value};

pub(super) const TABLES: Tables = &[("", VIRTUAL_SERVICE), ("http.retries", RETRIES)];

const NO_HEADERS: &str = "gRPC's xDS clients leave headers as they are";
const NO_REWRITE: &str = "gRPC's xDS clients leave path and authority as they are";
const AS_STATUS: &str = "a gRPC client fails the call with the status that the HTTP status maps to";
const NO_CORS: &str = "gRPC's xDS clients add no headers to answers, and answer no preflights";
const NO_COPY: &str = "gRPC's xDS clients mirror nothing";
const NO_PSEUDO: &str = "gRPC's xDS clients do not match on pseudo headers";

const VIRTUAL_SERVICE: &[Row] = &[
    both("hosts", Enforced),
    both("gateways", Enforced),
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
    both("http.match.gateways", Enforced),
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
    http_only("http.corsPolicy.allowOrigin", NO_CORS),
    http_only("http.corsPolicy.allowOrigins.exact", NO_CORS),
    http_only("http.corsPolicy.allowOrigins.prefix", NO_CORS),
    http_only("http.corsPolicy.allowOrigins.regex", NO_CORS),
    http_only("http.corsPolicy.allowMethods", NO_CORS),
    http_only("http.corsPolicy.allowHeaders", NO_CORS),
    http_only("http.corsPolicy.exposeHeaders", NO_CORS),
    http_only("http.corsPolicy.maxAge", NO_CORS),
    http_only("http.corsPolicy.allowCredentials", NO_CORS),
    http_only("http.corsPolicy.unmatchedPreflights", NO_CORS),
    raw("tls.match.sniHosts"),
    Row { path: "tls.match.destinationSubnets", library: Partly(subnets), grpc: Indifferent },
    raw("tls.match.port"),
    both("tls.match.sourceSubnet", NotYet("Istio does not look at it either")),
    raw("tls.match.sourceLabels"),
    raw("tls.match.gateways"),
    raw("tls.match.sourceNamespace"),
    raw("tls.route.destination.host"),
    raw("tls.route.destination.subset"),
    raw("tls.route.destination.port.number"),
    raw("tls.route.weight"),
    Row { path: "tcp.match.destinationSubnets", library: Partly(subnets), grpc: Indifferent },
    raw("tcp.match.port"),
    both("tcp.match.sourceSubnet", NotYet("Istio does not look at it either")),
    raw("tcp.match.sourceLabels"),
    raw("tcp.match.gateways"),
    raw("tcp.match.sourceNamespace"),
    raw("tcp.route.destination.host"),
    raw("tcp.route.destination.subset"),
    raw("tcp.route.destination.port.number"),
    raw("tcp.route.weight"),
];

/// Of connections whose bytes are not HTTP: gRPC's clients make none.
const fn raw(path: &'static str) -> Row {
    Row { path, library: Enforced, grpc: Indifferent }
}

/// Of a retry policy, wherever it stands.
pub(super) const RETRIES: &[Row] = &[
    Row { path: "attempts", library: Enforced, grpc: Partly(grpc_attempts) },
    http_only("perTryTimeout", "a try lasts as long as the call may"),
    Row { path: "retryOn", library: Partly(retry_on), grpc: Partly(grpc_retry_on) },
    http_only("retryRemoteLocalities", "a retry goes where the first try does"),
    http_only("retryIgnorePreviousHosts", "a retry picks as the first try does"),
    both("backoff", Enforced),
];

/// A client knows an address where it asks for one; of a name it does not ask which.
fn subnets(node: &Node) -> Option<String> {
    let all = ["0.0.0.0/0", "::/0"];
    let is_some = node.items().iter().filter_map(Node::as_str).any(|text| !all.contains(&text));
    is_some.then(|| {
        "of connections by name: the condition holds for hosts that are addresses, and for services that have some"
            .to_owned()
    })
}

/// Conditions that nothing meets.
fn retry_on(node: &Node) -> Option<String> {
    let idle = |token: &str| match token {
        "retriable-headers" => Some("retriable-headers; there is no field that names the headers"),
        "http3-post-connect-failure" => Some("http3-post-connect-failure; HTTP/3 is not spoken"),
        _ => None,
    };
    node.as_str()?.split(',').map(str::trim).find_map(idle).map(str::to_owned)
}

fn grpc_attempts(node: &Node) -> Option<String> {
    matches!(node.value, Value::Int(attempts) if attempts > 4)
        .then(|| "gRPC's clients try a call five times at most".to_owned())
}

/// gRPC's xDS clients retry on its statuses alone (gRFC A44).
fn grpc_retry_on(node: &Node) -> Option<String> {
    let is_status = |token: &str| RetryCondition::parse(token).is_some_and(RetryCondition::is_grpc_status);
    let tokens = node.as_str()?.split(',').map(str::trim).filter(|token| !token.is_empty());
    let others: Vec<&str> = tokens.filter(|token| !is_status(token)).collect();
    (!others.is_empty()).then(|| format!("{}; gRPC's clients retry on five gRPC statuses only", others.join(", ")))
}
