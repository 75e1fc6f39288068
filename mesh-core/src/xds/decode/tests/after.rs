//! A resource that is decoded after another one is what it is by itself, and shares with it what is as it was.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::route::v3 as route_pb;
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};
use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message;

use crate::list::List;
use crate::model::{Endpoints, RouteConfiguration};
use crate::resources::{Resource, ResourceType};
use crate::testing::resources::{endpoints, lb_endpoint, locality, route, routes, virtual_host};
use crate::xds::decode::after::{Items, Known};
use crate::xds::decode::{Before, Decoded, Noted, Options, decode, decode_after};

/// What comes of these bytes after others, which have to be good.
fn after(kind: ResourceType, bytes: &[u8], before: &[u8]) -> Result<Decoded, crate::error::Invalid> {
    let known = decode(kind, before, &Options::default()).expect("it is good");
    decode_after(kind, bytes, Some(before_of(before, &known)), &Options::default())
}

fn before_of<'b>(bytes: &'b [u8], known: &'b Decoded) -> Before<'b> {
    Before { bytes, resource: &known.resource, noted: &known.noted }
}

/// Some have a field that is ignored, in all more than are named.
fn a_route(number: u16) -> route_pb::Route {
    let tracing = number.is_multiple_of(3).then(route_pb::Tracing::default);
    route_pb::Route { tracing, ..route(&format!("/{number}"), &format!("c{}", number % 3)) }
}

fn an_endpoint(number: u16) -> endpoint::LbEndpoint {
    let health = if number.is_multiple_of(5) { HealthStatus::Draining } else { HealthStatus::Unknown };
    endpoint::LbEndpoint { health_status: health.into(), ..lb_endpoint("10.0.0.1", number + 1) }
}

/// One thing that is different in a list; places are taken modulo what there is.
#[derive(Clone, Debug)]
enum Edit {
    Insert(Index, u16),
    Remove(Index),
    Replace(Index, u16),
    Swap(Index, Index),
}

fn any_edit() -> impl Strategy<Value = (Index, Edit)> {
    let place = any::<Index>;
    let edit = prop_oneof![
        (place(), any::<u16>()).prop_map(|(at, number)| Edit::Insert(at, number % 2_000)),
        place().prop_map(Edit::Remove),
        (place(), any::<u16>()).prop_map(|(at, number)| Edit::Replace(at, number % 2_000)),
        (place(), place()).prop_map(|(one, other)| Edit::Swap(one, other)),
    ];
    (place(), edit)
}

fn make<T>(edit: Edit, list: &mut Vec<T>, item: fn(u16) -> T) {
    match edit {
        Edit::Insert(at, number) => list.insert(at.index(list.len() + 1), item(number)),
        Edit::Remove(at) if !list.is_empty() => drop(list.remove(at.index(list.len()))),
        Edit::Replace(at, number) if !list.is_empty() => {
            let at = at.index(list.len());
            list[at] = item(number);
        }
        Edit::Swap(one, other) if !list.is_empty() => {
            let (one, other) = (one.index(list.len()), other.index(list.len()));
            list.swap(one, other);
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn routes_are_what_they_are_by_themselves(
        sizes in proptest::collection::vec(0..100_u16, 1..4),
        edits in proptest::collection::vec(any_edit(), 0..6),
        (secured, moved, named, validated) in any::<(bool, bool, bool, bool)>(),
    ) {
        let hosts = sizes.iter().enumerate().map(|(host, size)| {
            virtual_host(&host.to_string(), &[format!("{host}.example").as_str()], (0..*size).map(a_route).collect())
        });
        let mut configuration = routes("r", hosts.collect());
        configuration.validate_clusters = validated.then(BoolValue::default);
        let before = configuration.encode_to_vec();
        let hosts = &mut configuration.virtual_hosts;
        for (host, edit) in edits {
            let host = host.index(hosts.len());
            make(edit, &mut hosts[host].routes, a_route);
        }
        if secured {
            hosts[0].require_tls = route_pb::virtual_host::TlsRequirementType::All.into();
        }
        if moved {
            hosts.reverse();
        }
        if named {
            configuration.most_specific_header_mutations_wins = true;
        }
        let bytes = configuration.encode_to_vec();
        let alone = decode(ResourceType::Route, &bytes, &Options::default()).expect("it is good");
        let decoded = after(ResourceType::Route, &bytes, &before).expect("it is good");
        prop_assert_eq!((decoded.ignored, decoded.noted), (alone.ignored, alone.noted));
        prop_assert_eq!((decoded.name, decoded.resource), (alone.name, alone.resource));
    }

    #[test]
    fn endpoints_are_what_they_are_by_themselves_and_refused_for_what_they_are(
        sizes in proptest::collection::vec(1..100_u16, 1..4),
        edits in proptest::collection::vec(any_edit(), 0..6),
        weight in 0..3_u32,
    ) {
        let of = |locality: usize| move |number: u16| an_endpoint(number + 2_000 * locality as u16);
        let localities = sizes.iter().enumerate().map(|(at, size)| endpoint::LocalityLbEndpoints {
            lb_endpoints: (0..*size).map(of(at)).collect(),
            ..locality(&at.to_string(), 0, 1, &[])
        });
        let mut assignment = endpoints("e", &[]);
        assignment.endpoints = localities.collect();
        let before = assignment.encode_to_vec();
        for (at, edit) in edits {
            let at = at.index(assignment.endpoints.len());
            // Some of them are listed twice then, in one locality or in two.
            make(edit, &mut assignment.endpoints[at].lb_endpoints, an_endpoint);
        }
        assignment.endpoints[0].load_balancing_weight = Some(UInt32Value { value: weight });
        let bytes = assignment.encode_to_vec();
        let alone = decode(ResourceType::Endpoints, &bytes, &Options::default());
        match (alone, after(ResourceType::Endpoints, &bytes, &before)) {
            (Ok(alone), Ok(decoded)) => prop_assert_eq!((decoded.resource, decoded.ignored), (alone.resource, alone.ignored)),
            (Err(alone), Err(decoded)) => prop_assert_eq!(alone.to_string(), decoded.to_string()),
            (alone, decoded) => prop_assert!(false, "{alone:?}, and {decoded:?}"),
        }
    }

    #[test]
    fn no_bytes_make_it_panic(changed in any::<Index>(), byte in any::<u8>(), end in any::<Index>()) {
        let hosts = vec![virtual_host("h", &["*"], (0..70).map(a_route).collect())];
        let before = routes("r", hosts).encode_to_vec();
        let mut bytes = before.clone();
        let changed = changed.index(bytes.len());
        bytes[changed] = byte;
        bytes.truncate(end.index(bytes.len() + 1));
        let alone = decode(ResourceType::Route, &bytes, &Options::default());
        let decoded = after(ResourceType::Route, &bytes, &before);
        match (alone, decoded) {
            (Ok(alone), Ok(decoded)) => prop_assert_eq!(decoded.resource, alone.resource),
            (Err(alone), Err(decoded)) => prop_assert_eq!(alone.to_string(), decoded.to_string()),
            (alone, decoded) => prop_assert!(false, "{alone:?}, and {decoded:?}"),
        }
    }
}

#[test]
fn what_is_not_kept_of_a_list_is_gone() {
    let (list, noted): (List<usize>, _) = ((0..5).collect(), Noted::default());
    let gone = |now: &str| -> Vec<usize> {
        let [before, now] = ["abcde", now].map(|text| text.as_bytes().chunks(1).collect::<Vec<_>>());
        let known = Known { list: &list, number: 0, noted: &noted };
        let items = Items::<route_pb::Route, usize>::after(now, Some((before.as_slice(), known)));
        items.gone().into_iter().copied().collect()
    };
    assert!(gone("abcde").is_empty() && gone("abxcdey").is_empty());
    assert_eq!((gone("axcde"), gone("da"), gone("")), (vec![1], vec![1, 2, 4], vec![0, 1, 2, 3, 4]));
}

#[test]
fn one_changed_item_of_thousands_leaves_the_others_as_they_are() {
    let routes_of = |resource: Resource| -> Arc<RouteConfiguration> {
        let Resource::Route(routes) = resource else { panic!("routes") };
        routes
    };
    let mut configuration = routes("r", vec![virtual_host("h", &["*"], (0..10_000).map(a_route).collect())]);
    configuration.validate_clusters = Some(BoolValue::default());
    let before = configuration.encode_to_vec();
    let known = decode(ResourceType::Route, &before, &Options::default()).expect("it is good");
    configuration.virtual_hosts[0].routes[3_000] = a_route(1);
    configuration.virtual_hosts[0].routes.remove(7_000);
    let bytes = configuration.encode_to_vec();
    let shared = Some(before_of(&before, &known));
    let decoded = decode_after(ResourceType::Route, &bytes, shared, &Options::default()).expect("it is good");
    assert_eq!(decoded.ignored.last().map(String::as_str), Some("and 3270 more"));
    let (known, decoded) = (routes_of(known.resource), routes_of(decoded.resource));
    let (known, decoded) = (&known.virtual_hosts[0].routes, &decoded.virtual_hosts[0].routes);
    assert!(decoded.shared_with(known).flatten().count() >= known.parts().len() - 4);
    assert!(Arc::ptr_eq(&decoded[7_001], &known[7_002]));

    let of = |resource: Resource| -> Arc<Endpoints> {
        let Resource::Endpoints(endpoints) = resource else { panic!("endpoints") };
        endpoints
    };
    let mut assignment = endpoints("e", &[]);
    assignment.endpoints[0].lb_endpoints = (0..10_000).map(an_endpoint).collect();
    assignment.endpoints[0].proximity = Some(UInt32Value { value: 1 });
    let before = assignment.encode_to_vec();
    let known = decode(ResourceType::Endpoints, &before, &Options::default()).expect("it is good");
    assignment.endpoints[0].lb_endpoints[5_000] = an_endpoint(20_000);
    let bytes = assignment.encode_to_vec();
    let options = Options::default();
    let before = Some(before_of(&before, &known));
    let decoded = decode_after(ResourceType::Endpoints, &bytes, before, &options).expect("it is good");
    assert_eq!(decoded.ignored, ["endpoints[0].proximity"]);
    let (known, decoded) = (of(known.resource.clone()), of(decoded.resource));
    let (known, decoded) = (&known.localities[0].endpoints, &decoded.localities[0].endpoints);
    assert_eq!(decoded.shared_with(known).flatten().count(), known.parts().len() - 1);
    // One that is there already is refused.
    assignment.endpoints[0].lb_endpoints[5_000] = an_endpoint(4_999);
    let invalid = decode_after(ResourceType::Endpoints, &assignment.encode_to_vec(), before, &options);
    assert!(invalid.unwrap_err().to_string().contains("listed twice"));
}
