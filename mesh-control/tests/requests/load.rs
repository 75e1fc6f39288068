//! `mesh-control/load-balancer`, by which server gets the requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mesh_core::balance::{EndpointSet, LoadBalancer, PickArgs, Picker};
use mesh_core::load_report::LoadReport;
use mesh_tower::server::ReportLoad;
use tokio::net::TcpListener;

use crate::support::{World, service};
use crate::upstream::PATIENCE;

/// A server that says that it answers so many requests a second with half of its processor, or that takes its time.
async fn server(rate: f64, pause: Duration) -> (SocketAddr, Arc<AtomicU32>) {
    let requests = Arc::<AtomicU32>::default();
    let counted = Arc::clone(&requests);
    let load = ReportLoad::new(move || {
        let mut report = LoadReport::default();
        (report.cpu_utilization, report.requests_per_second) = (0.5, rate);
        report
    });
    let app = axum::Router::new().fallback(move || async move {
        counted.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(pause).await;
        "hello"
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app.layer(load)).await });
    (at, requests)
}

async fn world(annotation: &str, endpoints: [SocketAddr; 2]) -> World {
    let yaml = service("web", &[("v1", endpoints[0]), ("v2", endpoints[1])]).replace(
        "kind: DestinationRule\nmetadata: {name: web}",
        &format!(
            "kind: DestinationRule\nmetadata: {{name: web, annotations: {{mesh-control/load-balancer: '{annotation}'}}}}"
        ),
    );
    World::new(&yaml).await
}

#[tokio::test]
async fn servers_get_requests_by_the_load_that_they_report() {
    let ((large, of_large), (small, of_small)) =
        (server(300.0, Duration::ZERO).await, server(100.0, Duration::ZERO).await);
    let world = world("policy=weighted-by-load, blackout=0s", [large, small]).await;
    let started = Instant::now();
    loop {
        let before = [&of_large, &of_small].map(|requests| requests.load(Ordering::SeqCst));
        for _ in 0..40 {
            world.get("http://web.example.com/").await.unwrap();
        }
        let after = [&of_large, &of_small].map(|requests| requests.load(Ordering::SeqCst));
        if (after[0] - before[0]).abs_diff(30) <= 2 {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "what they report never counts");
    }
}

#[tokio::test]
async fn slow_servers_get_few_requests() {
    let ((fast, of_fast), (slow, of_slow)) =
        (server(0.0, Duration::ZERO).await, server(0.0, Duration::from_millis(150)).await);
    let world = world("policy=peak-ewma", [fast, slow]).await;
    while of_fast.load(Ordering::SeqCst) == 0 || of_slow.load(Ordering::SeqCst) == 0 {
        world.get("http://web.example.com/").await.unwrap();
    }
    let before = of_slow.load(Ordering::SeqCst);
    for _ in 0..40 {
        world.get("http://web.example.com/").await.unwrap();
    }
    let seldom = of_slow.load(Ordering::SeqCst) - before;
    assert!(seldom < 16, "{seldom}");
}

/// Always the last endpoint. Every [`World`] has it as `acme.Last`.
#[derive(Debug)]
pub(crate) struct Last;

impl LoadBalancer for Last {
    fn build(&self, set: &EndpointSet, _: Option<&dyn Picker>) -> Box<dyn Picker> {
        Box::new(Position(set.len().checked_sub(1)))
    }
}

#[derive(Debug)]
struct Position(Option<usize>);

impl Picker for Position {
    fn pick(&self, _: &EndpointSet, _: &mut PickArgs<'_>) -> Option<usize> {
        self.0
    }
}

#[tokio::test]
async fn a_balancer_of_the_applications_own_is_chosen_by_its_name_and_who_has_none_of_that_name_balances_by_least_request()
 {
    for (policy, is_registered) in [("policy=acme.Last", true), ("policy=acme.First", false)] {
        let ((one, of_one), (other, of_other)) = (server(0.0, Duration::ZERO).await, server(0.0, Duration::ZERO).await);
        let world = world(policy, [one, other]).await;
        for _ in 0..40 {
            world.get("http://web.example.com/").await.unwrap();
        }
        let requests = [of_one, of_other].map(|requests| requests.load(Ordering::SeqCst));
        assert_eq!(requests.contains(&0), is_registered, "{policy}: {requests:?}");
    }
}
