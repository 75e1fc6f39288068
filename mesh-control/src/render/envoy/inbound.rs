//! What calls a workload: a chain of filters for each of its ports, which takes connections as its PeerAuthentication says and
//! lets in whom its policies let in (Istio: listener_inbound.go).

use envoy_types::pb::envoy::config::accesslog::v3::AccessLog;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};
use hcm::http_connection_manager::{ForwardClientCertDetails, SetCurrentClientCertDetails};

use super::super::{BLACK_HOLE, encode, library, listener, passed};
use super::{INBOUND_PASSTHROUGH, VIRTUAL_INBOUND, inbound_cluster_name, proxy, tls};
use crate::catalog::{ClientClass, Encoded, Sidecar};
use crate::policy::access::Access;
use crate::policy::limits::LimitInForce;
use crate::policy::paths::PathNormalization;
use crate::policy::tokens::{FetchedKeys, TokenRule};
use crate::policy::traffic::ServerTls;
use crate::registry::protocol::Protocol;

/// Where redirected connections to a workload are taken (Istio's ports).
const REDIRECTED_TO: u16 = 15_006;

/// A port of a workload, and what guards it.
#[derive(Debug)]
pub struct Inbound<'a> {
    /// The port.
    pub port: u16,
    /// Whether a service has it. To any other, connections that are let in go on as they are.
    pub is_of_service: bool,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Why nobody is served there, if nobody is.
    pub refusal: Option<String>,
    /// Who may do what.
    pub access: Access<'a>,
    /// Which tokens are good.
    pub tokens: Vec<&'a TokenRule>,
    /// How connections are taken.
    pub tls: ServerTls,
    /// Where its requests are logged.
    pub logs: Vec<AccessLog>,
    /// How many of them there may be.
    pub limits: Vec<LimitInForce>,
}

/// The listener of these ports: of one, which it binds, or of all, where connections are redirected. `passes` says whether
/// connections to other ports go on to the workload.
pub fn inbound_listener(
    name: &str,
    sidecar: &Sidecar,
    ports: &[Inbound<'_>],
    keys: &FetchedKeys,
    paths: PathNormalization,
    passes: bool,
) -> Encoded {
    let direction = core::TrafficDirection::Inbound;
    let mut rendered = match ports {
        [only] if !sidecar.redirects => proxy::listener(name, sidecar.ip, only.port, direction),
        _ => {
            let any = std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
            let mut rendered = proxy::listener(VIRTUAL_INBOUND, any, REDIRECTED_TO, direction);
            rendered.listener_filters.push(proxy::original_dst());
            rendered
        }
    };
    rendered.listener_filters.push(proxy::tls_inspector());
    rendered.filter_chains = ports.iter().flat_map(|port| chains(sidecar, port, keys, paths)).collect();
    if sidecar.redirects {
        let cluster = if passes { INBOUND_PASSTHROUGH } else { BLACK_HOLE };
        rendered.default_filter_chain = Some(pb::FilterChain {
            name: "virtualInbound".to_owned(),
            // It is none of the ports that are told about.
            filters: vec![proxy::bytes(cluster.to_owned(), Vec::new())],
            ..Default::default()
        });
    }
    encode(name, &rendered)
}

fn chains(sidecar: &Sidecar, port: &Inbound<'_>, keys: &FetchedKeys, paths: PathNormalization) -> Vec<pb::FilterChain> {
    let filter = filter(port, keys, paths);
    let name = format!("{}_{}", sidecar.ip, port.port);
    let destination_port = sidecar.redirects.then(|| UInt32Value { value: port.port.into() });
    let of = |name: String, protocol: &str, alpn: &[&str], transport_socket| pb::FilterChain {
        name,
        filter_chain_match: Some(pb::FilterChainMatch {
            destination_port,
            transport_protocol: protocol.to_owned(),
            application_protocols: alpn.iter().map(|&name| name.to_owned()).collect(),
            ..Default::default()
        }),
        filters: vec![filter.clone()],
        transport_socket,
        ..Default::default()
    };
    let is_http = speaks_http(port.protocol);
    let secured = |alpn: &[&str]| {
        let offered: &[&str] = if is_http { &["h2", "http/1.1"] } else { &tls::IN_MESH };
        of(name.clone(), "tls", alpn, Some(tls::downstream(offered)))
    };
    let plain = |protocol: &str| of(format!("{name}_plaintext"), protocol, &[], None);
    match port.tls {
        // What is not TLS must not be taken for a connection to a port that no service has.
        ServerTls::Strict if sidecar.redirects => {
            let closed = proxy::bytes(BLACK_HOLE.to_owned(), port.logs.clone());
            let closed = pb::FilterChain { filters: vec![closed], ..plain("") };
            vec![secured(&[]), pb::FilterChain { name: format!("{name}_closed"), ..closed }]
        }
        ServerTls::Strict => vec![secured(&[])],
        ServerTls::Permissive if is_http => vec![secured(&[]), plain("raw_buffer")],
        // What is TLS of the application's own, by these names, goes on to it.
        ServerTls::Permissive => vec![secured(&tls::IN_MESH), plain("")],
        ServerTls::Plaintext => vec![plain("")],
    }
}

/// Whether requests are looked at: also where nobody says what is spoken, as the library does.
pub(super) fn speaks_http(protocol: Protocol) -> bool {
    !matches!(protocol, Protocol::Https | Protocol::Tls | Protocol::Tcp)
}

fn filter(port: &Inbound<'_>, keys: &FetchedKeys, paths: PathNormalization) -> pb::Filter {
    let cluster = if port.is_of_service { inbound_cluster_name(port.port) } else { INBOUND_PASSTHROUGH.to_owned() };
    if !speaks_http(port.protocol) {
        return proxy::bytes(if port.is_shut() { BLACK_HOLE.to_owned() } else { cluster }, port.logs.clone());
    }
    let passed = match &port.refusal {
        Some(reason) => Err(reason.clone()),
        None => passed((&port.access, &port.tokens, keys), ClientClass::Envoy, &[], &port.limits),
    };
    let (filters, action) = match passed {
        Ok(mut filters) => {
            filters.extend((port.protocol == Protocol::GrpcWeb).then(proxy::grpc_web));
            (filters, proxy::to_cluster(cluster.clone()))
        }
        Err(reason) => (Vec::new(), Action::DirectResponse(library::unavailable(&reason))),
    };
    let routes = proxy::inline(cluster, format!("inbound|http|{}", port.port), action);
    let mut manager = proxy::manager(format!("inbound_0.0.0.0_{}", port.port), routes, filters, port.logs.clone());
    // Who calls is who the certificate names, whatever the request says.
    manager.forward_client_cert_details = ForwardClientCertDetails::SanitizeSet.into();
    manager.set_current_client_cert_details = Some(SetCurrentClientCertDetails {
        subject: Some(BoolValue { value: true }),
        dns: true,
        uri: true,
        ..Default::default()
    });
    proxy::http(&listener::normalized(manager, paths.of(port.access.is_guarded())))
}

impl Inbound<'_> {
    /// Whether no connection is let in that is not HTTP: policies decide on requests. Tokens are those of requests, and there are none
    /// where a service says so; at a port that no service has there may be.
    pub fn is_shut(&self) -> bool {
        let has_tokens = !self.tokens.is_empty() && !self.is_of_service;
        self.refusal.is_some() || self.access.is_guarded() || has_tokens
    }

    /// Whether it is shut, and connections here are not HTTP, so that nobody is told why.
    pub fn shuts_connections(&self) -> bool {
        self.is_of_service && !speaks_http(self.protocol) && self.is_shut()
    }
}
