//! How many requests there may be at a time, and what is not sent since it would fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, StatusCode};
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::model::{
    AdaptiveConcurrency, AdmissionControl, Cluster, ClusterKind, Endpoints, FilterConfig, Fraction, NamedFilter,
};
use mesh_core::request_info::{Criticality, Inherited};
use mesh_tower::Mesh;
use mesh_tower::body::Body;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// A server that answers to `/slow` when it is told, and to anything else with 503.
#[derive(Default)]
struct Server {
    arrived: AtomicUsize,
    answers: Notify,
}

async fn client(filter: FilterConfig) -> (Mesh, Arc<Server>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let server = Arc::new(Server::default());
    let seen = Arc::clone(&server);
    let answer = move |request: axum::extract::Request| async move {
        seen.arrived.fetch_add(1, Ordering::SeqCst);
        match request.uri().path() {
            "/slow" => {
                seen.answers.notified().await;
                StatusCode::OK
            }
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    let source = Fixed::new()
        .routes("web.shop:80", vec![route_to("web.shop")])
        .cluster(Cluster::new("web.shop", ClusterKind::Static(Endpoints::fixed([at]))))
        .filters("web.shop:80", vec![NamedFilter::new("overload", filter)]);
    (Mesh::builder().source(source).start().unwrap(), server)
}

/// The status of the answer, and whether it says that a limit was in the way.
async fn ask(mesh: &Mesh, path: &str, criticality: Criticality) -> (u16, bool) {
    let mut inherited = Inherited::default();
    inherited.criticality = criticality;
    let request = Request::get(format!("http://web.shop{path}")).extension(inherited);
    let answer = mesh.client().request(request.body(Body::empty()).unwrap()).await.unwrap();
    (answer.status().as_u16(), answer.headers().contains_key("x-envoy-overloaded"))
}

#[tokio::test]
async fn there_are_as_many_at_a_time_as_may_be_and_what_can_be_left_out_gives_way_first() {
    let mut config = AdaptiveConcurrency::fixed(4);
    config.sheddable = Fraction::new(1, 2);
    let (mesh, server) = client(FilterConfig::AdaptiveConcurrency(Arc::new(config))).await;
    let mut slow = Vec::new();
    for count in 1..=4 {
        let caller = mesh.clone();
        slow.push(tokio::spawn(async move { ask(&caller, "/slow", Criticality::Critical).await }));
        while server.arrived.load(Ordering::SeqCst) < count {
            tokio::task::yield_now().await;
        }
        let expected = if count < 2 { (503, false) } else { (503, true) };
        assert_eq!(ask(&mesh, "/", Criticality::Sheddable).await, expected, "{count}");
        // Those that arrived are the slow ones alone.
        if !expected.1 {
            server.arrived.fetch_sub(1, Ordering::SeqCst);
        }
    }
    assert_eq!(ask(&mesh, "/", Criticality::Critical).await, (503, true));
    assert_eq!(server.arrived.load(Ordering::SeqCst), 4);
    server.answers.notify_waiters();
    for slow in slow {
        assert_eq!(slow.await.unwrap(), (200, false));
    }
    assert_eq!(ask(&mesh, "/", Criticality::Sheddable).await, (503, false), "their places are free");
}

#[tokio::test]
async fn of_requests_that_fail_most_are_not_sent() {
    let (mesh, server) = client(FilterConfig::AdmissionControl(Arc::new(AdmissionControl::default()))).await;
    let mut held_back = 0;
    for _ in 0..400 {
        held_back += usize::from(ask(&mesh, "/", Criticality::Critical).await.1);
    }
    // At most four of five are held back, by chance: 320, and five standard deviations (of 8 each) are 40. Without that bound
    // nearly all would be.
    assert!((200..=360).contains(&held_back), "{held_back}");
    assert_eq!(server.arrived.load(Ordering::SeqCst), 400 - held_back);
    let text = mesh.prometheus();
    let over = format!("limit=\"admission\",rule=\"\",verdict=\"over\"}} {held_back}");
    assert!(text.contains(&over), "{text}");
}
