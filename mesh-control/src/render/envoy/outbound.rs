//! What a workload calls: for each port of any service that it sees a listener, and for each port that speaks HTTP one
//! configuration of routes with a virtual host for each service (Istio: listener.go, httproute.go).

use std::collections::{BTreeMap, BTreeSet, HashSet};

use envoy_types::pb::envoy::config::accesslog::v3::AccessLog;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3 as session_pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::{Any, BoolValue, UInt32Value};

use super::super::connections;
use super::super::extensions::session_state;
use super::super::judge::Judge;
use super::super::proto::{CORS_FILTER, FAULT_FILTER, any};
use super::super::{
    BLACK_HOLE, Degraded, PASSTHROUGH, Rendered, clusters, encode, encode_routes, envoy_logs, join, library, names_of,
    publishable,
};
use super::inbound::speaks_http;
use super::{VIRTUAL_OUTBOUND, dynamic, proxy};
use crate::catalog::{Encoded, Sidecar};
use crate::policy::connections::Connections;
use crate::policy::outbound::OutboundTrafficPolicy;
use crate::policy::route::{Action, ClusterKey};
use crate::policy::telemetry::Side;
use crate::policy::traffic::Session;
use crate::policy::view::View;
use crate::policy::{Address, Policy};
use crate::registry::Service;
use crate::registry::protocol::Protocol;

/// Where redirected calls of a workload are taken (Istio's port).
const REDIRECTED_TO: u16 = 15_001;

const SESSION_FILTER: &str = "envoy.filters.http.stateful_session";

/// Everything that a client of a view may call, by port.
#[derive(Clone, Debug, Default)]
pub struct Outbound {
    ports: BTreeMap<u16, AtPort>,
    /// Every cluster that there is for it.
    pub clusters: BTreeSet<String>,
    /// Whether calls to what nothing describes go on to where they were going.
    passes: bool,
}

/// What is called at one port.
#[derive(Clone, Debug, Default)]
struct AtPort {
    http: Vec<Address>,
    /// By the name that their clients ask for in TLS of their own.
    tls: Vec<Address>,
    /// By nothing but the port.
    tcp: Vec<Address>,
}

impl Outbound {
    /// What a client of this view may call.
    pub fn of(policy: &Policy, view: &View) -> Outbound {
        let mut addresses = policy.addresses(view);
        let wildcards = policy.services.iter().filter(|(_, service)| service.host.starts_with('*'));
        let seen = wildcards.filter_map(|(_, service)| policy.services.exact(&service.host, &view.namespace));
        let seen = seen.filter(|(_, service)| policy.is_imported(&service.host, view));
        addresses.extend(seen.flat_map(|(_, service)| {
            service.ports.iter().map(|port| Address { host: service.host.clone(), port: port.number })
        }));
        let clusters = clusters(policy, view, &addresses);
        let mut ports: BTreeMap<u16, AtPort> = BTreeMap::new();
        for address in addresses {
            let key = ClusterKey { host: address.host.clone(), port: address.port, subset: "".into() };
            let protocol = policy.cluster(key, view).map_or(Protocol::Http, |seen| seen.port.protocol);
            let at = ports.entry(address.port).or_default();
            match protocol {
                protocol if speaks_http(protocol) => at.http.push(address),
                Protocol::Https | Protocol::Tls => at.tls.push(address),
                _ => at.tcp.push(address),
            }
        }
        // A host whose object is wrong may have any port: nothing passes it by, and its requests are told why.
        let refused: BTreeSet<&str> = policy.services.refused_hosts(&view.namespace).collect();
        let passes = policy.outbound(view) == OutboundTrafficPolicy::AllowAny && refused.is_empty();
        for (port, at) in &mut ports {
            let refused = refused.iter().map(|&host| Address { host: host.into(), port: *port });
            let new = refused.filter(|address| !at.http.contains(address)).collect::<Vec<_>>();
            at.http.extend(new);
        }
        Outbound { ports, clusters, passes }
    }

    /// Ports that have a listener.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.ports.keys().copied()
    }

    /// The services that are called at a port.
    pub fn at<'p>(&self, policy: &'p Policy, view: &View, port: u16) -> impl Iterator<Item = &'p Service> {
        let at = self.ports.get(&port).into_iter().flat_map(|at| at.http.iter().chain(&at.tls).chain(&at.tcp));
        at.filter_map(|address| Some(&**policy.services.exact(&address.host, &view.namespace)?.1))
    }

    /// Ports that have routes.
    pub fn with_routes(&self) -> impl Iterator<Item = u16> {
        self.ports.iter().filter(|(_, at)| !at.http.is_empty()).map(|(port, _)| *port)
    }
}

/// The listener of a port, or of all that is redirected and no port has.
pub fn outbound_listener(
    policy: &Policy,
    view: &View,
    outbound: &Outbound,
    sidecar: &Sidecar,
    name: &str,
    port: Option<u16>,
) -> Option<Rendered> {
    let mut degraded = Vec::new();
    let encoded = match port {
        None => redirected(outbound, &envoy_logs(policy, view, view.telemetry, Side::Client)),
        Some(port) => at_port(policy, view, (port, outbound.ports.get(&port)?), sidecar, name, &mut degraded),
    };
    Some(Rendered { encoded, degraded, refused: Vec::new() })
}

fn redirected(outbound: &Outbound, logs: &[AccessLog]) -> Encoded {
    let any = std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
    let mut rendered = proxy::listener(VIRTUAL_OUTBOUND, any, REDIRECTED_TO, core::TrafficDirection::Outbound);
    rendered.use_original_dst = Some(BoolValue { value: true });
    let chain = |name: &str, port: Option<u16>, cluster: &str| pb::FilterChain {
        name: name.to_owned(),
        filter_chain_match: port.map(|port| pb::FilterChainMatch {
            destination_port: Some(UInt32Value { value: port.into() }),
            ..Default::default()
        }),
        filters: vec![proxy::bytes(cluster.to_owned(), logs.to_vec())],
        ..Default::default()
    };
    let passes = if outbound.passes { PASSTHROUGH } else { BLACK_HOLE };
    // What nobody has redirected would go round in a circle.
    rendered.filter_chains = vec![chain("virtualOutbound-blackhole", Some(REDIRECTED_TO), BLACK_HOLE)];
    rendered.default_filter_chain = Some(chain("virtualOutbound-catchall-tcp", None, passes));
    encode(VIRTUAL_OUTBOUND, &rendered)
}

fn at_port(
    policy: &Policy,
    view: &View,
    (port, at): (u16, &AtPort),
    sidecar: &Sidecar,
    name: &str,
    degraded: &mut Vec<Degraded>,
) -> Encoded {
    let any = std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
    let ip = if sidecar.redirects { any } else { sidecar.outbound_ip };
    let mut rendered = proxy::listener(name, ip, port, core::TrafficDirection::Outbound);
    rendered.bind_to_port = sidecar.redirects.then_some(BoolValue { value: false });
    let key = |address: &Address| ClusterKey { host: address.host.clone(), port: address.port, subset: "".into() };
    let logs = envoy_logs(policy, view, view.telemetry, Side::Client);
    let mut told = HashSet::new();
    for address in &at.tls {
        for way in ways(policy, view, address) {
            // Without a name, connections are told apart by those of the service.
            let names =
                if way.server_names.is_empty() { names_of(&address.host, view) } else { way.server_names.clone() };
            let names: Vec<String> = names.into_iter().filter(|name| told.insert(name.clone())).collect();
            if !names.is_empty() {
                let leads = way.targets.first().and_then(|(key, _)| policy.cluster(key.clone(), view));
                let is_dynamic = leads.is_some_and(|seen| dynamic::is_dynamic(&seen));
                let mut chain = chain(address, Connections { server_names: names, ..way }, &logs);
                if is_dynamic {
                    chain.filters.insert(0, dynamic::of_server_names(port));
                }
                rendered.filter_chains.push(chain);
            }
        }
    }
    if !at.tls.is_empty() {
        rendered.listener_filters.push(proxy::tls_inspector());
    }
    // The requests of all services at the port pass one manager.
    let (mut is_dynamic, mut grpc_web) = (false, false);
    for seen in at.http.iter().filter_map(|address| policy.cluster(key(address), view)) {
        is_dynamic |= dynamic::is_dynamic(&seen);
        grpc_web |= seen.port.protocol == Protocol::GrpcWeb;
    }
    let mut tcp = at.tcp.iter();
    rendered.default_filter_chain = match at.http.is_empty() {
        false => Some(pb::FilterChain {
            name: name.to_owned(),
            filters: vec![proxy::http(&manager((port, ip), is_dynamic, grpc_web, logs))],
            ..Default::default()
        }),
        true => tcp.next().and_then(|address| {
            let way = ways(policy, view, address).pop()?;
            Some(chain(address, Connections { server_names: Vec::new(), ..way }, &logs))
        }),
    };
    for address in tcp {
        if let Some(seen) = policy.cluster(key(address), view) {
            let what =
                format!("port {port} is another service's, too, and nothing but the port tells their calls apart");
            degraded.push(Degraded::of_service(&seen, "spec.ports", what).for_envoy());
        }
    }
    // Where there is TLS only, and all of it by name.
    encode(name, &rendered)
}

/// Where connections to an address go: where no rule says, to its cluster; nowhere, where the rule is wrong.
fn ways(policy: &Policy, view: &View, address: &Address) -> Vec<Connections> {
    let mut ways = policy.connections(address, view);
    if ways.is_empty() {
        let key = ClusterKey { host: address.host.clone(), port: address.port, subset: "".into() };
        let targets = if policy.refuses_connections(address, view) { Vec::new() } else { vec![(key, 1)] };
        let (name, server_names) = ("default".to_owned(), Vec::new());
        ways.push(Connections { name, server_names, targets, idle_timeout: None, tunnel: None });
    }
    ways
}

fn chain(address: &Address, way: Connections, logs: &[AccessLog]) -> pb::FilterChain {
    let name = format!("{}_{}", join(&address.host, address.port), way.name);
    pb::FilterChain { name, ..connections::filter_chain(&way, logs.to_vec()) }
}

/// In Istio's order: gRPC-Web, faults, cross-origin rules, sessions, names that are looked up for each request, the router.
fn manager(
    (port, ip): (u16, std::net::IpAddr),
    is_dynamic: bool,
    grpc_web: bool,
    logs: Vec<AccessLog>,
) -> hcm::HttpConnectionManager {
    let mut filters: Vec<_> = grpc_web.then(proxy::grpc_web).into_iter().chain(of_routes()).collect();
    filters.extend(is_dynamic.then(dynamic::of_requests));
    proxy::manager(format!("outbound_{ip}_{port}"), proxy::by_rds(port.to_string()), filters, logs)
}

/// The filters that routes have settings for.
pub(super) fn of_routes() -> Vec<hcm::HttpFilter> {
    let filter = |name: &str, config: Any| hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    };
    vec![
        filter(FAULT_FILTER, any(&HttpFault::default())),
        filter(CORS_FILTER, any(&Cors::default())),
        filter(SESSION_FILTER, any(&session_pb::StatefulSession::default())),
    ]
}

/// What carries the endpoint of a session of a service, as a setting of its routes.
pub(super) fn of_session(session: &Session) -> (String, Any) {
    let own = session_pb::StatefulSession { session_state: Some(session_state(session)), ..Default::default() };
    let own = session_pb::stateful_session_per_route::Override::StatefulSession(own);
    (SESSION_FILTER.to_owned(), any(&session_pb::StatefulSessionPerRoute { r#override: Some(own) }))
}

/// The routes of a port: a virtual host for each service, and one for all that nothing describes.
pub fn routes(judge: &Judge, policy: &Policy, view: &View, outbound: &Outbound, port: u16) -> Option<Rendered> {
    let at = outbound.ports.get(&port).filter(|at| !at.http.is_empty())?;
    let (mut degraded, mut refused) = (Vec::new(), Vec::new());
    let (mut hosts, mut told) = (Vec::new(), HashSet::new());
    for address in &at.http {
        let routes = publishable(judge, policy, policy.compiled_routes(address, view), &mut refused);
        for (route, written) in routes.iter().filter_map(|route| Some((route, route.written.as_ref()?))) {
            if matches!(&route.action, Action::Forward(forward) if forward.coalesces) {
                let what = "identical requests are sent one by one".to_owned();
                degraded.push(Degraded::of_route_annotation(written, "mesh-control/coalesce", what).for_envoy());
            }
        }
        // Envoy refuses all of them where two have a name in common.
        let domains: Vec<String> = domains(policy, address, view)
            .into_iter()
            .filter(|domain| told.insert(domain.to_ascii_lowercase()))
            .collect();
        if domains.is_empty() {
            continue;
        }
        let key = ClusterKey { host: address.host.clone(), port, subset: "".into() };
        let session = policy.cluster(key, view).and_then(|seen| seen.service.session.clone());
        hosts.push(route::VirtualHost {
            name: join(&address.host, port),
            domains,
            routes: library::render_routes(&routes, &policy.mesh),
            retry_policy: Some(library::retries(policy.mesh.retry.as_ref())),
            include_request_attempt_count: true,
            typed_per_filter_config: session.iter().map(of_session).collect(),
            ..Default::default()
        });
    }
    hosts.push(everything_else(outbound.passes));
    let rendered = library::configuration(&port.to_string(), hosts);
    Some(Rendered { encoded: encode_routes(&port.to_string(), rendered), degraded, refused })
}

/// The authorities of a service: all of its names, those of its aliases, and each with the port.
fn domains(policy: &Policy, address: &Address, view: &View) -> Vec<String> {
    let aliases = policy.services.iter().filter(|(_, service)| service.alias.is_some());
    let aliases = aliases.map(|(_, service)| &service.host).filter(|host| {
        let is_seen = policy.services.exact(host, &view.namespace).is_some_and(|(_, seen)| seen.alias.is_some());
        is_seen && policy.services.real(host, &view.namespace).as_ref() == Some(&address.host)
    });
    let hosts = std::iter::once(&address.host).chain(aliases);
    hosts
        .flat_map(|host| names_of(host, view))
        .flat_map(|name| {
            let with_port = join(&name, address.port);
            [if name.contains(':') { format!("[{name}]") } else { name }, with_port]
        })
        .collect()
}

/// The virtual host of what nothing describes, in Istio's words.
fn everything_else(passes: bool) -> route::VirtualHost {
    let (name, action) = match passes {
        true => ("allow_any", proxy::to_cluster(PASSTHROUGH.to_owned())),
        false => (
            "block_all",
            route::route::Action::DirectResponse(route::DirectResponseAction { status: 502, ..Default::default() }),
        ),
    };
    let any_path = route::route_match::PathSpecifier::Prefix("/".to_owned());
    route::VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route::Route {
            name: name.to_owned(),
            r#match: Some(route::RouteMatch { path_specifier: Some(any_path), ..Default::default() }),
            action: Some(action),
            ..Default::default()
        }],
        include_request_attempt_count: true,
        ..Default::default()
    }
}
