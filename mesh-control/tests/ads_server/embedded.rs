//! The embedded control plane: YAML in, what a client sees out.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{Node, socket_address::PortSpecifier};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use hyper_util::rt::TokioIo;
use mesh_control::catalog::Kind;
use mesh_control::embedded::{Config, Embedded, Options, PlaneOptions, StartError};
use mesh_control::quota::{Quotas, Store};
use mesh_control::serve;
use prost::Message;
use tonic::transport::{Channel, Endpoint};

use crate::support::{Delta, ServiceFn, Sotw, node, until};

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
";
const CLUSTER: &str = "outbound|9080||reviews.shop.svc.cluster.local";

pub(crate) fn labelled(name: &str, app: &str) -> Node {
    let string = |text: &str| Value { kind: Some(value::Kind::StringValue(text.to_owned())) };
    let labels = Struct { fields: [("app".to_owned(), string(app))].into() };
    let labels = Value { kind: Some(value::Kind::StructValue(labels)) };
    let fields = [("NAMESPACE".to_owned(), string("shop")), ("LABELS".to_owned(), labels)];
    Node {
        id: format!("mesh~127.0.0.1~{name}.shop~shop.svc.cluster.local"),
        metadata: Some(Struct { fields: fields.into() }),
        ..node("mesh-core")
    }
}

async fn in_memory(mesh: &Embedded) -> Channel {
    let server = mesh.server().clone();
    let connect = ServiceFn(move || {
        let server = server.clone();
        async move { server.connect().await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://embedded").connect_with_connector(connect).await.unwrap()
}

async fn socket(mesh: &Embedded) -> Channel {
    Channel::from_shared(format!("http://{}", mesh.xds_addr())).unwrap().connect().await.unwrap()
}

fn ports(response: &DeltaDiscoveryResponse) -> Vec<u32> {
    let body = &response.resources[0].resource.as_ref().unwrap().value[..];
    let load = ClusterLoadAssignment::decode(body).unwrap();
    let endpoints = load.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
    let mut ports: Vec<u32> = endpoints.filter_map(|endpoint| port(endpoint.host_identifier.as_ref()?)).collect();
    ports.sort_unstable();
    ports
}

fn port(host: &HostIdentifier) -> Option<u32> {
    use envoy_types::pb::envoy::config::core::v3::address::Address;
    let HostIdentifier::Endpoint(endpoint) = host else {
        return None;
    };
    match endpoint.address.as_ref()?.address.as_ref()? {
        Address::SocketAddress(socket) => match socket.port_specifier {
            Some(PortSpecifier::PortValue(port)) => Some(port),
            _ => None,
        },
        _ => None,
    }
}

#[tokio::test]
async fn a_workload_becomes_an_endpoint_by_asking_for_its_listener_and_clients_see_it_come_and_go() {
    let mesh = Embedded::start(Config::yaml(SHOP), Options::default()).await.unwrap();
    let mut client = Delta::open(in_memory(&mesh).await, labelled("web", "web")).await.unwrap();
    client.send(Kind::Cluster, &[CLUSTER], &[]).await;
    let response = client.next().await;
    client.answer(&response, None).await;
    let cluster = Cluster::decode(&response.resources[0].resource.as_ref().unwrap().value[..]).unwrap();
    assert_eq!(cluster.name, CLUSTER);
    client.send(Kind::Endpoints, &[CLUSTER], &[]).await;
    let empty = client.next().await;
    client.answer(&empty, None).await;
    assert_eq!(ports(&empty), [0u32; 0]);

    let mut server = Delta::open(socket(&mesh).await, labelled("reviews-1", "reviews")).await.unwrap();
    let listener = "xds.istio.io/grpc/lds/inbound/127.0.0.1:9080";
    server.send(Kind::Listener, &[listener], &[]).await;
    assert_eq!(server.next().await.resources[0].name, listener);
    let one = client.next().await;
    client.answer(&one, None).await;
    assert_eq!(ports(&one), [9080]);
    let status = mesh.status();
    assert_eq!(status.workloads[0].serves, ["reviews.shop.svc.cluster.local:9080"]);

    server.send(Kind::Listener, &[], &[listener]).await;
    assert_eq!(ports(&client.next().await), [0u32; 0], "goodbye: gone at once");
    mesh.shutdown().await;
}

#[tokio::test]
async fn a_text_set_later_reaches_clients_and_a_wrong_one_changes_nothing() {
    let mesh = Embedded::start(Config::yaml(SHOP), Options::default()).await.unwrap();
    let mut client = Sotw::open(socket(&mesh).await, labelled("web", "web")).await.unwrap();
    client.send(Kind::Cluster, &[CLUSTER], None, None).await;
    let first = client.next().await;
    client.send(Kind::Cluster, &[CLUSTER], Some(&first), None).await;
    assert!(mesh.set_yaml("rule.yaml", "kind: [").is_err());
    let rule = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: shop}
spec: {host: reviews, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 3s}}}}
";
    mesh.set_yaml("rule.yaml", rule).unwrap();
    let second = client.next().await;
    let cluster = Cluster::decode(&second.resources[0].value[..]).unwrap();
    assert_eq!(cluster.connect_timeout.map(|timeout| timeout.seconds), Some(3));
    assert_ne!(first.version_info, second.version_info);
}

#[tokio::test]
async fn a_workload_that_no_service_selects_is_reported() {
    let mesh = Embedded::start(Config::yaml(SHOP), Options::default()).await.unwrap();
    let mut server = Delta::open(in_memory(&mesh).await, labelled("other", "other")).await.unwrap();
    server.send(Kind::Listener, &["xds.istio.io/grpc/lds/inbound/0.0.0.0:7070"], &[]).await;
    until("it is registered", || !mesh.status().workloads.is_empty()).await;
    let workload = mesh.status().workloads.remove(0);
    assert_eq!(workload.address.to_string(), "127.0.0.1:7070");
    assert!(workload.serves.is_empty() && workload.note.is_some(), "{workload:?}");
}

#[tokio::test]
async fn while_a_restarted_control_plane_settles_nobody_loses_endpoints() {
    let settle = Duration::from_millis(700);
    let options = Options::default().serve(serve::Options::default().settle(settle));
    let before = Embedded::start(Config::yaml(SHOP), Options::default()).await.unwrap();
    let listeners = [9080, 19080].map(|port| format!("xds.istio.io/grpc/lds/inbound/127.0.0.1:{port}"));
    let mut servers = Vec::new();
    for (n, listener) in listeners.iter().enumerate() {
        let mut server =
            Delta::open(socket(&before).await, labelled(&format!("reviews-{n}"), "reviews")).await.unwrap();
        server.send(Kind::Listener, &[listener], &[]).await;
        server.next().await;
        servers.push(server);
    }
    let mut client = Delta::open(socket(&before).await, labelled("web", "web")).await.unwrap();
    client.send(Kind::Endpoints, &[CLUSTER], &[]).await;
    // The two registrations may be told one after the other.
    let held = loop {
        let held = client.next().await;
        client.answer(&held, None).await;
        if ports(&held) == [9080, 19080] {
            break held;
        }
    };
    let held_version = held.resources[0].version.clone();
    drop((servers, before));

    let start = tokio::time::Instant::now();
    let after = Embedded::start(Config::yaml(SHOP), options).await.unwrap();
    let mut client = Delta::open(socket(&after).await, labelled("web", "web")).await.unwrap();
    client.resume(Kind::Endpoints, CLUSTER, &held_version).await;
    let mut server = Delta::open(socket(&after).await, labelled("reviews-0", "reviews")).await.unwrap();
    server.send(Kind::Listener, &[&listeners[0]], &[]).await;
    server.next().await;
    // Only one of two came back: the client hears of it when the time to come back is over.
    assert_eq!(ports(&client.next().await), [9080]);
    assert!(start.elapsed() >= settle, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_wrong_text_or_directory_is_an_error_that_says_so() {
    let wrong = Embedded::start(Config::yaml("kind: ["), Options::default()).await;
    assert!(matches!(wrong, Err(StartError::Rejected(_))));
    let missing = Embedded::start(Config::dir("no/such/directory"), Options::default()).await;
    assert!(missing.unwrap_err().to_string().contains("no/such/directory"));
}

#[tokio::test]
async fn quotas_are_kept_where_somebody_says_and_else_in_the_state_directory() {
    let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let kept_in = async |serve: serve::Options| {
        let options = Options::default().plane(PlaneOptions::default().state_dir(state.path())).serve(serve);
        let control = Embedded::start(Config::dir(config.path()), options).await.unwrap();
        let store = control.quotas().map(|status| status.store);
        control.shutdown().await;
        store
    };
    let serve = serve::Options::default;
    assert_eq!(kept_in(serve()).await.as_deref(), Some("file"));
    let given = Arc::new(Quotas::new(Store::in_memory()));
    assert_eq!(kept_in(serve().quotas(given)).await.as_deref(), Some("memory"));
    assert_eq!(kept_in(serve().quotas(None)).await, None);
}
