//! The probe of a WorkloadGroup as Envoy's health discovery service has it.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck,
};
use envoy_types::pb::envoy::config::endpoint::v3::Endpoint;
use envoy_types::pb::envoy::service::health::v3::{ClusterHealthCheck, HealthCheckSpecifier, LocalityEndpoints};
use envoy_types::pb::envoy::r#type::v3::Int64Range;

use super::proto::{duration, number, socket_address};
use crate::registry::probe::{Probe, Question};

/// How often it is reported how a member is.
const REPORTED: Duration = Duration::from_secs(1);
/// The cluster whose only endpoint is the member.
pub const CLUSTER: &str = "probe";

/// Asks a member itself, and nobody else.
pub fn health_checks(probe: &Probe) -> HealthCheckSpecifier {
    let endpoint = Endpoint { address: Some(socket_address(probe.at)), ..Default::default() };
    HealthCheckSpecifier {
        cluster_health_checks: vec![ClusterHealthCheck {
            cluster_name: CLUSTER.to_owned(),
            health_checks: vec![health_check(probe)],
            locality_endpoints: vec![LocalityEndpoints { locality: None, endpoints: vec![endpoint] }],
            ..Default::default()
        }],
        interval: Some(duration(REPORTED)),
    }
}

fn health_check(probe: &Probe) -> core::HealthCheck {
    let checker = match &probe.question {
        Question::Http { path, host, headers } => HealthChecker::HttpHealthCheck(HttpHealthCheck {
            host: host.clone().unwrap_or_else(|| probe.at.to_string()),
            path: path.clone(),
            request_headers_to_add: headers.iter().map(header).collect(),
            expected_statuses: vec![Int64Range { start: 200, end: 400 }],
            // Any other counts as one failure: Envoy's default is that the first one decides.
            retriable_statuses: vec![Int64Range { start: 100, end: 600 }],
            ..Default::default()
        }),
        Question::Tcp => HealthChecker::TcpHealthCheck(TcpHealthCheck::default()),
        Question::Grpc { service } => {
            HealthChecker::GrpcHealthCheck(GrpcHealthCheck { service_name: service.clone(), ..Default::default() })
        }
    };
    core::HealthCheck {
        timeout: Some(duration(probe.timeout)),
        interval: Some(duration(probe.period)),
        // Nobody ever calls it by this cluster.
        no_traffic_interval: Some(duration(probe.period)),
        healthy_threshold: number(probe.successes),
        unhealthy_threshold: number(probe.failures),
        health_checker: Some(checker),
        ..Default::default()
    }
}

fn header((name, value): &(String, String)) -> core::HeaderValueOption {
    core::HeaderValueOption {
        // A `%` begins a command there.
        header: Some(core::HeaderValue { key: name.clone(), value: value.replace('%', "%%"), ..Default::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        keep_empty_value: true,
        ..Default::default()
    }
}
