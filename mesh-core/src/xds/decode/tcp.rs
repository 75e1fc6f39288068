//! Where a client's connections go whose bytes are not HTTP: filter chains with a `TcpProxy`
//! (`envoy.extensions.filters.network.tcp_proxy.v3`), chosen by the name of the server that the client asks for.

use std::collections::HashSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as proxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;

use super::access_log;
use super::common::{duration, filled, holds, type_name, unpack};
use super::notes::{Notes, ignored};
use super::rbac;
use crate::error::Invalid;
use crate::model::{
    AccessLog, Clusters, Forward, NamedFilter, RetryCondition, RetryConditions, RetryPolicy, Route, RouteAction,
    RouteConfiguration, RouteMatch, Tunnel, VirtualHost, WeightedCluster,
};

/// The routes of connections, a host for each chain; `None` where there is no chain.
pub(super) fn connections(
    notes: &mut Notes<'_>,
    chains: Vec<pb::FilterChain>,
    default: Option<pb::FilterChain>,
) -> Result<Option<Arc<RouteConfiguration>>, Invalid> {
    let mut hosts = notes.each("filter_chains", chains, chain)?;
    hosts.extend(notes.optional("default_filter_chain", default, |notes, value| {
        let value = pb::FilterChain { filter_chain_match: None, ..value };
        chain(notes, value)
    })?);
    let mut seen = HashSet::new();
    for name in hosts.iter().flat_map(|host| &host.domains) {
        if !seen.insert(name.as_str()) {
            return Err(Invalid::new(format!("two chains are for {name:?}")).at("filter_chains"));
        }
    }
    Ok((!hosts.is_empty()).then(|| Arc::new(RouteConfiguration::new(hosts))))
}

/// Whether a filter of a server's chain is a TcpProxy.
pub(super) fn is_proxy(filter: &pb::Filter) -> bool {
    use pb::filter::ConfigType;
    matches!(&filter.config_type, Some(ConfigType::TypedConfig(any)) if holds::<proxy::TcpProxy>(any))
}

/// What becomes of the connections of a server's chain that nobody looks into.
pub(super) struct Proxied {
    /// Where they go, as the one route of the one host.
    pub(super) connections: Arc<RouteConfiguration>,
    /// Who is let in.
    pub(super) guards: Vec<NamedFilter>,
    /// Where they are logged.
    pub(super) logs: Arc<[AccessLog]>,
}

/// The filters of such a chain: RBAC, and one TcpProxy.
pub(super) fn proxied(notes: &mut Notes<'_>, filters: Vec<pb::Filter>) -> Result<Proxied, Invalid> {
    let (mut guards, mut routes, mut logs) = (Vec::<NamedFilter>::new(), Vec::new(), Vec::new());
    notes.each("filters", filters, |notes, value| {
        match guard(notes, &value)? {
            Some(guard) if guards.iter().any(|other| other.name == guard.name) => {
                return Err(Invalid::new(format!("the name {:?} is used twice", guard.name)).at("name"));
            }
            Some(guard) => guards.push(guard),
            None => {
                let (forward, of_proxy) = filter(notes, value)?;
                routes.push(Route::new(RouteMatch::any(), RouteAction::Forward(forward)));
                logs.extend(of_proxy);
            }
        }
        Ok(())
    })?;
    if routes.len() != 1 {
        return Err(Invalid::new("exactly one TcpProxy is needed").at("filters"));
    }
    let connections = Arc::new(RouteConfiguration::new(vec![VirtualHost::new(["*"], routes)]));
    Ok(Proxied { connections, guards, logs: logs.into() })
}

/// A filter that says who is let in.
fn guard(notes: &mut Notes<'_>, value: &pb::Filter) -> Result<Option<NamedFilter>, Invalid> {
    use pb::filter::ConfigType;
    match &value.config_type {
        Some(ConfigType::TypedConfig(any)) if holds::<Rbac>(any) => {
            let name = filled("name", value.name.clone())?;
            let config = notes.field("typed_config", |notes| rbac::of_connections(notes, any))?;
            Ok(Some(NamedFilter::new(name, config)))
        }
        _ => Ok(None),
    }
}

fn chain(notes: &mut Notes<'_>, value: pb::FilterChain) -> Result<VirtualHost, Invalid> {
    let pb::FilterChain {
        filter_chain_match,
        filters,
        use_proxy_proto,
        metadata: _,
        transport_socket,
        transport_socket_connect_timeout,
        name,
    } = value;
    if use_proxy_proto.is_some_and(|on| on.value) {
        return Err(Invalid::new("not supported").at("use_proxy_proto"));
    }
    if transport_socket.is_some() {
        let reason = "a client's own connections are secured by their cluster";
        return Err(Invalid::new(reason).at("transport_socket"));
    }
    ignored!(notes; transport_socket_connect_timeout);
    let domains = notes.field("filter_chain_match", |_| server_names(filter_chain_match.unwrap_or_default()))?;
    let mut forwards = notes.each("filters", filters, filter)?;
    let forward = match (forwards.pop(), forwards.is_empty()) {
        (Some((forward, logs)), true) => {
            // A client's connections are where its requests are logged.
            notes.ignore_if_set("filters.access_log", &logs);
            forward
        }
        _ => return Err(Invalid::new("exactly one TcpProxy is needed").at("filters")),
    };
    let mut route = Route::new(RouteMatch::any(), RouteAction::Forward(forward));
    route.name = Arc::from(name.as_str());
    let mut host = VirtualHost::new(domains, vec![route]);
    host.name = Arc::from(name);
    Ok(host)
}

/// The names of servers that a chain is for, in lower case; `*` is any, and none. What else tells connections apart is known
/// to a proxy only: to leave it out would send connections where nobody wanted them.
fn server_names(value: pb::FilterChainMatch) -> Result<Vec<String>, Invalid> {
    let pb::FilterChainMatch {
        destination_port,
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = value;
    for (field, is_set) in [
        ("destination_port", destination_port.is_some()),
        ("prefix_ranges", !prefix_ranges.is_empty()),
        ("address_suffix", !address_suffix.is_empty()),
        ("suffix_len", suffix_len.is_some()),
        ("direct_source_prefix_ranges", !direct_source_prefix_ranges.is_empty()),
        ("source_type", source_type != 0),
        ("source_prefix_ranges", !source_prefix_ranges.is_empty()),
        ("source_ports", !source_ports.is_empty()),
        ("transport_protocol", !matches!(transport_protocol.as_str(), "" | "tls")),
        ("application_protocols", !application_protocols.is_empty()),
    ] {
        if is_set {
            return Err(Invalid::new("not known of a client's own connections").at(field));
        }
    }
    let is_name = |name: &str| !name.is_empty() && !name.strip_prefix('*').unwrap_or(name).contains('*');
    if let Some(bad) = server_names.iter().find(|name| !is_name(name)) {
        return Err(Invalid::new(format!("{bad:?} is not the name of a server")).at("server_names"));
    }
    Ok(match server_names.as_slice() {
        [] => vec!["*".to_owned()],
        names => names.iter().map(|name| name.to_ascii_lowercase()).collect(),
    })
}

/// Where connections go, and where they are logged.
fn filter(notes: &mut Notes<'_>, value: pb::Filter) -> Result<(Forward, Vec<AccessLog>), Invalid> {
    use pb::filter::ConfigType;
    filled("name", value.name)?;
    match value.config_type {
        Some(ConfigType::TypedConfig(any)) if holds::<proxy::TcpProxy>(&any) => {
            notes.field("typed_config", |notes| tcp_proxy(notes, unpack(&any)?))
        }
        Some(ConfigType::TypedConfig(any)) => {
            let reason = format!("the network filter {:?} is not supported", type_name(&any.type_url));
            Err(Invalid::new(reason).at("typed_config"))
        }
        Some(ConfigType::ConfigDiscovery(_)) => Err(Invalid::new("not supported").at("config_discovery")),
        None => Err(Invalid::new("missing").at("typed_config")),
    }
}

fn tcp_proxy(notes: &mut Notes<'_>, value: proxy::TcpProxy) -> Result<(Forward, Vec<AccessLog>), Invalid> {
    let proxy::TcpProxy {
        stat_prefix: _,
        on_demand,
        metadata_match,
        idle_timeout,
        downstream_idle_timeout,
        upstream_idle_timeout,
        access_log,
        max_connect_attempts,
        backoff_options,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval,
        flush_access_log_on_connected,
        access_log_options,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy: _,
        upstream_connect_mode,
        max_early_data_bytes,
        check_drain_close,
        cluster_specifier,
    } = value;
    // These choose among endpoints, or change what is sent.
    for (field, is_set) in
        [("metadata_match", metadata_match.is_some()), ("proxy_protocol_tlvs", !proxy_protocol_tlvs.is_empty())]
    {
        if is_set {
            return Err(Invalid::new("not supported").at(field));
        }
    }
    ignored!(notes;
        on_demand, downstream_idle_timeout, upstream_idle_timeout, backoff_options, hash_policy,
        max_downstream_connection_duration, max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval, flush_access_log_on_connected, access_log_options, upstream_connect_mode,
        max_early_data_bytes, check_drain_close);
    let logs = notes.each("access_log", access_log, access_log::decode)?.into_iter().flatten().collect();
    let clusters = match cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => Clusters::One(notes.field("cluster", |notes| notes.cluster(&name))?),
        Some(ClusterSpecifier::WeightedClusters(value)) => {
            let clusters =
                notes.field("weighted_clusters", |notes| notes.each("clusters", value.clusters, weighted))?;
            let sum: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
            if sum > u64::from(u32::MAX) {
                return Err(Invalid::new("the weights add up to more than 4294967295").at("weighted_clusters.clusters"));
            }
            if clusters.is_empty() {
                return Err(Invalid::new("there is none").at("weighted_clusters.clusters"));
            }
            Clusters::Weighted(clusters)
        }
        None => return Err(Invalid::new("missing").at("cluster_specifier")),
    };
    let tunnel = notes.optional("tunneling_config", tunneling_config, tunnel)?;
    let attempts = max_connect_attempts.map_or(1, |attempts| attempts.value);
    if attempts == 0 {
        return Err(Invalid::new("must be at least 1").at("max_connect_attempts"));
    }
    let mut forward = Forward::among(clusters);
    forward.idle_timeout =
        notes.optional("idle_timeout", idle_timeout, |_, value| duration(&value))?.filter(|idle| !idle.is_zero());
    forward.tunnel = tunnel.map(Arc::new);
    forward.retry = (attempts > 1).then(|| {
        Arc::new(RetryPolicy {
            on: RetryConditions::NONE.with(RetryCondition::ConnectFailure),
            retries: attempts - 1,
            ..RetryPolicy::default()
        })
    });
    Ok((forward, logs))
}

/// What a proxy is asked for is known here. What else it would be told may be what it lets somebody through by.
fn tunnel(notes: &mut Notes<'_>, value: proxy::tcp_proxy::TunnelingConfig) -> Result<Tunnel, Invalid> {
    let proxy::tcp_proxy::TunnelingConfig {
        hostname,
        use_post,
        headers_to_add,
        propagate_response_headers,
        post_path,
        propagate_response_trailers,
        request_id_extension,
        request_id_header,
        request_id_metadata_key,
        formatters,
    } = value;
    for (field, is_set) in [("use_post", use_post), ("headers_to_add", !headers_to_add.is_empty())] {
        if is_set {
            return Err(Invalid::new("not supported").at(field));
        }
    }
    ignored!(notes;
        propagate_response_headers, post_path, propagate_response_trailers, request_id_extension, request_id_header,
        request_id_metadata_key, formatters);
    notes.field("hostname", |_| Tunnel::to(&hostname))
}

fn weighted(
    notes: &mut Notes<'_>,
    value: proxy::tcp_proxy::weighted_cluster::ClusterWeight,
) -> Result<WeightedCluster, Invalid> {
    let proxy::tcp_proxy::weighted_cluster::ClusterWeight { name, weight, metadata_match } = value;
    if metadata_match.is_some() {
        return Err(Invalid::new("not supported").at("metadata_match"));
    }
    // As Envoy has it.
    if weight == 0 {
        return Err(Invalid::new("must be at least 1").at("weight"));
    }
    Ok(WeightedCluster::new(notes.field("name", |notes| notes.cluster(&name))?, weight))
}
