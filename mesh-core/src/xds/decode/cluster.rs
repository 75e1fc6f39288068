//! Cluster (`envoy.config.cluster.v3`, gRFC A27, A37, A48, A52).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::extensions::clusters::{aggregate::v3 as aggregate, dns::v3 as dns};
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as http;
use envoy_types::pb::google::protobuf::Any;

use super::common::{duration, holds, parse, percent, positive, same_stream, type_name, unpack};
use super::endpoint::{self, assignment};
use super::metadata::{istio_service, own_text};
use super::notes::{Notes, ignored};
use super::{balancer, health_check, limits, tls};
use crate::error::Invalid;
use crate::id::{Address, ClusterName};
use crate::model::{
    CircuitBreakers, Cluster, ClusterKind, ClusterProtocol, ClusterTls, DirectResponse, Endpoints, Http2Keepalive,
    PriorityPolicy,
};
use crate::resources::{Resource, ResourceType};
use crate::xds::names;
use ::http::StatusCode;
use envoy_types::pb::envoy::config::cluster::v3::cluster::LbPolicy;

/// Why a cluster is unusable: a connection here is for all requests of its cluster.
const BY_REQUEST: &str = "auto_sni and auto_san_validation are not supported: set sni, or auto_host_sni with \
                          auto_sni_san_validation, in the UpstreamTlsContext";

/// How often names are looked up where the cluster does not say (Envoy's default).
const DNS_REFRESH: Duration = Duration::from_secs(5);

pub(super) fn decode(notes: &mut Notes<'_>, bytes: &[u8]) -> Result<(Arc<str>, Resource), Invalid> {
    let value: pb::Cluster = parse(bytes)?;
    let name = names::canonical(ResourceType::Cluster, &value.name).map_err(|invalid| invalid.at("name"))?;
    let cluster = cluster(notes, ClusterName::from(&*name), value).map_err(|invalid| invalid.of(&*name))?;
    Ok((name, Resource::Cluster(Arc::new(cluster))))
}

fn cluster(notes: &mut Notes<'_>, name: ClusterName, value: pb::Cluster) -> Result<Cluster, Invalid> {
    let pb::Cluster {
        transport_socket_matches,
        transport_socket_matcher,
        name: _,
        alt_stat_name: _,
        stats_matcher: _,
        eds_cluster_config,
        connect_timeout,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        lb_policy,
        load_assignment,
        health_checks,
        max_requests_per_connection,
        circuit_breakers,
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        typed_extension_protocol_options,
        dns_refresh_rate,
        dns_jitter,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_lookup_family,
        dns_resolvers,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        wait_for_warm_on_init,
        outlier_detection,
        cleanup_interval,
        upstream_bind_config,
        lb_subset_config,
        common_lb_config,
        transport_socket,
        metadata,
        protocol_selection,
        upstream_connection_options,
        close_connections_on_host_health_failure,
        // Who is not listed any more gets no requests, whatever its health is.
        ignore_health_on_host_removal: _,
        filters,
        load_balancing_policy,
        lrs_server,
        lrs_report_endpoint_metrics,
        track_timeout_budgets,
        upstream_config,
        track_cluster_stats,
        preconnect_policy,
        connection_pool_per_downstream_connection,
        queuing_policies,
        cluster_discovery_type,
        lb_config,
    } = value;
    ignored!(notes;
        per_connection_buffer_limit_bytes, per_connection_buffer_high_watermark_timeout,
        upstream_http_protocol_options, http_protocol_options, dns_jitter, dns_failure_refresh_rate,
        respect_dns_ttl, dns_lookup_family, dns_resolvers, use_tcp_for_dns_lookups, dns_resolution_config,
        typed_dns_resolver_config, wait_for_warm_on_init, cleanup_interval, upstream_bind_config, lb_subset_config,
        close_connections_on_host_health_failure,
        filters, lrs_report_endpoint_metrics, track_timeout_budgets, upstream_config, track_cluster_stats,
        preconnect_policy, connection_pool_per_downstream_connection, queuing_policies);

    if transport_socket_matcher.is_some() {
        return Err(Invalid::new("not supported").at("transport_socket_matcher"));
    }
    let kind = Kinds { name: &name, eds_cluster_config, load_assignment, dns_refresh_rate };
    let kind = kind.decode(notes, cluster_discovery_type)?;
    let passes_through = kind == ClusterKind::PassThrough;
    // Envoy insists on it for aggregates; gRPC's clients do not know it (gRFC A37). The leaves have their own policies.
    let may_bring_its_own = load_balancing_policy.is_some() || lb_policy == i32::from(LbPolicy::ClusterProvided);
    let brings_its_own = passes_through || matches!(kind, ClusterKind::Aggregate(_)) && may_bring_its_own;
    let hashing = common_lb_config.as_ref().and_then(|common| common.consistent_hashing_lb_config);
    let older = balancer::Older { lb_policy, lb_config, hashing };
    let (balancer, slow_start) = balancer::balancer(notes, load_balancing_policy, older, brings_its_own)?;
    let reports_load = reports_load(lrs_server)?;
    let circuit_breakers = notes.optional("circuit_breakers", circuit_breakers, limits::circuit_breakers)?;
    let outlier_detection = notes.optional("outlier_detection", outlier_detection, limits::outlier_detection)?;
    let connection_options = upstream_connection_options;
    let tcp_keepalive =
        notes.optional("upstream_connection_options", connection_options, limits::connection_options)?.flatten();
    let health_check = health_check::health_checks(notes, health_checks)?;

    let circuit_breakers = circuit_breakers.unwrap_or(CircuitBreakers::ENVOY);
    let mut cluster = Cluster {
        balancer,
        slow_start,
        circuit_breakers,
        outlier_detection,
        health_check,
        tcp_keepalive,
        reports_load,
        ..Cluster::new(name, kind)
    };
    // The older places first, so that the newer one wins.
    cluster.max_requests_per_connection = max_requests_per_connection.map(|max| max.value).filter(|max| *max > 0);
    notes.optional("common_http_protocol_options", common_http_protocol_options, |notes, options| {
        common_options(notes, options, &mut cluster)
    })?;
    notes.optional("http2_protocol_options", http2_protocol_options, |notes, options| {
        cluster.protocol = ClusterProtocol::Http2;
        http2_options(notes, options, &mut cluster)
    })?;
    if protocol_selection == pb::cluster::ClusterProtocolSelection::UseDownstreamProtocol as i32 {
        cluster.protocol = ClusterProtocol::AsCaller;
    }
    let asks_by_request = upstream_http_protocol_options.as_ref().is_some_and(names_by_request);
    let asks_by_request =
        protocol_extensions(notes, typed_extension_protocol_options, &mut cluster)? || asks_by_request;
    if let Some(timeout) = notes.optional("connect_timeout", connect_timeout, |_, value| positive(&value))? {
        cluster.connect_timeout = timeout;
    }
    if let Some(status) = common_lb_config.as_ref().and_then(|common| common.override_host_status.as_ref()) {
        // Where none is listed, nobody is sent back (Envoy).
        cluster.session_health = status.statuses.iter().map(|status| endpoint::health(*status)).collect();
    }
    if let Some(priorities) = notes.optional("common_lb_config", common_lb_config, common_lb)? {
        cluster.priorities = priorities;
    }
    let by_endpoints = metadata.as_ref().and_then(|metadata| own_text(metadata, "peers")) == Some("endpoints");
    cluster.tls = match transport_socket_matches {
        none if none.is_empty() => {
            let of_cluster = |notes: &mut Notes<'_>, socket| tls::of_cluster(notes, socket, by_endpoints);
            notes.optional("transport_socket", transport_socket, of_cluster)?.unwrap_or_default()
        }
        matches => notes.field("transport_socket_matches", |notes| tls::of_endpoints(notes, matches, by_endpoints))?,
    };
    if asks_by_request && matches!(cluster.tls, ClusterTls::Foreign(_)) {
        cluster.tls = ClusterTls::Unusable(BY_REQUEST.into());
    }
    if let Some(metadata) = metadata {
        cluster.service = istio_service(&metadata).map(Arc::new);
        cluster.fallback = notes.field("metadata", |_| fallback(&metadata))?.map(Arc::new);
    }
    Ok(cluster)
}

/// The fields that say where endpoints come from.
struct Kinds<'n> {
    name: &'n ClusterName,
    eds_cluster_config: Option<pb::cluster::EdsClusterConfig>,
    load_assignment: Option<ClusterLoadAssignment>,
    dns_refresh_rate: Option<envoy_types::pb::google::protobuf::Duration>,
}

impl Kinds<'_> {
    fn decode(
        self,
        notes: &mut Notes<'_>,
        discovery: Option<pb::cluster::ClusterDiscoveryType>,
    ) -> Result<ClusterKind, Invalid> {
        use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
        let kind = match discovery {
            Some(ClusterDiscoveryType::ClusterType(custom)) => return self.custom(notes, custom),
            Some(ClusterDiscoveryType::Type(kind)) => {
                DiscoveryType::try_from(kind).map_err(|_| Invalid::new("not a known value").at("type"))?
            }
            None => DiscoveryType::Static,
        };
        match kind {
            DiscoveryType::Eds => self.eds(notes),
            DiscoveryType::Static => self.assignment(notes, false).map(ClusterKind::Static),
            DiscoveryType::StrictDns => {
                let refresh = self.refresh(notes)?;
                Ok(ClusterKind::StrictDns { endpoints: self.assignment(notes, true)?, refresh })
            }
            DiscoveryType::LogicalDns => {
                let endpoints = self.assignment(notes, true)?;
                one_host(&endpoints).map_err(|invalid| invalid.at("load_assignment"))?;
                Ok(ClusterKind::LogicalDns(endpoints))
            }
            DiscoveryType::OriginalDst => Ok(ClusterKind::PassThrough),
        }
    }

    fn eds(self, notes: &mut Notes<'_>) -> Result<ClusterKind, Invalid> {
        let name = self.name;
        notes.ignore_if_set("load_assignment", &self.load_assignment);
        notes.required("eds_cluster_config", self.eds_cluster_config, |notes, config| {
            notes.field("eds_config", |_| same_stream(config.eds_config.as_ref()))?;
            notes.field("service_name", |_| match config.service_name.as_str() {
                // gRFC A47: the cluster's name says its type, so it cannot also name endpoints.
                "" if names::is_federated(name.as_str()) => {
                    Err(Invalid::new("must be set where the cluster's name starts with xdstp:"))
                }
                "" => Ok(ClusterKind::Eds { service_name: Arc::from(name.as_str()) }),
                service => names::canonical(ResourceType::Endpoints, service)
                    .map(|service_name| ClusterKind::Eds { service_name }),
            })
        })
    }

    fn assignment(self, notes: &mut Notes<'_>, may_be_host: bool) -> Result<Endpoints, Invalid> {
        notes.required("load_assignment", self.load_assignment, |notes, value| assignment(notes, value, may_be_host))
    }

    fn refresh(&self, notes: &mut Notes<'_>) -> Result<Duration, Invalid> {
        let rate = self.dns_refresh_rate.as_ref();
        Ok(notes.optional("dns_refresh_rate", rate, |_, value| positive(value))?.unwrap_or(DNS_REFRESH))
    }

    fn custom(mut self, notes: &mut Notes<'_>, custom: pb::cluster::CustomClusterType) -> Result<ClusterKind, Invalid> {
        let name = custom.name;
        let any = custom.typed_config.ok_or_else(|| Invalid::new("missing").at("cluster_type.typed_config"))?;
        if holds::<aggregate::ClusterConfig>(&any) {
            return notes.field("cluster_type", |notes| {
                let config: aggregate::ClusterConfig = unpack(&any)?;
                let clusters = notes.each("clusters", config.clusters, |notes, name| notes.cluster(&name))?;
                if clusters.is_empty() {
                    return Err(Invalid::new("an aggregate needs at least one").at("clusters"));
                }
                Ok(ClusterKind::Aggregate(clusters))
            });
        }
        if holds::<dns::DnsCluster>(&any) {
            let is_logical = notes.field("cluster_type", |notes| {
                let dns::DnsCluster {
                    dns_refresh_rate,
                    dns_failure_refresh_rate,
                    respect_dns_ttl,
                    dns_jitter,
                    typed_dns_resolver_config,
                    dns_lookup_family,
                    all_addresses_in_single_endpoint,
                    dns_min_refresh_rate,
                } = unpack(&any)?;
                ignored!(notes;
                    dns_failure_refresh_rate, respect_dns_ttl, dns_jitter, typed_dns_resolver_config,
                    dns_lookup_family, dns_min_refresh_rate);
                self.dns_refresh_rate = dns_refresh_rate.or(self.dns_refresh_rate.take());
                Ok(all_addresses_in_single_endpoint)
            })?;
            let refresh = self.refresh(notes)?;
            let endpoints = self.assignment(notes, true)?;
            if is_logical {
                one_host(&endpoints).map_err(|invalid| invalid.at("load_assignment"))?;
                return Ok(ClusterKind::LogicalDns(endpoints));
            }
            return Ok(ClusterKind::StrictDns { endpoints, refresh });
        }
        let reason = format!("the cluster type {name:?} ({}) is not supported", type_name(&any.type_url));
        Err(Invalid::new(reason).at("cluster_type"))
    }
}

/// LOGICAL_DNS: one locality with one endpoint (gRFC A37).
fn one_host(endpoints: &Endpoints) -> Result<(), Invalid> {
    match endpoints.localities.as_slice() {
        [locality] => match locality.endpoints.first().filter(|_| locality.endpoints.len() == 1) {
            Some(one) if matches!(one.id.addresses(), [Address::Host(..) | Address::Socket(_)]) => Ok(()),
            _ => Err(Invalid::new("LOGICAL_DNS needs exactly one endpoint with one address")),
        },
        _ => Err(Invalid::new("LOGICAL_DNS needs exactly one locality")),
    }
}

/// gRFC A27: load is reported to the server that the cluster came from, or not at all.
fn reports_load(to: Option<core::ConfigSource>) -> Result<bool, Invalid> {
    use core::config_source::ConfigSourceSpecifier;
    match to.map(|source| source.config_source_specifier) {
        None => Ok(false),
        Some(Some(ConfigSourceSpecifier::Self_(_))) => Ok(true),
        Some(_) => Err(Invalid::new("must be self").at("lrs_server")),
    }
}

/// `HttpProtocolOptions` of the upstream; the map's key is a name, the type decides. Tells whether they want names of servers
/// by request.
fn protocol_extensions(
    notes: &mut Notes<'_>,
    extensions: HashMap<String, Any>,
    cluster: &mut Cluster,
) -> Result<bool, Invalid> {
    let mut asks_by_request = false;
    let mut extensions: Vec<_> = extensions.into_iter().collect();
    extensions.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, any) in extensions {
        if !holds::<http::HttpProtocolOptions>(&any) {
            notes.ignore(&format!("typed_extension_protocol_options[{name:?}]"));
            continue;
        }
        notes.entry("typed_extension_protocol_options", &name, |notes| {
            let options: http::HttpProtocolOptions = unpack(&any)?;
            asks_by_request |= options.upstream_http_protocol_options.as_ref().is_some_and(names_by_request);
            protocol_options(notes, options, cluster)
        })?;
    }
    Ok(asks_by_request)
}

/// Whether a server is to prove, or to be asked for, a name of each request's own.
fn names_by_request(options: &core::UpstreamHttpProtocolOptions) -> bool {
    options.auto_sni || options.auto_san_validation
}

fn protocol_options(
    notes: &mut Notes<'_>,
    value: http::HttpProtocolOptions,
    cluster: &mut Cluster,
) -> Result<(), Invalid> {
    use http::http_protocol_options::explicit_http_config::ProtocolConfig;
    use http::http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions};
    let http::HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = value;
    ignored!(notes;
        upstream_http_protocol_options, header_validation_config, outlier_detection, request_mirror_policies,
        hash_policy, retry_policy);
    if !http_filters.is_empty() {
        return Err(Invalid::new("filters of a cluster are not supported yet").at("http_filters"));
    }
    notes.optional("common_http_protocol_options", common_http_protocol_options, |notes, options| {
        common_options(notes, options, cluster)
    })?;
    let http2 = match upstream_protocol_options {
        None => return Err(Invalid::new("no known protocol")),
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config })) => {
            match protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(http_protocol_options)) => {
                    ignored!(notes; http_protocol_options);
                    cluster.protocol = ClusterProtocol::Http1;
                    None
                }
                Some(ProtocolConfig::Http2ProtocolOptions(options)) => {
                    cluster.protocol = ClusterProtocol::Http2;
                    Some(options)
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    return Err(Invalid::new("HTTP/3 is not supported yet").at("explicit_http_config"));
                }
                None => return Err(Invalid::new("no known protocol").at("explicit_http_config")),
            }
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(options)) => {
            cluster.protocol = ClusterProtocol::AsCaller;
            options.http2_protocol_options
        }
        Some(UpstreamProtocolOptions::AutoConfig(_)) => {
            // The protocol is agreed upon in the TLS handshake, which there is none of.
            notes.ignore("auto_config");
            None
        }
    };
    notes.optional("http2_protocol_options", http2, |notes, options| http2_options(notes, options, cluster))?;
    Ok(())
}

fn common_options(
    notes: &mut Notes<'_>,
    value: core::HttpProtocolOptions,
    cluster: &mut Cluster,
) -> Result<(), Invalid> {
    let core::HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = value;
    ignored!(notes;
        max_connection_duration_jitter, max_headers_count, max_response_headers_kb,
        max_stream_duration, headers_with_underscores_action);
    if let Some(idle) = notes.optional("idle_timeout", idle_timeout, |_, value| duration(&value))? {
        cluster.idle_timeout = (idle > Duration::ZERO).then_some(idle);
    }
    let longest = notes.optional("max_connection_duration", max_connection_duration, |_, value| positive(&value))?;
    cluster.max_connection_duration = longest.or(cluster.max_connection_duration);
    if let Some(max) = max_requests_per_connection {
        cluster.max_requests_per_connection = (max.value > 0).then_some(max.value);
    }
    Ok(())
}

fn http2_options(
    notes: &mut Notes<'_>,
    value: core::Http2ProtocolOptions,
    cluster: &mut Cluster,
) -> Result<(), Invalid> {
    cluster.max_concurrent_streams = match value.max_concurrent_streams.map(|max| max.value) {
        Some(max) if max == 0 || max > i32::MAX as u32 => {
            return Err(Invalid::new("must be from 1 to 2147483647").at("max_concurrent_streams"));
        }
        max => max,
    };
    let keepalive = value.connection_keepalive;
    cluster.http2_keepalive = notes.optional("connection_keepalive", keepalive, http2_keepalive)?.flatten();
    let others = core::Http2ProtocolOptions { max_concurrent_streams: None, connection_keepalive: None, ..value };
    notes.ignore_if_set("(flow control and limits of HTTP/2)", &others);
    Ok(())
}

/// Pings of HTTP/2. Without an interval, there are none: those that are sent before a request only are not built.
fn http2_keepalive(notes: &mut Notes<'_>, value: core::KeepaliveSettings) -> Result<Option<Http2Keepalive>, Invalid> {
    let core::KeepaliveSettings { interval, timeout, interval_jitter, connection_idle_interval } = value;
    ignored!(notes; interval_jitter, connection_idle_interval);
    // Envoy takes none that is shorter than a millisecond.
    let long_enough = |_: &mut Notes<'_>, value| match positive(&value)? {
        time if time < Duration::from_millis(1) => Err(Invalid::new("less than 1 ms")),
        time => Ok(time),
    };
    let timeout = notes.required("timeout", timeout, long_enough)?;
    let interval = notes.optional("interval", interval, long_enough)?;
    Ok(interval.map(|interval| Http2Keepalive { interval, timeout }))
}

fn common_lb(notes: &mut Notes<'_>, value: pb::cluster::CommonLbConfig) -> Result<PriorityPolicy, Invalid> {
    let pb::cluster::CommonLbConfig {
        healthy_panic_threshold,
        update_merge_window,
        ignore_new_hosts_until_first_hc: ignores_unchecked,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config: _,
        override_host_status: _,
        locality_config_specifier,
    } = value;
    ignored!(notes;
        update_merge_window, close_connections_on_host_set_change);
    match locality_config_specifier {
        Some(pb::cluster::common_lb_config::LocalityConfigSpecifier::ZoneAwareLbConfig(config)) => {
            notes.ignore_if_set("zone_aware_lb_config", &Some(config));
        }
        // Weights of localities count wherever there are some.
        Some(pb::cluster::common_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) | None => {}
    }
    let panic = notes.optional("healthy_panic_threshold", healthy_panic_threshold, |_, value| percent(&value))?;
    Ok(match panic {
        Some(panic) => PriorityPolicy { panic_percent: panic.round() as u8, ignores_unchecked },
        None => PriorityPolicy { ignores_unchecked, ..PriorityPolicy::default() },
    })
}

/// The answer where there is no healthy endpoint.
fn fallback(metadata: &core::Metadata) -> Result<Option<DirectResponse>, Invalid> {
    let text = |key| own_text(metadata, key);
    let Some(status) = text("fallback.status") else { return Ok(None) };
    let status = status.parse().ok().and_then(|status: u16| StatusCode::from_u16(status).ok());
    let status = status.filter(|status| (200..600).contains(&status.as_u16()));
    let status =
        status.ok_or_else(|| Invalid::new("not a status from 200 to 599").at("mesh-control.fallback.status"))?;
    Ok(Some(DirectResponse::new(status, text("fallback.body").unwrap_or_default().to_owned())))
}
