//! What annotations of our own become in the terms of xDS.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck,
};
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::StatefulSession;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use envoy_types::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use envoy_types::pb::envoy::extensions::load_balancing_policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin;
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3::SlowStartConfig;
use envoy_types::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use envoy_types::pb::envoy::extensions::load_balancing_policies::random::v3::Random;
use envoy_types::pb::envoy::extensions::load_balancing_policies::random_subsetting::v3::RandomSubsetting;
use envoy_types::pb::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;
use envoy_types::pb::envoy::r#type::http::v3::Cookie;
use envoy_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range, Percent};
use envoy_types::pb::google::protobuf::{self, BoolValue, FloatValue};
use mesh_core::model::PEAK_EWMA;
use prost::Message;

use super::proto::{OrderedStruct, any, duration, extension, number};
use crate::policy::Cluster;
use crate::policy::traffic::{Balancer, EndpointSubset, HealthCheck, OwnBalancer, Probe, Session, Warmup};

/// How endpoints are asked how they are.
pub(super) fn health_check(seen: &Cluster<'_>, check: &HealthCheck) -> core::HealthCheck {
    // A cluster's name is no host.
    let host = check.host.clone().unwrap_or_else(|| seen.key.host.to_string());
    let checker = match &check.probe {
        Probe::Http { path, statuses } => HealthChecker::HttpHealthCheck(HttpHealthCheck {
            host,
            path: path.clone(),
            expected_statuses: statuses
                .iter()
                .map(|range| Int64Range { start: (*range.start()).into(), end: i64::from(*range.end()) + 1 })
                .collect(),
            codec_client_type: match seen.port.protocol.is_http2() {
                true => CodecClientType::Http2.into(),
                false => CodecClientType::Http1.into(),
            },
            ..Default::default()
        }),
        Probe::Grpc { service } => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
            service_name: service.clone(),
            authority: host,
            ..Default::default()
        }),
        Probe::Tcp => HealthChecker::TcpHealthCheck(TcpHealthCheck::default()),
    };
    let time = |time: Duration| Some(duration(time));
    core::HealthCheck {
        timeout: time(check.timeout),
        interval: time(check.interval),
        initial_jitter: time(check.jitter.min(Duration::from_secs(1))),
        interval_jitter: time(check.jitter),
        healthy_threshold: number(check.healthy_threshold),
        unhealthy_threshold: number(check.unhealthy_threshold),
        unhealthy_interval: check.unhealthy_interval.and_then(time),
        no_traffic_interval: time(check.no_traffic_interval.unwrap_or(check.interval)),
        reuse_connection: Some(BoolValue { value: check.reuse_connection }),
        health_checker: Some(checker),
        ..Default::default()
    }
}

/// The filter by which requests of a session stay at their endpoint (Istio: util.MaybeBuildStatefulSessionFilter).
pub(super) fn session_filter(session: &Session) -> hcm::HttpFilter {
    let filter = StatefulSession { session_state: Some(session_state(session)), ..Default::default() };
    hcm::HttpFilter {
        name: "envoy.filters.http.stateful_session".to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any(&filter))),
        ..Default::default()
    }
}

/// What carries the endpoint of a session.
pub(super) fn session_state(session: &Session) -> core::TypedExtensionConfig {
    match session {
        Session::Cookie(name, path, life) => {
            let (name, path, ttl) = (name.clone(), path.clone(), life.map(duration));
            let cookie = Some(Cookie { name, path, ttl, ..Default::default() });
            extension("envoy.http.stateful_session.cookie", &CookieBasedSessionState { cookie })
        }
        Session::Header(name) => {
            extension("envoy.http.stateful_session.header", &HeaderBasedSessionState { name: name.clone() })
        }
    }
}

/// A policy among some of the endpoints, and among all of them for who does not know that (gRFC A68).
pub(super) fn in_subset(subset: EndpointSubset, whole: cluster::LoadBalancingPolicy) -> cluster::LoadBalancingPolicy {
    let some = RandomSubsetting { subset_size: number(subset.size.get()), child_policy: Some(whole.clone()) };
    let some = extension("envoy.load_balancing_policies.random_subsetting", &some);
    let some = cluster::load_balancing_policy::Policy { typed_extension_config: Some(some) };
    cluster::LoadBalancingPolicy { policies: std::iter::once(some).chain(whole.policies).collect() }
}

/// A policy of Istio's, in the form in which it can be part of another one.
pub(super) fn simple_policy(balancer: Balancer, warmup: Option<Warmup>) -> cluster::LoadBalancingPolicy {
    let slow_start_config = warmup.map(slow_start);
    let config = match balancer {
        Balancer::RoundRobin | Balancer::Passthrough => {
            let robin = RoundRobin { slow_start_config, ..Default::default() };
            extension("envoy.load_balancing_policies.round_robin", &robin)
        }
        Balancer::Random => extension("envoy.load_balancing_policies.random", &Random::default()),
        Balancer::Unspecified | Balancer::LeastRequest | Balancer::RingHash(_) | Balancer::Maglev(_) => {
            let least = LeastRequest { slow_start_config, ..Default::default() };
            extension("envoy.load_balancing_policies.least_request", &least)
        }
    };
    let policy = cluster::load_balancing_policy::Policy { typed_extension_config: Some(config) };
    cluster::LoadBalancingPolicy { policies: vec![policy] }
}

fn slow_start(warmup: Warmup) -> SlowStartConfig {
    let double = |default_value| Some(core::RuntimeDouble { default_value, ..Default::default() });
    SlowStartConfig {
        slow_start_window: Some(duration(warmup.duration)),
        aggression: double(warmup.aggression),
        min_weight_percent: Some(Percent { value: warmup.minimum_percent }),
    }
}

/// The policy itself, where a client knows it, and the next best thing.
pub(super) fn own_policy(own: &OwnBalancer, warmup: Option<Warmup>) -> cluster::LoadBalancingPolicy {
    let slow_start_config = warmup.map(slow_start);
    let policies = match own {
        OwnBalancer::WeightedByLoad { .. } => {
            let by_load = weighted_by_load(own).unwrap_or_default();
            let by_load = ClientSideWeightedRoundRobin { slow_start_config, ..by_load };
            [
                extension("envoy.load_balancing_policies.client_side_weighted_round_robin", &by_load),
                extension("envoy.load_balancing_policies.round_robin", &RoundRobin::default()),
            ]
        }
        OwnBalancer::PeakEwma { decay } => {
            let least = LeastRequest { slow_start_config, ..Default::default() };
            [peak_ewma(*decay), extension("envoy.load_balancing_policies.least_request", &least)]
        }
        OwnBalancer::Custom(name) => {
            let least = LeastRequest { slow_start_config, ..Default::default() };
            let own = typed_struct(name, &serde_json::json!({}));
            [own, extension("envoy.load_balancing_policies.least_request", &least)]
        }
    };
    let policy = |config| cluster::load_balancing_policy::Policy { typed_extension_config: Some(config) };
    cluster::LoadBalancingPolicy { policies: policies.into_iter().map(policy).collect() }
}

/// The policy of gRFC A58, where it is that.
pub(super) fn weighted_by_load(own: &OwnBalancer) -> Option<ClientSideWeightedRoundRobin> {
    let OwnBalancer::WeightedByLoad { blackout, expiration, error_penalty, out_of_band, metrics } = own else {
        return None;
    };
    Some(ClientSideWeightedRoundRobin {
        blackout_period: Some(duration(*blackout)),
        weight_expiration_period: Some(duration(*expiration)),
        enable_oob_load_report: out_of_band.map(|_| BoolValue { value: true }),
        oob_reporting_period: out_of_band.map(duration),
        error_utilization_penalty: Some(FloatValue { value: *error_penalty as f32 / 1000.0 }),
        metric_names_for_computing_utilization: metrics.clone(),
        ..Default::default()
    })
}

/// `xds.type.v3.TypedStruct`.
#[derive(Clone, PartialEq, Message)]
struct TypedStruct {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(message, optional, tag = "2")]
    value: Option<OrderedStruct>,
}

fn peak_ewma(decay: Duration) -> core::TypedExtensionConfig {
    let own = typed_struct(PEAK_EWMA, &serde_json::json!({"decay": decay.as_secs_f64()}));
    core::TypedExtensionConfig { name: "mesh.load_balancing.peak_ewma".to_owned(), ..own }
}

/// An extension of our own, by its name and an object of JSON.
pub(super) fn typed_struct(name: &str, value: &serde_json::Value) -> core::TypedExtensionConfig {
    let value = Some(OrderedStruct::of_json(value));
    let own = TypedStruct { type_url: format!("type.googleapis.com/{name}"), value };
    let type_url = "type.googleapis.com/xds.type.v3.TypedStruct".to_owned();
    let typed_config = Some(protobuf::Any { type_url, value: own.encode_to_vec() });
    core::TypedExtensionConfig { name: name.to_owned(), typed_config }
}
