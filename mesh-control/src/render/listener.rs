//! Listeners: a client's, which only names its routes, and a server's.

use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3::AccessLog;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::Tracing;
use envoy_types::pb::google::protobuf::BoolValue;

use mesh_core::model::BLOCK_ALL;
use mesh_core::path::{EscapedSlashes, PathNormalization};

use super::extensions::session_filter;
use super::proto::{OfRoutes, ads, any, duration, http_filters, socket_address};
use super::{PASSTHROUGH, tls};
use crate::policy::traffic::{ServerTls, Session};

/// What names of server listeners start with (Istio: grpc_bootstrap.go).
pub const SERVER_PREFIX: &str = "xds.istio.io/grpc/lds/inbound/";

/// What is told of the requests of a listener.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    /// Where they are logged.
    pub logs: Vec<AccessLog>,
    /// How they are traced; `None` where the application says it.
    pub tracing: Option<Tracing>,
    /// The filter that says how they are counted, where that is otherwise than usual.
    pub metrics: Option<hcm::HttpFilter>,
}

/// The listener that a client asks for by `host:port`; its routes are another resource.
pub fn client(
    name: &str,
    routes: &str,
    of_routes: OfRoutes,
    session: Option<&Session>,
    telemetry: Telemetry,
    first: Vec<hcm::HttpFilter>,
) -> pb::Listener {
    let mut filters = http_filters(of_routes);
    // What is over a limit does nothing else.
    filters.splice(0..0, first.into_iter().chain(session.map(session_filter)).chain(telemetry.metrics));
    let manager = hcm::HttpConnectionManager {
        stat_prefix: routes.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(hcm::Rds {
            config_source: Some(ads()),
            route_config_name: routes.to_owned(),
        })),
        http_filters: filters,
        access_log: telemetry.logs,
        tracing: telemetry.tracing,
        ..Default::default()
    };
    pb::Listener {
        name: name.to_owned(),
        api_listener: Some(pb::ApiListener { api_listener: Some(any(&manager)) }),
        ..Default::default()
    }
}

/// The listener of a host that nothing describes: every request goes on to where it asks for. The route has Istio's name.
pub fn passing_by(name: &str, telemetry: Telemetry, filters: Vec<hcm::HttpFilter>) -> pb::Listener {
    const ALLOW_ANY: &str = "allow_any";
    let action = route::route::Action::Route(route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(PASSTHROUGH.to_owned())),
        // Without a value Envoy's own default of 15 s would hold.
        timeout: Some(duration(Duration::ZERO)),
        ..Default::default()
    });
    with_one_route(name, ALLOW_ANY, action, telemetry, filters)
}

/// The listener of a host that nothing describes where such hosts are not called: every request is answered with 502, and why.
pub fn blocked(name: &str, why: String, telemetry: Telemetry) -> pb::Listener {
    let body = core::DataSource { specifier: Some(Specifier::InlineString(why)), ..Default::default() };
    let action = route::DirectResponseAction { status: 502, body: Some(body), ..Default::default() };
    with_one_route(name, BLOCK_ALL, route::route::Action::DirectResponse(action), telemetry, Vec::new())
}

fn with_one_route(
    name: &str,
    route: &str,
    action: route::route::Action,
    telemetry: Telemetry,
    filters: Vec<hcm::HttpFilter>,
) -> pb::Listener {
    let mut manager = inline(route, route, action);
    (manager.access_log, manager.tracing) = (telemetry.logs, telemetry.tracing);
    manager.http_filters.splice(0..0, filters.into_iter().chain(telemetry.metrics));
    pb::Listener {
        name: name.to_owned(),
        api_listener: Some(pb::ApiListener { api_listener: Some(any(&manager)) }),
        ..Default::default()
    }
}

/// The listener of a server that bound this address (gRFC A36 wants it to be that of the resource). Everything goes to the
/// application, by a non-forwarding action, or to another one, through these filters, which see paths in this form.
pub fn server(
    name: &str,
    bound: SocketAddr,
    action: route::route::Action,
    filters: Vec<hcm::HttpFilter>,
    paths: PathNormalization,
    (tls, telemetry): (ServerTls, &Telemetry),
) -> pb::Listener {
    let mut manager = inline(&format!("inbound|{}||", bound.port()), "default", action);
    manager.http_filters.splice(0..0, filters.into_iter().chain(telemetry.metrics.clone()));
    (manager.access_log, manager.tracing) = (telemetry.logs.clone(), telemetry.tracing.clone());
    let manager = normalized(manager, paths);
    let chain = |name: &str, protocol: &str, transport_socket| pb::FilterChain {
        name: name.to_owned(),
        filter_chain_match: (!protocol.is_empty())
            .then(|| pb::FilterChainMatch { transport_protocol: protocol.to_owned(), ..Default::default() }),
        filters: vec![pb::Filter {
            name: "envoy.filters.network.http_connection_manager".to_owned(),
            config_type: Some(ConfigType::TypedConfig(any(&manager))),
        }],
        transport_socket,
        ..Default::default()
    };
    let inspector = || pb::ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_owned(),
        config_type: Some(pb::listener_filter::ConfigType::TypedConfig(any(&TlsInspector::default()))),
        ..Default::default()
    };
    let (filter_chains, listener_filters) = match tls {
        ServerTls::Plaintext => (vec![chain("inbound", "", None)], Vec::new()),
        ServerTls::Strict => (vec![chain("inbound", "", Some(tls::downstream()))], Vec::new()),
        ServerTls::Permissive => {
            let chains =
                vec![chain("inbound", "tls", Some(tls::downstream())), chain("inbound-plaintext", "raw_buffer", None)];
            (chains, vec![inspector()])
        }
    };
    pb::Listener {
        name: name.to_owned(),
        address: Some(socket_address(bound)),
        filter_chains,
        listener_filters,
        ..Default::default()
    }
}

/// A manager that says what is made of paths; what is not to be done is not said.
pub fn normalized(mut manager: hcm::HttpConnectionManager, paths: PathNormalization) -> hcm::HttpConnectionManager {
    use hcm::http_connection_manager::PathWithEscapedSlashesAction as Action;
    manager.normalize_path = paths.resolve.then_some(BoolValue { value: true });
    manager.merge_slashes = paths.merge_slashes;
    let action = match paths.escaped_slashes {
        EscapedSlashes::Keep => Action::ImplementationSpecificDefault,
        EscapedSlashes::Reject => Action::RejectRequest,
        EscapedSlashes::Decode => Action::UnescapeAndForward,
    };
    manager.path_with_escaped_slashes_action = action.into();
    manager
}

/// A manager that carries its routes: one, for every request.
fn inline(name: &str, route_name: &str, action: route::route::Action) -> hcm::HttpConnectionManager {
    let everything = route::Route {
        name: route_name.to_owned(),
        r#match: Some(route::RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(action),
        ..Default::default()
    };
    hcm::HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(RouteSpecifier::RouteConfig(route::RouteConfiguration {
            name: name.to_owned(),
            virtual_hosts: vec![route::VirtualHost {
                name: name.to_owned(),
                domains: vec!["*".to_owned()],
                routes: vec![everything],
                ..Default::default()
            }],
            ..Default::default()
        })),
        http_filters: http_filters(OfRoutes::default()),
        ..Default::default()
    }
}

/// The address in the name of a server listener.
pub fn bound_address(name: &str) -> Option<SocketAddr> {
    let bound: SocketAddr = name.strip_prefix(SERVER_PREFIX)?.parse().ok()?;
    (bound.port() > 0).then_some(bound)
}
