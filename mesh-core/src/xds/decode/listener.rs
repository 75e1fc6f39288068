//! Listener (`envoy.config.listener.v3`): a client's API listener (gRFC A27) or a server's socket (gRFC A36).

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;

use super::common::{address, filled, holds, parse, type_name, unpack};
use super::http_manager::http_manager;
use super::metadata::{istio_service, own_text};
use super::notes::{Notes, ignored};
use super::tcp::{self, Proxied};
use super::tls;
use crate::error::Invalid;
use crate::id::{Address, ListenerName};
use crate::model::{
    ApiListener, FilterChain, FilterChainMatch, FilterConfig, HttpManager, Listener, RouteConfiguration, RouteSource,
    ServerListener,
};
use crate::resources::{Resource, ResourceType};
use crate::workload::{LABELS, said};
use crate::xds::names;

/// How many combinations of match criteria one listener may spell out.
const MAX_COMBINATIONS: usize = 100_000;

pub(super) fn decode(notes: &mut Notes<'_>, bytes: &[u8]) -> Result<(Arc<str>, Resource), Invalid> {
    let value: pb::Listener = parse(bytes)?;
    let name = names::canonical(ResourceType::Listener, &value.name).map_err(|invalid| invalid.at("name"))?;
    let listener = listener(notes, ListenerName::from(&*name), value).map_err(|invalid| invalid.of(&*name))?;
    Ok((name, Resource::Listener(Arc::new(listener))))
}

fn listener(notes: &mut Notes<'_>, name: ListenerName, value: pb::Listener) -> Result<Listener, Invalid> {
    let pb::Listener {
        name: _,
        address,
        additional_addresses,
        stat_prefix: _,
        stats_matcher: _,
        filter_chains,
        fcds_config,
        filter_chain_matcher,
        use_original_dst,
        default_filter_chain,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        metadata,
        deprecated_v1,
        drain_type,
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        transparent,
        freebind,
        socket_options,
        tcp_fast_open_queue_length,
        traffic_direction: _,
        udp_listener_config,
        api_listener,
        connection_balance_config,
        reuse_port,
        enable_reuse_port,
        access_log,
        tcp_backlog_size,
        max_connections_to_accept_per_socket_event,
        bind_to_port,
        enable_mptcp,
        ignore_global_conn_limit,
        bypass_overload_manager,
        tcp_keepalive,
        listener_specifier,
    } = value;
    ignored!(notes;
        additional_addresses, per_connection_buffer_limit_bytes, per_connection_buffer_high_watermark_timeout,
        deprecated_v1, drain_type, listener_filters_timeout, continue_on_listener_filters_timeout, transparent,
        freebind, socket_options, tcp_fast_open_queue_length, udp_listener_config, connection_balance_config,
        reuse_port, enable_reuse_port, access_log, tcp_backlog_size, max_connections_to_accept_per_socket_event,
        bind_to_port, enable_mptcp, ignore_global_conn_limit, bypass_overload_manager, tcp_keepalive,
        listener_specifier);
    if let Some(api) = api_listener {
        ignored!(notes; address, listener_filters);
        let http = notes.field("api_listener", |notes| {
            notes.required("api_listener", api.api_listener, |notes, any| http_manager(notes, unpack(&any)?))
        })?;
        if http.filters.iter().any(|filter| matches!(filter.config, FilterConfig::Rbac(_) | FilterConfig::Jwt(_))) {
            let reason = "RBAC is for servers, and a client cannot enforce it";
            return Err(Invalid::new(reason).at("api_listener.api_listener.http_filters"));
        }
        let connections = tcp::connections(notes, filter_chains, default_filter_chain)?;
        return Ok(Listener::Api(ApiListener { name, http, connections }));
    }
    // Whether a client speaks TLS is looked at wherever that matters to the chains.
    let inspects_tls = listener_filters.iter().any(is_tls_inspector);
    let mut listener_filters = listener_filters.into_iter().filter(|filter| !is_tls_inspector(filter));
    let proxy_protocol = match listener_filters.next() {
        Some(filter) => {
            notes.field("listener_filters", |notes| proxy_protocol(notes, filter))?;
            true
        }
        None => false,
    };
    for (field, is_set) in [
        ("listener_filters", listener_filters.next().is_some()),
        ("use_original_dst", use_original_dst.is_some_and(|on| on.value)),
        ("filter_chain_matcher", filter_chain_matcher.is_some()),
        ("fcds_config", fcds_config.is_some()),
    ] {
        if is_set {
            return Err(Invalid::new("not supported").at(field));
        }
    }
    let Address::Socket(address) = notes.required("address", address, |notes, a| self::address(notes, a, false))?
    else {
        return Err(Invalid::new("must be an IP address").at("address"));
    };
    let filter_chains: Vec<FilterChain> =
        notes.each("filter_chains", filter_chains, filter_chain)?.into_iter().flatten().collect();
    no_overlap(&filter_chains)?;
    let default_filter_chain = notes.optional("default_filter_chain", default_filter_chain, |notes, mut chain| {
        chain.filter_chain_match = None;
        filter_chain(notes, chain)
    })?;
    let default_filter_chain = default_filter_chain.flatten();
    if filter_chains.is_empty() && default_filter_chain.is_none() {
        return Err(Invalid::new("no supported filter chain and no default one").at("filter_chains"));
    }
    let service = metadata.as_ref().and_then(istio_service).map(Arc::new);
    let labels = metadata.as_ref().map(workload_labels).unwrap_or_default();
    let mut listener = ServerListener::new(name, address);
    (listener.filter_chains, listener.default_filter_chain) = (filter_chains, default_filter_chain);
    (listener.service, listener.labels) = (service, labels);
    (listener.proxy_protocol, listener.inspects_tls) = (proxy_protocol, inspects_tls);
    Ok(Listener::Server(listener))
}

/// The labels by which the control plane knows the workload, where it says any.
fn workload_labels(metadata: &core::Metadata) -> Vec<(&'static str, Arc<str>)> {
    let label = |key: &'static str| Some((key, said(own_text(metadata, &format!("label.{key}"))?)?));
    LABELS.into_iter().filter_map(label).collect()
}

fn is_tls_inspector(filter: &pb::ListenerFilter) -> bool {
    use pb::listener_filter::ConfigType;
    matches!(&filter.config_type, Some(ConfigType::TypedConfig(any)) if holds::<TlsInspector>(any))
}

/// Every connection begins with a header of the PROXY protocol. Where one without would be let in, whoever connects past the load
/// balancer would say in its place who he is.
fn proxy_protocol(notes: &mut Notes<'_>, filter: pb::ListenerFilter) -> Result<(), Invalid> {
    use pb::listener_filter::ConfigType;
    let pb::ListenerFilter { name: _, filter_disabled, config_type } = filter;
    let Some(ConfigType::TypedConfig(any)) = config_type.filter(|_| filter_disabled.is_none()) else {
        return Err(Invalid::new("not supported"));
    };
    if !holds::<ProxyProtocol>(&any) {
        return Err(Invalid::new("not supported"));
    }
    let ProxyProtocol {
        rules,
        allow_requests_without_proxy_protocol,
        pass_through_tlvs,
        disallowed_versions,
        stat_prefix: _,
        tlv_location,
    } = unpack(&any)?;
    for (field, is_set) in [
        ("allow_requests_without_proxy_protocol", allow_requests_without_proxy_protocol),
        ("disallowed_versions", !disallowed_versions.is_empty()),
    ] {
        if is_set {
            return Err(Invalid::new("not supported").at(field));
        }
    }
    ignored!(notes; rules, pass_through_tlvs, tlv_location);
    Ok(())
}

/// `None` where no connection can match.
fn filter_chain(notes: &mut Notes<'_>, value: pb::FilterChain) -> Result<Option<FilterChain>, Invalid> {
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
    ignored!(notes; transport_socket_connect_timeout);
    // The filters are checked even where the chain cannot match: a bad one is a bad one.
    let (http, connections) = network_filters(notes, filters)?;
    let tls = notes.optional("transport_socket", transport_socket, tls::of_server)?.unwrap_or_default();
    let matches = notes.field("filter_chain_match", |notes| chain_match(notes, filter_chain_match))?;
    Ok(matches.map(|matches| FilterChain { name: Arc::from(name), matches, http, tls, connections }))
}

/// Requests, or connections that nobody looks into: the last filter is the HttpConnectionManager or a TcpProxy. Before a TcpProxy
/// there may be RBAC; others are not supported.
fn network_filters(
    notes: &mut Notes<'_>,
    filters: Vec<pb::Filter>,
) -> Result<(HttpManager, Option<Arc<RouteConfiguration>>), Invalid> {
    use pb::filter::ConfigType;
    if filters.last().is_some_and(tcp::is_proxy) {
        let Proxied { connections, guards, logs } = tcp::proxied(notes, filters)?;
        let mut told = HttpManager::new(RouteSource::Inline(Arc::default()));
        (told.filters, told.access_logs) = (guards, logs);
        return Ok((told, Some(connections)));
    }
    let mut managers = notes.each("filters", filters, |notes, filter| {
        filled("name", filter.name)?;
        match filter.config_type {
            Some(ConfigType::TypedConfig(any)) if holds::<HttpConnectionManager>(&any) => {
                notes.field("typed_config", |notes| http_manager(notes, unpack(&any)?))
            }
            Some(ConfigType::TypedConfig(any)) => {
                let reason = format!("the network filter {:?} is not supported", type_name(&any.type_url));
                Err(Invalid::new(reason).at("typed_config"))
            }
            Some(ConfigType::ConfigDiscovery(_)) => Err(Invalid::new("not supported").at("config_discovery")),
            None => Err(Invalid::new("missing").at("typed_config")),
        }
    })?;
    match (managers.pop(), managers.is_empty()) {
        (Some(manager), true) => Ok((manager, None)),
        _ => Err(Invalid::new("exactly one HttpConnectionManager is needed").at("filters")),
    }
}

/// `None` where no connection can match (gRFC A36: criteria of original destinations or of protocols).
pub(super) fn chain_match(
    notes: &mut Notes<'_>,
    value: Option<pb::FilterChainMatch>,
) -> Result<Option<FilterChainMatch>, Invalid> {
    use pb::filter_chain_match::ConnectionSourceType;
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
    } = value.unwrap_or_default();
    ignored!(notes; address_suffix, suffix_len);
    if !direct_source_prefix_ranges.is_empty() {
        return Err(Invalid::new("not supported yet").at("direct_source_prefix_ranges"));
    }
    let matches = FilterChainMatch {
        destination: notes.each("prefix_ranges", prefix_ranges, |_, range| prefix(&range))?,
        source_is_local: match ConnectionSourceType::try_from(source_type) {
            Ok(ConnectionSourceType::Any) => None,
            Ok(ConnectionSourceType::SameIpOrLoopback) => Some(true),
            Ok(ConnectionSourceType::External) => Some(false),
            Err(_) => return Err(Invalid::new("not a known value").at("source_type")),
        },
        source: notes.each("source_prefix_ranges", source_prefix_ranges, |_, range| prefix(&range))?,
        source_ports: notes.each("source_ports", source_ports, |_, port| {
            u16::try_from(port).map_err(|_| Invalid::new(format!("{port} is not a port")))
        })?,
        is_tls: match transport_protocol.as_str() {
            "" => None,
            protocol => Some(protocol == "tls"),
        },
        server_names: notes.each("server_names", server_names, |_, name| server_name(&name))?.into(),
    };
    let can_match = destination_port.is_none()
        && application_protocols.is_empty()
        && matches!(transport_protocol.as_str(), "" | "raw_buffer" | "tls");
    if !can_match {
        notes.ignore("(this filter chain matches no connection here)");
    }
    Ok(can_match.then_some(matches))
}

/// A name of a server, in lower case, or those below a parent.
fn server_name(name: &str) -> Result<Arc<str>, Invalid> {
    let labels = name.strip_prefix("*.").unwrap_or(name);
    match labels.is_empty() || labels.contains('*') {
        // Envoy: one that is for any is left out.
        true => Err(Invalid::new(format!("{name:?} is not the name of a server"))),
        false => Ok(name.to_ascii_lowercase().into()),
    }
}

fn prefix(range: &core::CidrRange) -> Result<(IpAddr, u8), Invalid> {
    let ip: IpAddr = range
        .address_prefix
        .parse()
        .map_err(|_| Invalid::new(format!("{:?} is not an IP address", range.address_prefix)).at("address_prefix"))?;
    let length = range.prefix_len.as_ref().map_or(0, |length| length.value);
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    match u8::try_from(length) {
        Ok(length) if length <= bits => Ok((masked(ip, length), length)),
        _ => Err(Invalid::new(format!("more than {bits} bits")).at("prefix_len")),
    }
}

/// The address without the bits that the prefix does not cover.
fn masked(ip: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            IpAddr::V4((u32::from(ip) & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            IpAddr::V6((u128::from(ip) & mask).into())
        }
    }
}

/// Two chains with the same criteria would leave it open which one takes a connection.
fn no_overlap(chains: &[FilterChain]) -> Result<(), Invalid> {
    fn any_or<T: Copy>(items: &[T]) -> Vec<Option<T>> {
        if items.is_empty() { vec![None] } else { items.iter().copied().map(Some).collect() }
    }
    let mut seen = HashSet::new();
    for (index, chain) in chains.iter().enumerate() {
        let at = |reason: &str| Err(Invalid::new(reason).at(format!("filter_chains[{index}].filter_chain_match")));
        let FilterChainMatch { destination, source_is_local, source, source_ports, is_tls, server_names } =
            &chain.matches;
        let (destinations, sources, ports) = (any_or(destination), any_or(source), any_or(source_ports));
        let names: Vec<&str> =
            if server_names.is_empty() { vec![""] } else { server_names.iter().map(|it| &**it).collect() };
        let combinations = destinations.len().saturating_mul(sources.len()).saturating_mul(ports.len());
        let combinations = combinations.saturating_mul(names.len());
        if combinations.saturating_add(seen.len()) > MAX_COMBINATIONS {
            return at("too many combinations of criteria");
        }
        // One chain may repeat itself; only another chain is in its way.
        let mut own = HashSet::new();
        for destination in &destinations {
            for source in &sources {
                for name in &names {
                    own.extend(
                        ports.iter().map(|port| (*destination, *name, *is_tls, *source_is_local, *source, *port)),
                    );
                }
            }
        }
        if !seen.is_disjoint(&own) {
            return at("overlaps with another filter chain");
        }
        seen.extend(own);
    }
    Ok(())
}
