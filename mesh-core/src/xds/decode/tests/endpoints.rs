use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::google::protobuf::{self, UInt32Value, value::Kind};
use pb::cluster_load_assignment::{Policy, policy::DropOverload};
use pb::lb_endpoint::HostIdentifier;

use super::{accept, all_rejected};
use crate::model::{Endpoints, Health};
use crate::resources::{Resource, ResourceType};
use crate::testing::resources::{address, endpoints, lb_endpoint, locality};

fn decoded(assignment: &pb::ClusterLoadAssignment) -> Endpoints {
    match accept(ResourceType::Endpoints, assignment).resource {
        Resource::Endpoints(endpoints) => Endpoints::clone(&endpoints),
        other => panic!("{other:?}"),
    }
}

fn weighted() -> pb::ClusterLoadAssignment {
    pb::ClusterLoadAssignment {
        cluster_name: "e".into(),
        endpoints: vec![locality("a", 0, 1, &[("10.0.0.1", 1)]), locality("b", 1, 3, &[("10.0.0.2", 1)])],
        ..Default::default()
    }
}

fn inner(endpoint: &mut pb::LbEndpoint) -> &mut pb::Endpoint {
    match &mut endpoint.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
        other => panic!("{other:?}"),
    }
}

#[test]
fn client_rule_42_assignments_that_are_rejected() {
    all_rejected(
        ResourceType::Endpoints,
        &weighted(),
        &[
            ("cluster_name: the name is empty", |e| e.cluster_name.clear()),
            ("policy.drop_overloads[0].drop_percentage.denominator: not a known value", |e| {
                let share = FractionalPercent { numerator: 1, denominator: 7 };
                let drop = DropOverload { category: "d".into(), drop_percentage: Some(share) };
                e.policy = Some(Policy { drop_overloads: vec![drop], ..Default::default() });
            }),
            ("\"e\": endpoints[0].lb_endpoints[0].load_balancing_weight: must be more than zero", |e| {
                e.endpoints[0].lb_endpoints[0].load_balancing_weight = Some(UInt32Value { value: 0 });
            }),
            ("endpoints[0].lb_endpoints: the weights add up", |e| {
                let heavy = pb::LbEndpoint {
                    load_balancing_weight: Some(UInt32Value { value: u32::MAX }),
                    ..lb_endpoint("10.0.0.9", 1)
                };
                e.endpoints[0].lb_endpoints.push(heavy);
            }),
            ("endpoints[1].lb_endpoints[1].endpoint: the address 10.0.0.1:1 is listed twice", |e| {
                e.endpoints[1].lb_endpoints.push(lb_endpoint("10.0.0.1", 1));
            }),
            ("endpoints[0].locality: missing", |e| e.endpoints[0].locality = None),
            ("endpoints: the weights at priority 0 add up", |e| {
                e.endpoints.push(locality("c", 0, u32::MAX, &[]));
            }),
            ("is listed twice at priority 0", |e| e.endpoints.push(locality("a", 0, 1, &[]))),
            ("priority 1 is missing below 2", |e| e.endpoints[1].priority = 2),
            ("priority 0 is missing below 1", |e| e.endpoints[0].load_balancing_weight = None),
            ("endpoints[1].priority: more than 128", |e| e.endpoints[1].priority = 129),
            ("endpoint.address.socket_address.address: \"host\" is not an IP address", |e| {
                e.endpoints[0].lb_endpoints[0] = lb_endpoint("host", 1);
            }),
            ("endpoint: missing", |e| e.endpoints[0].lb_endpoints[0].host_identifier = None),
            ("endpoint_name: not supported", |e| {
                e.endpoints[0].lb_endpoints[0].host_identifier = Some(HostIdentifier::EndpointName("x".into()));
            }),
            ("endpoint.address: missing", |e| inner(&mut e.endpoints[0].lb_endpoints[0]).address = None),
            ("protocol: only TCP is supported", |e| {
                let address = inner(&mut e.endpoints[0].lb_endpoints[0]).address.as_mut().unwrap();
                let Some(core::address::Address::SocketAddress(socket)) = &mut address.address else { panic!() };
                socket.protocol = 1;
            }),
            ("policy.overprovisioning_factor: must be more than zero", |e| {
                let factor = Some(UInt32Value { value: 0 });
                e.policy = Some(Policy { overprovisioning_factor: factor, ..Default::default() });
            }),
        ],
    );
}

#[test]
fn client_rule_42_a_locality_without_a_weight_is_skipped_where_others_have_one() {
    let mut assignment = weighted();
    assignment
        .endpoints
        .push(pb::LocalityLbEndpoints { load_balancing_weight: None, ..locality("c", 0, 0, &[("10.0.0.3", 1)]) });
    let endpoints = decoded(&assignment);
    let zones: Vec<_> =
        endpoints.localities.iter().map(|locality| (&*locality.locality.zone, locality.weight)).collect();
    assert_eq!(zones, [("a", Some(1)), ("b", Some(3))]);
}

#[test]
fn client_rule_42_localities_are_kept_unweighted_where_none_has_a_weight() {
    let mut assignment = weighted();
    for locality in &mut assignment.endpoints {
        locality.load_balancing_weight = None;
    }
    let weights: Vec<_> = decoded(&assignment).localities.iter().map(|locality| locality.weight).collect();
    assert_eq!(weights, [None, None]);
    assert_eq!(decoded(&endpoints("e", &[("10.0.0.1", 1), ("::1", 2)])).len(), 2);
}

#[test]
fn every_state_of_health_is_kept() {
    let mut assignment = endpoints("e", &[]);
    assignment.endpoints[0].lb_endpoints = (0..7)
        .map(|status| pb::LbEndpoint { health_status: status, ..lb_endpoint("10.0.0.1", 1 + status as u16) })
        .collect();
    let health: Vec<_> = decoded(&assignment).localities[0].endpoints.iter().map(|endpoint| endpoint.health).collect();
    use Health::*;
    assert_eq!(health, [Unknown, Healthy, Unhealthy, Draining, Unhealthy, Degraded, Unhealthy]);
}

#[test]
fn an_endpoint_is_all_of_its_addresses() {
    let mut assignment = endpoints("e", &[("10.0.0.1", 1)]);
    let endpoint = &mut assignment.endpoints[0].lb_endpoints[0];
    let text = protobuf::Value { kind: Some(Kind::StringValue("v1".into())) };
    let fields =
        protobuf::Struct { fields: [("version".into(), text), ("n".into(), protobuf::Value::default())].into() };
    endpoint.metadata =
        Some(core::Metadata { filter_metadata: [("istio".into(), fields)].into(), ..Default::default() });
    inner(endpoint).hostname = "h".into();
    inner(endpoint).additional_addresses = vec![pb::endpoint::AdditionalAddress { address: Some(address("::1", 1)) }];
    let endpoint = decoded(&assignment).localities[0].endpoints[0].clone();
    let addresses: Vec<String> = endpoint.id.addresses().iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1:1", "[::1]:1"]);
    assert_eq!(endpoint.hostname.as_deref(), Some("h"));
    assert_eq!(endpoint.metadata["istio"].len(), 1);
    assert_eq!(&*endpoint.metadata["istio"]["version"], "v1");
}

#[test]
fn drops_and_overprovisioning() {
    let mut assignment = weighted();
    let share = Some(FractionalPercent { numerator: 10, denominator: 0 });
    let drop = DropOverload { category: "d".into(), drop_percentage: share };
    assignment.policy = Some(Policy {
        drop_overloads: vec![drop],
        overprovisioning_factor: Some(UInt32Value { value: 120 }),
        ..Default::default()
    });
    let endpoints = decoded(&assignment);
    assert_eq!(endpoints.drop_per_million, [100_000]);
    assert_eq!(endpoints.overprovisioning_percent, Some(120));
}

#[test]
fn an_assignment_without_endpoints_is_valid() {
    assert!(decoded(&pb::ClusterLoadAssignment { cluster_name: "e".into(), ..Default::default() }).is_empty());
}
