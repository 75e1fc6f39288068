//! What becomes of the fields of a `DestinationRule`.

use super::Support::{Enforced, NotYet, Partly};
use super::{Row, Tables, both, http_only, unneeded_by_grpc};
use crate::config::node::Node;

pub(super) const TABLES: Tables = &[
    ("", DESTINATION_RULE),
    ("trafficPolicy", TRAFFIC_POLICY),
    ("trafficPolicy", BLOCKS),
    ("trafficPolicy", WHOLE_POLICY),
    ("trafficPolicy.portLevelSettings.port", PORT_NUMBER),
    ("trafficPolicy.portLevelSettings", TRAFFIC_POLICY),
    ("trafficPolicy.portLevelSettings", BLOCKS),
    ("subsets.trafficPolicy", TRAFFIC_POLICY),
    ("subsets.trafficPolicy", BLOCKS),
    ("subsets.trafficPolicy", WHOLE_POLICY),
    ("subsets.trafficPolicy.portLevelSettings.port", PORT_NUMBER),
    ("subsets.trafficPolicy.portLevelSettings", TRAFFIC_POLICY),
    ("subsets.trafficPolicy.portLevelSettings", BLOCKS),
];

const DESTINATION_RULE: &[Row] = &[
    both("host", Enforced),
    both("exportTo", Enforced),
    both("workloadSelector.matchLabels", Enforced),
    both("subsets.name", Enforced),
    both("subsets.labels", Enforced),
];

/// Of a traffic policy, wherever it stands.
const TRAFFIC_POLICY: &[Row] = &[
    Row { path: "loadBalancer.simple", library: Partly(balancer), grpc: Partly(grpc_balancer) },
    both("loadBalancer.consistentHash.httpHeaderName", Enforced),
    http_only("loadBalancer.consistentHash.httpCookie.name", BY_HEADER),
    http_only("loadBalancer.consistentHash.httpCookie.path", BY_HEADER),
    http_only("loadBalancer.consistentHash.httpCookie.ttl", BY_HEADER),
    http_only("loadBalancer.consistentHash.httpCookie.attributes.name", BY_HEADER),
    http_only("loadBalancer.consistentHash.httpCookie.attributes.value", BY_HEADER),
    http_only("loadBalancer.consistentHash.useSourceIp", "each channel of a gRPC client has an endpoint of its own"),
    http_only("loadBalancer.consistentHash.httpQueryParameterName", BY_HEADER),
    both("loadBalancer.consistentHash.minimumRingSize", Enforced),
    both("loadBalancer.consistentHash.ringHash.minimumRingSize", Enforced),
    http_only("loadBalancer.consistentHash.maglev.tableSize", "gRPC's clients have a ring of hashes instead"),
    both("loadBalancer.localityLbSetting.distribute.from", Enforced),
    both("loadBalancer.localityLbSetting.distribute.to", Enforced),
    both("loadBalancer.localityLbSetting.failover.from", Enforced),
    both("loadBalancer.localityLbSetting.failover.to", Enforced),
    both("loadBalancer.localityLbSetting.failoverPriority", Enforced),
    both("loadBalancer.localityLbSetting.enabled", Enforced),
    http_only("loadBalancer.warmupDurationSecs", AT_ONCE),
    http_only("loadBalancer.warmup.duration", AT_ONCE),
    http_only("loadBalancer.warmup.minimumPercent", AT_ONCE),
    http_only("loadBalancer.warmup.aggression", AT_ONCE),
    both("loadBalancer.zoneAwareLbSetting.enabled", Enforced),
    both("loadBalancer.zoneAwareLbSetting.failover.from", Enforced),
    both("loadBalancer.zoneAwareLbSetting.failover.to", Enforced),
    both("loadBalancer.zoneAwareLbSetting.failoverPriority", Enforced),
    both("loadBalancer.zoneAwareLbSetting.minClusterSize", Enforced),
    Row { path: "tls", library: Partly(tls), grpc: Partly(grpc_tls) },
    both("tls.mode", Enforced),
    file("tls.clientCertificate"),
    file("tls.privateKey"),
    file("tls.caCertificates"),
    file("tls.caCrl"),
    file("tls.insecureSkipVerify"),
    http_only("tls.credentialName", SECRET),
    http_only("tls.subjectAltNames", MESH_ONLY),
    http_only("tls.sni", MESH_ONLY),
];

/// Connections, limits and ejection: blocks of a traffic policy that a mesh may have its own of, too.
pub(super) const BLOCKS: &[Row] = &[
    http_only("connectionPool.tcp.connectTimeout", "gRPC's clients have their own"),
    http_only("connectionPool.tcp.maxConnections", "gRPC's clients have no such limit"),
    http_only("connectionPool.tcp.tcpKeepalive.probes", "gRPC's clients have their own"),
    http_only("connectionPool.tcp.tcpKeepalive.time", "gRPC's clients have their own"),
    http_only("connectionPool.tcp.tcpKeepalive.interval", "gRPC's clients have their own"),
    http_only("connectionPool.tcp.maxConnectionDuration", "gRPC's clients keep connections"),
    http_only("connectionPool.tcp.idleTimeout", "gRPC's clients have their own"),
    http_only("connectionPool.http.idleTimeout", "gRPC's clients have their own"),
    http_only("connectionPool.http.maxRequestsPerConnection", "gRPC's clients have no such limit"),
    unneeded_by_grpc("connectionPool.http.h2UpgradePolicy"),
    both("connectionPool.http.http2MaxRequests", Enforced),
    http_only("connectionPool.http.http1MaxPendingRequests", "gRPC's clients have no such limit"),
    http_only("connectionPool.http.maxRetries", "gRPC's clients have no such limit"),
    unneeded_by_grpc("connectionPool.http.useClientProtocol"),
    http_only("connectionPool.http.maxConcurrentStreams", "gRPC's clients take the server's limit"),
    http_only("connectionPool.http.http2KeepAlive.interval", "gRPC's clients have their own"),
    http_only("connectionPool.http.http2KeepAlive.timeout", "gRPC's clients have their own"),
    both("outlierDetection.consecutiveErrors", NotYet(NO_ERRORS)),
    http_only("outlierDetection.splitExternalLocalOriginErrors", GRPC_REACHES),
    http_only("outlierDetection.consecutiveLocalOriginFailures", GRPC_REACHES),
    Row { path: "outlierDetection.consecutiveGatewayErrors", library: Enforced, grpc: Partly(grpc_in_a_row) },
    Row { path: "outlierDetection.consecutive5xxErrors", library: Enforced, grpc: Partly(grpc_in_a_row) },
    both("outlierDetection.interval", Enforced),
    both("outlierDetection.baseEjectionTime", Enforced),
    both("outlierDetection.maxEjectionPercent", Enforced),
    http_only("outlierDetection.minHealthPercent", "gRPC's clients leave out those that fail, however few are left"),
    both("outlierDetection.outlierDetectionHttpErrorCodes", NotYet("answers of 5xx count, and no others")),
];

const NO_ERRORS: &str = "Istio knows it no more: name `consecutive5xxErrors` or `consecutiveGatewayErrors`";

const GRPC_REACHES: &str = "where calls cannot be made, gRPC's clients go to another endpoint by themselves";
const BY_HEADER: &str = "gRPC's clients hash headers only: each call goes to any endpoint";

const AT_ONCE: &str = "gRPC's clients give new endpoints their full share at once";

const MESH_ONLY: &str = "gRPC's clients do so where the mode is ISTIO_MUTUAL, and fail their calls otherwise";

const SECRET: &str = "gRPC's clients take no Secrets: their calls fail";

/// Of TLS by files.
const fn file(path: &'static str) -> Row {
    http_only(path, "gRPC's clients know no such files: their calls fail")
}

/// Of a traffic policy that is not a port's.
const WHOLE_POLICY: &[Row] = &[
    Row { path: "tunnel.protocol", library: Partly(by_post), grpc: NotYet(TUNNEL) },
    http_only("tunnel.targetHost", TUNNEL),
    http_only("tunnel.targetPort", TUNNEL),
    both("proxyProtocol", NotYet("connections start without it")),
    http_only("retryBudget.percent", "gRPC's clients have no such limit"),
    http_only("retryBudget.minRetryConcurrency", "gRPC's clients have no such limit"),
    http_only("retryBudget.budgetInterval", "gRPC's clients have no such limit"),
];

const TUNNEL: &str = "gRPC's clients make requests, for which there are no tunnels";

fn by_post(node: &Node) -> Option<String> {
    (node.as_str()? == "POST").then(|| "POST; no connection is made, but for Envoys".to_owned())
}

const PORT_NUMBER: &[Row] = &[both("number", Enforced)];

fn balancer(node: &Node) -> Option<String> {
    let what = "PASSTHROUGH; no connection is intercepted here that could be passed on: known endpoints take turns";
    (node.as_str()? == "PASSTHROUGH").then(|| what.to_owned())
}

fn grpc_balancer(node: &Node) -> Option<String> {
    matches!(node.as_str()?, "RANDOM" | "PASSTHROUGH").then(|| "gRPC's clients take turns".to_owned())
}

fn grpc_in_a_row(_: &Node) -> Option<String> {
    Some("the share of an interval's calls that failed counts, with this number of calls at least".to_owned())
}

fn tls(node: &Node) -> Option<String> {
    // What is no mode at all is told where it is read.
    (mode(node)? == "ISTIO_MUTUAL").then(|| unprotected("ISTIO_MUTUAL"))
}

fn grpc_tls(node: &Node) -> Option<String> {
    mode(node).filter(|mode| matches!(*mode, "SIMPLE" | "MUTUAL" | "ISTIO_MUTUAL")).map(unprotected)
}

fn mode(tls: &Node) -> Option<&str> {
    tls.get("mode").and_then(Node::as_str)
}

fn unprotected(mode: &str) -> String {
    format!("mode {mode}; calls fail instead of travelling unprotected")
}
