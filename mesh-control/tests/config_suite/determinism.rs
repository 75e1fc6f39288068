//! Equal configurations give equal bytes: on every replica, after every restart, in whatever order the
//! files are read.

use std::collections::BTreeMap;

use mesh_control::catalog::Kind;
use mesh_control::plane::Plane;

use crate::support::{Seen, client, grpc_client, testdata, workload};

fn documents() -> Vec<String> {
    let mut documents = Vec::new();
    for folder in ["shop", "everything"] {
        let mut files: Vec<_> =
            std::fs::read_dir(testdata(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for file in files {
            let text = std::fs::read_to_string(file).unwrap();
            documents.extend(text.split("\n---\n").map(str::to_owned));
        }
    }
    documents
}

fn everything_told(plane: &Plane) -> BTreeMap<String, Vec<u8>> {
    let mut told = BTreeMap::new();
    for client in [client("default"), client("shop"), grpc_client("shop")] {
        let seen = Seen::new(plane, client.clone());
        let mut tell = |kind: Kind, name: &str| {
            let Some(encoded) = seen.get(kind, name) else {
                return;
            };
            let hash = encoded.version.split('-').next().unwrap();
            assert_eq!(hash.len(), 16, "{}", encoded.version);
            let key = format!("{:?} {} {kind:?} {name} {}", client.class, client.namespace, encoded.version);
            told.insert(key, encoded.body.to_vec());
        };
        for service in plane.services() {
            for port in service.ports {
                tell(Kind::Listener, &format!("{}:{}", service.host, port.number));
                for subset in ["", "v1", "v2"] {
                    let name = format!("outbound|{}|{subset}|{}", port.number, service.host);
                    tell(Kind::Route, &name);
                    tell(Kind::Cluster, &name);
                    tell(Kind::Endpoints, &name);
                }
            }
        }
    }
    told
}

fn plane_in_order(documents: &[String], order: impl Iterator<Item = usize>) -> Plane {
    let plane = Plane::empty();
    for (position, index) in order.enumerate() {
        plane.set_yaml(&format!("{position:03}.yaml"), &documents[index]).unwrap_or_else(|e| panic!("{e}"));
        if position % 5 == 0 {
            plane.register(workload(&format!("w{index}"), "catalog", "v1", &format!("10.0.0.{}:8080", index + 1)));
        }
    }
    for index in 0..documents.len() {
        plane.unregister(&format!("w{index}"));
    }
    for number in [3, 1, 2] {
        plane.register(workload(&format!("k{number}"), "catalog", "v2", &format!("10.9.0.{number}:8080")));
    }
    plane
}

#[test]
fn the_order_of_files_and_of_registrations_changes_no_byte() {
    let documents = documents();
    let count = documents.len();
    let first = everything_told(&plane_in_order(&documents, 0..count));
    assert!(first.len() > 60, "{}", first.len());
    for orders in 0..4 {
        let other = match orders {
            0 => plane_in_order(&documents, 0..count),
            1 => plane_in_order(&documents, (0..count).rev()),
            step => plane_in_order(&documents, (0..count).map(|n| (n + step * 5) % count)),
        };
        assert_eq!(everything_told(&other), first);
    }
}
