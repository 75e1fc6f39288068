//! The health service over a real socket, from starting to drained.

use crate::support::{Calculator, channel, start, within};
use mesh_core::fixed::Fixed;
use mesh_tower::Mesh;
use mesh_tower::drain::Phase;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::Health;

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

#[tokio::test]
async fn a_drain_is_not_serving_from_its_first_moment_and_ends_the_watchers() {
    let server = start(Calculator::default()).await;
    let mut client = HealthClient::new(channel(&[server.address]));
    for service in ["", "test.Calculator"] {
        let answer = within(client.check(about(service))).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    assert_eq!(within(client.check(about("nobody"))).await.unwrap_err().code(), Code::NotFound);
    let mut watch = within(client.watch(about(""))).await.unwrap().into_inner();
    let mut unknown = within(client.watch(about("nobody"))).await.unwrap().into_inner();
    assert_eq!(within(watch.next()).await.unwrap().unwrap().status(), ServingStatus::Serving);
    assert_eq!(within(unknown.next()).await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);

    let drain = server.mesh.drain().clone();
    tokio::spawn(async move { drain.begin().await });
    assert_eq!(within(watch.next()).await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(server.mesh.drain().phase(), Phase::LameDuck);
    let answer = within(client.check(about("test.Calculator"))).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::NotServing);
    assert!(within(watch.next()).await.is_none());
    assert!(within(unknown.next()).await.is_none());
    within(server.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn nothing_serves_before_it_is_bound() {
    let mesh = Mesh::builder().source(Fixed::new()).start().unwrap();
    let health = mesh_tonic::health::HealthService::new(&mesh);
    let check = async || health.check(tonic::Request::new(about(""))).await.unwrap().into_inner().status();
    assert_eq!(check().await, ServingStatus::NotServing);
    let _listener = mesh.bind("127.0.0.1:0").await.unwrap();
    mesh.serving().await.unwrap();
    assert_eq!(check().await, ServingStatus::Serving);
}
