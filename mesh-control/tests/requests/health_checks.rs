//! `mesh-control/health-check`, by what requests and servers see.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use axum::http::StatusCode;
use tokio::net::TcpListener;

use crate::support::{World, service};
use crate::upstream::until;

/// A server with a page about its health.
struct Server {
    at: SocketAddr,
    status: Arc<AtomicU16>,
    requests: Arc<AtomicU32>,
}

impl Server {
    async fn new() -> Server {
        let (status, requests) = (Arc::new(AtomicU16::new(200)), Arc::<AtomicU32>::default());
        let (told, counted) = (Arc::clone(&status), Arc::clone(&requests));
        let app = axum::Router::new()
            .route(
                "/healthz",
                axum::routing::get(move |head: axum::http::HeaderMap| async move {
                    // A check asks for the service.
                    let is_right = head["host"] == "web.example.com";
                    StatusCode::from_u16(if is_right { told.load(Ordering::SeqCst) } else { 421 }).unwrap()
                }),
            )
            .fallback(move || async move {
                counted.fetch_add(1, Ordering::SeqCst);
                "hello"
            });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Server { at, status, requests }
    }
}

fn yaml(servers: [&Server; 2], check: &str) -> String {
    service("web", &[("v1", servers[0].at), ("v2", servers[1].at)]).replace(
        "kind: DestinationRule\nmetadata: {name: web}",
        &format!(
            "kind: DestinationRule\nmetadata: {{name: web, annotations: {{mesh-control/health-check: '{check}'}}}}"
        ),
    )
}

#[tokio::test]
async fn an_endpoint_that_says_it_is_not_well_gets_no_requests_until_it_is_and_across_changes() {
    let servers = [Server::new().await, Server::new().await];
    let [ill, well] = &servers;
    let check = "path=/healthz, interval=20ms, timeout=20s, jitter=0s, unhealthyThreshold=1";
    let world = World::of_file(&yaml([ill, well], check)).await;
    world.get("http://web.example.com/").await.unwrap();
    ill.status.store(503, Ordering::SeqCst);
    until("it is out", || !world.uses(ill.at) && world.uses(well.at)).await;
    let before = ill.requests.load(Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(world.get("http://web.example.com/").await.unwrap().status, 200);
    }
    // A change of the rule is no reason to try it again.
    let changed = |world: &World| {
        let view = world.mesh.store().find("web.example.com:80").unwrap().view().unwrap();
        view.clusters()[0].leaves()[0].cluster.health_check.as_ref().unwrap().healthy_threshold == 2
    };
    world.rewrite(&yaml([ill, well], &format!("{check}, healthyThreshold=2")));
    until("the change is there", || {
        assert!(!world.uses(ill.at));
        changed(&world)
    })
    .await;
    assert!(!world.uses(ill.at));
    assert_eq!(ill.requests.load(Ordering::SeqCst), before);
    ill.status.store(200, Ordering::SeqCst);
    until("it is back", || world.uses(ill.at)).await;
}
