//! `MeshConfig`: the settings of a whole mesh, as Istio has them in the ConfigMap `istio` or in a file.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use mesh_core::error::Invalid;
use mesh_core::identity::TrustDomain;
use mesh_core::model::{AccessLog, CheckedBody, DEFAULT_LINE, IN_PROCESS, LogFormat, LogText};

use super::destination_rule::balancer::{check_locality, check_zones};
use super::destination_rule::{self, ConnectionPool, LocalityLb, OutlierDetection, TcpKeepalive, ZoneAwareLb};
use super::names::export_faults;
use super::virtual_service::Retry;
use crate::config::decode::{At, Decode, Decoder, Opaque, PortNumber, Text, field_paths, keywords, message};
use crate::config::diagnostic::{Code, Severity, Span, quoted};
use crate::config::node::{Node, Value};

message! {
    /// The settings of a mesh.
    pub struct MeshConfig {
        /// Whose identities its workloads have.
        trust_domain: Option<Text> = "trustDomain",
        /// Other names of the trust domain.
        trust_domain_aliases: Vec<Text> = "trustDomainAliases",
        /// The namespace whose policies are for everybody.
        root_namespace: Option<Text> = "rootNamespace",
        /// Calls to hosts that nothing describes.
        outbound_traffic_policy: Option<OutboundTraffic> = "outboundTrafficPolicy",
        /// What servers make of paths.
        path_normalization: Option<PathNormalization> = "pathNormalization",
        /// Whether clients call by mutual TLS where no rule says how to call.
        enable_auto_mtls: Option<bool> = "enableAutoMtls",
        /// Who sees services that do not say it.
        default_service_export_to: Vec<Text> = "defaultServiceExportTo",
        /// Who sees VirtualServices that do not say it.
        default_virtual_service_export_to: Vec<Text> = "defaultVirtualServiceExportTo",
        /// Who sees DestinationRules that do not say it.
        default_destination_rule_export_to: Vec<Text> = "defaultDestinationRuleExportTo",
        /// Mutual TLS between workloads.
        mesh_mtls: Option<MeshTls> = "meshMTLS",
        /// Who can be asked, and where telemetry goes.
        extension_providers: Vec<ExtensionProvider> = "extensionProviders",
        /// Whose certificates are good besides.
        ca_certificates: Opaque = "caCertificates",
        /// Another authority.
        ca: Opaque = "ca",
        /// Certificates for names in DNS.
        certificates: Opaque = "certificates",
        /// Whether clients check the certificates of servers outside of the mesh.
        verify_certificate_at_client: Option<bool> = "verifyCertificateAtClient",
        /// TLS with servers outside of the mesh.
        tls_defaults: Opaque = "tlsDefaults",
        /// Rules for cryptography.
        compliance_policy: Option<Text> = "compliancePolicy",
        /// How long a connection may take.
        connect_timeout: Option<Duration> = "connectTimeout",
        /// Whether idle connections are tried.
        tcp_keepalive: Option<TcpKeepalive> = "tcpKeepalive",
        /// What is tried again.
        default_http_retry_policy: Option<Retry> = "defaultHttpRetryPolicy",
        /// What servers try again.
        default_inbound_http_retry_policy: Opaque = "defaultInboundHttpRetryPolicy",
        /// How services are called.
        default_traffic_policy: Option<DefaultTrafficPolicy> = "defaultTrafficPolicy",
        /// Which endpoints go first.
        locality_lb_setting: Option<LocalityLb> = "localityLbSetting",
        /// Whether zones share requests.
        zone_aware_lb_setting: Option<ZoneAwareLb> = "zoneAwareLbSetting",
        /// Whether HTTP/1.1 becomes HTTP/2 where no rule says it.
        h2_upgrade_policy: Option<MeshH2UpgradePolicy> = "h2UpgradePolicy",
        /// Services that stay in their cluster.
        service_settings: Opaque = "serviceSettings",
        /// The same.
        service_scope_configs: Opaque = "serviceScopeConfigs",
        /// Who sees ServiceEntries.
        service_entry_visibility: Opaque = "serviceEntryVisibility",
        /// Which namespaces count.
        discovery_selectors: Opaque = "discoverySelectors",
        /// Other places of configuration.
        config_sources: Opaque = "configSources",
        /// How proxies are run.
        default_config: Option<ProxyConfig> = "defaultConfig",
        /// Where proxies send what came in.
        inbound_traffic_policy: Opaque = "inboundTrafficPolicy",
        /// Of proxies.
        proxy_listen_port: Opaque = "proxyListenPort",
        /// Of proxies.
        proxy_inbound_listen_port: Opaque = "proxyInboundListenPort",
        /// Of proxies.
        proxy_http_port: Opaque = "proxyHttpPort",
        /// Of proxies.
        protocol_detection_timeout: Opaque = "protocolDetectionTimeout",
        /// Of gateways.
        ingress_class: Opaque = "ingressClass",
        /// Of gateways.
        ingress_service: Opaque = "ingressService",
        /// Of gateways.
        ingress_controller_mode: Opaque = "ingressControllerMode",
        /// Of gateways.
        ingress_selector: Opaque = "ingressSelector",
        /// Whether requests are traced.
        enable_tracing: Option<bool> = "enableTracing",
        /// Of telemetry.
        access_log_file: String = "accessLogFile",
        /// Of telemetry.
        access_log_format: Option<Text> = "accessLogFormat",
        /// Of telemetry.
        access_log_encoding: Option<LogEncoding> = "accessLogEncoding",
        /// Of telemetry.
        enable_envoy_access_log_service: Opaque = "enableEnvoyAccessLogService",
        /// Of telemetry.
        disable_envoy_listener_log: Opaque = "disableEnvoyListenerLog",
        /// Of telemetry.
        default_providers: Option<DefaultProviders> = "defaultProviders",
        /// Of telemetry.
        enable_prometheus_merge: Opaque = "enablePrometheusMerge",
        /// Of telemetry.
        inbound_cluster_stat_name: Opaque = "inboundClusterStatName",
        /// Of telemetry.
        outbound_cluster_stat_name: Opaque = "outboundClusterStatName",
        /// Of proxies.
        dns_refresh_rate: Opaque = "dnsRefreshRate",
    }
    /// How services are called, block by block, where no rule says it.
    pub struct DefaultTrafficPolicy {
        /// Connections and limits.
        connection_pool: Option<ConnectionPool> = "connectionPool",
        /// Ejection of failing endpoints.
        outlier_detection: Option<OutlierDetection> = "outlierDetection",
    }
    /// Calls to hosts that nothing describes.
    pub struct OutboundTraffic {
        /// Whether they pass.
        mode: OutboundMode = "mode",
    }
    /// What servers make of paths.
    pub struct PathNormalization {
        /// How much.
        normalization: NormalizationType = "normalization",
    }
    /// Mutual TLS between workloads.
    pub struct MeshTls {
        /// The oldest version.
        min_protocol_version: TlsVersion = "minProtocolVersion",
        /// The curves.
        ecdh_curves: Opaque = "ecdhCurves",
        /// The ciphers of TLS 1.2.
        cipher_suites: Opaque = "cipherSuites",
    }
    /// How requests are traced.
    pub struct ProxyTracing {
        /// How many of 100 begin a trace, of those that are no part of one.
        sampling: Option<f64> = "sampling",
        /// What spans have besides.
        custom_tags: BTreeMap<String, CustomTag> = "customTags",
        /// How much of a path is in a span.
        max_path_tag_length: Option<u32> = "maxPathTagLength",
        /// Whether spans say whose they are in Istio's words.
        enable_istio_tags: Option<bool> = "enableIstioTags",
        /// Where spans go.
        zipkin: Opaque = "zipkin",
        /// Where spans go.
        lightstep: Opaque = "lightstep",
        /// Where spans go.
        datadog: Opaque = "datadog",
        /// Where spans go.
        stackdriver: Opaque = "stackdriver",
        /// Where spans go.
        open_census_agent: Opaque = "openCensusAgent",
        /// How that is called.
        tls_settings: Opaque = "tlsSettings",
    }
    /// What a span has besides: one of these.
    pub struct CustomTag {
        /// A text.
        literal: Option<LiteralTag> = "literal",
        /// A variable of the workload's environment.
        environment: Option<VariableTag> = "environment",
        /// A header of the request.
        header: Option<VariableTag> = "header",
    }
    /// A text.
    pub struct LiteralTag {
        /// What it says.
        value: String = "value",
    }
    /// What has a name and a value.
    pub struct VariableTag {
        /// Its name.
        name: Text = "name" required,
        /// What stands there where it has no value.
        default_value: String = "defaultValue",
    }
    /// Somebody who can be asked, or a place that telemetry goes to.
    pub struct ExtensionProvider {
        /// Its name.
        name: Text = "name" required,
        /// An authorizer that speaks HTTP.
        http: Option<HttpAuthorizer> = "envoyExtAuthzHttp",
        /// An authorizer that speaks gRPC.
        grpc: Option<GrpcAuthorizer> = "envoyExtAuthzGrpc",
        /// Of telemetry.
        zipkin: Option<Opaque> = "zipkin",
        /// Of telemetry.
        lightstep: Option<Opaque> = "lightstep",
        /// Of telemetry.
        datadog: Option<Opaque> = "datadog",
        /// Of telemetry.
        stackdriver: Option<Opaque> = "stackdriver",
        /// Of telemetry.
        opencensus: Option<Opaque> = "opencensus",
        /// Of telemetry.
        skywalking: Option<Opaque> = "skywalking",
        /// Of telemetry.
        opentelemetry: Option<Opaque> = "opentelemetry",
        /// Of telemetry.
        prometheus: Option<Opaque> = "prometheus",
        /// Of telemetry.
        envoy_file_access_log: Option<FileAccessLog> = "envoyFileAccessLog",
        /// Of telemetry.
        envoy_http_als: Option<Opaque> = "envoyHttpAls",
        /// Of telemetry.
        envoy_tcp_als: Option<Opaque> = "envoyTcpAls",
        /// Of telemetry.
        envoy_otel_als: Option<OtelAccessLog> = "envoyOtelAls",
        /// Certificates.
        sds: Option<Opaque> = "sds",
    }
    /// Who takes what is told of requests, where no Telemetry says it.
    pub struct DefaultProviders {
        /// Traces.
        tracing: Vec<Text> = "tracing",
        /// Metrics.
        metrics: Vec<Text> = "metrics",
        /// Access logs.
        access_logging: Vec<Text> = "accessLogging",
    }
    /// An access log in a file.
    pub struct FileAccessLog {
        /// Where it is.
        path: String = "path",
        /// What a line is made of.
        log_format: Option<FileLogFormat> = "logFormat",
        /// Whether what is not there is left out.
        omit_empty_values: bool = "omitEmptyValues",
    }
    /// An access log at a collector of OpenTelemetry's.
    pub struct OtelAccessLog {
        /// Where it is.
        service: Text = "service" required,
        /// Its port.
        port: PortNumber = "port" required,
        /// What the log is called.
        log_name: String = "logName",
        /// What a record is made of.
        log_format: Option<FileLogFormat> = "logFormat",
    }
    /// What a line is made of: one of these. Of a record, the text is the body, and each label an attribute.
    pub struct FileLogFormat {
        /// A text with commands in it.
        text: Option<Text> = "text",
        /// An object of JSON whose texts have commands in them.
        labels: Option<At<Json>> = "labels",
    }
    /// How much of a request's body an authorizer is shown.
    pub struct BodyInCheck {
        /// The most, in bytes.
        max_request_bytes: u32 = "maxRequestBytes",
        /// Whether the first bytes of a longer one are enough.
        allow_partial_message: bool = "allowPartialMessage",
        /// Whether it is bytes to an authorizer that speaks gRPC, else text.
        pack_as_bytes: bool = "packAsBytes",
    }
    /// An authorizer that speaks HTTP.
    pub struct HttpAuthorizer {
        /// Its service: `HOST` or `NAMESPACE/HOST`.
        service: Text = "service" required,
        /// Its port.
        port: PortNumber = "port" required,
        /// How long an answer may take.
        timeout: Option<Duration> = "timeout",
        /// What stands before the path of the request that it is asked about.
        path_prefix: String = "pathPrefix",
        /// Whether requests pass that it does not answer about.
        fail_open: bool = "failOpen",
        /// What clients are answered where it does not answer.
        status_on_error: Option<Text> = "statusOnError",
        /// The same as `includeRequestHeadersInCheck`.
        include_headers_in_check: Vec<Text> = "includeHeadersInCheck",
        /// Headers of the request that it is shown.
        include_request_headers_in_check: Vec<Text> = "includeRequestHeadersInCheck",
        /// Headers that it is sent besides.
        include_additional_headers_in_check: BTreeMap<String, String> = "includeAdditionalHeadersInCheck",
        /// How much of the body it is shown.
        include_request_body_in_check: Option<BodyInCheck> = "includeRequestBodyInCheck",
        /// Headers of its answer that the application sees.
        headers_to_upstream_on_allow: Vec<Text> = "headersToUpstreamOnAllow",
        /// Headers of its answer that the client sees where it is refused.
        headers_to_downstream_on_deny: Vec<Text> = "headersToDownstreamOnDeny",
        /// Headers of its answer that the client sees where it is let in.
        headers_to_downstream_on_allow: Vec<Text> = "headersToDownstreamOnAllow",
        /// Whether the route is looked for again.
        clear_route_cache: bool = "clearRouteCache",
    }
    /// An authorizer that speaks gRPC.
    pub struct GrpcAuthorizer {
        /// Its service: `HOST` or `NAMESPACE/HOST`.
        service: Text = "service" required,
        /// Its port.
        port: PortNumber = "port" required,
        /// How long an answer may take.
        timeout: Option<Duration> = "timeout",
        /// Whether requests pass that it does not answer about.
        fail_open: bool = "failOpen",
        /// What clients are answered where it does not answer.
        status_on_error: Option<Text> = "statusOnError",
        /// How much of the body it is shown.
        include_request_body_in_check: Option<BodyInCheck> = "includeRequestBodyInCheck",
        /// Whether the route is looked for again.
        clear_route_cache: bool = "clearRouteCache",
    }
}

/// How proxies are run. There are none here, so that of all that it says only how requests are traced is read.
#[derive(Clone, Debug, Default)]
pub struct ProxyConfig {
    /// How requests are traced.
    pub tracing: Option<ProxyTracing>,
}

impl Decode for ProxyConfig {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let Value::Map(_) = &node.value else {
            d.wrong_type(node, "a mapping");
            return None;
        };
        Some(ProxyConfig { tracing: d.optional(node, "tracing")? })
    }

    fn fields(prefix: &str, out: &mut Vec<String>) {
        field_paths::<Option<ProxyTracing>>(prefix, "tracing", out);
    }
}

keywords! {
    /// Whether HTTP/1.1 becomes HTTP/2 where no rule says it.
    pub enum MeshH2UpgradePolicy {
        /// No.
        DoNotUpgrade = "DO_NOT_UPGRADE",
        /// Yes.
        Upgrade = "UPGRADE",
    }
    /// What a line of an access log is.
    pub enum LogEncoding {
        /// A text.
        Text = "TEXT",
        /// An object of JSON.
        Json = "JSON",
    }
    /// Whether calls to hosts that nothing describes pass.
    pub enum OutboundMode {
        /// They fail.
        RegistryOnly = "REGISTRY_ONLY",
        /// They pass.
        AllowAny = "ALLOW_ANY",
        /// They pass, by DNS; a library has no other way.
        AllowAnyDynamicDns = "ALLOW_ANY_DYNAMIC_DNS",
    }
    /// How much servers make of paths.
    pub enum NormalizationType {
        /// The mesh's default.
        Default = "DEFAULT",
        /// Nothing.
        None = "NONE",
        /// RFC 3986.
        Base = "BASE",
        /// And one slash for several.
        MergeSlashes = "MERGE_SLASHES",
        /// And escaped slashes are slashes.
        DecodeAndMergeSlashes = "DECODE_AND_MERGE_SLASHES",
    }
    /// A version of TLS.
    pub enum TlsVersion {
        /// Whichever is best.
        Auto = "TLS_AUTO",
        /// TLS 1.2
        Tls12 = "TLSV1_2",
        /// TLS 1.3
        Tls13 = "TLSV1_3",
    }
}

/// The longest time that an authorizer is given unless its provider says otherwise (Istio: extension providers).
pub const AUTHORIZER_TIMEOUT: Duration = Duration::from_secs(600);

/// Anything, as JSON has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Json(pub serde_json::Value);

impl Decode for Json {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let inner = |node: &Node, d: &mut Decoder<'_>| Json::decode(node, d).map(|Json(value)| value);
        Some(Json(match &node.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Str(value) => value.as_str().into(),
            Value::Seq(items) => items.iter().map(|item| inner(item, d)).collect::<Option<Vec<_>>>()?.into(),
            Value::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| Some((key.name.clone(), inner(value, d)?)));
                serde_json::Value::Object(entries.collect::<Option<_>>()?)
            }
        }))
    }
}

/// The name of Istio's own provider of access logs, which every mesh has.
pub const STDOUT_LOG: &str = "envoy";

impl FileAccessLog {
    /// The log of [`STDOUT_LOG`].
    pub fn to_stdout() -> FileAccessLog {
        FileAccessLog { path: String::new(), log_format: None, omit_empty_values: false, span: Span::default() }
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        if self.path.is_empty() { "/dev/stdout" } else { &self.path }
    }

    /// What a line is made of.
    ///
    /// # Errors
    /// What is wrong with it, in which field, and where.
    pub fn format(&self) -> Result<LogFormat, (Span, String, String)> {
        let Some(written) = &self.log_format else { return Ok(LogFormat::default()) };
        match (written.text.as_ref().filter(|text| !text.is_empty()), &written.labels) {
            (Some(_), Some(labels)) => {
                Err((labels.span, "labels".to_owned(), "beside text: only one of the two can be written".to_owned()))
            }
            (Some(text), None) => {
                let read = LogText::parse(text).map(LogFormat::Text);
                read.map_err(|invalid| (text.span, "text".to_owned(), invalid.to_string()))
            }
            // Istio: without any labels it is the default JSON.
            (None, Some(labels)) if is_empty(&labels.value.0) => Ok(LogFormat::json()),
            (None, Some(labels)) => {
                LogFormat::of_json(&labels.value.0).map_err(|invalid| of_labels(labels.span, invalid))
            }
            (None, None) => Ok(LogFormat::default()),
        }
    }
}

impl OtelAccessLog {
    /// What a record is made of: its body, and its attributes, an object.
    pub fn parts(&self) -> (&str, Option<&serde_json::Value>) {
        let written = self.log_format.as_ref();
        let text = written.and_then(|format| format.text.as_ref()).filter(|text| !text.is_empty());
        let labels = written.and_then(|format| format.labels.as_ref()).map(|labels| &labels.value.0);
        (text.map_or(DEFAULT_LINE, |text| text.value.as_str()), labels.filter(|labels| !is_empty(labels)))
    }

    /// The formats of both, with where they are written.
    ///
    /// # Errors
    /// What is wrong with one, in which field, and where.
    pub fn formats(&self) -> Result<Vec<(Span, LogFormat)>, (Span, String, String)> {
        let Some(written) = &self.log_format else { return Ok(Vec::new()) };
        let mut formats = Vec::new();
        if let Some(text) = written.text.as_ref().filter(|text| !text.is_empty()) {
            let read = LogText::parse(text).map_err(|invalid| (text.span, "text".to_owned(), invalid.to_string()))?;
            formats.push((text.span, LogFormat::Text(read)));
        }
        if let Some(labels) = &written.labels {
            let read = LogFormat::of_json(&labels.value.0).map_err(|invalid| of_labels(labels.span, invalid))?;
            if labels.value.0.get(AccessLog::BODY).is_some() {
                return Err((labels.span, "labels".to_owned(), "an attribute has a name".to_owned()));
            }
            formats.push((labels.span, read));
        }
        Ok(formats)
    }
}

fn of_labels(span: Span, invalid: Invalid) -> (Span, String, String) {
    let field = if invalid.field.is_empty() { "labels".to_owned() } else { format!("labels.{}", invalid.field) };
    (span, field, invalid.reason)
}

/// Whether it is an object of JSON with nothing in it.
pub fn is_empty(value: &serde_json::Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty)
}

impl MeshConfig {
    /// What a line is made of in `accessLogFile`, and in the log of [`STDOUT_LOG`] where that has no format of its own.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn log_format(&self) -> Result<LogFormat, (Span, String)> {
        let is_json = self.access_log_encoding == Some(LogEncoding::Json);
        let Some(text) = self.access_log_format.as_ref().filter(|text| !text.is_empty()) else {
            return Ok(if is_json { LogFormat::json() } else { LogFormat::default() });
        };
        let format = match is_json {
            true => serde_json::from_str(text)
                .map_err(|error| Invalid::new(format!("not an object of JSON: {error}")))
                .and_then(|value| LogFormat::of_json(&value)),
            false => LogText::parse(text).map(LogFormat::Text),
        };
        format.map_err(|invalid| (text.span, invalid.to_string()))
    }

    /// What is wrong with it.
    pub fn check(&self, d: &mut Decoder<'_>) {
        if let Some(setting) = &self.locality_lb_setting {
            check_locality(setting, "localityLbSetting", d);
        }
        if let Some(setting) = &self.zone_aware_lb_setting {
            check_zones(setting, "zoneAwareLbSetting", d);
        }
        if let Some(DefaultTrafficPolicy { connection_pool, outlier_detection, .. }) = &self.default_traffic_policy {
            let (pool, detection) = (connection_pool.as_ref(), outlier_detection.as_ref());
            destination_rule::check_blocks(pool, detection, "defaultTrafficPolicy", d);
        }
        let mut wrong = |span: Span, field: String, message: String| {
            d.report_at(span, field, Severity::Error, Code::InvalidValue, message);
        };
        let aliases = self.trust_domain_aliases.iter().enumerate();
        let aliases = aliases.map(|(index, alias)| (format!("trustDomainAliases[{index}]"), alias));
        for (field, domain) in self.trust_domain.iter().map(|domain| ("trustDomain".to_owned(), domain)).chain(aliases)
        {
            if let Err(invalid) = domain.value.parse::<TrustDomain>() {
                wrong(domain.span, field, format!("{} is not a trust domain: {invalid}", quoted(domain)));
            }
        }
        if let Some(namespace) = self.root_namespace.as_ref().filter(|namespace| !is_namespace(namespace)) {
            let message = format!("{} is not a namespace: lower-case letters, digits and `-`", quoted(namespace));
            wrong(namespace.span, "rootNamespace".to_owned(), message);
        }
        for (field, list) in [
            ("defaultServiceExportTo", &self.default_service_export_to),
            ("defaultVirtualServiceExportTo", &self.default_virtual_service_export_to),
            ("defaultDestinationRuleExportTo", &self.default_destination_rule_export_to),
        ] {
            for (index, message) in export_faults(list.iter().map(|entry| entry.value.as_str())) {
                let span = list.get(index).map_or(self.span, |entry| entry.span);
                wrong(span, format!("{field}[{index}]"), message);
            }
        }
        if self.connect_timeout.is_some_and(|timeout| timeout < Duration::from_millis(1)) {
            wrong(self.span, "connectTimeout".to_owned(), "less than 1ms".to_owned());
        }
        if let Err((span, message)) = self.log_format() {
            wrong(span, "accessLogFormat".to_owned(), message);
        }
        if let Some(tracing) = self.default_config.as_ref().and_then(|config| config.tracing.as_ref()) {
            tracing.check("defaultConfig.tracing", &mut wrong);
        }
        if let Some(retries) = &self.default_http_retry_policy {
            for (field, message) in retries.faults() {
                wrong(retries.span, format!("defaultHttpRetryPolicy.{field}"), message);
            }
        }
        let mut names = BTreeSet::new();
        for (index, provider) in self.extension_providers.iter().enumerate() {
            let at = format!("extensionProviders[{index}]");
            if provider.name.is_empty() || !names.insert(provider.name.as_str()) {
                let message = format!("{}: a provider has a name of its own", quoted(&provider.name));
                wrong(provider.name.span, format!("{at}.name"), message);
            }
            if provider.kinds() != 1 {
                let message =
                    format!("{} is one kind of provider, and here are {}", provider.name.value, provider.kinds());
                wrong(provider.span, at.clone(), message);
            }
            if let Some(log) = &provider.envoy_file_access_log
                && let Err((span, field, message)) = log.format()
            {
                wrong(span, format!("{at}.envoyFileAccessLog.logFormat.{field}"), message);
            }
            if let Some(Err((span, field, message))) = provider.envoy_otel_als.as_ref().map(OtelAccessLog::formats) {
                wrong(span, format!("{at}.envoyOtelAls.logFormat.{field}"), message);
            }
            if let Some(http) = &provider.http {
                http.check(&format!("{at}.envoyExtAuthzHttp"), &mut wrong);
            }
            if let Some(grpc) = &provider.grpc {
                let at = format!("{at}.envoyExtAuthzGrpc");
                check_body(&at, grpc.include_request_body_in_check.as_ref(), &mut wrong);
                check_authorizer(
                    &at,
                    &grpc.service,
                    grpc.timeout,
                    grpc.status_on_error.as_ref(),
                    grpc.span,
                    &mut wrong,
                );
            }
        }
        self.remark_on_logs(d);
    }

    /// What of access logs is without effect, or has one only where an application says so, too.
    fn remark_on_logs(&self, d: &mut Decoder<'_>) {
        let mut say = |span: Span, field: String, severity, message: String| {
            d.report_at(span, field, severity, Code::Ignored, message);
        };
        let mut of_format = |span: Span, field: &str, format: &LogFormat| {
            let commands: BTreeSet<&str> = format.without_effect().collect();
            for command in commands {
                let message = format!("%{command}%: there is nothing of it here, and `-` is written in its place");
                say(span, field.to_owned(), Severity::Warning, message);
            }
        };
        if let (Ok(format), Some(written)) = (self.log_format(), &self.access_log_format) {
            of_format(written.span, "accessLogFormat", &format);
        }
        let logs = self.extension_providers.iter().enumerate();
        let logs = logs.filter_map(|(index, provider)| Some((index, provider.envoy_file_access_log.as_ref()?)));
        for (index, log) in logs.clone() {
            if let (Some(written), Ok(format)) = (&log.log_format, log.format()) {
                of_format(written.span, &format!("extensionProviders[{index}].envoyFileAccessLog.logFormat"), &format);
            }
        }
        for (index, provider) in self.extension_providers.iter().enumerate() {
            let formats = provider.envoy_otel_als.as_ref().and_then(|log| log.formats().ok()).unwrap_or_default();
            for (span, format) in formats {
                of_format(span, &format!("extensionProviders[{index}].envoyOtelAls.logFormat"), &format);
            }
        }
        let files = logs
            .map(|(index, log)| (log.span, format!("extensionProviders[{index}].envoyFileAccessLog.path"), log.path()));
        let own = (!self.access_log_file.is_empty()).then_some((
            self.span,
            "accessLogFile".to_owned(),
            &*self.access_log_file,
        ));
        for (span, field, path) in own.into_iter().chain(files).filter(|(_, _, path)| !IN_ANY_PROCESS.contains(path)) {
            let message = format!(
                "{path} is written only by applications that allow it (`access_log_files_in` of the library's builder): \
                 whoever writes these settings must not be able to add to any file of a machine"
            );
            say(span, field, Severity::Info, message);
        }
    }
}

/// Files that every application has.
const IN_ANY_PROCESS: [&str; 2] = ["/dev/stdout", "/dev/stderr"];

impl ExtensionProvider {
    fn kinds(&self) -> usize {
        let others = [
            &self.zipkin,
            &self.lightstep,
            &self.datadog,
            &self.stackdriver,
            &self.opencensus,
            &self.skywalking,
            &self.opentelemetry,
            &self.prometheus,
            &self.envoy_http_als,
            &self.envoy_tcp_als,
            &self.sds,
        ];
        let others = others.into_iter().filter(|kind| kind.is_some()).count();
        let logs = [self.envoy_file_access_log.is_some(), self.envoy_otel_als.is_some()];
        let read = [self.http.is_some(), self.grpc.is_some()].into_iter().chain(logs);
        others + read.filter(|is_there| *is_there).count()
    }
}

impl ProxyTracing {
    fn check(&self, at: &str, wrong: &mut impl FnMut(Span, String, String)) {
        if let Some(sampling) = self.sampling.filter(|sampling| !(0.0..=100.0).contains(sampling)) {
            wrong(self.span, format!("{at}.sampling"), format!("{sampling} is not a percentage from 0 to 100"));
        }
        for (name, tag) in &self.custom_tags {
            let at = format!("{at}.customTags[{name}]");
            if name.is_empty() {
                wrong(tag.span, at.clone(), "a tag has a name".to_owned());
            }
            for (span, field, message) in tag.faults() {
                wrong(span, if field.is_empty() { at.clone() } else { format!("{at}.{field}") }, message);
            }
        }
    }
}

impl CustomTag {
    /// What is wrong with it: where, in which of its fields, and what.
    pub fn faults(&self) -> Vec<(Span, &'static str, String)> {
        let mut faults = Vec::new();
        let kinds = [self.literal.is_some(), self.environment.is_some(), self.header.is_some()];
        let kinds = kinds.into_iter().filter(|is_there| *is_there).count();
        if kinds != 1 {
            faults.push((self.span, "", format!("one of literal, environment and header, and here are {kinds}")));
        }
        if let Some(variable) = self.environment.as_ref().filter(|variable| variable.name.is_empty()) {
            faults.push((variable.name.span, "environment.name", "is empty".to_owned()));
        }
        if let Some(header) = self.header.as_ref().filter(|it| HeaderName::try_from(it.name.as_str()).is_err()) {
            let message = format!("{} is not the name of a header", quoted(&header.name));
            faults.push((header.name.span, "header.name", message));
        }
        faults
    }
}

impl HttpAuthorizer {
    fn check(&self, at: &str, wrong: &mut impl FnMut(Span, String, String)) {
        check_authorizer(at, &self.service, self.timeout, self.status_on_error.as_ref(), self.span, wrong);
        check_body(at, self.include_request_body_in_check.as_ref(), wrong);
        if self.service.to_ascii_lowercase().ends_with(IN_PROCESS) {
            let message =
                format!("{} is in the process of a server: write it under envoyExtAuthzGrpc", self.service.value);
            wrong(self.service.span, format!("{at}.service"), message);
        }
        if !self.path_prefix.is_empty() && http::uri::PathAndQuery::try_from(self.path_prefix.as_str()).is_err()
            || self.path_prefix.contains(['?', '#'])
            || !self.path_prefix.is_empty() && !self.path_prefix.starts_with('/')
        {
            let message = format!("{} is not a path", quoted(&self.path_prefix));
            wrong(self.span, format!("{at}.pathPrefix"), message);
        }
        for (name, value) in &self.include_additional_headers_in_check {
            let field = format!("{at}.includeAdditionalHeadersInCheck[{name}]");
            match (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str())) {
                (Ok(name), Ok(_)) if !is_of_the_wire(name.as_str()) => {}
                (Ok(_), Ok(_)) => wrong(self.span, field, format!("{} is not for configuration to set", quoted(name))),
                _ => wrong(self.span, field, "is not a header".to_owned()),
            }
        }
        for (field, list, sets) in [
            ("includeHeadersInCheck", &self.include_headers_in_check, false),
            ("includeRequestHeadersInCheck", &self.include_request_headers_in_check, false),
            ("headersToUpstreamOnAllow", &self.headers_to_upstream_on_allow, true),
            ("headersToDownstreamOnDeny", &self.headers_to_downstream_on_deny, false),
            ("headersToDownstreamOnAllow", &self.headers_to_downstream_on_allow, true),
        ] {
            for (index, entry) in list.iter().enumerate() {
                let name = entry.strip_suffix('*').or_else(|| entry.strip_prefix('*')).unwrap_or(entry);
                let message = if name.is_empty() && sets {
                    "an authorizer must not set every header: name those that it may set".to_owned()
                } else if !name.is_empty() && HeaderName::try_from(name).is_err() {
                    format!("{} is not the name of a header, with a star at one end at most", quoted(entry))
                } else if sets && is_of_the_wire(&name.to_ascii_lowercase()) {
                    format!("{} is not for an authorizer to set", quoted(entry))
                } else {
                    continue;
                };
                wrong(entry.span, format!("{at}.{field}[{index}]"), message);
            }
        }
    }
}

fn check_authorizer(
    at: &str,
    service: &Text,
    timeout: Option<Duration>,
    status: Option<&Text>,
    span: Span,
    wrong: &mut impl FnMut(Span, String, String),
) {
    let host = service.split_once('/').map_or(service.as_str(), |(_, host)| host);
    if host.is_empty() || host.contains('*') || super::names::host_fault(host).is_some() {
        let message = format!("{} is not the host of a service, or NAMESPACE/HOST", quoted(service));
        wrong(service.span, format!("{at}.service"), message);
    }
    if timeout == Some(Duration::ZERO) {
        wrong(span, format!("{at}.timeout"), "must be more than 0".to_owned());
    }
    if let Some(status) = status.filter(|status| self::status(status).is_none()) {
        let message = format!("{} is not a status from 400 to 599", quoted(status));
        wrong(status.span, format!("{at}.statusOnError"), message);
    }
}

fn check_body(at: &str, body: Option<&BodyInCheck>, wrong: &mut impl FnMut(Span, String, String)) {
    let Some(BodyInCheck { max_request_bytes, span, .. }) = body else { return };
    if *max_request_bytes == 0 || *max_request_bytes as usize > CheckedBody::LIMIT {
        let message = format!("expected a number of bytes from 1 to {}", CheckedBody::LIMIT);
        wrong(*span, format!("{at}.includeRequestBodyInCheck.maxRequestBytes"), message);
    }
}

/// A status that says that a request failed. One of another kind would say that it was let in.
pub fn status(text: &str) -> Option<u16> {
    text.parse().ok().filter(|status| (400..=599).contains(status))
}

/// Headers that are of a connection or of framing, or that a policy decides by.
fn is_of_the_wire(name: &str) -> bool {
    const NAMES: [&str; 12] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "content-encoding",
    ];
    NAMES.contains(&name)
}

fn is_namespace(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.len() <= 63 && text.chars().all(allowed)
}
