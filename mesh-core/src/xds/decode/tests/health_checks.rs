//! Active health checks of clusters, and what endpoints say of them.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck, payload,
};
use envoy_types::pb::envoy::config::endpoint::v3::endpoint::HealthCheckConfig;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::r#type::v3::Int64Range;
use envoy_types::pb::google::protobuf::{self, UInt32Value};
use http::Method;

use super::{accept, reject};
use crate::model::{Cluster, HealthCheck, HttpProbe, Probe};
use crate::resources::{Resource, ResourceType};
use crate::testing::resources::{eds_cluster, endpoints};

fn check(checker: HealthChecker) -> core::HealthCheck {
    let seconds = |seconds| Some(protobuf::Duration { seconds, nanos: 0 });
    core::HealthCheck {
        timeout: seconds(1),
        interval: seconds(5),
        unhealthy_threshold: Some(UInt32Value { value: 2 }),
        healthy_threshold: Some(UInt32Value { value: 4 }),
        health_checker: Some(checker),
        ..Default::default()
    }
}

fn http(path: &str) -> HttpHealthCheck {
    HttpHealthCheck { path: path.into(), ..Default::default() }
}

fn of(checks: Vec<core::HealthCheck>) -> pb::Cluster {
    pb::Cluster { health_checks: checks, ..eds_cluster("c") }
}

fn decoded(checks: Vec<core::HealthCheck>) -> (HealthCheck, Vec<String>) {
    let accepted = accept(ResourceType::Cluster, &of(checks));
    let Resource::Cluster(cluster) = accepted.resource else { panic!("a cluster") };
    let Cluster { health_check, .. } = &*cluster;
    (HealthCheck::clone(health_check.as_ref().expect("checks")), accepted.ignored)
}

#[test]
fn checks_are_taken_with_envoys_defaults() {
    let (read, ignored) = decoded(vec![check(HealthChecker::HttpHealthCheck(http("/healthz?full")))]);
    assert!(ignored.is_empty(), "{ignored:?}");
    assert_eq!((read.unhealthy_threshold, read.healthy_threshold), (2, 4));
    assert_eq!((read.timeout, read.interval), (Duration::from_secs(1), Duration::from_secs(5)));
    assert!(read.reuse_connection && read.no_traffic_interval == Duration::from_secs(60));
    let Probe::Http(probe) = &read.probe else { panic!("{read:?}") };
    assert_eq!((&*probe.path, &probe.method, probe.response_bytes), ("/healthz?full", &Method::GET, 1024));
    assert!(probe.expected == HttpProbe::get("/").expected && probe.expected[0] == (200..201));
    let mut odd = check(HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
        service_name: "a.B".into(),
        authority: "b.shop".into(),
        ..Default::default()
    }));
    odd.always_log_health_check_failures = true;
    let (read, ignored) = decoded(vec![odd]);
    assert_eq!(ignored, ["health_checks[0].always_log_health_check_failures"]);
    let Probe::Grpc(probe) = &read.probe else { panic!("{read:?}") };
    assert_eq!((&*probe.service, probe.authority.as_deref()), ("a.B", Some("b.shop")));
    let text = |text: &str| Payload { payload: Some(payload::Payload::Text(text.into())) };
    let tcp = TcpHealthCheck { send: Some(text("50696E67")), receive: vec![text("50")], ..Default::default() };
    let Probe::Tcp(probe) = decoded(vec![check(HealthChecker::TcpHealthCheck(tcp))]).0.probe else { panic!("tcp") };
    assert_eq!((probe.send.as_deref(), probe.receive.len()), (Some(&b"Ping"[..]), 1));
}

#[test]
fn a_check_that_cannot_be_made_as_it_is_meant_is_refused_with_its_field() {
    let of_http = |change: fn(&mut HttpHealthCheck)| {
        let mut probe = http("/");
        change(&mut probe);
        check(HealthChecker::HttpHealthCheck(probe))
    };
    let with = |change: fn(&mut core::HealthCheck)| {
        let mut check = check(HealthChecker::HttpHealthCheck(http("/")));
        change(&mut check);
        check
    };
    let text = |text: &str| Some(Payload { payload: Some(payload::Payload::Text(text.into())) });
    let tcp = |send| check(HealthChecker::TcpHealthCheck(TcpHealthCheck { send, ..Default::default() }));
    for (checks, expected) in [
        (vec![with(|check| check.interval = None)], "health_checks[0].interval: missing"),
        (vec![with(|check| check.health_checker = None)], "health_checks[0].health_checker: nothing says how"),
        (vec![with(|check| check.unhealthy_threshold = None)], "health_checks[0].unhealthy_threshold: missing"),
        (
            vec![with(|check| check.healthy_threshold = Some(UInt32Value { value: 0 }))],
            "health_checks[0].healthy_threshold: must be more than zero",
        ),
        (
            vec![with(|check| check.unhealthy_interval = Some(Default::default()))],
            "health_checks[0].unhealthy_interval: must be more than zero",
        ),
        (vec![with(|check| check.tls_options = Some(Default::default()))], "tls_options: not supported"),
        (vec![with(|_| {}), with(|_| {})], "health_checks: there is more than one"),
        (vec![of_http(|http| http.path = "healthz".into())], "http_health_check.path: \"healthz\" is not a path"),
        (vec![of_http(|http| http.host = "a b".into())], "http_health_check.host: \"a b\" is not a host"),
        (vec![of_http(|http| http.codec_client_type = 2)], "codec_client_type: HTTP/3 is not supported"),
        (vec![of_http(|http| http.method = 6)], "method: CONNECT is no check"),
        (
            vec![of_http(|http| http.expected_statuses.push(Int64Range { start: 200, end: 601 }))],
            "expected_statuses[0]: 200 to 601 is no range of statuses",
        ),
        (vec![tcp(text("5"))], "send.text: not an even number"),
        (vec![tcp(text("5ö"))], "send.text: not an even number"),
        (vec![tcp(text(""))], "send: empty"),
    ] {
        let error = reject(ResourceType::Cluster, &of(checks)).to_string();
        assert!(error.contains(expected), "{error} for {expected}");
    }
}

#[test]
fn an_endpoint_that_tells_its_health_somewhere_else_is_not_checked() {
    for (config, is_checked, host, ignored) in [
        (HealthCheckConfig::default(), true, None, &[][..]),
        (HealthCheckConfig { disable_active_health_check: true, ..Default::default() }, false, None, &[]),
        (HealthCheckConfig { hostname: "a.shop".into(), ..Default::default() }, true, Some("a.shop"), &[]),
        (HealthCheckConfig { port_value: 81, ..Default::default() }, false, None, &["port_value"]),
    ] {
        let mut assignment = endpoints("c", &[("10.0.0.1", 80)]);
        let Some(HostIdentifier::Endpoint(endpoint)) = &mut assignment.endpoints[0].lb_endpoints[0].host_identifier
        else {
            panic!("an endpoint")
        };
        endpoint.health_check_config = Some(config);
        let accepted = accept(ResourceType::Endpoints, &assignment);
        let told: Vec<_> = accepted.ignored.iter().map(|path| path.rsplit('.').next().unwrap()).collect();
        assert_eq!(told, ignored);
        let Resource::Endpoints(read) = accepted.resource else { panic!("endpoints") };
        let read = &read.localities[0].endpoints[0];
        assert_eq!((read.is_checked, read.check_host.as_deref()), (is_checked, host));
    }
}
