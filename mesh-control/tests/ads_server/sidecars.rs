//! Envoys beside workloads over the ADS server: what they are told when something is added, changed and removed, in which order,
//! and when the workload is an endpoint; and when a gateway is one.

use std::collections::BTreeSet;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::value::Kind as Text;
use envoy_types::pb::google::protobuf::{Struct, Value};
use hyper_util::rt::TokioIo;
use mesh_control::catalog::Kind;
use mesh_control::embedded::{Config, Embedded, Options, PlaneOptions};
use prost::Message;
use tonic::transport::{Channel, Endpoint};

use crate::support::{Delta, ServiceFn, Sotw, node, said, settled, until};

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}, {name: admin, port: 81, targetPort: 8081}]}
";

const RATINGS: &str = "
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: shop}
spec: {selector: {app: ratings}, ports: [{name: http, port: 9100}]}
";

const TIMEOUT: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec: {hosts: [reviews], http: [{timeout: 3s, route: [{destination: {host: reviews}}]}]}
";

async fn start() -> (Embedded, Channel) {
    start_with(settled()).await
}

async fn start_with(options: mesh_control::serve::Options) -> (Embedded, Channel) {
    start_of(Options::default().serve(options)).await
}

async fn start_of(options: Options) -> (Embedded, Channel) {
    let mesh = Embedded::start(Config::yaml(SHOP), options).await.unwrap();
    let server = mesh.server().clone();
    let connect = ServiceFn(move || {
        let server = server.clone();
        async move { server.connect().await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://embedded").connect_with_connector(connect).await.unwrap();
    (mesh, channel)
}

fn text(text: &str) -> Value {
    Value { kind: Some(Text::StringValue(text.to_owned())) }
}

/// The node of an Envoy beside a workload of this name.
fn sidecar(app: &str, ip: &str) -> Node {
    let labels = Struct { fields: [("app".to_owned(), text(app))].into() };
    let metadata = [
        ("INTERCEPTION_MODE", text("NONE")),
        ("NAMESPACE", text("shop")),
        ("LABELS", Value { kind: Some(Text::StructValue(labels)) }),
        ("POD_PORTS", text(r#"[{"name": "http", "containerPort": 8000}]"#)),
    ];
    let fields = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    Node {
        id: format!("sidecar~{ip}~{app}-1.shop~shop.svc.cluster.local"),
        metadata: Some(Struct { fields }),
        ..node("envoy")
    }
}

/// The names in a response of all that there is.
fn names(response: &DiscoveryResponse) -> BTreeSet<String> {
    let name = |bytes: &[u8]| match Kind::from_type_url(&response.type_url).unwrap() {
        Kind::Cluster => Cluster::decode(bytes).unwrap().name,
        Kind::Endpoints => ClusterLoadAssignment::decode(bytes).unwrap().cluster_name,
        Kind::Listener => Listener::decode(bytes).unwrap().name,
        _ => RouteConfiguration::decode(bytes).unwrap().name,
    };
    response.resources.iter().map(|any| name(&any.value)).collect()
}

const CLUSTERS: [&str; 7] = [
    "BlackHoleCluster",
    "PassthroughCluster",
    "inbound|8000||",
    "inbound|8081||",
    "outbound|80||web.shop.svc.cluster.local",
    "outbound|81||web.shop.svc.cluster.local",
    "outbound|9080||reviews.shop.svc.cluster.local",
];
const LISTENERS: [&str; 5] = ["10.0.0.1_8000", "10.0.0.1_8081", "127.0.0.1_80", "127.0.0.1_81", "127.0.0.1_9080"];

/// The parts of a response without their versions.
fn told(response: &DeltaDiscoveryResponse) -> (String, Vec<String>) {
    let kind = response.type_url.rsplit('.').next().unwrap().to_owned();
    (kind, said(response).into_iter().map(|one| one.split('=').next().unwrap().to_owned()).collect())
}

/// An Envoy that has taken everything, and what it was told meanwhile.
async fn served(channel: &Channel) -> Delta {
    let mut envoy = Delta::open(channel.clone(), sidecar("web", "10.0.0.1")).await.unwrap();
    for (kind, names, expected) in [
        (Kind::Cluster, &["*"][..], &CLUSTERS[..]),
        (Kind::Endpoints, &CLUSTERS[4..], &CLUSTERS[4..]),
        (Kind::Listener, &["*"], &LISTENERS),
        (Kind::Route, &["80", "81", "9080"], &["80", "81", "9080"]),
    ] {
        envoy.send(kind, names, &[]).await;
        // Meanwhile its own workload comes to be an endpoint.
        let response = loop {
            let response = envoy.next().await;
            envoy.answer(&response, None).await;
            if response.type_url == kind.type_url() {
                break response;
            }
        };
        assert_eq!(told(&response).1, expected, "{kind:?}");
    }
    envoy
}

#[tokio::test]
async fn an_envoy_is_told_what_is_added_changed_and_removed_and_never_of_a_route_before_its_cluster() {
    let (mesh, channel) = start().await;
    let mut envoy = served(&channel).await;
    let next = async |envoy: &mut Delta| loop {
        let response = envoy.next().await;
        envoy.answer(&response, None).await;
        // Who comes to be an endpoint is another story.
        if response.type_url != Kind::Endpoints.type_url() {
            return told(&response);
        }
    };
    let parts = |kind: &str, names: &[&str]| (kind.to_owned(), names.iter().map(|&name| name.to_owned()).collect());

    mesh.set_yaml("more.yaml", RATINGS).unwrap();
    let cluster = "outbound|9100||ratings.shop.svc.cluster.local";
    assert_eq!(next(&mut envoy).await, parts("Cluster", &[cluster]));
    assert_eq!(next(&mut envoy).await, parts("Listener", &["127.0.0.1_9100"]));
    envoy.send(Kind::Route, &["9100"], &[]).await;
    assert_eq!(next(&mut envoy).await, parts("RouteConfiguration", &["9100"]));

    mesh.set_yaml("routes.yaml", TIMEOUT).unwrap();
    assert_eq!(next(&mut envoy).await, parts("RouteConfiguration", &["9080"]), "and nothing else");

    mesh.set_yaml("more.yaml", "# nothing").unwrap();
    assert_eq!(next(&mut envoy).await, parts("Listener", &["!127.0.0.1_9100"]));
    assert_eq!(next(&mut envoy).await, parts("RouteConfiguration", &["!9100"]));
    assert_eq!(next(&mut envoy).await, parts("Cluster", &[&format!("!{cluster}")]));
}

#[tokio::test]
async fn an_envoy_of_the_older_protocol_is_given_all_of_a_kind_each_time_and_in_the_same_order() {
    let (mesh, channel) = start().await;
    let mut envoy = Sotw::open(channel, sidecar("web", "10.0.0.1")).await.unwrap();
    let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    let mut latest = Vec::new();
    for (kind, asked, expected) in [
        (Kind::Cluster, &[][..], &CLUSTERS[..]),
        (Kind::Listener, &[], &LISTENERS),
        (Kind::Route, &["80", "81", "9080"], &["80", "81", "9080"]),
    ] {
        envoy.send(kind, asked, None, None).await;
        let response = envoy.next().await;
        assert_eq!(names(&response), set(expected), "{kind:?}");
        envoy.send(kind, asked, Some(&response), None).await;
        latest.push(response);
    }
    mesh.set_yaml("more.yaml", RATINGS).unwrap();
    let cluster = envoy.next().await;
    assert_eq!(names(&cluster), &set(&CLUSTERS) | &set(&["outbound|9100||ratings.shop.svc.cluster.local"]));
    envoy.send(Kind::Cluster, &[], Some(&cluster), None).await;
    let listeners = envoy.next().await;
    assert_eq!(names(&listeners), &set(&LISTENERS) | &set(&["127.0.0.1_9100"]));
    envoy.send(Kind::Listener, &[], Some(&listeners), None).await;
    mesh.set_yaml("more.yaml", "# nothing").unwrap();
    assert_eq!(names(&envoy.next().await), set(&LISTENERS));
}

#[tokio::test]
async fn the_workload_of_an_envoy_is_an_endpoint_once_its_listeners_are_taken_and_while_services_select_it() {
    let (mesh, channel) = start().await;
    let [main, admin] = ["outbound|80||web.shop.svc.cluster.local", "outbound|81||web.shop.svc.cluster.local"];
    let mut caller = Delta::open(channel.clone(), node("mesh-core")).await.unwrap();
    let addresses = |response: &DeltaDiscoveryResponse| -> Vec<(String, String)> {
        let resource = |one: &envoy_types::pb::envoy::service::discovery::v3::Resource| {
            let assignment = ClusterLoadAssignment::decode(&*one.resource.as_ref().unwrap().value).unwrap();
            (one.name.clone(), format!("{:?}", assignment.endpoints))
        };
        response.resources.iter().map(resource).collect()
    };
    caller.send(Kind::Endpoints, &[main, admin], &[]).await;
    let none = caller.next().await;
    assert!(addresses(&none).iter().all(|(_, endpoints)| endpoints == "[]"), "{none:?}");
    caller.answer(&none, None).await;

    let mut envoy = Delta::open(channel.clone(), sidecar("web", "10.0.0.1")).await.unwrap();
    envoy.send(Kind::Listener, &["*"], &[]).await;
    let listeners = envoy.next().await;
    assert!(mesh.plane().workloads().is_empty(), "nobody listens yet");
    envoy.answer(&listeners, None).await;
    // Each port is that of its own service port, and of no other.
    let mut expected = BTreeSet::from([(main, "8000"), (admin, "8081")]);
    while !expected.is_empty() {
        let response = caller.next().await;
        caller.answer(&response, None).await;
        for (name, endpoints) in addresses(&response) {
            assert_eq!(endpoints.matches("10.0.0.1").count(), usize::from(endpoints != "[]"), "{name}: {endpoints}");
            expected.retain(|(cluster, port)| *cluster != name || !endpoints.contains(&format!("PortValue({port})")));
        }
    }

    // Nobody selects it any more: it leaves before its listeners do.
    mesh.set_yaml("config.yaml", &SHOP.replace("selector: {app: web}", "selector: {app: others}")).unwrap();
    let mut expected = BTreeSet::from([main, admin]);
    while !expected.is_empty() {
        let response = caller.next().await;
        caller.answer(&response, None).await;
        for (name, endpoints) in addresses(&response) {
            expected.retain(|cluster| *cluster != name || endpoints != "[]");
        }
    }
    assert!(mesh.plane().workloads().is_empty());
    drop(envoy);
}

#[tokio::test]
async fn an_envoy_that_comes_back_with_what_it_has_is_an_endpoint_at_once_though_nothing_is_new() {
    let (mesh, channel) = start().await;
    let mut envoy = Delta::open(channel.clone(), sidecar("web", "10.0.0.1")).await.unwrap();
    envoy.send(Kind::Listener, &["*"], &[]).await;
    let had = envoy.next().await.resources.into_iter().map(|one| (one.name, one.version)).collect();
    drop(envoy);
    assert!(mesh.plane().workloads().is_empty(), "it has not said that it took them");

    let again = Delta::open(channel, Node::default()).await.unwrap();
    let request = DeltaDiscoveryRequest {
        node: Some(sidecar("web", "10.0.0.1")),
        type_url: Kind::Listener.type_url().to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        initial_resource_versions: had,
        ..DeltaDiscoveryRequest::default()
    };
    again.requests.send(request).await.unwrap();
    let is_there = || mesh.plane().workloads().len() == 2;
    until("both of its ports are endpoints", is_there).await;
}

#[tokio::test]
async fn an_envoy_that_would_listen_where_its_workload_does_is_refused_with_what_to_do() {
    let (mesh, channel) = start().await;
    let mut envoy = Delta::open(channel.clone(), sidecar("web", "127.0.0.1")).await.unwrap();
    envoy.send(Kind::Cluster, &["*"], &[]).await;
    let status = envoy.responses.message().await.map(drop).unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status}");
    assert!(status.message().contains("--ip"), "{status}");
    let report = serde_json::to_value(mesh.status()).unwrap();
    assert_eq!(report["turned_away"][0]["reason"], "registration");
    // Who serves nobody may be anywhere.
    let mut client = Delta::open(channel, sidecar("client", "127.0.0.1")).await.unwrap();
    client.send(Kind::Cluster, &["*"], &[]).await;
    assert!(client.take().await.len() >= 4);
}

/// A gateway that two ports of a service lead to, and that listens for one of them.
const EGRESS: &str = "
apiVersion: v1
kind: Service
metadata: {name: egress, namespace: shop}
spec: {selector: {istio: egressgateway}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tls, port: 443, targetPort: 8443}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: egress, namespace: shop}
spec: {selector: {istio: egressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}
";

/// The node of an Envoy as a gateway.
fn gateway(name: &str) -> Node {
    let labels = Struct { fields: [("istio".to_owned(), text("egressgateway"))].into() };
    let metadata = [("NAMESPACE", text("shop")), ("LABELS", Value { kind: Some(Text::StructValue(labels)) })];
    let fields = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    Node {
        id: format!("router~10.0.0.1~{name}.shop~shop.svc.cluster.local"),
        metadata: Some(Struct { fields }),
        ..node("envoy")
    }
}

/// Whether somebody's registration was turned away, and the status says so.
fn is_turned_away(mesh: &Embedded) -> bool {
    serde_json::to_value(mesh.status()).unwrap()["turned_away"][0]["reason"] == "registration"
}

#[tokio::test]
async fn a_gateway_is_an_endpoint_of_the_services_that_select_it_where_it_listens() {
    let (mesh, channel) = start_with(settled().grace(Duration::ZERO)).await;
    mesh.set_yaml("egress.yaml", EGRESS).unwrap();
    let serves = || {
        let workloads = mesh.plane().workloads().into_iter();
        workloads.map(|one| format!("{} {}", one.address, one.serves.join(" "))).collect::<Vec<_>>()
    };
    let mut envoy = Delta::open(channel.clone(), gateway("egress-1")).await.unwrap();
    envoy.send(Kind::Listener, &["*"], &[]).await;
    let listeners = envoy.next().await;
    assert_eq!(serves(), [""; 0], "nobody listens yet");
    envoy.answer(&listeners, None).await;
    until("it is an endpoint", || !serves().is_empty()).await;
    assert_eq!(serves(), ["10.0.0.1:8080 egress.shop.svc.cluster.local:80"]);

    // Another one says that it is there, too: it is not the endpoint, and is told everything all the same.
    let mut other = Delta::open(channel, gateway("egress-2")).await.unwrap();
    other.send(Kind::Listener, &["*"], &[]).await;
    let listeners = other.next().await;
    other.answer(&listeners, None).await;
    until("it is told of", || is_turned_away(&mesh)).await;
    other.send(Kind::Cluster, &["*"], &[]).await;
    assert_eq!(told(&other.next().await).1, ["BlackHoleCluster"]);
    assert_eq!(serves().len(), 1);

    // A port that its Gateway leaves is left at once, and one that it comes to have is served once that is taken.
    mesh.set_yaml("egress.yaml", &EGRESS.replace("number: 80,", "number: 443,")).unwrap();
    let listeners = envoy.next().await;
    assert_eq!(serves(), [""; 0]);
    envoy.answer(&listeners, None).await;
    until("it is an endpoint again", || !serves().is_empty()).await;
    assert_eq!(serves(), ["10.0.0.1:8443 egress.shop.svc.cluster.local:443"]);

    // The other one is, once nobody else is there.
    let is_other = || mesh.plane().workloads().iter().any(|one| one.node.contains("egress-2"));
    let listeners = other.next().await;
    other.answer(&listeners, None).await;
    assert!(!is_other());
    drop(envoy);
    until("the other one is the endpoint", is_other).await;
}

#[tokio::test]
async fn a_node_that_says_it_is_a_gateway_and_proves_nothing_is_told_everything_and_is_no_endpoint() {
    let plane = PlaneOptions::default().issues_certificates(true);
    let (mesh, channel) = start_of(Options::default().plane(plane).serve(settled())).await;
    mesh.set_yaml("egress.yaml", EGRESS).unwrap();
    let mut envoy = Delta::open(channel, gateway("egress-1")).await.unwrap();
    envoy.send(Kind::Listener, &["*"], &[]).await;
    let listeners = envoy.next().await;
    assert_eq!(told(&listeners).1, ["0.0.0.0_8080"]);
    envoy.answer(&listeners, None).await;
    until("it is told of", || is_turned_away(&mesh)).await;
    envoy.send(Kind::Cluster, &["*"], &[]).await;
    assert_eq!(told(&envoy.next().await).1, ["BlackHoleCluster"]);
    assert_eq!(mesh.plane().workloads().len(), 0);
}

#[tokio::test]
async fn a_gateway_is_an_endpoint_as_soon_as_who_was_at_its_address_is_gone_though_that_was_nobodys_endpoint() {
    let (mesh, channel) = start().await;
    mesh.set_yaml("egress.yaml", EGRESS).unwrap();
    let name = "xds.istio.io/grpc/lds/inbound/10.0.0.1:8080";
    let mut squatter = Delta::open(channel.clone(), node("gRPC Go")).await.unwrap();
    squatter.send(Kind::Listener, &[name], &[]).await;
    until("it is there", || mesh.plane().workloads().len() == 1).await;
    let mut envoy = Delta::open(channel, gateway("egress-1")).await.unwrap();
    envoy.send(Kind::Listener, &["*"], &[]).await;
    let listeners = envoy.next().await;
    envoy.answer(&listeners, None).await;
    until("it is told of", || is_turned_away(&mesh)).await;
    // Nothing that anybody is told changes by that.
    squatter.send(Kind::Listener, &[], &[name]).await;
    let is_endpoint = || mesh.plane().workloads().iter().any(|one| one.node.contains("egress-1"));
    until("it is an endpoint", is_endpoint).await;
}
