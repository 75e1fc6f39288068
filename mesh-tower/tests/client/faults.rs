//! Faults that a control plane of another kind asks for, as requests experience them: what a request asks for by headers, for
//! which cluster and node, and how many suffer at a time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use mesh_core::fixed::Fixed;
use mesh_core::model::{Fault, FaultAbort, FaultDelay, FilterConfig, Fraction, NamedFilter};
use mesh_tower::body::Body;
use mesh_tower::{Client, Mesh};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

async fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                // Requests here have no body and are read in one piece.
                while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {
                    _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                }
            });
        }
    });
    address
}

async fn client(change: impl FnOnce(&mut Fault)) -> Client {
    let mut fault = Fault::default();
    change(&mut fault);
    let filter = NamedFilter::new("fault", FilterConfig::Fault(Arc::new(fault)));
    let source = Fixed::new().service("s:80", [serve().await]).filters("s:80", vec![filter]);
    Mesh::builder().source(source).start().unwrap().client()
}

fn get(headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::get("http://s:80/");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

async fn status(client: &Client, headers: &[(&str, &str)]) -> u16 {
    client.request(get(headers)).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_request_asks_for_its_own_fault() {
    let client = client(|fault| {
        fault.abort = Some(FaultAbort::by_header(Fraction::ALL));
        fault.delay = Some(FaultDelay::by_header(Fraction::ALL));
    })
    .await;
    assert_eq!(status(&client, &[]).await, 200);
    assert_eq!(status(&client, &[("x-envoy-fault-abort-request", "418")]).await, 418);
    let none = [("x-envoy-fault-abort-request", "418"), ("x-envoy-fault-abort-request-percentage", "0")];
    assert_eq!(status(&client, &none).await, 200);
    let started = Instant::now();
    assert_eq!(status(&client, &[("x-envoy-fault-delay-request", "120")]).await, 200);
    assert!(started.elapsed() >= Duration::from_millis(120));
    let grpc = [("content-type", "application/grpc"), ("x-envoy-fault-abort-grpc-request", "14")];
    let answer = client.request(get(&grpc)).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "14");
}

#[tokio::test]
async fn a_fault_is_for_its_cluster_and_its_nodes() {
    for (cluster, expected) in [("s:80", 503), ("other", 200)] {
        let client = client(|fault| {
            fault.abort = Some(FaultAbort::http(503, Fraction::ALL));
            fault.cluster = Some(cluster.into());
        })
        .await;
        assert_eq!(status(&client, &[]).await, expected, "{cluster}");
    }
    let client = client(|fault| {
        fault.abort = Some(FaultAbort::http(503, Fraction::ALL));
        fault.nodes = vec!["mine".into()];
    })
    .await;
    assert_eq!(status(&client, &[("x-envoy-downstream-service-node", "mine")]).await, 503);
    assert_eq!(status(&client, &[]).await, 200);
}

#[tokio::test]
async fn as_many_requests_suffer_at_a_time_as_may() {
    let client = client(|fault| {
        fault.abort = Some(FaultAbort::http(503, Fraction::ALL));
        fault.max_active = Some(1);
    })
    .await;
    // It counts to the end of its answer.
    let first = client.request(get(&[])).await.unwrap();
    assert_eq!(first.status().as_u16(), 503);
    assert_eq!(status(&client, &[]).await, 200);
    drop(first);
    assert_eq!(status(&client, &[]).await, 503);
}
