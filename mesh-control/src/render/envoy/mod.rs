//! Listeners, routes and clusters for an Envoy beside a workload, under Istio's names: what the library does in the process,
//! for services in other languages.
//!
//! `outbound` is what a workload calls (`dynamic` where the call says which host), `inbound` what calls it, `tls` how both are secured, `proxy` the filters of both.
//! Clusters are the library's but for what Envoy does in another way (Istio: networking/core).

mod dynamic;
mod gateway;
mod inbound;
mod outbound;
mod proxy;
mod tls;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::{
    LocalityConfigSpecifier, LocalityWeightedLbConfig,
};
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CustomClusterType, DiscoveryType, LbPolicy,
};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily;
use envoy_types::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use mesh_core::identity::SpiffeId;

use super::cluster::nowhere;
use super::endpoints::single_assignment;
use super::proto::{any, duration};
use super::{BLACK_HOLE, Degraded, Found, PASSTHROUGH, found_by, http, library};
use crate::catalog::{Sidecar, WORKLOAD_IP};
use crate::policy::Cluster;
use crate::policy::route::Fallback;
use crate::policy::traffic::{CONNECT_TIMEOUT, OwnBalancer, Roots, Tls};
use crate::registry::WrittenEndpoint;
use crate::registry::protocol::Protocol;

pub use gateway::{Edge, EdgeRoutes, edge_listener, edge_routes, edge_rules, edge_secrets};
pub use inbound::{Inbound, inbound_listener};
pub use outbound::{Outbound, outbound_listener, routes};

/// The listener of all that a workload calls, where it is redirected, by Istio's name.
pub const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// The listener of all that calls a workload, where it is redirected, by Istio's name.
pub const VIRTUAL_INBOUND: &str = "virtualInbound";
/// The cluster of calls to ports of the workload that no service has, by Istio's name.
pub const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";

/// Who calls a workload in the place of its callers, where connections are redirected: what comes from there is not
/// redirected again (Istio: 127.0.0.6).
const INBOUND_SOURCE: &str = "127.0.0.6";

/// Where names are looked up again that say no time, or that nobody knew (Istio: pkg/config/mesh/mesh.go).
const DNS_REFRESH: std::time::Duration = std::time::Duration::from_secs(60);

/// The cluster of a port of the workload itself: `inbound|port||`.
pub fn inbound_cluster_name(port: u16) -> String {
    format!("inbound|{port}||")
}

/// The port of a cluster of the workload itself.
pub fn inbound_port(name: &str) -> Option<u16> {
    let port = name.strip_prefix("inbound|")?.strip_suffix("||")?.parse().ok()?;
    (inbound_cluster_name(port) == name).then_some(port)
}

/// A cluster that no object describes: of calls that go nowhere, or where they were going.
pub(super) fn special(name: &str) -> Option<pb::Cluster> {
    match name {
        // Istio's has no endpoints to be told of.
        BLACK_HOLE => Some(pb::Cluster {
            name: name.to_owned(),
            connect_timeout: Some(duration(CONNECT_TIMEOUT)),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
            ..Default::default()
        }),
        PASSTHROUGH => Some(pb::Cluster { lrs_server: None, ..library::passthrough() }),
        _ => None,
    }
}

/// A cluster of a service, and what an Envoy cannot do of what is said of it.
pub(super) fn cluster(
    seen: &Cluster<'_>,
    written: &[(&WrittenEndpoint, u16)],
    may_have_certificate: bool,
    identities: &[SpiffeId],
    degraded: &mut Vec<Degraded>,
) -> pb::Cluster {
    let name = seen.key.to_string();
    if let Some(rule) = seen.rule {
        let mut say = |key: &str, what: &str| {
            degraded.push(Degraded::of_annotation(rule, key, what.to_owned()).for_envoy());
        };
        if let Some(Fallback::Respond(answer)) = &seen.fallback {
            let what = format!("calls are answered with 503 where nothing is healthy, and not with {}", answer.status);
            say("mesh-control/fallback", &what);
        }
        if seen.traffic.subset.is_some() {
            say("mesh-control/endpoint-subset", "every endpoint is called");
        }
        if let Some(OwnBalancer::PeakEwma { .. } | OwnBalancer::Custom(_)) = &seen.traffic.own_balancer {
            say(
                "mesh-control/load-balancer",
                "of two random endpoints, the one with fewer requests under way is picked",
            );
        }
        if let Some(OwnBalancer::WeightedByLoad { out_of_band: Some(_), .. }) = &seen.traffic.own_balancer {
            say("mesh-control/load-balancer", "reports of load count only where they come with answers");
        }
    }
    if let (Some(rule), Tls::Foreign(tls)) = (seen.rule, &seen.traffic.tls)
        && (tls.identity.is_some() || matches!(tls.roots, Roots::File(_)) || tls.revoked.is_some())
    {
        let what = "it refuses a cluster whose files it cannot read, and calls fail then until the rule changes or it comes back; \
            they have to be there before the rule is";
        degraded.push(Degraded::of_rule(rule, "tls", what.to_owned()).for_envoy());
    }
    let Some(security) = tls::upstream(seen, written, may_have_certificate, identities) else {
        return nowhere(&name);
    };
    let mut rendered = library::render_cluster(seen, written, security);
    if seen.is_refused {
        return rendered;
    }
    // It reports the load of all clusters, where its bootstrap says so.
    rendered.lrs_server = None;
    match found_by(seen) {
        Found::Host if dynamic::is_dynamic(seen) => dynamic::by_caller(&mut rendered),
        // Nobody can look up a host that stands for many: it is called where the connection was going.
        Found::Host if seen.key.host.starts_with('*') => {
            rendered.load_assignment = None;
            rendered.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into()));
            (rendered.lb_policy, rendered.lb_config) = (LbPolicy::ClusterProvided.into(), None);
            rendered.load_balancing_policy = None;
        }
        Found::Host | Found::Dns { .. } => by_dns(&mut rendered),
        Found::Endpoints => {}
    }
    if seen.traffic.locality.as_ref().is_some_and(|locality| locality.has_shares()) {
        let weighted = LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig {});
        rendered.common_lb_config.get_or_insert_default().locality_config_specifier = Some(weighted);
    }
    let custom = match &seen.traffic.own_balancer {
        Some(OwnBalancer::Custom(name)) => Some(name.as_str()),
        _ => None,
    };
    if let Some(own) = rendered.load_balancing_policy.as_mut() {
        // What it does not know, it passes over (gRFC A52), unless it cannot read it.
        own.policies.retain(|policy| {
            let name = policy.typed_extension_config.as_ref().map(|config| config.name.as_str());
            let is_own = matches!(
                name,
                Some("mesh.load_balancing.peak_ewma" | "envoy.load_balancing_policies.random_subsetting")
            );
            !is_own && (custom.is_none() || name != custom)
        });
    }
    rendered
}

/// Names are looked up as Istio has it looked up: for as long as DNS says, and soon again where it says nothing.
fn by_dns(rendered: &mut pb::Cluster) {
    let is_logical =
        rendered.cluster_discovery_type == Some(ClusterDiscoveryType::Type(DiscoveryType::LogicalDns.into()));
    let dns = DnsCluster {
        dns_refresh_rate: Some(duration(DNS_REFRESH)),
        respect_dns_ttl: true,
        dns_lookup_family: DnsLookupFamily::V4Preferred.into(),
        all_addresses_in_single_endpoint: is_logical,
        ..Default::default()
    };
    let custom = CustomClusterType { name: "envoy.clusters.dns".to_owned(), typed_config: Some(any(&dns)) };
    rendered.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(custom));
}

/// The cluster of a port of the workload itself; of any, where connections are redirected and no service has it.
pub fn inbound_cluster(sidecar: &Sidecar, port: Option<(u16, Protocol)>) -> pb::Cluster {
    let name = port.map_or_else(|| INBOUND_PASSTHROUGH.to_owned(), |(port, _)| inbound_cluster_name(port));
    let mut rendered = library::passthrough();
    rendered.name.clone_from(&name);
    if let Some((_, protocol)) = port {
        rendered.typed_extension_protocol_options = http::options_for(protocol);
    }
    match port {
        Some((port, _)) if !sidecar.redirects => {
            rendered.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into()));
            rendered.lb_policy = LbPolicy::RoundRobin.into();
            rendered.load_assignment = Some(single_assignment(&name, &WORKLOAD_IP.to_string(), port));
        }
        _ => {
            let source = core::SocketAddress {
                address: INBOUND_SOURCE.to_owned(),
                port_specifier: Some(core::socket_address::PortSpecifier::PortValue(0)),
                ..Default::default()
            };
            rendered.upstream_bind_config =
                Some(core::BindConfig { source_address: Some(source), ..Default::default() });
        }
    }
    rendered
}
