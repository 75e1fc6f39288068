//! Listeners, routes and secrets of a gateway, under Istio's names (core/gateway.go): the same for an Envoy and for a program of this
//! project.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls_pb;
use envoy_types::pb::google::protobuf::BoolValue;
use hcm::http_connection_manager::{ForwardClientCertDetails, RouteSpecifier, SetCurrentClientCertDetails};
use mesh_core::model::ForwardedClientCert;
use tls_pb::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use tls_pb::subject_alt_name_matcher::SanType;
use tls_pb::tls_parameters::TlsProtocol;

use super::super::access;
use super::super::judge::Judge;
use super::super::listener::Telemetry;
use super::super::proto::{duration, number};
use super::super::secrets::{authorities_name, certificate_name};
use super::super::tls::{exact, file, of_files, socket};
use super::super::{
    BLACK_HOLE, Rendered, clusters_of, connections, encode, encode_routes, library, listener, passed, publishable,
};
use super::inbound::Inbound;
use super::{outbound, proxy, tls};
use crate::catalog::{ClientClass, Encoded, Topology};
use crate::policy::Policy;
use crate::policy::connections::Connections;
use crate::policy::filters::FilterInForce;
use crate::policy::gateways::{
    Address, Listening, Owners, Server, ServerAt, ServerTls, Speaks, TlsMode, TlsVersion, VirtualHost,
};
use crate::policy::paths::PathNormalization;
use crate::policy::route::{Action, Route, Written};
use crate::policy::secrets::Secrets;
use crate::policy::tokens::FetchedKeys;
use crate::policy::view::View;
use crate::registry::protocol::Protocol;

/// How long a client may take to shake hands (Istio: gateway.go).
const HANDSHAKE: Duration = Duration::from_secs(15);
/// How long it may take to say what it asks for: who is slow keeps a place from others.
const HEADS: Duration = Duration::from_secs(10);
/// How long a connection is kept without a request.
const IDLE: Duration = Duration::from_secs(3600);
/// What Envoy's own documentation has for proxies at an edge (best_practices/edge).
const STREAMS: u32 = 100;
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const BUFFER: u32 = 32 << 10;

/// A gateway: what it listens for, as whom, and what guards it.
pub struct Edge<'a> {
    /// Its namespace, whose certificates it may show.
    pub namespace: &'a str,
    /// Whether it has proven that it is of that namespace.
    pub may_have_secrets: bool,
    /// Whether it has a certificate of the mesh.
    pub has_certificate: bool,
    /// What it can do.
    pub class: ClientClass,
    /// What guards it.
    pub guarded: &'a Inbound<'a>,
    /// What is in front of it.
    pub topology: Topology,
    /// What its requests pass besides.
    pub filters: &'a [FilterInForce],
    /// How they are traced and counted, where that is told; where they are logged is among what guards it.
    pub telemetry: Telemetry,
    /// Keys of those who issue tokens.
    pub keys: &'a FetchedKeys,
    /// Tables of routes whose requests may be gRPC-Web.
    pub grpc_web: &'a BTreeSet<String>,
}

/// What a gateway is told of an address besides its listener.
#[derive(Debug, Default)]
pub struct EdgeRoutes {
    /// The routes, by their names.
    pub tables: Vec<(String, Rendered)>,
    /// The clusters that they and connections lead to.
    pub clusters: BTreeSet<String>,
    /// The tables whose requests may be gRPC-Web: a server says so (Istio), or the port of a service that they lead to.
    pub grpc_web: BTreeSet<String>,
}

impl Edge<'_> {
    /// Whether it is told of a certificate that it does not get, too: then it shakes hands with nobody there, and says why. To an
    /// Envoy such a chain would be one that waits.
    fn tells_what_it_lacks(&self) -> bool {
        self.class == ClientClass::Library
    }
}

/// The name of the routes of a server, by Istio's words.
fn routes_name(served: &ServerAt, (ip, bound): Address) -> String {
    match served.server() {
        Some(server) if server.port.is_tls() => {
            let (port, name, namespace) = (served.port, &server.port.name.value, &served.gateway.meta.namespace);
            format!("https.{port}.{name}.{}.{namespace}", served.gateway_name())
        }
        _ if ip.is_unspecified() => format!("http.{bound}"),
        _ => format!("http.{bound}.{ip}"),
    }
}

/// The tables of routes at an address, each with its servers.
fn tables(address: Address, at: &Listening) -> Vec<(String, Vec<ServerAt>)> {
    match at.speaks {
        Speaks::Http => match at.servers.first() {
            Some(first) => vec![(routes_name(first, address), at.servers.clone())],
            None => Vec::new(),
        },
        Speaks::Tls => {
            let right = at.servers.iter().filter(|served| served.closed.is_none());
            let http = right.filter(|served| served.server().is_some_and(Server::takes_requests));
            http.map(|served| (routes_name(served, address), vec![served.clone()])).collect()
        }
        Speaks::Bytes => Vec::new(),
    }
}

/// The routes at an address, and where they and connections lead to.
pub fn edge_routes(judge: &Judge, policy: &Policy, view: &View, address: Address, at: &Listening) -> EdgeRoutes {
    let owners = Owners::of(&at.servers);
    let mut told = EdgeRoutes::default();
    for (name, servers) in tables(address, at) {
        let mut refused = Vec::new();
        let mut hosts = Vec::new();
        let mut servers_ports = servers.iter().filter_map(ServerAt::server).map(|server| &server.port);
        let mut grpc_web = servers_ports.any(|port| port.speaks(&["GRPC-WEB"]));
        for host in policy.virtual_hosts(&servers, &owners, view) {
            told.clusters.extend(clusters_of(policy, view, &host.routes));
            grpc_web = grpc_web || leads_to_grpc_web(policy, view, &host.routes);
            let routes = publishable(judge, policy, host.routes.clone(), &mut refused);
            hosts.push(virtual_host(policy, view, &host, &routes, known_port(&servers, address)));
        }
        if hosts.is_empty() {
            hosts.push(nobody(address.1));
        }
        let encoded = encode_routes(&name, library::configuration(&name, hosts));
        told.grpc_web.extend(grpc_web.then(|| name.clone()));
        told.tables.push((name, Rendered { encoded, degraded: Vec::new(), refused }));
    }
    for served in &at.servers {
        for way in ways(policy, view, served, &owners) {
            told.clusters.extend(way.targets.iter().map(|(cluster, _)| cluster.to_string()));
        }
        told.clusters.extend(policy.passed_on_at(served, view));
    }
    told
}

/// Whether some of these routes lead to a port that is called `grpc-web`.
fn leads_to_grpc_web(policy: &Policy, view: &View, routes: &[Route]) -> bool {
    let forwards = routes.iter().filter_map(|route| match &route.action {
        Action::Forward(forward) => Some(forward),
        _ => None,
    });
    let mut ports = forwards
        .flat_map(|forward| &forward.targets)
        .filter_map(|target| policy.cluster(target.cluster.clone(), view))
        .map(|seen| seen.port.protocol);
    ports.any(|protocol| protocol == Protocol::GrpcWeb)
}

/// Of each route of a host in one of the tables at an address, in its order, the rule that it is made of.
pub fn edge_rules(
    policy: &Policy,
    view: &View,
    address: Address,
    at: &Listening,
    (table, host): (&str, &str),
) -> Option<Vec<Option<Written>>> {
    let (_, servers) = tables(address, at).into_iter().find(|(name, _)| name == table)?;
    let port = known_port(&servers, address);
    let hosts = policy.virtual_hosts(&servers, &Owners::of(&at.servers), view);
    let found = hosts.into_iter().find(|one| host_name(&one.host, port) == host)?;
    Some(found.routes.into_iter().map(|route| route.written).collect())
}

/// The port that the hosts of a table are known by.
fn known_port(servers: &[ServerAt], address: Address) -> u16 {
    servers.first().map_or(address.1, |first| first.port)
}

/// What a host is called in a table of routes.
fn host_name(host: &str, port: u16) -> String {
    format!("{host}:{port}")
}

fn virtual_host(policy: &Policy, view: &View, host: &VirtualHost, routes: &[Route], port: u16) -> route::VirtualHost {
    let mut rendered = library::render_routes(routes, &policy.mesh);
    for (rendered, route) in rendered.iter_mut().zip(routes) {
        let Action::Forward(forward) = &route.action else { continue };
        let first = forward.targets.first().and_then(|target| policy.cluster(target.cluster.clone(), view));
        let session = first.and_then(|seen| seen.service.session.clone());
        rendered.typed_per_filter_config.extend(session.iter().map(outbound::of_session));
    }
    let name = &host.host;
    let domains = match name.as_str() {
        "*" => vec!["*".to_owned()],
        // There is one wildcard in a domain at most.
        name if name.starts_with('*') => vec![name.to_owned(), format!("{name}:{port}")],
        name if name.contains(':') => vec![format!("[{name}]"), format!("[{name}]:*")],
        name => vec![name.to_owned(), format!("{name}:*")],
    };
    let require_tls = match host.redirects {
        true => route::virtual_host::TlsRequirementType::All,
        false => route::virtual_host::TlsRequirementType::None,
    };
    route::VirtualHost {
        name: host_name(name, port),
        domains,
        routes: rendered,
        require_tls: require_tls.into(),
        retry_policy: Some(library::retries(policy.mesh.retry.as_ref())),
        include_request_attempt_count: true,
        ..Default::default()
    }
}

/// Every request is answered with 404: no rule has a host here.
fn nobody(port: u16) -> route::VirtualHost {
    route::VirtualHost { name: format!("blackhole:{port}"), domains: vec!["*".to_owned()], ..Default::default() }
}

/// Where connections of a server go that is not about requests.
fn ways(policy: &Policy, view: &View, served: &ServerAt, owners: &Owners) -> Vec<Connections> {
    match served.server() {
        Some(server) if server.takes_requests() => Vec::new(),
        Some(Server { tls: Some(tls), .. }) if tls.mode == TlsMode::AutoPassthrough => Vec::new(),
        Some(Server { tls, .. }) => {
            let passes_tls = tls.as_ref().is_some_and(|tls| !tls.mode.terminates());
            policy.ways_at(served, owners, view, passes_tls)
        }
        None => Vec::new(),
    }
}

/// The listener of an address.
pub fn edge_listener(
    policy: &Policy,
    view: &View,
    name: &str,
    address: Address,
    at: &Listening,
    edge: &Edge<'_>,
    paths: PathNormalization,
) -> Encoded {
    let mut rendered = proxy::listener(name, address.0, address.1, core::TrafficDirection::Outbound);
    rendered.per_connection_buffer_limit_bytes = number(BUFFER);
    if edge.topology.proxy_protocol == Some(true) {
        rendered.listener_filters.push(proxy::proxy_protocol());
    }
    if at.speaks == Speaks::Tls {
        rendered.listener_filters.push(proxy::tls_inspector());
    }
    let (mut told, owners) = (HashSet::new(), Owners::of(&at.servers));
    rendered.filter_chains = match at.speaks {
        Speaks::Http => {
            let routes = at.servers.first().map(|first| routes_name(first, address)).unwrap_or_default();
            vec![pb::FilterChain { filters: vec![requests(&routes, edge, paths)], ..Default::default() }]
        }
        Speaks::Tls => {
            let guards = guards_of_bytes(edge);
            let of = |served| secured(policy, view, (served, &owners), address, (edge, guards.as_deref()), paths);
            let chains = at.servers.iter().flat_map(of);
            // Envoy refuses all of them where two have a name in common.
            chains.filter(|chain| is_new(chain, &mut told)).collect()
        }
        Speaks::Bytes => {
            let guards = guards_of_bytes(edge);
            let of = |served| bytes(policy, view, (served, &owners), (edge, guards.as_deref()));
            at.servers.iter().flat_map(of).take(1).collect()
        }
    };
    if rendered.filter_chains.is_empty() {
        rendered.filter_chains.push(closed(name, Vec::new(), edge));
    }
    if edge.class == ClientClass::Library {
        // Its sockets and its handshakes have limits of their own.
        (rendered.per_connection_buffer_limit_bytes, rendered.enable_reuse_port) = (None, None);
        rendered.filter_chains.iter_mut().for_each(|chain| chain.transport_socket_connect_timeout = None);
    }
    encode(name, &rendered)
}

fn is_new(chain: &pb::FilterChain, told: &mut HashSet<String>) -> bool {
    let names = chain.filter_chain_match.as_ref().map(|matched| matched.server_names.clone()).unwrap_or_default();
    if names.is_empty() {
        return told.insert(String::new());
    }
    let is_new = names.iter().all(|name| !told.contains(name));
    is_new && {
        told.extend(names);
        true
    }
}

/// Connections that ask for these names are closed.
fn closed(name: &str, server_names: Vec<String>, edge: &Edge<'_>) -> pb::FilterChain {
    chain(name, server_names, proxy::bytes(BLACK_HOLE.to_owned(), edge.guarded.logs.clone()), None)
}

fn chain(
    name: &str,
    server_names: Vec<String>,
    filter: pb::Filter,
    transport_socket: Option<core::TransportSocket>,
) -> pb::FilterChain {
    let by_name = pb::FilterChainMatch { server_names, ..Default::default() };
    pb::FilterChain {
        name: name.to_owned(),
        filter_chain_match: (!by_name.server_names.is_empty()).then_some(by_name),
        filters: vec![filter],
        transport_socket_connect_timeout: transport_socket.is_some().then(|| duration(HANDSHAKE)),
        transport_socket,
        ..Default::default()
    }
}

/// What clients ask for to mean these hosts; nothing is any of them. `None` where no client can say what is meant.
fn server_names(served: &ServerAt) -> Option<Vec<String>> {
    let hosts = served.hosts();
    if hosts.iter().any(|host| host == "*") {
        return Some(Vec::new());
    }
    // Names of servers are DNS's, with a whole label for a wildcard.
    let names = hosts.into_iter().filter(|host| !host.starts_with('*') || host.starts_with("*."));
    let names: Vec<String> = names.filter(|host| host.parse::<std::net::IpAddr>().is_err()).collect();
    (!names.is_empty()).then_some(names)
}

/// The chains of a server of TLS. Where its certificate cannot be shown, its connections are closed, and others go on.
fn secured(
    policy: &Policy,
    view: &View,
    (served, owners): (&ServerAt, &Owners),
    address: Address,
    (edge, guards): (&Edge<'_>, Option<&[pb::Filter]>),
    paths: PathNormalization,
) -> Vec<pb::FilterChain> {
    let (Some(server), Some(names)) = (served.server(), server_names(served)) else { return Vec::new() };
    let name = routes_name(served, address);
    if served.closed.is_some() {
        return vec![closed(&name, names, edge)];
    }
    let Some(written) = &server.tls else { return Vec::new() };
    let takes_requests = server.takes_requests();
    let socket = match written.mode.terminates() {
        true => match downstream(&policy.secrets, edge, served, written, takes_requests) {
            Some(socket) => Some(socket),
            None => return vec![closed(&name, names, edge)],
        },
        false => None,
    };
    if takes_requests {
        return vec![chain(&name, names, requests(&name, edge, paths), socket)];
    }
    let mut chains = bytes(policy, view, (served, owners), (edge, guards));
    if let Some(guards) = guards {
        // Each goes to the cluster of its name.
        let passed_on = policy.passed_on_at(served, view).into_iter();
        chains.extend(passed_on.map(|name| {
            let filter = proxy::bytes(name.clone(), edge.guarded.logs.clone());
            guarded(chain(&name, vec![name.clone()], filter, None), guards)
        }));
    }
    if let Some(socket) = socket {
        chains.iter_mut().for_each(|chain| {
            chain.transport_socket_connect_timeout = Some(duration(HANDSHAKE));
            chain.transport_socket = Some(socket.clone());
            // Where no rule has names, they are those of the server.
            if chain.filter_chain_match.as_ref().is_none_or(|matched| matched.server_names.is_empty())
                && !names.is_empty()
            {
                chain.filter_chain_match =
                    Some(pb::FilterChainMatch { server_names: names.clone(), ..Default::default() });
            }
        });
    }
    // A name that no rule has is nobody else's. Where nobody is let in, that ends connections of such names, too.
    let closed = closed(&name, names, edge);
    chains.push(if guards.is_some() { closed } else { guarded(closed, &[access::no_connections()]) });
    let mut told = HashSet::new();
    chains.iter_mut().for_each(|chain| {
        if let Some(matched) = &mut chain.filter_chain_match {
            matched.server_names.retain(|name| told.insert(name.clone()));
        }
    });
    chains.retain(|chain| chain.filter_chain_match.as_ref().is_none_or(|matched| !matched.server_names.is_empty()));
    chains
}

/// The chains of connections that are not looked at.
fn bytes(
    policy: &Policy,
    view: &View,
    (served, owners): (&ServerAt, &Owners),
    (edge, guards): (&Edge<'_>, Option<&[pb::Filter]>),
) -> Vec<pb::FilterChain> {
    let is_shut = guards.is_none();
    let closing = [access::no_connections()];
    let guards = guards.unwrap_or(&closing);
    let ways = ways(policy, view, served, owners).into_iter();
    let ways = ways.map(|way| if is_shut { Connections { targets: Vec::new(), ..way } } else { way });
    ways.map(|way| {
        let rendered = connections::filter_chain(&way, edge.guarded.logs.clone());
        let matched = rendered
            .filter_chain_match
            .map(|matched| pb::FilterChainMatch { transport_protocol: String::new(), ..matched });
        guarded(pb::FilterChain { filter_chain_match: matched, ..rendered }, guards)
    })
    .collect()
}

/// Who is let in where nobody looks into connections; `None` where nobody is, since what guards the gateway has to see requests.
/// Which tokens are good is no matter there (Istio: a RequestAuthentication is an HTTP filter): policies that ask for one let nobody in.
fn guards_of_bytes(edge: &Edge<'_>) -> Option<Vec<pb::Filter>> {
    let Inbound { refusal, access: policies, .. } = edge.guarded;
    let has_to_see_requests = refusal.is_some() || !policies.asks.is_empty();
    (!has_to_see_requests).then(|| access::of_connections(policies, edge.class).ok()).flatten()
}

/// The same chain, behind these filters.
fn guarded(mut chain: pb::FilterChain, guards: &[pb::Filter]) -> pb::FilterChain {
    chain.filters.splice(0..0, guards.iter().cloned());
    chain
}

/// The filter of requests.
fn requests(routes: &str, edge: &Edge<'_>, paths: PathNormalization) -> pb::Filter {
    let Inbound { refusal, access, tokens, limits, .. } = edge.guarded;
    let passed = match refusal {
        Some(reason) => Err(reason.clone()),
        None => passed((access, tokens, edge.keys), edge.class, edge.filters, limits),
    };
    let (mut filters, specifier) = match passed {
        Ok(filters) => (filters, proxy::by_rds(routes.to_owned())),
        Err(reason) => (Vec::new(), answered(routes, &reason)),
    };
    filters.extend(edge.telemetry.metrics.clone());
    filters.extend(edge.grpc_web.contains(routes).then(proxy::grpc_web));
    filters.extend(outbound::of_routes());
    let mut manager = proxy::manager(format!("outbound_{routes}"), specifier, filters, edge.guarded.logs.clone());
    manager.tracing.clone_from(&edge.telemetry.tracing);
    // What clients say of where they come from is theirs, but for those in front that are known.
    manager.use_remote_address = Some(BoolValue { value: true });
    manager.xff_num_trusted_hops = edge.topology.forwarded_hops.unwrap_or_default();
    manager.forward_client_cert_details = match edge.topology.client_cert.unwrap_or_default() {
        ForwardedClientCert::Sanitize => ForwardClientCertDetails::Sanitize,
        ForwardedClientCert::ForwardOnly => ForwardClientCertDetails::ForwardOnly,
        ForwardedClientCert::AppendForward => ForwardClientCertDetails::AppendForward,
        ForwardedClientCert::SanitizeSet => ForwardClientCertDetails::SanitizeSet,
        ForwardedClientCert::AlwaysForwardOnly => ForwardClientCertDetails::AlwaysForwardOnly,
    }
    .into();
    manager.set_current_client_cert_details = Some(SetCurrentClientCertDetails {
        subject: Some(BoolValue { value: true }),
        cert: true,
        dns: true,
        uri: true,
        ..Default::default()
    });
    manager.request_headers_timeout = Some(duration(HEADS));
    manager.common_http_protocol_options =
        Some(core::HttpProtocolOptions { idle_timeout: Some(duration(IDLE)), ..Default::default() });
    manager.http2_protocol_options = Some(core::Http2ProtocolOptions {
        max_concurrent_streams: number(STREAMS),
        initial_stream_window_size: number(STREAM_WINDOW),
        initial_connection_window_size: number(CONNECTION_WINDOW),
        ..Default::default()
    });
    if edge.class == ClientClass::Library {
        for_library(&mut manager);
    }
    proxy::http(&listener::normalized(manager, paths.of(edge.guarded.access.is_guarded())))
}

/// Takes off what the library's server has limits of its own for, or never does: it would say that this is without effect.
fn for_library(manager: &mut hcm::HttpConnectionManager) {
    manager.server_name.clear();
    (manager.stream_idle_timeout, manager.request_headers_timeout) = (None, None);
    (manager.common_http_protocol_options, manager.http2_protocol_options) = (None, None);
    manager.set_current_client_cert_details = None;
}

/// Every request is answered with why nobody is served.
fn answered(name: &str, reason: &str) -> RouteSpecifier {
    let action = route::route::Action::DirectResponse(library::unavailable(reason));
    proxy::inline(name.to_owned(), name.to_owned(), action)
}

/// How a server takes TLS; `None` where it has nothing to show, or nobody to trust, and cannot say so itself.
fn downstream(
    secrets: &Secrets,
    edge: &Edge<'_>,
    served: &ServerAt,
    written: &ServerTls,
    takes_requests: bool,
) -> Option<core::TransportSocket> {
    let alpn: &[&str] = if takes_requests { &["h2", "http/1.1"] } else { &[] };
    if written.mode == TlsMode::IstioMutual {
        return edge.has_certificate.then(|| tls::downstream(alpn));
    }
    let mut common = tls_pb::CommonTlsContext {
        tls_params: Some(parameters(written)),
        alpn_protocols: alpn.iter().map(|&name| name.to_owned()).collect(),
        ..Default::default()
    };
    for name in written.credentials() {
        let (namespace, name) = served.secret(edge.namespace, name);
        if !edge.tells_what_it_lacks() {
            secrets.get(namespace, name).filter(|_| edge.may_have_secrets)?.identity.as_ref()?;
        }
        common.tls_certificate_sds_secret_configs.push(tls::told(certificate_name(namespace, name)));
    }
    if common.tls_certificate_sds_secret_configs.is_empty() {
        common.tls_certificates = written.files().map(|(certificate, key)| of_files(certificate, key)).collect();
        if common.tls_certificates.is_empty() {
            return None;
        }
    }
    if written.mode.asks_clients() {
        common.validation_context_type = Some(validation(secrets, edge, served, written)?);
    }
    Some(socket(&tls_pb::DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: Some(BoolValue { value: written.mode == TlsMode::Mutual }),
        ..Default::default()
    }))
}

/// Whose clients are let in; `None` where nobody says it.
fn validation(
    secrets: &Secrets,
    edge: &Edge<'_>,
    served: &ServerAt,
    written: &ServerTls,
) -> Option<ValidationContextType> {
    let kinds = |name: &String| {
        let kind = if name.contains("://") { SanType::Uri } else { SanType::Dns };
        exact(kind, name.clone())
    };
    let own = tls_pb::CertificateValidationContext {
        match_typed_subject_alt_names: written.subject_alt_names.iter().map(kinds).collect(),
        verify_certificate_spki: written.verify_certificate_spki.clone(),
        verify_certificate_hash: written.verify_certificate_hash.clone(),
        crl: (!written.ca_crl.is_empty()).then(|| file(&written.ca_crl)),
        ..Default::default()
    };
    match written.authorities() {
        Some(name) => {
            let (namespace, name) = served.secret(edge.namespace, name);
            if !edge.tells_what_it_lacks() {
                secrets.authorities(namespace, name)?;
            }
            let secret = tls::told(authorities_name(namespace, name));
            Some(ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
                default_validation_context: Some(own),
                validation_context_sds_secret_config: Some(secret),
                ..Default::default()
            }))
        }
        None if written.ca_certificates.is_empty() => None,
        None => {
            let trusted_ca = Some(file(&written.ca_certificates));
            Some(ValidationContextType::ValidationContext(tls_pb::CertificateValidationContext { trusted_ca, ..own }))
        }
    }
}

/// Versions and ciphers. Where nothing is said, TLS 1.2 is the oldest, as in Istio.
fn parameters(written: &ServerTls) -> tls_pb::TlsParameters {
    let version = |version| match version {
        TlsVersion::Auto => None,
        TlsVersion::V1_0 => Some(TlsProtocol::TlSv10),
        TlsVersion::V1_1 => Some(TlsProtocol::TlSv11),
        TlsVersion::V1_2 => Some(TlsProtocol::TlSv12),
        TlsVersion::V1_3 => Some(TlsProtocol::TlSv13),
    };
    tls_pb::TlsParameters {
        tls_minimum_protocol_version: version(written.min_protocol_version).unwrap_or(TlsProtocol::TlSv12).into(),
        tls_maximum_protocol_version: version(written.max_protocol_version).unwrap_or(TlsProtocol::TlsAuto).into(),
        cipher_suites: written.cipher_suites.iter().map(|suite| suite.value.clone()).collect(),
        ..Default::default()
    }
}

/// The names of the secrets that the servers of a gateway name.
pub fn edge_secrets<'a>(namespace: &'a str, listening: impl Iterator<Item = &'a Listening>) -> BTreeSet<String> {
    let written =
        listening.flat_map(|at| &at.servers).filter_map(|served| Some((served, served.server()?.tls.as_ref()?)));
    let names = written.filter(|(_, tls)| tls.mode.terminates()).flat_map(|(served, tls)| {
        let roots = std::iter::once(&tls.ca_cert_credential_name).chain(tls.credentials());
        let roots = roots.filter(|name| tls.mode.asks_clients() && !name.is_empty());
        let in_full = move |name: &'a str| served.secret(namespace, name);
        let roots = roots.map(move |name| in_full(name)).map(|(namespace, name)| authorities_name(namespace, name));
        let own = tls.credentials().map(move |name| in_full(name));
        own.map(|(namespace, name)| certificate_name(namespace, name)).chain(roots)
    });
    names.collect()
}
