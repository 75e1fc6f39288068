//! What a split among weighted clusters goes by, from the bytes of a route to the cluster of a request.

use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};
use pb::route_action::hash_policy::{ConnectionProperties, Header, PolicySpecifier};
use pb::route_action::{ClusterSpecifier, HashPolicy};
use pb::weighted_cluster::RandomValueSpecifier;

use super::{accept, all_rejected};
use crate::filter::FilterRegistry;
use crate::model::{HttpManager, RouteSource};
use crate::request::RequestHead;
use crate::resources::{Resource, ResourceType};
use crate::state::States;
use crate::testing::resources::routes_to;
use crate::view::RouteTable;

const BY_HASH: Option<RandomValueSpecifier> = Some(RandomValueSpecifier::UseHashPolicy(BoolValue { value: true }));

/// A configuration whose only route splits requests, by this, among clusters with these weights.
fn routes(by: Option<RandomValueSpecifier>, clusters: &[(&str, u32)]) -> pb::RouteConfiguration {
    let mut routes = routes_to("r", "c");
    let route = &mut routes.virtual_hosts[0].routes[0];
    let Some(pb::route::Action::Route(action)) = &mut route.action else { panic!("{route:?}") };
    let clusters = clusters.iter().map(|(name, weight)| pb::weighted_cluster::ClusterWeight {
        name: (*name).into(),
        weight: Some(UInt32Value { value: *weight }),
        ..Default::default()
    });
    action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(pb::WeightedCluster {
        clusters: clusters.collect(),
        random_value_specifier: by,
        ..Default::default()
    }));
    let header = Header { header_name: "x-user".into(), ..Default::default() };
    action.hash_policy = vec![HashPolicy { terminal: true, policy_specifier: Some(PolicySpecifier::Header(header)) }];
    routes
}

/// The cluster of each request, whose only header is this one.
fn taken<'v>(routes: &pb::RouteConfiguration, name: &str, values: impl IntoIterator<Item = &'v str>) -> Vec<String> {
    let Resource::Route(config) = accept(ResourceType::Route, routes).resource else { panic!("it is one") };
    let http = HttpManager::new(RouteSource::Named("r".into()));
    let table = RouteTable::compile(Arc::clone(&config), &http, &FilterRegistry::default(), &States::default(), "l");
    let table = table.unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let clusters = values.into_iter().map(|value| {
        let request = http::Request::get("http://t/").header(name, value).body(()).unwrap().into_parts().0;
        let (_, _, destination) = table.find(&RequestHead::of(&request).unwrap(), &mut random).unwrap();
        table.clusters()[destination.cluster().unwrap()].to_string()
    });
    clusters.collect()
}

#[test]
fn with_use_hash_policy_who_is_alike_goes_to_the_same_cluster_and_a_moved_weight_moves_only_the_difference() {
    let users: Vec<String> = (0..10_000).map(|user| format!("user-{user}")).collect();
    let users = || users.iter().map(String::as_str);
    let before = taken(&routes(BY_HASH, &[("v1", 90), ("v2", 10)]), "x-user", users());
    assert_eq!(before, taken(&routes(BY_HASH, &[("v1", 90), ("v2", 10)]), "x-user", users()));
    let after = taken(&routes(BY_HASH, &[("v1", 80), ("v2", 20)]), "x-user", users());
    let mut moved = BTreeMap::new();
    for (before, after) in before.iter().zip(&after).filter(|(before, after)| before != after) {
        *moved.entry((before.as_str(), after.as_str())).or_insert(0) += 1;
    }
    assert_eq!(moved.keys().collect::<Vec<_>>(), [&("v1", "v2")], "nobody comes back");
    assert!((850..=1_150).contains(&moved[&("v1", "v2")]), "{moved:?}");
    // By chance, where nothing says otherwise, or there is nothing to go by.
    for (by, header) in [(None, "x-user"), (BY_HASH, "x-other")] {
        let split = taken(&routes(by.clone(), &[("v1", 1), ("v2", 1)]), header, ["same"; 100]);
        assert!(split.contains(&"v1".to_owned()) && split.contains(&"v2".to_owned()), "{by:?} {header}");
    }
}

#[test]
fn a_header_may_say_the_place_itself() {
    let by = Some(RandomValueSpecifier::HeaderName("x-place".into()));
    let routes = routes(by, &[("v1", 90), ("v2", 10)]);
    let places = ["0", "89", "90", "99", "100", "18446744073709551615"];
    assert_eq!(taken(&routes, "x-place", places), ["v1", "v1", "v2", "v2", "v1", "v1"]);
    for wrong in ["", "-1", "+95", "9 5", "18446744073709551616", "v2"] {
        let clusters = taken(&routes, "x-place", [wrong; 200]);
        assert!(clusters.contains(&"v1".to_owned()) && clusters.contains(&"v2".to_owned()), "{wrong:?}: by chance");
    }
    all_rejected(
        ResourceType::Route,
        &routes,
        &[("header_name: not the name of a header", |routes| {
            let route = &mut routes.virtual_hosts[0].routes[0];
            let Some(pb::route::Action::Route(action)) = &mut route.action else { panic!() };
            let Some(ClusterSpecifier::WeightedClusters(clusters)) = &mut action.cluster_specifier else { panic!() };
            clusters.random_value_specifier = Some(RandomValueSpecifier::HeaderName("x place".into()));
        })],
    );
}

#[test]
fn what_tells_callers_apart_splits_nobody_and_is_told_of() {
    let mut routes = routes(BY_HASH, &[("v1", 1), ("v2", 1)]);
    assert_eq!(accept(ResourceType::Route, &routes).ignored, [""; 0]);
    let route = &mut routes.virtual_hosts[0].routes[0];
    let Some(pb::route::Action::Route(action)) = &mut route.action else { panic!() };
    let connection = PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true });
    action.hash_policy = vec![HashPolicy { terminal: false, policy_specifier: Some(connection) }];
    let ignored = accept(ResourceType::Route, &routes).ignored;
    assert!(ignored.len() == 1 && ignored[0].contains("use_hash_policy"), "{ignored:?}");
}
