//! Global rate limits: what is understood of Envoy's filter, and of what routes say in its place.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use envoy_types::pb::envoy::extensions::filters::http::ratelimit::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf;
use http::StatusCode;
use prost::Message;
use std::time::Duration;

use super::decode;
use crate::error::Invalid;
use crate::model::{FilterConfig, GlobalRateLimit, Listener, OfHost, RestHeaders, RouteSource};
use crate::resources::{Resource, ResourceType};
use crate::testing::resources::{
    filter_chain, http_filter, http_manager, pack, route_to_application, routes, server_listener, virtual_host,
};
use crate::xds::decode::Options;

fn service(cluster_name: &str, authority: &str) -> Option<RateLimitServiceConfig> {
    let service =
        EnvoyGrpc { cluster_name: cluster_name.to_owned(), authority: authority.to_owned(), ..EnvoyGrpc::default() };
    let target_specifier = Some(TargetSpecifier::EnvoyGrpc(service));
    let grpc_service = Some(core::GrpcService { target_specifier, ..core::GrpcService::default() });
    Some(RateLimitServiceConfig { grpc_service, ..RateLimitServiceConfig::default() })
}

/// What comes of a filter, of what a route says in its place, and what is noted.
fn decoded(
    filter: &pb::RateLimit,
    here: &pb::RateLimitPerRoute,
) -> Result<(GlobalRateLimit, FilterConfig, String), Invalid> {
    let mut route = route_to_application();
    route.typed_per_filter_config = [("limit".to_owned(), pack(here))].into();
    let routes = routes("r", vec![virtual_host("all", &["*"], vec![route])]);
    let mut manager = http_manager(hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes.clone()));
    manager.http_filters.insert(0, http_filter("limit", pack(filter)));
    let mut listener = server_listener("in", "127.0.0.1:80".parse().expect("an address"), routes);
    listener.filter_chains = vec![filter_chain(&manager)];
    let decoded = decode(ResourceType::Listener, &listener.encode_to_vec(), &Options::default())?;
    let noted = format!("{:?}", decoded);
    let Resource::Listener(listener) = decoded.resource else { panic!("no listener") };
    let Listener::Server(server) = &*listener else { panic!("no server") };
    let http = &server.filter_chains[0].http;
    let FilterConfig::RateLimit(limit) = &http.filters[0].config else { panic!("no rate limit") };
    let RouteSource::Inline(routes) = &http.routes else { panic!("routes are elsewhere") };
    let here = routes.virtual_hosts[0].routes[0].filters["limit"].clone();
    Ok((GlobalRateLimit::clone(limit), here, noted))
}

#[test]
fn every_field_of_a_global_rate_limit_is_understood_or_noted() {
    let status = |code: i32| Some(HttpStatus { code });
    let filter = pb::RateLimit {
        domain: "shop".to_owned(),
        stage: 3,
        timeout: Some(protobuf::Duration { seconds: 1, nanos: 0 }),
        failure_mode_deny: true,
        rate_limited_as_resource_exhausted: true,
        rate_limit_service: service("limits", "limits.mesh:8081"),
        enable_x_ratelimit_headers: 1,
        disable_x_envoy_ratelimited_header: true,
        rate_limited_status: status(418),
        status_on_error: status(503),
        enable_retry_after_header: true,
        request_type: "external".to_owned(),
        ..pb::RateLimit::default()
    };
    let here = pb::RateLimitPerRoute { domain: "other".to_owned(), vh_rate_limits: 2, ..Default::default() };
    let (limit, here, noted) = decoded(&filter, &here).unwrap();
    assert_eq!((&*limit.domain, &*limit.target, limit.stage), ("shop", "limits.mesh:8081", 3));
    assert_eq!((limit.timeout, limit.fails_closed, limit.is_exhaustion), (Duration::from_secs(1), true, true));
    assert_eq!((limit.status, limit.status_on_error), (StatusCode::IM_A_TEAPOT, StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!((limit.tells_why, limit.tells_when, limit.tells), (false, true, RestHeaders::XRateLimit));
    let FilterConfig::RateLimitPerRoute(here) = here else { panic!("{here:?}") };
    assert_eq!((here.domain.as_deref(), here.of_host), (Some("other"), OfHost::Never));
    assert!(noted.contains("request_type"), "{noted}");
}

#[test]
fn the_service_is_the_authority_or_the_cluster_as_istio_names_it() {
    for (cluster, authority, target) in [
        ("whatever", "limits.mesh:8081", Some("limits.mesh:8081")),
        ("outbound|8081||limits.shop.svc.cluster.local", "limits.shop", Some("limits.shop.svc.cluster.local:8081")),
        ("outbound|8081||limits.shop.svc.cluster.local", "", Some("limits.shop.svc.cluster.local:8081")),
        ("limits", "limits.shop", None),
        ("limits", "", None),
    ] {
        let service = service(cluster, authority);
        let filter = pb::RateLimit { domain: "d".to_owned(), rate_limit_service: service, ..Default::default() };
        let found = decoded(&filter, &pb::RateLimitPerRoute::default()).map(|(limit, ..)| limit.target.to_string());
        assert_eq!(found.as_deref().ok(), target, "{cluster} {authority} {found:?}");
    }
    for (filter, expected) in [
        (pb::RateLimit::default(), "rate_limit_service.grpc_service"),
        (pb::RateLimit { rate_limit_service: service("", "a:1"), ..Default::default() }, "domain"),
        (pb::RateLimit { request_type: "some".to_owned(), ..Default::default() }, "request_type"),
    ] {
        let why = decoded(&filter, &pb::RateLimitPerRoute::default()).unwrap_err().to_string();
        assert!(why.contains(expected), "{why}");
    }
}
