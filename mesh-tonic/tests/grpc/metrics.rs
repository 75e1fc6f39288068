//! The metrics of calls that gRPC's own clients and servers have (gRFC A66).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::{Request, Response};
use mesh_core::fixed::Fixed;
use mesh_core::model::{Forward, RetryCondition, RetryConditions, RetryPolicy, Route, RouteAction, RouteMatch};
use mesh_tower::Mesh;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::{Code, Status};
use tower::Service;

use crate::support::{Calculator, CalculatorClient, number, within};

/// Refuses the first call that it gets, without a look at it.
#[derive(Clone)]
struct Refusing(Calculator, Arc<AtomicBool>);

impl NamedService for Refusing {
    const NAME: &'static str = Calculator::NAME;
}

impl Service<Request<Body>> for Refusing {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if self.1.swap(false, Ordering::SeqCst) {
            return Box::pin(async { Ok(Status::unavailable("not yet").into_http()) });
        }
        self.0.call(request)
    }
}

#[tokio::test]
async fn calls_and_their_tries_count_by_the_names_of_grpc() {
    let server = Mesh::builder().source(Fixed::new()).grpc_metrics().start().unwrap();
    let listener = server.bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr();
    let service = Refusing(Calculator::default(), Arc::new(true.into()));
    let stack = Server::builder().layer(mesh_tonic::server_layer(&server)).add_service(service);
    tokio::spawn(mesh_tonic::serve(listener, stack));

    let mut retry = RetryPolicy::default();
    (retry.on, retry.retries) = (RetryConditions::NONE.with(RetryCondition::Unavailable), 1);
    let mut forward = Forward::to("calculator:50051");
    forward.retry = Some(Arc::new(retry));
    let route = Route::new(RouteMatch::any(), RouteAction::Forward(forward));
    let source = Fixed::new().service("calculator:50051", [address]).routes("calculator:50051", vec![route]);
    let mesh = Mesh::builder().source(source).grpc_metrics().start().unwrap();
    let client = CalculatorClient(mesh_tonic::channel(&mesh, "xds:///calculator:50051"));

    assert_eq!(within(client.double(21)).await.unwrap(), 42);
    assert_eq!(within(client.double(-1)).await.unwrap_err().code(), Code::InvalidArgument);
    for made_up in ["Nothing", "Nothing/Else"] {
        let status = within(client.unary(made_up, tonic::Request::new(number(1)))).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }
    // The server's part of a call ends when its answer has been sent, which the client does not wait for.
    let served = "grpc_server_call_duration_count{grpc_method=\"other\",grpc_status=\"UNIMPLEMENTED\"} 2";
    within(async {
        while !server.prometheus().contains(served) {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let of_client = "grpc_method=\"test.Calculator/Double\",grpc_target=\"xds:///calculator:50051\"";
    let place =
        r#"grpc_lb_backend_service="calculator:50051",grpc_lb_locality="{region=\"\", zone=\"\", sub_zone=\"\"}""#;
    let of_tries = format!("{of_client},{place}");
    let text = mesh.prometheus();
    for expected in [
        format!("grpc_client_attempt_started_total{{{of_client}}} 3"),
        format!("grpc_client_attempt_duration_count{{{of_tries},grpc_status=\"UNAVAILABLE\"}} 1"),
        format!("grpc_client_attempt_duration_count{{{of_tries},grpc_status=\"OK\"}} 1"),
        format!("grpc_client_attempt_duration_count{{{of_tries},grpc_status=\"INVALID_ARGUMENT\"}} 1"),
        format!("grpc_client_call_duration_count{{{of_client},grpc_status=\"OK\"}} 1"),
        format!("grpc_client_call_duration_bucket{{{of_client},grpc_status=\"OK\",le=\"100\"}} 1"),
        // A message of two bytes, without what stands before it.
        format!("grpc_client_attempt_sent_total_compressed_message_size_sum{{{of_tries},grpc_status=\"OK\"}} 2"),
        format!("grpc_client_attempt_rcvd_total_compressed_message_size_sum{{{of_tries},grpc_status=\"OK\"}} 2"),
        format!(
            "grpc_client_attempt_sent_total_compressed_message_size_bucket{{{of_tries},grpc_status=\"OK\",le=\"1024\"}} 1"
        ),
    ] {
        assert!(text.lines().any(|line| line == expected), "{expected}\n{text}");
    }
    assert!(!text.contains("grpc_client_call_duration_count{grpc_method=\"test.Calculator/Double\",grpc_target=\"xds:///calculator:50051\",grpc_status=\"UNAVAILABLE\"}"));
    // Nobody makes names up: the first call was refused by no method of the application's that is known by then.
    let text = server.prometheus();
    for expected in [
        "grpc_server_call_started_total{grpc_method=\"test.Calculator/Double\"} 3",
        "grpc_server_call_started_total{grpc_method=\"other\"} 2",
        "grpc_server_call_duration_count{grpc_method=\"test.Calculator/Double\",grpc_status=\"OK\"} 1",
        "grpc_server_call_rcvd_total_compressed_message_size_sum{grpc_method=\"test.Calculator/Double\",grpc_status=\"OK\"} 2",
        "grpc_server_call_sent_total_compressed_message_size_sum{grpc_method=\"test.Calculator/Double\",grpc_status=\"OK\"} 2",
    ] {
        assert!(text.lines().any(|line| line == expected), "{expected}\n{text}");
    }
    assert!(!text.contains("Nothing"), "{text}");
    // Without being asked for, they are not kept.
    let plain = Mesh::builder().source(Fixed::new()).metrics().start().unwrap();
    assert!(!plain.prometheus().contains("grpc_client"));
}
