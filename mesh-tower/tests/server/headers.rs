//! Headers that a client may not send, or not like this: off what policies, routes and the application see.

use std::convert::Infallible;
use std::net::SocketAddr;

use crate::server_support::frames::ask;
use crate::server_support::within;
use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use mesh_core::fixed::Fixed;
use mesh_core::model::HeadersWithUnderscores;
use mesh_core::testing::ManagementServer;
use mesh_core::testing::resources::{
    filter_chain, http_manager, route_to_application, routes, server_listener, virtual_host,
};
use mesh_core::xds::{Bootstrap, XdsSource};
use mesh_tower::server::ServerLayer;
use mesh_tower::{Mesh, server};
use tower_layer::Layer;

/// A server that says the names of the headers that it sees, one a line.
async fn serve(mesh: &Mesh, layer: impl FnOnce(ServerLayer) -> ServerLayer) -> SocketAddr {
    let bound = mesh.bind("127.0.0.1:0").await.unwrap();
    let address = bound.local_addr();
    let app = tower::service_fn(|request: Request<Incoming>| {
        let seen = request.headers().keys().map(|name| format!("<{name}>")).collect::<String>();
        std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(seen)))))
    });
    tokio::spawn(server::serve(bound, layer(mesh.server_layer()).layer(app)).into_future());
    address
}

async fn told(address: SocketAddr, headers: &str) -> String {
    let said = format!("GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n{headers}\r\n");
    String::from_utf8_lossy(&ask(address, said.as_bytes()).await).into_owned()
}

#[tokio::test]
async fn a19_headers_that_only_a_proxy_may_set_are_taken_off_whoever_sends_them() {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    // Nobody is believed for an address, and this machine has a private one.
    let address = serve(&mesh, |layer| layer).await;
    within(mesh.serving()).await.unwrap();
    let reserved = [
        "x-envoy-original-path",
        "X-Envoy-Retry-On",
        "x-envoy-internal",
        "x-envoy-peer-metadata",
        "x-envoy-upstream-rq-timeout-ms",
        "x-forwarded-client-cert",
        "X-Forwarded-Client-Cert",
        "x-mesh-anything",
    ];
    for name in reserved {
        let answer = told(address, &format!("{name}: /\r\nx-mine: 1\r\n{name}: /admin\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("<x-mine>"), "{answer}");
        assert!(!answer.contains(&name.to_ascii_lowercase()), "{name}: {answer}");
    }
    // What is not a proxy's own, or begins in another way, stays.
    for name in
        ["x-request-id", "x-forwarded-for", "x-forwarded-proto", "x-b3-traceid", "x-envoy", "x-meshed", "a-x-mesh-b"]
    {
        assert!(told(address, &format!("{name}: 1\r\n")).await.contains(&format!("<{name}>")), "{name}");
    }
}

#[tokio::test]
async fn a20_a_header_name_with_an_underscore_passes_is_dropped_or_refuses_its_request() {
    use HeadersWithUnderscores::{Allow, Drop, Reject};
    for (action, status, is_seen) in [(Allow, "200", true), (Drop, "200", false), (Reject, "400", false)] {
        let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
        let address = serve(&mesh, |layer| layer.headers_with_underscores(action)).await;
        within(mesh.serving()).await.unwrap();
        let answer = told(address, "x_role: admin\r\nx-role: user\r\n").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{action:?}: {answer}");
        assert_eq!(answer.contains("<x_role>"), is_seen, "{action:?}: {answer}");
        assert!(told(address, "x-role: user\r\n").await.contains("<x-role>"), "{action:?}");
    }
}

#[tokio::test]
async fn a20_a_listener_says_what_becomes_of_underscores_and_the_stricter_counts() {
    let control = ManagementServer::start();
    let source = XdsSource::new(Bootstrap::new("mesh:1").node_id("node-1")).connector(control.connector());
    let mesh = Mesh::builder().source(source).start().unwrap();
    let address = serve(&mesh, |layer| layer.headers_with_underscores(HeadersWithUnderscores::Drop)).await;
    let name = mesh_core::store::Source::server_listener_name(
        &XdsSource::new(Bootstrap::new("mesh:1").node_id("node-1")),
        address,
    )
    .unwrap();
    for (action, status) in [
        (HeadersWithUnderscoresAction::RejectRequest, "400"),
        (HeadersWithUnderscoresAction::Allow, "200"),
        (HeadersWithUnderscoresAction::RejectRequest, "400"),
        (HeadersWithUnderscoresAction::DropHeader, "200"),
    ] {
        let all = || routes("r", vec![virtual_host("all", &["*"], vec![route_to_application()])]);
        let mut manager = http_manager(RouteSpecifier::RouteConfig(all()));
        manager.common_http_protocol_options =
            Some(HttpProtocolOptions { headers_with_underscores_action: action.into(), ..Default::default() });
        let mut listener = server_listener(name.as_str(), address, all());
        listener.default_filter_chain = Some(filter_chain(&manager));
        control.put(name.as_str(), &listener);
        let in_force = async {
            loop {
                let answer = told(address, "x_role: admin\r\n").await;
                if answer.starts_with(&format!("HTTP/1.1 {status} ")) {
                    assert!(!answer.contains("<x_role>"), "{action:?}: {answer}");
                    break;
                }
            }
        };
        within(in_force).await;
    }
}
