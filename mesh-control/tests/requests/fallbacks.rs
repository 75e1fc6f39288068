//! `mesh-control/fallback`: who answers where a service has nothing healthy.

use std::net::SocketAddr;

use http::Request;
use mesh_tower::body::Body;
use tower_service::Service;

use crate::breakers::ask_through_layer;
use crate::support::{World, nobody, server, service, web};
use crate::upstream::{Upstream, until};

/// `web.example.com`, which falls back to this, and `spare.example.com`.
fn manifests(at: SocketAddr, fallback: &str, spare: SocketAddr) -> String {
    let rule = "kind: DestinationRule\nmetadata: {name: web}\n";
    let annotated = format!(
        "kind: DestinationRule\nmetadata:\n  name: web\n  annotations:\n    mesh-control/fallback: '{fallback}'\n"
    );
    let web = web(&[("v1", at)]).replace(rule, &annotated);
    assert!(web.contains("mesh-control/fallback"), "{web}");
    format!("{web}{}", service("spare", &[("v1", spare)]))
}

async fn who(world: &World) -> String {
    match world.get("http://web.example.com/").await {
        Ok(answer) => format!("{} {}", answer.status, answer.body.lines().next().unwrap_or_default()),
        Err(error) => format!("{error:#}"),
    }
}

/// Asks until this is the answer.
async fn until_answered(world: &World, expected: &str) {
    let started = std::time::Instant::now();
    loop {
        let answer = who(world).await;
        if answer == expected {
            return;
        }
        assert!(started.elapsed() < crate::upstream::PATIENCE, "{answer}, and not {expected}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn another_service_answers_while_nothing_is_healthy_and_no_longer() {
    let (at, spare) = (nobody().await, server("spare").await);
    for fallback in ["host=spare.example.com", "host=spare.example.com:80, subset=v1"] {
        let world = World::new(&manifests(at, fallback, spare)).await;
        until_answered(&world, "200 spare").await;
        for _ in 0..20 {
            assert_eq!(who(&world).await, "200 spare");
        }
        // The layer and the connector go the same way.
        let get = || Request::get("http://web.example.com/").body(Body::empty()).unwrap();
        assert_eq!(ask_through_layer(&world, get()).await.unwrap(), 200);
        assert!(world.mesh.connector().call("http://web.example.com/".parse().unwrap()).await.is_ok());
        let back = Upstream::bind(at).await;
        until_answered(&world, "200 HTTP/1.1").await;
        until("it is asked itself", || back.requests.all() > 0).await;
        back.kill().await;
    }
}

#[tokio::test]
async fn an_answer_of_the_configuration_stands_in_while_nothing_is_healthy_and_no_longer() {
    let (at, spare) = (nobody().await, server("spare").await);
    let world = World::new(&manifests(at, "status=203, body=closed, for today", spare)).await;
    until_answered(&world, "203 closed, for today").await;
    let get = || Request::get("http://web.example.com/").body(Body::empty()).unwrap();
    assert_eq!(ask_through_layer(&world, get()).await.unwrap(), 203);
    let call = Request::post("http://web.example.com/a.B/C").header("content-type", "application/grpc");
    let call = world.ask(call.version(http::Version::HTTP_2).body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!((call.header("grpc-message"), call.status), (Some("closed, for today"), 200));
    assert!(world.mesh.connector().call("http://web.example.com/".parse().unwrap()).await.is_err());
    let _back = Upstream::bind(at).await;
    until_answered(&world, "200 HTTP/1.1").await;
}

#[tokio::test]
async fn a_service_without_endpoints_falls_back_at_the_first_request() {
    let spare = server("spare").await;
    let rules = crate::support::rules("  - route: [{destination: {host: web.example.com, subset: none}}]\n");
    for (fallback, expected) in
        [("host=spare.example.com", "200 spare"), ("status=503, body=nobody is here", "503 nobody is here")]
    {
        let manifests = manifests(nobody().await, fallback, spare).replacen(
            "  - {name: v1, labels: {v: v1}}\n",
            "  - {name: v1, labels: {v: v1}}\n  - {name: none, labels: {v: none}}\n",
            1,
        );
        assert!(manifests.contains("name: none"), "{manifests}");
        let world = World::new(&format!("{manifests}{rules}")).await;
        assert_eq!(who(&world).await, expected);
        assert_eq!(world.attempts(), u32::from(expected.starts_with("200")), "nothing else is tried before");
    }
}
