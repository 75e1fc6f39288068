//! `MeshConfig`: the settings of a whole mesh, as Istio has them in the ConfigMap `istio` or in a file.

mod providers;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use http::HeaderName;
use mesh_core::error::Invalid;
use mesh_core::identity::TrustDomain;
use mesh_core::model::{ForwardedClientCert, LogFormat, LogText};

use super::destination_rule::balancer::{check_locality, check_zones};
use super::destination_rule::{self, ConnectionPool, LocalityLb, OutlierDetection, TcpKeepalive, ZoneAwareLb};
use super::names::export_faults;
use super::virtual_service::Retry;
use crate::config::decode::{At, Decode, Decoder, Opaque, Text, field_paths, keywords, message};
use crate::config::diagnostic::{Code, Severity, Span, quoted};
use crate::config::node::{Key, Node, Value};
pub use providers::{
    AUTHORIZER_TIMEOUT, BodyInCheck, ExtensionProvider, FileAccessLog, FileLogFormat, GrpcAuthorizer, HttpAuthorizer,
    Json, OtelAccessLog, STDOUT_LOG, is_empty, status,
};

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
        enable_auto_mtls: Option<At<bool>> = "enableAutoMtls",
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
        connect_timeout: Option<At<Duration>> = "connectTimeout",
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
        h2_upgrade_policy: Option<At<MeshH2UpgradePolicy>> = "h2UpgradePolicy",
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
    /// What is in front of gateways.
    pub struct GatewayTopology {
        /// How many proxies are believed what `X-Forwarded-For` says.
        num_trusted_proxies: Option<u32> = "numTrustedProxies",
        /// What becomes of `X-Forwarded-Client-Cert`.
        forward_client_cert_details: Option<ForwardClientCertDetails> = "forwardClientCertDetails",
        /// Whether connections begin with a header of the PROXY protocol: it is there, and says nothing more.
        proxy_protocol: Option<Opaque> = "proxyProtocol",
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
    /// Who takes what is told of requests, where no Telemetry says it.
    pub struct DefaultProviders {
        /// Traces.
        tracing: Vec<Text> = "tracing",
        /// Metrics.
        metrics: Vec<Text> = "metrics",
        /// Access logs.
        access_logging: Vec<Text> = "accessLogging",
    }
}

/// How many proxies in front of a gateway can be believed: clients would say themselves who they are with more than there are.
pub const MOST_FORWARDED_HOPS: u32 = 1000;

/// How proxies are run. There are none here, so that of all that it says only how requests are traced is read, and what is in front of
/// gateways.
#[derive(Clone, Debug, Default)]
pub struct ProxyConfig {
    /// How requests are traced.
    pub tracing: Option<ProxyTracing>,
    /// What is in front of gateways.
    pub gateway_topology: Option<GatewayTopology>,
}

impl Decode for ProxyConfig {
    fn decode(node: &Node, d: &mut Decoder<'_>) -> Option<Self> {
        let Value::Map(_) = &node.value else {
            d.wrong_type(node, "a mapping");
            return None;
        };
        let topology = node.get("gatewayTopology").map(Node::entries).unwrap_or_default();
        let is_bare = |(key, value): &&(Key, Node)| key.name == "proxyProtocol" && value.value == Value::Null;
        if let Some((key, _)) = topology.iter().find(is_bare) {
            let message = "`gatewayTopology.proxyProtocol` has nothing behind it: `{}` asks for it, and without the field nobody does";
            d.error(key.span, Code::InvalidValue, message);
        }
        let gateway_topology: Option<GatewayTopology> = d.optional(node, "gatewayTopology")?;
        let trusted =
            gateway_topology.as_ref().and_then(|topology| Some((topology.span, topology.num_trusted_proxies?)));
        if let Some((span, number)) = trusted.filter(|(_, number)| *number > MOST_FORWARDED_HOPS) {
            let message = format!(
                "`gatewayTopology.numTrustedProxies` is {number}, and there are no more than {MOST_FORWARDED_HOPS} in front of a gateway"
            );
            d.error(span, Code::InvalidValue, message);
        }
        Some(ProxyConfig { tracing: d.optional(node, "tracing")?, gateway_topology })
    }

    fn fields(prefix: &str, out: &mut Vec<String>) {
        field_paths::<Option<ProxyTracing>>(prefix, "tracing", out);
        field_paths::<Option<GatewayTopology>>(prefix, "gatewayTopology", out);
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
    /// What becomes of `X-Forwarded-Client-Cert` at a gateway.
    pub enum ForwardClientCertDetails {
        /// It is not said.
        Undefined = "UNDEFINED",
        /// It is taken off.
        Sanitize = "SANITIZE",
        /// It goes on, of clients that have shown a certificate.
        ForwardOnly = "FORWARD_ONLY",
        /// The same, with that certificate.
        AppendForward = "APPEND_FORWARD",
        /// It is that certificate, and nothing else.
        SanitizeSet = "SANITIZE_SET",
        /// It goes on.
        AlwaysForwardOnly = "ALWAYS_FORWARD_ONLY",
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

impl ForwardClientCertDetails {
    /// What it comes to; `None` where it is not said.
    pub fn forwarded(self) -> Option<ForwardedClientCert> {
        match self {
            ForwardClientCertDetails::Undefined => None,
            ForwardClientCertDetails::Sanitize => Some(ForwardedClientCert::Sanitize),
            ForwardClientCertDetails::ForwardOnly => Some(ForwardedClientCert::ForwardOnly),
            ForwardClientCertDetails::AppendForward => Some(ForwardedClientCert::AppendForward),
            ForwardClientCertDetails::SanitizeSet => Some(ForwardedClientCert::SanitizeSet),
            ForwardClientCertDetails::AlwaysForwardOnly => Some(ForwardedClientCert::AlwaysForwardOnly),
        }
    }
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
        let zones = self.zone_aware_lb_setting.as_ref().filter(|zones| zones.enabled != Some(false));
        if let (Some(near), Some(_)) = (&self.locality_lb_setting, zones)
            && near.enabled != Some(false)
        {
            let message =
                "without effect: `zoneAwareLbSetting` stands in its place, but where a rule has that not enabled";
            d.report_at(near.span, "localityLbSetting", Severity::Warning, Code::Ignored, message);
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
        if let Some(timeout) = self.connect_timeout.as_ref().filter(|timeout| ***timeout < Duration::from_millis(1)) {
            wrong(timeout.span, "connectTimeout".to_owned(), "less than 1ms".to_owned());
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
            provider.check(&at, &mut wrong);
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

fn is_namespace(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.len() <= 63 && text.chars().all(allowed)
}
