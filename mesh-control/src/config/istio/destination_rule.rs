//! `DestinationRule` (networking.istio.io): how a service is called once routing has chosen it.

pub(super) mod balancer;

use std::collections::BTreeMap;
use std::time::Duration;

use super::names::{host_fault, is_label};
use super::{PortSelector, check_export, check_labels};
use crate::config::decode::{Decoder, Opaque, PortNumber, Text, keywords, message};
use crate::config::diagnostic::{Code, Severity, quoted};

message! {
    /// The specification.
    pub struct DestinationRule {
        /// The service; short names belong to the object's namespace.
        host: Text = "host" required,
        /// For every port and subset.
        traffic_policy: Option<TrafficPolicy> = "trafficPolicy",
        /// Named parts of the service.
        subsets: Vec<Subset> = "subsets",
        /// Namespaces that see it; empty means all.
        export_to: Vec<Text> = "exportTo",
        /// Clients, of the object's namespace, that it is for; absent means all.
        workload_selector: Option<MatchLabels> = "workloadSelector",
    }
    /// A selection by labels.
    pub struct MatchLabels {
        /// Labels that must all be there.
        match_labels: BTreeMap<String, String> = "matchLabels",
    }
    /// A part of a service: the endpoints with these labels.
    pub struct Subset {
        /// The name that routes use.
        name: Text = "name" required,
        /// Labels that must all be there.
        labels: BTreeMap<String, String> = "labels",
        /// Overrides, setting by setting.
        traffic_policy: Option<TrafficPolicy> = "trafficPolicy",
    }
    /// How to call.
    pub struct TrafficPolicy {
        /// Load balancing.
        load_balancer: Option<LoadBalancer> = "loadBalancer",
        /// Connections and limits.
        connection_pool: Option<ConnectionPool> = "connectionPool",
        /// Ejection of failing endpoints.
        outlier_detection: Option<OutlierDetection> = "outlierDetection",
        /// Transport security.
        tls: Option<ClientTls> = "tls",
        /// Instead of the above, for one port.
        port_level_settings: Vec<PortTrafficPolicy> = "portLevelSettings",
        /// Through an HTTP proxy.
        tunnel: Option<Tunnel> = "tunnel",
        /// PROXY protocol.
        proxy_protocol: Option<ProxyProtocol> = "proxyProtocol",
        /// How many retries may be under way.
        retry_budget: Option<RetryBudget> = "retryBudget",
    }
    /// How to call one port.
    pub struct PortTrafficPolicy {
        /// The port.
        port: PortSelector = "port" required,
        /// Load balancing.
        load_balancer: Option<LoadBalancer> = "loadBalancer",
        /// Connections and limits.
        connection_pool: Option<ConnectionPool> = "connectionPool",
        /// Ejection of failing endpoints.
        outlier_detection: Option<OutlierDetection> = "outlierDetection",
        /// Transport security.
        tls: Option<ClientTls> = "tls",
    }
    /// Load balancing.
    pub struct LoadBalancer {
        /// An algorithm by name.
        simple: Option<SimpleLb> = "simple",
        /// Stickiness by hash.
        consistent_hash: Option<ConsistentHash> = "consistentHash",
        /// Preference for near endpoints.
        locality_lb_setting: Option<LocalityLb> = "localityLbSetting",
        /// Deprecated form of `warmup.duration`.
        warmup_duration_secs: Option<Duration> = "warmupDurationSecs",
        /// Slow start.
        warmup: Option<Warmup> = "warmup",
        /// Zones that share requests.
        zone_aware_lb_setting: Option<ZoneAwareLb> = "zoneAwareLbSetting",
    }
    /// Stickiness by hash.
    pub struct ConsistentHash {
        /// Hash this header.
        http_header_name: Option<String> = "httpHeaderName",
        /// Hash this cookie.
        http_cookie: Option<HttpCookie> = "httpCookie",
        /// Hash the client's address.
        use_source_ip: Option<bool> = "useSourceIp",
        /// Hash this query parameter.
        http_query_parameter_name: Option<String> = "httpQueryParameterName",
        /// Deprecated form of `ringHash.minimumRingSize`.
        minimum_ring_size: Option<u64> = "minimumRingSize",
        /// With a ring.
        ring_hash: Option<RingHash> = "ringHash",
        /// With Maglev's table.
        maglev: Option<Maglev> = "maglev",
    }
    /// A cookie to hash.
    pub struct HttpCookie {
        /// Its name.
        name: String = "name" required,
        /// Its path.
        path: String = "path",
        /// Its life; absent means that it is never made.
        ttl: Option<Duration> = "ttl",
        /// Its attributes.
        attributes: Vec<CookieAttribute> = "attributes",
    }
    /// An attribute of a cookie.
    pub struct CookieAttribute {
        /// Its name.
        name: String = "name",
        /// Its value.
        value: String = "value",
    }
    /// A ring.
    pub struct RingHash {
        /// Points on the ring; 1024 by default.
        minimum_ring_size: Option<u64> = "minimumRingSize",
    }
    /// Maglev's table.
    pub struct Maglev {
        /// Its size; 65537 by default.
        table_size: Option<u64> = "tableSize",
    }
    /// Preference for near endpoints.
    pub struct LocalityLb {
        /// Shares by locality.
        distribute: Vec<Distribute> = "distribute",
        /// Where a region fails over to.
        failover: Vec<Failover> = "failover",
        /// Labels that rank endpoints.
        failover_priority: Vec<String> = "failoverPriority",
        /// Whether at all.
        enabled: Option<bool> = "enabled",
    }
    /// Requests stay in the client's zone as far as it can take them.
    pub struct ZoneAwareLb {
        /// Whether at all.
        enabled: Option<bool> = "enabled",
        /// Where a region fails over to.
        failover: Vec<Failover> = "failover",
        /// Labels that rank endpoints.
        failover_priority: Vec<String> = "failoverPriority",
        /// How many endpoints a region has at least for its zones to be told apart; 6 by default.
        min_cluster_size: Option<u64> = "minClusterSize",
    }
    /// Shares by locality.
    pub struct Distribute {
        /// Clients there.
        from: String = "from",
        /// Percent by locality.
        to: BTreeMap<String, u32> = "to",
    }
    /// Where a region fails over to.
    pub struct Failover {
        /// The failed region.
        from: String = "from",
        /// The region instead.
        to: String = "to",
    }
    /// Slow start.
    pub struct Warmup {
        /// How long an endpoint is new.
        duration: Option<Duration> = "duration",
        /// Percent to start with; 10 by default.
        minimum_percent: Option<f64> = "minimumPercent",
        /// The curve; 1 by default.
        aggression: Option<f64> = "aggression",
    }
    /// Connections and limits.
    pub struct ConnectionPool {
        /// For every protocol.
        tcp: Option<TcpPool> = "tcp",
        /// For HTTP.
        http: Option<HttpPool> = "http",
    }
    /// Connections.
    pub struct TcpPool {
        /// How many.
        max_connections: Option<i32> = "maxConnections",
        /// How long establishing one may take; 10 s by default.
        connect_timeout: Option<Duration> = "connectTimeout",
        /// Probes of the operating system.
        tcp_keepalive: Option<TcpKeepalive> = "tcpKeepalive",
        /// How old one may become.
        max_connection_duration: Option<Duration> = "maxConnectionDuration",
        /// How long one may be idle; 1 h by default.
        idle_timeout: Option<Duration> = "idleTimeout",
    }
    /// Probes of the operating system.
    pub struct TcpKeepalive {
        /// How many.
        probes: Option<u32> = "probes",
        /// After how much silence.
        time: Option<Duration> = "time",
        /// How far apart.
        interval: Option<Duration> = "interval",
    }
    /// HTTP limits.
    pub struct HttpPool {
        /// Requests that wait for a connection.
        http1_max_pending_requests: Option<i32> = "http1MaxPendingRequests",
        /// Requests under way.
        http2_max_requests: Option<i32> = "http2MaxRequests",
        /// Requests before a connection is closed; 0 means no limit.
        max_requests_per_connection: Option<i32> = "maxRequestsPerConnection",
        /// Retries under way.
        max_retries: Option<i32> = "maxRetries",
        /// How long a connection may be idle; 1 h by default.
        idle_timeout: Option<Duration> = "idleTimeout",
        /// Whether HTTP/1.1 becomes HTTP/2.
        h2_upgrade_policy: H2UpgradePolicy = "h2UpgradePolicy",
        /// The protocol of the client, kept.
        use_client_protocol: Option<bool> = "useClientProtocol",
        /// Streams on one connection.
        max_concurrent_streams: Option<i32> = "maxConcurrentStreams",
        /// HTTP/2 pings.
        http2_keep_alive: Option<Http2KeepAlive> = "http2KeepAlive",
    }
    /// HTTP/2 pings.
    pub struct Http2KeepAlive {
        /// How far apart they are.
        interval: Option<Duration> = "interval",
        /// How long an answer is waited for.
        timeout: Option<Duration> = "timeout",
    }
    /// Ejection of failing endpoints.
    pub struct OutlierDetection {
        /// Deprecated.
        consecutive_errors: Option<i32> = "consecutiveErrors",
        /// Whether local failures count apart.
        split_external_local_origin_errors: Option<bool> = "splitExternalLocalOriginErrors",
        /// Local failures in a row.
        consecutive_local_origin_failures: Option<u32> = "consecutiveLocalOriginFailures",
        /// 502, 503, 504 in a row.
        consecutive_gateway_errors: Option<u32> = "consecutiveGatewayErrors",
        /// 5xx in a row; 5 by default.
        consecutive_5xx_errors: Option<u32> = "consecutive5xxErrors",
        /// Between two looks; 10 s by default.
        interval: Option<Duration> = "interval",
        /// The first ejection; 30 s by default.
        base_ejection_time: Option<Duration> = "baseEjectionTime",
        /// Percent of endpoints that may be out; 10 by default.
        max_ejection_percent: Option<u32> = "maxEjectionPercent",
        /// Percent of healthy endpoints below which all are used.
        min_health_percent: Option<u32> = "minHealthPercent",
        /// Statuses that count as errors.
        outlier_detection_http_error_codes: Option<Opaque> = "outlierDetectionHttpErrorCodes",
    }
    /// Transport security.
    pub struct ClientTls {
        /// Which kind; absent means none.
        mode: Option<TlsMode> = "mode",
        /// A file.
        client_certificate: Option<String> = "clientCertificate",
        /// A file.
        private_key: Option<String> = "privateKey",
        /// A file.
        ca_certificates: Option<String> = "caCertificates",
        /// A secret with all three.
        credential_name: Option<String> = "credentialName",
        /// Names of which the server must prove one.
        subject_alt_names: Vec<String> = "subjectAltNames",
        /// The name to ask for.
        sni: Option<String> = "sni",
        /// Whether any server will do.
        insecure_skip_verify: Option<bool> = "insecureSkipVerify",
        /// A file.
        ca_crl: Option<String> = "caCrl",
    }
    /// Through an HTTP proxy.
    pub struct Tunnel {
        /// How the proxy is asked for it.
        protocol: TunnelProtocol = "protocol",
        /// The host behind the proxy.
        target_host: Text = "targetHost" required,
        /// The port behind the proxy.
        target_port: PortNumber = "targetPort" required,
    }
    /// PROXY protocol.
    pub struct ProxyProtocol {
        /// Its version.
        version: ProxyProtocolVersion = "version",
    }
    /// How many retries may be under way.
    pub struct RetryBudget {
        /// Percent of the requests; 20 by default.
        percent: Option<f64> = "percent",
        /// So many at least; 3 by default.
        min_retry_concurrency: Option<u32> = "minRetryConcurrency",
        /// Over which time.
        budget_interval: Option<Duration> = "budgetInterval",
    }
}

keywords! {
    /// A load balancing algorithm.
    pub enum SimpleLb {
        /// The default.
        Unspecified = "UNSPECIFIED",
        /// Deprecated name of `LEAST_REQUEST`.
        LeastConn = "LEAST_CONN",
        /// Any.
        Random = "RANDOM",
        /// Where the caller asked for, without balancing.
        Passthrough = "PASSTHROUGH",
        /// One after the other.
        RoundRobin = "ROUND_ROBIN",
        /// The less loaded of two.
        LeastRequest = "LEAST_REQUEST",
    }
    /// Whether HTTP/1.1 becomes HTTP/2.
    pub enum H2UpgradePolicy {
        /// As the mesh has it: no.
        Default = "DEFAULT",
        /// No.
        DoNotUpgrade = "DO_NOT_UPGRADE",
        /// Yes.
        Upgrade = "UPGRADE",
    }
    /// A kind of transport security.
    pub enum TlsMode {
        /// None.
        Disable = "DISABLE",
        /// The server proves itself.
        Simple = "SIMPLE",
        /// Both do, with certificates named here.
        Mutual = "MUTUAL",
        /// Both do, with the mesh's certificates.
        IstioMutual = "ISTIO_MUTUAL",
    }
    /// How a proxy is asked for a connection.
    pub enum TunnelProtocol {
        /// By the method that is made for it.
        Connect = "CONNECT",
        /// By a request whose body goes on.
        Post = "POST",
    }
    /// A version of the PROXY protocol.
    pub enum ProxyProtocolVersion {
        /// The readable one.
        V1 = "V1",
        /// The binary one.
        V2 = "V2",
    }
}

impl DestinationRule {
    /// What Istio's own validation refuses.
    pub fn check(&self, d: &mut Decoder<'_>) {
        if let Some(message) = host_fault(&self.host) {
            d.report_at(self.host.span, "host", Severity::Error, Code::InvalidValue, message);
        }
        check_export(&self.export_to, false, d);
        // validateExportTo: a rule for some clients is never for those of another namespace.
        let is_for_some = self.workload_selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty());
        if let Some(entry) = self.export_to.iter().find(|entry| is_for_some && *entry.value != *".") {
            let message = "with `workloadSelector` it is for clients of its own namespace: only `.` can be set";
            d.report_at(entry.span, "exportTo", Severity::Error, Code::InvalidValue, message);
        }
        if let Some(selector) = &self.workload_selector {
            check_labels(&selector.match_labels, self.span, "workloadSelector.matchLabels", d);
        }
        for (index, subset) in self.subsets.iter().enumerate() {
            if self.subsets.iter().take(index).any(|other| other.name.value == subset.name.value) {
                let message = format!("subset {} is defined twice", quoted(&subset.name));
                let path = format!("subsets[{index}].name");
                d.report_at(subset.name.span, path, Severity::Error, Code::InvalidValue, message);
            }
            if !is_label(&subset.name) {
                let message = format!("{} is not the name of a subset", quoted(&subset.name));
                let path = format!("subsets[{index}].name");
                d.report_at(subset.name.span, path, Severity::Error, Code::InvalidValue, message);
            }
            if let Some(policy) = &subset.traffic_policy {
                policy.check(&format!("subsets[{index}].trafficPolicy"), d);
            }
        }
        if let Some(policy) = &self.traffic_policy {
            policy.check("trafficPolicy", d);
        }
    }
}

impl TrafficPolicy {
    fn check(&self, path: &str, d: &mut Decoder<'_>) {
        if let Some(balancer) = &self.load_balancer {
            balancer::check(balancer, path, d);
        }
        check_blocks(self.connection_pool.as_ref(), self.outlier_detection.as_ref(), path, d);
        check_tls(self.tls.as_ref(), path, d);
        if let Some(tunnel) = &self.tunnel
            && (tunnel.target_host.contains('*') || host_fault(&tunnel.target_host).is_some())
        {
            let message = format!("{} is not the name of a host", quoted(&tunnel.target_host));
            let path = format!("{path}.tunnel.targetHost");
            d.report_at(tunnel.target_host.span, path, Severity::Error, Code::InvalidValue, message);
        }
        if let Some(budget) = &self.retry_budget
            && budget.percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent))
        {
            let path = format!("{path}.retryBudget.percent");
            d.report_at(budget.span, path, Severity::Error, Code::InvalidValue, "not from 0 to 100");
        }
        if self.retry_budget.is_some() {
            let of_ports = self.port_level_settings.iter().enumerate();
            let of_ports = of_ports
                .map(|(index, port)| (format!("{path}.portLevelSettings[{index}]"), port.connection_pool.as_ref()));
            for (path, pool) in of_ports.chain([(path.to_owned(), self.connection_pool.as_ref())]) {
                let Some(http) = pool.and_then(|pool| pool.http.as_ref()) else { continue };
                if http.max_retries.is_some() {
                    let path = format!("{path}.connectionPool.http.maxRetries");
                    let message = "without effect: `retryBudget` counts";
                    d.report_at(http.span, path, Severity::Warning, Code::Ignored, message);
                }
            }
        }
        for (index, port) in self.port_level_settings.iter().enumerate() {
            let path = format!("{path}.portLevelSettings[{index}]");
            let number = port.port.number.0;
            let before = self.port_level_settings.iter().take(index);
            if before.into_iter().any(|earlier| earlier.port.number.0 == number) {
                let message = format!("port {number} is written twice: the settings that come first count");
                d.report_at(port.span, path.clone(), Severity::Warning, Code::Duplicate, message);
            }
            if let Some(balancer) = &port.load_balancer {
                balancer::check(balancer, &path, d);
            }
            check_blocks(port.connection_pool.as_ref(), port.outlier_detection.as_ref(), &path, d);
            check_tls(port.tls.as_ref(), &path, d);
        }
    }
}

fn check_outlier_detection(detection: Option<&OutlierDetection>, path: &str, d: &mut Decoder<'_>) {
    let Some(detection) = detection else { return };
    let mut error = |field: &str, message: &str| {
        let path = format!("{path}.outlierDetection.{field}");
        d.report_at(detection.span, path, Severity::Error, Code::InvalidValue, message);
    };
    for (field, duration) in [("interval", detection.interval), ("baseEjectionTime", detection.base_ejection_time)] {
        if duration.is_some_and(|duration| duration < Duration::from_millis(1)) {
            error(field, "less than 1ms");
        }
    }
    let split = detection.split_external_local_origin_errors == Some(true);
    if detection.consecutive_local_origin_failures.is_some_and(|count| count > 0) && !split {
        let message = "needs `splitExternalLocalOriginErrors: true`: without it, they count as answers of 5xx";
        error("consecutiveLocalOriginFailures", message);
    }
    for (field, percent) in
        [("maxEjectionPercent", detection.max_ejection_percent), ("minHealthPercent", detection.min_health_percent)]
    {
        if percent.is_some_and(|percent| percent > 100) {
            error(field, "more than 100");
        }
    }
}

impl ClientTls {
    /// Which kind of transport security it asks for.
    pub fn mode(&self) -> TlsMode {
        self.mode.unwrap_or_default()
    }
}

/// Istio takes a missing mode for DISABLE, whatever else is written: calls would travel unprotected.
fn check_tls(tls: Option<&ClientTls>, path: &str, d: &mut Decoder<'_>) {
    let Some(tls) = tls else { return };
    let texts =
        [&tls.client_certificate, &tls.private_key, &tls.ca_certificates, &tls.credential_name, &tls.sni, &tls.ca_crl];
    let says_more = texts.into_iter().any(Option::is_some)
        || !tls.subject_alt_names.is_empty()
        || tls.insecure_skip_verify.is_some();
    match tls.mode {
        None if says_more => {
            let message = "field `mode` is missing: without it, calls are plaintext whatever else is written";
            d.report_at(tls.span, format!("{path}.tls.mode"), Severity::Error, Code::MissingField, message);
        }
        Some(TlsMode::Disable) if says_more => {
            let message = "without effect: mode DISABLE asks for plaintext";
            d.report_at(tls.span, format!("{path}.tls"), Severity::Warning, Code::Ignored, message);
        }
        Some(TlsMode::Simple | TlsMode::Mutual) => check_files(tls, path, d),
        Some(TlsMode::IstioMutual) => {
            let files = [
                ("clientCertificate", &tls.client_certificate),
                ("privateKey", &tls.private_key),
                ("caCertificates", &tls.ca_certificates),
                ("credentialName", &tls.credential_name),
                ("caCrl", &tls.ca_crl),
            ];
            let written = files.into_iter().filter(|(_, file)| file.as_ref().is_some_and(|file| !file.is_empty()));
            let skips = tls.insecure_skip_verify.map(|_| "insecureSkipVerify");
            for field in written.map(|(field, _)| field).chain(skips) {
                let message = "without effect: mode ISTIO_MUTUAL takes the mesh's own certificates, and verifies them";
                d.report_at(tls.span, format!("{path}.tls.{field}"), Severity::Warning, Code::Ignored, message);
            }
        }
        _ => {}
    }
}

/// What Istio's validation refuses of TLS by files (validateTLS), what has no effect, and what trusts everybody.
fn check_files(tls: &ClientTls, path: &str, d: &mut Decoder<'_>) {
    let is_set = |field: &Option<String>| field.as_ref().is_some_and(|text| !text.is_empty());
    let mut say = |field: &str, severity, code, message: &str| {
        d.report_at(tls.span, format!("{path}.tls.{field}"), severity, code, message);
        if code == Code::Insecure {
            d.amend(|finding| finding.istio(if path.contains("portLevelSettings") { "IST0129" } else { "IST0128" }));
        }
    };
    let is_mutual = tls.mode() == TlsMode::Mutual;
    let skips = tls.insecure_skip_verify == Some(true);
    let own = [("clientCertificate", &tls.client_certificate), ("privateKey", &tls.private_key)];
    let [ca, crl] = [("caCertificates", &tls.ca_certificates), ("caCrl", &tls.ca_crl)];
    let has_secret = is_set(&tls.credential_name);
    if let Some((field, _)) = own.iter().chain([&ca, &crl]).find(|(_, file)| has_secret && is_set(file)) {
        say(field, Severity::Error, Code::InvalidValue, "only one of `credentialName` and files can be set");
    }
    for (field, file) in own {
        match (is_mutual, is_set(file)) {
            (true, false) if !has_secret => {
                say(field, Severity::Error, Code::MissingField, "mode MUTUAL needs a file here");
            }
            (false, true) => {
                say(field, Severity::Warning, Code::Ignored, "without effect: mode SIMPLE shows no certificate")
            }
            _ => {}
        }
    }
    if skips && (is_set(ca.1) || is_set(crl.1) || has_secret && !is_mutual || !tls.subject_alt_names.is_empty()) {
        let message = "nothing is verified with it: `caCertificates`, `caCrl`, `credentialName` and `subjectAltNames` cannot be set";
        say("insecureSkipVerify", Severity::Error, Code::InvalidValue, message);
    } else if skips {
        let message = "any server will do: whoever gets between reads and changes what is sent. Name the server's authority in \
                       `caCertificates` instead";
        say("insecureSkipVerify", Severity::Warning, Code::Insecure, message);
    }
    if let Some(index) = tls.subject_alt_names.iter().position(String::is_empty) {
        say(&format!("subjectAltNames[{index}]"), Severity::Error, Code::InvalidValue, "no name");
    }
    let sni = tls.sni.as_deref().filter(|sni| !sni.is_empty());
    if sni.is_some_and(|sni| sni.contains('*') || host_fault(sni).is_some()) {
        say("sni", Severity::Error, Code::InvalidValue, "not the name of a host");
    }
}

/// What cannot be of the two blocks that a mesh has its own of, too.
pub(super) fn check_blocks(
    pool: Option<&ConnectionPool>,
    detection: Option<&OutlierDetection>,
    path: &str,
    d: &mut Decoder<'_>,
) {
    check_pool(pool, path, d);
    check_outlier_detection(detection, path, d);
}

fn check_pool(pool: Option<&ConnectionPool>, path: &str, d: &mut Decoder<'_>) {
    let Some(pool) = pool else { return };
    if let Some(tcp) = &pool.tcp
        && let Some(timeout) = tcp.connect_timeout
        && timeout < Duration::from_millis(1)
    {
        let path = format!("{path}.connectionPool.tcp.connectTimeout");
        d.report_at(tcp.span, path, Severity::Error, Code::InvalidValue, "less than 1ms");
    }
    if let Some(tcp) = &pool.tcp
        && tcp.max_connection_duration.is_some_and(|duration| duration < Duration::from_millis(1))
    {
        let path = format!("{path}.connectionPool.tcp.maxConnectionDuration");
        d.report_at(tcp.span, path, Severity::Error, Code::InvalidValue, "less than 1ms");
    }
    if let Some(tcp) = &pool.tcp
        && tcp.max_connections.is_some_and(|count| count < 0)
    {
        let path = format!("{path}.connectionPool.tcp.maxConnections");
        d.report_at(tcp.span, path, Severity::Error, Code::InvalidValue, "less than 0");
    }
    let Some(http) = &pool.http else { return };
    let mut error = |field: &str, message: &str| {
        let path = format!("{path}.connectionPool.http.{field}");
        d.report_at(http.span, path, Severity::Error, Code::InvalidValue, message);
    };
    // Istio's validation: validateConnectionPool.
    for (field, count) in [
        ("http1MaxPendingRequests", http.http1_max_pending_requests),
        ("http2MaxRequests", http.http2_max_requests),
        ("maxRequestsPerConnection", http.max_requests_per_connection),
        ("maxRetries", http.max_retries),
        ("maxConcurrentStreams", http.max_concurrent_streams),
    ] {
        if count.is_some_and(|count| count < 0) {
            error(field, "less than 0");
        }
    }
    if let Some(pings) = &http.http2_keep_alive {
        for (field, time) in [("interval", pings.interval), ("timeout", pings.timeout)] {
            match time {
                None => error(&format!("http2KeepAlive.{field}"), "is needed for pings to be sent"),
                Some(time) if time < Duration::from_millis(1) => {
                    error(&format!("http2KeepAlive.{field}"), "less than 1ms");
                }
                Some(_) => {}
            }
        }
    }
    if http.use_client_protocol == Some(true) && http.h2_upgrade_policy == H2UpgradePolicy::Upgrade {
        error("useClientProtocol", "cannot be true with `h2UpgradePolicy: UPGRADE`");
    }
}
