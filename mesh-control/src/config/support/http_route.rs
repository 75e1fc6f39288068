//! What becomes of the fields of an `HTTPRoute`.

use super::Support::{Enforced, NotYet, Partly};
use super::gateway::at_gateway;
use super::{ObjectKind, Row, Tables, both, http_only, is_core_service, listens};
use crate::config::node::{Node, Value};

pub(super) const TABLES: Tables = &[
    ("", HTTP_ROUTE),
    ("rules.filters", FILTERS),
    ("rules.filters", HTTP_FILTERS),
    ("rules.backendRefs.filters", BACKEND_FILTERS),
    ("rules.backendRefs.filters", BACKEND_HTTP_FILTERS),
];

const NO_HEADERS: &str = "gRPC's xDS clients leave headers as they are";
const NO_REWRITE: &str = "gRPC's xDS clients leave path and authority as they are";
const AS_STATUS: &str = "a gRPC client fails the call with the status that the HTTP status maps to";
const NO_CORS: &str = "no page of a browser calls by gRPC's xDS clients";
const NO_COPY: &str = "gRPC's xDS clients mirror nothing";
const NO_QUERY: &str = "a gRPC call has no query";
const NO_PSEUDO: &str = "gRPC's xDS clients do not match on pseudo headers";
/// Of what must not be passed over.
const ANSWERED: &str = "requests of the rule are answered with 500";
const SHARE_ANSWERED: &str = "requests for this backend are answered with 500";
pub(super) const NO_DEFAULT: &str = "a route names the Gateways that it is for";
pub(super) const NO_SESSION: &str = "sessions stay at their endpoint by a label of the Service, and not by a route";

const HTTP_ROUTE: &[Row] = &[
    both("parentRefs", Partly(parents)),
    both("parentRefs.group", Enforced),
    both("parentRefs.kind", Enforced),
    both("parentRefs.namespace", Enforced),
    both("parentRefs.name", Enforced),
    both("parentRefs.sectionName", Enforced),
    both("parentRefs.port", Enforced),
    both("useDefaultGateways", NotYet(NO_DEFAULT)),
    at_gateway("hostnames"),
    both("rules.name", Enforced),
    both("rules.matches.path.type", Enforced),
    both("rules.matches.path.value", Enforced),
    both("rules.matches.headers.type", Enforced),
    both("rules.matches.headers.name", Enforced),
    both("rules.matches.headers.value", Enforced),
    http_only("rules.matches.queryParams.type", NO_QUERY),
    http_only("rules.matches.queryParams.name", NO_QUERY),
    http_only("rules.matches.queryParams.value", NO_QUERY),
    http_only("rules.matches.method", NO_PSEUDO),
    both("rules.backendRefs.group", Enforced),
    both("rules.backendRefs.kind", Enforced),
    both("rules.backendRefs.name", Enforced),
    both("rules.backendRefs.namespace", Enforced),
    both("rules.backendRefs.port", Enforced),
    both("rules.backendRefs.weight", Enforced),
    both("rules.timeouts.request", Enforced),
    http_only("rules.timeouts.backendRequest", "a try lasts as long as the call may"),
    http_only("rules.retry.codes", "gRPC's clients retry on five gRPC statuses only"),
    Row { path: "rules.retry.attempts", library: Enforced, grpc: Partly(grpc_attempts) },
    both("rules.retry.backoff", Enforced),
    both("rules.sessionPersistence", NotYet(NO_SESSION)),
];

/// Filters of rules, of every kind of route.
pub(super) const FILTERS: &[Row] = &[
    both("type", Enforced),
    http_only("requestHeaderModifier.set.name", NO_HEADERS),
    http_only("requestHeaderModifier.set.value", NO_HEADERS),
    http_only("requestHeaderModifier.add.name", NO_HEADERS),
    http_only("requestHeaderModifier.add.value", NO_HEADERS),
    http_only("requestHeaderModifier.remove", NO_HEADERS),
    http_only("responseHeaderModifier.set.name", NO_HEADERS),
    http_only("responseHeaderModifier.set.value", NO_HEADERS),
    http_only("responseHeaderModifier.add.name", NO_HEADERS),
    http_only("responseHeaderModifier.add.value", NO_HEADERS),
    http_only("responseHeaderModifier.remove", NO_HEADERS),
    http_only("requestMirror.backendRef.group", NO_COPY),
    http_only("requestMirror.backendRef.kind", NO_COPY),
    http_only("requestMirror.backendRef.name", NO_COPY),
    http_only("requestMirror.backendRef.namespace", NO_COPY),
    http_only("requestMirror.backendRef.port", NO_COPY),
    http_only("requestMirror.percent", NO_COPY),
    http_only("requestMirror.fraction.numerator", NO_COPY),
    http_only("requestMirror.fraction.denominator", NO_COPY),
    both("extensionRef", NotYet(ANSWERED)),
];

const HTTP_FILTERS: &[Row] = &[
    http_only("requestRedirect.scheme", AS_STATUS),
    http_only("requestRedirect.hostname", AS_STATUS),
    http_only("requestRedirect.path.type", AS_STATUS),
    http_only("requestRedirect.path.replaceFullPath", AS_STATUS),
    http_only("requestRedirect.path.replacePrefixMatch", AS_STATUS),
    http_only("requestRedirect.port", AS_STATUS),
    http_only("requestRedirect.statusCode", AS_STATUS),
    http_only("urlRewrite.hostname", NO_REWRITE),
    http_only("urlRewrite.path.type", NO_REWRITE),
    http_only("urlRewrite.path.replaceFullPath", NO_REWRITE),
    http_only("urlRewrite.path.replacePrefixMatch", NO_REWRITE),
    http_only("cors.allowOrigins", NO_CORS),
    http_only("cors.allowCredentials", NO_CORS),
    http_only("cors.allowMethods", NO_CORS),
    http_only("cors.allowHeaders", NO_CORS),
    http_only("cors.exposeHeaders", NO_CORS),
    http_only("cors.maxAge", NO_CORS),
    both("externalAuth", NotYet(ANSWERED)),
];

/// Filters of backends, of every kind of route.
pub(super) const BACKEND_FILTERS: &[Row] = &[
    both("type", Enforced),
    http_only("requestHeaderModifier.set.name", NO_HEADERS),
    http_only("requestHeaderModifier.set.value", NO_HEADERS),
    http_only("requestHeaderModifier.add.name", NO_HEADERS),
    http_only("requestHeaderModifier.add.value", NO_HEADERS),
    http_only("requestHeaderModifier.remove", NO_HEADERS),
    http_only("responseHeaderModifier.set.name", NO_HEADERS),
    http_only("responseHeaderModifier.set.value", NO_HEADERS),
    http_only("responseHeaderModifier.add.name", NO_HEADERS),
    http_only("responseHeaderModifier.add.value", NO_HEADERS),
    http_only("responseHeaderModifier.remove", NO_HEADERS),
    both("requestMirror", NotYet(SHARE_ANSWERED)),
    both("extensionRef", NotYet(SHARE_ANSWERED)),
];

const BACKEND_HTTP_FILTERS: &[Row] = &[
    both("requestRedirect", NotYet(SHARE_ANSWERED)),
    both("urlRewrite", NotYet(SHARE_ANSWERED)),
    both("cors", NotYet(SHARE_ANSWERED)),
    both("externalAuth", NotYet(SHARE_ANSWERED)),
];

/// Parents that are none.
pub(super) fn parents(node: &Node) -> Option<String> {
    let text = |parent: &Node, name: &str| parent.get(name).and_then(Node::as_str).map(str::to_owned);
    const ISTIO: &str = ObjectKind::ServiceEntry.group();
    let is_one = |parent: &&Node| {
        let (group, kind) = (text(parent, "group"), text(parent, "kind"));
        let is_of_mesh = match (group.as_deref(), kind.as_deref()) {
            (Some(ISTIO), Some("ServiceEntry")) => true,
            // A group that is not written is that of Gateways.
            (Some(group), Some(kind)) => is_core_service(group, kind),
            _ => false,
        };
        is_of_mesh || listens(parent).is_some()
    };
    let (own, others): (Vec<&Node>, Vec<&Node>) = node.items().iter().partition(is_one);
    let other = others.first()?;
    let kind = text(other, "kind").unwrap_or_else(|| "Gateway".to_owned());
    let what = match kind.as_str() {
        "Service" => "parents of kind Service in this group; it has to be written `group: \"\"`".to_owned(),
        _ => format!(
            "parents of kind {kind}; a route is attached to Services, ServiceEntries, Gateways and ListenerSets"
        ),
    };
    Some(match own.is_empty() {
        true => format!("{what}; the rules apply nowhere"),
        false => format!("{what}; the rules apply at its other parents"),
    })
}

fn grpc_attempts(node: &Node) -> Option<String> {
    matches!(node.value, Value::Int(attempts) if attempts > 4)
        .then(|| "gRPC's clients try a call five times at most".to_owned())
}
