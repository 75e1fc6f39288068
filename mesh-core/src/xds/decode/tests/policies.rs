//! Policies that are measured or that call some endpoints only, and sessions that stay at their endpoint.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::load_balancing_policy::Policy;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3 as session;
use envoy_types::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use envoy_types::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use envoy_types::pb::envoy::extensions::load_balancing_policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin;
use envoy_types::pb::envoy::extensions::load_balancing_policies::random_subsetting::v3::RandomSubsetting;
use envoy_types::pb::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;
use envoy_types::pb::envoy::r#type::http::v3::Cookie;
use envoy_types::pb::google::protobuf::{self, Any, FloatValue, UInt32Value};

use super::{accept, reject};
use crate::model::{BalancerPolicy, FilterConfig, Health, Listener, LoadWeights, RouteSource, SessionCarrier};
use crate::resources::{Resource, ResourceType};
use crate::testing::resources::{api_listener_of, eds_cluster, http_filter, http_manager, pack, rds, typed_struct};

fn policies(all: Vec<Any>) -> pb::LoadBalancingPolicy {
    let policy = |any| Policy {
        typed_extension_config: Some(core::TypedExtensionConfig { name: "p".into(), typed_config: Some(any) }),
    };
    pb::LoadBalancingPolicy { policies: all.into_iter().map(policy).collect() }
}

fn by(any: Any) -> pb::Cluster {
    pb::Cluster { load_balancing_policy: Some(policies(vec![any])), ..eds_cluster("c") }
}

fn decoded(cluster: &pb::Cluster) -> (Arc<crate::model::Cluster>, Vec<String>) {
    let accepted = accept(ResourceType::Cluster, cluster);
    let Resource::Cluster(cluster) = accepted.resource else { panic!("a cluster") };
    (cluster, accepted.ignored)
}

#[test]
fn weights_by_load_are_taken_with_grpcs_defaults_and_bounds() {
    let (cluster, ignored) = decoded(&by(pack(&ClientSideWeightedRoundRobin::default())));
    assert_eq!(cluster.balancer, BalancerPolicy::WeightedByLoad(Arc::new(LoadWeights::default())));
    assert!(ignored.is_empty());
    let (cluster, ignored) = decoded(&by(pack(&ClientSideWeightedRoundRobin {
        enable_oob_load_report: Some(protobuf::BoolValue { value: true }),
        weight_update_period: Some(protobuf::Duration { seconds: 0, nanos: 1 }),
        error_utilization_penalty: Some(FloatValue { value: 0.5 }),
        metric_names_for_computing_utilization: vec!["named_metrics.q".into()],
        ..Default::default()
    })));
    let BalancerPolicy::WeightedByLoad(weights) = &cluster.balancer else { panic!("{cluster:?}") };
    assert_eq!((weights.update_period, weights.error_penalty), (Duration::from_millis(100), 500));
    assert_eq!(weights.metrics, ["named_metrics.q".into()]);
    assert_eq!((weights.oob, ignored.len()), (Some(Duration::from_secs(10)), 0));
    let wrong = ClientSideWeightedRoundRobin {
        error_utilization_penalty: Some(FloatValue { value: -1.0 }),
        ..Default::default()
    };
    let error = reject(ResourceType::Cluster, &by(pack(&wrong))).to_string();
    assert!(error.contains("error_utilization_penalty: -1 is not from 0"), "{error}");
}

#[test]
fn our_own_policy_is_a_typed_struct_that_is_read_strictly() {
    let (cluster, _) = decoded(&by(typed_struct("mesh.load_balancing.v1.PeakEwma", &[])));
    assert_eq!(cluster.balancer, BalancerPolicy::PeakEwma { decay: Duration::from_secs(10) });
    for (values, expected) in
        [([("decay", "5s")], "decay: not a number of seconds"), ([("decya", "5")], "decya: not a known field")]
    {
        let any = typed_struct("mesh.load_balancing.v1.PeakEwma", &values);
        let error = reject(ResourceType::Cluster, &by(any)).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_subset_has_a_size_and_a_policy() {
    let child = Some(policies(vec![pack(&RoundRobin::default())]));
    let of = |size: Option<u32>, child_policy: &Option<pb::LoadBalancingPolicy>| {
        let subset_size = size.map(|value| UInt32Value { value });
        by(pack(&RandomSubsetting { subset_size, child_policy: child_policy.clone() }))
    };
    let (cluster, ignored) = decoded(&of(Some(5), &child));
    let expected = BalancerPolicy::RandomSubset { size: 5, child: Box::new(BalancerPolicy::RoundRobin) };
    assert_eq!((&cluster.balancer, ignored.len()), (&expected, 0));
    for (cluster, expected) in [
        (of(None, &child), "subset_size: must be more than zero"),
        (of(Some(0), &child), "subset_size: must be more than zero"),
        (of(Some(5), &None), "child_policy: missing"),
    ] {
        let error = reject(ResourceType::Cluster, &cluster).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

fn filtered(filter: &session::StatefulSession) -> crate::xds::decode::Decoded {
    let mut manager = http_manager(rds("r"));
    manager.http_filters.insert(0, http_filter("session", pack(filter)));
    accept(ResourceType::Listener, &api_listener_of("l", &manager))
}

fn state(any: Any) -> Option<core::TypedExtensionConfig> {
    Some(core::TypedExtensionConfig { name: "s".into(), typed_config: Some(any) })
}

fn config(filter: &session::StatefulSession) -> FilterConfig {
    let Resource::Listener(listener) = filtered(filter).resource else { panic!("a listener") };
    let Listener::Api(listener) = &*listener else { panic!("a client's") };
    assert!(matches!(listener.http.routes, RouteSource::Named(_)));
    listener.http.filters[0].config.clone()
}

#[test]
fn sessions_are_carried_by_a_cookie_or_a_header_and_without_either_the_filter_is_off() {
    let cookie = Cookie {
        name: "at".into(),
        path: "/a".into(),
        ttl: Some(protobuf::Duration { seconds: 60, nanos: 0 }),
        ..Default::default()
    };
    let by_cookie = session::StatefulSession {
        session_state: state(pack(&CookieBasedSessionState { cookie: Some(cookie) })),
        strict: true,
        ..Default::default()
    };
    let FilterConfig::StatefulSession(read) = config(&by_cookie) else { panic!("a session") };
    let SessionCarrier::Cookie { name, path, ttl, .. } = &read.carrier else { panic!("{read:?}") };
    assert_eq!((&**name, &**path, *ttl, read.is_strict), ("at", "/a", Some(Duration::from_secs(60)), true));
    let by_header = session::StatefulSession {
        session_state: state(pack(&HeaderBasedSessionState { name: "x-at".into() })),
        status_on_strict_destination_not_found: 410,
        ..Default::default()
    };
    let FilterConfig::StatefulSession(read) = config(&by_header) else { panic!("a session") };
    assert_eq!(read.carrier, SessionCarrier::Header("x-at".parse().unwrap()));
    let ignored = filtered(&by_header).ignored;
    assert!(ignored.iter().any(|path| path.ends_with("status_on_strict_destination_not_found")), "{ignored:?}");
    assert_eq!(config(&session::StatefulSession::default()), FilterConfig::Disabled);
}

#[test]
fn a_cluster_says_in_which_health_endpoints_keep_their_sessions() {
    use core::HealthStatus::{Draining, Healthy};
    let mut cluster = eds_cluster("c");
    let usual = vec![Health::Unknown, Health::Healthy, Health::Degraded];
    assert_eq!(decoded(&cluster).0.session_health, usual);
    let statuses = vec![Healthy.into(), Draining.into()];
    cluster.common_lb_config = Some(pb::cluster::CommonLbConfig {
        override_host_status: Some(core::HealthStatusSet { statuses }),
        ..Default::default()
    });
    let (cluster, ignored) = decoded(&cluster);
    assert_eq!((&cluster.session_health, ignored.len()), (&vec![Health::Healthy, Health::Draining], 0));
}

#[test]
fn a_balancer_that_nobody_registered_is_passed_over_and_told_of() {
    let list = policies(vec![typed_struct("acme.Last", &[]), pack(&RoundRobin::default())]);
    let (cluster, ignored) = decoded(&pb::Cluster { load_balancing_policy: Some(list), ..eds_cluster("c") });
    assert_eq!(cluster.balancer, BalancerPolicy::RoundRobin);
    assert!(ignored.len() == 1 && ignored[0].contains("acme.Last"), "{ignored:?}");
}
