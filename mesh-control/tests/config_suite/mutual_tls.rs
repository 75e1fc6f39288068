//! What clients are told of endpoints and peers where workloads have certificates.

use std::sync::Arc;

use mesh_control::catalog::{Catalog, Client, ClientClass, Kind};
use mesh_control::plane::{Plane, PlaneOptions};
use mesh_control::registry::Workload;
use mesh_core::model::{Cluster, ClusterTls, Endpoint, Endpoints};
use mesh_core::resources::{Resource, ResourceType};
use mesh_core::xds::decode::{Options, decode};

const REVIEWS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{port: 9080, name: http}]}
";

const NAME: &str = "outbound|9080||reviews.shop.svc.cluster.local";
const ID: &str = "spiffe://cluster.local/ns/shop/sa/reviews";

fn plane(extra: &str) -> Plane {
    let plane = Plane::start(PlaneOptions::default().issues_certificates(true)).unwrap();
    plane.set_yaml("c.yaml", &format!("{REVIEWS}---{extra}")).unwrap();
    plane
}

fn workload(key: &str, id: Option<&str>) -> Workload {
    let address = "10.0.0.1:9080".parse().unwrap();
    let mut workload = Workload::new(key, "shop", key, address).labelled([("app", "reviews")]);
    workload.identity = id.map(|id| id.parse().unwrap());
    workload
}

fn client(class: ClientClass) -> Client {
    Client::new("c", class, [127, 0, 0, 1].into()).namespace("shop")
}

fn cluster(plane: &Plane, client: &Client) -> Arc<Cluster> {
    let found = plane.snapshot().resource(client, Kind::Cluster, NAME).unwrap();
    match decode(ResourceType::Cluster, &found.body, &Options::default()).unwrap().resource {
        Resource::Cluster(cluster) => cluster,
        other => panic!("{other:?}"),
    }
}

fn endpoints(plane: &Plane) -> Vec<Endpoint> {
    let found = plane.snapshot().resource(&client(ClientClass::Library), Kind::Endpoints, NAME).unwrap();
    let decoded = decode(ResourceType::Endpoints, &found.body, &Options::default()).unwrap().resource;
    let Resource::Endpoints(endpoints) = decoded else { panic!("{decoded:?}") };
    let Endpoints { localities, .. } = &*endpoints;
    localities.iter().flat_map(|locality| locality.endpoints.clone()).collect()
}

/// Who may answer at endpoints that are marked.
fn peers(cluster: &Cluster) -> Vec<String> {
    match &cluster.tls {
        ClusterTls::MutualWhereMarked(tls) => tls.peers.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn while_nobody_serves_a_marked_endpoint_is_still_not_called_in_plaintext() {
    let plane = plane("");
    let library = client(ClientClass::Library);
    assert_eq!(peers(&cluster(&plane, &library)), Vec::<String>::new());
    plane.register(workload("one", Some(ID)));
    assert_eq!(peers(&cluster(&plane, &library)), [ID]);
    assert!(endpoints(&plane).iter().all(|endpoint| endpoint.mutual_tls));
    // Whoever had more is not told of fewer before the workloads have come back: the version says how many there are.
    let told = plane.snapshot().resource(&library, Kind::Cluster, NAME).unwrap();
    assert!(told.self_registered && told.endpoints == 1 && told.version.ends_with("-1"), "{}", told.version);
    let before = plane.snapshot().revision(Kind::Cluster);
    plane.unregister("one");
    assert_eq!(peers(&cluster(&plane, &library)), Vec::<String>::new());
    assert_ne!(plane.snapshot().revision(Kind::Cluster), before, "streams have to look again");
}

#[test]
fn a_workload_without_a_certificate_is_no_endpoint_where_mutual_tls_is_strict() {
    let modes = |mode: &str| {
        format!(
            "\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{mtls: {{mode: {mode}}}}}\n"
        )
    };
    for (extra, expected) in [("", None), (&modes("PERMISSIVE"), Some(false)), (&modes("DISABLE"), Some(false))] {
        let plane = plane(extra);
        plane.register(workload("rogue", None));
        let marks: Vec<bool> = endpoints(&plane).iter().map(|endpoint| endpoint.mutual_tls).collect();
        assert_eq!(marks, Vec::from_iter(expected), "{extra}");
    }
    // Who has one and must not show it is called in plaintext.
    let plane = plane(&modes("DISABLE"));
    plane.register(workload("one", Some(ID)));
    assert!(!endpoints(&plane)[0].mutual_tls);
    // A change of the mode is seen, though the endpoints are the same.
    plane.set_yaml("c.yaml", REVIEWS).unwrap();
    assert!(endpoints(&plane)[0].mutual_tls);
}
