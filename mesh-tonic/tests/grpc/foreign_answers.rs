//! Calls that are answered by somebody who does not speak gRPC: an error page, the configuration, an interceptor, or
//! nobody until the route's time is over.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::{Calculator, CalculatorClient, number, start, within};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::error::ErrorKind;
use mesh_core::fixed::{Fixed, route_to};
use mesh_core::model::{
    Cluster, ClusterKind, DirectResponse, Endpoints, Forward, Redirect, Route, RouteAction, RouteMatch,
};
use mesh_tonic::Channel;
use mesh_tonic::status::mesh_error;
use mesh_tower::Mesh;
use tokio::net::TcpListener;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

fn channel(source: Fixed) -> Channel {
    mesh_tonic::channel(&Mesh::builder().source(source).start().unwrap(), "xds:///s:80")
}

fn acting(action: RouteAction) -> Route {
    Route::new(RouteMatch::any(), action)
}

async fn double(channel: Channel) -> Status {
    within(CalculatorClient(channel).double(1)).await.unwrap_err()
}

/// A server of HTTP/2 that gives one and the same answer.
async fn page(status: u16, headers: &'static [(&'static str, &'static str)], body: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |_: Request<Incoming>| async move {
                let mut response = Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(*name, *value);
                }
                Ok::<_, Infallible>(response.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap())
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

const TABLE: [(u16, Code); 14] = [
    (200, Code::Unknown),
    (204, Code::Unknown),
    (302, Code::Unknown),
    (400, Code::Internal),
    (401, Code::Unauthenticated),
    (403, Code::PermissionDenied),
    (404, Code::Unimplemented),
    (413, Code::Unknown),
    (429, Code::Unavailable),
    (500, Code::Unknown),
    (501, Code::Unknown),
    (502, Code::Unavailable),
    (503, Code::Unavailable),
    (504, Code::Unavailable),
];

/// gRPC's `http-grpc-status-mapping`.
#[tokio::test]
async fn an_error_page_is_the_status_that_stands_for_its_http_status() {
    for (http, code) in TABLE {
        let html = page(http, &[("content-type", "text/html")], "<html>Sorry!</html>").await;
        let status = double(channel(Fixed::new().service("s:80", [html]))).await;
        assert_eq!(status.code(), code, "{http}: {status:?}");
        assert!(status.message().contains(&format!("HTTP {http}")), "{status:?}");
        assert!(status.message().ends_with("content type text/html"), "{status:?}");
        assert!(mesh_error(&status).is_none(), "the server answered");
        if http != 200 {
            // A proxy may leave the content type as it is, or out.
            for headers in [&[("content-type", "application/grpc")] as &[_], &[]] {
                let status = double(channel(Fixed::new().service("s:80", [page(http, headers, "").await]))).await;
                assert_eq!(status.code(), code, "{http} {headers:?}: {status:?}");
            }
        }
    }
}

/// The mapping is for answers without one.
#[tokio::test]
async fn a_grpc_status_goes_before_that_of_http() {
    for http in [200, 403, 503] {
        for content_type in ["application/grpc", "application/grpc+proto", "text/html"] {
            let headers: &'static [_] = match content_type {
                "text/html" => &[("content-type", "text/html"), ("grpc-status", "9"), ("grpc-message", "own")],
                "application/grpc" => {
                    &[("content-type", "application/grpc"), ("grpc-status", "9"), ("grpc-message", "own")]
                }
                _ => &[("content-type", "application/grpc+proto"), ("grpc-status", "9"), ("grpc-message", "own")],
            };
            let status = double(channel(Fixed::new().service("s:80", [page(http, headers, "").await]))).await;
            assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "own"), "{http} {content_type}");
        }
    }
}

#[tokio::test]
async fn an_answer_of_the_configuration_is_the_status_that_stands_for_it() {
    for (http, code) in TABLE {
        for body in ["", "closed for the night", "<html>\u{e4} 100%</html>"] {
            let answer = DirectResponse::new(StatusCode::from_u16(http).unwrap(), body);
            let status = double(channel(Fixed::new().routes("s:80", vec![acting(RouteAction::Direct(answer))]))).await;
            assert_eq!((status.code(), status.message()), (code, body), "{http}");
        }
    }
}

#[tokio::test]
async fn a_redirect_is_unknown_and_says_where_to() {
    for http in [301, 302, 303, 307, 308] {
        let mut redirect = Redirect::new(StatusCode::from_u16(http).unwrap());
        redirect.host = Some("elsewhere".into());
        let status = double(channel(Fixed::new().routes("s:80", vec![acting(RouteAction::Redirect(redirect))]))).await;
        assert_eq!(status.code(), Code::Unknown, "{status:?}");
        assert_eq!(status.message(), "the route redirects to http://elsewhere/test.Calculator/Double");
    }
}

#[tokio::test]
async fn a_routes_timeout_bounds_a_call_as_it_does_a_request() {
    // It accepts, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut forward = Forward::to("c");
    forward.timeout = Some(Duration::from_millis(400));
    let cluster = Cluster::new("c", ClusterKind::Static(Endpoints::fixed([silent.local_addr().unwrap()])));
    let source = Fixed::new().routes("s:80", vec![acting(RouteAction::Forward(forward))]).cluster(cluster);
    let channel = channel(source);
    // Without a deadline of its own, and with a later one.
    for own in [None, Some(Duration::from_secs(15))] {
        let mut request = tonic::Request::new(number(1));
        if let Some(own) = own {
            request.set_timeout(own);
        }
        let began = Instant::now();
        let status = within(CalculatorClient(channel.clone()).unary("Double", request)).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert_eq!(mesh_error(&status).unwrap().kind(), ErrorKind::Timeout);
        assert!((Duration::from_millis(400)..Duration::from_secs(10)).contains(&began.elapsed()), "{own:?}");
    }
}

#[tokio::test]
async fn the_server_is_told_the_routes_timeout_and_a_route_without_one_leaves_it_to_the_caller() {
    let server = start(Calculator::default()).await;
    // The route's timeout -> the most that the server may be told; -1 for none.
    for (timeout, most) in [(Some(Duration::from_secs(5)), 5_000), (Some(Duration::ZERO), -1), (None, -1)] {
        let mut route = route_to("c");
        if let RouteAction::Forward(forward) = &mut route.action {
            forward.timeout = timeout;
        }
        let cluster = Cluster::new("c", ClusterKind::Static(Endpoints::fixed([server.address])));
        let client = CalculatorClient(channel(Fixed::new().routes("s:80", vec![route]).cluster(cluster)));
        let left = within(client.unary("Left", tonic::Request::new(number(0)))).await.unwrap().into_inner().value;
        assert!(left <= most && (left >= 0) == (most >= 0), "{timeout:?}: {left}");
    }
}

#[tokio::test]
async fn an_interceptor_sees_the_call_and_may_refuse_it() {
    let server = start(Calculator::default()).await;
    let channel = crate::support::channel(&[server.address]);
    let mut client = HealthClient::with_interceptor(channel.clone(), |mut request: tonic::Request<()>| {
        request.metadata_mut().insert("x-seen", "1".parse().unwrap());
        Ok(request)
    });
    let answer = within(client.check(HealthCheckRequest::default())).await.unwrap();
    assert_eq!(answer.into_inner().status().as_str_name(), "SERVING");
    let mut client = HealthClient::with_interceptor(channel, |_: tonic::Request<()>| {
        Err::<tonic::Request<()>, _>(Status::unauthenticated("who are you?"))
    });
    let status = within(client.check(HealthCheckRequest::default())).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "who are you?"));
}
