//! Zone-aware routing: what clients are told of a service, as others like them come and go.

use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use mesh_control::catalog::{Catalog, Client, ClientClass, Kind};
use mesh_control::plane::Plane;
use mesh_control::registry::Workload;
use prost::Message;

use crate::support::client_of;

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, name: http}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: stock, namespace: shop}
spec:
  hosts: [stock.example.com]
  resolution: STATIC
  ports: [{number: 80, name: http}]
  endpoints: [{address: 10.0.0.1, locality: r/a}, {address: 10.0.0.2, locality: r/b}, {address: 10.0.0.3, locality: r/b/s}, {address: 10.0.0.4, locality: r/b}, {address: 10.0.0.5, locality: q/a}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: stock, namespace: shop}
spec: {host: stock.example.com, trafficPolicy: {loadBalancer: {zoneAwareLbSetting: {minClusterSize: 4}}}}
";

/// Locality, weight and priority of what a client is told.
fn told(plane: &Plane, client: &Client) -> Vec<(String, u32, u32)> {
    let name = "outbound|80||stock.example.com";
    let found = plane.snapshot().resource(client, Kind::Endpoints, name).unwrap();
    let assignment = ClusterLoadAssignment::decode(&*found.body).unwrap();
    let localities = assignment.endpoints.into_iter().map(|endpoints| {
        let at = endpoints.locality.unwrap();
        let weight = endpoints.load_balancing_weight.unwrap().value;
        (format!("{}/{}/{}", at.region, at.zone, at.sub_zone), weight, endpoints.priority)
    });
    localities.collect()
}

#[test]
fn shares_of_zones_follow_the_clients_that_come_and_go() {
    let plane = Plane::from_yaml(SHOP).unwrap();
    let register = |number: u8, zone: &str| {
        let address = std::net::SocketAddr::from(([127, 0, 0, number], 80));
        let mut workload = Workload::new(&format!("web-{number}"), "shop", &format!("web-{number}"), address);
        workload.locality = ["r", zone, ""].map(Into::into);
        plane.register(workload.labelled([("app", "web")]));
    };
    for class in [ClientClass::Library, ClientClass::Grpc] {
        let mut client = client_of(class, "shop", &[("app", "web")]);
        client.locality = ["r", "a", ""].map(Into::into);
        let is = |expected: &[(&str, u32, u32)]| {
            let expected = expected.iter().map(|(at, weight, priority)| ((*at).to_owned(), *weight, *priority));
            assert_eq!(told(&plane, &client), expected.collect::<Vec<_>>(), "{class:?}");
        };
        if class == ClientClass::Library {
            // Nobody knows where clients like this one are.
            is(&[("r/a/", 1, 0), ("r/b/", 2, 0), ("r/b/s", 1, 0), ("q/a/", 1, 1)]);
            // A third of them are here, and a quarter of what they call: three quarters of it stay.
            register(1, "a");
            register(2, "b");
            register(3, "b");
        }
        is(&[("r/a/", 750_000, 0), ("r/b/", 166_667, 0), ("r/b/s", 83_334, 0), ("q/a/", 1, 1)]);
    }
    // A quarter of them are here by now: all of it stays, and the other zone is for when there is nobody.
    register(4, "b");
    let mut client = client_of(ClientClass::Library, "shop", &[("app", "web")]);
    client.locality = ["r", "a", ""].map(Into::into);
    assert_eq!(told(&plane, &client)[0], ("r/a/".to_owned(), 1_000_000, 0));
    assert!(told(&plane, &client)[1..].iter().all(|(_, _, priority)| *priority > 0));
    // Who is no endpoint of that service is another kind of client.
    client.labels = std::sync::Arc::default();
    assert_eq!(told(&plane, &client)[0].1, 1);
}
