//! What the tests of configuration and rendering share.
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::Address;
use envoy_types::pb::envoy::config::core::v3::address::Address as Kinds;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use mesh_control::catalog::{Catalog, Client, ClientClass, Encoded, Kind};
use mesh_control::plane::{Plane, World};
use mesh_control::registry::Workload;
use prost::Message;

pub(crate) fn testdata(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(folder)
}

/// A plane with every file of a folder of `testdata`, as texts.
pub(crate) fn plane_of(folder: &str) -> Plane {
    let plane = Plane::empty();
    let mut files: Vec<PathBuf> = std::fs::read_dir(testdata(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&file).unwrap();
        plane
            .set_yaml(&name, &text)
            .unwrap_or_else(|rejected| panic!("{name}: {rejected}"));
    }
    plane
}

pub(crate) fn client(namespace: &str) -> Client {
    client_of(ClientClass::Library, namespace, &[])
}

pub(crate) fn grpc_client(namespace: &str) -> Client {
    client_of(ClientClass::Grpc, namespace, &[])
}

pub(crate) fn client_of(class: ClientClass, namespace: &str, labels: &[(&str, &str)]) -> Client {
    let labels: BTreeMap<String, String> = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    Client {
        node_id: "mesh~127.0.0.1~test.default~default.svc.cluster.local".into(),
        class,
        namespace: namespace.into(),
        labels: Arc::new(labels),
        instance_ips: Vec::new(),
        peer_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        ports: Vec::new(),
        locality: Default::default(),
    }
}

pub(crate) fn workload(key: &str, app: &str, version: &str, address: &str) -> Workload {
    Workload::new(key, "default", key, address.parse().unwrap())
        .labelled([("app", app), ("version", version)])
}

/// The world as one client sees it, decoded.
pub(crate) struct Seen {
    pub(crate) world: Arc<World>,
    pub(crate) client: Client,
}

impl Seen {
    pub(crate) fn new(plane: &Plane, client: Client) -> Seen {
        Seen {
            world: plane.world(),
            client,
        }
    }

    pub(crate) fn get(&self, kind: Kind, name: &str) -> Option<Encoded> {
        self.world.resource(&self.client, kind, name)
    }

    fn must(&self, kind: Kind, name: &str) -> Encoded {
        self.get(kind, name)
            .unwrap_or_else(|| panic!("there is no {kind:?} {name}"))
    }

    pub(crate) fn manager(&self, target: &str) -> HttpConnectionManager {
        let listener = Listener::decode(self.must(Kind::Listener, target).body).unwrap();
        assert_eq!(listener.name, target);
        let any = listener.api_listener.unwrap().api_listener.unwrap();
        HttpConnectionManager::decode(any.value.as_slice()).unwrap()
    }

    pub(crate) fn filters_of(&self, target: &str) -> Vec<String> {
        self.manager(target)
            .http_filters
            .into_iter()
            .map(|filter| filter.name)
            .collect()
    }

    /// The routes that a target leads to.
    pub(crate) fn routes_of(&self, target: &str) -> RouteConfiguration {
        let Some(RouteSpecifier::Rds(rds)) = self.manager(target).route_specifier else {
            panic!("not by RDS")
        };
        self.routes(&rds.route_config_name)
    }

    pub(crate) fn routes(&self, name: &str) -> RouteConfiguration {
        RouteConfiguration::decode(self.must(Kind::Route, name).body).unwrap()
    }

    pub(crate) fn cluster(&self, name: &str) -> Cluster {
        Cluster::decode(self.must(Kind::Cluster, name).body).unwrap()
    }

    pub(crate) fn assignment(&self, name: &str) -> ClusterLoadAssignment {
        ClusterLoadAssignment::decode(self.must(Kind::Endpoints, name).body).unwrap()
    }

    pub(crate) fn addresses(&self, name: &str) -> Vec<String> {
        addresses_in(&self.assignment(name))
    }

    pub(crate) fn server_listener(&self, bound: &str) -> Listener {
        let name = format!("xds.istio.io/grpc/lds/inbound/{bound}");
        Listener::decode(self.must(Kind::Listener, &name).body).unwrap()
    }
}

pub(crate) fn addresses_in(assignment: &ClusterLoadAssignment) -> Vec<String> {
    let mut addresses = Vec::new();
    for endpoint in assignment
        .endpoints
        .iter()
        .flat_map(|locality| &locality.lb_endpoints)
    {
        let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else {
            panic!("no endpoint")
        };
        addresses.push(address_of(endpoint.address.as_ref().unwrap()));
    }
    addresses
}

pub(crate) fn address_of(address: &Address) -> String {
    let Some(Kinds::SocketAddress(socket)) = &address.address else {
        panic!("no socket address")
    };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else {
        panic!("no port")
    };
    match socket.address.contains(':') {
        true => format!("[{}]:{port}", socket.address),
        false => format!("{}:{port}", socket.address),
    }
}
