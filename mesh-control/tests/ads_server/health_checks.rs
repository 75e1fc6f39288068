//! Members of a WorkloadGroup with a probe: who is asked how it is, by whom, and what becomes of the answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use axum::http::StatusCode;
use envoy_types::pb::envoy::config::core::v3::health_check::HealthChecker;
use envoy_types::pb::envoy::config::core::v3::{HealthStatus, Node};
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::service::health::v3::health_check_request_or_endpoint_health_response::RequestType;
use envoy_types::pb::envoy::service::health::v3::health_discovery_service_client::HealthDiscoveryServiceClient;
use envoy_types::pb::envoy::service::health::v3::{
    ClusterEndpointsHealth, EndpointHealth, EndpointHealthResponse, HealthCheckRequest,
    HealthCheckRequestOrEndpointHealthResponse, HealthCheckSpecifier, LocalityEndpointsHealth,
};
use mesh_control::catalog::Kind;
use mesh_control::embedded::{Config, Embedded, Options};
use mesh_core::xds::Bootstrap;
use mesh_tower::Mesh;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::certificates::plain;
use crate::embedded::labelled;
use crate::identity::{LISTENER, claims, registers};
use crate::support::{Delta, PATIENCE, until};

const HOST: &str = "reviews.shop.svc.cluster.local";
const CLUSTER: &str = "outbound|9080||reviews.shop.svc.cluster.local";

/// A service, and a group of its workloads with this probe.
fn shop(probe: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: reviews, namespace: shop}}
spec: {{selector: {{app: reviews}}, ports: [{{name: http, port: 9080}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {{name: vms, namespace: shop}}
spec: {{metadata: {{labels: {{app: reviews}}}}, {probe}}}
"
    )
}

type Message = HealthCheckRequestOrEndpointHealthResponse;

/// Who is beside a workload, and asks it.
struct Asker {
    messages: mpsc::Sender<Message>,
    specifiers: Streaming<HealthCheckSpecifier>,
}

impl Asker {
    async fn open(address: SocketAddr, node: Node) -> Asker {
        let (messages, receiver) = mpsc::channel(4);
        let introduction = HealthCheckRequest { node: Some(node), capability: None };
        let introduction = Message { request_type: Some(RequestType::HealthCheckRequest(introduction)) };
        messages.send(introduction).await.unwrap();
        let mut client = HealthDiscoveryServiceClient::new(plain(address).await);
        let specifiers = client.stream_health_check(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Asker { messages, specifiers }
    }

    async fn next(&mut self) -> Option<HealthCheckSpecifier> {
        let message = tokio::time::timeout(PATIENCE, self.specifiers.message()).await.expect("an answer in time");
        message.unwrap()
    }

    async fn report(&self, cluster: &str, statuses: &[HealthStatus]) {
        let of = |status: &HealthStatus| EndpointHealth { health_status: (*status).into(), ..Default::default() };
        let endpoints_health = statuses.iter().map(of).collect();
        let locality = LocalityEndpointsHealth { locality: None, endpoints_health };
        let cluster =
            ClusterEndpointsHealth { cluster_name: cluster.to_owned(), locality_endpoints_health: vec![locality] };
        let report = EndpointHealthResponse { cluster_endpoints_health: vec![cluster], ..Default::default() };
        let message = Message { request_type: Some(RequestType::EndpointHealthResponse(report)) };
        self.messages.send(message).await.unwrap();
    }
}

/// A client of the service.
async fn caller(address: SocketAddr) -> Delta {
    let mut client = Delta::open(plain(address).await, labelled("web", "web")).await.unwrap();
    client.send(Kind::Cluster, &[CLUSTER], &[]).await;
    let cluster = client.next().await;
    client.answer(&cluster, None).await;
    client.send(Kind::Endpoints, &[CLUSTER], &[]).await;
    client
}

/// How many endpoints a client is told of next.
async fn told(client: &mut Delta) -> usize {
    let response = client.next().await;
    client.answer(&response, None).await;
    let body = &response.resources[0].resource.as_ref().unwrap().value[..];
    let load = ClusterLoadAssignment::decode(body).unwrap();
    load.endpoints.iter().map(|locality| locality.lb_endpoints.len()).sum()
}

#[tokio::test]
async fn a_member_gets_requests_once_whoever_is_beside_it_reports_that_it_is_well() {
    let probe = "probe: {periodSeconds: 7, failureThreshold: 2, httpGet: {path: healthz, port: 8081, httpHeaders: [{name: x-a, value: 5%}]}}";
    let control = Embedded::start(Config::yaml(shop(probe)), Options::default()).await.unwrap();
    let address = control.xds_addr();
    let member = |name: &str| claims(name, &[("AUTO_REGISTER_GROUP", "vms")]);
    // Who asks may be there before its workload.
    let mut asker = Asker::open(address, member("reviews-1")).await;
    let (_stream, answer) = registers(address, member("reviews-1")).await;
    assert!(answer.is_ok(), "{answer:?}");
    let mut client = caller(address).await;
    assert_eq!(told(&mut client).await, 0, "nobody has said that it is well");
    let note = || control.status().workloads[0].note.clone();
    assert!(note().is_some_and(|note| note.contains("nobody has reported yet")), "{:?}", note());
    let health = || control.status().workloads[0].health.clone();
    let one = control.status().workloads.remove(0);
    assert_eq!((one.group.as_deref(), one.labels["app"].as_str()), (Some("vms"), "reviews"));
    assert_eq!((one.selected_by, health().as_deref()), (vec![HOST.to_owned()], Some("unreported")));

    let specifier = asker.next().await.expect("what to ask");
    let asked = &specifier.cluster_health_checks[0];
    let check = &asked.health_checks[0];
    let seconds = |time: Option<envoy_types::pb::google::protobuf::Duration>| time.unwrap().seconds;
    assert_eq!((seconds(check.interval), seconds(check.no_traffic_interval), seconds(check.timeout)), (7, 7, 1));
    assert_eq!(check.unhealthy_threshold.as_ref().unwrap().value, 2);
    let Some(HealthChecker::HttpHealthCheck(http)) = &check.health_checker else { panic!("{check:?}") };
    assert_eq!((&*http.path, &*http.host), ("/healthz", "127.0.0.1:8081"));
    assert_eq!(http.request_headers_to_add[0].header.as_ref().unwrap().value, "5%%", "a % begins a command");

    let (well, ill) = (HealthStatus::Healthy, HealthStatus::Unhealthy);
    asker.report(&asked.cluster_name, &[well]).await;
    assert_eq!(told(&mut client).await, 1);
    assert_eq!((note(), health().as_deref()), (None, Some("healthy")));
    // Of another node: it is told nothing to ask, and not heard.
    let mut stranger = Asker::open(address, member("reviews-2")).await;
    stranger.report(&asked.cluster_name, &[ill]).await;
    drop(std::mem::replace(&mut stranger.messages, mpsc::channel(1).0));
    assert_eq!(stranger.next().await, None);
    assert_eq!(note(), None);
    // A report on something else says nothing.
    asker.report("other", &[ill]).await;
    asker.report(&asked.cluster_name, &[]).await;
    asker.report(&asked.cluster_name, &[well, HealthStatus::Timeout]).await;
    assert_eq!(told(&mut client).await, 0);
    assert!(note().is_some_and(|note| note.contains("it is not well")), "{:?}", note());
    assert_eq!(health().as_deref(), Some("unhealthy"));
    // Without a probe it is well while it is connected.
    control.set_yaml("config.yaml", &shop("template: {}")).unwrap();
    assert_eq!(told(&mut client).await, 1);
    assert_eq!((note(), health()), (None, None));
    assert!(asker.next().await.expect("nothing to ask").cluster_health_checks.is_empty());
}

#[tokio::test]
async fn who_asks_says_first_who_it_is() {
    let control = Embedded::start(Config::yaml(shop("template: {}")), Options::default()).await.unwrap();
    let (messages, receiver) = mpsc::channel(1);
    let report = RequestType::EndpointHealthResponse(EndpointHealthResponse::default());
    messages.send(Message { request_type: Some(report) }).await.unwrap();
    let mut client = HealthDiscoveryServiceClient::new(plain(control.xds_addr()).await);
    let mut specifiers = client.stream_health_check(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let refused = tokio::time::timeout(PATIENCE, specifiers.message()).await.expect("in time").unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}

#[tokio::test]
async fn clients_of_grpcs_own_are_asked_by_nobody() {
    let probe = "probe: {tcpSocket: {port: 8081}}";
    let control = Embedded::start(Config::yaml(shop(probe)), Options::default()).await.unwrap();
    let mut node = claims("reviews-1", &[("AUTO_REGISTER_GROUP", "vms")]);
    node.user_agent_name = "gRPC C-core".to_owned();
    let mut stream = Delta::open(plain(control.xds_addr()).await, node).await.unwrap();
    stream.send(Kind::Listener, &[LISTENER], &[]).await;
    stream.next().await;
    let status = control.status();
    let workload = &status.workloads[0];
    assert_eq!(workload.serves, ["reviews.shop.svc.cluster.local:9080"]);
    assert!(workload.note.as_ref().is_some_and(|note| note.contains("nobody asks")), "{workload:?}");
    let mut client = caller(control.xds_addr()).await;
    assert_eq!(told(&mut client).await, 1, "it is well while it is connected");
}

/// A workload of the group, which serves nothing.
async fn member(control: &Embedded) -> (Mesh, impl Send) {
    let bootstrap = Bootstrap::new("embedded")
        .node_id("mesh~127.0.0.1~reviews-1.shop~shop.svc.cluster.local")
        .metadata("NAMESPACE", "shop")
        .group("vms");
    let mesh = Mesh::builder().source(control.source(bootstrap)).start().unwrap();
    let listener = mesh.bind("127.0.0.1:0").await.unwrap();
    (mesh, listener)
}

/// Whether the only workload is registered, and is said to be well.
fn is_well(control: &Embedded) -> Option<bool> {
    control.status().workloads.first().map(|workload| !workload.serves.is_empty() && workload.note.is_none())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_uses_the_library_is_asked_by_it() {
    let status = Arc::new(AtomicU16::new(500));
    let said = Arc::clone(&status);
    let page = axum::routing::get(move || async move { StatusCode::from_u16(said.load(Ordering::SeqCst)).unwrap() });
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(server, axum::Router::new().route("/healthz", page)).await });
    for what in [format!("httpGet: {{path: /healthz, port: {port}}}"), format!("tcpSocket: {{port: {port}}}")] {
        let probe = format!("probe: {{periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1, {what}}}");
        let control = Embedded::start(Config::yaml(shop(&probe)), Options::default()).await.unwrap();
        let (mesh, listener) = member(&control).await;
        if what.starts_with("httpGet") {
            until("it is registered", || is_well(&control) == Some(false)).await;
            status.store(204, Ordering::SeqCst);
            until("it says that it is well", || is_well(&control) == Some(true)).await;
            status.store(503, Ordering::SeqCst);
            until("it says that it is not", || is_well(&control) == Some(false)).await;
        }
        let another = shop(&probe.replace(&what, &format!("tcpSocket: {{port: {port}}}")));
        control.set_yaml("config.yaml", &another).unwrap();
        until("the new probe is asked", || is_well(&control) == Some(true)).await;
        drop((mesh, listener));
    }
}
