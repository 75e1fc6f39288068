//! Which field is enforced for which kind of client: the one table to change when that changes.
//!
//! Every field of every kind that is read has a row, itself or through a parent that is not enforced as a
//! whole; a test walks the fields and holds the table to that. What is written and not enforced is
//! reported with its position when the file is read, so nothing is ever dropped in silence.

use crate::config::decode::Decoder;
use crate::config::diagnostic::{Code, Severity};
use crate::config::node::{Node, Value};

use Support::{Enforced, Indifferent, NotYet, Partly};

/// The kinds that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectKind {
    /// `VirtualService` of networking.istio.io.
    VirtualService,
    /// `DestinationRule` of networking.istio.io.
    DestinationRule,
    /// `ServiceEntry` of networking.istio.io.
    ServiceEntry,
    /// `WorkloadEntry` of networking.istio.io.
    WorkloadEntry,
    /// `WorkloadGroup` of networking.istio.io.
    WorkloadGroup,
    /// `Service` of Kubernetes.
    Service,
}

impl ObjectKind {
    /// All kinds.
    pub const ALL: [ObjectKind; 6] = [
        ObjectKind::VirtualService,
        ObjectKind::DestinationRule,
        ObjectKind::ServiceEntry,
        ObjectKind::WorkloadEntry,
        ObjectKind::WorkloadGroup,
        ObjectKind::Service,
    ];

    /// The word after `kind:`.
    pub const fn name(self) -> &'static str {
        match self {
            ObjectKind::VirtualService => "VirtualService",
            ObjectKind::DestinationRule => "DestinationRule",
            ObjectKind::ServiceEntry => "ServiceEntry",
            ObjectKind::WorkloadEntry => "WorkloadEntry",
            ObjectKind::WorkloadGroup => "WorkloadGroup",
            ObjectKind::Service => "Service",
        }
    }
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug)]
pub enum Support {
    /// It does what Istio says.
    Enforced,
    /// It is reported as not supported yet; the text says what happens instead.
    NotYet(&'static str),
    /// Some of its values are not supported yet: for those, the text to report.
    Partly(fn(&Node) -> Option<String>),
    /// It says something about a cluster or a sidecar that this mesh does not have; nothing is lost, and it is noted.
    Indifferent,
}

/// One field.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its path below `spec`, without indexes and keys of maps.
    pub path: &'static str,
    /// For this project's library.
    pub library: Support,
    /// For gRPC's own xDS clients; `render::grpc` reports what they do instead.
    pub grpc: Support,
}

const fn both(path: &'static str, support: Support) -> Row {
    Row { path, library: support, grpc: support }
}

const fn http_only(path: &'static str, grpc: &'static str) -> Row {
    Row { path, library: Enforced, grpc: NotYet(grpc) }
}

/// Of what is spoken on a connection; gRPC's clients speak HTTP/2 whatever is written.
const fn unneeded_by_grpc(path: &'static str) -> Row {
    Row { path, library: Enforced, grpc: Indifferent }
}

const NO_HEADERS: &str = "gRPC's xDS clients leave headers as they are";
const NO_REWRITE: &str = "gRPC's xDS clients leave path and authority as they are";
const AS_STATUS: &str = "a gRPC client fails the call with the status that the HTTP status maps to";
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
    both("http.mirror", NotYet("nothing is mirrored")),
    both("http.mirrors", NotYet("nothing is mirrored")),
    both("http.mirrorPercent", NotYet("nothing is mirrored")),
    both("http.mirrorPercentage", NotYet("nothing is mirrored")),
    both("http.corsPolicy", NotYet("no header of it is added or answered")),
    both("tls", NotYet("raw TLS connections are not routed")),
    both("tcp", NotYet("raw connections are not routed")),
];

/// Of a traffic policy, wherever it stands.
const TRAFFIC_POLICY: &[Row] = &[
    Row { path: "loadBalancer.simple", library: Enforced, grpc: Partly(grpc_balancer) },
    both("loadBalancer.consistentHash", NotYet("requests are balanced by least request")),
    both("loadBalancer.localityLbSetting", NotYet("localities are not told apart")),
    both("loadBalancer.warmupDurationSecs", NotYet("new endpoints take their full share at once")),
    both("loadBalancer.warmup", NotYet("new endpoints take their full share at once")),
    both("loadBalancer.zoneAwareLbSetting", NotYet("localities are not told apart")),
    http_only("connectionPool.tcp.connectTimeout", "gRPC's clients have their own"),
    both("connectionPool.tcp.maxConnections", NotYet("there is no such limit")),
    both("connectionPool.tcp.tcpKeepalive", NotYet("the operating system's setting holds")),
    both("connectionPool.tcp.maxConnectionDuration", NotYet("connections live on")),
    both("connectionPool.tcp.idleTimeout", NotYet("set `http.idleTimeout`")),
    http_only("connectionPool.http.idleTimeout", "gRPC's clients have their own"),
    http_only("connectionPool.http.maxRequestsPerConnection", "gRPC's clients have no such limit"),
    unneeded_by_grpc("connectionPool.http.h2UpgradePolicy"),
    Row { path: "connectionPool.http.http2MaxRequests", library: NotYet("there is no such limit"), grpc: Enforced },
    both("connectionPool.http.http1MaxPendingRequests", NotYet("there is no such limit")),
    both("connectionPool.http.maxRetries", NotYet("there is no such limit")),
    both("connectionPool.http.useClientProtocol", NotYet("the port's protocol is used")),
    both("connectionPool.http.maxConcurrentStreams", NotYet("the server's limit holds")),
    both("connectionPool.http.http2KeepAlive", NotYet("no pings are sent")),
    both("outlierDetection", NotYet("no endpoint is ejected")),
    both("tls", Partly(tls)),
];

const DESTINATION_RULE: &[Row] = &[
    both("host", Enforced),
    both("exportTo", Enforced),
    both("workloadSelector.matchLabels", Enforced),
    both("subsets.name", Enforced),
    both("subsets.labels", Enforced),
];

/// Of a traffic policy that is not a port's.
const WHOLE_POLICY: &[Row] = &[
    both("tunnel", NotYet("connections are made directly")),
    both("proxyProtocol", NotYet("connections start without it")),
    both("retryBudget", NotYet("there is no such limit")),
];

const SERVICE_ENTRY: &[Row] = &[
    both("hosts", Enforced),
    both("addresses", NotYet("the service answers to its hosts only")),
    both("ports.number", Enforced),
    unneeded_by_grpc("ports.protocol"),
    both("ports.name", Enforced),
    both("ports.targetPort", Enforced),
    // It decides on mutual TLS and on labels of metrics, neither of which depends on it yet.
    both("location", Indifferent),
    both("resolution", Enforced),
    both("workloadSelector.labels", Enforced),
    both("exportTo", Enforced),
    both("subjectAltNames", NotYet("no certificate is checked, as no connection is secured")),
];

const ENDPOINT: &[Row] = &[
    both("address", Partly(address)),
    both("ports", Enforced),
    both("labels", Enforced),
    both("network", Partly(network)),
    both("locality", Enforced),
    both("weight", Enforced),
    // It names the certificate that the endpoint will show; no connection is secured yet.
    both("serviceAccount", Indifferent),
];

const WORKLOAD_GROUP: &[Row] = &[
    both("metadata.labels", Enforced),
    both("metadata.annotations", Indifferent),
    both("template.address", NotYet("a member is reached where it registered itself")),
    both("probe", NotYet("a member is healthy while it is connected")),
];

const SERVICE: &[Row] = &[
    both("selector", Enforced),
    both("ports.name", Enforced),
    both("ports.port", Enforced),
    both("ports.protocol", Partly(transport)),
    both("ports.targetPort", Enforced),
    unneeded_by_grpc("ports.appProtocol"),
    both("ports.nodePort", Indifferent),
    both("type", Enforced),
    both("clusterIP", Indifferent),
    both("clusterIPs", Indifferent),
    both("externalName", Enforced),
    both("externalIPs", Indifferent),
    both("sessionAffinity", Partly(session_affinity)),
    both("sessionAffinityConfig", Indifferent),
    both("ipFamilies", Indifferent),
    both("ipFamilyPolicy", Indifferent),
    both("publishNotReadyAddresses", Indifferent),
    both("internalTrafficPolicy", Partly(internal_traffic_policy)),
    both("externalTrafficPolicy", Indifferent),
    both("trafficDistribution", NotYet("localities are not told apart")),
    both("loadBalancerIP", Indifferent),
    both("loadBalancerClass", Indifferent),
    both("loadBalancerSourceRanges", Indifferent),
    both("allocateLoadBalancerNodePorts", Indifferent),
    both("healthCheckNodePort", Indifferent),
];

/// Tables, and the field that each stands under.
type Tables = &'static [(&'static str, &'static [Row])];

fn tables(kind: ObjectKind) -> Tables {
    match kind {
        ObjectKind::VirtualService => &[("", VIRTUAL_SERVICE)],
        ObjectKind::DestinationRule => &[
            ("", DESTINATION_RULE),
            ("trafficPolicy", TRAFFIC_POLICY),
            ("trafficPolicy", WHOLE_POLICY),
            ("trafficPolicy.portLevelSettings.port", PORT_NUMBER),
            ("trafficPolicy.portLevelSettings", TRAFFIC_POLICY),
            ("subsets.trafficPolicy", TRAFFIC_POLICY),
            ("subsets.trafficPolicy", WHOLE_POLICY),
            ("subsets.trafficPolicy.portLevelSettings.port", PORT_NUMBER),
            ("subsets.trafficPolicy.portLevelSettings", TRAFFIC_POLICY),
        ],
        ObjectKind::ServiceEntry => &[("", SERVICE_ENTRY), ("endpoints", ENDPOINT)],
        ObjectKind::WorkloadEntry => &[("", ENDPOINT)],
        ObjectKind::WorkloadGroup => &[("", WORKLOAD_GROUP), ("template", ENDPOINT)],
        ObjectKind::Service => &[("", SERVICE)],
    }
}

const PORT_NUMBER: &[Row] = &[both("number", Enforced)];

/// What the table says of a field: its own row, or that of the nearest parent which has one.
pub fn row(kind: ObjectKind, path: &str) -> Option<&'static Row> {
    let mut best: Option<(usize, &'static Row)> = None;
    for (prefix, rows) in tables(kind) {
        let Some(rest) = below(path, prefix) else {
            continue;
        };
        for row in *rows {
            let covers = rest == row.path || below(rest, row.path).is_some();
            let length = prefix.len() + row.path.len();
            if covers && best.is_none_or(|(longest, _)| length > longest) {
                best = Some((length, row));
            }
        }
    }
    best.map(|(_, row)| row)
}

/// Whether the path of this row is the whole path.
pub fn is_own_row(row: &Row, path: &str) -> bool {
    path == row.path || path.ends_with(&format!(".{}", row.path))
}

fn has_rows_below(kind: ObjectKind, path: &str) -> bool {
    tables(kind).iter().any(|(prefix, rows)| {
        rows.iter().any(|row| {
            let full = if prefix.is_empty() { row.path.to_owned() } else { format!("{prefix}.{}", row.path) };
            below(&full, path).is_some()
        })
    })
}

fn below<'p>(path: &'p str, parent: &str) -> Option<&'p str> {
    if parent.is_empty() {
        return Some(path);
    }
    path.strip_prefix(parent)?.strip_prefix('.')
}

/// Reports everything in a specification that this project's library does not enforce.
pub fn report(kind: ObjectKind, spec: &Node, d: &mut Decoder<'_>) {
    visit(kind, spec, "", "", d);
}

fn visit(kind: ObjectKind, node: &Node, path: &str, shown: &str, d: &mut Decoder<'_>) {
    if let Value::Seq(items) = &node.value
        && (path.is_empty() || has_rows_below(kind, path))
    {
        for (index, item) in items.iter().enumerate() {
            visit(kind, item, path, &format!("{shown}[{index}]"), d);
        }
        return;
    }
    for (key, value) in node.entries() {
        if value.value == Value::Null {
            continue;
        }
        let join = |parent: &str| {
            if parent.is_empty() { key.name.clone() } else { format!("{parent}.{}", key.name) }
        };
        let (path, shown) = (join(path), join(shown));
        if let Some(row) = row(kind, &path).filter(|row| is_own_row(row, &path)) {
            let what = match row.library {
                Enforced => None,
                Indifferent => {
                    d.idle(kind.name(), &path, key.span);
                    continue;
                }
                NotYet(instead) => Some(instead.to_owned()),
                Partly(judge) => judge(value),
            };
            if let Some(instead) = what {
                // Calls fail until it is built, rather than travel unprotected: more than a warning.
                let severity = match path.ends_with("tls") && kind == ObjectKind::DestinationRule {
                    true => Severity::Error,
                    false => Severity::Warning,
                };
                let message = format!("not supported yet: {instead}");
                d.report_at(key.span, shown, severity, Code::NotSupportedYet, message);
                continue;
            }
        }
        if has_rows_below(kind, &path) {
            visit(kind, value, &path, &shown, d);
        }
    }
}

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

fn grpc_balancer(node: &Node) -> Option<String> {
    (node.as_str()? == "RANDOM").then(|| "gRPC's clients take turns".to_owned())
}

fn other_tokens(node: &Node, supported: &[&str]) -> Option<String> {
    let text = node.as_str()?;
    let others: Vec<&str> =
        text.split(',').map(str::trim).filter(|token| !token.is_empty() && !supported.contains(token)).collect();
    (!others.is_empty()).then(|| others.join(", "))
}

fn tls(node: &Node) -> Option<String> {
    let mode = node.get("mode").and_then(Node::as_str).unwrap_or("DISABLE");
    (mode != "DISABLE").then(|| format!("mode {mode}; calls fail instead of travelling unprotected"))
}

fn address(node: &Node) -> Option<String> {
    let is_unix = node.as_str()?.starts_with("unix://");
    is_unix.then(|| "unix sockets; the endpoint is left out".to_owned())
}

fn network(node: &Node) -> Option<String> {
    let is_set = !node.as_str()?.is_empty();
    is_set.then(|| "the endpoint is reached directly, without a gateway".to_owned())
}

fn transport(node: &Node) -> Option<String> {
    let protocol = node.as_str()?;
    (protocol != "TCP").then(|| format!("{protocol}; the port is left out"))
}

fn session_affinity(node: &Node) -> Option<String> {
    (node.as_str()? != "None").then(|| "requests are balanced without affinity".to_owned())
}

fn internal_traffic_policy(node: &Node) -> Option<String> {
    (node.as_str()? != "Cluster").then(|| "every endpoint is used, wherever it runs".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::decode::Decode;
    use crate::config::istio::destination_rule::DestinationRule;
    use crate::config::istio::service::Service;
    use crate::config::istio::service_entry::ServiceEntry;
    use crate::config::istio::virtual_service::VirtualService;
    use crate::config::istio::workload_entry::WorkloadEntry;
    use crate::config::istio::workload_group::WorkloadGroup;

    fn fields(kind: ObjectKind) -> Vec<String> {
        let mut out = Vec::new();
        match kind {
            ObjectKind::VirtualService => VirtualService::fields("", &mut out),
            ObjectKind::DestinationRule => DestinationRule::fields("", &mut out),
            ObjectKind::ServiceEntry => ServiceEntry::fields("", &mut out),
            ObjectKind::WorkloadEntry => WorkloadEntry::fields("", &mut out),
            ObjectKind::WorkloadGroup => WorkloadGroup::fields("", &mut out),
            ObjectKind::Service => Service::fields("", &mut out),
        }
        out
    }

    #[test]
    fn every_field_of_every_kind_is_enforced_or_reported() {
        for kind in ObjectKind::ALL {
            let fields = fields(kind);
            assert!(fields.len() >= 7, "{kind:?}");
            for path in fields {
                let row = row(kind, &path).unwrap_or_else(|| panic!("{kind:?} {path} has no row"));
                let covered = is_own_row(row, &path) || matches!(row.library, NotYet(_) | Partly(_));
                assert!(covered, "{kind:?} {path} hides behind {}", row.path);
            }
        }
    }

    #[test]
    fn every_row_is_a_field() {
        for kind in ObjectKind::ALL {
            let fields = fields(kind);
            for (prefix, rows) in tables(kind) {
                for row in *rows {
                    let path = if prefix.is_empty() { row.path.to_owned() } else { format!("{prefix}.{}", row.path) };
                    let known = fields.iter().any(|field| *field == path || below(field, &path).is_some());
                    assert!(known, "{kind:?} has no field {path}");
                }
            }
        }
    }
}
