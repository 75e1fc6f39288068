//! What becomes of the settings of a mesh. What concerns proxies, gateways and telemetry is without effect and noted; what
//! would change how calls are made or secured is said with more weight.

use super::Support::{Enforced, Indifferent, MostlyIndifferent, NotYet, Partly};
use super::telemetry::{NO_LOG, NO_METRICS, NO_SPANS, istio_tags};
use super::{Row, Tables, both, http_only, unneeded_by_grpc};
use crate::config::node::{Node, Value};

pub(super) const TABLES: Tables = &[
    ("", MESH),
    ("outboundTrafficPolicy", &[both("mode", Enforced)]),
    ("pathNormalization", &[both("normalization", Enforced)]),
    ("meshMTLS", MESH_TLS),
    ("defaultHttpRetryPolicy", super::virtual_service::RETRIES),
    ("defaultTrafficPolicy", super::destination_rule::BLOCKS),
    ("defaultConfig.tracing", TRACING),
    ("defaultConfig.gatewayTopology", TOPOLOGY),
    ("extensionProviders", PROVIDER),
    ("extensionProviders.envoyExtAuthzHttp", HTTP),
    ("extensionProviders.envoyExtAuthzGrpc", GRPC),
    ("extensionProviders.envoyExtAuthzHttp.includeRequestBodyInCheck", BODY_OVER_HTTP),
    ("extensionProviders.envoyExtAuthzGrpc.includeRequestBodyInCheck", BODY),
];

const NO_CA: super::Support = NotYet(
    "certificates are of the control plane's own authority, and of no other; roots of foreign trust domains are given by `mesh-control \
     serve --trust-bundle DOMAIN=FILE`, or fetched (`--trust-bundle-web`, `--trust-bundle-spiffe`)",
);
const CLIENTS_OWN: &str = "gRPC's clients have their own";

const MESH: &[Row] = &[
    both("trustDomain", Enforced),
    both("trustDomainAliases", Enforced),
    both("rootNamespace", Enforced),
    both("enableAutoMtls", Partly(auto_mtls)),
    both("defaultServiceExportTo", Enforced),
    both("defaultVirtualServiceExportTo", Enforced),
    both("defaultDestinationRuleExportTo", Enforced),
    both("caCertificates", NO_CA),
    both("ca", NO_CA),
    both("certificates", NO_CA),
    both("verifyCertificateAtClient", Partly(verify)),
    both("tlsDefaults", NotYet("TLS with servers outside of the mesh takes no settings of the mesh")),
    both("compliancePolicy", Partly(compliance)),
    http_only("connectTimeout", CLIENTS_OWN),
    http_only("tcpKeepalive.probes", CLIENTS_OWN),
    http_only("tcpKeepalive.time", CLIENTS_OWN),
    http_only("tcpKeepalive.interval", CLIENTS_OWN),
    both("defaultInboundHttpRetryPolicy", Indifferent),
    both("localityLbSetting.distribute.from", Enforced),
    both("localityLbSetting.distribute.to", Enforced),
    both("localityLbSetting.failover.from", Enforced),
    both("localityLbSetting.failover.to", Enforced),
    both("localityLbSetting.failoverPriority", Enforced),
    both("localityLbSetting.enabled", Enforced),
    both("zoneAwareLbSetting.enabled", Enforced),
    both("zoneAwareLbSetting.failover.from", Enforced),
    both("zoneAwareLbSetting.failover.to", Enforced),
    both("zoneAwareLbSetting.failoverPriority", Enforced),
    both("zoneAwareLbSetting.minClusterSize", Enforced),
    unneeded_by_grpc("h2UpgradePolicy"),
    both("serviceSettings", NotYet("there is one cluster, and every service is of it")),
    both("serviceScopeConfigs", NotYet("there is one cluster, and every service is of it")),
    both("serviceEntryVisibility", NotYet("who sees a ServiceEntry is its exportTo, or defaultServiceExportTo")),
    both("discoverySelectors", NotYet("every namespace counts")),
    both("configSources", NotYet("configuration is what is in --config")),
    both("defaultConfig", MostlyIndifferent(|_| None)),
    both("inboundTrafficPolicy", Indifferent),
    both("proxyListenPort", Indifferent),
    both("proxyInboundListenPort", Indifferent),
    both("proxyHttpPort", Indifferent),
    both("protocolDetectionTimeout", Indifferent),
    both("ingressClass", Indifferent),
    both("ingressService", Indifferent),
    both("ingressControllerMode", Indifferent),
    both("ingressSelector", Indifferent),
    http_only("enableTracing", NO_SPANS),
    http_only("accessLogFile", NO_LOG),
    http_only("accessLogFormat", NO_LOG),
    http_only("accessLogEncoding", NO_LOG),
    both("enableEnvoyAccessLogService", Indifferent),
    both("disableEnvoyListenerLog", Indifferent),
    http_only("defaultProviders.tracing", NO_SPANS),
    http_only("defaultProviders.metrics", NO_METRICS),
    http_only("defaultProviders.accessLogging", NO_LOG),
    both("enablePrometheusMerge", Indifferent),
    both("inboundClusterStatName", Indifferent),
    both("outboundClusterStatName", Indifferent),
    both("dnsRefreshRate", Indifferent),
];

const TRACING: &[Row] = &[
    http_only("sampling", NO_SPANS),
    http_only("customTags.literal.value", NO_SPANS),
    http_only("customTags.environment.name", NO_SPANS),
    http_only("customTags.environment.defaultValue", NO_SPANS),
    http_only("customTags.header.name", NO_SPANS),
    http_only("customTags.header.defaultValue", NO_SPANS),
    http_only("maxPathTagLength", NO_SPANS),
    Row { path: "enableIstioTags", library: Partly(istio_tags), grpc: NotYet(NO_SPANS) },
    both("zipkin", ELSEWHERE),
    both("lightstep", ELSEWHERE),
    both("datadog", ELSEWHERE),
    both("stackdriver", ELSEWHERE),
    both("openCensusAgent", ELSEWHERE),
    both("tlsSettings", ELSEWHERE),
];

/// What is in front of gateways, of which gRPC's clients and servers are none.
const TOPOLOGY: &[Row] =
    &[both("numTrustedProxies", Enforced), both("forwardClientCertDetails", Enforced), both("proxyProtocol", Enforced)];

const ELSEWHERE: super::Support =
    NotYet("spans go where the application sends them (OTEL_EXPORTER_OTLP_ENDPOINT), whatever the settings say");

const MESH_TLS: &[Row] = &[
    both("minProtocolVersion", Partly(version)),
    both("ecdhCurves", NotYet("the curves are those of the library")),
    both("cipherSuites", NotYet("TLS 1.2 is not spoken between workloads, nor are its ciphers")),
];

const PROVIDER: &[Row] = &[
    both("name", Enforced),
    both("zipkin", ELSEWHERE),
    both("lightstep", NO_PROVIDER),
    both("datadog", NO_PROVIDER),
    both("stackdriver", NO_PROVIDER),
    both("opencensus", NO_PROVIDER),
    both("skywalking", NO_PROVIDER),
    both("opentelemetry", ELSEWHERE),
    http_only("prometheus", NO_METRICS),
    http_only("envoyFileAccessLog.path", NO_LOG),
    http_only("envoyFileAccessLog.logFormat.text", NO_LOG),
    http_only("envoyFileAccessLog.logFormat.labels", NO_LOG),
    both("envoyFileAccessLog.omitEmptyValues", Partly(omits)),
    both("envoyHttpAls", NO_PROVIDER),
    both("envoyTcpAls", NO_PROVIDER),
    both("envoyOtelAls.service", COLLECTOR),
    both("envoyOtelAls.port", COLLECTOR),
    both("envoyOtelAls.logName", NotYet("the records of all logs have the name of their workload")),
    http_only("envoyOtelAls.logFormat.text", NO_LOG),
    http_only("envoyOtelAls.logFormat.labels", NO_LOG),
    both("sds", NotYet("certificates are of the control plane's own authority, and of no other")),
];

const COLLECTOR: super::Support = NotYet(
    "access logs go to the collector that the application has (OTEL_EXPORTER_OTLP_ENDPOINT), whatever the settings say",
);

const NO_PROVIDER: super::Support = NotYet("nothing is sent there");

fn omits(node: &Node) -> Option<String> {
    (node.value == Value::Bool(true)).then(|| "what is not there is written as `-`, or `null`".to_owned())
}

const NO_SERVER: &str = "gRPC's servers ask nobody; every call of those that a CUSTOM policy is for fails";

const BODY: &[Row] = &[
    http_only("maxRequestBytes", NO_SERVER),
    http_only("allowPartialMessage", NO_SERVER),
    http_only("packAsBytes", NO_SERVER),
];

/// Over HTTP, a body is bytes.
const BODY_OVER_HTTP: &[Row] = &[
    http_only("maxRequestBytes", NO_SERVER),
    http_only("allowPartialMessage", NO_SERVER),
    both("packAsBytes", Indifferent),
];

const HTTP: &[Row] = &[
    http_only("service", NO_SERVER),
    http_only("port", NO_SERVER),
    http_only("timeout", NO_SERVER),
    http_only("pathPrefix", NO_SERVER),
    http_only("failOpen", NO_SERVER),
    http_only("statusOnError", NO_SERVER),
    http_only("includeHeadersInCheck", NO_SERVER),
    http_only("includeRequestHeadersInCheck", NO_SERVER),
    http_only("includeAdditionalHeadersInCheck", NO_SERVER),
    http_only("headersToUpstreamOnAllow", NO_SERVER),
    http_only("headersToDownstreamOnDeny", NO_SERVER),
    http_only("headersToDownstreamOnAllow", NO_SERVER),
    both("clearRouteCache", Indifferent),
];

const GRPC: &[Row] = &[
    http_only("service", NO_SERVER),
    http_only("port", NO_SERVER),
    http_only("timeout", NO_SERVER),
    http_only("failOpen", NO_SERVER),
    http_only("statusOnError", NO_SERVER),
    both("clearRouteCache", Indifferent),
];

fn auto_mtls(node: &Node) -> Option<String> {
    (node.value == Value::Bool(false)).then(|| {
        "automatic mutual TLS is turned off: calls of which no DestinationRule says how are plaintext, and servers that are \
         STRICT refuse them"
            .to_owned()
    })
}

fn version(node: &Node) -> Option<String> {
    (node.as_str()? == "TLSV1_2")
        .then(|| "TLS 1.3 is the oldest version that workloads speak with each other".to_owned())
}

fn verify(node: &Node) -> Option<String> {
    (node.value == Value::Bool(false)).then(|| "a certificate is always checked".to_owned())
}

fn compliance(node: &Node) -> Option<String> {
    let policy = node.as_str().filter(|policy| !policy.is_empty())?;
    Some(format!("{policy} is not enforced: the library's cryptography is not certified for it"))
}
